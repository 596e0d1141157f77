"""Pruning while training: weights go by a score, a few more at every step.

    y = (W * M) x,   M = 1 where a weight is kept                   W: every matrix of kind hidden
    magnitude:      scores |W|                                      (Zhu & Gupta 2017, arXiv:1710.01878)
    movement:       scores S, learned: dL/dS = dL/d(W * M) * W, as if M were S (straight through)
    soft_movement:  the same, and a weight is kept while sigmoid(S) > 0.1; the loss has
                    optim.prune_penalty * mean sigmoid(S) more, which pushes scores down

(Sanh et al. 2020, arXiv:2005.07683 §4, table 1). S grows where a weight moves away from 0 and falls where it
shrinks. magnitude and movement keep the highest scores of each matrix; which share of them falls with the
run's fraction t from 1 to optim.prune_keep:

    1 - (1 - keep) p(t),   p = 1 - (1 - (t - begin) / (end - begin))^3,   cut to [0, 1]

p multiplies the penalty of soft_movement instead. A weight that is taken out rests where it was, without a
gradient, and comes back if its score does. Scores start at 0 and move by Adam (optim.b1, b2, eps) with rate
optim.prune_lr times the schedule, from gradients before clipping.

The run's parameters are W * M: evaluation, samples, checkpoints and exports see zeros; what rests, scores
and masks are state of the optimizer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.config.errors import ConfigError
from lm.config.hparams import Hparams
from lm.config.schema import Config

Tree = Any
LEAST = 0.1  # sigmoid(S) above which soft_movement keeps a weight
OTHERS = ("router", "lora_a", "lora_b")  # parts of a path whose matrices stay whole


class Pruned(NamedTuple):
  count: jax.Array  # int32 updates
  inner: Any  # state of the optimizer, which sees all weights
  kept: Tree  # bool, of the matrices that are pruned alone, as below
  resting: Tree  # W where it is taken out, else 0
  scores: Tree  # S; None where scores are |W|
  moments: Any  # of Adam on S


def check_pruning(cfg: Config) -> None:
  """ConfigError for settings that would leave or keep other weights than asked for."""
  optim = cfg.optim
  if optim.prune == "none":
    return
  if optim.prune_begin >= optim.prune_end:
    raise ConfigError(
      f"optim.prune_begin={optim.prune_begin}: must be below optim.prune_end={optim.prune_end}; use 0.1"
    )
  early = "may choose a step before the last weights are taken out"
  for key, value, off, why in (
    ("optim.ema_decay", optim.ema_decay, None, "averages weights that were taken out"),
    ("checkpoint.best", cfg.checkpoint.best, False, early),
    ("eval.stop_patience", cfg.eval.stop_patience, None, early),
  ):
    if value != off:
      raise ConfigError(f"{key}={value}: with optim.prune={optim.prune} it {why}; use {off}")


def are_pruned(kinds: Tree, frozen: Tree) -> Tree:
  """For each parameter whether it is a matrix that is pruned: of kind hidden, not of OTHERS, not frozen."""

  def one(path, kind, is_frozen):
    words = [part.key for part in path]
    return kind == "hidden" and not is_frozen and not set(words) & set(OTHERS)

  return jax.tree_util.tree_map_with_path(one, kinds, frozen)


def progress(hparams: Hparams, count: jax.Array) -> jax.Array:
  """p after `count` updates."""
  done = count.astype(jnp.float32) / hparams.total_steps.astype(jnp.float32)
  span = jnp.maximum(hparams.prune_end - hparams.prune_begin, 1e-9)
  return 1 - (1 - jnp.clip((done - hparams.prune_begin) / span, 0, 1)) ** 3


def highest(scores: jax.Array, share: jax.Array) -> jax.Array:
  """Mask of that share of the last two axes' entries with the highest scores, and of what equals the last."""
  flat = jnp.sort(scores.reshape(*scores.shape[:-2], -1), axis=-1)
  n = flat.shape[-1]
  dropped = jnp.clip(jnp.round((1 - share) * n).astype(jnp.int32), 0, n - 1)
  least = jnp.take(flat, dropped, axis=-1)
  return scores >= jnp.expand_dims(least, (-2, -1))


def pruned(
  tx: optax.GradientTransformationExtraArgs,
  how: str,
  hparams: Hparams,
  chosen: Tree,
  schedule: Callable[[jax.Array], jax.Array],
) -> optax.GradientTransformationExtraArgs:
  """`tx` on all weights, of whose result the parameters are what is kept.

  Args:
    tx: its updates are added to the weights.
    how: magnitude | movement | soft_movement.
    hparams: prune_keep, prune_begin, prune_end, prune_lr, prune_penalty, b1, b2, eps, total_steps.
    chosen: for each parameter whether it is pruned (`are_pruned`).
    schedule: updates done -> what prune_lr is multiplied by.
  """
  pick = lambda tree: jax.tree.map(lambda x, mine: x if mine else optax.MaskedNode(), tree, chosen)
  merge = lambda fn, tree, *picked: jax.tree.map(
    lambda x, mine, *others: fn(x, *others) if mine else x, tree, chosen, *picked
  )
  learned = how != "magnitude"
  adam = optax.scale_by_adam(hparams.b1, hparams.b2, hparams.eps)

  def init(params):
    mine = pick(params)
    zeros = lambda: jax.tree.map(jnp.zeros_like, mine)
    kept = jax.tree.map(lambda p: jnp.ones(p.shape, bool), mine)
    scores = zeros() if learned else None
    return Pruned(
      jnp.int32(0), tx.init(params), kept, zeros(), scores, adam.init(mine) if learned else None
    )

  def penalised(grads, scores, done):
    if how != "soft_movement":
      return grads
    n = sum(s.size for s in jax.tree.leaves(scores))
    each = hparams.prune_penalty * done / n
    slope = lambda s: jax.nn.sigmoid(s) * jax.nn.sigmoid(-s)
    return jax.tree.map(lambda g, s: g + each * slope(s), grads, scores)

  def update(updates, state, params: Any = None, **extra):
    grads = updates
    whole = merge(jnp.add, params, state.resting)
    own = merge(lambda g, kept: jnp.where(kept, g, 0), grads, state.kept)
    steps, inner = tx.update(own, state.inner, whole, **extra)
    moved = jax.tree.map(jnp.add, whole, steps)
    done = progress(hparams, state.count + 1)
    share = 1 - (1 - hparams.prune_keep) * done
    scores, moments = state.scores, state.moments
    if learned:
      through = jax.tree.map(jnp.multiply, pick(grads), pick(whole))
      with jax.numpy_dtype_promotion("standard"):  # optax multiplies its int32 counts by floats
        direction, moments = adam.update(penalised(through, scores, done), moments)
      rate = hparams.prune_lr * schedule(state.count)
      scores = jax.tree.map(lambda s, d: s - rate * d, scores, direction)
    if how == "soft_movement":
      kept = jax.tree.map(lambda s: jax.nn.sigmoid(s) > LEAST, scores)
    else:
      by = scores if learned else jax.tree.map(jnp.abs, pick(moved))
      kept = jax.tree.map(lambda s: highest(s, share), by)
    left = merge(lambda w, k: jnp.where(k, w, 0), moved, kept)
    resting = jax.tree.map(lambda w, k: jnp.where(k, 0, w), pick(moved), kept)
    return jax.tree.map(jnp.subtract, left, params), Pruned(
      state.count + 1, inner, kept, resting, scores, moments
    )

  return optax.GradientTransformationExtraArgs(init, update)


def share_kept(state: Any) -> jax.Array:
  """Share of the weights of pruned matrices that are kept, from the optimizer's state; float32."""
  masks = jax.tree.leaves(state.kept)
  kept = sum(mask.sum().astype(jnp.float32) for mask in masks)
  return kept / sum(mask.size for mask in masks)
