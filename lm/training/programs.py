"""The compiled functions of a run: initialise, train, evaluate; one program for many runs where stacked.

With `stacked`, each function is vmapped over a leading `run` axis of the state, the hyperparameters and
the training batch: many runs of one shape, one program.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lm.config.errors import ConfigError
from lm.config.schema import Config
from lm.devices import sharding
from lm.models.registry import family_of, make_model
from lm.objectives import teacher
from lm.objectives.registry import objective_of
from lm.objectives.teacher import split_extra
from lm.optim.chain import read_groups, stop_frozen
from lm.setup.hparams import hparams_zeros
from lm.setup.resolve import kind_of
from lm.training.step import (
  State,
  all_axes,
  check_parameters,
  eval_extra,
  eval_step,
  grad_of,
  init_state,
  train_step,
)


class Programs(NamedTuple):
  init: Callable  # hparams -> State
  train: Callable  # (State, batch, hparams) -> (State, metrics); the state is donated
  begin_eval: Callable  # (params, extra of a State) -> extra for the first batch of a set
  evaluate: Callable  # (params, extra, batch, hparams) -> (sums, extra for the next batch)
  run_shape: State  # ShapeDtypeStructs of one run's state, to restore it by
  state_sharding: State
  train_shape: (
    State  # run_shape and state_sharding with the parameters of teachers in `extra`, as `train`
  )
  train_sharding: State  # reads and returns the state; they are the same where there are none
  batch_sharding: dict[str, Any]  # of each array of a training batch
  eval_sharding: dict[str, Any]  # evaluation batches are shared by stacked runs
  scalar_sharding: Any


def make_programs(cfg: Config, mesh: Mesh, stacked: bool = False) -> Programs:
  """The jitted functions of a resolved config, laid out over the mesh; nothing is compiled yet.

  Raises:
    ConfigError: a family without what the objective needs, a platform that rules something out, a size that
      the mesh does not divide, a group of parameters that there is not.
  """
  family, objective = family_of(cfg.model), objective_of(cfg.objective)
  if stacked:
    model = family.for_stack(cfg.model, cfg.data.cross_documents)
    cfg = dataclasses.replace(cfg, model=model)
  with sharding.use_mesh(mesh):
    model = make_model(cfg.model)
  for method in objective.needs:
    if not hasattr(model, method):
      raise ConfigError(
        f"objective.name={cfg.objective.name}: needs a model with {method}, which "
        f"model.family={cfg.model.family} has not; choose another of the two"
      )
  axes = all_axes(cfg, model)
  check_parameters(cfg, axes)
  loss_fn = objective.make_loss(model, cfg)
  groups = read_groups(cfg.optim.groups)
  if any(group.frozen for group in groups):
    whole = loss_fn
    loss_fn = lambda params, *rest: whole(stop_frozen(params, groups), *rest)
  grad_fn = grad_of(loss_fn) if objective.grads is None else objective.grads(model, cfg)
  init = functools.partial(init_state, cfg=cfg, model=model)
  train = functools.partial(train_step, cfg=cfg, grad_fn=grad_fn, axes=axes)
  begin = functools.partial(eval_extra, cfg=cfg, model=model)
  evaluate = functools.partial(eval_step, loss_fn=loss_fn)

  one_run = hparams_zeros(cfg).map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype))
  shape = jax.eval_shape(init, one_run)
  params_sharding = sharding.param_shardings(mesh, axes, shape.params, stacked)
  scalar = sharding.replicated(mesh, stacked)
  like = functools.partial(
    sharding.shardings_like_params,
    params=shape.params,
    shardings=params_sharding,
    replicated=scalar,
  )
  extra = sharding.array_shardings(mesh, objective.extra_axes(cfg), stacked)
  layout = State(scalar, params_sharding, like(shape.opt_state), like(shape.ema), extra, scalar)
  teachers = teacher.find(objective.teachers(cfg))
  train_layout, train_shape = layout, shape
  if teachers:
    theirs = {
      name: sharding.param_shardings(mesh, t.axes, t.shapes, stacked)
      for name, t in teachers.items()
    }
    train_layout = layout._replace(extra=layout.extra | theirs)
    train_shape = shape._replace(extra=shape.extra | {n: t.shapes for n, t in teachers.items()})
  one_device = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
  one_layout = jax.tree.map(lambda _: one_device, layout) if stacked else layout
  axes_of = lambda training: {n: a.axes for n, a in kind_of(cfg).arrays(cfg, training).items()}
  batch = sharding.array_shardings(mesh, axes_of(True), stacked)
  shared_batch = sharding.array_shardings(mesh, axes_of(False))
  if stacked:
    init = jax.vmap(init, spmd_axis_name="run")
    if jax.default_backend() == "cpu":
      train = _in_turn(train, mesh, (True, True, True))
      evaluate = _in_turn(evaluate, mesh, (True, True, False, True))
    else:
      train = jax.vmap(train, spmd_axis_name="run")
      evaluate = jax.vmap(evaluate, in_axes=(0, 0, None, 0), spmd_axis_name="run")
    begin = jax.vmap(begin, spmd_axis_name="run")

  def on_mesh(fn):
    @functools.wraps(fn)
    def call(*args):
      with contextlib.nullcontext() if stacked else sharding.use_mesh(mesh):
        return fn(*args)

    return call

  begin_eval = jax.jit(begin, in_shardings=(params_sharding, extra), out_shardings=extra)
  names = objective.teachers(cfg)
  return Programs(
    init=jax.jit(init, in_shardings=scalar, out_shardings=layout),
    train=jax.jit(
      on_mesh(train),
      in_shardings=(train_layout, batch, scalar),
      out_shardings=(train_layout, scalar),
      donate_argnums=0,
    ),
    begin_eval=lambda params, extra: begin_eval(params, split_extra(extra, names)[0]),
    evaluate=jax.jit(
      on_mesh(evaluate),
      in_shardings=(params_sharding, extra, shared_batch, scalar),
      out_shardings=(scalar, extra),
    ),
    run_shape=jax.tree.map(
      lambda s, l: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=l), shape, one_layout
    ),
    state_sharding=layout,
    train_shape=jax.tree.map(
      lambda s, l: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=l), train_shape, train_layout
    )
    if not stacked
    else train_shape,
    train_sharding=train_layout,
    batch_sharding=batch,
    eval_sharding=shared_batch,
    scalar_sharding=scalar,
  )


def extra_of(programs: Programs, saved: Mapping[str, Any]) -> Any:
  """What a saved state keeps beside parameters, on the devices.

  Imported runs keep nothing, and compacted ones what their model reads; the rest starts from zeros, as a
  run does.
  """
  zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), programs.run_shape.extra)
  return jax.device_put(zeros | saved["extra"], programs.state_sharding.extra)


def _in_turn(fn: Callable, mesh: Mesh, stacked: Sequence[bool]) -> Callable:
  """fn of one run, for arguments with a leading run axis where `stacked`: the runs of a device one by one.

  XLA's batched matmuls are slow on a CPU: 16 runs of width 64, depth 2, 8 x 128 tokens take 30 ms each
  vmapped and 10 ms in turn (2 cores).
  """
  specs = tuple(PartitionSpec("run") if each else PartitionSpec() for each in stacked)

  def call(*args):
    def one(mine):
      mine = iter(mine)
      return fn(*[next(mine) if each else arg for arg, each in zip(args, stacked, strict=True)])

    return jax.lax.map(one, [arg for arg, each in zip(args, stacked, strict=True) if each])

  return jax.shard_map(
    call, mesh=mesh, in_specs=specs, out_specs=PartitionSpec("run"), check_vma=False
  )


def stack_runs(trees: Sequence[Any]) -> Any:
  """One tree of arrays [R, ...] from the trees of R runs; a single tree is returned unchanged."""
  if len(trees) == 1:
    return trees[0]
  return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)


def take_run(state: Any, index: int) -> Any:
  """The tree of one run of a stack. Pass host arrays: on a device each slice would compile a program."""
  return jax.tree.map(lambda x: x[index : index + 1].reshape(x.shape[1:]), state)
