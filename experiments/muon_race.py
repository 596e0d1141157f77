"""How much compute is Muon worth over AdamW, each at its own best learning rate?

Liu et al. 2025, arXiv:2502.16982 §3.2: Muon needs 52 % of AdamW's FLOPs for the same loss, a multiplier of
1.92; Wen et al. 2025, arXiv:2509.02046: with AdamW tuned as well, 1.4 at 0.1B parameters and 1.1 at 1.2B.

Scientific: optim.name. Nuisance: optim.peak_lr, tuned for each recipe by the sweep --scale lr, of six rates
at the ladder's third budget; seed, four a budget, in pairs.
Fixed: experiments/sweep/small.py, weight decay 1e-4, cosine to 0.
Budget: 2 x 4 x 4 = 32 runs of 100 to 800 steps, 1.3e12 FLOPs (6ND) in all, and 24 runs of --scale lr.
Answer (experiments/results/muon_race/ledger.jsonl, on a busy machine; rates.jsonl is of --scale lr: best
rates 0.015 and 0.034, both inside the grid): Muon is better at every budget, and
worth 1.28 [1.14, 1.45] times AdamW's FLOPs at the largest, like Wen et al. and less than Liu et al.; in
device-seconds nothing is shown, as the clock was shared:
python -m experiments fit muon_race --ledger experiments/results/muon_race/ledger.jsonl
Not run: --scale gpu (width 256, up to 8,000 steps of 8,192 tokens).
Done when the intervals of the multiplier at the largest budget, with E shared and free, leave out 1.
"""

from experiments import race
from experiments.lr_sweep import best_rate
from experiments.report.claims import Claim
from experiments.sweep import Run
from experiments.sweep.small import SMALL
from experiments.wsd_cosine import GPU

STEPS = {"cpu": (100, 200, 400, 800), "gpu": (1000, 2000, 4000, 8000)}
SEEDS = (0, 1, 2, 3)
RATES = (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2, 1.28e-1)
BEST = {"adamw": 1.6e-2, "muon": 3.2e-2}  # by --scale lr: the best of the grid, both inside it
MULTIPLIER = "compute multiplier of muon against adamw, E shared"

claims = (
  Claim(
    MULTIPLIER, 1.92, "Liu et al. 2025, arXiv:2502.16982 §3.2: 52 % of the FLOPs", tolerance=0.2
  ),
  Claim(MULTIPLIER, 1.4, "Wen et al. 2025, arXiv:2509.02046: both tuned, 0.1B", tolerance=0.1),
)


def runs(scale: str = "cpu"):
  """ "lr" is the sweep of the nuisance; "cpu" and "gpu" are races."""
  if scale == "lr":
    for name in BEST:
      for rate in RATES:
        for seed in SEEDS[:2]:
          changes = {"optim.name": name, "optim.peak_lr": rate, "seed": seed, "train.steps": 400}
          yield Run(f"{name},lr={rate:g},seed={seed}", SMALL | changes)
    return
  settings, factor = (SMALL, 1.0) if scale == "cpu" else (SMALL | GPU, 0.1)
  settings = {
    k: v for k, v in settings.items() if not k.startswith("train.") or k == "train.batch_size"
  }
  recipes = [
    race.Recipe(name, settings | {"optim.name": name, "optim.peak_lr": factor * rate})
    for name, rate in BEST.items()
  ]
  yield from race.runs(recipes, [{"train.steps": steps} for steps in STEPS[scale]], SEEDS)


def analyse(ledger):
  """The race; of the sweep of rates, the best rate of each recipe."""
  if all("lr=" in row["name"] for row in ledger):
    import numpy as np

    found = []
    for (name,), cell in ledger.groups("optim.name").items():
      means = {rate: np.mean(group.column("loss")) for (rate,), group in cell.groups("lr").items()}
      rate, inside = best_rate(np.array(list(means)), np.array(list(means.values())))
      found.append({"optim.name": name, "best lr": rate, "inside the grid": inside,
                    "best of the grid": min(means, key=lambda r: means[r])})  # fmt: skip
    return {"best rates": found}
  return race.judge(ledger).results()
