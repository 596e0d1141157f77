"""Batches whose rows are streams: row b of a batch goes on where row b of the batch before it ended.

The tokens of all sources, back to back, are a ring that is cut into as many streams as a batch has rows; a
batch is the next `seq_len` tokens of each (Zaremba et al. 2014, arXiv:1409.2329, §4.1). With data.reshuffle
every epoch cuts the ring at other places, drawn from the seed and the epoch, so that windows do not begin at
the same words again; Merity et al. 2017 (arXiv:1708.02182, §4.1) draw their lengths for that, and shapes
would change with them.
"""

from collections.abc import Sequence

import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config, DataConfig
from lm.data import order
from lm.data.batches import Batch, EvalBatches, Row, gather_rows, split_documents
from lm.data.store import TokenStore


class StreamBatches:
  """Training batches: `at(step)` depends on the stores, `cfg`, its seed and the step alone.

  The ring's last tokens that fill no whole batch are left out of an epoch: fewer than batch_size * seq_len.

  Arrays of a batch: those of lm.data.batches.TrainBatches, and fresh [B] float32: 1 where the row begins a
  stream anew, or a document that must not see the one before it.
  """

  def __init__(self, stores: Sequence[TokenStore], cfg: DataConfig, seq_len: int, batch_size: int):
    self.stores, self.cfg = stores, cfg
    self.seq_len, self.batch_size = seq_len, batch_size
    self.borders = np.concatenate([[0], np.cumsum([store.n_tokens for store in stores])])
    self.total = int(self.borders[-1])
    self.per_epoch = self.total // (batch_size * seq_len)  # batches
    if self.per_epoch == 0:
      raise ConfigError(
        f"train.batch_size={batch_size}: so many streams of model.seq_len={seq_len} need "
        f"{batch_size * seq_len:,} tokens, and there are {self.total:,}; lower it"
      )

  def at(self, step: int, rows: slice | None = None) -> Batch:
    """Batch number `step`, or only its `rows`."""
    epoch, window = divmod(step, self.per_epoch)
    first = 0
    if self.cfg.reshuffle:
      first = int(order.fold(self.cfg.seed or 0, epoch)[0] % np.uint64(self.total))
    length = self.per_epoch * self.seq_len
    numbers = np.arange(self.batch_size)[rows or slice(None)]
    starts = first + numbers * length + window * self.seq_len
    read = np.stack([self._read(int(start) - 1, self.seq_len + 1) for start in starts])
    read = read.astype(np.int32)
    batch = {
      "tokens": read[:, :-1].copy(),
      "targets": read[:, 1:],
      "weights": np.ones((len(read), self.seq_len), np.float32),
    }
    return _finish(batch, self.stores[0], self.cfg.cross_documents, window == 0)

  def _read(self, start: int, count: int) -> np.ndarray:
    """`count` tokens of the ring from place `start` on; before the first stands the last separator."""
    parts = []
    while count:
      start %= self.total
      store = int(np.searchsorted(self.borders, start, side="right")) - 1
      inner = start - int(self.borders[store])
      part = self.stores[store].tokens[inner : inner + count]
      parts.append(part)
      start, count = start + len(part), count - len(part)
    return np.concatenate(parts)


class EvalStreams:
  """The tokens of lm.data.batches.EvalBatches, each predicted once, as eval.batch_size streams.

  Which tokens does not depend on that number; how many streams begin, with a state of zeros and so without
  any of the text before them, does. `at(number)` must be read in order.
  """

  def __init__(
    self,
    store: TokenStore,
    seq_len: int,
    batch_size: int,
    max_tokens: int | None,
    cross_documents: bool,
  ):
    self.store, self.seq_len, self.batch_size = store, seq_len, batch_size
    self.cross_documents = cross_documents
    whole = EvalBatches(store, seq_len, batch_size, max_tokens)
    self.n_targets, self.facts = whole.n_targets, whole.facts
    self.length = -(-self.n_targets // batch_size)  # of a stream; the last may be shorter

  def __len__(self) -> int:
    return -(-self.length // self.seq_len)

  def __iter__(self):
    return (self.at(number) for number in range(len(self)))

  def at(self, number: int, rows: slice | None = None) -> Batch:
    """Batch `number`, or only its `rows`; what is past the end of a stream is padding."""
    chosen = [self._row(b, number) for b in range(self.batch_size)[rows or slice(None)]]
    batch = gather_rows(chosen, self.seq_len)
    text = batch["weights"] * (batch["targets"] != self.store.eot_id).astype(np.float32)
    return _finish(batch, self.store, self.cross_documents, number == 0) | {"text": text}

  def _row(self, stream: int, number: int) -> Row:
    start = stream * self.length + number * self.seq_len
    end = min((stream + 1) * self.length, self.n_targets)
    if start >= end:
      return Row(self.store, 0, 0, 0)
    return Row(self.store, start, min(start + self.seq_len, end), start)


def check(cfg: Config) -> None:
  """ConfigError for what streams cannot do: weights of sources, rows of one document."""
  if cfg.data.weights:
    raise ConfigError(
      f"data.weights={','.join(map(str, cfg.data.weights))}: streams are read in the order of "
      "data.sources; leave them out"
    )
  if not cfg.data.pack:
    raise ConfigError("data.pack=False: streams hold documents back to back; use True")


def _finish(batch: Batch, store: TokenStore, cross_documents: bool, anew: bool) -> Batch:
  """With document starts, `fresh`, and segments and positions unless documents see each other."""
  begins_BL = (batch["tokens"] == store.eot_id) & (batch["weights"] > 0)
  batch["tokens"][begins_BL] = store.start_id
  fresh_B = np.full(len(begins_BL), float(anew), np.float32)
  if cross_documents:
    return batch | {"fresh": fresh_B}
  fresh_B = np.maximum(fresh_B, begins_BL[:, 0].astype(np.float32))
  return batch | split_documents(batch["weights"] > 0, begins_BL) | {"fresh": fresh_B}
