"""The code of a commit as two files that any machine can unpack: a git bundle, and a patch where allowed."""

import os
import pathlib
import subprocess
import tempfile
from typing import NamedTuple

from experiments.sweep.sweep import REPO
from lm.config.errors import ConfigError

# package of fsspec's file system for a kind of bucket
STORES = {"gs": "gcsfs", "s3": "s3fs", "r2": "s3fs", "az": "adlfs", "memory": "fsspec"}
PYTHON = "3.12"  # of the machines
CONSTRAINTS = "constraints-py312.txt"  # of that Python: all machines compute the same bits


class Code(NamedTuple):
  """`bundle` holds the commit with its history, `patch` what the tree has beside it (None = nothing)."""

  commit: str
  bundle: pathlib.Path
  patch: pathlib.Path | None


def check(allow_patch: bool, repo: pathlib.Path = REPO) -> str:
  """The commit of the code.

  Raises:
    ConfigError: it is not a git checkout, or has changes that are not committed and not to be bundled.
  """
  if _git(repo, "rev-parse", "--verify", "HEAD").returncode:
    raise ConfigError(f"code={repo}: is no git checkout with a commit; runs elsewhere need one")
  changed = _git(repo, "status", "--porcelain").stdout.splitlines()
  if changed and not allow_patch:
    raise ConfigError(
      f"code={changed[0][3:]}: is changed and not committed; commit it, or send it along with "
      "--with patch=yes"
    )
  return _git(repo, "rev-parse", "HEAD").stdout.strip()


def bundle(folder: pathlib.Path, allow_patch: bool, repo: pathlib.Path = REPO) -> Code:
  """Writes FOLDER/code.bundle and, for a changed tree, FOLDER/code.patch."""
  commit = check(allow_patch, repo)
  folder.mkdir(parents=True, exist_ok=True)
  file = folder / "code.bundle"
  out = _git(repo, "bundle", "create", "--quiet", str(file.resolve()), "HEAD")
  if out.returncode:
    raise ConfigError(f"code={repo}: git bundle fails ({out.stderr.strip().splitlines()[-1]})")
  patch, changes = folder / "code.patch", _changes(repo)
  if not changes:
    patch.unlink(missing_ok=True)
    return Code(commit, file, None)
  patch.write_text(changes, encoding="utf-8")
  return Code(commit, file, patch)


def unpack(code: Code, folder: str = "isoflop") -> list[str]:
  """Shell lines that unpack the code from the files beside them into a folder, and go there."""
  lines = [
    f"[ -d {folder} ] || git clone --quiet code.bundle {folder}",
    f"cd {folder}",
    f"git checkout --quiet --force {code.commit}",
  ]
  return lines + (["git apply --index ../code.patch"] if code.patch else [])


def install(extra: str, folder: str) -> list[str]:
  """Shell lines that make a virtual environment, all pinned: requirements, jax's extra, a file system."""
  store = STORES[folder.partition("://")[0]]
  return [
    "python3 -m pip install --quiet --user uv",
    f"python3 -m uv venv --quiet --allow-existing --python {PYTHON} .venv",
    f"python3 -m uv pip install --quiet --python .venv -c {CONSTRAINTS} -r requirements.txt "
    f'"jax[{extra}]" {store}',
  ]


def _changes(repo: pathlib.Path) -> str:
  """What the tree has beside the commit, new files included; the user's index is left alone."""
  with tempfile.TemporaryDirectory() as place:
    index = {**os.environ, "GIT_INDEX_FILE": f"{place}/index"}
    _git(repo, "read-tree", "HEAD", env=index)
    _git(repo, "add", "--all", env=index)
    return _git(repo, "diff", "--cached", "--binary", "HEAD", env=index).stdout


def _git(repo: pathlib.Path, *words: str, env=None) -> subprocess.CompletedProcess:
  return subprocess.run(
    ["git", *words], cwd=repo, capture_output=True, text=True, check=False, env=env
  )
