"""Norms, activations and positions against closed forms and torch."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from lm.models import layers
from tests.test_models import change


def test_norms_have_their_closed_form():
  x = np.random.default_rng(0).standard_normal((2, 3, 16), np.float32) * 3 + 1
  for kind, centred in (("rmsnorm", x), ("layernorm", x - x.mean(-1, keepdims=True))):
    norm = layers.Norm(change(bias=True), kind)
    scale, bias = np.linspace(0.5, 2, 16, dtype=np.float32), np.ones(16, np.float32)
    y = scale * centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    y += bias if kind == "layernorm" else 0
    params = {"scale": scale} | ({"bias": bias} if kind == "layernorm" else {})
    np.testing.assert_allclose(norm.apply({"params": params}, x), y, atol=1e-5)


def test_activations_agree_with_torch():
  torch = pytest.importorskip("torch")
  x = np.linspace(-4, 4, 101, dtype=np.float32)
  t = torch.tensor(x)
  functional = torch.nn.functional
  expected = {
    "gelu": functional.gelu(t, approximate="tanh"),
    "gelu_exact": functional.gelu(t),
    "relu": functional.relu(t),
    "relu2": functional.relu(t) ** 2,
    "silu": functional.silu(t),
    "swiglu": functional.silu(t),
    "geglu": functional.gelu(t, approximate="tanh"),
    "geglu_exact": functional.gelu(t),
    "reglu": functional.relu(t),
  }
  assert set(expected) == set(layers.ACTIVATIONS)
  for name, y in expected.items():
    np.testing.assert_allclose(layers.ACTIVATIONS[name](x), y.numpy(), atol=1e-6, err_msg=name)


def test_sinusoids_are_those_of_the_paper():
  table = layers.sinusoids(jnp.arange(50, dtype=jnp.int32)[None], 8)[0]
  assert table[7, 2] == pytest.approx(math.sin(7 / 10_000 ** (2 / 8)), abs=1e-6)
  assert table[7, 3] == pytest.approx(math.cos(7 / 10_000 ** (2 / 8)), abs=1e-6)


@pytest.mark.parametrize("name", list(layers.ACTIVATIONS))
def test_activations_are_rounded_once(name):
  h, gate = (jnp.linspace(-4, 4, 101).astype(jnp.bfloat16) * scale for scale in (1, 0.7))
  exact = layers.ACTIVATIONS[name](h.astype(jnp.float32))
  found = layers.activate(change(activation=name, dtype="bfloat16"), h, None)
  np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))
  gated = layers.activate(change(activation=name, dtype="bfloat16"), gate, h)
  np.testing.assert_array_equal(gated, (gate.astype(jnp.float32) * exact).astype(jnp.bfloat16))
