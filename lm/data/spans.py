"""Texts with spans taken out, to be filled in: rows of tokens as pairs of a source and a target.

    source: Thank you <0> me to your party <1> week .     target: <0> for inviting <1> last

Raffel et al. 2020, arXiv:1910.10683 §3.1.4 and the released code. A denoiser says how: RATExSPAN takes out
that share of the tokens in spans of that mean length, RATExtail the last ones in one piece (a prefix to go on
from). With several, rows take turns by chance and begin with a token that names their denoiser, or the mode
that stands before it, MODE:RATExSPAN (UL2's R, S and X: Tay et al. 2022, arXiv:2205.05131 §3.1.2 and §3.2;
configs/ul2.py has its seven). Which spans go depends on (seed, step, row) alone.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config
from lm.data import cache, order
from lm.data.batches import EvalBatches, TrainBatches
from lm.data.pairs import put_target
from lm.data.tokenizers import known_vocab_size


class Denoiser(NamedTuple):
  rate: float  # share of the tokens that is taken out
  span: float | None  # mean length of a span; None = the tail of the row in one piece
  mode: str | None = None  # denoisers of a mode begin rows with the same token; None = with its own


class Sizes(NamedTuple):
  length: int  # tokens of a row before any is taken out
  source: int  # of the longest source and target, their ends included
  target: int
  sentinels: int


def parse(text: str) -> Denoiser:
  """("0.15x3") or ("R:0.15x3") as a Denoiser. Raises: ConfigError on what is none."""
  mode, colon, rest = text.rpartition(":")
  rate, _, span = rest.partition("x")
  try:
    found = Denoiser(float(rate), None if span == "tail" else float(span), mode if colon else None)
    if mode == "" and colon:
      raise ValueError
    if 0 < found.rate < 1 and (found.span is None or found.span >= 1):
      return found
  except ValueError:
    pass
  raise ConfigError(
    f"objective.denoisers={text}: must be RATExSPAN or RATExtail, a rate in (0, 1) and spans of at least 1; "
    "use e.g. 0.15x3, or R:0.15x3 with a mode"
  )


def modes(denoisers: tuple[str, ...]) -> list[int]:
  """For each denoiser the number of the token that its rows begin with, from 0; () where there is one alone.

  Raises:
    ConfigError: some have modes and others have none.
  """
  if len(denoisers) == 1:
    return []
  names = [parse(text).mode for text in denoisers]
  if all(name is None for name in names):
    return list(range(len(names)))
  for text, name in zip(denoisers, names, strict=True):
    if name is None:
      raise ConfigError(
        f"objective.denoisers={text}: others have a mode and this one has none; use e.g. R:{text}"
      )
  order_of = list(dict.fromkeys(names))
  return [order_of.index(name) for name in names]


def counts(length: int, denoiser: Denoiser) -> tuple[int, int]:
  """(tokens taken out, spans) of a row of `length` tokens; at least one of each, and one token is left."""
  noise = min(max(round(length * denoiser.rate), 1), length - 1)
  if denoiser.span is None:
    return noise, 1
  return noise, min(max(round(noise / denoiser.span), 1), noise, length - noise)


@functools.lru_cache(maxsize=64)
def sizes(seq_len: int, target_len: int, denoisers: tuple[str, ...]) -> Sizes:
  """The longest rows whose sources and targets fit the model under every denoiser.

  Raises:
    ConfigError: a model too short for any row.
  """
  each = [parse(text) for text in denoisers]
  named = len(each) > 1

  def need(length):
    found = [counts(length, one) for one in each]
    return (
      max(length - noise + spans + 1 + named for noise, spans in found),
      max(noise + spans + 1 for noise, spans in found),
      max(spans for _, spans in found),
    )

  length = 2
  while True:
    source, target, _ = need(length + 1)
    if source > seq_len or target > target_len:
      break
    length += 1
  source, target, sentinels = need(length)
  if source > seq_len or target > target_len:
    raise ConfigError(
      f"model.target_len={target_len}: leaves no room for what is taken out of {length} tokens ({target}); "
      "raise it"
    )
  return Sizes(length, source, target, sentinels)


def of_config(cfg: Config) -> Sizes:
  """`sizes` of a config whose objective has denoisers."""
  model: Any = cfg.model
  return sizes(model.seq_len, model.target_len or model.seq_len, cfg.objective.denoisers)


def extra_ids(cfg: Config) -> int:
  """Ids beyond the tokenizer's: sentinels, and one for each mode where there are several denoisers."""
  return of_config(cfg).sentinels + len(set(modes(cfg.objective.denoisers)))


def corrupt(
  ids: np.ndarray, denoiser: Denoiser, key: np.ndarray, first_sentinel: int
) -> tuple[np.ndarray, np.ndarray]:
  """(source, target) of a row without their ends: kept tokens, and what sentinels stand for.

  Lengths of spans, and of what is between, are drawn evenly among all that add up, the first kept piece
  first: a row begins with kept tokens and ends with a span.

  Args:
    ids: int [n], n at least 2.
    key: uint64 [1]; the same key takes out the same spans.
    first_sentinel: id of sentinel 0; sentinel i is that plus i.
  """
  noise, spans = counts(len(ids), denoiser)
  random = np.random.Generator(np.random.Philox(key=int(key[0])))
  taken = _pieces(random, noise, spans)
  kept = _pieces(random, len(ids) - noise, spans)
  source, target, at = [], [], 0
  for span, (before, size) in enumerate(zip(kept.tolist(), taken.tolist(), strict=True)):
    source += [ids[at : at + before], [first_sentinel + span]]
    target += [[first_sentinel + span], ids[at + before : at + before + size]]
    at += before + size
  return np.concatenate(source).astype(np.int32), np.concatenate(target).astype(np.int32)


def _pieces(random: np.random.Generator, total: int, n: int) -> np.ndarray:
  """n whole numbers from 1 up that add up to `total`, every choice as likely."""
  cuts = np.sort(random.choice(total - 1, n - 1, replace=False)) + 1 if n > 1 else np.zeros(0, int)
  return np.diff(np.concatenate([[0], cuts, [total]]))


# --- the kind of batch ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SpanCorpus:
  """A corpus, and as many ids beyond its tokenizer's as spans need."""

  corpus: cache.Corpus
  extra_ids: int

  @property
  def vocab_size(self) -> int:
    return self.corpus.vocab_size + self.extra_ids

  @property
  def tokenizer(self) -> Any:
    return self.corpus.tokenizer

  @property
  def n_units(self) -> int:
    return self.corpus.n_units


def open_spans(cfg: Config) -> SpanCorpus:
  return SpanCorpus(cache.open_corpus(cfg.data), extra_ids(cfg))


def vocab_size(cfg: Config) -> int | None:
  known = known_vocab_size(cfg.data)
  return None if known is None else known + extra_ids(cfg)


class SpanBatches:
  """Training batches of lm.data.pairs' arrays, a row of tokens a pair."""

  def __init__(self, corpus: SpanCorpus, cfg: Config):
    self.cfg, self.tokenizer = cfg, corpus.tokenizer
    rows = dataclasses.replace(cfg.data, pack=True, cross_documents=True)
    size = of_config(cfg).length
    self.batches = TrainBatches(corpus.corpus, rows, size, cfg.train.batch_size)

  def at(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
    numbers = np.arange(self.cfg.train.batch_size)[rows or slice(None)]
    seed = self.cfg.data.seed or 0
    keys = [order.fold(seed, 13, step, row) for row in numbers.tolist()]
    return _gather(self.batches.at(step, rows), keys, self.cfg, self.tokenizer)


class SpanEval:
  """A store's first documents in rows, spans taken out alike whatever the seed."""

  def __init__(self, store: Any, cfg: Config, tokenizer: Any, max_tokens: int | None):
    self.cfg, self.tokenizer = cfg, tokenizer
    self.batch_size = cfg.eval.batch_size or cfg.train.batch_size
    self.batches = EvalBatches(store, of_config(cfg).length, self.batch_size, max_tokens)

  @property
  def facts(self) -> dict[str, float]:
    return {"tokens": self.batches.n_targets}

  def __len__(self) -> int:
    return len(self.batches)

  def at(self, number: int, rows: slice | None = None) -> dict[str, np.ndarray]:
    places = np.arange(self.batch_size)[rows or slice(None)]
    keys = [order.fold(0, 17, number, row) for row in places.tolist()]
    return _gather(self.batches.at(number, rows), keys, self.cfg, self.tokenizer)


class SpanSet(NamedTuple):
  """An evaluation set, and the tokenizer that says where sentinels begin."""

  store: Any
  tokenizer: Any

  @property
  def fingerprint(self) -> str:
    return self.store.fingerprint


def _gather(raw, keys, cfg: Config, tokenizer: Any) -> dict[str, np.ndarray]:
  model: Any = cfg.model
  denoisers = [parse(text) for text in cfg.objective.denoisers]
  names = modes(cfg.objective.denoisers)
  most = of_config(cfg)
  first = tokenizer.vocab_size
  n = len(keys)
  zeros = lambda length, dtype=np.int32: np.zeros((n, length), dtype)
  batch = {name: zeros(model.seq_len) for name in ("source", "source_segments", "source_positions")}
  batch |= {
    name: zeros(model.target_len) for name in ("tokens", "targets", "segments", "positions")
  }
  batch["weights"] = zeros(model.target_len, np.float32)
  for b, key in enumerate(keys):
    ids = raw["targets"][b][raw["weights"][b] > 0]
    if len(ids) < 2:
      continue
    which = int(order.mix(key)[0] % np.uint64(len(denoisers)))
    source, target = corrupt(ids, denoisers[which], key, first)
    if names:
      source = np.concatenate([[first + most.sentinels + names[which]], source])
    source, target = np.append(source, tokenizer.eot_id), np.append(target, tokenizer.eot_id)
    batch["source"][b, : len(source)] = source
    batch["source_segments"][b, : len(source)] = 1
    batch["source_positions"][b, : len(source)] = np.arange(len(source))
    put_target(batch, b, 0, target, 1, tokenizer.start_id)
  return batch


def units_per_row(cfg: Config) -> float:
  """Tokens of source and target, their ends and sentinels included, of a full row."""
  length = of_config(cfg).length
  named = len(cfg.objective.denoisers) > 1
  found = [counts(length, parse(text)) for text in cfg.objective.denoisers]
  return sum(length + 2 * spans + 2 + named for _, spans in found) / len(found)


def check_spans(cfg: Config) -> None:
  """ConfigError for denoisers that are none, or a model that has no source or is too short."""
  if not hasattr(cfg.model, "target_len"):
    raise ConfigError(
      f"model.family={cfg.model.family}: has no source to take spans out of; use encoder_decoder or t5"
    )
  if not cfg.objective.denoisers:
    raise ConfigError("objective.denoisers=(): must name at least one; use 0.15x3")
  modes(cfg.objective.denoisers)
  of_config(cfg)
