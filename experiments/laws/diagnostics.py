"""Can these runs answer the question, and does the law predict what it has not seen?"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.laws import intervals, solve
from lm.config.errors import number_of


@dataclasses.dataclass(frozen=True)
class Conditioning:
  """`condition`: condition number of the Jacobian with unit columns; `weakest`: the combination of
  working parameters the runs say least about; `log_nd_correlation`: of log N with log D over the runs.
  """

  condition: float
  weakest: dict[str, float]
  log_nd_correlation: float | None
  tokens_per_param: tuple[float, float] | None
  warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Holdout:
  """Prediction of the largest-compute runs by the law fitted to the others.

  `bias` is mean(predicted / observed - 1), `rms` its root mean square, `rms_fitted` the same over the
  runs that were fitted; `mae` is mean |predicted - observed| in the target's unit and `mare` the same
  relative to the observed. `parameters` are the printed ones of the law fitted without the held-out runs.
  `verdict` is "holds" or "fails": fewer runs inside than the law and the noise as fitted would leave
  inside in all but 5 % of cases (`p` is that share, by simulation); `text` says it, and no more than the
  test of lack of fit lets it. `predicted`
  [n_held] and `bounds` [2, n_held] are targets (losses) of the
  held-out runs, in the order of the table: limits of what a new run may give, so the law and the noise
  are both resampled. `covered` is the share of held-out runs inside.
  """

  above_flops: float
  n_held: int
  n_fitted: int
  reach: float  # largest held-out FLOPs / largest fitted FLOPs
  bias: float
  rms: float
  rms_fitted: float
  covered: float
  mae: float
  mare: float
  parameters: dict[str, float]
  verdict: str
  p: float
  text: str
  level: float
  predicted: np.ndarray
  bounds: np.ndarray
  theta: np.ndarray

  def of_a_law_that_fails(self) -> "Holdout":
    """The same, in words that stand beside a failed test of lack of fit: wide intervals hold any run."""
    if self.verdict == "fails":
      return self
    count = self.text.partition(": ")[2]
    text = (
      f"{count}, which does not make the law right: it fails the test on all runs, and the limits are "
      "as wide as its misfit; do not extrapolate with it"
    )
    return dataclasses.replace(self, text=text)


def conditioning(problem: solve.Problem, data: intervals.Data, theta: np.ndarray) -> Conditioning:
  """Identifiability of the free parameters at the fit."""
  law, x = problem.law, data.x
  with jax.enable_x64(True):
    columns = {k: jnp.asarray(v, jnp.float64) for k, v in x.items()}
    jac = np.asarray(jax.jacfwd(lambda t: law.predict(t, columns))(jnp.asarray(theta)))
  jac = jac @ problem.expand
  norms = np.linalg.norm(jac, axis=0)
  _, sizes, axes = np.linalg.svd(jac / np.maximum(norms, 1e-300), full_matrices=False)
  direction = axes[-1] / np.abs(axes[-1]).max()
  free = [law.names[int(np.argmax(problem.expand[:, f]))] for f in range(problem.n_free)]
  weakest = {n: float(round(v, 3)) for n, v in zip(free, direction, strict=True) if abs(v) > 0.05}
  condition = float(sizes[0] / max(sizes[-1], 1e-300))
  warnings, corr, ratio = [], None, None
  if condition > 1e6:
    warnings.append(
      f"conditioning: {condition:.1e}; these runs hardly tell apart {', '.join(weakest)}"
    )
  dead = [n for n, v in zip(free, norms, strict=True) if v < 1e-6 * norms.max()]
  if dead:
    warnings.append(f"identifiability: no fitted run depends on {', '.join(dead)}")
  if {"n_params", "n_tokens"} <= set(x):
    log_n, log_d = np.log(x["n_params"]), np.log(x["n_tokens"])
    spread = log_d - log_n
    ratio = (float(np.exp(spread.min())), float(np.exp(spread.max())))
    flat = min(log_n.std(), log_d.std()) < 1e-9
    corr = None if flat else float(np.corrcoef(log_n, log_d)[0, 1])
    if spread.std() < 0.1:
      warnings.append(
        f"design: every run has about {np.exp(spread.mean()):.3g} tokens per parameter, so N and D are "
        "collinear and their exponents cannot be told apart; vary the ratio"
      )
  if data.n < problem.n_free + 3:
    warnings.append(
      f"rows={data.n}: fewer than parameters + 3 = {problem.n_free + 3}; intervals mean little; add runs"
    )
  return Conditioning(condition, weakest, corr, ratio, tuple(warnings))


def holdout_threshold(flops: np.ndarray, share: float = 0.1, least: int = 3) -> float:
  """FLOPs above which runs are held out: the largest budgets, whole, holding >= max(least, share n) runs."""
  order = np.sort(flops)[::-1]
  edge = order[min(max(least, int(np.ceil(share * len(flops)))), len(flops)) - 1]
  return float(edge * (1 - 1e-2))  # budgets met to within a percent count as one


def extrapolate(
  problem: solve.Problem,
  data: intervals.Data,
  flops: np.ndarray,
  starts,
  above: float,
  level: float,
  seed: int,
) -> Holdout:
  """Fits the runs below `above` FLOPs from `starts` [S, P] and predicts the others.

  Raises:
    ValueError: too few runs on either side.
  """
  held = flops > above
  if held.sum() < 1 or (~held).sum() < problem.n_free + 1:
    raise ValueError(
      f"holdout={above:.3g} FLOPs: leaves {number_of(int((~held).sum()), 'run')} to fit and "
      f"{int(held.sum())} to predict; "
      "choose a threshold inside the range"
    )
  keep = np.where(held, 0.0, data.w)
  fits = solve.minimise(problem, data.x, data.y, starts, delta=data.delta, weights=keep)
  best = fits.theta[np.nanargmin(fits.objective)]
  n_train, units = int((~held).sum()), data.clusters[~held]
  weights = np.zeros((200, data.n))
  weights[:, ~held] = intervals.case_weights(units, len(weights), seed)
  boots = intervals.refit(problem, data, best, weights=weights).theta
  law = problem.law
  predicted = intervals.predict(law, best, data.x)
  error, rng = predicted - data.y, np.random.default_rng(seed)
  # residuals of fitted runs are smaller than the noise by what the parameters took
  inflation = np.sqrt(n_train / max(n_train - problem.n_free, 1))
  draw = lambda: -inflation * error[~held][rng.integers(0, n_train, (int(held.sum()), len(boots)))]
  laws_of = intervals.predict(law, boots, data.x)[held]
  new_runs = laws_of + draw()
  bounds = intervals.percentile(new_runs.T, level)
  inside = (data.y[held] >= bounds[0]) & (data.y[held] <= bounds[1])
  # how many would be inside if the law were right: all held-out runs share one draw of its parameters
  again = laws_of + draw()
  could = ((again >= bounds[0][:, None]) & (again <= bounds[1][:, None])).mean(0)
  p = float((1 + (could <= inside.mean() + 1e-9).sum()) / (1 + len(could)))
  relative = np.expm1(error) if law.link == "log" else error / data.y
  natural = np.exp if law.link == "log" else np.asarray
  absolute = np.abs(natural(predicted[held]) - natural(data.y[held]))
  verdict = "fails" if p < 0.05 else "holds"
  count = (
    f"{int(inside.sum())} of {int(held.sum())} held-out runs inside their {level:.0%} interval"
  )
  said = (
    f"the law fails its extrapolation test: {count} (p = {p:.2g}); do not extrapolate with it"
    if verdict == "fails"
    else f"the law holds where it was held out: {count} (p = {p:.2g})"
  )
  return Holdout(
    above,
    int(held.sum()),
    n_train,
    float(flops[held].max() / flops[~held].max()),
    float(relative[held].mean()),
    float(np.sqrt((relative[held] ** 2).mean())),
    float(np.sqrt((relative[~held] ** 2).mean())),
    float(inside.mean()),
    float(absolute.mean()),
    float(np.abs(relative[held]).mean()),
    dict(zip(law.names, map(float, law.natural(best)), strict=True)),
    verdict,
    p,
    said,
    level,
    natural(predicted[held]),
    natural(bounds),
    best,
  )
