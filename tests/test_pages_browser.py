"""Reports and the law page in a headless Chromium: nothing is cut off, nothing is asked of the network."""

import csv
import json

import numpy as np
import pytest

from experiments import laws
from experiments.ledger.ledger import read_ledger
from experiments.report import foreign, law_page, report
from experiments.sweep import sweep
from lm.config.errors import ConfigError
from tests import browser
from tests.fake_runs import SMOKE, fake_run
from tests.known_laws import TRUE, true_fits, true_table

chromium = browser.chromium  # a fixture
OUTSIDE = """[...document.querySelectorAll("table, td, th, pre, dl, p, h1, h2, caption")].filter(n => {
  const r = n.getBoundingClientRect();
  return r.width && (r.right > innerWidth + 1 || r.left < -1 || n.scrollWidth > n.clientWidth + 1);
}).map(n => n.tagName + n.textContent.slice(0, 40))"""


@pytest.fixture(scope="module")
def fits():
  return true_fits()


@pytest.fixture(scope="module")
def page_of_laws(fits, tmp_path_factory):
  """A report with every kind of table, of runs with long names."""
  folder = tmp_path_factory.mktemp("runs")
  for width in (32, 64):
    name = f"a-long-name-that-goes-on,model.width={width},optim.schedule=linear"
    fake_run(folder / name, {"model.width": width}, loss=4 - width / 100)
  fake_run(folder / "bad", {"optim.peak_lr": 9.0}, "failed", reason="its loss is not finite " * 9)
  slices, law = fits
  runs = [sweep.Run("a", {}, SMOKE)]
  results = {"slices": slices, "law": law}
  asked = sweep.make_experiment("laws", runs, doc="Why?", analyse=lambda rows: results)
  return report.write_report(asked, read_ledger(str(folder)), str(folder / "report.html"))


@pytest.mark.parametrize(
  ("width", "media"), [(1400, "screen"), (900, "screen"), (390, "screen"), (688, "print")]
)
def test_no_table_is_cut_off(chromium, page_of_laws, width, media):
  page = chromium.new_page(viewport={"width": width, "height": 900})
  asked = browser.Requests(page)
  page.emulate_media(media=media)
  page.goto(page_of_laws.as_uri())
  page.wait_for_selector("figure svg")
  assert page.evaluate(OUTSIDE) == []
  assert page.evaluate("document.documentElement.scrollWidth") <= width
  assert set(asked) == {page_of_laws.as_uri()} and asked.errors == []
  page.close()


def test_on_a_phone_words_in_figures_can_be_read_and_cards_have_one_line_between_them(
  chromium, page_of_laws
):
  page = chromium.new_page(viewport={"width": 390, "height": 900})
  page.goto(page_of_laws.as_uri())
  page.wait_for_function("document.querySelectorAll('figure svg').length > 4")
  sizes = page.evaluate(
    "[...document.querySelectorAll('figure svg')].map(s => 10 * s.clientWidth / s.viewBox.baseVal.width)"
  )
  assert min(sizes) > 7.4 and np.median(sizes) > 9, sizes  # pixels of a label of 10
  lines = page.evaluate(
    "[...document.querySelectorAll('tbody td')].map(c => getComputedStyle(c).borderBottomWidth)"
  )
  assert set(lines) == {"0px"}
  page.close()


def test_the_law_page_fits_again_when_its_window_moves(chromium, tmp_path):
  table = true_table()
  columns = {"n": "n_params", "d": "n_tokens", "c": "flops", "loss": "loss"}
  points = [
    {"name": f"</script><b>{i}", **{k: float(table[v][i]) for k, v in columns.items()}}
    for i in range(len(table))
  ]
  path = law_page.write_law_page(points, tmp_path / "report.html", "<i>laws</i>")
  page = chromium.new_page(viewport={"width": 1400, "height": 900})
  asked = browser.Requests(page)
  page.goto(path.as_uri())
  assert float(page.input_value("#alpha")) == pytest.approx(TRUE["alpha"], abs=0.05)
  numbers = page.text_content("#numbers")
  assert "residual in the window" in numbers and "residual outside" not in numbers
  page.evaluate("el('high').value = 0.7; el('high').dispatchEvent(new Event('input'))")
  assert "21 of 28 points" in page.text_content("#count")
  assert "residual outside" in page.text_content("#numbers")
  page.evaluate("el('alpha').value = 0.5; el('alpha').dispatchEvent(new Event('input'))")
  moved = page.text_content("#numbers")
  solved = page.evaluate(
    "solveScales(POINTS.filter(inside), +el('E').value, 0.5, +el('beta').value, 1e-3)"
  )
  n, d, loss = (np.array([p[k] for p in points[:21]]) for k in ("n", "d", "loss"))
  error = lambda a, b: np.abs(
    np.log((solved["E"] + a / n**0.5 + b / d ** solved["beta"]) / loss)
  ).sum()
  least = error(solved["A"], solved["B"])  # A and B are the best for what the sliders say
  assert all(
    error(solved["A"] * x, solved["B"] * y) > 0.999 * least
    for x in (0.99, 1, 1.01)
    for y in (0.99, 1, 1.01)
  )
  page.reload()
  assert page.text_content("#numbers") == moved and page.input_value("#alpha") == "0.5"
  assert page.eval_on_selector_all("b, i", "x => x.length") <= 1  # the tooltip's own
  assert {url.partition("#")[0] for url in asked} == {path.as_uri()} and asked.errors == []
  page.close()


def test_too_few_points_get_no_law_page(tmp_path):
  assert law_page.write_law_page([], tmp_path / "r.html", "x") is None


# ---- Tables of others ----------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
  """Fits from few starts: what is tested is the page."""
  from experiments import laws

  fit, slices = laws.fit_table, laws.isoflop_fit
  monkeypatch.setattr(
    laws, "fit_table", lambda t, law, **o: fit(t, law, n_starts=16, methods=("case",), **o)
  )
  fast = lambda t, **o: slices(t, bias=False, **o)
  monkeypatch.setitem(foreign.fits.FITTERS, "isoflop", fast)
  monkeypatch.setattr(foreign.fits, "REFIT_STARTS", 16)


def test_anybodys_table_becomes_a_page(quick, tmp_path):
  table = true_table()
  with open(tmp_path / "theirs.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["Model Size", "Training FLOP", "loss", "set"])
    for i in range(len(table)):
      writer.writerow(
        [table["n_params"][i], table["flops"][i], table["loss"][i], "a" if i else "<b>"]
      )
  out = str(tmp_path / "page.html")
  path = foreign.write_csv_report(
    str(tmp_path / "theirs.csv"), out, {}, where=["set=a"], n_boot=20,
    points=[{"n_params": 1e9, "n_tokens": 1e11}],
  )  # fmt: skip
  markup = path.read_text()
  assert "n_params=1e+09, n_tokens=1e+11" in markup and "Verdict:</b> " in markup
  assert "27 runs" in markup and "Model Size" in markup and "row 2" in markup
  for words in ("Slices of equal compute", "Residuals of log loss", "hold the measured loss",
                "Besiroglu et al. 2024", "Kaplan et al. 2020", 'class="answer"'):  # fmt: skip
    assert words in markup, words
  assert (tmp_path / "page_law.html").exists()


def test_a_table_that_carries_no_law_is_refused_in_one_line(tmp_path):
  (tmp_path / "few.csv").write_text("params,tokens,loss\n1e6,1e8,3\n2e6,1e8,2.9\n")
  with pytest.raises(ConfigError) as error:
    foreign.write_csv_report(str(tmp_path / "few.csv"), str(tmp_path / "p.html"), {}, n_boot=0)
  assert "No parametric law" in str(error.value) and "\n" not in str(error.value)
  (tmp_path / "two.csv").write_text("params,tokens,loss_a,loss_b\n1e6,1e8,3,4\n2e6,1e8,2.9,3.9\n")
  with pytest.raises(ConfigError) as error:
    foreign.write_csv_report(str(tmp_path / "two.csv"), str(tmp_path / "p.html"), {}, n_boot=0)
  assert str(error.value).count("look like it") == 1  # said once, though slices and law both ask
  with pytest.raises(ConfigError, match=r"holds no run-\*.wandb file"):
    foreign.write_wandb_report(str(tmp_path), str(tmp_path / "p.html"), {})


def wandb_row(n, d):
  loss = 1.7 + 400 / n**0.34 + 410 / d**0.28
  return {"state": "finished", "n_params": n, "progress/tokens": d, "eval/val/loss": loss}


@pytest.mark.slow
def test_a_page_of_wandb_runs_says_where_they_are_from_not_the_file_between(
  quick, tmp_path, monkeypatch
):
  rows = [wandb_row(n, d) for n in (1e6, 3e6, 1e7, 3e7) for d in (1e8, 3e8, 1e9)]
  monkeypatch.setattr(foreign, "read_offline", lambda folder: rows)
  path = foreign.write_wandb_report("logs/wandb", str(tmp_path / "p.html"), {}, n_boot=5)
  said = path.read_text()
  assert "What was read from Weights &amp; Biases, logs/wandb: 12 runs" in said
  assert "runs.csv" not in said


def test_what_is_wrong_with_wandb_runs_is_said_of_their_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(foreign, "read_offline", lambda folder: [wandb_row(1e6, 1e8)])
  with pytest.raises(ConfigError) as error:
    foreign.write_wandb_report("logs/wandb", str(tmp_path / "p.html"), {}, n_boot=0)
  assert str(error.value).startswith("wandb_offline=logs/wandb: "), error.value
  assert "runs.csv" not in str(error.value)


def test_offline_wandb_runs_are_rows(tmp_path, monkeypatch):
  import wandb

  settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
  for width in (32, 64):
    with wandb.init(
      mode="offline", dir=str(tmp_path), project="p", name=f"w{width}", settings=settings,
      config={"model": {"width": width}, "n_params": 1000 * width, "long": "x" * 100_000},
    ) as run:  # fmt: skip
      for step in (1, 2):
        run.log({"eval/val/loss": 4.0 - step, "progress/tokens": 512 * step}, step=step)
  wandb.teardown()  # its service writes a file's last part after the run has finished
  rows = foreign.read_offline(str(tmp_path))
  assert sorted(r["name"] for r in rows) == ["w32", "w64"]
  for row in rows:
    assert row["n_params"] == 1000 * row["model.width"]
    assert (row["eval/val/loss"], row["progress/tokens"]) == (2.0, 1024)
  asked = {}
  monkeypatch.setattr(
    foreign, "write_csv_report", lambda path, out, names, where, **o: asked.update(names)
  )
  foreign.write_wandb_report(str(tmp_path), "p.html", {})
  assert asked == {"loss": "eval/val/loss", "n_tokens": "progress/tokens", "n_params": "n_params"}
  assert json.dumps(rows)
  file = next(tmp_path.rglob("run-*.wandb"))
  whole = file.read_bytes()
  file.write_bytes(whole[:14] + bytes(b ^ 0x5A for b in whole[14:60]) + whole[60:])
  with pytest.raises(
    ConfigError, match=r"run-.*\.wandb: cannot be read .*; copy it again"
  ) as error:
    foreign.read_offline(str(tmp_path))
  assert "\n" not in str(error.value)


def test_offline_wandb_runs_of_one_name_stay_apart(tmp_path):
  import wandb

  settings = wandb.Settings(silent=True, console="off", x_disable_stats=True)
  for width in (32, 64):
    with wandb.init(
      mode="offline", dir=str(tmp_path), project="p", name="baseline", settings=settings,
      config={"n_params": width},
    ) as run:  # fmt: skip
      run.log({"loss": 1.0}, step=1)
  wandb.teardown()
  rows = foreign.read_offline(str(tmp_path))
  assert sorted(r["n_params"] for r in rows) == [32, 64]


def written(path, columns):
  with open(path, "w", newline="") as file:
    csv.writer(file).writerows([list(columns), *zip(*columns.values(), strict=True)])
  return str(path)


def test_a_page_takes_the_words_of_fit_and_says_what_its_tests_found(quick, tmp_path):
  """Points of Besiroglu's kind: high losses to be dropped, and a law that does not describe the rest."""
  table = true_table()
  n, d = table["n_params"], table["n_tokens"]
  bent = table["loss"] * (1 + 0.01 * np.sin(np.log(n)))
  loss = np.concatenate([[9.0, 9.5], bent])
  columns = {"N": [n[0], n[1], *n], "D": [d[0], d[1], *d], "loss": loss}
  path = written(tmp_path / "t.csv", columns)
  with pytest.raises(ConfigError, match=r"losses that cannot be noise"):
    foreign.write_csv_report(path, str(tmp_path / "p.html"), {}, n_boot=10)
  out = foreign.write_csv_report(
    path, str(tmp_path / "p.html"), {}, n_boot=10, outliers=laws.Outliers(drop_highest_loss=2)
  )
  markup = out.read_text()
  answer = markup[markup.index('class="answer"') : markup.index("<nav>")]
  assert "among the 2 highest losses" in markup
  assert "does not describe these runs" in markup and "Tests of its form fail" in answer
  assert "no interval at" in markup and "withheld: the law does not" in markup


@pytest.mark.slow
def test_a_law_that_says_nothing_of_sizes_is_answered_by_its_parameters(quick, tmp_path):
  table = true_table()
  path = written(
    tmp_path / "t.csv", {"N": table["n_params"], "D": table["n_tokens"], "loss": table["loss"]}
  )
  out = foreign.write_csv_report(
    path, str(tmp_path / "p.html"), {}, n_boot=10, law="E + A*N^-a + B*D^-b", within=1.01
  )
  answer = out.read_text().partition('class="answer"')[2].partition("<nav>")[0]
  assert "28 runs" in answer and "E = " in answer and "ack of fit" in answer
  with pytest.raises(ConfigError, match="law=hyper: a page shows slices and a parametric law"):
    foreign.write_csv_report(path, str(tmp_path / "q.html"), {}, law="hyper")
  with pytest.raises(ConfigError, match="se: a fit of isoflop does not take it"):
    foreign.write_csv_report(path, str(tmp_path / "q.html"), {}, law="isoflop", sd="loss")


@pytest.mark.slow
def test_an_exponent_that_the_form_decides_is_no_finding(quick, tmp_path):
  """N* grows as C^(1/2) in the law of Gadre et al. 2024 whatever the runs say."""
  table = true_table()
  path = written(
    tmp_path / "t.csv", {"N": table["n_params"], "D": table["n_tokens"], "loss": table["loss"]}
  )
  out = foreign.write_csv_report(
    path, str(tmp_path / "p.html"), {}, n_boot=10, law="overtraining", within=1.01
  )
  markup = out.read_text()
  answer = markup.partition('class="answer"')[2].partition("<nav>")[0]
  assert "excludes" not in answer and "by the law's form" in markup.replace("&#x27;", "'")
