"""SentencePiece models: the file of one, and the pieces it marks as control pieces."""

import functools
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import DataConfig


class SentencePieceTokenizer:
  """A SentencePiece model (Kudo and Richardson 2018, arXiv:1808.06226), its file in hexadecimal.

  The separator and the start token are control pieces, which no text gives.
  """

  name, cuttable = "sentencepiece", False

  def __init__(self, model: str, separator: str | None = None, start: str | None = None):
    self.model = model
    self.vocab_size = self.backend.get_piece_size()
    self.eot_id = self._id("separator", separator, self.backend.eos_id())
    self.start_id = self._id("start", start, self.backend.bos_id())
    if self.eot_id < 0:
      raise ConfigError(
        "data.separator=None: the SentencePiece model has no end-of-sequence piece (</s>); name one "
        f"of its control pieces: {self._control() or 'it has none'}"
      )
    if self.start_id < 0:
      self.start_id = self.eot_id
    self.origin = "the model" if separator is None else "data.separator"
    self._named = {"separator": separator, "start": start}

  @functools.cached_property
  def backend(self):
    import sentencepiece

    return sentencepiece.SentencePieceProcessor(model_proto=bytes.fromhex(self.model))

  def _id(self, key: str, piece: str | None, own: int) -> int:
    if piece is None:
      return own
    number = self.backend.piece_to_id(piece)
    if self.backend.id_to_piece(number) != piece or not self.backend.is_control(number):
      raise ConfigError(
        f"data.{key}={piece}: must be a control piece of the SentencePiece model, which no text "
        f"gives; use one of {self._control()}"
      )
    return number

  def _control(self) -> str:
    pieces = range(self.vocab_size)
    return ", ".join(self.token(i) for i in pieces if self.backend.is_control(i))

  def encode(self, text: str) -> list[int]:
    return self.backend.encode(text)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array(ids, np.int32) for ids in self.backend.encode(list(texts), num_threads=-1)]

  def encode_with_spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    found = self.backend.encode(text, return_type="offset_mapping")
    return np.array(found["ids"], np.int32), np.array(found["offsets"], np.int32).reshape(-1, 2)

  def decode(self, ids: Iterable[int]) -> str:
    return self.backend.decode([int(i) for i in ids if i not in (self.eot_id, self.start_id)])

  def token(self, number: int) -> str:
    return self.backend.id_to_piece(number)

  def state(self) -> dict:
    return {"model": self.model} | {k: v for k, v in self._named.items() if v is not None}


def read_model(cfg: DataConfig, files: Sequence[pathlib.Path]) -> SentencePieceTokenizer:
  return SentencePieceTokenizer(files[0].read_bytes().hex(), cfg.separator, cfg.start)
