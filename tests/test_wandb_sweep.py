"""W&B sweeps: the YAML, and what becomes of an agent's trial."""

import os
import pathlib

import pytest
import yaml

from experiments.commands import command_line as cli
from experiments.commands import which
from experiments.launch import locks, wandb_sweep
from experiments.launch.jobs import train_command
from experiments.sweep import Run, sweep
from lm.config.errors import ConfigError
from tests.fake_runs import SMOKE

EXPERIMENTS = sorted(sweep.find_experiments())
GRID = ("--config", SMOKE, "--grid", "optim.peak_lr=1e-3,3e-3", "--set", "train.steps=20",
        "--grid", "data.sources=docstrings;synthetic:markov-64")  # fmt: skip
RANDOM = ("--config", SMOKE, "--random", "5", "optim.peak_lr=log:1e-4..1e-2", "seed=int:0..9",
          "model.bias=choice:True,False", "--halving", "3:2")  # fmt: skip


def spec_of(words, capsys):
  """The YAML that a command line prints."""
  options = cli.make_parser("about").parse_args(["wandb-sweep", *map(str, words)])
  options.act(options)
  text = capsys.readouterr().out
  return yaml.safe_load(text), text


def becomes(spec, args, monkeypatch):
  """The command that an agent's call of a sweep ends as."""
  words = []
  for word in spec["command"][4:]:
    words += args if word == "${args}" else [word]
  found = []
  monkeypatch.setattr(os, "execv", lambda path, command: found.append(command))
  options = cli.make_parser("about").parse_args(words)
  options.act(options)
  return found[0]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_trial_is_a_run_of_the_experiment_by_name(name, capsys, monkeypatch, tmp_path):
  spec, _ = spec_of([name, "--root", tmp_path], capsys)
  runs = sweep.load(name).runs
  assert spec["parameters"]["only"]["values"] == [run.name for run in runs]
  assert spec["metric"] == {"name": "eval/val/loss", "goal": "minimize"}
  assert spec["command"][:5] == ["${env}", "${interpreter}", "-m", "experiments", "agent"]
  command = becomes(spec, [f"--only={runs[-1].name}"], monkeypatch)
  member = sweep.resolve_run(runs[-1], tmp_path / name)
  mirrored = {"log.wandb": "auto", "log.wandb_group": name}
  assert command == train_command(member, mirrored)


def test_a_grid_has_its_hyperparameters_as_parameters(capsys, monkeypatch, tmp_path):
  spec, _ = spec_of([*GRID, "--root", tmp_path, "--method", "grid"], capsys)
  assert spec["parameters"] == {
    "optim.peak_lr": {"values": [0.001, 0.003]},
    "data.sources": {"values": ["docstrings", "synthetic:markov-64"]},
  }
  args = ["--data.sources=synthetic:markov-64", "--optim.peak_lr=0.003"]
  command = becomes(spec, args, monkeypatch)
  options = cli.make_parser("about").parse_args(["run", *GRID])
  run = which.select(options).runs[-1]  # the same run, under the same name, as without W&B
  assert pathlib.Path(command[command.index("--workdir") + 1]).name == run.name
  assert "--config.train.steps=20" in command and "--config.log.wandb=auto" in command


def test_a_random_search_has_distributions_and_hyperband_from_halving(
  capsys, monkeypatch, tmp_path
):
  spec, _ = spec_of([*RANDOM, "--root", tmp_path, "--method", "bayes"], capsys)
  assert spec["method"] == "bayes" and spec["run_cap"] == 5
  assert spec["parameters"] == {
    "optim.peak_lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2},
    "seed": {"distribution": "int_uniform", "min": 0, "max": 9},
    "model.bias": {"values": ["True", "False"]},
  }
  assert spec["early_terminate"]["type"] == "hyperband" and spec["early_terminate"]["eta"] == 3
  args = ["--optim.peak_lr=0.0023", "--seed=4", "--model.bias=True"]  # one that nobody listed
  command = becomes(spec, args, monkeypatch)
  assert "--config.optim.peak_lr=0.0023" in command and "--config.seed=4" in command
  assert command[command.index("--workdir") + 1].endswith("/peak_lr=0.0023,seed=4,bias=True")


def test_a_saved_sweep_needs_no_file_on_the_agents_machine(capsys, tmp_path):
  options = cli.make_parser("about").parse_args(
    ["run", *GRID, "--save_as", "mine", "--root", str(tmp_path)]
  )
  which.save_sweep(tmp_path / "mine", options)
  spec, _ = spec_of(["mine", "--root", tmp_path, "--method", "grid"], capsys)
  (tmp_path / "mine" / "sweep.json").unlink()
  words = [w for w in spec["command"][4:] if w not in ("${args}", "--")]
  again = which.select(cli.make_parser("about").parse_args(words))
  assert again.name == "mine" and again.runs == which.select(options).runs


def test_two_agents_do_not_train_one_run(capsys, monkeypatch, tmp_path):
  spec, _ = spec_of([*GRID, "--save_as", "s", "--root", tmp_path], capsys)
  name = spec["parameters"]["only"]["values"][0]
  held = locks.take(tmp_path / "s" / name)
  with pytest.raises(ConfigError, match=r"another process trains it; let the agent take the next"):
    becomes(spec, [f"--only={name}"], monkeypatch)
  held.release()


def test_what_is_no_trial_gets_one_line():
  runs = [Run("a", {"seed": 1, "optim.peak_lr": 1e-3}, SMOKE), Run("b", {"seed": 2}, SMOKE)]
  uneven = sweep.make_experiment("uneven", runs)
  with pytest.raises(
    ConfigError, match=r"run b does not set optim.peak_lr, as others do; use --method"
  ):
    wandb_sweep.varied(uneven)
  runs = [Run(f"r{i}", {"seed": i, "optim.peak_lr": (i + 1) * 1e-3}, SMOKE) for i in range(2)]
  diagonal = sweep.make_experiment("diagonal", runs)
  with pytest.raises(
    ConfigError, match=r"method=grid: the 2 runs of diagonal are not every combin"
  ):
    wandb_sweep.sweep_spec(diagonal, ["diagonal"], "grid")
  with pytest.raises(ConfigError, match="agent=sed: does not vary in diagonal; did you mean seed"):
    wandb_sweep.trial(diagonal, {"sed": "1"})
  with pytest.raises(ConfigError, match="agent=x: must be --KEY=VALUE"):
    wandb_sweep.read_args(["x"])
  assert wandb_sweep.trial(diagonal, {"seed": "1", "optim.peak_lr": "0.002"}) is diagonal.runs[1]
