"""Where runs go on: from the newest checkpoint that all of them have whole."""

import sys
from collections.abc import Sequence
from typing import Any

from lm.config.errors import ConfigError, first_line, number_of
from lm.devices import processes
from lm.runs import agreement
from lm.runs.writer import RunWriter
from lm.training.step import State


def restore_newest(runs: Sequence[RunWriter], shape: State) -> tuple[list[Any], int]:
  """(the state of each run, its step); ([], 0) where there is no checkpoint yet.

  A damaged checkpoint is named and set aside, never deleted, and the one before it is used.

  Args:
    runs: of one shape, at one step from here on.
    shape: ShapeDtypeStructs of one run's state.

  Raises:
    ConfigError: there are checkpoints, and all of them are damaged; they stay where they are. Or processes
      see different ones.
  """
  agreement.check_place(runs[0].workdir, runs[0].checkpoints.steps())
  steps = [set(run.checkpoints.steps()) for run in runs]
  shared = set.intersection(*steps)
  if not shared and any(steps) and processes.is_leader():
    at = {str(run.workdir): max(found) for run, found in zip(runs, steps, strict=True) if found}
    print(
      f"no step is in the checkpoints of all {len(runs)} runs ({at}): all begin at step 0; "
      "trained one by one they would go on",
      file=sys.stderr,
    )
  damaged: list[tuple[RunWriter, int, str]] = []
  for step in sorted(shared, reverse=True):
    found = [_restore(run, shape, step) for run in runs]
    bad = [(run, step, why) for run, (_, why) in zip(runs, found, strict=True) if why]
    damaged += bad
    if not bad:
      for run, at, why in damaged:
        line = run.set_aside(at, why)
        if processes.is_leader():
          print(f"{line}; going on from checkpoint {step}", file=sys.stderr)
      return [state for state, _ in found], step
  if damaged:
    run, at, why = damaged[0]
    others = f" and {number_of(len(shared) - 1, 'earlier one')}" if len(shared) > 1 else ""
    raise ConfigError(
      f"workdir={run.workdir}: checkpoint {at}{others} cannot be used ({why}); bring one back from a copy, "
      "or train again in another --workdir"
    )
  return [], 0


def _restore(run: RunWriter, shape: State, step: int) -> tuple[Any, str | None]:
  """(the state, None), or (None, what is wrong with the checkpoint)."""
  why = run.checkpoints.find_damage(step) if processes.is_leader() else None
  if processes.anywhere(why is not None):
    return None, why or "damaged"
  state, failure = None, None
  try:
    state = run.restore(shape, step)
  except Exception as error:
    if run.checkpoints.is_verifiable(step):
      raise  # its files are what was written: the fault is not theirs
    failure = f"cannot be read ({first_line(error)})"
  if processes.anywhere(failure is not None):
    return None, failure or "cannot be read"
  return state, None
