"""Causal language modelling: the probability of a text, token after token."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config.errors import ConfigError, check_divisible, number_of
from lm.config.hparams import Hparams
from lm.config.schema import Config, ObjectiveConfig, field
from lm.data.templates import NO_ENDING, Ending
from lm.models import trees
from lm.models.decoding import Sampling, draw_texts, make_generator
from lm.models.experts import LOSSES, ROUTING, update_bias
from lm.models.registry import family_of
from lm.objectives.cross_entropy import chunked_token_sums, token_sums
from lm.objectives.objective import Batch, LossFn, Metric, Objective, Sums


@dataclasses.dataclass(frozen=True)
class NextTokenConfig(ObjectiveConfig):
  chunk: int | None = field("[1, inf)", "128")
  z_loss: float = field("[0, inf)", "1e-4", traced=True)
  label_smoothing: float = field("[0, 1)", "0.1", traced=True)
  balance_loss: float = field("[0, inf)", "0.01", traced=True, neutral=0.01)
  router_z_loss: float = field("[0, inf)", "1e-3", traced=True, neutral=0.0)
  router_bias_rate: float = field("[0, inf)", "1e-3", neutral=0.0)


TRAIN = {
  "loss": Metric("nats/token of this step's batch, without z-loss and smoothing", "lower"),
  "z_loss": Metric("nats/token that the z-loss adds to the objective"),
  "accuracy": Metric("fraction of this batch's tokens predicted exactly", "higher"),
  "balance": Metric("the experts' load-balancing loss, mean of layers; 1 = all used alike"),
  "router_z": Metric("log^2 Z of the experts' router, mean of tokens and layers"),
  "dropped": Metric("fraction of the tokens' choices that found no room with their expert"),
}
EVAL = {
  "loss": Metric("nats/token over the whole fixed set", "lower", "{:.4f} nats/token"),
  "bpb": Metric(
    "bits per UTF-8 byte of the set's text, without separators", "lower", "{:.4f} bits/byte"
  ),
  "accuracy": Metric("fraction of the set's tokens predicted exactly", "higher", "{:.2%} accuracy"),
}
ROUTER = ("balance", "router_z", "dropped")  # where the model has experts


def make_loss(model: nn.Module, cfg: Config) -> LossFn:
  """Every position predicts the token after it.

  Where the model has experts, their router's losses are added, summed over layers (lm.models.experts).
  With objective.router_bias_rate their biases come from `extra`, to which training adds the loads; where
  the model is used by its parameters they lie among these (`Objective.in_use`).
  """

  chunk = cfg.objective.chunk

  def loss_fn(params, extra, batch, key, hparams):
    x_BLD, sown, extra = read_hidden(model, cfg, params, extra, batch, key)

    def logits_fn(head_params, x_BLD):
      return model.apply({"params": head_params}, x_BLD, method="logits")

    head = {name: params[name] for name in model.head_params}
    targets_BL, weights_BL = batch["targets"], batch["weights"]
    if chunk is None or chunk == x_BLD.shape[1]:
      logits_BLV = logits_fn(head, x_BLD)
      objective, sums = token_sums(logits_BLV, targets_BL, weights_BL, hparams, batch.get("text"))
    else:
      objective, sums = chunked_token_sums(
        logits_fn, head, x_BLD, targets_BL, weights_BL, hparams, chunk, batch.get("text")
      )
    objective, sums = add_router(objective, sums, sown, hparams, model)
    return objective, (sums, extra)

  return loss_fn


def read_hidden(
  model: nn.Module, cfg: Config, params: Any, extra: Any, batch: Batch, key: jax.Array | None
) -> tuple[jax.Array, Mapping[str, Any], Any]:
  """(x_BLD that `logits` reads, what the layers sowed, extra with the experts' loads); as of a LossFn."""
  variables, mutable = {"params": params}, [LOSSES]
  if extra:
    scanned = getattr(cfg.model, "scan_layers", True)
    bias = extra["bias"] if scanned else trees.unstack_layers(extra["bias"])
    variables[ROUTING] = bias
    if key is not None:
      mutable.append(ROUTING)
  x_BLD, sown = model.apply(
    variables,
    batch["tokens"],
    batch.get("positions"),
    batch.get("segments"),
    train=key is not None,
    rngs=None if key is None else {"dropout": key},
    method="hidden",
    mutable=mutable,
  )
  if ROUTING in sown:
    extra = extra | {"load": _with_loads(extra["load"], trees.stack_layers(sown[ROUTING]))}
  return x_BLD, sown, extra


def add_router(
  objective: jax.Array, sums: Sums, sown: Mapping[str, Any], hparams: Hparams, model: nn.Module
) -> tuple[jax.Array, Sums]:
  """(objective, sums) with the losses of the experts' routers, where there are experts."""
  if LOSSES not in sown:
    return objective, sums
  router = router_sums(sown[LOSSES])
  objective += hparams.balance_loss * router["balance"] + hparams.router_z_loss * router["router_z"]
  return objective, sums | {name: total / model.cfg.depth for name, total in router.items()}


def router_sums(sown: Mapping[str, Any]) -> Sums:
  """What the experts of all layers sowed, added up by name."""
  totals = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(sown):
    name = path[-1].key
    totals[name] = totals[name] + leaf.sum() if name in totals else leaf.sum()
  return totals


def _routers(cfg: Config) -> dict[str, Any]:
  """{"blocks": {"mlp": {"bias": [layers, experts]}}}, the shapes of the routers' biases; {} without them."""
  found = {}
  if cfg.objective.router_bias_rate == 0:
    return found
  for weight in family_of(cfg.model).weights(cfg.model):
    *path, name, leaf = weight.name.split("/")
    if (name, leaf) == ("router", "kernel"):
      at = found
      for part in path:
        at = at.setdefault(part, {})
      at["bias"] = (weight.copies, weight.shape[-1])
  return found


def _with_loads(total, sown):
  """The loads so far, and those that a pass has sown beside the biases, as `bias` of the same tree."""
  if "bias" in total:
    return {"bias": total["bias"] + sown["load"]}
  return {name: _with_loads(part, sown[name]) for name, part in total.items()}


def init_extra(module: nn.Module, cfg: Config, params: Any, rows: int) -> dict[str, Any]:
  """{"bias", "load"} of every router, zeros; {} unless objective.router_bias_rate is positive."""
  shapes = _routers(cfg)
  if not shapes:
    return {}
  zeros = lambda: jax.tree.map(jnp.zeros, shapes, is_leaf=lambda x: isinstance(x, tuple))
  return {"bias": zeros(), "load": zeros()}


def extra_axes(cfg: Config) -> dict[str, Any]:
  """Biases and loads are whole on every device."""
  shapes = _routers(cfg)
  if not shapes:
    return {}
  names = lambda _: ("replicated", "replicated")
  axes = jax.tree.map(names, shapes, is_leaf=lambda x: isinstance(x, tuple))
  return {"bias": axes, "load": axes}


def after_step(cfg: Config, extra: dict[str, Any]) -> dict[str, Any]:
  """Biases moved once by the loads of the whole batch; loads start at 0 again.

  Wang et al. 2024, arXiv:2408.15664, algorithm 1; DeepSeek-AI 2024, arXiv:2412.19437 §2.1.2.
  """
  if not extra:
    return extra
  move = lambda bias, load: update_bias(bias, load, cfg.objective.router_bias_rate)
  zeros = jax.tree.map(jnp.zeros_like, extra["load"])
  return {"bias": jax.tree.map(move, extra["bias"], extra["load"]), "load": zeros}


def train_scores(sums: Sums) -> dict[str, jax.Array]:
  """Means over the batch's tokens."""
  n_tokens = jnp.maximum(sums["weight"], 1.0)
  means = {"loss": "loss", "z_loss": "z_loss", "accuracy": "correct"}
  means |= {name: name for name in ROUTER if name in sums}
  return {name: sums[key] / n_tokens for name, key in means.items()}


def eval_scores(sums: Mapping[str, Any], facts: Mapping[str, float]) -> dict[str, float]:
  """loss = sum of cross-entropies / predicted tokens, in nats; bpb = that of the text's tokens alone, in
  bits / UTF-8 bytes: separators have no bytes, so their bits do not count there.
  """
  return {
    "loss": sums["loss"] / sums["weight"],
    "bpb": sums["text_loss"] / math.log(2) / facts["bytes"],
    "accuracy": sums["correct"] / sums["weight"],
  }


def check(cfg: Config) -> None:
  """ConfigError unless chunks divide a row and there are routers to balance."""
  chunk = cfg.objective.chunk
  if chunk is not None:
    check_divisible("model.seq_len", cfg.model.seq_len, chunk, "objective.chunk")
  rate = cfg.objective.router_bias_rate
  if rate and not getattr(cfg.model, "experts", None):
    raise ConfigError(
      f"objective.router_bias_rate={rate}: balances experts and there are none; set model.experts or "
      "use 0"
    )


def make_sampler(cfg: Config, tokenizer, mesh=None):
  """`sample(params, seed) -> text` after cfg.sample.prompt; None where samples are off.

  The parameters stay where they are on a mesh; without one they are brought to one device.
  """
  if cfg.sample.tokens == 0:
    return None
  prompt = [tokenizer.start_id, *tokenizer.encode(cfg.sample.prompt)]
  return sampler_after(cfg, tokenizer, mesh, prompt)


def sampler_after(cfg: Config, tokenizer, mesh, prompt: Sequence[int], ending: Ending = NO_ENDING):
  """`sample(params, seed) -> text` after these tokens."""
  room = cfg.model.seq_len - len(prompt)
  if room < 1:
    raise ConfigError(
      f"sample.prompt={cfg.sample.prompt}: {number_of(len(prompt), 'token')} and no room in model.seq_len="
      f"{cfg.model.seq_len}; shorten it"
    )
  generate = make_generator(cfg.model, min(cfg.sample.tokens, room), mesh, tokenizer.vocab_size)
  sampling = Sampling(temperature=float(cfg.sample.temperature))

  def sample(params, seed):
    if mesh is None:
      params = jax.device_put(params, jax.local_devices()[0])
    drawn = draw_texts(
      generate, params, [prompt], sampling, seed, tokenizer, ending.stops, ending.ids
    )
    return drawn[0].text

  return sample


NEXT_TOKEN = Objective(
  section=NextTokenConfig,
  batches="tokens",
  make_loss=make_loss,
  train_metrics=TRAIN,
  train_scores=train_scores,
  eval_metrics=EVAL,
  eval_scores=eval_scores,
  needs=("hidden", "logits", "head_params"),
  check=check,
  init_extra=init_extra,
  extra_axes=extra_axes,
  applied=("bias",),
  after_step=after_step,
  chance=lambda cfg: {"loss": math.log(cfg.model.vocab_size or 1)},  # known by then
  make_sampler=make_sampler,
)
