"""The board in a headless Chromium: what is seen, pointed at, typed and kept is what the ledger holds."""

import json
import math
import re
import threading
import time

import numpy as np
import pytest
import scipy.optimize

from experiments.ledger.ledger import Ledger, read_ledger
from experiments.ledger.refresh import FolderReader
from experiments.ledger.rows import binned
from experiments.report import board
from tests import browser
from tests.fake_runs import fake_run

chromium = browser.chromium  # a fixture
EVIL = "<script>window.hacked=1</script>"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Three widths, two seeds each; one failed run whose name, reason, log and samples are markup."""
  root = tmp_path_factory.mktemp("runs")
  for width in (32, 64, 128):
    for seed in (0, 1):
      settings = {
        "model.width": width,
        "seed": seed,
        "optim.peak_lr": 1e-3 if width < 128 else 3e-3,
      }
      fake_run(root / f"width={width},seed={seed}", settings, loss=4 - width / 100 + seed / 10)
  bad = root / "bad <img src=x onerror=window.hacked=1>"
  fake_run(bad, {"optim.peak_lr": 9.0, "data.sources": "python"}, "failed", reason=EVIL)
  line = json.dumps({"step": 20, "prompt": EVIL, "text": f"Returns {EVIL}"})
  (bad / "samples.jsonl").write_text(f"{line}\n")
  (bad / "log.txt").write_text(f"step 1\n{EVIL}\n")
  (bad / "checkpoints" / "20").mkdir(parents=True)
  return root


@pytest.fixture(scope="module")
def file(root, tmp_path_factory):
  out = tmp_path_factory.mktemp("page") / "board.html"
  return board.write_board(read_ledger(str(root)), str(out)).as_uri()


@pytest.fixture
def page(chromium, file):
  """The board as it opens; afterwards nothing was asked of the network and no script had failed."""
  page = chromium.new_page(viewport={"width": 1400, "height": 900})
  page.requests = browser.Requests(page)
  page.goto(file)
  yield page
  assert {url.partition("#")[0] for url in page.requests} == {file}
  assert page.requests.errors == []
  assert page.evaluate("window.hacked") is None
  page.close()


def names(page, body="body"):
  return page.eval_on_selector_all(f"#{body} tr[data-run]", "rows => rows.map(r => r.dataset.run)")


def column(page, key):
  """What the table shows of the runs that did not fail."""
  at = page.eval_on_selector_all("#head th", f"h => h.findIndex(t => t.dataset.key === '{key}')")
  return page.eval_on_selector_all(
    "#body tr[data-run]", f"r => r.map(t => t.children[{at}].textContent)"
  )


def until(page, holds, seconds=5):
  """Waits until a JavaScript expression is true."""
  end = time.monotonic() + seconds
  while not page.evaluate(holds):
    assert time.monotonic() < end, holds
    time.sleep(0.02)


def filter_by(page, words):
  page.fill("#filter", words)
  until(page, f"state.filter === {json.dumps(words)}")


def place(page, run, i, plot="curves"):
  """Where the i-th point of a run is on the screen."""
  find = f"plots.{plot}.content.series.find(s => s.id === run)"
  x, y = page.evaluate(
    f"([run, i]) => {{ const s = {find}; return [s.px[i], s.py[i]]; }}", [run, i]
  )
  box = page.locator(f"#{plot} .over").bounding_box()
  return box["x"] + x, box["y"] + y


def point_at(page, run, i, plot="curves"):
  page.mouse.move(*place(page, run, i, plot))
  return page.locator(f"#{plot} .tip")


def test_pointing_at_a_curve_names_its_run_and_its_number(page, root):
  for run, i in (("width=32,seed=0", 2), ("width=128,seed=1", 0), ("width=64,seed=1", 5)):
    lines = (root / run / "metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[i])
    said = point_at(page, run, i).text_content()
    assert said.startswith(run) and f"train/loss {record['train/loss']:.4f}" in said
    assert page.eval_on_selector_all("tr.hover", "r => r.map(t => t.dataset.run)") == [run]
  page.mouse.move(5, 5)
  assert page.locator("#curves .tip").is_hidden()


def test_pointing_at_an_end_or_a_row_lights_up_the_same_run(page):
  said = point_at(page, "width=64,seed=0", 0, "ends").text_content()
  assert said.startswith("width=64,seed=0") and "loss 3.3600" in said
  page.hover("tr[data-run='width=128,seed=1'] td.run")
  assert page.evaluate("[plots.curves.hovered, plots.ends.hovered]") == ["width=128,seed=1"] * 2
  lit, own = page.evaluate("""(() => {
    const plot = plots.ends, s = plot.content.series.find((s) => s.id === "width=128,seed=1");
    const canvas = plot.over, scale = canvas.width / plot.width;
    const pen = document.createElement("canvas").getContext("2d");
    pen.fillStyle = s.color; pen.fillRect(0, 0, 1, 1);
    const at = (context, x, y) => [...context.getImageData(x, y, 1, 1).data];
    return [at(canvas.getContext("2d"), s.px[0] * scale, s.py[0] * scale), at(pen, 0, 0)];
  })()""")
  assert lit == own  # in its own colour, not in what was drawn with last


def test_filters_are_words_and_conditions(page):
  for words, count in (
    ("width=64", 2),
    ("loss<3", 2),
    ("model.width>=64 seed=1", 2),
    ("name~^bad", 0),
  ):
    filter_by(page, words)
    assert len(names(page)) == count
    assert page.evaluate("plots.curves.content.series.length") == count + (words == "name~^bad")
  page.fill("#filter", "modle.width>3")
  page.wait_for_selector("text=modle.width: no such column")


def test_numbers_sort_as_numbers_and_failed_runs_stay_apart(page):
  assert names(page)[::2] == ["width=32,seed=0", "width=64,seed=0", "width=128,seed=0"]
  page.click("th[data-key='n_params']")
  page.click("th[data-key='n_params']")
  assert column(page, "model.width") == ["128", "128", "64", "64", "32", "32"]
  page.click("th[data-key='optim.peak_lr']")
  assert column(page, "optim.peak_lr") == ["0.001"] * 4 + ["0.003"] * 2
  (failed,) = names(page, "failed")
  assert failed.startswith("bad <img") and "1 run that failed or stopped" in page.text_content(
    "#failed"
  )


def test_state_is_in_the_address_and_survives_a_reload(page):
  page.click("th[data-key='loss']")
  filter_by(page, "status=done")
  page.click("tr[data-run='width=64,seed=1'] td.pin button")
  page.select_option("#x", "step")
  page.select_option("#view", "isoflop")
  page.uncheck("#logy")
  (ax, ay), (bx, by) = place(page, "width=32,seed=0", 1), place(page, "width=128,seed=0", 4)
  page.mouse.move(ax, ay)
  page.mouse.down()
  page.mouse.move((ax + bx) / 2, (ay + by) / 2)
  page.mouse.move(bx, by)
  page.mouse.up()
  x = page.evaluate("[plots.curves.xs.low, plots.curves.xs.high]")
  assert x == pytest.approx([20, 50], rel=0.02)  # the records it was dragged over
  before = page.evaluate("[location.hash, plots.curves.xs.low, plots.curves.ys.high, state.sort]")
  page.reload()
  assert (
    page.evaluate("[location.hash, plots.curves.xs.low, plots.curves.ys.high, state.sort]")
    == before
  )
  assert page.input_value("#filter") == "status=done" and page.input_value("#view") == "isoflop"
  assert page.evaluate("[...state.pins.keys()]") == ["width=64,seed=1"]
  assert not page.is_checked("#logy") and len(names(page)) == 6
  page.mouse.dblclick(ax + 50, ay + 50)
  assert page.evaluate("plots.curves.xs.low") < 11 and "zoom" not in page.evaluate("location.hash")


def test_any_metric_is_an_axis(page, root):
  page.select_option("#x", "train/loss")
  page.select_option("#y", "eval/val/loss")
  (series,) = page.evaluate(
    "plots.curves.content.series.filter(s => s.id === 'width=32,seed=0').map(s => [[...s.x], [...s.y]])"
  )
  lines = map(json.loads, (root / "width=32,seed=0" / "metrics.jsonl").read_text().splitlines())
  pairs = [(r["train/loss"], r["eval/val/loss"]) for r in lines if "eval/val/loss" in r]
  np.testing.assert_allclose(np.transpose(series), pairs, rtol=1e-4)


def test_a_run_opens_with_its_config_samples_log_and_checkpoints_as_text(page):
  page.click("#failed tr[data-run] td.run")
  said = page.text_content("#run")
  assert said.count(EVIL) == 4  # reason, prompt, sample, log
  assert "optim.peak_lr" in said and "model.width" in said and "steps 20" in said
  assert page.eval_on_selector_all("#run script, #run img, #tablebox img", "x => x.length") == 0
  assert page.evaluate("[text('', 308310000000), text('', 30720)]") == ["3.0831e11", "30720"]
  page.set_viewport_size({"width": 390, "height": 800})
  rows = page.eval_on_selector_all(
    "#run td:first-child",
    "cells => cells.map(c => { const r = document.createRange(); r.selectNodeContents(c);"
    " return [c.textContent, r.getClientRects().length]; })",
  )
  assert max(len(key) for key, _ in rows) > 15
  assert all(lines == 1 for _, lines in rows), rows  # no key is broken
  page.set_viewport_size({"width": 1400, "height": 900})
  page.keyboard.press("Escape")
  assert page.is_hidden("#run")


def test_pins_have_colours_of_their_own_and_lie_in_front(page):
  runs = ["width=32,seed=0", "width=64,seed=0", "width=128,seed=0"]
  for run in runs:
    page.click(f"tr[data-run='{run}'] td.pin button")
  page.click(f"tr[data-run='{runs[0]}'] td.pin button")  # the others keep theirs
  colours = dict(
    page.evaluate("plots.curves.content.series.map(s => [s.id, s.color + (s.front ? '!' : '')])")
  )
  assert colours[runs[1]] == "#0072b2!" and colours[runs[2]] == "#009e73!"
  assert len({colours[r] for r in colours if r not in runs[1:]}) == 1  # grey
  page.click(f"tr[data-run='{runs[1]}'] td.run")
  assert "what differs from pinned runs" in page.text_content("#run")


def test_seed_bands_are_mean_and_spread_of_runs_that_differ_in_seeds_only(page, root):
  page.check("#seeds")
  series = page.evaluate(
    "plots.curves.content.series.map(s => [s.name, [...s.x], [...s.y], [...s.low]])"
  )
  assert len(series) == 3  # failed runs are in no band
  name, x, mean, low = next(s for s in series if "width=32" in s[0])
  assert "2 runs" in name
  each = [
    [
      json.loads(line)
      for line in (root / f"width=32,seed={s}" / "metrics.jsonl").read_text().splitlines()
    ]
    for s in (0, 1)
  ]
  curves = np.array([[r["train/loss"] for r in records] for records in each])
  tokens = [r["tokens"] for r in each[0]]
  np.testing.assert_allclose(mean, np.interp(x, tokens, curves.mean(axis=0)), rtol=1e-4)
  spread = np.interp(x, tokens, curves.std(axis=0, ddof=1))
  np.testing.assert_allclose(np.array(mean) - low, spread, rtol=1e-3)


def test_keys_do_what_the_help_says(page):
  page.keyboard.press("j")
  page.keyboard.press("j")
  page.keyboard.press("p")
  assert page.evaluate("[...state.pins.keys()]") == ["width=32,seed=1"]
  page.keyboard.press("Enter")
  assert page.text_content("#run h2") == "width=32,seed=1"
  page.keyboard.press("Escape")
  page.keyboard.press("d")
  assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
  page.keyboard.press("/")
  page.keyboard.type("jjp")
  assert page.input_value("#filter") == "jjp"
  page.keyboard.press("Escape")
  page.keyboard.press("?")
  assert page.is_visible("#help")


def test_mixed_data_is_called_out_for_the_shown_runs(chromium, root, tmp_path):
  rows = [dict(r) for r in read_ledger(str(root))]
  rows[-1]["eval_fingerprint"] = "other"
  path = board.write_board(Ledger(tuple(rows)), str(tmp_path / "b.html"))
  page = chromium.new_page()
  page.goto(path.as_uri())
  assert "eval_fingerprint differs" in page.text_content("#notes")
  assert "their losses do not compare" in page.text_content("#notes")
  filter_by(page, "eval_fingerprint!=other")
  assert page.text_content("#notes") == ""
  page.close()


def test_runs_of_one_budget_begin_with_what_is_swept_as_colour_and_axis(chromium, root, tmp_path):
  rows = [
    {**r, "flops": 1e12, "n_params": 7, "optim.peak_lr": 0.001 * (1 + i % 2)}
    for i, r in enumerate(read_ledger(str(root)))
  ]
  page = chromium.new_page()
  page.goto(board.write_board(Ledger(tuple(rows)), str(tmp_path / "b.html")).as_uri())
  varied = page.evaluate("BOARD.shown.filter((k) => k.includes('.'))")
  assert page.input_value("#color") in varied
  assert "." in page.input_value("#sx")
  page.close()


def test_one_record_is_a_dot_failed_runs_set_no_range_and_nothing_is_said_so(
  chromium, root, tmp_path
):
  rows = [dict(r) for r in read_ledger(str(root))]
  one = next(i for i, r in enumerate(rows) if r["status"] == "done" and r.get("curve"))
  rows[one]["curve"] = {k: v[:1] for k, v in rows[one]["curve"].items()}
  for i, row in enumerate(rows):
    row["flops"] = 0.0 if row["status"] == "failed" else 1e12 * (1 + i)
  page = chromium.new_page()
  page.goto(board.write_board(Ledger(tuple(rows)), str(tmp_path / "b.html")).as_uri())
  assert any(r["status"] == "failed" for r in rows)
  name = json.dumps(rows[one]["name"])
  assert page.evaluate(f"plots.curves.content.series.find((s) => s.id === {name}).dots") > 0
  assert "0.00e0" not in page.text_content("#legend")
  filter_by(page, "nothing_is_called_this")
  assert "no run meets the filter" in page.text_content("#curves")
  page.goto(board.write_board(Ledger(()), str(tmp_path / "none.html")).as_uri())
  assert "no runs here yet" in page.text_content("#curves")
  page.close()


def test_the_law_in_the_page_is_what_scipy_finds(chromium, tmp_path):
  rng = np.random.default_rng(3)
  n, d = (10 ** rng.uniform(low, high, 60) for low, high in ((6, 8), (8, 10)))
  loss = (1.8 + 400 / n**0.34 + 2000 / d**0.37) * np.exp(0.004 * rng.standard_normal(60))
  rows = tuple(
    {"name": f"r{i}", "status": "done", "n_params": a, "n_tokens": b, "flops": 6 * a * b, "loss": c}
    for i, (a, b, c) in enumerate(zip(n.tolist(), d.tolist(), loss.tolist(), strict=True))
  )
  path = board.write_board(Ledger(rows), str(tmp_path / "b.html"))
  page = chromium.new_page()
  page.goto(path.as_uri())

  def residual(theta):
    log_a, log_b, e, alpha, beta = theta
    return np.log(np.exp(log_a) / n**alpha + np.exp(log_b) / d**beta + e) - np.log(loss)

  truth = [np.log(400), np.log(2000), 1.8, 0.34, 0.37]
  for delta, choice in (("Infinity", {}), ("1e-3", {"loss": "huber", "f_scale": 1e-3})):
    ours = page.evaluate(f"fitLaw(lawPoints(), {delta})")
    least = scipy.optimize.least_squares(residual, truth, x_scale=[1, 1, 0.1, 0.1, 0.1], **choice)
    assert [ours[k] for k in ("E", "alpha", "beta")] == pytest.approx(least.x[2:], rel=2e-3), delta
  page.close()


def test_slices_find_the_minima_of_parabolas(chromium, tmp_path):
  rows = []
  for c, best in ((1e18, 1e8), (4e18, 2e8), (1.6e19, 4e8)):
    for share in (0.3, 0.6, 1.0, 1.8, 3.0):
      loss = 3 + 0.1 * math.log(share) ** 2
      n = best * share
      rows.append(
        {
          "name": f"{c}-{share}",
          "status": "done",
          "n_params": n,
          "n_tokens": c / 6 / n,
          "flops": c,
          "loss": loss,
        }
      )
  path = board.write_board(Ledger(tuple(rows)), str(tmp_path / "b.html"))
  page = chromium.new_page()
  page.goto(path.as_uri() + "#view=isoflop")
  found = page.evaluate("slicesOf(lawPoints()).map(s => s.best.n)")
  assert found == pytest.approx([1e8, 2e8, 4e8], rel=1e-3)
  assert "N* ∝ C^0.500" in page.text_content("#say")
  page.close()


def test_a_served_board_shows_new_runs_and_sends_only_what_changed(chromium, root, monkeypatch):
  monkeypatch.setattr(board, "REFRESH_SECONDS", 0.2)
  server = board.make_server(FolderReader(str(root)), 0)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  page = chromium.new_page()
  page.requests = browser.Requests(page)
  try:
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    page.goto(address)
    with page.expect_response(re.compile(r"since=\d+")) as waiting:
      pass
    assert waiting.value.json()["rows"] == []  # nothing has changed
    fake_run(root / "later", {"model.width": 64, "seed": 3})
    page.wait_for_selector("tr[data-run='later']", timeout=20_000)
    page.click("tr[data-run='later'] td.run")
    page.wait_for_selector("#run h3:text('checkpoints')")  # asked of the server
    assert all(url.startswith(address) for url in page.requests)
    assert page.requests.errors == []
  finally:
    page.close()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.slow
def test_a_thousand_runs_of_ten_thousand_records_respond(chromium, tmp_path):
  rng, steps = np.random.default_rng(0), np.arange(1, 10_001)
  rows = []
  for i in range(1000):
    width, rate, seed = 32 * 2 ** (i % 5), 1e-3 * 2 ** (i // 5 % 6), i // 30
    loss = 2 + 3 / width**0.3 + 6 * steps**-0.4 + 0.05 * rng.standard_normal(len(steps))
    curve = {
      "step": steps.tolist(), "tokens": (512 * steps).tolist(), "train/loss": loss.tolist(),
      "train/grad_norm": loss.tolist(), "optim/lr": (rate / steps).tolist(),
    }  # fmt: skip
    rows.append({
      "name": f"width={width},lr={rate:g},seed={seed}", "status": "done", "n_params": 24 * width**2,
      "n_tokens": 5_120_000, "flops": 7.3e8 * width**2, "loss": float(loss[-1]), "model.width": width,
      "optim.peak_lr": rate, "seed": seed, "curve": binned(curve, 512),
    })  # fmt: skip
  path = board.write_board(Ledger(tuple(rows)), str(tmp_path / "b.html"))
  assert path.stat().st_size < 20e6
  page = chromium.new_page(viewport={"width": 1400, "height": 900})
  start = time.monotonic()
  page.goto(path.as_uri())
  assert time.monotonic() - start < 10
  clock = (
    "(f, n) => { const a = performance.now(); for (let i = 0; i < n; i++) f(i);"
    " return (performance.now() - a) / n; }"
  )
  hover = "(i) => plots.curves.show(plots.curves.nearest(200 + 5 * i, 250))"
  took = page.evaluate(
    f"(clock => [clock(draw, 3), clock(drawCharts, 3), clock({hover}, 40)])({clock})"
  )
  all_, charts, hovering = took
  # ms; a third of that on a free machine
  assert all_ < 1500 and charts < 500 and hovering < 50, took
  page.close()
