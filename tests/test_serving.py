"""Allocation for training and serving, laws of a task's accuracy: closed forms, a search, the command."""

import numpy as np
import pytest

from experiments import laws
from experiments.commands import command_line as cli
from experiments.laws import allocation, serving
from lm.config.errors import ConfigError
from tests.known_laws import TRUE, true_loss, true_table
from tests.test_laws_command import run_fit, text_of, write

TERMS = tuple(
  np.array([v]) for v in (np.log(TRUE["A"]), np.log(TRUE["B"]), TRUE["alpha"], TRUE["beta"])
)


def searched(price, served, *, cost=None, loss=None):
  """(N, D) by a fine grid over log N, tokens from the constraint."""
  n = np.exp(np.linspace(np.log(1e6), np.log(1e13), 20_001))
  if loss is None:
    d = (cost - price.m * n**price.q * served) / (price.k * n**price.s)
    value = np.where(d > 0, true_loss(n, np.maximum(d, 1e-9)), np.inf)
  else:
    left = loss - TRUE["E"] - TRUE["A"] / n ** TRUE["alpha"]
    d = np.where(left > 0, (TRUE["B"] / np.maximum(left, 1e-9)) ** (1 / TRUE["beta"]), np.inf)
    value = price.k * n**price.s * d + price.m * n**price.q * served
  i = int(np.nanargmin(value))
  return n[i], d[i]


PRICES = {
  "FLOPs": serving.Price(),
  "seconds": serving.Price(2e-14, 0.9, 8e-15, 0.9, "device-seconds"),
  "two powers": serving.Price(2e-14, 0.85, 8e-15, 0.95, "device-seconds"),
}


@pytest.mark.parametrize("served", [0.0, 1e10, 3e12])
@pytest.mark.parametrize("name", list(PRICES))
def test_the_best_run_is_that_of_a_search(name, served):
  price = PRICES[name]
  cost = 6e21 if name == "FLOPs" else 3e7
  n, d = serving.best(TERMS, price, served, cost=cost)
  expected = searched(price, served, cost=cost)
  np.testing.assert_allclose((n[0], d[0]), expected, rtol=4e-3)
  assert price.training(n[0], d[0]) + price.serving(n[0], served) == pytest.approx(cost, rel=1e-6)
  n, d = serving.best(TERMS, price, served, total=np.array([2.3 - TRUE["E"]]))
  np.testing.assert_allclose((n[0], d[0]), searched(price, served, loss=2.3), rtol=4e-3)
  assert true_loss(n[0], d[0]) == pytest.approx(2.3, rel=1e-6)


def test_without_serving_it_is_the_closed_form_of_hoffmann():
  n, d = serving.best(TERMS, serving.Price(), 0.0, cost=1e21)
  log_n, log_d = allocation.optimal(*TERMS, np.log(1e21))
  assert n[0] == pytest.approx(float(np.exp(log_n[0])), rel=1e-5)  # the closed form is in float32
  assert d[0] == pytest.approx(float(np.exp(log_d[0])), rel=1e-5)


def test_more_serving_asks_for_smaller_models_and_more_tokens():
  """Sardana et al. 2024, §2: at one loss, N falls and D grows with what is served."""
  found = [
    serving.best(TERMS, serving.Price(), t, total=np.array([0.4])) for t in (0, 1e10, 1e12, 1e14)
  ]
  sizes, tokens = np.array([n[0] for n, _ in found]), np.array([d[0] for _, d in found])
  assert np.all(np.diff(sizes) < 0) and np.all(np.diff(tokens) > 0)


def test_speeds_become_a_price():
  n = np.array([1e7, 1e8, 1e9])
  price = serving.price_of_speed(n, 1 / (3e-12 * n**0.8), dollars_per_hour=7.2)
  assert (price.s, price.q, price.unit) == (pytest.approx(0.8), pytest.approx(0.8), "dollars")
  assert price.k == pytest.approx(3e-12 * 7.2 / 3600) and price.m == pytest.approx(price.k / 3)
  with pytest.raises(ConfigError, match="speed: tokens a second of 1 size; must be two or more"):
    serving.price_of_speed(n, [1e5, np.nan, np.nan])


@pytest.mark.slow
def test_intervals_hold_the_true_allocation():
  fit = laws.fit_table(
    true_table(), n_boot=100, n_starts=16, methods=("case",), objective="l2", flops=()
  )
  found = serving.allocate(fit, 1e11, costs=[1e20], losses=[2.4])
  truth = serving.best(TERMS, serving.Price(), 1e11, cost=1e20)
  for name, value in zip(("N*@1e+20 FLOPs", "D*@1e+20 FLOPs"), truth, strict=True):
    low, high = found[name].intervals["case"]
    assert low < found[name].value < high and low / 1.2 < value[0] < high * 1.2
  assert 0 < found["of cheapest to train@loss 2.4"].value < 1
  with pytest.raises(
    ConfigError, match=r"target_loss=1\.2: the law never falls below E=1\.7|E=1\.8"
  ):
    serving.allocate(fit, 1e11, losses=[1.2])
  with pytest.raises(ConfigError, match="say what may be spent"):
    serving.allocate(fit, 1e11)


# ---- The command ---------------------------------------------------------------------------------


def table(tmp_path):
  t = true_table()
  loss = t["loss"]
  accuracy = 0.25 + 0.6 / (1 + np.exp(5 * (loss - 2.5)))
  told = {"params": t["n_params"], "tokens": t["n_tokens"], "loss": loss, "acc": accuracy}
  return write(tmp_path / "runs.csv", told | {"tps": 1e13 / t["n_params"] ** 0.9})


FAST = ("--n_boot", 20, "--starts", 16, "--objective", "l2")


@pytest.mark.slow
def test_fit_says_what_to_train_for_serving(tmp_path, capsys):
  path = table(tmp_path)
  words = ("--csv", path, *FAST, "--serve_tokens", 1e12, "--target_loss", 2.4)
  told = run_fit(capsys, *words)["serving"]["estimates"]
  expected = serving.best(TERMS, serving.Price(), 1e12, total=np.array([2.4 - TRUE["E"]]))
  assert told["N*@loss 2.4"]["value"] == pytest.approx(expected[0][0], rel=0.2)
  assert told["N*@loss 2.4"]["intervals"]["case"]
  said = text_of(capsys, *words, "--speed", "tps", "--dollars_per_hour", 3, "--at", 5000)
  assert "cost in dollars" in said and "N*@5e+03 dollars" in said
  refused = {
    ("--speed", "tps"): "speed=tps: needs --serve_tokens",
    ("--serve_tokens", 1e12, "--dollars_per_hour", 3): r"dollars_per_hour=3\.0: needs --speed",
  }
  for extra, why in refused.items():
    options = cli.make_parser("").parse_args(["fit", "--csv", path, *map(str, extra)])
    with pytest.raises(ConfigError, match=why):
      options.act(options)


@pytest.mark.slow
def test_fit_chains_a_tasks_accuracy_to_size_and_tokens(tmp_path, capsys):
  found = run_fit(
    capsys, "--csv", table(tmp_path), *FAST, "--then", "sigmoid", "--point", "n_params=1e9,n_tokens=2e10"
  )  # fmt: skip
  at = "accuracy@n_params=1e+09,n_tokens=2e+10"
  truth = 0.25 + 0.6 / (1 + np.exp(5 * (true_loss(1e9, 2e10) - 2.5)))
  assert found["chain"]["estimates"][at]["value"] == pytest.approx(truth, abs=0.03)
  assert found["chain"]["error_law"]["law"] == "sigmoid"
  assert found["direct"]["law"] == "direct" and found["direct"]["holdout"]
