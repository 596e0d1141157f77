"""From a source to a target: the probability of one text given another, and of spans given the rest.

sum over targets of -log p(y_t | y_<t, x), in nats per token of the target, its end included
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config.errors import ConfigError, check_divisible, number_of
from lm.config.schema import Config, ObjectiveConfig, field
from lm.data.span_names import with_span_names
from lm.models.decoding import Sampling, make_generator, prompt_ids, room_after
from lm.objectives.cross_entropy import chunked_token_sums, token_sums
from lm.objectives.objective import LossFn, Metric, Objective, Sums


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig(ObjectiveConfig):
  chunk: int | None = field("[1, inf)", "128")
  z_loss: float = field("[0, inf)", "1e-4", traced=True)
  label_smoothing: float = field("[0, 1)", "0.1", traced=True)


@dataclasses.dataclass(frozen=True)
class SpanCorruptionConfig(Seq2SeqConfig):
  denoisers: tuple[str, ...] = field()


TRAIN = {
  "loss": Metric("nats/token of this step's batch, without z-loss and smoothing", "lower"),
  "z_loss": Metric("nats/token that the z-loss adds to the objective"),
  "accuracy": Metric("fraction of this batch's tokens predicted exactly", "higher"),
}
EVAL = {
  "loss": Metric("nats/token over the whole fixed set", "lower", "{:.4f} nats/token"),
  "accuracy": Metric("fraction of the set's tokens predicted exactly", "higher", "{:.2%} accuracy"),
}


def make_loss(model: nn.Module, cfg: Config) -> LossFn:
  """Every position of the target predicts the token after it; budgets count source and target tokens."""
  chunk, module = cfg.objective.chunk, _any(model)

  def loss_fn(params, extra, batch, key, hparams):
    x_BLD = module.apply(
      {"params": params},
      batch["source"],
      batch["tokens"],
      source_positions=batch["source_positions"],
      source_segments=batch["source_segments"],
      positions=batch["positions"],
      segments=batch["segments"],
      train=key is not None,
      rngs=None if key is None else {"dropout": key},
      method="hidden_pair",
    )

    def logits_fn(head_params, x_BLD):
      return module.apply({"params": head_params}, x_BLD, method="logits")

    head = {name: params[name] for name in module.head_params}
    targets_BL, weights_BL = batch["targets"], batch["weights"]
    if chunk is None or chunk == x_BLD.shape[1]:
      objective, sums = token_sums(logits_fn(head, x_BLD), targets_BL, weights_BL, hparams)
    else:
      objective, sums = chunked_token_sums(
        logits_fn, head, x_BLD, targets_BL, weights_BL, hparams, chunk
      )
    sources = (batch["source_segments"] > 0).sum().astype(jnp.float32)
    return objective, (sums | {"units": sums["weight"] + sources}, extra)

  return loss_fn


def _any(model: Any) -> Any:
  return model


def train_scores(sums: Sums) -> dict[str, jax.Array]:
  """Means over the target's tokens."""
  n_tokens = jnp.maximum(sums["weight"], 1.0)
  means = {"loss": "loss", "z_loss": "z_loss", "accuracy": "correct"}
  return {name: sums[key] / n_tokens for name, key in means.items()}


def eval_scores(sums: Mapping[str, Any], facts: Mapping[str, float]) -> dict[str, float]:
  """Means over the tokens of the set's targets."""
  return {"loss": sums["loss"] / sums["weight"], "accuracy": sums["correct"] / sums["weight"]}


def check(cfg: Config) -> None:
  """ConfigError unless chunks divide a target."""
  chunk, model = cfg.objective.chunk, _any(cfg.model)
  length = getattr(model, "target_len", None) or model.seq_len
  if chunk is not None:
    check_divisible("model.target_len", length, chunk, "objective.chunk")


def make_sampler(cfg: Config, tokenizer, mesh=None):
  """`sample(params, seed) -> text`: what the model writes for the source cfg.sample.prompt; None if off."""
  if cfg.sample.tokens == 0:
    return None
  source = prompt_ids(
    cfg.model, tokenizer.encode(cfg.sample.prompt), tokenizer.start_id, tokenizer.eot_id
  )
  if len(source) > cfg.model.seq_len:
    raise ConfigError(
      f"sample.prompt={cfg.sample.prompt}: {number_of(len(source), 'token')}, too long for model.seq_len="
      f"{cfg.model.seq_len}; shorten it"
    )
  room = min(cfg.sample.tokens, room_after(cfg.model, len(source)))
  generate = make_generator(cfg.model, room, mesh, tokenizer.vocab_size)
  sampling = Sampling(temperature=float(cfg.sample.temperature))

  def sample(params, seed):
    if mesh is None:
      params = jax.device_put(params, jax.local_devices()[0])
    ids = generate(params, [source], sampling, seed, tokenizer.eot_id, tokenizer.start_id)[0]
    return tokenizer.decode(ids)

  return sample


SEQ2SEQ = Objective(
  section=Seq2SeqConfig,
  batches="pairs",
  make_loss=make_loss,
  train_metrics=TRAIN,
  train_scores=train_scores,
  eval_metrics=EVAL,
  eval_scores=eval_scores,
  needs=("hidden_pair", "logits", "head_params"),
  check=check,
  chance=lambda cfg: {"loss": math.log(cfg.model.vocab_size or 1)},  # known by then
  make_sampler=make_sampler,
)
SPAN_CORRUPTION = dataclasses.replace(
  SEQ2SEQ,
  section=SpanCorruptionConfig,
  batches="spans",
  make_sampler=lambda cfg, tokenizer, mesh=None: make_sampler(
    cfg, with_span_names(tokenizer, cfg), mesh
  ),
)
