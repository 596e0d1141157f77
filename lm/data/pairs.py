"""Pairs of a source and a target, such as a sentence and its translation: read, tokenised, put in rows.

A spec of data.sources is text:GLOB (JSON lines, CSV, TSV or parquet, whose fields data.source_field and
data.target_field name) or parallel:SOURCES+TARGETS (two files, or two globs, line i beside line i).
Documents of two stores (lm/data/store.py) with the same number are a pair.
"""

import dataclasses
import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from lm.config.errors import ConfigError, number_of
from lm.config.schema import Config, DataConfig
from lm.data import cache, cleaning, folders, order, sources, tokenizers
from lm.data.sources import parallel, reversed_words
from lm.data.sources.digest import hash_of
from lm.data.sources.readers.fields import Fields
from lm.data.spool import TRAIN, VAL, Spool
from lm.data.store import TokenStore, open_store, write_store

FORMAT = 1  # of the cache
SIDES = ("source", "target")
SIDE_BY_SIDE = {"parallel": parallel.read, "reversed": reversed_words.read}  # kinds of source
OPEN_ROWS = 16  # that packing tries to put a pair in


class PairStore(NamedTuple):
  """Documents i of both stores are a pair; each ends with the separator."""

  source: TokenStore
  target: TokenStore

  @property
  def fingerprint(self) -> str:
    return self.source.fingerprint + self.target.fingerprint

  @property
  def n_pairs(self) -> int:
    return self.source.n_docs

  def lengths(self) -> np.ndarray:
    """int64 [n_pairs, 2]: tokens of source and target, separators included."""
    return np.stack([np.diff(self.source.offsets), np.diff(self.target.offsets)], axis=1)


@dataclasses.dataclass(frozen=True)
class PairCorpus:
  """What `open_pairs` gives: a tokenizer of both sides, a store a source, and the held-out one."""

  cfg: DataConfig
  folder: pathlib.Path
  tokenizer: Any
  train: list[PairStore]
  val: PairStore
  counts: dict[str, int]
  special: dict[str, object]
  sets: dict[str, str]  # fingerprint of each further set that was opened
  fingerprint: str

  @property
  def vocab_size(self) -> int:
    return self.tokenizer.vocab_size

  @property
  def n_units(self) -> int:
    """Training tokens of one epoch, sources and targets together."""
    return sum(s.source.n_tokens + s.target.n_tokens for s in self.train)

  def extra(self, entry: str) -> PairStore:
    """A further set, "name=spec" or "spec": all of its pairs, in their order."""
    name, spec, where = sources.split_entry(entry)
    key = hash_of([FORMAT, "extra", identity(spec, self.cfg, where), self.folder.name])

    def build(folder: pathlib.Path, track: Callable) -> None:
      both = _spools(folder, [(spec, where)], self.cfg, track)
      for spool in both.values():
        spool.split({0}, set(), _plain(self.cfg))
      _write(folder / "val", both, VAL, list(both["source"].numbers(VAL)), self.tokenizer, track)

    folder = folders.build_once(folders.open_root(self.cfg.cache_dir), key, build, False)
    store = _open(folder / "val", name)
    self.sets[name] = store.fingerprint
    return store


def open_pairs(cfg: DataConfig, quiet: bool = False) -> PairCorpus:
  """The tokenised pairs of `cfg`, built first where they are missing.

  Which pairs are held out goes by the hash of their source. A pair with a side that is blank, too short or
  too long (data.min_chars, data.max_chars) is left out and counted.

  Raises:
    ConfigError: whatever is wrong with a source; files of unequal length; an empty side of the split.
  """
  make_key = lambda: hash_of(
    [
      FORMAT,
      [identity(spec, cfg) for spec in cfg.sources],
      [getattr(cfg, key) for key in cache.CLEANING],
      cfg.val_fraction,
      cache.tokenizer_identity(cfg),
    ]
  )

  def build(folder: pathlib.Path, track: Callable) -> None:
    _build(folder, cfg, track)
    cache.check_unchanged(key, make_key(), f"data.sources={','.join(cfg.sources)}")

  key = make_key()
  folder = folders.build_once(folders.open_root(cfg.cache_dir), key, build, quiet)
  train = [_open(folder / f"train-{i}", spec) for i, spec in enumerate(cfg.sources)]
  val = _open(folder / "val", "val")
  tokenizer = tokenizers.load_tokenizer(folder)
  counts = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
  everything = [tokenizers.fingerprint(tokenizer), *(s.fingerprint for s in (*train, val))]
  special = tokenizers.special_names(tokenizer)
  return PairCorpus(cfg, folder, tokenizer, train, val, counts, special, {}, hash_of(everything))


def describe_pairs(corpus: PairCorpus) -> dict:
  """What run.json records of the data."""
  stores = {
    store.source.name.removesuffix(" source"): store for store in (*corpus.train, corpus.val)
  }
  return {
    "fingerprint": corpus.fingerprint,
    "tokenizer": tokenizers.describe(corpus.tokenizer, corpus.special),
    "documents": corpus.counts,
    "sets": dict(corpus.sets),
    "stores": {
      name: {
        "pairs": store.n_pairs,
        "tokens": store.source.n_tokens + store.target.n_tokens,
        "bytes": store.source.n_bytes + store.target.n_bytes,
        "fingerprint": store.fingerprint,
      }
      for name, store in stores.items()
    },
  }


# --- reading ----------------------------------------------------------------------------------------


def read_pairs(
  spec: str, cfg: DataConfig, where: str = "data.sources"
) -> Iterator[tuple[str | None, str | None]]:
  """(source, target) of every pair of a spec, as they are stored.

  Raises:
    ConfigError: a spec of another kind, no such file or field, files of unequal length.
  """
  kind, name = sources.parse_spec(spec, where)
  if kind in SIDE_BY_SIDE:
    yield from SIDE_BY_SIDE[kind](name, cfg, f"{where}={spec}")
  elif sources.SOURCES[kind].find is not None:
    keys = {cfg.source_field: "data.source_field", cfg.target_field: "data.target_field"}
    for record in sources.records(spec, cfg, Fields(keys, joined=True), where):
      yield record.values[0], record.values[1]
  else:
    raise ConfigError(
      f"{where}={spec}: holds no pairs; use text:FILE with fields (data.source_field, data.target_field) "
      "or parallel:SOURCES+TARGETS"
    )


def identity(spec: str, cfg: DataConfig, where: str = "data.sources") -> str:
  """A string that changes when the pairs of a spec may have."""
  return json.dumps(
    [sources.identity(spec, cfg, "train", where), cfg.source_field, cfg.target_field]
  )


def _cleaned(pairs, cfg: DataConfig, counts: Counter) -> Iterator[tuple[str, str]]:
  """Cleaned pairs, less those with a side that is left out."""
  for pair in pairs:
    counts["read"] += 1
    dropped: Counter[str] = Counter()
    kept = list(cleaning.cleaned(pair, cfg, dropped))
    if len(kept) == 2:
      yield kept[0], kept[1]
    else:
      counts[next(why for why in dropped if why != "read")] += 1


# --- building ---------------------------------------------------------------------------------------


def _plain(cfg: DataConfig) -> DataConfig:
  """The config without cleaning, for pairs that are cleaned already and are split by their source."""
  off: dict[str, Any] = dict.fromkeys(cleaning.STEPS, False)
  return dataclasses.replace(
    cfg,
    **off,
    unicode=None,
    min_chars=0,
    max_chars=None,
    val_split="documents",
    drop_duplicates=False,
  )


def _spools(
  folder: pathlib.Path, specs: list[tuple[str, str]], cfg: DataConfig, track: Callable, counts=None
) -> dict[str, Spool]:
  """{"source": Spool, "target": Spool} of the pairs of all specs, which are read once for each side."""
  both = {}
  for index, side in enumerate(SIDES):
    (folder / side).mkdir()
    spool, seen = Spool(folder / side), Counter()
    texts = lambda spec, where, index=index, seen=seen: (
      pair[index] for pair in _cleaned(read_pairs(spec, cfg, where), cfg, seen)
    )
    inputs = [(number, texts(*one)) for number, one in enumerate(specs)]
    spool.write(inputs, _plain(cfg), track(f"reading {side}s", None))
    both[side] = spool
    if counts is not None:
      counts.clear()
      counts.update(seen)
  return both


def _build(folder: pathlib.Path, cfg: DataConfig, track: Callable) -> None:
  counts: Counter[str] = Counter()
  specs = [(spec, "data.sources") for spec in cfg.sources]
  both = _spools(folder, specs, cfg, track, counts)
  first, second = both["source"], both["target"]
  by_source = dataclasses.replace(_plain(cfg), drop_duplicates=cfg.drop_duplicates)
  first.split(set(), set(range(len(specs))), by_source)
  counts["duplicate"] = first.counts["duplicate"]
  second.sides = first.sides
  for s, (spec, _) in enumerate(specs):
    if next(first.numbers(TRAIN, s), None) is None:
      raise ConfigError(
        f"data.sources={spec}: no training pair is left of {counts['read']} read; check the source, "
        "data.min_chars, data.max_chars and data.val_fraction"
      )
  if next(first.numbers(VAL), None) is None:
    raise ConfigError(
      f"data.val_fraction={cfg.val_fraction}: holds out no pair of {', '.join(cfg.sources)}; raise it"
    )
  n_bytes = sum(spool.n_bytes(TRAIN) for spool in both.values())
  texts: Iterator[str] = iter(())
  if tokenizers.is_trained(cfg):
    texts = _texts(both, track(f"training {cfg.tokenizer} tokenizer", n_bytes))
  tokenizer = tokenizers.make_tokenizer(cfg, texts, n_bytes)
  tokenizers.save_tokenizer(tokenizer, folder)
  for s in range(len(specs)):
    _write(folder / f"train-{s}", both, TRAIN, list(first.numbers(TRAIN, s)), tokenizer, track)
  _write(folder / "val", both, VAL, first.numbers_by_hash(VAL), tokenizer, track)
  (folder / "counts.json").write_text(json.dumps(counts), encoding="utf-8")


def _texts(both: dict[str, Spool], advance: Callable) -> Iterator[str]:
  """Training text of both sides, pair by pair, so that an even sample holds as much of each."""
  for number in both["source"].numbers(TRAIN):
    for spool in both.values():
      for piece in spool.pieces(number, TRAIN):
        yield piece.decode()
        advance(len(piece))


def _write(
  folder: pathlib.Path,
  both: dict[str, Spool],
  side: int,
  numbers: list[int],
  tokenizer: Any,
  track: Callable,
) -> None:
  folder.mkdir()
  for name, spool in both.items():
    advance = track(f"tokenising {name}s", None)
    write_store(folder / name, spool, side, numbers, tokenizer, advance)


def _open(folder: pathlib.Path, name: str) -> PairStore:
  return PairStore(*(open_store(folder / side, f"{name} {side}") for side in SIDES))


# --- rows -------------------------------------------------------------------------------------------


def pack_rows(lengths: np.ndarray, room: tuple[int, int]) -> list[list[int]]:
  """Numbers of the pairs of each row: every pair goes to the first of the last OPEN_ROWS that has room.

  Args:
    lengths: int [n, 2], tokens of source and target; none longer than `room`.
    room: tokens of a row's source and target.
  """
  rows: list[list[int]] = []
  used: list[list[int]] = []
  for pair, (source, target) in enumerate(lengths.tolist()):
    for at in range(max(0, len(rows) - OPEN_ROWS), len(rows)):
      if used[at][0] + source <= room[0] and used[at][1] + target <= room[1]:
        break
    else:
      rows.append([])
      used.append([0, 0])
      at = len(rows) - 1
    rows[at].append(pair)
    used[at][0] += source
    used[at][1] += target
  return rows


def checked_lengths(store: PairStore, cfg: Config) -> np.ndarray:
  """Lengths of the pairs of a store, cut to the model where data.truncate says so.

  Raises:
    ConfigError: pairs longer than the model, without data.truncate.
  """
  room, lengths = _room(cfg), store.lengths()
  longer = int((lengths > np.array(room)).any(axis=1).sum())
  if longer and not cfg.data.truncate:
    most = lengths.max(axis=0).tolist()
    raise ConfigError(
      f"data.truncate=False: {longer:,} of {store.n_pairs:,} pairs are longer than model.seq_len={room[0]} "
      f"source or model.target_len={room[1]} target tokens; raise them to {most[0]} and {most[1]}, or set "
      "data.truncate=True to cut the pairs"
    )
  return np.minimum(lengths, np.array(room))


def _room(cfg: Config) -> tuple[int, int]:
  model: Any = cfg.model
  return model.seq_len, model.target_len or model.seq_len


def _rows_of(store: PairStore, cfg: Config) -> list[list[int]]:
  """The rows of a store, packed from its pairs in a fixed random order, as lists of pair numbers."""
  lengths = checked_lengths(store, cfg)
  if not cfg.data.pack:
    return [[i] for i in range(store.n_pairs)]
  n = store.n_pairs
  shuffled = order.permute(np.arange(n), n, order.fold(0, 11))
  return [[int(shuffled[i]) for i in row] for row in pack_rows(lengths[shuffled], _room(cfg))]


class PairBatches:
  """Training batches: `at(step)` depends on the data config, its seed and the step alone.

  A row holds one pair, or with data.pack as many as fit. Rows are fixed and permuted anew every epoch
  (data.reshuffle); with data.weights sources take turns by their quotas of rows.

  A batch: source, source_segments, source_positions int32 [B, S]; tokens (what the decoder reads: the start
  token, then the target), targets, segments, positions int32 [B, L]; weights float32 [B, L]. Segments
  number the pairs of a row from 1; 0 is padding.
  """

  def __init__(self, corpus: PairCorpus, cfg: Config):
    self.cfg, self.stores, self.batch_size = cfg, corpus.train, cfg.train.batch_size
    self.rows = [_rows_of(store, cfg) for store in self.stores]
    sizes = [len(rows) for rows in self.rows]
    weights = cfg.data.weights or [float(size) for size in sizes]
    self._single = not cfg.data.weights
    self._turns = order.mixture(np.array(weights, float))
    chosen = self._turns == np.arange(len(sizes))[:, None]
    self._taken = np.cumsum(chosen, axis=1)
    self._borders = np.concatenate([[0], np.cumsum(sizes)])

  def at(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
    """Batch number `step`, or only its `rows`."""
    data, seed = self.cfg.data, self.cfg.data.seed or 0
    index = step * self.batch_size + np.arange(self.batch_size)[rows or slice(None)]
    found = []
    for example in index.tolist():
      if self._single:
        source, drawn, n = None, example, int(self._borders[-1])
      else:
        cycle, phase = divmod(example, len(self._turns))
        source = int(self._turns[phase])
        drawn = cycle * int(self._taken[source, -1]) + int(self._taken[source, phase]) - 1
        n = len(self.rows[source])
      epoch, place = divmod(drawn, n)
      key = order.fold(seed, 0 if source is None else source, epoch if data.reshuffle else 0)
      number = int(order.permute(np.array([place]), n, key)[0])
      if source is None:
        source = int(np.searchsorted(self._borders, number, side="right")) - 1
        number -= int(self._borders[source])
      found.append((self.stores[source], self.rows[source][number]))
    return gather_pairs(found, self.cfg)


class PairEval:
  """The first pairs of a store, up to `max_tokens` of both sides, each once."""

  def __init__(self, store: PairStore, cfg: Config, max_tokens: int | None):
    lengths = checked_lengths(store, cfg)
    total = np.cumsum(lengths.sum(axis=1))
    n = len(total) if max_tokens is None else int(np.searchsorted(total, max_tokens, side="right"))
    if n == 0:
      raise ConfigError(
        f"eval.tokens={max_tokens}: the first pair has {number_of(int(total[0]), 'token')}; "
        "use at least as many"
      )
    room = _room(cfg)
    rows = pack_rows(lengths[:n], room) if cfg.data.pack else [[i] for i in range(n)]
    self.store, self.cfg, self.rows, self.n = store, cfg, rows, n
    self.tokens = int(lengths[:n].sum())
    self.batch_size = cfg.eval.batch_size or cfg.train.batch_size

  @property
  def facts(self) -> dict[str, float]:
    return {"pairs": self.n, "tokens": self.tokens}

  def __len__(self) -> int:
    return -(-len(self.rows) // self.batch_size)

  def at(self, number: int, rows: slice | None = None) -> dict[str, np.ndarray]:
    """Batch `number`, or only its `rows`; rows past the last one are padding."""
    index = number * self.batch_size + np.arange(self.batch_size)[rows or slice(None)]
    chosen = [self.rows[i] if i < len(self.rows) else [] for i in index.tolist()]
    return gather_pairs([(self.store, row) for row in chosen], self.cfg)


def gather_pairs(rows: list[tuple[PairStore, list[int]]], cfg: Config) -> dict[str, np.ndarray]:
  """The arrays of rows that hold these pairs of a store."""
  room = dict(zip(SIDES, _room(cfg), strict=True))
  zeros = lambda side, dtype: np.zeros((len(rows), room[side]), dtype)
  batch = {
    name: zeros(side, np.int32)
    for side, names in (
      ("source", ("source", "source_segments", "source_positions")),
      ("target", ("tokens", "targets", "segments", "positions")),
    )
    for name in names
  } | {"weights": zeros("target", np.float32)}
  for b, (store, pairs) in enumerate(rows):
    at = dict.fromkeys(SIDES, 0)
    for segment, pair in enumerate(pairs, start=1):
      ids = _tokens(store.source, pair, room["source"])
      here = slice(at["source"], at["source"] + len(ids))
      batch["source"][b, here] = ids
      batch["source_segments"][b, here] = segment
      batch["source_positions"][b, here] = np.arange(len(ids))
      at["source"] += len(ids)
      ids = _tokens(store.target, pair, room["target"])
      put_target(batch, b, at["target"], ids, segment, store.target.start_id)
      at["target"] += len(ids)
  return batch


def put_target(batch, b: int, start: int, ids: np.ndarray, segment: int, start_id: int) -> None:
  """Writes a target into row b from `start` on: what is read is what is predicted, one later."""
  here = slice(start, start + len(ids))
  batch["targets"][b, here] = ids
  batch["tokens"][b, here] = np.concatenate([[start_id], ids[:-1]])
  batch["weights"][b, here] = 1.0
  batch["segments"][b, here] = segment
  batch["positions"][b, here] = np.arange(len(ids))


def _tokens(store: TokenStore, document: int, most: int) -> np.ndarray:
  """A document and its separator; cut at `most`, where the separator stays the last."""
  ids = np.asarray(store.tokens[store.offsets[document] : store.offsets[document + 1]], np.int32)
  return ids if len(ids) <= most else np.concatenate([ids[: most - 1], ids[-1:]])


def mean_units(corpus: PairCorpus, cfg: Config) -> float:
  """Tokens of both sides that a training row holds on average."""
  total = sum(int(checked_lengths(store, cfg).sum()) for store in corpus.train)
  return total / sum(len(_rows_of(store, cfg)) for store in corpus.train)


def check_pairs(cfg: Config) -> None:
  """ConfigError for settings of documents that pairs do not have, and a model without a source."""
  cleaning.check_no_documents(cfg.data, "pairs")
  if not hasattr(cfg.model, "target_len"):
    raise ConfigError(
      f"model.family={cfg.model.family}: reads no pairs of source and target; use encoder_decoder or t5"
    )
  if cfg.data.val_split != "documents":
    raise ConfigError(
      f"data.val_split={cfg.data.val_split}: pairs are held out whole; use documents"
    )
  if cfg.data.source_field == cfg.data.target_field:
    raise ConfigError(
      f"data.target_field={cfg.data.target_field}: must be another field than data.source_field; name "
      "the text to write"
    )
  for spec in cfg.data.sources:
    kind, name = sources.parse_spec(spec)
    if kind == "parallel":
      parallel.split(name, f"data.sources={spec}")
    elif kind not in SIDE_BY_SIDE and sources.SOURCES[kind].find is None:
      raise ConfigError(
        f"data.sources={spec}: holds no pairs; use text:FILE with data.source_field and "
        "data.target_field, or parallel:SOURCES+TARGETS"
      )
