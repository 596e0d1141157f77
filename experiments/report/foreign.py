"""A report of anybody's runs: a table (CSV, TSV, JSONL), or Weights & Biases runs, online or offline."""

import csv
import io
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from experiments.ledger import fits
from experiments.report import answers, law_page, paper, report, report_laws
from experiments.report.claims import Claim
from experiments.report.formats import power, short
from experiments.report.page import Page, Steps, escape
from experiments.report.wandb_offline import read_offline
from experiments.report.wandb_online import read_project
from experiments.sweep.sweep import Experiment
from lm.config.errors import ConfigError, number_of

SLICES, LAW = "a in N* ~ C^a, from isoFLOP slices", "a in N* ~ C^a, from the parametric law"
CLAIMS = (
  Claim(
    SLICES,
    0.49,
    "Hoffmann et al. 2022, arXiv:2203.15556, table 2, approach 2",
    interval=(0.462, 0.534),
  ),
  Claim(LAW, 0.513, "Besiroglu et al. 2024, arXiv:2404.10102", tolerance=0.03),
  Claim(LAW, 0.73, "Kaplan et al. 2020, arXiv:2001.08361, §6.1", tolerance=0.02),
)
# Keys under which W&B runs hold what a law needs, first to last, beside the spellings of experiments.laws.
WANDB_KEYS = {
  "loss": ("eval/val/loss", "eval/loss", "val/loss", "val_loss", "validation_loss", "eval_loss"),
  "n_tokens": ("progress/tokens", "n_tokens", "tokens", "train/tokens_seen", "tokens_seen"),
  "flops": ("progress/flops", "flops", "total_flos"),
  "n_params": (
    "run.parameters.total",
    "parameters.total",
    "n_params",
    "num_params",
    "params",
    "model.n_params",
  ),
}


def write_csv_report(
  path: str,
  out: str,
  names: Mapping[str, str],
  where: Sequence[str] = (),
  scale: Mapping[str, float] | None = None,
  style: str | None = None,
  title: str | None = None,
  decimal: str | None = None,
  law: str = "chinchilla",
  counts: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
  origin: str | None = None,
  **settings,
) -> pathlib.Path:
  """Writes a page on the runs of a table, as `fit` does for text; returns the page's path.

  Args:
    path: the file.
    out: the page.
    names: {our column: theirs}; the others are found by their usual spellings.
    where: conditions on their columns; other rows are left out and counted.
    scale: {our column: what one unit of it is}.
    style: of a paper kit; None for none.
    title: of the page; the file's name if None.
    decimal: "point" or "comma", where the columns do not show it.
    law: a key of experiments.laws.LAWS or a formula; "isoflop" for slices alone.
    counts: further ways to count, as laws.refit_under takes them.
    origin: where the runs are from, as the page says it; the file if None.
    settings: as `fits.settings` gives them; of slices, of the law, or of both.

  Raises:
    ConfigError: no such file or column, a setting that neither takes, or a table that carries neither.
  """
  page_path = pathlib.Path(out)
  title = title or pathlib.Path(path).name
  law = fits.named(law, names)
  _check(law, settings)
  with Steps(f"report {title}") as steps:
    table = fits.read_csv(path, names, where, scale, decimal, settings)
    results, reasons = analyse_table(table, steps, law, counts, **settings)
    if not fits.has_laws(results):
      said = list(dict.fromkeys(reason.partition(": ")[2] for reason in reasons))
      raise ConfigError(f"csv={path}: {said[0] if len(said) == 1 else '; '.join(reasons)}")
    page = Page(report.figures_folder(page_path), steps)
    page.answer(answers.of_laws(results))
    page.section("Findings")
    for reason in reasons:
      page.absent(reason)
    experiment = Experiment(title, "", (), claims=tuple(c for c in CLAIMS if c.what in results))
    report._findings(page, experiment, results, None)
    page.section("The table")
    _table_section(page, table, origin or path)
    report_laws.add_sections(page, results)
    link = law_page.write_law_page(law_page.points_of(results), page_path, title)
    if link:
      page.html(f'<p><a href="{escape(link.name)}">The law with sliders</a></p>')
    page.section("How to reproduce this page")
    page.code([report._command(sys.argv)])
    if style:
      paper.write_kit(
        page, page_path, style, _methods(table, results, reasons, origin or pathlib.Path(path).name)
      )
    head = (
      f'<header class="title"><div class="kind">Runs of others</div><h1>{escape(title)}</h1>'
      f"<p>{number_of(len(table), 'run')} · {time.strftime('%d %B %Y')}</p></header>"
    )
    return page.write(page_path, title, head, report.FOOTER)


def _check(law: str, settings: Mapping[str, object]) -> None:
  """ConfigError where a page cannot be made of `law`, or neither it nor slices take one of the settings."""
  others = [kind for kind in fits.KINDS if kind != "isoflop"]
  if law in others:
    raise ConfigError(
      f"law={law}: a page shows slices and a parametric law; python -m experiments fit --law {law} prints it"
    )
  of_slices, of_law = fits.KINDS["isoflop"], fits.PARAMETRIC
  only = of_slices if law == "isoflop" else of_law
  fits.check(law, {k: v for k, v in settings.items() if k in only or k not in of_slices})


def analyse_table(
  table,
  steps=lambda step: None,
  law: str = "chinchilla",
  counts: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
  **settings,
) -> tuple[dict, list[str]]:
  """(slices, law and refits under other counts, why any of them is missing)."""
  results, reasons = {}, []
  takes = (*fits.KINDS["isoflop"], *fits.ASIDE)
  steps("slices of equal compute")
  try:
    given = {k: v for k, v in settings.items() if k in takes}
    results["isoFLOP"] = fits.fit_read(table, "isoflop", given)
    results[SLICES] = results["isoFLOP"]["a"]
  except ConfigError as error:
    reasons.append(f"No slices of equal compute: {error}")
  if law == "isoflop":
    return results, reasons
  takes = (*fits.PARAMETRIC, *fits.ASIDE)
  steps(f"the law {law}, {settings.get('n_boot', 1000)} resamples")
  try:
    given = {k: v for k, v in settings.items() if k in takes}
    found = fits.fit_read(table, law, given)
    results["parametric"] = found
    if found.size_exponent and not found.size_exponent.fixed:
      results[LAW] = found.size_exponent
    results |= fits.counted_otherwise(found, given, counts)
  except ConfigError as error:
    reasons.append(f"No parametric law: {error}")
  return results, reasons


def _table_section(page: Page, table, path: str) -> None:
  rows = [
    {
      "ours": ours,
      "theirs": table.source.get(ours, "derived"),
      "from": float(min(values)),
      "to": float(max(values)),
    }
    for ours, values in table.columns.items()
  ]
  show = lambda v: power(v) if v >= 1e15 else short(v)
  headings = {
    "ours": ("column", escape), "theirs": ("read from", escape), "from": ("least", show),
    "to": ("greatest", show),
  }  # fmt: skip
  page.table(
    rows, headings, f"What was read from {path}: {number_of(len(table), 'run')}.", {"ours": "word"}
  )
  page.notes(list(table.notes))
  if table.skipped:
    page.folded(
      f"Left out: {number_of(len(table.skipped), 'row')}",
      [f"row {n}: {why}" for n, why in table.skipped],
    )


def _methods(table, results, reasons, origin) -> dict[str, list[str]]:
  left = {}
  for _, why in table.skipped:
    left[why] = left.get(why, 0) + 1
  read = [f"{ours} read from {theirs}" for ours, theirs in table.source.items()]
  made = [f"{k}: {report_laws.how(f)}" for k, f in results.items() if report_laws.how(f)]
  return {
    "Set-up": [f"runs of others, read from {origin}", *table.notes],
    "Counts": [number_of(len(table), "run"), *read],
    "Exclusions": [f"{number_of(n, 'row')}: {why}" for why, n in left.items()] or ["none"],
    "Fits and intervals": made + reasons,
    "Commands": [report._command(sys.argv)],
  }  # fmt: skip


# ---- Weights & Biases ----------------------------------------------------------------------------


def write_wandb_report(
  place: str,
  out: str,
  names: Mapping[str, str],
  online: bool = False,
  where: Sequence[str] = (),
  **options,
) -> pathlib.Path:
  """The same of runs of Weights & Biases: a project's, or offline ones at or below a folder.

  A run is a row: its config's keys, joined by dots, and the last value of each metric. Runs that did not
  finish are left out, unless `where` names the column `state`.

  Args:
    place: ENTITY/PROJECT, or a folder (with wandb/offline-run-*/run-*.wandb).
    online: whether it is a project.

  Raises:
    ConfigError: no such runs, or none with parameters and a loss.
  """
  rows = read_project(place) if online else read_offline(place)
  if not any(re.match(r"\s*state\b", condition) for condition in where):
    where = ("state=finished", *where)
  keys = list(dict.fromkeys(k for row in rows for k in row))
  names = {**{ours: k for ours, ks in WANDB_KEYS.items() for k in ks[::-1] if k in keys}, **names}
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "runs.csv"
    text = io.StringIO()
    writer = csv.DictWriter(text, keys, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")
    title = f"{number_of(len(rows), 'run')} of {place}"
    try:
      return write_csv_report(
        str(path), out, names, where, title=title, origin=f"Weights & Biases, {place}", **options
      )
    except ConfigError as error:
      asked = f"{'wandb' if online else 'wandb_offline'}={place}"
      raise ConfigError(
        str(error).replace(f"csv={path}", asked).replace(str(path), place)
      ) from None
