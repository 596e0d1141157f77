"""Sweeps that Weights & Biases schedules: their description, and the agent that trains a trial."""

import json
import os

from experiments.commands.printing import print_json
from experiments.commands.which import folder_of, select, sweep_words
from experiments.sweep import described, sweep
from lm.config.errors import ConfigError


def wandb_sweep(options) -> None:
  from experiments.launch import wandb_sweep as sweeps

  experiment = select(options)
  words, ranges = _sweep_words(options)
  spec = sweeps.sweep_spec(experiment, words, options.method, ranges)
  if options.json:
    print_json(spec)
    return
  print(f"# {experiment.question or experiment.name}")
  print("# wandb sweep FILE, then wandb agent ID on as many machines as there are")
  if experiment.halving and options.method == "names":
    print("# all at full budget: an agent sees one run at a time, so it cannot halve")
  for key, value in spec.items():
    print(f"{key}: {json.dumps(value)}")  # JSON is YAML


def agent(options) -> int:
  """Becomes train.py for the run that a W&B agent's parameters stand for."""
  from experiments.launch import jobs, locks
  from experiments.launch import wandb_sweep as sweeps

  if options.config and options.name:  # the first parameter, where nothing names the sweep
    options.args, options.name = [options.name, *options.args], None
  experiment = select(options)
  run = sweeps.trial(experiment, sweeps.read_args(options.args))
  member = sweep.resolve_run(run, folder_of(options, experiment))
  lock = locks.take(member.workdir)
  if lock is None:
    raise ConfigError(f"run {run.name}: another process trains it; let the agent take the next one")
  if lock.descriptor is not None:
    os.set_inheritable(lock.descriptor, True)
  settings = {"log.wandb": "auto", "log.wandb_group": experiment.name}
  command = jobs.train_command(member, settings)
  os.execv(command[0], command)


def _sweep_words(options) -> tuple[list[str], list[str]]:
  """The words that describe the experiment on any machine, and the ranges of its random search."""
  spec = sweep_words(options)
  words = ["--scale", options.scale] if options.scale else []
  words += ["--root", options.root] if options.root != "runs" else []
  if spec is None:
    words += [w for text in options.set for w in ("--set", text)]
    return [*words, options.name], []  # the name last: parameters follow it
  words += ["--save_as", spec["name"] or select(options).name, *described.options(spec)]
  return words, spec["random"][1:]
