"""Successive halving: every run at a small budget, the best of them at ever larger ones.

Where a run and the same run at the next rung are one and the same up to some step, the promoted one
goes on from there and ends as if it had never been interrupted. Schedules decide: with `constant` or
`inverse_sqrt` that step is the end of the rung below, with `wsd` the beginning of its decay, if
warm-up is given in tokens. Schedules shaped to the budget (cosine, linear) share nothing, and each
rung is trained anew: to rank runs in mid-schedule would be to rank schedules.

Jamieson & Talwalkar 2016, arXiv:1502.07943; asynchronous promotion and going on: Li et al. 2020,
arXiv:1810.05934.
"""

import dataclasses
import json
import math
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.sweep.sweep import Member, Run, resolve_run
from lm.config.errors import ConfigError
from lm.config.identity import identity_fields
from lm.config.schema import BUDGETS, Config, flatten
from lm.data import curriculum
from lm.files import read_jsonl, write_json
from lm.optim.schedules import lr_multiplier
from lm.runs import manifest
from lm.runs.checkpoint import best_step
from lm.runs.rundir import checkpoint_steps, read_run
from lm.setup.hparams import make_hparams

LEAST_SHARED = 0.5  # of a rung's steps: less is not worth a checkpoint
RECORDS = ("metrics", "perf", "samples")  # .jsonl files of a run directory


@dataclasses.dataclass(frozen=True)
class Halving:
  """Successive halving: rung k of `rungs` has budget eta ** (k + 1 - rungs) of the config's."""

  eta: int = 3
  rungs: int = 3

  def __post_init__(self):
    if self.eta < 2:
      raise ConfigError(f"halving={self.eta}:{self.rungs}: eta must be at least 2; use 3")
    if self.rungs < 2:
      raise ConfigError(f"halving={self.eta}:{self.rungs}: needs at least 2 rungs; use 3")
    if max(self.eta, self.rungs) > 1000 or self.eta**self.rungs > 10**12:
      raise ConfigError(
        f"halving={self.eta}:{self.rungs}: its shortest runs have {self.eta} ** -{self.rungs - 1} of the "
        "budget, which is no step; use 3:3"
      )


def parse_halving(text: str) -> Halving:
  """Halving(3, 4) from `3:4`."""
  eta, _, rungs = text.partition(":")
  try:
    return Halving(int(eta), int(rungs))
  except ValueError as error:
    if isinstance(error, ConfigError):
      raise
    raise ConfigError(f"halving={text}: must be ETA:RUNGS, two integers; for example 3:3") from None


class Rungs:
  """The runs of every rung, made when they are asked for.

  Args:
    members: the runs at full budget.
    halving: how budgets grow.

  Raises:
    ConfigError: the lowest rung is shorter than a step, or than its warm-up.
  """

  def __init__(self, members: Sequence[Member], halving: Halving):
    self._members, self._halving = members, halving
    self._full = {rung_name(m.name, k): (m, k) for m in members for k in range(halving.rungs)}
    self._made: dict[str, Member] = {}
    for member in members:
      self.at(member, 0)

  def at(self, member: Member, rung: int) -> Member:
    """The run at a rung; `member` is at full budget."""
    name = rung_name(member.name, rung)
    if name not in self._made:
      made = resolve_run(rung_run(member, self._halving, rung), member.workdir.parent)
      make_hparams(made.cfg)  # a warm-up longer than the rung is an error here, not in its process
      self._made[name] = made
    return self._made[name]

  def wanted(self, rows: Mapping[str, Mapping]) -> list[Member]:
    """For `launch`: the runs wanted given the rows so far, those of higher rungs first.

    The best floor(ended / eta) runs of a rung are wanted in the next as soon as there are that many;
    a failed run counts as the worst.
    """
    rungs = [[self.at(member, 0) for member in self._members]]
    for rung in range(1, self._halving.rungs):
      scores = [_final_score(rows.get(m.name)) for m in rungs[-1]]
      ended = sum(score is not None for score in scores)
      ranked = sorted((score, i) for i, score in enumerate(scores) if score is not None)
      best = [i for score, i in ranked[: ended // self._halving.eta] if math.isfinite(score)]
      rungs.append([self.at(self._full[rungs[-1][i].name][0], rung) for i in best])
    return [member for rung in reversed(rungs) for member in rung]

  def begin(self, promoted: Member) -> None:
    """For `launch`: lets a run that has not begun go on from the rung below, as far as they agree."""
    member, rung = self._full[promoted.name]
    if rung and not has_begun(promoted.workdir):
      go_on(self.at(member, rung - 1).workdir, promoted, self.shared(member, rung))

  def share(self) -> float:
    """What is trained, as a fraction of the steps of all runs at full budget.

    sum_k floor(n / eta^k) (h_k - s_k) / (n h), with h_k steps of rung k, s_k of them shared with the
    rung below, averaged over runs.
    """
    n, spent = len(self._members), 0.0
    for member in self._members:
      for rung in range(self._halving.rungs):
        steps = self.at(member, rung).cfg.train.steps - self.shared(member, rung)
        spent += n // self._halving.eta**rung * steps / (n * member.cfg.train.steps)
    return spent / n

  def shared(self, member: Member, rung: int) -> int:
    """Steps that the run at a rung takes over from the rung below."""
    if rung == 0:
      return 0
    return shared_steps(self.at(member, rung - 1).cfg, self.at(member, rung).cfg)

  def words(self) -> str:
    """How promotion works here, for `plan`."""
    eta, rungs = self._halving.eta, self._halving.rungs
    counts = " + ".join(str(len(self._members) // eta**k) for k in range(rungs))
    spent = f"halving {eta}:{rungs} trains {counts} runs, about {self.share():.0%} of that"
    anew = [m for m in self._members if not self.shared(m, 1)]
    if not anew:
      return f"{spent}; promoted runs go on from their checkpoints"
    schedule = anew[0].cfg.optim.schedule
    return (
      f"{spent}; each rung is trained anew, as optim.schedule={schedule} with this warm-up depends on "
      "the budget (with constant or wsd, and optim.warmup_tokens, promoted runs go on)"
    )


def rung_run(member: Member, halving: Halving, rung: int) -> Run:
  """The run with the budget of a rung.

  Args:
    member: the run at full budget; its evaluations set where those of all rungs are.
    halving: how budgets grow.
    rung: 0 is the shortest.
  """
  asked = flatten(member.asked)
  key = next(k for k in BUDGETS if asked[k] is not None)  # the one that was given shrinks
  part = float(halving.eta) ** (rung + 1 - halving.rungs)
  budget = asked[key] * part
  if key in ("train.steps", "train.tokens"):
    budget = max(1, round(budget))
  changes = {key: budget, "eval.every_steps": member.cfg.eval.every_steps}
  if member.asked.checkpoint.every_steps is None:
    changes["checkpoint.every_steps"] = max(1, int(member.cfg.train.steps * part) // 10)
  # the checkpoint that a promoted run goes on from lies before the decay of this one
  decay = member.cfg.optim.decay_frac if member.cfg.optim.schedule == "wsd" else 0.0
  every = changes.get("checkpoint.every_steps", member.cfg.checkpoint.every_steps)
  needed = 2 + math.ceil(decay * member.cfg.train.steps * part / every)
  changes["checkpoint.keep"] = max(member.cfg.checkpoint.keep, needed)
  return Run(rung_name(member.name, rung), {**member.run.overrides, **changes}, member.run.config)


def rung_runs(member: Member, halving: Halving) -> list[Run]:
  """The run at every rung."""
  return [rung_run(member, halving, rung) for rung in range(halving.rungs)]


def rung_name(name: str, rung: int) -> str:
  """The name of a run at a rung."""
  return f"{name},rung={rung}"


def shared_steps(below: Config, above: Config) -> int:
  """Steps after which both runs have the same state, though their budgets differ; 0 if too few.

  Args:
    below: resolved config of the shorter run.
    above: resolved config of the longer run.
  """
  mine, theirs = identity_fields(below), identity_fields(above)
  differ = {key for key in mine if mine[key] != theirs[key]} - set(BUDGETS)
  by_fractions = below.optim.prune != "none"  # of the whole run
  if differ or by_fractions or below.eval.stop_patience is not None:
    return 0
  step = np.arange(below.train.steps)
  rates = [lr_multiplier(c.optim.schedule, step, make_hparams(c)) for c in (below, above)]
  lengths = [np.array([curriculum.length_at(c, s) for s in step]) for c in (below, above)]
  is_other = (np.asarray(rates[0]) != np.asarray(rates[1])) | (lengths[0] != lengths[1])
  unlike = np.flatnonzero(is_other)
  shared = int(unlike[0]) if len(unlike) else below.train.steps
  return shared if shared >= LEAST_SHARED * below.train.steps else 0


def go_on(source: pathlib.Path, member: Member, shared: int) -> None:
  """Gives a run that has not begun the newest checkpoint of `source` within its first `shared` steps.

  The record up to there is what the run itself would have written. Nothing happens where there is no
  such checkpoint, or where the run has begun; killed at any point, it can be done again.
  """
  workdir = member.workdir
  rewinds, steps = _shared_rewinds(source, shared)
  if not steps or has_begun(workdir):
    return
  at, every = max(steps), member.cfg.eval.every_steps
  records = {name: _as_of(source / f"{name}.jsonl", at, every, member.cfg) for name in RECORDS}
  for name in RECORDS:
    lines = [json.dumps(record) + "\n" for record in records[name]]
    (workdir / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
  write_json(workdir / "config.json", dataclasses.asdict(member.cfg))
  write_json(workdir / "trunk.json", {"run": source.name, "step": at})
  best = best_step(records["metrics"], member.cfg, steps)
  copies = workdir / ".copies"
  shutil.rmtree(copies, ignore_errors=True)  # of an attempt that was killed
  for step in {at, best} - {None} if member.cfg.checkpoint.best else {at}:
    shutil.copytree(source / "checkpoints" / str(step), copies / str(step))
    was = manifest.read_origin(copies / str(step)).get("data", {})
    mine = {"config": dataclasses.asdict(member.cfg), "data": was, "rewinds": rewinds}
    manifest.adopt(copies / str(step), mine)
  shutil.rmtree(workdir / "checkpoints", ignore_errors=True)
  os.replace(copies, workdir / "checkpoints")  # what says that the run has begun comes last


def _shared_rewinds(source: pathlib.Path, shared: int) -> tuple[list[dict], list[int]]:
  """(rewinds that a longer run has had too, steps of checkpoints that it would have saved) of a run.

  One for what came after the shared steps is the shorter run's own, and so is what it computed after it.
  """
  found = [r for r in read_run(source).get("rewinds", []) if isinstance(r, dict)]
  later = [r["to"] for r in found if r["bad"] > shared]
  steps = [s for s in checkpoint_steps(source) if s <= min([shared, *later])]
  return [r for r in found if r["bad"] <= shared], steps


def has_begun(workdir: pathlib.Path) -> bool:
  """Whether train.py has been here, or a checkpoint from which it is to go on."""
  return (workdir / "run.json").exists() or bool(checkpoint_steps(workdir))


def _as_of(file: pathlib.Path, at: int, every: int, cfg: Config) -> list[dict]:
  """A record up to step `at`, without the evaluation at the end of the shorter run."""
  kept = []
  for record in read_jsonl(file):
    step, evaluated = record["step"], record["step"] % every == 0
    if step > at or not (evaluated or (step % cfg.log.every_steps == 0 and "text" not in record)):
      continue
    kept.append({k: v for k, v in record.items() if evaluated or not k.startswith("eval/")})
  return kept


def _final_score(row: Mapping | None) -> float | None:
  """What runs are ranked by, lower first: their watched metric, its sign turned where higher is better.

  None while the run has not ended; infinite where it failed.
  """
  if row is None or row["status"] not in ("done", "failed"):
    return None
  score = row.get("score") if row["status"] == "done" else None
  if score is None or math.isnan(score):
    return math.inf
  return score if row["better"] == "lower" else -score
