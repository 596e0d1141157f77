"""Schedule-free training: an average of the weights takes the place of a falling learning rate.

    z <- z + u(y),   x <- (1 - c) x + c z,   y <- (1 - b1) z + b1 x

Gradients, decay and the update u are those at y, the run's parameters; z is where plain updates lead; x,
their mean, is what is evaluated, sampled and exported (State.ema). c = w / (sum of w so far), w the square
of the largest m(t) so far, so that warm-up counts less. Defazio et al. 2024, arXiv:2405.15682,
algorithm 1; there is no momentum beside b1's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.config.hparams import Hparams
from lm.optim.matrices import Tree


class ScheduleFree(NamedTuple):
  count: jax.Array  # int32 updates
  total: jax.Array  # sum of w
  peak: jax.Array  # largest m(t)
  z: Tree  # like the weights; zeros before the first update
  inner: Any  # of what gives u


def schedule_free(
  tx: optax.GradientTransformationExtraArgs,
  hparams: Hparams,
  schedule: Callable[[jax.Array], jax.Array],
) -> optax.GradientTransformationExtraArgs:
  """`tx`, whose updates u move z, as a transformation of y: y' - y = (1 - b1 + b1 c) u - c (y - z).

  Args:
    tx: gradients and weights at y -> u, with the learning rate and decay in it.
    hparams: b1, above 0.
    schedule: updates done -> m(t).
  """

  def init(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return ScheduleFree(jnp.int32(0), jnp.float32(0), jnp.float32(0), zeros, tx.init(params))

  def update(updates: Any, state, params: Any = None, **extra):
    steps, inner = tx.update(updates, state.inner, params, **extra)
    z = jax.tree.map(lambda z, y: jnp.where(state.count == 0, y, z), state.z, params)
    peak = jnp.maximum(state.peak, schedule(state.count))
    total = state.total + jnp.square(peak)
    c = jnp.square(peak) / total
    own = 1 - hparams.b1 + hparams.b1 * c
    moves = jax.tree.map(lambda u, y, z: own * u - c * (y - z), steps, params, z)
    z = jax.tree.map(jnp.add, z, steps)
    return moves, ScheduleFree(state.count + 1, total, peak, z, inner)

  return optax.GradientTransformationExtraArgs(init, update)


def averaged(params: Tree, state: Any, b1: jax.Array) -> Tree:
  """x = y + (1 - b1) / b1 (y - z), from y and the optimizer's state after at least one update."""
  is_state = lambda s: isinstance(s, ScheduleFree)
  (found,) = [s for s in jax.tree.leaves(state, is_leaf=is_state) if is_state(s)]
  return jax.tree.map(lambda y, z: y + (1 - b1) / b1 * (y - z), params, found.z)
