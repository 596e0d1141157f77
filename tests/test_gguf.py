"""GGUF files: the format, its blocks of numbers, and a Llama that is in one."""

import json
import struct

import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.data.tokenizers import bytes_to_characters
from lm.hf.__main__ import main
from lm.hf.convert import from_hf, to_hf, to_neighbours
from lm.hf.fields import fields_of, model_config
from lm.hf.folder import read_folder
from lm.hf.gguf import LAYER, REST, TYPES, llama_of, read_gguf, tokenizer_of
from tests.fuzzing import cases
from tests.test_hf import assert_same, draw

CODES = {bool: 7, int: 4, float: 6, str: 8}
LLAMA = {
  "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64,
  "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "max_position_embeddings": 64, "rms_norm_eps": 2.0**-17, "rope_theta": 5000.0,
}  # fmt: skip


def text(value):
  return struct.pack("<Q", len(value.encode())) + value.encode()


def typed(value):
  """A metadata value: its type, then its bytes."""
  if isinstance(value, list):
    kind = CODES[type(value[0])]
    inner = b"".join(typed(v)[4:] for v in value)
    return struct.pack("<IIQ", 9, kind, len(value)) + inner
  kind = CODES[type(value)]
  raw = text(value) if kind == 8 else struct.pack({7: "<?", 4: "<I", 6: "<f"}[kind], value)
  return struct.pack("<I", kind) + raw


def write_gguf(path, meta, arrays, version=3):
  """arrays: name -> (type, shape, bytes)."""
  head = b"GGUF" + struct.pack("<IQQ", version, len(arrays), len(meta))
  head += b"".join(text(key) + typed(value) for key, value in meta.items())
  data = b""
  for name, (kind, shape, raw) in arrays.items():
    data += b"\0" * (-len(data) % 32)
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
    head += text(name) + axes + struct.pack("<IQ", kind, len(data))
    data += raw
  path.write_bytes(head + b"\0" * (-len(head) % 32) + data)


def q8_0(array):
  """Blocks of 32 values as a float16 scale and 32 int8."""
  raw = b""
  for block in array.reshape(-1, 32):
    scale = np.float16(np.abs(block).max() / 127)
    raw += scale.tobytes() + np.round(block / np.float32(scale)).astype(np.int8).tobytes()
  return raw


def llama_file(path, quantised=False, **more):
  """Writes a small Llama; returns its parameters."""
  cfg = model_config(fields_of(LLAMA | {"tie_word_embeddings": True}))
  state, _ = to_hf(draw(cfg), cfg)
  theirs, arrays = {v: k for k, v in LAYER.items()}, {}
  for name, array in state.items():
    module, _, suffix = name.rpartition(".")
    words = module.split(".")
    if words[1] == "layers":
      ours = theirs[".".join(words[3:])]
      array = to_neighbours(array, cfg.head_dim) if ours in ("attn_q", "attn_k") else array
      name = f"blk.{words[2]}.{ours}.{suffix}"
    else:
      name = f"{next(k for k, v in REST.items() if v == module)}.{suffix}"
    packed = quantised and array.ndim == 2
    raw = q8_0(array) if packed else np.ascontiguousarray(array, np.float32).tobytes()
    arrays[name] = (8 if packed else 0, array.shape, raw)
  letters = bytes_to_characters()
  merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
  tokens = [*letters, *("".join(pair) for pair in merges), "<|endoftext|>", "<|im_end|>"]
  tokens += [f"<spare{i}>" for i in range(300 - len(tokens))]
  meta = {
    "general.architecture": "llama",
    "llama.block_count": 2,
    "llama.context_length": 64,
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 2.0**-17,
    "llama.rope.freq_base": 5000.0,
    "llama.rope.dimension_count": 8,
    "llama.vocab_size": 300,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": [1] * 259 + [3] * 41,
    "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
    "tokenizer.ggml.eos_token_id": 260,
  } | more
  write_gguf(path, {key: value for key, value in meta.items() if value is not None}, arrays)
  return cfg, draw(cfg)


def test_a_llama_gives_its_weights_back(tmp_path):
  cfg, params = llama_file(tmp_path / "model.gguf")
  fields, found = from_hf(*llama_of(*read_gguf(tmp_path / "model.gguf")))
  assert model_config(fields) == cfg
  assert_same(found, params)
  _, params = llama_file(tmp_path / "q8.gguf", quantised=True)
  _, found = from_hf(*llama_of(*read_gguf(tmp_path / "q8.gguf")))
  near = found["blocks"]["attn"]["q"]["kernel"] - params["blocks"]["attn"]["q"]["kernel"]
  assert 0 < np.abs(near).max() < 0.01


def test_blocks_have_the_values_that_the_format_says():
  """Value by value, in plain Python, as ggml-quants.c unpacks them."""
  rng = np.random.default_rng(0)
  half = lambda raw: float(np.frombuffer(raw, "<f2")[0])
  numbers = np.array([[0.5, -2.0, 1.25]], np.float16)
  for kind in (2, 3, 6, 7, 8):
    type_ = TYPES[kind]
    raw = rng.integers(0, 256, type_.bytes, np.uint8)
    raw[:4] = numbers[0, :2].view(np.uint8)
    if kind in (2, 6, 8):
      raw[2:4] = rng.integers(0, 256, 2, np.uint8)
    block = raw.tobytes()
    scale = half(block[:2])
    least = half(block[2:4]) if kind in (3, 7) else 0.0
    rest = block[4:] if kind in (3, 7) else block[2:]
    fifth = int.from_bytes(rest[:4], "little") if kind in (6, 7) else 0
    packed = rest[4:] if kind in (6, 7) else rest
    expected = []
    for i in range(32):
      if kind == 8:
        q = struct.unpack("b", packed[i : i + 1])[0]
      else:
        q = packed[i] & 15 if i < 16 else packed[i - 16] >> 4
        q |= (fifth >> i & 1) << 4
        q -= {2: 8, 6: 16}.get(kind, 0)
      expected.append(scale * q + least)
    found = type_.read(raw.reshape(1, -1))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[0], np.array(expected, np.float32), err_msg=type_.name)
  halves = np.array([1.5, -3.0, 0.1], np.float16)
  np.testing.assert_array_equal(TYPES[1].read(halves.view(np.uint8).reshape(3, 2))[:, 0], halves)
  top = np.array([1.5, -3.0], np.float32)
  upper = top.view(np.uint8).reshape(2, 4)[:, 2:].copy()
  np.testing.assert_array_equal(TYPES[30].read(upper)[:, 0], top)


def test_import_makes_a_run_with_the_tokenizer_of_the_file(tmp_path, capsys):
  _, params = llama_file(tmp_path / "model.gguf")
  workdir, folder = tmp_path / "run", tmp_path / "folder"
  assert main(["import", "--from", str(tmp_path / "model.gguf"), "--workdir", str(workdir)]) == 0
  assert main(["export", "--workdir", str(workdir), "--to", str(folder)]) == 0
  assert_same(from_hf(*read_folder(folder))[1], params)
  settings = json.loads((folder / "tokenizer_config.json").read_text())
  assert settings["eos_token"] == "<|im_end|>"
  from lm.data.tokenizers import load_tokenizer

  tokenizer = load_tokenizer(workdir / "tokenizer")
  letters = bytes_to_characters()
  space = letters.index("Ġ")
  at = lambda word: [letters.index(c) for c in word]
  assert tokenizer.encode("the the 12") == [257, 258, space, *at("1"), *at("2")]
  assert tokenizer.decode(tokenizer.encode("naïve 日本 <|x|>")) == "naïve 日本 <|x|>"


def test_sentencepiece_vocabularies_become_merges(tmp_path):
  sentencepiece = pytest.importorskip("sentencepiece")
  corpus = tmp_path / "corpus.txt"
  words = "the cat sat on the mat and then that hat was there with them in the thin theatre"
  corpus.write_text("\n".join(" ".join(words.split()[i:] + words.split()[:i]) for i in range(17)))
  sentencepiece.SentencePieceTrainer.train(
    input=str(corpus), model_prefix=str(tmp_path / "m"), vocab_size=300, model_type="bpe",
    byte_fallback=True, minloglevel=2, hard_vocab_limit=True, character_coverage=1.0,
    normalization_rule_name="identity", remove_extra_whitespaces=False,
  )  # fmt: skip
  processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
  n = processor.get_piece_size()
  kind = lambda i: (
    2
    if processor.is_unknown(i)
    else 3
    if processor.is_control(i)
    else 6
    if processor.is_byte(i)
    else 1
  )
  meta = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in range(n)],
    "tokenizer.ggml.scores": [processor.get_score(i) for i in range(n)],
    "tokenizer.ggml.token_type": [kind(i) for i in range(n)],
  }
  backend, _ = tokenizer_of(meta)
  for sample in ("the cat sat there", "thin  théâtre 日 mats", "then", " hat"):
    ids = backend.encode(sample, add_special_tokens=False).ids
    assert ids == processor.encode(sample), sample
    assert backend.decode(ids) == processor.decode(ids)


@pytest.mark.parametrize(
  "more, words",
  [
    ({"general.architecture": "gemma"}, "general.architecture=gemma: must be llama"),
    ({"llama.expert_count": 8}, "llama.expert_count=8: is not known here"),
    ({"llama.rope.dimension_count": 4}, "llama.rope.dimension_count=4: must be the head's 8"),
    ({"llama.rope.scaling.type": "longrope"}, "rope_type=longrope: must be one of default"),
    ({"llama.block_count": None}, "num_hidden_layers: config.json lacks it"),
    ({"llama.block_count": 3}, "model.layers.2.self_attn.q_proj.weight: the weights lack it"),
    ({"tokenizer.ggml.pre": "viking"}, "tokenizer.ggml.pre=viking: must be one of gpt-2, default"),
    ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model=bert: must be gpt2 or llama"),
    ({"tokenizer.ggml.pre": ["smollm"]}, "tokenizer.ggml.pre=['smollm']: must be one of gpt-2"),
    ({"tokenizer.ggml.token_type": 1}, "tokenizer.ggml.token_type: must be a list"),
    ({"tokenizer.ggml.merges": [1, 2]}, "tokenizer.ggml.merges: must be a list"),
    ({"tokenizer.ggml.tokens": "abc"}, "tokenizer.ggml.tokens: must be a list"),
    (
      {"tokenizer.ggml.model": "llama", "tokenizer.ggml.scores": ["a"]},
      "tokenizer.ggml.scores: must be a list",
    ),
    ({"tokenizer.ggml.merges": ["q x"]}, "tokenizer.ggml.merges=('q', 'x'): is not of the"),
  ],
)
def test_what_the_decoder_lacks_is_refused(tmp_path, more, words):
  llama_file(tmp_path / "model.gguf", **more)
  with pytest.raises(ConfigError) as error:
    main(["import", "--from", str(tmp_path / "model.gguf"), "--workdir", str(tmp_path / "run")])
  assert str(error.value).startswith(words)
  assert not (tmp_path / "run").exists()


def test_kinds_of_numbers_that_are_not_read_are_named(tmp_path):
  write_gguf(tmp_path / "k.gguf", {"a": "b"}, {"x.weight": (12, (256,), b"\0" * 144)})
  with pytest.raises(ConfigError, match=r"x.weight=Q4_K: is a kind of numbers that is not read"):
    read_gguf(tmp_path / "k.gguf")


def test_mutated_files_give_arrays_or_one_line(tmp_path):
  hypothesis = pytest.importorskip("hypothesis")
  st = hypothesis.strategies
  llama_file(tmp_path / "model.gguf")
  whole = (tmp_path / "model.gguf").read_bytes()
  file = tmp_path / "mutated.gguf"

  counts = st.sampled_from([0, 1, 2**16, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1])
  words = st.binary(min_size=1, max_size=9) | counts.map(lambda n: struct.pack("<Q", n))

  @cases(150)
  @hypothesis.given(st.integers(0, 9000) | st.integers(0, 64), words, st.integers(0, len(whole)))
  def check(at, new, end):
    file.write_bytes((whole[:at] + new + whole[at + len(new) :])[: end if end % 3 == 0 else None])
    try:
      meta, arrays = read_gguf(file)
      from_hf(*llama_of(meta, arrays))
      tokenizer_of(meta)
    except ConfigError as error:
      assert "\n" not in str(error)

  check()
