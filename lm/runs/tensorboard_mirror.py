"""TensorBoard event files of a run, in its directory: `tensorboard --logdir runs`."""

import importlib
import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from lm.runs.mirror import About

FOLDER = "tensorboard"  # in the run directory


class TensorBoard:
  """A sink that writes scalars, and the config as TensorBoard's hyperparameters.

  A run that goes on writes a file of its own that begins with a mark; readers drop what earlier files have
  of later steps. Numbers are kept as float32, which is what event files hold.
  """

  def __init__(self, about: About):
    load = importlib.import_module
    event_pb2: Any = load("tensorboard.compat.proto.event_pb2")
    summary_v2 = load("tensorboard.plugins.hparams.summary_v2")
    writer = load("tensorboard.summary.writer.event_file_writer")
    self._event = event_pb2.Event
    self._text = load("tensorboard.plugins.text.summary_v2")
    self._writer = writer.EventFileWriter(str(about.workdir / FOLDER))
    mark = self._event(wall_time=time.time(), step=about.start + 1)
    mark.session_log.status = event_pb2.SessionLog.START
    self._writer.add_event(mark)
    shown = summary_v2.hparams_pb(dict(_flat(about.config)), trial_id=about.run_id)
    self._writer.add_event(self._event(wall_time=time.time(), summary=shown))
    self._writer.flush()

  def log(self, step: int, metrics: Mapping[str, float | pathlib.Path]) -> None:
    event = self._event(wall_time=time.time(), step=step)
    for key, value in metrics.items():
      if isinstance(value, int | float):
        event.summary.value.add(tag=key, simple_value=value)
    self._writer.add_event(event)

  def sample(self, step: int, prompt: str, text: str) -> None:
    """Markdown in the tab of texts, the model's words as code, so that they are shown as they are."""
    words = f"{prompt}{text}".replace("\n", "\n    ")
    shown = self._text.text_pb("samples", f"    {words}")
    self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=shown))

  def close(self, exit_code: int, preempted: bool) -> None:
    self._writer.close()


def _flat(config: Mapping, before: str = "") -> Iterator[tuple[str, bool | float | str]]:
  """Dotted keys with values that the hyperparameters' table takes: what is no number is a text."""
  for key, value in config.items():
    name = f"{before}{key}"
    if isinstance(value, Mapping):
      yield from _flat(value, f"{name}.")
    elif isinstance(value, bool) or (isinstance(value, int | float) and math.isfinite(value)):
      yield name, value
    else:
      yield name, str(value)
