"""Attention's scores: what every form of lm.models.attention computes before the softmax.

Below, P = H/G is an axis of its own and heads come before positions.
"""

import functools
import math
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lm.models.parameterization import multiplier

HIDDEN = -1e30  # a score whose softmax weight is exactly 0
einsum_f32 = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class AttentionConfig(Protocol):
  """The fields of a model's config section that attention reads."""

  head_dim: int
  base_head_dim: int
  parameterization: str
  positions: str
  window: int | None
  attention_softcap: float | None
  attention: str
  dtype: str


class ScoreRule(NamedTuple):
  """What a query sees and how scores are shaped: fixed when a program is traced."""

  causal: bool
  window: int | None
  softcap: float | None
  scale: float
  offset: int  # position of the first query; keys start at position 0
  blind: bool  # whether a query may see no key at all; its output is then 0


class Terms(NamedTuple):
  """The arrays that scores depend on beside queries and keys; None where there is no such term."""

  segments_BL: jax.Array | None = None
  key_segments_BM: jax.Array | None = None
  key_mask_BM: jax.Array | None = None
  slopes_H: jax.Array | np.ndarray | None = None  # of alibi
  bias_BHLM: jax.Array | None = None


def score_scale(cfg: AttentionConfig) -> float:
  """What query-key products are multiplied by: 1/sqrt(K), or sqrt(base K)/K where the table says so."""
  ratio = cfg.head_dim / cfg.base_head_dim
  return multiplier(cfg.parameterization, "attention", "output", ratio) / math.sqrt(cfg.head_dim)


def alibi_slopes(heads: int) -> np.ndarray:
  """Float32 [H]: 2^(-8 h / H) for h = 1..H (Press et al. 2022, arXiv:2108.12409 §3).

  Where H is no power of two, the slopes of the power below it, then every other one of the power
  above, as in the paper's released code.
  """
  below = 2 ** int(math.log2(heads))
  slopes_of = lambda n: 2.0 ** (-8.0 / n * np.arange(1, n + 1))
  return np.concatenate([slopes_of(below), slopes_of(2 * below)[::2]])[:heads].astype(np.float32)


def sees(distance, rule):
  """Whether a query sees a key `distance` positions before it (negative: after it)."""
  if rule.causal:
    seen = distance >= 0
    return seen if rule.window is None else seen & (distance < rule.window)
  if rule.window is None:
    return np.ones((1, 1, 1), bool)
  return abs(distance) < rule.window


def sight(length, key_length, terms, rule, start=0, end=None, first=0, last=None):
  """(distance, allowed, bias) of queries start:end and keys first:last, for `masked_scores`."""
  end, last = length if end is None else end, key_length if last is None else last
  distance_1LM = (np.arange(start, end)[:, None] - np.arange(first, last)[None])[None]
  segments_BL, key_segments_BM, key_mask_BM = terms[:3]
  if segments_BL is not None:
    segments_BL, key_segments_BM = segments_BL[:, start:end], key_segments_BM[:, first:last]
  if key_mask_BM is not None:
    key_mask_BM = key_mask_BM[:, first:last]
  bias_BHLM = terms.bias_BHLM
  if bias_BHLM is not None:
    bias_BHLM = bias_BHLM[:, :, start:end, first:last]
  return distance_1LM + rule.offset, allowed(segments_BL, key_segments_BM, key_mask_BM), bias_BHLM


def allowed(segments_BL, key_segments_BM, key_mask_BM):
  """Bool [B, L or 1, M]: whether segments and mask let a query see a key; None = everywhere."""
  allowed_BLM = None
  if segments_BL is not None:
    allowed_BLM = segments_BL[:, :, None] == key_segments_BM[:, None, :]
  if key_mask_BM is not None:
    mask_B1M = key_mask_BM[:, None, :]
    allowed_BLM = mask_B1M if allowed_BLM is None else allowed_BLM & mask_B1M
  return allowed_BLM


def masked_scores(q_BGPLK, k_BGMK, seen, slopes_H, rule):
  """softcap(scale q k) + bias - slope |distance|, HIDDEN where a query does not see a key.

  Args:
    seen: (distance [B or 1, L, M] of a query from a key before it, int;
      allowed [B, L or 1, M] bool or None; bias [B or 1, H, L, M] or None).
    slopes_H: of alibi, for the H heads at hand; None without.

  Returns:
    (scores, their derivative by the raw ones or None): float32 [B, G, P, L, M].
  """
  distance_BLM, allowed_BLM, bias_BHLM = seen
  scores = einsum_f32("BGPLK,BGMK->BGPLM", q_BGPLK, k_BGMK)
  scores *= rule.scale
  slope = None
  if rule.softcap is not None:
    squashed = jnp.tanh(scores / rule.softcap)
    scores, slope = rule.softcap * squashed, 1 - jnp.square(squashed)
  if bias_BHLM is not None:
    grouped = (bias_BHLM.shape[0], *scores.shape[1:])
    scores += bias_BHLM.astype(jnp.float32).reshape(grouped)
  if slopes_H is not None:
    slopes_1GP11 = slopes_H.reshape(1, *q_BGPLK.shape[1:3], 1, 1)
    apart_BLM = distance_BLM if rule.causal else abs(distance_BLM)
    scores -= slopes_1GP11 * apart_BLM[:, None, None].astype(np.float32)
  visible_BLM = sees(distance_BLM, rule)
  if allowed_BLM is not None:
    visible_BLM = visible_BLM & allowed_BLM
  return jnp.where(visible_BLM[:, None, None], scores, HIDDEN), slope


def highest(scores, rule):
  """Row maxima; above HIDDEN for a row that sees nothing, so that all its weights become 0."""
  top = scores.max(axis=-1, keepdims=True)
  return jnp.maximum(top, HIDDEN / 2) if rule.blind else top


def heads_first(q_BLHK, k_BMGK, v_BMGK):
  B, L, H, K = q_BLHK.shape
  G = k_BMGK.shape[2]
  q_BGPLK = q_BLHK.reshape(B, L, G, H // G, K).transpose(0, 2, 3, 1, 4)
  return q_BGPLK, k_BMGK.transpose(0, 2, 1, 3), v_BMGK.transpose(0, 2, 1, 3)


def heads_last(x_BGPLK):
  B, G, P, L, K = x_BGPLK.shape
  return x_BGPLK.transpose(0, 3, 1, 2, 4).reshape(B, L, G * P, K)
