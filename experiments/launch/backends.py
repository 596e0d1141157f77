"""The table of back ends: where `experiments run NAME --on BACKEND` can train runs."""

import pathlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from experiments.launch import gcloud, jobset, local, skypilot, slurm, stacked
from experiments.launch.jobs import Asked, BackEnd, State, Ticket, read_ticket, read_words
from experiments.sweep.sweep import Member
from lm.config.errors import ConfigError, suggest


class Row(NamedTuple):
  """One back end.

  Args:
    make: what `run` asks for and the runs to a BackEnd; ConfigError where it cannot be used here.
    about: what it is, for --help.
    words: {key: meaning} of the options it takes by --with KEY=VALUE.
    ask: the states of jobs that any launcher submitted; None where jobs end with their launcher.
    remote: run directories are in a bucket, and jobs go by names (cloud.py).
  """

  make: Callable[[Asked, Sequence[Member]], BackEnd]
  about: str
  words: Mapping[str, str]
  ask: Callable[[Sequence[Ticket]], list[State]] | None = None
  remote: bool = False


BACKENDS: dict[str, Row] = {
  "local": Row(local.make, "a process a run, on this machine", local.WORDS),
  "stacked": Row(stacked.make, "several runs in one process, on this machine", stacked.WORDS),
  "slurm": Row(slurm.make, "arrays of jobs of a Slurm cluster", slurm.WORDS, slurm.ask),
  "skypilot": Row(
    skypilot.make,
    "managed jobs of SkyPilot, TPUs and GPUs",
    skypilot.WORDS,
    skypilot.ask,
    remote=True,
  ),
  "gcloud": Row(
    gcloud.make,
    "Cloud TPU slices by queued resources, or TPU VMs by name",
    gcloud.WORDS,
    gcloud.ask,
    remote=True,
  ),
  "jobset": Row(
    jobset.make, "JobSets of a Kubernetes cluster (GKE, xpk)", jobset.WORDS, jobset.ask, remote=True
  ),
}


# what people call back ends, and what does it here
ELSEWHERE = dict.fromkeys(
  ("xpk", "gke", "kubernetes", "k8s"), "use --on jobset, which writes JobSets of Kubernetes"
)
ELSEWHERE |= {
  "sky": "use --on skypilot",
  "sbatch": "use --on slurm",
  "submitit": "use --on slurm",
  "wandb": "W&B's agents take runs of a sweep that `experiments wandb-sweep NAME` writes",
  "optuna": "Optuna proposes runs to any back end that stays, with --optuna N KEY=RANGE",
}  # fmt: skip


def find(name: str, pairs: Sequence[str] = ()) -> tuple[Row, dict[str, str]]:
  """The row of a back end and its --with options, checked.

  Raises:
    ConfigError: no such back end, or an option that it does not define.
  """
  if name not in BACKENDS:
    raise ConfigError(
      f"on={name}: is no back end; {ELSEWHERE.get(name) or suggest(name, BACKENDS)}"
    )
  row = BACKENDS[name]
  return row, read_words(pairs, row.words, name)


def state_of(ticket: Ticket) -> State | None:
  """How a job that was left at work stands; None where its back end cannot say."""
  row = BACKENDS.get(ticket.on)
  return row.ask([ticket])[0] if row and row.ask else None


def live_ticket(workdir: pathlib.Path) -> Ticket | None:
  """The job that some launcher has submitted for a run, if it is still queued or running."""
  ticket = read_ticket(workdir)
  state = ticket and state_of(ticket)
  return ticket if state and state.status != "ended" else None


def words_help() -> str:
  """The --with options of every back end, for the end of --help."""
  lines = ["options of back ends, --with KEY=VALUE, as often as there are any:"]
  for name, row in BACKENDS.items():
    for i, (key, text) in enumerate(row.words.items()):
      head = f"  {name if i == 0 else '':<9} {key:<14} "
      lines += textwrap.wrap(text, 100, initial_indent=head, subsequent_indent=" " * len(head))
  return "\n".join(lines)
