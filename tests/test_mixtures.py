"""Laws of data mixtures: what comes back from simulated runs, the best mixture, designs that stack."""

import json

import numpy as np
import pytest

from experiments.commands import command_line as cli
from experiments.launch import stacks
from experiments.laws import mixture_laws, mixture_optimum, mixtures
from experiments.ledger import mixture_fits
from experiments.ledger.ledger import Ledger
from experiments.sweep import Run, search, sweep
from lm.config.errors import ConfigError
from tests.fake_runs import SMOKE

DOMAINS, TARGETS = ("web", "code", "books"), ("val/web", "val/code")
T = np.array([[0.2, 1.4, 0.9], [1.6, -0.3, 1.2]])  # each loss falls with its own domain
C = np.array([1.9, 1.1])


def simulated(n=80, sd=0.004, seed=0, law="mixing"):
  rng = np.random.default_rng(seed)
  weights = rng.dirichlet(np.ones(3), n)
  inner = weights @ T.T
  losses = {"mixing": C + np.exp(inner), "log_linear": np.exp(inner), "linear": 3 + inner}[law]
  losses = losses * np.exp(sd * rng.standard_normal((n, 2)))
  return mixtures.make_mixtures(DOMAINS, TARGETS, weights, losses)


def best_by_scipy(t=T, caps=(1.0, 1.0, 1.0)):
  from scipy.optimize import minimize

  found = minimize(
    lambda r: np.exp(t @ r).mean(), np.full(3, 1 / 3), method="SLSQP", tol=1e-14,
    bounds=[(0, c) for c in caps], constraints={"type": "eq", "fun": lambda r: r.sum() - 1},
  )  # fmt: skip
  return found.x


@pytest.mark.parametrize("law", ["mixing", "log_linear", "linear"])
def test_a_law_comes_back_from_runs_of_it_and_ranks_unseen_mixtures(law):
  runs, held = simulated(law=law), simulated(seed=1, sd=0, law=law)
  found = mixtures.fit_mixtures(runs, law, held=held, n_boot=0)
  shift = 3 if law == "linear" else 0
  for i, target in enumerate(TARGETS):
    told = found.coefficients[("web", "code")[i]] if target not in found.coefficients else (
      found.coefficients[target]
    )  # fmt: skip
    if law == "mixing":
      assert told["c"] == pytest.approx(C[i], abs=0.15)
    for domain, t in zip(DOMAINS, T[i], strict=True):
      assert told[domain] == pytest.approx(t + shift, abs=0.2 if law == "mixing" else 0.03)
  assert found.judged[0].target == "their mean" and len(found.judged) == 3
  assert all(j.rank > 0.99 and j.low < j.rank < j.high for j in found.judged)


def test_the_mixing_law_ranks_better_than_a_linear_one_on_its_own_runs():
  runs, held = simulated(), simulated(seed=1, sd=0)
  rank = lambda law: mixtures.fit_mixtures(runs, law, held=held, n_boot=0).judged[0].rank
  assert rank("mixing") > rank("linear") + 0.01


@pytest.mark.parametrize("caps", [(1.0, 1.0, 1.0), (0.3, 0.5, 1.0)])
def test_the_best_mixture_is_that_of_a_general_solver(caps):
  fits = [mixture_laws.Fits(np.zeros(1), t[None]) for t in T]
  r, value, gap = mixture_optimum.best_mixtures("mixing", fits, np.array(caps))
  expected = best_by_scipy(caps=caps)
  np.testing.assert_allclose(r[0], expected, atol=2e-3)
  assert value[0] == pytest.approx(np.exp(T @ expected).mean(), rel=1e-6) and gap[0] < 1e-5
  assert np.all(r[0] <= np.array(caps) + 1e-9) and r[0].sum() == pytest.approx(1)


def test_of_one_loss_the_best_mixture_fills_caps_from_the_best_domain_on():
  r, value, _ = mixture_optimum.best_mixtures(
    "mixing", [mixture_laws.Fits(C[:1], T[:1])], np.array([0.6, 1.0, 0.3])
  )
  np.testing.assert_allclose(r[0], [0.6, 0.1, 0.3])
  assert value[0] == pytest.approx(C[0] + np.exp(T[0] @ r[0]))


def test_the_nearest_mixture_is_nearest():
  rng = np.random.default_rng(3)
  points, caps = rng.normal(0, 1, (50, 4)), np.array([0.2, 0.5, 0.9, 1.0])
  found = mixture_optimum.nearest(points, caps)
  assert np.all(found >= 0) and np.all(found <= caps + 1e-12)
  np.testing.assert_allclose(found.sum(1), 1)
  others = mixture_optimum.nearest(rng.normal(0, 1, (2000, 4)), caps)  # no allowed point is nearer
  away = ((points[:, None] - others[None]) ** 2).sum(2).min(1)
  assert np.all(((points - found) ** 2).sum(1) <= away + 1e-9)


@pytest.mark.slow
def test_intervals_hold_the_best_mixture_of_the_truth():
  truth = best_by_scipy()
  inside = []
  for seed in range(40):
    found = mixtures.fit_mixtures(simulated(60, 0.01, seed), n_boot=80, seed=seed)
    limits = [found[f"r*[{d}]"].interval for d in DOMAINS[:2]]
    inside += [low <= t <= high for (low, high), t in zip(limits, truth[:2], strict=True)]
  assert 0.85 <= np.mean(inside) <= 1.0


def test_trees_rank_unseen_mixtures_and_average_the_best_of_many_draws(monkeypatch):
  pytest.importorskip("sklearn")
  monkeypatch.setattr(mixture_optimum, "DRAWN", 1000)
  runs, held = simulated(150), simulated(seed=1, sd=0)
  found = mixtures.fit_mixtures(runs, "trees", held=held, n_boot=2)
  assert found.judged[0].rank > 0.9
  best = [found[f"r*[{d}]"].value for d in DOMAINS]
  assert sum(best) == pytest.approx(1)
  assert np.exp(T @ best).mean() < np.exp(T @ np.full(3, 1 / 3)).mean()
  assert found.n_boot == 2 and found["r*[web]"].interval


def test_what_cannot_be_fitted_is_refused_in_a_line():
  good = simulated()
  with pytest.raises(ConfigError, match="cap=shop: no such domain"):
    mixtures.fit_mixtures(good, caps={"shop": 0.1}, n_boot=0)
  with pytest.raises(ConfigError, match=r"cap: the largest weights sum to 0\.6"):
    mixtures.fit_mixtures(good, caps=dict.fromkeys(DOMAINS, 0.2), n_boot=0)
  with pytest.raises(ConfigError, match="law=cubic: of mixtures there are mixing"):
    mixtures.fit_mixtures(good, "cubic", n_boot=0)
  weights = good.weights_NK.copy()
  weights[4] *= 0.5
  with pytest.raises(ConfigError, match=r"weights of row 5 sum to 0\.5, those of others to 1"):
    mixtures.make_mixtures(DOMAINS, TARGETS, weights, good.losses_NT)
  weights = good.weights_NK * [1, 1, 0] + 1e-12 * np.array([1, 0, 0])
  with pytest.raises(ConfigError, match="mixture=books: its weight is 0 in every run"):
    mixtures.fit_mixtures(
      mixtures.make_mixtures(DOMAINS, TARGETS, weights / weights.sum(1)[:, None], good.losses_NT)
    )


# ---- The command ---------------------------------------------------------------------------------


def written(folder, name, runs):
  mix, loss = folder / f"{name}_mix.csv", folder / f"{name}_loss.csv"
  order = np.random.default_rng(0).permutation(len(runs.rows))
  mix.write_text(
    "index," + ",".join(f"train_{d}" for d in DOMAINS) + "\n"
    + "".join(f"{i}," + ",".join(f"{w:.9f}" for w in runs.weights_NK[i]) + "\n" for i in range(len(order)))
  )  # fmt: skip
  loss.write_text(  # in another order: rows are joined by their index
    "index,metric/web_loss,metric/code_loss\n"
    + "".join(f"{i}," + ",".join(f"{v:.9f}" for v in runs.losses_NT[i]) + "\n" for i in order)
  )
  return str(mix), str(loss)


def run_fit(*words):
  options = cli.make_parser("").parse_args(["fit", *words])
  return options.act(options)


def test_two_tables_are_joined_and_unseen_ones_foretold(tmp_path, capsys):
  fitted, held = written(tmp_path, "a", simulated()), written(tmp_path, "b", simulated(seed=1))
  words = ["--csv", fitted[0], "--join", fitted[1], "--predict", *held, "--mixture", "train_*",
           "--loss", "metric/*", "--n_boot", "20", "--cap", "code=0.3"]  # fmt: skip
  run_fit(*words, "--json")
  told = json.loads(capsys.readouterr().out)["mixture"]
  assert told["domains"] == list(DOMAINS) and told["targets"] == ["web", "code"]
  assert told["judged"][0]["rank"] > 0.98 and told["held"] == "80 runs held out"
  assert told["estimates"]["r*[code]"]["value"] == pytest.approx(0.3, abs=1e-6)
  run_fit(*words)
  said = capsys.readouterr().out
  assert "rank correlation 0.9" in said and "at the largest weight allowed: code" in said


@pytest.mark.parametrize(
  "words, why",
  [
    (["--mixture", "weight_*", "--loss", "metric/*"], r"mixture=weight_\*: no such column"),
    (["--mixture", "train_*"], "loss: 2 columns look like it"),
    (["--mixture", "train_*", "--loss", "metric/*", "--se", "x"], "se: says nothing of mixtures"),
    (["--mixture", "train_*", "--loss", "metric/*", "--cap", "code"], "cap=code: must be DOMAIN=WEIGHT"),
    (["--cap", "code=0.1"], "join=.*: needs --mixture COLUMNS"),
  ],
)  # fmt: skip
def test_words_that_do_not_fit_are_refused(words, why, tmp_path):
  mix, loss = written(tmp_path, "a", simulated())
  with pytest.raises(ConfigError, match=why):
    run_fit("--csv", mix, "--join", loss, *words)


def test_runs_of_a_ledger_have_a_column_for_each_source():
  runs = simulated()
  rows = [
    {"name": f"r{i}", "status": "done", "data.weights": list(w), "data.sources": ["a.txt", "b.txt", "c.txt"],
     "eval/val/loss": float(loss)}
    for i, (w, loss) in enumerate(zip(runs.weights_NK, runs.losses_NT[:, 0], strict=True))
  ]  # fmt: skip
  rows.append({"name": "plain", "status": "done", "data.weights": [], "eval/val/loss": 3.0})
  options = cli.make_parser("").parse_args(
    ["fit", "x", "--mixture", "data.weights/*", "--loss", "eval/val/loss", "--n_boot", "0"]
  )
  found = mixture_fits.fit(options, {"n_boot": 0}, Ledger(tuple(rows)))
  assert found.domains == ("a", "b", "c") and found.n == 80
  assert "left out, without data.weights: 1 run" in found.notes


# ---- Designs -------------------------------------------------------------------------------------


def test_designs_lie_around_their_base_and_a_longer_one_begins_with_a_shorter():
  base = (0.6, 0.3, 0.1)
  draws = search.dirichlet(400, base, seed=1)
  assert draws[:20] == search.dirichlet(20, base, seed=1) != search.dirichlet(20, base, seed=2)
  shares = np.array(draws) / np.sum(draws, axis=1, keepdims=True)
  np.testing.assert_allclose(shares.mean(0), base, atol=0.05)
  assert shares.max() > 0.97 and np.min(draws) >= search.LEAST_WEIGHT
  assert np.abs(shares - base).max(1).min() < 0.05  # from nearly one domain to all of them


def test_runs_that_differ_in_their_mixture_alone_are_one_stack(tmp_path):
  found = search.sweep_from_text(
    SMOKE,
    dirichlet=["5", "data.weights=2"],
    fixed={"data.sources": "synthetic:markov-64-s1,synthetic:markov-64-s2"},
    name="m",
  )
  assert len({r.name for r in found.runs}) == 5
  assert all(r.name.startswith("weights=0.") for r in found.runs)
  members = sweep.resolve_runs(found.runs, tmp_path)
  assert [len(group) for group in stacks.stack_groups(members, 8)] == [5]
  other = sweep.resolve_runs([*found.runs, Run("w", {"model.width": 64}, SMOKE)], tmp_path)
  assert [len(group) for group in stacks.stack_groups(other, 8)] == [5, 1]


@pytest.mark.parametrize(
  "words",
  [
    ["5"],
    ["5", "data.seed=3"],
    ["x", "data.weights=3"],
    ["5", "data.weights=1"],
    ["5", "data.weights=1e308,1e308"],
  ],
)
def test_a_design_that_cannot_be_read_is_refused(words):
  with pytest.raises(ConfigError, match=r"dirichlet=.*for example --dirichlet 64"):
    search.sweep_from_text(SMOKE, dirichlet=words)
