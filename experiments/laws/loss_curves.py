"""Laws of whole loss curves: the loss at a step from the learning rates up to it, whatever the schedule.

  multi_power  L(t) = L0 + A (S1(t) + SW)^-alpha - B sum_k (lr_{k-1} - lr_k) G(lr_k^-gamma S_k(t)),
               G(x) = 1 - (C x + 1)^-beta, S_k(t) = sum of lr from k to t
               (Luo et al. 2025, arXiv:2503.12811, eq. 1 and 2)
  tissue       L(t) = L0 + A (S1(t) + SW)^-alpha - C S2(t),
               S2(t) = sum_{i<=t} sum_{k<=i} (lr_{k-1} - lr_k) lambda^{i-k}
               (Tissue et al. 2024, arXiv:2408.11029, eq. 1)

S1 is the sum of learning rates after warm-up, SW that of warm-up. A curve that begins after its warm-up is
taken to have warmed up linearly from 0. Between the steps of a table the rate is a straight line, and the
multi-power law's sum runs over the intervals of the table, each with its whole fall at its middle;
warm-up is one more interval, a rise from 0 (the authors' parameters fit their curves so).

Fits minimise Huber's loss of the log residual, delta 1e-3, from many starts. Standard errors are the delta
method's, widened by the residuals' autocorrelation r: sqrt((1 + r) / (1 - r)).
"""

import csv
import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.laws.result import to_plain
from lm.config.errors import ConfigError, number_of

DELTA = 1e-3  # Huber's threshold, of log loss
LEAST_POINTS = 10  # of a curve
EXPONENTS = ("alpha", "beta", "gamma")  # between 0.01 and 3
Z = 1.959964  # of a 95 % interval


@dataclasses.dataclass(frozen=True)
class Curve:
  """One run: steps (rising), learning rates and losses at them, [n]; sums of rates; a name."""

  name: str
  step: np.ndarray
  lr: np.ndarray
  loss: np.ndarray
  warmup_sum: float  # SW

  @property
  def lr_sum(self) -> np.ndarray:
    """S1 at each step: trapezoids between them."""
    area = np.diff(self.step) * (self.lr[1:] + self.lr[:-1]) / 2
    return np.concatenate([[0.0], np.cumsum(area)])


@dataclasses.dataclass(frozen=True)
class CurveLaw:
  """A law: its parameters, all positive; where fits start; the prediction [n] of a curve."""

  names: tuple[str, ...]
  starts: Callable[[Sequence[Curve]], list[tuple[float, ...]]]
  predict: Callable[[Mapping[str, float], Curve], np.ndarray]
  below_one: tuple[str, ...] = ()  # parameters that are in (0, 1)


@dataclasses.dataclass(frozen=True)
class CurveFit:
  """Parameters with 95 % intervals, and how well each curve is predicted, fitted and held out."""

  law: str
  params: dict[str, float]
  intervals: dict[str, tuple[float, float]]
  curves: tuple[dict, ...]  # name, fitted, n, mae, rmse, r2, worst

  def held(self, key: str) -> float:
    """Mean of a column over the curves that were held out."""
    values = [row[key] for row in self.curves if row["fitted"] == "no"]
    return float(np.mean(values)) if values else math.nan

  def summary(self) -> str:
    lines = [
      f"{self.law}, {number_of(sum(r['fitted'] == 'yes' for r in self.curves), 'curve')} fitted"
    ]
    for name, value in self.params.items():
      low, high = self.intervals.get(name, (None, None))
      shown = "fixed" if low is None else f"[{low:.4g}, {high:.4g}]"
      lines.append(f"  {name:8} {value:.5g}  {shown}")
    lines.append("  curve                     fitted    n      MAE     RMSE       R2    worst")
    for r in self.curves:
      lines.append(
        f"  {r['name'][:24]:25} {r['fitted']:6} {r['n']:4} {r['mae']:8.5f} {r['rmse']:8.5f} "
        f"{r['r2']:8.5f} {r['worst']:8.5f}"
      )
    if not math.isnan(self.held("mae")):
      lines.append(f"  held out: MAE {self.held('mae'):.5f}, R2 {self.held('r2'):.5f} on average")
    return "\n".join(lines)

  def to_json(self) -> dict:
    return to_plain(dataclasses.asdict(self))


# ---- The laws ------------------------------------------------------------------------------------


def multi_power(params: Mapping[str, float], curve: Curve) -> np.ndarray:
  """Loss at each step of a curve under the multi-power law."""
  s1 = curve.lr_sum
  base = params["L0"] + params["A"] * (s1 + curve.warmup_sum + 1e-12) ** -params["alpha"]
  fall = curve.lr[:-1] - curve.lr[1:]
  jumps = np.flatnonzero(fall)
  fall = np.concatenate([[-curve.lr[0]], fall[jumps]])
  middle = np.concatenate([[-curve.warmup_sum / 2], (s1[jumps] + s1[jumps + 1]) / 2])
  since = np.maximum(s1[:, None] - middle, 0)  # [n, jumps]
  after = np.concatenate([curve.lr[:1], curve.lr[jumps + 1]])
  rate = np.maximum(after, 1e-12) ** -params["gamma"]
  gain = 1 - (params["C"] * rate * since + 1) ** -params["beta"]
  return base - params["B"] * (gain @ fall)


def tissue(params: Mapping[str, float], curve: Curve) -> np.ndarray:
  """Loss at each step of a curve under Tissue et al.'s law, its momentum sum step by step."""
  from scipy.signal import lfilter

  base = params["L0"] + params["A"] * (curve.lr_sum + curve.warmup_sum + 1e-12) ** -params["alpha"]
  steps = np.arange(curve.step[0], curve.step[-1] + 1)
  lr = np.interp(steps, curve.step, curve.lr)
  fall = np.concatenate([[0.0], lr[:-1] - lr[1:]])
  momentum = lfilter([1.0], [1.0, -params["lambda"]], fall)
  s2 = np.cumsum(momentum)[np.round(curve.step - curve.step[0]).astype(int)]
  return base - params["C"] * s2


def _base_starts(curves: Sequence[Curve]) -> list[tuple[float, float, float]]:
  """(L0, A, alpha): what is left of the lowest loss, and a power law through first and last."""
  low = min(c.loss.min() for c in curves)
  first = np.mean([c.loss[0] for c in curves])
  s = np.mean([c.warmup_sum + c.lr_sum[1] for c in curves])
  return [
    (low * share, max(first - low * share, 0.01) * s**alpha, alpha)
    for share in (0.8, 0.95)
    for alpha in (0.3, 0.6)
  ]


LAWS: dict[str, CurveLaw] = {
  "multi_power": CurveLaw(
    ("L0", "A", "alpha", "B", "C", "beta", "gamma"),
    lambda curves: [(*base, 300.0, 2.0, 0.5, 0.6) for base in _base_starts(curves)],
    multi_power,
  ),
  "tissue": CurveLaw(
    ("L0", "A", "alpha", "C", "lambda"),
    lambda curves: [(*base, 1.0, lam) for base in _base_starts(curves) for lam in (0.99, 0.999)],
    tissue,
    below_one=("lambda",),
  ),
}


# ---- Fits ----------------------------------------------------------------------------------------


def fit_curves(
  fitted: Sequence[Curve],
  held: Sequence[Curve],
  law: str,
  fixed: Mapping[str, float] | None = None,
) -> CurveFit:
  """The law fitted to `fitted` and judged on all.

  Args:
    fixed: parameters that are held; they have no interval. With all of them nothing is fitted.

  Raises:
    ConfigError: an unknown law or parameter, a value that it cannot have, fewer points than parameters.
  """
  from scipy.optimize import least_squares

  if law not in LAWS:
    raise ConfigError(f"law={law}: of curves there are {', '.join(LAWS)}; use multi_power")
  form, fixed = LAWS[law], fixed or {}
  for name, value in fixed.items():
    if name not in form.names:
      raise ConfigError(f"fix={name}: {law} has {', '.join(form.names)}; name one of them")
    if not 0 < value < (1 if name in form.below_one else math.inf):
      limit = "between 0 and 1" if name in form.below_one else "above 0"
      raise ConfigError(f"fix={name}={value:g}: must be {limit}; correct it")
  names = tuple(name for name in form.names if name not in fixed)
  n = sum(len(c.loss) for c in fitted)
  if n <= len(names):
    raise ConfigError(
      f"curves={number_of(n, 'point')}: must be more than {len(names)} parameters; add runs"
    )
  target = np.log(np.concatenate([c.loss for c in fitted]))

  def unpack(x) -> dict[str, float]:
    values = dict(zip(names, np.exp(np.clip(x, -40, 40)), strict=True)) | dict(fixed)
    shares = [k for k in form.below_one if k in names]
    values |= {k: 1 / (1 + math.exp(-x[names.index(k)])) for k in shares}
    return {k: float(values[k]) for k in form.names}

  low = np.array([-4.6 if k in EXPONENTS else -15.0 for k in names])
  high = np.array([1.1 if k in EXPONENTS else 15.0 for k in names])

  def pack(start) -> np.ndarray:
    return np.array([
      math.log(v / (1 - v)) if k in form.below_one else math.log(v)
      for k, v in zip(form.names, start, strict=True) if k in names
    ])  # fmt: skip

  def residual(x) -> np.ndarray:
    params = unpack(x)
    predicted = np.concatenate([form.predict(params, c) for c in fitted])
    return np.log(np.maximum(predicted, 1e-6)) - target

  found: list[Any] = [
    least_squares(
      residual,
      pack(start),
      loss="huber",
      f_scale=DELTA,
      x_scale="jac",
      max_nfev=300,
      bounds=(low, high),
    )
    for start in (form.starts(fitted) if names else ())
  ]
  best = min(found, key=lambda one: one.cost).x if names else np.zeros(0)
  params = unpack(best)
  lengths = [len(c.loss) for c in fitted]
  return CurveFit(
    law,
    params,
    _limits(names, best, residual, unpack, lengths) if names else {},
    tuple(
      _judged(form.predict(params, c), c, said)
      for said, curves in (("yes", fitted), ("no", held))
      for c in curves
    ),
  )


def _limits(names, x, residual, unpack, lengths) -> dict[str, tuple[float, float]]:
  """Delta-method 95 % intervals in the working parameters."""
  r0 = residual(x)
  steps = 1e-5 * np.maximum(np.abs(x), 1)
  jac = np.stack(
    [
      (residual(x + h * e) - residual(x - h * e)) / (2 * h)
      for h, e in zip(steps, np.eye(len(x)), strict=True)
    ],
    1,
  )
  parts = np.split(r0, np.cumsum(lengths)[:-1])
  products = sum(float((p[1:] * p[:-1]).sum()) for p in parts)
  r = min(max(products / max(float((r0**2).sum()), 1e-300), 0.0), 0.99)
  variance = float((r0**2).sum()) / max(len(r0) - len(x), 1) * (1 + r) / (1 - r)
  cov = np.linalg.pinv(jac.T @ jac) * variance
  se = np.sqrt(np.maximum(np.diag(cov), 0))
  low, high = unpack(x - Z * se), unpack(x + Z * se)
  return {name: (float(low[name]), float(high[name])) for name in names}


def _judged(predicted: np.ndarray, curve: Curve, fitted: str) -> dict:
  off = predicted - curve.loss
  spread = float(((curve.loss - curve.loss.mean()) ** 2).sum())
  return {
    "name": curve.name, "fitted": fitted, "n": len(off), "mae": float(np.abs(off).mean()),
    "rmse": float(np.sqrt((off**2).mean())), "r2": 1 - float((off**2).sum()) / spread,
    "worst": float(np.abs(off).max()),
  }  # fmt: skip


# ---- Curves from tables and records --------------------------------------------------------------


def make_curve(name: str, step, lr, loss) -> Curve:
  """A Curve without its warm-up: what comes before the first step at the highest rate.

  Raises:
    ConfigError: fewer than LEAST_POINTS after warm-up, steps that do not rise, or no positive loss.
  """
  step, lr, loss = (np.asarray(v, float) for v in (step, lr, loss))
  if (np.diff(step) <= 0).any() or not (loss > 0).all() or not (lr >= 0).all():
    raise ConfigError(f"curves={name}: steps must rise and losses be positive; check its columns")
  first = int(np.argmax(lr >= lr.max() * (1 - 1e-9)))
  before = float(np.trapezoid(lr[: first + 1], step[: first + 1]) + lr[0] * step[0] / 2)
  if len(step) - first < LEAST_POINTS:
    raise ConfigError(
      f"curves={name}: has {number_of(len(step) - first, 'point')} after its warm-up; must "
      f"have {LEAST_POINTS}"
    )
  return Curve(name, step[first:], lr[first:], loss[first:], before)


def read_csv(path: str) -> Curve:
  """A curve from a CSV file with columns step, lr and loss.

  Raises:
    ConfigError: no such file, or a column is missing or no number.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise ConfigError(f"curves={path}: no such file; give CSV files with columns step,lr,loss")
  with open(file, newline="", encoding="utf-8") as opened:
    rows = list(csv.DictReader(opened))
  try:
    columns = [[float(row[key]) for row in rows] for key in ("step", "lr", "loss")]
  except (KeyError, TypeError, ValueError) as error:
    raise ConfigError(
      f"curves={path}: must have numbers in columns step, lr and loss ({error}); rename them"
    ) from None
  if not rows:
    raise ConfigError(f"curves={path}: is empty; give CSV files with columns step,lr,loss")
  return make_curve(file.stem, *columns)
