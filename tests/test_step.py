"""One step is one step, however it is cut: micro-batches, devices, stacked runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.devices.sharding import make_mesh
from lm.models.registry import make_model
from lm.setup.hparams import make_hparams
from lm.setup.load import load_config
from lm.setup.resolve import resolve
from lm.training.programs import make_programs, stack_runs, take_run
from lm.training.step import all_axes, eval_params, kinds_of

TINY = {
  "model.width": 32, "model.depth": 2, "model.heads": 4, "model.seq_len": 16, "train.tokens": None,
  "train.steps": 20, "train.batch_size": 8, "data.tokenizer": "byte", "log.wandb": "disabled",
  "optim.warmup_frac": 0.1,
}  # fmt: skip


def config(n_devices=1, **overrides):
  overrides = {key.replace("__", "."): value for key, value in overrides.items()}
  return resolve(load_config("configs/default.py", {**TINY, **overrides}), 257, n_devices)


def batch(seed, cfg, padded=False):
  rng = np.random.default_rng(seed)
  shape = (cfg.train.batch_size, cfg.model.seq_len)
  tokens = rng.integers(0, cfg.model.vocab_size, (shape[0], shape[1] + 1)).astype(np.int32)
  weights = np.ones(shape, np.float32)
  if padded:  # rows of different lengths, so that token weights matter
    weights *= np.arange(shape[1]) < rng.integers(1, shape[1] + 1, (shape[0], 1))
  return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def run(cfg, steps=10, padded=False, mesh=None):
  """(metrics of each step, final state) on the config's mesh."""
  programs = make_programs(
    cfg, mesh or make_mesh(cfg.mesh, devices=jax.devices()[: mesh_size(cfg)])
  )
  hparams = jax.device_put(make_hparams(cfg), programs.scalar_sharding)
  state, history = programs.init(hparams), []
  for step in range(steps):
    data = jax.device_put(batch(step, cfg, padded), programs.batch_sharding)
    state, metrics = programs.train(state, data, hparams)
    history.append(jax.device_get(metrics))
  assert programs.train._cache_size() == min(steps, 1), "the step was compiled more than once"
  return history, jax.device_get(state)


def mesh_size(cfg):
  return int(np.prod(list(dataclasses.asdict(cfg.mesh).values())))


def assert_close(a, b, rtol):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=rtol, atol=rtol)


def test_micro_batches_equal_the_large_batch_token_by_token():
  whole, cut = config(), config(train__accumulate=4)
  assert cut.train.accumulate == 4 != whole.train.accumulate
  (history, state), (cut_history, cut_state) = run(whole, padded=True), run(cut, padded=True)
  assert_close(history, cut_history, 1e-5)
  # Adam divides by the root of tiny second moments: rounding of the sums shows up enlarged.
  assert_close(state.params, cut_state.params, 1e-4)


MESHES = [
  {"mesh__replica": 8},
  {"mesh__fsdp": 2, "mesh__sequence": 2, "mesh__tensor": 2},
  {"mesh__replica": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "n_slices": 2},
  {"mesh__fsdp": 2, "mesh__expert": 4, "model__experts": 4},
]
MORE_MESHES = [
  {"mesh__fsdp": 8},
  {"mesh__replica": 2, "mesh__fsdp": 4},
  {"mesh__replica": 2, "mesh__tensor": 4},
  {"mesh__fsdp": 2, "mesh__tensor": 4},
  {"mesh__replica": 2, "mesh__fsdp": 2, "mesh__tensor": 2},
  {"mesh__sequence": 8},
  {"mesh__replica": 4, "mesh__sequence": 2},
  {"mesh__fsdp": 4, "mesh__expert": 2},  # without experts it is one more data axis
  {"mesh__replica": 4, "mesh__fsdp": 2, "n_slices": 2},
  {"mesh__replica": 2, "mesh__sequence": 4, "objective__chunk": 4},
  {"mesh__fsdp": 4, "mesh__tensor": 2, "train__accumulate": 2, "model__remat": "dots"},
  {"mesh__sequence": 4, "mesh__tensor": 2, "model__window": 5, "model__kv_heads": 1},
  {"mesh__expert": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "model__experts": 4},
]  # fmt: skip
# Adam gives a weight whose gradient is mere rounding a whole step, unless eps outweighs that.
SPLIT = {"model__vocab_size": 264, "optim__eps": 1e-6}
MODELS = ("model", "train__accumulate", "objective")  # keys that change what one device computes


@pytest.fixture(scope="module")
def on_one_device():
  """run() of a config on one device, made once."""
  return functools.cache(lambda changes: run(config(**SPLIT, **dict(changes))))


@pytest.mark.parametrize(
  "changes", [*MESHES, *(pytest.param(m, marks=pytest.mark.slow) for m in MORE_MESHES)], ids=str
)
def test_eight_devices_give_what_one_gives(changes, on_one_device):
  changes = {"mesh__replica": 1} | changes
  n_slices = changes.pop("n_slices", None)
  cfg = config(n_devices=8, **SPLIT, **changes)
  assert mesh_size(cfg) == 8
  history, state = run(cfg, mesh=make_mesh(cfg.mesh, n_slices=n_slices))
  alone = on_one_device(tuple((k, v) for k, v in changes.items() if k.startswith(MODELS)))
  for ours, theirs in zip(history, alone[0], strict=True):
    np.testing.assert_allclose(ours["train/loss"], theirs["train/loss"], rtol=1e-5)
  for ours, theirs in zip(*map(jax.tree.leaves, (state.params, alone[1].params)), strict=True):
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)


def test_only_replicas_cross_slices():
  cfg = config(n_devices=8, mesh__replica=4, mesh__fsdp=2)
  ids = np.vectorize(lambda device: device.id)(make_mesh(cfg.mesh, n_slices=2).devices)
  halves = ids.squeeze().reshape(4, 2) // 4
  np.testing.assert_array_equal(halves, [[0, 0], [0, 0], [1, 1], [1, 1]])
  with pytest.raises(ConfigError, match=r"mesh.replica=1: must be a multiple of the 2 slices"):
    make_mesh(config(n_devices=8, mesh__replica=1, mesh__fsdp=8).mesh, n_slices=2)


@pytest.mark.parametrize(("changes", "words"), [
  ({"mesh__tensor": 8}, "model.heads=4: must be divisible by 8 (mesh.tensor); use 8"),
  ({"mesh__tensor": 8, "model__heads": 8, "model__vocab_size": 260},
   "model.vocab_size=260: must be divisible by 8 (mesh.tensor); use 264"),
  ({"mesh__sequence": 8, "model__seq_len": 20},
   "model.seq_len=20: must be divisible by 8 (mesh.sequence); use 16 or 24"),
  ({"mesh__fsdp": 8, "model__width": 36, "model__heads": 2},
   "model.width=36: must be divisible by 8 (mesh.fsdp); use 32 or 40"),
])  # fmt: skip
def test_what_a_mesh_does_not_divide_is_named(changes, words):
  with pytest.raises(ConfigError) as error:
    config(n_devices=8, **{"model__vocab_size": 264, "mesh__replica": 1} | changes)
  assert str(error.value) == words


def test_stacked_runs_equal_separate_ones():
  settings = [{"optim__peak_lr": 1e-2, "seed": 1}, {"optim__peak_lr": 1e-3, "optim__b2": 0.99}]
  cfgs = [config(**changes) for changes in settings]
  programs = make_programs(cfgs[0], make_mesh(cfgs[0].mesh, 2, jax.devices()[:2]), stacked=True)
  hparams = jax.device_put(stack_runs([make_hparams(c) for c in cfgs]), programs.scalar_sharding)
  state = programs.init(hparams)
  for step in range(10):
    rows = stack_runs([batch(step, c) for c in cfgs])
    state, metrics = programs.train(state, jax.device_put(rows, programs.batch_sharding), hparams)
  losses = []
  for index, cfg in enumerate(cfgs):
    history, separate = run(cfg)
    losses.append(history[-1]["train/loss"])
    np.testing.assert_allclose(metrics["train/loss"][index], losses[-1], rtol=1e-4)
    assert_close(jax.device_get(take_run(state, index)).params, separate.params, 1e-3)
  assert losses[0] != losses[1]


@pytest.mark.slow
def test_one_diverging_run_does_not_touch_its_neighbour():
  cfgs = [config(), config(optim__peak_lr=1e12, optim__clip_norm=None)]
  programs = make_programs(cfgs[0], make_mesh(cfgs[0].mesh, 2, jax.devices()[:1]), stacked=True)
  hparams = jax.device_put(stack_runs([make_hparams(c) for c in cfgs]), programs.scalar_sharding)
  state = programs.init(hparams)
  for step in range(5):
    rows = stack_runs([batch(step, c) for c in cfgs])
    state, metrics = programs.train(state, jax.device_put(rows, programs.batch_sharding), hparams)
  assert not np.isfinite(metrics["train/loss"][1])
  np.testing.assert_allclose(
    metrics["train/loss"][0], run(cfgs[0], 5)[0][-1]["train/loss"], rtol=1e-4
  )


def test_same_config_gives_the_same_bits_and_another_seed_does_not():
  first, again, other = run(config(), 3)[1], run(config(), 3)[1], run(config(seed=1), 3)[1]
  jax.tree.map(np.testing.assert_array_equal, first, again)
  assert not np.array_equal(jax.tree.leaves(first.params)[0], jax.tree.leaves(other.params)[0])


def test_moving_average_follows_the_weights():
  history, state = run(config(optim__ema_decay=0.5), 1)
  start = run(config(optim__ema_decay=0.5), 0)[1]
  expected = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, start.params, state.params)
  assert_close(state.ema, expected, 1e-6)
  assert np.isfinite(history[0]["train/loss"])


def test_effective_rates_and_the_share_that_decays_are_logged():
  """Of the first update, half of the warm-up: norms from the weights themselves, decay from its rule."""
  changes = {
    "optim__weight_decay": 0.02,
    "optim__warmup_frac": 1.0,
    "optim__decay_coupling": "coupled",
  }
  cfg = config(**changes, model__parameterization="mup", model__base_width=8)
  start = run(cfg, 0)[1].params
  history, state = run(cfg, 1)
  kinds = kinds_of(cfg, all_axes(cfg, make_model(cfg.model)))
  found = {}
  for kind, new, old in zip(*map(jax.tree.leaves, (kinds, state.params, start)), strict=True):
    moved, size = found.get(kind, (0, 0))
    found[kind] = moved + np.square(new - old).sum(), size + np.square(old).sum()
  assert {"embed", "hidden", "vector"} <= set(found)
  for kind, (moved, size) in found.items():
    np.testing.assert_allclose(
      history[0][f"optim/update_{kind}"], np.sqrt(moved / size), rtol=1e-3, err_msg=kind
    )
  rate = cfg.optim.peak_lr / cfg.train.steps * 8 / cfg.model.width
  np.testing.assert_allclose(history[0]["optim/decay_share"], 0.02 * rate, rtol=1e-5)


def test_schedule_free_evaluates_the_average_of_what_it_trains_at():
  """After one update the average is z itself, wherever gradients are taken next."""
  cfg = config(optim__name="schedule_free", optim__schedule="constant", optim__b1=0.5)
  start, (_, state) = run(cfg, 0)[1], run(cfg, 1)
  assert_close(eval_params(start), start.params, 0)
  assert_close(eval_params(state), state.opt_state.z, 1e-6)
  _, later = run(cfg, 3)
  at, means = (tree["embed"]["embedding"] for tree in (later.params, eval_params(later)))
  assert np.abs(at - means).max() > 1e-4


def test_training_lowers_the_loss_on_repeated_data():
  cfg = config(optim__peak_lr=1e-2)
  programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:1]))
  hparams = make_hparams(cfg)
  state, same = programs.init(hparams), batch(0, cfg)
  losses = []
  for _ in range(20):
    state, metrics = programs.train(state, same, hparams)
    losses.append(float(metrics["train/loss"]))
  assert losses[0] == pytest.approx(np.log(257) + 0.5, abs=0.2)  # logits start with variance 1
  assert losses[-1] < losses[0] - 1
  assert int(state.step) == 20 and jnp.isfinite(metrics["train/grad_norm"])
