"""GloVe: vectors whose products are the logarithms of how often words stand near each other.

    J = sum over pairs  f(X_ij) (w_i . u_j + b_i + c_j - log X_ij)^2,   f(x) = min(1, (x / x_max) ** power)

Pennington, Socher & Manning 2014, "GloVe: Global Vectors for Word Representation", eq. 8 and 9; x_max 100,
power 3/4, AdaGrad. Half of J's gradient moves the weights there, all of it here; AdaGrad does not tell.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config.errors import ConfigError
from lm.config.schema import Config, ObjectiveConfig, field
from lm.objectives.negative_sampling import make_sampler
from lm.objectives.objective import LossFn, Metric, Objective, Sums


@dataclasses.dataclass(frozen=True)
class GloveConfig(ObjectiveConfig):
  window: int = field("[1, inf)", "10")  # words to either side whose pairs are counted
  count_cap: float = field("(0, inf)", "100", traced=True)  # x_max, from which all pairs weigh 1
  count_power: float = field("[0, 1]", "0.75", traced=True)  # of counts below it


METRICS = {
  "loss": Metric("weighted square of the error of log counts, a pair", "lower"),
  "error": Metric("weighted mean size of the error of log counts, nats", "lower"),
}
EVAL = {"loss": METRICS["loss"]._replace(form="{:.4f} a pair"), "error": METRICS["error"]}


def make_loss(model: nn.Module, cfg: Config) -> LossFn:
  """The sums over a batch of lm.data.cooccurrences."""

  def loss_fn(params, extra, batch, key, hparams):
    rows = lambda words, method: model.apply({"params": params}, words, method=method)
    w_BD, b_B = rows(batch["left"], "words")
    u_BD, c_B = rows(batch["right"], "contexts")
    error_B = (w_BD * u_BD).sum(axis=1) + b_B + c_B - jnp.log(batch["count"])
    share_B = jnp.minimum(batch["count"] / hparams.count_cap, 1.0)
    f_B = batch["weights"] * share_B**hparams.count_power
    total = (f_B * jnp.square(error_B)).sum()
    sums = {
      "loss": total,
      "error": (f_B * jnp.abs(error_B)).sum(),
      "share": f_B.sum(),
      "weight": batch["weights"].sum(),
    }
    return total, (sums, extra)

  return loss_fn


def train_scores(sums: Sums) -> dict[str, jax.Array]:
  """Means over pairs, and over their weights."""
  loss = sums["loss"] / jnp.maximum(sums["weight"], 1.0)
  return {"loss": loss, "error": sums["error"] / jnp.maximum(sums["share"], 1e-30)}


def eval_scores(sums: Mapping[str, Any], facts: Mapping[str, float]) -> dict[str, float]:
  return {"loss": sums["loss"] / sums["weight"], "error": sums["error"] / sums["share"]}


def check(cfg: Config) -> None:
  """ConfigError unless the model has biases."""
  if not cfg.model.biases:
    raise ConfigError(
      "model.biases=False: objective.name=glove adds a bias for each word; use True"
    )


GLOVE = Objective(
  section=GloveConfig,
  batches="cooccurrences",
  make_loss=make_loss,
  train_metrics=METRICS,
  train_scores=train_scores,
  eval_metrics=EVAL,
  eval_scores=eval_scores,
  needs=("words", "contexts"),
  check=check,
  exact_flops=lambda cfg, causal: 6.0 * cfg.model.width,  # w . u and its two gradients
  make_sampler=make_sampler,
)
