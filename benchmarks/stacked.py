"""Sweep speed: runs an hour of R runs stacked in one program, against the same runs one by one.

Every row is `python -m experiments run`, as a user would have it: processes start, data is opened, runs are
evaluated and saved, ten times each. Programs are compiled beforehand, by one short sweep of each shape. Sets
are as small beside these short runs as 100,000 tokens are beside the 20 a parameter of the ladder. "step" is
the training step alone, from the runs' own records.

examples:
  python benchmarks/stacked.py
  python benchmarks/stacked.py --size 1m --steps 50 --stacks 16,64
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import bench
from experiments.launch.slots import find_devices

ONE_BY_ONE = 4  # runs that are timed one by one; an hour's worth follows from them


def main():
  parser = bench.make_parser(__doc__)
  parser.add_argument("--size", default="0.1m", help="of configs/ladder.py")
  parser.add_argument("--steps", type=int, default=100, help="of each run")
  parser.add_argument("--max", type=int, help="largest stack; 16 on a CPU, 256 elsewhere")
  parser.add_argument("--stacks", help="sizes with commas; 1, 2, 4 ... up to --max if not given")
  options = parser.parse_args()
  devices = find_devices()
  largest = options.max or (16 if devices.platform == "cpu" else 256)
  sizes = [2**i for i in range(largest.bit_length())]
  if options.stacks:
    sizes = [int(size) for size in options.stacks.split(",")]
  print(f"{options.size}, {options.steps} steps a run, on {devices.count} x {devices.kind}, "
        f"load average {bench.load()}")  # fmt: skip
  print(f"{'how':<22}{'runs':>5}{'seconds':>9}{'runs/hour':>11}{'ratio':>7}"
        f"{'step ms/run':>13}{'ratio':>7}")  # fmt: skip
  base = None
  for how, n_runs, words in rows_of(sizes):
    row = {"how": how, "runs": n_runs, **time_sweep(options, n_runs, words)}
    base = base or row
    row |= {
      "ratio": row["runs_per_hour"] / base["runs_per_hour"],
      "step_ratio": base["step_ms"] / row["step_ms"],
    }
    print(f"{how:<22}{n_runs:>5}{row['seconds']:>9.1f}{row['runs_per_hour']:>11,.0f}"
          f"{row['ratio']:>7.2f}{row['step_ms']:>13.1f}{row['step_ratio']:>7.2f}", flush=True)  # fmt: skip
    about = {"size": options.size, "steps": options.steps, "set": options.set}
    about |= {"n_devices": devices.count, **bench.about(devices.kind)}
    bench.append(options.out, "stacked", {**row, **about})


def rows_of(sizes: Sequence[int]) -> list[tuple[str, int, tuple[str, ...]]]:
  """(how, runs, options of `experiments run`): the first is what the others are compared with."""
  stack = lambda size: ("--on", "stacked", "--stack", str(size))
  return [
    ("one by one", ONE_BY_ONE, ("--on", "local", "--workers", "1")),
    ("local, as many as fit", ONE_BY_ONE, ("--on", "local")),
    *((f"stacks of {size}", size, stack(size)) for size in sizes),
  ]


def time_sweep(options, n_runs: int, words: tuple[str, ...]) -> dict[str, float]:
  """Seconds of a whole sweep whose programs are compiled, runs an hour, and the step's share of a run."""
  with tempfile.TemporaryDirectory() as folder:
    sweep(options, folder, "warm", n_runs, 2, words)
    start = time.perf_counter()
    rows = sweep(options, folder, "timed", n_runs, options.steps, words)
    seconds = time.perf_counter() - start
  tokens = rows[0]["train.batch_size"] * rows[0]["model.seq_len"]
  return {
    "seconds": seconds,
    "runs_per_hour": 3600 * n_runs / seconds,
    "step_ms": 1e3 * tokens / rows[-1]["tokens_per_sec"],  # a stack's speed is of all its runs
  }


def sweep(options, folder: str, name: str, n_runs: int, steps: int, words) -> list[dict]:
  """Trains n_runs runs that differ in their seeds; returns their ledger."""
  settings = [f"train.steps={steps}", "train.tokens_per_param=None", "log.every_steps=10",
              "sample.tokens=0", "data.tokenizer=byte", "eval.tokens=20000", *options.set]  # fmt: skip
  command = [sys.executable, "-m", "experiments", "run", "--config",
             f"configs/ladder.py:{options.size}", "--root", folder, "--save_as", name,
             "--grid", "seed=" + ",".join(map(str, range(n_runs))), "--json", *words]  # fmt: skip
  for setting in settings:
    command += ["--set", setting]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  if done.returncode:
    raise SystemExit(f"{' '.join(command)}\n{done.stderr.strip()}")
  return json.loads(done.stdout)["runs"]


if __name__ == "__main__":
  main()
