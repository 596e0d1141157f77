"""Agreement with independent implementations, and weights that survive the way out and in."""

import dataclasses
import functools
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.hf.architectures import ARCHITECTURES
from lm.hf.convert import from_hf, to_hf
from lm.hf.fields import NEUTRAL, config_of, fields_of, model_config
from lm.hf.folder import read_folder, read_json, read_safetensors, write_folder
from lm.hf.models import read_model
from lm.hf.rotary import ROPE
from lm.models.registry import make_model
from lm.models.transformer_config import TransformerConfig
from lm.models.trees import unstack_layers
from tests.equalities import shapes_of
from tests.fuzzing import cases
from tests.test_models import jit

V, LENGTH = 31, 15
LLAMA = {
  "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
  "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
NEOX = {
  "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
  "num_attention_heads": 2, "max_position_embeddings": 32, "rotary_pct": 0.5,
}  # fmt: skip
GEMMA = LLAMA | {"head_dim": 6, "sliding_window": 4, "query_pre_attn_scalar": 9}
GPT2 = {"vocab_size": V, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
LLAMA3 = {
  "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
  "original_max_position_embeddings": 16,
}  # fmt: skip
YARN = {
  "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0,
  "beta_slow": 0.5,
}  # fmt: skip
# name -> (model_type, what its config says beside the defaults)
MODELS = {
  "gpt2": ("gpt2", GPT2 | dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)),
  "llama": ("llama", LLAMA),
  "llama_biases": (
    "llama",
    LLAMA
    | {"attention_bias": True, "mlp_bias": True, "head_dim": 6, "tie_word_embeddings": True}
    | {"rope_theta": 500.0},
  ),
  "llama3": ("llama", LLAMA | {"rope_scaling": LLAMA3, "rope_theta": 50.0}),
  "mistral": ("mistral", LLAMA | {"sliding_window": 5}),
  "qwen2": ("qwen2", LLAMA | {"tie_word_embeddings": True}),
  "qwen3": ("qwen3", LLAMA | {"head_dim": 6}),
  "mixtral": ("mixtral", LLAMA | {"num_local_experts": 4}),
  "starcoder2": ("starcoder2", LLAMA),
  "neox": ("gpt_neox", NEOX),
  "gptj": (
    "gptj",
    {
      "n_embd": 16,
      "n_layer": 2,
      "n_head": 2,
      "rotary_dim": 4,
      "vocab_size": V,
      "n_positions": 32,
    },
  ),
  "mpt": ("mpt", {"d_model": 18, "n_layers": 2, "n_heads": 3, "vocab_size": V, "max_seq_len": 32}),
  "phi3": ("phi3", LLAMA | {"sliding_window": 6, "partial_rotary_factor": 0.5}),
  "olmo2": ("olmo2", LLAMA),
  "gemma2": ("gemma2", GEMMA),
  "gemma3": (
    "gemma3_text",
    GEMMA
    | {"sliding_window_pattern": 3, "final_logit_softcapping": 5.0}
    | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
  ),
}
MORE = {
  "llama_attention_biases": ("llama", LLAMA | {"attention_bias": True}),
  "llama_linear": ("llama", LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
  "llama_yarn": ("llama", LLAMA | {"head_dim": 8, "rope_scaling": YARN}),
  "qwen2_windows": (
    "qwen2",
    LLAMA | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
  ),
  "starcoder2_no_biases": ("starcoder2", LLAMA | {"use_bias": False, "sliding_window": 5}),
  "neox_serial": (
    "gpt_neox",
    NEOX | {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0},
  ),
  "phi3_plain": ("phi3", LLAMA),
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in MORE]


def torch_config(name):
  """The library's config of this name."""
  transformers = pytest.importorskip("transformers")
  transformers.logging.set_verbosity_error()
  transformers.logging.disable_progress_bar()
  kind, options = (MODELS | MORE)[name]
  ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
  return transformers.AutoConfig.for_model(kind, **ids | options)


@functools.cache
def torch_model(name):
  """The library's model of this name with drawn weights, without dropout."""
  config = torch_config(name)
  transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
  return model.train()


def arrays_of(model):
  return {key: value.detach().numpy().copy() for key, value in model.state_dict().items()}


def hf_config_of(name):
  """The config.json of this name, without the library; for models that it need not check."""
  kind, options = (MODELS | MORE)[name]
  return {"model_type": kind} | options


def cfg_of(name, **changes):
  return model_config(fields_of(hf_config_of(name) | changes))


def draw(cfg, seed=0):
  """Parameters of a config, none of them at its initial zero or one."""
  shapes = shapes_of(cfg)
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda s: 0.3 * rng.standard_normal(s.shape, np.float32) + 0.1, shapes)


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


# --- agreement ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MODELS, *SLOW])
def test_logits_and_gradients_equal_those_of_transformers(name):
  model = torch_model(name)
  torch = pytest.importorskip("torch")
  arrays, hf_config = arrays_of(model), model.config.to_dict()
  fields, params = from_hf(arrays, hf_config)
  cfg = model_config(fields)
  decoder = make_model(cfg)
  tokens_BL = np.random.default_rng(0).integers(1, V, (3, LENGTH))
  targets_BL = np.random.default_rng(1).integers(1, V, (3, LENGTH))

  model.zero_grad()
  logits = model(torch.tensor(tokens_BL)).logits
  torch.nn.functional.cross_entropy(
    logits.reshape(-1, V), torch.tensor(targets_BL).reshape(-1)
  ).backward()
  theirs = {key: value.grad.numpy() for key, value in model.named_parameters()}
  _, their_grads = from_hf(theirs, hf_config)

  @jit
  @functools.partial(jax.grad, has_aux=True)
  def grads_and_logits(params):
    logits_BLV = decoder.apply({"params": params}, jnp.asarray(tokens_BL, jnp.int32))
    log_p_BLV = jax.nn.log_softmax(logits_BLV)
    return -jnp.take_along_axis(log_p_BLV, targets_BL[..., None], -1).mean(), logits_BLV

  grads, our_logits = grads_and_logits(params)
  assert np.abs(our_logits).max() > 1  # otherwise anything would agree
  np.testing.assert_allclose(our_logits, logits.detach().numpy(), atol=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), grads, their_grads
  )


@pytest.mark.parametrize("name", [*MODELS, *MORE])
def test_folders_of_transformers_come_back_bit_equal_and_load_there(name, tmp_path):
  """Theirs, as they write it -> ours -> a folder of ours -> theirs, as they read it."""
  model = torch_model(name)
  transformers = pytest.importorskip("transformers")
  model.save_pretrained(tmp_path / "theirs")
  state, hf_config = read_folder(tmp_path / "theirs")
  fields, params = from_hf(state, hf_config)
  back, back_config = to_hf(params, model_config(fields), hf_config["model_type"])
  assert back_config["model_type"] == hf_config["model_type"]
  head = "lm_head.weight"
  assert_same(back, {k: v for k, v in state.items() if k != head or k in back})

  write_folder(tmp_path / "ours", back, back_config | {"pad_token_id": 0})
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
      tmp_path / "ours", attn_implementation="eager"
    )
  assert type(loaded) is type(model)
  assert_same(arrays_of(loaded), arrays_of(model))
  torch = pytest.importorskip("torch")
  tokens_BL = torch.tensor(np.random.default_rng(0).integers(1, V, (2, LENGTH)))
  with torch.no_grad():
    np.testing.assert_array_equal(loaded.eval()(tokens_BL).logits, model.eval()(tokens_BL).logits)
  model.train()


@pytest.mark.parametrize("name", [
  "gemma3", *(pytest.param(n, marks=pytest.mark.slow) for n in MODELS if n != "gemma3"),
])  # fmt: skip
def test_greedy_text_is_that_of_transformers(name, tmp_path):
  from lm.generate import Sampling, make_generator

  model, torch = torch_model(name), pytest.importorskip("torch")
  fields, params = from_hf(arrays_of(model), model.config.to_dict())
  prompt = [5, 17, 2, 9]
  ours = make_generator(model_config(fields), 10)(params, [prompt], Sampling(temperature=0.0), 0, 0)
  with torch.no_grad():
    theirs = model.eval().generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False)
  model.train()
  new = theirs[0, len(prompt) :].tolist()
  assert list(ours[0]) == new[: new.index(0)] if 0 in new else list(ours[0]) == new


def test_configs_of_transformers_4_and_5_say_the_same():
  """rope_theta, rope_scaling and sliding_window_pattern; rope_parameters and layer_types."""
  for name in MODELS | MORE:
    said = fields_of(torch_config(name).to_dict())
    assert said == fields_of(hf_config_of(name)), name


# --- out and in -----------------------------------------------------------------------------------


@pytest.mark.parametrize("scan", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "llama_biases"])
def test_out_and_in_again_is_exact(name, scan):
  cfg = dataclasses.replace(cfg_of(name), scan_layers=scan)
  params = draw(cfg)
  state, hf_config = to_hf(params, cfg)
  assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in state.values())
  fields, back = from_hf(state, hf_config)
  assert dataclasses.replace(cfg, **fields) == cfg
  assert_same(back if scan else unstack_layers(back), params)


@pytest.mark.parametrize("name", [*MODELS, *MORE])
def test_every_config_goes_out_and_in_again(name):
  cfg = cfg_of(name)
  kind = hf_config_of(name)["model_type"]
  written = json.loads(json.dumps(config_of(cfg, kind)))
  assert written["model_type"] == kind
  assert dataclasses.replace(cfg, **fields_of(written)) == cfg


def test_the_simplest_architecture_that_can_say_a_model_is_taken():
  kinds = {name: config_of(cfg_of(name))["model_type"] for name in MODELS | MORE}
  assert kinds["phi3_plain"] == "llama" and kinds["phi3"] == "phi3"
  assert all(kinds[name] == MODELS[name][0] for name in MODELS)
  assert config_of(cfg_of("llama"), "qwen2")["model_type"] == "llama"  # no biases to put there


def test_names_without_prefix_and_mask_buffers_are_understood():
  params = draw(cfg_of("gpt2"))
  state, hf_config = to_hf(params, cfg_of("gpt2"))
  bare = {name.removeprefix("transformer."): array for name, array in state.items()}
  bare |= {
    "h.0.attn.bias": np.ones((1, 1, 16, 16)),
    "lm_head.weight": state["transformer.wte.weight"],
  }
  assert_same(from_hf(bare, hf_config)[1], params)


def test_experts_of_both_spellings_are_read():
  """One matrix an expert, as files have it, and all in one, as transformers 5 has them in memory."""
  cfg = cfg_of("mixtral")
  params = draw(cfg)
  state, hf_config = to_hf(params, cfg)
  assert "model.layers.0.block_sparse_moe.experts.3.w2.weight" in state
  fused = {k: v for k, v in state.items() if ".experts." not in k and "gate" not in k}
  for i in range(cfg.depth):
    mlp = params["blocks"]["mlp"]
    both = [mlp[part]["kernel"][i].swapaxes(1, 2) for part in ("gate", "up")]
    fused |= {
      f"model.layers.{i}.mlp.experts.gate_up_proj": np.concatenate(both, axis=1),
      f"model.layers.{i}.mlp.experts.down_proj": mlp["down"]["kernel"][i].swapaxes(1, 2),
      f"model.layers.{i}.mlp.gate.weight": mlp["router"]["kernel"][i].T,
    }
  assert_same(from_hf(fused, hf_config)[1], params)


# --- folders --------------------------------------------------------------------------------------


def test_folders_hold_what_was_written_whole_or_in_shards(tmp_path):
  cfg = cfg_of("llama")
  state, hf_config = to_hf(draw(cfg), cfg)
  for folder, limit in ((tmp_path / "whole", 10**9), (tmp_path / "shards", 3000)):
    write_folder(folder, state, hf_config, shard_bytes=limit)
    found, found_config = read_folder(folder)
    assert_same(found, state)
    assert found_config == hf_config
  files = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
  assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
  transformers = pytest.importorskip("transformers")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "shards")
  assert_same(arrays_of(loaded), state)

  (tmp_path / "shards" / files[1]).unlink()
  with pytest.raises(
    ConfigError, match=rf"{files[1]}: is named in model.safetensors.index.json and"
  ):
    read_folder(tmp_path / "shards")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_are_written_and_read(tmp_path, dtype):
  torch = pytest.importorskip("torch")
  cfg = cfg_of("llama")
  state, hf_config = to_hf(draw(cfg), cfg)
  write_folder(tmp_path, state, hf_config, dtype)
  assert read_json(tmp_path / "config.json")["torch_dtype"] == dtype
  _, params = from_hf(*read_folder(tmp_path))
  expected = torch.tensor(state["model.embed_tokens.weight"]).to(getattr(torch, dtype)).float()
  np.testing.assert_array_equal(params["embed"]["embedding"], expected.numpy())
  assert params["embed"]["embedding"].dtype == np.float32


def test_weights_beyond_the_range_of_their_dtype_are_not_written(tmp_path):
  """float16 ends at 65504: what is larger would become infinite in silence."""
  cfg = cfg_of("llama")
  state, hf_config = to_hf(draw(cfg), cfg)
  name = "model.layers.0.mlp.up_proj.weight"
  state[name] = state[name].copy()
  state[name][0, 0] = 7e4
  with pytest.raises(
    ConfigError, match=rf"dtype=float16: {name} holds 70000, and float16 ends at 65504"
  ):
    write_folder(tmp_path / "half", state, hf_config, "float16")
  write_folder(tmp_path / "wide", state, hf_config, "bfloat16")
  state[name][0, 0] = np.nan
  with pytest.raises(ConfigError, match=rf"{name}: holds numbers that are not finite"):
    write_folder(tmp_path / "half", state, hf_config)
  with pytest.raises(
    ConfigError, match="up/kernel: holds numbers that are not finite; copy the weights"
  ):
    read_model(state, hf_config)
  assert not (tmp_path / "half").exists()


def test_a_head_that_a_tied_model_does_not_use_is_not_dropped_in_silence():
  cfg = cfg_of("llama")
  state, hf_config = to_hf(draw(cfg), cfg)
  hf_config |= {"tie_word_embeddings": True}
  table = state["model.embed_tokens.weight"]
  with pytest.raises(
    ConfigError, match="tie_word_embeddings=True: the head of the weights is another"
  ):
    read_model({**state, "lm_head.weight": table + 1}, hf_config)
  fields, _ = read_model({**state, "lm_head.weight": table.copy()}, hf_config)
  assert fields["tied_embeddings"]
  for kind in (["llama"], None, {}):
    with pytest.raises(ConfigError, match=r"model_type=.*: must be one of"):
      read_model(state, hf_config | {"model_type": kind})


def test_a_run_directory_is_not_exported_over(tmp_path):
  cfg = cfg_of("llama")
  state, hf_config = to_hf(draw(cfg), cfg)
  for name in ("run.json", "config.json"):
    (tmp_path / name).write_text("{}")
  with pytest.raises(ConfigError, match=r"is a run directory, whose config\.json would be lost"):
    write_folder(tmp_path, state, hf_config)
  assert (tmp_path / "config.json").read_text() == "{}"


def test_folders_that_cannot_be_read_are_refused_in_one_line(tmp_path):
  cfg = cfg_of("llama")
  state, hf_config = to_hf(draw(cfg), cfg)
  write_folder(tmp_path, state, hf_config)
  weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
  whole = weights.read_bytes()
  for raw in (whole[:-4], whole[:20], b"", b"\xff" * 64, whole[:8] + b"x" + whole[9:]):
    weights.write_bytes(raw)
    with pytest.raises(ConfigError, match=r"model.safetensors: cannot be read as safetensors \("):
      read_folder(tmp_path)
  weights.unlink()
  (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
  with pytest.raises(ConfigError, match=r"pytorch_model.bin: is a pickle, which can run any code"):
    read_folder(tmp_path)
  for text in ("", "{", "null", "[1]", "\ud800".encode("utf-8", "surrogatepass")):
    config.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=r"config.json: (cannot be read as JSON|must be an obj)"):
      read_folder(tmp_path)


def test_weights_that_do_not_fit_are_named():
  cfg = cfg_of("llama")
  state, hf_config = to_hf(draw(cfg), cfg)
  q = "model.layers.1.self_attn.q_proj.weight"
  for change, words in [
    ({"model.norm.weight": None}, "model.norm.weight: the weights lack it"),
    ({q: None}, f"{q}: the weights lack it"),
    ({"model.extra.weight": np.ones(3)}, "model.extra.weight: is no weight of this llama"),
    ({"model.norm.weight": np.ones(3)}, "model.norm.weight=(3,): config.json says (16,)"),
    ({q: state[q][:8]}, f"{q}=(8, 16): config.json says (16, 16)"),
    ({q: state[q].astype(np.int8)}, f"{q}=int8: must be numbers with a fraction"),
  ]:
    broken = {k: v for k, v in (state | change).items() if v is not None}
    with pytest.raises(ConfigError) as error:
      from_hf(broken, hf_config)
    assert str(error.value).startswith(words)
  fused, hf_config = to_hf(draw(cfg_of("phi3")), cfg_of("phi3"))
  name = "model.layers.0.self_attn.qkv_proj.weight"
  for array, words in ((fused[name][:-1], f"{name}=(31, 16): must have 32 rows"), (None, name)):
    broken = {k: v for k, v in (fused | {name: array}).items() if v is not None}
    with pytest.raises(ConfigError) as error:
      from_hf(broken, hf_config)
    assert str(error.value).startswith(words)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "name, change, words",
  [
    ("llama", {"model_type": "bert"}, "model_type=bert: must be one of gpt2, llama, mistral"),
    ("llama", {"model_type": None}, "model_type=None: must be one of gpt2, llama, mistral"),
    ("llama", {"hidden_act": "tanh"}, "hidden_act=tanh: must be one of silu, swish, gelu_pyto"),
    (
      "llama",
      {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
      "rope_type=dynamic: must be one of default, linear, llama3, yarn (the others depend on",
    ),
    ("phi3", {"rope_scaling": YARN}, "rope_type=yarn: must be default in Phi-3"),
    (
      "llama",
      {"rope_scaling": LLAMA3 | {"mrope_section": [1]}},
      "rope_scaling.mrope_section=[1]: is no key of rope_type=llama3 that is known here",
    ),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor: config.json lacks it; add it"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False: must be True"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True: must be False"),
    ("gpt2", {"pruned_heads": {"0": [1]}}, "pruned_heads={'0': [1]}: must be {}"),
    ("llama", {"residual_multiplier": 0.5}, "residual_multiplier=0.5: is no key of llama that is"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4}: is no key"),
    ("mpt", {"attn_config": {"clip_qkv": 6}}, "attn_config.clip_qkv=6: must be None"),
    ("mpt", {"attn_config": {"kv_n_heads": 2}}, "attn_config.kv_n_heads=2: is no key of mpt"),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0: must be None"),
    ("gemma2", {"layer_types": ["full_attention"]}, "layer_types: has 1 entry for 3 layers"),
    ("gemma2", {"layer_types": ["chunked"] * 3}, "layer_types=chunked: must be one of sliding_att"),
    ("llama", {"hidden_size": None}, "hidden_size: config.json lacks it; add it"),
    ("llama", {"hidden_size": "16"}, "hidden_size=16: must be a whole number of at least 1"),
    ("llama", {"hidden_size": True}, "hidden_size=True: must be a whole number of at least 1"),
    ("llama", {"num_hidden_layers": -1}, "num_hidden_layers=-1: must be a whole number of at"),
    ("llama", {"rms_norm_eps": 10**400}, "rms_norm_eps=1000"),
    ("llama", {"rope_theta": float("nan")}, "rope_theta=nan: must be a number above 0"),
    ("llama", {"num_key_value_heads": 3}, "model.kv_heads=3: must divide model.heads=4"),
    ("llama", {"hidden_size": 18}, "heads=4: must divide the width, 18; check config.json"),
    ("llama", {"head_dim": 5}, "model.head_dim=5: must be even for rotary positions; use 6"),
  ],
)
def test_variants_that_the_decoder_lacks_are_refused(name, change, words):
  with pytest.raises(ConfigError) as error:
    fields_of(hf_config_of(name) | change)
  assert str(error.value).startswith(words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
  "name, change, words",
  [
    ("llama", {"norm": "layernorm"}, "model.norm=layernorm: Hugging Face's Llama has rmsnorm"),
    ("llama", {"positions": "alibi"}, "model.positions=alibi: Hugging Face's Llama has rope"),
    (
      "llama",
      {"activation": "relu2"},
      "model.activation=relu2: Hugging Face's Llama has swiglu, geglu, geglu_exact, reglu",
    ),
    ("gpt2", {"bias": False}, "model.bias=False: Hugging Face's GPT-2 has biases in qkv"),
    (
      "gpt2",
      {"parameterization": "mup", "base_width": 8},
      "model.parameterization=mup: Hugging Face's GPT-2 has standard",
    ),
    (
      "gpt2",
      {"parameterization": "completep", "base_depth": 1},
      "model.parameterization=completep: Hugging Face's GPT-2 has standard",
    ),
    ("gemma3", {"norm_offset": 0.0}, "model.norm_offset=0.0: Hugging Face's Gemma 3 has 1.0"),
    ("gemma2", {"embed_scale": 1.0}, "model.embed_scale=1.0: Hugging Face's Gemma 2 has 4.0"),
    ("mixtral", {"router": "sigmoid"}, "model.router=sigmoid: Hugging Face's Mixtral has softmax"),
    ("mixtral", {"shared_experts": 1}, "model.shared_experts=1: Hugging Face's Mixtral has 0"),
  ],
)
def test_models_that_hugging_face_lacks_are_refused(name, change, words):
  with pytest.raises(ConfigError) as error:
    config_of(dataclasses.replace(cfg_of(name), **change))
  assert str(error.value).startswith(words)


DERIVED = {"kv_heads", "head_dim"}  # of heads and width, where an architecture does not say them
NOT_COMPUTED = {  # fields that change no number that a trained model computes, or that are checked apart
  "base_width", "base_head_dim", "base_depth", "bias", "bias_on", "dtype", "dropout", "init", "scan_layers",
  "matmul", "remat", "remat_keep", "attention", "capacity_factor", "dispatch", "lora_alpha", "lora_on",
  "experts_per_token",
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_field_of_the_decoder_is_passed_over_on_the_way_out(name):
  arch, there = ARCHITECTURES[name], {f.name for f in dataclasses.fields(TransformerConfig)}
  said = {row.ours for row in arch.keys.values()} | {*arch.fixed, *NEUTRAL, *ROPE}
  assert there - said == (NOT_COMPUTED | DERIVED) - said


def test_mutated_config_json_gives_fields_or_one_line():
  hypothesis = pytest.importorskip("hypothesis")
  st = hypothesis.strategies
  odd = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from([[], {}, [1], {"a": 1}, 10**400, "silu", "gelu", 16, 24, 0.5]),
    st.dictionaries(
      st.sampled_from(["rope_type", "type", "factor", "rope_theta", "low_freq_factor",
                       "high_freq_factor", "full_attention", "sliding_attention", "beta_fast"]),
      st.one_of(st.none(), st.floats(), st.text(max_size=3), st.just({}),
                st.sampled_from(["linear", "llama3", "yarn", 2.0])), max_size=3,
    ),
  )  # fmt: skip
  keys = sorted({key for arch in ARCHITECTURES.values() for key in (*arch.keys, *arch.must)})
  keys += [
    "rope_scaling", "rope_parameters", "rope_theta", "partial_rotary_factor", "layer_types",
    "sliding_window", "use_sliding_window", "max_window_layers", "sliding_window_pattern",
    "attention_bias", "mlp_bias", "use_bias", "attn_config", "rotary_pct", "model_type", "odd",
  ]  # fmt: skip

  @cases(300)
  @hypothesis.given(
    st.sampled_from(sorted(MODELS)), st.dictionaries(st.sampled_from(keys), odd, max_size=3)
  )
  def check(name, change):
    try:
      fields = fields_of(hf_config_of(name) | change)
    except ConfigError as error:
      assert "\n" not in str(error) and ": " in str(error)
    else:
      config_of(model_config(fields), MODELS[name][0])

  check()


def test_mutated_safetensors_give_arrays_or_one_line(tmp_path):
  hypothesis = pytest.importorskip("hypothesis")
  st = hypothesis.strategies
  cfg = cfg_of("llama")
  state, hf_config = to_hf(draw(cfg), cfg)
  write_folder(tmp_path, state, hf_config)
  whole = (tmp_path / "model.safetensors").read_bytes()
  file = tmp_path / "mutated.safetensors"
  header = int.from_bytes(whole[:8], "little") + 8

  @cases(200)
  @hypothesis.given(
    st.integers(0, header), st.binary(min_size=1, max_size=8), st.integers(0, len(whole))
  )
  def check(at, new, end):
    file.write_bytes((whole[:at] + new + whole[at + len(new) :])[: end if end % 2 else None])
    try:
      found = read_safetensors(file)
      from_hf(found, hf_config)
    except ConfigError as error:
      assert "\n" not in str(error)

  check()
