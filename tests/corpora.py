"""Small corpora for the tests of lm/data."""

import pathlib

from configs.default import get_config
from lm.config.schema import DataConfig

WORDS = "the cat sat on a mat and dogs ran after seven birds while rain fell".split()  # noqa: SIM905


def data_config(folder: pathlib.Path, **changes) -> DataConfig:
  """The default data config with its cache in `folder` and a byte tokenizer, then `changes`."""
  config = get_config().data.to_dict()
  config |= {"seed": 0, "cache_dir": str(folder / "cache"), "tokenizer": "byte"} | changes
  lists = (field for field, value in config.items() if isinstance(value, list))
  return DataConfig(**config | {field: tuple(config[field]) for field in lists})


def write_docs(folder: pathlib.Path, n: int = 60, name: str = "docs.txt") -> list[str]:
  """Writes n different lines of 3 to 30 words to folder/name and returns them."""
  docs = [
    " ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(3 + i * 5 % 28)) + f" {i}"
    for i in range(n)
  ]
  folder.mkdir(exist_ok=True)
  (folder / name).write_text("\n".join(docs) + "\n")
  return docs


def line_config(folder: pathlib.Path, **changes) -> DataConfig:
  """A config whose source is the lines of folder/docs.txt."""
  source = (f"text:{folder}/docs.txt",)
  return data_config(folder, **{"sources": source, "text_unit": "line"} | changes)
