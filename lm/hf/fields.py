"""Hugging Face's config.json and the fields of TransformerConfig, both ways, by lm.hf.architectures.

Every key of a config.json is read, known to change nothing, or refused by its name. Both spellings
are read: rope_theta with rope_scaling (transformers 4) and rope_parameters (transformers 5).
"""

import math
from collections.abc import Mapping
from typing import Any

from lm.config.errors import ConfigError
from lm.config.schema import neutral_values
from lm.hf.architectures import (
  ACTS,
  ARCHITECTURES,
  FOURFOLD,
  IGNORED,
  MUST_ALL,
  QUOTIENT,
  REQUIRED,
  SAME,
  Architecture,
)
from lm.models.layers import biased, local_layers
from lm.models.parameterization import scales_depth
from lm.models.transformer_config import BIASED, TransformerConfig, check_fields

REMEDY = "convert the model first"
LARGEST = 2**31 - 1
ABSENT = object()
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
ROPE = {
  "rope_theta": 10_000.0,
  "rope_local_theta": None,
  "rope_dim": None,
  "rope_scaling": None,
  "rope_factor": 1.0,
  "rope_length": None,
  "rope_slow": 1.0,
  "rope_fast": 32.0,
  "rope_magnitude": None,
  "rope_whole": True,
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
  reader.done(kind)
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


class Reader:
  """The keys of a config.json that have not been read yet."""

  def __init__(self, hf_config: Mapping[str, Any]):
    self.left = {}
    for key, value in hf_config.items():
      nested = key == "attn_config" and isinstance(value, Mapping)
      self.left |= {f"{key}.{k}": v for k, v in value.items()} if nested else {key: value}

  def take(self, key: str, kind: str, default: Any) -> Any:
    """The value of a key, checked; `default` where it is absent or null."""
    value = self.left.pop(key, None)
    if value is not None:
      return _typed(key, value, kind)
    if default is REQUIRED:
      raise ConfigError(f"{key}: config.json lacks it; add it")
    return default

  def field(self, key, row):
    """The value of the field that a row of the table says."""
    null = key in self.left and self.left[key] is None
    if null and row.ours == "kv_heads":
      row = row._replace(default=SAME)
    if null and row.off:
      row = row._replace(default=None)
    if row.kind in ACTS:
      value = self.take(key, "name", row.default)
      table = ACTS[row.kind]
      if value not in table:
        raise ConfigError(f"{key}={value}: must be one of {', '.join(table)}; {REMEDY}")
      return table[value]
    if row.kind == "parallel":
      return "parallel" if self.take(key, "flag", row.default) else "serial"
    if row.kind == "inverse root":
      return self.take(key, "number", row.default) ** -0.5
    return self.take(key, row.kind, row.default)

  def require(self, key, must):
    """Reads a key that may have few values."""
    value = self.left.pop(key, must.values[0])
    if not any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in must.values):
      raise ConfigError(f"{key}={value}: must be {must.values[0]} ({must.why}); {REMEDY}")

  def done(self, kind):
    """Refuses what is left over."""
    for key, value in self.left.items():
      if value is not None and not {key, key.removeprefix("attn_config.")} & IGNORED:
        raise ConfigError(
          f"{key}={_short(value)}: is no key of {kind} that is known here; take it out of "
          "config.json if it changes nothing"
        )


def _typed(key, value, kind):
  words = {
    "count": "a whole number of at least 1",
    "index": "a whole number of at least 0",
    "number": "a number above 0",
    "flag": "true or false",
    "name": "a name",
    "object": "an object",
    "names": "a list of names",
  }
  number = isinstance(value, (int, float)) and not isinstance(value, bool)
  good = {
    "count": number and 1 <= value <= LARGEST and value == int(value),
    "index": number and 0 <= value <= LARGEST and value == int(value),
    "number": number and 0 < value < 1e38,
    "flag": isinstance(value, bool),
    "name": isinstance(value, str),
    "object": isinstance(value, Mapping),
    "names": isinstance(value, list) and all(isinstance(v, str) for v in value),
  }[kind]
  if not good:
    raise ConfigError(f"{key}={_short(value)}: must be {words[kind]}; check config.json")
  return {"count": int, "index": int, "number": float}[kind](value) if number else value


def _short(value):
  text = " ".join(str(value).split())
  return text if len(text) <= 60 else f"{text[:57]}..."


def _read_biases(reader, arch, norm):
  keys = {key for key in arch.biases.values() if isinstance(key, str)}
  said = {key: reader.take(key, "flag", arch.bias) for key in sorted(keys)}
  parts = [p for p in BIASED if p in arch.biases and said.get(arch.biases[p], arch.biases[p])]
  usual = ["qkv", "out", "mlp"] + ["norm"] * (norm == "layernorm")
  if all(part in parts for part in usual):
    return {"bias": True, "bias_on": tuple(part for part in parts if part not in usual)}
  return {"bias": False, "bias_on": tuple(parts)}


# --- rotary positions -----------------------------------------------------------------------------

SCALINGS = {  # rope_type -> {key: (field, default)}
  "default": {},
  "linear": {"factor": ("rope_factor", REQUIRED)},
  "llama3": {
    "factor": ("rope_factor", REQUIRED),
    "low_freq_factor": ("rope_slow", REQUIRED),
    "high_freq_factor": ("rope_fast", REQUIRED),
    "original_max_position_embeddings": ("rope_length", None),
  },
  "yarn": {
    "factor": ("rope_factor", REQUIRED),
    "beta_slow": ("rope_slow", 1.0),
    "beta_fast": ("rope_fast", 32.0),
    "attention_factor": ("rope_magnitude", None),
    "original_max_position_embeddings": ("rope_length", None),
  },
}


def _read_scaling(rope: Mapping[str, Any], seq_len: int) -> dict[str, Any]:
  """The fields that rope_scaling or rope_parameters say, rope_theta and the like taken out."""
  rope = Reader(rope)
  kinds = [rope.take(key, "name", None) for key in ("rope_type", "type")]
  kind = kinds[0] or kinds[1] or "default"
  if kind not in SCALINGS:
    why = "the others depend on the length of a row"
    raise ConfigError(f"rope_type={kind}: must be one of {', '.join(SCALINGS)} ({why}); {REMEDY}")
  fields = {} if kind == "default" else {"rope_scaling": kind}
  for key, (ours, default) in SCALINGS[kind].items():
    fields[ours] = rope.take(key, "count" if ours == "rope_length" else "number", default)
  if kind in ("llama3", "yarn") and fields["rope_length"] is None:
    fields["rope_length"] = seq_len
  if kind == "yarn":
    fields["rope_whole"] = rope.take("truncate", "flag", True)
    scales = [rope.take(key, "number", None) for key in ("mscale", "mscale_all_dim")]
    if all(scales) and fields["rope_magnitude"] is None:
      of = lambda scale: 0.1 * scale * math.log(fields["rope_factor"]) + 1
      fields["rope_magnitude"] = of(scales[0]) / of(scales[1])
  for key in ("finetuned", "original_max_position_embeddings"):
    if kind != "default":
      rope.left.pop(key, None)  # notes beside the numbers
  for key, value in rope.left.items():
    if value is not None:
      raise ConfigError(
        f"rope_scaling.{key}={_short(value)}: is no key of rope_type={kind} that is known here; "
        "take it out of config.json if it changes nothing"
      )
  return fields


def _read_rope(reader, arch, fields, theta_key="rope_theta", share_key="partial_rotary_factor"):
  """Of rope_theta and rope_scaling, or of rope_parameters, which go first."""
  old, new = (reader.take(key, "object", None) for key in ("rope_scaling", "rope_parameters"))
  rope = dict(old or new or {})
  theta = reader.take(theta_key, "number", arch.theta)
  share = reader.take(share_key, "number", 0.25 if arch.rope == "neox" else 1.0)
  inside = Reader({key: rope.pop(key, None) for key in ("rope_theta", "partial_rotary_factor")})
  theta = inside.take("rope_theta", "number", theta)
  share = inside.take("partial_rotary_factor", "number", share)
  if arch.rope == "plain" and share != 1:
    raise ConfigError(f"partial_rotary_factor={share}: must be 1 in {arch.label}; {REMEDY}")
  if share > 1:
    raise ConfigError(f"partial_rotary_factor={share}: must be at most 1; check config.json")
  length = fields["seq_len"]
  if arch.rope == "partial":
    length = reader.take("original_max_position_embeddings", "count", length)
  found = {"rope_theta": theta, "rope_dim": int(fields["head_dim"] * share)}
  scaling = _read_scaling(rope, length)
  if scaling and arch.rope == "partial":
    kind = scaling["rope_scaling"]
    raise ConfigError(f"rope_type={kind}: must be default in {arch.label}; {REMEDY}")
  return found | scaling


def _read_gemma3_rope(reader, arch, fields):
  """Local layers have a base of their own and are not rescaled."""
  old, new = (reader.take(key, "object", None) for key in ("rope_scaling", "rope_parameters"))
  theta = reader.take("rope_theta", "number", arch.theta)
  local_theta = reader.take("rope_local_base_freq", "number", 10_000.0)
  kinds = Reader({"full_attention": {}, "sliding_attention": {}} | (new or {}))
  whole, local = (
    dict(kinds.take(key, "object", {})) for key in ("full_attention", "sliding_attention")
  )
  kinds.done("rope_parameters")
  whole |= old or {}
  theta = Reader({"rope_theta": whole.pop("rope_theta", None)}).take("rope_theta", "number", theta)
  mine = Reader({"rope_theta": local.pop("rope_theta", None)})
  local_theta = mine.take("rope_theta", "number", local_theta)
  if _read_scaling(local, fields["seq_len"]):
    raise ConfigError("rope_parameters.sliding_attention: must not be rescaled; convert the model")
  scaling = _read_scaling(whole, fields["seq_len"])
  return {"rope_theta": theta, "rope_local_theta": local_theta} | scaling


def _write_scaling(cfg):
  if cfg.rope_scaling is None:
    return None
  scaling = {"rope_type": cfg.rope_scaling}
  for key, (ours, _) in SCALINGS[cfg.rope_scaling].items():
    if getattr(cfg, ours) is not None:
      scaling[key] = getattr(cfg, ours)
  if cfg.rope_scaling == "yarn" and not cfg.rope_whole:
    scaling["truncate"] = False
  return scaling


def _write_rope(cfg):
  return {"rope_theta": cfg.rope_theta, "rope_scaling": _write_scaling(cfg)}


def _share(cfg):
  """The share of a head that is rotated, such that int(share * K) is exact."""
  share = (cfg.rope_dim or cfg.head_dim) / cfg.head_dim
  while int(cfg.head_dim * share) < (cfg.rope_dim or cfg.head_dim):
    share = math.nextafter(share, 2)
  return share


def _write_neox(cfg):
  rope = {"rotary_emb_base": cfg.rope_theta, "rotary_pct": _share(cfg)}
  return rope | ({} if cfg.rope_scaling is None else {"rope_scaling": _write_scaling(cfg)})


def _write_partial(cfg):
  share = {} if cfg.rope_dim is None else {"partial_rotary_factor": _share(cfg)}
  return _write_rope(cfg) | share


def _write_gemma3(cfg):
  return _write_rope(cfg) | {"rope_local_base_freq": cfg.rope_local_theta}


def _read_neox(reader, arch, fields):
  return _read_rope(reader, arch, fields, "rotary_emb_base", "rotary_pct")


# how it is written -> (reader, writer, fields it can say)
SCALED = {name for name in ROPE if name not in ("rope_dim", "rope_local_theta")}
ROPES = {
  "plain": (_read_rope, _write_rope, SCALED),
  "partial": (_read_rope, _write_partial, {"rope_theta", "rope_dim"}),
  "neox": (_read_neox, _write_neox, SCALED | {"rope_dim"}),
  "gemma3": (_read_gemma3_rope, _write_gemma3, SCALED | {"rope_local_theta"}),
  "none": (lambda reader, arch, fields: {}, lambda cfg: {}, set()),
}


# --- windows --------------------------------------------------------------------------------------

TYPES = {"sliding_attention": "local", "full_attention": "global"}


def _shortest(kinds: list[str]) -> tuple[str, ...]:
  """The shortest list that gives `kinds` when it is repeated."""
  for n in range(1, len(kinds) + 1):
    if all(kind == kinds[i % n] for i, kind in enumerate(kinds)):
      return tuple(kinds[:n])
  return ()


def _layer_types(reader, depth, default):
  """layer_types as words of LAYER_KINDS, one a layer; `default(i)` says whether layer i is local."""
  types = reader.take("layer_types", "names", None)
  if types is None:
    if depth > 100_000:
      raise ConfigError(f"num_hidden_layers={depth}: must be at most 100000; check config.json")
    return ["local" if default(i) else "global" for i in range(depth)]
  for name in types:
    if name not in TYPES:
      raise ConfigError(f"layer_types={name}: must be one of {', '.join(TYPES)}; {REMEDY}")
  if len(types) != depth:
    raise ConfigError(
      f"layer_types: has {len(types)} entries for {depth} layers; check config.json"
    )
  return [TYPES[name] for name in types]


def _window(reader, arch):
  default = None if "sliding_window" in reader.left else arch.span  # null turns it off
  return reader.take("sliding_window", "count", default)


def _read_all(reader, arch, fields):
  return {"window": _window(reader, arch)}


def _read_qwen(reader, arch, fields):
  on = reader.take("use_sliding_window", "flag", False)
  window, first = _window(reader, arch), reader.take("max_window_layers", "index", 28)
  window = window if on else None
  kinds = _layer_types(reader, fields["depth"], lambda i: window is not None and i >= first)
  if window is None and "local" in kinds:
    raise ConfigError("layer_types=sliding_attention: needs use_sliding_window; check config.json")
  shortest = _shortest(kinds)
  if shortest == ("global",):
    return {"window": None}
  return {"window": window, "layer_kinds": () if shortest == ("local",) else shortest}


def _read_gemma2(reader, arch, fields, every=2):
  window = _window(reader, arch)
  if window is None:
    raise ConfigError(f"sliding_window=null: must be a number of tokens in this model; {REMEDY}")
  kinds = _layer_types(reader, fields["depth"], lambda i: (i + 1) % every > 0)
  return {"window": window, "layer_kinds": _shortest(kinds)}


def _read_gemma3(reader, arch, fields):
  hidden = reader.take("_sliding_window_pattern", "count", 6)
  every = reader.take("sliding_window_pattern", "count", hidden)
  return _read_gemma2(reader, arch, fields, every)


def _write_types(cfg):
  names = {kind: name for name, kind in TYPES.items()}
  local = local_layers(cfg) or (cfg.window is not None,) * cfg.depth
  return [names["local" if is_local else "global"] for is_local in local]


def _write_all(cfg):
  return {"sliding_window": cfg.window}


def _write_qwen(cfg):
  if cfg.window is None:
    return {"use_sliding_window": False}
  types = _write_types(cfg)
  first = types.index("sliding_attention") if "sliding_attention" in types else cfg.depth
  return {
    "use_sliding_window": True,
    "sliding_window": cfg.window,
    "max_window_layers": first,
    "layer_types": types,
  }


def _write_gemma(cfg):
  window = 4096 if cfg.window is None else cfg.window
  return {"sliding_window": window, "layer_types": _write_types(cfg)}


# how it is written -> (reader, writer, fields it can say)
KINDS = {"window", "layer_kinds"}
WINDOWS = {
  "all": (_read_all, _write_all, {"window"}),
  "qwen": (_read_qwen, _write_qwen, KINDS),
  "gemma2": (_read_gemma2, _write_gemma, KINDS),
  "gemma3": (_read_gemma3, _write_gemma, KINDS),
}


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
