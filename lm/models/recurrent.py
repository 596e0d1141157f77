"""Recurrent language models: plain (tanh), GRU and LSTM layers, and the dropout that they are trained with.

    rnn:  h' = tanh(a + b)                                  a = W x + c, b = U h + d
    gru:  r, z = sigmoid(a_r + b_r), sigmoid(a_z + b_z);  n = tanh(a_n + r b_n);  h' = (1 - z) n + z h
    lstm: i, f, o = sigmoid, g = tanh of a + b;  c' = f c + i g;  h' = o tanh c'

Elman 1990; Cho et al. 2014, arXiv:1406.1078, in the form whose reset gate follows the product; Hochreiter &
Schmidhuber 1997, with Gers et al. 2000's forget gate. Gates stand in the order of torch.nn, with its two
biases, so equal weights give equal numbers. Dropout acts on what enters and leaves layers, never on what a
layer hands itself (Zaremba et al. 2014, arXiv:1409.2329, §3.2); the options of Merity et al. 2017,
arXiv:1708.02182, §3 to 4.4: masks that stay for all positions of a row (`locked_dropout`), entries of U left
out for a whole batch (`weight_drop`), words left out of the embedding (`embed_dropout`), a last layer as wide
as the tied embedding.

Axes: B batch, L length, D width, H numbers in a layer's state, G gates times H, V vocabulary.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from lm.config.errors import ConfigError
from lm.config.schema import Config, ModelConfig, field
from lm.devices.sharding import constrain, gather
from lm.models.family import Family, Input, Weight
from lm.models.layers import token_index
from lm.models.matmul import matmul
from lm.models.parameterization import multiplier

GATES = {"rnn": 1, "gru": 3, "lstm": 4}
PARTS = {"rnn": "h", "gru": "h", "lstm": "hc"}  # arrays in a layer's state
# Of embedding and readout where model.init_range is None (Merity et al. 2017, §5).
TABLE_RANGE = 0.1
KEPT = {"rnn": 6, "gru": 18, "lstm": 21}  # numbers that the backward pass of a layer reads, over H
BATCH = ("batch", "length", "act_embed")
UNROLL = 1  # steps in the body of a compiled loop

State = tuple[jax.Array, ...]  # PARTS[cell], arrays [B, H]
Carry = dict[str, dict[str, jax.Array]]  # {"layer_0": {"h": [B, H], ...}, ...}


@dataclasses.dataclass(frozen=True)
class RecurrentConfig(ModelConfig):
  cell: str = field(choices=tuple(GATES))
  depth: int = field("[1, inf)", "2")  # layers
  hidden_dim: int | None = field("[1, inf)", "1150")  # numbers in a state; None = width
  # The readout is the embedding, transposed; the last layer is then of width.
  tied_embeddings: bool = field()
  dropout: float = field("[0, 1)", "0.5")  # between layers, and where the next two are None
  input_dropout: float | None = field("[0, 1)", "0.65")  # on what enters the first layer
  output_dropout: float | None = field("[0, 1)", "0.4")  # on what leaves the last one
  embed_dropout: float = field("[0, 1)", "0.1")  # share of words whose vector is 0 in a batch
  weight_drop: float = field("[0, 1)", "0.5")  # share of U's entries that are 0 in a batch
  locked_dropout: bool = field()  # one mask a row for all positions
  init_range: float | None = field("(0, inf)", "0.1")  # uniform in +-; None = 1/sqrt(H), tables .1

  @property
  def beside(self) -> int:
    """Numbers that the first layer reads beside a token's vector."""
    return 0


class Cache(NamedTuple):
  """States after each token seen so far; place 0 holds that before the first."""

  index: jax.Array  # int32, tokens held: a scalar, or [B] where rows differ
  states: tuple[State, ...]  # of each layer, arrays [B, M + 1, H]

  def rows(self, chosen_B: jax.Array) -> "Cache":
    """The cache of these rows."""
    index = self.index if self.index.ndim == 0 else self.index[chosen_B]
    return Cache(index, jax.tree.map(lambda array: array[chosen_B], self.states))


def layer_sizes(cfg: ModelConfig) -> list[tuple[int, int]]:
  """(numbers that a layer reads, numbers in its state) of each layer."""
  hidden = cfg.hidden_dim or cfg.width
  outs = [hidden] * (cfg.depth - 1) + [cfg.width if cfg.tied_embeddings else hidden]
  return list(zip([cfg.width + cfg.beside, *outs[:-1]], outs, strict=True))


def vocab_of(cfg: ModelConfig) -> int:
  """Entries of a resolved section's vocabulary."""
  assert cfg.vocab_size is not None
  return cfg.vocab_size


def init_cache(cfg: RecurrentConfig, batch: int, length: int, dtype: str | None = None) -> Cache:
  """An empty cache for `length` tokens a row; states are float32 unless another dtype is given."""
  empty = lambda size: jnp.zeros((batch, length + 1, size), dtype or "float32")
  states = tuple((empty(size),) * len(PARTS[cfg.cell]) for _, size in layer_sizes(cfg))
  return Cache(jnp.int32(0), states)


# --- one layer ------------------------------------------------------------------------------------


def cell_step(cell: str, a_BG: jax.Array, b_BG: jax.Array, state: State) -> State:
  """The next state; a is from the input and b from the last state, float32 as states are."""
  if cell == "rnn":
    return (jnp.tanh(a_BG + b_BG),)
  if cell == "gru":
    a_r, a_z, a_n = jnp.split(a_BG, 3, axis=-1)
    b_r, b_z, b_n = jnp.split(b_BG, 3, axis=-1)
    z_BH = jax.nn.sigmoid(a_z + b_z)
    n_BH = jnp.tanh(a_n + jax.nn.sigmoid(a_r + b_r) * b_n)
    return ((1 - z_BH) * n_BH + z_BH * state[0],)
  i_BH, f_BH, g_BH, o_BH = jnp.split(a_BG + b_BG, 4, axis=-1)
  c_BH = jax.nn.sigmoid(f_BH) * state[1] + jax.nn.sigmoid(i_BH) * jnp.tanh(g_BH)
  return jax.nn.sigmoid(o_BH) * jnp.tanh(c_BH), c_BH


def _loop(cell, a_LBG, more_LBG, u_HG, d_G, state, keep_LB):
  """States after each position, arrays [L, B, H]; `more` is added to b."""

  def step(state, each):
    a_BG, more_BG, keep_B = each
    if keep_B is not None:
      state = tuple(part * jnp.expand_dims(keep_B, 1) for part in state)
    b_BG = jnp.matmul(state[0].astype(u_HG.dtype), u_HG, preferred_element_type=jnp.float32)
    b_BG += jnp.expand_dims(d_G, 0)
    state = cell_step(cell, a_BG, b_BG if more_BG is None else b_BG + more_BG, state)
    return state, state

  return jax.lax.scan(step, state, (a_LBG, more_LBG, keep_LB), unroll=UNROLL)[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run_layer(cell: str, a_LBG, u_HG, d_G, state: State, keep_LB):
  """States after each position: PARTS[cell], arrays [L, B, H], float32.

  The gradient of U is one product over all positions after the loop, instead of a sum inside it.

  Args:
    a_LBG: what the inputs bring, float32.
    u_HG: recurrent weights, in the dtype of the product.
    d_G: recurrent bias, float32.
    state: before the first position.
    keep_LB: float32, 0 where the state is set to 0 before that position, else 1; None = nowhere.
  """
  return _loop(cell, a_LBG, None, u_HG, d_G, state, keep_LB)


def _run_forward(cell, a_LBG, u_HG, d_G, state, keep_LB):
  fn = lambda a_LBG, more_LBG, state: _loop(cell, a_LBG, more_LBG, u_HG, d_G, state, keep_LB)
  states, pull = jax.vjp(fn, a_LBG, jnp.zeros_like(a_LBG), state)
  return states, (pull, states[0], state[0], keep_LB, u_HG)


def _run_backward(cell, residuals, grads):
  pull, h_LBH, first_BH, keep_LB, u_HG = residuals
  grad_a, grad_b, grad_state = pull(grads)
  before_LBH = jnp.concatenate([jnp.expand_dims(first_BH, 0), h_LBH[:-1]])
  if keep_LB is not None:
    before_LBH *= jnp.expand_dims(keep_LB, 2)
  grad_u = jax.lax.dot_general(
    before_LBH.astype(u_HG.dtype),
    grad_b.astype(u_HG.dtype),
    (((0, 1), (0, 1)), ((), ())),
    preferred_element_type=jnp.float32,
  )
  keep = None if keep_LB is None else jnp.zeros_like(keep_LB)
  return grad_a, grad_u.astype(u_HG.dtype), grad_b.sum(axis=(0, 1)), grad_state, keep


run_layer.defvjp(_run_forward, _run_backward)


def uniform(cfg: RecurrentConfig, kind: str, bound: float, axes: tuple[str, ...]):
  """Initialiser: uniform in +-bound, or +-cfg.init_range where it is set, at the base width."""
  bound = cfg.init_range or bound
  if kind != "hidden" or cfg.init_range:  # 1/sqrt(size) shrinks with width by itself
    bound *= multiplier(cfg.parameterization, kind, "init", cfg.width / cfg.base_width)

  def draw(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return nn.with_logical_partitioning(draw, axes)


class Layer(nn.Module):
  """x_BLD -> states after each position; the parameters of torch.nn's layers, as matrices [in, out]."""

  cfg: RecurrentConfig
  inputs: int
  size: int

  @nn.compact
  def __call__(self, x_BLD, state: State, keep_BL, train: bool) -> State:
    """PARTS[cell], arrays [B, L, H], float32."""
    cfg, size = self.cfg, self.size
    columns, bound = GATES[cfg.cell] * size, 1 / math.sqrt(size)

    def param(name, kind, shape, axes):
      return self.param(name, uniform(cfg, kind, bound, axes), shape)

    matrix = ("embed", "gates")
    w_DG = param("input_kernel", "hidden", (self.inputs, columns), matrix)
    u_HG = param("recurrent_kernel", "hidden", (size, columns), matrix)
    c_G = param("input_bias", "vector", (columns,), ("gates",))
    d_G = param("recurrent_bias", "vector", (columns,), ("gates",))
    if train and cfg.weight_drop:
      kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - cfg.weight_drop, u_HG.shape)
      u_HG = jnp.where(kept, u_HG / (1 - cfg.weight_drop), 0.0)
    a_BLG = matmul(x_BLD, w_DG, matrix, c_G).astype(jnp.float32)
    u_HG = gather(u_HG.astype(cfg.dtype), matrix)
    keep_LB = None if keep_BL is None else keep_BL.T
    states = run_layer(cfg.cell, jnp.swapaxes(a_BLG, 0, 1), u_HG, d_G, state, keep_LB)
    return tuple(constrain(jnp.swapaxes(part, 0, 1), BATCH) for part in states)


# --- the model ------------------------------------------------------------------------------------


class Table(nn.Module):
  """An embedding [V, D], or a readout [D, V], float32."""

  cfg: RecurrentConfig
  name_of: str  # embedding | kernel
  shape: tuple[int, int]
  axes: tuple[str, str]

  def setup(self):
    kind = "embed" if self.name_of == "embedding" else "readout"
    self.table = self.param(
      self.name_of, uniform(self.cfg, kind, TABLE_RANGE, self.axes), self.shape
    )


class Stack(nn.Module):
  """Layers over an embedding, and the readout: what recurrent families are built on."""

  cfg: RecurrentConfig

  def setup(self):
    cfg, sizes = self.cfg, layer_sizes(self.cfg)
    table = (vocab_of(cfg), cfg.width)
    self.embed = Table(cfg, "embedding", table, ("vocab", "embed"), name="embed")
    self.layers = [Layer(cfg, *each, name=f"layer_{i}") for i, each in enumerate(sizes)]
    if not cfg.tied_embeddings:
      kernel = (sizes[-1][1], vocab_of(cfg))
      self.head = Table(cfg, "kernel", kernel, ("embed", "vocab"), name="head")
    bias = nn.with_logical_partitioning(nn.initializers.zeros, ("vocab",))
    self.head_bias = self.param("head_bias", bias, (vocab_of(cfg),))
    rates = [cfg.dropout] * (cfg.depth + 1)
    rates[0] = cfg.dropout if cfg.input_dropout is None else cfg.input_dropout
    rates[-1] = cfg.dropout if cfg.output_dropout is None else cfg.output_dropout
    locked = (1,) if cfg.locked_dropout else ()
    self.drops = [
      nn.Dropout(rate, broadcast_dims=locked, name=f"dropout_{i}") for i, rate in enumerate(rates)
    ]

  @property
  def head_params(self) -> tuple[str, ...]:
    """The top-level parameters that `logits` reads."""
    return ("embed" if self.cfg.tied_embeddings else "head", "head_bias")

  def init_carry(self, rows: int) -> Carry:
    """States of zeros for so many rows, float32."""
    zeros = lambda size: {part: jnp.zeros((rows, size)) for part in PARTS[self.cfg.cell]}
    return {f"layer_{i}": zeros(size) for i, (_, size) in enumerate(layer_sizes(self.cfg))}

  def logits(self, x: jax.Array) -> jax.Array:
    """x [..., D] -> float32 logits [..., V]."""
    cfg = self.cfg
    kernel = self.embed.table.T if cfg.tied_embeddings else self.head.table
    logits = matmul(x, kernel, ("embed", "vocab")).astype(jnp.float32)
    logits *= multiplier(cfg.parameterization, "readout", "output", cfg.width / cfg.base_width)
    bias: Any = self.head_bias
    logits += jnp.expand_dims(bias, range(x.ndim - 1))
    return constrain(logits, ("batch", "length", "act_vocab")) if x.ndim == 3 else logits

  def _run(self, tokens_BL, first, keep_BL, train, words_BL=None, beside_BZ=None):
    """(x_BLD after the last dropout, x_BLD before it, states [B, L, H] of each layer).

    Args:
      words_BL: float32, 0 where a token is read as a vector of zeros; None = nowhere.
      beside_BZ: what the first layer reads beside every token's vector (cfg.beside numbers).
    """
    cfg = self.cfg
    x_BLD = jnp.take(self.embed.table, tokens_BL, axis=0, mode="fill")
    if train and cfg.embed_dropout:
      rate = cfg.embed_dropout
      kept_V = jax.random.bernoulli(self.make_rng("dropout"), 1 - rate, (vocab_of(cfg),))
      x_BLD *= jnp.expand_dims(jnp.take(kept_V, tokens_BL).astype(jnp.float32) / (1 - rate), 2)
    if words_BL is not None:
      x_BLD *= jnp.expand_dims(words_BL, 2)
    if beside_BZ is not None:
      shape = (*tokens_BL.shape, beside_BZ.shape[1])
      beside_BLZ = jnp.broadcast_to(jnp.expand_dims(beside_BZ, 1), shape)
      x_BLD = jnp.concatenate([x_BLD, beside_BLZ.astype(x_BLD.dtype)], axis=2)
    x_BLD, states = constrain(x_BLD.astype(cfg.dtype), BATCH), []
    raw_BLD = x_BLD
    for layer, state, drop in zip(self.layers, first, self.drops, strict=False):
      x_BLD = drop(x_BLD, deterministic=not train)
      states.append(layer(x_BLD, state, keep_BL, train))
      x_BLD = raw_BLD = states[-1][0].astype(cfg.dtype)
    return self.drops[-1](x_BLD, deterministic=not train), raw_BLD, states


class Recurrent(Stack):
  """Tokens to logits of the next token."""

  def __call__(self, tokens_BL, positions_BL=None, segments_BL=None, *, train: bool = False):
    """Logits [B, L, V] of the token after each one, float32; arguments as of `hidden`."""
    return self.logits(self.hidden(tokens_BL, positions_BL, segments_BL, train=train))

  def hidden(self, tokens_BL, positions_BL=None, segments_BL=None, *, train: bool = False):
    """The vectors [B, L, D] that `logits` reads, in cfg.dtype, from a state of zeros.

    Args:
      tokens_BL: int32 in [0, V).
      positions_BL: not read; transformers have them.
      segments_BL: int32 document ids from 1; where a document begins the state is 0. None = one document.
      train: drop out, with the rng "dropout".
    """
    carry = self.init_carry(tokens_BL.shape[0])
    return self.advance(tokens_BL, carry, segments_BL, train=train)[0]

  def advance(self, tokens_BL, carry: Carry, segments_BL=None, *, train: bool = False):
    """Goes on from the states of earlier tokens; arguments as of `hidden`.

    Returns:
      (the vectors [B, L, D] that `logits` reads, the same before their dropout, carry).
    """
    keep_BL = None
    if segments_BL is not None:
      before_BL = jnp.pad(segments_BL[:, :-1], ((0, 0), (1, 0)), constant_values=1)
      keep_BL = (segments_BL == before_BL).astype(jnp.float32)
    parts = PARTS[self.cfg.cell]
    first = [tuple(carry[f"layer_{i}"][part] for part in parts) for i in range(self.cfg.depth)]
    x_BLD, raw_BLD, states = self._run(tokens_BL, first, keep_BL, train)
    last = lambda state: {p: a[:, -1] for p, a in zip(parts, state, strict=True)}
    return x_BLD, raw_BLD, {f"layer_{i}": last(state) for i, state in enumerate(states)}

  def extend(self, tokens_BL: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """(the vectors that `logits` reads, cache) for tokens that follow those in the cache.

    As the cache holds the state after every token, rows of different lengths can be padded on the right
    and go on after their own last token once cache.index is set to their lengths.
    """
    batch, length = tokens_BL.shape
    rows_B1 = jnp.expand_dims(jnp.arange(batch), 1)
    at_BL = jnp.broadcast_to(token_index(cache.index, length), (batch, length))
    first = [tuple(part[rows_B1[:, 0], at_BL[:, 0]] for part in state) for state in cache.states]
    x_BLD, _, states = self._run(tokens_BL, first, None, False)
    put = lambda held, new: held.at[rows_B1, at_BL + 1].set(new.astype(held.dtype))
    return x_BLD, Cache(cache.index + length, jax.tree.map(put, cache.states, tuple(states)))

  def decode(self, tokens_BL: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
    """(logits_BLV, cache), equal to the full pass; see `extend`."""
    x_BLD, cache = self.extend(tokens_BL, cache)
    return self.logits(x_BLD), cache

  def soft_step(self, y_BV: jax.Array, carry: Carry) -> tuple[jax.Array, Carry]:
    """(logits [B, V], carry) after one position that holds a distribution over tokens instead of a token.

    It reads the mean of the embeddings, y E, so that gradients reach y; a one-hot y is that token. Without
    dropout.
    """
    x_BD, parts = y_BV @ self.embed.table, PARTS[self.cfg.cell]
    x_BLD, after = constrain(jnp.expand_dims(x_BD, 1).astype(self.cfg.dtype), BATCH), {}
    for i, layer in enumerate(self.layers):
      before = tuple(carry[f"layer_{i}"][part] for part in parts)
      states = layer(x_BLD, before, None, False)
      x_BLD = states[0].astype(self.cfg.dtype)
      after[f"layer_{i}"] = {part: a[:, -1] for part, a in zip(parts, states, strict=True)}
    return self.logits(x_BLD)[:, 0], after


# --- counts ---------------------------------------------------------------------------------------


def recurrent_weights(cfg: RecurrentConfig) -> list[Weight]:
  """Every weight."""
  found = [Weight("embed/embedding", "embed", (vocab_of(cfg), cfg.width))]
  for i, (inputs, size) in enumerate(layer_sizes(cfg)):
    columns = GATES[cfg.cell] * size
    found += [
      Weight(f"layer_{i}/input_kernel", "hidden", (inputs, columns)),
      Weight(f"layer_{i}/recurrent_kernel", "hidden", (size, columns)),
      Weight(f"layer_{i}/input_bias", "vector", (columns,)),
      Weight(f"layer_{i}/recurrent_bias", "vector", (columns,)),
    ]
  if not cfg.tied_embeddings:
    found.append(Weight("head/kernel", "readout", (layer_sizes(cfg)[-1][1], vocab_of(cfg))))
  return [*found, Weight("head_bias", "vector", (vocab_of(cfg),))]


def recurrent_flops(cfg: RecurrentConfig, causal: bool = False) -> float:
  """3 * 2 * (entries of every layer's two matrices + H V of the logits), H the last layer's.

  Gates, biases and the loss are left out. `causal` makes no difference: no position sees a later one.
  """
  entries = sum(math.prod(w.shape) for w in recurrent_weights(cfg) if w.kind == "hidden")
  return 6.0 * (entries + layer_sizes(cfg)[-1][1] * vocab_of(cfg))


def recurrent_activations(cfg: Config) -> float:
  """Numbers that the forward pass keeps on each device: for a token KEPT states and the input of each layer,
  and 2 V of logits (of objective.chunk positions). Fitted to XLA's buffers for float32 on CPU.
  """
  model, train, mesh = cfg.model, cfg.train, cfg.mesh
  kept = sum(inputs + KEPT[model.cell] * size for inputs, size in layer_sizes(model))
  chunk = getattr(cfg.objective, "chunk", None) or model.seq_len
  logits = 2 * vocab_of(model) * chunk / model.seq_len / mesh.tensor
  rows = train.batch_size / train.accumulate / (mesh.replica * mesh.fsdp * mesh.expert)
  return rows * model.seq_len * (kept + logits)


def check_recurrent(cfg: Config) -> None:
  """ConfigError where positions are split over devices, or a hidden size is named that no layer has."""
  if cfg.mesh.sequence != 1:
    raise ConfigError(
      f"mesh.sequence={cfg.mesh.sequence}: a recurrent model reads positions one after the other; use 1"
    )
  model = cfg.model
  if model.tied_embeddings and model.depth == 1 and model.hidden_dim not in (None, model.width):
    raise ConfigError(
      f"model.hidden_dim={model.hidden_dim}: the last layer of a tied model is of "
      f"model.width={model.width}, and there is no other; use None or untie them"
    )


def split_recurrent(model: RecurrentConfig) -> dict[str, dict[str, int]]:
  """What each mesh axis must divide."""
  fsdp = {"model.width": model.width}
  if model.hidden_dim is not None:
    fsdp["model.hidden_dim"] = model.hidden_dim
  return {"fsdp": fsdp, "tensor": {"model.vocab_size": vocab_of(model)}}


RECURRENT = Family(
  section=RecurrentConfig,
  module=Recurrent,
  inputs={"tokens": Input("int32", ("batch", "length"))},
  weights=recurrent_weights,
  exact_flops=recurrent_flops,
  activation_floats=recurrent_activations,
  check=check_recurrent,
  splits=split_recurrent,
  init_cache=init_cache,
)
