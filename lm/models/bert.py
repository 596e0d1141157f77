"""BERT: a bidirectional transformer encoder (Devlin et al. 2019, arXiv:1810.04805).

    x = norm(token + position + type embedding)
    each layer: x = norm(x + attention(x)); x = norm(x + mlp(x))

Every token sees its whole row; biases everywhere, learned positions, the exact GELU, std 0.02. Heads (masked
tokens, next sentence, classes) belong to objectives: lm.models.heads. Departure from the paper: attention
weights are not dropped out.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from lm.config.errors import ConfigError, check_choice, check_divisible
from lm.config.schema import ModelConfig, field
from lm.devices.sharding import constrain
from lm.models import layers
from lm.models.attention.forms import attend, choose_form
from lm.models.decoder import BATCH, Embed, remat_policy
from lm.models.family import Family, Input, Weight
from lm.models.transformer_config import REMAT_NAMES, PlainLayers

KEPT = tuple(name for name in REMAT_NAMES if name != "gate")  # what model.remat_keep can name


@dataclasses.dataclass(frozen=True)
class BertConfig(PlainLayers, ModelConfig):
  depth: int = field("[1, inf)", "4")
  heads: int = field("[1, inf)", "4")
  mlp_dim: int | None = field("[1, inf)", "512")
  types: int = field("[1, inf)", "2")
  activation: str = field(choices=("gelu_exact", "gelu", "relu", "silu"))
  norm_eps: float = field("(0, 1)", "1e-12")
  dropout: float = field("[0, 1)", "0.1")
  scan_layers: bool = field()
  remat: str = field(choices=("none", "dots", "names", "full", "offload"))
  remat_keep: tuple[str, ...] = field()
  attention: str = field(choices=("auto", "xla", "einsum", "chunked", "cudnn", "splash"))

  # What lm.models.layers and attention read, the same in every BERT.
  init = "gpt2"  # std 0.02
  norm, bias = "layernorm", True
  tied_embeddings = True
  positions = "learned"

  @property
  def head_dim(self) -> int:
    return self.width // self.heads

  base_head_dim = head_dim

  @property
  def kv_heads(self) -> int:
    return self.heads


Resolved = Any  # a BertConfig with all sizes known; what layers are made of is typed by the decoder's section


class SelfAttention(nn.Module):
  """Every position attends to all positions of its segment."""

  cfg: Resolved

  @nn.compact
  def __call__(self, x_BLD, segments_BL):
    cfg = self.cfg

    def heads(name):
      y = layers.Linear(cfg, cfg.width, ("embed", "heads"), name=name, part="qkv")(x_BLD)
      y = constrain(y, ("batch", "length", "act_heads"))
      return y.reshape(*y.shape[:2], cfg.heads, cfg.head_dim)

    y_BLHK = attend(heads("q"), heads("k"), heads("v"), cfg, segments_BL, causal=False)
    out = layers.Linear(cfg, cfg.width, ("heads", "embed"), name="out", part="out")
    return out(y_BLHK.reshape(x_BLD.shape))


class Mlp(nn.Module):
  """down(act(up x))."""

  cfg: Resolved

  @nn.compact
  def __call__(self, x_BLD):
    cfg = self.cfg
    h_BLF = layers.Linear(cfg, cfg.mlp_dim, ("embed", "mlp"), name="up")(x_BLD)
    h_BLF = constrain(layers.activate(cfg, h_BLF, None), ("batch", "length", "act_mlp"))
    return layers.Linear(cfg, cfg.width, ("mlp", "embed"), name="down")(h_BLF)


class Block(nn.Module):
  """x = norm(x + f(x)) with f attention, then the MLP."""

  cfg: Resolved

  @nn.compact
  def __call__(self, x_BLD, segments_BL, train: bool):
    """(x_BLD, None); scanned over layers by Bert."""
    cfg = self.cfg

    def add(x_BLD, y_BLD, name):
      y_BLD = nn.Dropout(cfg.dropout, deterministic=not train, name=f"{name}_dropout")(y_BLD)
      return constrain(layers.Norm(cfg, cfg.norm, name=f"{name}_norm")(x_BLD + y_BLD), BATCH)

    x_BLD = add(x_BLD, SelfAttention(cfg, name="attn")(x_BLD, segments_BL), "attn")
    return add(x_BLD, Mlp(cfg, name="mlp")(x_BLD), "mlp"), None


class Bert(nn.Module):
  """Tokens to vectors that know their whole row."""

  cfg: Resolved

  def setup(self):
    cfg = self.cfg
    self.embed = Embed(cfg, cfg.vocab_size, "vocab", name="embed")
    self.position_embed = Embed(cfg, cfg.seq_len, "position", name="position_embed")
    self.type_embed = Embed(cfg, cfg.types, "position", name="type_embed")
    self.embed_norm = layers.Norm(cfg, cfg.norm, name="embed_norm")
    self.dropout = nn.Dropout(cfg.dropout, name="dropout")
    block = Block
    if cfg.remat != "none":
      block = nn.remat(
        Block,
        policy=remat_policy(cfg),
        prevent_cse=layers.written_out(cfg),
        static_argnums=(3,),
      )
    if cfg.scan_layers:
      self.blocks = nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(nn.broadcast, nn.broadcast),
        length=cfg.depth,
        unroll=cfg.depth if layers.written_out(cfg) else 1,
        metadata_params={nn.PARTITION_NAME: "layers"},
      )(cfg, name="blocks")
    else:
      self.unrolled = [block(cfg, name=f"block_{i}") for i in range(cfg.depth)]

  def __call__(self, tokens_BL, positions_BL=None, segments_BL=None, types_BL=None, *, train=False):
    """As `hidden`."""
    return self.hidden(tokens_BL, positions_BL, segments_BL, types_BL, train=train)

  def hidden(
    self, tokens_BL, positions_BL=None, segments_BL=None, types_BL=None, *, train: bool = False
  ):
    """The last layer's vectors [B, L, D], in cfg.dtype.

    Args:
      tokens_BL: int32 in [0, V).
      positions_BL: int32; None = 0 .. L - 1.
      segments_BL: int32; a token sees those of its own segment, 0 is padding. None = all are real.
      types_BL: int32 in [0, model.types): which of two texts a token is of. None = 0.
      train: drop out activations, with the rng "dropout".
    """
    cfg, length = self.cfg, tokens_BL.shape[1]
    if length > cfg.seq_len:
      raise ConfigError(
        f"model.seq_len={cfg.seq_len}: learned positions end there and a row has {length} tokens; "
        "shorten the rows"
      )
    if positions_BL is None:
      positions_BL = jnp.arange(length, dtype=jnp.int32)[None]
    if types_BL is None:
      types_BL = jnp.zeros((1, 1), jnp.int32)
    x_BLD = self.embed(tokens_BL) + self.position_embed(positions_BL) + self.type_embed(types_BL)
    x_BLD = constrain(self.embed_norm(x_BLD), BATCH)
    x_BLD = self.dropout(x_BLD, deterministic=not train)
    if cfg.scan_layers:
      return self.blocks(x_BLD, segments_BL, train)[0]
    for block in self.unrolled:
      x_BLD, _ = block(x_BLD, segments_BL, train)
    return x_BLD

  bidirectional = hidden  # by this name objectives ask for families whose tokens see both sides


def bert_weights(cfg: Resolved) -> list[Weight]:
  """Every weight of an encoder without heads."""
  depth, width, found = cfg.depth, cfg.width, []
  tables = {"embed": cfg.vocab_size, "position_embed": cfg.seq_len, "type_embed": cfg.types}
  for name, entries in tables.items():
    found.append(Weight(f"{name}/embedding", "embed", (entries, width)))
  for name, copies in (("embed_norm", 1), ("blocks/attn_norm", depth), ("blocks/mlp_norm", depth)):
    found += [Weight(f"{name}/{p}", "vector", (width,), copies, copies) for p in ("scale", "bias")]
  shapes = {f"attn/{part}": (width, width) for part in ("q", "k", "v", "out")}
  shapes |= {"mlp/up": (width, cfg.mlp_dim), "mlp/down": (cfg.mlp_dim, width)}
  for name, shape in shapes.items():
    found.append(Weight(f"blocks/{name}/kernel", "hidden", shape, depth, depth))
    found.append(Weight(f"blocks/{name}/bias", "vector", shape[1:], depth, depth))
  return found


def bert_flops(cfg: Resolved, causal: bool = False) -> float:
  """3 (2 entries of every hidden matrix + 4 L D depth): a token meets all L keys, causal or not."""
  met = sum(w.used * math.prod(w.shape) for w in bert_weights(cfg) if w.kind == "hidden")
  return 3 * (2 * met + 4 * cfg.seq_len * cfg.width * cfg.depth)


def bert_activations(cfg: Any) -> float:
  """As lm.models.transformer_counts.decoder_activations, without a head's logits."""
  model, train, mesh = cfg.model, cfg.train, cfg.mesh
  width, mlp_dim = model.width, model.mlp_dim
  whole = 11 * width + 2 * mlp_dim
  if model.attention in ("einsum", "xla"):
    whole += 2 * width + 2 * model.heads * model.seq_len
  sizes = dict.fromkeys(KEPT, width) | {"up": mlp_dim}
  kept = {
    "none": whole,
    "dots": 5 * width + mlp_dim,
    "names": sum(sizes[name] for name in model.remat_keep),
    "full": width,
    "offload": width,
  }[model.remat]
  again = 0 if model.remat == "none" else 24 * width + 6 * mlp_dim - kept
  working = max(18 * width + 4 * mlp_dim, again)
  rows = train.batch_size / train.accumulate / (mesh.replica * mesh.fsdp * mesh.expert)
  return rows * model.seq_len / mesh.sequence * (model.depth * kept + working)


def check_bert(cfg: Any) -> None:
  """ConfigError for heads that do not divide the width, names that nothing has, and texts to write."""
  check_divisible("model.width", cfg.model.width, cfg.model.heads, "model.heads")
  for name in cfg.model.remat_keep:
    check_choice("model.remat_keep", name, KEPT)
  if cfg.sample.tokens:
    raise ConfigError(
      f"sample.tokens={cfg.sample.tokens}: model.family=bert sees both sides and writes no text; use 0"
    )


def resolve_bert(model: BertConfig, vocab_size: int) -> BertConfig:
  """mlp_dim is 4 width where it is None."""
  return dataclasses.replace(
    model,
    mlp_dim=model.mlp_dim or 4 * model.width,
    vocab_size=model.vocab_size or vocab_size,
  )


def split_bert(model: Resolved) -> dict[str, dict[str, int]]:
  """What each mesh axis must divide."""
  return {
    "sequence": {"model.seq_len": model.seq_len},
    "fsdp": {"model.width": model.width},
    "tensor": {f"model.{key}": getattr(model, key) for key in ("heads", "mlp_dim", "vocab_size")},
  }


def make_bert(cfg: Resolved) -> Bert:
  """The module of a resolved section; ConfigError for a form of attention that the platform rules out."""
  choose_form(cfg)
  return Bert(cfg)


BERT = Family(
  section=BertConfig,
  module=make_bert,
  inputs={"tokens": Input("int32", ("batch", "length"))},
  weights=bert_weights,
  exact_flops=bert_flops,
  activation_floats=bert_activations,
  check=check_bert,
  resolve=resolve_bert,
  splits=split_bert,
)
