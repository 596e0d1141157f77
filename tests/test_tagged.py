"""Tagged words: files, rows, names as seqeval counts them, the head against transformers, what is refused."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import evaluate
from lm.config.errors import ConfigError
from lm.cost.parameters import run_weights
from lm.data import tagged
from lm.data.tagged import TaggedBatches, TaggedEval
from lm.devices.sharding import make_mesh
from lm.files import read_jsonl
from lm.hf.bert import from_bert
from lm.models.registry import make_model
from lm.objectives.registry import objective_of
from lm.objectives.token_classification import count_names, eval_scores
from lm.setup.hparams import hparams_zeros
from lm.setup.load import load_config
from lm.setup.resolve import kind_of, resolve
from lm.training.programs import make_programs
from tests import equalities
from tests.test_bert import TINY, V, rows, theirs
from tests.trained import run

SENTENCES = [
  (["Ada", "Lovelace", "saw", "New", "York", "."], ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O"]),
  (["Rome", "and", "Paris"], ["B-LOC", "O", "B-LOC"]),
  (["nobody", "came", "to", "Acme"], ["O", "O", "O", "B-ORG"]),
  (["(", "It", "rained", ")"], ["O", "O", "O", "O"]),
] * 3


def write_columns(folder, sentences=SENTENCES, name="rows.conll"):
  """As CoNLL-2003 is written, with a column between word and tag."""
  blocks = ["-DOCSTART- -X- O\n"]
  for i, (words, tags) in enumerate(sentences):
    named = [f"{words[0]}{i}", *words[1:]]
    lines = [f"{word} X {tag}" for word, tag in zip(named, tags, strict=True)]
    blocks.append("\n".join(lines) + "\n")
  (folder / name).write_text("\n".join(blocks))
  return f"text:{folder}/{name}"


def write_lines(folder, sentences=SENTENCES, name="rows.jsonl", **changes):
  lines = []
  for i, (words, tags) in enumerate(sentences):
    row = {"tokens": [f"{words[0]}{i}", *words[1:]], "tags": tags} | changes
    lines.append(json.dumps(row))
  (folder / name).write_text("\n".join(lines))
  return f"text:{folder}/{name}"


@pytest.fixture
def source(tmp_path):
  return {
    "data.sources": (write_lines(tmp_path),), "data.cache_dir": str(tmp_path / "cache"),
    "data.tokenizer": "byte", "data.val_fraction": 0.3, "model.seq_len": 40, "train.batch_size": 4,
    "eval.batch_size": 4, "eval.tokens": None,
  }  # fmt: skip


def config(source, **changes):
  changes = {key.replace("__", "."): value for key, value in changes.items()}
  cfg = load_config("configs/tagging.py", source | changes)
  data = kind_of(cfg).open(cfg)
  return resolve(cfg, data.vocab_size, 1, kind_of(cfg).mean_units(data, cfg)), data


def sentences_of(data, batch):
  """(words, tags) of every row, the words read from the places that speak for them."""
  found = []
  for b in range(len(batch["tokens"])):
    real = int(batch["segments"][b].sum())
    n = int(batch["weights"][b].sum())
    places = [*batch["places"][b, :n].tolist(), real - 1]
    cut = itertools.pairwise(places)
    words = [data.tokenizer.decode(batch["tokens"][b, i:j].tolist()).strip() for i, j in cut]
    found.append((words, [data.learned["labels"][i] for i in batch["label"][b, :n]]))
  return found


@pytest.mark.parametrize("form", ["columns", "lines"])
def test_words_and_tags_are_read_whole_and_the_first_piece_speaks(source, tmp_path, form):
  if form == "columns":
    source |= {
      "data.sources": (write_columns(tmp_path),), "data.text_field": "0", "data.label_field": "2"
    }  # fmt: skip
  cfg, data = config(source)
  assert data.learned["labels"] == ["O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER"]
  batches, seen = TaggedBatches(data, cfg), []
  n = len(data.train["offsets"]) - 1
  for step in range(-(-n // 4)):
    seen += sentences_of(data, batches.at(step))
  each = TaggedEval(kind_of(cfg).held_out(data), cfg, None, None)
  held = [s for i in range(len(each)) for s in sentences_of(data, each.at(i))]
  key = lambda sentence: sentence[0][0]
  wanted = [([f"{w[0]}{i}", *w[1:]], tags) for i, (w, tags) in enumerate(SENTENCES)]
  assert sorted(seen[:n] + held[: each.facts["sentences"]], key=key) == sorted(wanted, key=key)
  assert each.facts["words"] == sum(len(words) for words, _ in held) > 0


def test_a_batch_follows_from_seed_step_and_row(source):
  cfg, data = config(source)
  first, again = TaggedBatches(data, cfg), TaggedBatches(data, cfg)
  again.at(9)
  whole, part = first.at(5), again.at(5, slice(1, 3))
  for name, array in whole.items():
    np.testing.assert_array_equal(array[1:3], part[name])
    assert array.shape == kind_of(cfg).arrays(cfg, True)[name].shape
    assert array.dtype == kind_of(cfg).arrays(cfg, True)[name].dtype


def test_long_sentences_are_refused_or_cut(source):
  with pytest.raises(
    ConfigError, match=r"model\.seq_len=16: \d+ of \d+ sentences of train are longer, up to"
  ):
    config(source, model__seq_len=16)
  cfg, data = config(source, model__seq_len=16, data__truncate=True)
  each = TaggedEval(kind_of(cfg).held_out(data), cfg, None, None)
  held = [s for i in range(len(each)) for s in sentences_of(data, each.at(i))]
  left = sum(len(words) for words, _ in held)
  assert each.facts["words_cut_away"] == each.facts["words"] - left > 0


@pytest.mark.parametrize(("lines", "message"), [
  ("a X O\nb X\n", r"data\.label_field=2: .*rows\.conll:2 has no tag there but 2 columns"),
  ("a\tX\t\n", r"rows\.conll:1 has no tag there"),
  ("a X O\nb X S-PER\n", r"objective\.scheme=bio: .*:1 has the tag 'S-PER', which is not O, B-TYPE or I"),
  ("a X B-PER\n\nb X O\n", r"objective\.classes=7: there are 3 tags \(O, B-PER, I-PER\); use 3"),
])  # fmt: skip
def test_columns_that_are_amiss_are_named(source, tmp_path, lines, message):
  (tmp_path / "rows.conll").write_text(lines * 9 if "classes" in message else lines)
  source |= {"data.sources": (f"text:{tmp_path}/rows.conll",), "data.val_fraction": 0.5}
  source |= {"data.val_split": "tail", "data.text_field": "0", "data.label_field": "2"}
  with pytest.raises(ConfigError, match=message):
    config(source)


@pytest.mark.parametrize(("row", "message"), [
  ({"tags": ["O"]}, r"data\.label_field=tags: .*rows\.jsonl:1 has 6 words and 1 tags; give as many"),
  ({"tags": None}, r"data\.label_field=tags: .*:1 has no list there; it has: tokens, tags"),
  ({"tags": ["O", None]}, r"data\.label_field=tags: .*:1 has None as member 1; give a text"),
  ({"tokens": "a b"}, r"data\.text_field=tokens: .*:1 has no list there"),
])  # fmt: skip
def test_records_that_are_amiss_are_named(source, tmp_path, row, message):
  with pytest.raises(ConfigError, match=message):
    config(source | {"data.sources": (write_lines(tmp_path, name="rows.jsonl", **row),)})


@pytest.mark.parametrize(("changes", "message"), [
  ({"data.label_field": None}, r"data\.label_field=None: objective\.name=token_classification needs tags"),
  ({"data.label_field": "3"}, r"data\.label_field=3: is to be a number of a column where"),
  ({"objective.classes": 8}, r"objective\.classes=8: .*bio has O and two for each type of name; use 7 or 9"),
  ({"data.sources": ("docstrings",)}, r"data\.sources=docstrings: has no tags; use text:FILES"),
  ({"data.weights": (1.0,)}, r"data\.weights=1\.0: sources of tagged words are not weighted"),
  ({"data.token_dropout": 0.1}, r"data\.token_dropout=0\.1: tagged words are read as they are written"),
  ({"data.lower_case": True}, r"data\.lower_case=True: tagged words are read as they are written"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused(source, changes, message):
  with pytest.raises(ConfigError, match=message):
    config(source | changes)


def test_tags_are_those_of_both_sides():
  rows = [tagged.Sentence("x", ("a",), (tag,)) for tag in ("A", "B", "C")]
  cfg = load_config("configs/tagging.py", {"objective.scheme": "plain"})
  assert tagged.learn(rows[:1], rows[1:], cfg) == {"labels": ["A", "B", "C"]}


def test_a_tag_that_training_lacks_is_refused_with_its_place(source, tmp_path):
  _, data = config(source)
  other = write_lines(tmp_path, [(["x"], ["B-ART"])], "other.jsonl")
  with pytest.raises(
    ConfigError, match=r"other\.jsonl:1 has the tag 'B-ART', which no training word"
  ):
    data.extra(other)
  assert data.extra(write_lines(tmp_path, SENTENCES[:2], "more.jsonl"))["labels"].size == 9


def test_a_family_that_sees_one_side_alone_is_refused():
  from configs import default, tagging
  from lm.config import read
  from lm.setup.load import sections_of

  config = tagging.get_config()
  with config.unlocked():
    config.model = default.get_config().model
  cfg = resolve(read.to_config(config, {}, sections_of), V, 1)
  with pytest.raises(ConfigError, match=r"model\.family=decoder"):
    make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:1]))


# --- scores ---


def names_in(tags):
  """{(type, first, last)} of a list of tags, read word by word."""
  found, open_ = set(), None
  for i, tag in enumerate([*tags, "O"]):
    kind = tag[2:]
    if open_ and (tag[0] in "OB" or kind != open_[0]):
      found.add((*open_, i - 1))
      open_ = None
    if tag != "O" and open_ is None:
      open_ = (kind, i)
  return found


def counted(had, given):
  """Names right, given and had of each of three types, by `names_in`."""
  labels = ["O", *(f"{part}-{kind}" for kind in "XYZ" for part in "BI")]
  n = {kind: np.zeros(3) for kind in "XYZ"}
  for mine, other in zip(had, given, strict=True):
    a, b = names_in([labels[i] for i in mine]), names_in([labels[i] for i in other])
    for kind in "XYZ":
      of = lambda names, kind=kind: sum(name[0] == kind for name in names)
      n[kind] += [of(a & b), of(b), of(a)]
  return np.stack([n[kind] for kind in "XYZ"])


def test_names_are_counted_as_a_reader_counts_them():
  rng = np.random.default_rng(0)
  had = [rng.choice(7, rng.integers(1, 12), p=[0.4, *[0.1] * 6]) for _ in range(60)]
  given = [np.where(rng.random(len(h)) < 0.3, rng.integers(0, 7, len(h)), h) for h in had]
  padded = [np.zeros((60, 12), np.int32) for _ in range(2)]
  real = np.zeros((60, 12), bool)
  for b in range(60):
    padded[0][b, : len(had[b])], padded[1][b, : len(had[b])] = had[b], given[b]
    real[b, : len(had[b])] = True
    padded[0][b, len(had[b]) :] = padded[1][b, len(had[b]) :] = 2  # never read
  found = jax.jit(functools.partial(count_names, types=3))(*map(jnp.asarray, padded), real)
  found = {name: np.asarray(a) for name, a in found.items()}
  wanted = counted(had, given)
  ours = [found[f"names_{what}"] for what in ("right", "given", "had")]
  np.testing.assert_array_equal(np.stack(ours, axis=1), wanted)
  assert 0 < wanted[:, 0].sum() < wanted[:, 2].sum()

  scores = eval_scores({**found, "loss": 1.0, "correct": 1.0, "weight": 2.0}, {})
  right, n_given, n_had = wanted.sum(axis=0)
  assert scores["precision"] == pytest.approx(right / n_given)
  assert scores["recall"] == pytest.approx(right / n_had)
  assert scores["f1"] == pytest.approx(2 * right / (n_given + n_had))
  each = 2 * wanted[:, 0] / (wanted[:, 1] + wanted[:, 2])
  assert scores["f1_macro"] == pytest.approx(each.mean())


@pytest.mark.parametrize(("had", "given", "wanted"), [
  ([1, 2, 0], [1, 2, 0], (1, 1, 1)),
  ([1, 2, 2], [1, 2, 0], (0, 1, 1)),  # another end
  ([1, 2, 0], [2, 2, 0], (1, 1, 1)),  # I after O begins a name
  ([1, 1, 0], [1, 2, 0], (0, 1, 2)),  # B begins another one
  ([0, 0, 0], [0, 0, 0], (0, 0, 0)),
])  # fmt: skip
def test_a_name_is_right_where_both_ends_are(had, given, wanted):
  a, b = (jnp.asarray([row], jnp.int32) for row in (had, given))
  found = count_names(a, b, jnp.ones((1, 3), bool), 1)
  assert tuple(int(found[f"names_{w}"][0]) for w in ("right", "given", "had")) == wanted


def test_plain_tags_are_scored_word_by_word():
  table = np.array([[3.0, 1.0], [0.0, 4.0]])
  found = eval_scores({"confusion": table, "loss": 8.0, "correct": 7.0, "weight": 8.0}, {})
  assert found["f1"] == found["accuracy"] == 7 / 8 and found["recall_macro"] == (3 / 4 + 1) / 2


# --- the head ---


def tagger(n_vocab=V, **changes):
  changes = {key.replace("__", "."): value for key, value in changes.items()}
  sizes = TINY | {"objective.classes": 5, "objective.dropout": 0.0, "data.tokenizer": "byte"}
  return resolve(load_config("configs/tagging.py", sizes | changes), n_vocab, 1)


def test_a_tagger_of_transformers_gives_the_same_loss():
  """BertForTokenClassification, with labels on some of the tokens alone and padding."""
  torch = pytest.importorskip("torch")

  model, state, hf_config = theirs("BertForTokenClassification", num_labels=5)
  _, params = from_bert(state, hf_config)
  cfg = tagger()
  tokens_BL, mask_BL, _ = rows(np.random.default_rng(3))
  places_BW = np.array([[1, 2, 5, 9, 0], [3, 4, 7, 0, 0], [1, 6, 8, 10, 12]])
  weights_BW = np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
  label_BW = np.random.default_rng(4).integers(0, 5, places_BW.shape)
  labels_BL = np.full_like(tokens_BL, -100)
  for b, w in np.argwhere(weights_BW):
    labels_BL[b, places_BW[b, w]] = label_BW[b, w]
  with torch.no_grad():
    wanted = model(
      torch.tensor(tokens_BL), attention_mask=torch.tensor(mask_BL), labels=torch.tensor(labels_BL)
    )
  i32 = lambda a: jnp.asarray(a, jnp.int32)
  batch = {
    "tokens": i32(tokens_BL), "segments": i32(mask_BL), "places": i32(places_BW), "label": i32(label_BW),
    "weights": jnp.asarray(weights_BW, jnp.float32),
  }  # fmt: skip
  loss_fn = objective_of(cfg.objective).make_loss(make_model(cfg.model), cfg)
  total, (sums, _) = loss_fn(params, {}, batch, None, hparams_zeros(cfg))
  assert float(total) / weights_BW.sum() == pytest.approx(float(wanted.loss), rel=1e-5)
  chosen_BL = wanted.logits.argmax(dim=2).numpy()
  assert float(sums["correct"]) == ((chosen_BL == labels_BL) & (labels_BL >= 0)).sum()
  assert float(sums["units"]) == mask_BL.sum()


def test_counts_are_exact():
  cfg = tagger()
  programs = make_programs(cfg, make_mesh(cfg.mesh, devices=jax.devices()[:1]))
  equalities.assert_counted(run_weights(cfg), programs.run_shape.params)


def test_flops_are_those_of_xla():
  cfg = tagger(**equalities.WIDE, objective__classes=9)
  equalities.assert_flops(cfg, units=2 * 128)


# --- whole runs ---

# Biases of keys move no output, so that their gradients are 0 but for rounding.
SMOKE = {
  "model__width": 16,
  "model__vocab_size": 260,
  "data__sources": ("facts:60",),
  "train__batch_size": 8,
  "optim__eps": 1e-2,  # smaller ones make steps of gradients that are rounding alone
}


@pytest.mark.slow
def test_eight_devices_and_stacked_runs_compute_what_one_does():
  same = SMOKE | {"model__dropout": 0.0, "objective__dropout": 0.0}
  mesh = {"mesh__replica": 2, "mesh__fsdp": 2, "mesh__tensor": 2}
  one = equalities.run(*equalities.resolved("configs/tagging.py", **same))
  made = equalities.resolved("configs/tagging.py", 8, **same, **mesh)
  equalities.assert_same(one, equalities.run(*made, n_devices=8))
  equalities.assert_stacks("configs/tagging.py", **same)


@pytest.mark.slow
def test_a_run_resumes_learns_and_is_scored_again(monkeypatch, tmp_path, capsys):
  flags = ["--config.objective.dropout=0.1", "--config.model.dropout=0.1"]
  equalities.assert_resumes(monkeypatch, tmp_path, "configs/tagging.py", *flags)
  last = read_jsonl(tmp_path / "whole" / "metrics.jsonl")[-1]
  assert last["eval/val/f1"] > 0.3 and last["eval/val/accuracy"] > 0.7
  command = ["--workdir", str(tmp_path / "whole"), "--checkpoint", "latest", "--max_tokens", "4096"]
  assert evaluate.main([*command, "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  for name in ("f1", "precision", "recall_macro", "accuracy", "loss"):
    assert found[name] == pytest.approx(last[f"eval/val/{name}"], rel=1e-4)


@pytest.mark.slow
def test_plain_tags_train(tmp_path):
  run(
    tmp_path / "run", config="configs/tagging.py", tiny={}, objective__scheme="plain",
    data__sources="facts:200", train__steps=6, eval__every_steps=6, mesh__replica=1, mesh__fsdp=8,
  )  # fmt: skip
  assert 0 < read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]["eval/val/f1_macro"] < 1
