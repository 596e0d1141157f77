"""Is repeating data up to four times nearly as good as new data, and does weight decay help where it is not?

Muennighoff et al. 2023, arXiv:2305.16264, §6: at a fixed number of training tokens, up to 4 epochs change
the loss next to nothing; beyond, repeats are worth less and less. Lovelace et al. 2026, arXiv:2605.01640: an
overfitting penalty that grows with the number of epochs, and that weight decay lowers.

Scientific: data.unique_tokens, 1 to 64 epochs of 205 thousand training tokens; optim.weight_decay, two.
Nuisance: seed, three a setting, which also draws the subset.
Fixed: experiments/sweep/small.py, peak rate 3.2e-2, cosine to 0, 400 steps of 512 bytes.
Budget: 7 x 2 x 3 = 42 runs, 1.8e12 FLOPs (6ND) in all; --on stacked --stack 21 trains them in two programs.
Answer (experiments/results/repetition/ledger.jsonl, 14 minutes on a busy machine): up to 8 epochs cost
nothing that three seeds can see (-0.04 [-0.32, 0.24] nats at 4), 16 cost 0.1 to 0.2 nats, and at 64 the
model has learned its subset by heart: 6.23 [5.47, 6.99] nats more. A hundred times the weight decay takes
2.43 [1.89, 2.97] of them off:
python -m experiments fit repetition --ledger experiments/results/repetition/ledger.jsonl
Not run: --scale gpu (width 256, 8,000 steps of 8,192 tokens).
Done when the intervals of the three numbers below leave out the other answer.
"""

import numpy as np

from experiments.lr_sweep import mean_estimate
from experiments.report.claims import Claim, Estimate
from experiments.sweep import Run
from experiments.sweep.small import SMALL
from experiments.wsd_cosine import GPU

EPOCHS = (1, 2, 4, 8, 16, 32, 64)
DECAYS = (1e-4, 1e-2)  # of a step at the peak rate: decay is independent of the rate
SEEDS = (0, 1, 2)
STEPS = {"cpu": 400, "gpu": 8000}
FOUR = "loss at 4 epochs less that at 1 (nats/token)"
MANY = "loss at 64 epochs less that at 1 (nats/token)"
DECAY = "what weight decay 1e-2 instead of 1e-4 takes off that rise at 64 epochs (nats/token)"

claims = (
  Claim(
    FOUR, 0.0, "Muennighoff et al. 2023, arXiv:2305.16264 §6: negligible up to 4", tolerance=0.02
  ),
)


def runs(scale: str = "cpu"):
  settings = {**SMALL, **(GPU if scale == "gpu" else {}), "train.steps": STEPS[scale]}
  per_step = {"cpu": 512, "gpu": 8192}[scale]  # tokens
  for decay in DECAYS:
    for epochs in EPOCHS:
      for seed in SEEDS:
        yield Run(
          f"decay={decay:g},epochs={epochs},seed={seed}",
          settings
          | {
            "data.unique_tokens": STEPS[scale] * per_step // epochs,
            "optim.weight_decay": decay,
            "optim.peak_lr": 3.2e-2 if scale == "cpu" else 3e-3,
            "seed": seed,
          },
        )


def analyse(ledger):
  """Differences in pairs of one seed; the table has the mean loss at each number of epochs."""
  table, found = [], {}
  for row in ledger:
    epochs = round(row["n_tokens"] / row["data.unique_tokens"])
    found[row["optim.weight_decay"], epochs, row["seed"]] = row["loss"]
  for decay in DECAYS:
    for epochs in EPOCHS:
      losses = [found[decay, epochs, s] for s in SEEDS if (decay, epochs, s) in found]
      if losses:
        table.append({
          "weight decay": decay, "epochs": epochs, "n": len(losses), "loss": float(np.mean(losses)),
        })  # fmt: skip
  rise = lambda decay, epochs: [
    found[decay, epochs, s] - found[decay, 1, s]
    for s in SEEDS
    if {(decay, epochs, s), (decay, 1, s)} <= found.keys()
  ]
  low, high = (rise(decay, EPOCHS[-1]) for decay in DECAYS)
  saved = [a - b for a, b in zip(low, high, strict=False)]
  return {
    FOUR: _mean(rise(DECAYS[0], 4)), MANY: _mean(low), DECAY: _mean(saved), "losses": table,
  }  # fmt: skip


def _mean(values: list[float]) -> Estimate:
  if not values:
    return Estimate(float("nan"), None, "its runs are not done")
  return mean_estimate(np.array(values))
