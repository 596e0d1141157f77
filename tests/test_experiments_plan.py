import collections
import csv
import itertools
import json
import math
import pathlib
import shlex
import subprocess
import sys

import pytest

from experiments.commands import command_line as cli
from experiments.commands import wandb_commands, which
from experiments.launch import slots, throughput
from experiments.launch.throughput import Speed, from_chip
from experiments.ledger import fits
from experiments.ledger.ledger import Ledger, read_ledger
from experiments.quote import cost as plan
from experiments.report import tables
from experiments.sweep import Run, described, search, sweep
from lm.config.errors import ConfigError
from lm.cost.flops import flops_per_token
from lm.devices.chips import CHIPS
from lm.files import write_json
from tests.fake_runs import SMOKE, fake_run
from tests.fuzzing import answer


def quoted(*overrides, speed=None):
  runs = [Run(f"r{i}", o, SMOKE) for i, o in enumerate(overrides)]
  return plan.quote(sweep.resolve_runs(runs, pathlib.Path("runs/x")), speed)


def warned(*overrides, speed=None):
  experiment = sweep.make_experiment("x", [Run("a", {}, SMOKE)])
  return plan.warnings(experiment, quoted(*overrides, speed=speed), speed)


def run_command(*words):
  options = cli.make_parser("about").parse_args(list(words))
  return options.act(options)


# ---- Quotes --------------------------------------------------------------------------------------


def test_a_quote_is_arithmetic_on_the_resolved_config():
  (row,) = quoted({"model.width": 64, "train.steps": 100})
  n_params = 257 * 64 + 2 * (4 * 64 * 64 + 3 * 64 * 192 + 2 * 64) + 64  # tied, swiglu, rmsnorm
  assert row["n_params"] == n_params
  assert row["n_tokens"] == 100 * 8 * 64
  assert row["flops_6ND"] == 6 * n_params * row["n_tokens"]
  assert row["tokens_per_param"] == row["n_tokens"] / n_params
  assert row["epochs"] == row["n_tokens"] / row["unique_tokens"]
  assert row["seconds"] is None and row["dollars"] is None


def test_time_on_a_chip_is_flops_over_mfu_times_peak():
  speed = from_chip("h100", 0.5, "bfloat16")
  assert speed.compiling > 0
  (row,) = quoted({"train.steps": 1000, "eval.every_steps": 100}, speed=speed)
  cfg = sweep.resolve_runs(
    [Run("a", {"train.steps": 1000, "eval.every_steps": 100}, SMOKE)], pathlib.Path()
  )[0].cfg
  per_token = flops_per_token(cfg.model, "exact")
  evaluated = 10 * cfg.eval.tokens * per_token / 3
  rate = 0.5 * CHIPS["H100"].bfloat16
  expected = speed.overhead + speed.compiling + (per_token * cfg.train.tokens + evaluated) / rate
  assert row["seconds"] == pytest.approx(expected)
  assert row["dollars"] == pytest.approx(expected / 3600 * CHIPS["H100"].price)


def test_a_mesh_makes_a_run_faster_and_its_price_stays():
  speed = from_chip("v5e", 0.4, "bfloat16")
  moe = {"model.experts": 4, "train.steps": 10**9}
  meshes = [{}, {"mesh.fsdp": 4}, {"mesh.fsdp": 2, "mesh.expert": 4}]
  rows = quoted(*(moe | mesh for mesh in meshes), speed=speed)
  one, *more = (row["seconds"] - speed.overhead - speed.compiling for row in rows)
  assert more == pytest.approx([one / 4, one / 8])
  for row, devices in zip(rows, (1, 4, 8), strict=True):
    assert row["dollars"] == pytest.approx(devices * row["seconds"] / 3600 * speed.price)


def test_experts_count_among_the_devices_of_a_run():
  asked = sweep.asked_config(
    Run("a", {"mesh.expert": 4, "mesh.fsdp": 2, "mesh.replica": -1}, SMOKE)
  )
  assert sweep.devices_needed(asked) == 8


def test_measured_rates_are_interpolated_in_logs_and_held_beyond_the_ends():
  cfgs = [
    m.cfg
    for m in sweep.resolve_runs(
      [Run(f"w{w}", {"model.width": w}, SMOKE) for w in (32, 64, 128)], pathlib.Path()
    )
  ]
  sizes = [throughput.step_flops(c) for c in cfgs]
  speed = Speed("here", (sizes[0], sizes[2]), (1e9, 4e9), 0.0)
  work = lambda c: (
    flops_per_token(c.model, "exact") * (c.train.tokens + 2 * throughput.eval_tokens(c) / 3)
  )
  assert speed.seconds(cfgs[0]) == pytest.approx(work(cfgs[0]) / 1e9)
  share = math.log(sizes[1] / sizes[0]) / math.log(sizes[2] / sizes[0])
  assert speed.seconds(cfgs[1]) == pytest.approx(work(cfgs[1]) / (1e9 * 4**share))
  only_small = Speed("here", (sizes[0],), (1e9,), 3.0)
  assert only_small.seconds(cfgs[2]) == pytest.approx(3.0 + work(cfgs[2]) / 1e9)


def test_a_program_is_compiled_once():
  speed = Speed("here", (1.0,), (1e12,), 3.0, compiling=100.0)
  seconds = [row["seconds"] for row in quoted({}, {"seed": 1}, {"model.width": 64}, speed=speed)]
  assert [s > 100 for s in seconds] == [True, False, True]
  assert seconds[0] - seconds[1] == pytest.approx(100.0)


def test_elapsed_time_is_of_processes_side_by_side():
  flops = {f"flops_{c}": 1 for c in plan.CONVENTIONS}
  rows = [
    {"seconds": s, "dollars": 1.0, "n_tokens": 1, "bytes": s, **flops} for s in (4.0, 3.0, 2.0, 1.0)
  ]
  assert plan.totals(rows, 1)["elapsed"] == 10.0
  assert plan.totals(rows, 2)["elapsed"] == 5.0  # 4 + 1 beside 3 + 2
  assert plan.totals(rows, 2)["seconds"] == 10.0
  assert plan.totals(rows, 1)["dollars"] == 4.0 and plan.totals(rows, 1)["max_bytes"] == 4.0


@pytest.mark.parametrize(("name", "mfu"), [("v9", 0.4), ("TPU", 0.4), ("v5e", 0.0), ("v5e", 1.2)])
def test_a_wrong_chip_or_utilisation_gets_one_line(name, mfu):
  with pytest.raises(ConfigError, match=rf"^(chip={name}|mfu={mfu}): "):
    from_chip(name, mfu, "bfloat16")


def test_a_probe_is_remembered_and_not_repeated(tmp_path, monkeypatch):
  calls = []

  def probe(member, slot):
    calls.append(member.name)
    return {
      "flops_per_step": throughput.step_flops(member.cfg),
      "flops_per_sec": 1e9,
      "overhead": 5.0,
      "compiling": 20.0,
    }

  monkeypatch.setattr(throughput, "_probe", probe)
  monkeypatch.setattr(slots, "find_devices", lambda: slots.Devices("cpu", "cpu", 1))
  runs = [
    Run(f"w{w}", {"model.width": w, "data.cache_dir": str(tmp_path)}, SMOKE) for w in (64, 32, 128)
  ]
  members = sweep.resolve_runs(runs, tmp_path)
  slot = slots.Slot({}, (0,))
  speed = throughput.measured(members, slot)
  assert calls == ["w32", "w128"]  # the smallest and the largest
  assert throughput.measured(members, slot) == speed and len(calls) == 2
  throughput.measured(members, slot, again=True)
  assert len(calls) == 4
  throughput.measured(members, slots.Slot({}, (0, 1)))  # another share of the machine
  assert len(calls) == 6


def test_a_run_of_a_rule_is_probed_with_the_batch_that_the_rule_gives(tmp_path, monkeypatch):
  """A damaged memory of probes is no memory."""
  (tmp_path / "speed.json").write_text("[")
  seen = []

  def probe(member, slot):
    seen.append(member.cfg)
    return {"flops_per_step": 1e9, "flops_per_sec": 1e9, "overhead": 5.0, "compiling": 20.0}

  monkeypatch.setattr(throughput, "_probe", probe)
  monkeypatch.setattr(slots, "find_devices", lambda: slots.Devices("cpu", "cpu", 1))
  settings = {"rules": "step_law", "train.tokens": 300_000_000, "train.tokens_per_param": None,
              "data.tokenizer": "byte", "data.cache_dir": str(tmp_path)}  # fmt: skip
  members = sweep.resolve_runs([Run("a", settings, "configs/ladder.py:0.1m")], tmp_path)
  assert throughput.measured(members, slots.Slot({}, (0,)))
  assert [cfg.train.batch_size for cfg in seen] == [members[0].cfg.train.batch_size] != [8]
  assert throughput.remembered(members[0], slots.Slot({}, (0,)))


# ---- Warnings ------------------------------------------------------------------------------------


def test_a_sound_design_has_no_warning():
  assert warned({"model.width": 32}, {"model.width": 64}) == []


@pytest.mark.parametrize(
  ("overrides", "words"),
  [
    (({}, {"log.every_steps": 7}), "r0 and r1 compute the same"),
    (({}, {"eval.tokens": 2048}), "eval.tokens is 4096, 2048: runs evaluated on different tokens"),
    (({"train.steps": 60_000},), "r0: up to 8.1 epochs; beyond 4"),
    (({"optim.schedule": "constant"}, {"train.steps": 30}), "r0: a schedule that does not decay"),
  ],
)
def test_an_unsound_design_is_called_out(overrides, words):
  assert any(words in sentence for sentence in warned(*overrides)), warned(*overrides)


def design_of(law, *shapes, more=()):
  """{severity: [why]} of check_design for (width, tokens) pairs; `more` overrides run by run."""
  overrides = [
    {"model.width": w, "train.steps": None, "train.tokens": t, **extra}
    for (w, t), extra in itertools.zip_longest(shapes, more[: len(shapes)], fillvalue={})
  ]
  experiment = sweep.make_experiment("x", [Run("a", {}, SMOKE)], law=law)
  found = {"refuse": [], "warn": []}
  for severity, why in plan.check_design(experiment, quoted(*overrides)):
    found[severity].append(why)
  return found


GRID = [(w, t) for w in (32, 64, 96, 128) for t in (1e5, 4e5, 16e5)]
SIZES = {w: quoted({"model.width": w})[0]["n_params"] for w in (32, 40, 48, 64, 80, 96, 112, 128)}


def slice_of(flops, widths):
  """One budget spent on several widths."""
  return [(w, round(flops / (6 * SIZES[w]))) for w in widths]


def test_a_sound_grid_is_not_refused():
  assert design_of("chinchilla", *GRID)["refuse"] == []
  wide = (32, 40, 64, 96, 128)
  slices = [s for flops in (1e12, 4e12, 1.6e13) for s in slice_of(flops, wide)]
  assert design_of("chinchilla", *slices)["refuse"] == []


@pytest.mark.parametrize(
  ("shapes", "more", "words"),
  [
    (GRID[:6], (), "6 different runs, fewer than parameters + 3 = 8"),
    ([(w, 20 * n) for w, n in SIZES.items()], (), "20 tokens per parameter: N and D are collinear"),
    (
      [s for flops in (1e11, 4e11, 1.6e12) for s in slice_of(flops, (32, 64, 96, 128))],
      (),
      "4 sizes, fewer than 5",
    ),
    (
      [s for flops in (1e17, 4e17, 1.6e18) for s in slice_of(flops, (32, 40, 64, 96, 128))],
      (),
      "the minimum will be at the edge",
    ),
    (GRID, [{"eval.stop_patience": 2}], "1 run cut off before the schedule ends"),
    (GRID, [{"optim.schedule": "constant"}] * 12, "12 runs cut off before the schedule ends"),
    (GRID, [{"eval.tokens": 2048}], "2 different eval sets"),
    (GRID, [{"data.sources": ("synthetic:markov-32-s1-n50",)}], "2 different eval sets"),
  ],
)
def test_a_design_that_cannot_carry_its_law_is_refused(shapes, more, words):
  refused = design_of("chinchilla", *shapes, more=more)["refuse"]
  assert any(words in why for why in refused), refused


def test_a_law_is_needed_for_a_refusal_and_epochs_are_a_warning():
  grid = [(w, 16 * t) for w, t in GRID]
  experiment = sweep.make_experiment("x", [Run("a", {}, SMOKE)], law="chinchilla")
  rows = quoted(*({"model.width": w, "train.steps": None, "train.tokens": t} for w, t in grid))
  assert [
    why for severity, why in plan.check_design(experiment, rows) if severity == "refuse"
  ] == []
  assert any("6.7 epochs; beyond 4" in why for why in plan.warnings(experiment, rows, None))


def test_the_chinchilla_experiment_is_checked_and_sound():
  experiment = sweep.load("chinchilla")
  assert (experiment.law, sweep.load("chinchilla", "gpu").law) == ("chinchilla", "chinchilla")
  assert sweep.load("chinchilla", "lr").law is None  # rates at one budget: no law in N and D
  rows = plan.quote(sweep.resolve_runs(experiment.runs, pathlib.Path("runs/x")), None)
  assert plan.check_design(experiment, rows) == []


def test_an_experiment_without_a_law_is_warned_only_where_both_n_and_d_vary():
  assert design_of(None, (32, 1e5), (64, 1e5)) == {"refuse": [], "warn": []}
  both = design_of(None, (32, 1e5), (64, 2e5))
  assert both["warn"] and both["refuse"] == []
  assert all("for a law in N and D" in why for why in both["warn"])


def test_an_unsound_experiment_is_not_run_without_force(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(
    '"""Why?"""\nfrom experiments.sweep import Run\nlaw = "chinchilla"\n'
    "def runs():\n  yield Run('a', {}, 'configs/smoke.py')\n"
  )
  with pytest.raises(ConfigError, match=r"law=chinchilla: 1 different runs.* with --force"):
    run_command("run", str(file), "--root", str(tmp_path))
  assert run_command("plan", str(file), "--probe", "never") == 2


@pytest.mark.slow
def test_a_design_is_proposed_for_a_budget():
  words = [sys.executable, "-m", "experiments", "plan", "--design"]
  good = subprocess.run([*words, "1e15"], capture_output=True, text=True, check=True)
  assert "expected 95% interval of a" in good.stdout and "FLOPs in all" in good.stdout
  bad = subprocess.run([*words, "1e3"], capture_output=True, text=True, check=False)
  assert bad.returncode == 2 and "no grid keeps sizes" in bad.stderr


def test_runs_that_do_not_fit_are_called_out():
  small = Speed("chip", (1.0,), (1e12,), 0.0, hbm=1e5)
  (sentence,) = warned({}, speed=small)
  assert "need more than 90 %" in sentence


# ---- Commands over a ledger ----------------------------------------------------------------------


@pytest.fixture
def swept(tmp_path):
  """A sweep without a file, two of three runs trained, one of them under another config."""
  words = [
    "--config",
    SMOKE,
    "--grid",
    "optim.peak_lr=1e-3,2e-3,3e-3",
    "--root",
    str(tmp_path),
    "--save_as",
    "s",
  ]
  fake_run(tmp_path / "s" / "peak_lr=1e-3", {"optim.peak_lr": 1e-3}, loss=2.0)
  fake_run(tmp_path / "s" / "peak_lr=2e-3", {"optim.peak_lr": 9e-3}, loss=3.0)
  fake_run(tmp_path / "s" / "another", {"optim.peak_lr": 5e-3})
  return words


def test_status_lists_what_is_done_stale_and_waiting(swept, capsys):
  run_command("status", *swept, "--json")
  rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
  assert {name: row["status"] for name, row in rows.items()} == {
    "peak_lr=1e-3": "done", "peak_lr=2e-3": "stale", "peak_lr=3e-3": "waiting",
  }  # fmt: skip
  assert "optim.peak_lr=0.009, now asked for with 0.002" in rows["peak_lr=2e-3"]["reason"]


def test_an_exported_ledger_answers_as_the_directories_do(swept, tmp_path, capsys):
  file = str(tmp_path / "l.jsonl")
  run_command("status", *swept, "--where", "status=done", "--export", file)
  here = capsys.readouterr().out
  run_command("status", "--ledger", file)
  assert capsys.readouterr().out == here
  run_command("status", *swept, "--export", str(tmp_path / "l.csv"))
  with open(tmp_path / "l.csv", newline="") as csv_file:
    assert [row["status"] for row in csv.DictReader(csv_file)] == ["done", "stale", "waiting"]


def test_a_described_sweep_is_saved_and_only_a_wider_one_replaces_it(tmp_path):
  def save(*grid):
    words = ["run", "--config", SMOKE, "--root", str(tmp_path), "--save_as", "s", *grid]
    which.save_sweep(tmp_path / "s", cli.make_parser("about").parse_args(words))

  named = lambda *words: which.select(cli.make_parser("about").parse_args(["status", "s", *words]))
  save("--grid", "seed=0,1")
  save("--grid", "seed=0,1,2")
  assert len(named("--root", str(tmp_path)).runs) == 3
  with pytest.raises(ConfigError, match=r"has runs that this one lacks \(seed=2\); choose another"):
    save("--grid", "seed=0,1")
  (tmp_path / "s" / "sweep.json").write_text('{"config": ')
  with pytest.raises(ConfigError, match=r"sweep.json: is damaged, not JSON; delete it"):
    named("--root", str(tmp_path))


def test_a_sweep_comes_back_from_the_command_that_its_words_make(tmp_path):
  """Mixtures that were drawn, with their seed, too."""
  said = [
    "--config", SMOKE, "--grid", "seed=0,1", "--random", "2", "optim.peak_lr=log:1e-3..1e-2",
    "--dirichlet", "2", "data.weights=2", "--seed", "7", "--set", "train.steps=30", "--root", str(tmp_path),
  ]  # fmt: skip
  read = lambda words: cli.make_parser("about").parse_args(words)
  options = read(["run", *said, "--save_as", "s"])
  which.save_sweep(tmp_path / "s", options)
  command = shlex.split(described.command(tmp_path / "s" / "sweep.json"))
  assert command[:4] == ["python", "-m", "experiments", "run"]
  runs = which.select(options).runs
  assert len(runs) == 8 and which.select(read(command[3:])).runs == runs
  words, _ = wandb_commands._sweep_words(read(["wandb-sweep", *said, "--save_as", "s"]))
  assert which.select(read(["wandb-sweep", *words])).runs == runs


def test_sweeps_and_races_with_other_words_than_were_written_are_one_line(tmp_path, monkeypatch):
  """Every value of a sweep.json replaced by odd ones, and every key left out."""
  monkeypatch.setattr(search, "find_experiments", dict)  # parses files, each time
  words = {
    "config": SMOKE, "grids": ["seed=0,1"], "random": [], "halving": None, "seed": 0, "name": "s",
    "fixed": {"train.steps": "30"},
  }  # fmt: skip
  settings = {
    "baseline": None, "at": [], "pin": None, "flops": "flops", "target": None, "noise": None,
  }  # fmt: skip
  race = {
    "recipes": ["a: optim.peak_lr=1e-3", "b: optim.peak_lr=2e-3"], "budgets": "train.steps=10,20",
    "rungs": [], "seeds": 2, "settings": settings,
  }  # fmt: skip
  file, seen = tmp_path / "sweep.json", collections.Counter()

  def read(spec):
    file.write_text(json.dumps(spec))
    found = answer(described.parse, file.read_bytes(), str(file))
    seen[found is not None] += 1
    if found is not None:
      answer(which._described, found, "s")
      assert answer(described.command, file)

  read(words)
  read({"race": race})
  assert seen == {True: 2}
  for value in (None, 0, 3.5, 10**30, "", "x", [], [1], ["x"], {}, {"a": [1]}, True):
    read(value)
    read({"race": value})
    for key in words:
      read({**words, key: value})
    for key in race:
      read({"race": {**race, key: value}})
    for key in (*settings, "other"):
      read({"race": {**race, "settings": {**settings, key: value}}})
  for spec, of in ((words, lambda part: part), (race, lambda part: {"race": part})):
    for key in spec:
      read(of({k: v for k, v in spec.items() if k != key}))
    read(of({**spec, "other": 1}))
  assert min(seen.values()) > 50, seen


def test_advice_can_be_pasted(tmp_path):
  options = cli.make_parser("about").parse_args(
    ["run", "chinchilla", "--scale", "lr", "--set", "seed=3", "--root", str(tmp_path / "a b")]
  )
  words = which.words_for(options, which.select(options))
  again = cli.make_parser("about").parse_args(["run", *shlex.split(words)])
  assert vars(again) == vars(options)
  described = cli.make_parser("about").parse_args(
    ["run", "--config", SMOKE, "--grid", "seed=0", "--save_as", "s", "--set", "model.depth=1"]
  )
  assert which.words_for(described, which.select(described)) == "s"


def test_compare_takes_everything_in_a_folder_and_names_what_is_no_run(swept, tmp_path, capsys):
  write_json(tmp_path / "s" / "sweep.json", {})
  for beside in ("report_figures", "stacks", "wandb"):  # what reports and stacks leave there
    (tmp_path / "s" / beside).mkdir()
  run_command("compare", *map(str, sorted((tmp_path / "s").iterdir())), "--json")
  out, err = capsys.readouterr()
  assert len(json.loads(out)["runs"]) == 3
  assert f"left out: {tmp_path / 's' / 'sweep.json'} is a file" in err


def test_show_wants_one_run(swept, tmp_path):
  with pytest.raises(
    ConfigError, match=r"holds 3 runs; name one run directory, for example .*another"
  ):
    run_command("show", str(tmp_path / "s"))
  (tmp_path / "empty").mkdir()
  with pytest.raises(ConfigError, match="holds no run; name one run directory"):
    run_command("show", str(tmp_path / "empty"))


def test_groups_are_printed(swept, capsys):
  capsys.readouterr()
  run_command("status", *swept, "--group_by", "model.width", "--json")
  (group,) = json.loads(capsys.readouterr().out)
  assert group["model.width"] == 32 and group["n"] == 1 and group["best"] == "peak_lr=1e-3"


def test_an_analysis_sees_done_runs_only_and_its_verdicts_are_printed(tmp_path, capsys):
  file = tmp_path / "mine.py"
  file.write_text(
    '"""Why?"""\n'
    "from experiments.report.claims import Claim, Estimate\n"
    "from experiments.sweep import Run\n"
    "claims = (Claim('best', 2.0, 'Someone 2020', tolerance=0.5),)\n"
    "def runs():\n"
    "  for lr in (1e-3, 2e-3):\n"
    "    yield Run(f'lr={lr:g}', {'optim.peak_lr': lr}, 'configs/smoke.py')\n"
    "def analyse(ledger):\n"
    "  best = min(ledger.column('loss'))\n"
    "  return {'best': Estimate(best, (best - 0.1, best + 0.1)), 'n': len(ledger)}\n"
  )
  fake_run(tmp_path / "mine" / "lr=0.001", {"optim.peak_lr": 1e-3}, loss=2.1)
  fake_run(
    tmp_path / "mine" / "lr=0.002", {"optim.peak_lr": 2e-3}, "failed", loss=1.0, reason="nan"
  )
  run_command("fit", str(file), "--root", str(tmp_path))
  out = capsys.readouterr().out
  assert "2.1 [2, 2.2]" in out and "agrees" in out and "Someone 2020" in out
  assert "n: 1" in out
  with pytest.raises(ConfigError, match="no run of mine is done"):
    run_command("fit", str(file), "--root", str(tmp_path / "empty"))


# ---- Fits ----------------------------------------------------------------------------------------


def test_a_ledger_is_fitted_under_the_columns_that_are_named(tmp_path, monkeypatch):
  for width in (32, 64):
    fake_run(tmp_path / f"w{width}", {"model.width": width})
  seen = {}
  monkeypatch.setattr(
    fits.laws, "fit_table", lambda table, law, **s: seen.update(table=table, law=law, **s)
  )
  runs = read_ledger(str(tmp_path))
  fits.fit_ledger(
    runs, "chinchilla", {"n_params": "n_params_non_embedding"}, objective="lad", n_boot=7
  )
  assert (seen["law"], seen["objective"], seen["n_boot"]) == ("chinchilla", "lad", 7)
  assert list(seen["table"]["n_params"]) == runs.column("n_params_non_embedding")
  assert list(seen["table"]["loss"]) == runs.column("loss")


def test_nothing_done_is_nothing_to_fit():
  with pytest.raises(ConfigError, match="runs=0: none is done yet"):
    fits.fit_ledger(Ledger(()), "chinchilla", {}, objective="huber", n_boot=0)


def test_wrong_words_for_a_table_get_one_line(tmp_path):
  (tmp_path / "t.csv").write_text("n,d,l\n1e6,1e7,3.0\n")
  name = str(tmp_path / "t.csv")
  for words, line in (
    (["--where", "x"], "must be COLUMN=TEXT"),
    (["--unit", "flops"], "unit=flops=: must be params, tokens, loss or flops"),
    (["--params", "m"], "params='m': no such column"),
    (["--law", "chinchila"], "chinchila"),
    ([], "rows=1: chinchilla has 5 free parameters"),
  ):
    with pytest.raises(ConfigError) as error:
      run_command("fit", "--csv", name, "--n_boot", "0", *words)
    assert line in str(error.value)


# ---- Numbers as text -----------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("key", "value", "text"),
  [
    ("loss", 2.5, "2.5000"), ("n_params", 35_008, "35k"), ("n_tokens", 4.5e9, "4.5B"),
    ("bytes", 560_128, "560 kB"), ("bytes", 2.3e9, "2.3 GB"), ("bytes", 12, "12 B"),
    ("seconds", 3725.0, "1 h 02 min"), ("seconds", 12.3, "12 s"), ("status", None, ""),
    ("dirty", True, "True"), ("data.weights", [1.0, 2.0], "1.0,2.0"), ("step", 1200, "1,200"),
  ],
)  # fmt: skip
def test_cells_read_well(key, value, text):
  assert tables.cell(key, value) == text


def test_a_table_in_a_pipe_is_neither_cut_nor_padded(capsys):
  tables.show([{"name": "x" * 300, "n": 1}, {"name": "y", "n": 20}], ("name", "n"))
  lines = capsys.readouterr().out.split("\n")
  assert lines[1].startswith("x" * 300) and all(line == line.rstrip() for line in lines)
