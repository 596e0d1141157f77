"""Back end `slurm`: arrays of batch jobs, one task of an array a run or a stack.

A run over several devices is a job step of as many tasks, one device each, which jax.distributed joins
by itself. Before its time limit, when it is preempted, or when it is killed, a run saves a checkpoint
where it can and its job goes back to the queue; it goes on from there. The launcher may end: jobs do
not, and the next launcher finds them by their tickets.
"""

import dataclasses
import functools
import getpass
import itertools
import math
import pathlib
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence

from experiments.launch import jobs as jobs_
from experiments.launch import stacks, throughput
from experiments.launch.jobs import Asked, Job, State, Ticket
from experiments.launch.locks import Lock
from experiments.sweep.sweep import Member, devices_needed
from lm.config.errors import ConfigError, number_of, whole_number
from lm.cost.memory import memory_bytes
from lm.cost.parameters import run_counts

PASSED_ON = ("partition", "account", "qos", "constraint", "reservation", "time", "mem", "exclude")
WORDS = {
  **{key: f"sbatch --{key}" for key in PASSED_ON},
  "gpus_per_node": "GPUs of a node, 0 for CPUs (default: what sinfo says of the partition)",
  "cpus_per_task": "cores of each device's task (default 1)",
  "chip": "a chip of lm/devices/chips.py: gives the time limit and the price, and refuses what does not fit",
  "mfu": "its utilisation (default: that of published runs)",
  "stacked": "yes: runs of one program share a job",
  "setup": "a shell line before each job, for example: module load cuda",
  "python": "interpreter on the nodes (default: this one)",
}  # fmt: skip
NOTICE = 120  # seconds before the time limit at which a run is asked to save and end
RESTARTS = 3  # of a job that was killed by a signal nobody here sent
MARGIN = 1.5  # time limit over predicted time
LEAST_LIMIT = 600.0  # seconds
DOUBTS = 20  # polls in a row that may fail, over some minutes, while jobs are watched
QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT",
          "RESV_DEL_HOLD")  # fmt: skip

SCRIPT = """\
set -u
log='' runs=() command=() # of this task:
# shellcheck source=/dev/null
source {folder}/task-"$SLURM_ARRAY_TASK_ID"
me=${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID
exit_file=${{log%.*}}.exit
rm -f "$exit_file"
echo "{started}$(date '+%Y-%m-%d %H:%M:%S %z') ---- Slurm job $me" >>"$log"
{setup}
asked=
# shellcheck disable=SC2317 # the trap calls it
ask() {{ # train.py saves a checkpoint and ends
  [ "$asked" ] || scancel --signal=TERM "$SLURM_JOB_ID"
  asked=1
}}
trap ask USR1 TERM # the time limit is near; the job is preempted
srun --kill-on-bad-exit=1 "${{command[@]}}" >>"$log" 2>&1 &
step=$!
wait "$step"
code=$?
while [ "$code" -gt 128 ] && kill -0 "$step" 2>/dev/null; do # it was the wait that a signal ended
  wait "$step"
  code=$?
done
again=
if grep -q '"status": "interrupted"' "${{runs[@]/%//run.json}}" 2>/dev/null; then
  again=1
elif [ "$code" -gt 128 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then
  again=1
fi
if [ "$again" ] && [ "$(squeue --noheader --jobs="$me" --format=%T)" = RUNNING ]; then
  trap '' USR1 TERM # Slurm ends this script now; it starts anew
  scontrol requeue "$me" && exit "$code" # not where scancel has ended the job
fi
echo "$code" >"$exit_file"
exit "$code"
"""


class Slurm:
  """Jobs of a Slurm cluster, submitted from a machine that has its client programs.

  Args:
    asked: what the command line says.
    gpus_per_node: 0 where the nodes compute on CPUs.
  """

  name, stays, every = "slurm", False, 5.0

  def __init__(self, asked: Asked, gpus_per_node: int):
    self._asked, self._words, self._gpus = asked, asked.words, gpus_per_node
    self.poll = functools.partial(ask, doubts=DOUBTS)

  def jobs(self, members: Sequence[Member]) -> list[Job]:
    settings = self._asked.settings
    if jobs_.read_switch(self._words, "stacked"):
      return stacks.stacked_jobs(_absolute(members), settings, self._asked.stack)
    return jobs_.local_jobs(_absolute(members), settings)

  def room(self, working: int) -> int:
    return jobs_.limited(math.inf, None, working)  # --workers is the array's own limit

  def submit(self, jobs: Sequence[Job], locks: Sequence[Sequence[Lock]]) -> list[Ticket]:
    tickets = {}
    for header, group in self._arrays(jobs):
      folder = self._folder()
      script = self._write(folder, header, group)
      out = _run(["sbatch", "--parsable", str(script)])
      if out.returncode:
        raise ConfigError(f"on=slurm: sbatch refuses the job ({_first(out.stderr)}); see {script}")
      array = out.stdout.strip().split(";")[0]
      for index, job in enumerate(group):
        predicted = self._seconds(job)
        tickets[job.log] = Ticket(
          self.name, f"{array}_{index}", str(job.log), time.time(), predicted
        )
    return [tickets[job.log] for job in jobs]

  def cancel(self, ticket: Ticket) -> None:
    """Slurm sends SIGTERM, at which a run saves and ends, and kills it after its KillWait."""
    _run(["scancel", ticket.id])

  def logs(self, ticket: Ticket) -> str:
    return jobs_.last_attempt(pathlib.Path(ticket.log))

  def dry_run(self, members: Sequence[Member]) -> str:
    parts = []
    for header, group in self._arrays(self.jobs(members)):
      lines = [f"# sbatch: an array of {number_of(len(group), 'job')}{self._price(group)}", *header]
      parts.append("\n".join([*lines, *(shlex.join(job.command) for job in group)]))
    return "\n\n".join(parts) or "nothing to do"

  def _arrays(self, jobs: Sequence[Job]) -> list[tuple[list[str], list[Job]]]:
    """Jobs of one size and time limit, with the #SBATCH lines of their array."""
    sized = [(self._header(job), job) for job in jobs]
    sized.sort(key=lambda pair: pair[0])
    arrays = []
    for header, pairs in itertools.groupby(sized, key=lambda pair: pair[0]):
      group = [job for _, job in pairs]
      at_once = f"%{self._asked.workers}" if self._asked.workers else ""
      array = f"#SBATCH --array=0-{len(group) - 1}{at_once}"
      arrays.append(([*header[:1], array, *header[1:]], group))
    return arrays

  def _header(self, job: Job) -> list[str]:
    devices = devices_needed(job.members[0].asked)
    options = {
      "job-name": f"isoflop-{self._asked.experiment}",
      **layout(devices, self._gpus),
      "cpus-per-task": self._words.get("cpus_per_task", "1"),
      "requeue": None,
      "open-mode": "append",
      "signal": f"B:USR1@{NOTICE}",
    }
    if seconds := self._seconds(job):
      options["time"] = math.ceil(max(MARGIN * seconds, LEAST_LIMIT) / 60)
    options |= {key: self._words[key] for key in PASSED_ON if key in self._words}
    return [
      f"#SBATCH --{key}" + ("" if value is None else f"={value}") for key, value in options.items()
    ]

  def _speed(self, job: Job) -> throughput.Speed | None:
    """Of the chip that was named."""
    if "chip" not in self._words:
      return None
    mfu = throughput.read_mfu(self._words.get("mfu"))
    n_params = max(run_counts(m.cfg).total for m in job.members)
    return throughput.from_chip(self._words["chip"], mfu, job.members[0].cfg.model.dtype, n_params)

  def _seconds(self, job: Job) -> float | None:
    """The predicted time of a job."""
    speed = self._speed(job)
    return speed and speed.compiling + sum(speed.seconds(m.cfg) for m in job.members)

  def _price(self, group: Sequence[Job]) -> str:
    """What an array would cost at the chip's list price."""
    if not (speed := self._speed(group[0])):
      return ""
    hours = [self._seconds(j) * devices_needed(j.members[0].asked) / 3600 for j in group]
    price = (
      "" if speed.price is None else f", about {speed.price * sum(hours):,.2f} USD at list price"
    )
    return f", {sum(hours):.2f} device hours{price}"

  def _folder(self) -> pathlib.Path:
    """A new folder for the script of an array."""
    base = pathlib.Path(self._asked.folder).resolve() / "slurm"
    for number in itertools.count():
      folder = base / f"{time.strftime('%Y%m%d-%H%M%S')}-{number}"
      if not folder.exists():
        folder.mkdir(parents=True)
        return folder

  def _write(self, folder: pathlib.Path, header: Sequence[str], group: Sequence[Job]):
    """The batch script of an array, and a file for each of its tasks."""
    for index, job in enumerate(group):
      words = job.command
      if "python" in self._words:
        words = (self._words["python"], *words[1:])
      runs = [str(m.workdir) for m in job.members]
      lines = [
        f"log={shlex.quote(str(job.log))}",
        f"runs=({shlex.join(runs)})",
        f"command=({shlex.join(words)})",
      ]
      (folder / f"task-{index}").write_text("\n".join(lines) + "\n", encoding="utf-8")
      job.log.parent.mkdir(parents=True, exist_ok=True)
    body = SCRIPT.format(
      folder=shlex.quote(str(folder)),
      started=jobs_.STARTED,
      setup=self._words.get("setup", ""),
      restarts=RESTARTS,
    )
    script = folder / "job.sh"
    out = f"#SBATCH --output={folder}/%a.out"
    script.write_text("\n".join(["#!/bin/bash", *header, out, body]), encoding="utf-8")
    return script


def make(asked: Asked, members: Sequence[Member]) -> Slurm:
  """Raises ConfigError where Slurm's programs are missing, or runs do not fit the nodes."""
  for program in ("sbatch", "squeue", "scancel", "sinfo"):
    if shutil.which(program) is None:
      raise ConfigError(
        f"on=slurm: there is no {program} here; run this on a login node of the cluster"
      )
  out = _run(["sinfo", "--noheader", "--format=%P|%G"])
  if out.returncode:
    raise ConfigError(f"on=slurm: the cluster does not answer ({_first(out.stderr)}); is it up?")
  gpus = asked.words.get("gpus_per_node")
  if gpus is not None and whole_number(gpus) is None:
    raise ConfigError(f"with=gpus_per_node={gpus}: must be a whole number; use 8, or 0 for CPUs")
  gpus = gpus_of(out.stdout, asked.words.get("partition")) if gpus is None else int(gpus)
  jobs_.read_count(asked.words, "cpus_per_task")
  jobs_.read_switch(asked.words, "stacked")
  for member in members:
    layout(devices_needed(member.asked), gpus)
  if "chip" in asked.words:
    check_fits(members, asked.words["chip"])
  return Slurm(asked, gpus)


def ask(tickets: Sequence[Ticket], doubts: int = 2) -> list[State]:
  """States of jobs by their tickets: what squeue lists, else the exit code that the job left.

  Args:
    doubts: so many times squeue may fail, as it does while the controller restarts.
  """
  if not tickets:
    return []
  words = ["squeue", "--noheader", "--array", f"--user={getpass.getuser()}", "--format=%i|%T"]
  for attempt in range(doubts):
    out = _run(words)
    if out.returncode == 0:
      break
    time.sleep(min(2.0**attempt, 30.0))
  else:
    raise ConfigError(f"on=slurm: squeue fails ({_first(out.stderr)}); jobs go on without us")
  listed = dict(line.split("|") for line in out.stdout.split())
  return [_state(ticket, listed.get(ticket.id)) for ticket in tickets]


def layout(devices: int, gpus_per_node: int) -> dict[str, object]:
  """The sbatch options that give a run its devices, one task each.

  >>> layout(16, 8)
  {'nodes': 2, 'ntasks-per-node': 8, 'gpus-per-node': 8}
  """
  if not gpus_per_node:
    return {"ntasks": devices}
  nodes = -(-devices // gpus_per_node)
  if devices % nodes or (nodes > 1 and devices % gpus_per_node):
    raise ConfigError(
      f"mesh=({number_of(devices, 'device')}): must be a part or a multiple of a node's "
      f"{number_of(gpus_per_node, 'GPU')}; "
      f"use {gpus_per_node * nodes}"
    )
  return {"nodes": nodes, "ntasks-per-node": devices // nodes, "gpus-per-node": devices // nodes}


def gpus_of(listing: str, partition: str | None) -> int:
  """GPUs of a node, from `sinfo --format=%P|%G`; the partition's, else the default one's.

  >>> gpus_of("cpu*|(null)\\ngpu|gpu:h100:8(S:0-1)\\n", "gpu")
  8
  """
  for line in listing.splitlines():
    name, _, resources = line.strip().partition("|")
    if name.rstrip("*") == partition or (partition is None and name.endswith("*")):
      found = re.search(r"gpu(?::[^:,(]+)?:(\d+)", resources)
      return int(found[1]) if found else 0
  if partition is None:
    return 0
  raise ConfigError(f"with=partition={partition}: is not among those that sinfo lists; correct it")


def check_fits(members: Sequence[Member], chip: str) -> None:
  """ConfigError for the first run whose memory, by arithmetic, is more than a chip has."""
  for member in members:
    hbm = throughput.from_chip(chip, 0.4, member.cfg.model.dtype).hbm
    needed = sum(memory_bytes(member.cfg).values())
    if needed > hbm:
      raise ConfigError(
        f"run {member.name}: needs {needed / 1e9:.1f} GB a device, and a {chip} has {hbm / 1e9:.0f}; "
        "raise mesh.fsdp, train.accumulate or model.remat"
      )


def _state(ticket: Ticket, listed: str | None) -> State:
  if listed is not None:
    return State("queued" if listed in QUEUED else "running")
  exit_file = pathlib.Path(ticket.log).with_suffix(".exit")
  try:
    return State("ended", int(exit_file.read_text()))
  except (FileNotFoundError, ValueError):
    return State("ended", None, _why(ticket.id))


def _why(job: str) -> str:
  """What Slurm's accounting says of a job that left no exit code, where there is accounting."""
  out = _run(
    ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job}", "--format=State"]
  )
  said = out.stdout.split()
  return (
    f"Slurm ({said[0]})" if out.returncode == 0 and said else "Slurm (cancelled, or a node failed)"
  )


def _absolute(members: Sequence[Member]) -> list[Member]:
  return [dataclasses.replace(m, workdir=pathlib.Path(m.workdir).resolve()) for m in members]


def _run(words: Sequence[str]) -> subprocess.CompletedProcess:
  try:
    return subprocess.run(words, capture_output=True, text=True, check=False)
  except FileNotFoundError as error:
    return subprocess.CompletedProcess(words, 127, "", str(error))


def _first(text: str) -> str:
  lines = [line.strip() for line in text.splitlines() if line.strip()]
  return lines[0] if lines else "no reason given"
