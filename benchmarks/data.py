"""Data speed: MB/s from documents to tokens by tokenizer, batches/s by shape, and against what a model eats.

By default on the embedded docstrings; --source takes any other, e.g. a glob of large files. The last table
times batches of a size of configs/ladder.py beside train.py's own step on them.

examples:
  python benchmarks/data.py
  python benchmarks/data.py --source "text:books/*.gz" --tokenizer bpe --size 10m,30m
"""

import json
import pathlib
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import bench
from configs import ladder
from configs.default import get_config
from lm.config.schema import DataConfig
from lm.data.batches import TrainBatches
from lm.data.cache import open_corpus

# name: (seq_len, batch_size, changes of the data config)
SHAPES = {
  "default": (256, 16, {}),
  "documents": (256, 16, {"cross_documents": False}),
  "unpacked": (256, 16, {"pack": False}),
  "short": (64, 12, {}),
  "long": (2048, 64, {}),
}


def main():
  parser = bench.make_parser(__doc__)
  parser.add_argument("--source", default="docstrings", help="a member of data.sources")
  parser.add_argument("--tokenizer", default="byte,char,word,bpe", help="with commas")
  parser.add_argument("--shape", default=",".join(SHAPES), help=f"of {', '.join(SHAPES)}")
  parser.add_argument("--size", default="1m", help=f"of {', '.join(ladder.LADDER)}, with commas")
  parser.add_argument("--seconds", type=float, default=1.0, help="of batches for each shape")
  parser.add_argument("--steps", type=int, default=2, help="of training for each size, timed")
  parser.add_argument("--cache", help="folder of token caches; a new one, and built, if not given")
  options = parser.parse_args()
  if options.worker:
    print(json.dumps(WORKERS[options.worker](options)))
    return
  with tempfile.TemporaryDirectory() as cache:
    options.cache = options.cache or cache
    for row in (*build_rows(options), *batch_rows(options), *appetite_rows(options)):
      about = {"source": options.source, "set": options.set}
      bench.append(options.out, "data", about | bench.about("host") | row)


def build_rows(options):
  """Builds and opens the corpus in a process for each tokenizer, so that memory is its own."""
  print(
    f"{'tokenizer':<12}{'MB':>8}{'tokens':>12}{'build s':>9}{'MB/s':>8}{'open s':>8}{'peak MB':>9}"
  )
  for tokenizer in options.tokenizer.split(","):
    row = bench.run_worker("build", options, tokenizer=tokenizer)
    if "error" in row:
      raise SystemExit(f"{tokenizer}: {row['error']}")
    print(f"{tokenizer:<12}{row['megabytes']:>8.1f}{row['tokens']:>12,}{row['build_seconds']:>9.2f}"
          f"{row['megabytes'] / row['build_seconds']:>8.1f}{row['open_seconds']:>8.3f}"
          f"{row['peak_megabytes']:>9.0f}", flush=True)  # fmt: skip
    yield row


def batch_rows(options):
  print(f"\n{'shape':<12}{'seq_len':>8}{'batch':>7}{'batches/s':>11}{'M tokens/s':>12}")
  for name in options.shape.split(","):
    seq_len, batch_size, changes = SHAPES[name]
    cfg = data_config(options.source, "byte", options.cache, **changes)
    rate = batches_per_second(cfg, seq_len, batch_size, options.seconds)
    row = {"shape": name, "seq_len": seq_len, "batch_size": batch_size, "batches_per_second": rate}
    millions = rate * seq_len * batch_size / 1e6
    print(f"{name:<12}{seq_len:>8}{batch_size:>7}{rate:>11.0f}{millions:>12.1f}", flush=True)
    yield row


def appetite_rows(options):
  """Batches/s of one thread against steps/s: training waits for data where the ratio nears 1."""
  print(f"\n{'size':<7}{'seq_len':>8}{'batch':>7}{'batches/s':>11}{'steps/s':>10}{'ratio':>9}")
  for size in options.size.split(","):
    row = bench.run_worker("train", options, size=size) | {"size": size}
    if "error" in row:
      print(f"{size:<7}failed: {row['error']}", flush=True)
      yield row
      continue
    cfg = data_config(options.source, "byte", options.cache)
    shape = row["seq_len"], row["batch_size"]
    row["batches_per_second"] = batches_per_second(cfg, *shape, options.seconds)
    row["ratio"] = row["batches_per_second"] / row["steps_per_second"]
    print(f"{size:<7}{shape[0]:>8}{shape[1]:>7}{row['batches_per_second']:>11.0f}"
          f"{row['steps_per_second']:>10.2f}{row['ratio']:>9.0f}", flush=True)  # fmt: skip
    yield row


def batches_per_second(cfg: DataConfig, seq_len: int, batch_size: int, seconds: float) -> float:
  """Of one thread, as the loop has it, for so many seconds."""
  batches = TrainBatches(open_corpus(cfg, quiet=True), cfg, seq_len, batch_size)
  step, start = 0, time.perf_counter()
  while time.perf_counter() - start < seconds:
    batches.at(step)
    step += 1
  return step / (time.perf_counter() - start)


def time_training(options) -> dict:
  """Steps/s of train.py's step for a size of the ladder, on random tokens."""
  config = ladder.get_config(options.size)
  names = ("width", "depth", "heads", "seq_len")
  changes = {f"model.{name}": config.model[name] for name in names}
  changes |= {"train.batch_size": config.train.batch_size}
  cfg = bench.make_config(changes, options.set)
  import jax

  from lm.devices import sharding
  from lm.setup.hparams import make_hparams
  from lm.training.programs import make_programs

  programs = make_programs(cfg, sharding.make_mesh(cfg.mesh))
  hparams = jax.device_put(make_hparams(cfg), programs.scalar_sharding)
  batch = jax.device_put(bench.random_batch(cfg), programs.batch_sharding)
  state = programs.init(hparams)

  def step():
    nonlocal state
    state, metrics = programs.train(state, batch, hparams)
    return metrics

  jax.block_until_ready(step())
  on_cpu = jax.default_backend() == "cpu"
  seconds = bench.seconds_per_call(step, jax.block_until_ready, options.steps, on_cpu)
  return {
    "steps_per_second": 1 / seconds,
    "seq_len": cfg.model.seq_len,
    "batch_size": cfg.train.batch_size,
    "n_devices": jax.device_count(),
    **bench.about(),
  }


def build(options) -> dict:
  """Seconds to build and to open a corpus, and the memory it took."""
  cfg = data_config(options.source, options.tokenizer, options.cache)
  start = time.perf_counter()
  open_corpus(cfg, quiet=True)
  built = time.perf_counter()
  corpus = open_corpus(cfg, quiet=True)
  opened = time.perf_counter()
  stores = [*corpus.train, corpus.val]
  return {
    "tokenizer": options.tokenizer,
    "megabytes": sum(store.n_bytes for store in stores) / 1e6,
    "tokens": sum(store.n_tokens for store in stores),
    "build_seconds": built - start,
    "open_seconds": opened - built,
    "peak_megabytes": bench.peak_rss() / 2**20,
    "fingerprint": corpus.fingerprint,
  }


def data_config(source, tokenizer, cache, **changes):
  config = get_config().data.to_dict()
  changes = {"sources": (source,), "tokenizer": tokenizer, "cache_dir": cache, "seed": 0} | changes
  return DataConfig(**config | {"val_split": "tail"} | changes)


WORKERS = {"build": build, "train": time_training}

if __name__ == "__main__":
  main()
