"""Short rows first: batches whose rows grow to the model's length while the run goes on.

`data.length_curriculum` holds stages LENGTH:UNTIL, such as 64:0.2,128:0.5: rows of 64 tokens for the first
fifth of the run's steps, of 128 up to its half, and of model.seq_len from there on. A batch keeps its tokens:
each of its rows is cut into model.seq_len / LENGTH rows, so that order, budget, schedule and epochs stay what
they are without it, and only what a token can look back on changes.

Press et al. 2021 (Shortformer, arXiv:2012.15832 §3) train in such stages, with as many tokens a batch. Li et
al. 2022 (arXiv:2108.06084 §4) let the length grow linearly and truncate rows to it, so that early steps have
fewer tokens.

Which length a step has follows from the config and the step alone; a length is compiled when it first comes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lm.config.errors import ConfigError, check_divisible
from lm.config.schema import Config

KEY = "data.length_curriculum"
ROWS = ("tokens",)  # kinds of batch whose rows can be cut


def read(entries: tuple[str, ...]) -> list[tuple[int, float]]:
  """[(tokens of a row, fraction of the run's steps at which they end)] of stages LENGTH:UNTIL.

  Raises:
    ConfigError: what is no stage, lengths or fractions that do not grow.
  """
  stages = []
  for entry in entries:
    length, _, until = entry.partition(":")
    try:
      stages.append((int(length), float(until)))
    except ValueError:
      raise ConfigError(
        f"{KEY}={entry}: must be LENGTH:UNTIL, tokens and a fraction of the steps; use 64:0.2"
      ) from None
    before = stages[-2] if len(stages) > 1 else (0, 0.0)
    if not (before[0] < stages[-1][0] and before[1] < stages[-1][1] < 1):
      raise ConfigError(
        f"{KEY}={entry}: lengths must grow from 1 and fractions between 0 and 1; use 64:0.2,128:0.5"
      )
  return stages


def check(cfg: Config, kind: str) -> None:
  """ConfigError for stages that the rows, the kind of batch or the chunks of the objective rule out."""
  stages = read(cfg.data.length_curriculum)
  if stages and kind not in ROWS:
    raise ConfigError(f"{KEY}={_shown(cfg)}: is for rows of tokens, not for {kind}; leave it out")
  # Of these objectives the adversarial one, whose logits are whole, has no chunks.
  chunk = cfg.objective.chunk if hasattr(cfg.objective, "chunk") else None
  for length, _ in stages:
    if length >= cfg.model.seq_len or cfg.model.seq_len % length:
      raise ConfigError(
        f"{KEY}={_shown(cfg)}: {length} must be below model.seq_len={cfg.model.seq_len} and divide it; use "
        f"{max(n for n in range(1, cfg.model.seq_len) if cfg.model.seq_len % n == 0)}"
        if cfg.model.seq_len > 1
        else f"{KEY}={_shown(cfg)}: model.seq_len=1 has no shorter rows; leave it out"
      )
    if chunk is not None:
      check_divisible(KEY, length, chunk, "objective.chunk")


def check_mesh(cfg: Config) -> None:
  """ConfigError unless the mesh's sequence axis divides every length of a config with a resolved mesh."""
  for length, _ in read(cfg.data.length_curriculum):
    check_divisible(KEY, length, cfg.mesh.sequence, "mesh.sequence")


def stages(cfg: Config) -> list[tuple[int, int]]:
  """[(tokens of a row, the last update with them)] of a resolved config, the last one model.seq_len."""
  assert cfg.train.steps is not None
  found = [
    (length, round(until * cfg.train.steps)) for length, until in read(cfg.data.length_curriculum)
  ]
  return [*found, (cfg.model.seq_len, cfg.train.steps)]


def length_at(cfg: Config, step: int) -> int:
  """Tokens of a row in the update after `step` updates of a resolved config."""
  return next((length for length, last in stages(cfg) if step < last), cfg.model.seq_len)


def shares(cfg: Config, step: int | None = None) -> dict[int, float]:
  """{tokens of a row: share of the tokens that are trained on in such rows}.

  Args:
    cfg: config; until its steps are resolved, what stages ask for counts.
    step: only the first so many updates; None = the whole run.
  """
  if cfg.train.steps is None or not cfg.data.length_curriculum:
    ends = [*read(cfg.data.length_curriculum), (cfg.model.seq_len, 1.0)]
  else:
    ends = stages(cfg)
  end = ends[-1][1] if step is None else step
  found, first = {}, 0
  for length, last in ends:
    last = min(last, end)
    if last > first:
      found[length] = (last - first) / end
      first = last
  return found or {ends[0][0]: 1.0}


def cut(batch: Mapping[str, np.ndarray], pieces: int) -> dict[str, np.ndarray]:
  """Arrays [B, L] with every row cut into so many: [B pieces, L / pieces].

  Documents of a piece are numbered and their positions counted anew, as in a row of that length.
  """
  found = {
    name: array.reshape(len(array) * pieces, array.shape[1] // pieces)
    for name, array in batch.items()
  }
  if "segments" in found:
    segments, positions = found["segments"], found["positions"]
    first = segments[:, :1]
    began = positions == 0
    began[:, 0] = False  # there a piece goes on
    began = np.maximum.accumulate(began, axis=1)
    found["positions"] = np.where(began, positions, positions - positions[:, :1])
    found["segments"] = np.where(segments > 0, segments - np.maximum(first, 1) + 1, 0)
  return found


class Reader:
  """How the batch of one update is read: `rows` of it in all, and `read` those asked for."""

  def __init__(self, cfg: Config, step: int):
    self.pieces = 1
    if cfg.data.length_curriculum:
      self.pieces = cfg.model.seq_len // length_at(cfg, step)
    assert cfg.train.batch_size is not None
    self.rows = cfg.train.batch_size * self.pieces

  def read(self, batches: Any, number: int, rows: slice) -> Mapping[str, np.ndarray]:
    """Those rows of batch `number`; of cut ones, a slice that begins and ends with whole ones."""
    if self.pieces == 1:
      return batches.at(number, rows)
    whole = slice(rows.start // self.pieces, rows.stop // self.pieces)
    return cut(batches.at(number, whole), self.pieces)


def _shown(cfg: Config) -> str:
  return ",".join(cfg.data.length_curriculum)
