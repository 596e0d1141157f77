"""Weights, FLOPs and activations of encoder-decoder Transformers, by arithmetic alone."""

from typing import Any

from lm.config.schema import Config
from lm.models.family import Weight
from lm.models.transformer_config import GATED


def encoder_decoder_weights(cfg: Any) -> list[Weight]:
  """Every weight; a token of a source meets the encoder's, one of a target the decoder's."""
  width, inner = cfg.width, cfg.heads * cfg.head_dim
  found = [Weight("embed/embedding", "embed", (cfg.vocab_size, width))]

  def norm(name, copies):
    found.append(Weight(f"{name}/scale", "vector", (width,), copies, copies))
    if cfg.norm == "layernorm" and cfg.bias:
      found.append(Weight(f"{name}/bias", "vector", (width,), copies, copies))

  def linear(name, rows, columns, copies):
    found.append(Weight(f"{name}/kernel", "hidden", (rows, columns), copies, copies))
    if cfg.bias:
      found.append(Weight(f"{name}/bias", "vector", (columns,), copies, copies))

  for stack, depth, length in (
    ("encoder", cfg.depth, cfg.seq_len),
    ("decoder", cfg.decoder_depth, cfg.target_len),
  ):
    if cfg.positions == "learned":
      found.append(Weight(f"{stack}/position_embed/embedding", "embed", (length, width)))
    for part in ("attn", "cross")[: 1 + (stack == "decoder")]:
      for name in ("q", "k", "v"):
        linear(f"{stack}/blocks/{part}/{name}", width, inner, depth)
      linear(f"{stack}/blocks/{part}/out", inner, width, depth)
      norm(f"{stack}/blocks/{part}_norm", depth)
    linear(f"{stack}/blocks/mlp/up", width, cfg.mlp_dim, depth)
    if cfg.activation in GATED:
      linear(f"{stack}/blocks/mlp/gate", width, cfg.mlp_dim, depth)
    linear(f"{stack}/blocks/mlp/down", cfg.mlp_dim, width, depth)
    norm(f"{stack}/blocks/mlp_norm", depth)
    if cfg.norm_position == "pre":
      norm(f"{stack}/final_norm", 1)
  if not cfg.tied_embeddings:
    found.append(Weight("head/kernel", "readout", (width, cfg.vocab_size)))
  return found


def encoder_decoder_flops(cfg: Any, causal: bool = False) -> float:
  """Matmul by matmul, of one token of a full row of S source and L target tokens, on average:

      3 (S (2 E + 2 C + 4 S HK n) + L (2 W + 2 D V + 4 (M + S) HK m)) / (S + L)

  with E the entries of the encoder's matrices, C those of the decoder's keys and values of the source, W
  the decoder's others, n and m the layers, and M = L keys of the target, or (L + 1) / 2 with `causal`.
  """
  hidden = [w for w in encoder_decoder_weights(cfg) if w.kind == "hidden"]
  entries = lambda test: sum(w.size for w in hidden if test(w.name))
  encoder = entries(lambda name: name.startswith("encoder/"))
  cross = entries(
    lambda name: name.startswith(("decoder/blocks/cross/k/", "decoder/blocks/cross/v/"))
  )
  decoder = entries(lambda name: name.startswith("decoder/")) - cross
  source, target, inner = cfg.seq_len, cfg.target_len, cfg.heads * cfg.head_dim
  keys = (target + 1) / 2 if causal else target
  total = source * (2 * encoder + 2 * cross + 4 * source * inner * cfg.depth)
  total += target * (2 * decoder + 2 * cfg.width * cfg.vocab_size)
  total += target * 4 * (keys + source) * inner * cfg.decoder_depth
  return 3 * total / (source + target)


def encoder_decoder_activations(cfg: Config) -> float:
  """Estimate of the numbers that the forward pass keeps for the backward pass on each device.

  As lm.models.transformer_counts.decoder_activations for each stack, 4 D + 3 HK more for a token of the
  target for the attention to the source, and 2 HK for one of the source, of each of the decoder's layers.
  """
  model: Any = cfg.model
  train, mesh = cfg.train, cfg.mesh
  width, mlp_dim, inner = model.width, model.mlp_dim, model.heads * model.head_dim
  mlps = 3 if model.activation in GATED else 2
  whole = {
    "none": 8 * width + 3 * inner + mlps * mlp_dim,
    "dots": 2 * width + 3 * inner + (mlps - 1) * mlp_dim,
    "full": width,
  }[model.remat]
  more = 0 if model.remat == "full" else 4 * width + 3 * inner
  of_source = model.depth * whole + (
    0 if model.remat == "full" else model.decoder_depth * 2 * inner
  )
  of_target = model.decoder_depth * (whole + more)
  if model.remat == "none" and model.attention in ("einsum", "xla"):
    of_source += model.depth * (2 * width + 2 * model.heads * model.seq_len)
    keys = model.target_len + model.seq_len
    of_target += model.decoder_depth * (2 * width + 2 * model.heads * keys)
  logits = 2 * model.vocab_size * (cfg.objective.chunk or model.target_len) / model.target_len
  working = max(logits, 18 * width + 4 * mlp_dim)
  rows = train.batch_size / train.accumulate / (mesh.replica * mesh.fsdp * mesh.expert)
  rows /= mesh.sequence
  return rows * (model.seq_len * of_source + model.target_len * (of_target + working))
