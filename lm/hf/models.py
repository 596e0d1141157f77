"""Models by their model_type in config.json and by their family here: what reads and writes each."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config
from lm.hf.architectures import ARCHITECTURES
from lm.hf.bert import from_bert, settings_of, to_bert
from lm.hf.convert import State, from_hf, to_hf
from lm.hf.t5 import t5_from_hf, t5_settings, t5_to_hf
from lm.models.trees import by_path


class Model(NamedTuple):
  """What belongs to a family that is no decoder.

  Attributes:
    read: (arrays by name, config.json) -> (fields of the section, parameters).
    write: (parameters, resolved section, names of classes) -> (arrays by name, config.json).
    settings: (parameters, config.json) -> (config file of a run of them, keys that it must be told beside).
    row: what it reads of one text and of two (lm.hf.tokenizer_files.write_tokenizer).
  """

  family: str
  read: Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[dict, dict]]
  write: Callable[[Mapping[str, Any], Any, Sequence[str]], tuple[State, dict[str, Any]]]
  settings: Callable[[Mapping[str, Any], Mapping[str, Any]], tuple[str, dict[str, Any]]]
  row: tuple[str, str]


DECODER = "decoder"  # the family of the rows of ARCHITECTURES
DECODER_ROW = ("<s> $A", "<s> $A $B")  # as prompts are read here
MODELS: dict[str, Model] = {  # model_type: what is no row of ARCHITECTURES
  "bert": Model(
    "bert", from_bert, to_bert, settings_of, ("<s> $A </s>", "<s>:0 $A:0 </s>:0 $B:1 </s>:1")
  ),
  "t5": Model("t5", t5_from_hf, t5_to_hf, t5_settings, ("$A </s>", "$A </s> $B </s>")),
}


def read_model(state: Mapping[str, Any], hf_config: Mapping[str, Any]) -> tuple[dict, dict]:
  """(fields of the `model` section, float32 parameters with layers stacked) of a folder's content.

  Raises:
    ConfigError: another model_type, what the reader of this one refuses, or weights that are not finite.
  """
  kind = hf_config.get("model_type")
  if not isinstance(kind, str) or (kind not in MODELS and kind not in ARCHITECTURES):
    known = ", ".join([*ARCHITECTURES, *MODELS])
    raise ConfigError(f"model_type={kind}: must be one of {known}; choose another model")
  fields, params = (MODELS[kind].read if kind in MODELS else from_hf)(state, hf_config)
  for name, array in by_path(params).items():
    if not np.isfinite(array).all():
      raise ConfigError(f"{name}: holds numbers that are not finite; copy the weights again")
  return fields, params


def write_model(
  params: Mapping[str, Any], cfg: Config, kind: str | None, labels: Sequence[str] = ()
) -> tuple[State, dict[str, Any]]:
  """(arrays by name, content of config.json) of a run: the inverse of read_model.

  Args:
    params: of either layout, with the parts of the objective.
    cfg: resolved.
    kind: model_type asked for; None = what fits.
    labels: names of the classes, where the run has such.

  Raises:
    ConfigError: a family that transformers lacks, or what its model cannot say.
  """
  for name, model in MODELS.items():
    if model.family == cfg.model.family:
      if kind not in (None, name):
        raise ConfigError(f"type={kind}: cannot say a {name}; leave it out")
      return model.write(params, cfg.model, labels)
  if cfg.model.family != DECODER:
    known = ", ".join([DECODER, *(model.family for model in MODELS.values())])
    raise ConfigError(
      f"model.family={cfg.model.family}: transformers has no such model; export one of {known}"
    )
  section: Any = cfg.model
  return to_hf(params, section, kind)
