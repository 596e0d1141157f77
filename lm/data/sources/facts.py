"""Made-up sentences, `facts:N`: a person, a place and a firm in each, so that all three are known; N of them.

Kinds of batch that tag words or answer questions read what is named and where; all others read the sentences
as documents.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lm.config.errors import ConfigError, whole_number
from lm.config.schema import DataConfig
from lm.data.sources.synthetic import MOST_MADE

FIRST = ("Ada", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas")
LAST = ("Berg", "Castle", "Field", "Hill", "Lake", "Moor", "Stone", "Wood")
PLACES = ("Bern", "Cairo", "Delhi", "Lima", "Oslo", "Paris", "Quito", "Rome", "Tokyo", "New York")
FIRMS = ("Acme", "Blue Sky", "Copper Works", "Delta", "Evergreen", "First Bank", "Gold Line")
SENTENCES = (
  "PER lives in LOC and works for ORG .",
  "In LOC , PER founded ORG .",
  "ORG of LOC belongs to PER .",
  "PER left ORG and moved to LOC .",
)
QUESTIONS = {"PER": "Who is named?", "LOC": "Which place is named?", "ORG": "Which firm is named?"}
GLUED = (".", ",")  # to the word before them


class Fact(NamedTuple):
  words: tuple[str, ...]
  tags: tuple[str, ...]  # O, or B-TYPE and I-TYPE of PER, LOC, ORG
  text: str
  answers: dict[str, tuple[str, int]]  # question: the answer, and the character that it begins at


def read(name: str, where: str) -> Iterator[Fact]:
  """The facts: the same ones on every call. Raises: ConfigError unless the name is 1 to MOST_MADE."""
  count = whole_number(name, MOST_MADE)
  if not count:
    raise ConfigError(f"{where}: must say how many facts, 1 to {MOST_MADE}; use facts:1000")
  random = np.random.default_rng(0)
  draw = lambda options: options[random.integers(len(options))]
  for _ in range(count):
    named = {
      "PER": f"{draw(FIRST)} {draw(LAST)}",
      "LOC": str(draw(PLACES)),
      "ORG": str(draw(FIRMS)),
    }
    yield _fact(draw(SENTENCES), named)


def _fact(sentence: str, named: dict[str, str]) -> Fact:
  words, tags, text, answers = [], [], "", {}
  for part in sentence.split():
    text += " " * (bool(text) and part not in GLUED)
    mine = named.get(part, part)
    if part in named:
      answers[QUESTIONS[part]] = (mine, len(text))
    text += mine
    for i, word in enumerate(mine.split()):
      words.append(word)
      tags.append(f"{'I' if i else 'B'}-{part}" if part in named else "O")
  return Fact(tuple(words), tuple(tags), text, answers)


def documents(name: str, cfg: DataConfig, split: str, where: str) -> Iterator[str]:
  """The sentences."""
  for fact in read(name, where):
    yield fact.text


def identity(name: str, cfg: DataConfig, split: str, where: str) -> str:
  """The number, from which all facts follow."""
  return name
