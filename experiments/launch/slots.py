"""Places for processes on this machine: its devices and cores, shared out."""

import functools
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import NamedTuple

from lm.config.errors import ConfigError, number_of

TPU_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1", 8: "2,4,1"}  # chips of one process, as a block
MAX_WORKERS = 8  # by default, where there are no accelerators: each needs about 1 GB


class Devices(NamedTuple):
  platform: str  # cpu | gpu | tpu
  kind: str
  count: int


class Slot(NamedTuple):
  """Where one process runs: environment variables, and cores (None = all)."""

  env: Mapping[str, str]
  cpus: tuple[int, ...] | None


@functools.cache
def find_devices() -> Devices:
  """What a worker would see. Asked of a short process, as looking would claim the devices."""
  code = "import jax; d = jax.devices(); print(d[0].platform, len(d), d[0].device_kind, sep='|')"
  out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
  if out.returncode:
    reason = out.stderr.strip().splitlines()[-1]
    raise ConfigError(f"devices=(unknown): JAX finds none ({reason}); check its installation")
  platform, count, kind = out.stdout.strip().splitlines()[-1].split("|", 2)
  return Devices(platform, kind, int(count))


def make_slots(devices: Devices, workers: int | None, needed: int) -> list[Slot]:
  """Places for `workers` processes (None = as many as fit) of `needed` devices each.

  Accelerators are shared out whole; more workers than fit share them in turn. On a CPU it is the
  cores that are shared out.
  """
  if workers is not None and workers < 1:
    raise ConfigError(f"workers={workers}: must be at least 1; leave it out for as many as fit")
  if devices.platform == "cpu":
    return _cpu_slots(workers, needed)
  if needed > devices.count:
    raise ConfigError(
      f"mesh=({number_of(needed, 'device')}): this machine has {devices.count}; lower the mesh axes or use -1"
    )
  if devices.platform == "tpu" and needed not in TPU_BOUNDS:
    raise ConfigError(
      f"mesh=({number_of(needed, 'device')}): a process has {', '.join(map(str, TPU_BOUNDS))} chips of "
      "a host; "
      "change the mesh axes"
    )
  fit = devices.count // needed
  if fit == 1 and workers in (None, 1):
    return [Slot({}, None)]  # one process that sees everything
  slots = []
  for worker in range(workers or fit):
    first = worker % fit * needed
    chosen = ",".join(str(first + i) for i in range(needed))
    env = {"CUDA_VISIBLE_DEVICES": chosen, "ROCR_VISIBLE_DEVICES": chosen}
    if devices.platform == "tpu":
      env = {"TPU_VISIBLE_CHIPS": chosen, "TPU_CHIPS_PER_PROCESS_BOUNDS": TPU_BOUNDS[needed],
             "TPU_PROCESS_BOUNDS": "1,1,1"}  # fmt: skip
    if (workers or fit) > fit:
      env["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    slots.append(Slot(env, None))
  return slots


def _cpu_slots(workers: int | None, needed: int) -> list[Slot]:
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  count = workers or min(len(cores) or 1, MAX_WORKERS)
  env = {}
  if needed > 1:  # a mesh on a CPU is one of fake devices
    flags = os.environ.get("XLA_FLAGS", "")
    env = {"XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={needed}".strip()}
  if not cores:
    return [Slot(env, None)] * count
  shares = [tuple(cores[i::count]) or (cores[i % len(cores)],) for i in range(count)]
  return [Slot(env, share) for share in shares]
