"""What the benchmarks share: options, a fresh process for each row, random batches, JSON lines."""

import argparse
import json
import os
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

from lm.devices.host import with_large_pages

ROOT = pathlib.Path(__file__).parent.parent
OURS = ("worker", "out", "peer", "peer_python")  # options that are not passed on to a row's process
PEERS = ("torch", "transformers")  # whose versions a row names where they took part


def make_parser(doc: str, peers: Sequence[str] = ()) -> argparse.ArgumentParser:
  """The options that benchmarks have in common; --peer where there are any."""
  parser = argparse.ArgumentParser(
    description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--set", action="append", default=[], help="key=value of the config, repeated"
  )
  parser.add_argument("--out", default="runs/benchmarks.jsonl", help="JSON lines are appended here")
  parser.add_argument("--worker", help=argparse.SUPPRESS)  # one row, in a process of its own
  if peers:
    parser.add_argument(
      "--peer",
      type=lambda text: _known(text.split(","), peers),
      default=[],
      help=f"do the same there, in the same run: of {', '.join(peers)}, with commas",
    )
  return parser


def _known(names: Sequence[str], known: Sequence[str]) -> Sequence[str]:
  for name in names:
    if name not in known:
      raise argparse.ArgumentTypeError(f"{name} is not one of {', '.join(known)}")
  return names


def run_worker(
  worker: str, options: argparse.Namespace, python: str | None = None, **changes: object
) -> dict[str, Any]:
  """One row from a fresh process of the same script, so that one's memory and caches are not another's.

  Args:
    worker: what the script's --worker calls it.
    options: those of this process, passed on.
    python: the interpreter; this process's own if None.
    changes: options of the worker that differ.

  Returns:
    The worker's row, or {"error": the last line it wrote}.
  """
  command = [python or sys.executable, sys.argv[0], "--worker", worker]
  for name, value in (vars(options) | changes).items():
    for one in value if isinstance(value, list) else [value]:
      if name not in OURS and one is not None and one is not False:
        command += [f"--{name}"] if one is True else [f"--{name}", str(one)]
  done = subprocess.run(command, env=with_large_pages(os.environ), capture_output=True, text=True)
  if done.returncode == 0:
    return json.loads(done.stdout.strip().splitlines()[-1])
  lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
  errors = [line for line in lines if "Error" in line.split(":")[0]]
  return {"error": (errors or lines)[-1]}


def append(out: str, benchmark: str, row: Mapping[str, object]) -> None:
  """One JSON line: the row, when, and under what load; numbers' device and versions are the row's."""
  path = pathlib.Path(out)
  path.parent.mkdir(parents=True, exist_ok=True)
  about = {"benchmark": benchmark, "time": time.time(), "cores": os.cpu_count(), "load": load()}
  with path.open("a") as file:
    file.write(json.dumps(about | dict(row)) + "\n")


def load() -> float:
  """Processes that wanted a core, on average over the last minute."""
  return round(os.getloadavg()[0], 1)


def about(device: str | None = None) -> dict[str, object]:
  """Device, versions and commit, for a row; without a device, jax's."""
  from lm.devices import instructions
  from lm.runs import provenance

  versions = provenance.versions()
  for name in PEERS:
    if name in sys.modules:
      versions[name] = metadata.version(name)
  if device is None:
    import jax

    device = jax.devices()[0].device_kind
  return {
    "device": device,
    "host": platform.machine(),
    "instructions": instructions.vector_set(),
    "versions": versions,
    **provenance.git_state(),
  }


def make_config(changes: Mapping[str, object], settings: Sequence[str]):
  """A resolved config: configs/default.py with a benchmark's changes, then the user's key=value."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  import jax

  from lm.setup.load import load_config
  from lm.setup.resolve import resolve

  overrides = {"data.tokenizer": "byte", "log.wandb": "disabled", **changes}
  overrides |= dict(setting.split("=", 1) for setting in settings)
  return resolve(load_config(str(ROOT / "configs/default.py"), overrides), 257, jax.device_count())


def random_batch(cfg):
  """Host arrays of one training batch: random tokens, all of them predicted."""
  import numpy as np

  shape = (cfg.train.batch_size, cfg.model.seq_len)
  tokens = np.random.default_rng(0).integers(0, cfg.model.vocab_size, (shape[0], shape[1] + 1))
  tokens = tokens.astype(np.int32)
  weights = np.ones(shape, np.float32)
  return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:], "weights": weights}


def seconds_per_call(call: Callable[[], Any], wait: Callable[[Any], Any], n: int, on_cpu: bool):
  """Median seconds of `call`; elsewhere than on a CPU five are sent off before one waits, as a loop does."""
  chunk = 1 if on_cpu else min(5, n)
  times = []
  for _ in range(max(n // chunk, 1)):
    start = time.perf_counter()
    for _ in range(chunk):
      result = call()
    wait(result)
    times.append((time.perf_counter() - start) / chunk)
  return statistics.median(times)


def device_memory() -> dict[str, int]:
  """{"peak_bytes"} of jax's first device, or of the process where it is the host's memory."""
  import jax

  stats = jax.local_devices()[0].memory_stats() or {}
  return {"peak_bytes": stats.get("peak_bytes_in_use", peak_rss())}


def peak_rss() -> int:
  """Bytes of the largest resident set of this process so far."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
