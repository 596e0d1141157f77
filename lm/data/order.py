"""Which example comes when: a keyed permutation and a mixture, computed from the index alone."""

import numpy as np

ROUNDS = 6  # of the Feistel network
PERIOD = 10_000  # examples after which a mixture repeats; weights are honoured to 1 / PERIOD


def mix(x: np.ndarray) -> np.ndarray:
  """A bijection of 64-bit words whose every input bit moves every output bit (splitmix64's).

  Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
  """
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def fold(*words: np.ndarray | int) -> np.ndarray:
  """One uint64 key from integers or integer arrays, in their order."""
  key = np.zeros(1, np.uint64)
  for word in words:
    word = np.atleast_1d(np.asarray(word, np.int64)).astype(np.uint64)
    key = mix((key ^ word) + np.uint64(0x9E3779B97F4A7C15))
  return key


def uniform(key: np.ndarray, n: int) -> np.ndarray:
  """float64 [B, n] in [0, 1): the first n numbers that belong to each key, uint64 [B]."""
  steps = (np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
  return (mix(key[:, None] + steps) >> np.uint64(11)) * 2.0**-53


def permute(index: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
  """The place of `index` in a pseudorandom permutation of range(n), in constant memory.

  A Feistel network permutes the least square power of two from n up; a result outside range(n) is
  sent through again until it is inside (cycle walking, Black and Rogaway 2002).

  Args:
    index: int64 [B], in [0, n).
    key: uint64 [B] or [1]; another key gives another permutation.

  Returns: int64 [B].
  """
  half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
  mask = (np.uint64(1) << half) - np.uint64(1)
  x = np.atleast_1d(index).astype(np.uint64)
  keys = [np.broadcast_to(mix(key + np.uint64(r)), x.shape) for r in range(1, ROUNDS + 1)]
  todo = np.arange(len(x))
  while len(todo):
    left, right = x[todo] >> half, x[todo] & mask
    for round_key in keys:
      left, right = right, left ^ (mix(right + round_key[todo]) & mask)
    x[todo] = (left << half) | right
    todo = todo[x[todo] >= n]
  return x.astype(np.int64)


def mixture(weights: np.ndarray) -> np.ndarray:
  """int64 [PERIOD]: the source of each example, every prefix within one example of its quota.

  Of the sources that may take the next example without passing their quota, the one whose turn is
  most pressing takes it (Tijdeman 1980, "The chairman assignment problem": the error is at most
  1 - 1 / (2 k - 2) for k sources).

  Args:
    weights: float64 [sources], positive; rounded to multiples of 1 / PERIOD of their sum.
  """
  slots = _slots(weights)
  w = slots / PERIOD
  slack = 1 / (2 * max(len(w), 2) - 2)
  taken = np.zeros(len(w))
  chosen = np.empty(PERIOD, np.int64)
  for n in range(PERIOD):
    due = w * (n + 1) - taken
    deadline = np.where(due >= slack - 1e-9, (1 - slack - due) / w, np.inf)
    chosen[n] = deadline.argmin()
    taken[chosen[n]] += 1
  return chosen


def _slots(weights: np.ndarray) -> np.ndarray:
  """Integers that sum to PERIOD in proportion to `weights`, by largest remainders."""
  exact = weights / weights.sum() * PERIOD
  slots = np.floor(exact + 1e-9).astype(np.int64)
  by_remainder = np.argsort(slots - exact, kind="stable")
  slots[by_remainder[: PERIOD - slots.sum()]] += 1
  return slots
