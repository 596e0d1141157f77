"""The same model in another form: layers in a loop or written out, recomputed, decoded, stacked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.schema import MeshConfig
from lm.devices import sharding
from lm.models import layers
from lm.models.decoder import init_cache
from lm.models.registry import make_model
from lm.models.trees import param_axes, stack_layers, unstack_layers
from tests.test_models import (
  TINY,
  VARIANTS,
  apply,
  assert_trees_close,
  change,
  init,
  jit,
  loss_of,
  make,
  tokens_of,
  value_and_grad,
)


@functools.partial(jit, static_argnums=0)
def decode(model, params, tokens_BL, cache):
  return model.apply({"params": params}, tokens_BL, cache, method="decode")


@pytest.mark.parametrize("at_length", [0, 8])
@pytest.mark.parametrize("name", ["gpt2", "softcaps"])
def test_scanned_layers_are_unrolled_layers(name, at_length, monkeypatch):
  monkeypatch.setattr(layers, "AT_LENGTH", at_length)
  scanned, params = make(change(**VARIANTS[name]))
  unrolled = make_model(change(**VARIANTS[name], scan_layers=False))
  layout = init(unrolled)
  assert "block_0" in layout and "blocks" not in layout
  assert_trees_close(stack_layers(layout), init(scanned), 0, 0)

  tokens_BL = tokens_of()
  expected = value_and_grad(scanned, params, tokens_BL)
  loss, grads = value_and_grad(unrolled, unstack_layers(params), tokens_BL)
  assert_trees_close((loss, stack_layers(grads)), expected)


@pytest.mark.parametrize(
  ("depth", "remat", "loops"), [(8, "none", 0), (9, "none", 2), (2, "full", 2)]
)
def test_few_layers_are_written_out_on_one_cpu(depth, remat, loops):
  cfg = change(depth=depth, remat=remat, width=16, vocab_size=16)
  model, params = make(cfg)
  grad = jax.grad(functools.partial(loss_of, model, tokens_BL=tokens_of(cfg)))
  text = jax.jit(grad).lower(params).as_text()
  assert text.count("stablehlo.while") == loops


def test_layouts_convert_with_more_than_ten_layers():
  _, params = make(change(depth=12))
  unstacked = unstack_layers(params)
  q = lambda block: block["attn"]["q"]["kernel"]
  np.testing.assert_array_equal(q(unstacked["block_10"]), q(params["blocks"])[10])
  assert_trees_close(stack_layers(unstacked), params, 0, 0)


@pytest.mark.parametrize("scan", [True, False])
def test_remat_recomputes_but_does_not_change_gradients(scan):
  _, params = make(change(scan_layers=scan))
  tokens_BL, results, products = tokens_of(), {}, {}
  rngs = {"dropout": jax.random.key(3)}
  for remat in ("none", "dots", "names", "offload", "full"):
    model = make_model(change(scan_layers=scan, dropout=0.3, remat=remat))
    grad = jax.grad(functools.partial(loss_of, model, tokens_BL=tokens_BL, train=True, rngs=rngs))
    program = str(jax.make_jaxpr(grad)(params))
    products[remat] = program.count("dot_general[")
    if scan or remat in ("none", "full"):
      results[remat] = jit(grad)(params)
  assert products["none"] <= products["dots"] < products["names"] < products["full"]
  assert products["offload"] == products["dots"]
  for remat in results:
    assert_trees_close(results[remat], results["none"])


@pytest.mark.parametrize("name", list(VARIANTS))
def test_decoding_with_a_cache_equals_the_full_pass(name):
  model, params = make(change(**VARIANTS[name]))
  tokens_BL = tokens_of()
  full_BLV = apply(model, params, tokens_BL)
  cache = init_cache(model.cfg, batch=2, length=16)
  parts = []
  for start, end in [(0, 5), (5, 6), (6, 7), (7, 12)]:
    logits_BLV, cache = decode(model, params, tokens_BL[:, start:end], cache)
    parts.append(logits_BLV)
  assert int(cache.index) == 12
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), full_BLV, atol=1e-4)


@pytest.mark.parametrize("fields", [{"scan_layers": False}, {"positions": "learned", "window": 4}])
def test_prompts_of_different_lengths_decode_together(fields):
  model, params = make(change(**fields))
  tokens_BL, lengths = tokens_of(), np.array([3, 6], np.int32)
  full_BLV = apply(model, params, tokens_BL)
  empty = init_cache(model.cfg, batch=2, length=12)
  _, cache = decode(model, params, tokens_BL[:, :6], empty)
  cache = cache._replace(index=jnp.asarray(lengths))  # row 0's padding is written over
  for step in range(4):
    following = np.take_along_axis(tokens_BL, (lengths + step)[:, None], axis=1)
    logits_BLV, cache = decode(model, params, following, cache)
    np.testing.assert_allclose(logits_BLV[:, 0], full_BLV[[0, 1], lengths + step], atol=1e-4)


def test_logits_are_a_function_of_the_hidden_vectors_and_few_parameters():
  for tied in (True, False):
    model, params = make(change(tied_embeddings=tied, logit_softcap=3.0))
    tokens_BL = tokens_of()
    head = {name: params[name] for name in model.head_params}
    assert len(head) == 1

    @jit
    def from_hidden(params, head, model=model, tokens_BL=tokens_BL):
      x_BLD = model.apply({"params": params}, tokens_BL, method="hidden")
      return model.apply({"params": head}, x_BLD.reshape(-1, 16), method="logits")

    whole = apply(model, params, tokens_BL)
    flat = from_hidden(params, head)
    np.testing.assert_allclose(flat.reshape(whole.shape), whole, atol=1e-5)
    assert np.abs(whole).max() < 3.0


@pytest.mark.parametrize("name", ["gpt2", "rope", "post"])
def test_bfloat16_computes_nearly_the_same_with_float32_parameters(name):
  model, params = make(change(**VARIANTS[name]))
  half = make_model(change(**VARIANTS[name], dtype="bfloat16"))
  hidden = lambda params: half.apply({"params": params}, tokens_of(), method="hidden")
  exact, logits = apply(model, params, tokens_of()), apply(half, params, tokens_of())
  assert jax.eval_shape(hidden, params).dtype == jnp.bfloat16 and logits.dtype == jnp.float32
  error = np.abs(logits - exact).max() / np.abs(exact).max()
  assert 1e-5 < error < 0.05  # bfloat16 has 8 bits: 0.004 for each of a dozen roundings in a row
  grads = jax.eval_shape(jax.grad(functools.partial(loss_of, half)), params, tokens_of())
  assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_stacked_runs_agree_with_separate_ones():
  model = make_model(TINY)
  params = [init(model, seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *p: jnp.stack(p), *params)
  tokens_RBL = np.stack([tokens_of(seed=seed) for seed in range(3)])
  together = jit(jax.vmap(jax.value_and_grad(functools.partial(loss_of, model))))(
    stacked, tokens_RBL
  )
  for run in range(3):
    alone = value_and_grad(model, params[run], tokens_RBL[run])
    assert_trees_close(jax.tree.map(lambda x, run=run: x[run], together), alone)


@pytest.mark.parametrize(
  "mesh", [MeshConfig(2, 2, 1, 1, 2), MeshConfig(1, 2, 1, 4, 1), MeshConfig(1, 1, 1, 2, 4)]
)
def test_eight_devices_agree_with_one(mesh):
  cfg = change(kv_heads=1, vocab_size=32)  # fewer kv heads than devices along the tensor axis
  model, params = make(cfg)
  tokens_BL = tokens_of(cfg, batch=4)
  expected = value_and_grad(model, params, tokens_BL)
  devices = sharding.make_mesh(mesh)
  layout = sharding.param_shardings(devices, param_axes(model), params)
  with sharding.use_mesh(devices):
    sharded = jax.device_put(params, layout)
    rows = jax.device_put(tokens_BL, sharding.batch_sharding(devices))
    found = jit(jax.value_and_grad(functools.partial(loss_of, model)))(sharded, rows)
  assert len(found[1]["blocks"]["mlp"]["up"]["kernel"].sharding.device_set) == 8
  assert_trees_close(found, expected)
