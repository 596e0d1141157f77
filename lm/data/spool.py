"""The cleaned documents of a corpus in one file on disk, and which side of the split each is on.

A corpus is read once, into the spool; splitting, training the tokenizer and tokenising then work
from it in any order, in memory that does not depend on the corpus. (Dropping duplicates, cutting a
tail and ordering the validation set take about 20 bytes a document while they run.)
"""

import hashlib
import pathlib
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from lm.config.schema import DataConfig
from lm.data import cleaning
from lm.data.near_duplicates import repeats

TRAIN, VAL = 1, 2  # sides of the split, bits: the document that a tail split cuts is on both
RECORD = np.dtype([("end", "<i8"), ("chars", "<i8"), ("hash", "<u8"), ("source", "<i4")])
CHUNK = 1 << 16  # documents, or bytes, handled at a time
PIECE_BYTES = 1 << 16  # from which on a document is cut for tokenising
# A character that is no blank (blanks beyond ASCII begin with c2, e1, e2 or e3), then a blank.
_BORDER = re.compile(rb"(?:[!-~]|[\xc3-\xdf][\x80-\xbf]|[\xe4-\xef][\x80-\xbf]{2})[ \n]")


class Spool:
  """Documents in `folder`: text.bin, UTF-8 back to back, and docs.bin, a RECORD for each."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.counts: Counter[str] = Counter()
    self.text = np.zeros(0, np.uint8)
    self.docs = np.zeros(0, RECORD)
    self.sides = np.zeros(0, np.uint8)
    self.cut_bytes: dict[int, int] = {}  # document on both sides -> bytes of its training part

  def write(
    self, sources: Iterable[tuple[int, Iterable[str]]], cfg: DataConfig, advance: Callable
  ) -> None:
    """Cleans and stores the documents of (source number, documents) pairs, source by source."""
    end, pack = 0, struct.Struct("<qqQi").pack
    with open(self.folder / "text.bin", "wb") as text, open(self.folder / "docs.bin", "wb") as docs:
      for number, documents in sources:
        for document in cleaning.cleaned(documents, cfg, self.counts):
          raw = document.encode()
          end += len(raw)
          text.write(raw)
          docs.write(pack(end, len(document), _hash(raw), number))
          advance(len(raw))
    # Plain views of the maps: indexing a memmap object is several times slower.
    if end:
      self.text = np.memmap(self.folder / "text.bin", np.uint8, "r").view(np.ndarray)
      self.docs = np.memmap(self.folder / "docs.bin", RECORD, "r").view(np.ndarray)

  def split(
    self,
    val_sources: set[int],
    held_out: set[int],
    cfg: DataConfig,
    advance: Callable = lambda n_bytes: None,
  ) -> None:
    """Puts every document on a side: `val_sources` are validation, a part of `held_out` is too.

    By documents: those with hash / 2^64 < val_fraction, so that other documents change nothing.
    By tail: the last val_fraction of each source's characters.

    Args:
      advance: told of the bytes of each document that is compared with those before it.
    """
    n = len(self.docs)
    if n:
      with open(self.folder / "sides.bin", "wb") as file:  # a map of a file with holes would be
        for start in range(
          0, n, CHUNK
        ):  # written to where the disk has no room, and the process die
          file.write(bytes(min(CHUNK, n - start)))
      self.sides = np.memmap(self.folder / "sides.bin", np.uint8, "r+")
    threshold = np.uint64(int(cfg.val_fraction * 2**64))
    for start in range(0, n, CHUNK):
      docs = self.docs[start : start + CHUNK]
      val = np.isin(docs["source"], list(val_sources))
      if cfg.val_split == "documents":
        val |= np.isin(docs["source"], list(held_out)) & (docs["hash"] < threshold)
      self.sides[start : start + CHUNK] = np.where(val, VAL, TRAIN)
    if cfg.drop_duplicates and n:
      first = np.unique(self.docs["hash"], return_index=True)[1]
      repeated = np.ones(n, bool)
      repeated[first] = False
      self.sides[repeated] = 0
      self.counts["duplicate"] = int(repeated.sum())
    if cfg.near_duplicates is not None:
      self._drop_near(cfg.near_duplicates, advance)
    if cfg.val_split == "tail":
      for source in held_out:
        self._cut_tail(source, cfg.val_fraction)

  def _drop_near(self, threshold: float, advance: Callable) -> None:
    numbers = np.flatnonzero(self.sides).tolist()

    def text_of(index: int) -> str:
      start, stop = self._span(numbers[index], TRAIN)
      return self.text[start:stop].tobytes().decode()

    def texts() -> Iterator[str]:
      for index, number in enumerate(numbers):
        yield text_of(index)
        advance(self.size(number, TRAIN))

    again = repeats(texts(), text_of, threshold)
    self.sides[np.array(numbers, int)[again]] = 0
    self.counts["near_duplicate"] += int(again.sum())

  def _cut_tail(self, source: int, val_fraction: float) -> None:
    docs = np.flatnonzero((self.docs["source"] == source) & (self.sides > 0))
    ends = np.cumsum(self.docs["chars"][docs])  # in characters
    if not len(docs):
      return
    cut = int(ends[-1] * (1 - val_fraction))
    at = int(np.searchsorted(ends, cut))  # the document that holds character number `cut`
    self.sides[docs[at + 1 :]] = VAL
    doc, kept = int(docs[at]), cut - (int(ends[at - 1]) if at else 0)
    if cut < ends[at]:
      start, stop = self._span(doc, TRAIN | VAL)
      self.sides[doc] = TRAIN | VAL if kept else VAL
      self.cut_bytes[doc] = _byte_of_character(self.text[start:stop], kept)

  def numbers(self, side: int, source: int | None = None) -> Iterator[int]:
    """Document numbers on a side, in the order they were read, of one source or of all."""
    for start in range(0, len(self.docs), CHUNK):
      chosen = (self.sides[start : start + CHUNK] & side) > 0
      if source is not None:
        chosen &= self.docs["source"][start : start + CHUNK] == source
      yield from (start + np.flatnonzero(chosen)).tolist()

  def numbers_by_hash(self, side: int) -> list[int]:
    """Document numbers on a side in the order of their hashes: a fair sample comes first."""
    chosen = np.flatnonzero(self.sides & side)
    return chosen[np.argsort(self.docs["hash"][chosen], kind="stable")].tolist()

  def n_bytes(self, side: int) -> int:
    """UTF-8 bytes on a side."""
    total, end = 0, 0
    for start in range(0, len(self.docs), CHUNK):
      sizes = np.diff(self.docs["end"][start : start + CHUNK], prepend=end)
      total += int(sizes[(self.sides[start : start + CHUNK] & side) > 0].sum())
      end = int(self.docs["end"][min(start + CHUNK, len(self.docs)) - 1])
    for doc, cut in self.cut_bytes.items():
      total -= self.size(doc, VAL) if side == TRAIN else cut
    return total

  def size(self, number: int, side: int) -> int:
    """UTF-8 bytes of a document, or of its part on one side."""
    start, stop = self._span(number, side)
    return stop - start

  def text_hash(self, number: int, side: int) -> int:
    """Hash of a document, or of its part on one side."""
    if number not in self.cut_bytes:
      return int(self.docs["hash"][number])
    start, stop = self._span(number, side)
    return _hash(self.text[start:stop])

  def pieces(self, number: int, side: int, cut: bool = True) -> Iterator[bytes]:
    """A document, or its part on one side; if `cut`, in pieces of little more than PIECE_BYTES.

    Cuts are before a blank that follows no blank. There every cuttable tokenizer begins a new token
    whatever stands before: words end, and GPT-2's pattern looks ahead only among blanks.
    """
    start, stop = self._span(number, side)
    while cut and stop - start > PIECE_BYTES:
      border = _BORDER.search(self.text, start + PIECE_BYTES, stop)
      if border is None:
        break
      yield self.text[start : border.end() - 1].tobytes()
      start = border.end() - 1
    yield self.text[start:stop].tobytes()

  def _span(self, number: int, side: int) -> tuple[int, int]:
    start = int(self.docs["end"][number - 1]) if number else 0
    stop = int(self.docs["end"][number])
    if number in self.cut_bytes:
      cut = start + self.cut_bytes[number]
      return (start, cut) if side == TRAIN else (cut, stop)
    return start, stop


def _hash(raw: bytes | np.ndarray) -> int:
  return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")


def _byte_of_character(raw: np.ndarray, n: int) -> int:
  """Where character number `n` of UTF-8 text begins."""
  for start in range(0, len(raw), CHUNK):
    begins = np.flatnonzero(raw[start : start + CHUNK] & 0xC0 != 0x80)
    if n < len(begins):
      return start + int(begins[n])
    n -= len(begins)
  return len(raw)
