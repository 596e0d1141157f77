import itertools
import math
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from experiments import __main__ as experiments
from experiments.commands import command_line as cli
from experiments.report.claims import Claim, Estimate, verdict, verdicts
from experiments.sweep import Run, halving, search, sweep
from experiments.sweep.search import Range
from lm.config.command_line import Parser
from lm.config.errors import ConfigError
from tests.fake_runs import SMOKE, fake_run

EXPERIMENTS = sorted(sweep.find_experiments())


def members(runs, folder=pathlib.Path("runs/x")):
  return sweep.resolve_runs(runs, folder)


# ---- Experiments ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_question_and_runs_that_resolve(name):
  experiment = sweep.load(name)
  assert experiment.question.endswith("?")
  found = members(experiment.runs)
  assert len({m.id for m in found}) == len(found)  # no two runs compute the same


def test_list_finds_experiments_by_their_runs_and_not_the_machinery():
  assert "lr_sweep" in EXPERIMENTS
  assert not {"sweep", "launch", "ledger", "search"} & set(EXPERIMENTS)


def test_an_experiment_may_be_a_file_anywhere_and_come_in_scales(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(
    '"""Why?"""\nfrom experiments.sweep import Run\n'
    "def runs(scale='small'):\n  yield Run(scale, {'seed': 3}, 'configs/smoke.py')\n"
  )
  assert [r.name for r in sweep.load(str(file)).runs] == ["small"]
  large = sweep.load(str(file), "large")
  assert (large.name, large.runs[0].name, large.question) == ("mine-large", "large", "Why?")


RUN = "from experiments.sweep import Run\ndef runs():\n  yield Run({})\n"


@pytest.mark.parametrize(
  ("body", "words"),
  [
    ("runs = 3", "must define runs()"),
    ("def runs():\n  return 'ab'", "runs() gives a str; let it yield Run(name"),
    (RUN.format("3"), "run=3: a Run has a text as name"),
    (RUN.format("'a', 3"), "run=a: a Run has a text as name, a dict by keys"),
    (RUN.format("'a', {3: 4}"), "run=a: a Run has a text as name, a dict by keys"),
    (RUN.format("'a', {}, None"), "run=a: a Run has a text as name"),
    (RUN.format("'a'") + "law = 'chinchila'", "its law chinchila must be one of chinchilla, "),
    (RUN.format("'a'") + "claims = 3", "its claims must be a tuple of Claim"),
    (RUN.format("'a'") + "claims = ('x',)", "its claims must be a tuple of Claim"),
    (RUN.format("'a'") + "halving = (3, 3)", "its halving must be Halving(eta, rungs)"),
    (RUN.format("'a'") + "analyse = 3", "its analyse must be a function"),
    (RUN.format("'a'") + "__doc__ = 3", "its docstring must be a text"),
    ("x = 1", "must define runs()"),
    ("def runs():\n  return []", "runs() yields none"),
    ("def runs():\n  raise KeyError('oops')", "fails with KeyError: 'oops'"),
    ("import nothing_of_this_name\ndef runs(): ...", "fails with ModuleNotFoundError"),
    ("from experiments.sweep import Run\ndef runs():\n  return [Run('a/b')]", "run=a/b: a name is a folder"),
    ("from experiments.sweep import Run\ndef runs():\n  return [Run('a')] * 2", "two runs of bad"),
  ],
)  # fmt: skip
def test_a_broken_experiment_gets_one_line(tmp_path, body, words):
  (tmp_path / "bad.py").write_text(body)
  with pytest.raises(ConfigError) as error:
    sweep.load(str(tmp_path / "bad.py"))
  assert words in str(error.value) and "\n" not in str(error.value)


def test_a_wrong_override_names_its_run():
  with pytest.raises(
    ConfigError, match=r"run a: model\.heads=3: .*|run a: model.width=32: must be"
  ):
    members([Run("a", {"model.heads": 3}, SMOKE)])


@pytest.mark.parametrize("runs, words", [
  ({"a": {"seed": 0}, "b": {"seed": "0"}}, "run=b: is the same as a in every setting"),
  ({"a": {"train.steps": 20}, "b": {"train.tokens": 20 * 8 * 64, "train.steps": None}}, "run=b: is the same"),
  ({"a": {"seed": 0}, "b": {"seed": 1}, "c": {"checkpoint.keep": 3}, "d": {"train.steps": 21}}, None),
])  # fmt: skip
def test_one_run_under_two_names_is_refused(runs, words):
  made = members([Run(name, settings, SMOKE) for name, settings in runs.items()])
  if words is None:
    sweep.check_distinct(made)
    return
  with pytest.raises(ConfigError, match=words):
    sweep.check_distinct(made)


def test_a_key_that_runs_differ_in_is_not_set_for_all():
  runs = [Run(f"s{seed}", {"seed": seed}, SMOKE) for seed in (0, 1)]
  changes = {"seed": "3"}
  changed = sweep.with_overrides(sweep.make_experiment("x", runs), changes)
  with pytest.raises(ConfigError, match="set=seed=3: makes one run of s0,seed=3 and s1,seed=3"):
    sweep.check_set(changed, changes)
  sweep.check_set(sweep.only(changed, ["s1,seed=3"]), changes)
  with pytest.raises(ConfigError, match="set=seed=3: makes one run of"):
    experiments.main(["plan", "lr_sweep", "--set", "seed=3", "--probe", "never"])


def test_overrides_make_other_runs_with_other_names():
  experiment = sweep.make_experiment("e", [Run("a", {"seed": 1}, SMOKE)])
  changed = sweep.with_overrides(experiment, {"model.depth": "1"})
  assert [r.name for r in changed.runs] == ["a,depth=1"]
  assert members(changed.runs)[0].id != members(experiment.runs)[0].id
  with pytest.raises(ConfigError, match=r"set=model\.dept: no such key"):
    sweep.with_overrides(experiment, {"model.dept": "1"})


def test_where_and_how_fast_a_run_happens_does_not_change_its_identity():
  plain, meshed, other = members(
    [
      Run("a", {}, SMOKE),
      Run("b", {"log.every_steps": 7, "checkpoint.keep": 1, "data.cache_dir": "/x"}, SMOKE),
      Run("c", {"seed": 1}, SMOKE),
    ]
  )
  assert plain.id == meshed.id != other.id


def test_a_row_of_another_config_is_stale(tmp_path):
  fake_run(tmp_path / "a", {"train.steps": 50})
  from experiments.ledger.rows import read_row

  row = read_row(str(tmp_path / "a"))
  assert sweep.checked(Run("a", {"train.steps": 50}, SMOKE), row)["status"] == "done"
  stale = sweep.checked(Run("a", {"train.steps": 50, "optim.b2": 0.5}, SMOKE), row)
  assert stale["status"] == "stale" and "optim.b2=0.95, now asked for with 0.5" in stale["reason"]
  by_tokens = {"train.steps": None, "train.tokens": 25_700}  # 50.2 steps
  fake_run(tmp_path / "b", by_tokens)
  row = read_row(str(tmp_path / "b"))
  assert row["train.tokens"] != 25_700
  assert sweep.checked(Run("b", by_tokens, SMOKE), row)["status"] == "done"


# ---- Grids and random search ---------------------------------------------------------------------


def test_a_grid_is_every_combination_named_by_what_varies():
  made = search.sweep_from_text(SMOKE, ["optim.peak_lr=1e-3,3e-3", "model.width=32,64"])
  assert [r.name for r in made.runs] == [
    "peak_lr=1e-3,width=32", "peak_lr=1e-3,width=64", "peak_lr=3e-3,width=32", "peak_lr=3e-3,width=64",
  ]  # fmt: skip
  assert {(m.cfg.optim.peak_lr, m.cfg.model.width) for m in members(made.runs)} == set(
    itertools.product((1e-3, 3e-3), (32, 64))
  )


def test_names_keep_whole_keys_that_share_their_last_part():
  assert sweep.run_name({"seed": 1, "data.seed": 2}) == "seed=1,data.seed=2"
  assert sweep.run_name({"data.sources": "text:a/*.txt"}) == "sources=text_a_.txt"
  assert sweep.run_name({}) == "base"


def test_random_search_covers_evenly_and_a_longer_search_begins_with_a_shorter():
  ranges = {"optim.weight_decay": Range("log", 1e-4, 1e-1), "model.depth": Range("int", 1, 3)}
  draws = search.random_search(64, ranges, seed=1)
  assert (
    draws[:10] == search.random_search(10, ranges, seed=1) != search.random_search(10, ranges, 2)
  )
  decay = np.array([d["optim.weight_decay"] for d in draws])
  assert decay.min() >= 1e-4 and decay.max() <= 1e-1
  for low in (1e-4, 1e-3, 1e-2):  # a third of the draws in each decade
    assert 18 <= np.sum((decay >= low) & (decay < 10 * low)) <= 25
  assert {d["model.depth"] for d in draws} == {1, 2, 3}


def test_random_draws_multiply_with_grids_and_repeat_across_them():
  words = ["5", "optim.weight_decay=log:1e-4..1e-1", "optim.name=choice:adamw,lion"]
  made = search.sweep_from_text(SMOKE, ["seed=0,1"], words)
  assert len(made.runs) == 10
  decays = [r.overrides["optim.weight_decay"] for r in made.runs]
  assert decays[:5] == decays[5:]
  members(made.runs)


def test_the_same_words_give_the_same_name_and_others_another():
  name = lambda *grids, **more: search.sweep_from_text(SMOKE, list(grids), **more).name
  assert name("seed=0,1") == name("seed=0,1") != name("seed=0,2")
  assert name("seed=0,1") != name("seed=0,1", fixed={"model.depth": "1"})
  assert name("seed=0,1").startswith("smoke-")


@pytest.mark.parametrize(
  ("act", "words"),
  [
    (lambda: search.parse_axis("model.widht=3"), "grid=model.widht: no such key; did you mean model.width?"),
    (lambda: search.parse_axis("model.width"), "grid=model.width: must be key=value,value"),
    (lambda: search.parse_axis("seed=1,1"), "grid=seed=1,1: values must differ"),
    (lambda: search.parse_range("optim.b1=log:0..1"), "a log range must be positive"),
    (lambda: search.parse_range("optim.b1=lin:2..1"), "LOW must be below HIGH"),
    (lambda: search.parse_range("optim.b1=1e-4..1"), "must be key=log:LOW..HIGH"),
    (lambda: search.parse_range("optim.b1=lin:a..b"), "the ends must be numbers"),
    (lambda: halving.parse_halving("3"), "halving=3: must be ETA:RUNGS"),
    (lambda: halving.parse_halving("1:3"), "eta must be at least 2"),
    (lambda: search.sweep_from_text(SMOKE, [], ["x", "seed=int:0..9"]), "must be a number of draws"),
    (lambda: search.sweep_from_text(SMOKE, ["seed=0,1"], ["2", "seed=int:0..9"]), "is in a grid or"),
    (lambda: search.sweep_from_text(SMOKE, ["seed=0,1", "seed=2,3"]), "grid=seed: is given twice"),
    (lambda: search.sweep_from_text(SMOKE, ["seed=0,1"], fixed={"seed": "3"}), "set=seed: is in a grid too"),
    (lambda: search.sweep_from_text(SMOKE, [], ["2", *["seed=int:0..9"] * 2]), "random=seed: is given twice"),
    (lambda: search.sweep_from_text(SMOKE, [], ["9", "seed=int:0..1"]), "draws a setting twice"),
    (lambda: search.parse_axis("optim.peak_lr=1e-3,0.001"), "values must differ"),
    (lambda: search.parse_axis("seed=,"), "must be key=value,value"),
    (lambda: search.sweep_from_text(SMOKE, name="../a"), "save_as=../a: a name is a folder"),
    (lambda: search.sweep_from_text(SMOKE, name="lr_sweep"), "is the name of an experiment file"),
    (lambda: sweep.load("lr_swep"), "no such experiment; did you mean lr_sweep?"),
    (lambda: sweep.load("lr_sweep", "gpu"), "scale=gpu: lr_sweep comes in one size"),
    (lambda: sweep.only(sweep.load("lr_sweep"), ["x"]), "only=x: lr_sweep has no such run"),
  ],
)  # fmt: skip
def test_bad_words_get_one_line(act, words):
  with pytest.raises(ConfigError) as error:
    act()
  assert words in str(error.value) and "\n" not in str(error.value)


# ---- Claims --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("interval", "word", "why"),
  [
    ((0.48, 0.52), "agrees", "lies within"),
    ((0.56, 0.60), "differs", "lies above"),
    ((0.30, 0.44), "differs", "lies below"),
    ((0.49, 0.60), "consistent", "holds 0.5, though it is 1.1 times as wide"),
    ((0.51, 0.60), "borderline", "lies above 0.5 itself"),
    ((0.20, 0.80), "consistent", "6 times as wide"),
    (None, "cannot tell", "no interval"),
  ],
)
def test_a_verdict_reads_our_interval_against_the_claimed_range(interval, word, why):
  claim = Claim("a", 0.5, "someone", tolerance=0.05)
  value = 0.5 if interval is None else sum(interval) / 2
  judged = verdict(claim, Estimate(value, interval))
  assert judged.word == word and why in judged.why
  ranged = Claim("a", 0.5, "someone", interval=(0.45, 0.55))
  assert verdict(ranged, Estimate(value, interval)).word == word


@pytest.mark.parametrize(
  ("interval", "word", "why"),
  [
    ((0.1, 0.4), "agrees", "our interval [0.1, 0.4] lies above 0"),
    ((-0.4, -0.1), "differs", "our interval [-0.4, -0.1] lies below 0"),
    ((-0.1, 0.4), "consistent", "our interval [-0.1, 0.4] holds 0"),
    (None, "cannot tell", "our 0.3 is above 0 but has no interval"),
  ],
)
def test_a_claim_may_be_of_one_side(interval, word, why):
  claim = Claim("a", 0.0, "someone", interval=(0.0, math.inf))
  value = 0.3 if interval is None else sum(interval) / 2
  judged = verdict(claim, Estimate(value, interval))
  assert (judged.word, judged.why) == (word, why)
  assert claim.said == "above 0"
  assert Claim("a", 0.0, "someone", interval=(-math.inf, 0.0)).said == "below 0"


def test_a_missing_or_wild_estimate_cannot_tell():
  claim = Claim("a", 0.5, "someone", tolerance=0.05)
  assert verdict(claim, None).word == "cannot tell"
  assert verdict(claim, Estimate(math.nan, (0, 1))).word == "cannot tell"
  assert verdicts([claim], {})[0]["ours"] is None
  with pytest.raises(ValueError, match="must be an Estimate to be judged"):
    verdicts([claim], {"a": 0.5})


@pytest.mark.parametrize("more", [{}, {"tolerance": 1.0, "interval": (0, 1)}, {"interval": (2, 3)}])
def test_a_claim_has_exactly_one_range_around_its_value(more):
  with pytest.raises(ValueError, match=r"exactly one of|must lie in"):
    Claim("a", 0.5, "someone", **more)


# ---- The command line ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_ends_in_an_example_that_the_parser_accepts(name, capsys):
  parser = cli.make_parser("about")
  with pytest.raises(SystemExit) as stop:
    parser.parse_args([name, "--help"])
  assert stop.value.code == 0
  last = capsys.readouterr().out.rstrip().split("\n")[-1]
  assert last.startswith("  python -m experiments ")
  words = last.split(" > ")[0].split()[3:]
  options, unknown = parser.parse_known_args(words)
  assert options.command == name and not unknown


@pytest.mark.parametrize(
  ("words", "line"),
  [
    (["plan", "lr_swep"], "experiment=lr_swep: no such experiment; did you mean lr_sweep?"),
    (["plan", "lr_sweep", "--set", "seed"], "set=seed: must be key=value"),
    (["plan", "lr_sweep", "--chip", "v9"], "chip=v9: must name one of TPU7x"),
    (["plan", "lr_sweep", "--chip", "v5e", "--mfu", "2"], "mfu=2.0: must be in (0, 1]"),
    (["run", "--grid", "seed=1,2"], "grid=...: needs --config FILE"),
    (["run"], "name=(none): name an experiment (see list), or give --config"),
    (
      ["run", "lr_sweep", "--config", SMOKE],
      "config=configs/smoke.py: an experiment file has its own",
    ),
    (["show", "nowhere"], "run=nowhere: no such directory"),
    (["fit", "--csv", "nowhere.csv"], "csv=nowhere.csv: no such file"),
    (["status", "lr_sweep", "--where", "x"], "where=x: no condition at 'x'; must be COLUMN=TEXT"),
  ],
)
def test_bad_commands_raise_one_line(words, line, tmp_path, monkeypatch):
  parser = cli.make_parser("about")
  options = parser.parse_args(words)
  with pytest.raises(ConfigError) as error:
    options.act(options)
  assert line in str(error.value) and "\n" not in str(error.value)


def test_the_program_exits_with_2_and_one_line():
  words = [sys.executable, "-m", "experiments", "status", "lr_sweep", "--colums", "x"]
  out = subprocess.run(words, capture_output=True, text=True, check=False)
  assert out.returncode == 2
  assert out.stderr == "--colums=: no such option; did you mean --columns?\n"


def test_plan_as_json_counts_what_the_ledger_will_say(tmp_path, capsys):
  fake_run(tmp_path / "one", {"model.width": 64})
  parser = cli.make_parser("about")
  words = ["plan", "--config", SMOKE, "--grid", "model.width=64", "--probe", "never", "--json"]
  options = parser.parse_args(words)
  options.act(options)
  import json

  from experiments.ledger.rows import read_row

  planned, row = json.loads(capsys.readouterr().out)["runs"][0], read_row(str(tmp_path / "one"))
  for key in ("id", "n_params", "n_params_non_embedding", "n_tokens", "flops", "flops_exact", "lr"):
    assert planned[key] == row[key]
  assert isinstance(parser, Parser)


@pytest.mark.slow
def test_a_report_is_mirrored_offline_with_its_pictures(tmp_path, monkeypatch):
  monkeypatch.delenv("WANDB_API_KEY", raising=False)
  monkeypatch.setenv("NETRC", str(tmp_path / "none"))
  for seed in (0, 1):
    fake_run(tmp_path / "s" / f"seed={seed}", {"seed": seed})
  words = ["--config", SMOKE, "--grid", "seed=0,1", "--save_as", "s", "--root", str(tmp_path)]
  options = cli.make_parser("about").parse_args(["report", *words, "--wandb"])
  options.act(options)
  (folder,) = (tmp_path / "s" / "wandb").glob("offline-run-*-report-*")
  pictures = sorted(p.name.split("_")[0] for p in folder.glob("files/media/html/report/*.html"))
  assert pictures == sorted(p.stem for p in (tmp_path / "s" / "report_figures").glob("*.svg"))
  assert pictures


# ---- lr_sweep ------------------------------------------------------------------------------------


def test_lr_sweep_finds_how_the_best_rate_moves_and_judges_it():
  from experiments import lr_sweep
  from experiments.ledger.ledger import Ledger

  rows = []
  for run in lr_sweep.runs():
    o = run.overrides
    width, rate, seed = o["model.width"], o["optim.peak_lr"], o["seed"]
    slope = {"mup": 0.0, "standard": -1.0}[o["model.parameterization"]]
    best = math.log2(1.6e-2) + slope * math.log2(width / 64) + 0.02 * (seed - 1)
    loss = 3.0 + (math.log2(rate) - best) ** 2
    rows.append({"name": run.name, "status": "done", "lr": rate, "loss": loss, **o})
  found = lr_sweep.analyse(Ledger(tuple(rows)))
  assert found[lr_sweep.SHIFT.format("mup")].value == pytest.approx(0.0, abs=1e-6)
  assert found[lr_sweep.SHIFT.format("standard")].value == pytest.approx(-1.0, abs=1e-6)
  assert [v["verdict"] for v in verdicts(lr_sweep.claims, found)] == ["agrees", "agrees"]
  assert all(b["inside the grid"] for b in found["best rates"]) and len(found["best rates"]) == 18


def test_a_best_rate_at_the_edge_is_said_to_be_there():
  from experiments.lr_sweep import best_rate

  rates = np.array([1e-3, 2e-3, 4e-3, 8e-3])
  assert best_rate(rates, np.array([4.0, 3.0, 2.0, 1.0])) == (8e-3, False)
  rate, inside = best_rate(rates[::-1], np.array([3.0, 2.0, 2.0, 3.0]))
  assert inside and rate == pytest.approx(math.sqrt(2e-3 * 4e-3))
