"""Optimizers: each turns gradients into a direction of about 1 per element (sgd excepted).

The state does not depend on any number in Hparams, so one program serves and stacks many runs.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lm.config.hparams import Hparams

Tree = Any  # a pytree with the structure of the parameters

MUON_RMS = 0.2  # of an update's elements, as AdamW's: Liu et al. 2025, arXiv:2502.16982 §2.2
FACTORED_DECAY = 0.8  # b2(t) = 1 - t ** -0.8: Shazeer & Stern 2018, arXiv:1804.04235 §7.2


# --- matrices inside weights --------------------------------------------------------------------


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


def per_matrix(tx: optax.GradientTransformation, kinds: Tree, axes: Tree):
  """`tx` applied by itself to every matrix [in, out] and vector [size] of every layer.

  An optimizer that factors or averages over a whole weight would otherwise mix the layers of a
  scanned stack, and would not see an attention kernel [D, H, K] as the matrix [D, H K].
  """

  def stacked(x, kind, names):
    first, second = matrix_split(names)
    n_stacked = math.prod(x.shape[:first])
    if kind == "vector":
      return x.reshape(n_stacked, -1)
    return x.reshape(n_stacked, math.prod(x.shape[first:second]), -1)

  def init(params):
    return jax.tree.map(lambda *leaf: jax.vmap(tx.init)(stacked(*leaf)), params, kinds, axes)

  def update(updates, state, params):
    leaves, treedef = jax.tree.flatten(updates)
    rest = [treedef.flatten_up_to(tree) for tree in (state, params, kinds, axes)]
    new_leaves, new_states = [], []
    for g, s, p, kind, names in zip(leaves, *rest, strict=True):
      new_g, new_s = jax.vmap(tx.update)(stacked(g, kind, names), s, stacked(p, kind, names))
      new_leaves.append(new_g.reshape(g.shape))
      new_states.append(new_s)
    return treedef.unflatten(new_leaves), treedef.unflatten(new_states)

  return optax.GradientTransformation(init, update)


# --- directions: (hparams, kinds, axes) -> transformation of gradients into an ascent direction -


def sgd(hparams: Hparams, kinds: Tree, axes: Tree) -> optax.GradientTransformation:
  """d = m <- b1 m + g: heavy-ball momentum, undamped, as in torch.optim.SGD.

  Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning", §2.
  """
  return optax.trace(decay=hparams.b1)


def adamw(hparams: Hparams, kinds: Tree, axes: Tree) -> optax.GradientTransformation:
  """d = m' / (sqrt(v') + eps), m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, ' corrects bias.

  Kingma & Ba 2014, arXiv:1412.6980, algorithm 1; Loshchilov & Hutter 2017, arXiv:1711.05101, for
  the decay that stays out of g. optax.adamw and torch.optim.AdamW are decay_coupling="coupled";
  the paper's own algorithm 2 is "independent", the default here. Both libraries decay vectors
  too; this does not.
  """
  return optax.scale_by_adam(b1=hparams.b1, b2=hparams.b2, eps=hparams.eps)


def adagrad(hparams: Hparams, kinds: Tree, axes: Tree) -> optax.GradientTransformation:
  """d = g / (sqrt(s) + eps), s <- s + g^2 from 0, as torch.optim.Adagrad's; b1 and b2 are unused.

  Duchi et al. 2011, "Adaptive Subgradient Methods", JMLR 12, figure 1.
  """

  def init(params):
    return optax.ScaleByRssState(jax.tree.map(jnp.zeros_like, params))

  def update(updates, state, params=None):
    sums = jax.tree.map(lambda s, g: s + jnp.square(g), state.sum_of_squares, updates)
    eps = hparams.eps
    steps = jax.tree.map(lambda g, s: g / (jnp.sqrt(s) + eps), updates, sums)
    return steps, optax.ScaleByRssState(sums)

  return optax.GradientTransformation(init, update)


def lion(hparams: Hparams, kinds: Tree, axes: Tree) -> optax.GradientTransformation:
  """d = sign(b1 m + (1 - b1) g), then m <- b2 m + (1 - b2) g. Chen et al. 2023, arXiv:2302.06675"""
  return optax.scale_by_lion(b1=hparams.b1, b2=hparams.b2)


def adafactor(hparams: Hparams, kinds: Tree, axes: Tree) -> optax.GradientTransformation:
  """d = u / max(1, rms(u)), u = g / sqrt(v); v = r c / mean(r), for each matrix of each layer.

  r and c are running means of g^2 + eps^2 over rows and over columns, with decay
  min(b2, 1 - t ** -0.8); vectors keep v whole. Without momentum (b1 is unused) and without the
  paper's scaling by rms(W), so that rates and parameterizations transfer from adamw: the variant
  of Zhai et al. 2021, arXiv:2106.04560 §3.3, which also caps b2. Shazeer & Stern 2018,
  arXiv:1804.04235, algorithm 4.
  """

  def decay(step, exponent):
    return jnp.minimum(hparams.b2, 1 - (step + 1.0) ** -exponent)

  factored = optax.scale_by_factored_rms(
    decay_rate=FACTORED_DECAY,
    min_dim_size_to_factor=1,
    epsilon=jnp.square(hparams.eps),
    decay_rate_fn=decay,
  )
  return per_matrix(optax.chain(factored, optax.clip_by_block_rms(1.0)), kinds, axes)


def muon(hparams: Hparams, kinds: Tree, axes: Tree) -> optax.GradientTransformation:
  """Hidden matrices [I, O]: d = 0.2 sqrt(max(I, O)) NS(b1 m' + (1 - b1) g'). The rest: adamw.

  m' and g' are adamw's m and g, bias-corrected, and NS drives the singular values towards 1 by five
  Newton-Schulz steps (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/). The factor
  gives updates adamw's size, so that one peak_lr serves both halves (Liu et al. 2025,
  arXiv:2502.16982 §2.2).
  """

  def spec(kind, names):
    if kind != "hidden":
      return optax.MaskedNode()
    first, second = matrix_split(names)
    return optax.contrib.MuonDimensionNumbers(
      tuple(range(first, second)), tuple(range(second, len(names)))
    )

  def scaled(x, spec):
    sides = [math.prod(x.shape[i] for i in side) for side in spec]
    return MUON_RMS * max(sides) ** 0.5 * x

  specs = jax.tree.map(spec, kinds, axes)
  orthogonal = optax.chain(
    optax.contrib.scale_by_muon(beta=hparams.b1, eps=hparams.eps, weight_dimension_numbers=specs),
    optax.stateless(lambda updates, _: jax.tree.map(scaled, updates, specs)),
  )
  labels = jax.tree.map(lambda kind: "muon" if kind == "hidden" else "adamw", kinds)
  return optax.partition({"muon": orthogonal, "adamw": adamw(hparams, kinds, axes)}, labels)


OPTIMIZERS: dict[str, Callable[[Hparams, Tree, Tree], optax.GradientTransformation]] = {
  "sgd": sgd,
  "adam": adamw,  # weight_decay joins l2 in the gradient, as in torch.optim.Adam
  "adamw": adamw,
  "adagrad": adagrad,
  "lion": lion,
  "adafactor": adafactor,
  "muon": muon,
}

# The running means each keeps: which of optim.b1 and optim.b2 a group of parameters may have its own of.
MOMENTS: dict[str, tuple[str, ...]] = {
  "sgd": ("b1",),
  "adam": ("b1", "b2"),
  "adamw": ("b1", "b2"),
  "adagrad": (),
  "lion": ("b1", "b2"),
  "adafactor": ("b2",),
  "muon": ("b1", "b2"),  # b2 of what is no hidden matrix
}
