"""Mirrors of the record, read back by the readers of the libraries they are for."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from lm.config.errors import ConfigError
from lm.runs import mirror as mirrors
from lm.runs.mirrors import MIRRORS
from tests.trained import TINY, records, run

ROOT = pathlib.Path(__file__).parent.parent
SAVES = {"checkpoint__every_steps": 2, "log__every_steps": 1}


def shown(workdir):
  """{tag: [(step, value)]} and the names of hyperparameters, as TensorBoard reads a run's event files."""
  accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
  from tensorboard.plugins.hparams import plugin_data_pb2

  found = accumulator.EventAccumulator(str(workdir / "tensorboard")).Reload()
  scalars = {
    tag: [(event.step, event.value) for event in found.Scalars(tag)]
    for tag in found.Tags()["scalars"]
  }
  data = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
  info = plugin_data_pb2.HParamsPluginData.FromString(data).session_start_info
  return scalars, info.hparams


HANGS = """
import atexit, sys, threading, time
from lm.config.command_line import run_main
from lm.runs.mirror import Mirror

atexit.register(time.sleep, 600)  # as wandb waits for a service that does not answer

def main(argv):
  mirror = Mirror("wandb", lambda: time.sleep(600))
  mirror.log(1, {})
  mirror.close(timeout=0.1)
  print("the summary")
  return int(argv[0])

run_main(main)
"""


@pytest.mark.parametrize("code", [0, 143])
def test_a_service_that_does_not_answer_keeps_no_process_from_its_end(code):
  done = subprocess.run(
    [sys.executable, "-c", HANGS, str(code)], cwd=ROOT, capture_output=True, text=True, timeout=60
  )
  assert (done.returncode, done.stdout) == (code, "the summary\n")
  assert done.stderr == "wandb: still busy, left behind; metrics.jsonl is complete\n"


@pytest.mark.slow
def test_tensorboard_reads_what_the_record_has_once_also_after_a_resume(tmp_path):
  pytest.importorskip("tensorboard")
  run(tmp_path / "x", log__mirrors="tensorboard", **SAVES)
  first = list((tmp_path / "x" / "tensorboard").glob("events.out.tfevents.*"))
  assert len(first) == 1
  (tmp_path / "x" / "checkpoints" / "8" / "checksums.json").write_text("{")  # from an earlier one
  said = run(tmp_path / "x", log__mirrors="tensorboard", **SAVES)
  assert "resumed at step 6 of 8" in said
  scalars, hparams = shown(tmp_path / "x")
  record = records(tmp_path / "x")
  for key in ("train/loss", "eval/val/loss", "optim/lr", "progress/tokens"):
    column = [(r["step"], r[k]) for r in record if (k := key.replace("progress/", "")) in r]
    assert [step for step, _ in scalars[key]] == [step for step, _ in column] and column
    assert [v for _, v in scalars[key]] == pytest.approx([v for _, v in column], rel=1e-6)
  assert scalars["perf/tokens_per_sec"]
  assert hparams["model.width"].number_value == 16
  assert hparams["model.family"].string_value == "decoder"


@pytest.mark.slow
def test_trackio_has_what_the_record_has_once_also_after_a_resume(tmp_path):
  pytest.importorskip("trackio")
  env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "XLA_FLAGS": ""}
  flags = {**TINY, "checkpoint.every_steps": 2, "log.every_steps": 1, "log.mirrors": "trackio"}
  words = ["--workdir", str(tmp_path / "x"), *(f"--config.{k}={v}" for k, v in flags.items())]
  command = [sys.executable, "train.py", "--config", "configs/smoke.py", *words]
  start = lambda: subprocess.run(
    command, cwd=ROOT, env=env, capture_output=True, text=True, check=False
  )
  done = start()
  assert done.returncode == 0 and "trackio:" not in done.stderr, done.stderr
  (tmp_path / "x" / "checkpoints" / "8" / "checksums.json").write_text("{")
  again = start()
  assert again.returncode == 0 and "resumed at step 6 of 8" in again.stdout, again.stderr
  code = """
import json, trackio
(run,) = trackio.Api().runs("isoflop")
from trackio.sqlite_storage import SQLiteStorage
print(json.dumps([run.name, run.config, SQLiteStorage.get_logs("isoflop", run.name)]))
"""
  read = subprocess.run(
    [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
  )
  assert read.returncode == 0, read.stderr
  name, config, logs = json.loads(read.stdout.splitlines()[-1])
  assert name.startswith("x-") and config["model"]["width"] == 16
  record = records(tmp_path / "x")
  assert [log["step"] for log in logs] == [r["step"] for r in record] == list(range(1, 9))
  assert [log["train/loss"] for log in logs] == [r["train/loss"] for r in record]


def test_a_mirror_whose_package_is_missing_or_unknown_is_refused_in_one_line(tmp_path, monkeypatch):
  real = __import__("importlib").util.find_spec
  hidden = lambda name, *more: None if name in MIRRORS else real(name, *more)
  monkeypatch.setattr("lm.runs.mirrors.importlib.util.find_spec", hidden)
  with pytest.raises(ConfigError) as said:
    run(tmp_path / "x", log__mirrors="tensorboard")
  assert str(said.value) == (
    "log.mirrors=tensorboard: needs a package that is not installed; pip install tensorboard"
  )
  assert not (tmp_path / "x").exists()
  with pytest.raises(ConfigError, match=r"log.mirrors=tensorbord: .*; did you mean tensorboard\?"):
    run(tmp_path / "x", log__mirrors="trackio,tensorbord")


def test_a_sink_that_breaks_is_said_once_and_stops_nothing(capsys):
  class Full:
    def log(self, step, metrics):
      raise OSError("no room\nleft")

    def close(self, exit_code, preempted):
      raise AssertionError("it has failed already")

  mirror = mirrors.Mirror("full", Full)
  for step in range(3):
    mirror.log(step, {"train/loss": 1.0})
  mirror.close()
  said = capsys.readouterr().err.splitlines()
  assert said == ["full: OSError: no room; training goes on, metrics.jsonl is complete"]
