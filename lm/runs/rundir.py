"""A run's directory: what it holds, whose it is, and how the run stands.

config.json says what is computed (its hash is the run's identity), run.json where, when, on what and how
it ended.
"""

import dataclasses
import json
import os
import pathlib
import platform
import shlex
import sys
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax

from lm.config.errors import ConfigError, whole_number
from lm.config.identity import PLACES, identity, identity_fields, section_identities
from lm.config.schema import Config, flatten, rules_of
from lm.files import read_jsonl, read_object, write_json
from lm.runs import bucket, manifest
from lm.runs.metrics import watched
from lm.runs.provenance import extension_digests, git_state, versions
from lm.setup.load import from_json

# What a reader of run.json counts on, where it is there.
RUN_TYPES = {
  "status": str, "reason": str | None, "argv": list, "resumed": list, "final": dict, "data": dict,
  "host": str, "pid": int, "set_aside": list, "new_data": list,
  "rewinds": list, "changes": list,
}  # fmt: skip
IMPORTED = "imported.json"  # of an imported run: the config.json that its model came with
# Keys whose resolved value follows the data where rows are not full.
OF_DATA = ("train.tokens", "train.tokens_per_param", "train.flops", "train.steps")
# Of run.json: what decides the bits beside the config.
SETTING = (
  "device", "n_devices", "versions", "commit", "uncommitted", "extensions", "mesh", "stacked",
)  # fmt: skip


def open_run(workdir: pathlib.Path, cfg: Config, facts: Mapping[str, object]) -> dict:
  """Makes the directory, or goes on with the run in it; returns run.json's content.

  Args:
    workdir: run directory; `check_same_run` says whether it is this run's.
    cfg: resolved config.
    facts: what else run.json should say (data, counts, mesh).

  Raises:
    ConfigError: it cannot be written.
  """
  earlier, now = read_run(workdir), time.time()
  before = read_earlier(workdir)
  make_folder(workdir)
  run = {
    "id": identity(cfg),
    "sections": section_identities(cfg, OF_DATA),
    "better": watched(cfg).better,
    "wandb_id": _kept_dashboard_id(workdir, earlier) or f"{identity(cfg)}-{uuid.uuid4().hex[:6]}",
    "folder": str(workdir.resolve()),
    "status": "running",
    "reason": None,
    "argv": sys.argv,
    "started": earlier.get("started", now),
    "resumed": [*earlier.get("resumed", []), now] if earlier else [],
    "ended": None,
    **git_state(),
    "extensions": extension_digests(cfg),
    "versions": versions(),
    "host": platform.node(),
    "pid": os.getpid(),
    "device": jax.devices()[0].device_kind,
    "n_devices": jax.device_count(),
    **facts,
    "final": earlier.get("final", {}),
    "set_aside": earlier.get("set_aside", []),
    "new_data": earlier.get("new_data", []),
    "rewinds": earlier["rewinds"] if "rewinds" in earlier else saved_rewinds(workdir),
    **{key: earlier[key] for key in ("init_from",) if key in earlier},
  }
  changed = _changed(before, cfg, earlier, run)
  newest = max(checkpoint_steps(workdir), default=0)
  change = [{"step": newest, "was": changed}] if changed and newest else []
  run["changes"] = [*changes(earlier), *change]
  write_json(workdir / "config.json", dataclasses.asdict(cfg))
  write_json(workdir / "run.json", run)
  return run


def _kept_dashboard_id(workdir: pathlib.Path, earlier: Mapping[str, object]) -> str | None:
  """The id under which a dashboard knows the run that is gone on with; None where there is none yet.

  A copy of a folder has none, as long as the folder that it was copied from is there: both would write to
  one run. One that was moved keeps it.
  """
  found, folder = earlier.get("wandb_id"), earlier.get("folder")
  if isinstance(folder, str) and folder != str(workdir.resolve()):
    try:
      if read_run(pathlib.Path(folder)).get("wandb_id") == found:
        return None
    except (ConfigError, OSError):
      pass  # it is no run any more
  return found if isinstance(found, str) else None


def _changed(
  before: Config | None, cfg: Config, earlier: Mapping[str, object], run: Mapping[str, object]
) -> dict[str, object]:
  """{key: what it was} of settings and surroundings that are others than in the stretch before.

  Keys of the config that are part of a run's identity cannot be.
  """
  if before is None:
    return {}
  mine, theirs, known = flatten(cfg), flatten(before), rules_of(cfg)
  free = (k for k in mine if not known[k].identity and not k.startswith("mesh."))
  was = {k: theirs[k] for k in free if k in theirs and not _equal_numbers(theirs[k], mine[k])}
  return was | {k: earlier[k] for k in SETTING if k in earlier and earlier[k] != run.get(k)}


def changes(run: Mapping) -> list[dict[str, Any]]:
  """What was otherwise up to which step, [{"step", "was": {key: value}}]; what makes no sense is left out."""
  found = run.get("changes", [])
  is_one = lambda c: isinstance(c.get("step"), int) and isinstance(c.get("was"), dict)
  return [change for change in found if isinstance(change, dict) and is_one(change)]


def was_at(run: Mapping, step: int, key: str, now: Any) -> Any:
  """What a setting of a run was in the stretch of training that `step` belongs to.

  Args:
    run: run.json.
    key: of `changes` there.
    now: what it is in the last stretch.
  """
  later = (c["was"][key] for c in changes(run) if c["step"] >= step and key in c["was"])
  return next(later, now)


def make_folder(workdir: pathlib.Path) -> None:
  """ConfigError where the run directory cannot be made or written."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    probe = workdir / f".probe.{os.getpid()}"
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise ConfigError(
      f"workdir={workdir}: cannot be written ({error.strerror}); choose another --workdir"
    ) from None


def close_run(workdir: pathlib.Path, run: dict, status: str, **changes: object) -> None:
  """Writes the end into run.json: status done, interrupted or failed, and a reason."""
  run |= {"status": status, "ended": time.time(), **changes}
  write_json(workdir / "run.json", run)


def check_same_run(workdir: pathlib.Path, cfg: Config, ignored: Collection[str] = ()) -> None:
  """ConfigError if config.json there describes another run; names the first key that differs.

  Args:
    ignored: keys that may differ.
  """
  if not (workdir / "config.json").exists():
    if (workdir / "checkpoints").exists():
      raise ConfigError(
        f"workdir={workdir}: holds checkpoints but no config.json; choose another workdir"
      )
    return
  mine, theirs = identity_fields(cfg), identity_fields(read_config(workdir))
  for key, value in mine.items():
    if key in ignored or theirs.get(key) == value or _equal_numbers(theirs.get(key), value):
      continue
    raise ConfigError(
      f"workdir={workdir}: holds another run ({key}={theirs.get(key)} there, {value} here); choose "
      "another --workdir, or delete that one"
    )


def origin(
  cfg: Config, data: Mapping[str, object], rewinds: Sequence[Mapping[str, object]] = ()
) -> dict[str, object]:
  """Whose a checkpoint is, as it says itself: the run's config and what its data are.

  Args:
    data: as a kind of batch describes it (lm.data.kinds.Kind.describe).
    rewinds: as in run.json, up to it: by them the next batch is known without run.json.
  """
  found: dict[str, object] = {"config": dataclasses.asdict(cfg), "data": fingerprints(data)}
  return found | ({"rewinds": list(rewinds)} if rewinds else {})


def saved_rewinds(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The rewinds that the newest checkpoint knows of: of a run without run.json, or one that branches."""
  step = max(checkpoint_steps(workdir), default=None)
  found = {} if step is None else manifest.read_origin(workdir / "checkpoints" / str(step))
  rewinds: Any = found.get("rewinds", [])
  return list(rewinds)


def check_origin(
  workdir: pathlib.Path,
  step: int,
  cfg: Config,
  data: Mapping[str, object] | None = None,
  accept_new_data: bool = False,
) -> None:
  """ConfigError for a checkpoint that another run saved; names both, and the first key that differs.

  Where the data lie (PLACES) is not compared, as they may be moved; what they hold is. A checkpoint from
  before checkpoints said whose they are passes.

  Args:
    cfg: the run's resolved config.
    data: described as in `origin`; None = what run.json says.
    accept_new_data: the data may differ, and how long the run is with them.
  """
  theirs = manifest.read_origin(workdir / "checkpoints" / str(step))
  config = theirs.get("config")
  if not isinstance(config, Mapping):
    return
  run = read_run(workdir)
  accepted = [change for change in run.get("new_data", []) if isinstance(change, Mapping)]
  accept_new_data |= any(change.get("step", 0) >= step for change in accepted)
  saved = from_json(config)
  mine, other = identity_fields(cfg), identity_fields(saved)
  ignored = OF_DATA if accept_new_data else ()
  differ = (
    f"{key}={other.get(key)} there, {value} here"
    for key, value in mine.items()
    if key not in (*PLACES, *ignored) and not _equal_numbers(other.get(key), value)
  )
  words = next(differ, None)
  if words is None and not accept_new_data:
    now = fingerprints(run.get("data", {}) if data is None else data)
    words = _change(_origin_data(theirs), now)
  if words:
    raise ConfigError(
      f"workdir={bucket.name_of(workdir)}: checkpoint {step} is of another run ({identity(saved)}; this one "
      f"is {identity(cfg)}: {words}); bring this run's own back from a copy, or take that folder away"
    )


def data_change(workdir: pathlib.Path, data: Mapping[str, object]) -> str | None:
  """None if run.json there records the data described, or none; else what differs, in words.

  Without run.json the newest checkpoint is asked.

  Args:
    data: as a kind of batch describes it (lm.data.kinds.Kind.describe).
  """
  was: Mapping[str, object] = fingerprints(read_run(workdir).get("data", {}))
  steps = checkpoint_steps(workdir)
  if not was and steps:  # without run.json the newest checkpoint knows
    was = _origin_data(manifest.read_origin(workdir / "checkpoints" / str(max(steps))))
  return _change(was, fingerprints(data))


def _origin_data(found: Mapping[str, object]) -> Mapping[str, object]:
  data = found.get("data")
  return data if isinstance(data, Mapping) else {}


def _change(was: Mapping[str, object], now: Mapping[str, object]) -> str | None:
  """What differs between two descriptions' fingerprints, in words; None where nothing does."""
  differ = [name for name in was if name in now and was[name] != now[name]]
  return ", ".join(f"{name} {was[name]} there, {now[name]} now" for name in differ) or None


def fingerprints(data: Mapping[str, object]) -> dict[str, str]:
  """{"corpus": ..., "tokenizer": ..., an evaluation set's name: ...} of a description of data."""
  tokenizer, sets = data.get("tokenizer"), data.get("sets")
  found = {
    "corpus": data.get("fingerprint"),
    "tokenizer": tokenizer.get("fingerprint") if isinstance(tokenizer, Mapping) else None,
    **(sets if isinstance(sets, Mapping) else {}),
  }
  return {name: value for name, value in found.items() if isinstance(value, str)}


def is_done(workdir: pathlib.Path, cfg: Config) -> bool:
  """Whether this very run has already ended well there; of run.json and the checkpoints, these decide.

  A run whose checkpoints have all been deleted is believed.
  """
  run = read_run(workdir)
  if run.get("status") != "done":
    return False
  check_same_run(workdir, cfg)
  steps = checkpoint_steps(workdir)
  if not steps:
    return True
  folder, last = workdir / "checkpoints", max(steps)
  check_origin(workdir, last, cfg)
  damage = manifest.find_damage(folder / str(last), contents=False)
  # Only what gives a reason, such as an early stop, is done before its last step.
  ended: Any = run.get("ended_at", last) if run.get("reason") else cfg.train.steps
  if damage is None and last >= ended:
    return True
  found = f"is step {last}" if damage is None else f"({last}) is damaged: {damage}"
  print(
    f"{workdir}: run.json says done after step {ended}, but the newest checkpoint {found}; going on from "
    "what is there",
    file=sys.stderr,
  )
  return False


def to_train(
  workdirs: Sequence[pathlib.Path], cfgs: Sequence[Config]
) -> tuple[list[int], list[str]]:
  """(indexes of the runs that have not ended well, the status of those that are left out all the same).

  A run of a stack that has failed is left out, with a line, where the others go on from a checkpoint that
  it has not: with it they would begin anew.
  """
  todo = [i for i, cfg in enumerate(cfgs) if not is_done(workdirs[i], cfg)]
  status = {i: read_run(workdirs[i]).get("status") for i in todo}
  others = [checkpoint_steps(workdirs[i]) for i in todo if status[i] != "failed"]
  newest = max(set.intersection(*others), default=None) if others else None
  left = []
  for i in todo:
    if status[i] == "failed" and newest and newest not in checkpoint_steps(workdirs[i]):
      left.append(i)
      print(
        f"{workdirs[i]}: has failed and stays so, as the others of its stack go on from step {newest}; "
        "train it alone to try again",
        file=sys.stderr,
      )
  return [i for i in todo if i not in left], ["failed"] * len(left)


def read_config(workdir: pathlib.Path) -> Config:
  """The resolved config of a run.

  Raises:
    ConfigError: there is no run in that directory, what says so is damaged, or config.json says other
      than what the run was trained with (`changed_section`).
  """
  workdir = pathlib.Path(workdir)
  path, name = workdir / "config.json", bucket.name_of(workdir)
  if not path.exists():
    raise ConfigError(
      f"workdir={name}: holds no run (no config.json); "
      f"train one with python train.py --workdir {shlex.quote(name)}"
    )
  cfg = from_json(
    read_object(path, "bring it back from a copy, or train again in another --workdir")
  )
  section = changed_section(cfg, _plain_json(workdir / "run.json"))
  if section:
    raise ConfigError(
      f"workdir={name}: {section} in config.json was changed since the run was trained; bring it back from "
      "a copy, or train what it says now in another --workdir"
    )
  return _with_tokenizer(cfg, workdir)


def _with_tokenizer(cfg: Config, workdir: pathlib.Path) -> Config:
  """The config with the tokenizer files that an import left in the run, wherever the run was when it did."""
  if cfg.data.tokenizer_path is None or not (workdir / IMPORTED).is_file():
    return cfg
  inside, name = workdir.resolve() / "tokenizer", pathlib.Path(cfg.data.tokenizer_path).name
  here = inside if name == inside.name and (inside / "vocab.json").is_file() else inside / name
  if not here.exists():
    return cfg
  return dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, tokenizer_path=str(here)))


def changed_section(cfg: Config, run: object) -> str | None:
  """The section of a config, or the key of none, that is not what run.json knows; None where all are, or none
  is known.

  Where the data lie may change, as where a run was moved: their fingerprints are looked at instead.
  """
  known = run.get("sections") if isinstance(run, dict) else None
  if not isinstance(known, dict):
    return None
  mine = section_identities(cfg, OF_DATA)
  found = next((k for k in mine if k != "data" and k in known and known[k] != mine[k]), None)
  return "data" if found == "reading" else found


def _plain_json(path: pathlib.Path) -> object:
  """What a file of JSON holds; None where it cannot be read."""
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except (OSError, ValueError, RecursionError):
    return None


def dashboard_facts(run: Mapping[str, object]) -> dict[str, object]:
  """What run.json says that a dashboard groups and filters runs by, beside the config."""
  names = ("id", "parameters", "flops", "tokens", "commit", "dirty", "device", "n_devices", "host")
  found = {name: run[name] for name in names if name in run}
  data = run.get("data")
  prints = fingerprints(data) if isinstance(data, Mapping) else {}
  return {"run": {**found, "fingerprints": prints, "versions": run.get("versions", {})}}


def read_earlier(workdir: pathlib.Path) -> Config | None:
  """The config of the run that is there; None where there is none."""
  return read_config(workdir) if (workdir / "config.json").exists() else None


def read_run(workdir: pathlib.Path) -> dict:
  """run.json; {} if there is none.

  Raises:
    ConfigError: it is damaged.
  """
  path = pathlib.Path(workdir) / "run.json"
  remedy = "bring it back from a copy, or delete it: the checkpoints say how far the run is"
  found = read_object(path, remedy) if path.exists() else {}
  for key, kind in RUN_TYPES.items():
    if key in found and not isinstance(found[key], kind):
      raise ConfigError(f"{path}=({key}={found[key]!r}): makes no sense there; {remedy}")
  return found


def checkpoint_steps(workdir: pathlib.Path) -> set[int]:
  """Steps of the complete checkpoints of a run directory."""
  folder = workdir / "checkpoints"
  found = folder.iterdir() if folder.is_dir() else ()
  numbers = ((whole_number(path.name), path) for path in found)
  return {n for n, path in numbers if n is not None and path.name == str(n) and path.is_dir()}


def last_metrics(workdir: pathlib.Path, prefix: str = "eval/") -> dict[str, float]:
  """The latest value of each metric whose key starts with `prefix`."""
  values = {}
  for record in read_jsonl(pathlib.Path(workdir) / "metrics.jsonl"):
    values |= {k: v for k, v in record.items() if k.startswith(prefix)}
  return values


def _equal_numbers(a: object, b: object) -> bool:
  """Lists from JSON equal tuples, and floats that went through it equal themselves."""
  if isinstance(a, list | tuple) and isinstance(b, list | tuple):
    return list(a) == list(b)
  return a == b
