"""Which files a tokenizer is read from: a file, or a folder that holds it."""

import pathlib
from typing import NamedTuple

from lm.config.errors import ConfigError

VOCABULARY = "vocabulary.json"  # what this code saves


class Wanted(NamedTuple):
  """`names`: for each file, the spellings it may have in a folder, as globs, the best first."""

  what: str
  names: tuple[tuple[str, ...], ...]


_SAVED = Wanted("a run's vocabulary.json", ((VOCABULARY, f"tokenizer/{VOCABULARY}"),))
WANTED = {
  "byte": _SAVED,
  "char": _SAVED,
  "word": _SAVED,
  "bpe": _SAVED,
  "gpt2": Wanted(
    "a folder with vocab.json and merges.txt",
    (("vocab.json", "*vocab.json", "encoder.json"), ("merges.txt", "*merges.txt", "vocab.bpe")),
  ),
  "wordpiece": Wanted(
    "a vocab.txt, or a run's vocabulary.json",
    (("vocab.txt", "*vocab.txt", VOCABULARY, f"tokenizer/{VOCABULARY}"),),
  ),
  "huggingface": Wanted("a tokenizer.json file", (("tokenizer.json",),)),
  "sentencepiece": Wanted("a .model file", (("tokenizer.model", "*.model"),)),
}


def find_files(kind: str, path: str) -> list[pathlib.Path]:
  """The files that a tokenizer of this kind is read from, in the order of WANTED.

  Raises: ConfigError if one is missing, or if two could be meant.
  """
  wanted, place = WANTED[kind], pathlib.Path(path).expanduser()
  where = f"data.tokenizer_path={path}: must be {wanted.what}"
  if "\0" in path:
    raise ConfigError(f"{where}; correct the path")
  if not place.is_dir():
    if not place.is_file() or len(wanted.names) > 1:
      missing = place / wanted.names[0][0] if len(wanted.names) > 1 else place
      raise ConfigError(f"{where}, and {missing} is not a file; correct the path")
    return [place]
  return [_find(place, spellings, where) for spellings in wanted.names]


def has_files(kind: str, path: str) -> bool:
  """Whether `find_files` finds all."""
  try:
    return bool(find_files(kind, path))
  except ConfigError:
    return False


def _find(folder: pathlib.Path, spellings: tuple[str, ...], where: str) -> pathlib.Path:
  for spelling in spellings:
    found = sorted(path for path in folder.glob(spelling) if path.is_file())
    if len(found) > 1:
      names = ", ".join(path.name for path in found)
      raise ConfigError(f"{where}, and {folder} holds {len(found)}: {names}; keep one")
    if found:
      return found[0]
  raise ConfigError(f"{where}, and {folder / spellings[0]} is not a file; correct the path")
