"""What a race shows: differences paired by seed, multipliers of compute, a verdict and what would decide.

The verdict is about the largest budget that was trained: *better* where the multiplier is above 1 and
*worse* where it is below, with p < 0.05 in every treatment of E (Holm's correction over challengers); else
*not shown*, with how many more seeds, at which budget, would show a difference as large as it seems with
80 % power.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.laws import multiplier as multipliers
from experiments.laws.multiplier import Curves, Multiplier, Noise
from experiments.laws.noise import holm
from experiments.ledger.ledger import Ledger
from experiments.race import recipes
from lm.config.errors import ConfigError, check_choice, number_of

POWER = 0.8
MOST_SEEDS = 64  # more are not proposed
FLOPS = ("flops", "flops_6ND", "flops_6ND_nonembedding", "flops_exact")
NANOGPT_RULE = 0.004  # nats: modded-nanogpt's optimization track


@dataclasses.dataclass(frozen=True)
class Number:
  """A value with its 95 % interval, as claims are set against (experiments.report.claims)."""

  value: float
  interval: tuple[float, float] | None
  note: str


@dataclasses.dataclass(frozen=True)
class Pair:
  """A challenger B against the baseline A; tables are lists of flat rows."""

  a: str
  b: str
  word: str  # better | worse | not shown
  why: str
  p: float | None  # the largest of the treatments', before Holm's correction
  differences: tuple[dict, ...]
  multipliers: tuple[dict, ...]
  slopes: tuple[dict, ...]
  noise: Noise | None
  at: Mapping[str, Multiplier]  # at the largest budget trained, by treatment
  notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Race:
  """All challengers against the first recipe, and each recipe against a target where there is one."""

  pairs: tuple[Pair, ...]
  reached: tuple[dict, ...]

  def results(self) -> dict[str, object]:
    """{what: text | number | table}, as an experiment's `analyse` returns it."""
    found: dict[str, object] = {"verdict": self.summary()}
    for pair in self.pairs:
      versus = f"{pair.b} against {pair.a}"
      for treatment, m in pair.at.items():
        note = f"at the largest budget trained, E {treatment}, in FLOPs; F test inverted"
        found[f"compute multiplier of {versus}, E {treatment}"] = Number(m.value, m.interval, note)
      found[f"{versus}: loss difference at each budget"] = list(pair.differences)
      if pair.multipliers:
        found[f"{versus}: compute multiplier m(C)"] = list(pair.multipliers)
        found[f"{versus}: m ~ C^s"] = list(pair.slopes)
    if self.reached:
      found["loss against the target"] = list(self.reached)
    return found

  def summary(self) -> str:
    """A line or two for each challenger."""
    return "\n".join(
      "\n  ".join((f"{p.b} against {p.a}: {p.word}. {p.why}", *p.notes)) for p in self.pairs
    )

  def to_json(self) -> dict[str, object]:
    return {
      "verdicts": {
        p.b: {"baseline": p.a, "verdict": p.word, "why": p.why, "p": p.p} for p in self.pairs
      },
      **{
        k: dataclasses.asdict(v) if isinstance(v, Number) else v for k, v in self.results().items()
      },
    }


def judge(
  ledger: Ledger,
  *,
  baseline: str | None = None,
  at: Sequence[float] = (),
  pin: float | None = None,
  flops: str = "flops",
  target: float | None = None,
  noise: float | None = None,
) -> Race:
  """What the finished runs of a race show.

  Args:
    ledger: rows whose names say recipe, budget and seed; others are left out.
    baseline: the recipe that others are set against; the first one if None.
    at: budgets (FLOPs) beside those trained where m is predicted.
    pin: E of both recipes, nats/token; None leaves that treatment out.
    flops: the column that counts compute, one of FLOPS.
    target: loss that runs should reach.
    noise: standard deviation between seeds, where the runs have no replicates of their own.

  Raises:
    ConfigError: no two recipes with finished runs, an unknown baseline or column, losses on different
      tokens, or a pinned E that a run is below.
  """
  check_choice("flops", flops, FLOPS)
  for sentence in ledger.done().mismatches(("eval_fingerprint", "tokenizer_fingerprint")):
    raise ConfigError(f"race=...: {sentence}; race recipes that are evaluated alike")
  cells = read_cells(ledger, flops)
  names = list(cells)
  if len(names) < 2:
    raise ConfigError(
      f"race={','.join(names) or '(none)'}: needs finished runs of two recipes; train them first"
    )
  first = pick_baseline(names, baseline)
  least = min(loss for rungs in cells.values() for c in rungs.values() for loss in c.loss.values())
  if pin is not None and pin >= least:
    raise ConfigError(f"pin={pin:g}: must be below every loss, and {least:.4f} is one; lower it")
  pairs = [_pair(first, other, cells, tuple(at), pin, noise) for other in names if other != first]
  reached = tuple(
    reach(target, name, budget, list(cell.loss.values()))
    for name, rungs in cells.items()
    for budget, cell in ((c.log_c, c) for c in rungs.values())
    if target is not None
  )
  return Race(_holm(pairs), reached)


def pick_baseline(names: Sequence[str], baseline: str | None) -> str:
  """The recipe that others are set against, the first one if None; ConfigError if none is so named."""
  if baseline is None:
    return names[0]
  check_choice("baseline", baseline, names)
  return baseline


@dataclasses.dataclass
class Cell:
  """The runs of one recipe at one budget."""

  loss: dict[int, float]  # by seed
  log_c: float  # of FLOPs, mean over seeds
  log_s: list[float]  # of device-seconds, where known


def read_cells(ledger: Ledger, flops: str) -> dict[str, dict[int, Cell]]:
  """{recipe: {budget: Cell}} of the finished runs with a finite loss; budgets rise."""
  found: dict[str, dict[int, dict[int, Mapping]]] = {}
  for row in ledger.done():
    where, loss = recipes.place(row["name"]), row.get("loss")
    if where and isinstance(loss, int | float) and math.isfinite(loss):
      if not (isinstance(row.get(flops), int | float) and 0 < row[flops] < math.inf):
        raise ConfigError(
          f"flops={flops}: run {row['name']} has no number > 0 there; use one of {', '.join(FLOPS)}"
        )
      found.setdefault(where[0], {}).setdefault(where[1], {})[where[2]] = row
  cells = {}
  for name, rungs in found.items():
    cells[name] = {
      rung: Cell(
        {seed: float(row["loss"]) for seed, row in sorted(rungs[rung].items())},
        float(np.mean([math.log(row[flops]) for row in rungs[rung].values()])),
        [s for row in rungs[rung].values() if (s := log_device_seconds(row)) is not None],
      )
      for rung in sorted(rungs)
    }
  return cells


def log_device_seconds(row: Mapping) -> float | None:
  """Log of tokens / (tokens per second) x devices: compilation, evaluation and pauses left out."""
  rate = row.get("tokens_per_sec")
  if not rate or not row.get("n_tokens"):
    return None
  return math.log(row["n_tokens"] / rate * (row.get("n_devices") or 1))


# ---- A pair --------------------------------------------------------------------------------------


def _pair(a: str, b: str, cells, at, pin, given) -> Pair:
  rungs = sorted(set(cells[a]) & set(cells[b]), key=lambda rung: cells[a][rung].log_c)
  if not rungs:
    raise ConfigError(f"race={b}: shares no budget with {a}; train both on one ladder")
  mine, theirs = ([cells[name][r] for r in rungs] for name in (a, b))
  losses = [c.loss for c in mine], [c.loss for c in theirs]
  noise = multipliers.pair_noise(*losses)
  notes = []
  if noise is None and given is not None:
    noise = Noise((given, given), 0.0, math.inf)
    notes.append(f"no budget has two seeds: noise is the given {given:.3g}, and no pair is matched")
  log_c = np.array([[c.log_c, d.log_c] for c, d in zip(mine, theirs, strict=True)])
  differences = _differences(a, b, losses, np.exp(log_c.mean(1)), noise)
  if noise is None:
    why = "No budget has two seeds, so nothing is known of the noise: train more seeds, or give it."
    return Pair(a, b, "not shown", why, None, differences, (), (), None, {}, tuple(notes))
  ladder = multipliers.make_ladder(log_c, *losses, noise)
  treatments = [
    t for t in multipliers.TREATMENTS
    if len(rungs) >= multipliers.LEAST_RUNGS[t] and (t != "pinned" or pin is not None)
  ]  # fmt: skip
  curves = {t: Curves([ladder], t, pin if t == "pinned" else None) for t in treatments}
  rows, slopes, largest = [], [], float(log_c[-1].mean())
  budgets = [*log_c.mean(1), *np.log(at)]
  timed = _in_seconds(ladder, mine, theirs, notes)
  top = {}
  for treatment in treatments:
    pinned = pin if treatment == "pinned" else None
    several = Curves([ladder] * len(budgets), treatment, pinned).multiplier(np.array(budgets))
    for i, (budget, m) in enumerate(zip(budgets, several, strict=True)):
      rows.append(_row(treatment, "FLOPs", math.exp(budget), i >= len(rungs), m))
    top[treatment] = several[len(rungs) - 1]
    if timed:
      log_s, error = timed[0].log_c_JR[:, 1], timed[1]
      for at_s, m in zip(
        log_s, Curves([timed[0]] * len(log_s), treatment, pinned).multiplier(log_s), strict=True
      ):
        rows.append(_row(treatment, "device-seconds", math.exp(at_s), False, widened(m, error)))
    curve = curves[treatment]
    s = curve.slope()[0]
    slopes.append({"E": treatment, "s": s.value, "low": s.interval[0], "high": s.interval[1]})
    if curve.misfit[0] < 0.05:
      notes.append(
        f"with E {treatment} the curves miss the means by more than the seeds' noise "
        f"(p = {curve.misfit[0]:.2g}); intervals are widened by {math.sqrt(curve.wider[0]):.2g}"
      )
  word, why, p = _verdict(a, b, top, curves, differences, noise, largest, mine, theirs)
  if not curves:
    few = "1 budget carries" if len(rungs) == 1 else f"{len(rungs)} budgets carry"
    notes.append(f"{few} no curves; 3 would give a multiplier of compute")
  return Pair(a, b, word, why, p, differences, tuple(rows), tuple(slopes), noise, top, tuple(notes))


def _row(treatment, unit, budget, predicted, m: Multiplier) -> dict:
  return {
    "E": treatment, "in": unit, "budget": float(budget), "trained": "no" if predicted else "yes",
    "m": m.value, "low": m.interval[0], "high": m.interval[1],
  }  # fmt: skip


def _differences(a, b, losses, budgets, noise) -> tuple[dict, ...]:
  """B - A at each budget, from seeds that both have, with Student's interval and pooled noise."""
  from scipy.stats import t

  rows = []
  for budget, x, y in zip(budgets, *losses, strict=True):
    both = sorted(set(x) & set(y))
    unpaired = not both
    d = np.array([y[s] - x[s] for s in both])
    apart = np.mean(list(y.values())) - np.mean(list(x.values()))
    mean = float(d.mean() if both else apart)
    row = {"budget": float(budget), a: float(np.mean(list(x.values()))),
           b: float(np.mean(list(y.values()))), "pairs": len(both), "difference": mean}  # fmt: skip
    if noise is not None:
      sd = noise.sd_diff / math.sqrt(len(both)) if both else math.hypot(
        noise.sd[0] / math.sqrt(len(x)), noise.sd[1] / math.sqrt(len(y))
      )  # fmt: skip
      df = min(noise.df, 1e9)
      half = float(t.isf(0.025, df)) * sd
      row |= {"low": mean - half, "high": mean + half,
              "p": float(2 * t.sf(abs(mean) / sd, df)) if sd > 0 else float(mean == 0)}  # fmt: skip
    rows.append(row | ({"note": "no seed in common"} if unpaired else {}))
  return tuple(rows)


def _in_seconds(ladder, mine, theirs, notes) -> tuple[multipliers.Ladder, float] | None:
  """(the ladder against device-seconds, half-width in log m from the spread of speeds), or None."""
  cells = [*mine, *theirs]
  if not all(c.log_s for c in cells):
    return None
  log_s = np.array(
    [[np.mean(c.log_s), np.mean(d.log_s)] for c, d in zip(mine, theirs, strict=True)]
  )
  if (np.diff(log_s, axis=0) <= 0).any():
    notes.append("device-seconds do not rise with the budget, so m is given in FLOPs alone")
    return None
  spread = sum(np.var(c.log_s) * len(c.log_s) for c in cells)
  spare = sum(len(c.log_s) - 1 for c in cells)
  few = min(len(c.log_s) for c in cells)
  error = _t(0.975, spare) * math.sqrt(2 * spread / spare / few) if spare else 0.0
  return dataclasses.replace(ladder, log_c_JR=log_s), error


def widened(m: Multiplier, error: float) -> Multiplier:
  """m with an independent error (a half-width in log m) joined to each side of its interval."""
  if not (0 < m.value < math.inf):
    return m
  at = math.log(m.value)
  sides = [
    math.hypot(math.log(end) - at, error) if 0 < end < math.inf else math.inf for end in m.interval
  ]
  return dataclasses.replace(m, interval=(math.exp(at - sides[0]), math.exp(at + sides[1])))


def _verdict(a, b, top, curves, differences, noise, largest, mine, theirs):
  """(word, why, p) before Holm's correction, which `_holm` applies."""
  budget = math.exp(largest)
  if not curves:
    last = differences[-1]
    p, d = last["p"], last["difference"]
    word = ("better" if d < 0 else "worse") if p < 0.05 else "not shown"
    why = (
      f"At {budget:.3g} FLOPs its loss is {d:+.4f} [{last['low']:+.4f}, {last['high']:+.4f}] nats from "
      f"{a}'s (p = {p:.2g})."
    )
    if word == "not shown":
      why += f" {_seeds_for_difference(d, noise, last['pairs'], budget)}"
    return word, why, p
  p = max(m.p for m in top.values())
  signs = {math.copysign(1, math.log(m.value)) if m.value > 0 else -1 for m in top.values()}
  said = "; ".join(f"{_shown(m)} with E {t}" for t, m in top.items())
  why = f"At {budget:.3g} FLOPs it is worth {said}, times {a}'s compute (p = {p:.2g})."
  if p < 0.05 and len(signs) == 1:
    return ("better" if signs == {1.0} else "worse"), why, p
  hardest = max(top, key=lambda t: top[t].p)
  return "not shown", f"{why} {_seeds_for(curves[hardest], top[hardest], largest, mine, theirs)}", p


def _shown(m: Multiplier) -> str:
  low, high = m.interval
  left = f"{low:.3g}" if low > 0 else "no lower bound"
  right = f"{high:.3g}" if math.isfinite(high) else "no upper bound"
  return f"{m.value:.3g} [{left}, {right}]"


def _seeds_for(curve: Curves, m: Multiplier, largest: float, mine, theirs) -> str:
  """The cheapest `k more seeds at budget c` that would show m with the power asked for."""
  effect = abs(math.log(m.value)) if 0 < m.value < math.inf else 0.0
  at = np.array([largest])
  costs = [math.exp(c.log_c) + math.exp(d.log_c) for c, d in zip(mine, theirs, strict=True)]
  seeds = [min(len(c.loss), len(d.loss)) for c, d in zip(mine, theirs, strict=True)]
  best = None
  for rung, cost in enumerate(costs):
    for k in range(1, MOST_SEEDS + 1):
      more = np.ones(len(costs))
      more[rung] = (seeds[rung] + k) / seeds[rung]
      se = float(curve.standard_error(at, more)[0])
      if effect >= needed(float(curve.df[0]) + k) * se:
        if best is None or k * cost < best[0]:
          best = k * cost, k, rung
        break
  if best:
    _, k, rung = best
    where = math.exp((mine[rung].log_c + theirs[rung].log_c) / 2)
    return (
      f"{number_of(k, 'more seed')} of both at {where:.3g} FLOPs would decide (with "
      f"{POWER:.0%} power, if the multiplier is what it seems)."
    )
  for k in range(1, MOST_SEEDS + 1):
    more = np.array([(n + k) / n for n in seeds])
    se = float(curve.standard_error(at, more)[0])
    if effect >= needed(float(curve.df[0]) + k * len(seeds)) * se:
      return (
        f"No {MOST_SEEDS} seeds at one budget would decide; {k} more of both at every budget would "
        f"(with {POWER:.0%} power, if the multiplier is what it seems)."
      )
  return (
    f"Not even {MOST_SEEDS} more seeds at every budget would decide: a multiplier this near 1 is beyond "
    "this ladder; add a larger budget, or call them equal."
  )


def _seeds_for_difference(d: float, noise: Noise, n: int, budget: float) -> str:
  for k in range(1, MOST_SEEDS + 1):
    if abs(d) >= needed(noise.df + k) * noise.sd_diff / math.sqrt(n + k):
      more = number_of(k, "more seed")
      return f"{more} of both at {budget:.3g} FLOPs would decide (with {POWER:.0%} power)."
  return f"Not even {MOST_SEEDS} more seeds there would decide: call them equal at this budget."


def needed(df: float) -> float:
  """Standard errors that an effect must be away from 0 to be shown at 5 % with the power asked for."""
  return _t(0.975, df) + _t(POWER, df)


def _t(quantile: float, df: float) -> float:
  from scipy.stats import t

  return float(t.ppf(quantile, min(df, 1e9)))


def _holm(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
  """Verdicts that hold at 5 % for all challengers together (Holm 1979)."""
  known = {i: pair.p for i, pair in enumerate(pairs) if pair.p is not None}
  order = list(known)
  corrected = dict(zip(order, holm(list(known.values())), strict=True))
  out = []
  for i, pair in enumerate(pairs):
    if len(order) > 1 and pair.word != "not shown" and corrected[i] >= 0.05:
      why = f"{pair.why} Over {len(order)} challengers that is p = {corrected[i]:.2g} (Holm)."
      pair = dataclasses.replace(pair, word="not shown", why=why)
    out.append(pair)
  return tuple(out)


# ---- A target ------------------------------------------------------------------------------------


def reach(target: float, name: str, log_c: float, losses: Sequence[float]) -> dict:
  """Whether the mean of n runs is below a target, by two rules.

  modded-nanogpt's optimization track: (target - mean) sqrt(n) >= 0.004 nats, a z test with its own
  standard deviation of about 0.0013 to 0.0017 (https://github.com/KellerJordan/modded-nanogpt); and
  Student's one-sided t test, (target - mean) sqrt(n) against the runs' own deviation, p < 0.01.
  """
  from scipy.stats import t

  x = np.array(losses)
  score = (target - float(x.mean())) * math.sqrt(len(x))
  row = {"recipe": name, "budget": math.exp(log_c), "n": len(x), "mean": float(x.mean()),
         "(target - mean) sqrt(n)": score,
         "nanogpt rule": "reached" if score >= NANOGPT_RULE else "not shown"}  # fmt: skip
  if len(x) > 1:
    sd = float(x.std(ddof=1))
    p = float(t.sf(score / sd, len(x) - 1)) if sd > 0 else float(score <= 0)
    row |= {"std": sd, "p": p, "t test": "reached" if p < 0.01 else "not shown"}
  return row
