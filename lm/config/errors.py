"""Bad input: one line worded `key=value: the rule; the remedy`, and the rules that many keys share."""

import difflib
import errno
import math
import os
import re
import traceback
from collections.abc import Iterable, Iterator

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ROOM_WORDS = tuple(map(os.strerror, NO_ROOM))


class ConfigError(ValueError):
  """Bad input, worded `key=value: the rule; the remedy`. Programs print it and exit with code 2.

  Ends of lines inside a value are shown as \\n, so that the message is one line, and other control characters
  and lone surrogates as their numbers, so that no value moves a terminal's cursor and all can be written.
  """

  def __init__(self, text: object = ""):
    line = "\\n".join(str(text).splitlines())
    super().__init__(
      re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", lambda c: ascii(c[0])[1:-1], line)
    )


def first_line(error: BaseException) -> str:
  """The first line of an error's message, or the name of its type where the message is empty."""
  lines = str(error).strip().splitlines()
  return lines[0].strip()[:200] if lines else type(error).__name__


def where_raised(error: BaseException) -> str:
  """`NameError: name 'x' is not defined (my.py, line 3)`: an error's type, first line and place."""
  if isinstance(error, SyntaxError) and error.filename:
    name, line, text = error.filename, error.lineno, error.msg
  else:
    place = traceback.extract_tb(error.__traceback__)[-1]
    name, line, text = place.filename, place.lineno, first_line(error)
  return f"{type(error).__name__}: {text} ({os.path.basename(name)}, line {line})"


def chain(error: BaseException) -> Iterator[BaseException]:
  """The error and those that it comes from, the last one first."""
  seen: BaseException | None = error
  while seen is not None:
    yield seen
    seen = seen.__cause__ or seen.__context__


def no_room(error: BaseException) -> str:
  """The system's words where the error, or one that it comes from, says that a disk is full; else ""."""
  for each in chain(error):
    if isinstance(each, OSError) and each.errno in NO_ROOM:
      return os.strerror(each.errno)
    for words in NO_ROOM_WORDS:  # libraries have errors of their own, which quote the system's
      if words in str(each):
        return words
  return ""


def suggest(name: str, names) -> str:
  """'did you mean X?' for the closest name, else the list of names."""
  names = list(names)
  close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
  if not close:  # a key given without its section, or a slip inside a long key
    tails = {n.rsplit(".", 1)[-1]: n for n in names}
    close = [tails[t] for t in difflib.get_close_matches(name.rsplit(".", 1)[-1], tails, n=1)]
  if close:
    return f"did you mean {close[0]}?"
  if len(names) <= 20:
    return f"choose from {', '.join(names)}"
  if any("=" in n for n in names):  # of runs, whose points are those of numbers
    return f"choose from {', '.join(names[:10])} and {len(names) - 10} more"
  return f"choose from {', '.join(dict.fromkeys(n.split('.')[0] for n in names))}"


def number_of(n: int, noun: str, spec: str = "") -> str:
  """`1 run`, `2 runs`, `0 entries`: a count and what is counted, in the singular for one.

  Args:
    spec: how the number is written, such as "," for 10,240.
  """
  if n != 1:
    vowel = noun[-2:-1] in "aeiou"
    ending = (
      "ies"
      if noun.endswith("y") and not vowel
      else "es"
      if noun.endswith(("s", "x", "ch"))
      else "s"
    )
    noun = f"{noun[:-1] if ending == 'ies' else noun}{ending}"
  return f"{n:{spec}} {noun}"


def whole_number(text: str, most: int = 10**18) -> int | None:
  """The integer that a text of 1 to 18 digits spells; None for any other text, and above `most`."""
  found = int(text) if re.fullmatch("[0-9]{1,18}", text) else None
  return None if found is None or found > most else found


def is_unicode(text: str) -> bool:
  """Whether a text can be written in UTF-8.

  Not so lone surrogates: escapes in JSON may be such, and what is no UTF-8 on a command line becomes them.
  """
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def check_choice(key: str, value: str, options: Iterable[str]) -> None:
  """ConfigError unless `value` is one of `options`; the remedy is the nearest one."""
  options = tuple(options)
  if value not in options:
    close = difflib.get_close_matches(value, options, n=1, cutoff=0.4)
    remedy = f"did you mean {close[0]}?" if close else f"use {options[0]}"
    raise ConfigError(f"{key}={value}: must be one of {', '.join(options)}; {remedy}")


def check_divisible(key: str, value: int, divisor: int, what: str, least: int = 1) -> None:
  """ConfigError unless divisor divides value; names the nearest values, `least` or more, that would do."""
  if value % divisor:
    lower = value - value % divisor
    nearest = " or ".join(str(v) for v in (lower, lower + divisor) if v >= least)
    raise ConfigError(f"{key}={value}: must be divisible by {divisor} ({what}); use {nearest}")


def check_within(key: str, value: float, interval: str, example: str) -> None:
  """ConfigError unless the number lies in an interval such as "[0, 1)"; NaN lies in none."""
  low, high = (float(end) for end in interval[1:-1].split(","))
  above = value >= low if interval[0] == "[" else value > low
  below = value <= high if interval[-1] == "]" else value < high
  if above and below:
    return
  if high == math.inf:
    rule = f"at least {low:.10g}" if interval[0] == "[" else f"greater than {low:.10g}"
    rule += " and finite" if value == math.inf or value != value else ""
  else:
    rule = f"in {interval}"
  raise ConfigError(f"{key}={value}: must be {rule}; try {example}")
