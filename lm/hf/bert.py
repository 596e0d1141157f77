"""Hugging Face's BERT, heads included: config.json and weights, both ways.

Conversion only renames and transposes: going out and in again gives the same bits. The parameters are those
of lm.models.bert and, beside them, the parts of an objective that the folder has: a head for masked tokens,
for the next sentence, for classes.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lm.config.errors import ConfigError, number_of
from lm.data.labelled import sorted_labels
from lm.data.tagged import bio_tags
from lm.hf.architectures import REQUIRED
from lm.hf.convert import BELONG, State
from lm.hf.reader import Reader
from lm.models.bert import BertConfig
from lm.models.trees import stack_layers

ACTIVATIONS = {  # theirs -> ours; the first name of ours is the one that is written
  "gelu": "gelu_exact",
  "gelu_new": "gelu",
  "gelu_pytorch_tanh": "gelu",
  "relu": "relu",
  "silu": "silu",
}
# ours -> theirs; {} is the layer
NAMES = {
  "embed": "bert.embeddings.word_embeddings",
  "position_embed": "bert.embeddings.position_embeddings",
  "type_embed": "bert.embeddings.token_type_embeddings",
  "embed_norm": "bert.embeddings.LayerNorm",
  "blocks/attn/q": "bert.encoder.layer.{}.attention.self.query",
  "blocks/attn/k": "bert.encoder.layer.{}.attention.self.key",
  "blocks/attn/v": "bert.encoder.layer.{}.attention.self.value",
  "blocks/attn/out": "bert.encoder.layer.{}.attention.output.dense",
  "blocks/attn_norm": "bert.encoder.layer.{}.attention.output.LayerNorm",
  "blocks/mlp/up": "bert.encoder.layer.{}.intermediate.dense",
  "blocks/mlp/down": "bert.encoder.layer.{}.output.dense",
  "blocks/mlp_norm": "bert.encoder.layer.{}.output.LayerNorm",
  "pooler/dense": "bert.pooler.dense",
  "masked_head/dense": "cls.predictions.transform.dense",
  "masked_head/norm": "cls.predictions.transform.LayerNorm",
  "masked_head": "cls.predictions",
  "next_head": "cls.seq_relationship",
  "classifier": "classifier",
  "tagger": "classifier",
  "span_head": "qa_outputs",
}
LEAVES = {"embedding": "weight", "kernel": "weight", "scale": "weight", "bias": "bias"}
OLD = {"gamma": "weight", "beta": "bias"}  # of LayerNorm, in files of the first release
TIED = {  # said twice
  "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
  "cls.predictions.decoder.bias": "cls.predictions.bias",
}
UNREAD = (  # keys of config.json that change nothing of what is computed
  "attention_probs_dropout_prob", "hidden_dropout_prob", "directionality", "pooler_fc_size",
  "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type",
  "tie_word_embeddings", "is_encoder_decoder", "num_labels", "_num_labels", "output_past",
)  # fmt: skip
BUFFER = "bert.embeddings.position_ids"
CLASSES = (  # what a folder with these parts is called; the first that it has all of
  (("masked_head", "next_head"), "BertForPreTraining"),
  (("masked_head",), "BertForMaskedLM"),
  (("classifier",), "BertForSequenceClassification"),
  (("tagger",), "BertForTokenClassification"),
  (("span_head",), "BertForQuestionAnswering"),
  ((), "BertModel"),
)


def from_bert(state: Mapping[str, np.ndarray], hf_config: Mapping[str, Any]) -> tuple[dict, dict]:
  """(fields of BertConfig, float32 parameters in the layout of scanned layers).

  Args:
    state: arrays by the names of any BertFor... class or of BertModel; any float dtype.
    hf_config: the content of config.json, of model_type bert.

  Raises:
    ConfigError: a variant that lm.models.bert lacks; weights that are missing, left over or of another shape.
  """
  fields = bert_fields(hf_config)
  depth = fields["depth"]
  left, params = _plain_names(state), {}
  for key, theirs in TIED.items():
    again, first = left.pop(key, None), left.get(theirs)
    if again is not None and first is not None and not np.array_equal(again, first):
      raise ConfigError(
        f"{key}: is another array than {theirs}, and a bert here has one for both; choose another model"
      )
  tags = _tags(hf_config)
  for name, theirs in NAMES.items():
    if name == ("classifier" if tags else "tagger"):
      continue
    layers = range(depth) if name.startswith("blocks/") else (None,)
    for leaf, word in LEAVES.items():
      found = [left.pop(f"{theirs.format(i)}.{word}", None) for i in layers if _has(name, leaf)]
      if not found or (all(a is None for a in found) and name in _HEADS):
        continue
      if any(a is None for a in found):
        layer = next(i for i, a in zip(layers, found, strict=True) if a is None)
        raise ConfigError(f"{theirs.format(layer)}.{word}: the weights lack it; {BELONG}")
      wanted = _shape(name, leaf, fields)
      for array in found:
        if wanted is not None and array.shape != wanted:
          raise ConfigError(
            f"{theirs.format(0)}.{word}={array.shape}: config.json says {wanted}; {BELONG}"
          )
      arrays = [np.asarray(a, np.float32) for a in found]
      arrays = [a.T for a in arrays] if leaf == "kernel" else arrays
      node = params
      for part in name.split("/"):
        node = node.setdefault(part, {})
      node[leaf] = np.stack(arrays) if name.startswith("blocks/") else arrays[0]
  names, order = labels_of(hf_config), classes_of(hf_config)
  for part in {"classifier", "tagger"} & set(params) if names else ():
    classes = params[part]["bias"].size
    if len(order) != classes or len(names) != classes:
      raise ConfigError(
        f"id2label: must name {number_of(classes, 'class')}, each by another word; {BELONG}"
      )
    index = [names.index(name) for name in order]
    params[part] = {leaf: array[..., index] for leaf, array in params[part].items()}
  if left:
    raise ConfigError(
      f"{min(left)}: is no weight of this bert; {len(left)} such are left over; {BELONG}"
    )
  return fields, params


_HEADS = ("pooler/dense", "masked_head/dense", "masked_head/norm", "masked_head", "next_head")
_HEADS += ("classifier", "tagger", "span_head")


def labels_of(hf_config: Mapping[str, Any]) -> list[str]:
  """Names of the classes in the order of the classifier's outputs; [] where config.json has none."""
  names = hf_config.get("id2label") or {}
  if not isinstance(names, Mapping) or not all(str(key).isdecimal() for key in names):
    raise ConfigError("id2label: must be an object of numbers and names; check config.json")
  return [str(names[key]) for key in sorted(names, key=int)]


def classes_of(hf_config: Mapping[str, Any]) -> list[str]:
  """Names of the classes in the order that they have here; [] where config.json has none.

  Tags of names that are O and, of each type, both B-TYPE and I-TYPE, go as in lm.data.tagged; all others as
  in lm.data.labelled.sorted_labels.
  """
  names = set(labels_of(hf_config))
  return bio_tags(names) if _are_bio(hf_config) else sorted_labels(names)


def _are_bio(hf_config: Mapping[str, Any]) -> bool:
  names = set(labels_of(hf_config))
  return _tags(hf_config) and len(names) > 1 and set(bio_tags(names)) == names


def _tags(hf_config: Mapping[str, Any]) -> bool:
  """Whether the classes are of words."""
  return "BertForTokenClassification" in (hf_config.get("architectures") or ())


def settings_of(
  params: Mapping[str, Any], hf_config: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
  """(config file of a run that such parameters are of, what it must be told beside the model)."""
  exact = {"model.dtype": "float32"}
  if "tagger" in params:
    return "configs/tagging.py:base", exact | {
      "objective.classes": params["tagger"]["bias"].size,
      "objective.scheme": "bio" if _are_bio(hf_config) else "plain",
    }
  if "span_head" in params:
    return "configs/squad.py:base", exact | {
      "objective.question_tokens": min(64, hf_config["max_position_embeddings"] // 4)
    }
  if "classifier" not in params:
    return "configs/bert.py:base", exact | {"objective.next_sentence": "next_head" in params}
  if params["classifier"]["bias"].size == 1:
    return "configs/regression.py:base", exact
  return "configs/classify.py:base", exact | {
    "objective.classes": params["classifier"]["bias"].size,
    "objective.pooling": "pooler" if "pooler" in params else "first",
  }


def _has(name: str, leaf: str) -> bool:
  """Whether the module of that name has such a leaf."""
  if name in ("embed", "position_embed", "type_embed"):
    return leaf == "embedding"
  if name == "masked_head":
    return leaf == "bias"
  return leaf in (("scale", "bias") if name.endswith("norm") else ("kernel", "bias"))


def _shape(name, leaf, fields):
  """What config.json says of an array as it is there; None for heads, which say it themselves."""
  width, mlp_dim = fields["width"], fields["mlp_dim"]
  tables = {"embed": "vocab_size", "position_embed": "seq_len", "type_embed": "types"}
  if name in tables:
    return (fields[tables[name]], width)
  if not name.startswith("blocks/") and name != "embed_norm":
    return None
  shapes = {"blocks/mlp/up": (mlp_dim, width), "blocks/mlp/down": (width, mlp_dim)}
  shape = shapes.get(name, (width, width))
  return shape if leaf == "kernel" else shape[:1]


def _plain_names(state):
  """The arrays with `bert.` before what belongs to the encoder, under today's names."""
  bare = not any(name.startswith("bert.") for name in state)
  found = {}
  for name, array in state.items():
    if bare and re.match(r"(embeddings|encoder|pooler)\.", name):
      name = f"bert.{name}"
    module, _, leaf = name.rpartition(".")
    name = f"{module}.{OLD.get(leaf, leaf)}"
    if name != BUFFER:
      found[name] = np.asarray(array)
  return found


def bert_fields(hf_config: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of BertConfig that a config.json sets.

  Raises:
    ConfigError: a key that is missing, or a value that lm.models.bert cannot express.
  """

  reader = Reader(hf_config)
  count = lambda key, absent=REQUIRED: reader.take(key, "count", absent)
  act = reader.take("hidden_act", "name", "gelu")
  if act not in ACTIVATIONS:
    raise ConfigError(
      f"hidden_act={act}: must be one of {', '.join(ACTIVATIONS)}; choose another model"
    )
  refused = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
  }
  for key, only in refused.items():
    if reader.left.pop(key, only) not in (only, None):
      raise ConfigError(f"{key}={hf_config[key]}: only {only} is read; choose another model")
  width = count("hidden_size")
  fields = {
    "family": "bert",
    "seq_len": count("max_position_embeddings"),
    "width": width,
    "vocab_size": count("vocab_size"),
    "depth": count("num_hidden_layers"),
    "heads": count("num_attention_heads"),
    "mlp_dim": count("intermediate_size"),
    "types": count("type_vocab_size", 2),
    "activation": ACTIVATIONS[act],
    "norm_eps": reader.take("layer_norm_eps", "number", 1e-12),
    "base_width": width,
    "parameterization": "standard",
  }
  reader.done("bert", UNREAD)
  return fields


def to_bert(
  params: Mapping[str, Any], cfg: BertConfig, labels: Sequence[str] = ()
) -> tuple[State, dict[str, Any]]:
  """(float32 arrays by Hugging Face's names, content of config.json): the inverse of from_bert.

  Args:
    params: of either layout, scanned or not, with the parts of an objective.
    labels: names of the classes, where there is a classifier.

  Raises:
    ConfigError: a parameterization whose multipliers no config.json holds; a classifier without a pooler.
  """
  if cfg.parameterization != "standard" and cfg.width != cfg.base_width:
    raise ConfigError(
      f"model.parameterization={cfg.parameterization}: multiplies outputs at model.width={cfg.width}, which "
      "no BERT folder can say; train with standard to export"
    )
  stacked = params if cfg.scan_layers else stack_layers(params)
  state: State = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(stacked):
    *words, last = (part.key for part in path)
    name, array = "/".join(words), np.asarray(leaf, np.float32)
    if name not in NAMES:
      raise ConfigError(f"{name}/{last}: no BERT folder holds such weights; export another run")
    if last == "kernel":
      array = array.swapaxes(-1, -2)
    theirs = f"{NAMES[name]}.{LEAVES[last]}"
    if name.startswith("blocks/"):
      state |= {theirs.format(i): array[i] for i in range(cfg.depth)}
    else:
      state[theirs] = array
  if "masked_head" in stacked:
    state |= {again: state[first].copy() for again, first in TIED.items()}
  what = next(called for parts, called in CLASSES if all(part in stacked for part in parts))
  if what == "BertModel":
    state = {name.removeprefix("bert."): array for name, array in state.items()}
  if what == "BertForSequenceClassification" and "pooler" not in stacked:
    raise ConfigError(
      "objective.pooling=first|mean|last: a BertForSequenceClassification of transformers reads BERT's "
      "pooler, which this run lacks; train with objective.pooling=pooler to export"
    )
  act = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == cfg.activation)
  hf_config = {
    "model_type": "bert",
    "architectures": [what],
    "vocab_size": cfg.vocab_size,
    "hidden_size": cfg.width,
    "num_hidden_layers": cfg.depth,
    "num_attention_heads": cfg.heads,
    "intermediate_size": cfg.mlp_dim,
    "max_position_embeddings": cfg.seq_len,
    "type_vocab_size": cfg.types,
    "hidden_act": act,
    "layer_norm_eps": cfg.norm_eps,
    "hidden_dropout_prob": cfg.dropout,
    "attention_probs_dropout_prob": 0.0,
    "position_embedding_type": "absolute",
    "tie_word_embeddings": True,
  }
  if what == "BertForSequenceClassification" and stacked["classifier"]["bias"].size == 1:
    labels = labels or ["LABEL_0"]  # a number is one class to transformers
    hf_config["problem_type"] = "regression"
  if labels:
    hf_config["id2label"] = {str(i): label for i, label in enumerate(labels)}
    hf_config["label2id"] = {label: i for i, label in enumerate(labels)}
  return {name: np.ascontiguousarray(array) for name, array in state.items()}, hf_config
