"""Files of runs -> rows of cells: CSV with any usual delimiter, TSV, columns in blanks, Markdown and LaTeX
tables, JSON, JSONL, parquet; plain or .gz. Cells become numbers in experiments.laws.cells.
"""

import csv
import gzip
import io
import json
import pathlib
import re
import sys
import zlib
from typing import NamedTuple

from lm.config.errors import number_of

DELIMITERS = ",\t;|&"
SAMPLED = 50  # lines that decide on the delimiter


class Source(NamedTuple):
  """A file's rows.

  header: names of the columns; rows: [(number from 1, {column: cell})], cells being text, or what JSON
  and parquet hold; skipped: [(number, why it was left out)]; delimiter: "," "\\t" ";" "|" "&" " ", or
  "typed" where numbers are numbers already.
  """

  header: list[str]
  rows: list[tuple[int, dict]]
  skipped: list[tuple[int, str]]
  notes: list[str]
  delimiter: str

  def column(self, name: str) -> list:
    """The cells of one column, None where a row has none."""
    return [row.get(name) for _, row in self.rows]


def read_rows(path: str | pathlib.Path) -> Source:
  """The rows of a file, or of standard input for "-".

  Raises:
    ValueError: no such file, a kind that is not read, or nothing in it.
  """
  data = _bytes(path)
  if data[:4] == b"PAR1":
    return _parquet(path, data)
  text, notes = _decode(path, data)
  if text.lstrip()[:1] in ("{", "["):
    return _json(path, text, notes)
  return _delimited(path, text, notes)


def _bytes(path) -> bytes:
  try:
    if str(path) == "-":
      data = sys.stdin.buffer.read()
    elif not pathlib.Path(path).is_file():
      raise ValueError(f"csv={path}: no such file; give a CSV, TSV, JSONL or parquet table of runs")
    else:
      data = pathlib.Path(path).read_bytes()
    return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
  except (OSError, EOFError, zlib.error) as error:
    raise ValueError(f"csv={path}: cannot be read ({error}); give a whole file") from None


def _decode(path, data: bytes) -> tuple[str, list[str]]:
  """The file's text, and what was unusual about its encoding."""
  try:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
      return data.decode("utf-16"), []
    if b"\0" in data:
      raise ValueError(f"csv={path}: not a text file; export the table as CSV")
    return data.decode("utf-8-sig"), []
  except UnicodeDecodeError:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
      raise ValueError(f"csv={path}: broken UTF-16; export the table as CSV in UTF-8") from None
    return data.decode("latin-1"), ["the file is not UTF-8; it was read as Latin-1"]


def _parquet(path, data: bytes) -> Source:
  try:
    import pyarrow as pa
    from pyarrow import parquet
  except ImportError:
    raise ValueError(
      f"csv={path}: parquet needs pyarrow; pip install pyarrow, or export the table as CSV"
    ) from None
  try:
    table = parquet.read_table(io.BytesIO(data))
    rows = table.to_pylist()
  except (pa.ArrowException, OSError, ValueError) as error:
    why = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    raise ValueError(f"csv={path}: broken parquet ({why}); export the table again") from None
  rows = [{k: v for k, v in row.items() if not k.startswith("__index_level")} for row in rows]
  return _typed(path, rows, [])


def _unique_keys(pairs: list[tuple[str, object]]) -> dict:
  out = {}
  for key, value in pairs:
    if key in out and repr(out[key]) != repr(value):
      raise ValueError(f"key {key!r} occurs twice in one object, with different values")
    out[key] = value
  return out


def _json(path, text: str, notes: list[str]) -> Source:
  """A list of objects, one object a line, or what pandas and W&B export as one object."""
  load = lambda s: json.loads(s, object_pairs_hook=_unique_keys)
  bad = lambda why: ValueError(f"csv={path}: not JSON ({why}); give one object a line")
  try:
    try:
      whole = load(text)
    except json.JSONDecodeError:
      whole = [load(line) for line in re.split(r"[\r\n]+", text) if line.strip()]
    rows = _rows_of(whole)
  except (ValueError, RecursionError) as error:
    raise bad(str(error) or type(error).__name__) from None
  if not all(isinstance(row, dict) for row in rows):
    raise ValueError(f"csv={path}: must be objects, one a run; for example {{'loss': 3.1}}")
  return _typed(path, [_flat(row) for row in rows], notes)


def _rows_of(whole) -> list:
  """Rows of a parsed JSON document: a list of them, or pandas' "columns", "split" and "table"."""
  if isinstance(whole, list):
    return whole
  names, data = whole.get("columns"), whole.get("data")
  if isinstance(names, list) and isinstance(data, list):
    if not all(isinstance(row, list) and len(row) == len(names) for row in data):
      raise ValueError("data: must have a value for each of columns")
    pairs = [list(zip(map(str, names), row, strict=True)) for row in data]
    return [_unique_keys(row) for row in pairs]
  if isinstance(data, list) and data and all(isinstance(row, dict) for row in data):
    return data
  columns = list(whole.values())
  for kind in (list, dict):
    if columns and all(isinstance(c, kind) for c in columns):
      keys = list(range(len(columns[0]))) if kind is list else list(columns[0])
      same = all(len(c) == len(keys) for c in columns)
      if same and not (kind is dict and any(set(c) != set(keys) for c in columns)):
        return [{name: column[k] for name, column in whole.items()} for k in keys]
  return [whole]


def _flat(row: dict, prefix: str = "", depth: int = 0) -> dict:
  """Nested objects as `outer.inner` columns."""
  out = {}
  for key, value in row.items():
    if isinstance(value, dict) and value and depth < 8:
      out |= _flat(value, f"{prefix}{key}.", depth + 1)
    else:
      out[f"{prefix}{key}"] = value
  return out


def _typed(path, rows: list[dict], notes: list[str]) -> Source:
  if not rows:
    raise ValueError(f"csv={path}: the file holds no run; give at least one")
  header = list(dict.fromkeys(k for row in rows for k in row))
  return Source(header, list(enumerate(rows, start=1)), [], notes, "typed")


def _delimited(path, text: str, notes: list[str]) -> Source:
  lines = [line for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
  remarks = [line for line in lines if line.startswith("#")]
  lines = [line for line in lines if not line.startswith("#")]
  if lines and re.fullmatch(r"sep=.", lines[0].strip(), re.IGNORECASE):
    lines = lines[1:]  # a hint that spreadsheets write
  if remarks and (not lines or _all_numbers(lines[0])):
    lines = [remarks[-1].lstrip("# "), *lines]  # numpy.savetxt comments its header out
  if not lines:
    raise ValueError(f"csv={path}: the file is empty; give a header and at least one run")
  try:
    delimiter, table = _split(lines)
  except csv.Error as error:
    raise ValueError(f"csv={path}: not a table ({error}); export it again as CSV") from None
  table = [row for row in table if not all(re.fullmatch(r"[:\-=+\s]*", c) for c in row)]
  if not table:
    raise ValueError(f"csv={path}: the file holds no header; give one and at least one run")
  header = [re.sub(r"^(\*\*|`)(.+)\1$", r"\2", name.strip()) for name in table[0]]
  if _all_numbers(" ".join(header)):
    raise ValueError(
      f"csv={path}: its first line holds numbers, not names ({', '.join(header)[:60]}); add a header"
    )
  if delimiter in (" ", "\t") and _numbered(header, table[1:]):
    header = ["", *header]  # pandas and R print row numbers under no name
  skipped, rows = [], []
  width = max(i for i, name in enumerate(header) if name) + 1 if any(header) else 0
  for number, row in enumerate(table[1:], start=1):
    if any(c.strip() for c in row[len(header) :]):
      sizes = f"{number_of(len(row), 'cell')} under {number_of(len(header), 'column')}"
      why = f"{sizes} (a separator inside a number?)"
      skipped.append((number, why))
    else:
      rows.append((number, [c.strip() for c in row[:width]]))
  header, said = _unique_names(header[:width], [row for _, row in rows])
  named = [(i, name) for i, name in enumerate(header) if name]
  rows = [(k, {name: row[i] for i, name in named if i < len(row)}) for k, row in rows]
  return Source([name for _, name in named], rows, skipped, notes + said, delimiter)


def _all_numbers(line: str) -> bool:
  words = [w for w in re.split(r"[\s,;|&]+", line) if w]
  return bool(words) and all(re.fullmatch(r"[+-]?[\d.]+(e[+-]?\d+)?", w, re.I) for w in words)


def _numbered(header: list[str], rows: list[list[str]]) -> bool:
  """Whether each row begins with its number, for which the header has no name."""
  if not rows or any(len(row) != len(header) + 1 for row in rows):
    return False
  first = [row[0].strip() for row in rows]
  return any(first == [str(i + at) for i in range(len(rows))] for at in (0, 1))


def _split(lines: list[str]) -> tuple[str, list[list[str]]]:
  """Lines as cells, by the delimiter under which most lines are as wide as the header."""

  def parse(delimiter, lines):
    text = io.StringIO("\n".join(lines))
    return list(csv.reader(text, delimiter=delimiter, skipinitialspace=True))

  def score(delimiter):
    widths = [len(row) for row in parse(delimiter, lines[:SAMPLED])]
    return widths[0] > 1, sum(w == widths[0] for w in widths) / len(widths), widths[0]

  best = max(DELIMITERS, key=score)
  if best == "&" and score(best)[0]:  # LaTeX ends its rows with \\, and draws lines by commands
    lines = [re.sub(r"\\\\.*$", "", line) for line in lines if "&" in line]
  if not score(best)[0]:
    return " ", _in_blanks(lines)
  table = parse(best, lines)
  if best == "|":  # Markdown has one at both ends
    table = [row[1:] if row and not row[0].strip() else row for row in table]
  return best, table


def _in_blanks(lines: list[str]) -> list[list[str]]:
  """Cut at runs of two blanks or more where that gives one width, so that names may hold blanks."""
  wide = [re.split(r"\s{2,}", line.strip()) for line in lines]
  widths = {len(row) for row in wide}
  if len(widths) == 1 and widths != {1}:
    return wide
  return [[cell.strip('"') for cell in line.split()] for line in lines]


def _unique_names(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[str]]:
  """Repeated names told apart as `name.2`, or, where the cells are the same, left out ("")."""
  out, notes, first = [], [], {}
  for i, name in enumerate(header):
    column = [row[i] if i < len(row) else "" for row in rows]
    if not name or name not in first:
      out.append(name)
      first.setdefault(name, (i, column))
    elif column == first[name][1]:
      out.append("")
      notes.append(f"column {name!r} occurs twice with the same cells; one was kept")
    else:
      new = f"{name}.{1 + sum(n == name for n in header[:i])}"
      out.append(new)
      notes.append(f"column {name!r} occurs again with other cells, here as {new!r}")
  return out, notes
