"""Experts balanced by biases in training: loads, resume, micro-batches, devices."""

import json
import shutil

import jax
import numpy as np
import pytest

from lm import generate
from lm.compact.__main__ import main as compact
from lm.config.errors import ConfigError
from lm.devices.sharding import make_mesh
from lm.hf.runs import export_run
from lm.models.experts import ROUTING
from lm.models.registry import make_model
from lm.runs.checkpoint import load_state
from lm.runs.load import load
from lm.setup.hparams import make_hparams
from lm.setup.load import load_config
from lm.setup.resolve import kind_of, resolve
from lm.training.programs import make_programs
from tests.trained import TINY, records, run

EXPERTS = {
  "model.experts": 4, "model.experts_per_token": 1, "model.mlp_dim": 16, "objective.balance_loss": 0.0,
  "model.router": "sigmoid",
}  # fmt: skip


def config(n_devices=1, **changes):
  given = {**TINY, **EXPERTS, **{key.replace("__", "."): value for key, value in changes.items()}}
  return resolve(load_config("configs/smoke.py", given), 257, n_devices)


def trained(cfg, n_devices, steps, skewed=False):
  """(state, losses) after so many steps, and the tokens of one more batch.

  skewed: every token begins with a first number that the router reads as a vote for the first experts.
  """
  programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:n_devices]))
  hparams = jax.device_put(make_hparams(cfg), programs.scalar_sharding)
  state, losses = programs.init(hparams), []
  if skewed:
    params = jax.device_get(state.params)
    params["embed"]["embedding"] = np.array(params["embed"]["embedding"])
    params["embed"]["embedding"][:, 0] = 1.0
    router = params["blocks"]["mlp"]["router"]
    router["kernel"] = np.array(router["kernel"])
    router["kernel"][:, 0] = np.array([0.4, 0.2, 0.0, -0.2])
    state = state._replace(params=jax.device_put(params, programs.state_sharding.params))
  batches = kind_of(cfg).train(kind_of(cfg).open(cfg), cfg)
  for step in range(steps):
    rows = jax.device_put(batches.at(step), programs.batch_sharding)
    state, metrics = programs.train(state, rows, hparams)
    losses.append(float(metrics["train/loss"]))
  return jax.device_get(state), losses, batches.at(steps)["tokens"]


def loads(cfg, state, tokens_BL):
  """Fraction of the choices that each expert gets."""
  model, given = make_model(cfg.model), {"params": state.params}
  if state.extra:
    given[ROUTING] = state.extra["bias"]
  _, sown = jax.jit(lambda given: model.apply(given, tokens_BL, mutable=[ROUTING]))(given)
  load_LE = np.asarray(sown[ROUTING]["blocks"]["mlp"]["load"])
  return load_LE / load_LE.sum(axis=-1, keepdims=True)


@pytest.mark.slow
def test_loads_become_more_even_than_without():
  """Largest share of an expert, of which an even one has .25."""
  shares = []
  for rate in (0.0, 0.01):
    cfg = config(objective__router_bias_rate=rate, train__steps=60)
    state, _, tokens_BL = trained(cfg, 1, 60, skewed=True)
    assert bool(state.extra) == (rate > 0)
    shares.append(float(loads(cfg, state, tokens_BL).max()))
  assert shares[0] > 0.6 > 0.4 > shares[1], shares


@pytest.mark.slow  # three programs
def test_eight_devices_and_two_micro_batches_compute_what_one_does():
  """Biases are the same numbers: they move by the sign of whole loads, once a step."""
  rate = {"objective__router_bias_rate": 0.01, "optim__name": "sgd"}
  mesh = {"mesh__replica": 2, "mesh__expert": 2, "mesh__tensor": 2, "model__vocab_size": 264}
  alone, losses, _ = trained(config(model__vocab_size=264, **rate), 1, 5)
  assert np.abs(alone.extra["bias"]["blocks"]["mlp"]["bias"]).max() > 0.02
  for n_devices, changes in ((8, mesh), (1, {"train__accumulate": 2, "model__vocab_size": 264})):
    state, found, _ = trained(config(n_devices, **rate, **changes), n_devices, 5)
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, state.extra, alone.extra)


@pytest.mark.slow
def test_resumed_it_ends_with_the_same_bits(tmp_path):
  settings = {key.replace(".", "__"): value for key, value in EXPERTS.items()}
  settings |= {"objective__router_bias_rate": 0.01, "model__scan_layers": False}
  whole, half = tmp_path / "whole", tmp_path / "half"
  run(whole, **settings)
  shutil.copytree(whole, half)
  shutil.rmtree(half / "checkpoints" / "8")
  about = json.loads((half / "run.json").read_text()) | {"status": "interrupted"}
  (half / "run.json").write_text(json.dumps(about))
  assert "resumed at step 4" in run(half, **settings)
  assert records(whole) == records(half)
  (a, _), (b, _) = load_state(whole, "latest"), load_state(half, "latest")
  assert np.asarray(a["extra"]["bias"]["blocks"]["mlp"]["bias"]).any()
  for field in ("params", "extra"):
    jax.tree.map(np.testing.assert_array_equal, a[field], b[field])
  # What reads parameters alone would choose other experts.
  there = ["--workdir", str(whole)]
  student = {
    "objective__name": "distillation",
    "objective__alpha": 0.5,
    "objective__temperature": 1.0,
  }
  for use in (
    lambda: load(whole),
    lambda: generate.main([*there, "--prompt", "a"]),
    lambda: export_run(whole, tmp_path / "hf", "best"),
    lambda: compact([*there, "--to", str(tmp_path / "int8"), "--bits", "8"]),
    lambda: run(tmp_path / "student", objective__teacher=whole, **student),
  ):
    with pytest.raises(ConfigError, match=r"router_bias_rate=0.01: the biases of this run"):
      use()


@pytest.mark.parametrize("changes, words", [
  ({"model__experts": None}, "balances experts and there are none; set model.experts or use 0"),
  ({"sample__tokens": 4}, "the biases are not read where text is generated; set sample.tokens=0"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(changes, words):
  with pytest.raises(ConfigError, match=f"objective.router_bias_rate=0.01: {words}"):
    config(objective__router_bias_rate=0.01, **changes)
