"""UTF-8 and nothing else: what is not UTF-8 is refused with the place of the byte."""

import codecs
from collections.abc import Iterator
from typing import BinaryIO

from lm.config.errors import ConfigError

BOM = b"\xef\xbb\xbf"  # a signature that some editors write at the start of a file
CHUNK = 1 << 20
# First bytes of encodings that say their name; the longer ones first.
MARKS = {
  b"\xff\xfe\x00\x00": "utf-32",
  b"\x00\x00\xfe\xff": "utf-32",
  b"\xff\xfe": "utf-16",
  b"\xfe\xff": "utf-16",
}
NUL_SHARE = 0.2  # of NUL bytes, from which on a file is no UTF-8 text


def decode(raw: bytes, path: str, offset: int | None, where: str) -> str:
  """Text of the bytes at `offset` of a file, without the signature at its start (None: bytes of no file)."""
  begins = offset == 0
  try:
    return raw.decode("utf-8-sig" if begins else "utf-8")
  except UnicodeDecodeError as error:
    at = (offset or 0) + error.start + (len(BOM) if begins and raw.startswith(BOM) else 0)
    raise _not_utf8(path, at, error.object[error.start], where) from None


def text_chunks(file: BinaryIO, path: str, where: str) -> Iterator[str]:
  """The text of a file in pieces of about CHUNK bytes, without the signature at its start."""
  decoder, offset, first = codecs.getincrementaldecoder("utf-8")(), 0, True
  while True:
    raw = file.read(CHUNK)
    pending = len(decoder.getstate()[0])
    try:
      text = decoder.decode(raw, final=not raw)
    except UnicodeDecodeError as error:
      at = offset - pending + error.start
      raise _not_utf8(path, at, error.object[error.start], where) from None
    offset += len(raw)
    if text and first:
      text, first = text.removeprefix("\ufeff"), False
    if text:
      yield text
    if not raw:
      return


def check_utf8(head: bytes, path: str, where: str) -> None:
  """Refuses UTF-16 and UTF-32 by their marks, or by their NUL bytes, which are UTF-8 too."""
  for mark, name in MARKS.items():
    if head.startswith(mark):
      raise ConfigError(
        f"{where}: {path} is not UTF-8 at byte 0 (0x{head[0]:02x}), but {name}; convert it, e.g. "
        f"with iconv -f {name} -t utf-8"
      )
  sample = head[: 1 << 16]
  if len(sample) > 1 and sample.count(0) > NUL_SHARE * len(sample):
    at = sample.index(0)
    guess = "utf-16le" if at % 2 else "utf-16be"
    raise ConfigError(
      f"{where}: {path} is not UTF-8 text at byte {at} (0x00), but looks like {guess}; convert it, "
      f"e.g. with iconv -f {guess} -t utf-8"
    )


def _not_utf8(path: str, at: int, byte: int, where: str) -> ConfigError:
  return ConfigError(
    f"{where}: {path} is not UTF-8 at byte {at} (0x{byte:02x}); "
    "convert it, e.g. with iconv -f latin1 -t utf-8"
  )
