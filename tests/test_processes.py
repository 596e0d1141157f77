"""Two processes of four devices each leave the record that one process leaves."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.devices import peers, processes
from lm.runs import agreement
from lm.setup.load import load_config

ROOT = pathlib.Path(__file__).parent.parent


def start_two(command, n_devices=4, environ=({}, {}), roots=(ROOT, ROOT)):
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
      cwd=roots[number],
      env=env | environ[number],
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
  monkeypatch.setattr("jax.distributed.initialize", lambda *args, **_: joined.append(args))
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


class Store:
  """The part of the coordination service's client that peers use, for processes that are threads."""

  def __init__(self):
    self.values = {}

  def key_value_set(self, key, value):
    self.values[key] = value

  def key_value_dir_get(self, folder):
    return [(k, v) for k, v in dict(self.values).items() if k.startswith(folder + "/")]


def meet(monkeypatch, facts, ends=()):
  """What `agree` raises in each of the processes with these facts; None = a process that never comes."""
  store, numbers = Store(), {}
  store.values |= {f"{peers.ENDS}/{number}": text for number, text in ends}
  meetings = [iter(range(9)) for _ in facts]
  me = lambda: numbers[threading.get_ident()]
  state = lambda: types.SimpleNamespace(client=store, num_processes=len(facts), process_id=me())
  monkeypatch.setattr(peers, "_state", state)
  monkeypatch.setattr(peers, "_next_meeting", lambda: next(meetings[me()]))
  monkeypatch.setattr(peers.platform, "node", lambda: f"host{me()}")
  found = {}

  def come(number):
    numbers[threading.get_ident()] = number
    try:
      found[number] = peers.agree(facts[number], "copy it")
    except Exception as error:
      found[number] = f"{type(error).__name__} {error}"

  threads = [threading.Thread(target=come, args=(n,)) for n, f in enumerate(facts) if f is not None]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(10)
  return found


def test_processes_agree_or_all_say_what_differs_and_where(monkeypatch):
  assert meet(monkeypatch, [{"corpus": "a"}] * 3) == {0: None, 1: None, 2: None}
  line = "corpus=b: in process 1 of 3 (host1), and a in process 0 (host0); copy it"
  facts = [{"corpus": "a"}, {"corpus": "b"}, {"corpus": "a"}]
  assert meet(monkeypatch, facts) == dict.fromkeys(range(3), f"ConfigError {line}")
  facts = [{"corpus": "b", "seed": 1, "k": 2}, {"corpus": "a"}, {"corpus": "a", "seed": 1}]
  line = (
    "corpus=b: in process 0 of 3 (host0), and a in process 1 (host1); seed, k differ too; copy it"
  )
  assert set(meet(monkeypatch, facts).values()) == {f"ConfigError {line}"}


def test_who_waits_for_a_process_that_has_ended_is_told_how(monkeypatch):
  found = meet(monkeypatch, [{"a": 1}, None], [(1, '["host9", 2, "seed=x: must be a number"]')])
  assert found == {0: "PeerEnded process 1 of 2 (host9): seed=x: must be a number"}
  told = [(1, '["host9", 2, ""]'), (2, '["host8", 2, "seed=x: must be a number"]')]  # 1 by 2
  found = meet(monkeypatch, [{"a": 1}, None, None], told)
  assert found == {0: "PeerEnded process 2 of 3 (host8): seed=x: must be a number"}
  found = meet(monkeypatch, [{"a": 1}, None], [(1, '["host9", 0, ""]')])
  assert found[0].startswith("ConfigError process=1: it (host9) has ended with nothing left to do")


def test_what_processes_must_have_alike_is_compared(monkeypatch):
  mine = load_config("configs/smoke.py", {"data.cache_dir": "/tmp/here"})
  there = load_config("configs/smoke.py", {"data.cache_dir": "/tmp/there"})
  assert agreement.facts(mine, None) == agreement.facts(there, None)
  other = load_config("configs/smoke.py", {"log.every_steps": 7})
  here, elsewhere = agreement.facts(mine, None), agreement.facts(other, None)
  assert {k for k in here if here[k] != elsewhere[k]} == {"log.every_steps"}
  monkeypatch.setattr(agreement.provenance, "versions", lambda: {"python": "3.11.9", "jax": "0.0"})
  found = agreement.facts(mine, None)
  assert {k for k in here if here[k] != found.get(k)} >= {"jax"} and found["python"] == "3.11"


def pair_of(tmp_path, *words, per=((), ())):
  def command(address, number):
    where = ["--coordinator", address, "--processes", "2", "--process", number]
    run = ["train.py", "--config", "configs/smoke.py", "--workdir", str(tmp_path / "run")]
    return [*run, *words, *per[int(number)], *where]

  return command


def last_line(output):
  return [line for line in output.splitlines() if line.strip()][-1]


@pytest.mark.slow
def test_processes_that_differ_are_refused_before_training(tmp_path):
  ways = {
    "optim.peak_lr=0.5: in process 1 of 2": [[], ["--config.optim.peak_lr=0.5"]],
    "optim.peak_lr=-1.0: must be at least 0": [[], ["--config.optim.peak_lr=-1.0"]],
    "data.sources=text:none.txt: no file matches": [["--config.data.sources=text:none.txt"], []],
  }
  for words, per in ways.items():
    outputs = finish(start_two(pair_of(tmp_path, per=per)), 2)
    assert all(words in last_line(output) for output in outputs), outputs
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_hosts_with_other_text_code_or_disks_are_refused(tmp_path):
  roots = [tmp_path / "host0", tmp_path / "host1"]
  for number, root in enumerate(roots):
    for name in ("lm", "configs"):
      shutil.copytree(ROOT / name, root / name)
    shutil.copy(ROOT / "train.py", root)
    texts = [{"text": f"document {j} of {j + (number if j == 7 else 0)} words"} for j in range(999)]
    (root / "x.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
  local = {"data.cache_dir": "cache"}
  ours = [f"--config.{key}={value}" for key, value in local.items()]
  started = start_two(pair_of(tmp_path, "--config.data.sources=text:x.jsonl", *ours), roots=roots)
  for output in finish(started, 2):
    assert last_line(output).startswith("corpus="), output
  started = start_two(pair_of(tmp_path, *ours, "--workdir", "run"), roots=roots)
  for output in finish(started, 2):
    assert "give a --workdir that all hosts share" in last_line(output), output
  with open(roots[1] / "lm/optim/chain.py", "a") as file:
    file.write("# changed\n")
  for output in finish(start_two(pair_of(tmp_path, *ours), roots=roots), 2):
    assert last_line(output).startswith("code of lm="), output


@pytest.mark.slow
@pytest.mark.long  # where jax's collectives wait on (0.12), its heartbeat takes 90 s
def test_the_others_end_where_one_process_is_killed(tmp_path):
  both = start_two(pair_of(tmp_path, "--config.train.steps=9000", "--config.log.every_steps=5"))
  record = tmp_path / "run" / "metrics.jsonl"
  while not (record.exists() and record.read_text().count("\n") >= 3):
    assert both[0].poll() is None, both[0].communicate()
    time.sleep(0.05)
  both[1].kill()
  both[1].communicate()
  output = both[0].communicate(timeout=200)[0]
  if both[0].returncode == -signal.SIGABRT:
    assert "indicates that another task died" in output
    return
  assert both[0].returncode == 1 and "Traceback" not in output
  assert last_line(output).startswith("another process is gone without a word")
  about = json.loads((tmp_path / "run" / "run.json").read_text())
  assert about["status"] == "failed" and "another process is gone" in about["reason"]


SMALL_FILES = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60000, 60000))
"""


@pytest.mark.slow
def test_a_host_without_room_ends_all_with_its_line(tmp_path):
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "sitecustomize.py").write_text(SMALL_FILES)
  environ = [{}, {"PYTHONPATH": str(tmp_path / "full")}]
  words = ("--config.mesh.fsdp=4", "--config.checkpoint.every_steps=20")
  outputs = finish(start_two(pair_of(tmp_path, *words), environ=environ), 1)
  for output in outputs:
    assert "no room left on the disk" in last_line(output) and "Traceback" not in output
  about = json.loads((tmp_path / "run" / "run.json").read_text())
  assert about["status"] == "failed" and "process 1 of 2" in about["reason"]
