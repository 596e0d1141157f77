"""Draws tokens one after another: one compiled loop around a model's key-value cache."""

import bisect
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm.config.errors import ConfigError, number_of
from lm.config.schema import ModelConfig
from lm.models.registry import family_of, make_model

NEG = -1e30  # below any logit, and safe to subtract from


class Sampling(NamedTuple):
  """How the next token is chosen. Traced: another value needs no compilation.

  The order is: repetition penalty, temperature, top-k, top-p, min-p, draw.
  """

  temperature: float = 1.0  # 0 = greedy
  top_k: int = 0  # keep the k likeliest; 0 = all
  top_p: float = 1.0  # keep the smallest set of likeliest tokens with at least this mass
  min_p: float = 0.0  # keep tokens at least this fraction as likely as the likeliest
  repetition_penalty: float = 1.0  # divides positive and multiplies negative logits of seen tokens


def filter_logits(logits_BV: jax.Array, seen_BV: jax.Array, sampling: Sampling) -> jax.Array:
  """Logits of the distribution to draw from; what is excluded is at -1e30. Temperature 0 excludes nothing.

  top-p: Holtzman et al. 2020, arXiv:1904.09751; min-p: Nguyen et al. 2024, arXiv:2407.01082; repetition
  penalty: Keskar et al. 2019, arXiv:1909.05858 §4.1.

  Args:
    logits_BV: float32.
    seen_BV: bool, tokens in the prompt or generated so far.
    sampling: scalars.
  """
  penalty = sampling.repetition_penalty
  penalised = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
  logits_BV = jnp.where(seen_BV, penalised, logits_BV)
  logits_BV = logits_BV / jnp.maximum(sampling.temperature, 1e-6)
  cuts = (sampling.top_k > 0) | (sampling.top_p < 1) | (sampling.min_p > 0)
  sort = cuts & (sampling.temperature > 0)  # which takes longer than a small model
  cut = functools.partial(_cut, sampling=sampling)
  return jax.lax.cond(sort, cut, lambda logits_BV: logits_BV, logits_BV)


def _cut(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
  """Top-k, top-p and min-p."""
  order_BV = jnp.argsort(logits_BV, axis=-1, descending=True)
  sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
  vocab = logits_BV.shape[-1]
  rank_V = jnp.expand_dims(jnp.arange(vocab), 0)
  top_k = jnp.where(sampling.top_k > 0, sampling.top_k, vocab)
  kept_BV = rank_V < top_k
  probs_BV = jax.nn.softmax(jnp.where(kept_BV, sorted_BV, NEG), axis=-1)
  before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV  # mass of likelier tokens
  kept_BV &= (before_BV < sampling.top_p) | (rank_V == 0)
  kept_BV &= probs_BV >= sampling.min_p * probs_BV[:, :1]
  rows_B1 = jnp.expand_dims(jnp.arange(logits_BV.shape[0]), 1)
  keep_BV = jnp.zeros_like(kept_BV).at[rows_B1, order_BV].set(kept_BV)
  return jnp.where(keep_BV, logits_BV, NEG)


class Begun(NamedTuple):
  """The state that generation starts from."""

  cache: Any
  logits_BV: jax.Array  # of the first new token
  seen_BV: jax.Array  # bool, tokens that a repetition penalty counts already


class _Decoding(NamedTuple):
  """The state of the loop that draws tokens."""

  step: Any  # int, tokens drawn
  cache: Any
  logits_BV: jax.Array  # of the next token
  seen_BV: jax.Array  # bool, tokens that a repetition penalty counts
  done_B: jax.Array  # bool, rows that are finished
  lengths_B: jax.Array  # int32, tokens before eot_id
  tokens_BN: jax.Array  # int32, eot_id where nothing is drawn


def prompt_ids(cfg: ModelConfig, ids: Sequence[int], start_id: int, eot_id: int) -> list[int]:
  """What a model reads of a text's tokens: a text to go on with, or a whole source, which ends."""
  return [*ids, eot_id] if family_of(cfg).reads_source else [start_id, *ids]


def room_after(cfg: Any, longest: int) -> int:
  """New tokens that there is room for after prompts of so many tokens."""
  return cfg.target_len if family_of(cfg).reads_source else cfg.seq_len - longest


def check_lengths(cfg: Any, longest: int, max_new: int) -> None:
  """ConfigError unless prompts and so many new tokens fit the model."""
  if family_of(cfg).reads_source:
    if longest > cfg.seq_len:
      raise ConfigError(
        f"prompt=({number_of(longest, 'token')}): a source must fit the model's model.seq_len={cfg.seq_len}; "
        "shorten it"
      )
    if max_new > cfg.target_len:
      raise ConfigError(
        f"tokens={max_new}: must fit the model's model.target_len={cfg.target_len}; use at most that"
      )
  elif (room := cfg.seq_len - longest) < max_new:
    raise ConfigError(
      f"tokens={max_new}: prompt ({number_of(longest, 'token')}) and new tokens must fit the model's "
      f"{cfg.seq_len} positions; use {f'at most {room} or ' if room > 0 else ''}a shorter prompt"
    )


def pad_prompts(
  cfg: Any, prompts: Sequence[Sequence[int]], max_new: int, eot_id: int
) -> tuple[np.ndarray, np.ndarray]:
  """(ids [B, P], lengths [B]), padded on the right to one of few widths, so that few programs compile."""
  longest = max(len(prompt) for prompt in prompts)
  check_lengths(cfg, longest, max_new)
  most = cfg.seq_len if family_of(cfg).reads_source else cfg.seq_len - max_new
  padded = np.full((len(prompts), min(-(-longest // 16) * 16, most)), eot_id, np.int32)
  for row, prompt in zip(padded, prompts, strict=True):
    row[: len(prompt)] = prompt
  return padded, np.array([len(prompt) for prompt in prompts], np.int32)


def begin(
  model: Any, params: Any, prompts_BP: jax.Array, lengths_B: jax.Array, room: int, start_id: int
) -> Begun:
  """The cache and the first logits after prompts, or of texts that start after the sources in them.

  Args:
    room: new tokens that the cache must hold beside the prompts.
    start_id: what a text starts with where prompts are sources.
  """
  cfg, variables = model.cfg, {"params": params}
  init_cache: Any = family_of(cfg).init_cache
  batch, width = prompts_BP.shape
  real_BP = jnp.expand_dims(jnp.arange(width), 0) < jnp.expand_dims(lengths_B, 1)
  seen_BV = jnp.zeros((batch, cfg.vocab_size), bool)
  if family_of(cfg).reads_source:
    cache = init_cache(cfg, batch, room + 1)
    start_B1 = jnp.full((batch, 1), start_id, jnp.int32)
    x_B1D, cache = model.apply(variables, prompts_BP, real_BP, start_B1, cache, method="begin")
  else:
    cache = init_cache(cfg, batch, width + room)
    x_BPD, cache = model.apply(variables, prompts_BP, cache, method="extend")
    cache = cache._replace(index=lengths_B)  # what the padding wrote is overwritten
    last_B11 = jnp.expand_dims(lengths_B - 1, (1, 2))
    x_B1D = jnp.take_along_axis(x_BPD, last_B11, axis=1)
    rows_B1 = jnp.expand_dims(jnp.arange(batch), 1)
    seen_BV = seen_BV.at[rows_B1, prompts_BP].max(real_BP)
  logits_BV = model.apply(variables, x_B1D, method="logits")[:, 0]
  return Begun(cache, logits_BV, seen_BV)


def known_only(logits_BV: jax.Array, n_tokens: int | None) -> jax.Array:
  """Logits with those of ids from n_tokens on at -1e30: sentinels and padding of the vocabulary."""
  if n_tokens is None or n_tokens >= logits_BV.shape[-1]:
    return logits_BV
  return jnp.where(jnp.expand_dims(jnp.arange(logits_BV.shape[-1]), 0) < n_tokens, logits_BV, NEG)


@functools.lru_cache(maxsize=8)
def make_generator(
  cfg: ModelConfig, max_new: int, mesh: Mesh | None = None, n_tokens: int | None = None
) -> Callable[..., list[list[int]]]:
  """A compiled `generate(params, prompts, sampling, seed, eot_id, start_id) -> new tokens of each prompt`.

  Prompts of different lengths go together: each row has its own place in the cache. A row that draws
  eot_id is finished and ends before it; one that draws a token of `ends`, ids, none
  if not given, ends with it. Greedy output does not depend on what else is
  in the batch. start_id, 0 if not given, is read where prompts are sources (lm.models.family.Family).

  Args:
    cfg: resolved model config.
    max_new: tokens to draw at most; prompt and new tokens together must fit cfg.seq_len, or new ones
      alone cfg.target_len.
    mesh: what the parameters lie over; None = one device.
    n_tokens: entries of the tokenizer: ids beyond them are never drawn. None = all of the vocabulary.
  """
  model = make_model(cfg)
  everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())

  @functools.partial(jax.jit, static_argnames=("eot_id", "start_id"), out_shardings=everywhere)
  def run(params, prompts_BP, lengths_B, sampling, seed, ends_V, eot_id, start_id):
    key, variables = jax.random.key(seed), {"params": params}
    batch = prompts_BP.shape[0]
    cache, logits_BV, seen_BV = begin(model, params, prompts_BP, lengths_B, max_new, start_id)
    rows_B = jnp.arange(batch)

    def draw(logits_BV, seen_BV, key):
      filtered_BV = filter_logits(logits_BV, seen_BV, sampling)
      random = lambda: jax.random.categorical(key, filtered_BV, axis=-1)
      greedy = lambda: filtered_BV.argmax(axis=-1)
      return jax.lax.cond(sampling.temperature > 0, random, greedy).astype(jnp.int32)

    def body(now: _Decoding) -> _Decoding:
      logits_BV = known_only(now.logits_BV, n_tokens)
      next_B = draw(logits_BV, now.seen_BV, jax.random.fold_in(key, now.step))
      past_B = now.done_B | (next_B == eot_id)
      logits_B1V, cache = model.apply(
        variables, jnp.expand_dims(next_B, 1), now.cache, method="decode"
      )
      return _Decoding(
        step=now.step + 1,
        cache=cache,
        logits_BV=logits_B1V[:, 0],
        seen_BV=now.seen_BV.at[rows_B, next_B].set(True),
        done_B=past_B | ends_V[next_B],
        lengths_B=now.lengths_B + (~past_B).astype(jnp.int32),
        tokens_BN=now.tokens_BN.at[:, now.step].set(jnp.where(past_B, eot_id, next_B)),
      )

    def going(now: _Decoding):
      return (now.step < max_new) & ~now.done_B.all()

    tokens_BN = jnp.full((batch, max_new), eot_id, jnp.int32)
    none_B, zero_B = jnp.zeros(batch, bool), jnp.zeros(batch, jnp.int32)
    start = _Decoding(0, cache, logits_BV, seen_BV, none_B, zero_B, tokens_BN)
    end = jax.lax.while_loop(going, body, start)
    return end.tokens_BN, end.lengths_B

  def generate(
    params,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    seed: int,
    eot_id: int,
    start_id: int = 0,
    ends: Sequence[int] = (),
  ):
    padded, lengths = pad_prompts(cfg, prompts, max_new, eot_id)
    numbers = Sampling(
      *(np.asarray(v, np.int32 if isinstance(v, int) else np.float32) for v in sampling)
    )
    ends_V = np.zeros(model.cfg.vocab_size, bool)
    ends_V[np.asarray(ends, np.int32)] = True
    tokens, counts = run(params, padded, lengths, numbers, np.int32(seed), ends_V, eot_id, start_id)
    return [
      list(map(int, t[:n])) for t, n in zip(np.asarray(tokens), np.asarray(counts), strict=True)
    ]

  return generate


class Drawn(NamedTuple):
  """What is drawn after a prompt."""

  ids: list[int]  # those that the text takes
  text: str


def draw_texts(
  generate: Callable[..., list[list[int]]],
  params: Any,
  prompts: Sequence[Sequence[int]],
  sampling: Sampling,
  seed: int,
  tokenizer: Any,
  stops: Sequence[str] = (),
  ends: Sequence[int] = (),
) -> list[Drawn]:
  """Texts from a generator of `make_generator`, each before the first of `stops` or token of `ends` in it.

  A row ends with a token that holds a stop, so that none goes on in vain; where a stop lies over several
  tokens the row goes on, and is cut.
  """
  t = tokenizer
  draw = functools.partial(generate, params, prompts, sampling, seed, t.eot_id, t.start_id)
  written = lambda ids: ids[:-1] if ids and ids[-1] in ends else ids
  holding = {i for stop in stops for i in _holding(t, stop)} - {*ends}
  rows = draw((*ends, *holding))
  drawn = [cut(written(ids), t, stops) for ids in rows]
  whole = [bool(ids) and ids[-1] in holding and t.decode(ids) for ids in rows]
  if any(text == row.text for text, row in zip(whole, drawn, strict=True)):
    return [cut(written(ids), t, stops) for ids in draw(ends)]  # a token reads otherwise there
  return drawn


def cut(ids: Sequence[int], tokenizer: Any, stops: Sequence[str]) -> Drawn:
  """The text of tokens before the first stop in it, and the first tokens, as few as hold it."""
  whole = tokenizer.decode(ids)
  text = before(whole, stops)
  holds = lambda n: tokenizer.decode(ids[:n]).startswith(text)
  n = len(ids) if text == whole else bisect.bisect_left(range(len(ids)), True, key=holds)
  return Drawn(list(ids[:n]), text)


def before(text: str, stops: Sequence[str]) -> str:
  """The text before the first stop in it."""
  for stop in stops:
    text = text.split(stop)[0]
  return text


@functools.lru_cache(maxsize=8)
def _holding(tokenizer: Any, text: str) -> frozenset[int]:
  """Tokens that hold a text where they follow another token."""
  first = list(tokenizer.encode("a"))[:1]
  written = len(tokenizer.decode(first))
  added = lambda token: tokenizer.decode([*first, token])[written:]
  return frozenset(token for token in range(tokenizer.vocab_size) if text in added(token))
