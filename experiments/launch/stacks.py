"""Which runs can be trained side by side in one program, and the file that describes such a stack."""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence

from experiments.launch.jobs import Job, local_jobs
from experiments.sweep.sweep import REPO, Member, config_path, devices_needed
from lm.config.identity import identity_fields
from lm.runs.rundir import checkpoint_steps
from lm.setup.hparams import varying_keys


def stacked_jobs(members: Sequence[Member], settings: Mapping[str, object], size: int) -> list[Job]:
  """A job for up to `size` runs of one program and one length, trained side by side."""
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
  free = varying_keys(member.cfg)
  fields = {k: v for k, v in identity_fields(member.cfg).items() if k not in free}
  text = json.dumps([fields, devices_needed(member.asked)], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


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
  content = "\n".join(lines) + "\n"
  digest = hashlib.sha256(content.rstrip().encode()).hexdigest()[:12]
  file = folder / f"{digest}.jsonl"
  command = (sys.executable, str(REPO / "train.py"), "--stack", str(file))
  return Job(tuple(group), command, folder / f"{digest}.log", {file: content})
