"""Progress in the terminal: a line that is rewritten, or plain lines; a bar beside what is counted."""

import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def counted(items: Sequence[T], label: str | None) -> Iterable[T]:
  """The items in their order; a bar with a label and the time left stands on stderr if that is a terminal."""
  if label is None or not sys.stderr.isatty():
    return items
  from rich.console import Console
  from rich.progress import track

  return track(items, label, console=Console(stderr=True), transient=True)


class Progress:
  """A line that is rewritten in a terminal, plain lines (at most one every few seconds) elsewhere.

  `quiet` prints nothing: of several processes one speaks.
  """

  def __init__(self, every_seconds: float = 5.0, quiet: bool = False):
    self._quiet = quiet
    self._live = sys.stdout.isatty()
    self._pause = 0.1 if self._live else every_seconds
    self._last = -math.inf
    self._open = False

  def update(self, text: str, force: bool = False) -> None:
    if self._quiet or (not force and time.monotonic() - self._last < self._pause):
      return
    self._last = time.monotonic()
    if self._live:
      columns = os.get_terminal_size().columns
      print("\r\x1b[K" + text[: columns - 1], end="", flush=True)
      self._open = True
    else:
      print(text, flush=True)

  def line(self, text: str) -> None:
    """A line that stays."""
    if self._quiet:
      return
    if self._open:
      print("\r\x1b[K", end="")
    print(text, flush=True)
    self._open = False
