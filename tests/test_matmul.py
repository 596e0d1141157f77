"""Products in int8 and, on CPUs, in bfloat16, against plain ones."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.devices import instructions
from lm.models.matmul import int8_matmul, matmul
from tests.test_step import config, run

NAMES = ("embed", "mlp")


def case(dtype=jnp.float32, shape=(3, 5, 64), features=96):
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(keys[0], shape).astype(dtype)
  w = jax.random.normal(keys[1], (shape[-1], features)) / 8
  return x, w, jax.random.normal(keys[2], (*shape[:-1], features)).astype(dtype)


def grads(product, x, w, g):
  return jax.vjp(lambda x, w: product(x, w, NAMES), x, w)[1](g)


def test_int8_products_are_those_of_the_rounded_factors():
  x, w, _ = case()
  x_scale = jnp.abs(x).max(axis=-1, keepdims=True) / 127
  w_scale = jnp.abs(w).max() / 127
  rounded = (jnp.round(x / x_scale) * x_scale) @ (jnp.round(w / w_scale) * w_scale)
  np.testing.assert_allclose(int8_matmul(x, w, NAMES), rounded, rtol=1e-4, atol=1e-5)
  error = jnp.abs(int8_matmul(x, w, NAMES) - x @ w)
  assert 0 < float(error.max()) < 0.1


def test_int8_gradients_round_that_of_x_and_not_that_of_w():
  x, w, g = case()
  grad_x, grad_w = grads(int8_matmul, x, w, g)
  np.testing.assert_allclose(grad_w, jnp.einsum("BLD,BLF->DF", x, g), rtol=1e-5, atol=1e-5)
  g_scale = jnp.abs(g).max(axis=-1, keepdims=True) / 127
  w_scale = jnp.abs(w).max() / 127
  rounded = (jnp.round(g / g_scale) * g_scale) @ (jnp.round(w / w_scale) * w_scale).T
  np.testing.assert_allclose(grad_x, rounded, rtol=1e-4, atol=1e-5)
  assert (int8_matmul(jnp.zeros_like(x), w, NAMES) == 0).all()


@pytest.mark.slow
def test_training_in_int8_keeps_the_loss():
  plain, _ = run(config(train__steps=40), steps=40)
  coarse, _ = run(config(train__steps=40, model__matmul="int8"), steps=40)
  losses = np.array([[float(h["train/loss"]) for h in history] for history in (plain, coarse)])
  assert (losses[0] != losses[1]).any()
  assert np.abs(losses[0] - losses[1]).max() < 0.02


@pytest.fixture(params=[True, False], ids=["multiplied", "emulated"])
def in_hardware(request, monkeypatch):
  """CPUs with instructions for bfloat16, and those without."""
  monkeypatch.setattr(instructions, "multiplies_bfloat16", lambda: request.param)
  return request.param


@pytest.mark.parametrize("shape", [(3, 5, 64), (40, 64)])
def test_bfloat16_products_are_rounded_once(shape, in_hardware):
  x, w, g = case(jnp.bfloat16, shape)
  half = w.astype(jnp.bfloat16).astype(jnp.float32)
  full = x.astype(jnp.float32)
  y = matmul(x, w, NAMES)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(y.astype(jnp.float32), full @ half, rtol=2**-8, atol=1e-5)
  grad_x, grad_w = grads(matmul, x, w, g)
  assert (grad_x.dtype, grad_w.dtype) == (jnp.bfloat16, jnp.float32)
  g_full = g.astype(jnp.float32)
  np.testing.assert_allclose(grad_x.astype(jnp.float32), g_full @ half.T, rtol=2**-8, atol=1e-4)
  np.testing.assert_allclose(
    grad_w,
    jnp.einsum("TD,TF->DF", full.reshape(-1, 64), g_full.reshape(-1, 96)),
    rtol=1e-4,
    atol=1e-4,
  )


def test_bfloat16_products_of_stacked_runs():
  x, w, _ = case(jnp.bfloat16)
  both = jax.jit(jax.vmap(jax.grad(lambda w, x: matmul(x, w, NAMES).astype(jnp.float32).sum())))
  found = both(jnp.stack([w, 2 * w]), jnp.stack([x, 3 * x]))
  alone = jax.grad(lambda w, x: matmul(x, w, NAMES).astype(jnp.float32).sum())(2 * w, 3 * x)
  np.testing.assert_allclose(found[1], alone, rtol=1e-5)


def test_bfloat16_products_on_one_cpu_have_row_major_bfloat16_factors(in_hardware):
  """XLA multiplies in float32 where a factor is a transpose or the product is rounded at once.

  Where the CPU has no instructions for it, factors are float32 to begin with.
  """
  x, w = jnp.ones((2, 4, 8), jnp.bfloat16), jnp.ones((16, 8))
  product = lambda x, w: matmul(x, w.T, ("embed", "vocab")).sum()
  text = jax.jit(jax.grad(product, argnums=(0, 1))).lower(x, w).as_text()
  dots = [line for line in text.splitlines() if "dot_general" in line]
  assert len(dots) == 2
  if not in_hardware:
    assert all(re.search(r"\(tensor<\w+xf32>, tensor<\w+xf32>\)", dot) for dot in dots)
    return
  for dot in dots:
    assert "contracting_dims = [1] x [0]" in dot
    assert re.search(r"\(tensor<\w+xbf16>, tensor<\w+xbf16>\) -> tensor<\w+xf32>", dot)
  assert text.count("@LayoutConstraint") == 2 * len(dots)
