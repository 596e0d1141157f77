"""The options of train.py, beside `--config.a.b=value`."""

import argparse
import pathlib
from collections.abc import Sequence

from lm.config import command_line


def read_options(
  argv: Sequence[str], description: str, config: pathlib.Path
) -> tuple[argparse.Namespace, dict[str, object]]:
  """(options, overrides of config keys) of a command line.

  Args:
    config: file of the config where none is named.

  Raises:
    ConfigError: an option that there is not.
  """
  parser = command_line.Parser(prog="train.py", description=description)
  parser.add_argument("--config", default=str(config), help="FILE[:ARGUMENT]")
  parser.add_argument("--workdir", help="run directory; runs/<config's name> if not given")
  parser.add_argument("--profile", help="FIRST:LAST steps to trace into WORKDIR/profile")
  parser.add_argument("--stack", help="JSON lines {config, overrides, workdir}: runs to stack")
  parser.add_argument(
    "--accept_new_data", action="store_true", help="go on though the data have changed"
  )
  parser.add_argument("--reproduce", help="run directory: train it again and compare every bit")
  parser.add_argument("--coordinator", help="host:port of process 0, where nothing tells it")
  parser.add_argument("--processes", type=int, help="number of processes, with --coordinator")
  parser.add_argument("--process", type=int, help="number of this one, from 0")
  parser.add_argument("--print_config", action="store_true", help="print the resolved config")
  parser.add_argument("--plan", action="store_true", help="print what the run will cost")
  parser.add_argument("--compile", action="store_true", help="with --plan: compile the step first")
  parser.add_argument("--topology", help="with --plan: compile it for TPUs such as v5p:8x8x8")
  parser.add_argument("--fit", action="store_true", help="with --plan: find the fastest that fits")
  parser.add_argument("--json", action="store_true", help="print the answer as JSON")
  rest, overrides = command_line.split_overrides(argv)
  options, unknown = parser.parse_known_args(rest)
  command_line.reject_unknown(parser, unknown)
  return options, dict(overrides)


def asked_runs(
  options: argparse.Namespace, overrides: dict[str, object]
) -> list[tuple[str, dict[str, object], str]]:
  """(config, overrides, workdir) of each run that the options ask for."""
  if options.stack:
    return command_line.read_stack(options.stack)
  name = pathlib.Path(options.config.replace(".py", "").replace(":", "-")).name
  workdir: str = options.workdir or f"runs/{name}"
  return [(str(options.config), overrides, workdir)]
