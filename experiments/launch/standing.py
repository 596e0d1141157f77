"""The status of runs that an external engine trains: queued, running, or lost.

A run's heartbeat is the newest of the files that a training process writes. A machine that is gone
leaves a run.json that says "running" for ever; the heartbeat tells.
"""

import datetime
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence

from experiments.launch import backends
from experiments.launch.jobs import State, Ticket, read_ticket
from experiments.ledger.rows import file_system
from lm.config.errors import ConfigError
from lm.devices.chips import find_chip

BEATS = ("perf.jsonl", "metrics.jsonl", "run.json")
LEAST_SILENCE = 900.0  # seconds: an evaluation, a checkpoint or a compilation is not a death
SILENT_RECORDS = 20  # so many times the usual time between two records


def heartbeat(workdir: str) -> float | None:
  """Seconds since 1970 of the newest sign of life in a run directory, path or URL; None if there is none."""
  fs, path = file_system(workdir)
  beats = [_modified(fs, f"{path}/{name}") for name in BEATS]
  return max((beat for beat in beats if beat is not None), default=None)


def silence_allowed(row: Mapping[str, object]) -> float:
  """Seconds that a run may be silent: LEAST_SILENCE, or SILENT_RECORDS records at its own pace."""
  every, step, seconds = (row.get(k) for k in ("log.every_steps", "step", "seconds"))
  if not (every and step and seconds):
    return LEAST_SILENCE
  return max(LEAST_SILENCE, SILENT_RECORDS * seconds / step * every)


def with_heartbeat(row: Mapping[str, object], now: float | None = None) -> dict[str, object]:
  """The row, with status "lost" where the run says it trains and has long been silent."""
  row = dict(row)
  if row["status"] != "running" or not row.get("path"):
    return row
  beat = heartbeat(str(row["path"]))
  silent = (now or time.time()) - beat if beat else 0.0
  if silent > silence_allowed(row):
    row["status"] = "lost"
    row["reason"] = f"silent for {_words(silent)}; run it again and it goes on from its checkpoint"
  return row


def with_job(row: Mapping[str, object], ticket: Ticket | None, state: State | None) -> dict:
  """The row, with what its job's engine says, and predicted beside actual time and cost.

  An engine is asked before the heartbeat is: a job that it says is at work, or queued again, is not lost.
  """
  row = dict(row)
  if ticket:
    row["on"] = ticket.on
    if ticket.predicted is not None:
      row["predicted"] = ticket.predicted
  if state and state.status != "ended" and row["status"] not in ("done", "failed"):
    row["status"], row["reason"] = state.status, state.reason
  elif row["status"] == "running":
    row = with_heartbeat(row)
  chip = find_chip(str(row.get("device") or ""))
  if chip and row.get("seconds") and chip.price is not None:
    hours = row["seconds"] * row["n_devices"] / 3600
    row["dollars"] = chip.price * hours
    if "predicted" in row:
      row["predicted_dollars"] = chip.price * row["predicted"] * row["n_devices"] / 3600
  return row


def look(
  rows: Sequence[Mapping[str, object]],
  folder: str,
  named: Callable[[Mapping[str, object]], Ticket | None] | None = None,
) -> tuple[list[dict], list[str]]:
  """Rows with how their jobs stand, and a sentence for each engine that does not answer.

  Args:
    rows: of an experiment's runs.
    folder: they lie in, a path or a URL.
    named: the ticket of a run whose back end keeps none in the run directory.
  """
  tickets = [named(row) if named else _local_ticket(folder, row) for row in rows]
  asked: dict[str, list[Ticket]] = {}
  open_ = [t for t, row in zip(tickets, rows, strict=True) if t and row["status"] != "done"]
  for ticket in dict.fromkeys(open_):
    asked.setdefault(ticket.on, []).append(ticket)
  states: dict[Ticket, State] = {}
  silent = []
  for on, group in asked.items():
    row = backends.BACKENDS.get(on)
    if row and row.ask:
      try:
        states |= dict(zip(group, row.ask(group), strict=True))
      except ConfigError as error:
        silent.append(str(error))
  pairs = zip(rows, tickets, strict=True)
  return [with_job(row, ticket, states.get(ticket)) for row, ticket in pairs], silent


def _local_ticket(folder: str, row: Mapping[str, object]) -> Ticket | None:
  if "://" in folder or row["status"] in ("stale", "unreadable"):
    return None
  return read_ticket(pathlib.Path(folder) / str(row["name"]))


def _modified(fs, path: str) -> float | None:
  """When a file was written, as its file system names it."""
  try:
    info = fs.info(path)
  except FileNotFoundError:
    return None
  for key in ("mtime", "updated", "LastModified", "last_modified", "created"):
    value = info.get(key)
    if isinstance(value, int | float):
      return float(value)
    if isinstance(value, datetime.datetime):
      return value.timestamp()
    if isinstance(value, str):
      return datetime.datetime.fromisoformat(value).timestamp()
  return None


def _words(seconds: float) -> str:
  return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"
