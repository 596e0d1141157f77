"""Documents that are nearly the same as an earlier one, found by MinHash and confirmed by their shingles.

A document is the set of its shingles, runs of five words in lower case; where no blanks part words (Chinese,
Japanese, Thai, Lao, Khmer, Burmese) every character is a word. Two documents are nearly the same where the
Jaccard similarity |A & B| / |A | B| of these sets is a threshold or more. Candidates agree in one of b bands
of r of their 128 minima (Broder 1997; Leskovec, Rajaraman & Ullman, Massive Datasets, §3.4): of pairs at the
threshold 99 % or more do, 1 - (1 - s^r)^b. Candidates are compared by the sets themselves, so that nothing is
dropped by chance (Lee et al. 2022, arXiv:2107.06499, §4.2, do it by edits).
"""

import array
import re
import zlib
from collections.abc import Callable, Iterable

import numpy as np

WORDS = 5  # of a shingle
_UNPARTED = (  # characters of scripts that write words without blanks
  "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff"
  "\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_WORD = re.compile(f"[{_UNPARTED}]|[^\\s{_UNPARTED}]+")
MINIMA = 128
FOUND = 0.99  # least share of pairs at the threshold that are candidates
MOST = 100  # kept documents of a bucket that a new one is compared with
CHUNK = 1 << 11  # shingles hashed at a time


def repeats(texts: Iterable[str], text_of: Callable[[int], str], threshold: float) -> np.ndarray:
  """bool, of each text whether it is nearly the same as an earlier one that is kept.

  Memory is 8 b bytes a text, and more for those that share a band with another.

  Args:
    text_of: number -> that text again.
    threshold: least Jaccard similarity, in (0, 1].
  """
  bands, rows = bands_of(threshold)
  packed = array.array("Q")
  for text in texts:
    packed.frombytes(_keys(shingles_of(text), bands, rows).tobytes())
  keys = np.frombuffer(packed, np.uint64).reshape(-1, bands)
  shared = np.zeros(len(keys), bool)
  for band in keys.T:
    order = np.argsort(band)
    same = np.flatnonzero(band[order[1:]] == band[order[:-1]])
    shared[order[same]] = shared[order[same + 1]] = True
  again = np.zeros(len(keys), bool)
  buckets: list[dict[int, list[int]]] = [{} for _ in range(bands)]
  for number in np.flatnonzero(shared).tolist():
    mine, shingles = keys[number].tolist(), shingles_of(text_of(number))
    found = [bucket.setdefault(key, []) for bucket, key in zip(buckets, mine, strict=True)]
    near = dict.fromkeys(other for bucket in found for other in bucket)
    again[number] = any(similarity(shingles, shingles_of(text_of(i))) >= threshold for i in near)
    if not again[number]:
      for bucket in found:
        bucket += [number] * (len(bucket) < MOST)
  return again


def bands_of(threshold: float) -> tuple[int, int]:
  """(bands, minima of each): the longest bands that find FOUND of the pairs at a threshold.

  >>> bands_of(0.8)
  (21, 6)
  """
  for rows in range(MINIMA, 1, -1):
    bands = MINIMA // rows
    if 1 - (1 - threshold**rows) ** bands >= FOUND:
      return bands, rows
  return MINIMA, 1


def shingles_of(text: str) -> np.ndarray:
  """uint64, sorted: hashes of the text's different shingles; of fewer than five words, of all of them."""
  words = np.array([zlib.crc32(word.encode()) for word in _WORD.findall(text.lower())], np.uint64)
  n = max(len(words) - WORDS + 1, 1)
  found = np.zeros(n, np.uint64)
  for i in range(min(WORDS, len(words))):
    found = _mixed(found ^ words[i : i + n])
  return np.unique(found)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
  """Jaccard similarity of two sets, each sorted and without repeats."""
  both = len(np.intersect1d(a, b, assume_unique=True))
  return both / (len(a) + len(b) - both)


_FACTORS, _TERMS = np.random.default_rng(0).integers(0, 2**64, (2, MINIMA), np.uint64) | np.uint64(
  1
)


def _keys(shingles: np.ndarray, bands: int, rows: int) -> np.ndarray:
  """uint64 [bands], a key of each band: equal where all its minima are, in orders of a s + b mod 2^64."""
  n = bands * rows
  minima = np.full(n, np.iinfo(np.uint64).max, np.uint64)
  for start in range(0, len(shingles), CHUNK):
    part = np.expand_dims(shingles[start : start + CHUNK], 1)
    minima = np.minimum(minima, (part * _FACTORS[:n] + _TERMS[:n]).min(axis=0))
  keys = np.zeros(bands, np.uint64)
  for row in minima.reshape(bands, rows).T:
    keys = _mixed(keys ^ row)
  return keys


def _mixed(values: np.ndarray) -> np.ndarray:
  """A bijection of 64 bits that looks random (SplitMix64's finaliser: Steele, Lea & Flood 2014)."""
  values = values + np.uint64(0x9E3779B97F4A7C15)
  values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return values ^ (values >> np.uint64(31))
