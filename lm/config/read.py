"""Config files and config.json as typed dataclasses.

`run_config_file` calls `get_config(ARGUMENT)` of a config file; `to_config` types what it gives, with
keys changed from the command line; `from_json` reads back what a run saved.
"""

import dataclasses
import functools
import importlib.util
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from lm.config.errors import ConfigError, first_line, is_unicode, suggest, where_raised
from lm.config.schema import ABSENT, Config, rules

# Keys that say which sections there are.
CHOOSERS = ("extensions", "model.family", "objective.name")
EXAMPLES = {int: "8", float: "1e-3", bool: "True", str: "text"}
LISTS = {int: "8,16", float: "0.7,0.3", str: "a,b"}


Sections = Mapping[str, type]  # {"model": its dataclass, ...}
_hints = functools.cache(typing.get_type_hints)  # ledgers ask for those of every run


def to_config(
  config_dict: ConfigDict,
  overrides: Mapping[str, object],
  sections_of: Callable[[Mapping[str, object]], Sections],
) -> Config:
  """Typed dataclasses from a ConfigDict, with overrides by dotted key.

  Args:
    sections_of: {"model.family": ..., ...} -> the dataclass of every section; it imports extensions.
  """
  flat = flatten_nested(config_dict.to_dict())
  chosen = {key: overrides.get(key, flat.get(key)) for key in CHOOSERS}
  extensions = _cast("extensions", chosen["extensions"] or (), tuple[str, ...])
  sections = sections_of({**chosen, "extensions": extensions})
  fields, known = field_types(sections), rules(sections)
  for key, value in overrides.items():
    inside = [field for field in fields if field.startswith(f"{key}.")]
    if inside:
      raise ConfigError(f"{key}={value}: is a section; set a key of it, such as {inside[0]}")
    if key not in fields:
      raise ConfigError(f"{key}={value}: no such key; {suggest(key, fields)}")
    flat[key] = value
  for key in flat:
    if key not in fields:
      _refuse_switch(key, overrides, chosen)
      raise ConfigError(f"{key}={flat[key]}: no such key; {suggest(key, fields)}")
  for key in fields:
    if key not in flat:
      if known[key].neutral is ABSENT:
        raise ConfigError(
          f"{key}=(absent): every key must be present; start from configs/default.py"
        )
      flat[key] = known[key].neutral
  return build({key: _cast(key, value, fields[key]) for key, value in flat.items()}, sections)


def field_types(sections: Sections) -> dict[str, object]:
  """{"model.width": int, ...} for every key of these sections and the top level."""
  found = {}
  for name, kind in _hints(Config).items():
    if name in sections:
      found |= {f"{name}.{k}": t for k, t in _hints(sections[name]).items()}
    else:
      found[name] = kind
  return found


def build(flat: Mapping[str, object], sections: Sections) -> Config:
  """A Config from {"model.width": 128, ...}; the keys are complete and their types right."""
  made: dict[str, typing.Any] = {key: value for key, value in flat.items() if "." not in key}
  for name, kind in sections.items():
    made[name] = kind(**{f.name: flat[f"{name}.{f.name}"] for f in dataclasses.fields(kind)})
  return Config(**made)


def from_json(
  saved: Mapping[str, object], sections_of: Callable[[Mapping[str, object]], Sections]
) -> Config:
  """The Config that `dataclasses.asdict` wrote to config.json.

  A key that came later has its neutral value (lm.config.schema.field).

  Raises:
    ConfigError: a key is missing that has no neutral value, or one is there that this code does not know.
  """
  flat = flatten_nested(saved)
  sections = sections_of({key: flat.get(key) for key in CHOOSERS})
  fields, known = field_types(sections), rules(sections)
  values = {key: rule.neutral for key, rule in known.items() if rule.neutral is not ABSENT} | flat
  other = "written by another version of this code; check out the commit in run.json"
  for key in fields:
    if key not in values:
      raise ConfigError(f"config.json=(without {key}): {other}")
  for key in flat:
    if key not in fields:
      raise ConfigError(f"config.json=({key}={flat[key]}): no such key here; {other}")
  return build({key: _cast(key, values[key], fields[key]) for key in fields}, sections)


def flatten_nested(nested: Mapping[str, object]) -> dict[str, object]:
  """{"model": {"width": 128}} as {"model.width": 128}."""
  flat = {}
  for key, value in nested.items():
    if isinstance(value, Mapping):
      flat |= {f"{key}.{k}": v for k, v in flatten_nested(value).items()}
    else:
      flat[key] = value
  return flat


def run_config_file(spec: str) -> ConfigDict:
  """The ConfigDict that `get_config` of FILE[:ARGUMENT] returns; ConfigError where the file fails."""
  path, _, argument = spec.partition(":")
  file = pathlib.Path(path)
  if not file.is_file():
    near = [str(p) for p in sorted(file.parent.glob("*.py")) if p.name != "__init__.py"]
    raise ConfigError(
      f"config={path}: no such file; {suggest(path, near or ['configs/default.py'])}"
    )
  if file.suffix != ".py":
    raise ConfigError(f"config={path}: must be a Python file; see configs/default.py")
  module_spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
  module = importlib.util.module_from_spec(module_spec)
  root = str(file.resolve().parent.parent)  # so that a config can start from configs.default
  sys.path.insert(0, root)
  try:
    module_spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
      raise ConfigError(f"config={path}: must define get_config(); see configs/default.py")
    found = module.get_config(argument) if argument else module.get_config()
  except ConfigError:
    raise
  except KeyError as error:
    raise ConfigError(f"config={spec}: {error.args[0] if error.args else 'KeyError'}") from error
  except (Exception, SystemExit) as error:
    raise ConfigError(
      f"config={spec}: the file fails with {type(error).__name__}: {first_line(error)}; run it with python"
    ) from error
  finally:
    sys.path.remove(root)
  if not isinstance(found, ConfigDict):
    raise ConfigError(
      f"config={spec}: get_config() must return a ConfigDict, not {type(found).__name__}; see "
      "configs/default.py"
    )
  try:
    found.to_dict()
  except Exception as error:  # a required value that is not there, or a key that is no text
    raise ConfigError(
      f"config={spec}: what get_config() returns fails with {type(error).__name__}: "
      f"{first_line(error)}; give every key a value"
    ) from error
  return found


def import_extension(key: str, name: object) -> None:
  """Imports a module by its dotted name.

  Raises: ConfigError that begins with `key`=name: it is no name, is not found, or fails.
  """
  try:
    if not all(part.isidentifier() for part in str(name).split(".")):
      raise ImportError("is no module's name")
    importlib.import_module(str(name))
  except ConfigError:
    raise
  except ImportError as error:
    raise ConfigError(
      f"{key}={name}: cannot be imported ({error}); give a module's dotted name, and start where Python "
      "finds it"
    ) from None
  except (Exception, SystemExit) as error:
    raise ConfigError(
      f"{key}={name}: the module fails with {where_raised(error)}; correct it there"
    ) from error


def _refuse_switch(key: str, overrides: Mapping[str, object], chosen: Mapping[str, object]) -> None:
  """ConfigError where a key of the config file does not fit a family or objective set beside it."""
  for chooser in CHOOSERS:
    if chooser in overrides and key.split(".")[0] == chooser.split(".")[0]:
      raise ConfigError(
        f"{chooser}={chosen[chooser]}: has no key {key}; start from a config file of "
        f"{chosen[chooser]} instead"
      )


def _cast(key: str, value: object, kind: object) -> object:
  """`value` as `kind`; strings from the command line are parsed."""
  options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
  kind = options[0]
  try:
    str(value)
  except Exception as error:  # an integer of 4,301 digits, or what a config file made
    raise ConfigError(
      f"{key}=({type(value).__name__}): cannot be written ({first_line(error)}); give {_describe(kind)}"
    ) from None
  if type(None) in options and _is_none(value):
    return None
  if isinstance(value, str) and not is_unicode(value):
    raise ConfigError(f"{key}={value}: is no text in UTF-8; convert it")
  try:
    return _parse(value, kind)
  except (ValueError, TypeError, OverflowError):
    raise ConfigError(
      f"{key}={value}: must be {_describe(kind)}; for example --config.{key}={_example(kind)}"
    ) from None


def _is_none(value: object) -> bool:
  return value is None or (isinstance(value, str) and value in ("None", "none"))


def _parse(value: object, kind: object) -> object:
  if typing.get_origin(kind) is tuple:
    element = typing.get_args(kind)[0]
    if isinstance(value, str):
      value = [v.strip() for v in value.strip("()[] ").split(",") if v.strip()]
      value = [v.strip("\"'") for v in value]
    return tuple(_parse(v, element) for v in value)
  if kind is bool:
    words = {"true": True, "false": False, "1": True, "0": False}
    if str(value).lower() not in words:
      raise ValueError
    return words[str(value).lower()]
  if isinstance(value, bool):
    raise TypeError
  if kind is int:
    number = float(value) if not isinstance(value, int) else value
    if isinstance(value, str) and value.strip("+-").replace("_", "").isdigit():
      return int(value)
    if number != int(number):
      raise ValueError
    return int(number)
  if kind is float:
    return float(value)
  if not isinstance(value, str):
    raise TypeError
  return value


def _example(kind: typing.Any) -> str:
  tuples = typing.get_origin(kind) is tuple
  return LISTS[typing.get_args(kind)[0]] if tuples else EXAMPLES[kind]


def _describe(kind: object) -> str:
  if typing.get_origin(kind) is tuple:
    return f"a list of {_describe(typing.get_args(kind)[0]).split(' ', 1)[1]}s with commas between"
  return {int: "an integer", float: "a number", bool: "a boolean", str: "a text"}[kind]
