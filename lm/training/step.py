"""The state of a run and what moves it: initialise, one optimizer step, one evaluation batch."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from lm.config.hparams import Hparams
from lm.config.schema import Config
from lm.cost.parameters import run_weights
from lm.models import trees
from lm.objectives.objective import Batch, GradFn, LossFn, Sums
from lm.objectives.registry import objective_of
from lm.objectives.teacher import split_extra
from lm.optim.chain import (
  Multipliers,
  check_groups,
  check_hidden,
  decay_share,
  decays_hidden,
  learning_rate,
  make_optimizer,
  multipliers,
  read_groups,
  relative_updates,
)
from lm.optim.directions import OPTIMIZERS
from lm.optim.pruning import share_kept
from lm.optim.schedule_free import averaged
from lm.training import curvature, noise_scale

LOW_BITS = 24  # of a count of units that its lower half holds


class State(NamedTuple):
  step: jax.Array  # int32, optimizer steps completed
  params: Any  # float32: the family's tree, and one of each part of the objective
  opt_state: Any
  ema: Any  # like params, or None: the mean of weights that is evaluated (optim.ema_decay, schedule_free)
  extra: (
    Any  # what the objective keeps that is no parameter; in training also its teachers' parameters
  )
  # int32 [2]: units (tokens) trained on, padding not counted: upper and lower 24 bits
  seen: jax.Array


def init_state(hparams: Hparams, *, cfg: Config, model: nn.Module) -> State:
  """Step 0: parameters drawn from hparams.seed, a fresh optimizer state."""
  key = jax.random.fold_in(jax.random.key(hparams.seed), 0)
  params = trees.init_params(model, key, hparams.init_scale) | _init_parts(cfg, key, hparams)
  has_mean = cfg.optim.ema_decay is not None or OPTIMIZERS[cfg.optim.name].averages
  ema = jax.tree.map(jnp.array, params) if has_mean else None
  opt_state = optimizer_of(cfg, hparams, all_axes(cfg, model)).init(params)
  extra = objective_of(cfg.objective).init_extra(model, cfg, params, cfg.train.batch_size)
  return State(jnp.int32(0), params, opt_state, ema, extra, jnp.zeros(2, jnp.int32))


def all_axes(cfg: Config, model: nn.Module) -> Any:
  """Logical axis names of every parameter: the model's, and those of the objective's parts."""
  axes = trees.param_axes(model)
  for name, part in objective_of(cfg.objective).parts(cfg).items():
    init = lambda key, part=part: part.module.init(key, *_zeros(part.inputs))["params"]
    axes |= {name: trees.boxed_axes(jax.eval_shape(init, jax.random.key(0)))}
  return axes


def train_step(
  state: State,
  batch: dict[str, jax.Array],
  hparams: Hparams,
  *,
  cfg: Config,
  grad_fn: GradFn,
  axes: Any,
) -> tuple[State, dict[str, jax.Array]]:
  """One optimizer step on the weighted mean objective of a batch.

  Args:
    state: step t - 1.
    batch: arrays [B, ...]; B is split into cfg.train.accumulate micro-batches.
    hparams: traced scalars.
    grad_fn: gradients of the objective's sum (lm.objectives.objective.GradFn).
    axes: logical axis names of the parameters.

  Returns:
    (state at step t, float32 scalars keyed as in lm.runs.metrics; "seen" as in State).
  """
  objective = objective_of(cfg.objective)
  key = jax.random.fold_in(jax.random.key(hparams.seed), 1)
  key = jax.random.fold_in(key, state.step)
  before, taught = split_extra(state.extra, objective.teachers(cfg))
  grads, total, (sums, extra), micro = _accumulated(
    _reading(grad_fn, taught), state.params, before, batch, key, hparams, cfg
  )
  extra = objective.after_step(cfg, extra)
  weight = jnp.maximum(sums["weight"], 1.0)
  grads = jax.tree.map(lambda g: g / weight, grads)
  tx = optimizer_of(cfg, hparams, axes)
  more = {}
  if OPTIMIZERS[cfg.optim.name].curved:
    args = (state.params, before, batch, key, hparams, cfg)
    more["curvature"] = lambda: curvature.draw(_reading(grad_fn, taught), *args)
  updates, opt_state = tx.update(grads, state.opt_state, state.params, value=total / weight, **more)
  params = optax.apply_updates(state.params, updates)
  ema = state.ema
  if OPTIMIZERS[cfg.optim.name].averages:
    ema = averaged(params, opt_state, hparams.b1)
  elif ema is not None:
    ema = optax.incremental_update(params, ema, 1 - cfg.optim.ema_decay)
  units = sums.get("units", sums["weight"])
  seen = count_units(state.seen, units)
  skipped = {}
  if cfg.train.on_nonfinite == "skip":
    norms = optax.tree.norm(grads) + optax.tree.norm(params)
    is_good = jnp.isfinite(total) & jnp.isfinite(norms)
    new = (params, opt_state, ema, extra, seen)
    old = (state.params, state.opt_state, state.ema, before, state.seen)
    chosen = jax.tree.map(lambda n, o: jnp.where(is_good, n, o), new, old)
    params, opt_state, ema, extra, seen = chosen
    skipped = {"train/skipped": 1.0 - is_good.astype(jnp.float32)}
  metrics = {
    **skipped,
    **{f"train/{name}": value for name, value in objective.train_scores(sums).items()},
    "train/tokens": units,
    "train/grad_norm": optax.tree.norm(grads),
    "train/param_norm": optax.tree.norm(params),
    "optim/lr": learning_rate(cfg.optim, hparams, state.step, opt_state),
    "seen": seen,
  }
  if cfg.train.noise_scale:
    whole, n = jnp.square(metrics["train/grad_norm"]), cfg.train.accumulate
    metrics |= noise_scale.estimates(micro, whole, weight, n)
  kinds, mults = kinds_of(cfg, axes), multipliers_of(cfg)
  for kind, ratio in relative_updates(updates, state.params, kinds).items():
    metrics[f"optim/update_{kind}"] = ratio
  if decays_hidden(cfg.optim):
    share = decay_share(cfg.optim, hparams, state.step, opt_state, mults.hidden_decay)
    metrics["optim/decay_share"] = share
  if cfg.optim.prune != "none":
    metrics["optim/kept"] = share_kept(opt_state)
  extra = extra | taught if taught else extra
  return State(state.step + 1, params, opt_state, ema, extra, seen), metrics


def eval_extra(params: Any, extra: Any, *, cfg: Config, model: nn.Module) -> Any:
  """`extra` for the first batch of an evaluation set: carries of rows reset, the rest as the run has it."""
  objective = objective_of(cfg.objective)
  fresh = objective.init_extra(model, cfg, params, cfg.eval.batch_size)
  is_names = lambda leaf: isinstance(leaf, tuple)
  choose = lambda names, new, old: new if names[:1] == ("batch",) else old
  return jax.tree.map(choose, objective.extra_axes(cfg), fresh, extra, is_leaf=is_names)


def eval_step(
  params: Any, extra: Any, batch: Batch, hparams: Hparams, *, loss_fn: LossFn
) -> tuple[Sums, Any]:
  """(sums of the objective over one batch, extra for the next one), without dropout."""
  return loss_fn(params, extra, batch, None, hparams)[1]


def count_units(seen: jax.Array, units: jax.Array) -> jax.Array:
  """`seen` plus the units of a batch, exactly: float32 and int32 are too short for 10^10 tokens."""
  low = seen[1] + jnp.round(units).astype(jnp.int32)
  return jnp.stack([seen[0] + (low >> LOW_BITS), low & (2**LOW_BITS - 1)])


def eval_params(state: State) -> Any:
  """The weights that evaluation and sampling use: the average where there is one."""
  return state.params if state.ema is None else state.ema


def optimizer_of(cfg: Config, hparams: Hparams, axes: Any) -> optax.GradientTransformation:
  """The optimizer of a config for parameters with these logical axes, from traced numbers."""
  return make_optimizer(cfg.optim, hparams, kinds_of(cfg, axes), axes, multipliers_of(cfg))


def kinds_of(cfg: Config, axes: Any) -> Any:
  """The kind of every parameter with these logical axes."""
  is_names = lambda leaf: isinstance(leaf, tuple)
  return trees.param_kinds(axes, run_weights(cfg), is_leaf=is_names)


def multipliers_of(cfg: Config) -> Multipliers:
  """What the parameterization multiplies for each kind of weight."""
  model = cfg.model
  depth_ratio = model.depth / model.base_depth if hasattr(model, "base_depth") else 1.0
  return multipliers(
    cfg.optim.name, model.parameterization, model.width / model.base_width, depth_ratio
  )


def check_parameters(cfg: Config, axes: Any) -> None:
  """ConfigError for settings, such as optim.groups, that match no parameter."""
  is_names = lambda leaf: isinstance(leaf, tuple)
  kinds = trees.param_kinds(axes, run_weights(cfg), is_leaf=is_names)
  check_groups(read_groups(cfg.optim.groups), kinds, cfg.optim.name)
  check_hidden(cfg.optim, kinds)


def grad_of(loss_fn: LossFn) -> GradFn:
  """Gradients of one scalar loss."""
  value_and_grad = jax.value_and_grad(loss_fn, has_aux=True)

  def grad_fn(params, extra, batch, key, hparams):
    (objective, aux), grads = value_and_grad(params, extra, batch, key, hparams)
    return grads, objective, aux

  return grad_fn


def _reading(grad_fn: GradFn, taught: dict[str, Any]) -> GradFn:
  """grad_fn with the teachers' parameters added to the `extra` that it is called with."""
  if not taught:
    return grad_fn
  return lambda params, extra, *rest: grad_fn(params, extra | taught, *rest)


def _init_parts(cfg: Config, key: jax.Array, hparams: Hparams) -> dict[str, Any]:
  """Parameters of the objective's own modules, each from a key of its own."""
  objective = objective_of(cfg.objective)
  found = {}
  for index, (name, part) in enumerate(objective.parts(cfg).items()):
    mine = jax.random.fold_in(key, 1 + index)
    found[name] = nn.meta.unbox(part.module.init(mine, *_zeros(part.inputs))["params"])
  kinds = trees.param_kinds(found, objective.weights(cfg))
  return jax.tree.map(lambda p, k: p if k == "vector" else p * hparams.init_scale, found, kinds)


def _zeros(shapes):
  return [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]


def _accumulated(grad_fn, params, extra, batch, key, hparams, cfg):
  """Gradient of the objective's sum, the sum itself, the other sums and `extra`, over all micro-batches.

  And, with cfg.train.noise_scale, the mean squared norm of the micro-batches' own mean gradients, else 0.
  What of `extra` belongs to rows is split as the rows are; the rest goes from one micro-batch to the next.
  """
  n = cfg.train.accumulate
  if n == 1:
    return *grad_fn(params, extra, batch, key, hparams), jnp.float32(0)
  leaves, tree = jax.tree.flatten(extra)
  is_names = lambda leaf: isinstance(leaf, tuple)
  axes = jax.tree.leaves(objective_of(cfg.objective).extra_axes(cfg), is_leaf=is_names)
  of_rows = [names[:1] == ("batch",) for names in axes]
  # Interleaved, so that every device's rows stay on that device.
  split = lambda a: jnp.moveaxis(a.reshape(-1, n, *a.shape[1:]), 1, 0)
  join = lambda a: jnp.moveaxis(a, 0, 1).reshape(-1, *a.shape[2:])
  rows = [split(leaf) for leaf, mine in zip(leaves, of_rows, strict=True) if mine]
  rest = [leaf for leaf, mine in zip(leaves, of_rows, strict=True) if not mine]

  def merge(rows, rest):
    rows, rest = iter(rows), iter(rest)
    return tree.unflatten([next(rows) if mine else next(rest) for mine in of_rows])

  def apart(extra):
    pairs = list(zip(jax.tree.leaves(extra), of_rows, strict=True))
    return [leaf for leaf, mine in pairs if mine], [leaf for leaf, mine in pairs if not mine]

  def one(index, part, rows, rest):
    return grad_fn(params, merge(rows, rest), part, jax.random.fold_in(key, index), hparams)

  def body(carry, each):
    total, rest, norms = carry
    grads, objective, (sums, extra) = one(*each, rest)
    rows, rest = apart(extra)
    if cfg.train.noise_scale:
      norms += noise_scale.squared_norm(grads, sums["weight"])
    return (jax.tree.map(jnp.add, total, (grads, objective, sums)), rest, norms), rows

  micro = jax.tree.map(split, dict(batch))
  first = jax.tree.map(lambda a: a[0], (micro, rows))
  grads, objective, (sums, _) = jax.eval_shape(one, jnp.int32(0), *first, rest)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (grads, objective, sums))
  ((grads, objective, sums), rest, norms), rows = jax.lax.scan(
    body, (zeros, rest, jnp.float32(0)), (jnp.arange(n), micro, rows)
  )
  return grads, objective, (sums, merge([join(r) for r in rows], rest)), norms / n
