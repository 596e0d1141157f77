"""The speed that a budget in seconds counts with: of the run that was begun, else measured.

A run with train.seconds = S sees S times train.tokens_per_sec tokens. Its number of steps is fixed before the
first one, so that schedules end with it, it resumes exactly and it can be trained again. What is counted is
time in steps: not compilation, evaluation and saving.
"""

import concurrent.futures
import dataclasses
import itertools
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax

from lm.config.errors import ConfigError
from lm.config.schema import Config
from lm.devices import processes, sharding
from lm.objectives.registry import objective_of
from lm.runs import bucket, rundir, teachers
from lm.setup.hparams import make_hparams
from lm.setup.resolve import kind_of, resolve, tokens_per_step
from lm.training.programs import make_programs

SECONDS = 3.0  # of steps that are timed
MOST = 1024  # steps, where they are short
LEAST = 3  # steps, where they are long
SHARED = 32  # steps, where several processes must take as many
WARM = 2  # steps before: the first compiles


def known(cfg: Config, workdir: str) -> Config:
  """The config with the speed that the run in `workdir` was begun with, where its budget wants one."""
  return _with_speed(cfg, of_begun(bucket.local(workdir))) if is_missing([cfg]) else cfg


def of_begun(workdir: pathlib.Path) -> float | None:
  """The speed that the run in a directory was begun with; None where there is none."""
  earlier = rundir.read_earlier(workdir)
  return None if earlier is None else earlier.train.tokens_per_sec


def is_missing(cfgs: Sequence[Config]) -> bool:
  """Whether a budget in seconds has no speed to count with."""
  return any(cfg.train.seconds is not None and cfg.train.tokens_per_sec is None for cfg in cfgs)


def measured(
  cfgs: Sequence[Config],
  vocab_size: int,
  devices: Sequence[jax.Device],
  data: Sequence[Any] | None,
  units_per_row: Sequence[float | None],
) -> list[Config]:
  """The configs with a measured speed where one is missing; as they are on devices that are not at hand.

  Args:
    cfgs: checked configs of one run, or of runs to be stacked.
    vocab_size: entries of the tokenizer.
    devices: those of the run.
    data: opened, one a run.
    units_per_row: mean units of a row of each, as `resolve` wants them.

  Raises:
    ConfigError: stacked runs, or an objective whose steps are not all alike.
  """
  if not is_missing(cfgs) or list(devices) != jax.devices():
    return list(cfgs)
  cfg = next(cfg for cfg in cfgs if is_missing([cfg]))
  if len(cfgs) > 1:
    raise _refused(cfg, "stacked runs are not timed")
  if objective_of(cfg.objective).grads is not None:
    raise _refused(cfg, f"steps of objective.name={cfg.objective.name} are not all alike")
  short = dataclasses.replace(
    cfg,
    train=dataclasses.replace(cfg.train, seconds=None, steps=WARM + MOST),
    optim=dataclasses.replace(cfg.optim, warmup_frac=0.0, warmup_tokens=None, decay_frac=0.0),
    data=dataclasses.replace(cfg.data, length_curriculum=()),
  )
  short = resolve(short, vocab_size, len(devices), units_per_row[0])
  assert data is not None
  speed = processes.of_leader(tokens_per_sec(short, data[0], devices))
  return [_with_speed(cfg, round(speed, 1))]


def tokens_per_sec(cfg: Config, data: Any, devices: Sequence[jax.Device]) -> float:
  """Training speed of a resolved config on its own batches, with what a step's record takes.

  Args:
    data: opened by the objective's kind of batch.
    devices: those that the mesh is laid over.
  """
  mesh = sharding.make_mesh(cfg.mesh, 1, devices)
  programs = make_programs(cfg, mesh)
  taught = teachers.load(cfg, data, programs, [], 1)
  hparams = jax.device_put(make_hparams(cfg), programs.scalar_sharding)
  state = taught.attach(programs.init(hparams))
  batches = kind_of(cfg).train(data, cfg)

  def load(step: int):
    read = lambda rows: batches.at(step, rows)
    return sharding.put_rows(read, cfg.train.batch_size, programs.batch_sharding)

  pending, done, start = None, 0, 0.0
  with concurrent.futures.ThreadPoolExecutor(1) as loader:
    loading = loader.submit(load, 0)
    for step in itertools.count(1):
      batch, loading = loading.result(), loader.submit(load, step)
      state, metrics = programs.train(state, batch, hparams)
      jax.device_get(pending)
      pending = metrics
      if step == WARM:
        jax.block_until_ready(metrics)
        start = time.perf_counter()
      done = step - WARM
      if processes.is_alone():
        enough = done >= LEAST and time.perf_counter() - start > SECONDS
      else:
        enough = done == SHARED
      if enough or done == MOST:
        break
    jax.block_until_ready(pending)
    spent = time.perf_counter() - start
  return done * tokens_per_step(cfg) / spent


def _with_speed(cfg: Config, speed: float | None) -> Config:
  return dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, tokens_per_sec=speed))


def _refused(cfg: Config, why: str) -> ConfigError:
  return ConfigError(
    f"train.seconds={cfg.train.seconds:g}: {why}; set train.tokens_per_sec, as a run's summary shows it"
  )
