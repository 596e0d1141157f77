"""From a question to a law: plan, run and read experiments.

An experiment is a file experiments/NAME.py, or a sweep described on the command line with --config,
--grid and --random. Its runs live in runs/NAME/<run>; a run is identified by the hash of its
resolved config, so that a second `run` does nothing and a stopped one goes on.

examples:
  python -m experiments list
  python -m experiments plan lr_sweep
  python -m experiments run --config configs/smoke.py --grid seed=0,1 --save_as seeds
  python -m experiments report seeds
"""

import os
import sys

from lm.config import interrupts

if __name__ == "__main__":
  interrupts.listen()
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before jax: XLA's notes are not the user's

import jax

from experiments.commands import command_line as cli
from lm.config.command_line import reject_unknown, run_main


def main(argv: list[str]) -> int:
  jax.config.update("jax_platforms", "cpu")  # accelerators belong to the workers
  parser = cli.make_parser(__doc__)
  options, unknown = parser.parse_known_args(argv)
  reject_unknown(parser.command_parsers[options.command], unknown)
  try:
    return options.act(options) or 0
  except BrokenPipeError:  # the reader, such as head, has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
  run_main(main)
