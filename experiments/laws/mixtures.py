"""Losses fitted as laws of the weights of data domains, judged, and the mixture that such laws like best.

The best mixture minimises the mean over the losses asked for. No domain gets more than the largest weight
that a run gave it, unless told, as the law has seen nothing there.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from experiments.laws import intervals
from experiments.laws.mixture_laws import FORMULAS, LAWS, Fits, fit_law, make_trees, predict
from experiments.laws.mixture_optimum import best_mixtures, drawn_best
from experiments.laws.result import Estimate, Result, to_plain
from lm.config.errors import ConfigError, number_of

SUM_OFF = 0.05  # weights that sum to 1 but for this are taken as rounded
FOLDS = 10  # of the cross-validation where no table is held out
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
    notes.append(
      f"left out, as a weight or a loss is missing: {number_of(int((~usable).sum()), 'run')}"
    )
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
      f"{number_of(self.n, 'run')}, {number_of(len(self.domains), 'domain')}, "
      f"{number_of(len(self.targets), 'loss')}",
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
      f"rows={number_of(int(same.max()) + 1, 'different mixture')}: must be {len(runs.domains) + 2} or "
      "more for "
      f"{number_of(len(runs.domains), 'domain')}; add runs"
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
    said = f"{number_of(len(losses), 'run')}, each by the law of the others ({FOLDS} parts)"
  else:
    if held.domains != runs.domains or held.targets != runs.targets:
      raise ConfigError(
        "predict: must have the columns of the fitted table; check --mixture and --loss"
      )
    foretold = np.stack([fit.predict(m, held.weights_NK) for m in models], 1)
    truth, said = held.losses_NT, f"{number_of(len(held.rows), 'run')} held out"
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
    return *drawn_best(models, weights_NK, cap_K, seed), 0.0

  def best_of_samples(self, models, weights_NK, losses_NT, counts_RN, cap_K, seed):
    del models
    found = []
    for counts in counts_RN:
      has = counts > 0
      refits = [self.fit(weights_NK[has], loss[has], counts[has]) for loss in losses_NT.T]
      found.append(drawn_best(refits, weights_NK, cap_K, seed))
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
