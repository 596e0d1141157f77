"""The table of Hugging Face's decoders: what each calls its weights and the keys of its config.json.

One row of ARCHITECTURES is one `model_type`. lm/hf/fields.py reads and writes config.json by it,
lm/hf/convert.py the weights. What a row does not name, its models do not have.
"""

from typing import Any, NamedTuple

GATED_ACTS = {
  "silu": "swiglu",
  "swish": "swiglu",
  "gelu_pytorch_tanh": "geglu",
  "gelu_new": "geglu",
  "gelu": "geglu_exact",
  "relu": "reglu",
}
PLAIN_ACTS = {
  "gelu_new": "gelu",
  "gelu_pytorch_tanh": "gelu",
  "gelu_fast": "gelu",
  "gelu": "gelu_exact",
  "relu": "relu",
  "relu2": "relu2",
  "silu": "silu",
  "swish": "silu",
}
REQUIRED = object()  # a default that is none: config.json must hold the key
SAME = "heads"  # default of the number of key/value heads
QUOTIENT = "width/heads"  # default of a head's width
FOURFOLD = "4 width"  # default of the MLP's width


class Key(NamedTuple):
  """A key of config.json that says one field of TransformerConfig."""

  ours: str
  kind: str  # count | number | flag | a name in ACTS below
  default: Any = REQUIRED  # what a config.json without the key means; null means None or that
  off: bool = False  # whether null turns it off, instead of meaning the default


ACTS = {"gated": GATED_ACTS, "plain": PLAIN_ACTS}


class Must(NamedTuple):
  """A key that may have these values alone, the first one if it is left out."""

  values: tuple[Any, ...]
  why: str


class Architecture(NamedTuple):
  label: str
  model_class: str
  keys: dict[str, Key]
  must: dict[str, Must]
  fixed: dict[str, Any]  # fields of TransformerConfig that differ from fields.NEUTRAL
  biases: dict[
    str, str | bool
  ]  # a name of transformer_config.BIASED -> key of config.json, or always
  rope: str | None  # how rotary positions are written: a key of fields.ROPES
  theta: float  # the default of rope_theta
  window: str | None  # how windows are written: a key of fields.WINDOWS
  layers: str  # prefix of the layers' weights
  block: dict[str, str]  # ours, within a block -> theirs, within a layer
  rest: dict[str, str]  # ours -> theirs, once a model
  fused: dict[str, tuple[str, ...]]  # theirs -> ours whose rows lie in it one after the other
  out_in: bool = True  # linear maps are [out, in] there; here they are [in, out]
  by_head: bool = False  # rows of the fused map: q, k, v of the first head, of the second ...
  pairs: str = "halves"  # rotated pairs: halves (i, i + K/2) | neighbours (2i, 2i + 1)
  init: str = "fan_in"  # model.init of an import
  bias: bool = False  # what a key of `biases` that is left out means
  span: int | None = None  # what a sliding_window that is left out means
  unread: tuple[str, ...] = ()  # keys of its files that transformers' code for it does not look at


def _llama_keys(
  kv_heads: Any = SAME, eps: float = 1e-6, act: str = "hidden_act", head_dim: Any = QUOTIENT,
  tied: bool = False, act_default: str = "silu",
) -> dict[str, Key]:  # fmt: skip
  return {
    "vocab_size": Key("vocab_size", "count"),
    "hidden_size": Key("width", "count"),
    "intermediate_size": Key("mlp_dim", "count"),
    "num_hidden_layers": Key("depth", "count"),
    "num_attention_heads": Key("heads", "count"),
    "num_key_value_heads": Key("kv_heads", "count", kv_heads),
    "head_dim": Key("head_dim", "count", head_dim),
    "max_position_embeddings": Key("seq_len", "count"),
    act: Key("activation", "gated", act_default),
    "rms_norm_eps": Key("norm_eps", "number", eps),
    "tie_word_embeddings": Key("tied_embeddings", "flag", tied),
  }


def _gpt_keys(act: str, tied: bool) -> dict[str, Key]:
  return {
    "vocab_size": Key("vocab_size", "count"),
    "n_embd": Key("width", "count"),
    "n_inner": Key("mlp_dim", "count", FOURFOLD),
    "n_layer": Key("depth", "count"),
    "n_head": Key("heads", "count"),
    "n_positions": Key("seq_len", "count"),
    act: Key("activation", "plain", "gelu_new"),
    "layer_norm_epsilon": Key("norm_eps", "number", 1e-5),
    "tie_word_embeddings": Key("tied_embeddings", "flag", tied),
  }


ATTENTION = {
  "attn/q": "self_attn.q_proj",
  "attn/k": "self_attn.k_proj",
  "attn/v": "self_attn.v_proj",
  "attn/out": "self_attn.o_proj",
}
GATED_MLP = {"mlp/gate": "mlp.gate_proj", "mlp/up": "mlp.up_proj", "mlp/down": "mlp.down_proj"}
LLAMA_NORMS = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
GEMMA_NORMS = {
  "attn_norm": "input_layernorm",
  "attn_post_norm": "post_attention_layernorm",
  "mlp_norm": "pre_feedforward_layernorm",
  "mlp_post_norm": "post_feedforward_layernorm",
}
OLMO2_NORMS = {
  "attn_norm": "post_attention_layernorm",
  "mlp_norm": "post_feedforward_layernorm",
}
QK_NORMS = {"attn/q_norm": "self_attn.q_norm", "attn/k_norm": "self_attn.k_norm"}
LLAMA_BLOCK = ATTENTION | GATED_MLP | LLAMA_NORMS
LLAMA_REST = {"embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
GPT_REST = {"embed": "transformer.wte", "final_norm": "transformer.ln_f", "head": "lm_head"}
LAYERNORM = {"norm": "layernorm"}
ALL_BIASED = dict.fromkeys(("qkv", "out", "mlp", "norm"), True)
QKV = ("attn/q", "attn/k", "attn/v")

LLAMA = Architecture(
  label="Llama",
  model_class="LlamaForCausalLM",
  keys=_llama_keys(),
  must={"rope_interleaved": Must((False,), "rotated pairs are halves of a head")},
  fixed={},
  biases={"qkv": "attention_bias", "out": "attention_bias", "mlp": "mlp_bias"},
  rope="plain",
  theta=10_000.0,
  window=None,
  layers="model.layers",
  block=LLAMA_BLOCK,
  rest=LLAMA_REST,
  fused={},
  unread=("is_llama_config",),
)
GEMMA = {
  "norm_position": "sandwich",
  "norm_offset": 1.0,
  "embed_scale": "sqrt width",
}
GEMMA_KEYS = _llama_keys(
  kv_heads=4, act="hidden_activation", act_default="gelu_pytorch_tanh", head_dim=256, tied=True
) | {"query_pre_attn_scalar": Key("attention_scale", "inverse root", 256.0)}
CAUSAL = Must((None, False), "a position sees what came before it")

ARCHITECTURES = {
  "gpt2": Architecture(
    label="GPT-2",
    model_class="GPT2LMHeadModel",
    keys=_gpt_keys("activation_function", tied=True),
    must={
      "scale_attn_weights": Must((True,), "scores are scaled by 1/sqrt(K)"),
      "scale_attn_by_inverse_layer_idx": Must((False,), "every layer scales its scores alike"),
      "add_cross_attention": Must((False,), "there is no encoder"),
    },
    fixed=LAYERNORM | {"positions": "learned"},
    biases=ALL_BIASED,
    rope=None,
    theta=10_000.0,
    window=None,
    layers="transformer.h",
    block={
      "attn_norm": "ln_1", "attn/out": "attn.c_proj", "mlp_norm": "ln_2", "mlp/up": "mlp.c_fc",
      "mlp/down": "mlp.c_proj",
    },
    rest=GPT_REST | {"position_embed": "transformer.wpe"},
    fused={"attn.c_attn": QKV},
    out_in=False,
    init="gpt2",
  ),
  "llama": LLAMA,
  "mistral": LLAMA._replace(
    label="Mistral",
    model_class="MistralForCausalLM",
    keys=_llama_keys(kv_heads=8),
    biases={},
    window="all",
    span=4096,
  ),
  "qwen2": LLAMA._replace(
    label="Qwen2",
    model_class="Qwen2ForCausalLM",
    keys=_llama_keys(kv_heads=32),
    must={"use_mrope": Must((False,), "a position is one number")},
    biases={"qkv": True},
    window="qwen",
    span=4096,
  ),
  "qwen3": LLAMA._replace(
    label="Qwen3",
    model_class="Qwen3ForCausalLM",
    keys=_llama_keys(kv_heads=32, head_dim=128),
    fixed={"qk_norm": True},
    biases={"qkv": "attention_bias", "out": "attention_bias"},
    window="qwen",
    span=4096,
    block=LLAMA_BLOCK | QK_NORMS,
  ),
  "mixtral": LLAMA._replace(
    label="Mixtral",
    model_class="MixtralForCausalLM",
    keys=_llama_keys(kv_heads=8, eps=1e-5)
    | {
      "num_local_experts": Key("experts", "count", 8),
      "num_experts_per_tok": Key("experts_per_token", "count", 2),
    },
    must={"router_jitter_noise": Must((0, None), "the router reads its input as it is")},
    biases={},
    theta=1e6,
    window="all",
    block=ATTENTION
    | LLAMA_NORMS
    | {
      "mlp/router": "block_sparse_moe.gate",
      "mlp/gate": "block_sparse_moe.experts.*.w1",
      "mlp/down": "block_sparse_moe.experts.*.w2",
      "mlp/up": "block_sparse_moe.experts.*.w3",
    },
  ),
  "starcoder2": LLAMA._replace(
    label="StarCoder2",
    model_class="Starcoder2ForCausalLM",
    keys={
      key: row
      for key, row in _llama_keys(kv_heads=2, tied=True).items()
      if key not in ("hidden_act", "rms_norm_eps")
    }
    | {
      "hidden_act": Key("activation", "plain", "gelu_pytorch_tanh"),
      "norm_epsilon": Key("norm_eps", "number", 1e-5),
    },
    must={"mlp_type": Must(("default",), "the MLP is not gated")},
    fixed=LAYERNORM,
    biases={"qkv": "use_bias", "out": "use_bias", "mlp": "use_bias", "norm": True},
    bias=True,
    window="all",
    block=ATTENTION | LLAMA_NORMS | {"mlp/up": "mlp.c_fc", "mlp/down": "mlp.c_proj"},
    unread=(
      "activation_function", "attention_softmax_in_fp32", "layer_norm_epsilon", "norm_type",
      "scale_attention_softmax_in_fp32", "scale_attn_weights",
    ),
  ),
  "gpt_neox": Architecture(
    label="GPT-NeoX",
    model_class="GPTNeoXForCausalLM",
    keys={
      "vocab_size": Key("vocab_size", "count"),
      "hidden_size": Key("width", "count"),
      "intermediate_size": Key("mlp_dim", "count"),
      "num_hidden_layers": Key("depth", "count"),
      "num_attention_heads": Key("heads", "count"),
      "max_position_embeddings": Key("seq_len", "count"),
      "hidden_act": Key("activation", "plain", "gelu"),
      "layer_norm_eps": Key("norm_eps", "number", 1e-5),
      "tie_word_embeddings": Key("tied_embeddings", "flag", False),
      "use_parallel_residual": Key("residual", "parallel", True),
    },
    must={},
    fixed=LAYERNORM,
    biases=ALL_BIASED | {"qkv": "attention_bias", "out": "attention_bias"},
    bias=True,
    rope="neox",
    theta=10_000.0,
    window=None,
    layers="gpt_neox.layers",
    block={
      "attn_norm": "input_layernorm",
      "mlp_norm": "post_attention_layernorm",
      "attn/out": "attention.dense",
      "mlp/up": "mlp.dense_h_to_4h",
      "mlp/down": "mlp.dense_4h_to_h",
    },
    rest={
      "embed": "gpt_neox.embed_in",
      "final_norm": "gpt_neox.final_layer_norm",
      "head": "embed_out",
    },
    fused={"attention.query_key_value": QKV},
    by_head=True,
  ),
  "gptj": Architecture(
    label="GPT-J",
    model_class="GPTJForCausalLM",
    keys=_gpt_keys("activation_function", tied=False)
    | {"rotary_dim": Key("rope_dim", "count", 64)},
    must={
      "rotary": Must((True,), "positions are rotary"),
      "scale_attn_weights": Must((True,), "scores are scaled by 1/sqrt(K)"),
    },
    fixed=LAYERNORM | {"residual": "shared"},
    biases={"mlp": True, "norm": True, "head": True},
    rope="none",
    theta=10_000.0,
    window=None,
    layers="transformer.h",
    block={
      "attn_norm": "ln_1",
      "attn/q": "attn.q_proj",
      "attn/k": "attn.k_proj",
      "attn/v": "attn.v_proj",
      "attn/out": "attn.out_proj",
      "mlp/up": "mlp.fc_in",
      "mlp/down": "mlp.fc_out",
    },
    rest=GPT_REST,
    fused={},
    pairs="neighbours",
  ),
  "mpt": Architecture(
    label="MPT",
    model_class="MptForCausalLM",
    keys={
      "vocab_size": Key("vocab_size", "count"),
      "d_model": Key("width", "count"),
      "n_layers": Key("depth", "count"),
      "n_heads": Key("heads", "count"),
      "max_seq_len": Key("seq_len", "count"),
      "layer_norm_epsilon": Key("norm_eps", "number", 1e-5),
      "tie_word_embeddings": Key("tied_embeddings", "flag", True),
      "attn_config.softmax_scale": Key("attention_scale", "number", None),
    },
    must={
      "expansion_ratio": Must((4,), "the MLP is four times as wide as the model"),
      "no_bias": Must((True,), "transformers' MPT has no biases"),
      "learned_pos_emb": Must((True, False), "positions are ALiBi's either way"),
      "embedding_fraction": Must((1.0, 1), "gradients of the embedding are whole"),
      "norm_type": Must(
        ("low_precision_layernorm", "layernorm"), "transformers' MPT has layer norms"
      ),
      "logit_scale": Must((None,), "transformers' MPT does not scale logits"),
      "attn_config.is_encoder_decoder": Must((False,), "there is no encoder"),
      "attn_config.attn_type": Must(("multihead_attention",), "every head has keys of its own"),
      "attn_config.clip_qkv": Must((None,), "queries, keys and values are not clipped"),
      "attn_config.prefix_lm": Must((False,), "a position sees what came before it"),
      "attn_config.qk_ln": Must((False,), "transformers' MPT has no norms on queries and keys"),
      "attn_config.alibi": Must((True,), "transformers' MPT has ALiBi"),
      "attn_config.alibi_bias_max": Must((8,), "slopes end at 2^-8"),
      "attn_config.attn_uses_sequence_id": Must((False,), "a row is one document"),
    },
    fixed=LAYERNORM | {"positions": "alibi", "activation": "gelu_exact", "mlp_dim": "4 width"},
    biases={},
    rope=None,
    theta=10_000.0,
    window=None,
    layers="transformer.blocks",
    block={
      "attn_norm": "norm_1",
      "attn/out": "attn.out_proj",
      "mlp_norm": "norm_2",
      "mlp/up": "ffn.up_proj",
      "mlp/down": "ffn.down_proj",
    },
    rest=GPT_REST | {"final_norm": "transformer.norm_f"},
    fused={"attn.Wqkv": QKV},
    unread=("init_config", "tokenizer_name"),
  ),
  "phi3": LLAMA._replace(
    label="Phi-3",
    model_class="Phi3ForCausalLM",
    keys=_llama_keys(eps=1e-5),
    must={"attention_bias": Must((False,), "attention has no biases")},
    biases={},
    rope="partial",
    window="all",
    block={"attn/out": "self_attn.o_proj", "mlp/down": "mlp.down_proj"} | LLAMA_NORMS,
    fused={"self_attn.qkv_proj": QKV, "mlp.gate_up_proj": ("mlp/gate", "mlp/up")},
  ),
  "olmo2": LLAMA._replace(
    label="OLMo 2",
    model_class="Olmo2ForCausalLM",
    keys=_llama_keys(eps=1e-5),
    fixed={"norm_position": "reordered", "qk_norm": True, "qk_norm_over": "all"},
    biases={"qkv": "attention_bias", "out": "attention_bias"},
    block=ATTENTION | GATED_MLP | OLMO2_NORMS | QK_NORMS,
  ),
  "gemma2": LLAMA._replace(
    label="Gemma 2",
    model_class="Gemma2ForCausalLM",
    keys=GEMMA_KEYS
    | {
      "attn_logit_softcapping": Key("attention_softcap", "number", 50.0, off=True),
      "final_logit_softcapping": Key("logit_softcap", "number", 30.0, off=True),
    },
    must={"use_bidirectional_attention": CAUSAL},
    fixed=GEMMA,
    biases={"qkv": "attention_bias", "out": "attention_bias"},
    window="gemma2",
    span=4096,
    block=ATTENTION | GATED_MLP | GEMMA_NORMS,
  ),
  "gemma3_text": LLAMA._replace(
    label="Gemma 3",
    model_class="Gemma3ForCausalLM",
    keys=GEMMA_KEYS | {"final_logit_softcapping": Key("logit_softcap", "number", None, off=True)},
    must={
      "use_bidirectional_attention": CAUSAL,
      "attn_logit_softcapping": Must((None,), "transformers' Gemma 3 does not cap scores"),
    },
    fixed=GEMMA | {"qk_norm": True},
    biases={"qkv": "attention_bias", "out": "attention_bias"},
    rope="gemma3",
    theta=1e6,
    window="gemma3",
    span=4096,
    block=ATTENTION | GATED_MLP | GEMMA_NORMS | QK_NORMS,
  ),
}  # fmt: skip

MUST_ALL = {
  "is_encoder_decoder": Must((False, None), "there is no encoder"),
  "pruned_heads": Must(({}, None), "every layer has all of its heads"),
}

# Keys that say nothing of what the model computes when it is run: bookkeeping, defaults of text
# generation, rates of dropout and losses of training (train.py's own config says those).
IGNORED = frozenset([
  "_name_or_path", "architectures", "auto_map", "bos_token_id", "chunk_size_feed_forward",
  "classifier_dropout", "decoder_start_token_id", "dtype", "eos_token_id", "finetuning_task",
  "gradient_checkpointing", "id2label", "init_device", "initializer_range", "is_decoder",
  "label2id", "model_type", "name", "output_attentions", "output_hidden_states",
  "output_router_logits", "pad_token_id", "prefix", "problem_type", "reorder_and_upcast_attn",
  "return_dict", "router_aux_loss_coef", "sep_token_id", "task_specific_params", "tf_legacy_loss",
  "tokenizer_class", "torch_dtype", "torchscript", "transformers_version", "unk_token_id",
  "use_bfloat16", "use_cache", "verbose", "attention_dropout", "attn_pdrop", "embd_pdrop",
  "emb_pdrop", "embedding_dropout", "hidden_dropout", "resid_pdrop", "residual_dropout",
  "attn_impl", "attn_config.attn_impl", "attn_config.attn_pdrop", "attn_config.model_type",
  "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
  "summary_use_proj", "hidden_act", "cache_implementation", "pretraining_tp", "n_ctx",
  "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
  "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id",
  "forced_eos_token_id", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size",
  "num_beam_groups", "num_beams", "num_return_sequences", "output_scores",
  "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "suppress_tokens",
  "temperature", "top_k", "top_p", "typical_p", "cross_attention_hidden_size",
  "tie_encoder_decoder", "_attn_implementation", "_attn_implementation_autoset", "_commit_hash",
  "attn_implementation", "transformers.js_config", "unsloth_fixed", "unsloth_version",
])  # fmt: skip
