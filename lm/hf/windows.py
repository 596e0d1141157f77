"""Sliding windows in config.json, both ways: which layers have one, and how many tokens it holds."""

from lm.config.errors import ConfigError, number_of
from lm.hf.reader import REMEDY
from lm.models.layers import local_layers

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
      f"layer_types: has {number_of(len(types), 'entry')} for {number_of(depth, 'layer')}; check config.json"
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
