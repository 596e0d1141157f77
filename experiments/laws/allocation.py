"""How to spend a budget: N*, D* and the loss there, in closed form and numerically.

Under C = k N^s D (6 N D unless told) every law here that has a size and a data term reduces to
A / N^alpha + B / D^beta, whose optimum is Hoffmann et al. 2022 eq. 4 where s = 1. Loss and allocation
of other FLOP counts come from `optimal_numeric`.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from experiments.laws import forms

FLOP_FACTOR = 6.0  # C = 6 N D: forward 2, backward 4 FLOPs a parameter and token


def key(value: float) -> str:
  """A number as part of an estimate's name: three digits, or as many as it takes to be that number.

  >>> key(1e21), key(5.881e23)
  ('1e+21', '5.881e+23')
  """
  return next(
    (t for t in (f"{value:.{k}g}" for k in range(3, 17)) if float(t) == value), repr(value)
  )


def default_budgets(flops) -> tuple[float, float]:
  """The largest budget, rounded to the three digits that its name shows, and ten times it."""
  largest = float(f"{np.max(flops):.3g}")
  return largest, float(f"{10 * largest:.3g}")


def two_terms(law_name: str, theta, flop_factor: float = FLOP_FACTOR):
  """(log A, log B, alpha, beta) of the size and data terms, or None for a law that has no such pair.

  The over-training form's (A M^eta + B M^-eta) / C^eta is A k^-eta / N^(2 eta) + B k^-eta / D^(2 eta);
  Kaplan's bracket has alpha_N / alpha_D and 1; repeated data is taken as unique.
  """
  if law_name in ("chinchilla", "data_constrained"):
    return theta[0], theta[1], theta[3], theta[4]
  if law_name == "overtraining":
    shift = theta[3] * np.log(flop_factor)
    return theta[0] - shift, theta[1] - shift, 2 * theta[3], 2 * theta[3]
  if law_name == "kaplan_nd":
    ratio = theta[2] / theta[3]
    return ratio * theta[0], theta[1], ratio, jnp.ones_like(ratio)
  return None


def optimal(
  log_a, log_b, alpha, beta, log_flops, flop_factor: float = FLOP_FACTOR, flop_exponent: float = 1.0
):
  """(log N*, log D*) of the least A / N^alpha + B / D^beta with k N^s D = C.

  N* = G (C/k)^a, D* = C / (k N*^s), G = (alpha A / (s beta B))^(1 / (alpha + s beta)),
  a = beta / (alpha + s beta), b = alpha / (alpha + s beta). s = 1: Hoffmann et al. 2022 eq. 4.
  """
  both = alpha + flop_exponent * beta
  log_g = (jnp.log(jnp.abs(alpha / (flop_exponent * beta))) + log_a - log_b) / both
  log_nd = log_flops - np.log(flop_factor)
  log_n = log_g + beta / both * log_nd
  return log_n, log_nd - flop_exponent * log_n


def flop_law(n_params, n_tokens, flops) -> tuple[float, float]:
  """(k, s) of C = k N^s D by least squares of log(C / D) on log N: what a FLOP count amounts to."""
  slope, level = np.polyfit(np.log(n_params), np.log(flops) - np.log(n_tokens), 1)
  return float(np.exp(level)), float(slope)


def optimal_numeric(
  loss: Callable,
  flops: float,
  tokens_at: Callable | None = None,
  log_n: tuple[float, float] = (0.0, 35.0),
) -> tuple[float, float, float]:
  """(N*, D*, loss) by search over log N: a grid, then golden section in the best bracket.

  Args:
    loss: (n_params, n_tokens) arrays -> losses.
    flops: the budget.
    tokens_at: n_params -> tokens that spend the budget; None: C / (6 N).
    log_n: range searched, natural log.

  Raises:
    ValueError: the best N is at the edge of the range.
  """
  tokens_at = tokens_at or (lambda n: flops / (FLOP_FACTOR * n))
  at = lambda u: np.asarray(loss(np.exp(u), tokens_at(np.exp(u))))
  grid = np.linspace(*log_n, 2001)
  best = int(np.nanargmin(at(grid)))
  if best in (0, len(grid) - 1):
    raise ValueError(f"log_n={log_n}: the optimum lies at its edge; widen the range of sizes")
  low, high = grid[best - 1], grid[best + 1]
  ratio = (np.sqrt(5) - 1) / 2
  while high - low > 1e-10 * max(1.0, abs(high)):
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    if at(left) < at(right):
      high = right
    else:
      low = left
  n = float(np.exp((low + high) / 2))
  return n, float(tokens_at(n)), float(loss(n, tokens_at(n)))


@dataclasses.dataclass(frozen=True)
class Quantities:
  """What gets an interval: parameters, exponents, allocation and loss at each budget, losses asked for.

  Called with theta [P, 1, R] and columns it returns [Q, 1, R] in working coordinates (log where
  `is_log`). Hashable, so that a compiled profile likelihood can be kept.

  Attributes:
    law: with a log link, whatever the residuals that were minimised.
    flops: budgets in FLOPs at which N*, D* and the loss are wanted.
    points: rows, as ((column, value), ...), whose loss is wanted.
  """

  law: forms.Law
  flops: tuple[float, ...] = ()
  points: tuple[tuple[tuple[str, float], ...], ...] = ()
  flop_factor: float = FLOP_FACTOR
  flop_exponent: float = 1.0

  @property
  def has_allocation(self) -> bool:
    # closed forms only: asking with dummy numbers is the law's own answer
    return two_terms(self.law.name, np.ones(len(self.law.params))) is not None

  @property
  def labels(self) -> tuple[tuple[str, bool, str], ...]:
    """(name, is_log, meaning) of each quantity."""
    out = [(p.name, p.log, p.meaning) for p in self.law.params]
    if self.has_allocation:
      out += [("a", False, "exponent of N* in C"), ("b", False, "exponent of D* in C")]
      for c in self.flops:
        out += [
          (f"N*@{key(c)}", True, f"compute-optimal parameters at {key(c)} FLOPs"),
          (f"D*@{key(c)}", True, f"compute-optimal tokens at {key(c)} FLOPs"),
          (f"D*/N*@{key(c)}", True, f"tokens per parameter at {key(c)} FLOPs"),
          (f"loss@{key(c)}", True, f"loss of the compute-optimal run at {key(c)} FLOPs"),
        ]
    elif self.law.inputs == ("flops",):
      out += [(f"loss@{key(c)}", True, f"loss at {key(c)} FLOPs") for c in self.flops]
    link = self.law.link == "log"
    for point in self.points:
      name = ",".join(f"{k}={key(v)}" for k, v in point)
      out.append((f"{self.law.target}@{name}", link, f"{self.law.target} at {name}"))
    return tuple(out)

  def __call__(self, theta, x=None):
    del x  # a quantity depends on the parameters alone
    cell = jnp.zeros((1, 1))
    rows = [theta[i] for i in range(len(self.law.params))]
    if self.has_allocation:
      log_a, log_b, alpha, beta = two_terms(self.law.name, theta, self.flop_factor)
      counted = self.flop_factor, self.flop_exponent
      both = alpha + self.flop_exponent * beta
      rows += [beta / both, alpha / both]
      for c in self.flops:
        log_n, log_d = optimal(log_a, log_b, alpha, beta, float(np.log(c)), *counted)
        columns = {"n_params": jnp.exp(log_n), "n_tokens": jnp.exp(log_d), "flops": cell + c}
        columns["unique_tokens"] = columns["n_tokens"]
        rows += [log_n, log_d, log_d - log_n, self.law.predict(theta, columns)]
    elif self.law.inputs == ("flops",):
      rows += [self.law.predict(theta, {"flops": cell + c}) for c in self.flops]
    for point in self.points:
      rows.append(self.law.predict(theta, {k: cell + v for k, v in point}))
    return jnp.stack(rows)
