"""Trains one language model, or a stack of them, from a config to a run directory.

It reads from top to bottom: what to do, configs, devices and data, state, the loop, the end. What it calls
are functions of lm/.

examples:
  python train.py
  python train.py --config configs/ladder.py:1m --workdir runs/1m --config.optim.peak_lr=3e-3
  python train.py --profile 10:13
  python train.py --config configs/gpt2.py:124m --plan
  python train.py --config configs/llama.py:1b --plan --topology v5e:2x4 --config.mesh.fsdp=8
"""

import os

from lm import host

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before jax: XLA's notes are not the user's
if __name__ == "__main__":
  host.take_large_pages()

import concurrent.futures
import dataclasses
import json
import math
import pathlib
import sys

import jax

from lm import compiled, fit, flags, plan, processes, rundir, sharding, summary, topology
from lm.config import Config
from lm.data.batches import TrainBatches
from lm.data.cache import Corpus, open_corpus
from lm.data.tokenizers import known_vocab_size
from lm.evaluate import eval_batches, evaluate_sets
from lm.generate import make_sampler
from lm.log import Progress
from lm.resolve import check_stack, make_hparams, resolve
from lm.run import Run, split_runs
from lm.step import eval_params, keep_compiled, make_programs, stack_runs, take_run
from lm.watch import Clock, Profile, StopSignal, read_profile

HERE = pathlib.Path(__file__).parent


def main(argv: list[str]) -> int:
  # ---- What to do ------------------------------------------------------------------------------
  parser = flags.Parser(prog="train.py", description=__doc__)
  parser.add_argument("--config", default=str(HERE / "configs/default.py"), help="FILE[:ARGUMENT]")
  parser.add_argument("--workdir", help="run directory; runs/<config's name> if not given")
  parser.add_argument("--profile", help="FIRST:LAST steps to trace into WORKDIR/profile")
  parser.add_argument("--stack", help="JSON lines {config, overrides, workdir}: runs to stack")
  parser.add_argument("--coordinator", help="host:port of process 0, where nothing tells it")
  parser.add_argument("--processes", type=int, help="number of processes, with --coordinator")
  parser.add_argument("--process", type=int, help="number of this one, from 0")
  parser.add_argument("--print_config", action="store_true", help="print the resolved config")
  parser.add_argument("--plan", action="store_true", help="print what the run will cost")
  parser.add_argument("--compile", action="store_true", help="with --plan: compile the step first")
  parser.add_argument("--topology", help="with --plan: compile it for TPUs such as v5p:8x8x8")
  parser.add_argument("--fit", action="store_true", help="with --plan: find the fastest that fits")
  parser.add_argument("--json", action="store_true", help="print the answer as JSON")
  rest, overrides = flags.split_overrides(argv)
  options, unknown = parser.parse_known_args(rest)
  flags.reject_unknown(parser, unknown)
  plan.check_options(options)
  if options.stack:
    asked = flags.read_stack(options.stack)
  else:
    name = pathlib.Path(options.config.replace(".py", "").replace(":", "-")).name
    asked = [(options.config, overrides, options.workdir or f"runs/{name}")]

  # ---- Configs, resolved against tokenizer and devices -----------------------------------------
  cfgs = [flags.load_config(spec, changes) for spec, changes, _ in asked]
  workdirs = [pathlib.Path(workdir) for *_, workdir in asked]
  keep_compiled(cfgs[0].data.cache_dir)
  processes.start(options.coordinator, options.processes, options.process)
  if len(cfgs) > 1:
    processes.start_stack(len(cfgs))
  vocab_size, corpora = known_vocab_size(cfgs[0].data), None
  if vocab_size is None or not (options.print_config or options.plan):
    opened = {data: open_corpus(data) for data in dict.fromkeys(cfg.data for cfg in cfgs)}
    corpora = [opened[cfg.data] for cfg in cfgs]
    vocab_size = corpora[0].vocab_size
  devices = topology.devices(options.topology) if options.topology else jax.devices()
  if options.fit:
    found = fit.search(cfgs[0], vocab_size, devices, say=lambda line: print(line, file=sys.stderr))
    print(json.dumps(found, indent=2) if options.json else fit.show(found))
    return 0
  n_devices = len(devices) if len(cfgs) == 1 else 1
  cfgs = [resolve(cfg, vocab_size, n_devices) for cfg in cfgs]
  check_stack(cfgs)
  profile = options.profile and read_profile(options.profile, cfgs[0].train.steps)
  if options.print_config:
    print(flags.show(cfgs[0], options.json))
    return 0
  facts = plan.make_plan(cfgs[0], corpora and corpora[0], devices)
  if options.compile or options.topology:
    mesh = sharding.make_mesh(cfgs[0].mesh, devices=devices)
    facts["compiled"] = compiled.examine(cfgs[0], mesh)
  if options.plan:
    print(json.dumps(facts, indent=2) if options.json else plan.show(facts))
    return 0
  return train(cfgs, workdirs, corpora, facts, profile)


def train(
  cfgs: list[Config],
  workdirs: list[pathlib.Path],
  corpora: list[Corpus],
  facts: dict,
  profile: tuple[int, int] | None = None,
) -> int:
  """Trains runs of one shape together; returns the exit code.

  Args:
    cfgs: resolved configs that differ in traced hyperparameters only, one a run.
    workdirs: run directories, one a run.
    corpora: opened data, one a run.
    facts: the plan of the first.
    profile: first and last step to trace.
  """
  unfinished = [i for i, c in enumerate(cfgs) if not rundir.is_done(workdirs[i], c)]
  if not unfinished:
    Progress(quiet=not processes.is_leader()).line(summary.show(workdirs))
    return 0
  cfgs, workdirs, corpora = ([a[i] for i in unfinished] for a in (cfgs, workdirs, corpora))
  cfg, stacked = cfgs[0], len(cfgs) > 1
  total = cfg.train.steps
  progress = Progress(quiet=not processes.is_leader())
  progress.line(plan.show(facts))

  # ---- Devices and data ------------------------------------------------------------------------
  # The last run of a stack is alone, and its mesh one device however many there are.
  devices = None if stacked else jax.devices()[: math.prod(dataclasses.astuple(cfg.mesh))]
  mesh = sharding.make_mesh(cfg.mesh, len(cfgs), devices)
  programs = make_programs(cfg, mesh, stacked)
  train_data = [
    TrainBatches(corpus, c.data, c.model.seq_len, c.train.batch_size)
    for corpus, c in zip(corpora, cfgs, strict=True)
  ]
  stores = {"val": corpora[0].val}
  stores |= {n: corpora[0].extra(s) for n, s in (entry.split("=", 1) for entry in cfg.eval.sets)}
  eval_data = {name: eval_batches(store, cfg, cfg.eval.tokens) for name, store in stores.items()}

  def load(step: int):
    """The batch of the update after `step` updates, on the devices."""
    rows_of = lambda rows: stack_runs([data.at(step, rows) for data in train_data])
    return sharding.put_rows(rows_of, cfg.train.batch_size, programs.batch_sharding)

  # ---- State: new, or from the newest checkpoint that every run has ----------------------------
  runs = [Run(*one, facts) for one in zip(cfgs, workdirs, corpora, strict=True)]
  hparams = jax.device_put(stack_runs([make_hparams(c) for c in cfgs]), programs.scalar_sharding)
  start = max(set.intersection(*(set(run.checkpoints.steps()) for run in runs)), default=0)
  if start:
    state = stack_runs([run.checkpoints.restore(programs.run_shape, start) for run in runs])
    state = jax.device_put(state, programs.state_sharding)
    progress.line(f"resumed at step {start} of {total}")
  else:
    state = programs.init(hparams)
  for run in runs:
    run.begin(start)
  sampler = make_sampler(cfg, corpora[0].tokenizer, None if stacked else mesh)

  # ---- The loop --------------------------------------------------------------------------------
  clock = Clock(total, cfg.train.batch_size * cfg.model.seq_len * len(runs), facts)

  def note(step, metrics, evals=None):
    """Records one step of every run: its metrics, and evaluations where there are any."""
    measured = split_runs(jax.device_get(metrics), len(runs))
    speed = clock.lap(step) if evals or step % cfg.log.every_steps == 0 else {}
    for run, values, more in zip(runs, measured, evals or [{}] * len(runs), strict=True):
      run.note(step, values, speed, more)
    if not evals:
      progress.update(clock.line(step, "train/loss", [m["train/loss"] for m in measured]))

  pending, stopping = None, False
  traced = profile if processes.is_leader() else None
  profiler = Profile(traced, workdirs[0] / "profile", clock, progress.line)
  with StopSignal() as stop, profiler, concurrent.futures.ThreadPoolExecutor(1) as loader:
    loading = loader.submit(load, start)
    for step in range(start + 1, total + 1):
      with clock.waiting():
        batch = loading.result()
      loading = loader.submit(load, step)
      with profiler.begin(step, pending), jax.transfer_guard("disallow"):
        state, metrics = programs.train(state, batch, hparams)
      profiler.end(step, metrics)
      if pending:
        note(*pending)  # the numbers of the step before, fetched while this one runs
      pending = (step, metrics)
      at_eval = step % cfg.eval.every_steps == 0 or step == total
      at_log = step % cfg.log.every_steps == 0
      stopping = (at_log or jax.process_count() == 1) and processes.anywhere(stop.asked)
      at_save = step % cfg.checkpoint.every_steps == 0 or step == total or stopping
      if not (at_eval or at_save):
        continue
      jax.block_until_ready(metrics)  # or the time of this step would be taken for evaluation's
      with clock.away():
        evals = None
        if at_eval:
          evals = evaluate_sets(programs, eval_params(state), hparams, eval_data, len(runs))
      note(*pending, evals)
      pending = None
      with clock.away():
        held = jax.device_get(state) if stacked else state
        for index, run in enumerate(runs):
          if run.active:
            mine = take_run(held, index) if stacked else held
            is_best = at_eval and run.judge(step, evals[index])
            if at_eval and sampler:
              run.sample(step, sampler(eval_params(mine), step))
            due = at_save or run.stopped_early
            if due or (is_best and run.cfg.checkpoint.best):
              run.save(mine, step, due)
            if run.stopped_early:
              run.end("done")
      if evals:
        progress.line(clock.line(step, "eval/val/loss", [e["eval/val/loss"] for e in evals]))
      if stopping or not any(run.active for run in runs):
        break

  # ---- The end ---------------------------------------------------------------------------------
  for run in runs:
    interrupted = stopping and run.last_saved < total
    run.end("interrupted" if interrupted else "done", tokens_per_sec=clock.average())
  progress.line(summary.show([run.workdir for run in runs]))
  return int(any(run.status == "failed" for run in runs))


if __name__ == "__main__":
  flags.run_main(main)
