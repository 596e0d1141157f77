"""Bayesian search: Optuna proposes runs, the launcher trains them on any back end that it stays with.

The study lies in optuna.log beside the runs (Optuna's journal), so a search goes on where it was
stopped, and launchers that share the folder share the study. Sampler: TPE (Bergstra et al. 2011,
NeurIPS 24; here with constant liars for trials at work side by side).
"""

import dataclasses
import pathlib
from collections.abc import Container, Mapping, Sequence

from experiments.launch.wandb_sweep import shared_overrides, varied
from experiments.sweep.search import Range, parse_range
from experiments.sweep.sweep import Experiment, Member, Run, resolve_run, run_name
from lm.config.command_line import once
from lm.config.errors import ConfigError, check_within, first_line, whole_number

FILE = "optuna.log"


class Study:
  """A search over an experiment's hyperparameters.

  Args:
    experiment: what all of its runs set is set in every trial.
    asked: the number of trials, then KEY=RANGE each; without ranges, the values that runs differ in.
    folder: of the runs.
    at_once: trials at work side by side.
    seed: of the sampler.
    dry: proposes without writing down what was proposed.

  Raises:
    ConfigError: Optuna is missing, or the words are no search.
  """

  def __init__(
    self,
    experiment: Experiment,
    asked: Sequence[str],
    folder: pathlib.Path,
    at_once: int,
    seed: int = 0,
    dry: bool = False,
  ):
    try:
      import optuna
    except ImportError:
      raise ConfigError("optuna=: is not installed; pip install optuna") from None
    count, *texts = asked
    if not whole_number(count):
      raise ConfigError(
        f"optuna={' '.join(asked)}: must be a number of trials, then key=RANGE; "
        "for example --optuna 20 optim.peak_lr=log:1e-4..1e-2"
      )
    check_within("optuna", int(count), "[1, 100000]", "20")
    self._optuna, self._n_trials, self._at_once = optuna, int(count), at_once
    self._folder, self._config = folder, experiment.runs[0].config
    self._ranges = once("optuna", map(parse_range, texts)) or _choices(experiment)
    first = experiment.runs[0].overrides
    differing = {k for r in experiment.runs for k in r.overrides if r.overrides[k] != first.get(k)}
    if ignored := sorted(differing - set(self._ranges)):
      raise ConfigError(
        f"optuna={' '.join(asked)}: runs of {experiment.name} differ in {ignored[0]}, which is not searched; "
        "give it a range too, or one value with --set"
      )
    self._fixed = _fixed(experiment, self._ranges)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    begun = optuna.load_study if (folder / FILE).exists() else None
    earlier = begun and begun(study_name=experiment.name, storage=_storage(optuna, folder))
    before = earlier.user_attrs.get("asked", asked) if earlier else asked
    if list(before[1:]) != list(texts):
      raise ConfigError(
        f"optuna={' '.join(asked)}: the search in {folder} is over {' '.join(before[1:]) or 'its values'}; "
        "give the same ranges, or begin another with --save_as"
      )
    if not dry:
      folder.mkdir(parents=True, exist_ok=True)
    self.study = optuna.create_study(
      study_name=experiment.name,
      storage=None if dry else _storage(optuna, folder),
      sampler=optuna.samplers.TPESampler(seed=seed, constant_liar=at_once > 1),
      direction="minimize",
      load_if_exists=True,
    )
    if dry and earlier:
      self.study.add_trials(earlier.get_trials(deepcopy=False))
    self.study.set_user_attr("asked", list(asked))
    self._members: dict[int, Member] = {}

  def wanted(self, rows: Mapping[str, Mapping]) -> list[Member]:
    """For `launch`: trials at work and those that are told already; asks for more as they end."""
    running = self._optuna.trial.TrialState.RUNNING
    trials = self.study.get_trials(deepcopy=False)
    at_work = []
    for trial in trials:
      member = self._member(trial)
      if trial.state != running or member is None:
        continue
      if not self._told(trial.number, member, rows.get(member.name)):
        at_work.append(member)
    asked = len(trials)
    while asked < self._n_trials and len(at_work) < self._at_once:
      at_work.append(self._ask())
      asked += 1
    ended = [m for m in self._members.values() if m not in at_work]
    return list({m.name: m for m in (*at_work, *ended)}.values())

  def _ask(self) -> Member:
    trial = self.study.ask()
    setting = {key: _suggest(trial, key, span) for key, span in self._ranges.items()}
    trial.set_user_attr("setting", setting)
    return self._make(trial.number, setting)

  def _member(self, trial) -> Member | None:
    """The run of a trial; None for one that was asked for and never set up, or by other code."""
    if trial.number not in self._members:
      setting = trial.user_attrs.get("setting")
      if setting is None:
        return None
      self._make(trial.number, setting)
    return self._members[trial.number]

  def _make(self, number: int, setting: Mapping[str, object]) -> Member:
    run = Run(run_name(setting), {**self._fixed, **setting}, self._config)
    self._members[number] = resolve_run(run, self._folder)
    return self._members[number]

  def _told(self, number: int, member: Member, row: Mapping | None) -> bool:
    """Tells the study how a trial ended, if it has."""
    if row is None or row["status"] not in ("done", "failed", "unreadable"):
      return False
    value = row.get(member.cfg.eval.stop_metric)
    if row["status"] == "done" and value is not None and value == value:
      self.study.tell(number, value)
    else:
      self.study.tell(number, state=self._optuna.trial.TrialState.FAIL)
    return True


def with_trials(experiment: Experiment, folder: pathlib.Path) -> Experiment:
  """The experiment as a search in its folder has made it: trials for runs, and those of its own that began.

  Without a search it comes back as it is.

  Args:
    folder: of the runs, on this machine.

  Raises:
    ConfigError: there is a search, and Optuna is missing or cannot read it.
  """
  if not (folder / FILE).exists():
    return experiment
  try:
    import optuna
  except ImportError:
    raise ConfigError(
      f"optuna=(missing): {folder / FILE} holds a search whose runs it lists; pip install optuna"
    ) from None
  try:
    study = optuna.load_study(study_name=experiment.name, storage=_storage(optuna, folder))
  except Exception as error:
    raise ConfigError(
      f"optuna={folder / FILE}: cannot be read ({first_line(error)}); bring it back from a copy, or move "
      "it away to see the experiment's own runs"
    ) from None
  config, runs = experiment.runs[0].config, {}
  for run in experiment.runs:
    if (folder / run.name).exists():
      runs[run.name] = run
  for trial in study.get_trials(deepcopy=False):
    if setting := trial.user_attrs.get("setting"):
      name = run_name(setting)
      runs.setdefault(name, Run(name, {**_fixed(experiment, setting), **setting}, config))
  asked = tuple(study.user_attrs.get("asked", ()))
  return dataclasses.replace(experiment, runs=tuple(runs.values()), searched=asked)


def _fixed(experiment: Experiment, searched: Container[str]) -> dict[str, object]:
  """What every trial sets: what all of the experiment's runs set, but for what is searched."""
  first = experiment.runs[0].overrides
  fixed = first if len(experiment.runs) == 1 else shared_overrides(experiment)
  return {key: value for key, value in fixed.items() if key not in searched}


def _storage(optuna, folder: pathlib.Path):
  return optuna.storages.JournalStorage(
    optuna.storages.journal.JournalFileBackend(str(folder / FILE))
  )


def _choices(experiment: Experiment) -> dict[str, Range]:
  """The values that runs of the experiment differ in, to choose from."""
  if len(experiment.runs) == 1:
    raise ConfigError(
      f"optuna={experiment.name}: has one run, so nothing varies; give ranges, for example "
      "--optuna 20 optim.peak_lr=log:1e-4..1e-2"
    )
  return {key: Range("choice", options=tuple(values)) for key, values in varied(experiment).items()}


def _suggest(trial, key: str, span: Range) -> object:
  """A value from Optuna, with 4 digits as names of runs have them."""
  if span.kind == "choice":
    options = [",".join(map(str, o)) if isinstance(o, list | tuple) else o for o in span.options]
    return trial.suggest_categorical(key, options)
  if span.kind == "int":
    return trial.suggest_int(key, int(span.low), int(span.high))
  value = trial.suggest_float(key, span.low, span.high, log=span.kind == "log")
  return float(f"{value:.4g}")
