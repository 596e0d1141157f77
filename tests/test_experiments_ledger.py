import json
import math
import os
import pathlib
import re
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest

from experiments import __main__ as experiments
from experiments.commands.printing import print_runs
from experiments.ledger import compare, ledger, rows
from experiments.report import board, formats, tables
from lm.config.errors import ConfigError
from lm.files import alive, write_json
from lm.runs import room
from lm.runs.rundir import read_config, read_run
from tests import trained
from tests.fake_runs import fake_run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Two widths and two seeds, one run that failed and one that another process is training."""
  folder = tmp_path_factory.mktemp("all") / "runs"
  for width, seed, loss in ((32, 0, 3.0), (32, 1, 3.2), (128, 0, 2.5), (128, 1, 2.6)):
    name = f"width={width},seed={seed}"
    fake_run(folder / name, {"model.width": width, "seed": seed}, loss=loss)
  fake_run(folder / "bad", {"optim.peak_lr": 9.0}, "failed", reason="step 3: train/loss is nan")
  fake_run(folder / "now", {"optim.peak_lr": 0.5}, "running")
  return folder


def test_a_row_holds_identity_sizes_budgets_results_and_config(root):
  row = rows.read_row(str(root / "width=32,seed=1"))
  cfg = read_config(root / "width=32,seed=1")
  assert row["id"] == read_run(root / "width=32,seed=1")["id"]
  assert row["status"] == "done"
  assert row["n_params"] == 35_008 and row["n_params_non_embedding"] == 26_784
  assert row["n_tokens"] == cfg.train.tokens == 60 * 8 * 64
  assert row["flops_6ND"] == row["flops"] == 6 * row["n_params"] * row["n_tokens"]
  assert row["flops_6ND_nonembedding"] == 6 * row["n_params_non_embedding"] * row["n_tokens"]
  assert row["loss"] == row["eval/val/loss"] == 3.2
  assert row["lr"] == row["optim.peak_lr"] == cfg.optim.peak_lr
  assert row["seconds"] == pytest.approx(6.0)
  assert row["unique_tokens"] == 10_000
  documented = {k for k in row if k in rows.ROW_KEYS or ledger.is_config_key(k) or "/" in k}
  assert documented == set(row)


@pytest.mark.slow
def test_status_sets_the_memory_that_was_held_beside_the_plans(tmp_path, monkeypatch, capsys):
  class Device:
    def __init__(self, peak):
      self.memory_stats = lambda: {"peak_bytes_in_use": peak}

  assert room.peak_bytes() is None  # CPUs do not say
  monkeypatch.setattr(room.jax, "local_devices", lambda: [Device(5_000_000), Device(7_250_000)])
  peak = room.peak_bytes()
  monkeypatch.undo()
  monkeypatch.setattr(room, "peak_bytes", lambda: peak)
  trained.run(tmp_path / "s" / "a")
  row = rows.read_row(str(tmp_path / "s" / "a"))
  assert row["peak_bytes"] == 7_250_000
  planned = sum(read_run(tmp_path / "s" / "a")["bytes"].values())
  assert row["predicted_bytes"] == planned > 0
  capsys.readouterr()
  print_runs([row])
  said = capsys.readouterr().out
  assert "memory predicted" in said and "7.25 MB" in " ".join(said.split())
  print_runs([{**row, "peak_bytes": None}])
  assert "memory" not in capsys.readouterr().out  # the plan shows its own


def test_the_ledger_finds_runs_below_a_root_in_natural_order(root):
  names = [row["name"] for row in ledger.read_ledger(str(root))]
  assert names == [
    "bad",
    "now",
    "width=32,seed=0",
    "width=32,seed=1",
    "width=128,seed=0",
    "width=128,seed=1",
  ]
  above = [row["name"] for row in ledger.read_ledger(str(root.parent))]
  assert sorted(above) == sorted(f"{root.name}/{name}" for name in names)
  one = ledger.read_ledger(str(root / "bad")).rows[0]
  assert one["name"] == "bad" and one["reason"] == "step 3: train/loss is nan"


def test_the_ledger_of_a_url_is_the_ledger_of_the_folder(root):
  memory = fsspec.filesystem("memory")
  memory.put(str(root), "/ledgers/runs", recursive=True)
  there, here = ledger.read_ledger("memory://ledgers/runs"), ledger.read_ledger(str(root))
  assert len(there) == 6
  for a, b in zip(there, here, strict=True):
    assert {**a, "path": ""} == {**b, "path": ""}
  assert there.rows[0]["path"] == "memory://ledgers/runs/bad"


def test_a_process_that_is_gone_leaves_a_stopped_run(root, tmp_path):
  assert rows.read_row(str(root / "now"))["status"] == "running"  # this process's own id
  ended = subprocess.Popen([sys.executable, "-c", ""])
  ended.wait()
  run = fake_run(tmp_path / "run", status="running")
  write_json(tmp_path / "run" / "run.json", {**run, "pid": ended.pid})
  row = rows.read_row(str(tmp_path / "run"))
  assert row["status"] == "stopped" and "goes on" in row["reason"]


def test_a_killed_process_that_nobody_has_collected_is_gone(tmp_path):
  killed = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
  assert alive(killed.pid)
  killed.kill()
  while alive(killed.pid):  # until the kernel has ended it: it stays a zombie
    time.sleep(0.01)
  killed.wait()


def test_what_the_launcher_saw_counts_only_where_train_could_not_say_it(tmp_path):
  launch = {"status": "failed", "reason": "MemoryError", "exit": 1}
  for status, expected in (("running", "failed"), ("done", "done")):
    folder = tmp_path / status
    fake_run(folder, status=status)
    write_json(folder / "launch.json", launch)
    assert rows.read_row(str(folder))["status"] == expected
  assert rows.status_of({}, launch) == ("failed", "MemoryError")
  assert rows.status_of({}, {}) == ("waiting", None)


@pytest.mark.parametrize(
  ("file", "content", "words"),
  [
    ("run.json", b'{"id": "1", "sta', "run.json is damaged, not JSON"),
    ("config.json", b'{"model": {}}', "its files lack something (KeyError: 'train')"),
    ("config.json", b"[1]", "its files lack something"),
    ("metrics.jsonl", b'{"step": 10}\n{"st\x00\xff\n{"step": 30}\n', "line 2 of metrics.jsonl is damaged"),
    ("perf.jsonl", b"nothing\n", "line 1 of perf.jsonl is damaged"),
  ],
)  # fmt: skip
def test_a_damaged_directory_is_a_row_that_says_so(tmp_path, file, content, words):
  fake_run(tmp_path / "run")
  (tmp_path / "run" / file).unlink()
  if content is not None:
    (tmp_path / "run" / file).write_bytes(content)
  row = rows.read_row(str(tmp_path / "run"))
  assert row["status"] == "unreadable" and words in row["reason"]
  assert len(ledger.read_ledger(str(tmp_path)).done()) == 0  # and nothing is computed from it


@pytest.mark.parametrize(
  "name", ["config.json", "run.json", "metrics.jsonl", "perf.jsonl", "launch.json"]
)
@pytest.mark.parametrize("content", [
  b"", b"[1, 2]", b"null", b"7", bytes(range(256)), b'{"a": {"b": null}}', b"[" * 100_000, None,
  b'{"step": 1, "tokens": "abc", "train/loss": "x"}\n{"step": "2"}\n',
  b'{"step": NaN, "tokens": 1e999, "train/loss": 3, "perf/seconds": null}\n',
])  # fmt: skip
def test_any_damage_to_a_record_is_a_row_that_every_command_shows(name, content, tmp_path, capsys):
  for run in "ab":
    fake_run(tmp_path / "runs" / run, {"seed": ord(run)})
  file = tmp_path / "runs" / "a" / name
  file.unlink(missing_ok=True)
  if content is None:
    file.mkdir()
  else:
    file.write_bytes(content)
  found = ledger.read_ledger(str(tmp_path / "runs"))
  tables.show_comparison(compare.compare(list(found)), "tokens")
  board.write_board(found, str(tmp_path / "board.html"))
  ledger.export(found, str(tmp_path / "ledger.jsonl"))
  assert len(ledger.load_ledger(str(tmp_path / "ledger.jsonl"))) == 2
  assert "\n" not in (found.rows[0]["reason"] or "")


@pytest.mark.parametrize("content", [
  bytes(range(256)), b"[1]\n", b"{}\n", b'{"shared": {}}\n[1]\n', b'{"shared": {}}\n{"loss": 1}\n',
  b'{"shared": {}}\n{"name": "a", "status": "done", "curve": [1]}\n',
  b'{"shared": {}}\n{"name": "a", "status": "done", "loss": "x"}\n',
  b'{"shared": {}}\n{"name": "a", "status": "done", "n_params": {"a": 1}}\n',
  b'{"shared": {}}\n{"name": "a", "status": "done", "flops_exact": 1' + b"0" * 400 + b"}\n",
  b'{"shared": {}}\n{"name": "a", "status": "done", "curve": {"tokens": ["x"]}}\n',
  b'{"shared": {}}\n{"name": "a", "status": "done", "curve": {"tokens": [1], "train/loss": []}}\n',
])  # fmt: skip
def test_what_is_no_ledger_file_is_refused_in_one_line(content, tmp_path):
  (tmp_path / "l.jsonl").write_bytes(content)
  with pytest.raises(ConfigError, match="must be a ledger that status --export wrote"):
    ledger.load_ledger(str(tmp_path / "l.jsonl"))


def test_imported_and_compacted_runs_are_done_and_not_damaged(tmp_path):
  """They have a config and parameters, and no record of training."""
  fake_run(tmp_path / "a")
  run = json.loads((tmp_path / "a" / "run.json").read_text())
  for key in ("parameters", "data", "flops_per_token", "corpus_tokens"):
    del run[key]
  (tmp_path / "a" / "run.json").write_text(json.dumps(run | {"reason": "imported from x"}))
  (tmp_path / "a" / "metrics.jsonl").unlink()
  (row,) = ledger.read_ledger(str(tmp_path))
  assert (row["status"], row["reason"]) == ("done", "imported from x")
  assert row["model.width"] == 32 and "loss" not in row


def test_runs_without_the_metric_are_compared_by_what_they_have(tmp_path):
  """Of another objective, such as a VAE's, or not evaluated yet."""
  for name in "ab":
    fake_run(tmp_path / name, {"seed": ord(name)})
  lines = (
    (tmp_path / "a" / "metrics.jsonl").read_text().replace("eval/val/loss", "eval/val/neg_elbo")
  )
  (tmp_path / "a" / "metrics.jsonl").write_text(lines.replace("train/loss", "train/neg_elbo"))
  found = compare.compare(list(ledger.read_ledger(str(tmp_path))))
  assert found["eval_curves"][0]["a"] is None and found["train_curves"][-1]["b"] is not None


def test_a_file_is_no_run_directory(tmp_path):
  (tmp_path / "sweep.json").write_text("{}")
  with pytest.raises(ConfigError, match="is a file; name a run directory"):
    ledger.read_ledger(str(tmp_path / "sweep.json"))


METRICS, LOSS = "metrics.jsonl", '"train/loss": 3.5'


@pytest.mark.parametrize("file, old, new, words", [
  (METRICS, LOSS, '"train/loss": [1, 2]', "[1, 2] stands in its record where"),
  (METRICS, LOSS, '"train/loss": 1' + "0" * 400, "stands in its record where"),
  (METRICS, LOSS, '"train/loss": "x"', "x stands in its record where a number should"),
  (METRICS, '"step": 10', '"stop": 10', "its files lack something (KeyError: 'step')"),
  ("perf.jsonl", '"perf/seconds": 1.0', '"perf": 1.0', "its files lack something (KeyError: 'perf/seconds')"),
  (METRICS, '{"step": 10', "x", "line 1 of metrics.jsonl is damaged, not JSON"),
])  # fmt: skip
def test_a_record_of_other_things_than_numbers_is_named(tmp_path, file, old, new, words):
  """In the middle of a curve, too, by a ledger and by who reads one curve."""
  fake_run(tmp_path / "runs" / "a")
  path = tmp_path / "runs" / "a" / file
  assert old in path.read_text()
  path.write_text(path.read_text().replace(old, new, 1))
  (row,) = ledger.read_ledger(str(tmp_path / "runs"), curves=True)
  assert row["status"] == "unreadable" and words in row["reason"]
  with pytest.raises(ConfigError, match=re.escape(words)) as error:
    rows.read_curve(str(tmp_path / "runs" / "a"))
  assert "\n" not in str(error.value)


def test_a_config_does_not_say_what_a_run_is_called_or_how_it_ended(tmp_path):
  fake_run(tmp_path / "a")
  path = tmp_path / "a" / "config.json"
  mine = {"name": {"x": 1}, "status": "failed", "path": 3, "id": 4, "extensions": ["of_mine"]}
  path.write_text(json.dumps(json.loads(path.read_text()) | mine))
  (row,) = ledger.read_ledger(str(tmp_path))
  assert (row["name"], row["status"]) == ("a", "done")


@pytest.mark.parametrize("value", [{"a": 1}, [[1]], [{}]])
def test_values_that_no_key_has_are_damage(tmp_path, value):
  """Where the config is of other code, so that its keys are not checked."""
  fake_run(tmp_path / "a")
  path = tmp_path / "a" / "config.json"
  config = json.loads(path.read_text())
  config["model"] |= {"of_other_code": 1, "width": value}
  path.write_text(json.dumps(config))
  (row,) = ledger.read_ledger(str(tmp_path))
  assert row["status"] == "unreadable" and "config.json has model.width=" in row["reason"]


def test_times_that_are_no_numbers_are_shown(tmp_path, capsys):
  """NaN is JSON to Python."""
  fake_run(tmp_path / "a")
  path = tmp_path / "a" / "perf.jsonl"
  path.write_text(path.read_text().replace('"perf/seconds": 6.0', '"perf/seconds": NaN'))
  print_runs(list(ledger.read_ledger(str(tmp_path))))
  assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["a", "done"]
  shown = [(f(math.inf), f(math.nan)) for f in (formats.duration, formats.clock, formats.number)]
  assert shown == [("?", "?"), ("?", "?"), ("inf", "nan")]


def test_half_a_surrogate_pair_is_damage(tmp_path):
  """It is JSON, and no text: no page, table or ledger could be written of it."""
  fake_run(tmp_path / "runs" / "a", {"optim.peak_lr": 3e-3})
  path = tmp_path / "runs" / "a" / "run.json"
  path.write_text(path.read_text().replace('"python"', '"\\ud800": 1, "python"'))
  (row,) = ledger.read_ledger(str(tmp_path / "runs"))
  assert row["status"] == "unreadable" and "run.json is damaged" in row["reason"]
  held = {"ledger": 1, "shared": {"name": "a", "status": "done", "device": "\ud800"}}
  (tmp_path / "l.jsonl").write_text(json.dumps(held) + "\n{}\n")
  with pytest.raises(ConfigError, match="must be a ledger that status --export wrote"):
    ledger.load_ledger(str(tmp_path / "l.jsonl"))


def test_a_last_line_cut_short_is_left_out(tmp_path):
  fake_run(tmp_path / "run", loss=3.0)
  with open(tmp_path / "run" / "metrics.jsonl", "a") as file:
    file.write('{"step": 70, "eval/val/lo')
  assert rows.read_row(str(tmp_path / "run"))["loss"] == 3.0


def test_seconds_of_a_resumed_run_add_up(tmp_path):
  fake_run(tmp_path / "run")
  lines = [{"step": s, "perf/seconds": t} for s, t in ((10, 5.0), (20, 9.0), (30, 4.0), (40, 6.0))]
  (tmp_path / "run" / "perf.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
  curve = rows.read_curve(str(tmp_path / "run"))
  assert curve["seconds"][:4] == [5.0, 9.0, 13.0, 15.0]


def test_filters_compare_numbers_as_numbers_and_text_as_text(root):
  all_runs = ledger.read_ledger(str(root))
  count = lambda *conditions: len(all_runs.where(*conditions))
  assert count("model.width=32") == 4 and count("model.width!=32") == 2
  assert count("model.width>=100") == 2 and count("model.width<100", "seed=1") == 1
  assert count("status=done") == 4 and count("status!=done") == 2
  assert count("name~seed=1$") == 2
  assert count("optim.peak_lr=0.5e0") == 1
  assert count("optim.warmup_tokens=none") == 6
  assert count("model.tied_embeddings=true") == 6
  assert count("seed==1") == count("seed=1") == count("seed='1'")
  assert count("seed=0 OR seed=1") == 6 and count("seed=0 AND model.width=32") == 3
  assert count("NOT status=done") == 2 and count("reason=None") == 5
  assert all_runs.done().where("loss<2.55").column("name") == ["width=128,seed=0"]


def test_groups_have_means_spreads_and_their_best(root):
  summary = ledger.read_ledger(str(root)).done().summary("model.width")
  assert [s["model.width"] for s in summary] == [32, 128]
  assert summary[0]["n"] == 2
  assert summary[0]["mean"] == pytest.approx(3.1)
  assert summary[0]["std"] == pytest.approx(np.std([3.0, 3.2], ddof=1))
  assert summary[1]["min"] == 2.5 and summary[1]["best"] == "width=128,seed=0"


def test_sorting_puts_rows_without_the_key_last(root):
  runs = ledger.Ledger(({"name": "a"}, {"name": "b", "loss": 2.0}, {"name": "c", "loss": 1.0}))
  assert runs.sort("loss").column("name") == ["c", "b", "a"]
  assert runs.sort("loss", reverse=True).column("name") == ["b", "c", "a"]


@pytest.mark.parametrize(
  ("act", "words"),
  [
    (lambda run: run.where("model.widht=3"), "where='model.widht': "),
    (lambda run: run.where("model.width"), "must be COLUMN=TEXT"),
    (lambda run: run.where("name~["), "is no regular expression"),
    (lambda run: run.where("n_params<abc"), "n_params < needs a number, and 'abc' is none"),
    (lambda run: run.where("model.width=wide"), "model.width = needs a number, and 'wide' is none"),
    (lambda run: run.where("status<done"), "status < needs a number"),
    (lambda run: run.where("curve=3"), "where='curve'"),
    (lambda run: run.groups("curve"), "group_by=curve: no such column"),
    (lambda run: run.sort("los"), "sort=los: no such column; did you mean loss?"),
    (lambda run: run.summary("model.width", value="name"), "value=name: no run has a number there"),
    (lambda run: run.summary("model.width", value="nosuch"), "value=nosuch: no such column"),
    (lambda run: run.column("los"), "column=los: no such column; did you mean loss?"),
    (lambda run: run.columns("reason"), "run bad has no number there"),
    (lambda run: ledger.export(run, "x.xls"), "export=x.xls: must end in .jsonl, .csv or .parquet"),
    (lambda run: ledger.read_ledger("nowhere"), "root=nowhere: no such directory"),
    (lambda run: ledger.read_ledger("nope://x"), "root=nope://x: Protocol not known"),
    (lambda run: ledger.load_ledger("nowhere.jsonl"), "ledger=nowhere.jsonl: no such file"),
    (lambda run: compare.compare(run.rows[:1]), "compare=1 run: needs at least two"),
    (lambda run: compare.curve_of(run.rows[0], "epochs"), "x=epochs: must be one of step, tokens"),
    (lambda run: compare.smooth(np.ones(3), np.ones(3), 9.0), "smooth=9.0: must be in [0, 2], decades"),
  ],
)  # fmt: skip
def test_bad_questions_get_one_line(root, act, words):
  with pytest.raises(ConfigError) as error:
    act(ledger.read_ledger(str(root)))
  assert words in str(error.value) and "\n" not in str(error.value)


def test_an_exported_ledger_reads_back_without_machines_and_paths(root, tmp_path):
  runs = ledger.read_ledger(str(root))
  path = str(tmp_path / "ledger.jsonl")
  ledger.export(runs, path)
  back = ledger.load_ledger(path)
  left_out = {"path", "host", "curve"}
  for before, after in zip(runs, back, strict=True):
    assert {k: v for k, v in before.items() if k not in left_out} == {
      k: v for k, v in after.items() if k != "curve"
    }
    assert after["curve"]["eval/val/loss"][-1] == before["curve"]["eval/val/loss"][-1]
  assert os.uname().nodename not in pathlib.Path(path).read_text().split('"')
  assert back.done().summary("model.width") == runs.done().summary("model.width")
  assert ledger.read_ledger(path).rows == back.rows  # a ledger file is as good as a root


def test_csv_and_parquet_hold_every_column(root, tmp_path):
  import csv

  runs = ledger.read_ledger(str(root))
  ledger.export(runs, str(tmp_path / "l.csv"))
  with open(tmp_path / "l.csv", newline="") as file:
    table = list(csv.DictReader(file))
  assert [row["name"] for row in table] == runs.column("name")
  assert float(table[2]["loss"]) == 3.0
  parquet = pytest.importorskip("pyarrow.parquet")
  ledger.export(runs, str(tmp_path / "l.parquet"))
  back = parquet.read_table(tmp_path / "l.parquet").to_pylist()
  assert [row["n_params"] for row in back] == runs.column("n_params")


def test_parquet_without_pyarrow_is_one_line(root, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "pyarrow", None)
  with pytest.raises(ConfigError, match="Parquet needs pyarrow; pip install pyarrow"):
    ledger.export(ledger.read_ledger(str(root)), str(tmp_path / "l.parquet"))


def test_runs_on_different_evaluation_tokens_are_called_out(root, tmp_path):
  assert ledger.read_ledger(str(root)).mismatches() == []
  fake_run(tmp_path / "other", {"eval.tokens": 2048})
  mixed = ledger.Ledger((*ledger.read_ledger(str(root)), *ledger.read_ledger(str(tmp_path))))
  (sentence,) = mixed.mismatches()
  assert (
    sentence.startswith("eval_fingerprint differs") and "their losses do not compare" in sentence
  )
  assert "other" in sentence


def test_varied_names_what_was_swept_and_not_what_follows_from_it(root):
  done = ledger.read_ledger(str(root)).done()
  varied = done.varied()
  assert "model.width" in varied and "seed" in varied
  assert "data.seed" not in varied and "train.flops" not in varied


# ---- compare -------------------------------------------------------------------------------------


def test_compare_shows_only_what_differs(root):
  two = ledger.read_ledger(str(root)).where("model.width=32", "status=done").rows
  assert compare.config_diff(two) == {"seed": [0, 1], "data.seed": [0, 1]}


def test_seed_spread_joins_runs_that_differ_in_seeds_only(root):
  done = ledger.read_ledger(str(root)).done().rows
  spread = compare.seed_spread(done)
  assert [entry["n"] for entry in spread] == [2, 2]
  others = (
    {"status": "running", "loss": 9.0},
    {"status": "stopped", "loss": 9.0},
    {"loss": math.inf},
  )
  changed = [{**done[0], "name": f"x{i}", "seed": 7 + i, **o} for i, o in enumerate(others)]
  assert compare.seed_spread([*done, *changed]) == spread  # theirs are no losses of ends
  assert spread[0]["std"] == pytest.approx(math.sqrt(0.02))


def test_smoothing_keeps_a_straight_line_in_log_x_and_width_0_changes_nothing():
  x = np.array([1.0, 2, 3, 10, 11, 12, 100, 1000])  # however unevenly spaced
  line = 9.0 - 2.0 * np.log10(x)
  np.testing.assert_array_equal(compare.smooth(x, line, 0.0), line)
  np.testing.assert_allclose(compare.smooth(x, line, 0.3), line, rtol=1e-9)  # at both ends, too
  noise = np.random.default_rng(0).standard_normal(400)
  dense = np.geomspace(1, 1e4, 400)
  assert np.std(compare.smooth(dense, noise, 0.2)) < 0.3


@pytest.mark.parametrize("width", [0.0, 0.3])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_none_does_not_spread_to_its_neighbours(width, bad):
  x = np.array([1.0, 2, 3, 4, 5])
  with_bad = compare.smooth(x, np.array([4.0, 3.0, bad, 2.0, 1.0]), width)
  np.testing.assert_array_equal(with_bad[2], bad)
  rest = [0, 1, 3, 4]
  without = compare.smooth(x[rest], np.array([4.0, 3.0, 2.0, 1.0]), width)
  np.testing.assert_array_equal(with_bad[rest], without)


# ---- Binned records ------------------------------------------------------------------------------


def long_record(n=10_000, every=2500):
  rng = np.random.default_rng(0)
  steps = np.arange(1, n + 1)
  loss = 2 + 6 * steps**-0.4 + 0.1 * rng.standard_normal(n)
  return {
    "step": steps.tolist(),
    "tokens": (steps * 1024).tolist(),
    "train/loss": loss.tolist(),
    "eval/val/loss": [
      float(v) if s % every == 0 else None for s, v in zip(steps, loss, strict=True)
    ],
  }


def test_bins_hold_the_whole_record():
  curve = long_record()
  table = rows.binned(curve, 200)
  bins = [i for i, n in enumerate(table["records"]) if n]
  assert 150 < len(bins) <= 203
  column = lambda key: np.array([table[key][i] for i in bins])
  loss = np.array(curve["train/loss"])
  assert column("records").sum() == len(loss)
  assert np.average(column("train/loss"), weights=column("records")) == pytest.approx(loss.mean())
  assert column("train/loss:min").min() == loss.min()
  assert column("train/loss:max").max() == loss.max()
  assert (table["step"][0], table["step"][-1]) == (1, 10_000)
  assert table["train/loss"][0] == loss[0] and column("tokens")[-1] > 0.99 * 1024 * 10_000
  late = column("records")[
    column("tokens") > 2e6
  ]  # no bin of few records among full ones: it would stick out
  assert late[:-1].min() > 0.5 * late.max()
  at = column("tokens") / 1024  # a curve is where its records are: no lag at the start of a run
  np.testing.assert_allclose(column("train/loss")[at < 50], 2 + 6 * at[at < 50] ** -0.4, atol=0.4)
  assert (column("step") < 100).sum() > 30  # the first hundredth of a run is half of a log axis
  evals = [
    (s, v) for s, v in zip(table["step"], table["eval/val/loss"], strict=True) if v is not None
  ]
  assert evals == [(s, loss[s - 1]) for s in (2500, 5000, 7500, 10_000)]


def test_bins_can_be_joined_again():
  curve = long_record()
  twice, once = rows.binned(rows.binned(curve, 1000), 100), rows.binned(curve, 100)
  weigh = lambda t: np.average(
    [v for v in t["train/loss"] if v is not None], weights=[n for n in t["records"] if n]
  )
  assert weigh(twice) == pytest.approx(weigh(once)) == pytest.approx(np.mean(curve["train/loss"]))
  known = lambda t, key: [v for v in t[key] if v is not None]
  assert min(known(twice, "train/loss:min")) == min(curve["train/loss"])
  assert max(known(twice, "train/loss:max")) == max(curve["train/loss"])
  assert known(twice, "eval/val/loss") == known(once, "eval/val/loss")


def test_a_short_record_is_not_binned_and_one_bad_value_stays_in_its_bin():
  curve = long_record(50, 25)
  assert rows.binned(curve, 50) == curve
  curve = long_record(1000)
  curve["train/loss"][500] = math.nan
  means = rows.binned(curve, 100)["train/loss"]
  assert sum(v is None for v in means) == 0  # its neighbours in the bin are known


def test_an_exported_ledger_keeps_the_shape_of_a_curve(tmp_path):
  run = {"name": "a", "status": "done", "curve": rows.binned(long_record(), rows.CURVE_BINS)}
  ledger.export(ledger.Ledger((run, {**run, "name": "b"})), str(tmp_path / "l.jsonl"))
  curve = ledger.load_ledger(str(tmp_path / "l.jsonl")).rows[0]["curve"]
  assert sum(n > 0 for n in curve["records"]) > 120 and sum(curve["records"]) == 10_000
  assert {"train/loss:min", "train/loss:max"} <= set(curve)


def test_curves_are_read_at_the_same_places_and_end_where_runs_end(root, tmp_path):
  fake_run(tmp_path / "short", {"train.steps": 30, "model.width": 64})
  pair = [*ledger.read_ledger(str(root / "width=32,seed=0")), *ledger.read_ledger(str(tmp_path))]
  table = compare.overlay(pair, "tokens", points=6)
  assert [row["tokens"] for row in table] == [5120.0 * i for i in range(1, 7)]
  assert table[2]["short"] == pytest.approx(3.0) and table[3]["short"] is None
  assert table[5]["width=32,seed=0"] == pytest.approx(3.0)


def test_runs_of_one_name_in_two_ledger_files_go_by_these(root, tmp_path, capsys):
  fake_run(tmp_path / "runs" / "now", {"train.steps": 30})
  for name, place in (("a", root), ("b", tmp_path / "runs")):
    ledger.export(ledger.read_ledger(str(place)), str(tmp_path / f"{name}.jsonl"))
  files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
  assert experiments.main(["compare", *files, "--json"]) == 0
  names = json.loads(capsys.readouterr().out)["runs"]
  assert {f"{file}: now" for file in files} <= set(names) and len(set(names)) == len(names)


def test_a_link_to_a_folder_above_is_not_followed(tmp_path):
  fake_run(tmp_path / "runs" / "a" / "x")
  (tmp_path / "runs" / "a" / "loop").symlink_to(tmp_path / "runs")
  (tmp_path / "runs" / "b").symlink_to(tmp_path / "runs" / "a")  # another name for it is one
  found = ledger.read_ledger(str(tmp_path / "runs"))
  assert found.column("name") == ["a/x", "b/x"]


def test_a_run_json_whose_numbers_are_none_is_a_row_that_says_so(tmp_path):
  fake_run(tmp_path / "x")
  about = read_run(tmp_path / "x")
  about["parameters"]["non_embedding"] = "many"
  write_json(tmp_path / "x" / "run.json", about)
  (row,) = ledger.read_ledger(str(tmp_path))
  assert (
    row["status"] == "unreadable" and "n_params_non_embedding=many is no number" in row["reason"]
  )


def test_runs_of_one_name_go_by_their_paths(root, tmp_path):
  fake_run(tmp_path / "now", {"train.steps": 30})
  both = [*ledger.read_ledger(str(root / "now")), *ledger.read_ledger(str(tmp_path / "now"))]
  assert compare.compare(both)["runs"] == [str(root / "now"), str(tmp_path / "now")]


# ---- The response figure -------------------------------------------------------------------------


def test_response_lines_and_rings_are_of_means_over_repeats():
  from experiments.report import charts

  losses = {1e-3: (3.0, 3.2), 2e-3: (2.0, 3.4), 4e-3: (2.5, 2.5)}  # a lucky seed at 2e-3
  runs = [
    {"name": f"{lr},{i}", "lr": lr, "loss": loss, "width": 32}
    for lr, pair in losses.items()
    for i, loss in enumerate(pair)
  ]
  spec = charts.response(runs, "lr", "width", None).to_dict()
  lines, dots, rings = spec["concat"][0]["layer"]
  assert lines["encoding"]["y"]["aggregate"] == "mean"
  assert "tooltip" not in lines["encoding"]  # lines would be grouped by its fields, so by run
  assert "tooltip" in dots["encoding"]
  assert spec["datasets"][rings["data"]["name"]].split("\n")[1] == "32,0.004,2.5"
