"""Trains what an experiment lacks: decides which runs to start, and follows them to their ends.

A run is done, or it is started; a run that was stopped goes on from its last checkpoint, because
train.py does. Where and how jobs run is the back end's business (jobs.py: BackEnd).
"""

import dataclasses
import signal
import time
from collections.abc import Callable, Mapping, Sequence

from experiments.launch import backends, locks
from experiments.launch.jobs import (
  BackEnd,
  Job,
  State,
  Ticket,
  keep_ticket,
  last_line,
)
from experiments.ledger.rows import read_row
from experiments.sweep.sweep import Member
from lm.files import write_json
from lm.runs.lock import writer
from lm.runs.rundir import check_same_run

ENDED = ("done", "failed", "interrupted")  # what train.py itself writes at the end


@dataclasses.dataclass
class Working:
  """A job at work."""

  job: Job
  ticket: Ticket
  queued: bool = False


def launch(
  wanted: Callable[[Mapping[str, dict]], Sequence[Member]],
  backend: BackEnd,
  watch: Callable[[Sequence[Member], Mapping[str, dict], Sequence[Working], bool], None],
  retry: bool = False,
  begin: Callable[[Member], None] = lambda member: None,
  wait: bool = True,
  predict: Callable[[Member], float | None] = lambda member: None,
  where: Callable[[Member], str] = lambda member: str(member.workdir),
) -> tuple[dict[str, dict], int]:
  """Trains until nothing is wanted that is not done, failed, unreadable or already tried.

  Args:
    wanted: the runs there should be, most urgent first, given the rows so far {name: row}: a plain
      sweep always wants all of its runs, successive halving more of them as runs end.
    backend: what starts jobs.
    watch: called at every look with (members, rows, working, asked to stop).
    retry: start failed runs once more.
    begin: called with a run that is about to start, its lock held: may put a checkpoint there.
    wait: until all have ended; if not, until there is no room for another job.
    predict: the seconds that a run should take, where a back end does not know; None = unknown.
    where: a run's directory, path or URL; what the launcher itself writes is in member.workdir.

  Returns:
    ({name: row} of every run, the number of the signal that interrupted it or 0). Jobs of a back end that
    does not stay with its launcher go on after an interrupt.

  Raises:
    ConfigError: a run directory holds another run, or cannot be locked.
  """
  rows: dict[str, dict] = {}
  tried: set[str] = set()
  working: list[Working] = []
  known: dict[str, Member] = {}
  with _Interrupt(backend, working) as interrupt:
    while True:
      _collect(backend, working, rows, where)
      members = wanted(rows)
      while new := [m for m in members if m.name not in known]:
        for member in new:
          known[member.name] = member
          rows[member.name] = read_row(where(member), member.name)
          if rows[member.name]["status"] != "unreadable":
            check_same_run(member.workdir, member.cfg)
        members = wanted(rows)  # what has been done before may ask for more
      todo = [m for m in members if _startable(m, rows, tried, retry)]
      elsewhere = []
      if backend.room(len(working)) > 0 and not interrupt.count:
        elsewhere = _start(todo, backend, working, tried, rows, begin, predict, where)
      watch(list(known.values()), rows, working, interrupt.count > 0)
      if not working and (interrupt.count or not elsewhere):
        rows.update(_now(known, rows, tried, where))
        return rows, interrupt.number
      if not backend.stays and (interrupt.count or not wait):
        return rows, interrupt.number
      time.sleep(backend.every)


def _collect(
  backend: BackEnd, working: list[Working], rows: dict[str, dict], where: Callable[[Member], str]
) -> None:
  """Takes jobs that have ended out of `working`, and their runs' ends into `rows`."""
  states = backend.poll([w.ticket for w in working])
  for work, state in zip(list(working), states, strict=True):
    work.queued = state.status == "queued"
    if state.status == "ended":
      working.remove(work)
      rows.update({m.name: _after(m, work.job, state, where(m)) for m in work.job.members})
    elif not backend.stays:
      status = "queued" if work.queued else "running"
      rows.update({m.name: {**rows[m.name], "status": status} for m in work.job.members})


def _startable(member: Member, rows: Mapping[str, dict], tried: set[str], retry: bool) -> bool:
  status = rows[member.name]["status"]
  if member.name in tried or status in ("done", "unreadable"):
    return False
  return status != "failed" or retry


def _start(todo, backend, working, tried, rows, begin, predict, where) -> list[Member]:
  """Fills the room there is; returns the runs that another process is training."""
  elsewhere, mine, found = [], [], {}
  for member in todo:
    lock = locks.take(member.workdir)
    if lock is None:
      elsewhere.append(member)
      rows[member.name] = _held(member, where)
      continue
    try:
      ticket = backends.live_ticket(member.workdir)
      if ticket is None:
        begin(member)
    finally:
      lock.release()
    if ticket is not None:  # an earlier launcher left it at work
      if ticket.on == backend.name:
        found.setdefault(ticket, []).append(member)
      else:
        elsewhere.append(member)
        rows[member.name] = {**rows[member.name], "status": "running"}
      continue
    fresh = read_row(where(member), member.name)  # another launcher may have ended it
    rows[member.name] = fresh
    if fresh["status"] not in ("done", "unreadable"):
      mine.append(member)
  jobs = backend.jobs(mine)[: backend.room(len(working))]
  fresh = _submit(jobs, backend, predict)
  for ticket, members in found.items():
    job = Job(tuple(members), (), members[0].workdir / "log.txt")
    fresh.append(Working(job, ticket, queued=True))
  for work in fresh:
    working.append(work)
    tried.update(m.name for m in work.job.members)
    now = {"status": "running" if backend.stays else "queued", "reason": None}
    rows.update({m.name: {**rows[m.name], **now} for m in work.job.members})
  return elsewhere


def _held(member: Member, where: Callable[[Member], str]) -> dict:
  """The row of a run that another process holds, such as one that outlived its launcher."""
  who = writer(member.workdir)
  reason = f"trained by {who}, of another launcher" if who else "held by another launcher"
  return {**read_row(where(member), member.name), "status": "running", "reason": reason}


def _now(
  known: Mapping[str, Member],
  rows: Mapping[str, dict],
  tried: set[str],
  where: Callable[[Member], str],
) -> dict[str, dict]:
  """The rows, as they are by now, of runs that were being trained by others when they were last looked at."""
  found = {}
  for name, member in known.items():
    if name in tried or rows[name]["status"] != "running":
      continue
    if (lock := locks.take(member.workdir)) is None:
      found[name] = _held(member, where)
      continue
    lock.release()
    if backends.live_ticket(member.workdir) is None:
      found[name] = read_row(where(member), name)
  return found


def _submit(
  jobs: Sequence[Job], backend: BackEnd, predict: Callable = lambda member: None
) -> list[Working]:
  """Submits jobs, their runs' locks held; without those of which another process has just taken one."""
  free, held = [], []
  for job in jobs:
    taken = [locks.take(m.workdir) for m in job.members]
    if None in taken:
      for lock in filter(None, taken):
        lock.release()
      continue
    free.append(job)
    held.append(taken)
    for member in job.members:
      (member.workdir / "launch.json").unlink(missing_ok=True)
    for path, content in job.files.items():
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(content, encoding="utf-8")
  if not free:
    return []
  tickets = []
  for job, ticket in zip(free, backend.submit(free, held), strict=True):
    seconds = [predict(member) for member in job.members]
    if ticket.predicted is None and None not in seconds:
      ticket = ticket._replace(predicted=sum(seconds))
    tickets.append(ticket)
  for job, ticket, taken in zip(free, tickets, held, strict=True):
    for member in job.members:
      keep_ticket(member.workdir, ticket)
    if not (backend.stays and taken[0].descriptor is None):  # a soft lock is the launcher's to hold
      for lock in taken:
        lock.release()
  return [Working(job, ticket) for job, ticket in zip(free, tickets, strict=True)]


def _after(member: Member, job: Job, state: State, where: str) -> dict:
  """The row of a run whose job has ended; launch.json says what train.py could not."""
  row = read_row(where, member.name)
  if row["status"] in ENDED or row["status"] == "unreadable":
    return row
  code = state.code
  if code in (-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM):
    begun = "at once; run it again and it goes on from its last checkpoint"
    reason = begun if row.get("step") else "before it trained; run it again and it goes on"
    status = "interrupted"
  elif code is None or code < 0 or code > 128:
    name = state.reason or (code and _signal_name(code)) or "its back end"
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    status, reason = "stopped", f"killed by {name}{hint}; run it again and it goes on"
  else:
    status, reason = "failed", last_line(job.log) or f"exit code {code}"
  write_json(member.workdir / "launch.json", {"status": status, "reason": reason, "exit": code})
  return {**row, "status": status, "reason": reason}


def _signal_name(code: int) -> str:
  """SIGKILL from -9, or from 137 as a shell gives it."""
  number = -code if code < 0 else code - 128
  return signal.Signals(number).name if number in set(signal.Signals) else f"exit code {code}"


class _Interrupt:
  """Passes SIGINT and SIGTERM on to jobs that end with the launcher, and counts them."""

  def __init__(self, backend: BackEnd, working: list[Working]):
    self.count = self.number = 0
    self._backend, self._working = backend, working

  def __enter__(self):
    self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _handle(self, number, frame):
    self.count += 1
    self.number = self.number or number
    if self._backend.stays:
      for work in self._working:
        self._backend.cancel(work.ticket)
