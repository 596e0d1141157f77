"""Smaller runs of trained ones: masks and codes against torch, GPTQ against least squares, whole runs."""

import json

import jax
import numpy as np
import pytest

from lm import evaluate, generate
from lm.compact import prune, quantise
from lm.compact.__main__ import main as compact
from lm.compact.calibrate import input_products
from lm.compact.compact import table
from lm.compact.factor import factors
from lm.config.errors import ConfigError
from lm.cost.parameters import param_counts
from lm.data.tokenizers import save_tokenizer
from lm.models.registry import make_model
from lm.models.trees import by_path, init_params
from lm.runs import packed, rundir
from lm.runs.checkpoint import Checkpointer
from lm.runs.load import load
from lm.runs.rundir import read_run
from tests import trained
from tests.equalities import resolved
from tests.test_models import apply, change

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded():
  """Each test draws the same numbers, whichever ran before it."""
  RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


# --- pruning --------------------------------------------------------------------------------------


def test_pruned_weights_are_those_of_torch():
  torch = pytest.importorskip("torch")
  from torch.nn.utils import prune as theirs

  scores = {"a": normal(2, 12, 8), "b": normal(2, 8, 20)}
  layers = {}
  for name, w in scores.items():
    for i in range(2):
      layers[name, i] = torch.nn.Linear(w.shape[1], w.shape[2], bias=False)
      layers[name, i].weight.data = torch.tensor(w[i].T.copy())
  ours = prune.smallest({k: abs(w) for k, w in scores.items()}, 0.3, "global")
  method = theirs.L1Unstructured
  theirs.global_unstructured([(m, "weight") for m in layers.values()], method, amount=0.3)
  for (name, i), module in layers.items():
    np.testing.assert_array_equal(ours[name][i], module.weight_mask.numpy().T.astype(bool))
  ours = prune.smallest({k: abs(w) for k, w in scores.items()}, 0.3, "layer")
  for name, i in layers:
    fresh = torch.nn.Linear(1, 1)
    fresh.weight.data = torch.tensor(scores[name][i].T.copy())
    theirs.l1_unstructured(fresh, "weight", amount=0.3)
    np.testing.assert_array_equal(ours[name][i], fresh.weight_mask.numpy().T.astype(bool))


def test_two_of_four_is_what_torch_keeps():
  torch = pytest.importorskip("torch")
  from torch.ao.pruning import WeightNormSparsifier

  w_IO = normal(16, 12)
  model = torch.nn.Sequential(torch.nn.Linear(16, 12, bias=False))
  model[0].weight.data = torch.tensor(w_IO.T.copy())
  sparsifier = WeightNormSparsifier(1.0, sparse_block_shape=(1, 4), zeros_per_block=2)
  sparsifier.prepare(model, [{"tensor_fqn": "0.weight"}])
  sparsifier.step()
  theirs = model[0].parametrizations.weight[0].mask.numpy().T.astype(bool)
  ours = prune.n_of_m(abs(w_IO), 2, 4)
  assert 0 < theirs.sum() < theirs.size
  np.testing.assert_array_equal(ours, theirs)
  with pytest.raises(ConfigError, match=r"pattern=2:5: 5 must divide the 16 inputs"):
    prune.n_of_m(abs(w_IO), 2, 5)


def test_columns_compete_by_themselves_with_scope_output():
  mask = prune.smallest({"w": abs(normal(3, 10, 6)) * np.arange(1, 7)}, 0.4, "output")["w"]
  np.testing.assert_array_equal(mask.sum(axis=1), np.full((3, 6), 6))


def test_cutting_heads_that_are_zero_changes_no_logit():
  model = make_model(change(depth=2, heads=4, kv_heads=2, bias=True))
  cfg = model.cfg
  params = jax.tree.map(lambda p: p + 0.01, init_params(model, jax.random.key(0)))
  flat = {k: np.array(v) for k, v in by_path(params).items()}
  size, group = cfg.head_dim, cfg.heads // cfg.kv_heads * cfg.head_dim
  for layer, head in ((0, 1), (1, 0)):  # another one in each layer
    for part, n in (("q", group), ("k", size), ("v", size)):
      flat[f"blocks/attn/{part}/kernel"][layer, :, head * n : (head + 1) * n] *= 1e-3
    flat["blocks/attn/out/kernel"][layer, head * group : (head + 1) * group] = 0
  tokens_BL = np.arange(24, dtype=np.int32).reshape(2, 12) % cfg.vocab_size
  cut, thin = prune.without_heads(flat, cfg, 1)
  assert (thin.heads, thin.kv_heads, thin.head_dim) == (2, 1, cfg.head_dim)
  assert sum(a.size for a in cut.values()) == param_counts(thin).total < param_counts(cfg).total
  logits = lambda cfg, flat: apply(make_model(cfg), packed.nested(flat), tokens_BL)
  np.testing.assert_allclose(logits(thin, cut), logits(cfg, flat), atol=1e-5)
  with pytest.raises(ConfigError, match=r"heads=2: must leave some of the 2"):
    prune.without_heads(flat, cfg, 2)


# --- quantisation ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_int8_codes_and_scales_are_torchs():
  torch = pytest.importorskip("torch")
  w_IO = normal(40, 24)
  ours = quantise.nearest(w_IO, 8)
  observer = torch.ao.quantization.PerChannelMinMaxObserver(
    ch_axis=0, dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=-127, quant_max=127
  )
  theirs = torch.tensor(w_IO.T.copy())
  observer(theirs)
  scales, zeros = observer.calculate_qparams()
  np.testing.assert_allclose(ours.scales[0], scales.numpy(), rtol=1e-6)
  assert not zeros.any()
  scales = torch.tensor(ours.scales[0], dtype=torch.float64)
  codes = torch.quantize_per_channel(theirs, scales, zeros, 0, torch.qint8).int_repr()
  np.testing.assert_array_equal(ours.codes, codes.numpy().T)


@pytest.mark.parametrize(
  "bits, group, axis", [(8, None, -2), (4, 8, -2), (4, None, -1), (8, 4, -1)]
)
def test_rounding_is_off_by_half_a_step_at_most_and_packs_without_loss(bits, group, axis, tmp_path):
  w = normal(2, 16, 24)
  w[0, :, 3] = 0
  coded = quantise.nearest(w, bits, group, axis)
  size = group or w.shape[axis]
  step = np.repeat(coded.scales, size, axis=axis)
  assert (abs(coded.decode() - w) <= step / 2 * (1 + 1e-5)).all()
  assert abs(coded.codes).max() == 2 ** (bits - 1) - 1
  parts, how = packed.pack(coded)
  assert parts["codes"].nbytes == w.size * bits // 8
  np.testing.assert_array_equal(packed.unpack(parts, how), coded.decode())
  sparse = np.where(abs(w) > 1, w, 0).astype(np.float32)
  packed.write(tmp_path, {"a/w": coded, "a/s": sparse, "b": normal(3)}, step=7)
  found, at = packed.read(tmp_path)
  assert at == 7
  assert sum(p.nbytes for p in packed.pack(sparse)[0].values()) < sparse.nbytes / 2
  np.testing.assert_array_equal(found["a"]["s"], sparse)
  np.testing.assert_array_equal(found["a"]["w"], coded.decode())


def test_gptq_gives_the_second_weight_its_least_squares_value():
  """Of two inputs: w2 + (w1 - q1) h12 / h22 minimises |x w - x q| over w2; GPTQ rounds that.

  A third input, which the two have nothing to do with, sets the scale of every column.
  """
  x = normal(200, 2) @ np.array([[1, 0.9], [0, 0.3]], np.float32)
  h, w = np.zeros((3, 3), np.float32), normal(3, 300)
  h[:2, :2], h[2, 2], w[2] = x.T @ x, 200, 5
  damped = h + quantise.DAMPING * np.diag(h).mean() * np.eye(3)
  coded = quantise.gptq(w, h, 4)
  error = w[0] - coded.decode()[0]
  best = w[1] + error * damped[0, 1] / damped[1, 1]
  codes = np.clip(np.round(best / coded.scales[0]), -7, 7)
  np.testing.assert_array_equal(coded.codes[1], codes)
  assert (codes != np.round(w[1] / coded.scales[0])).mean() > 0.2  # nearest rounding is another one


@pytest.mark.parametrize("bits, group", [(4, None), (4, 16), (8, None)])
def test_gptq_errs_less_than_rounding_on_what_is_multiplied(bits, group):
  x = normal(400, 160) @ normal(160, 160) + 2 * normal(400, 1)  # inputs that go together
  w = normal(160, 24)
  error = lambda coded: np.square(x @ (coded.decode() - w)).sum()
  ours, plain = (
    f for f in (quantise.gptq(w, x.T @ x, bits, group), quantise.nearest(w, bits, group))
  )
  assert error(ours) < 0.6 * error(plain)


# --- factors --------------------------------------------------------------------------------------


def test_factors_are_the_best_of_their_rank():
  w, x = normal(20, 12), normal(300, 20) * np.linspace(0.05, 3, 20, dtype=np.float32)
  plain, weighted = factors(w, 4), factors(w, 4, x.T @ x)
  singular = np.linalg.svd(w, compute_uv=False)
  np.testing.assert_allclose(
    np.square(plain[0] @ plain[1] - w).sum(), np.square(singular[4:]).sum(), rtol=1e-4
  )
  singular = np.linalg.svd(x @ w, compute_uv=False)
  error = lambda ab: np.square(x @ (ab[0] @ ab[1] - w)).sum()
  np.testing.assert_allclose(error(weighted), np.square(singular[4:]).sum(), rtol=1e-3)
  assert error(weighted) < error(plain)


def test_a_factored_model_counts_and_computes_its_factors():
  whole, cfg = change(depth=2), change(depth=2, low_rank=3)
  params = init_params(make_model(whole), jax.random.key(0))
  flat = {k: np.asarray(v) for k, v in by_path(params).items()}
  made = {}
  for name, w in flat.items():
    if not name.endswith("/kernel"):
      made[name] = w
      continue
    a, b = (np.stack(each) for each in zip(*(factors(m, 3) for m in w), strict=True))
    made |= {f"{name}_in": a, f"{name}_out": b}
    flat[name] = a @ b
  names = by_path(init_params(make_model(cfg), jax.random.key(0)))
  assert {k: v.shape for k, v in names.items()} == {k: v.shape for k, v in made.items()}
  assert param_counts(cfg).total == sum(v.size for v in made.values()) < param_counts(whole).total
  tokens_BL = np.arange(24, dtype=np.int32).reshape(2, 12) % cfg.vocab_size
  logits = lambda cfg, flat: apply(make_model(cfg), packed.nested(flat), tokens_BL)
  np.testing.assert_allclose(logits(cfg, made), logits(whole, flat), atol=2e-5)


# --- calibration and whole runs -------------------------------------------------------------------


def test_inputs_of_the_first_layer_are_the_normed_embeddings():
  model = make_model(change(depth=2))
  params = init_params(model, jax.random.key(0))
  tokens_BL = np.arange(24, dtype=np.int32).reshape(2, 12) % model.cfg.vocab_size
  weights_BL = np.ones((2, 12), np.float32)
  weights_BL[1, 5:] = 0
  batch = {"tokens": tokens_BL, "weights": weights_BL}
  found = input_products(model.cfg, params, [batch, batch])
  x = np.asarray(params["embed"]["embedding"])[tokens_BL][weights_BL > 0]
  x = x / np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + model.cfg.norm_eps)
  np.testing.assert_allclose(found["blocks/attn/q/kernel"][0], 2 * x.T @ x, rtol=1e-4, atol=1e-3)
  assert found["blocks/mlp/down/kernel"].shape == (2, model.cfg.mlp_dim, model.cfg.mlp_dim)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("compact") / "run"
  trained.run(workdir, train__steps=30, model__width=32)
  return workdir


def made(run, name, capsys, *words, tokens=512):
  to = run.parent / name
  common = ["--workdir", str(run), "--to", str(to), "--tokens", str(tokens), "--json"]
  capsys.readouterr()
  assert compact([*common, "--calibration_tokens", "512", *words]) == 0
  return to, json.loads(capsys.readouterr().out)


def test_an_int8_run_is_a_run_like_any_other(run, capsys):
  to, (before, after) = made(run, "int8", capsys, "--bits", "8", "--what", "all")
  assert after["bytes"] < 0.35 * before["bytes"]
  assert 0 < abs(after["loss"] - before["loss"]) < 0.01
  assert read_run(to)["status"] == "done" and read_run(to)["compacted"]["bits"] == 8
  assert evaluate.main(["--workdir", str(to), "--max_tokens", "512", "--json"]) == 0
  assert json.loads(capsys.readouterr().out)["step"] == 30
  assert generate.main(["--workdir", str(to), "--prompt", "a", "--tokens", "4"]) == 0
  with pytest.raises(ConfigError, match=r"no checkpoint 7 \(it holds step 30, compacted\)"):
    load(to, "7")
  with pytest.raises(ConfigError, match=r"to=.*: holds a run already"):
    compact(["--workdir", str(run), "--to", str(to), "--bits", "8"])


def test_a_stopped_command_leaves_no_run_and_can_be_given_again(run, monkeypatch):
  def stop(*args):
    raise KeyboardInterrupt

  to = run.parent / "stopped"
  words = ["--workdir", str(run), "--to", str(to), "--bits", "8", "--tokens", "0"]
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(packed, "write", stop)
    compact(words)
  assert not to.exists()
  assert compact(words) == 0 and load(to).step == 30


@pytest.mark.slow
def test_pruned_and_thin_runs_hold_what_was_asked(run, capsys):
  to, _ = made(run, "half", capsys, "--prune", "0.5", tokens=0)
  flat = by_path(load(to).params)
  kernels = [v for k, v in flat.items() if k.startswith("blocks/") and k.endswith("kernel")]
  assert sum((k == 0).sum() for k in kernels) == round(sum(k.size for k in kernels) / 2)
  to, (before, after) = made(run, "sparse", capsys, "--pattern", "2:4", "--by", "inputs", tokens=0)
  assert after["bytes"] < before["bytes"] and 0 < after["zeros"] < 0.5
  to, _ = made(
    run, "thin", capsys, "--heads", "1", "--rank", "4", "--bits", "4", "--group", "4", tokens=0
  )
  thin = load(to)
  assert thin.cfg.model.heads == 1 and thin.cfg.model.low_rank == 4
  assert thin.generate(["a"], tokens=2, temperature=0)


@pytest.mark.slow
def test_gptq_and_weighted_factors_of_a_run(run, capsys):
  _, (before, by_inputs) = made(run, "gptq", capsys, "--bits", "4", "--by", "inputs")
  assert abs(by_inputs["loss"] - before["loss"]) < 0.05
  to, (_, low) = made(run, "low", capsys, "--rank", "8", "--by", "inputs")
  assert load(to).cfg.model.low_rank == 8 and low["bytes"] < before["bytes"]


@pytest.mark.parametrize(("config", "changes", "shown"), [
  ("configs/lstm.py", {"train__batch_size": 4}, {"loss", "perplexity", "tokens_per_sec"}),
  ("configs/vae.py", {"model__latent_dim": 2}, {"neg_elbo", "bound", "tokens_per_sec"}),
])  # fmt: skip
def test_runs_with_a_state_beside_their_parameters_are_scored(
  config, changes, shown, tmp_path, capsys
):
  """Of a model that was never trained; a compacted run has parameters alone."""
  run = tmp_path / "run"
  cfg, data = resolved(config, model__width=8, **changes)
  about = rundir.open_run(run, cfg, {})
  save_tokenizer(data.tokenizer, run / "tokenizer")
  checkpoints = Checkpointer(run, cfg.checkpoint)
  params = init_params(make_model(cfg.model), jax.random.key(0))
  checkpoints.save({"params": params}, 0)
  checkpoints.close()
  rundir.close_run(run, about, "done", reason="")
  _, rows = made(run, "int8", capsys, "--bits", "8", tokens=1024)
  assert all(shown <= row.keys() for row in rows)
  assert {"loss", "perplexity", "tokens_per_sec"} <= set(table(rows).split())
  assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], rel=0.01)


@pytest.mark.parametrize(
  "words, message",
  [
    ([], "nothing to do; give --bits"),
    (["--prune", "1.5"], r"prune=1.5: must be in \(0, 1\)"),
    (["--pattern", "4:2"], "pattern=4:2: must be N:M with 0 < N < M"),
    (["--prune", "0.5", "--pattern", "2:4"], "--pattern prunes too"),
    (["--prune", "0.5", "--what", "all"], "what=all: is of quantised weights; add --bits"),
    (["--bits", "8", "--scope", "layer"], "scope=layer: is of a pruned fraction; add --prune"),
    (
      ["--bits", "8", "--calibrate", "python"],
      "calibrate=python: is read for inputs alone; add --by",
    ),
    (["--bits", "8", "--window", "0"], "window=0: must be at least 1"),
    (["--group", "8"], "group=8: is of quantised weights; add --bits"),
    (["--bits", "4", "--group", "7"], "group=7: must divide the 32 inputs"),
    (["--heads", "2"], "heads=2: must leave some of the 2"),
    (["--heads", "1", "--by", "inputs"], "heads=1: are cut by their weights"),
    (["--bits", "8", "--tokens", "-5"], "tokens=-5: must be at least 0"),
    (["--bits", "8", "--data", "text:no-such-file.txt"], "no-such-file.txt"),
    (
      ["--bits", "8", "--data", "python", "--tokens", "0"],
      "data=python: --tokens 0 scores nothing",
    ),
  ],
)
def test_what_does_not_fit_is_said_in_a_line(run, words, message):
  with pytest.raises(ConfigError, match=message):
    compact(["--workdir", str(run), "--to", str(run.parent / "never"), *words])
  assert not (run.parent / "never").exists()
