"""Encoders and classifiers through the whole program: planned, swept, killed and resumed."""

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

from experiments.ledger.ledger import read_ledger
from experiments.quote.cost import quote
from experiments.sweep.sweep import Run, resolve_run
from lm.cost.flops import run_flops_per_token
from lm.cost.parameters import run_counts
from lm.runs.checkpoint import load_state
from lm.runs.rundir import checkpoint_steps

ROOT = pathlib.Path(__file__).parent.parent
SCORES = {
  "configs/bert.py": "eval/val/loss",
  "configs/classify.py": "eval/val/accuracy",
  "configs/regression.py": "eval/val/spearman",
  "configs/tagging.py": "eval/val/f1",
  "configs/squad.py": "eval/val/overlap_f1",
}
CONFIGS = list(SCORES)
ONE_DEVICE = {**os.environ, "XLA_FLAGS": ""}


@pytest.mark.parametrize("config", CONFIGS)
def test_a_plan_counts_what_is_trained_and_read(config, tmp_path):
  member = resolve_run(Run("one", {"optim.peak_lr": 1e-3}, config), tmp_path)
  (row,) = quote([member], None)
  cfg = member.cfg
  assert row["n_params"] == run_counts(cfg).total
  assert row["flops_exact"] == run_flops_per_token(cfg, "exact") * cfg.train.tokens
  assert 0 < row["epochs"] < 1 and row["batch_tokens"] <= cfg.train.batch_size * cfg.model.seq_len


def start(config, workdir, *more):
  command = [sys.executable, "train.py", "--config", config, "--workdir", str(workdir), *more]
  return subprocess.Popen(
    command, cwd=ROOT, env=ONE_DEVICE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
  )


def finish(process):
  output, _ = process.communicate(timeout=600)
  assert process.returncode == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_killed_and_resumed_it_ends_with_the_same_bits(config, tmp_path):
  left_alone, killed = tmp_path / "a", tmp_path / "b"
  more = [
    "--config.train.steps=240",
    "--config.checkpoint.every_steps=20",
    "--config.model.dropout=0.1",
  ]
  if config == "configs/classify.py":
    more += ["--config.data.token_dropout=0.1", "--config.data.augment_share=0.5"]
    more += ["--config.data.augment_ops=swap,delete"]
  elif config == "configs/bert.py":
    more += ["--config.objective.next_sentence=True", "--config.objective.whole_words=True"]
  finish(start(config, left_alone, *more))
  process = start(config, killed, *more)
  while not any(step >= 40 for step in checkpoint_steps(killed)):
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.02)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert json.loads((killed / "run.json").read_text())["status"] == "running"
  finish(start(config, killed, *more))
  assert (left_alone / "metrics.jsonl").read_bytes() == (killed / "metrics.jsonl").read_bytes()
  states = [load_state(folder, "latest")[0] for folder in (left_alone, killed)]
  jax.tree.map(np.testing.assert_array_equal, states[0]["params"], states[1]["params"])


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_it_is_swept_and_read(config, tmp_path):
  words = [
    "run", "--config", config, "--grid", "optim.peak_lr=1e-3,1e-2", "--grid", "seed=0,1",
    "--set", "train.steps=12", "--set", "eval.every_steps=12", "--save_as", "few", "--root", str(tmp_path),
    "--on", "stacked",
  ]  # fmt: skip
  command = [sys.executable, "-m", "experiments", *words]
  done = subprocess.run(
    command, cwd=ROOT, env=ONE_DEVICE, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout + done.stderr
  rows = read_ledger(str(tmp_path / "few"))
  assert [row["status"] for row in rows] == ["done"] * 4
  assert {row["metric"] for row in rows} == {SCORES[config]}
  assert all(np.isfinite(row["score"]) for row in rows)
