"""What only a GPU can show: its attention kernels equal the plain form, the step keeps its promises.

Skipped elsewhere. Run: JAX_PLATFORMS=cuda,cpu pytest -m gpu -W default tests/test_gpu.py
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.devices.sharding import make_mesh
from lm.models.attention import forms as attention
from lm.models.decoding import Sampling, make_generator
from lm.models.registry import make_model
from lm.models.trees import init_params
from lm.plan import compiled
from lm.runs.checkpoint import Checkpointer
from lm.setup.hparams import make_hparams
from lm.training.programs import make_programs, stack_runs
from tests.test_step import assert_close, batch, config, run

ROOT = pathlib.Path(__file__).parent.parent
ON_GPU = jax.default_backend() == "gpu"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not ON_GPU, reason="needs a GPU")]
FLASH = "cudnn"
SMALL = {
  "model__width": 256,
  "model__heads": 4,
  "model__seq_len": 256,
  "model__depth": 3,
  "model__dtype": "bfloat16",
  "optim__peak_lr": 1e-3,
}


def one_gpu(cfg, n_runs=1):
  """A mesh of one device, on whatever machine."""
  return make_mesh(cfg.mesh, n_runs, jax.devices()[:1])


def documents(rows, length, seed=0):
  """Int32 [B, L]: ids of documents of random lengths, from 1."""
  starts = np.random.default_rng(seed).random((rows, length)) < 8 / length
  return (1 + np.cumsum(starts, axis=1)).astype(np.int32)


def with_documents(cfg, seed=0):
  """A batch whose rows hold several documents."""
  segments = documents(cfg.train.batch_size, cfg.model.seq_len, seed)
  index = np.arange(cfg.model.seq_len, dtype=np.int32)
  first = np.diff(segments, axis=1, prepend=0) > 0
  positions = index - np.maximum.accumulate(np.where(first, index, 0), axis=1)
  return batch(seed, cfg) | {"segments": segments, "positions": positions.astype(np.int32)}


def distance(a, b):
  """|a - b| / |b| over a tree, in float64."""
  flat = lambda tree: np.concatenate(
    [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
  )
  return np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b))


# --- attention ------------------------------------------------------------------------------------


def attention_of(form, dtype, has_documents, **changes):
  """((output, gradients), lowered text) of one layer's attention on fixed random numbers."""
  cfg = config(**SMALL | {"model__dtype": dtype, "model__attention": form}, **changes).model
  draw = lambda i, n: jax.random.normal(jax.random.key(i), (2, 256, n, 64), "bfloat16").astype(
    dtype
  )
  q, k, v = draw(0, cfg.heads), draw(1, cfg.kv_heads), draw(2, cfg.kv_heads)
  weights = jax.random.normal(jax.random.key(3), q.shape, jnp.float32)
  segments = jnp.asarray(documents(2, 256)) if has_documents else None

  def value(q, k, v):
    y = attention.attend(q, k, v, cfg, segments)
    return (weights * y.astype(jnp.float32)).sum(), y

  both = jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))
  with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
    return both(q, k, v), both.lower(q, k, v).as_text()


@pytest.mark.parametrize("has_documents", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize(
  "changes",
  [
    {},
    {"model__kv_heads": 2},
    {"model__kv_heads": 1},
    {"model__window": 48},
    {"model__kv_heads": 2, "model__window": 48},
  ],
  ids=str,
)
def test_the_flash_kernel_equals_the_einsum_form(changes, has_documents):
  exact, _ = attention_of("einsum", "float32", has_documents, **changes)
  plain, text = attention_of("einsum", "bfloat16", has_documents, **changes)
  flash, flash_text = attention_of(FLASH, "bfloat16", has_documents, **changes)
  assert text != flash_text and ("cudnn$fmha" in flash_text) == (FLASH == "cudnn")
  assert 1e-4 < distance(plain, exact) < 0.02
  assert distance(flash, exact) < max(2 * distance(plain, exact), 0.01)


def test_auto_is_the_flash_kernel_in_bfloat16_and_not_in_float32():
  assert attention.choose_form(config(**SMALL).model) == FLASH
  float32 = {"model__dtype": "float32"}
  assert attention.choose_form(config(**SMALL | float32).model) == "xla"


# --- the step -------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"model__matmul": "int8"}], ids=["bfloat16", "int8"])
def test_low_precision_keeps_the_loss(changes):
  low, high = config(**SMALL, **changes), config(**SMALL | {"model__dtype": "float32"})
  (low_history, _), (high_history, _) = run(low), run(high)
  losses = np.array([[float(m["train/loss"]) for m in h] for h in (low_history, high_history)])
  assert (losses[0] != losses[1]).any()
  np.testing.assert_allclose(losses[0], losses[1], rtol=0.01)


@pytest.mark.parametrize("remat", ["dots", "names", "full", "offload"])
def test_remat_does_not_change_the_step(remat):
  float32 = {"model__dtype": "float32"}
  with jax.default_matmul_precision("highest"):
    (plain, _), (again, _) = (
      run(config(**SMALL | float32, model__remat=kind), steps=2) for kind in ("none", remat)
    )
  assert_close(again, plain, 1e-4)


def test_nothing_is_compiled_after_the_first_step_and_the_state_is_donated():
  cfg = config(**SMALL)
  programs = make_programs(cfg, one_gpu(cfg))
  put = lambda step: jax.device_put(batch(step, cfg), programs.batch_sharding)
  rates = [
    jax.device_put(make_hparams(config(**SMALL | {"optim__peak_lr": lr})), programs.scalar_sharding)
    for lr in (1e-3, 2e-3, 3e-3)
  ]
  state = programs.init(rates[0])
  for step, hparams in enumerate(rates):
    data, old = put(step), state
    with jax.transfer_guard("disallow"):
      state, metrics = programs.train(state, data, hparams)
    jax.block_until_ready(metrics)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(old.params))
  assert programs.train._cache_size() == 1


@pytest.mark.parametrize("has_documents", [False, True], ids=["one document", "documents"])
@pytest.mark.parametrize("dtype, rtol", [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_stacked_runs_equal_separate_ones(dtype, rtol, has_documents):
  rates = (5e-4, 1e-3, 2e-3)
  cfgs = [
    config(**SMALL | {"model__dtype": dtype, "optim__peak_lr": lr}, seed=i)
    for i, lr in enumerate(rates)
  ]
  draw = with_documents if has_documents else lambda cfg, seed: batch(seed, cfg)

  def losses(cfgs):
    programs = make_programs(cfgs[0], one_gpu(cfgs[0], len(cfgs)), len(cfgs) > 1)
    hparams = jax.device_put(stack_runs([make_hparams(c) for c in cfgs]), programs.scalar_sharding)
    state, found = programs.init(hparams), []
    for step in range(4):
      rows = stack_runs([draw(c, 10 * c.seed + step) for c in cfgs])
      state, metrics = programs.train(state, jax.device_put(rows, programs.batch_sharding), hparams)
      found.append(np.atleast_1d(np.asarray(metrics["train/loss"])))
    return np.stack(found, axis=1)  # [run, step]

  with jax.default_matmul_precision("highest"):
    stacked, separate = losses(cfgs), np.concatenate([losses([c]) for c in cfgs])
  assert len(np.unique(separate)) == separate.size  # the runs differ
  np.testing.assert_allclose(stacked, separate, rtol=rtol)


@pytest.mark.parametrize("remat", ["none", "dots"])
def test_memory_stays_under_the_plans_estimate(remat):
  sizes = {"width": 768, "heads": 12, "seq_len": 1024, "depth": 12, "vocab_size": 32_768}
  changes = {f"model__{name}": size for name, size in sizes.items()} | {"model__remat": remat}
  cfg = config(**SMALL | changes | {"train__batch_size": 16})
  mesh = one_gpu(cfg)
  plan = compiled.examine(cfg, mesh)
  estimate = sum(size for size in plan["bytes"].values() if size)
  programs = make_programs(cfg, mesh)
  hparams = jax.device_put(make_hparams(cfg), programs.scalar_sharding)
  data = jax.device_put(batch(0, cfg), programs.batch_sharding)
  state = programs.init(hparams)
  for _ in range(2):
    state, metrics = programs.train(state, data, hparams)
  jax.block_until_ready(metrics)
  peak = jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
  assert estimate > 2**32  # far more than any other test here holds
  assert 0.5 * estimate < peak < 1.05 * estimate, (peak, plan["bytes"])


# --- around the step ------------------------------------------------------------------------------


def test_a_checkpoint_taken_between_donated_steps_is_the_state_of_its_step(tmp_path):
  cfg = config(**SMALL)
  programs = make_programs(cfg, one_gpu(cfg))
  hparams = jax.device_put(make_hparams(cfg), programs.scalar_sharding)
  data = jax.device_put(batch(0, cfg), programs.batch_sharding)
  state, _ = programs.train(programs.init(hparams), data, hparams)
  expected = jax.device_get(state)
  checkpoints = Checkpointer(tmp_path, cfg.checkpoint)
  checkpoints.save(state, 1)
  for _ in range(3):  # writes over the saved arrays while they go to disk
    state, _ = programs.train(state, data, hparams)
  checkpoints.wait()
  restored = jax.device_get(checkpoints.restore(programs.run_shape, 1))
  checkpoints.close()
  assert distance(state.params, expected.params) > 1e-4
  jax.tree.map(np.testing.assert_array_equal, restored, expected)


def test_cached_decoding_equals_full_passes():
  cfg = config(**SMALL | {"model__dtype": "float32", "model__init": "gpt2"}).model
  model = make_model(cfg)
  params = init_params(model, jax.random.key(0), 10.0)
  prompts = np.random.default_rng(0).integers(0, 256, (3, 21)).tolist()
  with jax.default_matmul_precision("highest"):
    drawn = make_generator(cfg, 24)(params, prompts, Sampling(temperature=0.0), 0, 256)
    for prompt, new in zip(prompts, drawn, strict=True):
      logits = model.apply({"params": params}, jnp.asarray([prompt + new], jnp.int32))[0]
      assert new == logits[len(prompt) - 1 : -1].argmax(-1).tolist()


def test_train_py_runs_here_and_traces_its_kernels(tmp_path):
  workdir = tmp_path / "run"
  changes = {"model.dtype": "bfloat16", "train.steps": 12, "log.wandb": "disabled"}
  command = [sys.executable, "train.py", "--config", "configs/smoke.py", "--profile", "5:7",
             "--workdir", str(workdir), *(f"--config.{k}={v}" for k, v in changes.items())]  # fmt: skip
  # This process may hold most of the memory already.
  env = os.environ | {"XLA_FLAGS": "", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  record = json.loads((workdir / "run.json").read_text())
  assert record["status"] == "done" and record["device"] == jax.devices()[0].device_kind
  assert list(workdir.glob("profile/plugins/profile/*/*.xplane.pb"))
