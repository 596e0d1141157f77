"""Addresses in buckets (gs://, s3://, what else fsspec opens), and what is said where one does not answer."""

import logging
import threading
from typing import Any

import fsspec

from lm.config.errors import ConfigError, first_line

PACKAGES = {
  "gs": "gcsfs",
  "gcs": "gcsfs",
  "s3": "s3fs",
  "s3a": "s3fs",
  "az": "adlfs",
  "abfs": "adlfs",
}


def is_address(path: str) -> bool:
  """Whether it is an address, not a path."""
  return "://" in path


def open_address(key: str, url: str) -> tuple[Any, str]:
  """(file system, path in it) of an address, or of a path.

  Raises:
    ConfigError: of a kind that is not known, or without its package; it begins with `key`.
  """
  kind = url.partition("://")[0]
  _say_once("gcsfs")
  try:
    return fsspec.core.url_to_fs(url)
  except (ImportError, ValueError) as error:
    remedy = f"pip install {PACKAGES[kind]}" if kind in PACKAGES else "use a path, gs:// or s3://"
    raise ConfigError(f"{key}={url}: {first_line(error)}; {remedy}") from None


def remedy(error: BaseException) -> str:
  """What to do about an address that does not answer as it should."""
  if "credential" in str(error).lower():
    return "log in as the bucket's kind asks for, by its environment variables or its login command"
  return "check the address and your rights"


def make_parent(fs: Any, path: str) -> None:
  """The folder of a file; object stores have none, and would make a bucket of a name that is misspelt."""
  kinds = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
  if not PACKAGES.keys() & set(kinds):
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)


class _Once(logging.Filter):
  """Lets a message through once: a file system that cannot ask for a bucket's kind says so at every file."""

  def __init__(self):
    super().__init__()
    self._said: set[str] = set()
    self._busy = threading.Lock()

  def filter(self, record: logging.LogRecord) -> bool:
    if record.levelno > logging.WARNING:
      return True
    said = record.getMessage()
    with self._busy:
      if said in self._said:
        return False
      self._said.add(said)
    return True


def _say_once(logger: str) -> None:
  found = logging.getLogger(logger)
  if not any(isinstance(each, _Once) for each in found.filters):
    found.addFilter(_Once())
