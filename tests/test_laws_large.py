"""Fits of tables of thousands of runs: the same numbers, at a cost that grows with the rows alone."""

import tracemalloc

import numpy as np
import pytest

from experiments import laws
from experiments.laws import identify, intervals, solve
from experiments.ledger import fits

CHINCHILLA = laws.LAWS["chinchilla"]
TRUE = np.array([406.4, 410.7, 1.69, 0.34, 0.28])


def runs(n, noise=5e-3):
  """(columns, log losses) of n runs of a known law, anywhere in three decades of N and of D."""
  rng = np.random.default_rng(0)
  x = {"n_params": 10 ** rng.uniform(7, 10, n), "n_tokens": 10 ** rng.uniform(8.5, 11.5, n)}
  exact = intervals.predict(CHINCHILLA, CHINCHILLA.working(TRUE), x)
  return x, exact + noise * rng.standard_normal(n)


@pytest.mark.slow
def test_a_grid_of_starts_finds_the_same_optimum_of_many_rows_with_less_work(monkeypatch):
  x, y = runs(640)
  problem = solve.make_problem(CHINCHILLA, {})
  starts = CHINCHILLA.starts(x, y)[::9]
  whole = solve.minimise(problem, x, y, starts, delta=1e-3)
  work, minimise = [], solve.minimise

  def counted(problem, x, y, starts, **options):
    work.append(len(starts) * len(y))
    return minimise(problem, x, y, starts, **options)

  monkeypatch.setattr(solve, "minimise", counted)
  found = solve.search(problem, x, y, starts, delta=1e-3)
  assert sum(work) < 0.95 * len(starts) * len(y)
  best, expected = found[found.objective.argmin()], whole[whole.objective.argmin()]
  np.testing.assert_allclose(best.objective, expected.objective, rtol=1e-12)
  np.testing.assert_allclose(best.theta, expected.theta, rtol=1e-6)
  reach = lambda out: np.mean(out.objective <= expected.objective * (1 + 1e-6))
  assert abs(reach(found) - reach(whole)) < 0.05


@pytest.mark.slow
def test_rows_that_alone_tell_a_parameter_are_not_lost_among_many():
  """Four rows of another size among 2,000: the rows that a search draws first hold neither of them."""
  x, y = runs(2000)
  x["n_params"] = np.where(np.arange(2000) < 4, 1e10, np.where(np.arange(2000) % 2, 1e8, 1e9))
  y = intervals.predict(CHINCHILLA, CHINCHILLA.working(TRUE), x) + 1e-5 * np.sin(np.arange(2000))
  problem = solve.make_problem(CHINCHILLA, {})
  starts = CHINCHILLA.starts(x, y)[::25]
  found = solve.search(problem, x, y, starts, delta=1e-3)
  alpha = CHINCHILLA.natural(found.theta[found.objective.argmin()])[3]
  np.testing.assert_allclose(alpha, TRUE[3], atol=2e-3)


def test_what_a_table_identifies_takes_memory_for_its_rows_not_for_their_square():
  x, y = runs(2400)
  theta = CHINCHILLA.working(TRUE)
  problem = solve.make_problem(CHINCHILLA, {})
  tracemalloc.start()
  rank, lost = identify.structural(problem, x, theta, theta[None])
  _, peak = tracemalloc.get_traced_memory()
  assert (rank, lost) == (5, set())
  tracemalloc.reset_peak()
  data = intervals.Data(x, y, 1e-3, np.arange(2400) // 2)
  intervals.sandwich(problem, data, theta).dof(np.eye(5))
  _, more = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert max(peak, more) < 2400 * 2400 * 8 / 4


def test_degrees_of_freedom_of_clusters_are_those_of_their_covariance():
  """Bell & McCaffrey's (sum l)^2 / sum l^2 with the whole [G, G] matrix written out."""
  x, y = runs(45)
  problem = solve.make_problem(CHINCHILLA, {})
  data = intervals.Data(x, y, 1e-3, np.arange(45) // 3)
  found = intervals.sandwich(problem, data, CHINCHILLA.working(TRUE))
  grad = np.vstack([np.eye(5), np.random.default_rng(1).standard_normal((2, 5))])
  expected = []
  for g in grad @ found.bread:
    rows = np.zeros((15, 45))
    for i, (members, gain) in enumerate(zip(found.members, found.gains, strict=True)):
      rows[i] = -g @ gain @ found.jac[members] @ found.pull
      rows[i, members] += g @ gain
    sizes = np.linalg.eigvalsh(rows @ rows.T)
    expected.append(max(sizes.sum() ** 2 / (sizes**2).sum(), 1.0))
  np.testing.assert_allclose(found.dof(grad), expected, rtol=1e-6)


@pytest.mark.slow
def test_a_jackknife_of_many_runs_has_the_skewness_of_single_ones(monkeypatch):
  x, y = runs(240, noise=0.02)
  problem = solve.make_problem(CHINCHILLA, {"A": 406.4, "B": 410.7, "E": 1.69})
  data = intervals.Data(x, y, 1.0, np.arange(240))
  best = solve.minimise(problem, x, y, CHINCHILLA.working(TRUE)[None], delta=1.0).theta[0]
  single = intervals.jackknife(problem, data, best)
  monkeypatch.setattr(intervals, "LEFT_OUT", 60)
  grouped = intervals.jackknife(problem, data, best)
  assert (len(single), len(grouped)) == (240, 60)
  spread = lambda out: ((out[:, 3] - out[:, 3].mean()) ** 2).sum()
  skew = lambda out: ((out[:, 3].mean() - out[:, 3]) ** 3).sum() / spread(out) ** 1.5 / 6
  np.testing.assert_allclose(spread(grouped), spread(single), rtol=0.3)
  assert abs(skew(grouped) - skew(single)) < 0.03


def test_a_fit_that_will_take_minutes_says_so_and_what_makes_it_shorter(capsys):
  fits.say_how_long(9000, 1000)
  said = capsys.readouterr()
  assert said.out == ""
  assert said.err.startswith("9,000 runs, 1,000 bootstrap samples: ")
  assert "--n_boot" in said.err
  fits.say_how_long(900, 1000)
  assert capsys.readouterr().err == ""
