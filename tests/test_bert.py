"""BERT against transformers, its counts, and that only real tokens are seen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.cost.flops import run_flops_per_token, xla_flops
from lm.cost.parameters import param_counts, run_weights
from lm.devices.sharding import make_mesh
from lm.hf.bert import from_bert, to_bert
from lm.models.registry import make_model
from lm.models.trees import init_params
from lm.objectives.registry import objective_of
from lm.setup.hparams import hparams_zeros, make_hparams
from lm.setup.load import load_config
from lm.setup.resolve import kind_of, resolve
from lm.training.programs import make_programs
from tests.equalities import assert_counted, assert_counts

V, LENGTH = 67, 14
TINY = {
  "model.width": 16, "model.base_width": 16, "model.depth": 2, "model.heads": 2, "model.mlp_dim": 24,
  "model.seq_len": 16, "model.vocab_size": V,
}  # fmt: skip
SIZES = {
  "vocab_size": V, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
  "intermediate_size": 24, "max_position_embeddings": 16,
}  # fmt: skip


def tiny(n_vocab=V, devices=1, **changes):
  changes = {key.replace("__", "."): value for key, value in changes.items()}
  return resolve(load_config("configs/bert.py", TINY | changes), n_vocab, devices)


def rows(rng, n=3):
  """tokens, mask and types of rows of which one is padded."""
  tokens_BL, types_BL = rng.integers(0, V, (n, LENGTH)), rng.integers(0, 2, (n, LENGTH))
  mask_BL = np.ones((n, LENGTH), np.int64)
  mask_BL[1, 9:] = 0
  return tokens_BL, mask_BL, types_BL


def theirs(kind, seed=0, **more):
  """A model of transformers with random weights, and its (state, config) as numpy and dict."""
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  torch.manual_seed(seed)
  model = getattr(transformers, kind)(transformers.BertConfig(**SIZES, **more)).eval()
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.2 * torch.randn(parameter.shape)
  state = {name: array.numpy() for name, array in model.state_dict().items()}
  return model, state, model.config.to_dict() | {"architectures": [kind]}


def encode(cfg, params, tokens_BL, mask_BL, types_BL):
  i32 = lambda a: jnp.asarray(a, jnp.int32)
  arrays = (i32(tokens_BL), None, i32(mask_BL), i32(types_BL))
  encoder = {name: params[name] for name in params if "embed" in name or name == "blocks"}
  return make_model(cfg.model).apply({"params": encoder}, *arrays)


def test_hidden_states_equal_those_of_transformers():
  torch = pytest.importorskip("torch")

  model, state, hf_config = theirs("BertModel")
  fields, params = from_bert(state, hf_config)
  cfg = tiny(**{f"model__{key}": value for key, value in fields.items() if key != "family"})
  tokens_BL, mask_BL, types_BL = rows(np.random.default_rng(0))
  with torch.no_grad():
    wanted = model(
      torch.tensor(tokens_BL),
      attention_mask=torch.tensor(mask_BL),
      token_type_ids=torch.tensor(types_BL),
    )
  found = np.asarray(encode(cfg, params, tokens_BL, mask_BL, types_BL))
  real = mask_BL > 0
  np.testing.assert_allclose(found[real], wanted.last_hidden_state.numpy()[real], atol=1e-5)


def test_the_loss_of_pre_training_equals_that_of_transformers():
  """Masked tokens and next sentence, of rows with as many hidden tokens each."""
  torch = pytest.importorskip("torch")

  model, state, hf_config = theirs("BertForPreTraining")
  _, params = from_bert(state, hf_config)
  cfg = tiny(objective__next_sentence=True, model__seq_len=16, model__dropout=0.0)
  tokens_BL, mask_BL, types_BL = rows(np.random.default_rng(1))
  places_BP = np.array([[1, 5], [2, 8], [3, 12]])
  labels_BL = np.full_like(tokens_BL, -100)
  targets_BP = np.array([[4, 9], [0, 66], [31, 2]])
  np.put_along_axis(labels_BL, places_BP, targets_BP, axis=1)
  other_B = np.array([0, 1, 1])
  with torch.no_grad():
    wanted = model(
      torch.tensor(tokens_BL), attention_mask=torch.tensor(mask_BL), token_type_ids=torch.tensor(types_BL),
      labels=torch.tensor(labels_BL), next_sentence_label=torch.tensor(other_B),
    )  # fmt: skip
  i32 = lambda a: jnp.asarray(a, jnp.int32)
  batch = {
    "tokens": i32(tokens_BL), "segments": i32(mask_BL), "types": i32(types_BL), "places": i32(places_BP),
    "targets": i32(targets_BP), "weights": jnp.ones((3, 2)), "other": i32(other_B),
  }  # fmt: skip
  loss_fn = objective_of(cfg.objective).make_loss(make_model(cfg.model), cfg)
  total, (sums, _) = loss_fn(params, {}, batch, None, hparams_zeros(cfg))
  assert float(sums["units"]) == mask_BL.sum() - 3 * 3
  assert float(total / sums["weight"]) == pytest.approx(float(wanted.loss), rel=1e-5)
  assert float(sums["next_loss"]) > 0.01


@pytest.mark.parametrize("kind", ["BertModel", "BertForMaskedLM", "BertForPreTraining"])
def test_weights_come_out_as_they_went_in(kind):
  _, state, hf_config = theirs(kind)
  fields, params = from_bert(state, hf_config)
  cfg = tiny(**{f"model__{key}": value for key, value in fields.items() if key != "family"})
  again, said = to_bert(params, cfg.model)
  assert said["architectures"] == [kind]
  buffers = {name for name in state if name.endswith("position_ids")}
  assert set(again) == set(state) - buffers
  for name, array in again.items():
    np.testing.assert_array_equal(array, state[name])


def test_what_is_no_such_bert_is_refused_by_name():
  _, state, hf_config = theirs("BertModel")
  with pytest.raises(
    ConfigError, match="position_embedding_type=relative_key: only absolute is read"
  ):
    from_bert(state, hf_config | {"position_embedding_type": "relative_key"})
  with pytest.raises(ConfigError, match=r"config\.json says \(24, 16\)"):
    from_bert(state | {"encoder.layer.1.intermediate.dense.weight": np.zeros((3, 16))}, hf_config)
  with pytest.raises(ConfigError, match=r"encoder\.layer\.7\.x: is no weight of this bert"):
    from_bert(state | {"encoder.layer.7.x": np.zeros(3, np.float32)}, hf_config)


@pytest.mark.parametrize("pairs", [False, True])
def test_counts_and_names_equal_the_leaves(pairs):
  cfg = tiny(objective__next_sentence=pairs)
  programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:1]))
  assert_counted(run_weights(cfg), programs.run_shape.params)
  assert_counts(cfg.model)


def test_base_has_its_published_size():
  """109,482,240: the encoder and pooler of bert-base-uncased."""
  cfg = resolve(load_config("configs/bert.py:base", {"data.tokenizer": "bpe"}), 30_522, 1)
  assert param_counts(cfg.model).total + 768 * 769 == 109_482_240


def test_exact_flops_are_those_of_the_compiled_step():
  """Three times a forward pass of encoder and heads, within 3 % of XLA's count of gradients."""
  changes = {"model.width": 384, "model.mlp_dim": 1536, "model.heads": 6, "model.seq_len": 128}
  changes |= {"model.base_width": 384, "model.vocab_size": 2048, "train.batch_size": 2}
  changes |= {"model.depth": 1}
  changes |= {
    "model.attention": "einsum",
    "model.scan_layers": False,
    "objective.next_sentence": True,
  }
  cfg = tiny(2048, **changes)
  model, objective = make_model(cfg.model), objective_of(cfg.objective)
  programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:1]))
  arrays = kind_of(cfg).arrays(cfg, True)
  batch = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in arrays.items()}
  loss_fn = functools.partial(objective.make_loss(model, cfg), hparams=hparams_zeros(cfg), key=None)
  step = jax.grad(lambda p, b: loss_fn(p, {}, b)[0])
  counted = xla_flops(jax.jit(step).lower(programs.run_shape.params, batch).compile())
  n_text = 2 * (128 - 3)
  assert run_flops_per_token(cfg, "exact") * n_text == pytest.approx(counted, rel=0.03)


def test_every_real_token_is_seen_and_padding_is_not():
  cfg = tiny()
  params = init_params(make_model(cfg.model), jax.random.key(0), 10.0)
  tokens_BL, mask_BL, types_BL = rows(np.random.default_rng(2))

  def first(table_VD, at):
    changed = params | {"embed": {"embedding": table_VD}}
    return encode(cfg, changed, tokens_BL, mask_BL, types_BL)[1, at].sum()

  tokens_BL[1] = np.arange(LENGTH)  # every token of row 1 once in the batch's second row
  tokens_BL[[0, 2]] = V - 1
  grad_VD = np.asarray(jax.grad(first)(params["embed"]["embedding"], 4))
  seen = np.abs(grad_VD).max(axis=1) > 0
  assert seen[:9].all() and not seen[9:LENGTH].any()


def losses(cfg, n_devices, steps=4):
  """Training losses of the first steps over so many devices."""
  programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:n_devices]))
  hparams = jax.device_put(make_hparams(cfg), programs.scalar_sharding)
  state, found = programs.init(hparams), []
  kind = kind_of(cfg)
  batches = kind.train(kind.open(cfg), cfg)
  for step in range(steps):
    batch = jax.device_put(batches.at(step), programs.batch_sharding)
    state, metrics = programs.train(state, batch, hparams)
    found.append(float(metrics["train/loss"]))
  return found


@pytest.mark.slow
def test_eight_devices_compute_what_one_does():
  sizes = {"model.vocab_size": 260, "model.seq_len": 32, "objective.next_sentence": True}
  mesh = {"mesh.replica": 1, "mesh.fsdp": 2, "mesh.sequence": 2, "mesh.tensor": 2}
  one, eight = (losses(tiny(258, n, **sizes, **m), n) for n, m in ((1, {}), (8, mesh)))
  assert len(set(one)) == 4
  np.testing.assert_allclose(one, eight, rtol=1e-5)


@pytest.mark.slow
def test_recomputed_and_unrolled_layers_give_the_same_losses():
  sizes = {"model.vocab_size": 258}
  plain = losses(tiny(258, **sizes), 1, 2)
  for changes in ({"model.scan_layers": False}, {"model.remat": "dots"}):
    np.testing.assert_allclose(losses(tiny(258, **sizes, **changes), 1, 2), plain, rtol=1e-5)
