"""How much of a loss is the seed: a standard deviation pooled over settings, or as a law of size and data.

Replicates of setting i, n_i of them, have variance s_i^2 ~ sigma_i^2 chi2(nu_i) / nu_i, nu_i = n_i - 1.
Pooled, sigma^2 = sum nu_i s_i^2 / sum nu_i with the exact chi-squared interval. As a law,

  log sigma = a + p log N + q log D,

by maximum likelihood of these variances (a gamma regression with log link; McCullagh & Nelder 1989, ch. 8).
It is used where a likelihood-ratio test against the pooled one has p < 0.05.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from lm.config.errors import number_of

LAW_LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Replicates:
  """Losses of one setting that differ in their seed only."""

  losses: tuple[float, ...]
  n_params: float
  n_tokens: float


@dataclasses.dataclass(frozen=True)
class SeedNoise:
  """sigma(N, D); `coefficients` are of (1, log N / N0, log D / D0) in log sigma^2, zeros where not used."""

  coefficients: np.ndarray
  covariance: np.ndarray
  center: tuple[float, float]  # log N0, log D0
  df: float
  settings: int
  p_law: float  # of the likelihood-ratio test; 1 where no law could be fitted
  pooled: float
  pooled_interval: tuple[float, float]

  def at(self, n_params: float, n_tokens: float) -> tuple[float, tuple[float, float]]:
    """sigma and its 95 % interval for a setting."""
    if self.p_law >= LAW_LEVEL:
      return self.pooled, self.pooled_interval
    from scipy.stats import norm

    x = np.array([1.0, math.log(n_params) - self.center[0], math.log(n_tokens) - self.center[1]])
    log_var, se = float(x @ self.coefficients), math.sqrt(float(x @ self.covariance @ x))
    half = float(norm.ppf(0.975)) * se
    ends = (math.exp((log_var - half) / 2), math.exp((log_var + half) / 2))
    return math.exp(log_var / 2), ends

  def summary(self) -> str:
    low, high = self.pooled_interval
    text = (
      f"{self.pooled:.4g} [{low:.4g}, {high:.4g}] from "
      f"{number_of(self.settings, 'setting')}, {self.df:g} degree{'s' * (self.df != 1)} of freedom"
    )
    if self.p_law >= LAW_LEVEL:
      return f"{text}; no trend with size or data (p = {self.p_law:.2g})"
    _, p, q = self.coefficients / 2
    return f"{text}; it moves as N^{p:.2f} D^{q:.2f} (p = {self.p_law:.2g})"


def seed_noise(groups: Sequence[Replicates]) -> SeedNoise | None:
  """The noise of seeds; None where no setting has two of them.

  Args:
    groups: settings; those with one loss say nothing and are left out.
  """
  from scipy.stats import chi2

  groups = [g for g in groups if len(g.losses) > 1]
  if not groups:
    return None
  nu = np.array([len(g.losses) - 1.0 for g in groups])
  var = np.array([np.var(g.losses, ddof=1) for g in groups])
  df, pooled = float(nu.sum()), float((nu * var).sum() / nu.sum())
  low, high = (math.sqrt(df * pooled / chi2.ppf(q, df)) for q in (0.975, 0.025))
  logs = np.log([[g.n_params, g.n_tokens] for g in groups])
  center = logs.mean(0)
  design = np.concatenate([np.ones((len(groups), 1)), logs - center], 1)
  used = [0, *(j for j in (1, 2) if np.ptp(design[:, j]) > 1e-6)]
  while len(used) > 1 and np.linalg.matrix_rank(design[:, used], tol=1e-6) < len(used):
    used.pop()
  coefficients, covariance, p_law = np.zeros(3), np.zeros((3, 3)), 1.0
  if 1 < len(used) < len(groups) and pooled > 0:
    x = design[:, used]
    beta = _gamma_regression(x, var, nu, math.log(pooled))
    eta = x @ beta
    gain = _log_likelihood(eta, var, nu) - _log_likelihood(
      np.full(len(nu), math.log(pooled)), var, nu
    )
    p_law = float(chi2.sf(2 * max(gain, 0.0), len(used) - 1))
    coefficients[used] = beta
    covariance[np.ix_(used, used)] = np.linalg.pinv(x.T @ (nu[:, None] / 2 * x))
  return SeedNoise(
    coefficients, covariance, (float(center[0]), float(center[1])), df, len(groups), p_law,
    math.sqrt(pooled), (low, high),
  )  # fmt: skip


def _log_likelihood(eta, var, nu) -> float:
  return float((nu / 2 * (-eta - var * np.exp(-eta))).sum())


def _gamma_regression(x, var, nu, start: float) -> np.ndarray:
  """Fisher scoring for log E var = x beta, weights nu / 2."""
  beta = np.zeros(x.shape[1])
  beta[0] = start
  for _ in range(100):
    eta = x @ beta
    weighted = x.T * (nu / 2)
    step = np.linalg.lstsq(weighted @ x, weighted @ (var * np.exp(-eta) - 1), rcond=None)[0]
    step = np.clip(step, -1, 1)
    beta = beta + step
    if np.abs(step).max() < 1e-10:
      break
  return beta


def checkpoint_noise(losses: Sequence[float]) -> float | None:
  """Standard deviation of evaluations around a smooth curve, from the second half's second differences.

  var(L_{i-1} - 2 L_i + L_{i+1}) = 6 sigma^2 where the curve is straight. A curve that bends adds to it, and
  so does a decaying rate: it is a proxy of the seeds' noise that costs nothing, not the same number. None
  with fewer than 6 evaluations.
  """
  x = np.asarray(losses, float)
  if len(x) < 6 or not np.isfinite(x).all():
    return None
  second = np.diff(x[len(x) // 2 :], 2)
  return float(np.sqrt((second**2).mean() / 6)) if len(second) else None


def holm(p_values: Sequence[float]) -> list[float]:
  """p values that hold for all comparisons together (Holm 1979)."""
  order = np.argsort(p_values)
  corrected, running = [0.0] * len(p_values), 0.0
  for rank, i in enumerate(order):
    running = max(running, min(1.0, (len(order) - rank) * float(p_values[i])))
    corrected[int(i)] = running
  return corrected


def difference(
  a: Mapping[object, float], b: Mapping[object, float], noise: SeedNoise | None
) -> dict[str, object]:
  """B - A of two settings: paired by seed where two seeds are shared, else with the pooled noise.

  Args:
    a, b: {seed: loss}.
    noise: of seeds, for settings that share fewer than two of them.

  Returns: difference, low, high (95 %), p, how; without an interval where nothing is known of noise.
  """
  from scipy.stats import t

  both = sorted(set(a) & set(b), key=str)
  apart = float(np.mean(list(b.values())) - np.mean(list(a.values())))
  if len(both) > 1:
    d = np.array([b[s] - a[s] for s in both])
    mean, se, df = float(d.mean()), float(d.std(ddof=1) / math.sqrt(len(d))), len(d) - 1.0
    how = f"{number_of(len(both), 'pair')} of one seed"
  elif noise is not None:
    mean, df = apart, noise.df
    se = noise.pooled * math.sqrt(1 / len(a) + 1 / len(b))
    how = f"noise of {number_of(noise.settings, 'setting')}"
  else:
    return {"difference": apart, "low": None, "high": None, "p": None, "how": "no replicates"}
  half = float(t.ppf(0.975, df)) * se
  p = float(2 * t.sf(abs(mean) / se, df)) if se > 0 else float(mean == 0)
  return {"difference": mean, "low": mean - half, "high": mean + half, "p": p, "how": how}
