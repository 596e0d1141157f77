"""A class for each word of a text, such as the names in it (Devlin et al. 2019, arXiv:1810.04805, §5.3).

The first piece of each word speaks for it. Under objective.scheme=bio classes are O and, of each type of
name, B-TYPE (a name begins) and I-TYPE (it goes on); class 2 k + 1 is B and 2 k + 2 is I of type k
(lm.data.tagged). What counts there are whole names: one is right where its first word, its last word and its
type are. I-TYPE after O or another type begins a name too, as in CoNLL's script (Tjong Kim Sang and De
Meulder 2003).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config, ObjectiveConfig, field
from lm.data.tagged import most_words
from lm.models.heads import Dense, apply, dense_weights
from lm.models.registry import family_of
from lm.objectives.classification import table_scores
from lm.objectives.objective import LossFn, Metric, Objective, Part, Sums
from lm.objectives.pooled import drop, read_rows

TAGGER = "tagger"


@dataclasses.dataclass(frozen=True)
class TokenClassificationConfig(ObjectiveConfig):
  classes: int = field("[2, 100000]", "9")
  scheme: str = field(choices=("bio", "plain"))
  dropout: float = field("[0, 1)", "0.1")


TRAIN = {
  "loss": Metric("nats/word of this batch", "lower"),
  "accuracy": Metric("fraction of this batch's words tagged right", "higher"),
}
EVAL = {
  "loss": Metric("nats/word over the whole set", "lower", "{:.4f} nats/word"),
  "accuracy": Metric("fraction of the set's words tagged right", "higher", "{:.2%} of words"),
  "f1": Metric("2 PR / (P + R) of whole names together; plain: of words", "higher", "{:.4f} F1"),
  "precision": Metric("right ones of the names given; plain: of words", "higher"),
  "recall": Metric("right ones of the names there are; plain: of words", "higher"),
  "f1_macro": Metric("2 PR / (P + R) of each type; plain: of each tag; their mean", "higher"),
  "precision_macro": Metric("that of each type; plain: of each tag; their mean", "higher"),
  "recall_macro": Metric("that of each type; plain: of each tag; their mean", "higher"),
}


def make_loss(model: nn.Module, cfg: Config) -> LossFn:
  """sum over words of the cross-entropy of their class."""
  head, C, rate = _tagger(cfg), cfg.objective.classes, cfg.objective.dropout

  def loss_fn(params, extra, batch, key, hparams):
    x_BLD = read_rows(model, params, batch, key).astype(jnp.float32)
    x_BWD = jnp.take_along_axis(x_BLD, jnp.expand_dims(batch["places"], 2), axis=1)
    log_p_BWC = jax.nn.log_softmax(apply(head, params[TAGGER], drop(x_BWD, key, rate)))
    label_BW, weights_BW = batch["label"], batch["weights"]
    nll_BW = -jnp.take_along_axis(log_p_BWC, jnp.expand_dims(label_BW, 2), axis=2)[..., 0]
    chosen_BW = log_p_BWC.argmax(axis=2).astype(jnp.int32)
    total = (weights_BW * nll_BW).sum()
    sums = {
      "loss": total,
      "correct": jnp.where(chosen_BW == label_BW, weights_BW, 0.0).sum(),
      "weight": weights_BW.sum(),
      "units": (batch["segments"] > 0).sum().astype(jnp.float32),
    }
    if key is None and cfg.objective.scheme == "bio":
      sums |= count_names(label_BW, chosen_BW, weights_BW > 0, (C - 1) // 2)
    elif key is None:
      had_BWC = jnp.expand_dims(weights_BW, 2) * jax.nn.one_hot(label_BW, C)
      sums["confusion"] = jnp.einsum("BWC,BWK->CK", had_BWC, jax.nn.one_hot(chosen_BW, C))
    return total, (sums, extra)

  return loss_fn


def count_names(had_BW: jax.Array, given_BW: jax.Array, real_BW: jax.Array, types: int) -> Sums:
  """Names by type, float32 [types]: those there are, those given, and those given that there are.

  Args:
    had_BW, given_BW: int32, classes of words: 0 = O, 2 k + 1 = B and 2 k + 2 = I of type k.
    real_BW: bool, False past a row's last word.
  """
  (had_begin, had_last, had_type), (begin, last, kind) = (
    find_names(class_BW, real_BW) for class_BW in (had_BW, given_BW)
  )
  same_BW = had_begin & begin & (had_last == last) & (had_type == kind)
  count = lambda mask_BW, type_BW: jnp.einsum(
    "BW,BWT->T", mask_BW.astype(jnp.float32), jax.nn.one_hot(type_BW, types)
  )
  return {
    "names_had": count(had_begin, had_type),
    "names_given": count(begin, kind),
    "names_right": count(same_BW, kind),
  }


def find_names(class_BW: jax.Array, real_BW: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Of each word: whether a name begins there, the last word of the name it is in, its type (-1 = none)."""
  W = class_BW.shape[1]
  inside_BW = real_BW & (class_BW > 0)
  type_BW = jnp.where(inside_BW, (class_BW - 1) // 2, -1)
  before_BW = jnp.pad(type_BW[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
  begin_BW = inside_BW & ((class_BW % 2 == 1) | (before_BW != type_BW))
  goes_on_BW = inside_BW & ~begin_BW  # with the name of the word before
  next_BW = jnp.pad(goes_on_BW[:, 1:], ((0, 0), (0, 1)), constant_values=False)
  place_BW = jnp.broadcast_to(jnp.arange(W, dtype=jnp.int32)[None], class_BW.shape)
  last_BW = jax.lax.cummin(jnp.where(next_BW, W, place_BW), axis=1, reverse=True)
  return begin_BW, last_BW, type_BW


def train_scores(sums: Sums) -> dict[str, jax.Array]:
  """Means over the batch's words."""
  n = jnp.maximum(sums["weight"], 1.0)
  return {"loss": sums["loss"] / n, "accuracy": sums["correct"] / n}


def eval_scores(sums: Mapping[str, Any], facts: Mapping[str, float]) -> dict[str, float]:
  """Over a whole set; what has no names is 0, types that are neither had nor given are left out of means.

  Equal to seqeval's scores in its default mode with zero_division=0.
  """
  n = float(sums["weight"])
  scores = {"loss": float(sums["loss"]) / n, "accuracy": float(sums["correct"]) / n}
  if "confusion" in sums:
    table = table_scores(np.asarray(sums["confusion"], np.float64))
    scores |= dict.fromkeys(("f1", "precision", "recall"), scores["accuracy"])
    return scores | {
      "f1_macro": table["f1_macro"],
      "precision_macro": table["precision"],
      "recall_macro": table["recall"],
    }
  had_T, given_T, right_T = (
    np.asarray(sums[f"names_{what}"], np.float64) for what in ("had", "given", "right")
  )
  share = lambda part, whole: part / np.maximum(whole, 1)
  seen_T = had_T + given_T > 0
  mean = lambda values_T: float(values_T[seen_T].mean()) if seen_T.any() else 0.0
  return scores | {
    "f1": float(share(2 * right_T.sum(), had_T.sum() + given_T.sum())),
    "precision": float(share(right_T.sum(), given_T.sum())),
    "recall": float(share(right_T.sum(), had_T.sum())),
    "f1_macro": mean(share(2 * right_T, had_T + given_T)),
    "precision_macro": mean(share(right_T, given_T)),
    "recall_macro": mean(share(right_T, had_T)),
  }


def check(cfg: Config) -> None:
  """ConfigError for a number of classes that bio cannot have."""
  C = cfg.objective.classes
  if cfg.objective.scheme == "bio" and C % 2 == 0:
    raise ConfigError(
      f"objective.classes={C}: objective.scheme=bio has O and two for each type of name; use {C - 1} or "
      f"{C + 1}"
    )


def _tagger(cfg: Config) -> Dense:
  return Dense(cfg.model, cfg.objective.classes, "readout", ("embed", "replicated"))


def exact_flops(cfg: Config, causal: bool) -> float:
  """The encoder's of one token, and a token's share of its row's W words."""
  head = 6.0 * cfg.model.width * cfg.objective.classes * most_words(cfg) / cfg.model.seq_len
  return family_of(cfg.model).exact_flops(cfg.model, causal) + head


TOKEN_CLASSIFICATION = Objective(
  section=TokenClassificationConfig,
  batches="tagged",
  make_loss=make_loss,
  train_metrics=TRAIN,
  train_scores=train_scores,
  eval_metrics=EVAL,
  eval_scores=eval_scores,
  needs=("bidirectional",),
  check=check,
  parts=lambda cfg: {
    TAGGER: Part(_tagger(cfg), (jax.ShapeDtypeStruct((1, 1, cfg.model.width), jnp.float32),))
  },
  weights=lambda cfg: dense_weights(TAGGER, "readout", cfg.model.width, cfg.objective.classes),
  exact_flops=exact_flops,
  chance=lambda cfg: {"loss": math.log(cfg.objective.classes)},
)
