"""Every config resolves and plans, and counts what its source says."""

import dataclasses
import json
import pathlib
import re

import pytest

from configs import bert, classify, glove, gpt2, ladder, llama, lstm, squad, tagging, vae, word2vec
from lm import keys
from lm.config.errors import ConfigError
from lm.config.schema import flatten
from lm.cost.parameters import param_counts
from lm.keys import reasons
from lm.plan.run_plan import make_plan, show
from lm.setup.hparams import make_hparams
from lm.setup.load import from_json, load_config
from lm.setup.resolve import resolve

ROOT = pathlib.Path(__file__).parent.parent
SPECS = [
  f"configs/{p.name}" for p in sorted((ROOT / "configs").glob("*.py")) if p.stem != "__init__"
]
SPECS += [f"configs/gpt2.py:{size}" for size in gpt2.SIZES]
SPECS += [f"configs/bert.py:{size}" for size in bert.SIZES]
SPECS += [f"configs/classify.py:{size}" for size in classify.SIZES]
SPECS += [f"configs/squad.py:{size}" for size in squad.SIZES]
SPECS += [f"configs/tagging.py:{size}" for size in tagging.SIZES]
SPECS += [f"configs/llama.py:{size}" for size in llama.SIZES]
SPECS += [f"configs/ladder.py:{size}" for size in ladder.LADDER]
SPECS += [f"configs/lstm.py:{size}" for size in lstm.SIZES]
SPECS += [f"configs/word2vec.py:{size}" for size in word2vec.SIZES]
SPECS += [f"configs/glove.py:{size}" for size in glove.SIZES]
SPECS += [f"configs/vae.py:{size}" for size in vae.SIZES]


def resolved(spec, vocab_size=2048, **overrides):
  overrides |= {"data.tokenizer": "bpe"}  # gpt2's own needs its files
  return resolve(load_config(spec, overrides), vocab_size, 1)


@pytest.mark.parametrize("spec", SPECS)
def test_every_config_resolves_and_plans(spec):
  cfg = resolved(spec)
  facts = make_plan(cfg, None)
  assert facts.steps >= 1 and facts.flops["6ND"] > 0
  assert f"{facts.parameters.total:,}" in show(facts)
  make_hparams(cfg)


@pytest.mark.parametrize(
  ("size", "parameters"),
  [("124m", 124_439_808), ("355m", 354_823_168), ("774m", 774_030_080), ("1558m", 1_557_611_200)],
)
def test_gpt2_counts_what_was_published(size, parameters):
  assert param_counts(resolved(f"configs/gpt2.py:{size}").model).total == parameters


def test_llama_counts_what_was_published():
  """6,738,415,616 and 68,976,648,192: the released checkpoints of Llama 2."""
  count = lambda size: param_counts(resolved(f"configs/llama.py:{size}").model).total
  assert count("7b") == 6_738_415_616
  assert count("70b") == 68_976_648_192


@pytest.mark.parametrize("size", ladder.LADDER)
def test_rungs_hold_about_what_their_names_say(size):
  number = float(size[:-1]) * {"m": 1e6, "b": 1e9}[size[-1]]
  count = param_counts(resolved(f"configs/ladder.py:{size}").model).non_embedding
  assert 0.8 * number < count < 1.25 * number


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("train.tokens", 1e6),
    ("train.tokens_per_param", 2.0),
    ("train.flops", 1e12),
    ("train.steps", 50),
  ],
)
def test_each_budget_gives_the_others(key, value):
  cfg = resolved("configs/default.py", **{"train.tokens": None, key: value})
  tokens_per_step = cfg.train.batch_size * cfg.model.seq_len
  total = param_counts(cfg.model).total
  assert cfg.train.tokens == cfg.train.steps * tokens_per_step
  assert cfg.train.tokens_per_param == pytest.approx(cfg.train.tokens / total)
  assert cfg.train.flops == pytest.approx(6 * total * cfg.train.tokens)
  asked = getattr(cfg.train, key.split(".")[1])
  assert asked == pytest.approx(value, rel=0.5 / cfg.train.steps + 1e-9)


def default_keys() -> list[str]:
  return list(flatten(load_config("configs/default.py")))


def without_reason(text: str) -> list[str]:
  """Keys whose line says nothing about them: no comment, or one without a word."""
  return [key for key, why in reasons(text).items() if not re.search(r"[A-Za-z]{3,}", why)]


def test_every_key_has_a_reason_and_a_field():
  text = (ROOT / "configs/default.py").read_text()
  assert set(reasons(text)) == set(default_keys())
  assert without_reason(text) == []


def test_a_reason_that_is_deleted_is_missed():
  lines = (ROOT / "configs/default.py").read_text().splitlines(keepends=True)
  explained = [
    i for i, line in enumerate(lines) if re.match(r"  \w+\.\w+ = (?!\w+ = ).*  # ", line)
  ]
  assert len(explained) > 0.9 * len(default_keys())
  for i in explained:
    for left in ("", "  #", "  # ?"):
      bare = lines[i].rsplit("  # ", 1)[0] + left + "\n"
      missed = without_reason("".join([*lines[:i], bare, *lines[i + 1 :]]))
      assert len(missed) == 1 and missed[0].rsplit(".", 1)[-1] in bare


def test_saved_configs_read_back():
  import json

  cfg = resolved("configs/default.py")
  assert from_json(json.loads(json.dumps(dataclasses.asdict(cfg)))) == cfg


def test_every_key_is_printed_with_its_rule_and_reason(capsys):
  assert keys.main(["optim.b1", "model.positions", "--json"]) == 0
  positions, b1 = sorted(json.loads(capsys.readouterr().out), key=lambda row: row["key"])
  assert b1["rule"] == "in [0, 1)" and "first-moment" in b1["about"] and b1["value"] == 0.9
  assert positions["rule"].startswith("rope | learned") and positions["type"] == "str"
  assert keys.main([]) == 0
  assert "after warm-up" in capsys.readouterr().out
  assert [row["key"] for row in keys.describe("configs/default.py")] == default_keys()
  with pytest.raises(ConfigError, match=r"keys=optm: no such key or section; did you mean"):
    keys.main(["optm"])
