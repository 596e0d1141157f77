"""Prints the stacks of all threads on stderr when a step takes too long; the run goes on."""

import contextlib
import faulthandler
import math
import sys
import threading
import time
from typing import IO


class Watchdog:
  """Prints the stacks of all threads where a step takes longer than `seconds`; None never does.

  The first step, which compiles, is not watched. `beat` says that a step has been begun.
  """

  def __init__(self, seconds: float | None, file: IO[str] | None = None):
    self._seconds, self._file = math.inf if seconds is None else seconds, file
    self._step, self._last, self._said = None, 0.0, True
    self._done = threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self) -> "Watchdog":
    if self._seconds < math.inf:
      self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
      self._thread.start()
    return self

  def __exit__(self, *_):
    self._done.set()
    if self._thread:
      self._thread.join()

  def beat(self, step: int) -> None:
    """Call when a step begins: restarts the timer."""
    is_first, self._step = self._step is None, step
    self._last, self._said = time.monotonic(), is_first

  def _watch(self) -> None:
    while not self._done.wait(min(self._seconds / 4, 10.0)):
      silent = time.monotonic() - self._last  # a wall clock may jump
      if self._said or silent < self._seconds:
        continue
      self._said = True
      file = self._file or sys.stderr
      print(
        f"step {self._step} has taken {silent:.0f} s, over train.hang_seconds={self._seconds:g}; the stacks "
        "of all threads:",
        file=file,
        flush=True,
      )
      with contextlib.suppress(Exception):  # stderr may be no file
        faulthandler.dump_traceback(file, all_threads=True)
