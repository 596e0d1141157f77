"""Bayesian search: Optuna's proposals become runs, whose results it is told."""

import html
import importlib.util
import json
import sys

import pytest

from experiments.commands import command_line as cli
from experiments.commands.which import save_sweep, select
from experiments.launch import jobs, loop
from experiments.launch.local import Local
from experiments.launch.optuna_study import with_trials
from experiments.launch.slots import Slot
from experiments.ledger import ledger as ledgers
from experiments.sweep import Run, sweep
from lm.config.errors import ConfigError
from tests.fake_runs import SMOKE, fake_run

needs_optuna = pytest.mark.skipif(
  importlib.util.find_spec("optuna") is None, reason="optuna is not installed"
)
RANGES = ("optim.peak_lr=log:1e-4..1e-1", "optim.b2=lin:0.9..0.99")


def experiment():
  return sweep.make_experiment("x", [Run("base", {"train.steps": 60}, SMOKE)])


def study(folder, n, at_once=2, ranges=RANGES, asked=None):
  from experiments.launch.optuna_study import Study

  return Study(asked or experiment(), [str(n), *ranges], folder, at_once)


def rows_of(members, loss):
  """Rows as if the runs had ended with loss(member)."""
  return {m.name: {"status": "done", "eval/val/loss": loss(m)} for m in members}


def bowl(member):
  """Least at a peak_lr of 1e-2."""
  import math

  return (math.log10(member.cfg.optim.peak_lr) + 2) ** 2


@needs_optuna
def test_trials_are_asked_for_as_others_end_and_the_search_goes_on_after_a_stop(tmp_path):
  search = study(tmp_path, 12)
  rows = {}
  members = search.wanted(rows)
  assert len(members) == 2 and all(m.cfg.train.steps == 60 for m in members)
  assert search.wanted(rows) == members  # nothing new while both are at work
  rows |= rows_of(members[:1], bowl)
  assert len(search.wanted(rows)) == 3
  again = study(tmp_path, 12)  # another launcher, later
  names = {m.name for m in again.wanted({})}
  assert {members[1].name} <= names and len(names) == 3  # those at work and the one that ended
  for _ in range(12):
    rows |= rows_of(again.wanted(rows), bowl)
  assert len(again.study.get_trials()) == 12
  assert all(t.state.name == "COMPLETE" for t in again.study.get_trials())
  assert again.study.best_value == min(row["eval/val/loss"] for row in rows.values())


@needs_optuna
def test_a_search_comes_closer_than_random_draws(tmp_path):
  search, rows = study(tmp_path, 40, ranges=RANGES[:1]), {}
  while len(rows) < 40 and len(search.study.get_trials()) < 40:
    rows |= rows_of(search.wanted(rows), bowl)
  search.wanted(rows)
  losses = [t.value for t in search.study.get_trials() if t.value is not None]
  late, early = losses[-10:], losses[:10]
  assert sum(late) / len(late) < 0.5 * sum(early) / len(early)


@needs_optuna
def test_failed_trials_are_told_and_an_experiments_values_are_choices(tmp_path):
  runs = [Run(f"r{i}", {"seed": 1, "model.width": w}, SMOKE) for i, w in enumerate((32, 64, 96))]
  search = study(tmp_path, 3, 1, (), sweep.make_experiment("widths", runs))
  (first,) = search.wanted({})
  assert first.cfg.model.width in (32, 64, 96) and first.cfg.seed == 1
  search.wanted({first.name: {"status": "failed"}})
  assert search.study.get_trials()[0].state.name == "FAIL"
  with pytest.raises(ConfigError, match=r"optuna=x: has one run, so nothing varies; give ranges"):
    study(tmp_path, 3, 1, ())
  with pytest.raises(ConfigError, match=r"optuna=many .*: must be a number of trials"):
    study(tmp_path, "many")


@needs_optuna
def test_a_search_is_over_all_that_differs_and_over_the_same_ranges_when_it_goes_on(tmp_path):
  seeds = [Run(f"r{i}", {"seed": i}, SMOKE) for i in (0, 1)]
  with pytest.raises(ConfigError, match=r"runs of s differ in seed, which is not searched"):
    study(tmp_path, 3, asked=sweep.make_experiment("s", seeds))
  with pytest.raises(ConfigError, match=r"optuna=optim.peak_lr: is given twice"):
    study(tmp_path, 3, ranges=RANGES[:1] * 2)
  study(tmp_path, 3).wanted({})
  with pytest.raises(ConfigError, match=r"the search in .* is over optim.peak_lr=log"):
    study(tmp_path, 3, ranges=RANGES[:1])


@needs_optuna
def test_a_dry_run_proposes_and_writes_nothing(tmp_path):
  words = ["run", "--config", SMOKE, "--save_as", "s", "--optuna", "3", *RANGES, "--dry_run"]
  options = cli.make_parser("about").parse_args([*words, "--root", str(tmp_path)])
  assert options.act(options) == 0
  assert not list(tmp_path.iterdir())
  study(tmp_path / "x", 3).wanted({})
  before = (tmp_path / "x" / "optuna.log").read_bytes()
  from experiments.launch.optuna_study import Study

  dry = Study(experiment(), ["3", *RANGES], tmp_path / "x", 2, dry=True)
  assert {m.name for m in dry.wanted({})} == {m.name for m in study(tmp_path / "x", 3).wanted({})}
  assert (tmp_path / "x" / "optuna.log").read_bytes()[: len(before)] == before


@needs_optuna
def test_the_launcher_trains_what_optuna_proposes(tmp_path):
  fake_run(tmp_path / "template")
  search = study(tmp_path / "x", 4)

  def make_jobs(members):
    made = []
    for member in members:
      fake_run(member.workdir, member.run.overrides, loss=bowl(member))
      command = (sys.executable, "-S", "-c", "pass")
      made.append(jobs.Job((member,), command, member.workdir / "log.txt"))
    return made

  backend = Local([Slot({}, None)] * 2, make_jobs)
  rows, _ = loop.launch(search.wanted, backend, lambda *_: None)
  assert len(rows) == 4 and {row["status"] for row in rows.values()} == {"done"}
  assert search.study.best_value == pytest.approx(min(row["loss"] for row in rows.values()))


@needs_optuna
def test_the_report_shows_the_trials_of_a_search_as_it_does_runs_of_a_grid(tmp_path, capsys):
  """The page of a search and that of a grid of the same settings differ in names and commands alone."""
  act = lambda *words: (
    cli.make_parser("about").parse_args(words).act(cli.make_parser("about").parse_args(words))
  )
  root = ["--root", str(tmp_path)]
  described = ["--config", SMOKE, "--set", "train.steps=60", "--save_as", "s", *root]
  options = cli.make_parser("about").parse_args(["run", *described])
  search = study(tmp_path / "s", 4, asked=select(options), ranges=RANGES[:1])
  save_sweep(tmp_path / "s", options)
  rows = {}
  for _ in range(3):
    for member in search.wanted(rows):
      fake_run(member.workdir, member.run.overrides, loss=3 + bowl(member))
    rows = {row["name"]: row for row in ledgers.read_ledger(str(tmp_path / "s"))}
    rows = {name: {**row, "eval/val/loss": row["loss"]} for name, row in rows.items()}
  assert len(rows) == 4
  act("status", "s", *root, "--json")
  assert {row["name"] for row in json.loads(capsys.readouterr().out)} == set(rows)
  act("report", "s", *root)
  page = (tmp_path / "s" / "report.html").read_text()
  assert "4 runs" in page and all(name in page for name in rows)
  assert "Response to the hyperparameters" in page and "What varies over the 4 planned" in page
  assert html.escape("--save_as s --optuna 4 optim.peak_lr=log:1e-4..1e-1") in page
  best = min(rows.values(), key=lambda row: row["loss"])
  assert f"{best['loss']:.3f}" in page
  (tmp_path / "s" / "optuna.log").write_text("not a journal")
  with pytest.raises(ConfigError, match=r"^optuna=.*optuna.log: cannot be read \("):
    act("status", "s", *root)


def test_without_optuna_there_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "optuna", None)
  words = ["run", "--config", SMOKE, "--optuna", "3", RANGES[0], "--root", str(tmp_path)]
  options = cli.make_parser("about").parse_args(words)
  with pytest.raises(ConfigError, match="optuna=: is not installed; pip install optuna"):
    options.act(options)
  (tmp_path / "s").mkdir()
  (tmp_path / "s" / "optuna.log").touch()
  with pytest.raises(ConfigError, match=r"holds a search whose runs it lists; pip install optuna"):
    with_trials(experiment(), tmp_path / "s")
