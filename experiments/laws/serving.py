"""Allocation for a purpose: the size and tokens that cost least when the model is to be served, too.

Cost of training N parameters on D tokens and serving T more: k N^s D + m N^q T. In FLOPs k N^s D = 6 N D and
m N^q T = 2 N T (Sardana et al. 2024, arXiv:2401.00448 eq. 2); in device-seconds the powers of N are those of
measured tokens a second, and dollars are device-seconds at a price. Least cost at a loss, and least loss at
a cost, meet the same condition,

  (s + q (m / k) N^(q - s) T / D) beta B / D^beta = alpha A / N^alpha,

with N from the loss or from the cost; T = 0 and s = 1 is Hoffmann et al. 2022 eq. 4. It is solved in
log D by bisection, for the fit and for each bootstrap sample of its law; prices and speeds are given.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.laws import allocation, intervals
from experiments.laws.result import Estimate, LawFit, Result, to_plain
from lm.config.errors import ConfigError, number_of

LOG_TOKENS = (0.0, 120.0)  # natural log of D that is searched
HALVINGS = 200


@dataclasses.dataclass(frozen=True)
class Price:
  """k N^s for a training token, m N^q for a served one, in `unit`."""

  k: float = 6.0
  s: float = 1.0
  m: float = 2.0
  q: float = 1.0
  unit: str = "FLOPs"

  def training(self, n, d):
    return self.k * n**self.s * d

  def serving(self, n, served: float):
    return self.m * n**self.q * served


def price_of_speed(
  n_params, tokens_per_sec, serving=None, dollars_per_hour: float | None = None
) -> Price:
  """Device-seconds (or dollars) of a token, from measured tokens a second of one device.

  Speeds are regressed as 1 / (k N^s) in logs. Without `serving` (tokens a second) a served token takes a
  third of a training one's time, as it takes 2 N of 6 N FLOPs.

  Raises:
    ConfigError: fewer than two sizes, or a speed that is not > 0.
  """
  n_params, speeds = np.asarray(n_params, float), [np.asarray(tokens_per_sec, float)]
  speeds += [np.asarray(serving, float)] if serving is not None else []
  found = []
  for name, speed in zip(("speed", "serve_speed"), speeds, strict=False):
    usable = np.isfinite(speed) & (speed > 0) & np.isfinite(n_params) & (n_params > 0)
    if len(np.unique(n_params[usable])) < 2:
      raise ConfigError(
        f"{name}: tokens a second of {number_of(len(np.unique(n_params[usable])), 'size')}; must be two "
        "or more"
      )
    slope, level = np.polyfit(np.log(n_params[usable]), -np.log(speed[usable]), 1)
    found.append((float(np.exp(level)), float(slope)))
  (k, s), (m, q) = found[0], found[1] if serving is not None else (found[0][0] / 3, found[0][1])
  rate, unit = (
    (1.0, "device-seconds") if dollars_per_hour is None else (dollars_per_hour / 3600, "dollars")
  )
  return Price(k * rate, s, m * rate, q, unit)


@dataclasses.dataclass(frozen=True, repr=False)
class ServingFit(Result):
  """Best size and tokens for each total cost, or for each loss, with bootstrap intervals."""

  law: str
  price: Price
  served: float
  estimates: dict[str, Estimate]
  confidence: float
  n_boot: int
  notes: tuple[str, ...]

  def __getitem__(self, name: str) -> Estimate:
    return self.estimates[name]

  def to_json(self) -> dict:
    """Plain dicts, lists and numbers."""
    return to_plain({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

  def summary(self) -> str:
    """A text table."""
    p = self.price
    lines = [
      f"training and serving {self.served:.4g} tokens, {self.law}",
      f"cost in {p.unit}: {p.k:.4g} N^{p.s:.3g} D + {p.m:.4g} N^{p.q:.3g} T",
    ]
    width = max(map(len, self.estimates))
    for e in self.estimates.values():
      limits = f"  {self.confidence:.0%} {e.said('case')}" if e.intervals else f"  {e.withheld}"
      lines.append(f"  {e.name:{width}}  {e.value:.5g}{limits}".rstrip())
    return "\n".join(lines + [f"note: {n}" for n in self.notes])


def bracket(law: str, theta_PR: np.ndarray, loss: float):
  """What A / N^alpha + B / D^beta must be for a loss, [R]; nan where no run reaches it."""
  if law == "kaplan_nd":
    return np.full(theta_PR.shape[1], loss) ** (1 / theta_PR[3])
  above = loss - np.exp(theta_PR[2])
  return np.where(above > 0, above, np.nan)


def loss_of(law: str, theta_PR: np.ndarray, total_R):
  """The loss [R] where A / N^alpha + B / D^beta is `total_R`."""
  return total_R ** theta_PR[3] if law == "kaplan_nd" else np.exp(theta_PR[2]) + total_R


def best(terms, price: Price, served: float, *, cost=None, total=None):
  """(N*, D*) of the least loss at a total cost, or of the least cost where the two terms sum to `total`.

  Args:
    terms: (log A, log B, alpha, beta), each [R].
    cost: [R] or a number, in the price's unit.
    total: [R]; nan gives nan.
  """
  log_a, log_b, alpha, beta = (np.asarray(v, float) for v in terms)
  low = np.full(log_a.shape, LOG_TOKENS[0])
  high = np.full(log_a.shape, LOG_TOKENS[1])

  def size(log_d):
    """log N at D tokens; -inf or inf where D alone costs or falls short of everything."""
    if total is not None:
      left = total - np.exp(log_b - beta * log_d)
      return np.where(left > 0, (log_a - np.log(np.maximum(left, 1e-300))) / alpha, np.inf)
    return _size_of_cost(price, np.exp(log_d), served, cost)

  with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
    for _ in range(HALVINGS):
      log_d = (low + high) / 2
      log_n = size(log_d)
      ratio = (
        price.q * price.m / price.k * np.exp((price.q - price.s) * log_n) * served / np.exp(log_d)
      )
      worth = np.log(price.s + ratio) + np.log(beta) + log_b - beta * log_d
      want = np.log(alpha) + log_a - alpha * log_n
      # more tokens as long as they take away more loss for their cost than parameters do
      more = np.where(np.isposinf(log_n), True, worth > want)
      low, high = np.where(more, log_d, low), np.where(more, high, log_d)
    log_d = (low + high) / 2
    log_n = size(log_d)
  bad = ~np.isfinite(log_n)
  return np.where(bad, np.nan, np.exp(log_n)), np.where(bad, np.nan, np.exp(log_d))


def _size_of_cost(price: Price, d, served: float, cost):
  """log N with k N^s D + m N^q T = cost; closed where the powers are equal, else by bisection."""
  if served == 0 or price.s == price.q:
    return np.log(cost / (price.k * d + price.m * served)) / price.s
  low, high = np.full(np.shape(d), -20.0), np.full(np.shape(d), 60.0)
  for _ in range(100):
    middle = (low + high) / 2
    over = price.training(np.exp(middle), d) + price.serving(np.exp(middle), served) > cost
    low, high = np.where(over, low, middle), np.where(over, middle, high)
  return (low + high) / 2


def allocate(
  fit: LawFit,
  served: float,
  price: Price | None = None,
  *,
  costs: Sequence[float] = (),
  losses: Sequence[float] = (),
) -> ServingFit:
  """Best size and tokens for training and serving, with the fit's bootstrap as intervals.

  Args:
    fit: of a law with a size and a data term (chinchilla, kaplan_nd, overtraining, data_constrained).
    served: tokens that will be served, T >= 0.
    price: of a token; None: 6 N and 2 N FLOPs.
    costs: total costs, training and serving; losses: losses to be reached.

  Raises:
    ConfigError: another law, no cost and no loss, or a loss that the law never reaches.
  """
  price, law = price or Price(), fit.law.name
  theta = np.concatenate([fit.theta[None], fit.boots]).T
  terms = allocation.two_terms(law, theta, fit.flop_factor)
  if terms is None:
    raise ConfigError(
      f"law={law}: has no size and data term to weigh against serving; use chinchilla"
    )
  if not served >= 0:
    raise ConfigError(f"serve_tokens={served:g}: must be >= 0; for example 1e12")
  if not (len(costs) or len(losses)):
    raise ConfigError(
      f"serve_tokens={served:g}: say what may be spent in {price.unit} (--at) or which loss (--target_loss)"
    )
  terms = tuple(np.broadcast_to(np.asarray(t, float), theta.shape[1:]) for t in terms)
  notes, found = [], {}
  if law == "data_constrained":
    notes.append("tokens are taken as unique")
  for cost in costs:
    n, d = best(terms, price, served, cost=cost)
    if not np.isfinite(n[0]) or not np.isfinite(d[0]):
      raise ConfigError(f"at={cost:g}: no run costs that; give another total in {price.unit}")
    total = np.exp(terms[0] - terms[2] * np.log(n)) + np.exp(terms[1] - terms[3] * np.log(d))
    at = f"{allocation.key(cost)} {price.unit}"
    found |= _named(at, n, d, price, served) | {
      f"loss@{at}": (
        loss_of(law, theta, total),
        f"loss of the best run whose training and serving cost {at}",
      )
    }
  for loss in losses:
    total = bracket(law, theta, loss)
    if not np.isfinite(total[0]):
      raise ConfigError(
        f"target_loss={loss:g}: the law never falls below E={np.exp(fit.theta[2]):.4g}; give a higher loss"
      )
    n, d = best(terms, price, served, total=total)
    plain_n, plain_d = best(terms, price, 0.0, total=total)
    cost = price.training(n, d) + price.serving(n, served)
    plain = price.training(plain_n, plain_d) + price.serving(plain_n, served)
    at = f"loss {loss:g}"
    found |= _named(at, n, d, price, served) | {
      f"cost@{at}": (cost, f"{price.unit} of training and serving"),
      f"of cheapest to train@{at}": (
        cost / plain, "its share of what the run that is cheapest to train costs with serving"
      ),
    }  # fmt: skip
  failed = fit.lack_of_fit is not None and fit.lack_of_fit.fails
  if failed:
    notes.append(f"the law misses its runs, so intervals are too narrow: {fit.lack_of_fit.text}")
  if len(fit.boots):
    notes.append("intervals are of the law's fit; prices and speeds are taken as given")
  units = fit.clusters
  estimates = {}
  for name, (values, meaning) in found.items():
    limits = {}
    if len(fit.boots):
      low, high = intervals.percentile(np.log(values[1:, None]), fit.confidence, units)[:, 0]
      limits = {"case": (float(np.exp(low)), float(np.exp(high)))}
    spread = float(np.nanstd(values[1:])) if len(fit.boots) else None
    estimates[name] = Estimate(name, float(values[0]), meaning, limits, None, boot_se=spread)
  return ServingFit(law, price, served, estimates, fit.confidence, len(fit.boots), tuple(notes))


def _named(at: str, n, d, price: Price, served: float) -> dict:
  share = price.serving(n, served) / (price.training(n, d) + price.serving(n, served))
  return {
    f"N*@{at}": (n, f"parameters at {at}"),
    f"D*@{at}": (d, f"training tokens at {at}"),
    f"D*/N*@{at}": (d / n, f"training tokens a parameter at {at}"),
    **({f"serving's share@{at}": (share, f"of the cost at {at}")} if served else {}),
  }
