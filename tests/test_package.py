"""What `pip install .` gives: everything that a notebook elsewhere needs, and a Dockerfile that holds."""

import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = """
import pathlib
import experiments
from experiments import laws, ledger
from lm.runs.load import load
results = pathlib.Path(experiments.__file__).parent / "results"
frame = ledger.read(str(results / "chinchilla/ledger.jsonl")).to_pandas()
assert len(frame) == 32 and "site" in experiments.__file__, experiments.__file__
"""


@pytest.mark.slow
def test_the_package_serves_a_notebook_elsewhere(tmp_path):
  """Built as pip builds it; unpacked beside an empty folder, from which it is imported."""
  source = tmp_path / "source"
  source.mkdir()
  for name in ("lm", "experiments", "configs"):
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
  for name in ("pyproject.toml", "requirements.txt", "LICENSE", "train.py"):
    shutil.copy(ROOT / name, source / name)
  pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path)]
  subprocess.run([*pip, str(source)], check=True, capture_output=True)
  wheel = next(tmp_path.glob("isoflop-*.whl"))
  with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
    archive.extractall(tmp_path / "site")
  folders = ("lm", "experiments", "configs")
  code = {str(p.relative_to(ROOT)) for f in folders for p in (ROOT / f).rglob("*.py")} | {
    "train.py"
  }
  shown = {str(p.relative_to(ROOT)) for p in (ROOT / "experiments/report").glob("*.[cj]s*")}
  assert code | shown <= names
  assert not [name for name in names if name.startswith("tests/")]
  (tmp_path / "elsewhere").mkdir()
  environment = {
    "PYTHONPATH": str(tmp_path / "site"),
    "PATH": "/usr/bin:/bin",
    "JAX_PLATFORMS": "cpu",
  }
  run = lambda *words: subprocess.run(
    [sys.executable, *words],
    cwd=tmp_path / "elsewhere",
    env=environment,
    capture_output=True,
    text=True,
    check=False,
  )
  done = run("-c", NOTEBOOK)
  assert done.returncode == 0, done.stderr
  done = run("-m", "experiments", "list")
  assert done.returncode == 0 and "chinchilla" in done.stdout, done.stderr


def test_requirements_of_the_package_are_those_of_users():
  """setuptools reads requirements.txt line by line, comments left out."""
  from importlib import metadata

  lines = (ROOT / "requirements.txt").read_text().splitlines()
  wanted = [line.partition(" #")[0] for line in lines if line and not line.startswith("#")]
  assert wanted and all(
    metadata.version(line.split("[")[0].split("=")[0].split(">")[0]) for line in wanted
  )


def test_the_dockerfile_is_linted():
  hadolint = shutil.which(
    "hadolint", path=str(pathlib.Path(sys.executable).parent)
  ) or shutil.which("hadolint")
  if hadolint is None:
    pytest.skip("hadolint is not installed")
  done = subprocess.run(
    [hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stdout
