"""Cells -> numbers, in the spellings people use; a column is read as a whole.

"1,400" may be 1400 or 1.4: which mark is the decimal one is decided by the column's other cells, then by
the file's other columns; where both readings remain possible, that is an error naming `--decimal`.
"""

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from lm.config.errors import number_of

SUFFIX = {"k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9, "t": 1e12, "mn": 1e6, "mio": 1e6, "bn": 1e9,
          "mrd": 1e9, "tn": 1e12}  # fmt: skip
WORDS = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
FLOPS = {f"{letter}flop": factor for letter, factor in
         zip("kmgtpez", (1e3, 1e6, 1e9, 1e12, 1e15, 1e18, 1e21), strict=True)}  # fmt: skip
UNITS = {
  **SUFFIX,
  **{name + s: factor for name, factor in (*WORDS.items(), *FLOPS.items()) for s in ("", "s")},
}
MISSING = {
  "", "na", "nan", "n/a", "null", "none", "-", "--", "\u2014", "inf", "-inf", "+inf", "infinity",
  "-infinity", "?", "<na>", "nil", "missing", "tbd",
}  # fmt: skip
MARKS = {"point": ".", "comma": ","}
PLAUSIBLE_LOSS = 1e3  # nats a token: no loss reaches it, so "3,214" is no 3214
_SPACES = " \u00a0\u2007\u2008\u2009\u200a\u202f\u2006\u2005'\u2019`"  # between groups of digits
_SUPERSCRIPT = re.compile("[\u207b\u207a]?[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")
_NOUN = r"(?:flops?|params?|parameters?|tokens?|toks?|steps?|nats?(?:\s*/\s*tok(?:en)?)?|runs?)"
_CELL = re.compile(
  rf"""(?P<sign>[+-]?)\s*
  (?:(?P<base>10|2)\s*(?:\^|\*\*)\s*(?P<power>[+-]?\d{{1,3}})
   |(?P<mantissa>[\d.,{_SPACES}_]*\d[\d.,{_SPACES}_]*?)
    (?:\s*(?:[ed](?P<exp>[+-]?\d{{1,4}})
         |(?:[x*\u00d7\u00b7\u2219\u22c5]|e)\s*10\s*(?:\^|\*\*)\s*(?P<ten>[+-]?\d{{1,4}})))?)
  \s*(?P<unit>{"|".join(sorted(UNITS, key=len, reverse=True))})?\.?
  (?:\s*{_NOUN})?\s*(?P<percent>%)?""",
  re.IGNORECASE | re.VERBOSE,
)
_HEADER = re.compile(
  r"(?P<name>.+?)\s*(?:[(\[]\s*(?:in\s+)?(?P<in>[^()\[\]]+?)\s*[)\]]"
  r"|(?:,\s*|\s+in\s+|_in_|\s*/\s*)(?P<tail>[a-z0-9^ ]+)|[_ ](?P<word>[a-z]+))",
  re.IGNORECASE,
)
_POWER = re.compile(r"[x*\u00d7]?\s*(?:1e|10\s*(?:\^|\*\*)\s*)\+?(\d{1,2})", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Column:
  """A column's cells as numbers.

  Attributes:
    values: [n] float64, nan where a cell is missing or is no number.
    own_unit: [n] bool, cells that carry a unit of their own ("1.4B"), already multiplied by it.
    units: those units' factors, in order of appearance.
    remarks: what was read in an unusual way.
  """

  values: np.ndarray
  own_unit: np.ndarray
  units: tuple[float, ...] = ()
  remarks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Cell:
  sign: float
  mantissa: str  # digits and marks only
  grouped: bool  # groups of digits stood apart by blanks or apostrophes
  exponent: int | None
  factor: float  # of the cell's unit, 1 without one
  has_unit: bool
  percent: bool
  spread: bool  # "3.21 +- 0.02"

  @property
  def mark(self) -> str | None:
    """The decimal mark: "point", "comma", "either" where two readings are possible, None without one.

    Raises ValueError on what is no number under any reading.
    """
    m = self.mantissa
    marks = [c for c in m if c in ".,"]
    if not marks:
      return None
    named = {".": "point", ",": "comma"}
    other = {".": "comma", ",": "point"}
    if len(set(marks)) == 2:
      last = marks[-1]
      if marks.count(last) > 1 or self.grouped or not _is_grouped(m.rsplit(last, 1)[0], marks[0]):
        raise ValueError(m)
      return named[last]
    if len(marks) > 1:
      if self.grouped or not _is_grouped(m, marks[0]):
        raise ValueError(m)
      return other[marks[0]]
    head, tail = m.split(marks[0])
    sure = self.grouped or len(tail) != 3 or not head or head.startswith("0") or len(head) > 3
    if sure or (self.exponent is not None and len(head) == 1):
      return named[marks[0]]
    return "either"

  def value(self, decimal: str) -> float:
    """The number where `decimal` ("point" or "comma") is the mark. Raises ValueError if it is none."""
    mark = MARKS[decimal]
    other = "," if mark == "." else "."
    whole, _, part = self.mantissa.partition(mark)
    if other in part or (other in whole and (self.grouped or not _is_grouped(whole, other))):
      raise ValueError(self.mantissa)
    digits = f"{whole.replace(other, '')}.{part}"
    number = self.sign * float(f"{digits}e{self.exponent or 0}")
    return number * self.factor / (100 if self.percent else 1)


def _is_grouped(text: str, mark: str) -> bool:
  """Whether `mark` stands between thousands: 1,234,567, or 12,34,567 as in India."""
  m = re.escape(mark)
  if re.fullmatch(rf"\d{{1,3}}({m}\d{{3}})+", text):
    return True
  return mark == "," and re.fullmatch(r"\d{1,2}(,\d{2})+,\d{3}", text) is not None


def _untypeset(text: str) -> str:
  """A cell without quotes and typography: unicode minus, superscripts, LaTeX, bold, full-width digits."""
  powers = lambda m: "^" + unicodedata.normalize("NFKC", m[0]).replace("\u2212", "-")
  text = _SUPERSCRIPT.sub(powers, text).replace("^^", "^")
  for old, new in (
    ("\\times", "x"), ("\\cdot", "x"), ("\\,", " "), ("\\%", "%"), ("{", ""), ("}", ""), ("\\pm", "\u00b1"),
  ):  # fmt: skip
    text = text.replace(old, new) if old in text else text
  if not text.isascii():
    text = "".join(c if c in _SPACES else unicodedata.normalize("NFKC", c) for c in text)
  text = re.sub(r"^[\u2212\u2012\u2013\ufe63](?=\s*\d)", "-", text.strip(" \t\"'$~*`\u2248\ufeff"))
  return text.replace("\u2212", "-").strip(" \t\"'$~*`\u2248")


def _cell(cell: object) -> _Cell | float | None:
  """A cell taken apart; a float where it is a number already, None where missing or no number."""
  if cell is None or isinstance(cell, bool | np.bool_ | list | dict):
    return None
  if isinstance(cell, int | float | np.number):
    try:
      return float(cell)
    except OverflowError:
      return None
  text = str(cell)
  if len(text) > 80:
    return None
  text = _untypeset(text)
  if text.lower() in MISSING:
    return None
  spread = re.fullmatch(r"(.*\d[^\u00b1]*?)\s*(?:\u00b1|\+/?-)\s*[\d.,]+(.*)", text)
  if spread:
    text = spread[1] + spread[2]
  found = _CELL.fullmatch(text)
  if not found:
    return None
  sign = -1.0 if found["sign"] == "-" else 1.0
  unit = found["unit"]
  factor, percent = UNITS[unit.lower()] if unit else 1.0, found["percent"] is not None
  if found["base"]:
    mantissa, exponent, grouped = "1", int(found["power"]), False
    if found["base"] == "2":
      mantissa, exponent = repr(2 ** min(max(exponent, 0), 300)), None if exponent >= 0 else 0
      if found["power"].startswith("-"):
        return sign * 2.0 ** int(found["power"])
  else:
    mantissa = found["mantissa"].strip(_SPACES).replace("_", "")
    grouped = any(c in _SPACES for c in mantissa)
    if grouped:
      whole = re.split(r"[.,]", mantissa, maxsplit=1)[0]
      if not re.fullmatch(rf"\d{{1,3}}([{_SPACES}]\d{{3}})+|\d+", whole):
        return None
      mantissa = re.sub(rf"[{_SPACES}]", "", mantissa)
    exponent = found["exp"] or found["ten"]
    exponent = None if exponent is None else int(exponent)
  out = _Cell(sign, mantissa, grouped, exponent, factor, bool(unit), percent, bool(spread))
  try:
    _ = out.mark
  except ValueError:
    return None
  return out


def marks_of(cells: Iterable) -> dict[str, tuple[int, str]]:
  """{"point" | "comma" | "either": (index, text) of the first cell that shows it}."""
  found = {}
  for i, cell in enumerate(cells):
    parsed = _cell(cell) if isinstance(cell, str) else None
    if isinstance(parsed, _Cell) and parsed.mark:
      found.setdefault(parsed.mark, (i, cell.strip()))
  return found


def decimal_of(columns: Iterable[tuple[Sequence, bool]], delimiter: str) -> str | None:
  """The decimal mark of a whole file: "point", "comma", "mixed", or None where nothing shows it.

  `columns`: (cells, whether they are losses, so that "3,214" is no 3214). Only columns of numbers count.
  Where no cell decides ("default"), a file that is not cut at semicolons has points.
  """
  marks = set()
  for column, is_loss in columns:
    texts = [c for c in column if isinstance(c, str) and _untypeset(c).lower() not in MISSING]
    read = [_cell(c) for c in texts]
    if texts and sum(r is not None for r in read) > 0.5 * len(texts):
      shown = {r.mark for r in read if isinstance(r, _Cell)}
      if is_loss and shown & {"point", "comma", "either"} == {"either"}:
        shown = {
          "comma" if "," in r.mantissa else "point" for r in read if isinstance(r, _Cell) and r.mark
        }
      marks |= shown & {"point", "comma"}
  if len(marks) == 2:
    return "mixed"
  if marks:
    return marks.pop()
  return None if delimiter == ";" else "default"


def numbers(
  cells: Sequence,
  name: str = "",
  *,
  decimal: str | None = None,
  file_decimal: str | None = "default",
  largest: float | None = None,
) -> Column:
  """A column as numbers.

  Args:
    cells: texts, or numbers as JSON and parquet hold them.
    name: the column, for errors.
    decimal: "point" or "comma"; None: what the cells show.
    file_decimal: what `decimal_of` says of the file, for a column that does not show it itself.
    largest: no value of this column can be above, so a reading that is, is none.

  Raises:
    ValueError: cells that contradict each other, or may be read in two ways; names --decimal.
  """
  parsed = [_cell(c) for c in cells]
  seen = marks_of(cells)
  chosen, why = decimal, ""
  flag = "say which with --decimal point or --decimal comma"
  if decimal is None and {"point", "comma"} <= set(seen):
    (i, comma), (j, point) = seen["comma"], seen["point"]
    raise ValueError(
      f"{name!r}: {comma!r} (row {i + 1}) has a decimal comma, {point!r} (row {j + 1}) a decimal "
      f"point; {flag}"
    )
  if decimal is None:
    chosen = next((m for m in ("point", "comma") if m in seen), None)
  if chosen is None and "either" in seen:
    i, text = seen["either"]
    own = "point" if "." in text else "comma"
    both = {m: parsed[i].value(m) for m in MARKS}
    if largest is not None and max(both.values()) > largest:
      chosen = own
    elif file_decimal in MARKS:
      chosen, why = file_decimal, ", as in the file's other columns"
    elif file_decimal == "default" and own == "point":
      chosen = own
    else:
      raise ValueError(
        f"{name!r}: {text!r} (row {i + 1}) may be {both['point']:.6g} or {both['comma']:.6g}; {flag}"
      )
  chosen = chosen or "point"
  values, own_unit, units = np.full(len(parsed), np.nan), np.zeros(len(parsed), bool), {}
  remarks, unread, spread, percent = [], [], False, False
  for i, cell in enumerate(parsed):
    if not isinstance(cell, _Cell):
      values[i] = np.nan if cell is None else cell
      continue
    try:
      values[i] = cell.value(chosen)
    except (ValueError, OverflowError):
      unread.append(i + 1)
      continue
    own_unit[i] = cell.has_unit or cell.percent
    if own_unit[i]:
      units[cell.factor / (100 if cell.percent else 1)] = None
    spread, percent = spread or cell.spread, percent or cell.percent
  used = {m for c in parsed if isinstance(c, _Cell) for m in c.mantissa if m in ".,"}
  if chosen == "comma" and "," in used:
    remarks.append(f"a comma was read as the decimal point{why}")
  thousands = {"comma": ".", "point": ","}[chosen]
  if thousands in used:
    word = {"comma": "points", "point": "commas"}[chosen]
    remarks.append(f"{word} were read as thousands separators{why}")
  if set(units) - {0.01}:
    remarks.append("suffixes K M G B T were read as 1e3 .. 1e12")
  if percent:
    remarks.append("percent signs were read as hundredths")
  if spread:
    remarks.append("what stands after +- was left out; give it as a column with --se")
  if unread:
    remarks.append(
      f"no numbers with a decimal {chosen}: {number_of(len(unread), 'cell')}, such as row {unread[0]}'s"
    )
  values[~np.isfinite(values)] = np.nan
  return Column(values, own_unit, tuple(units), tuple(remarks))


def number(text: object) -> float:
  """One cell as a number with a decimal point unless it shows another; nan where it is none."""
  cell = _cell(text)
  if not isinstance(cell, _Cell):
    return np.nan if cell is None else cell
  try:
    return cell.value("point" if cell.mark in (None, "either") else cell.mark)
  except (ValueError, OverflowError):
    return np.nan


def split_unit(name: str) -> tuple[str, float]:
  """(name, factor) of a header: `Params (M)` is (`Params`, 1e6).

  >>> split_unit("Tokens [billions]"), split_unit("loss")
  (('Tokens', 1000000000.0), ('loss', 1.0))
  >>> split_unit("params_millions"), split_unit("FLOPs (10^18)"), split_unit("params, M")
  (('params', 1000000.0), ('FLOPs', 1e+18), ('params', 1000000.0))
  """
  found = _HEADER.fullmatch(name.strip())
  if found is None:
    return name, 1.0
  text = found["in"] or found["tail"] or found["word"]
  if found["word"] and text.lower() not in UNITS:
    return name, 1.0
  if found["word"] and len(text) == 1 and not text.isupper():  # "n_t" is a name, "params_M" a unit
    return name, 1.0
  try:
    return found["name"], _factor_of(text)
  except ValueError:
    return name, 1.0


def _factor_of(text: str) -> float:
  text = re.sub(rf"\s*\b(?:of\s+)?{_NOUN}$", "", text.strip(), flags=re.IGNORECASE) or text
  text = text.strip(" .")
  if text.lower() in UNITS:
    return UNITS[text.lower()]
  power = _POWER.fullmatch(_untypeset(text))
  if power is None:
    raise ValueError(text)
  return float(f"1e{power[1]}")


def factor(text: str) -> float:
  """A unit as typed: `1e9`, `M`, `billions`, `GFLOPs`.

  Raises:
    ValueError: neither a positive number nor a known word.
  """
  if text.strip().lower() in UNITS:
    return UNITS[text.strip().lower()]
  try:
    value = float(text)
  except ValueError:
    return _factor_of(text)
  if not (np.isfinite(value) and value > 0):
    raise ValueError(text)
  return value
