"""Which mesh axis each array axis lies on: two tables, and what follows from them.

Modules name logical axes; only this file names mesh axes. An array axis whose logical name maps to None
is replicated. Parameters and the optimizer's state lie as PARAM_RULES say, and each layer gathers its
own over `fsdp` when it runs (ZeRO-3: Rajbhandari et al. 2020, arXiv:1910.02054 §5).
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lm.config.errors import ConfigError
from lm.config.schema import MeshConfig

PARAM_RULES = {
  "layers": None,
  "vocab": "tensor",
  "embed": "fsdp",
  "heads": "tensor",
  "kv_heads": "tensor",
  "head_dim": None,
  "mlp": "tensor",
  "gates": None,
  "expert": "expert",
  "router": None,
  "position": None,
  "norm": None,
  "replicated": None,
}
ACTIVATION_RULES = {
  "batch": ("replica", "fsdp", "expert"),
  "expert_batch": ("replica", "fsdp"),  # where experts have an axis of their own
  "length": "sequence",
  "act_embed": None,
  "act_heads": "tensor",
  "act_kv_heads": "tensor",
  "act_head_dim": None,
  "act_mlp": "tensor",
  "act_vocab": "tensor",
  "act_expert": "expert",
  "act_slots": None,
  "capacity": None,
  "replicated": None,
}
_MESH: contextvars.ContextVar[Mesh | None] = contextvars.ContextVar("mesh", default=None)


def make_mesh(
  cfg: MeshConfig,
  n_runs: int = 1,
  devices: Sequence[jax.Device] | None = None,
  n_slices: int | None = None,
) -> Mesh:
  """A mesh with axes run, replica, fsdp, expert, sequence, tensor, the last one the nearest.

  Args:
    cfg: resolved sizes.
    n_runs: stacked runs; above 1 they are what the devices are spread over.
    devices: all local and remote devices if None.
    n_slices: groups of devices with a slow network between them; what the devices say if None
      (TPU slices). Only `replica` crosses groups.

  Raises:
    ConfigError: mesh.replica is no multiple of the slices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = {"run": 1, **dataclasses.asdict(cfg)}
  if n_runs > 1:
    run = int(np.gcd(n_runs, len(devices)))
    sizes = dict.fromkeys(sizes, 1) | {"run": run}
    return Mesh(np.reshape(devices[:run], tuple(sizes.values())), tuple(sizes))
  slice_of = {device: getattr(device, "slice_index", 0) for device in devices}
  if n_slices is not None:
    slice_of = {device: i * n_slices // len(devices) for i, device in enumerate(devices)}
  groups = [[d for d in devices if slice_of[d] == s] for s in sorted(set(slice_of.values()))]
  if cfg.replica % len(groups):
    raise ConfigError(
      f"mesh.replica={cfg.replica}: must be a multiple of the {len(groups)} slices, as only "
      f"replicas cross the network between them; use {len(groups)}"
    )
  inner = tuple((sizes | {"replica": cfg.replica // len(groups)}).values())
  blocks = [mesh_utils.create_device_mesh(inner, group) for group in groups]
  axis = list(sizes).index("replica")
  return Mesh(np.concatenate(blocks, axis), tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


@contextlib.contextmanager
def use_mesh(mesh: Mesh) -> Iterator[None]:
  """While a program is traced: the mesh that the functions below mean."""
  token = _MESH.set(mesh)
  try:
    yield
  finally:
    _MESH.reset(token)


def current_mesh() -> Mesh | None:
  """The mesh in use; None on one device."""
  mesh = _MESH.get()
  return mesh if mesh is not None and mesh.size > 1 else None


def platform() -> str:
  """cpu, gpu or tpu: that of the mesh in use, which need not be at hand, else jax's default."""
  mesh = _MESH.get()
  return jax.default_backend() if mesh is None else mesh.devices.flat[0].platform


def on_one_cpu() -> bool:
  """Whether the program is for a single CPU device, where other forms are faster than on accelerators."""
  return platform() == "cpu" and current_mesh() is None


def constrain(x: jax.Array, names: Sequence[str]) -> jax.Array:
  """x, laid out over the mesh in use as the logical names of its axes say.

  Raises:
    ConfigError: an unknown name, or a dimension that its mesh axes do not divide.
  """
  mesh = current_mesh()
  if mesh is None:
    return x
  spec = activation_spec(mesh, names, x.shape)
  return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def gather(weight: jax.Array, names: Sequence[str]) -> jax.Array:
  """A parameter as a layer reads it: gathered over fsdp, still split over the other axes."""
  mesh = current_mesh()
  if mesh is None:
    return weight
  axes = [PARAM_RULES[name] for name in names]
  spec = PartitionSpec(*(None if axis == "fsdp" else axis for axis in axes))
  return jax.lax.with_sharding_constraint(weight, NamedSharding(mesh, spec))


def activation_spec(
  mesh: Mesh, names: Sequence[str], shape: Sequence[int] | None = None
) -> PartitionSpec:
  """ACTIVATION_RULES of these axes; ConfigError for an unknown name or a size not divided."""
  spec = []
  for index, name in enumerate(names):
    if name not in ACTIVATION_RULES:
      raise ConfigError(
        f"{tuple(names)}: the logical axis {name} has no row in ACTIVATION_RULES; add one to "
        "lm/devices/sharding.py"
      )
    axes = ACTIVATION_RULES[name]
    ways = mesh_ways(mesh, axes)
    if shape is not None and shape[index] % ways:
      words = " x ".join(f"mesh.{a}" for a in ([axes] if isinstance(axes, str) else axes))
      raise ConfigError(
        f"{words}={ways}: must divide the {name} axis ({shape[index]}) of the activations; use a "
        f"divisor of {shape[index]}"
      )
    spec.append(axes)
  return PartitionSpec(*spec)


def mesh_ways(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
  """Devices along one mesh axis or several."""
  axes = (axes,) if isinstance(axes, str) else axes or ()
  return int(np.prod([mesh.shape[axis] for axis in axes]))


def param_shardings(mesh: Mesh, axes: Any, shapes: Any, stacked: bool = False) -> Any:
  """NamedSharding for each parameter.

  Args:
    mesh: from make_mesh.
    axes: pytree of tuples of logical axis names, one name an array axis.
    shapes: same pytree of ShapeDtypeStruct, without the run axis.
    stacked: puts a leading `run` axis before every array.

  Raises:
    ConfigError: an unknown logical axis, or a dimension that its mesh axis does not divide.
  """

  def one(path, names, shape):
    spec = []
    for name, size in zip(names, shape.shape, strict=True):
      if name not in PARAM_RULES:
        raise ConfigError(
          f"{jax.tree_util.keystr(path)}={names}: the logical axis {name} has no row in "
          "PARAM_RULES; add one to lm/devices/sharding.py"
        )
      axis = PARAM_RULES[name]
      if axis and size % mesh.shape[axis]:
        raise ConfigError(
          f"mesh.{axis}={mesh.shape[axis]}: must divide the {name} axis ({size}) of "
          f"{jax.tree_util.keystr(path, simple=True, separator='/')}; use a divisor of {size}"
        )
      spec.append(axis)
    return NamedSharding(mesh, PartitionSpec(*(("run",) if stacked else ()), *spec))

  is_names = lambda x: isinstance(x, tuple) and all(isinstance(n, str) for n in x)
  return jax.tree_util.tree_map_with_path(one, axes, shapes, is_leaf=is_names)


def shardings_like_params(tree: Any, params: Any, shardings: Any, replicated: NamedSharding) -> Any:
  """Shardings of a tree that holds copies of the parameters, such as an optimizer's state.

  A leaf whose path ends in a parameter's path and whose shape is that parameter's is laid out like it;
  everything else (counts, factored moments) is replicated.
  """
  known = {
    tuple(map(str, path)): (leaf.shape, sharding)
    for (path, leaf), sharding in zip(
      jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(shardings), strict=True
    )
  }

  def one(path, leaf):
    words = tuple(map(str, path))
    for start in range(len(words)):
      if words[start:] in known and known[words[start:]][0] == leaf.shape:
        return known[words[start:]][1]
    return replicated

  return jax.tree_util.tree_map_with_path(one, tree)


def batch_sharding(
  mesh: Mesh, stacked: bool = False, axes: Sequence[str] = ("batch", "length")
) -> NamedSharding:
  """Of arrays with these logical axes (ACTIVATION_RULES), with a leading `run` axis when stacked."""
  spec = activation_spec(mesh, axes)
  return NamedSharding(mesh, PartitionSpec(*(("run",) if stacked else ()), *spec))


def array_shardings(mesh: Mesh, axes: Any, stacked: bool = False) -> Any:
  """`batch_sharding` for every tuple of logical axes in a tree."""
  is_names = lambda leaf: isinstance(leaf, tuple)
  return jax.tree.map(lambda names: batch_sharding(mesh, stacked, names), axes, is_leaf=is_names)


def put_rows(
  read: Callable[[slice], Mapping[str, np.ndarray]],
  n_rows: int,
  layouts: Mapping[str, NamedSharding],
) -> dict[str, jax.Array]:
  """A batch on the devices of all processes, of which each reads the rows of its own devices alone.

  Args:
    read: rows of the batch -> host arrays [rows, ...] (any leading run axis needs a single process).
    n_rows: of the whole batch.
    layouts: of each array (array_shardings); all split rows in the same way.
  """
  layout = next(iter(layouts.values()))
  if layout.is_fully_addressable:
    return jax.device_put(dict(read(slice(0, n_rows))), dict(layouts))
  mine = layout.addressable_devices_indices_map((n_rows, layout.mesh.size)).values()
  spans = [index[0].indices(n_rows)[:2] for index in mine]
  first, last = min(start for start, _ in spans), max(stop for _, stop in spans)

  def put(name, local):
    def part(index):
      start, stop, _ = index[0].indices(n_rows)
      return local[(slice(start - first, stop - first), *index[1:])]

    return jax.make_array_from_callback((n_rows, *local.shape[1:]), layouts[name], part)

  return {name: put(name, local) for name, local in read(slice(first, last)).items()}


def replicated(mesh: Mesh, stacked: bool = False) -> NamedSharding:
  """Of scalars, or [R] arrays when stacked."""
  return NamedSharding(mesh, PartitionSpec(*(("run",) if stacked else ())))
