"""Rows of which some tokens are hidden, to be guessed from those on both sides (Devlin et al. 2019, §3.1).

    [CLS] text [SEP]              or, for the next sentence,      [CLS] text A [SEP] text B [SEP]

A row is cut from the stream of documents (data.pack) or from one document; pairs are always of one document,
or of two where B was drawn from another. Which tokens are hidden, and by what, is a function of (seed, step,
row); in an evaluation set of the row alone. Departure from the paper: texts are cut by tokens, not at ends of
sentences.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config
from lm.data import cache, order
from lm.data.batches import Batch, Row, TrainBatches, cut_documents, first_rows, mean_row
from lm.data.store import TokenStore
from lm.data.tokenizers import (
  Tokenizer,
  is_trained,
  known_vocab_size,
  make_tokenizer,
)

MASKS = ("[MASK]", "<mask>")  # names of the token that hides others
MASKING, SPLIT, OTHER = 101, 102, 103  # what a key is for, beside seed, step and row
TRIES = 16  # draws of another document before the next one is taken


class Marks(NamedTuple):
  """What a tokenizer's ids mean for masking."""

  start: int  # [CLS]
  separator: int  # [SEP]
  mask: int  # [MASK]; the first id after the tokenizer's own where that names none
  n_tokenizer: int  # entries of the tokenizer
  begins_V: np.ndarray  # bool: whether a token begins a word

  @property
  def vocab_size(self) -> int:
    return max(self.n_tokenizer, self.mask + 1)


def mask_id(tokenizer: Tokenizer) -> int | None:
  """The id of the tokenizer's own mask token."""
  backend = getattr(tokenizer, "backend", None)
  if backend is None:
    return None
  ids = [backend.token_to_id(name) for name in MASKS]
  return next((number for number in ids if number is not None), None)


def marks_of(tokenizer: Tokenizer) -> Marks:
  """The marks of a tokenizer; where it names no mask, one entry more."""
  found = mask_id(tokenizer)
  n = tokenizer.vocab_size
  mask = n if found is None else found
  begins_V = np.ones(max(n, mask + 1), bool)
  names = [tokenizer.token(i) or "" for i in range(n)]
  pieces = any(name.startswith("##") for name in names)
  if tokenizer.name != "word":
    begins_V[:n] = [not _continues(tokenizer.name, name, pieces) for name in names]
  return Marks(tokenizer.start_id, tokenizer.eot_id, mask, n, begins_V)


def _continues(kind: str, name: str, pieces: bool) -> bool:
  """Whether a token goes on with the word before it: WordPiece says so, others begin words with a blank."""
  if pieces:
    return name.startswith("##")
  if kind == "byte":
    value = int(name, 16) if name.startswith("0x") else 0
    return value >= 128 or chr(value).isalnum()
  return bool(name) and name[0].isalnum()


class MaskedData(NamedTuple):
  """A corpus whose vocabulary has a mask."""

  corpus: cache.Corpus
  marks: Marks

  @property
  def vocab_size(self) -> int:
    return self.marks.vocab_size

  @property
  def tokenizer(self) -> Tokenizer:
    return self.corpus.tokenizer

  @property
  def n_units(self) -> int:
    return self.corpus.n_units


def open_masked(cfg: Config) -> MaskedData:
  """The corpus of a config, tokenised once as for any language model."""
  corpus = cache.open_corpus(cfg.data)
  return MaskedData(corpus, marks_of(corpus.tokenizer))


def masked_vocab_size(cfg: Config) -> int | None:
  """Entries of the tokenizer and the mask; None where the corpus must be opened to know."""
  known = known_vocab_size(cfg.data)
  if known is None:
    return None
  found = None if is_trained(cfg.data) else mask_id(make_tokenizer(cfg.data))
  return known + 1 if found is None else max(known, found + 1)


def specials(cfg: Config) -> int:
  """Tokens of a row that are no text."""
  return 3 if cfg.objective.next_sentence else 2


def room(cfg: Config) -> int:
  """Tokens of text that a row has room for."""
  return cfg.model.seq_len - specials(cfg)


def most_hidden(cfg: Config) -> int:
  """Tokens of a row that are guessed, at most."""
  return max(1, round(cfg.objective.mask_rate * room(cfg)))


def check_masked(cfg: Config) -> None:
  """ConfigError for rows that hold nothing, and for documents that must not see each other in one row."""
  if room(cfg) < 2:
    raise ConfigError(
      f"model.seq_len={cfg.model.seq_len}: must hold {specials(cfg)} special tokens and 2 of text; use "
      f"{specials(cfg) + 2} or more"
    )
  if cfg.data.pack and not cfg.data.cross_documents:
    raise ConfigError(
      "data.cross_documents=False: a masked row of several documents is read as one text; set data.pack=False"
    )


class Masking(NamedTuple):
  """The settings of a config that decide how rows are made and which of their tokens are hidden."""

  seq_len: int
  room: int  # tokens of text
  most: int  # P, tokens guessed
  rate: float
  masked: float  # of those guessed, the share that the mask hides
  random: float  # the share in whose place a random token stands; the rest is left as it is
  whole_words: bool
  pairs: bool


def masking_of(cfg: Config) -> Masking:
  o = cfg.objective
  return Masking(
    cfg.model.seq_len, room(cfg), most_hidden(cfg), o.mask_rate, o.mask_share, o.random_share,
    o.whole_words, o.next_sentence,
  )  # fmt: skip


class _Reader:
  """Rows of text as batches."""

  def __init__(self, marks: Marks, rule: Masking):
    self.marks, self.rule = marks, rule

  def batch(self, texts: Sequence[Sequence[np.ndarray]], follows: Sequence[bool], keys_B) -> Batch:
    """Arrays of rows, each of one text or two; `keys_B` uint64 says what is hidden.

    Returns: tokens and segments (1 = real, 0 = padding) int32 [B, L]; places and targets int32 and weights
    float32 [B, P]: which positions are guessed, and what stood there; for pairs also types [B, L] (0 for A, 1
    for B) and other [B] (1 where B does not follow A), int32.
    """
    rule, marks = self.rule, self.marks
    shape = (len(texts), rule.seq_len)
    tokens_BL, segments_BL, types_BL = (np.zeros(shape, np.int32) for _ in range(3))
    maskable_BL = np.zeros(shape, bool)
    for b, parts in enumerate(texts):
      if not sum(map(len, parts)):
        continue  # past the end of an evaluation set
      tokens_BL[b, 0], at = marks.start, 1
      for number, part in enumerate(parts):
        stop = at + len(part)
        tokens_BL[b, at:stop], tokens_BL[b, stop] = part, marks.separator
        maskable_BL[b, at:stop] = part != marks.separator
        types_BL[b, at : stop + 1] = number
        at = stop + 1
      segments_BL[b, :at] = 1
    hidden = self._hide(tokens_BL, maskable_BL, keys_B)
    batch = {"tokens": tokens_BL, "segments": segments_BL, **hidden}
    if rule.pairs:
      batch |= {"types": types_BL, "other": 1 - np.array(follows, np.int32)}
    return batch

  def _hide(self, tokens_BL, maskable_BL, keys_B):
    """Chooses what is guessed, hides it in tokens_BL itself, and returns places, targets and weights."""
    rule, marks = self.rule, self.marks
    (B, L), P = tokens_BL.shape, rule.most
    n_B = np.minimum(P, np.maximum(1, np.rint(rule.rate * maskable_BL.sum(axis=1)).astype(int)))
    n_B = np.minimum(n_B, maskable_BL.sum(axis=1))
    chance_BL = np.where(maskable_BL, order.uniform(keys_B, L), 2.0)
    if rule.whole_words:
      chosen = [
        self._words(*row) for row in zip(tokens_BL, maskable_BL, chance_BL, n_B, strict=True)
      ]
    else:
      first_BP = np.argsort(chance_BL, axis=1, kind="stable")[:, :P]
      chosen = [np.sort(row[:n]) for row, n in zip(first_BP, n_B.tolist(), strict=True)]
    places_BP, weights_BP = np.zeros((B, P), np.int32), np.zeros((B, P), np.float32)
    for b, row in enumerate(chosen):
      places_BP[b, : len(row)], weights_BP[b, : len(row)] = row, 1.0
    targets_BP = np.take_along_axis(tokens_BL, places_BP, axis=1)
    dice_BP, word_BP = np.split(order.uniform(order.mix(keys_B), 2 * P), 2, axis=1)
    random_BP = (word_BP * marks.n_tokenizer).astype(np.int32)
    shown_BP = np.where(dice_BP < rule.masked + rule.random, random_BP, targets_BP)
    shown_BP = np.where(dice_BP < rule.masked, marks.mask, shown_BP)
    rows, columns = np.nonzero(weights_BP)
    tokens_BL[rows, places_BP[rows, columns]] = shown_BP[rows, columns]
    targets_BP = np.where(weights_BP > 0, targets_BP, 0).astype(np.int32)
    return {"places": places_BP, "targets": targets_BP, "weights": weights_BP}

  def _words(self, tokens_L, maskable_L, chance_L, n):
    """Positions of whole words, in random order as many as fit into n tokens; at least one token."""
    begins_L = maskable_L & (self.marks.begins_V[tokens_L] | ~np.roll(maskable_L, 1))
    word_L = np.where(maskable_L, np.cumsum(begins_L), 0)
    starts = np.flatnonzero(begins_L)
    sizes = np.bincount(word_L, minlength=len(starts) + 1)[1:]
    taken, left = [], int(n)
    for word in np.argsort(chance_L[starts], kind="stable").tolist():
      if sizes[word] <= left:
        taken.append(word + 1)
        left -= int(sizes[word])
      if not left:
        break
    found = np.flatnonzero(np.isin(word_L, taken) & maskable_L)
    return found if len(found) else np.flatnonzero(maskable_L)[: int(n)]

  def text(self, row: Row) -> np.ndarray:
    """The tokens of a row, without a separator at its end."""
    tokens = np.asarray(row.store.tokens[row.start : row.stop]).astype(np.int32)
    return tokens[:-1] if len(tokens) > 1 and tokens[-1] == self.marks.separator else tokens

  def pair(self, row: Row, number: int, other, n_rows: int, key: np.ndarray):
    """((A, B), whether B follows A): a row's text cut in two, or its first part and another document's.

    Args:
      number: the row's, of n_rows; other(number) gives any row.
      key: uint64 [1].
    """
    text = self.text(row)
    cut, coin = order.uniform(order.mix(key + np.uint64(SPLIT)), 2)[0]
    at = 1 + int(cut * (len(text) - 1)) if len(text) > 1 else 1
    a, b = text[:at], text[at:]
    if coin < 0.5 and len(b):
      return (a, b), True
    draws = (
      (order.uniform(order.mix(key + np.uint64(OTHER)), TRIES)[0] * n_rows).astype(int).tolist()
    )
    mine = _document(row)
    for drawn in [*draws, *((number + i) % n_rows for i in range(1, n_rows))]:
      candidate = other(drawn)
      if _document(candidate) != mine:
        return (a, self.text(candidate)[: self.rule.room - len(a)]), False
    raise AssertionError("one document: mean_masked refuses it")


def _document(row: Row) -> tuple[int, int]:
  """The number of the document that a row is from."""
  return id(row.store.tokens), int(np.searchsorted(row.store.offsets, row.start, side="right"))


class MaskedBatches:
  """Training batches: `at(step)` depends on the config, its seed and the step alone."""

  def __init__(self, data: MaskedData, cfg: Config):
    self.rule = masking_of(cfg)
    settings = dataclasses.replace(cfg.data, pack=cfg.data.pack and not self.rule.pairs)
    assert settings.seed is not None  # resolved
    self.batch_size, self.seed = cfg.train.batch_size, settings.seed
    self.source = TrainBatches(data.corpus, settings, self.rule.room, self.batch_size)
    self.reader = _Reader(data.marks, self.rule)

  def at(self, step: int, rows: slice | None = None) -> Batch:
    """Batch number `step`, or only its `rows`; arrays as of `masked_arrays`."""
    chosen = self.source.rows_at(step, rows)
    index = np.arange(self.batch_size)[rows or slice(None)]
    keys_B = order.fold(self.seed, MASKING, step, index)
    reader, source = self.reader, self.source
    if not self.rule.pairs:
      texts, follows = [(reader.text(row),) for row in chosen], [True] * len(chosen)
    else:
      numbers = (order.uniform(order.mix(keys_B), 1)[:, 0] * source.n_rows).astype(int).tolist()
      made = [
        reader.pair(row, number, source.row, source.n_rows, keys_B[b : b + 1])
        for b, (row, number) in enumerate(zip(chosen, numbers, strict=True))
      ]
      texts, follows = [pair for pair, _ in made], [is_next for _, is_next in made]
    return reader.batch(texts, follows, keys_B)


class MaskedSet(NamedTuple):
  """A store to be evaluated on."""

  store: TokenStore
  marks: Marks

  @property
  def fingerprint(self) -> str:
    return self.store.fingerprint


class MaskedEval:
  """A store's first whole documents, up to `max_tokens`, every row hidden in one way, whatever the seed."""

  def __init__(self, each: MaskedSet, cfg: Config, max_tokens: int | None, stride: int | None):
    if stride is not None:
      raise ConfigError(f"stride={stride}: masked rows do not overlap; leave it out")
    store = each.store
    assert cfg.eval.batch_size is not None  # resolved
    self.rule, self.batch_size = masking_of(cfg), cfg.eval.batch_size
    self.reader = _Reader(each.marks, self.rule)
    n_tokens, n_bytes = cut_documents(store, max_tokens)
    size = self.rule.room
    if cfg.data.pack and not self.rule.pairs:
      starts = np.arange(0, n_tokens, size)
      stops = np.minimum(starts + size, n_tokens)
    else:
      firsts = first_rows(store, size)
      document = np.searchsorted(firsts, np.arange(firsts[-1]), side="right") - 1
      starts = store.offsets[document] + (np.arange(firsts[-1]) - firsts[document]) * size
      stops = np.minimum(starts + size, store.offsets[document + 1])
      starts, stops = starts[starts < n_tokens], np.minimum(stops[starts < n_tokens], n_tokens)
    self.rows = [Row(store, int(a), int(b), int(a)) for a, b in zip(starts, stops, strict=True)]
    self.facts = {"bytes": n_bytes, "tokens": n_tokens}

  def __len__(self) -> int:
    return -(-len(self.rows) // self.batch_size)

  def at(self, number: int, rows: slice | None = None) -> Batch:
    """Batch `number`, or only its `rows`; rows past the last one are padding."""
    first = number * self.batch_size
    index = np.arange(first, first + self.batch_size)[rows or slice(None)]
    keys_B = order.fold(0, MASKING, 0, index)
    texts, follows, n = [], [], len(self.rows)
    for b, i in enumerate(index.tolist()):
      if i >= n:
        texts.append(())
        follows.append(True)
      elif self.rule.pairs:
        other = lambda number: self.rows[number]
        pair, is_next = self.reader.pair(self.rows[i], i, other, n, keys_B[b : b + 1])
        texts.append(pair)
        follows.append(is_next)
      else:
        texts.append((self.reader.text(self.rows[i]),))
        follows.append(True)
    return self.reader.batch(texts, follows, keys_B)


def mean_masked(data: MaskedData, cfg: Config) -> float | None:
  """Tokens of text that a row holds; None where all but the last are full, to within 1 %."""
  pairs = cfg.objective.next_sentence
  for side in ((data.corpus.val,), data.corpus.train) if pairs else ():
    if sum(store.n_docs for store in side) < 2:
      raise ConfigError(
        f"objective.next_sentence=True: needs two documents and {side[0].name} has one; cut it finer "
        "(data.text_unit) or use False"
      )
  pack = cfg.data.pack and not pairs
  mean = mean_row(data.corpus.train, room(cfg), pack)
  return None if mean > 0.99 * room(cfg) else mean


def describe_masked(data: MaskedData) -> dict[str, Any]:
  """What run.json records: the corpus, and the mask's id."""
  found = cache.describe(data.corpus)
  return found | {"tokenizer": {**found["tokenizer"], "mask_id": data.marks.mask}}
