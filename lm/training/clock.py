"""Timing of the training loop: tokens per second, MFU, time left; and where the time before it went."""

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm.devices import host

# This module is among the last that are imported.
_IMPORTED, _AGE = time.perf_counter(), host.process_age()


class Clock:
  """Training speed, without compilation, evaluation and saving, and the line that shows it.

  The first lap of a process holds the compilation and reports no speed but, of the first run of a process,
  what came before the first step: perf/start_imports, perf/start_data (data, plan and state) and
  perf/start_compile, in seconds.

  Args:
    total: steps of the run.
    tokens_per_step: over all stacked runs.
    flops_until: FLOPs of the first so many steps, in the exact convention and over all stacked runs; for
      the MFU.
    peak: FLOP/s of all devices; None where unknown, and there is no MFU then.
    unit: what is counted, in the plural.
  """

  _is_first = True  # of its process

  def __init__(
    self,
    total: int,
    tokens_per_step: float,
    flops_until: Callable[[int], float],
    peak: float | None,
    unit: str = "tokens",
  ):
    self._total = total
    self._tokens_per_step = tokens_per_step
    self._flops_until, self._peak, self._unit = flops_until, peak, unit
    self._born = time.perf_counter()
    self._start: dict[str, float] = {}
    if Clock._is_first and _AGE is not None:
      self._start = {"perf/start_imports": _AGE, "perf/start_data": self._born - _IMPORTED}
    Clock._is_first = False
    self._lap_start = None
    self._lap_step = 0
    self._away = 0.0  # seconds of this lap that were not training
    self._waited = 0.0  # seconds of this lap spent waiting for data
    self._all_tokens, self._all_seconds = 0, 0.0
    self._compiled = set()  # shapes of the batches that a step was called with
    self.tokens_per_sec = self.mfu = None  # of the last lap

  @contextlib.contextmanager
  def away(self):
    """Context manager: time inside it is not counted as training."""
    start = time.perf_counter()
    yield
    self._away += time.perf_counter() - start

  @contextlib.contextmanager
  def waiting(self):
    """Context manager: time inside it is counted as waiting for data (perf/data_wait)."""
    start = time.perf_counter()
    yield
    self._waited += time.perf_counter() - start

  @contextlib.contextmanager
  def calling(self, batch: Mapping[str, Any]):
    """The call of a step, which compiles where it has not met such shapes: time that is not training."""
    shapes = tuple(array.shape for array in batch.values())
    began = time.perf_counter()
    with contextlib.nullcontext() if shapes in self._compiled else self.away():
      yield
    if self._start and not self._compiled:
      self._start["perf/start_compile"] = time.perf_counter() - began
    self._compiled.add(shapes)

  def lap(self, step: int) -> dict[str, float]:
    """perf/ metrics since the last lap; call when the results of `step` have been fetched."""
    now = time.perf_counter()
    metrics = {"perf/seconds": now - self._born, **self._start}
    self._start = {}
    if self._lap_start is not None and step > self._lap_step:
      spent = max(now - self._lap_start - self._away, 1e-9)
      tokens = (step - self._lap_step) * self._tokens_per_step
      self._all_tokens, self._all_seconds = self._all_tokens + tokens, self._all_seconds + spent
      self.tokens_per_sec = tokens / spent
      metrics["perf/tokens_per_sec"] = self.tokens_per_sec
      metrics["perf/data_wait"] = self._waited / spent
      if self._peak:
        flops = self._flops_until(step) - self._flops_until(self._lap_step)
        metrics["perf/mfu"] = self.mfu = flops / spent / self._peak
    self._lap_start, self._lap_step, self._away, self._waited = now, step, 0.0, 0.0
    return metrics

  def average(self) -> float | None:
    """Tokens per second over all laps of this process; None before the second lap."""
    return self._all_tokens / self._all_seconds if self._all_seconds else None

  def line(self, step: int, name: str, losses: Sequence[float]) -> str:
    """`step 120/1000 | train/loss 3.142 | 12,345 tokens/s | 1:23 left`; the median of many runs."""
    finite = sorted(loss for loss in losses if math.isfinite(loss))
    parts = [f"step {step}/{self._total}"]
    parts.append(f"{name} {finite[len(finite) // 2]:.4f}" if finite else f"{name} not finite")
    if len(losses) > 1:
      parts[-1] += f" (median of {len(finite)} runs)"
    if self.tokens_per_sec:
      parts.append(f"{self.tokens_per_sec:,.0f} {self._unit}/s")
      if self.mfu is not None:
        parts.append(f"MFU {self.mfu:.1%}")
      left = (self._total - step) * self._tokens_per_step / self.tokens_per_sec
      parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left")
    return " | ".join(parts)
