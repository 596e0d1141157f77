"""Adapters: nothing at the start, torch's equation, merged equal to apart, a frozen base, export."""

import dataclasses

import jax
import numpy as np
import pytest

from lm.compact.__main__ import main as compact
from lm.config.errors import ConfigError
from lm.cost.parameters import weights
from lm.hf.__main__ import main as hf
from lm.models import layers
from lm.models.adapters import merge_adapters
from lm.models.registry import make_model
from lm.models.trees import by_path, init_params, nested
from lm.runs.load import load
from lm.setup.load import load_config
from tests import trained
from tests.test_models import apply, change, tokens_of

ALL = ("q", "k", "v", "out", "up", "gate", "down")
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded():
  """Each test draws the same numbers, whichever ran before it."""
  RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def drawn(cfg):
  return jax.jit(lambda key: init_params(make_model(cfg), key))(jax.random.key(0))


def with_some_b(params):
  """lora_b away from 0."""
  flat = {k: np.array(v) for k, v in by_path(params).items()}
  for name in flat:
    if name.endswith("lora_b"):
      flat[name] = RNG.normal(0, 0.1, size=flat[name].shape).astype(np.float32)
  return nested(flat)


@pytest.mark.parametrize("scan", [True, False])
def test_adapters_start_as_nothing_and_merge_into_the_same_model(scan):
  cfg = change(depth=2, lora_rank=3, lora_alpha=6.0, lora_on=ALL, scan_layers=scan, bias=True)
  params, tokens_BL = drawn(cfg), tokens_of()
  flat = {k: v for k, v in by_path(params).items() if "lora" not in k}
  assert len(flat) < len(by_path(params))
  plain = dataclasses.replace(cfg, lora_rank=None)
  base_BLV = apply(make_model(plain), nested(flat), tokens_BL)
  np.testing.assert_array_equal(apply(make_model(cfg), params, tokens_BL), base_BLV)
  tuned = with_some_b(params)
  tuned_BLV = apply(make_model(cfg), tuned, tokens_BL)
  assert abs(tuned_BLV - base_BLV).max() > 0.01
  merged, section = merge_adapters(tuned, cfg)
  assert section == plain and by_path(merged).keys() == flat.keys()
  np.testing.assert_allclose(apply(make_model(section), merged, tokens_BL), tuned_BLV, atol=1e-5)


def test_a_map_with_an_adapter_is_torchs():
  torch = pytest.importorskip("torch")
  cfg = change(width=12, heads=2, lora_rank=4, lora_alpha=10.0, lora_on=("up",), bias=True)
  module = layers.Linear(cfg, 20, ("embed", "mlp"), name="up")
  x = RNG.normal(size=(2, 5, 12)).astype(np.float32)
  shapes = {"kernel": (12, 20), "bias": (20,), "lora_a": (12, 4), "lora_b": (4, 20)}
  p = {k: RNG.normal(size=s).astype(np.float32) for k, s in shapes.items()}
  ours = jax.jit(module.apply)({"params": p}, x)
  t = {k: torch.tensor(v) for k, v in p.items()}
  base = torch.nn.functional.linear(torch.tensor(x), t["kernel"].T, t["bias"])
  down = torch.nn.functional.linear(torch.tensor(x), t["lora_a"].T)
  theirs = base + torch.nn.functional.linear(down, t["lora_b"].T) * (10.0 / 4)
  np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-4)


def test_weights_are_counted_and_only_where_named():
  cfg = change(depth=2, lora_rank=2, lora_on=("v", "down"))
  have = {k: v.shape for k, v in by_path(drawn(cfg)).items()}
  listed = {w.name: w.size for w in weights(cfg)}
  assert {k: int(np.prod(s)) for k, s in have.items()} == listed
  named = {k.split("/")[2] for k in have if "lora" in k}
  assert named == {"v", "down"}


@pytest.mark.slow  # two runs
def test_a_tuned_run_keeps_its_base_and_is_merged_on_export(tmp_path):
  base, tuned = tmp_path / "base", tmp_path / "tuned"
  changes = {"model__seq_len": 32, "train__steps": 20}
  trained.run(base, **changes)
  groups = ".*lora_[ab]$:lr=1,.*:frozen"
  lora = {"model__lora_rank": 2, "model__lora_on": ",".join(ALL), "optim__groups": groups}
  trained.run(tuned, **changes, **lora, train__init_from=base, optim__weight_decay=0.1)
  before, run = by_path(load(base).params), load(tuned, "latest")
  after = by_path(run.params)
  for name, array in before.items():
    np.testing.assert_array_equal(after[name], array)
  assert all(np.asarray(after[k]).any() for k in after if k.endswith("lora_b"))
  tokens_BL = np.arange(16, dtype=np.int32)[None]
  logits = apply(run.model, run.params, tokens_BL)
  words = ["--workdir", str(tuned), "--checkpoint", "latest"]
  assert compact([*words, "--to", str(tmp_path / "merged"), "--merge", "--tokens", "0"]) == 0
  assert hf(["export", *words, "--to", str(tmp_path / "folder")]) == 0
  again = ["import", "--from", str(tmp_path / "folder"), "--workdir", str(tmp_path / "again")]
  assert hf(again) == 0
  for name in ("merged", "again"):
    other = load(tmp_path / name)
    assert other.cfg.model.lora_rank is None
    np.testing.assert_allclose(apply(other.model, other.params, tokens_BL), logits, atol=1e-5)
  cfg = load_config(f"configs/lora.py:{base}")  # as its docstring says
  assert cfg.model.width == run.cfg.model.width and cfg.train.init_from == str(base)
  with pytest.raises(ConfigError, match=r"has adapters \(model.lora_rank\); add --merge"):
    compact([*words, "--to", str(tmp_path / "no"), "--bits", "8"])
  with pytest.raises(ConfigError, match="has no adapters to merge"):
    compact(["--workdir", str(base), "--to", str(tmp_path / "no"), "--merge"])


@pytest.mark.parametrize(("changes", "message"), [
  ({"model__lora_on": "q,vv", "model__lora_rank": 2}, "model.lora_on=vv: must be one of q, k, v"),
  ({"model__lora_rank": 2, "model__low_rank": 2}, "model.lora_rank=2: is beside whole matrices"),
  (
    {"model__lora_rank": 2, "model__experts": 2, "model__lora_on": "q,up"},
    "model.lora_on=q,up: experts have no adapters; leave up, gate and down out",
  ),
])  # fmt: skip
def test_adapters_that_cannot_be_are_refused(tmp_path, changes, message):
  with pytest.raises(ConfigError, match=message):
    trained.run(tmp_path, **changes)
