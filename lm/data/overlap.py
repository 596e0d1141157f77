"""How much of a held-out text stands in the training text: whole documents, and runs of WINDOW tokens.

Lee et al. 2022 (arXiv:2107.06499) take 50 equal tokens for a copy. A run's hash is a polynomial in
its tokens modulo 2^64, taken from prefix sums, so that both texts are gone through once, a chunk at a
time; of a large held-out text the runs whose hash is below a bound stand for all (Manber 1994).
"""

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from lm.data.store import TokenStore, doc_hashes, open_store

WINDOW = 50  # tokens
SAMPLE = 1 << 18  # runs of the held-out text that are looked up; more are thinned by their hash
CHUNK = 1 << 15  # tokens hashed at a time: their hashes stay in a core's own cache
FILTER_BITS = 22  # of the table that most runs of the training text are turned away by
BASE = 0x9E3779B97F4A7C15  # odd, so that its powers have inverses modulo 2^64


def measure(train: Sequence[pathlib.Path], held_out: pathlib.Path) -> dict[str, int]:
  """What a held-out store shares with training stores of the same tokenizer; all are folders.

  Returns:
    documents and duplicates (held-out documents whose text is one of training's), runs (looked up)
    and shared_runs, sharing_documents (with at least one shared run), window and thinned (one run
    in so many was looked up). Runs lie inside documents.
  """
  store = open_store(held_out, "held out")
  known = np.unique(np.concatenate([doc_hashes(folder) for folder in train]))
  duplicates = int(np.isin(doc_hashes(held_out), known).sum())
  hasher = _Hasher(store)
  thinned = max(1, -(-store.n_tokens // SAMPLE))
  bound = np.uint64((1 << 64) // thinned - 1)
  found = list(hasher.runs(store, bound))
  places = np.concatenate([np.zeros(0, np.int64), *(place for place, _ in found)])
  hashes = np.concatenate([np.zeros(0, np.uint64), *(hashed for _, hashed in found)])
  shared = np.zeros(len(hashes), bool)
  if len(hashes):
    wanted, which = np.unique(hashes, return_inverse=True)
    seen = np.zeros(len(wanted), bool)
    table = np.zeros(1 << FILTER_BITS, bool)
    table[_slot(wanted)] = True
    for folder in train:
      for _, hashed in hasher.runs(open_store(folder, "train"), bound):
        likely = hashed[table[_slot(hashed)]]
        at = np.searchsorted(wanted, likely)
        at[at == len(wanted)] = 0
        seen[at[wanted[at] == likely]] = True
    shared = seen[which]
  sharing = np.unique(np.searchsorted(store.offsets, places[shared], side="right"))
  return {
    "documents": store.n_docs,
    "duplicates": duplicates,
    "sharing_documents": len(sharing),
    "runs": len(hashes),
    "shared_runs": int(shared.sum()),
    "window": WINDOW,
    "thinned": thinned,
  }


def line(name: str, found: dict[str, int]) -> str:
  """What `measure` found, in one line for the screen."""
  share = found["shared_runs"] / max(found["runs"], 1)
  if not found["duplicates"] and not found["shared_runs"]:
    return (
      f"{name}: none of {found['documents']:,} held-out documents, and no {found['window']} tokens in "
      "a row of one, stand in training"
    )
  return (
    f"{name}: of {found['documents']:,} held-out documents {found['duplicates']:,} stand in training "
    f"word for word, {found['sharing_documents']:,} share {found['window']} tokens in a row with it "
    f"({share:.1%} of all such runs)"
  )


def _slot(hashes: np.ndarray) -> np.ndarray:
  """Middle bits: the upper ones are small where hashes have a bound, the lower ones mix least."""
  return (hashes >> np.uint64(20)) & np.uint64((1 << FILTER_BITS) - 1)


class _Hasher:
  """sum_j f(token_j) BASE^j over runs of WINDOW tokens, f random, modulo 2^64."""

  def __init__(self, store: TokenStore):
    # Tokens of 16 bits are at most 2^16; of a wider store the ids in use are not known beforehand.
    size = 1 << 16 if store.tokens.dtype.itemsize == 2 else 1 << 20
    self.values = np.random.default_rng(0).integers(0, 1 << 64, size, np.uint64)
    length = CHUNK + WINDOW
    inverse = pow(BASE, -1, 1 << 64)
    self.powers = np.cumprod(np.full(length, BASE, np.uint64))
    self.inverses = np.cumprod(np.full(length, inverse, np.uint64))
    self.sums = np.zeros(length + 1, np.uint64)
    self.ends = np.zeros(length + 1, np.int32)  # documents that end before each token

  def runs(self, store: TokenStore, bound: np.uint64) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(first tokens, hashes) of the runs of a store that are inside documents, hash <= bound."""
    for start in range(0, store.n_tokens - WINDOW + 1, CHUNK):
      tokens = store.tokens[start : start + CHUNK + WINDOW - 1]
      n = len(tokens)
      terms = np.take(self.values, tokens, mode="wrap")
      terms *= self.powers[:n]
      sums = self.sums[: n + 1]
      np.cumsum(terms, out=sums[1:])
      hashes = sums[WINDOW:] - sums[:-WINDOW]
      hashes *= self.inverses[: len(hashes)]
      kept = hashes <= bound
      ends = tokens == store.eot_id
      if ends.any():
        np.cumsum(ends, out=self.ends[1 : n + 1])
        kept &= self.ends[WINDOW : n + 1] == self.ends[: n + 1 - WINDOW]
      places = np.flatnonzero(kept)
      yield start + places, hashes[places]
