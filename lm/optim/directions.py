"""Optimizers: each turns gradients into a direction of about 1 per element (sgd excepted).

The state does not depend on any number in Hparams, so one program serves and stacks many runs.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.config.hparams import Hparams
from lm.models.family import Weight
from lm.optim.matrices import Tree, matrix_split, per_matrix
from lm.optim.prodigy import scale_by_prodigy
from lm.optim.soap import basis_floats, scale_by_soap
from lm.optim.sophia import scale_by_sophia

Schedule = Callable[[jax.Array], jax.Array]  # updates done -> m(t), the fraction of the peak rate

MUON_RMS = 0.2  # of an update's elements, as AdamW's: Liu et al. 2025, arXiv:2502.16982 §2.2
FACTORED_DECAY = 0.8  # b2(t) = 1 - t ** -0.8: Shazeer & Stern 2018, arXiv:1804.04235 §7.2


# --- directions: (hparams, kinds, axes, schedule) -> gradients into an ascent direction ----------


def sgd(
  hparams: Hparams, kinds: Tree, axes: Tree, schedule: Schedule
) -> optax.GradientTransformation:
  """d = m <- b1 m + g: heavy-ball momentum, undamped, as in torch.optim.SGD.

  Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning", §2.
  """
  return optax.trace(decay=hparams.b1)


def adamw(
  hparams: Hparams, kinds: Tree, axes: Tree, schedule: Schedule
) -> optax.GradientTransformation:
  """d = m' / (sqrt(v') + eps), m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, ' corrects bias.

  Kingma & Ba 2014, arXiv:1412.6980, algorithm 1; Loshchilov & Hutter 2017, arXiv:1711.05101, for
  the decay that stays out of g. optax.adamw and torch.optim.AdamW are decay_coupling="coupled";
  the paper's own algorithm 2 is "independent", the default here. Both libraries decay vectors
  too; this does not.
  """
  return optax.scale_by_adam(b1=hparams.b1, b2=hparams.b2, eps=hparams.eps)


def adagrad(
  hparams: Hparams, kinds: Tree, axes: Tree, schedule: Schedule
) -> optax.GradientTransformation:
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


def lion(
  hparams: Hparams, kinds: Tree, axes: Tree, schedule: Schedule
) -> optax.GradientTransformation:
  """d = sign(b1 m + (1 - b1) g), then m <- b2 m + (1 - b2) g. Chen et al. 2023, arXiv:2302.06675"""
  return optax.scale_by_lion(b1=hparams.b1, b2=hparams.b2)


def adafactor(
  hparams: Hparams, kinds: Tree, axes: Tree, schedule: Schedule
) -> optax.GradientTransformation:
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


def muon(
  hparams: Hparams, kinds: Tree, axes: Tree, schedule: Schedule
) -> optax.GradientTransformation:
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
  return optax.partition(
    {"muon": orthogonal, "adamw": adamw(hparams, kinds, axes, schedule)}, labels
  )


def ademamix(
  hparams: Hparams, kinds: Tree, axes: Tree, schedule: Schedule
) -> optax.GradientTransformation:
  """d = (m1' + a(t) m2) / (sqrt(v') + eps): adamw with a second, slow mean m2 <- b3(t) m2 + (1 - b3(t)) g.

  a(t) = slow_weight min(1, t / T) and b3(t) = min(b3, e^(1 / ((1 - t/T) / ln b1 + (t/T) / ln b3))), whose
  half-life grows linearly from that of b1 to that of b3, over the first T = slow_warmup total_steps
  updates; m2 is not corrected for bias. Pagliardini et al. 2024, arXiv:2409.03137, algorithm 1, appendix A.1.
  """

  def share(count):
    length = hparams.slow_warmup * hparams.total_steps.astype(jnp.float32)
    return jnp.clip((count + 1).astype(jnp.float32) / jnp.maximum(length, 1), 0, 1)

  def slow(count):
    t = share(count)
    grown = jnp.exp(1 / ((1 - t) / jnp.log(hparams.b1) + t / jnp.log(hparams.b3)))
    return jnp.where(t < 1, jnp.minimum(hparams.b3, grown), hparams.b3)

  return optax.contrib.scale_by_ademamix(
    b1=hparams.b1,
    b2=hparams.b2,
    b3=slow,
    alpha=lambda n: hparams.slow_weight * share(n),
    eps=hparams.eps,
  )


def adopt(
  hparams: Hparams, kinds: Tree, axes: Tree, schedule: Schedule
) -> optax.GradientTransformation:
  """d = m <- b1 m + (1 - b1) clip(g / max(sqrt(v), eps), +-t^(1/4)), and only then v <- b2 v + (1 - b2) g^2.

  The first gradient gives v = g^2 and moves nothing; t counts from the second. Taniguchi et al. 2024,
  arXiv:2411.02853, algorithm 2, whose b2 is 0.9999 and eps 1e-6.
  """
  return optax.contrib.scale_by_adopt(b1=hparams.b1, b2=hparams.b2, eps=hparams.eps)


def soap(
  hparams: Hparams, kinds: Tree, axes: Tree, schedule: Schedule
) -> optax.GradientTransformation:
  """Matrices: Adam in the eigenbasis of Shampoo's preconditioner (lm.optim.soap). The rest: adamw."""
  labels = jax.tree.map(lambda kind: "adamw" if kind == "vector" else "soap", kinds)
  pick = lambda tree: jax.tree.map(
    lambda kind, x: optax.MaskedNode() if kind == "vector" else x, kinds, tree
  )
  turned = scale_by_soap(hparams, pick(kinds), pick(axes))
  return optax.partition({"soap": turned, "adamw": adamw(hparams, kinds, axes, schedule)}, labels)


def schedule_free(
  hparams: Hparams, kinds: Tree, axes: Tree, schedule: Schedule
) -> optax.GradientTransformation:
  """d = g / (sqrt(v') + eps), adamw's without m, which lm.optim.schedule_free has in its place."""
  return optax.scale_by_rms(
    decay=hparams.b2, eps=hparams.eps, eps_in_sqrt=False, bias_correction=True
  )


def prodigy(
  hparams: Hparams, kinds: Tree, axes: Tree, schedule: Schedule
) -> optax.GradientTransformation:
  """d_t m / (sqrt(v) + d_t eps), with d_t the rate found on the way (lm.optim.prodigy)."""
  return scale_by_prodigy(hparams, schedule)


def sophia(
  hparams: Hparams, kinds: Tree, axes: Tree, schedule: Schedule
) -> optax.GradientTransformation:
  """The mean gradient over the Hessian's diagonal, element by element, clipped to 1 (lm.optim.sophia)."""
  return scale_by_sophia(hparams)


# --- what else is to be known of each -----------------------------------------------------------


def _all(weights: Sequence[Weight]) -> int:
  return sum(w.size for w in weights)


def _none(weights: Sequence[Weight]) -> int:
  return 0


def _factored(weights: Sequence[Weight]) -> int:
  """Row and column means of each matrix, vectors whole."""
  return sum(w.size if w.kind == "vector" else w.copies * sum(w.shape) for w in weights)


def _less_hidden(weights: Sequence[Weight]) -> int:
  return sum(w.size for w in weights if w.kind != "hidden")


class Optimizer(NamedTuple):
  """The row of an optimizer.

  Attributes:
    direction: (hparams, kinds, axes, schedule) -> gradients into an ascent direction.
    moments: the running means it keeps: which of optim.b1 and optim.b2 a group of parameters may have its
      own of.
    means: weights -> numbers of its state in running means, which optim.state_dtype may code.
    whole: weights -> numbers in copies of the weights, float32 and split over devices as weights are.
    copied: weights -> numbers that every device holds in float32.
    averages: whether evaluation reads a mean of the weights that the optimizer keeps.
    curved: whether its `update` takes `curvature`, which makes a draw of the Hessian's diagonal.
  """

  direction: Callable[[Hparams, Tree, Tree, Schedule], optax.GradientTransformation]
  moments: tuple[str, ...]
  means: Callable[[Sequence[Weight]], int]
  whole: Callable[[Sequence[Weight]], int] = _none
  copied: Callable[[Sequence[Weight]], int] = _none
  averages: bool = False
  curved: bool = False


BOTH = ("b1", "b2")
OPTIMIZERS: dict[str, Optimizer] = {
  "sgd": Optimizer(sgd, ("b1",), _all),
  # adam: weight_decay joins l2 in the gradient, as in torch.optim.Adam (lm.optim.chain)
  "adam": Optimizer(adamw, BOTH, lambda weights: 2 * _all(weights)),
  "adamw": Optimizer(adamw, BOTH, lambda weights: 2 * _all(weights)),
  "adagrad": Optimizer(adagrad, (), _all),
  "lion": Optimizer(lion, BOTH, _all),
  "adafactor": Optimizer(adafactor, ("b2",), _factored),
  # muon: hidden matrices have one mean, all other weights adamw's two
  "muon": Optimizer(muon, BOTH, lambda weights: _all(weights) + _less_hidden(weights)),
  "soap": Optimizer(soap, BOTH, lambda weights: 2 * _all(weights), copied=basis_floats),
  "ademamix": Optimizer(ademamix, BOTH, lambda weights: 3 * _all(weights)),
  "adopt": Optimizer(adopt, BOTH, lambda weights: 2 * _all(weights)),
  # schedule_free: b1 places the average of all weights, so no group has its own
  "schedule_free": Optimizer(schedule_free, ("b2",), _all, whole=_all, averages=True),
  # prodigy: one rate is found for all weights
  "prodigy": Optimizer(prodigy, (), lambda weights: 3 * _all(weights), whole=_all),
  # sophia: the Hessian's draws are of all weights
  "sophia": Optimizer(sophia, (), lambda weights: 2 * _all(weights), curved=True),
}
