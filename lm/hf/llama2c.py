"""Version-0 files of llama2.c: a Llama's sizes and float32 weights."""

import pathlib
from typing import Any

import numpy as np

from lm.config.errors import ConfigError
from lm.hf.architectures import LLAMA
from lm.hf.convert import State, to_halves

HEADER = 28  # bytes


def read_llama2c(path: str | pathlib.Path) -> tuple[State, dict[str, Any]]:
  """(arrays by Llama's names, content of config.json) of a version-0 file of llama2.c.

  Seven int32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, seq_len), then float32
  weights; a negative vocab_size says that the head is not the embedding. Its rotary pairs are
  neighbours (2i, 2i + 1); rows of the query and key maps are permuted to the pairs (i, i + K/2).

  Raises:
    ConfigError: the file is shorter or longer than its header says.
  """
  raw = pathlib.Path(path).read_bytes()
  if len(raw) < HEADER:
    raise ConfigError(f"{path}: {len(raw)} bytes; use a version-0 file of llama2.c")
  dim, hidden, depth, heads, kv_heads, vocab, seq_len = map(int, np.frombuffer(raw[:HEADER], "<i4"))
  if min(dim, hidden, depth, heads, kv_heads, seq_len, abs(vocab)) < 1 or dim % heads:
    raise ConfigError(f"{path}: its header holds no sizes; use a version-0 file of llama2.c")
  tied, vocab, head_dim = vocab > 0, abs(vocab), dim // heads
  shapes = {
    "model.embed_tokens": (vocab, dim),
    "input_layernorm": (depth, dim),
    "self_attn.q_proj": (depth, heads * head_dim, dim),
    "self_attn.k_proj": (depth, kv_heads * head_dim, dim),
    "self_attn.v_proj": (depth, kv_heads * head_dim, dim),
    "self_attn.o_proj": (depth, dim, heads * head_dim),
    "post_attention_layernorm": (depth, dim),
    "mlp.gate_proj": (depth, hidden, dim),
    "mlp.down_proj": (depth, dim, hidden),
    "mlp.up_proj": (depth, hidden, dim),
    "model.norm": (dim,),
    "rope": (seq_len, head_dim),  # cosines and sines, which follow from the sizes
    **({} if tied else {"lm_head": (vocab, dim)}),
  }
  size = lambda shape: np.prod(shape, dtype=object)
  floats = sum(size(shape) for shape in shapes.values())
  if len(raw) != HEADER + 4 * floats:
    raise ConfigError(
      f"{path}: {len(raw)} bytes, where its header asks for {HEADER + 4 * floats}; "
      "use a version-0 file of llama2.c"
    )
  state, start = {}, HEADER
  for name, shape in shapes.items():
    array = np.frombuffer(raw, "<f4", int(size(shape)), start).reshape(shape)
    start += array.nbytes
    if name in LLAMA.block.values():
      rotated = name in ("self_attn.q_proj", "self_attn.k_proj")
      each = [to_halves(layer, head_dim) if rotated else layer for layer in array]
      state |= {f"model.layers.{i}.{name}.weight": layer for i, layer in enumerate(each)}
    elif name != "rope":
      state[f"{name}.weight"] = array
  hf_config = {
    "model_type": "llama",
    "hidden_size": dim,
    "intermediate_size": hidden,
    "num_hidden_layers": depth,
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "vocab_size": vocab,
    "max_position_embeddings": seq_len,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": tied,
  }
  return state, hf_config
