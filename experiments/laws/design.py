"""Can a planned sweep answer its question, and which sweep of a given cost answers it best?"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from experiments.laws import allocation, forms, intervals, isoflop, solve
from lm.config.errors import number_of

# Besiroglu et al. 2024, arXiv:2404.10102: only the shape of the loss surface is taken from it.
PRIOR = {"A": 482.01, "B": 2085.43, "E": 1.8172, "alpha": 0.3478, "beta": 0.3658}
# Muennighoff et al. 2023: up to here repeats are worth nearly as much as new tokens
EPOCHS_WORTH = 4.0


@dataclasses.dataclass(frozen=True)
class PlannedRun:
  """One run of a sweep before it is paid for."""

  n_params: float
  n_tokens: float
  flops: float
  unique_tokens: float | None = None  # None: never repeats
  schedule_ends_with_run: bool = True
  eval_set_id: str = ""


@dataclasses.dataclass(frozen=True)
class Design:
  """A proposed isoFLOP grid and the interval of a = beta / (alpha + beta) to expect from it.

  `interval` is from the Fisher information, `simulated` from refits of simulated losses, both at `level`.
  """

  runs: tuple[PlannedRun, ...]
  budgets: tuple[float, ...]
  sizes_per_budget: int
  span: float  # sizes reach from N* / span to N* span
  total_flops: float
  exponent: float
  se: float
  interval: tuple[float, float]
  simulated: tuple[float, float]
  level: float
  considered: int
  prior: dict[str, float]
  noise: float

  def summary(self) -> str:
    """A few lines of text."""
    return "\n".join([
      f"{number_of(len(self.runs), 'run')}, {self.total_flops:.3g} FLOPs in all, budgets "
      f"{', '.join(f'{c:.3g}' for c in self.budgets)}, "
      f"{number_of(self.sizes_per_budget, 'size')} each from N*/{self.span:g} to {self.span:g}N*",
      f"expected {self.level:.0%} interval of a: {self.interval[0]:.3f} .. {self.interval[1]:.3f} "
      "(Fisher information), "
      f"{self.simulated[0]:.3f} .. {self.simulated[1]:.3f} (simulated), at noise {self.noise:g} of log loss",
      f"best of {self.considered} grids under the prior law {self.prior}",
    ])  # fmt: skip


def check_design(
  runs: Sequence[PlannedRun], n_law_params: int = 5, prior: dict[str, float] | None = None
) -> list[tuple[str, str]]:
  """[(severity, message)]: "refuse" where the sweep cannot answer, "warn" where the answer will be weak.

  Raises:
    ValueError: no runs, or a count that is not positive.
  """
  if not runs:
    raise ValueError("runs: the design is empty; plan at least one run")
  for i, r in enumerate(runs):
    if not min(r.n_params, r.n_tokens, r.flops) > 0:
      raise ValueError(f"runs[{i}]={r}: parameters, tokens and FLOPs must be > 0")
  n, d, c = (
    np.array([getattr(r, k) for r in runs], float) for k in ("n_params", "n_tokens", "flops")
  )
  found = []
  different = len({(a, b) for a, b in zip(n, d, strict=True)})
  if different < n_law_params + 3:
    found.append(
      (
        "refuse",
        f"{different} different runs, fewer than parameters + 3 = {n_law_params + 3}: add runs",
      )
    )
  found += _identifiable(n, d, c)
  found += _slices(n, c, prior or PRIOR)
  unfinished = sum(not r.schedule_ends_with_run for r in runs)
  if unfinished:
    found.append(
      (
        "refuse",
        f"{number_of(unfinished, 'run')} cut off before the schedule ends: the loss is not that of a "
        "run planned for "
        "those tokens (Hoffmann et al. 2022 §2); give each length its own schedule",
      )
    )
  evals = {r.eval_set_id for r in runs}
  if len(evals) > 1:
    found.append(
      ("refuse", f"{len(evals)} different eval sets: losses cannot be compared; fix one")
    )
  epochs = np.array([r.n_tokens / r.unique_tokens if r.unique_tokens else 0.0 for r in runs])
  if (epochs > EPOCHS_WORTH).any():
    found.append(
      (
        "warn",
        f"{number_of(int((epochs > EPOCHS_WORTH).sum()), 'run')} with data repeated more than "
        f"{EPOCHS_WORTH:g} times "
        f"(up to {epochs.max():.3g}): repeats are worth less than new tokens (Muennighoff et al. 2023); "
        "get more text or fit data_constrained",
      )
    )
  return found


def _identifiable(n, d, c) -> list[tuple[str, str]]:
  found, spread = [], np.log(d) - np.log(n)
  if len(n) > 1 and spread.std() < 0.1:
    found.append(
      (
        "refuse",
        f"all runs have about {np.exp(spread.mean()):.3g} tokens per parameter: N and D are collinear "
        "and alpha, beta are not identifiable; vary the ratio by a factor of 4 or more",
      )
    )
  elif len(n) > 1 and np.ptp(spread) < np.log(4):
    found.append(
      (
        "warn",
        f"tokens per parameter vary only {np.exp(np.ptp(spread)):.2g}-fold: "
        "the exponents will be hard to tell apart",
      )
    )
  if np.ptp(np.log(c)) < np.log(10):
    found.append(
      (
        "warn",
        f"FLOPs span a factor of {c.max() / c.min():.3g}, less than ten: exponents will be wide",
      )
    )
  return found


def _slices(n, c, prior) -> list[tuple[str, str]]:
  """isoFLOP slices with too few points or an optimum that the prior law puts far outside their sizes."""
  found, groups = [], isoflop.budget_groups(c)
  slices = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
  slices = [s for s in slices if len(set(n[s])) >= 2]
  if len(slices) < 2:
    return found  # not an isoFLOP design
  if len(slices) < 3:
    found.append(
      (
        "warn",
        f"{len(slices)} isoFLOP budgets: a power law through two optima has no error bar; use 3+",
      )
    )
  for s in slices:
    sizes, budget = np.unique(n[s]), float(np.exp(np.log(c[s]).mean()))
    where = f"budget {budget:.3g}"
    if len(sizes) < 5:
      found.append(
        (
          "refuse",
          f"{where}: {number_of(len(sizes), 'size')}, fewer than 5: a parabola needs more to "
          "show its minimum",
        )
      )
    best = _prior_optimum(prior, budget)
    low, high = sizes[0], sizes[-1]
    # the prior comes from other data: a factor of 3 off says "perhaps", a factor of 30 "surely"
    off = max(low / best, best / high)
    if off > 30:
      found.append(("refuse", f"{where}: sizes {low:.3g} .. {high:.3g} lie far from the expected "
                    f"optimum {best:.3g}: the minimum will be at the edge"))  # fmt: skip
    elif off > 1:
      found.append(
        (
          "warn",
          f"{where}: sizes {low:.3g} .. {high:.3g} do not enclose the expected optimum {best:.3g}",
        )
      )
    if high / low < 4:
      found.append(
        (
          "warn",
          f"{where}: sizes span a factor of {high / low:.2g}, less than 4: noise will hide the minimum",
        )
      )
  return found


def _prior_optimum(prior, flops) -> float:
  log_n, _ = allocation.optimal(
    np.log(prior["A"]), np.log(prior["B"]), prior["alpha"], prior["beta"], np.log(flops)
  )
  return float(np.exp(log_n))


def propose_design(
  budget: float,
  *,
  prior: dict[str, float] | None = None,
  noise: float = 0.005,
  max_runs: int = 42,
  compute_ratios: Sequence[float] = (10.0, 30.0, 100.0, 300.0, 1000.0),
  min_params: float = 1e4,
  tokens_per_param: tuple[float, float] = (1.0, 2000.0),
  level: float = 0.95,
  n_simulations: int = 200,
  seed: int = 0,
) -> Design:
  """The isoFLOP grid costing `budget` FLOPs in all whose five-parameter fit pins down `a` best.

  Grids differ in the number of budgets (3 .. 8), sizes (5 .. 11), compute ratio and span of sizes. Each is
  judged by the Fisher information at the prior law; the winner is then simulated and refitted.

  Args:
    noise: standard deviation of log loss (seed to seed), e.g. 0.005.
    compute_ratios: largest over smallest budget.
    min_params, tokens_per_param: runs outside are not feasible.

  Raises:
    ValueError: no grid is feasible, or the budget is no count of FLOPs.
  """
  if not 1 <= budget <= 1e60:
    raise ValueError(f"budget={budget:g}: must be in [1, 1e60] FLOPs; for example 1e18")
  prior = dict(prior or PRIOR)
  law = forms.LAWS["chinchilla"]
  theta = law.working(np.array([prior[k] for k in law.names]))
  best, considered = None, 0
  grids = itertools.product(range(3, 9), range(5, 12), compute_ratios, (2.0, 4.0, 8.0, 16.0, 32.0))
  for m, k, ratio, span in grids:
    if m * k > max_runs:
      continue
    budgets = budget / k * np.geomspace(1, ratio, m) / np.geomspace(1, ratio, m).sum()
    center = np.array([_prior_optimum(prior, c) for c in budgets])
    n = (center[:, None] * np.geomspace(1 / span, span, k)).ravel()
    c = np.repeat(budgets, k)
    d = c / (allocation.FLOP_FACTOR * n)
    feasible = (
      n.min() >= min_params
      and tokens_per_param[0] <= (d / n).min()
      and (d / n).max() <= tokens_per_param[1]
    )
    if not feasible:
      continue
    considered += 1
    se = exponent_se(theta, n, d, noise)
    if best is None or se < best[0]:
      best = se, n, d, c, budgets, k, span
  if best is None:
    raise ValueError(
      f"budget={budget:.3g}: no grid keeps sizes >= {min_params:.3g} and tokens per parameter "
      f"in {tokens_per_param}; raise the budget or widen the limits"
    )
  from scipy.stats import norm

  se, n, d, c, budgets, k, span = best
  a, z = prior["beta"] / (prior["alpha"] + prior["beta"]), float(norm.ppf((1 + level) / 2))
  runs = tuple(PlannedRun(*map(float, row)) for row in zip(n, d, c, strict=True))
  simulated = _simulate(theta, n, d, noise, n_simulations, seed, level)
  return Design(
    runs, tuple(map(float, budgets)), k, span, float(c.sum()), a, se, (a - z * se, a + z * se),
    simulated, level, considered, prior, noise,
  )  # fmt: skip


def exponent_se(theta: np.ndarray, n_params, n_tokens, noise: float) -> float:
  """Standard error of a = beta / (alpha + beta) from the Fisher information of log losses."""
  log_a, log_b, log_e, alpha, beta = theta
  log_n, log_d = np.log(n_params), np.log(n_tokens)
  terms = np.stack(
    [
      np.exp(log_a - alpha * log_n),
      np.exp(log_b - beta * log_d),
      np.full(len(log_n), np.exp(log_e)),
    ]
  )
  share = terms / terms.sum(0)
  jac = np.stack([share[0], share[1], share[2], -log_n * share[0], -log_d * share[1]], axis=1)
  both = (alpha + beta) ** 2
  grad = np.array([0.0, 0.0, 0.0, -beta / both, alpha / both])
  # QR instead of J^T J: the columns of a scale and its exponent are nearly parallel
  _, r = np.linalg.qr(jac)
  return float(noise * np.linalg.norm(np.linalg.lstsq(r.T, grad, rcond=None)[0]))


def _simulate(theta, n, d, noise, n_simulations, seed, level) -> tuple[float, float]:
  """Quantiles of a over refits of simulated losses."""
  law = forms.LAWS["chinchilla"]
  problem, x = solve.make_problem(law, {}), {"n_params": n, "n_tokens": d}
  rng = np.random.default_rng(seed)
  y = intervals.predict(law, theta, x) + noise * rng.standard_normal((n_simulations, len(n)))
  found = solve.minimise(
    problem, x, y, np.tile(theta, (n_simulations, 1)), delta=solve.L2_DELTA
  ).theta
  a = found[:, 4] / (found[:, 3] + found[:, 4])
  low, high = np.nanquantile(a, [(1 - level) / 2, (1 + level) / 2])
  return float(low), float(high)
