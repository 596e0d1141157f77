"""Rules of hyperparameters: their formulas, what was set stays, and the values go into the run."""

import dataclasses
import json

import pytest

from lm.config.errors import ConfigError
from lm.config.identity import identity
from lm.plan.run_plan import make_plan, show
from lm.setup import rules
from lm.setup.load import from_json, load_config
from lm.setup.resolve import resolve

LADDER = "configs/ladder.py:10m"


def load(spec=LADDER, **overrides):
  return load_config(spec, {k.replace("__", "."): v for k, v in overrides.items()})


def n_params(cfg):
  from lm.cost.parameters import run_counts

  return run_counts(resolve(dataclasses.replace(cfg, rules=None), 2048, 1)).non_embedding


def test_the_step_law_at_its_papers_scale():
  """1B parameters, 100B tokens: lr 1.79 1e9^-.713 1e11^.307 = 1.65e-3, batch .58 1e11^.571 = 1.1M tokens."""
  found = rules.RULES["step_law"].values(rules.Scale(1e9, 1e11, 0, 0, 0))
  assert found["lr"] == pytest.approx(1.635e-3, rel=0.01)
  assert found["batch"] == pytest.approx(1.106e6, rel=0.01)


def test_deepseeks_law_gives_what_deepseek_used():
  """7B on 2T tokens: the paper trains with 4.2e-4 and 2,304 sequences of 4,096 (table 2)."""
  found = rules.RULES["deepseek"].values(rules.Scale(6.9e9, 2e12, 0, 0, 0))
  assert found["lr"] == pytest.approx(4.2e-4, rel=0.2)
  assert found["batch"] == pytest.approx(2304 * 4096, rel=0.25)


def test_power_lines_keeps_its_timescale():
  s = rules.Scale(1e8, 2e9, 0, 1e-3, 0)
  found = rules.RULES["power_lines"].values(s)
  tau = found["batch"] / (s.lr * found["decay"] * s.d)
  assert tau == pytest.approx(1.084 * 20**-0.527)


def test_nanochat_keeps_the_timescale_in_epochs_and_bjorck_falls():
  base = rules.Scale(1e8, 2e9, 1e5, 1e-3, 0.1)
  longer = base._replace(d=8e9)
  found = rules.RULES["nanochat"].values(longer)
  before, after = (b / (lr * wd * d) for b, lr, wd, d in (
    (1e5, 1e-3, 0.1, 2e9), (found["batch"], found["lr"], found["decay"], 8e9)
  ))  # fmt: skip
  assert after == pytest.approx(before) and found["batch"] == pytest.approx(1e5 * 4**0.383)
  assert rules.RULES["nanochat"].values(base)["lr"] == pytest.approx(1e-3)
  assert rules.RULES["bjorck"].values(longer)["lr"] == pytest.approx(1e-3 * 4**-0.32)


@pytest.mark.parametrize("name", list(rules.RULES))
def test_a_rule_sets_its_keys_and_leaves_what_was_set(name):
  plain, ruled = load(), load(rules=name)
  changed = {k for k, v in rules.flatten(ruled).items() if v != rules.flatten(plain)[k]} - {"rules"}
  assert changed <= {*rules.KEYS.values(), "optim.warmup_frac"}
  assert changed or name in ("bjorck", "nanochat")  # at 20 tokens a parameter they change little
  kept = load(rules=name, optim__peak_lr=1.25e-3, train__batch_size=24)
  assert kept.optim.peak_lr == 1.25e-3 and kept.train.batch_size == 24


def test_the_values_are_in_the_plan_and_in_the_saved_config():
  cfg = load("configs/ladder.py:1m@20e6")
  assert cfg.rules == "step_law" and cfg.train.tokens == 20_000_000
  expected = 1.79 * n_params(cfg) ** -0.713 * 2e7**0.307
  assert cfg.optim.peak_lr == pytest.approx(expected, rel=1e-3)
  made = resolve(cfg, 2048, 1)
  assert "rules       step_law (Li et al. 2025" in show(make_plan(made))
  assert f"peak_lr {cfg.optim.peak_lr:g}" in show(make_plan(made))
  assert from_json(json.loads(json.dumps(dataclasses.asdict(made)))) == made
  by_hand = load(
    "configs/ladder.py:1m", train__tokens=20_000_000, train__tokens_per_param=None,
    optim__peak_lr=cfg.optim.peak_lr, train__batch_size=cfg.train.batch_size,
  )  # fmt: skip
  assert identity(resolve(by_hand, 2048, 1)) == identity(made)  # the same run, however it was said


def test_a_batch_of_pairs_counts_sources_and_targets():
  sizes = {
    "model__seq_len": 64,
    "model__target_len": 64,
    "train__tokens": 10**8,
    "train__steps": None,
  }
  found = load(
    "configs/transformer.py:smoke", rules="step_law", train__tokens_per_param=None, **sizes
  )
  assert found.train.batch_size == pytest.approx(0.58 * 1e8**0.571 / (64 + 64), abs=8)


def test_weight_decay_is_what_the_update_subtracts():
  """Independent decay is the coupled one times the rate."""
  coupled = load(rules="power_lines", optim__decay_coupling="coupled")
  alone = load(rules="power_lines", optim__decay_coupling="independent")
  assert alone.optim.weight_decay == pytest.approx(
    coupled.optim.weight_decay * coupled.optim.peak_lr, rel=1e-3
  )


def test_what_a_rule_cannot_do_is_refused():
  with pytest.raises(ConfigError, match=r"rules=steplaw: must be one of .*did you mean step_law"):
    load(rules="steplaw")
  with pytest.raises(
    ConfigError, match=r"train.steps=10: with rules=step_law, which sets the batch"
  ):
    load(rules="step_law", train__tokens_per_param=None, train__steps=10)
  assert load(rules="bjorck", train__tokens_per_param=None, train__steps=10).optim.peak_lr
  with pytest.raises(ConfigError, match=r"lots is no number of tokens"):
    load("configs/ladder.py:1m@lots")


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"train__count": "non_embedding"}, r"^train.count=non_embedding: .*word_vectors has no such .* total$"),
    ({"rules": "step_law"}, r"^rules=step_law: .*word_vectors has none; use None$"),
    (
      {"train__flops": 1e9, "train__flops_convention": "6ND_nonembedding"},
      r"^train.flops_convention=6ND_nonembedding: counts no FLOPs of .*word_vectors.*; use exact$",
    ),
    (
      {"train__tokens_per_param": 1.0, "train__count": "non_embedding"},
      r"^train.count=non_embedding: ",
    ),
  ],
)  # fmt: skip
def test_a_model_that_is_an_embedding_alone_has_no_other_parameters_to_count(changes, message):
  """A division by zero."""
  budget = {"train__steps": None, "train__tokens": None} if len(changes) > 1 else {}
  with pytest.raises(ConfigError, match=message):
    resolve(load("configs/word2vec.py:smoke", **budget, **changes), 300, 1)
