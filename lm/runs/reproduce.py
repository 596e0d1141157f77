"""Trains a run again from its record alone, and says whether the two agree bit for bit.

Compared are the lines of metrics.jsonl and samples.jsonl, and the parameters of the newest checkpoint that
both have. Other devices, versions, data or weights to start from make a difference likely; they are named,
and so is what was otherwise in an earlier stretch of the run.
"""

import argparse
import json
import pathlib
from collections import Counter
from collections.abc import Callable, Mapping

import jax
import numpy as np

from lm.config.errors import ConfigError, number_of
from lm.config.schema import flatten
from lm.files import read_lines
from lm.plan import run_plan
from lm.runs import bucket, rundir
from lm.runs.checkpoint import load_state
from lm.setup.resolve import kind_of
from lm.training.compile_cache import keep_compiled

COMPARED = ("metrics.jsonl", "samples.jsonl")
SAME = (*rundir.SETTING, "init_from", "teachers")  # of run.json, for equal bits


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
  code = train([cfg], [again], [data], run_plan.make_plan(cfg, data))
  if code:
    return code
  now = rundir.read_run(again)
  differences = [
    f"{key}: {_short(was[key])} there, {_short(now.get(key))} here"
    for key in SAME
    if key in was and was[key] != now.get(key)
  ]
  for change in rundir.changes(was):
    differences += [
      f"{k}: {_short(v)} there up to step {change['step']}" for k, v in change["was"].items()
    ]
  differences += [
    f"data: others there after step {change['step']} (--accept_new_data)"
    for change in was.get("new_data", [])
  ]
  found = [*record_differences(workdir, again), *parameter_differences(workdir, again)]
  say("")
  for line in differences:
    say(f"  differs     {line}")
  for line in found:
    say(f"  disagrees   {line}")
  verdict = "does not agree" if found else "agrees bit for bit"
  say(f"{name}: trained again in {other}, it {verdict}")
  return 1 if found else 0


def record_differences(a: pathlib.Path, b: pathlib.Path) -> list[str]:
  """The first step at which each file of the two records differs, up to the end of `a`.

  A step that one of them did not log, as its log.every_steps was another, is not compared, nor are samples
  that were drawn by other settings.
  """
  found = []
  for name in COMPARED:
    mine, other = (_by_step(folder / name) for folder in (a, b))
    ways = [_written(folder, name) for folder in (a, b)]
    last = max((step for step, _ in mine), default=0)
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
  """The first parameter that differs at the newest step that both have saved."""
  shared = rundir.checkpoint_steps(a) & rundir.checkpoint_steps(b)
  if not shared:
    return []
  step = str(max(shared))
  mine, other = (_leaves(load_state(folder, step)[0]["params"]) for folder in (a, b))
  for name in mine | other:
    if name not in mine or name not in other or not np.array_equal(mine[name], other[name]):
      return [f"parameters at step {step}: {name}"]
  return []


def _leaves(tree: Mapping) -> dict[str, np.ndarray]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _short(value: object) -> str:
  text = json.dumps(value)
  return text if len(text) < 80 else f"{text[:77]}..."
