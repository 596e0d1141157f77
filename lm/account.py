"""What a model costs, by arithmetic alone: parameters, FLOPs and bytes.

`weights` lists every weight of a model with its shape; all counts follow from that list. A FLOP
is one multiplication or one addition, so a product of [m, k] and [k, n] matrices is 2 m k n. All
FLOPs are for one training token: the forward pass and a backward pass of twice its size. Of experts
only those count that a token is sent to.
Recomputation (remat) and the optimizer are never counted.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from lm.checks import GATED
from lm.config import Config, ConfigError, ModelConfig

STATE_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1 + 4 / 256}  # a number; lm.compress
MLP = ("mlp/up", "mlp/gate", "mlp/down")  # what experts have one each of

# --- parameters ---------------------------------------------------------------------------------


class Weight(NamedTuple):
  name: str  # path in the parameters of a model with scanned layers
  kind: str  # embed | hidden | readout | vector
  shape: tuple[int, ...]  # of one layer: [in, out], [entries, width] or [size]
  copies: int  # layers that have one, times experts
  used: int  # copies that one token meets

  @property
  def size(self) -> int:
    return self.copies * math.prod(self.shape)


class ParamCounts(NamedTuple):
  total: int
  non_embedding: int  # total less embedding: Kaplan et al. 2020's N
  embedding: int  # token and position tables and, where it is not tied, the output head
  active: int  # that one token meets: all but the experts that it is not sent to


def weights(cfg: ModelConfig) -> list[Weight]:
  """Every weight of a resolved config's model.

  Raises:
    ConfigError: a family that is not counted here.
  """
  if cfg.family != "decoder":
    raise ConfigError(f"model.family={cfg.family}: only decoder can be counted; use decoder")
  width, depth, vocab = cfg.width, cfg.depth, cfg.vocab_size
  norm_bias = cfg.norm == "layernorm" and cfg.bias
  experts = cfg.experts or 1
  met = min(cfg.experts_per_token, experts) if cfg.experts else 1
  found = [Weight("embed/embedding", "embed", (vocab, width), 1, 1)]
  if cfg.positions == "learned":
    found.append(Weight("position_embed/embedding", "embed", (cfg.seq_len, width), 1, 1))

  def norm(name, size, copies, bias):
    found.append(Weight(f"{name}/scale", "vector", (size,), copies, copies))
    if bias:
      found.append(Weight(f"{name}/bias", "vector", (size,), copies, copies))

  def linear(name, rows, columns, bias=cfg.bias):
    copies = (depth * experts, depth * met) if name in MLP else (depth, depth)
    found.append(Weight(f"blocks/{name}/kernel", "hidden", (rows, columns), *copies))
    if bias:
      found.append(Weight(f"blocks/{name}/bias", "vector", (columns,), *copies))

  queries, keys = cfg.heads * cfg.head_dim, cfg.kv_heads * cfg.head_dim
  linear("attn/q", width, queries)
  linear("attn/k", width, keys)
  linear("attn/v", width, keys)
  linear("attn/out", queries, width)
  if cfg.experts:
    linear("mlp/router", width, cfg.experts, bias=False)
  linear("mlp/up", width, cfg.mlp_dim)
  if cfg.activation in GATED:
    linear("mlp/gate", width, cfg.mlp_dim)
  linear("mlp/down", cfg.mlp_dim, width)
  norm("blocks/attn_norm", width, depth, norm_bias)
  norm("blocks/mlp_norm", width, depth, norm_bias)
  if cfg.qk_norm:
    norm("blocks/attn/q_norm", cfg.head_dim, depth, False)
    norm("blocks/attn/k_norm", cfg.head_dim, depth, False)
  if cfg.norm_position == "pre":
    norm("final_norm", width, 1, norm_bias)
  if not cfg.tied_embeddings:
    found.append(Weight("head/kernel", "readout", (width, vocab), 1, 1))
  return found


def param_counts(cfg: ModelConfig) -> ParamCounts:
  """Parameters of a resolved config's model, equal to the sizes of its leaves."""
  total = sum(w.size for w in weights(cfg))
  embedding = sum(w.size for w in weights(cfg) if w.kind in ("embed", "readout"))
  active = total - sum((w.copies - w.used) * math.prod(w.shape) for w in weights(cfg))
  return ParamCounts(total, total - embedding, embedding, active)


# --- FLOPs --------------------------------------------------------------------------------------


def flops_per_token(cfg: ModelConfig, convention: str) -> float:
  """Training FLOPs for one token of a full row, under a key of CONVENTIONS.

  Raises:
    ConfigError: unknown convention.
  """
  if convention not in CONVENTIONS:
    raise ConfigError(
      f"train.flops_convention={convention}: unknown convention; "
      f"use one of {', '.join(CONVENTIONS)}"
    )
  return float(CONVENTIONS[convention](cfg))


def exact_flops(cfg: ModelConfig, causal: bool = False) -> float:
  """Matmul by matmul: 3 * (2 * entries of every hidden matrix + 2 D V + depth * 4 M H K).

  The terms are the linear maps, the logits (tied or not), and the products of queries with keys and
  of attention weights with values. M is the number of keys that a query is multiplied with: all L
  of its row, as a plain program computes them, or with `causal` the mean number of those it sees.
  Embedding look-ups, norms, activation functions, rotations, biases, softmax and the loss are left
  out. Forms of attention that skip hidden keys compute less than the square, and those that
  compute scores again in the backward pass (flash attention) more than the number here.
  """
  keys = visible_keys(cfg.seq_len, cfg.window) if causal else cfg.seq_len
  attention = cfg.depth * 4 * keys * cfg.heads * cfg.head_dim
  return 3 * (2 * _met(cfg) + 2 * cfg.width * cfg.vocab_size + attention)


def _met(cfg: ModelConfig) -> int:
  """Numbers in the hidden matrices that one token meets."""
  return sum(w.used * math.prod(w.shape) for w in weights(cfg) if w.kind == "hidden")


def visible_keys(seq_len: int, window: int | None) -> float:
  """Mean number of keys a query of a full row sees, itself included.

  >>> visible_keys(4, None), visible_keys(4, 2)
  (2.5, 1.75)
  """
  window = min(window or seq_len, seq_len)
  return (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len


def kaplan_flops(cfg: ModelConfig) -> float:
  """6 N + 6 depth L H K, N non-embedding. Kaplan et al. 2020, arXiv:2001.08361 §2.1."""
  attention = cfg.depth * cfg.seq_len * cfg.heads * cfg.head_dim
  counts = param_counts(cfg)
  return 6 * (counts.active - counts.embedding) + 6 * attention


def chinchilla_flops(cfg: ModelConfig) -> float:
  """Hoffmann et al. 2022, arXiv:2203.15556, appendix F: with embedding look-ups and the softmax.

  3 (2 V D + depth (6 D HK + 2 L HK + 3 H L + 2 L HK + 2 HK D + 4 D F) + 2 D V), for multi-head
  attention and a plain MLP; grouped keys and gated MLPs are counted by their own matrices.
  """
  matrices = 2 * _met(cfg)
  per_layer = 4 * cfg.seq_len * cfg.heads * cfg.head_dim + 3 * cfg.heads * cfg.seq_len
  return 3 * (4 * cfg.vocab_size * cfg.width + matrices + cfg.depth * per_layer)


CONVENTIONS: dict[str, Callable[[ModelConfig], float]] = {
  "6ND": lambda cfg: 6 * param_counts(cfg).active,
  "6ND_nonembedding": lambda cfg: 6 * (param_counts(cfg).active - param_counts(cfg).embedding),
  "exact": exact_flops,  # the whole attention square, as PaLM's MFU counts (arXiv:2204.02311 §B)
  "exact_causal": lambda cfg: exact_flops(cfg, causal=True),  # the keys that are seen alone
  "kaplan": kaplan_flops,
  "chinchilla": chinchilla_flops,
}


def xla_flops(compiled) -> float:
  """XLA's own count for a program, `jax.jit(f).lower(...).compile()`, over all its tokens.

  It counts elementwise operations too, counts the body of a scan once, whatever its length, and
  sees nothing inside library calls such as cuDNN's attention: count models with
  scan_layers=False.
  """
  return float(compiled.cost_analysis()["flops"])


def mfu(flops: float, seconds: float, peak: float) -> float:
  """Model FLOPs utilisation, flops / (seconds * peak). Chowdhery et al. 2022, arXiv:2204.02311.

  Args:
    flops: of the work done, under a convention that is named wherever the number is shown.
    seconds: wall-clock time it took.
    peak: FLOP/s of all devices together (lm.chips.peak_flops).
  """
  return flops / (seconds * peak)


# --- bytes --------------------------------------------------------------------------------------


def memory_bytes(cfg: Config) -> dict[str, float]:
  """Bytes on each device while a resolved config trains: the four that matter.

  parameters: float32; gradients: float32, and their sum beside them where batches are accumulated;
  optimizer: its state and the moving average of weights; activations: what the forward pass keeps
  for the backward pass (an estimate, `activation_bytes`). Weights are split over mesh.fsdp and
  mesh.tensor as if every one divided, experts over mesh.expert too; rows over mesh.replica, mesh.fsdp
  and mesh.expert.
  """
  found = weights(cfg.model)
  of_experts = sum(w.size for w in found if cfg.model.experts and w.copies > w.used)
  total = sum(w.size for w in found)
  shards = cfg.mesh.fsdp * cfg.mesh.tensor
  shards *= total / (total - of_experts + of_experts / cfg.mesh.expert)
  state = STATE_BYTES[cfg.optim.state_dtype] * optimizer_floats(cfg.model, cfg.optim.name)
  ema = 0 if cfg.optim.ema_decay is None else 4 * total
  return {
    "parameters": 4 * total / shards,
    "gradients": 4 * total * (1 if cfg.train.accumulate == 1 else 2) / shards,
    "optimizer": (state + ema) / shards,
    "activations": activation_bytes(cfg),
  }


def activation_bytes(cfg: Config) -> float:
  """Estimate of what the forward pass keeps for the backward pass on each device.

  Numbers for a token and layer, by remat policy:
    none: 8 D + (H + 2 G) K + 2 F, or 3 F when gated; 2 D + 2 H L more where scores are held whole
    dots: (H + 2 G) K + 2 D + F, or 2 F when gated: outputs of linear maps
    names: the sizes of model.remat_keep; full and offload: D (offload keeps dots' in the host)
  and once for a token, the largest of what the head, one layer's backward pass and its recomputation
  need: 2 V (of objective.chunk positions), 18 D + 4 F, and under a policy 21 D + (H + 2 G) K + 6 F
  less what it keeps, as a block is computed again with all its steps. Fitted
  to XLA's buffers for float32 on CPU and layers in a loop, to about 20 %; layers that are written out on one
  CPU (lm.models.layers.written_out) hold up to a third more. bfloat16 is counted as two bytes, as
  accelerators hold it (XLA on CPU holds four). The attention forms einsum and xla hold scores, the
  others are taken not to.
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
  size = {"float32": 4, "bfloat16": 2}[model.dtype]
  return size * tokens * (model.depth * kept + working)


def optimizer_floats(cfg: ModelConfig, name: str) -> int:
  """Numbers in the state of lm.optim.OPTIMIZERS[name], less its few counters."""
  found = weights(cfg)
  total = sum(w.size for w in found)
  hidden = sum(w.size for w in found if w.kind == "hidden")
  factored = sum(w.size if w.kind == "vector" else w.copies * sum(w.shape) for w in found)
  numbers = {
    "sgd": total,
    "adam": 2 * total,
    "adamw": 2 * total,
    "lion": total,
    "adafactor": factored,  # row and column means of a matrix
    "muon": 2 * total - hidden,
  }
  if name not in numbers:
    raise ConfigError(f"optim.name={name}: its state is not known; use one of {', '.join(numbers)}")
  return numbers[name]
