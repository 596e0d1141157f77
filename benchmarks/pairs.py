"""Pairs of settings of families and objectives through train.py: steps, a kill half way, a resume, a score.

The rows are those of tests/test_family_pairs.py, in which every two values of two keys of a family stand
together, where they may; a family takes 3 to 14 minutes. A row that crashes, or whose resumed record differs,
is printed with its settings.

example:
  python benchmarks/pairs.py --rows 8 --only lstm,gan
"""

import argparse
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.test_family_pairs import BOTH, rows_of

TESTS = "tests/test_family_pairs.py"


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rows", type=int, default=1000, help="of each family, at most")
  parser.add_argument(
    "--only", default="", help="families or objectives, with commas between; see --list"
  )
  parser.add_argument("--list", action="store_true", help="the number of rows of each, and no run")
  options = parser.parse_args()
  env = {**os.environ, "FAMILY_ROWS": str(options.rows), "JAX_PLATFORMS": "cpu"}
  wanted = options.only.split(",") if options.only else list(BOTH)
  if unknown := [name for name in wanted if name not in BOTH]:
    parser.error(f"--only={','.join(unknown)}: must name some of {', '.join(BOTH)}")
  if options.list:
    for name in wanted:
      print(f"{name:22} {len(rows_of(name)):3}")
    return 0
  chosen = " or ".join(f"[{name}-" for name in wanted)
  words = [sys.executable, "-m", "pytest", "-q", "-m", "long", "-k", chosen, TESTS]
  return subprocess.run(words, cwd=ROOT, env=env, check=False).returncode


if __name__ == "__main__":
  sys.exit(main())
