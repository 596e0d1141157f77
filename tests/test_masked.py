"""Masked rows: what is hidden, how often, and that all of it follows from (seed, step, row)."""

import json

import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.data.kinds import KINDS
from lm.data.masked import MaskedBatches, MaskedEval, marks_of, open_masked
from lm.data.tokenizers import ByteTokenizer, HuggingfaceTokenizer
from lm.setup.load import load_config
from lm.setup.resolve import kind_of, resolve
from tests.corpora import write_docs


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  folder = tmp_path_factory.mktemp("docs")
  write_docs(folder, 400)
  return {
    "data.sources": (f"text:{folder}/docs.txt",), "data.text_unit": "line", "data.cache_dir": str(folder),
    "data.tokenizer": "word", "data.min_freq": 1, "model.seq_len": 32, "train.batch_size": 64,
    "eval.batch_size": 8, "eval.tokens": None,
  }  # fmt: skip


def config(source, **changes):
  changes = {key.replace("__", "."): value for key, value in changes.items()}
  cfg = load_config("configs/bert.py", source | changes)
  data = kind_of(cfg).open(cfg)
  return resolve(cfg, data.vocab_size, 1, kind_of(cfg).mean_units(data, cfg)), data


def restored(batch):
  """The tokens before any was hidden."""
  tokens_BL = batch["tokens"].copy()
  rows, columns = np.nonzero(batch["weights"])
  tokens_BL[rows, batch["places"][rows, columns]] = batch["targets"][rows, columns]
  return tokens_BL


def test_a_share_of_the_tokens_is_hidden_as_the_paper_says(source):
  cfg, data = config(source)
  marks, kinds, n_hidden, n_text = data.marks, np.zeros(3), 0, 0
  batches = MaskedBatches(data, cfg)
  for step in range(30):
    batch = batches.at(step)
    tokens_BL, real_BL = restored(batch), batch["segments"] > 0
    assert (tokens_BL[:, 0] == marks.start).all() and not (tokens_BL == marks.mask).any()
    rows, columns = np.nonzero(batch["weights"])
    shown = batch["tokens"][rows, batch["places"][rows, columns]]
    targets = batch["targets"][rows, columns]
    assert not np.isin(targets, (marks.start, marks.separator)).any()
    kinds += [
      (shown == marks.mask).sum(),
      ((shown != marks.mask) & (shown != targets)).sum(),
      (shown == targets).sum(),
    ]
    n_hidden += len(rows)
    n_text += (real_BL & ~np.isin(tokens_BL, (marks.start, marks.separator))).sum()
    assert all(
      len(set(row[w > 0])) == (w > 0).sum()
      for row, w in zip(batch["places"], batch["weights"], strict=True)
    )
  assert n_hidden / n_text == pytest.approx(0.15, abs=0.01)
  np.testing.assert_allclose(kinds / n_hidden, [0.8, 0.1, 0.1], atol=0.015)


def test_rows_hold_the_documents(source):
  """Back to back, every token of an epoch once, but for the separators."""
  cfg, data = config(source)
  batches, marks = MaskedBatches(data, cfg), data.marks
  n_rows = batches.source.n_rows
  found = np.zeros(marks.vocab_size, int)
  for step in range(-(-n_rows // 64)):
    tokens_BL = restored(batches.at(step))[: n_rows - 64 * step]
    found += np.bincount(tokens_BL.ravel(), minlength=marks.vocab_size)
  stored = np.bincount(data.corpus.train[0].tokens, minlength=marks.vocab_size)
  words = slice(3, marks.n_tokenizer)  # after <start>, <end>, <unk>
  np.testing.assert_array_equal(found[words], stored[words])


def test_a_batch_follows_from_seed_step_and_row(source):
  cfg, data = config(source, objective__next_sentence=True)
  first, again = MaskedBatches(data, cfg), MaskedBatches(data, cfg)
  other = MaskedBatches(data, config(source, seed=1, objective__next_sentence=True)[0])
  again.at(9)
  whole, part = first.at(3), again.at(3, slice(16, 24))
  for name, array in whole.items():
    np.testing.assert_array_equal(array[16:24], part[name])
  assert (whole["tokens"] != first.at(4)["tokens"]).any()
  assert (whole["tokens"] != other.at(3)["tokens"]).any()


def test_the_evaluation_set_is_hidden_alike_whatever_the_seed(source):
  sets = []
  for seed in (0, 5):
    cfg, data = config(source, seed=seed)
    sets.append(MaskedEval(KINDS["masked"].held_out(data), cfg, None, None))
  assert len(sets[0]) == len(sets[1]) > 1
  for name in sets[0].at(0):
    np.testing.assert_array_equal(sets[0].at(0)[name], sets[1].at(0)[name])
  n = sum(sets[0].at(i)["weights"].sum() for i in range(len(sets[0])))
  words = (data.corpus.val.tokens > 2).sum()
  assert n == pytest.approx(0.15 * words, rel=0.1)


def test_pairs_are_neighbours_or_of_two_documents(source):
  """Every document here ends with its number, so that what B is of can be told."""
  cfg, data = config(source, objective__next_sentence=True, model__seq_len=64)
  batches, marks = MaskedBatches(data, cfg), data.marks
  spelled = {
    tuple(store.tokens[a : b - 1].tolist())
    for store in data.corpus.train
    for a, b in zip(store.offsets[:-1], store.offsets[1:], strict=True)
  }
  follows = 0
  for step in range(4):
    batch = batches.at(step)
    for tokens_L, types_L, real_L, other in zip(
      restored(batch), batch["types"], batch["segments"], batch["other"], strict=True
    ):
      text = lambda kind, t=tokens_L, k=types_L, r=real_L: [
        i for i in t[(k == kind) & (r > 0)].tolist() if i not in (marks.start, marks.separator)
      ]
      assert (tuple(text(0) + text(1)) in spelled) == (other == 0)
      follows += other == 0
  assert 0.4 < follows / 256 < 0.6


def wordpiece():
  from tokenizers import Tokenizer, models, pre_tokenizers

  words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", "##s", "the", "dog", "."]
  backend = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
  backend.pre_tokenizer = pre_tokenizers.Whitespace()
  backend.add_special_tokens(words[:5])
  return HuggingfaceTokenizer(backend.to_str(), "[SEP]", "[CLS]")


def test_marks_come_from_the_tokenizer():
  marks = marks_of(wordpiece())
  assert (marks.start, marks.separator, marks.mask, marks.vocab_size) == (2, 3, 4, 11)
  assert marks.begins_V.tolist() == [True] * 6 + [False, False, True, True, True]
  own = marks_of(ByteTokenizer())
  assert (own.mask, own.vocab_size) == (257, 258)
  assert own.begins_V[[ord(" "), ord("."), ord("a"), 200]].tolist() == [True, True, False, False]


def test_whole_words_are_hidden_or_left(source, tmp_path):
  folder = tmp_path / "tokenizer"
  folder.mkdir()
  (folder / "tokenizer.json").write_text(wordpiece().definition)
  lines = [
    " ".join(["the dogs", "playing", "the", "playings", "."] * (3 + i % 4)) for i in range(60)
  ]
  (tmp_path / "docs.txt").write_text("\n".join(f"{line} {i}" for i, line in enumerate(lines)))
  cfg, data = config(
    source, data__sources=(f"text:{tmp_path}/docs.txt",), data__tokenizer="huggingface",
    data__tokenizer_path=str(folder / "tokenizer.json"), objective__whole_words=True,
    objective__mask_rate=0.3, data__val_fraction=0.5,
  )  # fmt: skip
  assert data.vocab_size == 11
  batch = MaskedBatches(data, cfg).at(0)
  tokens_BL, hidden_BL = restored(batch), np.zeros(batch["tokens"].shape, bool)
  rows, columns = np.nonzero(batch["weights"])
  hidden_BL[rows, batch["places"][rows, columns]] = True
  goes_on = ~data.marks.begins_V[tokens_BL]
  goes_on[:, 1] = False  # a row may begin within a word
  assert goes_on.any() and hidden_BL.any(axis=1).all()
  np.testing.assert_array_equal(hidden_BL[goes_on], np.roll(hidden_BL, 1, axis=1)[goes_on])
  assert hidden_BL.sum() <= 64 * 0.3 * 30


@pytest.mark.parametrize(("changes", "message"), [
  ({"model__seq_len": 3}, r"model\.seq_len=3: must hold 2 special tokens and 2 of text; use 4"),
  ({"data__cross_documents": False}, r"data\.cross_documents=False: .* set data\.pack=False"),
  ({"objective__mask_share": 0.95}, r"objective\.random_share=0\.1: .* must not exceed 1; use 0\.05"),
  ({"model__types": 1, "objective__next_sentence": True}, r"next_sentence=True: pairs need model\.types=2"),
  ({"sample__tokens": 5}, r"sample\.tokens=5: model\.family=bert sees both sides and writes no text; use 0"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(source, changes, message):
  with pytest.raises(ConfigError, match=message):
    config(source, **changes)


def test_one_document_has_no_next_sentence(source, tmp_path):
  (tmp_path / "one.txt").write_text("a b c d e f g h " * 40)
  one = {
    "data__sources": (f"text:{tmp_path}/one.txt",),
    "data__val_split": "tail",
    "data__text_unit": "file",
  }
  with pytest.raises(ConfigError, match=r"needs two documents and val has one"):
    config(source, **one, objective__next_sentence=True)


def test_run_json_names_the_mask(source):
  cfg, data = config(source)
  assert (
    json.loads(json.dumps(kind_of(cfg).describe(data)))["tokenizer"]["mask_id"] == data.marks.mask
  )
  assert open_masked(cfg).corpus.folder == data.corpus.folder
