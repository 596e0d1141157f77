"""Starting a run from parameters that exist: another run's, or a Hugging Face folder's.

Parameters are taken by name where shapes agree; optimizer state, step and data begin anew.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config, flatten
from lm.hf.folder import read_folder
from lm.hf.models import read_model
from lm.models.trees import by_path, nested, path_name, stack_layers, unstack_layers
from lm.runs import agreement, rundir
from lm.runs.checkpoint import load_params, weights_hash
from lm.training.step import State

# Differences in these change no parameter's meaning.
HARMLESS = (
  "seq_len",
  "dropout",
  "dtype",
  "scan_layers",
  "remat",
  "remat_keep",
  "attention",
  "matmul",
)
POSITIONS = "position_embed/embedding"
SHOWN = 6  # names said of a long list


class Loaded(NamedTuple):
  params: dict[str, np.ndarray]  # by path, layers stacked; those that fit
  lines: tuple[str, ...]  # what was taken, what begins anew, what was left
  about: dict[str, Any]  # for run.json: where from, its step, a hash of all weights there


def load(cfg: Config, wanted: Any) -> Loaded | None:
  """What `train.init_from` gives for the parameters of a resolved config; None where it is not set.

  Args:
    wanted: ShapeDtypeStructs of the run's parameters.

  Raises:
    ConfigError: nothing there, or no parameter that fits.
  """
  where = cfg.train.init_from
  if where is None:
    return None
  saved, differences, about = _read(pathlib.Path(where).expanduser(), cfg)
  agreement.check_weights("train.init_from", about)
  there = by_path(stack_layers(saved))
  here = by_path(jax.eval_shape(stack_layers, wanted))
  there |= (cut := _cut_positions(there, here))
  grown = _grow(there, here, cfg) if cfg.train.init_depth else ""
  fits = {name: a for name, a in there.items() if name in here and here[name].shape == a.shape}
  if not fits:
    raise ConfigError(
      f"train.init_from={where}: no parameter fits this model by name and shape (there: "
      f"{_few(there)}; here: {_few(here)}); choose another run, or a model like it"
    )
  odd = [
    f"{n} {there[n].shape} there, {here[n].shape} here"
    for n in here
    if n in there and n not in fits
  ]
  lines = [f"start from  {where}: {len(fits)} of {len(here)} parameters"]
  lines += [f"            {grown}"] * bool(grown)
  lines += [f"            new: {_few(n for n in here if n not in there)}"] * (
    set(here) > set(there)
  )
  lines += [f"            cut to model.seq_len: {_few(cut)}"] * bool(cut)
  lines += [f"            new, as the shape differs: {_few(odd)}"] * bool(odd)
  lines += [f"            left: {_few(n for n in there if n not in here)}"] * bool(
    set(there) - set(here)
  )
  lines += [f"            set otherwise there: {_few(differences)}"] * bool(differences)
  return Loaded(fits, tuple(lines), about)


def place(
  state: State, loaded: Loaded | None, n_runs: int, say: Callable[[str], None] = print
) -> State:
  """A fresh state with what was loaded in it, on the devices where the fresh parameters lie."""
  if loaded is None:
    return state
  say("\n".join(loaded.lines))
  stacked = "blocks" in str(jax.tree_util.tree_structure(state.params))
  saved = loaded.params if stacked else by_path(unstack_layers(nested(loaded.params)))

  def put(path, leaf):
    name = path_name(path)
    if name not in saved:
      return leaf
    array = np.asarray(saved[name], leaf.dtype)
    whole = np.broadcast_to(array, leaf.shape) if n_runs > 1 else array
    return jax.device_put(whole, leaf.sharding)

  params = jax.tree_util.tree_map_with_path(put, state.params)
  ema = None if state.ema is None else jax.tree.map(lambda p: p.copy(), params)
  return state._replace(params=params, ema=ema)


def _read(folder: pathlib.Path, cfg: Config) -> tuple[Mapping[str, Any], list[str], dict[str, Any]]:
  """(parameters, settings that differ, what run.json says of them) of a run or a Hugging Face folder."""
  about: dict[str, Any] = {"from": str(folder.resolve())}
  if (folder / "run.json").exists():
    other = flatten(rundir.read_config(folder))
    params, step = load_params(folder)
    about |= {"id": rundir.read_run(folder).get("id"), "step": step}
  elif (folder / "config.json").exists():
    fields, params = read_model(*read_folder(folder))
    other = {f"model.{key}": value for key, value in fields.items()}
  else:
    raise ConfigError(
      f"train.init_from={cfg.train.init_from}: holds neither a run (run.json) nor a Hugging Face "
      "folder (config.json); check the path"
    )
  mine = flatten(cfg)
  keys = [k for k in other if k.startswith("model.") and k.partition(".")[2] not in HARMLESS]
  about["weights"] = weights_hash(params)
  return params, [f"{k}={other[k]}" for k in keys if k in mine and mine[k] != other[k]], about


def _cut_positions(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
  """Tables of positions that are longer there, as long as they are here: rows mean the same positions."""
  found = {}
  for name, array in there.items():
    if not name.endswith(POSITIONS) or name not in here:
      continue
    length, *rest = here[name].shape
    if array.shape[0] > length and list(array.shape[1:]) == rest:
      found[name] = array[:length]
  return found


def _grow(there: dict[str, Any], here: Mapping[str, Any], cfg: Config) -> str:
  """Repeats the layers of a shallower model, in place, until they are as many as here; a line about it.

  Of d layers there, layer i here is layer i mod d (stack: Gong et al. 2019, "Efficient training of BERT by
  progressively stacking") or layer floor(i d / depth) (interleave: Chang et al. 2018, arXiv:1710.10348).

  Raises:
    ConfigError: no stack of layers there is of a size that divides that of here.
  """
  how, told = cfg.train.init_depth, set()
  for name, array in there.items():
    if "blocks" not in name.split("/") or name not in here:
      continue
    (n, *shape), (depth, *wanted) = array.shape, here[name].shape
    if shape == wanted and n < depth and depth % n == 0:
      order = np.arange(depth) % n if how == "stack" else np.arange(depth) * n // depth
      there[name] = np.asarray(array)[order]
      told.add(f"{n} to {depth}")
  if not told:
    raise ConfigError(
      f"train.init_depth={how}: train.init_from={cfg.train.init_from} has no layers whose number divides "
      "that of this model; choose another model.depth or use None"
    )
  return f"layers: {', '.join(sorted(told))} ({how})"


def _few(names) -> str:
  names = list(names)
  return ", ".join(names[:SHOWN]) + (
    f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
  )
