"""Attention by blocks of queries and keys, differentiated by hand: no L x L array is kept.

Each forward pass keeps the output and log Z of every query; each backward pass computes a block's
scores again from them (FlashAttention: Dao et al. 2022, arXiv:2205.14135, appendix B).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from lm.models.scores import HIDDEN, heads_first, heads_last, masked_scores, mix, score_scale, sight

KEEP = "attention"  # name of the residuals, for remat policies


def _inner(g_BGPLK, out_BGPLK):
  """Sums over K of g * out, float32 [B, G, P, L, 1]; as a product, which a CPU does 10 times as fast."""
  g, out = g_BGPLK.astype(jnp.float32), out_BGPLK.astype(jnp.float32)
  return jnp.expand_dims(mix("BGPLK,BGPLK->BGPL", g, out, precision="highest"), -1)


# --- chunks of queries on one device --------------------------------------------------------------


def _chunks(length, window):
  """(start, end, first key in sight) of each chunk of at least 64 queries; at most 8 chunks."""
  size = max(64, -(-length // 8))
  for start in range(0, length, size):
    first = 0 if window is None else max(0, start - window + 1)
    yield start, min(start + size, length), first


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def chunked(q_BLHK, k_BLGK, v_BLGK, segments_BL, slopes_H, cfg):
  """`lm.models.attention.attend` in chunks of queries against the keys in their sight.

  About half the products of the reference.
  """
  return _chunked_forward(q_BLHK, k_BLGK, v_BLGK, segments_BL, slopes_H, cfg)[0]


def _chunked_forward(q_BLHK, k_BLGK, v_BLGK, segments_BL, slopes_H, cfg):
  q, k, v = heads_first(q_BLHK, k_BLGK, v_BLGK)
  outs, log_zs = [], []
  for start, end, first in _chunks(q_BLHK.shape[1], cfg.window):
    seen = sight(q_BLHK.shape[1], segments_BL, start, end, first)
    scores, _ = masked_scores(q[..., start:end, :], k[:, :, first:end], *seen, slopes_H, cfg)
    top = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    z = weights.sum(axis=-1, keepdims=True)
    out = mix("BGPLM,BGMK->BGPLK", weights.astype(v.dtype), v[:, :, first:end])
    outs.append((out / z).astype(q.dtype))
    log_zs.append(top + jnp.log(z))
  out, log_z = jnp.concatenate(outs, axis=-2), jnp.concatenate(log_zs, axis=-2)
  q, k, v, out, log_z = (checkpoint_name(x, KEEP) for x in (q, k, v, out, log_z))
  return heads_last(out), (q, k, v, segments_BL, slopes_H, out, log_z)


def _chunked_backward(cfg, residuals, g_BLHK):
  q, k, v, segments_BL, slopes_H, out, log_z = residuals
  length = g_BLHK.shape[1]
  g = g_BLHK.reshape(*g_BLHK.shape[:2], *q.shape[1:3], -1).transpose(0, 2, 3, 1, 4)
  inner = _inner(g, out)
  grad_q = []
  grad_k = grad_v = jnp.zeros(k.shape, jnp.float32)
  for start, end, first in _chunks(length, cfg.window):
    rows, keys = np.s_[..., start:end, :], np.s_[:, :, first:end]
    seen = sight(length, segments_BL, start, end, first)
    scores, slope = masked_scores(q[rows], k[keys], *seen, slopes_H, cfg)
    weights = jnp.exp(scores - log_z[rows])
    grad_scores = weights * (mix("BGPLK,BGMK->BGPLM", g[rows], v[keys]) - inner[rows])
    if slope is not None:
      grad_scores *= slope
    grad_scores = (grad_scores * score_scale(cfg)).astype(q.dtype)
    grad_q.append(mix("BGPLM,BGMK->BGPLK", grad_scores, k[keys]))
    elsewhere = ((0, 0), (0, 0), (first, length - end), (0, 0))
    grad_k += jnp.pad(mix("BGPLM,BGPLK->BGMK", grad_scores, q[rows]), elsewhere)
    grad_v += jnp.pad(mix("BGPLM,BGPLK->BGMK", weights.astype(v.dtype), g[rows]), elsewhere)
  grad_q = heads_last(jnp.concatenate(grad_q, axis=-2).astype(q.dtype))
  kv = [grad.astype(q.dtype).transpose(0, 2, 1, 3) for grad in (grad_k, grad_v)]
  return grad_q, *kv, None, None


chunked.defvjp(_chunked_forward, _chunked_backward)


# --- a ring of devices ----------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def ring(q_BLHK, k_BLGK, v_BLGK, segments_BL, slopes_H, cfg, axis, n):
  """`attend` for rows cut into n pieces along a mesh axis; call it under shard_map.

  Each device keeps its queries and hands its keys and values to the next one, n times round: Liu et
  al. 2023, arXiv:2310.01889. Pieces that lie wholly out of sight are passed on unread. Pieces are
  contiguous, so the last device reads n of them and the first one only its own.

  Args:
    q_BLHK, k_BLGK, v_BLGK, segments_BL: this device's piece of the rows.
    axis: name of the mesh axis; n: its size.
  """
  return _ring_forward(q_BLHK, k_BLGK, v_BLGK, segments_BL, slopes_H, cfg, axis, n)[0]


def _ring_forward(q_BLHK, k_BLGK, v_BLGK, segments_BL, slopes_H, cfg, axis, n):
  q, k, v = heads_first(q_BLHK, k_BLGK, v_BLGK)

  def read(state, piece, seen):
    out, top, z = state
    k, v, _ = piece
    scores, _ = masked_scores(q, k, *seen, slopes_H, cfg)
    new_top = jnp.maximum(top, scores.max(axis=-1, keepdims=True))
    weights, shrink = jnp.exp(scores - new_top), jnp.exp(top - new_top)
    out = out * shrink + mix("BGPLM,BGMK->BGPLK", weights.astype(v.dtype), v)
    return out, new_top, z * shrink + weights.sum(axis=-1, keepdims=True)

  empty = jnp.zeros((*q.shape[:-1], 1), jnp.float32)
  state = (jnp.zeros(q.shape, jnp.float32), empty + HIDDEN, empty)
  (out, top, z), _ = _go_round(read, state, (k, v, segments_BL), segments_BL, cfg, axis, n)
  out, log_z = (out / z).astype(q.dtype), top + jnp.log(z)
  q, k, v, out, log_z = (checkpoint_name(x, KEEP) for x in (q, k, v, out, log_z))
  return heads_last(out), (q, k, v, segments_BL, slopes_H, out, log_z)


def _ring_backward(cfg, axis, n, residuals, g_BLHK):
  q, k, v, segments_BL, slopes_H, out, log_z = residuals
  g = g_BLHK.reshape(*g_BLHK.shape[:2], *q.shape[1:3], -1).transpose(0, 2, 3, 1, 4)
  inner = _inner(g, out)

  def read(grad_q, piece, seen):
    k, v, _, grad_k, grad_v = piece
    scores, slope = masked_scores(q, k, *seen, slopes_H, cfg)
    weights = jnp.exp(scores - log_z)
    grad_scores = weights * (mix("BGPLK,BGMK->BGPLM", g, v) - inner)
    if slope is not None:
      grad_scores *= slope
    grad_scores = (grad_scores * score_scale(cfg)).astype(q.dtype)
    grad_k += mix("BGPLM,BGPLK->BGMK", grad_scores, q)
    grad_v += mix("BGPLM,BGPLK->BGMK", weights.astype(v.dtype), g)
    grad_q += mix("BGPLM,BGMK->BGPLK", grad_scores, k)
    return grad_q, (*piece[:3], grad_k, grad_v)

  zeros = jnp.zeros(k.shape, jnp.float32)
  grad_q = jnp.zeros(q.shape, jnp.float32)
  pieces = (k, v, segments_BL, zeros, zeros)
  grad_q, pieces = _go_round(read, grad_q, pieces, segments_BL, cfg, axis, n, changes=True)
  kv = [grad.astype(q.dtype).transpose(0, 2, 1, 3) for grad in pieces[3:]]
  return heads_last(grad_q.astype(q.dtype)), *kv, None, None


def _go_round(read, state, piece, segments_BL, cfg, axis, n, changes=False):
  """(state, piece) after `read` has met every piece; each is back where it came from.

  `read(state, piece, seen)` gives the new state, and with `changes` also the piece to hand on.
  """
  mine = jax.lax.axis_index(axis)
  length = piece[0].shape[2]
  inner_LM = np.arange(length)[:, None] - np.arange(length)[None]
  onward = [(i, (i + 1) % n) for i in range(n)]

  def turn(carry, turn_number):
    state, piece = carry
    apart = mine - (mine - turn_number) % n  # pieces between queries and keys
    same = None if segments_BL is None else segments_BL[:, :, None] == piece[2][:, None, :]
    seen = ((apart * length + inner_LM)[None], same)

    def met(state, piece):
      return read(state, piece, seen) if changes else (read(state, piece, seen), piece)

    near = apart >= 0
    if cfg.window is not None:
      near &= (apart - 1) * length + 1 < cfg.window
    carry = jax.lax.cond(near, met, lambda *same: same, state, piece)
    return (carry[0], jax.tree.map(lambda x: jax.lax.ppermute(x, axis, onward), carry[1])), None

  return jax.lax.scan(turn, (state, piece), jnp.arange(n, dtype=jnp.int32))[0]


ring.defvjp(_ring_forward, _ring_backward)
