"""Does a constant rate with a short decay (WSD) end as low as cosine, and at half of its best rate?

Hägele et al. 2024, arXiv:2405.18392, §3: at equal budget, constant + cooldown matches cosine, each at its
own best learning rate, and the best rate of the constant schedule is about half of cosine's.

Scientific: optim.schedule, wsd (linear decay over the last fifth) and cosine, both to 0.
Nuisance: optim.peak_lr, six rates a factor of 2 apart; seed, three a setting.
Fixed: experiments/sweep/small.py, 400 steps of 512 bytes of the docstrings corpus.
Budget: 2 x 6 x 3 = 36 runs, 1.5e12 FLOPs (6ND) in all; --on stacked --stack 18 trains a schedule at a time.
Answer (experiments/results/wsd_cosine/ledger.jsonl, 12 minutes a schedule on a busy machine): here WSD ends
lower than cosine by 0.045 [0.025, 0.066] nats at its best rate, which is 0.74 [0.65, 0.83] of cosine's, not
half: python -m experiments fit wsd_cosine --ledger experiments/results/wsd_cosine/ledger.jsonl
With --scale gpu (width 256, 8,000 steps of 8,192 tokens) the plan stands; it was not run.
Done when both best rates lie inside the grid.
"""

import numpy as np

from experiments.lr_sweep import best_rate, mean_estimate
from experiments.report.claims import Claim, Estimate
from experiments.sweep import Run
from experiments.sweep.small import SMALL

RATES = (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 1.28e-1)
SEEDS = (0, 1, 2)
SCHEDULES = ("wsd", "cosine")
GPU = {
  "model.width": 256, "model.heads": 8, "model.depth": 4, "model.seq_len": 256, "train.batch_size": 32,
  "data.tokenizer": "bpe", "train.steps": 8000, "log.every_steps": 100,
}  # fmt: skip
HAGELE = "Hägele et al. 2024, arXiv:2405.18392"
GAP = "loss of wsd less cosine's, each at its best rate (nats/token)"
RATIO = "log2 of wsd's best rate over cosine's"

claims = (
  Claim(GAP, 0.0, f"{HAGELE} §3, figure 3: the curves lie on each other", tolerance=0.01),
  Claim(RATIO, -1.0, f"{HAGELE} §3: half of cosine's", tolerance=0.5),
)


def runs(scale: str = "cpu"):
  factor = 1.0 if scale == "cpu" else 0.1
  for schedule in SCHEDULES:
    for rate in RATES:
      for seed in SEEDS:
        settings = {**SMALL, "train.steps": 400, **(GPU if scale == "gpu" else {})}
        settings |= {"optim.schedule": schedule, "optim.peak_lr": factor * rate, "seed": seed}
        yield Run(f"{schedule},lr={factor * rate:g},seed={seed}", settings)


def analyse(ledger):
  """Best rate and loss there of each schedule and seed; both differ in pairs of one seed."""
  best = []
  for (schedule, seed), cell in ledger.groups("optim.schedule", "seed").items():
    rate_S, loss_S = np.array(cell.column("lr")), np.array(cell.column("loss"))
    rate, inside = best_rate(rate_S, loss_S)
    best.append({
      "schedule": schedule, "seed": seed, "best lr": rate, "inside the grid": inside,
      "loss": vertex_loss(rate_S, loss_S),
    })  # fmt: skip
  find = lambda schedule, seed: next(
    (b for b in best if (b["schedule"], b["seed"]) == (schedule, seed)), None
  )
  pairs = [(find("wsd", seed), find("cosine", seed)) for seed in SEEDS]
  pairs = [(w, c) for w, c in pairs if w and c]
  gaps = np.array([w["loss"] - c["loss"] for w, c in pairs])
  ratios = np.array([
    np.log2(w["best lr"] / c["best lr"])
    for w, c in pairs if w["inside the grid"] and c["inside the grid"]
  ])  # fmt: skip
  return {GAP: estimate(gaps), RATIO: estimate(ratios), "best rates": best}


def estimate(values_S: np.ndarray) -> Estimate:
  if not len(values_S):
    return Estimate(float("nan"), None, "no seed has both best rates inside the grid")
  return mean_estimate(values_S)


def vertex_loss(rate_S: np.ndarray, loss_S: np.ndarray) -> float:
  """The loss at the vertex that `best_rate` finds; at an edge of the grid the lowest loss."""
  order = np.argsort(rate_S)
  x, y = np.log2(rate_S[order]), loss_S[order]
  i = int(np.argmin(y))
  if i in (0, len(x) - 1):
    return float(y[i])
  a, b, c = np.polyfit(x[i - 1 : i + 2] - x[i], y[i - 1 : i + 2], 2)
  return float(c - b * b / (4 * a))
