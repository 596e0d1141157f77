"""The figure of one fit, for notebooks: what `fit.plot()` shows, the one that a report of it has."""

import altair as alt
import numpy as np

from experiments.laws import LawFit
from experiments.laws.isoflop import IsoFlopFit
from experiments.laws.result import Result
from experiments.report import law_charts, law_tables
from experiments.report.charts import GREY, data, finish
from lm.config.errors import ConfigError

HIGHEST = 1.5  # runs above this multiple of the largest minimum are not drawn with the slices


def plot(fit: Result) -> alt.Chart | alt.HConcatChart:
  """Slices with their minima; a law of N and D with its curves, and its optimum path where it has one; of
  other laws predicted against measured loss.

  Raises:
    ConfigError: a result that has no figure.
  """
  if isinstance(fit, IsoFlopFit):
    return slices_figure(fit)[0]
  if not isinstance(fit, LawFit) or "loss" not in fit.table.columns:
    raise ConfigError(f"plot={type(fit).__name__}: has no figure; print its summary()")
  if fit.law.link == "log" and {"n_params", "n_tokens"} <= set(fit.table.columns):
    contours, path = law_figure(fit)
    return law_charts.law_fit(
      law_tables.law_points(fit), law_tables.law_curves(fit), contours, path
    )
  measured, left = fit.table.columns["loss"], fit.residuals
  fitted = measured / np.exp(left) if fit.law.link == "log" else measured - left
  rows = [
    {"measured": float(y), "predicted": float(x)} for y, x in zip(measured, fitted, strict=True)
  ]
  low, high = (float(f([*measured, *(r["predicted"] for r in rows)])) for f in (np.min, np.max))
  axis = lambda title: dict(scale=alt.Scale(domain=[low, high], nice=True), title=title)
  dots = alt.Chart(data(rows)).mark_circle(size=28, opacity=1).encode(
    alt.X("measured:Q", **axis("measured loss")), alt.Y("predicted:Q", **axis("predicted loss"))
  )  # fmt: skip
  ends = [{"measured": v, "predicted": v} for v in (low, high)]
  line = alt.Chart(data(ends)).mark_line(color=GREY, strokeDash=[3, 3])
  return finish(line.encode(x="measured:Q", y="predicted:Q") + dots)


def slices_figure(fit: IsoFlopFit) -> tuple[alt.Chart | alt.HConcatChart, int]:
  """(slices with their minima, how many runs lie above the panels)."""
  points, minima = law_tables.slice_points(fit), law_tables.slice_minima(fit)
  most = HIGHEST * max(m["loss"] for m in minima)
  shown = [p for p in points if p["loss"] <= most]
  chart = law_charts.isoflop(shown, law_tables.slice_curves(fit), minima)
  return chart, len(points) - len(shown)


def law_figure(fit: LawFit) -> tuple[list[dict], list[dict]]:
  """(lines of equal loss, the optimum path) of a law of N and D alone; ([], []) of others."""
  has_path = fit.size_exponent is not None and "flops" in fit.table.columns
  if not ({"n_params", "n_tokens"} >= set(fit.law.inputs) and has_path):
    return [], []
  return law_tables.law_contours(fit), law_tables.path_rows(fit, "n_params", "")
