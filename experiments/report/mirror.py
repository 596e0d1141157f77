"""A sweep's report in Weights & Biases: one run in the sweep's group, with the pictures of the page."""

import dataclasses
import pathlib
import re
import shutil

from experiments.ledger.judged import LOSS, judge_of
from experiments.ledger.ledger import Ledger
from experiments.report.report import figures_of
from experiments.sweep.sweep import Experiment, asked_config
from lm.runs.mirror import About
from lm.runs.wandb_mirror import WandbMirror, wandb_mode


def mirror_report(experiment: Experiment, rows: Ledger, page: pathlib.Path) -> None:
  """Logs the figures of a written report, and how the sweep stands; fails as softly as a run's mirror.

  A sweep has one such run, under the id that `report_id` gives: a later report goes on in it. What an
  earlier one left offline, and nobody has sent, is replaced.

  Args:
    experiment: its name is the group, as it is of its runs when they are mirrored; the project is
      that of its first run.
    rows: what the page was written from.
    page: the report; an offline W&B run is kept in the folder it lies in.
  """
  log = asked_config(experiment.runs[0]).log
  cfg = dataclasses.replace(log, wandb="auto", wandb_group=experiment.name)
  if wandb_mode(cfg.wandb) == "disabled":
    return
  run_id, done = report_id(experiment.name), rows.done()
  for folder in page.parent.glob(f"wandb/offline-run-*-{run_id}"):
    if not any(folder.glob("*.synced")):
      shutil.rmtree(folder, ignore_errors=True)
  shown = {"question": experiment.question, "kind": "report", "runs": len(rows)}
  tags = ("report", experiment.name)
  title = f"{experiment.name}: report"
  mirror = WandbMirror(About(cfg, page.parent, run_id, 0, shown, "report", tags, name=title))
  judge = judge_of(done)
  scores = [row[judge.key] for row in judge.known(done)]
  best = min(scores, key=judge.rank, default=None)
  name = "least_loss" if judge == LOSS else "best_score"
  numbers = {"report/runs_done": len(done), f"report/{name}": best}
  pictures = {f"report/{path.stem}": path for path in figures_of(page, "svg")}
  mirror.log(0, {**{k: v for k, v in numbers.items() if v is not None}, **pictures})
  mirror.close()


def report_id(name: str) -> str:
  """The id of a sweep's report: letters, digits, hyphens, as W&B asks.

  >>> report_id("lr_sweep")
  'report-lr_sweep'
  """
  return "report-" + re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:100]
