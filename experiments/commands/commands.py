"""The commands of `python -m experiments`: what each does and prints."""

import dataclasses
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.commands.which import (
  check_root,
  collect,
  folder_of,
  rows_of,
  save_sweep,
  select,
  select_begun,
  words_for,
)
from experiments.ledger import ledger as ledgers
from experiments.report import tables
from experiments.report.claims import is_estimate, verdicts
from experiments.sweep import halving as halvings
from experiments.sweep import sweep
from lm.config.command_line import check_page
from lm.config.errors import ConfigError, check_within, number_of
from lm.cost.parameters import run_counts
from lm.runs import bucket, rundir

RUN_COLUMNS = {
  "name": "run", "status": "status", "n_params": "params", "n_tokens": "tokens", "flops": "flops",
  "step": "step", "steps": "of", "predicted": "predicted", "seconds": "time",
  "predicted_dollars": "USD predicted", "dollars": "USD", "loss": "val loss", "bpb": "bits/byte",
  "tokens_per_sec": "tokens/s", "reason": "reason",
}  # fmt: skip
PLAN_COLUMNS = {
  "name": "run", "n_params": "params", "n_params_non_embedding": "non-emb", "n_tokens": "tokens",
  "tokens_per_param": "tok/param", "flops_6ND": "6ND", "flops_6ND_nonembedding": "6ND non-emb",
  "flops_exact": "exact", "bytes": "memory", "seconds": "time", "dollars": "USD", "epochs": "epochs",
  "batch_tokens": "batch", "lr": "lr",
}  # fmt: skip


# ---- Commands ------------------------------------------------------------------------------------


def list_(options) -> None:
  found = sweep.find_experiments()
  if options.json:
    print_json(found)
    return
  tables.show([{"name": n, "question": q} for n, q in found.items()], ("name", "question"))


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
  """ConfigError for an option of `plan` that is none, or would do nothing beside the others."""
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
  folder = folder_of(options, experiment)
  experiment = timed(options, experiment)
  members = sweep.resolve_runs(experiment.runs, folder)
  for member in members:
    sweep.open_data(member.cfg)  # tokenised once, before many workers ask for it
  if experiment.law and not options.force:
    _refuse_unsound(experiment, members)
  check_root(options)
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
    print(backend.dry_run([m for m in wanted({}) if not rundir.is_done(m.workdir, m.cfg)]))
    return 0
  if options.config:
    save_sweep(folder, options)
  with live.Watch(experiment.name) as watch:
    rows, interrupted = loop.launch(
      wanted,
      backend,
      watch,
      options.retry,
      begin,
      wait=not options.detach,
      predict=_prediction(backend, members),
    )
  in_trial = (
    "WANDB_SWEEP_ID" in os.environ
  )  # an agent's: its W&B run is the run's, not the report's
  if options.wandb and not in_trial and any(row["status"] == "done" for row in rows.values()):
    from experiments.report import mirror
    from experiments.report import report as reports

    if options.optuna:
      experiment = select_begun(options)
    ledger = rows_of(experiment, options.root)
    command = reports.sweep_command(folder / "sweep.json")
    page = reports.write_report(experiment, ledger, str(folder / "report.html"), command=command)
    mirror.mirror_report(experiment, ledger, page)
  if quiet:
    pass
  elif options.json:
    print_json({"runs": list(rows.values()), "interrupted": interrupted})
  else:
    print_runs(list(rows.values()))
    print(_advice(options, experiment, rows))
  if interrupted:
    return 130
  well = ("done", "queued", "running") if options.detach else ("done",)
  return int(any(row["status"] not in well for row in rows.values()))


def fit(options) -> None:
  from experiments.ledger import fits, mixture_fits, purposes

  asked, names, law = fits.settings(options), fits.column_names(options), options.law
  law = law or "chinchilla"
  mixture_fits.check(options)
  names = purposes.check(options, names)
  plain = asked if options.speed is None else {k: v for k, v in asked.items() if k != "flops"}
  if not options.mixture:
    fits.check_curves(options, asked)
  if options.mixture:
    rows = None if options.csv else _where(options).done()
    results = {"mixture": mixture_fits.fit(options, asked, rows)}
  elif options.curves:
    fixed: Any = asked.get("fixed")
    results = {"curves": fits.fit_curves(options.curves, options.predict, options.law, fixed)}
  elif options.csv:
    units = fits.units(options.unit)
    read = options.csv, names, options.where, units, options.decimal
    if options.then:
      law = fits.named(law, names)
      results = purposes.chained(options, fits.read_csv(*read, asked), law, asked)
    else:
      found = fits.fit_csv(options.csv, law, *read[1:], **plain)
      served = purposes.serve(options, found, asked)
      results = {
        "fit": found,
        **served,
        **fits.counted_otherwise(found, plain, fits.counts(options)),
      }
  else:
    experiment = select_begun(options)
    fits.refuse_of_files(options)
    rows = _where(options).done()
    if options.law or not experiment.analyse:
      found = fits.fit_ledger(rows, law, names, **plain)
      served = purposes.serve(options, found, asked)
      results = {
        "fit": found,
        **served,
        **fits.counted_otherwise(found, plain, fits.counts(options)),
      }
    else:
      fits.refuse_settings({**asked, **names}, experiment.name)
      results = _analyse(experiment, rows)
  if options.json:
    print_json(results)
    return
  print_results(results)
  if not (options.csv or options.curves or options.mixture or options.law) and experiment.claims:
    print()
    columns = ("what", "claimed", "source", "ours", "verdict", "why")
    tables.show(verdicts(experiment.claims, results), columns, "claims")


def report(options) -> None:
  from experiments.ledger import fits
  from experiments.report import foreign, mirror, paper
  from experiments.report import report as reports

  project = options.wandb if isinstance(options.wandb, str) else None
  places = {"csv": options.csv, "wandb": project, "wandb_offline": options.wandb_offline}
  foreign_ = [key for key, place in places.items() if place]
  if len(foreign_) > 1:
    raise ConfigError(
      f"{foreign_[0]}={places[foreign_[0]]}: and --{foreign_[1]}; a page is of one of them"
    )
  if options.style:
    paper.check_style(options.style)
  check_page(options.out)
  if foreign_:
    out = options.out or "report.html"
    with bucket.written("out", out) as path:
      _foreign_report(options, foreign, str(path))
    print_path(options, out)
    return
  experiment = select_begun(options)
  fits.refuse_of_tables(options)
  folder = folder_of(options, experiment)
  rows = _where(options)
  out = options.out or f"{options.root.rstrip('/')}/{experiment.name}/report.html"
  command = reports.sweep_command(folder / "sweep.json")
  with bucket.written("out", out) as path:
    reports.write_report(experiment, rows, str(path), options.style, command)
    if options.wandb:
      mirror.mirror_report(experiment, rows, path)
  print_path(options, out)


def _foreign_report(options, foreign, out: str) -> None:
  """The page on a table or on W&B runs."""
  from experiments.ledger import fits

  others = [k for k in ("name", "config", "ledger") if getattr(options, k)]
  others += ["wandb"] if options.wandb is True else []
  if others:
    raise ConfigError(
      f"{others[0]}={getattr(options, others[0])}: is of an experiment, and the page is of a "
      "table; leave it out"
    )
  asked = fits.settings(options)
  asked |= {"where": options.where, "scale": fits.units(options.unit), "style": options.style}
  asked |= {"decimal": options.decimal, "counts": fits.counts(options)}
  asked |= {"law": options.law} if options.law else {}
  names = fits.column_names(options)
  if options.csv:
    foreign.write_csv_report(options.csv, out, names, **asked)
  else:
    online = options.wandb is not None
    place = options.wandb if online else options.wandb_offline
    foreign.write_wandb_report(place, out, names, online, **asked)


def _where(options) -> ledgers.Ledger:
  """The rows of an experiment that meet --where; ConfigError where none of some does."""
  everything = collect(options)
  rows = everything.where(*options.where)
  if len(everything) and not len(rows):
    raise ConfigError(
      f"where={options.where[0]}: none of {len(everything)} runs meets it; widen it"
    )
  return rows


def print_path(options, path: str | pathlib.Path) -> None:
  print_json({"report": str(path)}) if options.json else print(path)


def compare(options) -> None:
  from experiments.ledger import compare as comparing

  roots = options.runs
  if len(roots) > 1:  # runs/NAME/* names the files there, too
    others = [r for r in roots if pathlib.Path(r).is_file() and not r.endswith(".jsonl")]
    roots = [r for r in roots if r not in others]
    for other in others:
      print(f"left out: {other} is a file, not a run directory", file=sys.stderr)
    beside = [r for r in roots if pathlib.Path(r).is_dir() and is_beside_runs(pathlib.Path(r).name)]
    roots = [r for r in roots if r not in beside]
  if options.out:
    check_page(options.out)
  found = []
  for root in roots:
    rows = ledgers.read_ledger(root, option="compare").rows
    if not rows:
      raise ConfigError(f"compare={root}: holds no run; name a run directory")
    found.append(comparing.with_paths(rows, root))
  rows = comparing.with_names(comparing.distinct(list(itertools.chain(*found))))
  result = comparing.compare(rows, options.x, options.smooth)
  if options.out:
    from experiments.report import report as reports

    print(reports.write_comparison(rows, result, options.out), file=sys.stderr)
  if options.json:
    print_json(result)
    return
  tables.show_comparison(result, options.x)


def is_beside_runs(name: str) -> bool:
  """Whether an experiment's folder has a folder of that name beside its runs."""
  return name.endswith("_figures") or name in ("stacks", "wandb", "slurm")


def show(options) -> None:
  rows = list(ledgers.read_ledger(options.run, option="run"))
  if len(rows) != 1:
    count = f"{number_of(len(rows), 'run')}" if rows else "no run"
    hint = f", for example {rows[0].get('path', rows[0]['name'])}" if rows else ""
    raise ConfigError(f"run={options.run}: holds {count}; name one run directory{hint}")
  row = {k: v for k, v in rows[0].items() if k != "curve"}
  if options.json:
    print_json(row)
    return
  tables.show([{"key": k, "value": tables.cell(k, v)} for k, v in row.items()], ("key", "value"))


def board(options) -> None:
  from experiments.report import board as boards

  if options.serve is not None:
    boards.serve(options.root, options.serve)
    return
  check_page(options.out)
  rows = ledgers.read_ledger(options.root)
  with bucket.written("out", options.out) as path:
    boards.write_board(rows, str(path))
  print_json({"board": options.out}) if options.json else print(options.out)


# ---- What the commands share ---------------------------------------------------------------------


def print_results(results: Mapping[str, object]) -> None:
  """Estimates in one table, then every other result as a table or text of its own."""
  numbers = [
    {"what": what, "value": r.value, **dict(zip(("low", "high"), r.interval or (), strict=False))}
    for what, r in results.items()
    if is_estimate(r)
  ]
  if numbers:
    tables.show(numbers, {"what": "", "value": "value", "low": "95 % low", "high": "high"})
  from experiments.ledger import fits

  for what, result in fits.flatten(results).items():
    if is_estimate(result):
      continue
    print()
    if isinstance(result, list) and result and isinstance(result[0], Mapping):
      tables.show(result, list(result[0]), what)
    elif hasattr(result, "summary"):
      print(f"{what}: {result.summary()}")
    else:
      print(f"{what}: {result}")


def _analyse(experiment: sweep.Experiment, rows: ledgers.Ledger) -> Mapping[str, object]:
  if not len(rows):
    raise ConfigError(
      f"runs=0: no run of {experiment.name} is done; "
      f"train them with python -m experiments run {experiment.name}"
    )
  try:
    return experiment.analyse(rows)
  except ValueError as error:  # too few runs, a missing column, a degenerate design
    raise ConfigError(str(error)) from error


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
  rows = cloud.submit_missing(backend.asked, members, backend, options.retry)
  if options.json:
    print_json({"runs": list(rows.values())})
  else:
    print_runs(list(rows.values()))
    words = (
      f"{words_for(options, experiment)} --on {options.on}" if options.name else "(same options)"
    )
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
    f"{number_of(total['runs'], 'run')}", f"{tables.count(total['n_tokens'])} tokens",
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


def print_runs(rows: list[Mapping], columns: list[str] | None = None) -> None:
  if columns is None:
    columns = [k for k in RUN_COLUMNS if any(row.get(k) not in (None, "") for row in rows)]
  elif "name" not in columns:
    columns = ["name", *columns]
  tables.show(rows, {k: RUN_COLUMNS.get(k, k) for k in columns})


def _advice(options, experiment, rows: Mapping[str, Mapping]) -> str:
  me = f"python -m experiments {{}} {words_for(options, experiment)}"
  left = [row["status"] for row in rows.values() if row["status"] != "done"]
  if "unreadable" in left:
    return "damaged runs are left alone: delete their directories and run the same command again"
  if "failed" in left:
    return f"failed runs are started again by: {me.format('run')} --retry"
  if left:
    return f"{len(left)} left; go on with: {me.format('run')}"
  done = "the run is" if len(rows) == 1 else f"all {len(rows)} runs are"
  return f"{done} done; next: {me.format('report')}"


def print_json(value: object) -> None:
  print(json.dumps(_as_json(value), indent=2))


def _as_json(value: object) -> object:
  """What JSON can hold: dataclasses as objects, arrays as lists, NaN and infinities as null."""
  if hasattr(value, "to_json"):
    return _as_json(value.to_json())
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return {f.name: _as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
  if isinstance(value, Mapping):
    return {str(k): _as_json(v) for k, v in value.items()}
  if hasattr(value, "tolist"):
    return _as_json(value.tolist())
  if isinstance(value, list | tuple):
    return [_as_json(v) for v in value]
  if isinstance(value, float) and (value != value or abs(value) == float("inf")):
    return None
  if value is None or isinstance(value, bool | int | float | str):
    return value
  return str(value)
