"""Which checkpoints stay: the latest ones that were due, and the best."""

import collections
import dataclasses
import json
import logging
import os
import platform

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.config.schema import CheckpointConfig
from lm.runs.checkpoint import Checkpointer, best_step, load_params
from lm.setup.load import load_config
from lm.setup.resolve import resolve

METRIC = "eval/val/loss"
# What is saved at each step: whether it was due, and which step was the best by then.
SAVES = {10: (False, 10), 20: (True, 10), 30: (False, 30), 40: (True, 30), 60: (True, 30)}


def saved(workdir, keep, best=True, saves=SAVES):
  checkpoints = Checkpointer(workdir, CheckpointConfig(every_steps=20, keep=keep, best=best))
  for step, (due, best_so_far) in saves.items():
    state = {"params": {"w": jnp.full(3, float(step))}, "ema": None}
    checkpoints.save(state, step, best_so_far if best else None, extra=not due)
  checkpoints.wait()
  steps = checkpoints.steps()
  checkpoints.close()
  return steps


def record_run(workdir, losses, best=True):
  cfg = resolve(load_config("configs/smoke.py"), vocab_size=256, n_devices=1)
  cfg = dataclasses.replace(cfg, checkpoint=dataclasses.replace(cfg.checkpoint, best=best))
  (workdir / "config.json").write_text(json.dumps(dataclasses.asdict(cfg)))
  lines = [json.dumps({"step": step, METRIC: loss}) for step, loss in losses.items()]
  (workdir / "metrics.jsonl").write_text("\n".join([json.dumps({"step": 5}), *lines]) + "\n")


@pytest.mark.parametrize("keep, steps", [(1, [30, 60]), (2, [30, 40, 60]), (3, [20, 30, 40, 60])])
def test_the_best_stays_beside_the_latest_that_were_due(tmp_path, keep, steps):
  assert saved(tmp_path, keep) == steps


def test_a_best_one_takes_no_place_of_those_due_when_it_is_the_newest(tmp_path):
  assert saved(tmp_path, 1, saves={20: (True, 20), 30: (False, 30)}) == [20, 30]


def test_one_that_a_signal_had_saved_stays_while_it_is_the_newest(tmp_path):
  saves = {20: (True, None), 30: (False, None)}
  assert saved(tmp_path / "x", 1, best=False, saves=saves) == [20, 30]
  assert saved(tmp_path / "y", 1, best=False, saves=saves | {40: (True, None)}) == [40]


def test_one_from_before_a_stop_takes_no_place_of_those_due(tmp_path):
  """30 was saved by a signal, which the process that goes on must be told."""
  saved(tmp_path, 2, saves={20: (True, None), 30: (False, None)})
  checkpoints = Checkpointer(tmp_path, CheckpointConfig(every_steps=20, keep=2, best=False))
  checkpoints.leave_out([30])
  checkpoints.save({"params": {"w": jnp.full(3, 40.0)}, "ema": None}, 40)
  checkpoints.wait()
  assert checkpoints.steps() == [20, 40]
  checkpoints.close()


def test_what_was_computed_after_a_step_is_dropped(tmp_path):
  saved(tmp_path, 9)
  checkpoints = Checkpointer(tmp_path, CheckpointConfig(every_steps=20, keep=9, best=True))
  checkpoints.drop_after(30)
  assert checkpoints.steps() == [20, 30]
  checkpoints.close()
  assert not list((tmp_path / "checkpoints").glob(".dropped*"))


def test_without_best_the_latest_alone_stay(tmp_path):
  due = {step: at for step, at in SAVES.items() if at[0]}
  assert saved(tmp_path, 2, best=False, saves=due) == [40, 60]


def test_a_step_is_saved_once(tmp_path):
  assert saved(tmp_path, 2) == saved(tmp_path, 2) == [30, 40, 60]


@pytest.mark.parametrize(
  "which, best, step", [("best", True, 30), ("latest", True, 60), ("best", False, 60), ("60", True, 60)]
)  # fmt: skip
def test_the_record_says_which_one_is_the_best(tmp_path, which, best, step):
  saved(tmp_path, keep=2)
  record_run(tmp_path, {20: 3.0, 30: 1.0, 50: 0.5, 60: 2.0}, best)
  params, at = load_params(tmp_path, which)
  assert at == step
  np.testing.assert_array_equal(params["w"], np.full(3, float(step)))


def test_going_on_from_a_checkpoint_says_nothing(tmp_path, caplog):
  saved(tmp_path, keep=1)
  checkpoints = Checkpointer(tmp_path, CheckpointConfig(every_steps=20, keep=1, best=False))
  Saved = collections.namedtuple("Saved", ("params", "ema"))
  shape = Saved({"w": jax.ShapeDtypeStruct((3,), jnp.float32)}, None)
  with caplog.at_level(logging.WARNING, "absl"):
    found = checkpoints.restore(shape, 60)
  checkpoints.close()
  np.testing.assert_array_equal(found.params["w"], np.full(3, 60.0))
  assert [record.getMessage() for record in caplog.records] == []


def test_without_evaluations_the_latest_is_loaded(tmp_path):
  saved(tmp_path, keep=1)
  record_run(tmp_path, {})
  assert load_params(tmp_path, "best")[1] == 60


def test_the_earliest_of_equal_steps_is_the_best():
  cfg = resolve(load_config("configs/smoke.py"), vocab_size=256, n_devices=1)
  records = [{"step": 1, METRIC: 2.0}, {"step": 2, METRIC: 1.0}, {"step": 3, METRIC: 1.0}]
  assert best_step(records, cfg, [1, 2, 3]) == 2
  assert best_step(records, cfg, [3, 1]) == 3
  watched = lambda name: dataclasses.replace(
    cfg, eval=dataclasses.replace(cfg.eval, stop_metric=f"eval/val/{name}")
  )
  assert best_step(records, watched("bpb"), [1, 2, 3]) is None
  accuracies = [{"step": 1, "eval/val/accuracy": 0.5}, {"step": 2, "eval/val/accuracy": 0.7}]
  assert best_step(accuracies, watched("accuracy"), [1, 2]) == 2  # where higher is better


@pytest.mark.parametrize(("pid", "words"), [
  (None, r"yet: process \d+ on .* is training it, at step 5 of 60, and the first comes at step 30;"),
  (2**22 + 1, r"no checkpoint best \(it holds none\); train first"),
])  # fmt: skip
def test_a_run_in_training_says_when_its_first_checkpoint_comes(tmp_path, pid, words):
  record_run(tmp_path, {})
  (tmp_path / "run.json").write_text(json.dumps({"status": "running"}))
  (tmp_path / ".writer.lock").write_text(f"{platform.node()} {pid or os.getpid()}\n")
  with pytest.raises(ConfigError, match=words):
    load_params(tmp_path, "best")
