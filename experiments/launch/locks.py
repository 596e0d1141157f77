"""Locks of run directories: at most one launcher starts a run, at most one process trains it.

The lock is the kernel's (flock, through filelock) where the file system has it. A process that is
started inherits it and holds it for as long as it lives, even if its launcher is killed. Where flock
is not supported (some network file systems), the lock is a file that names its holder: filelock's
SoftFileLock, held by the launcher.
"""

import errno
import os
import pathlib
import platform
import time
import warnings

import filelock

from lm.config.errors import ConfigError

UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
SILENT = (
  600.0  # seconds without a sign of life after which the holder on another machine is doubted
)


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


def take(workdir: pathlib.Path) -> Lock | None:
  """The run directory's lock; None if another process holds it.

  Raises:
    ConfigError: locks cannot be taken there at all, or the holder is on another machine and nothing in
      the directory has changed for SILENT seconds.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = os.open(workdir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
  except OSError as error:
    raise _refused(workdir, error) from None
  try:
    if filelock.lock_descriptor(file, blocking=False):
      return Lock(file)
    os.close(file)
    return None
  except OSError as error:
    os.close(file)
    if error.errno in UNSUPPORTED:
      return _take_soft(workdir)
    raise _refused(workdir, error) from None


def _take_soft(workdir: pathlib.Path) -> Lock | None:
  marker = workdir / ".lock.holder"
  lock = filelock.SoftFileLock(marker, is_singleton=False)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      lock.acquire(blocking=False)
  except filelock.Timeout:
    _check_alive(workdir, marker)
    return None
  except OSError as error:
    raise _refused(workdir, error) from None
  return Lock(soft=lock)


def _check_alive(workdir: pathlib.Path, marker: pathlib.Path) -> None:
  """ConfigError where the holder is another machine whose run has not changed for SILENT seconds."""
  try:
    pid, host, *_ = [*marker.read_text(encoding="utf-8").split("\n"), ""]
  except OSError:
    return  # released in this moment
  if host == platform.node():
    return  # filelock itself looks whether that process lives
  newest = max((p.stat().st_mtime for p in workdir.iterdir()), default=0.0)
  silent = time.time() - newest
  if silent > SILENT:
    raise ConfigError(
      f"workdir={workdir}: held by process {pid} of {host or 'an unknown machine'}, which has written "
      f"nothing there for {silent / 60:.0f} minutes; if it is gone, delete {marker}"
    )


def _refused(workdir: pathlib.Path, error: OSError) -> ConfigError:
  return ConfigError(
    f"workdir={workdir}: cannot be locked ({error.strerror}); make it writable or choose another --root"
  )
