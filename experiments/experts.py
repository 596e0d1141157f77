"""How much compute are eight experts, two of them active, worth over a dense model of equal active FLOPs?

Tian et al. 2025, arXiv:2507.17702: the efficiency leverage of mixtures over dense models grows as fewer
experts are active; Clark et al. 2022, arXiv:2202.01169: it shrinks with size. Above 1 in both.

Scientific: one MLP of 96, or eight of 48 of which a token uses two.
Nuisance: optim.peak_lr, tuned for each by --scale lr at the third budget; seed, three a budget, in pairs.
Fixed: experiments/sweep/small.py, cosine to 0; all tokens find room (model.capacity_factor is off).
Budget: 2 x 4 x 3 = 24 runs of 100 to 800 steps, and 20 of --scale lr.
Answer (experiments/results/experts/ledger.jsonl, 3 minutes on 2 cores): 1.15 [1.10, 1.21] times the FLOPs at
the largest budget, and the more the larger the budget (.85 at an eighth of it); in seconds about half:
python -m experiments report experts --ledger experiments/results/experts/ledger.jsonl
Not run: --scale gpu.
Done when the intervals of the multiplier at the largest budget, with E shared and free, leave out 1.
"""

import math

from experiments import race
from experiments.report.claims import Claim
from experiments.sweep import Run
from experiments.sweep.small import SMALL
from experiments.wsd_cosine import GPU

STEPS = {"cpu": (100, 200, 400, 800), "gpu": (1000, 2000, 4000, 8000)}
SEEDS = (0, 1, 2)
RATES = (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
MIXTURE = {
  "model.experts": 8, "model.experts_per_token": 2, "model.capacity_factor": None,
}  # fmt: skip
KINDS = {"dense": {}, "experts": MIXTURE}
MLP = {"dense": 96, "experts": 48}
BEST = {"dense": 1.6e-2, "experts": 1.1e-2}  # vertices of --scale lr: 1.5e-2, 1.1e-2
MULTIPLIER = "compute multiplier of experts against dense, E shared"
claims = (
  Claim(
    MULTIPLIER, 1.0, "Tian et al. 2025, arXiv:2507.17702: the more the fewer are active",
    interval=(1.0, math.inf),
  ),
)  # fmt: skip


def runs(scale: str = "cpu"):
  """ "lr" is the sweep of the nuisance; "cpu" and "gpu" are races."""
  if scale == "lr":
    for name, kind in KINDS.items():
      for rate in RATES:
        for seed in SEEDS[:2]:
          changes = {"optim.peak_lr": rate, "seed": seed, "train.steps": 400}
          changes["model.mlp_dim"] = MLP[name]
          yield Run(f"{name},lr={rate:g},seed={seed}", SMALL | kind | changes)
    return
  settings, factor, mlp = (SMALL, 1.0, 1) if scale == "cpu" else (SMALL | GPU, 0.1, 8)
  settings = {
    k: v for k, v in settings.items() if not k.startswith("train.") or k == "train.batch_size"
  }
  recipes = [
    race.Recipe(
      name,
      settings | kind | {"model.mlp_dim": mlp * MLP[name], "optim.peak_lr": factor * BEST[name]},
    )
    for name, kind in KINDS.items()
  ]
  yield from race.runs(recipes, [{"train.steps": steps} for steps in STEPS[scale]], SEEDS)


def analyse(ledger):
  """The race; of the sweep of rates, the mean loss of each rate."""
  if all("lr=" in row["name"] for row in ledger):
    return {"losses": ledger.summary("model.experts", "lr")}
  return race.judge(ledger).results()
