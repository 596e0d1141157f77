"""Run directories in buckets, here fsspec's memory: trained, resumed, scored, and sent in order."""

import dataclasses
import json
import logging
import sys

import fsspec
import pytest

import train
from experiments.commands import command_line as cli
from experiments.commands import which
from lm import addresses, evaluate, generate
from lm.config.errors import ConfigError
from lm.data import cache
from lm.runs import bucket
from lm.setup.load import load_config
from tests.trained import TINY, run

SAVES = {"checkpoint.every_steps": 2, "checkpoint.keep": 2, "log.every_steps": 1}
FLAGS = [f"--config.{k}={v}" for k, v in {**TINY, **SAVES}.items()]


@pytest.fixture
def memory():
  fs = fsspec.filesystem("memory")
  fs.store.clear()
  yield fs
  fs.store.clear()


def start(url, *words):
  return train.main(["--config", "configs/smoke.py", "--workdir", url, *FLAGS, *words])


def test_a_run_lives_in_a_bucket(memory, tmp_path, capsys):
  url = "memory://bucket/runs/x y"
  run(tmp_path / "x", checkpoint__every_steps=2, log__every_steps=1)
  assert start(url) == 0
  said = capsys.readouterr().out
  assert f"done: {url}" in said and f"--workdir '{url}'" in said
  there = "/bucket/runs/x y"
  assert memory.cat(f"{there}/metrics.jsonl") == (tmp_path / "x" / "metrics.jsonl").read_bytes()
  assert json.loads(memory.cat(f"{there}/run.json"))["status"] == "done"
  steps = {
    name.split("/checkpoints/")[1].split("/")[0] for name in memory.find(f"{there}/checkpoints")
  }
  assert steps == {"6", "8"}  # those that are kept here are kept there
  assert not any(name.endswith(".lock") for name in memory.find(there))
  for name in memory.find(f"{there}/checkpoints/8"):
    memory.rm_file(name)
  assert start(url) == 0
  assert "resumed at step 6 of 8" in capsys.readouterr().out
  assert memory.cat(f"{there}/metrics.jsonl") == (tmp_path / "x" / "metrics.jsonl").read_bytes()
  assert evaluate.main(["--workdir", url, "--max_tokens", "512", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["workdir"] == url
  assert generate.main(["--workdir", url, "--prompt", "a", "--tokens", "2"]) == 0
  assert train.main(["--reproduce", url]) == 0
  said = capsys.readouterr().out
  assert f"{url}: trained again in {url}-reproduced, it agrees bit for bit" in said
  assert memory.exists(f"{there}-reproduced/run.json")


def test_files_are_sent_in_an_order_in_which_none_is_ahead():
  names = [
    "run.json", "checkpoints/2/checksums.json", "checkpoints/2/default/_METADATA", "metrics.jsonl",
  ]  # fmt: skip
  assert sorted(names, key=bucket._order) == names[::-1]


def test_what_is_new_or_gone_is_sent(memory, tmp_path):
  folder = bucket.local("memory://b/x")
  assert not folder.exists()
  (folder / "checkpoints" / "2").mkdir(parents=True)
  (folder / "checkpoints" / "2" / "a").write_text("1")
  (folder / "run.json").write_text("{}")
  (folder / ".lock").write_text("here 1")
  (folder / "checkpoints" / "4.orbax-checkpoint-tmp").mkdir()
  (folder / "checkpoints" / "4.orbax-checkpoint-tmp" / "half").write_text("1")
  assert bucket.send(folder) is None
  assert memory.find("/b/x") == ["/b/x/checkpoints/2/a", "/b/x/run.json"]
  (folder / "checkpoints" / "2" / "a").unlink()
  (folder / "run.json").write_text('{"status": "done"}')
  assert bucket.send(folder) is None
  assert memory.find("/b/x") == ["/b/x/run.json"] and b"done" in memory.cat("/b/x/run.json")
  assert bucket.name_of(folder) == "memory://b/x" and bucket.send(tmp_path) is None


def test_a_bucket_that_cannot_be_written_ends_the_run_as_failed(memory, monkeypatch, capsys):
  def refuse(*_, **__):
    raise PermissionError("403 Forbidden\nand a long body")

  monkeypatch.setattr(type(memory), "put_file", refuse)
  assert start("memory://b/x") == 1
  last = capsys.readouterr().err.strip().splitlines()[-1]
  assert last.startswith("memory://b/x: cannot be written (403 Forbidden); all of it is in ")


@pytest.mark.parametrize("url, words", [
  ("nothing://b/x", "workdir=nothing://b/x: Protocol not known: nothing; use a path, gs:// or s3://"),
  ("gs://b/x", "pip install gcsfs"),
  ("s3://b/x", "pip install s3fs"),
])  # fmt: skip
def test_a_kind_without_its_package_is_one_line(url, words, monkeypatch):
  for name in ("gcsfs", "s3fs"):
    monkeypatch.setitem(sys.modules, name, None)
  for kind in ("gs", "gcs", "s3"):  # those that were imported once
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, kind, raising=False)
  with pytest.raises(ConfigError) as said:
    bucket.local(url)
  assert words in str(said.value) and "\n" not in str(said.value)


def test_a_token_cache_in_a_bucket_is_built_once_and_fetched_elsewhere(
  memory, tmp_path, monkeypatch, capsys
):
  url = "memory://shared/cache"
  cfg = resolve_data(cache_dir=url)
  found = []
  for machine in ("a", "b"):
    monkeypatch.setenv("HOME", str(tmp_path / machine))
    found.append(cache.open_corpus(cfg))
    said = capsys.readouterr().err
    assert ("fetching memory://shared/cache/" in said) == (machine == "b")
  assert found[0].fingerprint == found[1].fingerprint and found[0].folder != found[1].folder
  assert memory.exists(f"/shared/cache/{found[0].folder.name}/checksums.json")
  memory.pipe_file(f"/shared/cache/{found[0].folder.name}/vocabulary.json", b"{}")  # damaged there
  monkeypatch.setenv("HOME", str(tmp_path / "c"))
  assert cache.open_corpus(cfg).fingerprint == found[0].fingerprint
  assert "building it again" in capsys.readouterr().err

  def refuse(*_, **__):
    raise PermissionError("403 Forbidden")

  memory.store.clear()
  monkeypatch.setattr(type(memory), "put_file", refuse)
  monkeypatch.setenv("HOME", str(tmp_path / "d"))
  assert cache.open_corpus(cfg).fingerprint == found[0].fingerprint
  assert (
    f"token cache {url}: cannot be written (403 Forbidden); kept on this machine alone"
    in capsys.readouterr().err
  )
  with pytest.raises(ConfigError, match=r"^data.cache_dir=nothing://b: Protocol not known"):
    cache.open_corpus(resolve_data(cache_dir="nothing://b"))


def resolve_data(**changes):
  changes = {"sources": ("synthetic:markov-4-s1-n50",), **changes}
  return dataclasses.replace(load_config("configs/smoke.py", {}).data, **changes)


def test_a_sweep_trained_here_has_its_runs_and_its_words_in_a_bucket(memory, capsys):
  def experiments(*words):
    options = cli.make_parser("about").parse_args([*words, "--root", "memory://b/sweeps"])
    return options.act(options) or 0

  sweep = ["run", "--config", "configs/smoke.py", "--grid", "seed=0,1", "--save_as", "seeds"]
  sweep += [w for k, v in TINY.items() for w in ("--set", f"{k}={v}")]
  assert experiments(*sweep, "--dry_run") == 0
  said = capsys.readouterr().out
  assert "--workdir memory://b/sweeps/seeds/seed=1 " in said
  for words, why in {
    ("--on", "stacked"): r"^root=memory://b/sweeps: runs of --on stacked lie on this machine; ",
    ("--halving", "2:2"): r"^halving=\.\.\.: hands files from run to run, which lie in a bucket ",
  }.items():
    with pytest.raises(ConfigError, match=why):
      experiments(*sweep, *words)
  which.save_sweep("memory://b/sweeps/seeds", cli.make_parser("x").parse_args(sweep))
  assert memory.exists("/b/sweeps/seeds/sweep.json")
  experiments("status", "seeds", "--json")
  names = [row["name"] for row in json.loads(capsys.readouterr().out)]
  assert names == ["seed=0", "seed=1"]
  lost = [*sweep[:4], "seed=0", *sweep[5:]]
  with pytest.raises(ConfigError, match=r"^save_as=seeds: the sweep of that name has runs that "):
    which.save_sweep("memory://b/sweeps/seeds", cli.make_parser("x").parse_args(lost))


def test_what_a_file_system_warns_of_at_every_file_is_said_once(memory, caplog):
  addresses.open_address("workdir", "memory://b/x")
  for _ in range(3):
    logging.getLogger("gcsfs").warning("Could not determine bucket type for %s", "b")
  logging.getLogger("gcsfs").warning("Could not determine bucket type for %s", "c")
  logging.getLogger("gcsfs").error("gone")
  logging.getLogger("gcsfs").error("gone")
  assert [r.getMessage()[-4:] for r in caplog.records] == ["or b", "or c", "gone", "gone"]


def test_paths_stay_paths(tmp_path):
  assert bucket.local(str(tmp_path)) == tmp_path
  assert bucket.local(f"file://{tmp_path}") == tmp_path
