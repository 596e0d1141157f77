"""Recipes, budgets and seeds as runs: what a race trains, from words or from an experiment's file.

A run is named RECIPE@BUDGET,seed=S, with budgets counted from 0.
"""

import dataclasses
import re
import shlex
from collections.abc import Mapping, Sequence

from experiments.sweep.search import check_key, parse_axis
from experiments.sweep.sweep import DEFAULT_CONFIG, Experiment, Run, make_experiment
from lm.config.errors import ConfigError, check_within
from lm.config.schema import BUDGETS

NAMED = re.compile(r"(?P<recipe>[\w.+-]+)@(?P<rung>\d+),seed=(?P<seed>\d+)(,.*)?")
LABEL = re.compile(r"[\w.+-]+")


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A config with some keys changed, by a name of its own."""

  name: str
  overrides: Mapping[str, object]
  config: str = DEFAULT_CONFIG


def runs(
  recipes: Sequence[Recipe], rungs: Sequence[Mapping[str, object]], seeds: Sequence[int]
) -> list[Run]:
  """One run for each recipe, budget and seed; runs of one seed draw the same data in the same order.

  Args:
    rungs: keys of each budget, smallest first; one that sets a budget unsets the config's own.

  Raises:
    ConfigError: fewer than two recipes, two of one name, a key that recipe and budget both set, two
      budgets among them, or a ladder that sets seeds.
  """
  names = [recipe.name for recipe in recipes]
  if len(names) < 2:
    raise ConfigError(f"race={','.join(names)}: needs at least two recipes; name another")
  if any("seed" in rung for rung in rungs):
    raise ConfigError("rung=seed: every budget has the same seeds; leave it out and use --seeds 3")
  made = []
  for recipe in recipes:
    if names.count(recipe.name) > 1:
      raise ConfigError(f"race={recipe.name}: two recipes have this name; tell them apart")
    if not LABEL.fullmatch(recipe.name):
      raise ConfigError(f"race={recipe.name}: a name has letters, digits and . + _ -; rename it")
    for i, rung in enumerate(rungs):
      both = sorted({"seed", *one_budget(rung)} & set(recipe.overrides))
      if both:
        raise ConfigError(
          f"{both[0]}={recipe.overrides[both[0]]}: is set by the recipe {recipe.name} and by the "
          "ladder, which is the same for all; leave it to one of the two"
        )
      for seed in seeds:
        settings = {**recipe.overrides, **one_budget(rung), "seed": seed}
        made.append(Run(f"{recipe.name}@{i},seed={seed}", settings, recipe.config))
  return made


def one_budget(rung: Mapping[str, object]) -> dict[str, object]:
  """The keys of a rung; where it sets a budget, the others are None."""
  if not set(rung) & set(BUDGETS):
    return dict(rung)
  return {**dict.fromkeys(BUDGETS), **rung}


def place(name: str) -> tuple[str, int, int] | None:
  """(recipe, budget's number, seed) of a run's name; None where it is no race's."""
  found = NAMED.fullmatch(name)
  return found and (found["recipe"], int(found["rung"]), int(found["seed"]))


# ---- From words on a command line ----------------------------------------------------------------


def read_recipe(text: str) -> Recipe:
  """Recipe from `NAME: FILE[:ARGUMENT] KEY=VALUE ...`; name and file may be left out.

  A value with blanks is quoted as a shell wants it.

  >>> read_recipe("muon: configs/smoke.py optim.name=muon").overrides
  {'optim.name': 'muon'}
  """
  words, name, config, overrides = _split("race", text), None, None, {}
  if words and words[0].endswith(":") and "=" not in words[0]:
    name = words.pop(0)[:-1]
  for word in words:
    key, equals, value = word.partition("=")
    label, colon, rest = key.partition(":")
    if equals and colon:
      raise ConfigError(
        f"race={text}: a blank follows the colon of a name; write '{label}: {rest}={value}'"
      )
    if equals and key in overrides:
      raise ConfigError(f"race={text}: sets {key} twice; leave one out")
    if equals:
      check_key("race", key)
      overrides[key] = value
    elif ".py" in word and config is None:
      config = word
    elif ".py" in word:
      raise ConfigError(f"race={text}: names two configs, {config} and {word}; leave one out")
    else:
      raise ConfigError(
        f"race={text}: {word} is neither KEY=VALUE nor a config file; for example "
        "'muon: configs/smoke.py optim.name=muon'"
      )
  config = config or DEFAULT_CONFIG
  if name is None:
    said = [f"{k.rpartition('.')[2]}-{v}" for k, v in overrides.items()]
    base = re.sub(r".*/|\.py", "", config).replace(":", "-")
    name = re.sub(r"[^\w.+-]+", "_", "+".join(said)) or base
  return Recipe(name, overrides, config)


def read_rungs(budgets: str | None, rungs: Sequence[str]) -> list[dict[str, object]]:
  """The ladder from `--budgets train.flops=1e11,3e11`, or from one `--rung "KEY=VALUE ..."` each."""
  if (budgets is None) == (not rungs):
    raise ConfigError(
      "budgets=...: give the ladder one way, --budgets train.flops=1e11,3e11,1e12 or one "
      "--rung 'KEY=VALUE ...' for each budget"
    )
  if budgets:
    key, values = parse_axis(budgets)
    rungs = [f"{key}={value}" for value in values]
  found: list[dict[str, object]] = []
  for text in rungs:
    pairs = [word.partition("=") for word in _split("rung", text)]
    keys = [key for key, _, _ in pairs]
    for key, equals, _ in pairs:
      if not equals:
        raise ConfigError(f"rung={text}: must be KEY=VALUE words with blanks between")
      check_key("rung", key)
      if keys.count(key) > 1:
        raise ConfigError(f"rung={text}: sets {key} twice; leave one out")
    if not pairs:
      raise ConfigError(f"rung={text}: sets nothing; for example --rung train.steps=100")
    found.append({key: value for key, _, value in pairs})
  return found


def _split(option: str, text: str) -> list[str]:
  try:
    return shlex.split(text)
  except ValueError as error:  # a quotation that does not end
    raise ConfigError(f"{option}={text}: {str(error).lower()}; close it or escape it") from None


def from_words(spec: Mapping, name: str) -> Experiment:
  """The race that the words of its race.json describe.

  Args:
    spec: recipes, budgets, rungs (texts) and seeds (how many).
  """
  recipes = [read_recipe(text) for text in spec["recipes"]]
  if len(recipes) < 2:
    said = ",".join(recipe.name for recipe in recipes) or "(none)"
    raise ConfigError(
      f"race={said}: needs two recipes and a ladder, or the name of a race saved earlier; for example "
      "race 'adamw:' 'muon: optim.name=muon' --budgets train.steps=100,200,400"
    )
  check_within("seeds", spec["seeds"], "[1, 1000]", "3")
  rungs = read_rungs(spec["budgets"], spec["rungs"])
  made = runs(recipes, rungs, range(spec["seeds"]))
  return make_experiment(
    name, made, doc=f"Which survives scale: {' or '.join(r.name for r in recipes)}?"
  )
