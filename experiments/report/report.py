"""An experiment's report: one self-contained HTML page from the question to the verdicts.

Everything comes from the experiment's file and its ledger; what cannot be shown is said where it would be.
Figures are also saved as SVG, PDF and PNG in a folder beside the page.
"""

import math
import pathlib
import shlex
import sys
import time
from collections.abc import Mapping, Sequence

from experiments.ledger import fits
from experiments.ledger.compare import SEEDS
from experiments.ledger.judged import LOSS, Judge, curve_metric, judge_of
from experiments.ledger.ledger import Ledger
from experiments.quote import cost as plans
from experiments.report import answers, charts, law_page, paper, report_laws
from experiments.report.claims import is_estimate, verdicts
from experiments.report.formats import duration, estimate, power, short
from experiments.report.page import Page, Steps, escape
from experiments.report.tables import cell
from experiments.sweep.sweep import Experiment
from lm.config.errors import number_of
from lm.runs.provenance import git_state, versions

SMOOTHING = 0.0  # decades of x; lines go through the means of bins
FOOTER = (
  "Losses are in nats per token. Intervals in brackets are 95 % unless said otherwise. Hover over a figure "
  "for the numbers behind it; the links under it lead to files for print."
)
SIZES = {
  "n_params": "parameters N",
  "n_tokens": "training tokens D",
  "tokens_per_param": "tokens per parameter",
  "flops": "compute C of a run (FLOPs)",
}
CONVENTIONS = {
  "flops_6ND": "6 N D",
  "flops_6ND_nonembedding": "6 N D, without embeddings",
  "flops_exact": "matmul by matmul",
}
FIXED = (
  "model.family", "model.depth", "model.seq_len", "train.batch_size", "optim.name", "optim.schedule",
  "optim.peak_lr", "optim.weight_decay", "data.sources", "data.tokenizer", "eval.tokens",
)  # fmt: skip
ORIGIN = {
  "commit": "code", "device": "device", "n_devices": "devices a run", "jax": "jax", "python": "Python",
  "data_fingerprint": "training data", "eval_fingerprint": "evaluation set",
  "tokenizer_fingerprint": "tokenizer",
}  # fmt: skip


def write_report(
  experiment: Experiment,
  rows: Ledger,
  out: str,
  style: str | None = None,
  command: str | None = None,
) -> pathlib.Path:
  """Writes the page to `out` and its figures to a folder beside it; returns the page's path.

  Args:
    style: a key of experiments.report.paper.STYLES, whose kit is written, too; None for none.
    command: that runs the experiment, where it has no file.
  """
  path = pathlib.Path(out)
  with Steps(f"report {experiment.name}") as steps:
    page = Page(figures_folder(path), steps)
    done = rows.done()
    if experiment.analyse and done:
      steps(f"analysing {_runs_done(done)}")
    results, why_not = _analyse(experiment, done)
    _write_sections(page, experiment, rows, results, why_not, path, command)
    if fits.has_laws(results):
      steps("the law page")
      link = law_page.write_law_page(law_page.points_of(results), path, experiment.name)
      page.html(f'<p><a href="{escape(link.name)}">The law with sliders</a></p>') if link else None
    if style:
      steps(f"paper kit {style}")
      paper.write_kit(page, path, style, _methods(experiment, rows, results, command))
    return page.write(
      path, f"{experiment.name}: {experiment.question}", _header(experiment, rows), FOOTER
    )


def _write_sections(page, experiment, rows, results, why_not, path, command) -> None:
  done = rows.done()
  page.answer(answers.answer(experiment, results, rows))
  if about := "\n".join(experiment.doc.strip().splitlines()[1:]).strip():
    page.section("Question")
    page.doc(about)
  page.section("Findings")
  _findings(page, experiment, results, why_not)
  if experiment.pictures and results:
    for name, (chart, caption) in experiment.pictures(done, results).items():
      page.figure(chart, name, caption)
  page.section("Design")
  _design(page, experiment, rows)
  page.section("Runs")
  _runs(page, rows)
  page.section("Learning curves")
  _curves(page, rows)
  if fits.has_laws(results):
    report_laws.add_sections(page, results)
  elif done:
    page.section("Response to the hyperparameters")
    _response(page, experiment, done)
  page.section("How to reproduce this page")
  _reproduce(page, experiment, rows, command)


def figures_of(page: pathlib.Path, ending: str) -> list[pathlib.Path]:
  """The files of a report's figures, in order."""
  numbered = lambda path: int(path.name.split("-")[1])
  return sorted(figures_folder(page).glob(f"figure-[0-9]*-*.{ending}"), key=numbered)


def figures_folder(page: pathlib.Path) -> pathlib.Path:
  """Where the figures of a page lie."""
  return page.with_name(f"{page.stem}_figures")


def write_comparison(rows: Sequence[Mapping], result: Mapping, out: str) -> pathlib.Path:
  """Writes what experiments.ledger.compare.compare found, with the curves drawn; returns the page's path."""
  path = pathlib.Path(out)
  page = Page(figures_folder(path))
  names, what = result["runs"], "Loss"
  if result["metric"] != LOSS.metric:
    what = f"{result['train_metric']} and {result['metric']}"
  page.section("Curves")
  for x in ("tokens", "flops", "seconds"):
    chart = charts.overlay(rows, x, SMOOTHING, result["train_metric"], result["metric"])
    if chart is None:
      page.absent(f"No run has a record against {x}.")
      continue
    page.figure(
      chart,
      f"curves-{x}",
      f"{what} against {charts.TITLES[x]}. "
      + _curve_caption(len(rows), judge_of(rows), result["train_metric"]),
    )
  page.section("What differs")
  page.notes(result["mismatches"])
  differing = [
    {"key": k, **{str(i): v for i, v in enumerate(values)}}
    for k, values in result["differences"].items()
  ]
  if differing:
    columns = {"key": ("key", escape)} | {str(i): (n, _as("")) for i, n in enumerate(names)}
    caption = "Configuration keys that are not the same in all runs."
    page.table(differing, columns, caption, {"key": "word"})
  else:
    page.text("The runs' configurations are the same.")
  page.section("At the end")
  columns = {k: (k, _as(k)) for k in result["final"][0]}
  page.table(result["final"], columns, "Final numbers of each run.")
  repeated = [{**s, "runs": ", ".join(s["runs"])} for s in result["seeds"] if s["n"] > 1]
  if repeated:
    columns = {k: (k, _as(k)) for k in ("runs", "n", "mean", "std")}
    page.table(repeated, columns, f"Final {judge_of(rows).name} of runs that differ in seeds only.")
  title = f'<div class="kind">Comparison</div><h1>{len(names)} runs</h1><p>{escape(" · ".join(names))}</p>'
  return page.write(path, "Comparison", f'<header class="title">{title}</header>', FOOTER)


def analysed(experiment: Experiment, done: Ledger) -> Mapping:
  """What the experiment's analysis says of its finished runs, flat, as its claims are set against it."""
  return fits.flatten(experiment.analyse(done)) if experiment.analyse else {}


def _analyse(experiment: Experiment, done: Ledger) -> tuple[Mapping, str | None]:
  """(results, None), or ({}, why there are none)."""
  if experiment.analyse is None:
    return (
      {},
      f"{experiment.name} defines no analyse(), so this page shows its runs and fits nothing to them.",
    )
  if not done:
    return {}, "No run is done yet, so there is nothing to analyse."
  try:
    return analysed(experiment, done), None
  except (
    ValueError
  ) as error:  # ConfigError too: too few runs, a missing column, a degenerate design
    return {}, f"The analysis of {_runs_done(done)} fails, so no law is shown: {error}"


def _runs_done(done: Ledger) -> str:
  return number_of(len(done), "finished run")


# ---- Sections ------------------------------------------------------------------------------------


def _findings(page: Page, experiment: Experiment, results: Mapping, why_not: str | None) -> None:
  if why_not:
    page.absent(why_not)
  if experiment.claims:
    rows = []
    for claim, row in zip(experiment.claims, verdicts(experiment.claims, results), strict=True):
      ours = results.get(row["what"])
      ours = (ours.value, ours.interval) if ours else (None, None)
      printed = claim.said if claim.one_sided else estimate((claim.value, claim.range), _plain)
      rows.append({**row, "published": printed, "ours": ours})
    columns = {
      "what": ("quantity", escape),
      "published": ("published [range]", str),
      "source": ("source", escape),
      "ours": ("ours [95 %]", estimate),
      "verdict": ("verdict", _verdict),
      "why": ("because", escape),
    }
    page.table(
      rows, columns,
      "Published numbers beside ours. A number agrees if our whole 95 % interval lies within the range that "
      "the source prints or that was allowed beforehand, and differs if none of it does; else it is "
      "consistent if our interval holds the published number, and borderline if not.", {"verdict": "word"},
    )  # fmt: skip
  numbers = [
    {"what": key, "value": (value.value, value.interval), "how": _how(value)}
    for key, value in results.items()
    if is_estimate(value)
  ]
  if numbers:
    columns = {
      "what": ("quantity", escape),
      "value": ("estimate [95 %]", estimate),
      "how": ("how", escape),
    }
    page.table(
      numbers, columns, "Every number of this experiment with its interval.", {"value": "word"}
    )
  for key, value in results.items():
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
      page.table(value, {k: (k, _as(k)) for k in value[0]}, f"{key}.")
    elif isinstance(value, str):
      page.heading(key)
      page.code([value])


def _design(page: Page, experiment: Experiment, rows: Ledger) -> None:
  swept = swept_keys(experiment)
  if swept:
    table = [{"key": k, "values": _values(v), "n": len(v)} for k, v in swept.items()]
    columns = {
      "key": ("hyperparameter", escape),
      "values": ("values", escape),
      "n": ("how many", str),
    }
    page.table(
      table, columns, f"What varies over the {len(experiment.runs)} planned runs.", {"key": "name"}
    )
  facts = {}
  for key, title in SIZES.items():
    if values := _finite(rows, key):
      show = power if key == "flops" else short
      facts[title] = " to ".join(dict.fromkeys(show(v) for v in (values[0], values[-1])))
  for key, title in CONVENTIONS.items():
    if values := _finite(rows, key):
      facts[f"FLOPs in all, {title}"] = power(sum(values))
  if values := _finite(rows, "seconds"):
    facts["training time in all"] = duration(sum(values))
  for key in FIXED:
    values = {str(cell(key, r[key])) for r in rows if r.get(key) is not None}
    if len(values) == 1:
      facts[key] = values.pop()
  page.facts(facts)
  page.notes(design_warnings(experiment, rows))


def design_warnings(experiment: Experiment, rows: Ledger) -> list[str]:
  """What makes the runs hard to compare: the plan's warnings about runs as they were, and mismatches."""
  needed = (*plans.EVAL_KEYS, "optim.schedule", "unique_tokens", "n_tokens", "id")
  known = [
    {**row, "epochs": row["n_tokens"] / row["unique_tokens"]}
    for row in rows
    if all(row.get(key) is not None for key in needed)
  ]
  return (plans.warnings(experiment, known, None) if known else []) + rows.mismatches()


def _runs(page: Page, rows: Ledger) -> None:
  judge = judge_of(rows)
  said = "loss in nats/token" if judge == LOSS else judge.name
  columns = {
    "name": ("run", escape),
    "n_params": ("N", short),
    "n_params_non_embedding": ("N non-emb.", short),
    "n_tokens": ("D", short),
    "tokens_per_param": ("D/N", lambda v: f"{v:.3g}"),
    "flops": ("C (FLOPs)", power),
    "lr": ("peak lr", lambda v: f"{v:.3g}"),
    judge.key: ("val. loss" if judge == LOSS else judge.name, lambda v: f"{v:.4f}"),
    "bpb": ("bits/byte", lambda v: f"{v:.4f}"),
    "status": ("status", lambda v: f'<span class="{escape(v)}">{escape(v)}</span>'),
  }
  columns = {k: v for k, v in columns.items() if any(row.get(k) is not None for row in rows)}
  statuses = [row["status"] for row in rows]
  counts = ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses))
  page.table(
    list(rows), columns,
    f"The runs ({counts}). N: parameters, embeddings included unless said; D: training tokens; {said} "
    "over the fixed validation set, at the last evaluation.", {"name": "name"},
  )  # fmt: skip
  reasons = [r for r in rows if r["status"] != "done" and r.get("reason")]
  if reasons:
    columns = {"name": ("run", escape), "status": ("status", escape), "reason": ("reason", escape)}
    page.table(
      reasons, columns, "Runs that are not done; no law is fitted to them.", {"name": "name"}
    )


def _curves(page: Page, rows: Ledger) -> None:
  chart = charts.learning_curves(list(rows), SMOOTHING)
  if chart is None:
    page.absent("The ledger holds no learning curves.")
    return
  n = sum(bool(row.get("curve")) for row in rows)
  failed = any(row["status"] == "failed" for row in rows)
  page.figure(
    chart,
    "learning-curves",
    _curve_caption(n, judge_of(rows), curve_metric(rows, judge_of(rows)))
    + (" Dashed: failed runs." if failed else ""),
  )


def _curve_caption(n: int, judge: Judge, metric: str) -> str:
  line = "training loss" if metric == "train/loss" else metric
  return (
    f"Lines: {line} of n = {n} runs, means of bins along the axis, not smoothed; bands: least and "
    "greatest record of a bin. Dots: " + f"{judge.name}."
  )


def _response(page: Page, experiment: Experiment, done: Ledger) -> None:
  """Final loss against the swept number with most values; others become colours and panels."""
  judge = judge_of(done)
  rows = judge.known(done)
  if experiment.halving:  # rungs have budgets of their own: nothing is averaged over them
    rows = [{**row, "rung": answers.rung_of(row)} for row in rows]
  swept = _independent(rows, [k for k in swept_keys(experiment) if all(k in row for row in rows)])
  numeric = [k for k in swept if all(isinstance(r[k], int | float) for r in rows)]
  if not rows or not numeric:
    page.absent("No number is swept over, so there is no response to show.")
    return
  x = max(numeric, key=lambda k: len({r[k] for r in rows}))
  others = sorted((k for k in swept if k != x), key=lambda k: -len({str(r[k]) for r in rows}))
  others = ["rung", *others] if experiment.halving else others
  split = others[1] if len(others) > 1 else None
  lines = [key for key in others if key != split]
  line = ", ".join(lines)
  by = line or None
  best = min(rows, key=lambda r: (-r.get("rung", 0), judge.rank(r[judge.key])))
  shown = rows
  if len(lines) > 1:  # nothing is averaged over what is not shown
    shown = [{**row, line: ", ".join(_setting(row[key]) for key in lines)} for row in rows]
  caption = f"{judge.name[:1].upper()}{judge.name[1:]} of n = {len(rows)} finished runs against {x}"
  caption += f", a line for each {by}" if by else ""
  caption += f", a panel for each {split}" if split else ""
  page.figure(
    charts.response(shown, x, by, split),
    "response",
    f"{caption}. Lines go through means of repeats; the best of each is ringed. The best run: "
    f"{best[judge.key]:.4f} ({best['name']}).",
  )


def _setting(value) -> str:
  """A value as a legend has it."""
  return (",".join(map(str, value)) or "none") if isinstance(value, list | tuple) else str(value)


def _independent(rows: Sequence[Mapping], keys: Sequence[str]) -> list[str]:
  """Without seeds, and without keys that follow from one before them (heads from width)."""
  kept = []
  for key in keys:
    pairs = lambda *keys: len({tuple(str(r[k]) for k in keys) for r in rows})
    follows = (pairs(k, key) == pairs(k) for k in kept)
    if key not in SEEDS and not any(follows):
      kept.append(key)
  return kept


def _methods(experiment: Experiment, rows: Ledger, results: Mapping, command) -> dict:
  """What the methods appendix of a paper kit says: set-up, counts, exclusions, intervals, commands."""
  done = rows.done()
  sizes = [
    f"{title} {' to '.join(dict.fromkeys(show(v) for v in (known[0], known[-1])))}"
    for key, title, show in (
      ("n_params", "parameters", short),
      ("n_tokens", "training tokens", short),
      ("flops", "FLOPs", power),
    )
    if (known := _finite(done, key))
  ]
  swept = [f"{k} in {{{_values(v)}}}" for k, v in swept_keys(experiment).items()]
  fixed = {k: {str(cell(k, r[k])) for r in rows if r.get(k) is not None} for k in FIXED}
  fixed = [f"{k} = {v.pop()}" for k, v in fixed.items() if len(v) == 1]
  out = [f"{r['name']}: {r['status']}, {r.get('reason') or 'no reason given'}"
         for r in rows if r["status"] != "done"]  # fmt: skip
  laws_said = [
    f"{key}: {report_laws.how(fit)}" for key, fit in results.items() if report_laws.how(fit)
  ]
  return {
    "Set-up": [*swept, *fixed],
    "Counts": [f"{len(done)} finished runs of {len(rows)}", *sizes],
    "Exclusions": out or ["none: every run ended well"],
    "Fits and intervals": laws_said or ["no law was fitted"],
    "Comparability": design_warnings(experiment, rows)
    or ["all runs share data and evaluation set"],
    "Commands": _commands(experiment, rows, command),
  }


def _commands(experiment: Experiment, rows: Ledger, command: str | None) -> list[str]:
  commits = [c for c in dict.fromkeys(row.get("commit") for row in rows) if c]
  lines = [f"git checkout {commits[0]}"] if commits else []
  lines.append("pip install -r requirements.txt")
  searched = f" --optuna {shlex.join(experiment.searched)}" if experiment.searched else ""
  if experiment.source:
    what = experiment.source.stem
    scale = experiment.name.removeprefix(what).removeprefix("-")
    what += f" --scale {scale}" if scale else ""
    trained = f"python -m experiments run {what}{searched}"
    return [*lines, trained, f"python -m experiments report {what}"]
  if command:
    lines.append(f"{command}{searched}")
  return [*lines, f"python -m experiments report {shlex.quote(experiment.name)}"]


def _reproduce(page: Page, experiment: Experiment, rows: Ledger, command: str | None) -> None:
  page.code(_commands(experiment, rows, command))
  page.text("This page was written by:")
  page.code([_command(sys.argv)])
  facts = {}
  for key, title in ORIGIN.items():
    values = [str(row[key]) for row in rows if row.get(key) is not None]
    counted = [f"{v} ({number_of(values.count(v), 'run')})" for v in dict.fromkeys(values)]
    facts |= {title: "; ".join(counted)} if counted else {}
  dirty = sum(bool(row.get("dirty")) for row in rows)
  facts["uncommitted changes"] = (
    f"in {dirty} of {number_of(len(rows), 'run')}" if dirty else "in no run"
  )
  facts["this page"] = ", ".join(f"{k} {v}" for k, v in versions().items())
  page.facts(facts)
  if experiment.runs:
    commands = [_train_command(experiment.name, run) for run in experiment.runs]
    page.folded(f"The commands of {number_of(len(commands), 'run')}", commands)


def swept_keys(experiment: Experiment) -> dict[str, list]:
  """{config key: its values} that are not the same in all of the experiment's runs."""
  keys = dict.fromkeys(k for run in experiment.runs for k in run.overrides)
  found = {}
  for key in keys:
    values = list(dict.fromkeys(cell(key, run.overrides.get(key)) for run in experiment.runs))
    if len(values) > 1:
      found[key] = values
  configs = list(dict.fromkeys(run.config for run in experiment.runs))
  return found | ({"config": configs} if len(configs) > 1 else {})


# ---- Words and numbers ---------------------------------------------------------------------------


def _header(experiment: Experiment, rows: Ledger) -> str:
  done, state = len(rows.done()), git_state()
  commit = (state["commit"] or "no commit")[:10]
  commit += " with uncommitted changes" if state["dirty"] else ""
  facts = f"{done} of {number_of(len(rows), 'run')} done · {time.strftime('%d %B %Y')} · report code {commit}"
  return (
    f'<header class="title"><div class="kind">{escape(experiment.name)}</div>'
    f"<h1>{escape(experiment.question or experiment.name)}</h1><p>{escape(facts)}</p></header>"
  )


def _as(key: str):
  return lambda value: escape(cell(key, value))


def _plain(value: float) -> str:
  return f"{value:.4g}"


def _how(estimate) -> str:
  """The note of one of ours, or the meaning of one of a law's."""
  return estimate.note if hasattr(estimate, "note") else estimate.meaning


def _verdict(word: str) -> str:
  marks = {"agrees": ("●", "agrees"), "consistent": ("◐", "agrees"), "borderline": ("△", "differs"),
           "differs": ("▲", "differs")}  # fmt: skip
  mark, style = marks.get(word, ("○", "cannot"))
  return f'<span class="verdict {style}">{mark} {escape(word)}</span>'


def _values(values: Sequence[str], most: int = 12) -> str:
  if len(values) <= most:
    return ", ".join(values)
  return f"{', '.join(values[:3])}, …, {', '.join(values[-2:])}"


def _finite(rows: Ledger, key: str) -> list[float]:
  values = [row.get(key) for row in rows]
  return sorted(v for v in values if isinstance(v, int | float) and math.isfinite(v))


def _command(argv: Sequence[str]) -> str:
  if pathlib.Path(argv[0]).name == "__main__.py":
    argv = ["python", "-m", pathlib.Path(argv[0]).parent.name, *argv[1:]]
  return shlex.join(argv)


def _train_command(experiment: str, run) -> str:
  words = ["python", "train.py", "--config", run.config]
  words += ["--workdir", f"runs/{experiment}/{run.name}"]
  for key, value in run.overrides.items():
    shown = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
    words.append(f"--config.{key}={shown}")
  return shlex.join(words)
