"""Keys of a config.json, taken one by one and typed; what is left over is refused by its name."""

from collections.abc import Mapping
from typing import Any

from lm.config.errors import ConfigError
from lm.hf.architectures import ACTS, IGNORED, REQUIRED, SAME

REMEDY = "convert the model first"
LARGEST = 2**31 - 1
ABSENT = object()


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
    if null and row.kind in ("flag", "parallel"):
      row = row._replace(default=False)
    if null and row.kind in ("count", "number") and isinstance(row.default, int | float):
      raise ConfigError(f"{key}=null: must be a number; say which in config.json")
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

  def done(self, kind, unread=()):
    """Refuses what is left over, but for what changes nothing in any model or, `unread`, in this one."""
    for key, value in self.left.items():
      if value is not None and not {key, key.removeprefix("attn_config.")} & {*IGNORED, *unread}:
        raise ConfigError(
          f"{key}={short(value)}: is no key of {kind} that is known here; take it out of "
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
    raise ConfigError(f"{key}={short(value)}: must be {words[kind]}; check config.json")
  return {"count": int, "index": int, "number": float}[kind](value) if number else value


def short(value):
  text = " ".join(str(value).split())
  return text if len(text) <= 60 else f"{text[:57]}..."
