"""Weights & Biases mirrors the record: online where there is a key, else in files that can be sent later."""

import os
import pathlib
import sys
from collections.abc import Mapping

from lm.config.errors import ConfigError, first_line
from lm.files import read_jsonl
from lm.runs.mirror import About, Mirror, project_of

AXES = ("step", "progress/tokens", "progress/flops")  # what curves are drawn over
GROUPS = ("train", "eval", "optim", "perf", "progress")
INIT_SECONDS = 60.0  # that the service has to answer
SUMMARY = {"lower": "min,last", "higher": "max,last"}  # of metrics whose best value counts, too
MODES = ("online", "offline", "disabled")
FURTHER_MODES = {"dryrun": "offline", "run": "online", "shared": "online"}  # that wandb takes, too
SAMPLES = ("step", "prompt", "text")  # columns of the table of samples


class WandbMirror(Mirror):
  """Sends a run's record to Weights & Biases; offline runs are kept in workdir/wandb.

  Of wandb's environment it takes WANDB_MODE (for log.wandb=auto), WANDB_PROJECT (where log.wandb_project
  is None), WANDB_ENTITY, WANDB_RUN_GROUP, WANDB_NAME, WANDB_JOB_TYPE, WANDB_NOTES, and WANDB_TAGS beside its
  own tags. The id is the run's, so that a run that is resumed goes on as one.
  """

  def __init__(self, about: About):
    self.mode = wandb_mode(about.cfg.wandb)
    super().__init__("wandb", lambda: _Wandb(self.mode, about))


class _Wandb:
  """The sink: a run there."""

  def __init__(self, mode: str, about: About):
    import wandb

    self._wandb = wandb
    # Rows of a report are numbered as they come, also where it goes on in an earlier one's run.
    self._steps = about.kind == "train"
    self._run = self._init(mode, about)
    for axis in AXES:
      self._run.define_metric(axis, hidden=axis == "step")
    for group in GROUPS:  # a panel's x axis can be any of AXES; this one is the first shown
      self._run.define_metric(f"{group}/*", step_metric="step")
    for key, better in about.better.items():
      # The scheduler of a W&B sweep reads the last value of its metric as a plain number.
      if not (key == about.watched and "WANDB_SWEEP_ID" in os.environ):
        self._run.define_metric(key, step_metric="step", summary=SUMMARY[better])
    path = about.workdir / "samples.jsonl"
    earlier = read_jsonl(path) if about.start and path.exists() else []
    self._samples = [[r[key] for key in SAMPLES] for r in earlier if r["step"] <= about.start]

  def log(self, step: int, metrics: Mapping[str, float | pathlib.Path]) -> None:
    pictures = {  # as wandb.Html, because wandb.Image would need another package
      key: self._wandb.Html(value.read_text(encoding="utf-8"), inject=False)
      for key, value in metrics.items()
      if isinstance(value, pathlib.Path)
    }
    self._run.log({"step": step} | dict(metrics) | pictures, step=step if self._steps else None)

  def sample(self, step: int, prompt: str, text: str) -> None:
    """All texts so far as one table, which is what a panel shows."""
    self._samples.append([step, prompt, text])
    table = self._wandb.Table(columns=list(SAMPLES), data=list(self._samples))
    self._run.log({"step": step, "samples": table}, step=step)

  def close(self, exit_code: int, preempted: bool) -> None:
    if preempted:
      self._run.mark_preempting()
    self._run.finish(exit_code=exit_code)

  def _init(self, mode: str, about: About):
    """The run there; kept offline where the service cannot be reached or does not know the key."""
    given = os.environ.get
    tags = [*given("WANDB_TAGS", "").split(","), *about.tags]
    open_run = lambda mode: self._wandb.init(
      project=project_of(about.cfg),
      group=about.cfg.wandb_group or given("WANDB_RUN_GROUP"),
      name=about.name or given("WANDB_NAME") or about.workdir.name,
      job_type=given("WANDB_JOB_TYPE") or about.kind,
      tags=list(dict.fromkeys(tag.strip() for tag in tags if tag.strip())),
      id=about.run_id,
      resume="allow",
      dir=str(about.workdir),
      config=dict(about.config),
      mode=mode,
      settings=self._wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS),
    )
    try:
      return open_run(mode)
    except Exception as error:
      if mode != "online":
        raise
      print(
        f"wandb: {type(error).__name__}: {first_line(error)}; kept offline in {about.workdir / 'wandb'}, "
        "send it with wandb sync",
        file=sys.stderr,
      )
      return open_run("offline")


def wandb_mode(asked: str) -> str:
  """online, offline or disabled: what log.wandb says; for auto WANDB_MODE, else online where there is a key.

  Raises:
    ConfigError: WANDB_MODE is none of wandb's.
  """
  if asked != "auto":
    return asked
  if word := os.environ.get("WANDB_MODE"):
    mode = FURTHER_MODES.get(word, word)
    if mode not in MODES:
      raise ConfigError(
        f"WANDB_MODE={word}: must be {', '.join(MODES[:-1])} or {MODES[-1]}; unset it"
      )
    return mode
  return "online" if has_key() else "offline"


def has_key() -> bool:
  """True if this machine has a key for W&B: in WANDB_API_KEY, or in ~/.netrc from `wandb login`."""
  netrc = pathlib.Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
  return "WANDB_API_KEY" in os.environ or (netrc.exists() and "wandb" in netrc.read_text())
