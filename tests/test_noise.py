"""The noise of seeds: what is pooled comes back, intervals cover, and comparisons use it."""

import math

import numpy as np
import pytest

from experiments.laws import noise
from experiments.laws.noise import Replicates
from experiments.ledger import compare
from experiments.ledger.ledger import Ledger
from experiments.race import power
from tests.fake_runs import fake_run


def drawn(rng, sigma, settings, seeds=3):
  return [
    Replicates(tuple(3 + sigma(n, d) * rng.standard_normal(seeds)), n, d) for n, d in settings
  ]


GRID = [(n, d) for n in (1e5, 1e6, 1e7) for d in (1e6, 1e7, 1e8)]


def test_the_pooled_interval_covers():
  rng, inside, false = np.random.default_rng(0), 0, 0
  for _ in range(300):
    found = noise.seed_noise(drawn(rng, lambda n, d: 0.02, GRID))
    low, high = found.pooled_interval
    inside += low <= 0.02 <= high
    false += found.p_law < 0.05
  assert 0.92 <= inside / 300 <= 0.98
  assert false / 300 < 0.12  # 18 degrees of freedom for 3 parameters: the test is a little liberal


def test_a_trend_with_size_and_data_comes_back_with_an_interval_that_covers():
  sigma = lambda n, d: 0.02 * (n / 1e6) ** -0.3 * (d / 1e7) ** -0.2
  rng, inside = np.random.default_rng(1), 0
  for _ in range(200):
    found = noise.seed_noise(drawn(rng, sigma, GRID, seeds=6))
    _, (low, high) = found.at(1e7, 1e8)
    inside += low <= sigma(1e7, 1e8) <= high
  assert 0.88 <= inside / 200 <= 0.99
  many = noise.seed_noise(drawn(rng, sigma, GRID, seeds=200))
  assert many.coefficients[1:] / 2 == pytest.approx([-0.3, -0.2], abs=0.04)
  assert (
    many.at(1e8, 1e9)[0] == pytest.approx(sigma(1e8, 1e9), rel=0.2) and "N^-0.3" in many.summary()
  )


def test_without_replicates_there_is_no_noise_to_know():
  assert noise.seed_noise([Replicates((3.0,), 1e6, 1e7)]) is None
  one = noise.seed_noise([Replicates((3.0, 3.1), 1e6, 1e7)])
  assert one.p_law == 1 and one.df == 1 and "no trend" in one.summary()
  sizes = [(n, 20 * n) for n in (1e5, 1e6, 1e7)]
  same_ratio = noise.seed_noise(drawn(np.random.default_rng(0), lambda n, d: 0.1, sizes))
  assert np.isfinite(same_ratio.at(1e6, 2e7)[0])  # N and D move together: one slope is fitted


def test_checkpoint_noise_is_that_around_a_smooth_curve():
  rng = np.random.default_rng(0)
  curve = 3 + 2 * np.arange(1, 401) ** -0.3
  assert noise.checkpoint_noise(curve + 0.01 * rng.standard_normal(400)) == pytest.approx(
    0.01, rel=0.15
  )
  assert noise.checkpoint_noise([3.0] * 5) is None


def test_differences_are_paired_where_seeds_are_shared():
  a, b = {0: 3.0, 1: 3.5, 2: 4.0}, {0: 2.9, 1: 3.41, 2: 3.9}
  found = noise.difference(a, b, None)
  assert found["p"] < 0.01 and found["low"] < -0.0967 < found["high"]  # seeds' own spread cancels
  pooled = noise.seed_noise([Replicates((3.0, 3.02, 2.98), 1, 1)])
  alone = noise.difference({0: 3.0}, {5: 2.9}, pooled)
  assert alone["difference"] == pytest.approx(-0.1) and alone["p"] < 0.1
  assert noise.difference({0: 3.0}, {5: 2.9}, None)["p"] is None


def test_holms_correction_is_the_step_down_one():
  assert noise.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
  assert noise.holm([0.9, 0.02]) == pytest.approx([0.9, 0.04])


def test_compare_says_p_values_and_holms(tmp_path, capsys):
  rng = np.random.default_rng(0)
  for rate, gain in ((1e-2, 0.0), (3e-3, 0.3), (4e-3, 0.001)):
    for seed in (0, 1, 2):
      loss = 3 - gain + 0.02 * rng.standard_normal()
      fake_run(
        tmp_path / f"lr={rate:g},seed={seed}", {"optim.peak_lr": rate, "seed": seed}, loss=loss
      )
  from experiments.ledger.ledger import read_ledger
  from experiments.report import tables

  rows = sorted(read_ledger(str(tmp_path)), key=lambda r: r["name"], reverse=True)
  found = compare.compare(rows)
  assert len(found["tests"]) == 2 and found["noise"]["sigma"] == pytest.approx(0.02, rel=0.6)
  by_name = {t["setting"].split(",")[0]: t for t in found["tests"]}
  assert by_name["lr=0.003"]["p"] < 0.05 < by_name["lr=0.004"]["p of all (Holm)"]
  assert all(t["p of all (Holm)"] >= t["p"] for t in found["tests"])
  tables.show_comparison(found, "tokens")
  out = capsys.readouterr().out
  assert "final loss less that of lr=0.01" in out and "noise of seeds: 0.0" in out


def test_a_races_power_reads_the_noise_at_its_size():
  rng, rows = np.random.default_rng(0), []
  for n in (1e5, 1e6, 1e7):
    rows += [
      {"name": f"{n:g},{s}", "status": "done", "seed": s, "model.width": n, "n_params": n,
       "n_tokens": 20 * n, "loss": 3 + (n / 1e6) ** -0.5 * 0.02 * rng.standard_normal()}
      for s in range(40)
    ]  # fmt: skip
  sd = lambda size: power.known_noise(None, Ledger(()), "a", Ledger(tuple(rows)), "x", size).sd
  assert sd((1e7, 2e8)) == pytest.approx(math.sqrt(2) * 0.02 * 10**-0.5, rel=0.25)
  assert sd((1e7, 2e8)) < sd(None)
