"""Does the critical batch size grow with the training tokens, and not with the size of the model?

Zhang et al. 2024, arXiv:2410.21676: B_crit ~ D^0.47 at a fixed model (22.91 D^0.47, D in billions of tokens)
and N^0.087 at fixed tokens; Bergsma et al. 2025, arXiv:2505.13738: D^0.46, whatever N. Merrill et al. 2025,
arXiv:2505.23971, see it grow fast early in a run and then level off, at 1B as at 7B.

Scientific: train.batch_size, 2 to 32 rows of 64 bytes, at training tokens 66 thousand to 524 thousand and
three widths.
Nuisance: optim.peak_lr, three rates a factor of 2 apart, four at large batches; seed, two (one in long runs).
Fixed: experiments/sweep/small.py, muP, linear decay to 0 that ends with the run.
Analysis: the loss at the best rate of each cell and seed is fitted with the law "critical_batch" of
experiments/laws/forms.py: a batch b needs D = D1 (1 + b / Bc) tokens for what a small one has after D1
(McCandlish et al. 2018), and Bc = k D1^p N^q. Zhang et al. call 0.2 Bc critical: the exponents are the same.
Answer (experiments/results/critical_batch/ledger.jsonl, 155 runs; 200 bootstraps of its 45 cells and seeds):
Bc is about 1,200 tokens; its exponent in tokens is 0.03 [-2.5, 0.35], which leaves out 0.47 but says nothing
of a fall, and that in parameters -0.15 [-0.37, 0.54], which holds 0.09. Neither can be told from 0. 6 of 45
best rates lie at the grid's edge, and seeds differ by up to 0.2 nats.
Not run: --scale gpu (widths 128 to 512, up to 400M tokens).
Done when the intervals of p and of q leave out the other's published number.
"""

import numpy as np

from experiments import laws
from experiments.laws import intervals
from experiments.lr_sweep import best_rate
from experiments.report.claims import Claim, Estimate
from experiments.sweep import Run
from experiments.sweep.small import SMALL
from experiments.wsd_cosine import vertex_loss

GRID = {  # width: training tokens
  "cpu": {
    16: (2**16, 2**18),
    32: (2**16, 2**18, 2**19),
    48: (2**16, 2**18),
  },
  "gpu": {
    128: (25_000_000, 100_000_000),
    256: (25_000_000, 50_000_000, 100_000_000, 200_000_000, 400_000_000),
    512: (25_000_000, 100_000_000),
  },
}
BATCHES = {"cpu": (2, 4, 8, 16, 32), "gpu": (16, 32, 64, 128, 256, 512)}  # rows a step
LONG = {
  "cpu": (2**17, 2**18),
  "gpu": (5e7, 2e8),
}  # tokens; longer runs go without the smallest batches
RATES = {"cpu": (7e-3, 1.4e-2, 2.8e-2), "gpu": (2e-3, 4e-3, 8e-3, 1.6e-2)}  # at the base width
SEEDS = (0, 1)  # the first alone in long runs
SETTINGS = SMALL | {
  "model.parameterization": "mup",
  "model.base_width": 32,
  "optim.schedule": "linear",
  "eval.every_steps": 1_000_000,  # at the end alone
}
GPU = {
  "model.seq_len": 256, "model.depth": 4, "model.base_width": 256, "data.tokenizer": "bpe",
  "model.dtype": "bfloat16", "log.every_steps": 100, "eval.tokens": 500_000,
}  # fmt: skip

FLOOR = 1e-9  # E: these runs are so far above it that its best value is 0, so it is left out
TOKENS = "exponent of the critical batch in training tokens"
PARAMS = "exponent of the critical batch in parameters"
ZHANG = "Zhang et al. 2024, arXiv:2410.21676"
claims = (
  Claim(TOKENS, 0.47, f"{ZHANG}: B* = 22.91 D^0.47 at one size", tolerance=0.1),
  Claim(PARAMS, 0.087, f"{ZHANG}: B* = 621 N^0.087 at fixed tokens", tolerance=0.1),
)


def rates(scale: str, batch: int) -> tuple[float, ...]:
  """One more for the larger half of the batches, whose best rates are higher."""
  more = batch >= BATCHES[scale][-2]
  return (*RATES[scale], 2 * RATES[scale][-1]) if more else RATES[scale]


def runs(scale: str = "cpu"):
  cells = [(tokens, width) for width, each in GRID[scale].items() for tokens in each]
  for tokens, width in sorted(cells):
    longer = sum(tokens > limit for limit in LONG[scale])
    for batch in BATCHES[scale][longer:]:
      for rate in rates(scale, batch):
        for seed in SEEDS[: 1 if longer else None]:
          changes = {
            "model.width": width, "model.heads": width // 16, "train.tokens": tokens,
            "train.batch_size": batch, "optim.peak_lr": rate, "seed": seed,
          }  # fmt: skip
          if scale == "gpu":
            changes = {**changes, **GPU, "model.heads": width // 64}
          yield Run(
            f"width={width},tokens={tokens},batch={batch},lr={rate:g},seed={seed}",
            SETTINGS | changes,
          )


def analyse(ledger):
  """The law of all cells, and the critical batch of each cell by itself."""
  cells = tuned(ledger)
  keys = ("n_params", "n_tokens", "batch", "loss")
  table = laws.from_columns({key: [cell[key] for cell in cells] for key in keys})
  fit = laws.fit_table(
    table,
    "critical_batch",
    holdout=False,
    seed=0,
    methods=("case",),
    n_boot=200,
    fixed={"E": FLOOR},
    force=True,
  )
  law = {name: fit[name].value for name in fit.law.names}
  outside = sum(not cell["inside the grid"] for cell in cells)
  note = (
    f"{len(cells)} cells and seeds, bootstrap over them; {outside} best rates at the grid's edge"
  )
  return {
    TOKENS: Estimate(fit["p"].value, fit["p"].interval, note),
    PARAMS: Estimate(fit["q"].value, fit["q"].interval, note),
    "law": [{"parameter": name, "value": value} for name, value in law.items()],
    "critical batch of each cell": by_cell(law, cells),
  }


def tuned(ledger) -> list[dict]:
  """One row for each (N, D, batch, seed): the loss at its best rate; `batch` is in tokens."""
  rows = []
  keys = ("n_params", "n_tokens", "train.batch_size", "seed")
  for (n_params, n_tokens, batch, seed), cell in ledger.groups(*keys).items():
    rate_S, loss_S = np.array(cell.column("lr")), np.array(cell.column("loss"))
    rate, inside = best_rate(rate_S, loss_S)
    rows.append({
      "n_params": n_params, "n_tokens": n_tokens, "batch": batch * cell.column("model.seq_len")[0],
      "seed": seed, "best lr": rate, "inside the grid": inside, "loss": vertex_loss(rate_S, loss_S),
    })  # fmt: skip
  return rows


def by_cell(law, cells) -> list[dict]:
  """For each (N, D): the Bc that suits its losses best, the law's other parameters held, and the law's."""
  e, a, b, alpha, beta = (law[name] for name in ("E", "A", "B", "alpha", "beta"))
  tried = np.geomspace(1, 1e6, 1201)[:, None]
  found = []
  for n, d in sorted({(c["n_params"], c["n_tokens"]) for c in cells}):
    mine = [c for c in cells if (c["n_params"], c["n_tokens"]) == (n, d)]
    batch_B, loss_B = (np.array([c[key] for c in mine]) for key in ("batch", "loss"))
    d1 = d / (1 + batch_B / tried)
    miss = np.log(e + a / n**alpha + b / d1**beta) - np.log(loss_B)
    best = float(tried[(miss**2).sum(1).argmin(), 0])
    d1 = d / (1 + np.median(batch_B) / best)
    said = law["k"] * d1 ** law["p"] * n ** law["q"]
    found.append({"n_params": n, "n_tokens": d, "d1": d1, "critical batch": best, "law": said})
  return found


def pictures(ledger, results):
  """Loss against batch with the law's curves, and the critical batch of each cell against D1."""
  from experiments.report import charts

  law, cells = {row["parameter"]: row["value"] for row in results["law"]}, tuned(ledger)
  at = [{**c, "x": c["batch"], "y": c["loss"], "by": c["n_tokens"], "split": c["n_params"]}
        for c in cells]  # fmt: skip
  form, lines = laws.LAWS["critical_batch"], []
  theta = form.working(np.array([law[name] for name in form.names]))
  for n, d in sorted({(c["n_params"], c["n_tokens"]) for c in cells}):
    batch = np.geomspace(100, 2600, 40)
    x = {"n_params": np.full(40, n), "n_tokens": np.full(40, d), "batch": batch}
    loss = np.exp(intervals.predict(form, theta, x))
    lines += [{"x": x, "y": y, "by": d, "split": n} for x, y in zip(batch, loss, strict=True)]
  titles = {n: f"{n / 1e3:.0f} thousand parameters" for n in sorted({c["n_params"] for c in cells})}
  first = charts.panels(
    at, lines, ("batch (tokens)", "loss at the best rate (nats/token)"), titles, "training tokens"
  )
  each = results["critical batch of each cell"]
  dots = [{"x": c["d1"], "y": c["critical batch"], "by": c["n_params"], "split": ""} for c in each]
  path = []
  for n in titles:
    mine = np.geomspace(*np.quantile([c["d1"] for c in each], (0, 1)), 30)
    bc = law["k"] * mine ** law["p"] * n ** law["q"]
    path += [{"x": x, "y": y, "by": n, "split": ""} for x, y in zip(mine, bc, strict=True)]
  second = charts.panels(
    dots, path, ("tokens D1 a small batch would need", "critical batch (tokens)"), {"": ""},
    "parameters", log_y=True,
  )  # fmt: skip
  return {
    "loss-by-batch": (
      first,
      f"Loss at the best rate of n = {len(cells)} cells and seeds (dots) and the law fitted to all (lines).",
    ),
    "critical-batch": (
      second,
      "The critical batch of each cell by itself, the law's other parameters held (dots), and the law.",
    ),
  }
