"""Checksums of a checkpoint's files: written before it is complete, compared before it is used.

A checkpoint of an earlier version has none; what is wrong with it shows when it is read.
"""

import json
import pathlib

from lm.data.sources.digest import file_digest

NAME = "checksums.json"
LATER = ("commit_success.txt", "_CHECKPOINT_METADATA")  # orbax writes them when all else is there
NEEDED = ("default/_METADATA",)  # what every checkpoint has


def write_checksums(folder: pathlib.Path) -> None:
  """Size and hash of every file in the folder, into the folder."""
  sums = {
    name: [path.stat().st_size, file_digest(path)]
    for name, path in sorted(_files(folder).items())
    if path.name not in LATER
  }
  (folder / NAME).write_text(json.dumps(sums), encoding="utf-8")


def is_verifiable(folder: pathlib.Path) -> bool:
  """Whether there are checksums to compare with."""
  return (folder / NAME).exists()


def find_damage(folder: pathlib.Path, contents: bool = True) -> str | None:
  """What is wrong with a checkpoint's folder; None if it is whole, or has no checksums to tell by.

  Args:
    contents: also hash the files; without, names and sizes alone are compared.
  """
  if not folder.is_dir():
    return "is no folder"
  for name in NEEDED:
    if not (folder / name).is_file():
      return f"{name} is missing"
  if not is_verifiable(folder):
    return None
  try:
    sums = json.loads((folder / NAME).read_text(encoding="utf-8"))
    for name, (size, digest) in sums.items():
      path = folder / name
      if not path.is_file():
        return f"{name} is missing"
      found = path.stat().st_size
      if found != size:
        return f"{name} has {found:,} bytes, not {size:,}"
      if contents and file_digest(path) != digest:
        return f"{name} is damaged (its checksum differs)"
  except (ValueError, TypeError, AttributeError, RecursionError):
    return f"{NAME} is damaged"
  except OSError as error:
    return f"{error.filename or 'a file'} cannot be read ({error.strerror})"
  return None


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  found = (path for path in folder.rglob("*") if path.is_file())
  return {path.relative_to(folder).as_posix(): path for path in found}
