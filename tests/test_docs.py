"""README and the rooms' pages say what is so: files, rooms and metrics exist (commands: test_commands)."""

import ast
import json
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ROOMS = sorted(
  path.relative_to(ROOT).as_posix()
  for folder in ("lm", "experiments")
  for path in (ROOT / folder).iterdir()
  if (path / "__init__.py").exists()
)


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_lists_its_files_and_every_file_listed_exists(room):
  text = (ROOT / room / "README.md").read_text()
  here = {
    path.relative_to(ROOT / room).as_posix()
    for path in (ROOT / room).rglob("*.py")
    if path.name != "__init__.py" or path.stat().st_size >= 200
  }
  assert set(re.findall(r"^\| `(\S+\.py)` \|", text, re.M)) == here
  assert f"[`{room}/`]({room}/README.md)" in README


def test_the_metrics_table_is_the_one_in_the_code():
  """Asked of a process of its own: other tests add objectives to the tables of this one."""
  code = "import json, lm.runs.metrics as m; print(json.dumps(m.all_metrics()))"
  known = json.loads(
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout
  )
  text = (ROOT / "lm/runs/README.md").read_text()
  rows = dict(re.findall(r"^\| `((?:train|optim|eval|perf)/\S+)` \| (.+) \|$", text, re.MULTILINE))
  assert rows == known


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "AGENTS.md"])
def test_files_and_tables_that_a_page_names_exist(page):
  text = (ROOT / page).read_text()
  folders = r"(?:lm|experiments|configs|tests|benchmarks|\.ci)/"
  for path in set(re.findall(rf"`({folders}[\w./-]*|[\w-]+\.(?:py|md|txt))`", text)):
    assert (ROOT / path).exists(), f"{page} names {path}"
  for table, path in re.findall(rf"`([A-Z]+)` in `({folders}[\w./-]+\.py)`", text):
    assert re.search(rf"^{table}\b", (ROOT / path).read_text(), re.M), (
      f"{page}: no {table} in {path}"
    )


def defined(path: pathlib.Path) -> set[str]:
  """Names that a file defines or imports, in classes and functions too."""
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      found.add(node.name)
    elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
      found.add(node.id if isinstance(node, ast.Name) else node.attr)
    elif isinstance(node, ast.Import | ast.ImportFrom):
      found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
  return found


def is_there(dotted: str, names: dict[str, set[str]]) -> bool:
  """Whether `lm.runs.record` or `lm.runs.record.Recorder` is a folder, a file, or what a file defines."""
  parts = dotted.split(".")
  if (ROOT / "/".join(parts)).is_dir() or dotted in names:
    return True
  inside = (names.get(".".join(parts[:i]), set()) for i in range(2, len(parts)))
  return any(parts[i] in known for i, known in zip(range(2, len(parts)), inside, strict=True))


def test_what_comments_and_pages_name_by_path_exists():
  """`lm.runs.record.Recorder`, `lm/runs/record.py` in docstrings, comments, messages and pages."""
  folders = [ROOT / name for name in ("lm", "experiments", "configs", "benchmarks")]
  code = [path for folder in folders for path in folder.rglob("*.py")]
  module = lambda path: (
    path.relative_to(ROOT).as_posix()[:-3].removesuffix("/__init__").replace("/", ".")
  )
  names = {module(path): defined(path) for path in code}
  pages = [*ROOT.glob("*.md"), *(page for folder in folders for page in folder.rglob("README.md"))]
  stale, found = [], 0
  for path in [*code, *pages]:
    text = path.read_text()
    for dotted in re.findall(r"\b(?:lm|experiments)(?:\.[A-Za-z_]\w*)+", text):
      found += 1
      if not is_there(dotted, names):
        stale.append(f"{path.relative_to(ROOT)}: {dotted}")
    for name in re.findall(r"\b(?:lm|experiments|benchmarks|configs)/[\w/]+\.(?:py|md)\b", text):
      if not (ROOT / name).exists() and name != "experiments/NAME.py":
        stale.append(f"{path.relative_to(ROOT)}: {name}")
  assert found > 1000 and not stale, stale


def test_nothing_is_left_to_fill_in():
  assert not re.findall(r"@[A-Z_]+@", README)


def test_every_guarantee_names_tests_that_exist():
  text = (ROOT / "tests/README.md").read_text()
  rows = [line for line in text.splitlines() if line.startswith("| **")]
  assert len(rows) > 15
  for row in rows:
    names = re.findall(r"`(test_\w+\.py)(?:::(\w+))?`", row)
    assert names, row
    for file, name in names:
      content = (ROOT / "tests" / file).read_text()
      assert not name or f"def {name}(" in content, f"{file}::{name}"
