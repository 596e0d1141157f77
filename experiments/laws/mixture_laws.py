"""Laws of the weights of data domains, fitted by weighted least squares, many samples side by side.

  linear      L = sum_j b_j r_j                    (RegMix, Liu et al. 2024, arXiv:2407.01492 §3)
  log_linear  log L = sum_j t_j r_j                (the next one without a floor)
  mixing      L = c + k exp(sum_j t_j r_j)         (Ye et al. 2024, arXiv:2403.16952 eq. 1)
  trees       gradient-boosted trees of lightgbm, else scikit-learn, where installed (RegMix §3)

Weights r sum to 1, so a constant added to every t_j is a factor of k, and one added to every b_j an
intercept: both are taken into the coefficients, and b_j, e^t_j, c + e^t_j are what the law says of domain
j alone. `mixing` and `log_linear` minimise squares of log L's residuals, `linear` those of L.
"""

import dataclasses

import numpy as np

from lm.config.errors import ConfigError

LAWS = ("mixing", "log_linear", "linear", "trees")
FORMULAS = {
  "linear": "L = sum_j b_j r_j",
  "log_linear": "log L = sum_j t_j r_j",
  "mixing": "L = c + k exp(sum_j t_j r_j)",
  "trees": "gradient-boosted trees",
}
# c begins at these shares of the lowest loss
FLOORS = (0.01, 0.2, 0.4, 0.6, 0.75, 0.85, 0.92, 0.97)
STEPS, LANES = 60, 128  # Levenberg-Marquardt steps; fits side by side


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
