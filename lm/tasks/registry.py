"""The tasks there are: one row each.

`python -m lm.evaluate --workdir R --task NAME:FILE` scores a run on one.
"""

import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from lm.config.errors import ConfigError, suggest
from lm.devices import host
from lm.models.registry import family_of
from lm.runs import rundir
from lm.runs.load import load
from lm.tasks import multiple_choice, samples, similarity, squad, summary, texts, translation
from lm.tasks.texts import Writing


class Read(NamedTuple):
  """A task that scores a run by a file.

  `evaluate` takes (run directory, what follows the colon, checkpoint) and gives scores by name.
  """

  example: str  # how one is written
  evaluate: Callable[[pathlib.Path, str, str], Mapping[str, float]]


class Answered(NamedTuple):
  """A task whose examples a run answers without writing.

  `evaluate` takes (run directory, what follows the colon, checkpoint, limit, whether what is too long is cut)
  and gives (scores, answers).
  """

  example: str
  evaluate: Callable[
    [pathlib.Path, str, str, int | None, bool], tuple[dict[str, float], list[dict[str, object]]]
  ]


class Written(NamedTuple):
  """A task in which a run writes a text for each source (lm.tasks.texts), which `score` judges."""

  example: str
  score: Callable[[Sequence[str], Sequence[texts.Example]], Mapping[str, float]]


READ: dict[str, Read] = {
  "multiple_choice": Read("multiple_choice:questions.jsonl", multiple_choice.evaluate),
  "samples": Read("samples:prompts.txt", samples.evaluate),
  "similarity": Read("similarity:pairs.tsv", similarity.evaluate),
}
ANSWERED: dict[str, Answered] = {"squad": Answered("squad:dev-v1.1.json", squad.evaluate)}
TASKS: dict[str, Written] = {
  "translation": Written("translation:test.en,test.de", translation.score),
  "summary": Written("summary:test.jsonl", summary.score),
}


def evaluate_task(
  workdir: pathlib.Path,
  task: str,
  checkpoint: str,
  writing: Writing,
  limit: int | None,
) -> tuple[dict[str, float], list[dict[str, object]]]:
  """(scores, answers) of a run on a task; seconds and the peak memory of the process are among the scores.

  Args:
    task: "NAME:FILE", NAME a row of READ or TASKS.
    checkpoint: "best", "latest" or a step.
    writing: how texts to write are asked for.
    limit: the first so many examples alone; None = all.

  Returns:
    answers: {"source", "answer", "references"} of each example, or what a task of ANSWERED says of it; [] of
      READ.

  Raises:
    ConfigError: no such task, no file, a run that writes nothing, or what the task says of them.
  """
  name, _, path = task.partition(":")
  rows = {**READ, **ANSWERED, **TASKS}
  if name not in rows:
    raise ConfigError(
      f"task={task}: no such task; {suggest(name, [*rows])} (labels and tags: --data text:FILE)"
    )
  if not path:
    raise ConfigError(f"task={task}: needs a file; write e.g. {rows[name].example}")
  if limit is not None and limit < 1:
    raise ConfigError(f"limit={limit}: must be at least 1; leave it out for all")
  begun, found = time.perf_counter(), []
  plain = Writing()._asdict() | {"limit": None}
  for key, value in (writing._asdict() | {"limit": limit}).items():
    taken = name in TASKS or (name in ANSWERED and key in ("limit", "truncate"))
    if value != plain[key] and not taken:
      raise ConfigError(f"{key}={value}: is of tasks that write, such as translation; leave it out")
  if name in ANSWERED:
    scores, found = ANSWERED[name].evaluate(workdir, path, checkpoint, limit, writing.truncate)
  elif name in READ:
    scores = dict(READ[name].evaluate(workdir, path, checkpoint))
  else:
    scores, found = _write(workdir, task, checkpoint, writing, limit)
  return scores | {
    "seconds": time.perf_counter() - begun,
    "peak_bytes": float(host.peak_bytes()),
  }, found


def _write(workdir, task, checkpoint, writing, limit):
  """(scores, answers) of a task of TASKS."""
  name, _, path = task.partition(":")
  if writing.beams < 1:
    raise ConfigError(f"beams={writing.beams}: must be at least 1 (1 = greedy); try 5")
  if writing.stop == "":
    raise ConfigError("stop=: must be a text that is not empty; try a full stop, or leave it out")
  cfg = rundir.read_config(workdir)
  if family_of(cfg.model).init_cache is None:
    raise ConfigError(f"model.family={cfg.model.family}: writes no text, which {name} asks for")
  examples = texts.read_examples(name, path, cfg.data, limit)
  run, begun = load(workdir, checkpoint), time.perf_counter()
  written = texts.answers(run, [example.source for example in examples], writing)
  spent = time.perf_counter() - begun
  n_tokens = sum(len(run.tokenizer.encode(text)) for text in written)
  scores = {"examples": float(len(examples)), **TASKS[name].score(written, examples)}
  scores |= {"step": float(run.step), "tokens_per_sec": n_tokens / spent}
  return scores, [
    {"source": each.source, "answer": answer, "references": list(each.references)}
    for each, answer in zip(examples, written, strict=True)
  ]
