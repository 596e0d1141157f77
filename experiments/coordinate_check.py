"""Do activations keep their size as the model gets wider, or deeper, before and during training?

Scientific: model.width, under model.parameterization standard, mup, umup and, untied, spectral; with --over
depth model.depth, under mup, umup and completep.
Fixed: a decoder of depth 2 with 4 heads (of the smallest width, over depth), trained for a few updates at one
learning rate on one batch.
Budget: 3 or 4 x 5 models, two minutes on 2 CPU cores.
What would change our mind: under mup a layer whose change grows or shrinks with width, under completep with
depth (slope far from 0 in log-log): then some exponent in lm.models.parameterization is wrong, and learning
rates do not transfer.

For each kind of layer the table has the root mean square of its output after training, and of how
much training changed it. At initialisation muP's logits shrink like width ** -0.5 by design;
their change is what must be flat. Yang et al. 2022, arXiv:2203.03466, appendix D.1; over depth Dey et al.
2025, arXiv:2505.01618: under mup alone every block changes the residual stream by as much, however many
there are.
"""

import argparse
import dataclasses
import functools
import pathlib
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from configs.default import get_config
from lm.config.hparams import Hparams
from lm.config.schema import OptimConfig
from lm.cost.parameters import weights
from lm.models.parameterization import needs_readout
from lm.models.registry import make_model
from lm.models.transformer_config import TransformerConfig
from lm.models.trees import init_params, param_axes, param_kinds
from lm.optim.chain import make_optimizer, multipliers
from lm.optim.directions import OPTIMIZERS
from lm.setup.resolve import resolve_model

SIZES = {"width": (64, 128, 256, 512, 1024), "depth": (2, 4, 8, 16, 32)}
PARAMETERIZATIONS = {
  "width": ("standard", "mup", "umup", "spectral"), "depth": ("mup", "umup", "completep"),
}  # fmt: skip
WIDTH, DEPTH = 64, 2  # of what the other one grows
VOCAB, BATCH, SEQ_LEN, HEADS = 256, 4, 64, 4

# What is measured -> the end of the module's path; blocks are averaged.
LAYERS = {
  "embed": ("embed",),
  "query": ("attn", "q"),
  "attention out": ("attn", "out"),
  "mlp up": ("mlp", "up"),
  "mlp down": ("mlp", "down"),
  "residual stream": (),  # after the last block
  "final norm": ("final_norm",),
  "logits": (),
}


@dataclasses.dataclass(frozen=True)
class Row:
  parameterization: str
  size: int  # the width, or the depth
  layer: str
  rms: float  # of the output after the last step
  change: float  # root mean square of output after the last step - output at initialisation


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__.split("\n")[0],
    formatter_class=argparse.RawDescriptionHelpFormatter,
    epilog="example:\n  python -m experiments.coordinate_check --out runs/coordinate_check.html",
  )
  parser.add_argument("--over", choices=SIZES, default="width", help="what grows")
  parser.add_argument("--sizes", type=int, nargs="+", help="widths or depths; smallest: the base")
  parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw")
  parser.add_argument("--steps", type=int, default=4, help="updates")
  parser.add_argument("--lr", type=float, default=0.01, help="learning rate at the least size")
  parser.add_argument("--seeds", type=int, default=1, help="initialisations averaged")
  parser.add_argument("--untied", action="store_true", help="a head of its own, not the embedding")
  parser.add_argument(
    "--out", default="runs/coordinate_check.html", help="chart: .html, .png, .svg or .pdf"
  )
  args = parser.parse_args()
  sizes = args.sizes or SIZES[args.over]
  rows = check(args.over, sizes, args.optimizer, args.steps, args.lr, args.seeds, not args.untied)
  print(table(rows))
  save_chart(rows, args.over, args.out)
  print(f"chart: {args.out}")


def check(
  over: str = "width",
  sizes: Sequence[int] = SIZES["width"],
  optimizer: str = "adamw",
  steps: int = 4,
  lr: float = 0.01,
  seeds: int = 1,
  tied: bool = True,
) -> list[Row]:
  """One row for each parameterization, size and layer; `over` is "width" or "depth"."""
  rows, base = [], min(sizes)
  for parameterization in PARAMETERIZATIONS[over]:
    if tied and needs_readout(parameterization):
      continue
    for size in sizes:
      # At the base size all are one model, which is measured once.
      chosen = "standard" if size == base else parameterization
      cfg = make_model_config(chosen, over, size, base, tied)
      squares = [measure(cfg, optimizer, steps, lr, seed) for seed in range(seeds)]
      for layer in LAYERS:
        rms, change = np.sqrt(np.mean([s[layer] for s in squares], axis=0))
        rows.append(Row(parameterization, size, layer, float(rms), float(change)))
  return rows


def make_model_config(
  parameterization: str, over: str, size: int, base: int, tied: bool
) -> TransformerConfig:
  """The default decoder of this width or depth, unrolled so that every layer can be watched."""
  width, base_width = (size, base) if over == "width" else (WIDTH, WIDTH)
  depth, base_depth = (size, base) if over == "depth" else (DEPTH, DEPTH)
  changes = {
    "parameterization": parameterization,
    "width": width,
    "base_width": base_width,
    "depth": depth,
    "base_depth": base_depth,
    "heads": HEADS,  # at every width, so that the heads widen too
    "base_head_dim": base_width // HEADS,
    "mlp_dim": 4 * width,
    "seq_len": SEQ_LEN,
    "tied_embeddings": tied,
    "scan_layers": False,
    "attention": "einsum",  # the form that compiles fastest
  }
  cfg = TransformerConfig(**get_config().model.to_dict() | changes)
  return resolve_model(cfg, VOCAB)


@functools.cache
def measure(
  cfg: TransformerConfig, optimizer: str, steps: int, lr: float, seed: int
) -> dict[str, np.ndarray]:
  """Mean squares (output, change of output) of every layer after `steps` updates."""
  model = make_model(cfg)
  optim = OptimConfig(**get_config().optim.to_dict() | {"name": optimizer, "schedule": "constant"})
  hparams = Hparams(
    seed=np.int32(0),
    weight_decay=np.float32(0),
    l1=np.float32(0),
    l2=np.float32(0),
    total_steps=np.int32(0),
    warmup_steps=np.int32(0),
    decay_steps=np.int32(0),
    final_lr_frac=np.float32(0),
    peak_lr=np.float32(lr),
    b1=np.float32(0.9),
    b2=np.float32(0.95),
    b3=np.float32(0.99),
    slow_weight=np.float32(8),
    slow_warmup=np.float32(0),
    precondition_every=np.int32(10),
    gamma=np.float32(0.01),
    eps=np.float32(1e-12),  # gradients shrink with width and must stay far above it
    clip_norm=np.float32(np.inf),
  )
  axes = param_axes(model)
  kinds = param_kinds(axes, weights(cfg), is_leaf=lambda leaf: isinstance(leaf, tuple))
  mults = multipliers(
    optimizer, cfg.parameterization, cfg.width / cfg.base_width, cfg.depth / cfg.base_depth
  )
  tx = make_optimizer(optim, hparams, kinds, axes, mults)

  @jax.jit
  def run(key):
    init_key, data_key = jax.random.split(key)
    params = init_params(model, init_key)
    # Tokens of a skewed distribution, so that a few steps have something to learn.
    skew = -1.5 * jnp.log(jnp.arange(1, VOCAB + 1, dtype=jnp.float32))
    tokens_BL = jax.random.categorical(data_key, skew, shape=(BATCH, SEQ_LEN + 1))
    inputs_BL, targets_BL = tokens_BL[:, :-1], tokens_BL[:, 1:]

    def loss(params):
      logits_BLV = model.apply({"params": params}, inputs_BL)
      return optax.softmax_cross_entropy_with_integer_labels(logits_BLV, targets_BL).mean()

    def update(carry, _):
      params, state = carry
      updates, state = tx.update(jax.grad(loss)(params), state, params)
      return (optax.apply_updates(params, updates), state), None

    (trained, _), _ = jax.lax.scan(update, (params, tx.init(params)), length=steps)
    both = jax.tree.map(lambda *p: jnp.stack(p), params, trained)
    watched = jax.lax.map(lambda params: outputs(model, params, inputs_BL), both)
    return {
      layer: jnp.stack([jnp.mean(x[1] ** 2), jnp.mean((x[1] - x[0]) ** 2)])
      for layer, x in watched.items()
    }

  return jax.tree.map(np.asarray, run(jax.random.key(seed)))


def outputs(model: nn.Module, params, tokens_BL: jax.Array) -> dict[str, jax.Array]:
  """The outputs of every layer of LAYERS, stacked over the blocks that have it."""
  logits_BLV, sown = model.apply(
    {"params": params}, tokens_BL, capture_intermediates=True, mutable=["intermediates"]
  )
  found = {layer: [] for layer in LAYERS} | {"logits": [logits_BLV]}
  last = f"block_{model.cfg.depth - 1}"
  for path, value in jax.tree_util.tree_leaves_with_path(sown["intermediates"]):
    names = tuple(part.key for part in path if hasattr(part, "key"))
    if names[-2:] == (last, "__call__") and value.ndim == 3:
      found["residual stream"].append(value)
    for layer, end in LAYERS.items():
      if end and names[-1] == "__call__" and names[-1 - len(end) : -1] == end:
        found[layer].append(value)
  return {layer: jnp.stack(values) for layer, values in found.items()}


def slopes(rows: list[Row], field: str) -> dict[tuple[str, str], float]:
  """(parameterization, layer) -> least-squares slope of log `field` against log size."""
  result = {}
  for parameterization in dict.fromkeys(r.parameterization for r in rows):
    for layer in LAYERS:
      chosen = [r for r in rows if (r.parameterization, r.layer) == (parameterization, layer)]
      x, y = (np.log([getattr(r, name) for r in chosen]) for name in ("size", field))
      result[parameterization, layer] = float(np.polyfit(x, y, 1)[0])
  return result


def table(rows: list[Row]) -> str:
  """Both quantities against size, with their slopes, as text."""
  sizes = sorted({r.size for r in rows})
  lines = []
  for field, title in (("rms", "output after training"), ("change", "change by training")):
    slope = slopes(rows, field)
    lines.append(f"\n{title} (root mean square)")
    lines.append(f"{'':26}" + "".join(f"{s:>9}" for s in sizes) + f"{'slope':>9}")
    for parameterization in dict.fromkeys(r.parameterization for r in rows):
      for layer in LAYERS:
        values = {
          r.size: getattr(r, field)
          for r in rows
          if (r.parameterization, r.layer) == (parameterization, layer)
        }
        lines.append(
          f"{parameterization:10}{layer:16}"
          + "".join(f"{values[s]:>9.4g}" for s in sizes)
          + f"{slope[parameterization, layer]:9.2f}"
        )
  return "\n".join(lines)


def save_chart(rows: list[Row], over: str, path: str) -> None:
  """Change of every layer against size, one panel a parameterization."""
  import altair as alt

  values = [dataclasses.asdict(row) for row in rows]
  chart = (
    alt.Chart(alt.Data(values=values))
    .mark_line(point=True)
    .encode(
      x=alt.X("size:Q", scale=alt.Scale(type="log", base=2), title=over),
      y=alt.Y("change:Q", scale=alt.Scale(type="log"), title="change by training (RMS)"),
      color=alt.Color("layer:N", sort=list(LAYERS), title="layer"),
      tooltip=["layer:N", "size:Q", "rms:Q", "change:Q"],
    )
    .properties(width=280, height=320)
    .facet(column=alt.Column("parameterization:N", sort=list(PARAMETERIZATIONS[over]), title=None))
    .properties(
      title=f"Coordinate check: flat lines mean that learning rates transfer across {over}s"
    )
  )
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  chart.save(path)


if __name__ == "__main__":
  main()
