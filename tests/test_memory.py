"""Transformer-XL's memory: rows behind it equal full attention; documents; gradients; a run carries it on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.cost.flops import exact_flops
from lm.devices.sharding import make_mesh
from lm.hf.fields import config_of
from lm.models.registry import make_model
from lm.models.transformer_counts import visible_keys
from lm.objectives.registry import OBJECTIVES
from lm.plan import hlo
from lm.plan.hlo_cost import work
from lm.setup.hparams import make_hparams
from lm.setup.load import load_config
from lm.training.programs import make_programs
from tests.equalities import assert_resumes, assert_same, assert_stacks, resolved, run, shapes_of

SPEC = "configs/transformer_xl.py:smoke"
B, L, V = 2, 5, 19


@pytest.fixture(scope="module")
def section():
  cfg = resolved(SPEC)[0].model
  tiny = {"width": 8, "heads": 2, "head_dim": 4, "mlp_dim": 12, "kv_heads": 1, "vocab_size": V}
  return dataclasses.replace(cfg, seq_len=L, base_head_dim=4, **tiny)


def made(section, **changes):
  """(model, parameters) of the section with changes."""
  model = make_model(dataclasses.replace(section, **changes))
  rng = np.random.default_rng(0)
  draw = lambda shape: jnp.asarray(rng.normal(0, 0.5, shape.shape), jnp.float32)
  return model, jax.tree.map(draw, shapes_of(model.cfg))


def tokens(rows=3, seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, V, (B, rows * L)), jnp.int32)


def in_rows(model, params, tokens_BT, segments_BT=None):
  """Logits of a text that is read row by row behind the memory; and the last carry."""
  step = jax.jit(lambda *args: model.apply({"params": params}, *args, method="advance"))
  carry, found = model.init_carry(B), []
  for start in range(0, tokens_BT.shape[1], L):
    row = tokens_BT[:, start : start + L]
    if segments_BT is None:
      x_BLD, _, carry = step(row, carry)
    else:  # numbered anew in every row, as batches are; what begins there has no memory
      own = segments_BT[:, start : start + L]
      fresh_B = own[:, 0] != segments_BT[:, start - 1] if start else jnp.zeros(B, bool)
      kept_B1 = jnp.expand_dims(1 - fresh_B.astype(jnp.float32), 1)
      carry = carry | {"seen": carry["seen"] * kept_B1}
      x_BLD, _, carry = step(row, carry, own - own[:, :1] + 1)
    found.append(model.apply({"params": params}, x_BLD, method="logits"))
  return jnp.concatenate(found, axis=1), carry


def full(model, params, *args):
  return jax.jit(lambda: model.apply({"params": params}, *args))()


CASES = {
  "rope": {},
  "alibi": {"positions": "alibi", "attention": "einsum"},
  "post": {"norm_position": "post", "residual": "serial", "qk_norm": True},
  "unrolled": {"scan_layers": False, "residual": "parallel"},
  "scaled": {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_length": 4, "attention": "xla"},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_a_memory_of_all_that_was_gives_full_attention_over_it(section, changes):
  model, params = made(section, memory=2 * L, **changes)
  tokens_BT = tokens()
  found, _ = in_rows(model, params, tokens_BT)
  np.testing.assert_allclose(found, full(model, params, tokens_BT), atol=2e-5)


def test_a_memory_beyond_the_window_gives_that_window_over_any_number_of_rows(section):
  window = {"memory": 4, "window": 5, "depth": 3, "layer_kinds": ()}
  model, params = made(section, **window)
  tokens_BT = tokens(rows=5)
  found, _ = in_rows(model, params, tokens_BT)
  np.testing.assert_allclose(found, full(model, params, tokens_BT), atol=2e-5)
  fewer, params = made(section, **window | {"memory": 3})
  found, _ = in_rows(fewer, params, tokens_BT)
  assert np.abs(found - full(fewer, params, tokens_BT)).max() > 1e-3


@pytest.mark.parametrize("memory", [3, 7])
def test_one_layer_behind_a_memory_is_attention_over_memory_and_row(section, memory):
  model, params = made(section, memory=memory, depth=1)
  tokens_BT = tokens(rows=4)
  found, _ = in_rows(model, params, tokens_BT)
  for start in range(0, 4 * L, L):
    first = max(0, start - memory)
    wanted = full(model, params, tokens_BT[:, first : start + L])[:, start - first :]
    np.testing.assert_allclose(found[:, start : start + L], wanted, atol=2e-5)


def test_documents_see_their_own_memory_alone(section):
  model, params = made(section, memory=2 * L)
  tokens_BT = tokens()
  borders = [[3, 12], [5, 6]]  # within rows, at a row's first token, and one that spans a whole row
  places = np.arange(3 * L)
  segments_BT = jnp.asarray([1 + sum(places >= b for b in row) for row in borders], jnp.int32)
  found, carry = in_rows(model, params, tokens_BT, segments_BT)
  wanted = full(model, params, tokens_BT, None, segments_BT)
  np.testing.assert_allclose(found, wanted, atol=2e-5)
  assert carry["seen"].sum(axis=1).tolist() == [3, 9]


def test_no_gradient_goes_back_beyond_the_row(section):
  model, params = made(section, memory=L)
  tokens_BT = jnp.broadcast_to(jnp.arange(2 * L, dtype=jnp.int32)[None], (B, 2 * L))

  @jax.jit
  def loss(params):
    apply = lambda *args: model.apply({"params": params}, *args, method="advance")
    carry = apply(tokens_BT[:, :L], model.init_carry(B))[2]
    return jnp.square(apply(tokens_BT[:, L:], carry)[0]).sum()

  grad = np.abs(jax.grad(loss)(params)["embed"]["embedding"]).sum(axis=1)
  assert not grad[:L].any() and grad[L : 2 * L].all()


def test_counts_are_those_of_rows_and_memory(section):
  brute = lambda L, w, m: np.mean([min(w or L + m, i + 1 + m) for i in range(L)])
  for case in [(4, None, 0), (4, 2, 0), (4, None, 3), (4, 5, 3), (4, 2, 3), (4, 100, 3)]:
    assert visible_keys(*case) == pytest.approx(brute(*case))
  model, _ = made(
    section,
    memory=64,
    seq_len=32,
    width=64,
    mlp_dim=64,
    heads=2,
    kv_heads=2,
    head_dim=32,
    attention="einsum",
  )
  cfg = dataclasses.replace(load_config(SPEC), model=model.cfg)
  loss_fn = OBJECTIVES["truncated_bptt"].make_loss(model, cfg)
  shapes = shapes_of(model.cfg)
  carry = {"carry": jax.eval_shape(lambda: model.init_carry(4))}
  row = lambda dtype: jax.ShapeDtypeStruct((4, 32), dtype)
  batch = {"tokens": row("int32"), "targets": row("int32"), "weights": row("float32")}
  batch["fresh"] = jax.ShapeDtypeStruct((4,), "float32")
  hparams = make_hparams(resolved(SPEC)[0])
  key = jax.random.key(0)
  grad = jax.grad(lambda p, e, b: loss_fn(p, e, b, key, hparams), has_aux=True)
  program = hlo.parse(jax.jit(grad).lower(shapes, carry, batch).compile().as_text())
  products = sum(w.times * sum(w.matmul_flops.values()) for w in work(program))
  assert exact_flops(model.cfg) == pytest.approx(products / (4 * 32), rel=0.01)
  bare = dataclasses.replace(model.cfg, memory=None)
  assert exact_flops(model.cfg) > 1.3 * exact_flops(bare)


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"model.positions": "learned"}, "model.memory=24: needs positions that are distances"),
    ({"model.experts": 4}, "model.memory=24: goes with objective.name=truncated_bptt, which reads no"),
    ({"model.memory": "None"}, "model.memory=None: objective.name=truncated_bptt carries"),
    ({"model.memory": 0}, r"model.memory=0: must be at least 1"),
    ({"data.length_curriculum": "8:0.5"}, "is for rows of tokens, not for streams"),
    ({"data.pack": False}, "data.pack=False: streams hold documents back to back"),
  ],
)  # fmt: skip
def test_what_a_memory_does_not_go_with_is_refused(changes, words):
  with pytest.raises(ConfigError, match=words):
    load_config(SPEC, changes)


def test_other_objectives_and_split_rows_are_refused():
  with pytest.raises(
    ConfigError, match=r"model\.memory=8: objective\.name=next_token carries nothing"
  ):
    load_config("configs/smoke.py", {"model.memory": 8})
  cfg, _ = resolved(SPEC, 2, mesh__replica=1, mesh__sequence=2)
  with pytest.raises(ConfigError, match=r"mesh\.sequence=2: splits rows, and model.memory=24"):
    make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:2]))
  with pytest.raises(ConfigError, match=r"model\.memory=24: Hugging Face's Llama has None"):
    config_of(cfg.model)


@pytest.mark.slow  # a program for each layout
def test_eight_devices_micro_batches_and_documents_apart(section):
  changes = {"model__width": 16, "model__vocab_size": 258, "model__tied_embeddings": False}
  cfg, data = resolved(SPEC, data__cross_documents=False, **changes)
  whole = run(cfg, data)
  assert np.abs(whole[1].extra["carry"]["vectors"]).max() > 0
  for more in ({"train__accumulate": 2}, {"mesh__replica": 2, "mesh__fsdp": 2, "mesh__tensor": 2}):
    n = 8 if "mesh__fsdp" in more else 1
    cfg, data = resolved(SPEC, n, data__cross_documents=False, **changes, **more)
    assert_same(run(cfg, data, n_devices=n), whole)


@pytest.mark.slow
def test_runs_are_stacked(section):
  assert_stacks(SPEC, model__width=16)


@pytest.mark.slow
def test_a_run_resumes_bit_equal_with_its_memory(monkeypatch, tmp_path):
  flags = ["--config.train.steps=8", "--config.eval.every_steps=4", "--config.log.every_steps=1"]
  assert_resumes(monkeypatch, tmp_path, SPEC, "--config.model.width=16", *flags)
