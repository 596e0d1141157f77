"""CSV and TSV: the first row names the columns, data.text_field is one of them, a row is a record.

In CSV, quoted fields may hold delimiters and line ends, and quotes in them are doubled (RFC 4180). In TSV
a field ends at a tab or line end whatever quotes there are; quotes around a whole field are taken off.
"""

import csv
import sys
from collections.abc import Iterator
from typing import BinaryIO

from lm.config.errors import ConfigError
from lm.data.sources.readers.fields import Fields, Record, listed, without_header
from lm.data.sources.readers.plain import About, lines


def read(file: BinaryIO, about: About) -> Iterator[str | Record | None]:
  """The text of every row; blank lines are skipped."""
  csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
  if about.format == "csv":
    rows = csv.reader(lines(file, about), strict=True)
  else:
    rows = csv.reader(lines(file, about), delimiter="\t", quoting=csv.QUOTE_NONE)
  names: list[str] | None = None
  try:
    for row in rows:
      if not row:
        continue
      if about.format == "tsv":
        row = [_unquoted(cell, f"{about.path}:{rows.line_num}", about.where) for cell in row]
      if names is None:
        bare = isinstance(about.field, Fields) and without_header(about.field.keys, row)
        names = [str(i) for i in range(len(row))] if bare else row
        _check_names(names, about)
        if not bare:
          continue
      if len(row) > len(names):
        raise ConfigError(
          f"{about.where}: {about.path}:{rows.line_num} has {len(row)} fields, and the first row "
          f"names {len(names)}; quote what holds a {about.format} delimiter"
        )
      record = dict(zip(names, row, strict=False))
      yield about.field.pick(record, f"{about.path}:{rows.line_num}", about.where)
  except csv.Error as error:
    raise ConfigError(
      f"{about.where}: {about.path}:{rows.line_num} is not {about.format} ({error}); mend the line, "
      "or set data.text_format"
    ) from None


def _check_names(names: list[str], about: About) -> None:
  for name, key in about.field.keys.items():
    if name not in names:
      raise ConfigError(f"{key}={name}: {about.path} has no such column; it has: {listed(names)}")
    if names.count(name) > 1:
      raise ConfigError(
        f"{key}={name}: {about.path} has {names.count(name)} columns of that name; rename one"
      )


def _unquoted(cell: str, place: str, where: str) -> str:
  """A field of TSV without quotes around it. One that opens and does not close them may go on in the
  next line, or be meant so: refused."""
  if not cell.startswith('"'):
    return cell
  if cell.count('"') % 2:
    raise ConfigError(
      f"{where}: {place} has a field that begins with a quote and does not end with one; quote it "
      "whole, or write the file as CSV"
    )
  inner = cell[1:-1].replace('""', "")
  return cell[1:-1].replace('""', '"') if cell.endswith('"') and '"' not in inner else cell
