"""Tokens of one side of a corpus on disk: a folder of plain arrays that are mapped, not read.

tokens.bin      uint16 or uint32; each document's tokens, then the separator
offsets.bin     int64 [documents + 1], in tokens
doc_bytes.bin   int64 [documents], UTF-8 bytes of the cleaned text
doc_hashes.bin  uint64 [documents], of the cleaned text
marks.bin       int64 [n, 2], (tokens, bytes) before each border inside a long document
store.json      counts, and a fingerprint of tokens.bin and doc_bytes.bin
"""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from lm.config.errors import ConfigError
from lm.data import tokenizers
from lm.data.spool import Spool

CHUNK_BYTES = 1 << 21  # text tokenised at a time


class TokenStore(NamedTuple):
  """Tokenised documents of one side. `tokens` and the other arrays are maps of files."""

  name: str
  tokens: np.ndarray  # uint16 or uint32 [n_tokens]
  offsets: np.ndarray  # int64 [n_docs + 1]
  doc_bytes: np.ndarray  # int64 [n_docs]
  marks: np.ndarray  # int64 [n, 2]
  n_tokens: int  # separators included
  n_docs: int
  n_bytes: int  # of the cleaned text, separators not counted
  eot_id: int
  start_id: int
  fingerprint: str

  def n_text_tokens(self, n_tokens: int) -> int:
    """Of the first n tokens, those that spell text: all but the separators.

    Bits per byte are the bits of these, by the bytes of the text they spell; a separator has none.
    """
    return n_tokens - (int(np.searchsorted(self.offsets, n_tokens, side="right")) - 1)


def write_store(
  folder: pathlib.Path,
  spool: Spool,
  side: int,
  numbers: Iterable[int],
  tokenizer: tokenizers.Tokenizer,
  advance: Callable,
) -> None:
  """Tokenises the documents of `spool` numbered `numbers` into a new store.

  Raises: ConfigError if the tokenizer gives its separator from text, which would split a document.
  """
  folder.mkdir()
  dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
  n_tokens, n_bytes, n_docs = 0, 0, 0
  tokens_hash, bytes_hash = hashlib.blake2b(digest_size=8), hashlib.blake2b(digest_size=8)
  with contextlib.ExitStack() as stack:
    tokens_file, offsets_file, bytes_file, marks_file, hashes_file = (
      stack.enter_context(open(folder / f"{name}.bin", "wb"))
      for name in ("tokens", "offsets", "doc_bytes", "marks", "doc_hashes")
    )
    offsets_file.write(np.int64(0).tobytes())
    for batch in _batches_of_pieces(spool, side, numbers, tokenizer.cuttable):
      encoded = tokenizer.encode_batch([piece.decode() for piece, *_ in batch])
      parts, offsets, doc_bytes, marks, hashes, before = [], [], [], [], [], n_bytes
      for (piece, size, text_hash), ids in zip(batch, encoded, strict=True):
        parts.append(ids)
        n_tokens += len(ids)
        n_bytes += len(piece)
        if size is None:  # the document goes on
          marks.append((n_tokens, n_bytes))
          continue
        parts.append([tokenizer.eot_id])
        n_tokens += 1
        offsets.append(n_tokens)
        doc_bytes.append(size)
        hashes.append(text_hash)
      tokens = np.concatenate(parts).astype(dtype)
      if np.count_nonzero(tokens == tokenizer.eot_id) != len(offsets):
        raise ConfigError(
          f"data.separator={tokenizer.token(tokenizer.eot_id)}: the tokenizer gives it from text, "
          "which would split documents; choose another token"
        )
      for array, file, digest in (
        (tokens, tokens_file, tokens_hash),
        (np.array(doc_bytes, "<i8"), bytes_file, bytes_hash),
      ):
        file.write(array.data)
        digest.update(array.data)
      offsets_file.write(np.array(offsets, "<i8").data)
      marks_file.write(np.array(marks, "<i8").data)
      hashes_file.write(np.array(hashes, "<u8").data)
      n_docs += len(offsets)
      advance(n_bytes - before)
  meta = {
    "dtype": dtype.str,
    "n_tokens": n_tokens,
    "n_docs": n_docs,
    "n_bytes": n_bytes,
    "eot_id": tokenizer.eot_id,
    "start_id": tokenizer.start_id,
    "fingerprint": tokens_hash.hexdigest() + bytes_hash.hexdigest(),
  }
  (folder / "store.json").write_text(json.dumps(meta))


def _batches_of_pieces(
  spool: Spool, side: int, numbers: Iterable[int], cuttable: bool
) -> Iterator[list[tuple[bytes, int | None, int]]]:
  """Lists of about CHUNK_BYTES of (piece, bytes of the document if the piece ends it or None, its
  hash)."""
  batch, room = [], CHUNK_BYTES
  for number in numbers:
    left = size = spool.size(number, side)
    text_hash = spool.text_hash(number, side)
    for piece in spool.pieces(number, side, cuttable):
      left -= len(piece)
      batch.append((piece, size if left == 0 else None, text_hash))
      room -= len(piece)
      if room <= 0:
        yield batch
        batch, room = [], CHUNK_BYTES
  if batch:
    yield batch


def open_store(folder: pathlib.Path, name: str) -> TokenStore:
  """The store that `write_store` wrote; lm/data/folders.py has checked that it is whole."""
  meta = json.loads((folder / "store.json").read_text(encoding="utf-8"))
  arrays = {
    "tokens": _map(folder, "tokens", meta.pop("dtype")),
    "offsets": _map(folder, "offsets", "<i8"),
    "doc_bytes": _map(folder, "doc_bytes", "<i8"),
    "marks": _map(folder, "marks", "<i8").reshape(-1, 2),
  }
  return TokenStore(name=name, **arrays, **meta)


def doc_hashes(folder: pathlib.Path) -> np.ndarray:
  """uint64 [n_docs]: equal for documents of equal text."""
  return _map(folder, "doc_hashes", "<u8")


def _map(folder: pathlib.Path, field: str, dtype: str) -> np.ndarray:
  path = folder / f"{field}.bin"
  # Plain views: slicing a memmap object is several times slower. An empty file cannot be mapped.
  if not path.stat().st_size:
    return np.zeros(0, dtype)
  return np.memmap(path, dtype, "r").view(np.ndarray)
