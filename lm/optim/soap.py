"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner.

    L <- b2 L + (1 - b2) G G^T,   R <- b2 R + (1 - b2) G^T G        of every matrix G [in, out]
    Q_L, Q_R: eigenvectors of L and R, renewed every precondition_every updates
    M <- b1 M + (1 - b1) G,   V <- b2 V + (1 - b2) (Q_L^T G Q_R)^2
    d = Q_L [Q_L^T M' Q_R / (sqrt(V') + eps)] Q_R^T                 ' corrects bias, as adamw

Vyas et al. 2024, arXiv:2409.11321, algorithm 3. As in its authors' code, the first gradient gives the first
L, R and basis and moves nothing (in its own eigenbasis it is diagonal, and Adam would blow up the zeros);
a basis is renewed by one step of the power method, Q <- qr(L Q) with columns in order of diag(Q^T L Q), and V
is put into the new order. Departures: a first product has lower rank than its larger side, so a small ramp is
added to its diagonal, lest rounding choose the basis of its null space; eps stands beside the corrected
root, as in adamw; tables are turned on the side of the width alone, whatever the size of the vocabulary (its
authors: sides of up to 10,000), and no side above MAX_SIDE is turned. Vectors are adamw's.

L, R and the two bases stay float32 and lie whole on every device. In runs stacked by vmap (accelerators) all
of them are renewed at every update and taken over every precondition_every-th, as XLA has no branch there.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.config.hparams import Hparams
from lm.models.family import Weight
from lm.optim.matrices import Tree, as_matrices

RAMP = 1e-2  # of the mean eigenvalue, rising along the diagonal of the first products
MAX_SIDE = 10_000  # rows or columns above which a side has no basis: §5 of the paper


class Soap(NamedTuple):
  count: jax.Array  # int32 updates, the first one, which moves nothing, included
  mu: Tree  # M
  nu: Tree  # V, in the basis; both like the weights
  gram: Tree  # {"left": [n, in, in], "right": [n, out, out]} for each weight: L and R
  basis: Tree  # likewise: Q_L and Q_R


def turned_sides(kind: str, n_in: int, n_out: int) -> tuple[str, ...]:
  """Which sides of a matrix [in, out] of this kind have a basis.

  >>> turned_sides("embed", 2048, 128)
  ('right',)
  """
  sides = []
  if kind != "embed" and n_in <= MAX_SIDE:
    sides.append("left")
  if kind != "readout" and n_out <= MAX_SIDE:
    sides.append("right")
  return tuple(sides)


def basis_floats(weights: Sequence[Weight]) -> int:
  """Numbers in the products of gradients and the bases, [in, in] and [out, out], of all matrices."""
  sizes = lambda w: dict(zip(("left", "right"), w.shape, strict=True))
  return sum(
    2 * w.copies * sizes(w)[side] ** 2
    for w in weights
    if w.kind != "vector"
    for side in turned_sides(w.kind, *w.shape)
  )


def scale_by_soap(hparams: Hparams, kinds: Tree, axes: Tree) -> optax.GradientTransformation:
  """The direction d of matrices, as at the top; every weight is a matrix or a stack of them.

  Args:
    hparams: b1, b2, eps, precondition_every.
    kinds: "embed", "hidden" or "readout" for every weight.
    axes: logical axis names of every weight.
  """

  def init(params):
    def squares(p, kind, names, make):
      n, n_in, n_out = as_matrices(p, names).shape
      sizes = {"left": n_in, "right": n_out}
      return {side: make(n, sizes[side]) for side in turned_sides(kind, n_in, n_out)}

    zeros = lambda n, size: jnp.zeros((n, size, size))
    eyes = lambda n, size: jnp.tile(jnp.eye(size), (n, 1, 1))
    every = lambda make: jax.tree.map(lambda *leaf: squares(*leaf, make), params, kinds, axes)
    blank = lambda: jax.tree.map(jnp.zeros_like, params)
    return Soap(jnp.int32(0), blank(), blank(), every(zeros), every(eyes))

  def update(updates, state, params=None):
    leaves, treedef = jax.tree.flatten(updates)
    rest = [treedef.flatten_up_to(t) for t in (state.mu, state.nu, state.gram, state.basis, axes)]
    found = [_one(hparams, state.count, *leaf) for leaf in zip(leaves, *rest, strict=True)]
    trees = [treedef.unflatten(column) for column in zip(*found, strict=True)]
    return trees[0], Soap(state.count + 1, *trees[1:])

  return optax.GradientTransformation(init, update)


def _one(hparams: Hparams, count, g, mu, nu, gram, basis, names) -> tuple[Any, ...]:
  """(direction, mu, nu, gram, basis) of one weight after the update number count + 1."""
  b1, b2 = hparams.b1, hparams.b2
  G, M, V = (as_matrices(x, names) for x in (g, mu, nu))
  moving = count > 0
  M = jnp.where(moving, b1 * M + (1 - b1) * G, M)
  V = jnp.where(moving, b2 * V + (1 - b2) * jnp.square(_turn(G, basis)), V)
  t = jnp.maximum(count, 1).astype(jnp.float32)
  step = _turn(M, basis) / (1 - b1**t) / (jnp.sqrt(V / (1 - b2**t)) + hparams.eps)
  d = jnp.where(moving, _turn(step, basis, back=True), 0.0)

  products = {"left": G @ jnp.swapaxes(G, 1, 2), "right": jnp.swapaxes(G, 1, 2) @ G}
  gram = {side: b2 * P + (1 - b2) * products[side] for side, P in gram.items()}
  due = jnp.where(moving, jnp.where(count % hparams.precondition_every == 0, 2, 0), 1)
  V, basis = jax.lax.switch(due, (_keep, _first, _renewed), V, gram, basis)
  return d.reshape(g.shape), M.reshape(g.shape), V.reshape(g.shape), gram, basis


def _turn(x, basis, back=False):
  """Q_L^T x Q_R, or Q_L x Q_R^T; a side without a basis stays as it is."""
  over = lambda q: jnp.swapaxes(q, 1, 2)
  if "left" in basis:
    x = (basis["left"] if back else over(basis["left"])) @ x
  if "right" in basis:
    x = x @ (over(basis["right"]) if back else basis["right"])
  return x


def _keep(V, gram, basis):
  return V, basis


def _first(V, gram, basis):
  """Eigenvectors by falling eigenvalue, of products whose null space has a basis of its own."""

  def vectors(P):
    n = P.shape[-1]
    ramp = jnp.diag(jnp.arange(1, n + 1, dtype=P.dtype) / n)[None]
    mean = jnp.trace(P, axis1=1, axis2=2)[:, None, None] / n
    return jnp.linalg.eigh(P + RAMP * mean * ramp)[1][:, :, ::-1]

  return V, {side: vectors(P) for side, P in gram.items()}


def _renewed(V, gram, basis):
  """One step of the power method on bases in the order of their Rayleigh quotients; V in that order."""
  new = {}
  for side, Q in basis.items():
    found = jnp.einsum("nij,nik,nkj->nj", Q, gram[side], Q)
    order = jnp.argsort(found, axis=1, descending=True)
    rows = side == "left"
    V = jnp.take_along_axis(V, order[:, :, None] if rows else order[:, None, :], 1 if rows else 2)
    new[side] = jnp.linalg.qr(gram[side] @ jnp.take_along_axis(Q, order[:, None, :], axis=2))[0]
  return V, new
