"""A sweep's report in Weights & Biases: one run in the sweep's group, with the pictures of the page."""

import dataclasses
import pathlib
import uuid

from experiments.ledger.ledger import Ledger
from experiments.report.report import figures_of
from experiments.sweep.sweep import Experiment, asked_config
from lm.runs.wandb_mirror import WandbMirror


def mirror_report(experiment: Experiment, rows: Ledger, page: pathlib.Path) -> None:
  """Logs the figures of a written report, and how the sweep stands; fails as softly as a run's mirror.

  Args:
    experiment: its name is the group, as it is of its runs when they are mirrored; the project is
      that of its first run.
    rows: what the page was written from.
    page: the report; an offline W&B run is kept in the folder it lies in.
  """
  log = asked_config(experiment.runs[0]).log
  cfg = dataclasses.replace(log, wandb="auto", wandb_group=experiment.name)
  about = {"question": experiment.question, "kind": "report", "runs": len(rows)}
  mirror = WandbMirror(cfg, page.parent, f"report-{uuid.uuid4().hex[:8]}", about)
  done = rows.done()
  losses = [row["loss"] for row in done if row.get("loss") is not None]
  numbers = {"report/runs_done": len(done), "report/least_loss": min(losses, default=None)}
  pictures = {f"report/{path.stem}": path for path in figures_of(page, "svg")}
  mirror.log(0, {**{k: v for k, v in numbers.items() if v is not None}, **pictures})
  mirror.close()
