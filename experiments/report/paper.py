"""A paper kit: a report's figures at the width of a column, its tables in LaTeX, and a methods appendix.

One folder holds, for each figure, a PDF with its font inside, an SVG, a PNG and the CSV behind it; for each
table a .tex of booktabs; methods.tex; and all.tex, which includes all of it.
"""

import copy
import dataclasses
import functools
import html
import json
import pathlib
import re
import textwrap
from collections.abc import Mapping, Sequence

from experiments.report.charts import chart_csv
from experiments.report.page import HERE, Page
from lm.config.errors import ConfigError
from lm.files import whole_folder

FONT = "Isoflop Sans"
LEGEND_COLUMNS = (6, 4, 3, 2, 1)  # of a legend below the panels; the first that fits
# Points that a figure may be narrower than its column, as drawings are whole points wide.
SHORT = 2.0
LETTER = 0.56  # width of a letter of a heading, in its size
NARROW = 4.0  # inches: names beside a panel stand in lines of a word each
POINT = 72.0  # points an inch; a unit of the drawing is a point
RAISED = {**dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+", strict=True)), "ᵃ": "a", "ᵇ": "b", "ˢ": "s"}
SIGNS = {
  "−": "$-$", "×": "$\\times$", "±": "$\\pm$", "∝": "$\\propto$", "≥": "$\\geq$", "≤": "$\\leq$",
  "∞": "$\\infty$", "·": "$\\cdot$", "α": "$\\alpha$", "β": "$\\beta$", "γ": "$\\gamma$", "η": "$\\eta$",
  "ε": "$\\epsilon$", "σ": "$\\sigma$", "δ": "$\\delta$", "∑": "$\\sum$", "…": "\\ldots{}", "–": "--",
  "—": "---", "’": "'", "●": "", "◐": "", "△": "", "▲": "", "○": "", "\u00a0": "~",
}  # fmt: skip
SPECIAL = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
SPECIAL |= {c: f"\\{c}" for c in "&%$#_{}"} | {"<": "$<$", ">": "$>$"}
GREEK = re.compile(r"\b(alpha|beta|gamma|delta|eta|sigma)\b")


@dataclasses.dataclass(frozen=True)
class Style:
  """Sizes of print: `width` in inches, `text` and `height` (of a panel) in points."""

  width: float
  text: float
  height: float
  stacked: bool = False  # panels below each other, not side by side
  line: float = 1.0  # factor on the width of lines and the size of dots


STYLES = {
  "neurips": Style(5.5, 8, 140),
  "icml": Style(3.25, 8, 130, stacked=True),
  "talk": Style(10.0, 18, 320, line=1.8),
}


def check_style(name: str) -> None:
  """ConfigError unless it is a style."""
  if name not in STYLES:
    raise ConfigError(f"style={name}: must be one of {', '.join(STYLES)}; use neurips")


def write_kit(
  page: Page, path: pathlib.Path, style: str, methods: Mapping[str, Sequence[str]]
) -> pathlib.Path:
  """Writes the kit of a page to NAME_STYLE beside it; returns the folder.

  Args:
    page: with its figures and tables.
    path: the page's.
    style: a key of STYLES.
    methods: {heading: sentences} of the appendix.
  """
  check_style(style)
  folder = path.with_name(f"{path.stem}_{style}")
  with whole_folder(folder, "out", replaces=("figure-*", "table-*")) as made:
    _write_kit(page, made, STYLES[style], methods)
  return folder


def _write_kit(
  page: Page, folder: pathlib.Path, style: Style, methods: Mapping[str, Sequence[str]]
) -> None:
  parts = []
  for stem, chart, caption in page.figures:
    write_figure(chart.to_dict(), folder / stem, style)
    (folder / f"{stem}.csv").write_text(chart_csv(chart), encoding="utf-8")
    parts.append(
      f"\\begin{{figure}}[t]\n\\centering\n\\includegraphics{{{stem}.pdf}}\n"
      f"\\caption{{{latex(html.escape(caption))}}}\n\\label{{fig:{stem}}}\n\\end{{figure}}"
    )
  for number, (caption, headings, rows) in enumerate(page.tables, 1):
    name = f"table-{number}.tex"
    (folder / name).write_text(
      latex_table(caption, headings, rows, f"tab:{number}"), encoding="utf-8"
    )
    parts.append(f"\\input{{{name}}}")
  (folder / "methods.tex").write_text(methods_tex(methods), encoding="utf-8")
  head = (
    "\\documentclass{article}\n\\usepackage[T1]{fontenc}\n\\usepackage{booktabs,graphicx,amsmath}\n"
    f"\\usepackage[textwidth={max(style.width, 5.5)}in]{{geometry}}\n\\begin{{document}}"
  )
  body = "\n\n".join([head, *parts, "\\appendix\n\\input{methods.tex}", "\\end{document}\n"])
  (folder / "all.tex").write_text(body, encoding="utf-8")


# ---- Figures -------------------------------------------------------------------------------------


def write_figure(spec: dict, stem: pathlib.Path, style: Style) -> float:
  """Writes STEM.pdf, .svg and .png at the style's width; returns the width in inches that was reached."""
  import vl_convert

  register_font()
  svg, width = fitted_svg(spec, style)
  stem.with_suffix(".svg").write_text(svg, encoding="utf-8")
  stem.with_suffix(".pdf").write_bytes(vl_convert.svg_to_pdf(svg))
  stem.with_suffix(".png").write_bytes(vl_convert.svg_to_png(svg, scale=1, ppi=4 * POINT))
  return width


def fitted_svg(spec: dict, style: Style) -> tuple[str, float]:
  """(SVG, width in inches): panels are made as wide as lets the whole be as wide as a column.

  What stands beside the panels (labels, legends) keeps its size, so the width is linear in theirs.
  """
  import vl_convert

  register_font()
  panels = _panels(spec)
  across = 1 if style.stacked or len(panels) == 1 else min(len(panels), 3)
  goal = style.width * POINT
  for columns in LEGEND_COLUMNS:  # one wider than the page's column is what panels cannot mend
    each = goal / across - 50
    for _ in range(5):
      chart = restyled(spec, style, max(each, 40), columns)
      svg = vl_convert.vegalite_to_svg(json.dumps(chart))
      width = float(re.search(r'<svg[^>]* width="([\d.]+)', svg)[1])
      if goal - SHORT < width <= goal or (each < 40 and width > goal):
        break
      each += (goal - width) / across
    if width <= goal:
      break
  return svg, width / POINT


def restyled(spec: dict, style: Style, width: float, columns: int) -> dict:
  """The chart in a style, each panel `width` points wide, a legend of so many columns."""
  spec = copy.deepcopy(spec)
  for key in ("hconcat", "concat"):
    if style.stacked and key in spec:
      spec["vconcat"] = spec.pop(key)
      spec.pop("columns", None)
  for panel in _panels(spec):
    scale = width / panel.get("width", width)
    panel["width"] = width
    if isinstance(panel.get("height"), int | float):
      rows = panel["height"] < 120  # of one line each: they need their height
      line = style.text / (8 if style.width < NARROW else 10)
      panel["height"] = panel["height"] * line if rows else style.height
    if isinstance(panel.get("title"), str):
      title = panel["title"].replace("against ", "vs ") if scale < 0.6 else panel["title"]
      lines = textwrap.wrap(title, max(12, int(width / (LETTER * style.text))))
      panel["title"] = lines[0] if len(lines) == 1 else {"text": lines}
  _each_mark(spec, style)
  looks = spec.setdefault("config", {})
  text = {
    "labelFont": FONT,
    "titleFont": FONT,
    "labelFontSize": style.text,
    "titleFontSize": style.text,
  }
  looks["font"] = FONT
  looks["padding"] = 2
  looks["axis"] = {
    **looks.get("axis", {}),
    **text,
    "labelOverlap": True,
    "labelSeparation": style.text / 2,
    "titlePadding": 3,
    "tickSize": 3,
    "gridWidth": 0.5 * style.line,
  }
  looks["legend"] = {
    **looks.get("legend", {}), **text, "orient": "bottom", "offset": 4, "symbolSize": 40 * style.line,
    "columns": columns, "columnPadding": 8, "titleOrient": "left",
    "gradientDirection": "horizontal",
    "direction": "horizontal", "labelLimit": 200,
  }  # fmt: skip
  looks["title"] = {**looks.get("title", {}), "font": FONT, "fontSize": style.text, "offset": 4}
  looks["text"] = {"font": FONT, "fontSize": style.text}
  looks["concat"] = {"spacing": 10 * style.line}
  return spec


def _panels(spec: dict) -> list[dict]:
  for key in ("hconcat", "vconcat", "concat"):
    if key in spec:
      return [p for part in spec[key] for p in _panels(part)]
  return [spec]


def _each_mark(node, style: Style) -> None:
  """Lines and dots by the style's factor, text at its size, ticks fewer where panels are narrow."""
  if isinstance(node, list):
    for each in node:
      _each_mark(each, style)
  if not isinstance(node, dict):
    return
  mark = node.get("mark")
  if isinstance(mark, dict):
    for key, power in (("strokeWidth", 1), ("size", 2)):
      if isinstance(mark.get(key), int | float):
        mark[key] *= style.line**power * (0.8 if style.text < 10 and key == "strokeWidth" else 1)
    if mark.get("type") == "text":
      mark["fontSize"], mark["font"] = style.text, FONT
  legend = node.get("legend")
  if isinstance(legend, dict):
    legend.pop("orient", None)
    legend.pop("columns", None)
    legend["gradientLength"] = 90 * style.line
    if isinstance(legend.get("title"), list):
      legend["title"] = " ".join(legend["title"])
  if isinstance(node.get("padding"), dict):
    node["padding"] = 2  # text beside a panel counts as part of the drawing
  beside = node.get("y")
  if isinstance(beside, dict) and beside.get("type") == "nominal" and style.width < NARROW:
    words = {"labelExpr": "split(datum.label, ' ')", "labelOverlap": False}
    beside["axis"] = {**(beside.get("axis") or {}), **words}
  for key, value in node.items():
    if key != "datasets":
      _each_mark(value, style)


@functools.lru_cache(maxsize=1)
def register_font() -> None:
  import vl_convert

  vl_convert.register_font_directory(str(HERE / "font"))


# ---- LaTeX ---------------------------------------------------------------------------------------


def latex(markup: str) -> str:
  """LaTeX of the little markup that tables hold: raised and lowered letters, signs, Greek.

  >>> latex("3×10¹⁸ FLOPs"), latex("N<sup>α</sup> &amp; 5 %")
  ('3$\\\\times$10$^{18}$ FLOPs', 'N$^{\\\\alpha}$ \\\\& 5 \\\\%')
  """
  parts = re.split(r"<su([pb])>(.*?)</su[pb]>", markup, flags=re.S)
  out = [_words(parts[0])]
  for kind, inner, rest in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
    inside = _words(inner).replace("$", "")
    out.append(f"${'^' if kind == 'p' else '_'}{{{inside}}}$" + _words(rest))
  return "".join(out)


def _words(markup: str) -> str:
  text = html.unescape(re.sub(r"<[^>]+>", "", markup))
  text = re.sub(
    f"[{re.escape(''.join(RAISED))}]+",
    lambda m: "\0" + "".join(RAISED[c] for c in m[0]) + "\1",
    text,
  )
  # N^alpha and N* are raised, as N⁰ is, and a ~ between words says "goes as"
  text = re.sub(r"(?<=\w)\^(-?\w+)", lambda m: "\0" + GREEK.sub("\2\\g<0>", m[1]) + "\1", text)
  text = re.sub(r"(?<=[A-Z])\*(?!\w)", "\0*\1", text).replace(" ~ ", " \3 ")
  text = "".join(SPECIAL.get(c, SIGNS.get(c, c)) for c in text)
  for mark, written in (("\0", "$^{"), ("\1", "}$"), ("\2", "\\"), ("\3", "$\\sim$")):
    text = text.replace(mark, written)
  return text


def latex_table(
  caption: str, headings: Sequence[str], rows: Sequence[Sequence[str]], label: str
) -> str:
  """A floating table of booktabs; columns of numbers are flush right."""
  cells = [[latex(c) for c in row] for row in rows]
  number = re.compile(r"^[\s$\-\d.,+%kMBT\\times^{}]*$")
  kinds = [
    "r" if all(number.match(c) for c in column) and any(column) else "l"
    for column in (zip(*cells, strict=True) if cells else [[]] * len(headings))
  ]
  lines = [" & ".join(row) + r" \\" for row in cells]
  return "\n".join([
    r"\begin{table}[t]", r"\centering", r"\small", f"\\caption{{{latex(html.escape(caption))}}}",
    f"\\label{{{label}}}", r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
    f"\\begin{{tabular}}{{{''.join(kinds)}}}", r"\toprule",
    " & ".join(map(latex, headings)) + r" \\", r"\midrule", *lines, r"\bottomrule",
    r"\end{tabular}}", r"\end{table}", "",
  ])  # fmt: skip


def methods_tex(methods: Mapping[str, Sequence[str]]) -> str:
  """The appendix: a paragraph a heading, a list for each; commands as they are typed."""
  parts = ["\\section{Methods}"]
  for heading, sentences in methods.items():
    parts.append(f"\\paragraph{{{latex(html.escape(heading))}}}")
    if heading == "Commands":
      parts.append("\\begin{verbatim}\n" + "\n".join(sentences) + "\n\\end{verbatim}")
    else:
      items = "\n".join(f"\\item {latex(html.escape(s))}" for s in sentences)
      parts.append(f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}")
  return "\n".join(parts) + "\n"
