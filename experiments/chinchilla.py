"""How should parameters and training tokens grow with compute, on the embedded corpus?

The two questions of Hoffmann et al. 2022 (arXiv:2203.15556), asked of models small enough for a laptop:
isoFLOP slices (approach 2) and a parametric law (approach 3), from the same runs.

Scientific: model size (width and depth) and training tokens, at five compute budgets.
Nuisance: optim.peak_lr, carried across widths by muP from the sweep `runs(scale="lr")`.
Fixed: bytes as tokens, context 128, 8 sequences a step, linear decay to zero that ends with the run.
Budget: 5 budgets of 4e11 to 4e12 FLOPs (6ND) x 5 to 7 sizes, 5e13 in all: well under an hour on 2 CPU cores.
With --scale gpu and --set data.sources=text:GLOB: 2e14 to 4e15 FLOPs on about 100 MB of text.
Done when every slice's best size lies inside the slice.
"""

from experiments import laws
from experiments.report.claims import Claim
from experiments.sweep import Run

law = {"cpu": "chinchilla", "gpu": "chinchilla"}  # that each scale's runs must carry

SLICES_A = "a in N* ~ C^a, from isoFLOP slices"
LAW_A = "a in N* ~ C^a, from the parametric law"
BARE_A = "a in N* ~ C^a, from the parametric law of non-embedding parameters"

claims = (
  Claim(
    SLICES_A,
    0.49,
    "Hoffmann et al. 2022, arXiv:2203.15556, table 2, approach 2",
    interval=(0.462, 0.534),
  ),
  Claim(
    LAW_A,
    0.513,
    "Besiroglu et al. 2024, arXiv:2404.10102: beta / (alpha + beta), Hoffmann's points refitted",
    tolerance=0.03,
  ),
  Claim(BARE_A, 0.73, "Kaplan et al. 2020, arXiv:2001.08361, §6.1", tolerance=0.02),
)

COLUMNS = (
  "n_params", "n_params_non_embedding", "n_tokens", "flops", "flops_exact", "loss",
)  # fmt: skip
CONVENTIONS = {  # how a paper counts: our column -> the one that stands for it
  "non-embedding parameters": {"n_params": "n_params_non_embedding"},
  "exact FLOPs": {"flops": "flops_exact"},
}

# width, depth, heads: about a factor of 1.6 in parameters from row to row
SIZES = {
  "cpu": (
    (16, 2, 1), (24, 2, 1), (32, 2, 2), (40, 2, 2), (56, 2, 2), (72, 2, 3), (72, 3, 3), (96, 3, 4),
    (128, 3, 4), (144, 4, 6),
  ),
  "gpu": (
    (128, 4, 2), (160, 4, 5), (192, 5, 3), (256, 5, 4), (320, 6, 5), (384, 7, 6), (448, 8, 7),
    (576, 8, 9), (704, 9, 11), (832, 10, 13),
  ),
}  # fmt: skip
BUDGETS = {  # FLOPs, 6ND with all parameters
  "cpu": (4e11, 7e11, 1.2e12, 2.2e12, 4e12),
  "gpu": (2e14, 4e14, 8.5e14, 1.8e15, 4e15),
}
SLICES = ((0, 7), (1, 8), (1, 8), (2, 8), (3, 8))  # the sizes each budget is spent on: first, end

SETTINGS = {
  "data.tokenizer": "byte",
  "model.seq_len": 128,
  "model.parameterization": "mup",
  "model.base_width": 64,
  "optim.b2": 0.99,
  "optim.schedule": "linear",
  "optim.final_lr_frac": 0.0,
  "optim.warmup_frac": 0.1,
  "optim.peak_lr": 8e-3,
  "train.batch_size": 8,
  "train.tokens": None,
  "train.flops_convention": "6ND",
  "eval.tokens": 200_000,
  "eval.batch_size": 64,
  "sample.tokens": 0,
  "log.every_steps": 50,
  "log.wandb": "disabled",
  "checkpoint.keep": 1,
  "checkpoint.best": False,
}
LEARNING_RATES = (4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)


GPU_SETTINGS = {
  "model.seq_len": 512,
  "model.base_width": 128,
  "model.dtype": "bfloat16",
  "train.batch_size": 32,
}


def runs(scale: str = "cpu"):
  """The grid: "cpu" and "gpu" differ in sizes and budgets; "lr" is the sweep of the nuisance."""
  if scale == "lr":
    for size in (2, 6):
      for rate in LEARNING_RATES:
        yield _run("cpu", SIZES["cpu"][size], BUDGETS["cpu"][1], {"optim.peak_lr": rate})
    return
  for flops, (first, end) in zip(BUDGETS[scale], SLICES, strict=True):
    for size in SIZES[scale][first:end]:
      yield _run(scale, size, flops)


def _run(scale, size, flops, more=None):
  width, depth, heads = size
  shape = {"model.width": width, "model.depth": depth, "model.heads": heads, "train.flops": flops}
  settings = SETTINGS | (GPU_SETTINGS if scale == "gpu" else {}) | shape | (more or {})
  rate = f",lr={settings['optim.peak_lr']:g}" if more else ""
  return Run(f"flops={flops:.1e},width={width},depth={depth}{rate}".replace("+", ""), settings)


def analyse(ledger):
  """The law by both approaches, and under each way to count parameters and FLOPs."""
  table = laws.from_columns(ledger.columns(*COLUMNS), {"name": ledger.column("name")})
  slices = laws.isoflop_fit(table, seed=0)
  parametric = laws.fit_table(table, "chinchilla", delta=1e-3, seed=0)
  counted = laws.refit_under(table, CONVENTIONS, holdout=False, seed=0)
  return {
    "isoFLOP": slices,
    "parametric": parametric,
    "counted otherwise": counted,
    SLICES_A: slices["a"],
    LAW_A: parametric["a"],
    BARE_A: counted["non-embedding parameters"]["a"],
  }
