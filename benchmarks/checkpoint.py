"""Checkpoint speed: seconds that training is blocked by a save, until it is on disk, and to restore it.

The state is train.py's own: parameters and AdamW's two moments, 12 bytes a parameter. With --peer torch, the
same parameters and moments go through torch.save and torch.load, which block all the while.

examples:
  python benchmarks/checkpoint.py
  python benchmarks/checkpoint.py --size 10m,100m --folder /mnt/bucket --peer torch
"""

import json
import pathlib
import statistics
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import bench


def main():
  from configs.ladder import LADDER

  parser = bench.make_parser(__doc__, peers=["torch"])
  parser.add_argument("--size", default="0.1m,1m,10m", help=f"of {', '.join(LADDER)}, with commas")
  parser.add_argument("--saves", type=int, default=4, help="timed; the median counts")
  parser.add_argument("--folder", help="where to save; a temporary one if not given")
  options = parser.parse_args()
  if options.worker:
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
      print(json.dumps(WORKERS[options.worker](options, pathlib.Path(folder))))
    return
  unknown = [size for size in options.size.split(",") if size not in LADDER]
  if unknown:
    parser.error(f"size={unknown[0]}: no such size; choose from {', '.join(LADDER)}")
  print(f"{'size':<7}{'who':<9}{'MB':>8}{'blocked s':>11}{'on disk s':>11}{'restore s':>11}"
        f"{'GB/s written':>14}{'blocked ratio':>15}")  # fmt: skip
  for size in options.size.split(","):
    base = None
    for who in ["isoflop", *options.peer]:
      row = bench.run_worker(who, options, size=size) | {"who": who, "size": size}
      row["set"] = options.set
      if "error" in row:
        print(f"{size:<7}{who:<9}failed: {row['error']}", flush=True)
      else:
        row["ratio"] = base and row["blocked_seconds"] / base["blocked_seconds"]
        ratio = f"{row['ratio']:>15.1f}" if base else ""
        print(f"{size:<7}{who:<9}{row['bytes'] / 1e6:>8.1f}{row['blocked_seconds']:>11.3f}"
              f"{row['disk_seconds']:>11.3f}{row['restore_seconds']:>11.3f}"
              f"{row['bytes'] / row['disk_seconds'] / 1e9:>14.2f}{ratio}", flush=True)  # fmt: skip
        base = base or row
      bench.append(options.out, "checkpoint", row)


def time_isoflop(options, folder: pathlib.Path) -> dict:
  """Saves with train.py's Checkpointer, each after the one before is on disk."""
  from configs.ladder import get_config

  sizes = get_config(options.size).model.to_dict()
  names = ("width", "depth", "heads", "seq_len")
  changes = {f"model.{name}": sizes[name] for name in names} | {"model.vocab_size": 2048}
  cfg = bench.make_config(changes, options.set)
  import jax

  from lm.devices import sharding
  from lm.runs.checkpoint import Checkpointer
  from lm.setup.hparams import make_hparams
  from lm.training.programs import make_programs

  programs = make_programs(cfg, sharding.make_mesh(cfg.mesh))
  state = programs.init(jax.device_put(make_hparams(cfg), programs.scalar_sharding))
  jax.block_until_ready(state)
  checkpoints = Checkpointer(folder, cfg.checkpoint)
  blocked, on_disk = [], []
  for step in range(1, options.saves + 2):
    start = time.perf_counter()
    checkpoints.save(state, step)
    blocked.append(time.perf_counter() - start)
    checkpoints.wait()
    on_disk.append(time.perf_counter() - start)
  start = time.perf_counter()
  jax.block_until_ready(checkpoints.restore(programs.run_shape, step))
  restore = time.perf_counter() - start
  checkpoints.close()
  return {
    "blocked_seconds": statistics.median(blocked[1:]),
    "first_blocked_seconds": blocked[0],
    "disk_seconds": statistics.median(on_disk[1:]),
    "restore_seconds": restore,
    "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(state)),
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
    "n_devices": jax.device_count(),
    **bench.about(),
  }


def time_torch(options, folder: pathlib.Path) -> dict:
  """torch.save of as many float32 numbers, in matrices as large as a layer's."""
  import torch

  from lm.cost.parameters import param_counts
  from lm.setup.load import load_config
  from lm.setup.resolve import resolve_model

  cfg = load_config(str(ROOT / f"configs/ladder.py:{options.size}"))
  n_params = param_counts(resolve_model(cfg.model, 2048)).total
  device = "cuda" if torch.cuda.is_available() else "cpu"
  row = cfg.model.width**2
  tensors = [torch.rand(3, min(row, n_params - i), device=device) for i in range(0, n_params, row)]
  path, times = folder / "state.pt", []
  for _ in range(options.saves + 1):
    start = time.perf_counter()
    torch.save(tensors, path)
    times.append(time.perf_counter() - start)
  start = time.perf_counter()
  torch.load(path, map_location=device)
  restore = time.perf_counter() - start
  return {
    "blocked_seconds": statistics.median(times[1:]),
    "first_blocked_seconds": times[0],
    "disk_seconds": statistics.median(times[1:]),
    "restore_seconds": restore,
    "bytes": sum(t.nbytes for t in tensors),
    "parameters": n_params,
    "n_devices": 1,
    **bench.about(torch.cuda.get_device_name() if device == "cuda" else "cpu"),
  }


WORKERS = {"isoflop": time_isoflop, "torch": time_torch}

if __name__ == "__main__":
  main()
