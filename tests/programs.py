"""The programs of this repository, and what their own parsers make of a command line."""

import argparse
import contextlib
import functools
import importlib
import importlib.util
import pathlib
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from unittest import mock

ROOT = pathlib.Path(__file__).parent.parent


class Parsed(Exception):
  """Ends a program once its command line is read: nothing is done."""

  def __init__(self, parser: argparse.ArgumentParser, options: argparse.Namespace, unknown: list):
    super().__init__()
    self.parser, self.options, self.unknown = parser, options, unknown


@functools.cache
def program(name: str) -> ModuleType:
  """The module behind `python NAME` (a path that ends in .py) or `python -m NAME`."""
  if name.endswith(".py"):
    path = ROOT / name
    assert path.exists(), f"no file {name}"
    if path.parent == ROOT:
      return importlib.import_module(path.stem)
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    with mock.patch.object(sys, "path", [str(path.parent), *sys.path]):
      spec.loader.exec_module(module)
    return module
  spec = importlib.util.find_spec(name)
  assert spec, f"no module {name}"
  return importlib.import_module(f"{name}.__main__" if spec.submodule_search_locations else name)


@contextlib.contextmanager
def _stopped_after_parsing() -> Iterator[None]:
  original, depth = argparse.ArgumentParser.parse_known_args, [0]

  def spy(self, args=None, namespace=None):
    depth[0] += 1  # a command's own parser is called by that of the program
    try:
      options, unknown = original(self, args, namespace)
    finally:
      depth[0] -= 1
    if depth[0] == 0:
      raise Parsed(self, options, unknown)
    return options, unknown

  with mock.patch.object(argparse.ArgumentParser, "parse_known_args", spy):
    yield


def parse(name: str, words: Sequence[str]) -> Parsed:
  """What the program's parser makes of these words. SystemExit where it refuses them."""
  main = program(name).main
  takes = main.__code__.co_argcount
  try:
    with _stopped_after_parsing(), mock.patch.object(sys, "argv", [name, *words]):
      main(*[list(words)] * takes)
  except Parsed as parsed:
    return parsed
  raise AssertionError(f"{name} read no command line")


def split(command: str) -> tuple[str, list[str]]:
  """(program, words) of `[NAME=VALUE ...] python [-m] PROGRAM WORDS`, up to a pipe, > or comment."""
  words = shlex.split(re.split(r" (?:[|>]|&&|&) ", command)[0], comments=True)
  while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
    words = words[1:]
  words = words[1:]
  if words[0] == "-m":
    words = words[1:]
  return words[0], words[1:]


def options_of(name: str, words: Sequence[str]) -> set[str]:
  """Every option of the program, or of the command of it that the words name."""
  parser = parse(name, words).parser
  found = {option for action in parser._actions for option in action.option_strings}
  for action in parser._actions:
    if isinstance(action, argparse._SubParsersAction) and words:
      chosen = action.choices[words[0]]
      found |= {option for own in chosen._actions for option in own.option_strings}
  return found
