"""Files of a data set on a hub, `hub:OWNER/NAME[@REVISION]/FILES`: fetched once, read as those of text:"""

from collections.abc import Iterator

from lm import hub
from lm.config.schema import DataConfig
from lm.data.sources import text
from lm.data.sources.readers.fields import Fields, Record

EXAMPLE = f"hub:{hub.EXAMPLE}"


def find(name: str, where: str) -> list[str]:
  """Paths of the files in the hub's cache."""
  return hub.files(name, "dataset", where)


def documents(name: str, cfg: DataConfig, split: str, where: str) -> Iterator[str | None]:
  """Documents of every file that `name` matches, file by file in the order of their names."""
  return text.read(find(name, where), cfg, where)


def records(name: str, cfg: DataConfig, fields: Fields, where: str) -> Iterator[Record]:
  """The records of every file that `name` matches."""
  return text.read_records(find(name, where), cfg, fields, where)


def identity(name: str, cfg: DataConfig, split: str, where: str) -> str:
  """That of the files' content: the same as of text: with a copy of them."""
  return text.identity_of(find(name, where), cfg, where)
