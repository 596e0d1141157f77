"""Score of a task from size and data through the loss: two laws in a chain, with their joint uncertainty.

L(N, D, ...) first, then error(L) (Gadre et al. 2024, arXiv:2403.08540 §3.2) or accuracy(L), a sigmoid
(Bhagia et al. 2024, arXiv:2412.04403 §3). Both laws are refitted to each
bootstrap sample of the same runs, so that what the first gets wrong goes through the second.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.laws import allocation, diagnostics, forms, intervals, lawfit, solve
from experiments.laws.result import Estimate, LawFit, Result, to_plain
from experiments.laws.table import Table
from lm.config.errors import number_of


@dataclasses.dataclass(frozen=True)
class ChainHoldout:
  """The chain fitted below `above_flops` on the errors above: mean absolute error and signed mean."""

  above_flops: float
  n_held: int
  mae: float
  bias: float
  predicted: np.ndarray
  observed: np.ndarray


@dataclasses.dataclass(frozen=True, repr=False)
class ChainFit(Result):
  """error(L(x)). `estimates`: the loss and the error at each point asked for; `loss_law` and `error_law`
  are the two fits, whose own parameters and verdicts they carry."""

  loss_law: LawFit
  error_law: LawFit
  estimates: dict[str, Estimate]
  boots: np.ndarray  # [n_boot, points] errors
  confidence: float
  n_boot: int
  seed: int
  holdout: ChainHoldout | None
  notes: tuple[str, ...]

  def __getitem__(self, name: str) -> Estimate:
    return self.estimates[name]

  def headline(self) -> str:
    return (
      f"{self.error_law.law.name} of {self.loss_law.law.name} on {self.loss_law.n} and "
      f"{number_of(self.error_law.n, 'run')}"
    )

  def predict(self, columns: Mapping[str, Sequence[float]]) -> np.ndarray:
    """Errors [n] of new runs given as columns."""
    return self.error_law.predict({"loss": self.loss_law.predict(columns)})

  def to_json(self) -> dict:
    """Plain dicts, lists and numbers."""
    return to_plain(
      {
        "loss_law": self.loss_law.to_json(),
        "error_law": self.error_law.to_json(),
        "estimates": self.estimates,
        "confidence": self.confidence,
        "n_boot": self.n_boot,
        "seed": self.seed,
        "holdout": self.holdout,
        "notes": self.notes,
      }
    )

  def summary(self) -> str:
    """A text table."""
    lines = [f"chain: {self.error_law.law.formula} of {self.loss_law.law.formula}"]
    for title, f in (("loss", self.loss_law), (self.error_law.law.target, self.error_law)):
      values = ", ".join(f"{n} {f[n].value:.5g}" for n in f.law.names)
      lines.append(f"{title}: {number_of(f.n, 'run')}, {values}")
      lines.append(f"  verdict: {f.lack_of_fit.text}")
    for e in self.estimates.values():
      limits = "  ".join(f"{m} {self.confidence:.0%} {e.said(m)}" for m in e.intervals)
      spread = "" if e.boot_se is None else f"  boot se {e.boot_se:.3g}"
      lines.append(f"{e.name}  {e.value:.5g}  {limits or e.withheld.split(':')[0]}{spread}")
    if self.holdout:
      h = self.holdout
      lines.append(
        f"held out: {number_of(h.n_held, 'run')} above {h.above_flops:.3g} FLOPs: mean absolute error of the "
        f"predicted {self.error_law.law.target} {h.mae:.4f}, bias {h.bias:+.4f}"
      )
    return "\n".join(lines + [f"note: {n}" for n in self.notes])


def chain_fit(
  table: Table,
  law: str | forms.Law = "chinchilla",
  second: str | forms.Law = "downstream",
  *,
  points: Sequence[Mapping[str, float]] = (),
  objective: str = "huber",
  delta: float = 1e-3,
  n_boot: int = 1000,
  seed: int = 0,
  confidence: float = 0.95,
  n_starts: int | None = None,
  cluster: str | None = None,
  holdout: bool = True,
  force: bool = False,
) -> ChainFit:
  """Fits loss and then task error, and predicts the error at `points`.

  Args:
    table: the first law's columns, the loss, and the error; runs without an error count for the loss only.
    law, second: the laws of the loss and of the error in the loss.
    points: {column: value} of the first law's inputs, whose error is wanted.
    objective, delta: of the first law; the second is fitted by least squares of the error.
    holdout: predict the errors of the largest compute from the other runs.
    n_starts, cluster, force: of both fits, as of lawfit.fit_table.

  Raises:
    ConfigError, ValueError: as of lawfit.fit_table, for either law.
  """
  options = {"n_boot": 0, "n_starts": n_starts, "cluster": cluster, "seed": seed, "force": force}
  options |= {"confidence": confidence, "methods": ("delta",)}
  first = lawfit.fit_table(
    table, law, objective=objective, delta=delta, holdout=False, points=points, **options
  )
  then = lawfit.fit_table(table, second, objective="l2", holdout=False, **options)
  pair = [_prepared(f, cluster) for f in (first, then)]
  limits, _, errors = _joint(pair, points, table, cluster, n_boot, seed, confidence)
  judged_fails = [f for f in (first, then) if f.lack_of_fit.fails]
  estimates = {}
  for i, point in enumerate(points):
    name = ",".join(f"{k}={allocation.key(v)}" for k, v in point.items())
    estimates[f"loss@{name}"] = first[f"loss@{name}"]
    loss = first.predict({k: [v] for k, v in point.items()})
    value = float(then.predict({"loss": loss})[0])
    e = Estimate(
      f"{then.law.target}@{name}",
      value,
      f"task {then.law.target} at {name}",
      {"case": tuple(map(float, limits[:, i]))} if n_boot else {},
      None,
      False,
      float(errors[:, i].std()) if n_boot else None,
    )
    if judged_fails and not force and lawfit.beyond(f"loss@{name}", first.table):
      why = f"withheld: {judged_fails[0].lack_of_fit.text}"
      e = dataclasses.replace(e, intervals={}, boot_se=None, withheld=why)
    estimates[e.name] = e
  held, notes = None, list(dict.fromkeys((*first.notes, *then.notes)))
  if holdout:
    held, why = _held_out(pair, first, then)
    notes += why
  return ChainFit(first, then, estimates, errors, confidence, n_boot, seed, held, tuple(notes))


def _prepared(f: LawFit, cluster):
  """(problem, data, theta, rows of the source) of a fit."""
  fixed = {n: f[n].value for n in f.law.names if f[n].fixed}
  delta = {"huber": f.delta, "lad": solve.LAD_DELTA, "l2": solve.L2_DELTA}[f.objective]
  data = lawfit.make_data(f.table, f.law, delta, cluster)
  return solve.make_problem(f.law, fixed), data, f.theta, f.table.rows


def _joint(pair, points, table, cluster, n_boot, seed, level):
  """(limits [2, points], losses, errors [n_boot, points]) over samples of the same runs."""
  if not n_boot or not points:
    return np.zeros((2, len(points))), None, np.zeros((0, len(points)))
  rows = np.unique(np.concatenate([p[3] for p in pair]))
  where = {r: i for i, r in enumerate(table.rows)}
  whole = lawfit.cluster_of(table, cluster, list(table.columns))
  counts = intervals.case_weights(whole[[where[r] for r in rows]], n_boot, seed)
  fits = []
  for problem, data, theta, mine in pair:
    fits.append(
      intervals.refit(problem, data, theta, weights=counts[:, np.searchsorted(rows, mine)])
    )
  bad = intervals.failed(fits[0]) | intervals.failed(fits[1])
  (first, _, _, _), (then, _, _, _) = pair
  columns = {k: np.array([p[k] for p in points], float) for k in first.law.inputs}
  out = intervals.predict(first.law, fits[0].theta[~bad], columns).T
  losses = np.exp(out) if first.law.link == "log" else out
  errors = np.array([
    intervals.predict(then.law, theta, {"loss": loss})
    for theta, loss in zip(fits[1].theta[~bad], losses, strict=True)
  ])  # fmt: skip
  units = len(np.unique(whole))
  return intervals.percentile(errors, level, units if units < len(whole) else None), losses, errors


def _held_out(pair, first: LawFit, then: LawFit):
  """(ChainHoldout or None, notes): both laws refitted without the largest compute."""
  if "flops" not in first.table.columns or "flops" not in then.table.columns:
    return None, ["no extrapolation test of the chain: no FLOPs"]
  above = diagnostics.holdout_threshold(then.table["flops"])
  thetas = []
  for (problem, data, theta, _), f in zip(pair, (first, then), strict=True):
    keep = (f.table["flops"] <= above).astype(float)
    if keep.sum() <= problem.n_free + 1:
      return None, ["no extrapolation test of the chain: too few runs of smaller compute"]
    thetas.append(intervals.refit(problem, data, theta, weights=keep[None]).theta[0])
  held = then.table["flops"] > above
  columns = {k: then.table[k][held] for k in first.law.inputs}
  predicted = then.predict({"loss": first.predict(columns, thetas[0])}, thetas[1])
  observed = then.table[then.law.target][held]
  off = predicted - observed
  return (
    ChainHoldout(
      above, int(held.sum()), float(np.abs(off).mean()), float(off.mean()), predicted, observed
    ),
    [],
  )
