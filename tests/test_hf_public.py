"""config.json as public models have it: keys beyond those that transformers reads do not stand in the way."""

import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.hf.bert import bert_fields, from_bert
from lm.hf.fields import fields_of
from lm.hf.t5 import fields_of_t5, t5_from_hf

# What most files have beside the sizes.
NOTES = {
  "architectures": ["A"], "auto_map": {}, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.02,
  "torch_dtype": "bfloat16", "transformers_version": "4.40.1", "use_cache": True,
}  # fmt: skip
LLAMAS = {
  "hidden_act": "silu", "attention_dropout": 0.0, "rope_theta": 1e5, "rms_norm_eps": 1e-5, "vocab_size": 512,
  "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
  "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip
GPTS = {
  "vocab_size": 512, "n_embd": 256, "n_head": 4, "n_layer": 2, "n_positions": 128, "layer_norm_epsilon": 1e-5,
  "activation_function": "gelu_new", "resid_pdrop": 0.0, "summary_type": "cls_index", "n_inner": None,
}  # fmt: skip
MPT = {
  "alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0, "prefix_lm": False,
  "attn_type": "multihead_attention", "attn_uses_sequence_id": False, "clip_qkv": None, "qk_ln": False,
  "softmax_scale": None,
}  # fmt: skip
BERTS = {
  "attention_probs_dropout_prob": 0.1, "directionality": "bidi", "hidden_act": "gelu", "hidden_size": 8,
  "hidden_dropout_prob": 0.1, "intermediate_size": 16, "layer_norm_eps": 1e-12, "type_vocab_size": 2,
  "max_position_embeddings": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "pad_token_id": 0,
  "pooler_fc_size": 768, "pooler_num_attention_heads": 12, "pooler_num_fc_layers": 3, "vocab_size": 30,
  "pooler_size_per_head": 128, "pooler_type": "first_token_transform", "model_type": "bert",
  "position_embedding_type": "absolute", "gradient_checkpointing": False,
}  # fmt: skip
PUBLIC = {
  "SmolLM2": LLAMAS
  | {
    "model_type": "llama", "attention_bias": False, "mlp_bias": False, "is_llama_config": True,
    "pretraining_tp": 1, "rope_interleaved": False, "rope_scaling": None,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "_attn_implementation_autoset": True,
  },
  "Qwen2.5": LLAMAS
  | {
    "model_type": "qwen2", "max_window_layers": 24, "sliding_window": 32768, "use_mrope": False,
    "use_sliding_window": False,
  },
  "Phi-3": LLAMAS
  | {
    "model_type": "phi3", "attention_bias": False, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
    "original_max_position_embeddings": 128, "sliding_window": 100, "pad_token_id": 1, "rope_scaling": None,
  },
  "StarCoder2": {k: v for k, v in LLAMAS.items() if k != "rms_norm_eps"}
  | {
    "model_type": "starcoder2", "hidden_act": "gelu_pytorch_tanh", "activation_function": "gelu",
    "attention_softmax_in_fp32": True, "layer_norm_epsilon": 1e-5, "mlp_type": "default",
    "norm_epsilon": 1e-5, "norm_type": "layer_norm", "scale_attention_softmax_in_fp32": True,
    "scale_attn_weights": True, "use_bias": True, "residual_dropout": 0.1, "embedding_dropout": 0.1,
    "sliding_window": 4096,
  },
  "GPT-J": GPTS
  | {
    "model_type": "gptj", "rotary": True, "rotary_dim": 64, "scale_attn_weights": True,
    "tie_word_embeddings": False,
  },
  "MPT": {
    "model_type": "mpt", "attn_config": MPT, "d_model": 64, "n_heads": 4, "n_layers": 2, "vocab_size": 512,
    "emb_pdrop": 0, "embedding_fraction": 1.0, "expansion_ratio": 4, "init_device": "cpu", "no_bias": True,
    "init_config": {"name": "kaiming_normal_"}, "learned_pos_emb": True, "logit_scale": None, "verbose": 0,
    "max_seq_len": 128, "norm_type": "low_precision_layernorm", "resid_pdrop": 0, "tokenizer_name": "neox",
  },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_decoders_as_they_are_published_are_read(name):
  fields = fields_of(PUBLIC[name] | NOTES)
  assert (fields["depth"], fields["vocab_size"], fields["seq_len"]) == (2, 512, 128)


@pytest.mark.parametrize(
  ("name", "change", "words"),
  [
    ("SmolLM2", {"rope_interleaved": True}, "rope_interleaved=True: must be False"),
    ("Qwen2.5", {"use_mrope": True}, "use_mrope=True: must be False"),
    ("Phi-3", {"attention_bias": True}, "attention_bias=True: must be False"),
    ("GPT-J", {"rotary": False}, "rotary=False: must be True"),
    ("GPT-J", {"rotary_dim": None}, "rotary_dim=null: must be a number; say which in config.json"),
    ("MPT", {"activation_function": "gelu"}, "activation_function=gelu: is no key of mpt"),
  ],
)
def test_what_changes_the_model_is_refused_by_name(name, change, words):
  with pytest.raises(ConfigError) as error:
    fields_of(PUBLIC[name] | NOTES | change)
  assert str(error.value).startswith(words)


def test_a_flag_of_null_is_off():
  neox = {
    "model_type": "gpt_neox", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 32,
  }  # fmt: skip
  assert fields_of(neox)["residual"] == "parallel"
  assert fields_of(neox | {"use_parallel_residual": None})["residual"] == "serial"


def test_encoders_as_they_are_published_are_read_and_other_keys_refused():
  fields = bert_fields(BERTS | NOTES)
  assert (fields["depth"], fields["vocab_size"]) == (1, 30)
  with pytest.raises(ConfigError, match="embedding_size=4: is no key of bert that is known here"):
    bert_fields(BERTS | {"embedding_size": 4})


def test_arrays_that_are_said_twice_must_be_one():
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  b = "bert.encoder.layer.0"
  linear = {
    f"{b}.attention.self.query": (8, 8), f"{b}.attention.self.key": (8, 8),
    f"{b}.attention.self.value": (8, 8), f"{b}.attention.output.dense": (8, 8),
    f"{b}.intermediate.dense": (16, 8), f"{b}.output.dense": (8, 16),
    "cls.predictions.transform.dense": (8, 8),
  }  # fmt: skip
  norms = [f"{b}.attention.output.LayerNorm", f"{b}.output.LayerNorm", "bert.embeddings.LayerNorm"]
  norms.append("cls.predictions.transform.LayerNorm")
  state = {f"{name}.weight": draw(*shape) for name, shape in linear.items()}
  state |= {f"{name}.bias": draw(shape[0]) for name, shape in linear.items()}
  state |= {f"{name}.{leaf}": draw(8) for name in norms for leaf in ("weight", "bias")}
  for name, n in (("word", 30), ("position", 16), ("token_type", 2)):
    state[f"bert.embeddings.{name}_embeddings.weight"] = draw(n, 8)
  state["cls.predictions.bias"] = draw(30)
  table, again = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
  assert from_bert(state | {again: state[table]}, BERTS)[0]["depth"] == 1
  with pytest.raises(ConfigError, match=f"{again}: is another array than {table}"):
    from_bert(state | {again: draw(30, 8)}, BERTS)


def test_a_t5_with_two_tables_is_refused():
  said = {
    "model_type": "t5", "d_ff": 8, "d_kv": 4, "d_model": 8, "num_heads": 2, "num_layers": 1, "vocab_size": 20,
    "is_encoder_decoder": True, "_attn_implementation_autoset": True, "decoder_start_token_id": 0,
  }  # fmt: skip
  assert fields_of_t5(said)["depth"] == 1
  state = {"shared.weight": np.zeros((20, 8), np.float32)}
  other = {"decoder.embed_tokens.weight": np.ones((20, 8), np.float32)}
  with pytest.raises(
    ConfigError, match=r"decoder\.embed_tokens\.weight: differs from shared\.weight"
  ):
    t5_from_hf(state | other, said)
