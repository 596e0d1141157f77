"""Pruning while training against torch; schedules; what rests comes back; a run with fewer weights."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm.config.errors import ConfigError
from lm.config.hparams import Hparams
from lm.cost.memory import memory_bytes
from lm.devices.sharding import make_mesh
from lm.models.trees import by_path
from lm.optim import pruning
from lm.runs.checkpoint import load_params
from lm.setup.load import load_config
from lm.setup.resolve import resolve
from lm.training.programs import make_programs
from tests.equalities import trained

STEPS, LR, SCORE_LR = 40, 0.02, 0.05
B1, B2, EPS = 0.9, 0.98, 1e-8


def numbers(**changes):
  given = {"prune_keep": 0.3, "prune_begin": 0.1, "prune_end": 0.8, "prune_lr": SCORE_LR,
           "prune_penalty": 0.0, "b1": B1, "b2": B2, "eps": EPS} | changes  # fmt: skip
  found = {name: jnp.float32(value) for name, value in given.items()}
  return Hparams(**found, total_steps=jnp.int32(STEPS))


def problem():
  """(weights of a net of two matrices and a bias, inputs, targets), float32."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  params = {"first": draw(6, 8) / 2, "bias": np.zeros(8, np.float32), "second": draw(8, 3) / 2}
  return params, draw(64, 6), draw(64, 3)


def ours(how, **changes):
  """[(parameters, state)] after every step."""
  params, x, y = problem()
  chosen = {"first": True, "bias": False, "second": True}
  schedule = lambda step: 1.0 - step.astype(jnp.float32) / STEPS
  adam = optax.chain(
    optax.scale_by_adam(B1, B2, EPS), optax.scale_by_schedule(lambda s: -LR * schedule(s))
  )
  adam = optax.with_extra_args_support(adam)
  with jax.numpy_dtype_promotion("standard"):
    tx = pruning.pruned(adam, how, numbers(**changes), chosen, schedule)

    def loss(p):
      h = jnp.tanh(x @ p["first"] + jnp.expand_dims(p["bias"], 0))
      return jnp.square(h @ p["second"] - y).mean()

    @jax.jit
    def step(params, state):
      updates, state = tx.update(jax.grad(loss)(params), state, params)
      return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.asarray, params)
    state, found = tx.init(params), []
    for _ in range(STEPS):
      params, state = step(params, state)
      found.append((params, state))
  return found


def theirs(how, keep=0.3, begin=0.1, end=0.8, penalty=0.0, lr=SCORE_LR):
  """The same by torch: masks in the forward pass, scores as parameters, a straight-through gradient."""
  torch = pytest.importorskip("torch")

  class Kept(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, share):
      if how == "soft_movement":
        return (torch.sigmoid(scores) > pruning.LEAST).float()
      n = round(share * scores.numel())
      mask = torch.zeros(scores.numel())
      mask[scores.flatten().argsort(descending=True)[:n]] = 1.0
      return mask.view_as(scores)

    @staticmethod
    def backward(ctx, grad):
      return grad, None

  params, x, y = problem()
  weights = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in params.items()}
  scores = {k: torch.nn.Parameter(torch.zeros_like(weights[k])) for k in ("first", "second")}
  rates = [{"params": weights.values(), "lr": LR}, {"params": scores.values(), "lr": lr}]
  adam = torch.optim.Adam(rates, betas=(B1, B2), eps=EPS)
  decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda s: 1 - s / STEPS)
  x, y = torch.tensor(x), torch.tensor(y)
  size = sum(s.numel() for s in scores.values())
  found = []
  share, done = 1.0, 0.0

  def masked(name, share):
    by = scores[name] if how != "magnitude" else weights[name].detach().abs()
    return weights[name] * Kept.apply(by, share)

  for step in range(STEPS):
    h = torch.tanh(x @ masked("first", share) + weights["bias"])
    done = 1 - (1 - min(max(((step + 1) / STEPS - begin) / (end - begin), 0), 1)) ** 3
    loss = (h @ masked("second", share) - y).square().mean()
    if how == "soft_movement":
      loss = loss + penalty * done * sum(torch.sigmoid(s).sum() for s in scores.values()) / size
    adam.zero_grad()
    loss.backward()
    adam.step()
    decay.step()
    share = 1 - (1 - keep) * done
    after = {k: masked(k, share) if k != "bias" else weights[k] for k in weights}
    found.append({k: v.detach().numpy().copy() for k, v in after.items()})
  return found, {k: v.detach().numpy() for k, v in scores.items()}


@pytest.mark.parametrize(
  "how, changes",
  [
    ("magnitude", {}),
    ("movement", {}),
    ("movement", {"keep": 0.1, "begin": 0.1, "end": 0.5}),
    ("soft_movement", {"penalty": 40.0, "lr": 0.3}),
  ],
)
def test_equal_to_torch_with_a_straight_through_gradient(how, changes):
  wanted, scores = theirs(how, **changes)
  found = ours(how, **{f"prune_{key}": value for key, value in changes.items()})
  for step, (want, (params, _)) in enumerate(zip(wanted, found, strict=True)):
    for name, value in want.items():
      np.testing.assert_allclose(params[name], value, atol=2e-5, err_msg=f"{name}, step {step}")
  if how != "magnitude":
    for name, value in scores.items():
      np.testing.assert_allclose(found[-1][1].scores[name], value, atol=1e-4)
  gone = [(params["first"] == 0).mean() for params, _ in found]
  assert gone[0] < 0.2 < 0.6 < gone[-1]


def test_what_rests_keeps_its_place_and_comes_back():
  found = ours("movement", prune_keep=0.5)
  returns = 0
  for (_, before), (params, state) in itertools.pairwise(found):
    for name in ("first", "second"):
      kept, rested = np.asarray(state.kept[name]), ~np.asarray(before.kept[name])
      assert not np.asarray(params[name])[~kept].any()
      assert not np.asarray(state.resting[name])[kept].any()
      returns += int((rested & kept).sum())
  assert returns > 0


def test_the_share_falls_as_a_cubic_and_ties_are_kept():
  h = numbers(prune_begin=0.25, prune_end=0.75)
  p = [float(pruning.progress(h, jnp.int32(c))) for c in (0, 10, 20, 30, 40)]
  np.testing.assert_allclose(p, [0, 0, 1 - 0.5**3, 1, 1], atol=1e-6)
  scores = jnp.asarray([[[3.0, 1.0, 2.0], [4.0, 5.0, 0.0]], [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]])
  mask = pruning.highest(scores, jnp.float32(0.5))
  assert mask.tolist() == [[[True, False, False], [True, True, False]], [[True] * 3] * 2]
  assert pruning.highest(scores, jnp.float32(1.0)).all()


def test_embeddings_routers_adapters_and_frozen_matrices_stay_whole():
  kinds = {
    "embed": {"embedding": "embed"},
    "blocks": {"mlp": {"up": {"kernel": "hidden", "lora_a": "hidden"}, "router": {"kernel": "hidden"}}},
    "head": {"kernel": "readout"}, "norm": {"scale": "vector"}, "fixed": {"kernel": "hidden"},
  }  # fmt: skip
  frozen = jax.tree_util.tree_map_with_path(lambda path, _: path[0].key == "fixed", kinds)
  found = by_path(pruning.are_pruned(kinds, frozen))
  assert [name for name, mine in found.items() if mine] == ["blocks/mlp/up/kernel"]


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"optim.prune_begin": 0.7}, "optim.prune_begin=0.7: must be below optim.prune_end=0.7"),
    ({"checkpoint.best": True}, "checkpoint.best=True: with optim.prune=movement it may choose a step"),
    ({"eval.stop_patience": 2}, "eval.stop_patience=2: with optim.prune=movement it may choose"),
    ({"optim.ema_decay": 0.9}, "optim.ema_decay=0.9: with optim.prune=movement it averages"),
    ({"optim.prune": "movment"}, "optim.prune=movment: must be one of .* did you mean movement"),
    ({"optim.prune_keep": 0}, r"optim.prune_keep=0.0: must be in \(0, 1\]"),
  ],
)  # fmt: skip
def test_what_cannot_work_is_refused(changes, words):
  with pytest.raises(ConfigError, match=words):
    load_config(
      "configs/smoke.py", {"optim.prune": "movement", "checkpoint.best": False, **changes}
    )


@pytest.mark.parametrize(
  "config, changes",
  [
    ("configs/word2vec.py:smoke", {"optim.prune": "soft_movement", "checkpoint.best": False}),
    ("configs/glove.py:smoke", {"optim.name": "adamw", "optim.hyperball": True}),
    ("configs/smoke.py", {"optim.hyperball": True, "optim.groups": ".*block.*:frozen"}),
  ],
)
def test_where_no_hidden_matrix_is_trained_their_settings_are_refused(config, changes):
  """Pruning divided by zero, and hyperball changed nothing."""
  cfg = resolve(load_config(config, changes), 257, 1)
  key = next(key for key in changes if key in ("optim.prune", "optim.hyperball"))
  with pytest.raises(ConfigError, match=f"^{key}={changes[key]}: is for matrices between"):
    make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:1]))


def test_the_plan_counts_what_pruning_holds():
  def state(how):
    changes = {"optim.prune": how, "checkpoint.best": False}
    return memory_bytes(resolve(load_config("configs/smoke.py", changes), 257, 1))["optimizer"]

  hidden = 2 * (4 * 32 * 32 + 3 * 32 * 96)
  assert state("magnitude") - state("none") == 5 * hidden
  assert state("movement") - state("none") == 17 * hidden


def test_a_runs_parameters_are_those_that_are_kept(monkeypatch, tmp_path):
  import train

  monkeypatch.setattr(train.jax, "devices", lambda *_: jax.local_devices()[:1])
  flags = [
    "--config.optim.prune=movement",
    "--config.optim.prune_keep=0.25",
    "--config.train.steps=12",
  ]
  flags += [
    "--config.checkpoint.best=False",
    "--config.model.width=16",
    "--config.log.every_steps=1",
  ]
  trained("configs/smoke.py", tmp_path / "run", *flags)
  params = by_path(load_params(tmp_path / "run")[0])
  for name, array in params.items():
    if name.startswith("blocks/") and name.endswith("kernel"):
      zeros = (np.asarray(array) == 0).mean(axis=(1, 2))
      np.testing.assert_allclose(zeros, 0.75, atol=0.5 / array[0].size)
    else:
      assert np.all(np.asarray(array) != 0)
  lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  kept = [line["optim/kept"] for line in lines]
  assert kept[0] == 1 and kept == sorted(kept, reverse=True)
  assert kept[-1] == pytest.approx(0.25, abs=1e-3)
