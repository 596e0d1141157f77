"""What back ends in the cloud share: addresses of runs in a bucket, and what is left to submit.

Nothing of a run is on this machine: its directory is in a bucket, its job goes by a name that follows
from what it computes. So whoever looks, from wherever, finds the same jobs.
"""

import hashlib
import json
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence

from experiments.launch import code as codes
from experiments.launch import jobs as jobs_
from experiments.launch.accelerators import Placement
from experiments.launch.jobs import Asked, BackEnd, Job, State, Ticket, train_command
from experiments.launch.stacks import stack_groups
from experiments.ledger.rows import read_row
from experiments.sweep.sweep import REPO, Member, config_path
from lm.config.errors import ConfigError, number_of

BUCKETS = ("gs://", "s3://", "r2://", "az://", "memory://")


def check_folder(asked: Asked, on: str) -> None:
  """ConfigError unless the runs are to lie in a bucket."""
  if not asked.folder.startswith(BUCKETS):
    root = asked.folder.rpartition("/")[0]
    raise ConfigError(
      f"root={root}: runs of --on {on} must outlive their machines; use a bucket, --root gs://BUCKET/runs"
    )


def check_jobs(asked: Asked, backend, members: Sequence[Member], placed: bool = True) -> None:
  """ConfigError before anything is created: words that mean nothing, a chip that does not fit, loose code.

  Args:
    backend: of the cloud, whose `place` says where a job runs.
    placed: False where jobs go to machines that are there already.
  """
  jobs_.read_count(asked.words, "restarts", least=0)
  for key in ("spot", "stacked"):
    jobs_.read_switch(asked.words, key)
  patch = jobs_.read_switch(asked.words, "patch")
  jobs = backend.jobs(members)
  for job in jobs if placed else ():
    backend.place(job)
  codes.check(patch)


def local_folder(asked: Asked, on: str) -> pathlib.Path:
  """Where the files of the jobs are written on this machine."""
  return pathlib.Path("runs") / asked.experiment / on


def address(asked: Asked, member: Member) -> str:
  """The URL of a run's directory."""
  return f"{asked.folder}/{member.name}"


def job_name(asked: Asked, members: Sequence[Member]) -> str:
  """A name that follows from what the job computes: a letter, then letters, digits and hyphens, 45 at most.

  >>> job_name(Asked("lr_sweep", "gs://b/runs/lr_sweep"), [])
  'lr-sweep-97d170e1'
  """
  text = json.dumps([asked.folder, [[m.name, m.id] for m in members]])
  digest = hashlib.sha256(text.encode()).hexdigest()[:8]
  base = re.sub(r"[^a-z0-9]+", "-", asked.experiment.lower()).strip("-")[:31].strip("-")
  return f"{base if base[:1].isalpha() else f'run-{base}'.strip('-')}-{digest}"


def jobs_of(asked: Asked, members: Sequence[Member], stacked: bool) -> list[Job]:
  """Jobs whose commands run in the code's folder on another machine, runs addressed by URL."""
  groups = stack_groups(members, asked.stack) if stacked else [[m] for m in members]
  jobs = []
  for group in groups:
    name = job_name(asked, group)
    log = pathlib.Path(f"{name}.log")
    for member in group:
      _config_there(member)
    if len(group) == 1:
      workdir = address(asked, group[0])
      command = train_command(group[0], asked.settings, workdir, ".venv/bin/python", repo="")
      jobs.append(Job((group[0],), command, log))
      continue
    lines = [json.dumps(_stacked_line(asked, m)) for m in group]
    file = pathlib.Path(f"{name}.jsonl")
    command = (".venv/bin/python", "train.py", "--stack", f"../{file}")
    jobs.append(Job(tuple(group), command, log, {file: "\n".join(lines) + "\n"}))
  return jobs


def _stacked_line(asked: Asked, member: Member) -> dict[str, object]:
  spec = _config_there(member)
  overrides = {**member.run.overrides, **asked.settings}
  return {"config": spec, "overrides": overrides, "workdir": address(asked, member)}


def _config_there(member: Member) -> str:
  """The config's path in the code's folder; ConfigError for a file that is not part of the code."""
  path, colon, argument = member.run.config.partition(":")
  found = pathlib.Path(config_path(path)).resolve()
  if not found.is_relative_to(REPO):
    raise ConfigError(
      f"config={path}: lies outside the code, which is all that is sent; put it into configs/"
    )
  return f"{found.relative_to(REPO)}{colon}{argument}"


def script_lines(job: Job) -> str:
  """The job's command as a line of shell."""
  return shlex.join(job.command)


def quote(job: Job, placed: Placement) -> str:
  """A job's line above what is created for it: its runs, and where, how long, how dear."""
  names = [m.name for m in job.members]
  more = f" and {len(names) - 3} more" if len(names) > 3 else ""
  return f"# {', '.join(names[:3])}{more}: {placed.words}"


def bill(placed: Sequence[Placement]) -> str:
  """The last line of a dry run: what all jobs cost together; "" where there are no jobs."""
  if not placed:
    return ""
  hours = sum(p.seconds for p in placed) / 3600
  dollars = [p.dollars for p in placed]
  known = [d for d in dollars if d is not None]
  price = f"about {sum(known):,.2f} USD at list price" if known else "no list price is published"
  return f"# in all: {number_of(len(placed), 'job')}, {hours:,.2f} h one after another, {price}"


def submit_missing(
  asked: Asked, members: Sequence[Member], backend: BackEnd, retry: bool
) -> dict[str, dict]:
  """Submits what is neither done, nor failed, nor at work already; returns {name: row} of every run."""
  rows = {m.name: read_row(address(asked, m), m.name) for m in members}
  left = []
  for member in members:
    status = rows[member.name]["status"]
    if status not in ("done", "unreadable") and (status != "failed" or retry):
      left.append(member)
  jobs = backend.jobs(left)
  tickets = [Ticket(backend.name, job_name(asked, job.members), "", 0.0) for job in jobs]
  states = backend.poll(tickets)
  mine = [job for job, s in zip(jobs, states, strict=True) if s.status == "ended"]
  room = backend.room(len(jobs) - len(mine))
  for job, state in zip(jobs, states, strict=True):
    if state.status != "ended":
      rows |= {m.name: {**rows[m.name], "status": state.status} for m in job.members}
  backend.submit(mine[:room], [()] * len(mine[:room]))
  for job in mine[:room]:
    rows |= {m.name: {**rows[m.name], "status": "queued"} for m in job.members}
  return rows


def overlay(rows: Sequence[Mapping], states: Mapping[str, State]) -> list[dict]:
  """Rows with what the engine says of runs that have not begun to write."""
  found = []
  for row in rows:
    state = states.get(row["name"])
    if state and state.status != "ended" and row["status"] == "waiting":
      row = {**row, "status": state.status, "reason": state.reason}
    found.append(dict(row))
  return found
