"""One process at a time writes a run directory; the system lets go of its lock when the process dies."""

import os
import pathlib
import platform

import filelock

from lm.config.errors import ConfigError

NAME = ".writer.lock"  # not .lock: a launcher holds that for the process that it starts
_held: dict[pathlib.Path, filelock.BaseFileLock] = {}  # by this process


def take(workdir: pathlib.Path) -> None:
  """Locks a run directory that exists; it stays locked until `release`.

  Raises:
    ConfigError: another process has it; names its host and number.
  """
  path = workdir.resolve() / NAME
  if path in _held:
    return
  lock = filelock.FileLock(path, timeout=0, thread_local=False)
  try:
    lock.acquire()
  except filelock.Timeout:
    raise ConfigError(
      f"workdir={workdir}: {_owner(path)} is training there; wait for it, stop it, or choose another "
      "--workdir"
    ) from None
  except OSError as error:
    raise ConfigError(
      f"workdir={workdir}: cannot be locked ({error.strerror}); choose another --workdir"
    ) from None
  path.write_text(f"{platform.node()} {os.getpid()}\n", encoding="utf-8")
  _held[path] = lock


def release(workdir: pathlib.Path) -> None:
  """Lets others write the run directory; nothing happens where it is not locked."""
  lock = _held.pop(workdir.resolve() / NAME, None)
  if lock:
    lock.release()


def release_all() -> None:
  """Lets go of whatever this process has locked."""
  for path in list(_held):
    release(path.parent)


def _owner(path: pathlib.Path) -> str:
  try:
    host, pid = path.read_text(encoding="utf-8").split()[:2]
  except (OSError, ValueError):
    return "another process"
  return f"process {pid} on {host}"
