"""How a run ends that something stops from outside: no memory, no room on the disk, an error; in one line."""

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Sequence

from lm.config.errors import ConfigError, chain, first_line, no_room
from lm.config.schema import Config
from lm.devices import peers
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
    peers.on_end(lambda ended: end_runs(ended, list(OPEN), cfgs[0], plan))
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
  if not peers.take_over():
    time.sleep(peers.PATIENCE)  # another thread ends this process, as another process has ended
  ended = peers.broke(error)
  if peers.count() > 1:
    wait_no_more(runs, 0.0 if ended else peers.PATIENCE)
  if isinstance(error, ConfigError) or (ended and ended.code == 2):
    for run in runs:
      if run.last_saved:
        _end([run], "failed", first_line(error))
      else:
        run.abandon()
    raise ended or error
  if isinstance(error, KeyboardInterrupt):
    _end(runs, "interrupted", None)
    raise error
  for run in runs:
    _wait(run)
  saved = {step for run in runs for step in rundir.checkpoint_steps(run.workdir)}
  last = f"step {max(saved)}" if saved else "the beginning"
  # A full disk first: TensorStore calls that RESOURCE_EXHAUSTED too.
  if ended:
    reason = str(ended)
    if "the same command" not in reason:
      reason += f"; the same command in all of them goes on from {last}"
    _end(runs, "interrupted" if ended.code > 128 else "failed", reason)
    raise ended from error
  if no_room(error):
    reason = f"no room left on the disk; free some, and the same command goes on from {last}"
  elif _no_memory(error):
    reason = f"out of memory: {room.would_fit(cfg, plan)}"
  else:
    _end(runs, "failed", f"{type(error).__name__}: {first_line(error)}")
    raise error
  _end(runs, "failed", reason)
  peers.say_end(1, reason)
  for run in runs:
    print(f"{run.workdir}: {reason}", file=sys.stderr)
  return 1


def wait_no_more(runs: Sequence[RunWriter], seconds: float) -> None:
  """Waits some time for checkpoints that are being written; after it nothing waits for them.

  All processes write them together: where one is gone, the last one is never whole.
  """
  until = time.monotonic() + seconds
  for run in runs:
    waiting = threading.Thread(target=_wait, args=(run,), daemon=True)
    waiting.start()
    waiting.join(max(until - time.monotonic(), 0.0))
    run.checkpoints.let_go()


def _wait(run: RunWriter) -> None:
  with contextlib.suppress(Exception):  # it may be what failed
    run.checkpoints.wait()


def _end(runs: Sequence[RunWriter], status: str, reason: str | None) -> None:
  for run in runs:
    with contextlib.suppress(Exception):  # a full disk takes no last words either
      run.end(status, reason)


def _no_memory(error: BaseException) -> bool:
  """Whether the error, or one that it comes from, says that memory is out."""
  said = (str(each) for each in chain(error))
  return isinstance(error, MemoryError) or any(w in text for text in said for w in NO_MEMORY_WORDS)
