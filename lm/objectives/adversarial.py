"""A text GAN: a recurrent generator against a critic that tells its sentences from real ones.

Three ways to send the critic's opinion through sampled tokens (objective.estimator):

    gumbel_softmax    y_t = softmax((logits_t + g_t) / T) is what the critic and the next step read
                      (Kusner & Hernandez-Lobato 2016, arXiv:1611.04051)
    straight_through  they read one_hot(argmax(logits_t + g_t)), whose gradient is that of y_t
                      (Jang et al. 2017, arXiv:1611.01144, §2.2)
    policy_gradient   sampled tokens are actions: sum_t (Q_t - mean of Q_t over rows) grad log p(x_t), where
                      Q_t is the mean probability of being real of `rollouts` ends drawn after x_1 .. x_t
                      (SeqGAN: Yu et al. 2017, arXiv:1609.05473, §3.1, which has no such baseline)

With the first two the critic is Wasserstein's, with gradient penalty (Gulrajani et al. 2017,
arXiv:1704.00028), u uniform for each row:

    critic:     D(fake) - D(real) + penalty (|grad_z D(z)| - 1)^2,   z = u real + (1 - u) fake
    generator:  -D(fake)

and with policy_gradient D is a logit, trained by cross-entropy. Generator and critic take one step each, at
rates of their own (optim.groups; Heusel et al. 2017, arXiv:1706.08500), instead of several critic steps for
a generator step. First come `likelihood_steps` of the generator by maximum likelihood, then `critic_steps`
of the critic alone; whose turn it is not has a gradient of 0, which leaves it the optimizer's momentum and
weight decay. Whether the adversarial part helps at all is a question of its own (Caccia et al. 2020,
arXiv:1811.02549).

A sentence is a row's targets; sampled ones follow the row's first token and are as long as the row.

Axes: B rows, L length, V vocabulary, D width of the critic's embedding, F its filters.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config.errors import ConfigError
from lm.config.schema import Config, ObjectiveConfig, field
from lm.data import curriculum
from lm.models.family import Weight
from lm.models.registry import family_of
from lm.objectives import next_token
from lm.objectives.cross_entropy import token_sums
from lm.objectives.objective import GradFn, LossFn, Metric, Objective, Part, Sums

UNROLL = 1  # steps in the body of the loop that writes
ESTIMATORS = ("gumbel_softmax", "straight_through", "policy_gradient")
PART = "critic"
DROPOUT = ("dropout", "input_dropout", "output_dropout", "embed_dropout", "weight_drop")


@dataclasses.dataclass(frozen=True)
class AdversarialConfig(ObjectiveConfig):
  estimator: str = field(choices=ESTIMATORS)
  temperature: float = field("(0, inf)", "1", traced=True)  # T of the softmax
  penalty: float = field("[0, inf)", "10", traced=True)  # weight of the gradient penalty
  likelihood_steps: int = field("[0, inf)", "500")  # of the generator by maximum likelihood
  critic_steps: int = field("[0, inf)", "100")  # of the critic alone, after those
  likelihood_weight: float = field("[0, inf)", "0.1", traced=True)  # of the likelihood afterwards
  rollouts: int = field("[1, inf)", "16")  # ends drawn at each position (policy_gradient)
  critic_width: int = field("[1, inf)", "64")  # of the critic's embedding
  critic_filters: int = field("[1, inf)", "64")  # of each size
  critic_sizes: tuple[int, ...] = field()  # tokens that a filter spans


class Critic(nn.Module):
  """One number for each sentence: filters of several sizes, their maxima, a highway, a line.

      c_k = max_l relu(sum_i e_{l + i} W_k[i] + b_k);  t = sigmoid(c T + s)
      score = (t relu(c H + h) + (1 - t) c) w

  e are rows of a table, mixed where a token is, and 0 past the end (Kim 2014, arXiv:1408.5882; SeqGAN, §3.3).
  """

  cfg: AdversarialConfig
  vocab_size: int

  @nn.compact
  def __call__(self, sentence_BLV: jax.Array) -> jax.Array:
    """float32 [B, L, V], a distribution or zeros at each position -> float32 [B]."""
    cfg = self.cfg
    width, filters = cfg.critic_width, cfg.critic_filters

    def param(name, shape, std):
      init = nn.initializers.normal(std) if std else nn.initializers.zeros
      return self.param(name, nn.with_logical_partitioning(init, _replicated(shape)), shape)

    length = sentence_BLV.shape[1]
    e_BLD = sentence_BLV @ param("table", (self.vocab_size, width), 1.0)
    found = []
    for size in cfg.critic_sizes:
      kernel = param(f"filter_{size}", (size * width, filters), (size * width) ** -0.5)
      padded = jnp.pad(e_BLD, ((0, 0), (0, size - 1), (0, 0)))
      windows = jnp.concatenate([padded[:, i : i + length] for i in range(size)], axis=-1)
      c_BLF = windows @ kernel + _row(param(f"filter_{size}_bias", (filters,), 0), 3)
      found.append(jax.nn.relu(c_BLF).max(axis=1))
    c_BF = jnp.concatenate(found, axis=-1)
    wide = c_BF.shape[-1]
    gate = jax.nn.sigmoid(
      c_BF @ param("gate", (wide, wide), wide**-0.5) + _row(param("gate_bias", (wide,), 0), 2)
    )
    new = jax.nn.relu(
      c_BF @ param("highway", (wide, wide), wide**-0.5) + _row(param("highway_bias", (wide,), 0), 2)
    )
    return ((gate * new + (1 - gate) * c_BF) @ param("score", (wide, 1), wide**-0.5))[:, 0]


def _replicated(shape):
  return ("replicated",) * len(shape)


def _row(bias, ndim):
  return jnp.expand_dims(bias, tuple(range(ndim - 1)))


def critic_weights(cfg: Config) -> list[Weight]:
  """Every weight of the critic."""
  objective = cfg.objective
  width, filters = objective.critic_width, objective.critic_filters
  vocab: Any = cfg.model.vocab_size
  wide = filters * len(objective.critic_sizes)
  found = [Weight(f"{PART}/table", "embed", (vocab, width))]
  for size in objective.critic_sizes:
    found.append(Weight(f"{PART}/filter_{size}", "hidden", (size * width, filters)))
    found.append(Weight(f"{PART}/filter_{size}_bias", "vector", (filters,)))
  for name in ("gate", "highway"):
    found.append(Weight(f"{PART}/{name}", "hidden", (wide, wide)))
    found.append(Weight(f"{PART}/{name}_bias", "vector", (wide,)))
  return [*found, Weight(f"{PART}/score", "readout", (wide, 1))]


class CriticFlops(NamedTuple):
  """Of a critic's forward pass, for each token."""

  table: float  # 2 V D
  filters: float  # 2 sum_k k D F
  highway: float  # its share of a row: 2 (2 W W + W) / L, W all filters

  def times(self, table: float, rest: float) -> float:
    return table * self.table + rest * (self.filters + self.highway)


def critic_flops(cfg: Config) -> CriticFlops:
  """What a critic multiplies in a forward pass."""
  objective = cfg.objective
  width, filters = objective.critic_width, objective.critic_filters
  wide = filters * len(objective.critic_sizes)
  vocab: Any = cfg.model.vocab_size
  return CriticFlops(
    2.0 * vocab * width,
    2.0 * sum(objective.critic_sizes) * width * filters,
    2.0 * (2 * wide * wide + wide) / cfg.model.seq_len,
  )


def exact_flops(cfg: Config, causal: bool) -> float:
  """Training FLOPs of a token, averaged over the phases of a run.

  F are the family's (forward and backward), S = 2 V D those of a written token that is read as a vector of
  numbers, C those of a critic's forward pass. Likelihood: F, in all phases, as its weight is traced.
  gumbel_softmax, straight_through: F + 3 S for the sampled sentence; 6 C for the critic's scores of real and
  fake, of which the generator's way back takes C more; 6 C for the penalty (a gradient, and the gradient of
  that). What the critic's table reads has no gradient: it counts 4, 1 and 5 times. policy_gradient: F / 3 + S
  for the sentence, (F / 3 + S + C) (L - 1) rollouts for its ends, F for log p, 6 C for the critic, 4 of them
  of the table.
  """
  model: Any = cfg.model
  objective = cfg.objective
  family, critic = family_of(model).exact_flops(model, causal), critic_flops(cfg)
  steps = cfg.train.steps or 1
  first = min(objective.likelihood_steps, steps) / steps
  soft = 2.0 * model.vocab_size * model.width
  if objective.estimator == "policy_gradient":
    end = family / 3 + soft + critic.times(1, 1)
    ends = end * (model.seq_len - 1) * objective.rollouts
    later = family / 3 + soft + ends + family + critic.times(4, 6)
  else:
    later = family + 3 * soft + critic.times(4 + 1 + 5, 6 + 1 + 6)
  return family + (1 - first) * later


# --- sentences ------------------------------------------------------------------------------------


def write(
  module: nn.Module,
  params: Any,
  first_B: jax.Array,
  noise_LBV: jax.Array,
  temperature: jax.Array | float,
  estimator: str,
  given_BL: jax.Array | None = None,
  n_given: jax.Array | int = 0,
) -> tuple[jax.Array, jax.Array]:
  """Sentences that the generator writes after a first token, one token after the other.

  Args:
    module: of a family with `soft_step` and `init_carry`.
    first_B: int32, what comes before the sentence.
    noise_LBV: Gumbel noise, so that argmax(logits + noise) is a draw from softmax(logits).
    given_BL: int32; its first `n_given` tokens are written instead of drawn ones.

  Returns:
    (int32 [B, L], what a critic reads: float32 [B, L, V]); with gumbel_softmax and straight_through the
    latter has gradients for the parameters.
  """
  vocab = noise_LBV.shape[-1]
  one_hot = lambda ids: jax.nn.one_hot(ids, vocab, dtype=jnp.float32)

  def step(state, each):
    y_BV, carry = state
    noise_BV, given_B, index = each
    logits_BV, carry = module.apply({"params": params}, y_BV, carry, method="soft_step")
    noisy_BV = logits_BV + noise_BV
    ids_B = jnp.argmax(noisy_BV, axis=-1)
    if given_B is not None:
      ids_B = jnp.where(index < n_given, given_B, ids_B)
    y_BV = one_hot(ids_B)
    if estimator != "policy_gradient":
      soft_BV = jax.nn.softmax(noisy_BV / temperature)
      straight = y_BV + soft_BV - jax.lax.stop_gradient(soft_BV)
      y_BV = soft_BV if estimator == "gumbel_softmax" else straight
    return (y_BV, carry), (ids_B, y_BV)

  carry = module.apply({"params": params}, first_B.shape[0], method="init_carry")
  given_LB = None if given_BL is None else given_BL.T
  each = (noise_LBV, given_LB, jnp.arange(noise_LBV.shape[0]))
  _, (ids_LB, y_LBV) = jax.lax.scan(step, (one_hot(first_B), carry), each, unroll=UNROLL)
  return ids_LB.T, jnp.swapaxes(y_LBV, 0, 1)


def gradient_penalty(critic, real_BLV: jax.Array, fake_BLV: jax.Array, share_B: jax.Array):
  """float32 [B]: (|grad_z critic(z)| - 1)^2 at z = share real + (1 - share) fake, row by row."""
  share_B11 = jnp.expand_dims(share_B, (1, 2))
  mixed_BLV = share_B11 * real_BLV + (1 - share_B11) * fake_BLV
  slopes_BLV = jax.grad(lambda z_BLV: critic(z_BLV).sum())(mixed_BLV)
  # The root's slope is infinite at 0, where all of a row's slopes may be.
  norms_B = jnp.sqrt(jnp.square(slopes_BLV).sum(axis=(1, 2)) + 1e-12)
  return jnp.square(norms_B - 1)


# --- the objective --------------------------------------------------------------------------------

TRAIN = {
  "loss": Metric("nats/token of this step's batch under the generator", "lower"),
  "accuracy": Metric("fraction of this batch's tokens that the generator predicts", "higher"),
  "critic_loss": Metric("the critic's objective, a row; 0 before its first step"),
  "gap": Metric("critic's mean score of real rows less that of written ones"),
  "penalty": Metric(
    "mean (norm of the gradient - 1)^2 of the critic between real and written rows"
  ),
}


def _nll(module, params, batch, hparams):
  """`token_sums` of the batch under the generator."""
  apply: Any = module.apply
  x_BLD = apply({"params": params}, batch["tokens"], None, batch.get("segments"), method="hidden")
  logits_BLV = apply({"params": params}, x_BLD, method="logits")
  plain = hparams.replace(z_loss=0.0, label_smoothing=0.0)
  return token_sums(logits_BLV, batch["targets"], batch["weights"], plain, batch.get("text"))


def make_loss(module: nn.Module, cfg: Config) -> LossFn:
  """Held-out text under the generator, as a language model; what training minimises is in `make_grads`."""

  def loss_fn(params, extra, batch, key, hparams):
    objective, sums = _nll(module, params, batch, hparams)
    return objective, (sums, extra)

  return loss_fn


def make_grads(module: nn.Module, cfg: Config) -> GradFn:
  """Gradients of the generator and of the critic, each of its own loss; sums are over rows.

  extra["steps"] counts updates and says which of the three phases this is.
  """
  objective = cfg.objective
  estimator: str = objective.estimator
  vocab: Any = cfg.model.vocab_size
  judge = _critic(cfg)
  score: Any = lambda critic, sentence_BLV: judge.apply({"params": critic}, sentence_BLV)
  start, later = objective.likelihood_steps, objective.likelihood_steps + objective.critic_steps

  def likelihood(generator, batch, hparams):
    """Mean over a row's tokens, summed over rows."""
    total, sums = _nll(module, generator, batch, hparams)
    return total / batch["targets"].shape[1], sums

  def wasserstein(generator, critic, batch, key, hparams):
    """(the generator's loss, sentences as the critic reads them); both with gradients."""
    shape = (*batch["targets"].T.shape, vocab)
    noise_LBV = jax.random.gumbel(key, shape)
    first_B = batch["tokens"][:, 0]
    _, fake_BLV = write(module, generator, first_B, noise_LBV, hparams.temperature, estimator)
    fake_BLV *= jnp.expand_dims(batch["weights"], 2)
    return -score(critic, fake_BLV).sum(), fake_BLV

  def policy(generator, critic, batch, key, hparams):
    """The same, its gradient by REINFORCE."""
    length, rows = batch["targets"].T.shape
    first_B = batch["tokens"][:, 0]
    key, mine = jax.random.split(key)
    frozen = jax.lax.stop_gradient(generator)
    noise_LBV = jax.random.gumbel(mine, (length, rows, vocab))
    ids_BL, fake_BLV = write(module, frozen, first_B, noise_LBV, 1.0, estimator)
    weights_BL = batch["weights"]
    real = lambda y_BLV: jax.nn.sigmoid(score(critic, y_BLV * jnp.expand_dims(weights_BL, 2)))

    def value(number):
      """Q of the sentence up to this position, [B]."""

      def one(key):
        noise_LBV = jax.random.gumbel(key, (length, rows, vocab))
        ends = write(module, frozen, first_B, noise_LBV, 1.0, estimator, ids_BL, number)
        return real(ends[1])

      keys = jax.random.split(jax.random.fold_in(key, number), objective.rollouts)
      return jax.lax.map(one, keys).mean(axis=0)

    q_LB = jax.lax.map(value, jnp.arange(1, length))
    q_BL = jnp.concatenate([q_LB, jnp.expand_dims(real(fake_BLV), 0)]).T
    gain_BL = q_BL - q_BL.mean(axis=0, keepdims=True)
    inputs_BL = jnp.concatenate([jnp.expand_dims(first_B, 1), ids_BL[:, :-1]], axis=1)
    apply: Any = module.apply
    x_BLD = apply({"params": generator}, inputs_BL, method="hidden")
    log_p_BLV = jax.nn.log_softmax(apply({"params": generator}, x_BLD, method="logits"))
    log_p_BL = (log_p_BLV * jax.nn.one_hot(ids_BL, vocab)).sum(axis=-1)
    loss = -(weights_BL * jax.lax.stop_gradient(gain_BL) * log_p_BL).sum()
    return loss, fake_BLV * jnp.expand_dims(weights_BL, 2)

  def critic_loss(critic, batch, fake_BLV, key, hparams):
    real_BLV = jax.nn.one_hot(batch["targets"], vocab) * jnp.expand_dims(batch["weights"], 2)
    real_B, fake_B = score(critic, real_BLV), score(critic, fake_BLV)
    if estimator == "policy_gradient":
      loss = (jax.nn.softplus(-real_B) + jax.nn.softplus(fake_B)).sum()
      return loss, {"gap": (real_B - fake_B).sum(), "penalty": jnp.float32(0)}
    share_B = jax.random.uniform(key, real_B.shape)
    penalty = gradient_penalty(lambda z: score(critic, z), real_BLV, fake_BLV, share_B).sum()
    loss = (fake_B - real_B).sum() + hparams.penalty * penalty
    return loss, {"gap": (real_B - fake_B).sum(), "penalty": penalty}

  fool = policy if estimator == "policy_gradient" else wasserstein
  nothing = {"critic_loss": jnp.float32(0), "gap": jnp.float32(0), "penalty": jnp.float32(0)}

  def grad_fn(params, extra, batch, key, hparams):
    critic = params[PART]
    generator = {name: leaf for name, leaf in params.items() if name != PART}
    write_key, mix_key = jax.random.split(key)

    def by_likelihood():
      (total, sums), grads = jax.value_and_grad(likelihood, has_aux=True)(generator, batch, hparams)
      return grads | {PART: jax.tree.map(jnp.zeros_like, critic)}, total, sums | nothing

    def against():
      def loss_fn(generator):
        loss, fake_BLV = fool(generator, critic, batch, write_key, hparams)
        total, sums = likelihood(generator, batch, hparams)
        return loss + hparams.likelihood_weight * total, (fake_BLV, sums)

      (total, (fake_BLV, sums)), grads = jax.value_and_grad(loss_fn, has_aux=True)(generator)
      (loss, told), critic_grads = jax.value_and_grad(critic_loss, has_aux=True)(
        critic, batch, jax.lax.stop_gradient(fake_BLV), mix_key, hparams
      )
      both = extra["steps"] >= later
      grads = jax.tree.map(lambda g: jnp.where(both, g, 0), grads)
      return grads | {PART: critic_grads}, total, sums | told | {"critic_loss": loss}

    grads, total, sums = jax.lax.cond(extra["steps"] < start, by_likelihood, against)
    rows = jnp.float32(batch["targets"].shape[0])
    sums = {"units": sums["weight"]} | sums | {"weight": rows}
    return grads, total, (sums, extra)

  return grad_fn


def train_scores(sums: Sums) -> dict[str, jax.Array]:
  """Means over tokens of what is the generator's, over rows of what is the critic's."""
  tokens, rows = jnp.maximum(sums["units"], 1.0), jnp.maximum(sums["weight"], 1.0)
  found = {"loss": sums["loss"] / tokens, "accuracy": sums["correct"] / tokens}
  return found | {name: sums[name] / rows for name in ("critic_loss", "gap", "penalty")}


def check(cfg: Config) -> None:
  """ConfigError for filters that do not fit a row, dropout, which nothing here does, and a row by itself."""
  for key in DROPOUT:
    rate = getattr(cfg.model, key, None)
    if rate:
      raise ConfigError(
        f"model.{key}={rate}: objective.name=adversarial reads and writes sentences whole; use 0"
      )
  rows = cfg.train.batch_size // cfg.train.accumulate
  if cfg.objective.estimator == "policy_gradient" and rows == 1:
    raise ConfigError(
      f"train.batch_size={cfg.train.batch_size}: leaves one row in each of train.accumulate="
      f"{cfg.train.accumulate} parts, and objective.estimator=policy_gradient compares rows; raise it"
    )
  sizes = cfg.objective.critic_sizes
  shown = ",".join(map(str, sizes))
  if not sizes or not all(1 <= size <= cfg.model.seq_len for size in sizes):
    raise ConfigError(
      f"objective.critic_sizes={shown}: must name filters of 1 to model.seq_len={cfg.model.seq_len} "
      "tokens; use 2,3"
    )
  for length, _ in curriculum.read(cfg.data.length_curriculum):
    if max(sizes) > length:
      raise ConfigError(
        f"objective.critic_sizes={shown}: {max(sizes)} tokens are more than the {length} of the rows that "
        f"{curriculum.KEY} begins with; leave out what is longer"
      )
  if len(set(sizes)) < len(sizes):
    raise ConfigError(f"objective.critic_sizes={shown}: names a size twice; leave one out")


def _parts(cfg: Config) -> dict[str, Part]:
  critic = _critic(cfg)
  shape = (1, cfg.model.seq_len, critic.vocab_size)
  return {PART: Part(critic, (jax.ShapeDtypeStruct(shape, jnp.float32),))}


def _critic(cfg: Config) -> Critic:
  section: Any = cfg.objective
  return Critic(section, cfg.model.vocab_size or 0)  # known by then


ADVERSARIAL = Objective(
  section=AdversarialConfig,
  batches="tokens",
  make_loss=make_loss,
  train_metrics=TRAIN,
  train_scores=train_scores,
  eval_metrics=next_token.EVAL,
  eval_scores=next_token.eval_scores,
  needs=("soft_step", "init_carry", "hidden", "logits"),
  check=check,
  parts=_parts,
  weights=critic_weights,
  exact_flops=exact_flops,
  init_extra=lambda module, cfg, params, rows: {"steps": jnp.zeros((), jnp.int32)},
  extra_axes=lambda cfg: {"steps": ()},
  after_step=lambda cfg, extra: {"steps": extra["steps"] + 1},
  chance=lambda cfg: {"loss": math.log(cfg.model.vocab_size or 1)},  # known by then
  grads=make_grads,
  make_sampler=next_token.make_sampler,
)
