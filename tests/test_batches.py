"""Batches: every token once an epoch, a pure function of the step, mixtures at their quotas."""

import collections
import itertools

import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.data import order
from lm.data.batches import EvalBatches, TrainBatches
from lm.data.cache import open_corpus
from tests.corpora import line_config, write_docs

L, B = 16, 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("batches")
  docs = write_docs(folder)
  (folder / "more.txt").write_text("\n".join(doc.upper() for doc in docs[:20]))
  return folder


def make(folder, seq_len=L, batch_size=B, **changes):
  cfg = line_config(folder, val_fraction=0.2, **changes)
  return TrainBatches(open_corpus(cfg, quiet=True), cfg, seq_len, batch_size)


def two_sources(folder, **changes):
  return make(folder, sources=(f"text:{folder}/docs.txt", f"text:{folder}/more.txt"), **changes)


def n_rows(store):
  return -(-store.n_tokens // L)


def predicted(batch):
  """The predicted tokens of a batch, row by row."""
  return [
    row[weight > 0].tolist() for row, weight in zip(batch["targets"], batch["weights"], strict=True)
  ]


# --- the shape and content of a batch ---


def test_a_row_is_a_slice_of_the_stream(folder):
  data = make(folder)
  store = data.stores[0]
  stream = np.concatenate([[store.eot_id], store.tokens])
  for step in range(5):
    batch = data.at(step)
    assert {k: (v.dtype.name, v.shape) for k, v in batch.items()} == {
      "tokens": ("int32", (B, L)),
      "targets": ("int32", (B, L)),
      "weights": ("float32", (B, L)),
    }
    for b, (span, *_) in enumerate(data.documents_at(step)):
      start = int(store.offsets[span.document]) + span.start
      assert start % L == 0
      n = min(L, store.n_tokens - start)
      assert batch["tokens"][b, :n].tolist() == stream[start : start + n].tolist()
      assert batch["targets"][b, :n].tolist() == stream[start + 1 : start + n + 1].tolist()
      assert batch["weights"][b].tolist() == [1.0] * n + [0.0] * (L - n)


@pytest.mark.parametrize("pack", [True, False])
def test_unique_tokens_are_a_seeded_subset_that_epochs_repeat(folder, pack):
  """An epoch holds each of its rows once, the next one the same rows otherwise ordered."""
  whole = make(folder, pack=pack)
  rows = whole.n_rows // 3
  tokens = round(rows * whole.epoch_tokens / whole.n_rows)
  numbers = lambda data, epoch: [
    data.rows_at(step)[b].start
    for step, b in ((n // B, n % B) for n in range(epoch * rows, (epoch + 1) * rows))
  ]
  first = make(folder, pack=pack, unique_tokens=tokens, seed=1)
  one, two = numbers(first, 0), numbers(first, 1)
  assert len(set(one)) == rows and sorted(one) == sorted(two) and one != two
  other = numbers(make(folder, pack=pack, unique_tokens=tokens, seed=2), 0)
  assert len(set(other)) == rows and set(other) != set(one)


def test_unique_tokens_are_shared_by_weight_and_cannot_exceed_the_corpus(folder):
  data = two_sources(folder, weights=(3.0, 1.0), unique_tokens=40 * L)
  seen = [collections.Counter(), collections.Counter()]
  for step in range(100):
    for row in data.rows_at(step):
      seen[next(s for s, store in enumerate(data.stores) if store is row.store)][row.start] += 1
  assert [len(s) for s in seen] == [30, 10]
  with pytest.raises(
    ConfigError, match=r"data.unique_tokens=10000000: the corpus has no more than"
  ):
    make(folder, unique_tokens=10_000_000)


def test_unique_tokens_as_many_as_there_are_change_nothing(folder):
  whole = make(folder)
  same = make(folder, unique_tokens=whole.epoch_tokens)
  for step in (0, 7, 300):
    assert (whole.at(step)["tokens"] == same.at(step)["tokens"]).all()


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("seq_len", [1, 7, 16, 5000])
def test_an_epoch_predicts_every_token_once(folder, pack, seq_len):
  data = make(folder, seq_len=seq_len, batch_size=50, pack=pack)
  store = data.stores[0]
  borders = [0, store.n_tokens] if pack else store.offsets.tolist()
  rows = sum(-(-(stop - start) // seq_len) for start, stop in itertools.pairwise(borders))
  steps = range(-(-rows // 50))
  spans = [row for step in steps for row in data.documents_at(step)][:rows]
  seen = collections.Counter(
    (span.document, token)
    for row in spans
    for span in row
    for token in range(span.start, span.stop)
  )
  weights = np.concatenate([data.at(step)["weights"] for step in steps])[:rows]
  assert set(seen.values()) == {1}
  assert len(seen) == weights.sum() == store.n_tokens == data.epoch_tokens


def test_documents_at_tells_what_a_row_predicts(folder):
  for pack in (True, False):
    data = two_sources(folder, pack=pack)
    for step in range(8):
      for row, spans in zip(predicted(data.at(step)), data.documents_at(step), strict=True):
        found = []
        for span in spans:
          store = data.stores[span.source]
          begin, end = store.offsets[span.document : span.document + 2]
          assert 0 <= span.start < span.stop <= end - begin
          found += store.tokens[begin + span.start : begin + span.stop].tolist()
        assert found == row and (pack or len(spans) == 1)


def test_segments_keep_documents_apart(folder):
  length = 240
  data = make(folder, cross_documents=False, seq_len=length)
  several_in_a_short_row = 0
  for step in range(-(-data.stores[0].n_tokens // (length * B))):
    batch, spans = data.at(step), data.documents_at(step)
    for b in range(B):
      expected, positions = [], []
      for number, span in enumerate(spans[b], start=1):
        expected += [number] * (span.stop - span.start)
        positions += range(span.stop - span.start)
      n = len(expected)
      assert batch["segments"][b].tolist() == expected + [0] * (length - n)
      assert batch["positions"][b, :n].tolist() == positions
      several_in_a_short_row += n < length and len(spans[b]) > 2
  assert several_in_a_short_row
  crossing = make(folder, cross_documents=True, seq_len=length).at(0)
  assert "segments" not in crossing and "positions" not in crossing
  assert (crossing["targets"] == data.at(0)["targets"]).all()


def test_rows_of_one_document_begin_with_the_separator(folder):
  data = make(folder, pack=False)
  store = data.stores[0]
  assert max(np.diff(store.offsets)) > 2 * L  # some documents go on in further rows
  for step in range(10):
    batch = data.at(step)
    for b, [span] in enumerate(data.documents_at(step)):
      assert span.start % L == 0
      first = store.eot_id if span.start == 0 else store.tokens[
        store.offsets[span.document] + span.start - 1
      ]  # fmt: skip
      assert batch["tokens"][b, 0] == first


def test_a_start_token_replaces_the_separator_as_input(folder):
  data = make(folder, tokenizer="word", min_freq=1)
  assert data.stores[0].start_id == 0 and data.stores[0].eot_id == 1
  inputs = np.concatenate([data.at(step)["tokens"] for step in range(10)])
  targets = np.concatenate([data.at(step)["targets"] for step in range(10)])
  assert (inputs == 0).any() and not (inputs == 1).any()
  assert (targets == 1).any() and not ((targets == 0) & (inputs != 0)).any()


# --- purity and order ---


def test_a_batch_depends_on_config_seed_and_step_alone(folder):
  forward, backward = make(folder), make(folder)
  batches = [forward.at(step) for step in range(20)]
  for step in reversed(range(20)):
    again = backward.at(step)
    assert all((again[k] == batches[step][k]).all() for k in again)
  other = [make(folder, seed=1).at(step) for step in range(20)]
  assert any((a["tokens"] != b["tokens"]).any() for a, b in zip(batches, other, strict=True))


def test_rows_of_hosts_make_the_batch(folder):
  data = two_sources(folder, weights=(2.0, 1.0))
  for step in range(4):
    whole = data.at(step)
    parts = [data.at(step, slice(start, start + 2)) for start in (0, 2)]
    for key, value in whole.items():
      assert (np.concatenate([part[key] for part in parts]) == value).all()
    assert data.documents_at(step) == data.documents_at(step, slice(0, 2)) + data.documents_at(
      step, slice(2, 4)
    )


def test_batch_size_only_cuts_the_stream_of_examples_elsewhere(folder):
  small, large = make(folder, batch_size=2), make(folder, batch_size=6)
  ours = np.concatenate([small.at(step)["tokens"] for step in range(9)])
  assert (ours == np.concatenate([large.at(step)["tokens"] for step in range(3)])).all()


@pytest.mark.parametrize("reshuffle", [True, False])
def test_every_epoch_has_its_own_order_unless_told_otherwise(folder, reshuffle):
  data = make(folder, batch_size=1, reshuffle=reshuffle)
  rows = n_rows(data.stores[0])
  epochs = [
    [tuple(data.documents_at(epoch * rows + i)[0]) for i in range(rows)] for epoch in range(3)
  ]
  assert [sorted(epoch) for epoch in epochs] == [sorted(epochs[0])] * 3
  assert (epochs[0] == epochs[1]) != reshuffle and epochs[0] != sorted(epochs[0])


def test_far_steps_cost_no_more_than_near_ones(folder):
  data = two_sources(folder, weights=(1.0, 3.0))
  batch = data.at(10**15)
  assert batch["weights"].sum() > 0


# --- permutation and mixture ---


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_permute_is_a_permutation_for_every_key(n):
  index = np.arange(n)
  orders = [order.permute(index, n, order.fold(seed, 0, 0)) for seed in range(4)]
  for permuted in orders:
    assert sorted(permuted.tolist()) == index.tolist()
  if n >= 16:
    assert len({tuple(p.tolist()) for p in orders}) == 4


def test_permute_spreads_evenly():
  n, keys = 10, 20_000
  places = order.permute(np.full(keys, 3), n, order.fold(np.arange(keys), 1, 2))
  counts = np.bincount(places, minlength=n)
  assert ((counts - keys / n) ** 2 / (keys / n)).sum() < 33.7  # chi squared, 9 degrees, p = 1e-4
  neighbours = np.diff(order.permute(np.arange(100_000), 100_000, order.fold(5)))
  assert abs(np.corrcoef(neighbours[:-1], neighbours[1:])[0, 1] + 0.5) < 0.02  # as of white noise


def test_permute_takes_a_key_for_each_index():
  keys = order.fold(0, np.array([0, 0, 1, 1]))
  mixed = order.permute(np.array([0, 1, 0, 1]), 50, keys)
  for epoch in (0, 1):
    alone = order.permute(np.array([0, 1]), 50, order.fold(0, epoch))
    assert mixed[2 * epoch : 2 * epoch + 2].tolist() == alone.tolist()


@pytest.mark.parametrize(
  "weights",
  [[1.0], [1, 1], [3, 1], [0.7, 0.2, 0.1], [1, 1, 1], [90, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
   [0.25, 0.5, 0.0125, 0.2375],
    [0.1972, 0.0139, 0.0002, 0.0149, 0.0002, 0.0003, 0.0039, 0.5092, 0.2234, 0.0112, 0.0255],
   list(range(1, 30)), [9999, 1], [1 / 3, 1 / 7, 1.0]],
)  # fmt: skip
def test_every_prefix_of_a_mixture_is_within_one_of_its_quota(weights):
  weights = np.array(weights, float)
  turns = order.mixture(weights)
  taken = np.cumsum(turns[:, None] == np.arange(len(weights)), axis=0)
  share = taken[-1] / order.PERIOD
  np.testing.assert_allclose(share, weights / weights.sum(), atol=1 / order.PERIOD)
  quota = np.arange(1, order.PERIOD + 1)[:, None] * share
  assert abs(taken - quota).max() < 1


def test_weighted_sources_have_their_own_epochs(folder):
  data = two_sources(folder, weights=(1.0, 3.0), batch_size=40)
  spans = [span for step in range(12) for [span, *_] in data.documents_at(step)]
  assert [sum(s.source == i for s in spans) for i in (0, 1)] == [120, 360]
  for source in (0, 1):
    rows = n_rows(data.stores[source])
    mine = [s for s in spans if s.source == source]
    assert len(mine) > 2 * rows or source == 0
    for first in range(0, len(mine) - rows + 1, rows):  # every epoch has each row once
      assert len(set(mine[first : first + rows])) == rows


def test_without_weights_an_epoch_has_every_example_of_all_sources_once(folder):
  data = two_sources(folder, batch_size=1)
  rows = sum(map(n_rows, data.stores))
  spans = [tuple(data.documents_at(step)[0]) for step in range(2 * rows)]
  assert len(set(spans[:rows])) == rows and set(spans[:rows]) == set(spans[rows:])
  sources = [row[0].source for row in spans[:rows]]
  assert sources != sorted(sources)  # mixed, not one after the other


@pytest.mark.parametrize(
  ("weights", "message"),
  [
    ((1.0,), "must be () or one positive number for each of data.sources; give 2"),
    ((1.0, 0.0), "must be () or one positive"),
    ((1.0, 1e-6), "a source with under 1/10000 of the weight"),
  ],
)
def test_unfit_weights_are_refused(folder, weights, message):
  with pytest.raises(ConfigError) as error:
    two_sources(folder, weights=weights)
  assert str(error.value).startswith(f"data.weights={weights}: ") and message in str(error.value)


# --- evaluation ---


@pytest.fixture(scope="module")
def store(folder):
  return open_corpus(line_config(folder, val_fraction=0.2), quiet=True).val


@pytest.mark.parametrize("stride", [None, 1, 5, L])
@pytest.mark.parametrize("max_tokens", [None, 150])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_evaluation_predicts_every_token_once_in_order(store, stride, max_tokens, batch_size):
  data = EvalBatches(store, L, batch_size, max_tokens, stride)
  targets, weights = [], []
  batches = list(data)
  assert len(batches) == len(data)
  for batch in batches:
    assert all(value.shape == (batch_size, L) for value in batch.values())
    text_BL = batch["weights"] * (batch["targets"] != store.eot_id)
    np.testing.assert_array_equal(batch["text"], text_BL)
    assert batch["text"].dtype == np.float32
    weights += batch["weights"].tolist()
    targets += itertools.chain(*predicted(batch))
  assert targets == store.tokens[: data.n_targets].tolist()
  assert np.sum(weights) == data.n_targets
  assert data.n_targets in store.offsets and data.n_targets <= (max_tokens or store.n_tokens)
  documents = store.offsets.tolist().index(data.n_targets)
  assert data.n_bytes == store.doc_bytes[:documents].sum()
  for row in weights[1 : data.n_windows]:  # the others have context before what counts
    assert np.flatnonzero(row)[0] == L - (stride or L)


def test_what_is_evaluated_does_not_depend_on_how(store):
  def tokens(**how):
    data = EvalBatches(store, max_tokens=200, **how)
    return [token for batch in data for row in predicted(batch) for token in row], data.n_bytes

  first = tokens(seq_len=8, batch_size=3)
  assert len(first[0]) > 100
  for how in ({"seq_len": 300, "batch_size": 1}, {"seq_len": 9, "batch_size": 2, "stride": 4}):
    assert tokens(**how) == first


def test_sliding_windows_see_the_tokens_before_them(store):
  stream = np.concatenate([[store.eot_id], store.tokens])
  for stride in (3, L):
    windows = np.concatenate([b["tokens"] for b in EvalBatches(store, L, 4, stride=stride)])
    for w in range(5):
      assert windows[w].tolist() == stream[w * stride : w * stride + L].tolist()


def test_evaluation_without_crossing_documents(store):
  batch = EvalBatches(store, 200, 1, cross_documents=False).at(0)
  begins = np.flatnonzero(batch["tokens"][0] == store.eot_id)
  assert len(begins) > 2
  assert batch["positions"][0, begins].tolist() == [0] * len(begins)
  assert batch["segments"][0].max() == len(begins)


def test_evaluation_of_too_little_is_refused(store):
  with pytest.raises(ConfigError, match=r"eval.tokens=3: the first document of val has \d+ tokens"):
    EvalBatches(store, L, B, max_tokens=3)
  with pytest.raises(ConfigError, match="stride=17: must be from 1 to seq_len=16; use 8"):
    EvalBatches(store, L, B, stride=17)


def test_a_long_document_may_be_cut_where_its_bytes_are_known(tmp_path, monkeypatch):
  monkeypatch.setattr("lm.data.spool.PIECE_BYTES", 100)
  write_docs(tmp_path)
  cfg = line_config(tmp_path, text_unit="file", val_split="tail", tokenizer="bpe", vocab_size=300)
  corpus = open_corpus(cfg, quiet=True)
  for max_tokens in (150, 300):
    data = EvalBatches(corpus.train[0], L, B, max_tokens)
    assert max_tokens - 100 < data.n_targets <= max_tokens
    decoded = corpus.tokenizer.decode(corpus.train[0].tokens[: data.n_targets].tolist())
    assert len(decoded.encode()) == data.n_bytes
