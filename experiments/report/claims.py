"""Published numbers set beside ours: what is claimed, what we found, and what may be concluded.

The verdict reads an interval against a range: the whole of our interval lies within the range
(agrees), none of it does (differs), or part of it does. Then it is consistent if our interval holds the
published number itself, and borderline if it does not.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number of ours and its 95 % interval, None where there is none; `note` says how it was found.

  Whatever has `value` and `interval`, such as the estimates of experiments.laws, can stand in for
  it.
  """

  value: float
  interval: tuple[float, float] | None = None
  note: str = ""

  def __str__(self) -> str:
    return shown(self)


@dataclasses.dataclass(frozen=True)
class Claim:
  """A published number.

  Args:
    what: the key of our estimate in what `analyse` returns, in words fit for a table.
    value: the number as printed.
    source: where, as "Author Year, arXiv:xxxx §n".
    tolerance: half-width of the range that counts as the same number; exclusive with `interval`.
    interval: (low, high) where the source prints one; with an infinity where it says "above" or "below".
  """

  what: str
  value: float
  source: str
  tolerance: float | None = None
  interval: tuple[float, float] | None = None

  def __post_init__(self):
    if (self.tolerance is None) == (self.interval is None):
      raise ValueError(f"claim {self.what!r}: exactly one of tolerance and interval; set one")
    low, high = self.range
    if not low <= self.value <= high:
      raise ValueError(f"claim {self.what!r}: {self.value} must lie in [{low}, {high}]; correct it")

  @property
  def range(self) -> tuple[float, float]:
    """(low, high) of the numbers that count as the same."""
    if self.interval is not None:
      return self.interval
    return self.value - self.tolerance, self.value + self.tolerance

  @property
  def one_sided(self) -> bool:
    """Whether the source says "above" or "below" a number."""
    return not all(map(math.isfinite, self.range))

  @property
  def said(self) -> str:
    """The number as printed, or such as "above 1"."""
    low, high = self.range
    if not self.one_sided:
      return f"{self.value:.4g}"
    return f"above {low:.4g}" if math.isfinite(low) else f"below {high:.4g}"


@dataclasses.dataclass(frozen=True)
class Verdict:
  """`word` is agrees, consistent, borderline, differs or "cannot tell"; `why` is one sentence."""

  word: str
  why: str


def verdict(claim: Claim, ours: Estimate | None) -> Verdict:
  """What our estimate says about a claim.

  >>> verdict(Claim("a", 0.5, "Hoffmann", tolerance=0.05), Estimate(0.49, (0.47, 0.51))).word
  'agrees'
  """
  if ours is None:
    return Verdict("cannot tell", "we have no estimate of it")
  if not math.isfinite(ours.value):
    return Verdict("cannot tell", f"our estimate is {ours.value}")
  low, high = claim.range
  theirs = _shown(claim.range)
  within = claim.said if claim.one_sided else f"within {theirs}"
  if ours.interval is None:
    outside = "" if low <= ours.value <= high else "not "
    return Verdict("cannot tell", f"our {ours.value:.4g} is {outside}{within} but has no interval")
  our_low, our_high = ours.interval
  mine = _shown(ours.interval)
  if our_high < low or our_low > high:
    side = "below" if our_high < low else "above"
    end = f"{low if our_high < low else high:.4g}" if claim.one_sided else theirs
    return Verdict("differs", f"our interval {mine} lies {side} {end}")
  if low <= our_low and our_high <= high:
    return Verdict("agrees", f"our interval {mine} lies {within}")
  times = (our_high - our_low) / (high - low) if high > low else math.inf
  wide = f", though it is {times:.2g} times as wide as {theirs}" if 1 < times < math.inf else ""
  if our_low <= claim.value <= our_high:
    return Verdict("consistent", f"our interval {mine} holds {claim.value:.4g}{wide}")
  side = "below" if our_high < claim.value else "above"
  return Verdict(
    "borderline", f"our interval {mine} lies {side} {claim.value:.4g} itself but meets {theirs}"
  )


def verdicts(claims: Sequence[Claim], results: Mapping[str, object]) -> list[dict[str, object]]:
  """One row a claim: what, claimed, range, published (in words), source, ours (as text), verdict, why.

  Args:
    claims: of an experiment.
    results: what its `analyse` returns.

  Raises:
    ValueError: a claim is set against something that is not an estimate.
  """
  rows = []
  for claim in claims:
    ours = results.get(claim.what)
    if ours is not None and not is_estimate(ours):
      raise ValueError(f"result {claim.what!r}: must be an Estimate to be judged; wrap the number")
    judged = verdict(claim, ours)
    rows.append(
      {
        "what": claim.what,
        "claimed": claim.value,
        "range": claim.range,
        "published": claim.said,
        "source": claim.source,
        "ours": ours and shown(ours),
        "verdict": judged.word,
        "why": judged.why,
      }
    )
  return rows


def is_estimate(result: object) -> bool:
  """Whether a result is a number with an interval."""
  return hasattr(result, "value") and hasattr(result, "interval")


def shown(estimate: Estimate) -> str:
  """`0.49 [0.47, 0.51]`, or the number alone where it has no interval."""
  interval = f" {_shown(estimate.interval)}" if estimate.interval else ""
  return f"{estimate.value:.4g}{interval}"


def _shown(interval: tuple[float, float]) -> str:
  return f"[{interval[0]:.4g}, {interval[1]:.4g}]"
