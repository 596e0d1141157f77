"""The page of what a model does with a text: its numbers, and what a browser makes of it."""

import json

import jax
import numpy as np
import pytest

from lm import inspect
from lm.config.errors import ConfigError
from lm.models.heads import MaskedHead
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
  np.testing.assert_allclose(
    looked.guesses.loss_L, -log_p[np.arange(len(ids) - 1), ids[1:]], atol=1e-4
  )
  np.testing.assert_allclose(looked.guesses.top_p[-1], np.exp(log_p.max(axis=-1)), atol=1e-4)
  assert looked.guesses.top_p.shape == (3, len(ids) - 1) and len(looked.targets) == len(
    TEXT.encode()
  )


def test_attention_is_causal_sums_to_one_and_has_the_window_of_its_layer(looked):
  L = len(looked.tokens)
  assert looked.inside.attention.shape == (2, 2, L, L)
  np.testing.assert_allclose(looked.inside.attention.sum(axis=-1), 1, atol=1e-5)
  seen = np.tril(np.ones((L, L), bool))
  assert (
    not looked.inside.attention[:, :, ~seen].any()
    and (looked.inside.attention[1][:, seen] > 0).all()
  )
  near = seen & ~np.tril(np.ones((L, L), bool), -6)
  assert (
    not looked.inside.attention[0][:, ~near].any()
    and (looked.inside.attention[0][:, near] > 0).all()
  )


def test_norms_neighbours_and_directions(decoder, looked):
  assert {k: len(v) for k, v in looked.inside.norms.items()} == {
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


def model_losses(loaded, text):
  """Of the whole run's own pass, nothing taken apart."""
  ids = [loaded.tokenizer.start_id, *loaded.tokenizer.encode(text)]
  logits = jax.jit(loaded.model.apply)({"params": loaded.params}, np.array([ids[:-1]], np.int32))
  return -np.asarray(jax.nn.log_softmax(logits))[0][np.arange(len(ids) - 1), ids[1:]]


@pytest.mark.slow  # two runs
def test_layers_that_are_shared_and_experts_are_shown_as_the_model_uses_them(tmp_path):
  albert, moe = tmp_path / "albert", tmp_path / "moe"
  run(albert, model__depth=3, model__share_layers=True)
  rate = {
    "objective__router_bias_rate": 0.5,
    "model__router": "sigmoid",
    "model__shared_experts": 1,
  }
  run(moe, model__depth=2, model__experts=4, model__mlp_dim=16, **rate)
  for workdir in (albert, moe):
    loaded = load(workdir, "latest")
    looked = inspect.look(loaded, "Returns it")
    np.testing.assert_allclose(looked.guesses.loss_L, model_losses(loaded, "Returns it"), atol=1e-4)
    assert looked.inside.attention.shape == (loaded.cfg.model.depth, 2, 10, 10)
  section = inspect.page(loaded, "Returns it", looked).split("<h2>Experts</h2>")[1]
  rows = section.split("</table>")[0].split("<tr>")[2:]
  chosen, gates = looked.inside.chosen, looked.inside.gates
  assert chosen.shape == (2, 10, 2) and len(rows) == 2 and set(np.unique(chosen)) <= {0, 1, 2, 3}
  np.testing.assert_allclose(gates.sum(axis=-1), 1, atol=1e-5)
  for row, experts, weights in zip(rows, chosen, gates, strict=True):
    first = f">{experts[0, 0]} {weights[0, 0]:.2f}\n{experts[0, 1]} {weights[0, 1]:.2f}"
    assert first in row.split("</td>")[0]
  mlp = load(moe, "latest").params["blocks"]["mlp"]  # of layer 1, what the router says of the start
  x_D = model_input(loaded, "Returns it")[0, 0]
  share_E = 1 / (1 + np.exp(-x_D @ np.asarray(mlp["router"]["kernel"])[0]))
  best = np.argsort(-(share_E + np.asarray(mlp["bias"])[0]), kind="stable")[:2]
  assert list(best) == list(chosen[0, 0])


def model_input(loaded, text):
  """[1, L, D] that the first layer's router reads."""
  ids = [loaded.tokenizer.start_id, *loaded.tokenizer.encode(text)][:-1]
  keep = lambda module, method: module.name == "mlp_norm" and method == "__call__"
  _, kept = loaded.model.apply(
    {"params": loaded.params}, np.array([ids], np.int32), capture_intermediates=keep,
    mutable=["intermediates"],
  )  # fmt: skip
  return np.asarray(kept["intermediates"]["blocks"]["mlp_norm"]["__call__"][0])[0]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("inspect") / "bert"
  tiny = {"model.width": 16, "model.seq_len": 24, "train.steps": 2, "eval.tokens": 1024}
  run(workdir, config="configs/bert.py:smoke", tiny=tiny)
  return workdir


@pytest.mark.slow
def test_bert_guesses_each_token_that_is_hidden_alone(bert, chromium, tmp_path, capsys):
  loaded, out = load(bert), tmp_path / "page.html"
  assert inspect.main(["--workdir", str(bert), "--text", "abé", "--out", str(out), "--json"]) == 0
  said = json.loads(capsys.readouterr().out)
  t, mask = loaded.tokenizer, 257  # bytes name no mask: the id after theirs
  ids, losses = [t.start_id, *t.encode("abé"), t.eot_id], []
  for place in range(1, 5):
    row_1L = np.array([ids], np.int32)
    row_1L[0, place] = mask
    x_1LD = loaded.model.apply({"params": loaded.params}, row_1L)
    head, table = loaded.params["masked_head"], loaded.params["embed"]["embedding"]
    logits = MaskedHead(loaded.cfg.model).apply(
      {"params": head}, x_1LD[:, place : place + 1], table
    )
    losses.append(-float(jax.nn.log_softmax(logits)[0, 0, ids[place]]))
  np.testing.assert_allclose(said["losses"], losses, atol=1e-5)
  looked = inspect.look(loaded, "abé")
  assert looked.inside.attention.shape == (2, 2, 6, 6) and (looked.inside.attention > 0).all()
  np.testing.assert_allclose(looked.inside.attention.sum(axis=-1), 1, atol=1e-5)
  whole = loaded.model.apply({"params": loaded.params}, np.array([ids], np.int32))[0]
  np.testing.assert_allclose(looked.inside.hidden_LD, whole, atol=1e-5)
  tab = chromium.new_page()
  tab.goto(out.as_uri())
  titles = tab.eval_on_selector_all("h2", "all => all.map(one => one.textContent)")
  assert titles == ["Loss", "Logit lens", "Attention", "Norms", "Hidden states", "Neighbours"]
  assert "each hidden in turn" in tab.inner_text("p >> nth=0")
  assert tab.locator("tr", has_text="layer").count() == 2 and tab.locator("svg circle").count() > 4
  tab.close()

  without = loaded._replace(params={k: v for k, v in loaded.params.items() if k != "masked_head"})
  looked = inspect.look(without, "abé")
  shown = inspect.page(without, "abé", looked)
  assert looked.guesses is None and "no loss and no logit lens" in shown
  assert "<h2>Attention" in shown and "<h2>Logit lens" not in shown and "<h2>Loss" not in shown
  with pytest.raises(ConfigError, match="has 23 tokens, must have 1 to 22; shorten it"):
    inspect.look(loaded, "a" * 23)


def test_other_families_are_refused(decoder):
  loaded = load(decoder)
  words = "model.family=decoder is neither a decoder nor bert; inspect one of these"
  with pytest.raises(ConfigError, match=words):
    inspect.look(loaded._replace(model=MaskedHead(loaded.cfg.model)), "a")


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
