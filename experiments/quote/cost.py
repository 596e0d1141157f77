"""The quote of a sweep before anything is spent: sizes, FLOPs, memory, time, dollars, and flaws.

Everything but time is arithmetic on resolved configs; time comes from experiments.launch.throughput.
"""

import heapq
import json
from collections.abc import Mapping, Sequence

from experiments.launch.stacks import program_of
from experiments.launch.throughput import Speed
from experiments.ledger.ledger import Ledger, few
from experiments.sweep.sweep import Experiment, Member, devices_needed, open_data
from lm.config.schema import flatten
from lm.cost.flops import run_flops_per_token
from lm.cost.memory import memory_bytes
from lm.cost.parameters import run_counts
from lm.setup.resolve import tokens_per_step

CONVENTIONS = ("6ND", "6ND_nonembedding", "exact")
_COUNTED = {  # the parameters that the FLOPs of a convention are counted with
  "6ND": "n_params", "6ND_nonembedding": "n_params_non_embedding", "exact": "n_params",
}  # fmt: skip
EVAL_KEYS = (  # what decides which tokens are evaluated
  "eval.tokens", "data.sources", "data.val_fraction", "data.val_split", "data.tokenizer",
  "data.vocab_size",
)  # fmt: skip
FLAT = ("constant", "inverse_sqrt", "plateau")  # schedules that do not decay to the run's end
MAX_EPOCHS = 4  # repeats are worth almost as much as new data up to here: arXiv:2305.16264 §6


def quote(members: Sequence[Member], speed: Speed | None) -> list[dict[str, object]]:
  """One row a run, under the ledger's keys where it has them.

  Beside them: bytes (a device), seconds, dollars (None where unknown), epochs, batch_tokens, lr.
  """
  rows, compiled = [], set()
  for member in members:
    cfg = member.cfg
    counts = run_counts(cfg)
    tokens = cfg.train.tokens
    assert tokens is not None  # of a resolved config
    corpus = open_data(cfg).n_units
    corpus = min(corpus, cfg.data.unique_tokens or corpus)
    flops = {c: tokens * run_flops_per_token(cfg, c) for c in CONVENTIONS}
    seconds = speed and speed.seconds(cfg)
    if speed and (program := program_of(member)) not in compiled:
      compiled.add(program)
      seconds += speed.compiling
    devices = devices_needed(member.asked)
    rows.append(
      {
        "name": member.name,
        "id": member.id,
        "n_params": counts.total,
        "n_params_non_embedding": counts.non_embedding,
        "n_tokens": tokens,
        "tokens_per_param": tokens / counts.total,
        "flops": flops[cfg.train.flops_convention],
        **{f"flops_{c}": value for c, value in flops.items()},
        "bytes": sum(memory_bytes(cfg).values()),
        "seconds": seconds,
        "dollars": speed.price * devices * seconds / 3600 if speed and speed.price else None,
        "unique_tokens": corpus,
        "epochs": tokens / corpus,
        "steps": cfg.train.steps,
        "batch_tokens": round(tokens_per_step(cfg)),
        "lr": cfg.optim.peak_lr,
        **flatten(cfg),
      }
    )
  return rows


def totals(rows: Sequence[dict], workers: int) -> dict[str, object]:
  """Sums over runs; `elapsed` is the time until `workers` processes have done them in order."""
  ends = [0.0] * workers
  for row in rows:
    heapq.heappush(ends, heapq.heappop(ends) + (row["seconds"] or 0.0))
  known = all(row["seconds"] is not None for row in rows)
  priced = all(row["dollars"] is not None for row in rows)
  return {
    "runs": len(rows),
    "workers": workers,
    "n_tokens": sum(row["n_tokens"] for row in rows),
    **{f"flops_{c}": sum(row[f"flops_{c}"] for row in rows) for c in CONVENTIONS},
    "max_bytes": max(row["bytes"] for row in rows),
    "seconds": sum(row["seconds"] for row in rows) if known else None,
    "elapsed": max(ends) if known else None,
    "dollars": sum(row["dollars"] for row in rows) if priced else None,
  }


def warnings(experiment: Experiment, rows: Sequence[dict], speed: Speed | None) -> list[str]:
  """What would make the runs hard to compare or impossible to finish, one sentence each."""
  found = []
  ledger = Ledger(tuple(rows))
  same = [group for group in ledger.groups("id").values() if len(group) > 1]
  for group in same:
    names = " and ".join(row["name"] for row in group)
    found.append(f"{names} compute the same: what they differ in does not count; drop one")
  for key in EVAL_KEYS:
    values = list(dict.fromkeys(str(row[key]) for row in rows))
    if len(values) > 1:
      found.append(
        f"{key} is {', '.join(values)}: runs evaluated on different tokens do not compare; use one"
      )
  many = [row["name"] for row in rows if row["epochs"] > MAX_EPOCHS]
  if many:
    most = max(row["epochs"] for row in rows)
    found.append(
      f"{few(many)}: up to {most:.1f} epochs; beyond {MAX_EPOCHS} repeated data is worth less than new "
      "(arXiv:2305.16264): use more data or fewer tokens"
    )
  found += _schedule_warnings(rows)
  if speed and speed.hbm:
    large = [row["name"] for row in rows if row["bytes"] > 0.9 * speed.hbm]
    if large:
      found.append(
        f"{few(large)}: need more than 90 % of the {speed.hbm / 1e9:.0f} GB of a device; raise "
        "mesh.fsdp, train.accumulate or model.remat"
      )
  return found


def check_design(experiment: Experiment, rows: Sequence[dict]) -> list[tuple[str, str]]:
  """[(refuse | warn, why)]: whether the runs can carry the law that the experiment is to fit.

  An experiment that names no law is checked, and only warned, if both N and D vary in it.
  """
  from experiments import laws
  from experiments.laws import design

  sizes, tokens = ({row[key] for row in rows} for key in ("n_params", "n_tokens"))
  if experiment.law is None and min(len(sizes), len(tokens)) == 1:
    return []
  many = len(tokens) > 1
  runs = [
    design.PlannedRun(
      row[_COUNTED[row["train.flops_convention"]]],
      row["n_tokens"],
      row["flops"],
      schedule_ends_with_run=not (many and _is_unfinished(row)),
      eval_set_id=json.dumps([row[key] for key in EVAL_KEYS]),
    )
    for row in rows  # epochs are counted by `warnings`, which names the runs
  ]
  law = laws.LAWS.get(experiment.law, laws.LAWS["chinchilla"])
  found = design.check_design(runs, n_law_params=len(law.params))
  if experiment.law is None:
    return [("warn", f"for a law in N and D: {why}") for _, why in found]
  return found


def _is_unfinished(row: Mapping) -> bool:
  """Whether the final loss depends on where the run was cut: it may stop early, or never decays."""
  return row["eval.stop_patience"] is not None or row["optim.schedule"] in FLAT


def _schedule_warnings(rows: Sequence[dict]) -> list[str]:
  """Final losses under a schedule that has not decayed depend on where the run was cut."""
  flat = [r["name"] for r in rows if r["optim.schedule"] in FLAT]
  found = []
  if flat and len({row["n_tokens"] for row in rows}) > 1:
    found.append(
      f"{few(flat)}: a schedule that does not decay to the run's end, with runs of different lengths: "
      "their losses are of unfinished training; use cosine, linear or wsd"
    )
  return found
