"""Pairs and spans through train.py: eight devices = one, resumed = whole, trained, used, exported."""

import json

import jax
import pytest

import train
from lm import evaluate, generate
from lm.config.errors import ConfigError
from lm.devices.sharding import make_mesh
from lm.files import read_jsonl
from lm.setup.load import load_config
from lm.setup.resolve import resolve
from lm.training.programs import make_programs
from tests.equalities import assert_resumes, assert_same, resolved, run, trained

TRANSFORMER, T5 = "configs/transformer.py", "configs/t5.py"
# The bias of keys has no gradient but rounding, which Adam's small eps would turn into whole steps.
CALM = {"optim__eps": 1e-3}


@pytest.fixture(scope="module")
def reversing(tmp_path_factory):
  """A run that has learned a little of reversing words."""
  workdir = tmp_path_factory.mktemp("seq2seq") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(train.jax, "devices", lambda *_: jax.local_devices()[:1])
    trained(TRANSFORMER, workdir, "--config.train.steps=120", "--config.sample.tokens=8")
  return workdir


MESHES = {
  "data": {"mesh__replica": 2, "mesh__fsdp": 4},
  "tensor": {"mesh__replica": 1, "mesh__fsdp": 2, "mesh__tensor": 2, "mesh__sequence": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("spec", [TRANSFORMER, T5])
def test_eight_devices_give_what_one_gives(spec, mesh):
  more = {"model__vocab_size": 512, **CALM}
  one = resolved(spec, mesh__replica=1, **more)
  eight = resolved(spec, 8, **more, **MESHES[mesh])
  first, second = run(*one), run(*eight, n_devices=8)
  assert len({float(m["train/loss"]) for m in first[0]}) == 4
  assert_same(first, second)


def test_two_devices_give_what_one_gives():
  more = {"mesh__replica": 1, "model__vocab_size": 320, **CALM}
  one, two = resolved(TRANSFORMER, **more), resolved(TRANSFORMER, 2, mesh__tensor=2, **more)
  assert_same(run(*one, steps=2), run(*two, steps=2, n_devices=2))


@pytest.mark.slow
@pytest.mark.parametrize("spec", [TRANSFORMER, T5])
def test_a_resumed_run_ends_with_the_same_bits(monkeypatch, tmp_path, spec):
  assert_resumes(
    monkeypatch, tmp_path, spec, "--config.train.steps=12", "--config.checkpoint.every_steps=4",
    "--config.eval.every_steps=4", "--config.log.every_steps=2", "--config.train.accumulate=2",
    "--config.model.dropout=0.1",
  )  # fmt: skip


def test_it_learns_and_the_record_counts_both_sides(reversing):
  records = read_jsonl(reversing / "metrics.jsonl")
  losses = [r["eval/val/loss"] for r in records if "eval/val/loss" in r]
  assert losses[-1] < 1.2 < losses[0] + 0.5
  about = json.loads((reversing / "run.json").read_text())
  assert about["status"] == "done" and about["unit"] == "tokens"
  assert records[-1]["tokens"] / 120 > 8 * 60  # of rows with up to 128


def test_evaluation_gives_the_record_again(reversing, capsys):
  assert evaluate.main(["--workdir", str(reversing), "--checkpoint", "latest", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  last = read_jsonl(reversing / "metrics.jsonl")[-1]
  assert found["loss"] == pytest.approx(last["eval/val/loss"], rel=1e-5)


def test_texts_are_written_by_draws_and_by_beams(reversing, capsys):
  base = ["--workdir", str(reversing), "--prompt", "red cat", "--json", "--tokens", "24"]
  assert generate.main([*base, "--temperature", "0"]) == 0
  assert generate.main([*base, "--beams", "3", "--n", "2"]) == 0
  greedy, *best = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert len(best) == 2 and best[0]["text"] != best[1]["text"]
  assert greedy["prompt"] == "red cat" and set(greedy["text"]) <= set("abcdefghijklnorstuw ")


@pytest.mark.parametrize(
  ("words", "message"),
  [
    (["--prompt", "x" * 64], "source must fit the model's model.seq_len=64; shorten it"),
    (["--prompt", "a", "--tokens", "65"], "tokens=65: must fit the model's model.target_len=64"),
    (["--prompt", "a", "--beams", "2", "--n", "3"], "n=3: must not exceed --beams 2"),
    (["--prompt", "a", "--beams", "2", "--top_k", "3"], "top_k=3: is of draws, and --beams"),
    (["--prompt", "a", "--length_penalty", "2"], "length_penalty=2.0: needs --beams"),
    (["--prompt", "a", "--beams", "-1"], r"beams=-1: must be in \[0, 65536\]"),
  ],
)
def test_what_cannot_be_written_is_refused(reversing, words, message):
  with pytest.raises(ConfigError, match=message):
    generate.main(["--workdir", str(reversing), *words])


def test_translations_are_scored_as_sacrebleu_scores_them(reversing, tmp_path, capsys):
  import sacrebleu

  pairs = [("red cat sits", "sits cat red"), ("dog runs", "runs dog"), ("here", "here")]
  for side, name in enumerate(("a", "b")):
    (tmp_path / name).write_text("".join(f"{pair[side]}\n" for pair in pairs))
  out = tmp_path / "answers.jsonl"
  words = [
    "--workdir",
    str(reversing),
    "--task",
    f"translation:{tmp_path}/a,{tmp_path}/b",
    "--json",
  ]
  assert evaluate.main([*words, "--beams", "2", "--answers", str(out)]) == 0
  found, answers = json.loads(capsys.readouterr().out), read_jsonl(out)
  assert [(a["source"], a["references"]) for a in answers] == [(s, [t]) for s, t in pairs]
  wrote, right = [a["answer"] for a in answers], [[t for _, t in pairs]]
  assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(wrote, right).score)
  assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(wrote, right).score)
  assert found["examples"] == 3 and found["tokens_per_sec"] > 0
  assert evaluate.main([*words, "--limit", "1"]) == 0
  assert json.loads(capsys.readouterr().out)["examples"] == 1


def test_summaries_are_scored_beside_the_first_sentence(reversing, tmp_path, capsys):
  file = tmp_path / "t.jsonl"
  record = {"source": ["A cat.", "It sits."], "target": ["the cat sits", "a cat"]}
  file.write_text(json.dumps(record) + "\n")
  assert evaluate.main(["--workdir", str(reversing), "--task", f"summary:{file}", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["lead1_rouge1"] == pytest.approx(100)  # "A cat." is the second reference
  assert 0 <= found["rouge1"] <= 100 and {"rouge2", "rougeL", "lead1_rougeL"} <= set(found)


@pytest.mark.parametrize(
  ("task", "more", "message"),
  [
    ("translation:nowhere,too", [], "no file matches"),
    ("translation:x,y", ["--beams", "0"], "beams=0: must be at least 1"),
    ("summary:x.jsonl", ["--limit", "0"], "limit=0: must be at least 1"),
    ("summary:x.jsonl", [], "task=x.jsonl: cannot be read"),
    (
      "translation:x,y",
      ["--length_penalty", "2"],
      "length_penalty=2.0: is of beams; add --beams 5",
    ),
    (
      "translation:x,y",
      ["--answers", "no/where"],
      "answers=no/where: must be in a folder that exists",
    ),
    ("samples:x.txt", ["--answers", "y"], "answers=y: is of tasks that write, such as translation"),
    ("samples:x.txt", ["--beams", "5"], "beams=5: is of tasks that write, such as translation"),
  ],
)
def test_what_no_task_takes_is_refused(reversing, task, more, message):
  with pytest.raises(ConfigError, match=message):
    evaluate.main(["--workdir", str(reversing), "--task", task, *more])


@pytest.mark.parametrize(
  ("spec", "changes", "message"),
  [
    ("configs/smoke.py", {"objective.name": "seq2seq"}, "reads no pairs|has no key"),
    (TRANSFORMER, {"model.width": 33, "model.heads": 3}, "model.width=33: must be even"),
    (TRANSFORMER, {"model.heads": 3}, "model.width=32: must be divisible by 3"),
    (T5, {"model.buckets": 6}, "model.buckets=6: must be a multiple of 4"),
    (T5, {"model.max_distance": 16}, "model.max_distance=16: must be above half of model.buckets"),
    (T5, {"objective.denoisers": ()}, "must name at least one; use 0.15x3"),
    (T5, {"model.target_len": 2}, "model.target_len=2: leaves no room"),
  ],
)
def test_what_makes_no_sense_is_said(spec, changes, message):
  with pytest.raises(ConfigError, match=message):
    load_config(spec, changes)


def test_objectives_and_families_that_do_not_fit_are_refused(tmp_path):
  settings = {"objective.name": "next_token", "data.cache_dir": str(tmp_path)}
  from configs import default, transformer
  from lm.config import read
  from lm.setup.load import sections_of

  config = transformer.get_config()
  with config.unlocked():
    config.objective = default.get_config().objective
    config.data.sources = ("synthetic:markov-64-s1-n20",)
  cfg = resolve(read.to_config(config, settings, sections_of), 257, 1)
  with pytest.raises(
    ConfigError, match=r"needs a model with hidden, which model.family=encoder_decoder"
  ):
    make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:1]))
