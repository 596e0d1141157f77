"""Does a law of the whole loss curve, fitted to two schedules, say where an unseen one ends?

Luo et al. 2025, arXiv:2503.12811: the multi-power law fitted to a constant, a cosine and a two-stage schedule
predicts others, WSD among them, with an R2 of 0.998 and a mean error of 0.004 nats (25M to 400M parameters);
Tissue et al. 2024, arXiv:2408.11029, the same with a simpler law.

Scientific: optim.schedule: constant and cosine are fitted, WSD and linear are predicted.
Nuisance: seed, three, each fitted and predicted by itself.
Fixed: experiments/sweep/small.py, 1,600 steps of 512 bytes, peak rate 1.6e-2 for all schedules, as the law
takes rates as they are; final rates a tenth of it, as in the paper.
Answer (experiments/results/unseen_schedule/ledger.jsonl, 4 minutes on 2 cores): yes: the multi-power law
misses the end of WSD by -0.039 [-0.128, 0.049] nats and that of linear decay by 0.010 [-0.025, 0.046], with
an R2 of 0.994 over both curves; the simpler law by -0.048 and 0.012, R2 0.987:
python -m experiments report unseen_schedule --ledger experiments/results/unseen_schedule/ledger.jsonl
Not run: --scale gpu, of width 256.
Done when the interval of the miss at the end of WSD is narrower than what its decay gains.
"""

import numpy as np

from experiments.laws import loss_curves
from experiments.lr_sweep import mean_estimate
from experiments.report.claims import Claim
from experiments.sweep import Run
from experiments.sweep.small import SMALL
from experiments.wsd_cosine import GPU

FITTED = ("constant", "cosine")
HELD = ("wsd", "linear")
SEEDS = (0, 1, 2)
STEPS = {"cpu": 1600, "gpu": 16000}
READINGS = 40  # of the validation loss in a run
WARMUP, DECAY, FINAL = 0.05, 0.2, 0.1  # of the steps; of the rate
LAWS = ("multi_power", "tissue")

MISS = "{}: predicted less trained loss at the end of {} (nats/token)"
R2 = "{}: R2 of the unseen curves"
LUO = "Luo et al. 2025, arXiv:2503.12811"
claims = (
  Claim(MISS.format("multi_power", "wsd"), 0.0, f"{LUO} §4: mean error 0.004", tolerance=0.01),
  Claim(R2.format("multi_power"), 0.998, f"{LUO} §4, 25M to 400M", interval=(0.99, 1.0)),
)


def runs(scale: str = "cpu"):
  steps = STEPS[scale]
  settings = SMALL | (GPU if scale == "gpu" else {}) | {
    "train.steps": steps, "eval.every_steps": steps // READINGS, "eval.tokens": 20_000,
    "checkpoint.every_steps": steps, "optim.warmup_frac": WARMUP, "optim.decay_frac": DECAY,
    "optim.final_lr_frac": FINAL, "optim.peak_lr": 1.6e-2 if scale == "cpu" else 2e-3,
  }  # fmt: skip
  for schedule in (*FITTED, *HELD):
    for seed in SEEDS:
      yield Run(f"{schedule},seed={seed}", settings | {"optim.schedule": schedule, "seed": seed})


def analyse(ledger):
  """Each seed's laws, fitted to its two curves; how far they miss its two unseen ones."""
  fits = fitted(ledger)
  found, table = {}, []
  for law in LAWS:
    mine = {seed: fit for (name, seed), fit in fits.items() if name == law}
    for schedule in HELD:
      ends = [end for seed in mine for end in [_end(ledger, mine[seed], schedule, seed)] if end]
      if ends:
        found[MISS.format(law, schedule)] = mean_estimate(np.array([p - t for p, t in ends]))
    if mine:
      found[R2.format(law)] = mean_estimate(np.array([fit.held("r2") for fit in mine.values()]))
    for seed, fit in mine.items():
      table += [{"law": law, "seed": seed, **row} for row in fit.curves]
  return {**found, "curves": table}


def fitted(ledger) -> dict:
  """{(law, seed): fit} of the seeds whose four curves are there."""
  fits = {}
  for (seed,), cell in ledger.groups("seed").items():
    curves = {row["optim.schedule"]: curve_of(row) for row in cell}
    if set(FITTED + HELD) <= curves.keys():
      for law in LAWS:
        fitted, held = ([curves[name] for name in names] for names in (FITTED, HELD))
        fits[law, seed] = loss_curves.fit_curves(fitted, held, law)
  return fits


def curve_of(row) -> loss_curves.Curve:
  """The validation losses of a run, with the rates that its schedule gave, after warm-up."""
  curve = row["curve"]
  steps, losses = zip(
    *((s, v) for s, v in zip(curve["step"], curve["eval/val/loss"], strict=True) if v is not None),
    strict=True,
  )
  return loss_curves.make_curve(row["optim.schedule"], steps, rates(row, np.array(steps)), losses)


def rates(row, steps) -> np.ndarray:
  """The learning rates of updates number `steps`."""
  from lm.config.hparams import Hparams
  from lm.optim.schedules import lr_multiplier

  total = row["steps"]
  hparams = Hparams(
    total_steps=total, warmup_steps=round(row["optim.warmup_frac"] * total),
    decay_steps=round(row["optim.decay_frac"] * total), final_lr_frac=row["optim.final_lr_frac"],
  )  # fmt: skip
  return row["lr"] * np.asarray(lr_multiplier(row["optim.schedule"], steps - 1, hparams))


def _end(ledger, fit, schedule, seed) -> tuple[float, float] | None:
  """Predicted and trained loss at the end of the run of this schedule and seed."""
  rows = [r for r in ledger if (r["optim.schedule"], r["seed"]) == (schedule, seed)]
  if not rows:
    return None
  curve = curve_of(rows[0])
  return float(loss_curves.LAWS[fit.law].predict(fit.params, curve)[-1]), float(curve.loss[-1])


def pictures(ledger, results):
  """The curves of the first seed, as trained and as the multi-power law has them."""
  from experiments.report import charts

  seed = SEEDS[0]
  fit = fitted(ledger.where(f"seed={seed}"))[LAWS[0], seed]
  dots, lines = [], []
  for row in ledger:
    if row["seed"] != seed:
      continue
    curve, split = curve_of(row), "fitted" if row["optim.schedule"] in FITTED else "unseen"
    said = loss_curves.LAWS[fit.law].predict(fit.params, curve)
    for x, trained, law in zip(curve.step, curve.loss, said, strict=True):
      place = {"x": x, "by": row["optim.schedule"], "split": split}
      dots.append({**place, "y": trained})
      lines.append({**place, "y": law})
  chart = charts.panels(
    dots, lines, ("optimizer steps", "validation loss (nats/token)"),
    {"fitted": "fitted", "unseen": "unseen"}, "schedule", log_x=False, width=262,
  )  # fmt: skip
  return {
    "curves": (chart, f"Seed {seed}: validation losses (dots) and the multi-power law (lines).")
  }
