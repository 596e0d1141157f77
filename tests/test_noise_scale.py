"""The gradient noise scale against simulated gradients, and against gradients of parts of a batch."""

import jax
import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.devices.sharding import make_mesh
from lm.runs import summary
from lm.setup.hparams import make_hparams
from lm.training import noise_scale
from lm.training.programs import make_programs
from tests.test_step import batch, config, run
from tests.trained import run as train

N = 4


def test_estimates_are_without_bias_on_simulated_gradients():
  rng = np.random.default_rng(0)
  true, spread, tokens = rng.normal(size=20), rng.uniform(0.5, 2.0, 20), 32
  records = []
  for _ in range(4000):
    of_micro = true + spread * rng.normal(size=(N, 20)) / np.sqrt(tokens)
    micro, whole = (of_micro**2).sum(axis=1).mean(), (of_micro.mean(axis=0) ** 2).sum()
    found = noise_scale.estimates(micro, whole, np.float32(N * tokens), N)
    records.append({key: float(value) for key, value in found.items()})
  mean = {key: np.mean([r[key] for r in records]) for key in records[0]}
  signal, noise = (true**2).sum(), (spread**2).sum()
  assert mean[noise_scale.SIGNAL] == pytest.approx(signal, rel=0.01)
  assert mean[noise_scale.NOISE] == pytest.approx(noise, rel=0.02)
  assert noise_scale.noise_scale(records) == pytest.approx(noise / signal, rel=0.03)


def test_a_step_compares_its_own_micro_batches():
  cut = config(train__accumulate=N)
  looking = config(train__accumulate=N, train__noise_scale=True)
  (plain, before), (history, after) = run(cut, steps=2), run(looking, steps=2)
  for a, b in zip(jax.tree.leaves(before.params), jax.tree.leaves(after.params), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  assert not any(key in plain[0] for key in (noise_scale.SIGNAL, noise_scale.NOISE))
  part = config(train__batch_size=cut.train.batch_size // N)
  programs, data = (
    make_programs(part, make_mesh(part.mesh, devices=jax.devices()[:1])),
    batch(0, cut),
  )
  norms = []
  for index in range(N):
    hparams = jax.device_put(make_hparams(part), programs.scalar_sharding)
    rows = {key: array[index::N] for key, array in data.items()}
    metrics = programs.train(programs.init(hparams), rows, hparams)[1]
    norms.append(float(metrics["train/grad_norm"]) ** 2)
  first, tokens = history[0], float(history[0]["train/tokens"])
  signal, noise = float(first[noise_scale.SIGNAL]), float(first[noise_scale.NOISE])
  assert signal + noise / tokens == pytest.approx(float(first["train/grad_norm"]) ** 2, rel=1e-4)
  assert signal + noise / (tokens / N) == pytest.approx(np.mean(norms), rel=1e-4)


def test_a_record_that_cannot_say():
  no_signal = [{noise_scale.SIGNAL: -1.0, noise_scale.NOISE: 2.0}] * 3
  assert noise_scale.noise_scale(no_signal) is None
  assert noise_scale.noise_scale([{"train/loss": 1.0}]) is None


def test_it_needs_micro_batches():
  with pytest.raises(ConfigError, match=r"train\.noise_scale=True: compares micro-batches"):
    config(train__noise_scale=True)


def test_a_run_says_its_noise_scale(tmp_path, monkeypatch):
  train(tmp_path / "x", train__noise_scale=True, train__accumulate=2, train__batch_size=16)
  monkeypatch.setattr(noise_scale, "noise_scale", lambda records: 12345.0)  # 8 steps may not tell
  assert "gradient noise scale 12,345 tokens" in summary.show([tmp_path / "x"])
