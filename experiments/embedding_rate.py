"""Is a larger learning rate of the embedding alone most of what muP gains?

arXiv:2605.21486 (2026): most of muP's gain over the standard parameterization comes from the embedding's
rate, which muP keeps while that of hidden weights falls with width. Here: standard, standard with the
embedding's rate multiplied by width / 32, and muP, each at every rate.

Scientific: the three parameterizations; model.width.
Nuisance: optim.peak_lr, six rates a factor of 2 apart; seed, two.
Fixed: experiments/sweep/small.py, tied embeddings, 400 steps of 512 bytes.
Budget: 3 x 3 x 6 x 2 = 108 runs, 2.6e13 FLOPs (6ND) in all.
Answer (experiments/results/embedding_rate/ledger.jsonl, 14 minutes on 2 busy cores): not told by two seeds.
At width 128 the embedding's rate alone gives .34 of muP's gain with one seed and -.20 with the other; muP
itself gains .09 nats with either:
python -m experiments report embedding_rate --ledger experiments/results/embedding_rate/ledger.jsonl
Not run: more seeds, --scale gpu.
Done when the interval of the share leaves out 0 or 1.
"""

import numpy as np

from experiments.lr_sweep import mean_estimate
from experiments.report.claims import Claim
from experiments.sweep import Run
from experiments.sweep.small import SMALL
from experiments.wsd_cosine import GPU, vertex_loss

BASE = 32
WIDTHS = {"cpu": (32, 64, 128), "gpu": (128, 256, 512)}
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
SEEDS = (0, 1)
KINDS = ("standard", "embedding", "mup")
SHARE = "share of muP's gain at the largest width that the embedding's rate alone gives"
claims = (Claim(SHARE, 1.0, "arXiv:2605.21486: most of it", interval=(0.5, 1.5)),)


def runs(scale: str = "cpu"):
  base = SMALL | {"train.steps": 400, "eval.every_steps": 1_000_000}
  factor, base_width = 1.0, BASE
  if scale == "gpu":
    base, factor, base_width = base | GPU, 0.1, 128
  for kind in KINDS:
    for width in WIDTHS[scale]:
      for rate in RATES:
        for seed in SEEDS:
          changes = {
            "model.width": width, "model.heads": width // 16, "model.base_width": base_width,
            "model.parameterization": "mup" if kind == "mup" else "standard",
            "optim.peak_lr": factor * rate, "seed": seed,
          }  # fmt: skip
          if kind == "embedding":
            changes["optim.groups"] = (f"embed:lr={width / base_width:g}",)
          yield Run(f"{kind},width={width},lr={factor * rate:g},seed={seed}", base | changes)


def analyse(ledger):
  """Best losses, and the share (standard - embedding) / (standard - muP) at the largest width, by seed."""
  table, best = [], {}
  for (width, seed), cell in ledger.groups("model.width", "seed").items():
    for kind in KINDS:
      rows = [row for row in cell if row["name"].startswith(f"{kind},")]
      if len(rows) >= 3:
        loss = vertex_loss(*(np.array([r[key] for r in rows]) for key in ("lr", "loss")))
        best[kind, width, seed] = loss
        table.append({"kind": kind, "width": width, "seed": seed, "best loss": loss})
  widest = max((width for _, width, _ in best), default=None)
  shares = []
  for seed in SEEDS:
    if all((kind, widest, seed) in best for kind in KINDS):
      plain, embedding, mup = (best[kind, widest, seed] for kind in KINDS)
      shares.append((plain - embedding) / (plain - mup))
  found = {SHARE: mean_estimate(np.array(shares))} if shares else {}
  return {**found, "best losses": table}
