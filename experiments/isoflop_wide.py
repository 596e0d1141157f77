"""Is the best size a power law over a hundredfold of compute, with one shape of model and with seeds?

The isoFLOP study of experiments/chinchilla.py (Hoffmann et al. 2022, arXiv:2203.15556, approach 2) again,
without what was open to doubt there: its budgets span a factor of 10, its sizes go from 8 to 32 in width
over depth, and it has one run a setting.

Scientific: model size and training tokens, at five compute budgets a factor of 3.2 apart.
Nuisance: optim.peak_lr, a power of depth through the best rates of the sweep --scale lr, 3.6e-2 at depth 2
and 1e10 FLOPs, 2.0e-2 at depth 4 and 1e11 (muP holds it over widths, not over depths); seed, three a setting
at the two smallest budgets, two at the next ones, one at the largest.
Fixed: width 4 times the depth, MLPs 3 times the width, two heads, bytes as tokens, context 64, 512 bytes a
step, linear decay to 0.
Budget: 5 budgets of 1e10 to 1e12 FLOPs (6ND) x 5 sizes x 1 to 3 seeds: 55 runs, 9.8e12 in all.
Answer (experiments/results/isoflop_wide/ledger.jsonl, 29 minutes on 2 busy cores): N* ~ C^0.54 [0.49, 0.59],
with all optima inside their slices and no sign of a bend; over non-embedding parameters, at the same budgets,
C^0.72 [0.64, 0.79]: what lies between Hoffmann et al. and Kaplan et al. is how one counts. The parametric law
does not describe these runs (p < 1e-11) and fails its extrapolation test.
python -m experiments report isoflop_wide --ledger experiments/results/isoflop_wide/ledger.jsonl
Not run: --scale gpu is a plan alone: 1e14 to 1e16 FLOPs, width 64 times the depth.
Done when every slice's best size lies inside the slice, and a straight path of optima is not rejected.
"""

from experiments import chinchilla, laws
from experiments.ledger.compare import seed_noise
from experiments.report.claims import Claim
from experiments.sweep import Run
from experiments.sweep.small import SMALL
from lm.config.errors import ConfigError

BARE_A = "a in N* ~ C^a, from isoFLOP slices over non-embedding parameters"
claims = (
  chinchilla.claims[0],
  Claim(BARE_A, 0.73, "Kaplan et al. 2020, arXiv:2001.08361, §6.1", tolerance=0.02),
)
law = {"cpu": "chinchilla", "gpu": "chinchilla"}

BUDGETS = {"cpu": (1e10, 3.2e10, 1e11, 3.2e11, 1e12), "gpu": (1e14, 3.2e14, 1e15, 3.2e15, 1e16)}
DEPTHS = ((1, 6), (1, 6), (2, 7), (3, 8), (4, 9))  # that each budget is spent on: first, end
SEEDS = (3, 3, 2, 2, 1)  # of each budget
RATIO = {"cpu": 4, "gpu": 64}  # width over depth
RATE = {"cpu": 2.0e-2, "gpu": 4e-3}  # at depth 4, at any
RATE_EXPONENT = -0.85  # in depth, of "cpu"
LEARNING_RATES = (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
SETTINGS = SMALL | {
  "model.parameterization": "mup",
  "model.base_width": 16,
  "model.base_head_dim": 8,
  "optim.schedule": "linear",
  "train.flops_convention": "6ND",
  "eval.every_steps": 1_000_000,  # at the end alone
}
GPU = {
  "model.seq_len": 512, "model.base_width": 128, "model.base_head_dim": 64, "model.dtype": "bfloat16",
  "train.batch_size": 32, "log.every_steps": 100,
}  # fmt: skip


def runs(scale: str = "cpu"):
  """ "lr" is the sweep of the nuisance, at two sizes near the optimum of two budgets."""
  if scale == "lr":
    for depth, flops in ((2, BUDGETS["cpu"][0]), (4, BUDGETS["cpu"][2])):
      for rate in LEARNING_RATES:
        yield _run("cpu", depth, flops, 0, {"optim.peak_lr": rate})
    return
  for flops, (first, end), seeds in zip(BUDGETS[scale], DEPTHS, SEEDS, strict=True):
    for depth in range(first, end):
      for seed in range(seeds):
        yield _run(scale, depth, flops, seed)


def shape(scale: str, depth: int) -> dict:
  """The settings of all models of this depth: one shape, and the rate of its depth."""
  width = RATIO[scale] * depth
  found = SETTINGS | (GPU if scale == "gpu" else {}) | {
    "model.width": width, "model.depth": depth, "model.mlp_dim": 3 * width,
    "model.heads": 2 if scale == "cpu" else depth, "optim.peak_lr": RATE[scale],
  }  # fmt: skip
  if scale == "cpu":
    found["optim.peak_lr"] = round(RATE["cpu"] * (depth / 4) ** RATE_EXPONENT, 4)
  return found


def _run(scale, depth, flops, seed, more=None):
  settings = shape(scale, depth) | {"train.flops": flops, "seed": seed} | (more or {})
  rate = f",lr={settings['optim.peak_lr']:g}" if more else ""
  name = f"flops={flops:.1e},width={settings['model.width']},seed={seed}{rate}"
  return Run(name.replace("+", ""), settings)


def analyse(ledger):
  """The slices, by two ways to count parameters; the parametric law, or why there is none; noise of seeds."""
  table = laws.from_columns(ledger.columns(*chinchilla.COLUMNS), {"name": ledger.column("name")})
  slices = laws.isoflop_fit(table, seed=0)
  swapped = {"n_params": "n_params_non_embedding", "flops": "flops"}
  bare = laws.refit_under(table, {BARE_A: swapped}, laws.isoflop_fit, seed=0)[BARE_A]
  noise = seed_noise(list(ledger))
  found = {
    "isoFLOP": slices,
    chinchilla.SLICES_A: slices["a"],
    BARE_A: bare["a"],
    "seed noise of a loss": noise.summary() if noise else "no seeds",
  }
  try:
    return found | {"parametric": laws.fit_table(table, "chinchilla", delta=1e-3, seed=0)}
  except ConfigError as error:  # small models need not show an irreducible loss
    return found | {"parametric": str(error)}
