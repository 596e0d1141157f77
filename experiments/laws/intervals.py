"""Intervals for fitted laws: bootstraps, delta method, profiles, likelihood ratios, AIC.

All work in working coordinates (log for scales), where estimates are closest to normal, and are turned
into printed values at the end. The likelihood behind AIC and ratios is the density the objective
implies: exp(-Huber_delta(r) / s) / Z with its scale s fitted; profiles need no density.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.laws import forms, solve

LEFT_OUT = 1000  # jackknife fits at most


@dataclasses.dataclass(frozen=True)
class Data:
  """What one fit used: columns [n], targets [n] (log where the law's link is log), and the loss."""

  x: dict[str, np.ndarray]
  y: np.ndarray
  delta: float
  clusters: np.ndarray  # [n] rows of one run share a number: they are resampled together
  weights: np.ndarray | None = None  # [n] of each row's loss, mean 1; None: all alike

  @property
  def n(self) -> int:
    return len(self.y)

  @property
  def w(self) -> np.ndarray:
    return np.ones(self.n) if self.weights is None else self.weights

  @property
  def n_clusters(self) -> int:
    return len(np.unique(self.clusters))

  @property
  def clustered(self) -> bool:
    """Whether any two rows are resampled together."""
    return self.n_clusters < self.n


def predict(law: forms.Law, theta: np.ndarray, x: dict[str, np.ndarray]) -> np.ndarray:
  """Predictions [n, R] (log where link is log) of parameters [R, P] or [n] of [P]."""
  with jax.enable_x64(True):
    columns = {k: jnp.asarray(v, jnp.float64)[:, None] for k, v in x.items()}
    out = law.predict(jnp.asarray(np.atleast_2d(theta).T)[:, None, :], columns)
  return np.asarray(out)[:, 0] if np.ndim(theta) == 1 else np.asarray(out)


def evaluate(quantities: Callable, theta: np.ndarray) -> np.ndarray:
  """Quantities [R, Q] of parameters [R, P]."""
  with jax.enable_x64(True):
    out = quantities(jnp.asarray(np.atleast_2d(theta).T)[:, None, :])
  return np.asarray(out)[:, 0].T


def jacobian(fn: Callable, theta: np.ndarray) -> np.ndarray:
  """d fn / d theta [Q, P] for fn over [P, 1, 1] arrays."""
  with jax.enable_x64(True):
    flat = lambda t: jnp.ravel(fn(t[:, None, None]))
    return np.asarray(jax.jacfwd(flat)(jnp.asarray(theta, jnp.float64)))


# ---------------------------------------------------------------------------------- bootstrap


def case_weights(clusters: np.ndarray, n_boot: int, seed: int) -> np.ndarray:
  """[n_boot, n] row counts of samples drawn with replacement, whole clusters at a time."""
  rng = np.random.default_rng(seed)
  _, member = np.unique(clusters, return_inverse=True)
  n_clusters = member.max() + 1
  draws = rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=n_boot)
  return draws[:, member].astype(np.float64)


def noise_targets(fitted: np.ndarray, resid: np.ndarray, n_free: int, n_boot: int, seed: int):
  """[n_boot, n] targets: the fit plus residuals drawn with replacement, inflated by sqrt(n/(n-F)).

  Draws are smoothed at their own variance: a nearly LAD fit passes through F runs exactly, and the atom
  of zero residuals would make every refit do the same.
  """
  rng = np.random.default_rng(seed)
  n = len(resid)
  centred = (resid - resid.mean()) * np.sqrt(n / max(n - n_free, 1))
  width = 1.06 * n**-0.2  # in standard deviations
  draws = centred[rng.integers(0, n, (n_boot, n))]
  kernel = width * centred.std() * rng.standard_normal((n_boot, n))
  return fitted + (draws + kernel) / np.sqrt(1 + width**2)


def refit(
  problem: solve.Problem, data: Data, best: np.ndarray, *, y=None, weights=None
) -> solve.Solution:
  """Fits variants of `data` (rows of targets `y`, of counts `weights`, or of both) from the optimum
  `best`, [P] or one row a variant, then once more from another variant's optimum, and keeps the lower: a
  sample in another basin is not missed."""
  n = len(y if y is not None else weights)
  y = data.y if y is None else y
  weights = data.weights if weights is None else weights * data.w
  resid = np.abs(np.atleast_2d(y).T - predict(problem.law, np.atleast_2d(best), data.x))
  near = 4 * float(np.median(resid)) + data.delta
  run = lambda starts: solve.minimise(
    problem, data.x, y, starts, delta=data.delta, weights=weights, first_delta=near
  )
  starts = np.broadcast_to(best, (n, np.shape(best)[-1]))
  first = run(starts)
  second = run(np.where(np.isfinite(first.theta), first.theta, starts)[np.roll(np.arange(n), 1)])
  both = [np.where(np.isfinite(s.objective), s.objective, np.inf) for s in (first, second)]
  pick = both[1] < both[0]
  choose = lambda a, b: np.where(pick.reshape(-1, *(1,) * (a.ndim - 1)), b, a)
  return solve.Solution(
    *(choose(getattr(first, f.name), getattr(second, f.name)) for f in dataclasses.fields(first))
  )


def jackknife(problem: solve.Problem, data: Data, best: np.ndarray) -> np.ndarray:
  """[clusters, P] fits that leave each cluster out in turn.

  Of more than LEFT_OUT clusters, that many groups of them drawn at random: the skewness that `bca` takes
  from them is that of single clusters (Efron & Tibshirani 1993 §11.5).
  """
  names, member = np.unique(data.clusters, return_inverse=True)
  groups = min(len(names), LEFT_OUT)
  of_cluster = np.arange(len(names)) % groups
  if groups < len(names):
    of_cluster = np.random.default_rng(0).permutation(of_cluster)
  weights = (of_cluster[member] != np.arange(groups)[:, None]).astype(np.float64)
  return refit(problem, data, best, weights=weights).theta


def failed(fits: solve.Solution) -> np.ndarray:
  """[R] bool: refits that came to no optimum. Their parameters say nothing and are counted out."""
  return ~(np.isfinite(fits.objective) & np.isfinite(fits.theta).all(1))


def percentile(samples: np.ndarray, level: float, n_clusters: int | None = None) -> np.ndarray:
  """[2, Q] equal-tailed limits of samples [R, Q]; nan samples (refits that failed) are left out.

  `n_clusters`: with few resampled units G, percentiles are too narrow by sqrt((G - 1) / G) and by a normal
  for a t quantile, so the tail is Phi(-sqrt(G / (G - 1)) t_{G-1}) (Hesterberg 2015, arXiv:1411.5279 §4.3).
  """
  from scipy.stats import norm, t

  tail = (1 - level) / 2
  if n_clusters is not None:
    g = max(n_clusters, 2)
    tail = norm.cdf(np.sqrt(g / (g - 1)) * t.ppf(tail, g - 1))
  known = np.isfinite(samples).any(0)
  limits = np.full((2, samples.shape[1]), np.nan)
  limits[:, known] = np.nanquantile(samples[:, known], [tail, 1 - tail], axis=0)
  return limits


def bca(
  samples: np.ndarray, estimate: np.ndarray, left_out: np.ndarray, level: float
) -> np.ndarray:
  """[2, Q] bias-corrected accelerated limits (Efron 1987) from jackknife values `left_out` [m, Q].

  Refits that failed (nan) are no samples: neither counted below the estimate nor in the total.
  """
  from scipy.stats import norm

  limits = np.full((2, len(estimate)), np.nan)
  for q, (at, draws, out) in enumerate(zip(estimate, samples.T, left_out.T, strict=True)):
    draws, out = draws[np.isfinite(draws)], out[np.isfinite(out)]
    if not len(draws) or not np.isfinite(at):
      continue
    n = len(draws)
    below = (draws < at).sum() + 0.5 * (draws == at).sum()
    z0 = norm.ppf(np.clip(below / n, 0.5 / n, 1 - 0.5 / n))
    off = out.mean() - out if len(out) else np.zeros(1)
    spread = np.sqrt((off**2).sum())
    # a quantity the law fixes (a = 1/2 under a shared exponent) has no spread and needs no correction
    varies = spread > 1e-12 * (1 + abs(at))
    accel = ((off / spread) ** 3).sum() / 6 if varies else 0.0
    z = z0 + norm.ppf([(1 - level) / 2, (1 + level) / 2])
    limits[:, q] = np.quantile(draws, norm.cdf(z0 + z / np.maximum(1 - accel * z, 1e-3)))
  return limits


FAR_LOG, FAR = 30.0, 100.0  # e^30: a limit that far from its estimate is no limit


def unbounded(limits: np.ndarray, at: np.ndarray, is_log: np.ndarray) -> np.ndarray:
  """Limits [2, Q] in working coordinates with -inf or inf where they lie out of all reach of `at` [Q]."""
  off = limits - at
  with np.errstate(invalid="ignore"):
    far = np.abs(off) > np.where(is_log, FAR_LOG, FAR * (1 + np.abs(at)))
  return np.where(far, np.where(off > 0, np.inf, -np.inf), limits)


# ---------------------------------------------------------------------------------- delta method


@dataclasses.dataclass(frozen=True)
class Sandwich:
  """H^-1 (sum_g s_g s_g^T) H^-1 of the free working parameters, and what its degrees of freedom need."""

  problem: solve.Problem
  n: int
  clustered: bool
  bread: np.ndarray  # [F, F] H^-1
  scores: np.ndarray  # [G, F]
  plain: np.ndarray  # [F, F] covariance if every residual had the same variance
  # under equal noise d s_g / d residuals is `gains` at the rows of g, less gains J_g times H^-1 `pull`:
  members: list[np.ndarray]  # [G] rows of each cluster
  gains: list[np.ndarray]  # [G] of [F, rows of g]
  jac: np.ndarray  # [n, F]
  pull: np.ndarray  # [F, n] H^-1 J^T W psi'

  @property
  def cov(self) -> np.ndarray:
    """[P, P] covariance of the working parameters."""
    half = self.problem.expand @ self.bread @ self.scores.T
    return half @ half.T

  def dof(self, grad: np.ndarray) -> np.ndarray:
    """[Q] degrees of freedom of the t quantile for quantities of gradient [Q, P].

    n - F without clusters. With them Bell & McCaffrey 2002: (sum l)^2 / sum l^2 over the eigenvalues l
    of the covariance that the cluster terms have under equal, independent noise: a matrix of rank 2 F and a
    diagonal, so that its trace and norm need no [G, G].
    """
    n_free = len(self.bread)
    if not self.clustered:
      return np.full(len(grad), max(self.n - n_free, 1.0))
    own_FF = self.pull @ self.pull.T
    core = np.block([[own_FF, -np.eye(n_free)], [-np.eye(n_free), np.zeros((n_free, n_free))]])
    pairs = list(zip(self.members, self.gains, strict=True))
    out = []
    for g in grad @ self.problem.expand @ self.bread:
      at = [g @ gain for _, gain in pairs]
      common = np.stack([a @ self.jac[rows] for a, (rows, _) in zip(at, pairs, strict=True)])
      cross = np.stack([self.pull[:, rows] @ a for a, (rows, _) in zip(at, pairs, strict=True)])
      alone = np.array([a @ a for a in at])
      side = np.hstack([common, cross])  # gram = side core side^T + diag(alone)
      folded = core @ (side.T @ side)
      diagonal = np.einsum("gi,ij,gj->g", side, core, side)
      total = np.trace(folded @ folded) + (alone * (2 * diagonal + alone)).sum()
      trace = diagonal.sum() + alone.sum()
      out.append(trace**2 / total if total > 0 else len(pairs) - 1)
    return np.maximum(out, 1.0)


def sandwich(problem: solve.Problem, data: Data, theta: np.ndarray) -> Sandwich:
  """The sandwich at a fit. s_g = J_g^T W (I - H_gg)^-1 psi(r_g) over a cluster g, H = J H^-1 J^T W psi'.

  A cluster at the corner of the design pulls the fit towards itself, so its residuals say too little
  (MacKinnon & White 1985, HC3; Bell & McCaffrey 2002, CR3). psi' of each row is smoothed over the
  residuals' own width (Powell 1991), because at delta = 1e-3 few rows enter the exact second derivative.
  """
  law, resid, w = problem.law, data.y - predict(problem.law, theta, data.x), data.w
  with jax.enable_x64(True):
    columns = {k: jnp.asarray(v, jnp.float64) for k, v in data.x.items()}
    jac = np.asarray(jax.jacfwd(lambda t: law.predict(t, columns))(jnp.asarray(theta)))
  jac = jac @ problem.expand
  psi = lambda r: np.clip(r, -data.delta, data.delta)
  n, free = jac.shape
  width = 1.06 * robust_sd(resid) * n**-0.2
  slope = w * (psi(resid + width) - psi(resid - width)) / (2 * width)
  bread = _inverse((slope[:, None] * jac).T @ jac)
  _, member = np.unique(data.clusters, return_inverse=True)
  groups = [np.flatnonzero(member == g) for g in range(member.max() + 1)]
  clustered = len(groups) < n
  scores = np.zeros((len(groups), free))
  gains = []
  for g, rows in enumerate(groups):
    j = jac[rows]
    hat = j @ bread @ (slope[rows, None] * j).T
    pull = np.linalg.solve(np.eye(len(rows)) - _below_one(hat), np.eye(len(rows)))
    gain = (w[rows, None] * j).T @ pull
    scores[g] = gain @ psi(resid[rows])
    gains.append(gain)
  mean_slope = slope.sum() / w.sum()
  noise = (w * psi(resid) ** 2).sum() / w.sum() * n / max(n - free, 1)
  plain = _inverse((w[:, None] * jac).T @ jac) * noise / max(mean_slope, 1e-300) ** 2
  of_all = bread @ (slope[:, None] * jac).T
  return Sandwich(problem, n, clustered, bread, scores, plain, groups, gains, jac, of_all)


def robust_sd(resid: np.ndarray) -> float:
  """1.4826 MAD, which for normal noise is its standard deviation."""
  return float(1.4826 * np.median(np.abs(resid - np.median(resid))) + 1e-300)


def _inverse(matrix: np.ndarray) -> np.ndarray:
  """Pseudo-inverse of a symmetric matrix, scaled first: a scale and its exponent differ by log N."""
  size = np.sqrt(np.maximum(np.diag(matrix), 1e-300))
  scaled = matrix / np.outer(size, size)
  return np.linalg.pinv(scaled, rcond=1e-13, hermitian=True) / np.outer(size, size)


def _below_one(hat: np.ndarray, most: float = 0.9) -> np.ndarray:
  """A leverage block with its largest eigenvalue at most `most`: at 1 the others fit without it."""
  top = float(np.abs(np.linalg.eigvals(hat)).max())
  return hat * min(1.0, most / max(top, 1e-300))


def covariance(problem: solve.Problem, data: Data, theta: np.ndarray) -> np.ndarray:
  """[P, P] sandwich covariance of the working parameters."""
  return sandwich(problem, data, theta).cov


def delta_method(quantities, theta, found: Sandwich, level: float) -> tuple[np.ndarray, np.ndarray]:
  """([2, Q] limits, [Q] standard errors): estimate -+ t * se, se^2 = g^T cov g."""
  from scipy.stats import t

  grad = jacobian(quantities, theta)
  se = np.sqrt(np.maximum(np.einsum("qp,pr,qr->q", grad, found.cov, grad), 0.0))
  value, reach = evaluate(quantities, theta)[0], t.ppf((1 + level) / 2, found.dof(grad)) * se
  return np.stack([value - reach, value + reach]), se


# ---------------------------------------------------------------------------------- likelihood


def log_likelihood(objective: float, n: int, delta: float) -> float:
  """max over s of sum_i log(exp(-Huber_delta(r_i) / s) / Z(s)), in nats.

  Z(s) = sqrt(2 pi s) erf(delta / sqrt(2 s)) + (2 s / delta) exp(-delta^2 / (2 s)): normal for a large
  delta, Laplace for a small one.
  """
  from scipy.optimize import minimize_scalar
  from scipy.special import erf

  def cost(log_s):
    s = np.exp(log_s)
    inside = np.sqrt(2 * np.pi * s) * erf(delta / np.sqrt(2 * s))
    return n * np.log(inside + 2 * s / delta * np.exp(-(delta**2) / (2 * s))) + objective / s

  objective = max(objective, 1e-32 * n)  # an exact fit: residuals at rounding error
  guess = np.log(objective / n)
  return -float(minimize_scalar(cost, bounds=(guess - 5, guess + 5), method="bounded").fun)


def likelihood_ratio(small: tuple[float, int], big: tuple[float, int]) -> dict[str, float]:
  """Test of nested laws from (log likelihood, free parameters) each: 2 (l1 - l0) against chi^2.

  Raises:
    ValueError: the "big" law has no more parameters.
  """
  from scipy.stats import chi2

  dof = big[1] - small[1]
  if dof <= 0:
    raise ValueError(
      f"likelihood_ratio: {big[1]} against {small[1]} free parameters; give the larger second"
    )
  stat = max(2 * (big[0] - small[0]), 0.0)
  return {"statistic": stat, "dof": dof, "p": float(chi2.sf(stat, dof))}


def huber(resid: np.ndarray, delta: float) -> np.ndarray:
  """Huber_delta(r), elementwise."""
  size = np.abs(resid)
  return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


# Standard errors to which a profile is followed before it is given up.
REACHES = (5.0, 20.0, 80.0, 320.0)


def profile(
  problem: solve.Problem,
  quantities: Callable,
  data: Data,
  theta: np.ndarray,
  objective: float,
  level: float,
  points: int = 24,
) -> np.ndarray:
  """[2, Q] limits where the profile has risen as far as noise would take it; -+inf where it never does.

  Each quantity is pulled to goals around its estimate by a quadratic penalty, everything else refitted.
  A penalised optimum is the exact profile at the value it attains, whatever the stiffness. The rise of
  the objective is measured as a squared t: 2 rise E[psi'] / E[psi^2], which for least squares is the F
  test with its estimated noise, and holds for Huber losses whose implied density is not the residuals'
  (Heritier & Ronchetti 1994). With clusters it is scaled by the sandwich's variance, and its t has the
  sandwich's degrees of freedom.
  """
  from scipy.stats import t

  pinned = dataclasses.replace(problem, pin=quantities)
  found = sandwich(problem, data, theta)
  grad, at = jacobian(quantities, theta), evaluate(quantities, theta)[0]
  is_log = np.array([log for _, log, _ in quantities.labels])
  cov = problem.expand @ found.plain @ problem.expand.T
  se = np.sqrt(np.maximum(np.einsum("qp,pr,qr->q", grad, cov, grad), 1e-300))
  ratio = np.ones(len(at))
  if data.clustered:
    robust = np.einsum("qp,pr,qr->q", grad, found.cov, grad)
    ratio = se**2 / np.maximum(robust, 1e-300)
  # what the law or a fixed parameter makes constant is known exactly
  constant = se < 1e-9 * (1 + np.abs(at))
  limit = t.ppf((1 + level) / 2, found.dof(grad)) / np.sqrt(ratio)
  resid = data.y - predict(problem.law, theta, data.x)
  unit = _squared_t(data, resid, problem.n_free)
  near = 4 * float(np.median(np.abs(resid))) + data.delta
  slope = (grad @ cov) / se[:, None] ** 2
  known = {(q, side): [(at[q], 0.0)] for q in np.flatnonzero(~constant) for side in (-1, 1)}
  open_ = list(known)
  for reach in REACHES:
    if not open_:
      break
    offsets = reach * np.linspace(0, 1, points // 2 + 1)[1:]
    which = np.repeat([q for q, _ in open_], len(offsets))
    goal = at[which] + se[which] * (np.array([s for _, s in open_])[:, None] * offsets).ravel()
    stiff = np.eye(len(at))[which]
    out = solve.minimise(
      pinned,
      data.x,
      data.y,
      theta + slope[which] * (goal - at[which])[:, None],
      delta=data.delta,
      weights=data.weights,
      first_delta=near,
      pins=(stiff * (50 / unit / se[which] ** 2)[:, None], stiff * goal[:, None]),
    )
    value = evaluate(quantities, out.theta)[np.arange(len(which)), which]
    left = data.y[:, None] - predict(problem.law, out.theta, data.x)
    rise = (data.w[:, None] * huber(left, data.delta)).sum(0) - objective
    root = np.sqrt(np.maximum(rise * unit, 0.0))
    for i, key in enumerate(open_):
      mine = slice(i * len(offsets), (i + 1) * len(offsets))
      pairs = zip(value[mine], root[mine], strict=True)
      known[key] += [
        (v, d) for v, d in pairs if np.isfinite(v + d) and (v - at[key[0]]) * key[1] > 0
      ]
    open_ = [k for k in open_ if max(d for _, d in known[k]) < limit[k[0]]]
  limits = np.tile(np.where(constant, at, np.nan), (2, 1))
  for (q, side), pairs in known.items():
    v, d = np.array(sorted(pairs, key=lambda pair: abs(pair[0] - at[q]))).T
    over = np.flatnonzero(d >= limit[q])
    at_limit = side * np.inf
    if len(over):
      i = over[0]
      at_limit = np.interp(limit[q], d[i - 1 : i + 1], v[i - 1 : i + 1])
    limits[(side + 1) // 2, q] = at_limit
  return unbounded(limits, at, is_log)


def _squared_t(data: Data, resid: np.ndarray, n_free: int) -> float:
  """2 E[psi'] / E[psi^2]: what turns a rise of the objective into a squared t."""
  psi = lambda r: np.clip(r, -data.delta, data.delta)
  n, w = data.n, data.w
  width = 1.06 * robust_sd(resid) * n**-0.2
  slope = (w * (psi(resid + width) - psi(resid - width)) / (2 * width)).sum() / w.sum()
  noise = (w * psi(resid) ** 2).sum() / w.sum() * n / max(n - n_free, 1)
  return 2 * slope / max(noise, 1e-300)
