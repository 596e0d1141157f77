"""Conversations as tokens: chat templates, what a model answers, and where its answer ends.

A template turns a conversation into text. ChatML writes each message as

    <|im_start|>ROLE
    CONTENT<|im_end|>

and "tokenizer" is the chat template in the tokenizer's own files, rendered in jinja2's sandbox. The template
sees a mark in place of each content, and contents are tokenised as plain text, without the blanks at their
ends where the template trims them: nothing that stands in a message can become a special token. A template
that writes anything else for a content than for its mark is refused. ChatML follows the token that starts a
document; the tokenizer's own template says itself what a conversation starts with.
"""

import json
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config

CHATML = ("<|im_start|>", "<|im_end|>")
CHATML_JINJA = (
  "{{ bos_token }}{% for message in messages %}"
  "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SETTINGS, OWN_FILE = "tokenizer_config.json", "chat_template.jinja"
OPEN, CLOSE = (
  "\ue000",
  "\ue001",
)  # of a mark that stands for a content; private characters of Unicode
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

  Args:
    ask: whether the template goes on to where the next answer begins.
  """
  text, contents = _marked(messages, template, ask)
  specials = special_ids(tokenizer)
  markers = sorted({*specials, *template.markers}, key=len, reverse=True)
  pieces = [
    p for p in re.split(f"({OPEN}\\d+{CLOSE}|{'|'.join(map(re.escape, markers))})", text) if p
  ]
  ids = [tokenizer.start_id] if template.after_start else []
  counted, size, ending = [UNCOUNTED] * len(ids), 0, False
  for piece in pieces:
    kind = MARK if ending else UNCOUNTED
    if piece[0] == OPEN:
      number = int(piece[1:-1])
      ending = messages[number]["role"] == "assistant"
      kind = TEXT if ending else UNCOUNTED
      found = tokenizer.encode(contents[number])
      size += len(contents[number].encode()) if ending else 0
    elif piece in specials:
      found, ending = [specials[piece]], False
    else:
      found = tokenizer.encode(piece)
      ending = ending and piece not in markers
    ids += found
    counted += [kind] * len(found)
  return np.array(ids, np.int32), np.array(counted, np.int8), size


def _marked(messages: Conversation, template: Template, ask: bool) -> tuple[str, list[str]]:
  """(a conversation's text with OPEN number CLOSE in place of each content, the contents as it has them)."""
  marks = [{**m, "content": f"{EDGE}{OPEN}{i}{CLOSE}{EDGE}"} for i, m in enumerate(messages)]
  text = template.render(marks, ask)
  contents, order = [m["content"] for m in messages], []
  for left, number, right in _MARKED.findall(text):
    i = int(number)
    order.append(i)
    contents[i] = contents[i] if left else contents[i].lstrip()
    contents[i] = contents[i] if right else contents[i].rstrip()
  if order != sorted(set(order)) or not set(range(len(messages))) - {0} <= set(order):
    raise ConfigError(f"{template.where} leaves messages out or says them twice; use chatml")
  if template.where:
    written = _MARKED.sub(lambda mark: contents[int(mark[2])], text)
    if written != template.render(messages, ask):
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
  ids, counted, _ = tokenise(turn, template, tokenizer)
  marks = ids[counted == MARK].tolist()
  specials = {*special_ids(tokenizer).values()}
  special = [i for i in marks if i in specials]
  if special:
    return Ending((special[0],))
  return Ending((), tokenizer.decode(marks) or None)


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
  `apply_chat_template` shows it, without tools and documents."""
  import jinja2
  from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

  def refuse(message):
    raise jinja2.TemplateError(message)

  named: dict[str, Any] = {"tools": None, "documents": None}
  for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
    token = settings.get(key)
    token = token.get("content") if isinstance(token, Mapping) else token
    named[key] = token if isinstance(token, str) else ""
  try:
    environment = ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    calls: dict[str, Any] = {"raise_exception": refuse, "range": safe_range}
    calls["namespace"] = jinja2.utils.Namespace
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
