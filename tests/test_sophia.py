"""Sophia against its algorithm 3 by hand, and its draws of the Hessian's diagonal against the Hessian."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.config.hparams import Hparams
from lm.models.registry import make_model
from lm.objectives.registry import objective_of
from lm.optim.sophia import scale_by_sophia
from lm.setup.hparams import make_hparams
from lm.setup.load import load_config
from lm.setup.resolve import kind_of, resolve
from lm.training import curvature
from lm.training.step import grad_of, init_state
from tests.trained import TINY, records, run

HPARAMS = Hparams(
  b1=np.float32(0.96), b2=np.float32(0.9), gamma=np.float32(0.1), eps=np.float32(1e-3),
  precondition_every=np.int32(3),
)  # fmt: skip


def test_updates_are_those_of_the_papers_algorithm():
  """Written out in numpy: the mean, the diagonal renewed at updates 1, 4 and 7, the clip to 1."""
  rng = np.random.default_rng(0)
  grads, draws = rng.standard_normal((2, 8, 5)).astype(np.float32)
  tx = scale_by_sophia(HPARAMS)
  state, m, h, clipped = tx.init(jnp.zeros(5)), np.zeros(5), np.zeros(5), []
  for t in range(8):
    d, state = tx.update(grads[t], state, curvature=lambda t=t: jnp.asarray(draws[t]))
    m = 0.96 * m + 0.04 * grads[t]
    if t % 3 == 0:
      h = 0.9 * h + 0.1 * draws[t]
    whole = m / np.maximum(0.1 * h, 1e-3)
    np.testing.assert_allclose(d, np.clip(whole, -1, 1), rtol=1e-4, atol=1e-6)
    clipped += list(np.abs(whole) > 1)
  assert 0.1 < np.mean(clipped) < 0.98  # both cases were met


def test_on_a_quadratic_it_goes_straight_where_a_gradient_would_zigzag():
  """With the exact diagonal, gamma = 1 and no momentum an update of rate 1 is Newton's."""
  a, start = jnp.array([1e-2, 1.0, 1e2]), jnp.array([0.5, -0.25, 0.125])
  newton = HPARAMS.replace(b1=np.float32(0), b2=np.float32(0), gamma=np.float32(1))
  tx = scale_by_sophia(newton)
  d, _ = tx.update(a * start, tx.init(start), curvature=lambda: a)
  np.testing.assert_allclose(start - d, jnp.zeros(3), atol=1e-6)


def parts(**changes):
  """(parameters, gradients' function, batch and what else a draw takes) of a tiny decoder."""
  changes = {key.replace("__", "."): value for key, value in changes.items()}
  changes = {**TINY, "model.width": 4, "model.heads": 1, "train.batch_size": 4, **changes}
  cfg = resolve(load_config("configs/smoke.py", changes), 257, 1)
  model, hparams = make_model(cfg.model), make_hparams(cfg)
  state = init_state(hparams, cfg=cfg, model=model)
  grad_fn = grad_of(objective_of(cfg.objective).make_loss(model, cfg))
  rng = np.random.default_rng(0)
  shapes = kind_of(cfg).arrays(cfg, True)
  batch = {k: jnp.asarray(rng.integers(0, 9, a.shape).astype(a.dtype)) for k, a in shapes.items()}
  batch |= {k: jnp.ones_like(batch[k]) for k in batch if k == "segments"}
  return cfg, grad_fn, state, batch, hparams


@pytest.mark.parametrize("attention", ["einsum", "auto"])
def test_the_mean_of_draws_is_the_hessians_diagonal(attention):
  """Of the final norm's scales, whose Hessian is taken column by column; 4,000 draws."""
  cfg, grad_fn, state, batch, hparams = parts(model__attention=attention)
  key = jax.random.key(3)
  one = lambda key: curvature.draw(grad_fn, state.params, state.extra, batch, key, hparams, cfg)
  found = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=50))(jax.random.split(key, 4000))
  draws = np.asarray(found["final_norm"]["scale"])
  mean, error = draws.mean(axis=0), draws.std(axis=0) / 4000**0.5

  def gradient(scale):
    params = {**state.params, "final_norm": {**state.params["final_norm"], "scale": scale}}
    grads, _, (sums, _) = grad_fn(params, state.extra, batch, key, hparams)
    return grads["final_norm"]["scale"] / sums["weight"]

  exact = np.diag(jax.jacrev(gradient)(state.params["final_norm"]["scale"]))
  assert (np.abs(mean - exact) < 4 * error).all()
  assert (np.abs(exact) > 8 * error).any()  # and that says something


def test_a_draw_is_of_the_first_micro_batch():
  cfg, grad_fn, state, batch, hparams = parts(train__accumulate=2)
  alone = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, accumulate=1))
  key = jax.random.key(0)
  take = lambda cfg, batch: curvature.draw(
    grad_fn, state.params, state.extra, batch, key, hparams, cfg
  )
  half = {name: array[::2] for name, array in batch.items()}
  u = lambda n: jax.random.split(jax.random.fold_in(key, n), len(jax.tree.leaves(state.params)))
  assert not np.array_equal(jax.random.key_data(u(1)), jax.random.key_data(u(2)))
  other = {name: array.at[1::2].set(0) for name, array in batch.items() if name == "tokens"}
  first, changed = take(cfg, batch), take(cfg, {**batch, **other})
  # What the second half holds is not read.
  jax.tree.map(np.testing.assert_array_equal, first, changed)
  sizes = lambda tree: sum(float(jnp.sum(jnp.square(x))) for x in jax.tree.leaves(tree))
  assert sizes(first) == pytest.approx(sizes(take(alone, half)), rel=2)  # means, not sums


@pytest.mark.slow
def test_it_trains(tmp_path):
  run(
    tmp_path / "r", optim__name="sophia", optim__b2=0.99, optim__precondition_every=2, optim__eps=1e-12,
    train__steps=60, optim__peak_lr=3e-3, eval__every_steps=20,
  )  # fmt: skip
  losses = [r["train/loss"] for r in records(tmp_path / "r")]
  assert np.mean(losses[-5:]) < losses[0] - 0.5


@pytest.mark.parametrize(("config", "changes", "words"), [
  ("configs/gan.py", {"optim.weight_decay": 0.0},
   "objective.name=adversarial: with optim.name=sophia one scalar"),
  ("configs/smoke.py", {"optim.groups": "embed:frozen"},
   "optim.groups=embed:frozen: with optim.name=sophia the Hessian"),
  ("configs/smoke.py", {"model.parameterization": "mup", "model.base_width": 8},
   "model.parameterization=mup: with"),
])  # fmt: skip
def test_what_it_cannot_be_used_with_is_refused(config, changes, words):
  with pytest.raises(ConfigError, match=words):
    load_config(config, {"optim.name": "sophia", **changes})
