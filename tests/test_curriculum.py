"""Rows that grow while a run goes on: the same tokens, cut; counts; what is refused."""

import dataclasses

import numpy as np
import pytest

from experiments.sweep.halving import shared_steps
from lm.config.errors import ConfigError
from lm.cost.flops import exact_flops, run_flops_per_token
from lm.data import curriculum
from lm.data.batches import TrainBatches, _gather
from lm.data.cache import open_corpus
from lm.plan.run_plan import make_plan, show
from lm.setup.load import load_config
from lm.setup.resolve import resolve
from lm.training.clock import Clock
from tests.corpora import line_config, write_docs
from tests.equalities import assert_resumes

SMOKE = "configs/smoke.py"
GROWS = {"data.length_curriculum": "16:0.2,32:0.5"}


def smoke(n_devices=1, **changes):
  return resolve(load_config(SMOKE, GROWS | changes), 257, n_devices)


@pytest.mark.parametrize("whole", [True, False], ids=["across", "apart"])
@pytest.mark.parametrize("pack", [True, False], ids=["packed", "padded"])
def test_a_piece_is_a_row_of_its_length(tmp_path, whole, pack):
  write_docs(tmp_path)
  cfg = line_config(tmp_path, val_fraction=0.2, pack=pack, cross_documents=whole)
  batches = TrainBatches(open_corpus(cfg, quiet=True), cfg, 32, 4)
  for step in range(3):
    pieces = []
    for row in batches.rows_at(step):
      starts = range(row.start, row.start + 32, 8)
      spans = [(s, max(s, min(row.stop, s + 8))) for s in starts]
      pieces += [row._replace(start=s, stop=e, counted=s) for s, e in spans]
    wanted = _gather(pieces, 8, split=not (pack and whole))
    found = curriculum.cut(batches.at(step), 4)
    assert wanted.keys() == found.keys()
    for name, array in wanted.items():
      np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_length_follows_from_the_step_and_hosts_read_their_rows():
  cfg = smoke()  # 60 steps, rows of 64, 8 a batch
  assert curriculum.stages(cfg) == [(16, 12), (32, 30), (64, 60)]
  lengths = [curriculum.length_at(cfg, step) for step in range(60)]
  assert lengths == [16] * 12 + [32] * 18 + [64] * 30

  class Numbered:
    def at(self, number, rows):
      return {"tokens": number * 1000 + np.arange(8 * 64).reshape(8, 64)[rows]}

  for step, (n_rows, length) in {11: (32, 16), 12: (16, 32), 30: (8, 64)}.items():
    reader = curriculum.Reader(cfg, step)
    whole = reader.read(Numbered(), step, slice(0, reader.rows))["tokens"]
    assert reader.rows == n_rows and whole.shape == (n_rows, length)
    np.testing.assert_array_equal(whole.ravel(), step * 1000 + np.arange(512))
    second = reader.read(Numbered(), step, slice(n_rows // 2, n_rows))["tokens"]
    np.testing.assert_array_equal(second, whole[n_rows // 2 :])


def test_counts_are_those_of_the_rows_that_are_read():
  cfg = smoke()
  at = lambda length: exact_flops(dataclasses.replace(cfg.model, seq_len=length))
  mean = 0.2 * at(16) + 0.3 * at(32) + 0.5 * at(64)
  assert run_flops_per_token(cfg, "exact") == pytest.approx(mean, rel=1e-12)
  assert run_flops_per_token(cfg, "exact", 12) == at(16) < at(64)
  twenty = (12 * at(16) + 8 * at(32)) / 20
  assert run_flops_per_token(cfg, "exact", 20) == pytest.approx(twenty, rel=1e-12)
  plain = smoke(**{"data.length_curriculum": "()"})
  assert run_flops_per_token(cfg, "6ND") == run_flops_per_token(plain, "6ND")
  assert (cfg.train.steps, cfg.train.tokens) == (plain.train.steps, plain.train.tokens)
  plan = make_plan(cfg)
  assert plan.flops["exact"] == pytest.approx(mean * cfg.train.tokens)
  assert "row length  16 up to step 12, 32 up to step 30, 64 up to step 60" in show(plan)
  assert "row_lengths" not in make_plan(plain).to_dict()
  # A budget of FLOPs buys more steps of short rows.
  budget = {"train.steps": "None", "train.flops": "1e10", "train.flops_convention": "exact"}
  short, full = smoke(**budget), smoke(**budget, **{"data.length_curriculum": "()"})
  assert short.train.steps > full.train.steps
  assert short.train.flops == pytest.approx(1e10, rel=0.01)
  clock = Clock(60, 512, lambda step: 512 * step * run_flops_per_token(cfg, "exact", step), 1.0)
  clock.lap(10)
  found = clock.lap(20)
  seconds = 10 * 512 / found["perf/tokens_per_sec"]
  done = 512 * (2 * at(16) + 8 * at(32))
  assert found["perf/mfu"] == pytest.approx(done / seconds, rel=1e-6)


def test_learned_positions_count_the_same_whatever_the_rows():
  cfg, plain = (
    smoke(**{"model.positions": "learned", **more})
    for more in ({}, {"data.length_curriculum": "()"})
  )
  assert run_flops_per_token(cfg, "6ND") == run_flops_per_token(plain, "6ND")


def test_runs_of_other_lengths_share_the_steps_in_which_their_rows_agree():
  steady = {
    "optim.schedule": "constant",
    "optim.warmup_frac": "None",
    "optim.warmup_tokens": "1024",
  }
  short, long = (
    smoke(**steady, **{"train.steps": n, "data.length_curriculum": "16:0.5"}) for n in (40, 60)
  )
  assert shared_steps(short, long) == 20


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"data.length_curriculum": "16"}, "=16: must be LENGTH:UNTIL"),
    ({"data.length_curriculum": "16:x"}, "=16:x: must be LENGTH:UNTIL"),
    ({"data.length_curriculum": "32:0.2,16:0.5"}, "=16:0.5: lengths must grow"),
    ({"data.length_curriculum": "16:0.5,32:0.2"}, "=32:0.2: lengths must grow"),
    ({"data.length_curriculum": "16:1.0"}, "=16:1.0: lengths must grow"),
    ({"data.length_curriculum": "0:0.5"}, "=0:0.5: lengths must grow"),
    ({"data.length_curriculum": "24:0.5"}, "24 must be below model.seq_len=64 and divide it; use 32"),
    ({"data.length_curriculum": "64:0.5"}, "64 must be below model.seq_len=64"),
    ({"model.seq_len": 1}, "model.seq_len=1 has no shorter rows"),
    ({"objective.chunk": 32}, "=16: must be divisible by 32"),
    ({"mesh.sequence": 32, "mesh.replica": 1}, "=16: must be divisible by 32 .mesh.sequence"),
  ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_one_line(changes, words):
  with pytest.raises(ConfigError, match=f"^data.length_curriculum=?.*{words}"):
    smoke(32, **changes)


def test_other_kinds_of_batch_have_rows_that_cannot_be_cut():
  with pytest.raises(ConfigError, match=r"length_curriculum=16:0\.5: is for rows of tokens, not"):
    load_config("configs/bert.py:smoke", {"data.length_curriculum": "16:0.5"})


def test_every_objective_whose_rows_are_tokens_can_have_short_ones():
  """A GAN, which has no objective.chunk, ended with a traceback."""
  gan = {"data.length_curriculum": "7:0.5", "objective.critic_sizes": "2,3"}
  load_config("configs/gan.py:smoke", gan)
  with pytest.raises(
    ConfigError, match=r"^objective.critic_sizes=2,12: 12 tokens are more than the 7"
  ):
    load_config("configs/gan.py:smoke", gan | {"objective.critic_sizes": "2,12"})


@pytest.mark.slow  # five programs
def test_a_run_resumes_bit_equal_across_the_border_of_a_stage(monkeypatch, tmp_path):
  flags = ["--config.data.length_curriculum=16:0.6", "--config.train.steps=10"]
  flags += ["--config.model.width=16", "--config.eval.every_steps=5", "--config.log.every_steps=1"]
  assert_resumes(monkeypatch, tmp_path, SMOKE, *flags)
