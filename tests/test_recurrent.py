"""Recurrent models against torch; streams whose state is carried, saved and split."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.config.errors import ConfigError
from lm.cost.flops import flops_per_token, xla_flops
from lm.cost.memory import activation_bytes
from lm.data.kinds import KINDS
from lm.data.streams import EvalStreams, StreamBatches
from lm.models import recurrent
from lm.models.decoding import Sampling, make_generator
from lm.models.recurrent import GATES, PARTS, RecurrentConfig, layer_sizes
from lm.models.registry import make_model
from lm.objectives.registry import OBJECTIVES
from lm.runs.checkpoint import load_state
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
)

SPEC = "configs/lstm.py"
TINY = RecurrentConfig(
  family="recurrent", seq_len=24, width=12, vocab_size=32, parameterization="standard",
  base_width=12, dtype="float32", cell="lstm", depth=2, hidden_dim=8, tied_embeddings=False,
  dropout=0.0, input_dropout=None, output_dropout=None, embed_dropout=0.0, weight_drop=0.0,
  locked_dropout=False, init_range=None,
)  # fmt: skip


def made(**changes):
  """(config, model, parameters) of TINY with changes."""
  cfg = dataclasses.replace(TINY, **changes)
  model = make_model(cfg)
  rng = np.random.default_rng(0)
  draw = lambda shape: jnp.asarray(rng.uniform(-0.4, 0.4, shape.shape), jnp.float32)
  return cfg, model, jax.tree.map(draw, shapes_of(model.cfg))


def planted(data, size, every):
  """The corpus with `size` tokens to train on, in documents of `every` tokens."""
  store = data.train[0]
  tokens = np.array(store.tokens[:size])
  tokens[every - 1 :: every] = store.eot_id
  offsets = np.arange(0, size + 1, every)
  return dataclasses.replace(
    data, train=[store._replace(tokens=tokens, n_tokens=size, offsets=offsets)]
  )


def tokens_of(rows, length, vocab=32, seed=0):
  return jnp.asarray(np.random.default_rng(seed).integers(0, vocab, (rows, length)), jnp.int32)


# --- against torch --------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", GATES)
def test_equal_to_torch_at_equal_weights(cell):
  torch = pytest.importorskip("torch")
  _, model, params = made(cell=cell, hidden_dim=12)
  tokens_BL = tokens_of(3, 9)
  kind = {"rnn": torch.nn.RNN, "gru": torch.nn.GRU, "lstm": torch.nn.LSTM}[cell]
  theirs = kind(12, 12, num_layers=2, batch_first=True)
  names = {
    "weight_ih": "input_kernel", "weight_hh": "recurrent_kernel",
    "bias_ih": "input_bias", "bias_hh": "recurrent_bias",
  }  # fmt: skip
  for name, p in theirs.named_parameters():
    which, layer = name.rsplit("_l", 1)
    p.data = torch.tensor(np.array(params[f"layer_{layer}"][names[which]]).T)
  table = torch.tensor(np.array(params["embed"]["embedding"]), requires_grad=True)
  head = torch.tensor(np.array(params["head"]["kernel"]), requires_grad=True)
  h = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
  first = (h, h / 2) if cell == "lstm" else h
  x, last = theirs(table[torch.tensor(np.array(tokens_BL)).long()], first)
  logits = x @ head + torch.tensor(np.array(params["head_bias"]))
  logits.square().mean().backward()

  parts = {"h": h.numpy(), "c": h.numpy() / 2}
  carry = {
    f"layer_{i}": {part: jnp.asarray(parts[part][i]) for part in PARTS[cell]} for i in range(2)
  }

  def loss(params):
    x_BLD, _, last = model.apply({"params": params}, tokens_BL, carry, method="advance")
    logits_BLV = model.apply({"params": params}, x_BLD, method="logits")
    return jnp.square(logits_BLV).mean(), (logits_BLV, last)

  (_, (ours, ours_last)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  np.testing.assert_allclose(ours, logits.detach().numpy(), atol=1e-5)
  lasts = dict(zip("hc", last, strict=False)) if cell == "lstm" else {"h": last}
  for i in range(2):
    for part in PARTS[cell]:
      found = ours_last[f"layer_{i}"][part]
      np.testing.assert_allclose(found, lasts[part][i].detach().numpy(), atol=1e-5)
  for name, p in theirs.named_parameters():
    which, layer = name.rsplit("_l", 1)
    np.testing.assert_allclose(
      grads[f"layer_{layer}"][names[which]].T, p.grad.numpy(), rtol=1e-4, atol=1e-6
    )
  np.testing.assert_allclose(grads["embed"]["embedding"], table.grad.numpy(), rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(grads["head"]["kernel"], head.grad.numpy(), rtol=1e-4, atol=1e-6)


# --- what a state is ------------------------------------------------------------------------------


def test_a_row_in_two_parts_is_the_row():
  _, model, params = made(cell="gru")
  tokens_BL, variables = tokens_of(2, 10), {"params": params}
  whole = jax.jit(lambda: model.apply(variables, tokens_BL, method="hidden"))()
  advance = jax.jit(lambda piece, carry: model.apply(variables, piece, carry, method="advance"))
  carry, parts = model.init_carry(2), []
  for piece in (tokens_BL[:, :5], tokens_BL[:, 5:]):
    x_BLD, _, carry = advance(piece, carry)
    parts.append(x_BLD)
  np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=1e-6)


@pytest.mark.parametrize("cell", GATES)
def test_later_tokens_and_other_documents_get_exactly_zero_gradient(cell):
  _, model, params = made(cell=cell, vocab_size=8)
  tokens_BL = jnp.arange(8, dtype=jnp.int32)[None]  # each word once: its row's gradient is its own
  segments_BL = jnp.asarray([[1, 1, 1, 2, 2, 2, 2, 2]], jnp.int32)

  @jax.jit
  def read(embedding, position, segments_BL):
    """How the output at a position depends on each word."""

    def at(embedding):
      changed = params | {"embed": {"embedding": embedding}}
      x_BLD = model.apply({"params": changed}, tokens_BL, None, segments_BL, method="hidden")
      return jnp.take(x_BLD[0], position, axis=0).sum()

    return jnp.abs(jax.grad(at)(embedding)).sum(axis=1)

  embedding = params["embed"]["embedding"]
  one = np.array(read(embedding, 4, jnp.ones_like(segments_BL)))
  assert (one[:5] > 0).all() and (one[5:] == 0).all()
  two = np.array(read(embedding, 5, segments_BL))
  assert (two[3:6] > 0).all() and (two[:3] == 0).all() and (two[6:] == 0).all()


def test_generation_equals_the_full_pass_whatever_else_is_in_the_batch():
  cfg, model, params = made()
  prompts = [[3, 1, 4], [1, 5, 9, 2, 6]]
  generate = make_generator(cfg, 4)
  greedy = Sampling(temperature=0.0)
  together = generate(params, prompts, greedy, 0, 99)
  for prompt, drawn in zip(prompts, together, strict=True):
    assert generate(params, [prompt], greedy, 0, 99) == [drawn]
    row = jnp.asarray([prompt + drawn], jnp.int32)
    likeliest = jax.jit(lambda row: model.apply({"params": params}, row).argmax(axis=-1))(row)
    assert likeliest[0, len(prompt) - 1 : -1].tolist() == drawn


# --- dropout --------------------------------------------------------------------------------------


def test_every_dropout_acts_in_training_alone():
  tokens_BL = tokens_of(2, 6)
  options = ("dropout", "input_dropout", "output_dropout", "embed_dropout", "weight_drop")

  @jax.jit
  def outputs():
    found = {}
    for name in options:
      _, model, params = made(depth=1, cell="rnn", **{name: 0.5})
      call = functools.partial(model.apply, {"params": params}, tokens_BL)
      keys = [jax.random.key(seed) for seed in (0, 1)]
      found[name] = [call(), *(call(train=True, rngs={"dropout": key}) for key in keys)]
    return found

  found = outputs()
  for name, (plain, one, two) in found.items():
    np.testing.assert_allclose(plain, found["dropout"][0], rtol=1e-6)
    assert not np.allclose(one, plain) and not np.allclose(one, two), name


def test_locked_masks_stay_for_all_positions_of_a_row():
  for locked in (True, False):
    _, model, params = made(output_dropout=0.5, locked_dropout=locked)
    carry = model.init_carry(2)
    call = functools.partial(
      model.apply, train=True, method="advance", rngs={"dropout": jax.random.key(0)}
    )
    x_BLD, raw_BLD, _ = jax.jit(call)({"params": params}, tokens_of(2, 6), carry)
    kept = np.asarray(x_BLD != 0)
    assert (kept == kept[:, :1]).all() == locked
    np.testing.assert_allclose(x_BLD[kept], 2 * np.asarray(raw_BLD)[kept], rtol=1e-6)
    assert (kept[0] != kept[1]).any()


def test_words_left_out_are_left_out_wherever_they_stand():
  _, model, params = made(embed_dropout=0.5, depth=1, vocab_size=16)
  tokens_BL = jnp.tile(jnp.arange(16, dtype=jnp.int32), 2)[None]

  def outputs(embedding):
    return model.apply(
      {"params": params | {"embed": {"embedding": embedding}}}, tokens_BL, train=True,
      method="hidden", rngs={"dropout": jax.random.key(1)},
    ).sum()  # fmt: skip

  used = np.abs(jax.jit(jax.grad(outputs))(params["embed"]["embedding"])).sum(axis=1) > 0
  assert 0 < used.sum() < 16


# --- counts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [
  {"cell": cell, "tied_embeddings": tied, "depth": depth, "hidden_dim": hidden}
  for cell, tied, depth, hidden in (("rnn", True, 1, None), ("gru", False, 2, 20), ("lstm", True, 3, 16))
], ids=str)  # fmt: skip
def test_counts_equal_the_leaves(changes):
  cfg = dataclasses.replace(TINY, **changes)
  assert_counts(cfg)
  sizes = layer_sizes(cfg)
  assert sizes[-1][1] == (cfg.width if cfg.tied_embeddings else cfg.hidden_dim or cfg.width)


@pytest.mark.parametrize("cell", GATES)
def test_exact_flops_agree_with_xla(cell, monkeypatch):
  """Written out, as XLA counts the body of a loop once."""
  monkeypatch.setattr(recurrent, "UNROLL", 4)
  cfg = dataclasses.replace(
    TINY, cell=cell, seq_len=4, width=256, hidden_dim=256, vocab_size=512, depth=1
  )
  model = make_model(cfg)

  def loss(params, tokens_BL):
    logits_BLV = model.apply({"params": params}, tokens_BL)
    return optax.softmax_cross_entropy_with_integer_labels(logits_BLV, tokens_BL).sum()

  compiled = jax.jit(jax.grad(loss)).lower(shapes_of(model.cfg), tokens_of(8, 4)).compile()
  assert xla_flops(compiled) / 32 == pytest.approx(flops_per_token(cfg, "exact"), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
  {"model__cell": "rnn", "model__depth": 2},
  {"model__cell": "gru"},
  {"model__depth": 2},
  {"model__width": 64, "model__vocab_size": 8192},
], ids=str)  # fmt: skip
def test_activations_are_near_those_of_the_compiled_program(changes):
  sizes = {"model__width": 256, "model__seq_len": 64, "train__batch_size": 16}
  cfg, _ = resolved(SPEC, **sizes | changes)
  model = make_model(cfg.model)
  loss = OBJECTIVES["truncated_bptt"].make_loss(model, cfg)
  arrays = KINDS["streams"].arrays(cfg, True)
  batch = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}
  extra = jax.eval_shape(lambda: {"carry": model.init_carry(16)})
  key = jax.eval_shape(lambda: jax.random.key(0))
  value = lambda params, *rest: loss(params, *rest, make_hparams(cfg))[0]
  compiled = jax.jit(jax.grad(value)).lower(shapes_of(model.cfg), extra, batch, key).compile()
  measured = compiled.memory_analysis().temp_size_in_bytes
  assert activation_bytes(cfg) == pytest.approx(measured, rel=0.2)


# --- streams --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus():
  return resolved(SPEC)


def test_rows_go_on_where_they_ended(corpus):
  cfg, data = corpus
  for reshuffle in (True, False):
    changed = dataclasses.replace(cfg.data, reshuffle=reshuffle)
    made = StreamBatches(data.train, changed, cfg.model.seq_len, cfg.train.batch_size)
    for step in (0, 7, made.per_epoch):
      now, then = made.at(step), made.at(step + 1)
      np.testing.assert_array_equal(now["targets"][:, -1], then["tokens"][:, 0])
      np.testing.assert_array_equal(now["targets"][:, :-1], now["tokens"][:, 1:])
      assert (now["fresh"] == (step % made.per_epoch == 0)).all() and not then["fresh"].any()
      part = made.at(step, slice(2, 5))
      assert all((part[name] == now[name][2:5]).all() for name in now)
    first, second = made.at(0), made.at(made.per_epoch)
    assert (first["tokens"] == second["tokens"]).all() == (not reshuffle)


def test_an_epoch_holds_the_ring_once(corpus):
  cfg, data = corpus
  one, two = (planted(data, size, 37).train[0] for size in (999, 740))
  made = StreamBatches([one, two], cfg.data, 16, 8)
  seen = np.stack([made.at(step)["targets"] for step in range(made.per_epoch)], axis=1).ravel()
  ring = np.tile(np.concatenate([one.tokens, two.tokens]).astype(np.int32), 2)
  starts = np.lib.stride_tricks.sliding_window_view(ring, 200) == seen[:200]
  start = int(np.flatnonzero(starts.all(axis=1))[0])
  np.testing.assert_array_equal(seen, ring[start : start + seen.size])
  assert len(ring) // 2 - seen.size < 8 * 16


def test_evaluation_predicts_every_token_once_in_order(corpus):
  _, data = corpus
  for rows in (1, 3, 8):
    made = EvalStreams(data.val, 16, rows, 1000, True)
    batches = list(made)
    assert sum(b["weights"].sum() for b in batches) == made.n_targets == made.facts["tokens"]
    streams = [
      np.concatenate([b["targets"][r][b["weights"][r] > 0] for b in batches]) for r in range(rows)
    ]
    np.testing.assert_array_equal(np.concatenate(streams), data.val.tokens[: made.n_targets])


def test_documents_that_must_not_see_each_other_start_from_zeros(corpus):
  cfg, data = corpus
  changed = dataclasses.replace(cfg.data, cross_documents=False)
  made = StreamBatches(planted(data, 2000, 37).train, changed, 16, 8)
  eot = data.train[0].eot_id
  found = [made.at(step) for step in range(made.per_epoch)]
  for before, batch in itertools.pairwise(found):
    np.testing.assert_array_equal(batch["fresh"] == 1, before["targets"][:, -1] == eot)
    ends_BL = batch["targets"][:, :-1] == eot
    np.testing.assert_array_equal(np.diff(batch["segments"], axis=1) == 1, ends_BL)
  assert any(b["segments"].max() > 1 for b in found) and any(b["fresh"].any() for b in found[1:])


def test_the_loss_does_not_depend_on_how_rows_are_cut(corpus):
  """Without updates, rows of 16 and of 8 tokens of the same streams have the same mean loss."""
  losses = []
  for length in (16, 8):
    cfg, _ = resolved(
      SPEC, optim__peak_lr=0.0, model__seq_len=length, data__reshuffle=False,
      optim__weight_decay=0.0,
    )  # fmt: skip
    history, _ = run(cfg, planted(corpus[1], 8 * 32, 64), steps=32 // length)
    losses.append(np.mean([m["train/loss"] for m in history]))
  assert losses[0] == pytest.approx(losses[1], rel=1e-5)


MESHES = [
  {"mesh__replica": 8},
  {"mesh__replica": 2, "mesh__fsdp": 2, "mesh__tensor": 2},
  {"mesh__replica": 1, "mesh__fsdp": 4, "mesh__tensor": 2, "train__accumulate": 2},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", MESHES, ids=str)
def test_eight_devices_give_what_one_gives(changes):
  shared = {
    "model__vocab_size": 264, "optim__eps": 1e-6, "model__dropout": 0.2, "model__weight_drop": 0.2,
    "objective__activation_l2": 1.0, "objective__slowness": 1.0, "model__depth": 2,
  }  # fmt: skip
  alone = {k: v for k, v in changes.items() if not k.startswith("mesh")}
  results = []
  for n, more in ((1, alone), (8, changes)):
    cfg, data = resolved(SPEC, n, **shared, **more)
    results.append(run(cfg, data, n_devices=n))
  assert_same(*results)
  assert len({float(m["train/loss"]) for m in results[0][0]}) == 4


@pytest.mark.slow
def test_stacked_runs_equal_separate_ones():
  assert_stacks(SPEC, model__dropout=0.2)


@pytest.mark.slow
def test_a_resumed_run_has_the_carry(monkeypatch, tmp_path):
  flags = ["train.steps=20", "eval.every_steps=10", "log.every_steps=5", "model.dropout=0.2"]
  assert_resumes(monkeypatch, tmp_path, SPEC, *(f"--config.{flag}" for flag in flags))
  carry = load_state(tmp_path / "whole", "latest")[0]["extra"]["carry"]
  assert carry["layer_0"]["h"].shape[0] == 8 and np.abs(carry["layer_0"]["c"]).max() > 0


@pytest.mark.parametrize(("changes", "words"), [
  ({"mesh.sequence": 2}, r"mesh.sequence=2: a recurrent model reads positions one after the other"),
  ({"data.pack": False}, r"data.pack=False: streams hold documents back to back; use True"),
  ({"objective.chunk": 5}, r"model.seq_len=16: must be divisible by 5 \(objective.chunk\)"),
  ({"model.tied_embeddings": True, "model.hidden_dim": 7}, r"model.hidden_dim=7: the last layer"),
  ({"model.cell": "lstmm"}, r"model.cell=lstmm: "),
])  # fmt: skip
def test_what_makes_no_sense_is_said(changes, words):
  with pytest.raises(ConfigError, match=words):
    load_config(SPEC, changes)


def test_a_batch_larger_than_the_corpus_is_refused():
  cfg, data = resolved(SPEC)
  with pytest.raises(ConfigError, match=r"train.batch_size=8: so many streams of model.seq_len"):
    StreamBatches(data.train, cfg.data, 10_000_000, 8)
  with pytest.raises(ConfigError, match=r"stride=4: streams carry their context along"):
    KINDS["streams"].evaluate(data.val, cfg, None, 4)
