"""The collectives of a compiled program: how large, how often, and along which mesh axes."""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from lm.plan.hlo import Instruction, Program, called, walk

COLLECTIVES = (
  "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
  "collective-permute", "collective-broadcast",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of the program, on each device of its group."""

  kind: str  # one of COLLECTIVES
  bytes: float  # the whole array: gathered, reduced, or sent
  times: float  # runs of it in one run of the program
  groups: tuple[tuple[int, ...], ...]  # positions of devices in the mesh that talk to each other
  hidden: bool  # asynchronous: it may run beside other work
  what: str  # dtype[shape] of the array
  where: str  # the operation it was made for

  @property
  def sent(self) -> float:
    """Bytes each device sends in one run, by the best ring algorithm.

    n devices, array of S bytes: S (n-1)/n for a gather, a scatter or an exchange, twice that for an
    all-reduce, S for a permutation.
    """
    n = max((len(group) for group in self.groups), default=1)
    share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0, "collective-broadcast": 1.0}
    return self.bytes * share.get(self.kind, (n - 1) / n)


def collectives(program: Program, n_devices: int) -> list[Collective]:
  """Every collective that runs, those inside fusions too."""
  found = []
  for computation, outer, times in walk(program):
    name, instructions = computation, [outer]
    if outer.opcode == "fusion":
      name = called(outer, "calls")
      instructions = program.computations[name].values()
    for one in instructions:
      kind = one.opcode.removesuffix("-start")
      if kind not in COLLECTIVES or times == 0:
        continue
      scope = program.computations[name]
      starts, goes_on = _spread(scope, one)
      if goes_on:
        continue
      if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
        kind = "reduce-scatter"  # a TPU's fusion of the two steps
      hidden = starts or one.opcode.endswith("-start") or name.startswith("async")
      where = _where(one) or _where(outer)
      found.append(_collective(scope, one, kind, times, n_devices, hidden, where))
  return found


def _spread(scope: Mapping[str, Instruction], one: Instruction) -> tuple[bool, bool]:
  """(starts here, goes on from before) where a TPU spreads a collective over several fusions."""
  targets = " ".join(i.attributes for i in scope.values() if one.name in i.operands)
  if "AsyncCollectiveStart" in targets:
    return True, False
  flag = re.search(r'"flag_start":"(-?\d+)"', one.attributes)
  return False, "AsyncCollectiveDone" in targets or (flag is not None and flag[1] != "-1")


def _collective(scope, one, kind, times, n_devices, hidden, where) -> Collective:
  operands = [a for operand in one.operands for a in scope[operand].arrays]
  arrays = list(one.arrays)
  if one.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
    arrays = arrays[len(operands) : 2 * len(operands)]
  if kind in ("reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute"):
    arrays = operands
  largest = max(arrays, key=lambda a: a.bytes)
  shape = ",".join(map(str, largest.shape))
  more = f" and {len(arrays) - 1} more" if len(arrays) > 1 else ""
  return Collective(
    kind=kind,
    bytes=sum(a.bytes for a in arrays),
    times=times,
    groups=groups(one.attributes, n_devices),
    hidden=hidden,
    what=f"{largest.dtype}[{shape}]{more}",
    where=where,
  )


def _where(instruction: Instruction) -> str:
  found = re.search(r'op_name="([^"]*)"', instruction.attributes)
  return found[1] if found else ""


def groups(attributes: str, n_devices: int) -> tuple[tuple[int, ...], ...]:
  """The devices that talk to each other, from any of the ways that HLO has to say it.

  >>> groups("replica_groups=[2,2]<=[2,2]T(1,0)", 4)
  ((0, 2), (1, 3))
  """
  if pairs := re.search(r"source_target_pairs=\{(.*?\})\}", attributes):
    return tuple(tuple(map(int, p.split(","))) for p in re.findall(r"\{([\d,]+)\}", pairs[1]))
  if listed := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes):
    found = tuple(tuple(map(int, g.split(","))) for g in re.findall(r"\{([\d,]+)\}", listed[1]))
    return found or (tuple(range(n_devices)),)
  if iota := re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes):
    return _rows(_iota(iota[2]).reshape(_ints(iota[1])))
  if mesh := re.search(r"replica_groups=mesh\[(.*?)\](.*?)\{(.*?)\}", attributes):
    return _mesh_groups(mesh[1], mesh[2], mesh[3])
  return (tuple(range(n_devices)),)


def _ints(text: str) -> tuple[int, ...]:
  return tuple(int(d) for d in text.split(",") if d)


def _rows(array: np.ndarray) -> tuple[tuple[int, ...], ...]:
  return tuple(tuple(row) for row in array.tolist())


def _iota(text: str) -> np.ndarray:
  """0 .. 7 as [2, 4], transposed, for "[2,4]T(1,0)"."""
  shape = _ints(re.match(r"\[([\d,]+)\]", text)[1])
  numbers = np.arange(math.prod(shape)).reshape(shape)
  order = re.search(r"T\(([\d,]+)\)", text)
  return numbers.transpose(_ints(order[1])) if order else numbers


def _mesh_groups(axes: str, order: str, chosen: str) -> tuple[tuple[int, ...], ...]:
  """mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b':(1)2}: along axes, or (size before)size of one."""
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
  picked: dict[str, list[tuple[int, int]]] = {}
  for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", chosen):
    part = (int(before), int(size)) if before else (1, sizes[name])
    picked.setdefault(name, []).append(part)
  shape, inside = [], []
  for name, size in sizes.items():
    done = 1
    for before, length in sorted(picked.get(name, [])):
      shape += [before // done, length]
      inside += [False, True]
      done = before * length
    shape.append(size // done)
    inside.append(False)
  if tiled := re.search(r"(\[[\d,]+\](?:T\([\d,]+\))?)", order):
    ids = _iota(tiled[1])
  elif listed := re.search(r"device_ids=\(([\d,]+)\)", order):
    ids = np.array(_ints(listed[1]))
  else:
    ids = np.arange(math.prod(sizes.values()))
  ids = ids.reshape(shape)
  outer = [d for d, use in enumerate(inside) if not use]
  inner = [d for d, use in enumerate(inside) if use]
  length = math.prod(shape[d] for d in inner)
  return _rows(ids.transpose(outer + inner).reshape(-1, length))


def mesh_axes(found: tuple[tuple[int, ...], ...], sizes: Mapping[str, int]) -> tuple[str, ...]:
  """The mesh axes along which the members of a group differ.

  Args:
    found: groups of positions in the mesh, counted with the last axis running fastest.
    sizes: the mesh's axes in order.

  >>> mesh_axes(((0, 1), (2, 3)), {"fsdp": 2, "tensor": 2})
  ('tensor',)
  """
  shape = tuple(sizes.values())
  axes = set()
  for group in found:
    places = np.array(np.unravel_index(np.array(group), shape))
    axes |= {axis for axis, row in zip(sizes, places, strict=True) if (row != row[0]).any()}
  return tuple(axis for axis in sizes if axis in axes)
