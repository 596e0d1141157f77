"""Rows that hold one document each, such as a sentence, in training and in evaluation.

Training reads them as lm.data.batches does without packing. A document longer than a row is several rows.
"""

import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config
from lm.data.batches import Batch, Row, TrainBatches, cut_documents, first_rows, gather_rows
from lm.data.cache import Corpus
from lm.data.store import TokenStore


class TrainSentences:
  """lm.data.batches.TrainBatches of one document a row: tokens, targets and weights [B, L]."""

  def __init__(self, corpus: Corpus, cfg: Config):
    self.rows = TrainBatches(corpus, cfg.data, cfg.model.seq_len, cfg.train.batch_size)

  def at(self, step: int, rows: slice | None = None) -> Batch:
    """Batch number `step`, or only its `rows`."""
    batch = self.rows.at(step, rows)
    return {name: batch[name] for name in ("tokens", "targets", "weights")}


class EvalSentences:
  """A store's first whole documents, up to `max_tokens`, in rows of one each; every token is predicted once.

  Arrays of a batch: tokens, targets and weights [B, L], as in training.
  """

  def __init__(self, store: TokenStore, seq_len: int, batch_size: int, max_tokens: int | None):
    self.store, self.seq_len, self.batch_size = store, seq_len, batch_size
    n_tokens, n_bytes = cut_documents(store, max_tokens)
    firsts = first_rows(store, seq_len)
    document = np.searchsorted(firsts, np.arange(firsts[-1]), side="right") - 1
    starts = store.offsets[document] + (np.arange(firsts[-1]) - firsts[document]) * seq_len
    stops = np.minimum(starts + seq_len, store.offsets[document + 1])
    self.starts, self.stops = starts[starts < n_tokens], stops[starts < n_tokens]
    self.facts = {"bytes": n_bytes, "tokens": n_tokens, "rows": len(self.starts)}

  def __len__(self) -> int:
    return -(-len(self.starts) // self.batch_size)

  def at(self, number: int, rows: slice | None = None) -> Batch:
    """Batch `number`, or only its `rows`; rows past the last one are padding."""
    first = number * self.batch_size
    index = np.arange(first, first + self.batch_size)[rows or slice(None)]
    return finished([self._row(int(i)) for i in index], self.seq_len)

  def _row(self, index: int) -> Row:
    if index >= len(self.starts):
      return Row(self.store, 0, 0, 0)
    start, stop = int(self.starts[index]), int(self.stops[index])
    return Row(self.store, start, min(stop, self.facts["tokens"]), start)


def finished(rows: list[Row], seq_len: int) -> Batch:
  """tokens, targets, weights of rows, documents beginning with the start token."""
  batch = gather_rows(rows, seq_len)
  begins_BL = (batch["tokens"] == rows[0].store.eot_id) & (batch["weights"] > 0)
  batch["tokens"][begins_BL] = rows[0].store.start_id
  return batch


def eval_sentences(
  store: TokenStore, cfg: Config, max_tokens: int | None, stride: int | None
) -> EvalSentences:
  if stride is not None:
    raise ConfigError(f"stride={stride}: sentences do not overlap; leave it out")
  rows = cfg.eval.batch_size or cfg.train.batch_size
  return EvalSentences(store, cfg.model.seq_len, rows, max_tokens)


def check_sentences(cfg: Config) -> None:
  """ConfigError unless rows hold one document each."""
  if cfg.data.pack:
    raise ConfigError("data.pack=True: a row is one sentence; use False, and data.text_unit=line")
