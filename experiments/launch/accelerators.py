"""Cloud accelerators by family: their names in each cloud tool, and the smallest slice that a run fits on.

One table holds the names; `place` decides by the memory of the plan.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from experiments.launch import throughput
from experiments.sweep.sweep import Member, devices_needed, units_per_row, vocab_size
from lm.config.errors import ConfigError, number_of, suggest
from lm.config.schema import Config
from lm.cost.memory import memory_bytes
from lm.cost.parameters import run_counts
from lm.devices.chips import CHIPS
from lm.devices.topology import SHAPES_2D, SHAPES_3D
from lm.setup.resolve import resolve

ROOM = 0.92  # part of a device's memory that is planned for


class ChipFamily(NamedTuple):
  """One kind of accelerator.

  Args:
    chip: its row in lm.devices.chips, which is of one device as JAX counts them.
    hbm: bytes of memory of one device as JAX counts devices.
    shapes: {chips: shape} of TPU slices; None for GPUs.
    per_chip: JAX devices on a chip.
    host: chips of a host in slices of several hosts.
    alone: the largest slice on a single host, in chips.
    sky: SkyPilot's accelerator, with {n} as it counts; None where it has no name for it.
    gcloud: accelerator type of queued resources, with {n}; None where only GKE offers it.
    counts: what {n} counts on each chip (v5p names count cores).
    runtime: software version of TPU VMs.
    gke: value of the node label cloud.google.com/gke-tpu-accelerator (gke-accelerator for GPUs).
    extra: of jax, which pip is to install.
  """

  chip: str
  hbm: float
  shapes: dict[int, tuple[int, ...]] | None
  per_chip: int
  host: int
  alone: int
  sky: str | None
  gcloud: str | None
  counts: int
  runtime: str | None
  gke: str
  extra: str


def _of(chip: str) -> tuple[str, float]:
  return chip, CHIPS[chip].hbm


# cloud.google.com/tpu/docs/{v5e,v5p,v6e,tpu7x} and .../tpu/docs/runtimes (2025): TPU7x is offered through
# GKE only, and JAX sees each of its chips as two devices of 96 GiB.
CHIP_FAMILIES = {
  "v5e": ChipFamily(*_of("TPU v5e"), SHAPES_2D, 1, 4, 8, "tpu-v5litepod-{n}", "v5litepod-{n}", 1,
                "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice", "tpu"),
  "v5p": ChipFamily(*_of("TPU v5p"), SHAPES_3D, 1, 4, 4, "tpu-v5p-{n}", "v5p-{n}", 2,
                "v2-alpha-tpuv5", "tpu-v5p-slice", "tpu"),
  "v6e": ChipFamily(*_of("TPU v6e"), SHAPES_2D, 1, 4, 8, "tpu-v6e-{n}", "v6e-{n}", 1,
                "v2-alpha-tpuv6e", "tpu-v6e-slice", "tpu"),
  "tpu7x": ChipFamily(*_of("TPU7x"), SHAPES_3D, 2, 4, 4, None, None, 2, None, "tpu7x", "tpu"),
  "a100": ChipFamily(*_of("A100 40GB"), None, 1, 8, 8, "A100", None, 1, None,
                 "nvidia-tesla-a100", "cuda12"),
  "a100-80gb": ChipFamily(*_of("A100 80GB"), None, 1, 8, 8, "A100-80GB", None, 1, None,
                      "nvidia-a100-80gb", "cuda12"),
  "h100": ChipFamily(*_of("H100"), None, 1, 8, 8, "H100", None, 1, None, "nvidia-h100-80gb", "cuda12"),
  "h200": ChipFamily(*_of("H200"), None, 1, 8, 8, "H200", None, 1, None, "nvidia-h200-141gb", "cuda12"),
  "b200": ChipFamily(*_of("B200"), None, 1, 8, 8, "B200", None, 1, None, "nvidia-b200", "cuda12"),
  "gb200": ChipFamily(*_of("GB200"), None, 1, 4, 4, "GB200", None, 1, None, "nvidia-gb200", "cuda12"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where a job runs: `slices` slices (or one group of GPU hosts) of `chips` chips each."""

  name: str  # of the family
  chips: int
  slices: int
  bytes: float  # a device needs, by the plan
  seconds: float  # predicted
  dollars: float | None  # at list price; None where none is published

  @property
  def family(self) -> ChipFamily:
    return CHIP_FAMILIES[self.name]

  @property
  def hosts(self) -> int:
    """Hosts of one slice."""
    return 1 if self.chips <= self.family.alone else self.chips // self.family.host

  @property
  def per_host(self) -> int:
    """Chips of one host."""
    return self.chips // self.hosts

  @property
  def topology(self) -> str:
    """A slice's shape: 2x4 or 4x4x4."""
    return "x".join(map(str, self.family.shapes[self.chips]))

  @property
  def words(self) -> str:
    """In a line: what, how full, how long, how dear."""
    what = f"{self.slices} x " if self.slices > 1 else ""
    shown = [f"{what}{number_of(self.chips, f'{self.name} chip')}"]
    shown.append(f"{self.bytes / 1e9:.2f} of {self.family.hbm / 1e9:.0f} GB a device")
    shown.append(f"{self.seconds / 3600:.2f} h")
    price = "no list price is published" if self.dollars is None else None
    shown.append(price or f"about {self.dollars:,.2f} USD at list price")
    return ", ".join(shown)

  def accelerator(self, pattern: str) -> str:
    """A name of the family for this many chips."""
    return pattern.format(n=self.chips * self.family.counts)


def find_chip_family(text: str | None, offered: Sequence[str] = tuple(CHIP_FAMILIES)) -> str:
  """The family of that name; ConfigError with the names there are."""
  if text is None:
    raise ConfigError(f"with=chip: is missing; name one: {', '.join(offered)}")
  if text not in offered:
    raise ConfigError(f"with=chip={text}: is not on offer there; {suggest(text, offered)}")
  return text


def place(
  members: Sequence[Member], name: str, chips: int | None, slices: int = 1, mfu: float | None = None
) -> Placement:
  """The smallest slice that holds a job, or the one that was asked for.

  Args:
    members: the job's runs; several are stacked on one chip.
    name: a key of CHIP_FAMILIES.
    chips: of one slice; None = the smallest that fits.
    slices: joined by the data-centre network.
    mfu: predicted utilisation, exact convention; None = that of published runs.

  Raises:
    ConfigError: no slice of the family holds it, or its mesh does not divide over any.
  """
  family, first = CHIP_FAMILIES[name], members[0]
  sizes = list(family.shapes) if family.shapes else [1, 2, 4, *range(8, 257, 8)]
  if chips is not None and chips not in sizes:
    raise ConfigError(
      f"with=chips={chips}: no slice of {name} has that size; use one of {', '.join(map(str, sizes[:9]))}"
    )
  errors: list[str] = []
  too_large = None
  for size in [chips] if chips is not None else sizes:
    devices = size * slices * family.per_chip
    if len(members) > 1:
      cfg, needed = first.cfg, _stack_bytes(members, devices)
    else:
      cfg = _resolved(first, devices, errors)
      needed = cfg and sum(memory_bytes(cfg).values())
    if cfg is None:
      continue
    if needed <= ROOM * family.hbm:
      return _placement(members, cfg, name, size, slices, needed, mfu)
    too_large = (
      f"needs {needed / 1e9:.1f} GB on each device of {size * slices} {name} chips, which have "
      f"{family.hbm / 1e9:.0f}; raise mesh.fsdp (-1 takes what there is), train.accumulate or model.remat"
    )
  raise ConfigError(f"run {first.name}: {too_large or errors[-1]}")


def _resolved(member: Member, devices: int, errors: list[str]) -> Config | None:
  """The run's config over so many devices; None, and why, where its mesh does not divide so."""
  if -1 not in dataclasses.astuple(member.asked.mesh) and devices_needed(member.asked) != devices:
    errors.append(
      f"its mesh is of {devices_needed(member.asked)} devices, which no slice on offer has; set one axis "
      "to -1"
    )
    return None
  try:
    asked = member.asked
    return resolve(asked, vocab_size(asked), devices, units_per_row(asked))
  except ConfigError as error:
    errors.append(str(error))
    return None


def _stack_bytes(members: Sequence[Member], devices: int) -> float:
  """A stack's runs are spread over devices, each on one."""
  shared = -(-len(members) // devices)
  return shared * sum(memory_bytes(members[0].cfg).values())


def _placement(members, cfg, name, size, slices, needed, mfu) -> Placement:
  family = CHIP_FAMILIES[name]
  speed = throughput.from_chip(family.chip, mfu, cfg.model.dtype, run_counts(cfg).total)
  if len(members) > 1:
    devices = size * slices * family.per_chip
    seconds = sum(speed.seconds(m.cfg) for m in members) / min(len(members), devices)
  else:
    seconds = speed.seconds(cfg)
  seconds += speed.compiling
  price = speed.price
  dollars = None if price is None else price * family.per_chip * size * slices * seconds / 3600
  return Placement(name, size, slices, needed, seconds, dollars)
