"""Vectors of words: a table that is looked up, and one of contexts that it is compared with.

A word's vector is its row of `embed/embedding`, the name that language models give their own embedding, so
they can start from these (train.init_from); with `sum_tables` it is read as the sum of both rows (Pennington
et al. 2014, "GloVe", §4.2). What the tables are trained for, the objective says: negative_sampling or glove.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config, ModelConfig, field
from lm.models.family import Family, Input, Weight
from lm.models.parameterization import multiplier


@dataclasses.dataclass(frozen=True)
class WordVectorsConfig(ModelConfig):
  biases: bool = field()  # a number for each word beside its vector, and for each context (GloVe)
  zero_contexts: bool = field()  # contexts start at 0 (word2vec); else drawn as words are (GloVe)
  sum_tables: bool = field()  # a word's vector is the sum of its two rows, not the first alone


class Table(nn.Module):
  """Rows [V, D] called `embedding`, uniform in +-1/(2 D) or 0, and a `bias` [V] if asked; float32."""

  cfg: WordVectorsConfig
  zero: bool

  @nn.compact
  def __call__(self, words: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """(rows [..., D], their biases [...] or None) of words [...]."""
    cfg = self.cfg
    ratio = cfg.width / cfg.base_width
    bound = 0.5 / cfg.base_width * multiplier(cfg.parameterization, "embed", "init", ratio)
    if cfg.parameterization == "standard":
      bound = 0.5 / cfg.width

    def draw(key, shape, dtype=jnp.float32):
      return jax.random.uniform(key, shape, dtype, -bound, bound)

    init = nn.initializers.zeros if self.zero else draw
    shape = (cfg.vocab_size, cfg.width)
    rows: Any = self.param(
      "embedding", nn.with_logical_partitioning(init, ("vocab", "embed")), shape
    )
    found = jnp.take(rows, words, axis=0, mode="fill")
    if not cfg.biases:
      return found, None
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
    bias: Any = self.param("bias", zeros, shape[:1])
    return found, jnp.take(bias, words, axis=0, mode="fill")


class WordVectors(nn.Module):
  """Words to their rows of the two tables."""

  cfg: WordVectorsConfig

  def setup(self):
    self.embed = Table(self.cfg, False)
    self.context = Table(self.cfg, self.cfg.zero_contexts)

  def __call__(self, words_BL: jax.Array):
    """(rows [B, L, D], biases or None) of either table."""
    return self.words(words_BL), self.contexts(words_BL)

  def words(self, words: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """(rows [..., D], biases [...] or None) of words."""
    return self.embed(words)

  def contexts(self, words: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """The same of words as contexts."""
    return self.context(words)


def vectors_of(cfg: ModelConfig, params: Mapping[str, Any]) -> np.ndarray:
  """[V, D]: the vector of every word, of any model that has an embedding.

  Raises:
    ConfigError: it has none.
  """
  if "embedding" not in params.get("embed", {}):
    raise ConfigError(
      f"model.family={cfg.family}: has no table embed/embedding; choose a model of words"
    )
  vectors = np.asarray(params["embed"]["embedding"], np.float32)
  if getattr(cfg, "sum_tables", False):
    vectors = vectors + np.asarray(params["context"]["embedding"], np.float32)
  return vectors


def word_vectors_weights(cfg: WordVectorsConfig) -> list[Weight]:
  """Every weight."""
  assert cfg.vocab_size is not None
  tables = [Weight(f"{t}/embedding", "embed", (cfg.vocab_size, cfg.width)) for t in TABLES]
  biases = [Weight(f"{t}/bias", "vector", (cfg.vocab_size,)) for t in TABLES]
  return tables + biases * cfg.biases


def word_vectors_activations(cfg: Config) -> float:
  """Numbers kept on each device: 4 D for each word of a row, its rows of both tables and their gradients."""
  mesh, train = cfg.mesh, cfg.train
  rows = train.batch_size / train.accumulate / (mesh.replica * mesh.fsdp * mesh.expert)
  return rows * cfg.model.seq_len * 4 * cfg.model.width


def check_word_vectors(cfg: Config) -> None:
  """ConfigError where words of a row are split over devices."""
  if cfg.mesh.sequence != 1:
    raise ConfigError(
      f"mesh.sequence={cfg.mesh.sequence}: words of a row are compared with each other on one device; "
      "use 1"
    )


TABLES = ("embed", "context")
WORD_VECTORS = Family(
  section=WordVectorsConfig,
  module=WordVectors,
  inputs={"words": Input("int32", ("batch", "length"))},
  weights=word_vectors_weights,
  exact_flops=lambda cfg, causal: 0.0,  # a look-up; the objective counts its products
  activation_floats=word_vectors_activations,
  check=check_word_vectors,
  splits=lambda cfg: {
    "fsdp": {"model.width": cfg.width},
    "tensor": {"model.vocab_size": cfg.vocab_size},
  },
)
