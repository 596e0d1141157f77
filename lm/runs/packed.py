"""Parameters of a compacted run in one file: codes of few bits, values that are not zero, or plain arrays.

    compact.safetensors    arrays NAME|codes, NAME|scales, NAME|mask, NAME|values or NAME|plain; the metadata
                           hold {NAME: how it is packed} and the step

`pack` chooses the smaller form of an array, so the bytes of the file are what the run really takes.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lm.config.errors import ConfigError
from lm.models.trees import nested

FILE = "compact.safetensors"  # of a run directory, in place of checkpoints/
EXTRA = "extra"  # names under it are of a state's `extra` (Objective.applied)


class Coded(NamedTuple):
  """Numbers in few bits: codes * scales, with one scale for `size / groups` neighbours along an axis."""

  codes: np.ndarray  # int8, in [-(2^(bits-1) - 1), 2^(bits-1) - 1]
  scales: np.ndarray  # float32; as codes, but as many groups along `axis`
  bits: int  # 4 | 8
  axis: int  # negative: the one along which numbers share a scale

  def decode(self) -> np.ndarray:
    """Float32 numbers."""
    size = self.codes.shape[self.axis] // self.scales.shape[self.axis]
    return self.codes.astype(np.float32) * np.repeat(self.scales, size, axis=self.axis)


def write(folder: pathlib.Path, params: Mapping[str, "np.ndarray | Coded"], step: int) -> int:
  """Writes FILE; returns its bytes.

  Args:
    params: by path, layers stacked or not, as the run's config says.
    step: of the checkpoint that they come from.
  """
  from safetensors.numpy import save_file

  arrays, about = {}, {}
  for name, array in params.items():
    parts, about[name] = pack(array)
    arrays |= {f"{name}|{part}": np.ascontiguousarray(a) for part, a in parts.items()}
  save_file(arrays, folder / FILE, metadata={"params": json.dumps(about), "step": str(step)})
  return (folder / FILE).stat().st_size


def read(folder: pathlib.Path) -> tuple[dict[str, Any], int]:
  """(nested float32 parameters, with EXTRA among their names where there is one, step) of FILE.

  Raises:
    ConfigError: a file that is none, or cut short.
  """
  from safetensors import safe_open

  path = folder / FILE
  try:
    with safe_open(path, "np") as file:
      about, step = json.loads(file.metadata()["params"]), int(file.metadata()["step"])
      arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it does not iterate by itself)
    whole = {
      name: unpack({p: arrays[f"{name}|{p}"] for p in how["parts"]}, how)
      for name, how in about.items()
    }
  except Exception as error:  # the library has errors of its own
    reason = str(error).partition("\n")[0]
    raise ConfigError(
      f"{path}: cannot be read as compacted parameters ({reason}); run python -m lm.compact again"
    ) from None
  return nested(whole), step


def pack(array: "np.ndarray | Coded") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """({part: array}, how) of one parameter.

  A plain array with zeros is stored as one bit for each number and the numbers that are not zero, where
  that is smaller.
  """
  if isinstance(array, Coded):
    codes = array.codes if array.bits == 8 else _nibbles(array.codes)
    how = {"bits": array.bits, "axis": array.axis, "shape": list(array.codes.shape)}
    return {"codes": codes, "scales": array.scales}, how | {"parts": ["codes", "scales"]}
  array = np.asarray(array, np.float32)
  mask = array != 0
  how = {"shape": list(array.shape)}
  if 4 * int(mask.sum()) + array.size / 8 < array.nbytes:
    return {"mask": np.packbits(mask), "values": array[mask]}, how | {"parts": ["mask", "values"]}
  return {"plain": array}, how | {"parts": ["plain"]}


def unpack(parts: Mapping[str, np.ndarray], how: Mapping[str, Any]) -> np.ndarray:
  """The inverse of `pack`, as float32."""
  shape, size = tuple(how["shape"]), int(np.prod(how["shape"]))
  if "plain" in parts:
    return parts["plain"]
  if "mask" in parts:
    array = np.zeros(size, np.float32)
    array[np.unpackbits(parts["mask"], count=size).astype(bool)] = parts["values"]
    return array.reshape(shape)
  codes = parts["codes"] if how["bits"] == 8 else _from_nibbles(parts["codes"], size).reshape(shape)
  return Coded(codes, parts["scales"], how["bits"], how["axis"]).decode()


def _nibbles(codes: np.ndarray) -> np.ndarray:
  """Two codes in [-8, 7] a byte, the first in its lower half."""
  flat = (codes.reshape(-1).astype(np.int16) + 8).astype(np.uint8)
  flat = np.pad(flat, (0, flat.size % 2))
  return flat[::2] | (flat[1::2] << 4)


def _from_nibbles(packed: np.ndarray, size: int) -> np.ndarray:
  both = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)[:size]
  return both.astype(np.int8) - np.int8(8)
