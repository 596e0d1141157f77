"""Reports, their figures and the board: what they say is what the ledger and the fits hold."""

import doctest
import json
import math
import re
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

from experiments import board, charts, formats, law_tables, laws, page, report, sweep
from experiments.claims import Claim
from experiments.ledger import Ledger, read_ledger
from lm.config import ConfigError
from tests.fake_runs import SMOKE, fake_run

TRUE = {"A": 400.0, "B": 2000.0, "E": 1.8, "alpha": 0.34, "beta": 0.37}
LOADS = re.compile(
  r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//|@import|url\(\s*["']?(?:https?:)?//"""
)


def true_loss(n_params, n_tokens):
  return TRUE["E"] + TRUE["A"] / n_params ** TRUE["alpha"] + TRUE["B"] / n_tokens ** TRUE["beta"]


@pytest.fixture(scope="module")
def fits():
  """An isoFLOP and a parametric fit to runs of a known law with a little noise."""
  flops = np.repeat([1e18, 4e18, 1.6e19, 6.4e19], 7)
  best = 0.09 * flops**0.52
  n_params = best * np.tile(4.0 ** np.linspace(-1, 1, 7), 4)
  n_tokens = flops / (6 * n_params)
  noise = np.exp(1e-3 * np.random.default_rng(0).standard_normal(len(flops)))
  columns = {"n_params": n_params, "n_tokens": n_tokens, "flops": flops}
  names = {"name": [f"run{i}" for i in range(len(flops))]}
  table = laws.from_columns(columns | {"loss": true_loss(n_params, n_tokens) * noise}, names)
  law = laws.fit_table(table, n_boot=20, n_starts=16, methods=("case", "delta"))
  return laws.isoflop_fit(table, n_boot=20, bias=False), law


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


@pytest.mark.parametrize("module", [formats, charts])
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


def test_an_axis_holds_every_value_and_names_every_tick():
  axis = charts.make_axis([3e17, 2e19, math.nan, None], "compute C (FLOPs)")
  assert axis.domain[0] < 3e17 and axis.domain[1] > 2e19
  assert axis.texts == tuple(formats.power(tick) for tick in axis.ticks)
  one = charts.make_axis([5.0], "loss", log=False)
  assert one.domain[0] < 5 < one.domain[1] and one.ticks


def test_thinning_keeps_both_ends_and_early_points():
  xs = np.arange(1.0, 100_001)
  kept, ys = charts.thin_log(xs, -xs, 60)
  assert len(kept) <= 60 and kept[0] == 1 and kept[-1] == 100_000
  assert (kept < 1000).sum() > 20  # the first hundredth of a run is more than half of a log axis
  np.testing.assert_array_equal(ys, -kept)


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


def test_short_records_are_not_smoothed_away():
  row = {"curve": {"tokens": [1, 2, 3], "train/loss": [9.0, 5.0, 1.0]}}
  assert [p["loss"] for p in charts.curve_table([row], "tokens", weight=0.9)] == [9.0, 5.0, 1.0]


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
  path = report.write_report(asked, read_ledger(str(folder)), str(folder / "report.html"))
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
  assert len(drawn) == 7 and len(files) == 3 * len(drawn)
  for file in files:
    assert file.stat().st_size > 1000
    assert f"report_figures/{file.name}" in markup
  assert "$schema" not in drawn[0]


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


def test_one_run_is_enough_for_a_page(folder):
  rows = Ledger(tuple(r for r in read_ledger(str(folder)) if r["name"] == "width=32"))
  markup = report.write_report(experiment(), rows, str(folder / "one.html")).read_text()
  assert len(specs_of(markup)) == 2  # curves, and the response with its one point


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
  from experiments.compare import compare

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


def test_the_script_finds_every_element_it_asks_for():
  script = (page.HERE / "board.js").read_text()
  asked = set(re.findall(r'\bel\("(\w+)"\)', script)) | set(re.findall(r'options\("(\w+)"', script))
  assert len(asked) > 10
  assert asked <= set(re.findall(r'id="(\w+)"', board.BODY))


def test_the_served_board_shows_new_runs(folder, monkeypatch):
  monkeypatch.setattr(board, "REFRESH_SECONDS", 0)
  server = board.make_server(lambda: read_ledger(str(folder), curves=False), 0)
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
    assert before["made"] != after["made"]
    assert "later" in get("/")
    with pytest.raises(urllib.error.HTTPError, match="404"):
      get("/../run.json")
    with pytest.raises(ConfigError, match="choose another port"):
      board.make_server(lambda: after, server.server_address[1])
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_slow_ledger_is_not_read_at_every_request():
  calls = []
  get = board._at_most_every(60, lambda: calls.append(1) or len(calls))
  assert get() == get() == 1 and len(calls) == 1
