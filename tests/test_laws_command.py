"""`python -m experiments fit`: every law from somebody's CSV, what is left out, and what is refused."""

import csv
import json
import pathlib

import numpy as np
import pytest

from experiments import laws
from experiments.commands import command_line as cli
from experiments.laws import intervals
from lm.config.errors import ConfigError

TRUTHS = {
  "chinchilla": (406.4, 410.7, 1.69, 0.34, 0.28),
  "kaplan_nd": (8.8e13, 5.4e13, 0.076, 0.095),
  "kaplan_ns": (6.5e13, 2.1e3, 0.077, 0.76),
  "saturating": (350.0, 1.6, 0.12),
  "overtraining": (141.0, 190.0, 1.51, 0.121),
  "data_constrained": (521.0, 1488.0, 1.87, 0.35, 0.35, 15.4, 5.3),
  "downstream": (0.85, 2.1, 0.7),
}


def run_fit(capsys, *words):
  """What `fit WORDS --json` prints."""
  text_of(capsys, *words, "--json")
  return json.loads(run_fit.out)


def text_of(capsys, *words):
  options = cli.make_parser("").parse_args(["fit", *map(str, words)])
  capsys.readouterr()
  options.act(options)
  run_fit.out = capsys.readouterr().out
  return run_fit.out


def write(path, columns):
  """A CSV of columns with 9 digits, as people publish them."""
  with open(path, "w", newline="") as file:
    rows = csv.writer(file)
    rows.writerow(columns)
    rows.writerows(
      [v if isinstance(v, str) else f"{v:.9g}" for v in row]
      for row in zip(*columns.values(), strict=True)
    )
  return str(path)


def grid():
  """48 runs in slices of equal compute, with every column that some law needs."""
  c = np.repeat(np.geomspace(1e18, 1e21, 6), 8)
  n = np.sqrt(c / 120) * np.tile(np.geomspace(1 / 6, 6, 8), 6)
  rng = np.random.default_rng(1)
  x = {"n_params": n, "n_tokens": c / (6 * n), "flops": c, "steps": 10 ** rng.uniform(3, 5, 48)}
  return x | {"unique_tokens": x["n_tokens"] / np.tile([1.0, 4.0, 16.0, 60.0], 12)}


SLOW = "data_constrained"  # five parameters and a bootstrap of each
NAMES = [pytest.param(n, marks=pytest.mark.slow) if n == SLOW else n for n in TRUTHS]


@pytest.mark.parametrize("name", NAMES)
def test_every_parametric_law_comes_back_from_a_table(name, tmp_path, capsys):
  law, x = laws.LAWS[name], grid() | {"loss": np.random.default_rng(1).uniform(2, 5, 48)}
  y = intervals.predict(law, law.working(np.array(TRUTHS[name])), x)
  columns = {k: x[k] for k in law.inputs} | {law.target: np.exp(y) if law.link == "log" else y}
  names = {"unique_tokens": "U", "error": "top1 err", "steps": "iterations"}
  path = write(tmp_path / "t.csv", {names.get(k, k): v for k, v in columns.items()})
  named = [f"--column={k}={v}" for k, v in names.items() if k in columns]
  words = ("--csv", path, "--law", name, "--objective", "l2", "--n_boot", 0, "--starts", 48, *named)
  found = run_fit(capsys, *words)["fit"]
  values = [found["estimates"][p]["value"] for p in law.names]
  assert values == pytest.approx(TRUTHS[name], rel=5e-3)
  assert found["grad_norm"] < 1e-3 and found["share_of_starts_at_optimum"] > 0
  assert found["n_rows"] == 48 and found["columns"]


@pytest.mark.slow
def test_repeated_data_gets_profile_limits_of_its_half_lives(tmp_path, capsys):
  law, x = laws.LAWS["data_constrained"], grid()
  y = intervals.predict(law, law.working(np.array(TRUTHS["data_constrained"])), x)
  y = y + 0.002 * np.random.default_rng(0).standard_normal(48)
  path = write(tmp_path / "t.csv", {k: x[k] for k in law.inputs} | {"loss": np.exp(y)})
  words = (
    "--law",
    "data_constrained",
    "--objective",
    "l2",
    "--intervals",
    "profile",
    "--n_boot",
    0,
  )
  low, high = run_fit(capsys, "--csv", path, *words)["fit"]["estimates"]["R_D"]["intervals"][
    "profile"
  ]
  assert low < 15.4 < high and high / low < 3


def noisy(tmp_path, **columns):
  x, law = grid(), laws.LAWS["chinchilla"]
  y = intervals.predict(law, law.working(np.array(TRUTHS["chinchilla"])), x)
  y = y + 0.003 * np.random.default_rng(0).standard_normal(48)
  x = {k: x[k] for k in ("n_params", "n_tokens", "flops")} | {"loss": np.exp(y)}
  return write(tmp_path / "t.csv", {**x, **{k: f(x) for k, f in columns.items()}})


def test_the_other_methods_come_back_from_a_table(tmp_path, capsys):
  path, a = noisy(tmp_path), 0.28 / 0.62
  slices = run_fit(capsys, "--csv", path, "--law", "isoflop", "--method", "robust", "--n_boot", 50)
  assert slices["fit"]["method"] == "robust" and slices["fit"]["bias_a"] is not None
  low, high = slices["fit"]["estimates"]["a"]["intervals"]["scatter"]
  assert low < a < high and slices["fit"]["estimates"]["a+b"]["value"] == pytest.approx(1, abs=1e-3)
  projected = run_fit(capsys, "--csv", path, "--law", "varpro", "--n_boot", 50)["fit"]
  low, high = projected["estimates"]["a"]["intervals"]["case"]
  assert low < a < high
  optima = {"C": np.geomspace(1e18, 1e21, 6), "N*": 0.1 * np.geomspace(1e18, 1e21, 6) ** 0.5}
  path = write(tmp_path / "o.csv", optima | {"sd": np.full(6, 0.1)})
  found = run_fit(capsys, "--csv", path, "--law", "optima", "--params", "N*", "--sd", "sd")["fit"]
  assert found["weighted"] and found["estimates"]["a"]["value"] == pytest.approx(0.5)


def test_learning_rates_and_their_sensitivity_come_back_from_a_table(tmp_path, capsys):
  n, d, ratio = (
    a.ravel() for a in np.meshgrid([1e6, 1e7, 1e8], [1e8, 1e9], np.geomspace(0.1, 10, 9))
  )
  lr = 1.8 * n**-0.7 * d**0.3 * ratio
  table = {"N": n, "D": d, "peak lr": lr, "loss": 3 + 0.05 * np.log(ratio) ** 2}
  path = write(tmp_path / "t.csv", table)
  words = ("--csv", path, "--law", "hyper", "--of", "peak lr", "--init_loss", 8, "--n_boot", 50)
  found = run_fit(capsys, *words)["fit"]
  assert found["estimates"]["n_params"]["value"] == pytest.approx(-0.7, abs=1e-5)
  mean_excess = np.trapezoid(0.05 * np.log(ratio[:9]) ** 2, np.log(ratio[:9])) / np.log(100)
  assert found["cells"][0]["sensitivity"] == pytest.approx(mean_excess, rel=1e-4)
  assert "sensitivity" in text_of(capsys, *words)


def test_an_envelope_comes_back_from_curves(tmp_path, capsys):
  sizes, columns = np.geomspace(1e6, 1e9, 24), {"name": [], "N": [], "D": [], "loss": []}
  for n in sizes:
    d = np.geomspace(1, 2000, 40) * n
    columns["name"] += [f"run{n:.3g}"] * 40
    columns["N"] += [n] * 40
    columns["D"] += list(d)
    columns["loss"] += list(1.69 + 406.4 / n**0.3 + 410.7 * 20**0.02 / d**0.3)
  path = write(tmp_path / "t.csv", columns)
  words = ("--csv", path, "--law", "envelope", "--run", "name", "--n_boot", 20)
  assert run_fit(capsys, *words)["fit"]["estimates"]["a"]["value"] == pytest.approx(0.5, abs=0.04)
  with pytest.raises(ConfigError, match="needs --run COLUMN"):
    text_of(capsys, "--csv", path, "--law", "envelope")


def test_what_is_left_out_is_named(tmp_path, capsys):
  path = noisy(tmp_path, set=lambda x: ["a"] * 40 + ["b"] * 8)
  lines = pathlib.Path(path).read_text().splitlines()
  lines[3] = lines[3].replace(lines[3].split(",")[3], "NaN")
  lines[5] = ",".join([*lines[5].split(",")[:3], "9.75", "a"])
  pathlib.Path(path).write_text("\n".join(lines))
  words = ("--csv", path, "--n_boot", 0, "--starts", 32, "--where", "set=a", "--drop_highest", 1)
  text = text_of(capsys, *words)
  assert "38 runs" in text and "the 1 highest losses dropped" in text
  assert "8 rows left out, not set=a" in text
  assert "1 row left out, loss is missing or not a number: row 3" in text
  assert "1 row left out, among the 1 highest losses: row 5" in text
  assert [5, "among the 1 highest losses"] in run_fit(capsys, *words)["fit"]["skipped"]


def test_ways_to_count_stand_side_by_side_with_their_intervals(tmp_path, capsys):
  path = noisy(
    tmp_path,
    bare=lambda x: x["n_params"] - 0.5 * x["n_params"] ** 0.9,
    exact=lambda x: 20 * x["n_params"] ** 0.95 * x["n_tokens"],
  )
  words = ("--csv", path, "--n_boot", 30, "--starts", 32, "--count", "bare N:params=bare,flops=6ND",
           "--count", "exact:flops=exact")  # fmt: skip
  counted = run_fit(capsys, *words)["counted otherwise"]
  assert list(counted) == ["bare N", "exact"]
  a = {name: found["estimates"]["a"] for name, found in counted.items()}
  assert a["exact"]["value"] > a["bare N"]["value"] - 0.2 and a["exact"]["intervals"]["case"]
  text = text_of(capsys, *words)
  low, high = a["exact"]["intervals"]["case"]
  assert "counted otherwise:" in text and f"[{low:.4g}, {high:.4g}]" in text
  slices = run_fit(capsys, *(w for w in words if w not in ("--starts", 32)), "--law", "isoflop")[
    "counted otherwise"
  ]
  assert abs(slices["exact"]["estimates"]["a"]["value"] - 0.28 / (0.34 + 0.95 * 0.28)) < 0.03


def test_each_held_out_run_is_printed_with_its_prediction_interval(tmp_path, capsys):
  text = text_of(capsys, "--csv", noisy(tmp_path), "--n_boot", 0, "--starts", 32, "--holdout", 5e20)
  assert "8 inside their 95% prediction interval" in text
  assert text.count("predicted") == 8
  held = run_fit(
    capsys, "--csv", noisy(tmp_path), "--n_boot", 0, "--starts", 32, "--holdout", 5e20
  )["fit"]["holdout"]
  low, high = held["bounds"]
  assert len(low) == 8 and all(
    a < p < b for a, p, b in zip(low, held["predicted"], high, strict=True)
  )


@pytest.mark.parametrize(
  "words, line",
  [
    (["--law", "isoflop", "--objective", "l2"], "objective: a fit of isoflop does not take it"),
    (["--method", "akima"], "method: a fit of chinchilla does not take it"),
    (["--law", "hyper"], "needs --of COLUMN"),
    (["--fix", "E"], "fix=E: must be NAME=NUMBER"),
    (["--fix", "E=low"], "fix=low: must be finite numbers"),
    (["--at", "1e21,big"], "at=big: must be finite numbers"),
    (["--count", "exact"], "count=exact: must be NAME:params=COLUMN"),
    (["--count", "x:flops=nowhere"], "flops='nowhere'|nowhere='nowhere': no such column"),
    (["--unit", "params=dozens"], "unit=params=dozens: must be params"),
    (["--column", "steps"], "column=steps: must be OURS=THEIRS"),
    (["--where", "mood=good"], "where='mood': no such column"),
    (["--cluster", "family"], "^cluster='family': no such column"),
    (["--law", "isoflop", "--budget", "family"], "^budget='family': no such column"),
    (["--law", "envelope", "--run", "family"], "^run='family': no such column"),
    (["--law", "hyper", "--of", "family"], "^of='family': no such column"),
    (["--params", "family"], "^params='family': no such column"),
    (["--seed", "99999999999999999999"], r"seed=9+: must be in \[0, 2147483647\]"),
    (["--intervals", "bootstrap"], "choose among case"),
  ],
)
def test_a_wrong_request_is_one_line_that_says_the_remedy(words, line, tmp_path, capsys):
  with pytest.raises(ConfigError, match=line) as error:
    text_of(capsys, "--csv", noisy(tmp_path), "--n_boot", 0, *words)
  assert "\n" not in str(error.value)


def test_units_are_words_or_numbers(tmp_path, capsys):
  path = noisy(tmp_path)
  plain = run_fit(capsys, "--csv", path, "--n_boot", 0, "--starts", 32)["fit"]["estimates"][
    "N*@1e+21"
  ]["value"]
  text = pathlib.Path(path).read_text().splitlines()
  small = [text[0]] + [
    ",".join([str(float(r.split(",")[0]) / 1e6), *r.split(",")[1:]]) for r in text[1:]
  ]
  pathlib.Path(path).write_text("\n".join(small))
  for unit in ("params=M", "params=1e6", "params=millions"):
    found = run_fit(capsys, "--csv", path, "--n_boot", 0, "--starts", 32, "--unit", unit)["fit"][
      "estimates"
    ]
    assert found["N*@1e+21"]["value"] == pytest.approx(plain, rel=1e-4)


# ---- What the command hands to the fit ----


@pytest.fixture
def handed(monkeypatch):
  """Runs `fit WORDS` up to the fit; returns [(table, law, settings)]."""
  from experiments.ledger import fits

  seen = []
  record = lambda table, law="", **settings: seen.append((table, law, settings))
  monkeypatch.setattr(fits.laws, "fit_table", record)
  monkeypatch.setattr(fits, "FITTERS", dict.fromkeys(fits.FITTERS, record))

  def run(*words):
    options = cli.make_parser("").parse_args(["fit", *map(str, words)])
    asked, names = fits.settings(options), fits.column_names(options)
    fits.fit_csv(
      options.csv, options.law or "chinchilla", names, options.where, fits.units(options.unit),
      options.decimal, **asked,
    )  # fmt: skip
    return seen[-1]

  return run


def test_standard_errors_and_weights_reach_the_fit(tmp_path, handed):
  path = noisy(tmp_path, err=lambda x: x["loss"] * 0 + 0.01, w=lambda x: x["loss"])
  table, _, settings = handed("--csv", path, "--se", "err")
  assert settings["sd"] == "se" and (table["se"] == 0.01).all()
  table, _, settings = handed("--csv", path, "--weight", "w")
  assert settings["weights"] == "weight" and (table["weight"] == table["loss"]).all()


def test_residual_and_force_and_budgets_reach_the_fit(tmp_path, handed):
  path = noisy(tmp_path)
  words = ("--residual", "linear", "--force", "--at", "5.88e23,5.881e23")
  _, law, settings = handed("--csv", path, *words)
  assert law == "chinchilla" and settings["residual"] == "linear" and settings["force"]
  assert settings["flops"] == (5.88e23, 5.881e23)
  _, _, settings = handed("--csv", path, "--law", "hyper", "--of", "loss", "--near_optimal", 0.01)
  assert settings["near_optimal"] == 0.01


def test_runs_named_in_a_column_reach_the_fit_as_clusters(tmp_path, handed):
  path = noisy(tmp_path, run_name=lambda x: [f"{v:.6g}" for v in x["n_params"]])
  table, _, settings = handed("--csv", path)
  assert "cluster" not in settings and table.clusters is None  # every size once
  n = np.repeat(np.geomspace(1e7, 1e9, 6), 8)
  d = np.tile(np.geomspace(1e9, 1e11, 8), 6)
  columns = {"N": n, "D": d, "loss": 1.7 + 400 / n**0.34 + 400 / d**0.28}
  names = [f"r{v:.3g}" for v in n]
  path = write(tmp_path / "c.csv", columns | {"run_name": names})
  table, _, settings = handed("--csv", path)
  assert settings["cluster"] == "run" and list(table.labels["run"]) == names
  assert any("points of 6 runs" in note for note in table.notes)


def test_a_tuned_sweep_is_refused_until_its_best_are_taken(tmp_path, handed):
  n, d, lr = (v.ravel() for v in np.meshgrid([1e7, 1e8, 1e9], [1e9, 1e10], [1e-4, 1e-3, 1e-2]))
  loss = 1.7 + 400 / n**0.34 + 400 / d**0.28 + 0.3 * np.log10(lr / 1e-3) ** 2
  path = write(tmp_path / "t.csv", {"N": n, "D": d, "peak_lr": lr, "loss": loss})
  with pytest.raises(ConfigError, match=r"cannot be noise.*'peak_lr'.*--best.*--force") as error:
    handed("--csv", path)
  assert "\n" not in str(error.value)
  table, _, _ = handed("--csv", path, "--best")
  assert len(table) == 6 and len(table.skipped) == 12
  table, _, _ = handed("--csv", path, "--where", "peak_lr=1e-3 OR peak_lr=2")
  assert len(table) == 6
  table, _, _ = handed("--csv", path, "--force")
  assert len(table) == 18 and any("cannot be noise" in n for n in table.notes)


def test_a_formula_names_the_column_it_lacks_and_takes_it_by_name(tmp_path, handed):
  path = noisy(tmp_path, iters=lambda x: x["n_tokens"] / 1e5)
  formula = "E + A*N^-a + B*D^-b*exp(-k*S)"
  with pytest.raises(ConfigError, match=r"S is steps.*no such column.*--column steps=COLUMN"):
    handed("--csv", path, "--law", formula)
  table, law, _ = handed("--csv", path, "--law", formula, "--column", "steps=iters")
  assert law == f"loss = {formula}" and table.source["steps"] == "iters"
  _, law, _ = handed("--csv", path, "--law", "E + A*N^-a + B*lr^-b", "--column", "lr=iters")
  assert laws.LAWS[law].inputs == ("n_params", "lr")


@pytest.mark.parametrize(
  "words, line",
  [
    (["--fix", "E=1", "--fix", "E=2"], "fix=E: is given twice"),
    (["--fix", "E=1,E=2"], "fix=E: is given twice"),
    (["--column", "steps=loss", "--column", "steps=flops"], "column=steps: is given twice"),
    (["--unit", "params=M", "--unit", "n_params=B"], "unit=n_params: is given twice"),
    (["--point", "n_params=1,n_params=2"], "point=n_params: is given twice"),
    (["--count", "x:flops=6ND", "--count", "x:flops=flops"], "'x' is given twice"),
    (["--tie", "alpha"], "tie=alpha: must be names joined by ="),
    (["--tie", "alpha="], "tie=alpha=: must be names joined by ="),
    (["--at", "1e21,-1"], "at=-1: must be > 0"),
    (["--se", "loss", "--weight", "loss"], "give one of --se and --weight"),
    (["--law", "varpro", "--se", "loss"], "se: a fit of varpro does not take it"),
    (["--law", "E + A*pow(N, 2)"], "'pow' is no function"),
    (["--law", "chinchila"], "or write a formula"),
    (["--drop_highest", "-3"], "drop_highest=-3: must be at least 0"),
    (["--drop_beyond", "0"], "drop_beyond=0.0: must be greater than 0"),
    (["--min_flops", "nan"], "min_flops=nan: must be greater than 0 and finite"),
    (["--n_boot", "-5"], "n_boot=-5: must be in"),
    (["--starts", "0"], "starts=0: must be in"),
    (["--confidence", "95"], r"confidence=95.0: must be in \(0, 1\)"),
    (["--delta", "nan"], "delta=nan: must be greater than 0"),
    (["--holdout", "-1"], "holdout=-1.0: must be greater than 0"),
    (["--law", "isoflop", "--within", "0.5"], "within=0.5: must be greater than 1"),
    (["--fix", "E=nan"], "fix=nan: must be finite numbers"),
    (["--point", "n_params=inf"], "point=inf: must be finite numbers"),
  ],
)
def test_what_is_said_twice_or_not_taken_is_one_line(words, line, tmp_path, handed):
  with pytest.raises(ConfigError, match=line) as error:
    handed("--csv", noisy(tmp_path), *words)
  assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_formula_is_fitted_to_the_values_it_was_made_with(tmp_path, capsys):
  x = grid()
  truth = {"E": 1.7, "A": 400.0, "a": 0.34, "B": 4000.0, "b": 0.3, "k": 3e-5}
  loss = (
    1.7 + 400 * x["n_params"] ** -0.34 + 4000 * x["n_tokens"] ** -0.3 * np.exp(-3e-5 * x["steps"])
  )
  path = write(
    tmp_path / "t.csv", {k: x[k] for k in ("n_params", "n_tokens", "steps")} | {"loss": loss}
  )
  words = ("--law", "E + A*N^-a + B*D^-b*exp(-k*S)", "--objective", "l2", "--n_boot", 0)
  found = run_fit(capsys, "--csv", path, *words)["fit"]["estimates"]
  assert {k: found[k]["value"] for k in truth} == pytest.approx(truth, rel=1e-3)
