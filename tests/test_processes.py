"""Two processes of four devices each leave the record that one process leaves."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.devices import processes

ROOT = pathlib.Path(__file__).parent.parent


def start_two(command, n_devices=4):
  """The two processes of a command that takes coordinator, number of processes and own number."""
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  env = os.environ | {
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={n_devices}",
    "WANDB_MODE": "offline",
  }
  return [
    subprocess.Popen(
      [sys.executable, *command(f"localhost:{port}", str(number))],
      cwd=ROOT,
      env=env,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )
    for number in range(2)
  ]


def finish(both, code=0):
  outputs = [process.communicate(timeout=240)[0] for process in both]
  assert [process.returncode for process in both] == [code, code], outputs
  return outputs


READ = """
import json, pathlib, sys, numpy as np, jax
from lm.devices import processes, sharding
from lm.config.schema import MeshConfig
processes.start(sys.argv[1], 2, int(sys.argv[2]))
mesh = sharding.make_mesh(MeshConfig(replica=2, fsdp=2, expert=1, sequence=2, tensor=1))
asked = []
def read(rows):
  asked.append((rows.start, rows.stop))
  return {"tokens": np.arange(64).reshape(8, 8)[rows]}
batch = sharding.put_rows(read, 8, {"tokens": sharding.batch_sharding(mesh)})["tokens"]
total = jax.jit(lambda x: (x * np.arange(1, 65).reshape(8, 8)).sum())(batch)
found = [asked, int(total), processes.anywhere(processes.is_leader())]
pathlib.Path(sys.argv[3], sys.argv[2]).write_text(json.dumps(found))
"""


@pytest.mark.slow
def test_each_process_reads_its_own_rows_of_a_batch(tmp_path):
  finish(start_two(lambda address, number: ["-c", READ, address, number, str(tmp_path)]))
  total = int((np.arange(64) * np.arange(1, 65)).sum())
  found = [json.loads((tmp_path / name).read_text()) for name in ("0", "1")]
  assert found == [[[[0, 4]], total, True], [[[4, 8]], total, True]]


@pytest.mark.slow
def test_two_processes_stop_together_resume_and_leave_the_record_of_one(tmp_path):
  def train(workdir):
    return ["train.py", "--config", "configs/smoke.py", "--workdir", str(tmp_path / workdir)]

  def pair(address, number):
    where = ["--coordinator", address, "--processes", "2", "--process", number]
    return [*train("two"), *where, "--config.mesh.fsdp=4"]

  subprocess.run([sys.executable, *train("one")], cwd=ROOT, check=True, capture_output=True)
  both = start_two(pair)
  record = tmp_path / "two" / "metrics.jsonl"
  while not (record.exists() and record.read_text().count("\n") >= 2):
    assert both[0].poll() is None, both[0].communicate()
    time.sleep(0.05)
  both[1].send_signal(signal.SIGTERM)  # one is told, both stop
  finish(both, 143)
  steps = [json.loads(line)["step"] for line in record.read_text().splitlines()]
  about = json.loads((tmp_path / "two" / "run.json").read_text())
  assert about["status"] == "interrupted" and about["n_devices"] == 8
  outputs = finish(start_two(pair))
  assert f"resumed at step {steps[-1]} of 60" in outputs[0]
  assert "step" not in outputs[1], "the second process speaks too"
  one, two = (
    [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
    for name in ("one", "two")
  )
  assert [record["step"] for record in one] == [record["step"] for record in two]
  for ours, theirs in zip(two, one, strict=True):
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("arguments", "words"), [
  ((None, None, 3),
   "coordinator=None: --processes=None and --process=3 need it; add --coordinator host:port, the same in "
   "all processes"),
  (("here", 2, 0), "coordinator=here: must be host:port; use here:12345"),
  (("here:1", None, 0),
   "coordinator=here:1: needs the number of processes and this one's; add --processes 2 --process 0"),
  (("here:1", 2, 2), "process=2: must be from 0 to 1 (--processes 2); use 0"),
])  # fmt: skip
def test_bad_addresses_and_numbers_are_named(arguments, words):
  with pytest.raises(ConfigError) as error:
    processes.start(*arguments)
  assert str(error.value) == words


def test_the_environment_can_name_the_coordinator(monkeypatch):
  joined = []
  monkeypatch.setattr("jax.distributed.initialize", lambda *args: joined.append(args))
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "head:1")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
  monkeypatch.setenv("JAX_PROCESS_ID", "3")
  processes.start()
  monkeypatch.delenv("JAX_COORDINATOR_ADDRESS")
  processes.start()
  monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
  processes.start()
  assert joined == [("head:1", 4, 3), ()]
  monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "head:1")
  monkeypatch.setenv("JAX_NUM_PROCESSES", "four")
  with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES=four: must be a number"):
    processes.start()


STACK = """
import os, sys, jax
from lm.devices import processes
os.sched_getaffinity = lambda pid: set(range(int(sys.argv[2])))
processes.start_stack(int(sys.argv[1]))
print(jax.device_count())
"""


@pytest.mark.parametrize(("n_runs", "cores", "xla_flags", "devices"), [
  (6, 4, "", 3), (16, 2, "", 2), (3, 2, "", 1),
  (16, 2, "--xla_force_host_platform_device_count=4", 4),
])  # fmt: skip
def test_stacked_runs_have_a_device_a_core_that_divides_them(n_runs, cores, xla_flags, devices):
  command = [sys.executable, "-c", STACK, str(n_runs), str(cores)]
  env = os.environ | {"XLA_FLAGS": xla_flags}
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
  assert int(done.stdout) == devices


def test_stacked_runs_live_in_one_process(monkeypatch):
  monkeypatch.setattr("jax.process_count", lambda: 2)
  with pytest.raises(ConfigError, match="stack=4 runs: stacked runs live in one process"):
    processes.start_stack(4)
