"""Tokenizer files of a Hugging Face folder, in and out."""

import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from lm.config.errors import ConfigError
from lm.data import tokenizers
from lm.data.span_names import SENTINEL

# data.tokenizer -> the files that make one, the kind that says most first
FILES_OF = {
  "huggingface": ("tokenizer.json",),
  "gpt2": ("vocab.json", "merges.txt"),
  "sentencepiece": ("tokenizer.model",),
  "wordpiece": ("vocab.txt",),
}
# What says which of its tokens are special, and how chats are written.
BESIDE = (*tokenizers.SIDE_FILES, "added_tokens.json", "chat_template.jinja")
TOKENIZER_FILES = (
  *(name for names in FILES_OF.values() for name in names),
  *(name for name in BESIDE if name != "config.json"),
)


def find_kind(folder: pathlib.Path) -> tuple[str, tuple[str, ...]]:
  """(data.tokenizer, its files) of what a folder holds."""
  for kind, names in FILES_OF.items():
    if all((folder / name).is_file() for name in names):
      return kind, names
  raise ConfigError(
    f"from={folder}: has no tokenizer.json, vocab.json with merges.txt, tokenizer.model or vocab.txt; add one"
  )


def copy_in(folder: pathlib.Path, inside: pathlib.Path) -> tuple[str, pathlib.Path]:
  """Copies a folder's tokenizer; returns (data.tokenizer, data.tokenizer_path)."""
  kind, names = find_kind(folder)
  inside.mkdir(parents=True, exist_ok=True)
  for name in (*names, *BESIDE):
    if (folder / name).is_file():
      shutil.copyfile(folder / name, inside / name)
  return kind, inside if kind == "gpt2" else inside / names[0]


def write_tokenizer(
  tokenizer: tokenizers.Tokenizer,
  inside: pathlib.Path,
  folder: pathlib.Path,
  seq_len: int,
  template: str | None = None,
  row: tuple[str, str] | None = None,
  further: Sequence[str] = (),
) -> None:
  """Writes a run's tokenizer as the files that `transformers` reads.

  Args:
    inside: the run's tokenizer folder; files that an import left there are copied.
    seq_len: tokens the model takes.
    template: of chats; those of an import are in its files.
    row: what the model reads of one text, and of two, in the words of the library `tokenizers`: $A and $B are
      texts, <s> and </s> the start token and the separator. None = the texts alone.
    further: names of ids beyond the tokenizer's (lm.data.span_names). SentencePiece's file takes none, nor
      does a tokenizer that has one of them.
  """
  names = [name for files in FILES_OF.values() for name in files]
  copied = [name for name in names if (inside / name).is_file()]
  for name in (*copied, *BESIDE):
    if (inside / name).is_file() and name != "config.json":
      shutil.copyfile(inside / name, folder / name)
  if copied:
    return
  if isinstance(tokenizer, tokenizers.SentencePieceTokenizer):
    (folder / "tokenizer.model").write_bytes(bytes.fromhex(tokenizer.model))
    return
  backend = tokenizers.to_library(tokenizer)
  if further and not set(further) & set(backend.get_vocab()):
    backend = _with_names(backend, further)
  name = lambda token_id: backend.id_to_token(token_id)
  if row is not None and backend.post_processor is None:
    backend = _with_row(backend, row, name(tokenizer.start_id), name(tokenizer.eot_id))
  backend.save(str(folder / "tokenizer.json"))
  settings: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": name(tokenizer.start_id),
    "eos_token": name(tokenizer.eot_id),
    "clean_up_tokenization_spaces": False,
    "model_max_length": seq_len,
  }
  if template is not None:
    settings["chat_template"] = template
  if row is not None and ":1" in row[1]:
    # Else transformers leaves out which of two texts a token is of.
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
  text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
  (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _with_names(backend: Any, names: Sequence[str]) -> Any:
  """A copy of a tokenizer of the library `tokenizers` whose ids go on with these."""
  from tokenizers import AddedToken, Tokenizer

  found = Tokenizer.from_str(backend.to_str())
  sentinel = lambda name: bool(SENTINEL.fullmatch(name))
  found.add_special_tokens(
    [AddedToken(n, normalized=False, lstrip=sentinel(n), rstrip=not sentinel(n)) for n in names]
  )
  return found


def _with_row(backend: Any, row: tuple[str, str], start: str, end: str) -> Any:
  """A copy of a tokenizer of the library `tokenizers` that puts these tokens around its texts."""
  from tokenizers import Tokenizer, processors

  single, pair = (
    [word.replace("</s>", end).replace("<s>", start) for word in words.split()] for words in row
  )
  tokens = [(token, backend.token_to_id(token)) for token in dict.fromkeys((start, end))]
  found = Tokenizer.from_str(backend.to_str())
  found.post_processor = processors.TemplateProcessing(
    single=single, pair=pair, special_tokens=tokens
  )
  return found
