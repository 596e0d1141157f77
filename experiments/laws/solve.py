"""Many least-loss fits at once: damped Newton with exact derivatives in float64, batched in JAX.

The objective is sum_i w_i Huber_delta(y_i - f(theta, x_i)) of Hoffmann et al. 2022 eq. 5. At the usual
delta = 1e-3 it is almost a sum of absolute values: a Newton model is then good only next to the
optimum. So every lane starts with a large delta and shrinks it as it converges (continuation).
Convergence is judged by the gradient, which `Solution` carries with the objective, not by a solver's flag.
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.laws import forms
from lm.devices import host

LAD_DELTA = 1e-8  # sum|r| is fitted as Huber_delta / delta: exact to n * delta / 2
L2_DELTA = 1e6  # no residual of a log loss comes near
MANY, SOME = 512, 256  # rows beyond which a grid of starts is first run on some of them
LANES = 128  # problems solved side by side; one compiled program per (law, rows)
BLOCK, BLOCKS = 4, 2  # steps per refresh of the curvature, refreshes between looks at the lanes
FIRST_DAMP = 1e-2
MAX_STEPS = 600
SHRINK = 8  # factor by which delta falls towards its target ...
SOLVED = 1e-7  # ... once the predicted relative decrease is below this: looser loses the LAD path
WORKERS = host.cores()
RUNNING, CONVERGED, STUCK = range(3)
TOLERANCE = 1e-14  # predicted relative decrease of the objective at which a lane is done


@dataclasses.dataclass(frozen=True)
class Problem:
  """What is minimised: theta = base + expand @ z over free coordinates z, so that parameters can be
  fixed (a zero row in `expand`) or tied (rows sharing a column).

  `pin(theta, x)`, used by profile likelihoods, is a vector of quantities held near given values by a
  quadratic penalty. Laws and pins see theta as [P, 1, R] and columns as [N, 1]: elementwise code only.
  """

  law: forms.Law
  base: np.ndarray
  expand: np.ndarray
  pin: Callable | None = None

  @property
  def n_free(self) -> int:
    return self.expand.shape[1]

  def full(self, z: np.ndarray) -> np.ndarray:
    """Free coordinates [..., F] to working coordinates [..., P]."""
    return self.base + z @ self.expand.T

  def free(self, theta: np.ndarray) -> np.ndarray:
    """Working coordinates [..., P] to the nearest free coordinates [..., F]."""
    return (theta - self.base) @ np.linalg.pinv(self.expand).T


@dataclasses.dataclass(frozen=True)
class Solution:
  """Fits of R problems. `grad` is the gradient in the free working coordinates."""

  theta: np.ndarray  # [R, P] working coordinates
  objective: np.ndarray  # [R] sum_i w_i Huber(r_i), penalty included where there is one
  grad: np.ndarray  # [R, F]
  steps: np.ndarray  # [R] Newton steps taken
  converged: np.ndarray  # [R] the predicted relative decrease fell below TOLERANCE

  def __getitem__(self, index) -> "Solution":
    return Solution(*(getattr(self, f.name)[index] for f in dataclasses.fields(self)))


def make_problem(law: forms.Law, fixed: dict[str, float], tied=(), pin=None) -> Problem:
  """`fixed`: printed values by name; `tied`: tuples of names that share one value.

  Raises:
    ValueError: an unknown name, a parameter both fixed and tied, or kinds that cannot be tied.
  """
  names = law.names
  unknown = [n for n in (*fixed, *(n for group in tied for n in group)) if n not in names]
  if unknown:
    raise ValueError(f"law={law.name}: no parameter {unknown[0]!r}; it has {', '.join(names)}")
  leader = {name: name for name in names}
  for group in tied:
    clash = [n for n in group if n in fixed or leader[n] != n]
    if clash:
      raise ValueError(f"tied={group}: {clash[0]!r} is fixed or tied already; name it once")
    if len({law.params[names.index(n)].log for n in group}) > 1:
      raise ValueError(f"tied={group}: a scale cannot equal an exponent; tie like with like")
    leader.update(dict.fromkeys(group, group[0]))
  free = [n for n in names if n not in fixed and leader[n] == n]
  if not free:
    raise ValueError("fixed: every parameter is fixed; leave at least one free")
  expand = np.zeros((len(names), len(free)))
  for row, name in enumerate(names):
    if name not in fixed:
      expand[row, free.index(leader[name])] = 1.0
  values = law.working(np.array([fixed.get(n, 1.0) for n in names]))
  base = np.where([n in fixed for n in names], values, 0.0)
  return Problem(law, base, expand, pin)


def _solve_positive(matrix_FFR, rhs_FR):
  """R small Cholesky solves written out, so that they vectorise over R; `ok` is False where the
  matrix is not positive definite."""
  n, rows, ok = rhs_FR.shape[0], {}, True
  for j in range(n):
    pivot = matrix_FFR[j, j] - sum(rows[j, k] ** 2 for k in range(j))
    ok &= pivot > 1e-14 * matrix_FFR[j, j]
    rows[j, j] = jnp.sqrt(jnp.where(pivot > 0, pivot, 1.0))
    for i in range(j + 1, n):
      rows[i, j] = (matrix_FFR[i, j] - sum(rows[i, k] * rows[j, k] for k in range(j))) / rows[j, j]
  down = [None] * n
  for i in range(n):
    down[i] = (rhs_FR[i] - sum(rows[i, k] * down[k] for k in range(i))) / rows[i, i]
  up = [None] * n
  for i in reversed(range(n)):
    up[i] = (down[i] - sum(rows[k, i] * up[k] for k in range(i + 1, n))) / rows[i, i]
  return jnp.stack(up), ok


class _Data(NamedTuple):
  """What R lanes fit. The lanes come last, so that sums over rows vectorise."""

  y_NR: jax.Array
  w_NR: jax.Array
  stiff_QR: jax.Array
  goal_QR: jax.Array
  base_P: jax.Array
  expand_PF: jax.Array


class _Local(NamedTuple):
  """The objective around a point. `pull` is the part of -grad from residuals below delta."""

  value_R: jax.Array
  grad_FR: jax.Array
  newton_FFR: jax.Array
  major_FFR: jax.Array
  pull_FR: jax.Array


def _theta(z_FR, data):
  return (data.base_P[:, None] + data.expand_PF @ z_FR)[:, None, :]


def _units(z_FR):
  n, lanes = z_FR.shape
  return [jnp.broadcast_to(e[:, None], (n, lanes)) for e in jnp.eye(n)]


def _symmetric(entry, n):
  """Stacks entry(i, j), j <= i, into [n, n, ...]."""
  half = {(i, j): entry(i, j) for i in range(n) for j in range(i + 1)}
  return jnp.stack([jnp.stack([half[max(i, j), min(i, j)] for j in range(n)]) for i in range(n)])


def _local(law, pin, z_FR, data, x, delta_R) -> _Local:
  """Value, gradient, Gauss-Newton part of the Hessian and its reweighted majoriser."""
  f_NR, push = jax.linearize(lambda z: law.predict(_theta(z, data), x), z_FR)
  jac = [push(e) for e in _units(z_FR)]
  r_NR, delta = data.y_NR - f_NR, delta_R[None]
  size_NR = jnp.abs(r_NR)
  small = size_NR <= delta
  w_in = jnp.where(small, data.w_NR, 0.0)
  w_major = data.w_NR * jnp.minimum(1.0, delta / jnp.maximum(size_NR, 1e-300))
  loss = jnp.where(small, 0.5 * r_NR**2, delta * (size_NR - 0.5 * delta))
  value = jnp.sum(data.w_NR * loss, axis=0)
  grad = -jnp.stack([jnp.sum(w_major * r_NR * j, axis=0) for j in jac])
  pull = jnp.stack([jnp.sum(w_in * r_NR * j, axis=0) for j in jac])
  newton = _symmetric(lambda i, j: jnp.sum(w_in * jac[i] * jac[j], axis=0), len(jac))
  major = _symmetric(lambda i, j: jnp.sum(w_major * jac[i] * jac[j], axis=0), len(jac))
  if pin is not None:
    q_QR, pin_push = jax.linearize(lambda z: pin(_theta(z, data), x)[:, 0], z_FR)
    pin_jac = [pin_push(e) for e in _units(z_FR)]
    off = data.stiff_QR * (q_QR - data.goal_QR)
    stiff = _symmetric(lambda i, j: jnp.sum(data.stiff_QR * pin_jac[i] * pin_jac[j], 0), len(jac))
    value = value + 0.5 * jnp.sum(off * (q_QR - data.goal_QR), axis=0)
    grad = grad + jnp.stack([jnp.sum(off * j, axis=0) for j in pin_jac])
    newton, major = newton + stiff, major + stiff
  return _Local(value, grad, newton, major, pull)


def _curvature(law, pin, z_FR, data, x, delta_R):
  """What the Hessian has beyond `newton_FFR`: second derivatives of the law, weighted by residuals."""
  r_NR = data.y_NR - law.predict(_theta(z_FR, data), x)
  psi_NR = -data.w_NR * jnp.clip(r_NR, -delta_R[None], delta_R[None])

  def weighted(z):
    total = jnp.sum(psi_NR * law.predict(_theta(z, data), x))
    if pin is None:
      return total
    off = data.stiff_QR * (pin(_theta(z_FR, data), x)[:, 0] - data.goal_QR)
    return total + jnp.sum(off * pin(_theta(z, data), x)[:, 0])

  slope = jax.grad(weighted)
  return jnp.stack([jax.jvp(slope, (z_FR,), (e,))[1] for e in _units(z_FR)])


class _Lanes(NamedTuple):
  z_FR: jax.Array
  delta_R: jax.Array
  damp_R: jax.Array
  here: _Local
  status_R: jax.Array
  steps_R: jax.Array


def _newton_step(law, pin, lane, curved_FFR, data, x, target):
  """One damped step of each lane, or, where the current delta is solved, a smaller delta.

  A shrinking lane follows the path of optima: residuals inside delta shrink in proportion to it.
  """
  here, running = lane.here, lane.status_R == RUNNING
  n = lane.z_FR.shape[0]
  diag = jnp.stack([here.major_FFR[i, i] for i in range(n)])
  diag = diag + 1e-12 * jnp.max(diag, axis=0)[None] + 1e-300
  ridge = lambda amount: jnp.eye(n)[:, :, None] * (amount[None] * diag)[None]
  known = jnp.isfinite(here.value_R)
  shrink = known & (lane.delta_R > target)
  exact_FFR = here.newton_FFR + curved_FFR + ridge(lane.damp_R)
  step, positive = _solve_positive(exact_FFR, -here.grad_FR)
  safe, _ = _solve_positive(here.major_FFR + ridge(lane.damp_R + 1e-9), -here.grad_FR)
  step = jnp.where(positive[None], step, safe)
  gain = -0.5 * jnp.sum(step * here.grad_FR, axis=0)
  shrink &= gain <= SOLVED * here.value_R
  delta = jnp.where(shrink, jnp.maximum(lane.delta_R / SHRINK, target), lane.delta_R)
  follow, _ = _solve_positive(exact_FFR, here.pull_FR * (1 - delta / lane.delta_R)[None])
  follow = jnp.where(positive[None], follow, 0.0)
  z_new = lane.z_FR + jnp.where(shrink[None], follow, step)
  there = _local(law, pin, z_new, data, x, delta)
  finite = jnp.all(jnp.isfinite(there.grad_FR), axis=0) & jnp.isfinite(there.value_R)
  fall = (there.value_R <= here.value_R * (1 + 1e-14) - 1e-4 * gain) | ~known
  good = finite & (shrink | fall)
  softer = jnp.where(there.value_R <= here.value_R - 0.25 * gain, lane.damp_R / 8, lane.damp_R)
  damp = jnp.where(good, softer, jnp.maximum(lane.damp_R, 1e-6) * 8)
  damp = jnp.where(damp < 1e-9, 0.0, damp)
  finished = known & (gain <= TOLERANCE * here.value_R) & (delta <= target) & (lane.damp_R < 1e-3)
  verdict = jnp.where(finished, CONVERGED, jnp.where(lane.damp_R > 1e14, STUCK, RUNNING))
  take = lambda new, old: jnp.where(good & running, new, old)
  return _Lanes(
    take(z_new, lane.z_FR),
    jnp.where(running & (good | ~shrink), delta, lane.delta_R),
    jnp.where(running & known & ~shrink, damp, lane.damp_R),
    jax.tree.map(take, there, here),
    jnp.where(running, verdict, lane.status_R),
    lane.steps_R + running.astype(lane.steps_R.dtype),
  )


@functools.lru_cache(maxsize=32)
def _program(law, pin):
  """Jitted `advance`, cached so that a second fit of a law does not recompile."""

  def block(lane, data, x, target):
    curved = _curvature(law, pin, lane.z_FR, data, x, lane.delta_R)
    step = lambda _, lane: _newton_step(law, pin, lane, curved, data, x, target)
    return jax.lax.fori_loop(0, BLOCK, step, lane)

  @jax.jit
  def advance(lane, data, x, target):
    return jax.lax.fori_loop(0, BLOCKS, lambda _, lane: block(lane, data, x, target), lane)

  return advance


def minimise(
  problem: Problem,
  x: dict[str, np.ndarray],
  y: np.ndarray,
  starts: np.ndarray,
  *,
  delta: float,
  weights: np.ndarray | None = None,
  first_delta: float = 1.0,
  pins: tuple[np.ndarray, np.ndarray] | None = None,
) -> Solution:
  """Fits R problems: one per row of `starts`.

  Args:
    x: columns [n] by input name.
    y: log targets (or targets, for a linear link), [n] or one row a problem [R, n].
    starts: working coordinates, [R, P].
    delta: Huber's threshold on the residual.
    weights: [n] or [R, n]; 0 leaves a row out, counts make a bootstrap sample.
    first_delta: where the continuation begins: 1 from afar, a residual's size from nearby.
    pins: (stiffness [R, Q], goal [R, Q]) for `problem.pin`.
  """
  n_lanes, n_rows = len(starts), y.shape[-1]
  z = problem.free(np.asarray(starts, np.float64))
  stiff, goal = pins if pins is not None else (np.zeros((n_lanes, 1)),) * 2
  weights = np.ones(n_rows) if weights is None else weights
  # few shapes, few compilations: rows are padded by copies of weight 0, and lanes come in two widths
  extra = -n_rows % 16
  pad = lambda a, mode: np.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, extra)], mode=mode)
  x = {k: pad(np.asarray(v, np.float64), "edge") for k, v in x.items()}
  columns = (pad(y, "edge"), pad(weights, "constant"), stiff, goal)
  bank = tuple(np.broadcast_to(a, (n_lanes, a.shape[-1])) for a in columns)
  width = 8 if n_lanes <= 8 else LANES
  shards = np.array_split(np.arange(n_lanes), min(WORKERS, -(-n_lanes // width)))
  work = functools.partial(_drain, problem, x, z, bank, delta, max(first_delta, delta), width)
  with concurrent.futures.ThreadPoolExecutor(len(shards)) as pool:
    parts = list(pool.map(work, shards))
  z, value, grad, steps, status = (np.concatenate(p) for p in zip(*parts, strict=True))
  return Solution(problem.full(z), value, grad, steps, status == CONVERGED)


def search(
  problem: Problem,
  x: dict[str, np.ndarray],
  y: np.ndarray,
  starts: np.ndarray,
  *,
  delta: float,
  weights: np.ndarray | None = None,
) -> Solution:
  """`minimise` of one table [n] from the many starts of a law's grid [R, P].

  Beyond MANY rows every start first goes to its optimum over SOME of them, drawn at random; the LANES
  lowest of these optima go on over all rows, and so do LANES of the starts themselves, should the drawn
  rows lack what identifies a parameter. The optimum is the same, at a fraction of the cost. A start's
  results are those of the optimum that it led to; where that was not among the lowest, its objective is inf.
  """
  if len(y) <= MANY or len(starts) <= LANES:
    return minimise(problem, x, y, starts, delta=delta, weights=weights)
  rng = np.random.default_rng(0)
  some = np.sort(rng.permutation(len(y))[:SOME])
  drawn = None if weights is None else weights[some]
  rough = minimise(
    problem, {k: v[some] for k, v in x.items()}, y[some], starts, delta=delta, weights=drawn
  )
  value = lambda out: np.where(np.isfinite(out.objective), out.objective, np.inf)
  ends = np.where(np.isfinite(rough.theta).all(1, keepdims=True), rough.theta, starts)
  _, first, led_to = np.unique(ends.round(4), axis=0, return_index=True, return_inverse=True)
  lowest = first[np.argsort(value(rough)[first], kind="stable")[:LANES]]
  raw = rng.permutation(len(starts))[:LANES]
  fine = minimise(
    problem, x, y, np.vstack([ends[lowest], starts[raw]]), delta=delta, weights=weights
  )
  rough.objective[:] = np.inf
  places = [np.flatnonzero(led_to.ravel() == led_to.ravel()[k]) for k in lowest]
  for i, led in enumerate([*places, *([start] for start in raw)]):
    to = [k for k in led if value(fine)[i] < rough.objective[k]]
    for field in dataclasses.fields(Solution):
      getattr(rough, field.name)[to] = getattr(fine, field.name)[i]
  return rough


def _drain(problem, x, z, bank, delta, first_delta, width, todo):
  """Solves the problems `todo` in `width` lanes, refilling lanes as they finish."""
  advance, queue, found = _program(problem.law, problem.pin), list(todo[::-1]), {}
  free = problem.n_free
  with jax.enable_x64(True):
    x = {k: jnp.asarray(v, jnp.float64)[:, None] for k, v in x.items()}
    owner = np.full(width, -1)
    lane = _Lanes(
      np.zeros((free, width)),
      np.ones(width),
      np.ones(width),
      _Local(*(np.zeros((*(free,) * k, width)) for k in (0, 1, 2, 2, 1))),
      np.full(width, STUCK),
      np.zeros(width, int),
    )
    while queue or (owner >= 0).any():
      idle = np.flatnonzero(owner < 0)
      if queue and len(idle) >= width // 4:
        fresh = idle[: len(queue)]
        owner[fresh] = [queue.pop() for _ in fresh]
        lane = jax.tree.map(np.array, lane)
        lane.z_FR[:, fresh] = z[owner[fresh]].T
        lane.delta_R[fresh], lane.damp_R[fresh] = first_delta, FIRST_DAMP
        lane.here.value_R[fresh] = np.inf  # not known yet: the first step only evaluates
        lane.here.grad_FR[:, fresh] = 0.0
        lane.status_R[fresh], lane.steps_R[fresh] = RUNNING, 0
        columns = [np.ascontiguousarray(a[owner].T) for a in bank]
        data = _Data(*map(jnp.asarray, columns), problem.base, problem.expand)
      lane = advance(lane, data, x, delta)
      status, steps = np.asarray(lane.status_R), np.asarray(lane.steps_R)
      over = np.flatnonzero((owner >= 0) & ((status != RUNNING) | (steps >= MAX_STEPS)))
      if len(over):
        z_over, grad = np.asarray(lane.z_FR).T[over], np.asarray(lane.here.grad_FR).T[over]
        value = np.asarray(lane.here.value_R)[over]
        found.update(
          zip(
            owner[over],
            zip(z_over, value, grad, steps[over], status[over], strict=True),
            strict=True,
          )
        )
        owner[over] = -1
  return [np.array(column) for column in zip(*(found[i] for i in todo), strict=True)]
