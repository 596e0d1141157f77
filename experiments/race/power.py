"""Power of a race before it is run: which difference its seeds can show, from noise that is known already."""

import dataclasses
import math
from collections.abc import Sequence

from experiments.laws.multiplier import Noise, pair_noise
from experiments.ledger.compare import seed_noise
from experiments.ledger.ledger import Ledger
from experiments.race.judge import MOST_SEEDS, POWER, needed, read_cells
from lm.config.errors import ConfigError, number_of

LEAST_DF = 2  # fewer degrees of freedom say next to nothing of a standard deviation


@dataclasses.dataclass(frozen=True)
class Known:
  """Noise of a difference of two runs of one seed, and where it comes from."""

  sd: float  # nats/token
  df: float
  source: str


def known_noise(
  given: float | None,
  own: Ledger,
  baseline: str,
  other: Ledger | None,
  where: str,
  size: tuple[float, float] | None = None,
) -> Known | None:
  """Noise from, in this order: a given number, the race's own finished runs, another sweep's; or None.

  A given number, or another sweep's, is of single runs, taken to be independent: sd sqrt(2).

  Args:
    given: standard deviation between seeds, nats/token.
    own: rows of this race. other: rows of a sweep with replicates, named by `where`.
    size: (parameters, tokens) of the largest budget, where noise that moves with them is wanted.
  """
  if given is not None:
    if not 0 < given < math.inf:
      raise ConfigError(
        f"noise={given}: must be positive, nats/token between seeds; for example 0.01"
      )
    return Known(given * math.sqrt(2), math.inf, f"given, {given:.3g} a run")
  cells = read_cells(own, "flops")
  found: list[Noise] = []
  for name, rungs in cells.items():
    if name == baseline or baseline not in cells:
      continue
    shared = sorted(set(rungs) & set(cells[baseline]))
    losses = [[cells[n][r].loss for r in shared] for n in (baseline, name)]
    noise = pair_noise(*losses) if shared else None
    found += [noise] if noise and noise.df >= LEAST_DF else []
  if found:
    worst = max(found, key=lambda noise: noise.sd_diff)
    return Known(worst.sd_diff, worst.df, f"its own finished runs, {worst.df:g} degrees of freedom")
  if other is None:
    return None
  pooled = seed_noise(list(other.done()))
  if pooled is None or pooled.df < LEAST_DF:
    raise ConfigError(
      f"noise_from={where}: holds no settings with several seeds; give --noise, or train two seeds of "
      "one recipe first"
    )
  sd = pooled.pooled
  if size is not None:
    sd, _ = pooled.at(*size)
  return Known(
    sd * math.sqrt(2),
    pooled.df,
    f"{number_of(pooled.settings, 'setting')} of {where}, {sd:.3g} a run",
  )


def detectable(noise: Known, seeds: int) -> float:
  """The loss difference at one budget that so many pairs show at 5 % with 80 % power."""
  return needed(noise.df) * noise.sd / math.sqrt(seeds)


def words(noise: Known | None, seeds: int, see: float | None) -> tuple[list[str], list[str]]:
  """(lines for the plan, refusals).

  Args:
    seeds: pairs at each budget.
    see: the difference asked about, nats/token at the largest budget.
  """
  if noise is None:
    line = (
      "power: unknown without the noise of seeds; give --noise, or --noise_from a sweep with seeds"
    )
    if see is None:
      return [line], []
    return [line], [f"see={see:g}: whether --seeds {seeds} can show it is not known; give --noise"]
  least = detectable(noise, seeds)
  line = (
    f"power: {_seeds(seeds, ' a budget')} a difference of {least:.3g} nats there "
    f"({POWER:.0%} power, 5 % level; noise of a difference {noise.sd:.3g}, from {noise.source})"
  )
  if see is None or see >= least:
    return [line], []
  enough = seeds_for(noise, see)
  remedy = (
    f"use --seeds {enough}" if enough else f"not even {MOST_SEEDS} seeds can; ask for a larger one"
  )
  return [line], [f"see={see:g}: {_seeds(seeds)} {least:.3g} nats at a budget, no less; {remedy}"]


def _seeds(n: int, where: str = "") -> str:
  return f"1 seed{where} shows" if n == 1 else f"{n} seeds{where} show"


def seeds_for(noise: Known, see: float) -> int | None:
  """The least number of seeds that show a difference; None if MOST_SEEDS do not."""
  counts: Sequence[int] = range(1, MOST_SEEDS + 1)
  return next((n for n in counts if detectable(noise, n) <= see), None)
