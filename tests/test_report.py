"""Reports, their figures and the board: what they say is what the ledger and the fits hold."""

import collections
import csv
import dataclasses
import doctest
import itertools
import json
import math
import re
import struct
import threading
import time
import types
import urllib.error
import urllib.request
from xml.etree import ElementTree

import numpy as np
import pytest

from experiments import laws
from experiments.commands.printing import print_results
from experiments.laws import result
from experiments.ledger import judged, rows
from experiments.ledger.ledger import Ledger, read_ledger
from experiments.ledger.refresh import FolderReader
from experiments.report import (
  answers,
  board,
  charts,
  formats,
  law_charts,
  law_tables,
  page,
  paper,
  report,
  tables,
)
from experiments.report.claims import Claim
from experiments.sweep import described, sweep
from experiments.sweep.halving import Halving
from lm.config.errors import ConfigError
from tests.fake_runs import SMOKE, fake_run
from tests.known_laws import true_fits

LOADS = re.compile(
  r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//|@import|url\(\s*["']?(?:https?:)?//"""
)


@pytest.fixture(scope="module")
def fits():
  return true_fits()


@pytest.fixture
def folder(tmp_path):
  """Four runs as train.py leaves them: three done, one failed for a reason that is also markup."""
  for width in (32, 64, 128):
    fake_run(tmp_path / f"width={width}", {"model.width": width}, loss=4 - width / 100)
  fake_run(tmp_path / "bad", {"optim.peak_lr": 9.0}, "failed", reason="<b>loss</b> is not finite")
  return tmp_path


def experiment(**fields):
  runs = [
    sweep.Run(f"width={w}", {"model.width": w, "model.heads": w // 16}, SMOKE)
    for w in (32, 64, 128)
  ]
  doc = "Does <width> help?\n\nFixed: the rest."
  return sweep.make_experiment("widths", runs, **{"doc": doc, **fields})


def specs_of(markup):
  return [json.loads(text) for text in re.findall(r"data-chart=[^>]*>(.*?)</script>", markup, re.S)]


# ---- Axes and data -------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [formats, charts, paper])
def test_examples_in_docstrings_hold(module):
  result = doctest.testmod(module)
  assert result.attempted and not result.failed


def test_ticks_are_few_round_and_inside():
  rng = np.random.default_rng(1)
  for _ in range(300):
    low = 10 ** rng.uniform(-6, 20)
    high = low * 10 ** rng.uniform(0.02, 12)
    slack = 1e-8 * (high - low)
    for ticks in (charts.log_ticks(low, high), charts.linear_ticks(low, high)):
      assert 2 <= len(ticks) <= 6, (low, high, ticks)
      assert all(low - slack <= tick <= high + slack for tick in ticks)
      assert ticks == sorted(set(ticks))
    assert all(float(f"{t:.3g}") == t for t in charts.log_ticks(low, high) if high > 10 * low)


def test_labels_of_a_log_axis_do_not_touch():
  assert charts.log_ticks(9.8e8, 6.6e9) == [1e9, 2e9, 5e9]  # 4, 5 and 6 were one blot
  for low, high in ((1.0, 7.0), (2e17, 4e18), (1.9, 4.2), (30.0, 200.0)):
    ticks = charts.log_ticks(low, high)
    assert len(ticks) >= 2
    assert all(b / a >= (high / low) ** 0.1 for a, b in itertools.pairwise(ticks))


@pytest.mark.slow
def test_a_fit_has_the_figure_of_its_report_in_a_notebook(fits):
  slices, law = fits
  for fit, title in ((slices, "parameters N"), (law, "training tokens D")):
    chart = fit.plot()
    assert title in json.dumps(chart.to_dict()) and hasattr(chart, "_repr_mimebundle_")
  of_compute = dataclasses.replace(law, table=law.table.take(law.table.columns["loss"] > 0, ""))
  del of_compute.table.columns["n_tokens"]
  spec = json.dumps(of_compute.plot().to_dict())
  assert "predicted loss" in spec and len(law.table.columns["loss"]) == 28
  with pytest.raises(ConfigError, match=r"plot=Other: has no figure; print its summary\(\)"):
    type("Other", (result.Result,), {})().plot()


def test_curves_of_one_budget_are_told_apart_by_what_is_swept():
  curve = {"step": [1, 2], "tokens": [8, 16], "flops": [1.0, 2.0], "train/loss": [3.0, 2.0]}
  rows = [
    {"name": f"{rate}-{seed}", "status": "done", "loss": 2.0, "n_tokens": 16, "flops": 2.0,
     "optim.peak_lr": rate, "seed": seed, "curve": curve}
    for rate in (0.001, 0.01, 0.1) for seed in (0, 1)
  ]  # fmt: skip
  spec = json.dumps(charts.learning_curves(rows, 0.0).to_dict())
  assert '"title": "optim.peak_lr"' in spec and '"domain": ["0.001", "0.01", "0.1"]' in spec
  several = [{**r, "flops": r["optim.peak_lr"]} for r in rows]
  assert '"field": "setting"' not in json.dumps(charts.learning_curves(several, 0.0).to_dict())


def test_an_axis_holds_every_value_and_names_every_tick():
  axis = charts.make_axis([3e17, 2e19, math.nan, None], "compute C (FLOPs)")
  assert axis.domain[0] < 3e17 and axis.domain[1] > 2e19
  assert axis.texts == tuple(formats.power(tick) for tick in axis.ticks)
  one = charts.make_axis([5.0], "loss", log=False)
  assert one.domain[0] < 5 < one.domain[1] and one.ticks


def test_figures_of_500_runs_stay_small():
  curve = {
    "tokens": list(range(1, 401)),
    "flops": list(range(1, 401)),
    "train/loss": [3.0] * 400,
  }
  rows = [{"name": f"r{i}", "status": "done", "flops": 1e9 + i, "curve": curve} for i in range(500)]
  table = charts.curve_table(rows, "tokens")
  assert {p["run"] for p in table} == set(range(500)) and len(table) <= charts.CURVE_POINTS
  assert len(charts.learning_curves(rows, 0.0).to_json()) < 1.5e6


def test_values_that_are_none_do_not_reach_a_curve():
  losses = [5.0, math.nan, None, math.inf, 4.0]
  row = {"curve": {"tokens": [1, 2, 3, 4, 5], "train/loss": losses}}
  assert [p["loss"] for p in charts.curve_table([row], "tokens")] == [5.0, 4.0]


def test_a_figure_shows_the_record_and_not_a_lagging_average():
  tokens = list(range(1, 2001))
  losses = [3 + 6 * t**-0.5 for t in tokens]
  row = {"curve": {"tokens": tokens, "train/loss": losses}}
  for point in charts.curve_table([row], "tokens"):
    assert point["loss"] == pytest.approx(3 + 6 * point["x"] ** -0.5, abs=0.06)
    if "low" in point:
      assert point["low"] < point["loss"] < point["high"]


# ---- Laws ----------------------------------------------------------------------------------------


def test_contours_are_where_the_law_has_that_loss(fits):
  _, law = fits
  contours = law_tables.law_contours(law)
  assert len({row["loss"] for row in contours}) >= 3
  n_params, flops, loss = (
    np.array([r[k] for r in contours]) for k in ("n_params", "flops", "loss")
  )
  predicted = law.predict({"n_params": n_params, "n_tokens": flops / (6 * n_params)})
  np.testing.assert_allclose(predicted, loss, rtol=1e-3)


def test_the_drawn_path_is_the_closed_form_inside_its_band(fits):
  _, law = fits
  a, b, alpha, beta = (law[name].value for name in ("A", "B", "alpha", "beta"))
  scale = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
  for row in law_tables.path_rows(law, "n_params", "law"):
    expected = scale * (row["flops"] / 6) ** (beta / (alpha + beta))
    assert row["x"] == pytest.approx(expected, rel=1e-4)
  for row in law_tables.path_rows(law, "n_tokens", "law"):
    assert row["low"] < row["x"] < row["high"]


def test_the_line_through_optima_agrees_with_the_fit(fits):
  slices, _ = fits
  for axis, exponent, name in (("n_params", "a", "N*"), ("n_tokens", "b", "D*")):
    rows = law_tables.line_rows(slices, axis, "slices")
    ends = [np.log(rows[i]["x"]) for i in (0, -1)]
    slope = (ends[1] - ends[0]) / np.log(rows[-1]["flops"] / rows[0]["flops"])
    assert slope == pytest.approx(slices[exponent].value, rel=1e-6)
    far = next(e for e in slices.estimates.values() if e.name.startswith(f"{name}@6.4e+20"))
    assert (rows[-1]["low"], rows[-1]["high"]) == pytest.approx(far.interval, rel=1e-3)


def test_drawn_parabolas_pass_through_their_minima(fits):
  slices, _ = fits
  curves = [c for c in law_tables.slice_curves(slices) if c["axis"] == "n_params"]
  for minimum in law_tables.slice_minima(slices):
    if minimum["axis"] == "n_params":
      lowest = min((c for c in curves if c["flops"] == minimum["flops"]), key=lambda c: c["loss"])
      assert lowest["loss"] == pytest.approx(minimum["loss"], rel=1e-4)
      assert minimum["low"] < minimum["x"] < minimum["high"]


def test_extrapolation_shows_the_errors_that_the_fit_reports(fits):
  _, law = fits
  points = law_tables.extrapolation_points(law)
  errors = [p["predicted"] / p["loss"] - 1 for p in points if p["held"]]
  held = [p for p in points if p["held"]]
  assert np.mean([p["low"] <= p["loss"] <= p["high"] for p in held]) == law.holdout.covered
  assert not any("low" in p for p in points if not p["held"])
  assert len(errors) == law.holdout.n_held
  assert np.mean(errors) == pytest.approx(law.holdout.bias, abs=1e-9)
  assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(law.holdout.rms, rel=1e-6)


# ---- Reports -------------------------------------------------------------------------------------


def test_a_report_of_laws_is_self_contained_and_complete(fits, folder):
  slices, law = fits
  claims = (
    Claim("a", 0.73, "Kaplan 2020", tolerance=0.01),
    Claim("nothing", 1.0, "nobody", tolerance=0.1),
  )
  counts = {"as trained": {}, "twice the FLOPs": {"flops": "twice"}}
  table = laws.from_columns(law.table.columns | {"twice": 2 * law.table["flops"]})
  side = laws.refit_under(table, counts, n_boot=20, n_starts=16, holdout=False, methods=("case",))
  found = {"a": law["a"], "slices": slices, "law": law, "counted": side}
  asked = experiment(analyse=lambda rows: found, claims=claims)
  path = report.write_report(asked, read_ledger(str(folder)), str(folder / "report.html"), "icml")
  markup = path.read_text()
  assert not LOADS.search(markup)
  assert "Does &lt;width&gt; help?" in markup and "<width>" not in markup
  assert "▲ differs" in markup and "we have no estimate of it" in markup
  for name in ("alpha", "beta", "E"):  # every number with its interval
    low, high = law[name].interval
    assert f"[{formats.number(low)}, {formats.number(high)}]" in markup
  for name in counts:
    low, high = side[name]["a"].interval
    assert name in markup and f"[{formats.number(low)}, {formats.number(high)}]" in markup
  assert f"of {law.holdout.n_held} hold the measured loss" in markup
  files = sorted((folder / "report_figures").iterdir())
  drawn = specs_of(markup)
  assert len(drawn) == 7 and len(files) == 4 * len(drawn)
  for file in files:
    assert file.stat().st_size > 100
    assert f"report_figures/{file.name}" in markup
  assert "$schema" not in drawn[0]
  answer = re.search(r'<p class="answer">(.*?)</p>', markup, re.S)[1]
  a = slices["a"]
  assert f"a = {a.value:.3f}" in answer and f"[{a.interval[0]:.3f}, {a.interval[1]:.3f}]" in answer
  assert "holds Hoffmann" in answer and "excludes Kaplan" in answer
  assert markup.index('class="answer"') < markup.index("<nav>")
  check_kit(folder / "report_icml", drawn, law)


def check_kit(kit, drawn, law):
  """Figures of a column's width with their font inside, tables, numbers and methods."""
  pdfs = sorted(kit.glob("figure-*.pdf"))
  assert len(pdfs) == len(drawn) and len(list(kit.glob("figure-*.csv"))) == len(drawn)
  for pdf in pdfs:
    content = pdf.read_bytes()
    width = float(re.search(rb"/MediaBox ?\[0 0 ([\d.]+)", content)[1])
    assert width == pytest.approx(3.25 * 72, abs=1.5), pdf
    fonts = set(re.findall(rb"/BaseFont ?/([^ /\n]+)", content))
    assert fonts and all(b"IsoflopSans" in font for font in fonts), (pdf, fonts)
    sizes = set(re.findall(r'font-size="([\d.]+)px', pdf.with_suffix(".svg").read_text()))
    assert sizes == {"8"}
  points = list(csv.DictReader((kit / "figure-3-law.csv").read_text().splitlines()))
  losses = {round(float(p["loss"]), 4) for p in points if p.get("name")}
  assert losses == {float(f"{v:.5g}") for v in law.table["loss"]}
  tables = "".join(p.read_text() for p in kit.glob("table-*.tex"))
  assert (
    tables.count(r"\toprule") == tables.count(r"\bottomrule") == len(list(kit.glob("table-*.tex")))
  )
  assert "$\\alpha$" in tables and "$<$b$>$loss" in tables and "⁰" not in tables
  methods = (kit / "methods.tex").read_text()
  for words in (
    "3 finished runs of 4",
    "is not finite",
    "20 samples of runs",
    "python -m experiments",
  ):
    assert words in methods
  assert r"\input{methods.tex}" in (kit / "all.tex").read_text()


def test_latex_of_what_pages_write():
  assert paper.latex("a_b 5 % &lt;x&gt; 10⁻³") == r"a\_b 5 \% $<$x$>$ 10$^{-3}$"
  assert paper.latex("a in N* ~ C^a") == r"a in N$^{*}$ $\sim$ C$^{a}$"
  assert paper.latex("A / N^alpha + B*D^-b, D*/N*") == (
    r"A / N$^{\alpha}$ + B*D$^{-b}$, D$^{*}$/N$^{*}$"
  )
  table = paper.latex_table("N & D", ["run", "N"], [["w=1", "1.2M"], ["w_2", ""]], "tab:1")
  assert r"\begin{tabular}{lr}" in table and r"w\_2 &  \\" in table and r"N \& D" in table


@pytest.mark.parametrize("width", [60, 80])
def test_what_fits_print_is_no_wider_than_the_terminal_and_no_number_folds(
  width, fits, capsys, monkeypatch
):
  slices, law = fits
  monkeypatch.setattr(tables, "terminal_width", lambda: width)
  print_results({"slices": slices, "law": law})
  lines = capsys.readouterr().out.split("\n")
  assert max(map(len, lines)) <= width
  rows = {line.split()[0]: line for line in lines if line and line.split()[0] in law.estimates}
  least = f"{law['alpha'].value:.6g}"
  assert (
    least in rows["alpha"]
    and law["alpha"].said(next(iter(law["alpha"].intervals))) in rows["alpha"]
  )
  assert any(line.startswith("no room for: ") and "boot se" in line for line in lines)
  words = set(re.findall(r"[\d.e+-]{5,}", " ".join(lines)))
  assert words <= set(re.findall(r"[\d.e+-]{5,}", f"{slices.summary()} {law.summary()}"))


SLICES = [
  {"name": f"{c:g},{n:g}", "flops": c, "n_params": n, "n_tokens": c / 6 / n, "loss": 2 + x**2 / 9}
  for c in (1e18, 3e18, 1e19, 3e19, 1e20) for x in range(-2, 3) for n in [c**0.5 / 30 * 2.0**x]
]  # fmt: skip
EXPONENTS = [
  {"what": what, "value": 0.55, "low": 0.47, "high": 0.81, "text": "0.550 [0.470, 0.810]"}
  for what in ("isoFLOP", "parametric", "non-embedding parameters", "exact FLOPs")
]


def drawn_text(svg):
  """{text: (x, y)} of an SVG's text, in its own units; lines of one text apart."""
  found, places = {}, []

  def walk(node, x, y):
    moved = re.search(r"translate\(([-\d.]+)[, ]+([-\d.]+)\)", node.get("transform", ""))
    if moved:
      x, y = x + float(moved[1]), y + float(moved[2])
    if node.tag.endswith("}text"):
      found["".join(node.itertext())] = (x, y)
      places.append(("".join(node.itertext()), x, y))
    for child in node:
      walk(child, x, y)

  walk(ElementTree.fromstring(svg), 0.0, 0.0)
  return found, places


@pytest.mark.parametrize("name", list(paper.STYLES))
def test_figures_of_print_are_no_wider_than_a_column_and_nothing_in_them_touches(name):
  style = paper.STYLES[name]
  svg, width = paper.fitted_svg(law_charts.isoflop(SLICES, [], []).to_dict(), style)
  assert style.width - 2 / 72 <= width <= style.width
  places, _ = drawn_text(svg)
  rows = {places[formats.power(c)][1] for c in (1e18, 3e18, 1e19, 3e19, 1e20)}
  assert len(rows) == (2 if name == "icml" else 1)  # the legend is as wide as there is room

  svg, width = paper.fitted_svg(law_charts.exponents(EXPONENTS).to_dict(), style)
  assert style.width - 2 / 72 <= width <= style.width
  places, each = drawn_text(svg)
  for row in EXPONENTS:
    assert row["what"] in places or row["what"].replace(" ", "") in places, sorted(places)
  ticks = sorted(x for text, x, _ in each if re.fullmatch(r"0\.\d+", text))
  assert len(ticks) > 1 and min(b - a for a, b in itertools.pairwise(ticks)) > 2 * style.text


def test_a_picture_of_print_says_its_size(tmp_path):
  paper.write_figure(
    law_charts.exponents(EXPONENTS).to_dict(), tmp_path / "a", paper.STYLES["icml"]
  )
  head = (tmp_path / "a.png").read_bytes()[:200]
  at = head.index(b"pHYs") + 4
  across, _, unit = struct.unpack(">IIB", head[at : at + 9])
  pixels = struct.unpack(">I", head[16:20])[0]
  assert unit == 1 and pixels / across / 0.0254 == pytest.approx(3.25, abs=0.03)  # inches


def test_a_sweep_without_analysis_is_answered_by_its_best_setting(tmp_path):
  for rate, loss in ((1e-3, 3.2), (3e-3, 3.0), (1e-2, 3.1)):
    for seed, noise in ((0, 0.0), (1, 0.01)):
      settings = {"optim.peak_lr": rate, "seed": seed}
      fake_run(tmp_path / "s" / f"lr={rate:g},seed={seed}", settings, loss=loss + noise)
  settings = {"optim.peak_lr": 1e30}
  fake_run(tmp_path / "s" / "bad", settings, "failed", reason="loss is not finite")
  said = answers.answer(experiment(doc=""), {}, read_ledger(str(tmp_path / "s")))
  assert "best of 3 settings is peak_lr = 0.003, with a validation loss of 3.0050" in said
  assert "0.1000 above" in said and "more than the noise of seeds explains" in said
  assert "edge" not in said
  few = read_ledger(str(tmp_path / "s")).where("optim.peak_lr!=0.001")
  assert "edge" not in answers.answer(experiment(doc=""), {}, few)


def judged_rows(better):
  """Runs of two rates without a loss, the higher rate with the higher score."""
  common = {
    "status": "done",
    "metric": "eval/val/f1",
    "better": better,
    "flops": 1e9,
    "n_tokens": 10,
  }
  return [
    {**common, "name": f"lr={rate}", "optim.peak_lr": rate, "score": 10 * rate,
     "curve": {"tokens": [5, 10], "flops": [1, 2], "train/tokens": [5, 5], "train/f1": [0.3, 0.5]}}
    for rate in (0.01, 0.02)
  ]  # fmt: skip


@pytest.mark.parametrize("better, best", [("higher", "0.02"), ("lower", "0.01")])
def test_runs_without_a_loss_are_judged_by_their_metric_in_its_direction(better, best):
  rows = judged_rows(better)
  said = answers.answer(types.SimpleNamespace(claims=(), halving=None), {}, Ledger(tuple(rows)))
  assert f"best of 2 settings is peak_lr = {best}, with eval/val/f1 of" in said
  side = "below" if better == "higher" else "above"
  assert f"is 0.1000 {side}" in said
  drawn = charts.response(rows, "optim.peak_lr", None, None).to_dict()["datasets"].values()
  assert f"by,value,loss\n,{best},{10 * float(best)}\n" in drawn  # the ring
  judge = judged.judge_of(rows)
  assert judged.curve_metric(rows, judge) == "train/f1"
  assert judged.judge_of([*rows, {"loss": 3.0}]) == judged.LOSS


def test_rungs_of_halving_are_lines_of_their_own_and_nothing_is_averaged_over_them(tmp_path):
  runs, made = [], []
  for rate in (1e-3, 3e-3, 1e-2):
    runs.append(sweep.Run(f"lr={rate:g}", {"optim.peak_lr": rate}, SMOKE))
    for rung, steps in ((0, 20), (1, 60)):
      loss = 4 - rung - (rate == 3e-3) * 0.1
      fake_run(
        tmp_path / f"lr={rate:g},rung={rung}",
        {"optim.peak_lr": rate, "train.steps": steps, "eval.every_steps": 10},
        loss=loss,
      )
      made.append(loss)
  halved = sweep.make_experiment("halved", runs, doc="", halving=Halving(3, 2))
  path = report.write_report(halved, read_ledger(str(tmp_path)), str(tmp_path / "r.html"))
  markup = path.read_text()
  response = specs_of(markup)[-1]
  (points,) = (
    list(csv.DictReader(text.splitlines()))
    for text in response["datasets"].values() if text.startswith("name,")
  )  # fmt: skip
  assert {p["by"] for p in points} == {"0", "1"} and len(points) == 6
  assert "a line for each rung" in markup
  assert (
    "validation loss of 2.9000" in markup and "The best run: 2.9000 (lr=0.003,rung=1)" in markup
  )


def test_a_line_of_the_response_is_one_setting_however_many_are_swept(tmp_path):
  runs = []
  for rate, width, name, groups in itertools.product(
    (1e-3, 3e-3, 1e-2), (32, 64), ("adamw", "lion"), ((), ("embed:lr=2",))
  ):
    changes = {
      "optim.peak_lr": rate,
      "model.width": width,
      "optim.name": name,
      "optim.groups": groups,
    }
    runs.append(sweep.Run(f"{rate:g},{width},{name},{len(groups)}", changes, SMOKE))
    fake_run(tmp_path / runs[-1].name, changes, loss=3 - rate)
  swept = sweep.make_experiment("swept", runs, doc="")
  path = report.write_report(swept, read_ledger(str(tmp_path)), str(tmp_path / "r.html"))
  panels = [
    list(csv.DictReader(text.splitlines()))
    for text in specs_of(path.read_text())[-1]["datasets"].values() if text.startswith("name,")
  ]  # fmt: skip
  lines = [collections.Counter((p["by"], p["value"]) for p in points) for points in panels]
  assert sum(map(len, lines)) >= 24 and {n for line in lines for n in line.values()} == {1}
  assert any("embed:lr=2" in by and "[" not in by for line in lines for by, _ in line)


def test_a_sweep_of_words_is_reproduced_by_its_command(tmp_path):
  spec = {"config": SMOKE, "grids": ["optim.peak_lr=1e-3,3e-3"], "random": [], "halving": "3:2", "seed": 0,
          "name": "rates", "fixed": {"seed": "1"}}  # fmt: skip
  (tmp_path / "rates").mkdir()
  (tmp_path / "rates" / "sweep.json").write_text(json.dumps(spec))
  command = described.command(tmp_path / "rates" / "sweep.json")
  assert command == (
    f"python -m experiments run --config {SMOKE} --grid optim.peak_lr=1e-3,3e-3 --set seed=1"
    " --halving 3:2 --save_as rates"
  )
  fake_run(tmp_path / "rates" / "a", {})
  rows = read_ledger(str(tmp_path / "rates"))
  path = report.write_report(experiment(), rows, str(tmp_path / "r.html"), command=command)
  assert page.escape(command) in path.read_text()


def test_progress_is_told_while_it_computes(folder, capsys):
  report.write_report(experiment(), read_ledger(str(folder)), str(folder / "r.html"))
  told = capsys.readouterr().err
  assert "report widths: figure 1, learning-curves" in told


def test_failed_runs_are_named_with_their_reason_as_text(folder):
  path = report.write_report(experiment(), read_ledger(str(folder)), str(folder / "report.html"))
  markup = path.read_text()
  assert "&lt;b&gt;loss&lt;/b&gt; is not finite" in markup and "<b>loss</b>" not in markup
  assert "3 done" in markup and "1 failed" in markup
  assert "defines no analyse()" in markup


def test_a_report_says_why_there_is_no_law(folder):
  def analyse(rows):
    raise ConfigError(f"rows={len(rows)}: too few; run more")

  rows = read_ledger(str(folder))
  path = report.write_report(experiment(analyse=analyse), rows, str(folder / "r.html"))
  assert "rows=3: too few; run more" in path.read_text()
  waiting = Ledger(tuple({"name": n, "status": "waiting", "reason": None} for n in "ab"))
  path = report.write_report(experiment(analyse=analyse), waiting, str(folder / "w.html"))
  assert "No run is done yet" in path.read_text() and "holds no learning curves" in path.read_text()


def test_a_sweep_of_one_budget_is_reported_while_some_of_its_runs_wait(tmp_path):
  for rate in (1e-3, 3e-3):
    fake_run(tmp_path / "s" / f"lr={rate:g}", {"optim.peak_lr": rate}, loss=3 + rate)
  waiting = {"name": "lr=0.01", "status": "waiting", "reason": None}
  rows = Ledger((*read_ledger(str(tmp_path / "s")), waiting))
  markup = report.write_report(experiment(), rows, str(tmp_path / "page.html")).read_text()
  assert "lr=0.01" in markup and "waiting" in markup
  assert '"optim.peak_lr"' in json.dumps(specs_of(markup)[0])  # the curves' colour


def test_one_run_is_enough_for_a_page(folder):
  rows = Ledger(tuple(r for r in read_ledger(str(folder)) if r["name"] == "width=32"))
  markup = report.write_report(experiment(), rows, str(folder / "one.html")).read_text()
  assert len(specs_of(markup)) == 2  # curves, and the response with its one point


def interrupted_at_second(draw):
  """A function that is `draw` once, and an interrupt from then on."""
  calls = iter([draw])

  def call(*words):
    if (once := next(calls, None)) is None:
      raise KeyboardInterrupt
    return once(*words)

  return call


@pytest.mark.slow
def test_a_page_that_is_stopped_while_it_draws_leaves_the_one_before(folder, tmp_path, monkeypatch):
  from experiments.report import charts, paper

  rows = read_ledger(str(folder))
  path = report.write_report(experiment(), rows, str(tmp_path / "p.html"), "icml")
  before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
  assert any(p.parent.name == "p_figures" for p in before)
  assert any(p.parent.name == "p_icml" for p in before)
  for module, name, new in ((paper, "write_figure", ""), (charts, "save", "p_icml")):
    with monkeypatch.context() as patch:
      patch.setattr(module, name, interrupted_at_second(getattr(module, name)))
      with pytest.raises(KeyboardInterrupt):
        report.write_report(experiment(), Ledger(rows.rows[:3]), str(path), "icml")
    now = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.parent.name != new}
    assert now == {p: was for p, was in before.items() if p.parent.name != new}
    assert not list(tmp_path.rglob(".unfinished*"))
  report.write_report(experiment(), Ledger(rows.rows[:1]), str(path), "icml")
  after = {p.name for p in tmp_path.rglob("*.pdf")}
  assert after == {name for name in after if name in path.read_text()}  # none of an earlier page


def test_what_follows_from_another_key_is_not_a_panel_of_its_own():
  rows = [
    {"model.width": w, "model.heads": w // 16, "optim.peak_lr": lr, "seed": s}
    for w in (32, 64) for lr in (1e-3, 2e-3) for s in (0, 1)
  ]  # fmt: skip
  keys = ["model.width", "model.heads", "optim.peak_lr", "seed"]
  assert report._independent(rows, keys) == ["model.width", "optim.peak_lr"]


def test_mismatched_evaluations_are_called_out(folder):
  store = {"tokens": 9, "bytes": 9, "documents": 1, "fingerprint": "other"}
  data = {
    "fingerprint": "data1",
    "tokenizer": {"name": "byte", "vocab_size": 257, "fingerprint": "tok0"},
    "stores": {"val": store},
  }
  fake_run(folder / "odd", {"model.width": 32, "seed": 1}, data=data)
  warnings = report.design_warnings(experiment(), read_ledger(str(folder)))
  assert any("eval_fingerprint differs" in w for w in warnings)


def test_a_comparison_draws_every_run(folder):
  from experiments.ledger.compare import compare

  rows = list(read_ledger(str(folder)))
  path = report.write_comparison(rows, compare(rows, "tokens", 0.5), str(folder / "c.html"))
  markup = path.read_text()
  for row in rows:
    assert page.escape(row["name"]) in markup
  assert "model.width" in markup and not LOADS.search(markup)


# ---- Board ---------------------------------------------------------------------------------------


def test_board_data_is_json_without_nan_and_keeps_every_evaluation(folder):
  rows = [dict(row) for row in read_ledger(str(folder))]
  rows[0]["loss"] = math.nan
  data = json.loads(
    page.inline_json(board.board_data(Ledger(tuple(rows)), None)), parse_constant=pytest.fail
  )
  assert data["rows"][0]["loss"] is None and "curve" not in data["rows"][0]
  name = rows[1]["name"]
  known = [v for v in rows[1]["curve"]["eval/val/loss"] if v is not None]
  assert [v for v in data["curves"][name]["eval/val/loss"] if v is not None] == pytest.approx(known)
  assert {"name", "status", "loss", "model.width"} <= set(data["shown"])


def test_hostile_names_stay_text(folder):
  evil = "</script><script>alert(1)</script>"
  rows = Ledger(({"name": evil, "status": "done", "reason": None, "loss": 1.0},))
  markup = board.board_page(rows, live=None)
  assert evil not in markup and "alert(1)" in markup
  assert not LOADS.search(markup)


def test_the_served_board_shows_new_runs(folder, monkeypatch):
  monkeypatch.setattr(board, "REFRESH_SECONDS", 0)
  server = board.make_server(FolderReader(str(folder)), 0)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    root = f"http://127.0.0.1:{server.server_address[1]}"
    get = lambda path: urllib.request.urlopen(root + path, timeout=10).read().decode()
    before = json.loads(get("/ledger.json"))
    fake_run(folder / "later", {"model.width": 64, "seed": 3})
    after, patience = before, time.monotonic() + 20
    # A ledger that takes long to read is read less often.
    while len(after["rows"]) == len(before["rows"]) and time.monotonic() < patience:
      after = json.loads(get("/ledger.json"))
    assert {r["name"] for r in after["rows"]} - {r["name"] for r in before["rows"]} == {"later"}
    assert before["version"] < after["version"]
    changed = json.loads(get(f"/ledger.json?since={before['version']}"))
    assert [r["name"] for r in changed["rows"]] == ["later"] and set(changed["curves"]) == {"later"}
    assert changed["names"] == [r["name"] for r in after["rows"]]
    assert "later" in get("/")
    elsewhere = urllib.request.Request(root + "/ledger.json", headers={"Host": "evil.example"})
    with pytest.raises(
      urllib.error.HTTPError, match="403"
    ):  # a name pointed here by a page elsewhere
      urllib.request.urlopen(elsewhere, timeout=10)
    assert server.server_address[0] == "127.0.0.1"
    with pytest.raises(urllib.error.HTTPError, match="404"):
      get("/../run.json")
    with pytest.raises(ConfigError, match="choose another port"):
      board.make_server(FolderReader(str(folder)), server.server_address[1])
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_slow_ledger_is_not_read_at_every_request():
  calls = []
  reader = types.SimpleNamespace(read=lambda: calls.append(1) or "rows", version=1, since=set)
  look = board._AtMostEvery(60, reader)
  assert look()[0] == look()[0] == "rows" and len(calls) == 1


def test_a_folder_read_again_parses_only_what_is_new(folder, monkeypatch):
  fake_run(folder / "now", {"model.width": 32, "seed": 5}, status="running")
  parsed = []
  parse = rows._parsed
  monkeypatch.setattr(
    rows, "_parsed", lambda text, *rest: parsed.append(text) or parse(text, *rest)
  )
  reader = FolderReader(str(folder))
  assert reader.read().rows == read_ledger(str(folder)).rows
  first, version = len(reader.read()), reader.version
  parsed.clear()
  with open(folder / "now" / "metrics.jsonl", "a") as file:
    file.write('{"step": 70, "tokens": 35840, "flops": 1.0, "train/loss": 1.5}\n{"step": 80, "tok')
  again = reader.read()
  assert sum(map(len, parsed)) < 100 and b'"step": 70' in b"".join(parsed)
  (row,) = (r for r in again if r["name"] == "now")
  assert row["step"] == 70 and row["curve"]["train/loss"][-1] == 1.5
  assert len(again) == first and reader.version == version + 1 and reader.since(version) == {"now"}
  # A resume cut it, then went on.
  lines = (folder / "now" / "metrics.jsonl").read_text().splitlines()[:3]
  longer = [*lines, *(f'{{"step": {s}, "tokens": {s}, "flops": 2.0}}' for s in range(40, 90))]
  (folder / "now" / "metrics.jsonl").write_text("\n".join(longer) + "\n")
  assert reader.read().rows == read_ledger(str(folder)).rows
