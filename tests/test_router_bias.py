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
from lm.evaluate import evaluate_run
from lm.hf.runs import export_run
from lm.models.experts import ROUTING
from lm.models.registry import make_model
from lm.models.trees import unstack_layers
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


@pytest.mark.slow  # a run and three programs
@pytest.mark.parametrize("scan", [True, False])
def test_biases_are_read_wherever_a_run_is_used(tmp_path, scan):
  """Generation, beams, scores and samples choose the experts of evaluation; so does a compacted run."""
  settings = {key.replace(".", "__"): value for key, value in EXPERTS.items()}
  settings |= {"objective__router_bias_rate": 0.5, "model__scan_layers": scan, "model__depth": 2}
  settings |= {"model__width": 32, "optim__peak_lr": 0.1, "sample__tokens": 6}
  workdir, small = tmp_path / "run", tmp_path / "int8"
  run(workdir, sample__temperature=0.0, sample__prompt="Re", **settings)
  used, state = load(workdir, "latest"), load_state(workdir, "latest")[0]
  bias = state["extra"]["bias"]
  given = {"params": state["params"], ROUTING: bias if scan else unstack_layers(bias)}
  logits = jax.jit(used.model.apply)
  tokens_BL = np.array([used.reads("Returns")], np.int32)
  without = logits({"params": state["params"]}, tokens_BL)
  found, wanted = logits({"params": used.params}, tokens_BL), logits(given, tokens_BL)
  np.testing.assert_array_equal(found, wanted)
  assert np.abs(wanted - without).max() > 0.01, "the biases decide nothing here"

  t, ids = used.tokenizer, used.reads("Re")
  for _ in range(6):
    row_L = np.zeros((1, 16), np.int32)
    row_L[0, : len(ids)] = ids
    ids.append(int(logits(given, row_L)[0, len(ids) - 1, : t.vocab_size].argmax()))
    if ids[-1] == t.eot_id:
      break
  text = t.decode([i for i in ids[3:] if i != t.eot_id])
  assert used.generate(["Re"], tokens=6, temperature=0) == [text]
  assert used.generate(["Re"], tokens=6, beams=1) == [text]
  samples = (workdir / "samples.jsonl").read_text().splitlines()
  assert json.loads(samples[-1])["text"] == text

  (tmp_path / "text.txt").write_text("Returns a mean.")
  source = f"text:{tmp_path}/text.txt"
  loss = evaluate_run(workdir, source, "latest")["loss"]
  row = [t.start_id, *t.encode("Returns a mean."), t.eot_id]
  log_p_LV = jax.nn.log_softmax(logits({"params": used.params}, np.array([row[:-1]], np.int32))[0])
  assert loss == pytest.approx(-float(log_p_LV[np.arange(16), row[1:]].mean()), rel=1e-5)

  compact(["--workdir", str(workdir), "--checkpoint", "latest", "--to", str(small), "--bits", "8"])
  jax.tree.map(np.testing.assert_array_equal, load_state(small)[0]["extra"]["bias"], bias)
  assert evaluate_run(small, source)["loss"] == pytest.approx(loss, rel=0.05)
  generate.main(["--workdir", str(small), "--prompt", "Re", "--tokens", "2"])
  hf, student = tmp_path / "hf", {"objective__name": "distillation", "objective__alpha": 0.5}
  student |= {"objective__temperature": 1.0, "objective__teacher": workdir}
  for use in (
    lambda: export_run(workdir, hf, "best"),
    lambda: run(tmp_path / "student", **student),
  ):
    with pytest.raises(ConfigError, match=r"router_bias_rate=0.5: the biases of this run"):
      use()


@pytest.mark.parametrize("changes, words", [
  ({"model__experts": None}, "balances experts and there are none; set model.experts or use 0"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(changes, words):
  with pytest.raises(ConfigError, match=f"objective.router_bias_rate=0.01: {words}"):
    config(objective__router_bias_rate=0.01, **changes)
