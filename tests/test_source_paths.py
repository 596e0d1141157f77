"""Files that patterns name, and what a source of text is known by."""

import glob
import os

import pytest

from lm.config.errors import ConfigError
from lm.data import sources
from lm.data.sources import paths
from tests.corpora import data_config


def found(pattern):
  return paths.find_files(str(pattern), "data.sources=text:x")


def test_patterns_match_as_those_of_glob_do(tmp_path):
  for name in (
    "a.txt",
    "b1.txt",
    "b2.md",
    ".hidden.txt",
    "in/c.txt",
    "in/deep/d.txt",
    "in/.no/e.txt",
  ):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("x")
  for pattern in (
    "*.txt", "b?.*", "[ab]*.txt", "**/*.txt", "in/**/*.txt", "*/*.txt", ".*.txt", "in/../a.txt",
    "**", "a.txt", "in/**/d.txt", "**/deep/*",
  ):  # fmt: skip
    expected = glob.glob(str(tmp_path / pattern), recursive=True)
    expected = sorted(os.path.realpath(path) for path in expected if os.path.isfile(path))
    assert [os.path.realpath(path) for path in found(tmp_path / pattern)] == expected, pattern


def test_brackets_in_real_names_are_names(tmp_path):
  folder = tmp_path / "data [1]" / "x*y"
  folder.mkdir(parents=True)
  (folder / "a[2].txt").write_text("one")
  (tmp_path / "data 1").mkdir()
  assert found(folder / "a[2].txt") == [str(folder / "a[2].txt")]
  assert found(tmp_path / "data [1]" / "*" / "*.txt") == [str(folder / "a[2].txt")]
  assert found(tmp_path / "*" / "**" / "a[2]*") == [str(folder / "a[2].txt")]


def test_each_real_file_is_read_once_whatever_links_there_are(tmp_path):
  (tmp_path / "in").mkdir()
  (tmp_path / "in" / "a.txt").write_text("x")
  for i in range(5):  # loops, of which a walk along them has exponentially many
    (tmp_path / "in" / f"loop{i}").symlink_to(tmp_path / "in", target_is_directory=True)
  (tmp_path / "in" / "0.txt").symlink_to(tmp_path / "in" / "a.txt")
  assert found(tmp_path / "**" / "*.txt") == [str(tmp_path / "in" / "a.txt")]
  assert found(tmp_path / "in" / "0.txt") == [str(tmp_path / "in" / "0.txt")]


def test_what_is_no_file_is_refused(tmp_path):
  os.mkfifo(tmp_path / "pipe.txt")
  (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere")
  (tmp_path / "self.txt").symlink_to(tmp_path / "self.txt")
  (tmp_path / "folder.txt").mkdir()
  for name, what in (
    ("pipe.txt", "is a named pipe, no file"),
    ("broken.txt", "is a link that leads nowhere, no file"),
    ("self.txt", "is a link that leads nowhere, no file"),
    ("folder.txt", "is a folder; use text:"),
    ("*/*.txt", "no file matches"),
  ):
    with pytest.raises(ConfigError, match=what):
      found(tmp_path / name)
  with pytest.raises(ConfigError, match="no file"):
    found(tmp_path / "*.txt")


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch):
  (tmp_path / "a.txt").write_text("x")
  opened = open

  def refused(path, *arguments, **options):
    if str(path).endswith("a.txt"):
      raise PermissionError(13, "Permission denied")
    return opened(path, *arguments, **options)

  monkeypatch.setattr("builtins.open", refused)
  for function in (sources.documents, sources.identity):
    with pytest.raises(ConfigError, match=r"a.txt cannot be read \(Permission denied\)"):
      list(function(f"text:{tmp_path}/a.txt", data_config(tmp_path), "train"))


def test_a_damaged_memory_of_hashes_is_no_matter(tmp_path):
  (tmp_path / "a.txt").write_text("x")
  cfg = data_config(tmp_path)
  (tmp_path / "cache").mkdir()
  first = sources.identity(f"text:{tmp_path}/a.txt", cfg, "train")
  for content in ("{", "[1]", "null", '{"x": 3}', "\x00"):
    (tmp_path / "cache" / "file_hashes.json").write_text(content)
    assert sources.identity(f"text:{tmp_path}/a.txt", cfg, "train") == first


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("docstring", "data.sources=docstring: no such source; did you mean docstrings?"),
    ("wikipedia", "data.sources=wikipedia: no such source; use one of docstrings, python, text"),
    ("docstrings:numpy", "data.sources=docstrings:numpy: docstrings takes no name; use docstrings"),
    ("text", "data.sources=text: text needs a name; use e.g. text:books/*.txt"),
    ("text:no/such/*.txt", "data.sources=text:no/such/*.txt: no file matches; check the path"),
    ("text:tests", "data.sources=text:tests: is a folder; use text:tests/**/*.txt"),
    (
      "synthetic:markov",
      "data.sources=synthetic:markov: a synthetic source is named markov-STATES",
    ),
    ("synthetic:markov-95-s1", "a chain has 2 to 94 states"),
  ],
)
def test_unknown_sources_are_refused_with_a_remedy(tmp_path, spec, message):
  for function in (sources.documents, sources.identity):
    with pytest.raises(ConfigError) as error:
      list(function(spec, data_config(tmp_path), "train"))
    assert message in str(error.value)


def test_text_identity_follows_content_not_time_or_place(tmp_path):
  (tmp_path / "a.txt").write_text("one")
  (tmp_path / "moved").mkdir()
  (tmp_path / "moved" / "b.txt").write_text("one")
  cfg = data_config(tmp_path)
  first = sources.identity(f"text:{tmp_path}/a.txt", cfg, "train")
  assert sources.identity(f"text:{tmp_path}/moved/*.txt", cfg, "train") == first
  (tmp_path / "a.txt").write_text("two")
  assert sources.identity(f"text:{tmp_path}/a.txt", cfg, "train") != first
