"""T5 folders: in and out again bit for bit, read by transformers with equal logits, refusals by name."""

import json
import re

import jax
import numpy as np
import pytest

from lm import generate
from lm.config.errors import ConfigError
from lm.hf import __main__ as hf
from lm.hf.folder import read_folder, write_folder
from lm.hf.models import read_model
from lm.hf.t5 import t5_from_hf, t5_to_hf
from tests.encoder_decoders import section
from tests.equalities import shapes_of
from tests.t5_folder import write_t5_folder
from tests.test_encoder_decoder import transformers_t5


@pytest.mark.parametrize("gated", [False, True], ids=["v1.0", "v1.1"])
def test_a_folder_out_and_in_again_has_the_same_bits_and_transformers_reads_it(tmp_path, gated):
  torch, theirs, config = transformers_t5(gated)
  transformers = pytest.importorskip("transformers")

  state = {name: array.numpy() for name, array in theirs.state_dict().items()}
  fields, params = t5_from_hf(state, config.to_dict())
  cfg = section("t5", **fields)
  written, said = t5_to_hf(params, cfg)
  assert said["tie_word_embeddings"] != gated and ("lm_head.weight" in written) == gated
  for name, array in written.items():
    np.testing.assert_array_equal(array, state[name])
  write_folder(tmp_path, written, said)
  again_fields, again = read_model(*read_folder(tmp_path))
  assert again_fields == fields
  jax.tree.map(np.testing.assert_array_equal, again, params)
  loaded = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
  ids = torch.arange(2, 12)[None]
  with torch.no_grad():
    ours, was = (m(input_ids=ids, decoder_input_ids=ids[:, :5]).logits for m in (loaded, theirs))
  np.testing.assert_array_equal(ours.numpy(), was.numpy())


def small():
  """(arrays, config.json) of a T5."""
  cfg = section("t5")

  shapes = shapes_of(cfg)
  return t5_to_hf(jax.tree.map(lambda s: np.ones(s.shape, np.float32), shapes), cfg)


@pytest.mark.parametrize(
  ("config", "state", "message"),
  [
    ({"attention_sinks": 4}, {}, "attention_sinks=4: is not known of a t5"),
    ({"feed_forward_proj": "gated-tanh"}, {}, "feed_forward_proj=gated-tanh: must be one of relu"),
    ({"d_kv": None}, {}, "d_kv: config.json lacks it"),
    ({"num_heads": 2.5}, {}, "num_heads=2.5: must be a whole number of at least 1"),
    ({"relative_attention_num_buckets": "x"}, {}, "num_buckets=x: must be a whole number"),
    ({"feed_forward_proj": ["relu"]}, {}, r"feed_forward_proj=\['relu'\]: must be a name"),
    (
      {},
      {"shared.weight": np.zeros((40, 16), np.int8)},
      "shared.weight=int8: must be numbers with",
    ),
    ({}, {"lm_head.weight": np.zeros((40, 16))}, "lm_head.weight: differs from shared.weight"),
    ({}, {"encoder.block.3.x": np.zeros(3)}, "encoder.block.3.x: is no weight of this t5"),
    ({}, {"shared.weight": np.zeros((39, 16))}, r"shared.weight=\(39, 16\): config.json says"),
    ({"num_layers": 2}, {}, "encoder.block.1.layer.0.SelfAttention.q.weight: the weights lack it"),
  ],
)
def test_what_is_no_t5_is_refused_by_name(config, state, message):
  arrays, said = small()
  with pytest.raises(ConfigError, match=message):
    t5_from_hf(arrays | state, said | config)


def test_what_no_t5_says_is_not_written():
  cfg = section("t5", norm="layernorm", bias=True)
  with pytest.raises(ConfigError, match=r"model.norm=layernorm: a t5 of transformers has rmsnorm"):
    t5_to_hf({}, cfg)


@pytest.mark.slow
def test_a_folder_becomes_a_run_that_writes_and_a_folder_again(tmp_path, capsys):
  """Imported by the command line, it starts with <pad> as transformers does; beams give equal texts."""
  torch, theirs, _ = transformers_t5(gated=True)
  transformers = pytest.importorskip("transformers")

  write_t5_folder(tmp_path / "in", theirs)
  run, out = tmp_path / "run", tmp_path / "out"
  assert hf.main(["import", "--from", str(tmp_path / "in"), "--workdir", str(run)]) == 0
  capsys.readouterr()
  words = [
    "--workdir",
    str(run),
    "--prompt",
    "w5 w9 w30",
    "--beams",
    "2",
    "--tokens",
    "6",
    "--json",
  ]
  assert generate.main(words) == 0
  text = json.loads(capsys.readouterr().out)["text"]
  ids = theirs.generate(
    torch.tensor([[5, 9, 30, 1]]), num_beams=2, max_new_tokens=6, do_sample=False,
    suppress_tokens=[38, 39],
  )[0].tolist()  # fmt: skip
  assert re.findall(r"w[0-9]+", text) == [f"w{i}" for i in ids[1:] if i > 2]
  assert hf.main(["export", "--workdir", str(run), "--to", str(out)]) == 0
  said = json.loads((out / "config.json").read_text())
  assert (said["decoder_start_token_id"], said["eos_token_id"], said["pad_token_id"]) == (0, 1, 0)
  loaded = transformers.T5ForConditionalGeneration.from_pretrained(out).eval()
  ids = torch.arange(2, 12)[None]
  with torch.no_grad():
    ours, was = (m(input_ids=ids, decoder_input_ids=ids[:, :5]).logits for m in (loaded, theirs))
  np.testing.assert_array_equal(ours.numpy(), was.numpy())
