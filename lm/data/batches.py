"""Batches as pure functions of their number: nothing is read ahead, nothing can be lost.

The stream of a store is its separator followed by its tokens. A row of L predictions at p reads
stream[p : p + L] and predicts tokens[p : p + L], so the first input of a document is the separator
of the one before it (or the tokenizer's start token, where it has another).
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lm.config.errors import ConfigError, number_of
from lm.config.schema import DataConfig
from lm.data import order
from lm.data.cache import Corpus
from lm.data.store import TokenStore

Batch = dict[str, np.ndarray]
SUBSET = -1  # stands for an epoch in the key that draws data.unique_tokens


class Span(NamedTuple):
  """Tokens `start` to `stop` of a document, counted from its first one; its separator counts."""

  source: int
  document: int
  start: int
  stop: int


class Row(NamedTuple):
  """Predicts tokens[start:stop] of a store, of which those from `counted` on have weight 1."""

  store: TokenStore
  start: int
  stop: int
  counted: int


class TrainBatches:
  """Training batches: `at(step)` depends on `cfg`, its seed and the step alone.

  Examples are rows of `seq_len` predictions, cut from the documents back to back (cfg.pack) or from
  one document each. The last row of a store or document may be shorter; the rest of it weighs 0.
  With weights, each source is permuted by itself, epoch by epoch, and sources take turns by their
  quotas; without, all examples are permuted together, so an epoch holds each once. With
  cfg.unique_tokens an epoch is that many tokens' worth of whole rows (of each source its weight's
  share), which the seed draws from all.
  """

  def __init__(self, corpus: Corpus, cfg: DataConfig, seq_len: int, batch_size: int):
    self.cfg, self.seq_len, self.batch_size = cfg, seq_len, batch_size
    self.stores = corpus.train
    self.epoch_tokens = sum(store.n_tokens for store in self.stores)
    n_sources = len(self.stores)
    _check_weights(cfg.weights, n_sources)
    # Row borders: a store's rows are numbered through its documents, or through its stream.
    self._first_rows = None if cfg.pack else [first_rows(s, seq_len) for s in self.stores]
    if cfg.pack:
      n_rows = [-(-store.n_tokens // seq_len) for store in self.stores]
    else:
      n_rows = [int(first[-1]) for first in self._first_rows]
    # A group is permuted as one; it holds sources first, ..., last - 1.
    self._groups = [(s, s + 1) for s in range(n_sources)] if cfg.weights else [(0, n_sources)]
    self._borders = np.concatenate([[0], np.cumsum(n_rows)])
    self._turns = order.mixture(np.array(cfg.weights, float)) if cfg.weights else np.zeros(1, int)
    self._kept = self._rows_kept(cfg)
    groups = np.arange(len(self._groups))[:, None]
    # [groups, period]: examples that each group has had, the present one included.
    self._taken = np.cumsum(self._turns == groups, axis=1)

  def at(self, step: int, rows: slice | None = None) -> Batch:
    """Batch number `step`, or only its `rows` (a host's share).

    Returns: a dict of arrays [B, L]: tokens and targets int32, weights float32; where rows are not packed
    or documents of a row must not see each other, also segments (document in the row, from 1; 0 =
    padding) and positions (from 0 in each document), int32.
    """
    chosen = self.rows_at(step, rows)
    whole = self.cfg.pack and self.cfg.cross_documents
    return _gather(chosen, self.seq_len, split=not whole)

  def documents_at(self, step: int, rows: slice | None = None) -> list[list[Span]]:
    """For each row of batch `step`, what it predicts: the documents and the part of each."""
    found = []
    for store, start, stop, _ in self.rows_at(step, rows):
      source = next(s for s, other in enumerate(self.stores) if other is store)
      first = int(np.searchsorted(store.offsets, start, side="right")) - 1
      last = int(np.searchsorted(store.offsets, stop, side="left"))
      begins = store.offsets[first:last].tolist()
      ends = store.offsets[first + 1 : last + 1].tolist()
      found.append(
        [
          Span(source, first + i, max(start, begin) - begin, min(stop, end) - begin)
          for i, (begin, end) in enumerate(zip(begins, ends, strict=True))
        ]
      )
    return found

  def rows_at(self, step: int, rows: slice | None = None) -> list[Row]:
    """What the rows of batch `step` read."""
    examples = step * self.batch_size + np.arange(self.batch_size)[rows or slice(None)]
    cycle, phase = np.divmod(examples, len(self._turns))
    seed = self.cfg.seed
    assert seed is not None  # of a resolved config
    groups = self._turns[phase]
    numbers = np.empty_like(examples)  # of the row, counted through all stores
    for g in np.unique(groups):
      mine = groups == g
      drawn = cycle[mine] * self._taken[g, -1] + self._taken[g, phase[mine]] - 1
      first, last = self._borders[list(self._groups[g])]
      epoch, index = np.divmod(drawn, self._kept[g])
      if not self.cfg.reshuffle:
        epoch = np.zeros_like(epoch)
      key = order.fold(seed, g, epoch)
      place = order.permute(index, self._kept[g], key)
      if self._kept[g] < last - first:
        place = order.permute(place, int(last - first), order.fold(seed, g, SUBSET))
      numbers[mine] = first + place
    return [self.row(number) for number in numbers.tolist()]

  def _rows_kept(self, cfg: DataConfig) -> list[int]:
    """Rows of one epoch of each group."""
    sizes = [int(self._borders[last] - self._borders[first]) for first, last in self._groups]
    if cfg.unique_tokens is None:
      return sizes
    parts = np.array(cfg.weights or (1.0,), float)
    rows = cfg.unique_tokens / (self.epoch_tokens / int(self._borders[-1]))
    kept = [max(1, round(rows * part / parts.sum())) for part in parts]
    if any(k > size for k, size in zip(kept, sizes, strict=True)):
      raise ConfigError(
        f"data.unique_tokens={cfg.unique_tokens}: the corpus has no more than {self.epoch_tokens} "
        "training tokens, and each source no more than its share; lower it or use None"
      )
    return kept

  @property
  def n_rows(self) -> int:
    """Different rows that there are."""
    return int(self._borders[-1])

  def row(self, number: int) -> Row:
    """Row `number` of all, counted source by source."""
    source = int(np.searchsorted(self._borders, number, side="right")) - 1
    return self._row(source, number - int(self._borders[source]))

  def _row(self, source: int, number: int) -> Row:
    store = self.stores[source]
    if self._first_rows is None:
      start = number * self.seq_len
      end = store.n_tokens
    else:
      first = self._first_rows[source]
      document = int(np.searchsorted(first, number, side="right")) - 1
      start = int(store.offsets[document]) + (number - int(first[document])) * self.seq_len
      end = int(store.offsets[document + 1])
    return Row(store, start, min(start + self.seq_len, end), start)


class EvalBatches:
  """A store's first whole documents, up to `max_tokens`, every token predicted exactly once.

  What is evaluated depends on the store and `max_tokens` alone. (A document longer than a piece of
  lm/data/tokenizers/ may also be cut at the end of a piece.)

  Args:
    stride: predictions that count in each window of `seq_len` after the first; fewer than seq_len
      give every token at least seq_len - stride tokens of context. None = seq_len.
    cross_documents: False: no context from other documents, as in training without it.

  Batches have one array more than training's: text, float32 [B, L], the weights without those of
  separators, whose bits no byte of the text holds.

  Attributes: n_targets (the sum of all weights) and n_bytes (of text, for bits per byte).

  Raises: ConfigError if not even one document fits.
  """

  def __init__(
    self,
    store: TokenStore,
    seq_len: int,
    batch_size: int,
    max_tokens: int | None = None,
    stride: int | None = None,
    cross_documents: bool = True,
  ):
    self.store, self.seq_len, self.batch_size = store, seq_len, batch_size
    self.stride = seq_len if stride is None else stride
    self.cross_documents = cross_documents
    if not 1 <= self.stride <= seq_len:
      raise ConfigError(f"stride={stride}: must be from 1 to seq_len={seq_len}; use {seq_len // 2}")
    self.n_targets, self.n_bytes = cut_documents(store, max_tokens)
    self.n_windows = 1 + -(-max(0, self.n_targets - seq_len) // self.stride)

  @property
  def facts(self) -> dict[str, float]:
    """What scores need beside sums: UTF-8 bytes of the text, and tokens predicted."""
    return {"bytes": self.n_bytes, "tokens": self.n_targets}

  def __len__(self) -> int:
    return -(-self.n_windows // self.batch_size)

  def __iter__(self) -> Iterator[Batch]:
    return (self.at(number) for number in range(len(self)))

  def at(self, number: int, rows: slice | None = None) -> Batch:
    """Batch `number`, or only its `rows`; rows past the last window are padding."""
    first = number * self.batch_size
    chosen = [self._row(w) for w in range(first, first + self.batch_size)[rows or slice(None)]]
    batch = _gather(chosen, self.seq_len, split=not self.cross_documents)
    is_text_BL = batch["targets"] != self.store.eot_id
    return batch | {"text": batch["weights"] * is_text_BL.astype(np.float32)}

  def _row(self, window: int) -> Row:
    if window >= self.n_windows:
      return Row(self.store, 0, 0, 0)
    start = window * self.stride
    counted = start + self.seq_len - self.stride if window else 0
    return Row(self.store, start, min(start + self.seq_len, self.n_targets), counted)


def mean_row(stores: Sequence[TokenStore], seq_len: int, pack: bool) -> float:
  """Tokens that a training row predicts on average, padding not counted."""
  rows = sum(-(-s.n_tokens // seq_len) if pack else int(first_rows(s, seq_len)[-1]) for s in stores)
  return sum(s.n_tokens for s in stores) / rows


def _check_weights(weights: Sequence[float], n_sources: int) -> None:
  if weights and (len(weights) != n_sources or min(weights) <= 0):
    raise ConfigError(
      f"data.weights={weights}: must be () or one positive number for each of data.sources; give "
      f"{n_sources}"
    )
  if weights and min(weights) * order.PERIOD < sum(weights):
    raise ConfigError(
      f"data.weights={weights}: a source with under 1/{order.PERIOD} of the weight would never be "
      "drawn; raise its weight or drop the source"
    )


def first_rows(store: TokenStore, seq_len: int) -> np.ndarray:
  """int64 [n_docs + 1]: number of each document's first row when no row crosses documents."""
  return np.concatenate([[0], np.cumsum(-(-np.diff(store.offsets) // seq_len))])


def cut_documents(store: TokenStore, max_tokens: int | None) -> tuple[int, int]:
  """(tokens, bytes) of the evaluated part of a store."""
  if max_tokens is None or store.n_tokens <= max_tokens:
    return store.n_tokens, store.n_bytes
  documents = int(np.searchsorted(store.offsets, max_tokens, side="right")) - 1
  best = (int(store.offsets[documents]), int(store.doc_bytes[:documents].sum()))
  inner = int(np.searchsorted(store.marks[:, 0], max_tokens, side="right"))
  if inner:
    best = max(best, tuple(store.marks[inner - 1].tolist()))
  if best[0] == 0:
    raise ConfigError(
      f"eval.tokens={max_tokens}: the first document of {store.name} has "
      f"{number_of(store.offsets[1], 'token')}; use at least as many, or None for all"
    )
  return best


def _gather(rows: Sequence[Row], seq_len: int, split: bool) -> Batch:
  """Reads rows into arrays [B, L]. `split`: number the documents of a row and restart positions."""
  batch = gather_rows(rows, seq_len)
  real_BL = np.arange(seq_len) < np.array([[row.stop - row.start] for row in rows])
  begins_BL = real_BL & (batch["tokens"] == rows[0].store.eot_id)  # of documents
  batch["tokens"][begins_BL] = rows[0].store.start_id
  return batch | split_documents(real_BL, begins_BL) if split else batch


def gather_rows(rows: Sequence[Row], seq_len: int) -> Batch:
  """tokens, targets and weights [B, L] of rows; documents begin with the separator before them."""
  shape = (len(rows), seq_len)
  tokens_BL, targets_BL = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
  weights_BL = np.zeros(shape, np.float32)
  for b, (store, start, stop, counted) in enumerate(rows):
    n = stop - start
    if n:
      targets_BL[b, :n] = store.tokens[start:stop]
      tokens_BL[b, 1:n] = targets_BL[b, : n - 1]
      tokens_BL[b, 0] = store.tokens[start - 1] if start else store.eot_id
      weights_BL[b, counted - start : n] = 1.0
  return {"tokens": tokens_BL, "targets": targets_BL, "weights": weights_BL}


def split_documents(real_BL: np.ndarray, begins_BL: np.ndarray) -> Batch:
  """segments (document in the row, from 1; 0 = padding) and positions (from 0 in each document), int32.

  Args:
    real_BL: bool, False on padding.
    begins_BL: bool, where documents begin.
  """
  at_L = np.arange(real_BL.shape[1], dtype=np.int32)
  starts_BL = np.maximum.accumulate(np.where(begins_BL, at_L, 0), axis=1)
  segments_BL = real_BL.astype(np.int32)
  segments_BL[:, 1:] += np.cumsum(begins_BL[:, 1:], axis=1, dtype=np.int32)
  segments_BL[~real_BL] = 0
  return {"segments": segments_BL, "positions": at_L - starts_BL}
