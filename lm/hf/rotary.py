"""Rotary positions in config.json, both ways: rope_scaling of transformers 4, rope_parameters of 5."""

import math
from collections.abc import Mapping
from typing import Any

from lm.config.errors import ConfigError
from lm.hf.architectures import REQUIRED
from lm.hf.reader import REMEDY, Reader, short

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


def _read_scaling(said: Mapping[str, Any], seq_len: int) -> dict[str, Any]:
  """The fields that rope_scaling or rope_parameters say, rope_theta and the like taken out."""
  rope = Reader(said)
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
        f"rope_scaling.{key}={short(value)}: is no key of rope_type={kind} that is known here; "
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
