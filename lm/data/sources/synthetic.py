"""Sources whose entropy rate is known in closed form, so that a loss floor can be checked.

`markov-64-s1.5` is a first-order Markov chain over 64 printable ASCII characters. After each
character the next one is drawn from a Zipf law with exponent 1.5 over the characters in an order of
that state's own; the document ends instead with probability 1/1000. `markov-64-s1.5-n20000` has
20,000 documents in place of 4,000. Every character is one byte, so the byte and char tokenizers see
the chain itself, and a model that looks one token back can reach the floor.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import DataConfig

END_PROBABILITY = 1e-3  # of a document after each of its characters
FIRST_CHARACTER = 33  # "!", the first printable one after the blank
MAX_STATES = 94  # "!" to "~"
MAX_EXPONENT = 100  # from about 10 on all follow from their first two states
# Documents of a source that is made up, not read: minutes of its one process.
MOST_MADE = 10_000_000
LANES = 500  # documents drawn side by side


class Markov(NamedTuple):
  """A chain: `states` characters, Zipf exponent, number of documents."""

  states: int
  exponent: float
  n_docs: int


def documents(name: str, cfg: DataConfig, split: str, where: str) -> Iterator[str]:
  return read(name, where)


def identity(name: str, cfg: DataConfig, split: str, where: str) -> str:
  """The chain's numbers, from which all documents follow."""
  return json.dumps(parse(name, where))


def parse(name: str, where: str) -> Markov:
  """Reads `markov-STATES-sEXPONENT[-nDOCUMENTS]`. Raises: ConfigError, starting with `where`."""
  match = re.fullmatch(
    r"markov-([0-9]{1,9})-s([0-9]{1,9}(?:\.[0-9]{1,17})?)(?:-n([0-9]{1,9}))?", name
  )
  if match is None:
    raise ConfigError(
      f"{where}: a synthetic source is named markov-STATES-sEXPONENT[-nDOCUMENTS]; "
      "use synthetic:markov-64-s1"
    )
  chain = Markov(int(match[1]), float(match[2]), int(match[3] or 4000))
  sound = 2 <= chain.states <= MAX_STATES and chain.exponent <= MAX_EXPONENT
  if not sound or not 1 <= chain.n_docs <= MOST_MADE:
    raise ConfigError(
      f"{where}: a chain has 2 to {MAX_STATES} states, an exponent up to {MAX_EXPONENT} and 1 to "
      f"{MOST_MADE} documents; use synthetic:markov-64-s1"
    )
  return chain


def zipf(chain: Markov) -> np.ndarray:
  """p_k = (k + 1)^-s / sum_j (j + 1)^-s; float64 [states], rank by rank."""
  weights = np.arange(1, chain.states + 1, dtype=np.float64) ** -chain.exponent
  return weights / weights.sum()


def successors(chain: Markov) -> np.ndarray:
  """int64 [states + 1, states]: the states after each, likeliest first; the last row starts."""
  rng = np.random.default_rng([chain.states, round(1000 * chain.exponent)])
  return rng.random((chain.states + 1, chain.states)).argsort(axis=1, kind="stable")


def transition_matrix(chain: Markov) -> np.ndarray:
  """float64 [states + 1, states + 1]: P(next | now); the last state is the document separator."""
  matrix = np.zeros((chain.states + 1, chain.states + 1))
  np.put_along_axis(matrix[:, :-1], successors(chain), zipf(chain), axis=1)
  matrix[:-1] *= 1 - END_PROBABILITY
  matrix[:-1, -1] = END_PROBABILITY
  return matrix


def entropy_rate(name: str) -> float:
  """Least loss in nats a character, each document's separator included: h + H(q).

  h is the entropy of the Zipf law, which every state shares, and H(q) that of ending or not.
  Example: entropy_rate("markov-64-s1") is 3.3306...
  """
  h, h_end = _entropies(parse(name, f"synthetic:{name}"))
  return h + h_end


def loss_floor(name: str) -> float:
  """Least loss in nats a token of a byte or char tokenizer, separators counted: / (1 + q)."""
  return entropy_rate(name) / (1 + END_PROBABILITY)


def _entropies(chain: Markov) -> tuple[float, float]:
  p, q = zipf(chain), END_PROBABILITY
  return float(-(p * np.log(p)).sum()), -q * math.log(q) - (1 - q) * math.log(1 - q)


def read(name: str, where: str) -> Iterator[str]:
  """The documents: the same ones on every call."""
  chain = parse(name, where)
  table = successors(chain)
  cumulative = zipf(chain).cumsum()
  cumulative[-1] = 1.0
  rng = np.random.default_rng([1, chain.states, round(1000 * chain.exponent)])
  for done in range(0, chain.n_docs, LANES):
    lengths = np.ceil(np.log1p(-rng.random(LANES)) / math.log1p(-END_PROBABILITY))
    lengths = np.maximum(lengths, 1).astype(np.int64)  # geometric from 1: ends with probability q
    characters = np.empty((lengths.max(), LANES), np.uint8)
    state = np.full(LANES, chain.states)
    for row in characters:
      state = table[state, np.searchsorted(cumulative, rng.random(LANES), side="right")]
      row[:] = state + FIRST_CHARACTER
    for lane in range(min(LANES, chain.n_docs - done)):
      yield characters[: lengths[lane], lane].tobytes().decode("ascii")
