"""Classification and regression: scores against scikit-learn and scipy, heads against transformers."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import evaluate
from lm.config.errors import ConfigError
from lm.cost.parameters import run_weights
from lm.devices.sharding import make_mesh
from lm.evaluate import evaluate_sets
from lm.hf.bert import from_bert
from lm.models.registry import make_model
from lm.objectives.pooled import pool
from lm.objectives.registry import objective_of
from lm.setup.hparams import hparams_zeros, make_hparams
from lm.setup.load import load_config
from lm.setup.resolve import kind_of, resolve
from lm.training.programs import make_programs
from tests.equalities import assert_counted
from tests.test_bert import SIZES, TINY, V, rows, theirs

CLASSES = 5


def classifier(n_vocab=V, devices=1, **changes):
  changes = {key.replace("__", "."): value for key, value in changes.items()}
  sizes = TINY | {"objective.classes": CLASSES, "data.label_field": "label"}
  return resolve(load_config("configs/classify.py", sizes | changes), n_vocab, devices)


class Predicted:
  """An evaluation set of given predictions."""

  batch_size, facts = 8, {}

  def __init__(self, batches):
    self.batches = batches

  def __len__(self):
    return len(self.batches)


def scored(objective, per_batch):
  """eval_scores of sums that are joined over batches as evaluation joins them."""
  join = lambda key: np.concatenate if key in objective.kept else sum
  total = {key: join(key)([np.asarray(part[key]) for part in per_batch]) for key in per_batch[0]}
  return objective.eval_scores(total, {})


@pytest.fixture(scope="module")
def predictions():
  """Log-probabilities, labels and weights of 40 texts in 5 batches, as the loss of a fixed head sees them."""
  rng = np.random.default_rng(0)
  label = rng.integers(0, CLASSES - 1, 40)  # the last class is never had
  logits = rng.normal(size=(40, CLASSES)) + 1.5 * np.eye(CLASSES)[label]
  weight = np.ones(40)
  weight[35:] = 0
  return logits, label, weight


def sums_of(monkeypatch, cfg, outputs, batches):
  """The loss's sums over batches, with `outputs` in place of what the model says."""
  objective = objective_of(cfg.objective)
  given = iter(outputs)
  monkeypatch.setattr(
    "lm.objectives.pooled.make_head", lambda *a: lambda params, batch, key: next(given)
  )
  loss_fn = objective.make_loss(None, cfg)
  return [loss_fn({}, {}, batch, None, hparams_zeros(cfg))[1][0] for batch in batches]


def test_scores_equal_those_of_scikit_learn(monkeypatch, predictions):
  metrics = pytest.importorskip("sklearn.metrics")
  logits, label, weight = predictions
  cfg, f32 = classifier(), lambda a: jnp.asarray(a, jnp.float32)
  cut = lambda a: np.split(a, 5)
  batches = [
    {"label": jnp.asarray(y, jnp.int32), "weights": f32(w), "segments": jnp.ones((8, 3), jnp.int32)}
    for y, w in zip(cut(label), cut(weight), strict=True)
  ]
  found = scored(
    objective_of(cfg.objective), sums_of(monkeypatch, cfg, map(f32, cut(logits)), batches)
  )
  real = weight > 0
  y, p = label[real], np.exp(logits[real]) / np.exp(logits[real]).sum(axis=1, keepdims=True)
  chosen = p.argmax(axis=1)
  macro = {"average": "macro", "zero_division": 0}
  wanted = {
    "loss": metrics.log_loss(y, p, labels=range(CLASSES)),
    "accuracy": metrics.accuracy_score(y, chosen),
    "precision": metrics.precision_score(y, chosen, **macro),
    "recall": metrics.recall_score(y, chosen, **macro),
    "f1_macro": metrics.f1_score(y, chosen, **macro),
    "f1_micro": metrics.f1_score(y, chosen, average="micro"),
    "matthews": metrics.matthews_corrcoef(y, chosen),
  }
  edges = np.linspace(0, 1, 16)
  bins = [(p.max(1) > a) & (p.max(1) <= b) for a, b in itertools.pairwise(edges)]
  gap = lambda m: abs((chosen == y)[m].mean() - p.max(1)[m].mean())
  wanted["ece"] = sum(m.mean() * gap(m) for m in bins if m.any())
  assert set(found) == set(wanted) and 0 < wanted["matthews"] < 1
  for name, value in wanted.items():
    assert found[name] == pytest.approx(value, rel=1e-5), name


def test_correlations_equal_those_of_scipy(monkeypatch):
  from scipy import stats

  rng = np.random.default_rng(1)
  label = rng.integers(0, 6, 32) / 2  # many ties
  predicted = label + rng.normal(size=32)
  weight = np.ones(32)
  weight[29:] = 0
  objective = {"name": "regression", "pooling": "mean", "dropout": 0.0}
  cfg = graded(objective)
  f32 = lambda a: jnp.asarray(a, jnp.float32)
  cut = lambda a: np.split(a, 4)
  batches = [
    {"label": f32(y), "weights": f32(w), "segments": jnp.ones((8, 3), jnp.int32)}
    for y, w in zip(cut(label), cut(weight), strict=True)
  ]
  outputs = [f32(part)[:, None] for part in cut(predicted)]
  found = scored(objective_of(cfg.objective), sums_of(monkeypatch, cfg, outputs, batches))
  real = weight > 0
  y, p = label[real], predicted[real]
  assert found["mse"] == pytest.approx(np.square(y - p).mean(), rel=1e-5)
  assert found["pearson"] == pytest.approx(stats.pearsonr(y, p)[0], rel=1e-5)
  assert found["spearman"] == pytest.approx(stats.spearmanr(y, p)[0], rel=1e-5)


def graded(objective, **changes):
  """configs/classify.py with a number for each text instead of a class."""
  from configs import classify
  from lm.config import read
  from lm.setup.load import sections_of

  config = classify.get_config()
  with config.unlocked():
    config.objective = objective
    config.eval.stop_metric = "eval/val/mse"
  settings = TINY | {"data.label_field": "lines"} | changes
  return resolve(read.to_config(config, settings, sections_of), V, 1)


@pytest.mark.parametrize("how", ["first", "last", "mean"])
def test_pooling_reads_real_tokens_alone(how):
  x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
  real = np.array([[1, 1, 1, 1], [1, 1, 0, 0]])
  found = pool(jnp.asarray(x), jnp.asarray(real, jnp.int32), how)
  wanted = {"first": x[:, 0], "last": np.stack([x[0, 3], x[1, 1]])}
  wanted["mean"] = np.stack([x[0].mean(axis=0), x[1, :2].mean(axis=0)])
  np.testing.assert_allclose(found, wanted[how], rtol=1e-6)


def test_a_classifier_of_transformers_gives_the_same_loss_and_classes():
  """BertForSequenceClassification, on pairs of texts with padding."""
  torch = pytest.importorskip("torch")

  model, state, hf_config = theirs("BertForSequenceClassification")
  fields, params = from_bert(state, hf_config)
  assert SIZES["hidden_size"] == fields["width"]
  cfg = classifier(objective__classes=2, objective__pooling="pooler", objective__dropout=0.0)
  tokens_BL, mask_BL, types_BL = rows(np.random.default_rng(3))
  label_B = np.array([0, 1, 1])
  with torch.no_grad():
    wanted = model(
      torch.tensor(tokens_BL), attention_mask=torch.tensor(mask_BL), token_type_ids=torch.tensor(types_BL),
      labels=torch.tensor(label_B),
    )  # fmt: skip
  i32 = lambda a: jnp.asarray(a, jnp.int32)
  batch = {
    "tokens": i32(tokens_BL), "segments": i32(mask_BL), "types": i32(types_BL), "label": i32(label_B),
    "weights": jnp.ones(3),
  }  # fmt: skip
  loss_fn = objective_of(cfg.objective).make_loss(make_model(cfg.model), cfg)
  total, (sums, _) = loss_fn(params, {}, batch, None, hparams_zeros(cfg))
  assert float(total) / 3 == pytest.approx(float(wanted.loss), rel=1e-5)
  right = (wanted.logits.argmax(dim=1).numpy() == label_B).sum()
  assert float(sums["correct"]) == right and float(sums["units"]) == mask_BL.sum()


def test_counts_and_names_equal_the_leaves():
  cfg = classifier(objective__pooling="pooler")
  programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:1]))
  assert_counted(run_weights(cfg), programs.run_shape.params)


def test_a_causal_family_is_not_judged_by_its_first_token():
  from configs import classify, default
  from lm.config import read
  from lm.setup.load import sections_of

  config = classify.get_config()
  with config.unlocked():
    config.model = default.get_config().model
  for how in ("first", "pooler"):
    with pytest.raises(
      ConfigError, match=f"pooling={how}: the first token of model.family=decoder sees no"
    ):
      from lm.setup.checks import check

      check(read.to_config(config, {"objective.pooling": how}, sections_of))


def test_a_family_that_reads_no_row_of_tokens_is_refused():
  from configs import classify, t5
  from lm.config import read
  from lm.setup.checks import check
  from lm.setup.load import sections_of

  config = classify.get_config()
  with config.unlocked():
    config.model = t5.get_config().model
  with pytest.raises(
    ConfigError, match=r"classification: reads rows of tokens, and model\.family=t5 reads"
  ):
    check(read.to_config(config, {}, sections_of))


# --- whole runs ---

RUN = {
  "model.seq_len": 32, "model.vocab_size": 260, "data.truncate": True, "objective.classes": 2,
  "data.label_field": "package", "model.dropout": 0.0, "objective.dropout": 0.0, "train.batch_size": 8,
  "eval.batch_size": 8, "eval.tokens": 4096,
}  # fmt: skip


def test_evaluation_sums_whole_sets():
  """Scores over the set of a run from scratch, batch by batch: the number of texts is what was read."""
  cfg = classifier(257, **RUN)
  kind, objective = kind_of(cfg), objective_of(cfg.objective)
  data = kind.open(cfg)
  programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:1]))
  hparams = jax.device_put(make_hparams(cfg), programs.scalar_sharding)
  state = programs.init(hparams)
  batches = kind.evaluate(kind.held_out(data), cfg, 4096, None)
  held = evaluate_sets(programs, objective, state.params, state.extra, hparams, {"val": batches})[0]
  labels = np.concatenate(
    [batches.at(i)["label"][batches.at(i)["weights"] > 0] for i in range(len(batches))]
  )
  share = max((labels == c).mean() for c in (0, 1))
  assert held["eval/val/accuracy"] in (pytest.approx(share), pytest.approx(1 - share)) or (
    1 - share < held["eval/val/accuracy"] < share
  )
  assert held["eval/val/loss"] == pytest.approx(np.log(2), abs=0.1)


@pytest.mark.slow
def test_eight_devices_compute_what_one_does():
  mesh = {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
  found = []
  for n, sizes in ((1, {}), (8, mesh)):
    cfg = classifier(257, n, **RUN, **sizes)
    kind = kind_of(cfg)
    programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:n]))
    hparams = jax.device_put(make_hparams(cfg), programs.scalar_sharding)
    state, mine = programs.init(hparams), []
    batches = kind.train(kind.open(cfg), cfg)
    for step in range(4):
      batch = jax.device_put(batches.at(step), programs.batch_sharding)
      state, metrics = programs.train(state, batch, hparams)
      mine.append(float(metrics["train/loss"]))
    found.append(mine)
  assert len(set(found[0])) == 4
  np.testing.assert_allclose(*found, rtol=1e-5)


@pytest.mark.slow
def test_a_run_is_scored_again_by_lm_evaluate(tmp_path, capsys):
  import train
  from lm.files import read_jsonl

  words = ["--config", "configs/classify.py", "--workdir", str(tmp_path / "run")]
  words += ["--config.train.steps=20", "--config.eval.every_steps=20", "--config.mesh.replica=1"]
  words += ["--config.mesh.fsdp=8"]
  assert train.main(words) == 0
  last = read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]
  capsys.readouterr()
  assert evaluate.main(["--workdir", str(tmp_path / "run"), "--max_tokens", "8192", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  for name in ("accuracy", "f1_macro", "matthews", "ece", "loss"):
    assert found[name] == pytest.approx(last[f"eval/val/{name}"], rel=1e-4, abs=1e-6)
  assert found["texts"] > 50 and "perplexity" not in found
