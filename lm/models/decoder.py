"""A decoder-only transformer that covers GPT-2, Llama and what lies between them by configuration.

`hidden` gives the last vectors, `logits` reads tokens from them, and calling the module does both;
`decode` continues rows whose keys and values are held in a cache; `advance` trains on rows that go on from
earlier ones, whose vectors a memory holds (Transformer-XL: Dai et al. 2019, arXiv:1901.02860).
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config.errors import ConfigError
from lm.devices.sharding import ACTIVATION_RULES, constrain, current_mesh, mesh_ways
from lm.models import layers
from lm.models.attention.forms import choose_form
from lm.models.experts import LOSSES, ROUTING, Experts
from lm.models.family import Family, Input
from lm.models.matmul import matmul
from lm.models.parameterization import branch_multiplier, multiplier
from lm.models.transformer_config import (
  REMAT_NAMES,
  TransformerConfig,
  check_transformer,
  resolve_transformer,
  split_transformer,
)
from lm.models.transformer_counts import (
  chinchilla_flops,
  decoder_activations,
  decoder_flops,
  decoder_weights,
  kaplan_flops,
)

BATCH = ("batch", "length", "act_embed")


class Cache(NamedTuple):
  """Keys and values of the tokens seen so far."""

  index: jax.Array  # int32, tokens held: a scalar, or [B] where rows differ
  keys: jax.Array  # [depth, B, M, G, K], after rotation
  values: jax.Array  # [depth, B, M, G, K]

  def rows(self, chosen_B: jax.Array) -> "Cache":
    """The cache of these rows."""
    index = self.index if self.index.ndim == 0 else self.index[chosen_B]
    return Cache(index, self.keys[:, chosen_B], self.values[:, chosen_B])


def init_cache(cfg: TransformerConfig, batch: int, length: int, dtype: str | None = None) -> Cache:
  """An empty cache for `length` tokens a row, in cfg.dtype unless another is given."""
  shape = (cfg.depth, batch, length, cfg.kv_heads, cfg.head_dim)
  empty = jnp.zeros(shape, dtype or cfg.dtype)
  return Cache(jnp.int32(0), empty, empty)


def remat_policy(cfg: TransformerConfig):
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
  """Attention, then the MLP; f is either, each with norms of its own.

      pre: x + f(norm x)      post: norm(x + f x)      (Xiong et al. 2020, arXiv:2002.04745)
      reordered: x + norm(f x)                         (OLMo 2, arXiv:2501.00656 §3.2)
      sandwich: x + norm'(f(norm x))                   (Ding et al. 2021, arXiv:2105.13290; Gemma 2)

      none: x + f x

  model.residual = parallel: x + attention(norm x) + mlp(norm' x) (Wang & Komatsuzaki 2021; Black et
  al. 2022, arXiv:2204.06745 §2.1); shared: the same with one norm. rezero: every f of the layer is
  multiplied by its scalar alpha, which starts at 0, so that the layer starts as the identity
  (Bachlechner et al. 2020, arXiv:2003.04887 §3 and §5, where norm_position = none). Under
  model.parameterization = completep every f is divided by depth / base_depth, under umup by its root.
  """

  cfg: TransformerConfig

  @nn.compact
  def __call__(self, x_BLD, cache, local, context, train: bool):
    """(x_BLD, this layer's cache) -> the same; scanned over layers by Decoder.

    Where context.seen_BM is given the cache is a memory [B, M, D]: what the layer was given for earlier
    tokens. It leaves with the last M of those and these.
    """
    cfg, memory_BMD = self.cfg, None
    if context.seen_BM is not None:
      memory_BMD, cache = cache, _last(cache, x_BLD)
    before = cfg.norm_position in ("pre", "sandwich")
    attn = layers.Attention(cfg, name="attn")

    alpha = branch_multiplier(cfg.parameterization, "output", cfg.depth / cfg.base_depth)
    if cfg.residual == "rezero":
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("norm",))
      learned = jnp.reshape(jnp.asarray(self.param("alpha", zeros, (1,))), ())
      alpha = (alpha * learned).astype(x_BLD.dtype)

    def norm(name):
      if cfg.norm_position == "none":
        return lambda x_BLD: x_BLD
      return layers.Norm(cfg, cfg.norm, name=name)

    def add(x_BLD, y_BLD, norm_after, name):
      if cfg.norm_position in ("reordered", "sandwich"):
        y_BLD = norm_after(y_BLD)
      x_BLD += alpha * nn.Dropout(cfg.dropout, deterministic=not train, name=name)(y_BLD)
      return constrain(norm_after(x_BLD) if cfg.norm_position == "post" else x_BLD, BATCH)

    def mlp(x_BLD):
      if cfg.experts:
        segments_BL = context.segments_BL
        real_BL = None if segments_BL is None else segments_BL > 0  # 0 is padding
        return Experts(cfg, name="mlp")(x_BLD, train, real_BL)
      return layers.Mlp(cfg, name="mlp")(x_BLD)

    attn_norm = norm("attn_norm")
    x_attn_BLD = attn_norm(x_BLD) if before else x_BLD
    if memory_BMD is None:
      y_BLD, cache = attn(x_attn_BLD, context, cache, local)
    else:
      memory_BMD = attn_norm(memory_BMD) if before else memory_BMD
      y_BLD, _ = attn(x_attn_BLD, context, None, local, memory_BMD)
    if cfg.residual in ("parallel", "shared"):
      x_mlp_BLD = x_attn_BLD if cfg.residual == "shared" else norm("mlp_norm")(x_BLD)
      x_BLD = add(x_BLD, y_BLD, None, "attn_dropout")
      return add(x_BLD, mlp(x_mlp_BLD), None, "mlp_dropout"), cache
    if cfg.norm_position == "sandwich":
      attn_norm = norm("attn_post_norm")
    x_BLD = add(x_BLD, y_BLD, attn_norm, "attn_dropout")
    mlp_norm = norm("mlp_norm")
    y_BLD = mlp(mlp_norm(x_BLD) if before else x_BLD)
    if cfg.norm_position == "sandwich":
      mlp_norm = norm("mlp_post_norm")
    return add(x_BLD, y_BLD, mlp_norm, "mlp_dropout"), cache


def _last(old: jax.Array, new: jax.Array) -> jax.Array:
  """The last M of M + L positions, of arrays [B, M, ...] and [B, L, ...]; no gradient goes back to them."""
  joined = jnp.concatenate([old, new.astype(old.dtype)], axis=1)
  return jax.lax.stop_gradient(joined[:, new.shape[1] :])


class Embed(nn.Module):
  """A table [n, D] of vectors, float32."""

  cfg: TransformerConfig
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
  """What reads logits beside the embedding: a kernel [D, V] unless that is tied, a bias [V] if asked."""

  cfg: TransformerConfig

  def setup(self):
    cfg = self.cfg
    if not cfg.tied_embeddings:
      std = layers.init_std(cfg, "readout", cfg.width)
      axes = ("embed", "vocab")
      self.kernel = self.param("kernel", layers.normal(std, axes), (cfg.width, cfg.vocab_size))
    if layers.biased(cfg, "head"):
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
      self.bias = self.param("bias", zeros, (cfg.vocab_size,))


class Decoder(nn.Module):
  """Tokens to logits of the next token."""

  cfg: TransformerConfig

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
        Block,
        policy=policy,
        prevent_cse=layers.written_out(cfg),
        static_argnums=(5,) if cfg.scan_layers else (3, 5),
      )
    if cfg.scan_layers:
      shared = cfg.share_layers
      self.blocks = nn.scan(
        block,
        variable_axes={"intermediates": 0, LOSSES: 0, ROUTING: 0}
        | ({} if shared else {"params": 0}),
        variable_broadcast="params" if shared else False,
        split_rngs={"params": not shared, "dropout": True},
        in_axes=(0, 0, nn.broadcast, nn.broadcast),
        length=cfg.depth,
        unroll=cfg.depth if layers.written_out(cfg) else 1,
        metadata_params={nn.PARTITION_NAME: "layers"},
      )(cfg, name="blocks")
    else:
      self.blocks = [block(cfg, name=f"block_{i}") for i in range(cfg.depth)]
    if layers.has_final_norm(cfg):
      self.final_norm = layers.Norm(cfg, cfg.norm, name="final_norm")
    if not cfg.tied_embeddings or layers.biased(cfg, "head"):
      self.head = Head(cfg, name="head")

  @property
  def head_params(self) -> tuple[str, ...]:
    """The top-level parameters that `logits` reads."""
    names = ("embed",) if self.cfg.tied_embeddings else ("head",)
    return (*names, "head") if names == ("embed",) and layers.biased(self.cfg, "head") else names

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

  def init_carry(self, rows: int) -> dict[str, jax.Array]:
    """An empty memory for so many rows: vectors [B, layers, M, D] in cfg.dtype, and seen [B, M] float32."""
    cfg = self.cfg
    shape = (rows, cfg.depth, cfg.memory, cfg.width)
    return {"vectors": jnp.zeros(shape, cfg.dtype), "seen": jnp.zeros((rows, cfg.memory))}

  def advance(self, tokens_BL, carry, segments_BL=None, *, train: bool = False):
    """Goes on from earlier rows: every layer attends to the M vectors before its own too.

    A layer's keys and values are made of what it was given, h, for the M tokens before the row and for
    the row's own, so that M + L keys stand before the last query; gradients end at the row's first token
    (Dai et al. 2019, arXiv:1901.02860 §3.2). Distances between tokens are what model.positions makes
    of them, by rotation (rope) or by slope (alibi), in place of the paper's learned biases (§3.3).

    Args:
      tokens_BL: int32 in [0, V).
      carry: vectors and seen as of `init_carry`; seen is 0 for what is no token of the document that goes
        on in this row.
      segments_BL: int32 document ids from 1, which the document that goes on has; None = one document.
      train: as in `hidden`.

    Returns:
      (the vectors [B, L, D] that `logits` reads, the same again, the next row's carry).
    """
    length = tokens_BL.shape[1]
    positions_BL = jnp.arange(self.cfg.memory + length, dtype=jnp.int32)[None]
    memory = jnp.swapaxes(carry["vectors"], 0, 1)
    seen_BM, row_BL = carry["seen"], jnp.ones(tokens_BL.shape)
    x_BLD, memory = self._run(tokens_BL, positions_BL, segments_BL, memory, train, seen_BM)
    if segments_BL is not None:
      last_B1 = segments_BL[:, -1:]
      seen_BM *= (last_B1 == segments_BL[:, :1]).astype(jnp.float32)
      row_BL = (segments_BL == last_B1).astype(jnp.float32)
    carry = {"vectors": jnp.swapaxes(memory, 0, 1), "seen": _last(seen_BM, row_BL)}
    return x_BLD, x_BLD, carry

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
    if layers.biased(cfg, "head"):
      logits += jnp.expand_dims(self.head.bias, range(x.ndim - 1))
    if cfg.logit_softcap is not None:
      logits = cfg.logit_softcap * jnp.tanh(logits / cfg.logit_softcap)
    return constrain(logits, ("batch", "length", "act_vocab")) if x.ndim == 3 else logits

  def _run(self, tokens_BL, positions_BL, segments_BL, cache, train, seen_BM=None):
    """(x_BLD, keys and values, or memory); positions are those of keys, the last of them the row's own."""
    cfg = self.cfg
    x_BLD = self.embed(tokens_BL)
    if cfg.embed_scale != 1:
      x_BLD *= cfg.embed_scale
    if cfg.positions == "learned":
      x_BLD += self.position_embed(positions_BL)
    elif cfg.positions == "sinusoidal":
      # Tokens and positions enter with like size, as in Vaswani et al. 2017 §3.4.
      x_BLD = x_BLD / layers.init_std(cfg, "embed", cfg.width)
      x_BLD += layers.sinusoids(positions_BL, cfg.width)
    x_BLD = constrain(x_BLD.astype(cfg.dtype), BATCH)
    x_BLD = self.dropout(x_BLD, deterministic=not train)
    rope = rope_local = None
    if cfg.positions == "rope":
      rope = layers.rope_table(positions_BL, *layers.rope_frequencies(cfg))
      if cfg.rope_local_theta is not None:
        rope_local = layers.rope_table(positions_BL, *layers.rope_frequencies(cfg, local=True))
    index = cache.index if isinstance(cache, Cache) else None
    context = layers.Context(rope, segments_BL, index, rope_local, seen_BM)
    local = layers.local_layers(cfg)
    kv = (cache.keys, cache.values) if isinstance(cache, Cache) else cache
    if cfg.scan_layers:
      flags = None if local is None else jnp.asarray(local)
      x_BLD, kv = self.blocks(x_BLD, kv, flags, context, train)
    else:
      kvs = []
      for i, block in enumerate(self.blocks):
        kv_i = jax.tree.map(lambda a, i=i: a[i], kv)
        x_BLD, kv_i = block(x_BLD, kv_i, None if local is None else local[i], context, train)
        kvs.append(kv_i)
      kv = jax.tree.map(lambda *layer: jnp.stack(layer), *kvs)
    return (self.final_norm(x_BLD) if layers.has_final_norm(cfg) else x_BLD), kv


def make_decoder(cfg: TransformerConfig) -> Decoder:
  """The module of a resolved section; ConfigError for a form of attention that the platform rules out."""
  choose_form(cfg)
  mesh = current_mesh()
  ways = 1 if mesh is None else mesh_ways(mesh, ACTIVATION_RULES["length"])
  if cfg.memory is not None and ways > 1:
    raise ConfigError(
      f"mesh.sequence={ways}: splits rows, and model.memory={cfg.memory} stands before whole ones; use 1"
    )
  return Decoder(cfg)


def for_stack(cfg: TransformerConfig, cross_documents: bool) -> TransformerConfig:
  """cuDNN's kernel cannot be stacked with masks of documents."""
  if cfg.attention == "auto" and not cross_documents:
    return dataclasses.replace(cfg, attention="chunked")
  return cfg


DECODER = Family(
  section=TransformerConfig,
  module=make_decoder,
  inputs={"tokens": Input("int32", ("batch", "length"))},
  weights=decoder_weights,
  exact_flops=decoder_flops,
  activation_floats=decoder_activations,
  check=check_transformer,
  resolve=resolve_transformer,
  splits=split_transformer,
  conventions={"kaplan": kaplan_flops, "chinchilla": chinchilla_flops},
  init_cache=init_cache,
  for_stack=for_stack,
)
