"""`python -m experiments race`: plans, trains and judges recipes on one ladder of budgets."""

import argparse
import math
import pathlib
import sys
from typing import Any

from experiments.commands import running
from experiments.commands.printing import print_json, print_results
from experiments.commands.which import check_root, read_race, rows_of, save_race
from experiments.ledger import fits
from experiments.ledger import ledger as ledgers
from experiments.race import judge, power, recipes
from experiments.race.judge import FLOPS, pick_baseline
from experiments.sweep import sweep
from experiments.sweep.search import check_name
from lm.config.errors import ConfigError, check_choice, check_within

SEEDS = 3  # where a new race does not say
JUDGED = {  # how a race is judged where neither the command line nor its earlier words say
  "baseline": None, "at": [], "pin": None, "flops": "flops", "target": None, "noise": None,
}  # fmt: skip
NOT_OF_LEDGERS = ("recipes", "budgets", "rung", "seeds", "save_as", "plan", "see", "noise_from")
# What `plan` and `train` read of options that a race has no use for.
UNUSED = {
  "config": None, "scale": None, "set": [], "grid": [], "random": [], "halving": None, "seed": 0,
  "only": [], "optuna": [], "dry_run": False, "branch": False, "detach": False, "wandb": False,
  "design": None,
}  # fmt: skip


def race(options) -> int:
  if options.ledger:
    for key in NOT_OF_LEDGERS:
      if getattr(options, key):
        raise ConfigError(
          f"ledger={options.ledger}: is judged as it is, and nothing is trained; leave out {key}"
        )
    return _judge(options, _settings(options, {}), ledgers.load_ledger(options.ledger), 0)
  if options.see is not None:
    check_within("see", options.see, "(0, inf)", "0.01")
  name, spec = _described(options)
  settings = spec["settings"]
  asked = argparse.Namespace(**{**UNUSED, **vars(options), "name": name})
  experiment = running.timed(asked, recipes.from_words(spec, name))
  named = [recipes.read_recipe(text).name for text in spec["recipes"]]
  folder = pathlib.Path(options.root) / name
  baseline = pick_baseline(named, settings["baseline"])
  largest = _check_ladder(experiment, folder)
  own = rows_of(experiment, options.root)
  if not options.plan and len(own.done()) == len(experiment.runs):
    _save(options, folder, spec)
    return _judge(options, settings, own, 0)
  other = None
  if options.noise_from:
    other = ledgers.read_ledger(options.noise_from, curves=False, option="noise_from")
  noise = power.known_noise(
    settings["noise"], own, baseline, other, str(options.noise_from), largest
  )
  said, refused = power.words(noise, spec["seeds"], options.see)
  if options.plan:
    return running.show_plan(asked, experiment, said, refused)
  for line in said:
    print(line, file=sys.stderr)
  if refused and not options.force:
    raise ConfigError(f"{refused[0]}; or run it all the same with --force")
  check_root(asked, experiment)
  _save(options, folder, spec)
  code = running.train(asked, experiment, quiet=True)
  from experiments.launch import backends

  if backends.find(options.on)[0].remote:  # an engine has the runs now
    return code
  rows = rows_of(experiment, options.root)
  for row in rows if code else ():
    if row["status"] != "done":
      print(f"{row['status']} {row['name']}: {row['reason'] or 'not trained'}", file=sys.stderr)
  try:
    return _judge(options, settings, rows, code)
  except ConfigError as error:
    if not code:
      raise
    print(error, file=sys.stderr)  # that runs failed or were interrupted comes first
    return code


def _save(options, folder: pathlib.Path, spec: dict) -> None:
  """Writes the words of the race, so that its name stands for it; not into a bucket."""
  if "://" not in options.root:
    save_race(folder, spec)


def _described(options) -> tuple[str, dict]:
  """(name, words) of the race that is described, or was saved under the one name that is given."""
  words = options.recipes
  found = read_race(pathlib.Path(options.root) / words[0]) if len(words) == 1 else None
  if found is None and len(words) == 1 and not (options.budgets or options.rung):
    raise ConfigError(
      f"race={words[0]}: no race of that name in {options.root}; name two recipes and a ladder"
    )
  name = options.save_as or "race"
  check_name(name)
  if found is None:
    seeds = SEEDS if options.seeds is None else options.seeds
    settings = _settings(options, {})
    return name, {
      "recipes": words, "budgets": options.budgets, "rungs": options.rung, "seeds": seeds,
      "settings": settings,
    }  # fmt: skip
  if options.save_as not in (None, words[0]):
    raise ConfigError(f"save_as={name}: {words[0]} has its name; leave --save_as out")
  seeds = found["seeds"] if options.seeds is None else options.seeds
  if 1 <= seeds < found["seeds"]:
    raise ConfigError(
      f"seeds={seeds}: {words[0]} has {found['seeds']} already; use as many or more"
    )
  ladder = {}
  if options.budgets or options.rung:
    ladder = {"budgets": options.budgets, "rungs": options.rung}
  settings = _settings(options, found["settings"])
  return words[0], {**found, **ladder, "seeds": seeds, "settings": settings}


def _check_ladder(experiment: sweep.Experiment, folder: pathlib.Path) -> tuple[float, float]:
  """(parameters, tokens) of the run with most compute.

  ConfigError where two budgets of a recipe are one, or recipes are evaluated on different tokens.
  """
  from experiments.quote import cost

  first_seed = [run for run in experiment.runs if run.name.endswith(",seed=0")]
  rows: list[dict[str, Any]] = cost.quote(sweep.resolve_runs(first_seed, folder), None)
  seen: dict[tuple[str, float], str] = {}
  for row in rows:
    key = row["name"].partition("@")[0], row["flops_exact"]
    if key in seen:
      first, second = (name.partition(",")[0] for name in (seen[key], row["name"]))
      raise ConfigError(
        f"budgets=...: {first} and {second} are both of {key[1]:.3g} FLOPs; let every budget of the "
        "ladder have compute of its own, as train.steps=100,200,400"
      )
    seen[key] = row["name"]
    for asked in cost.EVAL_KEYS:
      if row[asked] != rows[0][asked]:
        raise ConfigError(
          f"{asked}={row[asked]}: {row['name']} is evaluated on other tokens than {rows[0]['name']} "
          f"({rows[0][asked]}), so losses do not compare; use one"
        )
  top = max(rows, key=lambda row: row["flops_exact"])
  return float(top["n_params"]), float(top["n_tokens"])


def _settings(options, earlier: dict) -> dict[str, object]:
  """How the race is judged: as this command line says, else as its earlier words; None takes one back."""
  said = {key: getattr(options, key) for key in JUDGED if hasattr(options, key)}
  if isinstance(said.get("at"), str):
    said["at"] = [fits.positive("at", text) for text in said["at"].split(",")]
  found: dict[str, Any] = {
    **JUDGED,
    **earlier,
    **{k: JUDGED[k] if v is None else v for k, v in said.items()},
  }
  check_choice("flops", found["flops"], FLOPS)
  for key in ("pin", "target"):
    if found[key] is not None and not 0 <= found[key] < math.inf:
      raise ConfigError(f"{key}={found[key]}: must be a loss, finite and not below 0; try 2.0")
  if found["noise"] is not None:
    check_within("noise", found["noise"], "(0, inf)", "0.01")
  return found


def _judge(options, settings: dict, rows: ledgers.Ledger, code: int) -> int:
  found = judge(rows, **settings)
  if options.json:
    print_json(found)
  else:
    print_results(found.results())
  return code
