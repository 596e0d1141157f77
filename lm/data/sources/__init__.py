"""Where documents come from: `documents(spec, cfg, split)` yields them in a fixed order.

A spec is KIND or KIND:NAME, and each kind is a row of SOURCES and a file of this folder. `identity`
names the content, so that the token cache (lm/data/cache.py) knows when it still fits. Every message
starts with the key the user wrote (`data.sources=text:...`).
"""

import difflib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from lm.config.errors import ConfigError
from lm.config.schema import DataConfig
from lm.data.sources import (
  docstrings,
  facts,
  hub,
  oracle,
  parallel,
  python,
  reversed_words,
  synthetic,
  text,
  tfds,
)
from lm.data.sources.paths import find_files
from lm.data.sources.readers.fields import Fields, Record


class Source(NamedTuple):
  """A kind of source. `documents` and `identity` take (name, cfg, split, where); `where` is how
  their messages begin. A document is a string, or None where a record has no text."""

  example: str  # how one is written; with a colon if it takes a name
  documents: Callable[[str, DataConfig, str, str], Iterator[str | None]]
  identity: Callable[[str, DataConfig, str, str], str]
  has_own_val: Callable[[DataConfig], bool] = lambda cfg: False
  records: Callable[[str, DataConfig, Fields, str], Iterator[Record]] | None = None  # with labels
  find: Callable[[str, str], list[str]] | None = None  # (name, where) -> its files, if it is files


SOURCES = {
  "docstrings": Source(
    "docstrings", docstrings.documents, docstrings.identity, records=docstrings.records
  ),
  "python": Source("python", python.documents, python.identity),
  "text": Source(
    "text:books/*.txt", text.documents, text.identity, records=text.records, find=find_files
  ),
  "hub": Source(hub.EXAMPLE, hub.documents, hub.identity, records=hub.records, find=hub.find),
  "tfds": Source("tfds:lm1b", tfds.documents, tfds.identity, tfds.has_own_val),
  "oracle": Source(oracle.EXAMPLE, oracle.documents, oracle.identity),
  "facts": Source("facts:1000", facts.documents, facts.identity),
  "parallel": Source("parallel:train.en+train.de", parallel.documents, parallel.identity),
  "reversed": Source("reversed:4000", reversed_words.documents, reversed_words.identity),
  "synthetic": Source("synthetic:markov-64-s1", synthetic.documents, synthetic.identity),
}


def documents(
  spec: str, cfg: DataConfig, split: str, key: str = "data.sources"
) -> Iterator[str | None]:
  """Documents of a source as they are stored, before cleaning; None where a record has no text.

  Args:
    spec: a member of data.sources, or the source of a further evaluation set.
    split: "train" or "val"; only tfds has splits of its own (see `has_own_val`).
    key: where the user wrote the spec, for messages.

  Raises:
    ConfigError: unknown source, no matching file, bad UTF-8 (file and byte), bad JSON (file and
      line), a field that no record has, a data set that cannot be opened.
  """
  kind, name = parse_spec(spec, key)
  return SOURCES[kind].documents(name, cfg, split, f"{key}={spec}")


def records(
  spec: str, cfg: DataConfig, fields: Fields, key: str = "data.sources"
) -> Iterator[Record]:
  """Several fields of every record of a source of files; errors as of `documents`."""
  kind, name = parse_spec(spec, key)
  read = SOURCES[kind].records
  if read is None:
    raise ConfigError(f"{key}={spec}: has no fields; use text:FILES with a column for each")
  try:
    yield from read(name, cfg, fields, f"{key}={spec}")
  except OSError as error:
    raise ConfigError(
      f"{key}={spec}: {error.filename or 'a file'} cannot be read ({error.strerror or error}); check it"
    ) from None


def files(spec: str, refusal: str, key: str = "data.sources") -> list[str]:
  """Paths of a source's files.

  Raises: ConfigError with the refusal for a source that is no files.
  """
  kind, name = parse_spec(spec, key)
  find = SOURCES[kind].find
  if find is None:
    raise ConfigError(f"{key}={spec}: {refusal}")
  return find(name, f"{key}={spec}")


def identity(spec: str, cfg: DataConfig, split: str, key: str = "data.sources") -> str:
  """A string that changes when the content of the source may have: versions or content hashes."""
  kind, name = parse_spec(spec, key)
  return SOURCES[kind].identity(name, cfg, split, f"{key}={spec}")


def has_own_val(spec: str, cfg: DataConfig) -> bool:
  """Whether the source brings its validation documents, so that none of training is held out."""
  return SOURCES[parse_spec(spec)[0]].has_own_val(cfg)


def split_entry(entry: str) -> tuple[str, str, str]:
  """(name, source, the key that errors blame) of "name=source", as in eval.sets, or of a "source" alone.

  >>> split_entry("books=text:a=1.txt"), split_entry("text:a=1.txt")
  (('books', 'text:a=1.txt', 'eval.sets=books'), ('text:a=1.txt', 'text:a=1.txt', 'data'))
  """
  named = re.fullmatch(r"([\w.-]+)=(.+)", entry)
  return (named[1], named[2], f"eval.sets={named[1]}") if named else (entry, entry, "data")


def parse_spec(spec: str, key: str = "data.sources") -> tuple[str, str]:
  """("text", "a/*.txt") from "text:a/*.txt". Raises: ConfigError on what is no source."""
  kind, colon, name = spec.partition(":")
  if kind not in SOURCES:
    close = difflib.get_close_matches(kind, SOURCES, n=1)
    hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(SOURCES)}"
    raise ConfigError(f"{key}={spec}: no such source; {hint}")
  example = SOURCES[kind].example
  if colon and ":" not in example:
    raise ConfigError(f"{key}={spec}: {kind} takes no name; use {example}")
  if not name and ":" in example:
    raise ConfigError(f"{key}={spec}: {kind} needs a name; use e.g. {example}")
  return kind, name
