"""Which token ends a document, and which is read before its first one, by a tokenizer's own files.

Asked one after another, until one names the token:
  data.separator and data.start
  tokenizer_config.json and special_tokens_map.json beside it: eos_token (else sep_token), bos_token
    (else cls_token, unless add_bos_token is false)
  the post-processor of tokenizer.json: what it puts after and before a text
  generation_config.json and config.json beside it: eos_token_id, bos_token_id
  the added tokens of tokenizer.json that are flagged special, by name
A name in the ordinary vocabulary says nothing: "<s>" is a tag of web pages too.
"""

import difflib
import json
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from lm.config.errors import ConfigError
from lm.config.schema import DataConfig

MAPS = ("tokenizer_config.json", "special_tokens_map.json")
MODEL_CONFIGS = ("generation_config.json", "config.json")
SIDE_FILES = (*MAPS, *MODEL_CONFIGS)
# Letters of the names that special tokens have, in order of preference: <|end_of_text|>, </s>, [SEP].
ENDS = (
  "endoftext",
  "endofdocument",
  "/s",
  "eos",
  "eostoken",
  "endofsentence",
  "end",
  "sep",
  "imend",
)
STARTS = (
  "beginoftext", "startoftext", "s", "bos", "bostoken", "beginofsentence", "start", "cls",
)  # fmt: skip
# What earlier versions looked for, in the whole vocabulary.
OLD_ENDS = (
  "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<end>", "[SEP]", "<|im_end|>",
)  # fmt: skip
OLD_STARTS = ("<|begin_of_text|>", "<s>", "<bos>", "<start>", "[CLS]")
LISTED = 12  # tokens named in a message


class Special(NamedTuple):
  """The two tokens; start None = the separator. `origin` says who named the separator."""

  separator: str
  start: str | None
  origin: str


class Named(NamedTuple):
  """What one file says; None = nothing, and for `start` "" = that there is none."""

  origin: str
  end: str | None
  start: str | None


def choose(
  cfg: DataConfig,
  definition: Mapping,
  vocab: Mapping[str, int],
  folder: pathlib.Path,
) -> Special:
  """The special tokens of a tokenizer.

  Args:
    definition: content of tokenizer.json, or as much of it as there is.
    vocab: token -> id, added tokens included.
    folder: where the files beside it are.

  Raises: ConfigError: nothing names a separator; a file or key names what is no token.
  """
  end = _asked("separator", cfg.separator, vocab, definition)
  start = _asked("start", cfg.start, vocab, definition)
  origin = None if end is None else "data.separator"
  if end is None or start is None:
    for named in _evidence(definition, vocab, folder):
      if end is None and named.end is not None:
        end, origin = _known(named.end, named.origin, vocab), named.origin
      if start is None and named.start is not None:
        start = named.start and _known(named.start, named.origin, vocab)
      if end is not None and start is not None:
        break
  if end is None:
    raise ConfigError(
      "data.separator=None: nothing in the tokenizer's files names the token that ends a document; "
      f"name one ({_listed(definition) or 'it has no special tokens'})"
    )
  return Special(end, start or None, origin)


def by_old_names(vocab: Mapping[str, int]) -> tuple[str, str] | None:
  """(separator, start) as versions without data.separator took them, from any vocabulary."""
  ends = [name for name in OLD_ENDS if name in vocab]
  if not ends:
    return None
  return ends[0], next((name for name in OLD_STARTS if name in vocab), ends[0])


def _asked(
  key: str, token: str | None, vocab: Mapping[str, int], definition: Mapping
) -> str | None:
  if token is not None and token not in vocab:
    close = difflib.get_close_matches(token, vocab, n=1)
    remedy = f"did you mean {close[0]}?" if close else _listed(definition) or "check it"
    raise ConfigError(f"data.{key}={token}: is no token of data.tokenizer_path; {remedy}")
  return token


def _known(token: str, origin: str, vocab: Mapping[str, int]) -> str:
  if token not in vocab:
    raise ConfigError(
      f"data.separator=None: {origin} names the special token {token!r}, which the tokenizer does "
      "not have; set data.separator and data.start"
    )
  return token


def _evidence(
  definition: Mapping, vocab: Mapping[str, int], folder: pathlib.Path
) -> Iterator[Named]:
  mapped = False
  for name in MAPS:
    said = _read(folder / name)
    end = _content(said.get("eos_token")) or _content(said.get("sep_token"))
    start = _content(said.get("bos_token")) or _content(said.get("cls_token"))
    if said.get("add_bos_token") is False:
      start = ""
    mapped |= end is not None
    yield Named(name, end, start)
  before, after = _template(definition.get("post_processor"))
  yield Named("the post-processor", after, before)
  if mapped:
    yield Named(MAPS[0], None, "")  # a map without a start token says that there is none
  names = {number: token for token, number in vocab.items()}
  for name in MODEL_CONFIGS:
    said = _read(folder / name)
    ids = [_first(said.get(key)) for key in ("eos_token_id", "bos_token_id")]
    yield Named(name, *(names.get(number) for number in ids))
  specials = {_letters(token): token for token in reversed(_specials(definition))}
  end = next((specials[name] for name in ENDS if name in specials), None)
  start = next((specials[name] for name in STARTS if name in specials), None)
  yield Named("its special tokens", end, start)


def _read(path: pathlib.Path) -> Mapping:
  """A JSON object; {} if there is no such file."""
  try:
    said = json.loads(path.read_text(encoding="utf-8"))
  except (FileNotFoundError, NotADirectoryError):
    return {}
  except (OSError, ValueError, RecursionError) as error:
    reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:100]
    raise ConfigError(
      f"data.separator=None: {path} cannot be read ({reason}); mend it, or set data.separator and "
      "data.start"
    ) from None
  return said if isinstance(said, dict) else {}


def _content(token: object) -> str | None:
  """Tokens are written as strings or as objects with a `content`."""
  if isinstance(token, Mapping):
    token = token.get("content")
  return token if isinstance(token, str) and token else None


def _first(ids: object) -> object:
  ids = ids[0] if isinstance(ids, list) and ids else ids
  return ids if isinstance(ids, int) else None


def _template(processor: object) -> tuple[str | None, str | None]:
  """(token before a text, token after it) of a post-processor."""
  if not isinstance(processor, Mapping):
    return None, None
  kind = processor.get("type")
  if kind == "Sequence":
    found = [_template(inner) for inner in processor.get("processors") or []]
    before = next((pair[0] for pair in found if pair[0]), None)
    return before, next((pair[1] for pair in found if pair[1]), None)
  if kind in ("BertProcessing", "RobertaProcessing"):
    return processor["cls"][0], processor["sep"][0]
  if kind != "TemplateProcessing":
    return None, None
  before, after, seen = [], [], False
  for item in processor.get("single") or []:
    if "Sequence" in item:
      seen = True
    else:
      name = item["SpecialToken"]["id"]
      tokens = processor["special_tokens"][name]["tokens"]
      (after if seen else before).append(tokens[0])
  return before[0] if before else None, after[-1] if after else None


def _specials(definition: Mapping) -> list[str]:
  added = definition.get("added_tokens") or []
  return [token["content"] for token in added if token.get("special")]


def _listed(definition: Mapping) -> str:
  specials = _specials(definition)
  more = ", ..." if len(specials) > LISTED else ""
  return f"its special tokens: {', '.join(specials[:LISTED])}{more}" if specials else ""


def _letters(token: str) -> str:
  """ "endoftext" of "<|end_of_text|>": letters of a name, and the slash of an end tag."""
  return re.sub(r"[^a-z/]", "", token.lower())
