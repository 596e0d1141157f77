"""Records on disk, each side as plain arrays under one tokenizer: labelled texts, tagged words, questions.

    <cache_dir>/<key>/            key: hash of source contents, settings, split and tokenizer
      vocabulary.json             the tokenizer
      learned.json                what the records taught, such as the labels there are, and counts
      train/ val/                 a store each: NAME.npy

A further evaluation set is a folder of its own with a store `val`.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.config.errors import ConfigError, number_of
from lm.config.schema import Config, DataConfig, neutral_values
from lm.data import cleaning, folders, order, sources, tokenizers
from lm.data.cache import CLEANING, SPLIT, check_unchanged, tokenizer_identity
from lm.data.sources.digest import hash_of
from lm.data.tokenizers import Tokenizer

SIZES = ("documents", "tokens", "bytes")  # what a form says of a store
EPOCH = 0  # what a key is for: the order of an epoch
TEXT_ALONE = ("augment_share", "token_dropout", "pair_field")  # keys of labelled texts


@dataclasses.dataclass(frozen=True)
class RecordStore:
  """Records of one side; store["name"] is an array."""

  name: str
  arrays: Mapping[str, np.ndarray]
  fingerprint: str

  def __getitem__(self, name: str) -> np.ndarray:
    return self.arrays[name]


class Form(NamedTuple):
  """How one kind reads its records and lays them out.

  Attributes:
    name, version: another layout is another folder.
    read: (specs, config, key, counts) -> records in their order; `key` begins messages, and `counts` is
      added to.
    settings: config -> what of it decides records and arrays, beside the sources.
    group: record -> text; records of one group are on one side.
    texts: records -> what a tokenizer is trained on.
    learn: (records to train on, those held out, config) -> what is kept of them, to be said in JSON.
    arrays: (records, tokenizer, what was learned, config, key) -> the arrays of a store.
    sizes: (store, config) -> (documents, tokens of an epoch, bytes).
  """

  name: str
  version: int
  read: Callable[[Sequence[str], Config, str, Counter[str]], Iterator[Any]]
  settings: Callable[[Config], list]
  group: Callable[[Any], str]
  texts: Callable[[Sequence[Any]], Iterable[str]]
  learn: Callable[[Sequence[Any], Sequence[Any], Config], dict[str, Any]]
  arrays: Callable[[Sequence[Any], Tokenizer, dict, Config, str], dict[str, np.ndarray]]
  sizes: Callable[[RecordStore, Config], tuple[int, int, int]]


@dataclasses.dataclass(frozen=True)
class Records:
  """What `open_records` gives."""

  form: Form
  cfg: Config
  folder: pathlib.Path
  tokenizer: Tokenizer
  train: RecordStore
  val: RecordStore
  learned: dict[str, Any]
  sets: dict[str, str]  # fingerprint of each further set that was opened
  quiet: bool

  @property
  def vocab_size(self) -> int:
    return self.tokenizer.vocab_size

  @property
  def n_units(self) -> int:
    """Tokens of one epoch, special ones included."""
    return self.form.sizes(self.train, self.cfg)[1]

  @property
  def fingerprint(self) -> str:
    return hash_of(
      [tokenizers.fingerprint(self.tokenizer), self.train.fingerprint, self.val.fingerprint]
    )

  def extra(self, entry: str) -> RecordStore:
    """A further evaluation set, "name=source" or "source", read like the training records."""
    name, spec, key_name = sources.split_entry(entry)
    form, data = self.form, self.cfg.data
    content = sources.identity(spec, data, "val", key_name)
    key = hash_of([form.version, "extra", content, form.settings(self.cfg), self.folder.name])

    def build(folder: pathlib.Path, track: Callable) -> None:
      rows = list(form.read([spec], self.cfg, key_name, Counter()))
      if not rows:
        raise ConfigError(f"{key_name}={spec}: holds no record; check it")
      arrays = form.arrays(rows, self.tokenizer, self.learned, self.cfg, key_name)
      _write(folder / "val", arrays)

    folder = folders.build_once(folders.open_root(data.cache_dir), key, build, self.quiet)
    store = _open(folder / "val", name)
    self.sets[name] = store.fingerprint
    return store


def open_records(cfg: Config, form: Form, quiet: bool = False) -> Records:
  """The records of a config, tokenised first where they are not. Raises: ConfigError, as `form` says."""
  data = cfg.data

  def make_key() -> str:
    content = [sources.identity(spec, data, "train") for spec in data.sources]
    split_by = [getattr(data, key) for key in SPLIT]
    settings = [form.settings(cfg), split_by, tokenizer_identity(data)]
    return hash_of([form.version, form.name, content, settings])

  def build(folder: pathlib.Path, track: Callable) -> None:
    counts: Counter[str] = Counter()
    rows = list(form.read(data.sources, cfg, "data.sources", counts))
    train, val = _split(rows, form.group, data)
    learned = {**form.learn(train, val, cfg), "documents": dict(counts)}
    texts = list(form.texts(train))
    n_bytes = sum(len(text.encode()) for text in texts)
    tokenizer = tokenizers.make_tokenizer(data, texts, n_bytes)
    tokenizers.save_tokenizer(tokenizer, folder)
    (folder / "learned.json").write_text(json.dumps(learned), encoding="utf-8")
    for name, mine in (("train", train), ("val", val)):
      _write(folder / name, form.arrays(mine, tokenizer, learned, cfg, "data.sources"))
    check_unchanged(key, make_key(), f"data.sources={','.join(data.sources)}")

  key = make_key()
  folder = folders.build_once(folders.open_root(data.cache_dir), key, build, quiet)
  learned = json.loads((folder / "learned.json").read_text(encoding="utf-8"))
  train, val = (_open(folder / name, name) for name in ("train", "val"))
  tokenizer = tokenizers.load_tokenizer(folder)
  return Records(form, cfg, folder, tokenizer, train, val, learned, {}, quiet)


def untrained(
  form: Form, cfg: Config, tokenizer: Tokenizer, labels: Sequence[str] | None
) -> Records:
  """`Records` without any, whose `extra` reads sets for a model that came with its tokenizer and labels."""
  learned = {"labels": None if labels is None else list(labels)}
  folder = pathlib.Path(hash_of([tokenizers.fingerprint(tokenizer), learned["labels"]]))
  none = RecordStore("none", {}, "")
  return Records(form, cfg, folder, tokenizer, none, none, learned, {}, False)


def _split(
  rows: Sequence[Any], group: Callable[[Any], str], cfg: DataConfig
) -> tuple[list[Any], list[Any]]:
  """(training, held out): by the hash of each record's group, so that others change nothing, or the tail."""
  if cfg.val_split == "tail":
    cut = len(rows) - round(cfg.val_fraction * len(rows))
    train, val = list(rows[:cut]), list(rows[cut:])
  else:
    hashes = [_number(group(row)) for row in rows]
    held = [number < cfg.val_fraction * 2**64 for number in hashes]
    train = [row for row, is_held in zip(rows, held, strict=True) if not is_held]
    chosen = sorted((number, i) for i, number in enumerate(hashes) if held[i])
    val = [rows[i] for _, i in chosen]
  if not train or not val:
    raise ConfigError(
      f"data.val_fraction={cfg.val_fraction}: leaves {number_of(len(train), 'record')} to "
      f"train on and {len(val)} held "
      "out; change it, or give more records"
    )
  return train, val


def _number(text: str) -> int:
  return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _write(folder: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  folder.mkdir()
  digest = hashlib.blake2b(digest_size=8)
  for name, array in arrays.items():
    np.save(folder / f"{name}.npy", array)
    digest.update(name.encode() + array.tobytes())
  saved = {"names": list(arrays), "fingerprint": digest.hexdigest()}
  (folder / "store.json").write_text(json.dumps(saved), encoding="utf-8")


def _open(folder: pathlib.Path, name: str) -> RecordStore:
  saved = json.loads((folder / "store.json").read_text(encoding="utf-8"))
  return RecordStore(
    name, {each: np.load(folder / f"{each}.npy") for each in saved["names"]}, saved["fingerprint"]
  )


# --- pieces that forms are made of ---


def joined(lists: Sequence[Any], kind: str) -> tuple[np.ndarray, np.ndarray]:
  """(all values one after another, where each list begins and, at last, ends)."""
  values = np.concatenate([np.asarray(each, kind) for each in lists]) if lists else np.zeros(0)
  return values.astype(kind), np.cumsum([0, *map(len, lists)]).astype("<i8")


def drawn(seed: int, step: int, batch_size: int, n: int, reshuffle: bool, rows: slice | None):
  """int64 [B]: which of n examples the rows of a batch hold; an epoch holds each once."""
  index = step * batch_size + np.arange(batch_size)[rows or slice(None)]
  epoch, place = np.divmod(index, n)
  epoch = epoch if reshuffle else np.zeros_like(epoch)
  return order.permute(place, n, order.fold(seed, EPOCH, epoch))


def describe_records(data: Records) -> dict[str, Any]:
  """What run.json records: fingerprints, what was learned, sizes."""
  return {
    "fingerprint": data.fingerprint,
    "tokenizer": tokenizers.describe(data.tokenizer, tokenizers.special_names(data.tokenizer)),
    "sets": dict(data.sets),
    **data.learned,
    "stores": {
      store.name: dict(zip(SIZES, data.form.sizes(store, data.cfg), strict=True))
      | {"fingerprint": store.fingerprint}
      for store in (data.train, data.val)
    },
  }


def check_plain(cfg: Config, what: str) -> None:
  """ConfigError for what may be done to documents or labelled texts but not to these records."""
  data = cfg.data
  cleaning.check_no_documents(data, what)
  if data.weights:
    raise ConfigError(
      f"data.weights={','.join(map(str, data.weights))}: sources of {what} are not weighted; use ()"
    )
  neutral = neutral_values(DataConfig)
  neutral |= dict.fromkeys(("lower_case", "squeeze_spaces", "drop_duplicates"), False)
  neutral |= {"unicode": None, "min_chars": 0, "max_chars": None}
  for key in (*CLEANING, *TEXT_ALONE):
    if getattr(data, key) != neutral[key]:
      raise ConfigError(
        f"data.{key}={getattr(data, key)}: {what} are read as they are written; use {neutral[key]}"
      )
