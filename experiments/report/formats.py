"""Numbers and formulas as readers of pages see them: on axes as text, in tables as markup."""

import html
import math
import re
from collections.abc import Callable, Sequence

SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "eta": "η", "eps": "ε"}


def scaled(value: float, letters: str = "kMGTPE") -> str:
  """Three digits and a letter for every factor of a thousand.

  >>> scaled(12_340_000), scaled(3e9), scaled(0.003)
  ('12.3M', '3G', '0.003')
  """
  for power, letter in reversed(list(enumerate(letters, start=1))):
    if abs(value) >= 0.9995 * 1000**power:
      return f"{value / 1000**power:.3g}{letter}"
  return f"{value:.3g}"


def short(value: float) -> str:
  """Parameters and tokens: 1.2M, 3B, 450k; 0.003 as it is.

  >>> short(1_500_000), short(0.003)
  ('1.5M', '0.003')
  """
  return scaled(value, "kMBT")


def size(value: float) -> str:
  """Bytes.

  >>> size(12_340_000)
  '12.3 MB'
  """
  text = scaled(value)
  number = text.rstrip("kMGTPE")
  return f"{number} {text[len(number) :]}B"


def duration(seconds: float) -> str:
  """Hours and minutes, minutes and seconds, or seconds.

  >>> duration(3720), duration(200), duration(12)
  ('1 h 02 min', '3 min 20 s', '12 s')
  """
  if not math.isfinite(seconds):
    return "?"
  if seconds >= 3600:
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
  if seconds >= 60:
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
  return f"{seconds:.0f} s"


def clock(seconds: float) -> str:
  """Time left, as a clock shows it.

  >>> clock(3725), clock(65)
  ('1:02:05', '1:05')
  """
  if not math.isfinite(seconds):
    return "?"
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def power(value: float) -> str:
  """10¹⁸ or 3×10¹⁸; numbers from 0.0001 to 9999 as they are.

  >>> power(3e18), power(1e18), power(0.5)
  ('3×10¹⁸', '10¹⁸', '0.5')
  """
  if value == 0 or 1e-4 <= abs(value) < 1e4 or not math.isfinite(value):
    return f"{value:.4g}"
  mantissa, exponent = f"{value:.2e}".split("e")
  tail = "10" + str(int(exponent)).translate(SUPERSCRIPTS)
  lead = f"{float(mantissa):.3g}"
  return tail if lead == "1" else f"{lead}×{tail}"


def alike(values: Sequence[float]) -> list[str]:
  """All with as many decimals as the one that needs most; a true minus sign.

  >>> alike([2, 2.5, -0.25])
  ['2.00', '2.50', '−0.25']
  """
  decimals = max((len(f"{v:.10g}".partition(".")[2]) for v in values), default=0)
  return [f"{v:.{min(decimals, 4)}f}".replace("-", "−") for v in values]


def number(value: float) -> str:
  """Four decimals below 10, four digits below 10,000, else a power of ten."""
  size = abs(value)
  if size >= 1e4 or 0 < size < 1e-3:
    return power(value).replace("-", "−")
  return (f"{value:.4f}" if size < 10 else f"{value:.4g}").replace("-", "−")


def percent(share: float, digits: int = 0) -> str:
  """95 %"""
  return f"{100 * share:.{digits}f} %".replace("-", "−")


def limits(pair: tuple[float, float], show: Callable = number) -> str:
  """[0.48, 0.55]"""
  return f'<span class="ci">[{show(pair[0])}, {show(pair[1])}]</span>'


def estimate(pair: tuple[float | None, tuple[float, float] | None], show: Callable = number) -> str:
  """A value with its interval, where there are such."""
  value, interval = pair
  if value is None:
    return "none"
  return show(value) if interval is None else f"{show(value)} {limits(interval, show)}"


def count(pair) -> str:
  """An estimate of parameters or tokens: 12.3M [10M, 15M]."""
  return estimate(pair, short)


def formula(text: str) -> str:
  """Markup of a formula in plain letters, with raised exponents and Greek letters.

  >>> formula("A / N^alpha")
  'A / N<sup>α</sup>'
  """
  inside = r"[^()]*(?:\([^()]*\)[^()]*)*"  # one level of brackets within the exponent's own
  markup = re.sub(rf"\^\(({inside})\)|\^(-?\w+)", r"<sup>\1\2</sup>", html.escape(text))
  for word, letter in GREEK.items():
    markup = re.sub(rf"(?<![a-zA-Z]){word}(?![a-zA-Z])", letter, markup)
  return re.sub(r"(?<=\w)_(\w)", r"<sub>\1</sub>", markup)
