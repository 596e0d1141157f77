"""Summaries: ROUGE of what a run writes, beside that of the source's first sentence, by rouge-score."""

from collections.abc import Sequence

from lm.tasks.texts import Example, first_sentence

ROUGES = ("rouge1", "rouge2", "rougeL")


def score(answers: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
  """Mean F1 of ROUGE-1, -2 and -L, 0 to 100, of the answers, and as lead1_... of the first sentences.

  Words are stemmed; of several references each kind takes the best. Lin 2004.
  """
  scores = rouge(answers, examples)
  lead = rouge([first_sentence(example.source) for example in examples], examples)
  return scores | {f"lead1_{kind}": value for kind, value in lead.items()}


def rouge(answers: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
  """Means over the examples, 0 to 100."""
  from rouge_score import rouge_scorer

  scorer = rouge_scorer.RougeScorer(list(ROUGES), use_stemmer=True)
  totals = dict.fromkeys(ROUGES, 0.0)
  for answer, example in zip(answers, examples, strict=True):
    each = [scorer.score(reference, answer) for reference in example.references]
    for kind in ROUGES:
      totals[kind] += max(found[kind].fmeasure for found in each)
  return {kind: 100 * total / len(answers) for kind, total in totals.items()}
