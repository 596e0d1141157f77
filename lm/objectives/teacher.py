"""Models that a run learns from: read from their run directories, frozen, and never saved with the run.

An objective names them (`Objective.teachers`); lm.runs.teachers loads their parameters, training reads them
as `extra[name]`, and evaluation goes without.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from lm.config import read
from lm.config.errors import ConfigError, number_of
from lm.config.schema import Config, ModelConfig, neutral_values
from lm.data.tokenizers import fingerprint, load_tokenizer
from lm.files import read_object
from lm.models import trees
from lm.models.registry import FAMILIES, make_model


class Teacher(NamedTuple):
  folder: pathlib.Path  # a run directory
  section: ModelConfig  # resolved
  module: nn.Module

  @property
  def axes(self) -> Any:
    """Logical axis names of its parameters."""
    return trees.param_axes(self.module)

  @property
  def shapes(self) -> Any:
    """ShapeDtypeStructs of its parameters."""
    return jax.eval_shape(lambda key: trees.init_params(self.module, key), jax.random.key(0))


def read_section(where: str) -> ModelConfig | None:
  """The resolved `model` section of a run directory; None if nothing is there.

  Raises:
    ConfigError: a folder of another kind, or a model that this code does not know.
  """
  file = pathlib.Path(where).expanduser() / "config.json"
  if not file.is_file():
    return None
  saved = read_object(file, "bring it back from a copy, or choose another teacher")
  model = saved.get("model")
  if not isinstance(model, Mapping):
    raise ConfigError(
      f"objective.teacher={where}: is no run directory; make one of it with python -m lm.hf import "
      f"--from {where} --workdir runs/teacher"
    )
  extensions = saved.get("extensions")
  for name in extensions if isinstance(extensions, list) else ():
    read.import_extension(f"objective.teacher={where}: its extensions", name)
  family = str(model.get("family"))
  section: Any = FAMILIES[family].section if family in FAMILIES else None
  values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in model.items()}
  try:
    return section(**neutral_values(section) | values)
  except TypeError:
    raise ConfigError(
      f"objective.teacher={where}: is a model that this code does not know (model.family={family}); "
      "check out the commit in its run.json"
    ) from None


def find(names: Mapping[str, str]) -> dict[str, Teacher]:
  """The teachers that are there, by name.

  Args:
    names: {name: run directory}, as `Objective.teachers` gives.
  """
  found = {}
  for name, where in names.items():
    section = read_section(where)
    if section is not None:
      found[name] = Teacher(pathlib.Path(where).expanduser(), section, make_model(section))
  return found


def split_extra(extra: Any, names: Mapping[str, str]) -> tuple[Any, dict[str, Any]]:
  """(what of `extra` is the run's own, the parameters of teachers in it)."""
  if not names:
    return extra, {}
  own = {name: value for name, value in extra.items() if name not in names}
  return own, {name: value for name, value in extra.items() if name in names}


def check(cfg: Config, names: Mapping[str, str], needs: Sequence[str], tokenizer: Any) -> None:
  """ConfigError for teachers that are not there, or that do not read what the model of a config reads.

  Args:
    cfg: resolved.
    needs: methods that a teacher's module must have.
    tokenizer: of the run.
  """
  found = find(names)
  for name, where in names.items():
    key = f"objective.{name}={where}"
    if name not in found:
      raise ConfigError(
        f"{key}: holds no run (no config.json); train one, or make one with python -m lm.hf import"
      )
    theirs, mine = found[name].section, cfg.model
    other = fingerprint(load_tokenizer(found[name].folder / "tokenizer")) != fingerprint(tokenizer)
    if other or theirs.vocab_size != mine.vocab_size:
      raise ConfigError(
        f"{key}: has another vocabulary ({theirs.vocab_size} entries; here {mine.vocab_size}); set "
        f"data.tokenizer and data.tokenizer_path to those of {where}"
      )
    if theirs.seq_len < mine.seq_len:
      raise ConfigError(
        f"{key}: reads {number_of(theirs.seq_len, 'token')} and model.seq_len={mine.seq_len}; use "
        f"model.seq_len={theirs.seq_len}"
      )
    if not all(hasattr(found[name].module, need) for need in needs):
      raise ConfigError(
        f"{key}: model.family={theirs.family} does not predict what the student predicts; choose "
        "another teacher"
      )
