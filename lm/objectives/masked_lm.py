"""Masked language modelling: hidden tokens guessed from both sides, and whether two texts follow each other.

Devlin et al. 2019, arXiv:1810.04805, §3.1; without the next sentence, Liu et al. 2019, arXiv:1907.11692.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config.errors import ConfigError
from lm.config.schema import Config, ObjectiveConfig, field
from lm.data.masked import most_hidden, room
from lm.models.heads import (
  Dense,
  MaskedHead,
  Pooler,
  apply,
  dense_weights,
  masked_head_weights,
)
from lm.models.registry import family_of
from lm.objectives.cross_entropy import token_sums
from lm.objectives.objective import LossFn, Metric, Objective, Part, Sums


@dataclasses.dataclass(frozen=True)
class MaskedLmConfig(ObjectiveConfig):
  mask_rate: float = field("(0, 1)", "0.15")
  mask_share: float = field("[0, 1]", "0.8")
  random_share: float = field("[0, 1]", "0.1")
  whole_words: bool = field()
  next_sentence: bool = field()
  z_loss: float = field("[0, inf)", "1e-4", traced=True)
  label_smoothing: float = field("[0, 1)", "0.1", traced=True)


TRAIN = {
  "loss": Metric("nats/token of this batch's hidden tokens", "lower"),
  "accuracy": Metric("fraction of this batch's hidden tokens guessed exactly", "higher"),
  "next_loss": Metric("nats a pair: whether B follows A", "lower"),
  "next_accuracy": Metric("fraction of pairs told right", "higher"),
}
EVAL = {
  "loss": Metric("nats/token of the set's hidden tokens", "lower", "{:.4f} nats/token"),
  "accuracy": Metric("fraction of the set's hidden tokens guessed", "higher", "{:.2%} accuracy"),
  "next_loss": Metric("nats a pair: whether B follows A", "lower"),
  "next_accuracy": Metric("fraction of pairs told right", "higher", "{:.2%} next sentence"),
}
HEAD, POOLER, NEXT = "masked_head", "pooler", "next_head"


def make_loss(model: nn.Module, cfg: Config) -> LossFn:
  """sum over hidden tokens of their cross-entropy, and for pairs P times that of "B follows A".

  Divided by the number of hidden tokens (about P a row) that is BERT's mean plus mean.
  """
  pairs, most = cfg.objective.next_sentence, most_hidden(cfg)
  head, pooler, next_head = MaskedHead(cfg.model), Pooler(cfg.model), _next_head(cfg)

  def loss_fn(params, extra, batch, key, hparams):
    segments_BL = batch["segments"]
    x_BLD = apply(
      model,
      params,
      batch["tokens"],
      None,
      segments_BL,
      batch.get("types"),
      train=key is not None,
      rngs=None if key is None else {"dropout": key},
      method="bidirectional",
    )
    x_BPD = jnp.take_along_axis(x_BLD, jnp.expand_dims(batch["places"], 2), axis=1)
    table_VD = params["embed"]["embedding"]
    logits_BPV = apply(head, params[HEAD], x_BPD, table_VD)
    objective, sums = token_sums(logits_BPV, batch["targets"], batch["weights"], hparams)
    real_B = segments_BL.max(axis=1).astype(jnp.float32)
    sums["units"] = (segments_BL > 0).sum().astype(jnp.float32) - (2 + pairs) * real_B.sum()
    if pairs:
      pooled_BD = apply(pooler, params[POOLER], x_BLD[:, 0])
      log_p_BC = jax.nn.log_softmax(apply(next_head, params[NEXT], pooled_BD))
      nll_B = -jnp.take_along_axis(log_p_BC, jnp.expand_dims(batch["other"], 1), axis=1)[:, 0]
      right_B = log_p_BC.argmax(axis=1) == batch["other"]
      sums["next_loss"] = (real_B * nll_B).sum()
      sums["next_right"] = jnp.where(right_B, real_B, 0.0).sum()
      sums["pairs"] = real_B.sum()
      objective += most * sums["next_loss"]
    return objective, (sums, extra)

  return loss_fn


def _next_head(cfg: Config) -> Dense:
  return Dense(cfg.model, 2, "readout", ("embed", "replicated"))


def parts(cfg: Config) -> dict[str, Part]:
  """The head for hidden tokens; with pairs also the pooler and the head that tells them apart."""
  width, array = cfg.model.width, lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  table = array(cfg.model.vocab_size, width)
  found = {HEAD: Part(MaskedHead(cfg.model), (array(1, 1, width), table))}
  if cfg.objective.next_sentence:
    found[POOLER] = Part(Pooler(cfg.model), (array(1, width),))
    found[NEXT] = Part(_next_head(cfg), (array(1, width),))
  return found


def weights(cfg: Config):
  """Those of `parts`."""
  found, width = masked_head_weights(HEAD, cfg.model), cfg.model.width
  if cfg.objective.next_sentence:
    found += dense_weights(f"{POOLER}/dense", "hidden", width, width)
    found += dense_weights(NEXT, "readout", width, 2)
  return found


def exact_flops(cfg: Config, causal: bool) -> float:
  """The encoder's of one token of text, and a token's share of its row's P hidden tokens and one pair.

  Rows are as long as model.seq_len, of which 2 or 3 tokens are no text.
  """
  width, vocab, n_text = cfg.model.width, cfg.model.vocab_size, room(cfg)
  assert vocab is not None  # resolved
  row = cfg.model.seq_len * family_of(cfg.model).exact_flops(cfg.model, causal)
  row += 3 * most_hidden(cfg) * 2 * (width * width + width * vocab)
  if cfg.objective.next_sentence:
    row += 3 * 2 * (width * width + 2 * width)
  return row / n_text


def train_scores(sums: Sums) -> dict[str, jax.Array]:
  """Means over the batch's hidden tokens, and over its pairs."""
  n = jnp.maximum(sums["weight"], 1.0)
  found = {"loss": sums["loss"] / n, "accuracy": sums["correct"] / n}
  if "pairs" in sums:
    found["next_loss"] = sums["next_loss"] / sums["pairs"]
    found["next_accuracy"] = sums["next_right"] / sums["pairs"]
  return found


def eval_scores(sums: Mapping[str, Any], facts: Mapping[str, float]) -> dict[str, float]:
  """The same over a whole set."""
  found = {"loss": sums["loss"] / sums["weight"], "accuracy": sums["correct"] / sums["weight"]}
  if "pairs" in sums:
    found["next_loss"] = sums["next_loss"] / sums["pairs"]
    found["next_accuracy"] = sums["next_right"] / sums["pairs"]
  return found


def check(cfg: Config) -> None:
  """ConfigError for shares that exceed the whole, and a family that knows no pairs."""
  o = cfg.objective
  if o.mask_share + o.random_share > 1:
    raise ConfigError(
      f"objective.random_share={o.random_share}: with objective.mask_share={o.mask_share} it must not "
      "exceed 1; "
      f"use {1 - o.mask_share:.3g}"
    )
  if o.next_sentence and getattr(cfg.model, "types", 1) < 2:
    raise ConfigError(
      "objective.next_sentence=True: pairs need model.types=2 or more, to tell A from B; use False"
    )


def chance(cfg: Config) -> dict[str, float]:
  """A uniform guess."""
  return {"loss": math.log(cfg.model.vocab_size or 1)}


MASKED_LM = Objective(
  section=MaskedLmConfig,
  batches="masked",
  make_loss=make_loss,
  train_metrics=TRAIN,
  train_scores=train_scores,
  eval_metrics=EVAL,
  eval_scores=eval_scores,
  needs=("bidirectional",),
  check=check,
  parts=parts,
  weights=weights,
  exact_flops=exact_flops,
  chance=chance,
)
