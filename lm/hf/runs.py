"""A run made of someone else's model, and a model for others made of a run."""

import dataclasses
import pathlib
import tempfile
from typing import Any

import jax

from lm.config.errors import ConfigError
from lm.config.schema import Config
from lm.data import tokenizers
from lm.data.span_names import span_names
from lm.data.templates import jinja_of_run
from lm.files import whole_folder, write_json
from lm.hf.architectures import ARCHITECTURES
from lm.hf.bert import classes_of
from lm.hf.convert import State
from lm.hf.folder import WEIGHT_FILES, check_target, read_folder, read_json, write_folder
from lm.hf.gguf import llama_of, read_gguf, tokenizer_of
from lm.hf.llama2c import read_llama2c
from lm.hf.models import DECODER_ROW, MODELS, read_model, write_model
from lm.hf.tokenizer_files import TOKENIZER_FILES, copy_in, write_tokenizer
from lm.models.adapters import merge_adapters
from lm.models.registry import family_of
from lm.models.trees import unstack_layers
from lm.runs import rundir
from lm.runs.checkpoint import Checkpointer, load_params
from lm.runs.load import refuse_router_biases
from lm.setup.load import load_config
from lm.setup.resolve import resolve

REPO = pathlib.Path(__file__).parent.parent.parent
CONFIG = REPO / "configs/default.py"
KEPT = ("bos_token_id", "eos_token_id", "pad_token_id")  # what an export says again of it


def import_run(
  source: pathlib.Path,
  workdir: pathlib.Path,
  config: str | None = None,
  tokenizer: pathlib.Path | None = None,
) -> Config:
  """Makes a finished run of a Hugging Face folder, a GGUF file or one of llama2.c.

  Args:
    source: a folder with config.json, safetensors and tokenizer files, which are copied; or a file
      that ends in .gguf or .bin.
    workdir: run directory; must not hold a run yet.
    config: config file for everything that the source does not say; None = one that fits the model.
    tokenizer: folder of tokenizer files, or a SentencePiece model, where the source has none.
  """
  if (workdir / "config.json").exists():
    raise ConfigError(f"workdir={workdir}: holds a run already; choose another")
  if (workdir / "checkpoints").exists():
    raise ConfigError(
      f"workdir={workdir}: holds checkpoints but no config.json; choose another workdir"
    )
  if not source.exists():
    raise ConfigError(f"from={source}: no such file or folder; check the path")
  with tempfile.TemporaryDirectory() as made:
    folder = pathlib.Path(made)
    if source.suffix == ".gguf":
      meta, arrays = read_gguf(source)
      state, hf_config = llama_of(meta, arrays)
      backend, settings = tokenizer_of(meta)
      backend.save(str(folder / "tokenizer.json"))
      write_json(folder / "tokenizer_config.json", settings)
    elif source.is_file():
      state, hf_config = read_llama2c(source)
    else:
      state, hf_config = read_folder(source)
      folder = source
    if tokenizer is not None and tokenizer.is_dir():
      folder = tokenizer
    elif tokenizer is not None:
      folder = pathlib.Path(made)
      (folder / "tokenizer.model").write_bytes(_bytes(tokenizer))
    elif source.suffix != ".gguf" and source.is_file():
      raise ConfigError(f"from={source}: has no tokenizer in it; give --tokenizer FILE.model")
    with whole_folder(workdir, "workdir") as run:
      return _make_run(state, hf_config, folder, run, workdir, config, source)


def _bytes(path):
  try:
    return path.read_bytes()
  except OSError as error:
    raise ConfigError(f"tokenizer={path}: cannot be read ({error.strerror}); check it") from None


def _make_run(
  state: State,
  hf_config: dict[str, Any],
  folder: pathlib.Path,
  made: pathlib.Path,
  workdir: pathlib.Path,
  config: str | None,
  source: pathlib.Path,
) -> Config:
  """Writes the run that will lie in `workdir` to `made`."""
  fields, params = read_model(state, hf_config)
  spec, settings = str(CONFIG), {}
  if hf_config["model_type"] in MODELS:
    name, settings = MODELS[hf_config["model_type"]].settings(params, hf_config)
    spec = str(REPO / name)
  inside = made / "tokenizer"
  kind, path = copy_in(folder, inside)
  overrides = {f"model.{key}": value for key, value in fields.items()} | settings
  overrides |= {"data.tokenizer": kind, "data.tokenizer_path": str(path.resolve())}
  cfg = load_config(config or spec, overrides)
  tokenizer = tokenizers.read_tokenizer(cfg.data)
  start = hf_config.get("decoder_start_token_id", hf_config.get("pad_token_id"))
  if family_of(cfg.model).reads_source and start not in (None, tokenizer.start_id):
    cfg = load_config(config or spec, overrides | {"data.start": tokenizer.token(start)})
    tokenizer = tokenizers.read_tokenizer(cfg.data)
  cfg = resolve(cfg, tokenizer.vocab_size, jax.device_count())
  tokenizers.save_tokenizer(tokenizer, inside)
  lies = (workdir / path.relative_to(made)).resolve()
  cfg = dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, tokenizer_path=str(lies)))
  run = rundir.open_run(made, cfg, {"labels": classes_of(hf_config)})
  write_json(made / rundir.IMPORTED, hf_config)
  checkpoints = Checkpointer(made, cfg.checkpoint, rundir.origin(cfg, {}))
  checkpoints.save({"params": params if cfg.model.scan_layers else unstack_layers(params)}, 0)
  checkpoints.close()
  rundir.close_run(made, run, "done", reason=f"imported from {source}")
  return cfg


def export_run(
  workdir: pathlib.Path,
  folder: pathlib.Path,
  checkpoint: str,
  kind: str | None = None,
  dtype: str = "float32",
) -> list[str]:
  """Writes a run as a Hugging Face folder; returns the names of the files in it.

  Args:
    kind: model_type of the folder; None = that of its import, or the first that can say the model.
    dtype: of the weights: float32 | bfloat16 | float16.
  """
  cfg = rundir.read_config(workdir)
  came = read_json(workdir / rundir.IMPORTED) if (workdir / rundir.IMPORTED).is_file() else {}
  refuse_router_biases(
    cfg,
    "have a name in DeepSeek-V3's architecture alone (e_score_correction_bias), whose attention is another",
  )
  params, _ = load_params(workdir, checkpoint)
  if kind is not None and kind not in (*ARCHITECTURES, *MODELS):
    known = ", ".join([*ARCHITECTURES, *MODELS])
    raise ConfigError(f"type={kind}: must be one of {known}; leave it out")
  labels = rundir.read_run(workdir).get("data", {}).get("labels") or classes_of(came)
  params, model = merge_adapters(params, cfg.model)
  cfg = dataclasses.replace(cfg, model=model)
  state, hf_config = write_model(params, cfg, kind or came.get("model_type"), labels)
  if kind is not None and hf_config["model_type"] != kind:
    found = hf_config["model_type"]
    raise ConfigError(f"type={kind}: cannot say this model, which {found} can; leave it out")
  tokenizer = tokenizers.load_tokenizer(workdir / "tokenizer")
  hf_config |= {"bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.eot_id}
  if family_of(cfg.model).reads_source:
    start = tokenizer.start_id
    hf_config |= {"decoder_start_token_id": start, "pad_token_id": start}
  hf_config |= {key: came[key] for key in KEPT if came.get(key) is not None}
  named = hf_config["model_type"]
  row = MODELS[named].row if named in MODELS else DECODER_ROW
  check_target(folder)
  with whole_folder(folder, "to", (*WEIGHT_FILES, *TOKENIZER_FILES)) as made:
    write_folder(made, state, hf_config, dtype)
    template = jinja_of_run(workdir, cfg)
    inside, names = workdir / "tokenizer", span_names(cfg) if not came else []
    write_tokenizer(tokenizer, inside, made, cfg.model.seq_len, template, row, names)
    return sorted(path.name for path in made.iterdir())
