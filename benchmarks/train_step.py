"""Training speed: tokens/s, MFU, compile seconds, peak memory of train.py's own step, over a table of shapes.

With --peer, the same GPT elsewhere (benchmarks/peers.py) is timed in the same run and the ratio printed:
torch (on CUDA torch.compile with flash attention, bfloat16 autocast and fused AdamW: what nanoGPT runs; on a
CPU eager too), flax (a plain loop of its own layers) and levanter (in an environment of its own).
MFU counts every matrix product, attention unmasked, against the chip's data sheet (lm/devices/chips.py).

examples:
  python benchmarks/train_step.py
  python benchmarks/train_step.py --shape W --dtype float32,bfloat16 --peer torch,flax
  python benchmarks/train_step.py --shape W --peer levanter --peer_python levanter/bin/python
  python benchmarks/train_step.py --shape 1.3b --dtype bfloat16 --remat none,dots --steps 20
"""

import json
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import bench, peers
from lm.devices.chips import peak_flops

GPT = {"norm": "layernorm", "activation": "gelu", "positions": "learned", "bias": True,
       "tied_embeddings": True}  # fmt: skip
LLAMA = {"norm": "rmsnorm", "activation": "swiglu", "positions": "rope", "bias": False,
         "tied_embeddings": False}  # fmt: skip

# name: (block, depth, width, heads, mlp_dim, vocab_size, seq_len, batch_size)
SHAPES = {
  "tiny": (GPT, 2, 64, 2, 256, 512, 128, 16),
  "default": (GPT, 4, 128, 4, 512, 2048, 256, 16),
  "W": (GPT, 6, 384, 6, 1536, 8192, 256, 16),
  "deep6": (GPT, 6, 128, 4, 512, 512, 128, 8),
  "deep24": (GPT, 24, 128, 4, 512, 512, 128, 8),
  "124m": (GPT, 12, 768, 12, 3072, 50304, 1024, 32),  # vocabulary padded as nanoGPT does
  "tiny-llama": (LLAMA, 2, 64, 2, 192, 512, 128, 16),
  "1.3b": (LLAMA, 24, 2048, 16, 5504, 32000, 2048, 8),
}
FIELDS = ("depth", "width", "heads", "mlp_dim", "vocab_size", "seq_len")


def main():
  parser = bench.make_parser(__doc__, peers=peers.ROWS)
  parser.add_argument("--shape", default="tiny,default,W", help=f"of {', '.join(SHAPES)}")
  parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or both with a comma")
  parser.add_argument("--remat", default="none", help="values of model.remat, with commas")
  parser.add_argument("--batch", type=int, help="sequences a step; the shape's own if not given")
  parser.add_argument("--peer_python", default=sys.executable, help="that has levanter")
  parser.add_argument("--steps", type=int, default=10, help="timed steps; the median counts")
  options = parser.parse_args()
  if options.worker:
    print(json.dumps((time_isoflop if options.worker == "isoflop" else time_peer)(options)))
    return
  for shape in options.shape.split(","):
    if shape not in SHAPES:
      parser.error(f"shape={shape}: no such shape; choose from {', '.join(SHAPES)}")
    if options.peer and SHAPES[shape][0] is not GPT:
      parser.error(f"peer={options.peer}: has GPT-2's block only, not that of {shape}; drop --peer")
  print(f"{'shape':<11}{'dtype':<10}{'remat':<6}{'who':<15}{'tokens/s':>10}{'MFU':>7}"
        f"{'compile s':>11}{'to step 1':>11}{'peak GB':>9}{'ratio':>7}")  # fmt: skip
  for shape in options.shape.split(","):
    for dtype in options.dtype.split(","):
      base = None
      for remat in options.remat.split(","):
        row = run_row(options, "isoflop", shape, dtype, remat)
        base = base or row
      for peer in options.peer if base else ():
        for who in peers.ROWS[peer]:
          if not (who == "torch" and base["platform"] == "gpu"):  # nobody trains so on a GPU
            run_row(options, who, shape, dtype, "none", base)


def run_row(options, who, shape, dtype, remat, base=None):
  """Runs one row in a fresh process, prints it, appends its JSON line; None if it failed."""
  start = time.time()
  python = options.peer_python if who == "levanter" else None
  row = bench.run_worker(who, options, python, shape=shape, dtype=dtype, remat=remat)
  row |= {"who": who, "shape": shape, "dtype": dtype, "remat": remat, "set": options.set}
  name = f"{shape:<11}{dtype:<10}{remat:<6}{who:<15}"
  if "error" in row:
    print(f"{name}failed: {row['error']}", flush=True)
    bench.append(options.out, "train_step", row)
    return None
  row["seconds_to_first_step"] = row.pop("first_step_at") - start
  per_token = (base or row)["flops_per_token"]
  peak = peak_flops(row["device"], dtype)
  row["mfu"] = peak and row["tokens_per_sec"] * per_token["exact"] / (peak * row["n_devices"])
  row["ratio"] = base and base["tokens_per_sec"] / row["tokens_per_sec"]
  mfu = f"{row['mfu']:.1%}" if peak else "-"
  ratio = f"{row['ratio']:.2f}" if base else ""
  print(f"{name}{row['tokens_per_sec']:>10,.0f}{mfu:>7}"
        f"{row['compile_seconds']:>11.1f}{row['seconds_to_first_step']:>11.1f}"
        f"{row['peak_bytes'] / 1e9:>9.2f}{ratio:>7}", flush=True)  # fmt: skip
  bench.append(options.out, "train_step", row)
  return row


def time_isoflop(options) -> dict:
  """The step of train.py on random tokens."""
  cfg = config_of(options)
  import jax

  from lm.cost.flops import CONVENTIONS, flops_per_token
  from lm.devices import sharding
  from lm.setup.hparams import make_hparams
  from lm.training.programs import make_programs

  programs = make_programs(cfg, sharding.make_mesh(cfg.mesh))
  hparams = jax.device_put(make_hparams(cfg), programs.scalar_sharding)
  data = jax.device_put(bench.random_batch(cfg), programs.batch_sharding)
  state = programs.init(hparams)
  start = time.perf_counter()
  compiled = programs.train.lower(state, data, hparams).compile()
  compile_seconds = time.perf_counter() - start

  def step():
    nonlocal state
    state, metrics = compiled(state, data, hparams)
    return metrics

  loss = float(step()["train/loss"])
  first_step_at = time.time()
  platform = jax.default_backend()
  jax.block_until_ready(step())
  seconds = bench.seconds_per_call(step, jax.block_until_ready, options.steps, platform == "cpu")
  return {
    "tokens_per_sec": cfg.train.tokens / cfg.train.steps / seconds,
    "compile_seconds": compile_seconds,
    "first_step_at": first_step_at,
    **bench.device_memory(),
    "flops_per_token": {c: flops_per_token(cfg.model, c) for c in CONVENTIONS},
    "batch_size": cfg.train.batch_size,
    "first_loss": loss,
    "platform": platform,
    "n_devices": jax.device_count(),
    **bench.about(),
  }


def config_of(options):
  """The resolved config of a row."""
  block, *sizes, batch_size = SHAPES[options.shape]
  model = block | dict(zip(FIELDS, sizes, strict=True))
  model |= {"dtype": options.dtype, "remat": options.remat}
  changes = {f"model.{key}": value for key, value in model.items()}
  changes["train.batch_size"] = options.batch or batch_size
  return bench.make_config(changes, options.set)


def time_peer(options) -> dict:
  """The step of another codebase on random tokens."""
  _, *sizes, batch_size = SHAPES[options.shape]
  shape = peers.Shape(*sizes, options.batch or batch_size)
  return peers.WORKERS[options.worker](shape, options.dtype, options.steps)


if __name__ == "__main__":
  main()
