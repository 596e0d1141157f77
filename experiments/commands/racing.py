"""`python -m experiments race`: plans, trains and judges recipes on one ladder of budgets."""

import argparse
import math
import pathlib
import sys

from experiments.commands import commands
from experiments.commands.which import check_root, read_race, rows_of, save_race
from experiments.ledger import fits
from experiments.ledger import ledger as ledgers
from experiments.race import judge, power, recipes
from experiments.race.judge import FLOPS, pick_baseline
from experiments.sweep import sweep
from experiments.sweep.search import check_name
from lm.config.errors import ConfigError, check_choice, check_within
from lm.cost.parameters import run_counts

SEEDS = 3  # where a new race does not say
# What `plan` and `train` read of options that a race has no use for.
UNUSED = {
  "config": None, "scale": None, "set": [], "grid": [], "random": [], "halving": None, "seed": 0,
  "only": [], "optuna": [], "dry_run": False, "branch": False, "detach": False, "wandb": False,
  "design": None,
}  # fmt: skip


def race(options) -> int:
  if options.ledger:
    return _judge(options, _settings(options), ledgers.load_ledger(options.ledger), 0)
  if options.see is not None:
    check_within("see", options.see, "(0, inf)", "0.01")
  name, spec = _described(options)
  settings = spec["settings"]
  named = [recipes.read_recipe(text).name for text in spec["recipes"]]
  folder = pathlib.Path(options.root) / name
  asked = argparse.Namespace(**{**UNUSED, **vars(options), "name": name})
  experiment = recipes.from_words(spec, name)
  baseline = pick_baseline(named, settings["baseline"])
  own = rows_of(experiment, options.root)
  if not options.plan and len(own.done()) == len(experiment.runs):
    save_race(folder, spec)
    return _judge(options, settings, own, 0)
  other = ledgers.read_ledger(options.noise_from, curves=False) if options.noise_from else None
  size = _largest(experiment, folder) if other is not None else None
  noise = power.known_noise(settings["noise"], own, baseline, other, str(options.noise_from), size)
  said, refused = power.words(noise, spec["seeds"], options.see)
  if options.plan:
    return commands.show_plan(asked, experiment, said, refused)
  for line in said:
    print(line, file=sys.stderr)
  if refused and not options.force:
    raise ConfigError(f"{refused[0]}; or run it all the same with --force")
  check_root(options)
  save_race(folder, spec)
  code = commands.train(asked, experiment, quiet=True)
  return _judge(options, settings, rows_of(experiment, options.root), code)


def _described(options) -> tuple[str, dict]:
  """(name, words) of the race that is described, or was saved under the one name that is given."""
  words = options.recipes
  if len(words) == 1 and not (options.budgets or options.rung):
    found = read_race(pathlib.Path(options.root) / words[0])
    if found is None:
      raise ConfigError(
        f"race={words[0]}: no race of that name in {options.root}; name two recipes and a ladder"
      )
    seeds = found["seeds"] if options.seeds is None else options.seeds
    return words[0], {
      **found, "seeds": seeds, "settings": {**found["settings"], **_given(options)}
    }  # fmt: skip
  name = options.save_as or "race"
  check_name(name)
  seeds = SEEDS if options.seeds is None else options.seeds
  spec = {
    "recipes": words, "budgets": options.budgets, "rungs": options.rung, "seeds": seeds,
    "settings": _settings(options),
  }  # fmt: skip
  return name, spec


def _largest(experiment: sweep.Experiment, folder: pathlib.Path) -> tuple[float, float]:
  """(parameters, tokens) of the last run, which has the largest budget."""
  cfg = sweep.resolve_run(experiment.runs[-1], folder).cfg
  assert cfg.train.tokens is not None  # of a resolved config
  return float(run_counts(cfg).total), float(cfg.train.tokens)


def _settings(options) -> dict[str, object]:
  """How the race is judged."""
  check_choice("flops", options.flops, FLOPS)
  at = [fits.positive("at", text) for text in options.at.split(",")] if options.at else []
  for key in ("pin", "target"):
    value = getattr(options, key)
    if value is not None and not math.isfinite(value):
      raise ConfigError(f"{key}={value}: must be a loss, finite; for example 2.0")
  if options.noise is not None:
    check_within("noise", options.noise, "(0, inf)", "0.01")
  return {
    "baseline": options.baseline, "at": at, "pin": options.pin, "flops": options.flops,
    "target": options.target, "noise": options.noise,
  }  # fmt: skip


def _given(options) -> dict[str, object]:
  """What was said on this command line of how to judge."""
  nothing = {
    "baseline": None,
    "at": [],
    "pin": None,
    "flops": "flops",
    "target": None,
    "noise": None,
  }
  return {k: v for k, v in _settings(options).items() if v != nothing[k]}


def _judge(options, settings: dict, rows: ledgers.Ledger, code: int) -> int:
  found = judge(rows, **settings)
  if options.json:
    commands.print_json(found)
  else:
    commands.print_results(found.results())
  return code
