"""How often words stand near each other: every pair of a corpus, counted once and kept on disk.

    X_ij = sum over places of i and of j in the same document, d <= objective.window words apart, of 1 / d

Pennington et al. 2014, "GloVe", §4.2. Separators and unknown words are taken out first. The pairs are a
folder of the cache beside the corpus; a batch is the next of them in a keyed permutation, an epoch each of
them once. Held out are pairs in both orders, by a hash, not text: counts of another text would be of another
size, and X_ji of a trained X_ij is the same number.
"""

import dataclasses
import pathlib

import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config
from lm.data import cache, folders, order
from lm.data.batches import Batch
from lm.data.contexts import not_words
from lm.data.sources.digest import hash_of
from lm.data.store import TokenStore
from lm.data.tokenizers import Tokenizer

FORMAT = 2  # of the folder, and of the choice of pairs that are held out
CHUNK = 1 << 20  # tokens counted at a time
ROOM = 1 << 25  # pairs that are held before equal ones are added up
ARRAYS = {"left": "<i4", "right": "<i4", "count": "<f4"}


@dataclasses.dataclass(frozen=True)
class Cooccurrences:
  """An open corpus and its pairs of words, as maps of files."""

  corpus: cache.Corpus
  left: np.ndarray  # int32 [n]
  right: np.ndarray  # int32 [n]
  count: np.ndarray  # float32 [n]
  trained: np.ndarray  # int64, numbers of the pairs that are trained on
  held_out: np.ndarray  # int64, and of the others
  fingerprint: str

  @property
  def vocab_size(self) -> int:
    return self.corpus.vocab_size

  @property
  def tokenizer(self) -> Tokenizer:
    return self.corpus.tokenizer

  @property
  def n_units(self) -> int:
    """Pairs of one epoch."""
    return len(self.trained)


def open_cooccurrences(cfg: Config) -> Cooccurrences:
  """The pairs of a config's corpus, counted first where that was not done.

  Raises:
    ConfigError: no two words stand near each other.
  """
  corpus = cache.open_corpus(cfg.data)
  window = cfg.objective.window
  parts = [FORMAT, corpus.fingerprint, corpus.folder.name, window]
  key = "pairs-" + hash_of(parts)

  def build(folder: pathlib.Path, track) -> None:
    advance = track("counting pairs", sum(store.n_tokens for store in corpus.train))
    numbers, counts = count_pairs(
      corpus.train, corpus.vocab_size, not_words(corpus.tokenizer), window, advance
    )
    left, right = np.divmod(numbers, corpus.vocab_size)
    for name, array in (("left", left), ("right", right), ("count", counts)):
      array.astype(ARRAYS[name]).tofile(folder / f"{name}.bin")

  folder = folders.build_once(folders.open_root(cfg.data.cache_dir), key, build, corpus.quiet)
  if not (folder / "left.bin").stat().st_size:
    raise ConfigError(
      f"data.sources={','.join(cfg.data.sources)}: no two words stand near each other; use more text, or "
      "a lower data.min_freq"
    )
  arrays = {name: np.memmap(folder / f"{name}.bin", kind, "r") for name, kind in ARRAYS.items()}
  arrays = {name: array.view(np.ndarray) for name, array in arrays.items()}
  less, more = (f(arrays["left"], arrays["right"]) for f in (np.minimum, np.maximum))
  hashes = order.mix(less.astype(np.uint64) * np.uint64(corpus.vocab_size) + more.astype(np.uint64))
  out = (hashes >> np.uint64(11)) / 2.0**53 < cfg.data.val_fraction
  if out.all() or not out.any():
    raise ConfigError(
      f"data.val_fraction={cfg.data.val_fraction}: leaves one side without pairs of words; use more text, "
      "or another fraction"
    )
  return Cooccurrences(
    corpus, **arrays, trained=np.flatnonzero(~out), held_out=np.flatnonzero(out), fingerprint=key
  )


def count_pairs(
  stores, vocab_size: int, left_out: list[int], window: int, advance=lambda n: None
) -> tuple[np.ndarray, np.ndarray]:
  """(i V + j of every pair, int64, rising; X_ij, float64), both orders of every pair."""
  held: list[tuple[np.ndarray, np.ndarray]] = []
  room = ROOM
  for store in stores:
    for words, documents, before in _texts(store, left_out, window, advance):
      for distance in range(1, window + 1):
        near = documents[:-distance] == documents[distance:]
        near[: max(0, before - distance)] = False  # counted with the chunk before
        a, b = words[:-distance][near], words[distance:][near]
        numbers = np.minimum(a, b) * vocab_size + np.maximum(a, b)
        found, counts = np.unique(numbers, return_counts=True)
        held.append((found, counts / distance))
        room -= len(found)
      if room <= 0:
        held = [_added_up(held)]
        room = ROOM - len(held[0][0])
  numbers, counts = _added_up(held)
  left, right = np.divmod(numbers, vocab_size)
  apart = left != right  # a word beside itself is counted from either side
  numbers = np.concatenate([numbers, (right * vocab_size + left)[apart]])
  counts = np.concatenate([np.where(apart, counts, 2 * counts), counts[apart]])
  rising = np.argsort(numbers)
  return numbers[rising], counts[rising]


def _texts(store: TokenStore, left_out: list[int], window: int, advance):
  """(words, the document of each, how many are from the chunk before) of every chunk."""
  words, documents = np.zeros(0, np.int64), np.zeros(0, np.int64)
  for first in range(0, store.n_tokens, CHUNK):
    tokens = np.asarray(store.tokens[first : first + CHUNK], np.int64)
    places = np.arange(first, first + len(tokens))
    of_place = np.searchsorted(store.offsets, places, side="right")
    kept = ~np.isin(tokens, left_out)
    before = min(window, len(words))
    words = np.concatenate([words[len(words) - before :], tokens[kept]])
    documents = np.concatenate([documents[len(documents) - before :], of_place[kept]])
    advance(len(tokens))
    yield words, documents, before


def _added_up(held) -> tuple[np.ndarray, np.ndarray]:
  if not held:
    return np.zeros(0, np.int64), np.zeros(0)
  numbers = np.concatenate([each for each, _ in held])
  found, places = np.unique(numbers, return_inverse=True)
  return found, np.bincount(places, np.concatenate([c for _, c in held]), len(found))


class CooccurrenceBatches:
  """Batches of pairs: left and right int32 [B], count float32 [B], weights float32 [B] (0 = padding).

  Args:
    pairs: what they are of.
    numbers: of the pairs that are read.
    batch_size: pairs a batch.
    seed: of the permutation of every epoch; None = in their order, once.
    reshuffle: whether every epoch has another one.
  """

  def __init__(
    self,
    pairs: Cooccurrences,
    numbers: np.ndarray,
    batch_size: int,
    seed: int | None,
    reshuffle: bool = True,
  ):
    self.pairs, self.numbers, self.batch_size, self.seed = pairs, numbers, batch_size, seed
    self.reshuffle = reshuffle

  def __len__(self) -> int:
    return -(-len(self.numbers) // self.batch_size)

  @property
  def facts(self) -> dict[str, float]:
    return {"pairs": len(self.numbers)}

  def at(self, step: int, rows: slice | None = None) -> Batch:
    """Batch number `step`, or only its `rows`."""
    index = step * self.batch_size + np.arange(self.batch_size)[rows or slice(None)]
    real, total = np.ones(len(index), bool), len(self.numbers)
    if self.seed is None:
      real, index = index < total, np.minimum(index, total - 1)
    else:
      epoch, index = np.divmod(index, total)
      epoch = epoch if self.reshuffle else np.zeros_like(epoch)
      index = order.permute(index, total, order.fold(self.seed, epoch))
    chosen = self.numbers[index]
    found = {name: getattr(self.pairs, name)[chosen] for name in ARRAYS}
    return {**found, "weights": real.astype(np.float32)}


def train_cooccurrences(pairs: Cooccurrences, cfg: Config) -> CooccurrenceBatches:
  rows, seed = cfg.train.batch_size, cfg.data.seed or 0
  return CooccurrenceBatches(pairs, pairs.trained, rows, seed, cfg.data.reshuffle)


@dataclasses.dataclass(frozen=True)
class PairSet:
  """The held-out pairs."""

  pairs: Cooccurrences

  @property
  def fingerprint(self) -> str:
    return self.pairs.fingerprint


def no_other_set(pairs: Cooccurrences, source: str):
  raise ConfigError(
    f"data={source}: pairs of words are held out of the training text alone; leave it out"
  )


def eval_cooccurrences(
  chosen: PairSet, cfg: Config, max_pairs: int | None, stride: int | None
) -> CooccurrenceBatches:
  """The first of the held-out pairs in an order of their own, the same for every run."""
  if stride is not None:
    raise ConfigError(f"stride={stride}: pairs are not predicted one after the other; leave it out")
  numbers = chosen.pairs.held_out
  shuffled = order.permute(np.arange(len(numbers)), len(numbers), order.fold(0))
  first = numbers[shuffled[: max_pairs or len(numbers)]]
  return CooccurrenceBatches(chosen.pairs, first, cfg.eval.batch_size or cfg.train.batch_size, None)


def check_cooccurrences(cfg: Config) -> None:
  """ConfigError for sets beside the held-out pairs, and for settings of rows, which pairs do not have."""
  if cfg.data.weights:
    raise ConfigError(
      f"data.weights={','.join(map(str, cfg.data.weights))}: pairs of all sources are counted together; "
      "leave them out"
    )
  for key in ("pack", "cross_documents"):
    if not getattr(cfg.data, key):
      raise ConfigError(f"data.{key}=False: pairs lie within a document in any case; use True")
  if cfg.eval.sets:
    raise ConfigError(
      f"eval.sets={','.join(cfg.eval.sets)}: pairs of words are held out of the training text alone; use ()"
    )
