"""Weights & Biases mirrors the record: online where there is a key, else in files that can be sent later."""

import os
import pathlib
import sys
from collections.abc import Mapping

from lm.config.errors import first_line
from lm.config.schema import LogConfig
from lm.runs.mirror import Mirror

AXES = ("step", "progress/tokens", "progress/flops")  # what curves are drawn over
GROUPS = ("train", "eval", "optim", "perf", "progress")
INIT_SECONDS = 60.0  # that the service has to answer


class WandbMirror(Mirror):
  """Sends a run's record to Weights & Biases.

  Args:
    cfg: wandb mode, project and group.
    workdir: offline runs are kept in workdir/wandb.
    run_id: stays the same when a run is resumed, so it goes on as one W&B run.
    config: what the dashboard shows and filters by.
  """

  def __init__(self, cfg: LogConfig, workdir: pathlib.Path, run_id: str, config: Mapping):
    self.mode = _wandb_mode(cfg.wandb)
    super().__init__("wandb", lambda: _Wandb(self.mode, cfg, workdir, run_id, config))


class _Wandb:
  """The sink: a run there."""

  def __init__(
    self, mode: str, cfg: LogConfig, workdir: pathlib.Path, run_id: str, config: Mapping
  ):
    import wandb

    self._wandb = wandb
    self._run = self._init(mode, cfg, workdir, run_id, config)
    for axis in AXES:
      self._run.define_metric(axis, hidden=axis == "step")
    for group in GROUPS:  # a panel's x axis can be any of AXES; this one is the first shown
      self._run.define_metric(f"{group}/*", step_metric="step")

  def log(self, step: int, metrics: Mapping[str, float | pathlib.Path]) -> None:
    pictures = {  # as wandb.Html, because wandb.Image would need another package
      key: self._wandb.Html(value.read_text(encoding="utf-8"), inject=False)
      for key, value in metrics.items()
      if isinstance(value, pathlib.Path)
    }
    self._run.log({"step": step} | dict(metrics) | pictures, step=step)

  def close(self, exit_code: int, preempted: bool) -> None:
    if preempted:
      self._run.mark_preempting()
    self._run.finish(exit_code=exit_code)

  def _init(self, mode, cfg, workdir, run_id, config):
    """The run there; kept offline where the service cannot be reached or does not know the key."""
    open_run = lambda mode: self._wandb.init(
      project=cfg.wandb_project,
      group=cfg.wandb_group,
      name=workdir.name,
      id=run_id,
      resume="allow",
      dir=str(workdir),
      config=dict(config),
      mode=mode,
      settings=self._wandb.Settings(
        silent=True, console="off", x_disable_stats=True, init_timeout=INIT_SECONDS
      ),
    )
    try:
      return open_run(mode)
    except Exception as error:
      if mode != "online":
        raise
      print(
        f"wandb: {type(error).__name__}: {first_line(error)}; kept offline in {workdir / 'wandb'}, send it "
        "with wandb sync",
        file=sys.stderr,
      )
      return open_run("offline")


def _wandb_mode(mode: str) -> str:
  if mode != "auto":
    return mode
  netrc = pathlib.Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
  has_key = "WANDB_API_KEY" in os.environ or (netrc.exists() and "wandb" in netrc.read_text())
  return "online" if has_key else "offline"
