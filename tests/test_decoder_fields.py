"""What other people's decoders add: norm placement, parallel branches, kinds of layers, rescaled rotations.

That each is right is checked in tests/test_hf.py against their own code; here, that every form of
the model agrees with the others, that all is counted, and that what does not fit is refused.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.cost.flops import exact_flops
from lm.devices.sharding import make_mesh
from lm.models import layers
from lm.models.decoder import init_cache
from lm.models.registry import make_model
from lm.models.transformer_config import check_fields
from lm.models.transformer_counts import visible_keys
from lm.models.trees import unstack_layers
from tests.equalities import assert_counts
from tests.test_account import xla_flops_per_token
from tests.test_forms import decode
from tests.test_models import (
  apply,
  assert_trees_close,
  change,
  grad_by_embedded,
  jit,
  loss_of,
  make,
  tokens_of,
  value_and_grad,
)
from tests.test_step import SPLIT, config, mesh_size, run

LINEAR = {"rope_scaling": "linear", "rope_factor": 4.0}
YARN = {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_length": 12, "rope_fast": 2.0}
MIXED = {
  "gemma": {
    "norm_position": "sandwich", "norm_offset": 1.0, "qk_norm": True, "window": 4,
    "layer_kinds": ("local", "global"), "rope_local_theta": 10.0, "embed_scale": 4.0,
    "attention_scale": 0.3, "attention_softcap": 5.0, "logit_softcap": 3.0, "depth": 3,
    "activation": "geglu", **LINEAR,
  },
  "gptj": {
    "residual": "shared", "rope_dim": 2, "norm": "layernorm", "activation": "silu",
    "bias_on": ("mlp", "norm", "head"), "tied_embeddings": False,
  },
  "neox": {"residual": "parallel", "rope_dim": 2, "norm": "layernorm", "bias": True},
  "olmo": {
    "norm_position": "reordered", "qk_norm": True, "qk_norm_over": "all",
    "bias_on": ("qkv", "head"), "activation": "reglu", **YARN,
  },
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_decoding_with_a_cache_equals_the_full_pass(name):
  model, params = make(change(**MIXED[name]))
  tokens_BL = tokens_of()
  full_BLV = apply(model, params, tokens_BL)
  cache, parts = init_cache(model.cfg, batch=2, length=16), []
  for start, end in [(0, 6), (6, 7), (7, 12)]:
    logits_BLV, cache = decode(model, params, tokens_BL[:, start:end], cache)
    parts.append(logits_BLV)
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), full_BLV, atol=1e-4)


@pytest.mark.parametrize("name, remat", [("gemma", "none"), ("gemma", "dots"), ("gptj", "none")])
def test_layers_in_a_loop_are_layers_written_out(name, remat, monkeypatch):
  monkeypatch.setattr(layers, "AT_LENGTH", 0)
  scanned, params = make(change(**MIXED[name], remat=remat))
  unrolled = make_model(change(**MIXED[name], scan_layers=False))
  tokens_BL = tokens_of()
  loss, grads = value_and_grad(scanned, params, tokens_BL)
  expected = value_and_grad(unrolled, unstack_layers(params), tokens_BL)
  assert_trees_close((loss, unstack_layers(grads)), expected)


@pytest.mark.parametrize("name, mesh", [
  ("gemma", {"mesh__fsdp": 2, "mesh__sequence": 2, "mesh__tensor": 2}),
  pytest.param("gptj", {"mesh__fsdp": 2, "mesh__tensor": 4}, marks=pytest.mark.slow),
  pytest.param("olmo", {"mesh__replica": 2, "mesh__fsdp": 2, "mesh__tensor": 2}, marks=pytest.mark.slow),
])  # fmt: skip
def test_eight_devices_give_what_one_gives(name, mesh):
  fields = {f"model__{key}": value for key, value in MIXED[name].items()}
  mesh = {"mesh__replica": 1} | mesh
  cfg = config(n_devices=8, **SPLIT, **fields, **mesh)
  assert mesh_size(cfg) == 8
  history, state = run(cfg, steps=3, mesh=make_mesh(cfg.mesh))
  alone_history, alone = run(config(**SPLIT, **fields), steps=3)
  for ours, theirs in zip(history, alone_history, strict=True):
    np.testing.assert_allclose(ours["train/loss"], theirs["train/loss"], rtol=1e-5)
  for ours, theirs in zip(*map(jax.tree.leaves, (state.params, alone.params)), strict=True):
    assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs) + 1e-7


def test_stacked_runs_keep_their_kinds_of_layers():
  model, params = make(change(**MIXED["gemma"]))
  stacked = jax.tree.map(lambda p: jnp.stack([p, 0.9 * p]), params)
  tokens_BL = tokens_of()
  losses = jit(jax.vmap(functools.partial(loss_of, model), in_axes=(0, None)))(stacked, tokens_BL)
  np.testing.assert_allclose(losses[0], value_and_grad(model, params, tokens_BL)[0], rtol=1e-5)


# --- what a position sees, what is counted --------------------------------------------------------


def test_local_layers_have_the_window_and_global_ones_do_not():
  for kinds, first in ((("local",), 6), (("local", "global"), 0), (("global", "local"), 0)):
    cfg = change(window=4, depth=1, layer_kinds=kinds[:1]) if len(kinds) == 1 else None
    cfg = cfg or change(window=4, depth=2, layer_kinds=kinds)
    grad_BLD = grad_by_embedded(cfg, position=9)
    seen = np.flatnonzero(np.abs(grad_BLD[0]).max(axis=-1) > 0)
    assert (seen[0], seen[-1]) == (first, 9)


@pytest.mark.parametrize("name", MIXED)
def test_counts_equal_the_leaves_and_flops_those_of_xla(name):
  """So wide that four norms a layer, which XLA counts and we do not, are within the tolerance."""
  cfg = change(**MIXED[name], width=256, mlp_dim=512, head_dim=32, seq_len=64, attention="einsum")
  cfg = dataclasses.replace(cfg, base_width=256, base_head_dim=32, vocab_size=512)
  assert_counts(cfg)
  assert xla_flops_per_token(cfg) == pytest.approx(exact_flops(cfg), rel=0.03)


def test_the_causal_count_knows_which_layers_have_a_window():
  of = lambda **fields: exact_flops(change(seq_len=64, depth=2, **fields), causal=True)
  none, all_local = of(), of(window=8)
  assert of(window=8, layer_kinds=("local", "global")) == (none + all_local) / 2
  assert none - all_local == 3 * 2 * 4 * 16 * (visible_keys(64, None) - visible_keys(64, 8))


# --- rotations ------------------------------------------------------------------------------------


def test_rescaled_rotations_have_their_closed_forms():
  of = lambda **fields: layers.rope_frequencies(change(head_dim=16, rope_theta=1e4, **fields))
  plain, factor = of()
  np.testing.assert_allclose(plain, 1e4 ** (-np.arange(8) / 8), rtol=1e-6)
  assert factor == 1
  np.testing.assert_allclose(of(**LINEAR)[0], plain / 4, rtol=1e-6)
  llama3 = of(rope_scaling="llama3", rope_factor=8.0, rope_length=64, rope_slow=1.0, rope_fast=4.0)[
    0
  ]
  turns = plain * 64 / (2 * np.pi)
  assert (turns > 4).any() and (turns < 1).any() and ((turns > 1) & (turns < 4)).any()
  np.testing.assert_allclose(llama3[turns > 4], plain[turns > 4], rtol=1e-6)
  np.testing.assert_allclose(llama3[turns < 1], plain[turns < 1] / 8, rtol=1e-6)
  yarn, factor = of(**YARN | {"rope_length": 64})
  assert factor == pytest.approx(0.1 * np.log(4) + 1)
  assert yarn[0] == plain[0] and yarn[-1] == pytest.approx(plain[-1] / 4)


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
  "fields, words",
  [
    (
      {"bias_on": ("qvk",)},
      "model.bias_on=qvk: must be one of qkv, out, mlp, norm, head; did you mean",
    ),
    (
      {"bias_on": ("mlp",), "experts": 4},
      "model.bias_on=('mlp',): experts have biases with model.bias alone",
    ),
    (
      {"residual": "parallel", "norm_position": "post"},
      "model.residual=parallel: needs model.norm_position=pre, not post; use serial or pre",
    ),
    (
      {"qk_norm_over": "all"},
      "model.qk_norm_over=all: needs model.qk_norm; set model.qk_norm=True",
    ),
    ({"layer_kinds": ("local",)}, "model.layer_kinds=local: tells layers apart by model.window or"),
    (
      {"layer_kinds": ("local",) * 3, "window": 4},
      "model.layer_kinds=local,local,local: must not name more layers than model.depth=2",
    ),
    ({"rope_local_theta": 10.0}, "model.rope_local_theta=10.0: needs model.positions=rope and"),
    ({"rope_dim": 3}, "model.rope_dim=3: must be even and at most the head's 4; use 4 or None"),
    ({"rope_dim": 6}, "model.rope_dim=6: must be even and at most the head's 4; use 4 or None"),
    (
      {"rope_scaling": "linear", "positions": "alibi"},
      "model.rope_scaling=linear: needs model.positions=rope, not alibi; use None",
    ),
    ({"rope_factor": 2.0}, "model.rope_factor=2.0: needs model.rope_scaling; set it to linear,"),
    ({"rope_scaling": "yarn"}, "model.rope_length=None: model.rope_scaling=yarn needs the tokens"),
    (
      {"rope_scaling": "llama3", "rope_length": 8, "rope_slow": 4.0, "rope_fast": 4.0},
      "model.rope_fast=4.0: must be above model.rope_slow=4.0; use 32, or 4 with llama3",
    ),
  ],
)
def test_fields_that_do_not_go_together_are_refused(fields, words):
  with pytest.raises(ConfigError) as error:
    check_fields(change(**fields))
  assert str(error.value).startswith(words)
