"""Runs side by side: what differs in their configs, where their curves are, how they ended."""

import math
import os
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.laws import noise
from experiments.ledger.judged import LOSS, curve_metric, judge_of
from experiments.ledger.ledger import Ledger, deciding_first, is_config_key, is_finite
from experiments.ledger.rows import AXES
from lm.config.errors import ConfigError

SEEDS = ("seed", "data.seed")
# Of a run, beside its metrics at the end.
SIZES = ("status", "reason", "n_params", "n_tokens", "flops")


def with_names(rows: Sequence[Mapping]) -> list[Mapping]:
  """The rows, by their paths where names are not unique."""
  names = [row["name"] for row in rows]
  return [{**r, "name": r["path"]} if names.count(r["name"]) > 1 else r for r in rows]


def with_paths(rows: Sequence[Mapping], root: str) -> list[Mapping]:
  """The rows of a root; those of a ledger file, which has no paths, get some by its name and theirs."""
  names = [row["name"] for row in rows]
  found = []
  for i, row in enumerate(rows):
    again = names[:i].count(row["name"])
    place = f"{root}: {row['name']}" + (f" ({again + 1})" if again else "")
    found.append({"path": place, **row})
  return found


def distinct(rows: Sequence[Mapping]) -> list[Mapping]:
  """The rows without those of a run directory that is there already, under whatever spelling."""
  found: dict[object, Mapping] = {}
  for i, row in enumerate(rows):
    path = str(row.get("path") or "")
    place = path if "://" in path else os.path.realpath(path)
    found.setdefault(place if path else i, row)
  return list(found.values())


def config_diff(rows: Sequence[Mapping]) -> dict[str, list]:
  """{config key: one value a run} of the keys that differ; last those that follow from one before."""
  ledger = Ledger(tuple(rows))
  columns = {key: ledger.column(key) for key in ledger.all_keys() if is_config_key(key)}
  differing = [key for key, values in columns.items() if any(v != values[0] for v in values)]
  return {key: columns[key] for key in deciding_first(rows, differing)}


def seed_spread(rows: Sequence[Mapping], metric: str = "loss") -> list[dict[str, object]]:
  """One entry a setting: its runs that are done, which differ in seeds only, mean and std of `metric`."""
  spread = []
  for settings in _settings(rows):
    group = _by_seed(_ended(settings, metric))
    values = [row[metric] for row in group]
    spread.append(
      {
        "runs": [row["name"] for row in group],
        "n": len(values),
        "mean": statistics.fmean(values) if values else None,
        "std": statistics.stdev(values) if len(values) > 1 else None,
      }
    )
  return spread


def _settings(rows: Sequence[Mapping]) -> list[list[Mapping]]:
  """The rows by setting: those of one list differ in seeds only."""
  settings: dict[tuple, list[Mapping]] = {}
  keys = sorted({k for row in rows for k in row if is_config_key(k) and k not in SEEDS})
  for row in rows:
    settings.setdefault(tuple(str(row.get(k)) for k in keys), []).append(row)
  return list(settings.values())


def _ended(rows: Sequence[Mapping], metric: str) -> list[Mapping]:
  """Those that are done, with a number: a loss on the way does not compare with one at an end."""
  return [r for r in rows if is_finite(r.get(metric)) and r.get("status", "done") == "done"]


def _by_seed(rows: Sequence[Mapping]) -> list[Mapping]:
  """The rows without those whose seeds another has: the same run twice says nothing of noise."""
  seeds = [tuple(row.get(key) for key in SEEDS) for row in rows]
  return [row for i, row in enumerate(rows) if set(seeds[i]) == {None} or seeds[i] not in seeds[:i]]


def seed_noise(rows: Sequence[Mapping], metric: str = "loss") -> noise.SeedNoise | None:
  """The noise of seeds pooled over the settings of finished rows, as a law of N and D where they show one."""
  groups = []
  for group in _settings(rows):
    known = _by_seed(_ended(group, metric))
    if known:
      size = [float(known[0].get(key) or 1.0) for key in ("n_params", "n_tokens")]
      groups.append(noise.Replicates(tuple(r[metric] for r in known), *size))
  return noise.seed_noise(groups)


def noise_facts(rows: Sequence[Mapping]) -> dict[str, object]:
  """The noise of seeds in what a ledger's runs are judged by, and the noise between a run's checkpoints."""
  judge = judge_of(rows)
  found = seed_noise(rows, judge.key)
  between = [
    noise.checkpoint_noise(
      [v for v in (row.get("curve") or {}).get(judge.metric, ()) if v is not None]
    )
    for row in rows
  ]
  between = [x for x in between if x]
  proxy = math.exp(statistics.fmean(math.log(x) for x in between)) if between else None
  return {
    "seeds": found and found.summary(),
    "sigma": found and found.pooled,
    "interval": found and found.pooled_interval,
    "checkpoints": proxy,
    "seeds over checkpoints": found.pooled / proxy if found and proxy else None,
  }


def against_first(rows: Sequence[Mapping], metric: str = "loss") -> list[dict[str, object]]:
  """Every setting against the first: difference, interval, p, and p of all together (Holm)."""
  groups = [_ended(group, metric) for group in _settings(rows)]
  groups = [group for group in groups if group]
  if len(groups) < 2:
    return []
  pooled = seed_noise(rows, metric)
  by_seed = [{r.get("seed"): float(r[metric]) for r in group} for group in groups]
  table = [
    {"setting": group[0]["name"], "against": groups[0][0]["name"],
     **noise.difference(by_seed[0], losses, pooled)}
    for group, losses in zip(groups[1:], by_seed[1:], strict=True)
  ]  # fmt: skip
  known = [row for row in table if isinstance(row["p"], float)]
  for row, p in zip(known, noise.holm([float(str(row["p"])) for row in known]), strict=True):
    row["p of all (Holm)"] = p
  return table


def smooth(x: np.ndarray, y: np.ndarray, width: float) -> np.ndarray:
  """Local straight lines in log10 x, weighted by a Gaussian in the distance along it.

  y_i becomes the value at u_i = log10 x_i of the line that is least in
  sum_j exp(-(u_j - u_i)^2 / 2 width^2) (y_j - line(u_j))^2: a straight line in log x stays as it is, and
  neither end lags (Cleveland 1979, without the robust step). Where a value is NaN or infinite the
  result is that value; it does not spread to its neighbours.

  Args:
    x: [n], ascending.
    y: [n].
    width: standard deviation of the weights, in decades of x; 0 leaves the values as they are.
  """
  if not 0 <= width <= 2:
    raise ConfigError(f"smooth={width}: must be in [0, 2], decades of x; try 0.05")
  out = np.array(y, np.float64)
  known = np.flatnonzero(np.isfinite(out) & (np.asarray(x) > 0))
  if width == 0 or len(known) < 3:
    return out
  u, values = np.log10(np.asarray(x, np.float64)[known]), out[known]
  for i, at in enumerate(u):
    first, end = np.searchsorted(u, [at - 4 * width, at + 4 * width])
    far = u[first:end] - at
    weight = np.exp(-0.5 * (far / width) ** 2)
    s0, s1, s2 = (np.sum(weight * far**k) for k in range(3))
    t0, t1 = (np.sum(weight * values[first:end] * far**k) for k in range(2))
    spread = s0 * s2 - s1**2
    out[known[i]] = (s2 * t0 - s1 * t1) / spread if spread > 1e-9 * s0**2 * width**2 else t0 / s0
  return out


def curve_of(
  row: Mapping, x: str, y: str = "train/loss", width: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
  """(x, y) of a row's curve where both are known, y smoothed."""
  if x not in AXES:
    raise ConfigError(f"x={x}: must be one of {', '.join(AXES)}; use tokens")
  curve = row.get("curve") or {}
  known = x in curve and y in curve  # a run of another objective, or not evaluated yet, lacks y
  pairs = zip(curve[x], curve[y], strict=True) if known else ()
  points = np.array([(a, b) for a, b in pairs if is_finite(a) and b is not None], np.float64)
  points = points.reshape(-1, 2)
  return points[:, 0], smooth(points[:, 0], points[:, 1], width)


def overlay(
  rows: Sequence[Mapping], x: str, y: str = "train/loss", width: float = 0.0, points: int = 8
) -> list[dict[str, object]]:
  """The curves read at the same places: one row for each of `points` values of x, a column a run.

  Between records y is interpolated linearly; beyond a run's end it is None.
  """
  curves = [curve_of(row, x, y, width) for row in rows]
  ends = [xs[-1] for xs, _ in curves if len(xs)]
  if not ends:
    return []
  table = []
  for at in np.linspace(0, max(ends), points + 1)[1:]:
    cells = {x: float(at)}
    for row, (xs, ys) in zip(rows, curves, strict=True):
      inside = len(xs) and xs[0] <= at <= xs[-1] * (1 + 1e-9)
      cells[row["name"]] = float(np.interp(at, xs, ys)) if inside else None
    table.append(cells)
  return table


def compare(rows: Sequence[Mapping], x: str = "tokens", width: float = 0.0) -> dict[str, object]:
  """What `python -m experiments compare` prints: differences, mismatches, curves, ends, seeds.

  Runs are compared by what they are judged by (experiments.ledger.judged), which "metric" names, and by the
  training metric "train_metric".
  """
  if len(rows) < 2:
    raise ConfigError(f"compare={len(rows)} run: needs at least two; name another run directory")
  rows = with_names(rows)
  judge = judge_of(rows)
  trained = curve_metric(rows, judge)
  keys = dict(zip(SIZES, SIZES, strict=True)) | {trained: trained}
  keys |= {"loss": "loss"} if judge == LOSS else {judge.metric: "score"}
  keys |= {"bpb": "bpb", "seconds": "seconds"}
  return {
    "runs": [row["name"] for row in rows],
    "differences": config_diff(rows),
    "mismatches": Ledger(tuple(rows)).mismatches(),
    "metric": judge.metric,
    "train_metric": trained,
    "train_curves": overlay(rows, x, trained, width),
    "eval_curves": overlay(rows, x, judge.metric),
    "final": [
      {"name": row["name"], **{name: row.get(key) for name, key in keys.items()}} for row in rows
    ],
    "seeds": seed_spread(rows, judge.key),
    "tests": against_first(rows, judge.key),
    "noise": noise_facts(rows),
  }
