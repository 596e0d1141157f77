"""Pairs of settings of every family but the default one, through train.py: steps, a save, a resume, a score.

As `test_pairs_of_values_train_and_resume` (tests/test_matrix.py) does for the default family: of the keys of
a family's own and of what all families share (`SHARED`), every two values stand together in a row, where the
two are allowed together. A row that crashes, or whose resumed record is another one, names its settings.

  FAMILY_ROWS=20 pytest -m long tests/test_family_pairs.py -k lstm    20 rows of it, else all of them
  python benchmarks/pairs.py --rows 8                                 8 rows of each
"""

import functools
import itertools
import json
import os
import random

import pytest

from lm.config.errors import ConfigError
from lm.config.schema import flatten
from lm.cost.parameters import run_weights
from lm.models.registry import make_model
from tests import test_matrix
from tests.test_matrix import (
  BASES,
  FIRST,
  TINY,
  agrees,
  alternatives,
  corpus,
  go_through,
  resolved,
  with_needs,
)
from tests.trained import run

assert corpus  # the fixture, by its name
# {name: (config, what makes it tiny)}
FAMILIES = {
  "experts": ("configs/smoke.py", {"model.experts": 4}),
  "transformer_xl": ("configs/transformer_xl.py:smoke", {}),
  **{s.split("/")[1].split(".")[0]: (s, {}) for s in list(BASES)[1:]},
  "word2vec": ("configs/word2vec.py:smoke", {"train.batch_size": 16}),
  "glove": ("configs/glove.py:smoke", {"train.batch_size": 64}),
}
# As above, of objectives that have none of these families to themselves.
TASKS = {
  "classification": ("configs/classify.py:smoke", {"model.width": 16, "model.seq_len": 32}),
  "regression": ("configs/regression.py:smoke", {"model.width": 16}),
  "token_classification": ("configs/tagging.py:smoke", {"model.width": 16}),
  "extractive_span": ("configs/squad.py:smoke", {"model.width": 16}),
  "next_sentence": (
    "configs/bert.py:smoke",
    {"objective.next_sentence": True, "data.sources": "docstrings", "model.seq_len": 32},
  ),
  "instruction": (
    "configs/instruction.py",
    {
      **BASES[FIRST],
      "data.sources": "text:{folder}/chat.jsonl",
      "data.text_unit": "file",
      "model.seq_len": 128,
    },
  ),
  "distillation": (
    "configs/distillation.py",
    {
      **BASES[FIRST],
      "data.tokenizer": "byte",
      "train.tokens": "None",
      "objective.teacher": "{folder}/teacher",
    },
  ),
}
# What all of them take, beside their own sections; of a family with experts, what goes by these.
SHARED = {
  "optim.name": ("muon", "schedule_free", "soap", "sgd", "adafactor", "sophia", "prodigy"),
  "optim.schedule": ("wsd", "plateau"),
  "optim.state_dtype": ("int8", "bfloat16"),
  "optim.ema_decay": ("0.9",),
  "optim.clip_norm": ("None", "0.1"),
  "optim.cautious": ("True",),
  "optim.hyperball": ("True",),
  "optim.init_scale": ("0.5",),
  "optim.layer_decay": ("0.9",),
  "optim.prune": ("movement", "soft_movement"),
  "train.accumulate": ("2",),
  "train.noise_scale": ("True",),
  "train.on_nonfinite": ("skip", "rewind"),
  "checkpoint.best": ("False",),
  "eval.batch_size": ("4",),
  "eval.every_steps": ("1",),
  "model.parameterization": ("mup",),
  "data.pack": ("False",),
  "data.cross_documents": ("False",),
  "data.unique_tokens": ("500",),
  "data.length_curriculum": ("SHORT:0.7",),  # what divides its rows
}
EXPERTS = (
  "model.experts_per_token", "model.capacity_factor", "model.shared_experts", "model.router",
  "model.dispatch", "model.dtype", "model.scan_layers", "model.remat", "model.residual",
  "objective.balance_loss", "objective.router_z_loss", "objective.router_bias_rate", "objective.chunk",
)  # fmt: skip
LEFT_OUT = {  # what changes no program, goes by the data, or is no setting of a small run
  "model.family", "objective.name", "objective.classes", "model.seq_len", "model.vocab_size",
  "model.base_width", "model.width",
}  # fmt: skip
OF_HIDDEN = ("optim.prune", "optim.hyperball")  # refused where no matrix is hidden
OF_TASKS = (
  "model.dtype",
  "model.scan_layers",
  "model.remat",
  "model.dropout",
  "model.lora_rank",
  "model.kv_heads",
)
PARTS = 3  # so that several processes share a family
BOTH = {**FAMILIES, **TASKS}


def values_of(name: str) -> dict[str, list[str | None]]:
  """{key: its values}; None is the base's own."""
  spec, base = BOTH[name]
  cfg = resolved_of(name, {})
  present = flatten(cfg)
  length = present["model.seq_len"]
  short = str(max((n for n in range(1, length) if length % n == 0), default=1))
  kinds = {weight.kind for weight in run_weights(cfg)}
  own = [k for k in present if k.split(".")[0] in ("model", "objective") and k not in LEFT_OUT]
  if name == "experts":
    own = [k for k in own if k in EXPERTS]
  if name in TASKS:
    own = [k for k in own if k.startswith("objective.") or k in OF_TASKS]
  found = {
    key: [v.replace("SHORT", short) for v in values if v != str(present[key])]
    for key, values in SHARED.items()
    if key in present and (key not in OF_HIDDEN or "hidden" in kinds)
  }
  found |= {key: alternatives(spec, key, cfg) or [] for key in own if key not in found}
  return {key: [None, *values] for key, values in found.items() if values and key not in base}


def resolved_of(name: str, changes):
  spec, base = BOTH[name]
  return resolved(spec, {**base, **changes})


def is_valid(name: str, row) -> bool:
  try:
    make_model(resolved_of(name, row).model)
  except ConfigError:
    return False
  return True


def joined(row, pairs):
  """The row with these values and what they need; None where two of them differ."""
  row = dict(row)
  for key, value in pairs:
    more = {key: None} if value is None else with_needs(key, value)
    if not agrees(row, more):
      return None
    row |= more
  return row


def settings_of(row) -> dict[str, str]:
  return {key: value for key, value in row.items() if value is not None}


@functools.cache
def rows_of(name: str) -> tuple[dict[str, str], ...]:
  """Rows in which every two values of two keys that go together stand beside each other, in a mixed order."""
  allpairspy = pytest.importorskip("allpairspy")
  values = values_of(name)

  def row_of(chosen):
    row = joined({}, zip(values, chosen, strict=False))
    return row if row is not None and is_valid(name, settings_of(row)) else None

  found = allpairspy.AllPairs(
    list(values.values()), filter_func=lambda chosen: row_of(chosen) is not None
  )
  rows = [row_of(chosen) for chosen in found]
  # Where some are not allowed together it leaves out others, too, which follow in rows of their own.
  pairs = (
    ((a, v), (b, w))
    for (a, of_a), (b, of_b) in itertools.combinations(values.items(), 2)
    for v, w in itertools.product(of_a, of_b)
  )
  has = lambda row, pair: all(row.get(key, "") == value for key, value in pair)
  valid = lambda row: row is not None and is_valid(name, settings_of(row))
  left = [p for p in pairs if not any(has(row, p) for row in rows) and valid(joined({}, p))]
  random.Random(0).shuffle(left)
  while left:
    row, refused = joined({}, left[0]), 0
    for pair in left[1:]:
      more = joined(row, pair)
      if more is None or more == row:
        continue
      if valid(more):
        row = more
      elif (refused := refused + 1) == 30:  # enough in this one
        break
    rows.append(row)
    left = [pair for pair in left if not has(row, pair)]
  random.Random(0).shuffle(rows)
  return tuple(settings_of(row) for row in rows)


def test_every_family_has_its_pairs():
  """Few enough to be run. A family or an objective that nobody named above is named here."""
  there = {name for name in test_matrix.FAMILIES if not name.startswith("test_")}
  there |= set(test_matrix.OBJECTIVES)
  trained = {"bag", "next_label"}  # of tests/bag_of_words.py, in the same process
  for name in BOTH:
    assert len(values_of(name)) > 10, name
    cfg = resolved_of(name, {})
    trained |= {cfg.model.family, cfg.objective.name}
  unnamed = sorted(there - trained)
  assert not unnamed, f"no pairs of theirs are tried: {unnamed}; name them in FAMILIES or TASKS"
  rows = rows_of("lstm")
  assert 12 <= len(rows) < 80, len(rows)
  stand = {frozenset(pair) for row in rows for pair in itertools.combinations(row.items(), 2)}
  assert frozenset({("optim.name", "muon"), ("model.cell", "gru")}) in stand
  each = [(key, value) for key, of in values_of("lstm").items() for value in of[1:]]
  for pair in itertools.combinations(each, 2):
    if pair[0][0] != pair[1][0] and frozenset(pair) not in stand:
      row = joined({}, pair)
      assert row is None or not is_valid("lstm", row), f"no row has {pair}"


@pytest.fixture(scope="module")
def texts(corpus):
  """The corpus with a conversation a line and a teacher."""
  lines = [
    {
      "messages": [
        {"role": "user", "content": f"{i}?"},
        {"role": "assistant", "content": f"{i * 7 % 9}."},
      ]
    }
    for i in range(200)
  ]
  (corpus / "chat.jsonl").write_text("\n".join(map(json.dumps, lines)))
  base = TASKS["distillation"][1]
  settings = {k: str(v).format(folder=corpus) for k, v in {**TINY, **base}.items()}
  del settings["objective.teacher"]
  teacher = {k.replace(".", "__"): v for k, v in settings.items()}
  run(corpus / "teacher", config="configs/default.py", tiny={}, **teacher)
  return corpus


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", BOTH)
def test_pairs_of_a_family_train_and_resume(name, part, texts, tmp_path):
  spec, base = BOTH[name]
  rows = rows_of(name)[: int(os.environ.get("FAMILY_ROWS", "1000"))]
  failures = []
  for number in range(part, len(rows), PARTS):
    try:
      go_through(spec, {**base, **rows[number]}, tmp_path / str(number), texts)
    except Exception as error:  # the others of this family are to be seen, too
      failures.append(f"{spec} {rows[number]}: {type(error).__name__}: {str(error)[:300]}")
  assert not failures, "\n".join(failures)
