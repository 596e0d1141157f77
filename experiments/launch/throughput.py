"""How fast runs train here: short probes, remembered, and what they predict for other sizes.

A probe trains one config for a few steps in a process of its own. Its FLOP/s is remembered by
device, share of the cores and program; between measured sizes log(FLOP/s) is interpolated in
log(FLOPs a step).
"""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from experiments.launch import jobs, local, slots
from experiments.launch.stacks import program_of
from experiments.ledger.rows import read_row
from experiments.sweep.sweep import Member, open_data
from lm.config.errors import ConfigError
from lm.config.schema import BUDGETS, Config
from lm.cost.flops import run_flops_per_token
from lm.devices import chips
from lm.files import write_json
from lm.setup.resolve import kind_of, tokens_per_step

PROBE_STEPS = 16  # the first quarter holds the compilation and is not counted
PROBE_SECONDS = 120.0  # a larger model is not probed here
FORWARD = 1 / 3  # of the FLOPs of a training token


@dataclasses.dataclass(frozen=True)
class Speed:
  """Predicts wall-clock time.

  Args:
    where: what it stands for, in words.
    sizes: FLOPs a step (exact convention) that were measured, rising.
    rates: FLOP/s there, of all of one run's devices together unless `each`.
    overhead: seconds of start-up and the end of a run whose program has been compiled before.
    compiling: seconds more for the first run of a program.
    price: USD an hour of one device; None where unknown.
    hbm: bytes of memory of one device; None where unknown.
    each: whether `rates` are of one device, of which a run has as many as its mesh.
  """

  where: str
  sizes: tuple[float, ...]
  rates: tuple[float, ...]
  overhead: float
  compiling: float = 0.0
  price: float | None = None
  hbm: float | None = None
  each: bool = False

  def seconds(self, cfg: Config) -> float:
    """Start to end of one resolved run, evaluations included, its program compiled before."""
    per_token = run_flops_per_token(cfg, "exact")
    per_step = step_flops(cfg)
    rate = math.exp(np.interp(math.log(per_step), np.log(self.sizes), np.log(self.rates)))
    if self.each:
      rate *= math.prod(dataclasses.astuple(cfg.mesh))
    n_evals = -(-cfg.train.steps // cfg.eval.every_steps)
    evaluated = n_evals * eval_tokens(cfg) * per_token * FORWARD
    return self.overhead + (per_token * cfg.train.tokens + evaluated) / rate


def from_chip(name: str, mfu: float, dtype: str) -> Speed:
  """The speed of a chip of lm.chips at a given utilisation (exact convention).

  Args:
    name: a key of CHIPS or a part of one: "v5e", "h100".
    mfu: in (0, 1].
    dtype: of the matmuls.
  """
  found = [key for key in chips.CHIPS if name.lower() in key.lower()]
  if len(found) != 1:
    raise ConfigError(
      f"chip={name}: must name one of {', '.join(chips.CHIPS)}; "
      + (f"{' or '.join(found)}?" if found else "add its row to lm/chips.py")
    )
  if not 0 < mfu <= 1:
    raise ConfigError(f"mfu={mfu}: must be in (0, 1]; try 0.4")
  chip = chips.CHIPS[found[0]]
  rate = mfu * getattr(chip, dtype)
  return Speed(
    f"{found[0]} at {mfu:.0%} MFU", (1.0,), (rate,), 30.0, 30.0, chip.price, chip.hbm, each=True
  )


def read_mfu(text: str) -> float:
  """A utilisation from text; ConfigError where it is no number."""
  try:
    return float(text)
  except ValueError:
    raise ConfigError(f"mfu={text}: must be a number in (0, 1]; try 0.4") from None


def measured(members: Sequence[Member], slot: slots.Slot, again: bool = False) -> Speed | None:
  """The speed of this machine, probed at the smallest and the largest program if it is not known
  there, or `again`.

  None where even the smallest is too large to be probed.
  """
  file = pathlib.Path(members[0].cfg.data.cache_dir).expanduser() / "speed.json"
  known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
  here = _where(slot)
  mine = {} if again else known.get(here, {})
  ranked = sorted(members, key=lambda m: step_flops(m.cfg))
  asked = []
  for member in (ranked[0], *ranked[1:][-1:]):
    program = program_of(member)
    if program not in mine:
      print(f"measuring speed: {PROBE_STEPS} steps of {member.name} on {here}", file=sys.stderr)
      probe = _probe(member, slot)
      if probe is None:
        break
      mine = {**mine, program: probe}
      file.parent.mkdir(parents=True, exist_ok=True)
      write_json(file, {**known, here: mine})
    asked.append(mine[program])
  if not mine:
    return None
  return _speed(here, mine, asked or mine.values())


def remembered(member: Member, slot: slots.Slot) -> Speed | None:
  """The speed of this machine as probes found it earlier; None where there were none."""
  file = pathlib.Path(member.cfg.data.cache_dir).expanduser() / "speed.json"
  known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
  here = _where(slot) if known else ""
  return _speed(here, known[here], known[here].values()) if known.get(here) else None


def step_flops(cfg: Config) -> float:
  """Exact training FLOPs of one step of a resolved config."""
  return run_flops_per_token(cfg, "exact") * tokens_per_step(cfg)


def eval_tokens(cfg: Config) -> int:
  """Units (tokens) that one evaluation of the held-out set reads, as far as the kind of batch says."""
  kind = kind_of(cfg)
  batches = kind.evaluate(kind.held_out(open_data(cfg)), cfg, cfg.eval.tokens, None)
  room = len(batches) * batches.batch_size * kind.units_per_row(cfg)
  return round(batches.facts.get(kind.unit, room))


def _speed(here: str, probes: Mapping[str, Mapping], asked: Collection[Mapping]) -> Speed:
  """What probes of several programs predict; start-up and compilation as in those of `asked`."""
  points = sorted((p["flops_per_step"], p["flops_per_sec"]) for p in probes.values())
  sizes, rates = zip(*points, strict=True)
  mean = lambda key: float(np.mean([p[key] for p in asked]))
  chip = chips.find_chip(slots.find_devices().kind)
  return Speed(
    here, sizes, rates, mean("overhead"), mean("compiling"), chip and chip.price, chip and chip.hbm
  )


def _where(slot: slots.Slot) -> str:
  devices = slots.find_devices()
  if devices.platform != "cpu":
    return devices.kind
  cores = len(slot.cpus) if slot.cpus else os.cpu_count()
  return f"{_cpu_name()}, {cores} core{'s' if cores > 1 else ''}"


def _cpu_name() -> str:
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8")
  except OSError:
    import platform

    return platform.processor() or platform.machine()
  names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
  return names[0] if names else "CPU"


def _probe(member: Member, slot: slots.Slot) -> Mapping[str, float] | None:
  """What `measured` remembers of one config; None if PROBE_SECONDS do not suffice for it.

  It is run twice: the second process finds the program compiled, and its speed is what counts.
  """
  first = _probe_once(member, slot)
  again = first and _probe_once(member, slot)
  if not again:
    return None
  return {**again, "compiling": max(first["overhead"] - again["overhead"], 0.0)}


def _probe_once(member: Member, slot: slots.Slot) -> Mapping[str, float] | None:
  """FLOP/s of one short run, and the seconds of it that were not training or evaluation."""
  budgets = dict.fromkeys(BUDGETS)
  settings = {
    **budgets, "train.steps": PROBE_STEPS, "log.every_steps": PROBE_STEPS // 4,
    "eval.every_steps": PROBE_STEPS, "sample.tokens": 0, "log.wandb": "disabled",
    "optim.peak_lr": 0.0,  # cannot diverge
  }  # fmt: skip
  with tempfile.TemporaryDirectory() as folder:
    place = dataclasses.replace(member, workdir=pathlib.Path(folder) / "probe")
    job = jobs.local_jobs([place], settings)[0]
    start = time.monotonic()
    process = local.start_process(job, slot)
    try:
      code = process.wait(timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
      return None
    finally:
      process.kill()
      process.wait()
    wall = time.monotonic() - start
    if code:
      raise ConfigError(f"run {member.name}: a probe of it fails: {jobs.last_line(job.log)}")
    row = read_row(str(place.workdir))
  per_step = step_flops(member.cfg)
  per_sec = row["tokens_per_sec"] * run_flops_per_token(member.cfg, "exact")
  evaluated = eval_tokens(member.cfg) * FORWARD / row["tokens_per_sec"]
  spent = PROBE_STEPS * per_step / per_sec + evaluated
  return {"flops_per_step": per_step, "flops_per_sec": per_sec, "overhead": max(wall - spent, 0.0)}
