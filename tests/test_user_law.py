"""A law written as a formula is that law, and what is no formula is one line."""

import numpy as np
import pytest

from tests.test_laws_dependence import factorial

KEYS = ("n_params", "n_tokens")


def test_a_formula_is_the_law_it_spells():
  from experiments.laws import forms, intervals, user_law

  law = user_law.parse("E + A/N^alpha + B/D^beta")
  assert law.inputs == KEYS and law.link == "log"
  assert [(p.name, p.log) for p in law.params] == [
    ("E", True), ("A", True), ("alpha", False), ("B", True), ("beta", False)
  ]  # fmt: skip
  n, d = (v.ravel() for v in factorial(np.geomspace(1e9, 1e11, 4)))
  x = {"n_params": n, "n_tokens": d}
  ours = intervals.predict(law, law.working([1.69, 406.4, 0.34, 410.7, 0.28]), x)
  known = forms.LAWS["chinchilla"]
  theirs = intervals.predict(known, known.working([406.4, 410.7, 1.69, 0.34, 0.28]), x)
  np.testing.assert_allclose(ours, theirs, rtol=1e-13)


@pytest.mark.parametrize(
  "formula, value",
  [
    ("E + A*N^-a + B*D^-b*exp(-k*S)", lambda p, N, D, S: p["E"] + p["A"] * N ** -p["a"]
     + p["B"] * D ** -p["b"] * np.exp(-p["k"] * S)),
    ("loss = c - a*log(N/1e10) + sqrt(b)/D^0.5", lambda p, N, D, S: p["c"] - p["a"] * np.log(N / 1e10)
     + p["b"] ** 0.5 / D**0.5),
    ("E + A*(M/20)^2", lambda p, N, D, S: p["E"] + p["A"] * (D / N / 20) ** 2),
    ("max(E, A*N**-a) + min(B, 3)",
     lambda p, N, D, S: np.maximum(p["E"], p["A"] * N ** -p["a"]) + min(p["B"], 3)),
    ("E \u2212 -A\u00b7N^-a", lambda p, N, D, S: p["E"] + p["A"] * N ** -p["a"]),
    ("E + A*tanh(a*N/1e9)^2", lambda p, N, D, S: p["E"] + p["A"] * np.tanh(p["a"] * N / 1e9) ** 2),
  ],
)  # fmt: skip
def test_formulas_give_the_values_and_derivatives_of_their_arithmetic(formula, value):
  from experiments.laws import intervals, user_law

  law = user_law.parse(formula)
  N, D, S = np.array([1e7, 1e8, 1e9]), np.array([1e9, 4e9, 1e10]), np.array([1e3, 1e4, 5e4])
  p = dict(zip(law.names, np.linspace(0.3, 1.9, len(law.names)), strict=True)) | {"k": 1e-5}
  x = {"n_params": N, "n_tokens": D, "steps": S}
  theta = law.working([p[n] for n in law.names])
  np.testing.assert_allclose(
    intervals.predict(law, theta, x), np.log(value(p, N, D, S)), rtol=1e-12
  )
  jac = intervals.jacobian(lambda t: law.predict(t, {k: v[:, None] for k, v in x.items()}), theta)
  for i in range(len(theta)):
    step = np.zeros(len(theta))
    step[i] = 1e-6
    up, down = (intervals.predict(law, theta + s * step, x) for s in (1, -1))
    np.testing.assert_allclose(jac[:, i], (up - down) / 2e-6, rtol=1e-4, atol=1e-8)


def test_a_formula_begins_near_its_optimum():
  from experiments.laws import intervals, user_law

  law = user_law.parse("E + A*N^-a + B*D^-b*exp(-k*S)")
  n, d = (v.ravel() for v in factorial(np.geomspace(1e9, 1e11, 4)))
  x = {"n_params": n, "n_tokens": d, "steps": np.random.default_rng(0).uniform(1e3, 1e5, 24)}
  y = intervals.predict(law, law.working([1.7, 400, 0.34, 4000, 0.3, 3e-5]), x)
  starts = law.starts(x, y)
  off = np.abs(intervals.predict(law, starts, x) - y[:, None]).mean(0)
  assert np.isfinite(starts).all() and off.min() < 0.25 * y.std()


@pytest.mark.parametrize(
  "formula, words",
  [
    ("E + a", "no column"), ("N + D", "no parameter"), ("E +", "not a formula"),
    ("E + A[0]*N", "not allowed"),
    ("__import__('os').system('true')*N", "not allowed|no function"), ("(lambda: N)() + a", "not allowed"),
    ("E + pow(N, a)", "'pow' is no function"), ("y = E*N", "'y' cannot be predicted"),
    ("E*N.real", "not allowed"),
    ("L + a*N", "both sides"), ("+".join("N" * 300) + "+a", "longer"),
    ("E*N if 1 else 2", "not allowed"), ("E + 1e999*N", "too large"), ("a\n+N; b", "not a formula"),
    ("-" * 60 + "N*a", "deep"), ("exp(N, a)", "takes one value"), ("E + True*N", "not allowed"),
  ],
)  # fmt: skip
def test_what_is_no_formula_is_one_line(formula, words):
  from experiments.laws import user_law

  with pytest.raises(ValueError, match=words) as error:
    user_law.parse(formula)
  assert "\n" not in str(error.value)
