"""The state of an optimizer in fewer bits: its numbers, its rounding, and that training hardly notices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.config.errors import ConfigError
from lm.optim.low_bit import BLOCK, SMALLEST, Compressed, compressed, dynamic_code
from tests.test_step import config, run


@pytest.mark.parametrize("signed", [True, False])
def test_the_code_is_the_dynamic_tree_read_bit_by_bit(signed):
  bits = 7 if signed else 8
  values = {0.0, 1.0}  # the patterns that are left over
  for pattern in range(1, 2**bits):
    text = f"{pattern:0{bits}b}"
    zeros = len(text) - len(text.lstrip("0"))
    if zeros > 6:
      continue
    fraction = text[zeros + 1 :]
    steps = 2 ** len(fraction)
    index = int(fraction, 2) if fraction else 0
    magnitude = 10.0**-zeros * (0.1 + 0.9 * (index + 0.5) / steps)
    values |= {magnitude, -magnitude} if signed else {magnitude}
  code = dynamic_code(signed)
  assert code.shape == (256,) and code.dtype == np.float32
  np.testing.assert_allclose(code, sorted(values), rtol=1e-6)


def hold(how, x):
  """The array after one encoding and decoding, as state of a transformation that only keeps it."""
  keep = optax.GradientTransformation(
    lambda params: {"nu" if (x >= 0).all() else "mu": params}, lambda u, s, p=None: (s, s)
  )
  tx = compressed(keep, how)
  return jax.tree.leaves(tx.update(x, tx.init(x))[0])[0]


def test_eight_bit_blocks_err_by_half_a_step_of_the_code():
  x = jax.random.normal(jax.random.key(0), (16, 512)) * jnp.exp(jnp.arange(16.0))[:, None]
  held = hold("int8", x)
  largest = jnp.abs(x.reshape(16, 2, BLOCK)).max(axis=-1).repeat(BLOCK, axis=1).reshape(x.shape)
  steps = np.diff(dynamic_code(signed=True)).max()
  assert (jnp.abs(held - x) <= (steps / 2 + 1e-6) * largest).all()
  at_top = jnp.abs(x) == largest
  assert (jnp.sign(held) == jnp.sign(x))[jnp.abs(x) > 1e-6 * largest].all()
  np.testing.assert_allclose(jnp.abs(held)[at_top], jnp.abs(x)[at_top], rtol=0.01)
  assert (hold("int8", jnp.zeros((16, 512))) == 0).all()


def test_small_arrays_and_counters_stay_as_they_are():
  params = {"large": jnp.ones((64, SMALLEST // 64)), "small": jnp.ones(SMALLEST - 1)}
  for how, dtype in (("bfloat16", jnp.bfloat16), ("int8", jnp.uint8), ("float32", jnp.float32)):
    state = compressed(optax.scale_by_adam(), how).init(params)
    inner = state.inner if isinstance(state, Compressed) else state
    assert inner.mu["large"].dtype == inner.nu["large"].dtype == dtype
    assert inner.mu["small"].dtype == jnp.float32 and inner.count.dtype == jnp.int32


def test_random_rounding_is_unbiased_and_keeps_means_moving():
  """A mean with b2 = .999 moves by less than half a bfloat16 step: rounding to nearest would stall."""
  tx = compressed(optax.scale_by_adam(b2=0.999), "bfloat16")
  grads = jnp.ones((64, 64))
  state = tx.init(grads)
  step = jax.jit(lambda state: tx.update(grads, state)[1])
  with jax.numpy_dtype_promotion("standard"):  # optax mixes its counts with floats
    for _ in range(700):
      state = step(state)
  held = state.inner.nu.astype(jnp.float32)
  assert float(held.mean()) == pytest.approx(1 - 0.999**700, rel=0.01)
  nearest = jnp.bfloat16(0)
  for _ in range(700):
    nearest = (0.999 * nearest.astype(jnp.float32) + 0.001).astype(jnp.bfloat16)
  assert float(nearest) < 0.7 * (1 - 0.999**700)


def test_random_rounding_is_drawn_from_the_seed():
  grads = jax.random.normal(jax.random.key(0), (64, 64))

  def moments(seed):
    tx = compressed(optax.scale_by_adam(), "bfloat16", seed)
    with jax.numpy_dtype_promotion("standard"):
      return np.asarray(tx.update(grads, tx.init(grads))[1].inner.nu.astype(jnp.float32))

  np.testing.assert_array_equal(moments(0), moments(0))
  assert (moments(0) != moments(1)).mean() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["bfloat16", "int8"])
def test_training_hardly_notices(how):
  shape = {"model__width": 64, "model__vocab_size": 264, "train__steps": 30}
  plain, _ = run(config(**shape), steps=30)
  packed, state = run(config(**shape, optim__state_dtype=how), steps=30)
  losses = np.array([[float(h["train/loss"]) for h in history] for history in (plain, packed)])
  assert np.abs(losses[0] - losses[1]).max() < 0.01
  assert (losses[0] != losses[1]).any()
  kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(state.opt_state)}
  assert ("bfloat16" if how == "bfloat16" else "uint8") in kinds


@pytest.mark.slow
def test_a_mesh_splits_the_codes_like_the_parameters():
  shape = {"model__width": 64, "model__vocab_size": 264, "optim__state_dtype": "int8"}
  alone, _ = run(config(**shape), steps=3)
  spread, _ = run(config(n_devices=8, mesh__replica=1, mesh__fsdp=8, **shape), steps=3)
  for ours, theirs in zip(spread, alone, strict=True):
    np.testing.assert_allclose(ours["train/loss"], theirs["train/loss"], rtol=1e-4)


def test_an_unknown_dtype_is_named():
  with pytest.raises(
    ConfigError, match=r"optim.state_dtype=int4: must be one of float32, bfloat16"
  ):
    config(optim__state_dtype="int4")
