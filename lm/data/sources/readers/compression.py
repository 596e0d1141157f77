"""Compressed files: told by their first bytes, opened as plain ones.

gzip, bzip2, xz and lzma are read by the standard library, zstd by Python 3.14 or the package zstandard.
"""

import bz2
import contextlib
import gzip
import io
import lzma
import pathlib
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from lm.config.errors import ConfigError

ZSTD_CHUNK = 1 << 17


def _open_zstd(path: str) -> BinaryIO:
  try:
    from compression import zstd  # Python 3.14

    return zstd.open(path)
  except ImportError:
    import zstandard
  return io.BufferedReader(_ZstdReader(path, zstandard), 1 << 20)


class _ZstdReader(io.RawIOBase):
  """Frames of zstd one after another. (zstandard's own reader takes a cut file for a whole one.)"""

  def __init__(self, path: str, library):
    self._file, self._library = open(path, "rb"), library  # noqa: SIM115
    self._frame, self._left, self._ready = None, b"", b""

  def readable(self) -> bool:
    return True

  def readinto(self, buffer) -> int:
    while not self._ready:
      raw = self._left or self._file.read(ZSTD_CHUNK)
      self._left = b""
      if not raw:
        if self._frame is not None:
          raise EOFError("the last frame is cut")
        return 0
      if self._frame is None:
        self._frame = self._library.ZstdDecompressor().decompressobj()
      self._ready = self._frame.decompress(raw)
      if self._frame.eof:
        self._left, self._frame = self._frame.unused_data, None
    n = min(len(buffer), len(self._ready))
    buffer[:n] = self._ready[:n]
    self._ready = self._ready[n:]
    return n

  def close(self) -> None:
    self._file.close()
    super().close()


COMPRESSIONS = {  # name: (first bytes, suffixes, how one is opened)
  "gzip": ((b"\x1f\x8b",), (".gz", ".gzip"), gzip.open),
  "bzip2": ((b"BZh",), (".bz2",), bz2.open),
  "xz": ((b"\xfd7zXZ\x00",), (".xz",), lzma.open),
  "lzma": ((b"\x5d\x00\x00\x80\x00", b"\x5d\x00\x00\x00\x04"), (".lzma",), lzma.open),
  "zstd": ((b"\x28\xb5\x2f\xfd",), (".zst", ".zstd"), _open_zstd),
}
SUFFIXES = {suffix: name for name, (_, suffixes, _) in COMPRESSIONS.items() for suffix in suffixes}
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


def detect(path: str, where: str) -> str | None:
  """The compression of a file (a key of COMPRESSIONS), None if it is plain.

  Raises: ConfigError if its name has a suffix of compression and its content none.
  """
  with open(path, "rb") as file:
    head = file.read(16)
  found = by_magic(head)
  named = SUFFIXES.get(pathlib.Path(path).suffix.lower())
  if found is None and named is not None:
    raise ConfigError(
      f"{where}: {path} is not a whole {named} file (it begins with {head[:4]!r}); fetch it again"
    )
  return found


def by_magic(head: bytes) -> str | None:
  for name, (marks, _, _) in COMPRESSIONS.items():
    if any(head.startswith(mark) for mark in marks) and (name != "bzip2" or _is_bzip2(head)):
      return name
  skippable = len(head) >= 4 and head[0] & 0xF0 == 0x50 and head[1:4] == b"\x2a\x4d\x18"
  return "zstd" if skippable else None


def _is_bzip2(head: bytes) -> bool:
  """BZh and a digit begin texts too; a block or the end of the stream must follow."""
  return head[3:4].isdigit() and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90")


@contextlib.contextmanager
def open_file(path: str, packed: str | None, where: str) -> Iterator[BinaryIO]:
  """A file's bytes, decompressed.

  Raises: ConfigError on a damaged file, here and in whatever is done with it; a missing package.
  """
  try:
    opener = open if packed is None else COMPRESSIONS[packed][2]
    with opener(path, "rb") if packed != "zstd" else opener(path) as file:
      yield file
  except ImportError:
    raise ConfigError(
      f"{where}: {path} is compressed by zstd, which needs zstandard; pip install zstandard"
    ) from None
  except DAMAGE as error:
    raise _damaged(path, packed, error, where) from None
  except OSError as error:
    if packed is None or error.errno is not None:
      raise
    raise _damaged(path, packed, error, where) from None  # bz2's has no number
  except Exception as error:
    if type(error).__name__ != "ZstdError":  # of whichever library there is
      raise
    raise _damaged(path, packed, error, where) from None


def _damaged(path: str, packed: str | None, error: Exception, where: str) -> ConfigError:
  reason = " ".join(str(error).split())
  return ConfigError(f"{where}: {path} is not a whole {packed} file ({reason}); fetch it again")
