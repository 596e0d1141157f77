"""Successive halving: who is promoted, what it costs, and that a promoted run is the run it says it is."""

import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments.commands import which
from experiments.sweep import Run, halving, sweep
from experiments.sweep.halving import Halving, Rungs, shared_steps
from lm.config.errors import ConfigError
from lm.files import read_jsonl
from lm.runs.checkpoint import load_params
from tests.fake_runs import SMOKE, fake_run

STEADY = {"optim.schedule": "constant", "optim.warmup_frac": None, "optim.warmup_tokens": 2048}
WSD = {**STEADY, "optim.schedule": "wsd", "optim.decay_frac": 0.2}


def members(n=9, more=None, folder=pathlib.Path("runs/x")):
  runs = [Run(f"r{i}", {"seed": i, "train.steps": 90, **(more or {})}, SMOKE) for i in range(n)]
  return sweep.resolve_runs(runs, folder)


def done(name, loss):
  return {name: {"name": name, "status": "done", "score": loss, "better": "lower"}}


def promote_all(rungs):
  """Rows of a whole sweep in which r4 is the best; members in the order in which they were wanted."""
  rows, trained = {}, []
  while todo := [m for m in rungs.wanted(rows) if m.name not in rows]:
    for member in todo:
      trained.append(member)
      rows |= done(member.name, 2.0 + abs(int(member.name[1]) - 4) / 10)
  return rows, trained


# ---- Rungs ---------------------------------------------------------------------------------------


def test_rungs_grow_by_eta_up_to_the_full_budget():
  (member,) = members(1)
  runs = halving.rung_runs(member, Halving(3, 3))
  assert [run.overrides["train.steps"] for run in runs] == [10, 30, 90]
  top = sweep.resolve_run(runs[-1], pathlib.Path())
  assert top.id == member.id and top.name != member.name  # the run that was asked for


@pytest.mark.parametrize("budget", ["train.tokens", "train.tokens_per_param", "train.flops"])
def test_the_budget_that_was_given_is_the_one_that_shrinks(budget):
  (plain,) = members(1)
  given = getattr(plain.cfg.train, budget.split(".")[1])
  (member,) = members(1, {"train.steps": None, budget: given})
  steps = [Rungs([member], Halving(3, 3)).at(member, k).cfg.train.steps for k in range(3)]
  assert steps == [10, 30, 90]


def test_the_best_third_is_promoted_as_soon_as_three_have_ended():
  rungs = Rungs(members(), Halving(3, 3))
  names = lambda rows: [m.name for m in rungs.wanted(rows)]
  first = [f"r{i},rung=0" for i in range(9)]
  assert names({}) == first
  rows = done("r0,rung=0", 3.0) | done("r1,rung=0", 2.0)
  assert names(rows) == first
  rows |= done("r2,rung=0", 4.0)
  assert names(rows) == ["r1,rung=1", *first]  # most urgent first
  rows |= {"r3,rung=0": {"name": "r3,rung=0", "status": "failed"}}
  assert names(rows) == ["r1,rung=1", *first]


def test_halving_ends_with_one_run_at_full_budget_and_it_is_the_best():
  rows, _ = promote_all(Rungs(members(), Halving(3, 3)))
  assert [name for name in rows if name.endswith("rung=2")] == ["r4,rung=2"]


def test_diverged_runs_are_never_promoted():
  rungs = Rungs(members(3), Halving(3, 2))
  rows = {f"r{i},rung=0": {"status": "failed"} for i in range(3)}
  assert not any("rung=1" in m.name for m in rungs.wanted(rows))
  rows |= done("r2,rung=0", math.nan)
  assert not any("rung=1" in m.name for m in rungs.wanted(rows))


def test_a_rung_shorter_than_its_warm_up_is_refused_before_anything_starts():
  late = {**STEADY, "optim.warmup_tokens": 20 * 512}
  with pytest.raises(ConfigError, match=r"optim.warmup_tokens=10240.*must not exceed"):
    Rungs(members(1, late), Halving(3, 3))


# ---- What rungs share, and what is paid ----------------------------------------------------------


@pytest.mark.parametrize(
  ("settings", "shared"),
  [
    (STEADY, 30),
    ({**STEADY, "optim.schedule": "inverse_sqrt"}, 30),
    (WSD, 24),  # decay_frac 0.2 of 30 steps
    ({**WSD, "optim.decay_frac": 0.6}, 0),  # 12 of 30 steps are not worth it
    ({"optim.schedule": "constant"}, 0),  # warm-up is a fraction of another budget
    ({**STEADY, "optim.schedule": "cosine"}, 0),
    ({**STEADY, "eval.stop_patience": 2}, 0),
    ({}, 0),
  ],
)
def test_rungs_share_steps_as_far_as_their_schedules_agree(settings, shared):
  (member,) = members(1, settings)
  rungs = Rungs([member], Halving(3, 3))
  assert shared_steps(rungs.at(member, 1).cfg, rungs.at(member, 2).cfg) == shared
  other = sweep.resolve_run(
    Run("o", {**member.run.overrides, "optim.b2": 0.5}, SMOKE), pathlib.Path()
  )
  assert shared_steps(rungs.at(member, 1).cfg, other.cfg) == 0


@pytest.mark.parametrize("settings", [{}, STEADY, WSD])
def test_the_plan_counts_the_steps_that_will_be_trained(settings):
  rungs = Rungs(members(9, settings), Halving(3, 3))
  _, trained = promote_all(rungs)
  steps = sum(m.cfg.train.steps for m in trained)
  if settings:
    fraction = 1.0 if settings is STEADY else 0.8
    steps -= fraction * (3 * 10 + 30)
  assert rungs.share() == pytest.approx(steps / (9 * 90))
  assert ("go on from their checkpoints" if settings else "trained anew") in rungs.words()
  assert "9 + 3 + 1 runs" in rungs.words()


# ---- Going on ------------------------------------------------------------------------------------


def promoted(tmp_path, settings=STEADY, steps=(10, 20)):
  """(rungs, below, above) where the run below is done and has checkpoints at `steps`."""
  (member,) = members(1, {**settings, "train.steps": 60}, tmp_path)
  rungs = Rungs([member], Halving(3, 2))
  below, above = rungs.at(member, 0), rungs.at(member, 1)
  fake_run(below.workdir, below.run.overrides)
  for step in steps:
    (below.workdir / "checkpoints" / str(step)).mkdir(parents=True)
    (below.workdir / "checkpoints" / str(step) / "state").write_text(str(step))
  above.workdir.mkdir()
  return rungs, below, above


def test_a_promoted_run_begins_with_the_newest_checkpoint_that_it_shares(tmp_path):
  rungs, below, above = promoted(tmp_path)
  rungs.begin(above)
  assert [p.name for p in (above.workdir / "checkpoints").iterdir()] == ["20"]
  assert (above.workdir / "checkpoints/20/state").read_text() == "20"
  assert json.loads((above.workdir / "trunk.json").read_text()) == {"run": below.name, "step": 20}
  rungs.begin(above)  # and nothing more, from now on
  assert halving.has_begun(above.workdir)


def test_a_decayed_checkpoint_is_not_gone_on_from(tmp_path):
  rungs, _, above = promoted(tmp_path, WSD, (14, 16, 18, 20))
  rungs.begin(above)
  assert [p.name for p in (above.workdir / "checkpoints").iterdir()] == ["16"]


def test_where_nothing_is_shared_the_promoted_run_starts_anew(tmp_path):
  rungs, _, above = promoted(tmp_path, {})
  rungs.begin(above)
  assert list(above.workdir.iterdir()) == []


def test_a_copy_that_was_killed_is_made_again(tmp_path, monkeypatch):
  rungs, _, above = promoted(tmp_path)

  def killed(*args):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
      rungs.begin(above)
  assert not halving.has_begun(above.workdir)
  rungs.begin(above)
  assert (above.workdir / "checkpoints/20/state").exists()


def run(root, *words):
  command = [sys.executable, "-m", "experiments", "run", "--config", SMOKE, "--root", str(root)]
  for key, value in {**SETTINGS, "data.cache_dir": CACHE}.items():
    command += ["--set", f"{key}={value}"]
  out = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
  assert out.returncode == 0, out.stdout + out.stderr


SETTINGS = {"train.steps": 40, "eval.every_steps": 8, "eval.tokens": 1024, "log.every_steps": 3}
CACHE = str(pathlib.Path("~/.cache/isoflop").expanduser())


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "at"), [(STEADY, 20), (WSD, 16)])
def test_a_promoted_run_equals_one_that_was_never_interrupted(tmp_path, settings, at):
  given = [w for k, v in settings.items() for w in ("--set", f"{k}={v}")]
  grid = ("--grid", "optim.peak_lr=1e-3,4e-3", "--workers", "1", *given)
  run(tmp_path, *grid, "--save_as", "h", "--halving", "2:2")
  run(tmp_path, *grid, "--save_as", "full", "--only", "peak_lr=4e-3")
  promoted, whole = tmp_path / "h/peak_lr=4e-3,rung=1", tmp_path / "full/peak_lr=4e-3"
  assert json.loads((promoted / "trunk.json").read_text())["step"] == at
  assert f"resumed at step {at}" in (promoted / "log.txt").read_text()
  for name in ("metrics.jsonl", "samples.jsonl"):
    assert (promoted / name).read_bytes() == (whole / name).read_bytes()
  assert {r["step"] for r in read_jsonl(promoted / "metrics.jsonl") if "eval/val/loss" in r} == {
    8, 16, 24, 32, 40,
  }  # fmt: skip
  (a, _), (b, _) = load_params(promoted, "latest"), load_params(whole, "latest")
  import jax

  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(x, y)


# ---- Commands ------------------------------------------------------------------------------------


def test_runs_that_are_named_are_not_halved():
  from experiments.commands import command_line as cli

  words = ["run", "--config", SMOKE, "--grid", "seed=0,1,2", "--halving", "3:2", "--only", "seed=1"]
  experiment = which.select(cli.make_parser("about").parse_args(words))
  assert [r.name for r in experiment.runs] == ["seed=1"] and experiment.halving is None
