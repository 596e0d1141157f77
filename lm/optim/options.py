"""What any optimizer's direction can have beside it: caution, and weights held on spheres."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.optim.matrices import Tree, as_matrices, matrix_split


def cautious(tx: optax.GradientTransformation, axes: Tree) -> optax.GradientTransformation:
  """d 1(d g > 0) n / (|d g > 0| + 1): no element moves against its gradient, the others make up for it.

  g is the gradient after penalties and clipping; n elements and the count |.| are those of one matrix or
  vector of one layer. Liang et al. 2024, arXiv:2411.16085, algorithm 1, with 1 / n for its eps.
  """

  def masked(d, g, names):
    own = tuple(range(matrix_split(names)[0], d.ndim))
    agrees = (d * g > 0).astype(d.dtype)
    n = math.prod(d.shape[axis] for axis in own)
    return d * agrees * n / (agrees.sum(axis=own, keepdims=True) + 1)

  tx = optax.with_extra_args_support(tx)

  def update(updates: Any, state, params: Any = None, **extra):
    steps, state = tx.update(updates, state, params, **extra)
    return jax.tree.map(masked, steps, updates, axes), state

  return optax.GradientTransformationExtraArgs(tx.init, update)


class Hyperball(NamedTuple):
  count: jax.Array  # int32 updates
  radius: (
    Tree  # [n, 1, 1] Frobenius norms of the matrices that are held; zeros before the first update
  )
  direction: Any
  rest: Any


def hyperball(
  direction: optax.GradientTransformation,
  rest: optax.GradientTransformationExtraArgs,
  chosen: Tree,
  axes: Tree,
) -> optax.GradientTransformationExtraArgs:
  """W <- R Norm(W - rate R Norm(d)) with R = |W_0|_F and Norm(x) = x / |x|_F, for every chosen matrix.

  The rate is the share of a matrix's norm by which an update moves it, before it is brought back: peak_lr
  m(t) times the multipliers of group and layer, which `rest` applies. No weight decay stands beside it. A
  matrix that is 0 at first has no sphere and moves as without. Wen et al. 2026, arXiv:2606.16899; the
  formula as in their "From weight decay to Hyperball optimization", part 1 (December 2025).

  Args:
    direction: gradients -> d.
    rest: d -> -rate d, and the other weights' decay.
    chosen: for each weight whether it is held on its sphere.
    axes: logical axis names of every weight.
  """
  direction = optax.with_extra_args_support(direction)
  pick = lambda fn, *trees: jax.tree.map(
    lambda mine, *leaf: fn(*leaf) if mine else optax.MaskedNode(), chosen, *trees
  )
  norms = lambda x, names: jnp.linalg.norm(as_matrices(x, names), axis=(1, 2), keepdims=True)

  def scaled(x, radius, names):
    """R Norm(x), each matrix for itself; x where R or |x| is 0."""
    matrices, size = as_matrices(x, names), norms(x, names)
    factor = jnp.where((radius > 0) & (size > 0), radius / jnp.where(size > 0, size, 1), 1)
    return (factor * matrices).reshape(x.shape)

  def init(params):
    zeros = pick(lambda p, names: jnp.zeros_like(norms(p, names)), params, axes)
    return Hyperball(jnp.int32(0), zeros, direction.init(params), rest.init(params))

  def update(updates: Any, state, params: Any = None, **extra):
    new = pick(norms, params, axes)
    radius = jax.tree.map(lambda r, n: jnp.where(state.count == 0, n, r), state.radius, new)
    on = lambda fn, tree: jax.tree.map(
      lambda mine, x, r, *leaf: fn(x, r, *leaf) if mine else x, chosen, tree, radius, axes, params
    )
    d, first = direction.update(updates, state.direction, params, **extra)
    d = on(lambda x, r, names, _: scaled(x, r, names), d)
    steps, second = rest.update(d, state.rest, params, **extra)
    steps = on(lambda u, r, names, w: scaled(w + u, r, names) - w, steps)
    return steps, Hyperball(state.count + 1, radius, first, second)

  return optax.GradientTransformationExtraArgs(init, update)
