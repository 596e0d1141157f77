"""A run's identity: a hash of everything that changes what it computes."""

import hashlib
import json
from collections.abc import Collection, Mapping

from lm.config.schema import Config, KeyRule, flatten, rules_of

# Where texts, tokenizers and words lie, which a run that was moved may say otherwise.
PLACES = ("data.sources", "data.tokenizer_path", "data.tfds_dir", "data.synonyms")


def identity(cfg: Config) -> str:
  """12 hex digits of what the run computes.

  A key with its neutral value does not count, so that a key that comes later changes no run's identity.
  """
  return _digest(identity_fields(cfg), rules_of(cfg))


def section_identities(cfg: Config, without: Collection[str] = ()) -> dict[str, str]:
  """{"model": 12 hex digits, ...} as of `identity`, but for each section, without some keys.

  A key of no section, such as `seed`, is one of its own; "reading" is data without the keys that say where
  something lies (PLACES).
  """
  sections: dict[str, dict[str, object]] = {}
  known = rules_of(cfg)
  for key, value in identity_fields(cfg).items():
    if key not in without:
      sections.setdefault(key.partition(".")[0], {})[key] = value
  sections["reading"] = {k: v for k, v in sections["data"].items() if k not in PLACES}
  return {name: _digest(fields, known) for name, fields in sections.items()}


def _digest(fields: Mapping[str, object], known: Mapping[str, KeyRule]) -> str:
  counted = {k: v for k, v in fields.items() if v != known[k].neutral}
  return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:12]


def identity_fields(cfg: Config) -> dict[str, object]:
  """{"model.width": 128, ...}: the keys that change what is computed, not where or how often it is shown."""
  known = rules_of(cfg)
  return {key: value for key, value in flatten(cfg).items() if known[key].identity}
