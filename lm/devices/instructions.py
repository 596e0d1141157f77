"""Which vector instructions this host's CPU has, as far as the form of a computation hangs on them."""

import functools
import os
import pathlib
import platform
import re
from collections.abc import Collection

CPUINFO = pathlib.Path("/proc/cpuinfo")

# Names of sets, the widest first, with the flag of /proc/cpuinfo that says that a CPU has it.
SETS = {"avx512": "avx512f", "avx2": "avx2", "avx": "avx", "sse4.2": "sse4_2", "neon": "asimd"}
# What multiplies bfloat16 numbers in hardware.
BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")  # the last one is Arm's


@functools.cache
def flags() -> frozenset[str]:
  """Flags of the first CPU in /proc/cpuinfo; empty where there is no such file (other systems than Linux)."""
  try:
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", CPUINFO.read_text(), re.MULTILINE)
  except OSError:
    return frozenset()
  return frozenset(found[1].split()) if found else frozenset()


def vector_set(have: Collection[str] | None = None) -> str:
  """The widest set of `have` (this CPU's flags if None), or the machine's kind where none is known."""
  have = flags() if have is None else have
  return next((name for name, flag in SETS.items() if flag in have), platform.machine())


def multiplies_bfloat16(have: Collection[str] | None = None, xla_flags: str | None = None) -> bool:
  """Whether XLA can multiply bfloat16 numbers in hardware here; True where the flags are not known.

  Args:
    have: flags of the CPU; this one's if None.
    xla_flags: XLA_FLAGS, whose --xla_cpu_max_isa keeps XLA from using more; the environment's if None.
  """
  have = flags() if have is None else have
  xla_flags = os.environ.get("XLA_FLAGS", "") if xla_flags is None else xla_flags
  limit = re.search(r"--xla_cpu_max_isa=(\w+)", xla_flags)
  if limit and limit[1].upper() not in ("AVX512_BF16", "AMX", "AMX_FP16"):
    return False
  return not have or any(flag in have for flag in BFLOAT16)
