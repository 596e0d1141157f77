"""Settings to train with; what several of them do to go on from a run that is there."""

import json
import pathlib

from ml_collections import ConfigDict


def go_on_from(config: ConfigDict, base: str) -> None:
  """Takes the model and the tokenizer of a run directory, and starts from its parameters."""
  saved = json.loads((pathlib.Path(base) / "config.json").read_text(encoding="utf-8"))
  with config.unlocked():
    config.model = ConfigDict(saved["model"])
    config.data.tokenizer = saved["data"]["tokenizer"]
    config.data.tokenizer_path = f"{base}/tokenizer"
    config.train.init_from = base
