"""What commands print: runs and results as tables, values as JSON."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping

from experiments.laws.result import LawFit
from experiments.report import tables
from experiments.report.claims import is_estimate

RUN_COLUMNS = {
  "name": "run", "status": "status", "n_params": "params", "n_tokens": "tokens", "flops": "flops",
  "step": "step", "steps": "of", "predicted": "predicted", "seconds": "time",
  "predicted_bytes": "memory predicted", "peak_bytes": "memory",
  "predicted_dollars": "USD predicted", "dollars": "USD", "loss": "val loss", "bpb": "bits/byte",
  "tokens_per_sec": "tokens/s", "reason": "reason",
}  # fmt: skip


def print_results(results: Mapping[str, object]) -> None:
  """Estimates in one table, then every other result as a table or text of its own."""
  numbers = [
    {"what": what, "value": r.value, **dict(zip(("low", "high"), r.interval or (), strict=False))}
    for what, r in results.items()
    if is_estimate(r)
  ]
  if numbers:
    tables.show(numbers, {"what": "", "value": "value", "low": "95 % low", "high": "high"})
  from experiments.ledger import fits

  for what, result in fits.flatten(results).items():
    if is_estimate(result):
      continue
    print()
    if isinstance(result, list) and result and isinstance(result[0], Mapping):
      tables.show(result, list(result[0]), what)
    elif hasattr(result, "summary"):
      width = tables.terminal_width()
      said = result.summary(**({"width": width} if isinstance(result, LawFit) else {}))
      gap = "\n" if said.startswith(" ") else " "  # the head of a table stands over its columns
      print(tables.in_width(f"{what}:{gap}{said}", width))
    else:
      print(tables.in_width(f"{what}: {result}", tables.terminal_width()))


def print_runs(rows: list[Mapping], columns: list[str] | None = None) -> None:
  if columns is None:
    columns = [k for k in RUN_COLUMNS if any(row.get(k) not in (None, "") for row in rows)]
    if "peak_bytes" not in columns:  # a prediction alone is the plan's to show
      columns = [k for k in columns if k != "predicted_bytes"]
  elif "name" not in columns:
    columns = ["name", *columns]
  tables.show(rows, {k: RUN_COLUMNS.get(k, k) for k in columns})


def print_path(options, path: str | pathlib.Path) -> None:
  print_json({"report": str(path)}) if options.json else print(path)


def print_json(value: object) -> None:
  print(json.dumps(_as_json(value), indent=2))


def _as_json(value: object) -> object:
  """What JSON can hold: dataclasses as objects, arrays as lists, NaN and infinities as null."""
  if hasattr(value, "to_json"):
    return _as_json(value.to_json())
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return {f.name: _as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
  if isinstance(value, Mapping):
    return {str(k): _as_json(v) for k, v in value.items()}
  if hasattr(value, "tolist"):
    return _as_json(value.tolist())
  if isinstance(value, list | tuple):
    return [_as_json(v) for v in value]
  if isinstance(value, float) and (value != value or abs(value) == float("inf")):
    return None
  if value is None or isinstance(value, bool | int | float | str):
    return value
  return str(value)
