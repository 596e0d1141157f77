"""The loss: closed forms, padding, smoothing, and the chunked form against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.objectives.cross_entropy import chunked_token_sums, token_sums
from lm.objectives.next_token import eval_scores
from tests.settings import zero_hparams as hparams

B, L, D, V = 3, 8, 16, 50


def example(seed=0):
  keys = jax.random.split(jax.random.key(seed), 4)
  x_BLD = jax.random.normal(keys[0], (B, L, D))
  head_DV = jax.random.normal(keys[1], (D, V))
  targets_BL = jax.random.randint(keys[2], (B, L), 0, V)
  weights_BL = jax.random.bernoulli(keys[3], 0.7, (B, L)).astype(jnp.float32)
  return x_BLD, head_DV, targets_BL, weights_BL


def test_loss_equals_optax_and_leaves_padding_out():
  x_BLD, head_DV, targets_BL, weights_BL = example()
  logits_BLV = x_BLD @ head_DV
  objective, sums = token_sums(logits_BLV, targets_BL, weights_BL, hparams())
  ce_BL = optax.softmax_cross_entropy_with_integer_labels(logits_BLV, targets_BL)
  np.testing.assert_allclose(sums["loss"], (ce_BL * weights_BL).sum(), rtol=1e-6)
  np.testing.assert_allclose(objective, sums["loss"], rtol=1e-6)
  assert sums["weight"] == weights_BL.sum()
  assert sums["weight"] < B * L
  hits_BL = logits_BLV.argmax(-1) == targets_BL
  assert sums["correct"] == weights_BL[hits_BL].sum()


def test_loss_of_uniform_logits_is_log_v():
  targets_BL = jnp.zeros((B, L), jnp.int32)
  _, sums = token_sums(jnp.zeros((B, L, V)), targets_BL, jnp.ones((B, L)), hparams())
  np.testing.assert_allclose(sums["loss"] / sums["weight"], np.log(V), rtol=1e-6)


def test_ties_are_no_hits_but_for_the_first_token():
  """argmax decides: of equal logits the first one wins, in both forms."""
  logits_BLV = jnp.zeros((1, 4, V)).at[0, 3, 7].set(-1.0)  # one hit: the first target
  targets_BL = jnp.array([[0, 1, V - 1, 7]], jnp.int32)
  _, sums = token_sums(logits_BLV, targets_BL, jnp.ones((1, 4)), hparams())
  assert sums["correct"] == 1 == jnp.sum(logits_BLV.argmax(-1) == targets_BL)
  same = lambda head, x: head * jnp.zeros((*x.shape[:2], V))
  one, weights_BL = jnp.float32(1), jnp.ones((B, L))
  targets_BL = jnp.full((B, L), 3, jnp.int32)
  _, sums = chunked_token_sums(same, one, jnp.ones((B, L, D)), targets_BL, weights_BL, hparams(), 2)
  assert sums["correct"] == 0


def test_the_bits_of_separators_are_no_bits_of_text():
  """text_loss leaves them out, whole and in chunks; bits per byte are made of it."""
  x_BLD, head_DV, targets_BL, weights_BL = example()
  text_BL = jnp.where(targets_BL == targets_BL[0, 0], 0.0, weights_BL)
  weights_BL = weights_BL.at[0, 0].set(1.0)
  assert text_BL.sum() < weights_BL.sum()
  ce_BL = optax.softmax_cross_entropy_with_integer_labels(x_BLD @ head_DV, targets_BL)
  _, sums = token_sums(x_BLD @ head_DV, targets_BL, weights_BL, hparams(), text_BL)
  np.testing.assert_allclose(sums["text_loss"], (ce_BL * text_BL).sum(), rtol=1e-6)
  dot = lambda head, x: x @ head
  _, chunks = chunked_token_sums(dot, head_DV, x_BLD, targets_BL, weights_BL, hparams(), 2, text_BL)
  np.testing.assert_allclose(chunks["text_loss"], sums["text_loss"], rtol=1e-5)
  scores = eval_scores({key: float(value) for key, value in sums.items()}, {"bytes": 40.0})
  assert scores["bpb"] == pytest.approx(float((ce_BL * text_BL).sum()) / np.log(2) / 40)
  assert scores["loss"] == pytest.approx(float((ce_BL * weights_BL).sum() / weights_BL.sum()))


def test_z_loss_and_smoothing_move_the_objective_but_not_the_reported_loss():
  x_BLD, head_DV, targets_BL, weights_BL = example()
  logits_BLV = x_BLD @ head_DV
  plain, plain_sums = token_sums(logits_BLV, targets_BL, weights_BL, hparams())
  both = hparams(z_loss=1e-2, label_smoothing=0.1)
  objective, sums = token_sums(logits_BLV, targets_BL, weights_BL, both)
  assert sums["loss"] == plain_sums["loss"]
  log_z_BL = jax.nn.logsumexp(logits_BLV, axis=-1)
  smooth_BLV = 0.9 * jax.nn.one_hot(targets_BL, V) + 0.1 / V
  ce_BL = optax.softmax_cross_entropy(logits_BLV, smooth_BLV)
  expected = (weights_BL * (ce_BL + 1e-2 * log_z_BL**2)).sum()
  np.testing.assert_allclose(objective, expected, rtol=1e-5)
  assert abs(objective - plain) > 1


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_chunked_loss_and_gradients_equal_the_plain_ones(chunk):
  x_BLD, head_DV, targets_BL, weights_BL = example()
  settings = hparams(z_loss=1e-2, label_smoothing=0.1)

  def plain(head_DV, x_BLD):
    return token_sums(x_BLD @ head_DV, targets_BL, weights_BL, settings)

  def chunked(head_DV, x_BLD):
    return chunked_token_sums(
      lambda head, x: x @ head, head_DV, x_BLD, targets_BL, weights_BL, settings, chunk
    )

  def grad(f):
    return jax.value_and_grad(f, argnums=(0, 1), has_aux=True)(head_DV, x_BLD)

  (value, sums), grads = grad(plain)
  (chunk_value, chunk_sums), chunk_grads = grad(chunked)
  assert largest_array(chunked, head_DV, x_BLD) < B * L * V <= largest_array(plain, head_DV, x_BLD)
  np.testing.assert_allclose(chunk_value, value, rtol=1e-6)
  for a, b in zip(
    jax.tree.leaves((sums, grads)), jax.tree.leaves((chunk_sums, chunk_grads)), strict=True
  ):
    np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)


def largest_array(f, *args):
  """Elements of the largest intermediate of the gradient's jaxpr, inputs and loops included."""
  jaxpr = jax.make_jaxpr(jax.grad(lambda *a: f(*a)[0], argnums=(0, 1)))(*args)
  return max(var.aval.size for eqn in all_equations(jaxpr.jaxpr) for var in eqn.outvars)


def all_equations(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn
    for value in eqn.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        yield from all_equations(inner)
