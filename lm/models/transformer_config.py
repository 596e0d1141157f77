"""The `model` section that families built of transformer blocks share."""

import dataclasses
import math

from lm.config.errors import ConfigError, check_choice, check_divisible
from lm.config.schema import ModelConfig, field

GATED = ("swiglu", "geglu", "geglu_exact", "reglu")
ACTIVATIONS = ("gelu", "gelu_exact", "relu", "relu2", "silu", *GATED)
BIASED = ("qkv", "out", "mlp", "norm", "head")  # what model.bias_on can name
LAYER_KINDS = ("local", "global")
LORA_ON = ("q", "k", "v", "out", "up", "gate", "down")  # maps that can have adapters
REMAT_NAMES = ("q", "k", "v", "out", "up", "gate", "down", "attention")  # what a layer can keep


class PlainLayers:
  """What layers and attention read that a decoder alone has keys for, at values that leave it out."""

  bias_on = ()
  norm_offset = 0.0
  window = None
  attention_softcap = None
  matmul = "dtype"
  low_rank = None
  lora_rank = None


@dataclasses.dataclass(frozen=True)
class TransformerConfig(ModelConfig):
  depth: int = field("[1, inf)", "4")
  heads: int = field("[1, inf)", "4")
  kv_heads: int | None = field("[1, inf)", "1")
  head_dim: int | None = field("[1, inf)", "64")
  mlp_dim: int | None = field("[1, inf)", "512")
  experts: int | None = field("[2, inf)", "8", neutral=None)
  experts_per_token: int = field("[1, inf)", "2", neutral=2)
  capacity_factor: float | None = field("(0, inf)", "1.25", neutral=1.25)
  shared_experts: int = field("[0, inf)", "1", neutral=0)
  router: str = field(choices=("softmax", "sigmoid"), neutral="softmax")
  dispatch: str = field(choices=("capacity", "dropless"), neutral="capacity")
  positions: str = field(choices=("rope", "learned", "sinusoidal", "alibi", "none"))
  rope_theta: float = field("(0, inf)", "10000")
  norm: str = field(choices=("rmsnorm", "layernorm"))
  norm_position: str = field(choices=("pre", "post", "reordered", "sandwich", "none"))
  norm_eps: float = field("(0, 1)", "1e-5")
  activation: str = field(choices=ACTIVATIONS)
  bias: bool
  qk_norm: bool
  window: int | None = field("[1, inf)", "128")
  attention_softcap: float | None = field("(0, inf)", "50")
  logit_softcap: float | None = field("(0, inf)", "30")
  tied_embeddings: bool
  dropout: float = field("[0, 1)", "0.1")
  init: str = field(choices=("fan_in", "gpt2"))
  base_head_dim: int | None = field("[1, inf)", "32")
  base_depth: int = field("[1, inf)", "4", neutral=4)
  scan_layers: bool
  matmul: str = field(choices=("dtype", "int8"), neutral="dtype")
  low_rank: int | None = field("[1, inf)", "64", neutral=None)
  lora_rank: int | None = field("[1, inf)", "8", neutral=None)
  lora_alpha: float = field("(0, inf)", "16", neutral=16.0)
  lora_on: tuple[str, ...] = field(neutral=("q", "v"))
  remat: str = field(choices=("none", "dots", "names", "full", "offload"))
  remat_keep: tuple[str, ...] = field(neutral=("attention", "q", "k", "v"))
  memory: int | None = field("[1, inf)", "64", neutral=None)
  residual: str = field(choices=("serial", "parallel", "shared", "rezero"), neutral="serial")
  share_layers: bool = field(neutral=False)
  bias_on: tuple[str, ...] = field(neutral=())
  norm_offset: float = field("[0, 1]", "0", neutral=0.0)
  qk_norm_over: str = field(choices=("head", "all"), neutral="head")
  embed_scale: float = field("(0, inf)", "1", neutral=1.0)
  attention_scale: float | None = field("(0, inf)", "0.125", neutral=None)
  layer_kinds: tuple[str, ...] = field(neutral=())
  rope_dim: int | None = field("[2, inf)", "32", neutral=None)
  rope_local_theta: float | None = field("(0, inf)", "10000", neutral=None)
  rope_scaling: str | None = field(choices=("linear", "llama3", "yarn"), neutral=None)
  rope_factor: float = field("[1, inf)", "8", neutral=1.0)
  rope_length: int | None = field("[1, inf)", "8192", neutral=None)
  rope_slow: float = field("(0, inf)", "1", neutral=1.0)
  rope_fast: float = field("(0, inf)", "32", neutral=32.0)
  rope_magnitude: float | None = field("(0, inf)", "1", neutral=None)
  rope_whole: bool = field(neutral=True)
  attention: str = field(choices=("auto", "xla", "einsum", "chunked", "cudnn", "splash"))


def check_transformer(cfg) -> None:
  """ConfigError for heads, experts or positions that do not fit together.

  Args:
    cfg: a Config whose `model` is a TransformerConfig.
  """
  model = cfg.model
  if model.head_dim is None:
    check_divisible("model.width", model.width, model.heads, "model.heads, as head_dim is None")
  if model.kv_heads is not None and model.heads % model.kv_heads:
    divisors = [str(d) for d in range(1, model.heads + 1) if model.heads % d == 0]
    raise ConfigError(
      f"model.kv_heads={model.kv_heads}: must divide model.heads={model.heads}; "
      f"use one of {', '.join(divisors)}"
    )
  if model.experts is not None and model.experts_per_token > model.experts:
    raise ConfigError(
      f"model.experts_per_token={model.experts_per_token}: there are model.experts={model.experts}; "
      f"use at most {model.experts}"
    )
  for name in model.remat_keep:
    check_choice("model.remat_keep", name, REMAT_NAMES)
  check_fields(model)
  if model.positions == "sinusoidal" and model.width % 2:
    raise ConfigError(
      f"model.width={model.width}: must be even for sinusoidal positions; use {model.width + 1}"
    )


def check_fields(cfg: TransformerConfig) -> None:
  """The rules between fields of a decoder; resolved or not.

  Raises:
    ConfigError: the first rule that does not hold.
  """
  head_dim = cfg.head_dim or cfg.width // cfg.heads
  for key, names in (("bias_on", BIASED), ("layer_kinds", LAYER_KINDS), ("lora_on", LORA_ON)):
    for name in getattr(cfg, key):
      check_choice(f"model.{key}", name, names)
  shown = ",".join(cfg.layer_kinds)
  rotary = cfg.positions == "rope"
  rules = [
    ("heads", head_dim > 0, "must not exceed model.width", "use fewer"),
    (
      "kv_heads",
      cfg.kv_heads is None or cfg.heads % cfg.kv_heads == 0,
      f"must divide model.heads={cfg.heads}",
      "use None or a divisor",
    ),
    (
      "experts_per_token",
      cfg.experts is None or cfg.experts_per_token <= cfg.experts,
      f"there are model.experts={cfg.experts}",
      f"use at most {cfg.experts}",
    ),
    (
      "bias_on",
      not (cfg.experts and "mlp" in cfg.bias_on),
      "experts have biases with model.bias alone",
      "set model.bias=True or leave mlp out",
    ),
    (
      "low_rank",
      cfg.low_rank is None or cfg.experts is None,
      "mixtures of experts have whole matrices",
      "use None",
    ),
    (
      "lora_rank",
      cfg.lora_rank is None or cfg.low_rank is None,
      "is beside whole matrices, and model.low_rank factors them",
      "use None for one of the two",
    ),
    (
      "lora_on",
      cfg.lora_rank is None or cfg.experts is None or not {"up", "gate", "down"} & set(cfg.lora_on),
      "experts have no adapters",
      "leave up, gate and down out",
    ),
    (
      "residual",
      cfg.residual in ("serial", "rezero") or cfg.norm_position == "pre",
      f"needs model.norm_position=pre, not {cfg.norm_position}",
      "use serial or pre",
    ),
    (
      "share_layers",
      not cfg.share_layers or (cfg.scan_layers and cfg.experts is None),
      "one block serves all layers of a loop, without experts",
      "set model.scan_layers=True and model.experts=None",
    ),
    (
      "memory",
      cfg.memory is None or cfg.positions in ("rope", "alibi", "none"),
      f"needs positions that are distances, and model.positions={cfg.positions} are places in a row",
      "use rope or alibi",
    ),
    (
      "memory",
      cfg.memory is None or cfg.experts is None,
      "goes with objective.name=truncated_bptt, which reads no losses of experts",
      "set model.experts=None",
    ),
    (
      "qk_norm_over",
      cfg.qk_norm or cfg.qk_norm_over == "head",
      "needs model.qk_norm",
      "set model.qk_norm=True",
    ),
    (
      "layer_kinds",
      len(cfg.layer_kinds) <= cfg.depth,
      f"must not name more layers than model.depth={cfg.depth}",
      "shorten it",
    ),
    (
      "layer_kinds",
      not cfg.layer_kinds or cfg.window is not None or cfg.rope_local_theta is not None,
      "tells layers apart by model.window or model.rope_local_theta",
      "set one of them",
    ),
    (
      "rope_local_theta",
      cfg.rope_local_theta is None or (rotary and bool(cfg.layer_kinds)),
      "needs model.positions=rope and model.layer_kinds",
      "set model.layer_kinds=local,global",
    ),
    (
      "rope_dim",
      cfg.rope_dim is None or (cfg.rope_dim % 2 == 0 and cfg.rope_dim <= head_dim),
      f"must be even and at most the head's {head_dim}",
      f"use {head_dim - head_dim % 2} or None",
    ),
    (
      "head_dim",
      not rotary or cfg.rope_dim is not None or head_dim % 2 == 0,
      "must be even for rotary positions",
      f"use {head_dim + 1}",
    ),
    (
      "rope_scaling",
      cfg.rope_scaling is None or rotary,
      f"needs model.positions=rope, not {cfg.positions}",
      "use None",
    ),
    (
      "rope_factor",
      cfg.rope_factor == 1 or cfg.rope_scaling is not None,
      "needs model.rope_scaling",
      "set it to linear, llama3 or yarn",
    ),
    (
      "rope_length",
      cfg.rope_scaling not in ("llama3", "yarn") or cfg.rope_length is not None,
      f"model.rope_scaling={cfg.rope_scaling} needs the tokens of context before scaling",
      f"use {cfg.seq_len}",
    ),
    (
      "rope_fast",
      cfg.rope_scaling not in ("llama3", "yarn") or cfg.rope_fast > cfg.rope_slow,
      f"must be above model.rope_slow={cfg.rope_slow}",
      "use 32, or 4 with llama3",
    ),
    (
      "rope_theta",
      cfg.rope_scaling != "yarn" or cfg.rope_theta > 1,
      "must be above 1 with model.rope_scaling=yarn",
      "use 10000",
    ),
  ]
  for key, holds, rule, remedy in rules:
    if not holds:
      value = {"layer_kinds": shown, "lora_on": ",".join(cfg.lora_on), "head_dim": head_dim}.get(
        key, getattr(cfg, key)
      )
      raise ConfigError(f"model.{key}={value}: {rule}; {remedy}")


def factor_rank(cfg: TransformerConfig, rows: int, columns: int) -> int | None:
  """r of a linear map [rows, columns] that is a product of [rows, r] and [r, columns]; None if it is whole.

  A map is factored by model.low_rank where that makes it smaller.
  """
  r = cfg.low_rank
  return r if r is not None and r * (rows + columns) < rows * columns else None


def adapter_rank(cfg: TransformerConfig, name: str) -> int | None:
  """r of the low-rank adapter beside the linear map of this name (of LORA_ON); None if it has none."""
  return cfg.lora_rank if cfg.lora_rank is not None and name in cfg.lora_on else None


def default_mlp_dim(width: int, activation: str) -> int:
  """4 width, or 8/3 width rounded up to a multiple of 32 where gated: its three matrices then cost as much
  as two of 4 width.

  >>> default_mlp_dim(128, "gelu"), default_mlp_dim(128, "swiglu")
  (512, 352)
  """
  return math.ceil(8 * width / 3 / 32) * 32 if activation in GATED else 4 * width


def resolve_transformer(model: TransformerConfig, vocab_size: int) -> TransformerConfig:
  """Head, mlp and vocabulary sizes as numbers."""
  head_dim = model.head_dim or model.width // model.heads
  return dataclasses.replace(
    model,
    kv_heads=model.kv_heads or model.heads,
    head_dim=head_dim,
    base_head_dim=model.base_head_dim or head_dim,
    mlp_dim=model.mlp_dim or default_mlp_dim(model.width, model.activation),
    vocab_size=model.vocab_size or vocab_size,
  )


def split_transformer(model: TransformerConfig) -> dict[str, dict[str, int]]:
  """What each mesh axis must divide."""
  splits = {
    "sequence": {"model.seq_len": model.seq_len},
    "fsdp": {"model.width": model.width},
    "tensor": {f"model.{key}": getattr(model, key) for key in ("heads", "mlp_dim", "vocab_size")},
  }
  if model.experts:
    splits["expert"] = {"model.experts": model.experts}
  return splits
