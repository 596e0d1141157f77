"""How well the vectors of words agree with people: Spearman's correlation of cosines with judged likeness."""

import pathlib

import numpy as np

from lm.config.command_line import read_text
from lm.config.errors import ConfigError, number_of
from lm.data.tokenizers import Tokenizer, load_tokenizer, unknown_id
from lm.models.word_vectors import vectors_of
from lm.runs import rundir
from lm.runs.checkpoint import load_params


def evaluate(workdir: pathlib.Path, path: str, checkpoint: str) -> dict[str, float]:
  """spearman over the pairs that the run knows both words of, how many they are, and how many it does not.

  The vector of a word is its row of the embedding, or the mean of its pieces' rows. Pairs with an unknown
  word are left out, as gensim does by default.

  Args:
    path: lines of `word <tab> word <tab> number`, larger where more alike; # begins a comment, and a first
    line
      whose third field is no number is a header.
  """
  import scipy.stats

  cfg = rundir.read_config(workdir)
  params, _ = load_params(workdir, checkpoint)
  tokenizer = load_tokenizer(workdir / "tokenizer")
  vectors = vectors_of(cfg.model, params)
  ours, judged, unknown = [], [], 0
  for a, b, likeness in read_pairs(path, cfg.data.lower_case):
    one, two = (_vector(vectors, tokenizer, word) for word in (a, b))
    if one is None or two is None:
      unknown += 1
      continue
    ours.append(_cosine(one, two))
    judged.append(likeness)
  if len(ours) < 2:
    raise ConfigError(
      f"task=similarity:{path}: the run knows both words of {number_of(len(ours), 'pair')} only; it "
      "takes 2 or more"
    )
  correlation = float(scipy.stats.spearmanr(ours, judged).statistic)
  return {"spearman": correlation, "pairs": len(ours), "unknown_pairs": unknown}


def read_pairs(path: str, lower_case: bool) -> list[tuple[str, str, float]]:
  """(word, word, likeness) of every line that has them."""
  found = []
  for number, line in enumerate(read_text("task", path).splitlines(), 1):
    if not line.strip() or line.startswith("#"):
      continue
    fields = [each.strip() for each in line.split("\t")]
    try:
      a, b, likeness = fields[0], fields[1], float(fields[2])
    except (IndexError, ValueError):
      if number == 1:
        continue
      raise ConfigError(
        f"task=similarity:{path}: line {number} must be two words and a number with tabs between; mend it"
      ) from None
    found.append((a.lower(), b.lower(), likeness) if lower_case else (a, b, likeness))
  return found


def _vector(vectors: np.ndarray, tokenizer: Tokenizer, word: str) -> np.ndarray | None:
  pieces = tokenizer.encode(word)
  if not pieces or unknown_id(tokenizer) in pieces:
    return None
  return vectors[pieces].mean(axis=0)


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
  return float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30))
