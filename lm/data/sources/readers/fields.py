"""The field of a record that holds its text: `text`, `meta.text` or `turns[0].text`."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from lm.config.errors import ConfigError, is_unicode, whole_number

PATIENCE = 10_000  # records without text, after which a source without any is refused
LISTED, LONGEST = 8, 60  # names in a message, characters of each


def parse(field: str, key: str = "text_field") -> tuple[str | int, ...]:
  """("a", 0, "b") from "a[0].b", the value of data.KEY. Raises: ConfigError on what is no path."""
  path: list[str | int] = []
  for part in field.split("."):
    match = re.fullmatch(r"([^\[\]]+)((?:\[\d{1,9}\])*)", part)
    if match is None:
      raise ConfigError(
        f"data.{key}={field}: must be names with dots between, and numbers in brackets for "
        "lists; use e.g. text, meta.text or turns[0].text"
      )
    path.append(match[1])
    path += [int(number) for number in re.findall(r"\d+", match[2])]
  return tuple(path)


def walk(record: object, path: Sequence[str | int], literal: str) -> object:
  """What is at `path`; None where nothing is. A key that is written just so goes first."""
  if isinstance(record, Mapping) and literal in record:
    return record[literal]
  for step in path:
    if isinstance(step, str):
      if not isinstance(record, Mapping) or step not in record:
        return None
      record = record[step]
    elif isinstance(record, Sequence) and not isinstance(record, str | bytes):
      if step >= len(record):
        return None
      record = record[step]
    else:
      return None
  return record


def listed(names: Sequence[str]) -> str:
  """Names for a message: the first few, cut where they are long, in one line."""
  shown = [" ".join(name.split()) for name in names[:LISTED]]
  shown = [name if len(name) <= LONGEST else f"{name[:LONGEST]}..." for name in shown]
  return ", ".join([*shown, *(["..."] if len(names) > LISTED else [])])


class Record(NamedTuple):
  """Several fields of one record; `place` is "path:line", for messages."""

  place: str
  values: tuple[str, ...]


class Field:
  """data.text_field of one source, and whether any record had it."""

  def __init__(self, name: str):
    self.name, self.path = name, parse(name)
    self.keys = {name: "data.text_field"}  # by what a header must name: the key that asks for it
    self.n_records, self.found = 0, False
    self.first_without = ""

  def pick(self, record: Mapping, place: str, where: str) -> str | Record | None:
    """The text of a record (of Fields: a Record), None where it is null or missing; `place` is "path:line".

    Raises: ConfigError on a number, list or object in its place, and on what is no character.
    """
    self.n_records += 1
    text = walk(record, self.path, self.name)
    if text is None:
      if not self.first_without:
        self.first_without = f"{place} has no such text; it has: {self._names(record)}"
      if self.n_records >= PATIENCE:
        self.check_found()
      return None
    if not isinstance(text, str):
      what = {bool: "a boolean", int: "a number", float: "a number", dict: "an object"}
      has = what.get(type(text), "a list" if isinstance(text, Sequence) else type(text).__name__)
      raise ConfigError(
        f"data.text_field={self.name}: {place} has {has} there, no text; it has: "
        f"{self._names(record)}"
      )
    if not is_unicode(text):
      raise ConfigError(
        f"{where}: {place} has a lone surrogate (\\ud800 to \\udfff), which is no character; "
        "mend the line"
      )
    self.found = True
    return text

  def check_found(self) -> None:
    """ConfigError if no record of the source had a text."""
    if not self.found and self.n_records:
      raise ConfigError(f"data.text_field={self.name}: {self.first_without}")

  def _names(self, record: Mapping) -> str:
    names = sorted(_text_fields(record, ""), key=lambda name: "." in name or "[" in name)
    return listed(names) or "no text at all"


class Fields(Field):
  """Several fields of a record, all of which every record must have: texts and labels.

  Fields that are all numbers are columns of a file without a header, counted from 0.

  Args:
    keys: {field: the key that names it}, the text first.
    joined: a list of texts is read as one, with blanks between.
  """

  def __init__(self, keys: Mapping[str, str], joined: bool = False):
    super().__init__(next(iter(keys)))
    self.joined = joined
    self.keys = dict(keys)
    self.paths = {name: parse(name) for name in keys}

  def pick(self, record: Mapping, place: str, where: str) -> Record:
    """The fields as text. Raises: ConfigError where one is missing, null, or a list or object."""
    self.n_records, self.found = self.n_records + 1, True
    values = []
    for name, key in self.keys.items():
      value = walk(record, self.paths[name], name)
      if self.joined and isinstance(value, list) and all(isinstance(v, str) for v in value):
        value = " ".join(value)
      if value is None or isinstance(value, Mapping | list):
        has = ", ".join(map(str, record))
        raise ConfigError(f"{key}={name}: {place} has no such text or number; it has: {has}")
      text = str(value)
      if not is_unicode(text):
        raise ConfigError(f"{where}: {place} has a lone surrogate, which is no character; mend it")
      values.append(text)
    return Record(place, tuple(values))


def without_header(names: Iterable[str], first_row: Sequence[str]) -> bool:
  """Whether fields are columns by number, in a file whose first row does not name them so."""
  return all(whole_number(name) is not None for name in names) and not set(names) <= set(first_row)


def _text_fields(value: object, name: str, depth: int = 0) -> list[str]:
  """Paths of the texts in a record, to three levels; of a list, those of its first member."""
  if isinstance(value, str):
    return [name]
  if depth > 3:
    return []
  if isinstance(value, Mapping):
    inner = [(f"{name}.{key}" if name else str(key), item) for key, item in value.items()]
  elif isinstance(value, Sequence) and not isinstance(value, bytes) and len(value):
    inner = [(f"{name}[0]", value[0])]
  else:
    return []
  return [found for path, item in inner for found in _text_fields(item, path, depth + 1)]
