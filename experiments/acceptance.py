"""Given S device-seconds, can a law say which model is best at 4 S, and how low its loss will be?

The last exercise of courses on scaling laws: choose small runs, fit them, name the best model for a budget
four times as large as all of them together and an interval for its loss, train it, and see.

Scientific: model size and training tokens, at four budgets of 3 to 24 seconds a run, S = 120 in all; then
runs of 4 S = 480. A second is one of one CPU core; SPEEDS says how many tokens a size sees in it.
Nuisance: optim.peak_lr, carried across widths by muP as in experiments/chinchilla.py, not across budgets.
Fixed: as in experiments/chinchilla.py: bytes as tokens, context 128, linear decay to zero.
Budget: 16 runs of S in all, and 4 of 4 S each: the size that the law names, and three beside it, so that it
can be wrong. 29 minutes with --workers 2 on 2 cores that others used as well.
Answer (experiments/results/acceptance/ledger.jsonl): the law of 16 runs names width 128 and predicts 1.099
[1.048, 1.363] nats/token; the run of 480 seconds ends at 1.207, inside, as do the three beside it. None of
them ends lower: width 96 at 1.207, too, 144 at 1.219, 72 at 1.232. The law is 0.108 too low, on the
side that the interval is skewed to: rates were tuned for short runs, and E is hardly known from so few.
With --scale gpu: seconds of 1e14 FLOPs (6ND), S = 600; it was not run: TARGETS is to be set by its ladder's
law. Done when the size that the law names is trained and no end of the list of sizes.
"""

import math
import pathlib
from typing import Any

import numpy as np

from experiments import laws
from experiments.chinchilla import GPU_SETTINGS, SETTINGS, SIZES
from experiments.report.claims import Claim, Estimate
from experiments.sweep import Run
from experiments.sweep.sweep import resolve_run
from lm.cost.parameters import run_counts

LAW = "chinchilla"
MORE = 4  # the target's share of S
LADDER = {  # seconds of a run: the sizes it is spent on, first and end in SIZES
  "cpu": {3.0: (0, 6), 6.0: (1, 6), 12.0: (2, 6), 24.0: (4, 5)},
  "gpu": {15.0: (0, 6), 30.0: (1, 6), 60.0: (2, 6), 120.0: (4, 5)},
}
# Tokens a second of one core (taskset -c 0 python train.py ..., AMD EPYC with AVX-512, two at a time).
SPEEDS = (143285, 115252, 82836, 70829, 52263, 43051, 30135, 18630, 13885, 8406)
RATE = 1e14  # FLOPs (6ND) a second, --scale gpu
TARGETS = {"cpu": (8, 7, 6, 9), "gpu": ()}  # sizes trained at 4 S: first the one that the law names
STEP_TOKENS = 8 * 128

PREDICTED = "predicted loss at 4 S of the size that the law names (nats/token)"
MISS = "loss of the run at 4 S less what was predicted (nats/token)"
REGRET = "loss of the size that was named less that of the best one trained at 4 S (nats/token)"
claims = (
  Claim(
    MISS,
    0.0,
    "the acceptance test of a scaling course: the truth is in the interval",
    tolerance=0.02,
  ),
  Claim(REGRET, 0.0, "the same: the size that was named is the best", tolerance=0.01),
)


def budget(scale: str) -> float:
  """S, seconds of all runs of the ladder."""
  return sum(seconds * (end - first) for seconds, (first, end) in LADDER[scale].items())


def runs(scale: str = "cpu"):
  for seconds, (first, end) in LADDER[scale].items():
    for size in range(first, end):
      yield _run(scale, size, seconds)
  for size in TARGETS[scale]:
    yield _run(scale, size, MORE * budget(scale))


def _run(scale, size, seconds):
  width, depth, heads = SIZES[scale][size]
  settings = SETTINGS | {"model.width": width, "model.depth": depth, "model.heads": heads}
  if scale == "cpu":
    settings["train.steps"] = round(seconds * SPEEDS[size] / STEP_TOKENS)
  else:
    settings |= {**GPU_SETTINGS, "train.flops": seconds * RATE}
  return Run(f"seconds={seconds:g},width={width},depth={depth}", settings)


def seconds_of(row) -> float:
  """What a run's name says it was given."""
  return float(row["name"].partition(",")[0].removeprefix("seconds="))


def analyse(ledger):
  """The law of the ladder alone, what it says of every size at 4 S, and the runs that were trained there."""
  scale = "gpu" if max(ledger.column("model.seq_len")) == GPU_SETTINGS["model.seq_len"] else "cpu"
  rungs = [row for row in ledger if seconds_of(row) in LADDER[scale]]
  trained = {row["name"]: row["loss"] for row in ledger if seconds_of(row) not in LADDER[scale]}
  columns = {k: [float(row[k]) for row in rungs] for k in ("n_params", "n_tokens", "loss")}
  fit = laws.fit_table(laws.from_columns(columns), LAW, holdout=False, seed=0)
  sizes = [_candidate(fit, scale, size, trained) for size in range(len(SPEEDS))]
  named = min(sizes, key=lambda c: c["law says"])
  what = f"width {named['width']}, depth {named['depth']}"
  predicted = Estimate(named["law says"], (named["low"], named["high"]), what)
  found = {PREDICTED: predicted, "law of the ladder": fit, "sizes at 4 S": sizes}
  if named["loss"] is None:
    return {MISS: Estimate(math.nan, None, f"{what}, which it names, is not trained yet"), **found}
  low, high = named["loss"] - named["high"], named["loss"] - named["low"]
  best = min(c["loss"] for c in sizes if c["loss"] is not None)
  return {
    MISS: Estimate(named["loss"] - named["law says"], (low, high), f"{what}: {named['loss']:.3f}"),
    REGRET: Estimate(named["loss"] - best, None, f"of {len(trained)} sizes trained"),
    **found,
  }


def pictures(ledger, results):
  """Of each size at 4 S: what the law says with its interval, and what the trained ones came to."""
  from experiments.report import charts

  sizes = results["sizes at 4 S"]
  dots = [{"x": c["n_params"], "y": c["law says"], "low": c["low"], "high": c["high"],
           "by": "the law of short runs, 95 %", "split": ""} for c in sizes]  # fmt: skip
  dots += [{"x": c["n_params"], "y": c["loss"], "by": "trained", "split": ""}
           for c in sizes if c["loss"] is not None]  # fmt: skip
  chart = charts.panels(
    dots, [], ("parameters N", "loss at 4 S (nats/token)"), {"": ""}, "", log_y=False
  )
  return {
    "predicted": (chart, "The loss at 4 S by size: predicted, with 95 % intervals, and trained.")
  }


def _candidate(fit, scale, size, trained) -> dict[str, Any]:
  """What the law says of a size at 4 S: the loss of a new run and its 95 % interval."""
  run = _run(scale, size, MORE * budget(scale))
  cfg = resolve_run(run, pathlib.Path("runs")).cfg
  x = {"n_params": [run_counts(cfg).total], "n_tokens": [cfg.train.tokens]}
  low, high = new_run_interval(fit, x)
  return {
    "width": cfg.model.width, "depth": cfg.model.depth, "n_params": x["n_params"][0],
    "n_tokens": x["n_tokens"][0], "law says": float(fit.predict(x)[0]), "low": low, "high": high,
    "loss": trained.get(run.name),
  }  # fmt: skip


def new_run_interval(fit, x) -> tuple[float, float]:
  """95 % interval of a new run's loss: the law's bootstrap, and a residual drawn for each of its fits.

  Residuals are widened by sqrt(n / (n - p)), as the fit's p parameters took some of the noise.
  """
  rng = np.random.default_rng(0)
  laws_B = np.array([fit.predict(x, theta)[0] for theta in fit.boots])
  noise_B = rng.choice(fit.residuals, len(laws_B)) * math.sqrt(fit.n / (fit.n - fit.n_free))
  new_B = laws_B * np.exp(noise_B) if fit.law.link == "log" else laws_B + noise_B
  low, high = np.nanquantile(new_B, (0.025, 0.975))
  return float(low), float(high)
