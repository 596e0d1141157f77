"""An optimizer's running means kept in fewer bits: bfloat16, or blocks of 8-bit codes.

The optimizer itself computes in float32; its state is decoded before each update and encoded after.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

BLOCK = 256  # numbers that share a scale
WHOLE = {"gram", "basis", "start"}  # fields of soap and prodigy that are kept in float32
SMALLEST = 4096  # arrays of fewer numbers stay float32 (Dettmers et al. 2022 §2.3)


class Compressed(NamedTuple):
  count: jax.Array  # int32 updates, which seed the rounding of bfloat16
  inner: Any  # the optimizer's state, with codes in place of its large arrays
  scales: (
    Any  # the same tree: largest magnitude of each block, float32; a scalar 0 where there is none
  )


def compressed(
  tx: optax.GradientTransformation, how: str, seed: jax.Array | int = 0
) -> optax.GradientTransformation:
  """`tx` with the large arrays of its state held as `how` says.

  bfloat16: rounded up or down at random, in proportion to the distance, so that running means do not
  stall where a step is smaller than the spacing of numbers. int8: each block of 256 neighbours is
  divided by its largest magnitude and each quotient replaced by the nearest of 256 fixed numbers,
  dense near zero: block-wise dynamic quantisation, Dettmers et al. 2022, arXiv:2110.02861 §2.

  Args:
    tx: its state holds float32 arrays; those in fields named in WHOLE stay what they are.
    how: float32 (as it is), bfloat16 or int8.
    seed: of the rounding to bfloat16.
  """
  if how == "float32":
    return tx
  tx = optax.with_extra_args_support(tx)

  def encode(count, state):
    flat, tree = jax.tree_util.tree_flatten_with_path(state)
    pairs = []
    for index, (path, leaf) in enumerate(flat):
      if not _is_large(leaf) or _names(path) & WHOLE:
        pairs.append((leaf, jnp.float32(0)))
      elif how == "bfloat16":
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), count), index)
        pairs.append((_round_at_random(leaf, key), jnp.float32(0)))
      else:
        pairs.append(_to_codes(leaf, code_of(path)))
    codes, scales = zip(*pairs, strict=True)
    return Compressed(count, tree.unflatten(codes), tree.unflatten(scales))

  def decode(state):
    def one(path, leaf, scale):
      if leaf.dtype == jnp.bfloat16:
        return leaf.astype(jnp.float32)
      return _from_codes(leaf, scale, code_of(path)) if leaf.dtype == jnp.uint8 else leaf

    return jax.tree_util.tree_map_with_path(one, state.inner, state.scales)

  def init(params):
    return encode(jnp.int32(0), tx.init(params))

  def update(updates, state, params=None, **extra):
    updates, inner = tx.update(updates, decode(state), params, **extra)
    return updates, encode(state.count + 1, inner)

  return optax.GradientTransformationExtraArgs(init, update)


def code_of(path: tuple[Any, ...]) -> np.ndarray:
  """The 256 numbers for an array at this path: without a sign for second moments (`nu`)."""
  return dynamic_code(signed="nu" not in _names(path))


def dynamic_code(signed: bool) -> np.ndarray:
  """Float32 [256], ascending from -1 (or 0) to 1: the dynamic tree data type.

  Without its sign a code is a run of e zero bits, a one, and a fraction: the middles of 2^(bits left)
  equal steps from 0.1 to 1, times 10^-e. Dettmers 2016, arXiv:1511.04561 §3; with a sign there are
  7 bits for the magnitude, without it the eighth goes to the fraction. Zero and one are codes.
  """
  magnitudes = []
  for exponent in range(7):
    steps = 2 ** (6 - exponent + (0 if signed else 1))
    edges = np.linspace(0.1, 1, steps + 1)
    magnitudes += list(10.0**-exponent * (edges[1:] + edges[:-1]) / 2)
  values = [-m for m in magnitudes] + magnitudes if signed else magnitudes
  return np.sort(np.array([*values, 0.0, 1.0], np.float32))


def _names(path):
  return {getattr(part, "name", None) for part in path}


def _is_large(leaf):
  return leaf.dtype == jnp.float32 and leaf.size >= SMALLEST


def _blocks(x):
  """[..., n] -> [..., n / size, size], size 256 or, where that does not divide, n."""
  size = BLOCK if x.shape[-1] % BLOCK == 0 else x.shape[-1]
  return x.reshape(*x.shape[:-1], -1, size)


def _to_codes(x, code):
  blocks = _blocks(x)
  scale = jnp.abs(blocks).max(axis=-1, keepdims=True)
  unit = blocks / jnp.where(scale == 0, 1.0, scale)
  middles = (code[1:] + code[:-1]) / 2
  codes = jnp.searchsorted(jnp.asarray(middles), unit, method="scan").astype(jnp.uint8)
  return codes.reshape(x.shape), scale[..., 0]


def _from_codes(codes, scale, code):
  values = jnp.asarray(code)[_blocks(codes).astype(jnp.int32)] * scale[..., None]
  return values.reshape(codes.shape)


def _round_at_random(x, key):
  """bfloat16 is the upper half of float32: adding a random lower half carries in proportion to it."""
  noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32) + noise
  return jax.lax.bitcast_convert_type((bits >> 16).astype(jnp.uint16), jnp.bfloat16)
