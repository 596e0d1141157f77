"""Questions with several answers, of which a language model chooses the likeliest.

A file of JSON lines, {"question": text, "choices": [texts], "answer": index, letter or text}. Each choice is
scored as what follows the question, a blank between them:

    raw        sum of log p(token | all before it) over the tokens of the choice
    per token  the same, by the number of these tokens
    per byte   the same, by the UTF-8 bytes of the choice

and the highest score is the answer. With `FILE:N` the first N questions stand, each with its answer and an
empty line after it, before every other one, which alone are scored (Brown et al. 2020, arXiv:2005.14165
§2.4).
"""

import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.config.command_line import read_text
from lm.config.errors import ConfigError
from lm.models.registry import family_of
from lm.runs.load import LoadedRun, load

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TOKENS = 2048  # of a batch
STEP = 32  # widths of batches are multiples of it: few compilations


class Question(NamedTuple):
  text: str
  choices: tuple[str, ...]
  answer: int


class Scored(NamedTuple):
  """One choice."""

  log_p: float  # nats, of all its tokens
  tokens: int
  bytes: int


def evaluate(workdir: pathlib.Path, path: str, checkpoint: str) -> dict[str, float]:
  """accuracy_raw, accuracy_per_token, accuracy_per_byte, the chance of a guess, and the questions scored.

  Args:
    path: FILE, or FILE:N for N questions as examples.
  """
  file, shots = _split(path)
  questions = read(file)
  if shots >= len(questions):
    raise ConfigError(
      f"task=multiple_choice:{path}: {shots} of {len(questions)} questions are examples and none is left; "
      "use fewer"
    )
  run = load(workdir, checkpoint)
  if family_of(run.cfg.model).init_cache is None:
    raise ConfigError(
      f"task=multiple_choice:{path}: model.family={run.cfg.model.family} gives no next token; use a decoder"
    )
  before = "".join(f"{q.text} {q.choices[q.answer]}\n\n" for q in questions[:shots])
  asked = questions[shots:]
  scored = score(run, [(before + q.text, f" {choice}") for q in asked for choice in q.choices])
  found, right = iter(scored), dict.fromkeys(("raw", "per_token", "per_byte"), 0)
  for q in asked:
    mine = [next(found) for _ in q.choices]
    for name, scores in {
      "raw": [s.log_p for s in mine],
      "per_token": [s.log_p / s.tokens for s in mine],
      "per_byte": [s.log_p / s.bytes for s in mine],
    }.items():
      right[name] += int(np.argmax(scores)) == q.answer
  n = len(asked)
  chance = sum(1 / len(q.choices) for q in asked) / n
  accuracy = {f"accuracy_{name}": count / n for name, count in right.items()}
  return accuracy | {"chance": chance, "questions": n, "shots": shots}


def score(run: LoadedRun, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
  """The log-likelihood of each text after its context.

  A text is tokenised together with its context, as it is read in running text, and has the tokens that go
  beyond those of the context alone.

  Raises:
    ConfigError: a pair that is longer than the model's context; nothing is cut.
  """
  t = run.tokenizer
  rows: list[tuple[list[int], int]] = []  # tokens from the start token on, and how many are context
  for context, text in pairs:
    whole, first = t.encode(context + text), len(t.encode(context))
    if len(whole) <= first:
      raise ConfigError(
        f"choices={text.strip()}: adds no token to its question; write another choice"
      )
    if len(whole) > run.cfg.model.seq_len:
      raise ConfigError(
        f"choices={text.strip()}: is {len(whole)} tokens with its question and the model reads "
        f"{run.cfg.model.seq_len}; use fewer examples or a model with more context"
      )
    rows.append(([t.start_id, *whole], first))

  @jax.jit
  def log_likelihoods(params, tokens_BL, targets_BL, weights_BL):
    logits_BLV: Any = run.model.apply({"params": params}, tokens_BL)
    log_p_BLV = jax.nn.log_softmax(logits_BLV.astype(jnp.float32))
    log_p_BL = jnp.take_along_axis(log_p_BLV, targets_BL[..., None], axis=-1)[..., 0]
    return (weights_BL * log_p_BL).sum(axis=-1)

  found: list[Scored | None] = [None] * len(rows)
  order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
  at = 0
  while at < len(order):
    width = _width(rows[order[at]][0], run.cfg.model.seq_len)
    n = max(1, TOKENS // width)
    chosen = [i for i in order[at : at + n] if len(rows[i][0]) - 1 <= width]
    ids = np.zeros((n, width + 1), np.int32)
    weights = np.zeros((n, width), np.float32)
    for row, i in enumerate(chosen):
      tokens, first = rows[i]
      ids[row, : len(tokens)] = tokens
      weights[row, first : len(tokens) - 1] = 1
    sums = np.asarray(log_likelihoods(run.params, ids[:, :-1], ids[:, 1:], weights))
    for row, i in enumerate(chosen):
      size = len(pairs[i][1].removeprefix(" ").encode())
      found[i] = Scored(float(sums[row]), int(weights[row].sum()), size)
    at += len(chosen)
  return [one for one in found if one is not None]


def read(file: str) -> list[Question]:
  """The questions of a file.

  Raises:
    ConfigError: with the number of the line that is amiss.
  """
  found = []
  for number, line in enumerate(read_text("task", file).splitlines(), 1):
    if not line.strip():
      continue
    where = f"task=multiple_choice:{file}: line {number}"
    try:
      row = json.loads(line)
      text, choices, answer = row["question"], tuple(row["choices"]), row["answer"]
    except (ValueError, KeyError, TypeError, RecursionError):
      raise ConfigError(
        f'{where} must be {{"question": text, "choices": [texts], "answer": index}}; mend it'
      ) from None
    texts = isinstance(text, str) and all(isinstance(c, str) and c.strip() for c in choices)
    if not texts or len(choices) < 2:
      raise ConfigError(f"{where} needs a question and at least two choices, all texts; mend it")
    found.append(Question(text, choices, _index(answer, choices, where)))
  if not found:
    raise ConfigError(f"task=multiple_choice:{file}: holds no question; add lines")
  return found


def _index(answer: object, choices: Sequence[str], where: str) -> int:
  """The number of the right choice, said by index from 0, by its text, or by a letter."""
  if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
    return answer
  if isinstance(answer, str) and choices.count(answer) == 1:
    return choices.index(answer)
  if isinstance(answer, str) and len(answer) == 1 and answer in LETTERS[: len(choices)]:
    return LETTERS.index(answer)
  raise ConfigError(
    f"{where} has the answer {answer!r}, which is none of its {len(choices)} choices; give an index from 0, "
    "a letter or the text of one"
  )


def _split(path: str) -> tuple[str, int]:
  shots = re.fullmatch(r"(.+):(\d+)", path)
  return (shots[1], int(shots[2])) if shots else (path, 0)


def _width(row: Sequence[int], seq_len: int) -> int:
  return min(-(-(len(row) - 1) // STEP) * STEP, seq_len)
