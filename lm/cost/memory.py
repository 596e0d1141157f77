"""Bytes on each device while a run trains, by arithmetic."""

from lm.config.schema import Config
from lm.cost.parameters import run_weights, weights
from lm.models.registry import family_of
from lm.objectives.registry import objective_of
from lm.objectives.teacher import find
from lm.optim.directions import OPTIMIZERS

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
  optimizer = OPTIMIZERS[cfg.optim.name]
  state = STATE_BYTES[cfg.optim.state_dtype] * optimizer.means(found) + 4 * optimizer.whole(found)
  state += sum(w.size for w in found if w.kind == "hidden") * PRUNING_BYTES[cfg.optim.prune]
  ema = 0 if cfg.optim.ema_decay is None and not optimizer.averages else 4 * total
  return {
    "parameters": 4 * (total + frozen) / shards,
    "gradients": 4 * total * (1 if cfg.train.accumulate == 1 else 2) / shards,
    "optimizer": (state + ema) / shards + 4 * optimizer.copied(found),
    "activations": activation_bytes(cfg),
  }


def activation_bytes(cfg: Config) -> float:
  """What the forward pass keeps for the backward pass on each device; an estimate of the family's.

  bfloat16 is counted as two bytes, as accelerators hold it (XLA on CPU holds four).
  """
  return DTYPE_BYTES[cfg.model.dtype] * family_of(cfg.model).activation_floats(cfg)
