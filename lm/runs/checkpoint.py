"""Checkpoints of a run's state with orbax: written in the background, atomically, the latest and the best.

Layout: workdir/checkpoints/<step>/, with checksums of its files. Which of them is the best one, metrics.jsonl
says. A damaged one is never used, nor deleted: it is set aside as checkpoints/damaged-<step>.
"""

import hashlib
import logging
import pathlib
import shlex
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lm.config.errors import ConfigError, first_line, whole_number
from lm.config.schema import CheckpointConfig, Config
from lm.devices import processes
from lm.files import read_jsonl
from lm.models import trees
from lm.models.registry import make_model
from lm.objectives.registry import objective_of
from lm.runs import lock, manifest, packed
from lm.runs.metrics import watched
from lm.runs.rundir import check_origin, checkpoint_steps, read_config, read_run


def _is_news(record: logging.LogRecord) -> bool:
  """Not what Orbax raises where it is waited for, too, nor metadata that it misses in every checkpoint."""
  if "orbax" not in record.pathname:
    return True
  message = record.getMessage()
  if record.exc_info and record.exc_info[1] and "Commit operations" in message:
    _not_written.append(record.exc_info[1])
  return not (record.exc_info or message.startswith("Metadata file does not exist"))


# What a background write has failed with. orbax raises it after it has met the other processes, which wait
# for this write for ten minutes: of several processes the one that fails must know sooner.
_not_written: list[BaseException] = []
LOOK = 0.05  # seconds between two looks at it
_HIDING: list = []  # hooks that _hide_closed_loops has made


def _hide_closed_loops() -> None:
  """No traceback of tensorstore's threads about orbax's event loop, which a failed write has closed.

  They give it to sys.unraisablehook; the failure itself is raised where the write is waited for.
  """
  shown = sys.unraisablehook
  if shown in _HIDING:
    return

  def show(what):
    if not (what.exc_type is RuntimeError and str(what.exc_value) == "Event loop is closed"):
      shown(what)

  _HIDING.append(show)
  sys.unraisablehook = show


class Checkpointer:
  """Saves and restores one run's state.

  Args:
    workdir: the run directory.
    cfg: how many to keep.
    origin: whose they are (`rundir.origin`).
  """

  def __init__(
    self, workdir: pathlib.Path, cfg: CheckpointConfig, origin: Mapping[str, object] | None = None
  ):
    import orbax.checkpoint as ocp

    logging.getLogger("absl").addFilter(_is_news)
    _hide_closed_loops()
    self._ocp, self._origin = ocp, origin
    folder = self._folder = workdir.resolve() / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    self._kept, self._saving, self._let_go = _Kept(cfg.keep), None, False
    options = ocp.CheckpointManagerOptions(
      preservation_policy=self._kept,
      async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
    )
    self._manager = ocp.CheckpointManager(folder, options=options)

  def steps(self) -> list[int]:
    """Complete checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def find_damage(self, step: int) -> str | None:
    """What is wrong with the checkpoint of a step; None if it is whole or there are no checksums."""
    return manifest.find_damage(self._folder / str(step))

  def is_verifiable(self, step: int) -> bool:
    """Whether the checkpoint has checksums."""
    return manifest.is_verifiable(self._folder / str(step))

  def set_aside(self, step: int) -> pathlib.Path:
    """Takes a damaged checkpoint out of use; returns where it lies now."""
    away = self._folder / f"damaged-{step}"
    if processes.is_leader():
      number = 1
      while away.exists():
        number += 1
        away = self._folder / f"damaged-{step}-{number}"
      (self._folder / str(step)).rename(away)
    processes.wait_for_all(f"set aside {step}")
    self._manager.reload()
    return away

  def leave_out(self, steps: Iterable[int]) -> None:
    """Checkpoints that are not counted among the latest ones, as of `extra` in `save`."""
    self._kept.extra |= set(steps)

  def drop_after(self, step: int) -> None:
    """Deletes the later ones, of what was computed and is not to be gone on with."""
    self.wait()
    later = [each for each in self.steps() if each > step]
    if processes.is_leader():
      for each in sorted(later, reverse=True):
        away = self._folder / f".dropped-{each}"
        (self._folder / str(each)).rename(away)  # at once, so that no half of it is found
        shutil.rmtree(away, ignore_errors=True)
    processes.wait_for_all(f"dropped after {step}")
    self._manager.reload()

  def save(self, state: Any, step: int, best: int | None = None, extra: bool = False) -> None:
    """Returns when the state has been copied; the copy is written in the background.

    Args:
      state: what `restore` gives back.
      step: a step that is saved already is left as it is.
      best: the step that is kept beside the latest ones.
      extra: kept only while it is the best or the newest; it is not counted among the latest ones.
    """
    self._kept.best = best
    if extra:
      self._kept.extra.add(step)
    if step not in self._manager.all_steps():
      self.wait()
      self._saving = step
      self._manager.save(step, args=self._ocp.args.StandardSave(state), force=True)

  def restore(self, shape: Any, step: int, absent: Mapping[str, Any] | None = None) -> Any:
    """The state at `step`, laid out as the ShapeDtypeStructs of `shape` say.

    Args:
      shape: a NamedTuple.
      absent: values for fields that checkpoints of earlier versions do not hold.
    """
    with self._ocp.StandardCheckpointer() as reader:
      saved = set(reader.metadata(self._folder / str(step) / "default").item_metadata.tree)
    missing = {k: v for k, v in (absent or {}).items() if k not in saved}
    if not missing:
      return self._manager.restore(step, args=self._ocp.args.StandardRestore(shape))
    wanted = {k: v for k, v in shape._asdict().items() if k not in missing and k in saved}
    found = self._manager.restore(step, args=self._ocp.args.StandardRestore(wanted))
    return type(shape)(**{**dict.fromkeys(shape._fields), **found, **missing})

  def wait(self) -> None:
    """Until everything is on disk."""
    if self._let_go:
      return
    while not processes.is_alone() and self._manager.is_saving_in_progress():
      if _not_written:
        raise _not_written[0]
      time.sleep(LOOK)
    self._manager.wait_until_finished()

  def let_go(self) -> None:
    """Does not wait any more for what is being written, and with which other processes are not to be met."""
    self._let_go = True

  def close(self) -> None:
    self.wait()
    if not self._let_go:
      self._manager.close()

  def _write_checksums(self) -> None:
    """All files of the checkpoint being saved are there; its folder gets its name after this."""
    if not processes.is_leader():
      return
    unfinished = list(self._folder.glob(f"{self._saving}.orbax-checkpoint-tmp*"))
    newest = max(unfinished, key=lambda p: p.stat().st_mtime_ns, default=None)
    folder = newest or self._folder / str(self._saving)
    if self._origin:
      manifest.write_origin(folder, self._origin)
    manifest.write_checksums(folder)


class _Kept:
  """orbax's preservation policy: the latest n that were due, the best one, and the newest of all."""

  def __init__(self, n: int):
    self.n, self.best = n, None
    self.extra: set[int] = set()

  def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
    steps = [checkpoint.step for checkpoint in checkpoints]
    latest = [step for step in steps if step not in self.extra][-self.n :]
    return [step in (self.best, *latest, *steps[-1:]) for step in steps]


def load_params(workdir: pathlib.Path, which: str = "best") -> tuple[Any, int]:
  """(parameters as float32 arrays on the default device, step) of a run, for using the model.

  The moving average is returned where the run kept one, and beside the parameters what else its objective
  has the model read (`Objective.in_use`: the biases of routers). Arguments and errors as of `load_state`.
  """
  state, step = load_state(workdir, which)
  objective = objective_of(read_config(workdir).objective)
  return objective.in_use(usable_params(state), state["extra"]), step


def _check_shapes(workdir: pathlib.Path, step: int, params: Any) -> None:
  """ConfigError where a parameter has another shape than the model of config.json gives it."""
  cfg = read_config(workdir)
  model = make_model(cfg.model)
  wanted = jax.eval_shape(lambda key: trees.init_params(model, key), jax.random.key(0))
  here, there = map(_by_path, (wanted, params))
  for name, leaf in there.items():
    if name in here and here[name].shape != leaf.shape:
      raise ConfigError(
        f"workdir={workdir}: {name} is {leaf.shape} in checkpoint {step}, and {here[name].shape} by "
        "config.json: one of them is of another run; bring it back from a copy"
      )


def _by_path(tree: Any) -> dict[str, Any]:
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def weights_hash(weights: Any) -> str:
  """16 hex digits of a tree of parameters: their names and bytes."""
  digest = hashlib.blake2b(digest_size=8)
  for name, array in sorted(trees.by_path(weights).items()):
    digest.update(name.encode())
    digest.update(np.ascontiguousarray(array).data)
  return digest.hexdigest()


def usable_params(state: Mapping[str, Any]) -> Any:
  """The weights to use: the moving average where there is one."""
  return state["params"] if state.get("ema") is None else state["ema"]


def load_state(workdir: pathlib.Path, which: str = "best") -> tuple[dict[str, Any], int]:
  """(the fields of a saved State on the default device, step) of a run.

  Args:
    workdir: the run directory.
    which: "best" (the latest where no best one is kept), "latest", or a step number.

  Where it is damaged, the newest whole one is taken and a line on stderr says so; a step that is asked for
  by its number must be whole itself.

  Raises:
    ConfigError: no run or no such checkpoint there, none that is whole, or one of another model.
  """
  if (workdir / packed.FILE).is_file():
    params, step = packed.read(workdir)
    if which not in ("best", "latest", str(step)):
      raise ConfigError(
        f"workdir={workdir}: no checkpoint {which} (it holds step {step}, compacted); use that"
      )
    extra = params.pop(packed.EXTRA, {})
    return jax.device_put({"extra": extra, "params": params}, jax.local_devices()[0]), step
  folder = workdir.resolve() / "checkpoints"
  steps = sorted(checkpoint_steps(workdir))
  if which == "best" and steps:
    step = _best_of(steps, workdir)
  elif which == "latest" and steps:
    step = steps[-1]
  elif (asked := whole_number(which)) in steps:
    step = asked
  else:
    _say_that_it_runs(workdir, steps)
    held = ", ".join(map(str, steps)) or "none"
    raise ConfigError(
      f"workdir={workdir}: no checkpoint {which} (it holds {held}); train first with "
      f"python train.py --workdir {shlex.quote(str(workdir))}"
    )
  others = (
    [] if which not in ("best", "latest") else sorted((s for s in steps if s != step), reverse=True)
  )
  damage = []
  for tried in (step, *others):
    why = manifest.find_damage(folder / str(tried))
    if why is None:
      try:
        state = _read_state(folder / str(tried) / "default")
      except Exception as error:
        if manifest.is_verifiable(folder / str(tried)):
          raise  # its files are what was written: the fault is not theirs
        why = f"cannot be read ({first_line(error)})"
      else:
        for line in damage:
          print(f"{line}; using checkpoint {tried} instead", file=sys.stderr)
        check_origin(workdir, tried, read_config(workdir))
        _check_shapes(workdir, tried, state["params"])
        return {"extra": {}, **state}, tried
    damage.append(f"{folder / str(tried)}: {why}")
  raise ConfigError(
    f"workdir={workdir}: checkpoint {step} is damaged ({damage[0]}), and no other one can be used; "
    "bring it back from a copy, or train again in another --workdir"
  )


def _read_state(path: pathlib.Path) -> Any:
  import orbax.checkpoint as ocp

  logging.getLogger("absl").setLevel(logging.ERROR)  # orbax misses metadata that only managers read
  device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  with ocp.StandardCheckpointer() as checkpointer:
    saved = checkpointer.metadata(path).item_metadata.tree
    shape = jax.tree.map(
      lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=device), dict(saved)
    )
    return checkpointer.restore(path, shape)


def best_step(records: Iterable[dict], cfg: Config, steps: Iterable[int]) -> int | None:
  """The step, of those given, whose record has the best value of eval.stop_metric; None if none has it."""
  metric, sign = cfg.eval.stop_metric, 1 if watched(cfg).better == "lower" else -1
  values = {r["step"]: sign * float(r[metric]) for r in records if metric in r}
  return min((step for step in steps if step in values), key=values.get, default=None)


def _say_that_it_runs(workdir: pathlib.Path, steps: Sequence[int]) -> None:
  """ConfigError where a run without a checkpoint is being trained: when its first one comes."""
  who = lock.writer(workdir) if not steps and read_run(workdir).get("status") == "running" else None
  if who is None:
    return
  cfg, lines = read_config(workdir), read_jsonl(workdir / "metrics.jsonl")
  at = max((line["step"] for line in lines if isinstance(line.get("step"), int)), default=0)
  first = min(filter(None, (cfg.checkpoint.every_steps, cfg.train.steps)))  # both are resolved
  raise ConfigError(
    f"workdir={workdir}: no checkpoint yet: {who} is training it, at step {at} of {cfg.train.steps}, and the "
    f"first comes at step {first}; try again then"
  )


def _best_of(steps: Sequence[int], workdir: pathlib.Path) -> int:
  cfg = read_config(workdir)
  if not cfg.checkpoint.best:
    return steps[-1]
  best = best_step(read_jsonl(workdir / "metrics.jsonl"), cfg, steps)
  return steps[-1] if best is None else best
