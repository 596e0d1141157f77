"""Laws of whole loss curves: their sums, and parameters and predictions that come back."""

import csv
import json
import math

import numpy as np
import pytest

from experiments.commands import command_line as cli
from experiments.laws import loss_curves
from lm.config.errors import ConfigError
from tests.fake_runs import fake_run

TRUE = {
  "multi_power": {"L0": 2.8, "A": 0.6, "alpha": 0.5, "B": 300.0, "C": 2.0, "beta": 0.6, "gamma": 0.6},
  "tissue": {"L0": 2.8, "A": 0.6, "alpha": 0.5, "C": 0.7, "lambda": 0.998},
}  # fmt: skip
PEAK, WARMUP = 3e-4, 500


def schedule(name, total=6000, every=60):
  step = np.arange(WARMUP, total + 1, every, dtype=float)
  t = (step - WARMUP) / (total - WARMUP)
  share = {
    "constant": np.ones_like(t),
    "cosine": 0.1 + 0.9 * (1 + np.cos(math.pi * t)) / 2,
    "wsd": np.clip((1 - t) / 0.3, 0.1, 1),
    "linear": 1 - 0.9 * t,
    "step": np.where(t < 0.5, 1.0, 0.3),
  }[name]
  return step, PEAK * share


def curve(name, law, sd=0.0, seed=0):
  step, lr = schedule(name)
  bare = loss_curves.make_curve(name, step, lr, np.ones_like(step))
  loss = loss_curves.LAWS[law].predict(TRUE[law], bare)
  noise = sd * np.random.default_rng(seed).standard_normal(len(step))
  return loss_curves.make_curve(name, step, lr, loss * np.exp(noise))


def test_multi_power_is_the_sum_that_the_paper_writes():
  """Against a loop over every step, where the table has every step."""
  p, lr = TRUE["multi_power"], np.array([3e-4] * 5 + [2e-4, 2e-4, 1e-4, 5e-5, 5e-5])
  one = loss_curves.make_curve("x", np.arange(10.0), lr, np.ones(10))
  s1 = one.lr_sum
  with_warmup = 0.5 * (one.warmup_sum)
  expected = p["L0"] + p["A"] * (s1[9] + one.warmup_sum + 1e-12) ** -p["alpha"]
  G = lambda x: 1 - (p["C"] * x + 1) ** -p["beta"]
  expected += p["B"] * lr[0] * G(lr[0] ** -p["gamma"] * (s1[9] + with_warmup))
  for k in range(1, 10):
    since = s1[9] - (s1[k - 1] + s1[k]) / 2
    expected -= p["B"] * (lr[k - 1] - lr[k]) * G(lr[k] ** -p["gamma"] * since)
  assert loss_curves.multi_power(p, one)[9] == pytest.approx(expected, rel=1e-12)


def test_tissues_momentum_is_the_double_sum():
  p, step = TRUE["tissue"], np.arange(0.0, 12.0)
  lr = 3e-4 * np.linspace(1, 0.1, 12)
  one = loss_curves.make_curve("x", step, lr, np.ones(12))
  s2 = sum(
    (lr[k - 1] - lr[k]) * p["lambda"] ** (i - k) for i in range(1, 12) for k in range(1, i + 1)
  )
  expected = p["L0"] + p["A"] * (one.lr_sum[-1] + 1e-12) ** -p["alpha"] - p["C"] * s2
  assert loss_curves.tissue(p, one)[-1] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("law", list(TRUE))
def test_a_law_predicts_schedules_that_it_was_not_fitted_to(law):
  fitted = [curve(name, law, 2e-4, seed=i) for i, name in enumerate(("constant", "cosine", "step"))]
  held = [curve(name, law) for name in ("wsd", "linear")]
  found = loss_curves.fit_curves(fitted, held, law)
  assert found.held("mae") < 1e-3 and found.held("r2") > 0.999
  assert found.params["L0"] == pytest.approx(TRUE[law]["L0"], rel=0.02)
  low, high = found.intervals["L0"]
  assert low < found.params["L0"] < high
  assert "held out: MAE" in found.summary()
  assert json.loads(json.dumps(found.to_json()))["curves"][3]["fitted"] == "no"


@pytest.mark.parametrize("law", list(TRUE))
def test_parameters_that_are_given_are_held_and_a_given_law_is_judged(law):
  curves = [curve(name, law, 2e-4, seed=i) for i, name in enumerate(("constant", "cosine"))]
  held = {"L0": 2.8, **({"lambda": 0.998} if law == "tissue" else {"gamma": 0.6})}
  found = loss_curves.fit_curves(curves, [], law, held)
  assert {k: found.params[k] for k in held} == held
  assert found.intervals.keys() == TRUE[law].keys() - held.keys()
  assert found.params["A"] == pytest.approx(0.6, rel=0.05)
  given = loss_curves.fit_curves(curves[:1], curves[1:], law, TRUE[law])
  assert (
    given.params == TRUE[law] and not given.intervals and "L0       2.8  fixed" in given.summary()
  )
  assert given.held("mae") == pytest.approx(2e-4 * (2 / math.pi) ** 0.5 * 3.2, rel=0.3)  # the noise


@pytest.mark.parametrize(("words", "line"), [
  (["--fix", "Z=1"], "fix=Z: multi_power has L0, A, alpha, B, C, beta, gamma; name one of them"),
  (["--fix", "A=-1"], "fix=A=-1: must be above 0; correct it"),
  (["--law", "tissue", "--fix", "lambda=1.5"], "fix=lambda=1.5: must be between 0 and 1; correct it"),
  (["--tie", "A=B"], "tie: says nothing of whole curves"),
])  # fmt: skip
def test_a_parameter_that_is_none_is_refused(tmp_path, words, line):
  one = curve("constant", "tissue")
  path = write(tmp_path / "a.csv", {"step": one.step, "lr": one.lr, "loss": one.loss})
  with pytest.raises(ConfigError, match=f"^{line}"):
    fit("--curves", path, *words)


def test_warm_up_is_left_out_and_its_area_kept():
  step = np.arange(1.0, 41.0)
  lr = np.minimum(step / 10, 1.0) * PEAK
  one = loss_curves.make_curve("x", step, lr, np.ones(40))
  assert one.step[0] == 10 and one.warmup_sum == pytest.approx(PEAK * 10 / 2, rel=1e-6)
  late = loss_curves.make_curve("x", step[9:], lr[9:], np.ones(31))
  assert late.warmup_sum == pytest.approx(one.warmup_sum, rel=1e-6)


def write(path, columns):
  with open(path, "w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
  return str(path)


def fit(*words):
  options = cli.make_parser("about").parse_args(["fit", *words])
  return options.act(options)


def test_the_command_fits_curves_and_predicts_others(tmp_path, capsys):
  paths = []
  for name in ("constant", "cosine", "wsd"):
    one = curve(name, "tissue")
    paths.append(
      write(tmp_path / f"{name}.csv", {"step": one.step, "lr": one.lr, "loss": one.loss})
    )
  fit("--curves", *paths[:2], "--predict", paths[2], "--law", "tissue", "--json")
  found = json.loads(capsys.readouterr().out)["curves"]
  assert found["law"] == "tissue" and [c["fitted"] for c in found["curves"]] == ["yes", "yes", "no"]


def test_what_is_no_curve_is_refused_in_one_line(tmp_path):
  with pytest.raises(ConfigError, match=r"curves=none.csv: no such file"):
    fit("--curves", "none.csv")
  bad = write(tmp_path / "a.csv", {"step": [1, 2], "loss": [3, 2]})
  with pytest.raises(ConfigError, match=r"must have numbers in columns step, lr and loss"):
    fit("--curves", bad)
  short = write(tmp_path / "b.csv", {"step": [1, 2], "lr": [1, 1], "loss": [3, 2]})
  with pytest.raises(ConfigError, match=r"has 2 points after its warm-up; must have 10"):
    fit("--curves", short)
  with pytest.raises(ConfigError, match=r"law=chinchilla: of curves there are multi_power, tissue"):
    loss_curves.fit_curves([curve("constant", "tissue")], [], "chinchilla")
  fake_run(tmp_path / "run")
  with pytest.raises(ConfigError, match=r"neither a CSV file nor a run directory with a record"):
    fit("--curves", str(tmp_path / "run"))


@pytest.mark.parametrize(
  "words, said",
  [
    ("--predict x.csv lr_sweep", "predict=x.csv: needs --curves"),
    ("--curves a.csv --csv b.csv", "csv: says nothing of whole curves"),
    ("--curves a.csv --tie a=b", "tie: says nothing of whole curves"),
    ("lr_sweep --curves a.csv", "name: says nothing of whole curves"),
  ],
)
def test_words_that_a_fit_of_curves_would_ignore_are_refused(words, said):
  options = cli.make_parser("about").parse_args(["fit", *words.split()])
  with pytest.raises(ConfigError, match=said):
    options.act(options)
