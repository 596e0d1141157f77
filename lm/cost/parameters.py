"""How many parameters a model has: in all, without embeddings, met by one token."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from lm.config.schema import Config, ModelConfig
from lm.models.family import Weight
from lm.models.registry import family_of
from lm.objectives.registry import objective_of


class ParamCounts(NamedTuple):
  total: int
  non_embedding: int  # total less embedding: Kaplan et al. 2020's N
  embedding: int  # token and position tables and, where it is not tied, the output head
  active: int  # that one token meets: all but the experts that it is not sent to


def weights(model: ModelConfig) -> Sequence[Weight]:
  """Every weight of a resolved section's model."""
  return family_of(model).weights(model)


def run_weights(cfg: Config) -> list[Weight]:
  """Every weight of a resolved config: the model's and the objective's own."""
  return [*weights(cfg.model), *objective_of(cfg.objective).weights(cfg)]


def param_counts(model: ModelConfig) -> ParamCounts:
  """Parameters of a model, equal to the sizes of its leaves."""
  return count(weights(model))


def run_counts(cfg: Config) -> ParamCounts:
  """Parameters of everything that a resolved config trains."""
  return count(run_weights(cfg))


def count(found: Sequence[Weight]) -> ParamCounts:
  """The counts of a list of weights."""
  total = sum(w.size for w in found)
  embedding = sum(w.size for w in found if w.kind in ("embed", "readout"))
  active = total - sum((w.copies - w.used) * math.prod(w.shape) for w in found)
  return ParamCounts(total, total - embedding, embedding, active)
