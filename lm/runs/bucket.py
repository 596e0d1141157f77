"""Run directories in buckets: a run works in a local folder, which is sent to gs://, s3:// as it grows.

What is there is fetched when a run is opened. What has changed is sent after each checkpoint and at the end:
the record, then the checkpoints, of each its checksums last, then run.json, so that no reader finds a
checkpoint ahead of its record, and half of one is known for what it is. Local folders lie in the system's
folder for temporary files (TMPDIR), and go when the process ends if the bucket has all of them. Buckets have
no locks: two processes on one address are not kept apart.
"""

import atexit
import contextlib
import os
import pathlib
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from lm.addresses import make_parent, open_address, remedy
from lm.config.errors import ConfigError, first_line
from lm.devices import processes
from lm.runs import lock

LOCAL = (".lock", lock.NAME, ".run.json", ".config.json")  # begin the names of files that stay
PARTIAL = ".orbax-checkpoint-tmp"
WAIT_SECONDS = 1200.0  # for a checkpoint to be whole
TRIES = 3

_buckets: dict[pathlib.Path, "_Bucket"] = {}  # by local folder


def local(workdir: str) -> pathlib.Path:
  """The folder to work in: the path itself, or a local copy of what a bucket's address holds.

  Raises:
    ConfigError: an address of a kind without its package, one that cannot be read, several processes, a path
      that is no text.
  """
  if "://" not in workdir:
    return checked_path("workdir", workdir)
  kind = workdir.partition("://")[0]
  fs, path = open_address("workdir", workdir)
  if not processes.is_alone():
    raise ConfigError(
      f"workdir={workdir}: several processes share one folder; mount the bucket and give its path"
    )
  if kind in ("file", "local"):
    return pathlib.Path(path)
  name = path.rstrip("/").rpartition("/")[2] or "run"
  folder = pathlib.Path(tempfile.mkdtemp(prefix="isoflop-")) / name
  bucket = _Bucket(workdir.rstrip("/"), fs, path.rstrip("/"), folder)
  try:
    bucket.fetch()
  except Exception as error:
    shutil.rmtree(folder.parent, ignore_errors=True)
    raise ConfigError(
      f"workdir={workdir}: cannot be read ({first_line(error)}); {remedy(error)}"
    ) from None
  _buckets[folder] = bucket
  atexit.register(bucket.forget)
  return folder


def checked_path(key: str, text: str) -> pathlib.Path:
  """The path; ConfigError for one that is no text in UTF-8, or none here, as libraries cannot write there."""
  try:
    os.fsencode(str(pathlib.Path(text).resolve())).decode("utf-8")
    text.encode("utf-8")
  except ValueError:  # UnicodeError is one, and what a zero byte raises
    raise ConfigError(
      f"{key}={text!a}: is no text in UTF-8; choose another name, or set PYTHONUTF8=1 where the "
      "locale has no UTF-8"
    ) from None
  return pathlib.Path(text)


def check_writable(workdir: pathlib.Path) -> None:
  """ConfigError unless the bucket of a local copy takes and gives up a file; paths pass."""
  bucket = _buckets.get(workdir)
  if bucket is None:
    return
  try:
    bucket.probe()
  except Exception as error:
    raise ConfigError(
      f"workdir={bucket.url}: cannot be written ({first_line(error)}); {remedy(error)}"
    ) from None


@contextlib.contextmanager
def written(key: str, out: str) -> Iterator[pathlib.Path]:
  """A path to write to; what lies beside it is sent to `out` at the end where that is an address.

  Raises:
    ConfigError: the address is of a kind without its package, or cannot be written; it begins with `key`.
  """
  if "://" not in out:
    yield pathlib.Path(out)
    return
  fs, path = open_address(key, out)
  there, _, name = path.rpartition("/")
  with tempfile.TemporaryDirectory(prefix="isoflop-") as folder:
    yield pathlib.Path(folder) / name
    try:
      for file in _files(pathlib.Path(folder)):
        target = f"{there}/{file.relative_to(folder).as_posix()}"
        make_parent(fs, target)
        fs.put_file(str(file), target)
    except Exception as error:
      raise ConfigError(
        f"{key}={out}: cannot be written ({first_line(error)}); {remedy(error)}"
      ) from None


@contextlib.contextmanager
def readable(key: str, url: str) -> Iterator[None]:
  """Within, what keeps an address from being read becomes one line, a ConfigError; paths are left alone."""
  try:
    yield
  except ConfigError:
    raise
  except Exception as error:
    if "://" not in url:
      raise
    raise ConfigError(
      f"{key}={url}: cannot be read ({first_line(error)}); {remedy(error)}"
    ) from None


def name_of(workdir: pathlib.Path) -> str:
  """The address of a local copy; any other path as it is."""
  return _buckets[workdir].url if workdir in _buckets else str(workdir)


def with_names(text: str) -> str:
  """A text in which local copies are called by their addresses."""
  for folder, bucket in _buckets.items():
    text = text.replace(str(folder), bucket.url)
  return text


def send_soon(workdir: pathlib.Path, step: int) -> None:
  """Sends what is new once the checkpoint of a step is whole, while training goes on."""
  if workdir in _buckets:
    threading.Thread(target=_buckets[workdir].send_after, args=(step,), daemon=True).start()


def send(workdir: pathlib.Path) -> str | None:
  """Sends what is new; returns what kept it from that, in words. None for a path that is no bucket's."""
  return _buckets[workdir].try_to_send() if workdir in _buckets else None


class _Bucket:
  def __init__(self, url: str, fs: Any, path: str, folder: pathlib.Path):
    self.url, self._fs, self._path, self._folder = url, fs, path, folder
    self._sent: dict[str, tuple[int, int]] = {}  # size and time of change of what the bucket has
    self._busy = threading.Lock()
    self._all_sent = True  # nothing is here that the bucket lacks

  def forget(self) -> None:
    """Deletes the local copy, if the bucket has all of it."""
    if self._all_sent:
      shutil.rmtree(self._folder.parent, ignore_errors=True)

  def probe(self) -> None:
    """Writes a file there and deletes it."""
    name = f"{self._path}/.probe.{os.getpid()}"
    make_parent(self._fs, name)
    self._fs.pipe_file(name, b"isoflop")
    self._fs.rm_file(name)
    self._all_sent = False

  def fetch(self) -> None:
    self._fs.invalidate_cache()
    if not self._fs.exists(self._path):
      return
    for found in self._fs.find(self._path):
      name = found[len(self._path) :].lstrip("/")
      target = self._folder / name
      if not target.resolve().is_relative_to(self._folder.resolve()):
        raise ValueError(f"{name} would leave its folder")
      target.parent.mkdir(parents=True, exist_ok=True)
      self._fs.get_file(found, str(target))
      self._sent[name] = _mark(target)

  def send_after(self, step: int) -> None:
    until = time.monotonic() + WAIT_SECONDS
    while not (self._folder / "checkpoints" / str(step)).is_dir() and time.monotonic() < until:
      time.sleep(0.05)
    problem = self.try_to_send()
    if problem:
      print(f"{self.url}: {problem}; tried again at the next checkpoint", file=sys.stderr)

  def try_to_send(self) -> str | None:
    for attempt in range(TRIES):
      try:
        with self._busy:
          self._all_sent = False
          self._send()
          self._all_sent = True
        return None
      except Exception as error:
        problem = f"cannot be written ({first_line(error)})"
        time.sleep(0.1 * attempt)
    return f"{problem}; all of it is in {self._folder}"

  def _send(self) -> None:
    files = {path.relative_to(self._folder).as_posix(): path for path in _files(self._folder)}
    for name in sorted(files, key=_order):
      try:
        mark = _mark(files[name])
      except FileNotFoundError:
        continue  # an old checkpoint, deleted since
      if self._sent.get(name) != mark:
        make_parent(self._fs, f"{self._path}/{name}")
        self._fs.put_file(str(files[name]), f"{self._path}/{name}")
        self._sent[name] = mark
    gone = [
      n for n in self._sent if n.startswith("checkpoints/") and not (self._folder / n).exists()
    ]
    for name in sorted(gone, key=_order, reverse=True):  # a checkpoint's checksums first
      if self._fs.exists(f"{self._path}/{name}"):
        self._fs.rm_file(f"{self._path}/{name}")
      del self._sent[name]


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
  found = []
  for root, _, names in os.walk(folder):
    if PARTIAL not in root:
      own = [n for n in names if not n.startswith(LOCAL)]
      found += [pathlib.Path(root) / name for name in own]
  return found


def _order(name: str) -> tuple[int, str]:
  if name == "run.json":
    return 3, name
  if name.startswith("checkpoints/"):
    return (2 if name.endswith("/checksums.json") else 1), name
  return 0, name


def _mark(path: pathlib.Path) -> tuple[int, int]:
  stat = path.stat()
  return stat.st_size, stat.st_mtime_ns
