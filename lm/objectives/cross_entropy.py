"""Cross-entropy of tokens as sums, whole or in chunks of positions."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lm.config.hparams import Hparams

Sums = dict[str, jax.Array]


def token_sums(
  logits_BLV: jax.Array,
  targets_BL: jax.Array,
  weights_BL: jax.Array,
  hparams: Hparams,
  text_BL: jax.Array | None = None,
) -> tuple[jax.Array, Sums]:
  """Cross-entropy of next tokens, summed over tokens.

  objective = sum_t w_t [(1 - s) ce_t + s u_t + z (log Z_t)^2] with ce_t = log Z_t - logit of the
  target, u_t = log Z_t - mean logit (label smoothing s, Szegedy et al. 2016, arXiv:1512.00567 §7) and
  the z-loss of PaLM (arXiv:2204.02311 §5). "loss" is sum_t w_t ce_t alone, so runs with different s
  and z compare.

  Args:
    logits_BLV: any float dtype; upcast to float32 here.
    targets_BL: int32 in [0, V).
    weights_BL: float32; 0 on padding.
    hparams: z_loss and label_smoothing are read.
    text_BL: float32, the weights without those of separators.

  Returns:
    (objective, {"loss", "z_loss", "correct", "weight"}): float32 scalars, in nats where it applies; with
    text_BL also "text_loss", sum_t text_t ce_t.
  """
  logits_BLV = logits_BLV.astype(jnp.float32)
  log_z_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
  # A masked sum instead of a gather: its gradient needs no scatter, and a sharded vocabulary no gather.
  vocab_V = jnp.arange(logits_BLV.shape[-1], dtype=targets_BL.dtype)
  hit_BLV = jnp.expand_dims(targets_BL, -1) == jnp.expand_dims(vocab_V, range(targets_BL.ndim))
  target_BL = jnp.sum(jnp.where(hit_BLV, logits_BLV, 0.0), axis=-1)
  ce_BL = log_z_BL - target_BL
  uniform_BL = log_z_BL - logits_BLV.mean(axis=-1)
  # argmax without its slow reduction: no logit is higher, and none before the target is as high.
  before_BLV = jnp.expand_dims(targets_BL, -1) > jnp.expand_dims(vocab_V, range(targets_BL.ndim))
  tied_BL = ((logits_BLV == jnp.expand_dims(target_BL, -1)) & before_BLV).any(axis=-1)
  first_BL = (target_BL >= logits_BLV.max(axis=-1)) & ~tied_BL
  smooth = hparams.label_smoothing
  objective_BL = (1 - smooth) * ce_BL + smooth * uniform_BL + hparams.z_loss * log_z_BL**2
  sums = {
    "loss": (weights_BL * ce_BL).sum(),
    "z_loss": (weights_BL * hparams.z_loss * log_z_BL**2).sum(),
    "correct": jnp.where(first_BL, weights_BL, 0.0).sum(),
    "weight": weights_BL.sum(),
  }
  if text_BL is not None:
    sums["text_loss"] = (text_BL * ce_BL).sum()
  return (weights_BL * objective_BL).sum(), sums


def chunked_token_sums(
  logits_fn: Callable[[Any, jax.Array], jax.Array],
  head_params: Any,
  x_BLD: jax.Array,
  targets_BL: jax.Array,
  weights_BL: jax.Array,
  hparams: Hparams,
  chunk: int,
  text_BL: jax.Array | None = None,
) -> tuple[jax.Array, Sums]:
  """`token_sums` of logits_fn(head_params, x_BLD), never holding more than `chunk` positions of logits.

  Under differentiation the gradient of each chunk is taken in the forward pass, right after its
  logits: nothing of size V is kept or computed twice. Equal to the plain form up to summation order.

  Args:
    logits_fn: (head_params, x [B, chunk, D]) -> logits [B, chunk, V].
    head_params: what logits_fn reads, a pytree.
    chunk: positions at once; divides L.
  """
  texts = [] if text_BL is None else [text_BL]
  parts = [_chunks(a, chunk) for a in (x_BLD, targets_BL, weights_BL, *texts)]

  def sums_of(head_params, x_BCD, targets_BC, weights_BC, *texts):
    return token_sums(logits_fn(head_params, x_BCD), targets_BC, weights_BC, hparams, *texts)

  @jax.custom_vjp
  def total(head_params, x_NBCD):
    out = jax.lax.map(lambda p: sums_of(head_params, *p), (x_NBCD, *parts[1:]))
    return jax.tree.map(lambda a: a.sum(axis=0), out)

  def forward(head_params, x_NBCD):
    def body(grad_head, part):
      vjp_of = functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
      out, (g_head, g_x) = vjp_of(sums_of)(head_params, *part)
      return jax.tree.map(jnp.add, grad_head, g_head), (out, g_x)

    zeros = jax.tree.map(jnp.zeros_like, head_params)
    grad_head, (out, grad_x_NBCD) = jax.lax.scan(body, zeros, (x_NBCD, *parts[1:]))
    return jax.tree.map(lambda a: a.sum(axis=0), out), (grad_head, grad_x_NBCD)

  def backward(residuals, cotangents):
    scale = cotangents[0]  # of the objective; the other sums are metrics and carry no gradient
    return jax.tree.map(lambda g: (scale * g).astype(g.dtype), residuals)

  total.defvjp(forward, backward)
  return total(head_params, parts[0])


def _chunks(a: jax.Array, size: int) -> jax.Array:
  """[B, L, ...] -> [L / size, B, size, ...]; every chunk has positions of all of L.

  So each device works on every chunk where positions are split over a mesh.
  """
  n = a.shape[1] // size
  return jnp.moveaxis(a.reshape(a.shape[0], size, n, *a.shape[2:]), 2, 0)
