"""The processes of a run and what they do together: one process, or several through jax.distributed."""

import glob
import importlib.util
import os
import re
import sys
import threading

import jax
import numpy as np

from lm.config import interrupts
from lm.config.errors import ConfigError, first_line, whole_number
from lm.devices import host, peers

# Environment variables of launchers whose processes jax.distributed finds by itself, and the least
# value of each that means more than one.
LAUNCHERS = {"SLURM_STEP_NUM_TASKS": 2, "OMPI_COMM_WORLD_SIZE": 2}
CPU_THREADS = 64
JOIN = 300  # seconds in which all processes must have come
LATE = 15  # seconds after which one that waits for the others says so
DEVICE_COUNT = r"host_platform_device_count="


def start(
  coordinator: str | None = None, n_processes: int | None = None, process: int | None = None
) -> None:
  """Joins the other processes, if there are any; call it before anything asks jax for devices.

  In this order: the arguments; JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID; Slurm,
  Open MPI, and TPU pods, which jax.distributed finds by itself; otherwise one process.

  Args:
    coordinator: host:port of process 0; the same in all processes.
    n_processes: how many there are.
    process: number of this one.

  Raises:
    ConfigError: a coordinator without the two numbers, these without it, or a number out of range.
  """
  if re.search(DEVICE_COUNT + r"(?!1\b)", os.environ.get("XLA_FLAGS", "")):
    # Each CPU device may hold several threads that wait in collectives: too few of them deadlock.
    os.environ.setdefault("NPROC", str(CPU_THREADS))
  if coordinator is None and "JAX_COORDINATOR_ADDRESS" in os.environ:
    coordinator = os.environ["JAX_COORDINATOR_ADDRESS"]
    n_processes = n_processes or _number("JAX_NUM_PROCESSES")
    process = _number("JAX_PROCESS_ID") if process is None else process
  if coordinator is not None:
    _check(coordinator, n_processes, process)
    _join(coordinator, n_processes, process)
  elif n_processes is not None or process is not None:
    raise ConfigError(
      f"coordinator=None: --processes={n_processes} and --process={process} need it; add --coordinator "
      "host:port, the same in all processes"
    )
  elif any(int(os.environ.get(k, 0)) >= least for k, least in LAUNCHERS.items()) or _on_tpu_pod():
    _join()


def start_stack(n_runs: int) -> None:
  """Makes room for stacked runs; call it after `start`.

  On CPUs: as many devices as the runs divide into, one a core at most, so that they take turns on each: 16
  runs of the 0.1m size, 100 steps each, take 63 to 73 s on two devices and 67 to 80 s on one (2 cores). No
  more threads are needed, as stacked runs exchange nothing. Devices that XLA_FLAGS ask for stay.

  Raises:
    ConfigError: there are several processes.
  """
  if not re.search(DEVICE_COUNT, os.environ.get("XLA_FLAGS", "")):
    count = max(n for n in range(1, host.cores() + 1) if n_runs % n == 0)
    jax.config.update("jax_num_cpu_devices", count)
  if jax.process_count() > 1:
    raise ConfigError(
      f"stack={n_runs} runs: stacked runs live in one process, here are {jax.process_count()}; "
      "start one process a stack"
    )


def is_leader() -> bool:
  """Whether this process writes the record: exactly one does."""
  return jax.process_index() == 0


def is_alone() -> bool:
  """Whether there is one process only."""
  return jax.process_count() == 1


def anywhere(flag: bool) -> bool:
  """Whether the flag is up in any process; all must ask together."""
  if jax.process_count() == 1:
    return flag
  from jax.experimental import multihost_utils

  return bool(multihost_utils.process_allgather(np.array(flag)).any())


def of_leader(value: float) -> float:
  """The value that the leader has; all must ask together."""
  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils

  return float(multihost_utils.broadcast_one_to_all(np.float64(value)))


def wait_for_all(name: str) -> None:
  """Returns when every process has come here."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices(name)


def _join(*arguments) -> None:
  """Joins the others; ends with a line where they do not come, before jax aborts the process."""
  joined = threading.Event()

  def wait():
    if not joined.wait(LATE):
      print(
        f"waits for the other processes{at}, {JOIN - 10} s at most", file=sys.stderr, flush=True
      )
    if not joined.wait(JOIN - 10 - LATE):
      rule = f"the processes have not found each other{at} in {JOIN - 10} s"
      remedy = "start all of them, with one address of process 0 that every host reaches"
      interrupts.leave(2, f"coordinator={arguments[0] if arguments else None}: {rule}; {remedy}")

  at = " at {} ({} in all, this is {})".format(*arguments) if arguments else ""
  threading.Thread(target=wait, daemon=True, name="join").start()
  try:
    jax.distributed.initialize(*arguments, initialization_timeout=JOIN)
  except Exception as error:  # such as a port of process 0 that is taken
    raise ConfigError(
      f"coordinator={arguments[0] if arguments else None}: cannot be used ({first_line(error)}); choose "
      "another address"
    ) from None
  finally:
    joined.set()
  peers.begin()


def _on_tpu_pod() -> bool:
  """Whether TPU chips are at hand; a pod's metadata then say which process this is.

  TPU_SKIP_MDS_QUERY, libtpu's own switch, says that there are no metadata to ask.
  """
  if "TPU_SKIP_MDS_QUERY" in os.environ:
    return False
  has_chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
  wanted = os.environ.get("JAX_PLATFORMS", "tpu").startswith("tpu")
  return bool(has_chips and wanted and importlib.util.find_spec("libtpu"))


def _number(name: str) -> int | None:
  text = os.environ.get(name)
  found = None if text is None else whole_number(text)
  if text is not None and found is None:
    raise ConfigError(f"{name}={text}: must be a number of processes; use 2")
  return found


def _check(coordinator, n_processes, process):
  host, colon, port = coordinator.rpartition(":")
  if not (host and colon and whole_number(port) is not None):
    raise ConfigError(f"coordinator={coordinator}: must be host:port; use {coordinator}:12345")
  if n_processes is None or process is None:
    raise ConfigError(
      f"coordinator={coordinator}: needs the number of processes and this one's; add --processes 2 "
      "--process 0"
    )
  if not 0 <= process < n_processes:
    raise ConfigError(
      f"process={process}: must be from 0 to {n_processes - 1} (--processes {n_processes}); use 0"
    )
