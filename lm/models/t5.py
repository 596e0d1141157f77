"""T5 (Raffel et al. 2020, arXiv:1910.10683), versions 1.0 and 1.1.

An encoder-decoder whose self-attention knows positions by a learned number for each head and bucket of
distances (§2.1); norms come first, have no bias and take no mean off; query-key products are not scaled,
query kernels start smaller instead. 1.0: relu, one table for input and output, logits scaled by 1/sqrt(D).
1.1: geglu, a readout of its own. Two departures: no dropout on attention weights and inside MLPs, and the
last matrix of a branch starts smaller with depth (lm.models.layers.Linear).
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config, field
from lm.models.attention.forms import choose_form
from lm.models.encoder_decoder import (
  ENCODER_DECODER,
  EncoderDecoder,
  Stack,
  Table,
)
from lm.models.encoder_decoder_config import EncoderDecoderConfig, check_encoder_decoder
from lm.models.encoder_decoder_counts import encoder_decoder_weights
from lm.models.family import Weight


@dataclasses.dataclass(frozen=True)
class T5Config(EncoderDecoderConfig):
  positions: str = field(choices=("relative",))
  buckets: int = field("[4, inf)", "32")
  max_distance: int = field("[2, inf)", "128")

  @property
  def attention_scale(self) -> float | None:
    return 1.0

  @property
  def query_init(self) -> float:
    return self.head_dim**-0.5 if self.head_dim else 1.0

  @property
  def embed_std(self) -> float:
    return 1.0 if self.init == "fan_in" else 0.02

  @property
  def logit_scale(self) -> float:
    return self.width**-0.5 if self.tied_embeddings else 1.0


def bucket_table(buckets: int, max_distance: int, both_sides: bool) -> np.ndarray:
  """Int32 [2 max_distance + 1]: the bucket of a key d = -max_distance .. max_distance after the query.

  Of n buckets a side, the first half holds a distance each, the others ever more up to max_distance: bucket
  n/2 + n/2 log(|d| / (n/2)) / log(max_distance / (n/2)), at most n - 1. A decoder, which sees no key after
  the query, has all buckets on one side, an encoder half of them on each. Distances beyond the table are
  those at its ends.
  """
  after = np.arange(-max_distance, max_distance + 1)
  first = np.zeros_like(after)
  if both_sides:
    buckets //= 2
    first, distance = np.where(after > 0, buckets, 0), np.abs(after)
  else:
    distance = np.maximum(-after, 0)
  exact = buckets // 2
  with np.errstate(divide="ignore"):
    log = np.log(distance.astype(np.float32) / np.float32(exact))
  grown = log / np.float32(math.log(max_distance / exact)) * np.float32(buckets - exact)
  far = exact + np.where(np.isfinite(grown), grown, 0).astype(np.int64)
  return (first + np.where(distance < exact, distance, np.minimum(far, buckets - 1))).astype(
    np.int32
  )


class RelativeStack(Stack):
  """Blocks that share one table of position biases."""

  def setup_bias(self):
    cfg = self.cfg
    std = cfg.embed_std * cfg.width**-0.5 if cfg.init == "fan_in" else 0.02
    self.position_bias = Table(cfg.buckets, cfg.heads, std, ("position", "heads"))

  def bias(self, queries_BL: jax.Array, n_keys: int) -> jax.Array:
    far = self.cfg.max_distance
    table = jnp.asarray(bucket_table(self.cfg.buckets, far, not self.decodes))
    keys_M = jnp.arange(n_keys, dtype=jnp.int32)
    after_BLM = keys_M[None, None, :] - queries_BL[:, :, None]
    buckets_BLM = table[jnp.clip(after_BLM, -far, far) + far]
    return self.position_bias(buckets_BLM).transpose(0, 3, 1, 2)


class T5(EncoderDecoder):
  """A source and the target so far to logits of the target's next token."""

  stack: ClassVar[type[Stack]] = RelativeStack


def t5_weights(cfg: Any) -> list[Weight]:
  """Those of an encoder-decoder, and a table of position biases for each stack."""
  bias = lambda stack: Weight(f"{stack}/position_bias/embedding", "embed", (cfg.buckets, cfg.heads))
  return [*encoder_decoder_weights(cfg), bias("encoder"), bias("decoder")]


def check_t5(cfg: Config) -> None:
  """ConfigError for heads that do not fit, and buckets that leave none for far keys."""
  check_encoder_decoder(cfg)
  model: Any = cfg.model
  if model.max_distance <= model.buckets // 2:
    raise ConfigError(
      f"model.max_distance={model.max_distance}: must be above half of model.buckets={model.buckets}, "
      f"which hold a distance each; use {4 * model.buckets}"
    )
  if model.buckets % 4:
    raise ConfigError(
      f"model.buckets={model.buckets}: must be a multiple of 4: two sides, near and far; use "
      f"{model.buckets + 4 - model.buckets % 4}"
    )


def make_t5(cfg: T5Config) -> T5:
  """The module of a resolved section; ConfigError for a form of attention that has no position biases."""
  form: Any = cfg
  choose_form(form, biased=True, masked=True)
  return T5(cfg)


T5_FAMILY = dataclasses.replace(
  ENCODER_DECODER, section=T5Config, module=make_t5, weights=t5_weights, check=check_t5
)
