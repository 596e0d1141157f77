"""Every metric that can be logged, its unit, and which one a run is judged by."""

from lm.config.schema import Config
from lm.objectives.objective import Metric
from lm.objectives.registry import OBJECTIVES, objective_of

COMMON = {  # whatever the objective
  "train/tokens": "predicted tokens in this step's batch",
  "train/skipped": "1 where this step's update was left out, as it was not finite (train.on_nonfinite=skip)",
  "train/grad_norm": "L2 norm of the gradient, before clipping",
  "train/grad_signal": "estimate of the true gradient's squared norm (train.noise_scale)",
  "train/grad_noise": "estimate of tr(Sigma), the gradient's variance times tokens of the batch",
  "train/param_norm": "L2 norm of the parameters, after the update",
  "optim/lr": "learning rate of this update: peak_lr * schedule",
  "optim/decay_share": "share of hidden matrices that decay takes in this update; 1 / share: its steps",
  "optim/update_embed": "norm of this update over that of the weights, tables",
  "optim/update_hidden": "norm of this update over that of the weights, hidden matrices",
  "optim/update_readout": "norm of this update over that of the weights, the head",
  "optim/update_vector": "norm of this update over that of the weights, biases and norm scales",
  "optim/kept": "share of the weights of pruned matrices that are left after this update (optim.prune)",
  "perf/tokens_per_sec": "training tokens per second, without evaluation, saving and compilation",
  "perf/mfu": "model FLOP/s (exact convention) over the device's peak",
  "perf/seconds": "wall-clock seconds since data and state were at hand",
  "perf/start_imports": "seconds from the start of the process until all was imported; once a process",
  "perf/start_data": "seconds from there until data, plan and state were at hand",
  "perf/start_compile": "seconds in which the step was traced and compiled, or found compiled",
  "perf/data_wait": "fraction of step time spent waiting for batches",
}
# Where the time before the first step went; in the first record of a process.
START = ("perf/start_imports", "perf/start_data", "perf/start_compile")


def all_metrics() -> dict[str, str]:
  """{key: unit}: those of every objective, and the common ones. `{set}` stands for any evaluation set.

  Where objectives share a name, the first one's unit is said.
  """
  found = {}
  for objective in OBJECTIVES.values():
    for name, metric in objective.train_metrics.items():
      found.setdefault(f"train/{name}", metric.unit)
    for name, metric in objective.eval_metrics.items():
      found.setdefault(f"eval/{{set}}/{name}", metric.unit)
  return found | COMMON


def check_metric(key: str) -> None:
  """ValueError unless the key is among `all_metrics`, `{set}` standing for any name."""
  parts = key.split("/")
  known = all_metrics()
  if key not in known and "/".join([parts[0], "{set}", *parts[2:]]) not in known:
    raise ValueError(
      f"metric {key} is not in lm.runs.metrics; add it to its objective's metrics with its unit"
    )


def watched(cfg: Config) -> Metric:
  """The metric that eval.stop_metric names: early stopping, the best checkpoint and ledgers go by it."""
  return objective_of(cfg.objective).eval_metrics[cfg.eval.stop_metric.rpartition("/")[2]]


def directions(cfg: Config) -> dict[str, str]:
  """{metric: lower | higher} of the evaluations that a run logs and that have a better direction."""
  names = ["val", *(entry.partition("=")[0] for entry in cfg.eval.sets)]
  metrics = objective_of(cfg.objective).eval_metrics
  return {f"eval/{n}/{m}": x.better for n in names for m, x in metrics.items() if x.better}
