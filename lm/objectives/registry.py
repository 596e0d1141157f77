"""The objectives there are: one row each."""

from lm.config.schema import ObjectiveConfig
from lm.objectives.adversarial import ADVERSARIAL
from lm.objectives.classification import CLASSIFICATION
from lm.objectives.distillation import DISTILLATION
from lm.objectives.elbo import ELBO
from lm.objectives.extractive_span import EXTRACTIVE_SPAN
from lm.objectives.glove import GLOVE
from lm.objectives.instruction import INSTRUCTION
from lm.objectives.masked_lm import MASKED_LM
from lm.objectives.negative_sampling import NEGATIVE_SAMPLING
from lm.objectives.next_token import NEXT_TOKEN
from lm.objectives.objective import Objective
from lm.objectives.regression import REGRESSION
from lm.objectives.seq2seq import SEQ2SEQ, SPAN_CORRUPTION
from lm.objectives.token_classification import TOKEN_CLASSIFICATION
from lm.objectives.truncated_bptt import TRUNCATED_BPTT

OBJECTIVES: dict[str, Objective] = {
  "next_token": NEXT_TOKEN,
  "distillation": DISTILLATION,
  "instruction": INSTRUCTION,
  "truncated_bptt": TRUNCATED_BPTT,
  "masked_lm": MASKED_LM,
  "adversarial": ADVERSARIAL,
  "negative_sampling": NEGATIVE_SAMPLING,
  "glove": GLOVE,
  "classification": CLASSIFICATION,
  "regression": REGRESSION,
  "extractive_span": EXTRACTIVE_SPAN,
  "token_classification": TOKEN_CLASSIFICATION,
  "elbo": ELBO,
  "seq2seq": SEQ2SEQ,
  "span_corruption": SPAN_CORRUPTION,
}


def objective_of(section: ObjectiveConfig) -> Objective:
  """The row of a config's `objective` section."""
  return OBJECTIVES[section.name]
