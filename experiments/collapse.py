"""Do loss curves of a well-scaled ladder fall on one curve within seed noise, and do they show a bad rung?

Qiu et al. 2025, arXiv:2507.02119: with l(x) = (L(x T) - L0) / (L(T) - L0), x the share of a run's steps, the
curves of compute-optimally scaled models coincide; with a rate that decays, their spread D(x) lies below the
seed noise S(x) of one model's curve. A rung whose hyperparameters are mis-scaled leaves the others.

Scientific: the rung, a size and the training tokens that are best for it by experiments/isoflop_wide.py; one
rung once more with a peak rate 8 times too large, and once with a quarter of its tokens.
Nuisance: seed, four a rung.
Fixed: as in experiments/isoflop_wide.py; the validation loss is read 20 times a run, so that no noise of
batches is in the curves.
Answer (experiments/results/collapse/ledger.jsonl, 3 minutes on 2 cores): not told at this scale. The spread
is 1.1 [0.6, 2.3] times the noise, and neither bad rung lies farthest from the others: losses of 4 to 31
thousand parameters show no floor L0 to subtract (the fit's is 0), and four seeds leave the noise uncertain:
python -m experiments report collapse --ledger experiments/results/collapse/ledger.jsonl
Not run: --scale gpu, of width 64 times the depth.
Done when the tolerance of both ladders, with and without the bad rung, is known well enough to be told apart.
"""

import numpy as np

from experiments import laws
from experiments.isoflop_wide import shape
from experiments.lr_sweep import mean_estimate
from experiments.report.claims import Claim, Estimate
from experiments.sweep import Run

READINGS = 20  # of the validation loss in a run
LATE = 0.5  # share of the run after which spreads are averaged
RUNGS = {  # depth: steps
  "cpu": {2: 300, 3: 620, 4: 1100, 5: 1800},
  "gpu": {4: 2000, 6: 4000, 8: 8000, 10: 12000, 12: 20000},
}
BAD = {"cpu": 4, "gpu": 8}  # the depth of the rung that is mis-scaled
FAULTS = {"rate": 8.0, "tokens": 0.25}  # factors
SEEDS = (0, 1, 2, 3)

GOOD = "spread of the ladder's curves over seed noise, second half of the run"
SPOILT = "the same with one rung at {} its {}"
HIT = "share of mis-scaled rungs that lie farthest from the others"
claims = (
  Claim(
    GOOD,
    1.0,
    "Qiu et al. 2025, arXiv:2507.02119 §3: below the noise, supercollapse",
    interval=(0, 1),
  ),
)


def runs(scale: str = "cpu"):
  for depth, steps in RUNGS[scale].items():
    yield from _rung(scale, depth, steps, "well")
  depth = BAD[scale]
  steps = RUNGS[scale][depth]
  rate = FAULTS["rate"] * shape(scale, depth)["optim.peak_lr"]
  yield from _rung(scale, depth, steps, "rate", {"optim.peak_lr": rate})
  short = round(FAULTS["tokens"] * steps / READINGS) * READINGS
  yield from _rung(scale, depth, short, "tokens")


def _rung(scale, depth, steps, kind, more=None):
  settings = shape(scale, depth) | {
    "train.steps": steps, "eval.every_steps": steps // READINGS, "eval.tokens": 15_000,
    "checkpoint.every_steps": steps, **(more or {}),
  }  # fmt: skip
  for seed in SEEDS:
    yield Run(
      f"{kind},width={settings['model.width']},steps={steps},seed={seed}", settings | {"seed": seed}
    )


def analyse(ledger):
  """Spread over noise of the ladder, and of the ladder with each bad rung in place of the good one."""
  curves = curves_of(ledger)
  good = {depth: each for (kind, depth), each in curves.items() if kind == "well"}
  rows = [r for r in ledger if kind_of(r) == "well"]
  table = laws.from_columns({key: [r[key] for r in rows] for key in ("flops", "loss")})
  final = laws.fit_table(table, "saturating", holdout=False, seed=0, force=True)
  floor = final["E"].value
  found = {GOOD: jackknife(good, floor, tolerance)}
  tables = [{"ladder": "well scaled", "rung (depth)": d, "distance over noise": v}
            for d, v in distances(good, floor).items()]  # fmt: skip
  hits = []
  for kind, factor in FAULTS.items():
    bad = [depth for k, depth in curves if k == kind]
    if not bad:
      continue
    ladder = good | {bad[0]: curves[kind, bad[0]]}
    found[SPOILT.format(f"{factor:g} times", kind)] = jackknife(ladder, floor, tolerance)
    far = distances(ladder, floor)
    hits.append(max(far, key=lambda depth: far[depth]) == bad[0])
    tables += [{"ladder": f"{kind} of depth {bad[0]} times {factor:g}", "rung (depth)": d,
                "distance over noise": v} for d, v in far.items()]  # fmt: skip
  if hits:
    found[HIT] = Estimate(float(np.mean(hits)), None, f"of {len(hits)} faults")
  floors = {
    e: float(tolerance(good, e)) for e in (0.8 * floor, floor, 0.5 * (floor + lowest(good)))
  }
  sensitivity = [{"L0": e, GOOD: v} for e, v in floors.items()]
  return {"final losses": final, **found, "distances": tables, "other values of L0": sensitivity}


def kind_of(row) -> str:
  return row["name"].partition(",")[0]


def curves_of(ledger) -> dict[tuple[str, int], np.ndarray]:
  """{(kind, depth): validation losses [seeds, readings]} at even shares of each run."""
  found = {}
  for (depth,), cell in ledger.groups("model.depth").items():
    for row in cell:
      values = [v for v in row["curve"]["eval/val/loss"] if v is not None][-READINGS:]
      found.setdefault((kind_of(row), depth), []).append(values)
  return {key: np.array(each) for key, each in found.items()}


def lowest(ladder) -> float:
  return min(float(each.min()) for each in ladder.values())


def normalised(ladder, floor) -> dict[int, np.ndarray]:
  """(L(x T) - L0) / (L(T) - L0), [seeds, readings] of each rung."""
  return {depth: (each - floor) / (each[:, -1:] - floor) for depth, each in ladder.items()}


def noise(ladder, floor) -> np.ndarray:
  """[readings]: relative deviation over seeds of L - L0, root mean square over rungs."""
  each = [np.std(c - floor, axis=0, ddof=1) / np.mean(c - floor, axis=0) for c in ladder.values()]
  return np.sqrt(np.mean(np.square(each), axis=0))


def spread(ladder, floor) -> np.ndarray:
  """[readings]: relative deviation of the normalised curves over rungs and seeds."""
  all_SX = np.concatenate(list(normalised(ladder, floor).values()))
  return np.std(all_SX, axis=0, ddof=1) / np.mean(all_SX, axis=0)


def _late(values: np.ndarray) -> np.ndarray:
  return values[..., int(LATE * READINGS) : -1]  # at the end all normalised curves are 1


def tolerance(ladder, floor) -> float:
  """Mean of spread over noise in the late part of the run."""
  return float(np.mean(_late(spread(ladder, floor)) / _late(noise(ladder, floor))))


def distances(ladder, floor) -> dict[int, float]:
  """Of each rung: how far its mean curve lies from that of the others, over the noise."""
  curves = {depth: each.mean(axis=0) for depth, each in normalised(ladder, floor).items()}
  found = {}
  for depth, mine in curves.items():
    rest = [c for other, c in curves.items() if other != depth]
    others = np.median(rest, axis=0)  # which a bad one among them does not move
    noises = noise({d: c for d, c in ladder.items() if d != depth}, floor)
    found[depth] = float(np.mean(np.abs(_late(mine / others - 1)) / _late(noises)))
  return found


def jackknife(ladder, floor, of) -> Estimate:
  """`of`, a ratio, with Student's interval of its log over seeds left out in turn (Tukey 1958)."""
  n = min(len(each) for each in ladder.values())
  whole = np.log(of(ladder, floor))
  without = [
    np.log(of({d: np.delete(c, i, axis=0) for d, c in ladder.items()}, floor)) for i in range(n)
  ]
  pseudo = np.array([n * whole - (n - 1) * value for value in without])
  found = mean_estimate(pseudo)
  ends = tuple(float(np.exp(end)) for end in found.interval or ())
  return Estimate(
    float(np.exp(found.value)),
    (ends[0], ends[1]) if ends else None,
    f"jackknife over {n} seeds; L0 = {floor:.3f}",
  )


def pictures(ledger, results):
  """The curves as they are and normalised, and spread beside noise."""
  from experiments.report import charts

  curves = curves_of(ledger)
  floor = results["final losses"]["E"].value
  lines, share = [], np.arange(1, READINGS + 1) / READINGS
  good = {depth: each for (kind, depth), each in curves.items() if kind == "well"}
  for (kind, depth), each in curves.items():
    name = f"depth {depth}" + ("" if kind == "well" else f", {kind} x {FAULTS[kind]:g}")
    for x, y in zip(share, normalised({depth: each}, floor)[depth].mean(axis=0), strict=True):
      lines.append({"x": x, "y": y, "by": name, "split": "curves"})
  collapse = charts.panels(
    [], lines, ("share of the run", "(L - L0) / (L at the end - L0)"), {"curves": ""}, "rung",
    log_x=False, log_y=True,
  )  # fmt: skip
  ladders = {"well scaled": good}
  for kind, factor in FAULTS.items():
    bad = [depth for k, depth in curves if k == kind]
    ladders |= {f"{kind} x {factor:g}": good | {d: curves[kind, d] for d in bad}} if bad else {}
  rows = [
    {"x": x, "y": y, "by": word, "split": name}
    for name, ladder in ladders.items()
    for word, values in (("spread", spread(ladder, floor)), ("seed noise", noise(ladder, floor)))
    for x, y in zip(share[:-1], values[:-1], strict=True)
  ]
  bars = charts.panels(
    [], rows, ("share of the run", "relative deviation"), {name: name for name in ladders}, "",
    log_x=False, log_y=True,
  )  # fmt: skip
  n = sum(len(each) for each in curves.values())
  return {
    "collapse": (collapse, f"Normalised validation loss, means over seeds of n = {n} runs."),
    "spread": (
      bars,
      "Spread of the normalised curves over rungs and seeds, beside the seed noise.",
    ),
  }
