"""What blocks are made of: linear maps, norms, positions, attention and MLP.

Axes: B batch, L length, D width, F mlp width, H heads, G kv heads, K head width, V vocabulary.
Parameters are float32 and carry logical axis names; activations are in cfg.dtype. Every kernel is a
matrix [in, out]: heads and their width are one axis of it.
"""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from lm.config import ModelConfig
from lm.models.attention import attend, attend_cached
from lm.models.matmul import int8_matmul, matmul
from lm.parameterization import TABLE, multiplier
from lm.sharding import constrain, on_one_cpu

ACTIVATIONS = {
  "gelu": jax.nn.gelu,  # the tanh form, as in GPT-2
  "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
  "relu": jax.nn.relu,
  "relu2": lambda x: jnp.square(jax.nn.relu(x)),
  "swiglu": jax.nn.silu,  # of the gate
  "geglu": jax.nn.gelu,  # of the gate
}
GATED = ("swiglu", "geglu")
AT_LENGTH = 8  # layers that are written out on one CPU even where they are scanned


class Context(NamedTuple):
  """What every block needs to know about the tokens beside their vectors."""

  rope: tuple[jax.Array, jax.Array] | None  # cosines and sines, float32 [B or 1, L, 1, K/2]
  segments_BL: jax.Array | None  # document ids; None = one document a row
  index: jax.Array | None  # tokens already in the cache, int32 scalar or [B]; None = no cache


def written_out(cfg: ModelConfig) -> bool:
  """Whether the compiled program holds every layer, instead of one in a loop.

  Without model.scan_layers, and for shallow models on one CPU: XLA's loops there copy what they keep for the
  backward pass, which takes a fifth of the step (6 layers of width 384). With model.remat the loop stays, as
  XLA's CPU compiler undoes recomputation outside of one.
  """
  few = cfg.depth <= AT_LENGTH and cfg.remat == "none"
  return not cfg.scan_layers or (few and on_one_cpu())


# --- initialisation -------------------------------------------------------------------------------


def init_std(cfg: ModelConfig, kind: str, fan_in: int) -> float:
  """Initial standard deviation of a matrix of this kind.

      model.init = fan_in: 1 / sqrt(fan_in)
      model.init = gpt2:   0.02 (Radford et al. 2019, section 2.3)

  at the base width, times what lm.parameterization says for wider ones; `Linear` divides that of
  the last matrix of a residual branch by sqrt(2 depth). For an embedding fan_in is 1, as one row is
  read, but the width where the table is the readout too. Either way logits start with variance 1
  and the loss at about log V + 1/2. Smaller embeddings, and branches not scaled down, start lower
  and train worse: 300 steps of 512 tokens at width 128, depth 4, lr 3e-3 end at 4.96 untied with
  std 1, 5.47 with 1/sqrt(width); tied at 5.53 with 1/sqrt(width), 5.61 with half of that, 5.64 with
  0.02, 5.70 with 1/sqrt(width) and unscaled branches.
  """
  ratio = cfg.width / cfg.base_width
  if kind == "embed" and not cfg.tied_embeddings:
    fan_in = 1
  elif TABLE[cfg.parameterization][kind].init is not None:
    fan_in /= ratio
  base = 0.02 if cfg.init == "gpt2" else 1 / math.sqrt(fan_in)
  return base * multiplier(cfg.parameterization, kind, "init", ratio)


def normal(std: float, axes: tuple[str, ...]):
  """Initialiser: normal with this standard deviation, its axes named."""
  return nn.with_logical_partitioning(nn.initializers.normal(std), axes)


# --- linear maps ----------------------------------------------------------------------------------


class Linear(nn.Module):
  """x [..., D] -> x kernel (+ bias) [..., features].

  `residual` marks the last matrix of a branch, whose std shrinks with depth.
  """

  cfg: ModelConfig
  features: int
  axes: tuple[str, str]
  residual: bool = False
  use_bias: bool = True  # where the config has biases at all

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    std = init_std(self.cfg, "hidden", x.shape[-1])
    if self.residual:
      std /= math.sqrt(2 * self.cfg.depth)
    kernel = self.param("kernel", normal(std, self.axes), (x.shape[-1], self.features))
    bias = None
    if self.cfg.bias and self.use_bias:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
      bias = self.param("bias", zeros, (self.features,))
    product = int8_matmul if self.cfg.matmul == "int8" and self.name != "router" else matmul
    return checkpoint_name(product(x, kernel, self.axes, bias), self.name)


class Norm(nn.Module):
  """rmsnorm: x / sqrt(mean x^2 + eps) scale; layernorm: the same of x - mean x, plus bias.

  Over the last axis, in float32, returned in cfg.dtype. Zhang & Sennrich 2019, arXiv:1910.07467;
  Ba et al. 2016, arXiv:1607.06450.
  """

  cfg: ModelConfig
  kind: str  # rmsnorm | layernorm
  axis: str = "norm"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    ones = nn.with_logical_partitioning(nn.initializers.ones, (self.axis,))
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,))
    scale = self.param("scale", ones, x.shape[-1:])
    bias = None
    if self.kind == "layernorm" and self.cfg.bias:
      bias = self.param("bias", zeros, x.shape[-1:])
    again = functools.partial(jax.checkpoint, prevent_cse=written_out(self.cfg))
    return again(self._normalise)(x, scale, bias)

  def _normalise(self, x, scale, bias):
    last = lambda p: jnp.expand_dims(p, range(x.ndim - 1))
    y = x.astype(jnp.float32)
    if self.kind == "layernorm":
      y -= y.mean(axis=-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.cfg.norm_eps)
    y *= last(scale)
    if bias is not None:
      y += last(bias)
    return y.astype(self.cfg.dtype)


# --- positions ------------------------------------------------------------------------------------


def rope_table(positions_BL: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of position theta^(-2i/K), float32 [B, L, 1, K/2].

  Su et al. 2021, arXiv:2104.09864 §3.2.2.
  """
  frequencies = theta ** (-np.arange(0, head_dim, 2, dtype=np.float32) / head_dim)
  angles = positions_BL[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BLHK: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates the pairs (i, i + K/2) of every head by the table's angles, in float32.

  The half-split layout of Hugging Face's Llama; the paper pairs (2i, 2i + 1). The two differ by a
  permutation of the rows of the query and key kernels.
  """
  cos, sin = rope
  a, b = jnp.split(x_BLHK.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return rotated.astype(x_BLHK.dtype)


def sinusoids(positions_BL: jax.Array, width: int) -> jax.Array:
  """Float32 [B, L, D]: sines in even, cosines in odd columns (Vaswani et al. 2017 §3.5)."""
  frequencies = 10_000.0 ** (-np.arange(0, width, 2, dtype=np.float32) / width)
  angles = positions_BL[:, :, None].astype(jnp.float32) * frequencies[None, None, :]
  waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1)
  return waves.reshape(*positions_BL.shape, width)


# --- attention and MLP ----------------------------------------------------------------------------


class Attention(nn.Module):
  """Causal self-attention over H query heads and G key/value heads."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x_BLD, context: Context, cache=None):
    """(x_BLD, cache) -> (y_BLD, cache); cache is (keys, values), each [B, M, G, K], or None."""
    cfg = self.cfg

    def heads(n, axis, name):
      y = Linear(cfg, n * cfg.head_dim, ("embed", axis), name=name)(x_BLD)
      y = constrain(y, ("batch", "length", f"act_{axis}"))
      return y.reshape(*y.shape[:2], n, cfg.head_dim)

    q_BLHK = heads(cfg.heads, "heads", "q")
    k_BLGK = heads(cfg.kv_heads, "kv_heads", "k")
    v_BLGK = heads(cfg.kv_heads, "kv_heads", "v")
    if cfg.qk_norm:  # Dehghani et al. 2023, arXiv:2302.05442 §2.1
      q_BLHK = Norm(cfg, "rmsnorm", "head_dim", name="q_norm")(q_BLHK)
      k_BLGK = Norm(cfg, "rmsnorm", "head_dim", name="k_norm")(k_BLGK)
    if context.rope is not None:
      q_BLHK, k_BLGK = rotate(q_BLHK, context.rope), rotate(k_BLGK, context.rope)
    if cache is None:
      y_BLHK = attend(q_BLHK, k_BLGK, v_BLGK, cfg, context.segments_BL)
    else:
      cache = tuple(
        write_cache(old, new, context.index)
        for old, new in zip(cache, (k_BLGK, v_BLGK), strict=True)
      )
      index_BL = token_index(context.index, x_BLD.shape[1])
      y_BLHK = attend_cached(q_BLHK, *cache, index_BL, cfg)
    y_BLN = y_BLHK.reshape(*y_BLHK.shape[:2], -1)
    y_BLD = Linear(cfg, cfg.width, ("heads", "embed"), residual=True, name="out")(y_BLN)
    return y_BLD, cache


def activate(cfg: ModelConfig, h: jax.Array, gate: jax.Array | None) -> jax.Array:
  """act(h), or h * act(gate) when gated: in float32, rounded once to cfg.dtype.

  Its inputs are kept for the backward pass, the steps inside it are not: cheap to do again, and several
  times the size.
  """
  act = lambda x: ACTIVATIONS[cfg.activation](x.astype(jnp.float32))
  again = functools.partial(jax.checkpoint, prevent_cse=written_out(cfg))
  if gate is None:
    return again(lambda h: act(h).astype(cfg.dtype))(h)
  return again(lambda h, gate: (h.astype(jnp.float32) * act(gate)).astype(cfg.dtype))(h, gate)


class Mlp(nn.Module):
  """down(act(up x)), or down(act(gate x) * up x) when gated (Shazeer 2020, arXiv:2002.05202)."""

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x_BLD: jax.Array) -> jax.Array:
    cfg, gate_BLF = self.cfg, None
    h_BLF = Linear(cfg, cfg.mlp_dim, ("embed", "mlp"), name="up")(x_BLD)
    if cfg.activation in GATED:
      gate_BLF = Linear(cfg, cfg.mlp_dim, ("embed", "mlp"), name="gate")(x_BLD)
    h_BLF = constrain(activate(cfg, h_BLF, gate_BLF), ("batch", "length", "act_mlp"))
    return Linear(cfg, cfg.width, ("mlp", "embed"), residual=True, name="down")(h_BLF)


# --- key-value cache ------------------------------------------------------------------------------


def token_index(index: jax.Array, length: int) -> jax.Array:
  """Int32 [B or 1, L]: where `length` new tokens go, after `index` (scalar or [B]) others."""
  return jnp.reshape(index, (-1, 1)) + jnp.arange(length, dtype=jnp.int32)[None]


def write_cache(old_BMGK: jax.Array, new_BLGK: jax.Array, index: jax.Array) -> jax.Array:
  """`old` with `new` at index .. index + L - 1 of every row."""
  new_BLGK = new_BLGK.astype(old_BMGK.dtype)
  if index.ndim == 0:
    return jax.lax.dynamic_update_slice_in_dim(old_BMGK, new_BLGK, index, axis=1)
  write_row = lambda old, new, i: jax.lax.dynamic_update_slice_in_dim(old, new, i, axis=0)
  return jax.vmap(write_row)(old_BMGK, new_BLGK, index)
