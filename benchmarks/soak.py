"""Kills runs at random moments, over and over, and compares what they become with runs left alone.

Every setting is trained once in peace. Then it is started again and again in another directory and stopped
after a random time (while it imports, compiles, trains, evaluates or saves) until it is done: three times in
four by SIGKILL, else by Ctrl-C or SIGTERM, which must end it in one line and a code. Between two starts an
accident (`ACCIDENTS`) happens to a checkpoint, the record, run.json or the token cache. Record, samples and
parameters must be equal, to the bit.

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
from collections import Counter

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
  accidents: Counter = Counter()
  with tempfile.TemporaryDirectory() as made:
    folder = pathlib.Path(made)
    (folder / "cache").mkdir()
    peaceful = {name: in_peace(folder / f"whole {name}", name) for name in chosen}
    while killed < options.kills:
      name = chosen[number % len(chosen)]
      number += 1
      row = soak(folder / f"{number} {name}", name, rng, peaceful[name])
      killed += row["kills"]
      accidents.update(row["accidents"])
      failures += bool(row["differences"])
      line = (
        f"{killed:>4} kills  {name:<26} {row['kills']} kills, {len(row['accidents'])} accidents"
      )
      print(f"{line}  {'; '.join(row['differences']) or 'equal to the bit'}", flush=True)
      if options.out:
        with open(options.out, "a", encoding="utf-8") as file:
          file.write(json.dumps(row) + "\n")
  print(f"{killed} kills, {number} runs, {failures} of them differ or failed")
  print(
    f"{accidents.total()} accidents: {', '.join(f'{n} {kind}' for kind, n in accidents.most_common())}"
  )
  return int(failures > 0)


def start(workdir: pathlib.Path, name: str) -> subprocess.Popen:
  config, changes, devices = SETTINGS[name]
  cache = f"data.cache_dir={workdir.parent / 'cache'}"
  flags = [f"--config.{change}" for change in [*COMMON, *changes, cache]]
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
  """One run, stopped until it is done."""
  whole, seconds = peaceful
  kills, accidents, problems = 0, [], []
  while True:
    process = start(workdir, name)
    # Before the first step, in training, evaluation or saving, at the end. After a dozen it is left alone.
    wait = rng.uniform(0.1, 1.0) * seconds if kills < 12 else None
    try:
      _, said = process.communicate(timeout=wait)
    except subprocess.TimeoutExpired:
      number = rng.choice([signal.SIGKILL] * 6 + [signal.SIGINT, signal.SIGTERM])
      process.send_signal(number)
      _, said = process.communicate()
      kills += 1
      if number != signal.SIGKILL and (
        process.returncode not in (0, 128 + number, -number) or "Traceback" in said
      ):
        problems.append(f"{number.name}: exit {process.returncode}: {said.strip()[-200:]}")
      accidents += have_accident(workdir, rng)
      continue
    if process.returncode:
      problems.append(f"exit {process.returncode}: {said.strip().splitlines()[-1:]}")
    break
  try:
    problems += record_differences(whole, workdir) + parameter_differences(whole, workdir)
  except ConfigError as error:
    problems.append(str(error))
  return {"setting": name, "kills": kills, "accidents": accidents, "differences": problems}


def have_accident(workdir: pathlib.Path, rng: random.Random) -> list[str]:
  """Every other time one of ACCIDENTS, of those that can happen now; what it was.

  A run that is done is not trained again: what is damaged of it shows when it is read.
  """
  folder = workdir / "checkpoints"
  steps = [s for s in sorted(rundir.checkpoint_steps(workdir)) if any((folder / str(s)).iterdir())]
  begun = (workdir / "run.json").exists()
  if (begun and rundir.read_run(workdir).get("status") == "done") or rng.random() > 0.5:
    return []
  possible = [
    kind for kind, (least, _) in ACCIDENTS.items() if len(steps) >= least and (begun or not least)
  ]
  kind = rng.choice(possible)
  ACCIDENTS[kind][1](workdir, steps, rng)
  return [kind]


def spoil(file: pathlib.Path, rng: random.Random) -> None:
  """The file is cut, emptied or deleted, or one of its bits flipped."""
  content = bytearray(file.read_bytes())
  kind = rng.choice(["cut", "flip", "empty", "delete"])
  if kind == "delete" or not content:
    file.unlink()
  elif kind == "flip":
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
  else:
    file.write_bytes(content[: len(content) // 2 if kind == "cut" else 0])


def spoil_checkpoint(workdir, steps, rng):
  folder = workdir / "checkpoints" / str(steps[-1])
  spoil(rng.choice(sorted(p for p in folder.rglob("*") if p.is_file())), rng)


def break_metadata(workdir, steps, rng):
  folder = workdir / "checkpoints" / str(steps[-1])
  rng.choice(sorted(folder.rglob("*METADATA"))).write_text("{", encoding="utf-8")


def add_empty_step(workdir, steps, rng):
  (workdir / "checkpoints" / str(steps[-1] + 1)).mkdir()


def spoil_cache(workdir, steps, rng):
  files = sorted(p for p in (workdir.parent / "cache").glob("*/*") if p.suffix in (".bin", ".json"))
  if files:
    spoil(rng.choice(files), rng)


def garble_record(workdir, steps, rng):
  """A line after the newest checkpoint, which training writes anew."""
  with open(workdir / f"{rng.choice(['metrics', 'perf', 'samples'])}.jsonl", "ab") as file:
    file.write(rng.choice([b'{"step": 7', b"\x00\xff\x80\n", b'{"step": "x"}\n', b"garbage\n"]))


def claim_done(workdir, steps, rng):
  path = workdir / "run.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "done"}), encoding="utf-8")


# what happened -> (checkpoints it takes, so that one that is whole stays, what it does)
ACCIDENTS = {
  "checkpoint": (2, spoil_checkpoint),
  "metadata": (2, break_metadata),
  "empty step": (1, add_empty_step),
  "record": (1, garble_record),
  "said to be done": (1, claim_done),
  "token cache": (0, spoil_cache),
}


if __name__ == "__main__":
  sys.exit(main())
