"""What a fit says about itself: what is not identified, whether its law is wrong, what its intervals hold."""

import json
import re

import numpy as np
import pytest

from experiments import laws, lr_sweep
from experiments.laws import adequacy, allocation, intervals, solve
from lm.config.errors import ConfigError
from tests.known_laws import true_loss
from tests.test_laws_fit import LAW, THETA, TRUTH, grid, noisy_table

FAST = {"objective": "l2", "n_boot": 0, "methods": ("delta",), "n_starts": 16, "holdout": False}


def table_of(n, d, noise=0.005, seed=0, **columns):
  x = {"n_params": np.asarray(n, float), "n_tokens": np.asarray(d, float)}
  y = intervals.predict(LAW, THETA, x)
  y = y + noise * np.random.default_rng(seed).standard_normal(len(y))
  return laws.from_columns(x | {"loss": np.exp(y)} | columns)


# ---- what is not identified ------------------------------------------------------------------------

SPREAD = np.geomspace(1e7, 1e9, 24)
DESIGNS = {
  "one size": (np.full(24, 1e8), SPREAD * 100, "A, E and alpha", "n_params = 1e+08"),
  "one token count": (SPREAD, np.full(24, 1e10), "B, E and beta", "n_tokens = 1e+10"),
  "two sizes": (
    np.repeat([1e8, 3e8], 12),
    np.tile(SPREAD[::2] * 100, 2),
    "A, E and alpha",
    "two values",
  ),
  "one point": (
    np.full(24, 1e8),
    np.full(24, 1e10),
    "A, B, E, alpha and beta",
    "1 different point for",
  ),
  "one budget": (SPREAD, 1e20 / (6 * SPREAD), "A, B, E, alpha and beta", "one budget"),
  "one ratio": (SPREAD, 20 * SPREAD, "A, B, E, alpha and beta", "tokens per parameter"),
}


@pytest.mark.parametrize("design", DESIGNS)
def test_parameters_that_a_design_confounds_are_refused_by_name(design):
  n, d, names, why = DESIGNS[design]
  t = table_of(n, d)
  with pytest.raises(ConfigError, match=f"{names} cannot be told apart.*{re.escape(why)}") as error:
    laws.fit_table(t, **FAST)
  assert "\n" not in str(error.value) and "--fix" in str(error.value)
  f = laws.fit_table(t, force=True, **FAST)
  lost = names.replace(" and ", ", ").split(", ")
  assert list(f.not_identified) == lost
  for name, e in f.estimates.items():
    unknown = name in lost or name in ("a", "b") or "@" in name
    assert bool(e.intervals) != unknown, name
    assert "not identified" in e.withheld or not unknown
  assert "not identified" in json.dumps(f.to_dict(), allow_nan=False)


def test_what_is_fixed_makes_the_rest_of_a_poor_design_identified():
  n, d, *_ = DESIGNS["one size"]
  fixed = {"A": TRUTH["A"], "alpha": TRUTH["alpha"]}
  f = laws.fit_table(table_of(n, d), fixed=fixed, **FAST)
  low, high = f["beta"].interval
  assert low < TRUTH["beta"] < high and not f.not_identified


def test_a_floor_at_its_boundary_is_refused_and_a_fixed_one_is_not_a_finding():
  x = grid()
  loss = (2e4 / x["n_params"]) ** 0.3 + (1e6 / x["n_tokens"]) ** 0.35
  # of two draws of noise one puts the best E above 0; this is one that does not
  loss *= np.exp(0.003 * np.random.default_rng(3).standard_normal(48))
  t = laws.from_columns(x | {"loss": loss})
  with pytest.raises(ConfigError, match=r"E is not identified.*boundary 0"):
    laws.fit_table(t, **FAST)
  forced = laws.fit_table(t, force=True, **FAST)
  assert not forced["E"].intervals and "E" in forced.not_identified
  fixed = laws.fit_table(t, fixed={"E": 1e-9}, **FAST)
  assert not any("irreducible" in n for n in fixed.notes)
  assert fixed["alpha"].interval[0] < 0.3 < fixed["alpha"].interval[1]


def test_repeats_that_never_happened_say_nothing_of_their_half_life():
  t = table_of(*grid().values())
  t = laws.from_columns(t.columns | {"unique_tokens": t["n_tokens"]})
  with pytest.raises(ConfigError, match="R_D"):
    laws.fit_table(t, "data_constrained", **FAST)


def test_variable_projection_refuses_alike():
  n, d, *_ = DESIGNS["one size"]
  with pytest.raises(ConfigError, match=r"cannot be told apart|boundary"):
    laws.varpro_table(table_of(n, d), n_boot=0)
  assert not laws.varpro_table(table_of(n, d), n_boot=0, force=True)["alpha"].intervals


def test_losses_of_two_kinds_at_one_place_are_refused():
  x = grid()
  t = table_of(np.tile(x["n_params"], 2), np.tile(x["n_tokens"], 2))
  loss = t["loss"] * np.repeat([1.0, 0.4], 48)
  t = laws.from_columns(t.columns | {"loss": loss})
  with pytest.raises(ConfigError, match="rows 1 and 49 have the same n_params"):
    laws.fit_table(t, **FAST)
  with pytest.raises(ConfigError, match="which noise does not explain"):
    laws.isoflop_fit(t, n_boot=0, bias=False)
  assert laws.isoflop_fit(t, n_boot=0, bias=False, force=True)


# ---- is the law wrong? -----------------------------------------------------------------------------

LOGS = {k: np.log(v) for k, v in grid().items()}
U, V = LOGS["n_params"], LOGS["n_tokens"]
RIGHT = intervals.predict(LAW, THETA, grid())
WRONG = {
  "kaplan": 0.095 * np.log(np.exp(0.8 * (np.log(8.8e13) - U)) + np.exp(np.log(5.4e13) - V)),
  "sizes and data interact": np.log(np.exp(RIGHT) + 3e4 * np.exp(-0.25 * (U + V))),
  "the power breaks": np.log(
    1.69 + 406 * np.exp(-0.34 * U) * (1 + np.exp(2 * (U - 20.5))) ** 0.1 + 411 * np.exp(-0.28 * V)
  ),
  "over-training costs more": RIGHT + 0.005 * np.maximum(V - U - np.log(60), 0) ** 2,
  "large runs badly tuned": RIGHT + 0.004 * np.maximum(U - 21, 0) ** 2,
}


def verdicts(clean, repeats, noise, clusters=None, heavy=False, seed=5):
  """Lack-of-fit results of least-squares fits to `clean` log losses with noise."""
  rng, x, problem = np.random.default_rng(seed), grid(), solve.make_problem(LAW, {})
  draw = (
    rng.standard_t(4, (repeats, 48)) / np.sqrt(2) if heavy else rng.standard_normal((repeats, 48))
  )
  if clusters is not None:
    draw = np.sqrt(0.5) * draw + np.sqrt(0.5) * rng.standard_normal((repeats, 48))[:, clusters]
  y = clean + noise * draw
  starts = np.tile(THETA, (repeats, 1))
  theta = solve.minimise(problem, x, y, starts, delta=solve.L2_DELTA).theta
  groups = np.arange(48) if clusters is None else clusters
  return [
    adequacy.lack_of_fit(problem, intervals.Data(x, row, solve.L2_DELTA, groups), t)
    for row, t in zip(y, theta, strict=True)
  ]


@pytest.mark.parametrize("world", WRONG)
def test_a_wrong_law_is_told_so(world):
  found = verdicts(WRONG[world], 20, 0.002)
  assert np.mean([f.fails for f in found]) >= 0.9
  said = next(f for f in found if f.fails).text
  assert "does not describe these runs" in said and "residuals follow" in said


def test_a_right_law_is_rarely_told_so():
  # 200 draws of a 5 % event: 4 to 18 in 99 % of cases
  for options in ({}, {"heavy": True}):
    share = np.mean([f.fails for f in verdicts(RIGHT, 200, 0.005, **options)])
    assert 0.01 <= share <= 0.09, (options, share)


@pytest.mark.slow
def test_false_alarms_stay_near_five_percent_with_clusters_and_the_table_is_printed():
  clusters = np.arange(48) // 3
  rows = [("right", np.mean([f.fails for f in verdicts(RIGHT, 500, 0.005)]))]
  rows.append(("right, clusters of 3", np.mean(
    [f.fails for f in verdicts(RIGHT, 300, 0.005, clusters=clusters)])))  # fmt: skip
  rows += [(name, np.mean([f.fails for f in verdicts(w, 100, 0.003)])) for name, w in WRONG.items()]
  for name, share in rows:
    print(f"{name:28s} said to be wrong in {share:.1%}")
  assert 0.02 <= rows[0][1] <= 0.08 and rows[1][1] <= 0.10
  assert min(share for _, share in rows[2:]) >= 0.8


def test_a_wrong_law_gives_no_interval_beyond_its_runs_and_wider_ones_within():
  y = WRONG["the power breaks"] + 0.002 * np.random.default_rng(0).standard_normal(48)
  t = laws.from_columns(grid() | {"loss": np.exp(y)})
  f = laws.fit_table(t, **(FAST | {"holdout": True}))
  assert f.lack_of_fit.fails and "do not extrapolate" in f.summary()
  beyond = f["loss@1e+22"]
  assert not beyond.intervals and beyond.withheld.startswith("withheld")
  low, high = f["alpha"].interval
  plain = f["alpha"].intervals["delta"]
  assert next(iter(f["alpha"].intervals)) == "widened" and low <= plain[0] and high >= plain[1]
  assert high - low > 1.2 * (plain[1] - plain[0])
  forced = laws.fit_table(t, force=True, **FAST)
  assert forced["loss@1e+22"].intervals
  back = json.loads(json.dumps(f.to_dict(), allow_nan=False))
  assert back["lack_of_fit"]["verdict"] == "fails" and back["lack_of_fit"]["p"] < 0.05


def test_repeats_measure_the_noise_themselves():
  x = {k: np.repeat(v, 2) for k, v in grid().items()}
  noise = 0.002 * np.random.default_rng(1).standard_normal(96)
  fit = lambda clean: laws.fit_table(
    laws.from_columns(x | {"loss": np.exp(np.repeat(clean, 2) + noise)}), **FAST
  )
  wrong, right = fit(WRONG["kaplan"]), fit(RIGHT)
  assert wrong.lack_of_fit.fails and not right.lack_of_fit.fails
  _, lack, pure, p = wrong.lack_of_fit.tests["repeats"]
  assert (lack, pure) == (43, 48) and p < 1e-6


def test_runs_of_two_kinds_have_no_law_in_common():
  x = grid()
  kinds = np.array(["dense", "moe"])[np.arange(48) % 2]
  words = {"family": kinds, "note": ["x"] * 48, "id": [f"r{i}" for i in range(48)]}
  plain = table_of(x["n_params"], x["n_tokens"])
  loss = plain["loss"] * np.where(kinds == "moe", 0.95, 1.0)
  mixed = laws.from_columns({**plain.columns, "loss": loss}, words)
  found = laws.fit_table(mixed, **FAST)
  assert found.lack_of_fit.fails and found.lack_of_fit.kind == "family"
  assert re.search(
    r"the residuals follow family \(dense \+2\.\d+%, moe -2\.\d+%\)", found.lack_of_fit.text
  )
  assert any("fit one with --where family=VALUE" in note for note in found.notes)
  of_law = lambda table, words: adequacy.lack_of_fit(
    solve.make_problem(LAW, {}, ()),
    intervals.Data(problem_columns(table), np.log(table["loss"]), 10.0, np.arange(len(table))),
    THETA,
    words,
  )
  one = of_law(plain.take(kinds == "moe", "of another kind"), {"family": kinds[kinds == "moe"]})
  assert not one.fails and set(one.tests) == {"trend"}
  alike = of_law(plain, {"family": kinds})
  assert not alike.fails and set(alike.tests) == {"trend", "by family"}


def test_words_that_say_nothing_are_found_guilty_as_seldom_as_the_level_says():
  x = grid()
  kinds = np.array(["dense", "moe"])[np.arange(48) % 2]
  plain = table_of(x["n_params"], x["n_tokens"])
  problem = solve.make_problem(LAW, {}, ())
  data = intervals.Data(problem_columns(plain), np.log(plain["loss"]), 10.0, np.arange(48))
  rng = np.random.default_rng(0)
  tried = [
    adequacy.lack_of_fit(problem, data, THETA, {"k": rng.permutation(kinds)}).tests["by k"][3]
    for _ in range(300)
  ]
  assert 0.02 < np.mean(np.array(tried) < 0.05) < 0.09


def problem_columns(table):
  return {name: table[name] for name in LAW.inputs}


def test_copies_of_a_row_are_one_run():
  t = noisy_table(0.005)
  four = laws.from_columns({k: np.repeat(v, 4) for k, v in t.columns.items()})
  once, often = (
    laws.fit_table(
      v, **(FAST | {"n_boot": 300, "methods": ("case", "delta", "profile"), "flops": ()})
    )
    for v in (t, four)
  )
  assert often.clusters == 48 and often["a"].value == pytest.approx(once["a"].value, rel=1e-6)
  for method in ("case", "delta", "profile"):
    wide = [f["a"].intervals[method] for f in (once, often)]
    ratio = (wide[1][1] - wide[1][0]) / (wide[0][1] - wide[0][0])
    assert 0.9 < ratio < 1.35, (method, ratio)


def test_the_held_out_verdict_is_worded():
  right = laws.fit_table(noisy_table(0.004), **(FAST | {"holdout": True})).holdout
  assert right.verdict == "holds" and set(right.parameters) == set(TRUTH)
  assert right.mae == pytest.approx(right.mare * 2.4, rel=0.2)
  x = grid()
  y = RIGHT + 0.004 * np.random.default_rng(0).standard_normal(48)
  y = y + np.where(x["n_params"] * x["n_tokens"] > 1e20, 0.03, 0.0)
  wrong = laws.fit_table(laws.from_columns(x | {"loss": np.exp(y)}), **(FAST | {"holdout": True}))
  assert wrong.holdout.verdict == "fails" and "fails its extrapolation test" in wrong.summary()


# ---- intervals -------------------------------------------------------------------------------------


def test_refits_that_failed_are_not_counted_by_bca():
  rng = np.random.default_rng(0)
  good, left_out = rng.normal(1.0, 0.2, (400, 1)), rng.normal(1.0, 0.01, (30, 1))
  broken = np.vstack([good, np.full((200, 1), np.nan)])
  args = np.array([1.05]), left_out, 0.95
  np.testing.assert_array_equal(intervals.bca(good, *args), intervals.bca(broken, *args))
  np.testing.assert_array_equal(
    intervals.percentile(good, 0.95), intervals.percentile(broken, 0.95)
  )


def test_what_has_no_bound_is_said_to_have_none():
  at, is_log = np.array([0.0, 0.5]), np.array([True, False])
  out = intervals.unbounded(np.array([[-1.0, 0.4], [344.0, 0.6]]), at, is_log)
  assert out[1, 0] == np.inf and np.isfinite(out[[0, 0, 1], [0, 1, 1]]).all()
  e = laws.Estimate("R_D", 30.0, "", {"profile": (4.2, np.inf), "case": (0.0, np.inf)}, None)
  assert e.said("profile") == "4.2 .. no upper bound"
  assert e.said("case") == "no bound on either side"


def test_starts_are_many_where_fixed_parameters_leave_few():
  x, law = grid(), laws.LAWS["data_constrained"]
  x["unique_tokens"] = x["n_tokens"] / np.tile([1.0, 4.0, 16.0, 60.0], 12)
  values = (521.0, 1488.0, 1.87, 0.35, 0.35, 15.4, 5.3)
  y = intervals.predict(law, law.working(np.array(values)), x)
  y = y + 0.002 * np.random.default_rng(0).standard_normal(48)
  fixed = dict(zip(law.names[:5], values, strict=False))
  options = FAST | {"fixed": fixed, "n_starts": None, "methods": ()}
  f = laws.fit_table(laws.from_columns(x | {"loss": np.exp(y)}), "data_constrained", **options)
  assert f.n_starts >= 256
  assert f["R_D"].value == pytest.approx(15.4, rel=0.2)


def test_budgets_that_differ_have_names_that_differ():
  f = laws.fit_table(noisy_table(), **(FAST | {"flops": (5.88e23, 5.881e23, 5.88e23)}))
  names = [n for n in f.estimates if n.startswith("N*")]
  assert names == ["N*@5.88e+23", "N*@5.881e+23"]
  assert f[names[0]].value < f[names[1]].value
  assert allocation.key(1 / 3) == repr(1 / 3) and float(allocation.key(123456789.0)) == 123456789


def test_a_small_huber_threshold_says_what_it_costs():
  t = noisy_table(0.01)
  options = FAST | {"methods": ()}
  lad, squares = (laws.fit_table(t, **(options | {"objective": o})) for o in ("huber", "l2"))
  assert any("nearly LAD" in n and "wider than least squares" in n for n in lad.notes)
  assert not any("least squares" in n for n in squares.notes)


def test_bootstrap_standard_errors_stand_beside_intervals():
  f = laws.fit_table(noisy_table(0.005), **(FAST | {"n_boot": 80, "methods": ("case", "delta")}))
  assert f["alpha"].boot_se == pytest.approx(f["alpha"].se, rel=0.5)
  assert f["alpha"].boot_se == pytest.approx(f.boots[:, 3].std())
  assert "boot se" in f.summary()


# ---- how rows and residuals count ------------------------------------------------------------------


def test_a_weight_of_two_is_a_row_taken_twice():
  t = noisy_table(0.005)
  weight = np.where(np.arange(48) % 3 == 0, 2.0, 1.0)
  heavy = laws.from_columns(t.columns | {"weight": weight})
  twice = laws.from_columns({k: np.repeat(v, weight.astype(int)) for k, v in t.columns.items()})
  a = laws.fit_table(heavy, weights="weight", **FAST)
  b = laws.fit_table(twice, **FAST)
  np.testing.assert_allclose(a.theta, b.theta, rtol=1e-6)
  sd = laws.from_columns(t.columns | {"sd": t["loss"] / np.sqrt(weight)})
  np.testing.assert_allclose(laws.fit_table(sd, sd="sd", **FAST).theta, a.theta, rtol=1e-6)
  with pytest.raises(ValueError, match="give one"):
    laws.fit_table(sd, sd="sd", weights="sd", **FAST)


def test_linear_residuals_are_those_of_the_loss_itself():
  optimize = pytest.importorskip("scipy.optimize")
  t = noisy_table(0.01)
  f = laws.fit_table(t, residual="linear", **FAST)
  x = {k: t[k] for k in LAW.inputs}
  out = optimize.least_squares(
    lambda th: np.exp(intervals.predict(LAW, th, x)) - t["loss"], THETA, xtol=1e-14, ftol=1e-14,
    gtol=1e-14,
  )  # fmt: skip
  np.testing.assert_allclose(f.theta, out.x, rtol=1e-5)
  assert f.residual == "linear" and f.value == pytest.approx(out.cost, rel=1e-9)
  assert f["loss@1e+21"].value == pytest.approx(2.33, abs=0.03)
  with pytest.raises(ValueError, match="residual='ratio'"):
    laws.fit_table(t, residual="ratio", **FAST)


def test_whatever_holds_runs_can_be_fitted_in_one_call(tmp_path):
  pandas = pytest.importorskip("pandas")
  t = noisy_table(0.005)
  frame = pandas.DataFrame(
    {"Model Size": t["n_params"], "tokens": t["n_tokens"], "val_loss": t["loss"], "who": ["x"] * 48}
  )
  path = tmp_path / "runs.csv"
  frame.to_csv(path, index=False)
  same = [
    laws.fit(v, **FAST)
    for v in (frame, str(path), dict(frame.items()), laws.fit_table(t, **FAST).table)
  ]
  for f in same[1:]:
    np.testing.assert_allclose(f.theta, same[0].theta, rtol=1e-8)
  assert repr(same[0]).startswith("<LawFit: chinchilla on 48 runs: A ") and len(repr(same[0])) < 400
  assert same[0].to_dict() == same[0].to_json()
  with pytest.raises(ValueError, match="must be a Table"):
    laws.fit(3)


# ---- given laws, several laws, laws in a chain -----------------------------------------------------


def test_a_given_law_is_set_against_the_runs_and_their_fit():
  t = noisy_table(0.005)
  t = laws.from_columns(t.columns | {"sd": 0.005 * t["loss"]})
  right = laws.evaluate(t, "chinchilla", TRUTH, sd="sd", objective="l2", n_starts=16)
  wrong = laws.evaluate(
    t, "chinchilla", TRUTH | {"alpha": 0.345}, sd="sd", objective="l2", n_starts=16
  )
  predicted = 1.69 + 406.4 / t["n_params"] ** 0.34 + 410.7 / t["n_tokens"] ** 0.28
  assert right.r2 == pytest.approx(
    1 - ((t["loss"] - predicted) ** 2).sum() / (48 * t["loss"].var())
  )
  assert right.chi2["statistic"] == pytest.approx((((t["loss"] - predicted) / t["sd"]) ** 2).sum())
  for test in ("chi2", "wald", "likelihood_ratio"):
    assert getattr(right, test)["p"] > 0.01 > getattr(wrong, test)["p"]
  assert "differs from the fitted one" in wrong.summary()
  json.dumps(right.to_dict(), allow_nan=False)
  with pytest.raises(ValueError, match="E is missing"):
    laws.evaluate(t, "chinchilla", {k: v for k, v in TRUTH.items() if k != "E"})


def test_laws_are_ranked_and_those_that_contain_each_other_are_tested():
  t = noisy_table(0.003)
  found = laws.compare(
    t,
    {"free": {}, "shared": {"tied": [("alpha", "beta")]}, "kaplan": {"law": "kaplan_nd"}},
    objective="l2",
    n_starts=16,
  )
  assert [r["law"] for r in found.rows] == ["free", "shared", "kaplan"]
  assert sum(r["weight"] for r in found.rows) == pytest.approx(1)
  (test,) = found.nested
  assert (test["smaller"], test["larger"], test["dof"]) == ("shared", "free", 1) and test[
    "p"
  ] < 1e-3
  assert "free is needed beside shared" in found.summary()
  row, f = found.rows[0], found["free"]
  assert row["bic"] - row["aic"] == pytest.approx(6 * (np.log(48) - 2)) and f.n_free == 5
  with pytest.raises(ValueError, match="fitted alike"):
    laws.compare(t, {"a": {}, "b": {"residual": "linear"}}, n_starts=8)


def test_a_chain_carries_the_uncertainty_of_both_laws():
  t = noisy_table(0.004)
  rng = np.random.default_rng(2)
  clean = np.exp(RIGHT)
  error = 0.85 - 2.1 * np.exp(-0.7 * clean) + 0.003 * rng.standard_normal(48)
  t = laws.from_columns(t.columns | {"flops": 6 * t["n_params"] * t["n_tokens"], "error": error})
  point = {"n_params": 3e9, "n_tokens": 5e10}
  f = laws.chain_fit(t, points=[point], objective="l2", n_boot=100, n_starts=16)
  name = "error@n_params=3e+09,n_tokens=5e+10"
  loss = 1.69 + 406.4 / 3e9**0.34 + 410.7 / 5e10**0.28
  truth = 0.85 - 2.1 * np.exp(-0.7 * loss)
  low, high = f[name].interval
  assert low < truth < high and f[name].value == pytest.approx(truth, abs=0.01)
  assert f.predict({k: [v] for k, v in point.items()})[0] == pytest.approx(f[name].value)
  assert f.holdout.n_held == 8 and f.holdout.mae < 0.01
  assert "chain" in f.summary() and json.dumps(f.to_dict(), allow_nan=False)


@pytest.mark.parametrize(
  "text, names",
  [
    ("E + A*N^-alpha + B*D^-beta", ("E", "A", "alpha", "B", "beta")),
    ("L = E + A/N**alpha + B/D**beta", ("E", "A", "alpha", "B", "beta")),
  ],
)
def test_a_law_written_as_a_formula_is_that_law(text, names):
  t = noisy_table(0.005)
  law = laws.parse_law(text)
  assert law.names == names and law.inputs == ("n_params", "n_tokens")
  theta = dict(zip(LAW.names, THETA, strict=True))
  x = {k: t[k] for k in LAW.inputs}
  mine = law.working(np.array([TRUTH[n] for n in names]))
  np.testing.assert_allclose(intervals.predict(law, mine, x), intervals.predict(LAW, THETA, x))
  f = laws.fit_table(t, law, **(FAST | {"n_starts": 60}))
  same = laws.fit_table(t, **FAST)
  assert f.value == pytest.approx(same.value, rel=1e-6) and theta
  assert f["alpha"].value == pytest.approx(same["alpha"].value, rel=1e-4)


@pytest.mark.parametrize(
  "text, why",
  [
    ("E + A*N^", "an operator, a name or a bracket is missing"),
    ("E + A*(N", "a bracket is missing"),
    ("E + A**", "is missing"),
    ("__import__('os').system('x')", "no function here|is not allowed"),
    ("E + open(N)", "'open' is no function here"),
    ("3*N", "it has no parameter"),
    ("E + A", "it has no column"),
    ("E + A*L", "loss stands on both sides"),
    ("E A", "an operator, a name or a bracket is missing"),
  ],
)
def test_a_formula_that_cannot_be_read_is_one_line(text, why):
  with pytest.raises(ValueError, match=why) as error:
    laws.parse_law(text)
  assert "\n" not in str(error.value)


def test_near_optimal_runs_can_stand_for_the_optimum():
  rows = []
  for n in (1e6, 1e7, 1e8, 1e9):
    best = 1.8 * n**-0.3
    rows += [(n, lr, 3 + 0.05 * np.log(lr / best) ** 2) for lr in best * np.geomspace(0.1, 10, 21)]
  t = laws.from_columns(dict(zip(("n_params", "lr", "loss"), np.array(rows).T, strict=True)))
  f = laws.hyper_fit(t, "lr", on=("n_params",), near=0.0025, n_boot=50)
  assert f["n_params"].value == pytest.approx(-0.3, abs=1e-6)
  assert f["log10 k"].value == pytest.approx(np.log10(1.8), abs=1e-6)
  assert any("0.25% of the lowest" in n for n in f.notes)


# ---- isoFLOP slices --------------------------------------------------------------------------------


def skewed(noise=0.002, seed=0):
  """Slices of a law whose terms fall at different rates, wide enough to show it."""
  budgets = np.repeat(np.geomspace(1e18, 1e21, 5), 9)
  best = (0.45 * 406.4 / (0.2 * 50.0)) ** (1 / 0.65) * (budgets / 6) ** (0.2 / 0.65)
  n = best * np.tile(np.geomspace(1 / 12, 12, 9), 5)
  d = budgets / (6 * n)
  loss = 1.69 + 406.4 / n**0.45 + 50.0 / d**0.2
  loss = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(45))
  return laws.from_columns({"n_params": n, "n_tokens": d, "flops": budgets, "loss": loss}), best


def test_a_parabola_that_is_none_is_said_and_its_bias_counted():
  t, best = skewed()
  f = laws.isoflop_fit(t, n_boot=60)
  true = best[-1]
  off = f["N*@1e+21"].value / true - 1
  assert off > 0.08 and f.bias["N*@1e+21"] == pytest.approx(off, abs=0.05)
  assert abs(f.bias_a) < 0.01  # the exponent alone would have said that all is well
  assert f.lack_of_fit.fails and "method=cubic" in f.lack_of_fit.text
  assert min(f.bias_slices) > 0.05 and "bias of N*" in f.summary()
  low, high = f["N*@1e+21"].interval
  assert low < true < high and next(iter(f["N*@1e+21"].intervals)) == "widened"
  cubic = laws.isoflop_fit(t, method="cubic", n_boot=60)
  assert abs(cubic["N*@1e+21"].value / true - 1) < abs(off) / 2
  json.dumps(f.to_dict(), allow_nan=False)


def test_two_budgets_have_no_scatter():
  t, _ = skewed()
  two = t.take(np.isin(t["flops"], np.unique(t["flops"])[:2]), "test")
  f = laws.isoflop_fit(two, n_boot=40, bias=False)
  assert "scatter" not in f["a"].intervals and any("two budgets" in n for n in f.notes)


# ---- the learning-rate sweep -----------------------------------------------------------------------


def test_optima_at_the_edge_of_a_sweep_enter_no_slope():
  best = [
    {"width": w, "seed": s, "best lr": 0.1 / w, "inside the grid": True}
    for w in (32, 64, 128)
    for s in (0, 1)
  ]
  edge = [dict(b) for b in best]
  edge[-1] |= {
    "best lr": 0.002,
    "inside the grid": False,
  }  # the grid ends there; the optimum does not
  right, found = lr_sweep.shift_of(best), lr_sweep.shift_of(edge)
  assert right.value == pytest.approx(-1) and found.value == pytest.approx(-1)
  assert "1 of 6 optima lie at the grid's edge" in found.note
  lost = lr_sweep.shift_of([b | {"inside the grid": False} for b in best])
  assert np.isnan(lost.value) and lost.interval is None and "widen RATES" in lost.note


# ---- coverage of 500 simulated tables --------------------------------------------------------------


def covered(repeats, clusters, delta, methods, noise=0.01, batch=100):
  """{method: {quantity: share of simulated tables whose 95 % interval holds the truth}}."""
  x, problem = grid(), solve.make_problem(LAW, {})
  quantities = allocation.Quantities(LAW, ())
  truth, rng = intervals.evaluate(quantities, THETA)[0], np.random.default_rng(17)
  draws = rng.standard_normal((repeats, 48))
  groups = np.arange(48)
  if clusters is not None:
    groups = clusters
    shared = rng.standard_normal((repeats, groups.max() + 1))[:, groups]
    draws = np.sqrt(0.5) * draws + np.sqrt(0.5) * shared
  y = RIGHT + noise * draws
  best = solve.minimise(problem, x, y, np.tile(THETA, (repeats, 1)), delta=delta, first_delta=0.05)
  hits = {m: [] for m in methods}
  for row, theta, value in zip(y, best.theta, best.objective, strict=True):
    data = intervals.Data(x, row, delta, groups)
    for m in methods:
      if m == "delta":
        low, high = intervals.delta_method(
          quantities, theta, intervals.sandwich(problem, data, theta), 0.95
        )[0]
      elif m == "profile":
        low, high = intervals.profile(problem, quantities, data, theta, float(value), 0.95)
      else:
        counts = intervals.case_weights(groups, 200, 0)
        boots = intervals.refit(problem, data, theta, weights=counts).theta
        few = groups.max() + 1 if clusters is not None else None
        low, high = intervals.percentile(intervals.evaluate(quantities, boots), 0.95, few)
      hits[m].append((low <= truth) & (truth <= high))
  names = [name for name, _, _ in quantities.labels]
  return {m: dict(zip(names, np.mean(h, 0), strict=True)) for m, h in hits.items()}


CLUSTERS = {"16 clusters of 3": np.arange(48) // 3, "12 of 4, across sizes": np.arange(48) % 12}


@pytest.mark.slow
@pytest.mark.parametrize("delta", [pytest.param(1e-3, marks=pytest.mark.long), solve.L2_DELTA])
def test_profiles_of_500_tables_hold_the_truth(delta):
  shares = covered(500, None, delta, ("profile",))["profile"]
  print(f"profile, delta {delta:g}: " + ", ".join(f"{k} {v:.3f}" for k, v in shares.items()))
  assert min(shares.values()) >= 0.90 and max(shares.values()) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("name", CLUSTERS)
@pytest.mark.parametrize("delta", [1e-3, solve.L2_DELTA])
def test_the_delta_method_with_clusters_holds_the_truth_of_500_tables(name, delta):
  shares = covered(500, CLUSTERS[name], delta, ("delta",))["delta"]
  print(f"delta, {name}, {delta:g}: " + ", ".join(f"{k} {v:.3f}" for k, v in shares.items()))
  # 16 clusters make it careful: 2 of 500 tables lie outside, where another CPU's rounding gives 3.
  assert min(shares.values()) >= 0.90 and max(shares.values()) <= 0.998


@pytest.mark.slow
def test_a_held_out_verdict_does_not_praise_a_law_that_fails_its_test():
  """Perplexities read as losses: the law is far off, its limits are wide, and every run is inside."""
  flops = np.repeat(4.0 ** np.arange(5) * 1e18, 7)
  n_params = 0.09 * flops**0.52 * np.tile(4.0 ** np.linspace(-1, 1, 7), 5)
  columns = {"n_params": n_params, "n_tokens": flops / 6 / n_params}
  losses = true_loss(**columns) + 1e-3 * np.random.default_rng(0).standard_normal(35)
  options = {"n_boot": 0, "methods": ("delta",), "n_starts": 32}
  found = laws.fit(columns | {"loss": np.exp(losses)}, "chinchilla", **options)
  assert found.lack_of_fit.fails and found.holdout.verdict == "holds"
  said = found.summary()
  assert "the law holds" not in said
  assert "held-out verdict: 7 of 7 held-out runs inside their 95% interval (p = 1)" in said
  assert said.count("do not extrapolate with it") == 2
  assert (
    "the law holds where it was held out"
    in laws.fit(columns | {"loss": losses}, "chinchilla", **options).summary()
  )
