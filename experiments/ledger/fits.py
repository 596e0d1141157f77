"""A law fitted to the rows of a ledger, or to anybody's table, as the command line asks for it."""

import dataclasses
import functools
import inspect
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from experiments import laws
from experiments.laws import cells, conventions, isoflop, lawfit, loss_curves, repeats, user_law
from experiments.laws.columns import ALIASES
from experiments.laws.isoflop import IsoFlopFit
from experiments.ledger.ledger import Ledger
from experiments.ledger.rows import read_curve
from lm.config.command_line import once
from lm.config.errors import ConfigError, check_within

# our column -> the ledger's key that stands for it unless another is named
LEDGER_COLUMNS = {"n_params": "n_params", "n_tokens": "n_tokens", "flops": "flops", "loss": "loss"}
EXTRA_COLUMNS = ("n_params_non_embedding", "flops_exact", "unique_tokens", "steps", "lr")
COLUMN_OPTIONS = {"params": "n_params", "tokens": "n_tokens", "loss": "loss", "flops": "flops"}

LONG = 6e6  # rows x refits beyond which a fit takes minutes
# What each kind of fit takes from the command line; a parametric law takes PARAMETRIC.
N_BOOT = 1000  # where --n_boot is not given
SAMPLING = ("n_boot", "seed", "confidence")
PARAMETRIC = (*SAMPLING, "objective", "delta", "residual", "fixed", "tied", "outliers", "methods", "flops",
              "points", "cluster", "weights", "sd", "holdout", "n_starts", "force")  # fmt: skip
KINDS = {
  "isoflop": (*SAMPLING, "method", "budget", "within", "flops", "weighted", "outliers", "force"),
  "envelope": (*SAMPLING, "run"),
  "varpro": (*SAMPLING, "flops", "cluster", "force"),
  "hyper": (*SAMPLING, "of", "on", "method", "init_loss", "near_optimal"),
  "optima": ("confidence", "sd"),
}
FITTERS = {
  "isoflop": laws.isoflop_fit,
  "envelope": laws.envelope_fit,
  "varpro": laws.varpro_table,
  "hyper": laws.hyper_fit,
  "optima": laws.optima_fit,
}
ASIDE = ("best", "drop_repeats", "force")  # settings that act on the table, whatever is fitted
# settings under another name than their option's
OPTION_OF = {
  "n_starts": "starts", "methods": "intervals", "fixed": "fix", "tied": "tie", "flops": "at",
  "points": "point", "weighted": "unweighted", "weights": "weight", "outliers": "drop_highest",
}  # fmt: skip
# what a number may be, and one that is
RANGES = {
  "n_boot": ("[0, 1000000]", "1000"), "starts": ("[1, 1000000]", "256"), "confidence": ("(0, 1)", "0.95"),
  "delta": ("(0, inf)", "1e-3"), "drop_highest": ("[0, inf)", "5"), "drop_beyond": ("(0, inf)", "5"),
  "min_flops": ("(0, inf)", "1e18"), "holdout": ("(0, inf)", "1e21"), "within": ("(1, inf)", "4"),
  "near_optimal": ("(0, inf)", "0.01"), "init_loss": ("(0, inf)", "10.4"), "seed": ("[0, 2147483647]", "0"),
}  # fmt: skip
REFIT_STARTS = 256  # of a law already fitted from its whole grid


def settings(options) -> dict[str, object]:
  """What the options of `fit` ask for, under the names that the fits of experiments.laws give it."""
  for key, (within, example) in RANGES.items():
    if (value := getattr(options, key, None)) is not None:
      check_within(key, value, within, example)
  given = {k: getattr(options, k, None) for k in (
    "objective", "delta", "n_boot", "seed", "confidence", "cluster", "holdout", "method", "budget",
    "within", "run", "of", "init_loss", "sd", "residual", "near_optimal",
  )}  # fmt: skip
  parts = lambda k: [part for part in (getattr(options, k, None) or "").split(",") if part]
  split = lambda k: tuple(parts(k)) or None
  if options.se and options.weight:
    raise ConfigError("se, weight: both weigh the runs; give one of --se and --weight")
  if options.se:
    given["sd"] = "se"
  given["weights"] = "weight" if options.weight else None
  given["force"], given["best"] = options.force or None, options.best or None
  given["drop_repeats"] = options.drop_repeats or None
  given["n_starts"] = options.starts
  given["methods"] = split("intervals")
  given["flops"] = options.at and tuple(positive("at", text) for text in options.at.split(","))
  given["on"] = split("on")
  given["points"] = [_numbers("point", text) for text in options.point] or None
  fixed = [pair for text in options.fix for pair in _numbers("fix", text).items()]
  given["fixed"] = once("fix", fixed) or None
  given["tied"] = [_tied(text) for text in options.tie] or None
  given["weighted"] = False if options.unweighted else None
  dropped = {
    "drop_highest_loss": options.drop_highest,
    "residual_mads": options.drop_beyond,
    "min_flops": options.min_flops,
  }
  dropped = {k: v for k, v in dropped.items() if v is not None}
  given["outliers"] = laws.Outliers(**dropped) if dropped else None
  return {k: v for k, v in given.items() if v is not None}


def _tied(text: str) -> tuple[str, ...]:
  """The names of alpha=beta."""
  names = tuple(name.strip() for name in text.split("="))
  if len(names) < 2 or not all(names):
    raise ConfigError(f"tie={text}: must be names joined by =; for example --tie alpha=beta")
  return names


def column_names(options) -> dict[str, str]:
  """{our column: theirs} of --params, --tokens, --loss, --flops, --se, --weight, --column and --count."""
  named = {**COLUMN_OPTIONS, "se": "se", "weight": "weight"}
  pairs = [(ours, getattr(options, o)) for o, ours in named.items() if getattr(options, o)]
  for text in options.column:
    ours, equals, theirs = text.partition("=")
    if not equals or not ours.strip():
      raise ConfigError(f"column={text}: must be OURS=THEIRS; for example unique_tokens=U")
    pairs.append((ours.strip(), theirs))
  names = once("column", pairs)
  for swaps in counts(options).values():
    names |= {column: column for column in swaps.values() if column != conventions.SIX_ND}
  return names


def counts(options) -> dict[str, dict[str, str]]:
  """The conventions of --count, as laws.refit_under takes them."""
  out = {}
  for text in options.count:
    name, colon, rest = text.partition(":")
    swaps = [part.strip().partition("=") for part in rest.split(",")]
    if not colon or any(key not in COLUMN_OPTIONS or not column for key, _, column in swaps):
      raise ConfigError(
        f"count={text}: must be NAME:params=COLUMN,flops=COLUMN; 6ND stands for 6 N D; "
        "for example 'non-embedding:params=params_no_embed,flops=6ND'"
      )
    if name in out:
      raise ConfigError(f"count={text}: the name {name!r} is given twice; give each its own")
    out[name] = once("count", [(COLUMN_OPTIONS[key], column) for key, _, column in swaps])
  return out


def units(texts: Sequence[str]) -> dict[str, float]:
  """{our column: factor} from `flops=1e9`, `params=M`: what a number without a unit of its own is in."""
  pairs = []
  for name, _, text in (text.partition("=") for text in texts):
    ours = COLUMN_OPTIONS.get(name, name)
    try:
      pairs.append((ours, cells.factor(text)))
      known = ours in ALIASES or ours in ("se", "weight")
    except ValueError:
      known = False
    if not known:
      raise ConfigError(
        f"unit={name}={text}: must be params, tokens, loss or flops, = and a number or one of "
        "K M B T GFLOPs; for example flops=1e9 or params=M"
      )
  return once("unit", pairs)


def fit_csv(
  path: str,
  law: str,
  names: Mapping[str, str],
  where: Sequence[str] = (),
  scale: Mapping[str, float] | None = None,
  decimal: str | None = None,
  **settings,
):
  """Fits `law` to a table of runs in any of the forms of experiments.laws.sources.

  Args:
    path: the file.
    law: a key of experiments.laws.LAWS or of KINDS, or a formula (experiments.laws.user_law).
    names: {our column: theirs}; what is not named is found by its usual spellings.
    where: conditions in the grammar of experiments.laws.conditions; other rows are left out.
    scale: {our column: what a number without a unit is in}.
    decimal: "point" or "comma", where the columns do not show it.
    settings: as `settings` gives them.

  Raises:
    ConfigError: no such file or column, or a table that cannot carry the law.
  """
  law = named(law, names)
  check(law, settings)
  return fit_read(read_csv(path, names, where, scale, decimal, settings), law, settings)


def read_csv(
  path: str,
  names: Mapping[str, str],
  where: Sequence[str] = (),
  scale: Mapping[str, float] | None = None,
  decimal: str | None = None,
  settings: Mapping[str, Any] = MappingProxyType({}),
) -> laws.Table:
  """The table that `fit_csv` fits, with every column that the settings name. ConfigError as there."""
  asked = [settings.get(k) for k in ("of", "sd", "budget")] + list(settings.get("on", ()))
  known = {*laws.ALIASES, *names}
  names = {**{c: c for c in asked if c and c not in known}, **names}
  labels = [settings[k] for k in ("cluster", "run") if k in settings]
  options = {ours: option for option, ours in COLUMN_OPTIONS.items()}
  options |= dict.fromkeys(settings.get("on", ()), "on")
  options |= {settings[k]: k for k in ("of", "budget", "cluster", "run") if k in settings}
  try:
    return laws.read_table(
      path, names=names, labels=labels, where=where, scale=scale, decimal=decimal,
      drop_repeats=bool(settings.get("drop_repeats")), options=options,
    )  # fmt: skip
  except ValueError as error:
    raise ConfigError(" ".join(str(error).splitlines())) from error


def fit_read(table: laws.Table, law: str, settings: Mapping[str, object]):
  """`law` fitted to a table that `read_csv` has read. ConfigError where the table cannot carry it."""
  try:
    return _fit(table, law, settings)
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(" ".join(str(error).splitlines())) from error


def fit_ledger(ledger: Ledger, law: str, names: Mapping[str, str], **settings):
  """Fits `law` to runs; `names` as {our column: ledger key} overrides LEDGER_COLUMNS."""
  law = named(law, names)
  check(law, settings)
  if not len(ledger):
    raise ConfigError("runs=0: none is done yet, so there is nothing to fit; run the experiment")
  asked = [settings.get(k) for k in ("of", "sd", "budget")] + list(settings.get("on", ()))
  keys = {k for row in ledger for k, v in row.items() if v is not None}
  extra = [k for k in (*EXTRA_COLUMNS, *filter(None, asked)) if k in keys and k not in names]
  chosen = {**{k: k for k in extra}, **LEDGER_COLUMNS, **names}
  columns = ledger.columns(*chosen.values())
  texts = {"name", *(settings[k] for k in ("cluster", "run") if k in settings)}
  labels = {k: [str(v) for v in ledger.column(k)] for k in texts}
  try:
    table = laws.from_columns({ours: columns[theirs] for ours, theirs in chosen.items()}, labels)
    return _fit(table, law, settings)
  except ConfigError:
    raise
  except ValueError as error:
    raise ConfigError(" ".join(str(error).splitlines())) from error


def named(law: str, names: Mapping[str, str]) -> str:
  """A law's name; a formula is parsed and put among experiments.laws.LAWS."""
  if law in laws.LAWS or law in KINDS or not user_law.is_formula(law):
    return law
  try:
    return user_law.register(law, tuple(n for n in names if n not in ("se", "weight")))
  except ValueError as error:
    raise ConfigError(" ".join(str(error).splitlines())) from error


def counted_otherwise(
  fit, asked: Mapping, given: Mapping[str, Mapping[str, str]]
) -> dict[str, object]:
  """{"counted otherwise": fits under each convention}, where the fitted table has several, or {}.

  A convention that nobody asked for and that these runs cannot carry is "not counted otherwise": why.

  Args:
    fit: what `fit_csv` or `fit_ledger` returned.
    asked: as `settings` gives them.
    given: conventions of the user's, beside the standard ones.
  """
  if not isinstance(fit, laws.LawFit | IsoFlopFit):
    return {}
  wanted = {**laws.standard(fit.table), **given}
  if not wanted or not {"n_params", "n_tokens", "loss"} <= set(fit.table.columns):
    return {}
  slices = isinstance(fit, IsoFlopFit)
  takes = KINDS["isoflop"] if slices else PARAMETRIC
  same = {k: v for k, v in asked.items() if k in takes and k not in ("flops", "outliers", "budget")}
  known = inspect.signature(laws.isoflop_fit if slices else laws.fit_table).parameters
  same = {k: v for k, v in same.items() if k in known}
  if not slices and fit.table.clusters is not None:
    same.setdefault("cluster", repeats.RUN)
  if slices:
    same["fit"] = isoflop.isoflop_fit
  else:
    same |= {"law": fit.law.name, "holdout": False, "n_starts": REFIT_STARTS}
  found, lost = {}, []
  for name, swaps in wanted.items():
    try:
      found |= laws.refit_under(fit.table, {name: swaps}, **same).fits
    except ValueError as error:
      if name in given:
        raise ConfigError(f"count={name}: {error}") from error
      lost.append(f"{name}: {error}")
  out = {"counted otherwise": laws.SideBySide(found)} if len(found) > 1 or given else {}
  return out | ({"not counted otherwise": "; ".join(lost)} if lost else {})


def check(law: str, settings: Mapping) -> None:
  """ConfigError where there is no such law, or it does not take one of the settings."""
  if law not in laws.LAWS and law not in KINDS:
    known = ", ".join((*(name for name in laws.LAWS if "=" not in name), *KINDS))
    raise ConfigError(
      f"law={law!r}: not known; choose one of {known}, or write a formula: {user_law.EXAMPLE}"
    )
  takes = KINDS.get(law, PARAMETRIC)
  extra = [k for k in settings if k not in takes and k not in (*SAMPLING, *ASIDE)]
  if extra:
    said = lambda k: "se" if k == "sd" and law != "optima" else OPTION_OF.get(k, k)
    raise ConfigError(
      f"{said(extra[0])}: a fit of {law} does not take it; it takes {', '.join(map(said, takes))}"
    )
  outliers = settings.get("outliers")
  if law == "isoflop" and outliers is not None and outliers.residual_mads is not None:
    raise ConfigError(
      "drop_beyond: slices have no residuals of a law to judge runs by; --drop_highest, --min_flops and "
      "--within leave runs out of them"
    )
  needs = {"hyper": "of", "envelope": "run"}.get(law)
  if needs and needs not in settings:
    raise ConfigError(
      f"law={law}: needs --{needs} COLUMN; for example --{needs} {'lr' if needs == 'of' else 'name'}"
    )


def _fit(table: laws.Table, law: str, settings: Mapping):
  given = {k: v for k, v in settings.items() if k in KINDS.get(law, PARAMETRIC)}
  fitter = FITTERS[law] if law in KINDS else laws.fit_table
  takes = inspect.signature(fitter).parameters
  lost = [k for k in given if k not in takes and not (law == "isoflop" and k == "outliers")]
  if lost and not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
    if set(lost) - set(ASIDE):
      raise ConfigError(f"{lost[0]}: a fit of {law} does not take it")
    given = {k: v for k, v in given.items() if k in takes}
  table = _examined(table, law, settings)
  if law == "isoflop" and (outliers := given.pop("outliers", None)):
    table = lawfit.without_outliers(table, outliers)
  if law in KINDS:
    return functools.partial(fitter, table)(**given)
  if table.clusters is not None:
    given.setdefault("cluster", repeats.RUN)
  say_how_long(len(table), given.get("n_boot", N_BOOT))
  return laws.fit_table(table, law, **given)


def say_how_long(n_rows: int, n_boot: int) -> None:
  """A line on stderr before a fit that takes minutes (3,000 runs with 1,000 samples take one on a core)."""
  if n_rows * n_boot > LONG:
    print(
      f"{n_rows:,} runs, {n_boot:,} bootstrap samples: this takes some minutes on one core; "
      "--n_boot 200 takes a fifth of them, --where fits a part of the runs",
      file=sys.stderr,
      flush=True,
    )


def _examined(table: laws.Table, law: str, settings: Mapping) -> laws.Table:
  """The usable rows, the best of each setting if asked for; what is no run of its own is found and said.

  Raises:
    ConfigError, ValueError: columns that the law needs and the table lacks; losses that no noise explains.
  """
  if law == "optima":
    return repeats.examine_optima(table, bool(settings.get("force")))
  if law in ("hyper", "envelope"):  # their rows are sweeps, curves
    return table
  form = laws.LAWS.get(law)
  letters = user_law.letters_of(form) if form is not None and "=" in law else ""
  inputs = form.inputs if form else ("n_params", "n_tokens")
  target = form.target if form else "loss"
  weighs = [settings[k] for k in ("weights", "sd") if k in settings]
  table = table.with_flops()
  try:
    table = table.need(*inputs, target, *weighs, *(("flops",) if law == "isoflop" else ()))
  except ValueError as error:
    if letters:
      raise ValueError(f"law={law}: {letters}; {error}") from error
    raise
  settled = [
    k for k in repeats.PLACES if k in table.columns and (k != "flops" or "flops" in inputs)
  ]
  keys = list(dict.fromkeys([*(k for k in inputs if k != "loss"), *settled]))
  if settings.get("best"):
    table = repeats.lowest(table, keys, target)
  groups = None
  if law == "isoflop":  # runs of one size in a slice stand for one point of it
    keys = ["n_params"]
    groups = (
      table[settings["budget"]] if "budget" in settings else isoflop.budget_groups(table["flops"])
    )
  outliers = settings.get("outliers")
  examined = table
  if outliers is not None and outliers.drop_highest_loss:
    rank = (-table[target]).argsort(kind="stable").argsort(kind="stable")
    keep = rank >= outliers.drop_highest_loss
    examined, groups = table.take(keep, ""), groups if groups is None else groups[keep]
  lenient = bool(settings.get("force")) or (
    outliers is not None and outliers.residual_mads is not None
  )
  if target != "loss":
    return table
  found = repeats.examine(
    examined, keys, groups=groups, asked=settings.get("cluster"), lenient=lenient
  )
  if found.clusters is None:
    return dataclasses.replace(table, notes=found.notes)
  if len(found) < len(table):  # the rows that the fit will leave out are runs of their own
    runs = dict(zip(found.rows, found.clusters, strict=True))
    labels = table.labels | {repeats.RUN: np.array([runs.get(r, f"row {r}") for r in table.rows])}
  else:
    labels = found.labels
  return dataclasses.replace(table, labels=labels, notes=found.notes)


def fit_curves(
  fitted: Sequence[str],
  held: Sequence[str],
  law: str | None,
  fixed: Mapping[str, float] | None = None,
) -> loss_curves.CurveFit:
  """A law of whole loss curves, fitted to some and judged on all.

  Args:
    fitted, held: CSV files of step,lr,loss, or run directories.
    law: a key of loss_curves.LAWS; multi_power if None.
    fixed: parameters that are held.
  """
  read = lambda paths: [_curve(path) for path in paths]
  return loss_curves.fit_curves(read(fitted), read(held), law or "multi_power", fixed)


def check_curves(options, asked: Mapping) -> None:
  """ConfigError where --curves meets words that it would ignore, or --predict comes without it."""
  if not options.curves:
    if options.predict:
      raise ConfigError(f"predict={options.predict[0]}: needs --curves, whose law is to predict it")
    return
  tables = {k: getattr(options, k) for k in ("name", "csv", "config", "ledger", "where", "column")}
  ignored = [k for k, v in tables.items() if v]
  ignored += [k for k in changed(asked) if k != "fixed"]
  if ignored:
    option = OPTION_OF.get(ignored[0], ignored[0])
    raise ConfigError(f"{option}: says nothing of whole curves; leave it out, or --curves")


def _curve(path: str) -> loss_curves.Curve:
  """The training loss and learning rate of a run, or of a CSV file."""
  if path.endswith(".csv"):
    return loss_curves.read_csv(path)
  record = read_curve(path)
  keys = ("step", "optim/lr", "train/loss")
  if any(key not in record for key in keys):
    raise ConfigError(f"curves={path}: is neither a CSV file nor a run directory with a record")
  rows = [r for r in zip(*(record[key] for key in keys), strict=True) if None not in r]
  return loss_curves.make_curve(path, *zip(*rows, strict=True))


def refuse_of_files(options) -> None:
  """ConfigError where words about the cells of a file meet runs, which have none."""
  ignored = [k for k in ("unit", "decimal", "drop_repeats") if getattr(options, k)]
  if ignored:
    raise ConfigError(
      f"{ignored[0]}: is of the cells of a --csv table; runs have none; leave it out"
    )


def refuse_of_tables(options) -> None:
  """ConfigError where a page on an experiment meets words that only the page on a table takes."""
  given = [*changed(settings(options)), *column_names(options)]
  given += [k for k in ("law", "unit", "decimal", "count") if getattr(options, k)]
  if given:
    raise ConfigError(
      f"{OPTION_OF.get(given[0], given[0])}: a page on an experiment shows its own analysis; it is for "
      "--csv and --wandb_offline"
    )


def refuse_settings(settings: Mapping, experiment: str) -> None:
  """An experiment's own analysis takes no settings: what would be ignored is refused."""
  if ignored := changed(settings):
    raise ConfigError(
      f"{OPTION_OF.get(ignored[0], ignored[0])}: {experiment} has an analysis of its own; name a --law to "
      "fit another"
    )


def changed(settings: Mapping) -> list[str]:
  """The settings that differ from the defaults of the command line."""
  return [k for k, v in settings.items() if k != "seed" and (k, v) != ("n_boot", N_BOOT)]


def _number(option: str, text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = np.nan
  if not np.isfinite(value):
    raise ConfigError(f"{option}={text}: must be finite numbers; for example {option}=1e21")
  return value


def positive(option: str, text: str) -> float:
  value = _number(option, text)
  if not 0 < value < float("inf"):
    raise ConfigError(f"{option}={text.strip()}: must be > 0; for example {option}=1e21")
  return value


def _numbers(option: str, text: str) -> dict[str, float]:
  """{name: value} of `name=1,other=2`."""
  pairs = [part.partition("=") for part in text.split(",")]
  if not all(equals for _, equals, _ in pairs):
    raise ConfigError(f"{option}={text}: must be NAME=NUMBER, with commas between")
  named = [(name.strip(), _number(option, value)) for name, _, value in pairs]
  return once(option, named)


def flatten(results: Mapping) -> dict[str, object]:
  """Results with groups of fits as entries of their own."""
  flat = {}
  for key, value in results.items():
    if isinstance(value, Mapping) and has_laws(value):
      flat |= {f"{key}: {name}": fit for name, fit in value.items()}
    else:
      flat[key] = value
  return flat


def has_laws(results: Mapping) -> bool:
  """Whether there is a fit among the results."""
  kinds = laws.LawFit | laws.IsoFlopFit | laws.SideBySide
  return any(isinstance(value, kinds) for value in results.values())
