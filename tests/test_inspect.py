"""The page of what a model does with a text: its numbers, and what a browser makes of it."""

import json

import jax
import numpy as np
import pytest

from lm import inspect
from lm.config.errors import ConfigError
from lm.runs.load import load
from tests import browser
from tests.trained import run

chromium = browser.chromium  # a fixture

TEXT = "a <b>x</b><script>document.title = 'gone'</script> é"


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("inspect") / "decoder"
  layers = {"model__depth": 2, "model__window": 6, "model__layer_kinds": "local,global"}
  run(workdir, model__seq_len=64, **layers)
  return workdir


@pytest.fixture(scope="module")
def looked(decoder):
  return inspect.look(load(decoder), TEXT)


def test_losses_and_the_last_lens_are_the_models_own(decoder, looked):
  loaded = load(decoder)
  ids = [loaded.tokenizer.start_id, *loaded.tokenizer.encode(TEXT)]
  logits = jax.jit(loaded.model.apply)({"params": loaded.params}, np.array([ids[:-1]], np.int32))
  log_p = np.asarray(jax.nn.log_softmax(logits))[0]
  np.testing.assert_allclose(looked.loss_L, -log_p[np.arange(len(ids) - 1), ids[1:]], atol=1e-4)
  np.testing.assert_allclose(looked.lens_p[-1], np.exp(log_p.max(axis=-1)), atol=1e-4)
  assert looked.lens_p.shape == (3, len(ids) - 1) and len(looked.targets) == len(TEXT.encode())


def test_attention_is_causal_sums_to_one_and_has_the_window_of_its_layer(looked):
  L = len(looked.tokens)
  assert looked.attention.shape == (2, 2, L, L)
  np.testing.assert_allclose(looked.attention.sum(axis=-1), 1, atol=1e-5)
  seen = np.tril(np.ones((L, L), bool))
  assert not looked.attention[:, :, ~seen].any() and (looked.attention[1][:, seen] > 0).all()
  near = seen & ~np.tril(np.ones((L, L), bool), -6)
  assert not looked.attention[0][:, ~near].any() and (looked.attention[0][:, near] > 0).all()


def test_norms_neighbours_and_directions(decoder, looked):
  assert {k: len(v) for k, v in looked.norms.items()} == {
    "residual stream": 3, "attention adds": 2, "mlp adds": 2
  }  # fmt: skip
  table = np.asarray(load(decoder).params["embed"]["embedding"])
  a, (other, cosine) = ord("a"), looked.neighbours["a"][0]
  unit = table / np.linalg.norm(table, axis=1, keepdims=True)
  cosines = np.delete(unit @ unit[a], a)
  assert cosine == pytest.approx(cosines.max(), abs=1e-5) and other != "a"
  x = np.random.default_rng(0).normal(size=(20, 5)) * [5, 1, 0.1, 3, 0.1]
  at = inspect.main_directions(x)
  variances = np.sort(np.linalg.eigvalsh(np.cov(x.T)))[::-1]
  np.testing.assert_allclose(at.var(axis=0, ddof=1), variances[:2])


def test_a_browser_shows_it_and_runs_nothing_of_the_text(decoder, chromium, tmp_path, capsys):
  out = tmp_path / "page.html"
  words = ["--workdir", str(decoder), "--text", TEXT, "--out", str(out), "--json"]
  assert inspect.main(words) == 0
  said = json.loads(capsys.readouterr().out)
  assert said["page"] == str(out) and len(said["losses"]) == len(said["tokens"])
  tab = chromium.new_page()
  asked = browser.Requests(tab)
  tab.goto(out.as_uri())
  assert not asked.errors and all(url.startswith(("file:", "data:")) for url in asked)
  assert tab.title().startswith("a <b>x</b><script>")
  assert tab.inner_text("h1") == TEXT
  titles = tab.eval_on_selector_all("h2", "all => all.map(one => one.textContent)")
  assert titles == ["Loss", "Logit lens", "Attention", "Norms", "Hidden states", "Neighbours"]
  sizes = tab.eval_on_selector_all("figure img", "all => all.map(one => one.naturalWidth)")
  assert sizes == [len(said["tokens"])] * 4
  assert tab.eval_on_selector("body", "one => one.scrollWidth <= window.innerWidth")
  assert tab.locator("script").count() == 0 and tab.locator(".text b").count() == 0
  tab.close()


def test_what_cannot_be_shown_is_refused(decoder, tmp_path):
  words = ["--workdir", str(decoder), "--text"]
  with pytest.raises(ConfigError, match="has 0 tokens, must have 1 to 64; shorten it"):
    inspect.main([*words, ""])
  with pytest.raises(ConfigError, match="has 65 tokens, must have 1 to 64"):
    inspect.main([*words, "a" * 65])
  with pytest.raises(ConfigError, match="cannot be written"):
    inspect.main([*words, "a", "--out", str(tmp_path / "no" / "page.html")])
  with pytest.raises(ConfigError, match=r"out=x\.pdf: the page is HTML"):  # before a run is loaded
    inspect.main(["--workdir", str(tmp_path / "none"), "--text", "a", "--out", "x.pdf"])
