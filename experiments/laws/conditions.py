"""Conditions on a table's rows: a small grammar, parsed and never evaluated as code.

    expression  := conjunction (OR conjunction)*
    conjunction := negation (AND negation)*
    negation    := NOT negation | "(" expression ")" | comparison
    comparison  := COLUMN ( = | == | != | < | <= | > | >= | ~ ) VALUE

A COLUMN is written as in the file, or in quotes or backticks; a VALUE in quotes, or bare up to the next
connective or closing bracket. Numbers compare as numbers ("1.4B" too), all else as text, which has no
order; ~ is a regular expression found anywhere in the cell. AND, OR and NOT may be written && || ! and,
where a column follows, in small letters. A missing cell equals only the empty text, and is neither above
nor below anything.
"""

import operator
import re
from collections.abc import Callable, Sequence

import numpy as np

from experiments.laws import cells

COMPARES = {"!=": operator.ne, "<=": operator.le, ">=": operator.ge, "==": operator.eq,
            "=": operator.eq, "<": operator.lt, ">": operator.gt, "~": None}  # fmt: skip
_SIGN = re.compile(r"\s*(!=|<=|>=|==|=|<|>|~)\s*")
_DEEPEST = 50
HOW = "must be COLUMN=TEXT for a table, or with != < <= > >= ~, joined by AND, OR, NOT and brackets"


def parse(
  text: str, header: Sequence[str], values: Callable, config: bool = False
) -> Callable[[int, dict], bool]:
  """`text` as a function of (index of a row, row) that says whether it meets the condition.

  Args:
    text: the condition.
    header: the columns there are.
    values: column -> [n] numbers, nan where a cell is none.
    config: texts are values of a config: None is a missing cell, and case does not count.

  Raises:
    ValueError: not of the grammar, an unknown column, or a number compared with what is none.
  """
  parser = _Parser(text, header, values, config)
  meets = parser.expression(0)
  if parser.at < len(text):
    parser.fail(f"cannot read {text[parser.at :]!r}")
  return meets


class _Parser:
  def __init__(self, text, header, values, config):
    self.text, self.values, self.config, self.at = text, values, config, 0
    self.header = sorted(header, key=len, reverse=True)

  def fail(self, why: str):
    raise ValueError(f"where={self.text}: {why}; {HOW}; for example set=train")

  def blanks(self):
    while self.at < len(self.text) and self.text[self.at].isspace():
      self.at += 1

  def word(self, pattern: str) -> bool:
    """Takes `pattern` if it comes next."""
    self.blanks()
    found = re.compile(pattern).match(self.text, self.at)
    if found:
      self.at = found.end()
    return found is not None

  def expression(self, depth):
    if depth > _DEEPEST:
      self.fail("too many brackets")
    some = [self.conjunction(depth)]
    while self.connective("OR", r"\|\|"):
      some.append(self.conjunction(depth))
    return some[0] if len(some) == 1 else lambda i, row: any(f(i, row) for f in some)

  def conjunction(self, depth):
    every = [self.negation(depth)]
    while self.connective("AND", "&&"):
      every.append(self.negation(depth))
    return every[0] if len(every) == 1 else lambda i, row: all(f(i, row) for f in every)

  def connective(self, name: str, sign: str) -> bool:
    self.blanks()
    if self.joins(self.at, name, sign):
      return self.word(rf"(?:{name}|{name.lower()})\b|{sign}")
    return False

  def joins(self, at: int, name: str, sign: str) -> bool:
    """Whether a connective stands at `at`: in capitals, as a sign, or in small letters before a column."""
    if re.compile(rf"{name}\b|{sign}").match(self.text, at):
      return True
    small = re.compile(rf"{name.lower()}\b\s*").match(self.text, at)
    if not small:
      return False
    after = re.compile(r"(?:\(|not\b|NOT\b|!\s*\()\s*").match(self.text, small.end())
    return after is not None or self.column_at(small.end()) is not None

  def negation(self, depth):
    if depth > _DEEPEST:
      self.fail("too many brackets")
    self.blanks()
    if not self.column_at(self.at):
      if self.word(r"NOT\b|not\b|!(?!=)"):
        inner = self.negation(depth + 1)
        return lambda i, row: not inner(i, row)
      if self.word(r"\("):
        inner = self.expression(depth + 1)
        if not self.word(r"\)"):
          self.fail("a closing bracket is missing")
        return inner
    return self.comparison()

  def column_at(self, at: int) -> tuple[str, int] | None:
    """(column, where its sign begins) of a comparison at `at`, of the columns the longest."""
    quoted = re.compile(r"([\"'`])(.*?)\1").match(self.text, at)
    if quoted and quoted[2] in self.header and _SIGN.match(self.text, quoted.end()):
      return quoted[2], quoted.end()
    for name in self.header:
      if name and self.text.startswith(name, at) and _SIGN.match(self.text, at + len(name)):
        return name, at + len(name)
    return None

  def comparison(self):
    found = self.column_at(self.at)
    if found is None:
      unknown = re.compile(r"\s*(.+?)\s*(?:!=|<=|>=|=|<|>|~)").match(self.text, self.at)
      if unknown is None:
        self.fail(f"no condition at {self.text[self.at :]!r}")
      from experiments.laws.columns import check_column

      check_column("where", unknown[1].strip("\"'`"), sorted(self.header))
      self.fail(f"no condition at {self.text[self.at :]!r}")
    column, end = found
    sign = _SIGN.match(self.text, end)
    self.at = sign.end()
    return self.compare(column, sign[1], self.value())

  def value(self) -> str:
    quoted = re.compile(r"([\"'])(.*?)\1").match(self.text, self.at)
    if quoted:
      self.at = quoted.end()
      return quoted[2]
    depth, start = 0, self.at
    while self.at < len(self.text):
      c = self.text[self.at]
      depth += (c == "(") - (c == ")")
      if depth < 0:
        break
      before = self.at == start or self.text[self.at - 1].isspace() or self.text[self.at - 1] == ")"
      ends = self.joins(self.at, "AND", "&&") or self.joins(self.at, "OR", r"\|\|")
      if depth == 0 and ends and (before or c in "&|"):
        break
      self.at += 1
    return self.text[start : self.at].strip()

  def compare(self, column: str, sign: str, wanted: str):
    if sign == "~":
      try:
        pattern = re.compile(wanted)
      except (re.error, RecursionError, OverflowError) as error:
        self.fail(f"{wanted!r} is no regular expression ({error})")
      return lambda i, row: pattern.search(text_of(row.get(column))) is not None
    number, holds = cells.number(wanted), COMPARES[sign]
    numbers, ordered = self.values(column), sign in ("<", "<=", ">", ">=")
    missing = wanted == "" or (self.config and wanted.lower() == "none")
    only = len(numbers) and np.isfinite(numbers).all()
    if not np.isfinite(number) and (ordered or (only and not missing)):
      self.fail(f"{column} {sign} needs a number, and {wanted!r} is none")
    same = str.lower if self.config else str
    wanted = "" if missing else same(wanted)

    def meets(i, row):
      if np.isfinite(number) and np.isfinite(numbers[i]):
        return bool(holds(numbers[i], number))
      return not ordered and bool(holds(same(text_of(row.get(column))), wanted))

    return meets


def text_of(cell: object) -> str:
  """A cell as text; missing ones are empty."""
  return "" if cell is None else str(cell).strip()
