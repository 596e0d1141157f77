"""BERT folders of transformers: into runs, out of runs, as a start of others; sentence vectors."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import pytest

from lm import embed, evaluate, start_from
from lm.config.errors import ConfigError
from lm.devices.sharding import make_mesh
from lm.hf.__main__ import main
from lm.hf.bert import bert_fields, from_bert, to_bert
from lm.runs.load import load
from lm.setup.load import load_config
from lm.setup.resolve import resolve
from lm.training.programs import make_programs
from tests.equalities import shapes_of
from tests.test_bert import rows, theirs, tiny

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["this", "is", "an", "example", "sentence", "##s", "each", "one", "another", "."]
LABELS = {"0": "world", "1": "sports", "2": "business"}  # not in the order of letters
TAGS = {"0": "B-PER", "1": "O", "2": "I-PER"}
NAMES = {"BertForSequenceClassification": LABELS, "BertForTokenClassification": TAGS}
ORDER = {  # of these, here
  "BertForSequenceClassification": ["business", "sports", "world"],
  "BertForTokenClassification": ["O", "B-PER", "I-PER"],
}
CONFIGS = {  # what a run of them is
  "BertForTokenClassification": "token_classification",
  "BertForQuestionAnswering": "extractive_span",
}


def folder_of(kind, folder):
  """A folder as transformers saves it, with a vocabulary of 67 pieces, and the model."""
  model, _, _ = theirs(kind)
  if kind in NAMES:
    torch = pytest.importorskip("torch")

    names = {int(i): name for i, name in NAMES[kind].items()}
    model.config.id2label, model.num_labels = names, 3
    model.classifier = torch.nn.Linear(16, 3)
    model.config.label2id = {name: i for i, name in names.items()}
  model.save_pretrained(folder)
  pieces = [*SPECIAL, *WORDS, *(f"w{i}" for i in range(67 - len(SPECIAL) - len(WORDS)))]
  (folder / "vocab.txt").write_text("\n".join(pieces))
  return model.eval()


def took(model, tokens_BL, mask_BL, types_BL):
  torch = pytest.importorskip("torch")

  with torch.no_grad():
    return model(
      torch.tensor(tokens_BL),
      attention_mask=torch.tensor(mask_BL),
      token_type_ids=torch.tensor(types_BL),
    )


@pytest.mark.parametrize(
  "kind", ["BertModel", "BertForPreTraining", "BertForQuestionAnswering", *NAMES]
)
def test_a_folder_goes_in_and_out_with_equal_outputs(kind, tmp_path, capsys):
  transformers = pytest.importorskip("transformers")
  model = folder_of(kind, tmp_path / "in")
  run, out = tmp_path / "run", tmp_path / "out"
  assert main(["import", "--from", str(tmp_path / "in"), "--workdir", str(run)]) == 0
  assert "python -m lm.embed" in capsys.readouterr().out
  assert main(["export", "--workdir", str(run), "--to", str(out)]) == 0
  again = getattr(transformers, kind).from_pretrained(out).eval()
  before, after = (took(m, *rows(np.random.default_rng(5))) for m in (model, again))
  found = load(run).cfg.objective
  assert found.name == CONFIGS.get(kind, found.name)
  if kind not in NAMES:
    for name in before.keys() & after.keys():
      np.testing.assert_array_equal(before[name].numpy(), after[name].numpy())
    return
  assert getattr(found, "scheme", "bio") == "bio"
  assert again.config.id2label == dict(enumerate(ORDER[kind]))
  order = [list(NAMES[kind].values()).index(again.config.id2label[i]) for i in range(3)]
  np.testing.assert_allclose(before.logits.numpy()[..., order], after.logits.numpy(), rtol=1e-6)
  tokenizer = transformers.BertTokenizer(str(out / "vocab.txt"))
  text = "this is another sentences."
  ours = load(run).tokenizer.encode(text)
  assert ours == tokenizer.encode(text, add_special_tokens=False)


TEXTS = ["this is an example", "each one.", "another sentences", "w1 w2 w3", "w7 this w9 one"]


def test_an_imported_classifier_is_scored_on_records_with_its_labels(tmp_path, capsys):
  """Its accuracy is that of transformers; no text of its training is needed."""
  transformers = pytest.importorskip("transformers")
  model = folder_of("BertForSequenceClassification", tmp_path / "in")
  run, file = tmp_path / "run", tmp_path / "test.tsv"
  assert main(["import", "--from", str(tmp_path / "in"), "--workdir", str(run)]) == 0
  labels = ["world", "sports", "business", "sports", "sports"]
  file.write_text("".join(f"{t}\t{name}\n" for t, name in zip(TEXTS, labels, strict=True)))
  tokenizer = transformers.BertTokenizer(str(tmp_path / "in" / "vocab.txt"))
  logits = [model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS]
  said = [LABELS[str(int(each.argmax()))] for each in logits]
  right = [a == b for a, b in zip(said, labels, strict=True)]
  words = ["--workdir", str(run), "--data", f"text:{file}", "--text_field", "0"]
  capsys.readouterr()
  assert evaluate.main([*words, "--label_field", "1", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["accuracy"] == pytest.approx(np.mean(right)) and found["texts"] == 5
  with pytest.raises(
    ConfigError, match="was imported and has no held-out set; name one with --data"
  ):
    evaluate.evaluate_run(run)
  file.write_text("this is\tweather\n")
  with pytest.raises(
    ConfigError, match=r"label 'weather', which no training text has \(they have business"
  ):
    evaluate.main([*words, "--label_field", "1"])
  with pytest.raises(
    ConfigError, match="text_field=0: is of records with labels that --data names"
  ):
    evaluate.main(["--workdir", str(run), "--text_field", "0"])


def test_a_regressor_goes_in_and_out_and_gives_equal_numbers(tmp_path):
  """A number is one class without a name to transformers."""
  transformers = pytest.importorskip("transformers")
  torch = pytest.importorskip("torch")
  model = folder_of("BertForSequenceClassification", tmp_path / "in")
  model.classifier, model.num_labels = torch.nn.Linear(16, 1), 1
  model.config.num_labels = 1
  model.save_pretrained(tmp_path / "in")
  run, out, file = tmp_path / "run", tmp_path / "out", tmp_path / "test.tsv"
  assert main(["import", "--from", str(tmp_path / "in"), "--workdir", str(run)]) == 0
  assert load(run).cfg.objective.name == "regression"
  tokenizer = transformers.BertTokenizer(str(tmp_path / "in" / "vocab.txt"))
  number = lambda model, text: model(**tokenizer(text, return_tensors="pt")).logits.item()
  numbers = [number(model, text) for text in TEXTS]
  file.write_text("".join(f"{t}\t{n:.9f}\n" for t, n in zip(TEXTS, numbers, strict=True)))
  fields = {"text_field": "0", "label_field": "1"}
  assert evaluate.evaluate_run(run, f"text:{file}", fields=fields)["mse"] < 1e-10
  assert main(["export", "--workdir", str(run), "--to", str(out)]) == 0
  again = transformers.BertForSequenceClassification.from_pretrained(out).eval()
  assert again.config.problem_type == "regression" and again.config.num_labels == 1
  assert number(again, TEXTS[0]) == pytest.approx(numbers[0], abs=1e-6)


def test_a_classifier_without_berts_pooler_is_no_classifier_of_transformers():
  cfg = load_config("configs/classify.py", {"model.vocab_size": 300}).model
  params = {"classifier": {"kernel": np.zeros((32, 2)), "bias": np.zeros(2)}, "embed": {}}
  with pytest.raises(ConfigError, match=r"train with objective\.pooling=pooler to export"):
    to_bert(params | {"blocks": {}}, cfg)


def test_texts_that_are_too_long_for_an_imported_classifier_are_cut_where_that_is_said(tmp_path):
  pytest.importorskip("transformers")
  folder_of("BertForSequenceClassification", tmp_path / "in")
  run, file = tmp_path / "run", tmp_path / "test.tsv"
  assert main(["import", "--from", str(tmp_path / "in"), "--workdir", str(run)]) == 0
  file.write_text("this is an example\tworld\n" + "w1 " * 600 + "\tsports\n")
  words = ["--workdir", str(run), "--data", f"text:{file}", "--text_field", "0"]
  words += ["--label_field", "1", "--json"]
  with pytest.raises(ConfigError, match=r"or cut them with data\.truncate=True"):
    evaluate.main(words)
  assert evaluate.main([*words, "--truncate"]) == 0
  with pytest.raises(ConfigError, match="truncate=True: is of records with labels"):
    evaluate.main(["--workdir", str(run), "--truncate"])
  with pytest.raises(ConfigError, match="max_tokens=-5: must be at least 1"):
    evaluate.main([*words, "--max_tokens", "-5"])


def test_an_imported_tagger_is_scored_on_columns_of_words_and_tags(tmp_path):
  pytest.importorskip("transformers")
  folder_of("BertForTokenClassification", tmp_path / "in")
  run, file = tmp_path / "run", tmp_path / "test.txt"
  assert main(["import", "--from", str(tmp_path / "in"), "--workdir", str(run)]) == 0
  file.write_text("this B-PER\nis O\n\neach O\none I-PER\n")
  fields = {"text_field": "0", "label_field": "1"}
  found = evaluate.evaluate_run(run, f"text:{file}", fields=fields)
  assert 0 <= found["accuracy"] <= 1 and found["loss"] > 0


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
  """(folder, run made of it, model) of an encoder without heads."""
  pytest.importorskip("transformers")
  folder = tmp_path_factory.mktemp("bare")
  model = folder_of("BertModel", folder / "in")
  assert main(["import", "--from", str(folder / "in"), "--workdir", str(folder / "run")]) == 0
  return folder / "in", folder / "run", model


def test_sentence_vectors_are_means_of_real_tokens(bare):
  _, run, model = bare
  texts = ["this is an example sentence", "each one.", "another sentences"]
  found = embed.sentence_vectors(texts, run)
  tokenizer = load(run).tokenizer
  for text, vector in zip(texts, found, strict=True):
    ids = np.array([[2, *tokenizer.encode(text), 3]])
    hidden = took(model, ids, np.ones_like(ids), np.zeros_like(ids)).last_hidden_state.numpy()[0]
    wanted = hidden.mean(axis=0) / np.linalg.norm(hidden.mean(axis=0))
    np.testing.assert_allclose(vector, wanted, atol=1e-5)


def test_vectors_are_printed_or_refused(bare, capsys):
  _, run, _ = bare
  assert embed.main(["--workdir", str(run), "--text", "each", "--text", "each one", "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["cosines"][0][0] == pytest.approx(1, abs=1e-6) and found["cosines"][0][1] < 0.9999
  with pytest.raises(ConfigError, match=r"has 22 tokens, more than model\.seq_len=16; shorten it"):
    embed.main(["--workdir", str(run), "--text", "this " * 20])
  with pytest.raises(ConfigError, match="has no token"):
    embed.main(["--workdir", str(run), "--text", ""])
  with pytest.raises(ConfigError, match=r"has no masked_head, as it was imported without"):
    evaluate.evaluate_run(run, max_tokens=2000)


@pytest.mark.parametrize("which", ["folder", "run"])
def test_a_classifier_starts_from_an_encoder(bare, which):
  """Positions are cut to the rows there are, the head is new, everything else is taken."""
  folder, run, _ = bare
  changes = {
    "model.width": 16, "model.base_width": 16, "model.depth": 2, "model.heads": 2, "model.mlp_dim": 24,
    "model.seq_len": 8, "objective.pooling": "pooler", "data.label_field": "label",
    "train.init_from": str(folder if which == "folder" else run),
  }  # fmt: skip
  cfg = resolve(load_config("configs/classify.py", changes), 67, 1)
  programs = make_programs(cfg, make_mesh(cfg.mesh, devices=_one()))
  loaded = start_from.load(cfg, programs.run_shape.params)
  there = load(run).params
  np.testing.assert_array_equal(
    loaded.params["position_embed/embedding"], there["position_embed"]["embedding"][:8]
  )
  np.testing.assert_array_equal(
    loaded.params["pooler/dense/kernel"], there["pooler"]["dense"]["kernel"]
  )
  said = "\n".join(loaded.lines)
  assert "new: classifier/bias, classifier/kernel" in said and "cut to model.seq_len" in said
  assert "left" not in said


def _one():
  import jax

  return jax.devices()[:1]


def test_what_no_folder_can_say_is_refused(bare, tmp_path):
  _, run, _ = bare
  with pytest.raises(ConfigError, match="type=llama: cannot say a bert; leave it out"):
    main(["export", "--workdir", str(run), "--to", str(tmp_path), "--type", "llama"])
  assert pathlib.Path(run / "imported.json").is_file()


def test_a_t5_goes_in_and_out_with_equal_logits(tmp_path):
  transformers = pytest.importorskip("transformers")
  torch = pytest.importorskip("torch")

  config = transformers.T5Config(
    vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, tie_word_embeddings=True,
    decoder_start_token_id=0,
  )  # fmt: skip
  model = transformers.T5ForConditionalGeneration(config).eval()
  model.save_pretrained(tmp_path / "in")
  (tmp_path / "in" / "vocab.txt").write_text("\n".join([*SPECIAL, *WORDS]))
  run, out = tmp_path / "run", tmp_path / "out"
  assert main(["import", "--from", str(tmp_path / "in"), "--workdir", str(run)]) == 0
  assert load(run).cfg.model.family == "t5"
  assert main(["export", "--workdir", str(run), "--to", str(out)]) == 0
  again = transformers.T5ForConditionalGeneration.from_pretrained(out).eval()
  ids = torch.tensor([[5, 6, 7, 1]])
  with torch.no_grad():
    before, after = (m(input_ids=ids, decoder_input_ids=ids).logits for m in (model, again))
  np.testing.assert_array_equal(before.numpy(), after.numpy())


@pytest.mark.parametrize(("key", "value", "message"), [
  ("num_hidden_layers", "two", "num_hidden_layers=two: must be a whole number of at least 1"),
  ("layer_norm_eps", -1, "layer_norm_eps=-1: must be a number above 0"),
  ("hidden_size", None, "hidden_size: config.json lacks it"),
])  # fmt: skip
def test_a_config_without_sense_is_refused_by_its_key(key, value, message):
  names = ("max_position_embeddings", "hidden_size", "vocab_size", "num_hidden_layers")
  sizes = dict.fromkeys([*names, "num_attention_heads", "intermediate_size"], 8)
  assert bert_fields(sizes)["depth"] == 8
  with pytest.raises(ConfigError, match=message):
    bert_fields(sizes | {key: value})


@pytest.mark.parametrize(("names", "message"), [
  ({"0": "a", "1": "a"}, "id2label: must name 2 classes, each by another word"),
  ({"a": 0, "b": 1}, "id2label: must be an object of numbers and names"),
])  # fmt: skip
def test_names_of_classes_must_be_those_of_the_classifier(names, message):
  cfg: Any = tiny().model
  shapes = shapes_of(cfg)
  params = jax.tree.map(lambda s: np.zeros(s.shape, np.float32), shapes)
  params["classifier"] = {"kernel": np.zeros((cfg.width, 2)), "bias": np.arange(2.0)}
  square = {"kernel": np.eye(cfg.width, dtype=np.float32), "bias": np.zeros(cfg.width, np.float32)}
  params["pooler"] = {"dense": square}
  state, said = to_bert(params, cfg)
  fits = from_bert(state, said | {"id2label": {"0": "b", "1": "a"}})[1]["classifier"]["bias"]
  assert fits.tolist() == [1, 0]
  with pytest.raises(ConfigError, match=message):
    from_bert(state, said | {"id2label": names})
