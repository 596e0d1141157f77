"""Sentinels and modes by name: in prompts, in what is written, and in folders that transformers reads."""

import itertools
import json

import numpy as np
import pytest

from lm import generate
from lm.config.errors import ConfigError
from lm.data.span_names import span_names, with_span_names
from lm.data.spans import SpanBatches, extra_ids, open_spans
from lm.data.tokenizers import ByteTokenizer, WordTokenizer
from lm.hf import __main__ as hf
from lm.hf.tokenizer_files import write_tokenizer
from lm.runs.load import load
from lm.setup.load import load_config
from lm.setup.resolve import resolve
from tests.trained import run

MODES = ["[R]", "[S]", "[X]"]


def config(spec, **changes):
  small = {"model.seq_len": 24, "model.target_len": 24}
  return resolve(load_config(spec, small | changes), 257, 1)


def test_names_stand_for_the_ids_that_training_reads():
  cfg = config("configs/ul2.py:smoke", **{"data.tokenizer": "byte"})
  names = span_names(cfg)
  assert names[-3:] == MODES and len(names) == extra_ids(cfg)
  corpus = open_spans(cfg)
  t = with_span_names(corpus.tokenizer, cfg)
  assert t.vocab_size == corpus.vocab_size == 257 + len(names)
  rows = SpanBatches(corpus, cfg).at(0)
  seen = set()
  for source, real, target in zip(
    rows["source"], rows["source_segments"], rows["targets"], strict=True
  ):
    ids = source[real > 0].tolist()
    text = t.decode(ids)
    mode = text[:3]
    assert mode in MODES and "<extra_id_0>" in text and ids[-1] == t.eot_id
    assert t.decode(target.tolist()).startswith("<extra_id_0>")
    assert t.encode(f"{mode}  " + text[3:])[0] == ids[0] == 257 + names.index(mode)
    blanks = [a for a, b in itertools.pairwise(ids) if a == ord(" ") and b >= 257]
    if not blanks and source[1] != ord(" ") and "\ufffd" not in text:
      assert t.encode(text) == ids[:-1]
      seen.add(mode)
  assert seen


def test_blanks_before_a_sentinel_and_after_a_mode_are_left_out():
  cfg = config("configs/ul2.py:smoke")
  t, first = with_span_names(ByteTokenizer(), cfg), 257
  n = extra_ids(cfg) - 3
  assert t.encode("[S] a <extra_id_0> b[X]") == [first + n + 1, 97, first, 32, 98, first + n + 2]
  assert t.encode("[CLS]") == [*b"[CLS]"]
  with pytest.raises(
    ConfigError, match=rf"prompt=<extra_id_{n}>: the last sentinel .* <extra_id_{n - 1}>"
  ):
    t.encode(f"<extra_id_{n}>")
  words = WordTokenizer(["a", "b"])
  joined = with_span_names(words, config("configs/t5.py:smoke"))
  a = words.encode("a")[0]
  assert joined.decode([a, words.vocab_size, a, a]) == "a <extra_id_0> a a"
  assert joined.encode("a <extra_id_0> a") == [a, words.vocab_size, a]


def test_denoisers_without_modes_are_named_by_themselves_and_others_have_no_names():
  several = config("configs/t5.py:smoke", **{"objective.denoisers": "0.15x3,0.25xtail,0.15x3"})
  assert span_names(several)[-3:] == ["[0.15x3]", "[0.25xtail]", "[0.15x3/2]"]
  assert len(span_names(several)) == extra_ids(several)
  plain = resolve(load_config("configs/smoke.py", {}), 257, 1)
  t = ByteTokenizer()
  assert with_span_names(t, plain) is t and span_names(plain) == []


@pytest.mark.parametrize("words", [False, True], ids=["byte", "word"])
def test_a_tokenizer_json_has_the_names_with_the_same_ids(tmp_path, words):
  transformers = pytest.importorskip("transformers")
  mine = WordTokenizer(["a", "b"]) if words else ByteTokenizer()
  cfg = config("configs/ul2.py:smoke")
  t = with_span_names(mine, cfg)
  write_tokenizer(mine, tmp_path / "none", tmp_path, 24, further=span_names(cfg))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
  for text in ("[S] a <extra_id_0> b", "<extra_id_1>a", "b [X]  a<extra_id_0> <extra_id_1>"):
    assert theirs(text, add_special_tokens=False)["input_ids"] == t.encode(text)
  assert len(theirs) == t.vocab_size


@pytest.mark.slow
def test_what_is_filled_in_is_what_transformers_fills_in(tmp_path, capsys):
  """By the command line, from an exported folder, and from that folder imported again."""
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  workdir, out, again = (tmp_path / name for name in ("run", "out", "again"))
  tiny = {"train.steps": 60, "eval.tokens": 2048, "eval.every_steps": 60, "model.width": 32}
  tiny |= {
    "model.seq_len": 32,
    "model.target_len": 24,
    "data.tokenizer": "byte",
    "log.wandb": "disabled",
  }
  prompt, sampled = "Returns <extra_id_0> sum.", {"sample__tokens": 20, "sample__temperature": 0.0}
  run(workdir, config="configs/t5.py:smoke", tiny=tiny, sample__prompt=prompt, **sampled)
  words = [
    "--prompt",
    prompt,
    "--temperature",
    "0",
    "--tokens",
    "20",
    "--checkpoint",
    "latest",
    "--json",
  ]
  capsys.readouterr()
  assert generate.main(["--workdir", str(workdir), *words]) == 0
  text = json.loads(capsys.readouterr().out)["text"]
  assert text.startswith("<extra_id_0>"), text
  sample = json.loads((workdir / "samples.jsonl").read_text().splitlines()[-1])
  assert sample["text"] == text

  hf.main(["export", "--workdir", str(workdir), "--to", str(out), "--checkpoint", "latest"])
  model = transformers.T5ForConditionalGeneration.from_pretrained(out).eval()
  theirs = transformers.AutoTokenizer.from_pretrained(out)
  source = theirs(prompt, return_tensors="pt")["input_ids"]
  ours = load(workdir, "latest")
  assert source[0].tolist() == ours.reads(prompt)
  with torch.no_grad():
    ids = model.generate(source, max_new_tokens=20, do_sample=False)[0, 1:].tolist()
  end = ours.tokenizer.eot_id
  assert theirs.decode(ids[: ids.index(end)] if end in ids else ids) == text

  assert hf.main(["import", "--from", str(out), "--workdir", str(again)]) == 0
  capsys.readouterr()
  assert generate.main(["--workdir", str(again), *words]) == 0
  assert json.loads(capsys.readouterr().out)["text"] == text
  np.testing.assert_array_equal(load(again).reads(prompt), ours.reads(prompt))
