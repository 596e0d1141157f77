"""A folder of runs read again and again: run directories whose files have not changed are not read."""

import dataclasses
import posixpath
from collections.abc import Mapping

from experiments.ledger.ledger import Ledger, load_ledger
from experiments.ledger.rows import Tails, file_system, read_folder, run_folders
from lm.config.errors import ConfigError
from lm.runs import bucket

FILES = ("run.json", "config.json", "launch.json", "metrics.jsonl", "perf.jsonl", "trunk.json")
STAMPS = ("size", "mtime", "etag", "ETag", "updated", "LastModified")  # as file systems call them
GROWING = ("running", "waiting")  # status may change though no file does: a process may be gone


@dataclasses.dataclass(frozen=True)
class Known:
  """A row, and what its files were when it was read."""

  row: dict
  files: Mapping[str, tuple]
  version: int


class FolderReader:
  """Reads the runs at or below a folder; `read` twice costs one listing and what is new.

  Args:
    root: path or URL of the folder, or a ledger file.

  Raises:
    ConfigError: the root does not exist.
  """

  def __init__(self, root: str):
    self._root, self._known, self._tails = root, {}, Tails()
    self.version = 0
    with bucket.readable("root", root):
      self._fs, self._path = file_system(root)
      is_there = self._fs.exists(self._path)
    if not is_there:
      raise ConfigError(f"root={root}: no such directory; run an experiment first or correct it")

  def read(self) -> Ledger:
    """Every run as it is now."""
    if self._root.endswith(".jsonl"):
      return load_ledger(self._root)
    self._fs.invalidate_cache()  # a bucket's listing is remembered
    found, changed = {}, self.version + 1
    for folder in run_folders(self._fs, self._path):
      files = self._files(folder)
      before = self._known.get(folder)
      if before and before.files == files and before.row["status"] not in GROWING:
        found[folder] = before
        continue
      row = self._row(folder)
      if before and before.row == row:
        found[folder] = dataclasses.replace(before, files=files)
        continue
      found[folder] = Known(row, files, changed)
      if row["status"] not in GROWING:
        self._tails.forget(folder)
    if found.keys() != self._known.keys() or any(k.version == changed for k in found.values()):
      self.version = changed
    self._known = found
    return Ledger(tuple(known.row for known in found.values()))

  def since(self, version: int) -> set[str]:
    """Names of the runs that have changed after that version."""
    return {k.row["name"] for k in self._known.values() if k.version > version}

  def _files(self, folder: str) -> dict[str, tuple]:
    entries = self._fs.ls(folder, detail=True)
    named = {posixpath.basename(e["name"]): e for e in entries}
    stamp = lambda e: tuple(str(e.get(k)) for k in STAMPS)
    return {name: stamp(named[name]) for name in FILES if name in named}

  def _row(self, folder: str) -> dict:
    name = posixpath.relpath(folder, self._path)
    shown = posixpath.basename(folder) if name == "." else name
    row = read_folder(self._fs, folder, shown, curves=True, tails=self._tails)
    return {**row, "path": self._root if name == "." else f"{self._root.rstrip('/')}/{name}"}
