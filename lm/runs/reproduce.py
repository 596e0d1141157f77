"""Trains a run again from its record alone, and says whether the two agree bit for bit.

Compared are the lines of metrics.jsonl and samples.jsonl, and what the newest checkpoint that both have
holds, the optimizer's state aside; the verdict says how much of each there was. Other devices, versions,
code, data or weights to start from make a difference likely; they are named, and so is what was otherwise in
an earlier stretch of the run. What was never trained, or left nothing to compare, is refused.
"""

import argparse
import json
import pathlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from lm.config.errors import ConfigError, number_of
from lm.config.schema import flatten
from lm.files import read_lines
from lm.plan import run_plan
from lm.runs import bucket, packed, rundir
from lm.runs.checkpoint import load_state
from lm.setup.resolve import kind_of
from lm.training.compile_cache import keep_compiled

COMPARED = ("metrics.jsonl", "samples.jsonl")
# Of a checkpoint, compared; those of earlier versions lack some.
HELD = ("params", "ema", "extra", "seen")
WEIGHTS = ("init_from", "teachers")  # of run.json: whose weights a run began with or learnt from


def main(
  options: argparse.Namespace, overrides: Mapping[str, object], train: Callable[..., int]
) -> int:
  """`train.py --reproduce RUN [--workdir NEW]`; returns the exit code.

  Raises:
    ConfigError: settings beside it: a run's record says all of them.
  """
  for key in overrides:
    raise ConfigError(f"{key}={overrides[key]}: a run is reproduced as it is; leave it out")
  for name in ("stack", "plan", "profile", "accept_new_data", "json"):
    if getattr(options, name):
      raise ConfigError(
        f"reproduce={options.reproduce}: stands alone, beside --workdir; leave out --{name}"
      )
  workdir, number = bucket.local(options.reproduce), 1
  name = f"{options.reproduce.rstrip('/')}-reproduced"
  again = bucket.local(options.workdir or name)
  while not options.workdir and rundir.read_run(again).get("status") == "done":
    number += 1
    again = bucket.local(f"{name}-{number}")
  return reproduce(workdir, again, train, print)


def reproduce(
  workdir: pathlib.Path, again: pathlib.Path, train: Callable[..., int], say: Callable[[str], None]
) -> int:
  """0 if the run trained again in `again` equals the one in `workdir`, else 1.

  Args:
    workdir: a run directory; nothing in it is changed.
    again: a directory for the new run; one that was begun there is gone on with.
    train: (configs, run directories, data, plan) -> exit code.
    say: prints a line.

  Raises:
    ConfigError: no run there, one that needs other devices, or whose data are not at hand.
  """
  cfg, was = rundir.read_config(workdir), rundir.read_run(workdir)
  name, other = bucket.name_of(workdir), bucket.name_of(again)
  if again.resolve() == workdir.resolve() or name.rstrip("/") == other.rstrip("/"):
    raise ConfigError(f"workdir={other}: is the run to reproduce; choose another --workdir")
  if "wandb_id" in was and rundir.read_run(again).get("wandb_id") == was["wandb_id"]:
    raise ConfigError(
      f"workdir={other}: is a copy of the run to reproduce, which agrees untrained; choose another --workdir"
    )
  _check_trained(workdir, name)
  keep_compiled(cfg.data.cache_dir)
  needed = int(np.prod(list(vars(cfg.mesh).values())))
  if needed > jax.device_count():
    raise ConfigError(
      f"reproduce={name}: was trained on {number_of(needed, 'device')}, here are "
      f"{jax.device_count()}; equal bits need as many"
    )
  kind = kind_of(cfg)
  data = kind.open(cfg)
  kind.sets(data, cfg)  # their fingerprints are part of what describes the data
  change = rundir.data_change(workdir, kind.describe(data))
  if change:
    raise ConfigError(
      f"reproduce={name}: its data are not at hand ({change}); bring them back, or clear data.cache_dir"
    )
  for step in sorted(rundir.checkpoint_steps(workdir))[-1:]:
    rundir.check_origin(workdir, step, cfg)
  code = train([cfg], [again], [data], run_plan.make_plan(cfg, data))
  now = rundir.read_run(again)
  if code and not (was.get("status") == now.get("status") == "failed"):
    return code
  found = [*record_differences(workdir, again), *parameter_differences(workdir, again)]
  ends = [f"{run.get('status')} ({run.get('reason')})" for run in (was, now)]
  if ends[0] != ends[1] and (code or not _left_something(workdir)):
    found.append(f"run.json: {ends[0]} there, {ends[1]} here")
  say("")
  for line in setting_differences(was, now):
    say(f"  differs     {line}")
  for line in found:
    say(f"  disagrees   {line}")
  verdict = "does not agree" if found else "agrees bit for bit"
  say(f"{name}: trained again in {other}, it {verdict} ({_compared(workdir, again)})")
  return 1 if found else 0


def _check_trained(workdir: pathlib.Path, name: str) -> None:
  """ConfigError for a run that was imported or compacted, or that holds nothing to compare with."""
  made = {packed.FILE: "compacted", rundir.IMPORTED: "imported"}
  how = next((how for file, how in made.items() if (workdir / file).is_file()), None)
  if how:
    reason = rundir.read_run(workdir).get("reason") or how
    raise ConfigError(
      f"reproduce={name}: was not trained ({reason}), so there is no training to repeat; make it again with "
      f"python -m lm.{'compact' if how == 'compacted' else 'hf import'}, or reproduce a run that was trained"
    )
  if not _left_something(workdir) and rundir.read_run(workdir).get("status") != "failed":
    raise ConfigError(
      f"reproduce={name}: holds no line of {' or '.join(COMPARED)} and no checkpoint to compare with; bring "
      "them back from a copy, or train it again with python train.py"
    )


def _left_something(workdir: pathlib.Path) -> bool:
  """Whether there is a line or a checkpoint to compare with."""
  lines = any(_by_step(workdir / file) for file in COMPARED)
  return lines or bool(rundir.checkpoint_steps(workdir))


def setting_differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """What a run and the one trained again had otherwise, by their run.json; where it matters, by stretches.

  What a run does not record is left out, and so are weights that lie elsewhere but are the same.
  """
  found = []
  changes = rundir.changes(was)
  for key in (*rundir.SETTING, *WEIGHTS):
    if key not in was:
      continue
    here, begin = now.get(key), 0
    stretches = [
      *((c["was"][key], c["step"]) for c in changes if key in c["was"]),
      (was[key], None),
    ]
    for there, end in stretches:
      when = f" after step {begin}" if begin else ""
      when = f"{when} up to step {end}" if end is not None else when
      words = _otherwise(there, here, when, key in WEIGHTS)
      found += [f"{key}: {words}"] if words else []
      begin = end or 0
  for change in changes:
    settings = {k: v for k, v in change["was"].items() if k not in rundir.SETTING}
    found += [f"{k}: {_short(v)} there up to step {change['step']}" for k, v in settings.items()]
  goes = [[(r["bad"], r["to"]) for r in run.get("rewinds", [])] for run in (was, now)]
  if goes[0] != goes[1]:
    words = [", ".join(f"from {bad} to {to}" for bad, to in each) or "none" for each in goes]
    found.append(f"rewinds: {words[0]} there, {words[1]} here")
  found += [
    f"data: others there after step {change['step']} (--accept_new_data)"
    for change in was.get("new_data", [])
  ]
  return found


def _otherwise(there: Any, here: Any, when: str, are_weights: bool) -> str | None:
  """A there, B here, and of objects what of them differs; None where nothing does."""
  mine, other = (dict(_parts(value)) for value in (there, here))
  differ = [k for k in {**mine, **other} if mine.get(k) != other.get(k)]
  if are_weights and not any(k.endswith("weights") for k in differ) and mine.keys() == other.keys():
    return None  # the same ones, from another place or another step
  words = (f"{k} {_short(mine.get(k))} there{when}, {_short(other.get(k))} here" for k in differ)
  return "; ".join(word.strip() for word in words) or None


def _parts(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
  """(name, value) of what an object holds, however deep; ("", value) of anything else."""
  if not isinstance(value, Mapping):
    yield name, value
    return
  for key, each in value.items():
    yield from _parts(each, f"{name}.{key}" if name else key)


def record_differences(a: pathlib.Path, b: pathlib.Path) -> list[str]:
  """The first step at which each file of the two records differs, up to the end of `a`.

  Its newest checkpoint says that it came so far, too: what its record lacks before that is a difference. A
  step that one of them did not log, as its log.every_steps was another, is not compared, nor are samples that
  were drawn by other settings.
  """
  found = []
  for name in COMPARED:
    mine, other = (_by_step(folder / name) for folder in (a, b))
    ways = [_written(folder, name) for folder in (a, b)]
    last = max((*(step for step, _ in mine), *rundir.checkpoint_steps(a)), default=0)
    for at in sorted({*mine, *(at for at in other if at[0] <= last)}):
      there, here = mine.get(at), other.get(at)
      way, another = (written(at[0]) for written in ways)
      alike = way == another or (name == "metrics.jsonl" and None not in (there, here))
      if there != here and alike:
        found.append(f"{name}, step {at[0]}: {_first_difference(there, here)}")
        break
  return found


def _by_step(path: pathlib.Path) -> dict[tuple[int, int], object]:
  """{(step, how many lines of it came before): line}; a damaged line counts as one of the step before."""
  lines, step, counts = {}, 0, Counter()
  for line in read_lines(path):
    step = line.get("step", step) if isinstance(line, dict) else step
    lines[step, counts[step]] = line
    counts[step] += 1
  return lines


def _written(workdir: pathlib.Path, name: str) -> Callable[[int], list]:
  """step -> the settings by which a run decided whether and what it writes of it, its evaluations aside."""
  cfg, about = flatten(rundir.read_config(workdir)), rundir.read_run(workdir)
  keys = ["log.every_steps"]
  if name == "samples.jsonl":
    keys = [key for key in cfg if key.startswith("sample.")]
  at_eval = lambda step: name == "metrics.jsonl" and step % cfg["eval.every_steps"] == 0
  return lambda step: (
    [] if at_eval(step) else [rundir.was_at(about, step, key, cfg[key]) for key in keys]
  )


def _first_difference(a: object, b: object) -> str:
  if not isinstance(a, dict) or not isinstance(b, dict):
    return f"{_short(a)} there, {_short(b)} here"
  key = next(k for k in (*a, *b) if a.get(k) != b.get(k) or (k in a) != (k in b))
  return f"{key} {_short(a.get(key))} there, {_short(b.get(key))} here"


def parameter_differences(a: pathlib.Path, b: pathlib.Path) -> list[str]:
  """The first array that differs at the newest step that both have saved: of parameters, means and the rest.

  Optimizers' states are not compared: what they hold shows in the updates.
  """
  step = _shared_step(a, b)
  if step is None:
    return []
  states = [load_state(folder, str(step))[0] for folder in (a, b)]
  for field in (f for f in HELD if all(f in state for state in states)):
    mine, other = (_leaves(state[field]) for state in states)
    for name in mine | other:
      if name not in mine or name not in other or not np.array_equal(mine[name], other[name]):
        return [f"checkpoint {step}: {field}{name}"]
  return []


def _shared_step(a: pathlib.Path, b: pathlib.Path) -> int | None:
  """The newest step whose checkpoint both have."""
  return max(rundir.checkpoint_steps(a) & rundir.checkpoint_steps(b), default=None)


def _compared(a: pathlib.Path, b: pathlib.Path) -> str:
  """How much there was to compare."""
  counts = [f"{number_of(len(_by_step(a / name)), 'line')} of {name}" for name in COMPARED]
  step = _shared_step(a, b)
  saved = "no checkpoint of the same step" if step is None else f"checkpoint {step}"
  failed = all(rundir.read_run(folder).get("status") == "failed" for folder in (a, b))
  return f"{', '.join([*counts, saved, *(['how both failed'] if failed else [])])}"


def _leaves(tree: Mapping) -> dict[str, np.ndarray]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _short(value: object) -> str:
  text = json.dumps(value)
  return text if len(text) < 80 else f"{text[:77]}..."
