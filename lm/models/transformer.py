"""A decoder-only transformer that covers GPT-2, Llama and what lies between them by configuration.

`hidden` gives the last vectors, `logits` reads tokens from them, and calling the module does both;
`decode` continues rows whose keys and values are held in a cache.
"""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.checks import REMAT_NAMES
from lm.config import ConfigError, ModelConfig
from lm.models import layers
from lm.models.experts import LOSSES, Experts
from lm.models.matmul import matmul
from lm.parameterization import multiplier
from lm.sharding import constrain

BATCH = ("batch", "length", "act_embed")


class Cache(NamedTuple):
  """Keys and values of the tokens seen so far."""

  index: jax.Array  # int32, tokens held: a scalar, or [B] where rows differ
  keys: jax.Array  # [depth, B, M, G, K], after rotation
  values: jax.Array  # [depth, B, M, G, K]


def init_cache(cfg: ModelConfig, batch: int, length: int, dtype: str | None = None) -> Cache:
  """An empty cache for `length` tokens a row, in cfg.dtype unless another is given."""
  shape = (cfg.depth, batch, length, cfg.kv_heads, cfg.head_dim)
  empty = jnp.zeros(shape, dtype or cfg.dtype)
  return Cache(jnp.int32(0), empty, empty)


def remat_policy(cfg: ModelConfig):
  """What a block keeps for its backward pass, beside the residual stream.

  dots: what linear layers give, and what attention's backward pass reads. names: those of them that
  model.remat_keep lists. offload: the same as dots, in the memory of the host. full: nothing.
  """
  policies = jax.checkpoint_policies
  if cfg.remat == "full":
    return policies.nothing_saveable
  if cfg.remat == "offload":
    return policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=list(REMAT_NAMES),
      offload_src="device",
      offload_dst="pinned_host",
    )
  return policies.save_only_these_names(*(REMAT_NAMES if cfg.remat == "dots" else cfg.remat_keep))


class Block(nn.Module):
  """pre: x + f(norm x); post: norm(x + f x), where f is attention, then the MLP.

  Xiong et al. 2020, arXiv:2002.04745, for both.
  """

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x_BLD, cache, context, train: bool):
    """(x_BLD, this layer's cache) -> the same; scanned over layers by Decoder."""
    cfg = self.cfg
    pre = cfg.norm_position == "pre"

    def residual(x_BLD, y_BLD, norm, name):
      x_BLD += nn.Dropout(cfg.dropout, deterministic=not train, name=name)(y_BLD)
      return constrain(x_BLD if pre else norm(x_BLD), BATCH)

    norm = layers.Norm(cfg, cfg.norm, name="attn_norm")
    attn = layers.Attention(cfg, name="attn")
    y_BLD, cache = attn(norm(x_BLD) if pre else x_BLD, context, cache)
    x_BLD = residual(x_BLD, y_BLD, norm, "attn_dropout")
    norm = layers.Norm(cfg, cfg.norm, name="mlp_norm")
    x_in_BLD = norm(x_BLD) if pre else x_BLD
    if cfg.experts:
      y_BLD = Experts(cfg, name="mlp")(x_in_BLD, train)
    else:
      y_BLD = layers.Mlp(cfg, name="mlp")(x_in_BLD)
    return residual(x_BLD, y_BLD, norm, "mlp_dropout"), cache


class Embed(nn.Module):
  """A table [n, D] of vectors, float32."""

  cfg: ModelConfig
  n: int
  axis: str  # vocab | position

  def setup(self):
    std = layers.init_std(self.cfg, "embed", self.cfg.width)
    axes = (self.axis, "embed")
    self.embedding = self.param("embedding", layers.normal(std, axes), (self.n, self.cfg.width))

  def __call__(self, ids: jax.Array) -> jax.Array:
    """Rows of the table; NaN for an id beyond it."""
    return jnp.take(self.embedding, ids, axis=0, mode="fill")


class Head(nn.Module):
  """The kernel [D, V] that reads logits, where it is not the embedding."""

  cfg: ModelConfig

  def setup(self):
    std = layers.init_std(self.cfg, "readout", self.cfg.width)
    shape = (self.cfg.width, self.cfg.vocab_size)
    self.kernel = self.param("kernel", layers.normal(std, ("embed", "vocab")), shape)


class Decoder(nn.Module):
  """Tokens to logits of the next token."""

  cfg: ModelConfig

  def setup(self):
    cfg = self.cfg
    self.embed = Embed(cfg, cfg.vocab_size, "vocab", name="embed")
    if cfg.positions == "learned":
      self.position_embed = Embed(cfg, cfg.seq_len, "position", name="position_embed")
    self.dropout = nn.Dropout(cfg.dropout, name="dropout")
    block = Block
    if cfg.remat != "none":
      policy = remat_policy(cfg)
      block = nn.remat(
        Block, policy=policy, prevent_cse=layers.written_out(cfg), static_argnums=(4,)
      )
    if cfg.scan_layers:
      self.blocks = nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0, LOSSES: 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        length=cfg.depth,
        unroll=cfg.depth if layers.written_out(cfg) else 1,
        metadata_params={nn.PARTITION_NAME: "layers"},
      )(cfg, name="blocks")
    else:
      self.blocks = [block(cfg, name=f"block_{i}") for i in range(cfg.depth)]
    if cfg.norm_position == "pre":
      self.final_norm = layers.Norm(cfg, cfg.norm, name="final_norm")
    if not cfg.tied_embeddings:
      self.head = Head(cfg, name="head")

  @property
  def head_params(self) -> tuple[str, ...]:
    """The top-level parameters that `logits` reads."""
    return ("embed",) if self.cfg.tied_embeddings else ("head",)

  def __call__(self, tokens_BL, positions_BL=None, segments_BL=None, *, train: bool = False):
    """Logits of the token after each one.

    Args:
      tokens_BL: int32 in [0, V).
      positions_BL: int32; None = 0 .. L - 1. Window and alibi count tokens of the row instead,
        which is the same within a document.
      segments_BL: int32 document ids; a token sees its own document only. None = one document.
      train: drop out activations, with the rng "dropout".

    Returns:
      float32 [B, L, V].
    """
    return self.logits(self.hidden(tokens_BL, positions_BL, segments_BL, train=train))

  def hidden(self, tokens_BL, positions_BL=None, segments_BL=None, *, train: bool = False):
    """The vectors [B, L, D] that `logits` reads, in cfg.dtype; arguments as in __call__."""
    length = tokens_BL.shape[1]
    if self.cfg.positions == "learned" and length > self.cfg.seq_len:
      raise ConfigError(
        f"model.seq_len={self.cfg.seq_len}: learned positions end there and a row has {length} "
        "tokens; shorten the rows or use rotary positions"
      )
    if positions_BL is None:
      positions_BL = jnp.arange(length, dtype=jnp.int32)[None]
    return self._run(tokens_BL, positions_BL, segments_BL, None, train)[0]

  def extend(self, tokens_BL: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """(the vectors [B, L, D] that `logits` reads, cache) for tokens that follow those in the cache.

    Prompts of different lengths are padded on the right and decoded together; setting cache.index
    to their lengths [B] then lets each row go on after its own last token. The cache must have
    room.
    """
    positions_BL = layers.token_index(cache.index, tokens_BL.shape[1])
    x_BLD, (keys, values) = self._run(tokens_BL, positions_BL, None, cache, False)
    return x_BLD, Cache(cache.index + tokens_BL.shape[1], keys, values)

  def decode(self, tokens_BL: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """(logits_BLV, cache), equal to the full pass; see `extend`."""
    x_BLD, cache = self.extend(tokens_BL, cache)
    return self.logits(x_BLD), cache

  def logits(self, x: jax.Array) -> jax.Array:
    """x [..., D] -> float32 logits [..., V]."""
    cfg = self.cfg
    if cfg.tied_embeddings:
      logits = matmul(x, self.embed.embedding.T, ("embed", "vocab"))
    else:
      logits = matmul(x, self.head.kernel, ("embed", "vocab"))
    logits = logits.astype(jnp.float32)
    logits *= multiplier(cfg.parameterization, "readout", "output", cfg.width / cfg.base_width)
    if cfg.logit_softcap is not None:
      logits = cfg.logit_softcap * jnp.tanh(logits / cfg.logit_softcap)
    return constrain(logits, ("batch", "length", "act_vocab")) if x.ndim == 3 else logits

  def _run(self, tokens_BL, positions_BL, segments_BL, cache, train):
    cfg = self.cfg
    x_BLD = self.embed(tokens_BL)
    if cfg.positions == "learned":
      x_BLD += self.position_embed(positions_BL)
    elif cfg.positions == "sinusoidal":
      # Tokens and positions enter with like size, as in Vaswani et al. 2017 §3.4.
      x_BLD = x_BLD / layers.init_std(cfg, "embed", cfg.width)
      x_BLD += layers.sinusoids(positions_BL, cfg.width)
    x_BLD = constrain(x_BLD.astype(cfg.dtype), BATCH)
    x_BLD = self.dropout(x_BLD, deterministic=not train)
    rope = None
    if cfg.positions == "rope":
      rope = layers.rope_table(positions_BL, cfg.head_dim, cfg.rope_theta)
    context = layers.Context(rope, segments_BL, None if cache is None else cache.index)
    kv = None if cache is None else (cache.keys, cache.values)
    if cfg.scan_layers:
      x_BLD, kv = self.blocks(x_BLD, kv, context, train)
    else:
      kvs = []
      for i, block in enumerate(self.blocks):
        kv_i = jax.tree.map(lambda a, i=i: a[i], kv)
        x_BLD, kv_i = block(x_BLD, kv_i, context, train)
        kvs.append(kv_i)
      kv = jax.tree.map(lambda *layer: jnp.stack(layer), *kvs)
    return (self.final_norm(x_BLD) if cfg.norm_position == "pre" else x_BLD), kv
