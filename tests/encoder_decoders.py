"""Small encoder-decoders that several tests start from."""

import dataclasses
import functools

import jax

from lm.models.encoder_decoder_config import EncoderDecoderConfig
from lm.models.registry import make_model
from lm.models.t5 import T5Config
from lm.models.trees import init_params
from lm.setup.resolve import resolve_model

COMMON = {
  "seq_len": 16, "target_len": 12, "width": 16, "vocab_size": 40, "parameterization": "standard",
  "base_width": 16, "dtype": "float32", "depth": 1, "decoder_depth": 1, "heads": 2, "head_dim": None,
  "mlp_dim": 24, "norm_eps": 1e-6, "dropout": 0.0, "init": "fan_in", "base_head_dim": None,
  "scan_layers": True, "matmul": "dtype", "remat": "none", "attention": "einsum",
}  # fmt: skip
VASWANI = COMMON | {
  "family": "encoder_decoder", "positions": "sinusoidal", "norm": "layernorm",
  "norm_position": "post", "activation": "relu", "bias": True, "tied_embeddings": True,
}  # fmt: skip
T5 = COMMON | {
  "family": "t5", "positions": "relative", "norm": "rmsnorm", "norm_position": "pre",
  "activation": "relu", "bias": False, "tied_embeddings": True, "buckets": 8, "max_distance": 6,
}  # fmt: skip
T5_11 = T5 | {"activation": "geglu", "tied_embeddings": False}
SHAPES = {"vaswani": VASWANI, "t5": T5, "t5-1.1": T5_11}


def section(name: str, **changes):
  """A resolved section: one of SHAPES with changes."""
  fields = SHAPES[name] | changes
  cls = T5Config if fields["family"] == "t5" else EncoderDecoderConfig
  return resolve_model(cls(**fields), fields["vocab_size"])


@functools.cache
def model_of(name: str, **changes):
  """(module, parameters) of `section`."""
  model = make_model(section(name, **changes))
  return model, jax.jit(lambda key: init_params(model, key))(jax.random.key(0))


def changed(model, **changes):
  """The same module with fields of its section changed."""
  return make_model(dataclasses.replace(model.cfg, **changes))
