"""benchmarks/gan.py: what its runs are told, and a small round of it."""

import json
import pathlib

import pytest

from benchmarks import gan
from lm.optim.chain import read_groups
from lm.runs import rundir
from lm.setup.load import load_config


def test_the_generator_plays_at_another_rate_and_the_critic_at_its_own():
  cfg = load_config("configs/gan.py:seqgan")
  told = gan.from_likelihood(cfg, 1e-4, pathlib.Path("before"))
  assert str(told.pop("train.init_from")) == "before"
  rest = load_config("configs/gan.py:seqgan", told)
  rate = lambda c: c.optim.peak_lr * read_groups(c.optim.groups)[0].lr
  assert rest.optim.peak_lr == 1e-4 < cfg.optim.peak_lr
  assert rate(rest) == pytest.approx(rate(cfg))
  assert rest.train.steps + cfg.objective.likelihood_steps == cfg.train.steps
  assert rest.objective.likelihood_steps == 0


@pytest.mark.slow
def test_each_rate_has_a_gan_and_as_much_likelihood_from_the_same_start(tmp_path, capsys):
  words = [
    "--size",
    "smoke",
    "--rates",
    "1e-3",
    "--samples",
    "40",
    "--out",
    str(tmp_path / "o.jsonl"),
  ]
  assert gan.main([*words, "--root", str(tmp_path), "--set", "eval.every_steps=10"]) == 0
  rows = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
  assert {row["kind"]: row["steps"] for row in rows} == {
    "before": 20, "gan-1e-3": 50, "likelihood-1e-3": 50, "likelihood": 50
  }  # fmt: skip
  assert all(row["held_out"] > 0 and len(row["oracle_nll"]) == 4 for row in rows)
  for kind, first in (("gan", 0), ("likelihood", 30)):
    cfg = rundir.read_config(tmp_path / f"smoke-{kind}-1e-3")
    assert cfg.train.init_from == str(tmp_path / "smoke-before")
    assert (cfg.train.steps, cfg.objective.likelihood_steps) == (30, first)
  assert "real sentences 2." in capsys.readouterr().out
