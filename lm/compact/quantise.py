"""Weights in 8 or 4 bits: symmetric scales a column or a group of it, rounded to the nearest or by GPTQ."""

import numpy as np

from lm.config.errors import ConfigError
from lm.runs.packed import Coded

DAMPING = 0.01  # of the mean diagonal of the Hessian, added to it (Frantar et al. 2022 §3.3)
BLOCK = 128  # rows whose corrections reach later rows together


def largest_code(bits: int) -> int:
  """127 of 8 bits, 7 of 4: codes are symmetric around 0."""
  return 2 ** (bits - 1) - 1


def nearest(w: np.ndarray, bits: int, group: int | None = None, axis: int = -2) -> Coded:
  """codes = round(w / s), s = max |w| / (2^(bits-1) - 1) of the numbers that share a scale.

  Args:
    w: float32; matrices [..., in, out] with axis -2, tables [entries, width] with axis -1.
    bits: 4 or 8.
    group: neighbours along `axis` that share a scale; None = all of them (per channel).

  Raises:
    ConfigError: a group that does not divide the axis.
  """
  size = w.shape[axis]
  group = size if group is None else group
  if size % group:
    raise ConfigError(f"group={group}: must divide the {size} inputs of a matrix; use a divisor")
  moved = np.moveaxis(np.asarray(w, np.float32), axis, -1)
  parts = moved.reshape(*moved.shape[:-1], size // group, group)
  scales = _scales(np.abs(parts).max(axis=-1), bits)
  codes = np.round(parts / scales[..., None]).astype(np.int8).reshape(moved.shape)
  back = lambda a: np.ascontiguousarray(np.moveaxis(a, -1, axis))
  return Coded(back(codes), back(scales), bits, axis)


def gptq(w_IO: np.ndarray, product_II: np.ndarray, bits: int, group: int | None = None) -> Coded:
  """Codes of one matrix that keep x W rather than W: what rounding changes in a row, later rows mend.

  With H = X^T X + damping and U the upper Cholesky factor of its inverse, for each row i in turn

      q_i = round(w_i / s),   e = (w_i - s q_i) / U_ii,   w_j <- w_j - e U_ij   for j > i

  Scales are those of the rows as they stand when their group begins. Frantar et al. 2022,
  arXiv:2210.17323 §3.3, without reordering of rows.

  Args:
    w_IO: [in, out].
    product_II: X^T X of calibration inputs X, [tokens, in].
    bits, group: as of `nearest`.
  """
  rows = w_IO.shape[0]
  if group is not None and rows % group:
    raise ConfigError(f"group={group}: must divide the {rows} inputs of a matrix; use a divisor")
  w, h = w_IO.astype(np.float64), product_II.astype(np.float64)
  dead = np.diag(h) == 0  # inputs that were always 0: any weight does
  h[dead, dead] = 1.0
  w[dead] = 0.0
  h[np.diag_indices(rows)] += DAMPING * np.diag(h).mean()
  upper = np.linalg.cholesky(np.linalg.inv(h)).T
  top, block = largest_code(bits), group or BLOCK
  codes = np.zeros(w.shape, np.int8)
  scales = np.zeros((rows // group if group else 1, w.shape[1]), np.float32)
  scale = _scales(np.abs(w[: group or rows]).max(axis=0), bits)
  for first in range(0, rows, block):
    last = min(first + block, rows)
    if group:
      scale = _scales(np.abs(w[first:last]).max(axis=0), bits)
    scales[first // group if group else 0] = scale
    errors = np.zeros((last - first, w.shape[1]))
    for i in range(first, last):
      codes[i] = np.clip(np.round(w[i] / scale), -top, top)
      errors[i - first] = (w[i] - codes[i] * scale.astype(np.float64)) / upper[i, i]
      w[i + 1 : last] -= np.outer(upper[i, i + 1 : last], errors[i - first])
    w[last:] -= upper[first:last, last:].T @ errors
  return Coded(codes, scales, bits, -2)


def _scales(largest, bits):
  """Float32 scales; 1 where all numbers are 0."""
  return np.where(largest == 0, 1.0, largest / largest_code(bits)).astype(np.float32)
