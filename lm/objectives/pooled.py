"""One vector of a whole text, and a linear map of it: what classification and regression share."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config.errors import ConfigError
from lm.config.schema import Config, ObjectiveConfig, field
from lm.models.family import Weight
from lm.models.heads import Dense, Pooler, apply, dense_weights
from lm.models.registry import family_of
from lm.objectives.objective import Part

POOLER, HEAD = "pooler", "classifier"


@dataclasses.dataclass(frozen=True)
class PooledConfig(ObjectiveConfig):
  pooling: str = field(choices=("pooler", "first", "mean", "last"))
  dropout: float = field("[0, 1)", "0.1")


def read_rows(model: nn.Module, params: Any, batch: Any, key: jax.Array | None) -> jax.Array:
  """The vectors [B, L, D] of labelled rows, dropped out in training."""
  types = [batch["types"]] if "types" in batch else []
  return apply(
    model,
    params,
    batch["tokens"],
    None,
    batch["segments"],
    *types,
    train=key is not None,
    rngs=None if key is None else {"dropout": key},
    method="hidden",
  )


def pool(x_BLD: jax.Array, segments_BL: jax.Array, how: str) -> jax.Array:
  """One vector a row, float32 [B, D]: its first token's, its last real one's, or the mean of these."""
  x_BLD = x_BLD.astype(jnp.float32)
  real_BL = (segments_BL > 0).astype(jnp.float32)
  if how == "mean":
    n_B1 = jnp.maximum(real_BL.sum(axis=1, keepdims=True), 1.0)
    return jnp.einsum("BLD,BL->BD", x_BLD, real_BL) / n_B1
  if how == "last":
    last_B = jnp.maximum(real_BL.sum(axis=1).astype(jnp.int32) - 1, 0)
    here_BL = jnp.expand_dims(last_B, 1) == jnp.arange(real_BL.shape[1])[None]
    return jnp.einsum("BLD,BL->BD", x_BLD, here_BL.astype(jnp.float32))
  return x_BLD[:, 0]


def drop(x: jax.Array, key: jax.Array | None, rate: float) -> jax.Array:
  """x with a share of its numbers at 0 and the others as much larger; x itself outside training."""
  if key is None or not rate:
    return x
  kept = jax.random.bernoulli(jax.random.fold_in(key, 1), 1 - rate, x.shape)
  return jnp.where(kept, x / (1 - rate), 0.0)


def make_head(model: nn.Module, cfg: Config, outputs: int):
  """(params, batch, key) -> float32 [B, outputs]."""
  pooler, head = Pooler(cfg.model), make_classifier(cfg, outputs)
  how, rate = cfg.objective.pooling, cfg.objective.dropout

  def predict(params, batch, key):
    x_BD = pool(read_rows(model, params, batch, key), batch["segments"], how)
    if how == "pooler":
      x_BD = apply(pooler, params[POOLER], x_BD)
    return apply(head, params[HEAD], drop(x_BD, key, rate))

  return predict


def make_classifier(cfg: Config, outputs: int) -> Dense:
  """The last linear map."""
  return Dense(cfg.model, outputs, "readout", ("embed", "replicated"))


def head_parts(cfg: Config, outputs: int) -> dict[str, Part]:
  """The linear map, and the pooler where there is one."""
  arrays = (jax.ShapeDtypeStruct((1, cfg.model.width), jnp.float32),)
  found = {POOLER: Part(Pooler(cfg.model), arrays)} if cfg.objective.pooling == "pooler" else {}
  return found | {HEAD: Part(make_classifier(cfg, outputs), arrays)}


def head_weights(cfg: Config, outputs: int) -> list[Weight]:
  """Those of `head_parts`."""
  width, found = cfg.model.width, []
  if cfg.objective.pooling == "pooler":
    found = dense_weights(f"{POOLER}/dense", "hidden", width, width)
  return [*found, *dense_weights(HEAD, "readout", width, outputs)]


def body_flops(cfg: Config, causal: bool) -> float:
  """Training FLOPs of one token up to the last vectors: a family's without its logits."""
  family, model = family_of(cfg.model), cfg.model
  logits = 6.0 * model.width * (model.vocab_size or 0) if family.init_cache else 0.0
  return family.exact_flops(model, causal) - logits


def row_flops(cfg: Config, causal: bool, outputs: int) -> float:
  """Those of one token, and a token's share of the head of a full row."""
  matrices = sum(w.size for w in head_weights(cfg, outputs) if w.kind != "vector")
  return body_flops(cfg, causal) + 6.0 * matrices / cfg.model.seq_len


def check_pooling(cfg: Config) -> None:
  """ConfigError for a family that reads no rows of tokens, and for a first token that sees no other."""
  family = family_of(cfg.model)
  if next(iter(family.inputs)) != "tokens":
    raise ConfigError(
      f"objective.name={cfg.objective.name}: reads rows of tokens, and model.family={cfg.model.family} reads "
      f"{', '.join(family.inputs)}; use bert, decoder or recurrent"
    )
  causal = family.init_cache is not None
  how = cfg.objective.pooling
  if causal and how in ("pooler", "first"):
    raise ConfigError(
      f"objective.pooling={how}: the first token of model.family={cfg.model.family} sees no other; use last "
      "or mean"
    )
