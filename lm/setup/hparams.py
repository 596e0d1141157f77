"""The traced inputs of a resolved config, and which configs can share a program."""

import typing
from collections.abc import Sequence

import numpy as np

from lm.config.errors import ConfigError
from lm.config.hparams import Hparams
from lm.config.identity import identity_fields
from lm.config.schema import Config, flatten, rules_of
from lm.setup.resolve import schedule_steps


def make_hparams(cfg: Config) -> Hparams:
  """The traced inputs of a resolved config: its traced keys, and the steps of its schedule."""
  values = flatten(cfg)
  found = {}
  for key, rule in rules_of(cfg).items():
    if rule.traced:
      value = rule.off if values[key] is None else values[key]
      name = key.rpartition(".")[2]
      if name in found:
        raise ConfigError(f"{key}={value}: another traced key ends in {name} too; rename one")
      found[name] = np.int32(value) if _is_integer(cfg, key) else np.float32(value)
  steps, warmup, decay = schedule_steps(cfg)
  return Hparams(
    **found,
    total_steps=np.int32(steps),
    warmup_steps=np.int32(warmup),
    decay_steps=np.int32(decay),
  )


def hparams_zeros(cfg: Config) -> Hparams:
  """Scalars of the right names and dtypes, for tracing."""
  return make_hparams(cfg).map(np.zeros_like)


def varying_keys(cfg: Config) -> list[str]:
  """The keys in which stacked runs may differ."""
  return [key for key, rule in rules_of(cfg).items() if rule.varies]


def check_stack(cfgs: Sequence[Config]) -> None:
  """ConfigError unless the runs share one program: they may differ in traced values only."""
  first, free = identity_fields(cfgs[0]), varying_keys(cfgs[0])
  for cfg in cfgs[1:]:
    for key, value in identity_fields(cfg).items():
      if value != first.get(key) and key not in free:
        raise ConfigError(
          f"{key}={value}: stacked runs must agree here (another has {first.get(key)}); only "
          f"{', '.join(free)} may differ"
        )


def _is_integer(cfg: Config, key: str) -> bool:
  section, _, name = key.rpartition(".")
  owner = type(getattr(cfg, section)) if section else type(cfg)
  return typing.get_type_hints(owner)[name] is int
