"""What compaction costs and saves on one run: bytes, perplexity and speed of reading, before and after each.

example:
  python benchmarks/compact.py --workdir runs/default --rank 48
"""

import argparse
import json
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from lm.compact.compact import Asked, compact_run, table
from lm.compact.measure import measure

NOTHING = Asked(
  False, None, None, None, "global", None, None, None, "blocks", "weights", None, 0, 0
)
SETTINGS = {
  "int8 a column": {"bits": 8, "what": "all"},
  "int4 a column": {"bits": 4},
  "int4 a column, GPTQ": {"bits": 4, "by": "inputs"},
  "int4 a group": {"bits": 4, "group": None},
  "int4 a group, GPTQ": {"bits": 4, "group": None, "by": "inputs"},
  "half, magnitude": {"prune": 0.5, "scope": "layer"},
  "half, Wanda": {"prune": 0.5, "scope": "output", "by": "inputs"},
  "2:4, magnitude": {"pattern": (2, 4)},
  "2:4, Wanda": {"pattern": (2, 4), "by": "inputs"},
  "one head group less": {"heads": 1},
  "factors": {"rank": None},
  "factors, by inputs": {"rank": None, "by": "inputs"},
}


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", required=True, help="run directory")
  parser.add_argument("--data", help="source to score on; the held-out set if absent")
  parser.add_argument("--calibrate", help="source of calibration text; the training text if absent")
  parser.add_argument("--calibration_tokens", type=int, default=4096)
  parser.add_argument("--tokens", type=int, default=4096, help="to score")
  parser.add_argument("--window", type=int, default=256, help="tokens of a row")
  parser.add_argument("--group", type=int, default=32, help="weights that share a scale")
  parser.add_argument("--rank", type=int, required=True, help="of factors")
  parser.add_argument("--only", help="settings whose name begins so")
  parser.add_argument("--out", help="keeps the rows as JSON lines")
  options = parser.parse_args()
  workdir, rows = pathlib.Path(options.workdir), []
  score = (options.data, options.tokens, options.window)
  for name, changes in SETTINGS.items():
    if options.only and not name.startswith(options.only):
      continue
    changes = {k: getattr(options, k) if k in ("rank", "group") else v for k, v in changes.items()}
    asked = NOTHING._replace(
      calibrate=options.calibrate,
      calibration_tokens=options.calibration_tokens,
      window=options.window,
      **changes,
    )
    with tempfile.TemporaryDirectory() as made:
      to = pathlib.Path(made) / "run"
      before, after = compact_run(workdir, to, "best", asked, None, 0)
      if not rows:
        rows.append(before | {"run": "before"} | measure(workdir, "best", *score))
        print(table(rows), file=sys.stderr, flush=True)
      rows.append(after | {"run": name} | measure(to, "best", *score))
    print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    if options.out:
      with open(options.out, "a", encoding="utf-8") as file:
        file.write(json.dumps(rows[-1]) + "\n")
  print(table(rows))
  return 0


if __name__ == "__main__":
  sys.exit(main())
