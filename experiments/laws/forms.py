"""The scaling laws of the literature as data: parameters, inputs, prediction, starts, source.

A law predicts log(loss) (or, for `link="linear"`, the target itself) from columns of a table.
Parameters are optimised in *working* coordinates: log for scales (A, B, E, ...), as they are for
exponents, so that no optimiser needs bounds. `natural` turns them back into the printed values.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# And two more: to the last digits of float64 from b / Bc = 1e-4 to 1e4, at |p| <= 0.8.
NEWTON_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Param:
  """One parameter. `log=True`: positive, optimised as its logarithm; `open_above`: infinity is a value it
  may have (a half-life of what never decays), so runs that give it no upper bound are an answer."""

  name: str
  log: bool
  meaning: str
  open_above: bool = False


@dataclasses.dataclass(frozen=True)
class Law:
  """A law as data. `predict(theta_P, x)` maps working coordinates and columns [n] to [n] predictions.

  `starts(x, y_n)` gives working coordinates [S, P]; `link` says what is predicted: "log" means
  log(target), so residuals are relative errors, "linear" the target itself.
  """

  name: str
  formula: str
  params: tuple[Param, ...]
  inputs: tuple[str, ...]
  predict: Callable
  starts: Callable
  source: str
  target: str = "loss"
  link: str = "log"

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(p.name for p in self.params)

  def natural(self, theta: np.ndarray) -> np.ndarray:
    """Working coordinates [..., P] to printed values [..., P]."""
    theta = np.asarray(theta, np.float64)
    is_log = np.array([p.log for p in self.params])
    return np.where(is_log, np.exp(np.where(is_log, theta, 0.0)), theta)

  def working(self, values: np.ndarray) -> np.ndarray:
    """Printed values [..., P] to working coordinates [..., P]. Raises ValueError on a scale <= 0."""
    values = np.asarray(values, np.float64)
    for p, v in zip(self.params, np.moveaxis(np.atleast_2d(values), -1, 0), strict=True):
      if p.log and not np.all(v > 0):
        raise ValueError(f"{p.name}={v.min():g}: {p.meaning} must be > 0; give a positive value")
    is_log = np.array([p.log for p in self.params])
    return np.where(is_log, np.log(np.where(is_log, values, 1.0)), values)


def log_sum_exp(*terms: jax.Array) -> jax.Array:
  """log(sum(exp(terms))), elementwise. The maximum is constant to autodiff, which keeps second
  derivatives exact and several times cheaper than jax.nn.logsumexp's guarded form."""
  top = terms[0]
  for term in terms[1:]:
    top = jnp.maximum(top, term)
  top = jax.lax.stop_gradient(top)
  return top + jnp.log(sum(jnp.exp(term - top) for term in terms))


def chinchilla(theta, x):
  """log(E + A / N^alpha + B / D^beta)."""
  log_a, log_b, log_e, alpha, beta = theta
  log_n, log_d = jnp.log(x["n_params"]), jnp.log(x["n_tokens"])
  return log_sum_exp(log_a - alpha * log_n, log_b - beta * log_d, log_e)


def chinchilla_starts(x, y_n):
  """The 4,500 starts of Hoffmann et al. 2022 appendix D.3 / Besiroglu et al. 2024."""
  del x, y_n
  scale, level, exponent = np.arange(0, 30, 5.0), np.arange(-1, 1.1, 0.5), np.arange(0, 2.1, 0.5)
  return np.array(list(itertools.product(scale, scale, level, exponent, exponent)))


def kaplan_nd(theta, x):
  """log(((Nc / N)^(alpha_N / alpha_D) + Dc / D)^alpha_D)."""
  log_nc, log_dc, alpha_n, alpha_d = theta
  log_n, log_d = jnp.log(x["n_params"]), jnp.log(x["n_tokens"])
  return alpha_d * log_sum_exp(alpha_n / alpha_d * (log_nc - log_n), log_dc - log_d)


def kaplan_nd_starts(x, y_n):
  log_n, log_d, y = np.log(x["n_params"]).mean(), np.log(x["n_tokens"]).mean(), y_n.mean()
  shares, exponents = (0.2, 0.5, 0.8), (0.03, 0.08, 0.15, 0.4)
  rows = []
  for share, alpha_n, alpha_d in itertools.product(shares, exponents, exponents):
    # at the centre of the data the bracket is exp(y / alpha_d), `share` of it from the N term
    bracket = y / alpha_d
    log_nc = log_n + (np.log(share) + bracket) * alpha_d / alpha_n
    rows.append((log_nc, log_d + np.log(1 - share) + bracket, alpha_n, alpha_d))
  return np.array(rows)


def kaplan_ns(theta, x):
  """log((Nc / N)^alpha_N + (Sc / S)^alpha_S)."""
  log_nc, log_sc, alpha_n, alpha_s = theta
  log_n, log_s = jnp.log(x["n_params"]), jnp.log(x["steps"])
  return log_sum_exp(alpha_n * (log_nc - log_n), alpha_s * (log_sc - log_s))


def kaplan_ns_starts(x, y_n):
  log_n, log_s, y = np.log(x["n_params"]).mean(), np.log(x["steps"]).mean(), y_n.mean()
  grid = itertools.product((0.1, 0.5, 0.9), (0.05, 0.1, 0.3, 0.8), (0.05, 0.2, 0.6, 1.0))
  return np.array(
    [
      (log_n + (np.log(s) + y) / an, log_s + (np.log(1 - s) + y) / a_s, an, a_s)
      for s, an, a_s in grid
    ]
  )


def saturating(theta, x):
  """log(E + K / C^gamma)."""
  log_k, log_e, gamma = theta
  return log_sum_exp(log_k - gamma * jnp.log(x["flops"]), log_e)


def saturating_starts(x, y_n):
  log_c, y = np.log(x["flops"]).mean(), y_n.mean()
  grid = itertools.product((0.05, 0.2, 0.5, 0.9), (0.02, 0.05, 0.1, 0.2, 0.5, 1.0))
  return np.array([(y + np.log(s) + g * log_c, y + np.log(1 - s), g) for s, g in grid])


def overtraining(theta, x):
  """log(E + (A M^eta + B M^-eta) C^-eta), M = D / N."""
  log_a, log_b, log_e, eta = theta
  log_c, log_m = jnp.log(x["flops"]), jnp.log(x["n_tokens"]) - jnp.log(x["n_params"])
  return log_sum_exp(log_a + eta * (log_m - log_c), log_b - eta * (log_m + log_c), log_e)


def overtraining_starts(x, y_n):
  log_c = np.log(x["flops"]).mean()
  log_m = np.log(x["n_tokens"] / x["n_params"]).mean()
  y, grid = y_n.mean(), itertools.product((0.2, 0.5, 0.8), (0.2, 0.5, 0.8), (0.03, 0.1, 0.2, 0.5))
  rows = []
  for above, share, eta in grid:
    reducible = y + np.log(above)
    log_a = reducible + np.log(share) - eta * (log_m - log_c)
    rows.append(
      (log_a, reducible + np.log(1 - share) + eta * (log_m + log_c), y + np.log(1 - above), eta)
    )
  return np.array(rows)


def effective_data(theta, x):
  """(log N', log D') of Muennighoff et al. 2023: repeats and excess parameters decay in worth."""
  log_a, log_b, _, alpha, beta, log_rd, log_rn = theta
  log_n, log_d, log_u = (jnp.log(x[k]) for k in ("n_params", "n_tokens", "unique_tokens"))
  # parameters that would be compute-optimal for U unique tokens, from the law itself
  log_un = (jnp.log(jnp.abs(alpha / beta)) + log_a - log_b + beta * log_u) / alpha
  repeats = jnp.maximum(jnp.exp(log_d - log_u) - 1.0, 0.0)
  excess = jnp.maximum(jnp.exp(jnp.clip(log_n - log_un, None, 40.0)) - 1.0, 0.0)
  worth_d = 1.0 - jnp.exp(log_rd) * jnp.expm1(-repeats * jnp.exp(-log_rd))
  worth_n = 1.0 - jnp.exp(log_rn) * jnp.expm1(-excess * jnp.exp(-log_rn))
  log_seen = jnp.minimum(log_d, log_u)
  return jnp.minimum(log_n, log_un) + jnp.log(worth_n), log_seen + jnp.log(worth_d)


def data_constrained(theta, x):
  """log(E + A / N'^alpha + B / D'^beta); D' = U + U R_D (1 - exp(-(D/U - 1) / R_D)), N' alike."""
  log_a, log_b, log_e, alpha, beta, _, _ = theta
  log_n, log_d = effective_data(theta, x)
  return log_sum_exp(log_a - alpha * log_n, log_b - beta * log_d, log_e)


def data_constrained_starts(x, y_n):
  log_n, log_d, y = np.log(x["n_params"]).mean(), np.log(x["n_tokens"]).mean(), y_n.mean()
  grid = itertools.product(
    (0.2, 0.6), (0.3, 0.7), (0.2, 0.35, 0.6), (0.2, 0.35, 0.6), (1.0, 15.0), (1.0, 15.0)
  )
  rows = []
  for above, share, alpha, beta, r_d, r_n in grid:
    top = y + np.log(above)
    log_a, log_b = top + np.log(share) + alpha * log_n, top + np.log(1 - share) + beta * log_d
    rows.append((log_a, log_b, y + np.log(1 - above), alpha, beta, np.log(r_d), np.log(r_n)))
  return np.array(rows)


def critical_batch(theta, x):
  """log(E + A / N^alpha + B / D1^beta); D = D1 (1 + b / Bc), Bc = k D1^p N^q.

  D1 is what a small batch would need for the same loss. Newton steps in log D1 find it; through the last
  two of them derivatives pass, which are exact up to the third.
  """
  log_a, log_b, log_e, alpha, beta, log_k, p, q = theta
  log_n, log_d = jnp.log(x["n_params"]), jnp.log(x["n_tokens"])
  over = jnp.log(x["batch"]) - log_k - q * log_n  # log(b / Bc) = over - p log D1

  def newton(log_d1, over, p):
    log_ratio = over - p * log_d1
    share = jax.nn.sigmoid(log_ratio)  # b / (b + Bc)
    miss = log_d - log_d1 - jnp.logaddexp(0.0, log_ratio)
    return log_d1 + miss / jnp.maximum(1.0 - p * share, 0.1)

  still = jax.lax.stop_gradient((log_d - jnp.logaddexp(0.0, over - p * log_d), over, p))
  log_d1 = jax.lax.fori_loop(0, NEWTON_STEPS, lambda _, u: newton(u, *still[1:]), still[0])
  log_d1 = newton(newton(jax.lax.stop_gradient(log_d1), over, p), over, p)
  return log_sum_exp(log_a - alpha * log_n, log_b - beta * log_d1, log_e)


def critical_batch_starts(x, y_n):
  log_n, log_d, y = np.log(x["n_params"]).mean(), np.log(x["n_tokens"]).mean(), y_n.mean()
  spread = np.log(np.quantile(x["batch"], (0.1, 0.5, 0.9)))
  grid = itertools.product(
    (0.2, 0.6), (0.2, 0.5), (0.15, 0.4), (0.15, 0.4, 0.8), spread, (0.0, 0.5), (0.0, 0.4)
  )
  rows = []
  for above, share, alpha, beta, log_bc, p, q in grid:
    top = y + np.log(above)
    log_a, log_b = top + np.log(share) + alpha * log_n, top + np.log(1 - share) + beta * log_d
    rows.append(
      (log_a, log_b, y + np.log(1 - above), alpha, beta, log_bc - p * log_d - q * log_n, p, q)
    )
  return np.array(rows)


def downstream(theta, x):
  """eps - k exp(-gamma L): average top-1 error from loss."""
  log_eps, log_k, log_gamma = theta
  return jnp.exp(log_eps) - jnp.exp(log_k - jnp.exp(log_gamma) * x["loss"])


def downstream_starts(x, y_n):
  loss, top = x["loss"].min(), y_n.max()
  rows = []
  for lift, gamma in itertools.product((1.0, 1.1, 1.5), (0.1, 0.3, 0.7, 1.5, 3.0)):
    gap = max(lift * top - y_n[np.argmin(x["loss"])], 1e-3)
    rows.append((np.log(lift * top), np.log(gap) + gamma * loss, np.log(gamma)))
  return np.array(rows)


@functools.lru_cache(maxsize=64)
def with_link(law: Law, link: str) -> Law:
  """The same law predicting log(target) or the target itself; one object each, so nothing recompiles.

  Raises:
    ValueError: an unknown link.
  """
  if link not in ("log", "linear"):
    raise ValueError(f"residual={link!r}: not known; choose log or linear")
  if law.link == link:
    return law
  turn, back = (jnp.exp, np.log) if link == "linear" else (jnp.log, np.exp)
  return dataclasses.replace(
    law,
    predict=lambda theta, x: turn(law.predict(theta, x)),
    starts=lambda x, y_n: law.starts(x, back(y_n)),
    link=link,
  )


_A = Param("A", True, "scale of the model-size term")
_B = Param("B", True, "scale of the data term")
_E = Param("E", True, "irreducible loss, nats/token")
_ALPHA = Param("alpha", False, "exponent of parameters")
_BETA = Param("beta", False, "exponent of tokens")

LAWS = {
  law.name: law
  for law in (
    Law(
      "chinchilla",
      "L = E + A / N^alpha + B / D^beta",
      (_A, _B, _E, _ALPHA, _BETA),
      ("n_params", "n_tokens"),
      chinchilla,
      chinchilla_starts,
      "Hoffmann et al. 2022, arXiv:2203.15556 §3.3; Besiroglu et al. 2024, arXiv:2404.10102",
    ),
    Law(
      "kaplan_nd",
      "L = ((Nc / N)^(alpha_N / alpha_D) + Dc / D)^alpha_D",
      (
        Param("Nc", True, "scale of parameters"),
        Param("Dc", True, "scale of tokens"),
        Param("alpha_N", False, "exponent of parameters"),
        Param("alpha_D", False, "exponent of tokens"),
      ),
      ("n_params", "n_tokens"),
      kaplan_nd,
      kaplan_nd_starts,
      "Kaplan et al. 2020, arXiv:2001.08361 eq. 1.5",
    ),
    Law(
      "kaplan_ns",
      "L = (Nc / N)^alpha_N + (Sc / S)^alpha_S",
      (
        Param("Nc", True, "scale of parameters"),
        Param("Sc", True, "scale of steps"),
        Param("alpha_N", False, "exponent of parameters"),
        Param("alpha_S", False, "exponent of steps"),
      ),
      ("n_params", "steps"),
      kaplan_ns,
      kaplan_ns_starts,
      "Kaplan et al. 2020, arXiv:2001.08361 eq. 1.6",
    ),
    Law(
      "saturating",
      "L = E + K / C^gamma",
      (Param("K", True, "scale"), _E, Param("gamma", False, "exponent of compute")),
      ("flops",),
      saturating,
      saturating_starts,
      "Henighan et al. 2020, arXiv:2010.14701 eq. 1.1",
    ),
    Law(
      "overtraining",
      "L = E + (A M^eta + B M^-eta) / C^eta, M = D / N",
      (
        _A,
        _B,
        _E,
        Param("eta", False, "shared exponent of compute"),
      ),
      ("n_params", "n_tokens", "flops"),
      overtraining,
      overtraining_starts,
      "Gadre et al. 2024, arXiv:2403.08540 eq. 4",
    ),
    Law(
      "data_constrained",
      "L = E + A / N'^alpha + B / D'^beta, D' = U + U R_D (1 - exp(-(D/U - 1) / R_D)), N' alike",
      (
        *(_A, _B, _E, _ALPHA, _BETA),
        Param("R_D", True, "repeats after which a token has lost 1 - 1/e of its worth", True),
        Param("R_N", True, "excess of parameters after which one has lost 1 - 1/e", True),
      ),
      ("n_params", "n_tokens", "unique_tokens"),
      data_constrained,
      data_constrained_starts,
      "Muennighoff et al. 2023, arXiv:2305.16264 §3.1",
    ),
    Law(
      "critical_batch",
      "L = E + A / N^alpha + B / D1^beta, D = D1 (1 + batch / Bc), Bc = k D1^p N^q",
      (
        *(_A, _B, _E, _ALPHA, _BETA),
        Param("k", True, "scale of the critical batch"),
        Param("p", False, "exponent of the critical batch in tokens"),
        Param("q", False, "exponent of the critical batch in parameters"),
      ),
      ("n_params", "n_tokens", "batch"),
      critical_batch,
      critical_batch_starts,
      "McCandlish et al. 2018, arXiv:1812.06162 eq. 2.11 (steps against examples); Zhang et al. 2024, "
      "arXiv:2410.21676 §3",
    ),
    Law(
      "downstream",
      "error = eps - k exp(-gamma L)",
      (
        Param("eps", True, "error at infinite loss"),
        Param("k", True, "scale"),
        Param("gamma", True, "rate, per nat"),
      ),
      ("loss",),
      downstream,
      downstream_starts,
      "Gadre et al. 2024, arXiv:2403.08540 eq. 5",
      target="error",
      link="linear",
    ),
  )
}
