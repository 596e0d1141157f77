"""A mixture of MLPs, of which every token uses a few. B rows, L tokens, E experts, S slots, C a slot count.

Each row of the batch is a group by itself, as in GShard (Lepikhin et al. 2020, arXiv:2006.16668,
algorithm 1), but its tokens take slots in their own order, a token's k choices together: GShard's
order, all first choices before all second ones, lets later tokens push earlier ones out. A token
that finds no slot passes the expert by. So what a token gets depends on the tokens before it in its
row alone, whatever the batch, the micro-batches or the mesh.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from lm.config.errors import ConfigError
from lm.devices.sharding import (
  ACTIVATION_RULES,
  activation_spec,
  constrain,
  current_mesh,
  gather,
  mesh_ways,
)
from lm.models.layers import Linear, Mlp, activate, init_std, initial_depth, normal
from lm.models.transformer_config import GATED, TransformerConfig

LOSSES = "losses"  # the collection that holds what the router adds to the objective
ROUTING = "routing"  # the collection that holds the router's "bias", given, and "load", counted
KERNEL_AXES = {
  "up": ("expert", "embed", "mlp"),
  "gate": ("expert", "embed", "mlp"),
  "down": ("expert", "mlp", "embed"),
}


class Experts(nn.Module):
  """sum_i g_i mlp_{e_i}(x) over the k experts of a token, plus the shared ones' mlp(x).

  model.router = softmax: the k best logits; g is their softmax (Jiang et al. 2024, arXiv:2401.04088
  §2.1). sigmoid: the k best s + bias, s the sigmoids of the logits; g is s over the sum of the k
  (DeepSeek-AI 2024, arXiv:2412.19437 eq. 12-16, without groups of nodes or a scale on g). The bias
  is no parameter that an optimizer moves: it is read from the collection ROUTING where it is there
  (see `update_bias`), else where it lies among the parameters, as `lm.objectives.objective` lays it there
  for use, and is added to probabilities where the router is softmax.

  model.dispatch = capacity: in training an expert has capacity_factor k L / E slots a row; without
  it, and outside training, every token finds a slot. Padding takes none; L counts it, as a capacity
  that depended on how many tokens follow would look ahead. dropless: tokens are sorted by expert
  and multiplied group by group (Gale et al. 2022, arXiv:2211.15841), none is dropped, and
  capacity_factor is not read.

  Sows into LOSSES, as sums over the real tokens of the batch: "balance" = n E sum_e f_e p_e a row of n
  tokens, f the fraction of its choices that fell on e and p the mean probability, or share of the
  sigmoids (1 a token if all are equal: Fedus et al. 2021, arXiv:2101.03961 §2.2); "router_z" =
  log^2 Z of the router (Zoph et al. 2022, arXiv:2202.08906 eq. 5); "dropped", the choices that
  found no slot, as a fraction. Sows into ROUTING, where it is mutable, "load": float32 [E], the
  choices that fell on each expert.
  """

  cfg: TransformerConfig

  @nn.compact
  def __call__(self, x_BLD: jax.Array, train: bool, real_BL: jax.Array | None = None) -> jax.Array:
    """Args: x_BLD; train: whether room is limited; real_BL: bool, False on padding (None = all real).

    Raises:
      ConfigError: model.dispatch=dropless on a mesh that splits experts.
    """
    cfg, (_, L, _) = self.cfg, x_BLD.shape
    E, k = cfg.experts, cfg.experts_per_token
    router = Linear(cfg, E, ("embed", "router"), name="router", use_bias=False)
    logits_BLE = router(x_BLD.astype(jnp.float32))  # in float32: rounding would make ties
    gates_BLk, chosen_BLk = self._route(logits_BLE)
    self.sow("intermediates", "chosen", chosen_BLk)  # for lm.inspect; nothing where nobody asks
    self.sow("intermediates", "gates", gates_BLk)
    names = ("up", "gate", "down") if cfg.activation in GATED else ("up", "down")
    weights = {name: ExpertWeights(cfg, name=name)() for name in names}
    if cfg.dispatch == "dropless":
      kept_BLk = jnp.ones(chosen_BLk.shape, bool)
      y_BLD = _grouped(cfg, x_BLD, gates_BLk, chosen_BLk, real_BL, weights)
    else:
      capacity = L
      if train and cfg.capacity_factor is not None:
        capacity = min(L, math.ceil(cfg.capacity_factor * k * L / E))
      slot_BLk, kept_BLk = _slots(chosen_BLk, E, capacity, real_BL)
      weight_BLk = jnp.where(kept_BLk, gates_BLk, 0.0)
      y_BLD = _slotted(cfg, x_BLD, weight_BLk, slot_BLk, kept_BLk, capacity, weights)
    self._sow(logits_BLE, chosen_BLk, kept_BLk, real_BL)
    y_BLD = constrain(y_BLD, ("batch", "length", "act_embed"))
    if cfg.shared_experts:  # n MLPs added up are one of n times their size
      wide = dataclasses.replace(cfg, mlp_dim=cfg.shared_experts * cfg.mlp_dim)
      y_BLD += Mlp(wide, name="shared")(x_BLD)
    return y_BLD

  def _route(self, logits_BLE):
    """(gates, experts) of every token's choices: [B, L, k] each."""
    k, sigmoid = self.cfg.experts_per_token, self.cfg.router == "sigmoid"
    score_BLE = jax.nn.sigmoid(logits_BLE) if sigmoid else logits_BLE
    where = next((name for name in (ROUTING, "params") if self.has_variable(name, "bias")), None)
    if where is None:
      top_BLk, chosen_BLk = jax.lax.top_k(score_BLE, k)
    else:
      share_BLE = score_BLE if sigmoid else jax.nn.softmax(logits_BLE, axis=-1)
      bias_11E = self.get_variable(where, "bias")[None, None]
      chosen_BLk = jax.lax.top_k(share_BLE + bias_11E, k)[1]
      top_BLk = jnp.take_along_axis(score_BLE, chosen_BLk, axis=-1)
    if sigmoid:
      return top_BLk / top_BLk.sum(axis=-1, keepdims=True), chosen_BLk
    return jax.nn.softmax(top_BLk, axis=-1), chosen_BLk

  def _sow(self, logits_BLE, chosen_BLk, kept_BLk, real_BL):
    (L, E), k = logits_BLE.shape[1:], chosen_BLk.shape[-1]
    choices_BLkE = jax.nn.one_hot(chosen_BLk, E)
    probability_BLE = jax.nn.softmax(logits_BLE, axis=-1)
    if self.cfg.router == "sigmoid":
      score_BLE = jax.nn.sigmoid(logits_BLE)
      probability_BLE = score_BLE / score_BLE.sum(axis=-1, keepdims=True)
    z_BL = jnp.square(jax.nn.logsumexp(logits_BLE, axis=-1))
    dropped_BL = (1.0 - kept_BLk.astype(jnp.float32)).mean(axis=-1)
    if real_BL is None:
      share_BE, probability_BE = choices_BLkE.mean(axis=(1, 2)), probability_BLE.mean(axis=1)
      balance = L * E * (share_BE * probability_BE).sum()
    else:
      real_BL = real_BL.astype(jnp.float32)
      choices_BLkE *= real_BL[:, :, None, None]
      n_B1 = real_BL.sum(axis=1, keepdims=True)
      share_BE = choices_BLkE.sum(axis=(1, 2)) / (jnp.maximum(n_B1, 1) * k)
      probability_BE = (probability_BLE * real_BL[:, :, None]).sum(axis=1)  # times n
      balance = E * (share_BE * probability_BE).sum()
      z_BL, dropped_BL = z_BL * real_BL, dropped_BL * real_BL
    sums = {"balance": balance, "router_z": z_BL.sum(), "dropped": dropped_BL.sum()}
    for name, value in sums.items():
      self.sow(LOSSES, name, value, reduce_fn=jnp.add, init_fn=lambda: jnp.float32(0))
    if self.is_mutable_collection(ROUTING) and not self.is_initializing():
      load_E = jax.lax.stop_gradient(choices_BLkE.sum(axis=(0, 1, 2)))
      self.sow(ROUTING, "load", load_E, reduce_fn=jnp.add, init_fn=lambda: jnp.zeros(E))


def update_bias(bias_E: jax.Array, load_E: jax.Array, rate: float | jax.Array) -> jax.Array:
  """bias + rate sign(mean load - load), over the last axis: one step of balancing without a loss.

  An expert that got less than its share is chosen more readily at the next step. DeepSeek-AI 2024,
  arXiv:2412.19437 §2.1.2 (Wang et al. 2024, arXiv:2408.15664, algorithm 1).

  Args:
    bias_E: float32 [..., E]; zeros at the start.
    load_E: choices of each expert in the whole batch: "load" of ROUTING, float32 [..., E].
    rate: 0.001 in DeepSeek-V3.

  >>> update_bias(jnp.zeros(3), jnp.array([5.0, 1.0, 3.0]), 0.5)
  Array([-0.5,  0.5,  0. ], dtype=float32)
  """
  return bias_E + rate * jnp.sign(load_E.mean(axis=-1, keepdims=True) - load_E)


class ExpertWeights(nn.Module):
  """A kernel for each expert, float32 [E, rows, columns], and a bias [E, columns] or None."""

  cfg: TransformerConfig  # `name` is up, gate or down

  @nn.compact
  def __call__(self) -> tuple[jax.Array, jax.Array | None]:
    cfg, axes = self.cfg, KERNEL_AXES[self.name]
    size = {"embed": cfg.width, "mlp": cfg.mlp_dim}
    shape = (cfg.experts, size[axes[1]], size[axes[2]])
    std = init_std(cfg, "hidden", shape[1])
    if self.name == "down":
      std /= math.sqrt(2 * initial_depth(cfg))
    kernel_EDF, bias_EF = self.param("kernel", normal(std, axes), shape), None
    if cfg.bias:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, (axes[0], axes[2]))
      bias_EF = self.param("bias", zeros, (shape[0], shape[2]))
    return kernel_EDF, bias_EF


# --- slots for each expert ------------------------------------------------------------------------


def _slotted(cfg, x_BLD, weight_BLk, slot_BLk, kept_BLk, capacity, weights):
  """The weighted sum of what a token's experts give, each expert working on its own slots."""
  (B, L, D), E, k = x_BLD.shape, cfg.experts, cfg.experts_per_token
  source_BS = _sources(slot_BLk, kept_BLk, E * capacity)
  x_BSD = jnp.take_along_axis(x_BLD, source_BS[:, :, None], axis=1, mode="fill", fill_value=0)
  x_BECD = x_BSD.reshape(B, E, capacity, D)
  x_BECD = constrain(x_BECD, ("expert_batch", "act_expert", "capacity", "act_embed"))

  def linear(name, x):
    kernel, bias_EF = weights[name]
    kernel = gather(kernel.astype(x.dtype), KERNEL_AXES[name])
    y = checkpoint_name(jnp.einsum("BECD,EDF->BECF", x, kernel), name)
    return y if bias_EF is None else y + bias_EF.astype(y.dtype)[None, :, None]

  h_BECF = linear("up", x_BECD)
  h_BECF = activate(cfg, h_BECF, linear("gate", x_BECD) if "gate" in weights else None)
  h_BECF = constrain(h_BECF, ("expert_batch", "act_expert", "capacity", "act_mlp"))
  y_BECD = linear("down", h_BECF)
  y_BSD = constrain(y_BECD, ("batch", "act_slots", "capacity", "act_embed")).reshape(B, -1, D)
  picked_BND = jnp.take_along_axis(y_BSD, slot_BLk.reshape(B, L * k, 1), axis=1, mode="clip")
  picked_BLkD = picked_BND.reshape(B, L, k, D)
  return jnp.einsum("BLkD,BLk->BLD", picked_BLkD, weight_BLk.astype(y_BSD.dtype))


def _slots(chosen_BLk, n_experts, capacity, real_BL=None):
  """(slot of every choice among E * capacity, whether it found one): [B, L, k] each."""
  B, L, k = chosen_BLk.shape
  order_BN = chosen_BLk.reshape(B, L * k)
  one_BNE = jax.nn.one_hot(order_BN, n_experts, dtype=jnp.int32)
  if real_BL is not None:
    one_BNE *= jnp.repeat(real_BL, k, axis=1).astype(jnp.int32)[:, :, None]
  taken_BNE = jnp.cumsum(one_BNE, axis=1)
  rank_BN = jnp.take_along_axis(taken_BNE, order_BN[:, :, None], axis=2)[..., 0] - 1
  rank_BLk = rank_BN.reshape(B, L, k)
  kept_BLk = rank_BLk < capacity
  if real_BL is not None:
    kept_BLk &= real_BL[:, :, None]
  return chosen_BLk * capacity + jnp.clip(rank_BLk, 0, capacity - 1), kept_BLk


def _sources(slot_BLk, kept_BLk, n_slots):
  """Int32 [B, S]: the token in each slot; L (out of range) in an empty one."""
  B, L, k = slot_BLk.shape
  tokens_BN = jnp.broadcast_to(jnp.arange(L, dtype=jnp.int32)[None, :, None], slot_BLk.shape)
  where_BN = jnp.where(kept_BLk, slot_BLk, n_slots).reshape(B, L * k)
  rows_B1 = jnp.arange(B, dtype=jnp.int32)[:, None]
  empty_BS = jnp.full((B, n_slots), L, jnp.int32)
  return empty_BS.at[rows_B1, where_BN].set(tokens_BN.reshape(B, L * k), mode="drop")


# --- grouped products -----------------------------------------------------------------------------


def _grouped(cfg, x_BLD, gates_BLk, chosen_BLk, real_BL, weights):
  """The same sum with no slots: every device sorts its own tokens by expert."""
  mesh = current_mesh()
  if mesh is None:
    return _grouped_here(cfg, None, x_BLD, gates_BLk, chosen_BLk, real_BL, weights)
  if mesh.shape["expert"] > 1:
    raise ConfigError(
      f"mesh.expert={mesh.shape['expert']}: model.dispatch=dropless does not split experts over "
      "devices; use mesh.expert=1 or model.dispatch=capacity"
    )
  row_spec = activation_spec(mesh, ("batch", "length"), x_BLD.shape[:2])
  token_spec = PartitionSpec(*row_spec, None)
  tensor = ACTIVATION_RULES["act_mlp"]
  spec_of = {"up": (None, None, tensor), "gate": (None, None, tensor), "down": (None, tensor, None)}
  gathered, specs = {}, {}
  for name, (kernel, bias_EF) in weights.items():
    gathered[name] = gather(kernel.astype(x_BLD.dtype), KERNEL_AXES[name]), bias_EF
    of_bias = None if bias_EF is None else PartitionSpec(None, spec_of[name][2])
    specs[name] = PartitionSpec(*spec_of[name]), of_bias
  split = tensor if mesh_ways(mesh, tensor) > 1 else None
  here = lambda *args: _grouped_here(cfg, split, *args)
  on_mesh = jax.shard_map(
    here,
    mesh=mesh,
    in_specs=(*[token_spec] * 3, None if real_BL is None else row_spec, specs),
    out_specs=token_spec,
    check_vma=False,
  )
  return on_mesh(x_BLD, gates_BLk, chosen_BLk, real_BL, gathered)


def _grouped_here(cfg, split, x_BLD, gates_BLk, chosen_BLk, real_BL, weights):
  """On one device; `split` is the mesh axis along which it holds a part of every MLP, or None."""
  (B, L, D), E, k = x_BLD.shape, cfg.experts, cfg.experts_per_token
  if real_BL is not None:
    chosen_BLk = jnp.where(real_BL[:, :, None], chosen_BLk, E)  # sorted last, in no group
    gates_BLk = jnp.where(real_BL[:, :, None], gates_BLk, 0.0)
  chosen_N = chosen_BLk.reshape(-1)
  order_N = jnp.argsort(chosen_N, stable=True)
  expert_N = chosen_N[order_N]
  sizes_E = (chosen_N[:, None] == jnp.arange(E, dtype=chosen_N.dtype)[None]).sum(
    axis=0, dtype=jnp.int32
  )
  real_N1 = (expert_N < E)[:, None]
  x_ND = jnp.where(real_N1, x_BLD.reshape(B * L, D)[order_N // k], 0)

  def linear(name, x_ND, total=lambda y: y):
    kernel, bias_EF = weights[name]
    y_NF = total(jax.lax.ragged_dot(x_ND, kernel.astype(x_ND.dtype), sizes_E))
    y_NF = checkpoint_name(y_NF, name)
    if bias_EF is None:
      return y_NF
    return y_NF + bias_EF.astype(y_NF.dtype)[jnp.minimum(expert_N, E - 1)]

  h_NF = activate(cfg, linear("up", x_ND), linear("gate", x_ND) if "gate" in weights else None)
  everywhere = (lambda y: y) if split is None else (lambda y: jax.lax.psum(y, split))
  y_ND = jnp.where(real_N1, linear("down", h_NF, everywhere), 0)  # rows of no group hold anything
  y_BLkD = y_ND[jnp.argsort(order_N)].reshape(B, L, k, D)
  return jnp.einsum("BLkD,BLk->BLD", y_BLkD, gates_BLk.astype(y_ND.dtype))
