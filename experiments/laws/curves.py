"""Where a curve of loss against one variable is lowest: parabola, robust parabola, cubic, Akima spline.

Everything takes many copies of the losses at once (bootstrap samples), and works in u = log(variable).
"""

import numpy as np

METHODS = ("parabola", "robust", "cubic", "akima")
DEGREE = {"parabola": 2, "robust": 2, "cubic": 3}
HUBER_TUNING = 1.345  # in robust standard deviations: 95 % efficient for normal noise


def parabola(u: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Coefficients [R, 3] (u^2, u, 1) of least-squares parabolas through y [R, n] at centred u [n]."""
  return y @ np.linalg.pinv(np.vander(u, 3)).T


def robust_parabola(u: np.ndarray, y: np.ndarray, rounds: int = 30) -> np.ndarray:
  """Huber parabolas [R, 3] by reweighting, scale from the median absolute residual of each fit."""
  reach = np.abs(u).max()  # u of size one keeps the normal equations well conditioned
  basis, coef = np.vander(u / reach, 3), parabola(u / reach, y)
  products = (basis[:, :, None] * basis[:, None]).reshape(len(u), 9)
  # with 3 of n parameters taken by the fit, residuals are too small by about this much
  shrunk = np.sqrt(len(u) / max(len(u) - 3, 1))
  for _ in range(rounds):
    off = np.abs(y - coef @ basis.T)
    scale = 1.4826 * shrunk * np.median(off, axis=1, keepdims=True) + 1e-12
    weight = np.minimum(1.0, HUBER_TUNING * scale / np.maximum(off, 1e-300))
    gram = (weight @ products).reshape(-1, 3, 3)
    coef = np.linalg.solve(gram + 1e-14 * np.eye(3), ((weight * y) @ basis)[:, :, None])[:, :, 0]
  return coef / reach ** np.array([2.0, 1.0, 0.0])


def polynomial(u: np.ndarray, y: np.ndarray, degree: int) -> np.ndarray:
  """Values [R, n] at u of the least-squares polynomials of `degree` through y [R, n]."""
  basis = np.vander((u - u.mean()) / max(np.ptp(u), 1e-300), degree + 1)
  return y @ np.linalg.pinv(basis).T @ basis.T


def _cubic_minimum(u: np.ndarray, y: np.ndarray):
  """Of a cubic the one local minimum: where c2 + 3 c3 x > 0 at a root of c1 + 2 c2 x + 3 c3 x^2."""
  centre, reach = u.mean(), np.ptp(u)
  x = (u - centre) / reach
  c3, c2, c1, c0 = (y @ np.linalg.pinv(np.vander(x, 4)).T).T
  with np.errstate(divide="ignore", invalid="ignore"):
    inner = c2**2 - 3 * c3 * c1
    # the root of the quadratic slope at which it rises, in a form that is exact for a small c3
    at = -c1 / (c2 + np.sqrt(inner))
    inside = (inner > 0) & (at > x[0]) & (at < x[-1])
    return at * reach + centre, c0 + at * (c1 + at * (c2 + at * c3)), inside


def _akima_minimum(u: np.ndarray, y: np.ndarray, per_gap: int = 200):
  from scipy.interpolate import Akima1DInterpolator

  spline = Akima1DInterpolator(u, y.T)
  fine = np.linspace(u[0], u[-1], per_gap * (len(u) - 1) + 1)
  values = spline(fine)
  best = values.argmin(0)
  return fine[best], values[best, np.arange(len(y))], (best > 0) & (best < len(fine) - 1)


def minimum(method: str, u: np.ndarray, y: np.ndarray):
  """(u* [R], loss there [R], inside [R] bool) of curves y [R, n] at increasing u [n].

  `inside` is False where the curve has no minimum strictly between the first and the last point: an
  optimum outside the measured range is an extrapolation and is not an optimum.

  Raises:
    ValueError: an unknown method, or too few points for it.
  """
  if method not in METHODS:
    raise ValueError(f"method={method!r}: not known; choose one of {', '.join(METHODS)}")
  y = np.atleast_2d(y)
  if method == "akima":
    return _akima_minimum(u, y)
  if method == "cubic":
    return _cubic_minimum(u, y)
  centre = u.mean()
  fitter = parabola if method == "parabola" else robust_parabola
  c2, c1, c0 = fitter(u - centre, y).T
  with np.errstate(divide="ignore", invalid="ignore"):
    at = -c1 / (2 * c2)
    inside = (c2 > 0) & (at + centre > u[0]) & (at + centre < u[-1])
    return at + centre, c0 + at * (c1 + at * c2), inside


def noise_of(u: np.ndarray, y: np.ndarray, degree: int = 2) -> np.ndarray:
  """Residuals [n] of y [n] about a polynomial, inflated by sqrt(n / (n - degree - 1)) for what it took."""
  resid = y - polynomial(u, y[None], degree)[0]
  return resid * np.sqrt(len(u) / max(len(u) - degree - 1, 1))


def local_noise(u: np.ndarray, y: np.ndarray) -> np.ndarray:
  """Noise [n - 2] of the inner points of y [n] against polynomials through four neighbours.

  e_i = (y_i - sum_j c_j y_j) / sqrt(1 + sum_j c_j^2) has the variance of y's noise and no trace of a
  smooth curve's shape (pseudo-residuals: Gasser et al. 1986). Needs n >= 4.
  """
  out = []
  for i in range(1, len(u) - 1):
    first = int(np.clip(i - 2, 0, max(len(u) - 5, 0)))
    near = [j for j in range(first, min(first + 5, len(u))) if j != i]
    weights = np.array(
      [np.prod([(u[i] - u[k]) / (u[j] - u[k]) for k in near if k != j]) for j in near]
    )
    out.append((y[i] - weights @ y[near]) / np.sqrt(1 + weights @ weights))
  return np.array(out)


def weighted_line(basis: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """Coefficients [..., k] of weighted least squares of y [..., n] on basis [n, k]."""
  root = np.sqrt(weights)
  return (root * y) @ np.linalg.pinv(root[:, None] * basis).T


def line_covariance(basis: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
  """[k, k] covariance of `weighted_line` of y [n], scaled by the scatter about the line, so that weights
  need only be right up to a factor."""
  resid = y - weighted_line(basis, y, weights) @ basis.T
  dof = max(len(basis) - basis.shape[1], 1)
  return np.linalg.pinv(basis.T @ (weights[:, None] * basis)) * (weights * resid**2).sum() / dof
