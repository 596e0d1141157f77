"""Tokenizers of this code's own: bytes, characters, and words between blanks."""

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from lm.config.schema import DataConfig

UNK = "<unk>"
BYTE_VOCAB = 257


class ByteTokenizer:
  """UTF-8 bytes, 0 to 255, and 256 for the end of a document."""

  name, cuttable = "byte", True
  vocab_size, eot_id, start_id = BYTE_VOCAB, 256, 256

  def encode(self, text: str) -> list[int]:
    return list(text.encode())

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

  def encode_with_spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    sizes = [len(character.encode()) for character in text]
    return self.encode_batch([text])[0], each_character(np.repeat(np.arange(len(text)), sizes))

  def decode(self, ids: Iterable[int]) -> str:
    return bytes(i for i in ids if i < 256).decode(errors="replace")

  def token(self, number: int) -> str:
    return "<end>" if number == self.eot_id else f"0x{number:02x}"

  def state(self) -> dict:
    return {}


class CharTokenizer:
  """One id a character, in code point order; then <unk> and the end of a document."""

  name, cuttable = "char", True

  def __init__(self, characters: str):
    self.characters = characters
    self.unk_id = len(characters)
    self.eot_id = self.start_id = self.unk_id + 1
    self.vocab_size = self.unk_id + 2

  @functools.cached_property
  def _table(self) -> np.ndarray:
    table = np.full(0x110000, self.unk_id, np.int32)
    table[[ord(c) for c in self.characters]] = np.arange(self.unk_id)
    return table

  def encode(self, text: str) -> list[int]:
    return self.encode_batch([text])[0].tolist()

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self._table[np.frombuffer(text.encode("utf-32-le"), "<u4")] for text in texts]

  def encode_with_spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    return self.encode_batch([text])[0], each_character(np.arange(len(text)))

  def decode(self, ids: Iterable[int]) -> str:
    names = [*self.characters, UNK, ""]
    return "".join(names[i] for i in ids)

  def token(self, number: int) -> str:
    return [*self.characters, UNK, "<end>"][number]

  def state(self) -> dict:
    return {"characters": self.characters}


class WordTokenizer:
  """Words between blanks; <start>, <end>, <unk> are 0, 1, 2. `decode` joins with one blank."""

  name, cuttable = "word", True
  start_id, eot_id, unk_id = 0, 1, 2
  SPECIAL = ("<start>", "<end>", UNK)

  def __init__(self, words: Sequence[str]):
    self.words = [*self.SPECIAL, *words]
    self.vocab_size = len(self.words)
    self._ids = {word: i for i, word in enumerate(self.words) if i >= len(self.SPECIAL)}

  def encode(self, text: str) -> list[int]:
    return [self._ids.get(word, self.unk_id) for word in text.split()]

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array(self.encode(text), np.int32) for text in texts]

  def encode_with_spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    return self.encode_batch([text])[0], np.array(spans, np.int32).reshape(-1, 2)

  def decode(self, ids: Iterable[int]) -> str:
    return " ".join(self.words[i] for i in ids if i not in (self.start_id, self.eot_id))

  def token(self, number: int) -> str:
    return self.words[number]

  def state(self) -> dict:
    return {"words": self.words[len(self.SPECIAL) :]}


def each_character(places: np.ndarray) -> np.ndarray:
  """int32 [n, 2]: spans of one character each."""
  return np.stack([places, places + 1], axis=1).astype(np.int32)


def train_characters(cfg: DataConfig, texts: Iterable[str], n_bytes: int) -> CharTokenizer:
  """Every character of the texts."""
  characters: set[str] = set()
  for text in texts:
    characters.update(text)
  return CharTokenizer("".join(sorted(characters)))


def train_words(cfg: DataConfig, texts: Iterable[str], n_bytes: int) -> WordTokenizer:
  """Words seen data.min_freq times or more, the most frequent first."""
  counts: Counter[str] = Counter()
  for text in texts:
    counts.update(text.split())
  for special in WordTokenizer.SPECIAL:
    counts.pop(special, None)
  frequent = [(-count, word) for word, count in counts.items() if count >= cfg.min_freq]
  return WordTokenizer([word for _, word in sorted(frequent)])
