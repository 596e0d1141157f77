"""Corpora, each tokenised once: what `open_corpus` finds under a fingerprint or builds.

    <cache_dir>/<key>/          key: hash of source contents, cleaning, split and tokenizer
      vocabulary.json           the tokenizer
      train-0/ train-1/ val/    a store (lm/data/store.py) a source, and the validation set of all
      counts.json               documents read and dropped, overlap of the sides, special tokens

A folder appears whole or not at all, and is built again where it is damaged (lm/data/folders.py).
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterator

from lm.config.errors import ConfigError, number_of
from lm.config.schema import DataConfig
from lm.data import cleaning, folders, overlap, sources, tokenizers
from lm.data.sources.digest import hash_of
from lm.data.spool import TRAIN, VAL, Spool
from lm.data.store import TokenStore, open_store, write_store

FORMAT = 2  # of the cache; a change makes every corpus be built anew
CLEANING = (*cleaning.KEYS, "drop_duplicates", "min_chars", "max_chars")
LATER = cleaning.DOCUMENTS  # keys that came later: they count in a cache's name where they are set
REASONS = {  # of documents that are left out
  "no_text": "without text",
  "blank": "blank",
  "short": "under data.min_chars",
  "long": "over data.max_chars",
  "quality": "dropped by data.quality",
  "duplicate": "seen before",
  "near_duplicate": "nearly the same as one before (data.near_duplicates)",
}
SPLIT = ("val_fraction", "val_split")


@dataclasses.dataclass(frozen=True)
class Corpus:
  """What `open_corpus` gives: a tokenizer, a training store a source, and one validation store."""

  cfg: DataConfig
  folder: pathlib.Path
  tokenizer: tokenizers.Tokenizer
  train: list[TokenStore]
  val: TokenStore
  counts: dict[str, int]  # documents read, and dropped for which reason
  special: dict[str, object]  # separator and start token, their ids, and who named them
  overlap: dict[str, dict[str, int]]  # of each held-out set that was opened, with training
  sets: dict[str, str]  # fingerprint of each further evaluation set that was opened
  fingerprint: str
  quiet: bool

  @property
  def vocab_size(self) -> int:
    return self.tokenizer.vocab_size

  @property
  def n_units(self) -> int:
    """Training tokens of one epoch."""
    return sum(store.n_tokens for store in self.train)

  def extra(self, entry: str) -> TokenStore:
    """A further evaluation set, "name=source" or "source", cleaned and tokenised like the corpus.

    All of the source, in its own order. Of tfds it is the validation split, if there is one.
    """
    name, spec, key_name = sources.split_entry(entry)

    def make_key() -> str:
      # The corpus is in it for the overlap; tokens depend on its tokenizer alone.
      content = sources.identity(spec, self.cfg, "val", key_name)
      return hash_of([FORMAT, "extra", content, self.folder.name, self.fingerprint])

    def build(folder: pathlib.Path, track: Callable) -> None:
      spool = Spool(folder)
      documents = _read(spec, self.cfg, "val", key_name)
      spool.write([(0, documents)], self.cfg, track(f"reading {name}", None))
      spool.split({0}, set(), self.cfg)
      if next(spool.numbers(VAL), None) is None:
        raise ConfigError(f"{key_name}={spec}: no document is left; check the source and data.*")
      advance = track(f"tokenising {name}", spool.n_bytes(VAL))
      write_store(folder / "val", spool, VAL, spool.numbers(VAL), self.tokenizer, advance)
      trained = [self.folder / f"train-{i}" for i in range(len(self.train))]
      found = overlap.measure(trained, folder / "val")
      _write_counts(folder, {"documents": spool.counts, "overlap": found})
      check_unchanged(key, make_key(), f"{key_name}={spec}")

    key = make_key()
    folder = folders.build_once(folders.open_root(self.cfg.cache_dir), key, build, self.quiet)
    counts = _read_counts(folder)
    self.overlap[name] = counts["overlap"]
    self.say([*_dropped(name, counts["documents"]), overlap.line(name, counts["overlap"])])
    store = open_store(folder / "val", name)
    self.sets[name] = store.fingerprint
    return store

  def say(self, lines: list[str]) -> None:
    """Prints lines on stderr, unless quiet."""
    if not self.quiet:
      print("\n".join(lines), file=sys.stderr)

  @property
  def notes(self) -> list[str]:
    """What was left out, which tokens separate documents, what the held-out text shares with training."""
    special = self.special
    chosen = (
      f"separator {special['separator']} (id {special['separator_id']}), start "
      f"{special['start']} (id {special['start_id']}), by {special['origin']}"
    )
    given = tokenizers.TOKENIZERS[self.cfg.tokenizer].read is not None
    lines = [*_dropped("corpus", self.counts), *([chosen] if given else [])]
    return [*lines, overlap.line("val", self.overlap["val"])]


def open_corpus(cfg: DataConfig, quiet: bool = False) -> Corpus:
  """The tokenised corpus of `cfg`, built first where it is missing.

  Args:
    cfg: sources, cleaning, split and tokenizer; what only orders batches does not matter here.
    quiet: no progress bar on stderr.

  Raises:
    ConfigError: whatever is wrong with a source or tokenizer; an empty side of the split.
  """

  def make_key() -> str:
    return hash_of(
      [
        FORMAT,
        [[sources.identity(spec, cfg, side) for side in _sides(spec, cfg)] for spec in cfg.sources],
        [getattr(cfg, field) for field in CLEANING + SPLIT]
        + [[field, getattr(cfg, field)] for field in LATER if getattr(cfg, field) is not None],
        tokenizer_identity(cfg),
      ]
    )

  def build(folder: pathlib.Path, track: Callable) -> None:
    _build_corpus(folder, cfg, track)
    check_unchanged(key, make_key(), f"data.sources={','.join(cfg.sources)}")

  root, key = folders.open_root(cfg.cache_dir), make_key()
  is_new = not (root / key).exists()
  folder = folders.build_once(root, key, build, quiet)
  train = [open_store(folder / f"train-{i}", spec) for i, spec in enumerate(cfg.sources)]
  val = open_store(folder / "val", "val")
  tokenizer = tokenizers.load_tokenizer(folder)
  counts = _read_counts(folder)
  everything = [tokenizers.fingerprint(tokenizer), *(s.fingerprint for s in (*train, val))]
  found = {"val": counts["overlap"]}
  rest = (counts["documents"], counts["special"], found, {}, hash_of(everything), quiet)
  corpus = Corpus(cfg, folder, tokenizer, train, val, *rest)
  if is_new:  # counts.json and run.json keep it
    corpus.say(corpus.notes)
  return corpus


def describe(corpus: Corpus) -> dict:
  """What run.json records of the data: fingerprints, and sizes of every store."""
  stores = [*corpus.train, corpus.val]
  return {
    "fingerprint": corpus.fingerprint,
    "tokenizer": tokenizers.describe(corpus.tokenizer, corpus.special),
    "documents": corpus.counts,
    "overlap": dict(corpus.overlap),
    "sets": dict(corpus.sets),
    "stores": {
      store.name: {
        "documents": store.n_docs,
        "tokens": store.n_tokens,
        "bytes": store.n_bytes,
        "bytes_per_token": store.n_bytes / store.n_tokens,
        "fingerprint": store.fingerprint,
      }
      for store in stores
    },
  }


def tokenizer_identity(cfg: DataConfig) -> list:
  """What decides the tokenizer, beside the training text."""
  if tokenizers.is_trained(cfg):
    read = {**dict.fromkeys(tokenizers.SIZED, cfg.vocab_size), "word": cfg.min_freq}
    return [cfg.tokenizer, read.get(cfg.tokenizer)]
  return [tokenizers.fingerprint(tokenizers.make_tokenizer(cfg))]


# --- building ---


def _sides(spec: str, cfg: DataConfig) -> tuple[str, ...]:
  return ("train", "val") if sources.has_own_val(spec, cfg) else ("train",)


def _build_corpus(folder: pathlib.Path, cfg: DataConfig, track: Callable) -> None:
  """Source s is number s of the spool; validation documents it brings are number s + S."""
  n_sources = len(cfg.sources)
  own_val = {s + n_sources for s, spec in enumerate(cfg.sources) if len(_sides(spec, cfg)) == 2}
  inputs = [(s, _read(spec, cfg, "train")) for s, spec in enumerate(cfg.sources)]
  for s in sorted(own_val):
    inputs.append((s, _read(cfg.sources[s - n_sources], cfg, "val")))
  spool = Spool(folder)
  spool.write(inputs, cfg, track("reading", None))
  held_out = {s for s in range(n_sources) if s + n_sources not in own_val}
  near = cfg.near_duplicates is not None
  compared = track("comparing documents", len(spool.text)) if near else lambda n_bytes: None
  spool.split(own_val, held_out, cfg, compared)
  _check_sides(spool, cfg)

  n_train_bytes = spool.n_bytes(TRAIN)
  if tokenizers.is_trained(cfg):
    advance = track(f"training {cfg.tokenizer} tokenizer", n_train_bytes)
    texts = _tracked(spool, TRAIN, advance)
    tokenizer = tokenizers.make_tokenizer(cfg, texts, n_train_bytes)
  else:
    tokenizer = tokenizers.make_tokenizer(cfg)
  tokenizers.save_tokenizer(tokenizer, folder)

  advance = track("tokenising", n_train_bytes + spool.n_bytes(VAL))
  for s in range(n_sources):
    store = folder / f"train-{s}"
    write_store(store, spool, TRAIN, spool.numbers(TRAIN, s), tokenizer, advance)
  # By hash, a prefix of the set is a fair sample of all sources; a tail is a text to be read on.
  order = spool.numbers(VAL) if cfg.val_split == "tail" else spool.numbers_by_hash(VAL)
  write_store(folder / "val", spool, VAL, order, tokenizer, advance)
  trained = [folder / f"train-{s}" for s in range(n_sources)]
  stored = sum(open_store(store, "train").n_docs for store in (*trained, folder / "val"))
  dropped = sum(n for why, n in spool.counts.items() if why != "read")
  cut = sum(spool.sides[doc] == TRAIN | VAL for doc in spool.cut_bytes)  # they are on both sides
  assert stored - cut == spool.counts["read"] - dropped, (stored, cut, spool.counts)
  special = tokenizers.special_names(tokenizer)
  found = overlap.measure(trained, folder / "val")
  _write_counts(folder, {"documents": spool.counts, "overlap": found, "special": special})


def _read(
  spec: str, cfg: DataConfig, split: str, key: str = "data.sources"
) -> Iterator[str | None]:
  """Documents of a source; what the system says of its files is said as of the source."""
  try:
    yield from sources.documents(spec, cfg, split, key)
  except OSError as error:
    name = error.filename or "a file"
    raise ConfigError(
      f"{key}={spec}: {name} cannot be read ({error.strerror or error}); check the source"
    ) from None


def check_unchanged(before: str, after: str, where: str) -> None:
  """ConfigError where the key of what was read differs from before it was read."""
  if before != after:
    raise ConfigError(f"{where}: has changed while it was read; run again when it stays")


def _write_counts(folder: pathlib.Path, counts: dict) -> None:
  (folder / "counts.json").write_text(json.dumps(counts), encoding="utf-8")


def _read_counts(folder: pathlib.Path) -> dict:
  return json.loads((folder / "counts.json").read_text(encoding="utf-8"))


def _dropped(name: str, counts: dict[str, int]) -> list[str]:
  """A line on what was left out, if anything was."""
  out = ", ".join(f"{n:,} {REASONS[why]}" for why, n in counts.items() if why != "read" and n)
  return (
    [f"{name}: {number_of(counts['read'], 'document', ',')} read; left out: {out}"] if out else []
  )


def _check_sides(spool: Spool, cfg: DataConfig) -> None:
  listed = ", ".join(cfg.sources)
  dropped = ", ".join(f"{n} {why}" for why, n in spool.counts.items() if why != "read")
  for s, spec in enumerate(cfg.sources):
    if next(spool.numbers(TRAIN, s), None) is None:
      raise ConfigError(
        f"data.sources={spec}: no training document is left of {spool.counts['read']} read "
        f"({dropped or 'none dropped'}); check the source, data.min_chars, data.max_chars and "
        "data.val_fraction"
      )
  if next(spool.numbers(VAL), None) is None:
    raise ConfigError(
      f"data.val_fraction={cfg.val_fraction}: holds out no document of {listed}; raise it, cut "
      "documents finer (data.text_unit) or use data.val_split=tail"
    )


def _tracked(spool: Spool, side: int, advance: Callable) -> Iterator[str]:
  for number in spool.numbers(side):
    for piece in spool.pieces(number, side):
      yield piece.decode()
      advance(len(piece))
