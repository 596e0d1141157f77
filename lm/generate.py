"""Continues text with a trained run, or writes what belongs to a source: one compiled loop around a cache.

examples:
  python -m lm.generate --workdir runs/default --prompt "Returns the "
  python -m lm.generate --workdir runs/default --prompt_file prompts.txt --temperature 0 --tokens 32
  python -m lm.generate --workdir runs/default --interactive --top_p 0.9
  python -m lm.generate --workdir runs/smollm2 --chat --prompt "What is a scaling law?" --temperature 0.2
  python -m lm.generate --workdir runs/vae-sentences --prompt "a man sits" --interpolate "two dogs run" --n 7
  python -m lm.generate --workdir runs/t5 --prompt "A <extra_id_0> sat." --temperature 0
  python -m lm.generate --workdir runs/multi30k --prompt "A man sits on a bench." --beams 5 --n 3

A run that was trained to fill in spans (T5, UL2) reads sentinels, <extra_id_0>, <extra_id_1>, ..., and
modes, as [R], by name in a prompt, and writes sentinels in what it fills in.
"""

from lm.config import interrupts

if __name__ == "__main__":
  interrupts.listen()

import json
import pathlib
import sys
from collections.abc import Callable, Sequence

from lm.config.command_line import Parser, read_text, reject_unknown, run_main, utf8
from lm.config.errors import ConfigError, check_within, is_unicode
from lm.config.schema import Config
from lm.data import templates
from lm.data.templates import Conversation
from lm.data.tokenizers import load_tokenizer
from lm.models.beam import make_beam_search
from lm.models.decoding import Sampling, cut, draw_texts, make_generator, room_after
from lm.models.registry import family_of
from lm.runs import bucket, rundir
from lm.runs.checkpoint import load_params
from lm.runs.load import load
from lm.training.compile_cache import keep_compiled

POINTS = 5  # texts of an interpolation, its ends among them
# Texts a prompt, and beams; more are drawn by several commands with seeds of their own.
MOST = 65536
DRAWS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")


def main(argv: list[str]) -> int:
  parser = Parser(prog="python -m lm.generate", description=__doc__)
  parser.add_argument("--workdir", required=True, help="run directory")
  parser.add_argument("--checkpoint", default="best", help="best, latest or a step")
  what = parser.add_mutually_exclusive_group(required=True)
  what.add_argument(
    "--prompt", type=utf8, help="text to continue, or source to read; T5's may have <extra_id_0>"
  )
  what.add_argument("--prompt_file", help="file with one prompt a line")
  what.add_argument("--interactive", action="store_true", help="read prompts from the terminal")
  parser.add_argument(
    "--chat",
    action="store_true",
    help="a prompt is a user's message, by the run's chat template; "
    "with --interactive the conversation goes on",
  )
  parser.add_argument("--system", type=utf8, help="what the system says before such a conversation")
  parser.add_argument(
    "--interpolate", type=utf8, help="sentence: texts on the way to it from the prompt"
  )
  parser.add_argument("--tokens", type=int, help="new tokens at most; 128 if they fit")
  parser.add_argument("--n", type=int, help="samples a prompt, 1; the n best of --beams; points, 5")
  parser.add_argument("--beams", type=int, default=0, help="beam search of so many; 0 = draws")
  parser.add_argument(
    "--length_penalty", type=float, default=1.0, help="beams: log p / length ** this; 0 = sum"
  )
  parser.add_argument("--temperature", type=float, default=0.8, help="0 = greedy")
  parser.add_argument("--top_k", type=int, default=0, help="keep the k likeliest; 0 = all")
  parser.add_argument("--top_p", type=float, default=1.0, help="keep this probability mass")
  parser.add_argument(
    "--min_p", type=float, default=0.0, help="drop below this times the likeliest"
  )
  parser.add_argument("--repetition_penalty", type=float, default=1.0, help="above 1 repeats less")
  parser.add_argument("--stop", type=utf8, help="texts end before this string")
  parser.add_argument("--seed", type=int, default=0, help="of the draws")
  parser.add_argument("--json", action="store_true", help="one JSON object a sample")
  options, unknown = parser.parse_known_args(argv)
  reject_unknown(parser, unknown)
  check_within("seed", options.seed, "[0, 2147483647]", "0")
  sampling = check_sampling(options)
  check_beams(parser, options)
  check_interpolation(parser, options)
  if options.system is not None and not options.chat:
    raise ConfigError(f"system={options.system}: is of a conversation; add --chat")
  workdir = bucket.local(options.workdir)
  cfg = rundir.read_config(workdir)
  if options.interpolate is not None:
    return _interpolate(options, workdir, cfg)
  if family_of(cfg.model).init_cache is None:
    raise ConfigError(
      f"workdir={workdir}: model.family={cfg.model.family} does not generate text; score it with "
      "python -m lm.evaluate"
    )
  keep_compiled(cfg.data.cache_dir)
  if options.chat:
    templates.template_of_run(workdir, cfg)  # refused before the parameters are read
  run = load(workdir, options.checkpoint)
  params, t = run.params, run.tokenizer
  ending = templates.ending_of(run.template, t) if options.chat else templates.NO_ENDING
  stops = (options.stop, *ending.stops) if options.stop else ending.stops

  def answer(prompts: Sequence[str | Conversation], seed: int) -> str:
    """Prints what is drawn; returns the first text."""
    n = options.n or 1
    copies = 1 if options.beams else n
    encoded = [ids for ids in map(run.reads, prompts) for _ in range(copies)]
    room = room_after(cfg.model, max(map(len, encoded)))
    max_new = options.tokens if options.tokens is not None else max(1, min(128, room))
    if options.beams:
      search = make_beam_search(cfg.model, max_new, options.beams, t.vocab_size)
      eot_id = (*ending.ids, t.eot_id)[0]
      found = search(params, encoded, options.length_penalty, eot_id, t.start_id)
      bests = [best for row in found for best in row[:n]]
      drawn = [cut(best.ids, t, stops) for best in bests]
    else:
      generate = make_generator(cfg.model, max_new, n_tokens=t.vocab_size)
      drawn = draw_texts(generate, params, encoded, sampling, seed, t, stops, ending.ids)
    for index, (ids, text) in enumerate(drawn):
      prompt = prompts[index // n]
      if options.json:
        about = {"text": text, "tokens": len(ids), "step": run.step}
        print(json.dumps({"messages" if options.chat else "prompt": prompt, **about}))
      else:
        alone = not isinstance(prompt, str) or family_of(cfg.model).reads_source
        print(text if alone else prompt + text, end="\n\n" if len(drawn) > 1 else "\n", flush=True)
    return drawn[0].text

  asks = lambda text: templates.asks(text, options.system) if options.chat else text
  if options.interactive:
    return _talk(answer, options)
  elif options.prompt_file:
    prompts = read_text("prompt_file", options.prompt_file).splitlines()
    if not prompts:
      raise ConfigError(f"prompt_file={options.prompt_file}: must hold a prompt; add a line")
    answer([asks(prompt) for prompt in prompts], options.seed)
  else:
    answer([asks(options.prompt)], options.seed)
  return 0


def _talk(answer: Callable[[Sequence[str | Conversation], int], str], options) -> int:
  """Answers lines from the terminal, each with a seed of its own; as one conversation with --chat.

  A line that cannot be answered, as it is too long, is refused and forgotten. The exit code is 2 then.
  """
  said = templates.asks("", options.system)[:-1]
  turn = code = 0
  while (line := _ask()) is not None:
    asked = [*said, {"role": "user", "content": line}] if options.chat else line
    try:
      if not is_unicode(line):
        raise ConfigError(f"prompt={line}: is no text in UTF-8; convert it")
      text = answer([asked], options.seed + turn)
    except ConfigError as error:
      print(error, file=sys.stderr, flush=True)
      code = 2
      continue
    if options.chat:
      said = [*asked, {"role": "assistant", "content": text}]
    turn += 1
  return code


def _interpolate(options, workdir: pathlib.Path, cfg: Config) -> int:
  """Prints the likeliest texts of points on the line between the vectors of two sentences."""
  between = family_of(cfg.model).between
  if between is None:
    raise ConfigError(
      f"interpolate={options.interpolate}: goes there through vectors of sentences, which "
      f"model.family={cfg.model.family} has not; use a vae"
    )
  params, step = load_params(workdir, options.checkpoint)
  tokenizer = load_tokenizer(workdir / "tokenizer")
  texts = [tokenizer.encode(text) for text in (options.prompt, options.interpolate)]
  n = options.n or POINTS
  length = options.tokens or cfg.model.seq_len
  found = between(cfg.model, params, texts, n, length, tokenizer)
  for index, ids in enumerate(found):
    text = tokenizer.decode(ids)
    share = index / (n - 1)
    print(json.dumps({"share": share, "text": text, "step": step}) if options.json else text)
  return 0


def check_sampling(options) -> Sampling:
  """Sampling from parsed options; ConfigError where a value makes no sense."""
  rules = {
    "tokens": (options.tokens is None or options.tokens >= 1, "at least 1", "64"),
    "n": (options.n is None or 1 <= options.n <= MOST, f"in [1, {MOST}]", "1"),
    "temperature": (0 <= options.temperature < float("inf"), "at least 0", "0.8"),
    "top_k": (0 <= options.top_k < 2**31, "in [0, 2147483647] (0 = all)", "40"),
    "top_p": (0 < options.top_p <= 1, "in (0, 1]", "0.9"),
    "min_p": (0 <= options.min_p <= 1, "in [0, 1]", "0.05"),
    "stop": (options.stop != "", "a text that is not empty", "."),
    "repetition_penalty": (
      0 < options.repetition_penalty < float("inf"),
      "greater than 0 and finite",
      "1.2",
    ),
  }
  for name, (holds, rule, remedy) in rules.items():
    if not holds:
      raise ConfigError(f"{name}={getattr(options, name)}: must be {rule}; try {remedy}")
  return Sampling(**{field: getattr(options, field) for field in Sampling._fields})


def check_beams(parser: Parser, options) -> None:
  """ConfigError for beams that make no sense, or that stand beside settings of draws."""
  if not 0 <= options.beams <= MOST:
    raise ConfigError(f"beams={options.beams}: must be in [0, {MOST}] (0 = draws); try 5")
  if not -100 <= options.length_penalty <= 100:
    raise ConfigError(f"length_penalty={options.length_penalty}: must be in [-100, 100]; try 1")
  if not options.beams:
    if options.length_penalty != parser.get_default("length_penalty"):
      raise ConfigError(f"length_penalty={options.length_penalty}: needs --beams; add --beams 5")
    return
  if (options.n or 1) > options.beams:
    raise ConfigError(
      f"n={options.n}: must not exceed --beams {options.beams}; use {options.beams}"
    )
  _refuse(parser, options, DRAWS, "is of draws, and --beams draws nothing; leave one out")


def check_interpolation(parser: Parser, options) -> None:
  """ConfigError for points between two sentences that lack the first, or settings that they do not read."""
  if options.interpolate is None:
    return
  if options.prompt is None:
    raise ConfigError(
      f"interpolate={options.interpolate}: needs the sentence to start from; add --prompt"
    )
  if options.n == 1:
    raise ConfigError("n=1: both ends are among the points of --interpolate; use at least 2")
  unread = ("beams", *DRAWS, "stop", "chat", "system")
  _refuse(parser, options, unread, "is not read where --interpolate is given; leave one out")


def _refuse(parser: Parser, options, names: Sequence[str], why: str) -> None:
  """ConfigError for the first of these options that is not at its default."""
  for name in names:
    value = getattr(options, name)
    if value != parser.get_default(name):
      raise ConfigError(f"{name}={value}: {why}")


def _ask() -> str | None:
  """A line of the terminal, where it is asked for, or of what is piped in; None at its end."""
  try:
    return input("> " if sys.stdin.isatty() and sys.stdout.isatty() else "")
  except EOFError:
    return None
  except UnicodeDecodeError:
    return "\udcff"  # what other locales make of a byte that is no UTF-8


if __name__ == "__main__":
  run_main(main)
