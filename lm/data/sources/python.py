"""The standard library of the running interpreter: one document a source file, tests left out."""

import os
import pathlib
import sys
import sysconfig
import tokenize
from collections.abc import Iterator

from lm.config.schema import DataConfig
from lm.data.sources.digest import digest

# Tests, vendored wheels, applications, and what builds generate for one machine.
SKIPPED = {
  "test",
  "tests",
  "idle_test",
  "site-packages",
  "dist-packages",
  "lib2to3",
  "_bundled",
  "idlelib",
  "turtledemo",
  "__pycache__",
  "_vendor",
}


def documents(name: str, cfg: DataConfig, split: str, where: str) -> Iterator[str]:
  """The files in the order of their paths."""
  for path in source_files():
    with tokenize.open(path) as file:  # honours the file's coding line
      yield file.read()


def identity(name: str, cfg: DataConfig, split: str, where: str) -> str:
  """The interpreter's version and the content of every file."""
  return sys.version + digest(path.read_bytes() for path in source_files())


def source_files() -> list[pathlib.Path]:
  """Every .py file of the standard library that is no test and not generated."""
  files = []
  for folder, inner, names in os.walk(sysconfig.get_path("stdlib")):
    # Pruned in place: walking site-packages alone may take seconds.
    inner[:] = [name for name in inner if name not in SKIPPED and name[:7] != "config-"]
    files += [pathlib.Path(folder, name) for name in names if name.endswith(".py")]
  return sorted(path for path in files if not path.name.startswith("_sysconfigdata"))
