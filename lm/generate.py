"""Continues text with a trained run: one compiled loop around the model's key-value cache.

examples:
  python -m lm.generate --workdir runs/default --prompt "Returns the "
  python -m lm.generate --workdir runs/default --prompt_file prompts.txt --temperature 0 --tokens 32
  python -m lm.generate --workdir runs/default --interactive --top_p 0.9
"""

import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lm import flags, models, rundir
from lm.checkpoint import load_params
from lm.config import Config, ConfigError, ModelConfig
from lm.data.tokenizers import load_tokenizer
from lm.step import keep_compiled

NEG = -1e30  # below any logit, and safe to subtract from


class Sampling(NamedTuple):
  """How the next token is chosen. Traced: another value needs no compilation.

  The order is: repetition penalty, temperature, top-k, top-p, min-p, draw.
  """

  temperature: float = 1.0  # 0 = greedy
  top_k: int = 0  # keep the k likeliest; 0 = all
  top_p: float = 1.0  # keep the smallest set of likeliest tokens with at least this mass
  min_p: float = 0.0  # keep tokens at least this fraction as likely as the likeliest
  repetition_penalty: float = 1.0  # divides positive and multiplies negative logits of seen tokens


def filter_logits(logits_BV: jax.Array, seen_BV: jax.Array, sampling: Sampling) -> jax.Array:
  """Logits of the distribution to draw from; what is excluded is at -1e30. Temperature 0 excludes nothing.

  top-p: Holtzman et al. 2020, arXiv:1904.09751; min-p: Nguyen et al. 2024, arXiv:2407.01082; repetition
  penalty: Keskar et al. 2019, arXiv:1909.05858 §4.1.

  Args:
    logits_BV: float32.
    seen_BV: bool, tokens in the prompt or generated so far.
    sampling: scalars.
  """
  penalty = sampling.repetition_penalty
  penalised = jnp.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
  logits_BV = jnp.where(seen_BV, penalised, logits_BV)
  logits_BV = logits_BV / jnp.maximum(sampling.temperature, 1e-6)
  cuts = (sampling.top_k > 0) | (sampling.top_p < 1) | (sampling.min_p > 0)
  sort = cuts & (sampling.temperature > 0)  # which takes longer than a small model
  cut = functools.partial(_cut, sampling=sampling)
  return jax.lax.cond(sort, cut, lambda logits_BV: logits_BV, logits_BV)


def _cut(logits_BV: jax.Array, sampling: Sampling) -> jax.Array:
  """Top-k, top-p and min-p."""
  order_BV = jnp.argsort(logits_BV, axis=-1, descending=True)
  sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
  vocab = logits_BV.shape[-1]
  rank_V = jnp.expand_dims(jnp.arange(vocab), 0)
  top_k = jnp.where(sampling.top_k > 0, sampling.top_k, vocab)
  kept_BV = rank_V < top_k
  probs_BV = jax.nn.softmax(jnp.where(kept_BV, sorted_BV, NEG), axis=-1)
  before_BV = jnp.cumsum(probs_BV, axis=-1) - probs_BV  # mass of likelier tokens
  kept_BV &= (before_BV < sampling.top_p) | (rank_V == 0)
  kept_BV &= probs_BV >= sampling.min_p * probs_BV[:, :1]
  rows_B1 = jnp.expand_dims(jnp.arange(logits_BV.shape[0]), 1)
  keep_BV = jnp.zeros_like(kept_BV).at[rows_B1, order_BV].set(kept_BV)
  return jnp.where(keep_BV, logits_BV, NEG)


@functools.lru_cache(maxsize=8)
def make_generator(
  cfg: ModelConfig, max_new: int, mesh: Mesh | None = None
) -> Callable[..., list[list[int]]]:
  """A compiled `generate(params, prompts, sampling, seed, eot_id) -> new tokens of each prompt`.

  Prompts of different lengths go together: each row has its own place in the cache. A row that draws
  eot_id is finished and ends before it. Greedy output does not depend on what else is
  in the batch.

  Args:
    cfg: resolved model config.
    max_new: tokens to draw at most; prompt and new tokens together must fit cfg.seq_len.
    mesh: what the parameters lie over; None = one device.
  """
  model = models.make_model(cfg)
  everywhere = None if mesh is None else NamedSharding(mesh, PartitionSpec())

  @functools.partial(jax.jit, static_argnames="eot_id", out_shardings=everywhere)
  def run(params, prompts_BP, lengths_B, sampling, seed, eot_id):
    key = jax.random.key(seed)
    batch, width = prompts_BP.shape
    cache = models.init_cache(cfg, batch, width + max_new)
    variables = {"params": params}
    x_BPD, cache = model.apply(variables, prompts_BP, cache, method="extend")
    cache = cache._replace(index=lengths_B)  # what the padding wrote is overwritten
    last_B11 = jnp.expand_dims(lengths_B - 1, (1, 2))
    x_B1D = jnp.take_along_axis(x_BPD, last_B11, axis=1)
    logits_BV = model.apply(variables, x_B1D, method="logits")[:, 0]
    seen_BV = jnp.zeros((batch, cfg.vocab_size), bool)
    real_BP = jnp.expand_dims(jnp.arange(width), 0) < jnp.expand_dims(lengths_B, 1)
    rows_B1 = jnp.expand_dims(jnp.arange(batch), 1)
    seen_BV = seen_BV.at[rows_B1, prompts_BP].max(real_BP)

    def draw(logits_BV, seen_BV, key):
      filtered_BV = filter_logits(logits_BV, seen_BV, sampling)
      random = lambda: jax.random.categorical(key, filtered_BV, axis=-1)
      greedy = lambda: filtered_BV.argmax(axis=-1)
      return jax.lax.cond(sampling.temperature > 0, random, greedy).astype(jnp.int32)

    def body(carry):
      step, cache, logits_BV, seen_BV, done_B, lengths_B, tokens_BN = carry
      next_B = draw(logits_BV, seen_BV, jax.random.fold_in(key, step))
      done_B |= next_B == eot_id
      tokens_BN = tokens_BN.at[:, step].set(jnp.where(done_B, eot_id, next_B))
      lengths_B += (~done_B).astype(jnp.int32)
      seen_BV = seen_BV.at[rows_B1[:, 0], next_B].set(True)
      logits_B1V, cache = model.apply(variables, jnp.expand_dims(next_B, 1), cache, method="decode")
      return step + 1, cache, logits_B1V[:, 0], seen_BV, done_B, lengths_B, tokens_BN

    def going(carry):
      return (carry[0] < max_new) & ~carry[4].all()

    tokens_BN = jnp.full((batch, max_new), eot_id, jnp.int32)
    none_B = jnp.zeros(batch, bool)
    carry = (0, cache, logits_BV, seen_BV, none_B, jnp.zeros(batch, jnp.int32), tokens_BN)
    carry = jax.lax.while_loop(going, body, carry)
    return carry[6], carry[5]

  def generate(
    params, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int, eot_id: int
  ):
    longest = max(len(prompt) for prompt in prompts)
    if longest + max_new > cfg.seq_len:
      raise ConfigError(
        f"tokens={max_new}: prompt ({longest} tokens) and new tokens must fit the model's "
        f"{cfg.seq_len} positions; use at most {max(cfg.seq_len - longest, 0)} or a shorter prompt"
      )
    width = min(-(-longest // 16) * 16, cfg.seq_len - max_new)  # few shapes, few compilations
    padded = np.full((len(prompts), width), eot_id, np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
      row[: len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    numbers = Sampling(
      *(np.asarray(v, np.int32 if isinstance(v, int) else np.float32) for v in sampling)
    )
    tokens, counts = run(params, padded, lengths, numbers, np.int32(seed), eot_id)
    return [
      list(map(int, t[:n])) for t, n in zip(np.asarray(tokens), np.asarray(counts), strict=True)
    ]

  return generate


def make_sampler(
  cfg: Config, tokenizer, mesh: Mesh | None = None
) -> Callable[[Any, int], str] | None:
  """`sample(params, seed) -> text` after cfg.sample.prompt; None where samples are off.

  The parameters stay where they are on a mesh; without one they are brought to one device.
  """
  if cfg.sample.tokens == 0:
    return None
  prompt = [tokenizer.start_id, *tokenizer.encode(cfg.sample.prompt)]
  room = cfg.model.seq_len - len(prompt)
  if room < 1:
    raise ConfigError(
      f"sample.prompt={cfg.sample.prompt}: {len(prompt)} tokens leave no room in model.seq_len="
      f"{cfg.model.seq_len}; shorten it"
    )
  generate = make_generator(cfg.model, min(cfg.sample.tokens, room), mesh)
  sampling = Sampling(temperature=float(cfg.sample.temperature))

  def sample(params, seed):
    if mesh is None:
      params = jax.device_put(params, jax.local_devices()[0])
    return tokenizer.decode(generate(params, [prompt], sampling, seed, tokenizer.eot_id)[0])

  return sample


def main(argv: list[str]) -> int:
  parser = flags.Parser(prog="python -m lm.generate", description=__doc__)
  parser.add_argument("--workdir", required=True, help="run directory")
  parser.add_argument("--checkpoint", default="best", help="best, latest or a step")
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument("--prompt", help="text to continue")
  what.add_argument("--prompt_file", help="file with one prompt a line")
  what.add_argument("--interactive", action="store_true", help="read prompts from the terminal")
  parser.add_argument("--tokens", type=int, help="new tokens at most; 128 if they fit")
  parser.add_argument("--n", type=int, default=1, help="samples a prompt")
  parser.add_argument("--temperature", type=float, default=0.8, help="0 = greedy")
  parser.add_argument("--top_k", type=int, default=0, help="keep the k likeliest; 0 = all")
  parser.add_argument("--top_p", type=float, default=1.0, help="keep this probability mass")
  parser.add_argument(
    "--min_p", type=float, default=0.0, help="drop below this times the likeliest"
  )
  parser.add_argument("--repetition_penalty", type=float, default=1.0, help="above 1 repeats less")
  parser.add_argument("--stop", help="cut the text before this string")
  parser.add_argument("--seed", type=int, default=0, help="of the draws")
  parser.add_argument("--json", action="store_true", help="one JSON object a sample")
  options, unknown = parser.parse_known_args(argv)
  flags.reject_unknown(parser, unknown)
  sampling = check_sampling(options)
  workdir = pathlib.Path(options.workdir)
  cfg = rundir.read_config(workdir)
  keep_compiled(cfg.data.cache_dir)
  params, step = load_params(workdir, options.checkpoint)
  tokenizer = load_tokenizer(workdir / "tokenizer")

  def answer(prompts: Sequence[str], seed: int) -> None:
    encoded = [
      [tokenizer.start_id, *tokenizer.encode(p)] for p in prompts for _ in range(options.n)
    ]
    room = cfg.model.seq_len - max(map(len, encoded))
    max_new = options.tokens if options.tokens is not None else max(1, min(128, room))
    generate = make_generator(cfg.model, max_new)
    drawn = generate(params, encoded, sampling, seed, tokenizer.eot_id)
    for index, ids in enumerate(drawn):
      prompt, text = prompts[index // options.n], tokenizer.decode(ids)
      if options.stop and options.stop in text:
        text = text[: text.index(options.stop)]
      if options.json:
        print(json.dumps({"prompt": prompt, "text": text, "tokens": len(ids), "step": step}))
      else:
        print(prompt + text, end="\n\n" if len(drawn) > 1 else "\n", flush=True)

  if options.interactive:
    turn = 0
    while (prompt := _ask()) is not None:
      answer([prompt], options.seed + turn)
      turn += 1
  elif options.prompt_file:
    prompts = flags.read_text("prompt_file", options.prompt_file).splitlines()
    if not prompts:
      raise ConfigError(f"prompt_file={options.prompt_file}: must hold a prompt; add a line")
    answer(prompts, options.seed)
  else:
    answer([options.prompt], options.seed)
  return 0


def check_sampling(options) -> Sampling:
  """Sampling from parsed options; ConfigError where a value makes no sense."""
  rules = {
    "tokens": (options.tokens is None or options.tokens >= 1, "at least 1", "64"),
    "n": (options.n >= 1, "at least 1", "1"),
    "temperature": (0 <= options.temperature < float("inf"), "at least 0", "0.8"),
    "top_k": (options.top_k >= 0, "at least 0 (0 = all)", "40"),
    "top_p": (0 < options.top_p <= 1, "in (0, 1]", "0.9"),
    "min_p": (0 <= options.min_p <= 1, "in [0, 1]", "0.05"),
    "repetition_penalty": (options.repetition_penalty > 0, "greater than 0", "1.2"),
  }
  for name, (holds, rule, remedy) in rules.items():
    if not holds:
      raise ConfigError(f"{name}={getattr(options, name)}: must be {rule}; try {remedy}")
  return Sampling(**{field: getattr(options, field) for field in Sampling._fields})


def _ask() -> str | None:
  try:
    return input("> ")
  except EOFError:
    return None


if __name__ == "__main__":
  flags.run_main(main)
