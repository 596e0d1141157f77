"""A variational autoencoder of sentences: a recurrent encoder, a vector drawn from what it says, a decoder.

    q(z | x) = N(mean, diag exp(log_var)) from the encoder's state after the sentence's last token
    p(x | z): the layers of lm.models.recurrent from the states tanh(W z + b), with z beside every token where
    `latent_input` is set

Bowman et al. 2016, arXiv:1511.06349, §2 and 3. Encoder and decoder share the embedding. The encoder is one
layer of the decoder's kind; `model.dropout` and the other options of a recurrent model are the decoder's.

Axes: B rows, L length, D width, H the encoder's state, Z latent numbers, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config, ModelConfig, field
from lm.models.family import Family, Input, Weight
from lm.models.matmul import matmul
from lm.models.recurrent import (
  GATES,
  KEPT,
  PARTS,
  Carry,
  Layer,
  RecurrentConfig,
  Stack,
  check_recurrent,
  layer_sizes,
  recurrent_activations,
  recurrent_weights,
  split_recurrent,
  uniform,
  vocab_of,
)


@dataclasses.dataclass(frozen=True)
class VaeConfig(RecurrentConfig):
  latent_dim: int = field("[1, inf)", "32")  # Z
  # The decoder reads z beside every token, not in its first state alone.
  latent_input: bool = field()

  @property
  def beside(self) -> int:
    return self.latent_dim if self.latent_input else 0


def encoder_size(cfg: ModelConfig) -> int:
  """H, numbers in the encoder's state."""
  return cfg.hidden_dim or cfg.width


class Dense(nn.Module):
  """x [B, in] -> x kernel + bias, float32."""

  cfg: RecurrentConfig
  shape: tuple[int, int]

  @nn.compact
  def __call__(self, x_BI: jax.Array) -> jax.Array:
    axes = ("replicated", "gates")
    init = uniform(self.cfg, "hidden", 1 / math.sqrt(self.shape[0]), axes)
    kernel: Any = self.param("kernel", init, self.shape)
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("gates",))
    bias: Any = self.param("bias", zeros, self.shape[1:])
    return matmul(x_BI.astype(jnp.float32), kernel, axes, bias)


class Vae(Stack):
  """Sentences to latent vectors and back."""

  def setup(self):
    super().setup()
    cfg, size = self.cfg, encoder_size(self.cfg)
    self.encoder = Layer(dataclasses.replace(cfg, weight_drop=0.0), cfg.width, size, name="encoder")
    self.posterior = Dense(cfg, (size, 2 * cfg.latent_dim), name="posterior")
    self.initial = Dense(cfg, (cfg.latent_dim, state_size(cfg)), name="initial")

  def __call__(self, tokens_BL: jax.Array) -> jax.Array:
    """Logits [B, L, V] of the token after each one, z the encoder's mean of the same row."""
    mean_BZ, _ = self.encode(tokens_BL, jnp.ones(tokens_BL.shape))
    return self.logits(self.decode(tokens_BL, mean_BZ, self.first(mean_BZ))[0])

  def encode(self, tokens_BL: jax.Array, real_BL: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean [B, Z], log_var [B, Z]) of q, float32, of the tokens up to the last where real is 1."""
    x_BLD = jnp.take(self.embed.table, tokens_BL, axis=0, mode="fill").astype(self.cfg.dtype)
    zeros = jnp.zeros((tokens_BL.shape[0], encoder_size(self.cfg)))
    states = self.encoder(x_BLD, (zeros,) * len(PARTS[self.cfg.cell]), None, False)
    last_B11 = jnp.maximum(real_BL.sum(axis=1).astype(jnp.int32) - 1, 0)[:, None, None]
    h_BH = jnp.take_along_axis(states[0], last_B11, axis=1)[:, 0]
    mean_BZ, log_var_BZ = jnp.split(self.posterior(h_BH), 2, axis=1)
    return mean_BZ, log_var_BZ

  def first(self, z_BZ: jax.Array) -> Carry:
    """The decoder's states before the first token."""
    numbers, found, at = jnp.tanh(self.initial(z_BZ)), {}, 0
    for i, (_, size) in enumerate(layer_sizes(self.cfg)):
      found[f"layer_{i}"] = {}
      for part in PARTS[self.cfg.cell]:
        found[f"layer_{i}"][part] = numbers[:, at : at + size]
        at += size
    return found

  def decode(self, tokens_BL, z_BZ, carry: Carry, words_BL=None, *, train: bool = False):
    """(the vectors [B, L, D] that `logits` reads, carry) after tokens, from the states of earlier ones.

    Args:
      tokens_BL: int32, the token before each that is predicted.
      words_BL: float32, 0 where a token is not told to the decoder; None = nowhere.
      train: drop out, with the rng "dropout".
    """
    parts = PARTS[self.cfg.cell]
    first = [tuple(carry[f"layer_{i}"][part] for part in parts) for i in range(self.cfg.depth)]
    beside_BZ = z_BZ if self.cfg.latent_input else None
    x_BLD, _, states = self._run(tokens_BL, first, None, train, words_BL, beside_BZ)
    last = lambda state: {p: a[:, -1] for p, a in zip(parts, state, strict=True)}
    return x_BLD, {f"layer_{i}": last(state) for i, state in enumerate(states)}


def state_size(cfg: ModelConfig) -> int:
  """Numbers in all of the decoder's states."""
  return sum(size for _, size in layer_sizes(cfg)) * len(PARTS[cfg.cell])


# --- sentences of latent vectors ------------------------------------------------------------------


class Words(Protocol):
  """The tokenizer's ids that a text is written and ended with."""

  vocab_size: int
  start_id: int
  eot_id: int


@functools.lru_cache(maxsize=4)
def make_writer(cfg: Any, length: int, n_tokens: int):
  """A compiled `write(params, z [N, Z], start_id) -> the likeliest tokens [N, length]`, one after another.

  Args:
    n_tokens: entries of the tokenizer: ids beyond them are never written.
  """
  model = Vae(cfg)

  @jax.jit
  def write(params, z_NZ, start_id):
    apply: Any = functools.partial(model.apply, {"params": params})

    def step(state, _):
      token_N, carry = state
      x_N1D, carry = apply(jnp.expand_dims(token_N, 1), z_NZ, carry, method="decode")
      logits_NV = apply(x_N1D, method="logits")[:, 0, :n_tokens]
      token_N = logits_NV.argmax(axis=-1).astype(jnp.int32)
      return (token_N, carry), token_N

    first = jnp.full((z_NZ.shape[0],), start_id, jnp.int32), apply(z_NZ, method="first")
    return jax.lax.scan(step, first, None, length=length)[1].T

  return write


def sentences_of(
  cfg: Any, params: Any, z_NZ: np.ndarray, length: int, tokenizer: Words
) -> list[list[int]]:
  """The likeliest tokens of each latent vector, up to the first that ends a text."""
  write, eot_id = make_writer(cfg, length, tokenizer.vocab_size), tokenizer.eot_id
  drawn = np.asarray(write(params, jnp.asarray(z_NZ, jnp.float32), tokenizer.start_id))
  ends = [(np.append(np.flatnonzero(row == eot_id), length))[0] for row in drawn]
  return [row[:end].tolist() for row, end in zip(drawn, ends, strict=True)]


def between(
  cfg: VaeConfig,
  params: Any,
  texts: Sequence[Sequence[int]],
  n: int,
  length: int,
  tokenizer: Words,
) -> list[list[int]]:
  """Sentences of n latent vectors on the line from the mean of one sentence to that of another.

  Bowman et al. 2016, arXiv:1511.06349, §4.2: homotopies.

  Args:
    texts: tokens of the two, without start and end.
    n: at least 2; the ends are among them.
    length: of each, at most.
  """
  model, ends = Vae(cfg), []
  for text in texts:
    row = jnp.asarray([[*text, tokenizer.eot_id]], jnp.int32)
    encode = jax.jit(functools.partial(model.apply, method="encode"))
    moments: Any = encode({"params": params}, row, jnp.ones(row.shape))
    ends.append(np.asarray(moments[0])[0])
  share_N1 = np.linspace(0, 1, n)[:, None]
  z_NZ = (1 - share_N1) * ends[0] + share_N1 * ends[1]
  return sentences_of(cfg, params, z_NZ, length, tokenizer)


# --- counts ---------------------------------------------------------------------------------------


def vae_weights(cfg: VaeConfig) -> list[Weight]:
  """Every weight."""
  size, columns = encoder_size(cfg), GATES[cfg.cell] * encoder_size(cfg)
  found = recurrent_weights(cfg)
  found += [
    Weight("encoder/input_kernel", "hidden", (cfg.width, columns)),
    Weight("encoder/recurrent_kernel", "hidden", (size, columns)),
    Weight("encoder/input_bias", "vector", (columns,)),
    Weight("encoder/recurrent_bias", "vector", (columns,)),
  ]
  for name, rows, outs in (
    ("posterior", size, 2 * cfg.latent_dim),
    ("initial", cfg.latent_dim, state_size(cfg)),
  ):
    found += [
      Weight(f"{name}/kernel", "hidden", (rows, outs)),
      Weight(f"{name}/bias", "vector", (outs,)),
    ]
  return found


def vae_flops(cfg: VaeConfig, causal: bool = False) -> float:
  """6 (entries of the layers' matrices + H V of the logits), and those of the two latent matrices / L.

  Of a token of a full row; `causal` makes no difference.
  """
  once = ("posterior/kernel", "initial/kernel")
  sizes = {w.name: math.prod(w.shape) for w in vae_weights(cfg) if w.kind == "hidden"}
  each = sum(size for name, size in sizes.items() if name not in once)
  each += sum(sizes[name] for name in once) / cfg.seq_len
  return 6.0 * (each + layer_sizes(cfg)[-1][1] * vocab_of(cfg))


def vae_activations(cfg: Config) -> float:
  """Those of the decoder, and of the encoder's layer, by the same estimate."""
  model, train, mesh = cfg.model, cfg.train, cfg.mesh
  rows = train.batch_size / train.accumulate / (mesh.replica * mesh.fsdp * mesh.expert)
  encoder = rows * model.seq_len * (model.width + KEPT[model.cell] * encoder_size(model))
  return recurrent_activations(cfg) + encoder


def check_vae(cfg: Config) -> None:
  """ConfigError for what a recurrent model refuses, and for a first layer that fsdp could not split."""
  check_recurrent(cfg)
  if cfg.mesh.fsdp > 1 and cfg.model.beside % cfg.mesh.fsdp:
    raise ConfigError(
      f"model.latent_dim={cfg.model.latent_dim}: must be divisible by mesh.fsdp={cfg.mesh.fsdp} with "
      "model.latent_input; use a multiple"
    )


VAE = Family(
  section=VaeConfig,
  module=Vae,
  inputs={"tokens": Input("int32", ("batch", "length"))},
  weights=vae_weights,
  exact_flops=vae_flops,
  activation_floats=vae_activations,
  check=check_vae,
  splits=split_recurrent,
  between=between,
)
