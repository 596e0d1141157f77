"""The `model` section of encoder-decoder Transformers: its fields, their rules, its derived values."""

import dataclasses
from typing import Any

from lm.config.errors import ConfigError, check_divisible
from lm.config.schema import Config, ModelConfig, field
from lm.models import layers
from lm.models.transformer_config import ACTIVATIONS, PlainLayers, default_mlp_dim


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig(PlainLayers, ModelConfig):
  """`seq_len` is the tokens of a source; both stacks have the same width, heads and MLPs."""

  target_len: int | None = field("[1, inf)", "128")
  depth: int = field("[1, inf)", "6")
  decoder_depth: int | None = field("[1, inf)", "6")
  heads: int = field("[1, inf)", "8")
  head_dim: int | None = field("[1, inf)", "64")
  mlp_dim: int | None = field("[1, inf)", "2048")
  positions: str = field(choices=("sinusoidal", "learned", "none"))
  norm: str = field(choices=("rmsnorm", "layernorm"))
  norm_position: str = field(choices=("pre", "post"))
  norm_eps: float = field("(0, 1)", "1e-6")
  activation: str = field(choices=ACTIVATIONS)
  bias: bool = field()
  tied_embeddings: bool = field()
  dropout: float = field("[0, 1)", "0.1")
  init: str = field(choices=("fan_in", "gpt2"))
  base_head_dim: int | None = field("[1, inf)", "64")
  scan_layers: bool = field()
  matmul: str = field(choices=("dtype", "int8"))
  remat: str = field(choices=("none", "dots", "full"))
  attention: str = field(choices=("auto", "xla", "einsum", "chunked", "cudnn", "splash"))

  @property
  def attention_scale(self) -> float | None:
    """Of query-key products; None = that of the parameterization, 1/sqrt(K)."""
    return None

  @property
  def query_init(self) -> float:
    """Factor of the initial standard deviation of query kernels."""
    return 1.0

  @property
  def embed_std(self) -> float:
    """Initial standard deviation of the embedding."""
    section: Any = self
    return layers.init_std(section, "embed", self.width)

  @property
  def embed_scale(self) -> float:
    """What embeddings are multiplied by where tokens enter: §3.4, so that they have the size of positions."""
    return 1 / self.embed_std if self.positions == "sinusoidal" else 1.0

  @property
  def logit_scale(self) -> float:
    """What logits are multiplied by, beside the parameterization's."""
    return 1.0


def check_encoder_decoder(cfg: Config) -> None:
  """ConfigError for heads or positions that do not fit together."""
  model: Any = cfg.model
  if model.head_dim is None:
    check_divisible("model.width", model.width, model.heads, "model.heads, as head_dim is None")
  if model.positions == "sinusoidal" and model.width % 2:
    raise ConfigError(
      f"model.width={model.width}: must be even for sinusoidal positions; use {model.width + 1}"
    )


def resolve_encoder_decoder(model: Any, vocab_size: int) -> Any:
  """Lengths, depths and sizes as numbers."""
  head_dim = model.head_dim or model.width // model.heads
  return dataclasses.replace(
    model,
    target_len=model.target_len or model.seq_len,
    decoder_depth=model.decoder_depth or model.depth,
    head_dim=head_dim,
    base_head_dim=model.base_head_dim or head_dim,
    mlp_dim=model.mlp_dim or default_mlp_dim(model.width, model.activation),
    vocab_size=model.vocab_size or vocab_size,
  )


def split_encoder_decoder(model: Any) -> dict[str, dict[str, int]]:
  """What each mesh axis must divide."""
  return {
    "sequence": {"model.seq_len": model.seq_len, "model.target_len": model.target_len},
    "fsdp": {"model.width": model.width},
    "tensor": {f"model.{key}": getattr(model, key) for key in ("heads", "mlp_dim", "vocab_size")},
  }
