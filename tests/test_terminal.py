"""What the terminal shows: whole numbers, short names, and the sweep as it stands."""

import doctest
import io
import sys
import types

import pytest

from experiments.ledger.compare import compare
from experiments.ledger.ledger import read_ledger
from experiments.report import live, tables
from experiments.sweep import sweep
from experiments.sweep.sweep import Run
from tests.fake_runs import SMOKE, fake_run

ROWS = [
  {
    "name": f"flops=4.0e11,width={w},depth=2,heads=2,seed=0", "status": "done",
    "n_params": 12_384 * w, "n_tokens": 5_383_168, "flops": 3.99e11, "step": 1200, "steps": 1200,
    "loss": 3.21234, "bpb": 1.71234, "tokens_per_sec": 17_374.0, "reason": None,
  }
  for w in (16, 32, 64)
]  # fmt: skip
ROWS[2] |= {"status": "failed", "reason": "loss is not finite at step 40, see its log"}
COLUMNS = tuple(ROWS[0])


def test_examples_in_docstrings_hold():
  assert not doctest.testmod(tables).failed


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_no_number_folds(width, capsys):
  tables.show(ROWS, COLUMNS, width=width)
  lines = capsys.readouterr().out.split("\n")
  assert max(map(len, lines)) <= width
  for row in ROWS:
    differs = row["name"].split(",")[1]
    (line,) = [text for text in lines if differs in text]
    assert row["status"] in line and "3.2123" in line
  shown = lines[0].split()
  for heading, text in (("n_params", "198k"), ("tokens_per_sec", "17,374"), ("bpb", "1.7123")):
    assert (heading in shown) == any(text in line for line in lines)  # whole, or not at all


def test_at_80_columns_names_say_what_differs_and_the_least_needed_columns_go(capsys):
  tables.show(ROWS, COLUMNS, width=80)
  text = capsys.readouterr().out
  first = text.split("\n")[1].split()
  assert first[0] == "width=16"
  assert "all: flops=4.0e11, depth=2, heads=2, seed=0" in " ".join(text.split())
  (lost,) = [line for line in text.split("\n") if line.startswith("no room for")]
  assert "tokens_per_sec" in lost and "loss" not in lost.split() and "reason" not in lost
  joined = " ".join(text.split())
  assert all(word in joined for word in ("finite", "step", "40,"))


def test_names_that_would_not_differ_are_left_alone():
  assert tables.without_shared(["a,b", "a,b"]) == (["a,b", "a,b"], "")
  assert tables.without_shared(["a", "a,b"]) == (["a", "a,b"], "")


def test_many_runs_compare_as_rows_with_failures_in_words(tmp_path, capsys):
  for width in (32, 64, 128):
    for seed in (0, 1):
      name = f"width={width},seed={seed}"
      fake_run(tmp_path / name, {"model.width": width, "seed": seed}, loss=3 + seed / 10)
  fake_run(tmp_path / "bad", {"optim.peak_lr": 9.0}, "failed", reason="loss is not finite")
  result = compare(list(read_ledger(str(tmp_path))))
  tables.show_comparison(result, "tokens", width=80)
  text = capsys.readouterr().out
  assert "bad failed: loss is not finite" in text
  assert max(map(len, text.split("\n"))) <= 80
  assert "model.width" in text and "data.sources" not in text  # differences only
  assert "same setting, different seeds" in text and "0.0707" in text


def test_where_there_is_little_room_a_comparison_keeps_what_was_set_and_the_ends_of_curves(
  tmp_path, capsys
):
  for width, rate, seed in ((32, 1e-3, 0), (64, 1e-3, 0), (64, 3e-3, 0), (64, 3e-3, 1)):
    changes = {"model.width": width, "optim.peak_lr": rate, "seed": seed, "eval.every_steps": 20}
    fake_run(tmp_path / f"width={width},lr={rate:g},seed={seed}", changes, loss=3 + rate)
  result = compare(list(read_ledger(str(tmp_path))))
  tokens = [point["tokens"] for point in result["train_curves"]]
  none = dict.fromkeys(result["eval_curves"][0]) | {"tokens": tokens[0]}
  result["eval_curves"].insert(0, none)
  tables.show_comparison(result, "tokens", width=70)
  lines = [line.split() for line in capsys.readouterr().out.split("\n") if line.strip()]
  heads = [line for line in lines if line[0] in ("name", "setting")]
  # heads, mlp_dim and the like follow from the width
  assert heads[0][:4] == ["name", "seed", "model.width", "optim.peak_lr"]
  first, last = (tables.count(float(f"{n:.3g}")) for n in (tokens[0], tokens[-1]))
  assert heads[1][-1] == heads[2][-1] == last and len(heads[1]) <= len(tokens)
  assert first not in heads[2]  # no run was scored there
  at = next(i for i, line in enumerate(lines) if line[0] == "setting")
  assert lines[at][1:4] == ["difference", "low", "high"]
  for line in lines[at + 1 : at + 3]:
    assert all(len(number.partition(".")[2]) == 4 for number in line[1:4]), line


# ---- The live table ------------------------------------------------------------------------------


class Terminal(io.StringIO):
  def isatty(self):
    return True


def test_the_live_table_shows_compiling_time_left_and_the_best(tmp_path, monkeypatch):
  runs = [Run(f"width={w},seed=0", {"model.width": w}, SMOKE) for w in (32, 64, 128)]
  members = sweep.resolve_runs(runs, tmp_path)
  fake_run(members[0].workdir, {"model.width": 32}, loss=2.5)
  fake_run(members[1].workdir, {"model.width": 64}, status="running")
  rows = {r["name"]: r for r in read_ledger(str(tmp_path))}
  rows |= {m.name: {"name": m.name, "status": "running", "reason": None} for m in members[1:]}
  work = [
    types.SimpleNamespace(
      job=types.SimpleNamespace(members=(m,)), ticket=types.SimpleNamespace(id=i), queued=False
    )
    for i, m in enumerate(members[1:])
  ]
  monkeypatch.setenv("COLUMNS", "80")
  watch = live.Watch("sweep", Terminal())
  with watch:
    waiting = {m.name: {**rows[m.name], "status": "waiting"} for m in members}
    watch(members, waiting, [], False)
    watch._born -= 100
    watch(members, rows, work, False)
    table = watch._table(members, rows, {m.name: (m, 1) for m in members[1:]})
  from rich.console import Console

  out = io.StringIO()
  Console(file=out, width=80).print(table)
  text = " ".join(out.getvalue().split())
  assert "best 2.5000 (width=32,seed=0)" in text
  assert "compiling" in text  # the run that has no record yet
  assert "1:40 spent" in text and "left" in text.split("spent")[1]
  assert max(map(len, out.getvalue().split("\n"))) <= 80


# ---- What takes minutes ---------------------------------------------------------------------------


def test_what_is_counted_comes_in_order_beside_a_bar(monkeypatch):
  """All items, with or without a terminal; the bar says what is done and is gone at the end."""
  from lm.runs.progress import counted

  assert list(counted(range(3), "scoring")) == [0, 1, 2]
  stream = Terminal()
  monkeypatch.setattr(sys, "stderr", stream)
  assert list(counted(range(3), "scoring")) == [0, 1, 2]
  assert "scoring" in stream.getvalue() and "100%" in stream.getvalue()
