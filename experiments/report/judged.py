"""What a page judges runs by: the validation loss, or the metric that their own objective names."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

ASIDE = {"train/tokens", "train/grad_norm", "train/param_norm"}  # metrics of any objective


class Judge(NamedTuple):
  key: str  # of a row: loss, or score where runs have no loss
  name: str  # in a sentence
  title: str  # of an axis
  better: str  # lower | higher

  def known(self, rows: Iterable[Any]) -> list[Any]:
    """The rows that have a finite value."""
    return [r for r in rows if isinstance(r.get(self.key), float) and math.isfinite(r[self.key])]

  def rank(self, value: float) -> float:
    """Least for the best."""
    return -value if self.better == "higher" else value


LOSS = Judge("loss", "validation loss", "validation loss (nats/token)", "lower")


def judge_of(rows: Iterable[Any]) -> Judge:
  """The loss where any run has one, else what all runs were judged by while they trained."""
  rows = list(rows)
  metrics = {(row["metric"], row.get("better") or "lower") for row in rows if row.get("metric")}
  if len(metrics) != 1 or LOSS.known(rows):
    return LOSS
  ((metric, better),) = metrics
  return Judge("score", metric, metric, better)


def curve_metric(rows: Iterable[Any], judge: Judge) -> str:
  """The training metric that curves show: the loss, or else the first that the objective reports."""
  keys = [key for row in rows for key in (row.get("curve") or {}) if key.startswith("train/")]
  if judge.key == "loss" or "train/loss" in keys:
    return "train/loss"
  return next((k for k in keys if k not in ASIDE and ":" not in k), "train/loss")
