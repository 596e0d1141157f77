"""Two texts side by side, `parallel:SOURCES+TARGETS`: line i of one belongs to line i of the other.

Kinds of batch that read pairs (lm/data/pairs.py) take them as such; for all others every line is a document.
"""

import dataclasses
import json
from collections.abc import Iterator

from lm.config.errors import ConfigError
from lm.config.schema import DataConfig
from lm.data.sources.digest import remembered_digests
from lm.data.sources.paths import find_files
from lm.data.sources.readers import read_file
from lm.data.sources.readers.fields import Field


def split(name: str, where: str) -> tuple[str, str]:
  """The two patterns of a name. Raises: ConfigError unless there is one + between two of them."""
  parts = name.split("+")
  if len(parts) != 2 or not all(parts):
    raise ConfigError(
      f"{where}: must name two files or globs with one + between; use e.g. parallel:train.en+train.de"
    )
  return parts[0], parts[1]


def read(name: str, cfg: DataConfig, where: str) -> Iterator[tuple[str, str]]:
  """Lines side by side, blank ones too. Raises: ConfigError where one side has more than the other."""
  first, second = (_lines(pattern, cfg, where) for pattern in split(name, where))
  n = 0
  while True:
    source, target = next(first, None), next(second, None)
    if source is None and target is None:
      return
    if source is None or target is None:
      longer, more = ("target", second) if source is None else ("source", first)
      rest = 1 + sum(1 for _ in more)
      raise ConfigError(
        f"{where}: must have as many lines on both sides; the {longer} has {n + rest:,}, the other "
        f"{n:,}: align them line by line"
      )
    n += 1
    yield source, target


def documents(name: str, cfg: DataConfig, split: str, where: str) -> Iterator[str]:
  """The lines of both sides, pair by pair."""
  for pair in read(name, cfg, where):
    yield from pair


def identity(name: str, cfg: DataConfig, side: str, where: str) -> str:
  """Contents of the files of each side."""
  files = [
    remembered_digests(find_files(pattern, where), cfg.cache_dir, where)
    for pattern in split(name, where)
  ]
  return json.dumps(files)


def _lines(pattern: str, cfg: DataConfig, where: str) -> Iterator[str]:
  as_lines = dataclasses.replace(cfg, text_unit="line", text_format="plain")
  for path in find_files(pattern, where):
    for line in read_file(path, as_lines, Field(cfg.text_field), where):
      yield str(line or "")
