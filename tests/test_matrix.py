"""Every choice of every key, and pairs of them, through train.py: steps, a save, a resume and evaluations.

A family, an objective or a key that nobody named here fails `test_everything_is_named`. To name one:
  a family or an objective: a row of BASES with its smallest config, of whose sections all choices are then
    run, or a row of APART with the file of tests that takes it through train.py;
  a key: nothing where its field has choices, is a boolean or has an example that suits tiny runs; else its
    values in VALUES, what they need beside them in NEEDS, or a row of APART.
"""

import functools
import itertools
import json
import pathlib
import shutil
from unittest import mock

import jax
import pytest

from lm import evaluate
from lm.config.errors import ConfigError
from lm.config.read import run_config_file, to_config
from lm.config.schema import flatten, rules_of
from lm.models.parameterization import TABLE
from lm.models.registry import FAMILIES, make_model
from lm.objectives.registry import OBJECTIVES
from lm.optim.directions import OPTIMIZERS
from lm.optim.schedules import SCHEDULES
from lm.runs.rundir import checkpoint_steps
from lm.setup.checks import check
from lm.setup.load import sections_of
from lm.setup.resolve import kind_of, resolve
from tests.trained import run

TESTS = pathlib.Path(__file__).parent
LAST = 4  # steps of a run; it is saved at 2 and 4
TINY = {
  "train.batch_size": 8, "train.steps": LAST, "eval.every_steps": 2, "eval.tokens": 512,
  "checkpoint.every_steps": 2, "checkpoint.keep": 3, "log.every_steps": 1, "log.wandb": "disabled",
}  # fmt: skip
# {config: what makes it tiny}. Of the first every key is varied, of the others those of their own sections.
BASES = {
  "configs/smoke.py": {
    "model.width": 16, "model.depth": 2, "model.heads": 2, "model.seq_len": 16, "sample.tokens": 2,
    "data.sources": "text:{folder}/a.txt", "data.text_unit": "line", "data.cache_dir": "{folder}/cache",
    "data.val_fraction": 0.2,
  },
  "configs/lstm.py:smoke": {"model.width": 8, "model.seq_len": 8},
  "configs/bert.py:smoke": {"model.width": 16, "model.depth": 1, "model.seq_len": 16},
  "configs/t5.py:smoke": {"model.width": 16, "model.seq_len": 24},
  "configs/transformer.py:smoke": {"model.width": 16, "data.truncate": True},
  "configs/vae.py:smoke": {"model.width": 8},
  "configs/gan.py:smoke": {"objective.likelihood_steps": 1, "objective.critic_steps": 1},
}  # fmt: skip
FIRST = next(iter(BASES))
# What does not pass through here, or not with all its values, and the tests that take it there.
APART = {
  "objective.name=distillation": "test_distillation.py",  # needs a teacher
  "objective.name=classification": "test_classification.py",  # these read labelled texts, or pairs
  "objective.name=regression": "test_encoder_runs.py",
  "objective.name=token_classification": "test_tagged.py",
  "objective.name=extractive_span": "test_questions.py",
  "model.family=word_vectors": "test_word_vectors.py",  # these need a corpus of more words
  "objective.name=negative_sampling": "test_word_vectors.py",
  "objective.name=glove": "test_word_vectors.py",
  "objective.name=instruction": "test_chat.py",
  "rules": "test_rules.py",
  "data.label_field": "test_labelled.py",
  "data.pair_field": "test_labelled.py",
  "data.augment_share": "test_labelled.py",
  "data.augment_ops": "test_labelled.py",
  "data.augment_rate": "test_labelled.py",
  "data.token_dropout": "test_labelled.py",
  "train.init_depth": "test_train.py",  # needs a run to start from
  "data.synonyms": "test_labelled.py",
  "objective.next_sentence": "test_bert.py",  # one document is no pair
  "model.memory": "test_memory.py",  # needs an objective that carries it
  "data.source_field": "test_pairs.py",
  "data.target_field": "test_pairs.py",
  "data.tfds_splits": "test_sources.py",
  "data.tfds_dir": "test_sources.py",
  "data.text_field": "test_sources.py",
  "data.text_format": "test_sources.py",
  "data.tokenizer_path": "test_tokenizers.py",
  "data.tokenizer=gpt2": "test_tokenizers.py",
  "data.tokenizer=huggingface": "test_hf.py",
  "data.tokenizer=sentencepiece": "test_hf.py",
  "data.separator": "test_tokenizers.py",
  "data.start": "test_tokenizers.py",
  "data.cache_dir": "test_cache.py",
  "extensions": "test_contracts.py",
  "log.wandb=online": "test_log.py",  # needs an account
  "log.wandb=auto": "test_log.py",
  "log.wandb_project": "test_log.py",
  "log.wandb_group": "test_log.py",
  "log.mirrors": "test_mirrors.py",
  "model.attention=cudnn": "test_gpu.py",
  "model.attention=splash": "test_topology.py",  # TPUs alone have it
  "model.remat=offload": "test_gpu.py",
  "train.init_from": "test_train.py",
  "mesh.replica": "test_program.py",
  "mesh.fsdp": "test_program.py",
  "mesh.expert": "test_experts.py",
  "mesh.sequence": "test_program.py",
  "mesh.tensor": "test_program.py",
}
VALUES = {
  "seed": (1,),
  "data.sources": ("text:{folder}/?.txt", "synthetic:markov-8-s1"),
  "data.weights": ("1,3",),
  "data.seed": (5,),
  "data.val_fraction": (0.3,),
  "data.unique_tokens": (500,),
  "data.length_curriculum": ("8:0.7",),
  "data.unicode": ("NFC", "NFKD"),
  "data.min_chars": (3,),
  "data.max_chars": (100_000,),
  "data.tokenizer": ("char", "word", "bpe"),
  "data.vocab_size": (300,),
  "data.min_freq": (1,),
  "optim.prune_keep": (0.25,),
  "optim.prune_begin": (0.0,),
  "optim.prune_end": (0.9,),
  "optim.prune_lr": (0.1,),
  "optim.prune_penalty": (5.0,),
  "model.family": (),  # BASES has them
  "objective.name": (),
  "model.seq_len": (8,),
  "model.width": (32,),
  "model.vocab_size": (512,),
  "model.parameterization": tuple(TABLE),
  "model.base_width": (8,),
  "model.base_depth": (1,),
  "model.depth": (1,),
  "model.heads": (4,),
  "model.kv_heads": (1,),
  "model.head_dim": (4,),
  "model.mlp_dim": (24,),
  "model.experts": (4,),
  "model.experts_per_token": (1,),
  "model.shared_experts": (1,),
  "model.capacity_factor": ("None", 2.0),
  "model.window": (4,),
  "model.base_head_dim": (4,),
  "model.remat_keep": ("q", "attention,up"),
  "model.bias_on": ("qkv", "out,mlp,norm", "head"),
  "model.norm_offset": (1.0,),
  "model.embed_scale": (4.0,),
  "model.layer_kinds": ("local,global",),
  "model.rope_dim": (4,),
  "model.rope_factor": (2.0,),
  "model.rope_length": (8,),
  "model.rope_slow": (0.5,),
  "model.rope_fast": (4.0,),
  "model.hidden_dim": (12,),
  "model.lora_on": ("q,up",),
  "objective.chunk": (8,),
  "objective.denoisers": ("0.5xtail", "R:0.15x3,S:0.25xtail"),
  "objective.critic_sizes": ("2",),
  "optim.name": tuple(OPTIMIZERS),
  "optim.schedule": tuple(SCHEDULES),
  "optim.peak_lr": (1e-3,),
  "optim.b3": (0.9,),
  "optim.slow_weight": (2.0,),
  "optim.slow_warmup": (0.5,),
  "optim.precondition_every": (2,),
  "optim.gamma": (0.05,),
  "optim.l1": (1e-5,),
  "optim.l2": (1e-5,),
  "optim.clip_norm": ("None", 0.1),
  "optim.warmup_tokens": (256,),
  "optim.decay_frac": (0.5,),
  "optim.plateau_patience": (1,),
  "optim.plateau_window": (1,),
  "optim.final_lr_frac": (0.5,),
  "optim.init_scale": (0.5,),
  "optim.groups": ("embed.*:frozen", ".*mlp.*:lr=0.1:weight_decay=0"),
  "train.batch_size": (4,),
  "train.accumulate": (2,),
  "train.steps": (),  # 4 in all of them
  "train.tokens": (512,),
  "train.tokens_per_param": (0.05,),
  "train.flops": (4e7,),
  "train.seconds": (0.5,),
  "train.tokens_per_sec": (1000.0,),
  "eval.every_steps": (1,),
  "eval.tokens": ("None", 600),
  "eval.batch_size": (16,),
  "eval.sets": ("again=text:{folder}/b.txt",),
  "eval.stop_metric": ("eval/val/accuracy",),
  "eval.stop_patience": (3,),
  "sample.prompt": ("b",),
  "sample.tokens": (0, 3),
  "sample.temperature": (0.0,),
  "checkpoint.every_steps": (1,),
  "checkpoint.keep": (4,),
  "log.every_steps": (2,),
}
ROPE = {"model.rope_length": 8, "model.rope_factor": 2.0}
NEEDS = {  # what a value needs beside it; a key alone stands for all its values
  "data.weights": {"data.sources": "text:{folder}/a.txt,text:{folder}/b.txt"},
  "data.text_unit=file": {"data.val_split": "tail", "eval.tokens": "None"},
  "data.text_unit=paragraph": {"data.val_split": "tail"},
  "train.noise_scale": {"train.accumulate": 2},
  "model.base_depth": {"model.parameterization": "completep"},
  "model.parameterization=spectral": {"model.tied_embeddings": False},
  "model.experts_per_token": {"model.experts": 4},
  "model.capacity_factor": {"model.experts": 4},
  "model.shared_experts": {"model.experts": 4},
  "model.router": {"model.experts": 4},
  "model.dispatch": {"model.experts": 4},
  "objective.router_bias_rate": {"model.experts": 4},
  "model.lora_on": {"model.lora_rank": 2},
  "model.lora_alpha": {"model.lora_rank": 2},
  "model.qk_norm_over": {"model.qk_norm": True},
  "model.layer_kinds": {"model.window": 4},
  "model.rope_local_theta": {"model.window": 4, "model.layer_kinds": "local,global"},
  "model.rope_scaling": ROPE,
  "model.rope_factor": {"model.rope_scaling": "linear"},
  "model.rope_length": {"model.rope_scaling": "yarn"},
  "model.rope_slow": {"model.rope_scaling": "llama3", **ROPE},
  "model.rope_fast": {"model.rope_scaling": "llama3", **ROPE},
  "model.rope_magnitude": {"model.rope_scaling": "yarn", **ROPE},
  "model.rope_whole": {"model.rope_scaling": "yarn", **ROPE},
  "model.remat_keep": {"model.remat": "names"},
  "optim.prune": {"checkpoint.best": False},
  **{
    f"optim.prune_{key}": {"optim.prune": "movement", "checkpoint.best": False}
    for key in ("keep", "begin", "end", "lr")
  },
  "optim.prune_penalty": {"optim.prune": "soft_movement", "checkpoint.best": False},
  "optim.warmup_tokens": {"optim.warmup_frac": "None"},
  "optim.name=schedule_free": {"optim.schedule": "constant"},
  "optim.slow_weight": {"optim.name": "ademamix"},
  "optim.b3": {"optim.name": "ademamix"},
  "optim.slow_warmup": {"optim.name": "ademamix"},
  "optim.precondition_every": {"optim.name": "soap"},
  "optim.gamma": {"optim.name": "sophia"},
  "optim.plateau_patience": {"optim.schedule": "plateau"},
  "optim.plateau_factor": {"optim.schedule": "plateau"},
  "optim.plateau_window": {"optim.schedule": "plateau"},
  "optim.decay_frac": {"optim.schedule": "wsd"},
  "train.tokens": {"train.steps": "None"},
  "train.tokens_per_param": {"train.steps": "None", "data.tokenizer": "byte"},
  "train.flops": {"train.steps": "None", "data.tokenizer": "byte"},
  "train.seconds": {"train.steps": "None", "train.tokens_per_sec": 1024.0},
  "train.tokens_per_sec": {"train.steps": "None", "train.seconds": 0.5},
  "data.vocab_size": {"data.tokenizer": "bpe"},
  "data.min_freq": {"data.tokenizer": "word"},
  "data.tokenizer=bpe": {"data.vocab_size": 300},
}  # fmt: skip


# --- what is varied ---------------------------------------------------------------------------------


@functools.cache
def base(spec: str):
  """The config of a row of BASES, typed and resolved."""
  return resolved(spec, {})


def resolved(spec, changes):
  """What train.py makes of these settings. ConfigError where it refuses them."""
  config = config_dict(spec)
  overrides = {k: str(v) for k, v in {**TINY, **BASES.get(spec, {}), **changes}.items()}
  cfg = to_config(config, overrides, sections_of)
  check(cfg)
  return resolve(cfg, kind_of(cfg).vocab_size(cfg) or 300, 1)


@functools.cache
def config_dict(spec):
  return run_config_file(spec)


def alternatives(spec: str, key: str, cfg=None) -> list[str] | None:
  """Values of a key beside the base's (or cfg's), as command lines give them; None where nobody named any."""
  cfg = cfg or base(spec)
  rule, value = rules_of(cfg)[key], flatten(cfg)[key]
  if key in VALUES:
    values = VALUES[key]
  elif rule.choices:
    values = rule.choices
  elif isinstance(value, bool):
    values = (not value,)
  elif rule.example is not None:
    values = (rule.example,)
  elif key in APART:
    return []
  else:
    return None
  found = [str(v) for v in values if str(v) != str(value)]
  before = itertools.takewhile(lambda other: other != spec, BASES)
  if any(key in flatten(base(other)) for other in before):
    found = found[:1]  # the rest are run with another family
  return [v for v in found if key not in APART and f"{key}={v}" not in APART]


def keys_of(spec: str) -> list[str]:
  """The keys that a base varies."""
  own = [k for k in flatten(base(spec)) if k.split(".")[0] in ("model", "objective")]
  return list(flatten(base(spec))) if spec == FIRST else own


def with_needs(key: str, value: str) -> dict[str, str]:
  needs = {**NEEDS.get(key, {}), **NEEDS.get(f"{key}={value}", {})}
  return {**{k: str(v) for k, v in needs.items()}, key: value}


def agrees(row, more) -> bool:
  return all(row.get(k, v) == v for k, v in more.items())


def is_valid(spec, row) -> bool:
  try:
    cfg = resolved(spec, row)
    make_model(cfg.model)
  except ConfigError:
    return False
  return 2 * cfg.checkpoint.every_steps <= cfg.train.steps <= 3 * LAST


@functools.cache
def covering(spec: str) -> tuple[dict[str, str], ...]:
  """Few rows of settings in which every value of every key that this base takes stands once."""
  left = [(k, v) for k in keys_of(spec) for v in alternatives(spec, k) or ()]
  rows = []
  while left:
    row, placed = {}, set()
    for key, value in left:
      more = with_needs(key, value)
      if key not in placed and agrees(row, more) and is_valid(spec, {**row, **more}):
        row |= more
        placed.add(key)
        row.setdefault(key, value)
    done = [(k, v) for k, v in left if row.get(k) == v]
    if not done:
      break  # refused here; `test_every_value_stands_in_a_row` wants them in another base's rows
    left = [pair for pair in left if pair not in done]
    rows.append(row)
  return tuple(rows)


ROWS = 12  # of the first base, at most; a test below says when there are more
CHEAP = (ROWS - 2,)  # those that are taken in every run of the tests


def test_everything_is_named():
  reached = {f"model.family={base(s).model.family}" for s in BASES}
  reached |= {f"objective.name={base(s).objective.name}" for s in BASES}
  there = [f"model.family={name}" for name in FAMILIES if not name.startswith("test_")]
  there += [f"objective.name={name}" for name in OBJECTIVES]
  outside = {"bag", "next_label"}  # of tests/bag_of_words.py, in the same process
  unnamed = [
    n for n in there if n not in reached and n not in APART and n.split("=")[1] not in outside
  ]
  for spec in BASES:
    keys = [k for k in flatten(base(spec)) if spec == FIRST or k in keys_of(spec)]
    unnamed += [k for k in keys if alternatives(spec, k) is None and k not in APART]
  assert not unnamed, f"not run through train.py by any test: {sorted(set(unnamed))}; see the top"
  known = {k for s in BASES for k in flatten(base(s))}
  for name, file in APART.items():
    assert (TESTS / file).is_file(), f"{name}: no {file}"
  strange = {k.split("=")[0] for k in (*APART, *VALUES, *NEEDS)} - known
  assert not strange, f"no such keys: {strange}"


def test_every_value_stands_in_a_row():
  assert len(covering(FIRST)) <= ROWS, len(covering(FIRST))
  placed = {pair for spec in BASES for row in covering(spec) for pair in row.items()}
  placed |= {(k, str(v)) for spec in BASES for k, v in flatten(base(spec)).items()}
  for spec in BASES:
    wanted = {(k, v) for k in keys_of(spec) for v in alternatives(spec, k) or ()}
    left = wanted - placed
    assert not left, f"{spec}: refused everywhere, so name them in APART or NEEDS: {left}"


# --- runs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """A folder of texts; programs of a run, however small, are kept for the next one of its kind."""
  folder = tmp_path_factory.mktemp("texts")
  for name in "ab":
    lines = [f"{name} line {i} says {i * i % 97} and {i % 7}" for i in range(200)]
    (folder / f"{name}.txt").write_text("\n".join(lines))
  before, devices = jax.config.jax_persistent_cache_min_compile_time_secs, jax.devices()
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  # As users run it: with jax's own promotion, which jax.nn.dot_product_attention needs in bfloat16.
  promotion = jax.numpy_dtype_promotion("standard")
  with mock.patch.object(jax, "devices", lambda *_: devices[:1]), promotion:
    yield folder
  jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


def go_through(spec, row, workdir, corpus, scored=True):
  """Trains, stops half way as after a kill, goes on, and scores; the record must be the same twice."""
  changes = {**TINY, **BASES.get(spec, {}), **row}
  changes = {k: str(v).format(folder=corpus) for k, v in changes.items()}
  said = json.dumps(row)
  command = {k.replace(".", "__"): v for k, v in changes.items()}
  run_it = lambda: run(workdir, config=spec, tiny={}, **command)
  try:
    run_it()
    last = max(checkpoint_steps(workdir))
    before = (workdir / "metrics.jsonl").read_bytes()
    saved = sorted(step for step in checkpoint_steps(workdir) if step < last)
    assert saved, f"only step {last} was saved"
    for step in (s for s in checkpoint_steps(workdir) if s > saved[-1]):
      shutil.rmtree(workdir / "checkpoints" / str(step))
    assert "resumed at step" in run_it()
    assert (workdir / "metrics.jsonl").read_bytes() == before
    records = [json.loads(line) for line in before.decode().splitlines()]
    watched = resolved(spec, row).eval.stop_metric
    assert any(isinstance(record.get(watched), float) for record in records)
    if scored:
      tokens = None if row.get("eval.tokens") == "None" else 512
      assert evaluate.evaluate_run(workdir, checkpoint="latest", max_tokens=tokens)["step"] == last
  except Exception as error:
    error.add_note(f"settings: {spec} {said}")
    raise


@pytest.mark.parametrize(
  "number", [pytest.param(n, marks=() if n in CHEAP else pytest.mark.slow) for n in range(ROWS)]
)
def test_every_value_of_every_key_trains_resumes_and_is_scored(number, corpus, tmp_path):
  rows = covering(FIRST)
  if number < len(rows):
    go_through(FIRST, rows[number], tmp_path / "run", corpus)


@pytest.mark.slow
@pytest.mark.parametrize("spec", list(BASES)[1:])
def test_every_value_of_another_family(spec, corpus, tmp_path):
  for number, row in enumerate(covering(spec)):
    go_through(spec, row, tmp_path / str(number), corpus)


PAIRED = (  # keys whose values are run in all pairs
  "optim.name", "optim.schedule", "optim.state_dtype", "optim.ema_decay", "optim.decay_coupling",
  "train.accumulate", "data.pack", "data.cross_documents", "model.experts", "model.remat",
  "model.scan_layers", "model.norm_position", "model.dtype", "model.tied_embeddings",
  "objective.chunk", "model.dropout",
)  # fmt: skip
PARTS = 6  # so that several processes share them


@functools.cache
def pairs():
  """Rows in which every two values of two keys in PAIRED stand beside each other, where that is allowed."""
  values = {key: [None, *alternatives(FIRST, key)] for key in PAIRED}

  def is_allowed(row):
    return is_valid(FIRST, as_row(row)) if len(row) > 1 else True

  allpairspy = pytest.importorskip("allpairspy")
  return [as_row(row) for row in allpairspy.AllPairs(list(values.values()), filter_func=is_allowed)]


def as_row(values) -> dict[str, str]:
  row = {}
  for key, value in zip(PAIRED, values, strict=False):
    if value is not None:
      row |= with_needs(key, value)
  return row


@pytest.mark.slow
@pytest.mark.parametrize(
  "part", [0, *(pytest.param(p, marks=pytest.mark.long) for p in range(1, PARTS))]
)
def test_pairs_of_values_train_and_resume(part, corpus, tmp_path):
  rows = pairs()
  assert len(rows) < 80, len(rows)
  for number in range(part, len(rows), PARTS):
    go_through(FIRST, rows[number], tmp_path / str(number), corpus, scored=False)
