"""Questions answered by a span of their context: exact match and F1 of words, as SQuAD's script scores them.

Of each window the N_BEST likeliest first tokens are paired with as many last ones; pairs that are a span of
at most objective.answer_tokens, and begin where the window shows most of the context, go by start logit + end
logit, and the best of all windows is the answer, as it is written in the context (BERT's released code,
Devlin et al. 2019, arXiv:1810.04805, §4.2). Departure from it: spans are mapped by the tokens' own
characters, where that code takes whole words and strips them again.
"""

import dataclasses
import pathlib
import re
import string
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from lm.config.errors import ConfigError, number_of
from lm.data import questions
from lm.data.questions import MAY_BEGIN, MAY_END, Question, QuestionEval, QuestionSet
from lm.data.records import RecordStore
from lm.objectives.extractive_span import make_logits
from lm.objectives.registry import objective_of
from lm.runs.load import LoadedRun, load
from lm.runs.progress import counted

N_BEST = 20  # first and last tokens of a window that are paired, and answers kept of a question
ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Answer(NamedTuple):
  text: str
  start: int  # character of the context
  score: float  # start logit + end logit


# --- scores ---


def normalise(text: str) -> str:
  """In lower case, without ASCII punctuation and articles, one blank between words.

  >>> normalise("The  cat's (an) end.")
  'cats end'
  """
  return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> float:
  """1.0 where both are the same once normalised, else 0.0."""
  return float(normalise(answer) == normalise(reference))


def f1(answer: str, reference: str) -> float:
  """2 PR / (P + R) of the words of both, once normalised, as bags; 0.0 where they share none."""
  ours, theirs = (normalise(text).split() for text in (answer, reference))
  shared = sum((Counter(ours) & Counter(theirs)).values())
  return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def score(answers: Mapping[str, str], asked: Sequence[Question]) -> dict[str, float]:
  """{"exact_match", "f1"}, 0 to 100: of each question the best over its references, means over questions.

  Args:
    answers: text by the question's id; a question without one scores 0.
  """
  best = lambda how, q: max(how(answers[q.id], text) for text, _ in q.answers)
  told = [q for q in asked if q.id in answers]
  mean = lambda how: 100 * sum(best(how, q) for q in told) / len(asked)
  return {"exact_match": mean(exact_match), "f1": mean(f1)}


# --- answers ---


def evaluate(
  workdir: pathlib.Path, path: str, checkpoint: str, limit: int | None, truncate: bool = False
) -> tuple[dict[str, float], list[dict[str, object]]]:
  """(scores, answers) of a run on a file of SQuAD's JSON.

  Args:
    limit: the first so many questions alone; None = all.
    truncate: questions beyond objective.question_tokens are cut; so they are where data.truncate says so.

  Returns:
    scores: those of `score`, the questions, and tokens of rows a second.
    answers: {"id", "question", "answer", "start", "references", "n_best"} of each question, n_best with
      {"text", "start", "probability"} of at most N_BEST answers of different texts.

  Raises:
    ConfigError: a run that was not trained on questions, what `read_squad` says, two questions of one id.
  """
  where = f"task=squad:{path}"
  run = load(workdir, checkpoint)
  if objective_of(run.cfg.objective).batches != "questions":
    raise ConfigError(
      f"{where}: objective.name={run.cfg.objective.name} finds no spans; train with configs/squad.py"
    )
  asked = questions.read_squad(path, where)[:limit]
  twice = [name for name, n in Counter(q.id for q in asked).items() if n > 1]
  if twice:
    raise ConfigError(
      f"{where}: {number_of(len(twice), 'id')} of several questions ({twice[0]}); mend the file"
    )
  if truncate:
    data = dataclasses.replace(run.cfg.data, truncate=True)
    run = run._replace(cfg=dataclasses.replace(run.cfg, data=data))
  begun = time.perf_counter()
  found, n_tokens = answer(run, asked, where)
  spent = time.perf_counter() - begun
  texts = {q.id: answers[0].text for q, answers in zip(asked, found, strict=True)}
  scores = score(texts, asked) | {"questions": float(len(asked)), "step": float(run.step)}
  return scores | {"tokens_per_sec": n_tokens / spent}, [
    {
      "id": q.id,
      "question": q.text,
      "answer": answers[0].text,
      "start": answers[0].start,
      "references": [text for text, _ in q.answers],
      "n_best": _with_probabilities(answers),
    }
    for q, answers in zip(asked, found, strict=True)
  ]


def answer(run: LoadedRun, asked: Sequence[Question], where: str) -> tuple[list[list[Answer]], int]:
  """(the best answers of each question, the best first, at least one; tokens of all rows)."""
  arrays = questions.arrays(asked, run.tokenizer, {}, run.cfg, where)
  each = QuestionSet(RecordStore(where, arrays, ""), run.tokenizer)
  batches = QuestionEval(each, run.cfg, None, None)
  logits = make_logits(run.model, run.cfg)
  read = jax.jit(lambda params, batch: logits(params, batch, None))
  spans: list[list[tuple[float, int, int]]] = [[] for _ in asked]
  for number in counted(range(len(batches)), "reading"):
    batch = batches.at(number)
    names = [name for name in ("tokens", "segments", "types") if name in batch]
    starts_BL, ends_BL = jax.device_get(read(run.params, {name: batch[name] for name in names}))
    for b in np.flatnonzero(batch["weights"] > 0).tolist():
      offset = int(batch["offset"][b])
      spans[batch["question"][b]] += [
        (value, first - offset, last - offset)
        for value, first, last in best_pairs(
          starts_BL[b], ends_BL[b], batch["may"][b], run.cfg.objective.answer_tokens
        )
      ]
  contexts = {text: questions.tokenise(text, run.tokenizer) for text in {q.context for q in asked}}
  found = [
    _distinct(sorted(mine, key=lambda span: -span[0]), contexts[q.context])
    for q, mine in zip(asked, spans, strict=True)
  ]
  return found, int(batches.facts["tokens"])


def best_pairs(
  start_L: np.ndarray, end_L: np.ndarray, may_L: np.ndarray, most: int
) -> list[tuple[float, int, int]]:
  """(score, first, last) of the pairs of N_BEST first and N_BEST last tokens that are spans."""
  firsts, lasts = (np.argsort(-a, kind="stable")[:N_BEST].tolist() for a in (start_L, end_L))
  return [
    (float(start_L[i]) + float(end_L[j]), i, j)
    for i in firsts
    for j in lasts
    if may_L[i] >= MAY_BEGIN and may_L[j] >= MAY_END and i <= j < i + most
  ]


def _distinct(spans: Sequence[tuple[float, int, int]], context: questions.Context) -> list[Answer]:
  """Up to N_BEST answers of different texts, in the order of spans; an empty one where there is no span."""
  found: dict[str, Answer] = {}
  for value, first, last in spans:
    text = context.between(first, last)
    if text not in found:
      found[text] = Answer(text, int(context.spans[first, 0]), value)
    if len(found) == N_BEST:
      break
  return list(found.values()) or [Answer("", 0, 0.0)]


def _with_probabilities(answers: Sequence[Answer]) -> list[dict[str, object]]:
  """The answers with a softmax of their scores."""
  scores = np.array([each.score for each in answers])
  shares = np.exp(scores - scores.max())
  shares /= shares.sum()
  return [
    {"text": each.text, "start": each.start, "probability": round(float(share), 6)}
    for each, share in zip(answers, shares, strict=True)
  ]
