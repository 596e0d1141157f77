"""Ctrl-C and SIGTERM outside the training loop: one line and an exit code, no traceback of whatever ran."""

import contextlib
import os
import signal
import sys
import threading

STOPS = (signal.SIGINT, signal.SIGTERM)
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_listening = False


class Stopped(KeyboardInterrupt):
  """What a signal raises in a program's main, so that it closes what it has open."""

  def __init__(self, number: int = signal.SIGINT):
    super().__init__(number)
    self.number = signal.Signals(number)


def listen() -> None:
  """Ends this program at a signal in one line, without an exception: imports swallow them or die of them.

  Call it first of all. A signal that the parent ignores, as nohup does, stays ignored.
  """
  global _listening
  _listening = True
  _handle(_leave)


def begin() -> None:
  """From here on a signal raises Stopped, in a program that listens; in any other nothing changes."""
  if _listening:
    _handle(_raise)
    sys.unraisablehook = _again


def end() -> None:
  """A signal while the interpreter shuts down is one line again."""
  if _listening:
    _handle(_leave)
    sys.unraisablehook = sys.__unraisablehook__


def line(number: int) -> str:
  """What a stopped program says."""
  return f"{WORDS[signal.Signals(number)]}; nothing was lost: run the same command again"


def _handle(handler) -> None:
  for number in STOPS:
    if signal.getsignal(number) not in (signal.SIG_IGN, None):
      signal.signal(number, handler)


def _raise(number, frame):
  raise Stopped(number)


def _again(ignored) -> None:
  """A signal that came inside a finalizer, where exceptions are dropped, comes again a moment later."""
  if isinstance(ignored.exc_value, Stopped):
    threading.Timer(0.01, os.kill, (os.getpid(), ignored.exc_value.number)).start()
  else:
    sys.__unraisablehook__(ignored)


def _leave(number, frame):
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # closed, or being written
      stream.flush()
  os.write(2, (line(number) + "\n").encode())
  os._exit(128 + number)
