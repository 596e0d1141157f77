"""What the instructions of a compiled program compute and move, from its text.

Operations follow XLA's rules for an instruction; a test holds the two together on programs without
loops. Bytes are those between main memory and the chip: a fusion reads its operands and writes its
results, and what stays in on-chip memory is free.
"""

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from lm.plan.hlo import Array, Instruction, Program, called, walk

# XLA counts one operation for each number of their results; conversions are not counted.
ELEMENTWISE = frozenset(
  ("add", "subtract", "multiply", "divide", "remainder", "maximum", "minimum", "negate", "abs",
   "sign", "floor", "ceil", "round-nearest-afz", "round-nearest-even", "compare", "select", "clamp",
   "and", "or", "xor", "not", "power", "is-finite", "shift-left", "shift-right-logical",
   "shift-right-arithmetic")
)  # fmt: skip
# They neither compute nor move anything, or what they call is walked by itself.
FREE = frozenset(
  ("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "partition-id",
   "replica-id", "iota", "opt-barrier", "domain", "add-dependency", "while", "call", "conditional")
)  # fmt: skip
# What a fusion takes and hands on untouched, as the parts of a collective spread over fusions do.
PASSED = ("parameter", "tuple", "all-gather", "all-reduce", "reduce-scatter", "collective-permute")
ALIASES = ("bitcast", "reshape", "copy", "convert")

_FLASH = re.compile("splash|flash|fmha")


class Work(NamedTuple):
  """One instruction that runs; a fusion is one."""

  name: str
  times: float
  matmul_flops: dict[str, float]  # of matrix products, by dtype of what is multiplied
  other_flops: float
  bytes: float  # to and from main memory

  @property
  def flops(self) -> float:
    return sum(self.matmul_flops.values()) + self.other_flops


def work(program: Program) -> list[Work]:
  """What each instruction computes and moves in one run, with the times it runs."""
  found = []
  for computation, instruction, times in walk(program):
    if instruction.opcode in FREE:
      continue
    matmul, other = flops(program, computation, instruction)
    moved = moved_bytes(program, computation, instruction)
    if matmul or other or moved:
      found.append(Work(instruction.name, times, dict(matmul), other, moved))
  return found


# --- flops --------------------------------------------------------------------------------------


def flops(
  program: Program, computation: str, instruction: Instruction
) -> tuple[Counter[str], float]:
  """(of matrix products by dtype, of everything else) in one run; fusions are opened."""
  none: Counter[str] = Counter()
  if instruction.opcode == "fusion":
    inside = called(instruction, "calls")
    parts = [flops(program, inside, i) for i in program.computations[inside].values()]
    return sum((p[0] for p in parts), none), sum(p[1] for p in parts)
  scope = program.computations[computation]
  arrays = [scope[name].arrays[0] for name in instruction.operands if scope[name].arrays]
  if instruction.opcode == "dot":
    contracted = _numbers(instruction.attributes, "lhs_contracting_dims")
    size = math.prod(arrays[0].shape[d] for d in contracted)
    return Counter({arrays[0].dtype: 2.0 * size * instruction.arrays[0].size}), 0.0
  if instruction.opcode == "convolution":
    return Counter({arrays[0].dtype: _convolution_flops(instruction, *arrays[:2])}), 0.0
  if instruction.opcode == "custom-call":
    known = _library_flops(instruction, arrays)
    widest = max(arrays, key=lambda a: a.bytes, default=None)
    return (Counter({widest.dtype: known}) if known else none), 0.0
  if instruction.opcode in ELEMENTWISE:
    return none, float(instruction.arrays[0].size)
  if instruction.opcode == "reduce":
    inputs = arrays[: len(instruction.operands) // 2]
    each = flops_inside(program, called(instruction, "to_apply"))
    return none, each * (inputs[0].size - instruction.arrays[0].size)
  if instruction.opcode in ("all-reduce", "reduce-scatter", "all-reduce-start"):
    each = flops_inside(program, called(instruction, "to_apply"))
    return none, each * sum(a.size for a in instruction.arrays)
  return none, 0.0


def flops_inside(program: Program, computation: str) -> float:
  """Operations of one run of a computation, such as that of a reduction."""
  inside = program.computations[computation].values()
  return sum(flops(program, computation, i)[1] for i in inside)


def _numbers(attributes: str, key: str) -> tuple[int, ...]:
  found = re.search(rf"{key}=\{{([\d,]*)\}}", attributes)
  return tuple(int(d) for d in found[1].split(",") if d) if found else ()


def _library_flops(instruction: Instruction, arrays: list[Array]) -> float:
  """Of a call into a library or a hand-written kernel, as far as the call says what it is."""
  text = instruction.attributes
  if estimate := re.search(r'"cost_estimate":\{([^}]*)\}', text):
    return float(json.loads("{" + estimate[1] + "}").get("flops", 0))
  if contracted := re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', text):
    dims = [int(d.strip('" ')) for d in contracted[1].split(",") if d]
    return 2.0 * math.prod(arrays[0].shape[d] for d in dims) * instruction.arrays[0].size
  target = re.search(r'custom_call_target="([^"]*)"', text)
  name = f"{instruction.name} {target and target[1]}"
  return _attention_flops(instruction, arrays, name) if _FLASH.search(name) else 0.0


def _attention_flops(instruction: Instruction, arrays: list[Array], name: str) -> float:
  """Of flash attention, taken to be causal: 2 B H L (M / 2) K for each product.

  Forward: scores and values. Backward: scores and the gradient of weights, and one product for each
  gradient that the kernel returns.
  """
  # Axes of size 1 may be gone: [rows, groups, heads, L, K] and [rows, groups, M, K] at their fullest.
  is_wide = lambda a: len(a.shape) >= 3 and a.dtype in ("bf16", "f16", "f32")
  wide = [a for a in arrays if is_wide(a)]
  if len(wide) < 2:
    return 0.0
  query, key = wide[:2]
  products = 2
  if re.search(r"dkv|dq|bwd|Backward", name):
    products += sum(is_wide(a) and a.shape[-1] == query.shape[-1] for a in instruction.arrays)
  return products * 2.0 * query.size * max(key.shape[-3:-1]) / 2


def _convolution_flops(instruction: Instruction, image: Array, kernel: Array) -> float:
  """2 * batch * features in * features out * pairs of places that meet, padding and holes left out.

  On TPUs every matrix product is a convolution; batch axes are spatial ones with holes between.
  """
  labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
  image_labels, kernel_labels, out_labels = labels.groups()
  window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
  fields = dict(part.split("=") for part in window[1].split()) if window else {}
  spatial = [c for c in kernel_labels if c.isdigit()]
  total = 2.0 * image.shape[image_labels.index("b")]
  total *= kernel.shape[kernel_labels.index("i")] * kernel.shape[kernel_labels.index("o")]
  for axis in spatial:

    def field(key, default, axis=axis):
      return fields[key].split("x")[int(axis)] if key in fields else default

    low = int(field("pad", "0_0").split("_")[0])
    total *= _meetings(
      image.shape[image_labels.index(axis)],
      kernel.shape[kernel_labels.index(axis)],
      instruction.arrays[0].shape[out_labels.index(axis)],
      int(field("stride", "1")),
      low,
      int(field("lhs_dilate", "1")),
      int(field("rhs_dilate", "1")),
    )
  return total


@functools.cache
def _meetings(image, kernel, out, stride, low, image_holes, kernel_holes) -> int:
  """Pairs (place of the kernel, place of the output) that read a real place of the image."""
  places = np.arange(out)[:, None] * stride + np.arange(kernel)[None] * kernel_holes - low
  real = (places >= 0) & (places <= (image - 1) * image_holes) & (places % image_holes == 0)
  return int(real.sum())


# --- bytes --------------------------------------------------------------------------------------


def moved_bytes(program: Program, computation: str, instruction: Instruction) -> float:
  """Bytes between main memory and the chip in one run: what is read, then what is written.

  A value that is only sliced counts by its slices, one that is updated in place by the update; what
  lies in on-chip memory counts nothing.
  """
  scope = program.computations[computation]
  opcode = instruction.opcode
  if opcode in FREE or opcode.endswith("-done") or '"AllocateBuffer"' in instruction.attributes:
    return 0.0
  read = [sum(_main(a) for a in scope[name].arrays) for name in instruction.operands]
  written = sum(_main(a) for a in instruction.arrays)
  if opcode in ("copy-start", "slice-start", "async-start", "collective-permute-start"):
    own = [_main(scope[name].arrays[0]) for name in instruction.operands]
    ends = [_main(a) for a in instruction.arrays if a.size > 1]
    written = sum(ends) - sum(own)  # the result lists the operand too
    if opcode == "slice-start":
      return 2 * max(0.0, min(instruction.arrays, key=lambda a: a.bytes or 1e30).bytes)
    return sum(own) + max(0.0, written)
  if opcode == "all-gather-start":
    return sum(read) + max(0.0, written - sum(read))
  if opcode in ("dynamic-slice", "slice", "gather"):
    return 2 * written
  if opcode in ("dynamic-update-slice", "scatter"):
    update = scope[instruction.operands[1 if opcode != "scatter" else 2]]
    return 2 * sum(_main(a) for a in update.arrays)
  if opcode == "fusion":
    return _fusion_bytes(program, instruction, read)
  return sum(read) + written


def _main(array: Array) -> float:
  return array.bytes if array.space == 0 else 0.0


def _fusion_bytes(program: Program, fusion: Instruction, read: list[float]) -> float:
  name = called(fusion, "calls")
  inside = program.computations[name]
  root = program.root(name)
  if "AsyncCollectiveDone" in root.attributes:
    return 0.0
  if "AsyncCollectiveStart" in root.attributes:
    return sum(read) + _main(fusion.arrays[1])  # the gathered array, once
  total = sum(_read_of(program, name, index, whole) for index, whole in enumerate(read))
  results = root.operands if root.opcode == "tuple" else (root.name,)
  for array, result in zip(fusion.arrays, results, strict=False):
    total += _written(array, result, inside)
  return total


def _read_of(program: Program, computation: str, index: int, whole: float) -> float:
  """Bytes of operand number `index` that a fused computation reads; `whole` are all of them."""
  inside = program.computations[computation].values()
  parameter = next(i for i in inside if i.opcode == "parameter" and i.literal == str(index))
  total, names = 0.0, [parameter.name]
  while names:
    name = names.pop()
    for user in (i for i in inside if name in i.operands):
      if user.opcode in ALIASES:
        names.append(user.name)
      elif user.opcode == "fusion":
        at = user.operands.index(name)
        total += _read_of(program, called(user, "calls"), at, whole)
      elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
        total += user.arrays[0].bytes
      elif user.opcode not in PASSED and (user.opcode, user.operands[0]) != (
        "dynamic-update-slice",
        name,
      ):
        return whole
  return min(whole, total)


def _written(array: Array, name: str, inside: Mapping[str, Instruction]) -> float:
  instruction = inside[name]
  while instruction.opcode in ALIASES:
    instruction = inside[instruction.operands[0]]
  if instruction.opcode in PASSED:
    return 0.0
  if instruction.opcode == "dynamic-update-slice" and array.space == 0:
    return inside[instruction.operands[1]].arrays[0].bytes
  return _main(array)
