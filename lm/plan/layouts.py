"""Finds the fastest way to lay a run over devices: mesh, recomputation and micro-batches.

What the run computes stays as it is: the batch of a step is only cut into micro-batches. Arithmetic ranks
every layout; the best few are compiled, and what XLA says decides.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from lm.config.errors import ConfigError, number_of
from lm.config.schema import Config, ModelConfig
from lm.cost.flops import run_flops_per_token
from lm.cost.memory import memory_bytes
from lm.cost.parameters import run_counts
from lm.devices import chips
from lm.devices.chips import Chip
from lm.devices.sharding import make_mesh
from lm.plan import compiled
from lm.plan import run_plan as plan
from lm.setup.resolve import resolve, tokens_per_step

COMPILED = 6  # layouts compiled, unless none of them fits
AT_MOST = 10
SLACK = 1.25  # the arithmetic of memory may be this much too high where nothing is compiled yet
ROOM = 0.92  # part of the memory planned for; nearer to the limit XLA looks for minutes for what to recompute
# Policies tried, with the part of the forward products that each repeats. `offload` is not among them: the
# roofline knows nothing of the way to the host.
AGAIN = {"none": 0.0, "dots": 0.0, "names": 0.7, "full": 1.0}


class Layout(NamedTuple):
  cfg: Config  # resolved
  bytes: float  # on each device, by arithmetic
  seconds: float  # of a step, by arithmetic


def search(
  cfg: Config, vocab_size: int, devices: Sequence[jax.Device], say: Callable[[str], None]
) -> dict[str, object]:
  """The fastest layout of a checked, unresolved config that fits.

  Args:
    vocab_size: entries of the tokenizer.
    devices: at hand or described, of a chip in lm.devices.chips.
    say: is told of each layout when it has been compiled.

  Returns:
    layouts (how many the arithmetic ranked), tried: rows {flags, mesh, remat, accumulate, estimate,
    compile_seconds, fits, bytes, step, mfu}, best: the row of the fastest that fits or None, plan: its
    whole plan.

  Raises:
    ConfigError: a device without a row in lm.devices.chips, or no layout that divides.
  """
  chip = chips.find_chip(devices[0].device_kind)
  if chip is None:
    raise ConfigError(
      f"fit={devices[0].device_kind}: has no row in lm/devices/chips.py to judge by; use --topology, "
      "or add it"
    )
  found = sorted(layouts(cfg, vocab_size, len(devices), chip), key=lambda one: one.seconds)
  queue, tried, plans = list(found), [], []
  larger, slower = {}, {}  # by how much programs exceed the arithmetic: by remat policy, by mesh
  while queue and len(tried) < AT_MOST:
    if len(tried) >= COMPILED and any(row["fits"] for row in tried):
      break
    size = lambda one: one.bytes * larger.get(getattr(one.cfg.model, "remat", "none"), 1 / SLACK)
    time = lambda one: one.seconds * slower.get(one.cfg.mesh, 1.0)
    room = [one for one in queue if size(one) <= ROOM * chip.hbm]
    layout = min(room, key=time) if room else min(queue, key=size)
    queue.remove(layout)
    try:
      mesh = make_mesh(layout.cfg.mesh, devices=devices)
    except NotImplementedError:
      continue  # jax knows no way to lay such axes over this torus
    found_here = compiled.examine(layout.cfg, mesh)
    row = _row(layout, found_here)
    tried.append(row)
    made = plan.make_plan(layout.cfg, None, devices)
    plans.append(dataclasses.replace(made, compiled=found_here))
    say(show_row(row))
    least = 0 if row["fits"] else 1.01 * chip.hbm
    larger[getattr(layout.cfg.model, "remat", "none")] = max(row["bytes"], least) / layout.bytes
    if row["fits"]:
      slower[layout.cfg.mesh] = row["step"] / layout.seconds
  fitting = [i for i, row in enumerate(tried) if row["fits"]]
  best = min(fitting, key=lambda i: tried[i]["step"], default=None)
  return {
    "layouts": len(found),
    "tried": tried,
    "best": None if best is None else tried[best],
    "plan": None if best is None else plans[best],
  }


def show(result: dict[str, object]) -> str:
  """What was tried, the flags to paste and the plan they give."""
  lines = [f"{result['layouts']} layouts ranked by arithmetic, {len(result['tried'])} compiled:"]
  lines += [show_row(row) for row in result["tried"]]
  if result["best"] is None:
    return "\n".join([*lines, "none fits; take more devices or a smaller train.batch_size"])
  return "\n".join(
    [*lines, "", "the fastest that fits:", *result["best"]["flags"], "", plan.show(result["plan"])]
  )


def to_json(result: dict[str, object]) -> str:
  """The answer of `search` as JSON."""
  plan_found = result["plan"]
  return json.dumps(result | {"plan": plan_found and plan_found.to_dict()}, indent=2)


def show_row(row: dict[str, object]) -> str:
  """One layout as a line."""
  what = f"{plan.show_mesh(row['mesh'])}, remat {row['remat']}, {row['accumulate']} micro-batches"
  if not row["fits"]:
    return f"  {what}: does not fit"
  return (
    f"  {what}: {1000 * row['step']:,.1f} ms, MFU {row['mfu']:.1%}, {row['bytes'] / 1e9:.1f} GB"
  )


# --- arithmetic -----------------------------------------------------------------------------------


def layouts(cfg: Config, vocab_size: int, n_devices: int, chip: Chip) -> Iterator[Layout]:
  """Every mesh, remat policy and number of micro-batches that divides, with its estimates."""
  batch = cfg.train.batch_size
  divisors = [n for n in _powers(batch) if batch % n == 0]
  some = False
  policies = AGAIN if hasattr(cfg.model, "remat") else ("none",)
  for mesh, remat, accumulate in itertools.product(meshes(cfg, n_devices), policies, divisors):
    changed = dataclasses.replace(
      cfg,
      mesh=dataclasses.replace(cfg.mesh, **mesh),
      model=with_remat(cfg.model, remat),
      train=dataclasses.replace(cfg.train, accumulate=accumulate),
      eval=dataclasses.replace(cfg.eval, batch_size=batch),
    )
    try:
      resolved = resolve(changed, vocab_size, n_devices)
    except ConfigError:
      continue  # a size that does not divide
    some = True
    yield Layout(
      resolved, sum(memory_bytes(resolved).values()), estimate(resolved, chip, n_devices)
    )
  if not some:
    raise ConfigError(
      f"train.batch_size={batch}: no layout over {number_of(n_devices, 'device')} divides it; "
      f"use a multiple of {n_devices}"
    )


def with_remat(model: ModelConfig, policy: str) -> ModelConfig:
  """The section with that policy; families without one as they are."""
  return dataclasses.replace(model, remat=policy) if hasattr(model, "remat") else model


def meshes(cfg: Config, n_devices: int) -> Iterator[dict[str, int]]:
  """Sizes of replica, fsdp and tensor that use all devices; other axes as the config has them."""
  fixed = {k: v for k, v in vars(cfg.mesh).items() if k not in ("replica", "fsdp", "tensor")}
  if -1 in fixed.values():
    fixed = {k: max(v, 1) for k, v in fixed.items()}
  rest, odd = divmod(n_devices, math.prod(fixed.values()))
  if odd:
    return
  heads = getattr(cfg.model, "kv_heads", None) or getattr(cfg.model, "heads", 8)
  for tensor in (n for n in _powers(min(8, heads)) if rest % n == 0 and heads % n == 0):
    for fsdp in (n for n in _powers(rest // tensor) if rest // tensor % n == 0):
      yield fixed | {"replica": rest // tensor // fsdp, "fsdp": fsdp, "tensor": tensor}


def estimate(cfg: Config, chip: Chip, n_devices: int) -> float:
  """Seconds of a step by arithmetic: the longer of matrix products and network, plus memory.

  Products: the exact count, and the forward pass again as remat says. Network: parameters are gathered
  twice for each micro-batch and gradients reduced once, two bytes a number; tensor parallelism reduces
  four activations a layer. Memory: the state is read and written once a step.
  """
  model, mesh, n = cfg.model, cfg.mesh, cfg.train.accumulate
  tokens = tokens_per_step(cfg)
  flops = run_flops_per_token(cfg, "exact") * (1 + AGAIN[getattr(model, "remat", "none")] / 3)
  products = tokens * flops / (n_devices * getattr(chip, model.dtype))
  total = run_counts(cfg).total / mesh.tensor
  ring = lambda size: (size - 1) / size
  weights = 3 * 2 * total * n * ring(mesh.fsdp) + 2 * 4 * total / mesh.fsdp * ring(mesh.replica)
  local = tokens * mesh.tensor / n_devices
  activations = 4 * 2 * 2 * local * model.width * getattr(model, "depth", 1) * ring(mesh.tensor)
  network = (weights + activations) / (chip.link / 2)
  sizes = memory_bytes(cfg)
  state = 2 * (sizes["parameters"] + sizes["optimizer"]) + n * sizes["gradients"]
  return max(products, network) + (state + 2 * n * sizes["activations"]) / chip.hbm_bandwidth


def _powers(top: int) -> list[int]:
  """1, 2, 4, ... up to top."""
  return [2**i for i in range(max(top, 1).bit_length())]


def _row(layout: Layout, found: dict[str, object]) -> dict[str, object]:
  cfg = layout.cfg
  mesh = dict(vars(cfg.mesh))
  flags = [f"--config.mesh.{axis}={size}" for axis, size in mesh.items() if size != 1]
  flags += ["--config.mesh.replica=1"] if mesh["replica"] == 1 else []
  remat = getattr(cfg.model, "remat", "none")
  flags += [f"--config.model.remat={remat}"] if hasattr(cfg.model, "remat") else []
  flags.append(f"--config.train.accumulate={cfg.train.accumulate}")
  fits = bool(found["fits"])
  return {
    "flags": flags,
    "mesh": mesh,
    "remat": remat,
    "accumulate": cfg.train.accumulate,
    "estimate": {"bytes": layout.bytes, "step": layout.seconds},
    "compile_seconds": found["compile_seconds"],
    "fits": fits,
    "bytes": sum(v for v in found["bytes"].values() if v is not None),
    "step": found["roofline"]["step"] if fits else None,
    "mfu": found["mfu"] if fits else None,
  }
