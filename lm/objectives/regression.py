"""A number for each text or pair of texts, by least squares, as for STS-B (Devlin et al. 2019, §4.1)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config.schema import Config
from lm.objectives import pooled
from lm.objectives.objective import LossFn, Metric, Objective, Sums


@dataclasses.dataclass(frozen=True)
class RegressionConfig(pooled.PooledConfig):
  pass


TRAIN = {"mse": Metric("mean squared error of this batch, in squares of the label's unit", "lower")}
EVAL = {
  "mse": Metric(
    "mean squared error over the set, in squares of the label's unit", "lower", "{:.4f} mse"
  ),
  "pearson": Metric(
    "correlation of predictions and labels, in [-1, 1]", "higher", "{:.4f} Pearson"
  ),
  "spearman": Metric("correlation of their ranks, in [-1, 1]", "higher", "{:.4f} Spearman"),
}


def make_loss(model: nn.Module, cfg: Config) -> LossFn:
  """sum over texts of (prediction - label)^2."""
  predict = pooled.make_head(model, cfg, 1)

  def loss_fn(params, extra, batch, key, hparams):
    predicted_B = predict(params, batch, key)[:, 0]
    weights_B = batch["weights"]
    total = (weights_B * jnp.square(predicted_B - batch["label"])).sum()
    units = (batch["segments"] > 0).sum().astype(jnp.float32)
    sums = {"mse": total, "weight": weights_B.sum(), "units": units}
    if key is None:
      sums |= {"predicted": predicted_B, "label": batch["label"], "present": weights_B}
    return total, (sums, extra)

  return loss_fn


def train_scores(sums: Sums) -> dict[str, jax.Array]:
  """Means over the batch's texts."""
  return {"mse": sums["mse"] / jnp.maximum(sums["weight"], 1.0)}


def eval_scores(sums: Mapping[str, Any], facts: Mapping[str, float]) -> dict[str, float]:
  """Over a whole set; equal values share the mean of their ranks. A correlation with a constant is 0."""
  from scipy.stats import rankdata

  real = np.asarray(sums["present"]) > 0
  predicted, label = (np.asarray(sums[name], np.float64)[real] for name in ("predicted", "label"))
  return {
    "mse": float(sums["mse"] / sums["weight"]),
    "pearson": _correlation(predicted, label),
    "spearman": _correlation(rankdata(predicted), rankdata(label)),
  }


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
  a, b = a - a.mean(), b - b.mean()
  spread = float(np.sqrt((a @ a) * (b @ b)))
  return float(a @ b) / spread if spread else 0.0


REGRESSION = Objective(
  section=RegressionConfig,
  batches="graded",
  make_loss=make_loss,
  train_metrics=TRAIN,
  train_scores=train_scores,
  eval_metrics=EVAL,
  eval_scores=eval_scores,
  kept=("predicted", "label", "present"),
  needs=("hidden",),
  check=pooled.check_pooling,
  parts=lambda cfg: pooled.head_parts(cfg, 1),
  weights=lambda cfg: pooled.head_weights(cfg, 1),
  exact_flops=lambda cfg, causal: pooled.row_flops(cfg, causal, 1),
)
