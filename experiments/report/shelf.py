"""The page of finished studies, experiments/results/README.md, and its pictures, from the committed ledgers.

It draws the pictures of a study anew and rewrites its part of the page; without names those of all. Pictures
are figures of the study's report, small enough that it stays under 300 KB with its ledger.

examples:
  python -m experiments.report.shelf
  python -m experiments.report.shelf lr_tokens
"""

import argparse
import dataclasses
import io
import pathlib
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from experiments.ledger import ledger as ledgers
from experiments.report import charts, paper, report
from experiments.report.claims import Estimate, shown, verdict
from experiments.report.formats import power
from experiments.sweep import sweep
from lm.config.errors import ConfigError, number_of, suggest

RESULTS = pathlib.Path(__file__).parent.parent / "results"
SCALE = 1.5  # pixels a point; a report's own PNGs have three
COLOURS = 64  # of a picture: an eighth of the bytes


class Study(NamedTuple):
  """`figures` are those of its report that are committed; `cost` is the time that its runs took."""

  figures: tuple[str, ...]
  cost: str
  command: str


STACKED = "--on stacked --stack"
STUDIES = {
  "chinchilla": Study(
    ("isoflop", "extrapolation"), "45 minutes on 2 cores", "run chinchilla --workers 2"
  ),
  "lr_sweep": Study(("response",), "14 minutes on 2 cores", "run lr_sweep --on stacked"),
  "wsd_cosine": Study(
    ("response",), "24 minutes on 2 busy cores", f"run wsd_cosine {STACKED} 18"
  ),
  "lr_tokens": Study(("response",), "7 minutes on 2 cores", f"run lr_tokens {STACKED} 18"),
  "repetition": Study(("response",), "14 minutes on 2 busy cores", f"run repetition {STACKED} 21"),
  "muon_race": Study(("response",), "12 minutes on 2 busy cores", f"run muon_race {STACKED} 4"),
  "critical_batch": Study(
    ("critical-batch",), "an hour on 2 busy cores", f"run critical_batch {STACKED} 6"
  ),
  "depth_transfer": Study(
    ("response",), "11 minutes on 2 busy cores", "run depth_transfer --workers 2"
  ),
  "experts": Study(("response",), "3 minutes on 2 cores", "run experts --workers 2"),
  "embedding_rate": Study(
    ("response",), "36 minutes of a busy core", "run embedding_rate --workers 2"
  ),
  "collapse": Study(("collapse", "spread"), "3 minutes on 2 cores", "run collapse --workers 2"),
  "stability": Study(("response",), "6 minutes on 2 cores", "run stability --workers 2"),
  "unseen_schedule": Study(
    ("curves",), "4 minutes on 2 cores", "run unseen_schedule --workers 2"
  ),
  "isoflop_wide": Study(
    ("isoflop", "optimum-path"), "29 minutes on 2 busy cores", "run isoflop_wide --workers 2"
  ),
  "acceptance": Study(
    ("predicted",), "29 minutes on 2 busy cores", "run acceptance --workers 2"
  ),
}  # fmt: skip

HEAD = """# Studies and their results

Questions that papers answered, tested again on models small enough for two CPU cores. Each study is a file in
`experiments/`, which says what was varied, what was fixed and what it cannot tell; the numbers below are made
from its `ledger.jsonl` by `python -m experiments.report.shelf STUDY`, and its page by
`python -m experiments report STUDY --ledger experiments/results/STUDY/ledger.jsonl`.

A verdict is *agrees* if the whole of our 95 % interval lies in the published range, *differs* if none of it
does, *consistent* or *borderline* in between (`experiments/report/claims.py`).
"""
ROW = "| study | what | ours [95 %] | published | verdict |"


def analysed(study: str) -> Mapping:
  """What the study's analysis says of its committed ledger."""
  return report.analysed(sweep.load(study), _ledger(study))


def part(study: str, results: Mapping) -> str:
  """A study's part of the page: question, claims with verdicts, cost, command, pictures."""
  experiment, rows = sweep.load(study), _ledger(study)
  lines = [
    f"## {study}",
    "",
    experiment.question,
    "",
    ROW.removeprefix("| study "),
    "|---|---|---|---|",
  ]
  for claim in experiment.claims:
    ours = results.get(claim.what)
    said = verdict(claim, ours).word
    lines.append(f"| {claim.what} | {_shown(ours)} | {claim.said} ({claim.source}) | {said} |")
  flops = power(sum(row["flops_6ND"] for row in rows)).replace("×", "x")
  about = STUDIES[study]
  lines += ["", f"{number_of(len(rows), 'run')}, {flops} FLOPs (6ND) in all, {about.cost}: "
            f"`python -m experiments {about.command}`", ""]  # fmt: skip
  lines += [f"![{name}]({study}/{name}.png)" for name in about.figures]
  return "\n".join(lines)


def draw(study: str, results: Mapping, to: pathlib.Path = RESULTS) -> list[pathlib.Path]:
  """Writes the study's pictures to `to`/STUDY; returns their paths.

  Raises:
    ConfigError: its report lacks a figure.
  """
  import vl_convert
  from PIL import Image

  made = []
  paper.register_font()
  with tempfile.TemporaryDirectory() as folder:
    experiment = dataclasses.replace(sweep.load(study), analyse=lambda rows: results)
    page = report.write_report(experiment, _ledger(study), f"{folder}/report.html")
    drawn = {path.stem.split("-", 2)[2]: path for path in report.figures_of(page, "svg")}
    for name in STUDIES[study].figures:
      if name not in drawn:
        raise ConfigError(f"study={study}: its report has no figure {name}; use {', '.join(drawn)}")
      path = to / study / f"{name}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      svg = drawn[name].read_text(encoding="utf-8").replace(charts.SANS, paper.FONT)
      png = vl_convert.svg_to_png(svg, scale=SCALE)
      picture = Image.open(io.BytesIO(png)).convert("RGB")
      picture.quantize(COLOURS).save(path, optimize=True)
      made.append(path)
  return made


def parts_of(page: str) -> dict[str, str]:
  """{study: its part} of a page."""
  return {
    part.partition("\n")[0].strip(): f"## {part.strip()}"
    for part in re.split(r"^## ", page, flags=re.M)[1:]
  }


def page_of(parts: Mapping[str, str]) -> str:
  """The page, its studies in the order of STUDIES."""
  return "\n\n".join([HEAD.strip(), *(parts[name] for name in STUDIES if name in parts)]) + "\n"


def _ledger(study: str) -> ledgers.Ledger:
  return ledgers.load_ledger(str(RESULTS / study / "ledger.jsonl")).done()


def _shown(estimate) -> str:
  if estimate is None:
    return "none"
  value, interval = estimate.value, estimate.interval
  digits = 3 if abs(value) < 1 else 2
  rounded = interval and tuple(round(end, digits) for end in interval)
  return shown(Estimate(round(value, digits), rounded))


def main(argv: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("studies", nargs="*", metavar="STUDY", help="all of them if none is named")
  names, path = parser.parse_args(argv).studies, RESULTS / "README.md"
  try:
    for name in names:
      if name not in STUDIES:
        raise ConfigError(f"study={name}: is not on the shelf; {suggest(name, STUDIES)}")
    parts = parts_of(path.read_text(encoding="utf-8")) if path.exists() else {}
    for study in names or STUDIES:
      results = analysed(study)
      for picture in draw(study, results):
        print(f"{picture.stat().st_size:>8,} bytes  {picture}", flush=True)
      parts[study] = part(study, results)
      path.write_text(page_of(parts), encoding="utf-8")
  except ConfigError as error:
    print(error, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
  main(sys.argv[1:])
