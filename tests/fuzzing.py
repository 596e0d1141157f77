"""Made-up input for tests: settings of hypothesis, and what counts as an answer."""

import os

import pytest

from lm.config.errors import ConfigError

hypothesis = pytest.importorskip("hypothesis")


def cases(default: int):
  """Settings for so many cases (FUZZ_CASES for another number), the same ones everywhere."""
  return hypothesis.settings(
    max_examples=int(os.environ.get("FUZZ_CASES", str(default))),
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )


def answer(function, *words):
  """What it gives, or None for one clear line; anything else that it raises fails the test."""
  try:
    return function(*words)
  except ConfigError as error:
    text = str(error)
    assert text and "\n" not in text and len(text) < 2000, text
    return None
