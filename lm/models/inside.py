"""What a decoder or an encoder computes inside while it reads one text, for lm.inspect.

L tokens are read. A stream is what the layers of a network add to: the vectors after the embedding, and after
each layer. The logit lens reads every stream as if the network ended there (nostalgebraist 2020).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lm.models import bert, decoder, layers
from lm.models.attention.forms import attend
from lm.models.experts import Experts
from lm.models.heads import MaskedHead, apply
from lm.models.trees import stack_layers, unstack_layers

WATCHED = (decoder.Block, layers.Attention, layers.Mlp, Experts)
WATCHED += (bert.Block, bert.SelfAttention, bert.Mlp)
ROWS = 16  # of a text with a token hidden in each, read together


class Inside(NamedTuple):
  """Arrays on the host, float32 but for `chosen`."""

  attention: Any  # [layers, heads, L, L]; a row a query
  norms: dict[str, Any]  # root mean square over the width, median of positions, a layer
  hidden_LD: Any  # after the last layer
  # None without experts; int [layers, L, k], each token's experts, the best first
  chosen: Any = None
  gates: Any = None  # [layers, L, k], their weights


class Guesses(NamedTuple):
  """Of L places; arrays on the host."""

  top: Any  # int [layers + 1, L]: the likeliest token by each stream
  top_p: Any  # float32 [layers + 1, L]: its probability
  loss_L: Any  # float32, nats, of the token that is there, by the last


def decoder_inside(cfg: Any, params: Any, ids: list[int]) -> tuple[Inside, Guesses]:
  """One pass over ids but for the last, and its guesses of each next one.

  Args:
    cfg: a decoder's resolved section; layers may be shared, and MLPs be experts.
    params: its parameters, as the section stacks them.
  """
  section, params = apart(cfg, params)
  model = decoder.Decoder(section)
  local = layers.local_layers(section) or (True,) * section.depth
  targets_L = np.array(ids[1:], np.int32)

  @jax.jit
  def run(params, tokens_1L):
    kept = _watch(model, params, tokens_1L)
    blocks = [kept[f"block_{i}"] for i in range(section.depth)]
    streams = _streams(kept, blocks)

    def read(m, x_BLD):
      return m.logits(m.final_norm(x_BLD) if layers.has_final_norm(section) else x_BLD)

    logits = [model.apply({"params": params}, x_1LD, method=read) for x_1LD in streams]
    maps = []
    for block, is_local in zip(blocks, local, strict=True):
      own = section if is_local else dataclasses.replace(section, window=None)
      maps.append(_attention(block["attn"]["queries"][0], block["attn"]["keys"][0], own, True))
    routed = [block["mlp"] for block in blocks] if section.experts else []
    picked = [jnp.stack([b[name][0][0] for b in routed]) for name in ("chosen", "gates") if routed]
    inside = Inside(jnp.stack(maps), _norms(streams, blocks), streams[-1][0], *picked)
    return inside, _guesses(jnp.stack([x[0] for x in logits]), targets_L)

  return _on_host(run(params, np.array([ids[:-1]], np.int32)))


def bert_inside(cfg: Any, params: Any, ids: list[int]) -> Inside:
  """One pass of BERT over ids, marks of the ends included.

  Args:
    cfg: its resolved section.
    params: its parameters, as the section stacks them; heads among them are not read.
  """
  section, params = apart(cfg, params)

  @jax.jit
  def run(params, tokens_1L):
    kept = _watch(bert.Bert(section), params, tokens_1L)
    blocks = [kept[f"block_{i}"] for i in range(section.depth)]
    streams, maps = _streams(kept, blocks), []
    for block in blocks:
      q_1LD, k_1LD = (block["attn"][name]["__call__"][0] for name in ("q", "k"))
      heads = lambda y: y.reshape(*y.shape[:2], section.heads, section.head_dim)
      maps.append(_attention(heads(q_1LD), heads(k_1LD), section, False))
    return Inside(jnp.stack(maps), _norms(streams, blocks), streams[-1][0])

  return _on_host(run(params, np.array([ids], np.int32)))


def bert_guesses(cfg: Any, params: Any, head: Any, ids: list[int], mask: int) -> Guesses:
  """What BERT guesses of each of ids but the first and the last when that alone is hidden by `mask`.

  The sum of -loss_L is the text's pseudo-log-likelihood (Salazar et al. 2020, arXiv:1910.14659 eq. 1).

  Args:
    head: parameters of the head for masked tokens (lm.models.heads.MaskedHead).
  """
  section, params = apart(cfg, params)
  model, reader = bert.Bert(section), MaskedHead(section)
  places_N = np.arange(1, len(ids) - 1)

  @jax.jit
  def run(params, head, ids_L):
    def one(place):
      tokens_1L = ids_L.at[place].set(mask)[None]
      kept = _watch(model, params, tokens_1L)
      streams = _streams(kept, [kept[f"block_{i}"] for i in range(section.depth)])
      x_S1D = jnp.stack([x_1LD[:, place] for x_1LD in streams])
      logits_S1V = apply(reader, head, x_S1D, params["embed"]["embedding"])
      return _guesses(logits_S1V, ids_L[place][None])

    found = jax.lax.map(one, places_N, batch_size=ROWS)
    return Guesses(found.top[:, :, 0].T, found.top_p[:, :, 0].T, found.loss_L[:, 0])

  return _on_host(run(params, head, np.array(ids, np.int32)))


def apart(cfg: Any, params: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
  """(section, parameters) of the same model with every layer under its own name, shared ones repeated."""
  plain: dict[str, Any] = {"scan_layers": False, "remat": "none", "dropout": 0.0}
  if getattr(cfg, "share_layers", False):
    rest = {name: part for name, part in params.items() if name != "blocks"}
    layer = {f"block_{i}": params["blocks"] for i in range(cfg.depth)}
    return dataclasses.replace(cfg, share_layers=False, **plain), rest | layer
  stacked = params if cfg.scan_layers else stack_layers(params)
  return dataclasses.replace(cfg, **plain), unstack_layers(stacked)


def _watch(model: Any, params: Any, tokens_BL: jax.Array) -> dict[str, Any]:
  """What modules give that are looked at, by their path."""

  def keep(module, method):
    in_bert = isinstance(module, layers.Linear) and module.name in ("q", "k")
    watched = isinstance(module, WATCHED) or module.name == "dropout" or in_bert
    return watched and method == "__call__"

  _, kept = model.apply(
    {"params": params},
    tokens_BL,
    method="hidden",
    capture_intermediates=keep,
    mutable=["intermediates"],
  )
  return kept["intermediates"]


def _first(call: Any) -> jax.Array:
  return call[0] if isinstance(call, tuple) else call


def _streams(kept: Mapping[str, Any], blocks: list[Any]) -> list[jax.Array]:
  return [kept["dropout"]["__call__"][0], *(_first(b["__call__"][0]) for b in blocks)]


def _norms(streams: list[jax.Array], blocks: list[Any]) -> dict[str, jax.Array]:
  rms = lambda x_1LD: jnp.median(jnp.sqrt(jnp.square(x_1LD.astype(jnp.float32)).mean(axis=-1)))
  return {
    "residual stream": jnp.stack([rms(x) for x in streams]),
    "attention adds": jnp.stack([rms(_first(b["attn"]["__call__"][0])) for b in blocks]),
    "mlp adds": jnp.stack([rms(b["mlp"]["__call__"][0]) for b in blocks]),
  }


def _attention(q_1LHK: jax.Array, k_1LGK: jax.Array, section: Any, causal: bool) -> jax.Array:
  """[H, L, L]: what attention gives where value j is the unit vector j."""
  _, L, G, _ = k_1LGK.shape
  eye_1LGL = jnp.broadcast_to(jnp.eye(L, dtype=k_1LGK.dtype)[None, :, None], (1, L, G, L))
  plain = dataclasses.replace(section, attention="einsum")
  return attend(q_1LHK, k_1LGK, eye_1LGL, plain, causal=causal)[0].swapaxes(0, 1)


def _guesses(logits_SLV: jax.Array, targets_L: Any) -> Guesses:
  log_p_SLV = jax.nn.log_softmax(logits_SLV.astype(jnp.float32))
  loss_L = -jnp.take_along_axis(log_p_SLV[-1], jnp.expand_dims(targets_L, 1), axis=1)[:, 0]
  return Guesses(log_p_SLV.argmax(axis=-1), jnp.exp(log_p_SLV.max(axis=-1)), loss_L)


def _on_host(found: Any) -> Any:
  """Arrays of the host; floating ones in float32."""
  narrow: Callable = lambda a: (
    np.asarray(a) if jnp.issubdtype(a.dtype, jnp.integer) else np.asarray(a, np.float32)
  )
  return jax.tree.map(narrow, found)
