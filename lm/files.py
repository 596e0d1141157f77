"""Files and folders that appear whole or not at all; JSON read line by line."""

import contextlib
import json
import math
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence

from lm.config.errors import ConfigError, first_line, no_room, whole_number

LAST = "config.json"  # the file that says that a folder holds a run or a model


def read_jsonl(path: pathlib.Path) -> list[dict]:
  """The records of a file; a last line cut short by a kill is left out. [] if there is no file.

  Raises:
    ConfigError: a whole line that is no JSON object; it names the line.
  """
  records = []
  for number, record in enumerate(read_lines(path), start=1):
    if isinstance(record, str):
      raise ConfigError(bad_line(path, number, record))
    records.append(record)
  return records


def read_lines(path: pathlib.Path) -> list[dict | str]:
  """For each whole line its record, or what keeps it from being one. [] if there is no file."""
  if not path.exists():
    return []
  content = _read(path)
  return [_record(line) for line in content[: content.rfind(b"\n") + 1].split(b"\n")[:-1]]


def bad_line(path: pathlib.Path, number: int, why: str) -> str:
  """The one line that says so of a line of a file."""
  return (
    f"{path}=(line {number}): must be a JSON object ({why}); bring the file back from a copy, or delete "
    "that line to go on without it"
  )


def read_object(path: pathlib.Path, remedy: str) -> dict:
  """The object that a JSON file holds.

  Raises:
    ConfigError: it holds none; the line ends in `remedy`.
  """
  found = _record(_read(path))
  if isinstance(found, str):
    raise ConfigError(f"{path}=(damaged): must be a JSON object ({found}); {remedy}")
  return found


def _read(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as error:
    raise ConfigError(f"{path}: cannot be read ({error.strerror}); check it") from None


def _record(text: bytes) -> dict | str:
  try:
    found = json.loads(text.decode("utf-8"))
  except RecursionError:
    return "nested too deeply"
  except ValueError as error:
    return first_line(error)
  return found if isinstance(found, dict) else f"it is {type(found).__name__}"


def write_json(path: pathlib.Path, content: Mapping[str, object]) -> None:
  """Atomically: readers see the old file or the new one."""
  write_text(path, json.dumps(content, indent=2, default=json_number) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
  """Atomically, in UTF-8: what has no place in it is written as its number."""
  with beside(path) as partial:
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def beside(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Within, a file to write to, of the same ending; at the end it takes the place of `path`.

  Where that is a link, what it leads to is replaced.
  """
  path = pathlib.Path(os.path.realpath(path))
  partial = path.with_name(f".{os.getpid()}.{path.name[-40:]}")
  try:
    yield partial
    os.replace(partial, path)
  except BaseException as error:
    with contextlib.suppress(OSError):
      partial.unlink(missing_ok=True)
    if isinstance(error, OSError):
      error.filename = str(path)  # not that of a file which nobody asked for
    raise


@contextlib.contextmanager
def whole_folder(
  folder: pathlib.Path, option: str, replaces: Sequence[str] = ()
) -> Iterator[pathlib.Path]:
  """Within, a folder to write to; what is in it lies in `folder` at the end, config.json after all others.

  So a folder with a config.json is whole. What stops it before the end leaves `folder` as it was; what stops
  the renames at the end leaves it without config.json.

  Args:
    option: of the command line that names it.
    replaces: patterns of names that an earlier one may have left, which make way.

  Raises:
    ConfigError: it cannot be written.
  """
  was_there = folder.exists()
  made = folder / f".unfinished-{os.getpid()}"
  try:
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".unfinished-*"):  # of a process that was killed
      pid = whole_number(leftover.name.rpartition("-")[2])
      if pid is None or pid == os.getpid() or not alive(pid):
        shutil.rmtree(leftover)
    made.mkdir()
  except OSError as error:
    raise ConfigError(
      f"{option}={folder}: cannot be written ({error.strerror}); choose another --{option}"
    ) from None
  try:
    yield made
    (folder / LAST).unlink(missing_ok=True)
    for path in [path for pattern in replaces for path in folder.glob(pattern)]:
      path.unlink()
    for path in sorted(made.iterdir(), key=lambda path: path.name == LAST):
      if (folder / path.name).is_dir():
        shutil.rmtree(folder / path.name)
      os.replace(path, folder / path.name)
  except BaseException as error:
    shutil.rmtree(made if was_there else folder, ignore_errors=True)
    if why := no_room(error):
      raise ConfigError(
        f"{option}={folder}: cannot be written ({why}); free some space, or choose another --{option}"
      ) from None
    raise
  made.rmdir()


def alive(pid: int) -> bool:
  """Whether a process runs; one that has ended but not been collected by its parent does not."""
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except PermissionError:
    pass
  try:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
      return file.read().rpartition(")")[2].split()[0] != "Z"
  except OSError:  # no /proc on this system
    return True


def json_number(value: object) -> object:
  """Numbers that JSON can hold; NaN and infinities become their names."""
  if hasattr(value, "item"):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value
