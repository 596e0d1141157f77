"""Attention by blocks of queries and keys, differentiated by hand: no L x M array is kept.

Each forward pass keeps the output and log Z of every query; each backward pass computes a block's
scores again from them (FlashAttention: Dao et al. 2022, arXiv:2205.14135, appendix B). A query that
sees no key gives 0 and takes and sends no gradient.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from lm.models.attention.scores import (
  HIDDEN,
  Terms,
  allowed,
  einsum_f32,
  heads_first,
  heads_last,
  highest,
  masked_scores,
  sight,
)

KEEP = "attention"  # name of the residuals, for remat policies


def _inner(g_BGPLK, out_BGPLK):
  """Sums over K of g * out, float32 [B, G, P, L, 1]; as a product, which a CPU does 10 times as fast."""
  g, out = g_BGPLK.astype(jnp.float32), out_BGPLK.astype(jnp.float32)
  return jnp.expand_dims(einsum_f32("BGPLK,BGPLK->BGPL", g, out, precision="highest"), -1)


def _normalise(out, top, z, rule):
  """(out / Z, log Z), with Z = 1 where a query sees nothing."""
  if rule.blind:
    z = jnp.where(z == 0, 1.0, z)
  return out / z, top + jnp.log(z)


def _bias_gradient(grad_scores_BGPLM, bias_BHLM):
  """The scores' gradient as that of a bias, which rows may share."""
  if bias_BHLM.shape[0] == 1:
    grad_scores_BGPLM = grad_scores_BGPLM.sum(axis=0, keepdims=True)
  B, G, P, L, M = grad_scores_BGPLM.shape
  return grad_scores_BGPLM.reshape(B, G * P, L, M)


# --- chunks of queries on one device --------------------------------------------------------------


def _chunks(length, key_length, rule):
  """(start, end, first, last) of each chunk of at least 64 queries and the keys in its sight."""
  size = max(64, -(-length // 8))  # at most 8 chunks
  for start in range(0, length, size):
    end = min(start + size, length)
    first, last = 0, key_length
    if rule.causal:
      last = min(last, end + rule.offset)
    if rule.window is not None:
      first = max(0, start + rule.offset - rule.window + 1)
      last = min(last, end + rule.offset + rule.window - 1)
    first = min(first, key_length - 1)  # one key at least, hidden if need be
    yield start, end, first, max(last, first + 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def chunked(q_BLHK, k_BMGK, v_BMGK, terms, rule):
  """`lm.models.attention.forms.attend` in chunks of queries against the keys in their sight.

  About half the products of the reference where it is causal.
  """
  return _chunked_forward(q_BLHK, k_BMGK, v_BMGK, terms, rule)[0]


def _chunked_forward(q_BLHK, k_BMGK, v_BMGK, terms, rule):
  lengths = q_BLHK.shape[1], k_BMGK.shape[1]
  q, k, v = heads_first(q_BLHK, k_BMGK, v_BMGK)
  outs, log_zs = [], []
  for start, end, first, last in _chunks(*lengths, rule):
    seen = sight(*lengths, terms, rule, start, end, first, last)
    queries, keys = q[..., start:end, :], k[:, :, first:last]
    scores, _ = masked_scores(queries, keys, seen, terms.slopes_H, rule)
    top = highest(scores, rule)
    weights = jnp.exp(scores - top)
    z = weights.sum(axis=-1, keepdims=True)
    out = einsum_f32("BGPLM,BGMK->BGPLK", weights.astype(v.dtype), v[:, :, first:last])
    out, log_z = _normalise(out, top, z, rule)
    outs.append(out.astype(q.dtype))
    log_zs.append(log_z)
  out, log_z = jnp.concatenate(outs, axis=-2), jnp.concatenate(log_zs, axis=-2)
  q, k, v, out, log_z = (checkpoint_name(x, KEEP) for x in (q, k, v, out, log_z))
  return heads_last(out), (q, k, v, terms, out, log_z)


def _chunked_backward(rule, residuals, g_BLHK):
  q, k, v, terms, out, log_z = residuals
  lengths = g_BLHK.shape[1], k.shape[2]
  g = g_BLHK.reshape(*g_BLHK.shape[:2], *q.shape[1:3], -1).transpose(0, 2, 3, 1, 4)
  inner = _inner(g, out)
  grad_q, grad_bias = [], []
  grad_k = grad_v = jnp.zeros(k.shape, jnp.float32)
  for start, end, first, last in _chunks(*lengths, rule):
    rows, keys = np.s_[..., start:end, :], np.s_[:, :, first:last]
    seen = sight(*lengths, terms, rule, start, end, first, last)
    scores, slope = masked_scores(q[rows], k[keys], seen, terms.slopes_H, rule)
    weights = jnp.exp(scores - log_z[rows])
    grad_scores = weights * (einsum_f32("BGPLK,BGMK->BGPLM", g[rows], v[keys]) - inner[rows])
    if terms.bias_BHLM is not None:
      of_chunk = _bias_gradient(grad_scores, terms.bias_BHLM)
      others = ((0, 0), (0, 0), (0, 0), (first, lengths[1] - last))
      grad_bias.append(jnp.pad(of_chunk, others))
    if slope is not None:
      grad_scores *= slope
    grad_scores = (grad_scores * rule.scale).astype(q.dtype)
    grad_q.append(einsum_f32("BGPLM,BGMK->BGPLK", grad_scores, k[keys]))
    elsewhere = ((0, 0), (0, 0), (first, lengths[1] - last), (0, 0))
    grad_k += jnp.pad(einsum_f32("BGPLM,BGPLK->BGMK", grad_scores, q[rows]), elsewhere)
    grad_v += jnp.pad(einsum_f32("BGPLM,BGPLK->BGMK", weights.astype(v.dtype), g[rows]), elsewhere)
  grad_q = heads_last(jnp.concatenate(grad_q, axis=-2).astype(q.dtype))
  kv = [grad.astype(q.dtype).transpose(0, 2, 1, 3) for grad in (grad_k, grad_v)]
  if grad_bias:
    grad_bias = jnp.concatenate(grad_bias, axis=2).astype(terms.bias_BHLM.dtype)
  return grad_q, *kv, Terms(bias_BHLM=None if terms.bias_BHLM is None else grad_bias)


chunked.defvjp(_chunked_forward, _chunked_backward)


# --- a ring of devices ----------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def ring(q_BLHK, k_BMGK, v_BMGK, terms, rule, axis, n):
  """`attend` for queries and keys cut into n pieces along a mesh axis; call it under shard_map.

  Each device keeps its queries and hands its keys and values to the next one, n times round: Liu et
  al. 2023, arXiv:2310.01889. Pieces that lie wholly out of sight are passed on unread. Pieces are
  contiguous, so in causal attention the last device reads n of them and the first one only its own.

  Args:
    q_BLHK, k_BMGK, v_BMGK: this device's piece of the queries, and of the keys.
    terms: its piece of them; of the bias, its queries and all keys.
    axis: name of the mesh axis; n: its size.
  """
  return _ring_forward(q_BLHK, k_BMGK, v_BMGK, terms, rule, axis, n)[0]


def _ring_forward(q_BLHK, k_BMGK, v_BMGK, terms, rule, axis, n):
  q, k, v = heads_first(q_BLHK, k_BMGK, v_BMGK)

  def read(state, piece, seen, first):
    del first
    out, top, z = state
    k, v, *_ = piece
    scores, _ = masked_scores(q, k, seen, terms.slopes_H, rule)
    new_top = jnp.maximum(top, highest(scores, rule))
    weights, shrink = jnp.exp(scores - new_top), jnp.exp(top - new_top)
    out = out * shrink + einsum_f32("BGPLM,BGMK->BGPLK", weights.astype(v.dtype), v)
    return out, new_top, z * shrink + weights.sum(axis=-1, keepdims=True)

  empty = jnp.zeros((*q.shape[:-1], 1), jnp.float32)
  state = (jnp.zeros(q.shape, jnp.float32), empty + HIDDEN, empty)
  piece = (k, v, terms.key_segments_BM, terms.key_mask_BM)
  (out, top, z), _ = _go_round(read, state, piece, q.shape[3], terms, rule, axis, n)
  out, log_z = _normalise(out, top, z, rule)
  out = out.astype(q.dtype)
  q, k, v, out, log_z = (checkpoint_name(x, KEEP) for x in (q, k, v, out, log_z))
  return heads_last(out), (q, k, v, terms, out, log_z)


def _ring_backward(rule, axis, n, residuals, g_BLHK):
  q, k, v, terms, out, log_z = residuals
  g = g_BLHK.reshape(*g_BLHK.shape[:2], *q.shape[1:3], -1).transpose(0, 2, 3, 1, 4)
  inner = _inner(g, out)

  def read(state, piece, seen, first):
    grad_q, grad_bias = state
    k, v, *same, grad_k, grad_v = piece
    scores, slope = masked_scores(q, k, seen, terms.slopes_H, rule)
    weights = jnp.exp(scores - log_z)
    grad_scores = weights * (einsum_f32("BGPLK,BGMK->BGPLM", g, v) - inner)
    if grad_bias is not None:  # a piece is met once
      of_piece = _bias_gradient(grad_scores, grad_bias)
      grad_bias = jax.lax.dynamic_update_slice_in_dim(grad_bias, of_piece, first, axis=3)
    if slope is not None:
      grad_scores *= slope
    grad_scores = (grad_scores * rule.scale).astype(q.dtype)
    grad_k += einsum_f32("BGPLM,BGPLK->BGMK", grad_scores, q)
    grad_v += einsum_f32("BGPLM,BGPLK->BGMK", weights.astype(v.dtype), g)
    grad_q += einsum_f32("BGPLM,BGMK->BGPLK", grad_scores, k)
    return (grad_q, grad_bias), (k, v, *same, grad_k, grad_v)

  zeros = jnp.zeros(k.shape, jnp.float32)
  grad_q, grad_bias = jnp.zeros(q.shape, jnp.float32), None
  if terms.bias_BHLM is not None:
    grad_bias = jnp.zeros(terms.bias_BHLM.shape, jnp.float32)
  piece = (k, v, terms.key_segments_BM, terms.key_mask_BM, zeros, zeros)
  (grad_q, grad_bias), piece = _go_round(
    read, (grad_q, grad_bias), piece, q.shape[3], terms, rule, axis, n, changes=True
  )
  kv = [grad.astype(q.dtype).transpose(0, 2, 1, 3) for grad in piece[4:]]
  if grad_bias is not None:
    grad_bias = grad_bias.astype(terms.bias_BHLM.dtype)
  return heads_last(grad_q.astype(q.dtype)), *kv, Terms(bias_BHLM=grad_bias)


def _go_round(read, state, piece, length, terms, rule, axis, n, changes=False):
  """(state, piece) after `read` has met every piece; each is back where it came from.

  `read(state, piece, seen, first)`, `first` the piece's first key of all, gives the new state, and
  with `changes` also the piece to hand on.
  """
  mine = jax.lax.axis_index(axis)
  key_length = piece[0].shape[2]
  inner_LM = np.arange(length)[:, None] - np.arange(key_length)[None]
  onward = [(i, (i + 1) % n) for i in range(n)]

  def turn(carry, turn_number):
    state, piece = carry
    first = (mine - turn_number) % n * key_length
    apart = mine * length + rule.offset - first  # from the piece's first key to the first query
    bias_BHLM = terms.bias_BHLM
    if bias_BHLM is not None:
      bias_BHLM = jax.lax.dynamic_slice_in_dim(bias_BHLM, first, key_length, axis=3)
    seen = ((apart + inner_LM)[None], allowed(terms.segments_BL, *piece[2:4]), bias_BHLM)

    def met(state, piece):
      found = read(state, piece, seen, first)
      return found if changes else (found, piece)

    nearest, farthest = apart - key_length + 1, apart + length - 1
    near = None
    if rule.causal:
      near = farthest >= 0
    elif rule.window is not None:
      near = farthest > -rule.window
    if rule.window is not None:
      near &= nearest < rule.window
    if near is None:
      state, piece = met(state, piece)
    else:
      state, piece = jax.lax.cond(near, met, lambda *same: same, state, piece)
    return (state, jax.tree.map(lambda x: jax.lax.ppermute(x, axis, onward), piece)), None

  return jax.lax.scan(turn, (state, piece), jnp.arange(n, dtype=jnp.int32))[0]


ring.defvjp(_ring_forward, _ring_backward)
