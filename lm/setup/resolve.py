"""Fills in what a config leaves to be derived: sizes of the model, steps and budgets, mesh, intervals."""

import dataclasses

import numpy as np

from lm.config.errors import ConfigError, check_divisible, number_of
from lm.config.schema import Config, MeshConfig, ModelConfig
from lm.cost.flops import run_flops_per_token
from lm.cost.parameters import run_counts, weights
from lm.data import curriculum
from lm.data.kinds import KINDS, Kind
from lm.models.parameterization import needs_readout
from lm.models.registry import family_of
from lm.objectives.registry import objective_of


def resolve(
  cfg: Config, vocab_size: int, n_devices: int, units_per_row: float | None = None
) -> Config:
  """The config with every derived field set.

  Args:
    cfg: checked config.
    vocab_size: entries of the tokenizer.
    n_devices: devices the mesh is laid over.
    units_per_row: mean number of units (tokens) that a row of the training data holds; None = as many as
      the kind of batch has room for.

  Raises:
    ConfigError: vocabulary larger than the model's, batch or mesh that does not divide, and so on.
  """
  model = resolve_model(cfg.model, vocab_size)
  _check_readout(model)
  mesh = _resolve_mesh(cfg, n_devices)
  ways = mesh.replica * mesh.fsdp * mesh.expert
  batch_axes = "devices along mesh.replica, mesh.fsdp and mesh.expert"
  micro_batch = cfg.train.batch_size // cfg.train.accumulate
  check_divisible(
    "train.batch_size" if cfg.train.accumulate == 1 else "train.batch_size / train.accumulate",
    micro_batch,
    ways,
    batch_axes,
  )
  _check_split(model, mesh, vocab_size)
  cfg = dataclasses.replace(cfg, model=model, mesh=mesh)
  curriculum.check_mesh(cfg)
  per_step = cfg.train.batch_size * (units_per_row or kind_of(cfg).units_per_row(cfg))
  steps = _steps(cfg, per_step)
  units = steps * per_step
  stepped = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, steps=steps))
  train = dataclasses.replace(
    cfg.train,
    steps=steps,
    tokens=round(units),
    tokens_per_param=units / counted_params(cfg),
    flops=units * run_flops_per_token(stepped, cfg.train.flops_convention),
  )
  every = cfg.eval.every_steps or max(1, steps // 10)
  eval_batch = cfg.eval.batch_size or micro_batch
  check_divisible("eval.batch_size", eval_batch, ways, batch_axes)
  cfg = dataclasses.replace(
    cfg,
    data=dataclasses.replace(cfg.data, seed=cfg.seed if cfg.data.seed is None else cfg.data.seed),
    train=train,
    eval=dataclasses.replace(cfg.eval, every_steps=every, batch_size=eval_batch),
    checkpoint=dataclasses.replace(cfg.checkpoint, every_steps=cfg.checkpoint.every_steps or every),
  )
  schedule_steps(cfg)
  return cfg


def resolve_model(model: ModelConfig, vocab_size: int) -> ModelConfig:
  """The section with every derived field set, by its family.

  Raises:
    ConfigError: a vocabulary smaller than the tokenizer's.
  """
  if model.vocab_size is not None and model.vocab_size < vocab_size:
    raise ConfigError(
      f"model.vocab_size={model.vocab_size}: must hold the tokenizer's {number_of(vocab_size, 'entry')}; "
      f"use {vocab_size} or None"
    )
  return family_of(model).resolve(model, vocab_size)


def tokens_per_step(cfg: Config) -> float:
  """Units (tokens) that a step of a resolved config sees, padding not counted."""
  return cfg.train.tokens / cfg.train.steps


def schedule_steps(cfg: Config) -> tuple[int, int, int]:
  """(steps, warm-up steps, steps of the final decay) of a resolved config.

  Raises:
    ConfigError: warm-up beyond the run's end, or, with wsd, into the decay.
  """
  optim, steps = cfg.optim, cfg.train.steps
  if optim.warmup_tokens is None:
    warmup = optim.warmup_frac * steps
  else:
    warmup = optim.warmup_tokens / tokens_per_step(cfg)
  if warmup > steps:
    raise ConfigError(
      f"optim.warmup_tokens={optim.warmup_tokens}: must not exceed the run's {cfg.train.tokens} "
      "tokens; lower it or use optim.warmup_frac"
    )
  decay = round(optim.decay_frac * steps)
  if optim.schedule == "wsd" and round(warmup) + decay > steps:
    raise ConfigError(
      f"optim.decay_frac={optim.decay_frac}: warm-up ({number_of(round(warmup), 'step')}) "
      f"and decay ({decay}) "
      f"overlap in {steps} steps, so the peak rate is never reached; use at most "
      f"{max(0, steps - round(warmup)) / steps:.3g}"
    )
  return steps, round(warmup), decay


def kind_of(cfg: Config) -> Kind:
  """The kind of batch that the objective reads."""
  return KINDS[objective_of(cfg.objective).batches]


def _steps(cfg: Config, per_step: float) -> int:
  train = cfg.train
  if train.steps is not None:
    return train.steps
  if train.tokens is not None:
    tokens = train.tokens
  elif train.tokens_per_param is not None:
    tokens = train.tokens_per_param * counted_params(cfg)
  elif train.seconds is not None:
    tokens = train.seconds * speed_of(cfg)
  else:
    tokens = train.flops / counted_flops(cfg)
  steps = round(tokens / per_step)
  if steps < 1:
    raise ConfigError(
      f"train.tokens={tokens:.0f}: must fill at least one step of {per_step:.0f} tokens; "
      "raise the budget or lower train.batch_size"
    )
  return steps


def counted_params(cfg: Config) -> int:
  """Parameters that train.count counts, of a config whose model is resolved.

  Raises:
    ConfigError: there are none, as in word vectors, which are an embedding alone.
  """
  found = getattr(run_counts(cfg), cfg.train.count)
  if found == 0:
    raise ConfigError(
      f"train.count={cfg.train.count}: model.family={cfg.model.family} has no such parameters; use total"
    )
  return found


def counted_flops(cfg: Config) -> float:
  """FLOPs of a token that a budget in train.flops counts with, of a config whose model is resolved.

  Raises:
    ConfigError: its convention counts none here.
  """
  found = run_flops_per_token(cfg, cfg.train.flops_convention)
  if found == 0:
    raise ConfigError(
      f"train.flops_convention={cfg.train.flops_convention}: counts no FLOPs of model.family="
      f"{cfg.model.family}, which train.flops is a budget of; use exact"
    )
  return found


def speed_of(cfg: Config) -> float:
  """Tokens a second that train.seconds counts with.

  Raises:
    ConfigError: they are not known, and nothing here can measure them.
  """
  if cfg.train.tokens_per_sec is None:
    raise ConfigError(
      f"train.seconds={cfg.train.seconds:g}: needs the run's speed, which is not measured here; set "
      "train.tokens_per_sec"
    )
  return cfg.train.tokens_per_sec


def _check_readout(model: ModelConfig) -> None:
  """ConfigError for a parameterization that scales output weights where there are none but the embedding."""
  kinds = {weight.kind for weight in weights(model)}
  if needs_readout(model.parameterization) and "readout" not in kinds:
    raise ConfigError(
      f"model.parameterization={model.parameterization}: scales the output weights, which are the "
      "embedding's here; use mup, or model.tied_embeddings=False where the family has it"
    )


def _check_split(model: ModelConfig, mesh: MeshConfig, vocab_size: int) -> None:
  """ConfigError unless every axis of the model that the mesh splits divides."""
  for axis, sizes in family_of(model).splits(model).items():
    for key, size in sizes.items():
      # A vocabulary smaller than the tokenizer's is no remedy.
      least = vocab_size if key == "model.vocab_size" else 1
      check_divisible(key, size, getattr(mesh, axis), f"mesh.{axis}", least)


def _resolve_mesh(cfg: Config, n_devices: int):
  sizes = dataclasses.asdict(cfg.mesh)
  fixed = int(np.prod([size for size in sizes.values() if size != -1]))
  rest = [name for name, size in sizes.items() if size == -1]
  shown = " x ".join(f"{name}={size}" for name, size in sizes.items() if size != 1)
  if rest and n_devices % fixed == 0:
    sizes[rest[0]] = n_devices // fixed
  elif fixed != n_devices or rest:
    name = max((n for n in sizes if sizes[n] != -1), key=lambda n: sizes[n])
    raise ConfigError(
      f"mesh.{name}={sizes[name]}: the mesh ({shown}) must use {number_of(n_devices, 'device')}; "
      "set one axis to -1 and let the others divide the devices"
    )
  return dataclasses.replace(cfg.mesh, **sizes)
