"""The text GAN: its oracle and critic against torch, its phases, its three estimators, whole runs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.config.hparams import Hparams
from lm.cost.flops import run_flops_per_token, xla_flops
from lm.data.sources import oracle
from lm.devices.sharding import make_mesh
from lm.models import recurrent
from lm.models.registry import make_model
from lm.models.trees import init_params
from lm.objectives import adversarial
from lm.objectives.adversarial import ESTIMATORS, Critic, gradient_penalty, make_grads, write
from lm.setup.hparams import make_hparams
from lm.setup.load import load_config
from lm.training.programs import make_programs
from lm.training.step import init_state
from tests.equalities import assert_resumes, assert_same, resolved, run

SPEC = "configs/gan.py"
V, L, B = 11, 5, 3


def gumbel(*shape, seed=0):
  return jax.random.gumbel(jax.random.key(seed), shape)


@pytest.fixture(scope="module")
def tiny():
  """(resolved config, generator, parameters of generator and critic) with 11 tokens and rows of 5."""
  cfg = load_config(SPEC, {"model.width": 8, "model.seq_len": L, "model.vocab_size": V})
  changes = {"likelihood_steps": 2, "critic_steps": 2, "rollouts": 1, "critic_sizes": (2,)}
  cfg = dataclasses.replace(cfg, objective=dataclasses.replace(cfg.objective, **changes))
  module = make_model(cfg.model)
  params = init_params(module, jax.random.key(0), 3.0)
  critic = Critic(cfg.objective, V).init(jax.random.key(1), jnp.zeros((1, L, V)))["params"]
  return cfg, module, params | {"critic": jax.tree.map(lambda b: b.value, critic, is_leaf=_boxed)}


def _boxed(leaf):
  return hasattr(leaf, "names")


def batch(seed=0):
  rng = np.random.default_rng(seed)
  ids_BL = rng.integers(0, V, (B, L + 1)).astype(np.int32)
  weights_BL = np.ones((B, L), np.float32)
  weights_BL[0, 3:] = 0
  return {"tokens": ids_BL[:, :-1], "targets": ids_BL[:, 1:], "weights": weights_BL}


HPARAMS = Hparams(temperature=0.7, penalty=10.0, likelihood_weight=0.0)


def grads_of(tiny, estimator, steps, **hparams):
  cfg, module, params = tiny
  objective = dataclasses.replace(cfg.objective, estimator=estimator)
  grad_fn = jax.jit(make_grads(module, dataclasses.replace(cfg, objective=objective)))
  return grad_fn(
    params, {"steps": jnp.int32(steps)}, batch(), jax.random.key(3), HPARAMS.replace(**hparams)
  )


# --- the oracle -------------------------------------------------------------------------------------


def test_the_oracles_nll_equals_torchs():
  torch = pytest.importorskip("torch")
  weights = oracle._draw(oracle.parse("9-l6", "x"))
  tensor = lambda a: torch.tensor(np.ascontiguousarray(a))
  lstm = torch.nn.LSTM(oracle.WIDTH, oracle.WIDTH, batch_first=True).double()
  with torch.no_grad():
    lstm.weight_ih_l0.copy_(tensor(weights.kernel_DG[: oracle.WIDTH].T))
    lstm.weight_hh_l0.copy_(tensor(weights.kernel_DG[oracle.WIDTH :].T))
    lstm.bias_ih_l0.copy_(tensor(weights.bias_G))
    lstm.bias_hh_l0.zero_()
  texts = list(oracle.read("9-l6-n50", "x"))[:20]
  ids = np.array([[ord(c) - 33 for c in text] for text in texts])
  before = np.concatenate([np.full((20, 1), 9), ids[:, :-1]], axis=1)
  x = tensor(weights.table_VD)[torch.tensor(before)]
  logits = lstm(x)[0] @ tensor(weights.readout_HV) + tensor(weights.bias_V)
  theirs = torch.nn.functional.cross_entropy(
    logits.transpose(1, 2), torch.tensor(ids), reduction="none"
  )
  np.testing.assert_allclose(oracle.nll("9-l6", texts), theirs.mean(dim=1).detach(), rtol=1e-12)


def test_an_oracles_sentences_are_its_own_and_others_are_not():
  texts = list(oracle.read("9-l6-n3000", "x"))
  assert len(texts) == 3000 and {len(t) for t in texts} == {6}
  assert texts == list(oracle.read("9-l6-n3000", "x"))
  own = oracle.nll("9-l6", texts).mean()
  foreign = oracle.nll("9-l6", [t[::-1] for t in texts]).mean()
  assert own < foreign - 0.3
  # Characters after the length do not count; unknown ones and none are impossible.
  assert oracle.nll("9-l6", [texts[0] + "zz"]) == oracle.nll("9-l6", texts[:1])
  assert np.isinf(oracle.nll("9-l6", ["~~", ""])).all()


@pytest.mark.parametrize("name", ["64", "64-l0", "1-l5", "95-l5", "64-l20-n0"])
def test_a_wrong_oracle_is_refused(name):
  with pytest.raises(ConfigError, match=r"data\.sources=oracle.*use oracle:64-l20"):
    oracle.parse(name, f"data.sources=oracle:{name}")


# --- writing ----------------------------------------------------------------------------------------


def test_what_is_written_is_argmax_of_logits_and_noise(tiny):
  _, module, params = tiny
  generator = {k: v for k, v in params.items() if k != "critic"}
  first_B, noise_LBV = jnp.array([1, 4, 9]), gumbel(L, B, V)
  ids_BL, y_BLV = write(module, generator, first_B, noise_LBV, 0.5, "straight_through")
  inputs_BL = jnp.concatenate([first_B[:, None], ids_BL[:, :-1]], axis=1)
  logits_BLV = module.apply({"params": generator}, inputs_BL)
  noisy_BLV = logits_BLV + jnp.swapaxes(noise_LBV, 0, 1)
  np.testing.assert_array_equal(ids_BL, noisy_BLV.argmax(axis=-1))
  np.testing.assert_allclose(y_BLV, jax.nn.one_hot(ids_BL, V), atol=1e-6)
  # Colder, the relaxed sentence is the hard one.
  soft = lambda t: write(module, generator, first_B, noise_LBV, t, "gumbel_softmax")[1]
  np.testing.assert_allclose(soft(1e-4), jax.nn.one_hot(ids_BL, V), atol=1e-3)
  given_BL = jnp.full((B, L), 2)
  ids_BL, _ = write(module, generator, first_B, noise_LBV, 1.0, "policy_gradient", given_BL, 3)
  np.testing.assert_array_equal(ids_BL[:, :3], 2)


def test_noise_draws_from_the_softmax(tiny):
  _, module, params = tiny
  generator = {k: v for k, v in params.items() if k != "critic"}
  n = 20_000
  ids_BL, _ = write(module, generator, jnp.full(n, 4), gumbel(1, n, V), 1.0, "policy_gradient")
  shares_V = np.bincount(ids_BL[:, 0], minlength=V) / n
  p_V = jax.nn.softmax(module.apply({"params": generator}, jnp.array([[4]]))[0, 0])
  np.testing.assert_allclose(shares_V, p_V, atol=4 * 0.5 / np.sqrt(n))


# --- the critic -------------------------------------------------------------------------------------


def test_the_penalty_of_a_linear_critic_is_known():
  w = np.random.default_rng(0).normal(size=(L, V)).astype(np.float32)
  critic = lambda z_BLV: (z_BLV * jnp.expand_dims(w, 0)).sum(axis=(1, 2))
  found = gradient_penalty(critic, jnp.ones((B, L, V)), jnp.zeros((B, L, V)), jnp.ones(B) * 0.3)
  np.testing.assert_allclose(found, (np.linalg.norm(w) - 1) ** 2, rtol=1e-5)


def test_scores_and_the_gradient_of_the_penalty_equal_torchs(tiny):
  torch = pytest.importorskip("torch")
  cfg, _, params = tiny
  critic = params["critic"]
  rng = np.random.default_rng(2)
  real, fake = rng.dirichlet(np.ones(V), (2, B, L)).astype(np.float32)
  share = rng.random(B).astype(np.float32)
  theirs = {k: torch.tensor(np.asarray(v), requires_grad=True) for k, v in critic.items()}

  def score(z):
    found = []
    for size in cfg.objective.critic_sizes:
      kernel = theirs[f"filter_{size}"].reshape(size, cfg.objective.critic_width, -1)
      e = torch.nn.functional.pad((z @ theirs["table"]).transpose(1, 2), (0, size - 1))
      c = torch.nn.functional.conv1d(e, kernel.permute(2, 1, 0), theirs[f"filter_{size}_bias"])
      found.append(torch.relu(c).amax(dim=2))
    c = torch.cat(found, dim=1)
    gate = torch.sigmoid(c @ theirs["gate"] + theirs["gate_bias"])
    new = torch.relu(c @ theirs["highway"] + theirs["highway_bias"])
    return ((gate * new + (1 - gate) * c) @ theirs["score"])[:, 0]

  ours = lambda critic, z: Critic(cfg.objective, V).apply({"params": critic}, z)
  np.testing.assert_allclose(
    ours(critic, real), score(torch.tensor(real)).detach(), rtol=1e-4, atol=1e-5
  )
  z = torch.tensor(share)[:, None, None] * torch.tensor(real)
  z = (z + (1 - torch.tensor(share)[:, None, None]) * torch.tensor(fake)).requires_grad_()
  slopes = torch.autograd.grad(score(z).sum(), z, create_graph=True)[0]
  penalty = ((slopes.flatten(1).norm(dim=1) - 1) ** 2).sum()
  penalty.backward()
  loss = lambda critic: gradient_penalty(lambda z: ours(critic, z), real, fake, share).sum()
  value, grads = jax.value_and_grad(loss)(critic)
  np.testing.assert_allclose(value, penalty.item(), rtol=1e-4)
  for name, grad in grads.items():
    expected = 0 if theirs[name].grad is None else theirs[name].grad.numpy()
    np.testing.assert_allclose(grad, expected, rtol=1e-3, atol=1e-4, err_msg=name)


# --- phases and estimators --------------------------------------------------------------------------


def _moved(tree):
  return any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_phases_train_one_then_the_other_then_both(tiny, estimator):
  for steps, of_generator, of_critic in ((1, True, False), (2, False, True), (4, True, True)):
    grads, _, (sums, _) = grads_of(tiny, estimator, steps)
    critic = grads.pop("critic")
    assert (_moved(grads), _moved(critic)) == (of_generator, of_critic), steps
    assert float(sums["weight"]) == B and float(sums["units"]) == B * L - 2
    assert (float(sums["critic_loss"]) != 0) == of_critic


def test_likelihood_is_that_of_a_language_model(tiny):
  _, module, params = tiny
  grads, total, (sums, _) = grads_of(tiny, "gumbel_softmax", 0)
  rows = batch()

  def loss(generator):
    log_p_BLV = jax.nn.log_softmax(module.apply({"params": generator}, rows["tokens"]))
    picked_BL = (log_p_BLV * jax.nn.one_hot(rows["targets"], V)).sum(axis=-1)
    return -(picked_BL * rows["weights"]).sum() / L

  generator = {k: v for k, v in params.items() if k != "critic"}
  value, theirs = jax.value_and_grad(loss)(generator)
  np.testing.assert_allclose(total, value, rtol=1e-5)
  np.testing.assert_allclose(sums["loss"], value * L, rtol=1e-5)
  grads.pop("critic")
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), grads, theirs)


def test_the_policy_gradient_climbs_the_expected_reward():
  """Rows of one token, a critic fixed: its mean over draws is the gradient of E[D], which is known."""
  cfg = load_config(
    SPEC,
    {"model.width": 4, "model.seq_len": 1, "model.vocab_size": 4, "objective.critic_sizes": (1,)},
  )
  changes = dict(estimator="policy_gradient", likelihood_steps=0, critic_steps=0)
  cfg = dataclasses.replace(cfg, objective=dataclasses.replace(cfg.objective, **changes))
  module, judge = make_model(cfg.model), Critic(cfg.objective, 4)
  params = init_params(module, jax.random.key(0), 3.0)
  critic = judge.init(jax.random.key(1), jnp.zeros((1, 1, 4)))["params"]
  critic = jax.tree.map(lambda b: b.value, critic, is_leaf=_boxed)
  n = 4096
  ones = np.ones((n, 1), np.float32)
  rows = {"tokens": ones.astype(np.int32), "targets": ones.astype(np.int32), "weights": ones}
  grad_fn = jax.jit(make_grads(module, cfg))
  grads = grad_fn(
    params | {"critic": critic}, {"steps": jnp.int32(9)}, rows, jax.random.key(2), HPARAMS
  )[0]

  def loss(params):
    p_V = jax.nn.softmax(module.apply({"params": params}, jnp.ones((1, 1), jnp.int32))[0, 0])
    return -(p_V * jax.nn.sigmoid(judge.apply({"params": critic}, jnp.eye(4)[:, None]))).sum()

  theirs = jax.grad(loss)(params)["head_bias"]
  np.testing.assert_allclose(
    grads["head_bias"] / n, theirs, atol=5 / np.sqrt(n) * np.abs(theirs).max() + 2e-3
  )


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"objective.critic_sizes": (2, 99)}, "objective.critic_sizes=2,99: must name filters of 1 to"),
    ({"objective.critic_sizes": (2, 2)}, "objective.critic_sizes=2,2: names a size twice"),
    ({"model.input_dropout": 0.5}, "model.input_dropout=0.5: objective.name=adversarial reads and"),
    (
      {"objective.estimator": "policy_gradient", "train.batch_size": 4, "train.accumulate": 4},
      "train.batch_size=4: leaves one row in each of train.accumulate=4 parts",
    ),
    ({"objective.estimator": "reinforce"}, "objective.estimator=reinforce: must be one of"),
  ],
)
def test_settings_without_sense_are_refused(changes, words):
  with pytest.raises(ConfigError, match=words):
    resolved(SPEC, **{key.replace(".", "__"): value for key, value in changes.items()})


# --- whole runs -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_eight_devices_equal_one():
  """By SGD: Adam divides gradients that are 0 but for rounding by their own size."""
  flags = dict(objective__likelihood_steps=1, objective__critic_steps=1, optim__name="sgd")
  one = run(*resolved(SPEC, **flags), steps=4)
  mesh = dict(mesh__replica=2, mesh__fsdp=4)
  assert_same(run(*resolved(SPEC, 8, **flags, **mesh), steps=4, n_devices=8), one)


@pytest.mark.slow
def test_a_run_resumes_bit_equal_through_its_phases(monkeypatch, tmp_path):
  flags = ["--config.eval.every_steps=15", "--config.checkpoint.every_steps=25"]
  assert_resumes(monkeypatch, tmp_path, SPEC, *flags)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_exact_flops_agree_with_xla(estimator, monkeypatch):
  """Of a step in which both play; sentences are written out, as XLA counts the body of a loop once.

  So it counts one end of a sentence of policy_gradient, whose share here is that of (L - 1) rollouts.
  """
  rows, length, wide = 4, 8, 128
  for module in (recurrent, adversarial):
    monkeypatch.setattr(module, "UNROLL", length)
  changes = dict.fromkeys(("model.width", "model.base_width", "objective.critic_width"), wide)
  changes |= {"model.seq_len": length, "model.vocab_size": 257, "train.batch_size": rows}
  changes |= {"objective.critic_filters": wide, "objective.critic_sizes": (2, 3)}
  changes |= {"objective.likelihood_steps": 0, "objective.critic_steps": 0, "objective.rollouts": 1}
  cfg, _ = resolved(SPEC, **{k.replace(".", "__"): v for k, v in changes.items()})
  objective = dataclasses.replace(cfg.objective, estimator=estimator)
  cfg = dataclasses.replace(cfg, objective=objective)
  programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:1]))
  ids = jax.ShapeDtypeStruct((rows, length), jnp.int32)
  batch = {"tokens": ids, "targets": ids, "weights": ids.update(dtype=jnp.float32)}
  grad_fn, extra = make_grads(make_model(cfg.model), cfg), {"steps": jnp.int32(9)}
  step = jax.jit(lambda p, b, key, hparams: grad_fn(p, extra, b, key, hparams)[0])
  given = (programs.run_shape.params, batch, jax.random.key(0), make_hparams(cfg))
  counted = xla_flops(step.lower(*given).compile()) / (rows * length)
  once = dataclasses.replace(objective, rollouts=1 / (length - 1))
  ours = run_flops_per_token(dataclasses.replace(cfg, objective=once), "exact")
  assert counted == pytest.approx(ours, rel=0.03)


def test_the_state_counts_updates():
  cfg, _ = resolved(SPEC)
  module = make_model(cfg.model)
  state = jax.eval_shape(lambda h: init_state(h, cfg=cfg, model=module), make_hparams(cfg))
  assert state.extra["steps"].shape == ()
  after = adversarial.ADVERSARIAL.after_step(cfg, {"steps": jnp.int32(4)})
  assert int(after["steps"]) == 5
