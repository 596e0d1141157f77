"""Back end `jobset`: JobSets of a Kubernetes cluster with TPU slices or GPUs (GKE), started by kubectl.

One JobSet a run or stack: a replicated job of one pod a host, as many replicas as slices. Its code is a
git bundle in the bucket of the runs. The same YAML goes through `xpk` and Kueue (--with queue=NAME).

https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2 (v0.10, 2025);
cloud.google.com/kubernetes-engine/docs/how-to/tpus (2025).
"""

import json
import math
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
from experiments.launch.skypilot import as_yaml
from experiments.ledger.rows import file_system
from experiments.sweep.sweep import Member
from lm.config.errors import ConfigError

WORDS = {
  "chip": f"one of {', '.join(accelerators.CHIP_FAMILIES)}",
  "chips": "of a slice, or GPUs in all (default: the smallest that fits by the plan)",
  "slices": "joined by the data-centre network (default 1)",
  "image": "of the container, with git and Python 3.11 or later (default python:3.12)",
  "namespace": "of the cluster (default: kubectl's own)",
  "queue": "Kueue's local queue",
  "account": "Kubernetes service account that may write to the bucket",
  "spot": "yes: on spot nodes",
  "stacked": "yes: runs of one program share a job",
  "patch": "yes: send changes that are not committed along",
  "mfu": "predicted utilisation (default: that of published runs)",
  "restarts": "of the whole job after a failure or a preemption (default 10)",
}
PORT = 8476


class JobSet:
  """JobSets, applied and followed by kubectl."""

  name, stays, every = "jobset", False, 30.0

  def __init__(self, asked: Asked):
    self.asked, self._words = asked, asked.words
    self.folder = cloud.local_folder(asked, self.name)
    self.poll = ask

  def jobs(self, members: Sequence[Member]) -> list[Job]:
    return cloud.jobs_of(self.asked, members, jobs_.read_switch(self._words, "stacked"))

  def room(self, working: int) -> int:
    return jobs_.limited(math.inf, self.asked.workers, working)

  def place(self, job: Job) -> Placement:
    """The slices of a job."""
    chips = jobs_.read_count(self._words, "chips")
    slices = jobs_.read_count(self._words, "slices", 1)
    mfu = throughput.read_mfu(self._words.get("mfu"))
    name = accelerators.find_chip_family(self._words.get("chip"))
    return accelerators.place(job.members, name, chips, slices, mfu)

  def submit(self, jobs: Sequence[Job], locks: Sequence[Sequence[Lock]]) -> list[Ticket]:
    if not jobs:
      return []
    placed = [self.place(job) for job in jobs]
    code = codes.bundle(self.folder, jobs_.read_switch(self._words, "patch"))
    self._upload(jobs, code)
    tickets = []
    for job, placement in zip(jobs, placed, strict=True):
      name = cloud.job_name(self.asked, job.members)
      file = self.folder / f"{name}.yaml"
      file.write_text(as_yaml(self.manifest(job, placement, code)), encoding="utf-8")
      # Of an earlier attempt.
      _kubectl(self._space(), "delete", "jobset", name, "--ignore-not-found")
      out = _kubectl(self._space(), "apply", "--filename", str(file))
      if out.returncode:
        raise ConfigError(f"on=jobset: kubectl refuses {file} ({_last(out)})")
      tickets.append(Ticket(self.name, name, str(file), 0.0))
    return tickets

  def cancel(self, ticket: Ticket) -> None:
    _kubectl(self._space(), "delete", "jobset", ticket.id, "--ignore-not-found")

  def logs(self, ticket: Ticket) -> str:
    label = f"jobset.sigs.k8s.io/jobset-name={ticket.id},batch.kubernetes.io/job-completion-index=0"
    return _kubectl(self._space(), "logs", "--selector", label, "--tail=-1").stdout

  def dry_run(self, members: Sequence[Member]) -> str:
    commit = codes.check(jobs_.read_switch(self._words, "patch"))
    code = codes.Code(commit, self.folder / "code.bundle", None)
    jobs = self.jobs(members)
    placed = [self.place(job) for job in jobs]
    parts = [
      f"{cloud.quote(job, where)}\n" + as_yaml(self.manifest(job, where, code))
      for job, where in zip(jobs, placed, strict=True)
    ]
    return "---\n".join(parts) + cloud.bill(placed) or "nothing to do"

  def manifest(self, job: Job, placement: Placement, code: codes.Code) -> dict[str, object]:
    """The JobSet, ready to be written as YAML."""
    name = cloud.job_name(self.asked, job.members)
    metadata: dict[str, object] = {"name": name}
    if "queue" in self._words:
      metadata["labels"] = {"kueue.x-k8s.io/queue-name": self._words["queue"]}
    if placement.family.shapes:  # a slice is a node pool, and a node pool belongs to one job
      key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
      metadata["annotations"] = {key: "cloud.google.com/gke-nodepool"}
    restarts = jobs_.read_count(self._words, "restarts", 10, least=0)
    template = {
      "backoffLimit": 0,
      "completionMode": "Indexed",
      "completions": placement.hosts,
      "parallelism": placement.hosts,
      "template": {"spec": self._pod(name, job, placement, code)},
    }
    return {
      "apiVersion": "jobset.x-k8s.io/v1alpha2",
      "kind": "JobSet",
      "metadata": metadata,
      "spec": {
        "failurePolicy": {"maxRestarts": restarts},
        "replicatedJobs": [
          {"name": "workers", "replicas": placement.slices, "template": {"spec": template}}
        ],
      },
    }

  def _pod(self, name: str, job: Job, placement: Placement, code: codes.Code) -> dict[str, object]:
    family = placement.family
    resource = "google.com/tpu" if family.shapes else "nvidia.com/gpu"
    container: dict[str, object] = {
      "name": "train",
      "image": self._words.get("image", "python:3.12"),
      "command": ["bash", "-c", "\n".join(self._script(job, placement, code)) + "\n"],
      "resources": {"limits": {resource: placement.per_host}},
    }
    if family.shapes:
      selector = {
        "cloud.google.com/gke-tpu-accelerator": family.gke,
        "cloud.google.com/gke-tpu-topology": placement.topology,
      }
    else:
      selector = {"cloud.google.com/gke-accelerator": family.gke}
      container["env"] = [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{name}-workers-0-0.{name}:{PORT}"},
        {"name": "JAX_NUM_PROCESSES", "value": str(placement.hosts)},
        {
          "name": "JAX_PROCESS_ID",
          "valueFrom": {
            "fieldRef": {
              "fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"
            }
          },
        },
      ]
      if placement.hosts == 1:
        del container["env"]
    pod: dict[str, object] = {"restartPolicy": "Never"}
    if "account" in self._words:
      pod["serviceAccountName"] = self._words["account"]
    if jobs_.read_switch(self._words, "spot"):
      selector["cloud.google.com/gke-spot"] = "true"
      pod["tolerations"] = [
        {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
      ]  # fmt: skip
    return pod | {"nodeSelector": selector, "containers": [container]}

  def _script(self, job: Job, placement: Placement, code: codes.Code) -> list[str]:
    """What the container does: fetches the code from the bucket, installs, trains."""
    store = codes.STORES[self.asked.folder.partition("://")[0]]
    there = self._code_folder(code)
    files = ["code.bundle", *(["code.patch"] if code.patch else []), *map(str, job.files)]
    fetch = [
      f"python -c \"import fsspec; fsspec.filesystem('{there.partition('://')[0]}')"
      f".get('{there}/{file}', '{file}')\""
      for file in files
    ]
    return [
      "set -eu", "cd /tmp", f"python -m pip install --quiet {store}", *fetch,
      *codes.unpack(code), *codes.install(placement.family.extra, self.asked.folder),
      f"exec {cloud.script_lines(job)}",
    ]  # fmt: skip

  def _code_folder(self, code: codes.Code) -> str:
    return f"{self.asked.folder}/code/{code.commit[:12]}"

  def _upload(self, jobs: Sequence[Job], code: codes.Code) -> None:
    """Puts what the containers fetch beside the runs."""
    fs, there = file_system(self._code_folder(code))
    try:
      fs.makedirs(there, exist_ok=True)
      for path in filter(None, (code.bundle, code.patch)):
        fs.pipe_file(f"{there}/{path.name}", pathlib.Path(path).read_bytes())
      for job in jobs:
        for path, content in job.files.items():
          fs.pipe_file(f"{there}/{path}", content.encode())
    except OSError as error:
      raise ConfigError(f"root={self.asked.folder}: cannot be written ({error}); sign in") from None

  def _space(self) -> list[str]:
    return [f"--namespace={self._words['namespace']}"] if "namespace" in self._words else []


def make(asked: Asked, members: Sequence[Member]) -> JobSet:
  """ConfigError where kubectl is missing, the code is not committed, or a chip does not fit."""
  cloud.check_folder(asked, "jobset")
  label = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
  names = dict.fromkeys(("namespace", "queue"), label)
  account, image = r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", r"[\w.:/@-]+"
  jobs_.check_names(asked.words, {**names, "account": account, "image": image})
  backend = JobSet(asked)
  cloud.check_jobs(asked, backend, members)
  if not asked.dry_run:
    _need_kubectl()
  return backend


def ask(tickets: Sequence[Ticket]) -> list[State]:
  """States of JobSets by their names, in all namespaces."""
  if not tickets:
    return []
  _need_kubectl()
  out = _kubectl([], "get", "jobsets", "--all-namespaces", "--output=json")
  if out.returncode:
    raise ConfigError(f"on=jobset: kubectl get jobsets fails ({_last(out)}); choose a context")
  found = {item["metadata"]["name"]: item for item in json.loads(out.stdout)["items"]}
  return [_state(found.get(ticket.id)) for ticket in tickets]


def _state(item: dict | None) -> State:
  if item is None:
    return State("ended")
  status = item.get("status", {})
  ended = status.get("terminalState")
  if ended:
    return State("ended", 0 if ended == "Completed" else None, ended.lower())
  active = sum(job.get("active", 0) for job in status.get("replicatedJobsStatus", []))
  return State("running" if active else "queued")


def _need_kubectl() -> None:
  if shutil.which("kubectl") is None:
    raise ConfigError("on=jobset: there is no kubectl here; install it and choose a cluster")


def _kubectl(space: Sequence[str], *words: str) -> subprocess.CompletedProcess:
  return subprocess.run(["kubectl", *space, *words], capture_output=True, text=True, check=False)


def _last(out: subprocess.CompletedProcess) -> str:
  lines = [line.strip() for line in out.stderr.splitlines() if line.strip()]
  return lines[-1] if lines else f"exit code {out.returncode}"
