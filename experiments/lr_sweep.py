"""Does the best peak learning rate shift with width, and does muP hold it still?

Scientific: model.width, under model.parameterization standard and mup.
Nuisance: optim.peak_lr, six rates a factor of 2 apart; seed, three a setting.
Fixed: depth 2, heads of 16, 128 tokens of context, bytes, 256 steps of 8 sequences, the rest as in
configs/default.py.
Budget: 2 x 3 x 6 x 3 = 108 runs, 3.4e13 FLOPs (6ND) in all: about a quarter of an hour on 2 CPU cores.
Runs of one width share a program, so `--on stacked` trains them side by side.
What would change our mind: a best rate that falls under muP as fast as under the standard
parameterization. Done when every best rate lies inside the grid.
"""

import itertools

import numpy as np

from experiments.report.claims import Claim, Estimate
from experiments.sweep import Run

WIDTHS = (32, 64, 128)
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
SEEDS = (0, 1, 2)
YANG = "Yang et al. 2022, arXiv:2203.03466"
SHIFT = "d log2(best lr) / d log2(width), {}"

claims = (
  Claim(
    SHIFT.format("mup"), 0.0, f"{YANG} §6: the optimum is stable across widths", tolerance=0.25
  ),
  Claim(SHIFT.format("standard"), -1.0, f"{YANG} table 8, Adam's hidden weights", tolerance=0.25),
)


def runs():
  settings = itertools.product(("standard", "mup"), WIDTHS, RATES, SEEDS)
  for parameterization, width, rate, seed in settings:
    yield Run(
      f"{parameterization},width={width},lr={rate:g},seed={seed}",
      {
        "model.parameterization": parameterization,
        "model.width": width,
        "optim.peak_lr": rate,
        "seed": seed,
        "data.tokenizer": "byte",
        "model.seq_len": 128,
        "model.depth": 2,
        "model.heads": width // 16,
        "model.base_width": WIDTHS[0],
        "train.batch_size": 8,
        "train.tokens": 2**18,
        "eval.tokens": 50_000,
        "eval.every_steps": 128,
        "eval.batch_size": 64,
        "sample.tokens": 0,
        "checkpoint.best": False,
      },
    )


def analyse(ledger):
  """The best rate of every (parameterization, width, seed), and how it moves with width.

  A best rate at the edge of the grid is no optimum: the true one lies beyond, so it enters no slope.
  """
  best = []
  for (parameterization, width, seed), cell in ledger.groups(
    "model.parameterization", "model.width", "seed"
  ).items():
    rate, inside = best_rate(np.array(cell.column("lr")), np.array(cell.column("loss")))
    best.append({
      "parameterization": parameterization, "width": width, "seed": seed, "best lr": rate,
      "inside the grid": inside, "loss": min(cell.column("loss")),
    })  # fmt: skip
  found = {}
  for parameterization in ("standard", "mup"):
    mine = [b for b in best if b["parameterization"] == parameterization]
    found[SHIFT.format(parameterization)] = shift_of(mine)
  return {**found, "best rates": best}


def shift_of(best: list[dict], over: str = "width") -> Estimate:
  """The slope of log2(best rate) in log2 of `over`, a seed at a time, from optima inside the grid only."""
  inside = [b for b in best if b["inside the grid"]]
  slopes = []
  for seed in dict.fromkeys(b["seed"] for b in best):
    x, y = (np.log2([b[key] for b in inside if b["seed"] == seed]) for key in (over, "best lr"))
    if len(set(x)) >= 2:
      slopes.append(np.polyfit(x, y, 1)[0])
  left_out = len(best) - len(inside)
  note = (
    f"{left_out} of {len(best)} optima lie at the grid's edge and are left out" if left_out else ""
  )
  if not slopes:
    return Estimate(
      float("nan"), None, note + ": no seed has two optima inside the grid; widen RATES"
    )
  return mean_estimate(np.array(slopes), note)


def best_rate(rate_S: np.ndarray, loss_S: np.ndarray) -> tuple[float, bool]:
  """Vertex of the parabola in log2(rate) through the lowest loss and its neighbours.

  At an edge of the grid it is the edge itself, and the second value is False.
  """
  order = np.argsort(rate_S)
  x, y = np.log2(rate_S[order]), loss_S[order]
  i = int(np.argmin(y))
  if i in (0, len(x) - 1):
    return float(2 ** x[i]), False
  a, b, _ = np.polyfit(x[i - 1 : i + 2], y[i - 1 : i + 2], 2)
  return float(2 ** (-b / (2 * a))), True


def mean_estimate(values_S: np.ndarray, note: str = "") -> Estimate:
  """The mean over seeds with Student's 95 % interval, which takes two of them."""
  from scipy import stats

  mean, count = float(values_S.mean()), len(values_S)
  said = "; ".join(filter(None, (f"{count} seeds, Student's interval", note)))
  if count < 2:
    return Estimate(mean, None, "; ".join(filter(None, ("one seed, no interval", note))))
  half = stats.t.ppf(0.975, count - 1) * values_S.std(ddof=1) / np.sqrt(count)
  return Estimate(mean, (mean - half, mean + half), said)
