"""Files of a model hub's repositories, fetched by `huggingface_hub` into its own cache and read from there.

They are named OWNER/NAME[@REVISION]/PATTERN: `*`, `?`, `[...]` and `[!...]` match within a name of a folder
or file, `**` any folders. Without a revision it is the newest on the main branch, or the one in the cache
where the hub cannot be reached; a whole commit is asked for once. A process reads one commit of a branch or
tag, the first that it finds, wherever that moves meanwhile. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE
are the library's own settings.
"""

import glob
import pathlib
import re
from typing import Any, NamedTuple

from lm.config.errors import ConfigError, first_line, no_room, number_of, suggest

COMMIT = re.compile("[0-9a-f]{40}")
TIMEOUT = 20.0  # seconds until the hub counts as out of reach
LARGE = 50_000  # files from which on what the hub says of a repository may leave some out
EXAMPLE = "roneneldan/TinyStories/TinyStories-valid.txt"


class Address(NamedTuple):
  """What a name says."""

  repository: str  # OWNER/NAME
  revision: str | None  # branch, tag or commit
  pattern: str  # of the files; "" = not said


_commits: dict[tuple[str, Address], str] = {}  # those that this process reads


def parse(name: str, where: str) -> Address:
  """An address; ConfigError where it is none.

  >>> parse("a/b@v1/data/*.parquet", "data.sources=hub:a/b@v1/data/*.parquet")
  Address(repository='a/b', revision='v1', pattern='data/*.parquet')
  """
  found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.*))?", name)
  if not found:
    raise ConfigError(f"{where}: must be OWNER/NAME[@REVISION]/FILES; write e.g. hub:{EXAMPLE}")
  return Address(found[1], found[2], found[3] or "")


def files(name: str, kind: str, where: str) -> list[str]:
  """Paths of the files that a name matches, fetched where the cache lacks them, in the order of their names.

  Args:
    name: OWNER/NAME[@REVISION]/PATTERN.
    kind: "dataset" or "model", the kind of its repository.
    where: what errors begin with.

  Raises:
    ConfigError: no such repository, revision or file, no leave to read it, no connection.
  """
  address = parse(name, where)
  folder, names = fetch(address, kind, [address.pattern], where)
  return [str(folder / each) for each in names]


def fetch(
  address: Address, kind: str, patterns: list[str], where: str
) -> tuple[pathlib.Path, list[str]]:
  """(the folder of a revision in the cache, the names in it that match one of the patterns, one or more)."""
  said = (kind, address._replace(pattern=""))
  address = address._replace(revision=_commits.get(said, address.revision))
  folder = _cached(address, kind, patterns) if COMMIT.fullmatch(address.revision or "") else None
  commit, listed = folder.name if folder else "", []
  if folder is None:
    try:
      commit, listed = _names(address, kind, where)
    except _NoConnectionError as error:
      folder = _cached(address, kind, patterns)
      if folder is None:
        raise ConfigError(
          f"{where}: the hub cannot be reached ({error}) and the cache has not all of it; try again, or "
          "fetch it elsewhere and use text:FILES"
        ) from None
      commit = folder.name
  _commits[said] = commit
  if folder is not None:
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    listed = sorted(found)
  names = _matching(listed, patterns)
  if not names:
    close = suggest(address.pattern, listed) if len(listed) < 20 else f"it has {_some(listed)}"
    no = f"no file of {address.repository} matches; {close}"
    raise ConfigError(
      f"{where}: {no if address.pattern else f'names no file; add a pattern: it has {_some(listed)}'}"
    )
  return folder or _download(address, commit, kind, where, [glob.escape(n) for n in names]), names


def _matching(names: list[str], patterns: list[str]) -> list[str]:
  return [name for name in names if any(matches(name, pattern) for pattern in patterns)]


def matches(name: str, pattern: str) -> bool:
  """Whether a file's name matches a pattern.

  >>> [matches("a/b/c.txt", p) for p in ("a/*.txt", "a/*/c.txt", "**/*.txt", "a/b/[c-d].txt")]
  [False, True, True, True]
  """
  parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
  pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\])", pattern)
  said = (parts.get(p) or _one_of(p) or re.escape(p) for p in pieces)
  return name == pattern or re.fullmatch("".join(said), name) is not None


def _one_of(piece: str) -> str | None:
  """The regular expression of `[abc]`, `[a-c]` or `[!abc]` (any other character); None of what is none."""
  found = re.fullmatch(r"\[(!?)(.+)\]", piece)
  if not found:
    return None
  characters = re.sub(r"([\\\[\]^&~|])", r"\\\1", found[2])
  try:
    re.compile(f"[{characters}]")
  except re.error:
    return "(?!)"  # a range from back to front holds nothing
  return f"(?!/)[{'^' if found[1] else ''}{characters}]"


class _NoConnectionError(Exception):
  """The hub did not answer."""


def _names(address: Address, kind: str, where: str) -> tuple[str, list[str]]:
  """(the commit that a revision is now, the names of all files of it)."""
  import huggingface_hub
  from huggingface_hub import errors

  try:
    api, name = huggingface_hub.HfApi(), address.repository
    # Asked for once, while lists of trees are asked for again and again where nobody answers.
    info = api.repo_info(name, repo_type=kind, revision=address.revision, timeout=TIMEOUT)
    found = [each.rfilename for each in getattr(info, "siblings", None) or ()]
    if len(found) >= LARGE:
      found = api.list_repo_files(name, repo_type=kind, revision=info.sha)
  except errors.HfHubHTTPError as error:
    raise ConfigError(f"{where}: {_said(error)}") from None
  except errors.HFValidationError as error:
    raise ConfigError(f"{where}: {first_line(error)}; check the name") from None
  except Exception as error:  # in the words of whichever library noticed
    raise _NoConnectionError(first_line(error)) from None
  return info.sha or "", sorted(found)


def _cached(address: Address, kind: str, patterns: list[str]) -> pathlib.Path | None:
  """The folder of a revision, if the cache has all files of it that match."""
  import huggingface_hub

  # The library's `*` matches slashes, too, and its `**/` needs one: these match no fewer than ours.
  wider = [each for pattern in patterns for each in (pattern, pattern.replace("**/", ""))]
  try:
    found = huggingface_hub.snapshot_download(
      address.repository, repo_type=kind, revision=address.revision, local_files_only=True,
      allow_patterns=wider,
    )  # fmt: skip
    return pathlib.Path(found)
  except Exception:
    return None


def _download(
  address: Address, commit: str, kind: str, where: str, patterns: list[str]
) -> pathlib.Path:
  """The folder of a commit, with those files; the cache learns that the revision is that commit."""
  import huggingface_hub
  from huggingface_hub import errors

  try:
    for revision in (address.revision, commit):  # the second where the first has just moved
      found = huggingface_hub.snapshot_download(
        address.repository, repo_type=kind, revision=revision, allow_patterns=patterns
      )
      if pathlib.Path(found).name == commit:
        break
    return pathlib.Path(found)
  except errors.HfHubHTTPError as error:
    raise ConfigError(f"{where}: {_said(error)}") from None
  except Exception as error:
    if no_room(error):
      raise
    raise ConfigError(
      f"{where}: {address.repository} could not be fetched ({first_line(error)}); what has come is kept: "
      "start again"
    ) from None


def _said(error: Any) -> str:
  """What the hub's answer means to who asked."""
  from huggingface_hub import errors

  if isinstance(error, errors.GatedRepoError):
    return "asks for leave to read it; accept its terms on the hub, then set HF_TOKEN"
  if isinstance(error, errors.RevisionNotFoundError):
    return "has no such revision; leave @REVISION out for the newest"
  if isinstance(error, errors.RepositoryNotFoundError):
    return "no such repository, or a private one; check the name, or set HF_TOKEN"
  return f"the hub refuses ({first_line(error)}); try again later"


def _some(names: list[str], most: int = 6) -> str:
  more = len(names) - most
  return ", ".join(names[:most]) + (f" and {number_of(more, 'more file')}" if more > 0 else "")
