"""Made-up input, many cases of each kind: every one gives a clean answer or one clear line.

Kinds: settings, run directories, checkpoints (tests/test_run_fuzz.py); corpora, tokenizer files, token caches
(tests/test_data_fuzz.py); tables of runs (tests/test_laws_table_fuzz.py); folders for
Hugging Face (tests/test_hf.py); GGUF files (tests/test_gguf.py).

example:
  python benchmarks/fuzz.py --cases 1000 --seed 1
"""

import argparse
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
TESTS = (
  "tests/test_run_fuzz.py",
  "tests/test_data_fuzz.py",
  "tests/test_laws_table_fuzz.py",
  "tests/test_hf.py",
  "tests/test_gguf.py",
)


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--cases", type=int, default=1000, help="of each kind")
  parser.add_argument(
    "--seed", type=int, help="draws other cases; without it they are always the same"
  )
  options = parser.parse_args()
  env = {**os.environ, "FUZZ_CASES": str(options.cases), "JAX_PLATFORMS": "cpu"}
  if options.seed is not None:
    env["FUZZ_SEED"] = str(options.seed)
  words = [sys.executable, "-m", "pytest", "-q", "-k", "fuzz or mutated or made_up or accident"]
  return subprocess.run([*words, *TESTS], cwd=ROOT, env=env, check=False).returncode


if __name__ == "__main__":
  sys.exit(main())
