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
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.config.command_line import read_text
from lm.config.errors import ConfigError, is_unicode
from lm.models.registry import family_of
from lm.runs.load import LoadedRun, load
from lm.runs.progress import counted

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
TOKENS = 2048  # of a batch
STEP = 32  # widths of batches are multiples of it: few compilations
SCORED = 8  # and those of the scored places multiples of this


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

  tokens_per_sec counts the tokens of the choices, which alone are scored.

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
  family = family_of(run.cfg.model)
  if family.init_cache is None or family.reads_source:
    raise ConfigError(
      f"task=multiple_choice:{path}: model.family={run.cfg.model.family} does not go on with a text; use a "
      "decoder"
    )
  before = "".join(f"{q.text} {q.choices[q.answer]}\n\n" for q in questions[:shots])
  asked, begun = questions[shots:], time.perf_counter()
  scored = score(run, [(before + q.text, f" {choice}") for q in asked for choice in q.choices])
  speed = sum(one.tokens for one in scored) / (time.perf_counter() - begun)
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
  counts = {"chance": chance, "questions": n, "shots": shots}
  return accuracy | counts | {"step": run.step, "tokens_per_sec": speed}


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

  cfg, shared = run.cfg.model, _shared(rows)
  prefix_P = np.asarray(rows[0][0][:shared], np.int32) if rows else np.zeros(0, np.int32)
  log_likelihoods = _make_log_likelihoods(run.model)
  found: list[Scored | None] = [None] * len(rows)
  batches = _batches([len(tokens) - 1 - shared for tokens, _ in rows], cfg.seq_len - shared)
  for width, n, chosen in counted(batches, "scoring choices"):
    most = _up(max(len(rows[i][0]) - 1 - rows[i][1] for i in chosen), SCORED, width)
    ids = np.zeros((n, width + 1), np.int32)
    places, weights = np.zeros((n, most), np.int32), np.zeros((n, most), np.float32)
    for row, i in enumerate(chosen):
      tokens, first = rows[i]
      ids[row, : len(tokens) - shared] = tokens[shared:]
      scored = len(tokens) - 1 - first
      places[row, :scored] = first - shared + np.arange(scored)
      weights[row, :scored] = 1
    sums = np.asarray(log_likelihoods(run.params, prefix_P, ids, places, weights))
    for row, i in enumerate(chosen):
      size = len(pairs[i][1].removeprefix(" ").encode())
      found[i] = Scored(float(sums[row]), int(weights[row].sum()), size)
  return [one for one in found if one is not None]


def _batches(lengths: Sequence[int], most: int) -> list[tuple[int, int, list[int]]]:
  """(tokens of a row, rows, which texts fill them) of each batch: all texts, like lengths together."""
  order = sorted(range(len(lengths)), key=lambda i: lengths[i])
  found, at = [], 0
  while at < len(order):
    width = _up(lengths[order[at]], STEP, most)
    n = max(1, TOKENS // width)
    chosen = [i for i in order[at : at + n] if lengths[i] <= width]
    found.append((width, n, chosen))
    at += len(chosen)
  return found


def _shared(rows: Sequence[tuple[list[int], int]]) -> int:
  """Tokens that all rows begin with and none scores, such as examples; 0 where they are few."""
  most = min((first for _, first in rows), default=0)
  same = next((i for i in range(most) if any(row[i] != rows[0][0][i] for row, _ in rows)), most)
  return same if same >= STEP else 0


def _make_log_likelihoods(model: Any):
  """Compiled (params, prefix_P, tokens_BL+1, places_BC, weights_BC) -> log p of each row's tokens.

  What all rows begin with is read once for a batch, and logits are those of the places that count.
  """

  @jax.jit
  def log_likelihoods(params, prefix_P, ids_BL, places_BC, weights_BC):
    variables, tokens_BL = {"params": params}, ids_BL[:, :-1]
    rows, length = tokens_BL.shape
    if prefix_P.size:
      init_cache: Any = family_of(model.cfg).init_cache
      cache = init_cache(model.cfg, 1, prefix_P.size + length)
      cache = model.apply(variables, prefix_P[None], cache, method="extend")[1]
      cache = cache.rows(jnp.zeros(rows, jnp.int32))
      x_BLD = model.apply(variables, tokens_BL, cache, method="extend")[0]
    else:
      x_BLD = model.apply(variables, tokens_BL, method="hidden")
    x_BCD = jnp.take_along_axis(x_BLD, jnp.expand_dims(places_BC, 2), axis=1)
    log_p_BCV = jax.nn.log_softmax(model.apply(variables, x_BCD, method="logits"))
    targets_BC = jnp.take_along_axis(ids_BL, places_BC + 1, axis=1)
    log_p_BC = jnp.take_along_axis(log_p_BCV, jnp.expand_dims(targets_BC, 2), axis=2)[..., 0]
    return (weights_BC * log_p_BC).sum(axis=1)

  return log_likelihoods


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
    if not all(map(is_unicode, (text, *choices))):
      raise ConfigError(f"{where} has a lone surrogate, which is no character; mend it")
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


def _up(n: int, step: int, most: int) -> int:
  """n rounded up to a multiple of `step`, at most `most`."""
  return min(-(-n // step) * step, most)
