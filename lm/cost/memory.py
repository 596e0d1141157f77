"""Bytes on each device while a run trains, by arithmetic."""

from collections.abc import Sequence

from lm.config.errors import ConfigError
from lm.config.schema import Config, ModelConfig
from lm.cost.parameters import run_weights, weights
from lm.models.family import Weight
from lm.models.registry import family_of
from lm.objectives.registry import objective_of
from lm.objectives.teacher import find
from lm.optim.soap import turned_sides

STATE_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1 + 4 / 256}  # a number; lm.optim.low_bit
# A weight: whether it is kept, where it rests, its score and that one's two moments; lm.optim.pruning.
PRUNING_BYTES = {"none": 0, "magnitude": 5, "movement": 17, "soft_movement": 17}
DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


def memory_bytes(cfg: Config) -> dict[str, float]:
  """Bytes on each device while a resolved config trains: the four that matter.

  parameters: float32, with those of teachers that are there; gradients: float32, and their sum beside
  them where batches are accumulated;
  optimizer: its state and the average of weights; activations: what the forward pass keeps
  for the backward pass (an estimate, `activation_bytes`). Weights are split over mesh.fsdp and
  mesh.tensor as if every one divided, experts over mesh.expert too; rows over mesh.replica, mesh.fsdp
  and mesh.expert.
  """
  found = run_weights(cfg)
  of_experts = sum(w.size for w in found if w.copies > w.used)
  total = sum(w.size for w in found)
  shards = cfg.mesh.fsdp * cfg.mesh.tensor
  shards *= total / (total - of_experts + of_experts / cfg.mesh.expert)
  teachers = find(objective_of(cfg.objective).teachers(cfg)).values()
  frozen = sum(w.size for each in teachers for w in weights(each.section))
  name = cfg.optim.name
  whole, copied = whole_floats(found, name), copied_floats(found, name)
  coded = state_floats(found, name) - whole - copied
  state = STATE_BYTES[cfg.optim.state_dtype] * coded + 4 * whole
  state += sum(w.size for w in found if w.kind == "hidden") * PRUNING_BYTES[cfg.optim.prune]
  ema = 0 if cfg.optim.ema_decay is None and name != "schedule_free" else 4 * total
  return {
    "parameters": 4 * (total + frozen) / shards,
    "gradients": 4 * total * (1 if cfg.train.accumulate == 1 else 2) / shards,
    "optimizer": (state + ema) / shards + 4 * copied,
    "activations": activation_bytes(cfg),
  }


def activation_bytes(cfg: Config) -> float:
  """What the forward pass keeps for the backward pass on each device; an estimate of the family's.

  bfloat16 is counted as two bytes, as accelerators hold it (XLA on CPU holds four).
  """
  return DTYPE_BYTES[cfg.model.dtype] * family_of(cfg.model).activation_floats(cfg)


def optimizer_floats(model: ModelConfig, name: str) -> int:
  """`state_floats` of a model."""
  return state_floats(weights(model), name)


def state_floats(found: Sequence[Weight], name: str) -> int:
  """Numbers in the state of lm.optim.directions.OPTIMIZERS[name], less its few counters."""
  total = sum(w.size for w in found)
  hidden = sum(w.size for w in found if w.kind == "hidden")
  factored = sum(w.size if w.kind == "vector" else w.copies * sum(w.shape) for w in found)
  numbers = {
    "sgd": total,
    "adam": 2 * total,
    "adamw": 2 * total,
    "adagrad": total,
    "lion": total,
    "adafactor": factored,  # row and column means of a matrix
    "muon": 2 * total - hidden,
    "soap": 2 * total + copied_floats(found, name),
    "ademamix": 3 * total,
    "adopt": 2 * total,
    "schedule_free": total + whole_floats(found, name),
    "prodigy": 3 * total + whole_floats(found, name),
    "sophia": 2 * total,
  }
  if name not in numbers:
    raise ConfigError(f"optim.name={name}: its state is not known; use one of {', '.join(numbers)}")
  return numbers[name]


def whole_floats(found: Sequence[Weight], name: str) -> int:
  """Those of `state_floats` that are no running means and stay float32: copies of the weights."""
  return sum(w.size for w in found) if name in ("schedule_free", "prodigy") else 0


def copied_floats(found: Sequence[Weight], name: str) -> int:
  """Those of `state_floats` that every device holds in float32: soap's products of gradients, and bases."""
  if name != "soap":
    return 0
  sizes = lambda w: dict(zip(("left", "right"), w.shape, strict=True))
  return sum(
    2 * w.copies * sizes(w)[side] ** 2
    for w in found
    if w.kind != "vector"
    for side in turned_sides(w.kind, *w.shape)
  )
