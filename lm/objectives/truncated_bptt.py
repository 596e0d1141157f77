"""Causal language modelling by a model with a state or a memory, which is carried from one batch to the next.

Each row of a batch goes on where the same row of the batch before it ended; gradients end at the row's first
token (back-propagation through time, truncated: Williams & Peng 1990; Mikolov et al. 2010; Zaremba et al.
2014, arXiv:1409.2329, §4.1). The carry is state of the run: it is in its checkpoints, and a resumed run has
it.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config.errors import ConfigError, check_divisible
from lm.config.schema import Config, ObjectiveConfig, field
from lm.models.registry import make_model
from lm.objectives import next_token
from lm.objectives.cross_entropy import chunked_token_sums, token_sums
from lm.objectives.objective import LossFn, Metric, Objective, Sums


@dataclasses.dataclass(frozen=True)
class TruncatedBpttConfig(ObjectiveConfig):
  # Positions per cross-entropy chunk; None = all at once.
  chunk: int | None = field("[1, inf)", "35")
  z_loss: float = field("[0, inf)", "1e-4", traced=True)  # weight of mean(log Z ** 2)
  label_smoothing: float = field("[0, 1)", "0.1", traced=True)  # mass moved to the uniform one
  # AR: weight of mean(x ** 2), x dropped
  activation_l2: float = field("[0, inf)", "2", traced=True)
  slowness: float = field("[0, inf)", "1", traced=True)  # TAR: weight of mean((h_t - h_{t-1}) ** 2)


TRAIN = {name: next_token.TRAIN[name] for name in ("loss", "z_loss", "accuracy")} | {
  "activation_l2": Metric("mean square of the last layer's outputs, after dropout (AR)"),
  "slowness": Metric("mean square of their change from token to token, before dropout (TAR)"),
}


def make_loss(model: nn.Module, cfg: Config) -> LossFn:
  """Every position predicts the token after it, from the state that `extra["carry"]` holds before the row.

  AR and TAR (Merity et al. 2017, arXiv:1708.02182, §4.5): a |x|^2 / D + b |h_t - h_{t-1}|^2 / D are added for
  each token, x the last layer's output after dropout and h before it; the first token of a row has no change.
  """
  chunk = cfg.objective.chunk

  def loss_fn(params, extra, batch, key, hparams):
    kept_B = 1 - batch["fresh"]
    kept = lambda part: jnp.expand_dims(kept_B, range(1, part.ndim)).astype(part.dtype)
    carry = jax.tree.map(lambda part: part * kept(part), extra["carry"])
    advanced: Any = model.apply(
      {"params": params},
      batch["tokens"],
      carry,
      batch.get("segments"),
      train=key is not None,
      rngs=None if key is None else {"dropout": key},
      method="advance",
    )
    x_BLD, raw_BLD, carry = advanced

    def logits_fn(head_params, x_BLD):
      return model.apply({"params": head_params}, x_BLD, method="logits")

    head = {name: params[name] for name in model.head_params}
    rest = (batch["targets"], batch["weights"], hparams)
    if chunk is None or chunk == x_BLD.shape[1]:
      objective, sums = token_sums(logits_fn(head, x_BLD), *rest, batch.get("text"))
    else:
      objective, sums = chunked_token_sums(logits_fn, head, x_BLD, *rest, chunk, batch.get("text"))
    if key is not None:
      more = _activity(x_BLD, raw_BLD, batch["weights"])
      objective += sum(getattr(hparams, name) * total for name, total in more.items())
      sums |= more
    return objective, (sums, {"carry": carry})

  return loss_fn


def _activity(x_BLD: jax.Array, raw_BLD: jax.Array, weights_BL: jax.Array) -> Sums:
  """What AR and TAR weigh, summed over tokens."""
  x_BLD, raw_BLD = x_BLD.astype(jnp.float32), raw_BLD.astype(jnp.float32)
  change_BL = jnp.square(raw_BLD[:, 1:] - raw_BLD[:, :-1]).mean(axis=-1)
  return {
    "activation_l2": (weights_BL * jnp.square(x_BLD).mean(axis=-1)).sum(),
    "slowness": (weights_BL[:, 1:] * change_BL).sum(),
  }


def train_scores(sums: Sums) -> dict[str, jax.Array]:
  """Means over the batch's tokens."""
  names = {"loss": "loss", "z_loss": "z_loss", "accuracy": "correct"}
  names |= {name: name for name in ("activation_l2", "slowness")}
  return {name: sums[key] / jnp.maximum(sums["weight"], 1.0) for name, key in names.items()}


def init_extra(module: nn.Module, cfg: Config, params: Any, rows: int) -> dict[str, Any]:
  """{"carry": states of zeros}, for so many rows."""
  return {"carry": module.init_carry(rows)}


def extra_axes(cfg: Config) -> dict[str, Any]:
  """States belong to rows."""
  shapes = jax.eval_shape(lambda: make_model(cfg.model).init_carry(1))
  names = lambda part: ("batch", *("replicated",) * (part.ndim - 2), "act_embed")
  return {"carry": jax.tree.map(names, shapes)}


def check(cfg: Config) -> None:
  """ConfigError unless there is something to carry and chunks divide a row."""
  if getattr(cfg.model, "memory", 0) is None:
    raise ConfigError(
      "model.memory=None: objective.name=truncated_bptt carries what a model remembers of a row to the "
      "next one; set model.memory=64, or use objective.name=next_token"
    )
  if cfg.objective.chunk is not None:
    check_divisible("model.seq_len", cfg.model.seq_len, cfg.objective.chunk, "objective.chunk")


TRUNCATED_BPTT = Objective(
  section=TruncatedBpttConfig,
  batches="streams",
  make_loss=make_loss,
  train_metrics=TRAIN,
  train_scores=train_scores,
  eval_metrics=next_token.EVAL,
  eval_scores=next_token.eval_scores,
  needs=("advance", "init_carry", "logits", "head_params"),
  check=check,
  init_extra=init_extra,
  extra_axes=extra_axes,
  chance=next_token.NEXT_TOKEN.chance,
  make_sampler=next_token.make_sampler,
)
