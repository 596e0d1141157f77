"""What changes neither shapes nor the program: the traced inputs of one compiled step."""

import typing
from collections.abc import Callable

import jax


@jax.tree_util.register_pytree_with_keys_class
class Hparams:
  """Scalars by name, read as attributes: float32, or float32 [R] for R stacked runs; counts and seed int32.

  Which there are, the `traced` fields of a config's sections say, each by the last part of its key
  (`optim.peak_lr` is `peak_lr`); lm.setup.hparams adds the steps that schedules need.

  >>> hparams = Hparams(peak_lr=1e-3, b1=0.9)
  >>> hparams.peak_lr, hparams.replace(b1=0.5).b1
  (0.001, 0.5)
  """

  def __init__(self, **values):
    self.__dict__.update(values)

  if typing.TYPE_CHECKING:

    def __getattr__(self, name: str) -> jax.Array: ...

  def replace(self, **values) -> "Hparams":
    """The same with some values changed."""
    return Hparams(**{**self.__dict__, **values})

  def items(self):
    return self.__dict__.items()

  def map(self, fn: Callable) -> "Hparams":
    """fn of every value."""
    return Hparams(**{name: fn(value) for name, value in self.items()})

  def __repr__(self) -> str:
    return f"Hparams({', '.join(f'{k}={v}' for k, v in self.items())})"

  def tree_flatten_with_keys(self):
    names = tuple(self.__dict__)
    keys = [(jax.tree_util.GetAttrKey(name), self.__dict__[name]) for name in names]
    return keys, names

  @classmethod
  def tree_unflatten(cls, names, values):
    return cls(**dict(zip(names, values, strict=True)))
