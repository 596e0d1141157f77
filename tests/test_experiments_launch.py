"""The launcher against processes that only pretend to train, and both back ends against train.py."""

import errno
import fcntl
import io
import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from experiments.commands import running, which
from experiments.commands.command_line import make_parser
from experiments.launch import jobs, local, locks, loop, slots, stacks
from experiments.launch.jobs import Job
from experiments.launch.local import Local
from experiments.launch.slots import Devices, Slot
from experiments.ledger.ledger import read_ledger
from experiments.ledger.rows import read_row
from experiments.report import live
from experiments.sweep import Run, sweep
from lm.config.errors import ConfigError
from lm.files import read_jsonl
from lm.runs import lock
from tests.fake_runs import SMOKE, fake_run

# A worker: appends to `starts`, behaves, and leaves the files of a finished run in its place.
WORKER = """
import os, pathlib, shutil, signal, sys, time
workdir, template, behaviour = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with open(workdir / "starts", "a") as f: f.write(f"{os.getpid()} {os.environ.get('PLACE', '')}\\n")
asked = []
signal.signal(signal.SIGINT, lambda *_: asked.append(1))
if behaviour == "stubborn":
  shutil.copytree(template + "-running", workdir, dirs_exist_ok=True)
  while len(asked) < 2: time.sleep(0.02)
  signal.signal(signal.SIGINT, signal.SIG_DFL)
  os.kill(os.getpid(), signal.SIGINT)
if behaviour == "slow":
  for _ in range(200):
    time.sleep(0.05)
    if asked: break
    if (workdir / "go").exists(): break
if behaviour == "crash":
  print("some text")
  print("MemoryError: too large")
  sys.exit(1)
if behaviour == "die": os.kill(os.getpid(), signal.SIGKILL)
shutil.copytree(template + ("-interrupted" if asked else "-done"), workdir, dirs_exist_ok=True)
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
  folder = tmp_path_factory.mktemp("templates")
  fake_run(folder / "run-done")
  fake_run(folder / "run-interrupted", status="interrupted")
  fake_run(folder / "run-running", status="running")
  return str(folder / "run")


@pytest.fixture
def pretend(tmp_path, template):
  """make(behaviours) -> (members, make_jobs): one pretended run each."""

  def make(*behaviours):
    runs = [Run(f"r{i}", {"seed": 0}, SMOKE) for i in range(len(behaviours))]
    members = sweep.resolve_runs(runs, tmp_path)
    how = dict(zip((m.name for m in members), behaviours, strict=True))

    def make_jobs(todo):
      command = (sys.executable, "-S", "-c", WORKER)
      return [
        Job((m,), (*command, str(m.workdir), template, how[m.name]), m.workdir / "log.txt")
        for m in todo
      ]

    return members, make_jobs

  return make


def starts(member):
  path = member.workdir / "starts"
  return len(path.read_text().splitlines()) if path.exists() else 0


def run_all(members, make_jobs, slots=2, **options):
  places = [Slot({"PLACE": str(i)}, None) for i in range(slots)]
  with live.Watch("test", io.StringIO()) as watch:
    return loop.launch(lambda rows: members, Local(places, make_jobs), watch, **options)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(local, "POLL", 0.02)


def test_every_run_is_trained_once_and_a_second_launch_does_nothing(pretend):
  members, make_jobs = pretend("well", "well", "well")
  rows, interrupted = run_all(members, make_jobs)
  assert [rows[m.name]["status"] for m in members] == ["done"] * 3 and not interrupted
  run_all(members, make_jobs)
  assert [starts(m) for m in members] == [1, 1, 1]


def test_a_crash_is_a_failure_with_its_last_line_and_is_retried_only_on_request(pretend):
  members, make_jobs = pretend("crash", "well")
  rows, _ = run_all(members, make_jobs)
  assert rows["r0"]["status"] == "failed" and rows["r0"]["reason"] == "MemoryError: too large"
  assert rows["r1"]["status"] == "done"
  assert read_row(str(members[0].workdir))["reason"] == "MemoryError: too large"  # and it lasts
  run_all(members, make_jobs)
  assert starts(members[0]) == 1
  run_all(members, make_jobs, retry=True)
  assert starts(members[0]) == 2 and starts(members[1]) == 1


def test_a_killed_run_is_not_a_failure_and_the_next_launch_goes_on(pretend):
  members, make_jobs = pretend("die")
  rows, _ = run_all(members, make_jobs)
  assert rows["r0"]["status"] == "stopped" and "SIGKILL (out of memory?)" in rows["r0"]["reason"]
  run_all(members, make_jobs)
  assert starts(members[0]) == 2


def test_one_signal_interrupts_all_and_all_can_go_on(pretend):
  members, make_jobs = pretend("slow", "slow", "slow")

  def interrupt():
    while sum(map(starts, members)) < 2:
      time.sleep(0.02)
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=interrupt).start()
  rows, interrupted = run_all(members, make_jobs)
  assert interrupted
  assert [rows[m.name]["status"] for m in members] == ["interrupted", "interrupted", "waiting"]
  for member in members:
    (member.workdir / "go").touch()
  rows, interrupted = run_all(members, make_jobs)
  assert {row["status"] for row in rows.values()} == {"done"} and not interrupted
  assert [starts(m) for m in members] == [2, 2, 1]


def test_a_second_signal_is_passed_on_and_a_run_that_had_trained_is_said_to_have(pretend):
  """It was said to have been stopped before it trained."""
  (member,), make_jobs = pretend("stubborn")

  def interrupt():
    for _ in range(2):
      while not (member.workdir / "metrics.jsonl").exists():
        time.sleep(0.02)
      time.sleep(0.1)
      os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=interrupt).start()
  rows, stopped = run_all([member], make_jobs)
  assert stopped == signal.SIGTERM and rows["r0"]["status"] == "interrupted"
  assert rows["r0"]["reason"] == "at once; run it again and it goes on from its last checkpoint"


def test_a_run_that_another_process_holds_is_waited_for_and_not_started(pretend):
  members, make_jobs = pretend("well", "well")
  held = locks.take(members[0].workdir)
  assert locks.take(members[0].workdir) is None

  def finish():
    time.sleep(0.5)
    fake_run(members[0].workdir)
    held.release()

  other = threading.Thread(target=finish)
  other.start()
  rows, _ = run_all(members, make_jobs)
  other.join()
  assert {row["status"] for row in rows.values()} == {"done"}
  assert starts(members[0]) == 0 and starts(members[1]) == 1


def test_what_others_train_is_said_and_an_interrupt_looks_at_it_again(pretend, capsys):
  """They counted as "left", though they go on, and as at work, though they had ended meanwhile."""
  members, make_jobs = pretend("well", "well", "slow")
  held = [locks.take(m.workdir) for m in members[:2]]
  for member in members[:2]:
    (member.workdir / lock.NAME).write_text(f"{platform.node()} {os.getpid()}\n")
  stream = io.StringIO()

  def end_one_and_interrupt():
    while not starts(members[2]):
      time.sleep(0.02)
    fake_run(members[1].workdir)
    held[1].release()
    os.kill(os.getpid(), signal.SIGINT)

  threading.Thread(target=end_one_and_interrupt).start()
  with live.Watch("test", stream) as watch:
    backend = Local([Slot({"PLACE": "0"}, None)], make_jobs)
    rows, interrupted = loop.launch(lambda rows: members, backend, watch)
  held[0].release()
  assert interrupted and [rows[m.name]["status"] for m in members] == [
    "running",
    "done",
    "interrupted",
  ]
  reason = f"trained by process {os.getpid()} on {platform.node()}, of another launcher"
  assert rows["r0"]["reason"] == reason and f"running r0: {reason}\n" in stream.getvalue()
  options = make_parser("about").parse_args(["run", "lr_sweep"])
  said = running._advice(options, which.select(options), rows)
  assert said.splitlines() == [
    "1 run at work; follow it with: python -m experiments status lr_sweep",
    "1 left; go on with: python -m experiments run lr_sweep",
  ]


def test_a_process_holds_its_runs_lock_until_it_ends(pretend):
  (member,), make_jobs = pretend("slow")
  backend = Local([Slot({}, None)], make_jobs)
  (work,) = loop._submit(make_jobs([member]), backend)
  pid = int(work.ticket.id)
  assert os.getsid(pid) == pid  # a terminal's Ctrl-C does not reach it
  assert locks.take(member.workdir) is None
  (member.workdir / "go").touch()
  while backend.poll([work.ticket])[0].status == "running":
    time.sleep(0.02)
  lock = locks.take(member.workdir)
  assert lock is not None
  lock.release()


def test_a_retried_run_keeps_the_log_of_its_first_attempt(pretend):
  (member,), make_jobs = pretend("crash")
  _rows, _ = run_all([member], make_jobs)
  run_all([member], make_jobs, retry=True)
  log = (member.workdir / "log.txt").read_text()
  assert log.count("MemoryError: too large") == log.count(jobs.STARTED) == 2
  assert jobs.last_attempt(member.workdir / "log.txt").count("MemoryError") == 1
  with open(member.workdir / "log.txt", "a") as file:
    file.write(jobs.start_line())
  assert jobs.last_line(member.workdir / "log.txt") == ""  # not the error of the attempt before


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_where_flock_is_not_supported_a_file_is_the_lock(pretend, monkeypatch, code):
  def unsupported(*_):
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr(fcntl, "flock", unsupported)
  members, make_jobs = pretend("well", "well")
  rows, _ = run_all(members, make_jobs)
  assert {row["status"] for row in rows.values()} == {"done"}
  held = locks.take(members[0].workdir)
  assert held is not None and locks.take(members[0].workdir) is None
  held.release()
  locks.take(members[0].workdir).release()


def test_a_silent_holder_on_another_machine_is_named_and_not_waited_for(pretend, monkeypatch):
  def unsupported(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, "flock", unsupported)
  (member,), make_jobs = pretend("well")
  member.workdir.mkdir()
  marker = member.workdir / ".lock.holder"
  marker.write_text("12345\nfar-away\n")
  assert locks.take(member.workdir) is None  # it may be alive
  for path in member.workdir.iterdir():
    os.utime(path, (time.time() - 2 * locks.SILENT,) * 2)
  with pytest.raises(ConfigError, match=r"held by process 12345 of far-away.*delete .*lock.holder"):
    run_all([member], make_jobs)


def test_an_error_of_the_lock_is_said_and_not_taken_for_a_holder(pretend, monkeypatch):
  def broken(*_):
    raise OSError(errno.EIO, "Input/output error")

  monkeypatch.setattr(fcntl, "flock", broken)
  members, make_jobs = pretend("well")
  with pytest.raises(
    ConfigError, match=r"cannot be locked \(Input/output error\); make it writable"
  ):
    run_all(members, make_jobs)
  assert starts(members[0]) == 0


def test_slots_are_filled_and_never_overfilled(pretend):
  members, make_jobs = pretend(*["well"] * 5)
  most = 0

  class Watch:
    def __call__(self, members, rows, working, stopping):
      nonlocal most
      most = max(most, len(working))

  places = [Slot({"PLACE": str(i)}, None) for i in range(2)]
  loop.launch(lambda rows: members, Local(places, make_jobs), Watch())
  assert most == 2
  used = {
    line.split()[1] for m in members for line in (m.workdir / "starts").read_text().splitlines()
  }
  assert used == {"0", "1"}


def test_more_runs_may_be_wanted_as_runs_end(pretend):
  members, make_jobs = pretend("well", "well", "well")

  def wanted(rows):
    ended = [m for m in members if rows.get(m.name, {}).get("status") == "done"]
    return members[: len(ended) + 1]

  watch = lambda *_: None
  rows, _ = loop.launch(wanted, Local([Slot({}, None)], make_jobs), watch)
  assert len(rows) == 3
  rows, _ = loop.launch(wanted, Local([Slot({}, None)], make_jobs), watch)  # from the directories
  assert len(rows) == 3 and [starts(m) for m in members] == [1, 1, 1]


def test_a_directory_of_another_run_is_refused_before_anything_starts(pretend, tmp_path):
  members, make_jobs = pretend("well", "well")
  fake_run(members[1].workdir, {"optim.b2": 0.5})
  with pytest.raises(ConfigError, match=r"holds another run \(optim.b2=0.5 there"):
    run_all(members, make_jobs)
  assert starts(members[0]) == 0


@pytest.mark.parametrize("retry", [False, True])
def test_a_damaged_run_is_left_alone_and_said_to_be_so(pretend, retry):
  members, make_jobs = pretend("well", "well")
  fake_run(members[1].workdir)
  (members[1].workdir / "config.json").unlink()
  rows, _ = run_all(members, make_jobs, retry=retry)
  assert rows["r0"]["status"] == "done" and starts(members[1]) == 0
  assert rows["r1"]["status"] == "unreadable" and "config.json is missing" in rows["r1"]["reason"]


# ---- Places --------------------------------------------------------------------------------------


def test_accelerators_are_shared_out_whole():
  gpus = Devices("gpu", "NVIDIA H100", 4)
  assert [s.env["CUDA_VISIBLE_DEVICES"] for s in slots.make_slots(gpus, None, 1)] == list("0123")
  assert [s.env["CUDA_VISIBLE_DEVICES"] for s in slots.make_slots(gpus, None, 2)] == ["0,1", "2,3"]
  shared = slots.make_slots(gpus, 6, 1)
  assert [s.env["CUDA_VISIBLE_DEVICES"] for s in shared] == list("012301")
  assert shared[0].env["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
  tpu = slots.make_slots(Devices("tpu", "TPU v5 lite", 4), 2, 1)
  assert [s.env["TPU_VISIBLE_CHIPS"] for s in tpu] == ["0", "1"]
  assert slots.make_slots(gpus, 1, 4) == [Slot({}, None)]  # everything there is
  with pytest.raises(ConfigError, match="this machine has 4"):
    slots.make_slots(gpus, None, 8)
  with pytest.raises(ConfigError, match="workers=0: must be at least 1"):
    slots.make_slots(gpus, 0, 1)


def test_cores_are_shared_out_without_overlap(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
  shares = slots.make_slots(Devices("cpu", "cpu", 1), 3, 1)
  assert sorted(core for slot in shares for core in slot.cpus) == list(range(6))
  fake = slots.make_slots(Devices("cpu", "cpu", 1), 1, 4)[0]
  assert "--xla_force_host_platform_device_count=4" in fake.env["XLA_FLAGS"]


# ---- Stacks --------------------------------------------------------------------------------------


def stack_names(members, size=8):
  return [[m.name for m in group] for group in stacks.stack_groups(members, size)]


def test_only_runs_of_one_program_and_length_are_stacked(tmp_path):
  settings = {
    "a": {"optim.peak_lr": 1e-3}, "b": {"optim.peak_lr": 2e-3, "seed": 3}, "c": {"model.width": 64},
    "d": {"train.steps": 70}, "e": {"optim.weight_decay": 0.5}, "f": {"model.width": 64, "seed": 1},
  }  # fmt: skip
  members = sweep.resolve_runs([Run(n, o, SMOKE) for n, o in settings.items()], tmp_path)
  assert stack_names(members) == [["a", "b", "e"], ["c", "f"], ["d"]]
  assert stack_names(members, 2) == [["a", "b"], ["c", "f"], ["d"], ["e"]]


def test_runs_that_stopped_elsewhere_are_not_stacked_with_fresh_ones(tmp_path):
  members = sweep.resolve_runs([Run(f"r{i}", {"seed": i}, SMOKE) for i in range(5)], tmp_path)
  for name, steps in (("r0", (10, 20)), ("r1", (20, 30)), ("r3", (40,))):
    for step in steps:
      (tmp_path / name / "checkpoints" / str(step)).mkdir(parents=True)
  assert stack_names(members) == [["r0", "r1"], ["r2", "r4"], ["r3"]]


def test_a_command_line_says_what_the_overrides_say(tmp_path):
  from lm.config.command_line import split_overrides
  from lm.setup.load import load_config

  overrides = {
    "data.weights": (), "data.sources": ("synthetic:markov-64",), "optim.warmup_frac": None,
    "optim.warmup_tokens": 4096, "model.bias": True, "optim.eps": 1e-9, "sample.prompt": "a b=c",
  }  # fmt: skip
  (member,) = sweep.resolve_runs([Run("a", overrides, SMOKE)], tmp_path)
  (job,) = jobs.local_jobs([member], {"log.wandb": "disabled"})
  _, words = split_overrides(job.command)
  assert load_config(SMOKE, words) == load_config(SMOKE, {**overrides, "log.wandb": "disabled"})


# ---- The table -----------------------------------------------------------------------------------


def test_the_live_view_reads_the_end_of_the_record(tmp_path, capsys):
  (member,) = sweep.resolve_runs([Run("a", {}, SMOKE)], tmp_path)
  assert live.progress_of(member.workdir) == {}
  fake_run(member.workdir, status="running")
  with open(member.workdir / "metrics.jsonl", "a") as file:
    file.write('no JSON\n{"step": 99, "train/lo')
  now = live.progress_of(member.workdir)
  assert now["step"] == 60 and now["eval/val/loss"] == 3.0


def test_a_status_is_told_once_in_plain_lines(tmp_path, capsys):
  (member,) = sweep.resolve_runs([Run("a", {}, SMOKE)], tmp_path)
  with live.Watch("title", sys.stdout) as watch:
    for status in ("waiting", "running", "running", "failed", "failed"):
      watch(
        [member],
        {"a": {"status": status, "reason": "why" if status == "failed" else None}},
        [],
        False,
      )
  assert capsys.readouterr().out.split("\n") == ["failed a: why", ""]


# ---- For real ------------------------------------------------------------------------------------


def command(words, **options):
  return subprocess.run(
    [sys.executable, "-m", "experiments", *words],
    capture_output=True,
    text=True,
    check=False,
    **options,
  )


SWEEP = (
  "--config",
  SMOKE,
  "--grid",
  "optim.peak_lr=1e-3,1e30,4e-3",
  "--set",
  "eval.every_steps=20",
)


@pytest.mark.slow
def test_both_back_ends_train_the_same_and_a_diverging_run_harms_no_other(tmp_path):
  for on in ("local", "stacked"):
    root = tmp_path / on
    out = command(["run", *SWEEP, "--on", on, "--root", str(root), "--save_as", "s", "--json"])
    assert out.returncode == 1, out.stderr
    rows = {row["name"]: row for row in json.loads(out.stdout)["runs"]}
    wild = rows["peak_lr=1e30"]
    assert wild["status"] == "failed" and re.search(
      r"step \d+: train/\w+ is (nan|inf)", wild["reason"]
    )
    assert rows["peak_lr=1e-3"]["status"] == rows["peak_lr=4e-3"]["status"] == "done"
  for name in ("peak_lr=1e-3", "peak_lr=4e-3"):
    alone, stacked = (
      read_jsonl(tmp_path / on / "s" / name / "metrics.jsonl") for on in ("local", "stacked")
    )
    assert [a["step"] for a in alone] == [b["step"] for b in stacked]
    for a, b in zip(alone, stacked, strict=True):
      if a["step"] <= 50:
        assert a["train/loss"] == pytest.approx(b["train/loss"], rel=1e-4)
    assert alone[-1]["eval/val/loss"] == pytest.approx(stacked[-1]["eval/val/loss"], rel=1e-3)
  ids = [{row["id"] for row in read_ledger(str(tmp_path / on))} for on in ("local", "stacked")]
  assert ids[0] == ids[1]


@pytest.mark.slow
def test_everything_killed_goes_on_from_its_checkpoints(tmp_path):
  words = ["--config", SMOKE, "--grid", "optim.peak_lr=1e-3,4e-3", "--set", "train.steps=2000",
           "--set", "eval.every_steps=100", "--root", str(tmp_path), "--save_as", "k"]  # fmt: skip
  first = subprocess.Popen([sys.executable, "-m", "experiments", "run", *words],
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
  runs = [tmp_path / "k" / f"peak_lr={lr}" for lr in ("1e-3", "4e-3")]
  deadline = time.monotonic() + 300
  while not all((run / "checkpoints" / "100").is_dir() for run in runs):
    assert time.monotonic() < deadline
    time.sleep(0.1)
  pids = [json.loads((run / "run.json").read_text())["pid"] for run in runs]
  for pid in (first.pid, *pids):
    os.kill(pid, signal.SIGKILL)
  first.wait()
  time.sleep(0.5)
  assert {read_row(str(run))["status"] for run in runs} == {"stopped"}
  again = command(["run", "k", "--root", str(tmp_path)])
  assert again.returncode == 0, again.stderr
  for run in runs:
    assert "resumed at step" in (run / "log.txt").read_text()
    steps = [record["step"] for record in read_jsonl(run / "metrics.jsonl")]
    assert steps == sorted(set(steps)) and steps[-1] == 2000


@pytest.mark.slow
def test_halving_trains_few_runs_in_full(tmp_path):
  words = ["--config", SMOKE, "--grid", "optim.peak_lr=1e-4,1e-3,4e-3,1e-2", "--halving", "2:3",
           "--root", str(tmp_path), "--save_as", "h", "--on", "stacked"]  # fmt: skip
  out = command(["run", *words, "--json"])
  assert out.returncode == 0, out.stderr
  steps = sorted(row["steps"] for row in json.loads(out.stdout)["runs"])
  assert steps == [15, 15, 15, 15, 30, 30, 60]
  assert command(["run", "h", "--root", str(tmp_path)]).returncode == 0


def test_a_launchers_lock_does_not_keep_out_the_process_that_it_starts(tmp_path):
  """The launcher's lock is handed down; the process takes one of its own beside it."""
  from lm.runs import lock

  held = locks.take(tmp_path)
  lock.take(tmp_path)
  lock.release(tmp_path)
  held.release()
