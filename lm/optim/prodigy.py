"""Prodigy: Adam whose learning rate is found from how far the weights have come.

    m <- b1 m + (1 - b1) d g,   v <- b2 v + (1 - b2) d^2 g^2                        from 0, not corrected
    r <- b r + (1 - b) c d^2 <g, w_0 - w>,   s <- b s + (1 - b) c d^2 g,   b = sqrt(b2), over all weights
    step: c d m / (sqrt(v) + d eps),   then   d <- max(d, r / |s|_1),   d_0 = 1e-6

with c = peak_lr m(t) and peak_lr = 1 what its authors use. Mishchenko & Defazio 2023, arXiv:2306.06101,
algorithm 4. There is one d for all weights, so all must have one rate (lm.optim.checks).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.config.hparams import Hparams
from lm.optim.matrices import Tree

SMALLEST_RATE = 1e-6  # d_0: the authors' default; any number far below the right one does


class Prodigy(NamedTuple):
  count: jax.Array  # int32 updates
  d: jax.Array  # of the next update
  used: jax.Array  # of the last one
  r: jax.Array
  mu: Tree  # m
  nu: Tree  # v
  sums: Tree  # s
  start: Tree  # w_0: the weights before the first update; zeros until then


def scale_by_prodigy(
  hparams: Hparams, schedule: Callable[[jax.Array], jax.Array]
) -> optax.GradientTransformation:
  """d m / (sqrt(v) + d eps) as at the top; what follows multiplies it by c.

  Args:
    hparams: peak_lr, b1, b2, eps.
    schedule: updates done -> m(t).
  """

  def init(params):
    zeros = lambda: jax.tree.map(jnp.zeros_like, params)
    first = jnp.float32(SMALLEST_RATE)
    return Prodigy(jnp.int32(0), first, first, jnp.float32(0), zeros(), zeros(), zeros(), zeros())

  def update(updates: Any, state, params: Any = None):
    d, b1, b2 = state.d, hparams.b1, hparams.b2
    b = jnp.sqrt(b2)
    start = jax.tree.map(lambda s, p: jnp.where(state.count == 0, p, s), state.start, params)
    mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * d * g, state.mu, updates)
    nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * jnp.square(d * g), state.nu, updates)
    weight = (1 - b) * hparams.peak_lr * schedule(state.count) * jnp.square(d)
    way = jax.tree.map(lambda g, s, p: jnp.vdot(g, s - p), updates, start, params)
    r = b * state.r + weight * sum(jax.tree.leaves(way), jnp.float32(0))
    sums = jax.tree.map(lambda s, g: b * s + weight * g, state.sums, updates)
    length = sum((jnp.abs(s).sum() for s in jax.tree.leaves(sums)), jnp.float32(0))
    steps = jax.tree.map(lambda m, v: d * m / (jnp.sqrt(v) + d * hparams.eps), mu, nu)
    new = jnp.maximum(d, jnp.where(length > 0, r / jnp.where(length > 0, length, 1), 0))
    return steps, Prodigy(state.count + 1, new, d, r, mu, nu, sums, start)

  return optax.GradientTransformation(init, update)
