"""Hyperparameters as laws of size and budget: `rules=NAME` sets learning rate, batch and more from N and D.

N is the number of non-embedding parameters, D the training tokens, C = 6 N D. A value that was set on the
command line, or by a sweep, stays. Rules of AdamW's decay are for lr * wd * p; where
optim.decay_coupling=independent the value is multiplied by the rate, so that the same is subtracted.

Rules without constants of their own (nanochat, bjorck) scale what the config says, which is taken to be for
20 tokens a parameter. All were found on models of 10M parameters and more: below, they extrapolate.

The constants were compared with public texts that quote or use them (code of OLMo and nanochat, notes on the
papers), not with the papers' own pages. Two were found nowhere and come from memory: power_lines' factor
0.0306 with its unit, sequences of 2,048 tokens, and olmo's limit of D / 5 on the warm-up.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lm.config.errors import ConfigError, check_choice
from lm.config.schema import BUDGETS, Config, flatten
from lm.cost.parameters import run_counts
from lm.data.kinds import KINDS
from lm.models.registry import family_of
from lm.objectives.registry import objective_of
from lm.setup.resolve import counted_flops, counted_params, speed_of

BASE_RATIO = 20.0  # tokens a parameter that a config's own values are for


class Scale(NamedTuple):
  """What a rule sees: N, D, and the config's own values. Batches are in tokens."""

  n: float
  d: float
  batch: float
  lr: float
  decay: float  # AdamW's: subtracted as lr * decay * p


class Rule(NamedTuple):
  """`values` gives some of lr, batch (tokens), decay (AdamW's), b2, warmup_tokens."""

  source: str
  values: Callable[[Scale], Mapping[str, float]]


def _step_law(s: Scale) -> dict[str, float]:
  """lr = 1.79 N^-0.713 D^0.307, batch = 0.58 D^0.571."""
  return {"lr": 1.79 * s.n**-0.713 * s.d**0.307, "batch": 0.58 * s.d**0.571}


def _power_lines(s: Scale) -> dict[str, float]:
  """Batch = 0.0306 D^0.383 sequences of 2,048; decay = batch / (tau lr D), tau = 1.084 (D / N)^-0.527."""
  batch = 2048 * 0.0306 * s.d**0.383
  tau = 1.084 * (s.d / s.n) ** -0.527
  return {"batch": batch, "decay": batch / (tau * s.lr * s.d)}


def _deepseek(s: Scale) -> dict[str, float]:
  """lr = 0.3118 C^-0.125, batch = 0.292 C^0.3271, C = 6 N D (the paper: M D, which counts attention too)."""
  c = 6 * s.n * s.d
  return {"lr": 0.3118 * c**-0.125, "batch": 0.292 * c**0.3271, "b2": 0.95}


def _bjorck(s: Scale) -> dict[str, float]:
  """lr = the config's (D / 20 N)^-0.32: the joint fit of 760M and more; single sizes had up to 0.7."""
  return {"lr": s.lr * (s.d / (BASE_RATIO * s.n)) ** -0.32}


def _nanochat(s: Scale) -> dict[str, float]:
  """r = D / 20 N: batch r^0.383, lr with the root of the batch, decay that keeps batch / (lr decay D).

  nanochat has these exponents, but r = D / D_ref with D_ref of its 12-layer model at the same tokens a
  parameter: there r grows with size, here with tokens a parameter alone, as each size has a batch of its own.
  """
  r = s.d / (BASE_RATIO * s.n)
  batch = r**0.383
  lr = math.sqrt(batch)
  return {"batch": s.batch * batch, "lr": s.lr * lr, "decay": s.decay * batch / (lr * r)}


def _olmo(s: Scale) -> dict[str, float]:
  """lr = 0.0047 (N / 108M)^-1/3, batch = 160 (N / 108M)^2/3 x 2,048 tokens; warm-up of N tokens, or D / 5.

  Some versions of OLMo's ladder divide lr by 4 where sequences have 4,096 tokens; here it is one for all.
  """
  size = s.n / 108e6
  return {
    "lr": 0.0047 * size ** (-1 / 3), "batch": 2048 * 160 * size ** (2 / 3), "b2": 0.95,
    "warmup_tokens": min(s.n, 0.2 * s.d),
  }  # fmt: skip


RULES: dict[str, Rule] = {
  "step_law": Rule("Li et al. 2025, arXiv:2503.04715, eq. 1", _step_law),
  "power_lines": Rule("Bergsma et al. 2025, arXiv:2505.13738, §3 and §4", _power_lines),
  "deepseek": Rule("DeepSeek-AI 2024, arXiv:2401.02954, eq. 1", _deepseek),
  "bjorck": Rule("Bjorck et al. 2024, arXiv:2409.19913, §4", _bjorck),
  "nanochat": Rule(
    "Karpathy 2026, nanochat/scripts/base_train.py: the config's batch, D^0.383", _nanochat
  ),
  "olmo": Rule("Porian et al. 2024, arXiv:2406.19146, as OLMo's ladder has it", _olmo),
}

KEYS = {
  "lr": "optim.peak_lr", "batch": "train.batch_size", "decay": "optim.weight_decay",
  "b2": "optim.b2", "warmup_tokens": "optim.warmup_tokens",
}  # fmt: skip


def apply(cfg: Config, given: Mapping[str, object]) -> Config:
  """The checked config with what its rule says, except for the keys in `given`.

  Raises:
    ConfigError: an unknown rule, or a budget whose tokens are not known before the batch is.
  """
  if cfg.rules is None:
    return cfg
  check_choice("rules", cfg.rules, RULES)
  rule = RULES[cfg.rules]
  found = rule.values(_scale(cfg, rule, given))
  values: dict[str, Any] = {
    KEYS[name]: value for name, value in found.items() if KEYS[name] not in given
  }
  if "train.batch_size" in values:
    values["train.batch_size"] = _rows(values["train.batch_size"] / _units_per_row(cfg), cfg)
  if "optim.weight_decay" in values and cfg.optim.decay_coupling == "independent":
    values["optim.weight_decay"] *= values.get("optim.peak_lr", cfg.optim.peak_lr)
  if "optim.warmup_tokens" in values:
    if "optim.warmup_frac" in given:
      del values["optim.warmup_tokens"]
    else:
      values |= {
        "optim.warmup_tokens": int(values["optim.warmup_tokens"]),
        "optim.warmup_frac": None,
      }
  values = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}
  optim = {k.partition(".")[2]: v for k, v in values.items() if k.startswith("optim.")}
  train = {k.partition(".")[2]: v for k, v in values.items() if k.startswith("train.")}
  return dataclasses.replace(
    cfg,
    optim=dataclasses.replace(cfg.optim, **optim),
    train=dataclasses.replace(cfg.train, **train),
  )


def words(cfg: Config) -> str | None:
  """What a plan says of the rule of a resolved config; None without one."""
  if cfg.rules is None:
    return None
  warmup = (
    "" if cfg.optim.warmup_tokens is None else f", warm-up {cfg.optim.warmup_tokens:,} tokens"
  )
  return (
    f"{cfg.rules} ({RULES[cfg.rules].source}): peak_lr {cfg.optim.peak_lr:g}, batch "
    f"{cfg.train.batch_size} x {_units_per_row(cfg):g}, weight_decay {cfg.optim.weight_decay:g}, "
    f"b2 {cfg.optim.b2:g}{warmup}"
  )


def _scale(cfg: Config, rule: Rule, given: Mapping[str, object]) -> Scale:
  kind = KINDS[objective_of(cfg.objective).batches]
  vocab = cfg.model.vocab_size or kind.vocab_size(cfg)
  known = vocab if vocab is not None else 257  # embeddings do not count in N
  sized = dataclasses.replace(cfg, model=family_of(cfg.model).resolve(cfg.model, known))
  n_params, train = run_counts(sized).non_embedding, cfg.train
  if n_params == 0:
    raise ConfigError(
      f"rules={cfg.rules}: goes by parameters beside the embedding, and model.family={cfg.model.family} has "
      "none; use None"
    )
  batch = float(train.batch_size * _units_per_row(cfg))
  if train.tokens is not None:
    tokens = float(train.tokens)
  elif train.seconds is not None:
    tokens = train.seconds * speed_of(cfg)
  elif train.steps is not None:
    tried = rule.values(Scale(1e8, 1e9, batch, 1e-3, 0.1))
    if "train.batch_size" not in given and "batch" in tried:
      raise ConfigError(
        f"train.steps={train.steps}: with rules={cfg.rules}, which sets the batch, must be a budget in "
        "tokens; use train.tokens, or set train.batch_size"
      )
    tokens = train.steps * batch
  elif vocab is None:
    key = next(k for k in BUDGETS if flatten(cfg)[k] is not None)
    raise ConfigError(
      f"{key}={flatten(cfg)[key]}: with rules={cfg.rules} the tokens must be known before the data is "
      "read; use train.tokens"
    )
  elif train.tokens_per_param is not None:
    tokens = train.tokens_per_param * counted_params(sized)
  else:
    assert train.flops is not None  # one budget is set
    tokens = train.flops / counted_flops(sized)
  decay = cfg.optim.weight_decay
  if cfg.optim.decay_coupling == "independent":
    decay = decay / cfg.optim.peak_lr if cfg.optim.peak_lr else 0.0
  return Scale(float(n_params), tokens, batch, cfg.optim.peak_lr, decay)


def _units_per_row(cfg: Config) -> float:
  """Tokens of a full row, of source and target together where it has both; padding is not known yet."""
  model = family_of(cfg.model).resolve(cfg.model, cfg.model.vocab_size or 257)
  sized = dataclasses.replace(cfg, model=model)
  return KINDS[objective_of(cfg.objective).batches].units_per_row(sized)


def _rows(rows: float, cfg: Config) -> int:
  """Whole sequences: a multiple of 8 from 8 on, and of the micro-batches."""
  step = math.lcm(8 if rows >= 8 else 1, cfg.train.accumulate)
  return max(step, round(rows / step) * step)
