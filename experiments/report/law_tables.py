"""Fits of experiments.laws as flat tables: what experiments.report.law_charts draws."""

import numpy as np

from experiments.laws import LawFit, allocation, curves, intervals, isoflop
from experiments.laws.isoflop import IsoFlopFit
from experiments.report import law_charts

N_CURVES = 7  # sizes for which a law is drawn
N_CONTOURS = 7
GRID = 60  # points of a drawn curve
REACH = 1.96  # standard deviations of a 95 % interval


# ---- Slices of equal compute ---------------------------------------------------------------------


def slice_points(fit: IsoFlopFit) -> list[dict]:
  """The runs of every budget, at the budget's mean compute."""
  return [
    {"flops": s.flops, "n_params": n, "n_tokens": d, "loss": loss}
    for s in fit.slices
    for n, d, loss in zip(s.n_params, s.n_tokens, s.loss, strict=True)
  ]


def slice_curves(fit: IsoFlopFit) -> list[dict]:
  """The curve fitted to each used budget, against N and against D."""
  table = []
  for s in fit.used:
    for axis, values in zip(law_charts.SIZES, (s.n_params, s.n_tokens), strict=True):
      order = np.argsort(values)
      u, y = np.log(values[order]), s.loss[order]
      fine = np.linspace(u[0], u[-1], GRID)
      table += [
        {"axis": axis, "flops": s.flops, "x": x, "loss": loss}
        for x, loss in zip(np.exp(fine), _fitted(fit.method, u, y, fine), strict=True)
      ]
  return table


def _fitted(method: str, u: np.ndarray, y: np.ndarray, fine: np.ndarray) -> np.ndarray:
  """The curve of experiments.laws.curves through (u, y), read at `fine`."""
  if method == "akima":
    from scipy.interpolate import Akima1DInterpolator

    return Akima1DInterpolator(u, y)(fine)
  if method == "cubic":
    return np.polyval(np.polyfit(u - u.mean(), y, 3), fine - u.mean())
  fitter = curves.parabola if method == "parabola" else curves.robust_parabola
  return np.polyval(fitter(u - u.mean(), y[None])[0], fine - u.mean())


def slice_minima(fit: IsoFlopFit) -> list[dict]:
  """The minimum of each used budget with its interval, against N and against D."""
  table = []
  for s in fit.used:
    both = ((s.n_opt, s.sd_log_n), (s.d_opt, s.sd_log_d))
    for axis, (value, sd) in zip(law_charts.SIZES, both, strict=True):
      low, high = _around(value, sd)
      table.append(
        {"axis": axis, "flops": s.flops, "x": value, "low": low, "high": high, "loss": s.loss_opt}
      )
  return table


def slice_optima(fit: IsoFlopFit) -> list[dict]:
  """A row a budget: compute, sizes, N*, D* with intervals, their ratio, loss, status."""
  return [
    {
      "flops": s.flops,
      "sizes": len(s.loss),
      "n": s.n_opt and (s.n_opt, _around(s.n_opt, s.sd_log_n)),
      "d": s.d_opt and (s.d_opt, _around(s.d_opt, s.sd_log_d)),
      "ratio": s.d_opt and s.d_opt / s.n_opt,
      "loss": s.loss_opt,
      "status": s.status,
    }
    for s in fit.slices
  ]


def _around(value: float, sd_log: float) -> tuple[float, float]:
  """The interval of a value whose logarithm has this standard deviation."""
  return value * np.exp(-REACH * sd_log), value * np.exp(REACH * sd_log)


# ---- The parametric law --------------------------------------------------------------------------


def law_points(fit: LawFit) -> list[dict]:
  """The fitted runs with their residuals in percent."""
  columns = {
    k: v for k, v in fit.table.columns.items() if k in ("n_params", "n_tokens", "flops", "loss")
  }
  names = fit.table.labels.get("name", [f"row {n}" for n in fit.table.rows])
  residual = 100 * np.expm1(fit.residuals)
  return [
    {
      "name": str(name),
      "residual": float(residual[i]),
      **{k: float(v[i]) for k, v in columns.items()},
    }
    for i, name in enumerate(names)
  ]


def law_curves(fit: LawFit) -> list[dict]:
  """The law along D for a few of the sizes, where compute stays near that of the runs."""
  n, d = fit.table["n_params"], fit.table["n_tokens"]
  sizes = np.unique(n)
  sizes = sizes[np.unique(np.linspace(0, len(sizes) - 1, N_CURVES).round().astype(int))]
  size, tokens = np.meshgrid(sizes, np.geomspace(d.min() / 1.5, d.max() * 1.5, GRID), indexing="ij")
  near = (size * tokens >= (n * d).min() / 2) & (size * tokens <= (n * d).max() * 2)
  columns = {"n_params": size[near], "n_tokens": tokens[near]}
  columns |= {
    k: np.full(near.sum(), np.median(fit.table[k])) for k in fit.law.inputs if k not in columns
  }
  if "flops" in fit.law.inputs:
    columns["flops"] = fit.flop_factor * size[near] * tokens[near]
  table = {"n_params": size[near], "x": tokens[near], "loss": fit.predict(columns)}
  if len(fit.boots):
    table["low"], table["high"] = fit.band(columns)
  return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def law_contours(fit: LawFit) -> list[dict]:
  """Lines of equal predicted loss in (C, N), C as the fit counts it (6 N D unless told)."""
  n, c, loss = fit.table["n_params"], fit.table["flops"], fit.table["loss"]
  wanted = np.geomspace(1.01 * loss.min(), np.quantile(loss, 0.8), N_CONTOURS)
  levels = sorted({float(f"{v:.2g}") for v in wanted})
  if len(levels) < N_CONTOURS / 2:
    levels = sorted({float(f"{v:.3g}") for v in wanted})
  sizes = np.geomspace(n.min() / 1.6, n.max() * 1.6, 2 * GRID)
  log_flops = np.linspace(np.log(c.min() / 4), np.log(c.max() * 1e5), 800)
  size, flops = np.meshgrid(sizes, np.exp(log_flops), indexing="ij")
  tokens = flops / (fit.flop_factor * size**fit.flop_exponent)
  predicted = fit.predict({"n_params": size.ravel(), "n_tokens": tokens.ravel()}).reshape(
    size.shape
  )
  table = []
  for order, (one, falling) in enumerate(zip(sizes, predicted, strict=True)):
    for level in levels:
      if falling[-1] <= level <= falling[0]:  # falls with tokens, so one crossing
        at = np.exp(np.interp(-level, -falling, log_flops))
        table.append({"loss": level, "flops": at, "n_params": one, "order": order})
  return table


def extrapolation_points(fit: LawFit) -> list[dict]:
  """Every run with the loss that the law fitted without the largest predicts for it; for those, the
  limits of its prediction interval too."""
  columns = {k: fit.table[k] for k in fit.law.inputs}
  predicted = np.exp(intervals.predict(fit.law, fit.holdout.theta, columns))
  held = fit.table["flops"] > fit.holdout.above_flops
  limits = dict(zip(np.flatnonzero(held), fit.holdout.bounds.T, strict=True))
  points = []
  for i, row in enumerate(law_points(fit)):
    row = {**row, "held": bool(held[i]), "predicted": float(predicted[i])}
    if held[i]:
      row["low"], row["high"] = map(float, limits[i])
    points.append(row)
  return points


# ---- The optimum path ----------------------------------------------------------------------------


def path_rows(fit: LawFit, axis: str, method: str) -> list[dict]:
  """N* or D* along compute, from the smallest budget to ten times the largest, with the bootstrap's band."""
  flops = np.geomspace(fit.table["flops"].min(), 10 * fit.table["flops"].max(), GRID)
  which, counted = law_charts.SIZES.index(axis), (fit.flop_factor, fit.flop_exponent)

  def optimum(theta):
    terms = allocation.two_terms(fit.law.name, np.moveaxis(theta, -1, 0), fit.flop_factor)
    terms = (np.asarray(t)[..., None] for t in terms)
    log_c = np.log(flops).reshape(*(1,) * (np.ndim(theta) - 1), -1)
    return np.asarray(allocation.optimal(*terms, log_c, *counted)[which], np.float64)

  rows = [
    {"method": method, "axis": axis, "flops": c, "x": x}
    for c, x in zip(flops, np.exp(optimum(fit.theta)), strict=True)
  ]
  if len(fit.boots):
    low, high = np.exp(intervals.percentile(optimum(fit.boots), fit.confidence))
    rows = [{**row, "low": low[i], "high": high[i]} for i, row in enumerate(rows)]
  return rows


def line_rows(fit: IsoFlopFit, axis: str, method: str) -> list[dict]:
  """The power law through the optima, along compute, with the regression's t-interval."""
  from scipy.stats import t

  which = law_charts.SIZES.index(axis)
  logs_c = np.log([s.flops for s in fit.used])
  optima = np.log([(s.n_opt, s.d_opt)[which] for s in fit.used])
  weights = isoflop.weights_of(np.array([(s.sd_log_n, s.sd_log_d)[which] for s in fit.used]))
  flops = np.geomspace(np.exp(logs_c.min()), 10 * np.exp(logs_c.max()), GRID)
  basis = lambda log_c: np.stack([np.ones_like(log_c), log_c - logs_c.mean()], axis=1)
  coef = curves.weighted_line(basis(logs_c), optima, weights)
  cov = curves.line_covariance(basis(logs_c), optima, weights)
  rows = basis(np.log(flops))
  half = t.ppf((1 + fit.confidence) / 2, max(len(optima) - 2, 1)) * np.sqrt(
    np.einsum("np,pq,nq->n", rows, cov, rows)
  )
  middle = rows @ coef
  return [
    {
      "method": method,
      "axis": axis,
      "flops": c,
      "x": np.exp(m),
      "low": np.exp(m - h),
      "high": np.exp(m + h),
    }
    for c, m, h in zip(flops, middle, half, strict=True)
  ]


def exponent_row(what: str, estimate) -> dict:
  """The row of law_charts.exponents for an estimate of experiments.laws."""
  low, high = estimate.interval or (None, None)
  text = f"{estimate.value:.3f}" + ("" if low is None else f"  [{low:.3f}, {high:.3f}]")
  return {"what": what, "value": estimate.value, "low": low, "high": high, "text": text}
