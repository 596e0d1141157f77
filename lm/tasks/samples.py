"""How varied the texts are that a run draws: distinct n-grams, and BLEU of each by all others."""

import pathlib
import time
from collections.abc import Sequence

from lm.config.command_line import read_text
from lm.config.errors import ConfigError
from lm.runs.load import load

TOKENS, TEMPERATURE, SEED = 64, 1.0, 0
MOST = 1000  # samples, as self-BLEU compares each with all others


def distinct(texts: Sequence[str], n: int) -> float:
  """Different n-grams of words over all n-grams; 0 where there are none (Li et al. 2016, arXiv:1510.03055).

  >>> distinct(["a b a b"], 2)
  0.6666666666666666
  """
  grams = [
    tuple(words[i : i + n]) for words in map(str.split, texts) for i in range(len(words) - n + 1)
  ]
  return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(texts: Sequence[str]) -> float:
  """Mean BLEU of each text by all others as references, 0 to 100; higher is less varied.

  Zhu et al. 2018, arXiv:1802.01886 §3.2; sentence BLEU of sacrebleu.
  """
  import sacrebleu

  scores = [
    sacrebleu.sentence_bleu(text, [*texts[:i], *texts[i + 1 :]]).score
    for i, text in enumerate(texts)
  ]
  return sum(scores) / len(scores)


def evaluate(workdir: pathlib.Path, path: str, checkpoint: str) -> dict[str, float]:
  """distinct_1 to distinct_3, self_bleu and words a sample, of one sample a prompt.

  Each is of at most 64 tokens, drawn at temperature 1.

  Args:
    path: file with a prompt a line, 2 to 1,000 of them.
  """
  prompts = read_text("task", path).splitlines()
  if not 2 <= len(prompts) <= MOST:
    raise ConfigError(
      f"task=samples:{path}: must hold 2 to {MOST:,} prompts, one a line, not {len(prompts):,}; "
      "add lines or take some out"
    )
  run, begun = load(workdir, checkpoint), time.perf_counter()
  texts = run.generate(prompts, TOKENS, TEMPERATURE, SEED)
  spent = time.perf_counter() - begun
  n_tokens = sum(len(run.tokenizer.encode(text)) for text in texts)
  scores = {f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)}
  words = sum(len(text.split()) for text in texts)
  scores |= {"self_bleu": self_bleu(texts), "words": words / len(texts)}
  return scores | {"step": run.step, "tokens_per_sec": n_tokens / spent}
