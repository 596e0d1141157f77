"""Commands that read runs: what they are told counts, or is refused in one line."""

import json

import pytest

from experiments.commands import command_line as cli
from experiments.ledger import compare
from experiments.ledger.ledger import read_ledger
from experiments.report import board
from lm.config.errors import ConfigError
from tests.fake_runs import SMOKE, fake_run


def run(*words):
  options = cli.make_parser("about").parse_args([str(word) for word in words])
  return options.act(options)


@pytest.fixture
def root(tmp_path):
  """A sweep of two rates and two seeds, all done."""
  for rate in ("3e-3", "1e-2"):
    for seed in (0, 1):
      changes = {"optim.peak_lr": float(rate), "seed": seed}
      fake_run(
        tmp_path / "sw" / f"peak_lr={rate},seed={seed}", changes, loss=3 + float(rate) + seed
      )
  return tmp_path


def words(root, *more):
  grids = ("--grid", "optim.peak_lr=3e-3,1e-2", "--grid", "seed=0,1")
  return ("--config", SMOKE, *grids, "--save_as", "sw", "--root", root, *more)


@pytest.mark.parametrize(
  ("more", "said"),
  [
    (["--value", "bpb"], "value=bpb: needs --group_by KEY"),
    (["--reverse"], "reverse=True: needs --sort KEY"),
    (["--group_by", "seed", "--columns", "loss"], "columns=loss: is not of --group_by"),
    (["--group_by", "seed", "--noise"], "noise=True: is not of --group_by"),
    (["--noise", "--sort", "loss"], "sort=loss: is not of --noise"),
    (["--noise", "--where", "seed=0"], "noise=True: no setting has several seeds"),
    (["--columns", "loss,curve"], "columns=curve: no such column"),
    (["--group_by", "nosuch"], "group_by=nosuch: no such column"),
    (["--scale", "big"], "scale=big: is of an experiment file"),
  ],
)
def test_status_ignores_nothing_that_it_is_told(more, said, root):
  with pytest.raises(ConfigError, match=said):
    run("status", *words(root, *more))


def test_status_takes_blanks_between_keys_and_says_when_no_run_is_left(root, capsys):
  run("status", *words(root, "--columns", "loss, optim.peak_lr"))
  assert "optim.peak_lr" in capsys.readouterr().out
  run("status", *words(root, "--group_by", "optim.peak_lr, seed"))
  assert "peak_lr=1e-2,seed=1" in capsys.readouterr().out
  run("status", *words(root, "--where", "seed=9"))
  assert capsys.readouterr().out == "none of 4 runs --where 'seed=9'\n"


@pytest.mark.parametrize("command", ["report", "fit"])
def test_nothing_is_made_of_no_runs(command, root):
  with pytest.raises(ConfigError, match=r"where=seed=9: none of 4 runs meets it"):
    run(command, *words(root, "--where", "seed=9"))
  assert not list(root.glob("sw/*.html"))


def test_a_run_given_twice_is_one_run_and_a_copy_of_it_is_no_replicate(root, capsys):
  one, other = (root / "sw" / f"peak_lr=1e-2,seed={seed}" for seed in (0, 1))
  with pytest.raises(ConfigError, match="compare=1 run: needs at least two"):
    run("compare", one, f"{one}/", one.parent / "." / one.name)
  fake_run(root / "copy", {"optim.peak_lr": 1e-2, "seed": 0}, loss=3.01)
  rows = list(read_ledger(str(one), str(root / "copy")))
  assert compare.noise_facts(rows)["seeds"] is None and compare.seed_spread(rows)[0]["n"] == 1
  assert compare.noise_facts([*rows, *read_ledger(str(other))])["sigma"] == pytest.approx(0.5**0.5)


def test_a_root_without_runs_is_named(root, tmp_path):
  (tmp_path / "empty").mkdir()
  with pytest.raises(ConfigError, match=r"compare=.*empty: holds no run"):
    run("compare", tmp_path / "empty", root / "sw")


@pytest.mark.parametrize("command", ["board", "compare", "report"])
def test_a_page_is_not_written_under_another_ending(command, root):
  about = {"board": ("--root", root), "compare": (root / "sw",), "report": words(root)}[command]
  with pytest.raises(ConfigError, match=r"out=.*x\.pdf: the page is HTML"):
    run(command, *about, "--out", root / "x.pdf")


def test_a_board_of_no_run_is_not_written(tmp_path):
  with pytest.raises(ConfigError, match=r"root=.*: holds no run yet; name a folder of runs or a"):
    run("board", "--root", tmp_path, "--out", tmp_path / "board.html")
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_refused(port, root):
  with pytest.raises(ConfigError, match=rf"serve={port}: must be in \[0, 65535\]"):
    run("board", "--root", root, "--serve", port)


def test_a_report_of_runs_takes_no_number_of_samples(root):
  with pytest.raises(ConfigError, match="n_boot: a page on an experiment"):
    run("report", *words(root, "--n_boot", 5))


def test_a_sweep_whose_words_changed_is_refused_before_they_are_saved(root):
  with pytest.raises(
    ConfigError, match=r"save_as=sw: .*peak_lr=3e-3,seed=0 was trained with train.steps=60"
  ):
    run("run", *words(root, "--set", "train.steps=61"))
  assert not (root / "sw" / "sweep.json").exists()


@pytest.mark.parametrize(
  ("more", "said"),
  [
    (["--stack", "0"], r"stack=0: must be in \[1, 4096\]"),
    (["--workers", "-1"], r"workers=-1: must be in \[1, 4096\]"),
    (["--detach"], "detach=True: runs of --on local end with this command"),
    (["--seed", "-1"], r"seed=-1: must be in \[0, 2147483647\]"),
    (["--set", "train.steps=4", "--set", "train.steps=5"], "set=train.steps: is given twice"),
  ],
)
def test_what_a_run_cannot_do_is_said(more, said, root):
  with pytest.raises(ConfigError, match=said):
    run("run", *words(root, "--dry_run", *more))


def test_port_0_is_a_port(root, monkeypatch):
  served = []
  monkeypatch.setattr(board, "serve", lambda *about: served.append(about))
  run("board", "--root", root, "--serve", 0)
  assert served == [(str(root), 0)]


def test_reading_runs_imports_no_extension_that_they_name(root, tmp_path, monkeypatch):
  (tmp_path / "of_another.py").write_text("raise SystemExit('imported')")
  monkeypatch.syspath_prepend(str(tmp_path))
  path = root / "sw" / "peak_lr=1e-2,seed=0" / "config.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), "extensions": ["of_another"]}))
  assert len(read_ledger(str(root)).done()) == 4
