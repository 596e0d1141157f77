"""The evidence lower bound of a variational autoencoder of sentences, and what keeps its latent in use.

    ELBO(x) = E_q [log p(x | z)] - KL(q(z | x) || N(0, I)),   KL_d = (mean_d^2 + var_d - 1 - log var_d) / 2

(Kingma & Welling 2014, arXiv:1312.6114, appendix B). Minimised is -E_q log p(x | z) + a(t) sum_d max(KL_d,
free bits), one z a sentence, with a(t) rising from 0 to 1 and input words of the decoder left out (Bowman et
al. 2016, arXiv:1511.06349, §3.1; free bits of each sentence and dimension after Kingma et al. 2016,
arXiv:1606.04934, C.8). Evaluation draws `samples` vectors a sentence for the importance-weighted bound

    log p(x) >= E log (1/k) sum_i p(x | z_i) p(z_i) / q(z_i | x)

(Burda et al. 2016, arXiv:1509.00519, eq. 8), which is the ELBO at k = 1 and no looser for larger k, and
counts the latent dimensions whose mean varies over the set by more than 0.01 (§5.2 there).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config.hparams import Hparams
from lm.config.schema import Config, ObjectiveConfig, field
from lm.models.vae import sentences_of
from lm.objectives.objective import LossFn, Metric, Objective, Sums

ACTIVE = 0.01  # variance of a mean from which its dimension is in use
SHOWN = 5  # sentences of a sample, on a line between two latent vectors


@dataclasses.dataclass(frozen=True)
class ElboConfig(ObjectiveConfig):
  anneal: str = field(choices=("none", "linear", "sigmoid"))  # how the KL's weight rises to 1
  anneal_steps: int = field("[1, inf)", "1000", traced=True)  # over so many steps
  word_dropout: float = field("[0, 1]", "0.3", traced=True)  # share of input words left out
  free_bits: float = field("[0, inf)", "0.1", traced=True)  # nats a dimension that cost nothing
  samples: int = field("[1, inf)", "16")  # k of the importance-weighted bound, in evaluation


TRAIN = {
  "neg_elbo": Metric(
    "nats a sentence, reconstruction and KL, one z, words left out as in training", "lower"
  ),
  "reconstruction": Metric("nats a sentence of its words, given z", "lower"),
  "kl": Metric("nats a sentence between q(z given x) and the prior, in closed form"),
  "kl_weight": Metric("what the KL weighs in this step's objective"),
}
EVAL = {
  "neg_elbo": Metric(
    "nats a sentence, mean of `samples` vectors z", "lower", "{:.3f} nats/sentence"
  ),
  "reconstruction": TRAIN["reconstruction"],
  "kl": TRAIN["kl"]._replace(form="{:.3f} of them KL"),
  "bound": Metric("nats a sentence, importance-weighted over `samples` vectors z", "lower"),
  "loss": Metric("nats/token over the whole fixed set, by the importance-weighted bound", "lower"),
  "active": Metric("latent dimensions whose mean varies over the set by more than 0.01", "higher"),
}


def kl_BZ(mean_BZ: jax.Array, log_var_BZ: jax.Array) -> jax.Array:
  """KL of N(mean, exp(log_var)) from N(0, 1), nats, element by element."""
  return 0.5 * (jnp.square(mean_BZ) + jnp.exp(log_var_BZ) - 1.0 - log_var_BZ)


def kl_weight(anneal: str, step: jax.Array, hparams: Hparams) -> jax.Array:
  """a(t): 1; t / steps up to 1; or a logistic curve that is 1/2 at steps / 2 and within 1 % of its ends."""
  share = step.astype(jnp.float32) / hparams.anneal_steps.astype(jnp.float32)
  if anneal == "linear":
    return jnp.minimum(share, 1.0)
  if anneal == "sigmoid":
    return jax.nn.sigmoid(10.0 * (share - 0.5))
  return jnp.ones_like(share)


def make_loss(model: nn.Module, cfg: Config) -> LossFn:
  """Sums over sentences; budgets count their tokens."""

  def loss_fn(params, extra, batch, key, hparams):
    training = key is not None
    tokens_BL, targets_BL, weights_BL = batch["tokens"], batch["targets"], batch["weights"]
    apply = lambda *args, **kwargs: model.apply({"params": params}, *args, **kwargs)
    moments: Any = apply(targets_BL, weights_BL, method="encode")
    mean_BZ, log_var_BZ = moments
    real_B = jnp.minimum(weights_BL.sum(axis=1), 1.0)
    keys = jax.random.split(jax.random.key(0) if key is None else key, 3)
    words_BL = None
    if training:
      kept_BL = jax.random.uniform(keys[1], tokens_BL.shape) >= hparams.word_dropout
      words_BL = jnp.where(
        jnp.arange(tokens_BL.shape[1])[None] == 0, 1.0, kept_BL.astype(jnp.float32)
      )

    def nll_of(z_BZ):
      """-log p(x | z) of each sentence."""
      decoded: Any = apply(
        tokens_BL, z_BZ, apply(z_BZ, method="first"), words_BL, train=training, method="decode",
        rngs={"dropout": keys[2]} if training else None,
      )  # fmt: skip
      logits: Any = apply(decoded[0], method="logits")
      log_p_BLV = jax.nn.log_softmax(logits, axis=-1)
      log_p_BL = jnp.take_along_axis(log_p_BLV, jnp.expand_dims(targets_BL, 2), axis=2)[:, :, 0]
      return -(weights_BL * log_p_BL).sum(axis=1)

    def one(eps_BZ):
      """(nll, log of p(z) / q(z | x)) of each sentence, for z = mean + sigma eps."""
      z_BZ = mean_BZ + jnp.exp(0.5 * log_var_BZ) * eps_BZ
      ratio_BZ = -0.5 * jnp.square(z_BZ) + 0.5 * jnp.square(eps_BZ) + 0.5 * log_var_BZ
      return nll_of(z_BZ), ratio_BZ.sum(axis=1)

    divergence_BZ = kl_BZ(mean_BZ, log_var_BZ)
    sums = {
      "kl": (real_B * divergence_BZ.sum(axis=1)).sum(),
      "weight": real_B.sum(),
      "units": weights_BL.sum(),
    }
    if training:
      nll_B, _ = one(jax.random.normal(keys[0], mean_BZ.shape))
      weight = kl_weight(cfg.objective.anneal, extra["step"], hparams)
      floor_B = jnp.maximum(divergence_BZ, hparams.free_bits).sum(axis=1)
      sums |= {"nll": (real_B * nll_B).sum(), "kl_weight": weight * sums["weight"]}
      return (real_B * (nll_B + weight * floor_B)).sum(), (sums, extra)

    keys_B = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
      keys[0], number_of(targets_BL, weights_BL)
    )
    noise = lambda key, i: jax.random.normal(jax.random.fold_in(key, i), mean_BZ.shape[1:])
    draw = lambda i: one(jax.vmap(noise, in_axes=(0, None))(keys_B, i))
    nll_KB, ratio_KB = jax.lax.map(draw, jnp.arange(cfg.objective.samples))
    bound_B = math.log(cfg.objective.samples) - jax.nn.logsumexp(ratio_KB - nll_KB, axis=0)
    real_B1 = jnp.expand_dims(real_B, 1)
    sums |= {
      "nll": (real_B * nll_KB.mean(axis=0)).sum(),
      "bound": (real_B * bound_B).sum(),
      "mean": (real_B1 * mean_BZ).sum(axis=0),
      "square": (real_B1 * jnp.square(mean_BZ)).sum(axis=0),
    }
    return sums["nll"] + sums["kl"], (sums, extra)

  return loss_fn


def number_of(targets_BL: jax.Array, weights_BL: jax.Array) -> jax.Array:
  """uint32 [B]: a hash of each sentence, so that what evaluation draws for it depends on nothing else."""
  place_1L = jnp.expand_dims(jnp.arange(targets_BL.shape[1], dtype=jnp.uint32), 0)
  word_BL = (targets_BL.astype(jnp.uint32) + 1) * (2 * place_1L + 1) * jnp.uint32(2654435761)
  word_BL ^= word_BL >> 15
  return (word_BL * (weights_BL > 0).astype(jnp.uint32)).sum(axis=1, dtype=jnp.uint32)


def train_scores(sums: Sums) -> dict[str, jax.Array]:
  """Means over sentences."""
  n = jnp.maximum(sums["weight"], 1.0)
  found = {"neg_elbo": sums["nll"] + sums["kl"], "reconstruction": sums["nll"]}
  found |= {"kl": sums["kl"], "kl_weight": sums["kl_weight"]}
  return {name: value / n for name, value in found.items()}


def eval_scores(sums: Mapping[str, Any], facts: Mapping[str, float]) -> dict[str, float]:
  n = sums["weight"]
  variance = sums["square"] / n - np.square(sums["mean"] / n)
  return {
    "neg_elbo": (sums["nll"] + sums["kl"]) / n,
    "reconstruction": sums["nll"] / n,
    "kl": sums["kl"] / n,
    "bound": sums["bound"] / n,
    "loss": sums["bound"] / sums["units"],
    "active": float((variance > ACTIVE).sum()),
  }


def make_sampler(cfg: Config, tokenizer, mesh=None):
  """`sample(params, seed)` -> sentences on the line between two vectors of the prior; None where off."""
  if cfg.sample.tokens == 0:
    return None
  length = min(cfg.sample.tokens, cfg.model.seq_len)

  def sample(params, seed):
    ends = np.random.default_rng(seed).normal(size=(2, cfg.model.latent_dim))
    share = np.linspace(0, 1, SHOWN)[:, None]
    z = (1 - share) * ends[0] + share * ends[1]
    params = jax.device_put(jax.device_get(params), jax.local_devices()[0])
    texts = sentences_of(cfg.model, params, z, length, tokenizer)
    return "\n".join(tokenizer.decode(ids) for ids in texts)

  return sample


def after_step(cfg: Config, extra: dict[str, Any]) -> dict[str, Any]:
  """One step more."""
  return {"step": extra["step"] + 1}


ELBO = Objective(
  section=ElboConfig,
  batches="sentences",
  make_loss=make_loss,
  train_metrics=TRAIN,
  train_scores=train_scores,
  eval_metrics=EVAL,
  eval_scores=eval_scores,
  needs=("encode", "decode", "first", "logits"),
  init_extra=lambda module, cfg, params, rows: {"step": jnp.int32(0)},
  extra_axes=lambda cfg: {"step": ()},
  after_step=after_step,
  chance=lambda cfg: {"loss": math.log(cfg.model.vocab_size or 1)},
  make_sampler=make_sampler,
)
