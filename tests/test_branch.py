"""Branches of one trunk: which steps are shared, in what order runs start, and that they end the same."""

import json

import numpy as np
import pytest

from experiments.sweep import Run, halving, sweep
from experiments.sweep.branch import Branches
from experiments.sweep.sweep import resolve_runs
from lm.config.errors import ConfigError
from lm.runs.checkpoint import load_params
from lm.runs.rundir import read_run
from tests.fake_runs import SMOKE
from tests.test_surroundings import at_batch, poison

WSD = {
  "optim.schedule": "wsd",
  "optim.warmup_frac": None,
  "optim.warmup_tokens": 512 * 2,
  "optim.decay_frac": 0.25,
}


def members(folder, steps=(20, 40, 80), **changes):
  runs = [
    Run(f"steps={s}", {**WSD, **changes, "train.steps": s, "eval.every_steps": 10}, SMOKE)
    for s in steps
  ]
  return resolve_runs(runs, folder)


def test_each_run_branches_where_the_decay_of_the_shorter_one_begins(tmp_path):
  found = Branches(members(tmp_path)[::-1])
  assert [m.name for m in found.members] == ["steps=20", "steps=40", "steps=80"]
  assert [found.shared(m.name) for m in found.members] == [0, 15, 30]
  assert [m.cfg.checkpoint.every_steps for m in found.members] == [15, 30, 60]
  assert "45" not in found.words() and "(32%) are computed once" in found.words()  # 45 of 140 steps


def test_a_run_waits_for_its_trunk_and_goes_on_alone_where_that_failed(tmp_path):
  found = Branches(members(tmp_path))
  names = lambda rows: [m.name for m in found.wanted(rows)]
  assert names({}) == ["steps=20"]
  assert names({"steps=20": {"status": "running"}}) == ["steps=20"]
  assert names({"steps=20": {"status": "done"}}) == ["steps=20", "steps=40"]
  assert len(names({"steps=20": {"status": "failed"}, "steps=40": {"status": "done"}})) == 3


def test_schedules_that_differ_before_the_branch_are_refused(tmp_path):
  for changes in (
    {"optim.schedule": "cosine"},
    {"optim.warmup_frac": 0.1, "optim.warmup_tokens": None},
  ):
    with pytest.raises(
      ConfigError, match=r"branch=steps=40: its learning rates are not those of steps=20"
    ):
      Branches(members(tmp_path, **changes))
  with pytest.raises(ConfigError, match=r"branch=True: no two runs differ in their budget alone"):
    Branches(members(tmp_path, steps=(20,)))


def test_settings_have_trunks_of_their_own(tmp_path):
  both = [
    Run(f"{s},{lr}", {**WSD, "train.steps": s, "optim.peak_lr": lr}, SMOKE)
    for s in (20, 40)
    for lr in (1e-3, 2e-3)
  ]
  found = Branches(resolve_runs(both, tmp_path))
  assert [m.name for m in found.wanted({})] == ["20,0.001", "20,0.002"]


def test_a_branch_takes_over_what_the_trunk_went_back_for(tmp_path):
  """A longer run goes back for a bad step that both have, and for none that the shorter one has alone."""
  shared = lambda *pairs: halving._shared_rewinds(made(*pairs), 15)

  def made(*pairs):
    for step in (5, 10, 15, 20):
      (tmp_path / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
    rewinds = [{"bad": bad, "to": to, "why": ""} for bad, to in pairs]
    (tmp_path / "run.json").write_text(json.dumps({"rewinds": rewinds}))
    return tmp_path

  steps = lambda *pairs: (
    [(r["bad"], r["to"]) for r in shared(*pairs)[0]],
    sorted(shared(*pairs)[1]),
  )
  assert steps() == ([], [5, 10, 15])
  assert steps((12, 10), (18, 15)) == ([(12, 10)], [5, 10, 15])
  assert steps((17, 10)) == ([], [5, 10])


@pytest.mark.slow
@pytest.mark.parametrize("bad", [None, 6])
def test_a_branch_equals_the_same_run_trained_alone(tmp_path, monkeypatch, bad):
  import train

  if bad is not None:
    at_batch(monkeypatch, bad, poison)

  def trained(member):
    changes = [f"--config.{k}={v}" for k, v in member.run.overrides.items()]
    assert (
      train.main(["--config", member.run.config, "--workdir", str(member.workdir), *changes]) == 0
    )

  found = Branches(members(tmp_path / "branched", **{"train.on_nonfinite": "rewind"}))
  for member in found.members:
    found.begin(member)
    trained(member)
  longest = found.members[-1]
  assert json.loads((longest.workdir / "trunk.json").read_text()) == {"run": "steps=40", "step": 30}
  alone = sweep.resolve_run(longest.run, tmp_path / "alone")
  trained(alone)
  ours, theirs = (load_params(m.workdir)[0] for m in (longest, alone))
  import jax

  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_array_equal(a, b)
  went = [read_run(m.workdir)["rewinds"] for m in (longest, alone)]
  assert went[0] == went[1] and bool(went[0]) == (bad is not None)
  read = lambda m: (m.workdir / "metrics.jsonl").read_text()
  assert read(longest) == read(alone)
