"""Checksums of a checkpoint's files and whose it is: written before it is complete, compared before its use.

A checkpoint of an earlier version has neither; what is wrong with it shows when it is read.
"""

import json
import pathlib
from collections.abc import Mapping

from lm.config.errors import number_of
from lm.data.sources.digest import file_digest
from lm.files import write_json

NAME = "checksums.json"
# {"config": of the run that saved it, "data": {name: fingerprint}, "rewinds"}
ORIGIN = "origin.json"
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


def write_origin(folder: pathlib.Path, origin: Mapping[str, object]) -> None:
  """Whose the checkpoint is, into its folder; `read_origin` gives it back."""
  write_json(folder / ORIGIN, origin)


def adopt(folder: pathlib.Path, origin: Mapping[str, object]) -> None:
  """Makes a copied checkpoint that of another run, which computed the same up to it."""
  if not (folder / ORIGIN).exists():
    return
  write_origin(folder, origin)
  sums = json.loads((folder / NAME).read_text(encoding="utf-8"))
  path = folder / ORIGIN
  sums[ORIGIN] = [path.stat().st_size, file_digest(path)]  # what else is damaged stays so
  (folder / NAME).write_text(json.dumps(sums), encoding="utf-8")


def read_origin(folder: pathlib.Path) -> dict[str, object]:
  """Whose a checkpoint is; {} for one that does not say, or whose file about it is damaged."""
  path = folder / ORIGIN
  try:
    sums = json.loads((folder / NAME).read_text(encoding="utf-8"))
    if file_digest(path) != sums[ORIGIN][1]:
      return {}
    found = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, LookupError, TypeError, RecursionError):
    return {}  # what is damaged `find_damage` tells
  return found if isinstance(found, dict) else {}


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
        return f"{name} has {number_of(found, 'byte', ',')}, not {size:,}"
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
