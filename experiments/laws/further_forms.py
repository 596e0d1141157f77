"""Laws of further columns: repeated data, precision, vocabulary, experts, distillation, task accuracy.

Each joins experiments.laws.forms.LAWS; the columns beside sizes, tokens and FLOPs are those of COLUMNS,
which tables may spell as columns.ALIASES says. Published constants are for other units, tokenizers and
losses: what carries over is the form. Logarithms in `leverage` are of base 10.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from experiments.laws import forms
from experiments.laws.forms import Law, Param, log_sum_exp

DRAWS = 256  # starts of each law
COLUMNS = {
  "precision": "bits of a weight in training",
  "n_params_vocab": "parameters of the vocabulary: its size times the width",
  "n_params_non_vocab": "all other parameters",
  "unigram_loss": "loss less that of a model of word frequencies, nats/token; usually negative",
  "n_params_active": "parameters that act on a token",
  "experts": "experts of a layer",
  "granularity": "how many times smaller an expert is than a dense layer would be",
  "activation_ratio": "share of the experts that act on a token, in (0, 1]",
  "leverage": "FLOPs of the dense model of equal loss over the FLOPs of the model",
  "teacher_loss": "cross-entropy of the teacher, nats/token",
  "supervised_loss": "cross-entropy of the same student trained without a teacher",
  "accuracy": "share of a task's items that are right",
}


def _log(x, *names):
  return [jnp.log(x[name]) for name in names]


# ---- Predictions: working coordinates and columns -> log(target), or the target -------------------


def overfitting(theta, x):
  """log(E + A / N^alpha + B / D^beta + P R^delta (N / U)^kappa), R = D / U - 1 repeats, none below 0."""
  log_a, log_b, log_e, alpha, beta, log_p, delta, kappa = theta
  log_n, log_d, log_u = _log(x, "n_params", "n_tokens", "unique_tokens")
  repeats = jnp.exp(log_d - log_u) - 1
  again = repeats > 1e-9
  log_r = jnp.log(jnp.where(again, repeats, 1.0))
  penalty = jnp.where(again, log_p + delta * log_r + kappa * (log_n - log_u), -300.0)
  return log_sum_exp(log_a - alpha * log_n, log_b - beta * log_d, log_e, penalty)


def precision(theta, x):
  """log(E + A / N_eff^alpha + B / D^beta), N_eff = N (1 - exp(-P / gamma))."""
  log_a, log_b, log_e, alpha, beta, log_gamma = theta
  log_n, log_d = _log(x, "n_params", "n_tokens")
  log_n = log_n + jnp.log(-jnp.expm1(-x["precision"] * jnp.exp(-log_gamma)))
  return log_sum_exp(log_a - alpha * log_n, log_b - beta * log_d, log_e)


def vocabulary(theta, x):
  """-E + A1 / N_nv^alpha1 + A2 / N_v^alpha2 + B / D^beta."""
  log_e, log_1, alpha_1, log_2, alpha_2, log_b, beta = theta
  log_nv, log_v, log_d = _log(x, "n_params_non_vocab", "n_params_vocab", "n_tokens")
  falls = log_sum_exp(log_1 - alpha_1 * log_nv, log_2 - alpha_2 * log_v, log_b - beta * log_d)
  return jnp.exp(falls) - jnp.exp(log_e)


def granularity(theta, x):
  """log(c + (g / G^gamma + a) / N^alpha + b / D^beta)."""
  log_g, gamma, log_a, alpha, log_b, beta, log_c = theta
  log_n, log_d, log_G = _log(x, "n_params_active", "n_tokens", "granularity")
  return log_sum_exp(
    log_g - gamma * log_G - alpha * log_n, log_a - alpha * log_n, log_b - beta * log_d, log_c
  )


def saturated(value, log_start, log_most, offset):
  """log v', 1 / v' = 1 / (v - offset + (1 / start - 1 / most)^-1) + 1 / most (Clark et al. 2022)."""
  gap = jnp.maximum(jnp.exp(-log_start) - jnp.exp(-log_most), 1e-12)
  return -jnp.log(1 / (value - offset + 1 / gap) + jnp.exp(-log_most))


def joint_experts(theta, x):
  """log(a E'^delta N^-(alpha + gamma ln E') + b E'^omega D^-(beta + zeta ln E') + c)."""
  log_a, delta, alpha, gamma, log_b, omega, beta, zeta, log_c, log_start, log_most = theta
  log_n, log_d = _log(x, "n_params_active", "n_tokens")
  log_e = saturated(x["experts"], log_start, log_most, 1.0)
  return log_sum_exp(
    log_a + delta * log_e - (alpha + gamma * log_e) * log_n,
    log_b + omega * log_e - (beta + zeta * log_e) * log_d,
    log_c,
  )


def leverage(theta, x):
  """log A'^(a + d log C + gamma (log G)^2 + beta log G)."""
  a, d, gamma, beta, log_start, log_most = theta
  log_c, log_g = (v / np.log(10) for v in _log(x, "flops", "granularity"))
  power = a + d * log_c + gamma * log_g**2 + beta * log_g
  return power * saturated(x["activation_ratio"], log_start, log_most, 0.0)


def distillation(theta, x):
  """log(L_T + L_T^-c0 (1 + (L_T / (L_S d1))^(1 / f1))^(-c1 f1) (A / N^alpha + B / D^beta)^gamma)."""
  c0, log_c1, log_d1, log_f1, log_a, log_b, alpha, beta, gamma = theta
  log_n, log_d, log_t, log_s = _log(x, "n_params", "n_tokens", "teacher_loss", "supervised_loss")
  f1 = jnp.exp(log_f1)
  ratio = (log_t - log_s - log_d1) / f1
  bend = jnp.where(ratio > 30, ratio, jnp.log1p(jnp.exp(jnp.minimum(ratio, 30.0))))
  above = gamma * log_sum_exp(log_a - alpha * log_n, log_b - beta * log_d)
  return log_sum_exp(log_t, -c0 * log_t - jnp.exp(log_c1) * f1 * bend + above)


def direct(theta, x):
  """log Q = -(A / N^alpha + B / D^beta)."""
  log_a, log_b, alpha, beta = theta
  log_n, log_d = _log(x, "n_params", "n_tokens")
  return -jnp.exp(log_sum_exp(log_a - alpha * log_n, log_b - beta * log_d))


def direct_compute(theta, x):
  """log Q = -A / C^alpha."""
  log_a, alpha = theta
  return -jnp.exp(log_a - alpha * jnp.log(x["flops"]))


def sigmoid(theta, x):
  """b + a / (1 + exp(k (L - L0)))."""
  log_a, log_k, middle, log_b = theta
  return jnp.exp(log_b) + jnp.exp(log_a) / (1 + jnp.exp(jnp.exp(log_k) * (x["loss"] - middle)))


# ---- Starts: shapes drawn, scales such that each term has a drawn share of the target --------------

_Shape = Callable[[np.ndarray, Mapping[str, float]], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Starts:
  """Starts of a sum of terms: [DRAWS, P] working coordinates.

  shapes: {parameter's place: (low, high)} of what is no scale, drawn uniformly.
  terms: {place of a scale: function of (theta [S, P], log column means) -> log of the term over its scale}.
  of: the target's log that the terms sum to, from (x, y).
  """

  n: int
  shapes: Mapping[int, tuple[float, float]]
  terms: Mapping[int, _Shape]
  of: Callable = lambda x, y: np.mean(y)

  def __call__(self, x, y_n) -> np.ndarray:
    rng = np.random.default_rng(0)
    theta = np.zeros((DRAWS, self.n))
    for place, (low, high) in self.shapes.items():
      theta[:, place] = rng.uniform(low, high, DRAWS)
    centre = {k: float(np.log(np.abs(v)).mean()) for k, v in x.items()}
    shares = rng.dirichlet(np.ones(len(self.terms)), DRAWS)
    for share, (place, term) in zip(shares.T, self.terms.items(), strict=True):
      theta[:, place] = np.log(np.maximum(share, 1e-4)) + self.of(x, y_n) - term(theta, centre)
    return theta


def _falls(exponent: int, column: str) -> _Shape:
  """log of 1 / column^theta[exponent]."""
  return lambda t, at: -t[:, exponent] * at[column]


def _flat(t, at):
  return np.zeros(len(t))


_EXPONENT = (0.03, 0.8)
_overfitting_starts = Starts(
  8,
  {3: _EXPONENT, 4: _EXPONENT, 6: (0.3, 2.0), 7: (0.2, 1.5)},
  {0: _falls(3, "n_params"), 1: _falls(4, "n_tokens"), 2: _flat,
   5: lambda t, at: t[:, 7] * (at["n_params"] - at["unique_tokens"]) + t[:, 6]},
)  # fmt: skip
_precision_starts = Starts(
  6,
  {3: _EXPONENT, 4: _EXPONENT, 5: (-0.5, 2.0)},
  {0: _falls(3, "n_params"), 1: _falls(4, "n_tokens"), 2: _flat},
)
_granularity_starts = Starts(
  7,
  {1: (0.1, 1.0), 3: _EXPONENT, 5: _EXPONENT},
  {0: lambda t, at: -t[:, 1] * at["granularity"] - t[:, 3] * at["n_params_active"],
   2: _falls(3, "n_params_active"), 4: _falls(5, "n_tokens"), 6: _flat},
)  # fmt: skip
_joint_starts = Starts(
  11,
  {1: (-0.5, 0.5), 2: _EXPONENT, 3: (-0.02, 0.02), 5: (-0.5, 0.5), 6: _EXPONENT, 7: (-0.02, 0.02),
   9: (0.1, 1.5), 10: (4.5, 7.0)},
  {0: lambda t, at: t[:, 1] * at["experts"] - (t[:, 2] + t[:, 3] * at["experts"]) * at["n_params_active"],
   4: lambda t, at: t[:, 5] * at["experts"] - (t[:, 6] + t[:, 7] * at["experts"]) * at["n_tokens"],
   8: _flat},
)  # fmt: skip
_direct_starts = Starts(
  4,
  {2: _EXPONENT, 3: _EXPONENT},
  {0: _falls(2, "n_params"), 1: _falls(3, "n_tokens")},
  of=lambda x, y: np.log(np.maximum(-np.mean(y), 1e-3)),
)
_direct_compute_starts = Starts(
  2, {1: (0.02, 0.6)}, {0: _falls(1, "flops")}, of=lambda x, y: np.log(np.maximum(-np.mean(y), 1e-3))
)  # fmt: skip


def _vocabulary_starts(x, y_n):
  """The floor lies below all losses; what is above it is shared out among the terms."""
  rng, out = np.random.default_rng(1), []
  for below in (0.05, 0.3, 1.0, 3.0):
    e = max(-float(y_n.min()), 1e-3) + below * max(float(np.ptp(y_n)), 1e-3)
    above = np.log(max(float(np.mean(y_n)) + e, 1e-3))
    inner = Starts(
      7,
      {2: _EXPONENT, 4: _EXPONENT, 6: _EXPONENT},
      {1: _falls(2, "n_params_non_vocab"), 3: _falls(4, "n_params_vocab"), 5: _falls(6, "n_tokens")},
      of=lambda x, y, above=above: above,
    )(x, y_n)  # fmt: skip
    inner[:, 0] = np.log(e)
    out.append(inner[rng.permutation(DRAWS)[: DRAWS // 2]])
  return np.concatenate(out)


def _leverage_starts(x, y_n):
  """Linear in (a, d, gamma, beta) once A_start and A_max are given: each start solves for them."""
  log_c, log_g = (np.log10(x[k]) for k in ("flops", "granularity"))
  basis = np.stack([np.ones_like(log_c), log_c, log_g**2, log_g], 1)
  rows = []
  for start in np.geomspace(1e-3, 0.5, 12):
    for most in (1.05, 3.0, 1e3, 1e9):
      log_a = np.asarray(saturated(x["activation_ratio"], np.log(start), np.log(most), 0.0))
      found = np.linalg.lstsq(basis * log_a[:, None], y_n, rcond=None)[0]
      rows.append([*found, np.log(start), np.log(most)])
  return np.array(rows)


def _distillation_starts(x, y_n):
  """What lies above the teacher is shared out; the bend lies near the student's own loss."""
  above = np.exp(y_n) - x["teacher_loss"]
  level = float(np.log(np.maximum(np.median(above), 1e-3)))
  rng = np.random.default_rng(2)
  out = Starts(
    9,
    {0: (-1.0, 3.0), 1: (-1.0, 6.0), 2: (-0.2, 0.6), 3: (-3.0, 0.0), 6: _EXPONENT, 7: _EXPONENT,
     8: (0.3, 1.2)},
    {4: _falls(6, "n_params"), 5: _falls(7, "n_tokens")},
    of=lambda x, y: 0.0,
  )(x, y_n)  # fmt: skip
  lift = level + out[:, 0] * float(np.log(x["teacher_loss"]).mean()) + rng.uniform(0, 3, DRAWS)
  out[:, 4:6] += (lift / out[:, 8])[:, None]
  return out


def _sigmoid_starts(x, y_n):
  rows = []
  low, high = float(y_n.min()), float(y_n.max())
  for floor in (0.25, 0.6, 0.95):
    for lift in (1.05, 1.5, 3.0):
      for k in (0.5, 1.0, 2.0, 5.0, 12.0):
        for q in (0.1, 0.5, 0.9):
          b = max(floor * low, 1e-3)
          a = lift * max(high - b, 1e-3)
          rows.append((np.log(a), np.log(k), np.quantile(x["loss"], q), np.log(b)))
  return np.array(rows)


# ---- The table -----------------------------------------------------------------------------------

_A, _B, _E, _ALPHA, _BETA = forms.LAWS["chinchilla"].params


def _scale(name: str, meaning: str, open_above: bool = False) -> Param:
  return Param(name, True, meaning, open_above)


def _free(name: str, meaning: str) -> Param:
  return Param(name, False, meaning)


FURTHER: Sequence[Law] = (
  Law(
    "overfitting",
    "L = E + A / N^alpha + B / D^beta + P (D / U - 1)^delta (N / U)^kappa",
    (_A, _B, _E, _ALPHA, _BETA, _scale("P", "scale of the penalty of repeats"),
     _free("delta", "exponent of repeats"), _free("kappa", "exponent of parameters per unique token")),
    ("n_params", "n_tokens", "unique_tokens"),
    overfitting,
    _overfitting_starts,
    "Lovelace et al. 2026, arXiv:2605.01640",
  ),
  Law(
    "precision",
    "L = E + A / (N (1 - exp(-P / gamma)))^alpha + B / D^beta",
    (_A, _B, _E, _ALPHA, _BETA, _scale("gamma", "bits after which 1 - 1/e of a parameter is there")),
    ("n_params", "n_tokens", "precision"),
    precision,
    _precision_starts,
    "Kumar et al. 2024, arXiv:2411.04330 eq. 3",
  ),
  Law(
    "vocabulary",
    "Lu = -E + A1 / Nnv^alpha1 + A2 / Nv^alpha2 + B / D^beta",
    (_scale("E", "how far below a model of word frequencies the loss can fall"),
     _scale("A1", "scale of the other parameters' term"), _free("alpha1", "exponent of other parameters"),
     _scale("A2", "scale of the vocabulary's term"), _free("alpha2", "exponent of the vocabulary"),
     _B, _BETA),
    ("n_params_non_vocab", "n_params_vocab", "n_tokens"),
    vocabulary,
    _vocabulary_starts,
    "Tao et al. 2024, arXiv:2407.13623 (approach 3)",
    target="unigram_loss",
    link="linear",
  ),
  Law(
    "granularity",
    "L = c + (g / G^gamma + a) / N^alpha + b / D^beta",
    (_scale("g", "scale of what granularity takes away"), _free("gamma", "exponent of granularity"),
     _scale("a", "scale of the size term at any granularity"), _ALPHA, _scale("b", "scale of the data term"),
     _BETA, _scale("c", "irreducible loss, nats/token")),
    ("n_params_active", "n_tokens", "granularity"),
    granularity,
    _granularity_starts,
    "Krajewski et al. 2024, arXiv:2402.07871 eq. 9",
  ),
  Law(
    "joint_experts",
    "L = a E'^delta / N^(alpha + gamma ln E') + b E'^omega / D^(beta + zeta ln E') + c, "
    "1/E' = 1/(E - 1 + (1/E_start - 1/E_max)^-1) + 1/E_max",
    (_scale("a", "scale of the size term"), _free("delta", "exponent of experts in the size term"), _ALPHA,
     _free("gamma", "what ln E' adds to alpha"), _scale("b", "scale of the data term"),
     _free("omega", "exponent of experts in the data term"), _BETA, _free("zeta", "what ln E' adds to beta"),
     _scale("c", "irreducible loss, nats/token"), _scale("E_start", "E' of one expert"),
     _scale("E_max", "E' of infinitely many", True)),
    ("n_params_active", "n_tokens", "experts"),
    joint_experts,
    _joint_starts,
    "Ludziejewski et al. 2025, arXiv:2502.05172; E' of Clark et al. 2022, arXiv:2202.01169",
  ),
  Law(
    "leverage",
    "EL = A'^(a + d log C + gamma (log G)^2 + beta log G), 1/A' = 1/(A + (1/A_start - 1/A_max)^-1) + 1/A_max",
    (_free("a", "exponent of the activation ratio at C = G = 1"), _free("d", "what log10 FLOPs add to it"),
     _free("gamma", "what (log10 G)^2 adds"), _free("beta", "what log10 G adds"),
     _scale("A_start", "A' of activation ratio 0"), _scale("A_max", "most that A' can be", True)),
    ("activation_ratio", "granularity", "flops"),
    leverage,
    _leverage_starts,
    "Tian et al. 2025, arXiv:2507.17702 eq. 13",
    target="leverage",
  ),
  Law(
    "distillation",
    "L = LT + (1 + (LT / (LS d1))^(1/f1))^(-c1 f1) (A / N^alpha + B / D^beta)^gamma / LT^c0",
    (_free("c0", "exponent of the teacher's loss"), _scale("c1", "slope beyond the bend"),
     _scale("d1", "LT / LS at the bend"), _scale("f1", "width of the bend"), _A, _B, _ALPHA, _BETA,
     _free("gamma", "exponent of the student's terms together")),
    ("n_params", "n_tokens", "teacher_loss", "supervised_loss"),
    distillation,
    _distillation_starts,
    "Busbridge et al. 2025, arXiv:2502.08606 eq. 8",
  ),
  Law(
    "direct",
    "-log Q = A / N^alpha + B / D^beta",
    (_A, _B, _ALPHA, _BETA),
    ("n_params", "n_tokens"),
    direct,
    _direct_starts,
    "Krajewski et al. 2025, arXiv:2512.08894",
    target="accuracy",
  ),
  Law(
    "direct_compute",
    "-log Q = A / C^alpha",
    (_scale("A", "scale"), _free("alpha", "exponent of compute")),
    ("flops",),
    direct_compute,
    _direct_compute_starts,
    "Krajewski et al. 2025, arXiv:2512.08894",
    target="accuracy",
  ),
  Law(
    "sigmoid",
    "Q = b + a / (1 + exp(k (L - L0)))",
    (_scale("a", "what there is to gain over b"), _scale("k", "steepness, per nat"),
     _free("L0", "loss where half of it is gained"), _scale("b", "accuracy at infinite loss")),
    ("loss",),
    sigmoid,
    _sigmoid_starts,
    "Bhagia et al. 2024, arXiv:2412.04403 §3",
    target="accuracy",
    link="linear",
  ),
)  # fmt: skip
forms.LAWS.update({law.name: law for law in FURTHER})
