"""`python -m experiments plan` and `run`: what a sweep will cost, and its training."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

from experiments.commands.printing import print_json, print_runs
from experiments.commands.which import (
  check_root,
  folder_here,
  folder_of,
  rows_of,
  save_sweep,
  select,
  select_begun,
  words_for,
)
from experiments.ledger.rows import read_row
from experiments.report import tables
from experiments.sweep import described, sweep
from experiments.sweep import halving as halvings
from lm.addresses import is_address
from lm.config.errors import ConfigError, check_within, number_of
from lm.cost.parameters import run_counts
from lm.runs import rundir

PLAN_COLUMNS = {
  "name": "run", "n_params": "params", "n_params_non_embedding": "non-emb", "n_tokens": "tokens",
  "tokens_per_param": "tok/param", "flops_6ND": "6ND", "flops_6ND_nonembedding": "6ND non-emb",
  "flops_exact": "exact", "bytes": "memory", "seconds": "time", "dollars": "USD", "epochs": "epochs",
  "batch_tokens": "batch", "lr": "lr",
}  # fmt: skip


def plan(options) -> int:
  return _design(options) if options.design is not None else show_plan(options, select(options))


def show_plan(
  options,
  experiment: sweep.Experiment,
  notes: Sequence[str] = (),
  refused: Sequence[str] = (),
) -> int:
  """Prints the plan of an experiment; `notes` and `refused` are what else is to be said of it."""
  from experiments.launch import slots as places
  from experiments.launch import throughput
  from experiments.quote import cost as plans

  experiment = timed(options, experiment)
  members = sweep.resolve_runs(experiment.runs, folder_of(options, experiment))
  sweep.check_distinct(members)
  if options.branch:
    branches = _branches(experiment, members)
    members, notes = branches.members, [*notes, branches.words()]
  slots = [places.Slot({}, None)]
  _check_speed(options)
  if options.chip:
    n_params = max(run_counts(m.cfg).total for m in members)
    dtype = members[0].cfg.model.dtype
    speed = throughput.from_chip(options.chip, options.mfu, dtype, n_params)
  elif options.probe == "never":
    speed = None
  else:
    slots = _backend(options, experiment, members).slots
    speed = throughput.measured(members, slots[0], options.probe == "again")
  rows = plans.quote(members, speed)
  total = plans.totals(rows, len(slots))
  checked = plans.check_design(experiment, rows)
  refusals = [*refused, *(why for severity, why in checked if severity == "refuse")]
  warnings = plans.warnings(experiment, rows, speed)
  warnings += [why for severity, why in checked if severity == "warn"]
  if options.json:
    said = {"notes": list(notes)} if notes else {}
    print_json({"runs": rows, "total": total, **said, "warnings": warnings, "refusals": refusals})
    return 2 if refusals else 0
  columns = [k for k in PLAN_COLUMNS if any(row.get(k) is not None for row in rows)]
  tables.show(rows, {k: PLAN_COLUMNS[k] for k in columns}, experiment.question)
  rungs = experiment.halving and halvings.Rungs(members, experiment.halving)
  print(_total_line(total, speed, rungs))
  for note in notes:
    print(note)
  for warning in warnings:
    print(f"warning: {warning}")
  for refusal in refusals:
    print(f"refused: {refusal}")
  return 2 if refusals else 0


def _check_speed(options) -> None:
  """ConfigError for an option of `plan` that is out of range or has no effect with the other options."""
  from experiments.launch import backends

  backends.find(options.on, options.with_)
  _check_workers(options)
  if options.mfu is not None and not options.chip:
    raise ConfigError(f"mfu={options.mfu}: is a chip's; name it with --chip, for example v5e")


def _check_workers(options) -> None:
  for key in ("workers", "stack"):
    if (value := getattr(options, key)) is not None:
      check_within(key, value, "[1, 4096]", "4, or leave it out to use what fits")


def run(options) -> int:
  return train(options, select(options))


def train(options, experiment: sweep.Experiment, quiet: bool = False) -> int:
  """Trains what an experiment lacks, prints its rows unless `quiet`, and returns the exit code."""
  from experiments.launch import loop
  from experiments.report import live

  _check_workers(options)
  check_root(options, experiment)
  folder, there = folder_here(options, experiment), f"{options.root.rstrip('/')}/{experiment.name}"
  where = lambda member: f"{there}/{member.name}" if is_address(there) else str(member.workdir)
  experiment = timed(options, experiment)
  members = sweep.resolve_runs(experiment.runs, folder)
  sweep.check_distinct(members)
  for member in members:
    sweep.open_data(member.cfg)  # tokenised once, before many workers ask for it
  if experiment.law and not options.force:
    _refuse_unsound(experiment, members)
  backend = _backend(options, experiment, members)
  if _is_remote(options):
    return _run_remote(options, experiment, members, backend)
  if options.detach and backend.stays:
    raise ConfigError(f"detach=True: runs of --on {options.on} end with this command; leave it out")
  wanted, begin = lambda rows: members, lambda member: None
  if experiment.halving:
    rungs = halvings.Rungs(members, experiment.halving)
    wanted, begin = rungs.wanted, rungs.begin
  if options.branch:
    branches = _branches(experiment, members)
    members, wanted, begin = branches.members, branches.wanted, branches.begin
  if options.optuna:
    if experiment.halving or options.branch:
      other = "halved" if experiment.halving else "branched"
      raise ConfigError(f"optuna=...: cannot be {other} too; leave one of the two out")
    from experiments.launch.optuna_study import Study

    at_once = min(backend.room(0), options.workers or 4)
    search = Study(experiment, options.optuna, folder, at_once, options.seed, options.dry_run)
    wanted = search.wanted
  if options.dry_run:
    begun = read_row if is_address(there) else None
    done = lambda m: (
      begun(where(m))["status"] == "done" if begun else rundir.is_done(m.workdir, m.cfg)
    )
    print(backend.dry_run([m for m in wanted({}) if not done(m)]))
    return 0
  if options.config:
    save_sweep(there, options)
  with live.Watch(experiment.name, follows=not is_address(there)) as watch:
    rows, stopped = loop.launch(
      wanted,
      backend,
      watch,
      options.retry,
      begin,
      wait=not options.detach,
      predict=_prediction(backend, members),
      where=where,
    )
  # An agent's: its W&B run is the run's, not the report's.
  in_trial = "WANDB_SWEEP_ID" in os.environ
  if options.wandb and not in_trial and any(row["status"] == "done" for row in rows.values()):
    from experiments.report import mirror
    from experiments.report import report as reports

    if options.optuna:
      experiment = select_begun(options)
    ledger = rows_of(experiment, options.root)
    command = described.command(folder / "sweep.json")
    page = reports.write_report(experiment, ledger, str(folder / "report.html"), command=command)
    mirror.mirror_report(experiment, ledger, page)
  if quiet:
    pass
  elif options.json:
    print_json({"runs": list(rows.values()), "interrupted": stopped > 0})
  else:
    print_runs(list(rows.values()))
    print(_advice(options, experiment, rows))
  if stopped:
    return 128 + stopped
  well = ("done", "queued", "running") if options.detach else ("done",)
  return int(any(row["status"] not in well for row in rows.values()))


def timed(options, experiment: sweep.Experiment) -> sweep.Experiment:
  """The experiment, its runs with a budget in seconds told the speed of this machine.

  Left as they are where they run elsewhere or are halved: they must say train.tokens_per_sec themselves.
  """
  from experiments.launch import backends, throughput

  row, _ = backends.find(options.on, options.with_)
  if row.ask is not None or experiment.halving:
    return experiment
  slot_of = lambda members: _backend(options, experiment, members).slots[0]
  runs = throughput.told(experiment.runs, folder_of(options, experiment), slot_of)
  return dataclasses.replace(experiment, runs=runs)


def _branches(experiment: sweep.Experiment, members):
  """The runs as branches of shared trunks; ConfigError with halving, which orders runs itself."""
  from experiments.sweep.branch import Branches

  if experiment.halving:
    raise ConfigError("branch=True: halving shares trunks by itself; leave one of the two out")
  return Branches(members)


def _backend(options, experiment: sweep.Experiment, members):
  """The back end that --on names, ready to take jobs; ConfigError where it cannot be used."""
  from experiments.launch import backends
  from experiments.launch.jobs import Asked

  row, words = backends.find(options.on, options.with_)
  settings = {"log.wandb": "disabled"}
  if getattr(options, "wandb", False):
    settings = {"log.wandb": "auto", "log.wandb_group": experiment.name}
  asked = Asked(
    experiment=experiment.name,
    folder=f"{options.root.rstrip('/')}/{experiment.name}",
    settings=settings,
    workers=options.workers,
    stack=options.stack,
    words=words,
    question=experiment.question,
    dry_run=getattr(options, "dry_run", False),
  )
  return row.make(asked, members)


def _prediction(backend, members):
  """Seconds a run should take, from what earlier probes of this machine found; None where unknown."""
  from experiments.launch import throughput

  speed = throughput.remembered(members[0], backend.slots[0]) if backend.stays else None
  return lambda member: speed and speed.seconds(member.cfg)


def _is_remote(options) -> bool:
  """Whether the back end keeps its runs in a bucket."""
  from experiments.launch import backends

  return backends.BACKENDS[options.on].remote


def _run_remote(options, experiment: sweep.Experiment, members, backend) -> int:
  """Submits what is missing to an engine in the cloud and returns; `status` follows it."""
  from experiments.launch import cloud

  if experiment.halving or options.optuna or options.branch:
    what = "halve" if experiment.halving else "branch" if options.branch else "search"
    raise ConfigError(
      f"on={options.on}: cannot {what}, as nobody stays to say what comes next; use --on slurm or local"
    )
  if options.dry_run:
    print(backend.dry_run(members))
    return 0
  if options.config:
    save_sweep(backend.asked.folder, options)
  rows = cloud.submit_missing(backend.asked, members, backend, options.retry)
  if options.json:
    print_json({"runs": list(rows.values())})
  else:
    print_runs(list(rows.values()))
    words = f"{words_for(options, experiment)} --on {options.on}"
    print(f"follow them with: python -m experiments status {words}")
  return int(any(row["status"] not in ("done", "queued", "running") for row in rows.values()))


def _design(options) -> int:
  from experiments.laws import design

  try:
    proposal = design.propose_design(options.design)
  except ValueError as error:
    raise ConfigError(str(error)) from error
  print_json(proposal) if options.json else print(proposal.summary())
  return 0


def _refuse_unsound(experiment: sweep.Experiment, members) -> None:
  from experiments.quote import cost as plans

  for severity, why in plans.check_design(experiment, plans.quote(members, None)):
    if severity == "refuse":
      raise ConfigError(f"law={experiment.law}: {why}; or run it all the same with --force")


def _total_line(total: Mapping, speed, rungs) -> str:
  parts = [
    number_of(total["runs"], "run"), f"{tables.count(total['n_tokens'])} tokens",
    ", ".join(f"{total[f'flops_{c}']:.3g} FLOPs ({c})" for c in ("6ND", "exact")),
    f"at most {tables.size(total['max_bytes'])} a device",
  ]  # fmt: skip
  if total["seconds"] is not None:
    workers = f" with {total['workers']} processes" if total["workers"] > 1 else ""
    parts.append(f"{tables.duration(total['elapsed'])}{workers} ({speed.where})")
  if total["dollars"] is not None:
    parts.append(f"{total['dollars']:,.2f} USD")
  if rungs:
    parts.append(rungs.words())
  return "in all: " + "; ".join(parts)


def _advice(options, experiment, rows: Mapping[str, Mapping]) -> str:
  me = f"python -m experiments {{}} {words_for(options, experiment)}"
  left = [row["status"] for row in rows.values() if row["status"] != "done"]
  going = [status for status in left if status in ("running", "queued")]
  lines = []
  if going:
    them = "it" if len(going) == 1 else "them"
    lines.append(
      f"{number_of(len(going), 'run')} at work; follow {them} with: {me.format('status')}"
    )
  if "unreadable" in left:
    lines.append(
      "damaged runs are left alone: delete their directories and run the same command again"
    )
  elif "failed" in left:
    lines.append(f"failed runs are started again by: {me.format('run')} --retry")
  elif len(left) > len(going):
    lines.append(f"{len(left) - len(going)} left; go on with: {me.format('run')}")
  if lines:
    return "\n".join(lines)
  done = "the run is" if len(rows) == 1 else f"all {len(rows)} runs are"
  return f"{done} done; next: {me.format('report')}"
