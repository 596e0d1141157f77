"""The record of a run: metrics.jsonl is the truth.

metrics.jsonl holds what is reproducible, one object a logged step, so that an interrupted and resumed run
leaves the same bytes as an uninterrupted one. Wall-clock numbers go to perf.jsonl.
"""

import json
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping

from lm.config.errors import ConfigError, number_of
from lm.files import bad_line, json_number, read_lines
from lm.runs.metrics import check_metric
from lm.runs.mirror import Mirror
from lm.runs.mirrors import Mirrors

NAMES = ("metrics", "perf", "samples")  # files of a record, NAME.jsonl
SHOWN = 8  # steps said of a long list


class Recorder:
  """Writes one run's record.

  Args:
    workdir: the run directory; made if absent.
    start_step: lines of later steps are dropped: they belong to work that was not saved.
    mirror: gets what each line has, after it is written, or None.
  """

  def __init__(
    self, workdir: pathlib.Path, start_step: int, mirror: Mirror | Mirrors | None = None
  ):
    self._mirror = mirror
    for name in NAMES:
      _keep_until(workdir / f"{name}.jsonl", start_step)
    self._files = {
      name: open(workdir / f"{name}.jsonl", "a", encoding="utf-8")  # noqa: SIM115
      for name in NAMES
    }

  def metrics(self, step: int, progress: Mapping[str, float], metrics: Mapping[str, float]) -> None:
    """One line: step, then tokens and flops so far, then metrics; perf/ keys go to perf.jsonl."""
    for key in metrics:
      check_metric(key)
    record = {k: v for k, v in metrics.items() if not k.startswith("perf/")}
    perf = {k: v for k, v in metrics.items() if k.startswith("perf/")}
    if record:
      self._write("metrics", {"step": step, **progress, **record})
    if perf:
      self._write("perf", {"step": step, **perf})
    if self._mirror:
      self._mirror.log(step, {**{f"progress/{k}": v for k, v in progress.items()}, **metrics})

  def sample(self, step: int, prompt: str, text: str) -> None:
    """One line of samples.jsonl."""
    self._write("samples", {"step": step, "prompt": prompt, "text": text})
    if self._mirror:
      self._mirror.sample(step, prompt, text)

  def sync(self) -> None:
    """On disk when this returns; called before a checkpoint, so that none is ahead of its record."""
    for file in self._files.values():
      file.flush()
      os.fsync(file.fileno())

  def close(self) -> None:
    self.sync()
    for file in self._files.values():
      file.close()

  def _write(self, name: str, record: Mapping[str, object]) -> None:
    self._files[name].write(json.dumps({k: json_number(v) for k, v in record.items()}) + "\n")
    self._files[name].flush()


def check_record(workdir: pathlib.Path, step: int) -> None:
  """ConfigError for a damaged line among those up to `step`, which a run that goes on from there keeps."""
  for name in NAMES:
    _kept_lines(workdir / f"{name}.jsonl", step)


def missing_steps(
  records: Iterable[Mapping], step: int, log_every: Callable[[int], int], eval_every: int
) -> list[int]:
  """Steps up to `step` that were logged or evaluated, so often, and are not among the records.

  Args:
    log_every: step -> log.every_steps when it was trained.
  """
  found = {record["step"] for record in records}
  due = (s for s in range(1, step + 1) if s % log_every(s) == 0 or s % eval_every == 0)
  return [s for s in due if s not in found]


def show_steps(steps: list[int]) -> str:
  """The first few of a list."""
  more = f" and {len(steps) - SHOWN} more" if len(steps) > SHOWN else ""
  return ", ".join(map(str, steps[:SHOWN])) + more


def _kept_lines(path: pathlib.Path, step: int) -> tuple[list[dict], int]:
  """(records up to `step`, damaged lines after the last of them)."""
  lines, end = read_lines(path), 0
  for number, record in enumerate(lines, start=1):
    if isinstance(record, dict) and isinstance(record.get("step"), int) and record["step"] <= step:
      end = number
  kept = []
  for number, record in enumerate(lines[:end], start=1):
    if isinstance(record, str) or not isinstance(record.get("step"), int):
      why = record if isinstance(record, str) else "it has no step"
      raise ConfigError(bad_line(path, number, why))
    if record["step"] <= step:
      kept.append(record)
  return kept, sum(isinstance(record, str) for record in lines[end:])


def _keep_until(path: pathlib.Path, step: int) -> None:
  if not path.exists():
    return
  records, damaged = _kept_lines(path, step)
  if damaged:
    print(
      f"{path}: left out after step {step}: {number_of(damaged, 'damaged line')}", file=sys.stderr
    )
  kept = "".join(json.dumps(r) + "\n" for r in records).encode()
  if kept != path.read_bytes():
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(kept)
    os.replace(temporary, path)
