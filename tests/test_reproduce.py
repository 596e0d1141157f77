"""python train.py --reproduce RUN trains a run again from its record and says whether every bit agrees."""

import json
import shutil
import signal

import numpy as np
import pytest

import train
from lm.compact.__main__ import main as compact
from lm.config.errors import ConfigError
from lm.runs import reproduce, rundir, summary
from lm.setup.load import load_config
from lm.setup.resolve import resolve
from tests.test_surroundings import at_batch
from tests.trained import records, run

SAVES = {"checkpoint__every_steps": 2, "train__steps": 12}


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
def test_what_to_do_next_with_a_run_trained_again_can_be_done(whole):
  """--reproduce takes no settings beside it."""
  settings = summary._next_commands(whole, ["train.py", "--config", "configs/smoke.py"])
  for argv in (["train.py", "--reproduce", "x"], ["train.py", "--reproduce=x"]):
    again = summary._next_commands(whole, argv)
    assert again == settings[:-1] and "--reproduce" not in " ".join(again)


def test_a_copy_of_a_run_is_another_run_on_a_dashboard(tmp_path):
  cfg = resolve(load_config("configs/smoke.py"), vocab_size=256, n_devices=1)
  first, copy, moved = (tmp_path / name for name in ("first", "copy", "moved"))
  id_of = lambda folder: rundir.open_run(folder, cfg, {})["wandb_id"]
  began = id_of(first)
  assert id_of(first) == began
  shutil.copytree(first, copy)
  other = id_of(copy)
  assert other != began and id_of(copy) == other and id_of(first) == began
  first.rename(moved)
  assert id_of(moved) == began


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
  assert "disagrees   metrics.jsonl, step 3: train/loss " in said
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


@pytest.mark.parametrize("how", ["imported", "compacted"])
def test_what_was_never_trained_is_refused(whole, tmp_path, how):
  """Both hold no record that training could disagree with."""
  workdir = tmp_path / "x"
  if how == "compacted":
    words = ["--to", str(workdir), "--bits", "8", "--tokens", "0"]
    assert compact(["--workdir", str(whole), *words]) == 0
  else:
    shutil.copytree(whole, workdir)
    (workdir / rundir.IMPORTED).write_text("{}")
  with pytest.raises(ConfigError, match=rf"reproduce=.*was not trained \({how}.*make it again"):
    train.main(["--reproduce", str(workdir)])
  assert not (tmp_path / "x-reproduced").exists()


def test_where_nothing_is_left_to_compare_nothing_is_trained(whole, tmp_path):
  workdir = tmp_path / "x"
  shutil.copytree(whole, workdir)
  shutil.rmtree(workdir / "checkpoints")
  for name in ("metrics", "samples"):
    (workdir / f"{name}.jsonl").unlink(missing_ok=True)
  with pytest.raises(ConfigError, match=r"holds no line .* and no checkpoint to compare with"):
    train.main(["--reproduce", str(workdir)])


def test_a_record_that_lost_its_end_does_not_agree(whole, tmp_path):
  """The checkpoint says how far it came."""
  other = tmp_path / "other"
  shutil.copytree(whole, other)
  lines = (other / "metrics.jsonl").read_text().splitlines(keepends=True)
  for kept in (0, 2):
    (other / "metrics.jsonl").write_text("".join(lines[:kept]))
    (found,) = reproduce.record_differences(other, whole)
    assert found.startswith(f"metrics.jsonl, step {kept + 1}: null there")


def test_moving_means_are_compared_too(tmp_path, monkeypatch):
  made = {"a": {"params": {"w": np.ones(2)}, "ema": {"w": np.ones(2)}}}
  made["b"] = {**made["a"], "ema": {"w": np.zeros(2)}}
  made["older"] = {"params": made["a"]["params"]}
  for name in made:
    (tmp_path / name / "checkpoints" / "4").mkdir(parents=True)
  monkeypatch.setattr(reproduce, "load_state", lambda folder, step: (made[folder.name], int(step)))
  differ = lambda a, b: reproduce.parameter_differences(tmp_path / a, tmp_path / b)
  assert differ("a", "b") == ["checkpoint 4: ema['w']"]
  assert differ("a", "a") == differ("older", "b") == []


def test_a_copy_is_not_taken_for_a_run_trained_again(whole, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(whole, copy)
  with pytest.raises(ConfigError, match=r"copy: is a copy of the run to reproduce"):
    train.main(["--reproduce", str(whole), "--workdir", str(copy)])


@pytest.mark.parametrize("key", ["seed", "data.seed", "data.pack"])
@pytest.mark.parametrize("knows", ["run.json", "checkpoint"])
def test_a_config_that_was_changed_is_refused_before_it_is_trained(whole, tmp_path, key, knows):
  workdir = tmp_path / "x"
  shutil.copytree(whole, workdir)
  config = json.loads((workdir / "config.json").read_text())
  section, _, name = key.rpartition(".")
  (config[section] if section else config)[name] = 3 if name == "seed" else False
  (workdir / "config.json").write_text(json.dumps(config))
  said = f"{key.split('.')[0]} in config.json was changed"
  if knows == "checkpoint":  # as of a run from before run.json knew it
    about = rundir.read_run(workdir)
    about["sections"] = {k: v for k, v in about["sections"].items() if k not in ("seed", "reading")}
    (workdir / "run.json").write_text(json.dumps(about))
    said = f"checkpoint 4 is of another run .*{key}="
  with pytest.raises(ConfigError, match=said):
    train.main(["--reproduce", str(workdir)])
  assert not (tmp_path / "x-reproduced").exists()


def test_a_run_whose_data_were_moved_is_still_itself(whole, tmp_path):
  workdir = tmp_path / "x"
  shutil.copytree(whole, workdir)
  config = json.loads((workdir / "config.json").read_text())
  config["data"]["sources"] = ["text:elsewhere.txt"]
  (workdir / "config.json").write_text(json.dumps(config))
  assert rundir.read_config(workdir).data.sources == ("text:elsewhere.txt",)
  rundir.check_origin(workdir, 4, rundir.read_config(workdir))


def test_what_was_otherwise_is_named_and_nothing_else():
  init = {"from": "/runs/base", "id": "abc", "step": 4, "weights": "12"}
  versions = {"python": "3.11.7", "jax": "0.10.2"}
  run = {"n_devices": 8, "versions": versions, "uncommitted": None, "init_from": init}
  found = reproduce.setting_differences
  assert found(run, run) == []
  moved = run | {"init_from": init | {"from": "/old/base", "step": 8}}
  assert found(run, moved) == []  # the same weights
  other = run | {"init_from": init | {"weights": "34"}, "uncommitted": "56"}
  assert found(run, other) == [
    'uncommitted: null there, "56" here',
    'init_from: weights "12" there, "34" here',
  ]
  newer = run | {"versions": versions | {"jax": "0.12.0"}}
  assert found(run, newer) == ['versions: jax "0.10.2" there, "0.12.0" here']
  changed = run | {"changes": [{"step": 5, "was": {"n_devices": 1, "log.every_steps": 2}}]}
  assert found(changed, run) == [
    "n_devices: 1 there up to step 5, 8 here",
    "log.every_steps: 2 there up to step 5",
  ]
  alone = run | {"n_devices": 1}
  assert found(changed, alone)[0] == "n_devices: 8 there after step 5, 1 here"
  back = run | {"rewinds": [{"bad": 6, "to": 4, "why": "train/loss is nan"}]}
  assert found(back, run) == ["rewinds: from 6 to 4 there, none here"]
  assert found({}, run) == []  # nothing is known


def test_a_failed_run_fails_again_in_the_same_way(tmp_path, capsys):
  broken = {"optim__peak_lr": 1e30, "optim__clip_norm": "None", "optim__warmup_frac": 0.0}
  run(tmp_path / "x", code=1, **broken)
  assert train.main(["--reproduce", str(tmp_path / "x")]) == 0
  said = capsys.readouterr().out
  assert "agrees bit for bit" in said and "how both failed)" in said
  about = rundir.read_run(tmp_path / "x")
  (tmp_path / "x" / "run.json").write_text(json.dumps(about | {"reason": "no room"}))
  assert train.main(["--reproduce", str(tmp_path / "x")]) == 1
  assert "disagrees   run.json: failed (no room) there, failed (step" in capsys.readouterr().out


def test_an_empty_name_is_no_run():
  with pytest.raises(ConfigError, match="holds no run"):
    train.main(["--reproduce", ""])


def stop_at(monkeypatch, step):
  at_batch(monkeypatch, step, lambda batch: signal.raise_signal(signal.SIGTERM) or batch)


@pytest.mark.slow
def test_what_changed_between_two_stretches_is_recorded_and_compared_by_step(
  tmp_path, monkeypatch, capsys
):
  workdir = tmp_path / "x"
  with monkeypatch.context() as patch:
    stop_at(patch, 5)
    run(workdir, code=143, log__every_steps=2, **SAVES)
  first = max(rundir.checkpoint_steps(workdir))
  with monkeypatch.context() as patch:
    stop_at(patch, 8)
    run(workdir, code=143, log__every_steps=1, **SAVES)
  assert 4 < first < max(rundir.checkpoint_steps(workdir))
  run(workdir, log__every_steps=1, sample__tokens=3, **SAVES)
  assert "lacks" not in capsys.readouterr().err  # steps 1 and 3 were never to be logged
  about = rundir.read_run(workdir)
  assert "missing_steps" not in about
  assert about["changes"][0] == {"step": first, "was": {"log.every_steps": 2}}
  assert about["changes"][1]["was"] == {"sample.tokens": 0}
  logged = [record["step"] for record in records(workdir)]
  assert 1 not in logged and set(range(first + 1, 13)) <= set(logged)
  assert train.main(["--reproduce", str(workdir)]) == 0
  said = capsys.readouterr().out
  assert f"differs     log.every_steps: 2 there up to step {first}" in said
  assert "agrees bit for bit" in said


@pytest.mark.slow
def test_a_step_that_a_record_lacks_is_a_difference(whole, tmp_path, capsys):
  other = tmp_path / "other"
  shutil.copytree(whole, other)
  lines = (other / "metrics.jsonl").read_text().splitlines(keepends=True)
  (other / "metrics.jsonl").write_text("".join(lines[:2] + lines[3:]))
  assert train.main(["--reproduce", str(other), "--workdir", str(tmp_path / "again")]) == 1
  assert "disagrees   metrics.jsonl, step 3: null there" in capsys.readouterr().out


@pytest.mark.slow
def test_weights_that_a_run_started_from_are_recorded_and_need_not_stay(
  whole, tmp_path, monkeypatch, capsys
):
  base, workdir = tmp_path / "base", tmp_path / "x"
  shutil.copytree(whole, base)
  settings = {"train__init_from": str(base), **SAVES}
  with monkeypatch.context() as patch:
    stop_at(patch, 5)
    run(workdir, code=143, **settings)
  started = rundir.read_run(workdir)["init_from"]
  assert started["id"] == rundir.read_run(whole)["id"] and started["step"] == 4
  shutil.rmtree(base)
  run(workdir, **settings)  # goes on from its checkpoint
  assert rundir.read_run(workdir)["init_from"] == started
  run(base, seed=3, train__steps=4)
  capsys.readouterr()
  assert train.main(["--reproduce", str(workdir)]) == 1
  assert "  differs     init_from: " in capsys.readouterr().out
  with pytest.raises(ConfigError, match="holds neither a run"):
    run(tmp_path / "new", **settings | {"train__init_from": str(tmp_path / "nowhere")})
  assert not (tmp_path / "new").exists()
