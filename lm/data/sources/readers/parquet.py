"""Parquet, read by pyarrow: a row is a record, and only the column of the text is read."""

from collections.abc import Iterator

from lm.config.errors import ConfigError
from lm.data.sources.readers.fields import Field, Record, listed, parse
from lm.data.sources.readers.utf8 import decode

ROWS = 1024  # read at a time


def read(path: str, field: Field, where: str) -> Iterator[str | Record | None]:
  """The text of every row; None where it is null."""
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError:
    raise ConfigError(f"{where}: {path} is parquet; pip install pyarrow") from None
  try:
    with parquet.ParquetFile(path) as file:
      columns = file.schema_arrow.names
      wanted = []
      for name, key in field.keys.items():
        wanted.append(name if name in columns else parse(name)[0])
        if wanted[-1] not in columns:
          raise ConfigError(f"{key}={name}: {path} has no such column; it has: {listed(columns)}")
      row = 0
      for batch in file.iter_batches(ROWS, columns=wanted, use_threads=False):
        for record in batch.to_pylist():
          row += 1
          for name, value in record.items():
            if isinstance(value, bytes):
              record[name] = decode(value, f"{path} row {row}", None, where)
          yield field.pick(record, f"{path} row {row}", where)
  except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
    reason = " ".join(str(error).split())[:120]
    raise ConfigError(
      f"{where}: {path} is not a whole parquet file ({reason}); fetch it again"
    ) from None
