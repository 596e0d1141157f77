"""GGUF files of Llama-architecture models: metadata, weights and tokenizer.

A file is: "GGUF", version (uint32), counts of tensors and of metadata (uint64); the metadata, each a
name, a type and a value; for each tensor its name, dimensions (the last one first), type and offset;
then the tensors, from a multiple of general.alignment on. Little-endian. Source: the format's
specification, github.com/ggml-org/ggml, docs/gguf.md, and ggml-quants.c for the blocks.
"""

import math
import pathlib
import struct
from typing import Any, NamedTuple

import numpy as np

from lm.config.errors import ConfigError
from lm.hf.convert import State, to_halves

SCALARS = {  # type of a metadata value -> how struct reads it
  0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
TEXT, ARRAY = 8, 9
REMEDY = "use a file of a Llama in F32, F16, BF16, Q8_0 or Q4 and Q5 of kinds 0 and 1"
BLOCK = 32  # values of a quantised block


class Type(NamedTuple):
  name: str
  bytes: int  # of a block
  values: int  # of a block
  read: Any  # uint8 [n, bytes] -> float32 [n, values]


def _halves(blocks, at):
  """The float16 at byte `at` of every block, float32 [n, 1]."""
  return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _nibbles(blocks, at):
  """16 bytes as 32 numbers in [0, 16): the low halves, then the high ones."""
  packed = blocks[:, at : at + 16]
  return np.concatenate([packed & 15, packed >> 4], axis=1)


def _fifth_bits(blocks, at):
  """4 bytes as the 32 numbers 0 or 16."""
  bits = np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little")
  return bits << 4


def _q4_0(b):
  return _halves(b, 0) * (_nibbles(b, 2).astype(np.float32) - 8)


def _q4_1(b):
  return _halves(b, 0) * _nibbles(b, 4).astype(np.float32) + _halves(b, 2)


def _q5_0(b):
  return _halves(b, 0) * ((_nibbles(b, 6) | _fifth_bits(b, 2)).astype(np.float32) - 16)


def _q5_1(b):
  return _halves(b, 0) * (_nibbles(b, 8) | _fifth_bits(b, 4)).astype(np.float32) + _halves(b, 2)


def _q8_0(b):
  return _halves(b, 0) * b[:, 2:].view(np.int8).astype(np.float32)


def _bf16(b):
  return (b.copy().view("<u2").astype(np.uint32) << 16).view(np.float32)


TYPES = {
  0: Type("F32", 4, 1, lambda b: b.copy().view("<f4")),
  1: Type("F16", 2, 1, lambda b: b.copy().view("<f2").astype(np.float32)),
  2: Type("Q4_0", 18, BLOCK, _q4_0),
  3: Type("Q4_1", 20, BLOCK, _q4_1),
  6: Type("Q5_0", 22, BLOCK, _q5_0),
  7: Type("Q5_1", 24, BLOCK, _q5_1),
  8: Type("Q8_0", 34, BLOCK, _q8_0),
  30: Type("BF16", 2, 1, _bf16),
}
OTHER_TYPES = {
  9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS",
  17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
  24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0",
  39: "MXFP4",
}  # fmt: skip


# --- the format -----------------------------------------------------------------------------------


class _Cursor:
  """Reads values one after the other; ConfigError where the bytes end."""

  def __init__(self, path: pathlib.Path):
    self.path, self.data, self.at = path, np.memmap(path, np.uint8, "r"), 0

  def bytes(self, n: int) -> bytes:
    if n > len(self.data) - self.at:
      raise ConfigError(f"{self.path}: ends at byte {len(self.data)} too early; copy it again")
    self.at += n
    return self.data[self.at - n : self.at].tobytes()

  def number(self, code: str):
    return struct.unpack(f"<{code}", self.bytes(struct.calcsize(f"<{code}")))[0]

  def text(self) -> str:
    try:
      return self.bytes(self.number("Q")).decode()
    except UnicodeDecodeError:
      raise ConfigError(f"{self.path}: holds a text that is none; copy it again") from None

  def value(self, kind: int, depth: int = 0):
    if kind in SCALARS:
      return self.number(SCALARS[kind])
    if kind == TEXT:
      return self.text()
    if kind != ARRAY or depth > 3:
      raise ConfigError(f"{self.path}: metadata of type {kind} is not known; copy it again")
    inner, n = self.number("I"), self.number("Q")
    if inner in SCALARS:
      code = SCALARS[inner]
      raw = self.bytes(n * struct.calcsize(f"<{code}"))
      return list(struct.unpack(f"<{n}{code}", raw))
    if n > len(self.data):
      raise ConfigError(f"{self.path}: ends at byte {len(self.data)} too early; copy it again")
    return [self.value(inner, depth + 1) for _ in range(n)]


def read_gguf(path: pathlib.Path) -> tuple[dict[str, Any], State]:
  """(metadata, float32 arrays by name) of a GGUF file.

  Raises:
    ConfigError: no GGUF of version 2 or 3, bytes that are missing, or a type that is not known.
  """
  if not path.is_file() or path.stat().st_size < 24:
    raise ConfigError(f"from={path}: is no GGUF file; check the path")
  cursor = _Cursor(path)
  magic, version = cursor.bytes(4), cursor.number("I")
  if magic != b"GGUF" or version not in (2, 3):
    raise ConfigError(f"from={path}: is no little-endian GGUF file of version 2 or 3; convert it")
  n_tensors, n_entries = cursor.number("Q"), cursor.number("Q")
  if n_tensors + n_entries > len(cursor.data):
    raise ConfigError(f"{path}: ends at byte {len(cursor.data)} too early; copy it again")
  meta: dict[str, Any] = {}
  for _ in range(n_entries):
    name = cursor.text()
    meta[name] = cursor.value(cursor.number("I"))
  infos = []
  for _ in range(n_tensors):
    name, n_axes = cursor.text(), cursor.number("I")
    if n_axes > 4:
      raise ConfigError(f"{path}: {name} has {n_axes} axes; copy it again")
    shape = tuple(cursor.number("Q") for _ in range(n_axes))[::-1]
    infos.append((name, shape, cursor.number("I"), cursor.number("Q")))
  align = meta.get("general.alignment", 32)
  if not isinstance(align, int) or align < 1:
    raise ConfigError(f"general.alignment={align}: must be a whole number; copy the file again")
  start = -(-cursor.at // align) * align
  return meta, {name: _array(cursor, name, *rest, start) for name, *rest in infos}


def _array(cursor, name, shape, kind, offset, start):
  if kind not in TYPES:
    what = OTHER_TYPES.get(kind, f"type {kind}")
    raise ConfigError(f"{name}={what}: is a kind of numbers that is not read; {REMEDY}")
  type_, size = TYPES[kind], math.prod(shape)
  if size % type_.values or (shape and shape[-1] % type_.values):
    raise ConfigError(f"{name}={shape}: rows must be multiples of {type_.values}; copy it again")
  n_blocks, at = size // type_.values, start + offset
  if at + n_blocks * type_.bytes > len(cursor.data):
    raise ConfigError(f"{cursor.path}: {name} lies beyond the end of the file; copy it again")
  raw = cursor.data[at : at + n_blocks * type_.bytes]
  return np.ascontiguousarray(type_.read(raw.reshape(n_blocks, type_.bytes)).reshape(shape))


# --- a Llama --------------------------------------------------------------------------------------

LAYER = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
REST = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
SIZES = {
  "block_count": "num_hidden_layers",
  "context_length": "max_position_embeddings",
  "embedding_length": "hidden_size",
  "feed_forward_length": "intermediate_size",
  "attention.head_count": "num_attention_heads",
  "attention.head_count_kv": "num_key_value_heads",
  "attention.key_length": "head_dim",
  "attention.layer_norm_rms_epsilon": "rms_norm_eps",
  "rope.freq_base": "rope_theta",
}
NOTES = ("vocab_size", "rope.dimension_count", "attention.value_length", "rope.scaling.finetuned")
SCALING = {
  "rope.scaling.type": "rope_type",
  "rope.scaling.factor": "factor",
  "rope.scaling.original_context_length": "original_max_position_embeddings",
}


def llama_of(meta: dict[str, Any], arrays: State) -> tuple[State, dict[str, Any]]:
  """(arrays by Hugging Face's names, content of config.json) of a Llama in GGUF's names.

  Rotated pairs are neighbours there; rows are permuted to halves.

  Raises:
    ConfigError: another architecture, or metadata that changes the model and is not known here.
  """
  kind = meta.get("general.architecture")
  if kind != "llama":
    raise ConfigError(f"general.architecture={kind}: must be llama; {REMEDY}")
  said = {k.removeprefix("llama."): v for k, v in meta.items() if k.startswith("llama.")}
  if "token_embd.weight" not in arrays:
    raise ConfigError("token_embd.weight: the file lacks it; copy it again")
  hf_config: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": arrays["token_embd.weight"].shape[0],
    "tie_word_embeddings": "output.weight" not in arrays,
    "attention_bias": "blk.0.attn_q.bias" in arrays,
    "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
    "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
  }
  scaling = {}
  for key, value in said.items():
    if key in SIZES:
      hf_config[SIZES[key]] = value
    elif key in SCALING:
      scaling[SCALING[key]] = value
    elif key not in NOTES and value not in (0, None, False):
      raise ConfigError(f"llama.{key}={str(value)[:60]}: is not known here; {REMEDY}")
  if scaling and scaling.get("rope_type", "none") != "none":
    hf_config["rope_scaling"] = scaling
  width, heads = (said.get(k) for k in ("embedding_length", "attention.head_count"))
  if not isinstance(width, int) or not isinstance(heads, int) or heads < 1 or width < heads:
    raise ConfigError(f"llama.attention.head_count={heads}: must divide {width}; copy it again")
  head_dim = hf_config.setdefault("head_dim", width // heads)
  for key in ("rope.dimension_count", "attention.value_length"):
    if said.get(key, head_dim) != head_dim:
      raise ConfigError(f"llama.{key}={said[key]}: must be the head's {head_dim}; {REMEDY}")
  state = {}
  for name, array in arrays.items():
    words = name.split(".")
    if words[0] == "blk" and len(words) == 4 and words[2] in LAYER:
      if words[2] in ("attn_q", "attn_k"):
        array = to_halves(array, head_dim)
      state[f"model.layers.{words[1]}.{LAYER[words[2]]}.{words[3]}"] = array
    elif len(words) == 2 and words[0] in REST:
      state[f"{REST[words[0]]}.{words[1]}"] = array
    else:
      raise ConfigError(f"{name}: is no weight of a Llama that is known here; {REMEDY}")
  return state, hf_config


# --- its tokenizer --------------------------------------------------------------------------------

GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
MODERN_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre -> (whether digits stand alone, how a text is cut into words)
WORDS = {
  "gpt-2": (False, GPT2_WORDS),
  "default": (False, GPT2_WORDS),
  "smollm": (True, GPT2_WORDS),
  "starcoder": (True, GPT2_WORDS),
  "refact": (True, GPT2_WORDS),
  "llama-bpe": (False, MODERN_WORDS % "{1,3}"),
  "qwen2": (False, MODERN_WORDS % ""),
}
NORMAL, UNKNOWN, CONTROL, USER = 1, 2, 3, 4  # tokenizer.ggml.token_type


def tokenizer_of(meta: dict[str, Any]):
  """(a tokenizer of the library `tokenizers`, content of tokenizer_config.json) of the metadata.

  Raises:
    ConfigError: a kind of tokenizer that is not known here, or lists that do not fit.
  """
  from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

  read = lambda key: meta.get(f"tokenizer.ggml.{key}")
  kind, tokens, types = read("model"), _listed(meta, "tokens"), _listed(meta, "token_type")
  if not tokens:
    raise ConfigError("tokenizer.ggml.tokens: the file lacks the vocabulary; copy it again")
  types = types or [NORMAL] * len(tokens)
  vocab = {token: i for i, token in enumerate(tokens)}
  if len(vocab) != len(tokens) or len(types) != len(tokens):
    raise ConfigError("tokenizer.ggml.tokens: must be distinct, one type each; copy it again")
  if kind == "gpt2":
    words = read("pre") or "default"
    pairs = [tuple(merge.split(" ")) for merge in _listed(meta, "merges")]
    if not isinstance(words, str) or words not in WORDS:
      raise ConfigError(
        f"tokenizer.ggml.pre={words}: must be one of {', '.join(WORDS)}; import the model from a "
        "Hugging Face folder"
      )
    unfit = [p for p in pairs if len(p) != 2 or not {*p, "".join(p)} <= vocab.keys()]
    if unfit:
      raise ConfigError(
        f"tokenizer.ggml.merges={unfit[0]}: is not of the vocabulary; copy it again"
      )
    whole = words == "llama-bpe"  # words of the vocabulary are taken before merges
    backend = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=whole))
    backend.pre_tokenizer = _word_splitter(*WORDS[words])
    backend.decoder = decoders.ByteLevel()
  elif kind == "llama":
    backend = Tokenizer(models.BPE(
      vocab=vocab, merges=_merges_of_scores(tokens, _listed(meta, "scores")), fuse_unk=True,
      unk_token=tokens[types.index(UNKNOWN)] if UNKNOWN in types else None, byte_fallback=True,
    ))  # fmt: skip
    first = read("add_space_prefix") in (None, True)
    steps = [normalizers.Prepend("▁")] if first else []
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if first else [])])
  else:
    raise ConfigError(f"tokenizer.ggml.model={kind}: must be gpt2 or llama; {REMEDY}")
  special = lambda i: types[i] == CONTROL
  backend.add_special_tokens([AddedToken(t, normalized=False) for t in _of(tokens, types, CONTROL)])
  backend.add_tokens([AddedToken(t, normalized=False) for t in _of(tokens, types, USER)])
  settings: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
  }
  for name in ("bos", "eos"):
    token_id = read(f"{name}_token_id")
    if isinstance(token_id, int) and 0 <= token_id < len(tokens) and special(token_id):
      settings[f"{name}_token"] = tokens[token_id]
  if isinstance(read("add_bos_token"), bool):
    settings["add_bos_token"] = read("add_bos_token")
  if isinstance(meta.get("tokenizer.chat_template"), str):
    settings["chat_template"] = meta["tokenizer.chat_template"]
  return backend, settings


LISTS = {"tokens": str, "token_type": int, "merges": str, "scores": (int, float)}  # of what


def _listed(meta, key):
  """A list of the tokenizer's metadata, its members of one kind; [] if there is none."""
  found = meta.get(f"tokenizer.ggml.{key}")
  if found is None:
    return []
  if not isinstance(found, list) or not all(isinstance(v, LISTS[key]) for v in found):
    raise ConfigError(f"tokenizer.ggml.{key}: must be a list, one a token or merge; copy it again")
  return found


def _of(tokens, types, kind):
  return [token for token, of in zip(tokens, types, strict=True) if of == kind]


def _word_splitter(digits_alone, words):
  from tokenizers import Regex, pre_tokenizers

  steps = [pre_tokenizers.Digits(individual_digits=True)] if digits_alone else []
  if words == GPT2_WORDS:
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False)])
  steps.append(pre_tokenizers.Split(Regex(words), "isolated"))
  last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  return pre_tokenizers.Sequence([*steps, last])


def _merges_of_scores(tokens, scores):
  """SentencePiece's pieces as merges: any two that make a third, the best third first."""
  if len(scores) != len(tokens):
    raise ConfigError("tokenizer.ggml.scores: must be one a token; copy the file again")
  ids = {token: i for i, token in enumerate(tokens)}
  found = []
  for token, score in zip(tokens, scores, strict=True):
    cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
    pairs = [pair for pair in cuts if pair[0] in ids and pair[1] in ids]
    found += [(-score, ids[a], ids[b], (a, b)) for a, b in pairs]
  return [pair for *_, pair in sorted(found)]
