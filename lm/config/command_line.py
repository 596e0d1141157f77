"""Command lines: one-line errors with exit code 2, `--config.a.b=value` overrides, stacks of runs."""

import argparse
import dataclasses
import io
import json
import pathlib
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lm.config import interrupts
from lm.config.errors import ConfigError, is_unicode, no_room, suggest
from lm.config.schema import Config, flatten

PLACES = ("workdir", "root", "to", "folder", "source", "out", "ledger", "csv", "export")  # dests


class Parser(argparse.ArgumentParser):
  """argparse with one-line errors and exit code 2."""

  def __init__(self, **kwargs):
    kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
    super().__init__(allow_abbrev=False, **kwargs)

  def parse_known_args(self, args=None, namespace=None):
    found, unknown = super().parse_known_args(args, namespace)
    for action in self._actions:
      if action.dest in PLACES and getattr(found, action.dest, None) == "":
        name = max(action.option_strings, default=action.dest).lstrip("-")
        raise ConfigError(f"{name}=: names nothing, as an unset variable does; give a path")
    return found, unknown

  def _get_values(self, action, arg_strings):
    if action.nargs is None and arg_strings == ["--"]:  # Python 3.11 makes [] of --option=--
      return self._get_value(action, "--")
    return super()._get_values(action, arg_strings)

  def error(self, message: str):
    self.exit(2, f"{self.prog}: {message}; see --help\n")


def utf8(word: str) -> str:
  """The type of options that are texts, not paths, which may be any bytes."""
  if not is_unicode(word):
    raise argparse.ArgumentTypeError("is no text in UTF-8; convert it")
  return word


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
  """Takes `--config.a.b=value` and `--config.a.b value` out of a command line."""
  rest, overrides = [], {}
  words = iter(argv)
  for word in words:
    if not word.startswith("--config."):
      rest.append(word)
      continue
    key, equals, value = word.removeprefix("--config.").partition("=")
    if not equals:
      value = next(words, None)
      if value is None or value.startswith("--"):
        raise ConfigError(f"{key}=(nothing): a value must follow; write --config.{key}=VALUE")
    overrides[key] = value
  return rest, overrides


def read_stack(path: str) -> list[tuple[str, dict[str, object], str]]:
  """(config, overrides, workdir) for each line {"config", "overrides", "workdir"} of a file."""
  asked = []
  for number, line in enumerate(read_text("stack", path).splitlines(), start=1):
    try:
      run = json.loads(line)
      found = run["config"], run["overrides"], run["workdir"]
      if not all(map(isinstance, found, (str, dict, str))):
        raise TypeError("config and workdir are texts, overrides an object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise ConfigError(
        f"stack={path}: line {number} must be a JSON object with config, overrides and workdir "
        f"({type(error).__name__}: {error}); correct it"
      ) from None
    if found[2] in [workdir for *_, workdir in asked]:
      raise ConfigError(
        f"stack={path}: line {number} has the workdir of another line ({found[2]}); give each run its own"
      )
    asked.append(found)
  if not asked:
    raise ConfigError(f"stack={path}: must hold at least one run; add a line")
  return asked


def read_text(key: str, path: str) -> str:
  """A file's text without a byte order mark, or a ConfigError that names the option it came from."""
  try:
    return pathlib.Path(path).read_text(encoding="utf-8-sig")
  except OSError as error:
    raise ConfigError(f"{key}={path}: cannot be read ({error.strerror}); check the path") from None
  except UnicodeDecodeError:
    raise ConfigError(f"{key}={path}: is no text in UTF-8; convert it") from None


def show(cfg: Config, as_json: bool = False) -> str:
  """A config as `key = value` lines, or as JSON."""
  if as_json:
    return json.dumps(dataclasses.asdict(cfg), indent=2)
  return "\n".join(f"{key} = {value!r}" for key, value in flatten(cfg).items())


def reject_unknown(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> None:
  """One line for the first option the parser does not know."""
  if unknown:
    name, _, value = unknown[0].partition("=")
    if not name.startswith("-"):
      raise ConfigError(f"{unknown[0]}: is a word too many; leave it out, or see --help")
    options = [option for action in parser._actions for option in action.option_strings]
    raise ConfigError(f"{name}={value}: no such option; {suggest(name, options)}")


def once(option: str, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
  """The (key, value) pairs as a dict; ConfigError where a key comes twice."""
  found: dict[str, Any] = {}
  for key, value in pairs:
    if key in found:
      raise ConfigError(f"{option}={key}: is given twice; leave one out")
    found[key] = value
  return found


def check_page(out: str | None) -> None:
  """ConfigError for a name that no HTML page can be written to."""
  if out and not out.lower().endswith((".html", ".htm")):
    raise ConfigError(f"out={out}: the page is HTML; let the file's name end in .html")


def run_main(main: Callable[[Sequence[str]], int | None]) -> None:
  """Runs a program's main: a ConfigError becomes its one line on stderr and exit code 2.

  So does a file that cannot be read or written, which is named. What a terminal cannot show (without
  UTF-8, as with LC_ALL=C, or names of files that are none) is written as its number.
  """
  for stream in (sys.stdout, sys.stderr):
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors="backslashreplace")
  try:
    interrupts.begin()
    code = main(sys.argv[1:]) or 0
  except ConfigError as error:
    print(error, file=sys.stderr)
    code = 2
  except Exception as error:
    if why := no_room(error):
      where = getattr(error, "filename", None) or "the disk"
      line = f"{where}: {why}; free some space, and run the same command again"
    elif isinstance(error, OSError) and error.filename is not None:
      line = f"{error.filename}: {error.strerror}; check the path and its permissions"
    else:
      raise
    print(line, file=sys.stderr)
    code = 2
  except KeyboardInterrupt as stop:
    number = stop.number if isinstance(stop, interrupts.Stopped) else signal.SIGINT
    print(interrupts.line(number), file=sys.stderr)
    code = 128 + number
  finally:
    interrupts.end()
  if _left_behind:
    interrupts.leave(code)
  sys.exit(code)


_left_behind: list[str] = []


def leave_behind(name: str) -> None:
  """What does not answer any more: `run_main` then ends without what libraries would wait for at exit."""
  _left_behind.append(name)
