"""Trees of parameters: drawn, with their logical axes and kinds, with layers stacked or one by one.

A family's parameters are a nested dict. Layers of one shape are stacked under the name `blocks`, with a
leading axis; without `scan_layers` each has a name of its own, `block_0`, `block_1`, ...
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.models.family import Weight
from lm.models.registry import family_of

Tree = Any


def init_params(model: nn.Module, key: jax.Array, init_scale: float | jax.Array = 1.0) -> Tree:
  """Float32 parameters of a family's module, plain arrays; matrices are multiplied by init_scale.

  The same key draws the same numbers whether or not layers are scanned.
  """
  params = nn.meta.unbox(_init_boxed(model, key))
  kinds = param_kinds(params, family_of(model.cfg).weights(model.cfg))
  params = jax.tree.map(lambda p, kind: p if kind == "vector" else p * init_scale, params, kinds)
  return params if _is_scanned(model) else unstack_layers(params)


def param_axes(model: nn.Module) -> Tree:
  """The tree of parameters with a tuple of logical axis names in place of each."""
  axes = boxed_axes(jax.eval_shape(lambda key: _init_boxed(model, key), jax.random.key(0)))
  return axes if _is_scanned(model) else _unstack(axes, _without_layer_axis, _depths(model))


def boxed_axes(boxed: Tree) -> Tree:
  """The logical names that Linen's boxes carry."""
  is_box = lambda x: isinstance(x, nn.meta.AxisMetadata)
  return jax.tree.map(lambda box: tuple(box.names), boxed, is_leaf=is_box)


def param_kinds(tree: Tree, weights: Sequence[Weight], is_leaf: Callable | None = None) -> Tree:
  """The tree with the kind of each parameter (lm.models.family.WEIGHT_KINDS) in its place.

  Raises:
    ValueError: a parameter that the list of weights does not hold.
  """
  known = {weight.name: weight.kind for weight in weights}

  def kind(path, _):
    name = "/".join(re.sub(r"^block_\d+$", "blocks", part.key) for part in path)
    if name not in known:
      raise ValueError(f"parameter {name} is not among the family's weights; add it there")
    return known[name]

  return jax.tree_util.tree_map_with_path(kind, tree, is_leaf=is_leaf)


def stack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
  """block_0 .. block_n as one `blocks` with a leading layer axis, at every depth of the tree."""
  params = {k: stack_layers(v) if isinstance(v, Mapping) else v for k, v in params.items()}
  names = sorted((k for k in params if re.fullmatch(r"block_\d+", k)), key=lambda k: int(k[6:]))
  rest = {k: v for k, v in params.items() if k not in names}
  if not names:
    return rest
  return rest | {"blocks": jax.tree.map(lambda *p: jnp.stack(p), *(params[k] for k in names))}


def unstack_layers(params: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of stack_layers."""
  depths = lambda path, blocks: jax.tree.leaves(blocks)[0].shape[0]
  return _unstack(params, lambda blocks, i: jax.tree.map(lambda p: p[i], blocks), depths)


def with_leaves(params: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
  """Parameters and the leaves of a second tree beside them.

  Args:
    more: of other names than the parameters; layers stacked, whether or not those of `params` are.
  """
  if "blocks" not in params:
    more = unstack_layers(more)
  return nested(by_path(params) | by_path(more))


def by_path(tree: Tree) -> dict[str, Any]:
  """{"blocks/attn/q/kernel": leaf, ...} of a nested dict."""
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def path_name(path: Sequence[Any]) -> str:
  """ "blocks/attn/q/kernel" of jax's path to a leaf of a nested dict."""
  return "/".join(part.key for part in path)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `by_path`."""
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *folders, last = name.split("/")
    at = tree
    for folder in folders:
      at = at.setdefault(folder, {})
    at[last] = leaf
  return tree


def _unstack(tree, layer, depths, path=()):
  out = {}
  for name, value in tree.items():
    if name == "blocks":
      out |= {f"block_{i}": layer(value, i) for i in range(depths(path, value))}
    else:
      is_dict = isinstance(value, Mapping)
      out[name] = _unstack(value, layer, depths, (*path, name)) if is_dict else value
  return out


def _without_layer_axis(axes, i):
  return jax.tree.map(lambda names: names[1:], axes, is_leaf=lambda x: isinstance(x, tuple))


def _depths(model):
  """Layers of each stack, from the shapes of the stacked parameters."""
  shapes = nn.meta.unbox(jax.eval_shape(lambda key: _init_boxed(model, key), jax.random.key(0)))

  def depth(path, _):
    at = shapes
    for name in path:
      at = at[name]
    return jax.tree.leaves(at["blocks"])[0].shape[0]

  return depth


def _is_scanned(model) -> bool:
  return getattr(model.cfg, "scan_layers", True)


def _init_boxed(model, key):
  if not _is_scanned(model):
    model = model.clone(cfg=dataclasses.replace(model.cfg, scan_layers=True))
  arrays = [
    jnp.zeros((1,) * len(each.axes), each.dtype) for each in family_of(model.cfg).inputs.values()
  ]
  return model.init({"params": key}, *arrays)["params"]
