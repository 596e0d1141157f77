"""Counts against the model's own leaves, XLA's own count, and published tables."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.default import get_config
from lm.config.errors import ConfigError
from lm.config.schema import OptimConfig
from lm.cost.flops import CONVENTIONS, exact_flops, flops_per_token, mfu, xla_flops
from lm.cost.memory import activation_bytes, memory_bytes
from lm.cost.parameters import param_counts, weights
from lm.models.registry import make_model
from lm.models.transformer_config import TransformerConfig
from lm.models.transformer_counts import visible_keys
from lm.models.trees import param_axes, param_kinds
from lm.objectives.registry import OBJECTIVES
from lm.optim.chain import make_optimizer, multipliers
from lm.optim.directions import OPTIMIZERS
from lm.setup.load import load_config
from lm.setup.resolve import resolve, resolve_model
from tests.equalities import assert_counts, shapes_of
from tests.settings import zero_hparams


def make_cfg(**changes):
  """A resolved model config that differs from the default in these fields."""
  cfg = TransformerConfig(**get_config().model.to_dict() | {"width": 48, "heads": 4} | changes)
  return resolve_model(cfg, 64 if cfg.vocab_size is None else cfg.vocab_size)


# --- parameters ---------------------------------------------------------------------------------

OPTIONS = {
  "positions": ("rope", "learned", "sinusoidal"),
  "norm": ("rmsnorm", "layernorm"),
  "norm_position": ("pre", "post"),
  "activation": ("gelu", "swiglu"),
  "bias": (False, True),
  "qk_norm": (False, True),
  "tied_embeddings": (True, False),
  "kv_heads": (None, 2, 1),
}
COMBINATIONS = [
  dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())
]


def test_counts_and_names_equal_the_leaves_of_the_model():
  """A sample in which every pair of options occurs; whole products of options take a minute."""
  sample = [
    *COMBINATIONS[::29],
    {"head_dim": 20, "mlp_dim": 100, "depth": 3, "kv_heads": 2},
    {"positions": "alibi", "vocab_size": 77, "seq_len": 33, "heads": 3},
    {"positions": "none", "activation": "geglu", "width": 96},
  ]
  for options in sample:
    cfg = make_cfg(**options)
    leaves, counts = assert_counts(cfg), param_counts(cfg)
    tables = ("embed/embedding", "position_embed/embedding", "head/kernel")
    assert counts.embedding == sum(np.prod(leaves[t]) for t in tables if t in leaves)
    assert counts.non_embedding == counts.total - counts.embedding


def test_gpt2_has_its_published_size():
  cfg = make_cfg(
    vocab_size=50257, seq_len=1024, width=768, depth=12, heads=12, positions="learned",
    norm="layernorm", activation="gelu", bias=True, tied_embeddings=True,
  )  # fmt: skip
  assert param_counts(cfg).total == 124_439_808


@pytest.mark.parametrize("row", [
  (44e6, 512, 2048, 64, 8, 8),
  (90e6, 640, 2560, 64, 10, 13),
  (425e6, 1280, 5120, 128, 10, 18),
  (1609e6, 2176, 8704, 128, 17, 25),
  (6796e6, 3584, 14336, 128, 28, 40),
  (16183e6, 5120, 20480, 128, 40, 47),
])  # fmt: skip
def test_shapes_of_chinchilla_have_their_published_sizes(row):
  """Hoffmann et al. 2022, table A9. Their attention has one more [D, D] matrix, for positions."""
  published, width, mlp_dim, head_dim, heads, depth = row
  cfg = make_cfg(
    vocab_size=32000, width=width, mlp_dim=mlp_dim, head_dim=head_dim, heads=heads, depth=depth,
    activation="gelu",
  )  # fmt: skip
  relative = depth * width * heads * head_dim
  assert param_counts(cfg).total + relative == pytest.approx(published, rel=0.01)


# --- FLOPs --------------------------------------------------------------------------------------

SHAPES = {
  "llama": {"width": 384, "heads": 6, "depth": 2, "seq_len": 256, "vocab_size": 4096},
  "gpt2": {
    "width": 512, "heads": 8, "depth": 2, "seq_len": 128, "vocab_size": 2048, "norm": "layernorm",
    "activation": "gelu", "bias": True, "positions": "learned", "tied_embeddings": False,
  },
  "grouped": {
    "width": 512, "heads": 8, "kv_heads": 2, "depth": 1, "seq_len": 512, "vocab_size": 1024,
  },
  "default": {"width": 128, "heads": 4, "depth": 4, "seq_len": 256, "vocab_size": 2048},
}  # fmt: skip


def xla_flops_per_token(cfg, rows=2):
  """XLA's count of the compiled forward and backward pass; unrolled, as it counts loops once."""
  cfg = dataclasses.replace(cfg, scan_layers=False)
  model = make_model(cfg)

  def loss(params, inputs_BL, targets_BL):
    logits_BLV = model.apply({"params": params}, inputs_BL)
    return optax.softmax_cross_entropy_with_integer_labels(logits_BLV, targets_BL).sum()

  tokens = jax.ShapeDtypeStruct((rows, cfg.seq_len), jnp.int32)
  compiled = jax.jit(jax.grad(loss)).lower(shapes_of(cfg), tokens, tokens).compile()
  return xla_flops(compiled) / (rows * cfg.seq_len)


@pytest.mark.parametrize("name", SHAPES)
def test_exact_flops_agree_with_xla(name):
  cfg = make_cfg(**SHAPES[name], attention="einsum")
  exact = flops_per_token(cfg, "exact")
  assert xla_flops_per_token(cfg) == pytest.approx(exact, rel=0.03)
  assert flops_per_token(cfg, "6ND") != pytest.approx(exact, rel=0.03)


def test_attention_that_skips_hidden_keys_lies_between_the_causal_and_the_whole_count():
  """On CPU "auto" takes the queries in chunks, and each chunk meets only keys in its sight."""
  cfg = make_cfg(width=128, depth=1, seq_len=256, vocab_size=256, attention="auto")
  low, high = (flops_per_token(cfg, c) for c in ("exact_causal", "exact"))
  assert low < xla_flops_per_token(cfg) < 0.97 * high


@pytest.mark.parametrize("seq_len, window", [(1, None), (7, None), (64, None), (64, 5), (9, 20)])
def test_visible_keys_are_those_of_the_mask(seq_len, window):
  distance = np.arange(seq_len)[:, None] - np.arange(seq_len)
  visible = (distance >= 0) & (distance < (window or seq_len))
  assert visible_keys(seq_len, window) == visible.sum() / seq_len


def test_conventions_in_closed_form():
  """A model small enough to count by hand: D = 8, F = 32, H = 2, K = 4, L = 16, V = 10, depth 3."""
  cfg = make_cfg(
    width=8, heads=2, depth=3, seq_len=16, vocab_size=10, activation="gelu", mlp_dim=32
  )
  matrices = 3 * (4 * 8 * 8 + 2 * 8 * 32)
  norms = (2 * 3 + 1) * 8
  expected = {
    "6ND": 6 * (matrices + norms + 80),
    "6ND_nonembedding": 6 * (matrices + norms),
    "exact": 6 * (matrices + 80 + 3 * 2 * 16 * 8),
    "exact_causal": 6 * (matrices + 80 + 3 * 2 * 8.5 * 8),
    "kaplan": 6 * (matrices + norms) + 6 * 3 * 16 * 8,
    "chinchilla": 3 * (4 * 80 + 2 * matrices + 3 * (4 * 16 * 8 + 3 * 2 * 16)),
  }
  assert {c: flops_per_token(cfg, c) for c in CONVENTIONS} == expected


@pytest.mark.parametrize("row, ratio", [
  ((10, 640, 2560, 10, 64), 1.03),
  ((20, 1024, 4096, 16, 64), 1.10),
  ((24, 1280, 5120, 10, 128), 1.08),
  ((26, 1792, 7168, 14, 128), 1.04),
  ((28, 2048, 8192, 16, 128), 1.03),
  ((40, 3584, 14336, 28, 128), 0.99),
])  # fmt: skip
def test_flops_of_linear_maps_and_attention_equal_table_a4_of_chinchilla(row, ratio):
  """Hoffmann et al. print FLOPs / 6ND at 2,048 tokens; their figures leave the logits out."""
  depth, width, mlp_dim, heads, head_dim = row
  cfg = make_cfg(
    depth=depth, width=width, mlp_dim=mlp_dim, heads=heads, head_dim=head_dim, seq_len=2048,
    vocab_size=32000, activation="gelu",
  )  # fmt: skip
  without_logits = exact_flops(cfg) - 6 * cfg.width * cfg.vocab_size
  n_params = param_counts(cfg).total + depth * width**2  # with their matrix for positions
  assert without_logits / (6 * n_params) == pytest.approx(ratio, abs=0.01)


def test_mfu():
  assert mfu(flops=2e15, seconds=10.0, peak=1e15) == 0.2


# --- bytes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_has_the_counted_size(name):
  cfg = make_cfg(bias=True, qk_norm=True, tied_embeddings=False, kv_heads=2)
  model, shapes = make_model(cfg), shapes_of(cfg)
  kinds = param_kinds(shapes, weights(cfg))
  optim = OptimConfig(**get_config().optim.to_dict() | {"name": name})
  mults = multipliers(name, "standard", 1.0)
  tx = make_optimizer(optim, zero_hparams(), kinds, param_axes(model), mults)
  size = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(tx.init, shapes)))
  row = OPTIMIZERS[name]
  counters = size - sum(count(weights(cfg)) for count in (row.means, row.whole, row.copied))
  # adafactor has a count and two placeholders of one number for each weight of each layer.
  limit = 3 * sum(w.copies for w in weights(cfg)) + 1 if name == "adafactor" else 10
  assert 0 < counters <= limit


def make_run(n_devices=1, **changes):
  """A whole resolved config; section__key=value."""
  overrides = {key.replace("__", "."): value for key, value in changes.items()}
  return resolve(load_config("configs/default.py", overrides), 512, n_devices)


def test_memory_of_weights_and_their_division_over_devices():
  n_params = param_counts(make_run().model).total
  one = memory_bytes(make_run())
  assert (one["parameters"], one["gradients"]) == (4 * n_params, 4 * n_params)
  assert one["optimizer"] == 8 * n_params  # two moments of adamw
  assert memory_bytes(make_run(train__accumulate=2))["gradients"] == 8 * n_params
  assert memory_bytes(make_run(optim__ema_decay=0.9))["optimizer"] == 12 * n_params
  replicas = memory_bytes(make_run(8))
  shards = memory_bytes(make_run(8, mesh__fsdp=4, mesh__tensor=2))
  assert replicas["parameters"] == one["parameters"] == 8 * shards["parameters"]
  assert replicas["optimizer"] == 8 * shards["optimizer"]
  assert one["activations"] == 8 * replicas["activations"] == 4 * shards["activations"]


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
  {},
  {"model__vocab_size": 8192},
  {"model__vocab_size": 8192, "objective__chunk": 64},
  {"model__remat": "dots", "model__depth": 8},
  {"model__remat": "full", "model__depth": 8},
  {"model__activation": "relu", "model__width": 128},
  {"model__activation": "gelu", "model__attention": "einsum", "model__kv_heads": 1},
])  # fmt: skip
def test_activations_are_near_those_of_the_compiled_program(changes, monkeypatch):
  # In a loop, as on accelerators: XLA's CPU compiler keeps more of layers that are written out.
  monkeypatch.setattr("lm.models.layers.AT_LENGTH", 0)
  cfg = make_run(**{"model__width": 256, "train__batch_size": 8, **changes})
  loss = OBJECTIVES["next_token"].make_loss(make_model(cfg.model), cfg)
  tokens = jax.ShapeDtypeStruct((8, cfg.model.seq_len), jnp.int32)
  batch = {"tokens": tokens, "targets": tokens, "weights": tokens.update(dtype=jnp.float32)}
  gradient = jax.jit(jax.grad(lambda p, b: loss(p, {}, b, None, zero_hparams())[0]))
  compiled = gradient.lower(shapes_of(cfg.model), batch).compile()
  measured = compiled.memory_analysis().temp_size_in_bytes
  assert activation_bytes(cfg) == pytest.approx(measured, rel=0.15)


def test_errors_name_the_rule_and_the_remedy():
  with pytest.raises(ConfigError, match=r"train.flops_convention=7ND: unknown convention; use one"):
    flops_per_token(make_cfg(), "7ND")
