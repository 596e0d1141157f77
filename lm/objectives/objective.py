"""What an objective is: one file in lm/objectives/ and one row of lm.objectives.registry.OBJECTIVES.

An objective says which batches it reads, what it minimises, what it reports and how better is told from
worse. Sums rather than means leave it, so that micro-batches, devices and evaluation batches add up exactly;
whoever calls divides by sums["weight"].
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from lm.config.hparams import Hparams
from lm.config.schema import Config, ObjectiveConfig
from lm.models.family import Weight
from lm.models.trees import with_leaves

Sums = dict[str, jax.Array]
Batch = Mapping[str, jax.Array]
# (params, extra, batch, key or None outside training, hparams) -> (sum to minimise, (sums, extra))
LossFn = Callable[[Any, Any, Batch, jax.Array | None, Hparams], tuple[jax.Array, tuple[Sums, Any]]]
# the same arguments -> (gradients, objective, (sums, extra)), where one scalar loss is not enough
GradFn = Callable[[Any, Any, Batch, jax.Array, Hparams], tuple[Any, jax.Array, tuple[Sums, Any]]]


class Metric(NamedTuple):
  unit: str
  better: str | None = None  # lower | higher; None = neither, so that nothing can watch it
  form: str = ""  # how a run's summary shows it, such as "{:.4f} bits/byte"; "" = not at all


class Part(NamedTuple):
  """A module of the objective's own: its parameters stand beside the model's under its name."""

  module: nn.Module
  inputs: tuple[jax.ShapeDtypeStruct, ...]  # what its `__call__` reads, to draw parameters


def no_check(cfg: Config) -> None:
  """Nothing beyond the rules of the section's fields."""


@dataclasses.dataclass(frozen=True)
class Objective:
  """The row of an objective.

  Attributes:
    section: dataclass of its `objective.*` keys, a subclass of ObjectiveConfig.
    batches: the kind of batch it reads, a key of lm.data.kinds.KINDS.
    make_loss: (module, resolved config) -> LossFn. sums must hold "weight", what the objective's sum is
      divided by, and may hold "units", what budgets count, where that is not the weight.
    train_metrics: {name: Metric} of what `train_scores` gives; logged as train/<name>.
    train_scores: sums of a batch -> {name: float32 scalar}, inside the compiled step.
    eval_metrics: {name: Metric} of what `eval_scores` gives; logged as eval/<set>/<name>.
    eval_scores: (sums of a set in float64, facts of the set such as "bytes") -> {name: number}.
    kept: sums with a number a row, [B], that evaluation puts one after another instead of adding up; for
      scores that are no function of sums, such as rank correlations.
    needs: methods that the family's module must have.
    check: raises ConfigError for a config that makes no sense.
    parts: resolved config -> {name: Part}: modules of its own, such as a head or a critic.
    weights: resolved config -> the weights of its parts.
    exact_flops: (resolved config, causal) -> training FLOPs of one unit, model and parts together; None =
      the model's, and 6 for each number in the parts.
    init_extra: (module, resolved config, params, rows) -> state that is no parameter, for so many rows.
    extra_axes: resolved config -> the same tree with a tuple of logical axes for each array; arrays whose
      first axis is "batch" belong to rows, all others to the run.
    applied: names in `extra` of trees that lie beside the model's parameters wherever it is used by these
      alone: see `in_use`. They have paths of their own, and their layers are stacked.
    after_step: (resolved config, extra) -> extra, once the micro-batches of an update are through.
    chance: resolved config -> {name of an evaluation metric: what a guess without knowledge scores}; a run
      that does no better says so in its summary.
    grads: (module, resolved config) -> GradFn, where one scalar loss is not enough (adversarial).
    teachers: config -> {name: run directory}: models whose frozen parameters the loss reads from extra[name]
      in training. They are loaded by lm.runs.teachers and never saved; evaluation goes without them.
    make_sampler: (resolved config, tokenizer, mesh or None) -> (params, seed) -> text, or None.
  """

  section: type[ObjectiveConfig]
  batches: str
  make_loss: Callable[[nn.Module, Config], LossFn]
  train_metrics: Mapping[str, Metric]
  train_scores: Callable[[Sums], dict[str, jax.Array]]
  eval_metrics: Mapping[str, Metric]
  eval_scores: Callable[[Mapping[str, Any], Mapping[str, float]], dict[str, float]]
  kept: tuple[str, ...] = ()
  needs: tuple[str, ...] = ("__call__",)
  check: Callable[[Config], None] = no_check
  parts: Callable[[Config], Mapping[str, Part]] = lambda cfg: {}
  weights: Callable[[Config], Sequence[Weight]] = lambda cfg: ()
  exact_flops: Callable[[Config, bool], float] | None = None
  init_extra: Callable[[nn.Module, Config, Any, int], Any] = lambda module, cfg, params, rows: {}
  extra_axes: Callable[[Config], Any] = lambda cfg: {}
  applied: tuple[str, ...] = ()
  after_step: Callable[[Config, Any], Any] = lambda cfg, extra: extra
  chance: Callable[[Config], Mapping[str, float]] = lambda cfg: {}
  grads: Callable[[nn.Module, Config], GradFn] | None = None
  teachers: Callable[[Config], Mapping[str, str]] = lambda cfg: {}
  make_sampler: Callable = lambda cfg, tokenizer, mesh: None

  def in_use(self, params: Any, extra: Any) -> Any:
    """What a module reads as its parameters where text is generated, scored or looked into.

    Args:
      params, extra: of a state, saved or in training; `extra` may be empty (an imported run's).
    """
    for name in self.applied:
      if name in extra:
        params = with_leaves(params, extra[name])
    return params

  @property
  def shown(self) -> str:
    """The metric that progress shows: the first of a training step."""
    return f"train/{next(iter(self.train_metrics))}"
