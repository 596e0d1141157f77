"""What a run will cost, before it is paid for: counts, budget, bytes and time, by arithmetic.

With a compiled step beside it (lm.plan.compiled), also what XLA makes of it on the devices.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from lm.config.errors import ConfigError, number_of
from lm.config.schema import Config
from lm.cost.flops import SHOWN, run_flops_per_token
from lm.cost.memory import memory_bytes
from lm.cost.parameters import ParamCounts, run_counts
from lm.data import curriculum
from lm.devices import chips, instructions
from lm.optim.chain import decays_hidden
from lm.setup.resolve import kind_of, tokens_per_step
from lm.setup.rules import words
from lm.training.step import multipliers_of

ROWS = 12  # collectives shown; --json lists all


def check_options(options: argparse.Namespace) -> None:
  """ConfigError where options of a plan come without --plan, or with runs that are stacked."""
  for name in ("topology", "compile", "fit"):
    value = getattr(options, name)
    if value and not options.plan:
      raise ConfigError(f"{name}={value}: belongs to a plan; add --plan")
    if value and options.stack:
      raise ConfigError(f"{name}={value}: plans one run, not a stack; use --config")
  if options.json and not (options.plan or options.print_config):
    raise ConfigError("json=True: is of --plan and --print_config; a run's record is metrics.jsonl")


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a resolved config will cost.

  Attributes:
    parameters: of everything that is trained.
    unit: what budgets count: "tokens", or what the kind of batch says.
    tokens: units of the whole run; tokens_per_step of one step; padding is none.
    flops_per_token, flops: {convention: FLOPs} of one unit, of the run.
    bytes: {parameters, gradients, optimizer, activations} on each device.
    peak_flops: FLOP/s of all devices; None where unknown.
    corpus_tokens, epochs: units of one epoch, and how often the run sees them; None without the data.
    decay_steps, decay_epochs: timescale of weight decay at the peak, 1 / (share that a hidden matrix loses a
      step); None without decay, or without the data.
    emulated: what to know of model.dtype on this CPU; None where it multiplies such numbers in hardware.
    row_lengths: [(tokens of a row, the last step with them)] where rows grow; None where they do not.
    rules: what the config's rule set, in words; None without one.
    seconds, tokens_per_sec: the budget in seconds and the speed it counts with; None where it is another.
    compiled: what XLA makes of the step (lm.plan.compiled.examine); None if it was not compiled.
  """

  parameters: ParamCounts
  unit: str
  steps: int
  tokens: int
  tokens_per_step: float
  tokens_per_param: float
  flops_per_token: Mapping[str, float]
  flops: Mapping[str, float]
  bytes: Mapping[str, float]
  devices: int
  device: str
  mesh: Mapping[str, int]
  peak_flops: float | None
  corpus_tokens: int | None
  epochs: float | None
  decay_steps: float | None = None
  decay_epochs: float | None = None
  emulated: str | None = None
  row_lengths: Sequence[tuple[int, int]] | None = None
  rules: str | None = None
  seconds: float | None = None
  tokens_per_sec: float | None = None
  compiled: Mapping[str, Any] | None = None

  def to_dict(self) -> dict[str, Any]:
    """Plain numbers, as run.json and --json hold them."""
    found = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
    found["parameters"] = self.parameters._asdict()
    off = [field.name for field in dataclasses.fields(self) if field.default is None]
    return {name: value for name, value in found.items() if value is not None or name not in off}


def make_plan(cfg: Config, data: Any = None, devices: Sequence[jax.Device] | None = None) -> Plan:
  """The plan of a resolved config.

  Args:
    cfg: resolved config.
    data: opened, for the tokens there are; None if it has not been.
    devices: those that the run is planned for; the ones at hand if None.
  """
  per_token = {c: run_flops_per_token(cfg, c) for c in SHOWN}
  devices = jax.devices() if devices is None else devices
  kind, n_devices = devices[0].device_kind, len(devices)
  tokens = cfg.train.tokens
  assert tokens is not None  # of a resolved config
  units = None if data is None else min(data.n_units, cfg.data.unique_tokens or data.n_units)
  peak = chips.peak_flops(kind, cfg.model.dtype)
  decay = _decay_steps(cfg)
  return Plan(
    parameters=run_counts(cfg),
    unit=kind_of(cfg).unit,
    steps=cfg.train.steps,
    tokens=tokens,
    tokens_per_step=tokens_per_step(cfg),
    tokens_per_param=cfg.train.tokens_per_param,
    flops_per_token=per_token,
    flops={c: f * tokens for c, f in per_token.items()},
    bytes=memory_bytes(cfg),
    devices=n_devices,
    device=kind,
    mesh=dict(vars(cfg.mesh)),
    peak_flops=peak and peak * n_devices,
    corpus_tokens=units,
    epochs=None if units is None else tokens / units,
    decay_steps=decay,
    decay_epochs=None if decay is None or units is None else decay * tokens_per_step(cfg) / units,
    emulated=_emulated(cfg, devices[0]),
    row_lengths=curriculum.stages(cfg) if cfg.data.length_curriculum else None,
    rules=words(cfg),
    seconds=cfg.train.seconds,
    tokens_per_sec=cfg.train.tokens_per_sec,
  )


def _decay_steps(cfg: Config) -> float | None:
  """1 / (share of a hidden matrix that decay takes in an update at the peak of the schedule)."""
  share = cfg.optim.weight_decay if decays_hidden(cfg.optim) else 0.0
  if cfg.optim.decay_coupling == "coupled":
    share *= cfg.optim.peak_lr * multipliers_of(cfg).hidden_decay
  return 1 / share if share else None


def _emulated(cfg: Config, device: jax.Device) -> str | None:
  """What to know of model.dtype on this host's CPU; None where its numbers are multiplied in hardware."""
  if cfg.model.dtype != "bfloat16" or instructions.multiplies_bfloat16():
    return None
  if device.device_kind != "cpu":
    return None
  return (
    f"bfloat16 is emulated on this CPU ({instructions.vector_set()}): slower than "
    "--config.model.dtype=float32"
  )


def show(plan: Plan) -> str:
  """The plan as a few lines of text."""
  counts, unit = plan.parameters, plan.unit
  lines = [
    f"parameters  {counts.total:,} ({counts.non_embedding:,} non-embedding)",
    f"budget      {number_of(plan.steps, 'step', ',')}, {plan.tokens:,} {unit}, "
    f"{plan.tokens_per_param:.3g} a parameter"
    + (f", {plan.seconds:g} s at {plan.tokens_per_sec:,.0f} {unit}/s" if plan.seconds else ""),
    "flops       " + ", ".join(f"{v:.3e} ({k})" for k, v in plan.flops.items()),
    "memory      " + ", ".join(f"{_bytes(v)} {k}" for k, v in plan.bytes.items()) + " a device",
    f"devices     {plan.devices} x {plan.device}, " + show_mesh(plan.mesh),
  ]
  if plan.decay_steps is not None:
    epochs = "" if plan.decay_epochs is None else f", {plan.decay_epochs:.3g} epochs"
    lines.append(f"decay       over {plan.decay_steps:,.0f} steps at the peak rate{epochs}")
  if plan.emulated:
    lines.append(f"speed       {plan.emulated}")
  if plan.row_lengths:
    grown = ", ".join(f"{length:,} up to step {last:,}" for length, last in plan.row_lengths)
    lines.append(f"row length  {grown}")
  if plan.rules:
    lines.append(f"rules       {plan.rules}")
  if plan.corpus_tokens:
    lines.append(f"corpus      {plan.corpus_tokens:,} {unit}, {plan.epochs:.2f} epochs")
  if plan.compiled is not None:
    lines += ["", *_compiled_lines(plan.compiled)]
  return "\n".join(lines)


def show_mesh(mesh: Mapping[str, int]) -> str:
  """The axes of a mesh that are longer than one."""
  return " x ".join(f"{k}={v}" for k, v in mesh.items() if v != 1) or "one device"


def _compiled_lines(found: Mapping[str, object]) -> list[str]:
  sizes = {k: v for k, v in found["bytes"].items() if v is not None}
  lines = [
    f"compiled    in {found['compile_seconds']:.0f} s, traced in {found['lower_seconds']:.0f} s",
    "a chip      " + ", ".join(f"{_bytes(v)} {k}" for k, v in sizes.items()),
  ]
  lines += [f"warning     {line}" for line in found["warnings"]]
  room = f" of {_bytes(found['hbm'])}" if found["hbm"] else ""
  if found["error"]:
    return [*lines, f"            does not fit: {found['error']}"]
  verdict = {True: ": fits", False: ": does not fit", None: ""}[found["fits"]]
  lines[1] += f" = {_bytes(sum(sizes.values()))}{room}{verdict}"
  flops = found["flops"]
  ours = ", ".join(f"{flops['ours'][c]:.3e} ({c})" for c in SHOWN)
  lines += [
    f"step flops  {ours}; XLA runs {flops['xla']:.3e}, {flops['matmul']:.3e} in matrix products",
    f"moved       {_bytes(found['bytes_moved'])} between memory and each chip a step",
  ]
  if found["unknown_loops"]:
    lines.append(f"            loops of unknown length, counted once: {found['unknown_loops']}")
  if found["collectives"]:
    lines += ["", *_collective_lines(found["collectives"])]
  if found["roofline"]:
    lines += ["", *_time_lines(found)]
  return lines


def _collective_lines(rows: Sequence[Mapping[str, object]]) -> list[str]:
  table = [("collective", "array", "mesh axes", "runs", "bytes", "sent a chip", "ms", "")]
  for row in rows[:ROWS]:
    time = "?" if row["seconds"] is None else f"{1000 * row['seconds']:.2f}"
    table.append((
      row["kind"], row["what"], ",".join(row["axes"]), f"{row['count']:,.0f}",
      _bytes(row["bytes"]), _bytes(row["sent"]), time, "hidden" if row["hidden"] else "",
    ))  # fmt: skip
  widths = [max(len(line[i]) for line in table) for i in range(8)]
  right = (3, 4, 5, 6)
  pad = lambda i, cell: cell.rjust(widths[i]) if i in right else cell.ljust(widths[i])
  lines = ["  ".join(pad(i, cell) for i, cell in enumerate(line)).rstrip() for line in table]
  if len(rows) > ROWS:
    rest = sum(row["sent"] for row in rows[ROWS:])
    lines.append(f"and {number_of(len(rows) - ROWS, 'smaller one')}, {_bytes(rest)} sent")
  return lines


def _time_lines(found: Mapping[str, object]) -> list[str]:
  t = {name: f"{1000 * seconds:,.1f}" for name, seconds in found["roofline"].items()}
  dollars = found["dollars"]
  price = "no list price is published" if dollars is None else f"{dollars:,.0f} USD at list price"
  reached, bound, longer = found["published_mfu"], found["mfu"], []
  if isinstance(reached, float) and isinstance(bound, float) and bound > reached:
    factor = bound / reached
    longer = [f"            published runs there reach {reached:.0%}: {factor:.2f} times as long"]
  return [
    f"step        {t['step']} ms at the roofline: matrix products {t['compute']}, memory {t['memory']}, "
    f"the longer of them op by op {t['chip']}; network {t['network']}, not hidden {t['exposed']}",
    f"            {t['serial']} ms if nothing overlapped",
    f"speed       {found['tokens_per_sec']:,.0f} tokens/s, MFU {found['mfu']:.1%} (exact)",
    *longer,
    f"run         {found['hours']:,.1f} hours, {price}",
  ]


def _bytes(n: float) -> str:
  for unit in ("B", "kB", "MB", "GB"):
    if n < 1000:
      return f"{n:.3g} {unit}"
    n /= 1000
  return f"{n:.3g} TB"
