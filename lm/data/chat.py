"""Conversations with a mask of what is answered: JSON lines {"messages": [{"role", "content"}, ...]}.

What counts in the loss are the contents of the role "assistant" and what the template (lm.data.templates)
writes after them up to the token that ends the turn.

Conversations are packed once, the longest first into the fullest row that has room, and never see each other;
batch `step` is a function of (data config, seed, step). All of them are held in memory.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.config.errors import ConfigError, is_unicode, number_of
from lm.config.schema import Config
from lm.data import cleaning, order, tokenizers
from lm.data.sources import files, split_entry
from lm.data.sources.digest import hash_of
from lm.data.sources.readers.compression import detect, open_file
from lm.data.templates import TEXT, bytes_of, find_template, folder_of, tokenise

ROLES = ("system", "user", "assistant", "tool")
TAG = 11  # of this kind's draws


class Side(NamedTuple):
  """Tokenised conversations."""

  name: str
  ids: list[np.ndarray]  # int32, one array a conversation, the first never predicted
  counted: list[np.ndarray]  # int8, UNCOUNTED | TEXT | MARK
  bytes: list[int]  # UTF-8, of answered text
  n_dropped: int

  @property
  def n_tokens(self) -> int:
    """Tokens in the loss."""
    return sum(int((c > 0).sum()) for c in self.counted)

  @property
  def fingerprint(self) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for ids, counted in zip(self.ids, self.counted, strict=True):
      digest.update(ids[1:].tobytes() + counted[1:].tobytes() + b"|")
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Chats:
  """Open conversations."""

  cfg: Config
  tokenizer: Any
  train: Side
  val: Side
  sets: dict[str, str]  # fingerprint of each further set that was read

  @property
  def vocab_size(self) -> int:
    return self.tokenizer.vocab_size

  @property
  def n_units(self) -> int:
    """Answered tokens of one epoch."""
    return self.train.n_tokens


# --- reading --------------------------------------------------------------------------------------


def open_chats(cfg: Config) -> Chats:
  """The conversations of data.sources, tokenised and split by a hash of their tokens.

  Raises:
    ConfigError: with file and line, whatever is amiss.
  """
  if tokenizers.is_trained(cfg.data):
    raise ConfigError(
      f"data.tokenizer={cfg.data.tokenizer}: chats are read with a tokenizer that there is; set "
      "data.tokenizer_path to a run's tokenizer folder, or use byte"
    )
  tokenizer = tokenizers.make_tokenizer(cfg.data)
  whole = read_side(cfg, tokenizer, cfg.data.sources, "train", "data.sources")
  cut = round(cfg.data.val_fraction * 2**32)
  hashed = [hashlib.blake2b(ids[1:].tobytes(), digest_size=4).digest() for ids in whole.ids]
  held = [int.from_bytes(h, "little") < cut for h in hashed]
  train, val = (
    _take(whole, name, [h == v for h in held]) for name, v in (("train", 0), ("val", 1))
  )
  for side in (train, val):
    if not side.ids:
      raise ConfigError(
        f"data.val_fraction={cfg.data.val_fraction}: leaves no conversation of {len(whole.ids)} for "
        f"{side.name}; give more conversations or another fraction"
      )
  return Chats(cfg, tokenizer, train, val, {})


def read_side(cfg: Config, tokenizer: Any, specs: Sequence[str], name: str, key: str) -> Side:
  """The conversations of sources, each "text:GLOB"."""
  template = find_template(cfg.objective.template, folder_of(cfg))
  ids, counted, sizes, dropped, longest = [], [], [], 0, 0
  for spec in specs:
    for place, messages in _read(spec, key):
      tokens, mask, size = tokenise(messages, template, tokenizer)
      longest = max(longest, len(tokens) - 1)
      if len(tokens) - 1 > cfg.model.seq_len:
        if cfg.objective.too_long == "refuse":
          raise ConfigError(
            f"{key}={spec}: {place} has {number_of(len(tokens) - 1, 'token')} and "
            f"model.seq_len={cfg.model.seq_len}; "
            "raise it, or set objective.too_long to cut or drop"
          )
        if cfg.objective.too_long == "drop":
          dropped += 1
          continue
        tokens, mask = tokens[: cfg.model.seq_len + 1], mask[: cfg.model.seq_len + 1]
        size = min(size, bytes_of(tokens[mask == TEXT], tokenizer))
      if not mask.any():
        dropped += 1  # cut before its first answer, or without one
        continue
      ids.append(tokens)
      counted.append(mask)
      sizes.append(size)
  if not ids and longest > cfg.model.seq_len:
    raise ConfigError(
      f"model.seq_len={cfg.model.seq_len}: no conversation of {key}={','.join(specs)} has an answer in so "
      f"few tokens; the longest has {longest}, so raise it"
    )
  if not ids:
    raise ConfigError(
      f"{key}={','.join(specs)}: holds no conversation with an answer; check the files"
    )
  return Side(name, ids, counted, sizes, dropped)


def _read(spec: str, key: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
  """(file:line, messages) of each conversation."""
  for path in files(spec, "chats are JSON lines on disk; use text:GLOB", key):
    with open_file(path, detect(path, f"{key}={spec}"), f"{key}={spec}") as file:
      for number, line in enumerate(file, 1):
        if line.strip():
          place = f"{path}:{number}"
          yield place, _messages(line, f"{key}={spec}: {place}")


def _messages(line: bytes, where: str) -> list[dict[str, str]]:
  wanted = 'must be {"messages": [{"role": text, "content": text}, ...]}; mend the line'
  try:
    messages = json.loads(line)["messages"]
    found = [{"role": m["role"], "content": m["content"]} for m in messages]
  except (ValueError, KeyError, TypeError, RecursionError):
    raise ConfigError(f"{where} {wanted}") from None
  for message in found:
    if message["role"] not in ROLES:
      raise ConfigError(f"{where} has the role {message['role']!r}; use one of {', '.join(ROLES)}")
    content = message["content"]
    if isinstance(content, str) and not is_unicode(content):
      raise ConfigError(f"{where} has a lone surrogate, which is no character; mend the line")
    if not isinstance(content, str):
      raise ConfigError(f"{where} {wanted}")
  return found


def _take(side: Side, name: str, chosen: Sequence[bool]) -> Side:
  pick = lambda values: [v for v, mine in zip(values, chosen, strict=True) if mine]
  return Side(name, pick(side.ids), pick(side.counted), pick(side.bytes), side.n_dropped)


# --- batches --------------------------------------------------------------------------------------


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
  """Conversations of each row: the longest first, each into the fullest row that has room.

  >>> pack([3, 5, 2, 4], 7)
  [[1, 2], [3, 0]]
  """
  rows: list[list[int]] = []
  with_room: dict[int, list[int]] = {}  # room left -> rows
  for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
    room = next((r for r in range(lengths[i], capacity + 1) if with_room.get(r)), None)
    if room is None:
      room = capacity
      with_room.setdefault(room, []).append(len(rows))
      rows.append([])
    row = with_room[room].pop(0)
    rows[row].append(i)
    with_room.setdefault(room - lengths[i], []).append(row)
  return rows


class ChatBatches:
  """Rows of packed conversations; in training permuted anew every epoch, in evaluation in order."""

  def __init__(
    self, chats: Chats, side: Side, cfg: Config, training: bool, most: int | None = None
  ):
    self.side, self.cfg, self.training = side, cfg, training
    self.batch_size = (cfg.train if training else cfg.eval).batch_size or cfg.train.batch_size
    n = len(side.ids)
    if most is not None:
      sums = np.cumsum([int((c > 0).sum()) for c in side.counted])
      n = max(1, int(np.searchsorted(sums, most, side="right")))
    lengths = [len(ids) - 1 for ids in side.ids[:n]]
    self.rows = pack(lengths, cfg.model.seq_len) if cfg.data.pack else [[i] for i in range(n)]
    self.n = n

  @property
  def facts(self) -> dict[str, float]:
    """UTF-8 bytes of the answers, and answered tokens."""
    tokens = sum(int((c > 0).sum()) for c in self.side.counted[: self.n])
    return {"bytes": sum(self.side.bytes[: self.n]), "tokens": tokens}

  def __len__(self) -> int:
    return -(-len(self.rows) // self.batch_size)

  def at(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
    """Batch `step`, arrays [B, L]: tokens, targets, weights, segments (0 = padding), positions.

    In evaluation also text, the weights of answered text alone.
    """
    index = step * self.batch_size + np.arange(self.batch_size)[rows or slice(None)]
    if self.training:
      epoch, index = np.divmod(index, len(self.rows))
      epoch = epoch if self.cfg.data.reshuffle else np.zeros_like(epoch)
      index = order.permute(index, len(self.rows), order.fold(self.cfg.data.seed or 0, TAG, epoch))
    shape = (len(index), self.cfg.model.seq_len)
    whole = {k: np.zeros(shape, np.int32) for k in ("tokens", "targets", "segments", "positions")}
    counted = np.zeros(shape, np.int8)
    for b, row in enumerate(index.tolist()):
      at = 0
      for number, i in enumerate(self.rows[row] if row < len(self.rows) else (), 1):
        ids = self.side.ids[i]
        here = slice(at, at + len(ids) - 1)
        whole["tokens"][b, here], whole["targets"][b, here] = ids[:-1], ids[1:]
        whole["segments"][b, here] = number
        whole["positions"][b, here] = np.arange(len(ids) - 1)
        counted[b, here] = self.side.counted[i][1:]
        at += len(ids) - 1
    batch = whole | {"weights": (counted > 0).astype(np.float32)}
    return batch if self.training else batch | {"text": (counted == TEXT).astype(np.float32)}


def train_chats(chats: Chats, cfg: Config) -> ChatBatches:
  return ChatBatches(chats, chats.train, cfg, training=True)


class ChatSet(NamedTuple):
  """An evaluation set."""

  chats: Chats
  side: Side

  @property
  def fingerprint(self) -> str:
    return self.side.fingerprint


def extra_chats(chats: Chats, entry: str) -> ChatSet:
  name, source, key = split_entry(entry)
  side = read_side(chats.cfg, chats.tokenizer, [source], source, key)
  chats.sets[name] = side.fingerprint
  return ChatSet(chats, side)


def eval_chats(chosen: ChatSet, cfg: Config, most: int | None, stride: int | None) -> ChatBatches:
  if stride is not None:
    raise ConfigError(f"stride={stride}: conversations are read whole; leave it out")
  return ChatBatches(chosen.chats, chosen.side, cfg, training=False, most=most)


def mean_answered(chats: Chats, cfg: Config) -> float:
  """Answered tokens that a row holds on average."""
  return chats.train.n_tokens / len(ChatBatches(chats, chats.train, cfg, training=True).rows)


def describe(chats: Chats) -> dict:
  """What run.json records."""
  sides = {side.name: side for side in (chats.train, chats.val)}
  stores = {
    name: {
      "conversations": len(side.ids),
      "tokens": side.n_tokens,
      "bytes": sum(side.bytes),
      "fingerprint": side.fingerprint,
    }
    for name, side in sides.items()
  }
  return {
    "fingerprint": hash_of([tokenizers.fingerprint(chats.tokenizer), stores]),
    "tokenizer": tokenizers.describe(chats.tokenizer, tokenizers.special_names(chats.tokenizer)),
    "documents": {"left out": chats.train.n_dropped},
    "sets": dict(chats.sets),
    "stores": stores,
  }


def check_chats(cfg: Config) -> None:
  """ConfigError for settings of running text that conversations do not have."""
  data = cfg.data
  cleaning.check_no_documents(data, "conversations")
  for key in cleaning.KEYS:
    if getattr(data, key):
      raise ConfigError(
        f"data.{key}={getattr(data, key)}: conversations are not cleaned; leave it off"
      )
  for key, only in (("text_unit", "file"), ("text_field", "text"), ("text_format", "auto")):
    if getattr(data, key) != only:
      raise ConfigError(
        f"data.{key}={getattr(data, key)}: conversations are lines of JSON with messages, not texts; "
        f"use {only}"
      )
  if data.weights:
    raise ConfigError(
      f"data.weights={','.join(map(str, data.weights))}: conversations are drawn alike; use ()"
    )
  if data.val_split != "documents":
    raise ConfigError(
      f"data.val_split={data.val_split}: conversations are held out by their hash; use documents"
    )
