"""Trains one language model, or a stack of them, from a config to a run directory.

It reads from top to bottom: what to do, configs, devices and data, state, the loop, the end; it calls lm/.

examples:
  python train.py
  python train.py --config configs/ladder.py:1m --workdir runs/1m --config.optim.peak_lr=3e-3
  python train.py --profile 10:13
  python train.py --config configs/gpt2.py:124m --plan
  python train.py --config configs/llama.py:1b --plan --topology v5e:2x4 --config.mesh.fsdp=8
"""

import os

from lm.config import interrupts
from lm.devices import host

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # before jax: XLA's notes are not the user's
if __name__ == "__main__":
  interrupts.listen()
  host.take_large_pages()

import concurrent.futures
import dataclasses
import json
import math
import pathlib
import sys

import jax

from lm import start_from
from lm.config import command_line, train_options
from lm.config.schema import Config
from lm.cost.flops import run_flops_per_token
from lm.data import curriculum
from lm.devices import peers, processes, sharding, topology
from lm.evaluate import eval_sets, evaluate_sets
from lm.objectives.registry import objective_of
from lm.plan import compiled, layouts
from lm.plan import run_plan as plans
from lm.runs import agreement, bucket, failures, reproduce, rundir, speed, summary, teachers
from lm.runs.progress import Progress
from lm.runs.resume import restore_newest
from lm.runs.writer import are_over, open_runs, split_runs
from lm.setup.hparams import check_stack, make_hparams
from lm.setup.load import load_config
from lm.setup.resolve import kind_of, resolve
from lm.training.clock import Clock
from lm.training.compile_cache import keep_compiled
from lm.training.profile import Profile, read_profile
from lm.training.programs import make_programs, stack_runs, take_run
from lm.training.signals import StopSignal
from lm.training.step import eval_params
from lm.training.watchdog import Watchdog

HERE = pathlib.Path(__file__).parent


def main(argv: list[str]) -> int:
  # ---- What to do ------------------------------------------------------------------------------
  options, overrides = train_options.read_options(argv, __doc__, HERE / "configs/default.py")
  plans.check_options(options)
  if options.reproduce is not None:
    return reproduce.main(options, overrides, train)
  asked = train_options.asked_runs(options, overrides)

  # ---- Configs, resolved against data and devices ----------------------------------------------
  processes.start(options.coordinator, options.processes, options.process)
  cfgs = [load_config(spec, changes) for spec, changes, _ in asked]
  keep_compiled(cfgs[0].data.cache_dir)
  cfgs = [speed.known(cfg, workdir) for cfg, (*_, workdir) in zip(cfgs, asked, strict=True)]
  if len(cfgs) > 1:
    processes.start_stack(len(cfgs))
  kind = kind_of(cfgs[0])
  vocab_size, data, rows = kind.vocab_size(cfgs[0]), None, [None] * len(cfgs)
  if vocab_size is None or speed.is_missing(cfgs) or not (options.print_config or options.plan):
    opened = {cfg.data: kind.open(cfg) for cfg in {cfg.data: cfg for cfg in cfgs}.values()}
    data = [opened[cfg.data] for cfg in cfgs]
    vocab_size = data[0].vocab_size
    rows = [kind.mean_units(each, cfg) for each, cfg in zip(data, cfgs, strict=True)]
  agreement.check(cfgs[0], data and data[0])
  devices = topology.devices(options.topology) if options.topology else jax.devices()
  if options.fit:
    found = layouts.search(cfgs[0], vocab_size, devices, lambda line: print(line, file=sys.stderr))
    print(layouts.to_json(found) if options.json else layouts.show(found))
    return 0
  cfgs = speed.measured(cfgs, vocab_size, devices, data, rows)
  n_devices = len(devices) if len(cfgs) == 1 else 1
  cfgs = [resolve(cfg, vocab_size, n_devices, row) for cfg, row in zip(cfgs, rows, strict=True)]
  check_stack(cfgs)
  profile = options.profile and read_profile(options.profile, cfgs[0].train.steps)
  if options.print_config:
    print(command_line.show(cfgs[0], options.json))
    return 0
  plan = plans.make_plan(cfgs[0], data and data[0], devices)
  if options.compile or options.topology:
    found = compiled.examine(cfgs[0], sharding.make_mesh(cfgs[0].mesh, devices=devices))
    plan = dataclasses.replace(plan, compiled=found)
  if options.plan:
    print(json.dumps(plan.to_dict(), indent=2) if options.json else plans.show(plan))
    return 0
  workdirs = [bucket.local(workdir) for *_, workdir in asked]
  return train(cfgs, workdirs, data, plan, profile, options.accept_new_data)


@failures.guarded
def train(
  cfgs: list[Config],
  workdirs: list[pathlib.Path],
  data: list,
  plan: plans.Plan,
  profile: tuple[int, int] | None = None,
  accept_new_data: bool = False,
) -> int | None:
  """Trains runs of one shape together; returns the exit code, or None where they are to go on anew.

  Args:
    cfgs: resolved configs that differ in traced hyperparameters only, one a run.
    workdirs: run directories, one a run.
    data: opened by the objective's kind of batch, one a run.
    plan: of the first.
    profile: first and last step to trace.
    accept_new_data: go on with runs whose data have changed.
  """
  unfinished, left = rundir.to_train(workdirs, cfgs)
  progress = Progress(quiet=not processes.is_leader())
  if not unfinished:
    progress.line(summary.show(workdirs))
    return 0
  cfgs, workdirs, data = ([a[i] for i in unfinished] for a in (cfgs, workdirs, data))
  cfg, n_runs, total = cfgs[0], len(cfgs), cfgs[0].train.steps
  kind, objective, stacked = kind_of(cfg), objective_of(cfg.objective), n_runs > 1
  progress.line(plans.show(plan))

  # ---- Devices and data ------------------------------------------------------------------------
  # The last run of a stack is alone, and its mesh one device however many there are.
  devices = None if stacked else jax.devices()[: math.prod(dataclasses.astuple(cfg.mesh))]
  mesh = sharding.make_mesh(cfg.mesh, n_runs, devices)
  programs = make_programs(cfg, mesh, stacked)
  batches = [kind.train(each, c) for each, c in zip(data, cfgs, strict=True)]
  held_out = eval_sets(data[0], cfg)

  def load(step: int):
    """The batch of the update after `step` updates, on the devices."""
    pairs = list(zip(batches, runs, strict=True))
    reader = curriculum.Reader(cfg, step)
    read = lambda b, run, rows: reader.read(b, run.batch_number(step), rows)
    rows_of = lambda rows: stack_runs([read(b, run, rows) for b, run in pairs])
    return sharding.put_rows(rows_of, reader.rows, programs.batch_sharding)

  # ---- State: new, or from the newest checkpoint that every run has ----------------------------
  taught = teachers.load(cfg, data[0], programs, workdirs, n_runs)
  about = {"teachers": taught.about} if taught.about else {}
  sample = objective.make_sampler(cfg, data[0].tokenizer, None if stacked else mesh)
  runs = open_runs(cfgs, workdirs, data, plan, accept_new_data, about)
  hparams = jax.device_put(stack_runs([make_hparams(c) for c in cfgs]), programs.scalar_sharding)
  saved, start = restore_newest(runs, programs.run_shape)
  loaded = None if start else start_from.load(cfg, programs.run_shape.params)
  if start:
    state = jax.device_put(stack_runs(saved), programs.state_sharding)
    progress.line(f"resumed at step {start} of {total}")
  else:
    state = start_from.place(programs.init(hparams), loaded, n_runs, progress.line)
  state = taught.attach(state)
  for run in runs:
    run.begin(start, loaded and loaded.about)

  # ---- The loop --------------------------------------------------------------------------------
  per_step = plan.tokens_per_step * n_runs
  flops_until = lambda step: step * per_step * run_flops_per_token(cfg, "exact", step)
  clock = Clock(total, per_step, flops_until, plan.peak_flops, plan.unit)

  def note(step, metrics, evals=None):
    """Records one step of every run: its metrics, and evaluations where there are any."""
    measured = split_runs(jax.device_get(metrics), n_runs)
    perf = clock.lap(step) if evals or step % cfg.log.every_steps == 0 else {}
    for run, (tokens, values), more in zip(runs, measured, evals or [{}] * n_runs, strict=True):
      run.note(step, tokens, values, perf, more)
    if not evals:
      progress.update(clock.line(step, objective.shown, [m[objective.shown] for _, m in measured]))

  pending, stopping = None, False
  traced = profile if processes.is_leader() else None
  profiler = Profile(traced, workdirs[0] / "profile", clock, progress.line)
  watchdog, pool = Watchdog(cfg.train.hang_seconds), concurrent.futures.ThreadPoolExecutor(1)
  with StopSignal() as stop, profiler, watchdog, pool as loader:
    loading = loader.submit(load, start)
    for step in range(start + 1, total + 1):
      with clock.waiting():
        batch = loading.result()
      loading = loader.submit(load, step)
      watchdog.beat(step)
      calling = clock.calling(batch)
      with profiler.begin(step, pending), calling, jax.transfer_guard("disallow"):
        state, metrics = programs.train(state, batch, hparams)
      profiler.end(step, metrics)
      if pending:
        note(*pending)  # the numbers of the step before, fetched while this one runs
      pending = (step, metrics)
      at_eval = step % cfg.eval.every_steps == 0 or step == total
      at_log = step % cfg.log.every_steps == 0
      stopping = (at_log or jax.process_count() == 1) and processes.anywhere(stop.asked)
      at_save = step % cfg.checkpoint.every_steps == 0 or step == total or stopping
      if are_over(runs):
        break
      if not (at_eval or at_save):
        continue
      jax.block_until_ready(metrics)  # or the time of this step would be taken for evaluation's
      evals = None
      if at_eval:
        with clock.away():
          held = eval_params(state), state.extra
          evals = evaluate_sets(programs, objective, *held, hparams, held_out, n_runs)
      note(*pending, evals)
      pending = None
      with clock.away():
        held = jax.device_get(state) if stacked else state
        for index, run in enumerate(runs):
          if run.active:
            mine = take_run(held, index) if stacked else held
            is_best = at_eval and run.judge(step, evals[index])
            if at_eval and sample:
              run.sample(step, sample(objective.in_use(eval_params(mine), mine.extra), step))
            due = at_save or run.stopped_early
            if due or (is_best and run.cfg.checkpoint.best):
              run.save(mine, step)
            if run.stopped_early:
              run.end("done")
      if evals:
        name = cfg.eval.stop_metric
        progress.line(clock.line(step, name, [scores[name] for scores in evals]))
      if stopping or are_over(runs):
        break

  # ---- The end ---------------------------------------------------------------------------------
  if any(run.status == "rewound" for run in runs):  # all go back, to what they share
    for run in runs:
      run.end("rewound")
    return stop.exit_code if processes.anywhere(stop.asked) else None
  for run in runs:
    interrupted = stopping and run.last_saved < total
    run.end("interrupted" if interrupted else "done", tokens_per_sec=clock.average())
  progress.line(summary.show([run.workdir for run in runs]))
  statuses = [*left, *(run.status for run in runs)]
  return 1 if "failed" in statuses else stop.exit_code if "interrupted" in statuses else 0


if __name__ == "__main__":
  command_line.run_main(peers.together(main))
