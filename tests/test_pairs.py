"""Pairs and spans: what is read, which rows there are, what budgets count, what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from configs.ul2 import DENOISERS
from lm.config.errors import ConfigError
from lm.data import order, pairs, spans
from lm.data.kinds import KINDS
from lm.setup.load import load_config
from lm.setup.resolve import resolve

PAIRS = [(f"a man {i}", f"ein Mann {i}, {'x' * (i % 7)}") for i in range(60)]


@pytest.fixture
def made(tmp_path):
  """make(changes) -> (resolved config, corpus) of pairs."""

  def make(**changes):
    settings = {key.replace("__", "."): value for key, value in changes.items()}
    settings = {
      "data.cache_dir": str(tmp_path / "cache"), "data.val_fraction": 0.2, "model.seq_len": 48,
      "train.batch_size": 4, **settings,
    }  # fmt: skip
    cfg = load_config("configs/transformer.py", settings)
    corpus = pairs.open_pairs(cfg.data, quiet=True)
    return resolve(cfg, corpus.vocab_size, 1, pairs.mean_units(corpus, cfg)), corpus

  return make


def parallel(folder, rows=PAIRS):
  for side, name in enumerate(("en", "de")):
    (folder / name).write_text("".join(f"{pair[side]}\n" for pair in rows))
  return f"parallel:{folder / 'en'}+{folder / 'de'}"


def texts(store, tokenizer):
  """The pairs of a store as texts."""
  found = []
  for i in range(store.n_pairs):
    each = [s.tokens[s.offsets[i] : s.offsets[i + 1]] for s in store]
    assert all(ids[-1] == tokenizer.eot_id for ids in each)
    found.append(tuple(tokenizer.decode(list(map(int, ids[:-1]))) for ids in each))
  return found


def test_the_record_names_a_further_set_by_what_it_holds(made, tmp_path):
  (tmp_path / "t.tsv").write_text("source\ttarget\n" + "a b\tc d\n" * 3)
  sets = (f"more=text:{tmp_path}/t.tsv",)
  cfg, corpus = made(data__sources=parallel(tmp_path), eval__sets=sets)
  more = KINDS["pairs"].sets(corpus, cfg)["more"]
  assert KINDS["pairs"].describe(corpus)["sets"] == {"more": more.fingerprint}


def test_another_size_of_the_tokenizer_is_another_corpus(made, tmp_path):
  draw = np.random.default_rng(0).integers
  word = lambda: "".join(chr(97 + i) for i in draw(0, 26, 6))
  spec = parallel(tmp_path, [(word(), word()) for _ in range(300)])
  sizes = (260, 280)
  trained = {"data__tokenizer": "wordpiece", "data__sources": spec}
  found = [made(**trained, data__vocab_size=size)[1].vocab_size for size in sizes]
  assert found == list(sizes)


def test_every_format_gives_the_same_pairs(made, tmp_path):
  """Two files side by side, TSV, CSV and JSON lines, whose fields data.source_field and target_field name."""
  (tmp_path / "t.tsv").write_text("id\ten\tde\n" + "".join(f"1\t{a}\t{b}\n" for a, b in PAIRS))
  (tmp_path / "t.csv").write_text("de,en\n" + "".join(f'"{b}",{a}\n' for a, b in PAIRS))
  lines = [{"x": {"en": a.split(" ")}, "de": [b, "other"]} for a, b in PAIRS]
  (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  fields = {"data__source_field": "en", "data__target_field": "de"}
  deep = {"data__source_field": "x.en", "data__target_field": "de[0]"}
  specs = [(parallel(tmp_path), {})]
  specs += [(f"text:{tmp_path}/t.tsv", fields), (f"text:{tmp_path}/t.csv", fields)]
  specs += [(f"text:{tmp_path}/t.jsonl", deep)]
  found = []
  for spec, changes in specs:
    _, corpus = made(data__sources=(spec,), **changes)
    both = texts(corpus.train[0], corpus.tokenizer), texts(corpus.val, corpus.tokenizer)
    assert sorted(both[0] + both[1]) == sorted(PAIRS) and both[1]
    found.append(both)
  assert all(each == found[0] for each in found[1:])


@pytest.mark.parametrize("pack", [True, False])
def test_an_epoch_holds_every_pair_once(made, tmp_path, pack):
  cfg, corpus = made(data__sources=(parallel(tmp_path),), data__pack=pack)
  batches = pairs.PairBatches(corpus, cfg)
  n_rows = len(batches.rows[0])
  assert (n_rows < corpus.train[0].n_pairs) == pack
  seen, most = [], 0
  for step in range(n_rows):  # of 4 rows: four epochs
    batch = batches.at(step)
    for b in range(4):
      for segment in range(1, batch["segments"][b].max() + 1):
        source_L = batch["source_segments"][b] == segment
        target_L = batch["segments"][b] == segment
        source, target = batch["source"][b][source_L], batch["targets"][b][target_L]
        tokens = batch["tokens"][b][target_L]
        assert tokens[0] == corpus.tokenizer.start_id
        np.testing.assert_array_equal(tokens[1:], target[:-1])
        np.testing.assert_array_equal(batch["positions"][b][target_L], np.arange(len(target)))
        np.testing.assert_array_equal(
          batch["source_positions"][b][source_L], np.arange(len(source))
        )
        assert (batch["weights"][b] > 0).sum() == (batch["segments"][b] > 0).sum()
        decode = lambda ids: corpus.tokenizer.decode(ids[:-1].tolist())
        seen.append((decode(source), decode(target)))
        most = max(most, segment)
  assert (most > 1) == pack
  assert sorted(seen) == sorted(4 * texts(corpus.train[0], corpus.tokenizer))
  part = batches.at(3, slice(1, 3))
  whole = pairs.PairBatches(corpus, cfg).at(3)
  for name, array in part.items():
    np.testing.assert_array_equal(array, whole[name][1:3])


def test_budgets_count_source_and_target(made, tmp_path):
  cfg, corpus = made(data__sources=(parallel(tmp_path),))
  n_rows = len(pairs.PairBatches(corpus, cfg).rows[0])
  assert cfg.train.tokens / cfg.train.steps / 4 == pytest.approx(corpus.n_units / n_rows)
  evaluation = pairs.PairEval(corpus.val, cfg, None)
  total = sum(
    (b["source_segments"] > 0).sum() + b["weights"].sum()
    for b in map(evaluation.at, range(len(evaluation)))
  )
  assert (
    total == evaluation.facts["tokens"] == corpus.val.source.n_tokens + corpus.val.target.n_tokens
  )


def test_pairs_longer_than_the_model_are_refused_or_cut(made, tmp_path):
  spec = parallel(tmp_path)
  with pytest.raises(
    ConfigError, match=r"data.truncate=False: \d+ of \d+ pairs are longer than model"
  ):
    made(data__sources=(spec,), model__seq_len=12)
  cfg, corpus = made(data__sources=(spec,), model__seq_len=12, data__truncate=True)
  batch = pairs.PairBatches(corpus, cfg).at(0)
  cut = batch["targets"][0][batch["weights"][0] > 0]
  assert len(cut) == 12 and cut[-1] == corpus.tokenizer.eot_id


def test_sides_of_unequal_length_are_refused(made, tmp_path):
  spec = parallel(tmp_path)
  with (tmp_path / "de").open("a") as file:
    file.write("one more\nand one\n")
  with pytest.raises(ConfigError, match="the target has 62, the other 60: align them"):
    made(data__sources=(spec,))


def test_blank_sides_are_left_out_and_counted(made, tmp_path):
  _, corpus = made(data__sources=(parallel(tmp_path, [*PAIRS, ("", "x"), ("y", " ")]),))
  assert corpus.counts["read"] == 62 and corpus.counts["blank"] == 2
  assert corpus.train[0].n_pairs + corpus.val.n_pairs == 60


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data.sources": ("docstrings",)}, "data.sources=docstrings: holds no pairs; use text:FILE"),
    ({"data.sources": ("parallel:a",)}, "must name two files or globs with one [+] between"),
    ({"data.val_split": "tail"}, "data.val_split=tail: pairs are held out whole"),
    ({"data.target_field": "source"}, "data.target_field=source: must be another field"),
    ({"objective.chunk": 7}, "model.target_len=64: must be divisible by 7"),
    ({"data.sources": ("reversed:x",)}, None),
  ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(changes, message):
  if message is None:
    cfg = load_config("configs/transformer.py", changes)
    with pytest.raises(
      ConfigError, match="must say how many pairs, 1 to 10000000; use reversed:4000"
    ):
      next(pairs.read_pairs("reversed:x", cfg.data))
    return
  with pytest.raises(ConfigError, match=message):
    load_config("configs/transformer.py", changes)


def test_a_model_without_a_source_reads_no_pairs():
  cfg = load_config("configs/default.py")
  with pytest.raises(
    ConfigError, match=r"model.family=decoder: reads no pairs of source and target"
  ):
    KINDS["pairs"].check(cfg)
  with pytest.raises(
    ConfigError, match=r"model.family=decoder: has no source to take spans out of"
  ):
    KINDS["spans"].check(cfg)


# --- spans ------------------------------------------------------------------------------------------


def put_back(source, target, first):
  """The row that a source and its target were made of."""
  row = []
  at = {int(ids): i for i, ids in enumerate(target) if ids >= first}
  for token in source.tolist():
    if token < first:
      row.append(token)
      continue
    start = at[token] + 1
    stop = next((i for i in range(start, len(target)) if target[i] >= first), len(target))
    row += target[start:stop].tolist()
  return row


@pytest.mark.parametrize("text", ["0.15x3", "0.5x8", "0.15xtail", "0.9x1"])
def test_what_is_taken_out_can_be_put_back(text):
  denoiser, n = spans.parse(text), 200
  ids = np.random.default_rng(0).integers(0, 50, n)
  taken, spans_of = spans.counts(n, denoiser)
  made = []
  for key in range(5):
    source, target = spans.corrupt(ids, denoiser, order.fold(key), 1000)
    assert put_back(source, target, 1000) == ids.tolist()
    assert (source >= 1000).sum() == (target >= 1000).sum() == spans_of
    assert len(target) == taken + spans_of and len(source) == n - taken + spans_of
    made.append(source.tolist())
  again, _ = spans.corrupt(ids, denoiser, order.fold(3), 1000)
  assert again.tolist() == made[3]
  assert (made[0] == made[1]) == (text == "0.15xtail")


def test_counts_are_the_papers():
  """Raffel et al. 2020 §3.1.4: 15 % in spans of 3; 568 tokens become a source of 512 and a target of 114."""
  assert spans.counts(568, spans.parse("0.15x3")) == (85, 28)
  assert spans.sizes(512, 114, ("0.15x3",)) == spans.Sizes(568, 512, 114, 28)


@pytest.mark.parametrize("denoisers", [("0.15x3",), ("0.15x3", "0.5x8", "0.25xtail")])
def test_span_batches_fit_the_model_and_follow_from_seed_step_and_row(tmp_path, denoisers):
  cfg = load_config(
    "configs/t5.py",
    {"objective.denoisers": denoisers, "data.cache_dir": str(tmp_path), "model.target_len": 64,
     "data.sources": ("synthetic:markov-64-s1-n20",)},
  )  # fmt: skip
  kind = KINDS["spans"]
  data = kind.open(cfg)
  assert kind.vocab_size(cfg) == data.vocab_size == 257 + spans.extra_ids(cfg)
  cfg = resolve(cfg, data.vocab_size, 1)
  batches = kind.train(data, cfg)
  for step in (0, 5):
    batch = batches.at(step)
    assert set(batch) == set(kind.arrays(cfg, True))
    for name, array in kind.arrays(cfg, True).items():
      assert batch[name].shape == array.shape and batch[name].dtype == array.dtype
    assert batch["source"].max() < cfg.model.vocab_size and batch["source"].max() >= 257
    np.testing.assert_array_equal(batches.at(step, slice(2, 4))["source"], batch["source"][2:4])
  other = kind.train(data, dataclasses.replace(cfg, data=dataclasses.replace(cfg.data, seed=1)))
  assert (other.at(0)["source"] != batches.at(0)["source"]).any()
  modes = batches.at(0)["source"][:, 0] - 257 - spans.of_config(cfg).sentinels
  assert (modes >= 0).all() == (len(denoisers) > 1)
  total = sum(
    (b["source_segments"] > 0).sum() + b["weights"].sum() for b in map(batches.at, range(20))
  )
  assert total / 160 == pytest.approx(kind.units_per_row(cfg), rel=0.1)


@pytest.mark.parametrize("text", DENOISERS)
def test_each_denoiser_of_ul2_takes_out_its_share_in_spans_of_its_length(text):
  """Tay et al. 2022, table 1; rows of the length that fits sources of 512 under all seven."""
  denoiser, n = spans.parse(text), spans.sizes(512, 512, DENOISERS).length
  ids, taken, lengths = np.arange(n), [], []
  for key in range(200):
    source, target = spans.corrupt(ids, denoiser, order.fold(key), n)
    taken.append(n - (source < n).sum())
    starts = np.flatnonzero(target >= n)
    lengths.append(np.diff([*starts, len(target)]) - 1)
  assert np.mean(taken) / n == pytest.approx(denoiser.rate, abs=0.5 / n)
  n_spans = {len(each) for each in lengths}
  assert len(n_spans) == 1
  if denoiser.span is None:  # the last quarter, in one piece
    assert n_spans == {1} and source[:-1].tolist() == list(range(n - taken[0]))
    return
  # A whole number of spans, the nearest to taken / mean; their lengths spread about that mean.
  assert abs(np.mean(taken) / denoiser.span - n_spans.pop()) <= 0.5
  lengths = np.concatenate(lengths)
  assert lengths.min() >= 1
  if len(lengths) > 200:
    assert lengths.mean() == pytest.approx(denoiser.span, rel=0.15)
    # Evenly drawn pieces: nearly geometric.
    assert lengths.std() == pytest.approx(denoiser.span, rel=0.4)


def test_rows_of_ul2_begin_with_the_token_of_their_mode(tmp_path):
  changes = {"data.cache_dir": str(tmp_path), "data.sources": "synthetic:markov-64-s1-n20"}
  cfg = load_config("configs/ul2.py", changes | {"train.batch_size": 64})
  kind = KINDS["spans"]
  data = kind.open(cfg)
  cfg, most = resolve(cfg, data.vocab_size, 1), spans.of_config(cfg)
  assert data.vocab_size == 257 + most.sentinels + 3
  assert spans.modes(DENOISERS) == [0, 0, 1, 2, 2, 2, 2]
  assert spans.modes(("0.15x3", "0.5x8")) == [0, 1] and spans.modes(("R:0.15x3",)) == []
  batches, rows = kind.train(data, cfg), []
  for step in range(12):
    batch = batches.at(step)
    sentinels = ((batch["source"] >= 257) & (batch["source"] < 257 + most.sentinels)).sum(axis=1)
    share = batch["weights"].sum(axis=1) - sentinels - 1  # tokens taken out
    kept = batch["source_segments"].sum(axis=1) - sentinels - 2
    found = (batch["source"][:, 0] - 257 - most.sentinels, sentinels, share, kept)
    rows += zip(*found, strict=True)
  modes, n_spans, taken, kept = np.array(rows).astype(int).T
  full = taken + kept == most.length  # the last row of the text is shorter
  counts = np.bincount(modes.astype(int), minlength=3) / len(modes)
  np.testing.assert_allclose(counts, np.array([2, 1, 4]) / 7, atol=0.05)
  wanted = [spans.counts(most.length, spans.parse(text)) for text in DENOISERS]
  for mode in range(3):
    of_mode = {pair for pair, m in zip(wanted, spans.modes(DENOISERS), strict=True) if m == mode}
    mine = full & (modes == mode)
    assert set(zip(taken[mine].tolist(), n_spans[mine].tolist(), strict=True)) == of_mode


@pytest.mark.parametrize("text", ["R:0.15", ":0.15x3"])
def test_what_is_no_denoiser_with_a_mode_is_refused(text):
  with pytest.raises(ConfigError, match=f"objective.denoisers={text}: must be RATExSPAN"):
    spans.parse(text)


def test_modes_of_some_denoisers_alone_are_refused():
  changes = {"objective.denoisers": "R:0.15x3,0.5x8"}
  with pytest.raises(ConfigError, match=r"=0.5x8: others have a mode .* use e.g. R:0\.5x8"):
    load_config("configs/t5.py", changes)


@pytest.mark.parametrize("text", ["0.15", "1.5x3", "0.2x0", "axb", "0.1xhead"])
def test_what_is_no_denoiser_is_refused(text):
  with pytest.raises(
    ConfigError, match=f"objective.denoisers={text}: must be RATExSPAN or RATExtail"
  ):
    spans.parse(text)
