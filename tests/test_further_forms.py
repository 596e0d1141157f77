"""Laws of further columns: the formulas of their papers, what comes back from runs of them, the command."""

import numpy as np
import pytest

from experiments import laws
from experiments.laws import further_forms, intervals
from lm.config.errors import ConfigError
from tests.test_laws_command import run_fit, write

N, D, LOSS = np.array([2e8]), np.array([4e9]), np.array([2.6])
CASES = {  # law: (printed values, columns of one run, the formula written out)
  "overfitting": (
    dict(A=406.0, B=410.0, E=1.69, alpha=0.34, beta=0.28, P=0.02, delta=1.2, kappa=0.6),
    dict(n_params=N, n_tokens=D, unique_tokens=D / 8),
    lambda v: 1.69 + 406 / 2e8**0.34 + 410 / 4e9**0.28 + 0.02 * 7**1.2 * (2e8 / 5e8) ** 0.6,
  ),
  "precision": (
    dict(A=406.0, B=410.0, E=1.69, alpha=0.34, beta=0.28, gamma=2.7),
    dict(n_params=N, n_tokens=D, precision=np.array([4.0])),
    lambda v: 1.69 + 406 / (2e8 * (1 - np.exp(-4 / 2.7))) ** 0.34 + 410 / 4e9**0.28,
  ),
  "vocabulary": (
    dict(E=5.5, A1=160.0, alpha1=0.33, A2=40.0, alpha2=0.3, B=800.0, beta=0.35),
    dict(n_params_non_vocab=N, n_params_vocab=N / 5, n_tokens=D),
    lambda v: -5.5 + 160 / 2e8**0.33 + 40 / 4e7**0.3 + 800 / 4e9**0.35,
  ),
  "granularity": (
    dict(g=60.0, gamma=0.6, a=200.0, alpha=0.3, b=600.0, beta=0.3, c=1.5),
    dict(n_params_active=N, n_tokens=D, granularity=np.array([8.0])),
    lambda v: 1.5 + (60 / 8**0.6 + 200) / 2e8**0.3 + 600 / 4e9**0.3,
  ),
  "joint_experts": (
    dict(a=35.9, delta=0.23, alpha=0.189, gamma=-0.0098, b=36.0, omega=-0.55, beta=0.1775, zeta=-0.0259,
         c=1.36, E_start=2.07, E_max=290.0),
    dict(n_params_active=N, n_tokens=D, experts=np.array([8.0])),
    lambda v: _joint(8.0),
  ),
  "leverage": (
    dict(a=1.23, d=-0.0761, gamma=0.0167, beta=-0.117, A_start=0.0163, A_max=5.28e16),
    dict(activation_ratio=np.array([0.031]), granularity=np.array([12.0]), flops=np.array([1e22])),
    lambda v: 0.0473 ** (1.23 - 0.0761 * 22 + 0.0167 * np.log10(12) ** 2 - 0.117 * np.log10(12)),
  ),
  "distillation": (
    dict(c0=0.4, c1=3.0, d1=1.1, f1=0.2, A=400.0, B=600.0, alpha=0.3, beta=0.3, gamma=0.8),
    dict(n_params=N, n_tokens=D, teacher_loss=np.array([2.4]), supervised_loss=np.array([2.7])),
    lambda v: 2.4 + _bend(2.4 / (2.7 * 1.1)) * (400 / 2e8**0.3 + 600 / 4e9**0.3) ** 0.8 / 2.4**0.4,
  ),
  "direct": (
    dict(A=40.0, B=60.0, alpha=0.25, beta=0.22), dict(n_params=N, n_tokens=D),
    lambda v: np.exp(-(40 / 2e8**0.25 + 60 / 4e9**0.22)),
  ),
  "direct_compute": (
    dict(A=900.0, alpha=0.16), dict(flops=np.array([1e20])), lambda v: np.exp(-900 / 1e20**0.16)
  ),
  "sigmoid": (
    dict(a=0.6, k=4.0, L0=2.5, b=0.25), dict(loss=LOSS), lambda v: 0.25 + 0.6 / (1 + np.exp(0.4))
  ),
}  # fmt: skip


def _bend(ratio):
  return (1 + ratio**5) ** -0.6


def _joint(experts):
  e = 1 / (1 / (experts - 1 + 1 / (1 / 2.07 - 1 / 290)) + 1 / 290)
  log = np.log(e)
  size = 35.9 * e**0.23 / 2e8 ** (0.189 - 0.0098 * log)
  return size + 36 * e**-0.55 / 4e9 ** (0.1775 - 0.0259 * log) + 1.36


def value_at(name, x):
  law = laws.LAWS[name]
  theta = law.working(np.array([CASES[name][0][p] for p in law.names]))
  out = intervals.predict(law, theta, x)
  return np.exp(out) if law.link == "log" else out


def test_every_further_law_is_tried():
  assert set(CASES) == {law.name for law in laws.FURTHER}
  assert all(set(law.inputs) <= set(laws.ALIASES) for law in laws.FURTHER)


@pytest.mark.parametrize("name", list(CASES))
def test_a_law_is_the_formula_of_its_paper(name):
  _, x, formula = CASES[name]
  assert value_at(name, x)[0] == pytest.approx(formula(None), rel=1e-9)


@pytest.mark.parametrize("name", list(CASES))
def test_starts_are_finite_and_near_the_runs(name):
  law, x = laws.LAWS[name], columns(name)
  y = value_at(name, x)
  y = np.log(y) if law.link == "log" else y
  starts = law.starts(x, y)
  assert np.isfinite(starts).all() and starts.shape[1] == len(law.params)
  off = np.abs(intervals.predict(law, starts, x) - y[:, None]).mean(0)
  assert np.nanmin(off) < 0.5 * np.abs(y - y.mean()).mean() + 0.05


def columns(name, n=90):
  """Runs over which every input of a law varies."""
  rng = np.random.default_rng(5)
  n_params = 10 ** rng.uniform(7, 9.5, n)
  n_tokens = 10 ** rng.uniform(8.5, 11, n)
  every = {
    "n_params": n_params, "n_tokens": n_tokens, "flops": 6 * n_params * n_tokens,
    "unique_tokens": n_tokens / rng.choice([1, 2, 5, 16, 60], n),
    "precision": rng.choice([3, 4, 6, 8, 16], n),
    "n_params_non_vocab": n_params, "n_params_vocab": 10 ** rng.uniform(6, 8.5, n),
    "n_params_active": n_params, "granularity": rng.choice([1, 2, 4, 8, 16], n),
    "experts": rng.choice([1, 2, 4, 8, 16, 64], n),
    "activation_ratio": rng.choice([0.01, 0.03, 0.1, 0.3, 1], n),
    "teacher_loss": rng.uniform(2.0, 3.2, n), "loss": rng.uniform(1.8, 4.0, n),
    "supervised_loss": 1.22 + (3355 / n_params**0.408 + 18186 / n_tokens**0.431) ** 0.452,
  }  # fmt: skip
  return {k: np.asarray(every[k], float) for k in laws.LAWS[name].inputs}


LOOSE = {
  "distillation": None,
  "joint_experts": None,
}  # of these the predictions come back, for any data
FIXED = {
  "leverage": ["A_max"],
  "joint_experts": ["E_start", "E_max"],
  "distillation": ["gamma", "f1"],
}
GIVEN = {"leverage": ["A_max", "A_start"], "joint_experts": ["E_start", "E_max", "gamma", "zeta"]}


@pytest.mark.parametrize("name", [n for n in CASES if n != "distillation"])
def test_a_law_comes_back_from_exact_runs_of_it(name):
  """By a general solver from the best starts; `fit` itself is tried by the slow test below."""
  from scipy.optimize import least_squares

  law, x, values = laws.LAWS[name], columns(name), CASES[name][0]
  truth = law.working(np.array([values[p] for p in law.names]))
  y = intervals.predict(law, truth, x)
  free = np.array([p not in GIVEN.get(name, ()) for p in law.names])
  starts = np.where(free, law.starts(x, y), truth)
  off = np.abs(intervals.predict(law, starts, x) - y[:, None]).mean(0)

  def full(z):
    theta = truth.copy()
    theta[free] = z
    return theta

  residual = lambda z: intervals.predict(law, full(z), x) - y
  found = [
    least_squares(residual, starts[i][free], x_scale="jac", max_nfev=100, ftol=1e-15, xtol=1e-15)
    for i in np.argsort(off)[:2]
  ]
  best = law.natural(full(min(found, key=lambda one: one.cost).x))
  np.testing.assert_allclose(best, law.natural(truth), rtol=0.02, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CASES))
def test_a_law_comes_back_from_runs_of_it(name):
  law, x, values = laws.LAWS[name], columns(name), CASES[name][0]
  rng = np.random.default_rng(2)
  y = value_at(name, x)
  y = y * np.exp(1e-3 * rng.standard_normal(len(y))) if law.link == "log" else (
    y + 1e-3 * rng.standard_normal(len(y))
  )  # fmt: skip
  if law.target == "accuracy":
    y = np.minimum(y, 1.0)
  table = laws.from_columns(x | {law.target: y})
  fixed = {k: values[k] for k in FIXED.get(name, ())}
  found = laws.fit_table(
    table,
    name,
    n_boot=0,
    methods=("delta",),
    objective="l2",
    fixed=fixed,
    holdout=False,
    n_starts=32,
    force=True,
  )
  assert np.sqrt((found.residuals**2).mean()) < 1.3e-3
  if name in LOOSE:
    return
  for parameter, value in values.items():
    if parameter not in fixed:
      low, high = found[parameter].intervals["delta"]
      assert low - 0.5 * (high - low) <= value <= high + 0.5 * (high - low), parameter


@pytest.mark.slow
def test_columns_are_found_by_their_names_and_percents_are_refused(tmp_path, capsys):
  x = columns("direct")
  accuracy = value_at("direct", x)
  told = {
    "active_params": x["n_params"],
    "Model Size": x["n_params"],
    "tokens": x["n_tokens"],
    "acc": accuracy,
  }
  path = write(tmp_path / "a.csv", told)
  run = lambda *words: run_fit(
    capsys, "--csv", *words, "--law", "direct", "--n_boot", 0, "--starts", 16
  )
  found = run(path)["fit"]
  assert found["columns"]["accuracy"] == "acc"
  assert found["estimates"]["alpha"]["value"] == pytest.approx(0.25, abs=1e-3)
  percent = write(tmp_path / "b.csv", told | {"acc": 100 * accuracy})
  with pytest.raises(
    ConfigError, match=r"accuracy=\d\d.*: must be a share in .*--unit accuracy=0.01"
  ):
    run(percent)
  again = run(percent, "--unit", "accuracy=0.01")["fit"]
  assert again["estimates"]["alpha"]["value"] == pytest.approx(0.25, abs=1e-3)


def test_a_teachers_loss_is_not_taken_for_the_loss(tmp_path):
  path = write(tmp_path / "a.csv", {"teacher_loss": [2.0, 2.1], "val_loss": [3.0, 3.1]})
  table = laws.read_table(path)
  assert table.source["loss"] == "val_loss" and table.source["teacher_loss"] == "teacher_loss"
  assert further_forms.COLUMNS.keys() >= {"teacher_loss"}
