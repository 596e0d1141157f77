"""Parses the text of a compiled program, and walks what runs in it with every loop's trips counted.

XLA's own cost analysis counts the body of a loop once, and layers are a loop here. So the text of the
optimized HLO is read and walked from its entry, each instruction as often as it runs on one device.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BITS = {
  "pred": 8, "token": 0, "opaque": 0, "s4": 4, "u4": 4, "f4e2m1fn": 4, "s8": 8, "u8": 8, "s16": 16,
  "u16": 16, "f16": 16, "bf16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64,
  "c64": 64, "c128": 128,
}  # fmt: skip


class Array(NamedTuple):
  """One array of an instruction's result, on one device."""

  dtype: str
  shape: tuple[int, ...]
  space: int  # memory: 0 = the device's main memory, above 0 = on-chip or elsewhere

  @property
  def size(self) -> int:
    return math.prod(self.shape)

  @property
  def bytes(self) -> float:
    return self.size * BITS.get(self.dtype, 8) / 8  # the float8 family is not listed


class Instruction(NamedTuple):
  name: str
  opcode: str
  arrays: tuple[Array, ...]  # the leaves of the result
  operands: tuple[str, ...]
  attributes: str  # the rest of the line
  literal: str  # what stands in the parentheses
  is_root: bool


class Program(NamedTuple):
  computations: dict[str, dict[str, Instruction]]
  entry: str

  def root(self, computation: str) -> Instruction:
    return next(i for i in self.computations[computation].values() if i.is_root)


# --- parsing ------------------------------------------------------------------------------------

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,<= ]*)\](?:\{[^{}]*?(?:S\((\d+)\))?\})?")
NAME = re.compile(r"%([\w.\-]+)")


def parse(text: str) -> Program:
  """The program of `compiled.as_text()`.

  Raises:
    ValueError: the text has no entry computation.
  """
  computations, entry = {}, None
  for line in _lines(text):
    if header := _HEADER.match(line):
      current = computations.setdefault(header[2], {})
      entry = header[2] if header[1] else entry
    elif line.startswith("  ") and " = " in line and computations:
      instruction = _instruction(line)
      current[instruction.name] = instruction
  if entry is None:
    raise ValueError("hlo=(text): must have an ENTRY computation; pass compiled.as_text()")
  return Program(computations, entry)


def _lines(text: str) -> Iterator[str]:
  """Lines of the text; attributes of kernels may hold line breaks, which are taken out."""
  whole = ""
  for line in text.splitlines():
    if line.startswith("  ") or line in ("", "}") or _HEADER.match(line):
      yield whole
      whole = line
    else:
      whole += line
  yield whole


def _instruction(line: str) -> Instruction:
  left, right = line.strip().split(" = ", 1)
  end = _closing(right, 0) + 1 if right[0] == "(" else right.index(" ")
  shape, rest = right[:end], right[end:].lstrip()
  opening = rest.index("(")
  closing = _closing(rest, opening)
  inside = rest[opening + 1 : closing]
  return Instruction(
    name=left.removeprefix("ROOT ").lstrip("%"),
    opcode=rest[:opening],
    arrays=tuple(_arrays(shape)),
    operands=tuple(NAME.findall(inside)),
    attributes=rest[closing + 1 :],
    literal=inside,
    is_root=left.startswith("ROOT "),
  )


def _closing(text: str, start: int) -> int:
  """Where the parenthesis that opens at `start` closes."""
  depth = 0
  for match in re.finditer(r"[()]", text[start:]):
    depth += 1 if match[0] == "(" else -1
    if depth == 0:
      return start + match.start()
  raise ValueError(f"hlo={text[:80]}: parentheses must match; the text is cut off")


def _arrays(shape: str) -> Iterator[Array]:
  for dtype, dims, space in _ARRAY.findall(shape):
    sizes = tuple(int(d.removeprefix("<=")) for d in dims.replace(" ", "").split(",") if d)
    yield Array(dtype, sizes, int(space or 0))


def called(instruction: Instruction, key: str) -> str:
  """The computation that an attribute of an instruction names."""
  return re.search(rf"\b{key}=%?([\w.\-]+)", instruction.attributes)[1]


# --- loops --------------------------------------------------------------------------------------


def trips(program: Program, computation: str, loop: Instruction) -> int | None:
  """How often the body of a `while` runs; None where the program does not say.

  XLA notes it for CPUs and GPUs. For TPUs it follows from start, step and bound of the counter.
  """
  if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
    return int(known[1])
  condition, body = called(loop, "condition"), called(loop, "body")
  test = _inner(program, condition, program.root(condition))
  if test is None or test[1].opcode != "compare":
    return None
  scope, compare, outer = test
  index, bound = None, None
  for operand in compare.operands:
    where, name = _outside(program, scope, operand, outer)
    instruction = program.computations[where][name]
    if instruction.opcode == "get-tuple-element":
      index = int(re.search(r"index=(\d+)", instruction.attributes)[1])
    else:
      bound = _constant(program, where, name)
  direction = re.search(r"direction=(\w+)", compare.attributes)[1]
  if index is None or bound is None or direction not in ("LT", "NE", "LE", "GT"):
    return None
  start = _element(program, computation, loop.operands[0], index)
  after = _element(program, body, program.root(body).name, index)
  first = start and _constant(program, computation, start)
  step = after and _step(program, body, after)
  if first is None or not step:
    return None
  bound += direction == "LE"
  return max(0, -(-(bound - first) // step))


def carried(program: Program, computation: str, loop: Instruction) -> list[tuple[Array, bool]]:
  """(array, whether it starts empty or filled with one number) of all that a `while` carries."""
  name = _through(program, computation, loop.operands[0])
  scope = program.computations[computation]
  if scope[name].opcode != "tuple":
    return [(array, False) for array in loop.arrays]
  starts = [scope[_through(program, computation, o)] for o in scope[name].operands]
  fresh = [
    s.opcode == "broadcast"
    or '"AllocateBuffer"' in s.attributes
    or (s.opcode == "fusion" and all(scope[o].opcode == "constant" for o in s.operands))
    for s in starts
  ]
  return list(zip(loop.arrays, fresh, strict=True))


def _inner(program, scope, instruction):
  """(computation, instruction, fusion around it or None), through one fusion."""
  if instruction.opcode != "fusion":
    return scope, instruction, None
  inside = called(instruction, "calls")
  return inside, program.root(inside), (scope, instruction)


def _outside(program, scope, name, outer):
  """A parameter of a fused computation as the operand that the fusion is given."""
  scope, name = scope, _through(program, scope, name)
  instruction = program.computations[scope][name]
  if outer and instruction.opcode == "parameter":
    scope, fusion = outer
    name = _through(program, scope, fusion.operands[int(instruction.literal)])
  return scope, name


def _through(program: Program, scope: str, name: str) -> str:
  """Follows copies, conversions and reshapes to where a value comes from."""
  instruction = program.computations[scope][name]
  while instruction.opcode in ("copy", "convert", "bitcast", "reshape", "copy-done", "copy-start"):
    name = instruction.operands[0]
    instruction = program.computations[scope][name]
  return name


def _constant(program: Program, scope: str, name: str) -> int | None:
  instruction = program.computations[scope][_through(program, scope, name)]
  if instruction.opcode == "constant" and re.fullmatch(r"-?\d+", instruction.literal):
    return int(instruction.literal)
  return None


def _element(program: Program, scope: str, name: str, index: int) -> str | None:
  """The value at `index` of the tuple called `name`."""
  instruction = program.computations[scope][_through(program, scope, name)]
  return instruction.operands[index] if instruction.opcode == "tuple" else None


def _step(program: Program, body: str, name: str) -> int | None:
  """What one trip adds to a counter whose next value is called `name`."""
  instruction = program.computations[body][_through(program, body, name)]
  scope, instruction, outer = _inner(program, body, instruction)
  if instruction.opcode != "add":
    return None
  steps = [
    _constant(program, *_outside(program, scope, operand, outer))
    for operand in instruction.operands
  ]
  return next((s for s in steps if s is not None), None)


# --- walking ------------------------------------------------------------------------------------


def walk(program: Program) -> Iterator[tuple[str, Instruction, float]]:
  """(computation, instruction, times it runs) of all that runs, loops and calls opened, fusions not.

  Both branches of a conditional count. A loop whose trips are unknown counts once.
  """

  def visit(computation, times):
    for instruction in program.computations[computation].values():
      yield computation, instruction, times
      if instruction.opcode == "while":
        count = trips(program, computation, instruction)
        yield from visit(called(instruction, "body"), times * (1 if count is None else count))
      elif instruction.opcode == "call":
        yield from visit(called(instruction, "to_apply"), times)
      elif instruction.opcode == "async-start":
        yield from visit(called(instruction, "calls"), times)
      elif instruction.opcode == "conditional":
        listed = re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes)
        names = NAME.findall(listed[1]) if listed else []
        for key in () if listed else ("true_computation", "false_computation"):
          names.append(called(instruction, key))
        for name in names:
          yield from visit(name, times)

  yield from visit(program.entry, 1)


def unknown_loops(program: Program) -> list[str]:
  """Loops that are counted once because their trips are unknown."""
  return [
    instruction.name
    for computation, instruction, _ in walk(program)
    if instruction.opcode == "while" and trips(program, computation, instruction) is None
  ]
