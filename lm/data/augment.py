"""Labelled texts changed a little, so that a classifier sees more of them: EDA and dropped tokens.

Wei & Zou 2019, arXiv:1901.11196: of a text of l words, n = max(1, rate l) are
    replace   replaced by a synonym        insert   followed, somewhere, by a synonym of theirs
    swap      exchanged with another       delete   left out, each with probability rate
Here one of them is done to a share of the texts each time they are read, instead of writing copies first. The
paper's synonyms are WordNet's; here they are those of a file (data.synonyms).
"""

import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from lm.config.errors import ConfigError, check_choice
from lm.config.schema import Config, DataConfig
from lm.data import order

Synonyms = Mapping[str, Sequence[str]]
Draw = Callable[[int], int]  # n -> a number in [0, n)


def replace(words: list[str], rate: float, synonyms: Synonyms, draw: Draw) -> list[str]:
  """n different words that have synonyms, each by one of them, wherever the word stands."""
  known = sorted({word for word in words if word in synonyms})
  words = list(words)
  for _ in range(min(_count(words, rate), len(known))):
    old = known.pop(draw(len(known)))
    new = synonyms[old][draw(len(synonyms[old]))]
    words = [new if word == old else word for word in words]
  return words


def insert(words: list[str], rate: float, synonyms: Synonyms, draw: Draw) -> list[str]:
  """n times a synonym of some word of the text, put at some place."""
  known = [word for word in words if word in synonyms]
  words = list(words)
  for _ in range(_count(words, rate) if known else 0):
    others = synonyms[known[draw(len(known))]]
    words.insert(draw(len(words) + 1), others[draw(len(others))])
  return words


def swap(words: list[str], rate: float, synonyms: Synonyms, draw: Draw) -> list[str]:
  """n times two words exchange their places."""
  words = list(words)
  for _ in range(_count(words, rate) if len(words) > 1 else 0):
    a = draw(len(words))
    b = (a + 1 + draw(len(words) - 1)) % len(words)
    words[a], words[b] = words[b], words[a]
  return words


def delete(words: list[str], rate: float, synonyms: Synonyms, draw: Draw) -> list[str]:
  """Each word is left out with probability `rate`; one at least stays."""
  kept = [word for word in words if draw(1 << 30) >= rate * (1 << 30)]
  return kept or [words[draw(len(words))]]


OPS = {"replace": replace, "insert": insert, "swap": swap, "delete": delete}
FROM_FILE = ("replace", "insert")


def _count(words: Sequence[str], rate: float) -> int:
  return max(1, int(rate * len(words)))


def changed(text: str, cfg: DataConfig, synonyms: Synonyms, key: np.ndarray) -> str:
  """The text with one of data.augment_ops done to it; `key` uint64 [1] decides which and where."""
  words = text.split()
  if not words:
    return text
  numbers = _numbers(key)
  draw = lambda n: min(int(next(numbers) * n), n - 1)
  op = cfg.augment_ops[draw(len(cfg.augment_ops))]
  return " ".join(OPS[op](words, cfg.augment_rate, synonyms, draw))


def _numbers(key: np.ndarray) -> Iterator[float]:
  while True:
    yield from order.uniform(key, 64)[0].tolist()
    key = order.mix(key + np.uint64(1))


def without_some(ids: np.ndarray, rate: float, key: np.ndarray) -> np.ndarray:
  """The ids less each with probability `rate`; one at least stays."""
  chance = order.uniform(key, len(ids))[0]
  kept = ids[chance >= rate]
  return kept if len(kept) or not len(ids) else ids[[int(chance.argmax())]]


def read_synonyms(path: str | None) -> dict[str, list[str]]:
  """{word: others} of a file with lines "word: other, other"; {} where there is none.

  Raises: ConfigError with the line that is not so.
  """
  if path is None:
    return {}
  where = f"data.synonyms={path}"
  try:
    lines = pathlib.Path(path).expanduser().read_text(encoding="utf-8").splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise ConfigError(f"{where}: cannot be read ({error}); give a file of UTF-8 text") from None
  found: dict[str, list[str]] = {}
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    word, colon, others = line.partition(":")
    named = [other for other in re.split(r"\s*,\s*", others.strip()) if other]
    if not colon or not word.strip() or not named:
      raise ConfigError(f'{where}: line {number} must be "word: other, other"; mend it')
    found.setdefault(word.strip(), []).extend(named)
  return found


def check_augment(cfg: Config) -> None:
  """ConfigError for unknown changes, and for those that need a file of synonyms."""
  data = cfg.data
  if not data.augment_share:
    return
  if not data.augment_ops:
    raise ConfigError("data.augment_ops=(): must name one; use swap,delete")
  for op in data.augment_ops:
    check_choice("data.augment_ops", op, OPS)
    if op in FROM_FILE and data.synonyms is None:
      raise ConfigError(
        f"data.augment_ops={op}: takes synonyms and data.synonyms names no file of them; set it, or use "
        "swap,delete"
      )
  read_synonyms(data.synonyms)


def refuse_augment(cfg: Config) -> None:
  """ConfigError where texts without labels would be augmented, or read as labelled ones."""
  for key, off in (
    ("augment_share", 0.0),
    ("token_dropout", 0.0),
    ("label_field", None),
    ("pair_field", None),
  ):
    value = getattr(cfg.data, key)
    if value != off:
      raise ConfigError(
        f"data.{key}={value}: is for labelled texts, which objective.name={cfg.objective.name} does not "
        f"read; use {off}"
      )
