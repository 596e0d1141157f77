"""Tokenizers of the library `tokenizers`: a BPE trained here, GPT-2's two files, any tokenizer.json."""

import functools
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import DataConfig
from lm.data.tokenizers import special_tokens
from lm.data.tokenizers.own import BYTE_VOCAB

EOT = "<|endoftext|>"
UNKNOWN = ("<unk>", "[UNK]", "<UNK>")  # special tokens that stand for what a vocabulary lacks
BPE_SAMPLE_BYTES = 50_000_000  # a BPE is trained on at most so much, taken evenly from the corpus


class LibraryTokenizer:
  """What BPE, GPT-2 and tokenizer.json files share.

  Special tokens written in a text are text. Where the library gives the id of the separator or the start
  token all the same (a unigram model knows "</s>" as a piece; added tokens may be no special ones),
  the token is spelled in pieces, so that no text can end a document.
  """

  name: str
  eot_id: int
  start_id: int

  def encode(self, text: str) -> list[int]:
    return self.encode_batch([text])[0].tolist()

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    encodings = self._encodings("encode_batch_fast", texts)
    return [self._spelled(np.array(encoding.ids, np.int32)) for encoding in encodings]

  def encode_with_spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    (encoding,) = self._encodings("encode_batch", [text])
    ids = np.array(encoding.ids, np.int32)
    counts = [len(self._spelled(ids[i : i + 1])) for i in range(len(ids))]
    spans = np.array(encoding.offsets, np.int32).reshape(-1, 2)
    return self._spelled(ids), np.repeat(spans, counts, axis=0)

  def encode_written(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    """As `encode_with_spans`, but special tokens in the text are those tokens, with blanks that they take."""
    backend = self.backend
    backend.encode_special_tokens = False
    try:
      (encoding,) = self._encodings("encode_batch", [text])
    finally:
      backend.encode_special_tokens = True
    return np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int32).reshape(-1, 2)

  def _encodings(self, method: str, texts: Sequence[str]) -> list:
    encode = getattr(self.backend, method)
    try:
      return encode(list(texts), add_special_tokens=False)
    except BaseException as error:  # the library's own, or a panic of its Rust code
      if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        raise ConfigError(
          f"data.tokenizer={self.name}: cannot tokenise a text ({reason(error)}); check "
          "data.tokenizer_path"
        ) from None
      raise

  def decode(self, ids: Iterable[int]) -> str:
    kept = [int(i) for i in ids if i not in (self.eot_id, self.start_id)]
    return self.backend.decode(kept, skip_special_tokens=True)

  def token(self, number: int) -> str:
    return self.backend.id_to_token(number)

  def _spelled(self, ids: np.ndarray) -> np.ndarray:
    found = ids == self.eot_id
    if self.start_id != self.eot_id:
      found |= ids == self.start_id
    if not found.any():
      return ids
    parts = [self._pieces[i] if bad else [i] for i, bad in zip(ids.tolist(), found, strict=True)]
    return np.array([i for part in parts for i in part], np.int32)

  @functools.cached_property
  def _pieces(self) -> dict[int, list[int]]:
    """Ids that spell the separator and the start token without being them."""
    return {number: self._spelling(number) for number in (self.eot_id, self.start_id)}

  def _spelling(self, number: int) -> list[int]:
    word = self.token(number)
    unknown = {self.backend.token_to_id(name) for name in UNKNOWN} - {None}
    found = []
    for cut in range(1, len(word)):
      try:
        pieces = [self.backend.model.tokenize(part) for part in (word[:cut], word[cut:])]
      except Exception:
        continue  # words that this model cannot write
      ids = [token.id for part in pieces for token in part]
      if all(pieces) and not {self.eot_id, self.start_id} & set(ids):
        found.append((len(unknown & set(ids)), len(ids), ids))
    if not found and not unknown:
      raise ConfigError(
        f"data.separator={word}: a text holds it, and this tokenizer has no other way to write it; "
        "choose another separator"
      )
    return min(found)[2] if found else [min(unknown)]


class BpeTokenizer(LibraryTokenizer):
  """Byte-level BPE with GPT-2's splitting into words (Radford et al. 2019, section 2.2).

  `vocab` in order of ids; `merges` as pairs, first merge first.
  """

  cuttable = True

  def __init__(
    self,
    vocab: Sequence[str],
    merges: Sequence[Sequence[str]],
    name: str = "bpe",
    separator: str = EOT,
    start: str | None = None,
  ):
    self.name, self.vocab, self.merges = name, list(vocab), [tuple(pair) for pair in merges]
    self.vocab_size = len(self.vocab)
    self.eot_id = self.vocab.index(separator)
    self.start_id = self.eot_id if start is None else self.vocab.index(start)

  @functools.cached_property
  def backend(self):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {piece: i for i, piece in enumerate(self.vocab)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=self.merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = dict.fromkeys([self.vocab[self.eot_id], self.vocab[self.start_id]])
    backend.add_special_tokens(list(specials))
    backend.encode_special_tokens = True  # "<|endoftext|>" written in a text is text
    return backend

  def state(self) -> dict:
    state = {"vocab": self.vocab, "merges": self.merges, "name": self.name}
    if self.vocab[self.eot_id] != EOT or self.start_id != self.eot_id:  # absent = GPT-2's own
      state |= {"separator": self.vocab[self.eot_id], "start": self.vocab[self.start_id]}
    return state


class HuggingfaceTokenizer(LibraryTokenizer):
  """A tokenizer.json of the library `tokenizers`, given as its JSON text.

  Without a separator, as vocabularies were saved before there were such keys, one is taken by name.
  """

  name, cuttable = "huggingface", False

  def __init__(self, definition: str, separator: str | None = None, start: str | None = None):
    self.definition = definition
    vocab = self.backend.get_vocab(with_added_tokens=True)
    if not self.backend.get_vocab(with_added_tokens=False):
      raise ValueError("its vocabulary is empty")
    self.vocab_size = max(vocab.values()) + 1  # ids may have gaps
    if separator is None:
      separator, start = special_tokens.by_old_names(vocab) or (None, None)
    if separator not in vocab or (start or separator) not in vocab:
      raise ValueError(f"has no separator {separator} or start token {start}")
    self.eot_id, self.start_id = vocab[separator], vocab[start or separator]

  @property
  def backend(self):
    return _backend(self.definition)

  def state(self) -> dict:
    chosen = (self.token(self.eot_id), self.token(self.start_id))
    vocab = self.backend.get_vocab(with_added_tokens=True)
    state = {"definition": self.definition}
    if special_tokens.by_old_names(vocab) != chosen:
      state |= {"separator": chosen[0], "start": chosen[1]}
    return state


@functools.lru_cache(maxsize=2)  # reading a large one takes a second
def _backend(definition: str):
  from tokenizers import Tokenizer

  backend = Tokenizer.from_str(definition)
  backend.encode_special_tokens = True
  backend.no_padding()
  backend.no_truncation()
  return backend


# --- training and reading ---


def train_bpe(cfg: DataConfig, texts: Iterable[str], n_bytes: int) -> BpeTokenizer:
  """A BPE of data.vocab_size entries, learnt from an even sample of the texts."""
  from tokenizers import Tokenizer, models, pre_tokenizers, trainers

  if cfg.vocab_size < BYTE_VOCAB:
    raise ConfigError(
      f"data.vocab_size={cfg.vocab_size}: a byte-level BPE starts from the 256 bytes and "
      f"{EOT}; use {BYTE_VOCAB} or more"
    )
  backend = Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  trainer = trainers.BpeTrainer(
    vocab_size=cfg.vocab_size,
    special_tokens=[EOT],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  backend.train_from_iterator(thinned(texts, n_bytes), trainer)
  model = json.loads(backend.to_str())["model"]
  vocab = sorted(model["vocab"], key=model["vocab"].__getitem__)
  if len(vocab) < cfg.vocab_size:
    raise ConfigError(
      f"data.vocab_size={cfg.vocab_size}: the training text gives only {len(vocab)} "
      f"entries; use data.vocab_size={len(vocab)} or more text"
    )
  return BpeTokenizer(vocab, model["merges"])


def thinned(texts: Iterable[str], n_bytes: int) -> Iterator[str]:
  """Every so many of the texts, so that about BPE_SAMPLE_BYTES remain of n_bytes."""
  share, credit = min(1.0, BPE_SAMPLE_BYTES / max(n_bytes, 1)), 0.0
  for text in texts:
    credit += share
    if credit >= 1:
      credit -= 1
      yield text


def read_gpt2(cfg: DataConfig, files: Sequence[pathlib.Path]) -> BpeTokenizer:
  """From vocab.json and merges.txt."""
  ids = json.loads(files[0].read_text(encoding="utf-8"))
  if not isinstance(ids, dict) or sorted(ids.values()) != list(range(len(ids))):
    raise ValueError("vocab.json must number its entries from 0 without gaps")
  lines = files[1].read_text(encoding="utf-8").split("\n")
  merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
  vocab = sorted(ids, key=ids.__getitem__)
  definition = {"added_tokens": [{"content": EOT, "special": True}]} if EOT in ids else {}
  chosen = special_tokens.choose(cfg, definition, ids, files[0].parent)
  made = BpeTokenizer(vocab, merges, "gpt2", chosen.separator, chosen.start)
  made.origin = chosen.origin
  made.encode("a")  # merges that do not fit are found now
  return made


def read_json(cfg: DataConfig, files: Sequence[pathlib.Path]) -> HuggingfaceTokenizer:
  """From a tokenizer.json, and what lies beside it about special tokens."""
  text = files[0].read_text(encoding="utf-8")
  definition = json.loads(text)
  if not isinstance(definition, dict):
    raise ValueError("is no JSON object")
  vocab = _backend(text).get_vocab(with_added_tokens=True)
  chosen = special_tokens.choose(cfg, definition, vocab, files[0].parent)
  made = HuggingfaceTokenizer(text, chosen.separator, chosen.start)
  made.origin = chosen.origin
  return made


def reason(error: BaseException) -> str:
  """A library's message in one line."""
  return " ".join(str(error).split())[:160] or type(error).__name__
