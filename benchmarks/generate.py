"""Generation speed: tokens/s of prefill (reading prompts) and of decoding, over batches and prompt lengths.

Greedy, random weights, GPT-2's block; prompt and new tokens fill the row's positions. Prefill is the time
to the first token, decoding what each further one takes. With --peer transformers, the same shape goes
through transformers' generate in the same run: as it comes, and on CUDA with its static cache and
torch.compile too.

examples:
  python benchmarks/generate.py
  python benchmarks/generate.py --batch 4 --peer transformers
  python benchmarks/generate.py --shape 124m --dtype bfloat16 --batch 1,32 --prompt 128,896
"""

import json
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import bench

# name: (depth, width, heads, mlp_dim, vocab_size, positions)
SHAPES = {
  "tiny": (2, 64, 2, 256, 512, 256),
  "W": (6, 384, 6, 1536, 8192, 256),
  "124m": (12, 768, 12, 3072, 50304, 1024),
}
NAMES = ("depth", "width", "heads", "mlp_dim", "vocab_size", "seq_len")


def main():
  parser = bench.make_parser(__doc__, peers=["transformers"])
  parser.add_argument("--shape", default="W", choices=SHAPES, help="of the model")
  parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
  parser.add_argument("--batch", default="1,16", help="rows together, with commas")
  parser.add_argument("--prompt", default="16,128", help="tokens, multiples of 16, with commas")
  parser.add_argument("--tokens", type=int, default=64, help="new ones, at least 2")
  parser.add_argument("--repeats", type=int, default=3, help="timed; the fastest counts")
  options = parser.parse_args()
  if options.worker:
    print(json.dumps(WORKERS[options.worker](options)))
    return
  for prompt in options.prompt.split(","):
    if int(prompt) % 16 or int(prompt) + options.tokens > SHAPES[options.shape][-1]:
      parser.error(f"prompt={prompt}: must be a multiple of 16 and leave {options.tokens} of "
                   f"{SHAPES[options.shape][-1]} positions free; try 16")  # fmt: skip
  print(f"{'batch':<7}{'prompt':<8}{'who':<22}{'prefill tok/s':>14}{'decode tok/s':>14}"
        f"{'prefill ratio':>15}{'decode ratio':>14}")  # fmt: skip
  for batch in options.batch.split(","):
    for prompt in options.prompt.split(","):
      run_setting(options, batch, prompt)


def run_setting(options, batch: str, prompt: str) -> None:
  """The rows of one batch and prompt length: ours, then the peer's."""
  base = run_row(options, "isoflop", batch, prompt)
  if options.peer and base:
    peers = ["transformers"] + ["transformers.compile"] * (base["platform"] == "gpu")
    for who in peers:
      run_row(options, who, batch, prompt, base)


def run_row(options, who: str, batch: str, prompt: str, base: dict | None = None) -> dict | None:
  """Runs one row in a fresh process, prints it, appends its JSON line; None if it failed."""
  row = bench.run_worker(who, options, batch=batch, prompt=prompt)
  row |= {"who": who, "shape": options.shape, "dtype": options.dtype, "batch": int(batch),
          "prompt": int(prompt), "tokens": options.tokens, "set": options.set}  # fmt: skip
  name, ratios = f"{batch:<7}{prompt:<8}{who:<22}", ""
  if "error" in row:
    print(f"{name}failed: {row['error']}", flush=True)
    bench.append(options.out, "generate", row)
    return None
  if base:
    row |= {f"{k}_ratio": base[k] / row[k] for k in ("prefill", "decode")}
    ratios = f"{row['prefill_ratio']:>15.2f}{row['decode_ratio']:>14.2f}"
  print(f"{name}{row['prefill']:>14,.0f}{row['decode']:>14,.0f}{ratios}", flush=True)
  bench.append(options.out, "generate", row)
  return row


def time_isoflop(options) -> dict:
  """lm.generate's own loop, with random parameters."""
  changes = {"norm": "layernorm", "activation": "gelu", "positions": "learned", "bias": True}
  changes |= dict(zip(NAMES, SHAPES[options.shape], strict=True)) | {"dtype": options.dtype}
  cfg = bench.make_config({f"model.{k}": v for k, v in changes.items()}, options.set)
  import jax
  import numpy as np

  from lm.models.decoding import Sampling, make_generator
  from lm.models.registry import make_model
  from lm.models.trees import init_params

  batch, prompt = int(options.batch), int(options.prompt)
  params = init_params(make_model(cfg.model), jax.random.key(0))
  rng = np.random.default_rng(0)
  prompts = rng.integers(0, cfg.model.vocab_size, (batch, prompt)).tolist()
  greedy = Sampling(temperature=0.0)
  generators = {n: make_generator(cfg.model, n) for n in (1, options.tokens)}

  def generate(n):
    rows = generators[n](params, prompts, greedy, 0, -1)  # no token is -1: no row ends early
    assert all(len(row) == n for row in rows)

  return rates(options, generate) | {"platform": jax.default_backend()} | bench.about()


def time_transformers(options, compiled: bool) -> dict:
  """transformers' GPT-2 with random weights, sdpa attention, in the same dtype."""
  import torch
  import transformers

  depth, width, heads, mlp_dim, vocab, positions = SHAPES[options.shape]
  transformers.logging.set_verbosity_error()
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.set_float32_matmul_precision("high")
  torch.manual_seed(0)
  config = transformers.GPT2Config(
    vocab_size=vocab, n_positions=positions, n_embd=width, n_layer=depth, n_head=heads,
    n_inner=mlp_dim, attn_implementation="sdpa", bos_token_id=None, eos_token_id=None,
  )  # fmt: skip
  model = transformers.GPT2LMHeadModel(config).to(device, getattr(torch, options.dtype)).eval()
  inputs = torch.randint(vocab, (int(options.batch), int(options.prompt)), device=device)
  mask = torch.ones_like(inputs)
  static = {"cache_implementation": "static"} if compiled else {}  # generate compiles for it

  @torch.inference_mode()
  def generate(n):
    out = model.generate(
      inputs, attention_mask=mask, max_new_tokens=n, do_sample=False, pad_token_id=0, **static
    )
    assert out.shape[1] == inputs.shape[1] + n
    if device == "cuda":
      torch.cuda.synchronize()

  name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
  return rates(options, generate) | {"platform": device} | bench.about(name)


def rates(options, generate) -> dict[str, float]:
  """Tokens/s of prefill and decoding, from runs of 1 and of all new tokens; the first ones compile."""
  seconds = {}
  for n in (1, options.tokens):
    start = time.perf_counter()
    generate(n)
    first = time.perf_counter() - start
    generate(n)
    times = []
    for _ in range(options.repeats):
      start = time.perf_counter()
      generate(n)
      times.append(time.perf_counter() - start)
    seconds[n] = min(times)
  batch = int(options.batch)
  further = max(seconds[options.tokens] - seconds[1], 1e-9)
  return {
    "prefill": batch * int(options.prompt) / seconds[1],
    "decode": batch * (options.tokens - 1) / further,
    "all_seconds": seconds[options.tokens],
    "first_seconds": first,
  }


WORKERS = {
  "isoflop": time_isoflop,
  "transformers": lambda options: time_transformers(options, compiled=False),
  "transformers.compile": lambda options: time_transformers(options, compiled=True),
}

if __name__ == "__main__":
  main()
