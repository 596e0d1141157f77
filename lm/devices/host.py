"""This host: the cores and memory that a process uses; memory in large pages, asked for before jax starts.

XLA takes the buffers of a step from malloc and gives them back at its end. On a CPU every 4 kB of them are
then a page fault a step: 20,000 faults for the 0.1m size, a third of its processor time. In pages of 2 MB its
step takes 42 ms instead of 62 (2 cores).
"""

import os
import pathlib
import resource
import sys
from collections.abc import Mapping

TUNABLE = "glibc.malloc.hugetlb"  # 1: madvise(MADV_HUGEPAGE), GNU C library 2.35 and later
SWITCH = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")


def cores() -> int:
  """Cores that this process may use: those it is bound to (Linux), else all of the machine."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def process_age() -> float | None:
  """Seconds since this process was started, exec included (Linux); None where the system does not say."""
  try:
    began = float(pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    uptime = float(pathlib.Path("/proc/uptime").read_text().split()[0])
  except (OSError, ValueError, IndexError):
    return None
  return uptime - began / os.sysconf("SC_CLK_TCK")


def peak_bytes() -> int:
  """The most memory that this process has held; Linux counts KiB, macOS bytes."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else 1024 * peak


def with_large_pages(environ: Mapping[str, str]) -> dict[str, str]:
  """The variables with which a process starts on large pages; unchanged where they decide that already.

  Args:
    environ: variables; GLIBC_TUNABLES of its user go first.
  """
  tunables = environ.get("GLIBC_TUNABLES", "")
  if TUNABLE in tunables or not _on_request():
    return dict(environ)
  return {**environ, "GLIBC_TUNABLES": ":".join(filter(None, (tunables, f"{TUNABLE}=1")))}


def take_large_pages() -> None:
  """Starts this program over in the same process, unless it has large pages or cannot have them.

  The C library reads its settings only when a program starts. Call it first of all.
  """
  environ = with_large_pages(os.environ)
  if environ != dict(os.environ):
    os.execve(sys.executable, sys.orig_argv, environ)


def _on_request() -> bool:
  """Whether the kernel gives large pages to those who ask, and to no one else."""
  try:
    return "[madvise]" in SWITCH.read_text()
  except OSError:
    return False
