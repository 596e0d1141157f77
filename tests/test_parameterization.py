"""Parameterizations: what they multiply at a width and a depth, and how those numbers act."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from lm.config.errors import ConfigError
from lm.models.parameterization import multiplier
from lm.optim.chain import Multipliers, make_optimizer, multipliers
from lm.optim.directions import OPTIMIZERS
from lm.setup.load import load_config
from lm.setup.resolve import resolve
from lm.training.step import multipliers_of
from tests.test_optim import HPARAMS, ONES, make_cfg

# Weights of blocks, scanned and written out, and one outside of them.
KINDS = {"embed": "embed", "blocks": {"w": "hidden", "norm": "vector"}, "block_3": {"w": "hidden"}}
AXES = {
  "embed": ("vocab", "embed"), "blocks": {"w": ("embed", "mlp"), "norm": ("norm",)},
  "block_3": {"w": ("embed", "mlp")},
}  # fmt: skip


def test_multipliers_of_mup():
  quarter = {"embed": 1.0, "hidden": 0.25, "readout": 1.0, "vector": 1.0}
  for name in (
    "adam",
    "adamw",
    "adagrad",
    "lion",
    "adafactor",
    "ademamix",
    "adopt",
    "schedule_free",
  ):
    assert multipliers(name, "mup", 4.0).lr == quarter
  assert multipliers("muon", "mup", 4.0).lr == quarter | {"hidden": 0.5}
  by_fan_in = {"embed": 4.0, "hidden": 1.0, "readout": 4.0, "vector": 4.0}
  assert multipliers("sgd", "mup", 4.0).lr == by_fan_in  # table 8 of arXiv:2203.03466
  for name in OPTIMIZERS:
    assert multipliers(name, "standard", 4.0).lr == ONES


def test_multipliers_of_completep():
  assert multipliers("adamw", "completep", 1.0, 1.0) == Multipliers(ONES)  # the base model
  found = multipliers("adamw", "completep", 4.0, 8.0)  # table 1 of arXiv:2505.01618, alpha = 1
  assert found.lr == ONES | {"hidden": 1 / 4}
  assert found.decay["hidden"] == 4 and found.decay["embed"] == 1
  assert set(found.eps.values()) == {1 / 4} and found.branch_eps == 1 / 8


def test_multipliers_of_umup():
  assert multipliers("adamw", "umup", 1.0, 1.0) == Multipliers(ONES)
  found = multipliers("adamw", "umup", 4.0, 9.0)  # table 2 of arXiv:2407.17465
  assert found.lr == ONES | {"embed": 1 / 2, "hidden": 1 / 4} and found.branch_lr == pytest.approx(
    1 / 3
  )
  assert (found.eps, found.decay, found.branch_eps) == ({}, {}, 1)
  assert found.hidden_decay == pytest.approx(1 / 12)
  assert multipliers("muon", "umup", 4.0, 9.0).lr["hidden"] == 1 / 2


def test_a_rate_of_branches_is_that_of_everything_in_blocks():
  params = jax.tree.map(lambda _: jnp.zeros((4, 3)), KINDS)
  tx = make_optimizer(
    make_cfg("adamw"), HPARAMS, KINDS, AXES, multipliers("adamw", "umup", 4.0, 9.0)
  )
  grads = jax.tree.map(jnp.ones_like, params)
  updates, _ = tx.update(grads, tx.init(params), params)
  rate = -np.max(np.abs(updates["embed"])) * 2  # peak_lr m(0) times 1 / 2
  of = lambda x: pytest.approx(rate * x, rel=1e-5)
  assert updates["blocks"]["w"][0, 0] == updates["block_3"]["w"][0, 0] == of(1 / 12)
  assert updates["blocks"]["norm"][0, 0] == of(1 / 3)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_spectral_trains_as_mup_does(name):
  """A factor of the output weights, in their output or in their std and rate, is the same function."""
  rng, grown = np.random.default_rng(0), 4.0
  x, y = rng.standard_normal((5, 8)).astype("f4"), rng.standard_normal((5, 3)).astype("f4")
  first = {
    "up": rng.standard_normal((8, 6)).astype("f4"),
    "head": rng.standard_normal((6, 3)).astype("f4"),
  }
  kinds, axes = (
    {"up": "hidden", "head": "readout"},
    {"up": ("embed", "mlp"), "head": ("embed", "vocab")},
  )
  hparams = HPARAMS.replace(eps=np.float32(0), weight_decay=np.float32(0.1))
  outs = []
  for parameterization in ("mup", "spectral"):
    std, output = (multiplier(parameterization, "readout", w, grown) for w in ("init", "output"))
    params = {**first, "head": first["head"] * std}
    tx = make_optimizer(
      make_cfg(name), hparams, kinds, axes, multipliers(name, parameterization, grown)
    )
    state = tx.init(params)
    apply = lambda p, output=output: output * (jnp.tanh(x @ p["up"]) @ p["head"])
    for _ in range(5):
      grads = jax.grad(lambda p, apply=apply: jnp.mean((apply(p) - y) ** 2))(params)
      updates, state = tx.update(grads, state, params)
      params = optax.apply_updates(params, updates)
    outs.append(apply(params))
  np.testing.assert_allclose(*outs, rtol=1e-5, atol=1e-6)
  assert np.abs(outs[0] - (jnp.tanh(x @ first["up"]) @ first["head"]) / grown).max() > 1e-4


def test_a_configs_multipliers_are_those_of_its_width_and_depth():
  changes = {
    "model.parameterization": "completep",
    "model.base_width": "32",
    "model.base_depth": "1",
  }
  cfg = load_config("configs/default.py", changes)
  wide, deep = cfg.model.width / 32, cfg.model.depth
  assert multipliers_of(cfg) == multipliers("adamw", "completep", wide, deep)
  assert multipliers_of(cfg).branch_eps == 1 / deep != 1
  recurrent = load_config(
    "configs/lstm.py", {"model.parameterization": "mup", "model.base_width": "50"}
  )
  assert multipliers_of(recurrent).branch_eps == 1


@pytest.mark.parametrize("config", ["configs/default.py", "configs/bert.py"])
def test_spectral_is_refused_where_the_embedding_reads_out(config):
  cfg = load_config(config, {"model.parameterization": "spectral"})
  with pytest.raises(
    ConfigError, match=r"^model.parameterization=spectral: scales the output weights, "
  ):
    resolve(cfg, 257, 1)


def test_an_epsilon_of_a_kind_and_of_a_branch_is_adams_own():
  """Each leaf moves as under optax's Adam with its epsilon multiplied; coupled decay by its own factor."""
  rng = np.random.default_rng(0)
  draw = lambda: jax.tree.map(lambda _: jnp.float32(0.01 * rng.standard_normal((4, 3))), KINDS)
  params, grads = draw(), [draw() for _ in range(5)]
  mults = multipliers("adamw", "completep", 4.0, 8.0)
  hparams = HPARAMS.replace(eps=np.float32(0.01), weight_decay=np.float32(0.1))
  tx = make_optimizer(make_cfg("adamw", decay_coupling="coupled"), hparams, KINDS, AXES, mults)
  eps = {"embed": 1 / 4, "blocks": {"w": 1 / 32, "norm": 1 / 32}, "block_3": {"w": 1 / 32}}
  state, ours = tx.init(params), params
  for g in grads:
    updates, state = tx.update(g, state, ours)
    ours = optax.apply_updates(ours, updates)
  for path, kind in flatten_dict(KINDS).items():
    of = lambda tree, path=path: flatten_dict(tree)[path]
    hidden = kind == "hidden"
    adam = optax.adamw(
      float(HPARAMS.peak_lr) * (0.25 if hidden else 1),
      float(HPARAMS.b1),
      float(HPARAMS.b2),
      0.01 * of(eps),
      weight_decay=0.0 if kind == "vector" else 0.1 * (4 if hidden else 1),
    )
    w, s = of(params), adam.init(of(params))
    with jax.numpy_dtype_promotion("standard"):
      for g in grads:
        u, s = adam.update(of(g), s, w)
        w = w + u
    np.testing.assert_allclose(of(ours), w, rtol=1e-5, atol=1e-7, err_msg=str(path))
