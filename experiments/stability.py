"""Do qk-norm and z-loss make the loss less sensitive to the learning rate, and more so in wider models?

Wortsman et al. 2023, arXiv:2309.14322: learning-rate sensitivity (the mean over rates of the loss above the
best one, at most the loss at the start; §2.2) grows with size where attention's logits may grow; with
qk-norm and z-loss it stays low over three orders of magnitude of rates.

Scientific: model.qk_norm with objective.z_loss, on and off; model.width.
Nuisance: seed, two. The rates are the range that sensitivity is an average over.
Fixed: experiments/sweep/small.py, standard parameterization, 200 steps of 512 bytes.
Budget: 2 x 3 x 7 x 2 = 84 runs, 2e12 FLOPs (6ND) in all.
Answer (experiments/results/stability/ledger.jsonl, 6 minutes on 2 cores): yes, by 0.098 [0.051, 0.145] nats
at width 64, and without them sensitivity grows faster from width 16 on:
python -m experiments report stability --ledger experiments/results/stability/ledger.jsonl
Not run: --scale gpu.
Done when the interval of the difference at the largest width leaves out 0.
"""

import math

import numpy as np

from experiments import laws
from experiments.lr_sweep import mean_estimate
from experiments.report.claims import Claim
from experiments.sweep import Run
from experiments.sweep.small import SMALL
from experiments.wsd_cosine import GPU

WIDTHS = {"cpu": (16, 32, 64), "gpu": (128, 256, 512)}
RATES = tuple(2e-3 * 3**k for k in range(7))
SEEDS = (0, 1)
STABLE = {"off": {}, "on": {"model.qk_norm": True, "objective.z_loss": 1e-4}}
CHANGE = "sensitivity with qk-norm and z-loss less without, at the largest width (nats)"
claims = (
  Claim(CHANGE, 0.0, "Wortsman et al. 2023, arXiv:2309.14322 §3", interval=(-math.inf, 0.0)),
)


def runs(scale: str = "cpu"):
  base = SMALL | {"train.steps": 200, "eval.every_steps": 1_000_000, "train.on_nonfinite": "stop"}
  factor = 1.0
  if scale == "gpu":
    base, factor = base | GPU, 0.1
  for name, changes in STABLE.items():
    for width in WIDTHS[scale]:
      for rate in RATES:
        for seed in SEEDS:
          shape = {"model.width": width, "model.heads": max(width // 16, 1)}
          shape |= {"optim.peak_lr": factor * rate, "seed": seed}
          yield Run(
            f"{name},width={width},lr={factor * rate:g},seed={seed}", base | changes | shape
          )


def analyse(ledger):
  """Sensitivity of each width and seed, with and without; the change at the largest width, in pairs."""
  table = []
  for (norm, width, seed), cell in ledger.groups("model.qk_norm", "model.width", "seed").items():
    start = math.log(cell.column("model.vocab_size")[0])
    rates, losses = cell.column("lr"), cell.column("loss")
    value = laws.lr_sensitivity(rates, losses, start)
    table.append({"qk-norm and z-loss": norm, "width": width, "seed": seed, "sensitivity": value})
  widest = max(row["width"] for row in table)
  at = {
    (r["qk-norm and z-loss"], r["seed"]): r["sensitivity"] for r in table if r["width"] == widest
  }
  pairs = [at[True, s] - at[False, s] for s in SEEDS if {(True, s), (False, s)} <= at.keys()]
  found = {CHANGE: mean_estimate(np.array(pairs))} if pairs else {}
  return {**found, "sensitivities": table}
