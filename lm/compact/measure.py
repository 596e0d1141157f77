"""How a run scores and how fast: the columns of the table before and after."""

import dataclasses
import math
import pathlib
import time

import jax

from lm.devices import sharding
from lm.evaluate import ONE_DEVICE, evaluate_sets
from lm.objectives.objective import Metric
from lm.objectives.registry import objective_of
from lm.runs import packed, rundir
from lm.runs.checkpoint import load_state, usable_params
from lm.setup.hparams import make_hparams
from lm.setup.resolve import kind_of
from lm.training.programs import extra_of, make_programs

ROWS_OF = 2048  # tokens of a batch


def measure(
  workdir: pathlib.Path, checkpoint: str, source: str | None, tokens: int, window: int
) -> dict[str, float]:
  """The objective's scores of a run, perplexity where its loss is in nats per token, and tokens_per_sec.

  tokens_per_sec (of other data units_per_sec, such as pairs) is that of a second pass over the same batches,
  once all is compiled: of reading text, not of writing it.

  Args:
    source: as in data.sources; None = the run's held-out set.
    tokens: whole documents up to so many.
    window: tokens of a row at most.
  """
  cfg = dataclasses.replace(rundir.read_config(workdir), mesh=ONE_DEVICE)
  kind, objective = kind_of(cfg), objective_of(cfg.objective)
  state, _ = load_state(workdir, checkpoint)
  opened = kind.open(cfg)
  chosen = kind.held_out(opened) if source is None else kind.extra_set(opened, source)
  short = in_windows(cfg, window)
  batches = kind.evaluate(chosen, short, tokens, None)
  cfg = dataclasses.replace(cfg, eval=short.eval)  # rows that carry a state are as many as those
  programs = make_programs(cfg, sharding.make_mesh(ONE_DEVICE, devices=jax.devices()[:1]))
  params = jax.device_put(usable_params(state), programs.state_sharding.params)
  extra = extra_of(programs, state)
  hparams = jax.device_put(make_hparams(cfg), programs.scalar_sharding)
  score = lambda: evaluate_sets(programs, objective, params, extra, hparams, {"": batches})[0]
  scores = score()
  begun = time.perf_counter()
  score()
  seconds = time.perf_counter() - begun
  found = {name: scores[f"eval//{name}"] for name in objective.eval_metrics}
  if objective.eval_metrics.get("loss", Metric("")).unit.startswith("nats/token"):
    found["perplexity"] = math.exp(min(found["loss"], 700.0))
  unit = next((unit for unit in ("tokens", kind.unit) if unit in batches.facts), None)
  return found if unit is None else found | {f"{unit}_per_sec": batches.facts[unit] / seconds}


def in_windows(cfg, window: int):
  """A resolved config with rows of at most `window` tokens, and as many as make a batch of ROWS_OF."""
  length = min(window, cfg.model.seq_len)
  rows = max(1, ROWS_OF // length)
  return dataclasses.replace(
    cfg,
    model=dataclasses.replace(cfg.model, seq_len=length),
    eval=dataclasses.replace(cfg.eval, batch_size=rows),
  )


def bytes_of(workdir: pathlib.Path, params: dict) -> int:
  """Bytes of a run's parameters as they are stored: the packed file, or float32."""
  file = workdir / packed.FILE
  return file.stat().st_size if file.is_file() else sum(4 * a.size for a in params.values())
