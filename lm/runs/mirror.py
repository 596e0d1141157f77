"""What a mirror of the record is: a run's numbers, sent elsewhere from a thread; it never stops a run."""

import os
import pathlib
import queue
import sys
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

from lm.config.command_line import leave_behind
from lm.config.errors import first_line
from lm.config.schema import LogConfig

PROJECT = "isoflop"  # where nothing names one


class About(NamedTuple):
  """The run that is mirrored.

  Args:
    cfg: the config's section `log`.
    workdir: the run directory.
    run_id: stays the same when a run is resumed, so that it goes on as one run elsewhere.
    start: step it goes on from, 0 at first; numbers of later steps are sent again.
    config: what a dashboard shows and filters by, nested.
    kind: what the run is for: train, or report of a sweep.
    tags: words that a dashboard groups runs by.
    better: {metric: lower | higher} of those whose best value counts beside the last one.
    watched: the one among them that the run is judged by; None if none is.
    name: shown there; "" = the name of the run directory.
  """

  cfg: LogConfig
  workdir: pathlib.Path
  run_id: str
  start: int
  config: Mapping
  kind: str = "train"
  tags: tuple[str, ...] = ()
  better: Mapping[str, str] = MappingProxyType({})
  watched: str | None = None
  name: str = ""


def project_of(cfg: LogConfig) -> str:
  """The dashboard's project: log.wandb_project, else that of the environment, else PROJECT."""
  return cfg.wandb_project or os.environ.get("WANDB_PROJECT") or PROJECT


class Sink(Protocol):
  """Where a mirror writes. Anything here may raise."""

  def log(self, step: int, metrics: Mapping[str, float | pathlib.Path]) -> None:
    """Numbers of a step, and pictures by the paths of their SVG files."""

  def sample(self, step: int, prompt: str, text: str) -> None:
    """A text that the model wrote after a step whose numbers were logged."""

  def close(self, exit_code: int, preempted: bool) -> None:
    """All is written; exit_code is 1 for a run that failed, preempted means that it goes on later."""


class Mirror:
  """Sends a run's record to a sink from its own thread.

  Nothing here raises or blocks the loop: the first failure is reported once on stderr, and from then on
  the mirror is silent.

  Args:
    name: said in front of what went wrong.
    open_sink: called in that thread; may raise, too.
  """

  def __init__(self, name: str, open_sink: Callable[[], Sink]):
    self.name = name
    self._queue = queue.Queue()
    self._thread = threading.Thread(target=self._work, args=(open_sink,), daemon=True)
    self._thread.start()

  def log(self, step: int, metrics: Mapping[str, float | pathlib.Path]) -> None:
    """Numbers, and pictures by the paths of their SVG files."""
    self._queue.put(("log", step, dict(metrics)))

  def sample(self, step: int, prompt: str, text: str) -> None:
    """A text that the model wrote."""
    self._queue.put(("sample", step, prompt, text))

  def close(self, exit_code: int = 0, timeout: float = 60.0, preempted: bool = False) -> None:
    """Waits for what is queued, at most `timeout` seconds; a preempted run is marked as one that goes on."""
    self._queue.put(("close", exit_code, preempted))
    self._thread.join(timeout)
    if self._thread.is_alive():
      print(f"{self.name}: still busy, left behind; metrics.jsonl is complete", file=sys.stderr)
      leave_behind(self.name)

  def _work(self, open_sink):
    try:
      sink = open_sink()
      what = ""
      while what != "close":
        what, *given = self._queue.get()
        getattr(sink, what)(*given)
    except Exception as error:
      print(
        f"{self.name}: {type(error).__name__}: {first_line(error)}; training goes on, metrics.jsonl is "
        "complete",
        file=sys.stderr,
      )
