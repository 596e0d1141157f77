"""The frozen models that a run learns from: loaded, checked, laid out over the mesh, named in run.json."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config
from lm.objectives import teacher
from lm.objectives.registry import objective_of
from lm.runs import agreement, rundir
from lm.runs.checkpoint import load_params, weights_hash
from lm.runs.load import refuse_router_biases
from lm.training.programs import Programs
from lm.training.step import State


class Taught(NamedTuple):
  params: dict[str, Any]  # of each teacher, on the devices
  about: dict[str, dict]  # for run.json: run, id, step and hash of the weights of each teacher

  def attach(self, state: State) -> State:
    """The state with the teachers' parameters in `extra`, as programs.train reads it."""
    return state._replace(extra=state.extra | self.params) if self.params else state


def load(
  cfg: Config, data: Any, programs: Programs, workdirs: Sequence[pathlib.Path], n_runs: int
) -> Taught:
  """The teachers that the objective of a resolved config names; nothing where it names none.

  Args:
    data: opened, for its tokenizer.
    workdirs: of the runs, which may have begun with other weights.

  Raises:
    ConfigError: none there, another vocabulary, or other weights than those that a run to be resumed had.
  """
  objective = objective_of(cfg.objective)
  names = objective.teachers(cfg)
  if not names:
    return Taught({}, {})
  teacher.check(cfg, names, objective.needs, data.tokenizer)
  params, about = {}, {}
  for name, found in teacher.find(names).items():
    refuse_router_biases(
      rundir.read_config(found.folder), "are not laid out with the parameters that a student reads"
    )
    weights, step = load_params(found.folder)
    weights = jax.tree.map(np.asarray, weights)
    run = {"run": str(found.folder.resolve()), "id": rundir.read_run(found.folder).get("id")}
    about[name] = run | {"step": step, "weights": weights_hash(weights)}
    agreement.check_weights(f"objective.{name}", about[name])
    for workdir in workdirs:
      before = rundir.read_run(workdir).get("teachers", {}).get(name, about[name])
      if before["weights"] != about[name]["weights"]:
        raise ConfigError(
          f"objective.{name}={names[name]}: has changed since this run began (weights "
          f"{before['weights']} then, {about[name]['weights']} now); restore it or use another --workdir"
        )

    def put(array, layout):
      whole = np.broadcast_to(array, (n_runs, *array.shape)) if n_runs > 1 else array
      return jax.device_put(whole, layout)

    params[name] = jax.tree.map(put, weights, programs.train_sharding.extra[name])
  return Taught(params, about)
