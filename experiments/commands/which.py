"""Turns command-line options into an Experiment, its run directories and its ledger rows."""

import dataclasses
import pathlib
import shlex
from typing import Any

from experiments.ledger import ledger as ledgers
from experiments.race import judge, recipes
from experiments.sweep import described, search, sweep
from experiments.sweep import halving as halvings
from lm.addresses import is_address, open_address
from lm.config.command_line import once
from lm.config.errors import ConfigError, check_within
from lm.files import write_json
from lm.runs import bucket


def select(options) -> sweep.Experiment:
  """The experiment that the options name or describe, with --set and --only applied."""
  said = [o for o in ("grid", "random", "dirichlet", "halving", "save_as") if getattr(options, o)]
  if options.config and options.name:
    raise ConfigError(
      f"config={options.config}: an experiment file has its own configs; leave out {options.name}, "
      "or name the sweep with --save_as"
    )
  if said and not options.config:
    raise ConfigError(f"{said[0]}=...: needs --config FILE; for example configs/smoke.py")
  changes = _pairs(options.set)
  check_within("seed", options.seed, "[0, 2147483647]", "0")
  if options.config and options.scale:
    raise ConfigError(f"scale={options.scale}: is of an experiment file; leave it out")
  if options.config:
    experiment, changes = search.sweep_from_text(**_sweep_spec(options)), {}
  elif not options.name:
    raise ConfigError("name=(none): name an experiment (see list), or give --config and --grid")
  else:
    saved = saved_sweep(options)
    if saved is not None:
      if options.scale:
        raise ConfigError(
          f"scale={options.scale}: is of an experiment file, and {options.name} is a sweep without one; "
          "leave it out"
        )
      experiment = _described(saved, options.name)
    else:
      experiment = sweep.load(options.name, options.scale)
  experiment = sweep.with_overrides(experiment, changes)
  if options.only:  # at full budget: a few runs that are named have nothing to be halved for
    experiment = dataclasses.replace(sweep.only(experiment, options.only), halving=None)
  sweep.check_set(experiment, changes)
  return experiment


def _described(spec: dict, name: str) -> sweep.Experiment:
  """The experiment that the words of a sweep.json describe: a race, or a sweep."""
  if "race" in spec:
    experiment = recipes.from_words(spec["race"], name)
    settings = spec["race"]["settings"]
    return dataclasses.replace(experiment, analyse=lambda rows: judge(rows, **settings).results())
  return search.sweep_from_text(**{**spec, "name": name})


def save_race(folder: pathlib.Path, spec: dict) -> None:
  """Writes the words of a race beside its runs; ConfigError where runs of an earlier one would be lost."""
  _write_spec(folder, {"race": spec})


def read_race(folder: pathlib.Path) -> dict | None:
  """The words of the race whose runs lie in a folder; None where there is none."""
  return (_read_sweep(f"{folder}/sweep.json") or {}).get("race")


def check_root(options, experiment: sweep.Experiment) -> None:
  """ConfigError where runs are to be trained in a bucket by a back end that keeps them on this machine."""
  from experiments.launch import backends

  if not is_address(options.root) or backends.find(options.on)[0].remote:
    return
  if options.on != "local":
    raise ConfigError(
      f"root={options.root}: runs of --on {options.on} lie on this machine; use a path, or train them with "
      "--on local, or elsewhere, as with --on skypilot"
    )
  asked = {"halving": experiment.halving}
  asked |= {key: getattr(options, key, None) for key in ("branch", "optuna")}
  for key, value in asked.items():
    if value:
      raise ConfigError(
        f"{key}=...: hands files from run to run, which lie in a bucket with --root {options.root}; "
        "use a path"
      )


def folder_here(options, experiment: sweep.Experiment) -> pathlib.Path:
  """Where what a launcher writes beside runs is: with them, or under runs/ where they are in a bucket."""
  if is_address(options.root):
    return pathlib.Path("runs") / experiment.name / options.on
  return folder_of(options, experiment)


def folder_of(options, experiment: sweep.Experiment) -> pathlib.Path:
  """Where the experiment's run directories are."""
  return pathlib.Path(options.root) / experiment.name


def words_for(options, experiment: sweep.Experiment) -> str:
  """What names this experiment on a later command line; a sweep that was described goes by its name."""
  words = [options.name or experiment.name]
  words += ["--scale", options.scale] if options.scale else []
  words += [w for text in options.set if options.name for w in ("--set", text)]
  words += ["--root", options.root] if options.root != "runs" else []
  return shlex.join(words)


def select_begun(options) -> sweep.Experiment:
  """`select`, to be read rather than trained: with the trials of a search for runs, where there was one."""
  from experiments.launch import optuna_study

  experiment = select(options)
  return optuna_study.with_trials(experiment, folder_of(options, experiment))


def collect(options) -> ledgers.Ledger:
  """The rows of an experiment's runs, those not begun included, or of a ledger file."""
  if options.ledger:
    return ledgers.load_ledger(options.ledger)
  return rows_of(select_begun(options), options.root)


def rows_of(experiment: sweep.Experiment, root: str) -> ledgers.Ledger:
  """One row for each run that the experiment asks for now; others in its folder do not count."""
  folder = f"{root.rstrip('/')}/{experiment.name}"
  found = {}
  if ledgers.exists(folder):
    found = {row["name"]: row for row in ledgers.read_ledger(folder)}
  rows = []
  for run in experiment.runs:
    stages = [run]
    if experiment.halving:
      member = sweep.resolve_run(run, pathlib.Path(folder))
      stages = halvings.rung_runs(member, experiment.halving)
    waiting = {"name": stages[0].name, "status": "waiting", "reason": None}
    rows += [sweep.checked(s, found[s.name]) for s in stages if s.name in found] or [waiting]
  return ledgers.Ledger(tuple(rows))


def _sweep_spec(options) -> dict[str, Any]:
  return {
    "config": options.config, "grids": options.grid, "random": options.random,
    "halving": options.halving, "seed": options.seed, "name": options.save_as,
    "fixed": _pairs(options.set),
    **({"dirichlet": options.dirichlet} if options.dirichlet else {}),
  }  # fmt: skip


def sweep_words(options) -> dict[str, Any] | None:
  """The words that describe a sweep, given now or saved under its name; None for an experiment file."""
  if options.config:
    return _sweep_spec(options)
  if (spec := saved_sweep(options)) is not None:
    if "race" in spec:
      raise ConfigError(
        f"name={options.name}: is a race, which is trained by experiments race or run"
      )
    return {**spec, "name": options.name, "fixed": {**spec["fixed"], **_pairs(options.set)}}
  return None


def save_sweep(folder: pathlib.Path | str, options) -> None:
  """Writes the words of a sweep beside its runs, so that its name stands for it from now on.

  ConfigError where an earlier sweep of that name has runs that this one lacks: a wider grid replaces
  a narrower one, and nothing is forgotten.
  """
  _write_spec(folder, _sweep_spec(options))


def _write_spec(folder: pathlib.Path | str, spec: dict) -> None:
  root, _, name = str(folder).rstrip("/").rpartition("/")
  experiment = _described(spec, name)
  for row in rows_of(experiment, root or "."):
    if row["status"] == "stale":
      raise ConfigError(
        f"save_as={name}: {folder}/{row['name']} was {row['reason']}; choose another name, or "
        "delete that folder"
      )
  if (before := _read_sweep(f"{folder}/sweep.json")) is not None:
    now = {run.name for run in experiment.runs}
    lost = [r.name for r in _described(before, name).runs if r.name not in now]
    if lost:
      raise ConfigError(
        f"save_as={name}: the sweep of that name has runs that this one lacks ({lost[0]}); "
        f"choose another name, or delete {folder}/sweep.json"
      )
  if not is_address(str(folder)):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  with bucket.written("root", f"{folder}/sweep.json") as file:
    write_json(file, spec)


def _read_sweep(file: str) -> dict[str, Any] | None:
  """The words in a sweep.json, at a path or an address; None where there is none."""
  with bucket.readable("root", file):
    fs, path = open_address("root", file)
    if not fs.exists(path):
      return None
    return described.parse(fs.cat_file(path), file)


def saved_sweep(options) -> dict[str, Any] | None:
  """The words that were saved under the name that is asked for, where no experiment file has it; or None."""
  if not options.name or options.name in sweep.find_experiments():
    return None
  return _read_sweep(f"{options.root.rstrip('/')}/{options.name}/sweep.json")


def _pairs(texts: list[str]) -> dict[str, str]:
  pairs = [text.partition("=") for text in texts]
  for key, equals, _ in pairs:
    if not equals:
      raise ConfigError(f"set={key}: must be key=value; for example train.steps=100")
  return once("set", ((key, value) for key, _, value in pairs))
