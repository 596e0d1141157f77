"""Tokenizers: text comes back, files agree with the libraries they come from, training repeats."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tokenizers as library_package
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from lm.config.errors import ConfigError
from lm.data import tokenizers
from lm.data.cache import describe, open_corpus
from lm.data.spool import TRAIN, Spool
from lm.data.tokenizers import library
from lm.setup.load import load_config
from tests.corpora import WORDS, data_config

NASTY = [
  "Hello world! It's 2024, isn't it?  Two blanks.\n      indented\n\n\tTabs and\r\nreturns ",
  "naïve café — “quotes” … Привет, мир! 你好，世界。 こんにちは 안녕하세요",
  "emoji 👩‍👩‍👧‍👦 🇨🇭 é vs é \u00a0no-break\u3000wide \u2028line",
  "<|endoftext|> <unk> <start> <end> </s> <s>",
  "x" * 300 + "  " * 50 + "1234567890" * 20,
  "",
]
TRAINING = [
  " ".join(WORDS[(i * j) % len(WORDS)] for j in range(40)) + NASTY[i % 3] for i in range(50)
]


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
  cfg = data_config(tmp_path_factory.mktemp("bpe"), tokenizer="bpe", vocab_size=400)
  return tokenizers.make_tokenizer(cfg, TRAINING)


@pytest.fixture(scope="module")
def gpt2_folder(bpe, tmp_path_factory):
  """A small vocabulary in GPT-2's two files."""
  folder = tmp_path_factory.mktemp("gpt2")
  (folder / "vocab.json").write_text(json.dumps({v: i for i, v in enumerate(bpe.vocab)}))
  merges = "".join(f"{a} {b}\n" for a, b in bpe.merges)
  (folder / "merges.txt").write_text("#version: 0.2\n" + merges)
  return folder


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory):
  sentencepiece = pytest.importorskip("sentencepiece")
  prefix = tmp_path_factory.mktemp("sp") / "small"
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(TRAINING), model_prefix=str(prefix), vocab_size=420,
    model_type="bpe", byte_fallback=True, character_coverage=0.98, minloglevel=9,
  )  # fmt: skip
  return f"{prefix}.model"


@pytest.fixture(scope="module")
def huggingface_file(bpe, tmp_path_factory):
  path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
  bpe.backend.save(str(path))
  return str(path)


KINDS = ("byte", "char", "word", "wordpiece", "bpe", "gpt2", "huggingface", "sentencepiece")


@pytest.fixture(params=KINDS)
def tokenizer(request, tmp_path):
  path = {
    "gpt2": "gpt2_folder", "huggingface": "huggingface_file", "sentencepiece": "sentencepiece_file"
  }.get(request.param)  # fmt: skip
  path = None if path is None else str(request.getfixturevalue(path))
  size = 240 if request.param == "wordpiece" else 400  # there are no more pieces
  cfg = data_config(tmp_path, tokenizer=request.param, tokenizer_path=path, vocab_size=size)
  made = tokenizers.make_tokenizer(cfg, TRAINING)
  known = tokenizers.known_vocab_size(cfg)
  assert known == (None if request.param in ("char", "word") else made.vocab_size)
  return made


def test_ids_are_in_the_vocabulary_and_never_the_separator(tokenizer):
  for text, ids in zip(NASTY, tokenizer.encode_batch(NASTY), strict=True):
    assert ids.tolist() == tokenizer.encode(text)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.eot_id not in ids and (len(text) == 0 or len(ids))
  assert 0 <= tokenizer.start_id < tokenizer.vocab_size


def test_spans_say_which_characters_an_id_stands_for(tokenizer):
  for text in NASTY:
    ids, spans = tokenizer.encode_with_spans(text)
    assert ids.tolist() == tokenizer.encode(text) and spans.shape == (len(ids), 2)
    assert (spans >= 0).all() and (spans <= len(text)).all() and (np.diff(spans) >= 0).all()
    assert (np.diff(spans, axis=0) >= 0).all()
  text = TRAINING[0]
  _, spans = tokenizer.encode_with_spans(text)
  shown = {i for begin, end in spans.tolist() for i in range(begin, end)}
  assert {i for i, character in enumerate(text) if not character.isspace()} <= shown


def test_decode_gives_the_text_back_without_separators(tokenizer):
  exact = tokenizer.name in ("byte", "bpe", "gpt2", "huggingface")
  for text in NASTY if exact else TRAINING[:3]:
    ids = [tokenizer.start_id, *tokenizer.encode(text), tokenizer.eot_id]
    decoded = tokenizer.decode(ids)
    if tokenizer.name == "sentencepiece":  # normalises
      assert decoded.split()[:20] == text.split()[:20]
    elif tokenizer.name == "word":
      known = [word if word in tokenizer.words else "<unk>" for word in text.split()]
      assert decoded == " ".join(known)
    elif tokenizer.name == "wordpiece":  # keeps no blanks, and drops what does not print
      plain = " ".join(WORDS)
      assert tokenizer.decode(tokenizer.encode(plain)) == plain
    else:
      assert decoded == text


def test_saved_tokenizers_load_equal(tokenizer, tmp_path):
  tokenizers.save_tokenizer(tokenizer, tmp_path / "new" / "folder")
  loaded = tokenizers.load_tokenizer(tmp_path / "new" / "folder")
  assert tokenizers.fingerprint(loaded) == tokenizers.fingerprint(tokenizer)
  assert [loaded.encode(t) for t in NASTY] == [tokenizer.encode(t) for t in NASTY]
  for field in ("name", "vocab_size", "eot_id", "start_id", "cuttable"):
    assert getattr(loaded, field) == getattr(tokenizer, field)


def test_pieces_give_the_ids_of_the_whole(tokenizer, tmp_path, monkeypatch):
  if not tokenizer.cuttable:
    pytest.skip("encoded whole")
  monkeypatch.setattr("lm.data.spool.PIECE_BYTES", 1)
  text = " ".join(NASTY * 3)
  spool = Spool(tmp_path)
  spool.write([(0, [text])], data_config(tmp_path), lambda amount: None)
  pieces = [piece.decode() for piece in spool.pieces(0, TRAIN)]
  assert len(pieces) > 60 and "".join(pieces) == text
  joined = np.concatenate(tokenizer.encode_batch(pieces)).tolist()
  assert joined == tokenizer.encode(text)


def test_gpt2_agrees_with_transformers(gpt2_folder, tmp_path):
  transformers = pytest.importorskip("transformers")
  cfg = data_config(tmp_path, tokenizer="gpt2", tokenizer_path=str(gpt2_folder))
  ours = tokenizers.make_tokenizer(cfg)
  theirs = transformers.GPT2Tokenizer.from_pretrained(str(gpt2_folder))
  for text in [*TRAINING[:10], *NASTY]:
    if "<|endoftext|>" not in text:  # text to us, a separator to them
      assert ours.encode(text) == theirs(text)["input_ids"]
  assert ours.eot_id == theirs.eos_token_id


def test_sentencepiece_agrees_with_its_library(sentencepiece_file, tmp_path):
  import sentencepiece

  cfg = data_config(tmp_path, tokenizer="sentencepiece", tokenizer_path=sentencepiece_file)
  ours = tokenizers.make_tokenizer(cfg)
  theirs = sentencepiece.SentencePieceProcessor(model_file=sentencepiece_file)
  assert [ours.encode(t) for t in NASTY] == [theirs.encode(t) for t in NASTY]
  assert (ours.start_id, ours.eot_id) == (theirs.bos_id(), theirs.eos_id()) == (1, 2)


def test_bpe_learns_words_and_holds_every_byte(bpe):
  assert len(bpe.encode("the cat sat on a mat")) == 6
  assert bpe.vocab_size == 400 and bpe.name == "bpe"
  assert bpe.decode(bpe.encode("\x00\x7f\u07ff\U0010ffff")) == "\x00\x7f\u07ff\U0010ffff"


def test_bpe_training_repeats_whatever_the_threads(tmp_path):
  code = (
    "import pathlib; from tests.test_tokenizers import TRAINING; from tests.corpora import *;"
    "from lm.data import tokenizers as t;"
    "cfg = data_config(pathlib.Path('.'), tokenizer='bpe', vocab_size=400);"
    "print(t.fingerprint(t.make_tokenizer(cfg, TRAINING)))"
  )
  outputs = {
    subprocess.run(
      [sys.executable, "-c", code], check=True, capture_output=True, text=True,
      env={**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
    ).stdout
    for threads in ("1", "3")
  }  # fmt: skip
  assert len(outputs) == 1


def test_a_bpe_samples_evenly_from_a_large_corpus(monkeypatch):
  monkeypatch.setattr(library, "BPE_SAMPLE_BYTES", 250)
  texts = [f"{i:010d}" for i in range(100)]
  kept = [int(text) for text in library.thinned(texts, 1000)]
  assert len(kept) == 25 and set(np.diff(kept)) == {4}
  assert list(library.thinned(texts, 250)) == texts


def test_word_vocabulary_keeps_frequent_words_most_frequent_first(tmp_path):
  texts = ["b a b", "a b c <unk> <end> <end>", "a\nc  d"]
  cfg = data_config(tmp_path, tokenizer="word", min_freq=2)
  words = tokenizers.make_tokenizer(cfg, texts)
  assert words.words == ["<start>", "<end>", "<unk>", "a", "b", "c"]
  assert words.encode("c <end> d <unk> a") == [5, 2, 2, 2, 3]  # a separator in a text is a text
  assert (words.start_id, words.eot_id) == (0, 1)


def test_char_vocabulary_is_the_training_characters(tmp_path):
  made = tokenizers.make_tokenizer(data_config(tmp_path, tokenizer="char"), ["ba", "cé\n"])
  assert made.characters == "\nabcé" and made.vocab_size == 7
  assert made.decode(made.encode("bé?")) == "bé<unk>"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"tokenizer": "letterpiece"}, "data.tokenizer=letterpiece: must be one of byte, char, word"),
    ({"tokenizer": "bpe", "vocab_size": 256}, "data.vocab_size=256: a byte-level BPE starts from"),
    ({"tokenizer": "bpe", "vocab_size": 9999}, "training text gives only"),
    ({"tokenizer": "gpt2"}, "data.tokenizer_path=None: data.tokenizer=gpt2 needs a folder with"),
    ({"tokenizer": "sentencepiece"}, "data.tokenizer=sentencepiece needs a .model file; set"),
    (
      {"tokenizer": "gpt2", "tokenizer_path": "no/such"},
      "must be a folder with vocab.json and merges.txt, and no/such/vocab.json is not a file",
    ),
    (
      {"tokenizer": "huggingface", "tokenizer_path": "no/such"},
      "must be a tokenizer.json file, and no/such is not a file; correct the path",
    ),
    ({"tokenizer": "huggingface", "tokenizer_path": "BAD"}, "no huggingface tokenizer ("),
    ({"tokenizer": "sentencepiece", "tokenizer_path": "BAD"}, "no sentencepiece tokenizer ("),
  ],
)
def test_unfit_tokenizers_are_refused(tmp_path, changes, message):
  (tmp_path / "bad").write_text("{}")
  if changes.get("tokenizer_path") == "BAD":
    changes = changes | {"tokenizer_path": str(tmp_path / "bad")}
  with pytest.raises(ConfigError) as error:
    tokenizers.make_tokenizer(data_config(tmp_path, **changes), TRAINING)
  assert message in str(error.value) and "\n" not in str(error.value)


def test_a_tokenizer_file_must_have_a_separator(tmp_path):
  from tokenizers import Tokenizer, models

  path = tmp_path / "tokenizer.json"
  Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(path))
  cfg = data_config(tmp_path, tokenizer="huggingface", tokenizer_path=str(path))
  with pytest.raises(
    ConfigError, match=r"data.separator=None: nothing in .* its special tokens|has no special"
  ):
    tokenizers.make_tokenizer(cfg)


# --- separators and start tokens, by what a tokenizer's files say ---

MARKED = "x </s> y <s> z <|endoftext|> [SEP] [CLS] <eos> <bos> <|im_end|> <end> <start>"


def write_json(folder, specials, ordinary=(), plain_added=(), template=None, model="bpe"):
  """A small byte-level BPE (or other model) as tokenizer.json: `ordinary` names are in the vocabulary,
  `plain_added` are added tokens that are not special, `template` puts special tokens around a text."""
  folder.mkdir(parents=True, exist_ok=True)
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  names = [*alphabet, *ordinary, *specials, "<unk>"]
  if model == "bpe":
    made = library_package.Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
  elif model == "unigram":
    pieces = [*(chr(i) for i in range(33, 127)), "\u2581", *ordinary, *specials]
    scored = [("<unk>", 0.0), *((name, 0.0 if len(name) > 1 else -5.0) for name in pieces)]
    made = library_package.Tokenizer(models.Unigram(scored, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
  else:
    words = ["[UNK]", *ordinary, *specials, *(chr(i) for i in range(33, 127))]
    words += [f"##{chr(i)}" for i in range(33, 127)]
    made = library_package.Tokenizer(
      models.WordPiece({name: i for i, name in enumerate(words)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  made.add_special_tokens([AddedToken(name, special=True) for name in specials])
  made.add_tokens([AddedToken(name, special=False) for name in plain_added])
  if template:
    inside = [word for word in template.split() if word != "$A"]
    ids = [(word, made.token_to_id(word)) for word in inside]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
  path = folder / "tokenizer.json"
  made.save(str(path))
  return path


# name: (what write_json is given, files beside it, separator, start, who names the separator)
FAMILIES = {
  "gpt2": ({"specials": ["<|endoftext|>"]}, {}, "<|endoftext|>", None, "its special tokens"),
  "llama3": (
    {
      "specials": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
      "template": "<|begin_of_text|> $A",
    },
    {}, "<|end_of_text|>", "<|begin_of_text|>", "its special tokens",
  ),
  "llama3 instruct": (
    {
      "specials": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
      "template": "<|begin_of_text|> $A",
    },
    {"tokenizer_config.json": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}},
    "<|eot_id|>", "<|begin_of_text|>", "tokenizer_config.json",
  ),
  "gemma": (
    {
      "specials": ["<pad>", "<eos>", "<bos>"], "plain_added": ["<s>", "</s>"],
      "template": "<bos> $A",
    },
    {}, "<eos>", "<bos>", "its special tokens",
  ),
  "qwen": (
    {"specials": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "ordinary": ["<s>", "</s>"]},
    {}, "<|endoftext|>", None, "its special tokens",
  ),
  "qwen instruct": (
    {"specials": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "ordinary": ["<s>", "</s>"]},
    {
      "tokenizer_config.json": {"bos_token": None, "eos_token": "<|im_end|>"},
      "config.json": {"bos_token_id": 258},
    },
    "<|im_end|>", None, "tokenizer_config.json",
  ),
  "deepseek": (
    {
      "specials": ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"],
      "template": "<｜begin▁of▁sentence｜> $A",
    },
    {}, "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", "its special tokens",
  ),
  "cohere": (
    {
      "specials": ["<PAD>", "<CLS>", "<SEP>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"],
      "template": "<BOS_TOKEN> $A",
    },
    {
      "special_tokens_map.json": {
        "bos_token": {"content": "<BOS_TOKEN>"}, "eos_token": {"content": "<|END_OF_TURN_TOKEN|>"},
      }
    },
    "<|END_OF_TURN_TOKEN|>", "<BOS_TOKEN>", "special_tokens_map.json",
  ),
  "cohere alone": (
    {"specials": ["<PAD>", "<BOS_TOKEN>", "<EOS_TOKEN>"], "template": "<BOS_TOKEN> $A"},
    {}, "<EOS_TOKEN>", "<BOS_TOKEN>", "its special tokens",
  ),
  "t5": (
    {"specials": ["<pad>", "</s>"], "template": "$A </s>", "model": "unigram"},
    {}, "</s>", None, "the post-processor",
  ),
  "bert": (
    {
      "specials": ["[PAD]", "[CLS]", "[SEP]"], "template": "[CLS] $A [SEP]", "model": "wordpiece",
    },
    {}, "[SEP]", "[CLS]", "the post-processor",
  ),
  "bert's map": (
    {"specials": ["[PAD]", "[CLS]", "[SEP]"], "model": "wordpiece"},
    {"tokenizer_config.json": {"cls_token": "[CLS]", "sep_token": "[SEP]"}},
    "[SEP]", "[CLS]", "tokenizer_config.json",
  ),
  "by id": (
    {"specials": ["<a>", "<b>"]},
    {"generation_config.json": {"eos_token_id": [257, 256], "bos_token_id": 256}},
    "<b>", "<a>", "generation_config.json",
  ),
  "without bos": (
    {"specials": ["<s>", "</s>"]},
    {
      "tokenizer_config.json": {
        "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False,
      }
    },
    "</s>", None, "tokenizer_config.json",
  ),
}  # fmt: skip


def read_family(folder, name, **changes):
  made, files, *expected = FAMILIES[name]
  path = write_json(folder, **made)
  for file, content in files.items():
    (folder / file).write_text(json.dumps(content))
  cfg = data_config(folder, tokenizer="huggingface", tokenizer_path=str(path), **changes)
  return cfg, expected


@pytest.mark.parametrize("name", FAMILIES)
def test_special_tokens_are_those_the_tokenizers_files_name(tmp_path, name):
  cfg, (separator, start, origin) = read_family(tmp_path, name)
  made = tokenizers.make_tokenizer(cfg)
  found = tokenizers.special_names(made)
  assert (found["separator"], found["start"]) == (separator, start or separator)
  assert found["origin"] == origin
  assert found["separator_id"] == made.backend.token_to_id(separator) == made.eot_id
  tokenizers.save_tokenizer(made, tmp_path / "saved")
  loaded = tokenizers.load_tokenizer(tmp_path / "saved")
  assert (loaded.eot_id, loaded.start_id) == (made.eot_id, made.start_id)
  assert tokenizers.fingerprint(loaded) == tokenizers.fingerprint(made)


@pytest.mark.parametrize("name", FAMILIES)
def test_no_text_splits_a_document_whatever_it_holds(tmp_path, name):
  cfg, (separator, start, _) = read_family(tmp_path, name)
  lines = [MARKED, separator, f"{separator}{separator} a", start or "b", f"a{separator}b {start}"]
  (tmp_path / "docs.txt").write_text("\n".join(lines * 20))
  changes = {"sources": (f"text:{tmp_path}/docs.txt",), "text_unit": "line", "val_split": "tail"}
  corpus = open_corpus(data_config(tmp_path, **{
    "tokenizer": "huggingface", "tokenizer_path": cfg.tokenizer_path, **changes
  }), quiet=True)  # fmt: skip
  for store in (*corpus.train, corpus.val):
    assert (store.tokens == store.eot_id).sum() == store.n_docs
    assert (store.eot_id, store.start_id) == (corpus.tokenizer.eot_id, corpus.tokenizer.start_id)
    if store.start_id != store.eot_id:
      assert (store.tokens != store.start_id).all()
  assert corpus.train[0].n_docs + corpus.val.n_docs in (100, 101)
  if FAMILIES[name][0].get("model") is None:  # byte-level: nothing is lost
    tokens = corpus.train[0].tokens[: corpus.train[0].offsets[5]].tolist()
    assert corpus.tokenizer.decode(tokens) == "".join(lines)
  assert describe(corpus)["tokenizer"]["separator"] == separator


def test_an_ordinary_entry_as_separator_is_never_taken_from_text(tmp_path):
  cfg, _ = read_family(tmp_path, "gemma", separator="</s>", start="<s>")  # plain added tokens
  made = tokenizers.make_tokenizer(cfg)
  assert tokenizers.special_names(made)["origin"] == "data.separator"
  ids = made.encode("a</s>b<s>c")
  assert made.eot_id not in ids and made.start_id not in ids
  assert made.decode([made.start_id, *ids, made.eot_id]) == "a</s>b<s>c"
  saved = tmp_path / "saved"
  tokenizers.save_tokenizer(made, saved)
  assert tokenizers.load_tokenizer(saved).encode("a</s>b<s>c") == ids


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"separator": "<eoss>"}, "data.separator=<eoss>: is no token of data.tokenizer_path; did you"),
    (
      {"start": "zzzzzz"},
      "data.start=zzzzzz: is no token of data.tokenizer_path; its special tokens",
    ),
    ({"tokenizer": "byte", "separator": "x"}, "data.separator=x: data.tokenizer=byte has its own"),
    (
      {"tokenizer": "bpe", "start": "x"},
      "data.start=x: data.tokenizer=bpe has its own; set it with",
    ),
  ],
)
def test_special_tokens_that_cannot_be_are_refused(tmp_path, changes, message):
  cfg, _ = read_family(tmp_path, "gemma")
  with pytest.raises(ConfigError) as error:
    tokenizers.make_tokenizer(dataclasses.replace(cfg, **changes))
  assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("file", "content", "message"),
  [
    ("tokenizer_config.json", "{", "tokenizer_config.json cannot be read ("),
    ("special_tokens_map.json", '{"eos_token": "<e>"}', "names the special token '<e>', which"),
  ],
)
def test_damaged_files_beside_a_tokenizer_are_named(tmp_path, file, content, message):
  cfg, _ = read_family(tmp_path, "gemma")
  (tmp_path / file).write_text(content)
  with pytest.raises(ConfigError) as error:
    tokenizers.make_tokenizer(cfg)
  assert message in str(error.value) and "\n" not in str(error.value)
  named = dataclasses.replace(cfg, separator="<eos>", start="<bos>")
  assert tokenizers.make_tokenizer(named).token(tokenizers.make_tokenizer(named).eot_id) == "<eos>"


def test_vocabularies_saved_before_there_was_a_key_keep_their_separator(tmp_path):
  """Ids that a run was trained with do not change under it: "</s>" was taken by name."""
  read_family(tmp_path, "gemma")
  saved = {"kind": "huggingface", "definition": (tmp_path / "tokenizer.json").read_text()}
  (tmp_path / "old").mkdir()
  (tmp_path / "old" / "vocabulary.json").write_text(json.dumps(saved))
  old = tokenizers.load_tokenizer(tmp_path / "old")
  assert (old.token(old.eot_id), old.token(old.start_id)) == ("</s>", "<s>")


# --- where files are found ---


@pytest.mark.parametrize(
  "names",
  [
    ("vocab.json", "merges.txt"),
    ("gpt2_vocab.json", "gpt2_merges.txt"),
    ("encoder.json", "vocab.bpe"),
  ],
)
def test_gpt2_spellings_pass_checks_and_reader_alike(gpt2_folder, tmp_path, names):
  for new, old in zip(names, ("vocab.json", "merges.txt"), strict=True):
    (tmp_path / new).write_text((gpt2_folder / old).read_text())
  settings = {"data.tokenizer": "gpt2", "data.tokenizer_path": str(tmp_path)}
  cfg = load_config("configs/default.py", settings)
  assert tokenizers.make_tokenizer(cfg.data).vocab_size == 400


def test_a_folder_serves_where_it_holds_the_file(huggingface_file, sentencepiece_file, tmp_path):
  for kind, file in (("huggingface", huggingface_file), ("sentencepiece", sentencepiece_file)):
    folder = os.path.dirname(file)
    by_folder = tokenizers.make_tokenizer(
      data_config(tmp_path, tokenizer=kind, tokenizer_path=folder)
    )
    by_file = tokenizers.make_tokenizer(data_config(tmp_path, tokenizer=kind, tokenizer_path=file))
    assert tokenizers.fingerprint(by_folder) == tokenizers.fingerprint(by_file)


def test_sentencepiece_separators_are_control_pieces(sentencepiece_file, tmp_path):
  cfg = data_config(tmp_path, tokenizer="sentencepiece", tokenizer_path=sentencepiece_file)
  made = tokenizers.make_tokenizer(dataclasses.replace(cfg, separator="<s>", start="</s>"))
  assert (made.eot_id, made.start_id) == (1, 2)
  tokenizers.save_tokenizer(made, tmp_path / "sp")
  assert tokenizers.load_tokenizer(tmp_path / "sp").eot_id == 1
  with pytest.raises(ConfigError, match=r"data.separator=the: must be a control piece .*<s>, </s>"):
    tokenizers.make_tokenizer(dataclasses.replace(cfg, separator="the"))


# --- out and in again ---


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_a_saved_tokenizer_serves_another_corpus(tmp_path, kind):
  cfg = data_config(tmp_path, tokenizer=kind, vocab_size=400, min_freq=1)
  made = tokenizers.make_tokenizer(cfg, TRAINING)
  tokenizers.save_tokenizer(made, tmp_path / "run" / "tokenizer")
  for path in ("run", "run/tokenizer", "run/tokenizer/vocabulary.json"):
    given = dataclasses.replace(cfg, tokenizer_path=str(tmp_path / path))
    assert tokenizers.known_vocab_size(given) == made.vocab_size
    again = tokenizers.make_tokenizer(given, ["not read"])
    assert tokenizers.fingerprint(again) == tokenizers.fingerprint(made)
  (tmp_path / "docs.txt").write_text("zebra\n" * 50)
  read = dataclasses.replace(given, sources=(f"text:{tmp_path}/docs.txt",), val_split="tail")
  corpus = open_corpus(read, quiet=True)
  assert tokenizers.fingerprint(corpus.tokenizer) == tokenizers.fingerprint(made)
  wrong = "word" if kind == "char" else "char"
  with pytest.raises(ConfigError, match=f"holds a {kind} tokenizer; use {kind}"):
    tokenizers.make_tokenizer(dataclasses.replace(given, tokenizer=wrong))


@pytest.mark.parametrize("kind", ["byte", "char", "word", "bpe"])
def test_exported_tokenizers_give_the_same_ids_in_their_library(tmp_path, kind):
  cfg = data_config(tmp_path, tokenizer=kind, vocab_size=400, min_freq=1)
  made = tokenizers.make_tokenizer(cfg, TRAINING)
  path = tmp_path / "tokenizer.json"
  tokenizers.to_library(made).save(str(path))
  theirs = library_package.Tokenizer.from_file(str(path))
  for text in [*TRAINING[:5], *(t for t in NASTY if "<" not in t)]:
    assert theirs.encode(text, add_special_tokens=False).ids == made.encode(text)
  given = data_config(tmp_path, tokenizer="huggingface", tokenizer_path=str(path))
  again = tokenizers.make_tokenizer(given)
  assert (again.eot_id, again.start_id) == (made.eot_id, made.start_id)
  assert again.vocab_size == made.vocab_size


def test_a_damaged_saved_tokenizer_is_one_line(tmp_path):
  for content in (
    "",
    "{",
    "[]",
    '{"kind": "char"}',
    '{"kind": "x"}',
    '{"kind": "bpe", "vocab": 3}',
  ):
    (tmp_path / "vocabulary.json").write_text(content)
    with pytest.raises(ConfigError, match=r"is no saved tokenizer \(.*\); restore it") as error:
      tokenizers.load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)


def test_wordpiece_reads_bert_vocabularies_as_transformers_does(tmp_path):
  """vocab.txt, and the letters that tokenizer_config.json asks for; "[SEP]" in a text is text."""
  transformers = pytest.importorskip("transformers")
  pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[", "]", "sep"]
  pieces += ["un", "##aff", "##able", "cafe", "Cafe", ","]
  (tmp_path / "vocab.txt").write_text("\n".join(pieces))
  for lower in (True, False):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    cfg = data_config(tmp_path, tokenizer="wordpiece", tokenizer_path=str(tmp_path))
    ours = tokenizers.make_tokenizer(cfg)
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"), do_lower_case=lower)
    for text in ("unaffable, CAFE", "Cafe unaff", "x un , ,"):
      assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), (lower, text)
    assert (ours.start_id, ours.eot_id) == (2, 3) and ours.vocab_size == len(pieces)
    assert ours.eot_id not in ours.encode("[SEP]")
  tokenizers.save_tokenizer(ours, tmp_path / "run")
  again = data_config(tmp_path, tokenizer="wordpiece", tokenizer_path=str(tmp_path / "run"))
  assert tokenizers.fingerprint(tokenizers.make_tokenizer(again)) == tokenizers.fingerprint(ours)
  (tmp_path / "vocab.txt").write_text("a\n[UNK]\n[CLS]")
  with pytest.raises(ConfigError, match=r"no wordpiece tokenizer \(lacks \[SEP\]\)"):
    tokenizers.make_tokenizer(cfg)
