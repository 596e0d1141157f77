"""Training-curve envelope (approach 1): the lowest loss any run has at each FLOP count, and whose it is.

Hoffmann et al. 2022, arXiv:2203.15556 §3.1. It needs curves of constant-rate runs, or its answer is about
unfinished schedules. Neighbouring points share a run, so intervals resample whole runs.
"""

import dataclasses

import numpy as np

from experiments.laws import curves, intervals
from experiments.laws.result import Estimate, Result, to_plain
from experiments.laws.table import Table
from lm.config.errors import number_of


@dataclasses.dataclass(frozen=True, repr=False)
class EnvelopeFit(Result):
  """Points of the envelope [m] and exponents of N* (a), D* (b) in C with run-bootstrap intervals."""

  flops: np.ndarray
  n_params: np.ndarray
  n_tokens: np.ndarray
  loss: np.ndarray
  estimates: dict[str, Estimate]
  notes: tuple[str, ...]

  def __getitem__(self, name: str) -> Estimate:
    return self.estimates[name]

  def to_json(self) -> dict:
    """Plain dicts, lists and numbers."""
    return to_plain(self)

  def summary(self) -> str:
    """A text table."""
    lines = [
      f"training-curve envelope: {number_of(len(self.flops), 'point')}, "
      f"{number_of(len(set(self.n_params)), 'size')} on it"
    ]
    for e in self.estimates.values():
      limits = "  ".join(f"{m} {a:.5g} .. {b:.5g}" for m, (a, b) in e.intervals.items())
      lines.append(f"{e.name:4s} {e.value:.5g}  {limits}")
    return "\n".join(lines + [f"note: {n}" for n in self.notes])


def envelope_fit(
  table: Table,
  run: str,
  *,
  n_points: int = 200,
  n_boot: int = 500,
  seed: int = 0,
  confidence: float = 0.95,
) -> EnvelopeFit:
  """Exponents from the envelope of training curves.

  Args:
    table: rows are (run, FLOPs, loss) with n_params and n_tokens; `run` is its label column.
    n_points: FLOP counts, log-spaced over the range where two runs or more overlap.

  Raises:
    ValueError: no such label, or an envelope with fewer than two sizes inside the range of sizes.
  """
  table = table.with_flops().need("n_params", "n_tokens", "flops", "loss")
  if run not in table.labels:
    raise ValueError(f"run={run!r}: not read as text; known: {', '.join(table.labels) or 'none'}")
  sizes, grid, loss_RC, log_d_RC = _on_one_grid(table, table.labels[run], n_points)
  found, inner, best = _exponents(np.arange(len(sizes)), sizes, grid, loss_RC, log_d_RC)
  if found is None:
    raise ValueError(
      "envelope: fewer than two sizes strictly inside the range are ever best; add sizes"
    )
  rng, boots = np.random.default_rng(seed), []
  for _ in range(n_boot):
    drawn = np.unique(rng.integers(0, len(sizes), len(sizes)))
    boots.append(_exponents(drawn, sizes, grid, loss_RC, log_d_RC)[0])
  boots = np.array([b for b in boots if b is not None]).reshape(-1, 2)
  limits = intervals.percentile(boots, confidence) if len(boots) else np.full((2, 2), np.nan)
  estimates = {
    name: Estimate(name, float(found[i]), meaning, {"runs": tuple(map(float, limits[:, i]))}, None)
    for i, (name, meaning) in enumerate(
      (("a", "exponent of N* in C"), ("b", "exponent of D* in C"))
    )
  }
  notes = [*table.notes, *table.left_out()]
  if (~inner).any():
    notes.append(
      f"{(~inner).sum()} of {n_points} points left out: the best run is the smallest or largest"
    )
  if len(boots) < n_boot:
    notes.append(f"{n_boot - len(boots)} of {n_boot} resamples had no envelope over two sizes")
  at, columns = best[inner], np.flatnonzero(inner)
  return EnvelopeFit(
    np.exp(grid[inner]),
    sizes[at],
    np.exp(log_d_RC[at, columns]),
    np.exp(loss_RC[at, columns]),
    estimates,
    tuple(notes),
  )


def _on_one_grid(table: Table, labels, n_points: int):
  """(sizes [R], log FLOPs [C], log loss [R, C], log tokens [R, C]); loss is inf where a run has no curve."""
  names, member = np.unique(labels, return_inverse=True)
  log_c, log_loss, log_d = (np.log(table[k]) for k in ("flops", "loss", "n_tokens"))
  rows = [np.flatnonzero(member == r) for r in range(len(names))]
  rows = [r[np.argsort(log_c[r])] for r in rows]
  spans = np.array([(log_c[r[0]], log_c[r[-1]]) for r in rows])
  if len(names) >= 3:
    low, high = np.sort(spans[:, 0])[1], np.sort(spans[:, 1])[-2]
  if len(names) < 3 or low >= high:
    raise ValueError(
      f"run: {number_of(len(names), 'curve')}, not three that overlap in FLOPs; give more"
    )
  grid = np.linspace(low, high, n_points)
  loss_RC, log_d_RC = np.full((len(names), n_points), np.inf), np.zeros((len(names), n_points))
  for i, r in enumerate(rows):
    alive = (grid >= spans[i, 0]) & (grid <= spans[i, 1])
    loss_RC[i, alive] = np.interp(grid[alive], log_c[r], log_loss[r])
    log_d_RC[i, alive] = np.interp(grid[alive], log_c[r], log_d[r])
  return np.array([table["n_params"][r[0]] for r in rows]), grid, loss_RC, log_d_RC


def _exponents(runs, sizes, grid, loss_RC, log_d_RC):
  """((a, b) or None, points inside the range of sizes [C], best run [C]) of the envelope of some runs."""
  columns = np.arange(len(grid))
  best = runs[loss_RC[runs].argmin(0)]
  n_best = sizes[best]
  inner = (n_best > sizes[runs].min()) & (n_best < sizes[runs].max())
  inner &= np.isfinite(loss_RC[best, columns])
  if len(set(n_best[inner])) < 2:
    return None, inner, best
  basis = np.stack([np.ones(inner.sum()), grid[inner] - grid.mean()], axis=1)
  ends = np.stack([np.log(n_best), log_d_RC[best, columns]])[:, inner]
  return curves.weighted_line(basis, ends, np.ones(len(basis)))[:, 1], inner, best
