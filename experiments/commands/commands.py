"""The commands of `python -m experiments` that read: list, fit, report, compare, show and board."""

import itertools
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from experiments.commands.printing import print_json, print_path, print_results
from experiments.commands.which import (
  collect,
  folder_of,
  select_begun,
)
from experiments.ledger import ledger as ledgers
from experiments.report import tables
from experiments.report.claims import verdicts
from experiments.sweep import described, sweep
from lm.config.command_line import check_page
from lm.config.errors import ConfigError, number_of
from lm.runs import bucket


def list_(options) -> None:
  found = sweep.find_experiments()
  if options.json:
    print_json(found)
    return
  tables.show([{"name": n, "question": q} for n, q in found.items()], ("name", "question"))


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
    columns = ("what", "published", "source", "ours", "verdict", "why")
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
  command = described.command(folder / "sweep.json")
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
      f"where={options.where[0]}: none of {number_of(len(everything), 'run')} meets it; widen it"
    )
  return rows


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
    count = number_of(len(rows), "run") if rows else "no run"
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
  if not len(rows):
    raise ConfigError(
      f"root={options.root}: holds no run yet; name a folder of runs or a ledger (.jsonl)"
    )
  with bucket.written("out", options.out) as path:
    boards.write_board(rows, str(path))
  print_json({"board": options.out}) if options.json else print(options.out)


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
