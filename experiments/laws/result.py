"""What a fit gives back: estimates with intervals, the state of the solver, a text table and JSON."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.laws import adequacy, allocation, diagnostics, forms, intervals
from experiments.laws.table import Table
from lm.config.errors import number_of

SHOWN_HELD = 10  # held-out runs listed in a summary


def to_plain(value):
  """Dataclasses, arrays and tuples as dicts, lists and numbers that JSON can hold; nan becomes None."""
  if dataclasses.is_dataclass(value):
    value = dataclasses.asdict(value)
  if isinstance(value, dict):
    return {k: to_plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple | np.ndarray):
    return [to_plain(v) for v in value]
  if isinstance(value, np.generic):
    value = value.item()
  return None if isinstance(value, float) and not np.isfinite(value) else value


@dataclasses.dataclass(frozen=True)
class Outliers:
  """Which runs are left out of a fit; each is counted and named in the result.

  Attributes:
    drop_highest_loss: this many runs of highest loss (Besiroglu et al. 2024 drop 5 of 245).
    residual_mads: after a first fit, runs whose residual is more than this many scaled median absolute
      deviations from the median are dropped and the law refitted once; None: keep all.
    min_flops: runs below are dropped; None: keep all.
  """

  drop_highest_loss: int = 0
  residual_mads: float | None = None
  min_flops: float | None = None

  def __str__(self) -> str:
    said = [
      f"the {self.drop_highest_loss} highest losses dropped" if self.drop_highest_loss else "",
      f"residuals beyond {self.residual_mads:g} MADs dropped" if self.residual_mads else "",
      f"runs below {self.min_flops:.3g} FLOPs dropped" if self.min_flops else "",
    ]
    return "; ".join(s for s in said if s) or "none dropped"


def said_limits(low: float, high: float) -> str:
  """`1.2 .. 3.4`, with "no lower bound", "no upper bound" where there is none."""
  left = f"{low:.5g}" if np.isfinite(low) and low != 0 else "no lower bound"
  right = f"{high:.5g}" if np.isfinite(high) else "no upper bound"
  return "no bound on either side" if "no" in left and "no" in right else f"{left} .. {right}"


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number with its intervals.

  Attributes:
    intervals: {method: (low, high)}; a limit of -inf or inf (0 or inf for a scale) is no limit at all.
    se: standard error of the delta method, None without it.
    boot_se: standard deviation over the case bootstrap, None without it.
    withheld: why there is no interval though one was asked for; "" where there is one.
  """

  name: str
  value: float
  meaning: str
  intervals: dict[str, tuple[float, float]]
  se: float | None
  fixed: bool = False
  boot_se: float | None = None
  withheld: str = ""

  @property
  def interval(self) -> tuple[float, float] | None:
    """The first method's limits."""
    return next(iter(self.intervals.values()), None)

  def said(self, method: str) -> str:
    """The limits of a method in words."""
    if self.fixed:
      return "fixed"
    if method not in self.intervals:
      return self.withheld.split(":")[0]
    return said_limits(*self.intervals[method])


class Result:
  """What every result can do: `to_dict()`, `to_json()` (the same), a short repr, `[name]`, `plot()`."""

  def plot(self):
    """An altair chart, which a notebook displays by itself; `plot().save("law.html")` writes it.

    Figures are the room report's; it is loaded when one is asked for, so that laws stay usable alone.
    """
    return importlib.import_module("experiments.report.plots").plot(self)

  def to_dict(self) -> dict:
    """Plain dicts, lists and numbers, fit for JSON."""
    return self.to_json()

  def __repr__(self) -> str:
    return f"<{type(self).__name__}: {self.headline()}>"

  def headline(self) -> str:
    """A line: what was fitted and its main numbers."""
    shown = [e for e in self.estimates.values() if "@" not in e.name and "log10" not in e.name]
    cells = [
      f"{e.name} {e.value:.4g}"
      + (f" [{e.interval[0]:.4g}, {e.interval[1]:.4g}]" if e.interval and not e.fixed else "")
      for e in shown[:7]
    ]
    return ", ".join(cells)


@dataclasses.dataclass(frozen=True, repr=False)
class LawFit(Result):
  """A fitted law.

  Attributes:
    value: the objective at the optimum, summed over runs.
    grad_norm: max |d objective / d working parameter| / sum |clipped residual|, so 1e-6 means solved.
    share: of the starts, how many reached `value` within a relative 1e-6.
    theta: working parameters [P]; `estimates` has the printed ones.
    boots: [n_boot, P] working parameters of the case bootstrap (empty without one).
    table: the runs that were fitted.
    residuals: log(observed / predicted), or observed - predicted for a linear link, [n].
  """

  law: forms.Law
  objective: str
  delta: float | None
  value: float
  grad_norm: float
  share: float
  n_starts: int
  estimates: dict[str, Estimate]
  theta: np.ndarray
  boots: np.ndarray
  table: Table
  residuals: np.ndarray
  log_likelihood: float
  n_free: int
  confidence: float
  n_boot: int
  seed: int
  flop_factor: float  # N* and D* spend C = flop_factor N^flop_exponent D
  flop_exponent: float
  outliers: Outliers
  conditioning: diagnostics.Conditioning
  holdout: diagnostics.Holdout | None
  notes: tuple[str, ...]
  lack_of_fit: adequacy.LackOfFit | None = None
  clusters: int | None = None  # how many groups of rows were resampled whole; None: every row alone
  not_identified: tuple[str, ...] = ()
  failed_refits: int = 0  # bootstrap samples that came to no optimum, left out of every interval
  weighted_by: str = ""
  covariance: np.ndarray | None = None  # [P, P] of the working parameters

  @property
  def residual(self) -> str:
    """ "log" or "linear": of which the objective sums up the residuals."""
    return self.law.link

  @property
  def size_exponent(self) -> Estimate | None:
    """The exponent of N* in C; None for a law that implies none, though it may have a parameter `a`."""
    return self["a"] if allocation.Quantities(self.law).has_allocation else None

  @property
  def r2(self) -> float:
    """1 - sum of squared residuals / sum of squares about the mean, of the target in its own unit."""
    target = self.table[self.law.target]
    off = target - self.predict({k: self.table[k] for k in self.law.inputs})
    return float(1 - (off**2).sum() / max(((target - target.mean()) ** 2).sum(), 1e-300))

  @property
  def bic(self) -> float:
    """k log n - 2 log L with k counting the scale of the noise."""
    return (self.n_free + 1) * float(np.log(self.n)) - 2 * self.log_likelihood

  @property
  def n(self) -> int:
    return len(self.residuals)

  @property
  def aic(self) -> float:
    """2 k - 2 log L with k counting the scale of the noise."""
    return 2 * (self.n_free + 1) - 2 * self.log_likelihood

  def __getitem__(self, name: str) -> Estimate:
    return self.estimates[name]

  def likelihood_ratio(self, larger: "LawFit") -> dict[str, float]:
    """Test of this law against a `larger` one that contains it: {"statistic", "dof", "p"}.

    Raises:
      ValueError: the two were not fitted to the same runs by the same objective.
    """
    if (self.n, self.objective, self.delta) != (larger.n, larger.objective, larger.delta):
      raise ValueError(
        f"likelihood_ratio: {number_of(self.n, 'run')} by {self.objective} against {larger.n} "
        f"by {larger.objective}; "
        "fit both laws to the same runs alike"
      )
    return intervals.likelihood_ratio(
      (self.log_likelihood, self.n_free), (larger.log_likelihood, larger.n_free)
    )

  def headline(self) -> str:
    verdict = "" if self.lack_of_fit is None else f"; {self.lack_of_fit.verdict} lack-of-fit test"
    if self.lack_of_fit is not None and self.lack_of_fit.verdict == "not tested":
      verdict = "; lack of fit not tested"
    return f"{self.law.name} on {number_of(self.n, 'run')}: {super().headline()}{verdict}"

  def predict(
    self, columns: Mapping[str, Sequence[float]], theta: np.ndarray | None = None
  ) -> np.ndarray:
    """Targets (losses, or errors) [n] of new runs given as columns; `theta`: other working parameters,
    such as those of the fit without the held-out runs."""
    out = intervals.predict(
      self.law,
      self.theta if theta is None else theta,
      {k: np.asarray(v, float) for k, v in columns.items()},
    )
    return np.exp(out) if self.law.link == "log" else out

  def band(self, columns: Mapping[str, Sequence[float]]) -> np.ndarray:
    """[2, n] case-bootstrap limits of the law itself (not of a new run) at new columns."""
    x = {k: np.asarray(v, float) for k, v in columns.items()}
    out = intervals.percentile(intervals.predict(self.law, self.boots, x).T, self.confidence)
    return np.exp(out) if self.law.link == "log" else out

  def to_json(self) -> dict:
    """Everything but the arrays of the bootstrap, as plain dicts, lists and numbers."""
    held = self.holdout and {
      k: v for k, v in dataclasses.asdict(self.holdout).items() if k != "theta"
    }
    estimates = {
      name: dataclasses.asdict(e) | {"said": {m: e.said(m) for m in e.intervals}}
      for name, e in self.estimates.items()
    }
    return to_plain(
      {
        "law": self.law.name,
        "formula": self.law.formula,
        "source": self.law.source,
        "objective": self.objective,
        "delta": self.delta,
        "value": self.value,
        "grad_norm": self.grad_norm,
        "share_of_starts_at_optimum": self.share,
        "n_starts": self.n_starts,
        "n_rows": self.n,
        "n_free": self.n_free,
        "log_likelihood": self.log_likelihood,
        "aic": self.aic,
        "bic": self.bic,
        "r2": self.r2,
        "residual": self.residual,
        "lack_of_fit": self.lack_of_fit,
        "clusters": self.clusters,
        "not_identified": self.not_identified,
        "failed_refits": self.failed_refits,
        "weighted_by": self.weighted_by,
        "residual_rms": np.sqrt((self.residuals**2).mean()),
        "confidence": self.confidence,
        "n_boot": self.n_boot,
        "seed": self.seed,
        "flop_factor": self.flop_factor,
        "flop_exponent": self.flop_exponent,
        "outliers": str(self.outliers),
        "estimates": estimates,
        "conditioning": self.conditioning,
        "holdout": held,
        "columns": self.table.source,
        "skipped": self.table.skipped,
        "notes": self.notes,
      }
    )

  def summary(self, width: int | None = None) -> str:
    """A text table: what was fitted, how well it was solved, each number with its intervals.

    Args:
      width: characters that the table has: columns go from the right, and a line says which. None = all stay.
    """
    delta = f" delta={self.delta:g}" if self.delta else ""
    lines = [
      f"{self.law.name}: {self.law.formula}",
      f"{number_of(self.n, 'run')}, {self.n_free} free parameters, {self.objective}{delta}; "
      f"outliers: {self.outliers}",
      f"columns: {self.table.columns_read()}",
      f"objective {self.value:.9g}, relative gradient {self.grad_norm:.1e}, "
      f"{self.share:.1%} of {self.n_starts} starts reach it",
      f"residual rms {np.sqrt((self.residuals**2).mean()):.4g}, "
      f"log L {self.log_likelihood:.6g}, AIC {self.aic:.6g}",
    ]
    if self.clusters is not None:
      lines.append(f"{self.clusters} clusters of runs, each resampled whole")
    if self.weighted_by:
      lines.append(f"rows weighted by {self.weighted_by}")
    if self.lack_of_fit is not None:
      lines.append(f"verdict: {self.lack_of_fit.text}")
    most = max((e.intervals for e in self.estimates.values()), key=len)
    methods = dict.fromkeys((*most, *(m for e in self.estimates.values() for m in e.intervals)))
    has_boot = any(e.boot_se is not None for e in self.estimates.values())
    head = ["", "estimate", *(f"{m} {self.confidence:.0%}" for m in methods)]
    head += ["boot se"] * has_boot
    rows = [head]
    for e in self.estimates.values():
      cells = [e.said(m) for m in methods]
      boot = "" if e.boot_se is None or e.fixed else f"{e.boot_se:.3g}"
      rows.append([e.name, f"{e.value:.6g}", *cells, *[boot] * has_boot])
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    kept = len(widths)
    while width and kept > 3 and sum(widths[:kept]) + 2 * (kept - 1) > width:
      kept -= 1
    lines += ["  ".join(map(str.ljust, r[:kept], widths)).rstrip() for r in rows]
    if kept < len(widths):
      lines.append(f"no room for: {', '.join(head[kept:])}")
    if self.holdout:
      h = self.holdout
      values = ", ".join(f"{k} {v:.4g}" for k, v in h.parameters.items())
      lines.append(
        f"held out: {number_of(h.n_held, 'run')} up to {h.reach:.3g}x the compute of the "
        f"{h.n_fitted} fitted: "
        f"bias {h.bias:+.2%}, rms {h.rms:.2%} (fitted runs {h.rms_fitted:.2%}), mean absolute error "
        f"{h.mae:.4g} ({h.mare:.2%}), "
        f"{round(h.covered * h.n_held)} of {h.n_held} inside their {h.level:.0%} prediction interval"
      )
      lines += [f"held-out verdict: {h.text}", f"fitted without them: {values}"]
      lines += self._held_lines()
    lines += [f"note: {n}" for n in self.notes]
    return "\n".join(lines)

  def _held_lines(self) -> list[str]:
    """A line a held-out run, the largest compute last."""
    h, target = self.holdout, self.table[self.law.target]
    flops = self.table["flops"]
    held = np.flatnonzero(flops > h.above_flops)
    order = np.argsort(flops[held], kind="stable")
    lines = []
    for i in order[-SHOWN_HELD:]:
      low, high = h.bounds[:, i]
      inside = "" if low <= target[held[i]] <= high else "  outside"
      lines.append(
        f"  row {self.table.rows[held[i]]}: C {flops[held[i]]:.3g}, {self.law.target} "
        f"{target[held[i]]:.4f}, predicted {h.predicted[i]:.4f} [{low:.4f}, {high:.4f}]{inside}"
      )
    if len(held) > SHOWN_HELD:
      lines.insert(0, f"  the {SHOWN_HELD} of largest compute:")
    return lines
