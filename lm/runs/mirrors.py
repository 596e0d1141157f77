"""The mirrors that a run asks for: Weights & Biases by log.wandb, others by log.mirrors."""

import importlib.util
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lm.config.errors import ConfigError, check_choice
from lm.config.schema import LogConfig
from lm.runs.mirror import About, Mirror, Sink
from lm.runs.tensorboard_mirror import TensorBoard
from lm.runs.trackio_mirror import Trackio
from lm.runs.wandb_mirror import WandbMirror, wandb_mode


class Row(NamedTuple):
  """A kind of mirror: the package that it needs, and what opens its sink."""

  package: str
  open_sink: Callable[[About], Sink]


MIRRORS = {
  "tensorboard": Row("tensorboard", TensorBoard),
  "trackio": Row("trackio", Trackio),
}


def check_mirrors(cfg: LogConfig) -> None:
  """ConfigError for a mirror that there is not, where its package is missing, or WANDB_MODE is no mode."""
  wandb_mode(cfg.wandb)
  for name in cfg.mirrors:  # all of them, before any is asked to be installed
    check_choice("log.mirrors", name, MIRRORS)
  for name in cfg.mirrors:
    package = MIRRORS[name].package
    if importlib.util.find_spec(package) is None:
      raise ConfigError(
        f"log.mirrors={name}: needs a package that is not installed; pip install {package}"
      )


class Mirrors:
  """Every mirror of a run, as one."""

  def __init__(self, mirrors: Sequence[Mirror]):
    self._mirrors = tuple(mirrors)

  def log(self, step: int, metrics: Mapping[str, float | pathlib.Path]) -> None:
    """Numbers of a step."""
    for mirror in self._mirrors:
      mirror.log(step, metrics)

  def sample(self, step: int, prompt: str, text: str) -> None:
    """A text that the model wrote."""
    for mirror in self._mirrors:
      mirror.sample(step, prompt, text)

  def close(self, exit_code: int = 0, timeout: float = 60.0, preempted: bool = False) -> None:
    """Waits for each, at most `timeout` seconds."""
    for mirror in self._mirrors:
      mirror.close(exit_code, timeout, preempted)


def open_mirrors(about: About) -> Mirrors:
  """Opens what the run's section `log` asks for."""
  cfg, found = about.cfg, []
  if wandb_mode(cfg.wandb) != "disabled":
    found.append(WandbMirror(about))
  for name in cfg.mirrors:
    row = MIRRORS[name]
    found.append(Mirror(name, lambda row=row: row.open_sink(about)))
  return Mirrors(found)
