"""A law with given parameters set against runs, and laws set against each other.

`evaluate` asks how well a published law predicts a table and whether the table's own fit differs from it;
`compare` ranks laws fitted to one table by AIC and BIC, and tests those that contain each other.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.laws import forms, intervals, lawfit, solve
from experiments.laws.result import LawFit, Result, to_plain
from experiments.laws.table import Table
from lm.config.errors import number_of


@dataclasses.dataclass(frozen=True, repr=False)
class GivenLaw(Result):
  """A law that was not fitted, on runs.

  Attributes:
    r2: 1 - sum of squared errors / sum of squares about the mean, of the target in its own unit.
    bias, rms, mae: mean, root mean square and mean absolute error relative to the observed.
    chi2: sum of (observed - predicted)^2 / sd^2 with its degrees of freedom (the number of runs) and p;
      None without standard deviations.
    wald, likelihood_ratio: tests of the given parameters against the fit of the same law to the same runs,
      {"statistic", "dof", "p"}; the first by the sandwich covariance (F), the second by the objective's
      density (chi^2). None where the fit does not identify its parameters, the second also where the fit is
      weighted in another way than least squares by 1 / sd^2.
  """

  law: forms.Law
  values: dict[str, float]
  n: int
  r2: float
  bias: float
  rms: float
  mae: float
  chi2: dict[str, float] | None
  wald: dict[str, float] | None
  likelihood_ratio: dict[str, float] | None
  fitted: LawFit | None
  predicted: np.ndarray
  notes: tuple[str, ...]

  def headline(self) -> str:
    return f"{self.law.name} as given on {number_of(self.n, 'run')}: R^2 {self.r2:.4f}, rms {self.rms:.2%}"

  def to_json(self) -> dict:
    """Plain dicts, lists and numbers."""
    plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
    plain |= {"law": self.law.name, "formula": self.law.formula}
    plain["fitted"] = self.fitted and {n: self.fitted[n].value for n in self.law.names}
    return to_plain(plain)

  def summary(self) -> str:
    """A text table."""
    given = ", ".join(f"{k} {v:.6g}" for k, v in self.values.items())
    lines = [
      f"{self.law.name} as given: {given}",
      f"{number_of(self.n, 'run')}: R^2 {self.r2:.4f}, bias {self.bias:+.2%}, rms {self.rms:.2%}, "
      f"mean absolute error {self.mae:.2%}",
    ]
    for name, test in (
      ("chi^2 of the errors", self.chi2),
      ("Wald test against the fit", self.wald),
      ("likelihood ratio against the fit", self.likelihood_ratio),
    ):
      if test is not None:
        dof = f"{test['dof']:g}" + (f" and {test['dof_noise']:g}" if "dof_noise" in test else "")
        says = "differs" if test["p"] < 0.05 else "does not differ"
        verdict = "" if name.startswith("chi") else f": the given law {says} from the fitted one"
        lines.append(f"{name}: {test['statistic']:.4g} on {dof}, p = {test['p']:.2g}{verdict}")
    if self.fitted is not None:
      found = ", ".join(f"{n} {self.fitted[n].value:.6g}" for n in self.law.names)
      lines.append(f"fitted: {found}; {self.fitted.lack_of_fit.text}")
    return "\n".join(lines + [f"note: {n}" for n in self.notes])


def evaluate(
  table: Table,
  law: str | forms.Law,
  values: Mapping[str, float],
  *,
  sd: str | None = None,
  against_fit: bool = True,
  objective: str = "huber",
  delta: float = 1e-3,
  n_starts: int | None = 256,
  cluster: str | None = None,
  fitted: LawFit | None = None,
) -> GivenLaw:
  """How well a law with given printed `values` predicts a table's runs.

  Args:
    values: every parameter of the law by name.
    sd: column of standard deviations of the target, for chi2.
    against_fit: fit the law too, and test whether the given values differ from the fitted ones.
    objective, delta, n_starts, cluster: of that fit, as of lawfit.fit_table.
    fitted: the fit itself, where there is one already.

  Raises:
    ValueError: a parameter is missing or unknown, or a column is.
  """
  form = lawfit.law_of(law)
  absent = [n for n in form.names if n not in values]
  unknown = [n for n in values if n not in form.names]
  if absent or unknown:
    what = f"{absent[0]} is missing" if absent else f"no parameter {unknown[0]!r}"
    raise ValueError(f"values: {what}; law={form.name} has {', '.join(form.names)}")
  theta = form.working(np.array([values[n] for n in form.names]))
  if fitted is not None:
    table = fitted.table
  else:
    table = lawfit.prepare(table, form, lawfit.NO_OUTLIERS, 6.0, sd)
  columns, observed = {k: table[k] for k in form.inputs}, table[form.target]
  out = intervals.predict(form, theta, columns)
  predicted = np.exp(out) if form.link == "log" else out
  off = predicted - observed
  chi = None
  if sd is not None:
    from scipy.stats import chi2

    stat = float(((off / table[sd]) ** 2).sum())
    chi = {"statistic": stat, "dof": len(off), "p": float(chi2.sf(stat, len(off)))}
  notes = [*table.notes, *table.left_out()]
  wald = ratio = None
  if against_fit and fitted is None:
    fitted = lawfit.fit_table(
      table, form, objective=objective, delta=delta, n_boot=0, methods=("delta",),
      n_starts=n_starts, cluster=cluster, sd=sd, holdout=False, force=True,
    )  # fmt: skip
  if fitted is not None:
    if fitted.not_identified:
      lost = ", ".join(fitted.not_identified)
      notes.append(f"no test against a fit: these runs do not identify {lost}")
    else:
      by_sd = sd is not None and fitted.weighted_by == f"1 / {sd}^2"
      data = lawfit.make_data(fitted.table, fitted.law, 1.0, sd=sd if by_sd else None)
      wald, ratio = _tests(fitted, theta, data.weights)
  square = float(((observed - observed.mean()) ** 2).sum())
  return GivenLaw(
    form,
    {n: float(values[n]) for n in form.names},
    len(off),
    float(1 - (off**2).sum() / max(square, 1e-300)),
    float((off / observed).mean()),
    float(np.sqrt(((off / observed) ** 2).mean())),
    float(np.abs(off / observed).mean()),
    chi,
    wald,
    ratio,
    fitted,
    predicted,
    tuple(notes),
  )


def _tests(fitted: LawFit, theta: np.ndarray, weights: np.ndarray | None):
  """(Wald, likelihood ratio) of working parameters `theta` against a fit.

  Of a weighted fit the second is there for least squares with `weights` 1 / sd^2: then the rows are
  normal with variances in the ratio of sd^2, whose weights alone add the same to both likelihoods.
  """
  from scipy.stats import chi2
  from scipy.stats import f as f_law

  free = np.flatnonzero([not fitted[n].fixed for n in fitted.law.names])
  off, cov = (fitted.theta - theta)[free], fitted.covariance[np.ix_(free, free)]
  size = np.sqrt(np.maximum(np.diag(cov), 1e-300))
  stat = float(
    (off / size) @ np.linalg.pinv(cov / np.outer(size, size), rcond=1e-12) @ (off / size)
  )
  k, units = fitted.n_free, fitted.clusters or fitted.n
  noise = max(units - k, 1)
  wald = {
    "statistic": stat / k,
    "dof": k,
    "dof_noise": noise,
    "p": float(f_law.sf(stat / k, k, noise)),
  }
  deltas = {"huber": fitted.delta, "lad": solve.LAD_DELTA, "l2": solve.L2_DELTA}
  delta = deltas[fitted.objective]
  x = {k: fitted.table[k] for k in fitted.law.inputs}
  y = fitted.table[fitted.law.target]
  resid = (np.log(y) if fitted.law.link == "log" else y) - intervals.predict(fitted.law, theta, x)
  w = 1.0 if weights is None else weights
  off = float((w * intervals.huber(resid, delta)).sum())
  given = intervals.log_likelihood(off, fitted.n, delta)
  rise = max(2 * (fitted.log_likelihood - given), 0.0)
  if fitted.weighted_by and (weights is None or fitted.objective != "l2"):
    return wald, None
  return wald, {"statistic": rise, "dof": k, "p": float(chi2.sf(rise, k))}


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison(Result):
  """Laws fitted to one table. `rows`: a dict a law, best AIC first; `nested`: likelihood-ratio tests."""

  fits: dict[str, LawFit]
  rows: tuple[dict, ...]
  nested: tuple[dict, ...]
  notes: tuple[str, ...]

  def __getitem__(self, name: str) -> LawFit:
    return self.fits[name]

  def headline(self) -> str:
    return ", ".join(f"{r['law']} (AIC {r['d_aic']:+.1f})" for r in self.rows)

  def to_json(self) -> dict:
    """Plain dicts, lists and numbers."""
    return to_plain({"rows": self.rows, "nested": self.nested, "notes": self.notes})

  def summary(self) -> str:
    """A text table."""
    head = ["law", "free", "R^2", "rms", "AIC", "dAIC", "weight", "BIC", "held out", "lack of fit"]
    table = [head]
    for r in self.rows:
      held = "" if r["held_mae"] is None else f"{r['held_mae']:.2%}"
      table.append([
        r["law"], str(r["n_free"]), f"{r['r2']:.4f}", f"{r['rms']:.4g}", f"{r['aic']:.1f}",
        f"{r['d_aic']:.1f}", f"{r['weight']:.2f}", f"{r['bic']:.1f}", held, r["lack_of_fit"],
      ])  # fmt: skip
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = [
      "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table
    ]
    for t in self.nested:
      says = "is needed" if t["p"] < 0.05 else "is not needed"
      lines.append(
        f"{t['larger']} {says} beside {t['smaller']}: 2 log ratio {t['statistic']:.4g} on {t['dof']}, "
        f"p = {t['p']:.2g}"
      )
    return "\n".join(lines + [f"note: {n}" for n in self.notes])


def compare(
  table: Table, candidates: Mapping[str, Mapping] | Sequence[str], **options
) -> Comparison:
  """Fits several laws to the same rows and sets them side by side.

  Args:
    candidates: names of laws, or {title: options of lawfit.fit_table, `law` among them}, for example
      {"free": {"law": "chinchilla"}, "shared": {"law": "chinchilla", "tied": [("alpha", "beta")]}}.
    options: of every fit.

  Raises:
    ValueError: laws of different targets, or fitted by different objectives.
  """
  if not isinstance(candidates, Mapping):
    candidates = {name: {"law": name} for name in candidates}
  settings = {
    title: {"n_boot": 0, "methods": ("delta",), "n_starts": 256, "force": True, **options, **own}
    for title, own in candidates.items()
  }
  laws_of = {t: lawfit.law_of(s.get("law", "chinchilla")) for t, s in settings.items()}
  kinds = {(law.target, s.get("objective", "huber"), s.get("residual") or law.link)
           for law, s in zip(laws_of.values(), settings.values(), strict=True)}  # fmt: skip
  if len(kinds) > 1:
    raise ValueError(
      f"compare: {', '.join(candidates)} differ in target, objective or residual; AIC compares laws "
      "fitted alike"
    )
  # rows that any law cannot use are left out for all
  needed = dict.fromkeys(k for law in laws_of.values() for k in (*law.inputs, law.target))
  table = table.with_flops().need(*needed)
  fits = {t: lawfit.fit_table(table, **s) for t, s in settings.items()}
  lowest = min(f.aic for f in fits.values())
  share = {t: np.exp(-0.5 * (f.aic - lowest)) for t, f in fits.items()}
  total = sum(share.values())
  rows = [
    {
      "law": title,
      "n_free": f.n_free,
      "r2": f.r2,
      "rms": float(np.sqrt((f.residuals**2).mean())),
      "aic": f.aic,
      "d_aic": f.aic - lowest,
      "weight": float(share[title] / total),
      "bic": f.bic,
      "held_mae": f.holdout and f.holdout.mare,
      "lack_of_fit": f.lack_of_fit.verdict,
      "not_identified": f.not_identified,
    }
    for title, f in fits.items()
  ]
  nested = [
    {"smaller": a, "larger": b, **fits[a].likelihood_ratio(fits[b])}
    for a in fits
    for b in fits
    if _contains(settings[b], laws_of[b], settings[a], laws_of[a])
  ]
  notes = [f"{t}: {', '.join(f.not_identified)} not identified" for t, f in fits.items()
           if f.not_identified]  # fmt: skip
  rows = tuple(sorted(rows, key=lambda row: row["aic"]))
  return Comparison(fits, rows, tuple(nested), (*table.notes, *table.left_out(), *notes))


def _contains(big: Mapping, big_law, small: Mapping, small_law) -> bool:
  """Whether fixed and tied parameters make one law a special case of the other."""
  if big_law is not small_law:
    return False
  make = lambda law, s: solve.make_problem(
    law, dict(s.get("fixed") or {}), tuple(map(tuple, s.get("tied", ())))
  )
  b, s = make(big_law, big), make(small_law, small)
  if s.n_free >= b.n_free:
    return False
  inside = lambda v: np.allclose(b.expand @ np.linalg.pinv(b.expand) @ v, v)
  return inside(s.expand) and bool(inside(s.base - b.base))
