"""Weights as stacks of matrices [n, in, out], for optimizers that look at a matrix as a whole."""

import math
from typing import Any

import jax
import optax

Tree = Any  # a pytree with the structure of the parameters


def matrix_split(axes: tuple[str, ...]) -> tuple[int, int]:
  """Where a weight's stacked, first and second matrix dimensions begin: (first, second).

  Axes before `first` stack matrices (scanned layers, experts); axes from `second` on are the other side. A
  head count and the width of a head are one dimension of the matrix.

  >>> matrix_split(("layers", "embed", "heads", "head_dim"))
  (1, 2)
  >>> matrix_split(("heads", "head_dim", "embed"))
  (0, 2)
  """
  first = sum(axis in ("layers", "expert") for axis in axes)
  second = first + (2 if axes[first + 1 : first + 2] == ("head_dim",) else 1)
  return first, second


def as_matrices(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
  """[n, in, out], the matrices of every layer and expert."""
  first, second = matrix_split(axes)
  return x.reshape(math.prod(x.shape[:first]), math.prod(x.shape[first:second]), -1)


def per_matrix(tx: optax.GradientTransformation, kinds: Tree, axes: Tree):
  """`tx` applied by itself to every matrix [in, out] and vector [size] of every layer.

  An optimizer that factors or averages over a whole weight would otherwise mix the layers of a
  scanned stack, and would not see an attention kernel [D, H, K] as the matrix [D, H K].
  """

  def stacked(x, kind, names):
    if kind == "vector":
      return x.reshape(math.prod(x.shape[: matrix_split(names)[0]]), -1)
    return as_matrices(x, names)

  def init(params):
    return jax.tree.map(lambda *leaf: jax.vmap(tx.init)(stacked(*leaf)), params, kinds, axes)

  def update(updates: Any, state, params: Any = None):
    leaves, treedef = jax.tree.flatten(updates)
    rest = [treedef.flatten_up_to(tree) for tree in (state, params, kinds, axes)]
    new_leaves, new_states = [], []
    for g, s, p, kind, names in zip(leaves, *rest, strict=True):
      moved: Any = jax.vmap(tx.update)(stacked(g, kind, names), s, stacked(p, kind, names))
      new_leaves.append(moved[0].reshape(g.shape))
      new_states.append(moved[1])
    return treedef.unflatten(new_leaves), treedef.unflatten(new_states)

  return optax.GradientTransformation(init, update)
