"""Runs of train.py in this process, on one small program that many tests share."""

import contextlib
import io
import json
import pathlib
from collections.abc import Mapping

import train

TINY = {
  "model.width": 16, "model.depth": 1, "model.heads": 2, "model.seq_len": 16, "train.steps": 8,
  "eval.every_steps": 4, "eval.tokens": 512, "log.every_steps": 2, "sample.tokens": 0,
}  # fmt: skip


def run(
  workdir: pathlib.Path,
  *words: str,
  code: int = 0,
  config: str = "configs/smoke.py",
  tiny: Mapping[str, object] = TINY,
  **changes,
) -> str:
  """What train.py prints for a config made tiny, with changes; `a__b` is the key a.b."""
  settings = {**tiny} | {key.replace("__", "."): value for key, value in changes.items()}
  flags = [f"--config.{key}={value}" for key, value in settings.items()]
  out = io.StringIO()
  with contextlib.redirect_stdout(out):
    found = train.main(["--config", config, "--workdir", str(workdir), *flags, *words])
  assert found == code, out.getvalue()
  return out.getvalue()


def records(workdir: pathlib.Path) -> list[dict]:
  """The lines of metrics.jsonl."""
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
