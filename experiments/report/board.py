"""All runs of a folder on one page: a table to sort and filter, and curves, slices and laws that follow it.

`write_board` writes a page that reads offline; `serve` serves one that refreshes while runs go on. The
page's scripts are plot.js (a chart on a canvas), law.js (fits) and board.js (the table and the controls).
"""

import http.server
import json
import math
import pathlib
import string
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence

from experiments.ledger.compare import SEEDS
from experiments.ledger.judged import LOSS, curve_metric, judge_of
from experiments.ledger.ledger import MUST_AGREE, Ledger, is_config_key
from experiments.ledger.refresh import FolderReader
from experiments.ledger.rows import binned, file_system
from experiments.report.page import HERE, escape, inline_json
from experiments.report.tables import COUNTS
from lm.config.errors import ConfigError, check_within, whole_number
from lm.files import write_text

CURVE_BINS = 120_000  # over all runs; every evaluation stays
DETAILS = 3_000_000  # characters of samples and logs over all runs of a page
LAST_SAMPLES, LAST_LINES = 3, 20
REFRESH_SECONDS = 5  # of a served page
HOSTS = ("127.0.0.1", "localhost", "[::1]")
FIRST = (
  "name",
  "status",
  "n_params",
  "n_tokens",
  "flops",
  "step",
  "steps",
  "loss",
  "bpb",
  "seconds",
)
VARIED = 8  # columns of what varies that are shown at first
# The page may run its own scripts and ask the server it came from, and nothing else.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
LAYOUT = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="$policy; connect-src 'self'">
<title>$title</title>
<style>$style</style>
</head>
<body>
$body
<script>$data</script>
<script>$scripts</script>
</body>
</html>
""")
BODY = """<header><h1>Runs</h1><span id="count"></span>
<input type="search" id="filter" aria-label="filter"
 placeholder="filter: words, or loss&lt;3.5 status=done name~width=64">
<button id="keys" title="keyboard (?)">keys</button>
<button id="theme" title="light or dark (d)">theme</button>
<span id="age">$made</span><div id="problem" role="status"></div></header>
<div id="notes" role="status"></div>
<section id="charts">
<div><div class="bar"><h2>Curves</h2>
<span class="pair"><label>x <select id="x"></select></label>
<label><input type="checkbox" id="logx" checked>log</label></span>
<span class="pair"><label>y <select id="y"></select></label>
<label><input type="checkbox" id="logy" checked>log</label></span>
<label title="width of the smoothing, in decades of x">smoothing
<input type="range" id="smooth" min="0" max="0.3" step="0.01" value="0"></label>
<label title="least and greatest record of a bin (b)">
<input type="checkbox" id="bands" checked>min–max</label>
<label title="mean and standard deviation over runs that differ in seeds only (s)">
<input type="checkbox" id="seeds">seeds</label>
<label>colour <select id="color"></select></label> <button id="unzoom" hidden title="z">whole range</button>
<span id="legend"></span>
</div><div id="curves"></div></div>
<div><div class="bar"><h2><select id="view" aria-label="view" title="v">
<option value="ends">Ends</option><option value="isoflop">Slices of equal compute</option>
<option value="law">Law</option>
</select></h2>
<span class="pair"><label>x <select id="sx"></select></label>
<label><input type="checkbox" id="slogx" checked>log</label></span>
<span class="pair"><label>y <select id="sy"></select></label>
<label><input type="checkbox" id="slogy">log</label></span>
</div><div id="ends"></div><div class="say" id="say"></div></div>
</section>
<details><summary>columns</summary><div id="columns"></div></details>
<div id="tablebox"><table><thead id="head"></thead><tbody id="body"></tbody>
<tbody id="failed"></tbody></table></div>
<aside id="run" hidden aria-label="one run"></aside>
<div id="help" hidden><dl><dt>/</dt><dd>filter</dd><dt>j k ↓ ↑</dt><dd>next and previous run</dd>
<dt>Enter</dt><dd>open the run: config difference, samples, log, checkpoints</dd>
<dt>p</dt><dd>pin the run</dd>
<dt>u</dt><dd>no pins</dd><dt>drag</dt><dd>zoom into a chart</dd><dt>z, double click</dt><dd>whole range</dd>
<dt>b, s</dt><dd>bands, seeds</dd><dt>v</dt><dd>next view on the right</dd><dt>d</dt><dd>light or dark</dd>
<dt>Esc</dt><dd>close</dd></dl></div>
"""


def write_board(rows: Ledger, out: str) -> pathlib.Path:
  """Writes the page; it holds all that it shows. Returns its path."""
  path = pathlib.Path(out)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_text(path, board_page(rows, live=None))
  return path


def serve(root: str, port: int) -> None:
  """Serves the board of `root` on this machine until Ctrl-C.

  Raises:
    ConfigError: the root does not exist, or the port is taken.
  """
  server = make_server(FolderReader(root), port)
  print(f"http://127.0.0.1:{server.server_address[1]}/  (Ctrl-C stops)", file=sys.stderr)
  try:
    server.serve_forever()
  except KeyboardInterrupt:
    pass
  finally:
    server.server_close()


def make_server(reader: FolderReader, port: int) -> http.server.ThreadingHTTPServer:
  """A server for this machine only; port 0 is any free one.

  / is the page, /ledger.json?since=VERSION what has changed, /run.json?name=NAME one run's samples, log and
  checkpoints. Runs are looked at again at most every REFRESH_SECONDS, and less often where that takes
  long; only what is new is read. Requests that name another host (a page elsewhere whose name was
  pointed here) are refused.
  """
  look = _AtMostEvery(REFRESH_SECONDS, reader)
  look()  # an error is raised here, before there is a server

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      place = urllib.parse.urlsplit(self.path)
      asked = dict(urllib.parse.parse_qsl(place.query))
      host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
      if host not in HOSTS:
        self.send_error(403)
      elif place.path == "/":
        rows, version, _ = look()
        self._answer("text/html; charset=utf-8", board_page(rows, REFRESH_SECONDS, version))
      elif place.path == "/ledger.json":
        rows, version, since = look()
        given = asked.get("since", "")
        seen = whole_number(given)
        only = None if seen is None else since(seen)
        data = board_data(rows, REFRESH_SECONDS, version, only)
        self._answer("application/json", inline_json(data))
      elif place.path == "/run.json":
        row = next((r for r in look()[0] if r["name"] == asked.get("name")), None)
        self.send_error(404) if row is None else self._answer(
          "application/json", inline_json(run_details(row))
        )
      else:
        self.send_error(404)

    def _answer(self, kind: str, text: str):
      body = text.encode(errors="backslashreplace")
      self.send_response(200)
      self.send_header("Content-Type", kind)
      self.send_header("Content-Length", str(len(body)))
      self.send_header("Cache-Control", "no-store")
      self.end_headers()
      self.wfile.write(body)

    def log_message(self, *args):
      """Requests every few seconds are no news."""

  check_within("serve", port, "[0, 65535]", "8000")
  try:
    return http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
  except OSError as error:
    raise ConfigError(f"serve={port}: {error.strerror}; choose another port") from error


def board_page(rows: Ledger, live: int | None, version: int = 0) -> str:
  """The document. `live`: seconds between refreshes of a served page, None for a file."""
  body = BODY.replace("$made", time.strftime("%d %B %Y, %H:%M"))
  data = f"const BOARD = {inline_json(board_data(rows, live, version))};"
  return script_page("Runs", body, data, ("plot.js", "law.js", "board.js"))


def script_page(title: str, body: str, data: str, scripts: Sequence[str], more: str = "") -> str:
  """A self-contained page of the board's looks, drawn by scripts of this folder; `more` is further style."""
  code = "\n".join((HERE / name).read_text(encoding="utf-8") for name in scripts)
  style = (HERE / "board.css").read_text(encoding="utf-8")
  return LAYOUT.substitute(
    title=escape(title), body=body, data=data, scripts=code, style=style + more, policy=POLICY
  )


def board_data(
  rows: Ledger, live: int | None, version: int = 0, only: set[str] | None = None
) -> dict[str, object]:
  """What the page's script reads: rows without curves, binned curves by run, and which columns to show.

  Args:
    only: names of the runs whose rows and curves are wanted; all of them if None.
  """
  wanted = [row for row in rows if only is None or row["name"] in only]
  each = max(60, min(512, CURVE_BINS // max(len(rows), 1)))
  flat = [{k: _brief(v, 9) for k, v in row.items() if k != "curve"} for row in wanted]
  curves = {}
  for row in wanted:
    if row.get("curve"):
      curve = binned(row["curve"], each)
      curves[row["name"]] = {k: [_brief(v, 5) for v in column] for k, column in curve.items()}
  judge = judge_of(rows)
  first = FIRST if judge == LOSS else (*FIRST, judge.metric)
  missing = set() if judge == LOSS else {"loss", "bpb"}
  known = {k for row in rows for k, v in row.items() if k not in missing or v is not None}
  shown = [k for k in (*first, *rows.varied()[:VARIED], "reason") if k in known]
  groups, labels = seed_groups(rows)
  return {
    "rows": flat,
    "curves": curves,
    "names": [row["name"] for row in rows],
    "shown": list(dict.fromkeys(shown)),
    "judge": judge.metric if judge.key == "score" else "loss",
    "curve": curve_metric(rows, judge),
    "counts": [*COUNTS, "n_tokens"],
    "must_agree": MUST_AGREE,
    "groups": groups,
    "labels": labels,
    "details": {} if live else _all_details(rows),
    "live": live,
    "version": version,
  }


def seed_groups(rows: Ledger) -> tuple[dict[str, int], dict[int, str]]:
  """({run: its group}, {group: what sets it apart}); runs of a group differ in seeds only."""
  keys = sorted({k for row in rows for k in row if is_config_key(k) and k not in SEEDS})
  varied = [k for k in rows.varied() if k not in SEEDS]
  numbers: dict[tuple, int] = {}
  groups, labels = {}, {}
  for row in rows:
    setting = tuple(str(row.get(k)) for k in keys) if keys else (row["name"],)
    group = groups[row["name"]] = numbers.setdefault(setting, len(numbers))
    said = (f"{k.rpartition('.')[2]}={_brief(row[k])}" for k in varied if row.get(k) is not None)
    labels.setdefault(group, ", ".join(list(said)[:4]))
  return groups, labels


# ---- One run -------------------------------------------------------------------------------------


def run_details(row: Mapping, characters: int = 60_000) -> dict[str, list]:
  """The last samples, the end of the log and the steps of the checkpoints of a run; empty without them."""
  details = {"samples": [], "log": [], "checkpoints": []}
  if not row.get("path"):
    return details
  try:
    fs, path = file_system(row["path"])
    samples = _tail(fs, f"{path}/samples.jsonl", LAST_SAMPLES)
    details["log"] = [line[-300:] for line in _tail(fs, f"{path}/log.txt", LAST_LINES)]
    folder = f"{path}/checkpoints"
    if fs.exists(folder):
      names = [pathlib.PurePosixPath(p).name for p in fs.ls(folder, detail=False)]
      details["checkpoints"] = sorted(n for n in map(whole_number, names) if n is not None)
  except (OSError, ConfigError):  # gone in the meantime: nothing to show
    return details
  share = max(characters // 6, 200)
  for line in samples:
    try:
      sample = json.loads(line)
      details["samples"].append({k: _cut(sample[k], share) for k in ("step", "prompt", "text")})
    except (ValueError, KeyError, TypeError):  # damaged: the ledger says so, a display need not
      continue
  while details["log"] and sum(map(len, details["log"])) > characters // 2:
    details["log"].pop(0)
  return details


def _all_details(rows: Ledger) -> dict[str, dict]:
  each = max(DETAILS // max(len(rows), 1), 600)
  found = {row["name"]: run_details(row, each) for row in rows}
  return {name: details for name, details in found.items() if any(details.values())}


def _tail(fs, path: str, lines: int, most: int = 1 << 15) -> list[str]:
  """The last lines of a file, of its last `most` bytes."""
  if not fs.exists(path):
    return []
  size = fs.size(path)
  text = fs.cat_file(path, start=max(0, size - most)).decode("utf-8", errors="replace")
  return [line for line in text.splitlines()[1 if size > most else 0 :] if line.strip()][-lines:]


def _cut(value: object, most: int) -> object:
  return f"{value[:most]}…" if isinstance(value, str) and len(value) > most else value


# ---- Numbers and time ----------------------------------------------------------------------------


def _brief(value: object, digits: int = 6) -> object:
  """What JSON can hold: a few digits, and null for numbers that are none."""
  if isinstance(value, float):
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None
  if isinstance(value, list | tuple):
    return ",".join(map(str, value))
  return value


class _AtMostEvery:
  """A reader behind a memory: looked at again after `seconds`, or ten times as long as it took."""

  def __init__(self, seconds: float, reader: FolderReader):
    self._seconds, self._reader = seconds, reader
    self._lock, self._held, self._due = threading.Lock(), None, 0.0

  def __call__(self) -> tuple[Ledger, int, Iterable]:
    """(rows, version, the reader's `since`)."""
    with self._lock:
      if self._held is None or time.monotonic() >= self._due:
        start = time.monotonic()
        self._held = self._reader.read()
        self._due = time.monotonic() + max(self._seconds, 10 * (time.monotonic() - start))
      return self._held, self._reader.version, self._reader.since
