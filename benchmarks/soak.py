"""Kills runs at random moments, over and over, and compares what they become with runs left alone.

Every setting is trained once in peace. Then it is started again and again in another directory and killed
after a random time (while it imports, compiles, trains, evaluates or saves) until it is done; now and then a
file of its newest checkpoint is cut, flipped or deleted between two starts. Record, samples and parameters
must be equal, to the bit.

example:
  python benchmarks/soak.py --kills 200 --seed 0 --out soak.jsonl
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from lm.config.errors import ConfigError
from lm.runs import rundir
from lm.runs.reproduce import parameter_differences, record_differences

COMMON = [
  "train.steps=120", "eval.every_steps=30", "checkpoint.every_steps=10", "log.every_steps=5",
  "log.wandb=disabled", "checkpoint.keep=3", "checkpoint.best=False",
]  # fmt: skip
# name -> (config, changes, XLA devices)
SETTINGS = {
  "plain": ("configs/smoke.py", [], 1),
  "dropout and ema": ("configs/smoke.py", ["model.dropout=0.1", "optim.ema_decay=0.9"], 1),
  "accumulation and muon": ("configs/smoke.py", ["train.accumulate=2", "optim.name=muon"], 1),
  "experts": ("configs/smoke.py", ["model.experts=4"], 1),
  "int8 state and wsd": ("configs/smoke.py", ["optim.state_dtype=int8", "optim.schedule=wsd"], 1),
  "8 devices with fsdp": ("configs/smoke.py", ["mesh.fsdp=4", "mesh.replica=2"], 8),
  "carried state": ("configs/lstm.py:smoke", [], 1),
  "masked": ("configs/bert.py:smoke", [], 1),
}


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--kills", type=int, default=200)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--only", help="names of settings, with commas between")
  parser.add_argument("--out", type=pathlib.Path, help="JSON lines, one a finished run")
  options = parser.parse_args()
  chosen = options.only.split(",") if options.only else list(SETTINGS)
  rng, killed, failures, number = random.Random(options.seed), 0, 0, 0
  with tempfile.TemporaryDirectory() as made:
    folder = pathlib.Path(made)
    peaceful = {name: in_peace(folder / f"whole {name}", name) for name in chosen}
    while killed < options.kills:
      name = chosen[number % len(chosen)]
      number += 1
      row = soak(folder / f"{number} {name}", name, rng, peaceful[name])
      killed += row["kills"]
      failures += bool(row["differences"])
      line = f"{killed:>4} kills  {name:<26} {row['kills']} kills, {row['damaged']} damaged"
      print(f"{line}  {'; '.join(row['differences']) or 'equal to the bit'}", flush=True)
      if options.out:
        with open(options.out, "a", encoding="utf-8") as file:
          file.write(json.dumps(row) + "\n")
  print(f"{killed} kills, {number} runs, {failures} of them differ or failed")
  return int(failures > 0)


def start(workdir: pathlib.Path, name: str) -> subprocess.Popen:
  config, changes, devices = SETTINGS[name]
  flags = [f"--config.{change}" for change in COMMON + changes]
  words = [sys.executable, "train.py", "--config", config, "--workdir", str(workdir), *flags]
  env = {**os.environ, "JAX_PLATFORMS": "cpu"}
  env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
  return subprocess.Popen(
    words, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
  )


def in_peace(workdir: pathlib.Path, name: str) -> tuple[pathlib.Path, float]:
  """(a run that was left alone, the seconds that one takes whose programs are compiled already)."""
  for folder in (workdir, workdir.with_name(f"{workdir.name} again")):
    began = time.monotonic()
    process = start(folder, name)
    _, said = process.communicate()
    if process.returncode:
      raise SystemExit(f"{name}: {said}")
  return workdir, time.monotonic() - began


def soak(workdir: pathlib.Path, name: str, rng: random.Random, peaceful) -> dict:
  """One run, killed until it is done."""
  whole, seconds = peaceful
  kills, damaged, problems = 0, 0, []
  while True:
    process = start(workdir, name)
    # Before the first step, in training, evaluation or saving, at the end. After a dozen it is left alone.
    wait = rng.uniform(0.1, 1.0) * seconds if kills < 12 else None
    try:
      _, said = process.communicate(timeout=wait)
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      process.communicate()
      kills += 1
      damaged += maybe_damage(workdir, rng)
      continue
    if process.returncode:
      problems.append(f"exit {process.returncode}: {said.strip().splitlines()[-1:]}")
    break
  try:
    problems += record_differences(whole, workdir) + parameter_differences(whole, workdir)
  except ConfigError as error:
    problems.append(str(error))
  return {"setting": name, "kills": kills, "damaged": damaged, "differences": problems}


def maybe_damage(workdir: pathlib.Path, rng: random.Random) -> int:
  """One time in four, an accident to the newest checkpoint of a run that goes on, if another stays whole.

  A run that is done is not trained again: what is damaged of it shows when it is read.
  """
  steps = sorted(rundir.checkpoint_steps(workdir))
  done = (workdir / "run.json").exists() and rundir.read_run(workdir).get("status") == "done"
  if len(steps) < 2 or done or rng.random() > 0.25:
    return 0
  folder = workdir / "checkpoints" / str(steps[-1])
  file = rng.choice(sorted(p for p in (folder / "default").rglob("*") if p.is_file()))
  content = bytearray(file.read_bytes())
  kind = rng.choice(["cut", "flip", "delete"])
  if kind == "delete" or not content:
    file.unlink()
  elif kind == "cut":
    file.write_bytes(content[: len(content) // 2])
  else:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
  return 1


if __name__ == "__main__":
  sys.exit(main())
