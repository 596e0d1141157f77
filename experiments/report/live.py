"""Progress of a sweep while it runs: a live table in a terminal, plain lines elsewhere."""

import contextlib
import json
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence

from experiments.launch.loop import Working
from experiments.report.formats import clock
from experiments.report.tables import fit_columns
from experiments.sweep.sweep import Member
from lm.cost.flops import run_flops_per_token
from lm.objectives.registry import objective_of
from lm.setup.resolve import kind_of, tokens_per_step

TAIL_BYTES = 1 << 14  # read from the end of a record: holds its last evaluation
PLAIN_SECONDS = 30.0  # between two plain progress lines
STYLES = {
  "done": "green", "running": "cyan", "failed": "red", "interrupted": "yellow",
  "stopped": "yellow", "waiting": "dim", "queued": "blue", "compiling": "magenta",
}  # fmt: skip
LIVE_COLUMNS = {
  "name": "run", "status": "status", "step": "step", "shown": "train", "score": "val",
  "tokens_per_sec": "units/s", "left": "left",
}  # fmt: skip


class Watch:
  """Call it with (members, rows, working, stopping); as a context manager it owns the terminal.

  Args:
    title: shown above the table.
    stream: where to write; a terminal gets the live table.
    follows: the records of runs are on this machine; if not, it is shown only which runs are at work.
  """

  def __init__(self, title: str, stream=None, follows: bool = True):
    self._follows = follows
    self._title, self._stream = title, stream or sys.stderr
    self._born = self._last = time.monotonic()
    self._seen: dict[str, str] = {}
    self._begun: set[str] = set()
    self._work: dict[str, float] = {}  # FLOPs of each run
    self._at_first: float | None = None  # FLOPs that were done when it began
    self._live = None
    self._stopping = False

  def __enter__(self):
    if self._stream.isatty():
      from rich.console import Console
      from rich.live import Live

      console = Console(file=self._stream)
      self._live = Live(console=console, refresh_per_second=4, transient=True)
      self._live.__enter__()
    return self

  def __exit__(self, *error):
    if self._live:
      self._live.__exit__(*error)

  def __call__(
    self,
    members: Sequence[Member],
    rows: Mapping[str, dict],
    working: Sequence[Working],
    stopping: bool,
  ) -> None:
    now = {m.name: (m, len(w.job.members)) for w in working for m in w.job.members if not w.queued}
    if stopping and not self._stopping:
      self._say("stopping: each run saves a checkpoint first (again to stop at once)")
    self._stopping = stopping
    for work in working:
      if work.ticket.id not in self._begun and not work.queued:
        self._begun.add(work.ticket.id)
        self._say(f"running {_job_name(work)}")
    for member in members:
      self._report(member, rows[member.name])
    if self._live:
      self._live.update(self._table(members, rows, now))
    elif now and time.monotonic() - self._last > PLAIN_SECONDS:
      self._say(self._summary(members, rows, now))
      for work in working:
        progress = _progress_text(work.job.members[0], len(work.job.members))
        self._say(f"  {_job_name(work)}  {progress}")

  def _report(self, member: Member, row: Mapping) -> None:
    """A line that stays, when a run's status changes."""
    before, status = self._seen.get(member.name), row["status"]
    self._seen[member.name] = status
    if status == "running" != before and row.get("reason"):  # not ours
      self._say(f"running {member.name}: {row['reason']}")
    if status in (before, "running", "queued") or (
      before is None and status in ("done", "waiting")
    ):
      return
    known = status == "done" and row.get("score") is not None
    score = f"{_title(row['metric'])} {row['score']:.4f}" if known else ""
    reason = row.get("reason") or score
    self._say(f"{status} {member.name}" + (f": {reason}" if reason else ""))

  def _say(self, text: str) -> None:
    self._last = time.monotonic()
    if self._live:
      self._live.console.print(text, highlight=False, markup=False)
    else:
      print(text, file=self._stream, flush=True)

  def _summary(self, members, rows, now) -> str:
    """How many runs stand where, the best so far, time spent and left."""
    counts = {}
    for member in members:
      status = rows[member.name]["status"]
      counts[status] = counts.get(status, 0) + 1
    parts = [", ".join(f"{n} {s}" for s, n in counts.items()) + f" of {len(members)}"]
    done = [rows[m.name] for m in members if rows[m.name]["status"] == "done"]
    scored = [row for row in done if row.get("score") is not None]
    if len({row["metric"] for row in scored}) == 1:
      sign = -1 if scored[0]["better"] == "higher" else 1
      best = min(scored, key=lambda row: (sign * row["score"], row["name"]))
      parts.append(f"best {best['score']:.4f} ({best['name']})")
    parts.append(f"{clock(time.monotonic() - self._born)} spent")
    if left := self._left(members, rows, now):
      parts.append(f"about {clock(left)} left")
    return f"{self._title}: {' | '.join(parts)}"

  def _left(self, members, rows, now) -> float | None:
    """Seconds until all runs are done, at the FLOPs a second since this began; None at first."""
    done = total = 0.0
    for member in members:
      work = self._work_of(member)
      total += work
      row = rows[member.name]
      if row["status"] in ("done", "failed", "unreadable"):
        done += work
      elif member.name in now:
        done += work * _step(member, row) / max(member.cfg.train.steps, 1)
      elif row.get("steps"):
        done += work * min(row["step"] / row["steps"], 1.0)
    if self._at_first is None:
      self._at_first = done
    gained, spent = done - self._at_first, time.monotonic() - self._born
    return spent * (total - done) / gained if gained > 0 and total > done else None

  def _work_of(self, member: Member) -> float:
    if member.name not in self._work:
      cfg = member.cfg
      self._work[member.name] = cfg.train.tokens * run_flops_per_token(cfg, "exact")
    return self._work[member.name]

  def _table(self, members, rows, now):
    from rich.table import Table
    from rich.text import Text

    console = self._live.console
    room = max(5, console.height - 6)
    order = {
      "running": 0,
      "failed": 1,
      "stopped": 2,
      "interrupted": 3,
      "queued": 4,
      "waiting": 5,
      "done": 6,
    }
    ranked = sorted(members, key=lambda m: order.get(rows[m.name]["status"], 7))[:room]
    entries = []
    for member in ranked:
      row, working = rows[member.name], member.name in now
      compiling = working and self._follows and not progress_of(member.workdir)
      status = "compiling" if compiling else row["status"]
      cells = _live_cells(*now[member.name]) if working else _ended_cells(member, row)
      values = dict(zip(LIVE_COLUMNS, (member.name, status, *cells), strict=True))
      entries.append({k: v or None for k, v in values.items()})
    titles = live_titles(members)
    kept, cells, _ = fit_columns(entries, titles, console.width)
    table = Table(title=self._summary(members, rows, now), title_justify="left", box=None)
    table.pad_edge = False
    for key in kept:
      words = key in ("name", "status")
      table.add_column(
        titles[key], justify="left" if words else "right", no_wrap=True, overflow="ellipsis",
        min_width=None if words else max(map(len, cells[key]), default=0),
      )  # fmt: skip
    for values in zip(*cells.values(), strict=True):
      shown = dict(zip(kept, values, strict=True))
      table.add_row(
        *(Text(v, STYLES.get(v, "") if k == "status" else "") for k, v in shown.items())
      )
    if len(members) > room:
      table.caption = f"... and {len(members) - room} more"
    return table


def live_titles(members: Sequence[Member]) -> dict[str, str]:
  """LIVE_COLUMNS with the names of the metrics and of the unit of batches, where all runs have the same."""
  cfgs = [member.cfg for member in members]
  found = {
    "shown": {_title(objective_of(cfg.objective).shown) for cfg in cfgs},
    "score": {_title(cfg.eval.stop_metric) for cfg in cfgs},
    "tokens_per_sec": {f"{kind_of(cfg).unit}/s" for cfg in cfgs},
  }
  return LIVE_COLUMNS | {key: names.pop() for key, names in found.items() if len(names) == 1}


def _title(metric: str) -> str:
  """`val loss` of eval/val/loss."""
  return metric.removeprefix("eval/").replace("/", " ")


def _step(member: Member, row: Mapping) -> int:
  return progress_of(member.workdir).get("step", row.get("step") or 0)


def _job_name(work: Working) -> str:
  first, *more = work.job.members
  return first.name + (f" and {len(more)} stacked with it" if more else "")


def _live_cells(member: Member, stacked: int) -> tuple[str, ...]:
  """step, training metric, what the run is judged by, units a second, time left; a stack shares its speed."""
  record, cfg = progress_of(member.workdir), member.cfg
  step, total = record.get("step", 0), cfg.train.steps
  speed = record.get("perf/tokens_per_sec")
  left = (total - step) * tokens_per_step(cfg)
  return (
    f"{step}/{total}",
    _number(record.get(objective_of(cfg.objective).shown)),
    _number(record.get(cfg.eval.stop_metric)),
    f"{speed:,.0f}" if speed else "",
    clock(left * stacked / speed) if speed else "",
  )


def _ended_cells(member: Member, row: Mapping) -> tuple[str, ...]:
  if row.get("steps") is None:
    return ("", "", "", "", "")
  shown = _number(row.get(objective_of(member.cfg.objective).shown))
  return f"{row['step']}/{row['steps']}", shown, _number(row.get("score")), "", ""


def _progress_text(member: Member, stacked: int) -> str:
  step, *values, left = _live_cells(member, stacked)
  titles = live_titles([member])
  shown, score, speed = (
    f"{value} {titles[key]}" if key == "tokens_per_sec" else f"{titles[key]} {value}"
    for key, value in zip(("shown", "score", "tokens_per_sec"), values, strict=True)
  )
  told = [text for text, value in zip((shown, score, speed), values, strict=True) if value]
  return ", ".join([f"step {step}", *told, *([f"{left} left"] if left else [])])


def progress_of(workdir: pathlib.Path) -> dict[str, object]:
  """The latest value of each metric near the end of a local run's record; {} before the first."""
  latest = {}
  for name in ("metrics.jsonl", "perf.jsonl"):
    for line in _tail(workdir / name):
      with contextlib.suppress(ValueError):  # damaged: the ledger will say so, a display need not
        latest |= json.loads(line)
  return latest


def _tail(path: pathlib.Path) -> list[str]:
  """Whole lines among the last TAIL_BYTES."""
  try:
    with open(path, "rb") as file:
      size = file.seek(0, 2)
      file.seek(max(0, size - TAIL_BYTES))
      text = file.read().decode(errors="replace")
  except FileNotFoundError:
    return []
  lines = text.split("\n")
  return lines[(1 if size > TAIL_BYTES else 0) : -1]


def _number(value: object) -> str:
  return f"{value:.4f}" if isinstance(value, float) else ("" if value is None else str(value))
