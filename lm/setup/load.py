"""A config file and a command line as a checked `Config`; which sections a config has."""

from collections.abc import Mapping

from lm.config import read
from lm.config.errors import check_choice
from lm.config.schema import SECTIONS, Config
from lm.models.registry import FAMILIES
from lm.objectives.registry import OBJECTIVES
from lm.setup.checks import check
from lm.setup.rules import apply


def load_config(spec: str, overrides: Mapping[str, object] | None = None) -> Config:
  """The checked config of a file with some keys changed.

  Args:
    spec: "configs/gpt2.py" or "configs/gpt2.py:124m"; what follows the colon goes to `get_config`.
    overrides: {"model.width": 256}; strings are read as the key's type.

  Raises:
    ConfigError: file missing or broken, unknown key, wrong type, or a value out of range.
  """
  config = read.to_config(read.run_config_file(spec), overrides or {}, sections_of)
  check(config)
  if config.rules is None:
    return config
  config = apply(config, overrides or {})
  check(config)
  return config


def from_json(saved: Mapping[str, object]) -> Config:
  """The Config of a run's config.json; keys that came later have their neutral values."""
  return read.from_json(saved, sections_of)


def sections_of(chosen: Mapping[str, object]) -> dict[str, type]:
  """{"model": its dataclass, ...} for a family and an objective, extensions imported first.

  Args:
    chosen: values of extensions, model.family and objective.name.

  Raises:
    ConfigError: an extension that cannot be imported, or a name without a row.
  """
  for name in chosen["extensions"] or ():
    read.import_extension("extensions", name)
  family, objective = str(chosen["model.family"]), str(chosen["objective.name"])
  check_choice("model.family", family, FAMILIES)
  check_choice("objective.name", objective, OBJECTIVES)
  return {
    **SECTIONS,
    "model": FAMILIES[family].section,
    "objective": OBJECTIVES[objective].section,
  }


def known_keys() -> dict[str, object]:
  """{"model.width": int, ...}: the keys of all families and objectives."""
  found = {}
  for family in FAMILIES.values():
    for objective in OBJECTIVES.values():
      sections = {**SECTIONS, "model": family.section, "objective": objective.section}
      found |= read.field_types(sections)
  return found
