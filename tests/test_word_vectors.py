"""Vectors of words: batches and losses by their definitions, the task, models that start from them."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import word_vectors
from lm import evaluate, start_from
from lm.config.errors import ConfigError
from lm.cost.flops import xla_flops
from lm.data import contexts, cooccurrences
from lm.data.kinds import KINDS
from lm.data.store import TokenStore
from lm.data.tokenizers import load_tokenizer
from lm.devices.sharding import make_mesh
from lm.models.registry import make_model
from lm.objectives.negative_sampling import nearest, neighbours
from lm.objectives.registry import OBJECTIVES
from lm.runs.checkpoint import load_params
from lm.setup.hparams import make_hparams
from lm.setup.load import load_config
from lm.tasks import similarity
from lm.training.programs import make_programs
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

WORD2VEC, GLOVE = "configs/word2vec.py", "configs/glove.py"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  """Documents of four topics of ten words each, in runs of one topic: neighbours tell topics apart."""
  rng = np.random.default_rng(0)
  names = [[f"{topic}{chr(97 + i)}" for i in range(10)] for topic in ("red", "sky", "tin", "owl")]
  lines = []
  for _ in range(400):
    topic = names[rng.integers(4)]
    lines.append(" ".join(topic[i] for i in rng.integers(0, 10, 40)) + " , the 3 .")
  path = tmp_path_factory.mktemp("text") / "topics.txt"
  path.write_text("\n".join(lines))
  return str(path)


def topics(text, **changes):
  """Changes of a config that read it."""
  return {
    "data__sources": f"text:{text}", "data__text_unit": "line", "sample__prompt": "reda",
    "model__width": 8, "model__seq_len": 32, "train__batch_size": 16, **changes,
  }  # fmt: skip


def flags(changes):
  return [f"--config.{key.replace('__', '.')}={value}" for key, value in changes.items()]


# --- batches --------------------------------------------------------------------------------------


def test_rows_hold_the_words_that_stay_in_their_order(text):
  cfg, data = resolved(WORD2VEC, **topics(text, objective__subsample=0.0))
  left_out = contexts.not_words(data.tokenizer)
  made = KINDS["contexts"].train(data, cfg)
  whole = made.rows.at(3)
  batch = made.at(3)
  part = made.at(3, slice(4, 9))
  assert all((part[name] == batch[name][4:9]).all() for name in batch)
  for b in range(16):
    tokens = whole["targets"][b][whole["weights"][b] > 0]
    words = [int(t) for t in tokens if t not in left_out]
    n = len(words)
    assert batch["words"][b, :n].tolist() == words and batch["read"][b] == n
    assert (batch["segments"][b, :n] > 0).all() and (batch["segments"][b, n:] == 0).all()
    documents = np.cumsum(tokens == data.tokenizer.eot_id)[~np.isin(tokens, left_out)]
    np.testing.assert_array_equal(np.diff(batch["segments"][b, :n]), np.diff(documents))


def test_draws_have_the_distributions_they_should(text):
  threshold = 0.005
  cfg, data = resolved(WORD2VEC, **topics(text, objective__subsample=threshold))
  made = KINDS["contexts"].train(data, cfg)
  batches = [made.at(step) for step in range(150)]
  windows = np.concatenate([b["windows"].ravel() for b in batches])
  np.testing.assert_allclose(np.bincount(windows, minlength=6)[1:] / len(windows), 0.2, atol=0.01)
  drawn = np.bincount(
    np.concatenate([b["negatives"].ravel() for b in batches]), minlength=len(data.counts)
  )
  expected = data.counts**0.75 / (data.counts**0.75).sum()
  np.testing.assert_allclose(drawn / drawn.sum(), expected, atol=0.003)
  frequency = data.counts / data.counts.sum()
  share = np.minimum(1, np.sqrt(threshold / frequency[3:]) + threshold / frequency[3:])
  kept = np.bincount(
    np.concatenate([b["words"][b["segments"] > 0] for b in batches]), minlength=len(data.counts)
  )[3:]
  read = sum(b["read"].sum() for b in batches)
  np.testing.assert_allclose(kept / (read * frequency[3:]), share, rtol=0.15)
  assert (made.at(0)["windows"] != made.at(1)["windows"]).any()


def store_of(tokens, eot=1):
  tokens = np.asarray(tokens, np.uint16)
  offsets = np.concatenate([[0], 1 + np.flatnonzero(tokens == eot)])
  n = len(offsets) - 1
  return TokenStore("t", tokens, offsets, np.ones(n, np.int64), np.zeros((0, 2), np.int64),
                    len(tokens), n, n, eot, 0, "x")  # fmt: skip


@pytest.mark.parametrize("chunk", [1 << 20, 7, 3])
def test_pairs_are_counted_as_a_loop_counts_them(monkeypatch, chunk):
  monkeypatch.setattr(cooccurrences, "CHUNK", chunk)
  monkeypatch.setattr(cooccurrences, "ROOM", 20)
  rng = np.random.default_rng(0)
  tokens = np.append(np.where(rng.random(60) < 0.1, 1, rng.integers(2, 8, 60)), 1)
  expected = np.zeros((8, 8))
  for document in np.split(tokens, 1 + np.flatnonzero(tokens == 1)):
    words = [t for t in document if t not in (0, 1, 2)]
    for i, a in enumerate(words):
      for d in range(1, 4):
        if i + d < len(words):
          expected[a, words[i + d]] += 1 / d
          expected[words[i + d], a] += 1 / d
  numbers, counts = cooccurrences.count_pairs([store_of(tokens)], 8, [0, 1, 2], 3)
  found = np.zeros(64)
  found[numbers] = counts
  np.testing.assert_allclose(found.reshape(8, 8), expected)
  assert (np.diff(numbers) > 0).all() and (counts > 0).all()


def test_an_epoch_of_pairs_holds_each_once_and_none_that_is_held_out(text):
  cfg, data = resolved(GLOVE, **topics(text, model__seq_len=1, data__val_fraction=0.2))
  made = KINDS["cooccurrences"].train(data, cfg)
  n = data.n_units
  seen = np.concatenate(
    [made.at(step)["left"] * 10_000 + made.at(step)["right"] for step in range(n // 16 + 1)]
  )
  every = data.left * 10_000 + data.right
  assert sorted(seen[:n]) == sorted(every[data.trained])
  held = KINDS["cooccurrences"].evaluate(KINDS["cooccurrences"].held_out(data), cfg, None, None)
  batches = [held.at(i) for i in range(len(held))]
  numbers = np.concatenate([(b["left"] * 10_000 + b["right"])[b["weights"] > 0] for b in batches])
  assert sorted(numbers) == sorted(every[data.held_out])
  unordered = lambda chosen: {
    frozenset(p) for p in zip(data.left[chosen], data.right[chosen], strict=True)
  }
  assert not unordered(data.held_out) & unordered(data.trained)  # X_ij = X_ji
  assert 0.1 < len(numbers) / len(every) < 0.3


# --- losses ---------------------------------------------------------------------------------------


def sums_of(spec, params_seed, batch, **changes):
  cfg, _ = resolved(spec, **changes)
  model = make_model(cfg.model)
  rng = np.random.default_rng(params_seed)
  shapes = shapes_of(cfg.model)
  params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes)
  loss = OBJECTIVES[cfg.objective.name].make_loss(model, cfg)
  total, (sums, _) = jax.jit(lambda p: loss(p, {}, batch, None, make_hparams(cfg)))(params)
  return params, float(total), {name: float(value) for name, value in sums.items()}


@pytest.mark.parametrize("architecture", ["skipgram", "cbow"])
def test_the_loss_is_that_of_the_paper(text, architecture):
  batch = {
    "words": np.int32([[3, 4, 5, 6, 7, 0], [8, 3, 3, 0, 0, 0]]),
    "segments": np.int32([[1, 1, 2, 2, 2, 0], [1, 1, 1, 0, 0, 0]]),
    "windows": np.int32([[1, 2, 2, 1, 1, 1], [1, 1, 2, 1, 1, 1]]),
    "negatives": np.int32([[4, 9, 9], [3, 10, 5]]),
    "read": np.float32([7, 3]),
  }
  more = topics(text, objective__architecture=architecture, objective__negatives=2.0)
  params, total, sums = sums_of(WORD2VEC, 0, batch, **more)
  v, u = (np.array(params[t]["embedding"], np.float64) for t in ("embed", "context"))
  log_s = lambda x: -math.log1p(math.exp(-x))
  expected, weight = 0.0, 0
  for b in range(2):
    words, segments = batch["words"][b], batch["segments"][b]
    for i in range(6):
      near = [j for j in range(6) if j != i and abs(i - j) <= batch["windows"][b, i]
              and segments[j] == segments[i] and segments[i] > 0]  # fmt: skip
      if architecture == "cbow" and near:
        terms = [(v[words[near]].mean(axis=0), u[words[i]])]
      else:
        terms = [(v[words[i]], u[words[j]]) for j in near]
      for vector, target in terms:
        expected -= log_s(vector @ target)
        expected -= 2.0 * np.mean([log_s(-vector @ u[n]) for n in batch["negatives"][b]])
        weight += 1
  assert total == pytest.approx(expected, rel=1e-5)
  assert sums["weight"] == weight and sums["units"] == 10 and sums["kept"] == 8


@pytest.mark.parametrize("gradient", ["exact", "word2vec"])
def test_neighbours_move_by_their_share_or_by_all_of_the_means_gradient(text, gradient):
  batch = {
    "words": np.int32([[3, 4, 5, 6]]), "segments": np.int32([[1, 1, 1, 1]]),
    "windows": np.int32([[1, 2, 1, 2]]), "negatives": np.int32([[8, 9]]), "read": np.float32([4]),
  }  # fmt: skip
  more = topics(text, objective__architecture="cbow", objective__gradient=gradient)
  cfg, _ = resolved(WORD2VEC, **more)
  rng = np.random.default_rng(0)
  shapes = shapes_of(cfg.model)
  params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s.shape), jnp.float32), shapes)
  loss = OBJECTIVES["negative_sampling"].make_loss(make_model(cfg.model), cfg)
  value = lambda p: loss(p, {}, batch, None, make_hparams(cfg))[0]
  found = jax.grad(value)(params)["embed"]["embedding"]
  v, u = (np.array(params[t]["embedding"], np.float64) for t in ("embed", "context"))
  expected, s = np.zeros_like(v), lambda x: 1 / (1 + np.exp(-x))
  for i, word in enumerate(batch["words"][0]):
    near = [j for j in range(4) if j != i and abs(i - j) <= batch["windows"][0, i]]
    words = batch["words"][0][near]
    mean = v[words].mean(axis=0)
    error = (s(mean @ u[word]) - 1) * u[word]
    error = error + 5.0 * np.mean([s(mean @ u[n]) * u[n] for n in batch["negatives"][0]], axis=0)
    expected[words] += error / (len(near) if gradient == "exact" else 1)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_gloves_loss_is_that_of_the_paper(text):
  batch = {
    "left": np.int32([3, 4, 5]), "right": np.int32([6, 3, 5]),
    "count": np.float32([0.5, 250.0, 7.0]), "weights": np.float32([1, 1, 0]),
  }  # fmt: skip
  params, total, sums = sums_of(GLOVE, 0, batch, **topics(text, model__seq_len=1))
  p = jax.tree.map(lambda a: np.array(a, np.float64), params)
  error = lambda i, j, x: (
    p["embed"]["embedding"][i] @ p["context"]["embedding"][j]
    + p["embed"]["bias"][i] + p["context"]["bias"][j] - math.log(x)
  )  # fmt: skip
  expected = (0.5 / 100) ** 0.75 * error(3, 6, 0.5) ** 2 + error(4, 3, 250.0) ** 2
  assert total == pytest.approx(expected, rel=1e-4) and sums["weight"] == 2


# --- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [WORD2VEC, GLOVE])
def test_counts_equal_the_leaves(text, spec):
  cfg, _ = resolved(spec, **topics(text))
  assert_counts(cfg.model)


def test_exact_flops_agree_with_xla(text):
  """Of the products alone: look-ups are none, and masks and logistic functions grow with L, not with L D."""
  cfg, _ = resolved(WORD2VEC, **topics(text, model__width=512, model__seq_len=64))
  rows = jnp.zeros((4, 64, 512)), jnp.zeros((4, 64, 512)), jnp.zeros((4, 64, 512))

  near = neighbours(jnp.ones((4, 64), jnp.int32), jnp.ones((4, 64), jnp.int32))

  def loss(v_BLD, u_BLD, n_BND):
    true = near * jax.nn.softplus(-jnp.einsum("bld,bmd->blm", v_BLD, u_BLD))
    return true.sum() + jax.nn.softplus(jnp.einsum("bld,bnd->bln", v_BLD, n_BND)).sum()

  counted = xla_flops(jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*rows).compile())
  exact = OBJECTIVES["negative_sampling"].exact_flops(cfg, False)
  assert counted / (4 * 64) == pytest.approx(exact, rel=0.03)


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["skipgram", "cbow"])
def test_words_of_a_topic_come_together(text, architecture):
  """After a few hundred steps the nine nearest words of each are, nearly all, of its own topic."""
  more = topics(text, train__steps=250, optim__peak_lr=0.03, objective__architecture=architecture)
  cfg, data = resolved(WORD2VEC, **more)
  history, state = run(cfg, data, steps=250)
  assert history[-1]["train/loss"] < 0.9 * history[0]["train/loss"]
  vectors = np.array(state.params["embed"]["embedding"])
  words = [i for i in range(3, data.vocab_size) if len(data.tokenizer.token(i)) == 4]
  assert len(words) == 40
  topic = lambda i: data.tokenizer.token(i)[:3]
  found = [
    topic(j) == topic(i) for i in words for j in nearest(vectors, i, len(vectors))
    if j in words and j != i
  ]  # fmt: skip
  first_nine = np.reshape(found, (40, 39))[:, :9]
  assert first_nine.mean() > 0.9


def test_glove_fits_the_logarithms_of_counts(text):
  more = {"model__seq_len": 1, "train__batch_size": 256, "optim__peak_lr": 0.1}
  cfg, data = resolved(GLOVE, **topics(text, train__steps=300) | more)
  history, state = run(cfg, data, steps=300)
  assert history[-1]["train/error"] < 0.2 < 1.0 < history[0]["train/error"]
  p = state.params
  i, j = data.left[data.trained], data.right[data.trained]
  fitted = (p["embed"]["embedding"][i] * p["context"]["embedding"][j]).sum(axis=1)
  fitted += p["embed"]["bias"][i] + p["context"]["bias"][j]
  assert np.corrcoef(fitted, np.log(data.count[data.trained]))[0, 1] > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("spec", [WORD2VEC, GLOVE])
@pytest.mark.parametrize("changes", [
  {"mesh__replica": 8},
  {"mesh__replica": 2, "mesh__fsdp": 2, "mesh__tensor": 2, "train__accumulate": 2},
], ids=str)  # fmt: skip
def test_eight_devices_give_what_one_gives(text, spec, changes):
  shared = topics(text, model__vocab_size=64, optim__eps=1e-6)
  alone = {k: v for k, v in changes.items() if not k.startswith("mesh")}
  results = []
  for n, more in ((1, alone), (8, changes)):
    cfg, data = resolved(spec, n, **shared, **more)
    results.append(run(cfg, data, n_devices=n))
  assert_same(*results)


@pytest.mark.slow
@pytest.mark.parametrize("spec", [WORD2VEC, GLOVE])
def test_stacked_runs_equal_separate_ones(text, spec):
  assert_stacks(spec, **topics(text))


@pytest.mark.slow
@pytest.mark.parametrize("spec", [WORD2VEC, GLOVE])
def test_a_resumed_run_ends_with_the_same_bits(monkeypatch, tmp_path, text, spec):
  more = topics(text, train__steps=20, eval__every_steps=10, log__every_steps=5)
  assert_resumes(monkeypatch, tmp_path, spec, *flags(more))


# --- using them -----------------------------------------------------------------------------------


def test_rows_that_are_no_words_are_never_shown(text):
  """A model with more rows than words, all of which are asked for."""
  cfg, data = resolved(WORD2VEC, **topics(text, model__vocab_size=256, sample__tokens=250))
  table = np.random.default_rng(0).normal(size=(256, 8))
  said = OBJECTIVES[cfg.objective.name].make_sampler(cfg, data.tokenizer)(
    {"embed": {"embedding": table}}, 0
  )
  shown = {data.tokenizer.token(i) for i in range(data.vocab_size)} - {"reda"}
  assert sorted(said.split()) == sorted(shown)


def test_a_sample_is_asked_for_as_words_are_written(text):
  """Folded to lower case as the corpus is; of a word that is not there, it says so."""
  table = {"embed": {"embedding": np.random.default_rng(0).normal(size=(43, 8))}}

  def said(prompt):
    cfg, data = resolved(WORD2VEC, **topics(text, sample__prompt=prompt))
    return OBJECTIVES[cfg.objective.name].make_sampler(cfg, data.tokenizer)(table, 0)

  assert said("RedA") == said("reda")
  assert said("Nowhere") == " (Nowhere is none of the words)"


def test_unknown_words_of_a_library_tokenizer_are_none(text, tmp_path):
  """[UNK] is no word: it is neither trained on nor compared."""
  from tokenizers import Tokenizer, models, pre_tokenizers

  known = [f"red{chr(97 + i)}" for i in range(10)]
  vocab = {name: i for i, name in enumerate(["[CLS]", "[SEP]", "[UNK]", *known])}
  backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
  backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  backend.add_special_tokens(["[CLS]", "[SEP]", "[UNK]"])
  path = tmp_path / "tokenizer.json"
  backend.save(str(path))
  changes = {
    "data__tokenizer": "huggingface", "data__tokenizer_path": str(path),
    "data__separator": "[SEP]", "data__start": "[CLS]",
  }  # fmt: skip
  cfg, data = resolved(WORD2VEC, **topics(text, **changes))
  assert data.counts[:3].tolist() == [0, 0, 0] and (data.counts[3:] > 0).all()
  words = KINDS["contexts"].train(data, cfg).at(0)
  assert not np.isin([0, 1, 2], words["negatives"]).any()
  assert (words["words"][words["segments"] > 0] > 2).all()
  table = np.random.default_rng(0).normal(size=(13, 8))
  assert similarity._vector(table, data.tokenizer, "skya") is None
  np.testing.assert_array_equal(similarity._vector(table, data.tokenizer, "redb"), table[4])


@pytest.fixture(scope="module")
def vectors(text, tmp_path_factory):
  """A short run of vectors, and its folder."""
  workdir = tmp_path_factory.mktemp("vectors") / "run"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("train.jax.devices", lambda *_: jax.local_devices()[:1])
    trained(WORD2VEC, workdir, *flags(topics(text, train__steps=4, eval__tokens=512)))
  return workdir


def test_likeness_is_ranked_by_cosine(vectors, tmp_path, capsys):
  table = np.array(load_params(vectors, "latest")[0]["embed"]["embedding"])
  tokenizer = load_tokenizer(vectors / "tokenizer")
  cosine = lambda a, b: table[a] @ table[b] / np.linalg.norm(table[a]) / np.linalg.norm(table[b])
  pairs = [("reda", "skyb"), ("owlc", "owld"), ("tina", "redb"), ("skyc", "skyd"), ("reda", "owlj")]
  lines = ["Word 1\tWord 2\tLikeness", "# judged", "reda\tnowhere\t3"]
  for a, b in pairs:
    likeness = 10 * cosine(tokenizer.encode(a)[0], tokenizer.encode(b)[0]) ** 3
    lines.append(f"{a.upper()}\t{b}\t{likeness}")
  path = tmp_path / "pairs.tsv"
  path.write_text("\n".join(lines))
  arguments = ["--workdir", str(vectors), "--checkpoint", "latest", "--json"]
  assert evaluate.main([*arguments, "--task", f"similarity:{path}"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert (found["spearman"], found["pairs"], found["unknown_pairs"]) == (pytest.approx(1), 5, 1)
  path.write_text("reda\tskyb\t1\nreda skyb 2\n")
  with pytest.raises(ConfigError, match=r"line 2 must be two words and a number with tabs between"):
    evaluate.main([*arguments, "--task", f"similarity:{path}"])
  path.write_text("x\ty\t1\n")
  with pytest.raises(ConfigError, match=r"knows both words of 0 pairs only; it takes 2 or more"):
    evaluate.main([*arguments, "--task", f"similarity:{path}"])


@pytest.mark.parametrize("spec", ["configs/lstm.py", "configs/smoke.py"])
def test_any_models_embedding_can_start_from_them(vectors, text, spec):
  changes = {
    "data__sources": f"text:{text}", "data__text_unit": "line", "data__tokenizer": "word",
    "data__tokenizer_path": str(vectors / "tokenizer"), "data__lower_case": True,
    "data__words_only": True, "model__width": 8, "train__init_from": str(vectors),
    "model__depth": 1,
  }  # fmt: skip
  cfg, _ = resolved(spec, **changes)
  programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:1]))
  loaded = start_from.load(cfg, programs.run_shape.params)
  assert set(loaded.params) == {"embed/embedding"}
  state = programs.init(jax.device_put(make_hparams(cfg), programs.scalar_sharding))
  state = start_from.place(state, loaded, 1, lambda line: None)
  wanted = load_params(vectors)[0]["embed"]["embedding"]
  np.testing.assert_array_equal(state.params["embed"]["embedding"], wanted)


@pytest.mark.parametrize(("spec", "changes", "words"), [
  (WORD2VEC, {"mesh.sequence": 2}, r"mesh.sequence=2: words of a row are compared"),
  (WORD2VEC, {"data.pack": False}, r"data.pack=False: rows are spans of text"),
  (WORD2VEC, {"objective.gradient": "word2vec"}, r"objective.gradient=word2vec: is of means of"),
  (GLOVE, {"data.weights": (1.0,)}, r"data.weights=1.0: pairs of all sources are counted together"),
  (GLOVE, {"data.pack": False}, r"data.pack=False: pairs lie within a document in any case"),
  (GLOVE, {"model.biases": False}, r"model.biases=False: objective.name=glove adds a bias"),
  (GLOVE, {"eval.sets": "a=text:b.txt"}, r"eval.sets=a=text:b.txt: pairs of words are held out"),
])  # fmt: skip
def test_what_makes_no_sense_is_said(spec, changes, words):
  with pytest.raises(ConfigError, match=words):
    load_config(spec, changes)


def test_evaluation_draws_the_same_whatever_the_size_of_a_batch(text):
  found = []
  for rows in (4, 8):
    cfg, data = resolved(WORD2VEC, **topics(text, eval__batch_size=rows))
    batches = KINDS["contexts"].evaluate(data and KINDS["contexts"].held_out(data), cfg, None, None)
    found.append([batches.at(i) for i in range(8 // rows)])
  for name, array in found[1][0].items():
    np.testing.assert_array_equal(np.concatenate([part[name] for part in found[0]]), array)


def test_pairs_come_in_one_order_where_they_are_not_shuffled_anew(text):
  orders = {}
  for again in (True, False):
    cfg, data = resolved(GLOVE, **topics(text, data__reshuffle=again, train__batch_size=1))
    batches = KINDS["cooccurrences"].train(data, cfg)
    n = data.n_units
    orders[again] = [[int(batches.at(e * n + i)["left"][0]) for i in range(20)] for e in (0, 1)]
  assert orders[False][0] == orders[False][1] == orders[True][0] != orders[True][1]


def test_a_corpus_whose_words_are_all_too_rare_is_refused(text):
  with pytest.raises(
    ConfigError, match=r"data\.min_freq=100000: no word of text:\S+ is so frequent"
  ):
    resolved(WORD2VEC, **topics(text, data__min_freq=100_000))


# --- beside gensim --------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["skipgram", "cbow"])
def test_a_rate_of_a_pair_is_that_of_the_sum_over_a_batch(text, architecture):
  """benchmarks/word_vectors.py --rates: P times the rate, on a loss that is the sum over P divided by P."""
  shared = topics(text, objective__architecture=architecture)
  cfg, data = resolved(WORD2VEC, **shared)
  batches = [KINDS["contexts"].train(data, cfg).at(step) for step in range(3)]
  weights = [sums_of(WORD2VEC, 0, batch, **shared)[2]["weight"] for batch in batches]
  pairs = word_vectors.mean_pairs(data, cfg, batches=3)
  assert pairs == pytest.approx(np.mean(weights))
  told = {k.replace(".", "__"): v for k, v in word_vectors.rate_of_pairs(0.05, pairs).items()}
  cfg, _ = resolved(WORD2VEC, **shared, **told)
  assert cfg.optim.peak_lr == pytest.approx(0.05 * np.mean(weights))
  assert cfg.optim.peak_lr * cfg.optim.final_lr_frac == pytest.approx(1e-4 * np.mean(weights))
  assert (cfg.optim.name, cfg.optim.b1, cfg.optim.schedule) == ("sgd", 0, "linear")
