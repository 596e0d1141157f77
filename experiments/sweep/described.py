"""The words that a sweep or a race was described with, kept beside its runs in sweep.json."""

import json
import pathlib
import shlex
import types
import typing
from collections.abc import Mapping

from lm.config.errors import ConfigError

SWEEP = {
  "config": str,
  "grids": list[str],
  "random": list[str],
  "dirichlet": list[str],
  "halving": str | None,
  "seed": int,
  "name": str | None,
  "fixed": dict[str, str | int | float | bool | None],
}
ABSENT = {
  "grids": [], "random": [], "dirichlet": [], "halving": None, "seed": 0, "name": None, "fixed": {},
}  # fmt: skip
RACE = {
  "recipes": list[str],
  "budgets": str | None,
  "rungs": list[str],
  "seeds": int,
  "settings": dict[str, object],
}
SETTINGS = {
  "baseline": str | None,
  "at": list[int | float],
  "pin": int | float | None,
  "flops": str,
  "target": int | float | None,
  "noise": int | float | None,
}


def parse(text: bytes, file: str) -> dict[str, typing.Any]:
  """The words in the text of a sweep.json, those that it leaves out as ABSENT; {"race": ...} of a race.

  Raises: ConfigError, naming the file, where it is no JSON, or not what a sweep or a race wrote.
  """
  try:
    found = json.loads(text.decode("utf-8"))
  except (ValueError, RecursionError):
    raise _damaged(file, "not JSON") from None
  if not isinstance(found, dict):
    raise _damaged(file, f"no object but {json.dumps(found)[:40]}")
  if "race" in found:
    race = found["race"]
    _check(race, RACE, file, "race")
    _check(race["settings"], SETTINGS, file, "race.settings", needs_all=False)
    return {"race": race}
  found = {**ABSENT, **found}
  _check(found, SWEEP, file, "sweep")
  return found


def command(file: pathlib.Path) -> str | None:
  """The command that describes a sweep or a race again, from its sweep.json; None where there is none."""
  if not file.exists():
    return None
  spec = parse(file.read_bytes(), str(file))
  if race := spec.get("race"):
    words = ["python", "-m", "experiments", "race", *race["recipes"]]
    words += ["--budgets", race["budgets"]] if race["budgets"] else []
    words += [w for text in race["rungs"] for w in ("--rung", text)]
    return shlex.join([*words, "--seeds", str(race["seeds"]), "--save_as", file.parent.name])
  words = ["python", "-m", "experiments", "run", *options(spec)]
  return shlex.join([*words, "--save_as", file.parent.name])


def options(spec: Mapping[str, typing.Any]) -> list[str]:
  """The options that describe a sweep, all but its name."""
  words = ["--config", spec["config"]]
  words += [w for text in spec["grids"] for w in ("--grid", text)]
  words += [w for key, value in spec["fixed"].items() for w in ("--set", f"{key}={value}")]
  for key in ("random", "dirichlet"):
    words += [f"--{key}", *spec[key]] if spec.get(key) else []
  words += ["--seed", str(spec["seed"])] if spec["random"] or spec.get("dirichlet") else []
  words += ["--halving", spec["halving"]] if spec["halving"] else []
  return words


def _check(found: object, kinds: Mapping, file: str, part: str, needs_all: bool = True) -> None:
  """ConfigError unless it is an object whose values are of these kinds and which has no other keys."""
  if not isinstance(found, dict):
    raise _damaged(file, f"its {part} is {json.dumps(found)[:40]}")
  for key in kinds if needs_all else ():
    if key not in found:
      raise _damaged(file, f"its {part} has no {key}")
  for key, value in found.items():
    if key not in kinds or not _is(value, kinds[key]):
      raise _damaged(file, f"its {part} has {key}={json.dumps(value)[:40]}")


def _is(value: object, kind: typing.Any) -> bool:
  if isinstance(kind, types.UnionType):
    return any(_is(value, each) for each in typing.get_args(kind))
  origin, inner = typing.get_origin(kind), typing.get_args(kind)
  if origin is list:
    return isinstance(value, list) and all(_is(each, inner[0]) for each in value)
  if origin is dict:
    return isinstance(value, dict) and all(_is(each, inner[1]) for each in value.values())
  if isinstance(value, bool):
    return kind in (bool, object)
  return isinstance(value, kind)


def _damaged(file: str, how: str) -> ConfigError:
  return ConfigError(
    f"sweep={file}: is damaged, {how}; delete it and describe the sweep again with --config"
  )
