"""Texts with labels: one text or two a record, tokenised once, and batches of them.

    [CLS] text [SEP]              or              [CLS] text [SEP] second text [SEP]

    <cache_dir>/<key>/            key: hash of source contents, fields, cleaning, split and tokenizer
      vocabulary.json             the tokenizer
      labels.json                 names of the classes, as the training split has them
      train/ val/                 a store each: tokens.bin, offsets.bin, text.bin, ends.bin, labels.bin

An epoch holds every record once; which one a row holds, and how it is changed (lm.data.augment), follows from
(seed, step, row).
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.config.errors import ConfigError, number_of
from lm.config.schema import Config, DataConfig
from lm.data import augment, cleaning, folders, order, sources, tokenizers
from lm.data.cache import CLEANING, SPLIT, check_unchanged, tokenizer_identity
from lm.data.records import split
from lm.data.sources.digest import hash_of
from lm.data.tokenizers import Tokenizer, known_vocab_size

FORMAT = 1
AUGMENT, DROP = 201, 202  # what a key is for
LISTED = 8  # labels named in a message
Batch = dict[str, np.ndarray]


class LabelledStore(NamedTuple):
  """Records of one side. `k` texts a record, so that text j of record i is number k i + j."""

  name: str
  k: int
  tokens: np.ndarray  # uint16 or uint32 [n_tokens]
  offsets: np.ndarray  # int64 [k n + 1]
  text: np.ndarray  # uint8, UTF-8 of the cleaned texts, one after another
  ends: np.ndarray  # int64 [k n + 1], in bytes
  labels: np.ndarray  # int32 [n] or float32 [n]
  fingerprint: str

  @property
  def n_docs(self) -> int:
    return len(self.labels)

  def ids(self, number: int) -> np.ndarray:
    """Tokens of text `number`."""
    return np.asarray(self.tokens[self.offsets[number] : self.offsets[number + 1]], np.int32)

  def string(self, number: int) -> str:
    """Text `number`."""
    return self.text[self.ends[number] : self.ends[number + 1]].tobytes().decode()

  def lengths(self) -> np.ndarray:
    """int64 [n]: tokens of each record's row, special ones included."""
    texts = np.diff(self.offsets).reshape(-1, self.k).sum(axis=1)
    return texts + 1 + self.k


@dataclasses.dataclass(frozen=True)
class Labelled:
  """What `open_labelled` gives."""

  cfg: DataConfig
  folder: pathlib.Path
  tokenizer: Tokenizer
  train: LabelledStore
  val: LabelledStore
  labels: tuple[str, ...] | None  # names of the classes; None where labels are numbers
  counts: dict[str, int]
  sets: dict[str, str]  # fingerprint of each further set that was opened
  quiet: bool

  @property
  def vocab_size(self) -> int:
    return self.tokenizer.vocab_size

  @property
  def n_units(self) -> int:
    """Tokens of one epoch, special ones included."""
    return int(self.train.lengths().sum())

  @property
  def fingerprint(self) -> str:
    return hash_of(
      [tokenizers.fingerprint(self.tokenizer), self.train.fingerprint, self.val.fingerprint]
    )

  def extra(self, entry: str) -> LabelledStore:
    """A further evaluation set, "name=source" or "source", read like the training texts."""
    name, spec, key_name = sources.split_entry(entry)
    content = sources.identity(spec, self.cfg, "val", key_name)
    key = hash_of([FORMAT, "extra", content, _fields(self.cfg), self.folder.name])

    def build(folder: pathlib.Path, track: Callable) -> None:
      rows = list(_read([spec], self.cfg, Counter(), key_name))
      _write(folder / "val", rows, self.tokenizer, self.labels, _fields(self.cfg))

    folder = folders.build_once(folders.open_root(self.cfg.cache_dir), key, build, self.quiet)
    store = _open(folder / "val", name)
    self.sets[name] = store.fingerprint
    return store


class _Row(NamedTuple):
  place: str
  texts: tuple[str, ...]
  label: str


def open_labelled(cfg: Config, graded: bool = False, quiet: bool = False) -> Labelled:
  """The labelled texts of a config, tokenised first where they are not.

  Args:
    graded: labels are numbers, for regression; else names of classes.

  Raises:
    ConfigError: a record without text or label, a label that is no number, classes other than
      objective.classes says, a label that only the held-out side has.
  """
  data = cfg.data
  fields = _fields(data)

  def make_key() -> str:
    content = [sources.identity(spec, data, "train") for spec in data.sources]
    settings = [getattr(data, key) for key in CLEANING + SPLIT]
    return hash_of(
      [FORMAT, "labelled", content, fields, graded, settings, tokenizer_identity(data)]
    )

  def build(folder: pathlib.Path, track: Callable) -> None:
    counts: Counter[str] = Counter()
    rows = list(_read(data.sources, data, counts, "data.sources"))
    train, val = split(rows, lambda row: "\0".join(row.texts), data)
    texts = [text for row in train for text in row.texts]
    n_bytes = sum(len(text.encode()) for text in texts)
    tokenizer = tokenizers.make_tokenizer(data, texts, n_bytes)
    tokenizers.save_tokenizer(tokenizer, folder)
    labels = None if graded else sorted_labels({row.label for row in train})
    saved = {"labels": labels, "counts": dict(counts)}
    (folder / "labels.json").write_text(json.dumps(saved), encoding="utf-8")
    for name, rows in (("train", train), ("val", val)):
      _write(folder / name, rows, tokenizer, labels, fields)
    check_unchanged(key, make_key(), f"data.sources={','.join(data.sources)}")

  key = make_key()
  folder = folders.build_once(folders.open_root(data.cache_dir), key, build, quiet)
  saved = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
  labels = None if saved["labels"] is None else tuple(saved["labels"])
  wanted = getattr(cfg.objective, "classes", None)
  if labels is not None and wanted != len(labels):
    shown = ", ".join(labels[:LISTED]) + (", ..." if len(labels) > LISTED else "")
    raise ConfigError(
      f"objective.classes={wanted}: the training texts have {number_of(len(labels), 'label')} ({shown}); use "
      f"{len(labels)}"
    )
  stores = [_open(folder / name, name) for name in ("train", "val")]
  tokenizer = tokenizers.load_tokenizer(folder)
  return Labelled(data, folder, tokenizer, *stores, labels, saved["counts"], {}, quiet)


def untrained(cfg: Config, tokenizer: Tokenizer, labels: Sequence[str] | None) -> Labelled:
  """`Labelled` without texts, whose `extra` reads sets for a model that came with tokenizer and labels."""
  folder = pathlib.Path(hash_of([tokenizers.fingerprint(tokenizer), labels and list(labels)]))
  empty = np.zeros(0, np.int64)
  none = LabelledStore("none", 1, empty, empty, empty, empty, empty, "")
  found = None if labels is None else tuple(labels)
  return Labelled(cfg.data, folder, tokenizer, none, none, found, {}, {}, False)


def _fields(cfg: DataConfig) -> dict[str, str]:
  """{field: the key that names it}: text, second text, label."""
  asked = [(cfg.text_field, "data.text_field"), (cfg.pair_field, "data.pair_field")]
  asked.append((cfg.label_field, "data.label_field"))
  return {name: key for name, key in asked if name is not None}


def _read(specs: Sequence[str], cfg: DataConfig, counts: Counter[str], key: str) -> Iterator[_Row]:
  """Cleaned records; those that cleaning.cleaned would drop are counted and left out."""
  fields = sources.Fields(_fields(cfg))
  seen = set()
  for spec in specs:
    for record in sources.records(spec, cfg, fields, key):
      *texts, label = record.values
      cleaned = [list(cleaning.cleaned([text], cfg, counts)) for text in texts]
      if not all(cleaned):
        continue
      row = _Row(record.place, tuple(text for (text,) in cleaned), label.strip())
      if cfg.drop_duplicates and row.texts in seen:
        counts["duplicate"] += 1
        continue
      seen.add(row.texts)
      yield row


def sorted_labels(names: set[str]) -> list[str]:
  """By number where all are integers, else by letters."""
  whole = all(re.fullmatch(r"-?\d{1,18}", name) for name in names)
  return sorted(names, key=int) if whole else sorted(names)


def _write(
  folder: pathlib.Path,
  rows: Sequence[_Row],
  tokenizer: Tokenizer,
  labels: Sequence[str] | None,
  fields: dict[str, str],
) -> None:
  """Writes a store."""
  if not rows:
    raise ConfigError(f"data: no record is left for {folder.name}; check the source and data.*")
  folder.mkdir()
  name, key = list(fields.items())[-1]
  if labels is None:
    values = np.array([_grade(row, name, key) for row in rows], "<f4")
  else:
    number = {label: i for i, label in enumerate(labels)}
    for row in rows:
      if row.label not in number:
        raise ConfigError(
          f"{key}={name}: {row.place} has the label {row.label!r}, which no training text has (they have "
          f"{', '.join(labels[:LISTED])}); mend it, or train on such texts too"
        )
    values = np.array([number[row.label] for row in rows], "<i4")
  texts = [text for row in rows for text in row.texts]
  encoded = tokenizer.encode_batch(texts)
  raw = [text.encode() for text in texts]
  arrays = {
    "tokens": np.concatenate(encoded).astype("<u4"),
    "offsets": np.cumsum([0, *map(len, encoded)]).astype("<i8"),
    "text": np.frombuffer(b"".join(raw), np.uint8),
    "ends": np.cumsum([0, *map(len, raw)]).astype("<i8"),
    "labels": values,
  }
  for what, array in arrays.items():
    (folder / f"{what}.bin").write_bytes(array.tobytes())
  digest = hashlib.blake2b(arrays["text"].tobytes() + arrays["tokens"].tobytes(), digest_size=8)
  digest.update(values.tobytes())
  meta = {"k": len(rows[0].texts), "labels": values.dtype.str, "fingerprint": digest.hexdigest()}
  (folder / "store.json").write_text(json.dumps(meta), encoding="utf-8")


def _grade(row: _Row, name: str, key: str) -> float:
  try:
    value = float(row.label)
  except ValueError:
    value = np.nan
  if not np.isfinite(value):
    raise ConfigError(f"{key}={name}: {row.place} has {row.label!r}, which is no number; mend it")
  return value


def _open(folder: pathlib.Path, name: str) -> LabelledStore:
  meta = json.loads((folder / "store.json").read_text(encoding="utf-8"))
  types = {
    "tokens": "<u4",
    "offsets": "<i8",
    "text": np.uint8,
    "ends": "<i8",
    "labels": meta["labels"],
  }
  read = lambda what, kind: np.fromfile(folder / f"{what}.bin", kind)
  arrays = {what: read(what, kind) for what, kind in types.items()}
  return LabelledStore(name=name, k=meta["k"], fingerprint=meta["fingerprint"], **arrays)


# --- batches ---


class _Rows:
  """Records as arrays."""

  def __init__(self, tokenizer: Tokenizer, cfg: Config):
    self.tokenizer, self.seq_len, self.truncate = tokenizer, cfg.model.seq_len, cfg.data.truncate
    self.types = has_types(cfg)

  def batch(
    self, texts: Sequence[Sequence[np.ndarray]], labels: np.ndarray, present: np.ndarray
  ) -> Batch:
    """tokens, segments (1 = real, 0 = padding) and, of pairs, types (0 and 1), int32 [B, L]; label [B];
    weights float32 [B], 0 for rows that hold nothing."""
    shape = (len(texts), self.seq_len)
    tokens_BL, segments_BL, types_BL = (np.zeros(shape, np.int32) for _ in range(3))
    for b, parts in enumerate(texts):
      tokens_BL[b, 0], at = self.tokenizer.start_id, 1
      for number, part in enumerate(cut(parts, self.seq_len)):
        stop = at + len(part)
        tokens_BL[b, at:stop], tokens_BL[b, stop] = part, self.tokenizer.eot_id
        types_BL[b, at : stop + 1] = number
        at = stop + 1
      segments_BL[b, :at] = present[b]
    batch = {"tokens": tokens_BL, "segments": segments_BL, "label": labels}
    batch["weights"] = present.astype(np.float32)
    return batch | {"types": types_BL} if self.types else batch


def cut(parts: Sequence[np.ndarray], seq_len: int) -> list[np.ndarray]:
  """The texts of a row, the longest one shortened at its end until they fit (as BERT's code does)."""
  sizes = [len(part) for part in parts]
  spare = seq_len - 1 - len(parts) - sum(sizes)
  while spare < 0:
    longest = int(np.argmax(sizes))
    second = max([size for i, size in enumerate(sizes) if i != longest], default=0)
    off = min(-spare, max(1, sizes[longest] - second))
    sizes[longest] -= off
    spare += off
  return [part[:size] for part, size in zip(parts, sizes, strict=True)]


def has_types(cfg: Config) -> bool:
  """Whether batches say which of two texts a token is of."""
  return cfg.data.pair_field is not None and getattr(cfg.model, "types", 1) > 1


class LabelledBatches:
  """Training batches: `at(step)` depends on the config, its seed and the step alone."""

  def __init__(self, data: Labelled, cfg: Config):
    assert cfg.data.seed is not None  # resolved
    self.store, self.cfg, self.seed = data.train, cfg.data, cfg.data.seed
    self.batch_size, self.rows = cfg.train.batch_size, _Rows(data.tokenizer, cfg)
    self.synonyms = augment.read_synonyms(cfg.data.synonyms)

  def at(self, step: int, rows: slice | None = None) -> Batch:
    """Batch number `step`, or only its `rows`."""
    index = np.arange(self.batch_size)[rows or slice(None)]
    epoch, drawn = np.divmod(step * self.batch_size + index, self.store.n_docs)
    epoch = epoch if self.cfg.reshuffle else np.zeros_like(epoch)
    chosen = order.permute(drawn, self.store.n_docs, order.fold(self.seed, 0, epoch))
    keys = order.fold(self.seed, AUGMENT, step, index)
    texts = [self._texts(i, keys[b : b + 1]) for b, i in enumerate(chosen.tolist())]
    return self.rows.batch(texts, self.store.labels[chosen], np.ones(len(index), bool))

  def _texts(self, record: int, key: np.ndarray) -> list[np.ndarray]:
    """The tokens of a record, changed as data.augment_* and data.token_dropout say."""
    found, cfg = [], self.cfg
    is_changed = order.uniform(key, 1)[0, 0] < cfg.augment_share
    for j in range(self.store.k):
      number, mine = self.store.k * record + j, order.mix(key + np.uint64(1 + j))
      ids = self.store.ids(number)
      if is_changed:
        text = augment.changed(self.store.string(number), cfg, self.synonyms, mine)
        ids = np.asarray(self.rows.tokenizer.encode(text), np.int32)
      if cfg.token_dropout:
        ids = augment.without_some(ids, cfg.token_dropout, order.mix(mine + np.uint64(DROP)))
      found.append(ids)
    return found


class LabelledSet(NamedTuple):
  """A store to be evaluated on, and what reads it."""

  store: LabelledStore
  tokenizer: Tokenizer

  @property
  def fingerprint(self) -> str:
    return self.store.fingerprint


class LabelledEval:
  """A store's first records, up to `max_tokens` tokens, in their order; never changed."""

  def __init__(self, each: LabelledSet, cfg: Config, max_tokens: int | None, stride: int | None):
    if stride is not None:
      raise ConfigError(f"stride={stride}: labelled texts are read whole; leave it out")
    assert cfg.eval.batch_size is not None  # resolved
    self.store, self.batch_size = each.store, cfg.eval.batch_size
    self.rows = _Rows(each.tokenizer, cfg)
    check_lengths(self.store, cfg)
    sums = np.cumsum(np.minimum(self.store.lengths(), cfg.model.seq_len))
    self.n = (
      len(sums) if max_tokens is None else int(np.searchsorted(sums, max_tokens, side="right"))
    )
    if not self.n:
      raise ConfigError(
        f"eval.tokens={max_tokens}: the first record of {self.store.name} has "
        f"{number_of(sums[0], 'token')}; use at least "
        "as many, or None for all"
      )
    self.facts = {"tokens": int(sums[self.n - 1]), "texts": self.n}

  def __len__(self) -> int:
    return -(-self.n // self.batch_size)

  def at(self, number: int, rows: slice | None = None) -> Batch:
    """Batch `number`, or only its `rows`; rows past the last record weigh 0."""
    index = number * self.batch_size + np.arange(self.batch_size)[rows or slice(None)]
    present = index < self.n
    index, k = np.minimum(index, self.n - 1), self.store.k
    texts = [[self.store.ids(k * i + j) for j in range(k)] for i in index.tolist()]
    return self.rows.batch(texts, self.store.labels[index], present)


def check_lengths(store: LabelledStore, cfg: Config) -> None:
  """ConfigError for a row that is longer than the model, unless texts may be cut."""
  lengths = store.lengths()
  longest = int(lengths.argmax())
  if lengths[longest] > cfg.model.seq_len and not cfg.data.truncate:
    n = int((lengths > cfg.model.seq_len).sum())
    text = store.string(store.k * longest)
    raise ConfigError(
      f"model.seq_len={cfg.model.seq_len}: {n} of {store.n_docs} records of {store.name} are longer, up to "
      f"{number_of(lengths[longest], 'token')} ({text[:40]!r}...); raise it, or "
      "cut them with data.truncate=True (of lm.evaluate: --truncate)"
    )


def mean_labelled(data: Labelled, cfg: Config) -> float:
  """Tokens that a row holds, special ones included."""
  check_lengths(data.train, cfg)
  return float(np.minimum(data.train.lengths(), cfg.model.seq_len).mean())


def check_labelled(cfg: Config) -> None:
  """ConfigError where fields are not named, and for data keys that labelled texts do not read."""
  data, k = cfg.data, 1 if cfg.data.pair_field is None else 2
  cleaning.check_no_documents(data, "labelled texts")
  if data.label_field is None:
    raise ConfigError(
      f"data.label_field=None: objective.name={cfg.objective.name} needs labels; name the field or column "
      "that holds them"
    )
  names = [
    name for name in (data.text_field, data.pair_field, data.label_field) if name is not None
  ]
  if len(set(names)) < len(names):
    raise ConfigError(
      f"data.label_field={data.label_field}: texts and label must be in different fields, not "
      f"{', '.join(names)}; name another"
    )
  if data.weights:
    raise ConfigError("data.weights: labelled sources are not weighted; use ()")
  if cfg.model.seq_len < 1 + 2 * k:
    raise ConfigError(
      f"model.seq_len={cfg.model.seq_len}: must hold {1 + k} special tokens and a token of each text; use "
      f"{1 + 2 * k} or more"
    )
  augment.check_augment(cfg)


def labelled_vocab_size(cfg: Config) -> int | None:
  """Entries of the tokenizer; None where the texts must be read to know."""
  return known_vocab_size(cfg.data)


def describe_labelled(data: Labelled) -> dict[str, Any]:
  """What run.json records: fingerprints, labels, sizes."""
  return {
    "fingerprint": data.fingerprint,
    "tokenizer": tokenizers.describe(data.tokenizer, tokenizers.special_names(data.tokenizer)),
    "documents": data.counts,
    "sets": dict(data.sets),
    "labels": None if data.labels is None else list(data.labels),
    "stores": {
      store.name: {
        "documents": store.n_docs,
        "tokens": int(store.lengths().sum()),
        "bytes": len(store.text),
        "fingerprint": store.fingerprint,
      }
      for store in (data.train, data.val)
    },
  }
