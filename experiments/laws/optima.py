"""Power laws through published optima: pairs (C, N*), with D* and standard deviations where given."""

import dataclasses

import numpy as np

from experiments.laws import isoflop
from experiments.laws.result import Estimate, Result, to_plain
from experiments.laws.table import Table


@dataclasses.dataclass(frozen=True, repr=False)
class OptimaFit(Result):
  """N* = k C^a (and D* = k C^b) by weighted log-log regression, with its t-interval ("scatter")."""

  estimates: dict[str, Estimate]
  weighted: bool
  table: Table
  confidence: float
  notes: tuple[str, ...]

  def __getitem__(self, name: str) -> Estimate:
    return self.estimates[name]

  def to_json(self) -> dict:
    """Plain dicts, lists and numbers."""
    return to_plain(
      {
        "estimates": self.estimates,
        "weighted": self.weighted,
        "confidence": self.confidence,
        "n_rows": len(self.table),
        "columns": self.table.source,
        "skipped": self.table.skipped,
        "notes": self.notes,
      }
    )

  def summary(self) -> str:
    """A text table."""
    how = "weighted by 1 / sd^2" if self.weighted else "unweighted"
    lines = [f"power law through {len(self.table)} optima, {how}"]
    for e in self.estimates.values():
      low, high = e.interval
      lines.append(
        f"{e.name}  {e.value:.6g}  scatter {self.confidence:.0%} {low:.5g} .. {high:.5g}"
      )
    return "\n".join(lines + [f"note: {n}" for n in self.notes])


def optima_fit(table: Table, *, sd: str | None = None, confidence: float = 0.95) -> OptimaFit:
  """Exponents of optima in C.

  Args:
    table: n_params (N*) and flops, and n_tokens (D*) where there is such a column.
    sd: column of the standard deviation of log N*; None: all optima weigh alike.

  Raises:
    ValueError: a column that the table does not have, or fewer than three optima.
  """
  needed = ["n_params", "flops", *([sd] if sd else [])]
  table = table.need(*needed)
  if len(table) < 3:
    raise ValueError(
      f"rows={len(table)}: a power law with an interval needs three optima; give more"
    )
  estimates, sizes = {}, {"a": "n_params", "b": "n_tokens"}
  for name, column in sizes.items():
    if column in table.columns and np.isfinite(table[column]).all():
      fitted = isoflop.power_law_of_optima(
        table["flops"], table[column], sd and table[sd], confidence
      )
      of = "N*" if name == "a" else "D*"
      estimates[name] = dataclasses.replace(fitted, name=name, meaning=f"exponent of {of} in C")
  notes = (*table.notes, *table.left_out())
  return OptimaFit(estimates, sd is not None, table, confidence, notes)
