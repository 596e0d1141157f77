"""By what code a run is made: its commit and what it has beside it, extensions, versions of packages."""

import hashlib
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata

from lm.config.schema import Config

# Says the same whatever git's settings are.
PATCH = (
  "-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false", "-c", "core.quotePath=true",
  "diff", "HEAD", "--full-index", "--no-color", "--no-ext-diff", "--no-textconv", "--no-renames",
  "-U3", "--diff-algorithm=myers", "--no-relative", "--ita-invisible-in-index", "--submodule=short",
)  # fmt: skip
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy", "tokenizers")


def git_state() -> dict[str, object]:
  """{"commit", "dirty", "uncommitted"} of the code; None outside a checkout, or where git does not answer.

  `uncommitted` is a hash of what tracked files have beside the commit; None where there is nothing.
  """
  here = pathlib.Path(__file__).parent
  try:
    commit = _git(["rev-parse", "HEAD"], here)
    dirty = bool(_git(["status", "--porcelain", "--untracked-files=no"], here))
    changes = _git(PATCH, here) if dirty else ""
  except (OSError, subprocess.SubprocessError):  # a busy machine lets it run out of time
    return {"commit": None, "dirty": None, "uncommitted": None}
  found = hashlib.sha256(changes.encode()).hexdigest()[:12] if changes else None
  return {"commit": commit, "dirty": dirty, "uncommitted": found}


def extension_digests(cfg: Config) -> dict[str, str | None]:
  """{module: 12 hex digits of its file} of `extensions`; None where no file can be read."""
  found: dict[str, str | None] = {}
  for name in cfg.extensions:
    path = getattr(sys.modules.get(name), "__file__", None)
    try:
      found[name] = hashlib.sha256(pathlib.Path(path or "").read_bytes()).hexdigest()[:12]
    except OSError:
      found[name] = None
  return found


def versions() -> dict[str, str]:
  """Python's and the packages' versions."""
  found = {"python": platform.python_version()}
  for name in PACKAGES:
    try:
      found[name] = metadata.version(name)
    except metadata.PackageNotFoundError:
      continue
  return found


def _git(words: Sequence[str], folder: pathlib.Path) -> str:
  out = subprocess.run(
    ["git", *words],
    cwd=folder,
    check=True,
    capture_output=True,
    text=True,
    errors="replace",
    timeout=10,
  )
  return out.stdout.strip()
