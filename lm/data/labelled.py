"""Texts with labels: one text or two a record, and batches of them.

    [CLS] text [SEP]              or              [CLS] text [SEP] second text [SEP]

An epoch holds every record once; which one a row holds, and how it is changed (lm.data.augment), follows from
(seed, step, row).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lm.config.errors import ConfigError, number_of
from lm.config.schema import Config
from lm.data import augment, cleaning, order, records, sources
from lm.data.cache import CLEANING
from lm.data.records import Form, Records, RecordStore
from lm.data.tokenizers import Tokenizer

AUGMENT, DROP = 201, 202  # what a key is for
LISTED = 8  # labels named in a message
Batch = dict[str, np.ndarray]


class Row(NamedTuple):
  place: str  # "path:line"
  texts: tuple[str, ...]
  label: str


# --- reading --------------------------------------------------------------------------------------


def read(specs: Sequence[str], cfg: Config, key: str, counts: Counter[str]) -> Iterator[Row]:
  """Cleaned records; those that cleaning.cleaned would drop are counted and left out.

  Raises:
    ConfigError: a record without a text or a label.
  """
  fields = sources.Fields(_fields(cfg))
  seen = set()
  for spec in specs:
    for record in sources.records(spec, cfg.data, fields, key):
      *texts, label = record.values
      cleaned = [list(cleaning.cleaned([text], cfg.data, counts)) for text in texts]
      if not all(cleaned):
        continue
      row = Row(record.place, tuple(text for (text,) in cleaned), label.strip())
      if cfg.data.drop_duplicates and row.texts in seen:
        counts["duplicate"] += 1
        continue
      seen.add(row.texts)
      yield row


def _fields(cfg: Config) -> dict[str, str]:
  """{field: the key that names it}: text, second text, label."""
  data = cfg.data
  asked = [(data.text_field, "data.text_field"), (data.pair_field, "data.pair_field")]
  asked.append((data.label_field, "data.label_field"))
  return {name: key for name, key in asked if name is not None}


def sorted_labels(names: set[str]) -> list[str]:
  """By number where all are integers, else by letters."""
  whole = all(re.fullmatch(r"-?\d{1,18}", name) for name in names)
  return sorted(names, key=int) if whole else sorted(names)


def arrays(
  rows: Sequence[Row], tokenizer: Tokenizer, learned: dict, cfg: Config, key: str
) -> dict[str, np.ndarray]:
  """tokens and offsets of texts, k a record, so that text j of record i is number k i + j; text and ends, in
  bytes, of what they were made of; labels, int32 or, where they are grades, float32.

  Raises:
    ConfigError: a label that training lacks, a grade that is no number.
  """
  number = None if learned["labels"] is None else {x: i for i, x in enumerate(learned["labels"])}
  texts = [text for row in rows for text in row.texts]
  tokens, offsets = records.joined(tokenizer.encode_batch(texts), "<u4")
  text, ends = records.joined([np.frombuffer(text.encode(), np.uint8) for text in texts], "u1")
  labels = [_grade(row, cfg) if number is None else _class(row, number, cfg) for row in rows]
  return {
    "tokens": tokens, "offsets": offsets, "text": text, "ends": ends,
    "labels": np.array(labels, "<f4" if number is None else "<i4"),
  }  # fmt: skip


def _class(row: Row, number: dict[str, int], cfg: Config) -> int:
  if row.label not in number:
    raise ConfigError(
      f"data.label_field={cfg.data.label_field}: {row.place} has the label {row.label!r}, which no training "
      f"text has (they have {', '.join([*number][:LISTED])}); mend it, or train on such texts too"
    )
  return number[row.label]


def _grade(row: Row, cfg: Config) -> float:
  try:
    value = float(row.label)
  except ValueError:
    value = np.nan
  if not np.isfinite(value):
    raise ConfigError(
      f"data.label_field={cfg.data.label_field}: {row.place} has {row.label!r}, which is no number; mend it"
    )
  return value


def lengths(store: RecordStore) -> np.ndarray:
  """int64 [n]: tokens of each record's row, special ones included."""
  sizes = np.diff(store["offsets"]).reshape(len(store["labels"]), -1)
  return sizes.sum(axis=1) + 1 + sizes.shape[1]


def ids_of(store: RecordStore, number: int) -> np.ndarray:
  """int32: the tokens of text `number`."""
  begin, end = store["offsets"][number : number + 2]
  return store["tokens"][begin:end].astype(np.int32)


def string_of(store: RecordStore, number: int) -> str:
  """Text `number`."""
  begin, end = store["ends"][number : number + 2]
  return store["text"][begin:end].tobytes().decode()


# Labels are names of classes, those of the records to train on.
CLASSES = Form(
  name="labelled",
  version=2,
  read=read,
  settings=lambda cfg: [_fields(cfg), [getattr(cfg.data, key) for key in CLEANING]],
  group=lambda row: "\0".join(row.texts),
  texts=lambda rows: (text for row in rows for text in row.texts),
  learn=lambda train, val, cfg: {"labels": sorted_labels({row.label for row in train})},
  arrays=arrays,
  sizes=lambda store, cfg: (
    len(store["labels"]),
    int(lengths(store).sum()),
    len(store["text"]),
  ),
)
# Labels are numbers.
GRADES = CLASSES._replace(name="graded", learn=lambda train, val, cfg: {"labels": None})


def open_labelled(cfg: Config) -> Records:
  """The labelled texts of a config. Raises: ConfigError for other classes than objective.classes says."""
  data = records.open_records(cfg, CLASSES)
  labels = data.learned["labels"]
  if len(labels) != cfg.objective.classes:
    shown = ", ".join(labels[:LISTED]) + (", ..." if len(labels) > LISTED else "")
    raise ConfigError(
      f"objective.classes={cfg.objective.classes}: the training texts have {number_of(len(labels), 'label')} "
      f"({shown}); use {len(labels)}"
    )
  return data


def open_graded(cfg: Config) -> Records:
  """The texts of a config whose labels are numbers."""
  return records.open_records(cfg, GRADES)


# --- batches --------------------------------------------------------------------------------------


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

  def __init__(self, data: Records, cfg: Config):
    assert cfg.data.seed is not None  # resolved
    self.store, self.cfg, self.seed = data.train, cfg.data, cfg.data.seed
    self.batch_size, self.rows = cfg.train.batch_size, _Rows(data.tokenizer, cfg)
    self.synonyms = augment.read_synonyms(cfg.data.synonyms)

  def at(self, step: int, rows: slice | None = None) -> Batch:
    """Batch number `step`, or only its `rows`."""
    labels, reshuffle = self.store["labels"], self.cfg.reshuffle
    chosen = records.drawn(self.seed, step, self.batch_size, len(labels), reshuffle, rows)
    index = np.arange(self.batch_size)[rows or slice(None)]
    keys = order.fold(self.seed, AUGMENT, step, index)
    texts = [self._texts(i, keys[b : b + 1]) for b, i in enumerate(chosen.tolist())]
    return self.rows.batch(texts, labels[chosen], np.ones(len(index), bool))

  def _texts(self, record: int, key: np.ndarray) -> list[np.ndarray]:
    """The tokens of a record, changed as data.augment_* and data.token_dropout say."""
    found, cfg = [], self.cfg
    is_changed = order.uniform(key, 1)[0, 0] < cfg.augment_share
    for j, number in enumerate(_numbers(self.store, record)):
      mine = order.mix(key + np.uint64(1 + j))
      ids = ids_of(self.store, number)
      if is_changed:
        text = augment.changed(string_of(self.store, number), cfg, self.synonyms, mine)
        ids = np.asarray(self.rows.tokenizer.encode(text), np.int32)
      if cfg.token_dropout:
        ids = augment.without_some(ids, cfg.token_dropout, order.mix(mine + np.uint64(DROP)))
      found.append(ids)
    return found


def _numbers(store: RecordStore, record: int) -> range:
  """The numbers of a record's texts."""
  k = (len(store["offsets"]) - 1) // len(store["labels"])
  return range(k * record, k * record + k)


class LabelledSet(NamedTuple):
  """A store to be evaluated on, and what reads it."""

  store: RecordStore
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
    sums = np.cumsum(np.minimum(lengths(self.store), cfg.model.seq_len))
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
    index = np.minimum(index, self.n - 1)
    texts = [
      [ids_of(self.store, k) for k in _numbers(self.store, record)] for record in index.tolist()
    ]
    return self.rows.batch(texts, self.store["labels"][index], present)


def check_lengths(store: RecordStore, cfg: Config) -> None:
  """ConfigError for a row that is longer than the model, unless texts may be cut."""
  sizes = lengths(store)
  n, longest = int((sizes > cfg.model.seq_len).sum()), int(sizes.argmax())
  if n and not cfg.data.truncate:
    text = string_of(store, _numbers(store, longest)[0])
    raise ConfigError(
      f"model.seq_len={cfg.model.seq_len}: {n} of {len(sizes)} records of {store.name} are longer, up to "
      f"{number_of(sizes[longest], 'token')} ({text[:40]!r}...); raise it, or "
      "cut them with data.truncate=True (of lm.evaluate: --truncate)"
    )


def mean_labelled(data: Records, cfg: Config) -> float:
  """Tokens that a row holds, special ones included."""
  check_lengths(data.train, cfg)
  return float(np.minimum(lengths(data.train), cfg.model.seq_len).mean())


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
    raise ConfigError(
      f"data.weights={','.join(map(str, data.weights))}: labelled sources are not weighted; use ()"
    )
  if cfg.model.seq_len < 1 + 2 * k:
    raise ConfigError(
      f"model.seq_len={cfg.model.seq_len}: must hold {1 + k} special tokens and a token of each text; use "
      f"{1 + 2 * k} or more"
    )
  augment.check_augment(cfg)
