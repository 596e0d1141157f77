"""A report's sections on laws: figures and tables of what was fitted, with captions that say how."""

from collections.abc import Mapping

import numpy as np

from experiments.laws import LawFit, SideBySide
from experiments.laws.conventions import shared_estimates
from experiments.laws.isoflop import IsoFlopFit
from experiments.report import law_charts, law_tables, plots
from experiments.report.formats import (
  count,
  estimate,
  formula,
  limits,
  number,
  percent,
  power,
  short,
)
from experiments.report.page import Page, escape
from lm.config.errors import number_of

INTERVALS = {
  "widened": "widened",
  "case": "bootstrap",
  "bca": "BCa",
  "noise": "noise bootstrap",
  "delta": "delta method",
  "profile": "profile",
  "scatter": "regression",
}
OBJECTIVES = {
  "huber": "Sum of Huber losses of log residuals",
  "lad": "Sum of absolute log residuals",
  "l2": "Sum of squared log residuals",
}
DRAWN = {
  "parabola": "parabolas",
  "robust": "robust (Huber) parabolas",
  "cubic": "cubics",
  "akima": "Akima splines",
}


def add_sections(page: Page, results: Mapping) -> None:
  """isoFLOP slices, the parametric law, the optimum path, extrapolation, and which of them are missing."""
  slices = {key: value for key, value in results.items() if isinstance(value, IsoFlopFit)}
  fits = {key: value for key, value in results.items() if isinstance(value, LawFit)}
  page.section("Slices of equal compute")
  if not slices:
    page.absent("The analysis has no isoFLOP fit: runs are not grouped by compute.")
  for key, fit in slices.items():
    if len(slices) > 1:
      page.heading(key)
    _isoflop(page, fit)
  page.section("Parametric law")
  if not fits:
    page.absent("The analysis fits no parametric law.")
  for key, fit in fits.items():
    if len(fits) > 1:
      page.heading(key)
    _law(page, fit, full=key == next(iter(fits)))
  counted = {key: value for key, value in results.items() if isinstance(value, SideBySide)}
  if counted:
    page.section("The same law, counted otherwise")
    for key, side in counted.items():
      if len(counted) > 1:
        page.heading(key)
      _side_by_side(page, side)
  page.section("Compute-optimal path")
  with_path = slices | {key: fit for key, fit in fits.items() if fit.size_exponent}
  if with_path:
    others = {
      name if len(counted) == 1 else f"{key}, {name}": fit["a"]
      for key, side in counted.items()
      for name, fit in side.fits.items()
      if fit.size_exponent
    }
    _path(page, with_path, others)
  else:
    page.absent("No law here implies a compute-optimal size.")
  page.section("Extrapolation")
  held = {key: fit for key, fit in fits.items() if fit.holdout is not None}
  if held:
    _extrapolation(page, held)
  else:
    page.absent("No runs were held out: a law needs enough runs below the largest compute.")


def how(fit: object) -> str:
  """How a fit was made, for a methods appendix; "" for what is no fit."""
  if isinstance(fit, LawFit):
    return f"{fit.law.name}, {fit.law.formula}, {number_of(fit.n, 'run')}. {_method(fit)}"
  if isinstance(fit, IsoFlopFit):
    return (
      f"{DRAWN[fit.method]} in the logarithm of size through {len(fit.used)} of {len(fit.slices)} budgets; "
      f"intervals from {fit.n_boot} resamples of the noise, seed {fit.seed}."
    )
  return ""


# ---- Slices of equal compute ---------------------------------------------------------------------


def _isoflop(page: Page, fit: IsoFlopFit) -> None:
  _verdict(page, fit.lack_of_fit)
  page.notes([n for n in fit.notes if not n.startswith("budget ")])  # the table says why
  chart, above = plots.slices_figure(fit)
  caption = (
    "Validation loss at equal compute against parameters (a) and tokens (b): "
    f"n = {sum(len(s.loss) for s in fit.slices)} sizes in {number_of(len(fit.slices), 'budget')}, "
    f"{len(fit.used)} of them used. "
    f"Lines: {DRAWN[fit.method]} in the logarithm. Diamonds: their minima; bars: "
    f"± {law_tables.REACH} robust standard deviations over {fit.n_boot} resamples of the noise "
    f"(seed {fit.seed})."
  )
  if above:
    caption += f" Above the panels: {number_of(above, 'run')} of higher loss."
  if len(fit.used) < len(fit.slices):
    caption += " Budgets without a line were rejected; the table says why."
  page.figure(chart, "isoflop", caption)
  columns = {
    "flops": ("C (FLOPs)", power),
    "sizes": ("sizes", str),
    "n": ("N*", count),
    "d": ("D*", count),
    "ratio": ("D*/N*", short),
    "loss": ("loss", lambda v: f"{v:.4f}"),
    "status": ("", lambda v: "" if v == "ok" else escape(f"rejected: {v}")),
  }
  method = f"The optimum of each budget, by {DRAWN[fit.method]}; 95 % intervals as in the figure."
  page.table(
    law_tables.slice_optima(fit), columns, method, dict.fromkeys(("flops", "n", "d"), "word")
  )
  caption = (
    f"Power laws N* = k_N C^a and D* = k_D C^b through the {len(fit.used)} optima, weighted by 1/σ² "
    "of their logarithms."
  )
  if fit.bias_a is not None:
    caption += (
      " On noise-free losses of a parametric law fitted to the same runs, the same procedure misses "
      f"that law's own exponent a by {number(fit.bias_a)}."
    )
  _estimates(page, fit, caption)


# ---- The parametric law --------------------------------------------------------------------------


def _law(page: Page, fit: LawFit, full: bool) -> None:
  page.html(f'<p>{formula(fit.law.formula)} <span class="ci">({escape(fit.law.source)})</span></p>')
  _verdict(page, fit.lack_of_fit, fit.holdout)
  page.notes(fit.notes)
  _estimates(page, fit, f"The law {fit.law.name} fitted to n = {fit.n} runs. {_method(fit)}")
  if not full or not {"n_params", "n_tokens"} <= set(fit.table.columns) or fit.law.link != "log":
    return
  points = law_tables.law_points(fit)
  caption = (
    f"(a) Measured losses (dots, n = {fit.n}) and the fitted law for up to {law_tables.N_CURVES} sizes "
    f"(lines); bands: {percent(fit.confidence)} case-bootstrap interval of the law itself "
    f"({fit.n_boot} samples)."
  )
  contours, path = plots.law_figure(fit)
  if contours:
    caption += (
      " (b) Lines of equal predicted loss in the plane of compute and size, and the size N*(C) that "
      "makes the loss least at each compute (orange, with its band)."
    )
  page.figure(
    law_charts.law_fit(points, law_tables.law_curves(fit), contours, path), "law", caption
  )
  page.figure(
    law_charts.residuals(points),
    "residuals",
    f"Residuals of log loss, n = {fit.n}: measured over fitted, in percent. Dashed: ± their root mean "
    f"square, {_rms(fit)}. A trend in any panel means that the law's form is wrong there.",
  )


def _verdict(page: Page, lack, held=None) -> None:
  """What the tests of a law's form and of its extrapolation found, in words."""
  said = [] if lack is None else [lack.text]
  said += [] if held is None else [held.text]
  for text in said:
    page.html(f"<p><b>Verdict:</b> {escape(text)}.</p>")


def _estimates(page: Page, fit: LawFit | IsoFlopFit, caption: str) -> None:
  """Parameters and exponents with every interval; then what they imply at each budget."""
  plain = [e for e in fit.estimates.values() if "@" not in e.name]
  methods = dict.fromkeys(m for e in plain for m in e.intervals)
  table = [
    {"name": e.name, "value": e.value, "meaning": f"fixed: {e.meaning}" if e.fixed else e.meaning}
    | ({} if e.fixed else dict(e.intervals))
    for e in plain
  ]
  level = percent(fit.confidence)
  columns = {"name": ("", formula), "value": ("estimate", number)}
  columns |= {m: (f"{INTERVALS[m]}, {level}", limits) for m in methods}
  columns["meaning"] = ("meaning", escape)
  page.table(table, columns, caption, {"name": "word", **dict.fromkeys(methods, "num")})
  budgets, points, withheld = {}, [], {}
  for e in fit.estimates.values():
    name, at, place = e.name.partition("@")
    if at and "=" in place:  # n_params=7e9,n_tokens=1e12
      points.append({"at": place.replace(",", ", "), "value": (e.value, e.interval)})
    elif at:
      budgets.setdefault(float(place), {})[name] = (e.value, e.interval)
    if at and e.withheld:
      said = place if "=" in place else f"{power(float(place))} FLOPs"
      withheld.setdefault(e.withheld, []).append(said)
  if budgets:
    names = dict.fromkeys(name for row in budgets.values() for name in row)
    columns = {"at": ("C (FLOPs)", power)}
    shows = {"N*": count, "D*": count, "D*/N*": count}
    columns |= {n: (n, shows.get(n, estimate)) for n in names}
    caption = "What it implies at a budget"
    if methods:
      caption += f", with {level} intervals ({INTERVALS[next(iter(methods))]})"
    if "flops" in fit.table.columns and max(budgets) > 1.01 * fit.table["flops"].max():
      caption += ". Budgets beyond the largest run are extrapolations"
    rows = [{"at": budget, **row} for budget, row in budgets.items()]
    page.table(rows, columns, f"{caption}.", {"at": "word"})
  if points:
    columns = {"at": ("a run of", escape), "value": ("predicted", lambda v: estimate(v))}
    page.table(points, columns, "What it predicts of the runs asked for.", {"at": "word"})
  page.notes(
    [
      f"no interval at {', '.join(dict.fromkeys(places))}: {why}"
      for why, places in withheld.items()
    ]
  )
  page.notes([f"{e.name} has no interval: {e.withheld}" for e in plain if e.withheld])


def _method(fit: LawFit) -> str:
  delta = f" (δ = {fit.delta:g})" if fit.delta else ""
  return (
    f"{OBJECTIVES[fit.objective]}{delta}, least over {fit.n_starts} starts of which "
    f"{percent(fit.share)} reach the optimum; objective {fit.value:.6g}, relative gradient "
    f"{power(float(f'{fit.grad_norm:.1g}'))}; residual RMS {_rms(fit)}; AIC {number(fit.aic)}; "
    f"condition number {fit.conditioning.condition:.2g}. Bootstrap: {fit.n_boot} samples of runs, "
    f"seed {fit.seed}. Outliers: {fit.outliers}."
  )


def _rms(fit: LawFit) -> str:
  return f"{100 * np.sqrt((fit.residuals**2).mean()):.2g} %"


# ---- Conventions ---------------------------------------------------------------------------------


def _side_by_side(page: Page, side: SideBySide) -> None:
  """A row a convention, a column an estimate with its interval."""
  names = shared_estimates(side.fits)
  rows = [
    {"what": what} | {n: (fit[n].value, fit[n].interval) for n in names}
    for what, fit in side.fits.items()
  ]
  columns = {"what": ("N and C are", escape)} | {n: (formula(n), estimate) for n in names}
  first = next(iter(side.fits.values()))
  method = next(iter(first[names[0]].intervals), None)
  limits_said = (
    f" with {percent(first.confidence)} intervals ({INTERVALS[method]})" if method else ""
  )
  page.table(
    rows,
    columns,
    f"Refitted to the same runs under each way to count parameters and compute{limits_said}. Where C is "
    "not 6 N D, a parametric law's optimum spends C = k Nˢ D, with k and s fitted to the FLOPs.",
    {"what": "word"},
  )
  page.notes(
    list(dict.fromkeys(n for fit in side.fits.values() for n in fit.notes if "moved" in n))
  )


# ---- The optimum path ----------------------------------------------------------------------------


def _path(page: Page, fits: Mapping[str, LawFit | IsoFlopFit], recounted: Mapping) -> None:
  """`recounted`: exponents a of refits under other conventions, by name."""
  points, lines = [], []
  slices = {key: fit for key, fit in fits.items() if isinstance(fit, IsoFlopFit)}
  others = [(key, fit) for key, fit in fits.items() if key not in slices]
  for key, fit in (*slices.items(), *others[:1]):  # other laws may count compute otherwise
    drawn = law_tables.path_rows
    if isinstance(fit, IsoFlopFit):
      points += [{**m, "method": key} for m in law_tables.slice_minima(fit)]
      drawn = law_tables.line_rows
    if "flops" in fit.table.columns:
      lines += [row for axis in law_charts.SIZES for row in drawn(fit, axis, key)]
  if lines:
    page.figure(
      law_charts.optimum_path(points, lines),
      "optimum-path",
      "Compute-optimal parameters (a) and tokens (b) against compute, up to ten times the largest "
      "budget. Dots: the minima of slices. Lines: the regression through them, and a parametric law's "
      "closed form; bands: 95 %. Grey: the slopes of Hoffmann et al. 2022 and Kaplan et al. 2020, drawn "
      "through the middle of ours. Further laws are in the next figure.",
    )
  exponents = {key: fit["a"] for key, fit in fits.items()} | recounted
  page.figure(
    law_charts.exponents([law_tables.exponent_row(key, a) for key, a in exponents.items()]),
    "exponents",
    "The exponent a of N* ∝ Cᵃ by each method with its 95 % interval, beside the published values. The "
    "exponent of D* is 1 − a in a parametric law under C = 6 N D, and is fitted on its own to slices.",
  )


# ---- Extrapolation -------------------------------------------------------------------------------


def _extrapolation(page: Page, fits: Mapping[str, LawFit]) -> None:
  """The first law's predictions drawn; every law's errors in a table."""
  key, fit = next(iter(fits.items()))
  held = fit.holdout
  if fit.law.link == "log":
    page.figure(
      law_charts.extrapolation(law_tables.extrapolation_points(fit)),
      "extrapolation",
      f"{key}: the law fitted to the {held.n_fitted} runs below {power(held.above_flops)} FLOPs (grey) "
      f"predicts the {held.n_held} above (orange), up to {held.reach:.3g} times the compute. Bars: "
      f"{percent(held.level)} prediction intervals, of which {round(held.covered * held.n_held)} of "
      f"{held.n_held} hold the measured loss. (a) shows the range of the held-out losses; "
      "in (b) runs of equal compute stand side by side.",
    )
  two = lambda v: percent(v, 2)
  columns = {
    "n_fitted": ("fitted", str),
    "n_held": ("held out", str),
    "reach": ("times the compute", lambda v: f"{v:.3g}"),
    "bias": ("mean error", two),
    "rms": ("RMS error", two),
    "rms_fitted": ("RMS, fitted", two),
    "covered": (f"in {percent(held.level)} interval", percent),
  }
  rows = [
    {"what": key, **{k: getattr(fit.holdout, k) for k in columns}} for key, fit in fits.items()
  ]
  page.table(
    rows,
    {"what": ("law", escape), **columns},
    "Losses of the largest runs predicted by a law that has not seen them: predicted over measured − 1, "
    "and the share of held-out runs inside their prediction interval (law and noise resampled).",
  )
