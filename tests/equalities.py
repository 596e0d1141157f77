"""What every family and objective must hold: counts; from a config file: one device or eight, resumed."""

import contextlib
import io
import json
import math
import shutil
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import train
from lm.config.schema import ModelConfig
from lm.cost.flops import run_flops_per_token, xla_flops
from lm.cost.parameters import param_counts, weights
from lm.devices.sharding import make_mesh
from lm.models.family import Weight
from lm.models.registry import make_model
from lm.models.trees import init_params
from lm.objectives.registry import objective_of
from lm.runs.checkpoint import load_state
from lm.setup.hparams import hparams_zeros, make_hparams
from lm.setup.load import load_config
from lm.setup.resolve import kind_of, resolve
from lm.training.programs import make_programs, stack_runs, take_run
from lm.training.step import State


def shapes_of(model: ModelConfig) -> Any:
  """Shapes of the parameters of a resolved section."""
  module = make_model(model)
  return jax.eval_shape(lambda key: init_params(module, key), jax.random.key(0))


def assert_counted(counted: Sequence[Weight], shapes: Any) -> dict[str, tuple[int, ...]]:
  """{name: shape} of the leaves, which must be these weights; layers in a loop have one axis more."""
  leaves = {
    "/".join(part.key for part in path): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
  }
  looped = lambda w: "blocks" in w.name.split("/")
  assert {w.name: (w.copies,) * looped(w) + w.shape for w in counted} == leaves
  return leaves


def assert_counts(model: ModelConfig) -> dict[str, tuple[int, ...]]:
  """As `assert_counted` for a resolved section, whose total is that of the leaves."""
  leaves = assert_counted(weights(model), shapes_of(model))
  assert param_counts(model).total == sum(math.prod(shape) for shape in leaves.values())
  return leaves


WIDE = {  # changes that make an encoder wide enough for its products to be nearly all that is counted
  "model__width": 384, "model__base_width": 384, "model__mlp_dim": 1536, "model__heads": 6,
  "model__depth": 1, "model__seq_len": 128, "model__attention": "einsum", "model__scan_layers": False,
  "train__batch_size": 2,
}  # fmt: skip


def assert_flops(cfg, units) -> None:
  """Exact FLOPs of so many units are those of the compiled gradient of a batch, to 3 %."""
  programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:1]))
  arrays = kind_of(cfg).arrays(cfg, False)  # without a key, as in evaluation
  batch = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}
  loss_fn = objective_of(cfg.objective).make_loss(make_model(cfg.model), cfg)
  step = jax.grad(lambda p, b: loss_fn(p, {}, b, None, hparams_zeros(cfg))[0])
  counted = xla_flops(jax.jit(step).lower(programs.run_shape.params, batch).compile())
  ours = run_flops_per_token(cfg, "exact") * units
  assert abs(ours - counted) <= 0.03 * counted, (ours, counted)


def resolved(spec, n_devices=1, **changes):
  """The resolved config of a file with changes, `a__b` the key a.b, and its opened data."""
  cfg = load_config(spec, {key.replace("__", "."): value for key, value in changes.items()})
  data = kind_of(cfg).open(cfg)
  return resolve(cfg, data.vocab_size, n_devices), data


def run(cfg, data, steps=4, n_devices=1) -> tuple[list[dict], State]:
  """(metrics of each step, the state after them) on the config's mesh."""
  programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:n_devices]))
  hparams = jax.device_put(make_hparams(cfg), programs.scalar_sharding)
  state, history = programs.init(hparams), []
  batches = kind_of(cfg).train(data, cfg)
  for step in range(steps):
    rows = jax.device_put(batches.at(step), programs.batch_sharding)
    state, metrics = programs.train(state, rows, hparams)
    history.append(jax.device_get(metrics))
  return history, jax.device_get(state)


def assert_stacks(spec, steps=3, **changes) -> None:
  """Runs with two rates, stacked in one program, equal the same runs one by one."""
  made = [resolved(spec, optim__peak_lr=rate, **changes) for rate in (1e-2, 1e-3)]
  cfgs, data = [cfg for cfg, _ in made], made[0][1]
  programs = make_programs(cfgs[0], make_mesh(cfgs[0].mesh, 2, jax.devices()[:2]), stacked=True)
  hparams = jax.device_put(stack_runs([make_hparams(c) for c in cfgs]), programs.scalar_sharding)
  state, batches = programs.init(hparams), kind_of(cfgs[0]).train(data, cfgs[0])
  for step in range(steps):
    rows = stack_runs([batches.at(step)] * 2)
    state, _ = programs.train(state, jax.device_put(rows, programs.batch_sharding), hparams)
  for index, cfg in enumerate(cfgs):
    _, alone = run(cfg, data, steps)
    ours = take_run(jax.device_get(state), index)
    for a, b in zip(*(jax.tree.leaves((s.params, s.extra)) for s in (ours, alone)), strict=True):
      assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b) + 1e-7


def assert_same(a, b, rtol=1e-5):
  """Metrics of every step, parameters and what is no parameter agree; a tensor by its norm."""
  for ours, theirs in zip(a[0], b[0], strict=True):
    for name, value in ours.items():
      np.testing.assert_allclose(value, theirs[name], rtol=5 * rtol, err_msg=name)
  for ours, theirs in zip(*(jax.tree.leaves((s.params, s.extra)) for _, s in (a, b)), strict=True):
    assert np.linalg.norm(ours - theirs) <= rtol * np.linalg.norm(theirs) + 1e-7


def trained(spec, workdir, *flags) -> None:
  """Runs train.py in this process on one device."""
  flags = ["--config.mesh.replica=1", "--config.mesh.fsdp=1", *flags]
  with contextlib.redirect_stdout(io.StringIO()) as out:
    code = train.main(["--config", spec, "--workdir", str(workdir), *flags])
  assert code == 0, out.getvalue()


def assert_resumes(monkeypatch, tmp_path, spec, *flags) -> None:
  """A run whose last checkpoint and end are lost goes on from the one before and ends with the same bits."""
  monkeypatch.setattr(train.jax, "devices", lambda *_: jax.local_devices()[:1])
  whole, cut = tmp_path / "whole", tmp_path / "cut"
  trained(spec, whole, *flags)
  steps = sorted(int(p.name) for p in (whole / "checkpoints").iterdir() if p.name.isdigit())
  assert len(steps) > 1
  shutil.copytree(whole, cut)
  shutil.rmtree(cut / "checkpoints" / str(steps[-1]))
  about = json.loads((cut / "run.json").read_text())
  (cut / "run.json").write_text(json.dumps(about | {"status": "interrupted"}))
  trained(spec, cut, *flags)
  assert json.loads((cut / "run.json").read_text())["resumed"]
  assert (whole / "metrics.jsonl").read_bytes() == (cut / "metrics.jsonl").read_bytes()
  a, b = load_state(whole, "latest"), load_state(cut, "latest")
  assert a[1] == b[1] == steps[-1]
  for name in ("params", "extra", "seen"):
    jax.tree.map(np.testing.assert_array_equal, a[0][name], b[0][name])
