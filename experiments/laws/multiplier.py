"""The effective-compute multiplier of one recipe over another, from losses on one ladder of budgets.

Each recipe's loss follows L = E + K C^-gamma. The multiplier of B over A at budget C,

  m(C) = C_A(L_B(C)) / C,   L_A(C_A) = L_B(C),

is the compute that A needs for what B reaches with C, over C: 1.2 is worth 20 % more compute. What is
believed of E decides about it away from the budgets that were trained, so there are three treatments:
E shared by both recipes, E pinned to a given number, and E free for each.

Intervals invert an F test: a value is inside unless the best curves that obey it fit worse than the best
curves of all by more than F(1, nu) of the noise. So they are one-sided or without end where the runs set
no limit. Noise is the seeds': var(A) = var(B) = s^2 unless their ratio says otherwise, with correlation
rho between runs of one seed; where the curves miss the means by more than that (p < 0.05), intervals are
widened by the root of the mean square.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

TREATMENTS = ("shared", "pinned", "free")  # of E
LEAST_RUNGS = {"shared": 3, "pinned": 2, "free": 3}
SETTLED = 1e-7  # a step that promises less of the sum of squares is the last
PRECISE = 1e-3  # of an interval's end, relative
LIMIT = np.log(1e6)  # multipliers beyond are no limit at all
STEPS, HALVINGS = 60, 30  # of the solver; of an interval's ends
STARTS = tuple((e, g) for e in (0.3, 0.8, 0.97) for g in (0.08, 0.25, 0.7))  # E / least loss; gamma


@dataclasses.dataclass(frozen=True)
class Noise:
  """Seed noise of a pair of recipes: standard deviations of A and B, correlation, degrees of freedom."""

  sd: tuple[float, float]
  rho: float
  df: float

  @property
  def sd_diff(self) -> float:
    """Standard deviation of the difference of two runs of one seed."""
    a, b = self.sd
    return float(np.sqrt(max(a * a + b * b - 2 * self.rho * a * b, 0.0)))


@dataclasses.dataclass(frozen=True)
class Ladder:
  """Means of A and B on J budgets.

  Attributes:
    log_c_JR: log of compute (FLOPs or seconds), [J, 2].
    mean_JR: mean final loss, [J, 2].
    cov_JRR: covariance of these means, [J, 2, 2].
    df: degrees of freedom of the noise in it; inf where it is given.
  """

  log_c_JR: np.ndarray
  mean_JR: np.ndarray
  cov_JRR: np.ndarray
  df: float


@dataclasses.dataclass(frozen=True)
class Multiplier:
  """m at one budget, or another number of the curves. An end of the interval may be infinite."""

  value: float
  interval: tuple[float, float]
  p: float  # of m = 1 (of a slope: of 0)


def pair_noise(a_JS: Sequence[dict[int, float]], b_JS: Sequence[dict[int, float]]) -> Noise | None:
  """Noise pooled over budgets; None where no budget has two seeds.

  Args:
    a_JS: {seed: loss} of A at each budget; b_JS: of B.
  """
  sums, dfs, products, paired = [0.0, 0.0], [0, 0], 0.0, 0
  for a, b in zip(a_JS, b_JS, strict=True):
    for i, one in enumerate((a, b)):
      x = np.array(list(one.values()))
      if len(x) > 1:
        sums[i] += float(((x - x.mean()) ** 2).sum())
        dfs[i] += len(x) - 1
    both = sorted(set(a) & set(b))
    if len(both) > 1:
      x, y = np.array([a[s] for s in both]), np.array([b[s] for s in both])
      products += float(((x - x.mean()) * (y - y.mean())).sum())
      paired += len(both) - 1
  if not any(dfs):
    return None
  from scipy.stats import f

  variances = [s / d if d else None for s, d in zip(sums, dfs, strict=True)]
  pooled = sum(sums) / sum(dfs)
  known = [v if v is not None else pooled for v in variances]
  unlike = False
  if all(dfs) and min(known) > 0:
    ratio = known[0] / known[1]
    unlike = bool(2 * min(f.sf(ratio, *dfs), f.cdf(ratio, *dfs)) < 0.05)
  used = known if unlike else [pooled, pooled]
  scale = float(np.sqrt(used[0] * used[1]))
  rho = float(np.clip(products / paired / scale, -0.99, 0.99)) if paired and scale > 0 else 0.0
  df = float(paired or min(d for d in dfs if d))
  return Noise((float(np.sqrt(used[0])), float(np.sqrt(used[1]))), rho, df)


def make_ladder(
  log_c_JR: np.ndarray,
  a_JS: Sequence[dict[int, float]],
  b_JS: Sequence[dict[int, float]],
  noise: Noise,
) -> Ladder:
  """Means, and their covariance: var / n, rho sd_A sd_B n_both / (n_A n_B)."""
  means, covs = [], []
  for a, b in zip(a_JS, b_JS, strict=True):
    means.append([np.mean(list(a.values())), np.mean(list(b.values()))])
    both = len(set(a) & set(b))
    across = noise.rho * noise.sd[0] * noise.sd[1] * both / (len(a) * len(b))
    covs.append([[noise.sd[0] ** 2 / len(a), across], [across, noise.sd[1] ** 2 / len(b)]])
  return Ladder(np.asarray(log_c_JR, float), np.array(means), np.array(covs), noise.df)


class Curves:
  """Both recipes' curves fitted to a batch of ladders of one shape.

  Args:
    ladders: at least one; all with the same number of budgets.
    treatment: a key of TREATMENTS.
    pin: E where it is pinned.

  Raises:
    ValueError: fewer budgets than LEAST_RUNGS.
  """

  def __init__(self, ladders: Sequence[Ladder], treatment: str, pin: float | None = None):
    rungs = len(ladders[0].mean_JR)
    if rungs < LEAST_RUNGS[treatment]:
      raise ValueError(
        f"budgets={rungs}: curves with E {treatment} need at least {LEAST_RUNGS[treatment]}; add one"
      )
    if (treatment == "pinned") != (pin is not None):
      raise ValueError(f"pin={pin}: goes with E pinned, and only with it")
    self.treatment, self.pin = treatment, pin
    log_c = np.stack([l.log_c_JR for l in ladders])
    self.center = log_c.mean((1, 2))  # [P]
    self.u = log_c - self.center[:, None, None]
    self.y = np.stack([l.mean_JR for l in ladders])
    cov = np.stack([l.cov_JRR for l in ladders])
    self.white = np.linalg.inv(np.linalg.cholesky(cov))
    self.df = np.array([l.df for l in ladders])
    self.n_params = {"shared": 5, "pinned": 4, "free": 6}[treatment]
    self.theta, self.least = self._fit()
    self._widen(rungs)

  # ---- The curves. theta = (log K_A, log K_B, log gamma_A, log gamma_B, log E ...) -----------------

  def _floor(self, theta):
    """E of A and B, [P, 2], and their derivatives in theta's last entries."""
    if self.treatment == "pinned":
      return np.full((len(theta), 2), self.pin)
    e = np.exp(theta[:, 4:])
    return np.repeat(e, 2, axis=1) if self.treatment == "shared" else e

  def _one(self, theta, recipe, u):
    """(loss, its gradient) of a recipe at u [P, ...]; gradient [P, ..., parameters]."""
    extra = (slice(None), *[None] * (u.ndim - 1))
    log_k, gamma = theta[:, recipe][extra], np.exp(theta[:, 2 + recipe])[extra]
    part = np.exp(np.clip(log_k - gamma * u, -200, 50))
    floor = self._floor(theta)[:, recipe][extra]
    grad = np.zeros((*part.shape, theta.shape[1]))
    grad[..., recipe] = part
    grad[..., 2 + recipe] = -gamma * u * part
    if self.treatment == "shared":
      grad[..., 4] = floor
    elif self.treatment == "free":
      grad[..., 4 + recipe] = floor
    return floor + part, grad

  def _free(self, theta, rows):
    """(losses [P, J, 2], gradients [P, J, 2, parameters]) of both curves."""
    pairs = [self._one(theta, i, self.u[rows][:, :, i]) for i in (0, 1)]
    return np.stack([p[0] for p in pairs], -1), np.stack([p[1] for p in pairs], -2)

  def _residuals(self, theta, rows, curves=None):
    """Whitened residuals [P, 2 J] and Jacobian [P, 2 J, parameters]; `curves` stands for `_free`."""
    loss, grad = (curves or self._free)(theta, rows)
    white = self.white[rows]
    r = (white @ (loss - self.y[rows])[..., None])[..., 0]
    n = len(r)
    return r.reshape(n, -1), (white @ grad).reshape(n, -1, theta.shape[1])

  def _solve(self, theta, rows, curves=None):
    """Levenberg-Marquardt on every problem at once: (theta, sum of squares)."""
    full = lambda theta: self._residuals(theta, rows, curves)
    theta, damping = theta.copy(), np.full(len(theta), 1e-3)
    r, jac = full(theta)
    cost, going = (r**2).sum(1), np.ones(len(theta), bool)
    eye = np.eye(theta.shape[1])
    for _ in range(STEPS):
      transposed = np.swapaxes(jac, 1, 2)
      hess = transposed @ jac
      scale = np.einsum("pkk->pk", hess)
      hess = hess + eye * (damping[:, None] * scale + 1e-12)[:, None, :]
      descent = -(transposed @ r[..., None])
      step = np.linalg.solve(hess, descent)[..., 0]
      gain = (step * descent[..., 0]).sum(1)  # what the linear model promises
      tried = theta + np.clip(step, -2, 2)
      tried[:, 2:4] = np.clip(tried[:, 2:4], np.log(1e-3), np.log(5.0))
      tried[:, 4:] = np.clip(tried[:, 4:], -30, 10)
      new_r, new_jac = full(tried)
      new_cost = (new_r**2).sum(1)
      better = going & (new_cost < cost)
      going &= ~(
        (gain < SETTLED * (1 + cost)) | (better & (cost - new_cost < SETTLED * (1 + cost)))
      )
      theta = np.where(better[:, None], tried, theta)
      r = np.where(better[:, None], new_r, r)
      jac = np.where(better[:, None, None], new_jac, jac)
      cost = np.where(better, new_cost, cost)
      damping = np.clip(np.where(better, damping * 0.2, damping * 6), 1e-12, 1e12)
      going &= damping < 1e9
      if not going.any():
        break
    return theta, cost

  def _fit(self):
    rows = np.arange(len(self.y))
    least = self.y.min((1, 2))
    best, cost = np.zeros((len(rows), self.n_params)), np.full(len(rows), np.inf)
    for fraction, gamma in STARTS:
      floor = fraction * least if self.pin is None else np.full(len(rows), self.pin)
      reducible = np.maximum(self.y.mean(1) - floor[:, None], 1e-3)
      theta = np.full((len(rows), self.n_params), np.log(gamma))
      theta[:, :2] = np.log(reducible)
      if self.pin is None:
        theta[:, 4:] = np.log(floor)[:, None]
      theta, found = self._solve(theta, rows)
      best = np.where((found < cost)[:, None], theta, best)
      cost = np.minimum(found, cost)
    return best, cost

  def _widen(self, rungs):
    """Where the curves miss the means by more than the noise, noise is what they miss them by."""
    from scipy.stats import chi2, f

    spare = 2 * rungs - self.n_params
    self.misfit = np.ones(len(self.y))  # p of lack of fit
    self.wider = np.ones(len(self.y))
    if spare < 1:
      return
    mean_square = self.least / spare
    known = np.isfinite(self.df)
    self.misfit = np.where(
      known, f.sf(mean_square, spare, np.where(known, self.df, 1)), chi2.sf(self.least, spare)
    )
    missed = self.misfit < 0.05
    self.wider = np.where(missed, np.maximum(mean_square, 1), 1.0)
    self.df = np.where(missed, np.minimum(self.df, spare), self.df)

  # ---- Numbers of the curves ----------------------------------------------------------------------

  def multiplier(self, log_c: np.ndarray, level: float = 0.95) -> list[Multiplier]:
    """m at budgets log_c [P], one for each ladder, with intervals."""
    u0 = np.asarray(log_c, float) - self.center

    def bound(value):
      """Curves with m = exp(value): K_B follows from L_B(C) = L_A(m C)."""

      def curves(theta, rows):
        loss, grad = self._free(theta, rows)
        reached, grad_reached = self._one(theta, 0, u0[rows] + value)
        floor, gamma = self._floor(theta)[:, 1:], np.exp(theta[:, 3:4])
        away = self.u[rows][:, :, 1] - u0[rows][:, None]
        part = np.exp(np.clip(-gamma * away, -50, 50))
        over = reached[:, None] - floor
        loss[:, :, 1] = floor + over * part
        grad[:, :, 1] = part[..., None] * grad_reached[:, None]
        grad[:, :, 1, 3] += -gamma * away * over * part
        if self.treatment != "pinned":
          grad[:, :, 1, -1] += (1 - part) * floor
        return loss, grad

      return curves

    found = self._intervals(bound, self._log_m(self.theta, u0), level)
    with np.errstate(over="ignore"):
      return [
        Multiplier(float(np.exp(v)), (float(np.exp(lo)), float(np.exp(hi))), float(p))
        for v, lo, hi, p in found
      ]

  def slope(self, level: float = 0.95) -> list[Multiplier]:
    """s in m ~ C^s at the ladder's middle: 1 + s = gamma_B (L_B - E_B) / (gamma_A (L_B - E_A))."""

    def bound(value):
      """Curves with that slope: gamma_B follows."""

      def curves(theta, rows):
        theta, k_b = theta.copy(), np.exp(theta[:, 1])
        floor = self._floor(theta)
        ratio = np.maximum(1 + (floor[:, 1] - floor[:, 0]) / k_b, 1e-3)
        over = np.maximum(1 + value, 1e-3)
        theta[:, 3] = theta[:, 2] + np.log(over * ratio)
        loss, grad = self._free(theta, rows)
        by_gamma = grad[:, :, 1, 3].copy()
        grad[:, :, 1, 3] = 0
        grad[:, :, 1, 2] += by_gamma
        if self.treatment == "free":
          part = by_gamma * ((ratio > 1e-3) / ratio / k_b)[:, None]
          grad[:, :, 1, 1] -= part * (floor[:, 1] - floor[:, 0])[:, None]
          grad[:, :, 1, 4] -= part * floor[:, :1]
          grad[:, :, 1, 5] += part * floor[:, 1:]
        return loss, grad

      return curves

    floor, k_b = self._floor(self.theta), np.exp(self.theta[:, 1])
    left = k_b + floor[:, 1] - floor[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
      value = np.exp(self.theta[:, 3] - self.theta[:, 2]) * k_b / left - 1
    found = self._intervals(bound, np.where(left > 0, value, np.inf), level)
    return [Multiplier(float(v), (float(lo), float(hi)), float(p)) for v, lo, hi, p in found]

  def _log_m(self, theta, u0):
    """log m in closed form; infinite where A never reaches what B does."""
    b, _ = self._one(theta, 1, u0)
    left = b - self._floor(theta)[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
      value = (theta[:, 0] - np.log(left)) / np.exp(theta[:, 2]) - u0
    return np.where(left > 0, value, np.inf)

  def standard_error(self, log_c: np.ndarray, more: np.ndarray | None = None) -> np.ndarray:
    """Standard error of log m [P] by the delta method; `more` [J] multiplies each budget's seeds."""
    u0 = np.asarray(log_c, float) - self.center
    rows = np.arange(len(self.y))
    _, jac = self._residuals(self.theta, rows)
    if more is not None:
      jac = jac * np.repeat(np.sqrt(more), 2)[None, :, None]
    at = np.clip(self._log_m(self.theta, u0), -LIMIT, LIMIT)
    _, grad_b = self._one(self.theta, 1, u0)
    a, grad_a = self._one(self.theta, 0, u0 + at)
    slope = np.exp(self.theta[:, 2]) * np.maximum(a - self._floor(self.theta)[:, 0], 1e-12)
    grad = (grad_a - grad_b) / slope[:, None]
    info = np.einsum("prk,prl->pkl", jac, jac)
    info = info + 1e-12 * np.eye(info.shape[1]) * np.einsum("pkk->p", info)[:, None, None]
    solved = np.linalg.solve(info, grad[..., None])[..., 0]
    return np.sqrt(np.einsum("pk,pk->p", grad, solved) * self.wider)

  def _intervals(self, bound, value, level):
    """(value, low, high, p of 0) of each problem, by inverting the F test.

    Args:
      bound: values [P] -> the curves that obey them, as `_free`.
    """
    from scipy.stats import f

    n, df = len(value), np.minimum(self.df, 1e9)
    threshold = self.wider * f.isf(1 - level, 1, df)
    start = np.clip(np.where(np.isfinite(value), value, LIMIT), -LIMIT, LIMIT)

    def excess(at, theta, rows):
      """What the best curves that obey the value lose over the best of all."""
      theta, cost = self._solve(theta, rows, bound(at))
      return theta, np.maximum(cost - self.least[rows], 0)

    _, at_null = excess(np.zeros(n), self.theta, np.arange(n))
    p = f.sf(at_null / self.wider, 1, df)
    ends = []
    for sign in (-1.0, 1.0):
      ends.append(self._end(excess, start, sign, threshold))
    return list(zip(value, ends[0], ends[1], p, strict=True))

  def _end(self, excess, start, sign, threshold):
    """Where what is lost reaches the threshold on one side, [P]; +-inf where it never does.

    The root of what is lost is nearly straight in the distance, so steps grow by what is missing, and
    false position (Illinois) on the root finds the end.
    """
    n = len(start)
    inside, outside = np.zeros(n), np.full(n, np.nan)  # distances from the start
    low, high = -np.sqrt(threshold), np.full(n, np.nan)  # root of the loss there, less that wanted
    theta, limitless = self.theta.copy(), sign * start >= LIMIT
    step, rows = np.full(n, 0.02), np.flatnonzero(~limitless)
    most = np.maximum(LIMIT - sign * start, 1e-3)

    def missing(rows, distance):
      at = start[rows] + sign * distance
      found, lost = excess(at, theta[rows], rows)
      again, lost_again = excess(at, self.theta[rows], rows)
      found = np.where((lost_again < lost)[:, None], again, found)
      return found, np.sqrt(np.minimum(lost, lost_again)) - np.sqrt(threshold[rows])

    while len(rows):
      distance = np.minimum(step[rows], most[rows])
      found, short = missing(rows, distance)
      over, edge = short > 0, distance >= most[rows]
      outside[rows[over]], high[rows[over]] = distance[over], short[over]
      limitless[rows[~over & edge]] = True
      inside[rows[~over]], low[rows[~over]] = distance[~over], short[~over]
      theta[rows[~over]] = found[~over]
      root = np.sqrt(threshold[rows])
      step[rows] = distance * np.clip(1.2 * root / np.maximum(short + root, 1e-9), 1.3, 8)
      rows = rows[~over & ~edge]
    rows = np.flatnonzero(~limitless)
    for _ in range(HALVINGS):
      rows = rows[outside[rows] - inside[rows] > PRECISE * (1e-3 + outside[rows])]
      if not len(rows):
        break
      share = np.clip(-low[rows] / (high[rows] - low[rows]), 0.02, 0.98)
      middle = inside[rows] + share * (outside[rows] - inside[rows])
      found, short = missing(rows, middle)
      over = short > 0
      outside[rows[over]], high[rows[over]] = middle[over], short[over]
      inside[rows[~over]], low[rows[~over]] = middle[~over], short[~over]
      low[rows[over]] /= 2
      high[rows[~over]] /= 2
      theta[rows[~over]] = found[~over]
      rows = rows[np.abs(short) > 1e-3]
    return np.where(
      limitless,
      sign * np.inf,
      start + sign * np.where(np.isnan(outside), inside, (inside + outside) / 2),
    )
