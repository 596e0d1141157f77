"""Where time goes: before the first step, and within steps by `train.py --profile FIRST:LAST`."""

import gzip
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from lm.config.errors import ConfigError
from lm.files import read_jsonl
from lm.runs.metrics import START
from lm.training.clock import Clock
from lm.training.profile import Profile, read_profile

ROOT = pathlib.Path(__file__).parent.parent


def events(folder):
  """Everything in the one trace under a folder."""
  (path,) = folder.glob("plugins/profile/*/*.trace.json.gz")
  with gzip.open(path, "rt") as file:
    return json.load(file)["traceEvents"]


def steps_in(trace):
  return [int(e["args"]["step_num"]) for e in trace if e.get("name") == "train"]


def train(workdir, *words):
  command = [sys.executable, "train.py", "--config", "configs/smoke.py", "--workdir", str(workdir)]
  env = {**os.environ, "XLA_FLAGS": ""}  # one device
  return subprocess.run(
    [*command, "--config.train.steps=8", *words], cwd=ROOT, env=env, capture_output=True, text=True
  )


def test_a_trace_of_the_asked_steps_can_be_read_back(tmp_path):
  done = train(tmp_path / "run", "--profile", "3:5")
  assert done.returncode == 0, done.stderr
  assert f"profile     {tmp_path}/run/profile" in done.stdout
  trace = events(tmp_path / "run" / "profile")
  assert steps_in(trace) == [3, 4, 5]
  first, *others = read_jsonl(tmp_path / "run" / "perf.jsonl")
  assert all(0 < first[key] < 60 for key in START) and not any(START[0] in each for each in others)
  total = sum(first[key] for key in START)
  assert f"  start {total:.1f} s until the first step: imports " in done.stdout
  spans = [e for e in trace if e.get("name") == "train"]
  calls = [e for e in trace if e.get("name", "").startswith("PjitFunction(")]
  within = lambda a, b: b["ts"] <= a["ts"] <= b["ts"] + b["dur"] and a["tid"] == b["tid"]
  assert all(any(within(call, span) for call in calls) for span in spans)


def test_the_second_run_of_a_process_does_not_count_what_came_before_the_first():
  for _ in range(2):
    lap = Clock(100, 1, float, None).lap(1)
  assert list(lap) == ["perf/seconds"]


def profile(folder, ran, steps):
  """(lines said, profile/ or not) of a loop that traces `steps` and runs `ran`."""
  lines, add = [], jax.jit(lambda x: x + 1)
  clock = Clock(100, 1, float, None)
  with Profile(steps, folder, clock, lines.append) as profiler:
    x = jnp.int32(0)
    for step in ran:
      with profiler.begin(step, x):
        x = add(x)
      profiler.end(step, x)
  return lines


def test_a_run_that_ends_early_still_leaves_its_trace(tmp_path):
  lines = profile(tmp_path, range(1, 7), (5, 9))
  assert len(lines) == 1 and lines[0].startswith(f"profile     {tmp_path}")
  assert steps_in(events(tmp_path)) == [5, 6]


def test_a_run_resumed_among_the_steps_traces_the_rest(tmp_path):
  profile(tmp_path, range(7, 12), (5, 9))
  assert steps_in(events(tmp_path)) == [7, 8, 9]


def test_a_run_resumed_after_the_steps_says_so(tmp_path):
  assert profile(tmp_path, range(10, 12), (5, 9)) == [
    "profile=5:9: none of these steps ran; nothing was traced"
  ]
  assert not any(tmp_path.iterdir())


def test_without_steps_nothing_is_traced_or_said(tmp_path):
  assert profile(tmp_path, range(1, 4), None) == []
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
  "text, total, line",
  [
    ("10", 100, "profile=10: must be the first and the last step, FIRST:LAST; use 10:13"),
    ("a:b", 100, "profile=a:b: must be the first and the last step, FIRST:LAST; use 10:13"),
    ("-1:3", 100, "profile=-1:3: must be the first and the last step, FIRST:LAST; use 10:13"),
    ("0:3", 100, "profile=0:3: must be steps of the run, 1 to 100, in order; use 10:13"),
    ("13:10", 100, "profile=13:10: must be steps of the run, 1 to 100, in order; use 10:13"),
    ("10:13", 8, "profile=10:13: must be steps of the run, 1 to 8, in order; use 8:8"),
  ],
)
def test_what_is_no_range_of_steps_is_refused_in_one_line(text, total, line):
  with pytest.raises(ConfigError) as error:
    read_profile(text, total)
  assert str(error.value) == line


def test_a_bad_range_stops_the_program_before_it_compiles(tmp_path):
  done = train(tmp_path / "run", "--profile=4:9")
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr == "profile=4:9: must be steps of the run, 1 to 8, in order; use 8:8\n"
  assert not (tmp_path / "run").exists()
