"""Documents of one file: how it is packed, what it holds, and who reads that.

What the first bytes say goes before what the name says. A new format is a file of this folder and a
row of FORMATS; a new kind of compression is a row of COMPRESSIONS (compression.py).
"""

import json
import os
import pathlib
import stat
from collections.abc import Iterator

from lm.config.errors import ConfigError
from lm.config.schema import DataConfig
from lm.data.sources.readers import compression, csv_rows, json_records, parquet, plain
from lm.data.sources.readers.fields import Field, Record
from lm.data.sources.readers.utf8 import check_utf8, decode

FORMATS = {  # data.text_format: what reads it
  "auto": None,
  "plain": plain.read,
  "json": json_records.read,
  "csv": csv_rows.read,
  "tsv": csv_rows.read,
  "parquet": parquet.read,
}
SUFFIXES = {  # in lower case, under any suffix of compression
  ".jsonl": "json",
  ".ndjson": "json",
  ".json": "json",
  ".csv": "csv",
  ".tsv": "tsv",
  ".parquet": "parquet",
  ".pq": "parquet",
}
# First bytes of what is no text: what it is, and what to do about it.
FOREIGN = {
  b"PK\x03\x04": "a zip archive; unpack it",
  b"7z\xbc\xaf": "a 7z archive; unpack it",
  b"Rar!\x1a\x07": "a rar archive; unpack it",
  b"\x04\x22\x4d\x18": "compressed by lz4; decompress it with lz4 -d",
  b"\x1f\x9d": "compressed by compress; decompress it with uncompress",
  b"%PDF-": "a PDF; take its text, e.g. with pdftotext",
  b"ARROW1\0\0": "an Arrow file; write it as parquet",
  b"Obj\x01": "an Avro file; write it as JSON lines",
  b"\x89HDF": "an HDF5 file; write its text as JSON lines",
  b"\x93NUMPY": "a numpy array; write its text as JSON lines",
  b"SQLite format 3": "an SQLite database; write its text as JSON lines",
  b"\x7fELF": "a program; take it out of the glob",
  b"\x89PNG": "a picture; take it out of the glob",
  b"\xff\xd8\xff": "a picture; take it out of the glob",
  b"\xd0\xcf\x11\xe0": "an Office document; save it as text",
}
HEAD = 1 << 20  # bytes by which a file is judged


def read_file(
  path: str, cfg: DataConfig, field: Field, where: str
) -> Iterator[str | Record | None]:
  """Documents of a file, or its records where several fields are asked for; None where one has no text.

  Raises: ConfigError, in one line that begins with the key: what cannot be read, with its place.
  """
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
      raise ConfigError(f"{where}: {path} is no file; write the text to a file")
    packed = compression.detect(path, where)
    with compression.open_file(path, packed, where) as file:
      head = _fill(file)
    name = cfg.text_format
    if name == "auto":
      name = _format(path, packed, head, where)
    elif name != "parquet":
      _refuse_foreign(path, head, where)
    if name == "parquet":
      if packed is not None:
        raise ConfigError(f"{where}: {path} is parquet inside {packed}; decompress it")
      yield from parquet.read(path, field, where)
      return
    check_utf8(head, path, where)
    # Old Macs end lines by CR alone; a file with any LF in it ends them by LF.
    end = b"\r" if b"\r" in head[:-1] and b"\n" not in head else b"\n"
    about = plain.About(path, where, field, cfg.text_unit, end, name, head)
    with compression.open_file(path, packed, where) as file:
      yield from FORMATS[name](file, about)
  except OSError as error:
    raise ConfigError(
      f"{where}: {path} cannot be read ({error.strerror or error}); check the file"
    ) from None


def _fill(file) -> bytes:
  """The first HEAD bytes; a decompressor may give fewer at a time."""
  parts, size = [], 0
  while size < HEAD and (part := file.read(HEAD - size)):
    parts.append(part)
    size += len(part)
  return b"".join(parts)


def _format(path: str, packed: str | None, head: bytes, where: str) -> str:
  """A key of FORMATS, by the first bytes and then by the name."""
  suffixes = [suffix.lower() for suffix in pathlib.Path(path).suffixes]
  if suffixes and suffixes[-1] in compression.SUFFIXES:
    suffixes.pop()
  suffix = suffixes[-1] if suffixes else ""
  found = SUFFIXES.get(suffix)
  if head.startswith(b"PAR1") and (found == "parquet" or b"\0" in head):
    return "parquet"
  _refuse_foreign(path, head, where)
  if found == "parquet":
    raise ConfigError(f"{where}: {path} is not a whole parquet file; fetch it again")
  if found is None and _looks_like_json_lines(head, path, where):
    if suffix in (".txt", ".text"):
      raise ConfigError(
        f"{where}: {path} holds JSON lines; rename it .jsonl, or set data.text_format=json "
        "(plain to train on the JSON itself)"
      )
    return "json"
  return found or "plain"


def _refuse_foreign(path: str, head: bytes, where: str) -> None:
  for magic, what in FOREIGN.items():
    if head.startswith(magic):
      raise ConfigError(f"{where}: {path} is {what}")
  if head[257:262] == b"ustar":
    raise ConfigError(f"{where}: {path} is a tar archive; unpack it")
  if compression.by_magic(head) is not None:
    raise ConfigError(f"{where}: {path} is compressed twice; decompress it once")


def _looks_like_json_lines(head: bytes, path: str, where: str) -> bool:
  """Whether the first two lines (of a file with one line: that one) are JSON objects."""
  if not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
    return False
  check_utf8(head, path, where)
  lines = [line for line in head.splitlines() if line.strip()]
  whole = lines if len(head) < HEAD else lines[:-1]  # the last one may be cut
  for line in whole[:2]:
    try:
      record = json.loads(decode(line, path, 0, where))
    except (ValueError, RecursionError):
      return False
    if not isinstance(record, dict) or not record:
      return False
  return bool(whole)
