"""A family and an objective that share nothing with a language model, registered from outside lm/.

The family sums the embeddings of a passage's tokens and maps them through an MLP. The objective predicts
the number modulo LABELS of the token after the passage; it reads a kind of batch of its own, keeps
a running distribution of labels that is no parameter, and is judged by accuracy, which is better when higher.
tests/test_contracts.py takes both through everything.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config.schema import Config, ModelConfig, ObjectiveConfig, field
from lm.data import cache, order
from lm.data.kinds import KINDS, Array, Kind
from lm.data.tokenizers import known_vocab_size
from lm.models.family import Family, Input, Weight
from lm.models.registry import FAMILIES
from lm.objectives.objective import Metric, Objective, Part
from lm.objectives.registry import OBJECTIVES

LABELS = 5

# --- family -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BagConfig(ModelConfig):
  inner: int = field("[1, inf)", "64")


def _table(std, axes):
  return nn.with_logical_partitioning(nn.initializers.normal(std), axes)


class Bag(nn.Module):
  """relu(mean of embeddings x up) x down: [B, N] -> [B, D]."""

  cfg: BagConfig

  @nn.compact
  def __call__(self, bag_BN):
    V, D, F = self.cfg.vocab_size, self.cfg.width, self.cfg.inner
    embedding = self.param("embedding", _table(1.0, ("vocab", "embed")), (V, D))
    up = self.param("up", _table(D**-0.5, ("embed", "mlp")), (D, F))
    down = self.param("down", _table(F**-0.5, ("mlp", "embed")), (F, D))
    return jax.nn.relu(embedding[bag_BN].mean(axis=1) @ up) @ down


def bag_weights(cfg):
  return [
    Weight("embedding", "embed", (cfg.vocab_size, cfg.width)),
    Weight("up", "hidden", (cfg.width, cfg.inner)),
    Weight("down", "hidden", (cfg.inner, cfg.width)),
  ]


FAMILIES["bag"] = Family(
  section=BagConfig,
  module=Bag,
  inputs={"bag": Input("int32", ("batch", "length"))},
  weights=bag_weights,
  exact_flops=lambda cfg, causal: 12.0 * cfg.width * cfg.inner,
  activation_floats=lambda cfg: cfg.train.batch_size * (2 * cfg.model.width + cfg.model.inner),
  splits=lambda cfg: {
    "fsdp": {"model.width": cfg.width},
    "tensor": {"model.inner": cfg.inner, "model.vocab_size": cfg.vocab_size},
  },
)

# --- kind of batch ----------------------------------------------------------------------------------


class Passages:
  """Passages of `length` tokens and the label of the token after them, drawn by a keyed permutation."""

  def __init__(self, stores, length, batch_size, seed, n_passages=None):
    self.stores, self.length, self.batch_size, self.seed = stores, length, batch_size, seed
    self.total = sum(max(0, s.n_tokens - length) for s in stores)
    self.n = self.total if n_passages is None else min(n_passages, self.total)

  @property
  def facts(self):
    return {"passages": self.n}

  def __len__(self):
    return self.n // self.batch_size

  def at(self, step, rows=None):
    index = step * self.batch_size + np.arange(self.batch_size)[rows or slice(None)]
    epoch, index = np.divmod(index, self.n)
    starts = order.permute(index, self.total, order.fold(self.seed, 7, epoch))
    tokens = self.stores[0].tokens
    bags = np.stack([tokens[s : s + self.length] for s in starts]).astype(np.int32)
    after = np.array([tokens[s + self.length] for s in starts], np.int64)
    return {"bag": bags, "label": (after % LABELS).astype(np.int32)}


def _arrays(cfg: Config, training: bool):
  rows = cfg.train.batch_size if training else cfg.eval.batch_size
  return {
    "bag": Array(np.int32, (rows, cfg.model.seq_len), ("batch", "length")),
    "label": Array(np.int32, (rows,), ("batch",)),
  }


def _passages(stores, cfg, batch_size, n=None, seed=None):
  seed = cfg.data.seed if seed is None else seed
  return Passages(stores, cfg.model.seq_len, batch_size, seed, n)


KINDS["passages"] = Kind(
  unit="passages",
  open=lambda cfg: cache.open_corpus(cfg.data, quiet=True),
  vocab_size=lambda cfg: known_vocab_size(cfg.data),
  describe=cache.describe,
  arrays=_arrays,
  train=lambda corpus, cfg: _passages(corpus.train, cfg, cfg.train.batch_size),
  held_out=lambda corpus: corpus.val,
  extra_set=lambda corpus, source: corpus.extra(source),
  evaluate=lambda store, cfg, n, stride: _passages([store], cfg, cfg.eval.batch_size, n or 256, 0),
  units_per_row=lambda cfg: 1,
)

# --- objective --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class NextLabelConfig(ObjectiveConfig):
  smoothing: float = field("[0, 1)", "0.1", traced=True)


class LabelHead(nn.Module):
  @nn.compact
  def __call__(self, x_BD):
    width = x_BD.shape[-1]
    return x_BD @ self.param(
      "kernel", _table(width**-0.5, ("embed", "replicated")), (width, LABELS)
    )


def make_loss(model, cfg):
  def loss_fn(params, extra, batch, key, hparams):
    x_BD = model.apply({"params": params}, batch["bag"])
    seen_C = extra["labels"] + 1.0
    prior_C = jnp.expand_dims(jnp.log(seen_C / seen_C.sum()), 0)
    logits_BC = LabelHead().apply({"params": params["label_head"]}, x_BD) + prior_C
    log_p_BC = jax.nn.log_softmax(logits_BC)
    hot_BC = jax.nn.one_hot(batch["label"], LABELS)
    nll_B = -(hot_BC * log_p_BC).sum(axis=-1)
    uniform_B = -log_p_BC.mean(axis=-1)
    smooth = hparams.smoothing
    sums = {
      "nll": nll_B.sum(),
      "right": (logits_BC.argmax(axis=-1) == batch["label"]).sum().astype(jnp.float32),
      "weight": jnp.float32(nll_B.shape[0]),
    }
    if key is not None:
      extra = {"labels": extra["labels"] + hot_BC.sum(axis=0)}
    return ((1 - smooth) * nll_B + smooth * uniform_B).sum(), (sums, extra)

  return loss_fn


def _means(sums):
  return {"nll": sums["nll"] / sums["weight"], "right": sums["right"] / sums["weight"]}


METRICS = {
  "nll": Metric("nats a label", "lower", "{:.4f} nats"),
  "right": Metric("fraction of labels predicted", "higher", "{:.2%} right"),
}
OBJECTIVES["next_label"] = Objective(
  section=NextLabelConfig,
  batches="passages",
  make_loss=make_loss,
  train_metrics=METRICS,
  train_scores=_means,
  eval_metrics=METRICS,
  eval_scores=lambda sums, facts: _means(sums),
  parts=lambda cfg: {
    "label_head": Part(LabelHead(), (jax.ShapeDtypeStruct((1, cfg.model.width), jnp.float32),))
  },
  weights=lambda cfg: [Weight("label_head/kernel", "readout", (cfg.model.width, LABELS))],
  init_extra=lambda model, cfg, params, rows: {"labels": jnp.zeros(LABELS)},
  extra_axes=lambda cfg: {"labels": ("replicated",)},
)
