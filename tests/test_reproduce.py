"""python train.py --reproduce RUN trains a run again from its record and says whether every bit agrees."""

import json
import shutil

import pytest

import train
from lm.config.errors import ConfigError
from lm.runs import rundir
from tests.trained import run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "x"
  run(workdir, train__steps=4, eval__every_steps=2, log__every_steps=1)
  return workdir


def test_a_run_is_trained_again_from_its_record_alone(whole, capsys):
  before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
  assert train.main(["--reproduce", str(whole)]) == 0
  again = whole.with_name("x-reproduced")
  assert f"{whole}: trained again in {again}, it agrees bit for bit" in capsys.readouterr().out
  assert (again / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
  assert rundir.read_run(again)["id"] == rundir.read_run(whole)["id"]
  assert {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()} == before


@pytest.mark.slow
def test_the_first_number_that_differs_is_named(whole, tmp_path, capsys):
  other = tmp_path / "other"
  shutil.copytree(whole, other)
  lines = (other / "metrics.jsonl").read_text().splitlines()
  record = json.loads(lines[2])
  record["train/loss"] += 1e-6
  lines[2] = json.dumps(record)
  (other / "metrics.jsonl").write_text("\n".join(lines) + "\n")
  assert train.main(["--reproduce", str(other), "--workdir", str(tmp_path / "again")]) == 1
  said = capsys.readouterr().out
  assert "disagrees   metrics.jsonl, line 3: train/loss " in said
  assert "it does not agree" in said


@pytest.mark.parametrize("words, match", [
  (["--config.seed=1"], "seed=1: a run is reproduced as it is"),
  (["--plan"], "leave out --plan"),
  (["--accept_new_data"], "leave out --accept_new_data"),
  (["--workdir", "{run}"], "is the run to reproduce"),
])  # fmt: skip
def test_what_does_not_go_with_it_is_refused(whole, words, match):
  with pytest.raises(ConfigError, match=match):
    train.main(["--reproduce", str(whole), *(w.format(run=whole) for w in words)])


def test_other_data_are_refused(whole, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(whole, other)
  about = rundir.read_run(other)
  about["data"]["fingerprint"] = "0123"
  (other / "run.json").write_text(json.dumps(about))
  with pytest.raises(ConfigError, match=r"its data are not at hand \(corpus 0123 there"):
    train.main(["--reproduce", str(other)])


def test_an_empty_name_is_no_run():
  with pytest.raises(ConfigError, match="holds no run"):
    train.main(["--reproduce", ""])
