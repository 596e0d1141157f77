"""Files that a pattern matches: each real file once, whatever links lead to it."""

import fnmatch
import os
import pathlib
import stat
from collections.abc import Iterator, Sequence

from lm.config.errors import ConfigError


def find_files(pattern: str, where: str) -> list[str]:
  """Files that `pattern` matches, in the order of their paths.

  `*`, `?` and `[...]` match within a name, `**` any folders; names that begin with a dot must be
  written. A name that exists as it is written is taken so, though it has brackets in it. Of links to one file
  the file itself is taken, or the first link; a folder that links lead back to is walked once.

  Raises: ConfigError, starting with `where`: nothing matches, a folder, or what is no file (a pipe,
    a device, a broken link).
  """
  pattern = os.path.expanduser(pattern)
  parts = pathlib.PurePath(pattern).parts or (".",)
  if "\0" in pattern:
    raise ConfigError(f"{where}: is no path; check it")
  matched = dict.fromkeys(_expand("", parts))
  if not matched:  # [1] in the middle of a pattern that names no folder without it
    literal = [part.replace("[", "[[]") if "[" in part else part for part in parts]
    matched = dict.fromkeys(_expand("", literal))
  chosen: dict[str, str] = {}  # real path -> the path by which it is read
  for path in sorted(matched):
    if os.path.isdir(path):
      continue
    real = os.path.realpath(path)
    if not os.path.isfile(path):
      raise ConfigError(f"{where}: {path} is {_kind(path)}, no file; write the text to a file")
    if real not in chosen or os.path.abspath(path) == real:
      chosen[real] = path
  if not chosen and matched and os.path.isdir(pattern):
    raise ConfigError(f"{where}: is a folder; use text:{pattern.rstrip('/')}/**/*.txt")
  if not chosen:
    raise ConfigError(f"{where}: no file matches; check the path (from {os.getcwd()}) or the glob")
  return sorted(chosen.values())


def _expand(folder: str, parts: Sequence[str]) -> Iterator[str]:
  """Paths below `folder` ("" = the present one) whose names match `parts` one by one."""
  part, rest = parts[0], parts[1:]
  path = os.path.join(folder, part)
  if part == "**":
    for inner in _folders(folder):
      if rest:
        yield from _expand(inner, rest)
      else:
        yield from (os.path.join(inner, name) for name in _names(inner) if name[0] != ".")
  elif not any(sign in part for sign in "*?[") or (os.path.lexists(path) and "[" in part):
    if rest and os.path.isdir(path or "."):
      yield from _expand(path, rest)
    elif not rest and os.path.lexists(path):
      yield path
  else:
    for name in _names(folder):
      if fnmatch.fnmatchcase(name, part) and (name[0] != "." or part[0] == "."):
        inner = os.path.join(folder, name)
        if not rest:
          yield inner
        elif os.path.isdir(inner):
          yield from _expand(inner, rest)


def _folders(folder: str) -> Iterator[str]:
  """A folder and all below it, links followed, each real folder once."""
  seen, waiting = set(), [folder]
  while waiting:
    folder = waiting.pop()
    real = os.path.realpath(folder or ".")
    if real in seen:
      continue
    seen.add(real)
    yield folder
    inner = (os.path.join(folder, name) for name in _names(folder) if name[0] != ".")
    waiting += [path for path in inner if os.path.isdir(path)][::-1]


def _names(folder: str) -> list[str]:
  """Names in a folder; none of one that may not be listed, as shells have it."""
  try:
    return sorted(os.listdir(folder or "."))
  except OSError:
    return []


def _kind(path: str) -> str:
  try:
    mode = os.stat(path).st_mode
  except OSError:
    return "a link that leads nowhere"
  return {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}.get(
    stat.S_IFMT(mode), "a device"
  )
