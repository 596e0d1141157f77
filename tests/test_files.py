"""Files and folders appear whole or not at all, whatever stops the program that writes them."""

import os
import pathlib
import subprocess
import sys

import pytest

from lm.config.errors import ConfigError
from lm.files import beside, whole_folder, write_text
from tests import trained

ROOT = pathlib.Path(__file__).parent.parent


def killed(code):
  """Runs code in a process that dies without a word where it says `die()`."""
  head = "import os, pathlib\nfrom lm.files import *\ndie = lambda: os._exit(9)\n"
  assert subprocess.run([sys.executable, "-c", head + code], cwd=ROOT, timeout=60).returncode == 9


def test_a_killed_writer_leaves_the_old_file(tmp_path):
  path, link = tmp_path / "page.html", tmp_path / "link.html"
  write_text(path, "old")
  link.symlink_to(path)
  killed(f"with beside(pathlib.Path({str(path)!r})) as file:\n  file.write_text('ne'); die()")
  assert path.read_text() == "old"
  with pytest.raises(KeyboardInterrupt), beside(path) as partial:
    partial.write_text("ne")
    raise KeyboardInterrupt
  assert not partial.exists() and path.read_text() == "old"
  write_text(link, "new \udcff")
  assert path.read_text() == "new \\udcff" and link.is_symlink()


def test_a_killed_writer_leaves_no_folder_that_looks_whole(tmp_path):
  folder = tmp_path / "model"
  begun = f"with whole_folder(pathlib.Path({str(folder)!r}), 'to', ['w*']) as made:\n"
  write = "  [(made / n).write_text('half') for n in ('config.json', 'weights')]; die()"
  killed(begun + write)
  assert not (folder / "config.json").exists()
  with whole_folder(folder, "to", ["w*"]) as made:
    for name in ("config.json", "weights", "w2"):
      (made / name).write_text("old")
  assert sorted(os.listdir(folder)) == ["config.json", "w2", "weights"]
  killed(begun + write)
  assert {(folder / name).read_text() for name in ("config.json", "weights", "w2")} == {"old"}
  with whole_folder(folder, "to", ["w*"]) as made:
    (made / "config.json").write_text("new")
    (made / "inner").mkdir()
  assert sorted(os.listdir(folder)) == ["config.json", "inner"]
  with pytest.raises(
    ConfigError, match=r"to=.*/config\.json: cannot be written \(.*\); choose another"
  ):
    whole_folder(folder / "config.json", "to").__enter__()


def test_two_that_write_one_folder_leave_each_other_alone(tmp_path):
  folder = tmp_path / "model"
  begun = f"with whole_folder(pathlib.Path({str(folder)!r}), 'to') as made:\n"
  slow = "  print(1, flush=True); input(); (made / 'a').write_text('slow')"
  head = "import pathlib\nfrom lm.files import *\n"
  with subprocess.Popen(
    [sys.executable, "-c", head + begun + slow], cwd=ROOT, text=True, stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as other:  # fmt: skip
    assert other.stdout.readline() == "1\n"
    with whole_folder(folder, "to") as made:
      (made / "a").write_text("quick")
    assert (folder / "a").read_text() == "quick"
    other.communicate("\n", timeout=60)
  assert other.returncode == 0 and (folder / "a").read_text() == "slow"
  assert os.listdir(folder) == ["a"]


def full(*words):
  """What a command says on a disk without room for it: files may not grow beyond a few kB."""
  code = (
    "import resource, signal, sys\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "from lm.config.command_line import run_main\n"
    "import lm.hf.__main__, lm.compact.__main__, experiments.__main__\n"
    "programs = {'hf': lm.hf.__main__, 'compact': lm.compact.__main__, 'experiments': experiments.__main__}\n"
    "main = programs[sys.argv[1]].main\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
    "run_main(lambda argv: main(argv[1:]))\n"
  )
  return subprocess.run(
    [sys.executable, "-c", code, *map(str, words)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
  trained.run(tmp_path / "run", checkpoint__every_steps=2)
  ledger = ROOT / "experiments/results/lr_sweep/ledger.jsonl"
  for words, there in (
    (("hf", "export", "--workdir", tmp_path / "run", "--to", tmp_path / "hf"), "to={}"),
    (
      (
        "compact",
        "--workdir",
        tmp_path / "run",
        "--to",
        tmp_path / "c",
        "--bits",
        8,
        "--tokens",
        0,
      ),
      "to={}",
    ),
    (
      ("experiments", "status", "lr_sweep", "--ledger", ledger, "--export", tmp_path / "l.jsonl"),
      "{}",
    ),
  ):
    made = full(*words)
    out = words[words.index("--export" if "--export" in words else "--to") + 1]
    assert made.returncode == 2 and made.stderr.count("\n") == 1, made.stderr
    assert made.stderr.startswith(there.format(out)) and "File too large" in made.stderr
    assert "free some space" in made.stderr and sorted(os.listdir(tmp_path)) == ["run"]
