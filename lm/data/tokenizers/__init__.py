"""Text to token ids and back; one small class for each kind of tokenizer, and a row of TOKENIZERS.

Every tokenizer has
  encode(text) -> list[int], encode_batch(texts) -> list of int arrays, decode(ids) -> text
  encode_with_spans(text) -> (ids, int32 [n, 2]: the characters of the text that each id stands for)
  vocab_size, name, token(id) -> how it is written
  eot_id: the token that ends a document; `encode` never produces it from text
  start_id: the token fed before a document's first one; eot_id where there is no other
  cuttable: a text cut as lm/data/spool.py cuts it gives the same ids piece by piece
  state() -> what its class is called with to make it again
Ids are int32. `decode` leaves out eot_id and start_id.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from lm.config.errors import ConfigError
from lm.config.schema import DataConfig
from lm.data.tokenizers import library, own, sentencepiece_model, wordpiece
from lm.data.tokenizers.files import VOCABULARY, WANTED, find_files, has_files
from lm.data.tokenizers.library import EOT, BpeTokenizer, HuggingfaceTokenizer, LibraryTokenizer
from lm.data.tokenizers.own import ByteTokenizer, CharTokenizer, WordTokenizer
from lm.data.tokenizers.sentencepiece_model import SentencePieceTokenizer
from lm.data.tokenizers.special_tokens import SIDE_FILES
from lm.data.tokenizers.wordpiece import WordPieceTokenizer

__all__ = [
  "CLASSES",
  "EOT",
  "SIDE_FILES",
  "TOKENIZERS",
  "TRAINED",
  "VOCABULARY",
  "BpeTokenizer",
  "ByteTokenizer",
  "CharTokenizer",
  "HuggingfaceTokenizer",
  "LibraryTokenizer",
  "SentencePieceTokenizer",
  "Tokenizer",
  "WordPieceTokenizer",
  "WordTokenizer",
  "check",
  "find_files",
  "fingerprint",
  "has_files",
  "is_trained",
  "known_vocab_size",
  "load_tokenizer",
  "make_tokenizer",
  "read_tokenizer",
  "save_tokenizer",
  "special_names",
  "to_library",
  "unknown_id",
]  # fmt: skip

Tokenizer = (
  ByteTokenizer
  | CharTokenizer
  | WordTokenizer
  | BpeTokenizer
  | HuggingfaceTokenizer
  | SentencePieceTokenizer
)


class TokenizerKind(NamedTuple):
  """A kind of tokenizer: its class, and who trains it on texts or reads it from files."""

  cls: type
  train: Callable | None = None  # (cfg, texts, their bytes) -> tokenizer
  read: Callable | None = None  # (cfg, files) -> tokenizer


TOKENIZERS = {
  "byte": TokenizerKind(ByteTokenizer),
  "char": TokenizerKind(CharTokenizer, train=own.train_characters),
  "word": TokenizerKind(WordTokenizer, train=own.train_words),
  "bpe": TokenizerKind(BpeTokenizer, train=library.train_bpe),
  "gpt2": TokenizerKind(BpeTokenizer, read=library.read_gpt2),
  "wordpiece": TokenizerKind(
    WordPieceTokenizer, train=wordpiece.train_wordpiece, read=wordpiece.read_wordpiece
  ),
  "huggingface": TokenizerKind(HuggingfaceTokenizer, read=library.read_json),
  "sentencepiece": TokenizerKind(SentencePieceTokenizer, read=sentencepiece_model.read_model),
}
CLASSES = {name: kind.cls for name, kind in TOKENIZERS.items()}
SIZED = ("bpe", "wordpiece")  # trained to data.vocab_size entries
UNKNOWN = ("[UNK]", "<unk>")  # names of the token for what a tokenizer cannot write
TRAINED = tuple(name for name, kind in TOKENIZERS.items() if kind.train)


def unknown_id(tokenizer: Tokenizer) -> int | None:
  """The id of what a tokenizer cannot write; None where it has no such token."""
  own: Any = tokenizer
  if hasattr(own, "unk_id"):
    return own.unk_id
  backend = getattr(own, "backend", None)
  if not hasattr(backend, "token_to_id"):
    return None
  ids = [backend.token_to_id(name) for name in UNKNOWN]
  return next((number for number in ids if number is not None), None)


def is_trained(cfg: DataConfig) -> bool:
  """Whether the tokenizer is made from the training split; the others are given."""
  return cfg.tokenizer in TRAINED and cfg.tokenizer_path is None


def check(cfg: DataConfig) -> None:
  """ConfigError for what can be said of the tokenizer without reading it."""
  if cfg.tokenizer not in TOKENIZERS:
    raise ConfigError(
      f"data.tokenizer={cfg.tokenizer}: must be one of {', '.join(TOKENIZERS)}; use bpe"
    )
  if TOKENIZERS[cfg.tokenizer].read is None:
    for key in ("separator", "start"):
      if getattr(cfg, key) is not None:
        takes = ", ".join(name for name, kind in TOKENIZERS.items() if kind.read)
        raise ConfigError(
          f"data.{key}={getattr(cfg, key)}: data.tokenizer={cfg.tokenizer} has its own; set it with "
          f"one of {takes}, or use None"
        )
  elif cfg.tokenizer_path is None and TOKENIZERS[cfg.tokenizer].train is None:
    raise ConfigError(
      f"data.tokenizer_path=None: data.tokenizer={cfg.tokenizer} needs {WANTED[cfg.tokenizer].what}; "
      "set --config.data.tokenizer_path"
    )
  if cfg.tokenizer_path is not None and cfg.tokenizer != "byte":
    find_files(cfg.tokenizer, cfg.tokenizer_path)


def make_tokenizer(cfg: DataConfig, texts: Iterable[str] = (), n_bytes: int = 0) -> Tokenizer:
  """The tokenizer that `cfg` asks for.

  Args:
    cfg: its tokenizer, tokenizer_path, separator, start, vocab_size and min_freq.
    texts: the training split, in documents or pieces; read where `is_trained`.
    n_bytes: their size, by which a BPE takes an even sample of BPE_SAMPLE_BYTES from them.

  Raises:
    ConfigError: unknown kind, missing or unfit file, more vocabulary than the text has.
  """
  check(cfg)
  if cfg.tokenizer == "byte":
    return ByteTokenizer()
  if is_trained(cfg):
    return TOKENIZERS[cfg.tokenizer].train(cfg, texts, n_bytes)
  return read_tokenizer(cfg)


def known_vocab_size(cfg: DataConfig) -> int | None:
  """Vocabulary size as far as it is known without the corpus; None for char and word."""
  if not is_trained(cfg):
    return make_tokenizer(cfg).vocab_size
  return cfg.vocab_size if cfg.tokenizer in SIZED else None


def read_tokenizer(cfg: DataConfig) -> Tokenizer:
  """The tokenizer at data.tokenizer_path; `origin` of it says who named its separator."""
  check(cfg)
  files = find_files(cfg.tokenizer, cfg.tokenizer_path)
  where = f"data.tokenizer_path={cfg.tokenizer_path}"
  try:
    if TOKENIZERS[cfg.tokenizer].read is None:
      return _load(files[0], cfg.tokenizer)
    return TOKENIZERS[cfg.tokenizer].read(cfg, files)
  except ConfigError:
    raise
  except OSError as error:
    raise ConfigError(
      f"{where}: cannot be read ({error.strerror or error}); give {WANTED[cfg.tokenizer].what}"
    ) from None
  except BaseException as error:  # each library has its own words, or panics in Rust
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
      raise
    raise ConfigError(
      f"{where}: no {cfg.tokenizer} tokenizer ({library.reason(error)}); check the file"
    ) from None


def save_tokenizer(tokenizer: Tokenizer, folder: pathlib.Path) -> None:
  """Writes folder/vocabulary.json: all that `load_tokenizer` needs."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  saved = {"kind": tokenizer.name, **tokenizer.state()}
  text = json.dumps(saved, ensure_ascii=False, sort_keys=True)
  (folder / VOCABULARY).write_text(text, encoding="utf-8")


def load_tokenizer(folder: pathlib.Path) -> Tokenizer:
  """The tokenizer that `save_tokenizer` wrote into `folder`.

  Raises: ConfigError if the file is damaged.
  """
  file = pathlib.Path(folder) / VOCABULARY
  try:
    return _load(file, None)
  except ConfigError:
    raise
  except Exception as error:
    raise ConfigError(
      f"tokenizer={file}: is no saved tokenizer ({library.reason(error)}); restore it from a copy"
    ) from None


def _load(file: pathlib.Path, kind: str | None) -> Tokenizer:
  state = json.loads(file.read_text(encoding="utf-8"))
  if not isinstance(state, dict) or state.get("kind") not in TOKENIZERS:
    raise ValueError("has no kind; it is not what this code saves")
  found = state.pop("kind")
  if kind is not None and found != kind:
    raise ConfigError(f"data.tokenizer={kind}: {file} holds a {found} tokenizer; use {found}")
  return TOKENIZERS[found].cls(**state)


def fingerprint(tokenizer: Tokenizer) -> str:
  """Hash of everything that `encode` depends on but the version of a library."""
  text = json.dumps([tokenizer.name, tokenizer.state()], ensure_ascii=False, sort_keys=True)
  return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def describe(tokenizer: Tokenizer, special: Mapping[str, object]) -> dict[str, object]:
  """What run.json records of a tokenizer; `special` as of `special_names`, or with who named them."""
  return {
    "name": tokenizer.name,
    "vocab_size": tokenizer.vocab_size,
    "fingerprint": fingerprint(tokenizer),
    **special,
  }


def special_names(tokenizer: Tokenizer) -> dict[str, object]:
  """{"separator", "separator_id", "start", "start_id", "origin"}: for run.json and the screen."""
  return {
    "separator": tokenizer.token(tokenizer.eot_id),
    "separator_id": int(tokenizer.eot_id),
    "start": tokenizer.token(tokenizer.start_id),
    "start_id": int(tokenizer.start_id),
    "origin": getattr(tokenizer, "origin", "its own"),
  }


def to_library(tokenizer: Tokenizer):
  """The same tokenizer in the library `tokenizers`, to be saved as tokenizer.json.

  Byte, char and word tokenizers give the same ids there (of a word tokenizer: for words between
  blanks that both take for blanks). Raises: ConfigError for SentencePiece, whose file is its own.
  """
  if isinstance(tokenizer, LibraryTokenizer):
    return tokenizer.backend
  from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

  special = lambda *names: [AddedToken(name, special=True, normalized=False) for name in names]
  if isinstance(tokenizer, ByteTokenizer):
    ours = [*bytes_to_characters(), EOT]
    backend = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(ours)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special(EOT))
  elif isinstance(tokenizer, CharTokenizer):
    ours = [*tokenizer.characters, own.UNK, EOT]
    vocab = {name: i for i, name in enumerate(ours)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=own.UNK))
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(special(EOT))
  elif isinstance(tokenizer, WordTokenizer):
    vocab = {name: i for i, name in enumerate(tokenizer.words)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token=own.UNK))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(special(*tokenizer.SPECIAL[:2]))
  else:
    raise ConfigError(
      f"data.tokenizer={tokenizer.name}: its own file is what others read; copy tokenizer.model"
    )
  return backend


def bytes_to_characters() -> list[str]:
  """GPT-2's character for each byte: printable ones stand for themselves, others follow U+0100."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  names = {byte: chr(byte) for byte in printable}
  rest = [byte for byte in range(256) if byte not in names]
  names |= {byte: chr(256 + i) for i, byte in enumerate(rest)}
  return [names[byte] for byte in range(256)]
