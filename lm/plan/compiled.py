"""What one training step costs on its devices, read from the program that XLA compiles for them.

Nothing is allocated: the real step is lowered from shapes. The devices may be at hand or only described
(lm.devices.topology). Step time is a roofline, a bound that no run will beat by much and a good one comes
near: each instruction takes the longer of its matrix products at the chip's peak and its bytes at the
memory's bandwidth; asynchronous collectives hide behind that, the others add to it.
"""

import contextlib
import dataclasses
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lm.config.schema import Config
from lm.cost.flops import SHOWN, mfu, run_flops_per_token, xla_flops
from lm.devices import chips, published, topology
from lm.devices.chips import Chip
from lm.plan import hlo
from lm.plan.collectives import Collective, collectives, mesh_axes
from lm.plan.hlo_cost import Work, work
from lm.setup.hparams import hparams_zeros
from lm.setup.resolve import kind_of, tokens_per_step
from lm.training.programs import make_programs

PEAKS = {"bf16": "bfloat16", "f16": "bfloat16", "f32": "float32", "s8": "int8", "u8": "int8"}


def examine(cfg: Config, mesh: Mesh) -> dict[str, object]:
  """Compiles the training step of a resolved config for a mesh, and measures the program.

  Returns:
    lower_seconds, compile_seconds; bytes {kind: on each device}, hbm, fits, error (XLA's words where
    the program does not fit, and nothing below then); flops of a step on all devices {ours: by
    convention, xla, matmul, xla_loops_once}; bytes_moved and unknown_loops on each device;
    published_mfu of large runs on that chip, None where there are none;
    collectives, warnings; roofline {compute, memory, network, exposed, step, serial} in seconds,
    mfu, tokens_per_sec, hours and dollars of the whole run: None where the chip is not in lm.devices.chips.
    Where rows grow (data.length_curriculum) the step is one of full rows, and all are taken to be such.
  """
  cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, length_curriculum=()))
  devices = list(mesh.devices.flat)
  chip = chips.find_chip(devices[0].device_kind)
  start = time.monotonic()
  with _stderr() as log:
    programs = make_programs(cfg, mesh)
    lowered = programs.train.lower(programs.train_shape, _batch(cfg), _shapes(hparams_zeros(cfg)))
    lowered_at = time.monotonic()
    compiled, error = _compile(lowered)
  facts: dict[str, object] = {
    "lower_seconds": lowered_at - start,
    "compile_seconds": time.monotonic() - lowered_at,
    "hbm": chip and chip.hbm,
    "error": error,
    "warnings": sorted({line.split("] ", 1)[-1] for line in log if "rematerialization" in line}),
  }
  state = _state_bytes(programs.train_shape, programs.train_sharding)
  if compiled is None:
    needed = _needed(error)
    return facts | {"bytes": state | {"needed": needed}, "fits": False}
  program = hlo.parse(compiled.as_text())
  shards = _shard_shapes(programs.run_shape.params, programs.state_sharding.params)
  sizes = state | _temporary_bytes(compiled.memory_analysis(), program, shards, sum(state.values()))
  done = work(program)
  links = summarize(collectives(program, mesh.size), chip, mesh)
  facts |= {
    "published_mfu": published.UTILISATION.get(chips.name_of(devices[0].device_kind) or ""),
    "bytes": sizes,
    "fits": None if chip is None else sum(sizes.values()) <= chip.hbm,
    "flops": {
      "ours": {c: run_flops_per_token(cfg, c) * _tokens(cfg) for c in SHOWN},
      "xla": sum(w.times * w.flops for w in done) * mesh.size,
      "matmul": sum(w.times * sum(w.matmul_flops.values()) for w in done) * mesh.size,
      "xla_loops_once": xla_flops(compiled) * mesh.size,
    },
    "bytes_moved": sum(w.times * w.bytes for w in done),
    "unknown_loops": hlo.unknown_loops(program),
    "collectives": links,
    "roofline": chip and roofline(done, links, chip),
  }
  return facts | cost(cfg, facts["roofline"], chip, mesh.size)


def roofline(
  done: Sequence[Work], links: Sequence[Mapping[str, Any]], chip: Chip
) -> dict[str, float]:
  """Seconds of one run of a program on each device.

  compute: matrix products at peak; memory: bytes at full bandwidth; chip: the longer of the two,
  instruction by instruction; network: all collectives, exposed: those among them that nothing hides.

      step = max(chip, network - exposed) + exposed        serial = compute + memory + network
  """
  compute = [sum(f / _peak(chip, dtype) for dtype, f in w.matmul_flops.items()) for w in done]
  memory = [w.bytes / chip.hbm_bandwidth for w in done]
  times = [w.times for w in done]
  network = sum(link["seconds"] or 0.0 for link in links)
  exposed = sum(link["seconds"] or 0.0 for link in links if not link["hidden"])
  busy = sum(n * max(c, m) for n, c, m in zip(times, compute, memory, strict=True))
  each = {"compute": compute, "memory": memory}
  total = {k: sum(n * s for n, s in zip(times, v, strict=True)) for k, v in each.items()}
  return total | {
    "chip": busy,
    "network": network,
    "exposed": exposed,
    "step": max(busy, network - exposed) + exposed,
    "serial": sum(total.values()) + network,
  }


def cost(
  cfg: Config, seconds: Mapping[str, float] | None, chip: Chip | None, n_devices: int
) -> dict[str, float | None]:
  """What the whole run takes at the roofline: mfu (convention exact), tokens_per_sec, hours, dollars."""
  if seconds is None or chip is None:
    return dict.fromkeys(("mfu", "tokens_per_sec", "hours", "dollars"))
  flops = run_flops_per_token(cfg, "exact") * _tokens(cfg)
  peak = getattr(chip, cfg.model.dtype) * n_devices
  hours = cfg.train.steps * seconds["step"] / 3600
  return {
    "mfu": mfu(flops, seconds["step"], peak),
    "tokens_per_sec": _tokens(cfg) / seconds["step"],
    "hours": hours,
    "dollars": None if chip.price is None else hours * n_devices * chip.price,
  }


def summarize(
  found: Sequence[Collective], chip: Chip | None, mesh: Mesh
) -> list[dict[str, object]]:
  """The collectives as rows, equal ones together, those that take longest first.

  Returns:
    kind, what (the array), axes, count, bytes (of one), sent (by each device in all), hidden, where,
    seconds (None where the chip or its network is not known).
  """
  devices = list(mesh.devices.flat)
  rows: dict[tuple, dict[str, Any]] = {}
  for one in found:
    axes = mesh_axes(one.groups, mesh.shape)
    if not axes:
      continue
    where = re.sub(r"^jit\(\w+\)/|/while/body|/closed_call|/checkpoint", "", one.where)
    key = (one.kind, one.what, axes, one.hidden, one.where.startswith("jit(call)/transpose"))
    row = rows.setdefault(key, {
      "kind": one.kind, "what": one.what, "axes": list(axes), "count": 0, "bytes": one.bytes,
      "sent": 0.0, "seconds": 0.0, "hidden": one.hidden, "where": where,
    })  # fmt: skip
    seconds = _seconds(one, chip, devices)
    row["count"] += one.times
    row["sent"] += one.times * one.sent
    row["seconds"] = None if seconds is None else row["seconds"] + one.times * seconds
  return sorted(rows.values(), key=lambda row: -(row["seconds"] or row["sent"]))


def _seconds(one: Collective, chip: Chip | None, devices: list[jax.Device]) -> float | None:
  """Of one collective: what a device sends over the links it has for it.

  A permutation is taken to be half of a pair that runs in both directions, as XLA makes them.
  """
  if chip is None:
    return None
  speeds = [topology.bandwidth(chip, devices, group) for group in one.groups]
  if None in speeds:
    return None
  if one.kind == "collective-permute":
    far = max(topology.hops(devices, *pair) for pair in one.groups)
    return one.sent * far / (min(speeds) * (2 if chip.ports else 1))
  return one.sent / min(speeds)


# --- bytes ----------------------------------------------------------------------------------------


def _state_bytes(shapes: Any, shardings: Any) -> dict[str, int]:
  """Of the state on each device."""
  sizes = lambda name: [
    math.prod(shape) * size
    for shape, size in _shard_shapes(getattr(shapes, name), getattr(shardings, name))
  ]
  return {
    "parameters": sum(sizes("params")),
    "optimizer": sum(sizes("opt_state")) + sum(sizes("ema")),
  }


def _shard_shapes(shapes: Any, shardings: Any) -> list[tuple[tuple[int, ...], int]]:
  """(shape on one device, bytes of a number) of each array."""
  return [
    (sharding.shard_shape(leaf.shape), np.dtype(leaf.dtype).itemsize)
    for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
  ]


def _temporary_bytes(memory, program: hlo.Program, shards, state: float) -> dict[str, float]:
  """What a step needs beside the state: XLA's total, split by what loops carry.

  Gradients and activations are those of scanned layers: arrays that a loop fills, one slice a trip,
  or a sum over micro-batches; an array shaped like a parameter is a gradient. The rest, and all of
  it where layers are not scanned, is `temporaries`.
  """
  shapes = {shape for shape, _ in shards}
  gradients = activations = 0.0
  for computation, loop, _ in hlo.walk(program):
    if loop.opcode != "while":
      continue
    trips = hlo.trips(program, computation, loop)
    for array, fresh in hlo.carried(program, computation, loop):
      if fresh and array.shape in shapes and array.size > 1:
        gradients += array.bytes
      elif fresh and array.space == 0 and trips and trips > 1 and array.shape[:1] == (trips,):
        activations += array.bytes
  batch = memory.argument_size_in_bytes - state
  aliased = memory.output_size_in_bytes - memory.alias_size_in_bytes
  code = memory.generated_code_size_in_bytes
  activations = min(activations, memory.temp_size_in_bytes)
  gradients = min(gradients, memory.temp_size_in_bytes - activations)
  return {
    "gradients": gradients,
    "activations": activations,
    "temporaries": memory.temp_size_in_bytes - gradients - activations,
    "program": max(0, batch) + aliased + code,
  }


def _needed(error: str) -> float | None:
  """Bytes that XLA says it would need."""
  units = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  found = re.search(r"(?:required[^(]*\(|Used )([\d.]+)([KMGT]?)", error)
  return float(found[1]) * units[found[2]] if found else None


# --- compiling ------------------------------------------------------------------------------------


def _compile(lowered) -> tuple[Any, str | None]:
  """(program, None), or (None, XLA's words) where the devices have too little memory."""
  try:
    return lowered.compile(), None
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return None, str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")


def _batch(cfg: Config) -> dict[str, jax.ShapeDtypeStruct]:
  arrays = kind_of(cfg).arrays(cfg, True)
  return {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}


def _shapes(tree: Any) -> Any:
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)


def _tokens(cfg: Config) -> float:
  return tokens_per_step(cfg)


def _peak(chip: Chip, dtype: str) -> float:
  """Operations/s on numbers of an HLO dtype; of bfloat16 where the chip has nothing of its own."""
  name = "float8" if dtype.startswith("f8") else PEAKS.get(dtype, "float32")
  return getattr(chip, name) or chip.bfloat16


@contextlib.contextmanager
def _stderr() -> Iterator[list[str]]:
  """Keeps what C++ code writes to stderr: lines, in the list that it yields, at the end."""
  sys.stderr.flush()
  lines: list[str] = []
  with tempfile.TemporaryFile("w+", errors="replace") as file, os.fdopen(os.dup(2), "w") as saved:
    os.dup2(file.fileno(), 2)
    try:
      yield lines
    finally:
      os.dup2(saved.fileno(), 2)
      file.seek(0)
      lines += file.read().splitlines()
