"""Labelled texts: fields of records, classes of the training split, rows, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.data import augment, order
from lm.data.kinds import KINDS
from lm.data.labelled import LabelledBatches, LabelledEval, cut, open_graded, string_of
from lm.files import write_json
from lm.runs import summary
from lm.setup.load import load_config
from lm.setup.resolve import kind_of, resolve
from tests.corpora import WORDS

N = 120


def sentence(i):
  return " ".join(WORDS[(i * 7 + j * j) % len(WORDS)] for j in range(3 + i % 9))


def write(folder, name="rows.jsonl", n=N, **changes):
  lines = []
  for i in range(n):
    row = {
      "text": f"{sentence(i)} {i}",
      "second": sentence(i + 1),
      "label": "no" if i % 3 else "yes",
    }
    lines.append(json.dumps(row | {"grade": i / n} | changes))
  (folder / name).write_text("\n".join(lines))
  return f"text:{folder}/{name}"


@pytest.fixture
def source(tmp_path):
  return {
    "data.sources": (write(tmp_path),), "data.cache_dir": str(tmp_path / "cache"), "data.tokenizer": "word",
    "data.min_freq": 1, "data.val_fraction": 0.2, "data.label_field": "label", "data.truncate": False,
    "model.seq_len": 32, "train.batch_size": 16, "eval.batch_size": 8, "eval.tokens": None,
  }  # fmt: skip


def config(source, **changes):
  changes = {key.replace("__", "."): value for key, value in changes.items()}
  cfg = load_config("configs/classify.py", source | changes)
  data = kind_of(cfg).open(cfg)
  return resolve(cfg, data.vocab_size, 1, kind_of(cfg).mean_units(data, cfg)), data


def texts_of(data, batch):
  """(text, second text or "", label) of every row."""
  found = []
  types_BL = batch.get("types", np.zeros_like(batch["tokens"]))
  rows = zip(batch["tokens"], batch["segments"], types_BL, batch["label"], strict=True)
  for tokens_L, real_L, types_L, label in rows:
    parts = [
      data.tokenizer.decode(tokens_L[(real_L > 0) & (types_L == j)].tolist()) for j in (0, 1)
    ]
    found.append((*parts, label))
  return found


def test_an_epoch_holds_every_record_once_with_its_label(source):
  cfg, data = config(source)
  assert data.learned["labels"] == ["no", "yes"]
  assert data.vocab_size == data.tokenizer.vocab_size
  batches, n, seen = LabelledBatches(data, cfg), len(data.train["labels"]), []
  for step in range(-(-n // 16)):
    seen += texts_of(data, batches.at(step))
  seen = seen[:n]
  assert len({text for text, *_ in seen}) == len(seen) == n
  for text, _, label in seen:
    number = int(text.split()[-1])
    assert text == f"{sentence(number)} {number}" and label == (0 if number % 3 else 1)
  held_out = {string_of(data.val, i) for i in range(len(data.val["labels"]))}
  assert not held_out & {text for text, *_ in seen} and len(held_out) + len(seen) == N


def test_pairs_stand_in_one_row_and_are_told_apart(source):
  cfg, data = config(source, data__pair_field="second")
  for text, second, _ in texts_of(data, LabelledBatches(data, cfg).at(2)):
    assert second == sentence(int(text.split()[-1]) + 1)


def test_a_batch_follows_from_seed_step_and_row(source):
  changes = {
    "data__augment_share": 0.7,
    "data__augment_ops": ("swap", "delete"),
    "data__token_dropout": 0.2,
  }
  cfg, data = config(source, **changes)
  first, again = LabelledBatches(data, cfg), LabelledBatches(data, cfg)
  plain = LabelledBatches(data, config(source)[0])
  again.at(9)
  whole, part = first.at(3), again.at(3, slice(4, 8))
  for name, array in whole.items():
    np.testing.assert_array_equal(array[4:8], part[name])
  assert (whole["tokens"] != plain.at(3)["tokens"]).any()
  np.testing.assert_array_equal(whole["label"], plain.at(3)["label"])
  each = LabelledEval(KINDS["labelled"].held_out(data), cfg, None, None)
  same = LabelledEval(KINDS["labelled"].held_out(data), config(source)[0], None, None)
  np.testing.assert_array_equal(each.at(0)["tokens"], same.at(0)["tokens"])  # never changed


def test_an_evaluation_set_is_read_whole_and_padded(source):
  cfg, data = config(source)
  batches = LabelledEval(KINDS["labelled"].held_out(data), cfg, None, None)
  weights = np.concatenate([batches.at(i)["weights"] for i in range(len(batches))])
  assert weights.sum() == len(data.val["labels"]) == batches.facts["texts"]
  some = LabelledEval(KINDS["labelled"].held_out(data), cfg, 40, None)
  assert 0 < some.facts["tokens"] <= 40 and some.facts["texts"] < len(data.val["labels"])


def test_columns_without_a_header_go_by_number(source, tmp_path):
  lines = [f"{sentence(i)} {i}\t{'b' if i % 2 else 'a'}" for i in range(40)]
  (tmp_path / "rows.tsv").write_text("\n".join(lines))
  numbers = {"data__text_field": "0", "data__label_field": "1"}
  _, data = config(source, data__sources=(f"text:{tmp_path}/rows.tsv",), **numbers)
  assert len(data.train["labels"]) + len(data.val["labels"]) == 40
  assert data.learned["labels"] == ["a", "b"]


def test_long_texts_are_refused_or_cut(source):
  with pytest.raises(
    ConfigError, match=r"model\.seq_len=8: \d+ of \d+ records of train are longer, up to 14"
  ):
    config(source, model__seq_len=8)
  cfg, data = config(source, model__seq_len=8, data__truncate=True)
  batch = LabelledBatches(data, cfg).at(0)
  assert batch["tokens"].shape[1] == 8
  ends = batch["tokens"][np.arange(16), batch["segments"].sum(axis=1) - 1]
  assert (ends == data.tokenizer.eot_id).all()
  long = [np.arange(n) for n in (9, 4)]
  assert [len(part) for part in cut(long, 12)] == [5, 4]
  assert [len(part) for part in cut(long, 9)] == [3, 3]


@pytest.mark.parametrize(("changes", "message"), [
  ({"data.label_field": None}, r"data\.label_field=None: objective\.name=classification needs labels"),
  ({"data.label_field": "lable"}, r"data\.label_field=lable: .*rows\.jsonl:1 has no such text"),
  ({"data.label_field": "text"}, r"data\.label_field=text: texts and label must be in different fields"),
  ({"objective.classes": 3}, r"objective\.classes=3: the training texts have 2 labels \(no, yes\); use 2"),
  ({"data.weights": (1.0,)}, r"data\.weights=1\.0: labelled sources are not weighted"),
  ({"data.augment_share": 0.5}, r"data\.augment_ops=replace: takes synonyms and data\.synonyms names"),
  ({"data.sources": ("python",)}, r"data\.sources=python: has no fields; use text:FILES"),
  ({"objective.pooling": "middle"}, r"objective\.pooling=middle: must be one of"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(source, changes, message):
  with pytest.raises(ConfigError, match=message):
    config(source | changes)


def test_a_label_that_training_lacks_is_refused_with_its_place(source, tmp_path):
  other = write(tmp_path, "other.jsonl", 3, label="maybe")
  _, data = config(source)
  with pytest.raises(
    ConfigError, match=r"other\.jsonl:1 has the label 'maybe', which no training text has"
  ):
    data.extra(other)
  again = write(tmp_path, "again.jsonl", 5, label="no")
  assert data.extra(f"again={again}")["labels"].tolist() == [0] * 5


def test_a_text_that_stands_twice_is_dropped_and_counted_when_asked(source, tmp_path):
  write(tmp_path, "again.jsonl")
  twice = {"data.sources": (f"text:{tmp_path}/*.jsonl",)}
  sizes = {}
  for drop in (False, True):
    _, data = config(source | twice, data__drop_duplicates=drop)
    sizes[drop] = len(data.train["labels"]) + len(data.val["labels"])
  assert sizes == {False: 2 * N, True: N} and data.learned["documents"]["duplicate"] == N


def test_grades_are_numbers(source, tmp_path):
  cfg = load_config("configs/classify.py", source | {"data.label_field": "grade"})
  data = open_graded(cfg)
  assert data.learned["labels"] is None and data.train["labels"].dtype == np.float32
  with pytest.raises(ConfigError, match="has 'yes', which is no number"):
    open_graded(load_config("configs/classify.py", source))


def test_the_record_names_a_further_set_by_what_it_holds(source, tmp_path):
  found = []
  for n in (10, 12):
    cfg, data = config(source, eval__sets=(f"more={write(tmp_path, 'more.jsonl', n)}",))
    more = KINDS["labelled"].sets(data, cfg)["more"]
    assert kind_of(cfg).describe(data)["sets"] == {"more": more.fingerprint}
    found.append(more.fingerprint)
  assert found[0] != found[1]


def test_no_text_without_labels_is_proposed_to_score_it_on(source, tmp_path):
  cfg, _ = config(source)
  (tmp_path / "run").mkdir()
  write_json(tmp_path / "run" / "config.json", dataclasses.asdict(cfg))
  commands = summary._next_commands(tmp_path / "run", ["train.py"])
  assert not any("--data" in command for command in commands)


ANY_TEXT = ("smoke", "bert", "t5", "word2vec", "lstm")  # of configs/


@pytest.mark.parametrize("spec", [*ANY_TEXT, "glove", "squad", "tagging", "transformer"])
def test_a_run_proposes_another_text_only_where_any_will_do(spec, tmp_path):
  write_json(tmp_path / "config.json", dataclasses.asdict(load_config(f"configs/{spec}.py", {})))
  commands = summary._next_commands(tmp_path, ["train.py"])
  proposed = any("--data python --max_tokens" in command for command in commands)
  assert proposed == (spec in ANY_TEXT)


def test_keys_of_labelled_texts_are_refused_elsewhere():
  with pytest.raises(ConfigError, match=r"data\.token_dropout=0\.1: is for labelled texts"):
    load_config("configs/smoke.py", {"data.token_dropout": 0.1})


# --- augmentation ---

SYNONYMS = {"cat": ["feline", "kitty"], "ran": ["went"]}


def changed(op, n=200, rate=0.2, text="the cat sat while dogs ran after seven birds"):
  words = text.split()
  found = []
  for i in range(n):
    numbers = iter(order.uniform(order.fold(1, i), 64)[0].tolist())
    draw = lambda k, numbers=numbers: int(next(numbers) * k)
    found.append(augment.OPS[op](words, rate, SYNONYMS, draw))
  return words, found


def test_eda_does_what_the_paper_says():
  words, swapped = changed("swap")
  assert all(sorted(s) == sorted(words) for s in swapped) and any(s != words for s in swapped)
  words, replaced = changed("replace", rate=0.12)
  assert {w for s in replaced for w in set(s) - set(words)} == {"feline", "kitty", "went"}
  assert all(
    len(s) == len(words) and sum(a != b for a, b in zip(s, words, strict=True)) == 1
    for s in replaced
  )
  words, inserted = changed("insert", rate=0.25)
  assert all(len(s) == len(words) + 2 for s in inserted)
  words, deleted = changed("delete", rate=0.3)
  kept = np.mean([len(s) / len(words) for s in deleted])
  assert kept == pytest.approx(0.7, abs=0.05) and min(map(len, deleted)) >= 1
  assert changed("delete", n=5, rate=1.0)[1] != [[]] * 5


def test_dropped_tokens_leave_one():
  ids = np.arange(1000)
  left = augment.without_some(ids, 0.3, order.fold(3))
  assert len(left) == pytest.approx(700, abs=60) and (np.diff(left) > 0).all()
  assert len(augment.without_some(np.array([5]), 0.99, order.fold(4))) == 1


def test_a_file_of_synonyms_is_read_or_refused(tmp_path):
  (tmp_path / "good.txt").write_text("cat: feline, kitty\n\nran: went\n")
  assert augment.read_synonyms(str(tmp_path / "good.txt")) == SYNONYMS
  (tmp_path / "bad.txt").write_text("cat: feline\nran\n")
  with pytest.raises(ConfigError, match=r'line 2 must be "word: other, other"; mend it'):
    augment.read_synonyms(str(tmp_path / "bad.txt"))
