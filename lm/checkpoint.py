"""Checkpoints of a run's state with orbax: written in the background, atomically, the latest and the best.

Layout: workdir/checkpoints/<step>/. Which of them is the best one, metrics.jsonl says.
"""

import logging
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import jax

from lm.config import CheckpointConfig, ConfigError
from lm.log import read_jsonl
from lm.rundir import read_config


class Checkpointer:
  """Saves and restores one run's state.

  Args:
    workdir: the run directory.
    cfg: how many to keep.
  """

  def __init__(self, workdir: pathlib.Path, cfg: CheckpointConfig):
    import orbax.checkpoint as ocp

    self._ocp = ocp
    folder = workdir.resolve() / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    self._kept = _Kept(cfg.keep)
    self._manager = ocp.CheckpointManager(
      folder, options=ocp.CheckpointManagerOptions(preservation_policy=self._kept)
    )

  def steps(self) -> list[int]:
    """Complete checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def save(self, state: Any, step: int, best: int | None = None, extra: bool = False) -> None:
    """Returns when the state has been copied; the copy is written in the background.

    Args:
      state: what `restore` gives back.
      step: a step that is saved already is left as it is.
      best: the step that is kept beside the latest ones.
      extra: saved for being the best alone; it is not one of the latest ones.
    """
    self._kept.best = best
    if extra:
      self._kept.extra.add(step)
    if step not in self._manager.all_steps():
      self._manager.save(step, args=self._ocp.args.StandardSave(state), force=True)

  def restore(self, shape: Any, step: int) -> Any:
    """The state at `step`, laid out as the ShapeDtypeStructs of `shape` say."""
    return self._manager.restore(step, args=self._ocp.args.StandardRestore(shape))

  def wait(self) -> None:
    """Until everything is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    self.wait()
    self._manager.close()


class _Kept:
  """orbax's preservation policy: the latest n that were due, and the best one."""

  def __init__(self, n: int):
    self.n, self.best = n, None
    self.extra: set[int] = set()

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    steps = [checkpoint.step for checkpoint in checkpoints]
    latest = [step for step in steps if step not in self.extra][-self.n :]
    return [step == self.best or step in latest for step in steps]


def load_params(workdir: pathlib.Path, which: str = "best") -> tuple[Any, int]:
  """(parameters as float32 arrays on the default device, step) of a run, for using the model.

  The moving average is returned where the run kept one.

  Args:
    workdir: the run directory.
    which: "best" (the latest where no best one is kept), "latest", or a step number.

  Raises:
    ConfigError: no run or no such checkpoint there.
  """
  import orbax.checkpoint as ocp

  folder = workdir.resolve() / "checkpoints"
  steps = _steps_in(folder)
  if which == "best" and steps:
    step = _best_of(steps, workdir)
  elif which == "latest" and steps:
    step = steps[-1]
  elif which.isdigit() and int(which) in steps:
    step = int(which)
  else:
    held = ", ".join(map(str, steps)) or "none"
    raise ConfigError(
      f"workdir={workdir}: no checkpoint {which} (it holds {held}); train first with "
      f"python train.py --workdir {workdir}"
    )
  logging.getLogger("absl").setLevel(logging.ERROR)  # orbax misses metadata that only managers read
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  with ocp.StandardCheckpointer() as checkpointer:
    path = folder / str(step)
    saved = checkpointer.metadata(path / "default").item_metadata.tree
    shape = jax.tree.map(
      lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device), dict(saved)
    )
    state = checkpointer.restore(path / "default", shape)
  return (state["params"] if state.get("ema") is None else state["ema"]), step


def best_step(records: Iterable[dict], metric: str, steps: Iterable[int]) -> int | None:
  """The step, of those given, whose record has the lowest value of the metric; None if none has it."""
  values = {r["step"]: float(r[metric]) for r in records if metric in r}
  return min((step for step in steps if step in values), key=values.get, default=None)


def _best_of(steps: Sequence[int], workdir: pathlib.Path) -> int:
  cfg = read_config(workdir)
  if not cfg.checkpoint.best:
    return steps[-1]
  best = best_step(read_jsonl(workdir / "metrics.jsonl"), cfg.eval.stop_metric, steps)
  return steps[-1] if best is None else best


def _steps_in(folder: pathlib.Path) -> list[int]:
  """Finished checkpoints: orbax renames a folder to its number when it is complete."""
  if not folder.is_dir():
    return []
  return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit())
