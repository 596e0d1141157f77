"""Learning from a teacher: the formula against torch, whole runs, resume, meshes, what is refused."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.config.read import run_config_file
from lm.cost.flops import exact_flops, run_flops_per_token
from lm.devices.sharding import make_mesh
from lm.evaluate import evaluate_run
from lm.models.registry import make_model
from lm.models.trees import init_params
from lm.objectives import distillation, next_token
from lm.objectives.teacher import read_section
from lm.runs import rundir
from lm.runs.checkpoint import load_state
from lm.setup.hparams import make_hparams
from lm.setup.load import load_config
from lm.setup.resolve import resolve
from lm.training.programs import make_programs
from tests import trained
from tests.test_step import batch

DISTIL = {"objective__name": "distillation", "objective__alpha": 0.7, "objective__temperature": 3.0}


def test_the_soft_loss_is_torchs_kl_divergence():
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(0)
  ours, theirs = rng.normal(size=(2, 2, 5, 11)).astype(np.float32) * 3
  weights = np.array([[1, 1, 0, 1, 1], [1, 0, 0, 0, 0]], np.float32)
  value, grad = jax.value_and_grad(distillation.soft_sums)(ours, theirs, weights, jnp.float32(2.5))
  x = torch.tensor(ours[weights > 0], requires_grad=True)
  p = torch.softmax(torch.tensor(theirs[weights > 0]) / 2.5, -1)
  loss = torch.nn.KLDivLoss(reduction="sum")(torch.log_softmax(x / 2.5, -1), p)
  loss.backward()
  np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
  np.testing.assert_allclose(np.asarray(grad)[weights > 0], x.grad.numpy(), atol=1e-5)
  assert value > 0.1 and not np.asarray(grad)[weights == 0].any()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("distil") / "teacher"
  trained.run(workdir, train__steps=30, model__width=32, optim__peak_lr=1e-2)
  return workdir


def distil(workdir, teacher, *words, code=0, **changes):
  changes = DISTIL | {"objective__teacher": teacher, **changes}
  return trained.run(workdir, *words, code=code, **changes)


def config(teacher, n_devices=1, **changes):
  given = {**trained.TINY, **{k.replace("__", "."): v for k, v in (DISTIL | changes).items()}}
  given["objective.teacher"] = str(teacher)
  return resolve(load_config("configs/smoke.py", given), 257, n_devices)


def loss_and_gradients(cfg, params, extra, rows):
  objective = make_loss(cfg)
  fn = jax.jit(jax.value_and_grad(objective, has_aux=True))
  return fn(params, extra, rows, jax.random.key(0), make_hparams(cfg))


def make_loss(cfg):
  module = make_model(cfg.model)
  row = distillation if cfg.objective.name == "distillation" else next_token
  return row.make_loss(module, cfg)


def test_objective_is_the_weighted_sum_whole_and_in_chunks(teacher):
  cfg = config(teacher)
  params = jax.jit(lambda key: init_params(make_model(cfg.model), key))(jax.random.key(1))
  extra = {"teacher": load_state(teacher)[0]["params"]}
  rows = batch(0, cfg, padded=True)
  (total, (sums, own)), grads = loss_and_gradients(cfg, params, extra, rows)
  assert own == {} and sums["soft"] > 0
  np.testing.assert_allclose(total, 0.3 * sums["loss"] + 0.7 * 9 * sums["soft"], rtol=1e-5)
  chunked = dataclasses.replace(cfg, objective=dataclasses.replace(cfg.objective, chunk=4))
  (again, (parts, _)), chunk_grads = loss_and_gradients(chunked, params, extra, rows)
  np.testing.assert_allclose(again, total, rtol=1e-5)
  np.testing.assert_allclose(parts["soft"], sums["soft"], rtol=1e-5)
  for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(chunk_grads), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(abs(a).max()))


def test_a_model_has_nothing_to_learn_from_itself(teacher):
  cfg = config(teacher, model__width=32)
  own = load_state(teacher)[0]["params"]
  (_, (sums, _)), _ = loss_and_gradients(cfg, own, {"teacher": own}, batch(0, cfg))
  assert abs(float(sums["soft"] / sums["weight"])) < 1e-5 < float(sums["loss"])


def test_flops_count_the_teachers_forward_pass(teacher):
  cfg = config(teacher)
  theirs = rundir.read_config(teacher).model
  expected = exact_flops(cfg.model) + exact_flops(theirs) / 3
  assert expected > exact_flops(cfg.model)
  assert run_flops_per_token(cfg, "exact") == pytest.approx(expected)


@pytest.mark.slow  # five runs
def test_a_student_learns_resumes_to_the_same_bits_and_outlives_its_teacher(teacher, tmp_path):
  mine = tmp_path / "teacher"  # a copy that may be deleted
  shutil.copytree(teacher, mine)
  whole, half = tmp_path / "whole", tmp_path / "half"
  distil(whole, mine)
  lines = trained.records(whole)
  assert lines[-1]["train/soft"] < lines[0]["train/soft"] and "train/loss" in lines[-1]
  about = rundir.read_run(whole)["teachers"]["teacher"]
  assert about["step"] == 30 and about["id"] == rundir.read_run(mine)["id"]
  shutil.copytree(whole, half)
  shutil.rmtree(half / "checkpoints" / "8")
  run = json.loads((half / "run.json").read_text()) | {"status": "interrupted"}
  (half / "run.json").write_text(json.dumps(run))
  assert "resumed at step 4" in distil(half, mine)
  assert trained.records(whole) == trained.records(half)
  (a, _), (b, _) = load_state(whole, "latest"), load_state(half, "latest")
  assert a["extra"] == {} and b["extra"] == {}  # the teacher is not saved
  jax.tree.map(np.testing.assert_array_equal, a["params"], b["params"])
  run |= {"teachers": {"teacher": about | {"weights": "0" * 16}}}
  (half / "run.json").write_text(json.dumps(run))
  with pytest.raises(ConfigError, match="has changed since this run began"):
    distil(half, mine)
  shutil.rmtree(mine)
  assert evaluate_run(whole)["loss"] == pytest.approx(lines[-1]["eval/val/loss"], rel=0.2)
  with pytest.raises(ConfigError, match="holds no run"):
    distil(tmp_path / "new", mine)


@pytest.mark.slow  # three programs
def test_eight_devices_and_two_micro_batches_compute_what_one_does(teacher, tmp_path):
  wide = tmp_path / "wide"
  trained.run(wide, model__vocab_size=264)
  weights = jax.device_get(load_state(wide)[0]["params"])
  mesh = {"mesh__replica": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
  found = []
  for n_devices, changes in ((1, {}), (8, mesh), (1, {"train__accumulate": 2})):
    cfg = config(wide, n_devices, model__vocab_size=264, optim__name="sgd", **changes)
    programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:n_devices]))
    hparams = jax.device_put(make_hparams(cfg), programs.scalar_sharding)
    state = programs.init(hparams)
    layout = programs.train_sharding.extra["teacher"]
    state = state._replace(extra={"teacher": jax.device_put(weights, layout)})
    losses = []
    for step in range(3):
      rows = jax.device_put(batch(step, cfg), programs.batch_sharding)
      state, metrics = programs.train(state, rows, hparams)
      losses.append([float(metrics[f"train/{k}"]) for k in ("loss", "soft")])
    if n_devices == 8:
      spread = jax.tree.leaves(state.extra["teacher"])
      assert any(not a.sharding.is_fully_replicated for a in spread)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.extra["teacher"]), weights)
    found.append(losses)
  np.testing.assert_allclose(found[1], found[0], rtol=1e-5)
  np.testing.assert_allclose(found[2], found[0], rtol=1e-5)


@pytest.mark.parametrize(
  "changes",
  [
    {"train__on_nonfinite": "skip"},
    {"train__on_nonfinite": "skip", "model__experts": 2, "objective__router_bias_rate": 0.1},
    {"optim__name": "sophia", "train__accumulate": 2, "train__noise_scale": True},
  ],
)  # fmt: skip
def test_what_looks_at_all_of_a_state_goes_beside_a_teacher(teacher, changes):
  """train.on_nonfinite=skip ended in a traceback: it held the state before a step, with the teacher in it,
  against the state after it, without."""
  cfg = config(teacher, **changes)
  programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:1]))
  shapes = (programs.train_shape, batch(0, cfg), make_hparams(cfg))
  after, metrics = jax.eval_shape(programs.train, *shapes)
  like = lambda tree: jax.tree.map(lambda a: a.shape, tree)
  assert like(after) == like(programs.train_shape) and "train/soft" in metrics


def test_a_teacher_that_reads_other_tokens_is_refused(teacher, tmp_path):
  with pytest.raises(
    ConfigError, match=r"teacher=.*: has another vocabulary \(257 entries; here 300"
  ):
    distil(tmp_path / "a", teacher, model__vocab_size=300)
  with pytest.raises(ConfigError, match=r"has another vocabulary \(257 entries; here 257\)"):
    distil(tmp_path / "b", teacher, data__tokenizer="char", model__vocab_size=257)
  with pytest.raises(
    ConfigError, match=r"reads 16 tokens and model.seq_len=32; use model.seq_len=16"
  ):
    distil(tmp_path / "c", teacher, model__seq_len=32)
  (tmp_path / "hf").mkdir()
  (tmp_path / "hf" / "config.json").write_text('{"model_type": "llama"}')
  with pytest.raises(
    ConfigError, match=r"is no run directory; make one of it with python -m lm\.hf"
  ):
    distil(tmp_path / "d", tmp_path / "hf")
  with pytest.raises(ConfigError, match=r"objective.alpha=1.5: must be in \[0, 1\]"):
    distil(tmp_path / "e", teacher, objective__alpha=1.5)
  assert not list(tmp_path.glob("?/config.json"))


def test_the_config_takes_the_teachers_tokenizer_whatever_its_kind(tmp_path):
  with pytest.raises(ConfigError, match=rf"{tmp_path} holds no run .*; train or import one there"):
    run_config_file(f"configs/distillation.py:{tmp_path}")
  (tmp_path / "config.json").write_text('{"data": {"tokenizer": "sentencepiece"}}')
  data = run_config_file(f"configs/distillation.py:{tmp_path}").data
  assert (data.tokenizer, data.tokenizer_path) == ("sentencepiece", f"{tmp_path}/tokenizer")


def test_a_teacher_that_cannot_be_read_is_one_line(tmp_path):
  file = tmp_path / "config.json"
  file.write_text("{")
  with pytest.raises(ConfigError, match=r"=\(damaged\): must be a JSON object.*another teacher"):
    read_section(str(tmp_path))
  file.write_text('{"model": {"family": "decoder"}, "extensions": ["no_such_module"]}')
  with pytest.raises(ConfigError, match=r"its extensions=no_such_module: cannot be imported"):
    read_section(str(tmp_path))
