"""Does the best learning rate fall as training gets longer?

Bjorck et al. 2024, arXiv:2409.19913: the best rate falls with the token horizon, lr* ~ D^-0.32 (their 50M to
2.7B models); Step Law (Li et al. 2025, arXiv:2503.04715) has it rise, D^0.307, with its batch growing too.
Here the batch is fixed, as in Bjorck et al.

Scientific: training tokens, 51 thousand to 410 thousand.
Nuisance: optim.peak_lr, six rates a factor of 2 apart; seed, three a setting.
Fixed: experiments/sweep/small.py: 512 bytes a step, cosine to 0 that ends with the run.
Budget: 4 x 6 x 3 = 72 runs, 2.9e12 FLOPs (6ND) in all; --on stacked --stack 18 trains a length at a time.
Answer (experiments/results/lr_tokens/ledger.jsonl, 7 minutes on 2 cores): over this factor of 8 in tokens
the best rate hardly moves, D^-0.06 [-0.25, 0.14]: that leaves out 0.307 and is borderline with -0.32:
python -m experiments fit lr_tokens --ledger experiments/results/lr_tokens/ledger.jsonl
Not run: --scale gpu (width 256, up to 16,000 steps of 8,192 tokens).
Done when every best rate lies inside the grid.
"""

import numpy as np

from experiments.lr_sweep import best_rate, mean_estimate
from experiments.report.claims import Claim, Estimate
from experiments.sweep import Run
from experiments.sweep.small import SMALL
from experiments.wsd_cosine import GPU

STEPS = {"cpu": (100, 200, 400, 800), "gpu": (1000, 2000, 4000, 8000, 16000)}
RATES = (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 1.28e-1)
SEEDS = (0, 1, 2)
SLOPE = "d log(best lr) / d log(tokens)"

claims = (
  Claim(
    SLOPE, -0.32, "Bjorck et al. 2024, arXiv:2409.19913, §3, LLaMA-style models", tolerance=0.1
  ),
)


def runs(scale: str = "cpu"):
  factor = 1.0 if scale == "cpu" else 0.1
  for steps in STEPS[scale]:
    for rate in RATES:
      for seed in SEEDS:
        settings = {**SMALL, **(GPU if scale == "gpu" else {}), "train.steps": steps}
        settings |= {"optim.peak_lr": factor * rate, "seed": seed, "optim.schedule": "cosine"}
        yield Run(f"steps={steps},lr={factor * rate:g},seed={seed}", settings)


def analyse(ledger):
  """The slope of log(best rate) in log(tokens), a seed at a time; a best rate at the grid's edge is none."""
  best = []
  for (tokens, seed), cell in ledger.groups("n_tokens", "seed").items():
    rate, inside = best_rate(np.array(cell.column("lr")), np.array(cell.column("loss")))
    best.append({
      "n_tokens": tokens, "seed": seed, "best lr": rate, "inside the grid": inside,
      "loss": min(cell.column("loss")),
    })  # fmt: skip
  slopes = []
  for seed in dict.fromkeys(b["seed"] for b in best):
    mine = [b for b in best if b["seed"] == seed and b["inside the grid"]]
    if len(mine) >= 2:
      x, y = (np.log([b[key] for b in mine]) for key in ("n_tokens", "best lr"))
      slopes.append(np.polyfit(x, y, 1)[0])
  outside = sum(not b["inside the grid"] for b in best)
  note = (
    f"{outside} of {len(best)} optima lie at the grid's edge and are left out" if outside else ""
  )
  if not slopes:
    return {
      SLOPE: Estimate(float("nan"), None, "no seed has two optima inside the grid"),
      "best rates": best,
    }
  return {SLOPE: mean_estimate(np.array(slopes), note), "best rates": best}
