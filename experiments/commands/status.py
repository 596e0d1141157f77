"""`python -m experiments status`: the ledger of runs, filtered, grouped, exported."""

import sys

from experiments.commands.printing import print_json, print_runs
from experiments.commands.which import collect, folder_of, select
from experiments.ledger import ledger as ledgers
from experiments.report import tables
from experiments.sweep import sweep
from lm.config.errors import ConfigError, number_of


def status(options) -> None:
  _check_status(options)
  everything = _standing(options, collect(options))
  rows = everything.where(*options.where)
  if options.sort:
    rows = rows.sort(options.sort, options.reverse)
  if options.export:
    ledgers.export(rows, options.export)
    print(f"{number_of(len(rows), 'run')} written to {options.export}", file=sys.stderr)
  if options.noise:
    from experiments.ledger import compare as comparing

    facts = comparing.noise_facts(list(rows.done()))
    if facts["seeds"] is None:
      raise ConfigError("noise=True: no setting has several seeds that are done; train two of one")
    if options.json:
      print_json(facts)
    else:
      tables.show([{"what": k, "value": v} for k, v in facts.items()], ("what", "value"))
    return
  if options.group_by:
    keys = _split(options.group_by)
    grouped = rows.done().summary(*keys, value=options.value)
    if options.json:
      print_json(grouped)
    else:
      tables.show(grouped, [*keys, "n", "mean", "std", "min", "best"])
    return
  if options.json:
    print_json([{k: v for k, v in row.items() if k != "curve"} for row in rows])
    return
  columns = _split(options.columns) if options.columns else None
  for column in columns or ():
    rows.column(column, "columns")
  if len(rows):
    print_runs(list(rows), columns)
  else:
    print(
      f"none of {number_of(len(everything), 'run')}"
      + "".join(f" --where {w!r}" for w in options.where)
    )
  for mismatch in rows.mismatches():
    print(f"warning: {mismatch}")


def _check_status(options) -> None:
  """ConfigError for an option of `status` that has no effect with the other options."""
  shown = "group_by" if options.group_by else "noise"
  for key, needs in (("value", "group_by"), ("reverse", "sort")):
    if getattr(options, key) and not getattr(options, needs):
      raise ConfigError(f"{key}={getattr(options, key)}: needs --{needs} KEY; add it")
  for key in ("columns", "sort", "noise") if options.group_by else ("columns", "sort"):
    if getattr(options, key) and getattr(options, shown):
      raise ConfigError(
        f"{key}={getattr(options, key)}: is not of --{shown}, which has its own table; leave one out"
      )


def _split(keys: str) -> list[str]:
  return [key.strip() for key in keys.split(",") if key.strip()]


def _standing(options, rows: ledgers.Ledger) -> ledgers.Ledger:
  """The rows, with how the jobs stand that are at work somewhere."""
  from experiments.launch import backends, cloud, standing
  from experiments.launch.jobs import Asked, Ticket

  if options.ledger:
    return rows
  experiment = select(options)
  folder, named = f"{options.root.rstrip('/')}/{experiment.name}", None
  if options.on:
    row, _ = backends.find(options.on)
    if row.remote:
      members = {
        m.name: m for m in sweep.resolve_runs(experiment.runs, folder_of(options, experiment))
      }
      asked = Asked(experiment.name, folder)
      named = lambda job: (
        Ticket(options.on, cloud.job_name(asked, [members[job["name"]]]), "", 0.0)
        if job["name"] in members
        else None
      )
  found, silent = standing.look(rows.rows, folder, named)
  for sentence in silent:
    print(f"warning: {sentence}", file=sys.stderr)
  return ledgers.Ledger(tuple(found))
