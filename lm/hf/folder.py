"""Files of a Hugging Face folder: config.json and weights in safetensors, whole or in shards."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.config.errors import ConfigError
from lm.hf.convert import State

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
WEIGHT_FILES = (WEIGHTS, INDEX, "model-?????-of-?????.safetensors")
SHARD_BYTES = 5_000_000_000  # of an export, as transformers writes them


def read_folder(folder: pathlib.Path) -> tuple[State, dict[str, Any]]:
  """(arrays by name, content of config.json) of a Hugging Face folder.

  Raises:
    ConfigError: no such files, a shard that is missing or cut short, weights as pickle, JSON that
      is none.
  """
  if not (folder / "config.json").is_file():
    raise ConfigError(
      f"from={folder}: must be a folder with config.json and {WEIGHTS}; check the path"
    )
  hf_config = read_json(folder / "config.json")
  state: State = {}
  if (folder / WEIGHTS).is_file():
    return read_safetensors(folder / WEIGHTS), hf_config
  if (folder / INDEX).is_file():
    for file, names in _shards(folder).items():
      found = read_safetensors(folder / file)
      lacking = sorted(names - set(found))
      if lacking:
        raise ConfigError(f"{folder / file}: lacks {lacking[0]}; copy the folder again")
      state |= {name: found[name] for name in names}
    return state, hf_config
  pickled = [p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in sorted(folder.glob(pattern))]
  if pickled:
    raise ConfigError(
      f"{folder / pickled[0]}: is a pickle, which can run any code and is not read; "
      "save the model as safetensors"
    )
  raise ConfigError(
    f"from={folder}: must be a folder with config.json and {WEIGHTS}; check the path"
  )


def _shards(folder):
  """{file: names of its arrays} of the index."""
  index = read_json(folder / INDEX)
  where = index.get("weight_map")
  if not isinstance(where, Mapping) or not where:
    raise ConfigError(f"{folder / INDEX}: must hold a weight_map; copy the folder again")
  files: dict[str, set[str]] = {}
  for name, file in where.items():
    if not isinstance(file, str) or file != pathlib.PurePath(file).name:
      raise ConfigError(f"{folder / INDEX}: {name} must lie in a file of the folder; copy it again")
    files.setdefault(file, set()).add(name)
  for file in files:
    if not (folder / file).is_file():
      raise ConfigError(f"{folder / file}: is named in {INDEX} and missing; copy the folder again")
  return files


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file."""
  try:
    found = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:  # no UTF-8, no JSON, or nested without end
    reason = str(error).partition("\n")[0]
    raise ConfigError(f"{path}: cannot be read as JSON ({reason}); copy the file again") from None
  if not isinstance(found, dict):
    raise ConfigError(f"{path}: must be an object of keys and values; copy the file again")
  return found


def read_safetensors(path: pathlib.Path) -> State:
  """Arrays by name; bfloat16 and float16 as they are."""
  from safetensors.numpy import load_file

  try:
    return load_file(path)
  except Exception as error:  # the library has errors of its own, and KeyError for unknown dtypes
    reason = str(error).partition("\n")[0]
    raise ConfigError(
      f"{path}: cannot be read as safetensors ({reason}); copy the file again"
    ) from None


def write_folder(
  folder: pathlib.Path,
  state: State,
  hf_config: Mapping[str, Any],
  dtype: str = "float32",
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes config.json and model.safetensors, or several files and their index.

  Args:
    dtype: float32 | bfloat16 | float16, to which weights are rounded.
    shard_bytes: size of a file at most; an array lies in one file.

  Raises:
    ConfigError: a run directory, or weights that are no numbers of that dtype.
  """
  from safetensors.numpy import save_file

  check_target(folder)
  _check_range(state, dtype)
  folder.mkdir(parents=True, exist_ok=True)
  state = {name: np.asarray(array).astype(_dtype(dtype)) for name, array in state.items()}
  shards: list[State] = [{}]
  for name, array in state.items():
    held = sum(a.nbytes for a in shards[-1].values())
    if held and held + array.nbytes > shard_bytes:
      shards.append({})
    shards[-1][name] = array
  if len(shards) == 1:
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
  else:
    where = {}
    for i, shard in enumerate(shards):
      file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
      save_file(shard, folder / file, metadata={"format": "pt"})
      where |= dict.fromkeys(shard, file)
    total = {"total_size": sum(a.nbytes for a in state.values())}
    _write_json(folder / INDEX, {"metadata": total, "weight_map": where})
  _write_json(folder / "config.json", {**hf_config, "torch_dtype": dtype})


def check_target(folder: pathlib.Path) -> None:
  """ConfigError for a run directory, which an export may not write to."""
  if (folder / "run.json").exists():
    raise ConfigError(
      f"to={folder}: is a run directory, whose config.json would be lost; choose another"
    )


def _check_range(state: State, dtype: str) -> None:
  """ConfigError for weights that are not finite, or larger than the largest number of `dtype`."""
  import ml_dtypes

  most = float(ml_dtypes.finfo(_dtype(dtype)).max)
  for name, array in state.items():
    size = float(np.abs(np.asarray(array, np.float32)).max(initial=0.0))
    if not np.isfinite(size):
      raise ConfigError(f"{name}: holds numbers that are not finite; export another checkpoint")
    if size > most:
      raise ConfigError(
        f"dtype={dtype}: {name} holds {size:.6g}, and {dtype} ends at {most:.6g}; use bfloat16 or float32"
      )


def _dtype(name):
  if name != "bfloat16":
    return np.dtype(name)
  import ml_dtypes

  return np.dtype(ml_dtypes.bfloat16)


def _write_json(path, value):
  path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
