"""Variable projection: L = E + A / N^alpha + B / D^beta is linear in (E, A, B), so only (alpha, beta) is
searched, exhaustively. It has no local optimum to fall into and needs no starting point.

Czech et al. 2026, arXiv:2603.22339; Golub & Pereyra 1973. It minimises squares of the loss itself (or,
`relative`, of the loss relative to the measured one), not of its logarithm.
"""

import dataclasses

import numpy as np

from experiments.laws import adequacy, allocation, forms, identify, lawfit, solve
from experiments.laws.result import Estimate, Result, to_plain
from experiments.laws.table import Table
from lm.config.errors import ConfigError, number_of


@dataclasses.dataclass(frozen=True)
class VarProFit:
  """Printed parameters, the residual sum of squares, and a = beta / (alpha + beta)."""

  A: float
  B: float
  E: float
  alpha: float
  beta: float
  rss: float
  at_edge: bool  # the best exponents lie at the edge of the range searched

  @property
  def a(self) -> float:
    return self.beta / (self.alpha + self.beta)


@dataclasses.dataclass(frozen=True, repr=False)
class VarProTable(Result):
  """Variable projection of a table's runs, with case-bootstrap and delta-method intervals."""

  estimates: dict[str, Estimate]
  rss: float
  table: Table
  confidence: float
  n_boot: int
  seed: int
  notes: tuple[str, ...]
  lack_of_fit: adequacy.LackOfFit | None = None

  def __getitem__(self, name: str) -> Estimate:
    return self.estimates[name]

  def to_json(self) -> dict:
    """Plain dicts, lists and numbers."""
    plain = dataclasses.asdict(dataclasses.replace(self, table=None)) | {"n_rows": len(self.table)}
    return to_plain(
      plain | {"table": None, "columns": self.table.source, "skipped": self.table.skipped}
    )

  def summary(self) -> str:
    """A text table."""
    rms = np.sqrt(self.rss / len(self.table))
    lines = [
      f"variable projection: L = E + A / N^alpha + B / D^beta by least squares of the loss, "
      f"{number_of(len(self.table), 'run')}, residual rms {rms:.4g}"
    ]
    if self.lack_of_fit is not None:
      lines.append(f"verdict: {self.lack_of_fit.text}")
    for e in self.estimates.values():
      limits = "  ".join(f"{m} {self.confidence:.0%} {e.said(m)}" for m in e.intervals)
      lines.append(f"{e.name:14s} {e.value:.6g}  {limits or e.withheld.split(':')[0]}")
    return "\n".join(lines + [f"note: {n}" for n in self.notes])


LINEAR = forms.with_link(forms.LAWS["chinchilla"], "linear")


def varpro_table(
  table: Table,
  *,
  n_boot: int = 1000,
  seed: int = 0,
  confidence: float = 0.95,
  flops=None,
  cluster: str | None = None,
  force: bool = False,
) -> VarProTable:
  """`varpro_fit` of a table with intervals; resamples are refitted by Newton steps from its optimum.

  Args:
    flops: budgets for N*, D* and the loss; None: the largest in the table and ten times it.
    cluster, force: as of lawfit.fit_table.

  Raises:
    ConfigError: parameters that these runs cannot tell apart.
  """
  table = table.with_flops().need("n_params", "n_tokens", "loss")
  lawfit.refuse_two_scales(table, ("n_params", "n_tokens"), "loss", force)
  found = varpro_fit(table["n_params"], table["n_tokens"], table["loss"])
  notes = [*table.notes, *table.left_out()]
  theta = LINEAR.working(np.maximum([found.A, found.B, found.E, found.alpha, found.beta], 1e-300))
  if flops is None:
    flops = allocation.default_budgets(table["flops"]) if "flops" in table.columns else ()
  flops = tuple(dict.fromkeys(map(float, flops)))
  quantities = allocation.Quantities(forms.LAWS["chinchilla"], flops)
  problem = solve.make_problem(LINEAR, {})
  data = lawfit.make_data(table, LINEAR, solve.L2_DELTA, cluster)
  starts = LINEAR.starts(data.x, data.y)
  at_boundary = min(found.A, found.B, found.E) <= 0
  if found.at_edge or at_boundary:
    lost = [n for n in ("A", "B", "E") if getattr(found, n) <= 0] or ["alpha", "beta"]
    known = identify.find(problem, data, theta, starts, quantities)
    why = known.words(LINEAR) if not known else (
      f"law=varpro: {', '.join(lost)}: the optimum lies at a boundary; vary N, D and their ratio, or "
      "fit without intervals (force=True, --force)"
    )  # fmt: skip
    if not force:
      raise ConfigError(why)
    notes.append(f"forced: {why}")
    estimates = lawfit.estimates_of(quantities, theta, {})
    return VarProTable(estimates, found.rss, table, confidence, 0, seed, tuple(notes))
  theta = solve.minimise(
    problem, data.x, data.y, theta[None], delta=solve.L2_DELTA, first_delta=solve.L2_DELTA
  ).theta[0]
  known = identify.check(problem, data, theta, starts, quantities, force)
  methods = ("case", "delta") if n_boot else ("delta",)
  value = 0.5 * found.rss
  spread = lawfit.find_intervals(
    problem, data, theta, value, quantities, methods, n_boot, seed, confidence
  )
  lack = adequacy.lack_of_fit(problem, data, theta)
  estimates = lawfit.judged(
    lawfit.estimates_of(quantities, theta, spread.limits, spread.se, problem, spread.boot_se),
    known,
    lack,
    lawfit.moved(problem, data, theta, quantities, table, lack),
    table,
    force,
  )
  if not known:
    notes.append(f"forced: {known.words(LINEAR)}")
  return VarProTable(estimates, found.rss, table, confidence, n_boot, seed, tuple(notes), lack)


def _project(u, v, loss, weight, alpha, beta):
  """(rss [G], coefficients [G, 3] of (E, A', B')) for exponent pairs [G]; coefficients >= 0.

  Of the non-negative least-squares faces, those without one of the three are tried too.
  """
  basis = np.stack(
    [np.ones((len(alpha), len(u))), np.exp(-alpha[:, None] * u), np.exp(-beta[:, None] * v)], axis=2
  )
  basis, target = basis * weight[:, None], loss * weight
  best, coef = np.full(len(alpha), np.inf), np.zeros((len(alpha), 3))
  for columns in ([0, 1, 2], [1, 2], [0, 1], [0, 2]):
    c = np.linalg.pinv(basis[:, :, columns], rcond=1e-12) @ target
    rss = ((target - (basis[:, :, columns] @ c[:, :, None])[:, :, 0]) ** 2).sum(1)
    better = (c >= 0).all(1) & (rss < best)
    best = np.where(better, rss, best)
    full = np.zeros((len(alpha), 3))
    full[:, columns] = c
    coef = np.where(better[:, None], full, coef)
  return best, coef


def varpro_fit(
  n_params,
  n_tokens,
  loss,
  *,
  exponents=(0.01, 2.0),
  relative: bool = False,
  grid: int = 48,
  rounds: int = 24,
) -> VarProFit:
  """Fits by a grid of exponents, then by ever smaller grids about the best.

  Args:
    n_params, n_tokens, loss: [n].
    exponents: range searched for both.
    relative: weigh each residual by 1 / loss.

  Raises:
    ValueError: fewer than 6 runs.
  """
  n_params, n_tokens, loss = (np.asarray(v, np.float64) for v in (n_params, n_tokens, loss))
  if len(loss) < 6:
    raise ValueError(f"rows={len(loss)}: five parameters need at least 6 runs; give more")
  log_n, log_d = np.log(n_params), np.log(n_tokens)
  # Centred, so that the three columns have one size.
  u, v = log_n - log_n.mean(), log_d - log_d.mean()
  weight = 1 / loss if relative else np.ones_like(loss)
  low, high = exponents
  span = np.geomspace(low, high, grid)
  alpha, beta = (m.ravel() for m in np.meshgrid(span, span))
  half = np.log(high / low) / (grid - 1)
  for i in range(rounds + 1):
    rss, coef = _project(u, v, loss, weight, alpha, beta)
    k = int(rss.argmin())
    best = alpha[k], beta[k], coef[k], rss[k]
    if i == 0:
      at_edge = bool({best[0], best[1]} & {span[0], span[-1]})
    near = np.exp(np.linspace(-half, half, 7))
    alpha, beta = (m.ravel() for m in np.meshgrid(best[0] * near, best[1] * near))
    half *= 0.5
  a, b, (e, scale_a, scale_b), rss = best
  return VarProFit(
    float(scale_a * np.exp(a * log_n.mean())),
    float(scale_b * np.exp(b * log_d.mean())),
    float(e),
    float(a),
    float(b),
    float(rss),
    at_edge,
  )
