"""Settings to train with; what several of them do to go on from a run that is there."""

import json
import pathlib

from ml_collections import ConfigDict


def go_on_from(config: ConfigDict, base: str) -> None:
  """Takes the model and the tokenizer of a run directory, and starts from its parameters."""
  with config.unlocked():
    config.model = ConfigDict(saved(base)["model"])
    take_tokenizer(config, base)
    config.train.init_from = base


def take_tokenizer(config: ConfigDict, base: str) -> None:
  """Takes the tokenizer of a run directory."""
  with config.unlocked():
    config.data.tokenizer = saved(base)["data"]["tokenizer"]
    config.data.tokenizer_path = f"{base}/tokenizer"


def saved(base: str) -> dict:
  """The config of a run directory; KeyError where there is none."""
  file = pathlib.Path(base) / "config.json"
  if not file.is_file():
    raise KeyError(f"{base} holds no run (config.json); train or import one there")
  return json.loads(file.read_text(encoding="utf-8"))
