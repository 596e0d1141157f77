"""One run while it trains: its directory, record, checkpoints and how it stands.

Of several processes all save checkpoints together, and the leader alone writes everything else.
"""

import math
import pathlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from lm import processes, rundir
from lm.checkpoint import Checkpointer
from lm.config import Config
from lm.data.cache import Corpus, describe
from lm.data.tokenizers import save_tokenizer
from lm.log import Recorder, WandbMirror, read_jsonl


class Run:
  """A run directory being written.

  Args:
    cfg: resolved config.
    workdir: made if absent; a run of the same identity in it is continued.
    corpus: its description goes to run.json, its tokenizer to workdir/tokenizer.
    facts: the plan, which goes to run.json too.

  Raises:
    ConfigError: the directory holds another run.
  """

  def __init__(
    self, cfg: Config, workdir: pathlib.Path, corpus: Corpus, facts: Mapping[str, object]
  ):
    self.cfg, self.workdir = cfg, workdir
    self.active = True  # still training
    self.stopped_early = False
    self.status, self.reason = "running", None
    self.best, self.best_step = math.inf, None
    self.last_saved = 0
    self._since_best = 0
    self._flops_per_token = facts["flops_per_token"][cfg.train.flops_convention]
    self._mirror = self._recorder = None
    rundir.check_same_run(workdir, cfg)
    if processes.is_leader():
      self._about = rundir.open_run(workdir, cfg, {**facts, "data": describe(corpus)})
      (workdir / "tokenizer").mkdir(exist_ok=True)
      save_tokenizer(corpus.tokenizer, workdir / "tokenizer")
    processes.wait_for_all("run directory")
    self.checkpoints = Checkpointer(workdir, cfg.checkpoint)

  def begin(self, start: int) -> None:
    """Opens the record at step `start`; what was logged after it is forgotten."""
    self.last_saved = start
    if processes.is_leader():
      if self.cfg.log.wandb != "disabled":
        wandb_id = self._about["wandb_id"]
        self._mirror = WandbMirror(self.cfg.log, self.workdir, wandb_id, asdict(self.cfg))
      self._recorder = Recorder(self.workdir, start, self._mirror)
    for record in read_jsonl(self.workdir / "metrics.jsonl"):
      if record["step"] <= start and self.cfg.eval.stop_metric in record:
        self._watch(record["step"], record[self.cfg.eval.stop_metric])

  def note(
    self,
    step: int,
    metrics: Mapping[str, float],
    speed: Mapping[str, float],
    evals: Mapping[str, float],
  ) -> None:
    """One step's numbers: logged when due or evaluated; a non-finite loss ends the run as failed."""
    if not self.active:
      return
    if not math.isfinite(metrics["train/loss"]) or not math.isfinite(metrics["train/grad_norm"]):
      what = "loss" if not math.isfinite(metrics["train/loss"]) else "grad_norm"
      saved = f"step {self.last_saved}" if self.last_saved else "none"
      self.end(
        "failed",
        f"step {step}: train/{what} is {metrics[f'train/{what}']}; last good checkpoint: {saved}; "
        "lower optim.peak_lr, raise optim.warmup_frac or set optim.clip_norm",
      )
      return
    if self._recorder and (evals or step % self.cfg.log.every_steps == 0):
      tokens = step * self.cfg.train.batch_size * self.cfg.model.seq_len
      progress = {"tokens": tokens, "flops": tokens * self._flops_per_token}
      self._recorder.metrics(step, progress, {**metrics, **speed, **evals})

  def judge(self, step: int, evals: Mapping[str, float]) -> bool:
    """Takes in an evaluation; True if its watched metric is the best so far."""
    is_best = self._watch(step, evals[self.cfg.eval.stop_metric])
    patience = self.cfg.eval.stop_patience
    if patience is not None and self._since_best >= patience:
      self.stopped_early = True
      self.reason = (
        f"early stop at step {step}: {self.cfg.eval.stop_metric} has not improved for {patience} "
        f"evaluations (best {self.best:.4f} at step {self.best_step})"
      )
    return is_best

  def sample(self, step: int, text: str) -> None:
    """Records a generation."""
    if self._recorder:
      self._recorder.sample(step, self.cfg.sample.prompt, text)

  def save(self, state: Any, step: int, due: bool) -> None:
    """Checkpoints the state, after everything logged up to it is on disk.

    Args:
      due: it would be saved even if it were not the best.
    """
    if self._recorder:
      self._recorder.sync()
    best = self.best_step if self.cfg.checkpoint.best else None
    self.checkpoints.save(state, step, best, extra=not due)
    self.last_saved = step

  def end(self, status: str, reason: str | None = None, tokens_per_sec: float | None = None):
    """The run is over: done, interrupted or failed. Only the first call counts."""
    if not self.active:
      return
    self.active, self.status, self.reason = False, status, reason or self.reason
    self.checkpoints.close()
    if not self._recorder:
      return
    self._recorder.close()
    if self._mirror:
      self._mirror.close(exit_code=int(status == "failed"))
    changes = {"reason": self.reason, "final": rundir.last_metrics(self.workdir)}
    if tokens_per_sec is not None:
      changes["tokens_per_sec"] = tokens_per_sec
    rundir.close_run(self.workdir, self._about, status, **changes)

  def _watch(self, step: int, value: float) -> bool:
    value = float(value)
    if value < self.best:
      self.best, self.best_step, self._since_best = value, step, 0
      return True
    self._since_best += 1
    return False


def split_runs(values: Mapping[str, Any], n_runs: int) -> list[dict[str, float]]:
  """[{name: float}] a run, from fetched scalars (one run) or [R] arrays."""
  arrays = {k: np.atleast_1d(np.asarray(v)) for k, v in values.items()}
  return [{k: float(v[r]) for k, v in arrays.items()} for r in range(n_runs)]
