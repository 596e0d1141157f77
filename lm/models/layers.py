"""What blocks are made of: linear maps, norms, positions, attention and MLP.

Axes: B batch, L length, D width, F mlp width, H heads, G kv heads, K head width, V vocabulary.
Parameters are float32 and carry logical axis names; activations are in cfg.dtype. Every kernel is a
matrix [in, out]: heads and their width are one axis of it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from lm.devices.sharding import constrain, on_one_cpu
from lm.models.attention.forms import attend, attend_cached
from lm.models.matmul import int8_matmul, matmul
from lm.models.parameterization import TABLE, multiplier, scales_depth
from lm.models.transformer_config import GATED, TransformerConfig, adapter_rank, factor_rank

ACTIVATIONS = {
  "gelu": jax.nn.gelu,  # the tanh form, as in GPT-2
  "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
  "relu": jax.nn.relu,
  "relu2": lambda x: jnp.square(jax.nn.relu(x)),
  "silu": jax.nn.silu,
  "swiglu": jax.nn.silu,  # of the gate
  "geglu": jax.nn.gelu,  # of the gate
  "geglu_exact": lambda x: jax.nn.gelu(x, approximate=False),  # of the gate
  "reglu": jax.nn.relu,  # of the gate
}
AT_LENGTH = 8  # layers that are written out on one CPU even where they are scanned


class Context(NamedTuple):
  """What every block needs to know about the tokens beside their vectors."""

  rope: tuple[jax.Array, jax.Array] | None  # cosines and sines, float32 [B or 1, L, 1, K/2]
  segments_BL: jax.Array | None  # document ids; None = one document a row
  index: jax.Array | None  # tokens already in the cache, int32 scalar or [B]; None = no cache
  rope_local: tuple[jax.Array, jax.Array] | None = None  # that of local layers; None = the same
  # 1 where memory is of the document that goes on; None = no memory
  seen_BM: jax.Array | None = None


def written_out(cfg: TransformerConfig) -> bool:
  """True if layers are unrolled in the compiled program rather than scanned.

  Without model.scan_layers, and for shallow models on one CPU: XLA's loops there copy what they keep for the
  backward pass, which takes a fifth of the step (6 layers of width 384). With model.remat the loop stays, as
  XLA's CPU compiler undoes recomputation outside of one.
  """
  few = cfg.depth <= AT_LENGTH and cfg.remat == "none"
  return not cfg.scan_layers or (few and on_one_cpu())


def biased(cfg: TransformerConfig, part: str) -> bool:
  """True if the part of a block that a word of BIASED names has biases."""
  return part in cfg.bias_on or (cfg.bias and part != "head")


def has_final_norm(cfg: TransformerConfig) -> bool:
  """True if a norm stands between the last layer and the logits."""
  return cfg.norm_position not in ("post", "none")


def local_layers(cfg: TransformerConfig) -> tuple[bool, ...] | None:
  """For each layer whether it is local; None where model.layer_kinds tells no two kinds apart."""
  if not cfg.layer_kinds:
    return None
  return tuple(cfg.layer_kinds[i % len(cfg.layer_kinds)] == "local" for i in range(cfg.depth))


# --- initialisation -------------------------------------------------------------------------------


def init_std(cfg: TransformerConfig, kind: str, fan_in: int) -> float:
  """Initial standard deviation of a matrix of this kind.

      model.init = fan_in: 1 / sqrt(fan_in)
      model.init = gpt2:   0.02 (Radford et al. 2019, section 2.3)

  at the base width, times what lm.models.parameterization says for wider ones; `Linear` divides that of
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


def initial_depth(cfg: TransformerConfig) -> int:
  """The depth that branches are initialised for: the base's, where a factor does the rest."""
  return cfg.base_depth if scales_depth(cfg.parameterization) else cfg.depth


def normal(std: float, axes: tuple[str, ...]):
  """Initialiser: normal with this standard deviation, its axes named."""
  return nn.with_logical_partitioning(nn.initializers.normal(std), axes)


# --- linear maps ----------------------------------------------------------------------------------


class Linear(nn.Module):
  """x [..., D] -> x kernel (+ bias) [..., features].

  With model.low_rank, where that is smaller, (x kernel_in) kernel_out with kernels [D, r] and [r, features].
  With model.lora_rank, for maps of model.lora_on, x kernel + alpha / r (x lora_a) lora_b, where lora_b starts
  at 0 (Hu et al. 2021, arXiv:2106.09685 §4.1).
  `residual` marks the last matrix of a branch, whose std shrinks with depth; `shrink` multiplies it too.
  """

  cfg: TransformerConfig
  features: int
  axes: tuple[str, str]
  residual: bool = False
  use_bias: bool = True  # where the config has biases at all
  part: str = "mlp"  # what of BIASED it is of
  shrink: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    std = init_std(self.cfg, "hidden", x.shape[-1]) * self.shrink
    if self.residual:
      std /= math.sqrt(2 * initial_depth(self.cfg))
    axes, rank = self.axes, factor_rank(self.cfg, x.shape[-1], self.features)
    product = int8_matmul if self.cfg.matmul == "int8" and self.name != "router" else matmul
    if rank is None:
      kernel = self.param("kernel", normal(std, axes), (x.shape[-1], self.features))
    else:
      inner = (axes[0], "replicated")
      first = self.param("kernel_in", normal(std, inner), (x.shape[-1], rank))
      x, axes = product(x, first, inner), ("replicated", axes[1])
      kernel = self.param("kernel_out", normal(rank**-0.5, axes), (rank, self.features))
    bias = None
    if self.use_bias and biased(self.cfg, self.part):
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
      bias = self.param("bias", zeros, (self.features,))
    y = product(x, kernel, axes, bias)
    rank = adapter_rank(self.cfg, self.name or "")
    if rank is not None:
      ends = (axes[0], "replicated"), ("replicated", axes[1])
      std = init_std(self.cfg, "hidden", x.shape[-1])
      a = self.param("lora_a", normal(std, ends[0]), (x.shape[-1], rank))
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, ends[1])
      b: Any = self.param("lora_b", zeros, (rank, self.features))
      y += matmul(matmul(x, a, ends[0]), b, ends[1]) * (self.cfg.lora_alpha / rank)
    return checkpoint_name(y, self.name)


class Norm(nn.Module):
  """rmsnorm: x / sqrt(mean x^2 + eps) scale; layernorm: the same of x - mean x, plus bias.

  With model.norm_offset that is added to the scale, which starts at 1 - offset. Over the last axis, in
  float32, returned in cfg.dtype. Zhang & Sennrich 2019, arXiv:1910.07467; Ba et al. 2016, arXiv:1607.06450.
  """

  cfg: TransformerConfig
  kind: str  # rmsnorm | layernorm
  axis: str = "norm"

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    start = nn.initializers.constant(1.0 - self.cfg.norm_offset)
    ones = nn.with_logical_partitioning(start, (self.axis,))
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, (self.axis,))
    scale = self.param("scale", ones, x.shape[-1:])
    bias = None
    if self.kind == "layernorm" and biased(self.cfg, "norm"):
      bias = self.param("bias", zeros, x.shape[-1:])
    again = functools.partial(jax.checkpoint, prevent_cse=written_out(self.cfg))
    return again(self._normalise)(x, scale, bias)

  def _normalise(self, x, scale, bias):
    last = lambda p: jnp.expand_dims(p, range(x.ndim - 1))
    y = x.astype(jnp.float32)
    if self.kind == "layernorm":
      y -= y.mean(axis=-1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + self.cfg.norm_eps)
    y *= last(scale + self.cfg.norm_offset if self.cfg.norm_offset else scale)
    if bias is not None:
      y += last(bias)
    return y.astype(self.cfg.dtype)


# --- positions ------------------------------------------------------------------------------------


def rope_frequencies(cfg: TransformerConfig, local: bool = False) -> tuple[np.ndarray, float]:
  """(radians a token of each pair, float32 [K/2]; the factor of what is rotated).

      f_i = theta^(-2i/K), and with n_i = f_i model.rope_length / 2 pi turns and factor s:
      linear: f / s (Chen et al. 2023, arXiv:2306.15595)
      llama3: (1 - r) f / s + r f, r = (n - slow) / (fast - slow) cut to [0, 1]
              (Llama team 2024, arXiv:2407.21783; the released code)
      yarn:   the same with r falling evenly from 1 to 0 over the pairs i between those that turn
              fast and slow times; factor .1 log s + 1 (Peng et al. 2023, arXiv:2309.00071 §3)

  K is model.rope_dim where that is set. Local layers with model.rope_local_theta are not rescaled.
  """
  dim, factor = cfg.rope_dim or cfg.head_dim, cfg.rope_factor
  own = local and cfg.rope_local_theta is not None
  theta = cfg.rope_local_theta if own else cfg.rope_theta
  frequencies = theta ** (-np.arange(0, dim, 2, dtype=np.float32) / dim)
  magnitude = 1.0 if cfg.rope_magnitude is None else cfg.rope_magnitude
  if own or cfg.rope_scaling is None:
    return frequencies, 1.0
  if cfg.rope_scaling == "linear":
    return frequencies / np.float32(factor), magnitude
  if cfg.rope_scaling == "llama3":
    turns = frequencies * cfg.rope_length / (2 * math.pi)
    kept = np.clip((turns - cfg.rope_slow) / (cfg.rope_fast - cfg.rope_slow), 0, 1)
  else:
    pair = lambda n: dim * math.log(cfg.rope_length / (n * 2 * math.pi)) / (2 * math.log(theta))
    first, last = pair(cfg.rope_fast), pair(cfg.rope_slow)
    if cfg.rope_whole:
      first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    last += 0.001 * (first == last)  # as in the released code: no division by 0
    kept = 1 - np.clip((np.arange(dim // 2) - first) / (last - first), 0, 1)
    if cfg.rope_magnitude is None:
      magnitude = 0.1 * math.log(factor) + 1
  frequencies = frequencies / factor * (1 - kept) + frequencies * kept
  return frequencies.astype(np.float32), magnitude


def rope_table(
  positions_BL: jax.Array, frequencies: np.ndarray, magnitude: float = 1.0
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of position times frequency, float32 [B, L, 1, K/2].

  Su et al. 2021, arXiv:2104.09864 §3.2.2.
  """
  angles = positions_BL[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  return (cos, sin) if magnitude == 1 else (cos * magnitude, sin * magnitude)


def rotate(x_BLHK: jax.Array, rope: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotates the pairs (i, i + K/2) of every head by the table's angles, in float32.

  A table of fewer than K/2 angles rotates the first dimensions of a head and leaves the others.

  The half-split layout of Hugging Face's Llama; the paper pairs (2i, 2i + 1). The two differ by a
  permutation of the rows of the query and key kernels.
  """
  cos, sin = rope
  if 2 * cos.shape[-1] < x_BLHK.shape[-1]:
    turned, rest = jnp.split(x_BLHK, [2 * cos.shape[-1]], axis=-1)
    return jnp.concatenate([rotate(turned, rope), rest], axis=-1)
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

  cfg: TransformerConfig

  @nn.compact
  def __call__(self, x_BLD, context: Context, cache=None, local=None, memory_BMD=None):
    """(x_BLD, cache) -> (y_BLD, cache); cache is (keys, values), each [B, M, G, K], or None.

    `local` says whether this layer is a local one: a bool, a traced bool, or None = all are alike.
    memory_BMD: vectors of the tokens before the row, of which keys and values are made too; None = none.
    """
    cfg = self.cfg
    source_BMD = x_BLD
    if memory_BMD is not None:
      source_BMD = jnp.concatenate([memory_BMD.astype(x_BLD.dtype), x_BLD], axis=1)
    over_all = cfg.qk_norm and cfg.qk_norm_over == "all"  # OLMo 2: arXiv:2501.00656 §3.2

    def heads(n, axis, name, x_BLD=source_BMD):
      y = Linear(cfg, n * cfg.head_dim, ("embed", axis), name=name, part="qkv")(x_BLD)
      if over_all and name != "v":
        y = Norm(cfg, "rmsnorm", name=f"{name}_norm")(y)
      y = constrain(y, ("batch", "length", f"act_{axis}"))
      return y.reshape(*y.shape[:2], n, cfg.head_dim)

    q_BLHK = heads(cfg.heads, "heads", "q", x_BLD)
    k_BLGK = heads(cfg.kv_heads, "kv_heads", "k")
    v_BLGK = heads(cfg.kv_heads, "kv_heads", "v")
    if cfg.qk_norm and not over_all:  # Dehghani et al. 2023, arXiv:2302.05442 §2.1
      q_BLHK = Norm(cfg, "rmsnorm", "head_dim", name="q_norm")(q_BLHK)
      k_BLGK = Norm(cfg, "rmsnorm", "head_dim", name="k_norm")(k_BLGK)
    if context.rope is not None:
      rope = context.rope
      if context.rope_local is not None:
        rope = _choose(local, context.rope_local, context.rope)
      own = rope if memory_BMD is None else jax.tree.map(lambda a: a[:, -x_BLD.shape[1] :], rope)
      q_BLHK, k_BLGK = rotate(q_BLHK, own), rotate(k_BLGK, rope)
    if cfg.attention_scale is not None:  # `attend` divides by sqrt(K)
      q_BLHK *= cfg.attention_scale * math.sqrt(cfg.head_dim)
    self.sow("intermediates", "queries", q_BLHK)  # for lm.inspect; nothing where nobody asks
    self.sow("intermediates", "keys", k_BLGK)
    if memory_BMD is not None:
      read = lambda cfg: _attend_memory(q_BLHK, k_BLGK, v_BLGK, cfg, context)
    elif cache is None:
      read = lambda cfg: attend(q_BLHK, k_BLGK, v_BLGK, cfg, context.segments_BL)
    else:
      cache = tuple(
        write_cache(old, new, context.index)
        for old, new in zip(cache, (k_BLGK, v_BLGK), strict=True)
      )
      index_BL = token_index(context.index, x_BLD.shape[1])
      read = lambda cfg: attend_cached(q_BLHK, *cache, index_BL, cfg)
    y_BLHK = _in_sight(cfg, local, read)
    y_BLN = y_BLHK.reshape(*y_BLHK.shape[:2], -1)
    out = Linear(cfg, cfg.width, ("heads", "embed"), residual=True, name="out", part="out")
    return out(y_BLN), cache


def _attend_memory(q_BLHK, k_BMGK, v_BMGK, cfg, context):
  """`attend` where the row stands behind a memory, of which only what is seen has keys."""
  (rows, length), size = q_BLHK.shape[:2], context.seen_BM.shape[1]
  if context.segments_BL is None:
    row_BL = jnp.ones((rows, length), bool)
    mask_BM = jnp.concatenate([context.seen_BM > 0, row_BL], axis=1)
    return attend(q_BLHK, k_BMGK, v_BMGK, cfg, key_mask_BM=mask_BM, offset=size)
  goes_on_B1 = context.segments_BL[:, :1]
  before_BM = jnp.where(context.seen_BM > 0, goes_on_B1, -1)  # nobody's
  segments_BM = jnp.concatenate([before_BM, context.segments_BL], axis=1)
  q_segments = context.segments_BL
  return attend(q_BLHK, k_BMGK, v_BMGK, cfg, q_segments, key_segments_BM=segments_BM, offset=size)


def _choose(local, if_local, if_global):
  """One of two pytrees."""
  if isinstance(local, bool):
    return if_local if local else if_global
  return jax.tree.map(lambda a, b: jnp.where(local, a, b), if_local, if_global)


def _in_sight(
  cfg: TransformerConfig, local, read: Callable[[TransformerConfig], jax.Array]
) -> jax.Array:
  """read(cfg), or in a global layer read(cfg without window); one branch alone is computed."""
  if local is None or cfg.window is None:
    return read(cfg)
  whole = dataclasses.replace(cfg, window=None)
  if isinstance(local, bool):
    return read(cfg if local else whole)
  return jax.lax.cond(local, lambda: read(cfg), lambda: read(whole))


def activate(cfg: TransformerConfig, h: jax.Array, gate: jax.Array | None) -> jax.Array:
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

  cfg: TransformerConfig

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
