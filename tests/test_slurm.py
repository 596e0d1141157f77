"""Back end `slurm`, against a real Slurm of this one machine (tests/slurm.sh)."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from experiments.launch import backends, jobs, slurm
from experiments.launch.jobs import Asked
from experiments.ledger.ledger import read_ledger
from experiments.ledger.rows import read_row
from experiments.sweep import Run, sweep
from lm.config.errors import ConfigError
from lm.files import read_jsonl
from lm.runs.rundir import checkpoint_steps
from tests.fake_runs import SMOKE

SCRIPT = pathlib.Path(__file__).parent / "slurm.sh"
NAMES = ("slurmctld", "slurmd", "munged", "sbatch")


# ---- What needs no cluster -----------------------------------------------------------------------


def test_a_run_gets_its_devices_as_tasks_of_whole_nodes():
  assert slurm.layout(1, 0) == {"ntasks": 1} and slurm.layout(4, 0) == {"ntasks": 4}
  assert slurm.layout(2, 8) == {"nodes": 1, "ntasks-per-node": 2, "gpus-per-node": 2}
  assert slurm.layout(32, 8) == {"nodes": 4, "ntasks-per-node": 8, "gpus-per-node": 8}
  with pytest.raises(ConfigError, match=r"mesh=\(12 devices\).*a node's 8 GPUs; use 16"):
    slurm.layout(12, 8)


@pytest.mark.parametrize(
  ("listing", "partition", "gpus"),
  [
    ("cpu*|(null)\ngpu|gpu:h100:8(S:0-1)\n", "gpu", 8),
    ("cpu*|(null)\ngpu|gpu:h100:8(S:0-1)\n", None, 0),
    ("big*|gpu:4\n", None, 4),
    ("big*|shard:2,gpu:a100:2\n", "big", 2),
  ],
)
def test_sinfo_says_how_many_gpus_a_node_has(listing, partition, gpus):
  assert slurm.gpus_of(listing, partition) == gpus
  with pytest.raises(ConfigError, match="with=partition=none: is not among those"):
    slurm.gpus_of(listing, "none")


def member(tmp_path, **overrides):
  changes = {key.replace("__", "."): value for key, value in overrides.items()}
  return sweep.resolve_run(Run("a", changes, SMOKE), tmp_path)


def test_time_limit_and_price_follow_from_the_plan(tmp_path):
  long = member(tmp_path, train__steps=10**9, model__width=64)
  asked = Asked("x", str(tmp_path), words={"chip": "h100", "mfu": "0.5", "account": "me"})
  text = slurm.Slurm(asked, 8).dry_run([long])
  speed = slurm.throughput.from_chip("h100", 0.5, long.cfg.model.dtype)
  seconds = speed.compiling + speed.seconds(long.cfg)
  assert f"#SBATCH --time={-(-1.5 * seconds // 60):.0f}\n" in text
  assert f"about {seconds / 3600 * speed.price:,.2f} USD" in text
  assert "#SBATCH --account=me\n" in text and "#SBATCH --gpus-per-node=1\n" in text


def test_a_chip_that_is_too_small_is_named_before_anything_is_queued(tmp_path):
  large = member(tmp_path, model__width=16384, model__depth=64, model__heads=128)
  with pytest.raises(ConfigError, match=r"run a: needs .* GB a device, and a h100 has 80; raise"):
    slurm.check_fits([large], "h100")


def test_without_slurm_there_is_one_line(tmp_path, monkeypatch):
  monkeypatch.setenv("PATH", "")
  with pytest.raises(ConfigError, match="on=slurm: there is no sbatch here; run this on a login"):
    slurm.make(Asked("x", str(tmp_path)), [member(tmp_path)])


def test_unknown_back_ends_and_words_are_refused():
  with pytest.raises(ConfigError, match="on=slum: is no back end; did you mean slurm"):
    backends.find("slum")
  with pytest.raises(
    ConfigError, match="with=partion=x: --on slurm knows no partion; did you mean"
  ):
    backends.find("slurm", ["partion=x"])
  with pytest.raises(ConfigError, match="with=x: must be KEY=VALUE"):
    backends.find("slurm", ["x"])


def test_scripts_pass_shellcheck(tmp_path):
  if shutil.which("shellcheck") is None:
    pytest.skip("no shellcheck")
  asked = Asked("x", str(tmp_path), words={"setup": "true"})
  engine = slurm.Slurm(asked, 0)
  runs = engine.jobs([member(tmp_path)])
  ((header, group),) = engine._arrays(runs)
  script = engine._write(engine._folder(), header, group)
  out = subprocess.run(["shellcheck", str(script), str(SCRIPT)], capture_output=True, text=True)
  assert out.returncode == 0, out.stdout


# ---- The real thing ------------------------------------------------------------------------------


@pytest.fixture
def cluster(slurm_daemons):
  """The running Slurm; jobs that a test leaves are cancelled."""
  yield slurm_daemons
  subprocess.run(["scancel", "--user=root"])
  wait_until(lambda: not subprocess.run(["squeue", "-h"], capture_output=True).stdout)


@pytest.fixture(scope="module")
def slurm_daemons(tmp_path_factory):
  """A Slurm of this machine, started and stopped by tests/slurm.sh."""
  if os.getuid() != 0:
    pytest.skip("only root can start a Slurm")
  if not all(map(shutil.which, NAMES)):
    if shutil.which("apt-get") is None:
      pytest.skip("no Slurm, and no apt-get to install it")
    out = subprocess.run([SCRIPT, "install"], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
  folder = tmp_path_factory.mktemp("slurm")
  folder.chmod(0o755)
  try:
    out = subprocess.run([SCRIPT, "start", folder], stderr=subprocess.PIPE, text=True)
    assert out.returncode == 0, out.stderr
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    yield folder
  finally:
    subprocess.run([SCRIPT, "stop", folder])
  os.environ.pop("SLURM_CONF")
  if before:
    os.environ["SLURM_CONF"] = before


def experiments(*words):
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}  # as a user's shell has it
  return subprocess.run(
    [sys.executable, "-m", "experiments", *words], capture_output=True, text=True, env=env
  )


def wait_until(condition, seconds=120.0):
  deadline = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.1)


def trains(workdir):
  """The process that trains a run, once it has a checkpoint; None before."""
  row = read_row(str(workdir))
  begun = checkpoint_steps(workdir) and row["status"] == "running"
  return json.loads((workdir / "run.json").read_text())["pid"] if begun else None


FILE = """
from experiments.sweep import Run

def runs():
  for i in range(6):
    two = {"mesh.fsdp": 2, "train.steps": 60} if i == 5 else {"train.steps": 600}
    yield Run(f"r{i}", {"optim.peak_lr": (i + 1) * 1e-3, "eval.every_steps": 25, **two}, "CONFIG")
"""


@pytest.mark.slow
def test_a_sweep_on_slurm_survives_kills_and_preemption_and_equals_a_local_one(cluster, tmp_path):
  file, root = tmp_path / "six.py", tmp_path / "slurm"
  file.write_text(FILE.replace("CONFIG", SMOKE))
  words = ("run", str(file), "--json", "--on", "slurm", "--root", str(root))
  out = experiments(*words, "--detach")
  assert out.returncode == 0, out.stderr
  rows = json.loads(out.stdout)["runs"]
  assert len(rows) == 6 and {row["status"] for row in rows} == {"queued"}
  runs = {row["name"]: root / "six" / row["name"] for row in rows}
  tickets = {name: jobs.read_ticket(run) for name, run in runs.items()}
  assert all(backends.live_ticket(run) == tickets[name] for name, run in runs.items())

  wait_until(lambda: trains(runs["r0"]))
  os.kill(trains(runs["r0"]), signal.SIGKILL)
  rest = [run for name, run in runs.items() if name not in ("r0", "r5")]
  wait_until(lambda: any(map(trains, rest)))
  wide = ["sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 1"]
  assert subprocess.run(wide, capture_output=True).returncode == 0

  again = experiments(*words)  # finds its jobs
  assert again.returncode == 0, again.stderr + again.stdout
  assert {row["status"] for row in json.loads(again.stdout)["runs"]} == {"done"}
  assert {
    name: jobs.read_ticket(run) for name, run in runs.items()
  } == tickets  # nothing sent twice
  logs = {name: (run / "log.txt").read_text() for name, run in runs.items()}
  assert logs["r0"].count(jobs.STARTED) >= 2 and "resumed at step" in logs["r0"]
  preempted = [name for name, log in logs.items() if name != "r0" and "resumed at step" in log]
  assert preempted, logs
  two = json.loads((runs["r5"] / "run.json").read_text())
  assert two["n_devices"] == 2 and two["mesh"]["fsdp"] == 2

  local = tmp_path / "local"
  assert experiments("run", str(file), "--root", str(local)).returncode == 0
  theirs, mine = ({r["name"]: r for r in read_ledger(f"{r}/six")} for r in (local, root))
  assert theirs.keys() == mine.keys() and len(mine) == 6
  for name, row in theirs.items():
    assert mine[name]["id"] == row["id"]
    assert mine[name]["loss"] == pytest.approx(row["loss"], rel=1e-5 if name != "r5" else 1e-4)
    steps = [
      [r["step"] for r in read_jsonl(f / "six" / name / "metrics.jsonl")] for f in (local, root)
    ]
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_a_cancelled_job_saves_and_is_not_requeued(cluster, tmp_path):
  words = ("--config", SMOKE, "--set", "train.steps=100000", "--set", "eval.every_steps=50",
           "--save_as", "c", "--root", str(tmp_path), "--on", "slurm")  # fmt: skip
  assert experiments("run", *words, "--detach").returncode == 0
  run = tmp_path / "c" / "base"
  wait_until(lambda: trains(run))
  ticket = jobs.read_ticket(run)
  row, words = backends.find("slurm")
  row.make(Asked("c", str(tmp_path / "c"), words=words), [member(tmp_path)]).cancel(ticket)
  wait_until(lambda: slurm.ask([ticket])[0].status == "ended")
  assert read_row(str(run))["status"] == "interrupted"
  time.sleep(6)  # past the time at which it would have been queued again
  assert backends.live_ticket(run) is None


def is_done(run):
  return read_row(str(run))["status"] == "done"
