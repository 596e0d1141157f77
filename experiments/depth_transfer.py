"""Does the best learning rate stay where it is as models get deeper, under muP's rules for width alone?

Dey et al. 2025, arXiv:2505.01618 (CompleteP): it does with residual branches divided by depth, and does not
under muP, whose table is of widths.

Scientific: model.depth, 1 to 8. Nuisance: optim.peak_lr, six rates a factor of 2 apart; seed, two.
Fixed: experiments/sweep/small.py, muP at its base width, 400 steps of 512 bytes.
Budget: 4 x 6 x 2 = 48 runs, 2.6e12 FLOPs (6ND) in all.
Not run: this file has a plan and a smoke test alone.
Done when every best rate lies inside the grid.
"""

import numpy as np

from experiments.lr_sweep import best_rate, mean_estimate
from experiments.report.claims import Claim
from experiments.sweep import Run
from experiments.sweep.small import SMALL
from experiments.wsd_cosine import GPU

DEPTHS = {"cpu": (1, 2, 4, 8), "gpu": (2, 4, 8, 16, 32)}
RATES = (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 1.28e-1)
SEEDS = (0, 1)
SHIFT = "d log2(best lr) / d log2(depth) under muP"
claims = (
  Claim(
    SHIFT,
    0.0,
    "Dey et al. 2025, arXiv:2505.01618: 0 under CompleteP, below 0 under muP",
    tolerance=0.1,
  ),
)


def runs(scale: str = "cpu"):
  base = SMALL | {
    "model.parameterization": "mup", "model.base_width": 32, "train.steps": 400,
    "eval.every_steps": 1_000_000,
  }  # fmt: skip
  factor = 1.0
  if scale == "gpu":
    base, factor = base | GPU | {"model.base_width": 256}, 0.1
  for depth in DEPTHS[scale]:
    for rate in RATES:
      for seed in SEEDS:
        changes = {"model.depth": depth, "optim.peak_lr": factor * rate, "seed": seed}
        yield Run(f"depth={depth},lr={factor * rate:g},seed={seed}", base | changes)


def analyse(ledger):
  """The best rate of each depth and seed, and its slope; one at the grid's edge is none."""
  best, slopes = [], []
  for (depth, seed), cell in ledger.groups("model.depth", "seed").items():
    rate, inside = best_rate(np.array(cell.column("lr")), np.array(cell.column("loss")))
    best.append({"depth": depth, "seed": seed, "best lr": rate, "inside the grid": inside})
  for seed in SEEDS:
    mine = [b for b in best if b["seed"] == seed and b["inside the grid"]]
    if len(mine) >= 2:
      x, y = (np.log2([b[key] for b in mine]) for key in ("depth", "best lr"))
      slopes.append(np.polyfit(x, y, 1)[0])
  found = {SHIFT: mean_estimate(np.array(slopes))} if slopes else {}
  return {**found, "best rates": best}
