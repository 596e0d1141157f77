"""A page with a law's points and sliders for E, alpha, beta and the window of compute it is fitted to."""

import pathlib
from collections.abc import Mapping, Sequence

from experiments.laws import LawFit
from experiments.laws.isoflop import IsoFlopFit
from experiments.report.page import HERE, escape, inline_json
from lm.files import write_text

KEPT = 3000  # points
SCRIPTS = ("plot.js", "law.js", "law_page.js")
BODY = """<header><h1>$title</h1><span id="count"></span><button id="theme">theme</button></header>
<section id="law">
<div id="controls">
<p>L(N, D) = E + A / N<sup>α</sup> + B / D<sup>β</sup>. A and B follow from the other three: the least sum of
losses of log residuals over the window.</p>
<label>E <input type="range" id="E" step="0.001"><output id="E_out"></output></label>
<label>α <input type="range" id="alpha" min="0.02" max="1.5" step="0.001">
<output id="alpha_out"></output></label>
<label>β <input type="range" id="beta" min="0.02" max="1.5" step="0.001">
<output id="beta_out"></output></label>
<label>window, from C <input type="range" id="low" min="0" max="1" step="0.001">
<output id="low_out"></output></label>
<label>to C <input type="range" id="high" min="0" max="1" step="0.001">
<output id="high_out"></output></label>
<label>loss of residuals <select id="objective"><option value="huber">Huber, δ = 0.001</option>
<option value="l2">squares</option></select></label>
<div><button id="fit">fit all five</button> <button id="all">whole window</button></div>
<table id="numbers"></table>
<p class="soft">Dots in the window are filled. Intervals: <code>python -m experiments fit</code>.</p>
</div>
<div id="figures"><div id="curves"></div>
<div class="two"><div id="residuals"></div><div id="path"></div></div></div>
</section>
"""


def points_of(results: Mapping) -> list[dict]:
  """The points behind the first law, or else the first slices: name, n, d, c, loss."""
  fits = [r for r in results.values() if isinstance(r, LawFit)]
  fits += [r for r in results.values() if isinstance(r, IsoFlopFit)]
  for fit in fits:
    columns = fit.table.columns
    if not {"n_params", "n_tokens", "loss"} <= set(columns):
      continue
    names = fit.table.labels.get("name", [f"row {n}" for n in fit.table.rows])
    flops = columns.get("flops", 6 * columns["n_params"] * columns["n_tokens"])
    keys = (columns["n_params"], columns["n_tokens"], flops, columns["loss"])
    return [
      {
        "name": str(name),
        **{k: float(f"{v:.6g}") for k, v in zip(("n", "d", "c", "loss"), row, strict=True)},
      }
      for name, *row in zip(names, *keys, strict=True)
      if all(v > 0 for v in row)
    ]
  return []


def write_law_page(
  points: Sequence[Mapping], beside: pathlib.Path, title: str
) -> pathlib.Path | None:
  """Writes NAME_law.html beside a report; None where there are too few points for a law."""
  from experiments.report import board

  if len(points) < 6:
    return None
  path = beside.with_name(f"{beside.stem}_law.html")
  body = BODY.replace("$title", escape(f"{title}: a law by hand"))
  data = f"const POINTS = {inline_json(list(points)[:KEPT])};"
  page = board.script_page(
    f"{title}: law", body, data, SCRIPTS, (HERE / "law_page.css").read_text()
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  write_text(path, page)
  return path
