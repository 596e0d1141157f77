"""Memory: what a run needs of it and what there is, said before it begins or when it is out of it."""

import contextlib
import dataclasses
import os
import pathlib

import jax

from lm.config.errors import ConfigError
from lm.config.schema import Config
from lm.cost.memory import memory_bytes
from lm.plan.run_plan import Plan

ROOM = 0.9  # of a device's memory that a plan may fill
# Of a plan's bytes, what is there from the first step to the last.
CERTAIN = ("parameters", "optimizer")
CGROUP = pathlib.Path("/sys/fs/cgroup/memory.max")  # a container's limit; a number or "max"


def check(cfg: Config, plan: Plan, n_runs: int) -> None:
  """ConfigError where the parameters and the optimizer's state alone are more than the devices hold.

  Args:
    cfg: resolved config of the first run.
    plan: of it.
    n_runs: that are stacked on the devices at hand.
  """
  room = device_bytes()
  if room is None:
    return
  local = jax.local_device_count()
  a_run = sum(plan.bytes[part] for part in CERTAIN)
  if jax.local_devices()[0].platform == "cpu":  # they share the host's
    needed = a_run * (n_runs if n_runs > 1 else local)
  else:
    needed = a_run * n_runs / (local if n_runs > 1 else 1)
  if needed > room:
    runs = f" of {n_runs} runs" if n_runs > 1 else ""
    raise ConfigError(
      f"model.width={cfg.model.width}: parameters and optimizer state{runs} are {size(needed)}, of which "
      f"{'this machine' if local == 1 else 'a device'} holds {size(room)}; {_remedy(cfg, room)}"
    )


def would_fit(cfg: Config, plan: Plan) -> str:
  """What the plan says the run needs, and the first change that brings it under the device's memory."""
  total = sum(plan.bytes.values())
  parts = ", ".join(f"{size(v)} {k}" for k, v in plan.bytes.items())
  room = device_bytes()
  lines = f"the plan counts {size(total)} a device ({parts})"
  if room is None:
    return f"{lines}; raise train.accumulate, or set model.remat=full, or shard (mesh.fsdp)"
  lines += f", and a device has {size(room)}"
  return f"{lines}; {_remedy(cfg, room)}"


def device_bytes() -> float | None:
  """Memory of a device; of the host, or the container, for CPUs. None where nothing tells."""
  device = jax.local_devices()[0]
  if device.platform != "cpu":
    return (device.memory_stats() or {}).get("bytes_limit")
  found = []
  with contextlib.suppress(ValueError, OSError, AttributeError):
    found.append(float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
  with contextlib.suppress(ValueError, OSError):
    found.append(float(CGROUP.read_text(encoding="utf-8")))
  return min(found, default=None)


def peak_bytes() -> int | None:
  """The most memory that one device here has held at once in this process; None where none says (CPUs)."""
  found = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
  return max((int(n) for n in found if n), default=None)


def size(n: float) -> str:
  """Bytes in words: 24.1 GB."""
  for unit in ("B", "kB", "MB"):
    if n < 1000:
      return f"{n:.3g} {unit}"
    n /= 1000
  return f"{n:.3g} GB"


def _remedy(cfg: Config, room: float) -> str:
  batch = cfg.train.batch_size
  ways = cfg.mesh.replica * cfg.mesh.fsdp * cfg.mesh.expert
  more = [n for n in range(cfg.train.accumulate + 1, batch + 1) if batch % (n * ways) == 0]
  for n in more:
    train = dataclasses.replace(cfg.train, accumulate=n)
    if sum(memory_bytes(dataclasses.replace(cfg, train=train)).values()) < ROOM * room:
      return f"--config.train.accumulate={n} would fit"
  shard = (
    "shard it with mesh.fsdp, or take a smaller model; train.py --plan --fit looks for a layout"
  )
  held = memory_bytes(cfg)
  if sum(held[part] for part in CERTAIN) > ROOM * room or not more or "activations" not in held:
    return shard
  return (
    f"no train.accumulate alone would fit; add --config.train.accumulate={more[-1]} and "
    "--config.model.remat=full, or shard it with mesh.fsdp; train.py --plan --fit looks for a layout"
  )
