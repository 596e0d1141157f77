"""The model families there are: one row each."""

import flax.linen as nn

from lm.config.schema import ModelConfig
from lm.models.bert import BERT
from lm.models.decoder import DECODER
from lm.models.encoder_decoder import ENCODER_DECODER
from lm.models.family import Family
from lm.models.recurrent import RECURRENT
from lm.models.t5 import T5_FAMILY
from lm.models.vae import VAE
from lm.models.word_vectors import WORD_VECTORS

FAMILIES: dict[str, Family] = {
  "decoder": DECODER,
  "recurrent": RECURRENT,
  "bert": BERT,
  "word_vectors": WORD_VECTORS,
  "vae": VAE,
  "encoder_decoder": ENCODER_DECODER,
  "t5": T5_FAMILY,
}


def family_of(section: ModelConfig) -> Family:
  """The row of a config's `model` section."""
  return FAMILIES[section.family]


def make_model(section: ModelConfig) -> nn.Module:
  """The module of a resolved section.

  Raises:
    ConfigError: something that this platform or config rules out.
  """
  return family_of(section).module(section)
