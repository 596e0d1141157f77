"""Runs of a law that is known, with a little noise, and fits of them."""

import numpy as np

from experiments import laws

TRUE = {"A": 400.0, "B": 2000.0, "E": 1.8, "alpha": 0.34, "beta": 0.37}


def true_loss(n_params, n_tokens):
  return TRUE["E"] + TRUE["A"] / n_params ** TRUE["alpha"] + TRUE["B"] / n_tokens ** TRUE["beta"]


def true_table():
  """Four budgets of seven sizes, losses with noise of 0.1 %."""
  flops = np.repeat([1e18, 4e18, 1.6e19, 6.4e19], 7)
  best = 0.09 * flops**0.52
  n_params = best * np.tile(4.0 ** np.linspace(-1, 1, 7), 4)
  n_tokens = flops / (6 * n_params)
  noise = np.exp(1e-3 * np.random.default_rng(0).standard_normal(len(flops)))
  columns = {"n_params": n_params, "n_tokens": n_tokens, "flops": flops}
  names = {"name": [f"run{i}" for i in range(len(flops))]}
  return laws.from_columns(columns | {"loss": true_loss(n_params, n_tokens) * noise}, names)


def true_fits():
  """An isoFLOP and a parametric fit to the table."""
  table = true_table()
  law = laws.fit_table(table, n_boot=20, n_starts=16, methods=("case", "delta"))
  return laws.isoflop_fit(table, n_boot=20, bias=False), law
