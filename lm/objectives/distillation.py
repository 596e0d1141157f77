"""Distillation: a language model learns from the text and from what a trained one thinks of it.

    objective = (1 - alpha) hard + alpha T^2 KL(p || q)

hard is the cross-entropy of the text (with smoothing and z-loss where asked); p and q are the teacher's and
the student's distributions at temperature T, softmax(logits / T); T^2 keeps the gradient's size whatever T
is. Hinton et al. 2015, arXiv:1503.02531 §2.

The teacher is a run directory, a run of one's own or what `python -m lm.hf import` made. Its parameters are
frozen, laid out over the mesh like the model's, and not saved; run.json names it and the hash of its weights.
Evaluation goes without it: a finished student needs no teacher.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config.errors import ConfigError
from lm.config.schema import Config, field
from lm.models.registry import family_of
from lm.objectives import next_token, teacher
from lm.objectives.cross_entropy import token_sums
from lm.objectives.objective import LossFn, Metric, Sums


@dataclasses.dataclass(frozen=True)
class DistillationConfig(next_token.NextTokenConfig):
  teacher: str = field()
  alpha: float = field("[0, 1]", "0.5", traced=True)
  temperature: float = field("(0, inf)", "2", traced=True)


TRAIN = {
  **next_token.TRAIN,
  "soft": Metric("nats/token: KL of teacher from student, both at objective.temperature", "lower"),
}


def soft_sums(
  logits_BLV: jax.Array, teacher_BLV: jax.Array, weights_BL: jax.Array, temperature: jax.Array
) -> jax.Array:
  """sum_t w_t KL(softmax(teacher_t / T) || softmax(logits_t / T)), in nats; float32."""
  log_q_BLV = jax.nn.log_softmax(logits_BLV.astype(jnp.float32) / temperature)
  log_p_BLV = jax.nn.log_softmax(teacher_BLV.astype(jnp.float32) / temperature)
  kl_BL = (jnp.exp(log_p_BLV) * (log_p_BLV - log_q_BLV)).sum(axis=-1)
  return (weights_BL * kl_BL).sum()


def names(cfg: Config) -> dict[str, str]:
  """{"teacher": its run directory}."""
  return {"teacher": cfg.objective.teacher}


def make_loss(model: nn.Module, cfg: Config) -> LossFn:
  """In training the objective at the top of this file; in evaluation the cross-entropy of the text."""
  plain, chunk = next_token.make_loss(model, cfg), cfg.objective.chunk
  found = teacher.find(names(cfg))

  def loss_fn(params, extra, batch, key, hparams):
    if key is None:
      return plain(params, extra, batch, key, hparams)
    own, taught = teacher.split_extra(extra, names(cfg))
    wise = found["teacher"].module
    weights = jax.lax.stop_gradient(taught["teacher"])
    args = (batch["tokens"], batch.get("positions"), batch.get("segments"))
    y_BLE = wise.apply({"params": weights}, *args, method="hidden")
    x_BLD, sown, own = next_token.read_hidden(model, cfg, params, own, batch, key)

    def sums_of(head, x_BLD, y_BLE, targets_BL, weights_BL):
      logits_BLV: Any = model.apply({"params": head}, x_BLD, method="logits")
      theirs_BLV: Any = wise.apply({"params": weights}, y_BLE, method="logits")
      hard, sums = token_sums(logits_BLV, targets_BL, weights_BL, hparams)
      t = hparams.temperature
      soft = soft_sums(logits_BLV, theirs_BLV, weights_BL, t)
      objective = (1 - hparams.alpha) * hard + hparams.alpha * t**2 * soft
      return objective, sums | {"soft": soft}

    head = {name: params[name] for name in model.head_params}
    rows = (x_BLD, y_BLE, batch["targets"], batch["weights"])
    if chunk is None or chunk == x_BLD.shape[1]:
      objective, sums = sums_of(head, *rows)
    else:
      n = x_BLD.shape[1] // chunk
      # As in chunked_token_sums: every chunk has positions of all of a row, and logits are not kept.
      apart = lambda a: jnp.moveaxis(a.reshape(a.shape[0], chunk, n, *a.shape[2:]), 2, 0)
      one = jax.checkpoint(lambda part: sums_of(head, *part))
      parts = jax.lax.map(one, tuple(map(apart, rows)))
      objective, sums = jax.tree.map(lambda a: a.sum(axis=0), parts)
    objective, sums = next_token.add_router(objective, sums, sown, hparams, model)
    return objective, (sums, own)

  return loss_fn


def train_scores(sums: Sums) -> dict[str, jax.Array]:
  """Means over the batch's tokens: the hard loss as of next_token, and the soft one."""
  return next_token.train_scores(sums) | {"soft": sums["soft"] / jnp.maximum(sums["weight"], 1.0)}


def exact_flops(cfg: Config, causal: bool) -> float:
  """The student's, and the forward pass (a third) of a teacher that is there."""
  found = teacher.find(names(cfg)).values()
  theirs = sum(family_of(t.section).exact_flops(t.section, causal) for t in found)
  return family_of(cfg.model).exact_flops(cfg.model, causal) + theirs / 3


def check(cfg: Config) -> None:
  """ConfigError for what the config alone says is amiss; lm.runs.teachers looks at the teacher."""
  next_token.check(cfg)
  if not cfg.objective.teacher:
    raise ConfigError(
      "objective.teacher=: must be a run directory; give --config.objective.teacher"
    )


DISTILLATION = dataclasses.replace(
  next_token.NEXT_TOKEN,
  section=DistillationConfig,
  make_loss=make_loss,
  train_metrics=TRAIN,
  train_scores=train_scores,
  check=check,
  exact_flops=exact_flops,
  teachers=names,
)
