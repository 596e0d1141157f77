"""Configs and hyperparameters that many tests start from."""

import functools

import numpy as np

from lm.config.hparams import Hparams
from lm.config.schema import Config
from lm.setup.hparams import hparams_zeros
from lm.setup.load import load_config
from lm.setup.resolve import resolve


@functools.cache
def default_config() -> Config:
  """configs/default.py, resolved for its tokenizer's 2,048 entries and one device."""
  return resolve(load_config("configs/default.py"), 2048, 1)


def zero_hparams(**values: float) -> Hparams:
  """The traced inputs of the default config at 0, but for some of them."""
  return hparams_zeros(default_config()).replace(
    **{name: np.float32(value) for name, value in values.items()}
  )
