"""Beam search: the likeliest texts after a prompt or of a source, several of each where asked.

The rules are those of `transformers` (generate with num_beams, early_stopping=False), so that equal weights
give equal texts.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.config.schema import ModelConfig
from lm.models.decoding import begin, known_only, pad_prompts
from lm.models.registry import make_model

WORST = -1e9  # a score that no text has


class Found(NamedTuple):
  """One text: its tokens without the one that ends it, and sum of log p / length ** length_penalty."""

  ids: list[int]
  score: float


class _Search(NamedTuple):
  """W beams a row; `live` ones go on, `done` ones have ended."""

  step: jax.Array
  cache: Any
  logits: jax.Array  # [B W, V] of the next token
  live_tokens: jax.Array  # int32 [B, W, N]
  live_scores: jax.Array  # [B, W] sums of log p
  done_tokens: jax.Array
  done_scores: jax.Array  # divided by length ** length_penalty
  is_done: jax.Array  # bool [B, W]: whether a slot of `done` is taken
  hopeful: jax.Array  # bool [B]: whether a live beam may still beat one that has ended
  stuck: jax.Array  # bool: all candidates have ended


@functools.lru_cache(maxsize=8)
def make_beam_search(
  cfg: ModelConfig, max_new: int, beams: int, n_tokens: int | None = None
) -> Callable[..., list[list[Found]]]:
  """A compiled `search(params, prompts, length_penalty, eot_id, start_id) -> the W best of each prompt`.

      score(y) = sum_t log p(y_t | y_<t) / |y| ** length_penalty,  |y| with the token that ends it

  At every step the 2 W likeliest continuations of the W live beams are taken; those of the first W that end
  compete with the texts that have ended before, the W likeliest others go on. A row is through when its
  best live beam, at its present length, is below all W ended ones. Texts of max_new tokens count as ended.

  Args:
    cfg: resolved model config.
    max_new: tokens of a text at most.
    beams: W.
    n_tokens: entries of the tokenizer: ids beyond them are never taken. None = all of the vocabulary.
  """
  model = make_model(cfg)

  @functools.partial(jax.jit, static_argnames=("eot_id", "start_id"))
  def run(params, prompts_BP, lengths_B, length_penalty, eot_id, start_id):
    batch = prompts_BP.shape[0]
    begun = begin(model, params, prompts_BP, lengths_B, max_new, start_id)
    every = jnp.repeat(jnp.arange(batch), beams)
    first = jnp.expand_dims(jnp.where(jnp.arange(beams) == 0, 0.0, WORST), 0)
    empty = jnp.full((batch, beams, max_new), eot_id, jnp.int32)
    search = _Search(
      step=jnp.int32(0),
      cache=begun.cache.rows(every),
      logits=begun.logits_BV[every],
      live_tokens=empty,
      live_scores=jnp.broadcast_to(first, (batch, beams)),
      done_tokens=empty,
      done_scores=jnp.full((batch, beams), WORST),
      is_done=jnp.zeros((batch, beams), bool),
      hopeful=jnp.ones(batch, bool),
      stuck=jnp.bool_(False),
    )
    one_step = functools.partial(_step, beams, max_new, length_penalty, eot_id, n_tokens)

    def body(search):
      search, parents_BW, next_BW = one_step(search)
      chosen = (jnp.expand_dims(jnp.arange(batch), 1) * beams + parents_BW).reshape(-1)
      logits_N1V, cache = model.apply(
        {"params": params}, next_BW.reshape(-1, 1), search.cache.rows(chosen), method="decode"
      )
      return search._replace(cache=cache, logits=logits_N1V[:, 0])

    going = lambda search: (search.step < max_new) & search.hopeful.any() & ~search.stuck
    search = jax.lax.while_loop(going, body, search)
    return search.done_tokens, search.done_scores

  def search(
    params,
    prompts: Sequence[Sequence[int]],
    length_penalty: float,
    eot_id: int,
    start_id: int = 0,
  ) -> list[list[Found]]:
    padded, lengths = pad_prompts(cfg, prompts, max_new, eot_id)
    tokens, scores = run(params, padded, lengths, np.float32(length_penalty), eot_id, start_id)
    return [
      [Found(_until(ids, eot_id), float(score)) for ids, score in zip(*row, strict=True)]
      for row in zip(np.asarray(tokens).tolist(), np.asarray(scores).tolist(), strict=True)
    ]

  return search


def _step(beams, max_new, length_penalty, eot_id, n_tokens, search: _Search):
  """(search, which live beam each new one goes on from, its new token), both int32 [B, W]."""
  batch = search.live_scores.shape[0]
  log_p_NV = jax.nn.log_softmax(known_only(search.logits, n_tokens), axis=-1)
  vocab = log_p_NV.shape[-1]
  total_BWV = log_p_NV.reshape(batch, beams, vocab) + search.live_scores[:, :, None]
  scores_BC, flat_BC = jax.lax.top_k(total_BWV.reshape(batch, -1), 2 * beams)
  parents_BC, next_BC = flat_BC // vocab, (flat_BC % vocab).astype(jnp.int32)
  tokens_BCN = jnp.take_along_axis(search.live_tokens, parents_BC[:, :, None], axis=1)
  tokens_BCN = tokens_BCN.at[:, :, search.step].set(next_BC)
  ended_BC = (next_BC == eot_id) | (search.step + 1 == max_new)

  live_scores, kept = jax.lax.top_k(scores_BC + jnp.where(ended_BC, WORST, 0.0), beams)
  pick = lambda a, at: jnp.take_along_axis(a, at.reshape(*at.shape, *[1] * (a.ndim - 2)), axis=1)
  new_length = (search.step + 1).astype(jnp.float32)
  counts_BC = ended_BC & jnp.expand_dims(jnp.arange(2 * beams) < beams, 0)
  final_BC = scores_BC / new_length**length_penalty
  final_BC += jnp.where(counts_BC, 0.0, WORST) + jnp.where(search.hopeful[:, None], 0.0, WORST)
  merge = lambda old, new: jnp.concatenate([old, new], axis=1)
  done_scores, at = jax.lax.top_k(merge(search.done_scores, final_BC), beams)
  is_done = pick(merge(search.is_done, counts_BC), at)
  best_live = live_scores[:, :1] / new_length**length_penalty
  worst_done = jnp.where(is_done, done_scores.min(axis=1, keepdims=True), WORST)
  new = search._replace(
    step=search.step + 1,
    live_tokens=pick(tokens_BCN, kept),
    live_scores=live_scores,
    done_tokens=pick(merge(search.done_tokens, tokens_BCN), at),
    done_scores=done_scores,
    is_done=is_done,
    hopeful=search.hopeful & (best_live > worst_done).any(axis=1),
    stuck=ended_BC.all(),
  )
  return new, pick(parents_BC, kept), pick(next_BC, kept)


def _until(ids: list[int], eot_id: int) -> list[int]:
  return ids[: ids.index(eot_id)] if eot_id in ids else ids
