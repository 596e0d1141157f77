"""Hashes of content, by which a token cache knows its source again."""

import contextlib
import functools
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Iterable

from lm.addresses import is_address
from lm.config.errors import ConfigError

HOME = "~/.cache/isoflop"  # data.cache_dir's default: folders that stand for buckets are in it
SETTLED_SECONDS = 2.0  # a file changed later than so long ago may change again at the same mtime


def digest(chunks: Iterable[bytes]) -> str:
  """32 hex digits of the chunks, one after another."""
  state = hashlib.blake2b(digest_size=16)
  for chunk in chunks:
    state.update(chunk)
  return state.hexdigest()


def file_digest(path: str | pathlib.Path) -> str:
  with open(path, "rb") as file:
    return digest(iter(functools.partial(file.read, 1 << 20), b""))


def hash_of(parts: object) -> str:
  """16 hex digits of what JSON can say, the name of a folder of the cache."""
  return hashlib.blake2b(json.dumps(parts).encode(), digest_size=8).hexdigest()


def local_root(cache_dir: str) -> pathlib.Path:
  """The folder of caches on this machine: cache_dir itself, or the one that stands for a bucket's address."""
  if is_address(cache_dir):
    return pathlib.Path(HOME).expanduser() / "buckets" / hash_of(cache_dir.rstrip("/"))
  return pathlib.Path(cache_dir).expanduser()


def remembered_digests(paths: list[str], cache_dir: str, where: str) -> list[str]:
  """The content hash of each file; it is remembered while size and times of change stay.

  Raises: ConfigError, starting with `where`, on a file that cannot be read.
  """
  memory_path = local_root(cache_dir) / "file_hashes.json"
  memory = _read_memory(memory_path)
  known, hashes = len(memory), []
  for path in paths:
    try:
      stat = os.stat(path)
      key = f"{os.path.abspath(path)}|{stat.st_size}|{stat.st_mtime_ns}|{stat.st_ctime_ns}"
      found = memory[key] if key in memory else file_digest(path)
    except OSError as error:
      raise ConfigError(
        f"{where}: {path} cannot be read ({error.strerror}); check the file"
      ) from None
    if time.time() - stat.st_ctime > SETTLED_SECONDS:
      memory[key] = found
    hashes.append(found)
  if len(memory) > known:
    partial = memory_path.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):  # a shared cache may be read-only; then we hash again
      memory_path.parent.mkdir(parents=True, exist_ok=True)
      partial.write_text(json.dumps(memory))
      partial.replace(memory_path)  # a concurrent writer's entries may be lost, never garbled
  return hashes


def _read_memory(path: pathlib.Path) -> dict[str, str]:
  try:
    memory = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError):
    return {}
  if not isinstance(memory, dict):
    return {}
  return {key: value for key, value in memory.items() if isinstance(value, str)}
