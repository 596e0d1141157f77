"""The record: what is written, what is forgotten on resume, and that a mirror never stops a run."""

import json
import sys
import time

import pytest

from lm.config.schema import LogConfig
from lm.files import read_jsonl
from lm.runs.metrics import check_metric
from lm.runs.mirror import About
from lm.runs.record import Recorder
from lm.runs.wandb_mirror import WandbMirror


def record(workdir, start, steps):
  recorder = Recorder(workdir, start)
  for step in steps:
    recorder.metrics(step, {"tokens": step}, {"train/loss": 1.0 / step, "perf/seconds": 0.5})
    recorder.sample(step, "a", "b")
  recorder.close()


def test_wall_clock_numbers_stay_out_of_the_reproducible_record(tmp_path):
  record(tmp_path, 0, [1, 2])
  assert read_jsonl(tmp_path / "metrics.jsonl")[1] == {"step": 2, "tokens": 2, "train/loss": 0.5}
  assert read_jsonl(tmp_path / "perf.jsonl")[1] == {"step": 2, "perf/seconds": 0.5}


def test_resuming_forgets_what_came_after_the_checkpoint(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "b").mkdir()
  record(tmp_path / "a", 0, range(1, 7))
  record(tmp_path / "b", 0, range(1, 6))
  with open(tmp_path / "b" / "metrics.jsonl", "a") as file:
    file.write('{"step": 6, "tok')  # killed in the middle of a line
  record(tmp_path / "b", 3, range(4, 7))
  for name in ("metrics.jsonl", "samples.jsonl"):
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_metric_without_a_unit_is_refused():
  check_metric("eval/books/loss")
  with pytest.raises(ValueError, match=r"metric train/lss is not in lm\.runs\.metrics"):
    check_metric("train/lss")


def test_json_never_holds_a_bare_nan(tmp_path):
  recorder = Recorder(tmp_path, 0)
  recorder.metrics(1, {}, {"train/loss": float("nan")})
  recorder.close()
  assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail) == {
    "step": 1,
    "train/loss": "nan",
  }


def test_a_broken_mirror_reports_once_and_stops_nothing(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails
  mirror = WandbMirror(About(LogConfig(1, "offline", "p", None, ()), tmp_path, "id", 0, {}))
  recorder = Recorder(tmp_path, 0, mirror)
  for step in range(1, 4):
    recorder.metrics(step, {}, {"train/loss": 1.0})
  recorder.close()
  start = time.monotonic()
  mirror.close()
  assert time.monotonic() - start < 5
  assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 3
  assert capsys.readouterr().err.count("wandb:") == 1


@pytest.mark.slow
def test_offline_runs_are_kept_with_the_run(tmp_path):
  mirror = WandbMirror(
    About(LogConfig(1, "offline", "p", None, ()), tmp_path, "abc123", 0, {"seed": 0})
  )
  mirror.log(1, {"train/loss": 1.0})
  mirror.close()
  assert list((tmp_path / "wandb").glob("offline-run-*-abc123"))
