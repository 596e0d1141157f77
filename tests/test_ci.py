"""What CI promises: no test is left out without a word, and every environment is pinned whole."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import unexplained

ROOT = pathlib.Path(__file__).parent.parent
CONSTRAINTS = sorted(ROOT.glob("constraints-py3*.txt"))


def pins(path: pathlib.Path) -> dict[str, str]:
  lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
  assert all(re.fullmatch(r"[a-z0-9-]+==[\w.!]+", line) for line in lines), path.name
  return dict(line.split("==") for line in lines)


def required(name: str) -> list[tuple[str, str]]:
  """(package, environment marker) of a requirements file, those that it includes among them."""
  found = []
  for line in (ROOT / name).read_text().splitlines():
    line = line.split("#")[0].strip()
    if line.startswith("-r "):
      found += required(line.removeprefix("-r "))
    elif line:
      package = re.match(r"[\w-]+", line)[0].lower().replace("_", "-")
      found.append((package, line.partition(";")[2].strip()))
  return found


def test_a_skip_in_ci_is_a_failure_unless_its_reason_is_known(monkeypatch):
  monkeypatch.setenv("CI", "true")
  monkeypatch.setenv("TESTS_WITHOUT", "torch,transformers")
  assert unexplained("needs a GPU") is None
  assert unexplained("could not import 'torch': No module named 'torch'") is None
  missing = "could not import 'pyarrow.parquet': No module named 'pyarrow'"
  assert "requirements-dev.txt" in unexplained(missing)
  assert "MAY_SKIP" in unexplained("chromium is not installed")
  monkeypatch.delenv("TESTS_WITHOUT")
  assert unexplained("could not import 'torch': No module named 'torch'")
  monkeypatch.setenv("CI", "")
  assert unexplained(missing) is None


def test_pytest_fails_where_a_package_is_missing_in_ci(pytester_run):
  line = "pytest.importorskip('no_such_package')"
  module = f"import pytest\n{line}\ndef test_it():\n  pass\n"
  test = f"import pytest\ndef test_it():\n  {line}\n"
  code, text = pytester_run([module, test], "--continue-on-collection-errors", CI="true")
  assert code != 0 and text.count("skipped in CI, where") >= 2
  assert "1 failed, 1 error" in text
  for environment in ({"CI": ""}, {"CI": "true", "TESTS_WITHOUT": "no_such_package"}):
    code, text = pytester_run([module, test], **environment)
    assert "2 skipped" in text and "failed" not in text


def test_those_that_compare_with_torch_are_parity(pytester_run):
  """A test that asks for torch itself, through a helper, or through a fixture; not the others of its file."""
  body = """
import pytest

def helper():
  return [pytest.importorskip("torch") for _ in range(1)]

@pytest.fixture
def model():
  return pytest.importorskip("transformers.models")

def test_itself():
  pytest.importorskip("torch")

def test_through_a_helper():
  assert helper()

def test_through_a_fixture(model):
  pass

def test_not(tmp_path):
  pytest.importorskip("pyarrow")
"""
  text = pytester_run([body], "-m", "parity", "--collect-only")[1]
  assert re.findall(r"::test_(\w+)", text) == ["itself", "through_a_helper", "through_a_fixture"]


def test_tests_that_were_timed_are_there_and_marked_slow(pytester_run):
  for line in (ROOT / "tests/timed.txt").read_text().splitlines():
    file, _, name = line.partition("::")
    source = (ROOT / f"tests/{file}.py").read_text()
    assert f"def {name.partition('[')[0]}(" in source, (
      f"tests/timed.txt: no {line}; .ci/times --write"
    )
  body = "def test_a():\n  pass\ndef test_b():\n  pass\n"
  chosen = pytester_run([body], "-m", "slow and timed", "--collect-only", timed="test_0::test_b\n")
  assert re.findall(r"::test_(\w+)", chosen[1]) == ["b"]


def test_times_are_summed_and_the_longer_ones_listed(tmp_path):
  case = '<testcase classname="tests.test_{}" name="{}" time="{}"/>'
  rows = [case.format("a", "one", 2), case.format("a", "two", 3), case.format("b", "one", 4)]
  (tmp_path / "x.xml").write_text(
    f"<testsuites><testsuite>{''.join(rows)}</testsuite></testsuites>"
  )
  for folder in (".ci", "tests"):
    (tmp_path / folder).mkdir()
  program = shutil.copy(ROOT / ".ci/times", tmp_path / ".ci")
  words = [program, "--write", tmp_path / "x.xml"]
  done = subprocess.run(words, capture_output=True, text=True, check=True)
  said = [" ".join(line.split()) for line in done.stdout.splitlines()]
  assert said[:3] == ["9 s of tests, 3 in 2 files", "5 s test_a", "4 s test_b"]
  assert said[3:6] == ["4 s test_b::one", "3 s test_a::two", "2 s test_a::one"]
  assert (tmp_path / "tests/timed.txt").read_text() == "test_a::two\ntest_b::one\n"


@pytest.fixture
def pytester_run(tmp_path):
  """Runs pytest on files beside a copy of this folder's conftest.py; (exit code, output)."""

  def run(
    bodies: list[str], *arguments: str, timed: str = "", **environment: str
  ) -> tuple[int, str]:
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (tmp_path / "timed.txt").write_text(timed)
    for number, body in enumerate(bodies):
      (tmp_path / f"test_{number}.py").write_text(body)
    done = subprocess.run(
      [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments],
      cwd=tmp_path, capture_output=True, text=True, check=False,
      env={**os.environ, "TESTS_WITHOUT": "", **environment},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr

  return run


@pytest.mark.parametrize("path", CONSTRAINTS, ids=lambda path: path.name)
def test_constraints_pin_every_requirement(path):
  """Run .ci/lock after a change of requirements*.txt."""
  pinned, version = pins(path), path.stem.removeprefix("constraints-py3")
  for package, marker in required("requirements-dev.txt"):
    if 'python_version < "3.12"' in marker and int(version) >= 12:
      continue
    assert package in pinned, f"{path.name} lacks {package}: run .ci/lock"


def test_users_need_no_torch():
  users = {package for package, _ in required("requirements.txt")}
  assert not users & {"torch", "transformers", "ruff", "ty", "playwright", "hypothesis"}
  assert "pytest" in users  # README's two commands


def test_every_supported_python_has_constraints():
  found = {path.stem.removeprefix("constraints-py") for path in CONSTRAINTS}
  assert {"311", "313"} <= found


def test_what_users_lack_is_imported_by_tests_that_can_skip():
  """README's users install requirements.txt alone, and the new leg goes without torch."""
  lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
  names = {re.split(r"[^\w-]", line)[0] for line in lines if line and line[0] not in "#-"}
  modules = {"scikit-learn": "sklearn", "pyyaml": None, "jax": None}  # None: users have it
  lacking = {modules.get(name, name) for name in names} - {None}
  assert {"torch", "transformers", "hypothesis", "sklearn"} <= lacking
  bare = re.compile(rf"^\s*(?:import|from) ({'|'.join(sorted(lacking))})\b")
  for file in (ROOT / "tests").glob("*.py"):
    text = file.read_text().splitlines()
    for number, line in enumerate(text):
      found = bare.match(line)
      if found:
        before = "\n".join(text[max(0, number - 20) : number])
        asked = f'importorskip("{found[1]}' in before or "try:" in before
        assert asked, f"{file.name}:{number + 1}: {line.strip()}; use pytest.importorskip"
