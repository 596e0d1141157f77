"""llama2.c files give their weights back, or say what is wrong with them."""

import struct

import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.hf.convert import from_hf, to_hf
from lm.hf.fields import model_config
from lm.hf.llama2c import read_llama2c
from tests.test_hf import assert_same, cfg_of, draw


def write_llama2c(path, state, cfg):
  """A version-0 file, whose rotary pairs are neighbours, from Llama's arrays."""

  def neighbours(array):
    by_pair = array.reshape(-1, 2, cfg.head_dim // 2, cfg.width)
    return by_pair.swapaxes(1, 2).reshape(array.shape)

  layer = lambda name: [state[f"model.layers.{i}.{name}.weight"] for i in range(cfg.depth)]
  vocab = cfg.vocab_size if cfg.tied_embeddings else -cfg.vocab_size
  header = (cfg.width, cfg.mlp_dim, cfg.depth, cfg.heads, cfg.kv_heads, vocab, cfg.seq_len)
  arrays = [state["model.embed_tokens.weight"]]
  arrays += layer("input_layernorm")
  arrays += [neighbours(a) for a in layer("self_attn.q_proj")]
  arrays += [neighbours(a) for a in layer("self_attn.k_proj")]
  arrays += layer("self_attn.v_proj") + layer("self_attn.o_proj")
  arrays += layer("post_attention_layernorm")
  arrays += layer("mlp.gate_proj") + layer("mlp.down_proj") + layer("mlp.up_proj")
  arrays += [state["model.norm.weight"], np.zeros((cfg.seq_len, cfg.head_dim), np.float32)]
  arrays += [] if cfg.tied_embeddings else [state["lm_head.weight"]]
  path.write_bytes(struct.pack("<7i", *header) + b"".join(a.tobytes() for a in arrays))


@pytest.mark.parametrize("tied", [True, False])
def test_llama2c_files_give_their_weights_back(tmp_path, tied):
  cfg = cfg_of("llama", rms_norm_eps=1e-5, tie_word_embeddings=tied)
  params = draw(cfg)
  write_llama2c(tmp_path / "model.bin", to_hf(params, cfg)[0], cfg)
  fields, found = from_hf(*read_llama2c(tmp_path / "model.bin"))
  assert model_config(fields) == cfg
  assert_same(found, params)


def test_llama2c_files_that_are_cut_or_none_are_refused(tmp_path):
  cfg = cfg_of("llama")
  write_llama2c(tmp_path / "model.bin", to_hf(draw(cfg), cfg)[0], cfg)
  whole = (tmp_path / "model.bin").read_bytes()
  for raw, words in [
    (whole[:-4], "bytes, where its header asks for"),
    (whole[:10], "10 bytes; use a version-0 file"),
    (b"\0" * 28, "its header holds no sizes"),
    (b"\x7f" * 28, "its header holds no sizes|bytes, where its header asks for"),
  ]:
    (tmp_path / "cut.bin").write_bytes(raw)
    with pytest.raises(ConfigError, match=words):
      read_llama2c(tmp_path / "cut.bin")
