"""Conversations as tokens: chat templates, what a model answers, and where its answer ends.

A template turns a conversation into text. ChatML writes each message as

    <|im_start|>ROLE
    CONTENT<|im_end|>

and "tokenizer" is the chat template in the tokenizer's own files, rendered in jinja2's sandbox. What is
written is tokenised as `transformers` does it, from special token to special token, a message together with
the text around it; but nothing that stands in a message can become a special token.

The template sees a mark in place of each content, so that it is known what an answer is. Blanks at the ends
of a content are left out where the template trims them. A template that writes anything else for a content
than for its mark (Qwen 3's, for answers with thoughts in them) is refused in training; where an answer is
asked for, what it writes is read. ChatML follows the token that starts a document; the tokenizer's own
template says itself what a conversation starts with.
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config
from lm.data.tokenizers.library import UNKNOWN

CHATML = ("<|im_start|>", "<|im_end|>")
CHATML_JINJA = (
  "{{ bos_token }}{% for message in messages %}"
  "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SETTINGS, OWN_FILE = "tokenizer_config.json", "chat_template.jinja"
NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"))
# Of a mark that stands for a content; private characters of Unicode.
OPEN, CLOSE = "\ue000", "\ue001"
EDGE = "\u2003"  # a blank at either end of a mark: gone where the template trims
_MARKED = re.compile(f"({EDGE}?){OPEN}(\\d+){CLOSE}({EDGE}?)")
UNCOUNTED, TEXT, MARK = 0, 1, 2  # of a token: not in the loss; answered text; what ends an answer

Conversation = Sequence[Mapping[str, str]]  # messages with a "role" and a "content" each


class Template(NamedTuple):
  """How conversations are written."""

  render: Callable[[Conversation, bool], str]  # (messages, whether an answer is asked for) -> text
  markers: tuple[str, ...] = ()  # no tokenizer cuts them, nor joins them with what is beside
  after_start: bool = False  # whether the token that starts a document comes before it
  where: str = ""  # what errors begin with, of a template that may do anything with a content


class Ending(NamedTuple):
  """What ends an answer; of a template that ends none, neither."""

  ids: tuple[int, ...] = ()  # a special token
  text: str | None = None  # what is written where there is no such token

  @property
  def stops(self) -> tuple[str, ...]:
    """The text, if there is one."""
    return () if self.text is None else (self.text,)


NO_ENDING = Ending()


def tokenise(
  messages: Conversation, template: Template, tokenizer: Any, ask: bool = False
) -> tuple[np.ndarray, np.ndarray, int]:
  """(ids, what counts, bytes of the answers) of one conversation, from its first token on.

  A token counts as the answer where a character of it does.

  Args:
    ask: whether the template goes on to where the next answer begins.
  """
  specials = special_ids(tokenizer)
  pieces = _pieces(messages, template, specials, ask)
  size = sum(len(p.text.encode()) for p in pieces if p.kind == TEXT)
  found = _tokens_at_once(pieces, specials, template, tokenizer)
  if found is None:
    parts = [_tokens_of(run, specials, tokenizer, ask) for run in _runs(pieces)]
    found = tuple(np.concatenate([part[i] for part in parts] or [[]]) for i in (0, 1))
  start = [tokenizer.start_id] if template.after_start else []
  ids = np.concatenate([start, found[0]]).astype(np.int32)
  return ids, np.concatenate([[UNCOUNTED] * len(start), found[1]]).astype(np.int8), size


class _Piece(NamedTuple):
  """A part of a conversation's text."""

  text: str
  kind: int  # UNCOUNTED | TEXT | MARK
  whole: bool = False  # a special token, or a marker


def _pieces(
  messages: Conversation, template: Template, specials: Mapping[str, int], ask: bool
) -> list[_Piece]:
  """A conversation's text, cut at what the template writes of special tokens and markers, and at contents."""
  text, contents = _marked(messages, template, specials, ask)
  markers = sorted({*specials, *template.markers}, key=len, reverse=True)
  found, ending = [], False
  for piece in re.split(f"({OPEN}\\d+{CLOSE}|{'|'.join(map(re.escape, markers))})", text):
    if contents and piece[:1] == OPEN:
      number = int(piece[1:-1])
      ending = messages[number]["role"] == "assistant"
      found.append(_Piece(contents[number], TEXT if ending else UNCOUNTED))
    elif piece:
      found.append(_Piece(piece, MARK if ending else UNCOUNTED, piece in markers))
      ending = ending and piece not in markers
  return [piece for piece in found if piece.text]


def _runs(pieces: Sequence[_Piece]) -> list[list[_Piece]]:
  """Special tokens and markers alone, and what stands between them together."""
  runs: list[list[_Piece]] = []
  for piece in pieces:
    if piece.whole or not runs or runs[-1][-1].whole:
      runs.append([])
    runs[-1].append(piece)
  return runs


def _tokens_at_once(
  pieces: Sequence[_Piece], specials: Mapping[str, int], template: Template, tokenizer: Any
) -> tuple[np.ndarray, np.ndarray] | None:
  """(ids, kinds), special tokens read from the text, as some take blanks beside them along.

  None where a message has one in it, the tokenizer cannot read them, or a marker is none.
  """
  if not hasattr(type(tokenizer), "encode_written") or not {*template.markers} <= {*specials}:
    return None
  text = "".join(piece.text for piece in pieces)
  ids, spans = tokenizer.encode_written(text)
  known = {number: name for name, number in specials.items()}
  read = [
    i
    for i, (begin, end) in zip(ids.tolist(), spans.tolist(), strict=True)
    if i in known and (known[i] not in UNKNOWN or text[begin:end].strip() == known[i])
  ]
  if read != [specials[piece.text] for piece in pieces if piece.whole]:
    return None
  return ids, _kinds(pieces, spans)


def _tokens_of(
  run: Sequence[_Piece], specials: Mapping[str, int], tokenizer: Any, ask: bool
) -> tuple[np.ndarray, np.ndarray]:
  """(ids, kinds) of a run."""
  text = "".join(piece.text for piece in run)
  if run[0].whole and text in specials:
    return np.array([specials[text]]), np.array([run[0].kind])
  if ask:
    ids = tokenizer.encode(text)
    return np.array(ids), np.full(len(ids), UNCOUNTED)
  ids, spans = tokenizer.encode_with_spans(text)
  return ids, _kinds(run, spans)


def _kinds(pieces: Sequence[_Piece], spans: np.ndarray) -> np.ndarray:
  """What tokens count as that stand for these characters, and for those up to the token before."""
  of = np.repeat([p.kind for p in pieces], [len(p.text) for p in pieces])
  ends = np.maximum.accumulate(spans[:, 1])  # the library leaves blanks out of the spans
  starts = np.minimum(spans[:, 0], np.concatenate([[0], ends[:-1]]))
  starts = np.minimum(starts, len(of) - 1)
  ends = np.maximum(ends, starts + 1)
  found = np.full(len(ends), UNCOUNTED, np.int8)
  for kind in (MARK, TEXT):
    before = np.concatenate([[0], np.cumsum(of == kind)])
    found[before[ends] > before[starts]] = kind
  return found


def _marked(
  messages: Conversation, template: Template, specials: Mapping[str, int], ask: bool
) -> tuple[str, list[str]]:
  """(a conversation's text with OPEN number CLOSE in place of each content, the contents as it has them).

  Where an answer is asked for, and the template goes by what messages say: (its text, none).
  """
  shown = [m["content"] != "" or m["role"] == "assistant" for m in messages]  # "" may be left out
  mark = lambda i: f"{EDGE}{OPEN}{i}{CLOSE}{EDGE}" if shown[i] else ""
  text = template.render([{**m, "content": mark(i)} for i, m in enumerate(messages)], ask)
  contents, order = [m["content"] for m in messages], []
  for left, number, right in _MARKED.findall(text):
    i = int(number)
    order.append(i)
    contents[i] = contents[i] if left else contents[i].lstrip()
    contents[i] = contents[i] if right else contents[i].rstrip()
  lacks = {i for i, here in enumerate(shown) if here} - {*order}
  if lacks == {0} and messages[0]["role"] == "system":
    if ask:
      raise ConfigError(f"{template.where} leaves out what the system says; ask without it")
    lacks = set()
  if lacks or order != sorted(set(order)):
    raise ConfigError(f"{template.where} leaves messages out or says them twice; use chatml")
  if template.where:
    real = template.render(messages, ask)
    if _MARKED.sub(lambda mark: contents[int(mark[2])], text) != real:
      if ask and not any(special in m["content"] for m in messages for special in specials):
        return real, []
      raise ConfigError(
        f"{template.where} writes a message otherwise than it stands, by what is in it; use chatml"
      )
  return _MARKED.sub(rf"{OPEN}\2{CLOSE}", text), contents


def asks(text: str, system: str | None = None) -> list[dict[str, str]]:
  """The conversation in which a user says a text first, after what the system says."""
  said = {"system": system, "user": text}
  return [{"role": role, "content": text} for role, text in said.items() if text is not None]


def ending_of(template: Template, tokenizer: Any) -> Ending:
  """What the template writes after an answer, as far as it counts in the loss."""
  turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
  specials = special_ids(tokenizer)
  marks = [piece.text for piece in _pieces(turn, template, specials, False) if piece.kind == MARK]
  special = [specials[text] for text in marks if text in specials]
  if special:
    return Ending((special[0],))
  return Ending((), "".join(marks) or None)


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


def folder_of(cfg: Config) -> pathlib.Path:
  """Where the tokenizer of a config has its files."""
  path = pathlib.Path(cfg.data.tokenizer_path or ".").expanduser()
  return path if path.is_dir() else path.parent


def answers_chats(cfg: Config) -> bool:
  """Whether a run was trained to answer in conversations."""
  return hasattr(cfg.objective, "template")


def template_of_run(workdir: pathlib.Path, cfg: Config) -> Template:
  """The template that a run was trained with, or else the one in the files of its tokenizer.

  Raises:
    ConfigError: it has none.
  """
  name = getattr(cfg.objective, "template", None)
  if name is None and not has_template(workdir / "tokenizer"):
    raise ConfigError(
      f"workdir={workdir}: has no chat template, as it neither learned from conversations nor has one from "
      "its tokenizer; tune it with configs/instruction.py, or leave --chat out"
    )
  return find_template(name or "tokenizer", workdir / "tokenizer")


def jinja_of_run(workdir: pathlib.Path, cfg: Config) -> str | None:
  """The chat template of a run as `transformers` renders it; None where it has none."""
  if getattr(cfg.objective, "template", None) == "chatml":
    return CHATML_JINJA
  return _read(workdir / "tokenizer")[0]


def has_template(folder: pathlib.Path) -> bool:
  """Whether a tokenizer's folder has a chat template."""
  return _read(folder)[0] is not None


def find_template(name: str, folder: pathlib.Path) -> Template:
  """ChatML, or the template in a tokenizer's folder.

  Raises:
    ConfigError: the tokenizer's files have none, or one that cannot be rendered.
  """
  if name == "chatml":
    return Template(_chatml, CHATML, after_start=True)
  text, settings = _read(folder)
  if text is None:
    raise ConfigError(f"objective.template=tokenizer: {folder} has no chat template; use chatml")
  where = f"objective.template=tokenizer: the chat template of {folder}"
  return Template(_from_jinja(text, settings, where), where=where)


def save_template(cfg: Config, folder: pathlib.Path) -> None:
  """Writes the tokenizer's own template into a run's folder, where a run is trained with it."""
  if getattr(cfg.objective, "template", None) == "tokenizer":
    for name in (SETTINGS, OWN_FILE):
      if (file := folder_of(cfg) / name).is_file():
        (folder / name).write_bytes(file.read_bytes())


def _chatml(messages: Conversation, ask: bool) -> str:
  begin, end = CHATML
  said = "".join(f"{begin}{m['role']}\n{m['content']}{end}\n" for m in messages)
  return f"{said}{begin}assistant\n" if ask else said


def _read(folder: pathlib.Path) -> tuple[str | None, dict[str, Any]]:
  """(the template or None, the settings beside it) of a tokenizer's folder."""
  settings, text = {}, None
  if (folder / SETTINGS).is_file():
    try:
      settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
      text = settings.get("chat_template")
    except (ValueError, AttributeError):
      raise ConfigError(
        f"tokenizer={folder / SETTINGS}: is no JSON object; mend the file"
      ) from None
  if isinstance(text, list):  # of several, with a name each
    text = {each.get("name"): each.get("template") for each in text}.get("default")
  if (folder / OWN_FILE).is_file():
    text = (folder / OWN_FILE).read_text(encoding="utf-8")
  return text if isinstance(text, str) else None, settings


def _from_jinja(text: str, settings: Mapping[str, Any], where: str):
  """A template that can call nothing of Python's, whatever stands in it; what it sees is what transformers'
  `apply_chat_template` shows it, without tools, documents and the date of today."""
  import jinja2
  import jinja2.ext
  from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

  class Generation(jinja2.ext.Extension):
    """{% generation %} around what a model writes, for masks of others: it changes nothing of the text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):
      line = next(parser.stream).lineno
      body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
      return jinja2.nodes.CallBlock(self.call_method("written"), [], [], body).set_lineno(line)

    def written(self, caller):
      return caller()

  def refuse(message):
    raise jinja2.TemplateError(message)

  def as_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
      value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )

  named: dict[str, Any] = {"tools": None, "documents": None}
  for key in NAMED:
    token = settings.get(key)
    token = token.get("content") if isinstance(token, Mapping) else token
    if isinstance(token, str):
      named[key] = token
  try:
    environment = ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = as_json  # jinja2's own is for HTML
    calls: dict[str, Any] = {"raise_exception": refuse, "range": safe_range}
    calls |= {"dict": lambda *pairs, **named: dict(*pairs, **named)}
    calls |= {"namespace": jinja2.utils.Namespace, "joiner": jinja2.utils.Joiner}
    calls |= {"cycler": jinja2.utils.Cycler}
    environment.globals = calls
    compiled = environment.from_string(text)
  except Exception as error:
    raise ConfigError(f"{where} cannot be read ({_line(error)}); use chatml") from None

  def render(messages, ask):
    try:
      return compiled.render(messages=list(messages), add_generation_prompt=ask, **named)
    except Exception as error:
      raise ConfigError(f"{where} refuses a conversation ({_line(error)}); use chatml") from None

  return render


def _line(error: Exception) -> str:
  return " ".join(str(error).split())[:120] or type(error).__name__
