"""What a run can be told: one frozen dataclass for each section of configs/default.py.

configs/default.py holds the value, unit and reason of every key; a field here holds its type and its rule.
Adding a key takes its line there, its field here (or in the section of its family or objective), and its use.
`model` and `objective` are sections that the family and the objective bring along: here stand the fields
that all of them have.
"""

import dataclasses
import functools
import math
import typing

BUDGETS = (
  "train.steps", "train.tokens", "train.tokens_per_param", "train.flops", "train.seconds",
)  # fmt: skip
INT32 = 2**31 - 1
ABSENT = object()  # no neutral value: every run directory holds the key


class KeyRule(typing.NamedTuple):
  """What `field` says of a key beside its type."""

  within: str | None = None
  choices: tuple[str, ...] | None = None
  example: str | None = None
  traced: bool = False
  varies: bool = False
  off: float | None = None
  identity: bool = True
  neutral: object = ABSENT


def field(
  within: str | None = None,
  example: str | None = None,
  choices: tuple[str, ...] | None = None,
  traced: bool = False,
  varies: bool = False,
  off: float | None = None,
  identity: bool = True,
  neutral: object = ABSENT,
):
  """A key of a section and its rule.

  Args:
    within: an interval such as "[0, 1)" or "[1, inf)" that a number must lie in.
    example: a value that does, for the error's remedy.
    choices: the words that may stand here; of a tuple, each.
    traced: an input of the compiled step by this name (lm.config.hparams): another value needs no other
      program.
    varies: stacked runs may differ here though it is no input of the step (it is turned into one, or
      chooses batches).
    off: what stands for None where the key is traced.
    identity: False for what changes where, how fast or how often something happens, not what is computed.
    neutral: the value that leaves every run what it was before the key came: run directories and ledgers
      without the key have it.
  """
  rule = KeyRule(within, choices, example, traced, varies or traced, off, identity, neutral)
  return dataclasses.field(metadata={"rule": rule})


@dataclasses.dataclass(frozen=True)
class DataConfig:
  sources: tuple[str, ...]
  weights: tuple[float, ...] = field(varies=True)
  seed: int | None = field("[0, 2147483647]", "0", varies=True)
  unique_tokens: int | None = field("[1, inf)", "1_000_000", varies=True, neutral=None)
  text_unit: str = field(choices=("file", "line", "paragraph"))
  text_field: str
  source_field: str = field(neutral="source")
  target_field: str = field(neutral="target")
  truncate: bool = field(neutral=False)
  text_format: str = field(
    choices=("auto", "plain", "json", "csv", "tsv", "parquet"), neutral="auto"
  )
  label_field: str | None = field(neutral=None)
  pair_field: str | None = field(neutral=None)
  augment_share: float = field("[0, 1]", "0.5", neutral=0.0)
  augment_ops: tuple[str, ...] = field(neutral=("replace", "insert", "swap", "delete"))
  augment_rate: float = field("(0, 1]", "0.1", neutral=0.1)
  synonyms: str | None = field(neutral=None)
  token_dropout: float = field("[0, 1)", "0.1", neutral=0.0)
  strip_html: bool = field(neutral=False)
  mask_urls: bool = field(neutral=False)
  mask_emails: bool = field(neutral=False)
  remove_stop_words: bool = field(neutral=False)
  stem: bool = field(neutral=False)
  words_only: bool = field(neutral=False)
  separator: str | None = field(neutral=None)
  start: str | None = field(neutral=None)
  tfds_splits: tuple[str, ...]
  tfds_dir: str | None = field(identity=False)
  val_fraction: float = field("(0, 0.5]", "0.05")
  val_split: str = field(choices=("documents", "tail"))
  unicode: str | None = field(choices=("NFC", "NFD", "NFKC", "NFKD"))
  lower_case: bool
  squeeze_spaces: bool
  drop_duplicates: bool
  min_chars: int = field("[0, inf)", "0")
  max_chars: int | None = field("[1, inf)", "100000")
  quality: str | None = field(choices=("gopher", "c4"), neutral=None)
  near_duplicates: float | None = field("(0, 1]", "0.8", neutral=None)
  tokenizer: str
  tokenizer_path: str | None
  vocab_size: int = field("[257, 2147483647]", "2048")
  min_freq: int = field("[1, inf)", "2")
  pack: bool
  cross_documents: bool
  length_curriculum: tuple[str, ...] = field(neutral=())
  reshuffle: bool
  cache_dir: str = field(identity=False)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """What every family has; its own section (lm.models.registry.Family.section) adds the rest."""

  family: str
  seq_len: int = field("[1, inf)", "256")
  width: int = field("[1, inf)", "128")
  vocab_size: int | None = field("[2, 2147483647]", "2048")
  parameterization: str
  base_width: int = field("[1, inf)", "128")
  dtype: str = field(choices=("float32", "bfloat16"))

  if typing.TYPE_CHECKING:  # the fields of the section that model.family chooses

    def __getattr__(self, key: str) -> typing.Any: ...


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
  """What every objective has; its own section (lm.objectives.registry.Objective.section) adds the rest."""

  name: str

  if typing.TYPE_CHECKING:  # the fields of the section that objective.name chooses

    def __getattr__(self, key: str) -> typing.Any: ...


@dataclasses.dataclass(frozen=True)
class OptimConfig:
  name: str
  peak_lr: float = field("[0, inf)", "1e-3", traced=True)
  b1: float = field("[0, 1)", "0.9", traced=True)
  b2: float = field("[0, 1)", "0.95", traced=True)
  eps: float = field("[0, inf)", "1e-8", traced=True)
  b3: float = field("[0, 1)", "0.9999", traced=True, neutral=0.9999)
  slow_weight: float = field("[0, inf)", "8", traced=True, neutral=8.0)
  slow_warmup: float = field("[0, inf)", "1", traced=True, neutral=1.0)
  precondition_every: int = field("[1, inf)", "10", traced=True, neutral=10)
  gamma: float = field("(0, inf)", "0.01", traced=True, neutral=0.01)
  cautious: bool = field(neutral=False)
  hyperball: bool = field(neutral=False)
  weight_decay: float = field("[0, inf)", "1e-4", traced=True)
  decay_coupling: str = field(choices=("independent", "coupled"))
  l1: float = field("[0, inf)", "0", traced=True)
  l2: float = field("[0, inf)", "0", traced=True)
  clip_norm: float | None = field("(0, inf)", "1", traced=True, off=math.inf)
  schedule: str = field()
  warmup_frac: float | None = field("[0, 1]", "0.05", varies=True)
  warmup_tokens: int | None = field("[0, inf)", "100000", varies=True)
  decay_frac: float = field("[0, 1]", "0.2", varies=True)
  final_lr_frac: float = field("[0, 1]", "0.1", traced=True)
  plateau_patience: int = field("[1, inf)", "10")
  plateau_factor: float = field("(0, 1)", "0.5")
  plateau_window: int = field("[1, inf)", "10", neutral=10)
  ema_decay: float | None = field("(0, 1)", "0.999")
  state_dtype: str = field(choices=("float32", "bfloat16", "int8"), neutral="float32")
  init_scale: float = field("(0, inf)", "1", traced=True)
  groups: tuple[str, ...] = field(neutral=())
  prune: str = field(choices=("none", "magnitude", "movement", "soft_movement"), neutral="none")
  prune_keep: float = field("(0, 1]", "0.5", traced=True, neutral=0.5)
  prune_begin: float = field("[0, 1)", "0.1", traced=True, neutral=0.1)
  prune_end: float = field("(0, 1]", "0.7", traced=True, neutral=0.7)
  prune_lr: float = field("[0, inf)", "1e-2", traced=True, neutral=1e-2)
  prune_penalty: float = field("[0, inf)", "10", traced=True, neutral=0.0)
  layer_decay: float = field("(0, 1]", "0.9", neutral=1.0)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  batch_size: int = field("[1, inf)", "16")
  accumulate: int = field("[1, inf)", "1")
  steps: int | None = field("[1, 2147483647]", "1000")
  tokens: int | None = field("[1, inf)", "4_000_000")
  tokens_per_param: float | None = field("(0, inf)", "20")
  flops: float | None = field("(0, inf)", "1e15")
  seconds: float | None = field("(0, inf)", "600", neutral=None)
  tokens_per_sec: float | None = field("(0, inf)", "15_000", identity=False, neutral=None)
  count: str = field(choices=("total", "non_embedding"))
  flops_convention: str = field(choices=("6ND", "6ND_nonembedding", "exact"))
  on_nonfinite: str = field(choices=("stop", "skip", "rewind"), neutral="stop")
  noise_scale: bool = field(neutral=False)
  hang_seconds: float | None = field("(0, inf)", "1800", identity=False, neutral=None)
  init_from: str | None = field(neutral=None)
  init_depth: str | None = field(choices=("stack", "interleave"), neutral=None)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  every_steps: int | None = field("[1, inf)", "100")
  tokens: int | None = field("[1, inf)", "200_000")
  batch_size: int | None = field("[1, inf)", "16")
  sets: tuple[str, ...]
  stop_metric: str
  stop_patience: int | None = field("[1, inf)", "3")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  prompt: str = field(identity=False)
  tokens: int = field("[0, inf)", "64", identity=False)
  temperature: float = field("[0, inf)", "0.8", identity=False)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  every_steps: int | None = field("[1, inf)", "100", identity=False)
  keep: int = field("[1, inf)", "2", identity=False)
  best: bool = field(identity=False)


@dataclasses.dataclass(frozen=True)
class LogConfig:
  every_steps: int = field("[1, inf)", "10", identity=False)
  wandb: str = field(choices=("auto", "online", "offline", "disabled"), identity=False)
  wandb_project: str | None = field(identity=False)
  wandb_group: str | None = field(identity=False)
  mirrors: tuple[str, ...] = field(identity=False, neutral=())


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  replica: int = field(identity=False)
  fsdp: int = field(identity=False)
  expert: int = field(identity=False, neutral=1)
  sequence: int = field(identity=False)
  tensor: int = field(identity=False)


@dataclasses.dataclass(frozen=True)
class Config:
  """Everything a run is told. `model` and `objective` hold the sections of the family and objective named."""

  seed: int = field("[0, 2147483647]", "0", traced=True)
  extensions: tuple[str, ...] = field(neutral=())
  rules: str | None = field(identity=False, neutral=None)
  data: DataConfig
  model: ModelConfig
  objective: ObjectiveConfig
  optim: OptimConfig
  train: TrainConfig
  eval: EvalConfig
  sample: SampleConfig
  checkpoint: CheckpointConfig
  log: LogConfig
  mesh: MeshConfig


SECTIONS: dict[str, type] = {
  name: kind
  for name, kind in typing.get_type_hints(Config).items()
  if dataclasses.is_dataclass(kind)
}


def rules(sections: typing.Mapping[str, type]) -> dict[str, KeyRule]:
  """{"model.width": its KeyRule, ...} for every key of these sections and the top level."""
  found = {name: rule for name, rule in _rules(Config).items() if name not in sections}
  for name, section in sections.items():
    found |= {f"{name}.{key}": rule for key, rule in _rules(section).items()}
  return found


def neutral_values(section: type) -> dict[str, object]:
  """{field: value} of the fields of a section that have a neutral value."""
  return {k: rule.neutral for k, rule in _rules(section).items() if rule.neutral is not ABSENT}


def rules_of(cfg: Config) -> dict[str, KeyRule]:
  """`rules` of the sections that a config has."""
  return rules({name: type(getattr(cfg, name)) for name in SECTIONS})


def flatten(cfg: Config) -> dict[str, object]:
  """{"model.width": 128, ...}."""
  flat = {}
  for name, value in dataclasses.asdict(cfg).items():
    if isinstance(value, dict):
      flat |= {f"{name}.{k}": v for k, v in value.items()}
    else:
      flat[name] = value
  return flat


@functools.cache
def _rules(section: type) -> typing.Mapping[str, KeyRule]:
  """{field: its KeyRule} of one section; ledgers ask for those of every run."""
  return {f.name: f.metadata.get("rule", KeyRule()) for f in dataclasses.fields(section)}
