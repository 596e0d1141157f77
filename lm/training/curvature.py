"""The diagonal of the Hessian of a step's loss, drawn from a product with a random vector.

With u from N(0, I), u * (H u) has the mean diag(H) (Hutchinson 1989; Bekas et al. 2007; Liu et al. 2023,
arXiv:2305.14342 §2.3, algorithm 1). H u is the gradient of <gradient, u>: reverse over reverse, as some
products and attention forms have backward passes of their own, which forward differentiation cannot go
through. It costs two to three gradients, which neither the plan's FLOPs nor MFU count.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lm.config.schema import Config
from lm.objectives.registry import objective_of


def draw(
  grad_fn, params: Any, extra: Any, batch: Any, key: jax.Array, hparams: Any, cfg: Config
) -> Any:
  """u * (H u) of the mean objective at `params`, over the first micro-batch, with its dropout.

  Args:
    grad_fn: gradients of the objective's sum (lm.objectives.objective.GradFn).
    params, extra, batch, hparams: as `grad_fn` takes them, for the whole batch.
    key: of the step; u comes from a key that no micro-batch has.
    cfg: `train.accumulate` is the number of micro-batches.
  """
  n = cfg.train.accumulate
  if n > 1:
    first = lambda a: a[::n]  # rows of micro-batches are interleaved
    batch = jax.tree.map(first, dict(batch))
    axes = objective_of(cfg.objective).extra_axes(cfg)
    mine = lambda names, a: first(a) if names[:1] == ("batch",) else a
    extra = jax.tree.map(mine, axes, extra, is_leaf=lambda leaf: isinstance(leaf, tuple))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.fold_in(key, n), len(leaves))
  pairs = zip(keys, leaves, strict=True)
  u = tree.unflatten([jax.random.normal(k, x.shape, jnp.float32) for k, x in pairs])
  own = key if n == 1 else jax.random.fold_in(key, 0)

  def along(params):
    grads, _, (sums, _) = grad_fn(params, extra, batch, own, hparams)
    products = jax.tree.map(lambda g, v: jnp.sum(g.astype(jnp.float32) * v), grads, u)
    weight = jax.lax.stop_gradient(jnp.maximum(sums["weight"], 1.0))
    return sum(jax.tree.leaves(products)) / weight

  return jax.tree.map(jnp.multiply, u, jax.grad(along)(params))
