"""Does the law describe the runs? A test of lack of fit, with its verdict in words.

Two sources say how large the noise is. Runs repeated at the same inputs give pure error (Draper & Smith
1998 §2.1). Without them, what the residuals have in common with smooth functions of the law's inputs is
set against what is left: the residuals are regressed on log N, log D, their squares, cubes and products,
after everything that a change of the law's own parameters could explain (the Gauss-Newton regression of
Davidson & MacKinnon 1993 §6.4), by an F test. Where the table has columns of words, such as the family of a
model, the residuals are regressed on their values too: runs of two kinds have no law in common.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from experiments.laws import cells, identify, intervals, solve
from lm.config.errors import number_of

LEVEL = 0.05  # below this p the law is said not to describe the runs
CLIP = 3.0  # robust standard deviations at which residuals are cut: one bad run is no trend
LEAST_SHARE = 0.02  # of a unit trend that the law's own parameters must leave for it to be tested
SPARE_ROWS = 5  # rows that must remain to estimate the noise
FLIPS = 999  # sign flips of whole clusters, where rows of one run share their noise
# Values of a column of words, and runs of each, for it to be tested.
MOST_KINDS, LEAST_OF_KIND = 8, 4
SAME = 1e-6  # relative difference of inputs below which two runs repeat each other


@dataclasses.dataclass(frozen=True)
class LackOfFit:
  """The verdict on a law's form.

  Attributes:
    verdict: "fails", "passes" or "not tested".
    p: the smaller of the tests' p values times the number of tests; None where not tested.
    tests: {name: (F, dof, dof of noise, p)}, of "trend", "repeats" and "by COLUMN".
    misfit: rms of the trend in the residuals beyond what noise gives, of the residual's unit.
    visible: rms misfit that such a test would have seen in half of all cases.
    trends: what the residuals follow, strongest first.
    text: one sentence.
  """

  verdict: str
  p: float | None
  tests: dict[str, tuple[float, int, int, float]]
  misfit: float
  visible: float
  trends: tuple[str, ...]
  text: str

  @property
  def fails(self) -> bool:
    return self.verdict == "fails"

  @property
  def kind(self) -> str | None:
    """The column of words that the residuals follow most clearly, where the law fails by it."""
    strongest = min(self.tests, key=lambda name: self.tests[name][3], default="")
    return strongest.removeprefix("by ") if self.fails and strongest.startswith("by ") else None


def lack_of_fit(
  problem: solve.Problem,
  data: intervals.Data,
  theta: np.ndarray,
  texts: Mapping[str, np.ndarray] = MappingProxyType({}),
) -> LackOfFit:
  """The tests at a fit `theta` of `data`, and their verdict.

  Args:
    texts: {column: [n] text} of the same rows; those that hold numbers do not count.
  """
  law, root = problem.law, np.sqrt(data.w)
  resid = data.y - intervals.predict(law, theta, data.x)
  jac = identify.jacobian(problem, data.x, theta)[0]
  usable = np.isfinite(jac).all() and np.isfinite(resid).all()
  tests, trend, noise = {}, (0.0, ()), 0.0
  kinds = {}
  if usable:
    found = _trend(data, resid, jac, root)
    if found is not None:
      tests["trend"], trend, noise = found
    repeats = _repeats(data, resid, problem.n_free)
    if repeats is not None:
      tests["repeats"] = repeats
    for name, column in texts.items():
      found = _by_kind(column, data, resid, jac, root, law.link == "log")
      if found is not None:
        tests[f"by {name}"], misfit, words = found
        kinds[f"by {name}"] = (misfit, (f"{name} ({words})",))
  if not tests:
    text = f"lack of fit not tested: {number_of(data.n, 'run')} cannot tell a trend from noise"
    return LackOfFit("not tested", None, {}, 0.0, float("nan"), (), text)
  p = min(1.0, len(tests) * min(t[3] for t in tests.values()))
  strongest = min(tests, key=lambda name: tests[name][3])
  misfit, trends = kinds.get(strongest, trend)
  f, k, dof, _ = tests[strongest]
  said = f"F = {f:.3g} on {k} and {dof}, p = {p:.2g}"
  unit = (lambda v: f"{v:.2%} of the {law.target}") if law.link == "log" else (lambda v: f"{v:.3g}")
  trend_dof = tests["trend"][1] if "trend" in tests else k
  visible = (
    float(np.sqrt(2 * max(trend_dof, 1)) * noise / np.sqrt(data.n)) if noise else float("nan")
  )
  if p < LEVEL:
    follows = f"; the residuals follow {' and '.join(trends)}" if trends else ""
    text = (
      f"the law does not describe these runs ({said}): it is off by {unit(misfit)} (rms) beyond the "
      f"noise{follows}; do not extrapolate with it"
    )
    return LackOfFit("fails", p, tests, misfit, visible, trends, text)
  hidden = f"; a misfit of {unit(visible)} (rms) could have stayed unseen" if noise else ""
  text = f"no lack of fit found ({said}){hidden}"
  return LackOfFit("passes", p, tests, misfit, visible, trends, text)


def _trend(data, resid, jac, root):
  """((F, k, dof, p), (rms misfit, names of trends), noise) or None with too few rows."""
  from scipy.stats import f as f_law

  n, free = jac.shape
  q, left = _left(resid, jac, root)
  for order in (3, 2):
    names, z = basis(data.x, order)
    z = root[:, None] * z
    z = z / np.linalg.norm(z, axis=0)
    z = z - q @ (q.T @ z)
    u, sizes, _ = np.linalg.svd(z, full_matrices=False)
    u = u[:, sizes > LEAST_SHARE]
    k, units = u.shape[1], data.n_clusters
    dof = n - free - k
    if k and dof >= SPARE_ROWS and units - free - k >= SPARE_ROWS - 3:
      break
  else:
    return None
  explained = ((u.T @ left) ** 2).sum()
  rest = max(left @ left - explained, 1e-300)
  if left @ left <= (1e-10 * max(np.abs(data.y).max(), 1.0)) ** 2 * n:
    return (0.0, k, dof, 1.0), (0.0, ()), 0.0  # rounding errors only
  stat = explained / k / (rest / dof)
  p = float(f_law.sf(stat, k, dof))
  if data.clustered:
    p = _flipped(data.clusters, left, q, u, k, dof, stat)
  misfit = np.sqrt(max(explained - k * rest / dof, 0.0) / n)
  share = (z.T @ left) ** 2 / np.maximum((z**2).sum(0), 1e-12) / (left @ left)
  share = np.where((z**2).sum(0) > LEAST_SHARE**2, share, 0.0)
  strongest = tuple(names[i] for i in np.argsort(-share)[:2] if share[i] > 0.1)
  return (float(stat), k, dof, p), (float(misfit), strongest), float(np.sqrt(rest / dof))


def _left(resid, jac, root) -> tuple[np.ndarray, np.ndarray]:
  """(q, residuals [n] without what a change of the law's parameters, spanned by q [n, free], explains)."""
  spread = intervals.robust_sd(resid * root)
  clipped = np.clip(resid * root, -CLIP * spread, CLIP * spread)
  if not spread > 1e-9:
    clipped = resid * root  # an exact fit, or most rows fitted exactly
  q, _ = np.linalg.qr(root[:, None] * jac / np.maximum(np.linalg.norm(jac, axis=0), 1e-300))
  return q, clipped - q @ (q.T @ clipped)


def _by_kind(column, data, resid, jac, root, is_log):
  """((F, k, dof, p), rms misfit, words) of the residuals by the values of a column; None where not tested."""
  from scipy.stats import f as f_law

  values, member = np.unique(column, return_inverse=True)
  if not 2 <= len(values) <= MOST_KINDS or all(np.isfinite(cells.number(v)) for v in values if v):
    return None
  _, unit = np.unique(data.clusters, return_inverse=True)
  units = [len(np.unique(unit[member == i])) for i in range(len(values))]
  if min(units) < LEAST_OF_KIND:
    return None
  q, left = _left(resid, jac, root)
  if left @ left <= (1e-10 * max(np.abs(data.y).max(), 1.0)) ** 2 * data.n:
    return None
  z = root[:, None] * (member[:, None] == np.arange(1, len(values)))
  z = z / np.linalg.norm(z, axis=0)
  z = z - q @ (q.T @ z)
  u, sizes, _ = np.linalg.svd(z, full_matrices=False)
  u = u[:, sizes > LEAST_SHARE]
  k, dof = u.shape[1], data.n - jac.shape[1] - u.shape[1]
  if not k or dof < SPARE_ROWS or data.n_clusters - jac.shape[1] - k < SPARE_ROWS - 3:
    return None
  explained = ((u.T @ left) ** 2).sum()
  rest = max(left @ left - explained, 1e-300)
  stat = explained / k / (rest / dof)
  p = float(f_law.sf(stat, k, dof))
  if data.clustered:
    p = _flipped(data.clusters, left, q, u, k, dof, stat)
  means = [np.average(resid[member == i], weights=data.w[member == i]) for i in range(len(values))]
  shown = [f"{np.expm1(m):+.2%}" if is_log else f"{m:+.3g}" for m in means]
  words = ", ".join(f"{value or 'none'} {mean}" for value, mean in zip(values, shown, strict=True))
  misfit = float(np.sqrt(max(explained - k * rest / dof, 0.0) / data.n))
  return (float(stat), k, dof, p), misfit, words


def _flipped(clusters, left, q, u, k, dof, stat) -> float:
  """p of the F statistic when the signs of whole clusters are drawn anew (wild cluster bootstrap:
  Cameron, Gelbach & Miller 2008): rows of one run need not be independent."""
  _, member = np.unique(clusters, return_inverse=True)
  signs = np.random.default_rng(0).choice([-1.0, 1.0], (FLIPS, member.max() + 1))[:, member]
  grown = left / np.sqrt(np.maximum(1 - (q**2).sum(1), 0.1))
  draws = signs * grown
  draws = draws - (draws @ q) @ q.T
  explained = ((draws @ u) ** 2).sum(1)
  rest = np.maximum((draws**2).sum(1) - explained, 1e-300)
  return float((1 + (explained / k / (rest / dof) >= stat).sum()) / (FLIPS + 1))


def basis(x: dict[str, np.ndarray], order: int) -> tuple[list[str], np.ndarray]:
  """(names, columns [n, K]) of products of the inputs' logs up to `order`, in standard units."""
  logs = {}
  for name, values in x.items():
    log = np.log(values)
    if log.std() > 1e-9:
      logs[f"log {name}"] = (log - log.mean()) / log.std()
  names, columns = ["a constant"], [np.ones(len(next(iter(x.values()))))]
  level = [((), columns[0])]
  keys = list(logs)
  for _ in range(order):
    grown = []
    for parts, column in level:
      for i in range(parts[-1] if parts else 0, len(keys)):
        grown.append(((*parts, i), column * logs[keys[i]]))
    names += [_product([keys[i] for i in parts]) for parts, _ in grown]
    columns += [column for _, column in grown]
    level = grown
  return names, np.stack(columns, axis=1)


def _product(names: list[str]) -> str:
  powers = {name: names.count(name) for name in names}
  short = lambda name: name.replace("n_params", "N").replace("n_tokens", "D").replace("flops", "C")
  return " x ".join(short(name) if k == 1 else f"({short(name)})^{k}" for name, k in powers.items())


def _repeats(data, resid, n_free):
  """(F, dof, dof of pure error, p) from runs at the same inputs, or None where there are none.

  Rows of one cluster are one run: their mean counts once.
  """
  from scipy.stats import f as f_law

  place = np.round(np.log(np.stack(list(data.x.values()))) / SAME).astype(np.int64)
  _, where = np.unique(place, axis=1, return_inverse=True)
  where = where.ravel()
  _, unit = np.unique(np.stack([where, data.clusters]), axis=1, return_inverse=True)
  unit = unit.ravel()
  weight = np.bincount(unit, data.w)
  y = np.bincount(unit, data.w * resid) / weight
  place_of = np.zeros(len(y), int)
  place_of[unit] = where
  points = place_of.max() + 1
  error_dof, lack_dof = len(y) - points, points - n_free
  if error_dof < 2 or lack_dof < 1 or (data.clustered and data.n_clusters < len(y)):
    return None
  mean = np.bincount(place_of, weight * y) / np.bincount(place_of, weight)
  within = (weight * (y - mean[place_of]) ** 2).sum()
  between = (np.bincount(place_of, weight) * mean**2).sum()
  if within <= 0:
    return None  # copies of one run, not repeats of it
  stat = between / lack_dof / (within / error_dof)
  return float(stat), lack_dof, error_dof, float(f_law.sf(stat, lack_dof, error_dof))


def windows(problem, data, theta, scale: np.ndarray) -> np.ndarray:
  """[W, P] fits without the lowest and without the highest third of the runs by `scale` [n]: how far a
  law that does not describe its runs moves with the range it is fitted to."""
  low, high = np.quantile(scale, [1 / 3, 2 / 3])
  keep = np.stack([scale > low, scale < high]).astype(np.float64)
  enough = [(k * (data.w > 0)).sum() > problem.n_free for k in keep]
  if not any(enough):
    return np.zeros((0, len(theta)))
  fits = intervals.refit(problem, data, theta, weights=keep[enough])
  return fits.theta[~intervals.failed(fits)]


def width_against_squares(data: intervals.Data, resid: np.ndarray) -> float:
  """How much wider than least squares' the intervals of this Huber threshold are on these residuals.

  sqrt(E[psi^2] / E[psi']^2 / Var[r]): 1.25 for a threshold near 0 (least absolute deviations) and normal
  noise, below 1 where the noise has heavy tails.
  """
  psi = lambda r: np.clip(r, -data.delta, data.delta)
  width = 1.06 * intervals.robust_sd(resid) * data.n**-0.2
  slope = ((psi(resid + width) - psi(resid - width)) / (2 * width)).mean()
  return float(np.sqrt((psi(resid) ** 2).mean()) / max(slope, 1e-300) / max(resid.std(), 1e-300))
