"""Offline Weights & Biases runs as flat rows, read from their run-*.wandb files."""

import json
import pathlib
import shlex
import struct
from collections.abc import Iterator

from lm.config.errors import ConfigError

BLOCK = 1 << 15  # bytes of a block of a .wandb file


def read_offline(folder: str) -> list[dict[str, object]]:
  """One flat row for each offline run: name, state, config, last metrics.

  The state is W&B's word: finished, failed, or crashed where the run's files do not say how it ended.
  """
  root = pathlib.Path(folder)
  files = sorted(root.rglob("run-*.wandb")) if root.is_dir() else []
  if not files:
    raise ConfigError(
      f"wandb_offline={shlex.quote(folder)}: holds no run-*.wandb file; name a folder with offline runs"
    )
  by_id: dict[str, dict] = {}
  for file in files:  # a resumed run has several
    run_id, row = _read_run(file)
    if len(row) > 2:  # else nothing has been written yet
      by_id[run_id] = {**by_id.get(run_id, {}), **row}
  return list(by_id.values())


def _read_run(file: pathlib.Path) -> tuple[str, dict[str, object]]:
  """(its id, which names may share, its row) of a file; ConfigError for one that is damaged."""
  from google.protobuf.message import DecodeError
  from wandb.proto.wandb_internal_pb2 import Record

  run_id, row = file.stem, {"name": file.stem, "state": "crashed"}
  try:
    for data in _log_records(file.read_bytes()):
      record = Record()
      record.ParseFromString(data)
      kind = record.WhichOneof("record_type")
      if kind == "run":
        run_id = record.run.run_id or run_id
        row["name"] = record.run.display_name or record.run.run_id or row["name"]
        for item in record.run.config.update:
          put(row, item.key or ".".join(item.nested_key), json.loads(item.value_json))
      elif kind == "history":
        files = {i.nested_key[0] for i in record.history.item if i.nested_key[1:] == ["_type"]}
        for item in record.history.item:
          if not (item.nested_key and item.nested_key[0] in files):  # a table, a picture
            put(row, item.key or "/".join(item.nested_key), json.loads(item.value_json))
      elif kind == "exit":
        row["state"] = "failed" if record.exit.exit_code else "finished"
  except (OSError, DecodeError, ValueError) as error:
    why = str(error).partition("\n")[0] or type(error).__name__
    raise ConfigError(
      f"wandb_offline={shlex.quote(str(file))}: cannot be read ({why}); copy it again, or take it away"
    ) from None
  return run_id, {k: v for k, v in row.items() if not k.startswith("_")}


def _log_records(content: bytes) -> Iterator[bytes]:
  """The records of a .wandb file; one cut short by a kill ends it.

  LevelDB's log format: after a header of 7 bytes, blocks of 32 KiB with pieces of (checksum: 4 bytes,
  length: 2, kind: 1 whole, 2 first, 3 middle, 4 last, then the data); what is left of a block under 7
  bytes is empty.
  """
  at, held = 7, b""
  while at + 7 <= len(content):
    if (room := BLOCK - at % BLOCK) < 7:
      at += room
      continue
    length, kind = struct.unpack_from("<HB", content, at + 4)
    piece = content[at + 7 : at + 7 + length]
    if len(piece) < length or kind not in (1, 2, 3, 4):
      return
    at += 7 + length
    held = piece if kind in (1, 2) else held + piece
    if kind in (1, 4):
      yield held


def put(row: dict, key: str, value: object) -> None:
  """Sets a number or text under its key, those of a mapping joined by dots; tables are left out."""
  if isinstance(value, dict) and "_type" in value:  # a table, a picture: files elsewhere
    return
  if isinstance(value, dict):
    for inner, each in value.items():
      put(row, f"{key}.{inner}", each)
  elif isinstance(value, int | float | str) or value is None:
    row[key] = value
