"""`python -m lm.hf`: the same weights and tokenizer after a way in and out."""

import json
import warnings

import pytest

from lm import evaluate
from lm.config.errors import ConfigError
from lm.data import tokenizers
from lm.hf.__main__ import main
from lm.hf.convert import to_hf
from lm.hf.folder import read_folder, write_folder
from lm.hf.models import DECODER_ROW, MODELS, write_model
from lm.hf.tokenizer_files import copy_in, write_tokenizer
from lm.runs import rundir
from lm.setup.load import load_config
from lm.setup.resolve import resolve
from tests.test_hf import assert_same, cfg_of, draw


def letters():
  library = pytest.importorskip("tokenizers")
  words = {word: i for i, word in enumerate(["<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz"])}
  tokenizer = library.Tokenizer(library.models.WordLevel(words, "a"))
  tokenizer.add_special_tokens(["<|endoftext|>"])
  return tokenizer


def test_import_and_export_give_the_same_weights_and_tokenizer(tmp_path, capsys):
  """Of a vocabulary that the model pads from 27 to 31 entries."""
  tokenizer = letters()
  cfg = cfg_of("gpt2")
  state, hf_config = to_hf(draw(cfg), cfg)
  start, workdir, end = tmp_path / "start", tmp_path / "run", tmp_path / "end"
  write_folder(start, state, hf_config | {"pad_token_id": 3})
  tokenizer.save(str(start / "tokenizer.json"))
  (start / "generation_config.json").write_text("{}")

  assert main(["import", "--from", str(start), "--workdir", str(workdir)]) == 0
  assert main(["export", "--workdir", str(workdir), "--to", str(end)]) == 0
  assert "imported:" in capsys.readouterr().out
  found, found_config = read_folder(end)
  assert_same(found, state)
  ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 3}
  assert found_config == hf_config | ids
  assert (end / "tokenizer.json").read_text() == (start / "tokenizer.json").read_text()
  assert (end / "generation_config.json").read_text() == "{}"
  with pytest.raises(ConfigError, match="holds a run already; choose another"):
    main(["import", "--from", str(start), "--workdir", str(workdir)])
  with pytest.raises(ConfigError, match=r"type=llama: cannot say this model, which gpt2 can"):
    main(["export", "--workdir", str(workdir), "--to", str(end), "--type", "llama"])


def test_a_stopped_conversion_leaves_what_was_there_and_can_be_given_again(tmp_path, monkeypatch):
  cfg = cfg_of("gpt2")
  state, hf_config = to_hf(draw(cfg), cfg)
  start, workdir, end = tmp_path / "start", tmp_path / "run", tmp_path / "end"
  write_folder(start, state, hf_config)
  letters().save(str(start / "tokenizer.json"))
  take = ["import", "--from", str(start), "--workdir", str(workdir)]
  give = ["export", "--workdir", str(workdir), "--to", str(end)]

  def stop(*args, **kwargs):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr("lm.hf.runs.Checkpointer.save", stop)
    main(take)
  assert not workdir.exists()
  assert main(take) == 0
  assert json.loads((workdir / "config.json").read_text())["data"]["tokenizer_path"] == str(
    workdir / "tokenizer/tokenizer.json"
  )
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr("lm.hf.runs.write_tokenizer", stop)
    main(give)
  assert not end.exists()
  wrong = {name: array + 1 for name, array in state.items()}
  # An earlier one, of other files.
  write_folder(end, wrong, {"model_type": "other"}, shard_bytes=4096)
  (end / "tokenizer.model").write_text("other")
  (end / "notes.txt").write_text("mine")
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr("lm.hf.runs.write_tokenizer", stop)
    main(give)
  assert_same(read_folder(end)[0], wrong)
  assert main(give) == 0
  assert_same(read_folder(end)[0], state)
  names = {"config.json", "model.safetensors", "notes.txt", "tokenizer.json"}
  assert {path.name for path in end.iterdir()} - {"tokenizer_config.json"} == names


def test_an_imported_run_that_was_moved_reads_its_own_tokenizer(tmp_path, capsys):
  cfg = cfg_of("gpt2")
  state, hf_config = to_hf(draw(cfg), cfg)
  write_folder(tmp_path / "start", state, hf_config)
  letters().save(str(tmp_path / "start/tokenizer.json"))
  assert (
    main(["import", "--from", str(tmp_path / "start"), "--workdir", str(tmp_path / "run")]) == 0
  )
  moved = (tmp_path / "run").rename(tmp_path / "moved")
  other = tmp_path / "run/tokenizer/tokenizer.json"  # of a run that was made there since
  other.parent.mkdir(parents=True)
  other.write_text("{}")
  (tmp_path / "text.txt").write_text("abc abc\n\n" * 40)
  asked = [
    "--workdir",
    str(moved),
    "--data",
    f"text:{tmp_path}/text.txt",
    "--max_tokens",
    "64",
    "--json",
  ]
  capsys.readouterr()
  assert rundir.read_config(moved).data.tokenizer_path == str(moved / "tokenizer/tokenizer.json")
  assert evaluate.main(asked) == 0
  assert json.loads(capsys.readouterr().out)["loss"] > 0


@pytest.mark.parametrize("name", ["lstm", "transformer", "vae", "word2vec"])
def test_a_family_that_transformers_lacks_is_refused_by_name(name):
  cfg = resolve(load_config(f"configs/{name}.py"), 300, 1)
  wanted = (
    rf"model\.family={cfg.model.family}: transformers has no such model; export one of decoder, b"
  )
  with pytest.raises(ConfigError, match=wanted):
    write_model({}, cfg, None)


@pytest.mark.parametrize("kind", ["byte", "word", "bpe"])
def test_exported_tokenizers_put_the_tokens_around_texts_that_models_were_trained_with(
  kind, tmp_path
):
  transformers = pytest.importorskip("transformers")
  text, other = "den Wolken", "über den"
  overrides = {"data.tokenizer": kind, "data.min_freq": 1, "data.vocab_size": 260}
  cfg = load_config("configs/default.py", overrides)
  mine = tokenizers.make_tokenizer(cfg.data, [f"{text} {other}"] * 3, 100)
  a, b, (start, end) = mine.encode(text), mine.encode(other), (mine.start_id, mine.eot_id)
  for name in ("bert", "t5", "llama"):
    row = MODELS[name].row if name in MODELS else DECODER_ROW
    write_tokenizer(mine, tmp_path / "none", tmp_path, 64, row=row)
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    one, two = loaded(text), loaded(text, other)
    first, last = [start] * (name != "t5"), [end] * (name != "llama")
    assert one.input_ids == [*first, *a, *last]
    assert two.input_ids == [*first, *a, *last, *b, *last]
    if name == "bert":
      assert two.token_type_ids == [0] * (len(a) + 2) + [1] * (len(b) + 1)
  assert loaded.decode(one.input_ids, skip_special_tokens=True) == text


def test_what_is_no_model_is_refused(tmp_path):
  there = ["--workdir", str(tmp_path / "run")]
  with pytest.raises(
    ConfigError, match=r"must be a folder with config.json and model\.safetensors"
  ):
    main(["import", "--from", str(tmp_path), *there])
  with pytest.raises(ConfigError, match="no such file or folder; check the path"):
    main(["import", "--from", str(tmp_path / "none"), *there])
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["byte", "char", "word", "bpe"])
def test_exported_tokenizers_give_the_same_ids_and_texts(kind, tmp_path):
  text = "Über den Wolken\n\n  x = 1;\tnaïve 日本 €5 über Wolken den"
  overrides = {"data.tokenizer": kind, "data.min_freq": 1, "data.vocab_size": 260}
  cfg = load_config("configs/default.py", overrides)
  mine = tokenizers.make_tokenizer(cfg.data, [text, "den"], 100)
  folder, inside = tmp_path / "folder", tmp_path / "inside"
  folder.mkdir()
  write_tokenizer(mine, tmp_path / "none", folder, seq_len=64)
  name, path = copy_in(folder, inside)
  cfg = load_config(
    "configs/default.py", {"data.tokenizer": name, "data.tokenizer_path": str(path)}
  )
  theirs = tokenizers.read_tokenizer(cfg.data)
  unseen = text + " ☃ unseen" if kind != "byte" else text + " ☃ \x00"
  for sample in (text, unseen, ""):
    ids = list(mine.encode(sample))
    assert list(theirs.encode(sample)) == ids
    assert theirs.decode([*ids, mine.eot_id]) == mine.decode([*ids, mine.eot_id])
  assert (theirs.vocab_size, theirs.eot_id) == (mine.vocab_size, mine.eot_id)
  assert theirs.start_id == mine.start_id
  transformers = pytest.importorskip("transformers")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    loaded = transformers.AutoTokenizer.from_pretrained(folder)
  assert loaded(text, add_special_tokens=False).input_ids == list(mine.encode(text))
  assert loaded.eos_token_id == mine.eot_id


@pytest.mark.parametrize(
  "model, words",
  [
    ({"type": "BPE", "vocab": {}, "merges": []}, "its vocabulary is empty"),
    ({"type": "WordLevel", "vocab": {}, "unk_token": "?"}, "its vocabulary is empty"),
    (None, "no huggingface tokenizer"),
  ],
)
def test_a_tokenizer_without_words_is_refused_and_leaves_nothing(tmp_path, model, words):
  cfg = cfg_of("gpt2")
  write_folder(tmp_path / "hf", *to_hf(draw(cfg), cfg))
  added = {"id": 0, "content": "<|endoftext|>", "special": True}
  added |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
  definition = {"version": "1.0", "added_tokens": [added], "model": model}
  (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(definition))
  for there in (False, True):
    new = tmp_path / f"new {there}"
    if there:
      new.mkdir()
    with pytest.raises(ConfigError, match=words):
      main(["import", "--from", str(tmp_path / "hf"), "--workdir", str(new)])
    assert new.exists() == there and not (new / "tokenizer").exists()
