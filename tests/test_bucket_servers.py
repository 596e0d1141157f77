"""Runs in buckets of real servers at loopback: S3 by moto's, Google's by an emulator of its API."""

import json
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time

import fsspec
import jax
import numpy as np
import pytest

import train
from experiments.commands import command_line as cli
from experiments.ledger import ledger as ledgers
from experiments.ledger.refresh import FolderReader
from lm import evaluate, inspect
from lm.config.errors import ConfigError
from lm.hf.__main__ import main as hf
from lm.runs import bucket
from lm.runs.checkpoint import load_params
from lm.runs.load import load
from tests.trained import TINY, run

ROOT = pathlib.Path(__file__).parent.parent
BUCKET = "isoflop-test"
S3_KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
S3_WORDS = {
  "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_MAX_ATTEMPTS": "1",
}  # fmt: skip
LONG = {
  **TINY, "train.steps": 2000, "eval.every_steps": 500, "checkpoint.every_steps": 50,
  "log.every_steps": 10, "mesh.replica": 1,
}  # fmt: skip


def flags(settings):
  return [f"--config.{key}={value}" for key, value in settings.items()]


def start(url, *words):
  return train.main(["--config", "configs/smoke.py", "--workdir", url, *flags(TINY), *words])


def experiments(*words):
  options = cli.make_parser("about").parse_args(words)
  return options.act(options) or 0


@pytest.fixture(scope="module")
def s3():
  """The file system of a bucket of an S3 server; the environment says where it is."""
  pytest.importorskip("s3fs")
  server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
  server.start()
  logging.getLogger("werkzeug").setLevel(logging.WARNING)
  host, port = server.get_host_and_port()
  with pytest.MonkeyPatch.context() as patch:
    for key, value in {**S3_KEYS, **S3_WORDS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
      patch.setenv(key, value)
    patch.delenv("AWS_PROFILE", raising=False)
    fs = fsspec.filesystem("s3", skip_instance_cache=True)
    fs.mkdir(BUCKET)
    yield fs
  type(fs).clear_instance_cache()
  server.stop()


@pytest.mark.slow
def test_a_run_on_s3_is_trained_resumed_scored_listed_and_compared(s3, tmp_path, capsys):
  run(tmp_path / "here", checkpoint__every_steps=2)
  url = f"s3://{BUCKET}/runs/a"
  words = ["--config.checkpoint.every_steps=2"]
  assert start(url, *words) == 0
  local = (tmp_path / "here" / "metrics.jsonl").read_bytes()
  assert s3.cat(f"{url}/metrics.jsonl") == local
  assert not any(".probe" in name for name in s3.find(url))
  for name in s3.find(f"{url}/checkpoints/8"):
    s3.rm_file(name)
  assert start(url, *words) == 0
  assert "resumed at step 6 of 8" in capsys.readouterr().out
  s3.invalidate_cache()
  assert s3.cat(f"{url}/metrics.jsonl") == local
  assert evaluate.main(["--workdir", url, "--max_tokens", "512", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["step"] == 8

  assert repr(load(url)).startswith(f"LoadedRun('{url}', step 8: ")
  assert inspect.main(["--workdir", url, "--text", "a b"]) == 0
  assert capsys.readouterr().out.startswith(f"{url}/inspect.html: ")
  s3.invalidate_cache()
  assert b"<html" in s3.cat(f"{url}/inspect.html")
  assert hf(["export", "--workdir", url, "--to", str(tmp_path / "exported")]) == 0
  assert (tmp_path / "exported" / "model.safetensors").exists()
  capsys.readouterr()
  with pytest.raises(
    ConfigError, match=rf"^workdir={url}none: holds no run .* --workdir {url}none$"
  ):
    load(f"{url}none")

  reader = FolderReader(f"s3://{BUCKET}/runs")
  assert [row["name"] for row in reader.read()] == ["a"]
  assert start(f"s3://{BUCKET}/runs/b", "--config.seed=1") == 0
  capsys.readouterr()
  assert [row["name"] for row in reader.read()] == ["a", "b"]  # what is new in a bucket is seen
  assert experiments("compare", url, f"s3://{BUCKET}/runs/b", "--json") == 0
  assert "seed" in capsys.readouterr().out
  rows = ledgers.read_ledger(f"s3://{BUCKET}/runs")
  assert {row["status"] for row in rows} == {"done"}
  ledgers.export(rows, f"s3://{BUCKET}/ledger.jsonl")
  assert len(ledgers.load_ledger(f"s3://{BUCKET}/ledger.jsonl")) == 2
  assert (
    experiments("board", "--root", f"s3://{BUCKET}/runs", "--out", f"s3://{BUCKET}/x.html") == 0
  )
  assert capsys.readouterr().out.strip() == f"s3://{BUCKET}/x.html"
  assert b"<html" in s3.cat(f"{BUCKET}/x.html")


@pytest.mark.slow
def test_an_experiments_runs_on_s3_are_listed_reported_and_trained(
  s3, tmp_path, monkeypatch, capsys
):
  root, of = f"s3://{BUCKET}/sweep", ["--config", "configs/smoke.py", "--save_as", "seeds"]
  of += ["--grid", "seed=0,1", *(w for k, v in TINY.items() for w in ("--set", f"{k}={v}"))]
  assert start(f"{root}/seeds/seed=0") == 0
  capsys.readouterr()
  assert experiments("status", *of, "--root", root, "--json") == 0
  standing = {row["name"]: row["status"] for row in json.loads(capsys.readouterr().out)}
  assert standing == {"seed=0": "done", "seed=1": "waiting"}
  assert experiments("report", *of, "--root", root) == 0
  assert capsys.readouterr().out.strip() == f"{root}/seeds/report.html"
  s3.invalidate_cache()
  assert b"seed=1" in s3.cat(f"{root}/seeds/report.html")
  monkeypatch.chdir(tmp_path)  # where the launcher keeps locks and logs
  of[1] = str(ROOT / of[1])
  assert experiments("run", *of, "--root", root, "--workers", "1") == 0
  said = capsys.readouterr()
  assert "done seed=1: " in said.err and f"report seeds --root {root}" in said.out
  assert (tmp_path / "runs" / "seeds" / "local" / "seed=1" / "log.txt").exists()
  s3.invalidate_cache()
  assert json.loads(s3.cat(f"{root}/seeds/seed=1/run.json"))["status"] == "done"
  assert experiments("status", "seeds", "--root", root, "--json") == 0  # by its name from now on
  assert {row["status"] for row in json.loads(capsys.readouterr().out)} == {"done"}
  assert experiments("run", "seeds", "--root", root) == 0
  assert "running" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_on_s3_that_is_killed_goes_on_to_the_same_bits(s3, tmp_path):
  url = f"s3://{BUCKET}/runs/killed"
  command = [sys.executable, "train.py", "--config", "configs/smoke.py", *flags(LONG)]
  env = {**os.environ, "XLA_FLAGS": ""}
  start = lambda workdir: subprocess.Popen(
    [*command, "--workdir", workdir], cwd=ROOT, env=env, text=True,
    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
  )  # fmt: skip
  process = start(url)
  for _ in range(600):
    s3.invalidate_cache()
    if any(name.endswith("checksums.json") for name in s3.find(f"{url}/checkpoints")):
      break
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.2)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  s3.invalidate_cache()
  assert json.loads(s3.cat(f"{url}/run.json"))["status"] == "running"
  before = s3.cat(f"{url}/metrics.jsonl")
  for workdir in (url, str(tmp_path / "whole")):
    process = start(workdir)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert ("resumed at step" in output) == (workdir == url)
  s3.invalidate_cache()
  whole = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
  assert len(before) < len(whole) and s3.cat(f"{url}/metrics.jsonl") == whole
  mine, step = load_params(bucket.local(url), "latest")
  theirs, _ = load_params(tmp_path / "whole", "latest")
  assert step == 2000
  jax.tree.map(np.testing.assert_array_equal, mine, theirs)


def test_a_bucket_that_is_missing_or_refused_is_one_line(s3, monkeypatch, capsys):
  with pytest.raises(ConfigError) as said:
    start("s3://isoflop-none/runs/x")
  assert str(said.value) == (
    "workdir=s3://isoflop-none/runs/x: cannot be written (The specified bucket does not exist); "
    "check the address and your rights"
  )
  assert not s3.exists("isoflop-none")  # nor is a bucket made of a name that is misspelt
  with pytest.raises(ConfigError, match=r"^compare=s3://isoflop-none/x: no such directory; "):
    experiments("compare", "s3://isoflop-none/x", "s3://isoflop-none/y")
  with pytest.raises(ConfigError, match=r"^out=s3://isoflop-none/x.html: cannot be written \(The "):
    ledger = "experiments/results/chinchilla/ledger.jsonl"
    experiments("board", "--root", ledger, "--out", "s3://isoflop-none/x.html")


def test_missing_credentials_are_one_line(s3, monkeypatch):
  for key in S3_KEYS:
    monkeypatch.delenv(key)
  type(s3).clear_instance_cache()
  for what, act in {
    "workdir": lambda: start(f"s3://{BUCKET}/runs/x"),
    "run": lambda: experiments("show", f"s3://{BUCKET}/runs/x"),
    "ledger": lambda: ledgers.load_ledger(f"s3://{BUCKET}/ledger.jsonl"),
    "export": lambda: ledgers.export(ledgers.Ledger(()), f"s3://{BUCKET}/ledger.csv"),
  }.items():
    with pytest.raises(ConfigError) as said:
      act()
    assert str(said.value).startswith(f"{what}=s3://{BUCKET}/"), said.value
    assert "(Unable to locate credentials); log in as the bucket's kind asks for" in str(said.value)
  type(s3).clear_instance_cache()


@pytest.fixture
def gcs(monkeypatch):
  """The file system of a bucket of a Google Cloud Storage emulator."""
  gcsfs = pytest.importorskip("gcsfs")
  emulator = pytest.importorskip("gcp_storage_emulator.server")
  server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
  server.start()
  port = server._api._httpd.socket.getsockname()[1]
  monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
  gcsfs.GCSFileSystem.clear_instance_cache()
  yield fsspec.filesystem("gs")
  gcsfs.GCSFileSystem.clear_instance_cache()
  server.stop()


@pytest.mark.slow
def test_a_run_lives_in_a_bucket_of_google(gcs, tmp_path, capsys):
  run(tmp_path / "here", checkpoint__every_steps=2)
  url = f"gs://{BUCKET}/runs/a"
  words = ["--config.checkpoint.every_steps=2"]
  assert start(url, *words) == 0
  local = (tmp_path / "here" / "metrics.jsonl").read_bytes()
  assert gcs.cat(f"{url}/metrics.jsonl") == local
  for name in gcs.find(f"{url}/checkpoints/8"):
    gcs.rm_file(name)
  assert start(url, *words) == 0
  assert "resumed at step 6 of 8" in capsys.readouterr().out
  gcs.invalidate_cache()
  assert gcs.cat(f"{url}/metrics.jsonl") == local
  (row,) = ledgers.read_ledger(f"gs://{BUCKET}/runs")
  assert row["status"] == "done" and row["step"] == 8
