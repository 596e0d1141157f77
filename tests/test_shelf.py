"""The shelf of studies: its page is what the ledgers give; analyses find what simulated runs hold."""

import numpy as np
import pytest

from experiments import collapse, critical_batch, isoflop_wide, laws, stability, unseen_schedule
from experiments.laws import intervals, loss_curves
from experiments.ledger.ledger import Ledger
from experiments.report import charts, shelf
from experiments.sweep import sweep
from lm.config.errors import ConfigError

SLOW = {"chinchilla", "isoflop_wide", "critical_batch", "acceptance", "muon_race", "collapse"}
PAGE = (shelf.RESULTS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
  "study", [pytest.param(s, marks=[pytest.mark.slow] * (s in SLOW)) for s in shelf.STUDIES]
)
def test_a_study_says_on_the_page_what_its_ledger_gives(study):
  assert shelf.part(study, shelf.analysed(study)) == shelf.parts_of(PAGE)[study], (
    "python -m experiments.report.shelf"
  )


def test_every_study_has_its_ledger_and_pictures_and_stays_small():
  assert shelf.page_of(shelf.parts_of(PAGE)) == PAGE
  assert {p.name for p in shelf.RESULTS.iterdir() if p.is_dir()} >= set(shelf.STUDIES)
  for study, about in shelf.STUDIES.items():
    folder = shelf.RESULTS / study
    assert all((folder / f"{name}.png").stat().st_size > 5000 for name in about.figures)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
    assert sweep.load(study).question


def test_a_study_that_is_not_on_the_shelf_is_refused_in_one_line(capsys):
  with pytest.raises(SystemExit) as stop:
    shelf.main(["lr_token"])
  assert stop.value.code == 2
  assert "study=lr_token: is not on the shelf; did you mean lr_tokens" in capsys.readouterr().err


def simulated_batches(p, q, noise=0.003):
  """Runs of critical_batch whose losses follow its law, a parabola in log rate around the best one."""
  law, rng, rows = laws.LAWS["critical_batch"], np.random.default_rng(0), []
  n_of = {16: 12_400.0, 32: 35_000.0, 48: 68_000.0}
  theta = law.working(
    np.array([300.0, 400.0, critical_batch.FLOOR, 0.7, 0.5, 400 / (1e5**p * 3e4**q), p, q])
  )
  asked = [run.overrides for run in critical_batch.runs()]
  x = {
    "n_params": np.array([n_of[o["model.width"]] for o in asked]),
    "n_tokens": np.array([float(o["train.tokens"]) for o in asked]),
    "batch": np.array([64.0 * o["train.batch_size"] for o in asked]),
  }
  losses = np.exp(intervals.predict(law, theta, x)) * (1 + noise * rng.standard_normal(len(asked)))
  for i, o in enumerate(asked):
    off = np.log2(o["optim.peak_lr"] / 1.4e-2)
    rows.append({
      "name": f"run{i}", "status": "done", "model.seq_len": 64, "lr": o["optim.peak_lr"], **o,
      "n_params": x["n_params"][i], "n_tokens": x["n_tokens"][i], "loss": losses[i] + 0.1 * off**2,
    })  # fmt: skip
  return Ledger(tuple(rows))


@pytest.mark.slow
@pytest.mark.parametrize(("p", "q"), [(0.47, 0.0), (0.0, 0.4)])
def test_what_the_critical_batch_grows_with_is_found(p, q):
  found = critical_batch.analyse(simulated_batches(p, q))
  for key, truth in ((critical_batch.TOKENS, p), (critical_batch.PARAMS, q)):
    low, high = found[key].interval
    assert low <= truth <= high and high - low < 0.5, key
  for cell in found["critical batch of each cell"]:
    assert cell["critical batch"] == pytest.approx(cell["law"], rel=0.3)


def test_the_best_rate_of_a_cell_is_found_before_batches_are_compared():
  cells = critical_batch.tuned(simulated_batches(0.47, 0.0, noise=0.0))
  assert all(cell["inside the grid"] for cell in cells)
  np.testing.assert_allclose([cell["best lr"] for cell in cells], 1.4e-2, rtol=1e-6)


def ladder(seed=0, noise=0.004, bad=None):
  """{depth: losses [seeds, readings]}: one curve above 0.8 at every rung, scaled, with noise of seeds."""
  rng, share = np.random.default_rng(seed), np.arange(1, collapse.READINGS + 1) / collapse.READINGS
  made = {}
  for depth, end in ((2, 1.4), (3, 1.1), (4, 0.9), (5, 0.7)):
    shape = share ** (-0.9 if depth == bad else -0.4)
    drift = rng.standard_normal((4, 1)) * noise  # most of the noise is common to a run
    each = end * shape * (1 + drift + 0.2 * noise * rng.standard_normal((4, len(share))))
    made[depth] = 0.8 + each
  return made


def test_curves_of_one_shape_collapse_and_a_rung_of_another_shape_is_named():
  good = collapse.jackknife(ladder(), 0.8, collapse.tolerance)
  spoilt = collapse.jackknife(ladder(bad=4), 0.8, collapse.tolerance)
  assert good.interval[1] < 1 < spoilt.interval[0]
  far = collapse.distances(ladder(bad=4), 0.8)
  assert max(far, key=lambda depth: far[depth]) == 4


def test_a_law_of_two_schedules_foretells_others_that_follow_it():
  truth = {"L0": 1.5, "A": 0.9, "alpha": 0.5, "B": 8.0, "C": 2.0, "beta": 0.6, "gamma": 0.6}
  rows = []
  for run in unseen_schedule.runs():
    o = run.overrides
    steps = np.arange(1, unseen_schedule.READINGS + 1) * o["eval.every_steps"]
    row = {
      "name": run.name,
      "status": "done",
      "steps": o["train.steps"],
      "lr": o["optim.peak_lr"],
      **o,
    }
    rate = unseen_schedule.rates(row, steps)
    assert rate[-1] == pytest.approx(row["lr"] * (1 if o["optim.schedule"] == "constant" else 0.1))
    curve = loss_curves.make_curve("x", steps, rate, np.ones(len(steps)))
    loss = np.ones(len(steps))
    loss[len(steps) - len(curve.step) :] = loss_curves.multi_power(truth, curve)
    row["curve"] = {"step": steps.tolist(), "eval/val/loss": loss.tolist()}
    rows += [row] if o["seed"] == 0 else []
  fit = unseen_schedule.fitted(Ledger(tuple(rows)))["multi_power", 0]
  assert fit.held("mae") < 2e-3


def test_sensitivity_is_compared_in_pairs_at_the_largest_width():
  rows = []
  for run in stability.runs():
    o = run.overrides
    slope = 0.1 if o.get("model.qk_norm") else 0.3
    off = abs(np.log(o["optim.peak_lr"] / 2e-2))
    rows.append({
      "name": run.name, "status": "done", "lr": o["optim.peak_lr"], "model.vocab_size": 257,
      "seed": o["seed"],
      "model.qk_norm": bool(o.get("model.qk_norm")), "model.width": o["model.width"],
      "loss": 2 + slope * off + 0.01 * o["seed"],
    })  # fmt: skip
  found = stability.analyse(Ledger(tuple(rows)))[stability.CHANGE]
  assert found.value == pytest.approx(-2 / 3 * 0.3 * 1.88, rel=0.2)


def test_every_study_not_yet_run_says_so_and_has_runs_of_one_question():
  for name in sorted(set(sweep.find_experiments()) - set(shelf.STUDIES)):
    experiment = sweep.load(name)
    assert "Not run" in experiment.doc and experiment.claims and len(experiment.runs) >= 12, name
    assert len(sweep.load(name, "gpu").runs) >= 12


def test_widths_and_depths_of_the_wide_isoflop_study_keep_their_ratio():
  runs = list(isoflop_wide.runs())
  assert {r.overrides["model.width"] / r.overrides["model.depth"] for r in runs} == {4.0}
  flops = {r.overrides["train.flops"] for r in runs}
  assert max(flops) / min(flops) == pytest.approx(100)


def test_panels_stand_side_by_side_with_bars_where_they_are_given():
  dots = [
    {"x": 1.0, "y": 2.0, "low": 1.5, "high": 2.5, "by": 3, "split": "a"},
    {"x": 2.0, "y": 1.0, "by": 4, "split": "b"},
  ]
  chart = charts.panels(dots, [], ("size", "loss"), {"a": "first", "b": "second"}, "N").to_dict()
  marks = [[layer["mark"]["type"] for layer in one["layer"]] for one in chart["concat"]]
  assert marks == [["rule", "circle"], ["circle"]]
  assert [one["title"] for one in chart["concat"]] == ["(a) first", "(b) second"]


def test_a_figure_that_a_report_lacks_is_named(monkeypatch, tmp_path):
  about = shelf.STUDIES["lr_tokens"]._replace(figures=("no-such",))
  monkeypatch.setitem(shelf.STUDIES, "lr_tokens", about)
  with pytest.raises(ConfigError, match=r"no figure no-such; use .*response"):
    shelf.draw("lr_tokens", shelf.analysed("lr_tokens"), tmp_path)
