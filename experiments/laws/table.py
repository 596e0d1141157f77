"""Reads a table of runs into checked float64 columns under the names that laws use.

No row vanishes: `Table.skipped` names each row left out and why, `Table.notes` says what was derived
or read in an unusual way. Files become rows in experiments.laws.sources, cells numbers in cells, their
columns ours in columns, `where` is parsed in conditions.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.laws import cells, columns, conditions, sources
from experiments.laws.columns import ALIASES
from lm.config.errors import number_of

FILTERED = "not "  # begins the reason of a row that `where` leaves out
SHOWN_ROWS = 12  # rows named in a note
RUN = "run"  # label under which rows of one run share a text
LEAST = {  # a count below it is in another unit: (of which rows, the least, an example of a unit)
  "n_params": (np.min, 100, "1e9"),
  "n_params_non_embedding": (np.min, 100, "1e9"),
  "n_tokens": (np.median, 1000, "1e9"),
  "flops": (np.median, 1e6, "8.64e19"),
}
ONE_UNIT = 1e6  # sizes of one table that are further apart are not all in one unit
FAR_FROM_6ND = 1e3  # FLOPs so many times 6 N D, or so few, are in another unit
FLOP_UNITS = {"PF-days": 8.64e19, "GFLOPs": 1e9, "TFLOPs": 1e12, "PFLOPs": 1e15, "EFLOPs": 1e18,
              "ZFLOPs": 1e21}  # fmt: skip
SIZES = ("n_params", "n_params_non_embedding", "n_tokens", "flops", "unique_tokens", "steps")
__all__ = ["ALIASES", "RUN", "Table", "from_columns", "read_table"]
SIGNED = frozenset({"unigram_loss"})  # columns whose values need not be > 0
FINISHED = {"finished", "done", "completed", "complete", "success", "succeeded", "ok"}


@dataclasses.dataclass(frozen=True)
class Table:
  """Runs as columns. A value may be nan (missing) until `need` has been called for its column.

  Attributes:
    columns: float64 arrays of equal length under our names.
    labels: columns kept as text (clusters, eval sets), same length.
    rows: 1-based row number of each kept run in the source.
    skipped: (row number, reason) of each row left out.
    source: our name -> the source's column.
    notes: what was derived or unusual.
    header: every column of the source.
    unclear: our name -> columns that all look like it.
    texts: every column of the source as text, same length.
    doubts: our name -> why its numbers cannot be counts in units of one; raised where they are needed.
  """

  columns: dict[str, np.ndarray]
  labels: dict[str, np.ndarray]
  rows: np.ndarray
  skipped: tuple[tuple[int, str], ...] = ()
  source: dict[str, str] = dataclasses.field(default_factory=dict)
  notes: tuple[str, ...] = ()
  header: tuple[str, ...] = ()
  unclear: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  texts: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  doubts: dict[str, str] = dataclasses.field(default_factory=dict)

  @property
  def clusters(self) -> np.ndarray | None:
    """[n] text: rows that share one are points of one run, to be resampled together. None: all apart."""
    return self.labels.get(RUN)

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, name: str) -> np.ndarray:
    if name in self.columns:
      return self.columns[name]
    if name in self.unclear:
      alike = self.unclear[name]
      found = ", ".join(map(repr, alike[:6])) + (f", ... ({len(alike)})" if len(alike) > 6 else "")
      raise ValueError(f"{name}: columns {found} all look like it; {columns.how_to_name(name)}")
    raise ValueError(
      f"{name}: {columns.nearest(name, name, self.header)}; {columns.how_to_name(name)}"
    )

  def need(self, *names: str) -> "Table":
    """The rows whose values in `names` are finite and positive (but SIGNED); the others are skipped by name.

    Raises:
      ValueError: a column is absent, unclear or of another unit than it says, or no row is left.
    """
    together = ("flops",) if {"n_params", "n_tokens"} <= {*names} else ()
    for name in (*names, *together):
      if name in self.doubts:
        raise ValueError(self.doubts[name])
    why = {}
    for name in names:
      values = self[name]
      for i in np.flatnonzero(~(np.isfinite(values) & ((values > 0) | (name in SIGNED)))):
        what = f"{values[i]:g}, not > 0" if np.isfinite(values[i]) else "missing or not a number"
        why.setdefault(int(i), f"{name} is {what}")
    out = self
    for reason in sorted(set(why.values())):
      out = out.take(
        ~np.isin(out.rows, [self.rows[i] for i, w in why.items() if w == reason]), reason
      )
    if not len(out):
      reasons = sorted({w for _, w in out.skipped})[:3]
      raise ValueError(f"table: no usable row ({'; '.join(reasons) or 'empty'}); check the columns")
    return out

  def take(self, keep: np.ndarray, why: str) -> "Table":
    """The rows where `keep` [n] bool is true; the others join `skipped` as `why`."""
    gone = tuple((int(r), why) for r in self.rows[~keep])
    pick = lambda arrays: {k: v[keep] for k, v in arrays.items()}
    return dataclasses.replace(
      self,
      columns=pick(self.columns),
      labels=pick(self.labels),
      texts=pick(self.texts),
      rows=self.rows[keep],
      skipped=self.skipped + gone,
    )

  def left_out(self) -> list[str]:
    """One sentence a reason for which rows were left out, naming them."""
    reasons = {}
    for row, why in self.skipped:
      reasons.setdefault(why, []).append(row)
    notes = []
    for why, rows in reasons.items():
      if why.startswith(FILTERED):  # asked for: the count is enough
        notes.append(f"{number_of(len(rows), 'row')} left out, {why}")
        continue
      shown = ", ".join(map(str, rows[:SHOWN_ROWS])) + (" ..." if len(rows) > SHOWN_ROWS else "")
      notes.append(f"{number_of(len(rows), 'row')} left out, {why}: row {shown}")
    return notes

  def columns_read(self) -> str:
    """`n_params 'Model Size', n_tokens derived`: which column stands for what."""
    said = lambda k, v: f"{k} {'derived' if v == 'derived' else repr(v)}"
    return ", ".join(said(k, v) for k, v in self.source.items() if k in self.columns)

  def with_flops(self, flop_factor: float = 6.0) -> "Table":
    """Adds whichever of n_params, n_tokens, flops is missing from C = k N D, saying so."""
    names = ("n_params", "n_tokens", "flops")
    absent = [n for n in names if n not in self.columns]
    if len(absent) != 1:
      return self
    c = self.columns
    k = flop_factor
    if absent[0] in self.unclear:
      return self
    if absent[0] == "flops":
      with np.errstate(all="ignore"):
        value = k * c["n_params"] * c["n_tokens"]
      note = f"flops = {k:g} n_params n_tokens"
    else:
      other = names[1 - names.index(absent[0])]
      with np.errstate(all="ignore"):  # 0 parameters: `need` names the row
        value = c["flops"] / (k * c[other])
      note = f"{absent[0]} = flops / ({k:g} {other})"
    return dataclasses.replace(
      self,
      columns=c | {absent[0]: value},
      source=self.source | {absent[0]: "derived"},
      notes=(*self.notes, f"{note} (no such column given)"),
    )


def from_columns(values: Mapping[str, Sequence[float]], labels=None) -> Table:
  """A Table from arrays already under our names."""
  values = {k: np.asarray(v, np.float64) for k, v in values.items()}
  sizes = {k: len(v) for k, v in values.items()}
  if len(set(sizes.values())) != 1:
    raise ValueError(f"columns={sizes}: lengths differ; give every run a value (nan where missing)")
  labels = {k: np.asarray(v).astype(str) for k, v in (labels or {}).items()}
  rows = np.arange(1, next(iter(sizes.values())) + 1)
  named = {k: k for k in values}
  return Table(values, labels, rows, source=named, header=tuple(values), texts=dict(labels))


def read_table(
  path: str | pathlib.Path,
  *,
  names: Mapping[str, str] | None = None,
  labels: Sequence[str] = (),
  where: Sequence[str] = (),
  scale: Mapping[str, float] | None = None,
  decimal: str | None = None,
  drop_repeats: bool = False,
  options: Mapping[str, str] | None = None,
) -> Table:
  """Reads runs from CSV, TSV, Markdown, LaTeX, JSON, JSONL (.gz) or parquet; "-" is standard input.

  Args:
    path: the file.
    names: {our name: their column}; columns not named here are found by their usual spellings.
    labels: their columns kept as text.
    where: conditions on their columns in the grammar of experiments.laws.conditions; rows that do not
      meet all of them are skipped and counted.
    scale: {our name: factor} of numbers that carry no unit themselves, for tables in millions of
      parameters or GFLOPs; without it, a header such as `Params (M)` is believed, and noted.
    decimal: "point" or "comma"; None: what the columns show.
    drop_repeats: leave out rows that repeat an earlier one cell for cell.
    options: {our name or label: the option that named the column}, for errors.

  Raises:
    ValueError: an unknown column (with the nearest names), two possible readings, or no row.
  """
  try:
    return _read(
      path, dict(names or {}), labels, where, dict(scale or {}), decimal, drop_repeats, options or {}
    )  # fmt: skip
  except ValueError as error:  # names and cells of a file may hold line breaks
    raise ValueError(" ".join(str(error).splitlines())) from error


def _read(path, names, labels, where, scale, decimal, drop_repeats, options) -> Table:
  if decimal is not None and decimal not in cells.MARKS:
    raise ValueError(f"decimal={decimal!r}: must be point or comma")
  source = sources.read_rows(path)
  choice = columns.choose(source.header, names, source.column, options)
  for column in labels:
    columns.check_column(column, column, source.header, options.get(column))
  numbers = _reader(source, decimal, choice)
  numbers_of = lambda column: numbers(column).values
  tests = [(text, conditions.parse(text, source.header, numbers_of)) for text in where]
  keep, skipped = [], list(source.skipped)
  for i, (number, row) in enumerate(source.rows):
    wrong = next((text for text, meets in tests if not meets(i, row)), None)
    if wrong is None:
      keep.append(i)
    else:
      skipped.append((number, FILTERED + (f"({wrong})" if " " in wrong else wrong)))
  if drop_repeats:
    keep, repeats = _without_repeats(source, keep)
    skipped += repeats
  notes = source.notes + choice.notes
  for ours in scale:
    if ours not in choice.chosen:
      known = ", ".join(choice.chosen)
      raise ValueError(
        f"unit={ours}: no such column was read; {columns.how_to_name(ours)} (read: {known})"
      )
  out, told = {}, set()
  for ours, theirs in choice.chosen.items():
    read = numbers(theirs)
    notes += [f"{ours} ({theirs!r}): {text}" for text in read.remarks]
    values, said = _scaled(read, ours, theirs, scale.get(ours), choice.scale.get(ours, 1.0))
    out[ours] = values[keep]
    notes += said
    if ours in scale or choice.scale.get(ours, 1.0) != 1 or read.own_unit.any():
      told.add(ours)
  chosen, unclear = dict(choice.chosen), dict(choice.unclear)
  for ours, theirs in choice.unclear.items():
    same = [[source.rows[i][1].get(c) for i in keep] for c in theirs]
    if all(column == same[0] for column in same):
      factor = cells.split_unit(theirs[0])[1]
      out[ours] = _scaled(numbers(theirs[0]), ours, theirs[0], None, factor)[0][keep]
      chosen[ours] = theirs[0]
      notes.append(f"{ours}: {' and '.join(map(repr, unclear.pop(ours)))} hold the same")
  texts = {
    name: np.array([conditions.text_of(source.rows[i][1].get(name)) for i in keep], dtype=str)
    for name in source.header
  }
  notes += _unfinished(texts)
  rows = np.array([source.rows[i][0] for i in keep], int)
  table = Table(
    out, {k: texts[k] for k in labels}, rows, tuple(skipped), chosen, tuple(notes),
    tuple(source.header), unclear, texts, _doubts(out, chosen, told, rows),
  )  # fmt: skip
  return table if len(table) else table.need()


def _reader(source: sources.Source, decimal: str | None, choice: columns.Choice):
  """column -> its numbers over all rows of the file, read once each."""

  def is_loss(name: str) -> bool:
    return name == choice.chosen.get("loss") or columns.kind_of_loss(name) is not None

  @functools.cache
  def of_file():
    pairs = ((source.column(name), is_loss(name)) for name in source.header)
    return cells.decimal_of(pairs, source.delimiter)

  @functools.cache
  def read(name: str) -> cells.Column:
    column = source.column(name)
    needed = decimal is None and set(cells.marks_of(column)) == {"either"}
    return cells.numbers(
      column, name, decimal=decimal, file_decimal=of_file() if needed else "default",
      largest=cells.PLAUSIBLE_LOSS if is_loss(name) else None,
    )  # fmt: skip

  return read


def _scaled(read: cells.Column, ours, theirs, asked: float | None, header: float):
  """(values in units of one, notes). A cell's own unit stands; a header's or `asked` is of bare numbers.

  What is more than a float holds is nan, as a cell that says inf is.

  Raises:
    ValueError: header and cells say different units, or bare numbers stand among ones with units.
  """
  factor = header if asked is None else asked
  bare = np.isfinite(read.values) & ~read.own_unit
  notes = []
  if asked is None and read.own_unit.any():
    how = f"say what a number without a unit is with --unit {ours}=1 (or 1e6, ...)"
    if header != 1 and set(read.units) != {header}:
      raise ValueError(
        f"{ours}: the header {theirs!r} says x {header:g} and cells have a unit of their own; {how}"
      )
    if header != 1:
      notes.append(f"{ours} ({theirs!r}): header and cells say the same unit; it was taken once")
    low, high = (read.values[bare].min(), read.values[bare].max()) if bare.any() else (1e9, 0.0)
    odd = (ours in SIZES and low < 1e3) or (set(read.units) == {0.01} and high > 1)
    if header == 1 and odd:
      raise ValueError(
        f"{ours} ({theirs!r}): some cells have a unit, others such as {low:g} have none; {how}"
      )
  if factor != 1 and (bare.any() or not read.own_unit.any()):
    why = f", as its header {theirs!r} says" if asked is None else ""
    notes.append(f"{ours} was multiplied by {factor:g}{why}")
  with np.errstate(over="ignore"):
    values = np.where(read.own_unit, read.values, read.values * factor)
  return np.where(np.isfinite(values), values, np.nan), notes


def _doubts(
  values: Mapping[str, np.ndarray], source: Mapping[str, str], told, rows: np.ndarray
) -> dict[str, str]:
  """{our name: a line} for counts that are too small to be ones, or FLOPs that are nowhere near 6 N D.

  Args:
    values: our name -> [n], nan where missing.
    source: our name -> their column.
    told: names whose unit the caller, the header or the cells say.
    rows: [n] their numbers in the source.
  """
  found = {}
  usable = {k: v[np.isfinite(v) & (v > 0)] for k, v in values.items()}
  for name, (of, least, unit) in LEAST.items():
    if name in told or name not in usable or not len(usable[name]):
      continue
    low, high = usable[name].min(), usable[name].max()
    if of(usable[name]) >= least:
      continue
    if np.median(usable[name]) >= least and high > ONE_UNIT * low:
      row = rows[np.flatnonzero(values[name] == low)[0]]
      found[name] = (
        f"{name} ({source[name]!r}): {low:.3g} in row {row} is too small to be a count beside {high:.3g}; "
        f"mend that row, or say --unit {name}=1 if it is one"
      )
    else:
      found[name] = (
        f"{name} ({source[name]!r}): values from {low:.3g} to {high:.3g} are too small to be counts; say "
        f"what they are in with --unit {name}={unit}, or --unit {name}=1 if they are"
      )
  if (
    "flops" not in told and "flops" not in found and {"n_params", "n_tokens", "flops"} <= {*values}
  ):
    with np.errstate(all="ignore"):
      ratios = values["flops"] / (6 * values["n_params"] * values["n_tokens"])
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    ratio = float(np.median(ratios)) if len(ratios) else 1.0
    if not 1 / FAR_FROM_6ND < ratio < FAR_FROM_6ND:
      near = (f" ({n}?)" for n, factor in FLOP_UNITS.items() if 0.3 < ratio * factor < 3)
      unit = next((f for f in FLOP_UNITS.values() if 0.3 < ratio * f < 3), 1 / ratio)
      found["flops"] = (
        f"flops ({source['flops']!r}): is {ratio:.2g} x 6 N D{next(near, '')}; say what it is in with --unit "
        f"flops={unit:.3g}, or --unit flops=1 if it is FLOPs"
      )
  return found


def _without_repeats(source: sources.Source, keep: list[int]):
  """(rows that repeat no earlier one cell for cell, (row number, reason) of the others).

  Columns that only number the rows do not count.
  """
  counts = lambda column: any(
    [str(c).strip() for c in column] == [str(i + at) for i in range(len(column))] for at in (0, 1)
  )
  names = [name for name in source.header if not counts(source.column(name))]
  seen, out, repeats = {}, [], []
  for i in keep:
    number, row = source.rows[i]
    cells_ = tuple(conditions.text_of(row.get(name)) for name in names)
    if names and any(cells_) and seen.setdefault(cells_, i) != i:
      repeats.append((number, "repeats an earlier row cell for cell"))
    else:
      out.append(i)
  return out, repeats


def _unfinished(texts: Mapping[str, np.ndarray]) -> list[str]:
  """A note where a column of states says that some runs have not finished."""
  for name, column in texts.items():
    states = [s.lower() for s in column]
    if columns.plain(name) in ("state", "status") and FINISHED & set(states):
      others = sum(s not in FINISHED and s != "" for s in states)
      done = next(s for s in column if s.lower() in FINISHED)
      if others:
        return [
          f"{number_of(others, 'row')} of runs that have not finished ({name}); "
          f"--where '{name}={done}' leaves them out"
        ]
  return []
