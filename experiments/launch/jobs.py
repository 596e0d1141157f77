"""What a back end is given and what it answers: jobs, tickets, states, and the interface of all back ends.

A job is one process (or one set of processes that jax.distributed joins) and the runs it trains. A
back end turns runs into jobs and starts them somewhere; the loop in loop.py does the rest. The
ticket of a job lies in the directory of each of its runs as job.json, so that another launcher, or
`status`, finds the job again.
"""

import dataclasses
import json
import math
import pathlib
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from experiments.launch.locks import Lock
from experiments.sweep.sweep import REPO, Member, config_path
from lm.config.command_line import once
from lm.config.errors import ConfigError, suggest
from lm.files import write_json

STARTED = "---- started "  # begins the line that a log gets at every start


@dataclasses.dataclass(frozen=True)
class Job:
  """One process and the runs it trains.

  Args:
    members: those runs.
    command: of the process.
    log: what its output is appended to.
    files: {path: content} to be written before it starts.
  """

  members: tuple[Member, ...]
  command: tuple[str, ...]
  log: pathlib.Path
  files: Mapping[pathlib.Path, str] = dataclasses.field(default_factory=dict)

  @property
  def name(self) -> str:
    return self.members[0].name


class Ticket(NamedTuple):
  """A job that has been submitted: the back end, and the name it goes by there."""

  on: str
  id: str
  log: str
  submitted: float  # seconds since 1970
  predicted: float | None = None  # seconds


class State(NamedTuple):
  """How a submitted job stands.

  Args:
    status: queued | running | ended.
    code: of a job that has ended, its exit code, -N for death by signal N; None where nobody knows.
    reason: what the back end says about it.
  """

  status: str
  code: int | None = None
  reason: str | None = None


@dataclasses.dataclass(frozen=True)
class Asked:
  """What the command line says about where and how to run.

  Args:
    experiment: name of the experiment.
    folder: of its runs, a path or a URL.
    settings: config keys set on every run that do not change what it computes (log.*).
    workers: jobs at a time; None = as many as fit.
    stack: runs in one stack at most.
    words: KEY=VALUE options that the back end defines, as read_words gives them.
    question: what the runs are for, in a sentence.
    dry_run: nothing will be submitted, so client programs need not be there.
  """

  experiment: str
  folder: str
  settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
  workers: int | None = None
  stack: int = 8
  words: Mapping[str, str] = dataclasses.field(default_factory=dict)
  question: str = ""
  dry_run: bool = False


class BackEnd(Protocol):
  """Where jobs run. A back end is one file with a class like this, and one row in backends.py."""

  name: str
  stays: bool  # its jobs end with the launcher; if not, they go on without it
  every: float  # seconds between polls

  def jobs(self, members: Sequence[Member]) -> list[Job]:
    """How runs are put together: a job a run, or stacks."""

  def room(self, working: int) -> int:
    """How many more jobs it takes while `working` of ours are there."""

  def submit(self, jobs: Sequence[Job], locks: Sequence[Sequence[Lock]]) -> list[Ticket]:
    """Starts or queues jobs; `locks` of each job's runs are held by the launcher until it returns."""

  def poll(self, tickets: Sequence[Ticket]) -> list[State]:
    """The state of each."""

  def cancel(self, ticket: Ticket) -> None:
    """Asks a job to save a checkpoint and end."""

  def logs(self, ticket: Ticket) -> str:
    """What the job has written since it was last started."""

  def dry_run(self, members: Sequence[Member]) -> str:
    """What `submit` would start or create for these runs, as text."""


# ---- Commands ------------------------------------------------------------------------------------


def train_command(
  member: Member,
  settings: Mapping[str, object],
  workdir: str | None = None,
  python: str = sys.executable,
  repo: str = str(REPO),
) -> tuple[str, ...]:
  """The command that trains one run.

  Args:
    settings: keys set besides the run's own.
    workdir: its address where the command runs; the member's own if None.
    python: the interpreter there.
    repo: folder of the code there; "" = the working directory.
  """
  spec = config_path(member.run.config)
  if repo != str(REPO):
    spec = spec.removeprefix(f"{REPO}/").removeprefix("./")
  script = f"{repo}/train.py" if repo else "train.py"
  changes = {**member.run.overrides, **settings}
  words = tuple(f"--config.{key}={as_text(value)}" for key, value in changes.items())
  return (python, script, "--config", spec, "--workdir", workdir or str(member.workdir), *words)


def local_jobs(
  members: Sequence[Member], settings: Mapping[str, object], folder: str | None = None
) -> list[Job]:
  """A job a run; in a folder with an address (gs://, s3://), where one is given."""
  at = lambda m: f"{folder}/{m.name}" if folder else None
  return [Job((m,), train_command(m, settings, at(m)), m.workdir / "log.txt") for m in members]


def as_text(value: object) -> str:
  """A value as lm.config.read takes it from the command line."""
  if isinstance(value, list | tuple):
    return ",".join(map(str, value))
  return str(value)


def read_words(pairs: Sequence[str], known: Mapping[str, str], on: str) -> dict[str, str]:
  """{key: value} of KEY=VALUE options; ConfigError for a key that the back end does not define."""
  for text in pairs:
    key, equals, value = text.partition("=")
    if not equals:
      raise ConfigError(f"with={text}: must be KEY=VALUE; --on {on} knows {', '.join(known)}")
    if key not in known:
      hint = suggest(key, known) if known else "leave it out"
      raise ConfigError(f"with={text}: --on {on} knows no {key or 'such option'}; {hint}")
    if not value:
      raise ConfigError(f"with={text}: names nothing; give {key} a value, or leave it out")
  split = (text.partition("=") for text in pairs)
  return once("with", ((key, value) for key, _, value in split))


def read_count(
  words: Mapping[str, str], key: str, default: int | None = None, least: int = 1
) -> int | None:
  """A whole number >= `least` among the words of a back end."""
  if key not in words:
    return default
  if not re.fullmatch(r"[0-9]{1,9}", words[key]) or int(words[key]) < least:
    raise ConfigError(
      f"with={key}={words[key]}: must be a whole number of at least {least}; use {least}"
    )
  return int(words[key])


def check_names(words: Mapping[str, str], patterns: Mapping[str, str]) -> None:
  """ConfigError where a word does not match its pattern in full."""
  for key, pattern in patterns.items():
    if key in words and not re.fullmatch(pattern, words[key], re.ASCII):
      raise ConfigError(f"with={key}={words[key]}: must be a name, as {pattern} says; correct it")


def read_switch(words: Mapping[str, str], key: str, default: bool = False) -> bool:
  """yes or no among the words of a back end."""
  word = words.get(key, "yes" if default else "no")
  if word not in ("yes", "no"):
    raise ConfigError(f"with={key}={word}: must be yes or no; use yes")
  return word == "yes"


def limited(room: float, workers: int | None, working: int) -> int:
  """Jobs there is room for when --workers limits them."""
  return int(min(room, math.inf if workers is None else max(0, workers - working), 1 << 30))


# ---- Logs ----------------------------------------------------------------------------------------


def start_line() -> str:
  """The line that separates what a job writes from what earlier attempts wrote."""
  return f"{STARTED}{time.strftime('%Y-%m-%d %H:%M:%S %z')} ----\n"


def last_attempt(path: pathlib.Path) -> str:
  """What a log holds since the job was last started; "" if there is no log."""
  if not path.exists():
    return ""
  text = path.read_text(encoding="utf-8", errors="replace")
  before, found, after = text.rpartition(STARTED)
  return after.partition("\n")[2] if found else before or after


def last_line(path: pathlib.Path) -> str:
  """The last line of the last attempt that says something; for a crash, the error."""
  lines = [line.strip() for line in last_attempt(path).split("\n")]
  lines = [line for line in lines if line and not line.startswith("wandb:")]
  return lines[-1] if lines else ""


# ---- Tickets -------------------------------------------------------------------------------------


def keep_ticket(workdir: pathlib.Path, ticket: Ticket) -> None:
  """Writes job.json into a run directory."""
  write_json(workdir / "job.json", ticket._asdict())


def read_ticket(workdir: pathlib.Path) -> Ticket | None:
  """The ticket of the last job that was to train a run; None if there is none."""
  try:
    found = json.loads((workdir / "job.json").read_text(encoding="utf-8"))
    return Ticket(**{key: found[key] for key in Ticket._fields if key in found})
  except (FileNotFoundError, ValueError, TypeError):
    return None
