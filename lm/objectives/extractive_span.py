"""The answer to a question as a span of its context (Devlin et al. 2019, arXiv:1810.04805, §4.2; SQuAD 1.1).

A linear map gives every token of a row two logits, of being the first and the last one of the answer; each
goes through a softmax over the row. The loss is the mean of both cross-entropies. In evaluation the span
(i, j) with the highest start_i + end_j of all windows of a question answers it, i <= j < i + answer_tokens,
i where it has most context. What is scored here are tokens; `--task squad:FILE` of lm.evaluate scores texts
as SQuAD's script does. Departure from the released code: padding has no logits.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config.schema import Config, ObjectiveConfig, field
from lm.data.questions import MAY_BEGIN, MAY_END
from lm.models.heads import Dense, apply, dense_weights
from lm.models.registry import family_of
from lm.objectives.objective import LossFn, Metric, Objective, Part, Sums
from lm.objectives.pooled import read_rows

HEAD = "span_head"
NEVER = -1e30  # logit of what cannot be


@dataclasses.dataclass(frozen=True)
class ExtractiveSpanConfig(ObjectiveConfig):
  question_tokens: int = field("[1, inf)", "64")
  window_stride: int = field("[1, inf)", "128")
  answer_tokens: int = field("[1, inf)", "30")


TRAIN = {
  "loss": Metric("nats/window of this batch: mean of first and last token", "lower"),
  "accuracy": Metric("fraction of this batch's windows with both ends right", "higher"),
}
EVAL = {
  "loss": Metric("nats/window over the whole set", "lower", "{:.4f} nats/window"),
  "accuracy": Metric("fraction of the set's windows with both ends right", "higher"),
  "exact_span": Metric(
    "fraction of questions whose best span has the tokens of an answer", "higher", "{:.2%} exact"
  ),
  "overlap_f1": Metric(
    "tokens that the best span shares with an answer, 2 PR / (P + R), mean of questions",
    "higher",
    "{:.4f} F1",
  ),
}


def make_logits(model: nn.Module, cfg: Config):
  """(params, batch, key) -> float32 [B, L] twice: logits of first and last tokens, NEVER in padding."""
  head = _head(cfg)

  def logits(params, batch, key):
    x_BLD = read_rows(model, params, batch, key)
    logits_BL2 = apply(head, params[HEAD], x_BLD)
    real_BL = batch["segments"] > 0
    return tuple(jnp.where(real_BL, logits_BL2[..., i], NEVER) for i in range(2))

  return logits


def make_loss(model: nn.Module, cfg: Config) -> LossFn:
  """sum over windows of (ce(first) + ce(last)) / 2."""
  logits = make_logits(model, cfg)

  def loss_fn(params, extra, batch, key, hparams):
    ends = logits(params, batch, key)
    weights_B = batch["weights"]
    places = (batch["first"], batch["last"])
    nll_B = sum(map(_nll, ends, places)) / 2
    right_B = weights_B > 0
    for end_BL, place_B in zip(ends, places, strict=True):
      right_B &= end_BL.argmax(axis=1) == place_B
    total = (weights_B * nll_B).sum()
    sums = {
      "loss": total,
      "correct": right_B.astype(jnp.float32).sum(),
      "weight": weights_B.sum(),
      "units": (batch["segments"] > 0).sum().astype(jnp.float32),
    }
    if key is None:
      first_B, last_B, score_B = best_span(*ends, batch["may"], cfg.objective.answer_tokens)
      offset_B = batch["offset"]
      exact_B, f1_B = compare(
        first_B - offset_B, last_B - offset_B, batch["firsts"], batch["lasts"]
      )
      sums |= {"exact": exact_B, "f1": f1_B, "score": score_B}
      sums |= {"question": batch["question"], "present": weights_B}
    return total, (sums, extra)

  return loss_fn


def _nll(logits_BL: jax.Array, place_B: jax.Array) -> jax.Array:
  log_p_BL = jax.nn.log_softmax(logits_BL)
  return -jnp.take_along_axis(log_p_BL, jnp.expand_dims(place_B, 1), axis=1)[:, 0]


def best_span(
  start_BL: jax.Array, end_BL: jax.Array, may_BL: jax.Array, most: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(first, last, score) [B] of each row's best span of at most so many tokens.

  Args:
    may_BL: MAY_BEGIN, MAY_END or 0 (lm.data.questions).
  """
  L = start_BL.shape[1]
  most = min(most, L)
  start_BL = jnp.where(may_BL >= MAY_BEGIN, start_BL, NEVER)
  end_BL = jnp.where(may_BL >= MAY_END, end_BL, NEVER)
  padded = jnp.pad(end_BL, ((0, 0), (0, most - 1)), constant_values=NEVER)
  reach_LA = np.arange(L)[:, None] + np.arange(most)[None]
  score_BLA = jnp.expand_dims(start_BL, 2) + padded[:, reach_LA]
  flat_BN = score_BLA.reshape(score_BLA.shape[0], -1)
  best_B = flat_BN.argmax(axis=1).astype(jnp.int32)
  first_B = best_B // most
  return first_B, first_B + best_B % most, flat_BN.max(axis=1)


def compare(
  first_B: jax.Array, last_B: jax.Array, firsts_BA: jax.Array, lasts_BA: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """(1 where a span is an answer, else 0; its F1 by tokens with the answer nearest to it), float32 [B]."""
  first_B1, last_B1 = jnp.expand_dims(first_B, 1), jnp.expand_dims(last_B, 1)
  real_BA = firsts_BA >= 0
  same_BA = (first_B1 == firsts_BA) & (last_B1 == lasts_BA) & real_BA
  shared_BA = jnp.minimum(last_B1, lasts_BA) - jnp.maximum(first_B1, firsts_BA) + 1
  sizes_BA = (last_B1 - first_B1 + 1) + (lasts_BA - firsts_BA + 1)
  f1_BA = 2 * jnp.maximum(shared_BA, 0).astype(jnp.float32) / sizes_BA.astype(jnp.float32)
  return same_BA.any(axis=1).astype(jnp.float32), jnp.where(real_BA, f1_BA, 0.0).max(axis=1)


def train_scores(sums: Sums) -> dict[str, jax.Array]:
  """Means over the batch's windows."""
  n = jnp.maximum(sums["weight"], 1.0)
  return {"loss": sums["loss"] / n, "accuracy": sums["correct"] / n}


def eval_scores(sums: Mapping[str, Any], facts: Mapping[str, float]) -> dict[str, float]:
  """Means over windows, and over questions, of which the window with the highest score speaks."""
  real = np.asarray(sums["present"]) > 0
  question, score, exact, f1 = (
    np.asarray(sums[name], np.float64)[real] for name in ("question", "score", "exact", "f1")
  )
  order = np.lexsort((-score, question))
  _, first = np.unique(question[order], return_index=True)
  chosen, n = order[first], float(sums["weight"])
  return {
    "loss": float(sums["loss"]) / n,
    "accuracy": float(sums["correct"]) / n,
    "exact_span": float(exact[chosen].mean()),
    "overlap_f1": float(f1[chosen].mean()),
  }


def _head(cfg: Config) -> Dense:
  return Dense(cfg.model, 2, "readout", ("embed", "replicated"))


EXTRACTIVE_SPAN = Objective(
  section=ExtractiveSpanConfig,
  batches="questions",
  make_loss=make_loss,
  train_metrics=TRAIN,
  train_scores=train_scores,
  eval_metrics=EVAL,
  eval_scores=eval_scores,
  kept=("question", "score", "exact", "f1", "present"),
  needs=("bidirectional",),
  parts=lambda cfg: {
    HEAD: Part(_head(cfg), (jax.ShapeDtypeStruct((1, 1, cfg.model.width), jnp.float32),))
  },
  weights=lambda cfg: dense_weights(HEAD, "readout", cfg.model.width, 2),
  exact_flops=lambda cfg, causal: (
    family_of(cfg.model).exact_flops(cfg.model, causal) + 6.0 * cfg.model.width * 2
  ),
  chance=lambda cfg: {"loss": math.log(cfg.model.seq_len)},
)
