"""A family, an objective and a kind of batch from outside lm/ go through everything, their names unknown."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import train
from experiments.ledger import compare
from experiments.ledger.ledger import Ledger, read_ledger
from experiments.ledger.rows import read_row
from experiments.report import live, tables
from experiments.report.board import board_data
from experiments.report.formats import clock
from experiments.sweep import sweep
from experiments.sweep.sweep import Run
from lm import evaluate
from lm.devices.sharding import make_mesh
from lm.files import read_jsonl
from lm.runs.checkpoint import load_state
from lm.setup.hparams import make_hparams
from lm.setup.load import load_config
from lm.setup.resolve import kind_of, resolve
from lm.training.programs import make_programs

ROOT = pathlib.Path(__file__).parent.parent
CONFIG = "tests/bag_config.py"
ONE = "--config.mesh.replica=1"


def start(workdir, *more):
  """A process that trains, its words in workdir.txt."""
  command = [sys.executable, "train.py", "--config", CONFIG, "--workdir", str(workdir), ONE, *more]
  env = {**os.environ, "XLA_FLAGS": ""}  # one device
  with workdir.with_suffix(".txt").open("a") as out:
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)


def finish(workdir, *more):
  code = start(workdir, *more).wait()
  assert code == 0, workdir.with_suffix(".txt").read_text()


def experiments(*words):
  command = [sys.executable, "-m", "experiments", *words]
  env = {**os.environ, "XLA_FLAGS": ""}
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


def printed(function, *words):
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    assert function(list(words)) == 0
  return out.getvalue()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """A run trained through train.py on the 8 devices of the tests."""
  workdir = tmp_path_factory.mktemp("bags") / "whole"
  printed(train.main, "--config", CONFIG, "--workdir", str(workdir))
  return workdir


def test_no_file_knows_the_names():
  words = ("next_label", "bag_of_words", "passages", "LabelHead")
  files = [*(ROOT / "lm").rglob("*.py"), *(ROOT / "experiments").rglob("*.py"), ROOT / "train.py"]
  for file in files:
    text = file.read_text()
    assert not any(word in text for word in words), file


def test_the_plan_counts_what_is_trained(whole):
  plan = json.loads(printed(train.main, "--config", CONFIG, "--plan", "--json"))
  state, _ = load_state(whole, "latest")
  sizes = [leaf.size for leaf in jax.tree.leaves(state["params"])]
  assert plan["parameters"]["total"] == sum(sizes)
  assert (plan["unit"], plan["steps"], plan["tokens"]) == ("passages", 40, 640)


def test_it_trains_and_is_judged_by_its_own_metric(whole):
  records = read_jsonl(whole / "metrics.jsonl")
  assert [r["step"] for r in records] == list(range(5, 41, 5))
  assert records[-1]["tokens"] == 640
  right = {r["step"]: r["eval/val/right"] for r in records if "eval/val/right" in r}
  assert set(right) == {10, 20, 30, 40} and right[40] > right[10] > 0.5  # it has a best one
  _, best = load_state(whole, "best")
  steps = [int(p.name) for p in (whole / "checkpoints").iterdir()]
  assert best == max((s for s in right if s in steps), key=lambda s: (right[s], -s))
  assert right[best] == max(right.values())
  # Kept neither as the best nor as one of two.
  assert right[10] == min(right.values()) and 10 not in steps


def test_what_is_no_parameter_is_saved_with_the_run(whole):
  state, step = load_state(whole, "latest")
  assert float(state["extra"]["labels"].sum()) == 16 * step


def test_evaluation_gives_the_record_again(whole):
  found = json.loads(
    printed(evaluate.main, "--workdir", str(whole), "--checkpoint", "40", "--json")
  )
  last = read_jsonl(whole / "metrics.jsonl")[-1]
  assert found["right"] == pytest.approx(last["eval/val/right"], abs=1 / 256)
  assert found["nll"] == pytest.approx(last["eval/val/nll"], rel=1e-5)
  assert "perplexity" not in found and found["passages"] == 256


def test_eight_devices_compute_what_one_does():
  """Losses of five steps on 2 x 2 x 2 devices, parameters split over fsdp and tensor, against one device."""
  losses = []
  for n, sizes in ((1, {}), (8, {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2})):
    changes = {"data.vocab_size": 512, "model.vocab_size": 512, **sizes}
    cfg = resolve(load_config(CONFIG, changes), 257, n)
    programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:n]))
    hparams = jax.device_put(make_hparams(cfg), programs.scalar_sharding)
    state, mine = programs.init(hparams), []
    batches = kind_of(cfg).train(kind_of(cfg).open(cfg), cfg)
    for step in range(5):
      rows = jax.device_put(batches.at(step), programs.batch_sharding)
      state, metrics = programs.train(state, rows, hparams)
      mine.append(float(metrics["train/nll"]))
    losses.append(mine)
  assert len(set(losses[0])) == 5  # they do train
  np.testing.assert_allclose(*losses, rtol=1e-5)


def test_a_sweep_at_work_shows_its_own_metrics_and_the_time_that_is_left(whole, tmp_path, capsys):
  runs = [Run(name, {"optim.peak_lr": lr}, CONFIG) for name, lr in (("a", 1e-3), ("b", 1e-2))]
  members = [dataclasses.replace(m, workdir=whole) for m in sweep.resolve_runs(runs, tmp_path)]
  titles = live.live_titles(members)
  assert (titles["shown"], titles["score"]) == ("train nll", "val right")
  assert titles["tokens_per_sec"] == "passages/s"
  last = live.progress_of(whole)
  step, shown, score, speed, left = live._live_cells(members[0], 1)
  assert (step, left) == ("40/40", "0:00") and speed
  assert shown == f"{last['train/nll']:.4f}" and score == f"{last['eval/val/right']:.4f}"
  train = dataclasses.replace(members[0].cfg.train, steps=10_040, tokens=10_040 * 16)
  longer = dataclasses.replace(members[0], cfg=dataclasses.replace(members[0].cfg, train=train))
  seconds = 10_000 * 16 / last["perf/tokens_per_sec"]  # 16 passages a step, of 2 tokens each
  assert live._live_cells(longer, 1)[-1] == clock(seconds)
  row = {"status": "done", "metric": "eval/val/right", "better": "higher"}
  rows = {"a": row | {"name": "a", "score": 0.25}, "b": row | {"name": "b", "score": 0.75}}
  with live.Watch("bags", sys.stdout) as watch:
    watch(members, {name: row | {"status": "running"} for name in rows}, [], False)
    watch(members, rows, [], False)
    assert "best 0.7500 (b)" in watch._summary(members, rows, {})
  assert "done a: val right 0.2500" in capsys.readouterr().out


def test_runs_are_compared_grouped_and_put_on_the_board_by_their_own_metric(whole, capsys):
  row = read_row(str(whole), "a", curves=True)
  rows = [row, row | {"name": "b", "path": "b", "score": 0.25, "eval/val/right": 0.25, "seed": 1}]
  found = compare.compare(rows)
  assert (found["metric"], found["train_metric"]) == ("eval/val/right", "train/nll")
  assert found["final"][0]["eval/val/right"] == row["score"] and "loss" not in found["final"][0]
  assert found["eval_curves"][-1]["a"] == row["score"]
  assert found["seeds"][0]["mean"] == pytest.approx((row["score"] + 0.25) / 2)
  tables.show_comparison(found, "tokens")
  assert "eval/val/right at tokens" in capsys.readouterr().out
  ledger = Ledger(tuple(rows))
  assert row["score"] > 0.5 and ledger.summary("model.width")[0]["best"] == "a"  # the highest
  page = board_data(ledger, None)
  assert "eval/val/right" in page["shown"] and "loss" not in page["shown"]
  assert (page["judge"], page["curve"]) == ("eval/val/right", "train/nll")


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_bits(tmp_path):
  left_alone, killed = tmp_path / "a", tmp_path / "b"
  more = ("--config.train.tokens=64000", "--config.checkpoint.every_steps=100")
  finish(left_alone, *more)
  process = start(killed, *more)
  while not (killed / "checkpoints" / "100").exists():
    assert process.poll() is None, killed.with_suffix(".txt").read_text()
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.wait()
  finish(killed, *more)
  assert (left_alone / "metrics.jsonl").read_bytes() == (killed / "metrics.jsonl").read_bytes()
  states = [load_state(folder, "latest")[0] for folder in (left_alone, killed)]
  for field in ("params", "extra", "seen"):
    jax.tree.map(np.testing.assert_array_equal, states[0][field], states[1][field])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["local", "stacked"])
def test_it_is_swept_read_and_reported(tmp_path, backend):
  sweep = [
    "run", "--config", CONFIG, "--grid", "optim.peak_lr=1e-2,3e-2", "--grid", "seed=0,1",
    "--save_as", "bags", "--root", str(tmp_path), "--on", backend,
  ]  # fmt: skip
  experiments(*sweep)
  ledger = read_ledger(str(tmp_path / "bags"))
  assert [row["status"] for row in ledger] == ["done"] * 4
  assert {row["metric"] for row in ledger} == {"eval/val/right"}
  assert {row["better"] for row in ledger} == {"higher"}
  assert all(0.5 < row["score"] <= 1 for row in ledger)
  assert len({row["score"] for row in ledger}) > 1
  assert "done" in experiments("status", "bags", "--root", str(tmp_path))
  experiments("report", "bags", "--root", str(tmp_path))
  page = (tmp_path / "bags" / "report.html").read_text()
  assert re.search(r"best of 2 settings is peak_lr = \S+, with eval/val/right of 0\.\d+", page)
  assert "The ledger holds no learning curves" not in page and "Eval/val/right of n = 4" in page
  assert "eval/val/right" in page
