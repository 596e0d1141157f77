"""Devices of TPU slices that are not at hand, to compile for, and the links between them.

A slice is named by generation and shape, `v5e:2x4` or `v5p:8x8x8`; with `*2` behind it, two such
slices joined by the data-centre network. Google's own names work too: `v5e-8` counts chips, `v5p-512`
counts cores, two a chip. A chip of tpu7x is two devices.
"""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax

from lm.config.errors import ConfigError
from lm.devices.chips import Chip

Shapes = dict[int, tuple[int, ...]]  # {chips: shape}
SHAPES_2D: Shapes = {1: (1, 1), 4: (2, 2), 8: (2, 4), 16: (4, 4), 32: (4, 8), 64: (8, 8),
                     128: (8, 16), 256: (16, 16)}  # fmt: skip
SHAPES_3D: Shapes = {4: (2, 2, 1), 8: (2, 2, 2), 16: (2, 2, 4), 32: (2, 4, 4), 64: (4, 4, 4),
                     128: (4, 4, 8), 256: (4, 8, 8), 512: (8, 8, 8), 1024: (8, 8, 16),
                     2048: (8, 16, 16), 4096: (16, 16, 16)}  # fmt: skip


class Generation(NamedTuple):
  """How slices of a kind of TPU are put together."""

  shapes: Shapes  # of the named sizes
  per_name: int  # what a name such as v5p-512 counts on each chip
  accelerator: str  # a value of TPU_ACCELERATOR_TYPE


GENERATIONS = {
  "v5e": Generation(SHAPES_2D, 1, "v5litepod-8"),
  "v5p": Generation(SHAPES_3D, 2, "v5p-8"),
  "v6e": Generation(SHAPES_2D, 1, "v6e-8"),
  "tpu7x": Generation(SHAPES_3D, 2, "tpu7x-8"),
}


class Topology(NamedTuple):
  generation: str
  shape: tuple[int, ...]
  slices: int

  @property
  def name(self) -> str:
    """The name libtpu knows one slice by."""
    return f"{self.generation}:{'x'.join(map(str, self.shape))}"

  @property
  def chips(self) -> int:
    return math.prod(self.shape) * self.slices


def parse(text: str) -> Topology:
  """The topology that a name means.

  >>> parse("v5p-512"), parse("v5e:16x16*2").chips
  (Topology(generation='v5p', shape=(4, 8, 8), slices=1), 512)

  Raises:
    ConfigError: no such generation, shape or size.
  """
  match = re.fullmatch(r"(\w+?)(?::(\d+(?:x\d+)*)|-(\d+))(?:\*(\d+))?", text.strip().lower())
  if not match:
    raise ConfigError(
      f"topology={text}: must be GENERATION:SHAPE; for example v5e:2x4, v5p:8x8x8 or v5e:16x16*2"
    )
  generation = {"v5litepod": "v5e"}.get(match[1], match[1])
  if generation not in GENERATIONS:
    raise ConfigError(
      f"topology={text}: must be of a generation in {', '.join(GENERATIONS)}; use v5e:2x4"
    )
  shapes, per_name, _ = GENERATIONS[generation]
  dims = len(next(iter(shapes.values())))
  slices = int(match[4] or 1)
  if match[3]:
    size = int(match[3])
    if size % per_name or size // per_name not in shapes:
      names = ", ".join(f"{generation}-{chips * per_name}" for chips in shapes)
      raise ConfigError(f"topology={text}: no slice has that size; use one of {names}")
    shape = shapes[size // per_name]
  else:
    shape = tuple(map(int, match[2].split("x")))
    example = f"{generation}:{'x'.join(map(str, shapes[8]))}"
    if len(shape) != dims or min(shape) < 1:
      raise ConfigError(f"topology={text}: {generation} slices have {dims} sizes; use {example}")
    if math.prod(shape) > 1 and any(size % 2 for size in shape[:2]):
      raise ConfigError(
        f"topology={text}: the first two sizes must be even, as a host has 2x2 chips; use {example}"
      )
  if slices < 1:
    raise ConfigError(f"topology={text}: must have at least one slice; drop *{match[4]}")
  return Topology(generation, shape, slices)


def devices(text: str) -> list[jax.Device]:
  """Descriptions of a topology's devices, which programs can be compiled for but not run on.

  Raises:
    ConfigError: libtpu is not installed, or it does not know the topology.
  """
  topology = parse(text)
  if importlib.util.find_spec("libtpu") is None:
    raise ConfigError(
      f'topology={text}: compiling for TPUs needs libtpu; install it with pip install "jax[tpu]"'
    )
  # libtpu asks the cloud's metadata server about itself unless it is told.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", GENERATIONS[topology.generation].accelerator)
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_WORKER_ID", "0")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no device is taken, so several may
  from jax.experimental import topologies

  options = {"chips_per_host_bounds": [1, 1, 1]} if math.prod(topology.shape) == 1 else {}
  if topology.slices > 1:
    options["num_slices"] = topology.slices
  try:
    described = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
  except (jax.errors.JaxRuntimeError, NotImplementedError) as error:
    reason = str(error).splitlines()[0]
    raise ConfigError(
      f"topology={text}: libtpu refuses it ({reason}); use v5e:2x4, or another jax[tpu]"
    ) from None
  return list(described.devices)


# --- links ----------------------------------------------------------------------------------------


def bandwidth(chip: Chip, devices: Sequence[jax.Device], group: Sequence[int]) -> float | None:
  """Bytes/s that each member of a group can send in a ring algorithm; None where not published.

  On a torus, a ring along each physical axis that the group spans: two ports for an axis that wraps
  around and is spanned whole, else one. Where a chip is several devices, a ring that holds them all has
  their links together, and a ring inside a chip as much as all its links. Between slices, or hosts of GPUs,
  the share of the network.

  Args:
    devices: all of the mesh, in its order.
    group: positions in `devices`.
  """
  members = [devices[i] for i in group]
  if len({_domain(d) for d in members}) > 1:
    return chip.network
  if not chip.ports:
    return chip.link
  wraps, spans = _wraps(devices), _spans(members)
  cores = len(members) // len({tuple(d.coords) for d in members})  # devices of one chip among them
  if cores > 1 and max(spans) == 1:
    return chip.link * cores
  ports = sum(2 if wraps[a] and span == wraps[a] else 1 for a, span in enumerate(spans) if span > 1)
  return chip.link * cores * max(ports, 1) / chip.ports


def hops(devices: Sequence[jax.Device], source: int, target: int) -> int:
  """Links between two chips of a torus, the short way; 1 for anything else."""
  a, b = devices[source], devices[target]
  if not hasattr(a, "coords") or _domain(a) != _domain(b):
    return 1
  wraps = _wraps(devices)
  steps = [abs(x - y) for x, y in zip(a.coords, b.coords, strict=True)]
  return max(1, sum(min(s, w - s) if w else s for s, w in zip(steps, wraps, strict=True)))


def _domain(device: jax.Device) -> int:
  """The slice of a TPU, the host of anything else: what fast links join."""
  slice_index = getattr(device, "slice_index", None)
  if slice_index is not None:
    return slice_index
  return 0 if hasattr(device, "coords") else device.process_index


def _spans(members: Sequence[jax.Device]) -> list[int]:
  return [len(set(axis)) for axis in zip(*(d.coords for d in members), strict=True)]


def _wraps(devices: Sequence[jax.Device]) -> list[int]:
  """The size of each physical axis that closes to a ring; 0 where it does not.

  v5e and v6e: an axis of 16; v4, v5p and tpu7x: all axes where each is a multiple of 4.
  """
  sizes = [max(axis) + 1 for axis in zip(*(d.coords for d in devices), strict=True)]
  if "lite" in devices[0].device_kind:
    return [size if size == 16 else 0 for size in sizes]
  return [size if all(s % 4 == 0 for s in sizes) else 0 for size in sizes]
