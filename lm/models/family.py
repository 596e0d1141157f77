"""What a model family is: one file in lm/models/ and one row of lm.models.registry.FAMILIES.

A family says everything that the rest of the code must know of it: its module and what that reads, its
section of the config and the rules there, every weight with its kind, what a token costs, and how it is
split over a mesh. No other file knows a family by name.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from lm.config.schema import Config, ModelConfig

WEIGHT_KINDS = ("embed", "hidden", "readout", "vector")


class Input(NamedTuple):
  """One array that a module reads.

  `axes` are logical names (lm.devices.sharding.ACTIVATION_RULES), one an axis; the first is "batch".
  """

  dtype: str
  axes: tuple[str, ...]


class Weight(NamedTuple):
  """One weight, as a row of the list that all counts follow from."""

  name: str  # path in the parameters; of stacked layers, the one with all of them
  kind: str  # one of WEIGHT_KINDS: how its size, rate and decay scale
  shape: tuple[int, ...]  # of one layer: [in, out], [entries, width] or [size]
  copies: int = 1  # layers that have one, times experts
  used: int = 1  # copies that one token meets

  @property
  def size(self) -> int:
    return self.copies * math.prod(self.shape)


def no_check(cfg: Config) -> None:
  """Nothing beyond the rules of the section's fields."""


def fit_vocabulary(section: ModelConfig, vocab_size: int) -> ModelConfig:
  """The section with the tokenizer's vocabulary where it names none."""
  return dataclasses.replace(section, vocab_size=section.vocab_size or vocab_size)


@dataclasses.dataclass(frozen=True)
class Family:
  """The row of a family.

  Attributes:
    section: dataclass of its `model.*` keys, a subclass of ModelConfig whose fields carry their rules.
    module: section -> Linen module. Its `__call__` reads arrays named as in `inputs`.
    inputs: what `__call__` reads, in its order, to draw parameters; its parameters carry logical axes
      (lm.devices.sharding.PARAM_RULES).
    weights: resolved section -> every weight.
    exact_flops: (resolved section, causal) -> training FLOPs of one token, matrix product by matrix
      product; `causal` counts only the attention that is seen.
    activation_floats: resolved config -> numbers that the forward pass keeps on each device for the
      backward pass, and the working memory of the largest step.
    check: raises ConfigError for a section that makes no sense.
    resolve: (section, entries of the tokenizer) -> the section with every derived field set.
    splits: resolved section -> {mesh axis: {"model.key": size}}: what that axis must divide.
    conventions: further ways to count FLOPs of a token, by name.
    init_cache: (section, batch, length, dtype=None) -> empty cache, for families that generate.
    between: (section, parameters, two texts as ids, how many, length, tokenizer) -> ids of texts on the way
      from one to the other, for families with a vector for a text.
    reads_source: whether generation reads its prompt with an encoder and begins a text of its own; its
      module then has `begin`.
    for_stack: (section, data.cross_documents) -> the section to use where runs are stacked by vmap.
  """

  section: type[ModelConfig]
  module: Callable[[Any], nn.Module]
  inputs: Mapping[str, Input]
  weights: Callable[[Any], Sequence[Weight]]
  exact_flops: Callable[[Any, bool], float]
  activation_floats: Callable[[Config], float]
  check: Callable[[Config], None] = no_check
  resolve: Callable[[Any, int], Any] = fit_vocabulary
  splits: Callable[[Any], Mapping[str, Mapping[str, int]]] = lambda section: {}
  conventions: Mapping[str, Callable[[Any], float]] = dataclasses.field(default_factory=dict)
  init_cache: Callable | None = None
  between: Callable | None = None
  reads_source: bool = False
  for_stack: Callable[[Any, bool], Any] = lambda section, cross_documents: section
