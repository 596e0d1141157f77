"""JSON files: read line by line, written atomically."""

import json
import math
import os
import pathlib
from collections.abc import Mapping

from lm.config.errors import ConfigError, first_line


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
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  temporary.write_text(json.dumps(content, indent=2, default=json_number) + "\n", encoding="utf-8")
  os.replace(temporary, path)


def json_number(value: object) -> object:
  """Numbers that JSON can hold; NaN and infinities become their names."""
  if hasattr(value, "item"):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value
