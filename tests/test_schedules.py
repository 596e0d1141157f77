"""Schedules against closed forms, their ends, torch, and one compiled program for all horizons."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.config.hparams import Hparams
from lm.optim.schedules import SCHEDULES, lr_multiplier


def make_hparams(total=100, warmup=10, decay=20, final=0.1):
  """Only what schedules read; anything else would fail on None."""
  return Hparams(
    total_steps=np.int32(total),
    warmup_steps=np.int32(warmup),
    decay_steps=np.int32(decay),
    final_lr_frac=np.float32(final),
  )


def curve(name, hparams):
  return np.asarray(lr_multiplier(name, jnp.arange(int(hparams.total_steps)), hparams))


def closed_form(name, s, total, warmup, decay, final):
  """The multiplier of update number s, in Python floats and with branches."""
  if s < warmup and name != "inverse_sqrt":
    return s / warmup
  u = (s - warmup) / (total - warmup)
  if name == "linear":
    return 1 + (final - 1) * u
  if name == "cosine":
    return final + (1 - final) * 0.5 * (1 + np.cos(np.pi * u))
  if name == "exponential":
    return np.exp(u * np.log(final))
  if name == "inverse_sqrt":
    return min(s / warmup, (warmup / s) ** 0.5)
  if name == "wsd":
    left = total - s
    return 1.0 if left >= decay else final + (1 - final) * left / decay
  return 1.0


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_update_has_the_rate_of_the_closed_form(name):
  sizes = {"total": 57, "warmup": 7, "decay": 13, "final": 0.05}
  expected = [closed_form(name, s, **sizes) for s in range(1, 58)]
  np.testing.assert_allclose(curve(name, make_hparams(**sizes)), expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("final", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("name", ["linear", "cosine", "wsd"])
def test_the_peak_is_reached_and_the_last_update_uses_exactly_the_final_fraction(name, final):
  rates = curve(name, make_hparams(final=final))
  assert rates[9] == 1.0  # update number 10 = warmup_steps
  assert rates[8] < 1.0
  assert rates[-1] == np.float32(final)
  assert rates[-2] > rates[-1]


def test_exponential_falls_by_one_factor_a_step():
  rates = curve("exponential", make_hparams(final=0.01))
  np.testing.assert_allclose(rates[10:] / rates[9:-1], 0.01 ** (1 / 90), rtol=1e-5)
  np.testing.assert_allclose(rates[-1], 0.01, rtol=1e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_multipliers_stay_in_the_unit_interval_at_the_edges(name):
  for total, warmup, decay in [(1, 0, 0), (1, 1, 1), (5, 0, 5), (5, 5, 0), (6, 3, 6), (9, 2, 0)]:
    rates = curve(name, make_hparams(total=total, warmup=warmup, decay=decay))
    assert rates.dtype == np.float32
    assert np.all((rates > 0) & (rates <= 1)), (total, warmup, decay, rates)


def test_without_warmup_the_first_update_is_near_the_peak():
  for name in SCHEDULES:
    assert curve(name, make_hparams(warmup=0))[0] > 0.95


def test_cosine_equals_torch():
  torch = pytest.importorskip("torch")
  weight = torch.nn.Parameter(torch.zeros(1))
  optimizer = torch.optim.SGD([weight], lr=1.0)
  scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40, eta_min=0.1)
  rates = []
  for _ in range(40):
    optimizer.step()
    scheduler.step()  # after k steps of the scheduler the rate is that of our update number k
    rates.append(scheduler.get_last_lr()[0])
  ours = curve("cosine", make_hparams(total=40, warmup=0))
  np.testing.assert_allclose(ours, rates, rtol=1e-5)


def test_one_program_serves_every_horizon():
  compiled = jax.jit(lambda step, hparams: [lr_multiplier(n, step, hparams) for n in SCHEDULES])
  with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
    first = compiled(np.int32(3), make_hparams())
    second = compiled(np.int32(3), make_hparams(total=9, warmup=2, decay=8, final=0.5))
  assert compiled._cache_size() == 1
  assert all(a != b for a, b, n in zip(first, second, SCHEDULES, strict=True) if n != "plateau")


def test_unknown_schedule_names_the_known_ones():
  with pytest.raises(ConfigError, match=r"optim.schedule=step: unknown schedule; use one of const"):
    lr_multiplier("step", 0, make_hparams())
