"""Conversations with a mask of what is answered: JSON lines {"messages": [{"role", "content"}, ...]}.

A template turns a conversation into text. ChatML writes each message as

    <|im_start|>ROLE
    CONTENT<|im_end|>

and "tokenizer" is the chat template in the tokenizer's own files, rendered in jinja2's sandbox. The template
sees a mark in place of each content, and contents are tokenised as plain text: nothing that stands in a
message can become a special token. What counts in the loss are the contents of the role "assistant" and
what the template writes after them up to the token that ends the turn.

Conversations are packed once, the longest first into the fullest row that has room, and never see each other;
batch `step` is a function of (data config, seed, step). All of them are held in memory.
"""

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.config.errors import ConfigError, number_of
from lm.config.schema import Config
from lm.data import cleaning, order, tokenizers
from lm.data.sources import parse_spec, split_entry
from lm.data.sources.digest import hash_of
from lm.data.sources.paths import find_files
from lm.data.sources.readers.compression import detect, open_file

CHATML = ("<|im_start|>", "<|im_end|>")
ROLES = ("system", "user", "assistant", "tool")
OPEN, CLOSE = (
  "\ue000",
  "\ue001",
)  # of a mark that stands for a content; private characters of Unicode
UNCOUNTED, TEXT, MARK = 0, 1, 2  # of a token: not in the loss; answered text; what ends an answer
TAG = 11  # of this kind's draws

Template = Callable[[Sequence[Mapping[str, str]]], str]


class Side(NamedTuple):
  """Tokenised conversations."""

  name: str
  ids: list[np.ndarray]  # int32, one array a conversation
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
      digest.update(ids.tobytes() + counted.tobytes() + b"|")
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
  hashed = [hashlib.blake2b(ids.tobytes(), digest_size=4).digest() for ids in whole.ids]
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
  template = find_template(cfg)
  ids, counted, sizes, dropped = [], [], [], 0
  for spec in specs:
    for place, messages in _read(spec, key):
      found = tokenise(messages, template, tokenizer, chatml=cfg.objective.template == "chatml")
      tokens, mask, size = found
      if len(tokens) > cfg.model.seq_len:
        if cfg.objective.too_long == "refuse":
          raise ConfigError(
            f"{key}={spec}: {place} has {number_of(len(tokens), 'token')} and "
            f"model.seq_len={cfg.model.seq_len}; "
            "raise it, or set objective.too_long to cut or drop"
          )
        if cfg.objective.too_long == "drop":
          dropped += 1
          continue
        tokens, mask = tokens[: cfg.model.seq_len], mask[: cfg.model.seq_len]
        size = min(size, bytes_of(tokens[mask == TEXT], tokenizer))
      if not mask.any():
        dropped += 1  # cut before its first answer, or without one
        continue
      ids.append(tokens)
      counted.append(mask)
      sizes.append(size)
  if not ids:
    raise ConfigError(
      f"{key}={','.join(specs)}: holds no conversation with an answer; check the files"
    )
  return Side(name, ids, counted, sizes, dropped)


def tokenise(
  messages: Sequence[Mapping[str, str]], template: Template, tokenizer: Any, chatml: bool
) -> tuple[np.ndarray, np.ndarray, int]:
  """(ids, what counts, bytes of the answers) of one conversation.

  Args:
    chatml: its two markers are markers even where the tokenizer has no tokens for them.
  """
  marked = [{**m, "content": f"{OPEN}{i}{CLOSE}"} for i, m in enumerate(messages)]
  text = template(marked)
  specials = special_ids(tokenizer)
  markers = sorted({*specials, *(CHATML if chatml else ())}, key=len, reverse=True)
  start = tokenizer.token(tokenizer.start_id) if tokenizer.start_id != tokenizer.eot_id else None
  if start and text.startswith(start):
    text = text.removeprefix(start)  # every row begins with it
  pieces = [
    p for p in re.split(f"({OPEN}\\d+{CLOSE}|{'|'.join(map(re.escape, markers))})", text) if p
  ]
  ids, counted, size, ending = [], [], 0, False
  for piece in pieces:
    kind = MARK if ending else UNCOUNTED
    if piece[0] == OPEN:
      message = messages[int(piece[1:-1])]
      ending = message["role"] == "assistant"
      kind = TEXT if ending else UNCOUNTED
      found = tokenizer.encode(message["content"])
      size += len(message["content"].encode()) if ending else 0
    elif piece in specials:
      found, ending = [specials[piece]], False
    else:
      found = tokenizer.encode(piece)
      ending = ending and piece not in markers
    ids += found
    counted += [kind] * len(found)
  return np.array(ids, np.int32), np.array(counted, np.int8), size


def bytes_of(ids: np.ndarray, tokenizer: Any) -> int:
  """UTF-8 bytes that tokens stand for; those of a character that is cut in two are left out."""
  return len(tokenizer.decode(ids.tolist()).rstrip("\ufffd").encode())


def special_ids(tokenizer: Any) -> dict[str, int]:
  """{how it is written: id} of the tokens that no text becomes."""
  found = {tokenizer.token(i): int(i) for i in (tokenizer.eot_id, tokenizer.start_id)}
  backend = getattr(tokenizer, "backend", None)
  if hasattr(backend, "get_added_tokens_decoder"):
    added = backend.get_added_tokens_decoder().items()
    found |= {token.content: int(i) for i, token in added if token.special}
  return found


def find_template(cfg: Config) -> Template:
  """The template of objective.template.

  Raises:
    ConfigError: the tokenizer's files have none, or one that cannot be rendered.
  """
  if cfg.objective.template == "chatml":
    begin, end = CHATML
    return lambda messages: "".join(f"{begin}{m['role']}\n{m['content']}{end}\n" for m in messages)
  path = pathlib.Path(cfg.data.tokenizer_path or ".").expanduser()
  folder = path if path.is_dir() else path.parent
  settings, text = {}, None
  if (folder / "tokenizer_config.json").is_file():
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    text = settings.get("chat_template")
  if (folder / "chat_template.jinja").is_file():
    text = (folder / "chat_template.jinja").read_text(encoding="utf-8")
  if not isinstance(text, str):
    raise ConfigError(f"objective.template=tokenizer: {folder} has no chat template; use chatml")
  return _from_jinja(text, settings, folder)


def _from_jinja(text: str, settings: Mapping[str, Any], folder: pathlib.Path) -> Template:
  """A template that can call nothing of Python's, whatever stands in it."""
  import jinja2
  from jinja2.sandbox import ImmutableSandboxedEnvironment

  where = f"objective.template=tokenizer: the chat template of {folder}"

  def refuse(message):
    raise jinja2.TemplateError(message)

  named = {}
  for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
    token = settings.get(key)
    token = token.get("content") if isinstance(token, Mapping) else token
    named[key] = token if isinstance(token, str) else ""
  try:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    calls: dict[str, Any] = {"raise_exception": refuse, "range": range}
    calls["namespace"] = jinja2.utils.Namespace
    environment.globals = calls
    compiled = environment.from_string(text)
  except Exception as error:
    raise ConfigError(f"{where} cannot be read ({_line(error)}); use chatml") from None

  def render(messages):
    try:
      found = compiled.render(messages=list(messages), add_generation_prompt=False, **named)
    except Exception as error:
      raise ConfigError(f"{where} refuses a conversation ({_line(error)}); use chatml") from None
    marks = [int(i) for i in re.findall(f"{OPEN}(\\d+){CLOSE}", found)]
    if marks != sorted(set(marks)) or not set(range(len(messages))) - {0} <= set(marks):
      raise ConfigError(f"{where} leaves messages out or says them twice; use chatml")
    return found

  return render


def _read(spec: str, key: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
  """(file:line, messages) of each conversation."""
  kind, name = parse_spec(spec, key)
  if kind != "text":
    raise ConfigError(f"{key}={spec}: chats are JSON lines on disk; use text:GLOB")
  for path in find_files(name, f"{key}={spec}"):
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
    if not isinstance(content, str) or OPEN in content or CLOSE in content:
      raise ConfigError(f"{where} {wanted}")
  return found


def _take(side: Side, name: str, chosen: Sequence[bool]) -> Side:
  pick = lambda values: [v for v, mine in zip(values, chosen, strict=True) if mine]
  return Side(name, pick(side.ids), pick(side.counted), pick(side.bytes), side.n_dropped)


def _line(error: Exception) -> str:
  return " ".join(str(error).split())[:120] or type(error).__name__


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
    self.start_id = chats.tokenizer.start_id
    n = len(side.ids)
    if most is not None:
      sums = np.cumsum([int((c > 0).sum()) for c in side.counted])
      n = max(1, int(np.searchsorted(sums, most, side="right")))
    lengths = [len(ids) for ids in side.ids[:n]]
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
        here = slice(at, at + len(ids))
        whole["targets"][b, here] = ids
        whole["tokens"][b, here] = [self.start_id, *ids[:-1]]
        whole["segments"][b, here] = number
        whole["positions"][b, here] = np.arange(len(ids))
        counted[b, here] = self.side.counted[i]
        at += len(ids)
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
    raise ConfigError("data.weights: conversations are drawn alike; use ()")
  if data.val_split != "documents":
    raise ConfigError(
      f"data.val_split={data.val_split}: conversations are held out by their hash; use documents"
    )
