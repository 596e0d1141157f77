"""Classification of texts or pairs of texts (Devlin et al. 2019, arXiv:1810.04805, §4.1)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config.schema import Config, field
from lm.objectives import pooled
from lm.objectives.objective import LossFn, Metric, Objective, Sums

BINS = 15  # of confidence, in the calibration error


@dataclasses.dataclass(frozen=True)
class ClassificationConfig(pooled.PooledConfig):
  classes: int = field("[2, 100000]", "2")
  label_smoothing: float = field("[0, 1)", "0.1", traced=True)


TRAIN = {
  "loss": Metric("nats/text of this batch, without smoothing", "lower"),
  "accuracy": Metric("fraction of this batch's texts classified right", "higher"),
}
EVAL = {
  "loss": Metric("nats/text over the whole set", "lower", "{:.4f} nats/text"),
  "accuracy": Metric("fraction of the set's texts classified right", "higher", "{:.2%} accuracy"),
  "precision": Metric("right ones of the texts given a class, mean of the classes", "higher"),
  "recall": Metric("right ones of the texts that have a class, mean of the classes", "higher"),
  "f1_macro": Metric("2 PR / (P + R) of each class, mean of the classes", "higher", "{:.4f} F1"),
  "f1_micro": Metric("2 PR / (P + R) of all texts together", "higher"),
  "matthews": Metric("Matthews' correlation of classes given and had, in [-1, 1]", "higher"),
  "ece": Metric(
    "gap of accuracy and confidence, mean over texts in 15 bins of confidence", "lower"
  ),
}


def make_loss(model: nn.Module, cfg: Config) -> LossFn:
  """sum over texts of (1 - s) ce + s uniform, s = objective.label_smoothing."""
  predict, C = pooled.make_head(model, cfg, cfg.objective.classes), cfg.objective.classes

  def loss_fn(params, extra, batch, key, hparams):
    log_p_BC = jax.nn.log_softmax(predict(params, batch, key))
    weights_B, label_B = batch["weights"], batch["label"]
    hot_BC = jax.nn.one_hot(label_B, C)
    nll_B, uniform_B = -(hot_BC * log_p_BC).sum(axis=1), -log_p_BC.mean(axis=1)
    chosen_B = log_p_BC.argmax(axis=1).astype(jnp.int32)
    right_B = jnp.where(chosen_B == label_B, weights_B, 0.0)
    sums = {
      "loss": (weights_B * nll_B).sum(),
      "correct": right_B.sum(),
      "weight": weights_B.sum(),
      "units": (batch["segments"] > 0).sum().astype(jnp.float32),
    }
    if key is None:
      weighted_BC = jnp.expand_dims(weights_B, 1) * hot_BC
      sums["confusion"] = jnp.einsum("BC,BK->CK", weighted_BC, jax.nn.one_hot(chosen_B, C))
      sure_B = jnp.exp(log_p_BC.max(axis=1))
      bin_B = jnp.clip(jnp.ceil(sure_B * BINS) - 1, 0, BINS - 1).astype(jnp.int32)
      of_bins = lambda values_B: jnp.zeros(BINS).at[bin_B].add(values_B)
      sums |= {"bin_sure": of_bins(weights_B * sure_B), "bin_right": of_bins(right_B)}
    smooth = hparams.label_smoothing
    return (weights_B * ((1 - smooth) * nll_B + smooth * uniform_B)).sum(), (sums, extra)

  return loss_fn


def train_scores(sums: Sums) -> dict[str, jax.Array]:
  """Means over the batch's texts."""
  n = jnp.maximum(sums["weight"], 1.0)
  return {"loss": sums["loss"] / n, "accuracy": sums["correct"] / n}


def eval_scores(sums: Mapping[str, Any], facts: Mapping[str, float]) -> dict[str, float]:
  """Scores of the table of classes had (rows) and given (columns), and the calibration error.

  A class without texts has recall 0, one that is never given precision 0, as in scikit-learn with
  zero_division=0; classes that neither has are left out of the means. Matthews' correlation is Gorodkin's for
  many classes (2004), 0 where it is not defined. Calibration: Guo et al. 2017, arXiv:1706.04599.
  """
  n, table_CC = float(sums["weight"]), np.asarray(sums["confusion"], np.float64)
  return {
    "loss": float(sums["loss"]) / n,
    **table_scores(table_CC),
    "ece": float(np.abs(np.asarray(sums["bin_right"]) - np.asarray(sums["bin_sure"])).sum()) / n,
  }


def table_scores(table_CC: np.ndarray) -> dict[str, float]:
  """accuracy, precision, recall, f1_macro, f1_micro and matthews of a table of classes.

  >>> table_scores(np.array([[3, 1], [0, 4]]))["accuracy"]
  0.875
  """
  had_C, given_C, right_C = table_CC.sum(axis=1), table_CC.sum(axis=0), np.diag(table_CC)
  n, seen_C = table_CC.sum(), (had_C + given_C) > 0
  share = lambda part_C, whole_C: part_C / np.maximum(whole_C, 1)
  mean = lambda values_C: float(values_C[seen_C].mean())
  spread = (n**2 - (given_C**2).sum()) * (n**2 - (had_C**2).sum())
  agree = right_C.sum() * n - (had_C * given_C).sum()
  accuracy = float(right_C.sum() / n)
  return {
    "accuracy": accuracy,
    "precision": mean(share(right_C, given_C)),
    "recall": mean(share(right_C, had_C)),
    "f1_macro": mean(share(2 * right_C, had_C + given_C)),
    "f1_micro": accuracy,  # each text has one class and is given one
    "matthews": float(agree / math.sqrt(spread)) if spread else 0.0,
  }


CLASSIFICATION = Objective(
  section=ClassificationConfig,
  batches="labelled",
  make_loss=make_loss,
  train_metrics=TRAIN,
  train_scores=train_scores,
  eval_metrics=EVAL,
  eval_scores=eval_scores,
  needs=("hidden",),
  check=pooled.check_pooling,
  parts=lambda cfg: pooled.head_parts(cfg, cfg.objective.classes),
  weights=lambda cfg: pooled.head_weights(cfg, cfg.objective.classes),
  exact_flops=lambda cfg, causal: pooled.row_flops(cfg, causal, cfg.objective.classes),
  chance=lambda cfg: {"loss": math.log(cfg.objective.classes)},
)
