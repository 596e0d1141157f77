"""Weights by Hugging Face's names and parameters of the decoder, both ways.

Conversion only renames, transposes, splits and permutes, by the rows of lm.hf.architectures: going
out and in again gives the same bits.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lm.config.errors import ConfigError
from lm.cost.parameters import weights
from lm.hf.architectures import ARCHITECTURES, Architecture
from lm.hf.fields import config_of, fields_of, model_config
from lm.models.transformer_config import TransformerConfig
from lm.models.trees import stack_layers

State = dict[str, np.ndarray]
# What old files hold beside weights.
BUFFERS = r"\.attn\.(masked_)?bias$|\.attention\.(masked_)?bias$|rotary_emb\.inv_freq$"
# Names that transformers 5 has in memory -> those of files.
MIXTRAL_5 = {
  r"\.mlp\.gate\.weight$": ".block_sparse_moe.gate.weight",
  r"\.mlp\.experts\.": ".block_sparse_moe.experts.",
}
BELONG = "check that config and weights belong together"


# --- in -------------------------------------------------------------------------------------------


def from_hf(state: Mapping[str, np.ndarray], hf_config: Mapping[str, Any]) -> tuple[dict, dict]:
  """(fields of TransformerConfig, parameters) of a model of lm.hf.architectures.

  Args:
    state: arrays by the names of the ...ForCausalLM class, with or without the prefix of its base
      model; any float dtype.
    hf_config: the content of config.json.

  Returns:
    The fields that the architecture sets, and float32 parameters in the layout of scanned layers.

  Raises:
    ConfigError: another architecture, a variant that the decoder lacks, or weights that are
      missing, left over or of another shape.
  """
  fields = fields_of(hf_config)
  kind = hf_config["model_type"]
  arch, cfg = ARCHITECTURES[kind], model_config(fields)
  state = _plain_names(arch, state)
  if cfg.tied_embeddings:
    head = state.pop(f"{arch.rest['head']}.weight", None)
    embedding = state.get(f"{arch.rest['embed']}.weight")
    if head is not None and embedding is not None and not np.array_equal(head, embedding):
      raise ConfigError(
        "tie_word_embeddings=True: the head of the weights is another matrix than the embedding; set False "
        "in config.json if the head is to be used, or take it out of the weights"
      )
  _split(arch, state, cfg)
  params: dict[str, Any] = {}
  for weight in weights(cfg):
    words = weight.name.split("/")
    flip = words[-1] == "kernel" and (arch.out_in or words[0] == "head")
    if words[0] != "blocks":
      found = take_array(state, _name(arch.rest, words), weight.shape, flip)
    else:
      name = _name(_block(arch), words[1:])
      shape = weight.shape
      if weight.copies > cfg.depth:
        shape = (weight.copies // cfg.depth, *shape)  # one of every expert
      layer = lambda i, name=name, shape=shape, flip=flip: take_array(
        state, f"{arch.layers}.{i}.{name}", shape, flip
      )
      found = np.stack([layer(i) for i in range(cfg.depth)])
    node = params
    for word in words[:-1]:
      node = node.setdefault(word, {})
    node[words[-1]] = found
  if state:
    raise ConfigError(
      f"{_shown(min(state))}: is no weight of this {kind}; {len(state)} such are left over; {BELONG}"
    )
  return fields, params


def _plain_names(arch, state):
  """The arrays without buffers, with the prefix of the base model on every name."""
  prefix, head = f"{arch.layers.split('.')[0]}.", arch.rest["head"]
  bare = not any(name.startswith(prefix) for name in state)
  found = {}
  for name, array in state.items():
    if re.search(BUFFERS, name):
      continue
    if "mlp/router" in arch.block:
      for pattern, theirs in MIXTRAL_5.items():
        name = re.sub(pattern, theirs, name)
    if name.startswith("lm_head."):
      name = name.replace("lm_head.", f"{head}.")
    elif bare and not name.startswith(f"{head}."):
      name = prefix + name
    found[name] = array
  return found


def _block(arch: Architecture) -> dict[str, str]:
  """Ours to theirs within a layer; a part of a fused map is called `fused<part`."""
  parts = {part: f"{name}<{part}" for name, parts in arch.fused.items() for part in parts}
  return arch.block | parts


def _rows(cfg: TransformerConfig) -> dict[str, int]:
  """Rows of the maps that are fused somewhere."""
  queries, keys = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
  sizes = {"attn/q": queries, "attn/k": keys, "attn/v": keys}
  return sizes | {"mlp/gate": cfg.mlp_dim, "mlp/up": cfg.mlp_dim}


def _split(arch, state, cfg):
  """Puts the parts of fused maps in place of them, and pairs of rotated rows where they are here."""
  rows = _rows(cfg)
  for name, array in list(state.items()):
    for fused, parts in arch.fused.items():
      module, _, suffix = name.rpartition(".")
      if not module.startswith(f"{arch.layers}.") or not module.endswith(f".{fused}"):
        continue
      array, axis = np.asarray(state.pop(name)), 0 if arch.out_in else -1
      sizes = [rows[part] for part in parts]
      if not array.ndim or array.shape[axis] != sum(sizes):
        raise ConfigError(f"{name}={array.shape}: must have {sum(sizes)} rows; {BELONG}")
      if arch.by_head:
        by_head = array.reshape(cfg.heads, len(parts), cfg.head_dim, *array.shape[1:])
        pieces = [by_head[:, i].reshape(-1, *array.shape[1:]) for i in range(len(parts))]
      else:
        pieces = np.split(array, np.cumsum(sizes)[:-1], axis=axis)
      state |= {f"{module}<{p}.{suffix}": a for p, a in zip(parts, pieces, strict=True)}
  if arch.pairs == "neighbours":
    _each_rotated(arch, state, lambda array: to_halves(array, cfg.head_dim, cfg.rope_dim))
  if "mlp/router" in arch.block:
    _gather_experts(arch, state, cfg)


def _each_rotated(arch, state, change):
  for part in ("attn/q", "attn/k"):
    for name in [n for n in state if f".{_block(arch)[part]}." in n]:
      state[name] = change(np.asarray(state[name]))


def to_halves(array: np.ndarray, head_dim: int, dim: int | None = None) -> np.ndarray:
  """Rows of a query or key map, rotated pairs (2i, 2i + 1), in the order of pairs (i, i + K/2)."""
  return _reorder(array, head_dim, dim, lambda n: np.arange(n).reshape(-1, 2).T.ravel())


def to_neighbours(array: np.ndarray, head_dim: int, dim: int | None = None) -> np.ndarray:
  """The inverse of `to_halves`."""
  return _reorder(array, head_dim, dim, lambda n: np.arange(n).reshape(2, -1).T.ravel())


def _reorder(array, head_dim, dim, order):
  dim = dim or head_dim
  if not array.ndim or array.shape[0] % head_dim:
    return array  # of another shape than it must have, which `take_array` says
  rows = np.concatenate([order(dim), np.arange(dim, head_dim)])
  by_head = array.reshape(-1, head_dim, *array.shape[1:])
  return by_head[:, rows].reshape(array.shape)


def _gather_experts(arch, state, cfg):
  """One array for all experts of a layer, of those of each one or of transformers 5's fused ones."""
  theirs = {part: arch.block[part] for part in ("mlp/gate", "mlp/up", "mlp/down")}
  for i in range(cfg.depth):
    prefix = f"{arch.layers}.{i}.block_sparse_moe.experts"
    both, down = f"{prefix}.gate_up_proj", f"{prefix}.down_proj"
    named = {part: f"{arch.layers}.{i}.{name}.weight" for part, name in theirs.items()}
    if both in state and down in state:
      shape = np.shape(state[both])
      if len(shape) != 3 or shape[1] != 2 * cfg.mlp_dim:
        raise ConfigError(f"{both}={shape}: must have {2 * cfg.mlp_dim} rows; {BELONG}")
      state[named["mlp/gate"]], state[named["mlp/up"]] = np.split(np.asarray(state.pop(both)), 2, 1)
      state[named["mlp/down"]] = state.pop(down)
      continue
    for name in named.values():
      each = [name.replace("*", str(e)) for e in range(cfg.experts)]
      lacking = [one for one in each if one not in state]
      if lacking:
        raise ConfigError(f"{lacking[0]}: the weights lack it; {BELONG}")
      arrays = [np.asarray(state.pop(one)) for one in each]
      if len({array.shape for array in arrays}) > 1:
        raise ConfigError(f"{each[0]}={arrays[0].shape}: experts must be alike; {BELONG}")
      state[name] = np.stack(arrays)


def take_array(state: dict[str, Any], name: str, shape: Sequence[int], flip: bool) -> np.ndarray:
  """The array of a name, taken out of the rest and checked, as float32 of this shape.

  Args:
    flip: whether matrices are [out, in] there.

  Raises:
    ConfigError: none there, another shape, or whole numbers, such as quantised weights.
  """
  if name not in state:
    raise ConfigError(f"{_shown(name)}: the weights lack it; {BELONG}")
  array = np.asarray(state.pop(name))
  if array.dtype.kind not in "fV" and array.dtype.name not in ("bfloat16", "float16"):
    raise ConfigError(
      f"{_shown(name)}={array.dtype}: must be numbers with a fraction; convert the model to bfloat16"
    )
  wanted = (*shape[:-2], *shape[-2:][::-1]) if flip else tuple(shape)
  if array.shape != wanted:
    raise ConfigError(f"{_shown(name)}={array.shape}: config.json says {wanted}; {BELONG}")
  array = array.astype(np.float32)
  return array.swapaxes(-1, -2) if flip else array


def _shown(name):
  return re.sub(r"<[^.]*", "", name)


def _name(table, words):
  """Their name of our parameter at `words`: kernel, scale and embedding are all called weight."""
  return f"{table['/'.join(words[:-1])]}.{'bias' if words[-1] == 'bias' else 'weight'}"


# --- out ------------------------------------------------------------------------------------------


def to_hf(
  params: Mapping[str, Any], cfg: TransformerConfig, kind: str | None = None
) -> tuple[State, dict[str, Any]]:
  """(float32 arrays by Hugging Face's names, content of config.json): the inverse of from_hf.

  Args:
    params: of either layout, scanned or not.
    cfg: resolved.
    kind: the architecture, if it can say all of cfg; None = the first that can.

  Raises:
    ConfigError: what no architecture can express.
  """
  hf_config = config_of(cfg, kind)
  arch = ARCHITECTURES[hf_config["model_type"]]
  stacked = params if cfg.scan_layers else stack_layers(params)
  state: State = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(stacked):
    words, array = tuple(part.key for part in path), np.asarray(leaf, np.float32)
    if words[-1] == "kernel" and (arch.out_in or words[0] == "head"):
      array = array.swapaxes(-1, -2)
    if words[0] == "blocks":
      name = _name(_block(arch), words[1:])
      state |= {f"{arch.layers}.{i}.{name}": array[i] for i in range(cfg.depth)}
    else:
      state[_name(arch.rest, words)] = array
  state = _join(arch, state, cfg)
  return {name: np.ascontiguousarray(array) for name, array in state.items()}, hf_config


def _join(arch, state, cfg):
  """The inverse of _split."""
  if arch.pairs == "neighbours":
    _each_rotated(arch, state, lambda array: to_neighbours(array, cfg.head_dim, cfg.rope_dim))
  joined = {}
  for name, array in state.items():
    module, _, suffix = name.rpartition(".")
    fused, part = ([*module.split("<"), ""])[:2]
    if part:
      parts = next(p for f, p in arch.fused.items() if fused.endswith(f".{f}"))
      if part != parts[0]:
        continue
      pieces = [state[f"{fused}<{p}.{suffix}"] for p in parts]
      if arch.by_head:
        by_head = [a.reshape(cfg.heads, 1, cfg.head_dim, *a.shape[1:]) for a in pieces]
        joined[f"{fused}.{suffix}"] = np.concatenate(by_head, 1).reshape(-1, *array.shape[1:])
      else:
        axis = 0 if arch.out_in else -1
        joined[f"{fused}.{suffix}"] = np.concatenate(pieces, axis)
    elif "*" in name:
      joined |= {name.replace("*", str(e)): array[e] for e in range(cfg.experts)}
    else:
      joined[name] = array
  return joined
