"""Back end `local`: processes of this machine, a run each.

A process inherits its runs' locks and outlives a killed launcher; the next launcher waits for it.
"""

import os
import pathlib
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from experiments.launch import jobs as jobs_
from experiments.launch.jobs import Asked, Job, State, Ticket
from experiments.launch.locks import Lock
from experiments.launch.slots import Slot, find_devices, make_slots
from experiments.sweep.sweep import Member, devices_needed
from lm.addresses import is_address
from lm.config.errors import number_of
from lm.devices.host import with_large_pages

WORDS: dict[str, str] = {}  # it takes no words of its own
POLL = 0.25  # seconds between looks at the processes


class Local:
  """Processes on this machine's slots.

  Args:
    slots: as many processes at a time.
    make_jobs: runs to jobs.
  """

  name, stays = "local", True

  def __init__(self, slots: Sequence[Slot], make_jobs: Callable[[Sequence[Member]], list[Job]]):
    self.slots, self.jobs, self.every = slots, make_jobs, POLL
    self._work: dict[str, tuple[subprocess.Popen, int, Sequence[Lock]]] = {}

  def room(self, working: int) -> int:
    return len(self.slots) - working

  def submit(self, jobs: Sequence[Job], locks: Sequence[Sequence[Lock]]) -> list[Ticket]:
    tickets = []
    taken = {slot for _, slot, _ in self._work.values()}
    free = [i for i in range(len(self.slots)) if i not in taken]
    for job, slot, held in zip(jobs, free, locks, strict=False):
      inherited = [lock.descriptor for lock in held if lock.descriptor is not None]
      process = start_process(job, self.slots[slot], inherited)
      ticket = Ticket(self.name, str(process.pid), str(job.log), time.time())
      self._work[ticket.id] = (process, slot, held)
      tickets.append(ticket)
    return tickets

  def poll(self, tickets: Sequence[Ticket]) -> list[State]:
    states = []
    for ticket in tickets:
      code = self._work[ticket.id][0].poll()
      if code is not None:
        for lock in self._work.pop(ticket.id)[2]:
          lock.release()
      states.append(State("running") if code is None else State("ended", code))
    return states

  def cancel(self, ticket: Ticket) -> None:
    work = self._work.get(ticket.id)
    if work and work[0].poll() is None:
      os.kill(work[0].pid, signal.SIGINT)

  def logs(self, ticket: Ticket) -> str:
    return jobs_.last_attempt(pathlib.Path(ticket.log))

  def dry_run(self, members: Sequence[Member]) -> str:
    return describe(self.jobs(members), len(self.slots))


def make(asked: Asked, members: Sequence[Member]) -> Local:
  """A process a run."""
  needed = max(devices_needed(m.asked) for m in members)
  slots = make_slots(find_devices(), asked.workers, needed)[: len(members)]
  there = asked.folder if is_address(asked.folder) else None
  return Local(slots, lambda some: jobs_.local_jobs(some, asked.settings, there))


def start_process(job: Job, slot: Slot, locks: Sequence[int] = ()) -> subprocess.Popen:
  """The job's process, on the slot's devices and cores, with open files for it to hold."""
  job.log.parent.mkdir(parents=True, exist_ok=True)
  with open(job.log, "a", encoding="utf-8") as log:
    log.write(jobs_.start_line())
    log.flush()
    process = subprocess.Popen(
      job.command,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=subprocess.STDOUT,
      env={**with_large_pages(os.environ), "PYTHONUNBUFFERED": "1", **slot.env},
      pass_fds=locks,
      start_new_session=True,  # a terminal's Ctrl-C reaches it through us, once
    )
  if slot.cpus and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(process.pid, slot.cpus)  # before JAX makes its threads, which inherit it
  return process


def describe(jobs: Sequence[Job], n_slots: int) -> str:
  """The processes that jobs would be, one command a line."""
  n_runs = sum(len(job.members) for job in jobs)
  lines = [
    f"# {number_of(n_runs, 'run')} in {number_of(len(jobs), 'process')}, {n_slots} at a time on this machine"
  ]
  return "\n".join(lines + [shlex.join(job.command) for job in jobs])
