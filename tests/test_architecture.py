"""Who may import whom, and which package lives in which file."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted(
  path
  for folder in ("lm", "configs", "experiments", ".")
  for path in (ROOT / folder).glob("*.py" if folder == "." else "**/*.py")
)
CODE = [path.relative_to(ROOT).as_posix() for path in FILES]

# package -> the only files that may import it
HOMES = {
  "wandb": ("lm/runs/wandb_mirror.py", "experiments/report/wandb_"),
  "orbax": ("lm/runs/checkpoint.py",),
  "tensorflow_datasets": ("lm/data/sources/",),
  "ml_collections": ("configs/", "lm/config/read.py"),
  "tensorboard": ("lm/runs/tensorboard_mirror.py",),
  "trackio": ("lm/runs/trackio_mirror.py",),
  "torch": (),
  "transformers": (),
}
# Rooms from low to high: each imports only from rooms before it (and a file from its own room).
LM = (
  "config", "files", "addresses", "hub", "devices", "data", "models", "objectives", "optim", "cost",
  "setup", "training", "plan", "runs", "hf", "start_from", "tasks", "evaluate", "embed", "compact", "inspect",
  "generate", "keys",
)  # fmt: skip
EXPERIMENTS = (
  "laws", "ledger", "sweep", "launch", "quote", "race", "report", "commands", "__main__",
)  # fmt: skip
# folder -> what it may not import
FORBIDDEN = {
  "lm/": ("configs", "experiments", "train"),
  "configs/": ("lm", "experiments", "train"),
  "experiments/": ("train",),
  "lm/data/": ("lm.models",),
  "lm/models/": ("lm.data",),
}


def imports(path: str) -> set[str]:
  """Dotted names of everything a file imports, at any depth of its code."""
  names = set()
  for node in ast.walk(ast.parse((ROOT / path).read_text())):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def is_within(name: str, package: str) -> bool:
  return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("path", CODE)
def test_imports_point_one_way(path):
  for name in imports(path):
    for folder, packages in FORBIDDEN.items():
      if path.startswith(folder):
        assert not any(is_within(name, package) for package in packages), f"{path} imports {name}"


def module_of(path: str) -> str:
  return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {module_of(path): path for path in CODE}


def files_imported(path: str) -> set[str]:
  """Files of this repository's rooms that a file imports."""
  found = set()
  for name in imports(path):
    name = name if name in MODULES else name.rpartition(".")[0]
    if name in MODULES and name not in ("lm", "experiments", "configs"):
      found.add(MODULES[name])
  return found


def room_of(path: str) -> str:
  return module_of(path).split(".")[1]


@pytest.mark.parametrize("path", CODE)
def test_rooms_import_in_one_direction(path):
  for package, order in (("lm", LM), ("experiments", EXPERIMENTS)):
    if not path.startswith(f"{package}/") or module_of(path) == package:
      continue
    rooms = {room_of(p) for p in files_imported(path) if p.startswith(f"{package}/")}
    mine = room_of(path)
    if mine not in order:
      assert package == "experiments", f"{path}: lm has no room {mine}; name its place in LM"
      continue  # a question may use every room
    questions = {room for room in rooms if room not in order}
    assert not questions, f"{path} imports the question {questions}"
    above = [room for room in rooms if order.index(room) > order.index(mine)]
    assert not above, f"{path} imports from {above}, which is above {mine}"


def test_no_circle_of_files():
  todo = {path: files_imported(path) - {path} for path in CODE}
  while ready := [path for path, needs in todo.items() if not needs & todo.keys()]:
    for path in ready:
      del todo[path]
  assert not todo, f"these import each other: {sorted(todo)}"


@pytest.mark.parametrize("path", CODE)
def test_packages_stay_in_their_file(path):
  for name in imports(path):
    for package, homes in HOMES.items():
      if is_within(name, package):
        assert path.startswith(homes or ("nowhere",)), f"{path} imports {name}"


@pytest.mark.parametrize("path", CODE)
def test_no_default_hides_in_library_code(path):
  """A default lives in configs/default.py: library code has no config.get(key, default)."""
  for node in ast.walk(ast.parse((ROOT / path).read_text())):
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
      owner = node.func.value
      names_config = isinstance(owner, ast.Name) and owner.id in ("config", "cfg")
      assert not (node.func.attr == "get" and names_config), f"{path}:{node.lineno}"


def test_the_loop_is_short_enough_to_read():
  assert len((ROOT / "train.py").read_text().splitlines()) <= 250


def test_top_level_holds_what_the_readme_says():
  allowed = {"README.md", "requirements.txt", "train.py", "configs", "lm", "experiments", "tests"}
  tools = {
    "pyproject.toml",
    ".ci",
    ".github",
    ".gitignore",
    "LICENSE",
    "CHANGELOG.md",
    "benchmarks",
  }
  tools |= {"CONTRIBUTING.md", "AGENTS.md", "requirements-dev.txt", "Dockerfile", ".dockerignore"}
  tools |= {f"constraints-py3{minor}.txt" for minor in (11, 12, 13)}
  tracked = {p.name for p in ROOT.iterdir()} - {".git", ".venv", "venv", "runs"}
  ignored = {
    name for name in tracked if name.startswith((".pytest", ".ruff", ".hypothesis", "__pycache__"))
  }
  assert tracked - ignored - allowed - tools == set()
