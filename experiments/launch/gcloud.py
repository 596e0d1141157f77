"""Back end `gcloud`: Cloud TPU slices by queued resources, or TPU VMs that are there, through ssh.

Each job becomes two shell scripts in runs/NAME/gcloud: one for this machine, which asks for the slice
(again, when it was preempted), sends the code, starts the job on every worker and deletes the slice at
the end; and one for the workers. Both can be started again at any time: what has been done is not done
twice. `submit` starts the first in the background; it may as well be run by hand.
"""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence

from experiments.launch import accelerators, cloud, throughput
from experiments.launch import code as codes
from experiments.launch import jobs as jobs_
from experiments.launch.accelerators import Placement
from experiments.launch.jobs import Asked, Job, State, Ticket
from experiments.launch.locks import Lock
from experiments.sweep.sweep import Member
from lm.config.errors import ConfigError, number_of

OFFERED = tuple(name for name, family in accelerators.CHIP_FAMILIES.items() if family.gcloud)
WORDS = {
  "chip": f"one of {', '.join(OFFERED)}",
  "chips": "of a slice (default: the smallest that fits by the plan)",
  "slices": "joined by the data-centre network (default 1)",
  "zone": "of the slices, for example us-east5-a",
  "project": "of the cloud (default: gcloud's own setting)",
  "spot": "yes or no (default yes)",
  "vms": "names of TPU VMs that are there, with commas: nothing is created, jobs take turns on them",
  "stacked": "yes: runs of one program share a job",
  "patch": "yes: send changes that are not committed along",
  "mfu": "predicted utilisation (default: that of published runs)",
}
LIVE = {"ACTIVE": "running"} | dict.fromkeys(
  ("ACCEPTED", "CREATING", "PROVISIONING", "WAITING_FOR_RESOURCES"), "queued"
)

STARTED: list[
  subprocess.Popen
] = []  # by this process, whose children they stay until they are asked

HEAD = """\
#!/usr/bin/env bash
# {title}
# Can be started again at any time: it goes on where it is. Jobs: {jobs}.
set -euo pipefail
cd "$(dirname "$0")"
where=({where})
ssh_all() {{ gcloud compute tpus tpu-vm ssh "$1" "${{where[@]}}" --worker=all --command="$2"; }}
send() {{ gcloud compute tpus tpu-vm scp {files} "$1": "${{where[@]}}" --worker=all; }}
fetch() {{ gcloud compute tpus tpu-vm scp "$1:$2.log" "$2.log" "${{where[@]}}" --worker=0; }}
"""
CREATE = """
name={name}
vms=({vms})
state() {{
  gcloud compute tpus queued-resources describe "$name" "${{where[@]}}" --format='value(state.state)' \\
    2>/dev/null || echo NONE
}}
remove() {{
  gcloud compute tpus queued-resources delete "$name" "${{where[@]}}" --force --quiet || true
  while [ "$(state)" != NONE ]; do sleep "${{PAUSE:-20}}"; done
}}
have_slice() {{ # asks for it, and waits; once more where it was preempted or refused
  while :; do
    case "$(state)" in
      ACTIVE) return ;;
      NONE)
        gcloud compute tpus queued-resources create "$name" "${{where[@]}}" {nodes} \\
          --accelerator-type={accelerator} --runtime-version={runtime}{spot}
        ;;
      FAILED | SUSPENDED | SUSPENDING | DELETING) remove ;;
    esac
    sleep "${{PAUSE:-20}}"
  done
}}
"""
TRAIN = """
# Sends and starts a job on all its workers and waits; sets code, "" where the workers could not be asked.
train() {
  local job=$1 vm pids=()
  shift
  for vm in "$@"; do
    if send "$vm"; then
      ssh_all "$vm" "bash $job.worker.sh" &
      pids+=("$!")
    fi
  done
  for pid in "${pids[@]}"; do wait "$pid" || true; done
  code=$(gcloud compute tpus tpu-vm ssh "$1" "${where[@]}" --worker=0 --command="cat $job.exit" || true)
}
"""
MAIN_CREATE = """
tries=0
while :; do
  have_slice
  train "$name" "${vms[@]}"
  if [ "$code" ]; then break; fi                                  # the job has ended
  if [ "$(state)" = ACTIVE ]; then tries=$((tries + 1)); fi       # else it was preempted
  if [ "$tries" = 10 ]; then echo "$name: cannot be reached" >&2; fi
  if [ "$tries" = 10 ]; then break; fi
  sleep "${PAUSE:-20}"
done
fetch "${vms[0]}" "$name" || true
remove
exit "${code:-255}"
"""
MAIN_VMS = """
failed=0
for job in "${jobs[@]}"; do
  code=
  for _ in $(seq 10); do
    train "$job" "$vm"
    if [ "$code" ]; then break; fi # the connection broke, not the job
    sleep "${PAUSE:-20}"
  done
  fetch "$vm" "$job" || true
  if [ "${code:-255}" != 0 ]; then failed=${code:-255}; fi
done
exit "$failed"
"""
WORKER = """\
#!/usr/bin/env bash
# On every worker: starts the job unless it is at work, waits for it, and ends with its exit code.
set -euo pipefail
cd ~
name={name}
job() {{
  cd ~/isoflop && {command}
}}
if ! {{ [ -f "$name.pid" ] && kill -0 "$(cat "$name.pid")" 2>/dev/null; }}; then
  rm -f "$name.exit"
  {setup}
  cd ~
  ( # it outlives the connection
    trap '' HUP
    echo "{started}$(date '+%Y-%m-%d %H:%M:%S %z') ----"
    code=0
    job || code=$?
    echo "$code" >~/"$name.exit"
  ) >>"$name.log" 2>&1 </dev/null &
  echo "$!" >"$name.pid"
fi
tail --pid="$(cat "$name.pid")" -f /dev/null
exit "$(cat "$name.exit" || echo 1)"
"""


class Gcloud:
  """Jobs on Cloud TPUs, each followed by a script in the background of this machine."""

  name, stays, every = "gcloud", False, 30.0

  def __init__(self, asked: Asked):
    self.asked, self._words = asked, asked.words
    self.folder = cloud.local_folder(asked, self.name)
    self.vms = [vm for vm in self._words.get("vms", "").split(",") if vm]
    self.poll = ask

  def jobs(self, members: Sequence[Member]) -> list[Job]:
    return cloud.jobs_of(self.asked, members, jobs_.read_switch(self._words, "stacked"))

  def room(self, working: int) -> int:
    return jobs_.limited(1 << 30, self.asked.workers, working)

  def place(self, job: Job) -> Placement:
    """The slices of a job."""
    chips, slices = (
      jobs_.read_count(self._words, key, d) for key, d in (("chips", None), ("slices", 1))
    )
    mfu = throughput.read_mfu(self._words.get("mfu"))
    name = accelerators.find_chip_family(self._words.get("chip"), OFFERED)
    return accelerators.place(job.members, name, chips, slices, mfu)

  def submit(self, jobs: Sequence[Job], locks: Sequence[Sequence[Lock]]) -> list[Ticket]:
    if not jobs:
      return []
    files = self.files(jobs, codes.bundle(self.folder, jobs_.read_switch(self._words, "patch")))
    self.folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
      (self.folder / name).write_text(content, encoding="utf-8")
    for script in (name for name in files if name.endswith(".sh") and ".worker." not in name):
      with open(self.folder / f"{script}.log", "a", encoding="utf-8") as log:
        process = subprocess.Popen(
          ["bash", str((self.folder / script).resolve())],
          stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
      STARTED.append(process)
      for name in self._jobs_in(script, jobs):
        (self.folder / f"{name}.pid").write_text(str(process.pid))
    names = [cloud.job_name(self.asked, job.members) for job in jobs]
    return [
      Ticket(self.name, name, str(self.folder / f"{name}.log"), time.time()) for name in names
    ]

  def cancel(self, ticket: Ticket) -> None:
    """Ends the script and gives the slice back; what was trained is in the bucket."""
    pid = _pid(ticket)
    if pid:
      os.killpg(pid, signal.SIGTERM)
    if not self.vms:
      _gcloud("queued-resources", "delete", ticket.id, *self._where(), "--force", "--quiet")

  def logs(self, ticket: Ticket) -> str:
    return jobs_.last_attempt(pathlib.Path(ticket.log))

  def dry_run(self, members: Sequence[Member]) -> str:
    code = codes.Code(
      codes.check(jobs_.read_switch(self._words, "patch")), self.folder / "code.bundle", None
    )
    jobs = self.jobs(members)
    files = self.files(jobs, code)
    parts = [f"# ==> {self.folder / name}\n{content}" for name, content in files.items()]
    bill = "" if self.vms else cloud.bill([self.place(job) for job in jobs])
    return "\n".join(parts + [bill] * bool(bill)) or "nothing to do"

  def files(self, jobs: Sequence[Job], code: codes.Code) -> dict[str, str]:
    """{name: content} of every script, and of the lists of stacks."""
    found: dict[str, str] = {}
    for job in jobs:
      found |= {str(path): content for path, content in job.files.items()}
      name = cloud.job_name(self.asked, job.members)
      found[f"{name}.worker.sh"] = self._worker(name, job, code)
    if self.vms:
      for index, vm in enumerate(self.vms):
        if mine := jobs[index :: len(self.vms)]:
          found[f"vm-{vm}.sh"] = self._vm_script(vm, mine, code)
    else:
      for job in jobs:
        found[f"{cloud.job_name(self.asked, job.members)}.sh"] = self._slice_script(job, code)
    return found

  def _slice_script(self, job: Job, code: codes.Code) -> str:
    placed, name = self.place(job), cloud.job_name(self.asked, job.members)
    family, many = placed.family, placed.slices > 1
    vms = [f"{name}-{i}" for i in range(placed.slices)] if many else [name]
    title = f"{self.asked.experiment}: {placed.words}"
    return "".join([
      self._head(title, [job], code),
      CREATE.format(
        name=name, vms=" ".join(vms),
        nodes=f"--node-count={placed.slices} --node-prefix={name}" if many else f"--node-id={name}",
        accelerator=placed.accelerator(family.gcloud), runtime=family.runtime,
        spot=" --spot" if jobs_.read_switch(self._words, "spot", True) else "",
      ),
      TRAIN, MAIN_CREATE,
    ])  # fmt: skip

  def _vm_script(self, vm: str, jobs: Sequence[Job], code: codes.Code) -> str:
    names = [cloud.job_name(self.asked, job.members) for job in jobs]
    title = (
      f"{self.asked.experiment}: {number_of(len(jobs), 'job')} one after another on the TPU VM {vm}"
    )
    lists = f"\nvm={shlex.quote(vm)}\njobs=({shlex.join(names)})\n"
    return self._head(title, jobs, code) + lists + TRAIN + MAIN_VMS

  def _head(self, title: str, jobs: Sequence[Job], code: codes.Code) -> str:
    files = ["code.bundle", *(["code.patch"] if code.patch else [])]
    files += [str(path) for job in jobs for path in job.files]
    words = "; ".join(", ".join(m.name for m in job.members) for job in jobs)
    return HEAD.format(
      title=title, jobs=words, where=shlex.join(self._where()),
      files=" ".join([*(shlex.quote(f) for f in files), "./*.worker.sh"]),
    )  # fmt: skip

  def _worker(self, name: str, job: Job, code: codes.Code) -> str:
    extra = "tpu" if self.vms else self.place(job).family.extra
    lines = [*codes.unpack(code), *codes.install(extra, self.asked.folder)]
    return WORKER.format(
      name=name, setup="\n  ".join(lines), command=cloud.script_lines(job), started=jobs_.STARTED
    )

  def _where(self) -> list[str]:
    words = [f"--zone={self._words['zone']}"]
    return words + ([f"--project={self._words['project']}"] if "project" in self._words else [])

  def _jobs_in(self, script: str, jobs: Sequence[Job]) -> list[str]:
    """Names of the jobs that a script follows."""
    names = [cloud.job_name(self.asked, job.members) for job in jobs]
    if script.startswith("vm-") and self.vms:
      return names[self.vms.index(script[3:-3]) :: len(self.vms)]
    return [script[:-3]]


def make(asked: Asked, members: Sequence[Member]) -> Gcloud:
  """ConfigError where gcloud or a zone is missing, the code is not committed, or a chip does not fit."""
  cloud.check_folder(asked, "gcloud")
  if "zone" not in asked.words:
    raise ConfigError("with=zone: is missing; name the zone of the TPUs, --with zone=us-east5-a")
  name = r"[a-z]([a-z0-9-]*[a-z0-9])?"
  project = rf"([a-z0-9.-]+:)?{name}"
  jobs_.check_names(asked.words, {"zone": name, "project": project, "vms": f"{name}(,{name})*"})
  backend = Gcloud(asked)
  created = [key for key in ("chip", "chips", "slices", "spot") if key in asked.words]
  if backend.vms and created:
    raise ConfigError(
      f"with={created[0]}={asked.words[created[0]]}: is of slices that are created, and --with vms names "
      "machines that are there; leave one out"
    )
  if len(set(backend.vms)) < len(backend.vms):
    raise ConfigError(f"with=vms={asked.words['vms']}: names a machine twice; leave one out")
  cloud.check_jobs(asked, backend, members, placed=not backend.vms)
  if not asked.dry_run:
    _need_gcloud()
    out = subprocess.run(
      ["gcloud", "auth", "list", "--filter=status:ACTIVE", "--format=value(account)"],
      capture_output=True, text=True, check=False,
    )  # fmt: skip
    if out.returncode or not out.stdout.strip():
      raise ConfigError("on=gcloud: nobody is signed in; run gcloud auth login")
  return backend


def ask(tickets: Sequence[Ticket]) -> list[State]:
  """States by the queued resources of that name in all zones, and by the scripts of this machine."""
  if not tickets:
    return []
  _need_gcloud()
  out = _gcloud("queued-resources", "list", "--zone=-", "--format=json")
  if out.returncode:
    last = (out.stderr.strip().splitlines() or ["no reason given"])[-1]
    raise ConfigError(f"on=gcloud: cannot list queued resources ({last})")
  found = {row["name"].rpartition("/")[2]: row["state"]["state"] for row in json.loads(out.stdout)}
  states = []
  for ticket in tickets:
    said = found.get(ticket.id)
    if said in LIVE:
      states.append(State(LIVE[said], None, said.lower()))
    elif _pid(ticket):
      states.append(State("queued", None, (said or "its script is at work").lower()))
    else:
      states.append(State("ended", None, said and said.lower()))
  return states


def _pid(ticket: Ticket) -> int | None:
  """The process of the script that follows a job, if it lives on this machine."""
  if not ticket.log:
    return None
  for process in STARTED:
    process.poll()  # or one that has ended would look alive
  try:
    pid = int(pathlib.Path(ticket.log).with_suffix(".pid").read_text())
    os.kill(pid, 0)
    return pid
  except (OSError, ValueError):
    return None


def _need_gcloud() -> None:
  if shutil.which("gcloud") is None:
    raise ConfigError("on=gcloud: there is no gcloud here; install the Google Cloud CLI")


def _gcloud(*words: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    ["gcloud", "compute", "tpus", *words], capture_output=True, text=True, check=False
  )
