"""Sampling: filters against their definitions, cached decoding against full passes, batching."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import train
from experiments import __main__ as experiments
from lm import embed, evaluate, inspect
from lm.config.errors import ConfigError
from lm.data.tokenizers import BpeTokenizer, ByteTokenizer, bytes_to_characters
from lm.generate import check_sampling, main
from lm.hf import __main__ as hf
from lm.models.decoding import (
  NEG,
  Sampling,
  check_lengths,
  cut,
  draw_texts,
  filter_logits,
  make_generator,
)
from lm.models.registry import make_model
from lm.models.trees import init_params
from tests.test_step import config

EOT = 256


def numbers(**values):
  return Sampling(*(jnp.asarray(v, jnp.int32 if type(v) is int else jnp.float32)
                    for v in Sampling(**values)))  # fmt: skip


def kept(logits, seen=(), **values):
  """Indices that may be drawn."""
  logits_BV = jnp.log(jnp.array([logits], jnp.float32))
  seen_BV = jnp.zeros(logits_BV.shape, bool).at[0, jnp.array(seen, jnp.int32)].set(True)
  return set(np.flatnonzero(filter_logits(logits_BV, seen_BV, numbers(**values))[0] > NEG / 2))


PROBS = [0.1, 0.4, 0.05, 0.25, 0.2]


@pytest.mark.parametrize(
  ("values", "expected"),
  [
    ({}, {0, 1, 2, 3, 4}),
    ({"top_k": 2}, {1, 3}),
    ({"top_p": 0.5}, {1, 3}),
    ({"top_p": 0.39}, {1}),
    ({"top_p": 0.01}, {1}),
    ({"min_p": 0.49}, {1, 3, 4}),
    ({"top_k": 3, "top_p": 0.6}, {1, 3}),
  ],
  ids=str,
)
def test_filters_keep_what_their_definition_says(values, expected):
  assert kept(PROBS, **values) == expected


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
  logits_BV = jnp.array([[2.0, -2.0, 2.0]])
  seen_BV = jnp.array([[True, True, False]])
  out = filter_logits(logits_BV, seen_BV, numbers(repetition_penalty=2.0))
  np.testing.assert_allclose(out, [[1.0, -4.0, 2.0]])


@pytest.fixture(scope="module", params=["rope", "learned", "alibi"])
def small(request):
  cfg = config(model__positions=request.param, model__seq_len=32, model__init="gpt2").model
  model = make_model(cfg)
  return cfg, model, jax.jit(lambda key: init_params(model, key, 10.0))(jax.random.key(0))


def test_greedy_generation_equals_repeated_full_passes(small):
  cfg, model, params = small
  prompts = [[EOT, 5, 6, 7, 8], [EOT, 9]]
  generate, full_pass = make_generator(cfg, 8), jax.jit(model.apply)
  found = generate(params, prompts, Sampling(temperature=0.0), 0, EOT)
  for prompt, answer in zip(prompts, found, strict=True):
    tokens = list(prompt)
    for _ in range(
      8
    ):  # padded to one length, so that it is compiled once: what follows is not seen
      padded = jnp.array([tokens + [EOT] * (16 - len(tokens))], jnp.int32)
      tokens.append(int(full_pass({"params": params}, padded)[0, len(tokens) - 1].argmax()))
    expected = tokens[len(prompt) :]
    if EOT in expected:
      expected = expected[: expected.index(EOT)]
    assert answer == expected
  assert found[0] != found[1]


def test_seed_decides_the_draws_and_greedy_ignores_it(small):
  cfg, _, params = small
  generate, prompt = make_generator(cfg, 8), [[EOT, 5]]
  draw = lambda t, seed: generate(params, prompt, Sampling(temperature=t), seed, EOT)
  assert draw(2.0, 1) == draw(2.0, 1)
  assert any(draw(2.0, 1) != draw(2.0, seed) for seed in (2, 3, 4))
  assert draw(0.0, 1) == draw(0.0, 2)


class Letters(ByteTokenizer):
  """Each byte is a letter."""

  def decode(self, ids):
    return bytes(i for i in ids if i < 256).decode("latin1")


class Marked(Letters):
  """Letters, of which two are written with a mark that longer texts have not."""

  def decode(self, ids):
    return super().decode(ids) + "\u0100" * (len(ids) == 2)


def test_rows_end_at_a_token_that_holds_the_stop(small):
  cfg, _, params = small
  generate, hot = make_generator(cfg, 8), Sampling(temperature=3.0)
  draw = lambda t, stop: draw_texts(
    generate, params, [[EOT, 5], [EOT, 7]], hot, 1, t, [stop] if stop else []
  )
  free = draw(Letters(), None)
  letters = [row.text[2] for row in free]
  for stop in (letters[0], letters[1], free[0].text[1:4]):
    held = draw(Letters(), stop)
    assert [row.text for row in held] == [row.text.split(stop)[0] for row in free]
    for row, whole in zip(held, free, strict=True):
      assert row.ids == whole.ids[: len(row.text)]
  assert draw(Marked(), "\u0100") == free  # each token holds it, the texts do not


def test_the_tokens_of_a_text_are_those_that_it_takes():
  """Those after the stop, and the token that ends an answer, were counted."""
  t = BpeTokenizer([*bytes_to_characters(), "ab", ".c", "<|endoftext|>"], [["a", "b"], [".", "c"]])
  ids = t.encode("abab.cab é")
  tokens = lambda stops: [len(cut(ids, t, stops).ids), cut(ids, t, stops).text]
  assert tokens(()) == [len(ids), "abab.cab é"]
  assert tokens((".",)) == [2, "abab"] and tokens(("c",)) == [3, "abab."]
  assert tokens(("bab", "é")) == [1, "a"] and tokens(("a",)) == [0, ""]


def test_too_long_a_prompt_is_an_error(small):
  cfg, _, params = small
  with pytest.raises(ConfigError, match=r"^tokens=8: prompt \(30 tokens\) and new tokens must fit"):
    make_generator(cfg, 8)(params, [[EOT] * 30], Sampling(), 0, EOT)
  check_lengths(cfg, cfg.seq_len - 8, 8)
  with pytest.raises(ConfigError, match="use at most 7 or a shorter prompt"):
    check_lengths(cfg, cfg.seq_len - 7, 8)


def test_bad_options_name_the_rule():
  class Options:
    tokens, n, temperature, top_k, top_p, min_p, repetition_penalty = 5, 1, 1.0, 0, 1.5, 0.0, 1.0
    stop = None

  with pytest.raises(ConfigError, match=r"^top_p=1.5: must be in \(0, 1\]; try 0.9$"):
    check_sampling(Options)


@pytest.mark.parametrize(("program", "option"), [
  *((main, name) for name in ("prompt", "system", "stop", "interpolate")),
  *((evaluate.main, name) for name in ("cue", "system", "stop")),
  (embed.main, "text"), (inspect.main, "text"),
])  # fmt: skip
def test_bytes_that_are_no_text_are_refused(program, option, capsys):
  with pytest.raises(SystemExit) as end:
    program(["--workdir", "x", f"--{option}", "a\udcff"])
  said = capsys.readouterr().err
  assert end.value.code == 2 and f"argument --{option}: is no text in UTF-8; convert it" in said


@pytest.mark.parametrize(("program", "words", "key"), [
  (main, ["--prompt", "a", "--workdir", ""], "workdir"),
  (evaluate.main, ["--workdir="], "workdir"),
  (inspect.main, ["--workdir", "x", "--text", "a", "--out", ""], "out"),
  (hf.main, ["export", "--workdir", "x", "--to", ""], "to"),
  (hf.main, ["import", "--from", "", "--workdir", "x"], "from"),
  (experiments.main, ["board", "--root", ""], "root"),
  (train.main, ["--workdir", ""], "workdir"),
])  # fmt: skip
def test_a_place_without_a_name_is_refused(program, words, key):
  """An unset variable of a shell: train.py wrote runs/default, the board the folder that it was called in."""
  with pytest.raises(ConfigError, match=f"^{key}=: names nothing, as an unset variable"):
    program(words)


@pytest.mark.parametrize(("words", "message"), [
  (["--prompt", "a", "--n", "9999999999"], r"^n=9999999999: must be in \[1, 65536\]; try 1$"),
  (["--prompt", "a", "--beams", "9999999999"], r"^beams=9999999999: must be in \[0, 65536\]"),
  (["--prompt", "a", "--top_k", "9999999999"], r"^top_k=9999999999: must be in \[0, 2147483647\]"),
  (["--prompt", "a", "--repetition_penalty", "inf"], r"^repetition_penalty=inf: must be greater than 0 and"),
  (["--prompt", "a", "--stop", ""], r"^stop=: must be a text that is not empty"),
  (["--prompt_file", "x", "--interpolate", "b"], r"^interpolate=b: needs the sentence to start from; add"),
  (["--prompt", "a", "--interpolate", "b", "--n", "1"], r"^n=1: both ends .*; use at least 2$"),
  *(
    (["--prompt", "a", "--interpolate", "b", f"--{name}", value], f"^{name}={value}: is not read where --in")
    for name, value in (
      ("beams", "3"), ("temperature", "0.5"), ("top_k", "2"), ("top_p", "0.5"), ("min_p", "0.5"),
      ("repetition_penalty", "2.0"), ("stop", "x"), ("seed", "2"),
    )
  ),
  (["--prompt", "a", "--beams", "2", "--seed", "2"], r"^seed=2: is of draws, and --beams draws nothing"),
])  # fmt: skip
def test_settings_that_would_not_be_read_are_refused(tmp_path, words, message):
  with pytest.raises(ConfigError, match=message):
    main(["--workdir", str(tmp_path), *words])


@pytest.mark.parametrize("seed", ["-1", "99999999999999999999"])
def test_a_seed_is_in_the_range_that_configs_have(seed, tmp_path):
  words = ["--workdir", str(tmp_path), "--prompt", "a", "--seed", seed]
  with pytest.raises(ConfigError, match=rf"seed={seed}: must be in \[0, 2147483647\]"):
    main(words)
