"""The figures of fitted laws: isoFLOP parabolas, optimum paths, exponents, fits, residuals, extrapolation.

Like experiments.report.charts: flat dicts in, finished charts out. Intervals are the columns `low` and
`high`, absent where there is none.
"""

from collections.abc import Mapping, Sequence

import altair as alt
import numpy as np

from experiments.report.charts import (
  COMPUTE,
  GREY,
  INK,
  METHODS,
  TITLES,
  by_compute,
  data,
  finish,
  lookup,
  make_axis,
  panel,
  tips,
)
from experiments.report.formats import alike, short

# Published exponents of N* in C: (label, value, dash). Hoffmann's is that of its isoFLOP slices
# (table 2, approach 2; its first and third approaches: 0.50 and 0.46).
REFERENCES = (
  ("Hoffmann 2022: .49", 0.49, [5, 3]),
  ("Kaplan 2020: .73", 0.73, [1.5, 2.5]),
)
SIZES = ("n_params", "n_tokens")
SYMBOLS = {"n_params": "N", "n_tokens": "D", "flops": "C"}


def isoflop(points: Sequence[Mapping], curves: Sequence[Mapping], minima: Sequence[Mapping]):
  """Loss along slices of equal compute against N and against D, fitted curves, and their minima.

  Args:
    points: name, flops (of the slice), n_params, n_tokens, loss.
    curves: axis ("n_params" or "n_tokens"), x, loss, flops.
    minima: axis, x, low, high, loss, flops.
  """
  losses = [p["loss"] for p in points]
  panels = []
  for letter, axis in zip("ab", SIZES, strict=True):
    lines = [c for c in curves if c["axis"] == axis]
    best = [m for m in minima if m["axis"] == axis]
    xs = make_axis([p[axis] for p in points], TITLES[axis])
    ys = make_axis([*losses, *(m["loss"] for m in best)], TITLES["loss"])
    ys = ys if letter == "a" else ys.untitled()
    color = by_compute([p["flops"] for p in points])
    drawn = alt.Chart(data(lines)).mark_line(strokeWidth=1.4, clip=True)
    dots = alt.Chart(data(points)).mark_circle(size=28, opacity=1, stroke="white", strokeWidth=0.5)
    spans = alt.Chart(data([m for m in best if m.get("low") is not None]))
    marks = alt.Chart(data(best)).mark_point(
      shape="diamond", size=56, filled=True, opacity=1, color=METHODS[0], stroke="white", strokeWidth=0.8
    )  # fmt: skip
    layers = (
      drawn.encode(xs.x("x"), ys.y("loss"), color, detail="flops:N"),
      dots.encode(xs.x(axis), ys.y("loss"), color, tooltip=tips("name", *SIZES, "flops", "loss")),
      spans.mark_rule(strokeWidth=2, color=METHODS[0], clip=True).encode(
        xs.x("low"), ys.y("loss"), x2="high:Q"
      ),
      marks.encode(xs.x("x"), ys.y("loss"), tooltip=tips("flops", "x", "low", "high", "loss")),
    )
    panels.append(panel(alt.layer(*layers), letter, f"against {TITLES[axis]}", height=290))
  return finish(alt.hconcat(*panels))


def optimum_path(points: Sequence[Mapping], lines: Sequence[Mapping]):
  """N*(C) and D*(C): optima with intervals, fitted paths with bands, and the published slopes.

  The published slopes go through the middle of our optima: only their steepness is compared.

  Args:
    points: method, axis, flops, x, low, high.
    lines: method, axis, flops, x, low, high.
  """
  methods = list(dict.fromkeys(r["method"] for r in (*points, *lines)))
  domain = [*methods, *(label for label, _, _ in REFERENCES)]
  colors = [*METHODS[: len(methods)], *[GREY] * len(REFERENCES)]
  dashes = [*[[1, 0]] * len(methods), *(dash for _, _, dash in REFERENCES)]
  legend = alt.Legend(title=None, orient="bottom", symbolType="stroke", symbolSize=260,
                      symbolStrokeWidth=1.8, symbolOpacity=1, labelLimit=220, columnPadding=18,
    columns=4,)  # fmt: skip
  color = alt.Color("method:N", scale=alt.Scale(domain=domain, range=colors), legend=legend)
  dash = alt.StrokeDash("method:N", scale=alt.Scale(domain=domain, range=dashes), legend=legend)
  panels = []
  for letter, axis in zip("ab", SIZES, strict=True):
    mine = [r for r in (*points, *lines) if r["axis"] == axis]
    dots, paths = [r for r in points if r["axis"] == axis], [r for r in lines if r["axis"] == axis]
    guides = _guides(mine, axis)
    xs = make_axis([r["flops"] for r in mine], TITLES["flops"])
    ys = make_axis(
      [r[k] for r in mine for k in ("x", "low", "high") if k in r], f"optimal {TITLES[axis]}"
    )
    band = alt.Chart(data([r for r in paths if r.get("low") is not None]))
    line, guide = alt.Chart(data(paths)), alt.Chart(data(guides))
    spans = alt.Chart(data([r for r in dots if r.get("low") is not None]))
    marks = alt.Chart(data(dots)).mark_circle(size=42, opacity=1, stroke="white", strokeWidth=0.7)
    layers = (
      band.mark_area(fillOpacity=0.16, clip=True).encode(
        xs.x("flops"), ys.y("low"), color, y2="high:Q"
      ),
      guide.mark_line(strokeWidth=1.3, clip=True).encode(xs.x("flops"), ys.y("x"), color, dash),
      line.mark_line(strokeWidth=1.6, clip=True).encode(xs.x("flops"), ys.y("x"), color, dash),
      spans.mark_rule(strokeWidth=1.4, clip=True).encode(
        xs.x("flops"), ys.y("low"), color, y2="high:Q"
      ),
      marks.encode(
        xs.x("flops"), ys.y("x"), color, tooltip=tips("method", "flops", "x", "low", "high")
      ),
    )
    panels.append(panel(alt.layer(*layers), letter, "N*(C)" if axis == "n_params" else "D*(C)"))
  return finish(alt.hconcat(*panels))


def _guides(rows: Sequence[Mapping], axis: str) -> list[dict]:
  """Two ends of a line for each published exponent, through the middle of our optima."""
  log_c, log_x = (np.log([r[k] for r in rows]) for k in ("flops", "x"))
  ends = np.array([log_c.min(), log_c.max()])
  table = []
  for label, exponent, _ in REFERENCES:
    slope = exponent if axis == "n_params" else 1 - exponent
    values = np.exp(log_x.mean() + slope * (ends - log_c.mean()))
    table += [
      {"method": label, "flops": c, "x": v} for c, v in zip(np.exp(ends), values, strict=True)
    ]
  return table


def exponents(rows: Sequence[Mapping]):
  """Exponents of N* in C with their intervals, one row a method, beside the published values.

  Args:
    rows: what, value, low, high, text (the numbers as printed).
  """
  order = [r["what"] for r in rows]
  values = [r[k] for r in rows for k in ("value", "low", "high") if r.get(k) is not None]
  xs = make_axis([*values, *(v for _, v, _ in REFERENCES)], "a, the exponent of N* in C", log=False)
  names = alt.Axis(labelLimit=250, domain=False, ticks=False, grid=True)
  ys = alt.Y("what:N", sort=order, title=None, axis=names)
  guides = [{"text": label, "value": value} for label, value, _ in REFERENCES]
  lines = alt.Chart(data(guides)).mark_rule(color=GREY, strokeDash=[4, 3])
  words = [  # on either side, so that they do not meet
    alt.Chart(data([guide])).mark_text(
      dy=-6,
      dx=3 if align == "left" else -3,
      align=align,
      baseline="bottom",
      color=GREY,
      fontSize=10,
    )
    for guide, align in zip(guides, ("right", "left"), strict=True)
  ]
  spans = alt.Chart(data([r for r in rows if r.get("low") is not None]))
  base = alt.Chart(data(rows)).encode(xs.x("value"), ys)
  layers = (
    lines.encode(xs.x("value")),
    *(word.encode(xs.x("value"), y=alt.value(0), text="text:N") for word in words),
    spans.mark_rule(strokeWidth=2, color=COMPUTE[3]).encode(xs.x("low"), ys, x2="high:Q"),
    base.mark_circle(size=60, opacity=1, color=COMPUTE[3]).encode(
      tooltip=tips("what", "value", "low", "high")
    ),
    base.mark_text(align="left", dx=8, fontSize=10, color=INK).encode(
      x=alt.value("width"), text="text:N"
    ),
  )
  return finish(alt.layer(*layers).properties(width=340, height=max(60, 24 * len(rows)), padding={
    "left": 6, "top": 6, "bottom": 6, "right": 140}))  # fmt: skip


def law_fit(
  points: Sequence[Mapping], curves: Sequence[Mapping], contours: Sequence[Mapping], path
):
  """Left: measured losses and the law's curves with bands. Right: lines of equal predicted loss and N*(C).

  Args:
    points: name, n_params, n_tokens, flops, loss.
    curves: n_params, x (tokens), loss, low, high; one curve for each of a few sizes.
    contours: loss, flops, n_params; may be empty, as may
    path: flops, x (N*), low, high.
  """
  xs = make_axis([p["n_tokens"] for p in points], TITLES["n_tokens"])
  ys = make_axis([p["loss"] for p in points], TITLES["loss"])
  sizes = sorted({c["n_params"] for c in curves})
  color = _by_size(sizes or [p["n_params"] for p in points])
  curve = alt.Chart(data(curves)).encode(xs.x("x"), detail="n_params:N")
  banded = [c for c in curves if c.get("low") is not None]
  band = alt.Chart(data(banded)).mark_area(fillOpacity=0.18, clip=True)
  dots = alt.Chart(data(points)).mark_circle(size=24, opacity=1, stroke="white", strokeWidth=0.4)
  hover = tips("name", *SIZES, "flops", "loss")
  left = alt.layer(
    band.encode(xs.x("x"), ys.y("low"), color, detail="n_params:N", y2="high:Q"),
    curve.mark_line(strokeWidth=1.3, clip=True).encode(ys.y("loss"), color),
    dots.encode(xs.x("n_tokens"), ys.y("loss"), color, tooltip=hover),
  )
  panels = [panel(left, "a", "loss against training tokens D")]
  if contours:
    panels.append(_contour_panel(points, contours, path))
  return finish(alt.hconcat(*panels).resolve_scale(color="independent"))


def _by_size(sizes: Sequence[float]) -> alt.Color:
  low, high = min(sizes), max(sizes)
  ticks = make_axis(sizes, None, most=5, pad=0).ticks
  key = alt.Legend(
    title=["parameters", "N"], values=list(ticks), labelExpr=lookup(ticks, [short(t) for t in ticks]),
    type="symbol", symbolType="circle", symbolOpacity=1,
  )  # fmt: skip
  scale = alt.Scale(type="log", domain=[low, high], range=list(COMPUTE), interpolate="lab")
  return alt.Color("n_params:Q", scale=scale, legend=key)


def _contour_panel(points, contours, path):
  xs = make_axis([p["flops"] for p in points], TITLES["flops"])
  ys = make_axis([p["n_params"] for p in points], TITLES["n_params"])
  level = alt.Chart(data(contours)).mark_line(strokeWidth=0.9, color=GREY, clip=True)
  turns = {}  # the label goes where a line turns: at its least compute
  for row in contours:
    turns[row["loss"]] = min(row, turns.get(row["loss"], row), key=lambda r: r["flops"])
  words = [
    {**row, "text": text}
    for row, text in zip(turns.values(), alike([*turns]), strict=True)
    if 1.5 * xs.domain[0] <= row["flops"] and ys.domain[0] <= row["n_params"] <= ys.domain[1]
  ]
  dots = alt.Chart(data(points)).mark_circle(size=16, opacity=1, fillOpacity=0.55)
  label = alt.Chart(data(words)).encode(xs.x("flops"), ys.y("n_params"), text="text:N")
  text = dict(fontSize=9, align="right", dx=-4, fontWeight="bold")
  layers = [
    level.encode(xs.x("flops"), ys.y("n_params"), detail="loss:N", order="order:Q"),
    dots.encode(xs.x("flops"), ys.y("n_params"), color=alt.value(COMPUTE[2]),
                tooltip=tips("name", *SIZES, "flops", "loss")),
    label.mark_text(**text, stroke="white", strokeWidth=3),
    label.mark_text(**text, color=INK),
  ]  # fmt: skip
  if path:
    base = alt.Chart(data(path))
    if path[0].get("low") is not None:
      area = base.mark_area(fillOpacity=0.2, color=METHODS[0], clip=True)
      layers.append(area.encode(xs.x("flops"), ys.y("low"), y2="high:Q"))
    layers.append(
      base.mark_line(strokeWidth=1.8, color=METHODS[0], clip=True).encode(xs.x("flops"), ys.y("x"))
    )
  return panel(alt.layer(*layers), "b", "lines of equal predicted loss, and N*(C)")


def residuals(points: Sequence[Mapping]):
  """Residuals of log loss, in percent, against N, D and C; a law that fits leaves no trend.

  Args:
    points: name, n_params, n_tokens, flops, loss, residual (percent of the loss).
  """
  spread = float(np.sqrt(np.mean([p["residual"] ** 2 for p in points])))
  ys = make_axis(
    [*(p["residual"] for p in points), spread, -spread], "residual (% of loss)", log=False
  )
  lines = [{"y": 0.0, "dash": "zero"}, {"y": spread, "dash": "rms"}, {"y": -spread, "dash": "rms"}]
  dashes = alt.Scale(domain=["zero", "rms"], range=[[1, 0], [3, 3]])
  panels = []
  for letter, field in zip("abc", (*SIZES, "flops"), strict=True):
    xs = make_axis([p[field] for p in points], TITLES[field], most=3 if field == "flops" else 4)
    rules = alt.Chart(data(lines)).mark_rule(color=GREY).encode(
      ys.y("y"), strokeDash=alt.StrokeDash("dash:N", scale=dashes, legend=None)
    )  # fmt: skip
    dots = alt.Chart(data(points)).mark_circle(size=22, opacity=1, stroke="white", strokeWidth=0.3)
    color = by_compute([p["flops"] for p in points], legend=False)
    shown = ys if letter == "a" else ys.untitled()
    marks = dots.encode(
      xs.x(field), shown.y("residual"), color, tooltip=tips("name", "residual", "loss")
    )
    title = f"against {SYMBOLS[field]}"
    panels.append(panel(rules + marks, letter, title, width=178, height=170))
  return finish(alt.hconcat(*panels))


def extrapolation(points: Sequence[Mapping]):
  """Loss predicted without the largest runs against the loss measured, and the error in percent.

  Args:
    points: name, flops, held (left out of the fit), loss, predicted; low, high of the prediction
      where it has an interval.
  """
  rows = [_with_error(p) for p in points]
  held_up_to = 1.1 * max(r["loss"] for r in rows if r["held"])
  close = [r for r in rows if r["loss"] <= held_up_to]  # where the held-out runs are
  both = [r[k] for r in close for k in ("loss", "predicted", "low", "high") if r.get(k) is not None]
  losses = make_axis(both, "measured loss (nats/token)")
  predicted = make_axis(both, "predicted loss (nats/token)")
  percent = [r[k] for r in rows for k in ("error", "error_low", "error_high") if k in r]
  errors = make_axis([*percent, 0.0], "predicted / measured − 1 (%)", log=False)
  rows = _side_by_side(rows)
  flops = make_axis([r["at"] for r in rows], TITLES["flops"])
  scale = alt.Scale(domain=["fitted", "held out"], range=["#b5bcc4", METHODS[0]])
  color = alt.Color("text:N", title=None, scale=scale, legend=alt.Legend(orient="bottom"))
  look = dict(size=36, opacity=1, stroke="white", strokeWidth=0.5)
  hover = tips("name", "flops", "loss", "predicted", "low", "high", "error")
  dots = lambda rows: alt.Chart(data(rows)).mark_circle(**look).encode(color, tooltip=hover)
  spans = alt.Chart(data([r for r in rows if r["held"] and "error_low" in r]))
  spans = spans.mark_rule(strokeWidth=1.5).encode(color)
  guide = dict(color=GREY, strokeDash=[4, 3])
  diagonal = alt.Chart(data([{"x": v, "y": v} for v in losses.domain])).mark_line(**guide)
  zero = alt.Chart(data([{"y": 0.0}])).mark_rule(**guide)
  left = alt.layer(
    diagonal.encode(losses.x("x"), predicted.y("y")),
    spans.encode(losses.x("loss"), predicted.y("low"), y2="high:Q"),
    dots(close).encode(losses.x("loss"), predicted.y("predicted")),
  )
  right = alt.layer(
    zero.encode(errors.y("y")),
    spans.encode(flops.x("at"), errors.y("error_low"), y2="error_high:Q"),
    dots(rows).encode(flops.x("at"), errors.y("error")),
  )
  left, right = (
    panel(left, "a", "predicted against measured"),
    panel(right, "b", "error against compute"),
  )
  return finish(alt.hconcat(left, right))


def _side_by_side(rows: Sequence[Mapping]) -> list[dict]:
  """Rows with `at`: their compute, held-out runs of one budget a little apart so that bars do not overlap."""
  logs = np.log([r["flops"] for r in rows])
  step = 0.012 * max(np.ptp(logs), 0.1)
  groups = {}
  for row in sorted((r for r in rows if r["held"]), key=lambda r: r["loss"]):
    groups.setdefault(round(np.log(row["flops"]) / 0.02), []).append(id(row))
  shifts = {
    key: step * (i - (len(keys) - 1) / 2) for keys in groups.values() for i, key in enumerate(keys)
  }
  return [{**r, "at": r["flops"] * np.exp(shifts.get(id(r), 0.0))} for r in rows]


def _with_error(point: Mapping) -> dict:
  """A point of `extrapolation` with errors in percent and its group in words."""
  error = lambda predicted: 100 * (predicted / point["loss"] - 1)
  row = {
    **point,
    "error": error(point["predicted"]),
    "text": "held out" if point["held"] else "fitted",
  }
  if point.get("low") is not None:
    row |= {"error_low": error(point["low"]), "error_high": error(point["high"])}
  return row
