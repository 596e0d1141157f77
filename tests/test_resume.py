"""A run that is killed or stopped and started again ends like one that was left alone, to the bit."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lm.files import read_jsonl, write_json
from lm.runs.checkpoint import load_params
from lm.runs.rundir import read_run
from tests.trained import run

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = [
  "--config=configs/smoke.py",
  "--config.train.steps=300",
  "--config.eval.every_steps=50",
  "--config.checkpoint.every_steps=20",
  "--config.log.every_steps=5",
  "--config.model.dropout=0.1",
  "--config.optim.ema_decay=0.9",
  "--config.mesh.replica=1",
]


def start(workdir, *more):
  command = [sys.executable, "train.py", "--workdir", str(workdir), *FLAGS, *more]
  env = {**os.environ, "XLA_FLAGS": ""}  # one device
  return subprocess.Popen(
    command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def finish(process, code=0):
  output, _ = process.communicate(timeout=300)
  assert process.returncode == code, output
  return output


def wait_for_step(workdir, step, process):
  for _ in range(3000):
    records = read_jsonl(workdir / "metrics.jsonl")
    if records and records[-1]["step"] >= step:
      return
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.02)
  raise TimeoutError(f"step {step} was never logged")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "whole"
  finish(start(workdir))
  return workdir


def assert_same_run(a, b):
  assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()
  assert (a / "samples.jsonl").read_bytes() == (b / "samples.jsonl").read_bytes()
  for which in ("latest", "best"):
    (params_a, step_a), (params_b, step_b) = load_params(a, which), load_params(b, which)
    assert step_a == step_b
    jax.tree.map(np.testing.assert_array_equal, params_a, params_b)


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [5, 60, 165])
def test_sigkill_and_restart_change_no_bit(whole, tmp_path, kill_at):
  workdir = tmp_path / "killed"
  process = start(workdir)
  wait_for_step(workdir, kill_at, process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert read_jsonl(workdir / "metrics.jsonl")[-1]["step"] < 300
  output = finish(start(workdir))
  if kill_at > 40:
    assert "resumed at step" in output
  assert_same_run(whole, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_and_says_how_to_resume(whole, tmp_path, number):
  workdir = tmp_path / "stopped"
  process = start(workdir)
  wait_for_step(workdir, 30, process)
  process.send_signal(number)
  last = finish(process, 128 + number).strip().splitlines()[-1]
  assert last.startswith("resume with: ") and str(workdir) in last
  assert read_run(workdir)["status"] == "interrupted"
  finish(start(workdir))
  assert_same_run(whole, workdir)
  assert json.loads((workdir / "run.json").read_text())["status"] == "done"


def test_a_finished_run_is_left_alone_and_another_is_refused(tmp_path):
  workdir = tmp_path / "run"
  finish(start(workdir, "--config.train.steps=20"))
  before = (workdir / "run.json").read_bytes()
  assert "done" in finish(start(workdir, "--config.train.steps=20"))
  assert (workdir / "run.json").read_bytes() == before
  process = start(workdir, "--config.train.steps=20", "--config.model.width=64")
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 2
  assert output.startswith(f"workdir={workdir}: holds another run (model.width=32 there, 64 here);")


@pytest.mark.slow
def test_the_last_run_of_a_stack_trains_alone(tmp_path):
  whole = {"config": "configs/smoke.py", "overrides": {"train.steps": 20, "log.wandb": "disabled"}}
  for seeds in ([0, 1], [0, 1, 2]):  # in the second stack one is left
    lines = []
    for seed in seeds:
      line = {
        "overrides": {**whole["overrides"], "seed": seed},
        "workdir": str(tmp_path / str(seed)),
      }
      lines.append(json.dumps({**whole, **line}))
    (tmp_path / "stack.jsonl").write_text("\n".join(lines))
    command = [sys.executable, "train.py", "--stack", str(tmp_path / "stack.jsonl")]
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=120)
  status = [json.loads((tmp_path / str(s) / "run.json").read_text())["status"] for s in range(3)]
  assert status == ["done"] * 3


def test_a_non_finite_loss_ends_the_run_and_names_the_step(tmp_path):
  workdir = tmp_path / "run"
  process = start(workdir, "--config.optim.peak_lr=1e12", "--config.optim.clip_norm=None")
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 1
  about = read_run(workdir)
  assert about["status"] == "failed"
  assert about["reason"].startswith("step 2: train/loss is nan; last good checkpoint: none;")
  assert about["reason"] in output


def test_an_early_stop_that_was_not_written_down_is_found_again(tmp_path):
  diverging = {"optim__peak_lr": 5.0, "optim__clip_norm": None, "eval__stop_patience": 1}
  settings = {"train__steps": 40, "eval__every_steps": 2, **diverging}
  workdir = tmp_path / "x"
  run(workdir, **settings)
  ended, record = read_run(workdir), (workdir / "metrics.jsonl").read_bytes()
  assert ended["reason"].startswith("early stop at step 4:")
  # As a kill leaves it between the last checkpoint and the last words.
  write_json(workdir / "run.json", {**ended, "status": "running", "reason": None, "ended_at": None})
  assert "early stop at step 4" in run(workdir, **settings)
  assert (workdir / "metrics.jsonl").read_bytes() == record
  again = read_run(workdir)
  assert [again[key] for key in ("status", "reason", "ended_at", "final")] == [
    ended[key] for key in ("status", "reason", "ended_at", "final")
  ]
