"""Words and their neighbours: rows of running text in which every word has a window and negatives are drawn.

A row is a span of tokens as lm.data.batches cuts it. Separators and unknown words are taken out, then
frequent words by chance (Mikolov et al. 2013, arXiv:1310.4546, §2.3, as word2vec.c does it: a word of
frequency f stays with probability sqrt(t / f) + t / f); the rest moves together. Each word's window is drawn
from 1 to objective.window (§2.2 of arXiv:1301.3781), and objective.drawn words for the row from counts **
objective.power (arXiv:1310.4546, §2.2). All of it is a function of (seed, step, row).
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config
from lm.data import cache, order
from lm.data.batches import Batch, EvalBatches, TrainBatches
from lm.data.store import TokenStore
from lm.data.tokenizers import Tokenizer, unknown_id

CHUNK = 1 << 22  # tokens counted at a time
DROPS, WINDOWS, NEGATIVES = range(3)  # what is drawn


@dataclasses.dataclass(frozen=True)
class Words:
  """An open corpus, and how often each word stands in its training text."""

  corpus: cache.Corpus
  counts: np.ndarray  # int64 [V]; 0 for what is no word

  @property
  def vocab_size(self) -> int:
    return self.corpus.vocab_size

  @property
  def tokenizer(self) -> Tokenizer:
    return self.corpus.tokenizer

  @property
  def n_units(self) -> int:
    """Words of one epoch, those that may be left out by chance counted."""
    return int(self.counts.sum())


def open_words(cfg: Config) -> Words:
  """The corpus of a config, its words counted.

  Raises:
    ConfigError: none is left.
  """
  corpus = cache.open_corpus(cfg.data)
  counts = np.zeros(corpus.vocab_size, np.int64)
  for store in corpus.train:
    counts += count(store, corpus.vocab_size)
  counts[not_words(corpus.tokenizer)] = 0
  if not counts.any():
    raise ConfigError(
      f"data.min_freq={cfg.data.min_freq}: no word of {', '.join(cfg.data.sources)} is so frequent; lower it "
      "or give more text"
    )
  return Words(corpus, counts)


def count(store: TokenStore, vocab_size: int) -> np.ndarray:
  """int64 [V]: how often each token stands in a store."""
  found = np.zeros(vocab_size, np.int64)
  for start in range(0, store.n_tokens, CHUNK):
    found += np.bincount(store.tokens[start : start + CHUNK], minlength=vocab_size)
  return found


def not_words(tokenizer: Tokenizer) -> list[int]:
  """Ids that stand for no word: separator, start, unknown."""
  found = {tokenizer.eot_id, tokenizer.start_id, unknown_id(tokenizer)}
  return sorted(number for number in found if number is not None)


class ContextBatches:
  """Rows of tokens as words with windows and negatives.

  Args:
    rows: batches of tokens, `at(step, rows)`.
    batch_size: of them.
    words: for counts and the tokenizer.
    cfg: resolved; its objective's window, subsample, drawn and power are read.
    seed: of everything that is drawn; None = the draws of evaluation, a function of a row's number alone.

  Arrays of a batch, words moved to the left: words [B, L]; segments [B, L], document in the row, 0 = padding;
  windows [B, L]; negatives [B, N]; read [B] float32, words before any was left out by chance.
  """

  def __init__(self, rows: Any, batch_size: int, words: Words, cfg: Config, seed: int | None):
    self.rows, self.batch_size, self.seed = rows, batch_size, seed
    self.tokenizer, self.objective = words.tokenizer, cfg.objective
    frequency_V = words.counts / max(1, words.counts.sum())
    ratio_V = cfg.objective.subsample / np.maximum(frequency_V, 1e-30)
    keep_V = np.sqrt(ratio_V) + ratio_V if cfg.objective.subsample else np.ones(len(frequency_V))
    keep_V[words.counts == 0] = 0
    self.keep_V = keep_V
    mass_V = np.where(words.counts > 0, np.maximum(frequency_V, 1e-30) ** cfg.objective.power, 0.0)
    self.cumulative_V = np.cumsum(mass_V) / mass_V.sum()

  def __len__(self) -> int:
    return len(self.rows)

  @property
  def facts(self) -> dict[str, float]:
    """{"words"}: tokens of the set, separators and unknown words among them."""
    return {"words": self.rows.facts["tokens"]}

  def at(self, step: int, rows: slice | None = None) -> Batch:
    """Batch number `step`, or only its `rows`."""
    read = self.rows.at(step, rows)
    tokens_BL, real_BL = read["targets"], read["weights"] > 0
    numbers = np.arange(self.batch_size)[rows or slice(None)]
    if self.seed is None:
      step, numbers = 0, step * self.batch_size + numbers
    draw = functools.partial(self._draw, step, numbers)
    length = tokens_BL.shape[1]
    is_word_BL = real_BL & (self.keep_V[tokens_BL] > 0)
    kept_BL = is_word_BL & (draw(DROPS, length) < self.keep_V[tokens_BL])
    segments_BL = 1 + np.cumsum(tokens_BL == self.tokenizer.eot_id, axis=1)
    order_BL = np.argsort(~kept_BL, axis=1, kind="stable")
    left = lambda a: np.where(
      np.take_along_axis(kept_BL, order_BL, axis=1), np.take_along_axis(a, order_BL, axis=1), 0
    ).astype(np.int32)
    negatives_BN = np.searchsorted(
      self.cumulative_V, draw(NEGATIVES, self.objective.drawn), side="right"
    )
    return {
      "words": left(tokens_BL),
      "segments": left(segments_BL),
      "windows": 1 + (draw(WINDOWS, length) * self.objective.window).astype(np.int32),
      "negatives": np.minimum(negatives_BN, len(self.keep_V) - 1).astype(np.int32),
      "read": is_word_BL.sum(axis=1).astype(np.float32),
    }

  def _draw(self, step: int, numbers: np.ndarray, what: int, count: int) -> np.ndarray:
    """float64 [rows, count], uniform in [0, 1)."""
    return order.uniform(order.fold(self.seed or 0, step, what, numbers), count)


def train_contexts(words: Words, cfg: Config) -> ContextBatches:
  rows = TrainBatches(words.corpus, cfg.data, cfg.model.seq_len, cfg.train.batch_size)
  return ContextBatches(rows, cfg.train.batch_size, words, cfg, cfg.data.seed or 0)


@dataclasses.dataclass(frozen=True)
class WordSet:
  """A held-out set, and the training words that its negatives are drawn by."""

  store: TokenStore
  words: Words

  @property
  def fingerprint(self) -> str:
    return self.store.fingerprint


def eval_contexts(
  chosen: WordSet, cfg: Config, max_tokens: int | None, stride: int | None
) -> ContextBatches:
  """Evaluation batches whose windows and negatives do not depend on the run's seed or batch size."""
  if stride is not None:
    raise ConfigError(f"stride={stride}: words are not predicted one after the other; leave it out")
  batch_size = cfg.eval.batch_size or cfg.train.batch_size
  rows = EvalBatches(chosen.store, cfg.model.seq_len, batch_size, max_tokens)
  return ContextBatches(rows, batch_size, chosen.words, cfg, None)


def mean_words(words: Words, cfg: Config) -> float:
  """Words that a row holds on average before any is left out by chance."""
  rows = sum(-(-store.n_tokens // cfg.model.seq_len) for store in words.corpus.train)
  return words.n_units / rows


def check_rows(cfg: Config) -> None:
  """ConfigError unless rows are spans of running text."""
  for key in ("pack", "cross_documents"):
    if not getattr(cfg.data, key):
      raise ConfigError(
        f"data.{key}=False: rows are spans of text, and windows end at documents; use True"
      )
