"""Hugging Face's config.json and the fields of TransformerConfig, both ways, by lm.hf.architectures.

Every key of a config.json is read, known to change nothing, or refused by its name.
"""

from collections.abc import Mapping
from typing import Any

from lm.config.errors import ConfigError
from lm.config.schema import neutral_values
from lm.hf.architectures import (
  ACTS,
  ARCHITECTURES,
  FOURFOLD,
  MUST_ALL,
  QUOTIENT,
  SAME,
  Architecture,
)
from lm.hf.reader import REMEDY, Reader
from lm.hf.rotary import ROPE, ROPES
from lm.hf.windows import WINDOWS
from lm.models.layers import biased
from lm.models.parameterization import scales_depth
from lm.models.transformer_config import BIASED, TransformerConfig, check_fields

# Fields that an architecture has unless its row says otherwise.
NEUTRAL = {
  "family": "decoder",
  "positions": "rope",
  "norm": "rmsnorm",
  "norm_position": "pre",
  "norm_offset": 0.0,
  "residual": "serial",
  "share_layers": False,
  "qk_norm": False,
  "qk_norm_over": "head",
  "experts": None,
  "shared_experts": 0,
  "router": "softmax",
  "window": None,
  "layer_kinds": (),
  "attention_scale": None,
  "attention_softcap": None,
  "logit_softcap": None,
  "embed_scale": 1.0,
  "low_rank": None,
  "lora_rank": None,
  "memory": None,
  "parameterization": "standard",
}

# --- in -------------------------------------------------------------------------------------------


def fields_of(hf_config: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of TransformerConfig that a config.json sets.

  Raises:
    ConfigError: another architecture, a variant that the decoder lacks, a key that is not known, or
      a value of the wrong kind.
  """
  if not isinstance(hf_config, Mapping):
    raise ConfigError("config.json: must be an object of keys and values; check the file")
  kind = hf_config.get("model_type")
  if not isinstance(kind, str) or kind not in ARCHITECTURES:
    raise ConfigError(f"model_type={kind}: must be one of {', '.join(ARCHITECTURES)}; {REMEDY}")
  arch, reader = ARCHITECTURES[kind], Reader(hf_config)
  for key, must in (MUST_ALL | arch.must).items():
    reader.require(key, must)
  fields = NEUTRAL | ROPE | {"rope_theta": arch.theta} | arch.fixed
  fields |= {row.ours: reader.field(key, row) for key, row in arch.keys.items()}
  width, heads = fields["width"], fields["heads"]
  if "head_dim" not in fields or fields["head_dim"] == QUOTIENT:
    if width % heads:
      raise ConfigError(f"heads={heads}: must divide the width, {width}; check config.json")
    fields["head_dim"] = width // heads
  for name in ("kv_heads", "mlp_dim"):
    fields.setdefault(name, {"kv_heads": SAME, "mlp_dim": FOURFOLD}[name])
  fields |= {
    "kv_heads": heads if fields["kv_heads"] == SAME else fields["kv_heads"],
    "mlp_dim": 4 * width if fields["mlp_dim"] == FOURFOLD else fields["mlp_dim"],
    "base_width": width,
    "base_head_dim": fields["head_dim"],
    "init": arch.init,
    "capacity_factor": None,  # every token finds its experts
  }
  if "sqrt width" in fields.values():
    fields["embed_scale"] = width**0.5
  if fields["attention_scale"] == fields["head_dim"] ** -0.5:
    fields["attention_scale"] = None  # the usual one
  fields |= _read_biases(reader, arch, fields["norm"])
  if arch.rope is not None:
    fields |= ROPES[arch.rope][0](reader, arch, fields)
  if arch.window is not None:
    fields |= WINDOWS[arch.window][0](reader, arch, fields)
  if fields["rope_dim"] == fields["head_dim"]:
    fields["rope_dim"] = None
  reader.done(kind, arch.unread)
  check_fields(model_config(fields))
  return fields


def model_config(fields: Mapping[str, Any]) -> TransformerConfig:
  """A TransformerConfig with these fields, and neutral values of those that only say how it is run."""
  run_time = {
    "dropout": 0.0,
    "dtype": "float32",
    "scan_layers": True,
    "matmul": "dtype",
    "remat": "none",
    "remat_keep": (),
    "attention": "einsum",
    "experts_per_token": 1,
  }
  values: dict[str, Any] = neutral_values(TransformerConfig) | run_time | dict(fields)
  return TransformerConfig(**values)


def _read_biases(reader, arch, norm):
  keys = {key for key in arch.biases.values() if isinstance(key, str)}
  said = {key: reader.take(key, "flag", arch.bias) for key in sorted(keys)}
  parts = [p for p in BIASED if p in arch.biases and said.get(arch.biases[p], arch.biases[p])]
  usual = ["qkv", "out", "mlp"] + ["norm"] * (norm == "layernorm")
  if all(part in parts for part in usual):
    return {"bias": True, "bias_on": tuple(part for part in parts if part not in usual)}
  return {"bias": False, "bias_on": tuple(parts)}


# --- out ------------------------------------------------------------------------------------------


def config_of(cfg: TransformerConfig, kind: str | None = None) -> dict[str, Any]:
  """The config.json of a resolved config.

  Args:
    kind: the architecture to write, if it can say all of cfg; None = the first that can, GPT-2 and
      Llama before the others.

  Raises:
    ConfigError: what no architecture can express, worded for the nearest one.
  """
  order = list(dict.fromkeys([*([kind] if kind in ARCHITECTURES else []), *ARCHITECTURES]))
  amiss = {name: _problems(cfg, ARCHITECTURES[name]) for name in order}
  best = min(order, key=lambda name: len({words.partition("=")[0] for words in amiss[name]}))
  if amiss[best]:
    raise ConfigError(amiss[best][0])
  arch = ARCHITECTURES[best]
  found: dict[str, Any] = {"architectures": [arch.model_class], "model_type": best}
  for key, row in arch.keys.items():
    found[key] = _said(cfg, row)
  for part, key in arch.biases.items():
    if isinstance(key, str):
      found[key] = biased(cfg, part)
  if arch.rope is not None:
    found |= ROPES[arch.rope][1](cfg)
  if arch.window is not None:
    found |= WINDOWS[arch.window][1](cfg)
  for key in [key for key in found if key.startswith("attn_config.")]:
    value = found.pop(key)
    if value is not None:
      found.setdefault("attn_config", {})[key.removeprefix("attn_config.")] = value
  return found | {"torch_dtype": "float32"}


def _said(cfg, row):
  """What config.json says for a row of the table."""
  value = getattr(cfg, row.ours)
  if row.kind in ACTS:
    usual = ACTS[row.kind].get(row.default) == value  # several names may say the same function
    return row.default if usual else _inverse(ACTS[row.kind])[value]
  if row.kind == "parallel":
    return value == "parallel"
  if row.kind == "inverse root":
    root = cfg.head_dim if value is None else value**-2
    return round(root) if abs(root - round(root)) < 1e-6 * root else root
  if row.ours == "rope_dim":
    return value or cfg.head_dim
  return value


def _problems(cfg: TransformerConfig, arch: Architecture) -> list[str]:
  """What of `cfg` an architecture cannot say, most telling first."""
  said = {row.ours for row in arch.keys.values()}
  said |= ROPES[arch.rope][2] if arch.rope else set()
  said |= WINDOWS[arch.window][2] if arch.window else set()
  rotated = "positions" not in arch.fixed
  wanted = NEUTRAL | (ROPE | {"rope_theta": arch.theta} if rotated else {})
  wanted |= {key: value for key, value in arch.fixed.items() if key != "embed_scale"}
  wanted = {key: value for key, value in wanted.items() if key not in said}
  for key, value in wanted.items():
    if value == FOURFOLD:
      wanted[key] = 4 * cfg.width
  for key, value in {"kv_heads": cfg.heads, "head_dim": cfg.width // cfg.heads}.items():
    if key not in said:
      wanted[key] = value
  if "embed_scale" in arch.fixed:
    wanted["embed_scale"] = cfg.width**0.5
  at_base = (cfg.width, cfg.head_dim) == (cfg.base_width, cfg.base_head_dim)
  if scales_depth(cfg.parameterization):
    at_base = at_base and cfg.depth == cfg.base_depth
  if at_base:
    del wanted["parameterization"]  # every parameterization is the same model there
  if not cfg.qk_norm:
    wanted.pop("qk_norm_over", None)
  if cfg.attention_scale == cfg.head_dim**-0.5:
    wanted.pop("attention_scale", None)
  tell = lambda key, value, has: (
    f"model.{key}={value}: Hugging Face's {arch.label} has {has}; train with that to export"
  )
  found = [
    tell(key, getattr(cfg, key), value)
    for key, value in wanted.items()
    if getattr(cfg, key) != value
  ]
  if "experts" in said and cfg.experts is None:
    found.append(tell("experts", None, "experts"))
  if arch.rope == "gemma3" and cfg.rope_local_theta is None:
    found.append(tell("rope_local_theta", None, "one"))
  gated = any(row.kind == "gated" for row in arch.keys.values())
  table = ACTS["gated" if gated else "plain"]
  names = dict.fromkeys(table.values())
  if "activation" in said and cfg.activation not in names:
    found.append(
      f"model.activation={cfg.activation}: Hugging Face's {arch.label} has {', '.join(names)}; "
      "train with one of them to export"
    )
  found += _bias_problems(cfg, arch)
  return found


def _bias_problems(cfg, arch):
  """Parts that have biases here and not there, or the other way round."""
  said, found = {}, []
  for part in BIASED:
    if part == "norm" and cfg.norm == "rmsnorm":
      continue
    has, rule = biased(cfg, part), arch.biases.get(part, False)
    if isinstance(rule, str):
      rule = said.setdefault(rule, has)
    if has != rule:
      word = "biases" if rule else "no biases"
      found.append(
        f"model.bias={cfg.bias}: Hugging Face's {arch.label} has {word} in {part}, see "
        "model.bias_on; train with that to export"
      )
  return found


def _inverse(table):
  """Ours to theirs; the first of several names."""
  return {ours: theirs for theirs, ours in reversed(table.items())}
