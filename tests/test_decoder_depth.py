"""Ways to stack a decoder's blocks: ReZero's scalars and one block for all layers, by closed forms."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.models.decoder import DECODER, init_cache
from lm.models.registry import make_model
from lm.models.transformer_config import check_fields
from lm.models.trees import init_params
from tests.equalities import shapes_of
from tests.test_models import change, make

TOKENS_BL = jnp.asarray(np.random.default_rng(1).integers(0, 29, (2, 9)))


def test_rezero_without_norms_starts_as_the_identity():
  cfg = change(residual="rezero", norm_position="none")
  model = make_model(cfg)
  params = init_params(model, jax.random.key(0))
  table_VD = params["embed"]["embedding"]
  logits_BLV = model.apply({"params": params}, TOKENS_BL)
  np.testing.assert_allclose(logits_BLV, table_VD[TOKENS_BL] @ table_VD.T, atol=1e-5)


def test_rezero_with_alpha_of_one_is_the_serial_residual():
  cfg = change(residual="rezero", norm_position="pre")
  model, params = make(cfg)
  params["blocks"]["alpha"] = np.ones_like(params["blocks"]["alpha"])
  serial = {**params, "blocks": {k: v for k, v in params["blocks"].items() if k != "alpha"}}
  theirs = make_model(change()).apply({"params": serial}, TOKENS_BL)
  np.testing.assert_allclose(model.apply({"params": params}, TOKENS_BL), theirs, atol=1e-5)


def _repeated(shared, depth):
  blocks = jax.tree.map(lambda p: jnp.stack([p] * depth), shared["blocks"])
  return {**shared, "blocks": blocks}


def test_shared_layers_equal_layers_of_equal_weights_and_sum_their_gradients():
  cfg = change(share_layers=True, depth=3, norm_position="post", norm="layernorm")
  model, params = make(cfg)
  apart = make_model(dataclasses.replace(cfg, share_layers=False))

  def loss(params, module):
    logits_BLV = module.apply({"params": params}, TOKENS_BL)
    return jax.nn.log_softmax(logits_BLV)[..., 3].mean()

  ours, grads = jax.value_and_grad(loss)(params, model)
  theirs, each = jax.value_and_grad(loss)(_repeated(params, 3), apart)
  np.testing.assert_allclose(ours, theirs, rtol=1e-6)
  summed = {**each, "blocks": jax.tree.map(lambda g: g.sum(axis=0), each["blocks"])}
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), grads, summed)


def test_shared_layers_decode_from_a_cache_and_cost_what_separate_ones_cost():
  cfg = change(share_layers=True, depth=3)
  model, params = make(cfg)
  full_BLV = model.apply({"params": params}, TOKENS_BL)
  cached_BLV, _ = model.apply({"params": params}, TOKENS_BL, init_cache(cfg, 2, 9), method="decode")
  np.testing.assert_allclose(cached_BLV, full_BLV, atol=1e-5)
  apart = dataclasses.replace(cfg, share_layers=False)
  flops = DECODER.exact_flops
  assert flops(cfg, causal=False) == flops(apart, causal=False)
  of_blocks = lambda cfg: sum(w.size for w in DECODER.weights(cfg) if w.name.startswith("blocks"))
  assert 3 * of_blocks(cfg) == of_blocks(apart)


def test_every_weight_is_counted():
  for fields in ({"residual": "rezero"}, {"norm_position": "none"}, {"share_layers": True}):
    cfg = change(**fields)
    leaves = jax.tree.leaves(shapes_of(cfg))
    assert sum(leaf.size for leaf in leaves) == sum(w.size for w in DECODER.weights(cfg)), fields


@pytest.mark.parametrize("fields", [{"scan_layers": False}, {"experts": 4}])
def test_shared_layers_need_a_loop_without_experts(fields):
  with pytest.raises(ConfigError, match=r"model.share_layers=True: one block serves"):
    check_fields(change(share_layers=True, **fields))
