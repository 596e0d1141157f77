"""Ctrl-C and SIGTERM outside the training loop: one line and an exit code instead of a traceback."""

import contextlib
import os
import signal
import sys
import threading

STOPS = (signal.SIGINT, signal.SIGTERM)
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_listening = False


class Stopped(KeyboardInterrupt):
  """Raised by a signal while a program's main runs, so that files and processes are closed on the way out."""

  def __init__(self, number: int = signal.SIGINT):
    super().__init__(number)
    self.number = signal.Signals(number)


def listen() -> None:
  """Until `begin`, SIGINT and SIGTERM print one line and exit; an exception could be swallowed by an import.

  Call it before other imports. A signal that the parent ignores, as nohup does, stays ignored.
  """
  global _listening
  _listening = True
  _handle(_leave)


def begin() -> None:
  """From now on a signal raises Stopped; does nothing unless `listen` was called."""
  if _listening:
    _handle(_raise)
    sys.unraisablehook = _again


def end() -> None:
  """From now on, while the interpreter shuts down, a signal prints one line and exits again."""
  if _listening:
    _handle(_leave)
    sys.unraisablehook = sys.__unraisablehook__


def line(number: int) -> str:
  """The line that a stopped program prints on stderr."""
  return f"{WORDS[signal.Signals(number)]}; nothing was lost: run the same command again"


def _handle(handler) -> None:
  for number in STOPS:
    if signal.getsignal(number) not in (signal.SIG_IGN, None):
      signal.signal(number, handler)


def _raise(number, frame):
  raise Stopped(number)


def _again(ignored) -> None:
  """Sends a signal again that was raised inside a finalizer, where Python drops exceptions."""
  if isinstance(ignored.exc_value, Stopped):
    threading.Timer(0.01, os.kill, (os.getpid(), ignored.exc_value.number)).start()
  else:
    sys.__unraisablehook__(ignored)


def _leave(number, frame):
  leave(128 + number, line(number))


def leave(code: int, last: str = "") -> None:
  """Ends the process at once, after what it has written and a last line on stderr."""
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # closed, or being written
      stream.flush()
  if last:
    os.write(2, (last + "\n").encode())
  os._exit(code)
