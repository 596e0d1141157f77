"""Back end `skypilot`: one managed job a run or a stack, on any cloud SkyPilot knows; spot with recovery.

Each job is a task YAML: the smallest slice that fits by the plan, code at a commit (a git bundle that
is sent along), setup with the right jax extra, runs in a bucket. Preempted jobs are recovered by
SkyPilot on a new machine, and train.py goes on from the last checkpoint in the bucket.
"""

import json
import math
import os
import pathlib
import shutil
import subprocess
from collections.abc import Sequence

from experiments.launch import accelerators, cloud, throughput
from experiments.launch import code as codes
from experiments.launch import jobs as jobs_
from experiments.launch.accelerators import Placement
from experiments.launch.jobs import Asked, Job, State, Ticket
from experiments.launch.locks import Lock
from experiments.sweep.sweep import Member
from lm.config.errors import ConfigError, number_of

OFFERED = tuple(name for name, family in accelerators.CHIP_FAMILIES.items() if family.sky)
WORDS = {
  "chip": f"one of {', '.join(OFFERED)}",
  "chips": "of a slice, or GPUs in all (default: the smallest that fits by the plan)",
  "infra": "where, as SkyPilot writes it: gcp/us-east5/us-east5-a (default: wherever is cheapest)",
  "spot": "yes or no (default yes): spot machines, recovered when they are preempted",
  "stacked": "yes: runs of one program share a job",
  "patch": "yes: send changes that are not committed along",
  "mfu": "predicted utilisation (default: that of published runs)",
  "restarts": "of a job whose process fails by itself (default 0)",
}
KEY = "WANDB_API_KEY"
LIVE = {"PENDING": "queued", "SUBMITTED": "queued", "STARTING": "queued", "RECOVERING": "queued",
        "RUNNING": "running", "WINDING_DOWN": "running", "CANCELLING": "running"}  # fmt: skip


class SkyPilot:
  """Managed jobs, submitted through the `sky` program."""

  name, stays, every = "skypilot", False, 30.0

  def __init__(self, asked: Asked):
    self.asked, self._words = asked, asked.words
    self.poll = ask

  def jobs(self, members: Sequence[Member]) -> list[Job]:
    return cloud.jobs_of(self.asked, members, jobs_.read_switch(self._words, "stacked"))

  def room(self, working: int) -> int:
    return jobs_.limited(math.inf, self.asked.workers, working)

  def place(self, job: Job) -> Placement:
    """The slice or GPUs of a job."""
    chips = jobs_.read_count(self._words, "chips")
    mfu = throughput.read_mfu(self._words.get("mfu"))
    name = accelerators.find_chip_family(self._words.get("chip"), OFFERED)
    return accelerators.place(job.members, name, chips, mfu=mfu)

  def submit(self, jobs: Sequence[Job], locks: Sequence[Sequence[Lock]]) -> list[Ticket]:
    if not jobs:
      return []
    placed = [self.place(job) for job in jobs]  # errors before anything is created
    folder = cloud.local_folder(self.asked, self.name)
    code = codes.bundle(folder, jobs_.read_switch(self._words, "patch"))
    folder.mkdir(parents=True, exist_ok=True)
    tickets = []
    for job, placement in zip(jobs, placed, strict=True):
      name = cloud.job_name(self.asked, job.members)
      for path, content in job.files.items():
        (folder / path).write_text(content, encoding="utf-8")
      file = folder / f"{name}.yaml"
      file.write_text(as_yaml(self.task(job, placement, code, folder)), encoding="utf-8")
      words = ["jobs", "launch", "--yes", "--detach-run", "--name", name, *self._secrets()]
      out = _sky(*words, str(file))
      if out.returncode:
        raise ConfigError(
          f"on=skypilot: sky refuses {file} ({_last(out)}); {number_of(len(tickets), 'job')} submitted"
        )
      tickets.append(Ticket(self.name, name, str(file), 0.0))
    return tickets

  def cancel(self, ticket: Ticket) -> None:
    _sky("jobs", "cancel", "--yes", "--name", ticket.id)

  def logs(self, ticket: Ticket) -> str:
    return _sky("jobs", "logs", "--no-follow", "--name", ticket.id).stdout

  def dry_run(self, members: Sequence[Member]) -> str:
    commit = codes.check(jobs_.read_switch(self._words, "patch"))
    folder = cloud.local_folder(self.asked, self.name)
    code = codes.Code(commit, folder / "code.bundle", None)
    jobs = self.jobs(members)
    placed = [self.place(job) for job in jobs]
    parts = [
      f"{cloud.quote(job, where)}\n" + as_yaml(self.task(job, where, code, folder))
      for job, where in zip(jobs, placed, strict=True)
    ]
    return "---\n".join(parts) + cloud.bill(placed) or "nothing to do"

  def _secrets(self) -> list[str]:
    """Words that hand this machine's key of W&B to jobs that log there; none where there is no key."""
    wanted = self.asked.settings.get("log.wandb") in ("auto", "online")
    return ["--secret", KEY] if wanted and KEY in os.environ else []

  def task(
    self, job: Job, placement: Placement, code: codes.Code, folder: pathlib.Path
  ) -> dict[str, object]:
    """The job as SkyPilot's task, ready to be written as YAML."""
    family = placement.family
    resources: dict[str, object] = {}
    if "infra" in self._words:
      resources["infra"] = self._words["infra"]
    task: dict[str, object] = {"name": cloud.job_name(self.asked, job.members)}
    if family.shapes:  # a TPU slice, whose hosts SkyPilot starts together
      resources.setdefault("infra", "gcp")
      resources["accelerators"] = {placement.accelerator(family.sky): 1}
      resources["accelerator_args"] = {"runtime_version": family.runtime}
    else:
      resources["accelerators"] = {family.sky: placement.per_host}
      if placement.hosts > 1:
        task["num_nodes"] = placement.hosts
    resources["use_spot"] = jobs_.read_switch(self._words, "spot", True)
    restarts = jobs_.read_count(self._words, "restarts", 0, least=0)
    resources["job_recovery"] = {
      "strategy": "EAGER_NEXT_REGION",
      "max_restarts_on_errors": restarts,
    }
    mounts = {"~/code.bundle": str(folder / "code.bundle")}
    if code.patch:
      mounts["~/code.patch"] = str(folder / "code.patch")
    mounts |= {f"~/{path}": str(folder / path) for path in job.files}
    setup = ["set -e", "cd ~", *codes.unpack(code), *codes.install(family.extra, self.asked.folder)]
    run = ["set -e", "cd ~/isoflop"]
    if not family.shapes and placement.hosts > 1:  # one process a host; TPU hosts find each other
      run += [
        'export JAX_COORDINATOR_ADDRESS=$(echo "$SKYPILOT_NODE_IPS" | head -n1):8476',
        "export JAX_NUM_PROCESSES=$SKYPILOT_NUM_NODES JAX_PROCESS_ID=$SKYPILOT_NODE_RANK",
      ]
    run.append(f"exec {cloud.script_lines(job)}")
    if self._secrets():  # its value is given at launch, and never written
      task["secrets"] = {KEY: None}
    task |= {"resources": resources, "file_mounts": mounts}
    return task | {"setup": "\n".join(setup) + "\n", "run": "\n".join(run) + "\n"}


def make(asked: Asked, members: Sequence[Member]) -> SkyPilot:
  """ConfigError where `sky` is missing, the code is not committed, or a chip does not fit."""
  cloud.check_folder(asked, "skypilot")
  jobs_.check_names(asked.words, {"infra": r"[\w.*/-]+"})
  backend = SkyPilot(asked)
  cloud.check_jobs(asked, backend, members)
  if not asked.dry_run:
    _need_sky()
  return backend


def ask(tickets: Sequence[Ticket]) -> list[State]:
  """States of managed jobs by their names; of several with one name, the latest counts."""
  if not tickets:
    return []
  _need_sky()
  out = _sky("jobs", "queue", "--all", "--output", "json")
  if out.returncode:
    raise ConfigError(f"on=skypilot: sky jobs queue fails ({_last(out)}); run sky check")
  return states_of(out.stdout, tickets)


def states_of(listing: str, tickets: Sequence[Ticket]) -> list[State]:
  """States from the JSON of `sky jobs queue`; a job that is not listed has ended, or never begun."""
  start = listing.find("[")
  found = json.loads(listing[start:]) if start >= 0 else []
  latest: dict[str, dict] = {}
  for row in sorted(found, key=lambda row: row["job_id"]):
    latest[row["job_name"]] = row
  states = []
  for ticket in tickets:
    said = str(latest.get(ticket.id, {}).get("status", "")).rpartition(".")[2]
    if said in LIVE:
      states.append(State(LIVE[said], None, said.lower()))
    else:
      states.append(State("ended", 0 if said == "SUCCEEDED" else None, said.lower() or None))
  return states


def as_yaml(value: dict[str, object]) -> str:
  """YAML of a task: mappings in order, texts of several lines as blocks, all else as JSON."""
  return "\n".join(_yaml_lines(value, "")) + "\n"


def _yaml_lines(value: dict[str, object], indent: str) -> list[str]:
  lines = []
  for key, item in value.items():
    if isinstance(item, dict) and item:
      lines += [f"{indent}{key}:", *_yaml_lines(item, indent + "  ")]
    elif isinstance(item, list) and item and all(isinstance(i, dict) for i in item):
      lines.append(f"{indent}{key}:")
      for part in item:
        first, *rest = _yaml_lines(part, indent + "    ")
        lines += [f"{indent}  - {first.lstrip()}", *rest]
    elif isinstance(item, str) and "\n" in item:
      lines += [f"{indent}{key}: |", *(f"{indent}  {line}" for line in item.splitlines())]
    else:
      lines.append(f"{indent}{key}: {json.dumps(item)}")
  return lines


def _need_sky() -> None:
  if shutil.which("sky") is None:
    raise ConfigError(
      'on=skypilot: there is no sky here; pip install "skypilot[gcp]" and run sky check'
    )


def _sky(*words: str) -> subprocess.CompletedProcess:
  return subprocess.run(["sky", *words], capture_output=True, text=True, check=False)


def _last(out: subprocess.CompletedProcess) -> str:
  lines = [line.strip() for line in (out.stderr or out.stdout).splitlines() if line.strip()]
  return lines[-1] if lines else f"exit code {out.returncode}"
