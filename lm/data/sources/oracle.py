"""Sentences of a random LSTM, whose probability of any text is known: the oracle of text GANs.

`64-l20` draws sentences of 20 characters out of 64; `64-l20-n10000` has 10,000 of them. After Yu et al. 2017
(SeqGAN, arXiv:1609.05473, §5.1) the oracle is an LSTM of width 32 whose weights are all drawn from N(0, 1)
once; what a model of them writes is judged by its negative log-likelihood under that LSTM:

    nll(x) = -1/L sum_t log p(x_t | x_1 .. x_{t-1})    nats a character

The paper has 5,000 words where this has at most 94 characters, so that the byte tokenizer sees them as
they are.
"""

import json
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import DataConfig
from lm.data.sources.synthetic import FIRST_CHARACTER, MAX_STATES, MOST_MADE

WIDTH = 32  # of the embedding and of the state
LANES = 1000  # sentences drawn side by side
MAX_LENGTH = 100_000  # of a sentence
EXAMPLE = "oracle:64-l20"


class Oracle(NamedTuple):
  """`symbols` characters, sentences of `length` of them, how many sentences."""

  symbols: int
  length: int
  n_docs: int


class _Weights(NamedTuple):
  table_VD: np.ndarray  # the last row starts a sentence
  kernel_DG: np.ndarray  # of [input, state]
  bias_G: np.ndarray
  readout_HV: np.ndarray
  bias_V: np.ndarray


def documents(name: str, cfg: DataConfig, split: str, where: str) -> Iterator[str]:
  return read(name, where)


def identity(name: str, cfg: DataConfig, split: str, where: str) -> str:
  """The oracle's numbers, from which all sentences follow."""
  return json.dumps(parse(name, where))


def parse(name: str, where: str) -> Oracle:
  """Reads `SYMBOLS-lLENGTH[-nDOCUMENTS]`. Raises: ConfigError, starting with `where`."""
  match = re.fullmatch(r"([0-9]{1,9})-l([0-9]{1,9})(?:-n([0-9]{1,9}))?", name)
  if match is None:
    raise ConfigError(f"{where}: an oracle is named SYMBOLS-lLENGTH[-nDOCUMENTS]; use {EXAMPLE}")
  oracle = Oracle(int(match[1]), int(match[2]), int(match[3] or 10_000))
  sound = 2 <= oracle.symbols <= MAX_STATES and 1 <= oracle.length <= MAX_LENGTH
  if not sound or not 1 <= oracle.n_docs <= MOST_MADE:
    raise ConfigError(
      f"{where}: an oracle has 2 to {MAX_STATES} symbols, sentences of 1 to {MAX_LENGTH} and 1 to "
      f"{MOST_MADE} of them; use {EXAMPLE}"
    )
  return oracle


def read(name: str, where: str) -> Iterator[str]:
  """The sentences: the same ones on every call."""
  oracle = parse(name, where)
  weights = _draw(oracle)
  rng = np.random.default_rng([2, oracle.symbols, oracle.length])
  for done in range(0, oracle.n_docs, LANES):
    ids_B = np.full(LANES, oracle.symbols)
    state, drawn = _start(LANES), np.empty((oracle.length, LANES), np.uint8)
    for row in drawn:
      log_p_BV, state = _step(weights, ids_B, state)
      cumulative_BV = np.exp(log_p_BV).cumsum(axis=1)
      cumulative_BV[:, -1] = 1.0
      ids_B = (rng.random((LANES, 1)) >= cumulative_BV).sum(axis=1)
      row[:] = ids_B + FIRST_CHARACTER
    for lane in range(min(LANES, oracle.n_docs - done)):
      yield drawn[:, lane].tobytes().decode("ascii")


def nll(name: str, texts: Sequence[str]) -> np.ndarray:
  """float64 [len(texts)]: -log p of each text's first `length` characters over their number.

  A character that the oracle does not know has probability 0, and a text without any is as unlikely: inf.
  """
  oracle = parse(name, f"oracle:{name}")
  weights, found = _draw(oracle), np.full(len(texts), np.inf)
  codes = [np.array([ord(c) - FIRST_CHARACTER for c in t[: oracle.length]], int) for t in texts]
  whole = lambda ids: ids.size > 0 and ids.min() >= 0 and ids.max() < oracle.symbols
  for size in {ids.size for ids in codes if whole(ids)}:
    chosen = [i for i, ids in enumerate(codes) if ids.size == size and whole(ids)]
    ids_BL = np.stack([codes[i] for i in chosen])
    last_B, state, total_B = np.full(len(chosen), oracle.symbols), _start(len(chosen)), 0.0
    for ids_B in ids_BL.T:
      log_p_BV, state = _step(weights, last_B, state)
      total_B = total_B - np.take_along_axis(log_p_BV, np.expand_dims(ids_B, 1), axis=1)[:, 0]
      last_B = ids_B
    found[chosen] = total_B / size
  return found


def _draw(oracle: Oracle) -> _Weights:
  rng = np.random.default_rng([3, oracle.symbols])
  n = rng.standard_normal
  gates = 4 * WIDTH
  return _Weights(
    n((oracle.symbols + 1, WIDTH)), n((2 * WIDTH, gates)), n(gates), n((WIDTH, oracle.symbols)),
    n(oracle.symbols),
  )  # fmt: skip


def _start(rows: int) -> tuple[np.ndarray, np.ndarray]:
  return np.zeros((rows, WIDTH)), np.zeros((rows, WIDTH))


def _step(weights: _Weights, ids_B, state):
  """(log p of the next character [B, V], state) after one more character."""
  h_BH, c_BH = state
  x_BD = np.concatenate([weights.table_VD[ids_B], h_BH], axis=1)
  i_BH, f_BH, g_BH, o_BH = np.split(x_BD @ weights.kernel_DG + weights.bias_G, 4, axis=1)
  sigmoid = lambda a: 1 / (1 + np.exp(-a))
  c_BH = sigmoid(f_BH) * c_BH + sigmoid(i_BH) * np.tanh(g_BH)
  h_BH = sigmoid(o_BH) * np.tanh(c_BH)
  logits_BV = h_BH @ weights.readout_HV + weights.bias_V
  top_B1 = logits_BV.max(axis=1, keepdims=True)
  log_z_B1 = top_B1 + np.log(np.exp(logits_BV - top_B1).sum(axis=1, keepdims=True))
  return logits_BV - log_z_B1, (h_BH, c_BH)
