"""T5 by Hugging Face's names: config.json and weights of versions 1.0 and 1.1, both ways."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lm.config.errors import ConfigError
from lm.cost.parameters import weights
from lm.hf.architectures import REQUIRED
from lm.hf.convert import BELONG, take_array
from lm.hf.reader import Reader
from lm.models.t5 import T5Config
from lm.models.trees import stack_layers

SIZES = {  # theirs -> ours
  "vocab_size": "vocab_size",
  "d_model": "width",
  "d_kv": "head_dim",
  "d_ff": "mlp_dim",
  "num_heads": "heads",
  "num_layers": "depth",
}
ACTS = {  # feed_forward_proj -> ours
  "relu": "relu",
  "gated-gelu": "geglu",
  "gelu": "gelu_exact",
  "gelu_new": "gelu",
  "gated-silu": "swiglu",
  "gated-relu": "reglu",
  "silu": "silu",
}
FIXED = {
  "family": "t5",
  "positions": "relative",
  "norm": "rmsnorm",
  "norm_position": "pre",
  "bias": False,
  "parameterization": "standard",
}
MUST = {"model_type": ("t5",), "is_encoder_decoder": (True,), "is_decoder": (False,)}
# Keys that change nothing of what a model computes here.
IGNORED = re.compile(
  r"_name_or_path|architectures|classifier_dropout|dense_act_fn|dropout_rate|dtype|.*_token_id|"
  r"gradient_checkpointing|id2label|initializer_(factor|range)|is_gated_act|label2id|n_positions|output_past|"
  r"problem_type|task_specific_params|tokenizer_class|torch_dtype|transformers_version|use_cache|"
  r"_attn_implementation(_autoset)?|transformers\.js_config|chunk_size_feed_forward|num_labels|output_(attentions|hidden_states)|return_dict"
)
PARTS = {"q": "q", "k": "k", "v": "v", "out": "o"}
LAYERS = {"encoder": {"attn": 0, "mlp": 1}, "decoder": {"attn": 0, "cross": 1, "mlp": 2}}


def fields_of_t5(hf_config: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of T5Config that a config.json sets.

  Raises:
    ConfigError: a key that is missing, unknown, or of a value that no T5 here has.
  """
  known = {
    "num_decoder_layers",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
  }
  known |= {
    "layer_norm_epsilon",
    "feed_forward_proj",
    "tie_word_embeddings",
    "scale_decoder_outputs",
  }
  known |= {*SIZES, *MUST}
  for key, value in hf_config.items():
    if key not in known and not IGNORED.fullmatch(key):
      raise ConfigError(f"{key}={value}: is not known of a t5; convert the model first")
    if key in MUST and value not in MUST[key]:
      raise ConfigError(f"{key}={value}: must be {MUST[key][0]} for a t5; convert the model first")
  reader, fields = Reader(hf_config), dict[str, Any](FIXED)
  for theirs, ours in SIZES.items():
    fields[ours] = reader.take(theirs, "count", REQUIRED)
  fields["decoder_depth"] = reader.take("num_decoder_layers", "count", fields["depth"])
  act = reader.take("feed_forward_proj", "name", "relu")
  if act not in ACTS:
    raise ConfigError(
      f"feed_forward_proj={act}: must be one of {', '.join(ACTS)}; convert it first"
    )
  length = reader.take("n_positions", "count", 512)
  return fields | {
    "activation": ACTS[act],
    "buckets": reader.take("relative_attention_num_buckets", "count", 32),
    "max_distance": reader.take("relative_attention_max_distance", "count", 128),
    "norm_eps": reader.take("layer_norm_epsilon", "number", 1e-6),
    "tied_embeddings": is_scaled(hf_config),
    "seq_len": length,
    "target_len": length,
  }


def is_scaled(hf_config: Mapping[str, Any]) -> bool:
  """Whether logits come from the scaled input table (1.0), not from a readout of their own (1.1).

  transformers 5 writes scale_decoder_outputs, and tie_word_embeddings=true whatever the version.
  """
  if "scale_decoder_outputs" in hf_config:
    return bool(hf_config["scale_decoder_outputs"])
  tied = hf_config.get("tie_word_embeddings", None)
  return tied is not False


def t5_from_hf(
  state: Mapping[str, np.ndarray], hf_config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
  """(fields of T5Config, float32 parameters with layers stacked) of T5ForConditionalGeneration.

  Raises:
    ConfigError: a config of another kind; weights that are missing, left over or of another shape.
  """
  fields = fields_of_t5(hf_config)
  cfg = T5Config(**_others() | fields)
  state = dict(state)
  table = state.get("shared.weight")
  for stack in LAYERS:
    again = state.pop(f"{stack}.embed_tokens.weight", None)
    if again is not None and table is not None and not np.array_equal(again, table):
      raise ConfigError(
        f"{stack}.embed_tokens.weight: differs from shared.weight, and a t5 here has one table for both; "
        "choose another model"
      )
  if cfg.tied_embeddings:
    head = state.pop("lm_head.weight", None)
    if head is not None and table is not None and not np.array_equal(head, table):
      raise ConfigError(
        "lm_head.weight: differs from shared.weight, and config.json says that they are one; set "
        "tie_word_embeddings=false"
      )
  elif "lm_head.weight" not in state and table is not None:
    state["lm_head.weight"] = table  # as transformers does
  params: dict[str, Any] = {}
  for weight in weights(cfg):
    flip = weight.name.endswith("kernel")
    take = lambda name, weight=weight, flip=flip: take_array(state, name, weight.shape, flip)
    names = _names(weight.name, cfg)
    found = take(names[0]) if "/blocks/" not in weight.name else np.stack([take(n) for n in names])
    *path, last = weight.name.split("/")
    node = params
    for word in path:
      node = node.setdefault(word, {})
    node[last] = found
  if state:
    raise ConfigError(
      f"{min(state)}: is no weight of this t5; {len(state)} such are left over; {BELONG}"
    )
  return fields, params


def t5_to_hf(
  params: Mapping[str, Any], cfg: Any, labels: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """(float32 arrays by Hugging Face's names, content of config.json): the inverse of t5_from_hf.

  Args:
    labels: of classifiers, which these are not.

  Raises:
    ConfigError: what no T5 of transformers can express.
  """
  acts = {ours: theirs for theirs, ours in ACTS.items()}
  rules = {key: (value,) for key, value in FIXED.items()} | {"activation": tuple(acts)}
  for key, allowed in rules.items():
    value = getattr(cfg, key)
    if value not in allowed:
      raise ConfigError(
        f"model.{key}={value}: a t5 of transformers has {' or '.join(map(str, allowed))}; train with that"
      )
  stacked = params if cfg.scan_layers else stack_layers(params)
  leaves = {
    "/".join(part.key for part in path): np.asarray(leaf, np.float32)
    for path, leaf in jax.tree_util.tree_leaves_with_path(stacked)
  }
  state: dict[str, np.ndarray] = {}
  for weight in weights(cfg):
    array, names = leaves[weight.name], _names(weight.name, cfg)
    array = array.swapaxes(-1, -2) if weight.name.endswith("kernel") else array
    each = [array] if "/blocks/" not in weight.name else list(array)
    state |= {n: np.ascontiguousarray(a) for n, a in zip(names, each, strict=True)}
  config = {theirs: getattr(cfg, ours) for theirs, ours in SIZES.items()} | {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "is_encoder_decoder": True,
    "num_decoder_layers": cfg.decoder_depth,
    "feed_forward_proj": acts[cfg.activation],
    "relative_attention_num_buckets": cfg.buckets,
    "relative_attention_max_distance": cfg.max_distance,
    "layer_norm_epsilon": cfg.norm_eps,
    "dropout_rate": cfg.dropout,
    "tie_word_embeddings": cfg.tied_embeddings,
    "n_positions": cfg.seq_len,
  }
  return state, config


def t5_settings(
  params: Mapping[str, Any], hf_config: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
  """(config file of a run of such parameters, keys that it must be told beside the model)."""
  return "configs/t5.py:base", {"model.dtype": "float32", "model.remat": "none"}


def _others() -> dict[str, Any]:
  """Values of the fields that a config.json says nothing of and that change no weight."""
  return {
    "base_width": 1, "dtype": "float32", "dropout": 0.0, "init": "fan_in", "base_head_dim": 1,
    "scan_layers": True, "matmul": "dtype", "remat": "none", "attention": "auto",
  }  # fmt: skip


def _names(ours: str, cfg: Any) -> list[str]:
  """Their names of one of our weights, one a layer of a stack."""
  once = {
    "embed/embedding": "shared.weight",
    "head/kernel": "lm_head.weight",
    "encoder/final_norm/scale": "encoder.final_layer_norm.weight",
    "decoder/final_norm/scale": "decoder.final_layer_norm.weight",
  }
  if ours in once:
    return [once[ours]]
  stack, *words = ours.split("/")
  if words[0] == "position_bias":
    return [f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
  part, name = words[1], words[2]
  layer = LAYERS[stack][part.removesuffix("_norm")]
  if part.endswith("_norm"):
    inner = "layer_norm"
  elif part == "mlp":
    gated = cfg.activation in ("geglu", "swiglu", "reglu")
    first = {"up": "wi_1", "gate": "wi_0"} if gated else {"up": "wi"}
    inner = f"DenseReluDense.{(first | {'down': 'wo'})[name]}"
  else:
    inner = f"{'SelfAttention' if part == 'attn' else 'EncDecAttention'}.{PARTS[name]}"
  depth = cfg.depth if stack == "encoder" else cfg.decoder_depth
  return [f"{stack}.block.{i}.layer.{layer}.{inner}.weight" for i in range(depth)]
