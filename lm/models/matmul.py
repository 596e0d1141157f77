"""Products of activations and weights: in the dtype of the activations, or in int8."""

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from lm.devices import instructions
from lm.devices.sharding import gather, on_one_cpu


def matmul(
  x: jax.Array, w: jax.Array, names: tuple[str, str], bias: jax.Array | None = None
) -> jax.Array:
  """x [..., D] @ w [D, F] (+ bias [F]) in the dtype of x, summed in float32.

  On one CPU device tokens are flattened first, which is up to 1.5 times the speed.

  Args:
    w: float32; bias too.
    names: logical names of the axes of w, to gather it by.
  """
  if not on_one_cpu():
    y = x @ gather(w.astype(x.dtype), names)  # flattening would merge sharded axes
    return y if bias is None else y + _last_axis(bias.astype(y.dtype), y.ndim)
  y_TF = _bfloat16_matmul(x, w) if x.dtype == jnp.bfloat16 else _flat(x) @ w
  if bias is not None:
    y_TF = _add_bias(y_TF, bias)
  return y_TF.astype(x.dtype).reshape(*x.shape[:-1], w.shape[-1])


def _last_axis(a, ndim):
  return jnp.expand_dims(a, range(ndim - 1))


@jax.custom_vjp
def _add_bias(y_TF, bias_F):
  """The gradient of the bias as a product with ones: XLA's sums over rows are slow on CPUs."""
  return y_TF + _last_axis(bias_F, 2)


def _add_bias_backward(_, g_TF):
  return g_TF, (jnp.ones((1, g_TF.shape[0]), g_TF.dtype) @ g_TF)[0]


_add_bias.defvjp(lambda y_TF, bias_F: (_add_bias(y_TF, bias_F), None), _add_bias_backward)


def _flat(x):
  return x.reshape(-1, x.shape[-1])


@jax.custom_vjp
def _bfloat16_matmul(x, w_DF):
  """bfloat16 x [..., D] times float32 w, rounded to bfloat16, as float32 [T, F], for CPUs."""
  return _bfloat16_dot(_flat(x), w_DF.astype(x.dtype))


def _bfloat16_matmul_forward(x, w_DF):
  return _bfloat16_matmul(x, w_DF), (x, w_DF)  # x as it is: products that share it keep it once


def _bfloat16_matmul_backward(residuals, g_TF):
  x, w_DF = residuals
  g_TF = g_TF.astype(x.dtype)  # exact where the product was rounded to that
  grad_x = _bfloat16_dot(g_TF, w_DF.astype(x.dtype).T).astype(x.dtype)
  return grad_x.reshape(x.shape), _bfloat16_dot(_flat(x).T, g_TF)


def _bfloat16_dot(a, b):
  """a @ b in float32. Row-major factors have twice the speed of float32 ones on CPUs that multiply bfloat16.

  XLA would rather turn a product round than copy a factor, or round the product: then it converts the
  factors to float32. On other CPUs, where each product would be emulated, they are converted at once.
  """
  if not instructions.multiplies_bfloat16():
    return jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32))
  row_major = lambda a: with_layout_constraint(a, Layout((0, 1)))
  a, b = jax.lax.optimization_barrier((row_major(a), row_major(b)))
  return jax.lax.optimization_barrier(jnp.matmul(a, b, preferred_element_type=jnp.float32))


_bfloat16_matmul.defvjp(_bfloat16_matmul_forward, _bfloat16_matmul_backward)


# --- int8 -----------------------------------------------------------------------------------------


def int8_matmul(
  x: jax.Array, w: jax.Array, names: tuple[str, str], bias: jax.Array | None = None
) -> jax.Array:
  """`matmul` with 8-bit factors, forward and for the gradient of x; that of w keeps the dtype of x.

  Each token's vector and the whole matrix are divided by their largest magnitude / 127 and rounded;
  products are summed in int32. SwitchBack: Wortsman et al. 2023, arXiv:2304.13013 §2.2, algorithm 1.
  """
  y = _int8_matmul(x, gather(w.astype(x.dtype), names))
  return y if bias is None else y + _last_axis(bias.astype(y.dtype), y.ndim)


@jax.custom_vjp
def _int8_matmul(x, w):
  return _int8_product(x, w)


def _int8_matmul_forward(x, w):
  return _int8_product(x, w), (x, w)


def _int8_matmul_backward(residuals, g):
  x, w = residuals
  tokens = tuple(range(x.ndim - 1))
  grad_w = jax.lax.dot_general(
    x, g, ((tokens, tokens), ((), ())), preferred_element_type=jnp.float32
  )
  return _int8_product(g, w.T), grad_w.astype(w.dtype)


def _int8_product(x, w):
  x_int, x_scale = _to_int8(x, axis=-1)
  w_int, w_scale = _to_int8(w, axis=None)
  product = jnp.matmul(x_int, w_int, preferred_element_type=jnp.int32).astype(jnp.float32)
  return (product * (x_scale * w_scale.reshape((1,) * x.ndim))).astype(x.dtype)


def _to_int8(a, axis):
  """(int8 codes, float32 scale): a is about codes * scale."""
  a = a.astype(jnp.float32)
  largest = jnp.abs(a).max(axis=axis, keepdims=True)
  scale = jnp.where(largest == 0, 1.0, largest / 127)
  return jnp.round(a / scale).astype(jnp.int8), scale


_int8_matmul.defvjp(_int8_matmul_forward, _int8_matmul_backward)
