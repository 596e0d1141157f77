"""IsoFLOP analysis (approach 2): the best size and token count of each budget, and their power laws in C.

Hoffmann et al. 2022, arXiv:2203.15556 §3.2; Akima optima and 1/sigma^2 weights as in Porian et al.
2024, arXiv:2406.19146. Budgets whose lowest loss is at the edge of their sizes are rejected by name.
A parabola is only the beginning of a slice's shape: whether it is enough is tested and said.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.laws import adequacy, allocation, curves, intervals, lawfit
from experiments.laws.result import Estimate, Result, to_plain
from experiments.laws.table import Table
from lm.config.errors import ConfigError, number_of

LEAST_HELD = 0.5  # share of resamples that must have an optimum inside the sizes


@dataclasses.dataclass(frozen=True)
class Slice:
  """One budget. Optima are None where rejected, with `status` saying why; sd is of the natural log."""

  flops: float
  n_params: np.ndarray
  n_tokens: np.ndarray
  loss: np.ndarray
  status: str
  n_opt: float | None = None
  d_opt: float | None = None
  loss_opt: float | None = None
  sd_log_n: float | None = None
  sd_log_d: float | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class IsoFlopFit(Result):
  """N* = k_N C^a and D* = k_D C^b with intervals.

  `estimates`: a, b, a+b, log10 k's, N* and D* at budgets. Intervals: "scatter" is the t-interval of the
  regression through the optima (none for two budgets, whose line passes through both); "noise" resamples
  the points inside every slice. `bias_a` and `bias` are what the same procedure gets wrong on noise-free
  losses of the parametric law fitted to the same runs: of the exponent, and of each N* and D* as
  found / true - 1; `bias_slices` is that of N* in each used slice. `lack_of_fit` judges the shape of the
  slices and of the path through the optima; where it fails, or the bias counts against the intervals,
  they begin with one that is widened by the bias, or are withheld if the bias is not known.
  """

  method: str
  slices: tuple[Slice, ...]
  estimates: dict[str, Estimate]
  boots: np.ndarray  # [n_boot, 4] (log k_N, a, log k_D, b)
  bias_a: float | None
  law: lawfit.LawFit | None
  confidence: float
  n_boot: int
  seed: int
  table: Table
  notes: tuple[str, ...]
  bias: dict[str, float] = dataclasses.field(default_factory=dict)
  bias_slices: tuple[float, ...] = ()
  lack_of_fit: adequacy.LackOfFit | None = None

  @property
  def used(self) -> tuple[Slice, ...]:
    return tuple(s for s in self.slices if s.status == "ok")

  def __getitem__(self, name: str) -> Estimate:
    return self.estimates[name]

  @property
  def size_exponent(self) -> Estimate:
    """The exponent of N* in C."""
    return self["a"]

  def to_json(self) -> dict:
    """Plain dicts, lists and numbers."""
    return to_plain(
      {
        "method": self.method,
        "estimates": self.estimates,
        "bias_a": self.bias_a,
        "bias": self.bias,
        "bias_slices": self.bias_slices,
        "lack_of_fit": self.lack_of_fit,
        "slices": self.slices,
        "confidence": self.confidence,
        "n_boot": self.n_boot,
        "seed": self.seed,
        "columns": self.table.source,
        "skipped": self.table.skipped,
        "notes": self.notes,
      }
    )

  def summary(self) -> str:
    """A text table of budgets and of what follows from them."""
    lines = [f"isoFLOP ({self.method}): {len(self.used)} of {len(self.slices)} budgets used"]
    for s in self.slices:
      found = (
        f"N* {s.n_opt:.4g}  D* {s.d_opt:.4g}  loss {s.loss_opt:.5g}  sd log N* {s.sd_log_n:.3f}"
        if s.status == "ok"
        else f"rejected: {s.status}"
      )
      lines.append(f"  C {s.flops:.3g}  {number_of(len(s.loss), 'point')}  {found}")
    if self.lack_of_fit is not None:
      lines.append(f"verdict: {self.lack_of_fit.text}")
    for e in self.estimates.values():
      limits = "  ".join(f"{m} {self.confidence:.0%} {e.said(m)}" for m in e.intervals)
      lines.append(f"{e.name:14s} {e.value:.5g}  {limits or e.withheld.split(':')[0]}")
    if self.bias_a is not None:
      lines.append(
        f"bias of a from the {self.method} and this grid, without noise: {self.bias_a:+.4f}"
      )
      low, high = min(self.bias_slices), max(self.bias_slices)
      far = ", ".join(f"{k} {v:+.1%}" for k, v in self.bias.items() if k.startswith("N*"))
      lines.append(f"bias of N*: {low:+.1%} .. {high:+.1%} in the slices; {far}")
    said = [n for n in self.notes if not n.startswith("budget ")]  # the list above says why
    return "\n".join(lines + [f"note: {n}" for n in said])


def budget_groups(flops: np.ndarray, tolerance: float = 0.1) -> np.ndarray:
  """[n] group numbers: runs whose FLOPs differ by less than `tolerance` (relative) from a neighbour."""
  order = np.argsort(flops)
  steps = np.diff(np.log(flops[order])) > np.log1p(tolerance)
  groups = np.empty(len(flops), int)
  groups[order] = np.concatenate([[0], np.cumsum(steps)])
  return groups


def _one_slice(table: Table, rows: np.ndarray, within: float | None, force: bool):
  """(flops, N, D, loss) of one budget in order of N; runs of equal N are averaged (seeds).

  Raises:
    ConfigError: losses at one size so far apart that they are of two kinds, unless `force`.
  """
  n, d, loss = (table[k][rows] for k in ("n_params", "n_tokens", "loss"))
  if within is not None:
    near = np.abs(np.log(n / n[loss.argmin()])) <= np.log(within)
    n, d, loss, rows = n[near], d[near], loss[near], rows[near]
  sizes, member = np.unique(n, return_inverse=True)
  mean = lambda v: np.bincount(member, v) / np.bincount(member)
  flops = float(np.exp(np.log(table["flops"][rows]).mean()))
  for i in np.flatnonzero(np.bincount(member) > 1):
    low, high = loss[member == i].min(), loss[member == i].max()
    if high > (1 + lawfit.APART) * low and not force:
      raise ConfigError(
        f"loss: runs of n_params {sizes[i]:.4g} at about {flops:.3g} FLOPs have losses from {low:.4g} to "
        f"{high:.4g}, which noise does not explain; keep one kind of run (where, --where), or average "
        "them all the same (force=True, --force)"
      )
  return flops, sizes, np.exp(mean(np.log(d))), mean(loss)


def _problem_of(method: str, flops, n, loss, min_points: int) -> str:
  """Why a slice cannot be used, or "ok"."""
  least = max(min_points, curves.DEGREE.get(method, 2) + 2)
  if len(n) < least:
    return f"{number_of(len(n), 'size')}, fewer than {least}"
  lowest = int(loss.argmin())
  if lowest in (0, len(n) - 1):
    side = "smallest" if lowest == 0 else "largest"
    return f"the lowest loss is at the {side} size, {n[lowest]:.3g}: the optimum is not bracketed"
  _, _, inside = curves.minimum(method, np.log(n), loss)
  return "ok" if inside[0] else f"the {method} has no minimum between the sizes"


def isoflop_fit(
  table: Table,
  *,
  budget: str | None = None,
  tolerance: float = 0.1,
  method: str = "parabola",
  within: float | None = None,
  loss_sd: float | None = None,
  weighted: bool = True,
  n_boot: int = 1000,
  seed: int = 0,
  confidence: float = 0.95,
  flops: Sequence[float] | None = None,
  min_points: int = 4,
  bias: bool = True,
  flop_factor: float = allocation.FLOP_FACTOR,
  force: bool = False,
) -> IsoFlopFit:
  """Optimum of each budget, and its power laws in C by 1/sigma^2-weighted log-log regression.

  Args:
    budget: column that names the budget; None: runs within `tolerance` of each other's FLOPs are one.
    method: of curves.METHODS.
    within: keep the sizes within this factor of the lowest point's; None: all.
    loss_sd: standard deviation of a loss; None: pooled residuals, about parabolas or, for akima,
      about each point's neighbours.
    weighted: weigh each optimum by 1 / sigma^2 from the resamples; False: all alike.
    flops: budgets for N* and D*; None: the largest in the table and ten times it.
    bias: fit the parametric law too, for `bias_a` and `bias`.
    force: average losses at one size however far apart they are; keep the intervals of slices whose
      shape the method does not have.

  Raises:
    ConfigError: losses at one size that are of two kinds.
    ValueError: fewer than two usable budgets (each rejection is named).
  """
  if method not in curves.METHODS:
    raise ValueError(f"method={method!r}: not known; choose one of {', '.join(curves.METHODS)}")
  table = table.with_flops(flop_factor).need("n_params", "n_tokens", "flops", "loss")
  groups = (
    budget_groups(table["flops"], tolerance)
    if budget is None
    else np.unique(table[budget], return_inverse=True)[1]
  )
  taken = [np.flatnonzero(groups == g) for g in range(groups.max() + 1)]
  cut = [_one_slice(table, rows, within, force) for rows in taken]
  status = [_problem_of(method, c, n, loss, min_points) for c, n, _, loss in cut]
  good = [i for i, s in enumerate(status) if s == "ok"]
  if len(good) < 2:
    why = "; ".join(f"C {c[0]:.3g}: {s}" for c, s in zip(cut, status, strict=True) if s != "ok")
    raise ValueError(
      f"isoflop: {number_of(len(good), 'usable budget')}, two are needed ({why[:300]})"
    )
  rng = np.random.default_rng(seed)
  samples = _resampled([cut[i] for i in good], method, loss_sd, n_boot, rng)
  slices, optima, spread = _optima(cut, status, good, samples, method)
  logs_c = np.log([s.flops for s in slices if s.status == "ok"])
  if len(logs_c) < 2:
    raise ValueError(f"isoflop: {len(logs_c)} of {len(good)} optima survive the noise; add sizes")
  if flops is None:
    flops = allocation.default_budgets(table["flops"])
  flops = tuple(dict.fromkeys(map(float, flops)))
  estimates, boots = _regress(
    logs_c, optima, spread if weighted else np.ones_like(spread), flops, confidence
  )
  notes = list(table.notes) + _notes(table, slices, optima, flop_factor)
  repeated = sum(len(rows) for rows in taken) - sum(len(s.loss) for s in slices)
  if repeated and within is None:
    notes.append(
      f"{number_of(repeated, 'run')} of a size that the budget has already; losses at one size were averaged"
    )
  if len(logs_c) == 2:
    notes.append("two budgets: a line passes through both optima, so its scatter says nothing")
  product = estimates["a+b"]
  if abs(product.value - 1) > 0.02 and not any(a <= 1 <= b for a, b in product.intervals.values()):
    notes.append(
      f"a + b = {product.value:.3f}, not 1: these FLOPs do not grow as N D, or the optima are not true"
    )
  law, bias_a, biases, of_slices = None, None, {}, ()
  if bias:
    options = {"budget": budget, "tolerance": tolerance, "within": within, "min_points": min_points}
    options |= {"method": method, "flop_factor": flop_factor, "flops": flops, "force": force}
    law, bias_a, biases, of_slices = _bias(
      table, [s for s in slices if s.status == "ok"], **options
    )
    if bias_a is None:
      notes.append(
        "bias of the method not stated: the parametric law could not be fitted to these runs"
      )
    elif law.lack_of_fit is not None and law.lack_of_fit.fails:
      notes.append(
        "the parametric law by which the bias is measured does not describe these runs itself: "
        f"{law.lack_of_fit.text}"
      )
  lack = _lack_of_fit([s for s in slices if s.status == "ok"], method, logs_c, optima[0, :, 0])
  estimates = _judged(estimates, lack, bias_a, biases, method, force)
  return IsoFlopFit(
    method,
    tuple(slices),
    estimates,
    boots,
    bias_a,
    law,
    confidence,
    n_boot,
    seed,
    table,
    tuple(notes),
    biases,
    of_slices,
    lack,
  )


def _resampled(good, method, loss_sd, n_boot, rng):
  """For each usable slice, losses [1 + n_boot, n]: as measured, then resampled.

  An Akima spline is no smoother than the losses, so there the noise is added to the losses themselves.
  """
  degree = curves.DEGREE.get(method, 2)
  noise_of = lambda u, y: (
    curves.local_noise(u, y) if method == "akima" else curves.noise_of(u, y, degree)
  )
  pooled = np.concatenate([noise_of(np.log(n), loss) / loss.mean() for _, n, _, loss in good])
  out = []
  for _, n, _, loss in good:
    if loss_sd is None:
      noise = loss * rng.choice(pooled, (n_boot, len(n)))
    else:
      noise = float(loss_sd) * rng.standard_normal((n_boot, len(n)))
    fitted = loss_sd is None and method != "akima"
    smooth = curves.polynomial(np.log(n), loss[None], degree)[0] if fitted else loss
    out.append(np.vstack([loss[None], smooth + noise]))
  return out


def _optima(cut, status, good, samples, method):
  """(slices, optima [R, slices, (log N, log D, loss)], spread [slices, 2] robust sd of log N, log D).

  A budget most of whose resamples have no optimum between its sizes has none to speak of.
  """
  slices = [Slice(*c, status=s) for c, s in zip(cut, status, strict=True)]
  optima = np.full((len(samples[0]), len(good), 3), np.nan)
  spread = np.ones((len(good), 2))
  held = np.ones(len(good), bool)
  for k, (i, y) in enumerate(zip(good, samples, strict=True)):
    _, n, d, _ = cut[i]
    for axis, values in enumerate((n, d)):
      order = np.argsort(values)
      at, low, inside = curves.minimum(method, np.log(values[order]), y[:, order])
      optima[:, k, axis] = np.where(inside, at, np.nan)
      if axis == 0:
        optima[:, k, 2] = np.where(inside, low, np.nan)
      share = np.isfinite(optima[1:, k, axis]).mean() if len(y) > 1 else 1.0
      held[k] &= share >= LEAST_HELD
      if len(y) > 1 and share > 0:
        quartiles = np.nanquantile(optima[1:, k, axis], [0.25, 0.75])
        spread[k, axis] = max((quartiles[1] - quartiles[0]) / 1.349, 1e-6)
    if not held[k]:
      why = f"only {share:.0%} of resampled slices have an optimum between the sizes"
      slices[i] = dataclasses.replace(slices[i], status=why)
      continue
    slices[i] = dataclasses.replace(
      slices[i],
      n_opt=float(np.exp(optima[0, k, 0])),
      d_opt=float(np.exp(optima[0, k, 1])),
      loss_opt=float(optima[0, k, 2]),
      sd_log_n=float(spread[k, 0]),
      sd_log_d=float(spread[k, 1]),
    )
  return slices, optima[:, held], spread[held]


def weights_of(spread: np.ndarray) -> np.ndarray:
  """1 / sigma^2 [slices], each sigma^2 [slices] moved halfway to their mean: a slice's own sigma is itself
  uncertain, and one that is small by chance must not decide the exponent."""
  return 2 / (spread**2 + (spread**2).mean())


def _regress(logs_c, optima, spread, flops, level):
  """Power laws of N* and D*; ({name: Estimate}, bootstrap coefficients [n_boot, 4])."""
  from scipy.stats import t

  centre = logs_c.mean()
  basis = np.stack([np.ones_like(logs_c), logs_c - centre], axis=1)
  targets = np.log(np.asarray(flops)) - centre
  reach = t.ppf((1 + level) / 2, max(len(logs_c) - 2, 1))
  values, scatter, noise, draws = {}, {}, {}, []
  for axis, (name, exponent) in enumerate((("N", "a"), ("D", "b"))):
    weights = weights_of(spread[:, axis])
    coef = curves.weighted_line(basis, optima[0, :, axis], weights)
    cov = curves.line_covariance(basis, optima[0, :, axis], weights)
    # a resample without an optimum in some slice says nothing of that slice: its own point stands in
    filled = np.where(np.isfinite(optima[1:, :, axis]), optima[1:, :, axis], optima[:1, :, axis])
    many = curves.weighted_line(basis, filled, weights)
    rows = {
      exponent: np.array([0.0, 1.0]),
      f"log10 k_{name}": np.array([1.0, -centre]) / np.log(10),
    }
    rows |= {
      f"{name}*@{allocation.key(c)}": np.array([1.0, u])
      for c, u in zip(flops, targets, strict=True)
    }
    for key, row in rows.items():
      values[key], half = coef @ row, reach * np.sqrt(row @ cov @ row)
      scatter[key], noise[key] = (values[key] - half, values[key] + half), many @ row
    draws += [noise[f"log10 k_{name}"] * np.log(10), noise[exponent]]
  values["a+b"], noise["a+b"] = values["a"] + values["b"], noise["a"] + noise["b"]
  # N* and D* of a slice come from the same losses, and their errors nearly cancel in N* D*
  product = optima[0, :, :2].sum(1)
  half = reach * np.sqrt(curves.line_covariance(basis, product, weights_of(spread[:, 0]))[1, 1])
  scatter["a+b"] = (values["a+b"] - half, values["a+b"] + half)
  boots = np.stack(draws, axis=1)
  estimates = {}
  for key, value in values.items():
    printed = np.exp if "@" in key else (lambda v: v)
    limits = {"scatter": scatter[key]} if len(logs_c) > 2 else {}
    if len(boots):
      limits["noise"] = tuple(intervals.percentile(noise[key][:, None], level)[:, 0])
    pairs = {m: (float(printed(a)), float(printed(b))) for m, (a, b) in limits.items()}
    estimates[key] = Estimate(
      key, float(printed(value)), MEANINGS.get(key[:2].strip("*@"), ""), pairs, None
    )
  return estimates, boots


MEANINGS = {
  "a": "exponent of N* in C",
  "b": "exponent of D* in C",
  "a+": "1 if N* D* grows as C",
  "lo": "log10 of the scale",
  "N": "compute-optimal parameters",
  "D": "compute-optimal tokens",
}


def _notes(table, slices, optima, flop_factor):
  notes = [f"budget {s.flops:.3g} rejected: {s.status}" for s in slices if s.status != "ok"]
  lost = np.isnan(optima[1:, :, 0]).mean() if len(optima) > 1 else 0.0
  if lost > 0.01:
    notes.append(f"{lost:.1%} of the resampled slices had no optimum inside their sizes")
  ratio = np.median(table["flops"] / (flop_factor * table["n_params"] * table["n_tokens"]))
  if not 0.9 < ratio < 1.1:
    notes.append(f"flops is {ratio:.3g} x {flop_factor:g} N D (median)")
  return notes + table.left_out()


def _bias(table, used, **options):
  """(parametric fit, a of this procedure on that law's own noise-free losses - the law's a, {N*@C, D*@C:
  found / true - 1}, the same for N* of each slice in `used`)."""
  try:
    law = lawfit.fit_table(
      table, "chinchilla", objective="l2", n_boot=0, methods=("delta",), n_starts=128,
      holdout=False, flops=(*options["flops"], *(s.flops for s in used)), force=True,
    )  # fmt: skip
    if law.not_identified:
      return None, None, {}, ()
    clean = dataclasses.replace(table, columns=table.columns | {"loss": law.predict(table.columns)})
    ideal = isoflop_fit(clean, n_boot=0, bias=False, **options)
  except ValueError:
    return None, None, {}, ()
  far = {k: e.value / law[k].value - 1 for k, e in ideal.estimates.items() if "*@" in k}
  found = {s.flops: s.n_opt for s in ideal.used}
  true = lambda s: law[f"N*@{allocation.key(s.flops)}"].value
  near = tuple(found[s.flops] / true(s) - 1 for s in used if s.flops in found)
  if not near:
    return None, None, {}, ()
  return law, ideal["a"].value - law["a"].value, far, near


def _lack_of_fit(used, method, logs_c, log_n) -> adequacy.LackOfFit:
  """Two F tests: of the slices' shape against one degree more (all slices pooled, relative losses), and
  of the optima's line in log C against a parabola."""
  from scipy.stats import f as f_law

  tests, misfit, visible = {}, 0.0, float("nan")
  degree = curves.DEGREE.get(method)
  if degree is not None:
    simple, richer, rows = 0.0, 0.0, 0
    slices = [s for s in used if len(s.loss) > degree + 2]
    for s in slices:
      u, y = np.log(s.n_params), s.loss[None] / s.loss.mean()
      simple += ((y - curves.polynomial(u, y, degree)) ** 2).sum()
      richer += ((y - curves.polynomial(u, y, degree + 1)) ** 2).sum()
      rows += len(u)
    k, dof = len(slices), rows - (degree + 2) * len(slices)
    if k and dof >= 3 and richer > 1e-20 * rows:
      stat = (simple - richer) / k / (richer / dof)
      tests["shape of the slices"] = (float(stat), k, dof, float(f_law.sf(stat, k, dof)))
      misfit = float(np.sqrt(max(simple - richer - k * richer / dof, 0) / rows))
      visible = float(np.sqrt(2 * k * richer / dof / rows))
    elif k and simple > 1e-16 * rows:
      tests["shape of the slices"] = (np.inf, k, max(dof, 0), 0.0) if dof >= 3 else (0.0, k, 0, 1.0)
      misfit = float(np.sqrt(simple / rows))
  if len(logs_c) >= 4:
    y = log_n[None]
    line, bent = (((y - curves.polynomial(logs_c, y, d)) ** 2).sum() for d in (1, 2))
    if bent > 1e-20:
      dof = len(logs_c) - 3
      stat = (line - bent) / (bent / dof)
      tests["path of the optima"] = (float(stat), 1, dof, float(f_law.sf(stat, 1, dof)))
  if not tests:
    text = f"shape of the slices not tested: too few sizes, or no degree above a {method}'s"
    return adequacy.LackOfFit("not tested", None, {}, 0.0, visible, (), text)
  p = min(1.0, len(tests) * min(t[3] for t in tests.values()))
  worst = min(tests, key=lambda k: tests[k][3])
  f, k, dof, _ = tests[worst]
  said = f"{worst}: F = {f:.3g} on {k} and {dof}, p = {p:.2g}"
  if p >= adequacy.LEVEL:
    text = f"no lack of fit found ({said})"
    return adequacy.LackOfFit("passes", p, tests, misfit, visible, (), text)
  if worst == "path of the optima":
    text = f"the optima do not lie on a power law of compute ({said}); do not extrapolate it"
  else:
    shape = "cubic" if method == "cubic" else "parabola"
    remedy = "akima" if method == "cubic" else "cubic"
    text = (
      f"a {shape} does not describe these slices ({said}): it is off by {misfit:.2%} of the loss (rms) "
      f"beyond the noise, and its minimum with it; use method={remedy}, or sizes nearer the optimum "
      "(within)"
    )
  return adequacy.LackOfFit("fails", p, tests, misfit, visible, (worst,), text)


BIAS_COUNTS = 0.25  # of an interval's half-width: from here on the interval is widened by the bias


def _judged(estimates, lack, bias_a, biases, method, force) -> dict[str, Estimate]:
  """Estimates with a first interval widened by the method's bias where that counts or the slices have
  another shape; with none where that shape's bias is not known."""
  if method in curves.DEGREE and lack.fails and bias_a is None and not force:
    withheld = f"withheld: {lack.text}"
    return {
      k: dataclasses.replace(e, intervals={}, withheld=withheld) for k, e in estimates.items()
    }
  if bias_a is None:
    return estimates
  shifts = {"a": bias_a, "b": -bias_a} | {k: float(np.log1p(v)) for k, v in biases.items()}
  out = {}
  for key, e in estimates.items():
    to, back = (np.log, np.exp) if "*@" in key else (np.asarray, float)
    shift = shifts.get(key, 0.0)
    ends = [(float(to(a)), float(to(b))) for a, b in e.intervals.values()]
    half = max([(b - a) / 2 for a, b in ends], default=0.0)
    if ends and shift and (lack.fails or abs(shift) > BIAS_COUNTS * half):
      low = min(min(a, a - shift) for a, _ in ends)
      high = max(max(b, b - shift) for _, b in ends)
      hull = (float(back(low)), float(back(high)))
      e = dataclasses.replace(e, intervals={lawfit.WIDENED: hull, **e.intervals})
    out[key] = e
  return out


def power_law_of_optima(flops, optima, sd_log=None, level: float = 0.95) -> Estimate:
  """Exponent of optima [n] against FLOPs [n], weighted by 1 / sd_log^2, with its t-interval.

  For published pairs (C, N*): no slices needed.
  """
  from scipy.stats import t

  logs_c = np.log(np.asarray(flops, float))
  basis = np.stack([np.ones_like(logs_c), logs_c - logs_c.mean()], axis=1)
  weights = np.ones(len(logs_c)) if sd_log is None else np.asarray(sd_log, float) ** -2.0
  logs = np.log(np.asarray(optima, float))
  coef = curves.weighted_line(basis, logs, weights)
  se = float(np.sqrt(curves.line_covariance(basis, logs, weights)[1, 1]))
  half = float(t.ppf((1 + level) / 2, max(len(logs_c) - 2, 1))) * se
  value = float(coef[1])
  return Estimate(
    "exponent", value, "d log optimum / d log C", {"scatter": (value - half, value + half)}, se
  )
