"""A run's identity: a hash of everything that changes what it computes."""

import hashlib
import json

from lm.config.schema import Config, flatten, rules_of


def identity(cfg: Config) -> str:
  """12 hex digits of what the run computes.

  A key with its neutral value does not count, so that a key that comes later changes no run's identity.
  """
  known = rules_of(cfg)
  fields = {k: v for k, v in identity_fields(cfg).items() if v != known[k].neutral}
  return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def identity_fields(cfg: Config) -> dict[str, object]:
  """{"model.width": 128, ...}: the keys that change what is computed, not where or how often it is shown."""
  known = rules_of(cfg)
  return {key: value for key, value in flatten(cfg).items() if known[key].identity}
