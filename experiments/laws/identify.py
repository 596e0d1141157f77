"""Which parameters these runs cannot tell apart, from the design and the Jacobian of the law.

Three questions, none of them about an example: has the Jacobian full rank anywhere (a design of one size
has not, whatever the losses); do all runs lie on one line of (log N, log D) while both exponents are
free; and is a parameter's standard error, at a noise no smaller than that of training itself, larger
than anything that could be called knowledge (a term at its boundary, two sizes a percent apart)?
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.laws import forms, intervals, solve
from lm.config.errors import ConfigError, number_of

LEAST_NOISE = 0.002  # of log loss: no two seeds agree better, so noise-free tables are judged alike
THIN = 0.1  # sd of log N and log D across the line they lie on: 10 %
# An exponent whose standard error is above this and above its value is not known.
EXPONENT_SE = 0.25
LOG_SE = 5.0  # nor is a scale known to a factor of e^5 = 150
RANK_TOLERANCE = 1e-7  # of singular values of the Jacobian with unit columns
TRIED = 24  # parameter points at which the rank is taken: a start may lie where the law is flat
PAIR = ("n_params", "n_tokens")


@dataclasses.dataclass(frozen=True)
class Identified:
  """What the runs cannot say.

  Attributes:
    names: parameters that are not identified; empty where all are.
    free: how many of them must be fixed before the others are.
    why: the cause in the design, in words.
    unknown: bool [Q] quantities that have no interval for it.
  """

  names: tuple[str, ...]
  free: int
  why: str
  unknown: np.ndarray

  def __bool__(self) -> bool:
    return not self.names

  def words(self, law: forms.Law) -> str:
    """One line: the confounded parameters, why, and the remedy."""
    one = len(self.names) == 1
    names = self.names[0] if one else f"{', '.join(self.names[:-1])} and {self.names[-1]}"
    what = "is not identified" if one else "cannot be told apart"
    fix = (
      f"fix {names} (--fix {self.names[0]}=...)"
      if one
      else f"fix {self.free} of them (--fix NAME=...)"
    )
    return (
      f"law={law.name}: {names} {what} by these runs: {self.why}; vary the design, or {fix}, or fit "
      "without intervals for them (force=True, --force)"
    )


@functools.lru_cache(maxsize=32)
def _jacobians(law: forms.Law):
  """Jitted (theta [T, P], columns [n]) -> [T, n, P]."""
  one = lambda theta, x: jax.jacfwd(lambda t: law.predict(t, x))(theta)
  return jax.jit(jax.vmap(one, in_axes=(0, None)))


def jacobian(problem: solve.Problem, x: dict[str, np.ndarray], theta: np.ndarray) -> np.ndarray:
  """d prediction / d free working parameters at theta [T, P]: [T, n, F]."""
  with jax.enable_x64(True):
    columns = {k: jnp.asarray(v, jnp.float64) for k, v in x.items()}
    out = np.asarray(_jacobians(problem.law)(jnp.asarray(np.atleast_2d(theta)), columns))
  return out @ problem.expand


def free_names(problem: solve.Problem) -> list[str]:
  """The name that stands for each free coordinate."""
  law = problem.law
  return [law.names[int(np.argmax(problem.expand[:, f]))] for f in range(problem.n_free)]


def check(problem, data, theta, starts, quantities, force: bool) -> Identified:
  """What is not identified at the fit `theta`.

  Args:
    starts: [S, P] points at which the law's Jacobian is generic.
    quantities: of allocation, whose `labels` say what is a logarithm.

  Raises:
    ConfigError: something is not, and `force` is False.
  """
  found = find(problem, data, theta, starts, quantities)
  if not found and not force:
    raise ConfigError(found.words(problem.law))
  return found


def find(problem, data, theta, starts, quantities) -> Identified:
  """As `check`, without refusing."""
  names = free_names(problem)
  rank, lost = structural(problem, data.x, theta, starts)
  line = _line(data.x)
  both = [n for n in names if n in ("alpha", "beta", "alpha_N", "alpha_D")]
  weak, unknown = _unknown(problem, data, theta, quantities)
  why = _cause(data.x, problem.law) if rank < problem.n_free else ""
  guilty = lost | weak
  if line and len(both) == 2 and rank == problem.n_free:
    pairs = {"alpha": "A", "beta": "B", "alpha_N": "Nc", "alpha_D": "Dc"}
    guilty |= {n for n in names if n in both or n in [pairs[b] for b in both]}
    unknown = unknown | ~np.isin([n for n, _, _ in quantities.labels], ["E", *problem.law.names])
    why = line
  unknown = unknown | np.isin([n for n, _, _ in quantities.labels], list(guilty))
  if not guilty:
    return Identified((), 0, "", np.zeros(len(quantities.labels), bool))
  free = problem.n_free - rank if rank < problem.n_free else max(1, len(guilty) // 2)
  ordered = tuple(n for n in names if n in guilty)
  return Identified(ordered, free, why or _at_boundary(problem, data, theta, ordered), unknown)


def structural(problem, x, theta, starts) -> tuple[int, set[str]]:
  """(rank of the Jacobian at the best of a few generic points, names in its null space)."""
  few = starts[np.linspace(0, len(starts) - 1, min(len(starts), TRIED)).astype(int)]
  spread = 0.05 * np.random.default_rng(0).standard_normal(few.shape)
  points = np.vstack([problem.full(problem.free(few + spread)), theta])
  jacs = jacobian(problem, x, points)
  names, best = free_names(problem), (-1, set())
  for jac in jacs[np.isfinite(jacs).all((1, 2))]:
    norms = np.linalg.norm(jac, axis=0)
    live = norms > 1e-12 * max(norms.max(), 1e-300)
    scaled = jac / np.where(live, norms, 1.0) * live
    # of the triangle alone: the whole of U would be rows x rows
    _, sizes, axes = np.linalg.svd(np.linalg.qr(scaled)[1], full_matrices=True)
    sizes = np.pad(sizes, (0, len(names) - len(sizes)))
    rank = int((sizes > RANK_TOLERANCE * sizes[0]).sum())
    if rank > best[0]:
      null = np.abs(axes[rank:]).max(0) if rank < len(names) else np.zeros(len(names))
      best = rank, {n for n, v in zip(names, null, strict=True) if v > 1e-3}
  return best


def _line(x) -> str:
  """How all runs lie on one line of (log N, log D), or ""."""
  if not set(PAIR) <= set(x):
    return ""
  logs = np.log(np.stack([x[k] for k in PAIR]))
  spread = np.linalg.svd(logs - logs.mean(1, keepdims=True), full_matrices=False)[1]
  if spread[-1] / np.sqrt(logs.shape[1]) >= THIN:
    return ""
  n, d = np.exp(logs.mean(1))
  tight = lambda v: v.std() < THIN
  kinds = (
    (logs[0], f"every run has about {n:.3g} parameters"),
    (logs[1], f"every run has about {d:.3g} tokens"),
    (logs.sum(0), f"every run has one budget, about {6 * n * d:.3g} FLOPs"),
    (
      logs[1] - logs[0],
      f"every run has about {d / n:.3g} tokens per parameter (N and D collinear)",
    ),
  )
  said = [text for values, text in kinds if tight(values)]
  return said[0] if said else "log N and log D lie on one line (collinear) over these runs"


def _cause(x, law) -> str:
  """What in the design takes the rank: columns of one or two values, too few points, or no effect."""
  said = []
  for name, values in x.items():
    distinct = np.unique(np.round(np.log(values), 9))
    if len(distinct) == 1:
      said.append(f"every run has {name} = {values[0]:.4g}")
    elif len(distinct) == 2:
      said.append(f"{name} takes two values only")
  points = len(np.unique(np.round(np.log(np.stack(list(x.values()))), 9), axis=1).T)
  if points <= len(law.params):
    said.append(f"only {number_of(points, 'different point')} for {len(law.params)} parameters")
  if not said and {"unique_tokens", "n_tokens"} <= set(x):
    if (x["n_tokens"] <= x["unique_tokens"] * (1 + 1e-9)).all():
      said.append("no run repeats its data")
    else:
      said.append("no run has more parameters than its unique tokens are worth")
  return (
    (said and " and ".join(said)) or _line(x) or "the law's terms are collinear over these runs"
  )


def _unknown(problem, data, theta, quantities) -> tuple[set[str], np.ndarray]:
  """(names of parameters, bool [Q] of quantities) whose standard error is beyond any use."""
  law = problem.law
  jac = jacobian(problem, data.x, theta)[0] * np.sqrt(data.w)[:, None]
  resid = data.y - intervals.predict(law, theta, data.x)
  scale = 1.0 if law.link == "log" else float(np.abs(data.y).mean())
  sigma = max(1.4826 * np.median(np.abs(resid)), LEAST_NOISE * scale)
  norms = np.linalg.norm(jac, axis=0)
  # a column of zeros is left as it is: its singular value is 0, so its error is beyond any use
  norms = np.where(norms > 1e-100, norms, 1.0)
  _, sizes, axes = np.linalg.svd(jac / norms, full_matrices=False)
  root = axes.T / np.maximum(sizes, 1e-13 * sizes[0]) * sigma / norms[:, None]
  open_above = {p.name for p in law.params if p.open_above}
  grad = intervals.jacobian(quantities, theta) @ problem.expand
  with np.errstate(invalid="ignore", over="ignore"):
    se = np.linalg.norm(np.nan_to_num(grad @ root, nan=np.inf), axis=1)
  at = intervals.evaluate(quantities, theta)[0]
  is_log = np.array([log for _, log, _ in quantities.labels])
  unknown = np.where(is_log, se > LOG_SE, se > np.maximum(EXPONENT_SE, np.abs(at)))
  unknown |= ~np.isfinite(at)
  labels = [name for name, _, _ in quantities.labels]
  # a half-life without an upper bound is an answer: its intervals say so
  unknown &= ~np.isin(labels, list(open_above))
  names = {n for n, u in zip(labels, unknown, strict=True) if u and n in free_names(problem)}
  return names, unknown


def _at_boundary(problem, data, theta, names) -> str:
  """Why a parameter of full structural rank is still unknown: its term vanished, or noise hides it."""
  values = dict(zip(problem.law.names, problem.law.natural(theta), strict=True))
  if (
    "E" in names and values["E"] < 1e-3 * np.exp(data.y if problem.law.link == "log" else 0.0).min()
  ):
    return (
      f"the best E is {values['E']:.2g}, at its boundary 0, so they show no irreducible loss "
      "(E=1e-9 fixed is the law without one)"
    )
  lost = [n for n in names if not 1e-100 < abs(values[n]) < 1e100]
  if lost:
    return f"the best {lost[0]} is {values[lost[0]]:.3g}: its term vanishes for all but a few runs"
  line = _line(data.x)
  return line or "at their noise the standard errors are larger than the values themselves"
