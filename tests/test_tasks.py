"""Tasks: scores against their definitions, and what a task refuses."""

import json

import pytest

from lm import evaluate
from lm.config.errors import ConfigError
from lm.runs.load import LoadedRun, load
from lm.setup.load import load_config
from lm.tasks import samples
from lm.tasks.texts import Writing, answers, read_examples
from tests.trained import run


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("tasks") / "decoder"
  run(workdir, model__seq_len=128)
  return workdir


def test_distinct_counts_different_n_grams():
  assert samples.distinct(["a b a b"], 1) == 2 / 4
  assert samples.distinct(["a b a b", "b a c"], 2) == 3 / 5
  assert samples.distinct(["a"], 2) == 0


def test_self_bleu_is_100_for_equal_texts_and_0_for_texts_that_share_nothing():
  same = ["a cat sat on the mat"] * 3
  assert samples.self_bleu(same) == pytest.approx(100)
  apart = ["a b c d e", "f g h i j", "k l m n o"]
  assert samples.self_bleu(apart) < 10 < samples.self_bleu([*same[:2], *apart[:1]])


def test_samples_of_a_run_are_scored(decoder, tmp_path, capsys):
  prompts = tmp_path / "prompts.txt"
  prompts.write_text("a\nb\nab\n")
  assert evaluate.main(["--workdir", str(decoder), "--task", f"samples:{prompts}", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert 0 < found["distinct_2"] <= 1 and 0 <= found["self_bleu"] <= 100
  assert found["seconds"] > 0 and found["peak_bytes"] > 1e6


def test_a_cue_stands_after_each_source_and_answers_end_before_the_stop(decoder, tmp_path, capsys):
  loaded, sources = load(decoder), ["A first sentence. More of it.", "Another one!"]
  plain = answers(loaded, sources, Writing())
  cued = answers(loaded, sources, Writing(cue=" So:"))
  assert cued == answers(loaded, [f"{text} So:" for text in sources], Writing()) != plain
  stop = cued[0][2]
  assert answers(loaded, sources, Writing(cue=" So:", stop=stop)) == [
    text.split(stop)[0] for text in cued
  ]
  file = tmp_path / "s.jsonl"
  file.write_text("".join(json.dumps({"source": t, "target": "A first"}) + "\n" for t in sources))
  words = ["--workdir", str(decoder), "--task", f"summary:{file}", "--json"]
  found = []
  for more in ([], ["--cue", " So:", "--stop", stop]):
    assert evaluate.main([*words, *more]) == 0
    found.append(json.loads(capsys.readouterr().out))
  assert found[0]["lead1_rouge1"] == found[1]["lead1_rouge1"] > 0  # of the source alone


def test_sources_longer_than_the_model_are_cut_only_when_told_to(decoder, tmp_path, monkeypatch):
  short, long = "A short one.", "x" * 200
  file = tmp_path / "s.jsonl"
  file.write_text("".join(json.dumps({"source": t, "target": "a"}) + "\n" for t in (short, long)))
  words = ["--workdir", str(decoder), "--task", f"summary:{file}", "--cue", " So:", "--json"]
  with pytest.raises(ConfigError, match=r"is 205 tokens \(number 2\), .* reads 127 before it wr"):
    evaluate.main(words)
  asked = []
  monkeypatch.setattr(
    LoadedRun, "generate", lambda _, prompts, *more: asked.extend(prompts) or prompts
  )
  assert evaluate.main([*words, "--truncate"]) == 0
  kept = 128 - 64 - len(" So:") - 1  # of 128 tokens 64 are left to the answer, one is the start
  assert set(asked) == {short + " So:", "x" * kept + " So:"}


def test_speed_and_memory_stand_in_every_answer(decoder, tmp_path, capsys):
  (tmp_path / "p.txt").write_text("a\nb\n")
  question = {"question": "a", "choices": ["b", "c"], "answer": 0}
  (tmp_path / "q.jsonl").write_text(json.dumps(question) + "\n")
  for more in (
    ["--max_tokens", "600"],
    ["--task", f"samples:{tmp_path / 'p.txt'}"],
    ["--task", f"multiple_choice:{tmp_path / 'q.jsonl'}"],
  ):
    assert evaluate.main(["--workdir", str(decoder), "--json", *more]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seconds"] > 0 and found["tokens_per_sec"] > 0 and found["peak_bytes"] > 1e6


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--truncate"], r"truncate=True: is of records with labels that --data names; leave it out"),
    (["--task", "samples:x", "--truncate"], r"truncate=True: is of tasks that write"),
    (["--task", "samples:x", "--cue", "a"], r"cue=a: is of tasks that write, such as translation"),
    (["--task", "squad:x", "--stop", "a"], r"stop=a: is of tasks that write, such as translation"),
    (["--task", "summary:x", "--stop", ""], r"stop=: must be a text that is not empty"),
    (["--stop", "a"], r"stop=a: is of a task; add --task"),
    (["--task", "sampels:x"], r"task=sampels:x: no such task; did you mean samples\? \(labels"),
    (["--task", "samples"], r"task=samples: needs a file; write e.g. samples:prompts.txt"),
    (["--task", "samples:nowhere.txt"], r"task=nowhere.txt: cannot be read"),
    (["--task", "samples:x", "--stride", "4"], r"stride=4: is not of a task; leave it out"),
  ],
)
def test_what_fits_no_task_is_refused_in_one_line(decoder, words, message):
  with pytest.raises(ConfigError, match=message):
    evaluate.main(["--workdir", str(decoder), *words])


def test_one_prompt_has_nothing_to_be_compared_with(decoder, tmp_path):
  (tmp_path / "one.txt").write_text("a\n")
  with pytest.raises(ConfigError, match="must hold 2 to 1,000 prompts"):
    evaluate.main(["--workdir", str(decoder), "--task", f"samples:{tmp_path / 'one.txt'}"])


@pytest.mark.parametrize(("content", "message"), [
  (b"\xff\xfe", "is no text in UTF-8; convert it"),
  (b"5\n", r":1 is no JSON object; mend the line"),
  (b"{\n", r":1 is no JSON \("),
  (b'{"source": "a", "target": "\\ud800"}\n', r":1 has a lone surrogate, which is no character"),
  (b'{"source": "a"}\n', r"data.target_field=target: .*:1 has no text there; it has: source"),
])  # fmt: skip
def test_examples_that_cannot_be_read_are_named(tmp_path, content, message):
  (tmp_path / "x.jsonl").write_bytes(content)
  cfg = load_config("configs/smoke.py").data
  with pytest.raises(ConfigError, match=message):
    read_examples("summary", str(tmp_path / "x.jsonl"), cfg, None)
