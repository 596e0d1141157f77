"""One self-contained HTML page: numbered sections, figures and tables, and the JavaScript to draw them.

Nothing is loaded from anywhere: the page reads the same offline, in ten years, and from a mail attachment.
"""

import functools
import html
import json
import pathlib
import re
import string
import sys
from collections.abc import Callable, Mapping, Sequence

from lm.files import whole_folder, write_text

HERE = pathlib.Path(__file__).parent
WIDE = 8  # columns from which a table is set smaller in print
EMBED = """
function forPhone(spec) {  // panels below each other, as wide as the screen, so that their words can be read
  const panels = spec.vconcat ?? spec.hconcat ?? spec.concat;
  if (panels) {
    for (const key of ["hconcat", "concat", "columns"]) delete spec[key];
    spec.vconcat = panels;
    panels.forEach(forPhone);
  } else {
    spec.width = Math.max(120, innerWidth - 100 - (spec.padding?.right ?? 0));
  }
  const legend = { orient: "bottom", columns: 3, titleOrient: "left" };
  if (spec.config) spec.config.legend = { ...spec.config.legend, ...legend };
  return spec;
}
for (const node of document.querySelectorAll("script[data-chart]")) {
  const phone = innerWidth < 640, fewer = (key, value) => phone && key === "columns" ? 2 : value;
  const spec = JSON.parse(node.textContent, fewer);
  vegaEmbed("#" + node.dataset.chart, phone ? forPhone(spec) : spec, {
    mode: "vega-lite", renderer: "svg", downloadFileName: node.dataset.name,
    actions: false,
  });
}
"""
LAYOUT = string.Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
$body
<script>$library</script>
$scripts
</body>
</html>
""")


def escape(text: object) -> str:
  return html.escape(str(text), quote=True)


@functools.lru_cache(maxsize=1)
def vega_library() -> str:
  """vega, vega-lite and vega-embed as one script that defines `vegaEmbed`."""
  import vl_convert

  bundle = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
  return f"(() => {{{bundle}}})();"  # its thousands of short names stay in a scope of their own


def inline_json(value: object) -> str:
  """JSON that can stand inside a script element."""
  return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def layout(title: str, body: str, scripts: str, style: str) -> str:
  """The whole document."""
  return LAYOUT.substitute(
    title=escape(title), body=body, scripts=scripts, style=style, library=vega_library()
  )


class Steps:
  """Says on stderr what is being computed: a spinner in a terminal, lines elsewhere.

  As a context manager it owns the line; call it with what begins now.
  """

  def __init__(self, what: str, stream=None):
    self._what, self._stream = what, stream or sys.stderr
    self._status = None

  def __enter__(self) -> "Steps":
    if self._stream.isatty():
      from rich.console import Console

      self._status = Console(file=self._stream).status(self._what)
      self._status.__enter__()
    return self

  def __exit__(self, *error) -> None:
    if self._status:
      self._status.__exit__(*error)

  def __call__(self, step: str) -> None:
    if self._status:
      self._status.update(f"{self._what}: {step}")
    else:
      print(f"{self._what}: {step}", file=self._stream, flush=True)


class Page:
  """Grows from top to bottom; numbers what it is given.

  Args:
    folder: `write` saves the figures there as SVG, PDF, PNG and CSV; linked relative to the page.
    steps: is told which figure is drawn.
  """

  def __init__(self, folder: pathlib.Path, steps: Callable[[str], None] = lambda step: None):
    self._folder, self._steps = folder, steps
    self.figures: list[tuple[str, object, str]] = []  # (stem of its files, chart, caption)
    self.tables: list[tuple[str, list[str], list[list[str]]]] = []  # caption, headings, markup
    self._answer = ""
    self._parts: list[str] = []
    self._charts: list[str] = []
    self._sections: list[str] = []
    self._tables = 0

  def section(self, title: str) -> None:
    self._sections.append(title)
    n = len(self._sections)
    self._parts.append(f'<h2 id="s{n}"><span class="n">{n}</span>{escape(title)}</h2>')

  def heading(self, title: str) -> None:
    self._parts.append(f"<h3>{escape(title)}</h3>")

  def answer(self, markup: str) -> None:
    """One paragraph above all sections."""
    self._answer = f'<p class="answer">{markup}</p>' if markup else ""

  def html(self, markup: str) -> None:
    """Markup as it is; whatever comes from data must have gone through `escape`."""
    self._parts.append(markup)

  def text(self, words: str) -> None:
    self._parts.append(f"<p>{escape(words)}</p>")

  def doc(self, words: str) -> None:
    """Text whose line breaks mean something."""
    self._parts.append(f'<p class="doc">{escape(words)}</p>')

  def notes(self, notes: Sequence[str]) -> None:
    """Warnings: what a reader must know before trusting the numbers."""
    if notes:
      lines = "<br>".join(map(escape, notes))
      self._parts.append(f'<div class="note">{lines}</div>')

  def absent(self, why: str) -> None:
    """Stands where a figure or table would, and says why it is not there."""
    self._parts.append(f'<div class="absent">{escape(why)}</div>')

  def code(self, lines: Sequence[str]) -> None:
    self._parts.append(f"<pre>{escape(chr(10).join(lines))}</pre>")

  def folded(self, summary: str, lines: Sequence[str]) -> None:
    body = escape(chr(10).join(lines))
    self._parts.append(f"<details><summary>{escape(summary)}</summary><pre>{body}</pre></details>")

  def facts(self, pairs: Mapping[str, object]) -> None:
    """A list of names and values."""
    items = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in pairs.items())
    self._parts.append(f"<dl>{items}</dl>")

  def figure(self, chart, name: str, caption: str) -> None:
    """Shows `chart` (experiments.report.charts), which `write` saves as files of that name."""
    from experiments.report import charts

    number = len(self._charts) + 1
    stem = f"figure-{number}-{name}"
    self.figures.append((stem, chart, caption))
    links = " · ".join(
      f'<a href="{escape(self._folder.name)}/{stem}.{ending}">{ending.upper()}</a>'
      for ending in charts.ENDINGS
    )
    self._parts.append(
      f'<figure id="f{number}"><div class="chart" id="chart{number}"></div>'
      f'<figcaption><b>Figure {number}.</b> {escape(caption)} <span class="files">[{links}]</span>'
      "</figcaption></figure>"
    )
    spec = {k: v for k, v in chart.to_dict().items() if k != "$schema"}
    self._charts.append(
      f'<script type="application/json" data-chart="chart{number}" data-name="{stem}">'
      f"{inline_json(spec)}</script>"
    )

  def table(
    self,
    rows: Sequence[Mapping],
    columns: Mapping[str, tuple[str, Callable[[object], str]]],
    caption: str,
    classes: Mapping[str, str] | None = None,
  ) -> None:
    """A numbered table. columns: {key: (heading, value -> markup)}; None is an empty cell.

    A column whose values are all numbers is set flush right, unless `classes` names another class.
    """
    self._tables += 1
    shown = [
      ["" if row.get(k) is None else show(row[k]) for k, (_, show) in columns.items()]
      for row in rows
    ]
    self.tables.append((caption, [heading for heading, _ in columns.values()], shown))
    classes = {key: _cell_class(rows, key) for key in columns} | dict(classes or {})
    head = "".join(
      f'<th class="{classes[key]}" scope="col">{escape(heading)}</th>'
      for key, (heading, _) in columns.items()
    )
    body = "".join(
      "<tr>" + "".join(
        f'<td class="{classes[key]}" data-label="{escape(_plain_words(heading))}">{markup}</td>'
        for (key, (heading, _)), markup in zip(columns.items(), cells, strict=True)
      ) + "</tr>"
      for cells in shown
    )  # fmt: skip
    wide = " wide" if len(columns) >= WIDE else ""
    self._parts.append(
      f'<div class="tablebox{wide}"><table><caption><b>Table {self._tables}.</b> {escape(caption)}</caption>'
      f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )

  def write(self, path: pathlib.Path, title: str, header: str, footer: str) -> pathlib.Path:
    """Writes the page and its figures; `header` (markup) stands above the table of contents.

    Until all figures are drawn, an earlier page and its figures stay as they are.
    """
    contents = "".join(
      f'<li><a href="#s{i}">{escape(title)}</a></li>' for i, title in enumerate(self._sections, 1)
    )
    body = (
      f"<article>{header}{self._answer}<nav><ol>{contents}</ol></nav>{''.join(self._parts)}"
      f"<footer>{footer}</footer></article>"
    )
    scripts = "\n".join([*self._charts, f"<script>{EMBED}</script>"])
    style = (HERE / "page.css").read_text(encoding="utf-8")
    path.parent.mkdir(parents=True, exist_ok=True)
    self._save_figures()
    write_text(path, layout(title, body, scripts, style))
    return path

  def _save_figures(self) -> None:
    if not (self.figures or self._folder.exists()):
      return
    from experiments.report import charts

    with whole_folder(self._folder, "out", replaces=("figure-*",)) as made:
      for number, (stem, chart, _) in enumerate(self.figures, 1):
        self._steps(f"figure {number}, {stem.split('-', 2)[2]}")
        charts.save(chart, made, stem)


def _plain_words(markup: str) -> str:
  return html.unescape(re.sub(r"<[^>]+>", "", markup))


def _cell_class(rows: Sequence[Mapping], key: str) -> str:
  values = [row[key] for row in rows if row.get(key) is not None]
  numeric = values and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
  return "num" if numeric else ""
