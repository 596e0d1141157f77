"""Attention in every form: both directions, masked, across rows, biased; beside torch and by devices."""

import functools
import itertools
import random
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.config.schema import MeshConfig
from lm.devices import sharding
from lm.models.attention.forms import attend, attend_cached, choose_form
from lm.models.attention.scores import alibi_slopes
from tests.test_models import assert_trees_close, jit


class Section(NamedTuple):
  """All that attention reads of a model's config section."""

  head_dim: int = 4
  base_head_dim: int = 4
  parameterization: str = "standard"
  positions: str = "none"
  window: int | None = None
  attention_softcap: float | None = None
  attention: str = "auto"
  dtype: str = "float32"


class Case(NamedTuple):
  causal: bool
  mask: bool
  cross: bool
  bias: bool
  grouped: bool
  window: bool
  softcap: bool
  alibi: bool
  segments: bool

  def __str__(self):
    return "-".join(name for name, on in zip(self._fields, self, strict=True) if on) or "plain"

  def section(self, form="auto", **fields):
    return Section(
      positions="alibi" if self.alibi else "none",
      window=9 if self.window else None,
      attention_softcap=2.0 if self.softcap else None,
      attention=form,
      **fields,
    )

  def arrays(self, batch=2, lengths=(70, 70), other=90, heads=4, head_dim=4, seed=0):
    """(what is differentiated: q, k, v and perhaps a bias; masks by keyword)."""
    rng = np.random.default_rng(seed)
    L, M = lengths[0], other if self.cross else lengths[1]
    G = heads // 2 if self.grouped else heads
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    inputs = {"q_BLHK": draw(batch, L, heads, head_dim)}
    inputs |= {name: draw(batch, M, G, head_dim) for name in ("k_BMGK", "v_BMGK")}
    if self.bias:
      inputs["bias_BHLM"] = draw(1 if self.mask else batch, heads, L, M)
    ids = lambda n: np.sort(rng.integers(0, 3, (batch, n)), axis=1).astype(np.int32)
    masks = {"key_mask_BM": rng.random((batch, M)) < 0.6} if self.mask else {}
    if self.mask:
      masks["key_mask_BM"][:, : M // 4] = False
    if self.segments:
      masks["segments_BL"] = ids(L)
    if self.segments and self.cross:
      masks["key_segments_BM"] = ids(M)
    return inputs, masks


# All ways to set three of the first eight switches occur (odd words of four bits: strength 3).
BITS = [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1),
        (1, 1, 1, 0), (1, 1, 0, 1), (1, 0, 1, 1), (0, 1, 1, 1), (1, 1, 1, 1)]  # fmt: skip
CASES = [
  Case(*(bool(np.dot(word, row) % 2) for word in BITS))
  for row in itertools.product((0, 1), repeat=4)
]
EVERY = [Case(*switches) for switches in itertools.product((False, True), repeat=9)]


def value_of(case, form, inputs, masks, **fields):
  """(output, gradients by every input) of one form."""
  weights = np.random.default_rng(9).standard_normal(inputs["q_BLHK"].shape, np.float32)

  def total(inputs):
    cfg = case.section(form, **fields)
    out = attend(**inputs, **masks, cfg=cfg, causal=case.causal)
    return (out.astype(jnp.float32) * weights).sum(), out

  (_, out), grads = jax.value_and_grad(total, has_aux=True)(inputs)
  return out, grads


def visible(case, inputs, masks):
  """Bool [B, L, M]: what a query sees, by the definition."""
  B, L, M = *inputs["q_BLHK"].shape[:2], inputs["k_BMGK"].shape[1]
  apart = np.arange(L)[:, None] - np.arange(M)[None]
  seen = np.ones((B, L, M), bool)
  seen &= apart >= 0 if case.causal else True
  seen &= abs(apart) < 9 if case.window else True
  if case.mask:
    seen &= masks["key_mask_BM"][:, None]
  if case.segments:
    theirs = masks.get("key_segments_BM", masks["segments_BL"])
    seen &= masks["segments_BL"][:, :, None] == theirs[:, None]
  return seen


def torch_value_of(case, inputs, masks):
  """The same by torch: scaled_dot_product_attention, or softmax by hand where scores are capped."""
  torch = pytest.importorskip("torch")
  given = {name: torch.tensor(array, requires_grad=True) for name, array in inputs.items()}
  q, k, v = (given[name].transpose(1, 2) for name in ("q_BLHK", "k_BMGK", "v_BMGK"))
  seen_BLM = visible(case, inputs, masks)
  some_BL = seen_BLM.any(axis=-1)
  seen_BLM = torch.tensor(seen_BLM | ~some_BL[:, :, None])  # else torch gives NaN there
  added = torch.zeros(1, 1, *seen_BLM.shape[1:])
  if case.bias:
    added = added + given["bias_BHLM"]
  if case.alibi:
    apart = np.abs(np.arange(q.shape[2])[:, None] - np.arange(k.shape[2])[None])
    added = added - torch.tensor(alibi_slopes(4)[:, None, None] * apart.astype(np.float32))
  added = added.masked_fill(~seen_BLM[:, None], -torch.inf)
  if case.softcap:
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = 2.0 * torch.tanh(q @ k.transpose(2, 3) / 2 / 2.0) + added
    out = torch.softmax(scores, dim=-1) @ v
  else:
    attention = torch.nn.functional.scaled_dot_product_attention
    out = attention(q, k, v, attn_mask=added, enable_gqa=True)
  out = out.transpose(1, 2) * torch.tensor(some_BL)[:, :, None, None]
  weights = np.random.default_rng(9).standard_normal(out.shape, np.float32)
  (out * torch.tensor(weights)).sum().backward()
  return out.detach().numpy(), {name: x.grad.numpy() for name, x in given.items()}


def check_case(case):
  inputs, masks = case.arrays()
  forms = ("einsum", "chunked") if case.softcap else ("einsum", "chunked", "xla")
  found = jit(lambda inputs: {form: value_of(case, form, inputs, masks) for form in forms})(inputs)
  out, grads = torch_value_of(case, inputs, masks)
  blind = ~visible(case, inputs, masks).any(axis=-1)
  unseen = ~visible(case, inputs, masks).any(axis=1)
  for form in forms:
    np.testing.assert_allclose(found[form][0], out, atol=1e-5, err_msg=form)
    for name, grad in grads.items():
      np.testing.assert_allclose(found[form][1][name], grad, atol=1e-4, err_msg=f"{form} {name}")
    assert not np.asarray(found[form][0])[blind].any()
    assert not np.asarray(found[form][1]["q_BLHK"])[blind].any()
    for name in ("k_BMGK", "v_BMGK"):
      assert not np.asarray(found[form][1][name])[unseen].any(), "a hidden key has a gradient"
  return blind


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_form_is_torchs_attention(case):
  check_case(case)


@pytest.mark.slow
def test_every_form_is_torchs_attention_whatever_is_asked_for():
  """48 of the 512 ways to set all switches; half of the 512 take an hour of compilations."""
  for case in random.Random(0).sample(EVERY, 48):
    check_case(case)
    jax.clear_caches()


def test_the_cases_meet_queries_that_see_nothing():
  blind = [~visible(case, *case.arrays()).any(axis=-1).all() for case in CASES]
  assert sum(blind) >= 4
  assert {c.causal for c, b in zip(CASES, blind, strict=True) if b} == {False, True}


@pytest.mark.parametrize("form", ["einsum", "chunked", "xla"])
def test_a_row_whose_keys_are_all_masked_gives_zeros(form):
  case = CASES[0]._replace(mask=True, bias=True)
  inputs, _ = case.arrays(lengths=(5, 6))
  masks = {"key_mask_BM": np.array([[True] * 6, [False] * 6])}
  out, grads = value_of(case, form, inputs, masks)
  assert np.abs(out[0]).max() > 0 and not np.asarray(out[1]).any()
  for name, grad in grads.items():
    assert np.isfinite(grad).all()
    if name != "bias_BHLM":
      assert np.abs(grad[0]).max() > 0 and not np.asarray(grad[1]).any()


# --- keys that came before ------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["einsum", "chunked", "xla"])
@pytest.mark.parametrize("window", [False, True])
def test_queries_after_a_memory_see_what_the_end_of_a_longer_row_sees(form, window):
  case = Case(True, True, False, True, True, window, False, True, True)
  inputs, masks = case.arrays(lengths=(90, 90))
  whole = attend(**inputs, **masks, cfg=case.section(form))
  end = inputs | {"q_BLHK": inputs["q_BLHK"][:, 20:], "bias_BHLM": inputs["bias_BHLM"][:, :, 20:]}
  segments = {
    "segments_BL": masks["segments_BL"][:, 20:], "key_segments_BM": masks["segments_BL"],
  }  # fmt: skip
  found = attend(**end, **masks | segments, cfg=case.section(form), offset=20)
  np.testing.assert_allclose(found, whole[:, 20:], atol=1e-5)


@pytest.mark.parametrize("case", CASES[5:9], ids=str)
def test_cached_attention_takes_the_same_masks(case):
  inputs, masks = case.arrays(lengths=(12, 12), other=16)
  whole = attend(**inputs, **masks, cfg=case.section(), causal=case.causal)
  part = dict(inputs, q_BLHK=inputs["q_BLHK"][:, 4:7])
  if case.bias:
    part["bias_BHLM"] = inputs["bias_BHLM"][:, :, 4:7]
  if case.segments:
    masks = {"key_segments_BM": masks["segments_BL"]} | masks
    masks["segments_BL"] = masks["segments_BL"][:, 4:7]
  index_BL = np.arange(4, 7, dtype=np.int32)[None]
  found = attend_cached(**part, **masks, index_BL=index_BL, cfg=case.section(), causal=case.causal)
  np.testing.assert_allclose(found, whole[:, 4:7], atol=1e-5)


# --- the kernel for TPUs --------------------------------------------------------------------------


@pytest.mark.parametrize("case", [
  Case(False, True, True, False, True, False, False, False, False),
  Case(True, True, False, False, False, True, True, False, True),
  Case(False, False, True, False, False, True, False, False, True),
], ids=str)  # fmt: skip
def test_the_kernel_for_tpus_sees_what_the_reference_sees(case):
  """Interpreted, as there is no TPU here."""
  inputs, masks = case.arrays(lengths=(128, 128), other=256, heads=2, head_dim=64)
  fields = {"head_dim": 64, "base_head_dim": 64}
  expected = value_of(case, "einsum", inputs, masks, **fields)
  found = value_of(case, "splash", inputs, masks, **fields)
  assert_trees_close(found, expected, 1e-4, 1e-4)


# --- devices --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(2, 1, 1, 2, 2), (1, 1, 1, 8, 1), (2, 2, 1, 1, 2)], ids=str)
@pytest.mark.parametrize("case", [
  Case(False, True, True, True, True, False, False, False, True),
  Case(True, True, False, True, False, True, True, True, False),
  Case(False, False, False, True, True, True, False, True, True),
], ids=str)  # fmt: skip
def test_eight_devices_agree_with_one(case, sizes):
  inputs, masks = case.arrays(batch=4, lengths=(32, 32), other=48)
  if case.mask:
    masks["key_mask_BM"][1] = False  # a row that sees nothing on any device
  expected = value_of(case, "chunked", inputs, masks)
  mesh = sharding.make_mesh(MeshConfig(*sizes))
  with sharding.use_mesh(mesh):
    text = str(jax.make_jaxpr(lambda inputs: value_of(case, "auto", inputs, masks))(inputs))
    assert ("ppermute" in text) == (sizes[3] > 1)
    found = jit(lambda inputs: value_of(case, "auto", inputs, masks))(inputs)
  assert_trees_close(found, expected, 1e-5, 1e-5)


def test_keys_that_a_ring_does_not_divide_are_refused():
  case = CASES[0]._replace(cross=True)
  inputs, masks = case.arrays(lengths=(16, 16), other=20)
  mesh = sharding.make_mesh(MeshConfig(1, 1, 1, 8, 1))
  with sharding.use_mesh(mesh), pytest.raises(ConfigError) as error:
    value_of(case, "auto", inputs, masks)
  assert str(error.value) == (
    "mesh.sequence=8: must divide the length axis (20) of the activations; use a divisor of 20"
  )


# --- forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "platform", "asked", "words"), [
  ("splash", "tpu", {"biased": True}, "model.attention=splash: has no position biases; use auto"),
  ("cudnn", "gpu", {"biased": True}, "model.attention=cudnn: has no position biases; use auto"),
  ("cudnn", "gpu", {"masked": True}, "model.attention=cudnn: needs an even number of queries and "
   "keys where some are masked, not 128 and 255; use auto"),
])  # fmt: skip
def test_what_a_form_lacks_is_said(form, platform, asked, words, monkeypatch):
  monkeypatch.setattr(sharding, "platform", lambda: platform)
  cfg = Section(attention=form, dtype="bfloat16", head_dim=64, base_head_dim=64)
  with pytest.raises(ConfigError) as error:
    choose_form(cfg, (128, 255), **asked)
  assert str(error.value) == words
  even = choose_form(cfg, (128, 256))
  assert even == form
  assert choose_form(cfg._replace(attention="auto"), (128, 255), **asked) in ("xla", "chunked")


def test_a_splash_kernel_says_at_the_call_that_it_has_no_biases():
  case = Case(False, False, True, True, False, False, False, False, False)
  inputs, masks = case.arrays(lengths=(128, 128), other=128, heads=2, head_dim=64)
  with pytest.raises(ConfigError, match=r"model.attention=splash: has no position biases"):
    value_of(case, "splash", inputs, masks, head_dim=64, base_head_dim=64)


def test_chunked_attention_across_rows_keeps_no_scores_for_the_backward_pass():
  case = Case(False, True, True, False, False, False, False, False, False)
  inputs, masks = case.arrays(lengths=(512, 512), other=512)

  def kept(form):
    run = lambda inputs: attend(**inputs, **masks, cfg=case.section(form), causal=False)
    backward = jax.eval_shape(lambda inputs: jax.vjp(run, inputs)[1], inputs)
    return max(leaf.size for leaf in jax.tree.leaves(backward))

  assert kept("chunked") <= 2 * 512 * 4 * 4 < 2 * 4 * 512 * 512 <= kept("einsum")


@functools.cache
def products(causal):
  """Products of the largest matrices in one chunked forward pass, by the keys they read."""
  case = CASES[0]._replace(causal=causal)
  inputs, masks = case.arrays(lengths=(512, 512))
  program = jax.make_jaxpr(
    lambda inputs: attend(**inputs, **masks, cfg=case.section("chunked"), causal=causal)
  )(inputs)
  text = str(program)
  return [text.count(f"f32[2,4,1,64,{n}] = dot_general") for n in range(64, 513, 64)]


def test_causal_chunks_read_no_key_that_comes_after_them():
  assert products(True) == [1] * 8
  assert products(False) == [0] * 7 + [8]


@pytest.mark.parametrize(("wrong", "words"), [
  ({"key_mask_BM": np.ones((2, 69), bool)}, r"key_mask_BM: has shape \(2, 69\), must have \(2, 70\)"),
  ({"bias_BHLM": np.ones((2, 1, 70, 70))}, r"bias_BHLM: has shape .* or \(1, 4, 70, 70\)"),
  ({"key_segments_BM": np.ones((2, 70), np.int32)}, "both or neither must be given"),
])  # fmt: skip
def test_arrays_that_do_not_fit_are_refused(wrong, words):
  inputs, _ = CASES[0].arrays()
  with pytest.raises(ValueError, match=words):
    attend(**inputs, **wrong, cfg=Section())
