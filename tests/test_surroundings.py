"""What happens around a run (disks, memory, signals, paths, bad numbers): a line is said, nothing is lost."""

import errno
import inspect
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

import train
from lm import evaluate
from lm.config.errors import ConfigError
from lm.data.batches import TrainBatches
from lm.hf import __main__ as hf
from lm.runs import provenance, reproduce, room, rundir
from lm.runs.checkpoint import load_params
from lm.runs.resume import restore_newest
from lm.runs.writer import RunWriter
from lm.training.watchdog import Watchdog
from tests.trained import records, run

ROOT = pathlib.Path(__file__).parent.parent
SAVES = {"checkpoint__every_steps": 2, "checkpoint__keep": 4, "log__every_steps": 1}


def at_batch(monkeypatch, number, change):
  """Lets `change` of its arrays happen to a batch of training, wherever it is drawn."""
  plain = TrainBatches.at

  def at(self, step, rows=None):
    batch = plain(self, step, rows)
    return change(dict(batch)) if step == number else batch

  monkeypatch.setattr(TrainBatches, "at", at)


def poison(batch):
  batch["weights"] = batch["weights"] * np.float32(np.inf)
  return batch


def fail_with(error):
  def change(batch):
    raise error

  return change


def assert_finite(workdir):
  for step in rundir.checkpoint_steps(workdir):
    for leaf in jax.tree.leaves(load_params(workdir, str(step))[0]):
      assert np.isfinite(leaf).all(), step


# --- numbers that are none --------------------------------------------------------------------------


def test_a_run_stops_at_a_number_that_is_none_and_saves_none(tmp_path, monkeypatch):
  at_batch(monkeypatch, 5, poison)  # in step 6, which would be saved
  said = run(tmp_path / "x", code=1, **SAVES)
  about = rundir.read_run(tmp_path / "x")
  assert about["status"] == "failed" and about["reason"] in said
  assert about["reason"].startswith("step 6: train/loss is nan; last good checkpoint: step 4")
  assert rundir.checkpoint_steps(tmp_path / "x") == {2, 4}
  assert_finite(tmp_path / "x")


@pytest.mark.parametrize("rule", ["skip", "rewind"])
def test_a_bad_step_is_passed_over_by_rule_and_recorded(tmp_path, monkeypatch, rule, capfd):
  at_batch(monkeypatch, 5, poison)
  workdir, frames = tmp_path / "x", []
  restore = train.restore_newest

  def counted(*args):
    frames.append([f.function for f in inspect.stack()].count(train.train.__wrapped__.__name__))
    return restore(*args)

  monkeypatch.setattr(train, "restore_newest", counted)
  run(workdir, train__on_nonfinite=rule, **SAVES)
  assert frames == ([1] if rule == "skip" else [1, 1])  # no state of before is held
  assert rundir.read_run(workdir)["status"] == "done"
  assert_finite(workdir)
  found = {record["step"]: record for record in records(workdir)}
  assert list(found) == list(range(1, 9))
  assert "step 6" in capfd.readouterr().err
  if rule == "skip":
    assert [found[step]["train/skipped"] for step in range(1, 9)] == [0, 0, 0, 0, 0, 1, 0, 0]
    assert found[6]["tokens"] == found[5]["tokens"] and "train/loss" not in found[6]
    assert found[6]["train/param_norm"] == found[5]["train/param_norm"]
  else:
    assert rundir.read_run(workdir)["rewinds"] == [{"bad": 6, "to": 4, "why": "train/loss is nan"}]
    assert found[8]["tokens"] == 8 * found[1]["tokens"]
  before = (workdir / "metrics.jsonl").read_bytes()
  shutil.rmtree(workdir / "checkpoints" / "8")
  assert "resumed at step 6" in run(workdir, train__on_nonfinite=rule, **SAVES)
  assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_after_a_rewind_come_the_batches_past_the_window(tmp_path, monkeypatch):
  drawn = []
  plain = TrainBatches.at

  def at(self, step, rows=None):
    drawn.append(step)
    batch = plain(self, step, rows)
    return poison(dict(batch)) if step == 5 else batch

  monkeypatch.setattr(TrainBatches, "at", at)
  run(tmp_path / "x", train__on_nonfinite="rewind", **SAVES)
  again = drawn[drawn.index(5) + 1 :]
  again = again[again.index(6) if again[0] != 6 else 0 :]
  assert 5 not in again and {6, 7, 8, 9} <= set(again)


def terminate(batch):
  signal.raise_signal(signal.SIGTERM)
  return batch


REWINDS = {"train__on_nonfinite": "rewind", "log__every_steps": 1, "checkpoint__every_steps": 3}


@pytest.fixture(scope="module")
def rewound(tmp_path_factory):
  """A run that went back from step 6 to step 3, left alone."""
  workdir = tmp_path_factory.mktemp("rewound") / "x"
  with pytest.MonkeyPatch.context() as patch:
    at_batch(patch, 5, poison)
    run(workdir, eval__every_steps=8, checkpoint__keep=4, **REWINDS)
  assert rewinds(workdir) == [(6, 3)]
  return workdir


def rewinds(workdir):
  return [(r["bad"], r["to"]) for r in rundir.read_run(workdir)["rewinds"]]


def differences(a, b):
  return reproduce.record_differences(a, b) + reproduce.parameter_differences(a, b)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_checkpoint_that_a_signal_had_saved_changes_no_rewind(
  rewound, tmp_path, monkeypatch, keep
):
  """The run goes back past it, to where it would go back if it had been left alone."""
  settings = {"eval__every_steps": 8, "checkpoint__keep": keep, **REWINDS}
  with monkeypatch.context() as patch:
    at_batch(patch, 4, terminate)
    run(tmp_path / "x", code=143, **settings)
  assert max(rundir.checkpoint_steps(tmp_path / "x")) in (4, 5)
  at_batch(monkeypatch, 5, poison)
  run(tmp_path / "x", **settings)
  assert rewinds(tmp_path / "x") == [(6, 3)]
  assert differences(rewound, tmp_path / "x") == []


def test_a_run_that_is_stopped_as_it_goes_back_is_interrupted(rewound, tmp_path, monkeypatch):
  """Engines start again what run.json says to be that."""
  settings = {"eval__every_steps": 8, "checkpoint__keep": 4, **REWINDS}
  at_batch(monkeypatch, 5, poison)
  with monkeypatch.context() as patch:
    go_back = RunWriter._rewind
    patch.setattr(RunWriter, "_rewind", lambda *args: terminate(go_back(*args)))
    run(tmp_path / "x", code=143, **settings)
  assert rundir.read_run(tmp_path / "x")["status"] == "interrupted"
  run(tmp_path / "x", **settings)
  assert differences(rewound, tmp_path / "x") == []


def test_without_run_json_the_checkpoint_knows_which_batches_come_next(
  rewound, tmp_path, monkeypatch
):
  settings = {"eval__every_steps": 8, "checkpoint__keep": 4, **REWINDS}
  shutil.copytree(rewound, tmp_path / "x")
  shutil.rmtree(tmp_path / "x" / "checkpoints" / "8")
  (tmp_path / "x" / "run.json").unlink()
  assert "resumed at step 6" in run(tmp_path / "x", **settings)
  assert rewinds(tmp_path / "x") == [(6, 3)]
  assert differences(rewound, tmp_path / "x") == []


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["skip", "rewind"])
def test_a_run_that_is_broken_for_good_fails(tmp_path, rule):
  broken = {"optim__peak_lr": 1e30, "optim__clip_norm": "None", "optim__warmup_frac": 0.0}
  run(tmp_path / "x", code=1, train__on_nonfinite=rule, train__steps=40, **broken, **SAVES)
  about = rundir.read_run(tmp_path / "x")
  assert about["status"] == "failed"
  assert ("the 20th step in a row that is skipped" in about["reason"]) == (rule == "skip")
  assert len(about["rewinds"]) == (10 if rule == "rewind" else 0)


@pytest.mark.slow
def test_the_rules_change_nothing_where_all_numbers_are(tmp_path):
  for rule in ("stop", "skip", "rewind"):
    run(tmp_path / rule, train__on_nonfinite=rule)
  losses = [
    [r["train/loss"] for r in records(tmp_path / rule)] for rule in ("stop", "skip", "rewind")
  ]
  assert losses[0] == losses[2]
  np.testing.assert_allclose(losses[1], losses[0], rtol=1e-6)


@pytest.mark.parametrize("number", [0, 5])
def test_a_late_refusal_deletes_nothing_that_is_worth_keeping(tmp_path, monkeypatch, number):
  at_batch(monkeypatch, number, fail_with(ConfigError("x=1: no")))
  workdir = tmp_path / "x"
  workdir.mkdir()
  (workdir / "notes.txt").write_text("mine")
  with pytest.raises(ConfigError, match="x=1: no"):
    run(workdir, **SAVES)
  assert (workdir / "notes.txt").read_text() == "mine"
  assert rundir.checkpoint_steps(workdir) == ({2, 4} if number else set())
  assert rundir.read_run(workdir).get("status") == ("failed" if number else None)


# --- memory and disks -------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [
  MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")
])  # fmt: skip
def test_out_of_memory_says_what_the_plan_counts_and_what_would_fit(
  tmp_path, monkeypatch, error, capfd
):
  at_batch(monkeypatch, 3, fail_with(error))
  monkeypatch.setattr("lm.runs.room.device_bytes", lambda: 1.2e6)
  run(tmp_path / "x", code=1, **SAVES)
  line = capfd.readouterr().err.strip().splitlines()[-1]
  assert line.startswith(f"{tmp_path / 'x'}: out of memory: the plan counts ")
  assert "activations), and a device has 1.2 MB" in line
  assert rundir.read_run(tmp_path / "x")["status"] == "failed"


def test_what_cannot_be_held_is_refused_before_anything_is_made(tmp_path, monkeypatch):
  """Three float32 numbers a parameter: itself and adamw's two means."""
  plan = json.loads(run(tmp_path / "x", "--plan", "--json", **SAVES))
  held = 12 * plan["parameters"]["total"] * jax.local_device_count()
  monkeypatch.setattr("lm.runs.room.device_bytes", lambda: held - 1.0)
  with pytest.raises(
    ConfigError, match=r"^model.width=16: parameters and optimizer state are .*; shard it"
  ):
    run(tmp_path / "x", **SAVES)
  assert not (tmp_path / "x").exists()
  monkeypatch.setattr("lm.runs.room.device_bytes", lambda: held + 1.0)
  run(tmp_path / "x", **SAVES)


def test_memory_of_a_container_is_what_it_may_use(tmp_path, monkeypatch):
  limit = tmp_path / "memory.max"
  monkeypatch.setattr(room, "CGROUP", limit)
  whole = room.device_bytes()
  for text, found in (("max\n", whole), ("1000000\n", 1e6), ("", whole)):
    limit.write_text(text)
    assert room.device_bytes() == found


FULL = {
  "system": OSError(errno.ENOSPC, "No space left on device"),
  "tensorstore": ValueError("RESOURCE_EXHAUSTED: Failed to write 9 bytes: No space left on device"),
}


@pytest.mark.parametrize("said_by", FULL)
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(tmp_path, monkeypatch, capfd, said_by):
  with monkeypatch.context() as patched:
    at_batch(patched, 5, fail_with(FULL[said_by]))
    run(tmp_path / "x", code=1, **SAVES)
  line = capfd.readouterr().err.strip().splitlines()[-1]
  assert line.endswith(
    "no room left on the disk; free some, and the same command goes on from step 4"
  )
  assert "resumed at step 4" in run(tmp_path / "x", **SAVES)


LIMITED = (
  "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, -1)); "
  "sys.argv = sys.argv[1:]; runpy.run_path('train.py', run_name='__main__')"
)


def command(*words, workdir, **env):
  flags = ["--config=configs/smoke.py", f"--workdir={workdir}", "--config.mesh.replica=1"]
  flags += ["--config.train.steps=40", "--config.eval.every_steps=10"]
  return dict(
    args=[sys.executable, *words[:1], *flags, *words[1:]],
    cwd=ROOT, env={**os.environ, "XLA_FLAGS": "", **env}, stdout=subprocess.PIPE,
    stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


@pytest.mark.slow
def test_files_that_cannot_grow_end_a_run_in_one_line(tmp_path):
  """A real limit of the system, met while a checkpoint is written; the checkpoint does not count."""
  words = command("train.py", "--config.model.width=128", workdir=tmp_path / "x")
  words["args"][1:2] = ["-c", LIMITED, "train.py"]
  done = subprocess.run(**words, timeout=300)
  assert done.returncode == 1, done.stderr
  assert done.stderr.splitlines()[-1].startswith(str(tmp_path)), done.stderr
  assert done.stderr.endswith("the same command goes on from the beginning\n"), done.stderr
  assert "Traceback" not in done.stderr
  assert rundir.read_run(tmp_path / "x")["status"] in ("failed", "running")
  done = subprocess.run(**command("train.py", "--config.model.width=128", workdir=tmp_path / "x"))
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("place", ["/proc/x", "/dev/null/x"])
def test_a_folder_that_cannot_be_made_is_one_line(place):
  with pytest.raises(ConfigError, match=f"workdir={place}: cannot be written"):
    run(pathlib.Path(place))


@pytest.mark.slow
def test_without_a_home_and_a_folder_for_temporary_files(tmp_path):
  env = {"HOME": "/proc/none", "TMPDIR": "/proc/none"}
  done = subprocess.run(**command("train.py", workdir=tmp_path / "x", **env), timeout=300)
  assert done.returncode == 2 and done.stderr.startswith("data.cache_dir=~/.cache/isoflop: cannot")
  assert done.stderr.count("\n") == 1 and not (tmp_path / "x").exists()
  cache = f"--config.data.cache_dir={tmp_path / 'cache'}"
  done = subprocess.run(**command("train.py", cache, workdir=tmp_path / "x", **env), timeout=300)
  assert done.returncode == 0, done.stderr


def test_data_deleted_while_a_run_trains_do_not_stop_it(tmp_path, monkeypatch):
  lines = [f"line {i} of a small corpus, {i * i}" for i in range(60)]
  (tmp_path / "corpus.txt").write_text("\n".join(lines))

  def delete(batch):
    (tmp_path / "corpus.txt").unlink(missing_ok=True)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    return batch

  at_batch(monkeypatch, 3, delete)
  settings = {
    "data__sources": f"text:{tmp_path}/corpus.txt", "data__text_unit": "line",
    "data__cache_dir": str(tmp_path / "cache"), "data__val_fraction": 0.3,
  }  # fmt: skip
  run(tmp_path / "x", **settings, **SAVES)
  shutil.rmtree(tmp_path / "x" / "checkpoints" / "8")
  with pytest.raises(ConfigError, match=r"corpus\.txt"):
    run(tmp_path / "x", **settings, **SAVES)


# --- paths, clocks, signals -------------------------------------------------------------------------


def test_paths_with_spaces_and_signs_of_all_kinds(tmp_path, monkeypatch):
  workdir = tmp_path / "a run; été 雪 $HOME 'x'"
  monkeypatch.setattr(sys, "argv", ["train.py", "--workdir", str(workdir)])
  said = run(workdir, **SAVES)
  commands = said.partition("next:\n")[2].strip().splitlines()
  assert len(commands) == 3
  for line in commands:
    assert any(word.startswith(str(workdir)) for word in shlex.split(line)), line
  assert evaluate.evaluate_run(workdir, max_tokens=512)["step"] == 8


def test_a_clock_that_jumps_back_changes_nothing(tmp_path, monkeypatch):
  times = iter(range(10**9, 0, -1000))
  monkeypatch.setattr(time, "time", lambda: float(next(times)))
  run(tmp_path / "x", **SAVES)
  assert [r["step"] for r in records(tmp_path / "x")] == list(range(1, 9))


def test_a_step_that_hangs_has_its_stacks_printed_once(tmp_path):
  with open(tmp_path / "said", "w+") as file, Watchdog(0.05, file) as watchdog:
    watchdog.beat(1)
    time.sleep(0.3)  # the first one compiles
    watchdog.beat(2)
    time.sleep(0.4)
    file.seek(0)
    said = file.read()
  assert said.count("over train.hang_seconds=0.05; the stacks of all threads:") == 1
  assert said.startswith("step 2 has taken ") and "test_surroundings.py" in said
  with Watchdog(None) as watchdog:
    watchdog.beat(1)


def test_what_is_refused_leaves_no_directory(tmp_path, monkeypatch):
  for changes in (
    {"data__sources": "text:nowhere.txt"}, {"eval__tokens": 1}, {"model__width": 15},
    {"train__init_from": "nowhere"}, {"optim__groups": "nothing_like_it:frozen"},
  ):  # fmt: skip
    with pytest.raises(ConfigError):
      run(tmp_path / "x", **changes)
    assert not (tmp_path / "x").exists(), changes

  def refuse(*_):
    raise ConfigError("workdir=x: no")

  monkeypatch.setattr(train, "restore_newest", refuse)
  with pytest.raises(ConfigError):
    run(tmp_path / "x")  # refused late, when the directory had been made
  assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("other", "said"), [({20, 40}, True), (set(), True), (None, False)])
def test_runs_that_share_no_checkpoint_say_that_they_begin_anew(other, said, capsys):
  held = lambda name, steps: types.SimpleNamespace(
    workdir=name, checkpoints=types.SimpleNamespace(steps=lambda: steps)
  )
  runs = [held("a", {10, 30} if said else set())]
  runs += [held("b", other)] if other is not None else []
  assert restore_newest(runs, None) == ([], 0)
  assert ("('a': 30" in capsys.readouterr().err.replace("{", "(")) == said


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once_and_nothing_is_lost(tmp_path):
  quiet = command(
    "train.py",
    "--config.train.steps=4000",
    "--config.checkpoint.every_steps=20",
    workdir=tmp_path / "x",
  )
  process = subprocess.Popen(**quiet)
  while not (tmp_path / "x" / "checkpoints" / "20").exists():
    assert process.poll() is None, process.communicate()
    time.sleep(0.05)
  for _ in range(2):
    process.send_signal(signal.SIGTERM)
    time.sleep(0.01)
  process.communicate(timeout=60)
  assert process.returncode in (143, -signal.SIGTERM)
  resumed = command(
    "train.py",
    "--config.train.steps=4000",
    "--config.checkpoint.every_steps=20",
    workdir=tmp_path / "x",
  )
  process = subprocess.Popen(**resumed)
  line = ""
  while "resumed at step" not in line:
    line = process.stdout.readline()
    assert line, process.communicate()
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=60)
  # Before the loop listens the system ends it by the signal itself, which shells call 143 too.
  assert process.returncode in (143, -signal.SIGTERM)


# --- Weights & Biases -------------------------------------------------------------------------------


class FakeRun:
  def __init__(self, calls):
    self.calls = calls

  def __getattr__(self, name):
    return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


class FakeWandb:
  Settings = dict

  def __init__(self, refuse=()):
    self.calls, self.refuse = [], refuse

  def init(self, **kwargs):
    self.calls.append(("init", (), kwargs))
    if kwargs["mode"] in self.refuse:
      raise RuntimeError("API key must be 40 characters\nand more")
    return FakeRun(self.calls)


def test_an_interrupted_run_is_marked_and_curves_have_three_axes(tmp_path, monkeypatch):
  fake = FakeWandb()
  monkeypatch.setitem(sys.modules, "wandb", fake)
  at_batch(monkeypatch, 5, lambda batch: signal.raise_signal(signal.SIGTERM) or batch)
  run(tmp_path / "x", code=143, log__wandb="offline", **SAVES)
  names = [name for name, *_ in fake.calls]
  assert names.index("mark_preempting") == names.index("finish") - 1
  defined = [args[0] for name, args, _ in fake.calls if name == "define_metric"]
  assert {"step", "progress/tokens", "progress/flops", "train/*", "eval/*"} <= set(defined)
  config = fake.calls[0][2]["config"]
  assert config["run"]["parameters"]["total"] > 0 and config["run"]["flops"]["6ND"] > 0
  assert set(config["run"]["fingerprints"]) == {"corpus", "tokenizer"}
  assert {"commit", "device", "versions"} <= set(config["run"])
  logged = [args[0] for name, args, _ in fake.calls if name == "log"]
  assert {"step", "progress/tokens", "progress/flops", "train/loss"} <= set(logged[0])


def test_a_key_that_is_refused_keeps_the_run_offline(tmp_path, monkeypatch, capfd):
  fake = FakeWandb(refuse=("online",))
  monkeypatch.setitem(sys.modules, "wandb", fake)
  run(tmp_path / "x", log__wandb="online", **SAVES)
  assert [kw["mode"] for name, _, kw in fake.calls if name == "init"] == ["online", "offline"]
  said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("wandb:")]
  assert len(said) == 1 and "API key must be 40 characters; kept offline in" in said[0]


@pytest.mark.slow
def test_a_wrong_key_without_a_network_stops_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr("lm.runs.wandb_mirror.INIT_SECONDS", 5.0)
  monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
  monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
  monkeypatch.delenv("WANDB_MODE", raising=False)
  run(tmp_path / "x", log__wandb="online", **SAVES)
  assert rundir.read_run(tmp_path / "x")["status"] == "done"
  assert [r["step"] for r in records(tmp_path / "x")] == list(range(1, 9))


def test_a_git_that_does_not_answer_in_time_stops_no_run(monkeypatch):
  def slow(command, **options):
    raise subprocess.TimeoutExpired(command, options["timeout"])

  monkeypatch.setattr(provenance.subprocess, "run", slow)
  assert provenance.git_state() == {"commit": None, "dirty": None, "uncommitted": None}


def test_what_is_not_committed_is_told_apart(tmp_path, monkeypatch):
  git = lambda *words: subprocess.run(
    ["git", *words], cwd=tmp_path, check=True, capture_output=True
  )
  file = tmp_path / "code.py"
  file.write_text("a = 1\n")
  git("init")
  git("add", "code.py")
  git("-c", "user.name=x", "-c", "user.email=x@example.com", "commit", "-m", "x")
  monkeypatch.setattr(provenance, "__file__", str(file))
  found = []
  for text in ("a = 1\n", "a = 2\n", "a = 3\n", "a = 2\n"):
    file.write_text(text)
    state = provenance.git_state()
    assert state["dirty"] == (text != "a = 1\n") == (state["uncommitted"] is not None)
    found.append(state["uncommitted"])
  assert len(set(found)) == 3 and found[1] == found[3]
  git("config", "diff.noprefix", "true")
  assert provenance.git_state()["uncommitted"] == found[1]


# --- terminals and names that know no UTF-8 ---------------------------------------------------------


def test_a_folder_whose_name_is_no_text_is_refused_before_training(tmp_path):
  name = os.fsdecode(os.fsencode(tmp_path) + b"/r\xe9n")
  for use in (
    lambda: train.main(["--config", "configs/smoke.py", "--workdir", name]),
    lambda: hf.main(["export", "--workdir", str(tmp_path), "--to", name]),
    lambda: hf.main(["import", "--from", str(tmp_path), "--workdir", name]),
  ):
    with pytest.raises(ConfigError, match=r"r\\udce9n': is no text in UTF-8; choose another name"):
      use()
  assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_a_terminal_without_utf8_shows_numbers_instead():
  ledger = "experiments/results/lr_sweep/ledger.jsonl"  # its sources have a paragraph sign
  words = ["-m", "experiments", "fit", "lr_sweep", "--ledger", ledger]
  plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
  done = subprocess.run(
    [sys.executable, *words],
    cwd=ROOT,
    env={**os.environ, **plain},
    capture_output=True,
    check=False,
  )
  assert done.returncode == 0 and b"\\xa7" in done.stdout, done.stderr


# --- signals before anything runs -------------------------------------------------------------------

PROGRAMS = {
  "train": ["train.py", "--config", "configs/smoke.py"],
  "evaluate": ["-m", "lm.evaluate", "--workdir", "runs/x"],
  "generate": ["-m", "lm.generate", "--workdir", "runs/x", "--prompt", "a"],
  "inspect": ["-m", "lm.inspect", "--workdir", "runs/x", "--text", "a"],
  "embed": ["-m", "lm.embed", "--workdir", "runs/x", "--text", "a"],
  "compact": ["-m", "lm.compact", "--workdir", "runs/x", "--to", "runs/y", "--bits", "8"],
  "hf": ["-m", "lm.hf", "export", "--workdir", "runs/x", "--to", "runs/y"],
  "experiments": ["-m", "experiments", "report", "lr_sweep"],
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_signal_while_a_program_imports_is_one_line(tmp_path, program, number):
  (tmp_path / "numpy.py").write_text(  # an import that swallows exceptions, as some do
    f"import os\ntry:\n  os.kill(os.getpid(), {int(number)})\nexcept BaseException:\n  pass\n"
  )
  env = {**os.environ, "PYTHONPATH": str(tmp_path)}
  # A shell ignores SIGINT for what it starts beside itself, and what is ignored is inherited.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    made = subprocess.run(
      [sys.executable, *PROGRAMS[program]],
      cwd=ROOT,
      env=env,
      capture_output=True,
      text=True,
      timeout=60,
    )
  finally:
    signal.signal(signal.SIGINT, before)
  word = "interrupted" if number == signal.SIGINT else "terminated"
  said = f"{word}; nothing was lost: run the same command again\n"
  assert (made.returncode, made.stdout, made.stderr) == (128 + number, "", said)


def test_a_signal_inside_a_finalizer_is_not_lost():
  code = """
import os, signal, time, weakref
from lm.config import interrupts
from lm.config.command_line import run_main

class Thing: pass

def main(argv):
  thing = Thing()
  watched = weakref.ref(thing, lambda _: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0)))
  del thing
  time.sleep(30)

interrupts.listen()
run_main(main)
"""
  made = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20
  )
  said = "terminated; nothing was lost: run the same command again\n"
  assert (made.returncode, made.stderr) == (143, said)
