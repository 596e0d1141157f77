"""Tables for the terminal, laid out by rich: numbers stay whole, names shrink to what differs."""

import io
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence

from experiments.report.formats import duration, size
from experiments.report.formats import short as count

EXACT = ("loss", "bpb", "mean", "std", "min", "train/loss", "value", "low", "high", "difference")
COUNTS = (
  "n_params",
  "n_params_non_embedding",
  "n_tokens",
  "tokens",
  "batch_tokens",
  "unique_tokens",
)
NAMES = ("name", "run", "runs", "best", "setting")  # columns that hold names of runs
# What a narrow terminal does without, first to go first; a column that is not here stays longest.
LEAST = (
  "dirty", "host", "started", "jax", "python", "flops_6ND_nonembedding", "flops_6ND", "flops_exact",
  "n_params_non_embedding", "batch_tokens", "epochs", "tokens_per_param", "tokens_per_sec", "bpb",
  "steps", "bytes", "predicted_bytes", "peak_bytes", "lr", "train/loss", "shown", "step", "dollars",
  "flops", "seconds", "n_tokens", "n_params",
)  # fmt: skip
POINT = "at "  # begins keys of points of curves, of which the first go first: the end says most
WRAPPED = 24  # least width of a column of words; longer ones go on in the next line
GAP = 2  # between columns


def show(
  rows: Sequence[Mapping],
  columns: Mapping[str, str] | Sequence[str],
  title: str = "",
  width: int | None = None,
) -> None:
  """Prints rows as a table, one column for each key; a mapping gives the headings.

  In a terminal that is too narrow, names of runs lose what they have in common, then columns go in the
  order of LEAST, and a line says which. In a file or a pipe nothing is cut.

  Args:
    width: of the terminal; found out if None.
  """
  from rich.console import Console

  headings = dict(columns) if isinstance(columns, Mapping) else {c: c for c in columns}
  if width is None and not sys.stdout.isatty():
    text = io.StringIO()
    Console(file=text, width=10_000, highlight=False, markup=False).print(
      _table(_cells(rows, headings), headings, _numeric(rows, headings), title)
    )
    print("\n".join(line.rstrip() for line in text.getvalue().rstrip().split("\n")))
    return
  console = Console(highlight=False, markup=False, **({"width": width} if width else {}))
  kept, cells, shared = fit_columns(rows, headings, console.width)
  table = _table(cells, {k: headings[k] for k in kept}, _numeric(rows, kept), title)
  console.print(table)
  if shared:
    console.print(f"all: {shared}", style="dim")
  if lost := [headings[k] for k in headings if k not in kept]:
    console.print(f"no room for: {', '.join(lost)}", style="dim")


def terminal_width() -> int | None:
  """Characters of a line of the terminal; None where what is printed goes to a file or a pipe."""
  return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def in_width(text: str, width: int | None) -> str:
  """The text, its lines no wider than that: broken between cells that stand two blanks apart, else words.

  >>> print(in_width("a  0.55  scatter 0.48 .. 0.62  noise 0.50 .. 0.61", 34))
  a  0.55  scatter 0.48 .. 0.62
      noise 0.50 .. 0.61
  """
  if width is None:
    return text
  lines = []
  for line in text.split("\n"):
    if len(line) <= width:
      lines.append(line)
      continue
    cells = re.split(r"(?<=\S)(\s{2,})(?=\S)", line)
    if len(cells) < 5:
      lines += textwrap.wrap(
        line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
      )
      continue
    rows = [cells[0]]
    for gap, cell_ in zip(cells[1::2], cells[2::2], strict=True):
      if len(rows[-1] + gap + cell_) <= width:
        rows[-1] += gap + cell_
      else:
        rows.append(f"    {cell_}")
    lines += rows
  return "\n".join(lines)


def fit_columns(
  rows: Sequence[Mapping], headings: Mapping[str, str], width: int
) -> tuple[list[str], dict[str, list[str]], str]:
  """(keys that fit, their cells, what the names of all runs had in common and lost)."""
  cells, numeric, shared = _cells(rows, headings), _numeric(rows, headings), ""
  kept = list(headings)
  names = [k for k in kept if k in NAMES and k not in numeric]
  if _needed(cells, headings, numeric, kept) > width and names:
    cells[names[0]], shared = without_shared(cells[names[0]])
    for key in names[1:]:
      cells[key] = [_without(text, shared) for text in cells[key]]
  first = kept[0] if kept else None
  order = [k for k in LEAST if k in kept] + [k for k in kept if k.startswith(POINT)]
  order += [k for k in reversed(kept) if k not in order]
  droppable = [
    k for k in order if k != first and k not in ("status", "loss", "score", "mean", "reason")
  ]
  while _needed(cells, headings, numeric, kept) > width and droppable:
    kept.remove(droppable.pop(0))
  return kept, {k: cells[k] for k in kept}, shared


def without_shared(names: Sequence[str]) -> tuple[list[str], str]:
  """Names without the parts between commas and slashes that all of them have, and those parts.

  >>> without_shared(["lr_sweep/width=32,lr=1e-3", "lr_sweep/width=64,lr=1e-3"])
  (['width=32', 'width=64'], 'lr_sweep, lr=1e-3')
  """
  split = [name.replace("/", ",").split(",") for name in names]
  if len(set(names)) < 2:
    return list(names), ""
  shared = [part for part in dict.fromkeys(split[0]) if all(part in parts for parts in split)]
  short = [",".join(p for p in parts if p not in shared) for parts in split]
  if not shared or not all(short) or len(set(short)) < len(set(names)):
    return list(names), ""
  return short, ", ".join(shared)


def _without(text: str, shared: str) -> str:
  dropped = shared.split(", ")
  return ",".join(p for p in text.replace("/", ",").split(",") if p not in dropped)


def _cells(rows, headings) -> dict[str, list[str]]:
  return {key: [cell(key, row.get(key)) for row in rows] for key in headings}


def _numeric(rows, keys) -> set[str]:
  return {k for k in keys if any(isinstance(row.get(k), int | float) for row in rows)}


def _needed(cells, headings, numeric, kept) -> int:
  """Least width of the table: numbers and headings whole, words folded at WRAPPED."""
  from rich.cells import cell_len

  widths = []
  for key in kept:
    longest = max([cell_len(c) for c in cells[key]], default=0)
    room = longest if key in numeric or key in NAMES else min(longest, WRAPPED)
    widths.append(max(room, cell_len(headings[key])))
  return sum(widths) + GAP * (len(widths) - 1)


def _table(cells, headings, numeric, title):
  from rich.table import Table

  table = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
  for key, heading in headings.items():
    words = key not in numeric and key not in NAMES
    table.add_column(
      heading,
      justify="right" if key in numeric else "left",
      overflow="fold" if words else "ellipsis",
      no_wrap=not words,
      min_width=max(map(len, [heading, *cells[key]])) if key in numeric else None,
    )
  for row in zip(*cells.values(), strict=True):
    table.add_row(*row)
  return table


def cell(key: str, value: object) -> str:
  """A value as a column of that name shows it."""
  if value is None:
    return ""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
  if key in EXACT or key.startswith("eval/"):
    return f"{value:.4f}"
  if key.startswith(POINT):
    return f"{value:.3f}"
  if key in COUNTS:
    return count(value)
  if key.startswith("flops"):
    return f"{value:.3g}"
  if key in ("bytes", "predicted_bytes", "peak_bytes"):
    return size(value)
  if key in ("seconds", "elapsed", "predicted"):
    return duration(value)
  if key == "tokens_per_sec":
    return f"{value:,.0f}"
  if key in ("dollars", "predicted_dollars"):
    return f"{value:,.2f}"
  return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


# ---- Comparisons ---------------------------------------------------------------------------------


def show_comparison(result: Mapping, x: str, width: int | None = None) -> None:
  """Prints what experiments.ledger.compare.compare found: differences, curves, ends, seeds, warnings.

  A run is a row, so that many runs fit; runs that failed are said in words.
  """
  names = result["runs"]
  differing = result["differences"]
  failed = [row for row in result["final"] if row["status"] not in ("done", "running")]
  for row in failed:
    print(f"{row['name']} {row['status']}" + (f": {row['reason']}" if row.get("reason") else ""))
  rows = [
    {"name": name, **{k: _word(values[i]) for k, values in differing.items()}}
    for i, name in enumerate(names)
  ]
  if differing:
    show(rows, ("name", *differing), "config: what differs", width)
  else:
    print("config: the same in all runs")
  for metric, key in (("train_metric", "train_curves"), ("metric", "eval_curves")):
    title = {"train/loss": "training loss", "eval/val/loss": "evaluation loss"}.get(
      result[metric], result[metric]
    )
    if points := [p for p in result[key] if any(p[name] is not None for name in names)]:
      print()
      at = [cell(x, float(f"{p[x]:.3g}")) for p in points]
      curves = [
        {"name": name, **{POINT + a: p[name] for a, p in zip(at, points, strict=True)}}
        for name in names
      ]
      show(curves, {"name": "name", **{POINT + a: a for a in at}}, f"{title} at {x}", width)
  print()
  final = [k for k in result["final"][0] if any(row.get(k) is not None for row in result["final"])]
  show(result["final"], [k for k in final if k != "reason"], "at the end", width)
  if result["tests"]:
    columns = ("setting", "difference", "low", "high", "p", "p of all (Holm)", "how")
    what = "loss" if result["metric"] == "eval/val/loss" else result["metric"]
    against = result["tests"][0]["against"]
    show(result["tests"], columns, f"final {what} less that of {against}", width)
  if result["noise"]["seeds"]:
    said = f"noise of seeds: {result['noise']['seeds']}"
    if width is None and sys.stdout.isatty():
      width = shutil.get_terminal_size().columns
    print(textwrap.fill(said, width) if width else said)
  repeated = [entry for entry in result["seeds"] if entry["n"] > 1]
  if repeated:
    print()
    shown = [
      {**e, "runs": without_shared(e["runs"])[0]} | {"setting": _setting(e)} for e in repeated
    ]
    show(shown, ("setting", "n", "mean", "std", "runs"), "same setting, different seeds", width)
  for mismatch in result["mismatches"]:
    print(f"warning: {mismatch}")


def _setting(entry: Mapping) -> str:
  """What the names of a group have in common."""
  return without_shared(entry["runs"])[1] or entry["runs"][0]


def _word(value: object) -> object:
  return cell("", value) if isinstance(value, list | tuple | bool) or value is None else value
