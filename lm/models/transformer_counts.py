"""Weights, FLOPs and activations of transformer stacks, by arithmetic alone.

All counts follow from the list of weights. A FLOP is one multiplication or one addition, so a product of
[m, k] and [k, n] matrices is 2 m k n. All FLOPs are for one training token: the forward pass and a backward
pass of twice its size. Of experts only those count that a token is sent to. Recomputation (remat) and the
optimizer are never counted.
"""

import math

from lm.config.schema import Config
from lm.models.family import Weight
from lm.models.layers import biased, has_final_norm, local_layers
from lm.models.transformer_config import GATED, TransformerConfig, adapter_rank, factor_rank

MLP = ("mlp/up", "mlp/gate", "mlp/down")  # what experts have one each of


def decoder_weights(cfg: TransformerConfig) -> list[Weight]:
  """Every weight of a decoder."""
  width, depth, vocab = cfg.width, cfg.depth, cfg.vocab_size
  norm_bias = cfg.norm == "layernorm" and biased(cfg, "norm")
  experts = cfg.experts or 1
  met = min(cfg.experts_per_token, experts) if cfg.experts else 1
  found = [Weight("embed/embedding", "embed", (vocab, width), 1, 1)]
  if cfg.positions == "learned":
    found.append(Weight("position_embed/embedding", "embed", (cfg.seq_len, width), 1, 1))

  layers = 1 if cfg.share_layers else depth  # that have weights of their own

  def norm(name, size, used, bias):
    copies = min(used, layers)
    found.append(Weight(f"{name}/scale", "vector", (size,), copies, used))
    if bias:
      found.append(Weight(f"{name}/bias", "vector", (size,), copies, used))

  def linear(name, rows, columns, bias):
    copies = (layers * experts, depth * met) if name in MLP else (layers, depth)
    rank = factor_rank(cfg, rows, columns)
    if rank is None:
      found.append(Weight(f"blocks/{name}/kernel", "hidden", (rows, columns), *copies))
    else:
      found.append(Weight(f"blocks/{name}/kernel_in", "hidden", (rows, rank), *copies))
      found.append(Weight(f"blocks/{name}/kernel_out", "hidden", (rank, columns), *copies))
    if bias:
      found.append(Weight(f"blocks/{name}/bias", "vector", (columns,), *copies))
    rank = adapter_rank(cfg, name.rpartition("/")[2])
    if rank is not None:
      found.append(Weight(f"blocks/{name}/lora_a", "hidden", (rows, rank), *copies))
      found.append(Weight(f"blocks/{name}/lora_b", "hidden", (rank, columns), *copies))

  queries, keys = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
  for part, columns in (("q", queries), ("k", keys), ("v", keys)):
    linear(f"attn/{part}", width, columns, biased(cfg, "qkv"))
  linear("attn/out", queries, width, biased(cfg, "out"))
  if cfg.experts:
    linear("mlp/router", width, cfg.experts, bias=False)
  linear("mlp/up", width, cfg.mlp_dim, biased(cfg, "mlp"))
  if cfg.activation in GATED:
    linear("mlp/gate", width, cfg.mlp_dim, biased(cfg, "mlp"))
  linear("mlp/down", cfg.mlp_dim, width, biased(cfg, "mlp"))
  if cfg.experts and cfg.shared_experts:
    shared = cfg.shared_experts * cfg.mlp_dim
    linear("mlp/shared/up", width, shared, biased(cfg, "mlp"))
    if cfg.activation in GATED:
      linear("mlp/shared/gate", width, shared, biased(cfg, "mlp"))
    linear("mlp/shared/down", shared, width, biased(cfg, "mlp"))
  if cfg.residual == "rezero":
    found.append(Weight("blocks/alpha", "vector", (1,), layers, depth))
  if cfg.norm_position != "none":
    norm("blocks/attn_norm", width, depth, norm_bias)
  if cfg.norm_position != "none" and cfg.residual != "shared":
    norm("blocks/mlp_norm", width, depth, norm_bias)
  if cfg.norm_position == "sandwich":
    norm("blocks/attn_post_norm", width, depth, norm_bias)
    norm("blocks/mlp_post_norm", width, depth, norm_bias)
  if cfg.qk_norm:
    over = (queries, keys) if cfg.qk_norm_over == "all" else (cfg.head_dim, cfg.head_dim)
    norm("blocks/attn/q_norm", over[0], depth, False)
    norm("blocks/attn/k_norm", over[1], depth, False)
  if has_final_norm(cfg):
    norm("final_norm", width, 1, norm_bias)
  if not cfg.tied_embeddings:
    found.append(Weight("head/kernel", "readout", (width, vocab), 1, 1))
  if biased(cfg, "head"):
    found.append(Weight("head/bias", "vector", (vocab,), 1, 1))
  return found


def decoder_flops(cfg: TransformerConfig, causal: bool = False) -> float:
  """Matmul by matmul: 3 * (2 * entries of every hidden matrix + 2 D V + sum over layers 4 M H K).

  With model.memory M is so much more, and memory / L as many keys and values again are made in every row.

  The terms are the linear maps, the logits (tied or not), and the products of queries with keys and
  of attention weights with values. M is the number of keys that a query is multiplied with: all L
  of its row, as a plain program computes them, or with `causal` the mean number of those it sees.
  Embedding look-ups, norms, activation functions, rotations, biases, softmax and the loss are left
  out. Forms of attention that skip hidden keys compute less than the square, and those that
  compute scores again in the backward pass (flash attention) more than the number here.
  """
  local = local_layers(cfg) or (True,) * cfg.depth
  windows = [cfg.window if causal and is_local else None for is_local in local]
  memory = cfg.memory or 0
  whole = cfg.seq_len + memory
  keys = sum(visible_keys(cfg.seq_len, w, memory) if causal else whole for w in windows)
  attention = 4 * keys * cfg.heads * cfg.head_dim
  matrices = met_by_token(cfg) + _key_maps(cfg) * memory / cfg.seq_len
  return 3 * (2 * matrices + 2 * cfg.width * cfg.vocab_size + attention)


def _key_maps(cfg: TransformerConfig) -> int:
  """Numbers in the matrices of all layers that make keys and values."""
  names = ("blocks/attn/k/", "blocks/attn/v/")
  mine = [w for w in decoder_weights(cfg) if w.kind == "hidden" and w.name.startswith(names)]
  return sum(w.used * math.prod(w.shape) for w in mine)


def met_by_token(cfg: TransformerConfig) -> int:
  """Numbers in the hidden matrices that one token meets."""
  return sum(w.used * math.prod(w.shape) for w in decoder_weights(cfg) if w.kind == "hidden")


def visible_keys(seq_len: int, window: int | None, memory: int = 0) -> float:
  """Mean number of keys a query of a full row sees, itself included; `memory` more stand before the row.

  >>> visible_keys(4, None), visible_keys(4, 2), visible_keys(4, None, 3), visible_keys(4, 5, 3)
  (2.5, 1.75, 5.5, 4.75)
  """
  window = min(window or seq_len + memory, seq_len + memory)
  growing = min(max(window - memory, 0), seq_len)  # queries that see all before them
  seen = growing * (growing + 1) / 2 + growing * memory + (seq_len - growing) * window
  return seen / seq_len


def kaplan_flops(cfg: TransformerConfig) -> float:
  """6 N + 6 depth L H K, N non-embedding. Kaplan et al. 2020, arXiv:2001.08361 §2.1."""
  attention = cfg.depth * cfg.seq_len * cfg.heads * cfg.head_dim
  tables = ("embed", "readout")
  bare = sum(w.used * math.prod(w.shape) for w in decoder_weights(cfg) if w.kind not in tables)
  return 6 * bare + 6 * attention


def chinchilla_flops(cfg: TransformerConfig) -> float:
  """Hoffmann et al. 2022, arXiv:2203.15556, appendix F: with embedding look-ups and the softmax.

  3 (2 V D + depth (6 D HK + 2 L HK + 3 H L + 2 L HK + 2 HK D + 4 D F) + 2 D V), for multi-head
  attention and a plain MLP; grouped keys and gated MLPs are counted by their own matrices.
  """
  matrices = 2 * met_by_token(cfg)
  per_layer = 4 * cfg.seq_len * cfg.heads * cfg.head_dim + 3 * cfg.heads * cfg.seq_len
  return 3 * (4 * cfg.vocab_size * cfg.width + matrices + cfg.depth * per_layer)


def decoder_activations(cfg: Config) -> float:
  """Estimate of the numbers that the forward pass keeps for the backward pass on each device.

  Numbers for a token and layer, by remat policy:
    none: 8 D + (H + 2 G) K + 2 F, or 3 F when gated; 2 D + 2 H L more where scores are held whole
    dots: (H + 2 G) K + 2 D + F, or 2 F when gated: outputs of linear maps
    names: the sizes of model.remat_keep; full and offload: D (offload keeps dots' in the host)
  and once for a token, the largest of what the head, one layer's backward pass and its recomputation
  need: 2 V (of objective.chunk positions), 18 D + 4 F, and under a policy 21 D + (H + 2 G) K + 6 F
  less what it keeps, as a block is computed again with all its steps. Fitted
  to XLA's buffers for float32 on CPU and layers in a loop, to about 20 %; layers that are written out on one
  CPU (lm.models.layers.written_out) hold up to a third more. The attention forms einsum and xla hold
  scores, the others are taken not to.
  """
  model, train, mesh = cfg.model, cfg.train, cfg.mesh
  width, mlp_dim = model.width, model.mlp_dim
  qkv = (model.heads + 2 * model.kv_heads) * model.head_dim
  gated = model.activation in GATED
  if model.experts:  # slots of a token, empty ones included
    room = model.experts if model.capacity_factor is None else model.capacity_factor
    slots = min(room * model.experts_per_token, model.experts)
    width, mlp_dim = width * (1 + slots / 4), mlp_dim * slots
  whole = 8 * width + qkv + (3 if gated else 2) * mlp_dim
  if model.attention in ("einsum", "xla"):
    whole += 2 * width + 2 * model.heads * model.seq_len
  if model.memory:  # its vectors, normalised, and what is made of them
    whole += model.memory / model.seq_len * (3 * width + 2 * model.kv_heads * model.head_dim)
  outputs = dict.fromkeys(("out", "down"), width) | dict.fromkeys(("up", "gate"), mlp_dim)
  outputs |= {"q": model.heads * model.head_dim, "attention": model.heads * model.head_dim}
  outputs |= dict.fromkeys(("k", "v"), model.kv_heads * model.head_dim)
  if not gated:
    outputs["gate"] = 0
  kept = {
    "none": whole,
    "dots": qkv + 2 * width + (2 if gated else 1) * mlp_dim,
    "names": sum(outputs[name] for name in model.remat_keep),
    "full": width,
    "offload": width,
  }[model.remat]
  logits = 2 * model.vocab_size * (cfg.objective.chunk or model.seq_len) / model.seq_len
  again = 0 if model.remat == "none" else 21 * width + qkv + 6 * mlp_dim - kept
  working = max(logits, 18 * width + 4 * mlp_dim, again)
  rows = train.batch_size / train.accumulate / (mesh.replica * mesh.fsdp * mesh.expert)
  tokens = rows * model.seq_len / mesh.sequence
  return tokens * (model.depth * kept + working)
