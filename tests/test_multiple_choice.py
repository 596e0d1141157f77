"""Answers chosen by likelihood: against log-likelihoods worked out token by token, and what is refused."""

import json

import jax
import numpy as np
import pytest

from lm import evaluate
from lm.config.errors import ConfigError
from lm.runs.load import load
from lm.tasks import multiple_choice as task
from tests.trained import run


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("choices") / "decoder"
  run(workdir, model__seq_len=64)
  return workdir


def lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return path


ROWS = [
  {"question": "one", "choices": ["ab", "a long answer"], "answer": 0},
  {"question": "two of", "choices": ["c", "de", "de f"], "answer": "C"},
  {"question": "three", "choices": ["xy", "zz"], "answer": "zz"},
]


def by_hand(loaded, context, text):
  """(log p, tokens) from logits of the row alone, without a batch and without padding, in float64."""
  t = loaded.tokenizer
  ids, first = [t.start_id, *t.encode(context + text)], len(t.encode(context))
  total = 0.0
  forward = jax.jit(lambda params, ids: loaded.model.apply({"params": params}, ids))
  logits = np.asarray(forward(loaded.params, np.array([ids], np.int32)), np.float64)[0]
  for at in range(first, len(ids) - 1):
    total += logits[at, ids[at + 1]] - np.log(np.exp(logits[at]).sum())
  return total, len(ids) - 1 - first


def test_scores_are_sums_of_log_probabilities(decoder):
  loaded = load(decoder)
  pairs = [(r["question"], f" {c}") for r in ROWS for c in r["choices"]]
  for pair, scored in zip(pairs, task.score(loaded, pairs), strict=True):
    log_p, tokens = by_hand(loaded, *pair)
    assert scored.tokens == tokens == len(pair[1])  # bytes are tokens here, the blank included
    assert scored.log_p == pytest.approx(log_p, rel=1e-4)
    assert scored.bytes == len(pair[1]) - 1


def test_what_all_texts_begin_with_is_read_once_and_changes_no_score(decoder):
  loaded = load(decoder)
  pairs = [("the same words before them all, " + a, f" {b}") for a in "no" for b in ("c", "de f")]
  rows = [([loaded.tokenizer.start_id, *loaded.tokenizer.encode(a + b)], len(a)) for a, b in pairs]
  assert task._shared(rows) == 33 > task.STEP
  for pair, scored in zip(pairs, task.score(loaded, pairs), strict=True):
    log_p, tokens = by_hand(loaded, *pair)
    assert scored.tokens == tokens and scored.log_p == pytest.approx(log_p, rel=1e-4)


def test_accuracies_follow_from_the_scores_and_may_differ(decoder, tmp_path, capsys):
  loaded, file = load(decoder), lines(tmp_path / "q.jsonl", ROWS)
  answers, right = [0, 2, 1], {"raw": 0, "per_token": 0, "per_byte": 0}
  for row, answer in zip(ROWS, answers, strict=True):
    found = [(*by_hand(loaded, row["question"], f" {c}"), len(c)) for c in row["choices"]]
    right["raw"] += np.argmax([p for p, _, _ in found]) == answer
    right["per_token"] += np.argmax([p / n for p, n, _ in found]) == answer
    right["per_byte"] += np.argmax([p / b for p, _, b in found]) == answer
  words = ["--workdir", str(decoder), "--task", f"multiple_choice:{file}", "--json"]
  assert evaluate.main(words) == 0
  said = json.loads(capsys.readouterr().out)
  assert {k: said[f"accuracy_{k}"] for k in right} == {k: n / 3 for k, n in right.items()}
  assert said["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)
  assert (said["questions"], said["shots"]) == (3, 0) and said["seconds"] > 0


def test_examples_stand_before_the_questions_that_are_scored(decoder, tmp_path, monkeypatch):
  file, seen = lines(tmp_path / "q.jsonl", ROWS), []
  score = task.score
  monkeypatch.setattr(task, "score", lambda run, pairs: seen.extend(pairs) or score(run, pairs))
  found = task.evaluate(decoder, f"{file}:2", "best")
  assert (found["questions"], found["shots"], found["chance"]) == (1, 2, 0.5)
  assert seen[0] == ("one ab\n\ntwo of de f\n\nthree", " xy") and len(seen) == 2


@pytest.mark.parametrize(
  ("rows", "after", "message"),
  [
    (["{"], "", 'line 1 must be {"question": text'),
    ([{"question": "q", "choices": ["a"], "answer": 0}], "", "at least two choices"),
    ([{"question": "q", "choices": ["a", 3], "answer": 0}], "", "all texts"),
    (
      [{"question": "q", "choices": ["a", "b"], "answer": 2}],
      "",
      "has the answer 2, which is none",
    ),
    ([{"question": "q", "choices": ["a", "b"], "answer": True}], "", "has the answer True"),
    (
      [{"question": "q", "choices": ["a", "\ud800"], "answer": 0}],
      "",
      "line 1 has a lone surrogate",
    ),
    ([], "", "holds no question"),
    (ROWS, ":3", "3 of 3 questions are examples and none is left"),
    ([{"question": "q" * 70, "choices": ["a", "b"], "answer": 0}], "", "and the model reads 64"),
  ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(decoder, tmp_path, rows, after, message):
  file = tmp_path / "bad.jsonl"
  file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
  with pytest.raises(ConfigError, match=message):
    task.evaluate(decoder, f"{file}{after}", "best")


def test_a_model_that_reads_a_source_is_refused(tmp_path):
  workdir, file = tmp_path / "pairs", lines(tmp_path / "q.jsonl", ROWS)
  run(workdir, config="configs/transformer.py", tiny={}, train__steps=1, eval__every_steps=1)
  with pytest.raises(
    ConfigError, match=r"model\.family=encoder_decoder does not go on with a text"
  ):
    task.evaluate(workdir, str(file), "best")
