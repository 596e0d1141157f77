"""What train.py promises beside training: old runs, other beginnings, groups, looking without touching."""

import json
import shutil

import jax
import numpy as np
import pytest

from experiments.ledger.ledger import read_ledger
from lm import evaluate, start_from
from lm.config.errors import ConfigError
from lm.config.identity import identity
from lm.config.schema import SECTIONS
from lm.runs import rundir
from lm.runs.checkpoint import load_params, load_state
from lm.setup.load import from_json, load_config
from tests.trained import records, run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "whole"
  run(workdir)
  return workdir


def copy_of(whole, tmp_path, keep=None):
  """The run, or its state up to checkpoint `keep`."""
  workdir = tmp_path / "copy"
  shutil.copytree(whole, workdir)
  if keep is not None:
    for folder in (workdir / "checkpoints").iterdir():
      if folder.name.isdigit() and int(folder.name) > keep:
        shutil.rmtree(folder)
    about = json.loads((workdir / "run.json").read_text()) | {"status": "interrupted"}
    (workdir / "run.json").write_text(json.dumps(about))
  return workdir


def edit_config(workdir, change):
  path = workdir / "config.json"
  config = json.loads(path.read_text())
  change(config)
  path.write_text(json.dumps(config))


# --- old runs ---------------------------------------------------------------------------------------


def without_later_keys(config):
  """As config.json was before these keys came."""
  del config["extensions"], config["train"]["init_from"], config["mesh"]["expert"]
  for key in ("groups", "plateau_window", "state_dtype"):
    del config["optim"][key]
  for key in ("experts", "experts_per_token", "capacity_factor", "matmul", "remat_keep"):
    del config["model"][key]
  for key in ("balance_loss", "router_z_loss"):
    del config["objective"][key]


def test_a_run_from_before_a_key_is_done_evaluated_and_goes_on(whole, tmp_path):
  old = copy_of(whole, tmp_path, keep=4)
  edit_config(old, without_later_keys)
  assert evaluate.evaluate_run(old, max_tokens=512)["step"] == 4
  assert "resumed at step 4" in run(old)
  assert (old / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
  edit_config(old, without_later_keys)
  assert "done" in run(old)  # and is not trained again


def test_a_run_with_anothers_saved_tokenizer_is_done_under_the_same_command(whole, tmp_path):
  """Every run keeps a copy of its tokenizer, which is not taken for what its config names."""
  saved = whole / "tokenizer" / "vocabulary.json"
  settings = {"data__tokenizer_path": str(saved), "train__steps": 2, "eval__every_steps": 2}
  first = run(tmp_path, **settings)
  assert (tmp_path / "tokenizer" / saved.name).is_file() and "step 2/2" in first
  assert rundir.read_config(tmp_path).data.tokenizer_path == str(saved)
  assert "step 2/2" not in run(tmp_path, **settings)


@pytest.mark.parametrize("study", ["chinchilla", "lr_sweep"])
def test_runs_of_committed_ledgers_keep_their_identity_when_keys_are_added(study):
  rows = read_ledger(f"experiments/results/{study}/ledger.jsonl").rows
  assert len(rows) >= 32
  for row in rows:
    config = {}
    for key, value in row.items():
      section, _, name = key.partition(".")
      if name and section in SECTIONS:
        config.setdefault(section, {})[name] = value
      elif key in ("seed", "extensions"):
        config[key] = value
    assert "prune" not in config["optim"]  # a key that came later
    assert identity(from_json(config)) == row["id"]


def test_a_checkpoint_from_before_units_were_counted_is_resumed(whole, tmp_path, monkeypatch):
  import orbax.checkpoint as ocp

  old = copy_of(whole, tmp_path, keep=4)
  state, _ = load_state(old, "4")
  shutil.rmtree(old / "checkpoints" / "4")
  with ocp.CheckpointManager(old / "checkpoints") as manager:
    kept = {key: state[key] for key in ("step", "params", "opt_state", "ema")}
    manager.save(4, args=ocp.args.StandardSave(kept))
  run(old)
  assert (old / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("change, words", [
  (lambda c: c["model"].pop("width"), r"config.json=\(without model.width\): written by another"),
  (lambda c: c["model"].update(depht=3), r"config.json=\(model.depht=3\): no such key here"),
  (lambda c: c["model"].update(family="snail"), "model.family=snail: must be one of"),
])  # fmt: skip
def test_a_config_that_cannot_be_read_is_one_line(whole, tmp_path, change, words):
  broken = copy_of(whole, tmp_path)
  edit_config(broken, change)
  with pytest.raises(ConfigError, match=words):
    rundir.read_config(broken)


# --- other beginnings -------------------------------------------------------------------------------


def test_a_run_starts_from_another_ones_parameters(whole, tmp_path):
  still = {"optim__peak_lr": 0.0, "optim__weight_decay": 0.0, "optim__ema_decay": 0.9}
  said = run(tmp_path / "more", train__init_from=str(whole), **still)
  assert f"start from  {whole}: 11 of 11 parameters" in said
  best, _ = load_params(whole, "best")
  mine, _ = load_state(tmp_path / "more", "latest")
  # Nothing moved them: the rate is 0.
  jax.tree.map(np.testing.assert_array_equal, mine["params"], best)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
  jax.tree.map(close, mine["ema"], best)  # the average begins there, too
  assert records(tmp_path / "more")[0]["train/loss"] < records(whole)[0]["train/loss"]


@pytest.mark.slow
def test_layers_one_by_one_start_from_stacked_ones(whole, tmp_path):
  run(
    tmp_path / "apart",
    train__init_from=str(whole),
    optim__peak_lr=0.0,
    optim__weight_decay=0.0,
    model__scan_layers=False,
  )
  best, _ = load_params(whole, "best")
  mine, _ = load_params(tmp_path / "apart", "latest")
  np.testing.assert_array_equal(
    mine["block_0"]["attn"]["q"]["kernel"], best["blocks"]["attn"]["q"]["kernel"][0]
  )


@pytest.mark.parametrize("how, order", [("stack", [0, 1, 0, 1]), ("interleave", [0, 0, 1, 1])])
def test_layers_of_a_shallower_model_fill_a_deeper_one(how, order):
  there = {
    "blocks/q/kernel": np.arange(6.0).reshape(2, 3),
    "blocks/odd": np.zeros((2, 5)),
    "embed": np.ones(3),
  }
  here = {"blocks/q/kernel": np.zeros((4, 3)), "blocks/odd": np.zeros((4, 6)), "embed": np.zeros(3)}
  cfg = load_config("configs/smoke.py", {"train.init_from": "x", "train.init_depth": how})
  assert start_from._grow(there, here, cfg) == f"layers: 2 to 4 ({how})"
  np.testing.assert_array_equal(there["blocks/q/kernel"], np.arange(6.0).reshape(2, 3)[order])
  assert there["blocks/odd"].shape == (2, 5) and there["embed"].shape == (3,)


def test_a_deeper_model_starts_from_copies_of_a_shallower_ones_layers(whole, tmp_path):
  settings = dict(
    train__init_from=str(whole), optim__peak_lr=0.0, optim__weight_decay=0.0, train__steps=1
  )
  said = run(tmp_path / "deeper", train__init_depth="stack", model__depth=3, **settings)
  assert "layers: 1 to 3 (stack)" in said and "11 of 11 parameters" in said
  best, _ = load_params(whole, "best")
  mine, _ = load_params(tmp_path / "deeper", "latest")
  for ours, theirs in zip(*map(jax.tree.leaves, (mine["blocks"], best["blocks"])), strict=True):
    np.testing.assert_array_equal(ours, np.repeat(theirs, 3, axis=0))


@pytest.mark.parametrize(
  "depth, words", [(1, "has no layers whose number divides"), (None, "needs train.init_from")]
)
def test_growth_without_sense_is_refused(whole, tmp_path, depth, words):
  with pytest.raises(ConfigError, match=rf"train.init_depth=stack: .*{words}"):
    more = {} if depth is None else {"train__init_from": str(whole), "model__depth": depth}
    run(tmp_path / "x", train__init_depth="stack", **more)


def test_what_does_not_fit_begins_anew_and_is_said(whole, tmp_path):
  said = run(tmp_path / "wider", train__init_from=str(whole), model__mlp_dim=96, train__steps=1,
             model__positions="none")  # fmt: skip
  assert "new, as the shape differs: blocks/mlp/down/kernel" in said
  assert "set otherwise there: model.mlp_dim=64, model.positions=rope" in said


@pytest.mark.parametrize("where, words", [
  ("nowhere", "train.init_from=nowhere: holds neither a run"),
  ("self", "no parameter fits this model by name and shape"),
])  # fmt: skip
def test_a_beginning_that_is_none_is_refused(whole, tmp_path, where, words):
  changes = {"model__width": 24} if where == "self" else {}
  path = str(whole) if where == "self" else where
  with pytest.raises(ConfigError, match=words):
    run(tmp_path / "x", train__init_from=path, data__tokenizer="char", **changes)
  assert not (tmp_path / "x" / "config.json").exists()


# --- groups of parameters ---------------------------------------------------------------------------


def test_frozen_parameters_stay_and_have_no_optimizer_state(whole, tmp_path):
  run(tmp_path / "frozen", optim__groups="embed:frozen", optim__weight_decay=0.1)
  run(tmp_path / "start", optim__peak_lr=0.0, optim__weight_decay=0.0)
  frozen, _ = load_state(tmp_path / "frozen", "latest")
  begun, _ = load_state(tmp_path / "start", "latest")
  embed = lambda state: state["params"]["embed"]["embedding"]
  np.testing.assert_array_equal(embed(frozen), embed(begun))
  leaves = lambda state: jax.tree.leaves(state["opt_state"])
  held = lambda state: sum(leaf.size for leaf in leaves(state))
  assert held(begun) - held(frozen) >= 2 * embed(frozen).size - 8
  q = lambda state: state["params"]["blocks"]["attn"]["q"]["kernel"]
  assert not np.array_equal(q(frozen), q(begun))


def test_a_group_of_rate_1_changes_nothing_and_another_rate_does(whole, tmp_path):
  run(tmp_path / "same", optim__groups="embed:lr=1")
  run(tmp_path / "slow", optim__groups="blocks:lr=0.5:b1=0.5")
  last = lambda folder: records(folder)[-1]["train/loss"]
  assert last(tmp_path / "same") == pytest.approx(last(whole), rel=1e-6)
  assert last(tmp_path / "slow") != pytest.approx(last(whole), rel=1e-6)


@pytest.mark.parametrize("groups, words", [
  ("embed", "optim.groups=embed: must be PATTERN:frozen"),
  ("embed:rate=1", "did you mean|choose from lr"),
  ("embed:b1=1", "b1=1 is out of range"),
  ("a(b:frozen", "is no pattern"),
  ("nothing:frozen", "optim.groups=nothing: no parameter's path begins so"),
])  # fmt: skip
def test_groups_that_are_none_are_refused(tmp_path, groups, words):
  with pytest.raises(ConfigError, match=words):
    run(tmp_path / "x", optim__groups=groups)


@pytest.mark.parametrize("name, group, words", [
  ("adagrad", "embed:b1=0.5", "optim.groups=embed:b1=0.5: optim.name=adagrad has no b1"),
  ("sgd", "embed:b2=0.5", "optim.groups=embed:b2=0.5: optim.name=sgd has no b2"),
  ("adafactor", "embed:lr=0.1:b1=0.9", "optim.name=adafactor has no b1"),
  ("muon", "blocks/attn/q/kernel:b2=0.9", "optim.name=muon has no b2"),
])  # fmt: skip
def test_groups_with_a_b1_or_b2_that_the_optimizer_ignores_are_refused(
  tmp_path, name, group, words
):
  with pytest.raises(ConfigError, match=words):
    run(tmp_path / "x", optim__name=name, optim__groups=group)


# --- looking changes nothing, and a run that is lost ends -------------------------------------------


@pytest.mark.parametrize("changes", [
  {"log__every_steps": 3}, {"eval__every_steps": 3}, {"checkpoint__every_steps": 3},
  {"eval__tokens": 1024}, {"checkpoint__best": False}, {"sample__tokens": 4}, {"log__wandb": "offline"},
])  # fmt: skip
@pytest.mark.parametrize("schedule", [pytest.param("cosine", marks=pytest.mark.slow), "plateau"])
def test_logging_evaluation_and_checkpoints_do_not_change_what_is_computed(
  tmp_path, changes, schedule
):
  rule = {"optim__schedule": schedule, "optim__plateau_window": 1, "optim__plateau_patience": 1}
  run(tmp_path / "a", **rule)
  run(tmp_path / "b", **rule, **changes)
  a, b = (load_params(tmp_path / name, "latest") for name in "ab")
  assert a[1] == b[1] == 8
  jax.tree.map(np.testing.assert_array_equal, a[0], b[0])


def test_evaluation_while_training_reads_the_average_of_weights(tmp_path):
  run(tmp_path / "x", optim__ema_decay=0.99)
  tokens = rundir.read_config(tmp_path / "x").eval.tokens
  found = evaluate.evaluate_run(tmp_path / "x", checkpoint="latest", max_tokens=tokens)
  held = records(tmp_path / "x")[-1]["eval/val/loss"]
  assert held == pytest.approx(found["loss"], rel=1e-5)
  state, _ = load_state(tmp_path / "x", "latest")
  apart = jax.tree.map(lambda a, b: np.abs(a - b).max(), state["params"], state["ema"])
  assert max(jax.tree.leaves(apart)) > 1e-3


def test_a_diverged_run_ends_at_once_and_keeps_its_last_good_checkpoint(tmp_path):
  said = run(tmp_path / "x", code=1, optim__peak_lr=1e30, optim__clip_norm="None",
             train__steps=200, eval__every_steps=100, optim__warmup_frac=0.0)  # fmt: skip
  assert "failed" in said and "lower optim.peak_lr" in said
  about = rundir.read_run(tmp_path / "x")
  assert about["status"] == "failed" and int(about["reason"].split(":")[0].split()[1]) < 10
  assert not list((tmp_path / "x" / "checkpoints").glob("[0-9]*"))  # a poisoned state is not saved
  assert all(np.isfinite(r["train/loss"]) for r in records(tmp_path / "x"))


def test_padding_is_not_counted_as_tokens(tmp_path):
  text = tmp_path / "text.txt"
  text.write_text("\n".join("word " * (1 + i % 3) for i in range(400)))
  run(
    tmp_path / "x",
    data__sources=f"text:{text}",
    data__text_unit="line",
    data__pack=False,
    data__val_fraction=0.3,
  )
  about, last = rundir.read_run(tmp_path / "x"), records(tmp_path / "x")[-1]
  assert last["tokens"] < 8 * 8 * 16  # of full rows
  assert abs(about["tokens"] - last["tokens"]) < 0.2 * last["tokens"]  # planned from mean rows
  assert last["flops"] == pytest.approx(last["tokens"] * about["flops_per_token"]["6ND"])


def test_a_run_that_learned_nothing_says_so(tmp_path):
  """Its loss is log V or more after warm-up: wandering, not diverged to NaN."""
  said = run(tmp_path / "x", optim__peak_lr=10.0, train__steps=8, optim__warmup_frac=0.0)
  loss = records(tmp_path / "x")[-1]["eval/val/loss"]
  assert loss >= np.log(257)
  assert (
    f"eval/val/loss {loss:.4f} is no better than a uniform guess, 5.5491: nothing was learned;"
    in said
  )
  said = run(tmp_path / "y", train__steps=8, optim__peak_lr=0.1)
  assert records(tmp_path / "y")[-1]["eval/val/loss"] < np.log(257) and "uniform guess" not in said
