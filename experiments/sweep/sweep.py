"""What an experiment is: one file with a question, its runs, an analysis and the claims it tests.

experiments/NAME.py has
  a docstring      the question; scientific, nuisance and fixed hyperparameters; budget; when done
  runs()           yields Run(name, overrides); runs(scale="cpu") where it comes in several sizes
  analyse(ledger)  optional: {what: Estimate | fit | table} from the runs that are done
  claims           optional: a tuple of experiments.report.claims.Claim
  pictures(ledger, results) optional: {name: (chart, caption)} of what the report's own figures do not
                   show; results are what analyse returns
  halving          optional: an experiments.sweep.halving.Halving
  law              optional: the law in N and D that its runs must carry, a key of
                   experiments.laws.LAWS or "isoflop"; `plan` and `run` refuse a design that cannot.
                   {scale: law} where not every scale is for one
"""

import ast
import dataclasses
import importlib.util
import inspect
import json
import math
import pathlib
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lm.config.errors import ConfigError, suggest, where_raised
from lm.config.identity import identity, identity_fields
from lm.config.schema import BUDGETS, Config, DataConfig, rules_of
from lm.objectives.registry import objective_of
from lm.setup.load import known_keys, load_config
from lm.setup.resolve import kind_of, resolve

HERE = pathlib.Path(__file__).parent.parent
REPO = HERE.parent
DEFAULT_CONFIG = "configs/default.py"
OPEN_AT_ONCE = 64  # data that stay open
NAME = re.compile(r"[\w.,=+@-]+")


@dataclasses.dataclass(frozen=True)
class Run:
  """One run of an experiment: `name` is its folder, `overrides` change keys of `config`."""

  name: str
  overrides: Mapping[str, object] = dataclasses.field(default_factory=dict)
  config: str = DEFAULT_CONFIG


@dataclasses.dataclass(frozen=True)
class Member:
  """A run with its place and its resolved config; `id` is the hash of what it computes."""

  run: Run
  asked: Config  # as written, before anything is derived
  cfg: Config
  id: str
  workdir: pathlib.Path

  @property
  def name(self) -> str:
    return self.run.name


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A question with its runs. `halving` is None where all runs are wanted, `law` where none is fitted.

  `searched` are the words of the search by Optuna that the runs come from: trials, KEY=RANGE ...
  """

  name: str
  doc: str
  runs: tuple[Run, ...]
  analyse: Callable | None = None
  pictures: Callable | None = None
  claims: tuple = ()
  halving: object | None = None
  law: str | None = None
  source: pathlib.Path | None = None
  searched: tuple[str, ...] = ()

  @property
  def question(self) -> str:
    """The first line of the docstring."""
    return self.doc.strip().splitlines()[0] if self.doc.strip() else ""


def run_name(setting: Mapping[str, object]) -> str:
  """`width=128,peak_lr=0.001` from {"model.width": 128, "optim.peak_lr": 1e-3}.

  A key goes by its last part unless two keys share it.
  """
  tails = [key.rsplit(".", 1)[-1] for key in setting]
  parts = []
  for key, value in setting.items():
    tail = key.rsplit(".", 1)[-1]
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    parts.append(f"{key if tails.count(tail) > 1 else tail}={shown}")
  return re.sub(r"[^\w.,=+@-]+", "_", ",".join(parts)) or "base"


def find_experiments() -> dict[str, str]:
  """{name: first line of its docstring} of every file in experiments/ that defines `runs`."""
  found = {}
  for path in sorted(HERE.glob("*.py")):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if any(isinstance(node, ast.FunctionDef) and node.name == "runs" for node in tree.body):
      found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
  return found


def load(name: str, scale: str | None = None) -> Experiment:
  """The experiment of experiments/NAME.py, or of a file given by its path.

  Args:
    name: file name without .py, or a path that ends in .py.
    scale: passed to `runs(scale=...)`.

  Raises:
    ConfigError: no such experiment, or its file is not one.
  """
  module = _import(name)
  if not callable(getattr(module, "runs", None)):
    raise ConfigError(f"experiment={name}: must define runs(); see experiments/lr_sweep.py")
  takes_scale = _scale_of(module.runs)
  if scale is not None and not takes_scale:
    raise ConfigError(f"scale={scale}: {name} comes in one size; leave --scale out")
  try:
    made = tuple(module.runs(scale=scale) if scale is not None else module.runs())
  except (Exception, SystemExit) as error:
    raise _broken(name, error) from error
  law = getattr(module, "law", None)
  if isinstance(law, Mapping):
    law = law.get(scale or (takes_scale and takes_scale.default))
  _check_parts(name, module, law)
  return make_experiment(
    name=module.__name__.rsplit(".", 1)[-1] + (f"-{scale}" if scale else ""),
    doc=module.__doc__ or "",
    runs=made,
    analyse=getattr(module, "analyse", None),
    pictures=getattr(module, "pictures", None),
    claims=tuple(getattr(module, "claims", ())),
    halving=getattr(module, "halving", None),
    law=law,
    source=pathlib.Path(module.__file__),
  )


def _scale_of(runs: Callable) -> inspect.Parameter | None:
  """The parameter `scale` of a function, where it has one."""
  try:
    return inspect.signature(runs).parameters.get("scale")
  except (ValueError, TypeError):  # of a builtin
    return None


def _check_parts(name: str, module: types.ModuleType, law: object) -> None:
  """ConfigError where a part of an experiment file is not what this file says at its top."""
  from experiments.laws import LAWS

  def refuse(part: str, rule: str) -> None:
    raise ConfigError(f"experiment={name}: its {part} must be {rule}; correct it there")

  if law is not None and law not in [*LAWS, "isoflop"]:
    refuse(f"law {law}", f"one of {', '.join(LAWS)}, isoflop")
  halving = getattr(module, "halving", None)
  if halving is not None and not hasattr(halving, "rungs"):
    refuse("halving", "Halving(eta, rungs) of experiments.sweep.halving")
  claims = getattr(module, "claims", ())
  if not isinstance(claims, Sequence) or not all(hasattr(c, "source") for c in claims):
    refuse("claims", "a tuple of Claim(...) of experiments.report.claims")
  for part in ("analyse", "pictures"):
    if not callable(getattr(module, part, len)):
      refuse(part, "a function")
  if not isinstance(module.__doc__ or "", str):
    refuse("docstring", "a text")


def make_experiment(name: str, runs: Iterable[Run], **fields) -> Experiment:
  """An Experiment whose runs have names fit for folders, no two alike."""
  runs = tuple(runs)
  if not runs:
    raise ConfigError(f"experiment={name}: runs() yields none; yield at least one Run")
  seen = set()
  for run in runs:
    _check_run(name, run)
    if not NAME.fullmatch(run.name) or run.name.startswith("."):
      raise ConfigError(
        f"run={run.name}: a name is a folder, of letters, digits and . , = + @ _ -; rename it"
      )
    if run.name in seen:
      raise ConfigError(f"run={run.name}: two runs of {name} have this name; tell them apart")
    seen.add(run.name)
  given: dict[str, Any] = {"doc": "", **fields}
  return Experiment(name=name, runs=runs, **given)


def _check_run(name: str, run: object) -> None:
  """ConfigError unless it is a Run of a name, overrides by key, and a config."""
  if not isinstance(run, Run):
    raise ConfigError(
      f"experiment={name}: runs() gives a {type(run).__name__}; let it yield Run(name, overrides, config)"
    )
  overrides = run.overrides
  keyed = isinstance(overrides, Mapping) and all(isinstance(key, str) for key in overrides)
  if not (keyed and isinstance(run.name, str) and isinstance(run.config, str)):
    raise ConfigError(
      f"run={run.name}: a Run has a text as name, a dict by keys as overrides, FILE[:ARGUMENT] as config; "
      f"correct it in {name}"
    )


def with_overrides(experiment: Experiment, changes: Mapping[str, object]) -> Experiment:
  """The same experiment with keys changed in every run; names say so, as these are other runs."""
  if not changes:
    return experiment
  fields = known_keys()
  for key in changes:
    if key not in fields:
      raise ConfigError(f"set={key}: no such key; {suggest(key, fields)}")
  suffix = "," + run_name(changes)
  runs = [Run(r.name + suffix, {**r.overrides, **changes}, r.config) for r in experiment.runs]
  return dataclasses.replace(experiment, runs=tuple(runs))


def check_set(experiment: Experiment, changes: Mapping[str, object]) -> None:
  """ConfigError where `changes` have made one run of several, which would count as several."""
  seen: dict[str, str] = {}
  for run in experiment.runs if changes else ():
    settings = json.dumps([run.config, run.overrides], default=str, sort_keys=True)
    other = seen.setdefault(settings, run.name)
    if other != run.name:
      raise ConfigError(
        f"set={run_name(changes)}: makes one run of {other} and {run.name}, which differ in it; choose some "
        "runs by --only, or set another key"
      )


def only(experiment: Experiment, names: Sequence[str]) -> Experiment:
  """The experiment with these runs and no others."""
  by_name = {run.name: run for run in experiment.runs}
  for name in names:
    if name not in by_name:
      raise ConfigError(f"only={name}: {experiment.name} has no such run; {suggest(name, by_name)}")
  return dataclasses.replace(experiment, runs=tuple(by_name[name] for name in names))


def resolve_run(run: Run, folder: pathlib.Path) -> Member:
  """The run's resolved config, identity and directory in `folder`.

  Raises:
    ConfigError: as lm.setup.load and lm.setup.resolve raise, with the run's name in front.
  """
  try:
    asked = asked_config(run)
    cfg = resolve(asked, vocab_size(asked), devices_needed(asked), units_per_row(asked))
  except ConfigError as error:
    raise ConfigError(f"run {run.name}: {error}") from error
  return Member(run, asked, cfg, identity(cfg), folder / run.name)


def resolve_runs(runs: Sequence[Run], folder: pathlib.Path) -> list[Member]:
  """`resolve_run` of each."""
  return [resolve_run(run, folder) for run in runs]


def check_distinct(members: Iterable[Member]) -> None:
  """ConfigError where two are one run under two names: it would count as two."""
  seen: dict[str, str] = {}
  for member in members:
    settings = json.dumps(dataclasses.asdict(member.cfg), sort_keys=True)
    other = seen.setdefault(settings, member.name)
    if other != member.name:
      raise ConfigError(
        f"run={member.name}: is the same as {other} in every setting, and would count as a second one; "
        "leave one out"
      )


def checked(run: Run, row: Mapping[str, object]) -> Mapping[str, object]:
  """The row, with status "stale" where it is of another config than the run asks for now.

  What a config leaves open is resolved by the run, and budgets are rounded to whole steps.
  """
  if not row.get("steps"):
    return row
  asked = asked_config(run)
  known = rules_of(asked)
  for key, value in identity_fields(asked).items():
    there = row.get(key, known[key].neutral)  # a key that came after the run has its neutral value
    there = tuple(there) if isinstance(there, list) else there
    if value is None or value == there:
      continue
    rounded = key in BUDGETS and key != "train.steps" and there is not None
    if rounded and abs(value - there) <= abs(value) / row["steps"]:
      continue
    reason = f"trained with {key}={there}, now asked for with {value}"
    return {**row, "status": "stale", "reason": reason}
  return row


def asked_config(run: Run) -> Config:
  """The run's config as written, before anything is derived."""
  return load_config(config_path(run.config), run.overrides)


def config_path(spec: str) -> str:
  """A config spec as seen from here: relative to the working directory, else to the repository."""
  path = pathlib.Path(spec.partition(":")[0])
  if path.exists() or path.is_absolute() or not (REPO / path).exists():
    return spec
  return str(REPO / spec)


def devices_needed(cfg: Config) -> int:
  """Devices one run is laid over: the product of the mesh's axes, one that takes the rest as 1."""
  return math.prod(max(size, 1) for size in dataclasses.astuple(cfg.mesh))


def vocab_size(cfg: Config) -> int:
  """Entries of the tokenizer; reads the data where it must."""
  known = kind_of(cfg).vocab_size(cfg)
  return open_data(cfg).vocab_size if known is None else known


def units_per_row(cfg: Config) -> float | None:
  """Units that a row of the training data holds on average, as lm.setup.resolve wants them."""
  kind = kind_of(cfg)
  return None if kind.full_rows(cfg) else kind.mean_units(open_data(cfg), cfg)


_OPENED: dict[tuple[str, DataConfig], Any] = {}  # by kind of batch and data section


def open_data(cfg: Config) -> Any:
  """The data of a config, opened by its kind of batch; its cache is built if there is none."""
  key = (objective_of(cfg.objective).batches, dataclasses.replace(cfg.data, seed=None))
  if key not in _OPENED:
    if len(_OPENED) >= OPEN_AT_ONCE:
      _OPENED.pop(next(iter(_OPENED)))
    _OPENED[key] = kind_of(cfg).open(cfg)
  return _OPENED[key]


def _import(name: str):
  path = pathlib.Path(name) if name.endswith(".py") else HERE / f"{name}.py"
  if not path.is_file():
    raise ConfigError(f"experiment={name}: no such experiment; {suggest(name, find_experiments())}")
  module_name = f"experiments.{path.stem}" if path.parent == HERE else path.stem
  spec = importlib.util.spec_from_file_location(module_name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[module_name] = module  # so that its dataclasses can be found
  try:
    spec.loader.exec_module(module)
  except (Exception, SystemExit) as error:
    raise _broken(name, error) from error
  return module


def _broken(name: str, error: BaseException) -> ConfigError:
  """One line for what an experiment's own code raised, with the place."""
  if isinstance(error, ConfigError):
    return error
  return ConfigError(
    f"experiment={name}: the file fails with {where_raised(error)}; correct it there"
  )
