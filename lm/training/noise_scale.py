"""How noisy a batch's gradient is, from the gradients of its micro-batches.

With G the gradient of the mean loss and Sigma the covariance of one token's gradient, a batch of B tokens has
E|G_B|^2 = |G|^2 + tr(Sigma) / B. The mean over micro-batches of b tokens and their whole of B give two such
equations, so that

    |G|^2     is estimated by (B |G_B|^2 - b |G_b|^2) / (B - b)     ("signal"),
    tr(Sigma)              by (|G_b|^2 - |G_B|^2) / (1/b - 1/B)     ("noise", tokens times signal's unit),

both without bias. Tokens of one row are not independent, so Sigma is that of rows, divided by their length.
The simple noise scale B_simple = tr(Sigma) / |G|^2, in tokens, is about the batch beyond which more rows
a step hardly save steps. McCandlish et al. 2018, arXiv:1812.06162, §2.2 and appendix A.1: one step's
estimates are noisy, so both are averaged over steps before one is divided by the other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

SIGNAL, NOISE = "train/grad_signal", "train/grad_noise"


def squared_norm(grads: Any, weight: jax.Array) -> jax.Array:
  """|grads / weight|^2 of gradients of a sum over `weight` tokens; 0 where there are none."""
  total = sum(jnp.sum(jnp.square(g.astype(jnp.float32))) for g in jax.tree.leaves(grads))
  return jnp.where(weight > 0, total / jnp.square(jnp.maximum(weight, 1.0)), 0.0)


def estimates(
  micro: jax.Array, whole: jax.Array, weight: jax.Array, n: int
) -> dict[str, jax.Array]:
  """Signal and noise of one step.

  Args:
    micro: mean over the micro-batches of the squared norm of their mean gradients.
    whole: squared norm of the mean gradient of the batch.
    weight: tokens of the batch.
    n: micro-batches, of about as many tokens each.
  """
  b = weight / n
  return {
    SIGNAL: (weight * whole - b * micro) / jnp.maximum(weight - b, 1.0),
    NOISE: (micro - whole) * jnp.maximum(weight, 1.0) / (n - 1),  # 1 / (1/b - 1/B)
  }


def noise_scale(records: Sequence[Mapping[str, Any]], last: float = 0.5) -> float | None:
  """B_simple in tokens over the last part of a record (metrics.jsonl), or None where it cannot be told.

  Args:
    last: share of the records that count, from the end.
  """
  found = [(r[SIGNAL], r[NOISE]) for r in records if SIGNAL in r and NOISE in r]
  found = found[len(found) - int(len(found) * last) :]
  if not found:
    return None
  signal, noise = np.mean(np.array(found, float), axis=0)
  return float(noise / signal) if signal > 0 and noise > 0 else None
