"""Is a larger learning rate of the embedding alone most of what muP gains?

arXiv:2605.21486 (2026): most of muP's gain over the standard parameterization comes from the embedding's
rate, which muP keeps while that of hidden weights falls with width. Here: standard, standard with the
embedding's rate multiplied by width / 32, and muP, each at every rate; at width 32 they are one model.

Scientific: the three parameterizations, at the largest width.
Nuisance: optim.peak_lr, six rates a factor of 2 apart; seed, four.
Fixed: experiments/sweep/small.py, untied embeddings, 400 steps of 512 bytes.
Budget: (1 + 3) x 6 x 4 = 96 runs.
Answer (experiments/results/embedding_rate/ledger.jsonl, 36 minutes of one busy core): yes, and more than all
of it. At width 128 the embedding's rate alone gains .022 [.001, .042] nats; muP, each at its best rate, loses
.036 [.017, .057], so that nothing of it beyond the embedding's rate helps here:
python -m experiments report embedding_rate --ledger experiments/results/embedding_rate/ledger.jsonl
Not run: --scale gpu; tied embeddings with these seeds, where the table is the output's too: with two seeds
muP gained .09 there and the embedding's rate .02 [-.05, .08].
Done when the intervals of both gains leave out 0.
"""

import math

import numpy as np

from experiments.report.claims import Claim, Estimate
from experiments.sweep import Run
from experiments.sweep.small import SMALL
from experiments.wsd_cosine import GPU, vertex_loss

WIDTHS = {"cpu": (32, 128), "gpu": (128, 512)}  # at the first all parameterizations agree
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
SEEDS = (0, 1, 2, 3)
KINDS = ("standard", "embedding", "mup")
SAMPLES = 2000  # of the bootstrap
GAIN = "loss that muP gains on the standard parameterization, each at its best rate (nats/token)"
ALONE = "loss that the embedding's rate alone gains (nats/token)"
MOST = "what it gains less what the rest of muP adds (nats/token)"
PAPER = "arXiv:2605.21486"
claims = (
  Claim(ALONE, 0.0, PAPER, interval=(0.0, math.inf)),
  Claim(MOST, 0.0, f"{PAPER}: most of muP's gain", interval=(0.0, math.inf)),
)


def runs(scale: str = "cpu"):
  base = SMALL | {"train.steps": 400, "eval.every_steps": 1_000_000, "model.tied_embeddings": False}
  factor = 1.0
  if scale == "gpu":
    base, factor = base | GPU, 0.1
  base_width, widest = WIDTHS[scale]
  for width, kinds in ((base_width, KINDS[:1]), (widest, KINDS)):
    for kind in kinds:
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
  """Best losses of a parameterization and width, and what muP and the embedding's rate gain.

  A best loss is the vertex of the parabola through the mean losses (over seeds) of the three rates about the
  lowest mean. Intervals are percentiles of a bootstrap that moves each mean by drawn residuals.
  """
  cells = {}
  for (width, rate), rows in ledger.groups("model.width", "lr").items():
    for row in rows:
      of_kind = cells.setdefault((row["name"].partition(",")[0], width), {})
      of_kind.setdefault(rate, {})[row["seed"]] = row["loss"]
  best = {key: _best(cell) for key, cell in cells.items() if len(cell) >= 3}
  table = [{"kind": kind, "width": width, "best loss": best[kind, width]} for kind, width in best]
  widest = max((width for _, width in best), default=None)
  if any((kind, widest) not in best for kind in KINDS):
    return {"best losses": table}
  of_kind = [cells[kind, widest] for kind in KINDS]
  value = _gains(np.array([best[kind, widest] for kind in KINDS]))
  residuals, drawn = _residuals(of_kind), None
  if residuals is not None:
    rng = np.random.default_rng(0)
    best_KS = np.array([_moved(cell, residuals, rng) for cell in of_kind])
    drawn = _gains(best_KS)
  found = {}
  for name, number in value.items():
    limits = None if drawn is None else tuple(np.percentile(drawn[name], [2.5, 97.5]).tolist())
    found[name] = Estimate(
      float(number), limits, "bootstrap over seeds" if limits else "no interval"
    )
  return {**found, "best losses": table}


def _gains(best_K: np.ndarray) -> dict[str, np.ndarray]:
  """What is claimed, from the best losses of KINDS."""
  plain, embedding, mup = best_K
  alone, rest = plain - embedding, embedding - mup
  return {GAIN: plain - mup, ALONE: alone, MOST: alone - rest}


def _residuals(of_kind) -> np.ndarray | None:
  """What seed and rate do not explain of the losses near the best rates; None where seeds are missing.

  A seed's order of data moves the losses of all parameterizations alike, which their differences do not
  see: residuals of rows (parameterization, rate) and columns (seed), widened to their degrees of freedom.
  """
  near = [cell[rate] for cell in of_kind for rate in _near(cell)]
  seeds = sorted(near[0])
  if len(seeds) < 2 or any(sorted(losses) != seeds for losses in near):
    return None
  loss_RS = np.array([[losses[seed] for seed in seeds] for losses in near])
  rest_RS = loss_RS - loss_RS.mean(axis=1, keepdims=True) - loss_RS.mean(axis=0) + loss_RS.mean()
  rows, columns = loss_RS.shape
  return (rest_RS * np.sqrt(rows * columns / ((rows - 1) * (columns - 1)))).ravel()


def _near(cell: dict[float, dict[int, float]]) -> list[float]:
  """The rates about the lowest mean loss, that one included."""
  rates = sorted(cell)
  i = int(np.argmin([np.mean(list(cell[rate].values())) for rate in rates]))
  return rates[max(i - 1, 0) : i + 2]


def _best(cell: dict[float, dict[int, float]], moved_R: np.ndarray | float = 0.0) -> float:
  """The loss at the vertex through the mean losses of rates in their order, each moved by so much."""
  rates = sorted(cell)
  means = np.array([np.mean(list(cell[rate].values())) for rate in rates])
  return vertex_loss(np.array(rates), means + moved_R)


def _moved(
  cell: dict[float, dict[int, float]], residuals: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
  """Best losses [SAMPLES], each with the means moved by as many drawn residuals as there are seeds."""
  moved_SRN = rng.choice(residuals, (SAMPLES, len(cell), len(next(iter(cell.values())))))
  return np.array([_best(cell, moved_R) for moved_R in moved_SRN.mean(axis=2)])
