"""Examples with texts to write: read from files, answered by a run."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from lm.config.command_line import read_text
from lm.config.errors import ConfigError, is_unicode
from lm.config.schema import DataConfig
from lm.data import cleaning
from lm.data.pairs import read_pairs
from lm.data.sources.readers.fields import listed, parse, walk
from lm.data.templates import asks
from lm.models.decoding import room_after
from lm.models.registry import family_of
from lm.runs.load import LoadedRun
from lm.runs.progress import counted

ROWS = 32  # answered together
MOST = 256  # tokens of an answer
ROOM = 64  # tokens that cutting leaves to the answer of a decoder, at most half of its context
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Example(NamedTuple):
  source: str  # as the file has it
  references: tuple[str, ...]  # texts that would be right, at least one


class Writing(NamedTuple):
  """How answers are asked for; the values here are those of a plain greedy answer."""

  beams: int = 1  # of a beam search; 1 = greedy
  length_penalty: float = 1.0  # of that search (lm.models.beam)
  # Stands after every source: a decoder needs one ("TL;DR:", Radford et al. 2019 §3.6).
  cue: str = ""
  stop: str | None = None  # answers end before it
  # Sources longer than the model are cut; so they are where data.truncate says so.
  truncate: bool = False
  # A source and its cue are a user's message, written by the run's chat template.
  chat: bool = False
  system: str | None = None  # what such a conversation begins with


def read_examples(task: str, path: str, cfg: DataConfig, limit: int | None) -> list[Example]:
  """The examples of FILE or SOURCES,TARGETS, the first `limit` of them.

  FILE holds records; data.source_field and data.target_field of the run name their fields. Where a target is
  a list, or data.target_field picks one of a list, all its members are references. SOURCES,TARGETS are two
  files side by side, line by line.

  Raises:
    ConfigError: no such file or field, sides of unequal length, no example.
  """
  where = f"task={task}"
  if pathlib.Path(path).suffix in (".jsonl", ".json"):
    found = _read_json(path, cfg, where)
  else:
    spec = f"parallel:{path.replace(',', '+')}" if "," in path else f"text:{path}"
    plain = dataclasses.replace(cfg, text_format="auto")
    found = [
      Example(source or "", (target or "",)) for source, target in read_pairs(spec, plain, "task")
    ]
  if limit is not None:
    found = found[:limit]
  if not found:
    raise ConfigError(f"{where}:{path}: holds no example; check the file")
  return found


def _read_json(path, cfg, where):
  field = re.sub(r"\[\d+\]$", "", cfg.target_field)  # target[0], one of several: all of them
  sides = (parse(cfg.source_field, "source_field"), parse(field, "target_field"))
  found = []
  for number, line in enumerate(read_text("task", path).splitlines(), start=1):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except (ValueError, RecursionError) as error:
      raise ConfigError(f"{where}:{path}:{number} is no JSON ({error}); mend the line") from None
    if not isinstance(record, dict):
      raise ConfigError(f"{where}:{path}:{number} is no JSON object; mend the line")
    source, target = (
      _texts(walk(record, side, name))
      for side, name in zip(sides, (cfg.source_field, field), strict=True)
    )
    if source is None or target is None:
      key = "source_field" if source is None else "target_field"
      raise ConfigError(
        f"data.{key}={getattr(cfg, key)}: {path}:{number} has no text there; it has: {listed(list(record))}"
      )
    if not all(map(is_unicode, (*source, *target))):
      raise ConfigError(
        f"{where}:{path}:{number} has a lone surrogate, which is no character; mend the line"
      )
    found.append(Example(" ".join(source), target))
  return found


def _texts(value: Any) -> tuple[str, ...] | None:
  """A text or a list of them, as a tuple; None for what is neither."""
  if isinstance(value, str):
    return (value,)
  is_list = isinstance(value, list) and value and all(isinstance(each, str) for each in value)
  return tuple(value) if is_list else None


def answers(run: LoadedRun, sources: Sequence[str], writing: Writing) -> list[str]:
  """What a run writes for each source: the likeliest text of a beam search, or the greedy one without beams.

  Sources are cleaned as the run's data was, and go together by length. What is cut is their end.

  Raises:
    ConfigError: a source that leaves no room for a text, where nothing says to cut it.
  """
  cfg, t = run.cfg.model, run.tokenizer
  texts = [cleaning.clean(source, run.cfg.data) for source in sources]
  asked = lambda text: (
    asks(text + writing.cue, writing.system) if writing.chat else text + writing.cue
  )
  size = lambda text: len(run.reads(asked(text)))
  lengths = [size(text) for text in texts]
  reads_source = family_of(cfg).reads_source
  most = cfg.seq_len if reads_source else cfg.seq_len - 1
  if max(lengths) > most:
    longest = max(range(len(texts)), key=lambda i: lengths[i])
    if not (run.cfg.data.truncate or writing.truncate):
      raise ConfigError(
        f"source={sources[longest][:40]}: is {lengths[longest]} tokens (number {longest + 1}), and the model "
        f"reads {most}{' before it writes' * (not reads_source)}; shorten it, or cut such with --truncate"
      )
    kept = most if reads_source else cfg.seq_len - min(ROOM, cfg.seq_len // 2)
    room = kept - size("")
    texts = [
      _cut(t, text, room) if n > most else text for text, n in zip(texts, lengths, strict=True)
    ]
    lengths = [size(text) for text in texts]
  by_length = sorted(range(len(texts)), key=lambda i: lengths[i])
  found = [""] * len(texts)
  beams = writing.beams if writing.beams > 1 else 0
  for first in counted(range(0, len(texts), ROWS), "writing"):
    chosen = by_length[first : first + ROWS]
    # Of one shape, so that nothing compiles anew.
    rows = chosen + chosen[-1:] * (ROWS - len(chosen))
    longest = max(lengths[i] for i in chosen)
    tokens = min(max(1, room_after(cfg, longest)), MOST)
    prompts = [asked(texts[i]) for i in rows]
    written = run.generate(prompts, tokens, 0.0, 0, beams, writing.length_penalty, writing.stop)
    for i, text in zip(chosen, written, strict=False):
      found[i] = text
  return found


def _cut(tokenizer, text: str, most: int) -> str:
  """The longest beginning of a text that is at most so many tokens, at the border of a token."""
  ids = list(tokenizer.encode(text))[:most]
  while ids:
    cut = tokenizer.decode(ids)
    if len(tokenizer.encode(cut)) <= most:
      return cut
    ids = ids[:-1]
  return ""


def first_sentence(text: str) -> str:
  """Up to the first full stop, question mark or exclamation mark before a blank."""
  return SENTENCE_END.split(text.strip(), maxsplit=1)[0]
