"""The kinds of batches there are: one row each.

A kind turns data on disk into batches that are pure functions of (data config, seed, step). Objectives name
the kind they read; nothing else knows what is in a batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lm.config.errors import ConfigError
from lm.config.schema import Config
from lm.data import (
  cache,
  chat,
  contexts,
  cooccurrences,
  labelled,
  masked,
  pairs,
  questions,
  records,
  sentences,
  spans,
  streams,
  tagged,
)
from lm.data.batches import EvalBatches, TrainBatches, mean_row
from lm.data.tokenizers import known_vocab_size


class Array(NamedTuple):
  """One array of a batch; `axes` are names of ACTIVATION_RULES (lm.devices.sharding), the first "batch"."""

  dtype: type
  shape: tuple[int, ...]
  axes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Kind:
  """The row of a kind of batch.

  Attributes:
    unit: what budgets and the record count, in the plural: "tokens", "pairs".
    open: config -> the data, built on disk first where it is missing. It has `vocab_size`, `tokenizer`
      (saved with the run) and `n_units` of one epoch.
    vocab_size: config -> entries of the tokenizer, or None where the data must be opened to know.
    describe: data -> what run.json records: fingerprint, tokenizer, stores {name: {"fingerprint", ...}}.
    arrays: (resolved config, whether for training) -> {name: Array} of one batch.
    train: (data, resolved config) -> batches; `at(step, rows)` gives the arrays of those rows.
    held_out: data -> the evaluation set "val".
    extra_set: (data, "source", or "name=source" as of eval.sets) -> an evaluation set of it.
    evaluate: (set, resolved config, max units or None, stride or None) -> batches with `len`,
      `batch_size`, `at(number, rows)` and `facts` {name: number} for the objective's scores.
    units_per_row: config -> units that a row has room for.
    mean_units: (data, config) -> units that a row holds on average; None where that is units_per_row.
    full_rows: config -> whether mean_units is None whatever the data holds (but for each source's last row).
    check: raises ConfigError for a config that makes no sense.
    any_text: whether `extra_set` takes any text, such as "python".
    labelled: whether its records have labels; the keys of data.* for such are refused where not.
    untrained: (config, tokenizer, labels) -> data that `extra_set` takes, without any of its own: of a model
      that came from elsewhere; None where `open` needs no more than the config.
  """

  unit: str
  open: Callable[[Config], Any]
  vocab_size: Callable[[Config], int | None]
  describe: Callable[[Any], dict]
  arrays: Callable[[Config, bool], Mapping[str, Array]]
  train: Callable[[Any, Config], Any]
  held_out: Callable[[Any], Any]
  extra_set: Callable[[Any, str], Any]
  evaluate: Callable[[Any, Config, int | None, int | None], Any]
  units_per_row: Callable[[Config], float]
  mean_units: Callable[[Any, Config], float | None] = lambda data, cfg: None
  full_rows: Callable[[Config], bool] = lambda cfg: False
  check: Callable[[Config], None] = lambda cfg: None
  any_text: bool = False
  labelled: bool = False
  untrained: Callable[[Config, Any, tuple[str, ...]], Any] | None = None

  def sets(self, data: Any, cfg: Config) -> dict[str, Any]:
    """{name: evaluation set}: the held-out one, "val", and those of eval.sets."""
    further = {entry.partition("=")[0]: self.extra_set(data, entry) for entry in cfg.eval.sets}
    return {"val": self.held_out(data)} | further


def rows_of(cfg: Config, training: bool) -> int:
  """Rows of a batch of a resolved config."""
  rows = cfg.train.batch_size if training else cfg.eval.batch_size
  assert rows is not None
  return rows


def token_arrays(cfg: Config, training: bool) -> dict[str, Array]:
  """tokens, targets, weights [B, L]; segments (0 = padding) and positions where rows are not packed whole.

  In evaluation also text: the weights without those of separators.
  """
  rows = rows_of(cfg, training)
  array = lambda dtype: Array(dtype, (rows, cfg.model.seq_len), ("batch", "length"))
  found = {"tokens": array(np.int32), "targets": array(np.int32), "weights": array(np.float32)}
  if not training:
    found["text"] = array(np.float32)
  if not (cfg.data.pack and cfg.data.cross_documents):
    found |= {"segments": array(np.int32), "positions": array(np.int32)}
  return found


def _train_tokens(corpus: cache.Corpus, cfg: Config) -> TrainBatches:
  return TrainBatches(corpus, cfg.data, cfg.model.seq_len, cfg.train.batch_size)


def _eval_tokens(store, cfg: Config, max_tokens: int | None, stride: int | None) -> EvalBatches:
  """Evaluation batches whose rows cross documents if those of training do."""
  across = cfg.data.pack and cfg.data.cross_documents
  return EvalBatches(store, cfg.model.seq_len, cfg.eval.batch_size, max_tokens, stride, across)


def _mean_tokens(corpus: cache.Corpus, cfg: Config) -> float | None:
  """None where rows are full but for the last one of a source, to within 1 %."""
  mean = mean_row(corpus.train, cfg.model.seq_len, cfg.data.pack)
  return None if mean > 0.99 * cfg.model.seq_len else mean


TOKENS = Kind(
  unit="tokens",
  open=lambda cfg: cache.open_corpus(cfg.data),
  vocab_size=lambda cfg: known_vocab_size(cfg.data),
  describe=cache.describe,
  arrays=token_arrays,
  train=_train_tokens,
  held_out=lambda corpus: corpus.val,
  extra_set=lambda corpus, source: corpus.extra(source),
  any_text=True,
  evaluate=_eval_tokens,
  units_per_row=lambda cfg: cfg.model.seq_len,
  mean_units=_mean_tokens,
  full_rows=lambda cfg: cfg.data.pack,
)


def text_pair_arrays(cfg: Config, training: bool) -> dict[str, Array]:
  """The arrays of lm.data.pairs.PairBatches; `model` has a target_len."""
  rows = rows_of(cfg, training)
  model: Any = cfg.model
  lengths = {"source": model.seq_len, "target": model.target_len}
  array = lambda side, dtype=np.int32: Array(dtype, (rows, lengths[side]), ("batch", "length"))
  names = ("source", "source_segments", "source_positions")
  found = {name: array("source") for name in names}
  found |= {name: array("target") for name in ("tokens", "targets", "segments", "positions")}
  return found | {"weights": array("target", np.float32)}


def _pair_room(cfg: Config) -> float:
  model: Any = cfg.model
  return model.seq_len + (model.target_len or model.seq_len)


def _eval_pairs(store, cfg: Config, max_tokens: int | None, stride: int | None):
  if stride is not None:
    raise ConfigError(f"stride={stride}: pairs have no windows; leave it out")
  return pairs.PairEval(store, cfg, max_tokens)


def _eval_spans(each, cfg: Config, max_tokens: int | None, stride: int | None):
  if stride is not None:
    raise ConfigError(f"stride={stride}: rows with spans taken out do not overlap; leave it out")
  return spans.SpanEval(each.store, cfg, each.tokenizer, max_tokens)


TEXT_PAIRS = Kind(
  unit="tokens",  # of source and target
  open=lambda cfg: pairs.open_pairs(cfg.data),
  vocab_size=lambda cfg: known_vocab_size(cfg.data),
  describe=pairs.describe_pairs,
  arrays=text_pair_arrays,
  train=pairs.PairBatches,
  held_out=lambda corpus: corpus.val,
  extra_set=lambda corpus, source: corpus.extra(source),
  evaluate=_eval_pairs,
  units_per_row=_pair_room,
  mean_units=pairs.mean_units,
  check=pairs.check_pairs,
)
SPANS = Kind(
  unit="tokens",  # of source and target
  open=spans.open_spans,
  vocab_size=spans.vocab_size,
  describe=lambda data: cache.describe(data.corpus),
  arrays=text_pair_arrays,
  train=spans.SpanBatches,
  held_out=lambda data: spans.SpanSet(data.corpus.val, data.tokenizer),
  extra_set=lambda data, source: spans.SpanSet(data.corpus.extra(source), data.tokenizer),
  any_text=True,
  evaluate=_eval_spans,
  units_per_row=spans.units_per_row,
  check=spans.check_spans,
)


def _stream_arrays(cfg: Config, training: bool) -> dict[str, Array]:
  """As of tokens; and fresh [B], 1 where a row does not go on from the one before it in its stream."""
  found = token_arrays(cfg, training)
  rows = found["tokens"].shape[0]
  return {**found, "fresh": Array(np.float32, (rows,), ("batch",))}


def _train_streams(corpus: cache.Corpus, cfg: Config) -> streams.StreamBatches:
  return streams.StreamBatches(corpus.train, cfg.data, cfg.model.seq_len, cfg.train.batch_size)


def _eval_streams(store, cfg: Config, max_tokens: int | None, stride: int | None):
  if stride is not None:
    raise ConfigError(f"stride={stride}: streams carry their context along; leave it out")
  rows = cfg.eval.batch_size or cfg.train.batch_size
  across = cfg.data.cross_documents
  return streams.EvalStreams(store, cfg.model.seq_len, rows, max_tokens, across)


# Each row of a batch goes on where the same row of the batch before it ended.
STREAMS = dataclasses.replace(
  TOKENS,
  arrays=_stream_arrays,
  train=_train_streams,
  evaluate=_eval_streams,
  mean_units=lambda corpus, cfg: None,
  check=streams.check,
)


def masked_arrays(cfg: Config, training: bool) -> dict[str, Array]:
  """tokens and segments [B, L]; places, targets and weights [B, P] of what is guessed; for pairs also types
  [B, L] and other [B] (lm.data.masked)."""
  rows = rows_of(cfg, training)
  of_row = Array(np.int32, (rows, cfg.model.seq_len), ("batch", "length"))
  guessed = Array(np.int32, (rows, masked.most_hidden(cfg)), ("batch", "replicated"))
  found = {"tokens": of_row, "segments": of_row, "places": guessed, "targets": guessed}
  found["weights"] = guessed._replace(dtype=np.float32)
  if cfg.objective.next_sentence:
    found |= {"types": of_row, "other": Array(np.int32, (rows,), ("batch",))}
  return found


MASKED = Kind(
  unit="tokens",
  open=masked.open_masked,
  vocab_size=masked.masked_vocab_size,
  describe=masked.describe_masked,
  arrays=masked_arrays,
  train=masked.MaskedBatches,
  held_out=lambda data: masked.MaskedSet(data.corpus.val, data.marks),
  extra_set=lambda data, source: masked.MaskedSet(data.corpus.extra(source), data.marks),
  any_text=True,
  evaluate=masked.MaskedEval,
  units_per_row=masked.room,
  mean_units=masked.mean_masked,
  full_rows=lambda cfg: cfg.data.pack and not cfg.objective.next_sentence,
  check=masked.check_masked,
)


def context_arrays(cfg: Config, training: bool) -> dict[str, Array]:
  """words, segments, windows [B, L], negatives [B, N], read [B] (lm.data.contexts)."""
  rows = rows_of(cfg, training)
  words = Array(np.int32, (rows, cfg.model.seq_len), ("batch", "length"))
  drawn = Array(np.int32, (rows, cfg.objective.drawn), ("batch", "replicated"))
  found = dict.fromkeys(("words", "segments", "windows"), words) | {"negatives": drawn}
  return {**found, "read": Array(np.float32, (rows,), ("batch",))}


CONTEXTS = Kind(
  unit="words",
  open=contexts.open_words,
  vocab_size=lambda cfg: known_vocab_size(cfg.data),
  describe=lambda words: cache.describe(words.corpus),
  arrays=context_arrays,
  train=contexts.train_contexts,
  held_out=lambda words: contexts.WordSet(words.corpus.val, words),
  extra_set=lambda words, source: contexts.WordSet(words.corpus.extra(source), words),
  any_text=True,
  evaluate=contexts.eval_contexts,
  units_per_row=lambda cfg: cfg.model.seq_len,
  mean_units=contexts.mean_words,
  check=contexts.check_rows,
)


def cooccurrence_arrays(cfg: Config, training: bool) -> dict[str, Array]:
  """left, right, count and weights [B] (lm.data.cooccurrences)."""
  shape, axes = (rows_of(cfg, training),), ("batch",)
  words, numbers = Array(np.int32, shape, axes), Array(np.float32, shape, axes)
  return {"left": words, "right": words, "count": numbers, "weights": numbers}


COOCCURRENCES = Kind(
  unit="pairs",
  open=cooccurrences.open_cooccurrences,
  vocab_size=lambda cfg: known_vocab_size(cfg.data),
  describe=lambda pairs: cache.describe(pairs.corpus),
  arrays=cooccurrence_arrays,
  train=cooccurrences.train_cooccurrences,
  held_out=cooccurrences.PairSet,
  extra_set=cooccurrences.no_other_set,
  evaluate=cooccurrences.eval_cooccurrences,
  units_per_row=lambda cfg: 1,
  check=cooccurrences.check_cooccurrences,
)


def labelled_arrays(cfg: Config, training: bool, label: type = np.int32) -> dict[str, Array]:
  """tokens and segments [B, L]; types [B, L] of pairs; label and weights [B] (lm.data.labelled)."""
  rows = rows_of(cfg, training)
  of_row = Array(np.int32, (rows, cfg.model.seq_len), ("batch", "length"))
  found = {"tokens": of_row, "segments": of_row} | (
    {"types": of_row} if labelled.has_types(cfg) else {}
  )
  found["label"] = Array(label, (rows,), ("batch",))
  return found | {"weights": Array(np.float32, (rows,), ("batch",))}


LABELLED = Kind(
  unit="tokens",
  open=labelled.open_labelled,
  vocab_size=lambda cfg: known_vocab_size(cfg.data),
  describe=records.describe_records,
  arrays=labelled_arrays,
  train=labelled.LabelledBatches,
  held_out=lambda data: labelled.LabelledSet(data.val, data.tokenizer),
  extra_set=lambda data, source: labelled.LabelledSet(data.extra(source), data.tokenizer),
  evaluate=labelled.LabelledEval,
  units_per_row=lambda cfg: cfg.model.seq_len,
  mean_units=labelled.mean_labelled,
  check=labelled.check_labelled,
  labelled=True,
  untrained=functools.partial(records.untrained, labelled.CLASSES),
)
# Labels that are numbers.
GRADED = dataclasses.replace(
  LABELLED,
  open=labelled.open_graded,
  untrained=lambda cfg, tokenizer, labels: records.untrained(labelled.GRADES, cfg, tokenizer, None),
  arrays=functools.partial(labelled_arrays, label=np.float32),
)


def tagged_arrays(cfg: Config, training: bool) -> dict[str, Array]:
  """tokens and segments [B, L]; places, label and weights [B, W] of words (lm.data.tagged)."""
  rows = rows_of(cfg, training)
  of_row = Array(np.int32, (rows, cfg.model.seq_len), ("batch", "length"))
  of_word = Array(np.int32, (rows, tagged.most_words(cfg)), ("batch", "replicated"))
  found = {"tokens": of_row, "segments": of_row, "places": of_word, "label": of_word}
  return found | {"weights": of_word._replace(dtype=np.float32)}


TAGGED = Kind(
  unit="tokens",
  open=tagged.open_tagged,
  vocab_size=lambda cfg: known_vocab_size(cfg.data),
  describe=records.describe_records,
  arrays=tagged_arrays,
  train=tagged.TaggedBatches,
  held_out=lambda data: tagged.TaggedSet(data.val, data.tokenizer),
  extra_set=lambda data, source: tagged.TaggedSet(data.extra(source), data.tokenizer),
  evaluate=tagged.TaggedEval,
  units_per_row=lambda cfg: cfg.model.seq_len,
  mean_units=tagged.mean_tagged,
  check=tagged.check_tagged,
  labelled=True,
  untrained=functools.partial(records.untrained, tagged.FORM),
)


def question_arrays(cfg: Config, training: bool) -> dict[str, Array]:
  """tokens, segments, types [B, L]; first, last, weights [B]; in evaluation also may [B, L], question and
  offset [B], firsts and lasts [B, ANSWERS] (lm.data.questions)."""
  rows = rows_of(cfg, training)
  of_row = Array(np.int32, (rows, cfg.model.seq_len), ("batch", "length"))
  one = Array(np.int32, (rows,), ("batch",))
  names = ("tokens", "segments", *(["types"] if questions.has_types(cfg) else []))
  found = dict.fromkeys(names, of_row) | {"first": one, "last": one}
  found["weights"] = one._replace(dtype=np.float32)
  if not training:
    answers = Array(np.int32, (rows, questions.ANSWERS), ("batch", "replicated"))
    found |= {"may": of_row, "question": one, "offset": one, "firsts": answers, "lasts": answers}
  return found


QUESTIONS = Kind(
  unit="tokens",
  open=questions.open_questions,
  vocab_size=lambda cfg: known_vocab_size(cfg.data),
  describe=records.describe_records,
  arrays=question_arrays,
  train=questions.QuestionBatches,
  held_out=lambda data: questions.QuestionSet(data.val, data.tokenizer),
  extra_set=lambda data, source: questions.QuestionSet(data.extra(source), data.tokenizer),
  evaluate=questions.QuestionEval,
  units_per_row=lambda cfg: cfg.model.seq_len,
  mean_units=questions.mean_question,
  check=questions.check_questions,
  labelled=True,
  untrained=functools.partial(records.untrained, questions.FORM),
)

SENTENCES = dataclasses.replace(
  TOKENS,
  arrays=lambda cfg, training: {
    name: token_arrays(cfg, training)[name] for name in ("tokens", "targets", "weights")
  },
  train=lambda corpus, cfg: sentences.TrainSentences(corpus, cfg),
  evaluate=sentences.eval_sentences,
  check=sentences.check_sentences,
)


def chat_arrays(cfg: Config, training: bool) -> dict[str, Array]:
  """As of tokens with documents apart; weights are of answers alone (lm.data.chat)."""
  array = lambda dtype: Array(
    dtype, (rows_of(cfg, training), cfg.model.seq_len), ("batch", "length")
  )
  found = dict.fromkeys(("tokens", "targets", "segments", "positions"), array(np.int32))
  names = ("weights",) if training else ("weights", "text")
  return found | dict.fromkeys(names, array(np.float32))


CHAT = Kind(
  unit="tokens",
  open=chat.open_chats,
  vocab_size=lambda cfg: known_vocab_size(cfg.data),
  describe=chat.describe,
  arrays=chat_arrays,
  train=chat.train_chats,
  held_out=lambda chats: chat.ChatSet(chats, chats.val),
  extra_set=chat.extra_chats,
  evaluate=chat.eval_chats,
  units_per_row=lambda cfg: cfg.model.seq_len,
  mean_units=chat.mean_answered,
  check=chat.check_chats,
)

KINDS: dict[str, Kind] = {
  "tokens": TOKENS,
  "pairs": TEXT_PAIRS,
  "spans": SPANS,
  "streams": STREAMS,
  "masked": MASKED,
  "contexts": CONTEXTS,
  "cooccurrences": COOCCURRENCES,
  "labelled": LABELLED,
  "graded": GRADED,
  "tagged": TAGGED,
  "questions": QUESTIONS,
  "sentences": SENTENCES,
  "chat": CHAT,
}
