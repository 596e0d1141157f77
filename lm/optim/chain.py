"""Optimizers: one chain of optax transformations, whose numbers are all traced.

    g <- g + l1 sign(W) + l2 W                      matrices only, none that is frozen
    g <- g min(1, clip_norm / |g|)                  |g| over all weights
    g <- g / c                                      Adam's epsilon times c, as d(g / c, eps) = d(g, c eps)
    d <- OPTIMIZERS[name].direction(g)              the direction; about 1 per element, save for sgd
    w <- w - m(t) (peak_lr k d + weight_decay W)    decay "independent", matrices only
    w <- w - m(t) peak_lr k (d + weight_decay W)    decay "coupled"

with m(t) from lm.optim.schedules, k and c the multipliers of the weight's kind (lm.models.parameterization),
k also of its group and layer; coupled decay has a multiplier of the kind too. Matrices are the weights of
kind embed, hidden and readout; biases and norm scales (kind vector) are never decayed. optim.cautious and
optim.hyperball hold directions and weights back (lm.optim.options); "schedule_free" is evaluated at another
point than it is trained at (lm.optim.schedule_free); with optim.prune some weights are taken out on the way
(lm.optim.pruning). The state does not depend on any number in Hparams, so one program serves and stacks many
runs.
"""

import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lm.config.errors import ConfigError, suggest
from lm.config.hparams import Hparams
from lm.config.schema import OptimConfig
from lm.models.parameterization import branch_multiplier, multiplier
from lm.optim.directions import OPTIMIZERS
from lm.optim.low_bit import compressed
from lm.optim.matrices import Tree
from lm.optim.options import cautious, hyperball
from lm.optim.prodigy import Prodigy
from lm.optim.pruning import are_pruned, pruned
from lm.optim.schedule_free import schedule_free
from lm.optim.schedules import lr_multiplier

NONE: Mapping[str, float] = MappingProxyType({})


class Multipliers(NamedTuple):
  """What a parameterization multiplies, by kind of weight; a kind that is not there has 1."""

  lr: Mapping[str, float]
  eps: Mapping[str, float] = NONE  # of Adam's epsilon
  decay: Mapping[str, float] = NONE  # of coupled weight decay
  branch_eps: float = 1.0  # of Adam's epsilon of weights of blocks, of any kind
  branch_lr: float = 1.0  # of the learning rate of the same

  @property
  def hidden_decay(self) -> float:
    """What peak_lr weight_decay is multiplied by, where decay is coupled, for hidden weights of blocks."""
    return self.lr["hidden"] * self.branch_lr * self.decay.get("hidden", 1.0)


# --- the whole update ---------------------------------------------------------------------------


def make_optimizer(
  cfg: OptimConfig,
  hparams: Hparams,
  kinds: Tree,
  axes: Tree,
  mults: Multipliers,
) -> optax.GradientTransformationExtraArgs:
  """The update rule at the top of this file. Build it inside the traced step.

  Args:
    cfg: `name`, `decay_coupling`, `schedule`, `groups`, `layer_decay`, `state_dtype`, `cautious`,
      `hyperball`, `prune` and the `plateau_` fields pick the program; its other numbers are not read.
    hparams: scalars, traced or not; `init` reads none of them. clip_norm = infinity turns clipping off.
    kinds: "embed", "hidden", "readout" or "vector" for every weight.
    axes: logical axis names of every weight, a tuple of strings (lm.models.trees.param_axes).
    mults: what the parameterization multiplies for each kind that occurs (`multipliers`).

  Returns:
    A transformation whose `update(grads, state, params, value=loss)` returns what to add to the
    weights; `value`, in nats per token, is needed by the schedule "plateau" alone, which multiplies
    m(t) by plateau_factor after every plateau_patience readings that are not 1e-4 (relative)
    below the best (optax.contrib.reduce_on_plateau).

  Raises:
    ConfigError: unknown name, decay_coupling or schedule.
  """
  if cfg.name not in OPTIMIZERS:
    raise ConfigError(
      f"optim.name={cfg.name}: unknown optimizer; use one of {', '.join(OPTIMIZERS)}"
    )
  if cfg.decay_coupling not in ("independent", "coupled"):
    raise ConfigError(
      f"optim.decay_coupling={cfg.decay_coupling}: unknown; use independent or coupled"
    )
  groups = read_groups(cfg.groups)
  member = _membership(kinds, groups)
  rate = _rate(hparams, kinds, mults, groups, member, cfg.layer_decay)
  held = jax.tree.map(
    lambda kind, i: bool(cfg.hyperball) and kind == "hidden" and not (i >= 0 and groups[i].frozen),
    kinds,
    member,
  )
  decayed = jax.tree.map(lambda kind, mine: "vector" if mine else kind, kinds, held)
  coupled = cfg.decay_coupling == "coupled"
  decay = _decay(hparams, decayed, groups, member, mults.decay if coupled else {})
  schedule = lambda step: lr_multiplier(cfg.schedule, step, hparams)
  if cfg.name == "adam":  # decays in the gradient, below
    steps = (rate,)
  elif coupled:
    steps = (decay, rate)
  else:
    steps = (rate, decay)
  if cfg.schedule == "plateau":
    cut = optax.contrib.reduce_on_plateau(
      cfg.plateau_factor, cfg.plateau_patience, accumulation_size=cfg.plateau_window
    )
    steps += (cut,)
  direction = compressed(
    _direction(cfg.name, hparams, kinds, axes, groups, member, schedule),
    cfg.state_dtype,
    hparams.seed,
  )
  if cfg.cautious:
    direction = cautious(direction, axes)
  steps += (optax.scale_by_schedule(lambda step: -schedule(step)),)
  if cfg.hyperball:
    last = (hyperball(direction, optax.chain(*steps), held, axes),)
  else:
    last = (direction, *steps)
  chain = optax.chain(
    *([_without_frozen(groups, member)] if groups else []),
    _penalties(hparams, cfg.name == "adam", kinds, groups, member),
    optax.clip_by_global_norm(hparams.clip_norm),
    *_epsilons(mults, kinds),
    *last,
  )
  if cfg.name == "schedule_free":
    chain = schedule_free(chain, hparams, schedule)

  def update(grads, state, params, **extra):
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies its int32 counts by floats
      return chain.update(grads, state, params, **extra)

  tx = optax.GradientTransformationExtraArgs(chain.init, update)
  if cfg.prune == "none":
    return tx
  frozen = jax.tree.map(lambda index: index >= 0 and groups[index].frozen, member)
  return pruned(tx, cfg.prune, hparams, are_pruned(kinds, frozen), schedule)


class Group(NamedTuple):
  """Parameters whose path matches `pattern` from its start, and how they differ from the rest."""

  pattern: str
  frozen: bool = False  # neither trained nor decayed, and without optimizer state
  lr: float = 1.0  # times the learning rate
  weight_decay: float = 1.0  # times optim.weight_decay
  b1: float | None = None  # instead of optim.b1
  b2: float | None = None


def read_groups(texts: Sequence[str]) -> tuple[Group, ...]:
  """The groups of `optim.groups`, each `PATTERN:frozen` or `PATTERN:lr=0.1:weight_decay=0`.

  >>> read_groups(["embed:lr=0.1"])[0].lr
  0.1

  Raises:
    ConfigError: no such setting, a number out of range, or a pattern that is no regular expression.
  """
  found = []
  numbers = ("lr", "weight_decay", "b1", "b2")
  for text in texts:
    pattern, *settings = text.split(":")
    wrong = f"optim.groups={text}: must be PATTERN:frozen or PATTERN:"
    if not settings:
      raise ConfigError(f"{wrong}NAME=NUMBER with {', '.join(numbers)}; try {text}:frozen")
    try:
      re.compile(pattern)
    except re.error as error:
      raise ConfigError(
        f"optim.groups={text}: {pattern} is no pattern ({error}); mend it"
      ) from None
    group = Group(pattern)
    for setting in settings:
      name, _, value = setting.partition("=")
      if setting == "frozen":
        group = group._replace(frozen=True)
        continue
      if name not in numbers:
        raise ConfigError(f"{wrong}NAME=NUMBER with {', '.join(numbers)}; {suggest(name, numbers)}")
      try:
        number = float(value)
      except ValueError:
        number = math.nan
      if not (0 <= number < (1 if name in ("b1", "b2") else math.inf)):
        raise ConfigError(
          f"optim.groups={text}: {setting} is out of range; try {pattern}:{name}=0.5"
        )
      group = group._replace(**{name: number})
    found.append(group)
  return tuple(found)


def check_groups(groups: Sequence[Group], kinds: Tree, name: str) -> None:
  """ConfigError for a group without a parameter, or with a b1 or b2 that optimizer `name` does not use."""
  leaves = jax.tree_util.tree_leaves_with_path(kinds)
  kind_of = {"/".join(p.key for p in path): kind for path, kind in leaves}
  names = list(kind_of)
  for group in groups:
    used = set(OPTIMIZERS[name].moments)
    members = {kind_of[n] for n in names if re.match(group.pattern, n)}
    if name == "muon" and members == {"hidden"}:
      used -= {"b2"}
    for key in ("b1", "b2"):
      if getattr(group, key) is not None and key not in used:
        raise ConfigError(
          f"optim.groups={group.pattern}:{key}={getattr(group, key):g}: optim.name={name} has no {key} "
          "there; leave it out"
        )
    if not any(re.match(group.pattern, name) for name in names):
      raise ConfigError(
        f"optim.groups={group.pattern}: no parameter's path begins so; paths are like {names[0]}"
      )


def check_hidden(cfg: OptimConfig, kinds: Tree) -> None:
  """ConfigError for prune or hyperball where every matrix of kind hidden is frozen or there is none."""
  groups = read_groups(cfg.groups)
  frozen = jax.tree.map(lambda i: i >= 0 and groups[i].frozen, _membership(kinds, groups))
  trained = jax.tree.map(lambda kind, still: kind == "hidden" and not still, kinds, frozen)
  for key, value, off, reached in (
    ("prune", cfg.prune, "none", are_pruned(kinds, frozen)),
    ("hyperball", cfg.hyperball, False, trained),
  ):
    if value not in (off, None) and not any(jax.tree.leaves(reached)):
      raise ConfigError(
        f"optim.{key}={value}: is for matrices between an embedding and its output, of which none is trained "
        f"here; use {off}"
      )


def stop_frozen(params: Tree, groups: Sequence[Group]) -> Tree:
  """The same parameters, without a gradient for the frozen ones: nothing is computed for it."""
  member = _membership(params, groups)
  frozen = lambda index: index >= 0 and groups[index].frozen
  stop = lambda p, index: jax.lax.stop_gradient(p) if frozen(index) else p
  return jax.tree.map(stop, params, member)


def _membership(kinds: Tree, groups: Sequence[Group]) -> Tree:
  """For each parameter the number of the first group that it is in; -1 for the rest."""

  def number(path, _):
    name = "/".join(part.key for part in path)
    return next((i for i, group in enumerate(groups) if re.match(group.pattern, name)), -1)

  return jax.tree_util.tree_map_with_path(number, kinds)


def _rate(hparams, kinds, mults, groups, member, layer_decay):
  """d times peak_lr, the multiplier of its kind and place, of its group and of its layer."""

  def scaled(path, x, kind, index):
    rate = hparams.peak_lr * mults.lr[kind]
    if mults.branch_lr != 1 and _in_branch(path):
      rate *= mults.branch_lr
    return (rate if index < 0 else rate * groups[index].lr) * x

  def rated(d, _):
    d = jax.tree_util.tree_map_with_path(scaled, d, kinds, member)
    if layer_decay == 1:
      return d
    return jax.tree.map(lambda x, factor: factor * x, d, layer_multipliers(d, layer_decay))

  return optax.stateless(rated)


def layer_multipliers(tree: Tree, decay: float) -> Tree:
  """For each parameter decay ** (layers between it and the output): arrays [layers, 1, ...] for stacked ones.

  Of n layers the last one has decay, the first one decay ** n, what stands before it (names that
  hold "embed") decay ** (n + 1), and everything else, such as a new head, 1.
  Howard & Ruder 2018, arXiv:1801.06146 §3.2; Clark et al. 2020, arXiv:2003.10555, appendix B.
  """
  named = [([p.key for p in path], x) for path, x in jax.tree_util.tree_leaves_with_path(tree)]
  single = [
    int(m[1]) + 1 for words, _ in named for w in words if (m := re.fullmatch(r"block_(\d+)", w))
  ]
  n = max([*single, *(x.shape[0] for words, x in named if "blocks" in words)], default=0)

  def factor(path, x):
    words = [part.key for part in path]
    if "blocks" in words:
      above = jnp.arange(x.shape[0], 0, -1, dtype=jnp.float32)
      return (decay**above).astype(x.dtype).reshape(-1, *(1,) * (x.ndim - 1))
    layer = next((m for word in words if (m := re.fullmatch(r"block_(\d+)", word))), None)
    if layer is not None:
      return decay ** (n - int(layer[1]))
    return decay ** (n + 1) if "embed" in words[0] else 1.0

  return jax.tree_util.tree_map_with_path(factor, tree)


def _in_branch(path) -> bool:
  """Whether a parameter is one of a block's."""
  return any(re.match(r"blocks?(_|$)", part.key) for part in path)


def _epsilons(mults, kinds):
  """[g / c of the weight's kind and place]; [] where every c is 1."""
  if {*mults.eps.values(), mults.branch_eps} <= {1.0}:
    return []

  def scaled(path, g, kind):
    return g / (mults.eps.get(kind, 1.0) * (mults.branch_eps if _in_branch(path) else 1.0))

  return [optax.stateless(lambda grads, _: jax.tree_util.tree_map_with_path(scaled, grads, kinds))]


def _decay(hparams, kinds, groups, member, mults):
  """d + weight_decay W, times that of the group and `mults` of the kind, on matrices only."""
  if not groups and not mults:
    return optax.add_decayed_weights(
      hparams.weight_decay, mask=jax.tree.map(lambda kind: kind != "vector", kinds)
    )

  def decayed(d, w, kind, index):
    if kind == "vector" or (index >= 0 and groups[index].frozen):
      return d
    factor = 1.0 if index < 0 else groups[index].weight_decay
    return d + hparams.weight_decay * (factor * mults.get(kind, 1.0)) * w

  return optax.stateless(lambda d, params: jax.tree.map(decayed, d, params, kinds, member))


def _without_frozen(groups, member):
  """Gradients of frozen parameters are 0, also in the norm that is clipped."""
  frozen = lambda index: index >= 0 and groups[index].frozen
  zeroed = lambda g, index: jnp.zeros_like(g) if frozen(index) else g
  return optax.stateless(lambda grads, _: jax.tree.map(zeroed, grads, member))


def _direction(name, hparams, kinds, axes, groups, member, schedule):
  """The optimizer's direction; one for each group that has moments of its own, none where it is frozen."""
  own = [i for i, g in enumerate(groups) if g.frozen or g.b1 is not None or g.b2 is not None]
  if not own:
    return OPTIMIZERS[name].direction(hparams, kinds, axes, schedule)
  labels = jax.tree.map(lambda index: str(index) if index in own else "rest", member)
  is_axes = lambda x: isinstance(x, tuple)

  def direction(label, changed):
    of_group = lambda x, mine: x if mine == label else optax.MaskedNode()
    mine = jax.tree.map(of_group, kinds, labels)
    my_axes = jax.tree.map(of_group, axes, labels, is_leaf=is_axes)
    return OPTIMIZERS[name].direction(changed, mine, my_axes, schedule)

  directions = {"rest": direction("rest", hparams)}
  for i in own:
    given = {k: getattr(groups[i], k) for k in ("b1", "b2") if getattr(groups[i], k) is not None}
    changed = hparams.replace(**{k: jnp.float32(v) for k, v in given.items()})
    directions[str(i)] = optax.set_to_zero() if groups[i].frozen else direction(str(i), changed)
  return optax.partition(directions, labels)


def _penalties(hparams, decays, kinds, groups, member):
  """g + l1 sign(W) + l2 W on matrices, the gradient of l1 |W|_1 + l2 |W|^2 / 2.

  Args:
    decays: whether weight_decay, times that of the matrix's group, is added to l2.
  """

  def penalised(g, w, kind, index):
    if kind == "vector" or (index >= 0 and groups[index].frozen):
      return g
    l2 = hparams.l2
    if decays:
      factor = 1.0 if index < 0 else groups[index].weight_decay
      l2 += hparams.weight_decay * factor
    return g + hparams.l1 * jnp.sign(w) + l2 * w

  return optax.stateless(
    lambda grads, params: jax.tree.map(penalised, grads, params, kinds, member)
  )


def multipliers(
  name: str, parameterization: str, ratio: float, depth_ratio: float = 1.0
) -> Multipliers:
  """Those of optimizer `name`, at width / base_width = ratio and depth / base_depth = depth_ratio.

  The table's `lr` is Adam's, whose update has elements of order 1 and so, aligned with the
  activations, a spectral norm that grows like the width; adafactor, lion, ademamix, adopt and
  schedule_free share it. A muon update of a hidden matrix has spectral norm 0.2 sqrt(max(I, O)), which
  grows like the root of the width: it takes the root of the multiplier.

  Args:
    name: a key of OPTIMIZERS.
    parameterization: a key of lm.models.parameterization.TABLE.
  """
  kinds = ("embed", "hidden", "readout", "vector")

  def column(what):
    found = {kind: multiplier(parameterization, kind, what, ratio) for kind in kinds}
    return found if set(found.values()) != {1.0} else {}

  lr = dict.fromkeys(kinds, 1.0) | column("sgd_lr" if name == "sgd" else "lr")
  if name == "muon":
    lr["hidden"] **= 0.5
  of_branch = lambda what: branch_multiplier(parameterization, what, depth_ratio)
  return Multipliers(lr, column("eps"), column("decay"), of_branch("eps"), of_branch("lr"))


def learning_rate(cfg: OptimConfig, hparams: Hparams, step: jax.Array, state: Any) -> jax.Array:
  """peak_lr m(t) of the update made when `step` updates are done, before the kinds' multipliers.

  `state` is the optimizer's state after that update: with "plateau", m(t) includes its cuts; prodigy's is
  times the rate it found.
  """
  rate = hparams.peak_lr * _fraction(cfg, hparams, step, state)
  if cfg.name == "prodigy":
    is_prodigy = lambda x: isinstance(x, Prodigy)
    found = [s for s in jax.tree.leaves(state, is_leaf=is_prodigy) if is_prodigy(s)]
    rate *= found[0].used
  return rate


def decay_share(
  cfg: OptimConfig, hparams: Hparams, step: jax.Array, state: Any, lr_mult: float
) -> jax.Array:
  """Share of a hidden matrix that weight decay takes in that update: m(t) wd, times peak_lr k if coupled.

  Its inverse is the timescale of decay: so many updates back reaches the mean that weights are (Wang &
  Aitchison 2024, arXiv:2405.13698 §2).

  Args:
    lr_mult: k, the kind's multiplier of the rate, times that of coupled decay.
  """
  rate = hparams.peak_lr * lr_mult if cfg.decay_coupling == "coupled" else 1.0
  return hparams.weight_decay * rate * _fraction(cfg, hparams, step, state)


def decays_hidden(cfg: OptimConfig) -> bool:
  """Whether weight_decay shrinks hidden matrices: adam's enters the gradient, spheres have none."""
  return cfg.name != "adam" and not cfg.hyperball


def relative_updates(updates: Tree, params: Tree, kinds: Tree) -> dict[str, jax.Array]:
  """{kind: L2 norm of the updates of a kind's weights over that of the weights; 0 where these are 0}.

  The effective learning rate of weights behind a norm, whose size says nothing (Kosson et al. 2023,
  arXiv:2305.17212 §3).
  """
  squares = lambda tree: jax.tree.leaves(jax.tree.map(lambda x: jnp.square(x).sum(), tree))
  found = {}
  rows = zip(jax.tree.leaves(kinds), squares(updates), squares(params), strict=True)
  for kind, u, w in rows:
    total = found.get(kind, (0.0, 0.0))
    found[kind] = (total[0] + u, total[1] + w)
  ratio = lambda u, w: jnp.where(w > 0, jnp.sqrt(u / jnp.where(w > 0, w, 1)), 0)
  return {kind: ratio(*pair) for kind, pair in found.items()}


def _fraction(cfg: OptimConfig, hparams: Hparams, step: jax.Array, state: Any) -> jax.Array:
  """m(t) of that update."""
  fraction = lr_multiplier(cfg.schedule, step, hparams)
  if cfg.schedule == "plateau":
    is_plateau = lambda x: isinstance(x, optax.contrib.ReduceLROnPlateauState)
    cuts = [s for s in jax.tree.leaves(state, is_leaf=is_plateau) if is_plateau(s)]
    fraction *= cuts[0].scale
  return fraction
