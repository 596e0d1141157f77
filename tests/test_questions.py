"""Questions and spans: windows as BERT's code cuts them, the head against transformers, SQuAD's scores."""

import json
import math
import re
import string

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import evaluate
from lm.config.errors import ConfigError
from lm.cost.parameters import run_weights
from lm.data.questions import (
  MAY_BEGIN,
  MAY_END,
  QuestionBatches,
  QuestionEval,
  read_squad,
  tokenise,
)
from lm.data.tokenizers import ByteTokenizer
from lm.devices.sharding import make_mesh
from lm.files import read_jsonl
from lm.hf.bert import from_bert
from lm.models.registry import make_model
from lm.objectives.extractive_span import best_span, compare, eval_scores, make_logits
from lm.objectives.registry import objective_of
from lm.setup.hparams import hparams_zeros
from lm.setup.load import load_config
from lm.setup.resolve import kind_of, resolve
from lm.tasks import squad
from lm.training.programs import make_programs
from tests import equalities
from tests.test_bert import TINY, V, rows, theirs
from tests.trained import run

CONTEXT = (
  "In May, Ada Lovelace (a countess) met the Turks of Ghent; she said: 'Numbers are music.'  Twice."
)
ASKED = {
  "Who met them?": ["Ada Lovelace", "Lovelace (a countess)"],
  "When?": ["May"],
  "What are numbers?": ["music"],
  "How often?": ["Twice"],
}


def made(contexts=(CONTEXT,), asked=ASKED):
  """The content of a file in SQuAD's schema, an article a context."""
  articles = []
  for i, context in enumerate(contexts):
    questions = [
      {
        "id": f"{i}-{j}",
        "question": question,
        "answers": [{"text": text, "answer_start": context.index(text)} for text in texts],
      }
      for j, (question, texts) in enumerate(asked.items())
    ]
    articles.append({"title": f"t{i}", "paragraphs": [{"context": context, "qas": questions}]})
  return {"version": "1.1", "data": articles}


def write(folder, content, name="squad.json"):
  (folder / name).write_text(json.dumps(content))
  return folder / name


@pytest.fixture
def source(tmp_path):
  contexts = [f"{i} {CONTEXT}" for i in range(8)]
  return {
    "data.sources": (f"text:{write(tmp_path, made(contexts))}",),
    "data.cache_dir": str(tmp_path / "cache"), "data.tokenizer": "byte", "data.val_fraction": 0.4,
    "model.seq_len": 64, "objective.question_tokens": 20, "objective.window_stride": 12,
    "train.batch_size": 4, "eval.batch_size": 3, "eval.tokens": None,
  }  # fmt: skip


def config(source, **changes):
  changes = {key.replace("__", "."): value for key, value in changes.items()}
  cfg = load_config("configs/squad.py", source | changes)
  data = kind_of(cfg).open(cfg)
  return resolve(cfg, data.vocab_size, 1, kind_of(cfg).mean_units(data, cfg)), data


def as_released(n_question, n_context, length, stride):
  """(start, length) of each window, by the loop that BERT's code describes."""
  room, start, found = length - n_question - 3, 0, []
  while start < n_context:
    found.append((start, min(room, n_context - start)))
    if start + found[-1][1] == n_context:
      break
    start += min(found[-1][1], stride)
  return found


def decode(row, first, last):
  return bytes(row[first : last + 1].tolist()).decode()


def test_rows_are_windows_that_show_the_answer_or_point_to_the_start(source):
  cfg, data = config(source)
  batches, seen = QuestionBatches(data, cfg), []
  n = batches.rows.windows.n
  for step in range(-(-n // 4)):
    batch = batches.at(step)
    seen += [tuple(array[b] for array in batch.values()) for b in range(4)]
  found = {"whole": 0, "none": 0}
  windows: dict[str, list[str]] = {}
  for tokens, segments, first, last, weight, types in seen[:n]:
    real = int(segments.sum())
    ends = np.flatnonzero(tokens[:real] == data.tokenizer.eot_id).tolist()
    assert len(ends) == 3 and ends[0] == 0 and ends[2] == real - 1 and weight == 1
    np.testing.assert_array_equal(types[:real], np.arange(real) > ends[1])
    asked, shown = decode(tokens, 1, ends[1] - 1), decode(tokens, ends[1] + 1, ends[2] - 1)
    answer = ASKED[asked][0]
    windows.setdefault(asked, []).append(shown)
    if answer in shown:
      assert decode(tokens, first, last) == answer
      found["whole"] += 1
    else:
      assert first == last == 0
      found["none"] += 1
  assert min(found.values()) > 0
  context = len(CONTEXT.encode()) + 2
  for asked, shown in windows.items():
    wanted = as_released(len(asked), context, 64, 12)
    articles = len(data.train["offsets"]) - 1
    assert sorted(map(len, shown)) == sorted(size for _, size in wanted * articles)


def test_an_article_is_held_out_whole(source):
  _, data = config(source)
  both = [data.train, data.val]
  assert sum(len(store["offsets"]) - 1 for store in both) == 8
  assert all(len(store["context"]) == 4 * (len(store["offsets"]) - 1) for store in both)


def test_a_batch_follows_from_seed_step_and_row(source):
  cfg, data = config(source)
  first, again = QuestionBatches(data, cfg), QuestionBatches(data, cfg)
  again.at(9)
  whole, part = first.at(7), again.at(7, slice(1, 3))
  each = QuestionEval(kind_of(cfg).held_out(data), cfg, None, None)
  wanted = [kind_of(cfg).arrays(cfg, training) for training in (True, False)]
  for batch, arrays in zip((whole, each.at(0)), wanted, strict=True):
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
      k: (v.shape, v.dtype) for k, v in arrays.items()
    }
  for name, array in whole.items():
    np.testing.assert_array_equal(array[1:3], part[name])


def test_each_token_may_begin_an_answer_where_it_has_most_context(source):
  """In one window of its question alone: the one of BERT's rule, computed token by token."""
  cfg, data = config(source)
  each = QuestionEval(kind_of(cfg).held_out(data), cfg, None, None)
  n = len(CONTEXT.encode()) + 2
  begins: dict[tuple[int, int], int] = {}
  for number in range(len(each)):
    batch = each.at(number)
    for b in np.flatnonzero(batch["weights"] > 0).tolist():
      may, offset = batch["may"][b], int(batch["offset"][b])
      inside = np.flatnonzero(may >= MAY_END)
      asked = int(batch["question"][b])
      size = len(each.rows.asked(asked))
      windows = as_released(size, n, 64, 12)
      for place in inside.tolist():
        token = place - offset
        scores = [
          min(token - start, start + length - 1 - token) + 0.01 * length
          if start <= token < start + length
          else -math.inf
          for start, length in windows
        ]
        mine = windows[scores.index(max(scores))]
        if may[place] == MAY_BEGIN:
          begins[asked, token] = begins.get((asked, token), 0) + 1
          assert mine == (int(inside[0]) - offset, len(inside))
  assert set(begins.values()) == {1} and len(begins) == n * each.facts["questions"]


def test_answers_are_mapped_to_tokens_and_back(tmp_path):
  asked = read_squad(str(write(tmp_path, made())), "x")
  context = tokenise(CONTEXT, ByteTokenizer())
  for question in asked:
    for text, start in question.answers:
      assert context.between(*context.tokens_of(text, start)) == text
  assert context.tokens_of("", len(CONTEXT)) is None


def test_some_of_a_set_are_whole_questions(source):
  cfg, data = config(source)
  whole = QuestionEval(kind_of(cfg).held_out(data), cfg, None, None)
  some = QuestionEval(kind_of(cfg).held_out(data), cfg, 700, None)
  assert 0 < some.facts["questions"] < whole.facts["questions"] and some.facts["tokens"] <= 700
  shown = [some.at(i)["question"][some.at(i)["weights"] > 0] for i in range(len(some))]
  assert set(np.concatenate(shown).tolist()) == set(range(some.facts["questions"]))
  with pytest.raises(ConfigError, match=r"eval\.tokens=3: the first question of val has"):
    QuestionEval(kind_of(cfg).held_out(data), cfg, 3, None)


def changed(path, value):
  """`made` with one value put at a path of its first article."""
  content = made()
  at = content["data"][0]["paragraphs"][0]
  for key in path[:-1]:
    at = at[key]
  at[path[-1]] = value
  return content


@pytest.mark.parametrize(("content", "message"), [
  ({"data": []}, "holds no question"),
  ({"rows": []}, r"is not in the schema of SQuAD 1\.1 \(KeyError: 'data'\)"),
  (changed(["qas", 0, "answers"], []), "question 0-0 has no answer, as some of SQuAD 2.0 have"),
  (changed(["qas", 1, "answers", 0, "answer_start"], 4), "has the answer 'May', which does not stand at"),
  (changed(["qas", 1, "question"], "\ud800"), "question 0-1 has a lone surrogate"),
  (changed(["qas", 1, "question"], " "), "question 0-1 needs a question and a context, both texts"),
])  # fmt: skip
def test_files_that_are_amiss_are_named(tmp_path, content, message):
  with pytest.raises(ConfigError, match=message):
    read_squad(str(write(tmp_path, content)), "task=squad:x")


def test_what_is_no_json_is_named(tmp_path):
  (tmp_path / "x.json").write_text("{")
  with pytest.raises(ConfigError, match="is no JSON in UTF-8"):
    read_squad(str(tmp_path / "x.json"), "task=squad:x")
  with pytest.raises(ConfigError, match="cannot be read"):
    read_squad(str(tmp_path / "nowhere.json"), "task=squad:x")


@pytest.mark.parametrize(("changes", "message"), [
  ({"objective.question_tokens": 8}, r"objective\.question_tokens=8: \d+ of \d+ questions of train are"),
  ({"model.seq_len": 20}, r"model\.seq_len=20: must hold 3 special tokens"),
  ({"data.label_field": "x"}, r"data\.label_field=x: questions have the fields of SQuAD"),
  ({"data.val_split": "tail"}, r"data\.val_split=tail: questions of an article are held out together"),
  ({"data.sources": ("docstrings",)}, r"data\.sources=docstrings: has no questions"),
  ({"data.lower_case": True}, r"data\.lower_case=True: questions are read as they are written"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(source, changes, message):
  with pytest.raises(ConfigError, match=message):
    config(source | changes)


def test_long_questions_are_cut_when_told_to(source):
  cfg, data = config(source, objective__question_tokens=8, data__truncate=True)
  assert max(len(QuestionBatches(data, cfg).rows.asked(i)) for i in range(4)) == 8


# --- spans ---


def test_the_best_span_is_the_best_of_all():
  rng = np.random.default_rng(0)
  B, L, most = 6, 14, 4
  start, end = rng.normal(size=(2, B, L))
  may = rng.integers(0, 3, (B, L))
  logits = [jnp.asarray(a, jnp.float32) for a in (start, end)]
  first, last, score = best_span(*logits, jnp.asarray(may), most)
  for b in range(B):
    wanted = max(
      (start[b, i] + end[b, j], i, j)
      for i in range(L)
      for j in range(i, min(i + most, L))
      if may[b, i] == MAY_BEGIN and may[b, j] >= MAY_END
    )
    assert (int(first[b]), int(last[b])) == wanted[1:]
    assert float(score[b]) == pytest.approx(wanted[0], rel=1e-5)
    pairs = squad.best_pairs(start[b], end[b], may[b], most)
    assert max(pairs)[1:] == wanted[1:] and len(pairs) == len(set(pairs))


def test_spans_are_compared_with_the_nearest_answer():
  firsts, lasts = jnp.array([[3, 7, -1], [0, -1, -1]]), jnp.array([[5, 7, -1], [0, -1, -1]])
  exact, f1 = compare(jnp.array([7, 2]), jnp.array([8, 4]), firsts, lasts)
  assert exact.tolist() == [0, 0] and f1.tolist() == pytest.approx([2 / 3, 0])
  exact, f1 = compare(jnp.array([3, 0]), jnp.array([5, 0]), firsts, lasts)
  assert exact.tolist() == f1.tolist() == [1, 1]


def test_the_window_with_the_highest_score_speaks_for_its_question():
  sums = {
    "loss": 6.0, "correct": 1.0, "weight": 4.0, "present": np.array([1, 1, 1, 1, 0]),
    "question": np.array([0, 1, 0, 1, 0]), "score": np.array([1.0, 5, 2, 3, 9]),
    "exact": np.array([0, 1, 1, 0, 0]), "f1": np.array([0.2, 1, 1, 0.5, 0]),
  }  # fmt: skip
  found = eval_scores(sums, {})
  assert found == {"loss": 1.5, "accuracy": 0.25, "exact_span": 1.0, "overlap_f1": 1.0}
  sums["score"] = -sums["score"]
  assert eval_scores(sums, {})["overlap_f1"] == pytest.approx((0.2 + 0.5) / 2)


# --- the head ---


def answerer(**changes):
  changes = {key.replace("__", "."): value for key, value in changes.items()}
  sizes = TINY | {"objective.question_tokens": 4, "data.tokenizer": "byte"}
  return resolve(load_config("configs/squad.py", sizes | changes), V, 1)


def test_bert_for_question_answering_gives_the_same_logits_and_loss():
  torch = pytest.importorskip("torch")

  model, state, hf_config = theirs("BertForQuestionAnswering")
  _, params = from_bert(state, hf_config)
  cfg = answerer()
  tokens_BL, mask_BL, types_BL = rows(np.random.default_rng(3))
  first_B, last_B = np.array([4, 0, 7]), np.array([6, 0, 7])
  with torch.no_grad():
    wanted = model(
      torch.tensor(tokens_BL),
      attention_mask=torch.tensor(mask_BL),
      token_type_ids=torch.tensor(types_BL),
    )
    ends = [wanted.start_logits, wanted.end_logits]
    hidden = torch.tensor(mask_BL == 0)
    loss = sum(
      torch.nn.functional.cross_entropy(end.masked_fill(hidden, -torch.inf), torch.tensor(place))
      for end, place in zip(ends, (first_B, last_B), strict=True)
    ) / len(ends)
    whole = torch.tensor([0, 2])  # rows without padding, whose loss is the library's own
    own = model(
      torch.tensor(tokens_BL)[whole], token_type_ids=torch.tensor(types_BL)[whole],
      start_positions=torch.tensor(first_B)[whole], end_positions=torch.tensor(last_B)[whole],
    ).loss  # fmt: skip
  i32 = lambda a: jnp.asarray(a, jnp.int32)
  batch = {
    "tokens": i32(tokens_BL), "segments": i32(mask_BL), "types": i32(types_BL), "first": i32(first_B),
    "last": i32(last_B), "weights": jnp.ones(3),
  }  # fmt: skip
  evaluated = {
    "may": i32(types_BL), "question": i32([0, 1, 2]), "offset": i32([0, 0, 0]),
    "firsts": i32(first_B[:, None]), "lasts": i32(last_B[:, None]),
  }  # fmt: skip
  model_ = make_model(cfg.model)
  found = make_logits(model_, cfg)(params, batch, None)
  real = mask_BL > 0
  for ours, end in zip(found, ends, strict=True):
    np.testing.assert_allclose(np.asarray(ours)[real], end.numpy()[real], atol=1e-5)
  loss_fn = objective_of(cfg.objective).make_loss(model_, cfg)
  total = loss_fn(params, {}, batch | evaluated, None, hparams_zeros(cfg))[0]
  assert float(total) / 3 == pytest.approx(float(loss), rel=1e-5)
  weighed = batch | evaluated | {"weights": jnp.array([1.0, 0.0, 1.0])}
  total = loss_fn(params, {}, weighed, None, hparams_zeros(cfg))[0]
  assert float(total) / 2 == pytest.approx(float(own), rel=1e-5)


def test_counts_are_exact():
  cfg = answerer()
  programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:1]))
  equalities.assert_counted(run_weights(cfg), programs.run_shape.params)


# --- SQuAD's scores ---


def words(text):
  """As SQuAD's script is described: lower case, no punctuation, no articles, blanks squeezed."""
  kept = "".join(c for c in text.lower() if c not in string.punctuation)
  return [word for word in re.split(r"\s+", kept) if word not in ("a", "an", "the", "")]


def shared_f1(a, b):
  a, b, shared = words(a), words(b), 0
  left = list(b)
  for word in a:
    if word in left:
      left.remove(word)
      shared += 1
  if not shared:
    return 0.0
  precision, recall = shared / len(a), shared / len(b)
  return 2 * precision * recall / (precision + recall)


def test_scores_are_those_of_squads_script(tmp_path):
  asked = read_squad(str(write(tmp_path, made())), "x")
  rng = np.random.default_rng(0)
  for _ in range(30):
    told = {}
    for q in asked[: rng.integers(1, 5)]:
      begin = rng.integers(0, len(CONTEXT) - 1)
      cut = CONTEXT[begin : begin + rng.integers(1, 30)]
      told[q.id] = str(rng.choice([cut, q.answers[-1][0].upper(), "the"]))
    found = squad.score(told, asked)
    exact = f1 = 0.0
    for q in asked:
      if q.id in told:
        exact += max(words(told[q.id]) == words(text) for text, _ in q.answers)
        f1 += max(shared_f1(told[q.id], text) for text, _ in q.answers)
    assert found == pytest.approx({"exact_match": 25 * exact, "f1": 25 * f1})


@pytest.mark.parametrize(("answer", "reference", "exact", "f1"), [
  ("the Turks", "Turks", 1, 1),
  ("Turks of Ghent.", "the turks", 0, 1 / 2),
  ("a an the", "!", 1, 0),
  ("music music", "music", 0, 2 / 3),
  ("ante", "an te", 0, 0),
])  # fmt: skip
def test_answers_are_compared_without_articles_and_punctuation(answer, reference, exact, f1):
  assert squad.exact_match(answer, reference) == exact
  assert squad.f1(answer, reference) == pytest.approx(f1)


# --- whole runs ---

# Biases of keys and of the head move no output, so that their gradients are 0 but for rounding.
SMOKE = {
  "model__width": 16,
  "model__vocab_size": 260,
  "data__sources": ("facts:40",),
  "train__batch_size": 8,
  "optim__eps": 1e-2,  # smaller ones make steps of gradients that are rounding alone
}


def test_a_run_answers_questions_of_a_file(tmp_path, capsys):
  """Untrained: answers stand in their contexts, and their scores are those of the answers file."""
  run(
    tmp_path / "run", config="configs/squad.py", tiny={}, train__steps=1, model__width=16, eval__tokens=300,
    data__sources="facts:40", data__cache_dir=str(tmp_path / "cache"), model__seq_len=64,
    objective__window_stride=16, mesh__replica=1, mesh__fsdp=8,
  )  # fmt: skip
  path, answers = write(tmp_path, made()), tmp_path / "answers.jsonl"
  command = ["--workdir", str(tmp_path / "run"), "--task", f"squad:{path}", "--json"]
  capsys.readouterr()
  assert evaluate.main([*command, "--answers", str(answers)]) == 0
  found = json.loads(capsys.readouterr().out)
  lines = read_jsonl(answers)
  assert found["questions"] == len(lines) == len(ASKED)
  told = {}
  for line in lines:
    told[line["id"]] = line["answer"]
    assert CONTEXT[line["start"] :].startswith(line["answer"]) and line["answer"]
    assert len(line["answer"].encode()) <= 30 and line["references"] == ASKED[line["question"]]
    assert line["n_best"][0]["text"] == line["answer"] and 1 < len(line["n_best"]) <= squad.N_BEST
    shares = [each["probability"] for each in line["n_best"]]
    assert sum(shares) == pytest.approx(1, abs=1e-4) and shares == sorted(shares, reverse=True)
  wanted = squad.score(told, read_squad(str(path), "x"))
  assert {name: found[name] for name in wanted} == pytest.approx(wanted)
  assert evaluate.main([*command, "--limit", "2"]) == 0
  assert json.loads(capsys.readouterr().out)["questions"] == 2
  for more, message in (
    (["--beams", "2"], "beams=2: is of tasks that write"),
    (["--limit", "0"], "limit=0: must be at least 1"),
  ):
    with pytest.raises(ConfigError, match=message):
      evaluate.main([*command, *more])
  file = json.loads(path.read_text())
  file["data"][0]["paragraphs"][0]["qas"][0]["question"] = "Which? " * 20
  path.write_text(json.dumps(file))
  with pytest.raises(ConfigError, match=r"1 of \d+ questions .* \(of lm.evaluate: --truncate\)"):
    evaluate.main(command)
  assert evaluate.main([*command, "--truncate"]) == 0
  assert json.loads(capsys.readouterr().out)["questions"] == len(ASKED)


def test_a_run_of_another_objective_finds_no_spans(tmp_path):
  run(tmp_path / "run", train__steps=2, eval__every_steps=2)
  with pytest.raises(ConfigError, match=r"objective\.name=next_token finds no spans"):
    squad.evaluate(tmp_path / "run", str(write(tmp_path, made())), "latest", None)


@pytest.mark.slow
def test_eight_devices_and_stacked_runs_compute_what_one_does():
  same = SMOKE | {"model__dropout": 0.0}
  mesh = {"mesh__replica": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
  one = equalities.run(*equalities.resolved("configs/squad.py", **same))
  made_ = equalities.resolved("configs/squad.py", 8, **same, **mesh)
  equalities.assert_same(one, equalities.run(*made_, n_devices=8))
  equalities.assert_stacks("configs/squad.py", **same)


@pytest.mark.slow
def test_flops_are_those_of_xla():
  equalities.assert_flops(answerer(**equalities.WIDE), units=2 * 128)


@pytest.mark.slow
def test_a_run_resumes_learns_and_is_scored_again(monkeypatch, tmp_path, capsys):
  equalities.assert_resumes(monkeypatch, tmp_path, "configs/squad.py", "--config.model.dropout=0.1")
  last = read_jsonl(tmp_path / "whole" / "metrics.jsonl")[-1]
  assert last["eval/val/overlap_f1"] > 0.3 and last["eval/val/loss"] < 2.5
  command = ["--workdir", str(tmp_path / "whole"), "--checkpoint", "latest", "--max_tokens", "4096"]
  assert evaluate.main([*command, "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  for name in ("exact_span", "overlap_f1", "loss"):
    assert found[name] == pytest.approx(last[f"eval/val/{name}"], rel=1e-4)
