"""One run while it trains: its directory, record, checkpoints and how it stands.

Of several processes all save checkpoints together, and the leader alone writes everything else.
"""

import math
import pathlib
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lm.config.errors import ConfigError, number_of
from lm.config.schema import Config
from lm.cost.flops import run_flops_per_token
from lm.data.templates import save_template
from lm.data.tokenizers import save_tokenizer
from lm.devices import processes
from lm.files import read_jsonl, write_json
from lm.objectives.registry import objective_of
from lm.objectives.teacher import split_extra
from lm.plan.run_plan import Plan
from lm.runs import bucket, lock, room, rundir
from lm.runs.checkpoint import Checkpointer
from lm.runs.metrics import directions, watched
from lm.runs.mirror import About
from lm.runs.mirrors import check_mirrors, open_mirrors
from lm.runs.record import Recorder, check_record, missing_steps, show_steps
from lm.setup.resolve import kind_of, tokens_per_step
from lm.training.step import LOW_BITS, State

DESCRIBED = ("config.json", "run.json")  # what opening a run writes
MOST_REWINDS = 10  # of a run; a setting that needs more is wrong
MOST_SKIPS = 20  # in a row
OPEN: list["RunWriter"] = []  # those of this process


class RunWriter:
  """A run directory being written.

  Args:
    cfg: resolved config.
    workdir: made if absent; a run of the same identity in it is continued.
    data: its description goes to run.json, its tokenizer to workdir/tokenizer.
    plan: goes to run.json too.
    more: what else run.json should say.

  `open_runs` makes it, after its checks.
  """

  def __init__(self, cfg: Config, workdir: pathlib.Path, data: Any, plan: Plan, more: Mapping):
    self.cfg, self.workdir = cfg, workdir
    self.active = True  # still training
    self.stopped_early = False
    self.status, self.reason = "running", None
    self.best, self.best_step = None, None  # value of the watched metric
    # Step of the newest checkpoint, and of the one a rewind goes to.
    self.last_saved = self._back_to = 0
    self._since_best, self._judged_at = 0, 0
    self._mirror = self._recorder = None
    self._skips = 0  # in a row
    OPEN.append(self)
    if processes.is_leader():
      self._before = {n: (workdir / n).read_bytes() for n in DESCRIBED if (workdir / n).exists()}
      self._was_empty = all(path.name.startswith(lock.NAME) for path in workdir.iterdir())
      description = kind_of(cfg).describe(data)
      change = rundir.data_change(workdir, description)
      about = {**plan.to_dict(), **more, "data": description}
      self._about = rundir.open_run(workdir, cfg, about)
      if change:
        newest = max(rundir.checkpoint_steps(workdir), default=0)
        self._about["new_data"].append({"step": newest, "what": change, "time": time.time()})
        write_json(workdir / "run.json", self._about)
      (workdir / "tokenizer").mkdir(exist_ok=True)
      save_tokenizer(data.tokenizer, workdir / "tokenizer")
      save_template(cfg, workdir / "tokenizer")
    processes.wait_for_all("run directory")
    self._began = rundir.read_run(workdir)
    self._rewinds = [dict(r) for r in self._began.get("rewinds", [])]
    origin = rundir.origin(cfg, kind_of(cfg).describe(data), self._rewinds)
    self.checkpoints = Checkpointer(workdir, cfg.checkpoint, origin)

  def abandon(self) -> None:
    """Closes the run without writing an end: for one that is refused before it begins."""
    OPEN.remove(self)
    self.active = False
    self.checkpoints.close()
    if self._recorder:
      self._recorder.close()
    if processes.is_leader():
      for name in DESCRIBED:
        if name in self._before:
          (self.workdir / name).write_bytes(self._before[name])
        else:
          (self.workdir / name).unlink(missing_ok=True)
      if self._was_empty:
        shutil.rmtree(self.workdir, ignore_errors=True)
      lock.release(self.workdir)

  def begin(self, start: int, init_from: Mapping[str, object] | None = None) -> None:
    """Opens the record at step `start`; what was logged after it is forgotten.

    A run that was killed after its last evaluation stopped it, before that was written down, ends here.

    Args:
      init_from: whose weights a fresh run starts from, for run.json.
    """
    self.last_saved = start
    if processes.is_leader():
      self._keep_about(start, init_from)
      shown = {**asdict(self.cfg), **rundir.dashboard_facts(self._about)}
      about = About(
        self.cfg.log, self.workdir, self._about["wandb_id"], start, shown,
        tags=(self.cfg.model.family, self.cfg.objective.name),
        better=directions(self.cfg), watched=self.cfg.eval.stop_metric,
      )  # fmt: skip
      self._mirror = open_mirrors(about)
      self._recorder = Recorder(self.workdir, start, self._mirror)
    records, name = read_jsonl(self.workdir / "metrics.jsonl"), self.cfg.eval.stop_metric
    judged = [(r["step"], r[name]) for r in records if r["step"] <= start and name in r]
    bests = {step for step, value in judged if self._watch(step, value)}
    self._count_checkpoints(start, bests if self.cfg.checkpoint.best else set())
    if self._recorder:
      self._say_what_is_missing(records, start)
    if start and self._is_past_patience():
      self.end("done")

  def _count_checkpoints(self, start: int, bests: Collection[int]) -> None:
    """Which checkpoints count among the latest ones, and to which one a rewind goes, as if never stopped.

    Args:
      start: the step that the run goes on from.
      bests: steps whose evaluation was the best so far, and was saved for that.
    """
    saved = self.checkpoints.steps()
    self.checkpoints.leave_out(step for step in saved if not self._is_due(step))
    would = (s for s in range(start, 0, -1) if self._is_due(s) or s in bests)
    last = next(would, 0)
    self._back_to = last if last in (0, *saved) else start

  def _is_due(self, step: int) -> bool:
    """Whether a run that is left alone saves a checkpoint after this step, however good it is."""
    every = self.cfg.checkpoint.every_steps
    every = rundir.was_at(self._began, step, "checkpoint.every_steps", every)
    return step % every == 0 or step == self.cfg.train.steps or self.stopped_early

  def _keep_about(self, start: int, init_from: Mapping[str, object] | None) -> None:
    """Writes what run.json says of how the run began and went on, now that its step is known."""
    before = {key: self._about.get(key) for key in ("changes", "init_from")}
    changes = self._about["changes"] if start else []
    self._about["changes"] = [{**c, "step": min(c["step"], start)} for c in changes]
    if init_from or not start:
      self._about.pop("init_from", None)
      self._about |= {"init_from": dict(init_from)} if init_from else {}
    if before != {key: self._about.get(key) for key in before}:
      write_json(self.workdir / "run.json", self._about)

  def _say_what_is_missing(self, records: Sequence[Mapping], start: int) -> None:
    if not start:
      return
    eval_every = self.cfg.eval.every_steps or start
    every = self.cfg.log.every_steps
    log_every = lambda step: rundir.was_at(self._about, step, "log.every_steps", every)
    missing = missing_steps(records, start, log_every, eval_every)
    if missing:
      self._about["missing_steps"] = missing
      write_json(self.workdir / "run.json", self._about)
      print(
        f"{self.workdir / 'metrics.jsonl'}: lacks {number_of(len(missing), 'step')} up to the "
        f"checkpoint's {start} "
        f"({show_steps(missing)}), which were logged once; they stay missing, as run.json records",
        file=sys.stderr,
      )

  def set_aside(self, step: int, why: str) -> str:
    """Takes a damaged checkpoint out of use, says so in run.json, and returns a line about it."""
    away = self.checkpoints.set_aside(step)
    if processes.is_leader():
      self._about["set_aside"].append({"step": step, "why": why, "kept_as": away.name})
      write_json(self.workdir / "run.json", self._about)
    return f"{self.workdir}: checkpoint {step} is damaged ({why}); it is kept as {away.name}"

  def restore(self, shape: State, step: int) -> State:
    """The state of a checkpoint; one from before units were counted has those of full batches."""
    tokens = round(step * tokens_per_step(self.cfg))
    seen = np.array([tokens >> LOW_BITS, tokens & (2**LOW_BITS - 1)], np.int32)
    return self.checkpoints.restore(shape, step, {"extra": {}, "seen": seen})

  def note(
    self,
    step: int,
    tokens: int,
    metrics: Mapping[str, float],
    speed: Mapping[str, float],
    evals: Mapping[str, float],
  ) -> None:
    """One step's numbers: logged when due or evaluated; a non-finite one ends the run as failed.

    Args:
      tokens: units trained on up to this step.
      metrics, speed, evals: keyed as in lm.runs.metrics.
    """
    if not self.active:
      return
    shown = objective_of(self.cfg.objective).shown  # named first of several
    broken = next((k for k in (shown, *metrics) if not math.isfinite(metrics[k])), None)
    is_skipped = metrics.get("train/skipped", 0.0) > 0
    self._skips = self._skips + 1 if is_skipped else 0
    if is_skipped and self._skips < MOST_SKIPS:
      metrics = {k: v for k, v in metrics.items() if math.isfinite(v)}
      print(
        f"{self.workdir}: step {step} skipped, as {broken or 'it'} is not finite", file=sys.stderr
      )
    elif broken and self._can_rewind():
      self._rewind(step, f"{broken} is {metrics[broken]}")
      return
    elif broken or is_skipped:
      saved = f"step {self.last_saved}" if self.last_saved else "none"
      what = f"{broken} is {metrics[broken]}" if broken else "the weights after it are not finite"
      again = f", the {self._skips}th step in a row that is skipped" if is_skipped else ""
      self.end(
        "failed",
        f"step {step}: {what}{again}; last good checkpoint: {saved}; "
        "lower optim.peak_lr, raise optim.warmup_frac or set optim.clip_norm",
      )
      return
    due = evals or is_skipped or step % self.cfg.log.every_steps == 0
    if self._recorder and due:
      each = run_flops_per_token(self.cfg, self.cfg.train.flops_convention, step)
      progress = {"tokens": tokens, "flops": tokens * each}
      self._recorder.metrics(step, progress, {**metrics, **speed, **evals})

  def batch_number(self, step: int) -> int:
    """Number of the batch for the update after `step` updates, later by those that rewinds skipped."""
    return step + sum(r["bad"] - r["to"] for r in self._rewinds if r["to"] <= step)

  def _can_rewind(self) -> bool:
    return self.cfg.train.on_nonfinite == "rewind" and len(self._rewinds) < MOST_REWINDS

  def _rewind(self, step: int, why: str) -> None:
    """Records that the run goes back to its last checkpoint, past the batches since; ends this stretch.

    One that a signal had it save does not count, so that the run is what it would be without: it goes first,
    as a run that is killed meanwhile must not go on from it.
    """
    to = self._back_to
    if self.last_saved > to:
      self.checkpoints.drop_after(to)
    self._rewinds.append({"bad": step, "to": to, "why": why})
    if self._recorder:
      self._about["rewinds"] = self._rewinds
      write_json(self.workdir / "run.json", self._about)
      print(
        f"{self.workdir}: step {step}: {why}; back to step {to}, past the batches since",
        file=sys.stderr,
      )
    self.end("rewound")

  def judge(self, step: int, evals: Mapping[str, float]) -> bool:
    """Updates early stopping from an evaluation; True if its eval.stop_metric is the best so far."""
    is_best = self._watch(step, evals[self.cfg.eval.stop_metric])
    self._is_past_patience()
    return is_best

  def _is_past_patience(self) -> bool:
    """Whether the latest evaluation stops the run early; says why."""
    patience = self.cfg.eval.stop_patience
    self.stopped_early = patience is not None and self._since_best >= patience
    if self.stopped_early:
      self.reason = (
        f"early stop at step {self._judged_at}: {self.cfg.eval.stop_metric} has not improved for {patience} "
        f"evaluations (best {self.best:.4f} at step {self.best_step})"
      )
    return self.stopped_early

  def sample(self, step: int, text: str) -> None:
    """Records a generation."""
    if self._recorder:
      self._recorder.sample(step, self.cfg.sample.prompt, text)

  def save(self, state: Any, step: int) -> None:
    """Checkpoints the state, after everything logged up to it is on disk."""
    if self._recorder:
      self._recorder.sync()
    best = self.best_step if self.cfg.checkpoint.best else None
    is_due = self._is_due(step)
    own, _ = split_extra(state.extra, objective_of(self.cfg.objective).teachers(self.cfg))
    self.checkpoints.save(state._replace(extra=own), step, best, extra=not is_due)
    self.last_saved = step
    if is_due or step == best:
      self._back_to = step
    bucket.send_soon(self.workdir, step)

  def end(self, status: str, reason: str | None = None, tokens_per_sec: float | None = None):
    """Writes the run's end (done, interrupted, failed or rewound) to run.json; later calls do nothing."""
    if not self.active:
      return
    if self in OPEN:
      OPEN.remove(self)
    self.active, self.status, self.reason = False, status, reason or self.reason
    try:
      self.checkpoints.close()
    except Exception:
      if status != "failed":  # what was saved last is not on the disk: the run is not done
        self.active = True
        OPEN.append(self)
        raise
    if not self._recorder:
      return
    self._recorder.close()
    if self._mirror:
      self._mirror.close(exit_code=int(status == "failed"), preempted=status == "interrupted")
    changes = {
      "reason": self.reason,
      "ended_at": self.last_saved,
      "final": rundir.last_metrics(self.workdir),
    }
    if tokens_per_sec is not None:
      changes["tokens_per_sec"] = tokens_per_sec
    if peak := room.peak_bytes():
      changes["peak_bytes"] = max(peak, self._about.get("peak_bytes") or 0)
    # As which it is found if it ends here.
    lasting = "interrupted" if status == "rewound" else status
    rundir.close_run(self.workdir, self._about, lasting, **changes)
    lock.release(self.workdir)
    problem = bucket.send(self.workdir)
    if problem:
      self.status, self.reason = "failed", problem
      print(f"{bucket.name_of(self.workdir)}: {problem}", file=sys.stderr)

  def _watch(self, step: int, value: float) -> bool:
    value, self._judged_at = float(value), step
    if self.best is None or self._is_better(value, self.best):
      self.best, self.best_step, self._since_best = value, step, 0
      return True
    self._since_best += 1
    return False

  def _is_better(self, value: float, than: float) -> bool:
    lower = watched(self.cfg).better == "lower"
    return value < than if lower else value > than


def open_runs(
  cfgs: Sequence[Config],
  workdirs: Sequence[pathlib.Path],
  data: Sequence[Any],
  plan: Plan,
  accept_new_data: bool,
  more: Mapping[str, Any],
) -> list[RunWriter]:
  """The directories of runs, checked all before any is made or written.

  Args:
    accept_new_data: go on though the data are others than when the run began.
    more: what else run.json should say.

  Raises:
    ConfigError: a directory holds another run or a checkpoint of one, is being written by another process,
      is damaged, or its run was trained on other data; or the devices cannot hold the runs.
  """
  for cfg, workdir, each in zip(cfgs, workdirs, data, strict=True):
    steps, description = rundir.checkpoint_steps(workdir), kind_of(cfg).describe(each)
    change = rundir.data_change(workdir, description)
    follows = rundir.OF_DATA if accept_new_data else (*rundir.OF_DATA, "model.vocab_size")
    rundir.check_same_run(workdir, cfg, follows if change else ())
    if change and steps and not accept_new_data:
      raise ConfigError(
        f"workdir={workdir}: its data are not those it was trained on up to step {max(steps)} ({change}); "
        "bring them back, choose another --workdir, or go on with --accept_new_data"
      )
    for step in sorted(steps, reverse=True):
      rundir.check_origin(workdir, step, cfg, description, accept_new_data)
    check_record(workdir, max(steps, default=0))
    check_mirrors(cfg.log)
  room.check(cfgs[0], plan, len(cfgs))
  more = {**more, "stacked": len(cfgs)}
  made = []
  try:
    for workdir in workdirs if processes.is_leader() else ():
      if not workdir.exists():
        made.append(workdir)
      rundir.make_folder(workdir)
      bucket.check_writable(workdir)
      lock.take(workdir)
  except ConfigError:
    for workdir in made:
      lock.release(workdir)
      shutil.rmtree(workdir, ignore_errors=True)
    raise
  return [RunWriter(*each, plan, more) for each in zip(cfgs, workdirs, data, strict=True)]


def are_over(runs: Sequence[RunWriter]) -> bool:
  """True if training ends here: no run is active, or one rewinds, and with it all of its stack."""
  return any(run.status == "rewound" for run in runs) or not any(run.active for run in runs)


def split_runs(values: Mapping[str, Any], n_runs: int) -> list[tuple[int, dict[str, float]]]:
  """[(units trained on so far, {metric: float})] a run, from fetched metrics of a step.

  Scalars (one run) or arrays [R], and "seen" as in lm.training.step.State.
  """
  arrays = {k: np.asarray(v) for k, v in values.items() if k != "seen"}
  arrays = {k: v.reshape(n_runs) for k, v in arrays.items()}
  seen = np.asarray(values["seen"]).reshape(n_runs, 2).tolist()
  units = [(upper << LOW_BITS) + lower for upper, lower in seen]
  return [(units[r], {k: float(v[r]) for k, v in arrays.items()}) for r in range(n_runs)]
