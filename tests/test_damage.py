"""What is damaged is named; a run goes on from what is whole and ends as if left alone, or is refused."""

import errno
import fcntl
import json
import os
import pathlib
import platform
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import train
from experiments.ledger.rows import read_row
from lm import evaluate
from lm.config.errors import ConfigError
from lm.runs import lock, rundir, summary
from lm.runs.checkpoint import load_params
from tests.test_surroundings import at_batch
from tests.trained import TINY, run

ROOT = pathlib.Path(__file__).parent.parent
SAVES = {"checkpoint.every_steps": 2, "checkpoint.keep": 3, "checkpoint.best": False}
SETTINGS = {key.replace(".", "__"): value for key, value in SAVES.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """8 steps with checkpoints at 4, 6 and 8."""
  workdir = tmp_path_factory.mktemp("runs") / "whole"
  run(workdir, **SETTINGS)
  assert rundir.checkpoint_steps(workdir) == {4, 6, 8}
  return workdir


@pytest.fixture
def copy(whole, tmp_path):
  return pathlib.Path(shutil.copytree(whole, tmp_path / "copy"))


def edit_run(workdir, **changes):
  path = workdir / "run.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_like(whole, workdir):
  assert (workdir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
  mine, theirs = load_params(workdir, "latest")[0], load_params(whole, "latest")[0]
  jax.tree.map(np.testing.assert_array_equal, mine, theirs)
  assert rundir.read_run(workdir)["status"] == "done"


def largest(folder):
  return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_bit(folder):
  path = largest(folder / "default" / "ocdbt.process_0")
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def without_checksums(damage):
  def both(folder):
    (folder / "checksums.json").unlink()
    damage(folder)

  return both


# --- checkpoints ------------------------------------------------------------------------------------

CHECKPOINTS = {
  "a file cut short": lambda f: largest(f).write_bytes(largest(f).read_bytes()[:-7]),
  "a file emptied": lambda f: largest(f).write_bytes(b""),
  "a file deleted": lambda f: largest(f).unlink(),
  "a small file deleted": lambda f: (f / "default" / "manifest.ocdbt").unlink(),
  "_METADATA not JSON": lambda f: (f / "default" / "_METADATA").write_text("{]"),
  "_METADATA deleted": lambda f: (f / "default" / "_METADATA").unlink(),
  "one bit flipped": flip_bit,
  "an empty folder": lambda f: (shutil.rmtree(f), f.mkdir()),
  "checksums not JSON": lambda f: (f / "checksums.json").write_text("[1"),
  "checksums a list": lambda f: (f / "checksums.json").write_text("[1, 2]"),
  # As checkpoints of earlier versions are: without checksums, what cannot be read is damaged.
  "old, _METADATA not JSON": without_checksums(
    lambda f: (f / "default" / "_METADATA").write_text("{]")
  ),
  "old, arrays deleted": without_checksums(
    lambda f: shutil.rmtree(f / "default" / "ocdbt.process_0")
  ),
}


FAST = ("a file deleted", "one bit flipped", "old, _METADATA not JSON")


@pytest.mark.parametrize(
  "damage",
  [
    pytest.param(d, id=n, marks=() if n in FAST else pytest.mark.slow)
    for n, d in CHECKPOINTS.items()
  ],
)
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_used(
  whole, copy, damage, capfd
):
  damage(copy / "checkpoints" / "8")
  edit_run(copy, status="interrupted")
  said = run(copy, **SETTINGS)
  assert "resumed at step 6 of 8" in said
  errors = capfd.readouterr().err
  assert f"{copy}: checkpoint 8 is damaged (" in errors
  assert "it is kept as damaged-8; going on from checkpoint 6" in errors
  assert (copy / "checkpoints" / "damaged-8").exists()
  assert rundir.read_run(copy)["set_aside"][0]["kept_as"] == "damaged-8"
  assert_like(whole, copy)


@pytest.mark.slow
def test_two_damaged_ones_are_both_set_aside(whole, copy):
  for step in (8, 6):
    flip_bit(copy / "checkpoints" / str(step))
  edit_run(copy, status="interrupted")
  assert "resumed at step 4 of 8" in run(copy, **SETTINGS)
  assert {"damaged-6", "damaged-8"} <= {p.name for p in (copy / "checkpoints").iterdir()}
  assert_like(whole, copy)


def test_without_a_good_one_the_run_is_refused_and_nothing_moves(copy):
  for folder in (copy / "checkpoints").iterdir():
    flip_bit(folder)
  edit_run(copy, status="interrupted")
  before = sorted(p.name for p in copy.rglob("*"))
  for _ in range(2):  # the second start says the same
    with pytest.raises(ConfigError, match="checkpoint 8 and 2 earlier ones cannot be used") as said:
      run(copy, **SETTINGS)
    assert "\n" not in str(said.value)
  assert sorted(p.name for p in copy.rglob("*")) == before


@pytest.mark.slow
def test_orbax_own_notes_may_be_damaged(whole, copy):
  (copy / "checkpoints" / "8" / "_CHECKPOINT_METADATA").write_text("{]")
  edit_run(copy, status="interrupted")
  run(copy, **SETTINGS)
  assert_like(whole, copy)


def test_a_damaged_checkpoint_is_not_evaluated(copy, capfd):
  flip_bit(copy / "checkpoints" / "8")
  with pytest.raises(ConfigError, match=r"checkpoint 8 is damaged \(.*checksum differs"):
    evaluate.evaluate_run(copy, checkpoint="8", max_tokens=256)
  assert load_params(copy, "latest")[1] == 6
  assert "using checkpoint 6 instead" in capfd.readouterr().err
  assert (copy / "checkpoints" / "8").exists()  # who reads moves nothing


@pytest.mark.slow
def test_stacked_runs_go_back_together(tmp_path, capfd):
  lines = []
  for seed in (0, 1):
    overrides = {**TINY, **SAVES, "seed": seed}
    one = {
      "config": "configs/smoke.py",
      "overrides": overrides,
      "workdir": str(tmp_path / str(seed)),
    }
    lines.append(json.dumps(one))
  (tmp_path / "stack.jsonl").write_text("\n".join(lines))
  words = ["--stack", str(tmp_path / "stack.jsonl")]
  assert train.main(words) == 0
  first = [(tmp_path / str(seed) / "metrics.jsonl").read_bytes() for seed in (0, 1)]
  flip_bit(tmp_path / "1" / "checkpoints" / "8")
  for seed in (0, 1):
    edit_run(tmp_path / str(seed), status="interrupted")
  assert train.main(words) == 0
  assert "going on from checkpoint 6" in capfd.readouterr().err
  assert [(tmp_path / str(seed) / "metrics.jsonl").read_bytes() for seed in (0, 1)] == first


# --- config.json and run.json -----------------------------------------------------------------------

CONTENTS = ["", "{", "null", "[1, 2]", '"text"', "\x00\x01", "[" * 100_000]


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_a_damaged_json_file_is_one_line_with_a_remedy(copy, name, content):
  (copy / name).write_text(content)
  for use in (lambda: run(copy, **SETTINGS), lambda: summary.show([copy])):
    with pytest.raises(ConfigError) as said:
      use()
    assert "\n" not in str(said.value) and f"{copy / name}=(damaged): must be" in str(said.value)
  assert "bring it back from a copy, or" in str(said.value)


@pytest.mark.parametrize("key, value", [
  ("status", 5), ("data", [1]), ("final", None), ("resumed", "x"), ("reason", {}), ("argv", None),
])  # fmt: skip
def test_a_run_json_that_makes_no_sense_is_one_line(copy, key, value):
  edit_run(copy, **{key: value})
  with pytest.raises(ConfigError, match=r"run.json=\(" + key):
    run(copy, **SETTINGS)


@pytest.mark.slow
def test_changes_that_make_no_sense_are_left_out():
  good = {"step": 3, "was": {"log.every_steps": 2}}
  about = {"changes": [1, {}, {"step": "x", "was": {}}, {"step": 9, "was": None}, good]}
  assert rundir.changes(about) == [good]
  found = [rundir.was_at(about, step, "log.every_steps", 5) for step in (1, 3, 4)]
  assert found == [2, 2, 5]


def test_without_run_json_the_checkpoints_say_how_far_the_run_is(whole, copy):
  (copy / "run.json").unlink()
  assert "resumed at step 8 of 8" in run(copy, **SETTINGS)
  assert_like(whole, copy)


def test_the_checkpoint_decides_whether_a_run_is_done(whole, copy, capfd):
  shutil.rmtree(copy / "checkpoints" / "8")
  assert "resumed at step 6 of 8" in run(copy, **SETTINGS)
  said = capfd.readouterr().err
  assert "run.json says done after step 8, but the newest checkpoint is step 6" in said
  assert_like(whole, copy)


def test_an_interrupted_run_that_is_said_to_be_done_goes_on(whole, copy, capfd):
  shutil.rmtree(copy / "checkpoints" / "8")
  said = rundir.read_run(copy) | {"ended_at": 6}
  (copy / "run.json").write_text(json.dumps(said))
  assert "resumed at step 6 of 8" in run(copy, **SETTINGS)
  assert "says done after step 8" in capfd.readouterr().err
  assert_like(whole, copy)


def test_a_finished_run_without_checkpoints_is_left_alone(copy):
  shutil.rmtree(copy / "checkpoints")
  before = (copy / "run.json").read_bytes()
  assert "done" in run(copy, **SETTINGS)
  assert (copy / "run.json").read_bytes() == before


# --- the record -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["metrics", "perf", "samples"])
@pytest.mark.parametrize("line", ["garbage", "[1]", '{"no": "step"}', ""], ids=range(4))
def test_a_bad_line_inside_is_named(copy, name, line):
  path = copy / f"{name}.jsonl"
  good = path.read_text() or '{"step": 8, "prompt": "a", "text": "b"}\n'
  path.write_text(line + "\n" + good)
  edit_run(copy, status="interrupted")
  with pytest.raises(ConfigError, match=rf"{name}.jsonl=\(line 1\): must be .* delete that line"):
    run(copy, **SETTINGS)
  assert rundir.read_run(copy)["status"] == "interrupted"  # nothing was begun


@pytest.mark.slow
@pytest.mark.parametrize("tail", ['{"step": 9', "garbage\n", "\x00" * 50, "\x00" * 50 + "\n"])
def test_a_bad_tail_is_cut(whole, copy, tail):
  with open(copy / "metrics.jsonl", "a") as file:
    file.write(tail)
  edit_run(copy, status="interrupted")
  run(copy, **SETTINGS)
  assert_like(whole, copy)


@pytest.mark.slow
@pytest.mark.parametrize("kept, steps", [(None, "2, 4, 6, 8"), (2, "6, 8")])
def test_a_record_behind_its_checkpoint_is_said(copy, kept, steps, capfd):
  path = copy / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  path.unlink()
  if kept:
    path.write_text("".join(lines[:kept]))
  edit_run(copy, status="interrupted")
  run(copy, **SETTINGS)
  assert f"lacks {len(steps.split(','))} steps up to the checkpoint's 8 ({steps})" in (
    capfd.readouterr().err
  )
  assert rundir.read_run(copy)["missing_steps"] == [int(s) for s in steps.split(",")]


@pytest.mark.slow
def test_a_whole_record_is_not_said_to_lack_anything(copy, capfd):
  edit_run(copy, status="interrupted")
  run(copy, **SETTINGS)
  assert "lacks" not in capfd.readouterr().err
  edit_run(copy, status="interrupted")
  run(copy, log__every_steps=1, **SETTINGS)  # logged more seldom until now
  assert "lacks" not in capfd.readouterr().err


# --- other data -------------------------------------------------------------------------------------


def from_text(tmp_path, workdir, *words, **changes):
  source = f"text:{tmp_path}/corpus.txt"
  return run(
    workdir,
    *words,
    **{"data__sources": source, "data__text_unit": "line", "data__val_fraction": 0.5} | changes,
    data__cache_dir=str(tmp_path / "cache"),
    **SETTINGS,
  )


def write_corpus(tmp_path, extra=""):
  lines = [f"line {i} of a small corpus, {i * i}" for i in range(60)]
  (tmp_path / "corpus.txt").write_text("\n".join(lines) + "\n" + extra)


@pytest.fixture(scope="module")
def on_text(tmp_path_factory):
  folder = tmp_path_factory.mktemp("text")
  write_corpus(folder)
  from_text(folder, folder / "run")
  return folder


@pytest.fixture
def text_copy(on_text, tmp_path):
  folder = tmp_path / "text"
  shutil.copytree(on_text, folder)
  write_corpus(folder)
  # The copy has other paths in its config; sources are of the identity.
  for path in (folder / "run" / "config.json",):
    path.write_text(path.read_text().replace(str(on_text), str(folder)))
  shutil.rmtree(folder / "run" / "checkpoints" / "8")
  edit_run(folder / "run", status="interrupted")
  return folder


def test_the_same_data_at_another_time_are_the_same(text_copy):
  write_corpus(text_copy)
  assert "resumed at step 6" in from_text(text_copy, text_copy / "run")


def test_other_data_are_refused_unless_accepted(text_copy):
  write_corpus(text_copy, "one more line\n")
  before = (text_copy / "run" / "run.json").read_bytes()
  words = r"trained on up to step 6 \(corpus \w+ there, \w+ now\).*--accept_new_data"
  with pytest.raises(ConfigError, match=words):
    from_text(text_copy, text_copy / "run")
  assert (text_copy / "run" / "run.json").read_bytes() == before
  assert "resumed at step 6" in from_text(text_copy, text_copy / "run", "--accept_new_data")
  found = rundir.read_run(text_copy / "run")
  assert [change["step"] for change in found["new_data"]] == [6]
  assert found["new_data"][0]["what"].startswith("corpus ")
  edit_run(text_copy / "run", status="interrupted")
  from_text(text_copy, text_copy / "run")  # from now on these are its data


def test_without_run_json_the_checkpoint_knows_its_data(text_copy):
  write_corpus(text_copy, "one more line\n")
  (text_copy / "run" / "run.json").unlink()
  with pytest.raises(ConfigError, match=r"trained on up to step 6 \(corpus \w+ there, \w+ now\)"):
    from_text(text_copy, text_copy / "run")
  assert "resumed at step 6" in from_text(text_copy, text_copy / "run", "--accept_new_data")
  edit_run(text_copy / "run", status="interrupted")
  from_text(text_copy, text_copy / "run")  # checkpoints from before are kept beside the new one


def test_another_tokenizer_is_named(text_copy):
  edit_run(
    text_copy / "run",
    data=(rundir.read_run(text_copy / "run")["data"] | {"tokenizer": {"fingerprint": "0123"}}),
  )
  with pytest.raises(ConfigError, match=r"tokenizer 0123 there, \w+ now"):
    from_text(text_copy, text_copy / "run")


# --- two processes ----------------------------------------------------------------------------------


def test_a_second_process_is_refused_and_the_first_one_named(tmp_path):
  code = (
    "import sys, pathlib; from lm.runs import lock; lock.take(pathlib.Path(sys.argv[1])); "
    "print('held', flush=True); input()"
  )
  held = subprocess.Popen(
    [sys.executable, "-c", code, str(tmp_path)],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
  )  # fmt: skip
  assert held.stdout.readline() == "held\n"
  with pytest.raises(ConfigError, match=f"process {held.pid} on {platform.node()} is training"):
    run(tmp_path, **SETTINGS)
  assert os.listdir(tmp_path) == [".writer.lock"]
  held.communicate("\n")
  lock.take(tmp_path)
  lock.release(tmp_path)


@pytest.mark.slow
def test_a_failed_run_of_a_stack_does_not_send_the_others_back(tmp_path, monkeypatch, capsys):
  settings = {
    **TINY,
    **SAVES,
    "checkpoint.every_steps": 4,
    "log.wandb": "disabled",
    "optim.clip_norm": None,
  }
  rates = {"a": 1e-3, "bad": 1e30, "b": 2e-3}
  lines = [
    json.dumps({"config": "configs/smoke.py", "workdir": str(tmp_path / name),
                "overrides": {**settings, "optim.peak_lr": rate}})
    for name, rate in rates.items()
  ]  # fmt: skip
  (tmp_path / "stack.jsonl").write_text("\n".join(lines))
  command = ["--stack", str(tmp_path / "stack.jsonl")]
  raised = []

  def stop_once(batch):  # each of the three draws it
    raised or raised.append(signal.raise_signal(signal.SIGTERM))
    return batch

  with monkeypatch.context() as patch:
    at_batch(patch, 5, stop_once)
    assert train.main(command) == 1
  saved = max(rundir.checkpoint_steps(tmp_path / "a"))
  assert 4 < saved < 8
  before = (tmp_path / "bad" / "run.json").read_bytes()
  capsys.readouterr()
  assert train.main(command) == 1  # one of them has failed
  said = capsys.readouterr()
  assert f"resumed at step {saved} of 8" in said.out
  assert f"{tmp_path / 'bad'}: has failed and stays so, as the others" in said.err
  assert (tmp_path / "bad" / "run.json").read_bytes() == before
  assert (
    rundir.read_run(tmp_path / "a")["status"] == rundir.read_run(tmp_path / "b")["status"] == "done"
  )
  assert train.main(command) == 1  # alone, it is tried again


FLOCKLESS = (
  "import fcntl, os, pathlib, sys\n"
  "def flock(*_): raise OSError({code}, os.strerror({code}))\n"
  "fcntl.flock = flock\n"
  "from lm.runs import lock\n"
  "lock.take(pathlib.Path({workdir!r})); print(os.getpid(), flush=True); {then}\n"
)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_where_flock_is_not_supported_a_living_writer_is_named_and_a_dead_one_holds_nothing(
  tmp_path, monkeypatch, code
):
  def unsupported(*_):
    raise OSError(code, os.strerror(code))

  monkeypatch.setattr(fcntl, "flock", unsupported)
  words = lambda then: [
    sys.executable, "-c", FLOCKLESS.format(code=code, workdir=str(tmp_path), then=then)
  ]  # fmt: skip
  pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
  with subprocess.Popen(words("input()"), **pipes) as other:
    pid = other.stdout.readline().strip()
    with pytest.raises(ConfigError, match=f"process {pid} on {platform.node()} is training there"):
      lock.take(tmp_path)
    other.kill()
  lock.take(tmp_path)
  lock.release(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == [lock.NAME]
  (tmp_path / f"{lock.NAME}.holder").write_text("12345\nfar-away\n")
  with pytest.raises(ConfigError, match="is training there"):
    lock.take(tmp_path)
  for path in tmp_path.iterdir():
    os.utime(path, (time.time() - 2 * lock.SILENT,) * 2)
  with pytest.raises(ConfigError, match=r"held by process 12345 of far-away.*delete .*lock.holder"):
    lock.take(tmp_path)


def test_a_config_that_was_changed_by_hand_is_not_taken_for_the_runs(copy):
  path = copy / "config.json"
  saved = json.loads(path.read_text())
  saved["optim"]["peak_lr"] = 0.5
  path.write_text(json.dumps(saved))
  with pytest.raises(
    ConfigError, match=r"optim in config.json was changed since the run was trained"
  ):
    rundir.read_config(copy)
  row = read_row(str(copy))
  assert row["status"] == "unreadable" and "optim in config.json was changed" in row["reason"]


def test_a_checkpoint_of_another_model_is_named(copy, tmp_path):
  run(tmp_path / "other", **SETTINGS, model__width=32)
  shutil.rmtree(copy / "checkpoints")
  shutil.copytree(tmp_path / "other" / "checkpoints", copy / "checkpoints")
  with pytest.raises(ConfigError, match=r"model.width=32 there, 16 here"):
    load_params(copy, "latest")
  without_origin(copy / "checkpoints" / "8")
  with pytest.raises(ConfigError, match=r"is \(.*\) in checkpoint 8, and \(.*\) by config.json"):
    load_params(copy, "latest")


def without_origin(folder):
  """A checkpoint as from before they said whose they are."""
  sums = json.loads((folder / "checksums.json").read_text())
  del sums["origin.json"]
  (folder / "checksums.json").write_text(json.dumps(sums))
  (folder / "origin.json").unlink()


def copied_from(other, workdir, step="8"):
  """The other run's checkpoint in place of the run's own."""
  shutil.rmtree(workdir / "checkpoints" / step)
  shutil.copytree(other / "checkpoints" / step, workdir / "checkpoints" / step)


def test_a_checkpoint_of_another_run_is_refused_naming_both(whole, copy, tmp_path):
  run(tmp_path / "other", **SETTINGS, seed=1)
  mine, theirs = (rundir.read_run(path)["id"] for path in (copy, tmp_path / "other"))
  copied_from(tmp_path / "other", copy)
  words = rf"checkpoint 8 is of another run \({theirs}; this one is {mine}: seed=1 there, 0 here\)"
  before = (copy / "run.json").read_bytes()
  for use in (lambda: run(copy, **SETTINGS), lambda: load_params(copy, "latest")):
    with pytest.raises(ConfigError, match=words):  # done or not, trained on or read
      use()
  assert (copy / "run.json").read_bytes() == before
  edit_run(copy, status="interrupted")
  copied_from(tmp_path / "other", copy, "6")  # not the newest one
  copied_from(whole, copy)
  with pytest.raises(ConfigError, match=words.replace("checkpoint 8", "checkpoint 6")):
    run(copy, **SETTINGS)


@pytest.mark.slow
def test_a_checkpoint_that_does_not_say_whose_it_is_is_used(whole, copy):
  for folder in (copy / "checkpoints").iterdir():
    without_origin(folder)
  shutil.rmtree(copy / "checkpoints" / "8")
  edit_run(copy, status="interrupted")
  assert "resumed at step 6 of 8" in run(copy, **SETTINGS)
  assert_like(whole, copy)
