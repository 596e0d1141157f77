"""Makes a smaller run of a trained one: fewer heads, factored, pruned or quantised weights.

examples:
  python -m lm.compact --workdir runs/default --to runs/int8 --bits 8
  python -m lm.compact --workdir runs/default --to runs/int4 --bits 4 --group 32 --by inputs
  python -m lm.compact --workdir runs/default --to runs/half --prune 0.5 --scope layer
  python -m lm.compact --workdir runs/default --to runs/sparse --pattern 2:4
  python -m lm.compact --workdir runs/default --to runs/thin --heads 1 --rank 64 --json

Steps are taken in this order: merge, heads, rank, prune or pattern, bits. The new run directory is read by
lm.evaluate, lm.generate and lm.hf export like any other. Codes and zeros are expanded to float32 when it
is loaded: they save bytes on disk, while heads and factors also save arithmetic.
"""

from lm.config import interrupts

if __name__ == "__main__":
  interrupts.listen()

import json
import re
from collections.abc import Sequence

from lm.compact.compact import Asked, compact_run, table
from lm.config.command_line import Parser, reject_unknown, run_main
from lm.config.errors import ConfigError
from lm.runs import bucket


def main(argv: Sequence[str]) -> int:
  parser = Parser(prog="python -m lm.compact", description=__doc__)
  parser.add_argument("--workdir", required=True, help="run directory")
  parser.add_argument("--to", required=True, help="new run directory")
  parser.add_argument("--checkpoint", default="best", help="best, latest or a step")
  parser.add_argument(
    "--merge", action="store_true", help="take LoRA's adapters into their matrices"
  )
  parser.add_argument("--heads", type=int, help="key/value heads to cut from every layer")
  parser.add_argument("--rank", type=int, help="of the two factors of every linear map of a block")
  parser.add_argument("--prune", type=float, help="fraction of the weights to set to zero")
  parser.add_argument(
    "--scope", choices=("global", "layer", "output"), default="global", help="where they compete"
  )
  parser.add_argument("--pattern", help="N:M, of every M neighbours N are kept, such as 2:4")
  parser.add_argument("--bits", type=int, choices=(8, 4), help="of a weight")
  parser.add_argument(
    "--group", type=int, help="weights that share a scale; a whole column if absent"
  )
  parser.add_argument(
    "--what", choices=("blocks", "all"), default="blocks", help="all: with embedding and head"
  )
  parser.add_argument(
    "--by", choices=("weights", "inputs"), default="weights",
    help="inputs: weights count by what they multiply (GPTQ, Wanda, weighted SVD)",
  )  # fmt: skip
  parser.add_argument("--calibrate", help="source of that text; the training text if absent")
  parser.add_argument("--calibration_tokens", type=int, default=16384, help="of it")
  parser.add_argument("--data", help="source to score before and after; the held-out set if absent")
  parser.add_argument("--tokens", type=int, default=16384, help="to score; 0 = no scores")
  parser.add_argument("--window", type=int, default=512, help="tokens of a row at most")
  parser.add_argument("--json", action="store_true", help="print the table as JSON")
  options, unknown = parser.parse_known_args(argv)
  reject_unknown(parser, unknown)
  asked = Asked(
    merge=options.merge,
    heads=options.heads,
    rank=options.rank,
    prune=options.prune,
    scope=options.scope,
    pattern=_pattern(options.pattern),
    bits=options.bits,
    group=options.group,
    what=options.what,
    by=options.by,
    calibrate=options.calibrate,
    calibration_tokens=options.calibration_tokens,
    window=options.window,
  )
  rows = compact_run(
    bucket.local(options.workdir),
    bucket.checked_path("to", options.to),
    options.checkpoint,
    asked,
    options.data,
    options.tokens,
  )
  print(json.dumps(rows) if options.json else table(rows))
  return 0


def _pattern(text: str | None) -> tuple[int, int] | None:
  if text is None:
    return None
  found = re.fullmatch(r"(\d+):(\d+)", text)
  if not found or not 0 < int(found[1]) < int(found[2]):
    raise ConfigError(f"pattern={text}: must be N:M with 0 < N < M; use 2:4")
  return int(found[1]), int(found[2])


if __name__ == "__main__":
  run_main(main)
