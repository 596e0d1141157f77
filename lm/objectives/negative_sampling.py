"""word2vec: a word's vector tells its neighbours from words drawn at random.

    skip-gram: sum over neighbours c of word w:  -log s(u_c . v_w)  - k E_n log s(-u_n . v_w)
    CBOW:      for word w:                       -log s(u_w . m_w)  - k E_n log s(-u_n . m_w)

v a row of the words' table, u of the contexts', m_w the mean v of w's neighbours, s the logistic function, n
drawn from counts ** 3/4: Mikolov et al. 2013, arXiv:1301.3781 (models) and arXiv:1310.4546, eq. 4. The
expectation over n is a mean over objective.drawn words that all words of a row share, after Ji et al. 2016,
arXiv:1604.04661: products of matrices instead of look-ups, the same gradient on average. A drawn word may be
a neighbour by chance, as in eq. 4.

The gradient of m_w leaves each of its c neighbours a share of 1 / c. word2vec.c and gensim move each by all
of it, which objective.gradient=word2vec does too: Irsoy, Benton & Stratos 2021, arXiv:2012.15332, §2.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config.errors import ConfigError
from lm.config.schema import Config, ObjectiveConfig, field
from lm.data.tokenizers import unknown_id
from lm.models.word_vectors import vectors_of
from lm.objectives.objective import LossFn, Metric, Objective, Sums


@dataclasses.dataclass(frozen=True)
class NegativeSamplingConfig(ObjectiveConfig):
  architecture: str = field(choices=("skipgram", "cbow"))
  window: int = field("[1, inf)", "5")  # words to either side, at most; drawn from 1 to it
  negatives: float = field("(0, inf)", "5", traced=True)  # k, what all drawn words weigh together
  drawn: int = field("[1, inf)", "64")  # words drawn a row, shared by its words
  power: float = field("[0, 1]", "0.75")  # of the counts they are drawn by
  gradient: str = field(choices=("exact", "word2vec"), neutral="exact")  # of CBOW's neighbours
  # t: more frequent words are left out at times; 0 = off
  subsample: float = field("[0, inf)", "1e-3")


METRICS = {
  "loss": Metric("nats a neighbour (skip-gram) or a word (CBOW), negatives included", "lower"),
  "hits": Metric("fraction of true neighbours or words with a positive score", "higher"),
  "kept": Metric("fraction of words that were not left out by chance"),
}
EVAL = {
  "loss": METRICS["loss"]._replace(form="{:.4f} nats"),
  "hits": METRICS["hits"]._replace(form="{:.1%} hits"),
}


def make_loss(model: nn.Module, cfg: Config) -> LossFn:
  """The sums over a batch of lm.data.contexts."""
  cbow = cfg.objective.architecture == "cbow"

  def loss_fn(params, extra, batch, key, hparams):
    rows = lambda words, method: model.apply({"params": params}, words, method=method)[0]
    v_BLD, u_BLD = (rows(batch["words"], method) for method in ("words", "contexts"))
    n_BND = rows(batch["negatives"], "contexts")
    near_BLM = neighbours(batch["segments"], batch["windows"])
    count_BL = near_BLM.sum(axis=2)
    if cbow:
      sum_BLD = jnp.einsum("blm,bmd->bld", near_BLM, v_BLD)
      mean_BLD = sum_BLD / jnp.expand_dims(jnp.maximum(count_BL, 1.0), 2)
      if cfg.objective.gradient == "word2vec":
        mean_BLD = sum_BLD + jax.lax.stop_gradient(mean_BLD - sum_BLD)
      weight_BL = jnp.minimum(count_BL, 1.0)
      score_BL = (mean_BLD * u_BLD).sum(axis=2)
      true = (weight_BL * jax.nn.softplus(-score_BL)).sum()
      hits = jnp.where(score_BL > 0, weight_BL, 0.0).sum()
      against_BLN = jnp.einsum("bld,bnd->bln", mean_BLD, n_BND)
    else:
      weight_BL = count_BL
      score_BLM = jnp.einsum("bld,bmd->blm", v_BLD, u_BLD)
      true = (near_BLM * jax.nn.softplus(-score_BLM)).sum()
      hits = jnp.where(score_BLM > 0, near_BLM, 0.0).sum()
      against_BLN = jnp.einsum("bld,bnd->bln", v_BLD, n_BND)
    drawn = (weight_BL * jax.nn.softplus(against_BLN).mean(axis=2)).sum()
    total = true + hparams.negatives * drawn
    sums = {
      "loss": total,
      "hits": hits,
      "kept": (batch["segments"] > 0).sum().astype(jnp.float32),
      "weight": weight_BL.sum(),
      "units": batch["read"].sum(),
    }
    return total, (sums, extra)

  return loss_fn


def neighbours(segments_BL: jax.Array, windows_BL: jax.Array) -> jax.Array:
  """float32 [B, L, M]: 1 where word M is within the window of word L and in its document."""
  place_L = jnp.arange(segments_BL.shape[1])
  distance_LM = jnp.abs(jnp.expand_dims(place_L, 1) - jnp.expand_dims(place_L, 0))
  near_BLM = jnp.expand_dims(distance_LM, 0) <= jnp.expand_dims(windows_BL, 2)
  near_BLM &= jnp.expand_dims(distance_LM > 0, 0)
  near_BLM &= jnp.expand_dims(segments_BL, 2) == jnp.expand_dims(segments_BL, 1)
  return (near_BLM & jnp.expand_dims(segments_BL > 0, 2)).astype(jnp.float32)


def train_scores(sums: Sums) -> dict[str, jax.Array]:
  """Means over neighbours or words."""
  weight = jnp.maximum(sums["weight"], 1.0)
  kept = sums["kept"] / jnp.maximum(sums["units"], 1.0)
  return {"loss": sums["loss"] / weight, "hits": sums["hits"] / weight, "kept": kept}


def eval_scores(sums: Mapping[str, Any], facts: Mapping[str, float]) -> dict[str, float]:
  return {name: sums[name] / max(sums["weight"], 1.0) for name in EVAL}


def check(cfg: Config) -> None:
  objective = cfg.objective
  if objective.gradient != "exact" and objective.architecture != "cbow":
    raise ConfigError(
      f"objective.gradient={objective.gradient}: is of means of neighbours; set "
      "objective.architecture=cbow, or use exact"
    )


def exact_flops(cfg: Config, causal: bool) -> float:
  """3 * 2 D (L + N), a word of a full row: its products with all words of the row and all that are drawn."""
  return 6.0 * cfg.model.width * (cfg.model.seq_len + cfg.objective.drawn)


def make_sampler(cfg: Config, tokenizer, mesh=None):
  """`sample(params, seed)` -> the sample.tokens words nearest to sample.prompt by cosine; None where off.

  Of a word that the tokenizer does not know it says so.
  """
  if cfg.sample.tokens == 0:
    return None
  prompt = cfg.sample.prompt
  words = tokenizer.encode(prompt.lower() if cfg.data.lower_case else prompt)
  if not words:
    raise ConfigError(
      f"sample.prompt={cfg.sample.prompt}: must be a word; use sample.tokens=0 for none"
    )

  if words[0] == unknown_id(tokenizer):
    return lambda params, seed: f" ({prompt} is none of the words)"

  def sample(params, seed):
    # A model may have more rows than there are words.
    vectors = vectors_of(cfg.model, jax.device_get(params))[: tokenizer.vocab_size]
    near = nearest(vectors, words[0], cfg.sample.tokens)
    return " " + " ".join(tokenizer.token(i) for i in near)

  return sample


def nearest(vectors, word: int, n: int) -> list[int]:
  """The n words with the largest cosine to a word, itself left out, the largest first."""
  norms = (vectors**2).sum(axis=1) ** 0.5
  cosines = vectors @ vectors[word] / (norms * norms[word] + 1e-30)
  ranked = (-cosines).argsort(kind="stable")
  return [int(i) for i in ranked if i != word][:n]


NEGATIVE_SAMPLING = Objective(
  section=NegativeSamplingConfig,
  batches="contexts",
  make_loss=make_loss,
  train_metrics=METRICS,
  train_scores=train_scores,
  eval_metrics=EVAL,
  eval_scores=eval_scores,
  needs=("words", "contexts"),
  exact_flops=exact_flops,
  check=check,
  chance=lambda cfg: {"loss": (1 + cfg.objective.negatives) * 0.6931471805599453},
  make_sampler=make_sampler,
)
