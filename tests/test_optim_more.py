"""SOAP, AdEMAMix, ADOPT, schedule-free AdamW, Prodigy, caution, Hyperball: their algorithms in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.config.errors import ConfigError
from lm.cost.memory import memory_bytes
from lm.optim.chain import Multipliers, learning_rate, make_optimizer
from lm.optim.schedule_free import averaged
from lm.setup.checks import check
from lm.setup.load import load_config
from tests.test_optim import (
  AXES,
  HPARAMS,
  KINDS,
  ONES,
  assert_close,
  make_cfg,
  normal_tree,
  stacked_gradients,
  train,
)

LR, B1, B2, EPS = 1e-2, 0.9, 0.95, 1e-3


def numpy_train(update, n_steps=4):
  """Weights in float64 after `update(state, g, t) -> step` of every weight, state a dict of its own."""
  weights = {name: w.astype(np.float64) for name, w in normal_tree(0).items()}
  states = {name: {} for name in weights}
  for t in range(1, n_steps + 1):
    for name, g in normal_tree(t).items():
      weights[name] -= LR * update(states[name], g.astype(np.float64), t)
  return weights


def adam_step(state, g, t):
  m = state["m"] = B1 * state.get("m", 0) + (1 - B1) * g
  v = state["v"] = B2 * state.get("v", 0) + (1 - B2) * g**2
  return m / (1 - B1**t) / (np.sqrt(v / (1 - B2**t)) + EPS)


# --- directions -----------------------------------------------------------------------------------


def test_ademamix_equals_its_algorithm():
  b3, alpha, length = 0.99, 2.0, 5  # slow_warmup 0.5 of 10 steps

  def update(state, g, t):
    share = min(1, t / length)
    # Appendix A.1.
    grown = np.exp(np.log(B1) * np.log(b3) / ((1 - share) * np.log(b3) + share * np.log(B1)))
    slow = min(grown, b3)
    m1 = state["m1"] = B1 * state.get("m1", 0) + (1 - B1) * g
    m2 = state["m2"] = slow * state.get("m2", 0) + (1 - slow) * g
    v = state["v"] = B2 * state.get("v", 0) + (1 - B2) * g**2
    top = m1 / (1 - B1**t) + share * alpha * m2
    return top / (np.sqrt(v / (1 - B2**t)) + EPS)

  ours, _ = train(make_cfg("ademamix"), HPARAMS, n_steps=7)
  assert_close(ours, numpy_train(update, 7), rtol=1e-4, atol=1e-5)
  at_once, _ = train(make_cfg("ademamix"), HPARAMS.replace(slow_warmup=np.float32(0)), n_steps=7)
  length = 1e-9
  assert_close(at_once, numpy_train(update, 7), rtol=1e-4, atol=1e-5)
  without = HPARAMS.replace(b1=np.float32(0))
  assert all(np.isfinite(w).all() for w in train(make_cfg("ademamix"), without)[0].values())


def test_adopt_equals_its_algorithm():
  def update(state, g, t):
    if t == 1:
      state["v"] = g**2
      return 0 * g
    clip = (t - 1) ** 0.25
    scaled = np.clip(g / np.maximum(np.sqrt(state["v"]), EPS), -clip, clip)
    state["m"] = B1 * state.get("m", 0) + (1 - B1) * scaled
    state["v"] = B2 * state["v"] + (1 - B2) * g**2
    return state["m"]

  ours, _ = train(make_cfg("adopt"), HPARAMS, n_steps=6)
  assert_close(ours, numpy_train(update, 6), rtol=1e-4, atol=1e-5)


def soap_of_matrix(gradients, sides, every):
  """Sum of the directions of Vyas et al. 2024, algorithm 3, with first step and order as in their code."""
  n_in, n_out = gradients[0].shape
  gram = {"left": np.zeros((n_in, n_in)), "right": np.zeros((n_out, n_out))}
  basis = {"left": np.eye(n_in), "right": np.eye(n_out)}
  M = V = np.zeros((n_in, n_out))
  moved = np.zeros((n_in, n_out))
  for t, G in enumerate(gradients):
    if t > 0:
      left, right = basis["left"], basis["right"]
      M = B1 * M + (1 - B1) * G
      V = B2 * V + (1 - B2) * (left.T @ G @ right) ** 2
      inner = left.T @ M @ right / (1 - B1**t) / (np.sqrt(V / (1 - B2**t)) + EPS)
      moved = moved + left @ inner @ right.T
    for side, product in (("left", G @ G.T), ("right", G.T @ G)):
      gram[side] = B2 * gram[side] + (1 - B2) * product
    for side in sides:
      if t == 0:
        n, mean = len(gram[side]), np.diag(gram[side]).mean()
        ramp = 0.01 * mean * np.diag(np.arange(1, n + 1) / n)
        basis[side] = np.linalg.eigh(gram[side] + ramp)[1][:, ::-1]
      elif t % every == 0:
        order = np.argsort(-np.diag(basis[side].T @ gram[side] @ basis[side]))
        V = V[order] if side == "left" else V[:, order]
        basis[side] = np.linalg.qr(gram[side] @ basis[side][:, order])[0]
  return moved


def test_soap_equals_its_algorithm_on_every_matrix_of_every_layer():
  """Square matrices, whose first products have full rank: another basis of a null space is as right."""
  rng = np.random.default_rng(0)
  shapes = {"up": (2, 6, 2, 3), "table": (9, 6), "head": (6, 9)}
  axes = {
    "up": ("layers", "embed", "heads", "head_dim"),
    "table": ("vocab", "embed"),
    "head": ("embed", "vocab"),
  }
  kinds = {"up": "hidden", "table": "embed", "head": "readout"}
  draw = lambda: {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}
  steps = [draw() for _ in range(7)]
  tx = make_optimizer(make_cfg("soap"), HPARAMS, kinds, axes, Multipliers(ONES))
  w = {k: jnp.zeros(s) for k, s in shapes.items()}
  state, update = tx.init(w), jax.jit(tx.update)
  for number, g in enumerate(steps):
    updates, state = update(g, state, w)
    w = optax.apply_updates(w, updates)
    assert (number > 0) == bool(np.abs(w["up"]).max() > 0)  # the first gradient moves nothing
  each = {k: [g[k].astype(np.float64) for g in steps] for k in shapes}
  sides = {"table": ["right"], "head": ["left"]}
  for name, chosen in sides.items():
    expected = -LR * soap_of_matrix(each[name], chosen, every=2)
    np.testing.assert_allclose(w[name], expected, rtol=2e-3, atol=1e-4)
  for layer in range(2):
    mine = [g[layer].reshape(6, 6) for g in each["up"]]
    expected = -LR * soap_of_matrix(mine, ["left", "right"], every=2)
    np.testing.assert_allclose(w["up"][layer].reshape(6, 6), expected, rtol=2e-3, atol=1e-4)
  never = -LR * soap_of_matrix(each["head"], ["left"], every=100)
  assert not np.allclose(w["head"], never, atol=1e-3)  # the bases were renewed


def prodigy_by_hand(n_steps, rate):
  """Mishchenko & Defazio 2023, algorithm 4, on all weights as one vector; (weights, d of every step)."""
  flat = lambda tree: np.concatenate([np.ravel(tree[name]).astype(np.float64) for name in KINDS])
  w = start = 1e-4 * flat(normal_tree(0))
  m = v = s = np.zeros_like(w)
  d, r, b, found = 1e-6, 0.0, np.sqrt(B2), []
  for t in range(n_steps):
    g, c = flat(normal_tree(1)) + 0.1 * flat(normal_tree(t + 2)), rate(t)
    found.append(d)
    m = B1 * m + (1 - B1) * d * g
    v = B2 * v + (1 - B2) * d**2 * g**2
    r = b * r + (1 - b) * c * d**2 * np.dot(g, start - w)
    s = b * s + (1 - b) * c * d**2 * g
    w = w - c * d * m / (np.sqrt(v) + d * EPS)
    d = max(d, r / np.abs(s).sum())
  return w, found


def test_prodigy_equals_its_algorithm_and_says_which_rate_it_found():
  """A steady gradient with a little noise: the estimate has to grow.

  Weights are small, as float32 has no room for steps of 1e-6 beside weights of 1.
  """
  hparams = HPARAMS.replace(peak_lr=np.float32(1.0), warmup_steps=np.int32(4))
  cfg, n = make_cfg("prodigy"), 40
  tx = make_optimizer(cfg, hparams, KINDS, AXES, Multipliers(ONES))
  steady = normal_tree(1)
  gradients = [
    {k: g + np.float32(0.1) * noise[k] for k, g in steady.items()}
    for noise in map(normal_tree, range(2, n + 2))
  ]

  def one(carry, g):
    step, params, state = carry
    updates, state = tx.update(g, state, params)
    rate = learning_rate(cfg, hparams, step, state)
    return (step + 1, optax.apply_updates(params, updates), state), rate

  w = jax.tree.map(lambda x: 1e-4 * jnp.asarray(x), normal_tree(0))
  (_, ours, _), rates = jax.jit(
    lambda w: jax.lax.scan(
      one, (0, w, tx.init(w)), jax.tree.map(lambda *g: np.stack(g), *gradients)
    )
  )(w)
  scheduled = lambda t: min(1, (t + 1) / 4)
  expected, found = prodigy_by_hand(n, scheduled)
  np.testing.assert_allclose(rates, [d * scheduled(t) for t, d in enumerate(found)], rtol=2e-3)
  assert found[-1] > 100 * found[0]
  flat = np.concatenate([np.ravel(ours[name]) for name in KINDS])
  np.testing.assert_allclose(flat, expected, rtol=1e-3, atol=1e-4)


# --- schedule-free ----------------------------------------------------------------------------------


def test_schedule_free_equals_its_algorithm_and_evaluates_the_average():
  """Three sequences x, y, z; the gradient's noise is that of the step, its mean that at y."""
  decay, n = 0.1, 6
  hparams = HPARAMS.replace(weight_decay=np.float32(decay), warmup_steps=np.int32(3))
  cfg = make_cfg("schedule_free", decay_coupling="coupled")
  tx = make_optimizer(cfg, hparams, KINDS, AXES, Multipliers(ONES))
  params = jax.tree.map(jnp.asarray, normal_tree(0))
  state, update = tx.init(params), jax.jit(tx.update)
  y = {k: w.astype(np.float64) for k, w in normal_tree(0).items()}
  x, z, v, total = dict(y), dict(y), dict.fromkeys(y, 0.0), 0.0
  for t in range(1, n + 1):
    noise = normal_tree(t)
    updates, state = update(jax.tree.map(lambda p, e: p + e, params, noise), state, params)
    params = optax.apply_updates(params, updates)
    rate = LR * min(1, t / 3)
    total += rate**2
    c = rate**2 / total
    for k in y:
      g = y[k] + noise[k]
      v[k] = B2 * v[k] + (1 - B2) * g**2
      own = 0 if KINDS[k] == "vector" else decay * y[k]
      z[k] = z[k] - rate * (g / (np.sqrt(v[k] / (1 - B2**t)) + EPS) + own)
      x[k] = (1 - c) * x[k] + c * z[k]
      y[k] = (1 - B1) * z[k] + B1 * x[k]
  assert_close(params, y, rtol=1e-4, atol=1e-5)
  assert_close(averaged(params, state, hparams.b1), x, rtol=1e-4, atol=1e-5)
  assert not np.allclose(x["embed"], y["embed"], atol=1e-4)


def test_schedule_free_leaves_frozen_weights_where_they_are():
  ours, _ = train(make_cfg("schedule_free", groups=("embed:frozen",)), HPARAMS)
  np.testing.assert_array_equal(ours["embed"], normal_tree(0)["embed"])
  assert not np.allclose(ours["head"], normal_tree(0)["head"], atol=1e-3)


# --- caution and spheres ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_a_cautious_update_leaves_out_what_goes_against_the_gradient(name):
  """The last of four updates, beside that of the plain optimizer on the same gradients."""
  directions = {}
  for careful in (False, True):
    tx = make_optimizer(make_cfg(name, cautious=careful), HPARAMS, KINDS, AXES, Multipliers(ONES))
    state, update = tx.init(normal_tree(0)), jax.jit(tx.update)
    for step in range(4):
      updates, state = update(normal_tree(step + 1), state, normal_tree(0))
    directions[careful] = jax.tree.map(lambda u: -np.asarray(u) / LR, updates)
  g = normal_tree(4)
  for weight, d in directions[False].items():
    stacked = AXES[weight][0] == "layers"
    rows = list(range(3)) if stacked else [slice(None)]
    for row in rows:
      agrees = d[row] * g[weight][row] > 0
      assert 0 < agrees.sum() < agrees.size, weight
      expected = d[row] * agrees * agrees.size / (agrees.sum() + 1)
      np.testing.assert_allclose(directions[True][weight][row], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_hyperball_keeps_the_norms_of_hidden_matrices_and_of_their_updates(name):
  hparams = HPARAMS.replace(weight_decay=np.float32(0.3))
  ours, _ = train(make_cfg(name, hyperball=True), hparams, n_steps=3)
  plain, _ = train(make_cfg(name), hparams, n_steps=3)
  for weight in ("embed", "bias", "norm", "head"):
    np.testing.assert_allclose(ours[weight], plain[weight], rtol=1e-6)  # as without, decay and all
  start = normal_tree(0)
  as_matrices = {"query": (3, 8, 10), "out": (3, 10, 8)}
  for weight, shape in as_matrices.items():
    norms = [np.linalg.norm(w[weight].reshape(shape), axis=(1, 2)) for w in (start, ours)]
    np.testing.assert_allclose(*norms, rtol=1e-5)
  one, _ = train(make_cfg(name, hyperball=True), hparams, n_steps=1)
  bare, _ = train(make_cfg(name), HPARAMS, n_steps=1)
  for weight, shape in as_matrices.items():
    for w, new, other in zip(*(x[weight].reshape(shape) for x in (start, one, bare)), strict=True):
      radius, d = np.linalg.norm(w), (w - other) / LR
      moved = w - LR * radius * d / np.linalg.norm(d)
      np.testing.assert_allclose(new, radius * moved / np.linalg.norm(moved), rtol=1e-3, atol=1e-5)


def test_hyperball_spares_matrices_of_zeros_and_frozen_ones():
  tx = make_optimizer(
    make_cfg(hyperball=True, groups=("out:frozen",)), HPARAMS, KINDS, AXES, Multipliers(ONES)
  )
  params = normal_tree(0) | {"query": np.zeros((3, 8, 2, 5), np.float32)}
  updates, _ = jax.jit(tx.update)(normal_tree(1), tx.init(params), params)
  g = normal_tree(1)["query"]
  np.testing.assert_allclose(updates["query"], -LR * g / (np.abs(g) + EPS), rtol=1e-4)  # adamw's
  np.testing.assert_array_equal(updates["out"], 0)


@pytest.mark.parametrize("changes", [
  {"cautious": True}, {"hyperball": True}, {"hyperball": True, "cautious": True, "name": "muon"},
])  # fmt: skip
def test_options_stack_and_keep_one_program(changes):
  from tests.test_optim import compiled_run, run

  cfg = make_cfg(**changes)
  compiled_run.cache_clear()
  rows = [HPARAMS.replace(b1=np.float32(0.5)), HPARAMS.replace(peak_lr=np.float32(3e-2))]
  separate = [train(cfg, row)[0] for row in rows]
  assert compiled_run(cfg, tuple(ONES.items()))._cache_size() == 1
  hparams = jax.tree.map(lambda *x: np.stack(x), *rows)
  one = lambda h: run(
    cfg, tuple(ONES.items()), h, normal_tree(0), stacked_gradients(4), np.ones(4, "f")
  )
  stacked, _ = jax.jit(jax.vmap(one))(hparams)
  for i, params in enumerate(separate):
    assert_close({w: x[i] for w, x in stacked.items()}, params)


# --- what goes together ---------------------------------------------------------------------------------


@pytest.mark.parametrize("changes, message", [
  ({"name": "schedule_free"}, "optim.schedule=cosine: with optim.name=schedule_free an average takes"),
  ({"name": "schedule_free", "schedule": "constant", "ema_decay": 0.9},
   "optim.ema_decay=0.9: with optim.name=schedule_free weights are averaged already; use None"),
  ({"name": "schedule_free", "schedule": "constant", "b1": 0},
   "optim.b1=0.0: with optim.name=schedule_free gradients must lie partly at the average; use 0.9"),
  ({"name": "prodigy", "decay_coupling": "coupled"}, "optim.decay_coupling=coupled: with optim.name=prodigy"),
  ({"name": "prodigy", "layer_decay": 0.9}, "optim.layer_decay=0.9: with optim.name=prodigy one rate"),
  ({"name": "prodigy", "groups": "embed:lr=0.1"}, "optim.groups=embed:lr=0.1: with optim.name=prodigy"),
  ({"name": "ademamix", "state_dtype": "int8"}, "optim.state_dtype=int8: with optim.name=ademamix the"),
  ({"name": "adagrad", "cautious": True}, "optim.cautious=True: directions of optim.name=adagrad have"),
  ({"name": "adam", "hyperball": True}, "optim.name=adam: with optim.hyperball=True nothing decays in the "
   "gradient; use adamw"),
])  # fmt: skip
def test_what_cannot_be_together_is_one_line(changes, message):
  overrides = {f"optim.{key}": str(value) for key, value in changes.items()}
  with pytest.raises(ConfigError) as error:
    check(load_config("configs/default.py", overrides))
  assert message in str(error.value)


@pytest.mark.parametrize("name", ["soap", "prodigy"])
def test_multiplied_rates_are_refused_where_their_power_is_not_known(name):
  changes = {"optim.name": name, "model.parameterization": "mup", "model.base_width": "64"}
  with pytest.raises(ConfigError, match=f"model.parameterization=mup: with optim.name={name} "):
    check(load_config("configs/default.py", changes))
  check(load_config("configs/default.py", changes | {"model.base_width": "128"}))
  changes |= {"model.base_width": "128", "model.parameterization": "completep"}
  with pytest.raises(ConfigError, match="parameterization=completep: with optim"):
    check(load_config("configs/default.py", changes | {"model.base_depth": "2"}))
  check(load_config("configs/default.py", changes))  # base_depth=4 is this depth


@pytest.mark.parametrize("config, changes, message", [
  ("configs/default.py", {"optim.name": "sgd"}, "its rows are of Adam's kin, not of optim.name=sgd; use "),
  ("configs/lstm.py", {}, "divides residual branches, which model.family=recurrent does not let it; use mup"),
  ("configs/bert.py", {}, "divides residual branches, which model.family=bert does not let it; use mup"),
])  # fmt: skip
def test_completep_is_refused_where_it_has_no_rows(config, changes, message):
  changes = {"model.parameterization": "completep", **changes}
  with pytest.raises(ConfigError) as error:
    check(load_config(config, changes))
  assert str(error.value).startswith("model.parameterization=completep: ") and message in str(
    error.value
  )


def test_low_bits_are_for_running_means_alone():
  """Products, bases and starting points stay float32, on every device where nothing splits them."""
  from tests.test_account import make_run

  of = lambda name, **more: memory_bytes(
    make_run(optim__name=name, optim__schedule="constant", optim__state_dtype="bfloat16", **more)
  )
  total = of("adamw")["optimizer"] / 4
  assert of("prodigy")["optimizer"] == (3 * 2 + 4) * total
  assert of("schedule_free")["optimizer"] == (2 + 4 + 4) * total
  copied = of("soap")["optimizer"] - 4 * total
  assert copied > 4 * total
  n = dict(n_devices=8, mesh__fsdp=8)
  assert of("soap", **n)["optimizer"] == pytest.approx(4 * total / 8 + copied)
  tx = make_optimizer(
    make_cfg("soap", state_dtype="bfloat16"),
    HPARAMS,
    {"w": "hidden"},
    {"w": ("embed", "mlp")},
    Multipliers(ONES),
  )
  state = tx.init({"w": jnp.zeros((80, 64))})
  kinds = {
    str(leaf.dtype) for leaf in jax.tree.leaves(state) if leaf.shape[-2:] in ((80, 80), (64, 64))
  }
  assert kinds == {"float32"}
  assert {"bfloat16"} == {
    str(leaf.dtype) for leaf in jax.tree.leaves(state) if leaf.shape == (80, 64)
  }
