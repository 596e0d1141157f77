"""The encoder-decoder Transformer (Vaswani et al. 2017, arXiv:1706.03762), and what T5 shares with it.

`encode` turns a source into vectors, `hidden_pair` reads them while it predicts a target, `logits` turns
what it gives into tokens, and calling the module does all of it. `begin`, `extend` and `decode` write a
target token by token from a cache. lm.models.t5 changes positions, scales and initialisation.

Axes: S source length, beside those of lm.models.layers.
"""

import dataclasses
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.devices.sharding import constrain
from lm.models import layers
from lm.models.attention.forms import attend, attend_cached, choose_form
from lm.models.decoder import BATCH, Head, remat_policy
from lm.models.encoder_decoder_config import (
  EncoderDecoderConfig,
  check_encoder_decoder,
  resolve_encoder_decoder,
  split_encoder_decoder,
)
from lm.models.encoder_decoder_counts import (
  encoder_decoder_activations,
  encoder_decoder_flops,
  encoder_decoder_weights,
)
from lm.models.family import Family, Input
from lm.models.matmul import matmul
from lm.models.parameterization import multiplier


class Cache(NamedTuple):
  """Keys and values of the target's tokens seen so far, and of the source."""

  index: jax.Array  # int32, tokens held: a scalar, or [B] where rows differ
  keys: jax.Array  # [depth, B, M, H, K]
  values: jax.Array  # [depth, B, M, H, K]
  source_keys: jax.Array  # [depth, B, S, H, K]
  source_values: jax.Array  # [depth, B, S, H, K]
  source_mask: jax.Array  # bool [B, S]: False on padding

  def rows(self, chosen_B: jax.Array) -> "Cache":
    """The cache of these rows."""
    index = self.index if self.index.ndim == 0 else self.index[chosen_B]
    kept = [array[:, chosen_B] for array in self[1:5]]
    return Cache(index, *kept, self.source_mask[chosen_B])


def init_cache(cfg: Any, batch: int, length: int, dtype: str | None = None) -> Cache:
  """An empty cache for `length` tokens of a target; `begin` puts the source's keys and values in."""
  shape = lambda n: (cfg.decoder_depth, batch, n, cfg.heads, cfg.head_dim)
  empty, source = jnp.zeros(shape(length), dtype or cfg.dtype), jnp.zeros(shape(0), cfg.dtype)
  return Cache(jnp.int32(0), empty, empty, source, source, jnp.zeros((batch, 0), bool))


class Context(NamedTuple):
  """What every block of a stack is told beside the vectors."""

  bias_BHLM: jax.Array | None  # added to scores of self-attention
  segments_BL: jax.Array | None  # document ids, 0 = padding; None = one document a row
  memory_BSD: jax.Array | None = None  # what the encoder gives; None where a cache holds its keys
  source_segments_BS: jax.Array | None = None
  source_mask_BS: jax.Array | None = None  # where a cache is used
  index: Any = None  # tokens in the cache, int32 scalar or [B]; None = no cache


class Attention(nn.Module):
  """Attention of H heads over the row itself or over another one."""

  cfg: Any  # an EncoderDecoderConfig

  def setup(self):
    cfg = self.cfg
    linear = lambda name, shrink=1.0: layers.Linear(
      cfg, cfg.heads * cfg.head_dim, ("embed", "heads"), name=name, part="qkv", shrink=shrink
    )
    self.q = linear("q", cfg.query_init)
    self.k, self.v = linear("k"), linear("v")
    self.out = layers.Linear(
      cfg, cfg.width, ("heads", "embed"), residual=True, name="out", part="out"
    )

  def keys_values(self, x_BMD):
    """(keys, values) [B, M, H, K] of what is attended to."""
    return self._heads(self.k(x_BMD)), self._heads(self.v(x_BMD))

  def __call__(self, x_BLD, keys_values, context: Context, causal: bool):
    """A row's attention to itself in training: keys see by segments."""
    return self.read(
      x_BLD,
      keys_values,
      causal=causal,
      segments_BL=context.segments_BL,
      bias_BHLM=context.bias_BHLM,
    )

  def read(self, x_BLD, keys_values, cached_at=None, **terms):
    """What the queries of x see of keys and values; `terms` as in lm.models.attention.forms.attend."""
    q_BLHK = self._heads(self.q(x_BLD))
    scale = self.cfg.attention_scale
    if cached_at is None:
      y_BLHK = attend(q_BLHK, *keys_values, self.cfg, scale=scale, **terms)
    else:
      y_BLHK = attend_cached(q_BLHK, *keys_values, cached_at, self.cfg, scale=scale, **terms)
    return self.out(y_BLHK.reshape(*y_BLHK.shape[:2], -1))

  def _heads(self, y):
    y = constrain(y, ("batch", "length", "act_heads"))
    return y.reshape(*y.shape[:2], self.cfg.heads, self.cfg.head_dim)


def _add(cfg, x_BLD, y_BLD, norm, train, name):
  """The residual stream with a branch added, normed where norms come after."""
  x_BLD += nn.Dropout(cfg.dropout, deterministic=not train, name=name)(y_BLD)
  return constrain(norm(x_BLD) if cfg.norm_position == "post" else x_BLD, BATCH)


class EncoderBlock(nn.Module):
  """Self-attention to both sides, then the MLP."""

  cfg: Any

  @nn.compact
  def __call__(self, x_BLD, unused, context: Context, train: bool):
    cfg = self.cfg
    before = lambda norm, x: norm(x) if cfg.norm_position == "pre" else x
    attn, norm = Attention(cfg, name="attn"), layers.Norm(cfg, cfg.norm, name="attn_norm")
    h_BLD = before(norm, x_BLD)
    y_BLD = attn(h_BLD, attn.keys_values(h_BLD), context, False)
    x_BLD = _add(cfg, x_BLD, y_BLD, norm, train, "attn_dropout")
    norm = layers.Norm(cfg, cfg.norm, name="mlp_norm")
    y_BLD = layers.Mlp(cfg, name="mlp")(before(norm, x_BLD))
    return _add(cfg, x_BLD, y_BLD, norm, train, "mlp_dropout"), None


class DecoderBlock(nn.Module):
  """Causal self-attention, attention to the source, then the MLP."""

  cfg: Any

  @nn.compact
  def __call__(self, x_BLD, cache, context: Context, train: bool):
    """(x_BLD, (keys, values, source keys, source values) of this layer or None) -> the same.

    With a cache, source keys are those of context.memory_BSD where that is given, else the cache's.
    """
    cfg = self.cfg
    before = lambda norm, x: norm(x) if cfg.norm_position == "pre" else x
    attn, norm = Attention(cfg, name="attn"), layers.Norm(cfg, cfg.norm, name="attn_norm")
    h_BLD = before(norm, x_BLD)
    new, index_BL = attn.keys_values(h_BLD), None
    if cache is None:
      y_BLD = attn(h_BLD, new, context, True)
    else:
      index_BL = layers.token_index(context.index, x_BLD.shape[1])
      held = [layers.write_cache(*pair, context.index) for pair in zip(cache[:2], new, strict=True)]
      y_BLD = attn.read(h_BLD, held, index_BL, bias_BHLM=context.bias_BHLM)
    x_BLD = _add(cfg, x_BLD, y_BLD, norm, train, "attn_dropout")

    cross, norm = Attention(cfg, name="cross"), layers.Norm(cfg, cfg.norm, name="cross_norm")
    h_BLD = before(norm, x_BLD)
    if context.memory_BSD is None:
      source = cache[2:]
    else:
      source = cross.keys_values(context.memory_BSD)
    if cache is None:
      y_BLD = cross.read(
        h_BLD, source, causal=False,
        segments_BL=context.segments_BL, key_segments_BM=context.source_segments_BS,
      )  # fmt: skip
    else:
      y_BLD = cross.read(h_BLD, source, index_BL, causal=False, key_mask_BM=context.source_mask_BS)
      cache = (*held, *source)
    x_BLD = _add(cfg, x_BLD, y_BLD, norm, train, "cross_dropout")

    norm = layers.Norm(cfg, cfg.norm, name="mlp_norm")
    y_BLD = layers.Mlp(cfg, name="mlp")(before(norm, x_BLD))
    return _add(cfg, x_BLD, y_BLD, norm, train, "mlp_dropout"), cache


class Table(nn.Module):
  """A table [n, columns] of numbers, float32."""

  n: int
  columns: int
  std: float
  axes: tuple[str, str]

  def setup(self):
    self.embedding = self.param(
      "embedding", layers.normal(self.std, self.axes), (self.n, self.columns)
    )

  def __call__(self, ids: jax.Array) -> jax.Array:
    """Rows of the table; NaN for an id beyond it."""
    return jnp.take(self.embedding, ids, axis=0, mode="fill")


class Stack(nn.Module):
  """Blocks one after another, with the positions they read; `decodes` says which kind they are."""

  cfg: Any
  decodes: bool

  def setup(self):
    cfg = self.cfg
    block = DecoderBlock if self.decodes else EncoderBlock
    depth = cfg.decoder_depth if self.decodes else cfg.depth
    if cfg.positions == "learned":
      n = cfg.target_len if self.decodes else cfg.seq_len
      self.position_embed = Table(n, cfg.width, cfg.embed_std, ("position", "embed"))
    self.dropout = nn.Dropout(cfg.dropout, name="dropout")
    self.setup_bias()
    if cfg.remat != "none":
      block = nn.remat(
        block, policy=remat_policy(cfg), prevent_cse=layers.written_out(cfg), static_argnums=(4,)
      )
    if cfg.scan_layers:
      self.blocks = nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        length=depth,
        unroll=depth if layers.written_out(cfg) else 1,
        metadata_params={nn.PARTITION_NAME: "layers"},
      )(cfg, name="blocks")
    else:
      self.blocks = [block(cfg, name=f"block_{i}") for i in range(depth)]
    if cfg.norm_position == "pre":
      self.final_norm = layers.Norm(cfg, cfg.norm, name="final_norm")

  def setup_bias(self):
    """Parameters of `bias`."""

  def bias(self, queries_BL: jax.Array, n_keys: int) -> jax.Array | None:
    """[1 or B, H, L, M]: what is added to scores, of queries at these places and keys 0 .. M - 1."""
    return None

  def __call__(self, x_BLD, positions_BL, context: Context, cache=None, train: bool = False):
    """(vectors, per-layer cache); positions count from the start of a document, the cache from the row's."""
    cfg, length = self.cfg, x_BLD.shape[1]
    if cfg.positions == "learned":
      x_BLD += self.position_embed(positions_BL)
    elif cfg.positions == "sinusoidal":
      x_BLD += layers.sinusoids(positions_BL, cfg.width)
    x_BLD = constrain(x_BLD.astype(cfg.dtype), BATCH)
    x_BLD = self.dropout(x_BLD, deterministic=not train)
    if cache is None:
      places_BL, n_keys = jnp.arange(length, dtype=jnp.int32)[None], length
    else:
      places_BL, n_keys = layers.token_index(context.index, length), cache[0].shape[2]
    context = context._replace(bias_BHLM=self.bias(places_BL, n_keys))
    blocks: Any = self.blocks
    if cfg.scan_layers:
      x_BLD, cache = blocks(x_BLD, cache, context, train)
    else:
      parts = []
      for i, block in enumerate(blocks):
        of_layer = None if cache is None else tuple(array[i] for array in cache)
        x_BLD, part = block(x_BLD, of_layer, context, train)
        parts.append(part)
      cache = None if cache is None else tuple(jnp.stack(each) for each in zip(*parts, strict=True))
    return (self.final_norm(x_BLD) if cfg.norm_position == "pre" else x_BLD), cache


class EncoderDecoder(nn.Module):
  """A source and the target so far to logits of the target's next token."""

  cfg: Any  # an EncoderDecoderConfig, resolved
  stack: ClassVar[type[Stack]] = Stack

  def setup(self):
    cfg = self.cfg
    self.embed = Table(cfg.vocab_size, cfg.width, cfg.embed_std, ("vocab", "embed"), name="embed")
    self.encoder = self.stack(cfg, False, name="encoder")
    self.decoder = self.stack(cfg, True, name="decoder")
    if not cfg.tied_embeddings:
      self.head = Head(cfg, name="head")

  @property
  def head_params(self) -> tuple[str, ...]:
    """The top-level parameters that `logits` reads."""
    return ("embed",) if self.cfg.tied_embeddings else ("head",)

  def __call__(self, source_BS, tokens_BL, *, train: bool = False, **more):
    """Logits of the token after each one of the target, float32 [B, L, V]; see `hidden_pair`."""
    return self.logits(self.hidden_pair(source_BS, tokens_BL, train=train, **more))

  def encode(self, source_BS, positions_BS=None, segments_BS=None, *, train: bool = False):
    """The vectors [B, S, D] that the decoder reads."""
    positions_BS = _positions(source_BS) if positions_BS is None else positions_BS
    context = Context(None, segments_BS)
    return self.encoder(self._enter(source_BS), positions_BS, context, train=train)[0]

  def hidden_pair(
    self,
    source_BS,
    tokens_BL,
    *,
    source_positions=None,
    source_segments=None,
    positions=None,
    segments=None,
    train: bool = False,
  ):
    """The vectors [B, L, D] that `logits` reads, in cfg.dtype.

    Args:
      source_BS: int32 in [0, V).
      tokens_BL: the start token, then the target without its last one.
      source_positions, positions: int32 [B, S] and [B, L]; None = 0, 1, ...
      source_segments, segments: int32 [B, S] and [B, L]: which pair of a row a token is of, 0 = padding;
        nothing is seen of other pairs. Both or none; None = one pair a row.
      train: drop out activations, with the rng "dropout".
    """
    memory_BSD = self.encode(source_BS, source_positions, source_segments, train=train)
    positions = _positions(tokens_BL) if positions is None else positions
    context = Context(None, segments, memory_BSD, source_segments)
    return self.decoder(self._enter(tokens_BL), positions, context, train=train)[0]

  def begin(self, source_BS, mask_BS, tokens_BL, cache: Cache) -> tuple[jax.Array, Cache]:
    """(vectors, cache) for the first tokens of targets of these sources; mask_BS is False on padding."""
    memory_BSD = self.encode(source_BS, None, mask_BS.astype(jnp.int32))
    return self._extend(tokens_BL, cache._replace(source_mask=mask_BS), memory_BSD)

  def extend(self, tokens_BL, cache: Cache) -> tuple[jax.Array, Cache]:
    """(the vectors [B, L, D] that `logits` reads, cache) for tokens that follow those in the cache."""
    return self._extend(tokens_BL, cache, None)

  def decode(self, tokens_BL, cache: Cache) -> tuple[jax.Array, Cache]:
    """(logits_BLV, cache), equal to the full pass; see `extend`."""
    x_BLD, cache = self.extend(tokens_BL, cache)
    return self.logits(x_BLD), cache

  def logits(self, x: jax.Array) -> jax.Array:
    """x [..., D] -> float32 logits [..., V]."""
    cfg = self.cfg
    table = self.embed.embedding.T if cfg.tied_embeddings else self.head.kernel
    if cfg.logit_scale != 1:
      x = x * jnp.asarray(cfg.logit_scale, x.dtype)
    logits = matmul(x, table, ("embed", "vocab")).astype(jnp.float32)
    logits *= multiplier(cfg.parameterization, "readout", "output", cfg.width / cfg.base_width)
    return constrain(logits, ("batch", "length", "act_vocab")) if x.ndim == 3 else logits

  def _enter(self, tokens_BL):
    x_BLD = self.embed(tokens_BL)
    return x_BLD * self.cfg.embed_scale if self.cfg.embed_scale != 1 else x_BLD

  def _extend(self, tokens_BL, cache, memory_BSD):
    context = Context(None, None, memory_BSD, source_mask_BS=cache.source_mask, index=cache.index)
    positions_BL = layers.token_index(cache.index, tokens_BL.shape[1])
    x_BLD, held = self.decoder(self._enter(tokens_BL), positions_BL, context, tuple(cache[1:5]))
    return x_BLD, Cache(cache.index + tokens_BL.shape[1], *held, cache.source_mask)


def _positions(tokens_BL):
  return jnp.arange(tokens_BL.shape[1], dtype=jnp.int32)[None]


# --- the row ----------------------------------------------------------------------------------------


def make_encoder_decoder(cfg: EncoderDecoderConfig) -> EncoderDecoder:
  """The module of a resolved section; ConfigError for a form of attention that the platform rules out."""
  section: Any = cfg
  choose_form(section, masked=True)
  return EncoderDecoder(cfg)


def for_stack(cfg: Any, cross_documents: bool) -> Any:
  """cuDNN's kernel cannot be stacked with masks."""
  return dataclasses.replace(cfg, attention="chunked") if cfg.attention == "auto" else cfg


ENCODER_DECODER = Family(
  section=EncoderDecoderConfig,
  module=make_encoder_decoder,
  inputs={
    "source": Input("int32", ("batch", "length")),
    "tokens": Input("int32", ("batch", "length")),
  },
  weights=encoder_decoder_weights,
  exact_flops=encoder_decoder_flops,
  activation_floats=encoder_decoder_activations,
  check=check_encoder_decoder,
  resolve=resolve_encoder_decoder,
  splits=split_encoder_decoder,
  init_cache=init_cache,
  for_stack=for_stack,
  reads_source=True,
)
