"""Looks into a decoder or a BERT while it reads a text: one HTML page that needs nothing beside it.

examples:
  python -m lm.inspect --workdir runs/default --text "Returns the mean of an array."
  python -m lm.inspect --workdir runs/default --text "Returns the mean." --out looked.html --json
  python -m lm.inspect --workdir runs/bert --text "A man sits on a bench."

The page shows, token by token, the loss; what each layer would predict (logit lens: nostalgebraist 2020); the
attention of every head; the experts that are chosen, where there are any; the size of the residual stream and
of what is added to it; the hidden states in their two main directions; and each token's nearest neighbours
among the embeddings. BERT guesses each token with that one hidden: the losses add up to the text's
pseudo-log-likelihood (Salazar et al. 2020, arXiv:1910.14659). An encoder without its head for masked tokens
has no loss and no lens.
"""

from lm.config import interrupts

if __name__ == "__main__":
  interrupts.listen()

import base64
import html
import itertools
import json
import struct
import zlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lm.config.command_line import Parser, check_page, reject_unknown, run_main, utf8
from lm.config.errors import ConfigError, number_of
from lm.data.masked import marks_of
from lm.files import write_text
from lm.models.bert import Bert
from lm.models.decoder import Decoder
from lm.models.inside import Guesses, Inside, bert_guesses, bert_inside, decoder_inside
from lm.objectives.masked_lm import HEAD
from lm.runs import bucket
from lm.runs.load import LoadedRun, load

MOST = 128  # tokens of a text
NEIGHBOURS = 5


class Looked(NamedTuple):
  """What `look` finds. L tokens are read, N guessed."""

  tokens: list[str]  # that are read: a decoder's start token, then the text's but for the last one
  targets: list[str]  # the text's, which are guessed
  gaps: list[str]  # what the text has before each of them that is in none: "" or " "
  inside: Inside
  guesses: Guesses | None  # None where the run has no head that guesses tokens
  tops: list[list[str]]  # guesses.top as text: [layers + 1][N]
  neighbours: dict[str, list[tuple[str, float]]]  # of each token: others and their cosine
  hides: bool  # whether tokens are guessed from both sides, each hidden in turn


def look(run: LoadedRun, text: str) -> Looked:
  """What a model does with a text.

  Raises:
    ConfigError: neither a decoder nor BERT, or a text that is empty, or longer than MOST tokens or the
      model's context.
  """
  cfg, t = run.cfg.model, run.tokenizer
  hides = isinstance(run.model, Bert)
  if not hides and not isinstance(run.model, Decoder):
    raise ConfigError(
      f"workdir={run.workdir}: model.family={cfg.family} is neither a decoder nor bert; inspect one of these"
    )
  ids = t.encode(text)
  most = min(MOST, cfg.seq_len - 2 * hides)
  if not 1 <= len(ids) <= most:
    raise ConfigError(
      f"text={text[:40]}: has {number_of(len(ids), 'token')}, must have 1 to {most}; shorten it"
    )
  guesses = None
  if not hides:
    read = [t.start_id, *ids]
    inside, guesses = decoder_inside(cfg, run.params, read)
    read = read[:-1]
  else:
    read = [t.start_id, *ids, t.eot_id]
    inside = bert_inside(cfg, run.params, read)
    if HEAD in run.params:
      guesses = bert_guesses(cfg, run.params, run.params[HEAD], read, marks_of(t).mask)
  names = [_shown(run, i) for i in ids]
  pairs = [t.decode([int(a), int(b)]) for a, b in itertools.pairwise(ids)]
  joined = [f"{a} {b}" for a, b in itertools.pairwise(t.decode([int(i)]) for i in ids)]
  return Looked(
    tokens=[_shown(run, i) for i in read],
    targets=names,
    gaps=["", *(" " if a == b else "" for a, b in zip(pairs, joined, strict=True))],
    inside=inside,
    guesses=guesses,
    tops=[[_shown(run, i) for i in row] for row in guesses.top] if guesses else [],
    neighbours=neighbours(run, ids),
    hides=hides,
  )


def neighbours(run: LoadedRun, ids: Sequence[int]) -> dict[str, list[tuple[str, float]]]:
  """The NEIGHBOURS tokens whose embeddings have the highest cosine with each of these tokens'."""
  table = np.asarray(run.params["embed"]["embedding"], np.float32)
  table = table / np.maximum(np.linalg.norm(table, axis=-1, keepdims=True), 1e-9)
  found = {}
  for i in dict.fromkeys(ids):
    cosines = table @ table[i]
    cosines[i] = -np.inf
    best = np.argsort(-cosines, kind="stable")[:NEIGHBOURS]
    found[_shown(run, i)] = [(_shown(run, j), float(cosines[j])) for j in best]
  return found


def main_directions(x_LD: np.ndarray) -> np.ndarray:
  """[L, 2]: each row's coordinates along the two directions of largest variance (PCA)."""
  centred = x_LD - x_LD.mean(axis=0)
  u, s, _ = np.linalg.svd(centred, full_matrices=False)
  found = (u * s)[:, :2]
  return np.pad(found, ((0, 0), (0, 2 - found.shape[1])))


def _shown(run: LoadedRun, token: int) -> str:
  """A token as text; special ones by name, what is no text of its own by number."""
  t = run.tokenizer
  if token in (t.eot_id, t.start_id):
    return str(t.token(int(token)))
  if (
    token >= t.vocab_size
  ):  # a mask that the tokenizer has no name for, or padding of the vocabulary
    return f"#{int(token)}"
  return t.decode([int(token)]) or f"#{int(token)}"


# --- the page -------------------------------------------------------------------------------------

CSS = """
:root { color-scheme: light; --ink: #1b1f24; --faint: #6b7280; --line: #e3e6ea; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto; }
body { max-width: 1080px; padding: 24px; }
h1 { font-size: 24px; margin: 0; } h2 { font-size: 18px; margin: 36px 0 4px; }
p { color: var(--faint); margin: 0 0 12px; }
.wide { overflow-x: auto; }
.text { font: 15px/2 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.text span { border-radius: 3px; padding: 2px 1px; }
table { border-collapse: collapse; font: 12px ui-monospace, monospace; }
th, td { padding: 3px 6px; border: 1px solid var(--line); text-align: left; white-space: pre; }
th { font-weight: 600; background: #f6f7f9; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(112px, 1fr)); gap: 10px; }
figure { margin: 0; } figcaption { font-size: 12px; color: var(--faint); }
figure img { width: 100%; aspect-ratio: 1; image-rendering: pixelated; border: 1px solid var(--line); }
svg { max-width: 100%; height: auto; } svg text { font: 11px ui-monospace, monospace; fill: var(--ink); }
"""
COLOURS = ("#1f6fb2", "#c4622d", "#3c8d40")


def page(run: LoadedRun, text: str, looked: Looked) -> str:
  """The page as HTML; everything that comes from text, tokens or paths is escaped."""
  e = html.escape
  n, guesses = len(looked.targets), looked.guesses
  if guesses is None:
    mean = "no head for masked tokens, so no loss and no logit lens"
  else:
    mean = f"mean loss {guesses.loss_L.mean():.3f} nats a token"
    mean += ", each hidden in turn" if looked.hides else ""
  about = (
    f"{e(str(run.workdir))}, step {run.step} &middot; {number_of(run.cfg.model.depth, 'layer')}, width "
    f"{run.cfg.model.width}, {number_of(run.cfg.model.heads, 'head')} &middot; "
    f"{number_of(n, 'token')} &middot; {mean}"
  )
  parts = [f"<h1>{e(text[:80])}</h1><p>{about}</p>"]
  if guesses is not None:
    hidden = " Each token is hidden in turn and guessed from all others." if looked.hides else ""
    what = "guess of the hidden token" if looked.hides else "next token"
    last = "is hidden" if looked.hides else "follows in the text"
    parts += [
      _section(
        "Loss", f"Darker is more surprising; hover for numbers.{hidden}", _loss(looked, guesses)
      ),
      _section(
        "Logit lens",
        f"The likeliest {what} if the network ended after a layer; deeper colour is more certain. The last "
        f"row is what {last}.",
        _lens(looked, guesses),
      ),
    ]
  parts.append(
    _section(
      "Attention",
      "Rows are the tokens that look, columns those that are looked at; black is 1. Rows start at the top.",
      _attention(looked),
    )
  )
  if looked.inside.chosen is not None:
    parts.append(
      _section(
        "Experts",
        "Which experts each token is sent to, and with what weight; shared ones are left out. Deeper colour "
        "is more weight on the first.",
        _experts(looked),
      )
    )
  darker = " Darker is worse predicted." if guesses is not None else ""
  after = " Both are normed after they are added." if looked.hides else ""
  ends = "marks of the ends are" if looked.hides else "start token is"
  parts += [
    _section(
      "Norms",
      "Root mean square of the residual stream after each layer, and of what attention and MLP compute; of a "
      f"typical token (the median).{after}",
      _norms(looked),
    ),
    _section(
      "Hidden states",
      f"After the last layer, along their two directions of largest variance (PCA); the {ends} left "
      f"out.{darker}",
      _scatter(looked),
    ),
    _section("Neighbours", "The nearest embeddings of each token, by cosine.", _neighbours(looked)),
  ]
  head = f'<meta charset="utf-8"><title>{e(text[:60])}</title><style>{CSS}</style>'
  return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _section(title: str, about: str, body: str) -> str:
  return f"<section><h2>{title}</h2><p>{about}</p>{body}</section>"


def _loss(looked: Looked, guesses: Guesses) -> str:
  spans = []
  for gap, target, loss, top, p in zip(
    looked.gaps, looked.targets, guesses.loss_L, looked.tops[-1], guesses.top_p[-1], strict=True
  ):
    shade = min(float(loss) / 10, 1.0) * 0.75
    said = f"{loss:.2f} nats, p = {np.exp(-loss):.3g}; likeliest: {top!r} ({p:.2f})"
    spans.append(
      f'{gap}<span style="background:rgba(196,98,45,{shade:.2f})" title="{html.escape(said)}">'
      f"{html.escape(target)}</span>"
    )
  return f'<div class="text">{"".join(spans)}</div>'


def _lens(looked: Looked, guesses: Guesses) -> str:
  rows = []
  if not looked.hides:
    rows.append(_row("reads", looked.tokens))
  for layer, (tops, ps) in enumerate(zip(looked.tops, guesses.top_p, strict=True)):
    name = f"layer {layer}" if layer else "embedding"
    rows.append(_shades(name, map(_cell, tops), ps))
  rows.append(_row("text", looked.targets))
  return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _experts(looked: Looked) -> str:
  """A row a layer, a column a token: its experts by number from 0, and their weights."""
  chosen, gates = looked.inside.chosen, looked.inside.gates
  rows = [_row("reads", looked.tokens)]
  for layer, (experts, weights) in enumerate(zip(chosen, gates, strict=True), 1):
    said = [
      "\n".join(f"{e} {w:.2f}" for e, w in zip(*token, strict=True))
      for token in zip(experts, weights, strict=True)
    ]
    rows.append(_shades(f"layer {layer}", said, weights[:, 0]))
  return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _row(name: str, tokens: Sequence[str]) -> str:
  return f"<tr><th>{name}</th>" + "".join(f"<th>{_cell(t)}</th>" for t in tokens) + "</tr>"


def _shades(name: str, cells: Iterable[str], weights: np.ndarray) -> str:
  """A row of cells of HTML, the bluer the greater the weight."""
  shaded = "".join(
    f'<td style="background:rgba(31,111,178,{0.7 * float(w):.2f})" title="{w:.3f}">{cell}</td>'
    for cell, w in zip(cells, weights, strict=True)
  )
  return f"<tr><th>{name}</th>{shaded}</tr>"


def _cell(token: str) -> str:
  """A token in a table: white space is made visible."""
  return html.escape(token.replace("\n", "↵").replace("\t", "→").replace(" ", "·")[:16])


def _attention(looked: Looked) -> str:
  figures = []
  for layer, heads in enumerate(looked.inside.attention, 1):
    for head, map_LL in enumerate(heads, 1):
      grey = (255 * (1 - map_LL)).round().astype(np.uint8)
      image = base64.b64encode(png(grey)).decode()
      name = f"layer {layer}, head {head}"
      figures.append(
        f'<figure><img alt="attention of {name}" src="data:image/png;base64,{image}">'
        f"<figcaption>{name}</figcaption></figure>"
      )
  return f'<div class="maps">{"".join(figures)}</div>'


def png(grey: np.ndarray) -> bytes:
  """A greyscale PNG of uint8 [rows, columns] (ISO/IEC 15948)."""
  rows, columns = grey.shape
  chunk = lambda kind, data: (
    struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
  )
  lines = b"".join(b"\0" + row.tobytes() for row in grey)
  head = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
  body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines, 9)) + chunk(b"IEND", b"")
  return b"\x89PNG\r\n\x1a\n" + body


def _norms(looked: Looked) -> str:
  width, height, left, bottom = 720, 240, 56, 28
  depth = len(looked.inside.norms["residual stream"]) - 1
  top = max(float(v.max()) for v in looked.inside.norms.values())
  x = lambda layer: left + (width - left - 150) * layer / max(depth, 1)
  y = lambda value: 8 + (height - bottom - 8) * (1 - value / top)
  marks = [
    f'<text x="{x(i):.1f}" y="{height - 8}" text-anchor="middle">{i}</text>'
    for i in range(depth + 1)
  ]
  for value in (0, top / 2, top):
    marks.append(
      f'<line x1="{left}" x2="{x(depth):.1f}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#e3e6ea"/>'
      f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>'
    )
  for row, ((name, values), colour) in enumerate(
    zip(looked.inside.norms.items(), COLOURS, strict=True)
  ):
    first = depth + 1 - len(values)  # what layers add begins with the first layer
    dots = [(x(first + i), y(float(v))) for i, v in enumerate(values)]
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in dots)
    marks.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    marks += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in dots]
    marks.append(
      f'<circle cx="{width - 132}" cy="{20 + 18 * row}" r="4" fill="{colour}"/>'
      f'<text x="{width - 122}" y="{24 + 18 * row}">{name}</text>'
    )
  return f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">{"".join(marks)}</svg>'


def _scatter(looked: Looked) -> str:
  width, height, pad = 720, 420, 48
  first = min(1, len(looked.tokens) - 1)  # the start token, unless it is alone
  shown = slice(1, -1) if looked.hides else slice(first, None)
  at = main_directions(looked.inside.hidden_LD[shown])
  low, high = at.min(axis=0), at.max(axis=0)
  scaled = (at - low) / np.maximum(high - low, 1e-9)
  marks = []
  losses = np.full(len(looked.targets), 10.0) if looked.guesses is None else looked.guesses.loss_L
  named = zip(looked.tokens[shown], losses if looked.hides else losses[shown], strict=True)
  for (a, b), (token, loss) in zip(scaled, named, strict=True):
    x, y = pad + a * (width - 2 * pad), height - pad - b * (height - 2 * pad)
    shade = f"rgba(196,98,45,{0.25 + 0.75 * min(float(loss) / 10, 1):.2f})"
    marks.append(
      f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{shade}"/>'
      f'<text x="{x + 6:.1f}" y="{y + 4:.1f}">{_cell(token)}</text>'
    )
  frame = (
    f'<rect x="1" y="1" width="{width - 2}" height="{height - 2}" fill="none" stroke="#e3e6ea"/>'
  )
  return (
    f'<svg viewBox="0 0 {width} {height}" width="{width}" role="img">{frame}{"".join(marks)}</svg>'
  )


def _neighbours(looked: Looked) -> str:
  rows = [
    f"<tr><th>{_cell(token)}</th>"
    + "".join(f"<td>{_cell(other)} {cosine:.2f}</td>" for other, cosine in near)
    + "</tr>"
    for token, near in looked.neighbours.items()
  ]
  return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def main(argv: Sequence[str]) -> int:
  parser = Parser(prog="python -m lm.inspect", description=__doc__)
  parser.add_argument("--workdir", required=True, help="run directory")
  parser.add_argument(
    "--text", type=utf8, required=True, help=f"what it reads, at most {MOST} tokens"
  )
  parser.add_argument("--checkpoint", default="best", help="best, latest or a step")
  parser.add_argument("--out", help="HTML file; WORKDIR/inspect.html if absent")
  parser.add_argument("--json", action="store_true", help="print file, tokens and losses as JSON")
  options, unknown = parser.parse_known_args(argv)
  reject_unknown(parser, unknown)
  check_page(options.out)
  run = load(options.workdir, options.checkpoint)
  looked = look(run, options.text)
  out = options.out or f"{options.workdir.rstrip('/')}/inspect.html"
  try:
    with bucket.written("out", out) as path:
      write_text(path, page(run, options.text, looked))
  except OSError as error:
    raise ConfigError(
      f"out={out}: cannot be written ({error.strerror}); choose another file"
    ) from None
  losses = looked.guesses and [round(float(v), 6) for v in looked.guesses.loss_L]
  if options.json:
    print(json.dumps({"page": out, "tokens": looked.targets, "losses": losses}))
  else:
    mean = f"{np.mean(losses):.4f} nats a token" if losses else "no head for masked tokens"
    print(f"{out}: {number_of(len(looked.targets), 'token')}, {mean}")
  return 0


if __name__ == "__main__":
  run_main(main)
