"""Losses of the first steps, whole program: what a run computes does not change unnoticed."""

import os
import subprocess
import sys

import numpy as np
import pytest

from lm.files import read_jsonl
from tests.programs import ROOT

STEPS = 3
SMOKE = ("--config=configs/smoke.py",)
GPT2_LIKE = (
  *SMOKE, "--config.model.positions=learned", "--config.model.norm=layernorm",
  "--config.model.activation=gelu", "--config.model.dropout=0.1", "--config.train.accumulate=2",
)  # fmt: skip
# name: (arguments of train.py, train/loss of steps 1, 2, 3 in nats/token)
GOLDEN = {
  "smoke": (SMOKE, (6.066625, 5.889443, 5.688972)),
  "gpt2-like, dropout, two micro-batches": (GPT2_LIKE, (6.038339, 5.622891, 5.467646)),
  "muon, muP": (
    (*SMOKE, "--config.optim.name=muon", "--config.model.parameterization=mup"),
    (7.6273, 7.179373, 6.884418),
  ),
  "default": ((), (8.095693, 7.783875, 7.451104)),
}
# float32 sums are taken in another order by other CPUs and versions of XLA, and steps 2 and 3 add
# what that changed in the parameters: below 3e-7 between AVX-512 and AVX2, and between jax 0.10 and 0.12.
RTOL = 1e-5


@pytest.mark.parametrize(
  "name", [pytest.param(n, marks=[pytest.mark.slow] if n == "default" else []) for n in GOLDEN]
)
def test_losses_of_the_first_steps_are_what_they_were(name, tmp_path):
  arguments, expected = GOLDEN[name]
  command = [
    sys.executable, "train.py", "--workdir", str(tmp_path / "run"), *arguments,
    f"--config.train.steps={STEPS}", "--config.train.tokens=None", "--config.log.every_steps=1",
    "--config.log.wandb=disabled", "--config.mesh.replica=1",
  ]  # fmt: skip
  done = subprocess.run(
    command,
    cwd=ROOT,
    env={**os.environ, "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  found = [r["train/loss"] for r in read_jsonl(tmp_path / "run/metrics.jsonl") if "train/loss" in r]
  assert len(found) == STEPS
  np.testing.assert_allclose(
    found, expected, rtol=RTOL,
    err_msg=f"{name}: a run computes something else than before. If that was meant (another default, "
    f"another initialisation, corpus or order), write {tuple(found)} into GOLDEN and say in "
    "CHANGELOG.md what changed; if not, find the commit that did it. Never widen RTOL for it.",
  )  # fmt: skip
