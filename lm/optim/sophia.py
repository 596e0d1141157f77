"""Sophia: steps of the mean gradient over the Hessian's diagonal, none longer than Adam's.

    m <- b1 m + (1 - b1) g
    h <- b2 h + (1 - b2) draw                      every precondition_every updates, the first one among them
    d = clip(m / max(gamma h, eps), -1, 1)

Elements where the curvature is negative or small move by their sign. Liu et al. 2023, arXiv:2305.14342,
algorithm 3; draws are unbiased (its Sophia-H: lm.training.curvature). Its Sophia-G, on labels drawn from the
model, is not here. Its settings: b1 0.96, b2 0.99, eps 1e-12, gamma 0.01 for these draws, decay 0.2 coupled.
optax.contrib.sophia corrects m for bias and uses each draw an update later.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.config.hparams import Hparams


class Sophia(NamedTuple):
  count: jax.Array  # int32 updates
  mean: Any  # of gradients
  diagonal: Any  # mean of draws of the Hessian's, of either sign


def scale_by_sophia(hparams: Hparams) -> optax.GradientTransformationExtraArgs:
  """Gradients into d; `update` takes `curvature`: () -> a draw of the Hessian's diagonal."""

  def init(params):
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)
    return Sophia(jnp.int32(0), zeros(), zeros())

  def update(updates: Any, state: Any, params: Any = None, **extra: Any):
    b1, b2 = hparams.b1, hparams.b2
    mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, updates)
    renewed = lambda h: jax.tree.map(
      lambda x, draw: b2 * x + (1 - b2) * draw, h, extra["curvature"]()
    )
    due = state.count % hparams.precondition_every == 0
    diagonal = jax.lax.cond(due, renewed, lambda h: h, state.diagonal)
    step = lambda m, h: jnp.clip(m / jnp.maximum(hparams.gamma * h, hparams.eps), -1, 1)
    return jax.tree.map(step, mean, diagonal), Sophia(state.count + 1, mean, diagonal)

  return optax.GradientTransformationExtraArgs(init, update)
