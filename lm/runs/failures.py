"""How a run ends that something stops from outside: no memory, no room on the disk, an error; in one line."""

import contextlib
import functools
import sys
from collections.abc import Callable, Sequence

from lm.config.errors import ConfigError, chain, first_line, no_room
from lm.config.schema import Config
from lm.plan.run_plan import Plan
from lm.runs import lock, room, rundir
from lm.runs.writer import OPEN, RunWriter

NO_MEMORY_WORDS = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory")


def guarded(train: Callable[..., int | None]) -> Callable[..., int]:
  """`train(cfgs, workdirs, data, plan, ...)` -> exit code, which leaves no run open and no lock held.

  Where it returns None, as runs went back to a checkpoint, it is called again; nothing of the call before is
  held in memory then.
  """

  @functools.wraps(train)
  def call(cfgs, workdirs, data, plan, *rest):
    try:
      while (code := train(cfgs, workdirs, data, plan, *rest)) is None:
        pass
      return code
    except BaseException as error:
      return end_runs(error, list(OPEN), cfgs[0], plan)
    finally:
      lock.release_all()

  return call


def end_runs(error: BaseException, runs: Sequence[RunWriter], cfg: Config, plan: Plan) -> int:
  """Ends the runs that are still open; returns the exit code.

  Args:
    error: what stopped them; raised again where a traceback is of use, and where nothing had begun.
    runs: open ones.
    cfg, plan: of the first run.
  """
  if isinstance(error, ConfigError):
    for run in runs:
      if run.last_saved:
        _end([run], "failed", first_line(error))
      else:
        run.abandon()
    raise error
  if isinstance(error, KeyboardInterrupt):
    _end(runs, "interrupted", None)
    raise error
  for run in runs:
    with contextlib.suppress(Exception):  # it may be what failed
      run.checkpoints.wait()
  saved = {step for run in runs for step in rundir.checkpoint_steps(run.workdir)}
  last = f"step {max(saved)}" if saved else "the beginning"
  # A full disk first: TensorStore calls that RESOURCE_EXHAUSTED too.
  if no_room(error):
    reason = f"no room left on the disk; free some, and the same command goes on from {last}"
  elif _no_memory(error):
    reason = f"out of memory: {room.would_fit(cfg, plan)}"
  else:
    _end(runs, "failed", f"{type(error).__name__}: {first_line(error)}")
    raise error
  _end(runs, "failed", reason)
  for run in runs:
    print(f"{run.workdir}: {reason}", file=sys.stderr)
  return 1


def _end(runs: Sequence[RunWriter], status: str, reason: str | None) -> None:
  for run in runs:
    with contextlib.suppress(Exception):  # a full disk takes no last words either
      run.end(status, reason)


def _no_memory(error: BaseException) -> bool:
  """Whether the error, or one that it comes from, says that memory is out."""
  said = (str(each) for each in chain(error))
  return isinstance(error, MemoryError) or any(w in text for text in said for w in NO_MEMORY_WORDS)
