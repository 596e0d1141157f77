"""Which settings of an optimizer go together, told before anything compiles."""

from lm.config.errors import ConfigError
from lm.config.schema import Config
from lm.models.parameterization import scales_depth
from lm.objectives.registry import objective_of
from lm.optim.chain import Group, read_groups

MOMENTUM_FREE = ("adagrad", "adafactor", "schedule_free")  # directions with their gradients' signs


def check_optimizer(cfg: Config) -> None:
  """ConfigError for the first setting that the optimizer would take no notice of, or get wrong."""
  groups = read_groups(cfg.optim.groups)
  if cfg.optim.cautious and cfg.optim.name in MOMENTUM_FREE:
    raise ConfigError(
      f"optim.cautious=True: directions of optim.name={cfg.optim.name} have their gradients' signs already; "
      "use False"
    )
  if cfg.optim.hyperball:
    _refuse(cfg, "optim.hyperball=True", _of_hyperball(cfg))
  rows = {
    "schedule_free": _of_schedule_free,
    "prodigy": _of_prodigy,
    "soap": _of_soap,
    "ademamix": _of_ademamix,
    "sophia": _of_sophia,
  }
  if scales_depth(cfg.model.parameterization) and cfg.optim.name in ("sgd", "adagrad"):
    raise ConfigError(
      f"model.parameterization={cfg.model.parameterization}: its rows are of Adam's kin, not of "
      f"optim.name={cfg.optim.name}; use adamw or mup"
    )
  if cfg.optim.name in rows:
    _refuse(cfg, f"optim.name={cfg.optim.name}", rows[cfg.optim.name](cfg, groups))


def _refuse(cfg: Config, who: str, rows: list[tuple[str, object, bool, str, str]]) -> None:
  """The first of (key, value, whether it is wrong, why, remedy)."""
  for key, value, is_wrong, why, remedy in rows:
    if is_wrong:
      raise ConfigError(f"{key}={value}: with {who} {why}; use {remedy}")


def _of_hyperball(cfg: Config) -> list[tuple[str, object, bool, str, str]]:
  optim = cfg.optim
  moved = "the update is not one step along a direction"
  rate = "the rate is a share of a matrix's norm, and needs no multiplier"
  return [
    ("optim.name", optim.name, optim.name in ("schedule_free", "prodigy"), moved, "adamw or muon"),
    ("optim.name", optim.name, optim.name == "adam", "nothing decays in the gradient", "adamw"),
    _standard(cfg, rate),
    (
      "optim.prune",
      optim.prune,
      optim.prune != "none",
      "norms are those of whole matrices",
      "none",
    ),
  ]


def _of_schedule_free(cfg: Config, groups: tuple[Group, ...]):
  optim = cfg.optim
  scheduled = "an average takes the place of a schedule"
  own = [g for g in groups if g.b1 is not None]
  return [
    ("optim.schedule", optim.schedule, optim.schedule != "constant", scheduled, "constant"),
    ("optim.ema_decay", optim.ema_decay, optim.ema_decay is not None, "weights are averaged already", "None"),
    ("optim.b1", optim.b1, optim.b1 == 0, "gradients must lie partly at the average", "0.9"),
    ("optim.groups", ",".join(optim.groups), bool(own), "b1 is that of all weights", "optim.b1"),
    ("optim.prune", optim.prune, optim.prune != "none", "the average would bring weights back", "none"),
  ]  # fmt: skip


def _of_prodigy(cfg: Config, groups: tuple[Group, ...]):
  optim = cfg.optim
  one = "one rate is found for all weights"
  apart = [g for g in groups if (g.lr, g.b1, g.b2) != (1.0, None, None)]
  coupled = optim.decay_coupling == "coupled" and optim.weight_decay != 0
  return [
    ("optim.schedule", optim.schedule, optim.schedule == "plateau", "m(t) is known beforehand", "constant"),
    ("optim.decay_coupling", optim.decay_coupling, coupled, "the rate is not known", "independent"),
    ("optim.groups", ",".join(optim.groups), bool(apart), one, "frozen or weight_decay alone"),
    ("optim.layer_decay", optim.layer_decay, optim.layer_decay != 1, one, "1.0"),
    _standard(cfg, one),
    ("optim.prune", optim.prune, optim.prune != "none", "all weights must be on their way", "none"),
  ]  # fmt: skip


def _of_soap(cfg: Config, groups: tuple[Group, ...]):
  why = "nobody has shown which power of the width the rate goes by"
  return [_standard(cfg, why)]


def _of_sophia(cfg: Config, groups: tuple[Group, ...]):
  apart = [g for g in groups if g.frozen]
  custom = objective_of(cfg.objective).grads is not None
  why = "nobody has shown which power of the width the curvature goes by"
  return [
    ("objective.name", cfg.objective.name, custom, "one scalar loss must have a Hessian", "adamw"),
    ("optim.groups", ",".join(cfg.optim.groups), bool(apart), "the Hessian is of all weights", "adamw"),
    _standard(cfg, why),
  ]  # fmt: skip


def _of_ademamix(cfg: Config, groups: tuple[Group, ...]):
  dtype = cfg.optim.state_dtype
  why = "the slow mean moves by less than the codes are apart"
  return [("optim.state_dtype", dtype, dtype == "int8", why, "bfloat16")]


def _standard(cfg: Config, why: str) -> tuple[str, object, bool, str, str]:
  """A row that is wrong where a parameterization multiplies rates."""
  name, model = cfg.model.parameterization, cfg.model
  moved = model.width != model.base_width
  if scales_depth(name):
    moved |= model.depth != model.base_depth
  return (
    "model.parameterization",
    name,
    name != "standard" and moved,
    why,
    "standard",
  )
