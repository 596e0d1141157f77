"""Every family at 1.05 to 1.12 million parameters: tokens/s and FLOP utilisation, beside torch's.

Each row is a process of its own that trains on one real batch of the family's own kind with AdamW, clipped:
ours by train.py's compiled step; torch's (benchmarks/family_peers.py) of torch.nn or transformers, eager and
by torch.compile, on the same arrays. Tokens are the units that budgets count, the same for both. Utilisation
is the family's exact FLOPs a second over the chip's data sheet, or on a CPU over what a float32 product of
2048 x 2048 matrices reaches in the same run, by jax or torch, whichever is faster.

examples:
  python benchmarks/families.py
  python benchmarks/families.py --family decoder,t5 --peer torch
  python benchmarks/families.py --peer torch --no_compile --steps 5
"""

import json
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from benchmarks import bench, family_peers
from lm.devices.chips import peak_flops

BYTES = {"data.sources": "synthetic:markov-64-s1", "data.tokenizer": "byte"}
COMMON = {
  "model.vocab_size": 2048, "optim.name": "adamw", "optim.clip_norm": 1.0, "train.tokens": None,
  "train.steps": 1000, "log.wandb": "disabled", "sample.tokens": 0,
}  # fmt: skip
GPT = {"norm": "layernorm", "activation": "gelu", "positions": "learned", "bias": True,
       "tied_embeddings": True, "depth": 4, "width": 128, "heads": 4, "mlp_dim": 512}  # fmt: skip
RECURRENT = {"width": 128, "hidden_dim": 176, "depth": 2, "seq_len": 64}


def _model(**fields):
  return {f"model.{key}": value for key, value in fields.items()}


# name: (config, changes beside COMMON)
FAMILIES = {
  "decoder": ("default.py", BYTES | _model(**GPT, seq_len=256) | {"train.batch_size": 16}),
  "bert": (
    "bert.py:smoke",
    BYTES | _model(width=128, depth=4, heads=4, seq_len=256, dropout=0.0) | {"train.batch_size": 16},
  ),
  "encoder_decoder": (
    "transformer.py:smoke",
    _model(width=128, depth=2, heads=4, mlp_dim=448, seq_len=128, target_len=128)
    | {"train.batch_size": 16, "objective.label_smoothing": 0.0},
  ),
  "t5": (
    "t5.py:smoke",
    BYTES
    | _model(width=128, depth=2, heads=4, head_dim=32, mlp_dim=448, seq_len=256, target_len=64)
    | {"train.batch_size": 16},
  ),
  "recurrent": ("lstm.py:smoke", BYTES | _model(**RECURRENT) | {"train.batch_size": 64}),
  "vae": (
    "vae.py:smoke",
    BYTES
    | _model(**RECURRENT | {"depth": 1, "latent_dim": 16})
    | {"train.batch_size": 64, "objective.anneal": "none"},
  ),
  "gan": (
    "gan.py:gumbel",
    _model(**RECURRENT | {"seq_len": 21, "width": 112, "hidden_dim": 128})
    | {"train.batch_size": 64, "objective.likelihood_steps": 1, "objective.critic_steps": 1},
  ),
  "word_vectors": (
    "word2vec.py:smoke",
    _model(width=256, seq_len=64) | {"train.batch_size": 64, "data.min_freq": 80},
  ),
}  # fmt: skip


def main():
  parser = bench.make_parser(__doc__, peers=("torch",))
  parser.add_argument("--family", default=",".join(FAMILIES), help="with commas")
  parser.add_argument("--steps", type=int, default=10, help="timed steps; the median counts")
  parser.add_argument("--no_compile", action="store_true", help="torch eager alone")
  options = parser.parse_args()
  if options.worker:
    print(json.dumps(WORKERS[options.worker](options)))
    return
  for family in options.family.split(","):
    if family not in FAMILIES:
      parser.error(f"family={family}: no such family; choose from {', '.join(FAMILIES)}")
  peak = None
  print(f"{'family':<16}{'who':<15}{'parameters':>12}{'tokens/s':>11}{'GFLOP/s':>10}{'of peak':>9}"
        f"{'load':>6}{'ratio':>7}")  # fmt: skip
  for family in options.family.split(","):
    base = run_row(options, "isoflop", family, peak)
    if base and peak is None:
      peak = peak_flops(base["device"], "float32") or measured_peak(options)
    if base:
      show(base, peak)
    for who in ("torch",) if options.no_compile else ("torch", "torch.compile"):
      if base and options.peer and family in family_peers.PEERS:
        row = run_row(options, who, family, peak, base)
        if row:
          show(row, peak)


def run_row(options, who, family, peak, base=None):
  """The row of a fresh process, kept as a JSON line; None if it failed, which is said."""
  row = bench.run_worker(who, options, family=family)
  row |= {"who": who, "family": family, "set": options.set, "loaded": bench.load()}
  if "error" in row:
    print(f"{family:<16}{who:<15}failed: {row['error']}", flush=True)
    bench.append(options.out, "families", row)
    return None
  tokens, per_token = (base or row)["tokens_per_step"], (base or row)["flops_per_token"]
  row["tokens_per_sec"] = tokens / row["seconds"]
  row["flops_per_sec"] = row["tokens_per_sec"] * per_token
  row["ratio"] = base and base["tokens_per_sec"] / row["tokens_per_sec"]
  bench.append(options.out, "families", row | {"peak": peak})
  return row


def show(row, peak):
  """A line of the table."""
  ratio = f"{row['ratio']:.2f}" if row["ratio"] else ""
  print(f"{row['family']:<16}{row['who']:<15}{row['parameters']:>12,}{row['tokens_per_sec']:>11,.0f}"
        f"{row['flops_per_sec'] / 1e9:>10.1f}{row['flops_per_sec'] / peak:>9.1%}{row['loaded']:>6.1f}"
        f"{ratio:>7}", flush=True)  # fmt: skip


def measured_peak(options) -> float:
  """FLOP/s of a large product, by jax or torch, in processes of their own."""
  whos = ("peak", "peak-torch") if options.peer else ("peak",)
  found = {who: bench.run_worker(who, options, family="decoder") for who in whos}
  rates = {who: row["flops_per_sec"] for who, row in found.items() if "error" not in row}
  print("# " + ", ".join(f"{who} {rate / 1e9:,.0f} GFLOP/s" for who, rate in rates.items()))
  return max(rates.values())


# --- in processes of their own --------------------------------------------------------------------


def make(family: str, settings=()):
  """(resolved config, its opened data, the host arrays of a training batch)."""
  from lm.setup.load import load_config
  from lm.setup.resolve import kind_of, resolve

  file, changes = FAMILIES[family]
  overrides = COMMON | changes | dict(setting.split("=", 1) for setting in settings)
  cfg = load_config(str(bench.ROOT / "configs" / file), overrides)
  kind = kind_of(cfg)
  data = kind.open(cfg)
  cfg = resolve(cfg, data.vocab_size, 1, kind.mean_units(data, cfg))
  return cfg, data, kind.train(data, cfg).at(1)


def time_isoflop(options) -> dict:
  """The step of train.py."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  import jax

  from lm.cost.flops import run_flops_per_token
  from lm.cost.parameters import run_counts
  from lm.devices import sharding
  from lm.setup.hparams import make_hparams
  from lm.training.programs import make_programs

  cfg, _, batch = make(options.family, options.set)
  programs = make_programs(cfg, sharding.make_mesh(cfg.mesh, devices=jax.devices()[:1]))
  hparams = jax.device_put(make_hparams(cfg), programs.scalar_sharding)
  rows = jax.device_put(dict(batch), programs.batch_sharding)
  state = programs.init(hparams)

  def step():
    nonlocal state
    state, metrics = programs.train(state, rows, hparams)
    return metrics

  for _ in range(3):  # the first compiles; a GAN's first ones are of its other phases
    metrics = jax.block_until_ready(step())
  on_cpu = jax.default_backend() == "cpu"
  return {
    "seconds": bench.seconds_per_call(step, jax.block_until_ready, options.steps, on_cpu),
    "tokens_per_step": float(metrics["train/tokens"]),
    "flops_per_token": run_flops_per_token(cfg, "exact"),
    "parameters": run_counts(cfg).total,
    **bench.about(),
  }


def time_torch(options, compiled: bool) -> dict:
  """The same model by torch, on the same arrays."""
  import torch

  torch.manual_seed(0)
  cfg, _, batch = make(options.family, options.set)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.set_float32_matmul_precision("high")
  on_device = {name: torch.tensor(array).to(device) for name, array in dict(batch).items()}
  on_device = {n: a.long() if a.dtype == torch.int32 else a for n, a in on_device.items()}
  model = family_peers.PEERS[options.family](cfg).to(device)
  optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.95), fused=True)
  forward = torch.compile(model) if compiled else model

  def step():
    loss = forward(on_device)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()

  for _ in range(3):
    step().item()
  seconds = bench.seconds_per_call(step, torch.Tensor.item, options.steps, device == "cpu")
  name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
  parameters = sum(p.numel() for p in model.parameters())
  return {"seconds": seconds, "parameters": parameters, **bench.about(name)}


def time_peak(options, by_torch: bool) -> dict:
  """FLOP/s of a product of 2048 x 2048 matrices in float32, the fastest of ten."""
  n = 2048
  if by_torch:
    import torch

    a = torch.rand(n, n)
    call, wait = lambda: a @ a, lambda x: x
  else:
    import jax
    import jax.numpy as jnp

    a = jnp.ones((n, n))
    multiply = jax.jit(jnp.matmul)
    call, wait = lambda: multiply(a, a), jax.block_until_ready
  wait(call())
  times = []
  for _ in range(10):
    start = time.perf_counter()
    wait(call())
    times.append(time.perf_counter() - start)
  return {"flops_per_sec": 2 * n**3 / min(times)}


WORKERS = {
  "isoflop": time_isoflop,
  "torch": lambda options: time_torch(options, False),
  "torch.compile": lambda options: time_torch(options, True),
  "peak": lambda options: time_peak(options, False),
  "peak-torch": lambda options: time_peak(options, True),
}


if __name__ == "__main__":
  main()
