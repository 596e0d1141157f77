"""Made-up pairs, `reversed:N`: a few words, and the same words in reverse order; N pairs of them.

The target follows from the source, so a model that reads it can reach a loss of 0. Kinds of batch that read
no pairs take every line as a document.
"""

from collections.abc import Iterator

import numpy as np

from lm.config.errors import ConfigError, whole_number
from lm.config.schema import DataConfig
from lm.data.sources.synthetic import MOST_MADE

WORDS = (
  "red",
  "blue",
  "green",
  "cat",
  "dog",
  "bird",
  "runs",
  "sits",
  "eats",
  "fast",
  "slow",
  "here",
)
LEAST, MOST = 2, 5  # words of a source


def read(name: str, cfg: DataConfig, where: str) -> Iterator[tuple[str, str]]:
  """The pairs: the same ones on every call. Raises: ConfigError unless the name is 1 to MOST_MADE."""
  count = whole_number(name, MOST_MADE)
  if not count:
    raise ConfigError(f"{where}: must say how many pairs, 1 to {MOST_MADE}; use reversed:4000")
  random = np.random.default_rng(0)
  for _ in range(count):
    words = random.choice(WORDS, random.integers(LEAST, MOST + 1)).tolist()
    yield " ".join(words), " ".join(words[::-1])


def documents(name: str, cfg: DataConfig, split: str, where: str) -> Iterator[str]:
  """The lines of both sides, pair by pair."""
  for pair in read(name, cfg, where):
    yield from pair


def identity(name: str, cfg: DataConfig, split: str, where: str) -> str:
  """The number, from which all pairs follow."""
  return name
