"""WordPiece: words split at blanks and punctuation, then into the longest pieces of a vocabulary.

Pieces that go on with a word begin with ##. A vocabulary is read from BERT's vocab.txt (Devlin et al. 2019,
arXiv:1810.04805, §3), or trained here; special tokens are BERT's.
"""

import json
import pathlib
from collections.abc import Iterable, Sequence

from lm.config.errors import ConfigError
from lm.config.schema import DataConfig
from lm.data.tokenizers.library import HuggingfaceTokenizer, thinned

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST = 100  # characters of a word; longer ones are [UNK]


class WordPieceTokenizer(HuggingfaceTokenizer):
  """A WordPiece vocabulary in the library `tokenizers`, given as its JSON text."""

  name = "wordpiece"
  origin = "WordPiece"  # who named its separator


def read_wordpiece(cfg: DataConfig, files: Sequence[pathlib.Path]) -> WordPieceTokenizer:
  """From vocab.txt, a piece a line, and what tokenizer_config.json beside it says of letters; or of a run."""
  text = files[0].read_text(encoding="utf-8")
  if files[0].suffix == ".json":
    state = json.loads(text)
    if not isinstance(state, dict) or state.pop("kind", None) != WordPieceTokenizer.name:
      raise ValueError("holds no wordpiece tokenizer of a run")
    return WordPieceTokenizer(**state)
  pieces = text.splitlines()
  missing = [token for token in SPECIAL[1:4] if token not in pieces]
  if missing or len(set(pieces)) < len(pieces):
    raise ValueError(f"lacks {missing[0]}" if missing else "names a piece twice")
  beside = files[0].with_name("tokenizer_config.json")
  said = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
  backend = _backend(
    {piece: i for i, piece in enumerate(pieces)},
    lower=said.get("do_lower_case", True),
    accents=said.get("strip_accents"),
    chinese=said.get("tokenize_chinese_chars", True),
  )
  ends = (cfg.separator or "[SEP]", cfg.start or "[CLS]")
  if any(end not in pieces for end in ends):
    raise ValueError(f"has no {ends[0]} or {ends[1]}")
  return WordPieceTokenizer(backend.to_str(), *ends)


def train_wordpiece(cfg: DataConfig, texts: Iterable[str], n_bytes: int) -> WordPieceTokenizer:
  """A vocabulary of data.vocab_size pieces, learnt from an even sample of the texts as they are written."""
  from tokenizers import trainers

  backend = _backend({}, lower=False, accents=False, chinese=True)
  trainer = trainers.WordPieceTrainer(
    vocab_size=cfg.vocab_size, special_tokens=list(SPECIAL), show_progress=False
  )
  backend.train_from_iterator(thinned(texts, n_bytes), trainer)
  found = backend.get_vocab()
  if len(found) < cfg.vocab_size:
    raise ConfigError(
      f"data.vocab_size={cfg.vocab_size}: the training text gives only {len(found)} entries; use "
      f"data.vocab_size={len(found)} or more text"
    )
  made = _backend(found, lower=False, accents=False, chinese=True)
  return WordPieceTokenizer(made.to_str(), "[SEP]", "[CLS]")


def _backend(vocab: dict[str, int], lower: bool, accents: bool | None, chinese: bool):
  from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

  model = models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=LONGEST)
  backend = Tokenizer(model)
  backend.normalizer = normalizers.BertNormalizer(
    clean_text=True, handle_chinese_chars=chinese, strip_accents=accents, lowercase=lower
  )
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  backend.decoder = decoders.WordPiece(prefix="##")
  if vocab:
    backend.add_special_tokens([token for token in SPECIAL if token in vocab])
    ends = [(token, vocab[token]) for token in ("[SEP]", "[CLS]")]
    backend.post_processor = processors.BertProcessing(*ends)
  return backend
