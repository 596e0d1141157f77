"""Training FLOPs of one token under each convention, and the utilisation they give.

A token is the unit of the objective's batches (lm.data.kinds.Kind.unit).
"""

import dataclasses
from collections.abc import Callable

from lm.config.errors import ConfigError
from lm.config.schema import Config, ModelConfig
from lm.cost.parameters import param_counts, run_counts
from lm.data import curriculum
from lm.models.registry import family_of
from lm.objectives.registry import objective_of


def flops_per_token(cfg: ModelConfig, convention: str) -> float:
  """Training FLOPs for one token of a full row, under a key of CONVENTIONS.

  Raises:
    ConfigError: unknown convention.
  """
  if convention not in CONVENTIONS:
    raise ConfigError(
      f"train.flops_convention={convention}: unknown convention; "
      f"use one of {', '.join(CONVENTIONS)}"
    )
  return float(CONVENTIONS[convention](cfg))


def run_flops_per_token(cfg: Config, convention: str, step: int | None = None) -> float:
  """`flops_per_token` of everything that a config trains: the model and the objective's own.

  Where rows grow (data.length_curriculum) it is the mean over the run's tokens, or over those of its first
  `step` updates: attention costs less in short rows.
  """
  if convention in OF_ANY_LENGTH or not cfg.data.length_curriculum:
    return _of_full_rows(cfg, convention)
  total = 0.0
  for length, share in curriculum.shares(cfg, step).items():
    model = dataclasses.replace(cfg.model, seq_len=length)
    total += share * _of_full_rows(dataclasses.replace(cfg, model=model), convention)
  return total


def _of_full_rows(cfg: Config, convention: str) -> float:
  objective = objective_of(cfg.objective)
  if convention in ("exact", "exact_causal") and objective.exact_flops is not None:
    return float(objective.exact_flops(cfg, convention == "exact_causal"))
  more = run_counts(cfg).active - param_counts(cfg.model).active
  return flops_per_token(cfg.model, convention) + 6.0 * more


def exact_flops(model: ModelConfig, causal: bool = False) -> float:
  """Matrix product by matrix product, as the family counts them (lm.models.family.Family.exact_flops)."""
  return family_of(model).exact_flops(model, causal)


def _own(name: str) -> Callable[[ModelConfig], float]:
  """A convention that only some families have."""

  def flops(model: ModelConfig) -> float:
    conventions = family_of(model).conventions
    if name not in conventions:
      raise ConfigError(
        f"train.flops_convention={name}: is not defined for model.family={model.family}; use 6ND"
      )
    return conventions[name](model)

  return flops


CONVENTIONS: dict[str, Callable[[ModelConfig], float]] = {
  "6ND": lambda model: 6 * param_counts(model).active,
  "6ND_nonembedding": lambda model: (
    6 * (param_counts(model).active - param_counts(model).embedding)
  ),
  "exact": exact_flops,  # the whole attention square, as PaLM's MFU counts (arXiv:2204.02311 §B)
  "exact_causal": lambda model: exact_flops(model, causal=True),  # the keys that are seen alone
  "kaplan": _own("kaplan"),
  "chinchilla": _own("chinchilla"),
}
OF_ANY_LENGTH = ("6ND", "6ND_nonembedding")  # the same for tokens of rows of any length
SHOWN = ("6ND", "6ND_nonembedding", "exact")  # stored with every run


def xla_flops(compiled) -> float:
  """XLA's own count for a program, `jax.jit(f).lower(...).compile()`, over all its tokens.

  It counts elementwise operations too, counts the body of a scan once, whatever its length, and
  sees nothing inside library calls such as cuDNN's attention: count models with
  scan_layers=False.
  """
  return float(compiled.cost_analysis()["flops"])


def mfu(flops: float, seconds: float, peak: float) -> float:
  """Model FLOPs utilisation, flops / (seconds * peak). Chowdhery et al. 2022, arXiv:2204.02311.

  Args:
    flops: of the work done, under a convention that is named wherever the number is shown.
    seconds: wall-clock time it took.
    peak: FLOP/s of all devices together (lm.devices.chips.peak_flops).
  """
  return flops / (seconds * peak)
