"""Looks into a trained decoder while it reads a text: one HTML page that needs nothing beside it.

examples:
  python -m lm.inspect --workdir runs/default --text "Returns the mean of an array."
  python -m lm.inspect --workdir runs/default --text "Returns the mean." --out looked.html --json

The page shows, token by token, the loss; what each layer would predict (logit lens: nostalgebraist 2020); the
attention of every head; the size of the residual stream and of what is added to it; the hidden states in
their two main directions; and each token's nearest neighbours among the embeddings.
"""

from lm.config import interrupts

if __name__ == "__main__":
  interrupts.listen()

import base64
import dataclasses
import html
import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.config.command_line import Parser, check_page, reject_unknown, run_main
from lm.config.errors import ConfigError, number_of
from lm.files import write_text
from lm.models.attention.forms import attend
from lm.models.decoder import Block, Decoder
from lm.models.layers import Attention, Mlp, has_final_norm, local_layers
from lm.models.trees import stack_layers, unstack_layers
from lm.runs import bucket
from lm.runs.load import LoadedRun, load

MOST = 128  # tokens of a text
NEIGHBOURS = 5


class Looked(NamedTuple):
  """What `look` finds; arrays are float32 on the host. L tokens are read, D is the width."""

  tokens: list[str]  # that are read: the start token, then the text's but for the last one
  targets: list[str]  # the text's
  loss_L: np.ndarray  # nats
  lens_p: np.ndarray  # [layers + 1, L]: of the likeliest token after the embedding and each layer
  lens_top: list[list[str]]  # that token
  attention: np.ndarray  # [layers, heads, L, L]
  norms: dict[str, np.ndarray]  # root mean square over the width, median of positions, a layer
  hidden_LD: np.ndarray  # after the last layer
  neighbours: dict[str, list[tuple[str, float]]]  # of each token: others and their cosine


def look(run: LoadedRun, text: str) -> Looked:
  """One forward pass over a text, and all that is shown of it.

  Raises:
    ConfigError: no decoder, or a text that is empty, or longer than MOST tokens or the model's context.
  """
  cfg, t = run.cfg.model, run.tokenizer
  if not isinstance(run.model, Decoder) or cfg.experts or cfg.share_layers:
    raise ConfigError(
      f"workdir={run.workdir}: is no decoder with layers of its own and dense MLPs; inspect one of these"
    )
  ids = [t.start_id, *t.encode(text)]
  most = min(MOST, cfg.seq_len)
  if not 1 < len(ids) <= most + 1:
    raise ConfigError(
      f"text={text[:40]}: has {number_of(len(ids) - 1, 'token')}, must have 1 to {most}; shorten it"
    )
  params = stack_layers(run.params) if not cfg.scan_layers else run.params
  section = dataclasses.replace(cfg, scan_layers=False, remat="none", dropout=0.0)
  found = _forward(section, unstack_layers(params), np.array([ids], np.int32))
  names = [_shown(run, i) for i in ids]
  log_p = found["lens"][-1]  # [L, V], after the last layer
  loss = -log_p[np.arange(len(ids) - 1), ids[1:]]
  tops = found["lens"].argmax(axis=-1)
  return Looked(
    tokens=names[:-1],
    targets=names[1:],
    loss_L=loss,
    lens_p=np.exp(found["lens"].max(axis=-1)),
    lens_top=[[_shown(run, i) for i in row] for row in tops],
    attention=found["attention"],
    norms=found["norms"],
    hidden_LD=found["hidden"],
    neighbours=neighbours(run, ids[1:]),
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


def _forward(section: Any, params: Any, ids_BL: np.ndarray) -> dict[str, Any]:
  """Residual streams, attention and log-probabilities of a decoder whose layers are apart."""
  model = Decoder(section)
  watched = (Block, Attention, Mlp)
  keep = lambda module, name: (
    (isinstance(module, watched) or module.name == "dropout") and name == "__call__"
  )
  local = local_layers(section) or (True,) * section.depth

  @jax.jit
  def run(params, tokens_BL):
    _, kept = model.apply(
      {"params": params},
      tokens_BL,
      method="hidden",
      capture_intermediates=keep,
      mutable=["intermediates"],
    )
    kept = kept["intermediates"]
    blocks = [kept[f"block_{i}"] for i in range(section.depth)]
    first = lambda call: call[0] if isinstance(call, tuple) else call
    streams = [kept["dropout"]["__call__"][0], *(first(b["__call__"][0]) for b in blocks)]
    lens: list[Any] = [
      model.apply(
        {"params": params},
        x_BLD,
        method=lambda m, x: m.logits(m.final_norm(x) if has_final_norm(section) else x),
      )
      for x_BLD in streams
    ]
    maps = []
    for block, is_local in zip(blocks, local, strict=True):
      q_BLHK, k_BLGK = block["attn"]["queries"][0], block["attn"]["keys"][0]
      B, L, G, _ = k_BLGK.shape
      eye_BLGL = jnp.broadcast_to(jnp.eye(L, dtype=k_BLGK.dtype)[None, :, None], (B, L, G, L))
      plain = dataclasses.replace(section, attention="einsum")
      plain = plain if is_local else dataclasses.replace(plain, window=None)
      maps.append(attend(q_BLHK, k_BLGK, eye_BLGL, plain)[0].swapaxes(0, 1))  # [H, L, L]
    rms = lambda x_1LD: jnp.median(jnp.sqrt(jnp.square(x_1LD.astype(jnp.float32)).mean(axis=-1)))
    norms = {
      "residual stream": jnp.stack([rms(x) for x in streams]),
      "attention adds": jnp.stack([rms(first(b["attn"]["__call__"][0])) for b in blocks]),
      "mlp adds": jnp.stack([rms(b["mlp"]["__call__"][0]) for b in blocks]),
    }
    log_p = jnp.stack([jax.nn.log_softmax(x.astype(jnp.float32))[0] for x in lens])
    return {"lens": log_p, "attention": jnp.stack(maps), "norms": norms, "hidden": streams[-1][0]}

  found = run(params, ids_BL[:, :-1])
  return jax.tree.map(lambda a: np.asarray(a, np.float32), found)


def _shown(run: LoadedRun, token: int) -> str:
  """A token as text; special ones by name, what is no text of its own by number."""
  t = run.tokenizer
  if token in (t.eot_id, t.start_id):
    return str(t.token(int(token)))
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
  n = len(looked.loss_L)
  about = (
    f"{e(str(run.workdir))}, step {run.step} &middot; {number_of(run.cfg.model.depth, 'layer')}, width "
    f"{run.cfg.model.width}, {number_of(run.cfg.model.heads, 'head')} &middot; "
    f"{number_of(n, 'token')} &middot; mean loss "
    f"{looked.loss_L.mean():.3f} nats a token"
  )
  parts = [
    f"<h1>{e(text[:80])}</h1><p>{about}</p>",
    _section("Loss", "Darker is more surprising; hover for numbers.", _loss(looked)),
    _section(
      "Logit lens",
      "The likeliest next token if the network ended after a layer; deeper colour is more certain. The last "
      "row is what follows in the text.",
      _lens(looked),
    ),
    _section(
      "Attention",
      "Rows are the tokens that look, columns those that are looked at; black is 1. Rows start at the top.",
      _attention(looked),
    ),
    _section(
      "Norms",
      "Root mean square of the residual stream after each layer, and of what attention and MLP compute; of a "
      "typical token (the median).",
      _norms(looked),
    ),
    _section(
      "Hidden states",
      "After the last layer, along their two directions of largest variance (PCA); the start token is left "
      "out. Darker is worse predicted.",
      _scatter(looked),
    ),
    _section("Neighbours", "The nearest embeddings of each token, by cosine.", _neighbours(looked)),
  ]
  head = f'<meta charset="utf-8"><title>{e(text[:60])}</title><style>{CSS}</style>'
  return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _section(title: str, about: str, body: str) -> str:
  return f"<section><h2>{title}</h2><p>{about}</p>{body}</section>"


def _loss(looked: Looked) -> str:
  spans = []
  for target, loss, top, p in zip(
    looked.targets, looked.loss_L, looked.lens_top[-1], looked.lens_p[-1], strict=True
  ):
    shade = min(float(loss) / 10, 1.0) * 0.75
    said = f"{loss:.2f} nats, p = {np.exp(-loss):.3g}; likeliest: {top!r} ({p:.2f})"
    spans.append(
      f'<span style="background:rgba(196,98,45,{shade:.2f})" title="{html.escape(said)}">'
      f"{html.escape(target)}</span>"
    )
  return f'<div class="text">{"".join(spans)}</div>'


def _lens(looked: Looked) -> str:
  rows = ["<tr><th>reads</th>" + "".join(f"<th>{_cell(t)}</th>" for t in looked.tokens) + "</tr>"]
  for layer, (tops, ps) in enumerate(zip(looked.lens_top, looked.lens_p, strict=True)):
    cells = "".join(
      f'<td style="background:rgba(31,111,178,{0.7 * float(p):.2f})" title="{p:.3f}">{_cell(top)}</td>'
      for top, p in zip(tops, ps, strict=True)
    )
    rows.append(f"<tr><th>{f'layer {layer}' if layer else 'embedding'}</th>{cells}</tr>")
  rows.append(
    "<tr><th>text</th>" + "".join(f"<th>{_cell(t)}</th>" for t in looked.targets) + "</tr>"
  )
  return f'<div class="wide"><table>{"".join(rows)}</table></div>'


def _cell(token: str) -> str:
  """A token in a table: white space is made visible."""
  return html.escape(token.replace("\n", "↵").replace("\t", "→").replace(" ", "·")[:16])


def _attention(looked: Looked) -> str:
  figures = []
  for layer, heads in enumerate(looked.attention, 1):
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
  depth = len(looked.norms["residual stream"]) - 1
  top = max(float(v.max()) for v in looked.norms.values())
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
  for row, ((name, values), colour) in enumerate(zip(looked.norms.items(), COLOURS, strict=True)):
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
  first = min(1, len(looked.tokens) - 1)
  at = main_directions(looked.hidden_LD[first:])
  low, high = at.min(axis=0), at.max(axis=0)
  scaled = (at - low) / np.maximum(high - low, 1e-9)
  marks = []
  named = zip(looked.tokens[first:], looked.loss_L[first:], strict=True)
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
  parser.add_argument("--text", required=True, help=f"what it reads, at most {MOST} tokens")
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
  if options.json:
    losses = [round(float(v), 6) for v in looked.loss_L]
    print(json.dumps({"page": out, "tokens": looked.targets, "losses": losses}))
  else:
    print(
      f"{out}: {number_of(len(looked.targets), 'token')}, {looked.loss_L.mean():.4f} nats a token"
    )
  return 0


if __name__ == "__main__":
  run_main(main)
