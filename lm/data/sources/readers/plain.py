"""Text as it stands: a document is the file, a line or a paragraph. And lines, for other readers."""

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from lm.data.sources.readers.fields import Field
from lm.data.sources.readers.utf8 import decode

CHUNK = 1 << 20


class About(NamedTuple):
  """What a reader must know of a file beside its bytes."""

  path: str
  where: str  # how messages begin
  field: Field
  unit: str  # data.text_unit
  end: bytes  # of its lines: b"\\n" (with or without b"\\r" before it) or b"\\r"
  format: str  # the row of FORMATS
  head: bytes  # the first bytes


def read(file: BinaryIO, about: About) -> Iterator[str]:
  """Documents of plain text, cut as data.text_unit says."""
  if about.unit == "file":
    yield decode(file.read(), about.path, 0, about.where)
    return
  paragraph: list[str] = []
  for line in lines(file, about):
    if about.unit == "line":
      yield line.rstrip("\r\n")
    elif line.strip():
      paragraph.append(line)
    elif paragraph:
      yield "".join(paragraph).rstrip("\r\n")
      paragraph = []
  if paragraph:
    yield "".join(paragraph).rstrip("\r\n")


def lines(file: BinaryIO, about: About) -> Iterator[str]:
  """Decoded lines with their ends."""
  offset = 0
  for raw in _raw_lines(file, about.end):
    yield decode(raw, about.path, offset, about.where)
    offset += len(raw)


def _raw_lines(file: BinaryIO, end: bytes) -> Iterator[bytes]:
  if end == b"\n":
    yield from file
    return
  pending = b""
  while chunk := file.read(CHUNK):
    *whole, pending = (pending + chunk).split(end)
    yield from (line + end for line in whole)
  if pending:
    yield pending
