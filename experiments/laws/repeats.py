"""Rows of a table that are not runs of their own: checkpoints of one run, tuned sweeps, two loss scales.

`examine` is called before a fit. Rows of one run get a common label (`Table.clusters`), so that intervals
resample them together; equal (N, D) with losses that no noise explains are refused.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from experiments.laws import columns
from experiments.laws.table import RUN, SHOWN_ROWS, Table
from lm.config.errors import number_of

NOISE = 0.05  # relative range of the losses of one (N, D) above which they cannot be seeds
# A factor between optima of one budget above which they are not two estimates of one.
OPTIMA_APART = 1.5
SURE = 1e-4  # p-value of the tests below
PLACES = ("n_params", "n_tokens", "flops", "unique_tokens", "steps")


def examine(
  table: Table,
  keys: Sequence[str],
  *,
  target: str = "loss",
  groups: np.ndarray | None = None,
  asked: str | None = None,
  lenient: bool = False,
) -> Table:
  """The table with `run` labels where rows belong together, and notes of what was found.

  Args:
    keys: columns of which equal values mean one setting.
    target: the column predicted.
    groups: [n] more of the setting, as the budgets of isoFLOP slices.
    asked: the label column that the caller resamples by; then none is looked for.
    lenient: note what would be refused.

  Raises:
    ValueError: runs of one setting whose losses cannot be noise; names what tells them apart.
  """
  keys = [k for k in keys if k in table.columns]
  if not keys or not len(table) or target not in table.columns:
    return table
  member = _members(table, keys, groups)
  notes = _spread_of_settings(table, keys, member, target, lenient)
  copies, said = _copies(table, keys, target)
  notes += said
  if asked is None:
    run, why = _runs_of(table, target)
    if run is None and copies is not None:
      table = dataclasses.replace(table, labels=table.labels | {RUN: copies})
    if run is not None:
      table = dataclasses.replace(table, labels=table.labels | {RUN: run})
      notes.append(why)
  return dataclasses.replace(table, notes=(*table.notes, *notes)) if notes else table


def _copies(table: Table, keys, target) -> tuple[np.ndarray | None, list[str]]:
  """([n] labels that copies of one row share, notes); None where every row is its own.

  Rows agree in setting and target to the last digit, or, where losses have 4 digits at most and two
  seeds may agree by chance, in every cell.
  """
  parts = [table[k] for k in (*keys, target)]
  rough = all(float(f"{v:.4g}") == v for v in table[target])
  texts = [c for c in table.texts.values() if not _numbers_rows(c)]
  if rough and not texts:
    return None, []
  parts = np.stack([p.astype(str) for p in (texts if rough else parts)], axis=1)
  _, first, copy_of = np.unique(parts, axis=0, return_index=True, return_inverse=True)
  copy_of = copy_of.ravel()
  if len(first) == len(table):
    return None, []
  again = table.rows[np.setdiff1d(np.arange(len(table)), first)]
  shown = ", ".join(map(str, again[:SHOWN_ROWS])) + (" ..." if len(again) > SHOWN_ROWS else "")
  return np.array([f"row {table.rows[first[c]]}" for c in copy_of]), [
    f"{number_of(len(again), 'row')} like another one to the last digit (row {shown}): copies of a run "
    "are resampled "
    "together; --drop_repeats leaves them out"
  ]


def _numbers_rows(column: np.ndarray) -> bool:
  """Whether a column only numbers the rows."""
  return any(list(column) == [str(i + at) for i in range(len(column))] for at in (0, 1))


def lowest(table: Table, keys: Sequence[str], target: str = "loss") -> Table:
  """Of rows equal in `keys` the one of the lowest loss: a sweep's best setting; the others are skipped."""
  keys = [k for k in keys if k in table.columns]
  member = _members(table, keys, None)
  order = np.lexsort((np.arange(len(table)), table[target], member))
  first = np.concatenate([[True], member[order][1:] != member[order][:-1]])
  keep = np.zeros(len(table), bool)
  keep[order[first]] = True
  return table.take(keep, f"not the lowest {target} of its {', '.join(keys)}")


def _members(table: Table, keys: Sequence[str], groups) -> np.ndarray:
  """[n] a number for each setting: values that agree to 6 digits are one."""
  parts = [np.array([f"{v:.6g}" for v in table[k]]) for k in keys]
  parts += [] if groups is None else [np.asarray(groups).astype(str)]
  return np.unique(np.stack(parts, axis=1), axis=0, return_inverse=True)[1].ravel()


def examine_optima(table: Table, lenient: bool = False) -> Table:
  """The table of optima, with notes; refused where one budget has optima of several kinds of run.

  Raises:
    ValueError: optima of one budget that are a factor OPTIMA_APART apart, told apart by some column.
  """
  if not {"n_params", "flops"} <= set(table.columns):
    return table
  table = table.need("n_params", "flops")
  member = _members(table, ["flops"], None)
  notes = _spread_of_settings(
    table, ["flops"], member, "n_params", lenient, float(np.log(OPTIMA_APART))
  )
  return dataclasses.replace(table, notes=(*table.notes, *notes)) if notes else table


def _spread_of_settings(table, keys, member, target, lenient, noise: float = NOISE) -> list[str]:
  """Notes on runs that share their setting: replicates, or what cannot be."""
  y = np.log(table[target])
  count = np.bincount(member)
  if count.max() < 2:
    return []
  low, high = np.full(len(count), np.inf), np.full(len(count), -np.inf)
  np.minimum.at(low, member, y)
  np.maximum.at(high, member, y)
  spread = np.where(count > 1, high - low, 0.0)
  several, place = count > 1, ", ".join(keys)
  apart = _what_tells_apart(table, keys, member, y)
  if spread.max() <= noise:
    mean = (np.bincount(member, y) / count)[member]
    sd = np.sqrt(((y - mean) ** 2).sum() / max((count - 1)[several].sum(), 1))
    if spread.max() == 0:
      return []
    said = (
      f"{number_of(int(several.sum()), 'setting')} ({place}) with {count[several].sum()} runs, "
      f"whose {target} varies by "
    )
    return [f"{said}{sd:.2g} (relative sd)" + (f", which {apart[0]!r} explains" if apart else "")]
  worst, what = int(spread.argmax()), "losses" if target == "loss" else "values"
  rows = np.flatnonzero(member == worst)
  rows = rows[[table[target][rows].argmin(), table[target][rows].argmax()]]
  said = (
    f"{target}: {number_of(int((spread > noise).sum()), 'setting')} of equal {place} with {what} that "
    "cannot be noise, "
    f"such as {table[target][rows[0]]:.4g} and {table[target][rows[1]]:.4g} "
    f"(rows {table.rows[rows[0]]} and {table.rows[rows[1]]})"
  )
  if apart:
    values = list(dict.fromkeys(table.texts[apart[0]][member == worst]))[:4]
    said += (
      f"; {' and '.join(map(repr, apart[:2]))} differ{'s' if len(apart) == 1 else ''} between them: "
      f"choose with --where '{apart[0]}={values[0]}'"
    )
  else:
    said += "; choose rows with --where"
  said += ", or take the best of each with --best" if target == "loss" else ""
  if lenient:
    return [said]
  raise ValueError(f"{said}, or go on with --force")


def _what_tells_apart(table, keys, member, y) -> list[str]:
  """Columns whose values explain the losses within a setting, the best first."""
  taken = {table.source.get(k) for k in (*table.columns, *keys)}
  inside = y - (np.bincount(member, y) / np.bincount(member))[member]
  several = (np.bincount(member) > 1)[member]
  total = (inside[several] ** 2).sum()
  found = []
  for name, column in table.texts.items():
    if name in taken or columns.kind_of_loss(name) or columns.plain(name) in columns.RUN_NAMES:
      continue
    levels, level = np.unique(column[several], return_inverse=True)
    if not 2 <= len(levels) <= max(several.sum() / 2, 2):
      continue
    pairs = len(np.unique(np.stack([member[several], level]), axis=1).T)
    if pairs == len(np.unique(member[several])):
      continue  # the same within every setting
    mean = np.bincount(level, inside[several]) / np.bincount(level)
    share = (mean[level] ** 2).sum() / max(total, 1e-300)
    adjusted = 1 - (1 - share) * (several.sum() - 1) / max(several.sum() - len(levels), 1)
    found.append((adjusted, name))
  found.sort(key=lambda pair: -pair[0])
  best = [name for share, name in found if share > 0.25]
  return best or [name for _, name in found[:2] if total > 0 and np.abs(inside).max() > NOISE / 2]


# ---- Checkpoints of one run ----


def _runs_of(table: Table, target: str) -> tuple[np.ndarray | None, str]:
  """([n] labels of runs or None, why): by a column that names the run, else by the shape of the design."""
  n = table.columns.get("n_params")
  d = table.columns.get("n_tokens", table.columns.get("steps"))
  if n is None or d is None:
    return None, ""
  for name, column in table.texts.items():
    if columns.plain(name.split("/")[-1]) not in columns.RUN_NAMES:
      continue
    labels, member = np.unique(column, return_inverse=True)
    if len(labels) == len(column) or len(labels) < 2 or (column == "").any():
      continue
    if _one_size_each(member, n) and _all_apart(member, d):
      many = (np.bincount(member) > 1).sum()
      return column, (
        f"{len(table)} rows are points of {len(labels)} runs ({many} with several, by column {name!r}): "
        "those of one run are resampled together"
      )
  return _trajectories(table, target, n, d)


def _one_size_each(member, n) -> bool:
  low, high = np.full(member.max() + 1, np.inf), np.zeros(member.max() + 1)
  np.minimum.at(low, member, n)
  np.maximum.at(high, member, n)
  return bool(np.all(high <= low * 1.001))


def _all_apart(member, d) -> bool:
  pairs = np.stack([member.astype(float), np.array([float(f"{v:.9g}") for v in d])])
  return len(np.unique(pairs, axis=1).T) == len(member)


def _trajectories(table: Table, target, n, d) -> tuple[np.ndarray | None, str]:
  """Rows of equal size taken as checkpoints of one run, where the design or the residuals say so.

  The losses of a size fall as tokens rise, and (a) the tokens are multiples of one interval, as an
  evaluation every so many steps gives, or (b) there are ten or more of them, or (c) residuals of one
  size go together more than those of independent runs do (F-test). Slices of equal compute are none.
  """
  sizes, member = np.unique([f"{v:.6g}" for v in n], return_inverse=True)
  count = np.bincount(member)
  if (
    len(sizes) < 2 or np.median(count) < 4 or (count < 2).mean() > 0.2 or not _all_apart(member, d)
  ):
    return None, ""
  if _in_slices(table, n, d, len(sizes)):
    return None, ""
  y, falls, regular = np.log(table[target]), [], []
  for g in np.flatnonzero(count >= 3):
    rows = np.flatnonzero(member == g)
    rows = rows[np.argsort(d[rows])]
    falls.append(np.mean(np.diff(y[rows]) < 0))
    steps = d[rows] / np.diff(d[rows]).min()
    regular.append(
      len(rows) >= 4 and steps[-1] < 1e4 and bool(np.all(np.abs(steps - steps.round()) < 0.02))
      and np.median(np.diff(steps)) < 1.5
    )  # fmt: skip
  if np.mean(falls) < 0.8:
    return None, ""
  if np.mean(regular) > 0.8:
    why = "tokens at even intervals"
  elif np.median(count) >= 10:
    why = f"{np.median(count):.0f} token counts a size"
  elif _go_together(table, n, d, member, target):
    why = "residuals that go together within a size"
  else:
    return None, ""
  return np.array([f"N={sizes[g]}" for g in member]), (
    f"{len(table)} rows of {len(sizes)} sizes look like checkpoints of {len(sizes)} runs ({why}; losses "
    "fall with tokens): those of one size are resampled together; --cluster COLUMN names the runs"
  )


def _in_slices(table: Table, n, d, n_sizes: int) -> bool:
  """Whether the runs are slices of equal compute: few levels of N D, each with several sizes."""
  flops = table.columns.get("flops", n * d)
  flops = np.where(np.isfinite(flops), flops, n * d)
  order = np.argsort(flops)
  level = np.cumsum(np.concatenate([[0], np.diff(np.log(flops[order])) > np.log1p(0.1)]))
  count = np.bincount(level)
  wide = [np.ptp(np.log(flops[order][level == k])) for k in range(len(count))]
  return (
    len(count) >= 2 and np.median(count) >= 3 and np.median(wide) < 0.1 and len(count) < len(n) / 3
  )


def _go_together(table: Table, n, d, member, target) -> bool:
  """F-test of residuals of E + A/N^alpha + B/D^beta by size."""
  from scipy.stats import f as f_distribution

  from experiments.laws import varpro

  count = np.bincount(member)
  free = len(count) - 5
  if free < 3 or len(n) - len(count) < 10:
    return False
  fit = varpro.varpro_fit(n, d, table[target], relative=True, grid=24, rounds=12)
  r = np.log(table[target]) - np.log(fit.E + fit.A / n**fit.alpha + fit.B / d**fit.beta)
  mean = np.bincount(member, r) / count
  between = (count * mean**2).sum() / free
  within = ((r - mean[member]) ** 2).sum() / (len(n) - len(count))
  return bool(f_distribution.sf(between / max(within, 1e-300), free, len(n) - len(count)) < SURE)
