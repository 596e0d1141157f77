"""The decoder's invariants, its equivalences, and its agreement with closed forms."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.config.schema import neutral_values
from lm.devices import sharding
from lm.models.attention import forms as attention
from lm.models.parameterization import TABLE
from lm.models.registry import make_model
from lm.models.transformer_config import PlainLayers, TransformerConfig
from lm.models.transformer_counts import decoder_weights
from lm.models.trees import init_params, param_axes, param_kinds
from tests.equalities import shapes_of

TINY = TransformerConfig(
  **neutral_values(TransformerConfig)
  | dict(
    experts=None,
    experts_per_token=2,
    capacity_factor=None,
    shared_experts=0,
    router="softmax",
    dispatch="capacity",
    matmul="dtype",
    remat_keep=("attention",),
    family="decoder",
    seq_len=12,
    width=16,
    depth=2,
    heads=4,
    kv_heads=2,
    head_dim=4,
    mlp_dim=24,
    vocab_size=29,
    positions="rope",
    rope_theta=100.0,
    norm="rmsnorm",
    norm_position="pre",
    norm_eps=1e-5,
    activation="swiglu",
    bias=False,
    qk_norm=False,
    window=None,
    attention_softcap=None,
    logit_softcap=None,
    tied_embeddings=True,
    dropout=0.0,
    init="fan_in",
    parameterization="standard",
    base_width=16,
    base_head_dim=4,
    dtype="float32",
    scan_layers=True,
    remat="none",
    attention="auto",
  )
)
POSITIONS = ("rope", "learned", "sinusoidal", "alibi", "none")
GPT2_LIKE = {
  "positions": "learned",
  "norm": "layernorm",
  "activation": "gelu",
  "bias": True,
  "init": "gpt2",
}
VARIANTS = {
  **{positions: {"positions": positions} for positions in POSITIONS},
  "gpt2": GPT2_LIKE,
  "post": {"norm_position": "post", "norm": "layernorm", "bias": True, "activation": "relu"},
  "window": {"window": 4},
  "window_alibi": {"window": 4, "positions": "alibi"},
  "softcaps": {"attention_softcap": 2.0, "logit_softcap": 3.0, "qk_norm": True},
  "untied_multi_query": {"tied_embeddings": False, "kv_heads": 1, "activation": "geglu"},
}


def change(cfg=TINY, **fields):
  return dataclasses.replace(cfg, **fields)


# Tests compile a lot and run little.
jit = functools.partial(
  jax.jit,
  compiler_options={"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True},
)


def make(cfg):
  """The model and parameters, none of them at its initial zero or one."""
  model = make_model(cfg)
  shapes = shapes_of(cfg)
  rng = np.random.default_rng(0)

  def draw(path, shape):
    mean = float(path[-1].key == "scale")
    std = 0.1 if path[-1].key in ("scale", "bias") else 0.3
    return mean + std * rng.standard_normal(shape.shape, np.float32)

  return model, jax.tree_util.tree_map_with_path(draw, shapes)


@functools.partial(jit, static_argnums=0)
def init(model, seed=0, init_scale=1.0):
  return init_params(model, jax.random.key(seed), init_scale)


@functools.partial(jit, static_argnums=0)
def apply(model, params, tokens_BL, positions_BL=None, segments_BL=None):
  return model.apply({"params": params}, tokens_BL, positions_BL, segments_BL)


@functools.partial(jit, static_argnums=0)
def value_and_grad(model, params, tokens_BL):
  return jax.value_and_grad(functools.partial(loss_of, model))(params, tokens_BL)


def tokens_of(cfg=TINY, batch=2, length=None, seed=0):
  shape = (batch, length or cfg.seq_len)
  return np.random.default_rng(seed).integers(0, cfg.vocab_size, shape, np.int32)


def loss_of(model, params, tokens_BL, **kwargs):
  """A scalar that every logit matters for."""
  logits_BLV = model.apply({"params": params}, tokens_BL, **kwargs)
  weights = np.random.default_rng(1).standard_normal(logits_BLV.shape, np.float32)
  return jnp.sum(logits_BLV * weights) / logits_BLV.size**0.5


def grad_by_embedded(cfg, position, segments_BL=None):
  """Gradient of the logits at `position` by each token's input vector: float32 [B, L, D]."""
  model, params = make(cfg)
  tokens_BL = tokens_of(cfg)

  @jit
  def grads(x_BLD):
    def total(x_BLD):
      intercept = lambda next_fun, args, kwargs, context: (
        x_BLD
        if context.module.name == "embed" and context.method_name == "__call__"
        else next_fun(*args, **kwargs)
      )
      with nn.intercept_methods(intercept):
        logits_BLV = model.apply({"params": params}, tokens_BL, None, segments_BL)
      return jnp.sum(jnp.square(logits_BLV[:, position]))

    return jax.grad(total)(x_BLD)

  return np.asarray(grads(params["embed"]["embedding"][tokens_BL]))


def assert_trees_close(a, b, rtol=1e-5, atol=1e-5):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "softcaps", "untied_multi_query"])
def test_every_axis_of_every_parameter_has_a_logical_name(name, scan):
  model = make_model(change(**VARIANTS[name], scan_layers=scan))
  params = shapes_of(model.cfg)
  axes = param_axes(model)
  is_names = lambda x: isinstance(x, tuple)
  assert jax.tree.structure(params) == jax.tree.structure(axes, is_leaf=is_names)
  known = set(sharding.PARAM_RULES)
  for (_, p), names in zip(
    jax.tree_util.tree_leaves_with_path(params),
    jax.tree.leaves(axes, is_leaf=is_names),
    strict=True,
  ):
    assert len(names) == p.ndim and set(names) <= known
    assert (names[0] == "layers") == (scan and p.shape[0] == model.cfg.depth and p.ndim > 1)
    assert p.dtype == jnp.float32


def test_gpt2_has_its_published_number_of_parameters():
  cfg = change(
    **GPT2_LIKE, seq_len=1024, width=768, depth=12, heads=12, kv_heads=12, head_dim=64,
    mlp_dim=3072, vocab_size=50_257,
  )  # fmt: skip
  params = shapes_of(cfg)
  assert sum(math.prod(p.shape) for p in jax.tree.leaves(params)) == 124_439_808


def test_kinds_of_parameters():
  cfg = change(**GPT2_LIKE, tied_embeddings=False)
  _, params = make(cfg)
  kinds = param_kinds(params, decoder_weights(cfg))
  assert kinds["embed"]["embedding"] == kinds["position_embed"]["embedding"] == "embed"
  assert kinds["head"]["kernel"] == "readout"
  assert kinds["blocks"]["attn"]["q"] == {"kernel": "hidden", "bias": "vector"}
  assert kinds["final_norm"] == {"scale": "vector", "bias": "vector"}
  assert set(jax.tree.leaves(kinds)) == set(TABLE["mup"]) - {"attention"}


def test_init_scale_multiplies_matrices_only():
  model = make_model(change(**GPT2_LIKE))
  one, two = init(model), init(model, init_scale=2.0)
  q = lambda params: params["blocks"]["attn"]["q"]["kernel"]
  np.testing.assert_array_equal(q(two), 2.0 * q(one))
  np.testing.assert_array_equal(two["final_norm"]["scale"], one["final_norm"]["scale"])


@functools.cache
def initial(cfg):
  return init(make_model(cfg))


def spread(cfg, *path):
  return float(functools.reduce(lambda tree, key: tree[key], path, initial(cfg)).std())


@pytest.mark.parametrize("width", [64, 256])
def test_initial_spread_is_as_documented(width):
  wide = change(width=width, base_width=64, mlp_dim=4 * width, vocab_size=2000)
  untied = change(wide, tied_embeddings=False)
  up = ("blocks", "mlp", "up", "kernel")
  down = ("blocks", "mlp", "down", "kernel")
  embed, head = ("embed", "embedding"), ("head", "kernel")
  near = functools.partial(pytest.approx, rel=0.03)
  ratio = width / 64

  assert (spread(wide, *up), spread(wide, *embed)) == (near(width**-0.5), near(width**-0.5))
  assert spread(wide, *down) == near((4 * width) ** -0.5 / math.sqrt(2 * wide.depth))
  assert (spread(untied, *embed), spread(untied, *head)) == (near(1), near(width**-0.5))
  mup = change(untied, parameterization="mup")
  assert (spread(mup, *embed), spread(mup, *head)) == (near(1), near(64**-0.5))
  assert spread(mup, *up) == near(width**-0.5)
  deep = change(untied, parameterization="completep", base_depth=1)
  assert spread(deep, *down) == near((4 * width) ** -0.5 / math.sqrt(2))

  gpt2 = change(wide, init="gpt2")
  assert (spread(gpt2, *up), spread(gpt2, *embed)) == (near(0.02), near(0.02))
  assert spread(gpt2, *down) == near(0.02 / math.sqrt(2 * wide.depth))
  mup = change(untied, parameterization="mup", init="gpt2")
  assert spread(mup, *up) == near(0.02 * ratio**-0.5)
  assert (spread(mup, *embed), spread(mup, *head)) == (near(0.02), near(0.02))


@pytest.mark.parametrize("fields", [{}, GPT2_LIKE, dict(tied_embeddings=False)])
def test_loss_at_initialisation_is_near_that_of_a_uniform_guess(fields):
  cfg = change(**fields, width=128, head_dim=32, vocab_size=2048, base_width=128, mlp_dim=512)
  model = make_model(cfg)
  params = init(model)
  tokens_BL, targets_BL = tokens_of(cfg, batch=32), tokens_of(cfg, batch=32, seed=1)
  log_p_BLV = np.asarray(jax.nn.log_softmax(apply(model, params, tokens_BL)))
  loss = -np.take_along_axis(log_p_BLV, targets_BL[..., None], -1).mean()
  variance = 128 * 0.02**2 if cfg.init == "gpt2" else 1
  assert loss == pytest.approx(math.log(2048) + variance / 2, abs=0.1)


def test_parameterizations_agree_at_the_base_width_and_part_above_it():
  for base_width, same in ((16, True), (8, False)):
    standard = change(base_width=base_width, tied_embeddings=False)
    outs = []
    for cfg in (standard, change(standard, parameterization="mup")):
      model = make_model(cfg)
      params = init(model)
      outs.append(np.asarray(apply(model, params, tokens_of())))
    assert np.array_equal(*outs) == same


def test_mup_divides_logits_and_scores_of_wider_models():
  tokens_BL = tokens_of()
  for tied in (True, False):
    model, params = make(change(tied_embeddings=tied))
    wide = make_model(change(model.cfg, parameterization="mup", base_width=8))
    np.testing.assert_allclose(
      apply(wide, params, tokens_BL), apply(model, params, tokens_BL) / 2, rtol=1e-6
    )
  assert attention.score_scale(TINY) == 1 / 2
  assert attention.score_scale(change(base_head_dim=1, parameterization="mup")) == 1 / 4


@pytest.mark.parametrize(("name", "factor", "fields"), [
  ("completep", 2, {}), ("completep", 2, {"norm_position": "sandwich"}),
  ("completep", 2, {"residual": "rezero"}), ("umup", 2**0.5, {}),
])  # fmt: skip
def test_what_a_branch_adds_is_divided_by_depth_or_its_root(name, factor, fields):
  """The same as dividing each branch's last weights: its matrices and biases, or the norm after it."""
  model, params = make(change(bias=True, **fields))
  last = {"sandwich": ("attn_post_norm", "mlp_post_norm"), "pre": ("out", "down")}[
    model.cfg.norm_position
  ]
  of_last = lambda path: any(part.key in last for part in path)
  divided = jax.tree_util.tree_map_with_path(lambda p, x: x / factor if of_last(p) else x, params)
  base = change(model.cfg, base_depth=model.cfg.depth // 2, base_width=model.cfg.width)
  deep = make_model(change(base, parameterization=name))
  tokens_BL = tokens_of()
  wanted = apply(model, divided, tokens_BL)
  np.testing.assert_allclose(apply(deep, params, tokens_BL), wanted, rtol=2e-5, atol=1e-5)
  assert np.abs(wanted - apply(model, params, tokens_BL)).max() > 0.01


# --- what a position sees -------------------------------------------------------------------------


@pytest.mark.parametrize(
  "name, form",
  [("rope", "auto"), ("rope", "einsum"), ("rope", "xla"), ("alibi", "auto"), ("post", "auto")],
)
def test_future_tokens_get_exactly_zero_gradient(name, form):
  grad_BLD = grad_by_embedded(change(**VARIANTS[name], attention=form), position=5)
  assert (grad_BLD[:, 6:] == 0).all()
  assert (np.abs(grad_BLD[:, 3:6]).max(axis=-1) > 0).all()


def test_a_window_is_exact():
  grad_BLD = grad_by_embedded(change(window=4, depth=1), position=9)
  seen = np.abs(grad_BLD).max(axis=-1) > 0
  assert (seen == (np.isin(np.arange(12), [6, 7, 8, 9]))).all()


def test_documents_get_exactly_zero_gradient_from_each_other():
  segments_BL = np.array([[1] * 5 + [2] * 7, [1] * 8 + [2] * 2 + [0] * 2], np.int32)
  grad_BLD = grad_by_embedded(TINY, position=9, segments_BL=segments_BL)
  seen = np.abs(grad_BLD).max(axis=-1) > 0
  assert (seen[0] == ((np.arange(12) >= 5) & (np.arange(12) <= 9))).all()
  assert (seen[1] == np.isin(np.arange(12), [8, 9])).all()


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_packed_document_reads_as_if_alone(positions):
  model, params = make(change(positions=positions))
  tokens_BL = tokens_of()
  segments_BL = np.array([[1] * 5 + [2] * 7] * 2, np.int32)
  positions_BL = np.array([[*range(5), *range(7)]] * 2, np.int32)
  packed = apply(model, params, tokens_BL, positions_BL, segments_BL)
  whole = apply(model, params, tokens_BL)
  assert np.abs(packed - whole).max() > 1e-3  # otherwise the masks do nothing
  np.testing.assert_allclose(packed[:, 5:], apply(model, params, tokens_BL[:, 5:]), atol=1e-5)


def test_rotary_scores_depend_on_distance_alone():
  model, params = make(TINY)
  tokens_BL, base_BL = tokens_of(), np.tile(np.arange(12, dtype=np.int32), (2, 1))
  start, later, stretched = (
    apply(model, params, tokens_BL, positions_BL)
    for positions_BL in (base_BL, base_BL + 7, 2 * base_BL)
  )
  np.testing.assert_allclose(start, later, atol=1e-4)
  assert np.abs(start - stretched).max() > 1e-2


# --- attention ------------------------------------------------------------------------------------


def attention_case(dtype="float32", length=150, **fields):
  cfg = change(**fields, dtype=dtype, head_dim=8, heads=6, kv_heads=2)
  rng = np.random.default_rng(0)
  draw = lambda heads: jnp.asarray(rng.standard_normal((2, length, heads, 8)), dtype)
  return cfg, (draw(6), draw(2), draw(2))


@pytest.mark.parametrize("segmented", [False, True])
@pytest.mark.parametrize(
  "fields",
  [
    {},
    {"window": 70, "positions": "alibi"},
    {"attention_softcap": 2.0},
    {"window": 3, "attention_softcap": 2.0},
  ],
)
def test_forms_of_attention_agree(fields, segmented):
  cfg, qkv = attention_case(**fields)
  ids = np.sort(np.random.default_rng(1).integers(1, 4, (2, 150)), axis=1).astype(np.int32)
  segments_BL = ids if segmented else None
  weights = np.random.default_rng(2).standard_normal(qkv[0].shape, np.float32)

  @functools.partial(jit, static_argnums=0)
  def run(form, qkv):
    def total(qkv):
      out = attention.attend(*qkv, change(cfg, attention=form), segments_BL)
      return jnp.sum(out * weights), out

    (_, out), grads = jax.value_and_grad(total, has_aux=True)(qkv)
    return out, grads

  assert attention.choose_form(cfg) == "chunked"  # otherwise "auto" is one of the others here
  reference = run("einsum", qkv)
  for form in ("auto",) if cfg.attention_softcap else ("auto", "xla"):
    assert_trees_close(run(form, qkv), reference)


def test_chunked_attention_in_bfloat16_is_as_close_to_float32_as_the_reference():
  cfg, qkv = attention_case()
  exact = attention.attend(*qkv, cfg)
  half = tuple(x.astype(jnp.bfloat16) for x in qkv)
  for form in ("auto", "einsum"):
    out = attention.attend(*half, change(cfg, dtype="bfloat16", attention=form))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.03)


@pytest.mark.parametrize("fields", [
  {}, {"window": 40}, {"attention_softcap": 5.0}, {"kv_heads": 1},
], ids=str)  # fmt: skip
def test_the_kernel_for_tpus_agrees_with_the_reference(fields):
  """Interpreted, as there is no TPU here."""
  shape = {
    "width": 256,
    "heads": 2,
    "head_dim": 128,
    "kv_heads": 2,
    "seq_len": 128,
    "base_head_dim": 128,
  }
  cfg = change(**shape | fields)
  rng = np.random.default_rng(0)
  draw = lambda n: rng.standard_normal((2, 128, n, 128), np.float32)
  qkv = draw(2), draw(cfg.kv_heads), draw(cfg.kv_heads)
  segments_BL = np.sort(rng.integers(1, 4, (2, 128)), axis=1).astype(np.int32)

  def run(form):
    total = lambda qkv: (
      attention.attend(*qkv, change(cfg, attention=form), segments_BL) ** 2
    ).sum()
    return jax.value_and_grad(total)(qkv)

  assert_trees_close(run("splash"), run("einsum"), 1e-4, 1e-4)
  with pytest.raises(
    ConfigError, match=r"model.attention=splash: has no alibi and needs model.seq_len=100 in"
  ):
    attention.choose_form(change(cfg, attention="splash", seq_len=100))


def test_chunked_attention_keeps_no_scores_for_the_backward_pass():
  cfg, qkv = attention_case(length=512)

  def kept(form):
    run = lambda qkv: attention.attend(*qkv, change(cfg, attention=form))
    backward = jax.eval_shape(lambda qkv: jax.vjp(run, qkv)[1], qkv)
    return max(leaf.size for leaf in jax.tree.leaves(backward))

  assert kept("auto") <= 2 * 512 * 6 * 8
  assert kept("einsum") >= 2 * 6 * 512 * 512


def test_grouped_queries_are_heads_with_repeated_keys_and_values():
  grouped, params = make(change(bias=True))
  full = make_model(change(bias=True, kv_heads=4))

  def repeat(p):
    by_head = p.reshape(*p.shape[:-1], 2, 4)
    return jnp.repeat(by_head, 2, axis=-2).reshape(*p.shape[:-1], 16)

  attn = params["blocks"]["attn"]
  wide = attn | {name: jax.tree.map(repeat, attn[name]) for name in "kv"}
  wide_params = params | {"blocks": params["blocks"] | {"attn": wide}}
  np.testing.assert_allclose(
    apply(full, wide_params, tokens_of()),
    apply(grouped, params, tokens_of()),
    atol=1e-5,
  )


def test_query_key_norm_makes_scores_blind_to_the_scale_of_queries():
  for qk_norm, same in ((True, True), (False, False)):
    model, params = make(change(qk_norm=qk_norm, norm_eps=1e-12))
    scaled = jax.tree_util.tree_map_with_path(
      lambda path, p: 3.0 * p if path[-2].key == "q" else p, params
    )
    outs = [apply(model, p, tokens_of()) for p in (params, scaled)]
    assert np.allclose(*outs, atol=1e-4) == same


def test_alibi_slopes():
  np.testing.assert_allclose(attention.alibi_slopes(8), 0.5 ** np.arange(1, 9))
  np.testing.assert_allclose(attention.alibi_slopes(3), [2**-4, 2**-8, 2**-2])
  assert len(attention.alibi_slopes(12)) == 12


# --- pieces ---------------------------------------------------------------------------------------


def test_dropout_acts_in_training_alone_and_is_drawn_anew_in_every_layer():
  model, params = make(change(dropout=0.5, depth=3))
  run = jit(
    lambda key: model.apply({"params": params}, tokens_of(), train=True, rngs={"dropout": key})
  )
  evaluated = apply(model, params, tokens_of())
  first, again, other = run(jax.random.key(0)), run(jax.random.key(0)), run(jax.random.key(1))
  np.testing.assert_array_equal(first, again)
  assert np.abs(first - other).max() > 0.1 and np.abs(first - evaluated).max() > 0.1

  _, kept = model.apply(
    {"params": params}, tokens_of(), train=True, rngs={"dropout": jax.random.key(0)},
    capture_intermediates=lambda module, _: module.name == "mlp_dropout", mutable="intermediates",
  )  # fmt: skip
  dropped = kept["intermediates"]["blocks"]["mlp_dropout"]["__call__"][0] == 0
  assert not np.array_equal(dropped[0], dropped[1])
  assert np.mean(dropped) == pytest.approx(0.5, abs=0.05)


def test_tokens_beyond_the_vocabulary_do_not_pass_for_others():
  model, params = make(TINY)
  tokens_BL = tokens_of()
  tokens_BL[0, 0] = 29
  assert np.isnan(apply(model, params, tokens_BL)).any()


@pytest.mark.parametrize(
  "fields, words",
  [
    (
      {"attention": "xla", "attention_softcap": 2.0},
      "model.attention=xla: has no model.attention_softcap; use auto or einsum",
    ),
    (
      {"attention": "cudnn", "dtype": "bfloat16"},
      "model.attention=cudnn: needs an NVIDIA GPU and model.dtype=bfloat16, not cpu and bfloat16; "
      "use auto",
    ),
  ],
)
def test_what_attention_lacks_is_said(fields, words):
  with pytest.raises(ConfigError) as error:
    make_model(change(**fields))
  assert str(error.value) == words


def test_rows_longer_than_the_position_table_are_refused():
  model, params = make(change(positions="learned"))
  with pytest.raises(ConfigError, match=r"model\.seq_len=12: learned positions end there"):
    model.apply({"params": params}, tokens_of(length=13))


def test_what_other_families_leave_out_is_neutral():
  neutral = neutral_values(TransformerConfig)
  plain = {k: v for k, v in vars(PlainLayers).items() if not k.startswith("__")}
  assert {
    "bias_on",
    "norm_offset",
    "matmul",
    "low_rank",
    "lora_rank",
  } == plain.keys() & neutral.keys()
  assert all(value == neutral.get(key) for key, value in plain.items())
