"""isoFLOP, envelope, variable projection, hyperparameter laws and designs on surfaces of known shape."""

import json

import numpy as np
import pytest

from experiments import laws
from experiments.laws import allocation, curves, design, isoflop

BUDGETS = np.geomspace(1e18, 1e21, 5)


def surface(alpha, beta, n, d):
  return 1.69 + 406.4 / n**alpha + 410.7 * (20.0 ** (beta - 0.28)) / d**beta


def isoflop_table(alpha=0.3, beta=0.3, noise=0.0, shift=1.0, sizes=9, span=8.0, seed=0, drift=0.0):
  """Budgets with sizes around `shift` times the true optimum, moving away from it as C^drift."""
  c = np.repeat(BUDGETS, sizes)
  scale = (alpha * 406.4 / (beta * 410.7 * 20.0 ** (beta - 0.28))) ** (1 / (alpha + beta))
  best = scale * (c / 6) ** (beta / (alpha + beta)) * (c / np.sqrt(c.min() * c.max())) ** drift
  n = shift * best * np.tile(np.geomspace(1 / span, span, sizes), len(BUDGETS))
  d = c / (6 * n)
  loss = surface(alpha, beta, n, d)
  loss *= np.exp(noise * np.random.default_rng(seed).standard_normal(len(n)))
  return laws.from_columns({"n_params": n, "n_tokens": d, "flops": c, "loss": loss})


@pytest.mark.parametrize("method", curves.METHODS)
def test_a_symmetric_surface_gives_its_exponents_exactly(method):
  f = laws.isoflop_fit(isoflop_table(), method=method, n_boot=0, bias=False)
  assert f["a"].value == pytest.approx(0.5, abs=2e-3) and f["a+b"].value == pytest.approx(
    1.0, abs=1e-6
  )
  assert len(f.used) == 5


def test_a_parabola_is_found_where_it_is():
  u = np.linspace(0, 4, 9)
  at, low, inside = curves.minimum("parabola", u, 2 + 0.3 * (u - 1.7)[None] ** 2)
  assert at[0] == pytest.approx(1.7) and low[0] == pytest.approx(2.0) and inside[0]
  assert not curves.minimum("parabola", u, -(u**2))[2][0]
  assert not curves.minimum("parabola", u, (u[None] - 9) ** 2)[2][0]


def test_a_robust_parabola_ignores_one_bad_run():
  u = np.linspace(-2, 2, 11)
  y = 3 + 0.1 * (u - 0.4) ** 2 + 1e-4 * np.random.default_rng(0).standard_normal(11)
  y[9] += 0.5
  off = {m: abs(curves.minimum(m, u, y)[0][0] - 0.4) for m in ("parabola", "robust")}
  assert off["parabola"] > 0.2 and off["robust"] < 0.01


def test_optima_at_an_edge_are_rejected_by_name():
  t = isoflop_table()
  n, loss = t["n_params"], t["loss"].copy()
  first = np.isclose(t["flops"], BUDGETS[0])
  loss[first] = 4 - 0.1 * np.log(n[first] / n[first].min())
  t = laws.from_columns(t.columns | {"loss": loss})
  f = laws.isoflop_fit(t, n_boot=20, bias=False)
  assert len(f.used) == 4 and "largest size" in f.slices[0].status
  assert any("1e+18 rejected" in note for note in f.notes)
  with pytest.raises(ValueError, match=r"0 usable budgets.*not bracketed"):
    laws.isoflop_fit(isoflop_table(shift=100.0), bias=False)


def test_the_bias_of_parabolas_is_measured_and_is_none_for_a_symmetric_surface():
  # sizes that drift across the optimum as budgets grow, as a fixed list of sizes does
  skew = laws.isoflop_fit(isoflop_table(0.45, 0.2, span=20.0, drift=0.25), n_boot=0)
  fair = laws.isoflop_fit(isoflop_table(span=20.0), n_boot=0)
  truth = 0.2 / 0.65
  assert abs(skew["a"].value - truth) > 5e-3
  assert skew.bias_a == pytest.approx(skew["a"].value - truth, abs=1e-3)
  assert abs(fair.bias_a) < 1e-3


def test_isoflop_intervals_hold_the_truth():
  held = [
    low <= 0.5 <= high
    for seed in range(60)
    for low, high in laws.isoflop_fit(
      isoflop_table(noise=0.004, seed=seed), n_boot=150, bias=False
    )["a"].intervals.values()
  ]
  assert 0.86 <= np.mean(held) <= 0.99


def test_runs_a_little_off_a_budget_are_one_slice():
  c = np.array([1e18, 1.02e18, 0.97e18, 3e18, 3.1e18])
  np.testing.assert_array_equal(isoflop.budget_groups(c), [0, 0, 0, 1, 1])


def test_published_pairs_are_regressed_with_their_weights():
  c = np.geomspace(1e16, 1e19, 8)
  n = 0.1 * c**0.5
  n[0] *= 2
  even = laws.power_law_of_optima(c, n)
  weighted = laws.power_law_of_optima(c, n, sd_log=np.array([100.0] + [1.0] * 7))
  assert abs(even.value - 0.5) > 0.02 and weighted.value == pytest.approx(0.5, abs=1e-4)


def test_isoflop_results_are_plain_json():
  f = laws.isoflop_fit(isoflop_table(noise=0.003), n_boot=30)
  back = json.loads(json.dumps(f.to_json(), allow_nan=False))
  assert back["estimates"]["a"]["value"] == f["a"].value and len(back["slices"]) == 5
  assert "bias of a" in f.summary()


def test_variable_projection_finds_the_truth_and_agrees_with_newton():
  t = isoflop_table(0.34, 0.28)
  v = laws.varpro_fit(t["n_params"], t["n_tokens"], t["loss"])
  assert (v.E, v.alpha, v.beta) == pytest.approx((1.69, 0.34, 0.28), rel=1e-4) and not v.at_edge
  noisy = isoflop_table(0.34, 0.28, noise=0.003)
  columns = [noisy[k] for k in ("n_params", "n_tokens", "loss")]
  relative = laws.varpro_fit(*columns, relative=True)
  newton = laws.fit_table(noisy, objective="l2", n_boot=0, methods=(), n_starts=64, holdout=False)
  # Relative errors are nearly log errors.
  assert relative.a == pytest.approx(newton["a"].value, abs=2e-3)


def test_variable_projection_of_a_table_has_intervals_about_its_own_optimum():
  t = isoflop_table(0.34, 0.28, noise=0.003)
  v, f = (
    laws.varpro_fit(*(t[k] for k in ("n_params", "n_tokens", "loss"))),
    laws.varpro_table(t, n_boot=200),
  )
  for name in ("A", "B", "E", "alpha", "beta", "a"):
    assert f[name].value == pytest.approx(getattr(v, name), rel=1e-4)
    for low, high in f[name].intervals.values():
      assert low < f[name].value < high
  assert all(low < 0.28 / 0.62 < high for low, high in f["a"].intervals.values())
  assert (
    "variable projection" in f.summary() and json.loads(json.dumps(f.to_json()))["n_rows"] == 45
  )


def test_published_optima_of_a_table_are_regressed(tmp_path):
  path = tmp_path / "optima.csv"
  lines = [
    f"{c:.6g},{0.1 * c**0.5:.6g},{1.7 * c**0.5:.6g},0.1" for c in np.geomspace(1e16, 1e19, 8)
  ]
  path.write_text("\n".join(["flops,n,t,sd", *lines, "1e20,,,"]))
  t = laws.read_table(path, names={"n_tokens": "t", "sd": "sd"})
  f = laws.optima_fit(t, sd="sd")
  assert f["a"].value == pytest.approx(0.5, abs=1e-5) and f["b"].value == pytest.approx(
    0.5, abs=1e-5
  )
  assert any("row 9" in n for n in f.notes) and "8 optima" in f.summary()
  with pytest.raises(ValueError, match="three optima"):
    laws.optima_fit(laws.from_columns({"n_params": [1.0], "flops": [1e18]}))


def test_the_envelope_of_training_curves_has_the_optimum_path():
  sizes, runs = np.geomspace(1e6, 1e9, 40), []
  for i, n in enumerate(sizes):
    d = np.geomspace(1, 2000, 60) * n
    runs.append((np.full(60, f"run{i}"), np.full(60, n), d, surface(0.3, 0.3, n, d)))
  name, n, d, loss = (np.concatenate(c) for c in zip(*runs, strict=True))
  t = laws.from_columns({"n_params": n, "n_tokens": d, "loss": loss}, labels={"run": name})
  f = laws.envelope_fit(t, "run", n_boot=50)
  assert f["a"].value == pytest.approx(0.5, abs=0.02) and f["b"].value == pytest.approx(
    0.5, abs=0.02
  )
  with pytest.raises(ValueError, match="known: run"):
    laws.envelope_fit(t, "name")


@pytest.mark.parametrize("method", ["parabola", "akima"])
def test_a_learning_rate_law_comes_back_from_its_sweep(method):
  rows = []
  for n in (1e6, 1e7, 1e8):
    for d in (1e8, 1e9, 1e10):
      best = 1.8 * n**-0.7 * d**0.3
      for lr in best * np.geomspace(1 / 9, 9.5, 9):
        for batch in (32, 64):
          rows.append((n, d, lr, batch, 3 + 0.05 * np.log(lr / best) ** 2 + 0.01 * (batch == 64)))
  columns = dict(
    zip(("n_params", "n_tokens", "lr", "batch", "loss"), np.array(rows).T, strict=True)
  )
  f = laws.hyper_fit(laws.from_columns(columns), "lr", method=method, init_loss=8.0)
  exact = 1e-6 if method == "parabola" else 2e-2
  assert f["n_params"].value == pytest.approx(-0.7, abs=exact)
  assert f["n_tokens"].value == pytest.approx(0.3, abs=exact)
  assert f.predict(n_params=1e9, n_tokens=1e11) == pytest.approx(
    1.8 * 1e-6**1.05 * 1e11**0.3, rel=0.1
  )
  json.dumps(f.to_json(), allow_nan=False)
  with pytest.raises(ValueError, match="collinear"):
    same = laws.from_columns(columns | {"flops": columns["n_params"] * columns["n_tokens"]})
    laws.hyper_fit(same, "lr", on=("n_params", "n_tokens", "flops"))


def test_a_sweep_whose_best_is_at_its_edge_gives_no_optimum():
  n = np.repeat([1e6, 1e7, 1e8, 1e9], 5)
  lr = np.tile(np.geomspace(1e-4, 1e-2, 5), 4)
  t = laws.from_columns({"n_params": n, "lr": lr, "loss": 3 - np.log10(lr)})
  with pytest.raises(ValueError, match="0 cells with an optimum"):
    laws.hyper_fit(t, "lr", on=("n_params",))


def test_sensitivity_is_the_mean_excess_over_log_learning_rate():
  assert laws.lr_sensitivity([1e-4, 1e-3, 1e-2], [3.0, 3.0, 3.0], 10.0) == 0
  # a V of 1 nat a decade: mean excess 0.5; a diverged end counts as the initial loss
  assert laws.lr_sensitivity([1e-4, 1e-3, 1e-2], [4.0, 3.0, 4.0], 10.0) == pytest.approx(0.5)
  assert laws.lr_sensitivity([1e-2, 1e-4, 1e-3], [np.nan, 4.0, 3.0], 5.0) == pytest.approx(0.75)


def test_conventions_are_refitted_side_by_side():
  t = isoflop_table(0.34, 0.28)
  t = laws.from_columns(t.columns | {"small": t["n_params"] - 0.5 * t["n_params"] ** 0.9})
  conventions = {"total": {}, "non-embedding": {"n_params": "small"}}
  side = laws.refit_under(t, conventions, n_boot=0, methods=("delta",), n_starts=64, holdout=False)
  fits = side.fits
  assert fits["total"]["alpha"].value == pytest.approx(0.34, rel=1e-4)
  assert fits["non-embedding"]["a"].value != pytest.approx(fits["total"]["a"].value, abs=1e-3)
  np.testing.assert_allclose(fits["non-embedding"].table["flops"], 6 * t["small"] * t["n_tokens"])
  assert "non-embedding" in side.summary().splitlines()[0]
  low, high = fits["total"]["a"].intervals["delta"]
  assert f"[{low:.4g}, {high:.4g}]" in side.summary()
  assert (
    json.loads(json.dumps(side.to_json()))["total"]["estimates"]["a"]["value"]
    == side["total"]["a"].value
  )


def costly(t):
  """FLOPs that grow faster than 6 N D, as those of attention do."""
  return 20 * t["n_params"] ** 0.95 * t["n_tokens"]


def test_an_optimum_under_other_flops_is_found_on_the_surface_itself():
  t = isoflop_table(0.34, 0.28)
  t = laws.from_columns(t.columns | {"flops_exact": costly(t)})
  found = laws.standard(t)
  assert list(found) == ["6 N D", "exact FLOPs"]
  options = {"n_boot": 0, "methods": (), "n_starts": 64, "holdout": False, "flops": (1e21,)}
  side = laws.refit_under(t, found, **options)
  best = lambda k, s: allocation.optimal_numeric(
    lambda n, d: surface(0.34, 0.28, n, d), 1e21, lambda n: 1e21 / (k * n**s)
  )
  for name, counted in (("6 N D", (6, 1)), ("exact FLOPs", (20, 0.95))):
    n, d, loss = best(*counted)
    assert side[name]["N*@1e+21"].value == pytest.approx(n, rel=1e-3)
    assert side[name]["D*@1e+21"].value == pytest.approx(d, rel=1e-3)
    assert side[name]["loss@1e+21"].value == pytest.approx(loss, rel=1e-6)
  exact = side["exact FLOPs"]
  assert exact["a"].value == pytest.approx(0.28 / (0.34 + 0.95 * 0.28), rel=1e-3)
  assert exact["b"].value + 0.95 * exact["a"].value == pytest.approx(1, rel=1e-3)


def test_slices_are_moved_to_equal_compute_before_they_are_counted_otherwise():
  t = isoflop_table(0.3, 0.3)
  t = laws.from_columns(t.columns | {"flops_exact": costly(t)})
  side = laws.refit_under(t, laws.standard(t), laws.isoflop_fit, n_boot=0)
  truth = 0.3 / (0.3 + 0.95 * 0.3)
  assert side["6 N D"]["a"].value == pytest.approx(0.5, abs=2e-3)
  assert side["exact FLOPs"]["a"].value == pytest.approx(truth, abs=3e-3)
  assert any("moved along D" in n for n in side["exact FLOPs"].notes)


def test_one_way_to_count_is_not_set_beside_itself():
  assert laws.standard(isoflop_table()) == {}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["parabola", "robust"])
def test_500_simulated_slices_are_covered(method):
  held = {"scatter": [], "noise": []}
  for seed in range(500):
    fit = laws.isoflop_fit(
      isoflop_table(noise=0.004, seed=seed), method=method, n_boot=200, bias=False
    )
    for name in ("a", "b"):
      for kind, (low, high) in fit[name].intervals.items():
        held[kind].append(low <= 0.5 <= high)
  for kind, hits in held.items():
    assert 0.90 <= np.mean(hits) <= 0.99, (kind, np.mean(hits))


def test_noise_is_told_from_the_shape_of_a_curve():
  u, rng = np.linspace(0, 8, 12), np.random.default_rng(0)
  shape = 3 + 0.02 * (u - 3) ** 3 + np.exp(-u)
  assert np.abs(curves.local_noise(u, shape)).max() < 0.05 * np.abs(curves.noise_of(u, shape)).max()
  noisy = [curves.local_noise(u, 0.01 * rng.standard_normal(12)).std() for _ in range(300)]
  assert np.mean(noisy) == pytest.approx(0.01, rel=0.1)


def test_a_budget_whose_optimum_is_lost_in_the_noise_is_rejected_by_name():
  t = isoflop_table()
  first = np.isclose(t["flops"], BUDGETS[0])
  loss = t["loss"].copy()
  loss[first] = 3 + 1e-6 * np.log(t["n_params"][first] / t["n_params"][first].mean()) ** 2
  f = laws.isoflop_fit(
    laws.from_columns(t.columns | {"loss": loss}), n_boot=200, bias=False, loss_sd=0.05
  )
  assert "resampled slices have an optimum" in f.slices[0].status and len(f.used) == 4


def plan(n, d, **options):
  return design.PlannedRun(n, d, 6 * n * d, **options)


def messages(runs, severity):
  return " | ".join(text for level, text in laws.check_design(runs) if level == severity)


def test_designs_that_cannot_answer_are_refused():
  line = [plan(n, 20 * n) for n in np.geomspace(1e6, 1e8, 12)]
  assert "not identifiable" in messages(line, "refuse")
  assert "fewer than parameters + 3 = 8" in messages(line[:4], "refuse")
  proposed = list(laws.propose_design(1e19, n_simulations=16).runs)
  assert laws.check_design(proposed) == []
  thin = [r for i, r in enumerate(proposed) if i % 3 == 0]
  assert "fewer than 5" in messages(thin, "refuse")
  far = [plan(1000 * r.n_params, r.n_tokens / 1000) for r in proposed]
  assert "at the edge" in messages(far, "refuse")
  early = [
    *proposed[1:],
    plan(proposed[0].n_params, proposed[0].n_tokens, schedule_ends_with_run=False),
  ]
  assert "before the schedule ends" in messages(early, "refuse")
  mixed = [*proposed[1:], plan(proposed[0].n_params, proposed[0].n_tokens, eval_set_id="other")]
  assert "eval sets" in messages(mixed, "refuse")
  repeated = [
    *proposed[1:],
    plan(proposed[0].n_params, proposed[0].n_tokens, unique_tokens=proposed[0].n_tokens / 9),
  ]
  assert "more than 4 times (up to 9)" in messages(repeated, "warn")
  with pytest.raises(ValueError, match="empty"):
    laws.check_design([])


def test_the_proposed_grid_costs_its_budget_and_keeps_its_promise():
  d = laws.propose_design(1e19, noise=0.005, n_simulations=200)
  assert d.total_flops == pytest.approx(1e19) and len(d.runs) <= 42
  expected, simulated = np.diff(d.interval)[0], np.diff(d.simulated)[0]
  assert simulated == pytest.approx(expected, rel=0.25)
  shorter = laws.propose_design(1e19, compute_ratios=(10.0,), n_simulations=16)
  louder = laws.propose_design(1e19, noise=0.02, n_simulations=16)
  assert shorter.se > 1.5 * d.se and louder.se == pytest.approx(4 * d.se)
  with pytest.raises(ValueError, match="no grid"):
    laws.propose_design(1e10)
  for none in (-1.0, 0.0, 1e-300, 1e300, float("nan")):
    with pytest.raises(ValueError, match=r"budget=.*: must be in \[1, 1e60\] FLOPs"):
      laws.propose_design(none)
