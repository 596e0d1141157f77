"""Maps the columns of a table of runs to the names that laws use (n_params, n_tokens, flops, loss, ...).

Spellings are compared without case, blanks and punctuation; of `throughput/total_tokens` the last part
counts, too. Losses are told apart as evaluation, training and others: an evaluation loss goes first,
because laws are about what was not trained on. What fits equally well is asked for, not guessed.
"""

import difflib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from experiments.laws import cells

# Used only for a column the caller did not name; two matches in one table are an error, not a guess.
ALIASES = {
  "n_params": ("n_params", "params", "n", "model size", "parameters", "num_params", "parameter_count",
               "param_count", "total_params", "n_parameters", "num_parameters", "model_params", "parameter"),
  "n_params_non_embedding": ("n_params_non_embedding", "non_embedding_params", "n_non_embedding",
                             "params_no_embed", "n_no_emb", "params_non_embedding"),
  "n_tokens": ("n_tokens", "tokens", "d", "training tokens", "train_tokens", "num_tokens",
               "total_tokens", "tokens_seen", "dataset size", "token"),
  "flops": ("flops", "flop", "c", "training flop", "training flops", "compute", "total_flops",
            "train_flops", "compute budget"),
  "unigram_loss": ("unigram_loss", "lossu", "unigram_normalized_loss"),
  "teacher_loss": ("teacher_loss", "loss_teacher"),
  "supervised_loss": ("supervised_loss", "loss_supervised"),
  "loss": ("loss", "final_loss", "val_loss", "eval_loss", "validation loss", "test loss", "l",
           "train_loss", "cross_entropy"),
  "unique_tokens": ("unique_tokens", "unique tokens", "u"),
  "steps": ("steps", "n_steps", "train_steps", "num_train_steps"),
  "batch": ("batch", "batch_tokens", "tokens_per_batch", "tokens_per_step"),
  "error": ("error", "err", "downstream_error"),
  "accuracy": ("accuracy", "acc", "downstream_accuracy"),
  "precision": ("precision", "precision_bits", "weight_bits"),
  "n_params_vocab": ("n_params_vocab", "vocab_params", "vocab_parameters"),
  "n_params_non_vocab": ("n_params_non_vocab", "non_vocab_params", "non_vocab_parameters"),
  "n_params_active": ("n_params_active", "active_params", "active_parameters", "n_active"),
  "experts": ("experts", "n_experts", "num_experts"),
  "granularity": ("granularity",),
  "activation_ratio": ("activation_ratio",),
  "leverage": ("leverage", "efficiency_leverage"),
}  # fmt: skip
OPTIONS = {"n_params": "--params", "n_tokens": "--tokens", "flops": "--flops", "loss": "--loss",
           "se": "--se", "weight": "--weight"}  # fmt: skip
STEMS = {"n_params": "param", "n_tokens": "token", "flops": "flop", "loss": "loss"}
# names under which sweeps and trackers keep what run a row belongs to
RUN_NAMES = ("run", "runname", "runid", "name", "id", "expname", "experiment", "experimentname",
             "displayname", "jobid", "runpath", "trial", "trialid", "trialname")  # fmt: skip
TRAINING = {"train", "training", "trn"}
EVALUATION = {
  "eval",
  "evaluation",
  "val",
  "valid",
  "validation",
  "test",
  "dev",
  "heldout",
  "held",
  "oos",
}
# parts, spreads and transformations of a loss, never the loss itself
OTHER = {
  "std", "sd", "se", "stderr", "sem", "var", "ci", "lo", "hi", "lower", "upper", "err", "error", "aux",
  "z", "zloss", "balance", "balancing", "router", "load", "scale", "scaling", "grad", "smooth",
  "smoothed", "ema", "delta", "diff", "weight", "step", "steps", "steptime", "time", "tokens", "n",
  "count", "mtp", "regularization", "pred", "predicted", "prediction", "fit", "fitted", "residual",
  "initial", "init", "star", "ppl", "bpb", "max", "log",
}  # fmt: skip


class Choice(NamedTuple):
  """chosen: our name -> their column; unclear: our name -> columns that all look like it; scale: our
  name -> the unit its header says; notes: what a reader should know of the choice."""

  chosen: dict[str, str]
  unclear: dict[str, tuple[str, ...]]
  scale: dict[str, float]
  notes: list[str]


def plain(name: str) -> str:
  """Without case, blanks and punctuation."""
  return re.sub(r"[^a-z0-9]", "", name.lower())


def words(name: str) -> list[str]:
  """`eval/valLoss` as eval, val, loss."""
  apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
  return [w for w in re.split(r"[^a-z0-9]+", apart.lower()) if w]


def how_to_name(ours: str) -> str:
  """The option that names a column."""
  option = f"{OPTIONS[ours]} COLUMN" if ours in OPTIONS else f"--column {ours}=COLUMN"
  return f"name the one to use with {option}"


def nearest(ours: str, theirs: str, header: Sequence[str]) -> str:
  """`no such column`, the nearest names, and all of them."""
  near = [h for h in header if plain(h) == plain(theirs)]
  near += [h for h in header if STEMS.get(ours, "\0") in h.lower()]
  near += difflib.get_close_matches(theirs, header, n=2, cutoff=0.5)
  near = list(dict.fromkeys(near))[:3]
  hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
  return f"no such column; {hint}columns: {', '.join(header)}".replace("\n", " ")


def check_column(ours: str, theirs: str, header: Sequence[str], option: str | None = None) -> None:
  """ValueError with the nearest names unless `theirs` is a column; `option` is what named it, else `ours`."""
  if theirs not in header:
    raise ValueError(f"{option or ours}={theirs!r}: {nearest(ours, theirs, header)}")


def _total_flops(name: str) -> tuple[str, float] | None:
  """("total flops", 1e9) of `throughput/total_gflops`, a count of FLOPs in a unit; None of other names."""
  found = re.fullmatch(r"(?:.*/)?\s*total[ _]?([kmgtpez]flops?)\s*", name, re.IGNORECASE)
  return ("total flops", cells.UNITS[found[1].lower()]) if found else None


def choose(
  header: Sequence[str],
  names: Mapping[str, str],
  column_of: Callable[[str], list],
  options: Mapping[str, str] = MappingProxyType({}),
) -> Choice:
  """The columns of a table.

  Args:
    header: theirs.
    names: our name -> theirs, as the caller named them.
    options: our name -> the option that named the column.
    column_of: a column's cells. Of several that look alike, those without a single number are none.

  Raises:
    ValueError: a named column that is not there.
  """
  chosen, unclear, notes = {}, {}, []
  for ours, theirs in names.items():
    check_column(ours, theirs, header, options.get(ours))
    chosen[ours] = theirs
  units = {h: _total_flops(h) or cells.split_unit(h) for h in header}
  filled = lambda h: any(np.isfinite(cells.number(c)) for c in column_of(h))
  for ours, spellings in ALIASES.items():
    if ours in chosen:
      continue
    free = [h for h in header if h not in chosen.values()]
    if ours == "loss":
      found, said = _losses(free, column_of)
      notes += said
    else:
      found = _named(free, {plain(s) for s in spellings}, units)
    if len(found) > 1:
      found = [h for h in found if filled(h)] or found
    exact = [h for h in found if h == ours and f"{h}.2" not in header]
    if len(found) == 1 or exact:
      chosen[ours] = (exact or found)[0]
    elif found:
      unclear[ours] = tuple(found)
  if "n_params" not in chosen and "n_params" not in unclear and "n_params_non_embedding" in chosen:
    chosen["n_params"] = chosen["n_params_non_embedding"]  # the only count there is
  scale = {ours: units[theirs][1] for ours, theirs in chosen.items() if units[theirs][1] != 1}
  return Choice(chosen, unclear, scale, notes)


def _named(header, wanted: set[str], units) -> list[str]:
  """Columns spelled as one of `wanted`: all of the name, else its part after the last slash or dot."""
  once = lambda h: re.sub(r"\.\d+$", "", units[h][0])  # sources numbers what is repeated
  whole = [h for h in header if plain(once(h)) in wanted or plain(h) in wanted]
  if whole:
    return whole
  last = lambda h: plain(re.split(r"[/.]", once(h))[-1])
  return [
    h for h in header if len(last(h)) > 1 and last(h) in wanted and not EVALUATION & set(words(h))
  ]


def _losses(header: Sequence[str], cells_of: Callable) -> tuple[list[str], list[str]]:
  """(the columns that fit as the loss equally well, notes): evaluation, then plain, then training.

  Equal columns count once. A smallest value (W&B's "- MIN", "__MIN") stands in where its own is absent.
  """
  column_of = functools.cache(lambda h: np.array([cells.number(c) for c in cells_of(h)]))
  kinds = {"evaluation": [], "plain": [], "training": []}
  for h in header:
    kind = kind_of_loss(h)
    if kind:
      kinds[kind].append(h)
  base = lambda h: re.sub(
    r"(?i)[\s_(\-]*\b(min|mean|avg|average|last)\b\)?$", "", h.replace("__", " ")
  )
  for kind, found in kinds.items():
    filled = [h for h in found if np.isfinite(column_of(h)).any()]
    found = [h for h in filled if base(h) == h or plain(base(h)) not in map(plain, filled)] or found
    kinds[kind] = _distinct(found, column_of)
  evaluation, bare, training = kinds.values()
  # Keras calls its training loss `loss`; a plain name with a set's in it ("c4_loss") is of evaluation
  exact = [h for h in bare if plain(re.sub(r"\.\d+$", "", h)) in ("loss", "finalloss", "l")]
  if evaluation:
    same = [h for h in exact if any(_equal(column_of(h), column_of(e)) for e in evaluation)]
    if same:  # a ledger's `loss` is one of its evaluation losses
      return same[:1], []
    equal = evaluation + [h for h in bare if h not in exact]
    others = ", ".join(map(repr, exact + training))
    said = f"loss: {equal[0]!r}, of evaluation, goes before {others}; --loss COLUMN names another"
    return equal, [said] if others and len(equal) == 1 else []
  if bare:
    return exact or bare, []
  said = [f"loss: {training[0]!r} is of training; there is none of evaluation"] if training else []
  return training, said if len(training) == 1 else []


def kind_of_loss(name: str) -> str | None:
  """Of which kind a column's loss is; None where it is none, or a part or a spread of one."""
  if plain(name) in ("l", "ce", "nll"):
    return "plain"
  has = words(name)
  joined = plain(name)
  if not (
    {"loss", "losses", "xent", "nll"} & set(has)
    or joined.endswith(("loss", "lossmin", "crossentropy", "lossmean"))
    or "crossentropy" in joined
  ):
    return None
  if OTHER & set(has) or any(
    re.fullmatch(r"(lo|hi|low|high|lower|upper|ci|p|q)\d+", w) for w in has
  ):
    return None
  if EVALUATION & set(has) or re.match(r"(eval|val|valid|validation|test)loss", joined):
    return "evaluation"
  if TRAINING & set(has) or joined.startswith("trainloss"):
    return "training"
  return "plain"


def _distinct(found: list[str], column_of) -> list[str]:
  out = []
  for h in found:
    if not any(_equal(column_of(h), column_of(other)) for other in out):
      out.append(h)
  return out


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
  return bool(np.isfinite(one).any()) and np.array_equal(one, other, equal_nan=True)
