"""The rules a config must meet, checked before anything is read or compiled.

`check` looks at the config alone; what depends on devices or the tokenizer is checked by `lm.setup.resolve`.
"""

import dataclasses
import math
import re

from lm.config.errors import ConfigError, check_choice, check_divisible, check_within
from lm.config.schema import BUDGETS, Config, flatten, rules_of
from lm.data import curriculum, sources, tokenizers
from lm.data.augment import refuse_augment
from lm.data.kinds import KINDS
from lm.data.sources.readers import fields
from lm.models.parameterization import TABLE, scales_depth
from lm.models.registry import family_of
from lm.objectives.registry import objective_of
from lm.optim.chain import read_groups
from lm.optim.checks import check_optimizer
from lm.optim.directions import OPTIMIZERS
from lm.optim.pruning import check_pruning
from lm.optim.schedules import SCHEDULES

SET_NAME = re.compile(r"[\w.-]+")


def check(cfg: Config) -> None:
  """Raises ConfigError for the first rule that does not hold."""
  values = flatten(cfg)
  for key, rule in rules_of(cfg).items():
    if values[key] is None:
      continue
    if rule.within:
      check_within(key, values[key], rule.within, rule.example)
    if rule.choices:
      value = values[key]
      words = value if isinstance(value, tuple) else (value,)
      for word in words:
        check_choice(key, word, rule.choices)
  check_choice("data.tokenizer", cfg.data.tokenizer, tokenizers.CLASSES)
  check_choice("optim.name", cfg.optim.name, OPTIMIZERS)
  check_choice("optim.schedule", cfg.optim.schedule, SCHEDULES)
  check_choice("model.parameterization", cfg.model.parameterization, TABLE)
  if scales_depth(cfg.model.parameterization) and not hasattr(cfg.model, "base_depth"):
    raise ConfigError(
      f"model.parameterization={cfg.model.parameterization}: divides residual branches, which "
      f"model.family={cfg.model.family} does not let it; use mup or model.family=decoder"
    )
  _check_data(cfg)
  family_of(cfg.model).check(cfg)
  objective = objective_of(cfg.objective)
  check_choice("objective.batches", objective.batches, KINDS)
  memory = getattr(cfg.model, "memory", None)
  if memory is not None and "advance" not in objective.needs:
    raise ConfigError(
      f"model.memory={memory}: objective.name={cfg.objective.name} carries nothing from a row to the next; "
      "use truncated_bptt"
    )
  objective.check(cfg)
  KINDS[objective.batches].check(cfg)
  if not KINDS[objective.batches].labelled:
    refuse_augment(cfg)
  _check_training(cfg)
  _check_mesh(cfg)


def _check_data(cfg: Config) -> None:
  data = cfg.data
  if not data.sources:
    raise ConfigError("data.sources=(): must name at least one source; use docstrings")
  for spec in data.sources:
    sources.parse_spec(spec)
    if data.sources.count(spec) > 1:
      raise ConfigError(f"data.sources={spec}: is named twice; name it once and use data.weights")
  if data.weights and len(data.weights) != len(data.sources):
    raise ConfigError(
      f"data.weights={_listed(data.weights)}: must have one weight per source "
      f"({len(data.sources)}); give {len(data.sources)} or none"
    )
  kind = objective_of(cfg.objective).batches
  if data.unique_tokens is not None and kind != "tokens":
    raise ConfigError(
      f"data.unique_tokens={data.unique_tokens}: is for rows of tokens, not for {kind}; use None"
    )
  curriculum.check(cfg, kind)
  if any(not 0 < w < math.inf for w in data.weights):
    raise ConfigError(
      f"data.weights={_listed(data.weights)}: every weight must be positive; drop the source instead"
    )
  if len(data.tfds_splits) != 2:
    raise ConfigError(
      f"data.tfds_splits={_listed(data.tfds_splits)}: must name two splits, training and validation; "
      "use train,validation"
    )
  if data.max_chars is not None and data.max_chars < data.min_chars:
    raise ConfigError(
      f"data.max_chars={data.max_chars}: must not be below data.min_chars={data.min_chars}; "
      "raise it or use None"
    )
  for key in ("text_field", "source_field", "target_field"):
    fields.parse(getattr(data, key), key)
  tokenizers.check(data)


def _check_training(cfg: Config) -> None:
  values = flatten(cfg)
  budgets = [key for key in BUDGETS if values[key] is not None]
  if len(budgets) != 1:
    shown = ", ".join(f"{k}={values[k]}" for k in budgets)
    first = budgets[0] if budgets else "train.steps"
    raise ConfigError(
      f"{first}={values[first]}: exactly one budget must be set, of {', '.join(BUDGETS)}"
      + (
        f" (now {shown}); drop one with --config.{budgets[-1]}=None"
        if budgets
        else "; set --config.train.steps=1000"
      )
    )
  if cfg.train.tokens_per_sec is not None and cfg.train.seconds is None:
    raise ConfigError(
      f"train.tokens_per_sec={cfg.train.tokens_per_sec}: is read with train.seconds only; use None"
    )
  if (cfg.optim.warmup_frac is None) == (cfg.optim.warmup_tokens is None):
    raise ConfigError(
      f"optim.warmup_tokens={cfg.optim.warmup_tokens}: exactly one of optim.warmup_frac and "
      f"optim.warmup_tokens must be set (warmup_frac={cfg.optim.warmup_frac}); set the other to None"
    )
  if cfg.optim.schedule == "exponential" and cfg.optim.final_lr_frac == 0:
    raise ConfigError("optim.final_lr_frac=0.0: an exponential schedule must end above 0; use 0.01")
  check_divisible(
    "train.batch_size", cfg.train.batch_size, cfg.train.accumulate, "train.accumulate"
  )
  if cfg.train.noise_scale and cfg.train.accumulate < 2:
    raise ConfigError(
      f"train.noise_scale=True: compares micro-batches, of which there is {cfg.train.accumulate}; set "
      "--config.train.accumulate=2"
    )
  read_groups(cfg.optim.groups)
  check_pruning(cfg)
  check_optimizer(cfg)
  if cfg.train.init_depth and not cfg.train.init_from:
    raise ConfigError(
      f"train.init_depth={cfg.train.init_depth}: needs train.init_from, whose layers it repeats; use None"
    )
  _check_eval_sets(cfg)


def _check_eval_sets(cfg: Config) -> None:
  names = ["val"]
  for entry in cfg.eval.sets:
    name, equals, source = entry.partition("=")
    if not equals or not name or not source:
      raise ConfigError(
        f"eval.sets={entry}: must be name=source; for example books=text:books/*.txt"
      )
    if not SET_NAME.fullmatch(name):
      raise ConfigError(
        f"eval.sets={entry}: the name {name} may hold letters, digits and _ . - only; rename it"
      )
    if name in names:
      raise ConfigError(f"eval.sets={entry}: the name {name} is taken; choose another")
    sources.parse_spec(source, "eval.sets")
    names.append(name)
  scores = objective_of(cfg.objective).eval_metrics
  watched = [what for what, metric in scores.items() if metric.better]
  metrics = [f"eval/{name}/{what}" for name in names for what in watched]
  check_choice("eval.stop_metric", cfg.eval.stop_metric, metrics)


def _check_mesh(cfg: Config) -> None:
  sizes = dataclasses.asdict(cfg.mesh)
  for name, size in sizes.items():
    if size != -1 and size < 1:
      raise ConfigError(f"mesh.{name}={size}: must be at least 1, or -1 for the rest; use 1")
  rest = [name for name, size in sizes.items() if size == -1]
  if len(rest) > 1:
    raise ConfigError(f"mesh.{rest[1]}=-1: only one axis can take the rest; mesh.{rest[0]} does")


def _listed(values) -> str:
  return ",".join(str(v) for v in values)
