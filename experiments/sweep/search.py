"""Which settings a sweep tries: grids, quasi-random draws, mixtures of data from a Dirichlet distribution.

Nothing here trains; every function turns a description into lists of overrides or runs.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from experiments.sweep.halving import parse_halving
from experiments.sweep.sweep import (
  NAME,
  Experiment,
  Run,
  find_experiments,
  make_experiment,
  run_name,
)
from lm.config.command_line import once
from lm.config.errors import ConfigError, check_within, suggest, whole_number
from lm.setup.load import known_keys

LEAST_WEIGHT = 1e-3  # of a drawn mixture: a run takes no weight of 0
MOST_RUNS = 100_000  # of a sweep: more make no sense, and fill the memory


@dataclasses.dataclass(frozen=True)
class Range:
  """Where a random search draws one key. `kind`: log | lin | int (ends included) | choice."""

  kind: str
  low: float = 0.0
  high: float = 0.0
  options: tuple[str, ...] = ()

  def at(self, u: float) -> object:
    """The value at quantile u in [0, 1); numbers have 4 digits, so that names can hold them."""
    if self.kind == "choice":
      return self.options[int(u * len(self.options))]
    if self.kind == "int":
      return int(self.low + u * (self.high - self.low + 1))
    if self.kind == "log":
      value = math.exp(math.log(self.low) + u * (math.log(self.high) - math.log(self.low)))
    else:
      value = self.low + u * (self.high - self.low)
    return float(f"{value:.4g}")


def grid(axes: Mapping[str, Sequence[object]]) -> list[dict[str, object]]:
  """Every combination, the last key varying fastest.

  >>> grid({"model.width": (64, 128), "seed": (0,)})
  [{'model.width': 64, 'seed': 0}, {'model.width': 128, 'seed': 0}]
  """
  return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def random_search(n: int, ranges: Mapping[str, Range], seed: int = 0) -> list[dict[str, object]]:
  """n draws from a scrambled Halton sequence.

  They are spread more evenly than independent ones (Bousquet et al. 2017, arXiv:1706.03200), and a
  longer search begins with the draws of a shorter one.

  Args:
    n: draws, at least 1.
    ranges: where each key is drawn.
    seed: of the scrambling.
  """
  from scipy.stats import qmc

  if n < 1:
    raise ConfigError(f"random={n}: must draw at least one; use 20")
  u_SR = qmc.Halton(len(ranges), scramble=True, rng=np.random.default_rng(seed)).random(n)
  return [
    {key: span.at(u) for (key, span), u in zip(ranges.items(), u_R, strict=True)} for u_R in u_SR
  ]


def dirichlet(
  n: int, base: Sequence[float], seed: int = 0, strengths: tuple[float, float] = (0.1, 5.0)
) -> list[tuple[float, ...]]:
  """n mixtures drawn from Dirichlet(s K base), s log-uniform in `strengths`: from nearly one domain to all.

  A design for laws of mixtures (RegMix, Liu et al. 2024, arXiv:2407.01492 §3.1, whose Dirichlet has s
  base); runs that differ in data.weights alone stack. A longer design begins with a shorter one.

  Args:
    n: mixtures, at least 1.
    base: [K] shares around which they are drawn, > 0; divided by their sum.
    seed: of the draws.
    strengths: of s; 1 is uniform over mixtures where all shares are equal.

  Returns: weights with 4 digits after the point, none below LEAST_WEIGHT, as a run draws from all sources.
  """
  shares = np.asarray(base, float)
  if n < 1 or len(shares) < 2 or not ((shares > 0) & (shares < 1e300 / len(shares))).all():
    raise ConfigError(
      f"dirichlet={n} of {','.join(f'{b:g}' for b in base)}: must be one mixture or more of two shares "
      "or more, all > 0 and finite; for example --dirichlet 64 data.weights=0.5,0.3,0.2"
    )
  rng, out = np.random.default_rng(seed), []
  alpha = len(shares) * shares / shares.sum()
  for _ in range(n):
    strength = np.exp(rng.uniform(*np.log(strengths)))
    drawn = np.maximum(rng.dirichlet(strength * alpha), LEAST_WEIGHT)
    out.append(tuple(float(f"{w:.4f}") for w in drawn))
  return out


def parse_dirichlet(words: Sequence[str], seed: int) -> list[dict[str, object]]:
  """Settings of data.weights from `64 data.weights=0.5,0.3,0.2` or `64 data.weights=3` (equal shares)."""
  count, *rest = words
  key, _, values = (rest[0] if len(rest) == 1 else "").partition("=")
  texts = values.split(",")
  equal = whole_number(values) or 0
  if 2 <= equal <= 1000:
    texts = ["1"] * equal
  try:
    base = [float(text) for text in texts]
  except ValueError:
    base = []
  if key != "data.weights" or whole_number(count) is None or len(base) < 2:
    raise ConfigError(
      f"dirichlet={' '.join(words)}: must be a number of mixtures, then data.weights= and the number of "
      "sources or a share for each; for example --dirichlet 64 data.weights=0.5,0.3,0.2"
    )
  check_within("dirichlet", int(count), f"[0, {MOST_RUNS}]", "64")
  draws = dirichlet(int(count), base, seed)
  return [{key: ",".join(f"{w:g}" for w in draw)} for draw in draws]


def product(*parts: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
  """Every combination of one setting of each part."""
  return [
    {k: v for part in combination for k, v in part.items()}
    for combination in itertools.product(*parts)
  ]


def parse_axis(text: str) -> tuple[str, tuple[str, ...]]:
  """("optim.peak_lr", ("1e-3", "3e-3")) from `optim.peak_lr=1e-3,3e-3`; `;` parts values with
  commas."""
  key, equals, values = text.partition("=")
  if not equals or not values:
    raise ConfigError(f"grid={text}: must be key=value,value; for example optim.peak_lr=1e-3,3e-3")
  check_key("grid", key)
  options = tuple(v.strip() for v in values.split(";" if ";" in values else ",") if v.strip())
  if not options:
    raise ConfigError(f"grid={text}: must be key=value,value; for example optim.peak_lr=1e-3,3e-3")
  if len(set(map(_as_number, options))) != len(options):
    raise ConfigError(f"grid={text}: values must differ from each other; drop the repeated one")
  return key, options


def _as_number(text: str) -> float | str:
  """1e-3 and 0.001 are one value."""
  try:
    return float(text)
  except ValueError:
    return text


def parse_range(text: str) -> tuple[str, Range]:
  """("optim.weight_decay", Range) from `optim.weight_decay=log:1e-4..1e-1`."""
  key, equals, spec = text.partition("=")
  kind, _, span = spec.partition(":")
  if not equals or kind not in ("log", "lin", "int", "choice"):
    raise ConfigError(
      f"random={text}: must be key=log:LOW..HIGH, lin:LOW..HIGH, int:LOW..HIGH or choice:A,B; "
      "for example optim.weight_decay=log:1e-4..1e-1"
    )
  check_key("random", key)
  if kind == "choice":
    options = tuple(v.strip() for v in span.split(";" if ";" in span else ",") if v.strip())
    if not options:
      raise ConfigError(f"random={text}: needs something to choose from; for example choice:a,b")
    return key, Range(kind, options=options)
  low, dots, high = span.partition("..")
  try:
    low, high = float(low), float(high)
  except ValueError:
    raise ConfigError(
      f"random={text}: the ends must be numbers with .. between; for example {kind}:1..10"
    ) from None
  if not dots or not low < high or not math.isfinite(high - low):
    raise ConfigError(f"random={text}: LOW must be below HIGH, both finite; swap them")
  if kind == "log" and low <= 0:
    raise ConfigError(f"random={text}: a log range must be positive; raise LOW or use lin:")
  return key, Range(kind, low, high)


def check_key(option: str, key: str) -> None:
  """ConfigError unless the config has that key."""
  fields = known_keys()
  if key not in fields:
    raise ConfigError(f"{option}={key}: no such key; {suggest(key, fields)}")


def sweep_from_text(
  config: str,
  grids: Sequence[str] = (),
  random: Sequence[str] = (),
  halving: str | None = None,
  seed: int = 0,
  fixed: Mapping[str, str] | None = None,
  name: str | None = None,
  dirichlet: Sequence[str] = (),
) -> Experiment:
  """An experiment from words on a command line: the product of all grids and the random draws.

  Args:
    config: config file, FILE[:ARGUMENT].
    grids: "optim.peak_lr=1e-3,3e-3" each.
    random: the number of draws, then "key=RANGE" each.
    halving: "ETA:RUNGS".
    seed: of the random draws.
    fixed: keys set in every run; names do not repeat them.
    name: the folder; made from the words if None.
    dirichlet: a number of mixtures, then "data.weights=K" or shares.
  """
  fixed = dict(fixed or {})
  for key in fixed:
    check_key("set", key)
  axes = once("grid", map(parse_axis, grids))
  twice = [key for key in axes if key in fixed]
  if twice:
    raise ConfigError(f"set={twice[0]}: is in a grid too; choose one of the two")
  _check_count(map(len, axes.values()))
  parts = [grid(axes)]
  if random:
    count, *texts = random
    if whole_number(count) is None or not texts:
      raise ConfigError(
        f"random={' '.join(random)}: must be a number of draws, then key=RANGE; "
        "for example --random 20 optim.peak_lr=log:1e-4..1e-2"
      )
    check_within("random", int(count), f"[0, {MOST_RUNS}]", "20")
    ranges = once("random", map(parse_range, texts))
    twice = [key for key in ranges if key in axes or key in fixed]
    if twice:
      raise ConfigError(f"random={twice[0]}: is in a grid or in --set too; choose one of the two")
    drawn = random_search(int(count), ranges, seed)
    if len(set(map(run_name, drawn))) < len(drawn):
      raise ConfigError(
        f"random={' '.join(random)}: draws a setting twice; draw fewer, or widen the ranges"
      )
    parts.append(drawn)
  if dirichlet:
    if "data.weights" in axes or "data.weights" in fixed:
      raise ConfigError("dirichlet=data.weights: is set otherwise too; choose one of the two")
    parts.append(parse_dirichlet(dirichlet, seed))
  spec = [config, *grids, *random, *dirichlet, halving, seed, fixed]
  if name is not None:
    check_name(name)
  else:
    digest = hashlib.sha256(json.dumps(spec).encode()).hexdigest()[:6]
    name = f"{pathlib.Path(config.replace('.py', '').replace(':', '-')).name}-{digest}"
  _check_count(map(len, parts))
  runs = [Run(run_name(setting), {**fixed, **setting}, config) for setting in product(*parts)]
  return make_experiment(name, runs, halving=halving and parse_halving(halving))


def _check_count(sizes: Iterable[int]) -> None:
  """ConfigError where a product of so many settings each is more than a sweep may hold."""
  check_within("runs", math.prod(sizes), f"[0, {MOST_RUNS}]", "a smaller grid")


def check_name(name: str) -> None:
  """ConfigError unless a sweep may be called that: its runs lie in a folder of that name."""
  if not NAME.fullmatch(name) or name.startswith("."):
    raise ConfigError(
      f"save_as={name}: a name is a folder, of letters, digits and . , = + @ _ -; choose another"
    )
  if name in find_experiments():
    raise ConfigError(f"save_as={name}: is the name of an experiment file; choose another")
