"""`fit_table`: from a table of runs to a law with intervals, diagnostics and a statement of what was done."""

import dataclasses
import os
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.laws import adequacy, allocation, diagnostics, forms, identify, intervals, solve
from experiments.laws import table as table_module
from experiments.laws.columns import plain
from experiments.laws.result import Estimate, LawFit, Outliers
from experiments.laws.table import ALIASES, Table, from_columns
from lm.config.errors import ConfigError

WIDENED = "widened"  # the method's name of intervals that hold what parts of the runs give too
METHODS = ("case", "bca", "noise", "delta", "profile")
NO_OUTLIERS = Outliers()
LEAST_STARTS = 256  # where fixed parameters leave fewer of a law's grid, more are drawn
WIDER = 1.1  # Huber intervals that much wider than least squares' get a sentence
APART = 0.2  # losses at the same inputs that differ by more than 20 % are not noise
REACHED = 1e-6  # a start reached the optimum if its objective is within this share of the best


def _delta_of(objective: str, delta: float) -> float:
  deltas = {"huber": delta, "lad": solve.LAD_DELTA, "l2": solve.L2_DELTA}
  if objective not in deltas:
    raise ValueError(f"objective={objective!r}: not known; choose one of {', '.join(deltas)}")
  if not deltas[objective] > 0:
    raise ValueError(f"delta={delta:g}: Huber's threshold must be > 0; 1e-3 is the usual one")
  return deltas[objective]


def law_of(name: str | forms.Law) -> forms.Law:
  if isinstance(name, forms.Law):
    return name
  if name not in forms.LAWS:
    raise ValueError(f"law={name!r}: not known; choose one of {', '.join(forms.LAWS)}")
  return forms.LAWS[name]


def prepare(
  table: Table, law: forms.Law, outliers: Outliers, flop_factor: float, *others: str | None
) -> Table:
  """The rows and columns a law needs, with FLOPs where they can be had, less the outliers."""
  table = table.with_flops(flop_factor)
  table = table.need(*law.inputs, law.target, *(o for o in others if o))
  if law.target == "accuracy" and table["accuracy"].max() > 1:
    raise ConfigError(
      f"accuracy={table['accuracy'].max():g}: must be a share in (0, 1]; of percents say --unit accuracy=0.01"
    )
  return without_outliers(table, outliers)


def without_outliers(table: Table, outliers: Outliers) -> Table:
  """The rows that meet --min_flops and are not among the highest losses; the others are skipped by name."""
  if outliers.min_flops is not None:
    table = table.need("flops")
    table = table.take(
      table["flops"] >= outliers.min_flops, f"flops below {outliers.min_flops:.3g}"
    )
  if outliers.drop_highest_loss:
    rank = np.argsort(np.argsort(-table["loss"], kind="stable"), kind="stable")
    why = f"among the {outliers.drop_highest_loss} highest losses"
    table = table.take(rank >= outliers.drop_highest_loss, why)
  return table


def fit_table(
  table: Table,
  law: str | forms.Law = "chinchilla",
  *,
  objective: str = "huber",
  delta: float = 1e-3,
  residual: str | None = None,
  n_boot: int = 1000,
  seed: int = 0,
  fixed: Mapping[str, float] | None = None,
  tied: Sequence[Sequence[str]] = (),
  outliers: Outliers = NO_OUTLIERS,
  confidence: float = 0.95,
  methods: Sequence[str] = ("case", "bca", "delta"),
  flops: Sequence[float] | None = None,
  points: Sequence[Mapping[str, float]] = (),
  n_starts: int | None = None,
  cluster: str | None = None,
  weights: str | None = None,
  sd: str | None = None,
  flop_factor: float = allocation.FLOP_FACTOR,
  flop_exponent: float = 1.0,
  holdout: float | bool = True,
  force: bool = False,
) -> LawFit:
  """Fits `law` to `table`, puts an interval on everything it is asked for, and judges the law's form.

  Args:
    law: a name of LAWS, or a law (user_law.parse).
    objective: of residuals r, "huber" (sum of Huber_delta(r)), "lad" (sum of |r|), "l2" (sum of r^2 / 2).
    residual: "log" (log observed - log predicted) or "linear" (observed - predicted, delta in its unit);
      None: the law's own.
    n_boot: bootstrap samples; 0 leaves "case", "bca" and "noise" out.
    fixed: printed values by parameter; tied: groups of parameters that share one value.
    methods: intervals wanted, of METHODS; the first is the one reports show.
    flops: budgets for N*, D* and the optimal loss; None: the largest in the table and ten times it.
    points: rows whose loss is wanted, as {column: value}.
    n_starts: None: the law's whole grid of starts, and more where fixed parameters leave few of them;
      else this many, drawn with `seed`.
    cluster: a column of table.labels whose equal values are resampled together (points of one run);
      None: what the table says (`table.clusters`), and copies of one row.
    weights: a column by which each row's loss is multiplied; sd: one of standard deviations of the target,
      which weighs rows by 1 / sd^2. One of the two at most.
    flop_factor, flop_exponent: N* and D* spend C = factor N^exponent D (allocation.flop_law).
    holdout: True: hold out the largest compute, for the extrapolation error; a number: above these FLOPs.
    force: fit although some parameters are not identified, and give those no interval; let a law that
      fails its test extrapolate; take losses that differ too much at the same inputs.

  Raises:
    ConfigError: parameters that these runs cannot tell apart, or losses that cannot be of one law.
    ValueError: unknown names, or a table that cannot carry the law (fewer rows than parameters + 1).
  """
  base, threshold = law_of(law), _delta_of(objective, delta)
  form = forms.with_link(base, residual or base.link)
  _check_options(methods, confidence, weights, sd)
  problem = solve.make_problem(form, dict(fixed or {}), tuple(map(tuple, tied)))
  if flop_exponent != 1 and base.name == "overtraining":
    raise ValueError(
      "flop_exponent: overtraining has a closed form for C = k N D only; leave it at 1"
    )
  table = prepare(table, base, outliers, flop_factor, weights, sd)
  rows = (cluster, weights, sd)
  table, data, starts, out = _solve(
    problem, table, threshold, outliers, rows, n_starts, seed, force
  )
  best = _lowest(out)
  theta, value = out.theta[best], float(out.objective[best])
  has_flops = "flops" in table.columns and bool(np.isfinite(table["flops"]).all())
  if flops is None:
    flops = allocation.default_budgets(table["flops"]) if has_flops else ()
  flops = tuple(dict.fromkeys(map(float, flops)))
  asked = tuple(dict.fromkeys(tuple(p.items()) for p in points))
  quantities = allocation.Quantities(
    forms.with_link(base, "log") if base.target == "loss" else base,
    flops,
    asked,
    flop_factor,
    flop_exponent,
  )
  known = identify.check(problem, data, theta, starts, quantities, force)
  found = find_intervals(problem, data, theta, value, quantities, methods, n_boot, seed, confidence)
  condition = diagnostics.conditioning(problem, data, theta)
  notes = [*table.notes, *condition.warnings]
  notes += _remarks(problem, theta, table, quantities, has_flops)
  fit_of_form = adequacy.lack_of_fit(problem, data, theta, table.texts)
  resid = data.y - intervals.predict(form, theta, data.x)
  if kind := fit_of_form.kind:
    notes.append(f"runs of several kinds by {kind!r}: fit one with --where {kind}=VALUE")
  estimates = judged(
    estimates_of(quantities, theta, found.limits, found.se, problem, found.boot_se),
    known,
    fit_of_form,
    moved(problem, data, theta, quantities, table, fit_of_form),
    table,
    force,
  )
  if not known:
    notes.append(f"forced: {known.words(form)}")
  if found.failed:
    notes.append(f"{found.failed} of {n_boot} bootstrap refits came to no optimum and are left out")
  notes += _width_note(objective, data, resid)
  held = None
  if holdout is not False and has_flops:
    held, why_not = _held_out(
      problem, data, table["flops"], theta, starts, holdout, confidence, seed
    )
    notes += why_not
    if held is not None and fit_of_form.fails:
      held = held.of_a_law_that_fails()
  scale = max((data.w * np.abs(np.clip(resid, -threshold, threshold))).sum(), 1e-300)
  return LawFit(
    law=form,
    objective=objective,
    delta=delta if objective == "huber" else None,
    value=value / threshold + data.n * threshold / 2 if objective == "lad" else value,
    grad_norm=float(np.abs(out.grad[best]).max() / scale),
    share=float(np.mean(out.objective <= value * (1 + REACHED) + 1e-300)),
    n_starts=len(starts),
    estimates=estimates,
    theta=theta,
    boots=found.boots,
    table=table,
    residuals=resid,
    log_likelihood=intervals.log_likelihood(value, data.n, threshold),
    n_free=problem.n_free,
    confidence=confidence,
    n_boot=n_boot,
    seed=seed,
    flop_factor=flop_factor,
    flop_exponent=flop_exponent,
    outliers=outliers,
    conditioning=condition,
    holdout=held,
    notes=tuple(notes),
    lack_of_fit=fit_of_form,
    clusters=data.n_clusters if data.clustered else None,
    not_identified=known.names,
    failed_refits=found.failed,
    weighted_by=weights or (f"1 / {sd}^2" if sd else ""),
    covariance=found.cov,
  )


def fit(table, law: str | forms.Law = "chinchilla", **options) -> LawFit:
  """`fit_table` of whatever holds runs: a Table, a path, a pandas DataFrame or a mapping of columns.

  Columns are found by their usual spellings (table.ALIASES); `options` are those of `fit_table`.

  >>> import numpy as np
  >>> n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5)))
  >>> runs = {"params": n, "tokens": d, "loss": 1.7 + 400 / n**0.34 + 400 / d**0.28}
  >>> found = fit(runs, "chinchilla", n_boot=0, methods=(), n_starts=8)
  >>> round(found["alpha"].value, 3)
  0.34
  """
  return fit_table(as_table(table), law, **options)


def as_table(runs) -> Table:
  """A Table from a Table, a path, a pandas DataFrame or a mapping of columns.

  Columns of text become labels. Raises ValueError on anything else.
  """
  if isinstance(runs, Table):
    return runs
  if isinstance(runs, str | os.PathLike):
    return table_module.read_table(runs)
  try:
    columns = {str(k): np.asarray(runs[k]) for k in runs}
  except (TypeError, KeyError, IndexError):
    raise ValueError(
      f"table={type(runs).__name__}: must be a Table, a path, a DataFrame or a mapping of columns"
    ) from None
  spelled = {plain(s): ours for ours, names in ALIASES.items() for s in names}
  numbers, labels, source = {}, {}, {}
  for name, values in columns.items():
    try:
      numeric = values.astype(np.float64)
    except (TypeError, ValueError):
      labels[name] = values
      continue
    ours = name if name in ALIASES else spelled.get(plain(name), name)
    if ours in numbers and name != ours:
      continue  # the exact name was there already
    numbers[ours], source[ours] = numeric, name
  table = from_columns(numbers, labels)
  return dataclasses.replace(table, source=source)


def _check_options(methods, confidence, weights=None, sd=None):
  bad = [m for m in methods if m not in METHODS]
  if bad:
    raise ValueError(f"methods={bad[0]!r}: not known; choose among {', '.join(METHODS)}")
  if not 0 < confidence < 1:
    raise ValueError(f"confidence={confidence}: must lie between 0 and 1; 0.95 is usual")
  if weights and sd:
    raise ValueError(f"weights={weights}, sd={sd}: both weigh the rows; give one")


def _solve(problem, table, threshold, outliers, rows, n_starts, seed, force):
  """(table, data, starts, fits of every start), after dropping runs of large residual if asked to."""
  law = problem.law
  if len(table) <= problem.n_free:
    raise ValueError(
      f"rows={len(table)}: {law.name} has {problem.n_free} free parameters; give more runs or fix some"
    )
  refuse_two_scales(
    table, (*law.inputs, *(k for k in ("flops",) if k in table.columns)), law.target, force
  )
  data = make_data(table, law, threshold, *rows)
  starts = _starts(problem, data, n_starts, seed)
  run = lambda data: solve.search(
    problem, data.x, data.y, starts, delta=data.delta, weights=data.weights
  )
  out = run(data)
  if outliers.residual_mads is not None:
    resid = data.y - intervals.predict(law, out.theta[_lowest(out)], data.x)
    off = np.abs(resid - np.median(resid))
    far = off > outliers.residual_mads * 1.4826 * np.median(off)
    table = table.take(~far, f"residual beyond {outliers.residual_mads:g} MADs")
    data = make_data(table, law, threshold, *rows)
    out = run(data)
  return table, data, starts, out


def refuse_two_scales(table: Table, inputs: Sequence[str], target: str, force: bool) -> None:
  """ConfigError where runs at the same inputs have targets so far apart that they are of two kinds."""
  if force or target != "loss":
    return
  place = np.stack([np.round(np.log(table[k]), 6) for k in inputs])
  _, where = np.unique(place, axis=1, return_inverse=True)
  where, log_y = where.ravel(), np.log(table[target])
  for point in np.flatnonzero(np.bincount(where) > 1):
    rows = np.flatnonzero(where == point)
    apart = [rows[log_y[rows].argmin()], rows[log_y[rows].argmax()]]
    if np.ptp(log_y[apart]) > np.log1p(APART):
      first, second = sorted(apart)
      same = ", ".join(f"{k} {table[k][first]:.4g}" for k in inputs[:2])
      raise ConfigError(
        f"{target}: rows {table.rows[first]} and {table.rows[second]} have the same {same} but "
        f"{target} {table[target][first]:.4g} and {table[target][second]:.4g}, which noise does not explain; "
        "keep one kind of run (where, --where), or mix them all the same (force=True, --force)"
      )


def _lowest(out: solve.Solution) -> int:
  value = np.where(np.isfinite(out.objective), out.objective, np.inf)
  if not np.isfinite(value).any():
    raise ValueError("fit: no start gave a finite objective; check the units of the columns")
  return int(value.argmin())


def _held_out(problem, data, flops, theta, starts, holdout, level, seed):
  """(Holdout or None, notes): the extrapolation test; it may be left out unless a threshold was given."""
  above = diagnostics.holdout_threshold(flops) if holdout is True else float(holdout)
  some = np.random.default_rng(seed).permutation(len(starts))[:32]
  try:
    few = np.vstack([theta, starts[some]])
    return diagnostics.extrapolate(problem, data, flops, few, above, level, seed), []
  except ValueError as error:
    if holdout is not True:
      raise
    return None, [f"no extrapolation test: {error}"]


def make_data(
  table: Table,
  law: forms.Law,
  delta: float,
  cluster: str | None = None,
  weights: str | None = None,
  sd: str | None = None,
) -> intervals.Data:
  """Columns, targets, clusters and weights of a prepared table."""
  target = table[law.target]
  row_weights = None
  if weights:
    row_weights = table[weights]
  elif sd:
    row_weights = (target / table[sd] if law.link == "log" else 1 / table[sd]) ** 2
  if row_weights is not None:
    row_weights = row_weights / row_weights.mean()
  return intervals.Data(
    {k: table[k] for k in law.inputs},
    np.log(target) if law.link == "log" else target,
    delta,
    cluster_of(table, cluster, (*law.inputs, law.target)),
    row_weights,
  )


def cluster_of(table: Table, cluster: str | None, columns: Sequence[str]) -> np.ndarray:
  """[n] numbers of the groups that are resampled whole: by a label column, by what the table says of
  its rows, and, in any case, copies of one row."""
  if cluster is not None and cluster not in table.labels:
    raise ValueError(
      f"cluster={cluster!r}: not read as text; known: {', '.join(table.labels) or 'none'}"
    )
  found = table.labels[cluster] if cluster is not None else getattr(table, "clusters", None)
  if found is not None and len(found) == len(table):
    return np.unique(np.asarray(found).astype(str), return_inverse=True)[1]
  rows = np.stack([table[k] for k in columns], axis=1)
  first, copy_of = np.unique(rows, axis=0, return_inverse=True)
  return copy_of.ravel() if len(first) < len(table) else np.arange(len(table))


def _starts(problem, data, n_starts, seed):
  """Working coordinates [S, P], no two of them equal in what is free."""
  starts = problem.law.starts(data.x, data.y)
  rng = np.random.default_rng(seed)
  whole = problem.free(starts)
  if n_starts is not None and n_starts < len(starts):
    starts = starts[rng.permutation(len(starts))[:n_starts]]
  # fixed and tied parameters make many starts equal
  free = np.unique(problem.free(starts).round(9), axis=0)
  wanted = LEAST_STARTS if n_starts is None else 0
  if len(free) < min(wanted, len(starts)) or (
    problem.n_free < len(problem.base) and len(free) < wanted
  ):
    # the law's grid spans what is plausible of each parameter: fill it, a half wider on either side
    low, high = whole.min(0), whole.max(0)
    reach = np.maximum(high - low, 1.0)
    drawn = low - 0.5 * reach + 2 * reach * rng.random((wanted - len(free), free.shape[1]))
    free = np.vstack([free, drawn])
  return problem.full(free)


@dataclasses.dataclass(frozen=True)
class _Found:
  """Limits [2, Q] by method, delta-method and bootstrap standard errors [Q], case-bootstrap thetas."""

  limits: dict[str, np.ndarray]
  se: np.ndarray | None
  boot_se: np.ndarray | None
  boots: np.ndarray
  failed: int
  cov: np.ndarray


def find_intervals(problem, data, theta, value, quantities, methods, n_boot, seed, level) -> _Found:
  limits, se, boot_se, failed = {}, None, None, 0
  boots = np.zeros((0, len(theta)))
  at = intervals.evaluate(quantities, theta)[0]
  is_log = np.array([log for _, log, _ in quantities.labels])
  found = intervals.sandwich(problem, data, theta)
  groups = data.n_clusters if data.clustered else None
  if n_boot and {"case", "bca"} & set(methods):
    counts = intervals.case_weights(data.clusters, n_boot, seed)
    fits = intervals.refit(problem, data, theta, weights=counts)
    bad = intervals.failed(fits)
    boots, failed = fits.theta[~bad], int(bad.sum())
    drawn = intervals.evaluate(quantities, boots)
    with np.errstate(over="ignore", invalid="ignore"):
      boot_se = np.where(is_log, np.exp(np.minimum(drawn, 700.0)), drawn).std(0)
  for method in methods:
    if method == "case" and n_boot:
      limits[method] = intervals.percentile(drawn, level, groups)
    elif method == "bca" and n_boot:
      out = intervals.evaluate(quantities, intervals.jackknife(problem, data, theta))
      limits[method] = intervals.bca(drawn, at, out, level)
    elif method == "noise" and n_boot:
      fitted = intervals.predict(problem.law, theta, data.x)
      y = intervals.noise_targets(fitted, data.y - fitted, problem.n_free, n_boot, seed)
      refits = intervals.refit(problem, data, theta, y=y)
      limits[method] = intervals.percentile(
        intervals.evaluate(quantities, refits.theta[~intervals.failed(refits)]), level
      )
    elif method == "delta":
      limits[method], se = intervals.delta_method(quantities, theta, found, level)
    elif method == "profile":
      limits[method] = intervals.profile(problem, quantities, data, theta, value, level)
  limits = {m: intervals.unbounded(v, at, is_log) for m, v in limits.items()}
  return _Found(limits, se, boot_se, boots, failed, found.cov)


def estimates_of(
  quantities, theta, limits, se=None, problem=None, boot_se=None
) -> dict[str, Estimate]:
  """Printed values: logs undone; what no free parameter of `problem` moves is marked as fixed."""
  at = intervals.evaluate(quantities, theta)[0]
  still = np.zeros(len(at), bool)
  if problem is not None:  # a fixed parameter, or what the law's form alone decides (a = 1/2)
    grad = intervals.jacobian(quantities, theta) @ problem.expand
    still = np.all(np.abs(grad) <= 1e-12 * np.maximum(np.abs(at), 1.0)[:, None], axis=1)
  out = {}
  for q, (name, is_log, meaning) in enumerate(quantities.labels):
    printed = (lambda v: float(np.exp(min(v, 709.0) if np.isfinite(v) else v))) if is_log else float
    fixed = bool(still[q])
    if fixed and q >= len(theta):
      meaning = f"{meaning}, by the law's form"
    pairs = {m: (printed(v[0, q]), printed(v[1, q])) for m, v in limits.items()}
    pairs = {m: v for m, v in pairs.items() if not np.isnan(v).any()}
    error = None if se is None else float(se[q] * (np.exp(min(at[q], 700.0)) if is_log else 1.0))
    spread = None if boot_se is None else float(boot_se[q])
    out[name] = Estimate(name, printed(at[q]), meaning, pairs, error, fixed, spread)
  return out


def moved(problem, data, theta, quantities, table, lack: adequacy.LackOfFit):
  """[W, Q] quantities (printed) of fits to parts of the runs, where the law fails; else [0, Q]."""
  labels = quantities.labels
  if not lack.fails:
    return np.zeros((0, len(labels)))
  scale = table["flops"] if "flops" in table.columns else data.x[problem.law.inputs[0]]
  fits = adequacy.windows(problem, data, theta, scale)
  values = intervals.evaluate(quantities, fits) if len(fits) else np.zeros((0, len(labels)))
  is_log = np.array([log for _, log, _ in labels])
  return np.where(is_log, np.exp(np.clip(values, -700, 700)), values)


def judged(estimates, known, lack, windows, table, force) -> dict[str, Estimate]:
  """Estimates as they may be read: without an interval where they are not identified; where the law
  fails its test, first with one that holds the estimates from parts of the runs too, and beyond the runs
  with none (`force`: with those of a law that were right)."""
  out = {}
  for q, (name, e) in enumerate(estimates.items()):
    if known.unknown[q] and not e.fixed:
      why = f"not identified: {known.why}"
      e = dataclasses.replace(e, intervals={}, se=None, boot_se=None, withheld=why)
    elif lack.fails and not e.fixed and not force and beyond(name, table):
      e = dataclasses.replace(
        e, intervals={}, se=None, boot_se=None, withheld=f"withheld: {lack.text}"
      )
    elif lack.fails and not e.fixed and len(windows):
      values = windows[:, q][np.isfinite(windows[:, q])]
      low, high = min([np.inf, *values]), max([-np.inf, *values])
      ends = [(min(a, low), max(b, high)) for a, b in e.intervals.values()]
      if ends:
        hull = (min(a for a, _ in ends), max(b for _, b in ends))
        e = dataclasses.replace(e, intervals={WIDENED: hull, **e.intervals})
    out[name] = e
  return out


def beyond(name: str, table: Table) -> bool:
  """Whether an estimate, by its name, is of a place outside the runs: more than 5 % past their range."""
  _, at, place = name.partition("@")
  if not at:
    return False
  pairs = [part.partition("=") for part in place.split(",")]
  pairs = [(k, float(v)) if eq else ("flops", float(k)) for k, eq, v in pairs]
  for column, value in pairs:
    values = table.columns.get(column)
    if values is not None and not 0.95 * values.min() <= value <= 1.05 * values.max():
      return True
  return False


def _width_note(objective, data, resid) -> list[str]:
  """A sentence where a small Huber threshold costs width against least squares."""
  if objective == "l2" or not data.delta < intervals.robust_sd(resid):
    return []
  ratio = adequacy.width_against_squares(data, resid)
  if ratio < WIDER:
    return []
  how = (
    "least absolute deviations"
    if objective == "lad"
    else f"Huber's delta = {data.delta:g} (nearly LAD)"
  )
  return [
    f"{how} makes intervals about {ratio - 1:.0%} wider than least squares would on these residuals, "
    "which have no heavy tails (objective l2, or a delta near their spread of "
    f"{intervals.robust_sd(resid):.2g})"
  ]


def _remarks(problem, theta, table, quantities, has_flops) -> list[str]:
  """What a reader must know before trusting the numbers."""
  law, notes = problem.law, table.left_out()
  values = dict(zip(law.names, law.natural(theta), strict=True))
  free = set(identify.free_names(problem))
  if "E" in free and law.target == "loss" and values["E"] < 1e-3 * table["loss"].min():
    notes.append(
      f"E={values['E']:.2g}: at its lower boundary 0; these runs do not show an irreducible loss"
    )
  exponents = [p.name for p in law.params if not p.log and values[p.name] <= 0]
  notes += [f"{n}={values[n]:.3g}: not > 0, so the law does not fall with scale" for n in exponents]
  if (
    has_flops
    and {"n_params", "n_tokens"} <= set(table.columns)
    and table.source.get("flops") != "derived"
  ):
    k, s = quantities.flop_factor, quantities.flop_exponent
    counted = f"{k:.4g} N{'' if s == 1 else f'^{s:.4g}'} D"
    ratio = table["flops"] / (k * table["n_params"] ** s * table["n_tokens"])
    if not 0.9 < np.median(ratio) < 1.1:
      notes.append(
        f"flops is {np.median(ratio):.3g} x {counted} (median); N* and D* at a budget use {counted}"
      )
  return notes
