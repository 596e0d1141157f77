"""Locks of run directories: at most one launcher starts a run, at most one process trains it.

They are those of lm.runs.lock, under another name: a process that is started inherits its launcher's and
holds it for as long as it lives, even if the launcher is killed. Where flock is not supported, the launcher
alone holds it.
"""

import pathlib

from lm.config.errors import ConfigError
from lm.runs.lock import SILENT, Lock, hold

__all__ = ["NAME", "SILENT", "Lock", "take"]
NAME = ".lock"
REMEDY = "make it writable or choose another --root"


def take(workdir: pathlib.Path) -> Lock | None:
  """The run directory's lock; None if another process holds it.

  Raises:
    ConfigError: locks cannot be taken there at all, or the holder is on another machine and nothing in
      the directory has changed for a long time.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise ConfigError(f"workdir={workdir}: cannot be locked ({error.strerror}); {REMEDY}") from None
  return hold(workdir, NAME, REMEDY)
