"""Traces of chosen steps with jax.profiler."""

import contextlib
import math
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax

from lm.config.errors import ConfigError
from lm.training.clock import Clock


class Profile:
  """Traces chosen steps with jax.profiler, for xprof (TensorBoard) and Perfetto.

  The trace is folder/plugins/profile/<time>/: *.xplane.pb for xprof, *.trace.json.gz for
  ui.perfetto.dev. The step before is done when it begins, the last one when it ends.

  Args:
    steps: the first and the last one; None = no trace.
    folder: made when the trace begins.
    clock: does not count the trace's beginning and end as training.
    say: takes the line that tells where the trace is, or that there is none.
  """

  def __init__(
    self,
    steps: tuple[int, int] | None,
    folder: pathlib.Path,
    clock: Clock,
    say: Callable[[str], None],
  ):
    self._first, self._last = steps or (math.inf, -math.inf)
    self._folder, self._clock, self._say = folder, clock, say
    self._wanted, self._open = steps is not None, False

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._open:  # the run ended early
      self._close()
    elif self._wanted:
      self._say(f"profile={self._first}:{self._last}: none of these steps ran; nothing was traced")

  def begin(self, step: int, before: Any) -> contextlib.AbstractContextManager:
    """What a step is dispatched under; `before` is waited for where the trace begins."""
    if self._first <= step <= self._last and not self._open:
      jax.block_until_ready(before)
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # a trace holds a million events: the device's must find room
      with self._clock.away():
        jax.profiler.start_trace(str(self._folder), profiler_options=options)
      self._open = True
    if not self._open:
      return contextlib.nullcontext()
    return jax.profiler.StepTraceAnnotation("train", step_num=step)

  def end(self, step: int, result: Any) -> None:
    """Call when a step has been dispatched."""
    if self._open and step >= self._last:
      jax.block_until_ready(result)
      self._close()

  def _close(self):
    with self._clock.away():
      jax.profiler.stop_trace()
    self._open = self._wanted = False
    self._say(f"profile     {self._folder}, for ui.perfetto.dev: plugins/profile/*/*.trace.json.gz")


def read_profile(text: str, total: int) -> tuple[int, int]:
  """(first, last) steps of `--profile FIRST:LAST` in a run of `total` steps.

  >>> read_profile("10:13", 100)
  (10, 13)
  """
  last_try = min(13, total)
  remedy = f"use {min(10, last_try)}:{last_try}"
  if not re.fullmatch(r"\d+:\d+", text):
    raise ConfigError(f"profile={text}: must be the first and the last step, FIRST:LAST; {remedy}")
  first, last = map(int, text.split(":"))
  if not 1 <= first <= last <= total:
    raise ConfigError(f"profile={text}: must be steps of the run, 1 to {total}, in order; {remedy}")
  return first, last
