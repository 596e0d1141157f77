"""Losses as laws of the weights of data domains, and the mixture that such laws like best.

  linear      L = sum_j b_j r_j                    (RegMix, Liu et al. 2024, arXiv:2407.01492 §3)
  log_linear  log L = sum_j t_j r_j                (the next one without a floor)
  mixing      L = c + k exp(sum_j t_j r_j)         (Ye et al. 2024, arXiv:2403.16952 eq. 1)
  trees       gradient-boosted trees of lightgbm, else scikit-learn, where installed (RegMix §3)

Weights r sum to 1, so a constant added to every t_j is a factor of k, and one added to every b_j an
intercept: both are taken into the coefficients, and b_j, e^t_j, c + e^t_j are what the law says of domain
j alone. `mixing` and `log_linear` minimise squares of log L's residuals, `linear` those of L. The best
mixture minimises the mean over the losses asked for. Of one loss, or of linear laws, it lies at a corner
of what is allowed; of several it is a convex problem, solved to a bound on what is left. No domain gets
more than the largest weight that a run gave it, unless told, as the law has seen nothing there.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.laws import intervals
from experiments.laws.result import Estimate, Result, to_plain
from lm.config.errors import ConfigError

LAWS = ("mixing", "log_linear", "linear", "trees")
FORMULAS = {
  "linear": "L = sum_j b_j r_j",
  "log_linear": "log L = sum_j t_j r_j",
  "mixing": "L = c + k exp(sum_j t_j r_j)",
  "trees": "gradient-boosted trees",
}
SUM_OFF = 0.05  # weights that sum to 1 but for this are taken as rounded
FOLDS = 10  # of the cross-validation where no table is held out
FLOORS = (
  0.01,
  0.2,
  0.4,
  0.6,
  0.75,
  0.85,
  0.92,
  0.97,
)  # c begins at these shares of the lowest loss
STEPS, LANES = 60, 128  # Levenberg-Marquardt steps; fits side by side
GAP = 1e-6  # of the loss: how far from the optimum a mixture may be
DRAWN, KEPT = (
  20_000,
  100,
)  # mixtures that trees judge, and the best of them that are averaged (RegMix §3)
STRENGTHS = (0.1, 5.0)  # concentration of the Dirichlet they are drawn from (RegMix)
TREE_REFITS = 40  # of the bootstrap: each takes as long as a fit


@dataclasses.dataclass(frozen=True)
class Mixtures:
  """Runs that differ in their mixture alone.

  Attributes:
    domains: [K] names; targets: [T] names of losses.
    weights_NK: each run's, >= 0; rows sum to 1.
    losses_NT: nats/token.
    rows: [N] numbers in the source; notes: what was unusual.
  """

  domains: tuple[str, ...]
  targets: tuple[str, ...]
  weights_NK: np.ndarray
  losses_NT: np.ndarray
  rows: np.ndarray
  notes: tuple[str, ...] = ()


def make_mixtures(domains, targets, weights, losses, rows=None, notes=()) -> Mixtures:
  """Mixtures with weights that sum to 1; runs without a loss are left out.

  Raises:
    ConfigError: fewer than two domains, weights below 0 or of another sum, or no usable run.
  """
  weights, losses = np.asarray(weights, float), np.asarray(losses, float)
  rows = np.arange(1, len(weights) + 1) if rows is None else np.asarray(rows)
  if len(domains) < 2:
    raise ConfigError(
      f"mixture={','.join(domains)}: must be two domains or more; name more columns"
    )
  usable = np.isfinite(weights).all(1) & np.isfinite(losses).all(1)
  notes = [*notes]
  if not usable.all():
    notes.append(f"{int((~usable).sum())} runs lack a weight or a loss and are left out")
  weights, losses, rows = weights[usable], losses[usable], rows[usable]
  if not len(weights):
    raise ConfigError("mixture: no run has all weights and losses; check the columns")
  if (weights < 0).any():
    bad = int(np.argwhere(weights < 0)[0][0])
    raise ConfigError(f"mixture: row {rows[bad]} has a weight below 0; weights must be shares")
  sums = weights.sum(1)
  if not (sums > 0).all() or np.ptp(sums) > 2 * SUM_OFF * np.median(sums):
    bad = int(np.argmax(np.abs(sums - np.median(sums))))
    raise ConfigError(
      f"mixture: weights of row {rows[bad]} sum to {sums[bad]:.4g}, those of others to "
      f"{np.median(sums):.4g}; name every domain's column, and no other"
    )
  if np.abs(sums - 1).max() > 1e-6:
    notes.append(
      f"weights sum to {sums.min():.4g} to {sums.max():.4g} and were divided by their sum"
    )
  if (losses <= 0).any():
    bad = int(np.argwhere(losses <= 0)[0][0])
    raise ConfigError(f"loss: row {rows[bad]} has a loss that is not > 0; check the column")
  return Mixtures(
    tuple(domains), tuple(targets), weights / sums[:, None], losses, rows, tuple(notes)
  )


# ---- The laws ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fits:
  """R fits of one loss: floors c [R] and coefficients t [R, K]."""

  c_R: np.ndarray
  t_RK: np.ndarray


def predict(law: str, fits: Fits, weights_NK: np.ndarray) -> np.ndarray:
  """Losses [R, N] of mixtures under a law in closed form."""
  inner = fits.t_RK @ weights_NK.T
  return inner if law == "linear" else fits.c_R[:, None] + np.exp(inner)


def fit_law(law: str, weights_NK, loss_N, counts_RN=None, start: Fits | None = None) -> Fits:
  """R weighted least-squares fits of a law in closed form.

  Args:
    law: linear, log_linear or mixing.
    counts_RN: weight of each run in each fit; None: one fit, all alike.
    start: the fit of all runs, near which the others lie; coefficients of a domain that a sample lacks
      stay as they are there.
  """
  counts_RN = np.ones((1, len(loss_N))) if counts_RN is None else counts_RN
  parts = [counts_RN[i : i + LANES] for i in range(0, len(counts_RN), LANES)]
  fit = _fit_mixing if law == "mixing" else _fit_linear
  found = [fit(law, weights_NK, loss_N, part, start) for part in parts]
  return Fits(np.concatenate([f.c_R for f in found]), np.concatenate([f.t_RK for f in found]))


def _pairs(x_NK) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
  """(products x_k x_l [N, P] of each pair k <= l, the pairs): a weighted Gram matrix is one product."""
  pairs = np.triu_indices(x_NK.shape[1])
  return x_NK[:, pairs[0]] * x_NK[:, pairs[1]], pairs


def _gram(weights_RN, products_NP, pairs, k: int) -> np.ndarray:
  """[R, K, K] of sum_n w_n x_nk x_nl."""
  out = np.empty((len(weights_RN), k, k))
  out[:, pairs[0], pairs[1]] = out[:, pairs[1], pairs[0]] = weights_RN @ products_NP
  return out


def _least_squares(x_NK, y_RN, counts_RN, centre_K) -> np.ndarray:
  """[R, K] of the least sum of counts (y - x t)^2, drawn to `centre_K` where x does not determine it."""
  k = x_NK.shape[1]
  gram = _gram(counts_RN, *_pairs(x_NK), k) + 1e-8 * len(x_NK) / k * np.eye(k)
  rhs = (counts_RN * (y_RN - x_NK @ centre_K)) @ x_NK
  return centre_K + np.linalg.solve(gram, rhs[..., None])[..., 0]


def _fit_linear(law, weights_NK, loss_N, counts_RN, start) -> Fits:
  y = np.broadcast_to(loss_N if law == "linear" else np.log(loss_N), counts_RN.shape)
  centre = np.full(weights_NK.shape[1], y[0].mean()) if start is None else start.t_RK[0]
  return Fits(np.zeros(len(counts_RN)), _least_squares(weights_NK, y, counts_RN, centre))


def _fit_mixing(law, weights_NK, loss_N, counts_RN, start) -> Fits:
  """Levenberg-Marquardt over (log c, t), from several floors or from the fit of all runs."""
  del law
  if start is not None:
    return _descend(
      weights_NK, loss_N, counts_RN,
      np.repeat(np.log(start.c_R), len(counts_RN)), np.repeat(start.t_RK, len(counts_RN), 0),
    )[0]  # fmt: skip
  c = np.array(FLOORS) * loss_N.min()  # lanes of each sample side by side, one a floor
  counts = np.repeat(counts_RN, len(c), 0)
  y = np.log(loss_N - np.tile(c, len(counts_RN))[:, None])
  t = _least_squares(weights_NK, y, counts, np.full(weights_NK.shape[1], y.mean()))
  found, value = _descend(weights_NK, loss_N, counts, np.tile(np.log(c), len(counts_RN)), t)
  best = np.arange(len(counts_RN)) * len(c) + value.reshape(-1, len(c)).argmin(1)
  return Fits(found.c_R[best], found.t_RK[best])


def _descend(x_NK, loss_N, counts_RN, log_c_R, t_RK) -> tuple[Fits, np.ndarray]:
  """(fits, sums of squares [R]) from one start each."""
  log_y, k, (products, pairs) = np.log(loss_N), x_NK.shape[1], _pairs(x_NK)
  low, high = np.log(1e-6 * loss_N.min()), np.log(loss_N.max())
  theta = np.concatenate([log_c_R[:, None], t_RK], axis=1)
  damp, eye = np.full(len(theta), 1e-3), np.eye(k + 1)

  def residual(theta):
    log_m = np.clip(theta[:, 1:] @ x_NK.T, -50, 50)
    log_f = np.logaddexp(theta[:, :1], log_m)
    return log_y - log_f, np.exp(log_m - log_f)

  r_RN, share_RN = residual(theta)
  value = (counts_RN * r_RN**2).sum(1)
  for _ in range(STEPS):
    # d log f / d log c = 1 - share, d log f / d t_j = share x_j
    of_c, of_t = counts_RN * (1 - share_RN), counts_RN * share_RN
    gram = np.empty((len(theta), k + 1, k + 1))
    gram[:, 1:, 1:] = _gram(of_t * share_RN, products, pairs, k)
    gram[:, 0, 1:] = gram[:, 1:, 0] = (of_c * share_RN) @ x_NK
    gram[:, 0, 0] = (of_c * (1 - share_RN)).sum(1)
    slope = np.concatenate([(of_c * r_RN).sum(1)[:, None], (of_t * r_RN) @ x_NK], 1)
    diagonal = np.einsum("rkk->rk", gram)
    floor = 1e-9 * diagonal.max(1, keepdims=True) + 1e-12
    ridge = (damp[:, None] * diagonal + floor)[:, :, None] * eye
    step = np.linalg.solve(gram + ridge, slope[..., None])[..., 0]
    tried = theta + step
    tried[:, 0] = np.clip(tried[:, 0], low, high)
    r_new, share_new = residual(tried)
    after = (counts_RN * r_new**2).sum(1)
    better = after <= value
    done = ((step * slope).sum(1) < 1e-10 * value + 1e-18) | (damp > 1e8)
    theta = np.where(better[:, None], tried, theta)
    r_RN = np.where(better[:, None], r_new, r_RN)
    share_RN = np.where(better[:, None], share_new, share_RN)
    value = np.where(better, after, value)
    damp = np.clip(np.where(better, damp / 5, damp * 4), 1e-9, 1e9)
    if done.all():
      break
  return Fits(np.exp(theta[:, 0]), theta[:, 1:]), value


def make_trees(seed: int):
  """An unfitted regressor of gradient-boosted trees.

  Raises:
    ConfigError: neither lightgbm nor scikit-learn is installed.
  """
  try:
    from lightgbm import LGBMRegressor  # ty: ignore[unresolved-import]

    return LGBMRegressor(n_estimators=300, learning_rate=0.05, random_state=seed, verbose=-1)
  except ImportError:
    pass
  try:
    from sklearn.ensemble import GradientBoostingRegressor
  except ImportError:
    raise ConfigError(
      "law=trees: needs lightgbm or scikit-learn; pip install scikit-learn, or use mixing"
    ) from None
  return GradientBoostingRegressor(
    n_estimators=300, learning_rate=0.05, max_depth=4, subsample=0.7, random_state=seed
  )


# ---- The best mixture ----------------------------------------------------------------------------


def corner(slope_RK: np.ndarray, cap_K: np.ndarray) -> np.ndarray:
  """[R, K] of the least slope . r over 0 <= r <= cap, sum r = 1: caps filled from the lowest slope on."""
  order = np.argsort(slope_RK, axis=1, kind="stable")
  caps = cap_K[order]
  before = np.cumsum(caps, axis=1) - caps
  filled = np.clip(1 - before, 0, caps)
  out = np.empty_like(filled)
  np.put_along_axis(out, order, filled, axis=1)
  return out


def nearest(point_RK: np.ndarray, cap_K: np.ndarray) -> np.ndarray:
  """[R, K] of 0 <= r <= cap, sum r = 1, nearest to points: clip(point - tau, 0, cap), whose sum falls in
  tau by straight lines between the points where an entry reaches 0 or its cap."""
  knots = np.sort(np.concatenate([point_RK - cap_K, point_RK], axis=1), axis=1)
  sums = np.clip(point_RK[:, None] - knots[:, :, None], 0, cap_K).sum(2)
  after = np.clip((sums >= 1).sum(1), 1, knots.shape[1] - 1)[:, None]  # sums fall along the knots
  left, right = (np.take_along_axis(knots, after - i, 1) for i in (1, 0))
  high, low = (np.take_along_axis(sums, after - i, 1) for i in (1, 0))
  tau = left + (right - left) * (high - 1) / np.maximum(high - low, 1e-300)
  found = np.clip(point_RK - tau, 0, cap_K)
  return found / found.sum(1, keepdims=True)


def best_mixtures(law: str, fits: Sequence[Fits], cap_K: np.ndarray):
  """(mixtures [R, K], their mean loss over the targets [R], how much lower it may be at most [R]).

  Accelerated projected gradients; the bound is the Frank-Wolfe gap of a convex function.
  """
  t_TRK, c_TR = np.stack([f.t_RK for f in fits]), np.stack([f.c_R for f in fits])
  if law == "linear" or len(fits) == 1:  # monotone in one sum: exact
    r_RK = corner(t_TRK.mean(0), cap_K)
    value = np.mean([np.einsum("rk,rk->r", f.t_RK, r_RK) for f in fits], axis=0)
    if law != "linear":
      value = c_TR[0] + np.exp(value)
    return r_RK, value, np.zeros(len(value))

  def values(r_RK):
    terms_TR = np.exp(np.einsum("trk,rk->tr", t_TRK, r_RK, optimize=True))
    return (c_TR + terms_TR).mean(0), terms_TR

  slope_of = lambda terms_TR: np.einsum("tr,trk->rk", terms_TR, t_TRK, optimize=True) / len(fits)
  r_RK = corner(t_TRK.mean(0), cap_K)
  r_RK = (r_RK + nearest(np.broadcast_to(cap_K, r_RK.shape), cap_K)) / 2
  ahead, at, stiff = r_RK, np.ones(len(r_RK)), np.ones(len(r_RK))
  value, terms = values(r_RK)
  gap = np.full(len(r_RK), np.inf)
  for i in range(3000):
    value_a, terms_a = values(ahead)
    slope = slope_of(terms_a)
    for _ in range(40):  # the step that a quadratic above the function allows
      tried = nearest(ahead - slope / stiff[:, None], cap_K)
      off = tried - ahead
      bound = value_a + (slope * off).sum(1) + stiff / 2 * (off**2).sum(1)
      after, terms_t = values(tried)
      short = after > bound + 1e-13 * np.abs(value_a)
      if not short.any():
        break
      stiff = np.where(short, 2 * stiff, stiff)
    worse = after > value  # begin the acceleration anew
    next_at = np.where(worse, 1.0, (1 + np.sqrt(1 + 4 * at**2)) / 2)
    moved = tried + np.where(worse, 0.0, (at - 1) / next_at)[:, None] * (tried - r_RK)
    r_RK = np.where(worse[:, None], r_RK, tried)
    value, terms = np.where(worse, value, after), np.where(worse, terms, terms_t)
    ahead, at, stiff = np.where(worse[:, None], r_RK, moved), next_at, stiff * 0.95
    if i % 10 == 0:
      slope_here = slope_of(terms)
      gap = (slope_here * (r_RK - corner(slope_here, cap_K))).sum(1)
      if (gap < GAP * value).all():
        break
  return r_RK, value, np.maximum(gap, 0)


def _drawn_best(models, weights_NK, cap_K, seed):
  """(mixture [K], mean loss) of trees: the mean of the KEPT best of DRAWN mixtures, as RegMix does."""
  rng = np.random.default_rng(seed)
  base = weights_NK.mean(0)
  strength = np.exp(rng.uniform(*np.log(STRENGTHS), DRAWN))[:, None] * len(base)
  drawn = rng.gamma(np.maximum(strength * base, 1e-3)) + 1e-300
  drawn = nearest(drawn / drawn.sum(1, keepdims=True), cap_K)
  losses = np.mean([m.predict(drawn) for m in models], axis=0)
  best = np.argsort(losses, kind="stable")[:KEPT]
  mixture = drawn[best].mean(0)
  return mixture, float(np.mean([m.predict(mixture[None])[0] for m in models]))


# ---- What a fit says -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Judged:
  """How a law foretells one loss of mixtures it was not fitted to: Spearman's rank correlation with
  its interval (Bonett & Wright 2000), R^2 and root mean square error."""

  target: str
  n: int
  rank: float
  low: float
  high: float
  r2: float
  rmse: float


@dataclasses.dataclass(frozen=True, repr=False)
class MixtureFit(Result):
  """A law of mixtures. `estimates`: the best mixture's weights and its loss, with bootstrap intervals."""

  law: str
  domains: tuple[str, ...]
  targets: tuple[str, ...]
  n: int
  coefficients: dict[str, dict[str, float]]  # {target: {domain: b or t; "c": floor}}
  estimates: dict[str, Estimate]
  judged: tuple[Judged, ...]
  held: str  # what it was judged on
  mean: np.ndarray  # [K] weights of the runs
  cap: np.ndarray  # [K] largest weight allowed
  lowest: float  # mean loss of the best run
  gap: float
  confidence: float
  n_boot: int
  seed: int
  notes: tuple[str, ...]

  def __getitem__(self, name: str) -> Estimate:
    return self.estimates[name]

  def to_json(self) -> dict:
    """Plain dicts, lists and numbers."""
    return to_plain({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

  def summary(self) -> str:
    """A text table."""
    lines = [
      f"{self.law}: {FORMULAS[self.law]}",
      f"{self.n} runs, {len(self.domains)} domains, {len(self.targets)} losses",
      f"foretold: {self.held}",
    ]
    width = max(len(j.target) for j in self.judged)
    lines += [
      f"  {j.target:{width}}  rank correlation {j.rank:.4f} [{j.low:.4f}, {j.high:.4f}]  "
      f"R^2 {j.r2:.4f}  rmse {j.rmse:.4f}"
      for j in self.judged
    ]
    width = max(len(d) for d in self.domains)
    lines.append("the best mixture")
    lines.append(
      f"  {'domain':{width}}   runs' mean   at most   best   {self.confidence:.0%} interval"
    )
    for i, domain in enumerate(self.domains):
      e = self.estimates[f"r*[{domain}]"]
      limits = f"{e.interval[0]:.4f} .. {e.interval[1]:.4f}" if e.interval else e.withheld
      lines.append(
        f"  {domain:{width}}   {self.mean[i]:10.4f}   {self.cap[i]:7.4f}   {e.value:.4f}   {limits}"
      )
    e = self.estimates["loss*"]
    limits = f" [{e.interval[0]:.4f}, {e.interval[1]:.4f}]" if e.interval else ""
    lines.append(f"its loss: {e.value:.4f}{limits}; the best run's: {self.lowest:.4f}")
    return "\n".join(lines + [f"note: {n}" for n in self.notes])


def fit_mixtures(
  runs: Mixtures,
  law: str = "mixing",
  *,
  held: Mixtures | None = None,
  caps: Mapping[str, float] | None = None,
  n_boot: int = 1000,
  seed: int = 0,
  confidence: float = 0.95,
) -> MixtureFit:
  """Fits a law to each loss, judges it on mixtures it has not seen, and finds the best mixture.

  Args:
    held: mixtures to foretell; None: FOLDS-fold cross-validation, runs of one mixture together.
    caps: {domain: largest weight} of the best mixture, in place of the largest that a run has.
    n_boot: bootstrap samples (runs of one mixture are drawn together); 0: no intervals.

  Raises:
    ConfigError: an unknown law or domain, a domain that no run has, too few runs, caps below 1 in all.
  """
  if law not in LAWS:
    raise ConfigError(f"law={law}: of mixtures there are {', '.join(LAWS)}; use mixing")
  weights, losses = runs.weights_NK, runs.losses_NT
  absent = [d for d, w in zip(runs.domains, weights.max(0), strict=True) if w == 0]
  if absent:
    raise ConfigError(f"mixture={absent[0]}: its weight is 0 in every run; leave the column out")
  _, same = np.unique(weights.round(9), axis=0, return_inverse=True)
  same = same.ravel()
  if same.max() + 1 < len(runs.domains) + 2:
    raise ConfigError(
      f"rows={same.max() + 1} different mixtures: must be {len(runs.domains) + 2} or more for "
      f"{len(runs.domains)} domains; add runs"
    )
  cap, notes = _caps(runs, dict(caps or {})), [*runs.notes]
  fit = _Trees(seed) if law == "trees" else _Closed(law)
  models = [fit.fit(weights, loss) for loss in losses.T]
  if held is None:
    folds = np.random.default_rng(seed).permutation(same.max() + 1)[same] % FOLDS
    foretold, truth = np.empty_like(losses), losses
    for fold in range(FOLDS):
      out = folds == fold
      for i, loss in enumerate(losses.T):
        foretold[out, i] = fit.predict(fit.fit(weights[~out], loss[~out]), weights[out])
    said = f"{len(losses)} runs, each by the law of the others ({FOLDS} parts)"
  else:
    if held.domains != runs.domains or held.targets != runs.targets:
      raise ConfigError(
        "predict: must have the columns of the fitted table; check --mixture and --loss"
      )
    foretold = np.stack([fit.predict(m, held.weights_NK) for m in models], 1)
    truth, said = held.losses_NT, f"{len(held.rows)} runs held out"
    notes += [f"held out: {note}" for note in held.notes]
  judged = [
    _judge(t, *pair, confidence) for t, *pair in zip(runs.targets, foretold.T, truth.T, strict=True)
  ]
  if len(runs.targets) > 1:
    judged.insert(0, _judge("their mean", foretold.mean(1), truth.mean(1), confidence))
  best, value, gap = fit.best(models, weights, cap, seed)
  refits = min(n_boot, TREE_REFITS) if law == "trees" else n_boot
  if refits < n_boot:
    notes.append(f"{refits} bootstrap samples, as trees are slow to fit: limits are rough")
  boots_RK, boots_R = np.zeros((0, len(cap))), np.zeros(0)
  if refits:
    counts = intervals.case_weights(same, refits, seed)
    boots_RK, boots_R = fit.best_of_samples(models, weights, losses, counts, cap, seed)
  if law == "linear":
    notes.append(
      "a linear law's best mixture is always a corner of what is allowed; mixing has others"
    )
  elif len(runs.targets) == 1 and law != "trees":
    notes.append(
      "the law of one loss is monotone in one weighted sum, so its best mixture is a corner of what is "
      "allowed: ask for several losses (--loss 'PATTERN'), or cap domains (--cap)"
    )
  reached = [d for d, r, c in zip(runs.domains, best, cap, strict=True) if r >= c - 1e-6 and c < 1]
  if reached:
    notes.append(f"at the largest weight allowed: {', '.join(reached)}")
  return MixtureFit(
    law, runs.domains, runs.targets, len(losses), fit.coefficients(models, runs),
    _estimates(runs.domains, best, value, boots_RK, boots_R, confidence), tuple(judged), said,
    weights.mean(0), cap, float(losses.mean(1).min()), gap, confidence, refits, seed, tuple(notes),
  )  # fmt: skip


def _caps(runs: Mixtures, caps: dict[str, float]) -> np.ndarray:
  cap = runs.weights_NK.max(0)
  for name, value in caps.items():
    if name not in runs.domains:
      raise ConfigError(f"cap={name}: no such domain; there are {', '.join(runs.domains)}")
    if not 0 <= value <= 1:
      raise ConfigError(f"cap={name}={value:g}: must be in [0, 1]; for example 0.3")
    cap[runs.domains.index(name)] = value
  if cap.sum() < 1:
    raise ConfigError(f"cap: the largest weights sum to {cap.sum():.3g}, below 1; raise some")
  return cap


class _Closed:
  """Fits of linear, log_linear and mixing."""

  def __init__(self, law: str):
    self.law = law

  def fit(self, weights_NK, loss_N) -> Fits:
    return fit_law(self.law, weights_NK, loss_N)

  def predict(self, model: Fits, weights_NK) -> np.ndarray:
    return predict(self.law, model, weights_NK)[0]

  def best(self, models, weights_NK, cap_K, seed):
    del weights_NK, seed
    r, value, gap = best_mixtures(self.law, models, cap_K)
    return r[0], float(value[0]), float(gap[0])

  def best_of_samples(self, models, weights_NK, losses_NT, counts_RN, cap_K, seed):
    del seed
    refits = [
      fit_law(self.law, weights_NK, loss, counts_RN, model)
      for loss, model in zip(losses_NT.T, models, strict=True)
    ]
    return best_mixtures(self.law, refits, cap_K)[:2]

  def coefficients(self, models, runs: Mixtures) -> dict:
    floor = lambda m: {"c": float(m.c_R[0])} if self.law == "mixing" else {}
    return {
      target: floor(m) | dict(zip(runs.domains, map(float, m.t_RK[0]), strict=True))
      for target, m in zip(runs.targets, models, strict=True)
    }


class _Trees:
  """Fits of boosted trees."""

  def __init__(self, seed: int):
    self.seed = seed

  def fit(self, weights_NK, loss_N, counts_N=None):
    return make_trees(self.seed).fit(weights_NK, loss_N, sample_weight=counts_N)

  def predict(self, model, weights_NK) -> np.ndarray:
    return np.asarray(model.predict(weights_NK))

  def best(self, models, weights_NK, cap_K, seed):
    return *_drawn_best(models, weights_NK, cap_K, seed), 0.0

  def best_of_samples(self, models, weights_NK, losses_NT, counts_RN, cap_K, seed):
    del models
    found = []
    for counts in counts_RN:
      has = counts > 0
      refits = [self.fit(weights_NK[has], loss[has], counts[has]) for loss in losses_NT.T]
      found.append(_drawn_best(refits, weights_NK, cap_K, seed))
    return np.stack([r for r, _ in found]), np.array([v for _, v in found])

  def coefficients(self, models, runs: Mixtures) -> dict:
    del models, runs
    return {}


def _estimates(domains, best, value, boots_RK, boots_R, level) -> dict[str, Estimate]:
  out = {}
  names = [*(f"r*[{d}]" for d in domains), "loss*"]
  means = [
    *(f"weight of {d} in the best mixture" for d in domains),
    "mean loss of the best mixture",
  ]
  draws = np.concatenate([boots_RK, boots_R[:, None]], axis=1)
  for i, (name, at) in enumerate(zip(names, [*best, value], strict=True)):
    limits = {}
    if len(draws):
      low, high = np.quantile(draws[:, i], [(1 - level) / 2, (1 + level) / 2])
      limits = {"case": (float(low), float(high))}
    spread = float(draws[:, i].std()) if len(draws) else None
    out[name] = Estimate(name, float(at), means[i], limits, None, boot_se=spread)
  return out


def _judge(target: str, foretold_N, truth_N, level: float) -> Judged:
  from scipy.stats import norm, spearmanr

  rank = float(spearmanr(foretold_N, truth_N).statistic) if np.ptp(foretold_N) > 0 else np.nan
  n = len(truth_N)
  half = norm.ppf((1 + level) / 2) * np.sqrt((1 + rank**2 / 2) / max(n - 3, 1))
  z = np.arctanh(np.clip(rank, -1 + 1e-12, 1 - 1e-12))
  off = foretold_N - truth_N
  return Judged(
    target, n, rank, float(np.tanh(z - half)), float(np.tanh(z + half)),
    float(1 - (off**2).sum() / max(((truth_N - truth_N.mean()) ** 2).sum(), 1e-300)),
    float(np.sqrt((off**2).mean())),
  )  # fmt: skip
