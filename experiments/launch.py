"""Trains what an experiment lacks, in processes of `python train.py`.

A run is done, or it is started; a run that was stopped goes on from its last checkpoint, because
train.py does. Every run directory holds a lock that its process inherits, so two launchers share an
experiment without training anything twice, and processes that outlive a killed launcher are waited
for.
"""

import dataclasses
import fcntl
import functools
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from experiments.rows import read_row
from experiments.sweep import REPO, Member, config_path, devices_needed
from lm.config import ConfigError
from lm.host import with_large_pages
from lm.log import write_json
from lm.resolve import TRACED, identity_fields
from lm.rundir import check_same_run

POLL = 0.25  # seconds between looks at the processes
ENDED = ("done", "failed", "interrupted")  # what train.py itself writes at the end
TPU_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}  # chips of one process, as a block
MAX_WORKERS = 8  # by default, where there are no accelerators: each needs about 1 GB


class Devices(NamedTuple):
  platform: str  # cpu | gpu | tpu
  kind: str
  count: int


class Slot(NamedTuple):
  """Where one process runs: environment variables, and cores (None = all)."""

  env: Mapping[str, str]
  cpus: tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Job:
  """One process and the runs it trains."""

  members: tuple[Member, ...]
  command: tuple[str, ...]
  log: pathlib.Path


@dataclasses.dataclass
class Working:
  """A process at work."""

  job: Job
  slot: int
  process: subprocess.Popen


def launch(
  wanted: Callable[[Mapping[str, dict]], Sequence[Member]],
  make_jobs: Callable[[Sequence[Member]], list[Job]],
  slots: Sequence[Slot],
  watch: Callable[[Sequence[Member], Mapping[str, dict], Sequence[Working], bool], None],
  retry: bool = False,
  begin: Callable[[Member], None] = lambda member: None,
) -> tuple[dict[str, dict], bool]:
  """Trains until nothing is wanted that is not done, failed, unreadable or already tried.

  Args:
    wanted: the runs there should be, most urgent first, given the rows so far {name: row}: a plain
      sweep always wants all of its runs, successive halving more of them as runs end.
    make_jobs: the back end: one process for each job.
    slots: as many processes at a time.
    watch: called at every look with (members, rows, working, asked to stop).
    retry: start failed runs once more.
    begin: called with a run that is about to start, its lock held: may put a checkpoint there.

  Returns:
    ({name: row} of every run, whether it was interrupted).

  Raises:
    ConfigError: a run directory holds another run.
  """
  rows: dict[str, dict] = {}
  tried: set[str] = set()
  working: list[Working] = []
  known: dict[str, Member] = {}
  with _Interrupt(working) as interrupt:
    while True:
      for ended in [w for w in working if w.process.poll() is not None]:
        working.remove(ended)
        rows.update({m.name: _after(m, ended) for m in ended.job.members})
      members = wanted(rows)
      while new := [m for m in members if m.name not in known]:
        for member in new:
          known[member.name] = member
          rows[member.name] = read_row(str(member.workdir), member.name)
          if rows[member.name]["status"] != "unreadable":
            check_same_run(member.workdir, member.cfg)
        members = wanted(rows)  # what has been done before may ask for more
      todo = [m for m in members if _startable(m, rows, tried, retry)]
      elsewhere = []
      if len(working) < len(slots) and not interrupt.count:
        elsewhere = _start(todo, make_jobs, slots, working, tried, rows, begin)
      watch(list(known.values()), rows, working, interrupt.count > 0)
      if not working and not elsewhere:
        return rows, interrupt.count > 0
      time.sleep(POLL)


def local_jobs(members: Sequence[Member], settings: Mapping[str, object]) -> list[Job]:
  """A process a run.

  Args:
    members: runs to start.
    settings: keys set on every run that do not change what it computes (log.*, checkpoint.*).
  """
  jobs = []
  for member in members:
    command = (sys.executable, str(REPO / "train.py"), "--config", config_path(member.run.config))
    changes = {**member.run.overrides, **settings}
    words = tuple(f"--config.{key}={as_text(value)}" for key, value in changes.items())
    command = (*command, "--workdir", str(member.workdir), *words)
    jobs.append(Job((member,), command, member.workdir / "log.txt"))
  return jobs


def stacked_jobs(members: Sequence[Member], settings: Mapping[str, object], size: int) -> list[Job]:
  """A process for up to `size` runs of one program and one length, trained side by side."""
  return [_stacked_job(group, settings) for group in stack_groups(members, size)]


def stack_groups(members: Sequence[Member], size: int) -> list[list[Member]]:
  """Runs that differ in traced hyperparameters only, in stacks of at most `size`.

  A stack starts at the newest checkpoint that all of its runs have, so runs that were stopped at
  different steps, or not begun, are not put together: that would throw work away.
  """
  stacks: list[tuple[str, set[int], list[Member]]] = []
  for member in members:
    program, steps = program_of(member), checkpoint_steps(member.workdir)
    for i, (theirs, common, group) in enumerate(stacks):
      together = bool(common & steps) or not (common or steps)
      if theirs == program and together and len(group) < size:
        stacks[i] = (theirs, common & steps, [*group, member])
        break
    else:
      stacks.append((program, steps, [member]))
  return [group for *_, group in stacks]


def program_of(member: Member) -> str:
  """A hash of everything that is compiled into the run's program or must be equal in a stack."""
  fields = {k: v for k, v in identity_fields(member.cfg).items() if k not in TRACED}
  text = json.dumps([fields, devices_needed(member.asked)], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def checkpoint_steps(workdir: pathlib.Path) -> set[int]:
  """Steps of the complete checkpoints of a run directory."""
  folder = workdir / "checkpoints"
  return {int(p.name) for p in folder.iterdir() if p.name.isdigit()} if folder.is_dir() else set()


@functools.cache
def find_devices() -> Devices:
  """What a worker would see. Asked of a short process, as looking would claim the devices."""
  code = "import jax; d = jax.devices(); print(d[0].platform, len(d), d[0].device_kind, sep='|')"
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  if out.returncode:
    reason = out.stderr.strip().splitlines()[-1]
    raise ConfigError(f"devices=(unknown): JAX finds none ({reason}); check its installation")
  platform, count, kind = out.stdout.strip().splitlines()[-1].split("|", 2)
  return Devices(platform, kind, int(count))


def make_slots(devices: Devices, workers: int | None, needed: int) -> list[Slot]:
  """Places for `workers` processes (None = as many as fit) of `needed` devices each.

  Accelerators are shared out whole; more workers than fit share them in turn. On a CPU it is the
  cores that are shared out.
  """
  if workers is not None and workers < 1:
    raise ConfigError(f"workers={workers}: must be at least 1; leave it out for as many as fit")
  if devices.platform == "cpu":
    return _cpu_slots(workers, needed)
  if needed > devices.count:
    raise ConfigError(
      f"mesh=({needed} devices): this machine has {devices.count}; lower the mesh axes or use -1"
    )
  if devices.platform == "tpu" and needed not in TPU_BOUNDS:
    raise ConfigError(
      f"mesh=({needed} devices): a process has {', '.join(map(str, TPU_BOUNDS))} chips of a host; "
      "change the mesh axes"
    )
  fit = devices.count // needed
  if fit == 1 and workers in (None, 1):
    return [Slot({}, None)]  # one process that sees everything
  slots = []
  for worker in range(workers or fit):
    first = worker % fit * needed
    chosen = ",".join(str(first + i) for i in range(needed))
    env = {"CUDA_VISIBLE_DEVICES": chosen, "ROCR_VISIBLE_DEVICES": chosen}
    if devices.platform == "tpu":
      env = {"TPU_VISIBLE_CHIPS": chosen, "TPU_CHIPS_PER_PROCESS_BOUNDS": TPU_BOUNDS[needed],
             "TPU_PROCESS_BOUNDS": "1,1,1"}  # fmt: skip
    if (workers or fit) > fit:
      env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    slots.append(Slot(env, None))
  return slots


def start_process(job: Job, slot: Slot, locks: Sequence[int] = ()) -> subprocess.Popen:
  """The job's process, on the slot's devices and cores, with open files for it to hold."""
  job.log.parent.mkdir(parents=True, exist_ok=True)
  with open(job.log, "w", encoding="utf-8") as log:
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


def last_line(path: pathlib.Path) -> str:
  """The last line of a log that says something; for a crash, the error."""
  lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
  lines = [line.strip() for line in lines if line.strip() and not line.startswith("wandb:")]
  return lines[-1] if lines else ""


def as_text(value: object) -> str:
  """A value as lm.flags reads it from the command line."""
  if isinstance(value, list | tuple):
    return ",".join(map(str, value))
  return str(value)


def _cpu_slots(workers: int | None, needed: int) -> list[Slot]:
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  count = workers or min(len(cores) or 1, MAX_WORKERS)
  env = {}
  if needed > 1:  # a mesh on a CPU is one of fake devices
    flags = os.environ.get("XLA_FLAGS", "")
    env = {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={needed}".strip()}
  if not cores:
    return [Slot(env, None)] * count
  shares = [tuple(cores[i::count]) or (cores[i % len(cores)],) for i in range(count)]
  return [Slot(env, share) for share in shares]


def _stacked_job(group: Sequence[Member], settings: Mapping[str, object]) -> Job:
  if len(group) == 1:
    return local_jobs(group, settings)[0]
  lines = [
    json.dumps(
      {
        "config": config_path(m.run.config),
        "overrides": {**m.run.overrides, **settings},
        "workdir": str(m.workdir),
      }
    )
    for m in group
  ]
  folder = group[0].workdir.parent / "stacks"
  folder.mkdir(parents=True, exist_ok=True)
  digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
  file = folder / f"{digest}.jsonl"
  file.write_text("\n".join(lines) + "\n", encoding="utf-8")
  command = (sys.executable, str(REPO / "train.py"), "--stack", str(file))
  return Job(tuple(group), command, folder / f"{digest}.log")


def _startable(member: Member, rows: Mapping[str, dict], tried: set[str], retry: bool) -> bool:
  status = rows[member.name]["status"]
  if member.name in tried or status in ("done", "unreadable"):
    return False
  return status != "failed" or retry


def _start(todo, make_jobs, slots, working, tried, rows, begin) -> list[Member]:
  """Fills the free slots; returns the runs that another process is training."""
  elsewhere, mine = [], []
  free = [i for i in range(len(slots)) if i not in {w.slot for w in working}]
  for member in todo:
    lock = _lock(member.workdir)
    if lock is None:
      elsewhere.append(member)
      rows[member.name] = {**read_row(str(member.workdir), member.name), "status": "running"}
      continue
    begin(member)
    os.close(lock)
    fresh = read_row(str(member.workdir), member.name)  # another launcher may have ended it
    rows[member.name] = fresh
    if fresh["status"] not in ("done", "unreadable"):
      mine.append(member)
  for slot, job in zip(free, make_jobs(mine), strict=False):
    process = _spawn(job, slots[slot])
    if process:
      working.append(Working(job, slot, process))
      tried.update(m.name for m in job.members)
      rows.update({m.name: {**rows[m.name], "status": "running"} for m in job.members})
  return elsewhere


def _spawn(job: Job, slot: Slot) -> subprocess.Popen | None:
  """Starts a job, its runs' locks in its hands; None if another process has just taken one."""
  locks = [_lock(m.workdir) for m in job.members]
  if None in locks:
    for lock in filter(None, locks):
      os.close(lock)
    return None
  for member in job.members:
    (member.workdir / "launch.json").unlink(missing_ok=True)
  process = start_process(job, slot, locks)
  for lock in locks:
    os.close(lock)  # the process holds it now, for as long as it lives
  return process


def _lock(workdir: pathlib.Path) -> int | None:
  """A file descriptor that holds the run directory's lock; None if another process does."""
  workdir.mkdir(parents=True, exist_ok=True)
  file = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError:
    os.close(file)
    return None
  return file


def _after(member: Member, ended: Working) -> dict:
  """The row of a run whose process has ended; launch.json says what train.py could not."""
  row = read_row(str(member.workdir), member.name)
  if row["status"] in ENDED or row["status"] == "unreadable":
    return row
  code = ended.process.returncode
  if code in (-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM):
    status, reason = "interrupted", "before it trained; run it again and it goes on"
  elif code < 0:
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    status, reason = "stopped", f"killed by {name}{hint}; run it again and it goes on"
  else:
    status, reason = "failed", last_line(ended.job.log) or f"exit code {code}"
  write_json(member.workdir / "launch.json", {"status": status, "reason": reason, "exit": code})
  return {**row, "status": status, "reason": reason}


class _Interrupt:
  """Passes SIGINT and SIGTERM on to the working processes as SIGINT, and counts them."""

  def __init__(self, working: list[Working]):
    self.count = 0
    self._working = working

  def __enter__(self):
    self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _handle(self, number, frame):
    self.count += 1
    for work in self._working:
      if work.process.poll() is None:
        os.kill(work.process.pid, signal.SIGINT)
