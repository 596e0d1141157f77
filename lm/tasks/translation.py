"""Translation: BLEU and chrF of what a run writes for a source, by sacrebleu."""

from collections.abc import Sequence
from typing import Any

from lm.tasks.texts import Example


def score(answers: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
  """bleu (4-grams, 13a, brevity penalty; 0 to 100), chrf (2), and the length of answers over references.

  Papineni et al. 2002; Post 2018, arXiv:1804.08771; Popovic 2015.
  """
  import sacrebleu

  n = max(len(example.references) for example in examples)
  # Column i holds reference i of every example; None, which sacrebleu passes over, where there is none.
  columns: Any = [
    [each.references[i] if i < len(each.references) else None for each in examples]
    for i in range(n)
  ]
  bleu = sacrebleu.corpus_bleu(list(answers), columns)
  chrf = sacrebleu.corpus_chrf(list(answers), columns)
  return {
    "bleu": bleu.score,
    "chrf": chrf.score,
    "length_ratio": bleu.sys_len / max(bleu.ref_len, 1),
  }
