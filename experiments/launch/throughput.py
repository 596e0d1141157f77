"""How fast runs train here: short probes, remembered, and what they predict for other sizes.

A probe trains one config for a few steps in a process of its own. Its FLOP/s is remembered by
device, share of the cores and program; between measured sizes log(FLOP/s) is interpolated in
log(FLOPs a step).
"""

import dataclasses
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from experiments.launch import jobs, local, slots
from experiments.launch.stacks import program_of
from experiments.ledger.rows import read_row
from experiments.sweep.sweep import Member, Run, asked_config, open_data, resolve_run
from lm.config.errors import ConfigError, number_of
from lm.config.schema import BUDGETS, Config
from lm.cost.flops import run_flops_per_token
from lm.devices import chips, host, published
from lm.files import write_json
from lm.runs import speed
from lm.setup.resolve import kind_of, tokens_per_step

PROBE_STEPS = 16  # the first quarter holds the compilation and is not counted
LONG_PROBE = 2.0  # seconds of training that a second probe takes where its steps are short
MOST_STEPS = 1024
PROBE_SECONDS = 120.0  # a larger model is not probed here
SHORT = {  # the budget of a probe, which no warm-up or decay outlasts
  **dict.fromkeys(BUDGETS), "train.steps": PROBE_STEPS, "train.tokens_per_sec": None,
  "optim.warmup_frac": 0.0, "optim.warmup_tokens": None, "optim.decay_frac": 0.0, "rules": None,
}  # fmt: skip
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


def from_chip(name: str, mfu: float | None, dtype: str, n_params: float = 0.0) -> Speed:
  """The speed of a chip of lm.devices.chips at a given utilisation (exact convention).

  Args:
    name: a key of CHIPS or a part of one: "v5e", "h100"; a whole word before a part of one.
    mfu: in (0, 1]; None: what published runs of that size reach there (lm.devices.published).
    dtype: of the matmuls.
    n_params: of the largest run.
  """
  part = name.lower()
  found = [key for key in chips.CHIPS if part in (key.lower(), *key.lower().split())]
  found = found or [key for key in chips.CHIPS if part in key.lower()]
  if len(found) != 1:
    raise ConfigError(
      f"chip={name}: must name one of {', '.join(chips.CHIPS)}; "
      + (f"{' or '.join(found)}?" if found else "add its row to lm/devices/chips.py")
    )
  if mfu is None:
    mfu = published.utilisation(found[0], n_params)
  if not 0 < mfu <= 1:
    raise ConfigError(f"mfu={mfu}: must be in (0, 1]; try 0.4")
  chip = chips.CHIPS[found[0]]
  rate = mfu * getattr(chip, dtype)
  return Speed(
    f"{found[0]} at {mfu:.0%} MFU", (1.0,), (rate,), 30.0, 30.0, chip.price, chip.hbm, each=True
  )


def read_mfu(text: str | None) -> float | None:
  """A utilisation from text, None where there is none; ConfigError where it is no number."""
  if text is None:
    return None
  try:
    return float(text)
  except ValueError:
    raise ConfigError(f"mfu={text}: must be a number in (0, 1]; try 0.4") from None


def measured(members: Sequence[Member], slot: slots.Slot, again: bool = False) -> Speed | None:
  """The speed of this machine, probed at the smallest and the largest program if it is not known
  there, or `again`.

  None where even the smallest is too large to be probed.
  """
  mine = {} if again else _known(members[0], slot)
  ranked = sorted(members, key=lambda m: step_flops(m.cfg))
  asked = []
  for member in (ranked[0], *ranked[1:][-1:]):
    batch = {"train.batch_size": member.cfg.train.batch_size}  # which a rule may have set
    member = resolve_run(_shortened(member.run, batch), member.workdir.parent)
    program = program_of(member)
    if program not in mine:
      probe = _measure(member, slot, mine)
      if probe is None:
        break
      mine = {**mine, program: probe}
    asked.append(mine[program])
  if not mine:
    return None
  return _speed(_where(slot), mine, asked or mine.values())


def told(runs: Sequence[Run], folder: pathlib.Path, slot_of: Callable) -> tuple[Run, ...]:
  """The runs, those with a budget in seconds told the speed that it counts with.

  It is that which a run was begun with, or that of a probe of its program, made here if there was none.

  Args:
    runs: of an experiment.
    folder: of their run directories.
    slot_of: short members -> the share of this machine that a run gets.
  """
  cfgs = {run.name: asked_config(run) for run in runs}
  wanting = [run for run in runs if speed.is_missing([cfgs[run.name]])]
  if not wanting:
    return tuple(runs)
  speeds = {run.name: speed.of_begun(folder / run.name) for run in wanting}
  short = {
    run.name: resolve_run(_shortened(run), folder) for run in wanting if not speeds[run.name]
  }
  if short:
    slot = slot_of(list(short.values()))
    for name, member in short.items():
      known = _known(member, slot)
      found = known.get(program_of(member)) or _measure(member, slot, known)
      if found is None:
        raise ConfigError(
          f"run {name}: train.seconds={cfgs[name].train.seconds:g}: {PROBE_STEPS} steps take over "
          f"{PROBE_SECONDS:.0f} s here; set train.tokens_per_sec"
        )
      per_token = run_flops_per_token(member.cfg, "exact")
      speeds[name] = round(found["flops_per_sec"] / per_token, 1)
  more = lambda run: {**run.overrides, "train.tokens_per_sec": speeds[run.name]}
  return tuple(
    dataclasses.replace(run, overrides=more(run)) if run.name in speeds else run for run in runs
  )


def _shortened(run: Run, more: Mapping[str, object] | None = None) -> Run:
  """The run with a budget of a probe, and `more` settings."""
  return dataclasses.replace(run, overrides={**run.overrides, **SHORT, **(more or {})})


def remembered(member: Member, slot: slots.Slot) -> Speed | None:
  """The speed of this machine as probes found it earlier; None where there were none."""
  mine = _known(member, slot)
  return _speed(_where(slot), mine, mine.values()) if mine else None


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


def _known(member: Member, slot: slots.Slot) -> dict[str, Mapping[str, float]]:
  """{program: its probe} of such a share of this machine."""
  known = _remembered(_file(member))
  return known.get(_where(slot), {}) if known else {}


def _measure(
  member: Member, slot: slots.Slot, mine: Mapping[str, Mapping[str, float]]
) -> Mapping[str, float] | None:
  """A probe of a run's program, remembered beside those of `mine`; None if it takes too long."""
  here, file = _where(slot), _file(member)
  print(f"measuring speed: {PROBE_STEPS} steps of {member.name} on {here}", file=sys.stderr)
  probe = _probe(member, slot)
  if probe is not None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {**_remembered(file), here: {**mine, program_of(member): probe}})
  return probe


def _remembered(file: pathlib.Path) -> dict[str, dict[str, Mapping[str, float]]]:
  """{share of this machine: {program: its probe}}; {} of a file that is not there, or damaged."""
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError):
    return {}
  return found if isinstance(found, dict) else {}


def _file(member: Member) -> pathlib.Path:
  return pathlib.Path(member.cfg.data.cache_dir).expanduser() / "speed.json"


def _where(slot: slots.Slot) -> str:
  devices = slots.find_devices()
  if devices.platform != "cpu":
    return devices.kind
  cores = len(slot.cpus) if slot.cpus else host.cores()
  return f"{_cpu_name()}, {number_of(cores, 'core')}"


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

  It is run twice: the second process finds the program compiled, and its speed is what counts. It takes
  more steps where they are short.
  """
  first = _probe_once(member, slot, PROBE_STEPS)
  if first is None:
    return None
  step = first["flops_per_step"] / first["flops_per_sec"]
  steps = min(max(PROBE_STEPS, round(LONG_PROBE / step)), MOST_STEPS)
  again = _probe_once(member, slot, steps)
  if not again:
    return None
  return {**again, "compiling": max(first["overhead"] - again["overhead"], 0.0)}


def _probe_once(member: Member, slot: slots.Slot, steps: int) -> Mapping[str, float] | None:
  """FLOP/s of one short run, and the seconds of it that were not training or evaluation."""
  settings = {
    **SHORT, "train.steps": steps, "log.every_steps": steps // 4, "eval.every_steps": steps,
    "sample.tokens": 0, "log.wandb": "disabled", "optim.peak_lr": 0.0,  # cannot diverge
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
  spent = steps * per_step / per_sec + evaluated
  return {"flops_per_step": per_step, "flops_per_sec": per_sec, "overhead": max(wall - spent, 0.0)}
