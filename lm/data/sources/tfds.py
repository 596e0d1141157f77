"""TensorFlow Datasets in array_record files, read without TensorFlow."""

import json
from collections.abc import Iterator, Sequence

from lm.config.errors import ConfigError
from lm.config.schema import DataConfig
from lm.data.sources.readers.fields import listed, parse, walk
from lm.data.sources.readers.utf8 import decode

CHUNK = 256  # examples read at a time


def documents(name: str, cfg: DataConfig, split: str, where: str) -> Iterator[str | None]:
  """The text of every example of a split, in the order of the files."""
  source, path = _open(name, cfg, split, where), parse(cfg.text_field)
  for start in range(0, len(source), CHUNK):
    indices = range(start, min(start + CHUNK, len(source)))
    for index, example in zip(indices, source.__getitems__(list(indices)), strict=True):
      if path[0] not in example and cfg.text_field not in example:
        features = listed(sorted(example))
        raise ConfigError(
          f"data.text_field={cfg.text_field}: no such feature in {where}; it has: {features}"
        )
      raw = walk(example, path, cfg.text_field)
      if raw is None:
        yield None
      elif isinstance(raw, str):
        yield raw
      elif isinstance(raw, bytes):
        yield decode(raw, f"{name} example {index}", None, where)
      else:
        raise ConfigError(
          f"data.text_field={cfg.text_field}: not a text feature of {where}; choose another"
        )


def identity(name: str, cfg: DataConfig, split: str, where: str) -> str:
  """The data set's full name, which holds its version, the split and its size."""
  source = _open(name, cfg, split, where)
  info = source.dataset_info  # tfds raises the version with the content
  size = int(info.dataset_size)
  return json.dumps([info.full_name, split_name(cfg, split), len(source), size, cfg.text_field])


def has_own_val(cfg: DataConfig) -> bool:
  return bool(cfg.tfds_splits[1])


def split_name(cfg: DataConfig, split: str) -> str:
  """What data.tfds_splits calls "train" or "val"."""
  train, val = cfg.tfds_splits
  return val if split == "val" and val else train


def _open(name: str, cfg: DataConfig, split: str, where: str) -> Sequence:
  try:
    import tensorflow_datasets as tfds
  except ImportError:
    raise ConfigError(
      f"{where}: needs tensorflow-datasets; pip install -r requirements.txt"
    ) from None
  try:
    return tfds.data_source(name, split=split_name(cfg, split), data_dir=cfg.tfds_dir)
  except Exception as error:  # tfds raises whatever its layers raise; the first line of it helps
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    raise ConfigError(
      f"{where}: tfds cannot open split {split_name(cfg, split)} ({reason}); check the name, "
      "data.tfds_splits and data.tfds_dir (a builder prepared with file_format=array_record)"
    ) from None
