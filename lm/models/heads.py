"""What objectives put on an encoder's vectors: maps with biases, BERT's pooler, its head for masked tokens.

Devlin et al. 2019, arXiv:1810.04805, §3 and appendix A; the released code for the order of steps. `Dense` and
`Pooler` read of the config's `model` section what every family has.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config.schema import ModelConfig
from lm.devices.sharding import constrain
from lm.models import layers
from lm.models.family import Weight
from lm.models.matmul import matmul
from lm.models.parameterization import multiplier

STD = 0.02  # of every matrix, at the base width


def apply(module: nn.Module, params: Any, *arrays: Any, **how: Any) -> Any:
  """The output of a Linen module for arrays, with these parameters."""
  return module.apply({"params": params}, *arrays, **how)


class Dense(nn.Module):
  """x [..., D] -> x kernel + bias [..., features]."""

  cfg: ModelConfig
  features: int
  kind: str  # hidden | readout
  axes: tuple[str, str]

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    cfg, ratio = self.cfg, self.cfg.width / self.cfg.base_width
    std = STD * multiplier(cfg.parameterization, self.kind, "init", ratio)
    shape = (x.shape[-1], self.features)
    kernel = self.param("kernel", layers.normal(std, self.axes), shape)
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
    y = matmul(x, kernel, self.axes)
    if self.kind == "readout":
      y = y.astype(jnp.float32)
      y *= multiplier(cfg.parameterization, "readout", "output", ratio)
    bias: Any = self.param("bias", zeros, (self.features,))
    return y + jnp.expand_dims(bias.astype(y.dtype), range(y.ndim - 1))


class Pooler(nn.Module):
  """tanh(dense(x)) of one vector a row."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x_BD: jax.Array) -> jax.Array:
    return jnp.tanh(
      Dense(self.cfg, self.cfg.width, "hidden", ("embed", "replicated"), name="dense")(x_BD)
    )


class MaskedHead(nn.Module):
  """Logits of tokens: norm(gelu(dense x)) times the token embedding, transposed, + bias."""

  cfg: Any

  @nn.compact
  def __call__(self, x_BPD: jax.Array, embedding_VD: jax.Array) -> jax.Array:
    cfg = self.cfg
    h_BPD = Dense(cfg, cfg.width, "hidden", ("embed", "replicated"), name="dense")(x_BPD)
    h_BPD = layers.Norm(cfg, "layernorm", name="norm")(layers.activate(cfg, h_BPD, None))
    logits_BPV = matmul(h_BPD, embedding_VD.T, ("embed", "vocab")).astype(jnp.float32)
    ratio = cfg.width / cfg.base_width
    logits_BPV *= multiplier(cfg.parameterization, "readout", "output", ratio)
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
    bias_V: Any = self.param("bias", zeros, (cfg.vocab_size,))
    logits_BPV += jnp.expand_dims(bias_V, (0, 1))
    return constrain(logits_BPV, ("batch", "replicated", "act_vocab"))


def dense_weights(name: str, kind: str, rows: int, columns: int) -> list[Weight]:
  """The weights of a `Dense`."""
  return [
    Weight(f"{name}/kernel", kind, (rows, columns)),
    Weight(f"{name}/bias", "vector", (columns,)),
  ]


def masked_head_weights(name: str, cfg: Any) -> list[Weight]:
  """The weights of a `MaskedHead`, without the embedding that it shares."""
  found = dense_weights(f"{name}/dense", "hidden", cfg.width, cfg.width)
  found += [Weight(f"{name}/norm/{part}", "vector", (cfg.width,)) for part in ("scale", "bias")]
  return [*found, Weight(f"{name}/bias", "vector", (cfg.vocab_size,))]
