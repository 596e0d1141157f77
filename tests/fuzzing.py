"""Made-up input for tests: settings of hypothesis, and what counts as an answer."""

import os

import pytest

from lm.config.errors import ConfigError

hypothesis = pytest.importorskip("hypothesis")


def cases(default: int):
  """A decorator: so many cases, or FUZZ_CASES of them; always the same ones, or those of FUZZ_SEED."""
  seed = os.environ.get("FUZZ_SEED")
  settings = hypothesis.settings(
    max_examples=int(os.environ.get("FUZZ_CASES", str(default))),
    derandomize=seed is None,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  if seed is None:
    return settings
  return lambda test: hypothesis.seed(int(seed))(settings(test))


def answer(function, *words):
  """What it gives, or None for one clear line; anything else that it raises fails the test."""
  try:
    return function(*words)
  except ConfigError as error:
    text = str(error)
    assert text and "\n" not in text and len(text) < 2000, text
    return None
