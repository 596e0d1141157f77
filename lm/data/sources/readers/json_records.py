"""JSON: lines with an object each, an array of objects, or objects one after another."""

import json
import pathlib
import re
from collections.abc import Iterator
from typing import BinaryIO

from lm.config.errors import ConfigError
from lm.data.sources.readers.fields import Record
from lm.data.sources.readers.plain import About, lines
from lm.data.sources.readers.utf8 import BOM, text_chunks

_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")
LINES = (".jsonl", ".ndjson")
LARGEST = 1 << 30  # characters of one value
SHOWN = 120  # characters of a library's message


def read(file: BinaryIO, about: About) -> Iterator[str | Record | None]:
  """The text of every record; where a file is named as JSON lines or begins so, of every line."""
  suffixes = [suffix.lower() for suffix in pathlib.Path(about.path).suffixes[-2:]]
  if any(suffix in LINES for suffix in suffixes) or _begins_with_a_line(about.head):
    yield from _read_lines(file, about)
  else:
    yield from _read_values(file, about)


def _begins_with_a_line(head: bytes) -> bool:
  """Whether the first line is an object by itself."""
  line = next((line for line in head.removeprefix(BOM).splitlines() if line.strip()), b"")
  try:
    return isinstance(json.loads(line), dict)
  except (ValueError, RecursionError):
    return False


def _read_lines(file: BinaryIO, about: About) -> Iterator[str | Record | None]:
  for number, line in enumerate(lines(file, about), start=1):
    if line.isspace():
      continue
    place = f"{about.path}:{number}"
    try:
      record = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise ConfigError(
        f"{about.where}: {place} is not JSON ({_reason(error)}); mend the line"
      ) from None
    if not isinstance(record, dict):
      raise ConfigError(f"{about.where}: {place} is no JSON object; write one on each line")
    yield about.field.pick(record, place, about.where)


def _read_values(file: BinaryIO, about: About) -> Iterator[str | Record | None]:
  """Members of an array, or values with blanks between them."""

  def refuse(reason: str) -> ConfigError:
    return ConfigError(
      f"{about.where}: {about.path} is not JSON after record {number} ({reason}); mend the file"
    )

  text, number = _Text(text_chunks(file, about.path, about.where)), 0
  is_array = text.next_sign() == "["
  if is_array:
    text.at += 1
  while sign := text.next_sign():
    if is_array and sign == "]":
      text.at += 1
      if text.next_sign():
        raise refuse("something follows the array")
      return
    if is_array and number:
      if sign != ",":
        raise refuse("a comma is missing")
      text.at += 1
    try:
      value = text.next_value()
    except (ValueError, RecursionError) as error:
      raise refuse(_reason(error)) from None
    number += 1
    place = f"{about.path} record {number}"
    if not isinstance(value, dict):
      raise ConfigError(
        f"{about.where}: {place} is no JSON object; give objects with the field {about.field.name}"
      )
    yield about.field.pick(value, place, about.where)
  if is_array:
    raise refuse("the array does not end")


class _Text:
  """The text of a file from `at` on, as far as it has been read."""

  def __init__(self, chunks: Iterator[str]):
    self.text, self.at, self._chunks = "", 0, chunks

  def next_sign(self) -> str:
    """The first character that is no blank, which stays; "" at the end of the file."""
    while True:
      self.at = _BLANK.match(self.text, self.at).end()
      if self.at < len(self.text):
        return self.text[self.at]
      if not self._read_on():
        return ""

  def next_value(self) -> object:
    """Reads a value. Raises: ValueError if there is none."""
    self.next_sign()
    while True:
      try:
        value, stop = _DECODER.raw_decode(self.text, self.at)
      except ValueError:  # perhaps because it goes on in the next chunk
        if len(self.text) - self.at > LARGEST or not self._read_on():
          raise
        continue
      if stop == len(self.text) and self._read_on():  # a number may go on
        continue
      self.at = stop
      return value

  def _read_on(self) -> bool:
    """Reads at least as much as is left, so that a long value is not decoded too often."""
    left, parts, size = self.text[self.at :], [], 0
    while size <= len(left) and (part := next(self._chunks, "")):
      parts.append(part)
      size += len(part)
    self.text, self.at = left + "".join(parts), 0
    return bool(parts)


def _reason(error: Exception) -> str:
  if isinstance(error, RecursionError):
    return "nested too deeply"
  return " ".join(str(error).split())[:SHOWN]
