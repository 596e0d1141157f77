"""Laws of hyperparameters: the best learning rate or batch size of each cell, and how it scales.

In a cell (runs that share N, D, ...) the loss against log(hyperparameter) is taken as a parabola or an
Akima spline; the optima are regressed on the logs of the cell's columns. Li et al. 2025 (Step Law),
arXiv:2503.04715; DeepSeek 2024, arXiv:2401.02954 §3; sensitivity: Wortsman et al. 2023, arXiv:2309.14322.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.laws import curves, intervals
from experiments.laws.result import Estimate, Result, to_plain
from experiments.laws.table import Table
from lm.config.errors import number_of


@dataclasses.dataclass(frozen=True)
class Cell:
  """One cell: its columns, swept values and lowest losses there, and the optimum or why there is none."""

  at: dict[str, float]
  values: np.ndarray
  loss: np.ndarray
  status: str
  best: float | None = None
  loss_best: float | None = None
  sensitivity: float | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class HyperFit(Result):
  """best = k * prod_i column_i ^ exponent_i. Estimates: log10 k and an exponent for each column."""

  of: str
  on: tuple[str, ...]
  cells: tuple[Cell, ...]
  estimates: dict[str, Estimate]
  r2: float
  notes: tuple[str, ...]

  def __getitem__(self, name: str) -> Estimate:
    return self.estimates[name]

  def predict(self, **columns: float) -> float:
    """The best value at columns given by name."""
    logs = sum(self.estimates[name].value * np.log10(columns[name]) for name in self.on)
    return float(10 ** (self.estimates["log10 k"].value + logs))

  def to_json(self) -> dict:
    """Plain dicts, lists and numbers."""
    return to_plain(self)

  def summary(self) -> str:
    """A text table."""
    used = sum(c.status == "ok" for c in self.cells)
    lines = [f"best {self.of}: {used} of {len(self.cells)} cells used, R^2 {self.r2:.3f}"]
    for e in self.estimates.values():
      limits = "  ".join(f"{m} {a:.4g} .. {b:.4g}" for m, (a, b) in e.intervals.items())
      lines.append(f"{e.name:10s} {e.value:.4g}  {limits}")
    known = [c for c in self.cells if c.sensitivity is not None]
    lines += [f"sensitivity at {_place(c.at)}: {c.sensitivity:.4g} nats" for c in known]
    return "\n".join(lines + [f"note: {n}" for n in self.notes])


def _place(at: dict[str, float]) -> str:
  return ", ".join(f"{k}={v:.3g}" for k, v in at.items())


def lr_sensitivity(learning_rates, losses, init_loss: float) -> float:
  """E over the swept learning rates of min(loss, init_loss) - the lowest loss, in nats.

  The mean is over log learning rate (trapezoid), so uneven sweeps compare; a diverged run (nan or
  above init_loss) counts as init_loss. Wortsman et al. 2023 §2.2.

  Raises:
    ValueError: fewer than two learning rates.
  """
  order = np.argsort(learning_rates)
  u = np.log(np.asarray(learning_rates, float)[order])
  if len(u) < 2 or u[-1] == u[0]:
    raise ValueError(f"learning_rates={list(learning_rates)}: two different ones are needed")
  loss = np.asarray(losses, float)[order]
  loss = np.minimum(np.where(np.isfinite(loss), loss, init_loss), init_loss)
  return float(np.trapezoid(loss - loss.min(), u) / (u[-1] - u[0]))


def _cell(at, values, loss, method, min_points, init_loss, near=None) -> Cell:
  swept, member = np.unique(values, return_inverse=True)
  lowest = np.full(len(swept), np.inf)
  np.minimum.at(lowest, member, loss)  # nuisance hyperparameters are tuned at each swept value
  spread = lr_sensitivity(swept, lowest, init_loss) if init_loss and len(swept) > 1 else None
  if len(swept) < min_points:
    return Cell(
      at,
      swept,
      lowest,
      f"{number_of(len(swept), 'value')}, fewer than {min_points}",
      sensitivity=spread,
    )
  k = int(lowest.argmin())
  if k in (0, len(swept) - 1):
    side = "smallest" if k == 0 else "largest"
    return Cell(
      at, swept, lowest, f"the best is the {side} value, {swept[k]:.3g}", sensitivity=spread
    )
  if near is not None:
    good = lowest <= (1 + near) * lowest[k]
    if good[0] or good[-1]:
      status = "values at the end of the sweep are nearly the best"
      return Cell(at, swept, lowest, status, sensitivity=spread)
    best = float(np.exp(np.log(swept[good]).mean()))
    return Cell(at, swept, lowest, "ok", best, float(lowest[k]), spread)
  around = slice(max(k - 3, 0), k + 4)  # a parabola describes the neighbourhood of the optimum only
  best, low, inside = curves.minimum(method, np.log(swept[around]), lowest[around])
  if not inside[0]:
    return Cell(at, swept, lowest, f"the {method} has no minimum inside", sensitivity=spread)
  return Cell(at, swept, lowest, "ok", float(np.exp(best[0])), float(low[0]), spread)


def hyper_fit(
  table: Table,
  of: str,
  on: Sequence[str] = ("n_params", "n_tokens"),
  *,
  method: str = "parabola",
  min_points: int = 4,
  init_loss: float | None = None,
  near: float | None = None,
  n_boot: int = 1000,
  seed: int = 0,
  confidence: float = 0.95,
) -> HyperFit:
  """The law of the best `of` in the columns `on`.

  Args:
    of: the swept column ("lr", "batch_size", ...); others than `on` are tuned at each of its values.
    on: columns whose equal values make a cell, and on which the optimum is regressed.
    init_loss: loss at initialisation (about log vocabulary size); gives each cell's sensitivity.
    near: take as a cell's best the geometric mean of the values whose loss is within this share of the
      cell's lowest (0.0025: DeepSeek's near-optimal runs), instead of the minimum of a curve.

  Raises:
    ValueError: too few cells with an optimum inside their sweep (each rejection is a note otherwise).
  """
  table = table.need(of, *on, "loss")
  keys = np.stack([table[k] for k in on], axis=1)
  places, member = np.unique(keys, axis=0, return_inverse=True)
  cells = []
  for i, place in enumerate(places):
    rows = member.ravel() == i
    at = dict(zip(on, map(float, place), strict=True))
    cells.append(
      _cell(at, table[of][rows], table["loss"][rows], method, min_points, init_loss, near)
    )
  used = [c for c in cells if c.status == "ok"]
  if len(used) < len(on) + 2:
    why = "; ".join(sorted({c.status.split(",")[0] for c in cells if c.status != "ok"}))
    raise ValueError(
      f"{of}: {number_of(len(used), 'cell')} with an optimum, {len(on) + 2} are needed ({why})"
    )
  basis = np.array([[1.0, *(np.log10(c.at[k]) for k in on)] for c in used])
  centre = basis.mean(0) * (np.arange(len(on) + 1) > 0)
  basis = basis - centre
  y, ones = np.log10([c.best for c in used]), np.ones(len(used))
  if np.linalg.matrix_rank(basis, tol=1e-6) < basis.shape[1]:
    raise ValueError(f"on={tuple(on)}: these columns are collinear over the cells; drop one")
  unshift = np.eye(len(on) + 1)
  unshift[0] -= centre  # log10 k refers to columns equal to 1
  coef = unshift @ curves.weighted_line(basis, y, ones)
  cov = unshift @ curves.line_covariance(basis, y, ones) @ unshift.T
  estimates = _regression(coef, cov, basis, y, unshift, ("log10 k", *on), n_boot, seed, confidence)
  resid = y - basis @ np.linalg.solve(unshift, coef)
  notes = [*table.notes, *table.left_out()]
  if near is not None:
    notes.append(
      f"the best {of} is the mean of those within {near:.2%} of the lowest loss of a cell"
    )
  notes += [f"cell {_place(c.at)} rejected: {c.status}" for c in cells if c.status != "ok"]
  return HyperFit(
    of,
    tuple(on),
    tuple(cells),
    estimates,
    float(1 - resid.var() / max(y.var(), 1e-300)),
    tuple(notes),
  )


def _regression(coef, cov, basis, y, unshift, names, n_boot, seed, level):
  """Estimates with t ("scatter") and case-bootstrap ("case") intervals over cells."""
  from scipy.stats import t

  half = t.ppf((1 + level) / 2, max(len(y) - len(coef), 1)) * np.sqrt(np.diag(cov))
  limits = {"scatter": np.stack([coef - half, coef + half])}
  if n_boot:
    weights = intervals.case_weights(np.arange(len(y)), n_boot, seed)
    lhs = np.einsum("rn,np,nq->rpq", weights, basis, basis)
    rhs = np.einsum("rn,np,n->rp", weights, basis, y)
    whole = np.linalg.cond(lhs) < 1e12  # a resample of too few different cells has no regression
    boots = np.linalg.solve(lhs[whole], rhs[whole][:, :, None])[:, :, 0] @ unshift.T
    limits["case"] = intervals.percentile(boots, level)
  return {
    name: Estimate(
      name,
      float(coef[i]),
      "log10 of the scale" if i == 0 else f"exponent of {name}",
      {m: (float(v[0, i]), float(v[1, i])) for m, v in limits.items()},
      float(np.sqrt(cov[i, i])),
    )
    for i, name in enumerate(names)
  }
