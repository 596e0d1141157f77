"""Files and folders appear whole or not at all, whatever stops the program that writes them."""

import os
import pathlib
import subprocess
import sys

import pytest

from lm.config.errors import ConfigError
from lm.files import beside, whole_folder, write_text

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
