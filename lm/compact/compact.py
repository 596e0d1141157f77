"""A run directory made of another: its parameters, pruned, factored or quantised, in one packed file."""

import dataclasses
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lm.compact import prune, quantise
from lm.compact.calibrate import input_products
from lm.compact.factor import factors
from lm.compact.measure import bytes_of, in_windows, measure
from lm.config.errors import ConfigError, check_within
from lm.config.schema import Config
from lm.files import whole_folder
from lm.models.adapters import merge_adapters
from lm.models.registry import family_of, make_model
from lm.models.transformer_config import TransformerConfig, factor_rank
from lm.models.trees import by_path, nested, stack_layers, unstack_layers
from lm.objectives.registry import objective_of
from lm.runs import packed, rundir
from lm.runs.checkpoint import load_state, usable_params
from lm.setup.resolve import kind_of
from lm.training.compile_cache import keep_compiled

COPIED = ("tokenizer", rundir.IMPORTED)  # of the run directory


class Asked(NamedTuple):
  """The options of `python -m lm.compact`: None where a step was not asked for."""

  merge: bool  # LoRA's adapters into their matrices
  heads: int | None
  rank: int | None
  prune: float | None
  scope: str
  pattern: tuple[int, int] | None
  bits: int | None
  group: int | None
  what: str  # blocks | all
  by: str  # weights | inputs
  calibrate: str | None
  calibration_tokens: int
  window: int


def compact_run(
  workdir: pathlib.Path,
  to: pathlib.Path,
  checkpoint: str,
  asked: Asked,
  source: str | None,
  tokens: int,
) -> list[dict[str, Any]]:
  """Writes the run directory `to`; returns the rows of the table, before and after.

  Args:
    source, tokens: what to score the two on; tokens = 0 leaves scores out.

  Raises:
    ConfigError: nothing asked for, no such run, a directory that is taken, what does not fit the model.
  """
  cfg = rundir.read_config(workdir)
  _check(cfg, workdir, to, asked)
  check_within("tokens", tokens, "[0, inf)", "16384")
  if source is not None and not tokens:
    raise ConfigError(f"data={source}: --tokens 0 scores nothing; leave one of the two out")
  keep_compiled(cfg.data.cache_dir)
  state, step = load_state(workdir, checkpoint)
  params, applied = usable_params(state), objective_of(cfg.objective).applied
  extra = by_path({packed.EXTRA: {k: v for k, v in state["extra"].items() if k in applied}})
  if asked.merge:
    params, model = merge_adapters(params, cfg.model)
    cfg = dataclasses.replace(cfg, model=model)
  stacked = getattr(cfg.model, "scan_layers", True)
  flat = {k: np.asarray(v) for k, v in by_path(params if stacked else stack_layers(params)).items()}
  before = {"run": str(workdir), "bytes": bytes_of(workdir, flat), "zeros": _zeros(flat)}
  before["bits"] = 8 * before["bytes"] / sum(a.size for a in flat.values())
  if tokens:  # first, so that a source that cannot be read leaves no run behind
    before |= measure(workdir, checkpoint, source, tokens, asked.window)
  products = _products(cfg, flat, asked) if asked.by == "inputs" else {}
  found, model = apply(flat, cfg.model, asked, products)
  plain = {k: a.decode() if isinstance(a, packed.Coded) else a for k, a in found.items()}
  if not stacked:
    found = _unstacked(found)
  new = dataclasses.replace(cfg, model=model)
  about = {"compacted": {"from": str(workdir), "step": step, **asked._asdict()}}
  with whole_folder(to, "to") as made:
    run = rundir.open_run(made, new, about)
    for name in COPIED:
      if (workdir / name).is_dir():
        shutil.copytree(workdir / name, made / name)
      elif (workdir / name).is_file():
        shutil.copyfile(workdir / name, made / name)
    size = packed.write(made, found | extra, step)
    rundir.close_run(made, run, "done", reason=f"compacted from {workdir}, step {step}")
  after = {"run": str(to), "bytes": size, "zeros": _zeros(plain)}
  after["bits"] = 8 * size / sum(a.size for a in flat.values())
  if tokens:
    after |= measure(to, "best", source, tokens, asked.window)
  return [before, after]


def apply(
  flat: Mapping[str, np.ndarray],
  model: Any,
  asked: Asked,
  products: Mapping[str, np.ndarray],
) -> tuple[dict[str, Any], Any]:
  """(parameters by path, section) after heads, rank, prune or pattern, bits.

  Args:
    flat: by path, layers stacked.
    products: X^T X of the inputs of every matrix, where weights count by them; {} otherwise.
  """
  found: dict[str, Any] = dict(flat)
  if asked.heads is not None:
    cut, model = prune.without_heads(found, model, asked.heads)
    found = dict(cut)
    products = {k: v for k, v in products.items() if not k.startswith("blocks/attn/out")}
  if asked.rank is not None:
    model = dataclasses.replace(model, low_rank=asked.rank)
    for name in [k for k in found if k.startswith("blocks/") and k.endswith("/kernel")]:
      if factor_rank(model, *found[name].shape[-2:]) is not None:
        whole = found.pop(name)
        each = [factors(w, asked.rank, _of(products, name, i)) for i, w in enumerate(whole)]
        found[f"{name}_in"] = np.stack([a for a, _ in each])
        found[f"{name}_out"] = np.stack([b for _, b in each])
  kinds = {w.name: w.kind for w in family_of(model).weights(model)}
  matrices = [k for k in found if kinds[k] == "hidden" and not k.endswith("router/kernel")]
  if asked.prune is not None or asked.pattern is not None:
    scores = {k: _scores(found[k], products.get(k)) for k in matrices}
    if asked.prune is not None:
      masks = prune.smallest(scores, asked.prune, asked.scope)
    else:
      masks = {k: prune.n_of_m(s, *asked.pattern or (0, 1)) for k, s in scores.items()}
    found |= {k: found[k] * mask for k, mask in masks.items()}
  if asked.bits is not None:
    for name in matrices:
      found[name] = _coded(found[name], products.get(name), asked.bits, asked.group)
    if asked.what == "all":
      for name in [k for k in found if kinds[k] == "embed" and k.endswith("embedding")]:
        found[name] = quantise.nearest(found[name], asked.bits, asked.group, axis=-1)
      for name in [k for k in found if kinds[k] == "readout"]:
        found[name] = quantise.nearest(found[name], asked.bits, asked.group)
  return found, model


def table(rows: list[dict[str, Any]]) -> str:
  """The rows as text."""
  names = ("run", "bytes", "bits", "zeros", "loss", "perplexity", "tokens_per_sec")
  if "perplexity" not in rows[0]:
    names = (*dict.fromkeys([*names[:4], *rows[0]]),)
  forms = {"bytes": "{:,}", "bits": "{:.2f}", "zeros": "{:.1%}", "tokens_per_sec": "{:,.0f}"}
  shown = [[k for k in names if k in rows[0]]]
  shown += [
    [forms.get(k, "{}" if k == "run" else "{:.4f}").format(row[k]) for k in shown[0]]
    for row in rows
  ]
  widths = [max(len(line[i]) for line in shown) for i in range(len(shown[0]))]
  lines = [
    "  ".join(
      w.ljust(n) if i == 0 else w.rjust(n)
      for i, (w, n) in enumerate(zip(line, widths, strict=True))
    )
    for line in shown
  ]
  return "\n".join(lines)


def _check(cfg: Config, workdir: pathlib.Path, to: pathlib.Path, asked: Asked) -> None:
  if asked.group is not None and asked.bits is None:
    raise ConfigError(f"group={asked.group}: is of quantised weights; add --bits 4")
  if asked.what == "all" and asked.bits is None:
    raise ConfigError("what=all: is of quantised weights; add --bits 8")
  if asked.scope != "global" and asked.prune is None:
    raise ConfigError(f"scope={asked.scope}: is of a pruned fraction; add --prune 0.5")
  if asked.calibrate is not None and asked.by != "inputs":
    raise ConfigError(f"calibrate={asked.calibrate}: is read for inputs alone; add --by inputs")
  for name in ("window", "calibration_tokens"):
    check_within(name, getattr(asked, name), "[1, inf)", "512")
  adapters = getattr(cfg.model, "lora_rank", None) is not None
  if asked.merge and not adapters:
    raise ConfigError(f"workdir={workdir}: has no adapters to merge; leave --merge out")
  if adapters and not asked.merge:
    raise ConfigError(f"workdir={workdir}: has adapters (model.lora_rank); add --merge")
  steps = (asked.merge or None, asked.heads, asked.rank, asked.prune, asked.pattern, asked.bits)
  if all(step is None for step in steps):
    raise ConfigError(
      f"workdir={workdir}: nothing to do; give --bits, --prune, --pattern, --heads, --rank or --merge"
    )
  if (to / "config.json").exists():
    raise ConfigError(f"to={to}: holds a run already; choose another")
  if asked.prune is not None:
    check_within("prune", asked.prune, "(0, 1)", "0.5")
    if asked.pattern is not None:
      raise ConfigError(f"prune={asked.prune}: --pattern prunes too; give one of them")
  if asked.rank is not None:
    check_within("rank", asked.rank, "[1, inf)", "64")
  if asked.group is not None:
    check_within("group", asked.group, "[1, inf)", "32")
  dense = isinstance(cfg.model, TransformerConfig)
  for name in ("heads", "rank"):
    value = getattr(asked, name)
    if value is not None and (not dense or cfg.model.experts or cfg.model.low_rank):
      raise ConfigError(
        f"{name}={value}: needs a decoder with whole matrices and no experts; use --bits"
      )
  if asked.by == "inputs":
    if objective_of(cfg.objective).batches != "tokens" or not dense or cfg.model.experts:
      raise ConfigError(
        "by=inputs: reads the inputs of a decoder's linear maps, without experts; use weights"
      )
    if asked.heads is not None:
      raise ConfigError(f"heads={asked.heads}: are cut by their weights; use --by weights")
    if asked.rank is not None and (asked.prune or asked.pattern or asked.bits):
      raise ConfigError(
        f"rank={asked.rank}: the inputs of second factors are not read; take one step by inputs, then "
        "the next one from the run that it makes"
      )


def _products(cfg: Config, flat: Mapping[str, np.ndarray], asked: Asked) -> dict[str, np.ndarray]:
  kind, short = kind_of(cfg), in_windows(cfg, asked.window)
  opened = kind.open(cfg)
  if asked.calibrate is None:
    rows = short.eval.batch_size
    wanted = dataclasses.replace(short, train=dataclasses.replace(short.train, batch_size=rows))
    batches = kind.train(opened, wanted)
    n = max(1, asked.calibration_tokens // (rows * short.model.seq_len))
  else:
    batches = kind.evaluate(
      kind.extra_set(opened, asked.calibrate), short, asked.calibration_tokens, None
    )
    n = len(batches)
  make_model(cfg.model)  # what this platform rules out is said before anything is compiled
  return input_products(cfg.model, nested(dict(flat)), (batches.at(i) for i in range(n)))


def _scores(w: np.ndarray, product: np.ndarray | None) -> np.ndarray:
  """|w|, or |w| times the norm of its input."""
  if product is None:
    return np.abs(w)
  norms = np.sqrt(np.diagonal(product, axis1=-2, axis2=-1))
  return np.abs(w) * norms[..., None]


def _coded(w: np.ndarray, product: np.ndarray | None, bits: int, group: int | None) -> packed.Coded:
  if product is None:
    return quantise.nearest(w, bits, group)
  each = [quantise.gptq(m, p, bits, group) for m, p in zip(w, product, strict=True)]
  codes, scales = np.stack([e.codes for e in each]), np.stack([e.scales for e in each])
  return packed.Coded(codes, scales, bits, -2)


def _of(products: Mapping[str, np.ndarray], name: str, layer: int) -> np.ndarray | None:
  return products[name][layer] if name in products else None


def _unstacked(found: Mapping[str, Any]) -> dict[str, Any]:
  """Parameters by path with each layer under its own name; codes are split with their scales."""
  split = lambda part: by_path(unstack_layers(nested(part)))
  plain = {k: v for k, v in found.items() if not isinstance(v, packed.Coded)}
  coded = {k: v for k, v in found.items() if isinstance(v, packed.Coded)}
  codes = split({k: v.codes for k, v in coded.items()})
  scales = split({k: v.scales for k, v in coded.items()})
  bits = {v.bits for v in coded.values()}
  made = {
    k: packed.Coded(codes[k], scales[k], max(bits), -1 if k.endswith("embedding") else -2)
    for k in codes
  }
  return split(plain) | made


def _zeros(flat: Mapping[str, np.ndarray]) -> float:
  """Fraction of all numbers that are 0."""
  return sum(int((a == 0).sum()) for a in flat.values()) / sum(a.size for a in flat.values())
