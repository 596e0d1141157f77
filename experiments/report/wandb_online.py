"""Runs of a Weights & Biases project as flat rows, read from its service."""

import re

from experiments.report.wandb_offline import put
from lm.config.errors import ConfigError, first_line
from lm.runs.wandb_mirror import has_key

PAGE = 200  # runs of one request


def read_project(path: str) -> list[dict[str, object]]:
  """One flat row for each run of ENTITY/PROJECT: name, state, config, last metrics.

  Of a metric whose summary is several numbers the last one counts, else the least or the greatest.

  Raises:
    ConfigError: the path is none, nobody is signed in, or the service does not give the runs.
  """
  if not re.fullmatch(r"[^\s/]+/[^\s/]+", path):
    raise ConfigError(
      f"wandb={path}: must be ENTITY/PROJECT; alone, --wandb behind an experiment's name sends its report"
    )
  if not has_key():
    raise ConfigError(f"wandb={path}: nobody is signed in; run wandb login, or set WANDB_API_KEY")
  import wandb

  try:
    rows = [_row(run) for run in wandb.Api().runs(path, per_page=PAGE, lazy=False)]
  except (wandb.errors.Error, ValueError, OSError) as error:
    raise ConfigError(
      f"wandb={path}: cannot be read ({first_line(error)}); check its name, the key and the network"
    ) from None
  if not rows:
    raise ConfigError(f"wandb={path}: holds no run; check its name")
  return rows


def _row(run) -> dict[str, object]:
  row: dict[str, object] = {"name": run.name, "state": run.state}
  for key, value in run.config.items():
    put(row, key, value)
  for key, value in run.summary_metrics.items():
    if isinstance(value, dict) and not value.keys() - {"last", "min", "max", "mean", "best"}:
      value = next((value[k] for k in ("last", "min", "max") if k in value), None)
    put(row, key, value)
  return {key: value for key, value in row.items() if not key.startswith("_")}
