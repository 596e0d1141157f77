"""Mixtures of experts: an independent Mixtral, and what must hold whatever the router says."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.config.schema import MeshConfig
from lm.cost.parameters import param_counts
from lm.devices import sharding
from lm.models.decoder import init_cache
from lm.models.experts import LOSSES, ROUTING, Experts, update_bias
from lm.models.registry import make_model
from lm.models.trees import init_params
from lm.objectives.next_token import router_sums
from lm.setup.load import load_config
from lm.setup.resolve import resolve
from tests.equalities import shapes_of
from tests.test_models import jit

E, K, L, D = 4, 2, 16, 16


def cfg_of(**changes):
  overrides = {
    "model.width": D, "model.depth": 2, "model.heads": 4, "model.kv_heads": 2, "model.mlp_dim": 24,
    "model.seq_len": L, "model.experts": E, "model.tied_embeddings": False, "data.tokenizer": "byte",
    "model.vocab_size": 264, **{f"model.{k}": v for k, v in changes.items()},
  }  # fmt: skip
  return resolve(load_config("configs/default.py", overrides), 257, 1).model


def layer(train=True, kernel=None, seed=0, batch=3, **changes):
  """(output, sown sums, parameters, input) of one mixture; `kernel` replaces its router's."""
  cfg = cfg_of(**changes)
  x_BLD = jax.random.normal(jax.random.key(seed), (batch, L, D))
  draw = jit(lambda x: nn_unbox(Experts(cfg).init(jax.random.key(1), x, False)["params"]))
  params = draw(x_BLD)
  if kernel is not None:
    params["router"]["kernel"] = kernel
  run = jit(lambda params, x: Experts(cfg).apply({"params": params}, x, train, mutable=["losses"]))
  y_BLD, sown = run(params, x_BLD)
  return y_BLD, router_sums(sown["losses"]), params, x_BLD


def nn_unbox(tree):
  return jax.tree.map(lambda p: p.unbox(), tree, is_leaf=lambda p: hasattr(p, "unbox"))


def dense(params, x_BLD, expert):
  """The gated MLP of one expert, by hand."""
  up, gate, down = (params[name]["kernel"][expert] for name in ("up", "gate", "down"))
  return ((x_BLD @ up) * jax.nn.silu(x_BLD @ gate)) @ down


def test_each_token_gets_the_weighted_sum_of_its_best_experts():
  y_BLD, _, params, x_BLD = layer(train=False)
  logits = np.asarray(x_BLD @ params["router"]["kernel"])
  every = np.stack([dense(params, x_BLD, e) for e in range(E)], axis=2)
  for b in range(3):
    for t in range(L):
      best = np.argsort(-logits[b, t])[:K]
      gates = np.exp(logits[b, t, best]) / np.exp(logits[b, t, best]).sum()
      np.testing.assert_allclose(y_BLD[b, t], gates @ every[b, t, best], atol=1e-5)


@pytest.mark.parametrize(("experts_per_token", "room"), [(1, 1.0), (1, 0.5), (2, 1.0)])
def test_tokens_beyond_an_experts_room_pass_it_by(experts_per_token, room):
  """All tokens want the same experts, whose room then goes to the first tokens of each row."""
  direction = jnp.zeros((D, E)).at[0].set(jnp.array([3.0, 2.0, -2.0, -3.0]))
  changes = {"experts_per_token": experts_per_token, "capacity_factor": room}
  cfg = cfg_of(**changes)
  x_BLD = jax.random.normal(jax.random.key(0), (3, L, D)).at[:, :, 0].set(1.0)
  params = nn_unbox(Experts(cfg).init(jax.random.key(1), x_BLD, False)["params"])
  params["router"]["kernel"] = direction
  y_BLD, sown = Experts(cfg).apply({"params": params}, x_BLD, True, mutable=["losses"])
  full_BLD = Experts(cfg).apply({"params": params}, x_BLD, False)
  slots = int(np.ceil(room * experts_per_token * L / E))
  np.testing.assert_allclose(y_BLD[:, :slots], full_BLD[:, :slots], atol=1e-6)
  assert not np.asarray(y_BLD[:, slots:]).any()
  dropped = float(router_sums(sown["losses"])["dropped"])
  assert dropped == pytest.approx(3 * (L - slots))


def test_no_token_is_dropped_without_a_limit_or_outside_training():
  for changes in ({"train": True, "capacity_factor": None}, {"train": False}):
    y_BLD, sums, params, x_BLD = layer(kernel=jnp.ones((D, E)), **changes)
    assert float(sums["dropped"]) == 0
    gated = np.mean([dense(params, x_BLD, e) for e in range(K)], axis=0)
    np.testing.assert_allclose(y_BLD, gated, atol=1e-5)


def test_balance_is_one_a_token_for_an_even_router_and_e_for_a_single_expert():
  batch, tokens = 3, 3 * L
  _, sums, _, _ = layer(kernel=jnp.zeros((D, E)))
  assert float(sums["balance"]) == pytest.approx(tokens)
  assert float(sums["router_z"]) == pytest.approx(tokens * np.log(E) ** 2, rel=1e-5)
  cfg = cfg_of(experts_per_token=1)
  x_BLD = jnp.ones((batch, L, D))
  params = nn_unbox(Experts(cfg).init(jax.random.key(1), x_BLD, False)["params"])
  params["router"]["kernel"] = jnp.zeros((D, E)).at[:, 2].set(5.0)
  _, sown = Experts(cfg).apply({"params": params}, x_BLD, True, mutable=["losses"])
  assert float(router_sums(sown["losses"])["balance"]) == pytest.approx(E * tokens, rel=1e-4)


@pytest.mark.parametrize("changes", [
  {}, {"experts_per_token": 1}, {"bias": True, "norm": "layernorm", "activation": "gelu"},
  {"shared_experts": 2, "router": "sigmoid", "dispatch": "dropless"},
  {"shared_experts": 1, "bias": True, "activation": "relu"},
])  # fmt: skip
def test_counts_are_those_of_the_parameters(changes):
  cfg = cfg_of(**changes)
  shapes = shapes_of(cfg)
  counts = param_counts(cfg)
  assert counts.total == sum(leaf.size for leaf in jax.tree.leaves(shapes))
  mlp = shapes["blocks"]["mlp"]
  in_experts = sum(
    leaf.size for name in ("up", "gate", "down") for leaf in jax.tree.leaves(mlp.get(name, ()))
  )
  assert counts.active == counts.total - in_experts * (E - cfg.experts_per_token) // E


# --- what a token's output depends on -------------------------------------------------------------

DISPATCHES = [{}, {"capacity_factor": 0.5}, {"dispatch": "dropless", "router": "sigmoid"}]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("changes", DISPATCHES, ids=str)
def test_later_tokens_change_nothing_before_them(changes, train, padded):
  """By value and by exact zero gradients; padding lies before, between and after."""
  _, _, params, x_BLD = layer(**changes)
  real_BL = np.ones((3, L), bool)
  if padded:
    real_BL[0, :3] = real_BL[1, 5:7] = real_BL[:, 12:] = False

  @jit
  def early(x_BLD):
    """(what tokens 0-7 get, their gradient by all tokens)."""
    run = lambda x: Experts(cfg_of(**changes)).apply({"params": params}, x, train, real_BL)[:, :8]
    out, backward = jax.vjp(run, x_BLD)
    return out, backward(jnp.ones_like(out))[0]

  other_BLD = x_BLD.at[:, 8:].set(3 * jax.random.normal(jax.random.key(7), (3, 8, D)))
  out, grad_BLD = (np.asarray(x) for x in early(x_BLD))
  # A grouped product rounds a row by where it lies among the sorted ones: nothing else may differ.
  atol = 1e-6 if changes.get("dispatch") == "dropless" else 0
  np.testing.assert_allclose(out, early(other_BLD)[0], rtol=0, atol=atol)
  assert not grad_BLD[:, 8:].any()
  assert (np.abs(grad_BLD[:, :8]).max(axis=-1) > 0).sum() > 8  # those that found a slot
  assert not grad_BLD[~real_BL].any() and not out[~real_BL[:, :8]].any()


@pytest.mark.parametrize("train", [True, False])
def test_later_tokens_change_no_logits_before_them(train):
  model = make_model(cfg_of(experts_per_token=2, capacity_factor=0.5, shared_experts=1))
  params = init_params(model, jax.random.key(0), 2.0)
  rng = np.random.default_rng(0)
  tokens_BL = rng.integers(0, 264, (4, L)).astype(np.int32)
  other_BL = tokens_BL.copy()
  other_BL[:, 8:] = rng.integers(0, 264, (4, L - 8))
  segments_BL = np.ones((4, L), np.int32)
  segments_BL[:, 13:] = 0
  rngs = {"dropout": jax.random.key(0)}
  run = jit(
    lambda tokens: model.apply(
      {"params": params}, tokens, None, segments_BL, train=train, rngs=rngs
    )
  )
  first, second = run(tokens_BL), run(other_BL)
  np.testing.assert_array_equal(first[:, :8], second[:, :8])
  assert np.abs(first[:, 8:13] - second[:, 8:13]).max() > 0.1


def test_padding_takes_no_slot():
  """Everyone wants the same two experts, and padding comes first."""
  cfg = cfg_of(capacity_factor=1.0)  # 8 slots an expert, for 16 positions
  _, _, params, x_BLD = layer()
  params["router"]["kernel"] = jnp.zeros((D, E)).at[0].set(jnp.array([3.0, 2.0, -2.0, -3.0]))
  x_BLD = x_BLD.at[:, :, 0].set(1.0)
  real_BL = jnp.arange(L)[None].repeat(3, axis=0) >= 8
  run = lambda *args: Experts(cfg).apply({"params": params}, *args, mutable=[LOSSES])
  y_BLD, sown = run(x_BLD, True, real_BL)
  full_BLD, _ = run(x_BLD, False)
  np.testing.assert_allclose(y_BLD[:, 8:], full_BLD[:, 8:], atol=1e-6)
  assert float(sown[LOSSES]["dropped"]) == 0
  _, sown = run(x_BLD, True)
  assert float(sown[LOSSES]["dropped"]) == 3 * 8


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_padding_has_no_part_in_the_losses(router):
  _, _, params, x_BLD = layer()
  cfg = cfg_of(router=router, capacity_factor=0.5)
  run = lambda *args: Experts(cfg).apply({"params": params}, *args, mutable=[LOSSES, ROUTING])[1]
  real_BL = jnp.arange(L)[None].repeat(3, axis=0) < 10
  masked = run(x_BLD, True, real_BL)
  alone = run(x_BLD[:, :10], True)
  for name in ("balance", "router_z"):
    assert float(masked[LOSSES][name]) == pytest.approx(float(alone[LOSSES][name]), rel=1e-5)
  np.testing.assert_array_equal(masked[ROUTING]["load"], alone[ROUTING]["load"])
  assert float(masked[ROUTING]["load"].sum()) == 3 * 10 * K
  nothing = run(x_BLD, True, jnp.zeros((3, L), bool))
  assert all(float(value) == 0 for value in nothing[LOSSES].values())


# --- dropless -------------------------------------------------------------------------------------


def value_and_grad_of(cfg, params, x_BLD, real_BL=None):
  def total(params, x_BLD):
    y_BLD, sown = Experts(cfg).apply({"params": params}, x_BLD, True, real_BL, mutable=[LOSSES])
    return (y_BLD**2).sum() + 0.1 * sown[LOSSES]["balance"], (y_BLD, sown[LOSSES])

  return jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(params, x_BLD)


def assert_close(a, b, atol=1e-5):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("changes", [
  {}, {"bias": True, "activation": "gelu"}, {"router": "sigmoid", "shared_experts": 1},
  {"experts_per_token": 1},
], ids=str)  # fmt: skip
def test_dropless_equals_room_for_all(changes, padded):
  cfgs = [cfg_of(capacity_factor=None, **changes), cfg_of(dispatch="dropless", **changes)]
  x_BLD = jax.random.normal(jax.random.key(3), (3, L, D))
  _, _, params, _ = layer(**changes)
  params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(2), p.shape), params)
  real_BL = jnp.arange(L)[None] < jnp.array([[16], [3], [0]]) if padded else None
  assert_close(*(value_and_grad_of(cfg, params, x_BLD, real_BL) for cfg in cfgs))


def test_dropless_runs_can_be_stacked():
  cfg = cfg_of(dispatch="dropless")
  _, _, params, x_BLD = layer(dispatch="dropless")
  stack = lambda tree: jax.tree.map(lambda a: jnp.stack([a, 1.1 * a]), tree)
  found = jax.vmap(lambda p, x: value_and_grad_of(cfg, p, x))(stack(params), stack(x_BLD))
  again = jax.tree.map(lambda a: 1.1 * a, (params, x_BLD))
  assert_close(jax.tree.map(lambda a: a[0], found), value_and_grad_of(cfg, params, x_BLD))
  assert_close(jax.tree.map(lambda a: a[1], found), value_and_grad_of(cfg, *again))


@pytest.mark.parametrize("sizes", [(2, 2, 1, 1, 2), (1, 1, 1, 4, 2)], ids=str)
def test_dropless_on_eight_devices_agrees_with_one(sizes):
  cfg = cfg_of(dispatch="dropless", bias=True, shared_experts=1)
  _, _, params, x_BLD = layer(dispatch="dropless", bias=True, shared_experts=1, batch=4)
  real_BL = jnp.arange(L)[None] < jnp.array([[16], [3], [0], [9]])
  expected = value_and_grad_of(cfg, params, x_BLD, real_BL)
  mesh = sharding.make_mesh(MeshConfig(*sizes))
  with sharding.use_mesh(mesh):
    found = value_and_grad_of(cfg, params, x_BLD, real_BL)
  assert_close(found, expected)


def test_dropless_experts_are_not_split_over_devices():
  cfg = cfg_of(dispatch="dropless")
  _, _, params, x_BLD = layer(dispatch="dropless", batch=4)
  with (
    sharding.use_mesh(sharding.make_mesh(MeshConfig(2, 1, 4, 1, 1))),
    pytest.raises(ConfigError) as error,
  ):
    Experts(cfg).apply({"params": params}, x_BLD, True)
  assert str(error.value) == (
    "mesh.expert=4: model.dispatch=dropless does not split experts over devices; use mesh.expert=1 "
    "or model.dispatch=capacity"
  )


# --- DeepSeek-V3 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"capacity_factor": None}, {"dispatch": "dropless"}], ids=str)
def test_agrees_with_an_independent_deepseek_v3(changes):
  transformers = pytest.importorskip("transformers")
  torch = pytest.importorskip("torch")
  from transformers.models.deepseek_v3 import modeling_deepseek_v3 as deepseek

  theirs = deepseek.DeepseekV3MoE(
    transformers.DeepseekV3Config(
      hidden_size=D, moe_intermediate_size=24, n_routed_experts=E, num_experts_per_tok=K,
      n_shared_experts=2, n_group=1, topk_group=1, routed_scaling_factor=1.0, norm_topk_prob=True,
    )
  ).eval()  # fmt: skip
  cfg = cfg_of(router="sigmoid", shared_experts=2, **changes)
  _, _, params, x_BLD = layer(shared_experts=2)
  bias_E = jnp.array([0.3, -0.2, 0.0, -0.4])
  kernel = lambda *path: np.asarray(functools.reduce(lambda p, k: p[k], path, params)["kernel"])
  flip = lambda a: np.moveaxis(a, -1, -2).copy()
  both = np.concatenate([kernel("gate"), kernel("up")], axis=2)
  state = {
    "gate.weight": flip(kernel("router")), "gate.e_score_correction_bias": np.asarray(bias_E),
    "experts.gate_up_proj": flip(both), "experts.down_proj": flip(kernel("down")),
  } | {
    f"shared_experts.{name}_proj.weight": flip(kernel("shared", name))
    for name in ("gate", "up", "down")
  }  # fmt: skip
  theirs.load_state_dict({name: torch.tensor(np.array(value)) for name, value in state.items()})
  with torch.no_grad():
    expected = theirs(torch.tensor(np.asarray(x_BLD))).numpy()
  run = lambda routing: Experts(cfg).apply({"params": params} | routing, x_BLD, True)
  np.testing.assert_allclose(run({ROUTING: {"bias": bias_E}}), expected, atol=1e-5)
  assert np.abs(run({}) - expected).max() > 1e-2  # the bias does choose


def test_the_bias_is_one_step_towards_an_even_load():
  bias = update_bias(jnp.zeros((2, 3)), jnp.array([[5.0, 1.0, 3.0], [2.0, 2.0, 2.0]]), 0.5)
  np.testing.assert_array_equal(bias, [[-0.5, 0.5, 0.0], [0, 0, 0]])


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
def test_the_bias_evens_the_load_of_an_uneven_router(router):
  cfg = cfg_of(router=router)
  _, _, params, x_BLD = layer(batch=8)
  x_BLD = x_BLD.at[:, :, 0].set(1.0)
  params["router"]["kernel"] = (
    params["router"]["kernel"].at[0].set(jnp.array([2.0, 1.0, 0.0, -1.0]))
  )

  @jit
  def load_of(bias_E):
    given = {"params": params, ROUTING: {"bias": bias_E}}
    return Experts(cfg).apply(given, x_BLD, True, mutable=[ROUTING])[1][ROUTING]["load"]

  bias_E = jnp.zeros(E)
  loads = [load_of(bias_E)]
  for step in range(100):
    bias_E = update_bias(bias_E, loads[-1], 0.03 if step < 50 else 0.002)
    loads.append(load_of(bias_E))
  even = 8 * L * K / E
  assert all(float(load.sum()) == 8 * L * K for load in loads)
  worst = lambda load: np.abs(load - even).max() / even
  assert worst(loads[0]) > 0.5 > 0.1 > worst(loads[-1])


@pytest.mark.parametrize("scan_layers", [True, False])
def test_each_layer_of_a_decoder_has_a_bias_and_a_load_of_its_own(scan_layers):
  model = make_model(cfg_of(scan_layers=scan_layers, experts_per_token=1))
  params = jit(lambda key: init_params(model, key))(jax.random.key(0))
  tokens_BL = np.random.default_rng(0).integers(0, 264, (2, L)).astype(np.int32)
  segments_BL = np.array([[1] * L, [1] * 4 + [0] * (L - 4)], np.int32)
  biases = 10.0 * jnp.eye(E)[:2]  # all tokens of layer i go to expert i
  given = {"blocks": {"mlp": {"bias": biases}}}
  if not scan_layers:
    given = {f"block_{i}": {"mlp": {"bias": biases[i]}} for i in range(2)}
  run = lambda p: model.apply(p, tokens_BL, None, segments_BL, mutable=[ROUTING])[1][ROUTING]
  found = jit(run)({"params": params, ROUTING: given})
  if scan_layers:
    loads = found["blocks"]["mlp"]["load"]
  else:
    loads = np.stack([found[f"block_{i}"]["mlp"]["load"] for i in range(2)])
  np.testing.assert_array_equal(loads, (L + 4) * np.eye(E)[:2])


def test_mixtral_has_the_published_size():
  cfg = resolve(load_config("configs/mixtral.py:8x7b", {"data.tokenizer": "byte"}), 257, 1).model
  counts = param_counts(cfg)
  assert counts.total == 46_702_792_704
  assert counts.active == pytest.approx(12.9e9, rel=0.003)  # the paper's "12.9B active"


def test_agrees_with_an_independent_mixtral():
  transformers = pytest.importorskip("transformers")
  torch = pytest.importorskip("torch")
  cfg = cfg_of(capacity_factor=None)
  theirs = transformers.MixtralForCausalLM(
    transformers.MixtralConfig(
      vocab_size=264, hidden_size=D, intermediate_size=24, num_hidden_layers=2,
      num_attention_heads=4, num_key_value_heads=2, num_local_experts=E, num_experts_per_tok=K,
      max_position_embeddings=L, rope_theta=cfg.rope_theta, rms_norm_eps=cfg.norm_eps,
      sliding_window=None, bos_token_id=0, eos_token_id=0,
    )
  ).eval()  # fmt: skip
  model = make_model(cfg)
  params = jax.jit(lambda key: init_params(model, key, 1.5))(jax.random.key(0))
  blocks = params["blocks"]
  named = {
    "model.embed_tokens.weight": params["embed"]["embedding"],
    "model.norm.weight": params["final_norm"]["scale"],
    "lm_head.weight": params["head"]["kernel"].T,
  }
  for i in range(2):
    at, mlp = f"model.layers.{i}.", blocks["mlp"]
    for ours, name in {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "o_proj"}.items():
      named[f"{at}self_attn.{name}.weight"] = blocks["attn"][ours]["kernel"][i].T
    named[f"{at}input_layernorm.weight"] = blocks["attn_norm"]["scale"][i]
    named[f"{at}post_attention_layernorm.weight"] = blocks["mlp_norm"]["scale"][i]
    kernel = lambda name, i=i, mlp=mlp: np.asarray(mlp[name]["kernel"][i])
    named[f"{at}mlp.gate.weight"] = named[f"{at}block_sparse_moe.gate.weight"] = kernel("router").T
    both = np.concatenate([kernel("gate"), kernel("up")], axis=2).transpose(0, 2, 1)
    named[f"{at}mlp.experts.gate_up_proj"] = both
    named[f"{at}mlp.experts.down_proj"] = kernel("down").transpose(0, 2, 1)
    for e in range(E):
      for ours, name in {"gate": "w1", "down": "w2", "up": "w3"}.items():
        named[f"{at}block_sparse_moe.experts.{e}.{name}.weight"] = kernel(ours)[e].T
  state = {  # releases of the library differ in the names of the experts' weights
    name: torch.tensor(np.array(named[name])) for name in theirs.state_dict()
  }
  theirs.load_state_dict(state)
  tokens_BL = np.random.default_rng(0).integers(0, 264, (2, L))
  with torch.no_grad():
    expected = theirs(torch.tensor(tokens_BL)).logits.numpy()
  found = jax.jit(model.apply)({"params": params}, tokens_BL.astype(np.int32))
  np.testing.assert_allclose(found, expected, atol=2e-5)


def test_decoding_with_a_cache_equals_the_full_pass():
  cfg = cfg_of()
  model = make_model(cfg)
  params = jax.jit(lambda key: init_params(model, key))(jax.random.key(0))
  tokens_BL = np.random.default_rng(0).integers(0, 264, (2, L)).astype(np.int32)
  full_BLV = jax.jit(model.apply)({"params": params}, tokens_BL)
  decode = jax.jit(functools.partial(model.apply, method="decode"))
  cache, parts = init_cache(cfg, 2, L), []
  for start, end in [(0, 7), (7, 8), (8, L)]:
    part, cache = decode({"params": params}, tokens_BL[:, start:end], cache)
    parts.append(part)
  np.testing.assert_allclose(np.concatenate(parts, axis=1), full_BLV, atol=1e-5)
