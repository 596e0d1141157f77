"""One process at a time writes a run directory; the system lets go of its lock when the process dies.

The lock is the kernel's (flock, through filelock) where the file system has it. Where it has not (some
network file systems), the lock is a file that names its holder: filelock's SoftFileLock, which another
process on the same machine takes over once that holder is dead.
"""

import errno
import os
import pathlib
import platform
import time
import warnings

import filelock

from lm.config.errors import ConfigError

NAME = ".writer.lock"  # not .lock: a launcher holds that for the process that it starts
HOLDER = ".holder"  # ends the name of the file that is a lock where flock is not supported
UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
# Seconds without a sign of life after which the holder on another machine is doubted.
SILENT = 600.0
_held: dict[pathlib.Path, "Lock"] = {}  # by this process


class Lock:
  """A held lock. Either `descriptor` holds it, for a child to inherit, or `soft` does."""

  def __init__(self, descriptor: int | None = None, soft: filelock.SoftFileLock | None = None):
    self.descriptor, self._soft = descriptor, soft

  def release(self) -> None:
    """Lets go. A child that has inherited the descriptor goes on holding it."""
    if self.descriptor is not None:
      os.close(self.descriptor)
      self.descriptor = None
    if self._soft is not None:
      self._soft.release()
      self._soft = None


def hold(folder: pathlib.Path, name: str, remedy: str) -> Lock | None:
  """The lock of that name in a folder that exists; None if another process holds it.

  Args:
    remedy: ends the line where there can be no lock.

  Raises:
    ConfigError: locks cannot be taken there at all, or the holder is on another machine and nothing in
      the folder has changed for SILENT seconds.
  """
  refused = lambda error: ConfigError(
    f"workdir={folder}: cannot be locked ({error.strerror}); {remedy}"
  )
  try:
    file = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o644)
  except OSError as error:
    raise refused(error) from None
  try:
    if filelock.lock_descriptor(file, blocking=False):
      return Lock(file)
    os.close(file)
    return None
  except OSError as error:
    os.close(file)
    if error.errno not in UNSUPPORTED:
      raise refused(error) from None
  try:
    return _hold_soft(folder, name)
  except OSError as error:
    raise refused(error) from None


def _hold_soft(folder: pathlib.Path, name: str) -> Lock | None:
  marker = folder / f"{name}{HOLDER}"
  lock = filelock.SoftFileLock(marker, is_singleton=False, thread_local=False)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      lock.acquire(blocking=False)
  except filelock.Timeout:
    _check_alive(folder, marker)
    return None
  return Lock(soft=lock)


def _check_alive(folder: pathlib.Path, marker: pathlib.Path) -> None:
  """ConfigError where the holder is another machine whose run has not changed for SILENT seconds."""
  try:
    pid, host, *_ = [*marker.read_text(encoding="utf-8").split("\n"), ""]
  except OSError:
    return  # released in this moment
  if host == platform.node():
    return  # filelock itself looks whether that process lives
  newest = max((path.stat().st_mtime for path in folder.iterdir()), default=0.0)
  silent = time.time() - newest
  if silent > SILENT:
    raise ConfigError(
      f"workdir={folder}: held by process {pid} of {host or 'an unknown machine'}, which has written "
      f"nothing there for {silent / 60:.0f} minutes; if it is gone, delete {marker}"
    )


def take(workdir: pathlib.Path) -> None:
  """Locks a run directory that exists, to write it; it stays locked until `release`.

  Raises:
    ConfigError: another process has it; names its host and number.
  """
  path = workdir.resolve() / NAME
  if path in _held:
    return
  lock = hold(workdir, NAME, "choose another --workdir")
  if lock is None:
    raise ConfigError(
      f"workdir={workdir}: {_owner(path)} is training there; wait for it, stop it, or choose another "
      "--workdir"
    )
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


def writer(workdir: pathlib.Path) -> str | None:
  """Who trains there, as "process 12 on here"; None where that process, of this machine, lives no more."""
  try:
    host, pid = (workdir / NAME).read_text(encoding="utf-8").split()[:2]
    if host == platform.node():
      os.kill(int(pid), 0)
  except PermissionError:
    pass  # it lives, and is another user's
  except (OSError, ValueError, OverflowError):
    return None
  return _owner(workdir / NAME)


def _owner(path: pathlib.Path) -> str:
  try:
    host, pid = path.read_text(encoding="utf-8").split()[:2]
  except (OSError, ValueError):
    return "another process"
  return f"process {pid} on {host}"
