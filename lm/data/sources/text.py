"""Files on disk: `text:GLOB`. What a file holds is read from its content and its name (readers/)."""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

from lm.config.errors import ConfigError
from lm.config.schema import DataConfig
from lm.data.sources.digest import remembered_digests
from lm.data.sources.paths import find_files
from lm.data.sources.readers import FORMATS, read_file
from lm.data.sources.readers.fields import Field, Fields, Record

UNITS = ("file", "line", "paragraph")


def documents(name: str, cfg: DataConfig, split: str, where: str) -> Iterator[str | None]:
  """Documents of every file that `name` matches, file by file in the order of their paths."""
  return read(find_files(name, where), cfg, where)


def read(paths: list[str], cfg: DataConfig, where: str) -> Iterator[Any]:
  """Documents of files."""
  if cfg.text_unit not in UNITS:
    raise ConfigError(
      f"data.text_unit={cfg.text_unit}: must be one of {', '.join(UNITS)}; use file"
    )
  if cfg.text_format not in FORMATS:
    raise ConfigError(
      f"data.text_format={cfg.text_format}: must be one of {', '.join(FORMATS)}; use auto"
    )
  return _read(paths, cfg, where)


def _read(paths: list[str], cfg: DataConfig, where: str) -> Iterator[Any]:
  field = Field(cfg.text_field)
  for path in paths:
    yield from read_file(path, cfg, field, where)
  field.check_found()


def records(name: str, cfg: DataConfig, fields: Fields, where: str) -> Iterator[Record]:
  """The records of every file that `name` matches, file by file in the order of their paths.

  Raises: ConfigError for plain text, which has no fields.
  """
  return read_records(find_files(name, where), cfg, fields, where)


def read_records(paths: list[str], cfg: DataConfig, fields: Fields, where: str) -> Iterator[Record]:
  """The records of files."""
  for path in paths:
    for record in read_file(path, cfg, fields, where):
      if not isinstance(record, Record):
        raise ConfigError(
          f"{where}: {path} is plain text without fields; give CSV, TSV, JSON lines or parquet, or set "
          "data.text_format"
        )
      yield record


def identity(name: str, cfg: DataConfig, split: str, where: str) -> str:
  """Content and suffixes of the files, and what decides how they are cut into documents."""
  return identity_of(find_files(name, where), cfg, where)


def identity_of(paths: list[str], cfg: DataConfig, where: str) -> str:
  """The identity of files."""
  suffixes = ["".join(pathlib.Path(path).suffixes[-2:]) for path in paths]
  hashes = remembered_digests(paths, cfg.cache_dir, where)
  files = list(zip(suffixes, hashes, strict=True))
  return json.dumps([files, cfg.text_unit, cfg.text_field, cfg.text_format])
