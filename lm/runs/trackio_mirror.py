"""Trackio, a local-first dashboard: `trackio show --project isoflop`. It keeps runs in TRACKIO_DIR."""

import pathlib
from collections.abc import Mapping

from lm.runs.mirror import About, project_of


class Trackio:
  """A sink that goes on with the run of its id: steps that Trackio has are not sent again.

  The project and group are those of Weights & Biases (log.wandb_project, log.wandb_group). It has numbers
  alone: texts stay in samples.jsonl.
  """

  def __init__(self, about: About):
    import trackio

    cfg = about.cfg
    # Not its measures of the machine: a mirror has what the record has.
    self._run = trackio.init(
      project=project_of(cfg),
      name=f"{about.workdir.name}-{about.run_id[-6:]}",  # names alone tell its runs apart
      group=cfg.wandb_group,
      config=dict(about.config),
      resume="allow",
      embed=False,
      auto_log_gpu=False,
      auto_log_cpu=False,
    )
    last = self._run._initial_last_step
    self._last = -1 if last is None else last

  def log(self, step: int, metrics: Mapping[str, float | pathlib.Path]) -> None:
    if step > self._last:
      numbers = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
      self._run.log(numbers, step=step)

  def sample(self, step: int, prompt: str, text: str) -> None:
    """Not sent."""

  def close(self, exit_code: int, preempted: bool) -> None:
    self._run.finish()
