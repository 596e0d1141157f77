"""Fitting speed: the five-parameter law from its full grid of starts and its bootstraps, on 240 runs.

Runs are simulated from a known law. With --peer, scipy's L-BFGS-B with the exact gradient runs the grid;
without it, a sample of the starts is timed and the total extrapolated.

examples:
  python benchmarks/fit.py
  python benchmarks/fit.py --boots 1000 --peer
"""

import argparse
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from experiments import laws
from experiments.laws import intervals, solve

TRUTH = {"A": 482.0, "B": 2085.4, "E": 1.817, "alpha": 0.348, "beta": 0.366}
DELTA = 1e-3


def main():
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--boots", type=int, default=4000, help="bootstrap samples")
  parser.add_argument(
    "--sample", type=int, default=20, help="starts that scipy runs without --peer"
  )
  parser.add_argument("--peer", action="store_true", help="let scipy run every start")
  parser.add_argument("--out", default="runs/benchmarks.jsonl", help="JSON lines are appended here")
  options = parser.parse_args()
  law, x, y = laws.LAWS["chinchilla"], *simulate()
  starts = law.starts(x, y)
  began, cpu_began = time.perf_counter(), time.process_time()
  problem = solve.make_problem(law, {})
  grid = solve.minimise(problem, x, y, starts, delta=DELTA)
  grid_seconds = time.perf_counter() - began
  best = grid.theta[grid.objective.argmin()]
  data = intervals.Data(x, y, DELTA, np.arange(len(y)))
  weights = intervals.case_weights(data.clusters, options.boots, 0)
  intervals.refit(problem, data, best, weights=weights)
  ours, cpu = time.perf_counter() - began, time.process_time() - cpu_began
  chosen = np.arange(len(starts))
  if not options.peer:
    chosen = np.random.default_rng(0).permutation(chosen)[: options.sample]
  values, seconds = scipy_fits(x, y, starts[chosen])
  theirs = seconds * len(starts) / len(chosen)
  low = grid.objective.min()
  reached = lambda v: float(np.mean(v <= low * (1 + 1e-6)))
  near = float(np.mean(values <= low * (1 + 1e-3)))
  load = os.getloadavg()[0]
  print(f"{len(starts)} starts on {len(y)} runs, Huber delta {DELTA:g}, compilation included")
  print(f"{os.cpu_count()} cores, load average {load:.1f}; ours took {cpu:.1f} s of CPU")
  print(f"{'who':<10}{'what':<34}{'seconds':>9}{'at optimum':>12}{'ratio':>7}")
  print(f"{'isoflop':<10}{'grid':<34}{grid_seconds:9.1f}{reached(grid.objective):12.1%}{1:7.1f}")
  print(f"{'isoflop':<10}{f'grid + {options.boots} bootstraps':<34}{ours:9.1f}")
  how = "grid" if options.peer else f"grid, extrapolated from {len(chosen)}"
  print(f"{'scipy':<10}{how:<34}{theirs:9.1f}{reached(values):12.1%}{theirs / grid_seconds:7.1f}")
  print(f"scipy within 1e-3 of the lowest objective: {near:.1%}")
  record = {
    "benchmark": "fit",
    "starts": len(starts),
    "runs": len(y),
    "boots": options.boots,
    "cores": os.cpu_count(),
    "grid_seconds": grid_seconds,
    "total_seconds": ours,
    "total_cpu_seconds": cpu,
    "load_average": load,
    "share_at_optimum": reached(grid.objective),
    "scipy_grid_seconds": theirs,
    "scipy_starts_run": len(chosen),
    "scipy_share_at_optimum": reached(values),
    "versions": {"python": platform.python_version()}
    | {name: importlib.metadata.version(name) for name in ("jax", "numpy", "scipy")},
  }
  path = pathlib.Path(options.out)
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("a") as file:
    file.write(json.dumps(record) + "\n")


def simulate():
  """(columns, log losses) of 240 runs: 10 budgets of 24 sizes, log-normal noise with heavy tails."""
  c = np.repeat(np.geomspace(6e18, 1e22, 10), 24)
  n = np.sqrt(c / 120) * np.tile(np.geomspace(1 / 8, 8, 24), 10)
  x = {"n_params": n, "n_tokens": c / (6 * n)}
  law = laws.LAWS["chinchilla"]
  theta = law.working(np.array(list(TRUTH.values())))
  noise = 0.004 * np.random.default_rng(0).standard_t(3, len(n))
  return x, intervals.predict(law, theta, x) + noise


def scipy_fits(x, y, starts):
  """(objectives, seconds) of L-BFGS-B with the exact gradient, one start after another."""
  from scipy.optimize import minimize

  log_n, log_d = np.log(x["n_params"]), np.log(x["n_tokens"])

  def objective(theta):
    terms = np.stack(
      [theta[0] - theta[3] * log_n, theta[1] - theta[4] * log_d, np.full(len(y), theta[2])]
    )
    top = terms.max(0)
    parts = np.exp(terms - top)
    total = parts.sum(0)
    share, r = parts / total, y - top - np.log(total)
    size, psi = np.abs(r), np.clip(r, -DELTA, DELTA)
    value = np.where(size <= DELTA, 0.5 * r**2, DELTA * (size - 0.5 * DELTA)).sum()
    jac = np.stack([share[0], share[1], share[2], -log_n * share[0], -log_d * share[1]])
    return value, -jac @ psi

  began = time.perf_counter()
  values = [minimize(objective, s, jac=True, method="L-BFGS-B").fun for s in starts]
  return np.array(values), time.perf_counter() - began


if __name__ == "__main__":
  main()
