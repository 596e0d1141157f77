"""Signals that ask the training loop to stop."""

import signal


class StopSignal:
  """Turns SIGINT and SIGTERM into `asked`; a second one ends the process at once.

  >>> with StopSignal() as stop:
  ...   stop.asked
  False
  """

  def __init__(self):
    self.asked = False
    self.name = None
    self._before = {}

  @property
  def exit_code(self) -> int:
    """Exit code of a stopped run, 128 + the signal's number as in shells: 130 or 143.

    143 also where another process was told to stop and this one stops with it.
    """
    return 128 + (signal.Signals[self.name] if self.name else signal.SIGTERM)

  def __enter__(self):
    for number in (signal.SIGINT, signal.SIGTERM):
      self._before[number] = signal.signal(number, self._handle)
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _handle(self, number, frame):
    self.asked, self.name = True, signal.Signals(number).name
    signal.signal(number, signal.SIG_DFL)
