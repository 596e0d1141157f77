"""What stands for spans, by name: sentinels <extra_id_0>, <extra_id_1>, ... and modes [R], [S], [X].

Raffel et al. 2020, arXiv:1910.10683 §3.1.4 (the names are those of its released vocabulary); Tay et al. 2022,
arXiv:2205.05131 §3.1.2. Training reads and writes them as ids beyond the tokenizer's (lm.data.spans); a
prompt and what is generated have them as text. Blanks before a sentinel in a prompt belong to what it stands
for, and those after a mode to nothing: both are left out.
"""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config
from lm.data.spans import of_config, parse
from lm.data.tokenizers import HuggingfaceTokenizer

SENTINEL = re.compile(r"<extra_id_\d+>")
MODE = re.compile(r"\[[^\[\]]+\]")
NO_MODES = ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]")
APART = ("word", "wordpiece")  # kinds of tokenizer that have no token for a blank


def span_names(cfg: Config) -> list[str]:
  """The names of the ids beyond the tokenizer's, in order; [] where the objective takes out no spans.

  A denoiser's mode is written [MODE]; where there are several and none has a mode, [0.15x3], the second of
  these [0.15x3/2].
  """
  denoisers: Sequence[str] = getattr(cfg.objective, "denoisers", ())
  if not denoisers:
    return []
  found = [f"<extra_id_{i}>" for i in range(of_config(cfg).sentinels)]
  if len(denoisers) == 1:
    return found
  if parse(denoisers[0]).mode is not None:
    return found + [f"[{mode}]" for mode in dict.fromkeys(parse(text).mode for text in denoisers)]
  for i, text in enumerate(denoisers):
    times = denoisers[: i + 1].count(text)
    found.append(f"[{text}]" if times == 1 else f"[{text}/{times}]")
  return found


def with_span_names(tokenizer: Any, cfg: Config, imported: bool = False) -> Any:
  """The tokenizer of a run with the names of what stands for spans; itself where there are none.

  Args:
    cfg: resolved.
    imported: whether the run is somebody else's model: its tokenizer then has the names among its added
      tokens, or none has.
  """
  if not getattr(cfg.objective, "denoisers", ()):
    return tokenizer
  if not imported:
    return SpanTokenizer(tokenizer, span_names(cfg))
  if not isinstance(tokenizer, HuggingfaceTokenizer):
    return tokenizer
  definition, read = json.loads(tokenizer.definition), False
  ends = (tokenizer.token(tokenizer.eot_id), tokenizer.token(tokenizer.start_id))
  for added in definition.get("added_tokens") or []:
    name = added["content"]
    mode = MODE.fullmatch(name) and name not in (*NO_MODES, *ends)
    if SENTINEL.fullmatch(name) or mode:
      added["special"], read = False, True  # special ones are text in a text, and are not written
  return HuggingfaceTokenizer(json.dumps(definition), *ends) if read else tokenizer


class SpanTokenizer:
  """A tokenizer whose ids go on with named ones, which `encode` finds in a text and `decode` writes."""

  def __init__(self, tokenizer: Any, names: Sequence[str]):
    self._tokenizer, self._names = tokenizer, list(names)
    self._first = tokenizer.vocab_size
    self.vocab_size = self._first + len(names)
    self._ids = {name: self._first + i for i, name in enumerate(names)}
    modes = [re.escape(name) for name in names if not SENTINEL.fullmatch(name)]
    self._pattern = re.compile(
      "|".join([rf"\s*(?P<sentinel>{SENTINEL.pattern})", *(rf"{m}\s*" for m in modes)])
    )

  def __getattr__(self, name: str) -> Any:
    if name == "_tokenizer":  # of an object that is not made yet
      raise AttributeError(name)
    return getattr(self._tokenizer, name)

  def encode(self, text: str) -> list[int]:
    """Raises: ConfigError: a sentinel beyond the last that the run has."""
    ids, at = [], 0
    for match in self._pattern.finditer(text):
      name = match.group().strip()
      if name not in self._ids:
        last = [n for n in self._names if SENTINEL.fullmatch(n)][-1]
        raise ConfigError(f"prompt={name}: the last sentinel of this run is {last}; use fewer")
      if match.start() > at:
        ids += list(self._tokenizer.encode(text[at : match.start()]))
      ids.append(self._ids[name])
      at = match.end()
    return ids + list(self._tokenizer.encode(text[at:])) if at < len(text) else ids

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [np.array(self.encode(text), np.int32) for text in texts]

  def decode(self, ids: Iterable[int]) -> str:
    parts, piece = [], []
    for i in map(int, ids):
      if i < self._first:
        piece.append(i)
      else:
        parts += [self._tokenizer.decode(piece), self.token(i)]
        piece = []
    parts.append(self._tokenizer.decode(piece))
    between = " " if self._tokenizer.name in APART else ""
    return between.join(part for part in parts if part)

  def token(self, number: int) -> str:
    own = number < self._first
    return self._tokenizer.token(number) if own else self._names[number - self._first]
