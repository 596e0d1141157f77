"""Compile time: seconds to compile the train step against depth, with an empty cache and from a kept one.

Layers are scanned, so that a deep model compiles like a shallow one; `--set model.scan_layers=False`
shows the other way. Each number is from a process of its own; "warm" finds what "cold" left behind.

examples:
  python benchmarks/compile.py
  python benchmarks/compile.py --depth 6,24 --width 512 --set mesh.fsdp=-1 --set mesh.replica=1
"""

import json
import os
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import bench


def main():
  parser = bench.make_parser(__doc__)
  parser.add_argument("--depth", default="6,12,24", help="blocks, with commas")
  parser.add_argument("--width", type=int, default=128, help="of the model")
  parser.add_argument("--repeats", type=int, default=1, help="of each depth; the fastest counts")
  parser.add_argument("--cache", help="folder of compiled programs; a new one for each row")
  options = parser.parse_args()
  if options.worker:
    print(json.dumps(time_compile(options)))
    return
  os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
  print(f"{'depth':<8}{'trace s':>9}{'cold s':>9}{'warm s':>9}{'cold ratio':>12}   "
        f"width {options.width}, load average {bench.load()}")  # fmt: skip
  first = None
  for depth in options.depth.split(","):
    row = time_depth(options, depth)
    if "error" not in row:
      first = first or row
      row["ratio"] = row["cold_seconds"] / first["cold_seconds"]
      print(f"{depth:<8}{row['trace_seconds']:>9.2f}{row['cold_seconds']:>9.2f}"
            f"{row['warm_seconds']:>9.2f}{row['ratio']:>12.2f}", flush=True)  # fmt: skip
    else:
      print(f"{depth:<8}failed: {row['error']}", flush=True)
    about = {"depth": int(depth), "width": options.width, "set": options.set}
    bench.append(options.out, "compile", row | about)


def time_depth(options, depth: str) -> dict:
  """The fastest cold and warm compilation of one depth."""
  rows = []
  for _ in range(options.repeats):
    with tempfile.TemporaryDirectory() as cache:
      cold = bench.run_worker("compile", options, depth=depth, cache=cache)
      warm = bench.run_worker("compile", options, depth=depth, cache=cache)
    if "error" in cold or "error" in warm:
      return cold if "error" in cold else warm
    rows.append(cold | {"cold_seconds": cold["seconds"], "warm_seconds": warm["seconds"]})
  fastest = {k: min(row[k] for row in rows) for k in ("cold_seconds", "warm_seconds")}
  return {k: v for k, v in rows[0].items() if k != "seconds"} | fastest


def time_compile(options) -> dict:
  """Seconds to trace and to compile the step of train.py, with the cache that train.py keeps."""
  cfg = bench.make_config(
    {
      "model.depth": int(options.depth),
      "model.width": options.width,
      "model.seq_len": 128,
      "train.batch_size": 8,
    },
    options.set,
  )
  import jax

  from lm.devices import sharding
  from lm.setup.hparams import make_hparams
  from lm.training.compile_cache import keep_compiled
  from lm.training.programs import make_programs

  keep_compiled(options.cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  programs = make_programs(cfg, sharding.make_mesh(cfg.mesh))
  start = time.perf_counter()
  lowered = programs.train.lower(programs.run_shape, bench.random_batch(cfg), make_hparams(cfg))
  traced = time.perf_counter()
  lowered.compile()
  return {
    "trace_seconds": traced - start,
    "seconds": time.perf_counter() - traced,
    "n_devices": jax.device_count(),
    **bench.about(),
  }


if __name__ == "__main__":
  main()
