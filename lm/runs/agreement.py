"""What the processes of a run must have alike before they train it: config, code, versions, data, directory.

Without this, hosts that read different files, or run different code, would train one model on a mixture.
"""

import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from lm.config.schema import Config, flatten
from lm.devices import instructions, peers
from lm.runs import provenance, rundir
from lm.setup.resolve import kind_of

OWN = ("data.cache_dir",)  # keys of which each host may have its own value
# Of jax's configuration: what changes numbers or programs.
JAX = (
  "jax_default_matmul_precision", "jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable",
)  # fmt: skip


def check(cfg: Config, data: Any | None) -> None:
  """Returns where all processes of the run have the same; all must call it, once their data are open.

  Args:
    cfg: checked config.
    data: opened by its kind of batch; None where nothing was.

  Raises:
    ConfigError: names the first thing that differs, the processes and their values.
  """
  if peers.count() > 1:
    peers.agree(facts(cfg, data), "give all processes the same command, files, code and packages")


def facts(cfg: Config, data: Any | None) -> dict[str, object]:
  """{name: value} of what must be the same in all processes, the config's keys first."""
  found: dict[str, object] = {k: v for k, v in flatten(cfg).items() if k not in OWN}
  if data is not None:
    found |= rundir.fingerprints(kind_of(cfg).describe(data))
  found |= {f"extension {name}": value for name, value in provenance.extension_digests(cfg).items()}
  versions = provenance.versions()
  versions["python"] = versions["python"].rpartition(".")[0]
  found |= {"code of lm": code_digest(), **versions, "platform": jax.default_backend()}
  found |= {name: getattr(jax.config, name) for name in JAX}
  if jax.default_backend() == "cpu":  # the forms of some computations go by them
    found["instructions"] = instructions.vector_set()
  return found


def check_place(workdir: pathlib.Path, steps: Sequence[int]) -> None:
  """Returns where all processes see the run directory that process 0 writes, with the same checkpoints.

  Args:
    workdir: of a run that process 0 has opened.
    steps: of the checkpoints that this process sees there.
  """
  if peers.count() > 1:
    run = rundir.read_run(workdir)
    begun = [run.get("started"), *run.get("resumed", [])][-1]
    found = {
      f"the run in {workdir}": f"{run.get('wandb_id')} of {begun}",
      "checkpoints": list(steps),
    }
    peers.agree(found, "give a --workdir that all hosts share")


def check_weights(key: str, about: Mapping[str, Any] | None) -> None:
  """Returns where all processes have read the same weights; `about` says which, as run.json does."""
  named = {f"{key}'s {name}": value for name, value in (about or {}).items()}
  peers.agree(named, "give all hosts the same files")


def code_digest() -> str:
  """12 hex digits of all Python files of lm, with their names."""
  digest, folder = hashlib.sha256(), pathlib.Path(__file__).parents[1]
  for path in sorted(folder.rglob("*.py")):
    digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
    digest.update(path.read_bytes())
  return digest.hexdigest()[:12]
