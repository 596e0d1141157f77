"""Budgets in seconds: a speed, given or measured once, makes them steps that are fixed before the first."""

import json

import pytest

import train
from experiments.__main__ import main
from experiments.launch import slots, throughput
from experiments.sweep import sweep
from experiments.sweep.sweep import Run
from lm.config.errors import ConfigError
from lm.config.identity import identity
from lm.config.schema import flatten
from lm.runs import rundir, speed
from lm.setup.load import load_config
from lm.setup.resolve import resolve
from tests.trained import run

SMOKE = "configs/smoke.py"
SECONDS = {"train.steps": None, "train.seconds": 2.0}


def resolved(**changes):
  changes = {key.replace("__", "."): value for key, value in changes.items()}
  return resolve(load_config(SMOKE, {"train.steps": None, **changes}), 257, 1)


@pytest.fixture
def never_measured(monkeypatch):
  def refuse(*_):
    raise AssertionError("measured")

  monkeypatch.setattr(speed, "tokens_per_sec", refuse)


# ---- What they come to ---------------------------------------------------------------------------


def test_tokens_are_seconds_times_speed_in_whole_steps():
  cfg = resolved(train__seconds=2.0, train__tokens_per_sec=10_000.0)
  per_step = cfg.train.batch_size * cfg.model.seq_len
  assert cfg.train.steps == round(20_000 / per_step)
  assert cfg.train.tokens == cfg.train.steps * per_step


def test_the_speed_is_part_of_no_identity_and_the_steps_that_follow_are():
  same = [resolved(train__seconds=2.0, train__tokens_per_sec=v) for v in (10_000.0, 10_001.0)]
  assert same[0].train.steps == same[1].train.steps and identity(same[0]) == identity(same[1])
  faster = resolved(train__seconds=2.0, train__tokens_per_sec=20_000.0)
  assert identity(faster) != identity(same[0])


def test_a_rule_of_size_and_tokens_takes_them():
  asked = {"train.tokens_per_param": None, "model.vocab_size": 2048, "rules": "bjorck"}
  timed = load_config(
    "configs/ladder.py:10m", {**asked, "train.seconds": 100.0, "train.tokens_per_sec": 1e6}
  )
  counted = load_config("configs/ladder.py:10m", {**asked, "train.tokens": 100_000_000})
  assert timed.optim.peak_lr == counted.optim.peak_lr


# ---- One run -------------------------------------------------------------------------------------


def test_a_run_measures_its_speed_once_and_keeps_it(tmp_path, monkeypatch):
  monkeypatch.setattr(speed, "MOST", 4)
  words = {"train__steps": None, "train__seconds": 0.02, "eval__every_steps": None}
  printed = run(tmp_path / "r", **words)
  cfg = rundir.read_config(tmp_path / "r")
  assert cfg.train.steps == max(1, round(0.02 * cfg.train.tokens_per_sec / (16 * 8)))
  assert f", 0.02 s at {cfg.train.tokens_per_sec:,.0f} tokens/s" in printed
  monkeypatch.setattr(speed, "tokens_per_sec", lambda *_: 1 / 0)  # known by now
  assert "done: " in run(tmp_path / "r", **words)
  assert rundir.read_config(tmp_path / "r") == cfg


def test_a_measured_speed_is_that_of_the_steps(tmp_path, monkeypatch):
  monkeypatch.setattr(speed, "SECONDS", 0.1)
  plan = json.loads(
    run(
      tmp_path / "r", "--plan", "--json", train__steps=None, train__seconds=10.0,
      eval__every_steps=None,
    )
  )  # fmt: skip
  assert plan["tokens"] == pytest.approx(10 * plan["tokens_per_sec"], rel=0.01)
  assert 1_000 < plan["tokens_per_sec"] < 10_000_000 and not (tmp_path / "r").exists()


@pytest.mark.parametrize(("words", "match"), [
  (["--config.train.tokens_per_sec=5"], "train.tokens_per_sec=5.0: is read with train.seconds only"),
  (["--config.train.steps=None", "--config.train.seconds=0"], "train.seconds=0.0: must be greater than 0"),
  (["--config.train.seconds=9"], "train.steps=60: exactly one budget"),
  (["--config.train.steps=None", "--config.train.seconds=9", "--config.rules=bjorck"],
   "train.seconds=9: needs the run's speed"),
])  # fmt: skip
def test_what_cannot_be_is_refused(tmp_path, words, match, never_measured):
  with pytest.raises(ConfigError, match=match):
    train.main(["--config", SMOKE, "--workdir", str(tmp_path / "r"), *words])


def test_devices_that_are_not_at_hand_are_not_timed(never_measured):
  cfg = load_config(SMOKE, SECONDS)
  assert speed.measured([cfg], 257, ["a pod"], None, [None]) == [cfg]
  with pytest.raises(
    ConfigError, match=r"train.seconds=2: needs the run's speed, which is not meas"
  ):
    resolve(cfg, 257, 8)


def test_steps_that_are_not_all_alike_are_not_timed(tmp_path, never_measured):
  words = ["--config.train.steps=None", "--config.train.tokens=None", "--config.train.seconds=9"]
  with pytest.raises(
    ConfigError, match=r"train.seconds=9: steps of objective.name=adversarial are "
  ):
    train.main(["--config", "configs/gan.py", "--workdir", str(tmp_path / "r"), *words])


def test_stacked_runs_are_not_timed(tmp_path, never_measured):
  lines = [
    json.dumps(
      {"config": SMOKE, "workdir": str(tmp_path / f"{i}"), "overrides": {**SECONDS, "seed": i}}
    )
    for i in range(2)
  ]
  (tmp_path / "stack.jsonl").write_text("\n".join(lines) + "\n")
  with pytest.raises(
    ConfigError, match=r"train.seconds=2: stacked runs are not timed; set train.tok"
  ):
    train.main(["--stack", str(tmp_path / "stack.jsonl")])


# ---- Sweeps --------------------------------------------------------------------------------------


@pytest.fixture
def probes(monkeypatch):
  """Probes that find 1e9 FLOP/s; the names of the runs that were probed."""
  calls = []

  def probe(member, slot):
    calls.append(member.name)
    return {"flops_per_step": throughput.step_flops(member.cfg), "flops_per_sec": 1e9,
            "overhead": 5.0, "compiling": 20.0}  # fmt: skip

  monkeypatch.setattr(throughput, "_probe", probe)
  monkeypatch.setattr(slots, "find_devices", lambda: slots.Devices("cpu", "cpu", 1))
  return calls


def told(runs, folder):
  return throughput.told(runs, folder, lambda members: slots.Slot({}, (0,)))


def test_each_program_of_a_sweep_is_probed_once_whatever_its_seconds(tmp_path, probes):
  runs = [
    Run(f"w{w}s{s}r{r}", {**SECONDS, "train.seconds": s, "model.width": w, "optim.peak_lr": r,
                          "data.cache_dir": str(tmp_path)}, SMOKE)
    for w in (32, 64) for s in (2.0, 4.0) for r in (1e-3, 3e-3)
  ]  # fmt: skip
  found = told(runs, tmp_path)
  assert probes == ["w32s2.0r0.001", "w64s2.0r0.001"]
  small, _, longer, *_, large = sweep.resolve_runs(found, tmp_path)
  assert longer.cfg.train.tokens == pytest.approx(2 * small.cfg.train.tokens, rel=0.01)
  assert longer.cfg.train.flops > small.cfg.train.flops
  for member in (small, large):  # 2 and 4 seconds of 1e9 FLOP/s
    steps = member.cfg.train.seconds * 1e9 / throughput.step_flops(member.cfg)
    assert member.cfg.train.steps == round(steps)
  assert throughput.measured(sweep.resolve_runs(found, tmp_path), slots.Slot({}, (0,)))
  assert len(probes) == 2  # the plan's estimate rests on the same probes


def test_runs_that_were_begun_or_say_their_speed_are_not_probed(tmp_path, probes):
  begun = Run("begun", SECONDS, SMOKE)
  cfg = resolved(train__seconds=2.0, train__tokens_per_sec=777.0)
  (tmp_path / "begun").mkdir()
  rundir.open_run(tmp_path / "begun", cfg, {})
  given = Run("given", {**SECONDS, "train.tokens_per_sec": 5.0}, SMOKE)
  other = Run("other", {}, SMOKE)
  found = told([begun, given, other], tmp_path)
  assert not probes and found[1:] == (given, other)
  assert found[0].overrides == {**SECONDS, "train.tokens_per_sec": 777.0}


def test_runs_elsewhere_must_say_their_speed(tmp_path, capsys):
  words = "plan --config configs/smoke.py --set train.steps=None --grid train.seconds=2,4"
  more = ["--root", str(tmp_path), "--save_as", "s", "--on", "slurm", "--chip", "h100"]
  with pytest.raises(ConfigError, match=r"run seconds=2: train.seconds=2: needs the run's speed"):
    main([*words.split(), *more])
  assert main([*words.split(), "--set", "train.tokens_per_sec=1000", *more, "--json"]) == 0
  rows = json.loads(capsys.readouterr().out)["runs"]
  assert [row["n_tokens"] for row in rows] == [2048, 4096]


def test_a_sweep_whose_seconds_have_changed_is_stale():
  asked = load_config(SMOKE, SECONDS)
  row = {**flatten(asked), "steps": 4, "status": "done"}
  now = sweep.checked(Run("r", {**SECONDS, "train.seconds": 4.0}, SMOKE), row)
  assert now["reason"] == "trained with train.seconds=2.0, now asked for with 4.0"
