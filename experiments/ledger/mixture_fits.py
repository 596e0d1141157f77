"""Laws of data mixtures fitted to tables and runs, as `experiments fit --mixture` asks for them."""

import fnmatch
import re
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.laws import cells, columns, conditions, mixtures, sources
from experiments.ledger.ledger import Ledger
from lm.config.errors import ConfigError, number_of

TAKES = ("n_boot", "seed", "confidence")
WEIGHTS = "data.weights"  # of a ledger's runs: a column for each of data.sources
IGNORED = (
  "params",
  "tokens",
  "flops",
  "se",
  "weight",
  "column",
  "count",
  "curves",
  "fix",
  "tie",
  "point",
)


def fit(options, asked: Mapping, ledger: Ledger | None) -> mixtures.MixtureFit:
  """The fit that the options of `experiments fit` ask for; of runs where there is no --csv.

  Raises:
    ConfigError: options that say nothing of mixtures, or tables that do not hold what they name.
  """
  ignored = [k for k in IGNORED if getattr(options, k)] + [k for k in asked if k not in TAKES]
  if ignored:
    raise ConfigError(f"{ignored[0]}: says nothing of mixtures; leave it out, or --mixture")
  settings = {k: v for k, v in asked.items() if k in TAKES}
  named = (options.mixture, options.loss, options.where, options.decimal)
  held = None
  try:
    if ledger is None:
      runs = read([options.csv, *options.join], *named)
      if options.predict:
        held = read(options.predict, *named)
    else:
      if options.join or options.predict:
        what = "join" if options.join else "predict"
        raise ConfigError(f"{what}: needs --csv; runs of an experiment are one table")
      runs = _mixtures(_source_of(ledger), *named[:2], (), None)
    return mixtures.fit_mixtures(
      runs, options.law or "mixing", held=held, caps=_caps(options.cap), **settings
    )
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(" ".join(str(error).splitlines())) from error


def check(options) -> None:
  """ConfigError where words of mixtures come without --mixture."""
  if not options.mixture:
    for name in ("join", "cap"):
      if getattr(options, name):
        raise ConfigError(f"{name}={getattr(options, name)[0]}: needs --mixture COLUMNS; add it")


def read(
  paths: Sequence[str],
  mixture: Sequence[str],
  loss: str | None,
  where=(),
  decimal: str | None = None,
) -> mixtures.Mixtures:
  """Mixtures from one table, or from several whose rows are joined by the columns they share.

  Args:
    paths: files in any form of experiments.laws.sources.
    mixture: names or patterns (train_*) of the columns of weights.
    loss: names or patterns of the columns of losses, with commas between; None: the one that looks like it.
    where, decimal: as of experiments.laws.table.read_table.
  """
  joined = sources.read_rows(paths[0])
  for path in paths[1:]:
    joined = _join(joined, sources.read_rows(path), path)
  return _mixtures(joined, mixture, loss, where, decimal)


def _mixtures(source: sources.Source, mixture, loss, where, decimal) -> mixtures.Mixtures:
  header = source.header
  domains = _matching("mixture", mixture, header)
  others = [h for h in header if h not in domains]
  targets = _matching("loss", loss.split(","), others) if loss else [_only_loss(others, source)]
  number = lambda name: cells.numbers(source.column(name), name, decimal=decimal).values
  keep = np.ones(len(source.rows), bool)
  for text in where:
    meets = conditions.parse(text, header, number)
    keep &= np.array([meets(i, row) for i, (_, row) in enumerate(source.rows)], bool)
  take = lambda names: np.stack([number(n) for n in names], 1)[keep]
  rows = np.array([n for n, _ in source.rows])[keep]
  notes = [
    *source.notes,
    *([f"{number_of(int((~keep).sum()), 'row')} left out by --where"] if not keep.all() else []),
  ]
  return mixtures.make_mixtures(
    _short(domains), _short(targets), take(domains), take(targets), rows, notes
  )


def _matching(option: str, patterns: Sequence[str], header: Sequence[str]) -> list[str]:
  """Columns, in the table's order, that are one of the names or patterns."""
  wanted = [p.strip() for text in patterns for p in text.split(",") if p.strip()]
  found = {p: [h for h in header if h == p or fnmatch.fnmatchcase(h, p)] for p in wanted}
  for pattern, names in found.items():
    if not names:
      raise ConfigError(f"{option}={pattern}: {columns.nearest(option, pattern, header)}")
  chosen = {h for names in found.values() for h in names}
  return [h for h in header if h in chosen]


def _only_loss(header, source: sources.Source) -> str:
  choice = columns.choose(header, {}, source.column)
  if "loss" in choice.chosen:
    return choice.chosen["loss"]
  alike = choice.unclear.get("loss", ())
  some = (
    f"{len(alike)} columns look like it, as {alike[0]!r}" if alike else "no column looks like it"
  )
  raise ConfigError(f"loss: {some}; name them with --loss 'PATTERN'")


def _short(names: Sequence[str]) -> tuple[str, ...]:
  """Names without what all of them begin and end with, up to a mark between words."""
  if len(names) < 2:
    return tuple(names)
  out = [list(re.findall(r"[^_/.\s]+|[_/.\s]", n)) for n in names]
  for end in (0, -1):
    while min(map(len, out)) > 1 and len({parts[end] for parts in out}) == 1:
      out = [parts[1:] if end == 0 else parts[:-1] for parts in out]
  short = ["".join(parts).strip("_/. ") for parts in out]
  return tuple(short) if len(set(short)) == len(names) and all(short) else tuple(names)


def _join(one: sources.Source, other: sources.Source, path: str) -> sources.Source:
  """Rows of two tables side by side: by the columns that both have, else by their order."""
  shared = [h for h in one.header if h in other.header]
  number = lambda row: tuple(conditions.text_of(row.get(h)) for h in shared)
  if shared:
    found = {}
    for n, row in other.rows:
      if number(row) in found:
        raise ConfigError(
          f"join={path}: rows {found[number(row)][0]} and {n} have the same {', '.join(shared)}; "
          "columns that both tables have must name a run"
        )
      found[number(row)] = (n, row)
    rows = [(n, row | found[number(row)][1]) for n, row in one.rows if number(row) in found]
    lost = len(one.rows) - len(rows)
  else:
    if len(one.rows) != len(other.rows):
      raise ConfigError(
        f"join={path}: {number_of(len(other.rows), 'row')} for {len(one.rows)}, and no column "
        "that both have; "
        "give both one that names the run"
      )
    rows = [(n, row | more) for (n, row), (_, more) in zip(one.rows, other.rows, strict=True)]
    lost = 0
  if not rows:
    raise ConfigError(f"join={path}: no row has the same {', '.join(shared)}; check the files")
  notes = [
    *one.notes,
    *other.notes,
    *([f"{number_of(lost, 'row')} without a partner in {path}"] if lost else []),
  ]
  header = [*one.header, *(h for h in other.header if h not in shared)]
  return sources.Source(header, rows, [*one.skipped, *other.skipped], notes, one.delimiter)


def _source_of(ledger: Ledger) -> sources.Source:
  """Runs as a table in which data.weights is a column for each source; runs without weights are left out."""
  rows, header, without = [], {}, 0
  for i, row in enumerate(ledger, 1):
    weights, names = (_listed(row.get(k)) for k in (WEIGHTS, "data.sources"))
    if not weights or len(weights) != len(names):
      without += 1
      continue
    total = sum(map(float, weights))
    flat = {f"{WEIGHTS}/{n}": float(w) / total for n, w in zip(names, weights, strict=True)}
    flat |= {k: v for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    rows.append((i, flat))
    header |= dict.fromkeys(flat)
  if not rows:
    raise ConfigError(
      f"mixture={WEIGHTS}: no run that is done has weights; set {WEIGHTS} in the runs"
    )
  notes = [f"left out, without {WEIGHTS}: {number_of(without, 'run')}"] if without else []
  return sources.Source(list(header), rows, [], notes, "typed")


def _listed(value) -> list:
  return value.split(",") if isinstance(value, str) else list(value or ())


def _caps(texts: Sequence[str]) -> dict[str, float]:
  out = {}
  for text in texts:
    name, equals, value = text.rpartition("=")
    try:
      out[name] = float(value)
    except ValueError:
      equals = ""
    if not equals:
      raise ConfigError(f"cap={text}: must be DOMAIN=WEIGHT; for example wiki=0.2")
  return out
