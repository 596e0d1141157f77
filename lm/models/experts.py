"""A mixture of MLPs, of which every token uses a few. B rows, L tokens, E experts, S slots, C a slot count.

Each row of the batch is a group by itself, as in GShard (Lepikhin et al. 2020, arXiv:2006.16668,
algorithm 1): its tokens take the slots of their experts in order, all first choices before all
second ones, and a token that finds no slot passes the expert by. So what a row gives depends on
that row alone, whatever the batch, the micro-batches or the mesh.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from lm.config import ModelConfig
from lm.models.layers import GATED, Linear, activate, init_std, normal
from lm.sharding import constrain, gather

LOSSES = "losses"  # the collection that holds what the router adds to the objective


class Experts(nn.Module):
  """sum_i g_i mlp_{e_i}(x) over the k experts of a token, g the softmax of their k router logits.

  Jiang et al. 2024, arXiv:2401.04088 §2.1. In training an expert has capacity_factor k L / E slots
  a row; without it, and outside training, every token finds a slot.

  Sows, as sums over the tokens of the batch: "balance" = L E sum_e f_e p_e a row, f the fraction of
  its choices that fell on e and p the mean probability (1 a token if all are equal: Fedus et al.
  2021, arXiv:2101.03961 §2.2); "router_z" = log^2 Z of the router (Zoph et al. 2022,
  arXiv:2202.08906 eq. 5); "dropped", the choices that found no slot, as a fraction.
  """

  cfg: ModelConfig

  @nn.compact
  def __call__(self, x_BLD: jax.Array, train: bool) -> jax.Array:
    cfg, (B, L, D) = self.cfg, x_BLD.shape
    E, k = cfg.experts, cfg.experts_per_token
    router = Linear(cfg, E, ("embed", "router"), name="router", use_bias=False)
    logits_BLE = router(x_BLD.astype(jnp.float32))  # in float32: rounding would make ties
    top_BLk, chosen_BLk = jax.lax.top_k(logits_BLE, k)
    gates_BLk = jax.nn.softmax(top_BLk, axis=-1)
    capacity = L
    if train and cfg.capacity_factor is not None:
      capacity = min(L, math.ceil(cfg.capacity_factor * k * L / E))
    slot_BLk, kept_BLk = _slots(chosen_BLk, E, capacity)
    self._sow(logits_BLE, chosen_BLk, kept_BLk)

    source_BS = _sources(slot_BLk, kept_BLk, E * capacity)
    x_BSD = jnp.take_along_axis(x_BLD, source_BS[:, :, None], axis=1, mode="fill", fill_value=0)
    y_BECD = self._mlps(x_BSD.reshape(B, E, capacity, D))
    y_BSD = constrain(y_BECD, ("batch", "act_slots", "capacity", "act_embed")).reshape(B, -1, D)
    picked_BNkD = jnp.take_along_axis(y_BSD, slot_BLk.reshape(B, L * k, 1), axis=1, mode="clip")
    weight_BLk = jnp.where(kept_BLk, gates_BLk, 0.0)
    y_BLD = jnp.einsum(
      "BLkD,BLk->BLD", picked_BNkD.reshape(B, L, k, D), weight_BLk.astype(y_BSD.dtype)
    )
    return constrain(y_BLD, ("batch", "length", "act_embed"))

  def _mlps(self, x_BECD):
    """Every expert's MLP on its own slots."""
    cfg = self.cfg
    x_BECD = constrain(x_BECD, ("expert_batch", "act_expert", "capacity", "act_embed"))
    h_BECF, gate_BECF = self._linear("up", x_BECD, cfg.mlp_dim, ("embed", "mlp")), None
    if cfg.activation in GATED:
      gate_BECF = self._linear("gate", x_BECD, cfg.mlp_dim, ("embed", "mlp"))
    h_BECF = activate(cfg, h_BECF, gate_BECF)
    h_BECF = constrain(h_BECF, ("expert_batch", "act_expert", "capacity", "act_mlp"))
    return self._linear("down", h_BECF, cfg.width, ("mlp", "embed"), residual=True)

  def _linear(self, name, x, features, axes, residual=False):
    return ExpertLinear(self.cfg, features, axes, residual, name=name)(x)

  def _sow(self, logits_BLE, chosen_BLk, kept_BLk):
    L, E = logits_BLE.shape[1:]
    share_BE = jax.nn.one_hot(chosen_BLk, E).mean(axis=(1, 2))
    probability_BE = jax.nn.softmax(logits_BLE, axis=-1).mean(axis=1)
    sums = {
      "balance": L * E * (share_BE * probability_BE).sum(),
      "router_z": jnp.square(jax.nn.logsumexp(logits_BLE, axis=-1)).sum(),
      "dropped": (1.0 - kept_BLk.astype(jnp.float32)).mean(axis=-1).sum(),
    }
    for name, value in sums.items():
      self.sow(LOSSES, name, value, reduce_fn=jnp.add, init_fn=lambda: jnp.float32(0))


class ExpertLinear(nn.Module):
  """x [B, E, C, D] -> [B, E, C, features]: a kernel [D, features] (+ bias) of its own for each expert."""

  cfg: ModelConfig
  features: int
  axes: tuple[str, str]
  residual: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    std = init_std(self.cfg, "hidden", x.shape[-1])
    if self.residual:
      std /= math.sqrt(2 * self.cfg.depth)
    axes = ("expert", *self.axes)
    shape = (self.cfg.experts, x.shape[-1], self.features)
    kernel = self.param("kernel", normal(std, axes), shape)
    y = jnp.einsum("BECD,EDF->BECF", x, gather(kernel.astype(x.dtype), axes))
    y = checkpoint_name(y, self.name)
    if self.cfg.bias:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, (axes[0], axes[2]))
      bias_EF = self.param("bias", zeros, (shape[0], shape[2])).astype(y.dtype)
      y += bias_EF[None, :, None]
    return y


def _slots(chosen_BLk, n_experts, capacity):
  """(slot of every choice among E * capacity, whether it found one): [B, L, k] each."""
  B, L, k = chosen_BLk.shape
  order_BN = chosen_BLk.transpose(0, 2, 1).reshape(
    B, k * L
  )  # first choices of all tokens come first
  taken_BNE = jnp.cumsum(jax.nn.one_hot(order_BN, n_experts, dtype=jnp.int32), axis=1)
  rank_BN = jnp.take_along_axis(taken_BNE, order_BN[:, :, None], axis=2)[..., 0] - 1
  rank_BLk = rank_BN.reshape(B, k, L).transpose(0, 2, 1)
  kept_BLk = rank_BLk < capacity
  return chosen_BLk * capacity + jnp.minimum(rank_BLk, capacity - 1), kept_BLk


def _sources(slot_BLk, kept_BLk, n_slots):
  """Int32 [B, S]: the token in each slot; L (out of range) in an empty one."""
  B, L, k = slot_BLk.shape
  tokens_BN = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32)[None, :, None], slot_BLk.shape)
  where_BN = jnp.where(kept_BLk, slot_BLk, n_slots).reshape(B, L * k)
  rows_B1 = jnp.arange(B, dtype=jnp.int32)[:, None]
  empty_BS = jnp.full((B, n_slots), L, jnp.int32)
  return empty_BS.at[rows_B1, where_BN].set(tokens_BN.reshape(B, L * k), mode="drop")
