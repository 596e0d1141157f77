"""One trunk, many horizons: runs that differ in their budget alone share what their schedules agree on.

With a constant or WSD schedule and warm-up in tokens, the learning rate of a longer run is that of a shorter
one until the shorter one's decay begins. So the runs of a setting are trained in order of length, and each
goes on from the checkpoint where the decay of the one before it began: a grid over D costs its longest run
and the decays. What each ends with is, to the bit, what it would have ended with alone
(experiments/sweep/halving.py has the copy; which step is shared is decided by comparing the rates of both
runs step by step, in float32). Hägele et al. 2024, arXiv:2405.18392.
"""

import itertools
import pathlib
from collections.abc import Mapping, Sequence

from experiments.sweep.halving import go_on, has_begun, shared_steps
from experiments.sweep.sweep import Member, Run, resolve_run
from lm.config.errors import ConfigError, number_of
from lm.config.identity import identity_fields
from lm.config.schema import BUDGETS
from lm.setup.resolve import schedule_steps, tokens_per_step

LENGTHS = (*BUDGETS, "eval.every_steps")  # in which the runs of a trunk may differ
KEPT = 4  # checkpoints: where a decay begins, multiples of it, and the end


class Branches:
  """Runs in the order in which they can be trained, each with the run that it branches from.

  Args:
    members: of a sweep, with budgets of one kind; their evaluations are set to the same steps, and their
      checkpoints to where the decay begins.

  Raises:
    ConfigError: no two runs differ in their budget alone, or their schedules share no steps.
  """

  def __init__(self, members: Sequence[Member]):
    trunks: dict[tuple, list[Member]] = {}
    for member in members:
      fields = identity_fields(member.cfg)
      key = tuple(f"{k}={v}" for k, v in fields.items() if k not in LENGTHS)
      trunks.setdefault(key, []).append(member)
    self.members: list[Member] = []
    self._source: dict[str, tuple[Member, int]] = {}
    for group in trunks.values():
      group = sorted(group, key=lambda m: m.cfg.train.steps or 0)
      every = group[0].cfg.eval.every_steps
      assert every is not None  # of a resolved config
      made = [_with_checkpoints(member, every) for member in group]
      for below, above in itertools.pairwise(made):
        shared = shared_steps(below.cfg, above.cfg)
        if not shared:
          raise ConfigError(
            f"branch={above.name}: its learning rates are not those of {below.name} for at least half "
            f"of that run's steps (optim.schedule={above.cfg.optim.schedule}, warm-up); use constant or "
            "wsd with optim.warmup_tokens, or leave out --branch"
          )
        self._source[above.name] = below, shared
      self.members += made
    if not self._source:
      raise ConfigError(
        "branch=True: no two runs differ in their budget alone; add --grid train.tokens=A,B, or leave it out"
      )

  def wanted(self, rows: Mapping[str, Mapping]) -> list[Member]:
    """For `launch`: the runs whose trunk has ended, well or not."""
    ended = lambda m: rows.get(m.name, {}).get("status") in ("done", "failed", "unreadable")
    return [m for m in self.members if m.name not in self._source or ended(self._source[m.name][0])]

  def begin(self, member: Member) -> None:
    """For `launch`: gives a run that has not begun the checkpoint that it branches from."""
    if member.name in self._source and not has_begun(member.workdir):
      below, shared = self._source[member.name]
      member.workdir.mkdir(parents=True, exist_ok=True)
      go_on(below.workdir, member, shared)

  def shared(self, name: str) -> int:
    """Steps that a run takes over from the one before it."""
    return self._source[name][1] if name in self._source else 0

  def words(self) -> str:
    """What branching saves, for `plan`."""
    alone = sum(m.cfg.train.tokens or 0 for m in self.members)
    saved = sum(self.shared(m.name) * tokens_per_step(m.cfg) for m in self.members)
    return (
      f"branch: of {number_of(len(self.members), 'run')}, {len(self._source)} from a shorter one's "
      f"checkpoint; {saved:,.0f} of "
      f"{alone:,} tokens ({saved / alone:.0%}) are computed once and used again"
    )


def _with_checkpoints(member: Member, every: int) -> Member:
  """The run with the group's evaluations, and a checkpoint where its decay begins."""
  steps, _, decay = schedule_steps(member.cfg)
  begins = steps - decay if member.cfg.optim.schedule == "wsd" else steps
  changes = {
    "eval.every_steps": every, "checkpoint.every_steps": max(begins, 1),
    "checkpoint.keep": max(KEPT, member.cfg.checkpoint.keep),
  }  # fmt: skip
  run = Run(member.name, {**member.run.overrides, **changes}, member.run.config)
  return resolve_run(run, pathlib.Path(member.workdir).parent)
