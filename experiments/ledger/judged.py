"""What runs are judged by when they are compared: the metric that their own eval.stop_metric names."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

ASIDE = {"train/tokens", "train/grad_norm", "train/param_norm"}  # metrics of any objective


class Judge(NamedTuple):
  key: str  # of a row: loss where that is eval/val/loss, else score
  name: str  # in a sentence
  title: str  # of an axis
  better: str  # lower | higher

  @property
  def metric(self) -> str:
    """The key of the record."""
    return "eval/val/loss" if self.key == "loss" else self.name

  def known(self, rows: Iterable[Any]) -> list[Any]:
    """The rows that have a finite value."""
    return [r for r in rows if isinstance(r.get(self.key), float) and math.isfinite(r[self.key])]

  def rank(self, value: float) -> float:
    """Least for the best."""
    return -value if self.better == "higher" else value


LOSS = Judge("loss", "validation loss", "validation loss (nats/token)", "lower")


def judge_of(rows: Iterable[Any]) -> Judge:
  """What all runs were judged by while they trained; the validation loss where they differ or do not say."""
  rows = list(rows)
  metrics = {
    (row.get("metric") or LOSS.metric, row.get("better") or "lower")
    for row in rows
    if row.get("metric") or row.get("loss") is not None  # somebody's table has a loss alone
  }
  if len(metrics) != 1 or metrics == {(LOSS.metric, LOSS.better)}:
    return LOSS
  ((metric, better),) = metrics
  return Judge("score", metric, metric, better)


def curve_metric(rows: Iterable[Any], judge: Judge) -> str:
  """The training metric that curves show: the loss, or else the first that the objective reports."""
  keys = [key for row in rows for key in (row.get("curve") or {}) if key.startswith("train/")]
  if judge.key == "loss" or "train/loss" in keys:
    return "train/loss"
  return next((k for k in keys if k not in ASIDE and ":" not in k), "train/loss")
