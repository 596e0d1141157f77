"""Does the best learning rate stay where it is as models get deeper: under CompleteP, and under muP alone?

Dey et al. 2025, arXiv:2505.01618: it does with residual branches divided by depth (CompleteP), and does not
under muP, whose table is of widths.

Scientific: model.depth, 2 to 16; model.parameterization, mup and completep.
Nuisance: optim.peak_lr, five rates a factor of 2 apart; seed, two.
Fixed: experiments/sweep/small.py at width 32, the base of both; 400 steps of 512 bytes. At the base depth
both are one model, which is trained once.
Budget: (3 x 2 + 1) x 5 x 2 = 70 runs, 1.0e13 FLOPs (6ND) in all.
Answer (experiments/results/depth_transfer/ledger.jsonl, 11 minutes on 2 busy cores): over a factor of 8 in
depth the best rate falls hardly less under CompleteP, depth^-0.17 [-0.30, -0.05], than under muP, depth^-0.22
[-0.45, 0.02], where last matrices start at 1 / sqrt(2 depth); but CompleteP ends lower at depth 16:
python -m experiments report depth_transfer --ledger experiments/results/depth_transfer/ledger.jsonl
Done when every best rate lies inside the grid.
"""

import numpy as np

from experiments.lr_sweep import best_rate, mean_estimate, shift_of
from experiments.report.claims import Claim
from experiments.sweep import Run
from experiments.sweep.small import SMALL
from experiments.wsd_cosine import GPU

DEPTHS = {"cpu": (2, 4, 8, 16), "gpu": (2, 4, 8, 16, 32)}
RATES = (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
SEEDS = (0, 1)
SHIFT = "d log2(best lr) / d log2(depth), {}"
GAIN = "loss of completep less mup's at the largest depth, each at its best rate (nats/token)"
DEY = "Dey et al. 2025, arXiv:2505.01618"
claims = (
  Claim(SHIFT.format("completep"), 0.0, f"{DEY}, figure 3: the optimum is stable", tolerance=0.1),
)


def runs(scale: str = "cpu"):
  base = SMALL | {"model.base_width": 32, "train.steps": 400, "eval.every_steps": 1_000_000}
  factor = 1.0
  if scale == "gpu":
    base, factor = base | GPU | {"model.base_width": 256}, 0.1
  first = DEPTHS[scale][0]
  for parameterization in ("completep", "mup"):
    for depth in DEPTHS[scale]:
      if depth == first and parameterization == "mup":
        continue
      for rate in RATES:
        for seed in SEEDS:
          changes = {
            "model.parameterization": parameterization, "model.depth": depth,
            "model.base_depth": first, "optim.peak_lr": factor * rate, "seed": seed,
          }  # fmt: skip
          name = f"{parameterization},depth={depth},lr={factor * rate:g},seed={seed}"
          yield Run(name, base | changes)


def analyse(ledger):
  """The best rate of each parameterization, depth and seed, and its slope; one at the grid's edge is none."""
  best = []
  for (parameterization, depth, seed), cell in ledger.groups(
    "model.parameterization", "model.depth", "seed"
  ).items():
    rate, inside = best_rate(np.array(cell.column("lr")), np.array(cell.column("loss")))
    best.append({
      "parameterization": parameterization, "depth": depth, "seed": seed, "best lr": rate,
      "inside the grid": inside, "loss": min(cell.column("loss")),
    })  # fmt: skip
  first = min(b["depth"] for b in best)
  found = {}
  for parameterization in ("completep", "mup"):
    mine = [b for b in best if parameterization == b["parameterization"] or b["depth"] == first]
    found[SHIFT.format(parameterization)] = shift_of(mine, "depth")
  deepest = [b for b in best if b["depth"] == max(b["depth"] for b in best)]
  loss = {(b["parameterization"], b["seed"]): b["loss"] for b in deepest}
  pairs = [(loss["completep", s], loss["mup", s]) for s in SEEDS if ("mup", s) in loss]
  if pairs:
    found[GAIN] = mean_estimate(np.array([a - b for a, b in pairs]))
  return {**found, "best rates": best}
