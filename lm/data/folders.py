"""Folders of a cache: each appears whole or not at all, is checked when opened, and built again if damaged.

checksums.json holds size and hash of every other file. Sizes are compared at every opening, contents
once: checked.json remembers which file was whole at which size and times of change. Where data.cache_dir
is an address (gs://, s3://), a folder that is missing here is fetched from there, or built and sent there.
"""

import contextlib
import errno
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from lm.addresses import is_address, make_parent, open_address, remedy
from lm.config.errors import NO_ROOM, ConfigError, first_line
from lm.data.sources.digest import file_digest, local_root

CHECKSUMS, CHECKED = "checksums.json", "checked.json"
PROGRESS_BYTES = 1 << 18  # between two changes of the progress bar
SETTLED_SECONDS = 0.1  # a file changed later than so long ago may change again at the same time
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
TRANSIENT = ("text.bin", "docs.bin", "sides.bin")  # the spool's, of no use when all is tokenised

Track = Callable[[str, int | None], Callable[[int], None]]


_there: dict[pathlib.Path, str] = {}  # address in a bucket of a folder that stands for it here


def open_root(cache_dir: str) -> pathlib.Path:
  """The folder of caches, made where it is missing.

  Raises:
    ConfigError: it cannot be made, or is in a bucket of a kind that cannot be opened.
  """
  root = local_root(cache_dir)
  if is_address(cache_dir):
    open_address("data.cache_dir", cache_dir)
    _there[root] = cache_dir.rstrip("/")
  try:
    root.mkdir(parents=True, exist_ok=True)
  except (OSError, ValueError) as error:
    raise ConfigError(
      f"data.cache_dir={cache_dir}: cannot be made ({getattr(error, 'strerror', error)}); choose "
      "another folder"
    ) from None
  return root


def build_once(
  root: pathlib.Path, key: str, build: Callable[[pathlib.Path, Track], None], quiet: bool
) -> pathlib.Path:
  """The whole folder root/key: built by build(folder, track) where it is missing or damaged.

  One process builds, others wait for it. Raises: ConfigError where there is no room or right to write.
  """
  folder = root / key
  try:
    if folder.exists() and find_damage(folder) is None:
      return folder
    with _lock(root / f"{key}.lock", quiet):
      damage = find_damage(folder) if folder.exists() else None
      if folder.exists() and damage is None:
        return folder
      if damage is not None:
        print(f"token cache {folder}: {damage}; building it again from the source", file=sys.stderr)
        shutil.rmtree(folder)
      if not _fetch(root, key, quiet):
        _build(root, key, build, quiet)
        _send(root, key)
  except OSError as error:
    reason = error.strerror or str(error)
    if error.errno in NO_ROOM:
      raise ConfigError(
        f"data.cache_dir={root}: has no room for this token cache ({reason}); free some, or choose "
        "another folder"
      ) from None
    raise ConfigError(
      f"data.cache_dir={root}: cannot be written ({reason}); choose another folder"
    ) from None
  return folder


def _build(root: pathlib.Path, key: str, build: Callable, quiet: bool) -> None:
  for leftover in root.glob(f".{key}-*"):  # of a build that was killed
    shutil.rmtree(leftover, ignore_errors=True)
  folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{key}-", dir=root))
  try:
    with _progress(quiet) as track:
      build(folder, track)
    for name in TRANSIENT:
      (folder / name).unlink(missing_ok=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {
      path.relative_to(folder).as_posix(): [path.stat().st_size, file_digest(path)]
      for path in files
    }
    (folder / CHECKSUMS).write_text(json.dumps(sums))
    folder.chmod(0o755)  # mkdtemp's is private; caches may be shared
    try:
      folder.rename(root / key)
    except OSError:
      if not (root / key).exists():  # a builder that our lock does not reach came first
        raise
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _fetch(root: pathlib.Path, key: str, quiet: bool) -> bool:
  """Whether a bucket had a whole folder, which is here now. False where there is no bucket."""
  if root not in _there:
    return False
  url = f"{_there[root]}/{key}"
  fs, path = open_address("data.cache_dir", url)
  folder = pathlib.Path(tempfile.mkdtemp(prefix=f".{key}-", dir=root))
  try:
    fs.invalidate_cache()
    if not fs.exists(f"{path}/{CHECKSUMS}"):  # sent after all others
      return False
    if not quiet:
      print(f"token cache: fetching {url}", file=sys.stderr)
    fs.get_file(f"{path}/{CHECKSUMS}", str(folder / CHECKSUMS))
    for name in _read(folder / CHECKSUMS):
      if not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name} would leave its folder")
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      fs.get_file(f"{path}/{name}", str(folder / name))
    if damage := find_damage(folder):
      print(f"token cache {url}: {damage}; building it again from the source", file=sys.stderr)
      return False
    folder.chmod(0o755)
    folder.rename(root / key)
    return True
  except Exception as error:
    raise ConfigError(
      f"data.cache_dir={_there[root]}: cannot be read ({first_line(error)}); {remedy(error)}"
    ) from None
  finally:
    shutil.rmtree(folder, ignore_errors=True)


def _send(root: pathlib.Path, key: str) -> None:
  """Sends a folder to the bucket that its root stands for, checksums last; without one, nothing."""
  if root not in _there:
    return
  fs, path = open_address("data.cache_dir", f"{_there[root]}/{key}")
  try:
    for name in [*_read(root / key / CHECKSUMS), CHECKSUMS]:
      make_parent(fs, f"{path}/{name}")
      fs.put_file(str(root / key / name), f"{path}/{name}")
  except Exception as error:  # a shared cache may be read-only
    print(
      f"token cache {_there[root]}: cannot be written ({first_line(error)}); kept on this machine alone",
      file=sys.stderr,
    )


def find_damage(folder: pathlib.Path) -> str | None:
  """What is wrong with a folder that `build_once` made; None if it is whole."""
  sums = _read(folder / CHECKSUMS)
  if not sums:
    return f"{CHECKSUMS} is damaged or missing"
  known = _read(folder / CHECKED)
  checked, now = {}, time.time()
  for name, entry in sums.items():
    try:
      size, digest = entry
      stat = os.stat(folder / name)
      if stat.st_size != size:
        return f"{name} has {stat.st_size:,} bytes, not {size:,}"
      mark = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
      if known.get(name) != mark and file_digest(folder / name) != digest:
        return f"{name} is damaged (its checksum differs)"
    except (OSError, ValueError, TypeError) as error:
      return f"{name} cannot be read ({getattr(error, 'strerror', error)})"
    if now - stat.st_ctime > SETTLED_SECONDS:
      checked[name] = mark
  if checked != known:
    partial = folder / f"{CHECKED}.{os.getpid()}"
    with contextlib.suppress(OSError):  # a shared cache may be read-only; then we check again
      partial.write_text(json.dumps(checked))
      partial.replace(folder / CHECKED)
  return None


def _read(path: pathlib.Path) -> dict:
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError):
    return {}
  return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def _lock(path: pathlib.Path, quiet: bool) -> Iterator[None]:
  """Held by one process at a time; the system lets go of it when the process dies."""
  try:
    import fcntl
  except ImportError:  # Windows: two builders may both work, and the first to rename wins
    yield
    return
  with open(path, "w") as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      if error.errno not in NO_LOCKS:  # some network file systems have none: as on Windows
        if not quiet:
          print("waiting for another process that is building this corpus", file=sys.stderr)
        fcntl.flock(file, fcntl.LOCK_EX)
    yield
  # The file stays: deleting it would let two processes lock two files of the same name.


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[Track]:
  """Gives track(label, total) -> advance(amount): bars on stderr, or nothing when quiet."""
  if quiet:
    yield lambda label, total: lambda amount: None
    return
  from rich import progress
  from rich.console import Console

  columns = (
    progress.TextColumn("{task.description}"),
    progress.BarColumn(),
    progress.DownloadColumn(),
    progress.TimeRemainingColumn(),
  )
  with progress.Progress(*columns, console=Console(stderr=True)) as bars:

    def track(label: str, total: int | None) -> Callable[[int], None]:
      task, waiting = bars.add_task(label, total=total), 0

      def advance(amount: int) -> None:
        nonlocal waiting  # drawing costs more than reading a short document
        waiting += amount
        if waiting >= PROGRESS_BYTES:
          bars.update(task, advance=waiting)
          waiting = 0

      return advance

    yield track
