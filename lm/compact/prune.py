"""Pruning of matrices: which weights are set to zero, and which heads are cut out.

A matrix is [in, out]; leading axes (layers, experts) are matrices of their own. Scores say what is kept:
magnitude |w|, or |w| times the norm of its input over calibration text (Wanda: Sun et al. 2023,
arXiv:2306.11695 §3).
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from lm.config.errors import ConfigError
from lm.models.transformer_config import TransformerConfig

Arrays = Mapping[str, np.ndarray]


def smallest(scores: Arrays, fraction: float, scope: str) -> dict[str, np.ndarray]:
  """{name: mask}, False for the fraction of weights with the smallest scores.

  Args:
    scores: of each matrix, [..., in, out].
    fraction: of the weights, in (0, 1); rounded to whole weights.
    scope: global = of all matrices together; layer = of each matrix; output = of each column, as Wanda
      compares.

  Han et al. 2015, arXiv:1506.02626 §3.
  """
  if scope == "global":
    flat = np.concatenate([s.reshape(-1) for s in scores.values()])
    mask = _without_smallest(flat[None], fraction)[0]
    borders = np.cumsum([s.size for s in scores.values()])[:-1]
    parts = np.split(mask, borders)
    return {name: m.reshape(s.shape) for (name, s), m in zip(scores.items(), parts, strict=True)}
  if scope == "layer":
    rows = lambda s: s.reshape(-1, s.shape[-2] * s.shape[-1])
    return {n: _without_smallest(rows(s), fraction).reshape(s.shape) for n, s in scores.items()}
  found = {}
  for name, s in scores.items():
    turned = s.swapaxes(-1, -2)
    mask = _without_smallest(turned.reshape(-1, turned.shape[-1]), fraction)
    found[name] = mask.reshape(turned.shape).swapaxes(-1, -2)
  return found


def n_of_m(scores_IO: np.ndarray, n: int, m: int) -> np.ndarray:
  """Mask that keeps the n highest scores of every m neighbours along the input axis.

  2:4 is what sparse tensor cores multiply (Mishra et al. 2021, arXiv:2104.08378 §2).

  Raises:
    ConfigError: m does not divide the input axis.
  """
  turned = scores_IO.swapaxes(-1, -2)
  if turned.shape[-1] % m:
    raise ConfigError(
      f"pattern={n}:{m}: {m} must divide the {turned.shape[-1]} inputs of every matrix; use a "
      "divisor of them"
    )
  groups = turned.reshape(*turned.shape[:-1], -1, m)
  order = np.argsort(-groups, axis=-1, kind="stable")
  mask = np.zeros(groups.shape, bool)
  np.put_along_axis(mask, order[..., :n], True, axis=-1)
  return mask.reshape(turned.shape).swapaxes(-1, -2)


def without_heads(
  params: Arrays, cfg: TransformerConfig, n: int
) -> tuple[dict[str, np.ndarray], TransformerConfig]:
  """Parameters (by path, layers stacked) and config with n key/value heads fewer in every layer.

  With each goes the group of query heads that reads it. Those go whose weights in q, k, v and out have
  the smallest L2 norm (magnitude; Michel et al. 2019, arXiv:1905.10650, cut heads by gradients instead).
  The matrices get smaller: less memory and less arithmetic, on any device.

  Raises:
    ConfigError: no head would be left, or heads that are not independent of each other.
  """
  groups, size = cfg.kv_heads or cfg.heads, cfg.head_dim or cfg.width // cfg.heads
  if not 0 < n < groups:
    raise ConfigError(
      f"heads={n}: must leave some of the {groups} key/value heads of a layer; use "
      f"{'1' if groups > 1 else 'another method'}"
    )
  if cfg.positions == "alibi" or (cfg.qk_norm and cfg.qk_norm_over == "all"):
    raise ConfigError(
      f"heads={n}: with alibi or a norm over all heads a head depends on the others; use another method"
    )
  per_group = cfg.heads // groups * size
  sizes = {"q": per_group, "k": size, "v": size}
  attn = {k: v for k, v in params.items() if k.startswith("blocks/attn/")}

  def by_group(name):
    """[layers, groups, ...] and which axis of the array the groups come from."""
    part = name.split("/")[2]
    a = attn[name]
    if part == "out":
      return a.reshape(a.shape[0], groups, per_group, -1), 1
    a = a.reshape(*a.shape[:-1], groups, sizes[part])
    return np.moveaxis(a, -2, 1), a.ndim - 2

  split = ("blocks/attn/q/", "blocks/attn/k/", "blocks/attn/v/", "blocks/attn/out/kernel")
  cut = {name: by_group(name) for name in attn if name.startswith(split)}
  norms = sum(
    np.square(a).sum(axis=tuple(range(2, a.ndim)))
    for name, (a, _) in cut.items()
    if name.endswith("kernel")
  )
  kept = np.sort(np.argsort(-norms, axis=1, kind="stable")[:, : groups - n], axis=1)
  found = dict(params)
  for name, (a, axis) in cut.items():
    index = kept.reshape(*kept.shape, *[1] * (a.ndim - 2))
    left = np.take_along_axis(a, index, axis=1)
    left = np.moveaxis(left, 1, axis)
    shape = attn[name].shape
    found[name] = left.reshape(
      *(d if i != axis else -1 for i, d in enumerate(shape[: axis + 1])), *shape[axis + 1 :]
    )
  heads = (groups - n) * (cfg.heads // groups)
  return found, dataclasses.replace(cfg, heads=heads, kv_heads=groups - n)


def _without_smallest(scores_RN: np.ndarray, fraction: float) -> np.ndarray:
  """Of every row all but the smallest round(fraction N); of equal ones the first go."""
  n = round(fraction * scores_RN.shape[1])
  mask = np.ones(scores_RN.shape, bool)
  order = np.argsort(scores_RN, axis=1, kind="stable")[:, :n]
  np.put_along_axis(mask, order, False, axis=1)
  return mask
