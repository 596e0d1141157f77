"""W&B sweeps over an experiment: hyperparameters as parameters, and the run that an agent's trial stands for.

The YAML carries the words that describe the sweep, so agents on any machine with the code need nothing
else. An agent calls `python -m experiments agent WORDS -- --KEY=VALUE ...`, which becomes train.py: the
trial's W&B run is the run's own.
"""

import math
import pathlib
from collections.abc import Mapping, Sequence

from experiments.sweep.search import Range, parse_range
from experiments.sweep.sweep import Experiment, Run, resolve_run, run_name
from lm.config.errors import ConfigError, suggest

METHODS = ("grid", "random", "bayes")


def shared_overrides(experiment: Experiment) -> dict[str, object]:
  """What all runs set alike."""
  first, *rest = (run.overrides for run in experiment.runs)
  same = lambda key: all(key in other and other[key] == first[key] for other in rest)
  return {key: value for key, value in first.items() if same(key)} if rest else {}


def varied(experiment: Experiment) -> dict[str, list[object]]:
  """{key: its values, in order of appearance} of the keys in which runs differ.

  Raises:
    ConfigError: some runs do not set a key that others do, or runs have different configs.
  """
  if len({run.config for run in experiment.runs}) > 1:
    raise ConfigError(
      f"wandb={experiment.name}: its runs have different configs, which are no parameters; "
      "use --method names"
    )
  shared = shared_overrides(experiment)
  found: dict[str, list[object]] = {}
  for run in experiment.runs:
    for key, value in run.overrides.items():
      if key not in shared:
        values = found.setdefault(key, [])
        if value not in values:
          values.append(value)
  for run in experiment.runs:
    for key in found:
      if key not in run.overrides:
        raise ConfigError(
          f"wandb={experiment.name}: run {run.name} does not set {key}, as others do; use --method names"
        )
  return found


def sweep_spec(
  experiment: Experiment, words: Sequence[str], method: str, ranges: Sequence[str] = ()
) -> dict[str, object]:
  """The sweep's configuration, as W&B documents it.

  Args:
    words: what names the experiment on a command line.
    method: grid, random or bayes; `names` = one parameter, the name of a run of the experiment.
    ranges: KEY=RANGE of a random search, which become distributions.
  """
  member = resolve_run(experiment.runs[0], pathlib.Path("runs"))
  if method == "names":
    parameters: dict[str, object] = {"only": {"values": [run.name for run in experiment.runs]}}
  else:
    spans = dict(parse_range(text) for text in ranges) if method != "grid" else {}
    parameters = {
      key: _distribution(spans[key])
      if key in spans
      else {"values": [_parameter_value(v) for v in values]}
      for key, values in varied(experiment).items()
    }
    combinations = math.prod(len(p["values"]) for p in parameters.values() if "values" in p)
    if method == "grid" and combinations != len(experiment.runs):
      raise ConfigError(
        f"method=grid: the {len(experiment.runs)} runs of {experiment.name} are not every combination of "
        f"their values ({combinations}); use --method names, random or bayes"
      )
  spec = {
    "name": experiment.name,
    "method": "grid" if method == "names" else method,
    "metric": {"name": member.cfg.eval.stop_metric, "goal": "minimize"},
    "parameters": parameters,
    "command": [
      "${env}", "${interpreter}", "-m", "experiments", "agent", *words, "--", "${args}",
    ],
  }  # fmt: skip
  if method in ("random", "bayes"):
    spec["run_cap"] = len(experiment.runs)
  if experiment.halving and method != "names":
    evals = -(-member.cfg.train.steps // member.cfg.eval.every_steps)
    eta, rungs = experiment.halving.eta, experiment.halving.rungs
    least = max(1, evals // eta ** (rungs - 1))
    spec["early_terminate"] = {"type": "hyperband", "min_iter": least, "eta": eta}
  return spec


def read_args(args: Sequence[str]) -> dict[str, str]:
  """{key: value} of the --KEY=VALUE that an agent appends."""
  values = {}
  for arg in args:
    key, equals, value = arg.removeprefix("--").partition("=")
    if not (arg.startswith("--") and equals):
      raise ConfigError(f"agent={arg}: must be --KEY=VALUE, as a W&B agent writes parameters")
    values[key] = value
  return values


def trial(experiment: Experiment, values: Mapping[str, str]) -> Run:
  """The run that a trial's parameters stand for: the experiment's own where it has it, else a new one.

  Raises:
    ConfigError: a parameter that does not vary in the experiment, or no such run.
  """
  if set(values) == {"only"}:
    by_name = {run.name: run for run in experiment.runs}
    if values["only"] not in by_name:
      raise ConfigError(f"only={values['only']}: no such run; {suggest(values['only'], by_name)}")
    return by_name[values["only"]]
  known = varied(experiment)
  for key in values:
    if key not in known:
      raise ConfigError(f"agent={key}: does not vary in {experiment.name}; {suggest(key, known)}")
  for run in experiment.runs:
    if all(_same(run.overrides[key], values.get(key)) for key in known):
      return run
  missing = [key for key in known if key not in values]
  if missing:
    raise ConfigError(f"agent={missing[0]}: is missing; the sweep was made from another experiment")
  return Run(
    run_name(values), {**shared_overrides(experiment), **values}, experiment.runs[0].config
  )


def _distribution(span: Range) -> dict[str, object]:
  """A range as W&B writes it."""
  if span.kind == "choice":
    return {"values": [_parameter_value(v) for v in span.options]}
  if span.kind == "int":
    return {"distribution": "int_uniform", "min": int(span.low), "max": int(span.high)}
  name = "log_uniform_values" if span.kind == "log" else "uniform"
  return {"distribution": name, "min": span.low, "max": span.high}


def _parameter_value(value: object) -> object:
  """A value as JSON has it; texts of numbers as numbers, tuples as texts with commas."""
  if isinstance(value, list | tuple):
    return ",".join(map(str, value))
  if isinstance(value, str):
    for kind in (int, float):
      try:
        return kind(value)
      except ValueError:
        continue
  return value


def _same(ours: object, given: str | None) -> bool:
  """Whether a parameter's text is this value."""
  if given is None:
    return False
  mine = _parameter_value(ours)
  if isinstance(mine, int | float) and not isinstance(mine, bool):
    try:
      return float(given) == float(mine)
    except ValueError:
      return False
  return str(mine) == given
