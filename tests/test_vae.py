"""The VAE of sentences: its bound against torch and closed forms, what it encodes, how it is used."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import generate
from lm.config.errors import ConfigError
from lm.config.hparams import Hparams
from lm.cost.flops import flops_per_token, xla_flops
from lm.data.kinds import KINDS
from lm.models import recurrent
from lm.models.registry import make_model
from lm.objectives.elbo import eval_scores, kl_BZ, kl_weight, number_of
from lm.objectives.registry import OBJECTIVES
from lm.setup.hparams import make_hparams
from lm.setup.load import load_config
from tests.equalities import (
  assert_counts,
  assert_resumes,
  assert_same,
  assert_stacks,
  resolved,
  run,
  shapes_of,
  trained,
)

SPEC = "configs/vae.py"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  """Sentences of three to eight words; the first word says which of four vocabularies the rest is from."""
  rng, lines = np.random.default_rng(0), []
  for _ in range(600):
    topic = "abcd"[rng.integers(4)]
    words = [f"{topic}{i}" for i in rng.integers(0, 6, rng.integers(2, 8))]
    lines.append(" ".join([topic, *words]))
  path = tmp_path_factory.mktemp("text") / "sentences.txt"
  path.write_text("\n".join(lines))
  return str(path)


def small(text, **changes):
  return {
    "data__sources": f"text:{text}", "data__tokenizer": "word", "data__min_freq": 1,
    "model__seq_len": 10, "model__width": 16, "model__latent_dim": 4, **changes,
  }  # fmt: skip


def flags(changes):
  return [f"--config.{key.replace('__', '.')}={value}" for key, value in changes.items()]


def drawn_params(cfg, size=0.3):
  model = make_model(cfg.model)
  rng = np.random.default_rng(0)
  shapes = shapes_of(cfg.model)
  draw = lambda s: jnp.asarray(rng.normal(0, size, s.shape), jnp.float32)
  return model, jax.tree.map(draw, shapes)


# --- the bound ------------------------------------------------------------------------------------


def test_the_kl_equals_that_of_torchs_distributions():
  distributions = pytest.importorskip("torch").distributions
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(0)
  mean, log_var = rng.normal(size=(2, 5, 7)).astype(np.float32)
  ours = kl_BZ(jnp.asarray(mean), jnp.asarray(log_var))
  q = distributions.Normal(torch.tensor(mean), torch.tensor(log_var).mul(0.5).exp())
  theirs = distributions.kl_divergence(q, distributions.Normal(0.0, 1.0))
  np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5, atol=1e-6)
  assert float(kl_BZ(jnp.zeros(()), jnp.zeros(()))) == 0


def test_the_weight_of_the_kl_rises_as_documented():
  hparams = Hparams(anneal_steps=np.int32(100))
  at = lambda kind, step: float(kl_weight(kind, jnp.int32(step), hparams))
  assert [at("linear", s) for s in (0, 25, 100, 300)] == [0, 0.25, 1, 1]
  assert at("sigmoid", 50) == 0.5 and at("sigmoid", 0) < 0.01 and at("sigmoid", 100) > 0.99
  assert at("none", 0) == 1


def test_evaluation_is_the_definition(text):
  """Every number of an evaluation from the model's parts, one sentence and one vector at a time."""
  cfg, data = resolved(SPEC, **small(text, objective__samples=3, eval__batch_size=8))
  model, params = drawn_params(cfg)
  batch = KINDS["sentences"].evaluate(data.val, cfg, None, None).at(0)
  batch["weights"][5:] = 0  # padding
  loss = OBJECTIVES["elbo"].make_loss(model, cfg)
  extra = {"step": jnp.int32(0)}
  _, (sums, _) = jax.jit(lambda p: loss(p, extra, batch, None, make_hparams(cfg)))(params)
  sums = jax.device_get(sums)

  @jax.jit
  def logits_of(z_BZ):
    apply = lambda *args, **kwargs: model.apply({"params": params}, *args, **kwargs)
    x_BLD, _ = apply(batch["tokens"], z_BZ, apply(z_BZ, method="first"), method="decode")
    return apply(x_BLD, method="logits")

  encode = jax.jit(
    lambda p: model.apply({"params": p}, batch["targets"], batch["weights"], method="encode")
  )
  mean, log_var = (np.array(a, np.float64) for a in encode(params))
  key = jax.random.split(jax.random.key(0), 3)[0]
  keys = [jax.random.fold_in(key, n) for n in number_of(batch["targets"], batch["weights"])]
  nll, ratio = np.zeros((3, 8)), np.zeros((3, 8))
  for k in range(3):
    eps = [jax.random.normal(jax.random.fold_in(key, k), mean.shape[1:]) for key in keys]
    eps = np.array(eps, np.float64)
    z = mean + np.exp(log_var / 2) * eps
    log_p = np.array(jax.nn.log_softmax(logits_of(jnp.asarray(z, jnp.float32))))
    picked = np.take_along_axis(log_p, batch["targets"][..., None], axis=2)[..., 0]
    nll[k] = -(picked * batch["weights"]).sum(axis=1)
    normal = lambda x, m, v: -0.5 * ((x - m) ** 2 / v + np.log(v) + math.log(2 * math.pi))
    ratio[k] = (normal(z, 0, 1) - normal(z, mean, np.exp(log_var))).sum(axis=1)
  kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(axis=1)
  bound = -np.log(np.exp(ratio - nll).mean(axis=0))
  assert sums["weight"] == 5 and sums["units"] == batch["weights"].sum()
  np.testing.assert_allclose(sums["kl"], kl[:5].sum(), rtol=1e-4)
  np.testing.assert_allclose(sums["nll"], nll.mean(axis=0)[:5].sum(), rtol=1e-4)
  np.testing.assert_allclose(sums["bound"], bound[:5].sum(), rtol=1e-4)
  scores = eval_scores({k: np.asarray(v, np.float64) for k, v in sums.items()}, {})
  assert scores["active"] == (mean[:5].var(axis=0) > 0.01).sum()
  assert scores["bound"] < scores["neg_elbo"] and scores["loss"] == pytest.approx(
    sums["bound"] / sums["units"]
  )


def test_what_is_drawn_for_a_sentence_depends_on_it_alone(text):
  """The same set in batches of other sizes gives the same numbers."""
  found = []
  for rows in (4, 8):
    cfg, data = resolved(SPEC, **small(text, objective__samples=2, eval__batch_size=rows))
    model, params = drawn_params(cfg)
    batches = KINDS["sentences"].evaluate(data.val, cfg, None, None)
    loss, hparams = jax.jit(OBJECTIVES["elbo"].make_loss(model, cfg)), make_hparams(cfg)
    extra, parts = {"step": jnp.int32(0)}, []
    for i in range(8 // rows):
      parts.append(jax.device_get(loss(params, extra, batches.at(i), None, hparams)[1][0]))
    found.append({name: sum(part[name] for part in parts) for name in ("nll", "bound", "weight")})
  assert found[0] == pytest.approx(found[1], rel=1e-5) and found[0]["weight"] == 8
  numbers = number_of(*(batches.at(0)[name] for name in ("targets", "weights")))
  texts = {tuple(row) for row in batches.at(0)["targets"].tolist()}
  assert len(set(numbers.tolist())) == len(texts) > 1


def test_the_bound_tightens_with_samples(text):
  found = []
  for k in (1, 4, 32):
    cfg, data = resolved(SPEC, **small(text, objective__samples=k, eval__batch_size=30))
    model, params = drawn_params(cfg, 0.8)
    loss = OBJECTIVES["elbo"].make_loss(model, cfg)
    batch = KINDS["sentences"].evaluate(data.val, cfg, None, None).at(0)
    _, (sums, _) = jax.jit(
      lambda p, b=batch, c=cfg, f=loss: f(p, {"step": jnp.int32(0)}, b, None, make_hparams(c))
    )(params)
    found.append(float(sums["bound"] / sums["weight"]))
  assert found[0] > found[1] + 0.05 and found[1] > found[2] + 0.05


def test_free_bits_take_the_gradient_from_small_divergences(text):
  """Above every divergence the posterior has the gradient of the words alone, as with weight 0."""
  cfg, data = resolved(SPEC, **small(text))
  model, params = drawn_params(cfg, 0.1)
  loss = OBJECTIVES["elbo"].make_loss(model, cfg)
  batch = KINDS["sentences"].train(data, cfg).at(0)
  hparams = make_hparams(cfg)

  @jax.jit
  def gradient(free_bits, step):
    changed = hparams.replace(free_bits=free_bits, anneal_steps=np.int32(10))
    value = lambda p: loss(p, {"step": step}, batch, jax.random.key(0), changed)[0]
    return jax.grad(value)(params)["posterior"]["kernel"]

  late, early = jnp.int32(10_000), jnp.int32(-10_000)
  free, none, off = gradient(1e3, late), gradient(0.0, late), gradient(0.0, early)
  np.testing.assert_allclose(free, off, rtol=1e-4, atol=1e-6)
  assert not np.allclose(free, none, rtol=1e-2)


def test_words_left_out_are_not_told_to_the_decoder(text):
  """With all of them left out the decoder knows the start token and z alone."""
  cfg, data = resolved(SPEC, **small(text))
  model, params = drawn_params(cfg)
  loss = OBJECTIVES["elbo"].make_loss(model, cfg)
  batch = KINDS["sentences"].train(data, cfg).at(0)
  other = batch | {
    "tokens": np.concatenate([batch["tokens"][:, :1], batch["tokens"][:, :0:-1]], axis=1)
  }
  hparams = make_hparams(cfg)

  @jax.jit
  def value(batch, rate):
    changed = hparams.replace(word_dropout=rate)
    return loss(params, {"step": jnp.int32(0)}, batch, jax.random.key(0), changed)[1][0]["nll"]

  assert value(batch, 1.0) == value(other, 1.0)
  assert abs(value(batch, 0.0) - value(other, 0.0)) > 1e-3
  assert value(batch, 0.0) != value(batch, 0.5)


# --- the model ------------------------------------------------------------------------------------


def test_padding_and_later_words_are_not_seen(text):
  cfg, _ = resolved(SPEC, **small(text))
  model, params = drawn_params(cfg)
  tokens = np.int32([[3, 4, 5, 1, 0, 0], [3, 4, 5, 1, 9, 9]])
  real = np.float32([[1, 1, 1, 1, 0, 0]] * 2)
  mean, log_var = jax.jit(lambda: model.apply({"params": params}, tokens, real, method="encode"))()
  np.testing.assert_array_equal(mean[0], mean[1])
  np.testing.assert_array_equal(log_var[0], log_var[1])

  @jax.jit
  def read(embedding):
    """How the decoder's fourth output depends on each word."""

    def at(embedding):
      apply = lambda *a, **k: model.apply(
        {"params": params | {"embed": {"embedding": embedding}}}, *a, **k
      )
      z = jnp.ones((1, 4))
      row = jnp.arange(3, 11, dtype=jnp.int32)[None]
      return apply(row, z, apply(z, method="first"), method="decode")[0][0, 3].sum()

    return jnp.abs(jax.grad(at)(embedding)).sum(axis=1)

  found = np.array(read(params["embed"]["embedding"]))
  assert (found[3:7] > 0).all() and (found[7:11] == 0).all()


@pytest.mark.parametrize("changes", [
  {"model__latent_input": True},
  {"model__latent_input": False, "model__cell": "gru", "model__depth": 2, "model__hidden_dim": 24},
], ids=str)  # fmt: skip
def test_counts_equal_the_leaves(text, changes):
  cfg, _ = resolved(SPEC, **small(text, **changes))
  assert_counts(cfg.model)


def test_exact_flops_agree_with_xla(text, monkeypatch):
  """Written out, as XLA counts the body of a loop once."""
  monkeypatch.setattr(recurrent, "UNROLL", 4)
  sizes = {
    "model__width": 192,
    "model__seq_len": 4,
    "model__latent_dim": 32,
    "model__vocab_size": 512,
  }
  cfg, _ = resolved(SPEC, **small(text) | sizes)
  model = make_model(cfg.model)
  shapes = shapes_of(cfg.model)

  def loss(params, tokens_BL):
    logits_BLV = model.apply({"params": params}, tokens_BL)
    return optax.softmax_cross_entropy_with_integer_labels(logits_BLV, tokens_BL).sum()

  rows = jax.ShapeDtypeStruct((8, 4), jnp.int32)
  compiled = jax.jit(jax.grad(loss)).lower(shapes, rows).compile()
  assert xla_flops(compiled) / 32 == pytest.approx(flops_per_token(cfg.model, "exact"), rel=0.03)


# --- rows, training, using ------------------------------------------------------------------------


def test_a_row_is_a_sentence(text):
  cfg, data = resolved(SPEC, **small(text))
  held = KINDS["sentences"].evaluate(data.val, cfg, None, None)
  batches = [held.at(i) for i in range(len(held))]
  rows = np.concatenate([b["targets"] for b in batches])
  real = np.concatenate([b["weights"] for b in batches]) > 0
  tokens = [row[mask].tolist() for row, mask in zip(rows, real, strict=True) if mask.any()]
  store = data.val
  assert tokens == [
    store.tokens[a:b].tolist() for a, b in zip(store.offsets, store.offsets[1:], strict=False)
  ]
  assert sum(map(len, tokens)) == held.facts["tokens"]
  for batch in (*batches, KINDS["sentences"].train(data, cfg).at(3)):
    begun = batch["weights"][:, 0] > 0
    assert (batch["tokens"][begun, 0] == store.start_id).all()
    np.testing.assert_array_equal(
      (batch["tokens"] * batch["weights"])[:, 1:],
      np.where(batch["weights"] > 0, np.roll(batch["targets"], 1, axis=1), 0)[:, 1:],
    )


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
  {"mesh__replica": 8},
  {"mesh__replica": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "train__accumulate": 2},
], ids=str)  # fmt: skip
def test_eight_devices_give_what_one_gives(text, changes):
  shared = small(text, model__vocab_size=64, optim__eps=1e-6, model__dropout=0.1)
  alone = {k: v for k, v in changes.items() if not k.startswith("mesh")}
  results = []
  for n, more in ((1, alone), (8, changes)):
    cfg, data = resolved(SPEC, n, **shared, **more)
    results.append(run(cfg, data, n_devices=n))
  assert_same(*results)
  assert results[0][1].extra["step"] == 4


@pytest.mark.slow
def test_stacked_runs_equal_separate_ones(text):
  assert_stacks(SPEC, **small(text))


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bits(monkeypatch, tmp_path, text):
  more = small(text, train__steps=20, eval__every_steps=10, log__every_steps=5)
  assert_resumes(monkeypatch, tmp_path, SPEC, *flags(more))


def test_nothing_beyond_the_tokenizer_is_written(text):
  """A vocabulary rounded up, whose last entries are the likeliest whatever the vector."""
  changes = small(text, model__vocab_size=64, sample__tokens=4)
  cfg, data = resolved(SPEC, **changes)
  _, params = drawn_params(cfg)
  params["head_bias"] = jnp.where(jnp.arange(64) >= data.vocab_size, 50.0, params["head_bias"])
  written = OBJECTIVES["elbo"].make_sampler(cfg, data.tokenizer)(params, 0).split()
  assert written and set(written) <= set(data.tokenizer.words)


@pytest.fixture(scope="module")
def workdir(text, tmp_path_factory):
  """A run of 400 steps with what keeps the latent vector in use."""
  folder = tmp_path_factory.mktemp("vae") / "run"
  more = small(text, train__steps=400, objective__anneal_steps=200, objective__word_dropout=0.6)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("train.jax.devices", lambda *_: jax.local_devices()[:1])
    trained(SPEC, folder, *flags(more | {"eval__every_steps": 200}))
  return folder


@pytest.mark.slow
def test_the_latent_vector_is_used_only_with_what_keeps_it_in_use(text, workdir):
  """Posterior collapse (Bowman et al. 2016, §3.1): the same model without annealing and word dropout."""
  final = json.loads((workdir / "run.json").read_text())["final"]
  assert final["eval/val/kl"] > 0.5 and final["eval/val/active"] >= 1
  assert final["eval/val/bound"] <= final["eval/val/neg_elbo"]
  more = small(text, train__steps=400, objective__anneal="none", objective__word_dropout=0.0)
  cfg, data = resolved(SPEC, **more | {"model__latent_input": False})
  history, _ = run(cfg, data, steps=400)
  assert history[-1]["train/kl"] < 0.1


@pytest.mark.slow
def test_sentences_between_two_are_printed(workdir, capsys):

  def between(first, last, n):
    words = ["--workdir", str(workdir), "--prompt", first, "--interpolate", last, "--n", str(n)]
    assert generate.main([*words, "--tokens", "8", "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

  rows = between("a a1 a2", "c c1 c2", 3)
  assert [row["share"] for row in rows] == [0, 0.5, 1]
  back = between("c c1 c2", "a a1 a2", 3)
  assert [row["text"] for row in back] == [row["text"] for row in rows[::-1]]
  known = {"a", "b", "c", "d"} | {f"{topic}{i}" for topic in "abcd" for i in range(6)}
  assert all(row["text"] and set(row["text"].split()) <= known for row in rows)
  with pytest.raises(ConfigError, match=r"model.family=vae does not generate text"):
    generate.main(["--workdir", str(workdir), "--prompt", "a"])
  samples = (workdir / "samples.jsonl").read_text().splitlines()
  assert len(json.loads(samples[-1])["text"].split("\n")) == 5


@pytest.mark.parametrize(("changes", "words"), [
  ({"data.pack": True}, r"data.pack=True: a row is one sentence; use False, and data.text_unit=line"),
  ({"mesh.sequence": 2}, r"mesh.sequence=2: a recurrent model reads positions"),
  ({"mesh.fsdp": 3, "model.width": 33}, r"model.latent_dim=8: must be divisible by mesh.fsdp=3"),
])  # fmt: skip
def test_what_makes_no_sense_is_said(changes, words):
  with pytest.raises(ConfigError, match=words):
    load_config(SPEC, changes)
