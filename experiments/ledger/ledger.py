"""The ledger: one flat row for every run, as in experiments.ledger.rows, and the questions asked of them.

It is read from run directories wherever they are, or from a small JSON-lines file (`export`), from
which a report can be made again without the runs.
"""

import csv
import dataclasses
import json
import math
import posixpath
import statistics
from collections.abc import Iterator, Mapping, Sequence

from experiments.ledger.judged import judge_of
from experiments.ledger.rows import (
  AXES,
  EXPORTED_BINS,
  ROW_KEYS,
  binned,
  check_texts,
  file_system,
  is_number,
  no_number,
  read_folder,
  run_folders,
)
from lm.config.errors import ConfigError, number_of, suggest
from lm.files import beside
from lm.runs import bucket
from lm.setup.load import known_keys

PRIVATE = ("path", "host")  # kept out of a ledger that may be published
EXPORTED_CURVE = (*AXES, "records", "train/loss", "eval/")  # keys, or beginnings of keys
MUST_AGREE = {
  "eval_fingerprint": "evaluated on different tokens: their losses do not compare",
  "tokenizer_fingerprint": "tokenised differently: compare bits per byte, not loss",
  "data_fingerprint": "trained on different data",
  "jax": "computed by different versions of jax",
}


@dataclasses.dataclass(frozen=True)
class Ledger:
  """Rows, and the few questions asked of them. Immutable: every method returns something new."""

  rows: tuple[dict, ...]

  def __len__(self) -> int:
    return len(self.rows)

  def __iter__(self) -> Iterator[dict]:
    return iter(self.rows)

  def all_keys(self) -> list[str]:
    """Every key that some row has, in order of first appearance."""
    return list(dict.fromkeys(key for row in self.rows for key in row))

  def column(self, key: str, option: str = "column") -> list:
    """That key of each row; None where a row lacks it.

    Args:
      option: what asks, named in the ConfigError where there is no such key.
    """
    self._check(key, option)
    return [row.get(key) for row in self.rows]

  def columns(self, *keys: str) -> dict[str, "np.ndarray"]:  # noqa: F821
    """{key: float64 [rows]} for fitting. ConfigError names the first row without a finite number."""
    import numpy as np

    table = {}
    for key in keys:
      values = self.column(key)
      for row, value in zip(self.rows, values, strict=True):
        if not isinstance(value, int | float) or not math.isfinite(value):
          raise ConfigError(
            f"{key}={value}: run {row['name']} has no number there; leave it out with where()"
          )
      table[key] = np.array(values, np.float64)
    return table

  def __repr__(self) -> str:
    done = sum(row["status"] == "done" for row in self.rows)
    return f"Ledger({number_of(len(self.rows), 'run')}, {done} done)"

  def to_pandas(self):
    """A DataFrame with one row a run and every key as a column, curves left out.

    Raises:
      ConfigError: pandas is not installed.
    """
    try:
      import pandas
    except ImportError:
      raise ConfigError("to_pandas=(): needs pandas; pip install pandas") from None
    keys = [key for key in self.all_keys() if key != "curve"]
    return pandas.DataFrame([{key: _flat(row.get(key)) for key in keys} for row in self.rows])

  def done(self) -> "Ledger":
    """The runs that ended well."""
    return Ledger(tuple(row for row in self.rows if row["status"] == "done"))

  def where(self, *conditions: str) -> "Ledger":
    """Rows that meet all conditions, in the grammar of experiments.laws.conditions.

    Text compares without regard to case, and `reason=None` finds the rows without a reason.

    Raises:
      ConfigError: not of the grammar, an unknown key, or a number compared with what is none.
    """
    if not conditions:
      return self
    import numpy as np

    from experiments.laws import conditions as grammar

    number = lambda v: float(v) if is_finite(v) and not isinstance(v, bool) else math.nan
    numbers = lambda key: np.array([number(row.get(key)) for row in self.rows])
    keys = self._known()
    try:
      tests = [grammar.parse(text, keys, numbers, config=True) for text in conditions]
    except ValueError as error:
      raise ConfigError(str(error)) from None
    flat = [{key: _flat(value) for key, value in row.items()} for row in self.rows]
    keep = [all(test(i, row) for test in tests) for i, row in enumerate(flat)]
    return Ledger(tuple(row for row, kept in zip(self.rows, keep, strict=True) if kept))

  def sort(self, key: str, reverse: bool = False) -> "Ledger":
    """By that key, smallest first, or largest with `reverse`; rows without it last."""
    self._check(key, "sort")
    has = [row for row in self.rows if row.get(key) is not None]
    has.sort(key=lambda row: _order(row[key]), reverse=reverse)
    return Ledger((*has, *(row for row in self.rows if row.get(key) is None)))

  def groups(self, *keys: str) -> dict[tuple, "Ledger"]:
    """{values of the keys: their rows}, in order of first appearance."""
    for key in keys:
      self._check(key, "group_by")
    found = {}
    for row in self.rows:
      found.setdefault(tuple(_hashable(row.get(key)) for key in keys), []).append(row)
    return {values: Ledger(tuple(rows)) for values, rows in found.items()}

  def summary(self, *keys: str, value: str | None = None) -> list[dict]:
    """One row a group: the keys, n, mean, std and min of `value` where finite, and the name of the best run.

    Args:
      value: a key of the rows; None = what runs are judged by. Less is better save where runs are judged
        by it and say otherwise.

    Raises:
      ConfigError: no row has a number there.
    """
    judge = judge_of(self.rows)
    value = value or judge.key
    self._check(value, "value")
    if self.rows and not any(is_finite(row.get(value)) for row in self.rows):
      raise ConfigError(f"value={value}: no run has a number there; use {judge.key}")
    rank = judge.rank if value in (judge.key, judge.metric) else lambda number: number
    table = []
    for values, group in self.groups(*keys).items():
      numbers = [(row[value], row["name"]) for row in group if is_finite(row.get(value))]
      losses = [number for number, _ in numbers]
      table.append(
        {
          **dict(zip(keys, values, strict=True)),
          "n": len(losses),
          "mean": statistics.fmean(losses) if losses else None,
          "std": statistics.stdev(losses) if len(losses) > 1 else None,
          "min": min(losses, default=None),
          "best": min(numbers, key=lambda pair: (rank(pair[0]), pair[1]), default=(None, None))[1],
        }
      )
    return table

  def varied(self) -> list[str]:
    """Config keys whose value is not the same in all rows; what follows from others is left out, or last."""
    derived = ("train.", "eval.every_steps", "checkpoint.every_steps", "data.seed", "mesh.", "log.")
    keys = [k for k in self.all_keys() if is_config_key(k) and not k.startswith(derived)]
    return deciding_first(
      self.rows, [k for k in keys if len({_hashable(row.get(k)) for row in self.rows}) > 1]
    )

  def mismatches(self, keys: Sequence[str] = tuple(MUST_AGREE)) -> list[str]:
    """One sentence for each of these fingerprints that not all runs share."""
    found = []
    for key, meaning in ((key, MUST_AGREE[key]) for key in keys):
      groups = {}
      for row in self.rows:
        if row.get(key) is not None:
          groups.setdefault(row[key], []).append(row["name"])
      if len(groups) > 1:
        shown = "; ".join(f"{value}: {few(names)}" for value, names in groups.items())
        found.append(f"{key} differs, so these runs are {meaning} ({shown})")
    return found

  def _known(self) -> list[str]:
    """The keys that may be asked for: those of some row, of every row, and the config's."""
    keys = {*self.all_keys(), *ROW_KEYS, *known_keys()}
    return sorted(keys - {"curve"})

  def _check(self, key: str, option: str = "column") -> None:
    if key != "curve" and any(key in row for row in self.rows):
      return
    if key not in (known := self._known()):
      raise ConfigError(f"{option}={key}: no such column; {suggest(key, known)}")


def is_config_key(key: str) -> bool:
  """Whether a row's key is one of the config's (top-level or dotted)."""
  return key in ("seed", "extensions", "rules") or ("." in key and "/" not in key)


def read_ledger(*roots: str, curves: bool = True, option: str = "root") -> Ledger:
  """Every run directory at or below the roots (paths or URLs), and the rows of ledger files.

  Args:
    option: what asks, named in errors.

  Raises:
    ConfigError: a root does not exist, or its file system is not installed.
  """
  rows = []
  for root in map(str, roots):
    if root.endswith(".jsonl"):
      rows += load_ledger(root, "ledger" if option == "root" else option).rows
      continue
    with bucket.readable(option, root):
      rows += _read_below(root, curves, option)
  return Ledger(tuple(rows))


def _read_below(root: str, curves: bool, option: str) -> list[dict]:
  fs, path = file_system(root)
  fs.invalidate_cache()  # a bucket's listing is remembered, and runs go on
  if not fs.exists(path):
    raise ConfigError(f"{option}={root}: no such directory; run an experiment first or correct it")
  if fs.isfile(path):
    raise ConfigError(f"{option}={root}: is a file; name a run directory, or a ledger (.jsonl)")
  rows = []
  for folder in run_folders(fs, path):
    name = posixpath.relpath(folder, path)
    row = read_folder(fs, folder, posixpath.basename(folder) if name == "." else name, curves)
    rows.append({**row, "path": root if name == "." else f"{root.rstrip('/')}/{name}"})
  return rows


def exists(root: str) -> bool:
  """Whether there is something at a path or URL."""
  with bucket.readable("root", root):
    fs, path = file_system(root)
    fs.invalidate_cache()
    return fs.exists(path)


def export(ledger: Ledger, path: str) -> None:
  """Writes the ledger (path or URL); its ending chooses .jsonl (reads back), .csv or .parquet.

  In the .jsonl the first line holds what all rows share; curves are binned, machines left out.
  """
  with bucket.written("export", path) as local, beside(local) as partial:
    _export(ledger, str(partial), path)


def _export(ledger: Ledger, path: str, asked: str) -> None:
  ending = posixpath.splitext(path)[1]
  flat = [{k: _flat(v) for k, v in row.items() if k != "curve"} for row in ledger.rows]
  keys = [k for k in ledger.all_keys() if k != "curve"]
  if ending == ".jsonl":
    _write_jsonl(ledger, path)
  elif ending == ".csv":
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
      writer = csv.DictWriter(file, keys, lineterminator="\n")
      writer.writeheader()
      writer.writerows(flat)
  elif ending == ".parquet":
    try:
      import pyarrow as pa
      import pyarrow.parquet as pq
    except ImportError:
      raise ConfigError(
        f"export={asked}: Parquet needs pyarrow; pip install pyarrow, or export to .csv"
      ) from None
    pq.write_table(pa.table({k: _arrow_column([r.get(k) for r in flat]) for k in keys}), path)
  else:
    raise ConfigError(f"export={asked}: must end in .jsonl, .csv or .parquet; rename it")


def load_ledger(path: str, option: str = "ledger") -> Ledger:
  """The ledger that `export` wrote to a .jsonl file (a path or URL)."""
  with bucket.readable(option, path):
    fs, place = file_system(path)
    if not fs.exists(place):
      raise ConfigError(
        f"{option}={path}: no such file; export one with status NAME --export {path}"
      )
    content = fs.cat_file(place)
  try:
    lines = [json.loads(line) for line in content.decode().splitlines() if line.strip()]
    check_texts(content, lines)
    shared = lines[0]["shared"]
    rows = tuple({**shared, **row} for row in lines[1:])
    if not all(map(_is_row, rows)):
      raise TypeError("rows have a name, a status and numbers, and curves columns of equal length")
  except (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    RecursionError,
  ):  # no UTF-8 or JSON, or other
    raise ConfigError(
      f"{option}={path}: must be a ledger that status --export wrote as .jsonl; export it again"
    ) from None
  return Ledger(rows)


def _is_row(row: dict) -> bool:
  """Whether a ledger's row has what every row has."""
  curve = row.get("curve", {})
  has_columns = isinstance(curve, dict) and all(isinstance(v, list) for v in curve.values())
  if not has_columns or len({len(v) for v in curve.values()}) > 1 or no_number(row):
    return False
  of_numbers = all(is_number(v) for values in curve.values() for v in values)
  return isinstance(row["name"], str) and isinstance(row["status"], str) and of_numbers


def _write_jsonl(ledger: Ledger, path: str) -> None:
  rows = [{k: v for k, v in row.items() if k not in PRIVATE} for row in ledger.rows]
  for row in rows:
    if "curve" in row:
      curve = {k: v for k, v in row["curve"].items() if k.startswith(EXPORTED_CURVE)}
      row["curve"] = {
        k: [_rounded(v, 7 if k.startswith("eval/") else 5) for v in column]
        for k, column in binned(curve, EXPORTED_BINS).items()
      }
  first = rows[0] if len(rows) > 1 else {}
  shared = {k: v for k, v in first.items() if all(k in r and r[k] == v for r in rows)}
  with open(path, "w", encoding="utf-8") as file:
    file.write(json.dumps({"ledger": 1, "shared": shared}) + "\n")
    for row in rows:
      file.write(json.dumps({k: v for k, v in row.items() if k not in shared}) + "\n")


def _order(value) -> tuple:
  return (0, value, "") if is_finite(value) else (1, 0, str(value))


def is_finite(value: object) -> bool:
  """Whether it is a number, neither NaN nor infinity."""
  return isinstance(value, int | float) and math.isfinite(value)


def deciding_first(rows: Sequence[Mapping], keys: Sequence[str]) -> list[str]:
  """The keys; last those whose values follow from the values of one before them.

  >>> rows = [
  ...   {"width": 16, "heads": 1, "lr": 1},
  ...   {"width": 32, "heads": 2, "lr": 1},
  ...   {"width": 32, "heads": 2, "lr": 3},
  ... ]
  >>> deciding_first(rows, ["width", "heads", "lr"])
  ['width', 'lr', 'heads']
  """
  values = {key: [str(row.get(key)) for row in rows] for key in keys}
  kinds = lambda *of: len(set(zip(*(values[key] for key in of), strict=True)))
  deciding: list[str] = []
  for key in keys:
    if not any(kinds(other, key) == kinds(other) for other in deciding):
      deciding.append(key)
  return deciding + [key for key in keys if key not in deciding]


def _hashable(value):
  return tuple(value) if isinstance(value, list) else value


def _flat(value):
  return ",".join(map(str, value)) if isinstance(value, list | tuple) else value


def _rounded(value, digits: int):
  """7 digits are what a float32 metric holds."""
  return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _arrow_column(values: list) -> list:
  """One type a column: numbers as they are, anything mixed as text."""
  kinds = {type(v) for v in values if v is not None}
  if kinds <= {int, float} or len(kinds) == 1:
    return values
  return [None if v is None else str(v) for v in values]


def few(names: Sequence[str]) -> str:
  """The first three of them, and how many more there are."""
  return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
