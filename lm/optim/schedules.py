"""Learning-rate schedules: the fraction of the peak rate that an update uses, in [0, 1].

Convention: `step` counts the updates already done (0, ..., total_steps - 1), and the update being
made is number s = step + 1. Warm-up is min(1, s / warmup_steps): the first update moves the
weights, update number warmup_steps is the first at the peak, and the last update, s =
total_steps, uses exactly final_lr_frac. All boundaries are traced, so one compiled program serves
every horizon; each formula is written as w + f * (1 - w) with w falling from 1 to 0, so that both
ends are exact in float32.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from lm.config.errors import ConfigError
from lm.config.hparams import Hparams


class Times(NamedTuple):
  """Where update number s stands in its run. Float32 scalars."""

  s: jax.Array  # 1, ..., total_steps
  progress: jax.Array  # from 0 at the end of warm-up to 1 at s = total_steps
  cooldown: jax.Array  # from 0 to 1 over the last decay_steps updates
  warmup: jax.Array  # steps, at least 1
  final: jax.Array  # f, the fraction at s = total_steps


def constant(t: Times) -> jax.Array:
  """1."""
  return jnp.ones_like(t.s)


def linear(t: Times) -> jax.Array:
  """w + f (1 - w), w = 1 - progress. Bergsma et al. 2025, arXiv:2502.15938, argue for f = 0."""
  return (1 - t.progress) + t.final * t.progress


def cosine(t: Times) -> jax.Array:
  """w + f (1 - w), w = (1 + cos(pi progress)) / 2. Loshchilov & Hutter 2016, arXiv:1608.03983."""
  w = (1 + jnp.cos(jnp.pi * t.progress)) / 2
  return w + t.final * (1 - w)


def exponential(t: Times) -> jax.Array:
  """f ** progress: the same factor every step; f must be above 0."""
  return t.final**t.progress


def inverse_sqrt(t: Times) -> jax.Array:
  """min(1, sqrt(warmup_steps / s)), whatever f is. Vaswani et al. 2017, arXiv:1706.03762 §5.3."""
  return jnp.minimum(1, jnp.sqrt(t.warmup / t.s))


def wsd(t: Times) -> jax.Array:
  """1, then w + f (1 - w) with w = 1 - cooldown: linear over the last decay_steps updates.

  Hu et al. 2024, arXiv:2404.06395 §4 (the shape); Hägele et al. 2024, arXiv:2405.18392 (linear
  decay).
  """
  return (1 - t.cooldown) + t.final * t.cooldown


SCHEDULES = {
  "constant": constant,
  "linear": linear,
  "cosine": cosine,
  "exponential": exponential,
  "inverse_sqrt": inverse_sqrt,
  "wsd": wsd,
  "plateau": constant,  # lm.optim.chain cuts it when the loss stops falling
}


def lr_multiplier(name: str, step: jax.Array, hparams: Hparams) -> jax.Array:
  """Fraction of the peak learning rate for the update made when `step` updates are done.

    min(1, s / warmup_steps) * SCHEDULES[name],   s = step + 1

  Args:
    name: a key of SCHEDULES. "plateau" is the warm-up alone.
    step: int32, any shape.
    hparams: reads warmup_steps, total_steps, decay_steps (int32) and final_lr_frac (float32),
      scalars. With warmup_steps = total_steps the whole run warms up and nothing decays.

  Returns:
    float32 like `step`, in [0, 1]; constant at its last value after total_steps (inverse_sqrt
    goes on).

  Raises:
    ConfigError: unknown name.

  With warmup_steps=2, total_steps=4, final_lr_frac=0, "linear" gives 0.5, 1, 0.5, 0 for steps 0
  to 3.
  """
  if name not in SCHEDULES:
    raise ConfigError(f"optim.schedule={name}: unknown schedule; use one of {', '.join(SCHEDULES)}")
  s, total, warmup, decay = (
    jnp.asarray(x, jnp.float32)
    for x in (step + 1, hparams.total_steps, hparams.warmup_steps, hparams.decay_steps)
  )
  times = Times(
    s=s,
    progress=jnp.clip((s - warmup) / jnp.maximum(total - warmup, 1), 0, 1),
    cooldown=jnp.clip((s - (total - decay)) / jnp.maximum(decay, 1), 0, 1),
    warmup=jnp.maximum(warmup, 1),
    final=jnp.asarray(hparams.final_lr_frac, jnp.float32),
  )
  return jnp.minimum(1, s / times.warmup) * SCHEDULES[name](times)
