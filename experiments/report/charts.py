"""What all figures share, and the figures of runs; one altair chart gives HTML, SVG, PDF and PNG.

Figures take flat dicts (ledger rows, or what experiments.report derives from a fit) and return finished
charts. Colour follows compute, light to dark; methods have colours that survive colour blindness and grey
printing. Ticks and their labels are computed here, because Vega's log axes are hard to read.
"""

import csv
import dataclasses
import io
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from experiments.ledger.compare import SEEDS, smooth
from experiments.ledger.judged import Judge, curve_metric, judge_of
from experiments.ledger.ledger import Ledger
from experiments.ledger.rows import binned, natural
from experiments.report.formats import alike, power, short

HEIGHT = 250
HALF = 262  # width of one of two panels in a report's column
SANS = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"
INK, GREY, FAINT = "#222222", "#767676", "#e9e9e9"
COMPUTE = ("#a6dbb9", "#5cc0c0", "#2c9bc4", "#2168ad", "#253494", "#0b1d51")  # little to much
METHODS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#56b4e9", "#a07800")  # Okabe & Ito 2008
CURVE_POINTS = 10_000  # of one panel, over all runs
TITLES = {
  "n_params": "parameters N",
  "n_tokens": "training tokens D",
  "flops": "compute C (FLOPs)",
  "loss": "validation loss (nats/token)",
  "tokens": "training tokens",
  "step": "optimizer steps",
  "seconds": "wall-clock time (s)",
}


# ---- Numbers and axes ----------------------------------------------------------------------------


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
  """Round numbers in [low, high] for a log axis: two to `most` of them.

  >>> log_ticks(2e17, 4e20)
  [1e+18, 1e+19, 1e+20]
  >>> log_ticks(1.9, 4.2)
  [2.0, 3.0, 4.0]
  """
  first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
  for mantissas in ((1, 2, 3, 4, 5, 6, 8), (1, 2, 5), (1, 3), (1,)):
    found = [float(f"{m}e{d}") for d in range(first, last + 1) for m in mantissas]
    found = [value for value in found if low <= value <= high]
    if any(b < a * (high / low) ** 0.1 for a, b in itertools.pairwise(found)):
      continue  # their labels would touch
    if 3 <= len(found) <= most or (len(found) == 2 and len(mantissas) < 3):
      return found
  if high < 10 * low:
    return linear_ticks(low, high, most)
  stride = math.ceil((last - first) / most)
  return [
    float(f"1e{d}") for d in range(first, last + 1) if d % stride == 0 and low <= 10.0**d <= high
  ]


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
  """Multiples of 1, 2, 2.5 or 5 times a power of ten in [low, high], at most `most`."""
  base = 10.0 ** math.floor(math.log10((high - low) / most))
  for factor in (1, 2, 2.5, 5, 10, 20):
    step = factor * base
    count = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    found = [float(f"{k * step:.10g}") for k in count]
    if len(found) <= most:
      return found
  return [low, high]


@dataclasses.dataclass(frozen=True)
class Axis:
  """A domain with readable ticks, for any field drawn along it."""

  domain: tuple[float, float]
  ticks: tuple[float, ...]
  texts: tuple[str, ...]
  log: bool
  title: str | None

  def x(self, field: str, **options) -> alt.X:
    return self._on(alt.X, field, options)

  def y(self, field: str, **options) -> alt.Y:
    return self._on(alt.Y, field, options)

  def untitled(self) -> "Axis":
    return dataclasses.replace(self, title=None)

  def _on(self, channel, field, options):
    scale = alt.Scale(
      type="log" if self.log else "linear", domain=list(self.domain), nice=False, zero=False
    )
    labels = alt.Axis(values=list(self.ticks), labelExpr=lookup(self.ticks, self.texts))
    return channel(f"{field}:Q", title=self.title, scale=scale, axis=labels, **options)


def make_axis(
  values: Iterable[float],
  title: str | None,
  log: bool = True,
  label: Callable[[float], str] | None = None,
  most: int = 6,
  pad: float = 0.05,
) -> Axis:
  """An axis that holds all finite values (the positive ones if `log`), with a margin of `pad`.

  Labels are powers of ten where the title speaks of compute, else 1.5M.
  """
  known = [v for v in values if v is not None and math.isfinite(v) and (v > 0 or not log)] or [1.0]
  low, high = min(known), max(known)
  if log:
    margin = (high / low) ** pad if high > 1.01 * low else 1.5
    low, high = low / margin, high * margin
  else:
    margin = pad * (high - low) if high > low else abs(high) * 0.1 or 1.0
    low, high = low - margin, high + margin
  ticks = log_ticks(low, high, most) if log else linear_ticks(low, high, most)
  if label:
    texts = map(label, ticks)
  elif max(map(abs, ticks), default=0) < 1000 and "FLOPs" not in (title or ""):
    texts = alike(ticks)
  else:
    texts = map(power if "FLOPs" in (title or "") else short, ticks)
  return Axis((low, high), tuple(ticks), tuple(texts), log, title)


def lookup(values: Sequence[float], texts: Sequence[str]) -> str:
  """A Vega expression that gives each of these values its text."""
  return f"{json.dumps(list(texts), ensure_ascii=False)}[indexof({list(values)}, datum.value)]"


def by_compute(values: Iterable[float], legend: bool = True) -> alt.Color:
  """Colour along log "flops": a swatch for each of up to twelve budgets, a gradient for more."""
  known = sorted({_rounded(float(v)) for v in values if v})
  title = ["compute", "C (FLOPs)"]
  if len(known) <= 12:
    texts = [power(v) for v in known]
    key = alt.Legend(
      title=title, labelExpr=lookup(known, texts), symbolType="circle", symbolOpacity=1
    )
    scale = alt.Scale(domain=known, range=compute_colors(len(known)))
    return alt.Color("flops:O", scale=scale, legend=key if legend and len(known) > 1 else None)
  ticks = log_ticks(known[0], known[-1], 5)
  key = alt.Legend(
    title=title, values=ticks, labelExpr=lookup(ticks, [power(t) for t in ticks]),
    type="gradient", gradientLength=140, gradientThickness=10, gradientOpacity=1,
  )  # fmt: skip
  scale = alt.Scale(
    type="log", domain=[known[0], known[-1]], range=list(COMPUTE), interpolate="lab"
  )
  return alt.Color("flops:Q", scale=scale, legend=key if legend else None)


def compute_colors(n: int) -> list[str]:
  """n colours along COMPUTE, its ends included.

  >>> compute_colors(2)
  ['#a6dbb9', '#0b1d51']
  """
  anchors = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COMPUTE], float)
  at = np.linspace(0, len(COMPUTE) - 1, n) if n > 1 else np.array([len(COMPUTE) - 3.0])
  rgb = [np.interp(at, range(len(COMPUTE)), anchors[:, k]) for k in range(3)]
  return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in np.rint(np.transpose(rgb)).astype(int)]


# ---- Data, looks, files --------------------------------------------------------------------------


def data(rows: Sequence[Mapping]) -> alt.InlineData:
  """Inline data as CSV text of 5 digits: small, and altair does not validate it row by row."""
  keys = list(dict.fromkeys(key for row in rows for key in row))
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  writer.writerow(keys)
  writer.writerows([_rounded(row.get(key)) for key in keys] for row in rows)
  words = {key for row in rows for key in keys if isinstance(row.get(key), str)}
  parse = {key: "number" for key in keys if key not in words}
  return alt.InlineData(values=file.getvalue(), format=alt.CsvDataFormat(type="csv", parse=parse))


def tips(*fields: str) -> list[alt.Tooltip]:
  """What hovering shows: text for names, 1.234M for counts, four decimals for the rest."""
  formats = {"flops": ".3e", "x": ".4s", "low": ".4s", "high": ".4s"}
  formats |= dict.fromkeys(("n_params", "n_tokens", "tokens"), ".4s")
  words = ("name", "method", "what", "status", "text")
  return [
    alt.Tooltip(f"{f}:N") if f in words else alt.Tooltip(f"{f}:Q", format=formats.get(f, ".4f"))
    for f in fields
  ]


def panel(chart, letter: str, title: str, width: int = HALF, height: int = HEIGHT):
  """One panel, headed "(a) title"."""
  return chart.properties(width=width, height=height, title=f"({letter}) {title}")


def finish(chart: alt.TopLevelMixin) -> alt.TopLevelMixin:
  """The one look of all figures."""
  words = dict(labelFont=SANS, titleFont=SANS, labelColor=INK, titleColor=INK)
  return (
    chart.configure(background="white", padding=6, font=SANS)
    .configure_view(stroke=None)
    .configure_axis(
      **words, labelFontSize=10, titleFontSize=11, titleFontWeight="normal", titlePadding=7,
      domainColor="#555", tickColor="#555", tickSize=4, gridColor=FAINT, gridWidth=0.8, labelOverlap=False,
    )
    .configure_legend(
      **words, labelFontSize=10, titleFontSize=10, titleFontWeight="normal", symbolSize=60,
      rowPadding=1.5, offset=14,
    )
    .configure_title(
      font=SANS, fontSize=11, fontWeight="bold", anchor="start", color=INK, offset=9, frame="group",
    )
    .configure_concat(spacing=26)
  )  # fmt: skip


ENDINGS = ("svg", "pdf", "png", "csv")  # of a figure's files


def save(chart: alt.TopLevelMixin, folder: pathlib.Path, name: str) -> list[pathlib.Path]:
  """Writes name.svg, name.pdf, name.png (three pixels a point) and name.csv; returns their paths."""
  import vl_convert

  folder.mkdir(parents=True, exist_ok=True)
  svg = vl_convert.vegalite_to_svg(chart.to_json())  # laid out once, then drawn three times
  paths = [folder / f"{name}.{ending}" for ending in ENDINGS]
  paths[0].write_text(svg, encoding="utf-8")
  paths[1].write_bytes(vl_convert.svg_to_pdf(svg))
  paths[2].write_bytes(vl_convert.svg_to_png(svg, scale=3))
  paths[3].write_text(chart_csv(chart), encoding="utf-8")
  return paths


def chart_csv(chart: alt.TopLevelMixin) -> str:
  """The numbers behind a figure, as one CSV; `part` counts its layers' tables."""
  spec = chart.to_dict()
  tables = dict(spec.get("datasets", {}))

  def look(node):
    if isinstance(node, dict):
      if isinstance(node.get("values"), str) and "format" in node:
        tables.setdefault(node["values"], node["values"])
      for value in node.values():
        look(value)
    elif isinstance(node, list):
      for value in node:
        look(value)

  look({k: v for k, v in spec.items() if k != "datasets"})
  rows, keys = [], {"part": None}
  for part, text in enumerate(dict.fromkeys(t for t in tables.values() if isinstance(t, str)), 1):
    for row in csv.DictReader(io.StringIO(text)):
      rows.append({"part": part, **row})
      keys |= dict.fromkeys(row)
  file = io.StringIO()
  writer = csv.DictWriter(file, list(keys), lineterminator="\n", restval="")
  writer.writeheader()
  writer.writerows(rows)
  return file.getvalue()


def _rounded(value):
  value = value.item() if isinstance(value, np.generic) else value
  if isinstance(value, float):
    return float(f"{value:.5g}") if math.isfinite(value) else None
  return value


# ---- Figures of runs -----------------------------------------------------------------------------


def curve_table(
  rows: Sequence[Mapping], x: str, y: str = "train/loss", width: float = 0.0
) -> list[dict]:
  """Long form (run: its index, x, loss, low, high) of the rows' curves, binned so that 500 runs stay light.

  `low` and `high` are the least and the greatest record of a bin, where it holds several.

  Args:
    width: of the smoothing in decades of x, as in experiments.ledger.compare.smooth.
  """
  each = max(20, min(300, CURVE_POINTS // max(len(rows), 1)))
  table = []
  for run, row in enumerate(rows):
    curve = binned(row.get("curve") or {}, each)
    points = _positive_points(curve, x, y)
    smoothed = smooth(points[:, 0], points[:, 1], width)
    for (at, _, low, high), loss in zip(points, smoothed, strict=True):
      spread = {"low": low, "high": high} if low < high else {}
      table.append({"run": run, "x": at, "loss": loss, **spread})
  return table


def _positive_points(curve: Mapping, x: str, y: str) -> np.ndarray:
  """[n, 4]: x, y, least and greatest, of the points of a record that a log-log plane can hold."""
  xs, ys = curve.get(x, ()), curve.get(y, ())
  columns = (xs, ys, curve.get(f"{y}:min", ys), curve.get(f"{y}:max", ys))
  known = [
    r for r in zip(*columns, strict=False) if all(v is not None and 0 < v < math.inf for v in r)
  ]
  return np.array(known, np.float64).reshape(-1, 4)


def _named(chart: alt.Chart, rows: Sequence[Mapping]) -> alt.Chart:
  """Gives points of a `curve_table` the name, compute, fate and setting of their runs."""
  runs = [
    {"run": i, **{k: row.get(k) for k in ("name", "flops", "status", "setting")}}
    for i, row in enumerate(rows)
  ]
  source = alt.LookupData(data=data(runs), key="run", fields=["name", "flops", "status", "setting"])
  # what is looked up comes as text
  return chart.transform_lookup(lookup="run", from_=source).transform_calculate(
    flops="toNumber(datum.flops)"
  )


def _told_apart(rows: Sequence[Mapping]) -> tuple[list[dict], alt.Color]:
  """(rows with their "setting", the colour of their curves).

  Runs of several budgets are coloured by compute; those of one by the key that has most values among
  them, seeds aside.
  """
  budgets = {_rounded(float(r["flops"])) for r in rows if r.get("flops")}
  # The others have no config.
  begun = Ledger(tuple(dict(r) for r in rows if r.get("status") != "waiting"))
  varied = [k for k in begun.varied() if k not in SEEDS] if len(budgets) < 2 else []
  if not varied:
    return [dict(r) for r in rows], by_compute([r.get("flops") for r in rows])
  key = max(varied, key=lambda k: len({_word(r, k) for r in begun}))
  shown = [{**r, "setting": _word(r, key)} for r in rows]
  order = sorted({r["setting"] for r in shown}, key=natural)
  scale = alt.Scale(domain=order, range=compute_colors(len(order)))
  legend = alt.Legend(title=key, titleLimit=200, symbolType="stroke", symbolOpacity=1)
  return shown, alt.Color("setting:N", scale=scale, legend=legend if len(order) <= 12 else None)


def learning_curves(rows: Sequence[Mapping], width: float):
  """Training loss of every run against tokens and against compute; dots are final validation losses.

  Bands behind the lines run from the least to the greatest record of a bin. None where no run has a record.
  """
  judge = judge_of(rows)
  metric = curve_metric(rows, judge)
  rows, color = _told_apart(rows)
  ended = [r for r in judge.known(rows) if r.get("n_tokens") and r.get("flops")]
  panels = []
  for letter, x, end in (("a", "tokens", "n_tokens"), ("b", "flops", "flops")):
    lines = curve_table(rows, x, metric, width)
    if not lines:
      return None
    dots: list[dict[str, Any]] = [
      {"x": r[end], "loss": r[judge.key], **{k: r.get(k) for k in ("name", "flops", "setting")}}
      for r in ended
    ]
    title = "loss (nats/token)" if metric == "train/loss" else metric.removeprefix("train/")
    title = title if letter == "a" else None
    ys = make_axis([p["loss"] for p in (*lines, *dots)], title)
    xs = make_axis([p["x"] for p in (*lines, *dots)], TITLES[x])
    dashed = alt.condition("datum.status == 'failed'", alt.value([3, 2]), alt.value([1, 0]))
    drawn = _named(alt.Chart(data(lines)).mark_line(strokeWidth=1.1, strokeOpacity=0.85), rows).encode(
      xs.x("x"), ys.y("loss"), color, detail="run:N", tooltip=tips("name", "loss", "flops"),
      strokeDash=dashed,
    )  # fmt: skip
    ends = alt.Chart(data(dots)).mark_circle(size=28, opacity=1, stroke="white", strokeWidth=0.6)
    ends = ends.encode(xs.x("x"), ys.y("loss"), color, tooltip=tips("name", "loss", "flops"))
    spread = [p for p in lines if "low" in p]
    band = _named(alt.Chart(data(spread)).mark_area(fillOpacity=0.12, clip=True), rows).encode(
      xs.x("x"), ys.y("low"), color, y2="high:Q", detail="run:N"
    )
    layers = (band, drawn, ends) if spread else (drawn, ends)
    panels.append(panel(alt.layer(*layers), letter, f"against {TITLES[x]}"))
  return finish(alt.hconcat(*panels))


def response(rows: Sequence[Mapping], x: str, by: str | None, split: str | None):
  """Final loss against one hyperparameter: a line for each value of `by`, a panel for each of `split`.

  Repeats (seeds) are joined by a line through their means; the best of each line is ringed.
  """
  judge = judge_of(rows)
  points = [
    {
      "name": r["name"],
      "value": r[x],
      "loss": r[judge.key],
      "by": _word(r, by),
      "split": _word(r, split),
    }
    for r in rows
  ]
  spread = [p["value"] for p in points]
  losses = [float(p["loss"]) for p in points]
  log = min(spread) > 0 and max(spread) > 5 * min(spread)
  xs = make_axis(spread, x, log, label=power if max(spread) < 1 else short)
  ys = make_axis(losses, judge.title, log=0 < 3 * min(losses) < max(losses))
  order = sorted({p["by"] for p in points}, key=natural)
  legend = alt.Legend(title=by, titleLimit=200) if by else None
  color = alt.Color(
    "by:N", scale=alt.Scale(domain=order, range=compute_colors(len(order))), legend=legend
  )
  hover = [
    alt.Tooltip("name:N"),
    alt.Tooltip("value:Q", title=x),
    alt.Tooltip("loss:Q", format=".4f"),
  ]
  panels = []
  splits = sorted({p["split"] for p in points}, key=natural)
  for i, value in enumerate(splits):
    here = [p for p in points if p["split"] == value]
    best = [_least([p for p in here if p["by"] == b], judge) for b in {p["by"] for p in here}]
    shown = ys if i % 2 == 0 else ys.untitled()
    # lines have no tooltip: its fields would be grouped by, and nothing averaged
    base = alt.Chart(data(here)).encode(xs.x("value"), color)
    rings = alt.Chart(data(best)).mark_circle(size=130, filled=False, strokeWidth=1.4, opacity=1)
    chart = alt.layer(
      base.mark_line(strokeWidth=1.4).encode(shown.y("loss", aggregate="mean")),
      base.mark_circle(size=40, opacity=1).encode(shown.y("loss"), tooltip=hover),
      rings.encode(xs.x("value"), shown.y("loss"), color),
    )
    width = HALF if len(splits) > 1 else 420
    titled = panel(chart, "abcdefgh"[i % 8], f"{split} = {value}", width)
    panels.append(titled if len(splits) > 1 else chart.properties(width=width, height=HEIGHT))
  return finish(alt.concat(*panels, columns=2))


def panels(
  dots: Sequence[Mapping],
  lines: Sequence[Mapping],
  titles: tuple[str, str],
  heads: Mapping,
  by: str,
  log_x: bool = True,
  log_y: bool = False,
  width: int | None = None,
):
  """What was measured (dots, with a bar from `low` to `high` where they have them) on lines that explain it.

  Args:
    dots, lines: x, y, `by` (a number or a word: the colour), `split` (a key of `heads`: the panel).
    titles: of x and of y.
    heads: {split: the words over its panel}; the panels stand in this order, three in a row.
    by: title of the colours' legend.
  """
  everything = [*dots, *lines]
  xs = make_axis([p["x"] for p in everything], titles[0], log_x)
  tall = [v for p in everything for v in (p["y"], p.get("low"), p.get("high")) if v is not None]
  ys = make_axis(tall, titles[1], log_y)
  number = lambda v: short(v) if isinstance(v, int | float) else str(v)
  order = [number(v) for v in sorted({p["by"] for p in everything})]
  order = (
    order
    if all(isinstance(p["by"], int | float) for p in everything)
    else sorted(order, key=natural)
  )
  legend = alt.Legend(title=by, titleLimit=200, labelLimit=260) if len(order) > 1 else None
  scale = alt.Scale(domain=order, range=compute_colors(len(order)))
  color = alt.Color("by:N", scale=scale, legend=legend)
  shown = lambda rows, split: data(
    [{**{k: p.get(k) for k in ("x", "y", "low", "high")}, "by": number(p["by"])}
     for p in rows if p["split"] == split]
  )  # fmt: skip
  width = width or (420 if len(heads) == 1 else 200)
  made = []
  for i, (split, head) in enumerate(heads.items()):
    side = ys if i % 3 == 0 else ys.untitled()
    base, points = alt.Chart(shown(lines, split)), alt.Chart(shown(dots, split))
    layers = []
    if any(p["split"] == split for p in lines):
      drawn = base.mark_line(strokeWidth=1.4, clip=True)
      layers.append(drawn.encode(xs.x("x"), side.y("y"), color, order="x:Q"))
    if any(p["split"] == split and p.get("low") is not None for p in dots):
      bars = points.mark_rule(strokeWidth=1.2, clip=True)
      layers.append(bars.encode(xs.x("x"), side.y("low"), color, y2="high:Q"))
    if any(p["split"] == split for p in dots):
      circles = points.mark_circle(size=34, opacity=1, stroke="white", strokeWidth=0.5)
      layers.append(circles.encode(xs.x("x"), side.y("y"), color, tooltip=tips("x", "y", "by")))
    chart = alt.layer(*layers)
    titled = panel(chart, "abcdefgh"[i % 8], head, width) if len(heads) > 1 else None
    made.append(titled or chart.properties(width=width, height=HEIGHT))
  return finish(alt.concat(*made, columns=3))


def _least(points: Sequence[Mapping], judge: Judge) -> dict:
  """The best mean over repeats of one line."""
  losses = {}
  for point in points:
    losses.setdefault(point["value"], []).append(point["loss"])
  means = ((sum(each) / len(each), value) for value, each in losses.items())
  loss, value = min(means, key=lambda pair: (judge.rank(pair[0]), pair[1]))
  return {"by": points[0]["by"], "value": value, "loss": loss}


def _word(row: Mapping, key: str | None) -> str:
  return "" if key is None else str(row.get(key, ""))


def overlay(
  rows: Sequence[Mapping],
  x: str,
  width: float,
  trained: str = "train/loss",
  evaluated: str = "eval/val/loss",
):
  """A few runs' training curves (lines) and evaluations (dots), one colour a run; None without any.

  Args:
    trained, evaluated: the metrics of the lines and of the dots.
  """
  lines, dots = curve_table(rows, x, trained, width), curve_table(rows, x, evaluated)
  if not lines + dots:
    return None
  names = [row["name"] for row in rows]
  colors = list(METHODS[: len(names)]) if len(names) <= len(METHODS) else compute_colors(len(names))
  legend = alt.Legend(title=None, orient="bottom", columns=3, labelLimit=260)
  color = alt.Color("name:N", scale=alt.Scale(domain=names, range=colors), legend=legend)
  xs = make_axis([p["x"] for p in lines + dots], TITLES[x])
  title = "loss (nats/token)" if evaluated == "eval/val/loss" else evaluated
  ys = make_axis([p["loss"] for p in lines + dots], title)
  encode = dict(x=xs.x("x"), y=ys.y("loss"), color=color, tooltip=tips("name", "loss"))
  curves = _named(alt.Chart(data(lines)).mark_line(strokeWidth=1.2, strokeOpacity=0.9), rows)
  ends = _named(alt.Chart(data(dots)).mark_circle(size=24, opacity=1), rows).encode(**encode)
  return finish((curves.encode(**encode) + ends).properties(width=560, height=320))
