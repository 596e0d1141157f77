"""The token cache: what is in it, when it is built, and that it is whole whoever builds it."""

import errno
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.data import folders, overlap, sources
from lm.data.cache import describe, open_corpus
from lm.data.spool import Spool
from tests.corpora import data_config, line_config, write_docs


def texts(store, tokenizer):
  """The documents of a store, decoded."""
  borders = zip(store.offsets[:-1], store.offsets[1:], strict=True)
  return [tokenizer.decode(store.tokens[start:stop].tolist()) for start, stop in borders]


def open_quietly(cfg):
  return open_corpus(cfg, quiet=True)


@pytest.mark.parametrize("tokenizer", ["byte", "char", "bpe"])
def test_stores_hold_every_document_once_and_end_each(tmp_path, tokenizer):
  docs = write_docs(tmp_path)
  corpus = open_quietly(
    line_config(tmp_path, tokenizer=tokenizer, vocab_size=300, val_fraction=0.2)
  )
  train, val = texts(corpus.train[0], corpus.tokenizer), texts(corpus.val, corpus.tokenizer)
  assert train and val and sorted(train + val) == sorted(docs)
  assert train == [doc for doc in docs if doc in train]  # in the order of the file
  for store, found in ((corpus.train[0], train), (corpus.val, val)):
    assert (store.tokens[store.offsets[1:] - 1] == corpus.tokenizer.eot_id).all()
    assert (store.tokens == corpus.tokenizer.eot_id).sum() == store.n_docs == len(found)
    assert store.doc_bytes.tolist() == [len(doc.encode()) for doc in found]
    assert store.n_bytes == sum(store.doc_bytes) and store.n_tokens == len(store.tokens)
    assert store.tokens.dtype == np.uint16


def test_a_cached_corpus_is_opened_without_reading_the_source(tmp_path, monkeypatch):
  write_docs(tmp_path)
  cfg = line_config(tmp_path)
  first = open_quietly(cfg)
  monkeypatch.setattr(sources, "documents", None)
  for changes in ({"seed": 7}, {"weights": (1.0,)}, {"pack": False}, {"reshuffle": False}):
    again = open_quietly(line_config(tmp_path, **changes))
    assert again.folder == first.folder and again.fingerprint == first.fingerprint
  os.utime(tmp_path / "docs.txt")
  assert open_quietly(cfg).folder == first.folder  # same content at another time


def test_what_changes_tokens_changes_the_fingerprint(tmp_path):
  write_docs(tmp_path)
  changed = [
    {},
    {"tokenizer": "char"},
    {"tokenizer": "bpe", "vocab_size": 300},
    {"tokenizer": "bpe", "vocab_size": 301},
    {"text_unit": "file", "val_split": "tail"},
    {"val_fraction": 0.3},
    {"min_chars": 30},
  ]
  corpora = [open_quietly(line_config(tmp_path, **changes)) for changes in changed]
  (tmp_path / "docs.txt").write_text((tmp_path / "docs.txt").read_text() + "one more\n")
  corpora.append(open_quietly(line_config(tmp_path)))
  assert len({c.fingerprint for c in corpora}) == len({c.folder for c in corpora}) == len(corpora)


def test_fingerprint_does_not_depend_on_place_or_chunks(tmp_path, monkeypatch):
  fingerprints = set()
  for name, chunk in (("a", 1 << 21), ("b", 50)):
    monkeypatch.setattr("lm.data.store.CHUNK_BYTES", chunk)
    monkeypatch.setattr("lm.data.spool.CHUNK", chunk)
    (tmp_path / name).mkdir()
    write_docs(tmp_path / name)
    cfg = line_config(tmp_path / name, tokenizer="bpe", vocab_size=300)
    fingerprints.add(open_quietly(cfg).fingerprint)
  assert len(fingerprints) == 1


# --- the split ---


def test_other_documents_do_not_move_a_document_between_sides(tmp_path):
  docs = write_docs(tmp_path, n=400)
  before = open_quietly(line_config(tmp_path, val_fraction=0.1))
  (tmp_path / "docs.txt").write_text("\n".join(["new", *docs[::-1], "other"]))
  after = open_quietly(line_config(tmp_path, val_fraction=0.1))
  was, now = (texts(c.val, c.tokenizer) for c in (before, after))
  assert [doc for doc in now if doc not in ("new", "other")] == was
  assert 15 < len(was) < 70
  assert was != sorted(was, key=docs.index)  # in hash order: a prefix is a fair sample
  larger = open_quietly(line_config(tmp_path, val_fraction=0.3))
  assert set(now) < set(texts(larger.val, larger.tokenizer))


def test_the_split_is_the_same_for_every_tokenizer(tmp_path):
  write_docs(tmp_path)
  kinds = [{"tokenizer": "byte"}, {"tokenizer": "char"}, {"tokenizer": "bpe", "vocab_size": 300}]
  corpora = [open_quietly(line_config(tmp_path, val_fraction=0.2, **kind)) for kind in kinds]
  assert len({c.val.fingerprint for c in corpora}) == 3
  assert len({tuple(c.val.doc_bytes) for c in corpora}) == 1


def test_equal_documents_are_on_one_side(tmp_path):
  docs = write_docs(tmp_path, n=100)
  (tmp_path / "docs.txt").write_text("\n".join(docs + [doc.upper() for doc in docs]))
  corpus = open_quietly(line_config(tmp_path, val_fraction=0.3, lower_case=True))
  train, val = texts(corpus.train[0], corpus.tokenizer), texts(corpus.val, corpus.tokenizer)
  assert not set(train) & set(val) and len(train) + len(val) == 200
  dropped = open_quietly(
    line_config(tmp_path, val_fraction=0.3, lower_case=True, drop_duplicates=True)
  )
  assert dropped.counts == {"read": 200, "duplicate": 100}
  assert sorted(texts(dropped.train[0], dropped.tokenizer)) == sorted(set(train))


@pytest.mark.parametrize("chunk", [1 << 16, 5])
def test_tail_holds_out_the_last_characters(tmp_path, monkeypatch, chunk):
  monkeypatch.setattr("lm.data.spool.CHUNK", chunk)
  docs = ["aé漢字", "b" * 10, "日本語のテキストです", "c"]
  (tmp_path / "docs.txt").write_text("\n".join(docs))
  for held_out in range(1, 13):  # of 25 characters
    fraction = held_out / 25
    corpus = open_quietly(line_config(tmp_path, val_split="tail", val_fraction=fraction))
    whole = "".join(docs)
    cut = int(25 * (1 - fraction))
    train, val = texts(corpus.train[0], corpus.tokenizer), texts(corpus.val, corpus.tokenizer)
    assert ("".join(train), "".join(val)) == (whole[:cut], whole[cut:])
    assert [doc for doc in train + val if doc in docs] == [d for d in docs if d in train + val]
    assert corpus.val.n_bytes == len(whole[cut:].encode())


def test_every_source_gives_a_store_and_its_share_of_validation(tmp_path):
  docs = write_docs(tmp_path, 80, "a.txt")
  (tmp_path / "b.txt").write_text("\n".join(doc.upper() for doc in docs))
  specs = (f"text:{tmp_path}/a.txt", f"text:{tmp_path}/b.txt")
  both = open_quietly(line_config(tmp_path, sources=specs, val_fraction=0.2))
  assert [store.name for store in both.train] == list(specs)
  assert all(text.isupper() for text in texts(both.train[1], both.tokenizer))
  one = open_quietly(line_config(tmp_path, sources=specs[:1], val_fraction=0.2))
  both_val, one_val = (texts(c.val, c.tokenizer) for c in (both, one))
  assert [text for text in both_val if not text.isupper()] == one_val and len(both_val) > len(
    one_val
  )


@pytest.mark.parametrize(
  ("content", "changes", "message"),
  [
    ("one\n", {"text_unit": "file"}, "data.val_fraction=0.05: holds out no document of text:"),
    ("\n \n", {}, "no training document is left of 2 read (2 blank); check the source"),
    ("one\n", {"min_chars": 9}, "no training document is left of 1 read (1 short); check"),
    ("", {}, "no training document is left of 0 read (none dropped)"),
  ],
)
def test_an_empty_side_is_an_error_with_a_remedy(tmp_path, content, changes, message):
  (tmp_path / "docs.txt").write_text(content)
  with pytest.raises(ConfigError) as error:
    open_quietly(line_config(tmp_path, **changes))
  assert message in str(error.value) and "\n" not in str(error.value)
  assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]  # nothing half built


def test_tfds_validation_is_its_own_split(tmp_path, monkeypatch):
  def documents(spec, cfg, split, key="data.sources"):
    return iter([f"{split} {i} of {spec}" for i in range(5)])

  monkeypatch.setattr(sources, "documents", documents)
  monkeypatch.setattr(sources, "identity", lambda *arguments: str(arguments[0]))
  cfg = data_config(tmp_path, sources=("tfds:x", "synthetic:y"), val_fraction=0.5)
  corpus = open_quietly(cfg)
  train = [texts(store, corpus.tokenizer) for store in corpus.train]
  val = texts(corpus.val, corpus.tokenizer)
  assert train[0] == [f"train {i} of tfds:x" for i in range(5)]
  assert sorted(t for t in val if "tfds" in t) == [f"val {i} of tfds:x" for i in range(5)]
  held_out = [t for t in val if "tfds" not in t]
  assert 0 < len(held_out) < 5 and sorted(held_out + train[1]) == [
    f"train {i} of synthetic:y" for i in range(5)
  ]


# --- further sets ---


def test_extra_sets_use_the_corpus_tokenizer_and_cleaning(tmp_path):
  write_docs(tmp_path)
  cfg = line_config(tmp_path, tokenizer="bpe", vocab_size=300, lower_case=True)
  corpus = open_quietly(cfg)
  (tmp_path / "other.txt").write_text("Zebra CAT\nthe cat sat\n")
  for name_spec in (f"zoo=text:{tmp_path}/other.txt", f"text:{tmp_path}/other.txt"):
    store = corpus.extra(name_spec)
    assert texts(store, corpus.tokenizer) == ["zebra cat", "the cat sat"]
    assert store.name == name_spec.partition("=")[0]
  with pytest.raises(ConfigError, match=r"eval.sets=zoo=text:none: no file matches"):
    corpus.extra("zoo=text:none")
  (tmp_path / "empty.txt").write_text("\n")
  with pytest.raises(ConfigError, match=r"data=text:.*: no document is left"):
    corpus.extra(f"text:{tmp_path}/empty.txt")


def test_describe_is_json_with_fingerprints_and_sizes(tmp_path):
  write_docs(tmp_path)
  corpus = open_quietly(line_config(tmp_path))
  told = json.loads(json.dumps(describe(corpus)))
  assert told["fingerprint"] == corpus.fingerprint
  assert told["stores"]["val"]["tokens"] == corpus.val.n_tokens
  assert told["stores"]["val"]["bytes_per_token"] == corpus.val.n_bytes / corpus.val.n_tokens


# --- building safely ---

BUILD = """
import pathlib, sys, time
from tests.corpora import line_config
from lm.data import cache, sources
read = sources.documents
def slowly(*arguments):
  with open(sys.argv[1] + "/builders", "a") as file:
    file.write("x")
  for document in read(*arguments):
    time.sleep(0.02)
    yield document
sources.documents = slowly
print(cache.open_corpus(line_config(pathlib.Path(sys.argv[1])), quiet=True).fingerprint)
"""


def start_builder(folder):
  command = [sys.executable, "-c", BUILD, str(folder)]
  return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(condition):
  deadline = time.monotonic() + 20
  while not condition():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_two_processes_that_start_together_build_once(tmp_path):
  write_docs(tmp_path)
  builders = [start_builder(tmp_path) for _ in range(2)]
  prints = [builder.communicate(timeout=60)[0] for builder in builders]
  assert [builder.returncode for builder in builders] == [0, 0]
  assert prints[0] == prints[1] == open_quietly(line_config(tmp_path)).fingerprint + "\n"
  assert (tmp_path / "builders").read_text() == "x"


def test_a_killed_builder_leaves_nothing_that_counts(tmp_path):
  write_docs(tmp_path)
  builder = start_builder(tmp_path)
  wait_for(lambda: list((tmp_path / "cache").glob(".*-*")))
  builder.send_signal(signal.SIGKILL)
  builder.communicate()
  assert list((tmp_path / "cache").glob(".*-*"))  # its remains, which the next one removes
  corpus = open_quietly(line_config(tmp_path))
  assert corpus.train[0].n_docs and not list((tmp_path / "cache").glob(".*-*"))


def test_without_locks_the_second_builder_yields_to_the_first(tmp_path, monkeypatch):
  write_docs(tmp_path)
  monkeypatch.setitem(sys.modules, "fcntl", None)  # as on Windows
  write = Spool.write

  def overtaken(*arguments):
    monkeypatch.setattr(Spool, "write", write)
    open_quietly(line_config(tmp_path))  # another builder is done meanwhile
    write(*arguments)

  monkeypatch.setattr(Spool, "write", overtaken)
  monkeypatch.setattr(folders.shutil, "rmtree", lambda *a, **k: None)
  assert open_quietly(line_config(tmp_path)).train[0].n_docs


DAMAGE = {
  "missing": lambda path: path.unlink(),
  "emptied": lambda path: path.write_bytes(b""),
  "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
  "longer": lambda path: path.write_bytes(path.read_bytes() + b"xx"),
  "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)),
  "a bit": lambda path: path.write_bytes(
    path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])
  ),
}
FILES = [
  *(f"{side}/{name}.bin" for side in ("train-0", "val") for name in ("tokens", "doc_bytes")),
  *("val/offsets.bin", "train-0/doc_hashes.bin", "val/store.json", "vocabulary.json"),
  *("counts.json", "checksums.json"),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_built_again_with_a_line(tmp_path, damage, capfd):
  write_docs(tmp_path)
  whole = open_quietly(line_config(tmp_path))
  for name in FILES:
    before = (whole.folder / name).read_bytes()
    DAMAGE[damage](whole.folder / name)
    again = open_quietly(line_config(tmp_path))
    assert again.fingerprint == whole.fingerprint and again.counts == whole.counts
    assert texts(again.val, again.tokenizer) == texts(whole.val, whole.tokenizer)
    assert (whole.folder / name).read_bytes() == before
    shown = capfd.readouterr().err
    assert shown.startswith(f"token cache {whole.folder}: ") and shown.count("\n") == 1
    assert name in shown and shown.endswith("; building it again from the source\n")


def test_a_whole_cache_is_hashed_once(tmp_path, monkeypatch):
  write_docs(tmp_path)
  monkeypatch.setattr(folders, "SETTLED_SECONDS", 0)
  corpus = open_quietly(line_config(tmp_path))
  hashed = []
  monkeypatch.setattr(
    folders, "file_digest", lambda path, read=folders.file_digest: hashed.append(path) or read(path)
  )
  open_quietly(line_config(tmp_path))
  open_quietly(line_config(tmp_path))
  assert len(hashed) == len(set(hashed))  # the second one found them remembered
  (corpus.folder / "checked.json").write_text('{"val/tokens.bin": [')
  open_quietly(line_config(tmp_path))
  assert hashed


def test_a_cache_whose_source_is_gone_is_an_error_of_the_source(tmp_path):
  write_docs(tmp_path)
  corpus = open_quietly(line_config(tmp_path))
  (corpus.folder / "val" / "tokens.bin").unlink()
  (tmp_path / "docs.txt").unlink()
  with pytest.raises(ConfigError, match=r"data.sources=text:.*: no file matches"):
    open_quietly(line_config(tmp_path))


@pytest.mark.parametrize(
  ("number", "message"),
  [
    (errno.ENOSPC, "has no room for this token cache (No space left on device); free some, or"),
    (errno.EROFS, "cannot be written (Read-only file system); choose another folder"),
    (errno.EACCES, "cannot be written (Permission denied); choose another folder"),
  ],
)
def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, number, message):
  write_docs(tmp_path)

  def refused(*arguments, **options):
    raise OSError(number, os.strerror(number))

  cfg = line_config(tmp_path)
  monkeypatch.setattr("lm.data.cache.write_store", refused)
  with pytest.raises(ConfigError) as error:
    open_quietly(cfg)
  assert str(error.value).startswith(f"data.cache_dir={tmp_path / 'cache'}: {message}")
  assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]  # nothing half built
  monkeypatch.setattr(folders.tempfile, "mkdtemp", refused)
  with pytest.raises(ConfigError, match=r"data.cache_dir="):
    open_quietly(cfg)


FULL_DISK = """
import pathlib, resource, sys
from lm.config.errors import ConfigError
from lm.data.cache import open_corpus
from tests.corpora import line_config
cfg = line_config(pathlib.Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))  # a write past it fails as on a full disk
try:
  open_corpus(cfg, quiet=True)
except ConfigError as error:
  print(error)
"""


def test_a_full_disk_ends_in_one_line_and_leaves_nothing(tmp_path):
  write_docs(tmp_path, 500)
  command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
  done = subprocess.run(command, check=True, capture_output=True, text=True)
  assert "has no room for this token cache (File too large)" in done.stdout
  assert done.stdout.count("\n") == 1
  assert not [p for p in (tmp_path / "cache").iterdir() if p.is_dir()]


def test_a_read_only_cache_that_is_whole_is_read(tmp_path, monkeypatch):
  write_docs(tmp_path)
  whole = open_quietly(line_config(tmp_path))
  (whole.folder / "checked.json").unlink(missing_ok=True)

  def refused(self, *arguments, **options):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))

  for name in ("write_text", "write_bytes", "replace"):
    monkeypatch.setattr(pathlib.Path, name, refused)
  assert open_quietly(line_config(tmp_path)).fingerprint == whole.fingerprint


def test_where_the_file_system_has_no_locks_the_corpus_is_built_all_the_same(tmp_path, monkeypatch):
  import fcntl

  def refused(*arguments):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  write_docs(tmp_path)
  monkeypatch.setattr(fcntl, "flock", refused)
  assert open_quietly(line_config(tmp_path)).val.n_docs


def test_folders_with_blanks_and_other_letters(tmp_path):
  folder = tmp_path / "mein Ördner [1], 語料" / "α β"
  folder.mkdir(parents=True)
  docs = write_docs(folder)
  corpus = open_quietly(line_config(folder))
  assert sorted(texts(corpus.train[0], corpus.tokenizer) + texts(corpus.val, corpus.tokenizer)) == (
    sorted(docs)
  )


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
  write_docs(tmp_path)
  write = Spool.write

  def disturbed(*arguments):
    write(*arguments)
    write_docs(tmp_path, 61)

  monkeypatch.setattr(Spool, "write", disturbed)
  with pytest.raises(ConfigError, match="has changed while it was read; run again"):
    open_quietly(line_config(tmp_path))


# --- overlap of the sides ---


def long_docs(n, seed, words=120):
  rng = np.random.default_rng(seed)
  return [" ".join(f"w{i}" for i in rng.integers(0, 10_000, words)) for _ in range(n)]


def brute_force(train, val, tokenizer):
  """What overlap.measure counts, from sets of tuples."""

  def cut(text):
    ids = tokenizer.encode(text)
    return [tuple(ids[i : i + 50]) for i in range(len(ids) - 49)]

  known = {run for text in train for run in cut(text)}
  runs = [[run in known for run in cut(text)] for text in val]
  return {
    "documents": len(val),
    "duplicates": sum(text in train for text in val),
    "sharing_documents": sum(any(found) for found in runs),
    "runs": sum(map(len, runs)),
    "shared_runs": sum(map(sum, runs)),
    "window": 50,
    "thinned": 1,
  }


@pytest.mark.parametrize("chunk", [1 << 15, 64])
@pytest.mark.parametrize("tokenizer", ["byte", "word"])
def test_overlap_counts_copies_and_runs_of_fifty_tokens(tmp_path, monkeypatch, tokenizer, chunk):
  monkeypatch.setattr(overlap, "CHUNK", chunk)
  train = long_docs(30, seed=1)
  words = train[3].split()
  val = [
    *long_docs(5, seed=2),
    train[7],  # a copy
    " ".join(["new", *words[10:60], "words"]),  # 50 of its words in a row
    " ".join(["new", *words[10:59], "words"]),  # 49
    "short",
    train[8].upper(),
  ]
  (tmp_path / "docs.txt").write_text("\n".join(train))
  (tmp_path / "val.txt").write_text("\n".join(val))
  cfg = line_config(tmp_path, tokenizer=tokenizer, min_freq=1)
  corpus = open_quietly(cfg)
  kept = texts(corpus.train[0], corpus.tokenizer)
  assert train[3] in kept and train[7] in kept
  corpus.extra(f"other=text:{tmp_path}/val.txt")
  assert corpus.overlap["other"] == brute_force(kept, val, corpus.tokenizer)
  assert corpus.overlap["other"]["duplicates"] == 1
  assert corpus.overlap["val"] == brute_force(
    kept, texts(corpus.val, corpus.tokenizer), corpus.tokenizer
  )
  if tokenizer == "word":
    assert corpus.overlap["other"]["sharing_documents"] == 2
  told = describe(corpus)["overlap"]
  assert set(told) == {"val", "other"}
  assert json.loads((corpus.folder / "counts.json").read_text())["overlap"] == told["val"]


def test_a_thinned_overlap_is_near_the_whole(tmp_path, monkeypatch):
  train = long_docs(40, seed=1)
  (tmp_path / "docs.txt").write_text("\n".join(train))
  (tmp_path / "val.txt").write_text("\n".join([*train[:10], *long_docs(10, seed=3)]))
  shares = []
  for name, sample in (("a", 1 << 18), ("b", 2000)):
    monkeypatch.setattr(overlap, "SAMPLE", sample)
    corpus = open_quietly(line_config(tmp_path, cache_dir=str(tmp_path / name)))
    corpus.extra(f"x=text:{tmp_path}/val.txt")
    found = corpus.overlap["x"]
    shares.append(found["shared_runs"] / found["runs"])
  assert found["thinned"] > 3 and found["runs"] < 3000
  assert abs(shares[0] - shares[1]) < 0.05


def test_overlap_and_what_is_left_out_are_said_in_a_line_each(tmp_path, capfd):
  lines = [json.dumps({"text": text}) for text in long_docs(40, seed=1)]
  (tmp_path / "docs.jsonl").write_text("\n".join([*lines, '{"text": null}', "{}", '{"text": " "}']))
  cfg = data_config(
    tmp_path, sources=(f"text:{tmp_path}/docs.jsonl",), val_fraction=0.3, tokenizer="byte"
  )
  corpus = open_corpus(cfg)
  shown = capfd.readouterr().err
  assert corpus.counts == {"read": 43, "no_text": 2, "blank": 1}
  assert "corpus: 43 documents read; left out: 2 without text, 1 blank\n" in shown
  assert "held-out documents, and no 50 tokens in a row of one, stand in training\n" in shown
  corpus.extra(f"same=text:{tmp_path}/docs.jsonl")
  assert "same: of 40 held-out documents" in capfd.readouterr().err


def test_tokens_of_text_are_all_but_the_separators(tmp_path):
  write_docs(tmp_path)
  store = open_quietly(line_config(tmp_path)).train[0]
  for n in (0, 1, int(store.offsets[1]), int(store.offsets[1]) + 1, store.n_tokens):
    assert store.n_text_tokens(n) == (store.tokens[:n] != store.eot_id).sum()


def test_a_cache_folder_that_cannot_be_made_is_an_error(tmp_path):
  write_docs(tmp_path)
  with pytest.raises(ConfigError, match=r"cannot be made .*; choose another folder"):
    open_quietly(line_config(tmp_path, cache_dir=str(tmp_path / "docs.txt" / "cache")))


def test_progress_is_shown_on_stderr_unless_quiet(tmp_path, capfd):
  write_docs(tmp_path)
  open_corpus(line_config(tmp_path, cache_dir=str(tmp_path / "loud")))
  shown = capfd.readouterr()
  assert "reading" in shown.err and "tokenising" in shown.err and shown.out == ""
  open_quietly(line_config(tmp_path, cache_dir=str(tmp_path / "still")))
  assert capfd.readouterr() == ("", "")


MEASURE = """
import pathlib, re, sys, threading, time
from tests.corpora import data_config
from lm.data import overlap, store
from lm.data.tokenizers import library
from lm.data.cache import open_corpus
library.BPE_SAMPLE_BYTES, store.CHUNK_BYTES, overlap.SAMPLE = 2_000_000, 1 << 18, 1 << 14
peak = 0
def watch():
  global peak
  while True:  # maps of files do not count: the system may drop them at any time
    status = open("/proc/self/status").read()
    peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+)", status)[1]))
    time.sleep(0.002)
threading.Thread(target=watch, daemon=True).start()
path, tokenizer = sys.argv[1:]
open_corpus(data_config(pathlib.Path(path + ".d"), sources=("text:" + path,), text_unit="line",
                        tokenizer=tokenizer, vocab_size=300), quiet=True)
print(peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux's /proc")
@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
def test_memory_does_not_grow_with_the_corpus(tmp_path, tokenizer):
  line, peaks = " ".join(write_docs(tmp_path, 20)), []
  for copies in (4_000, 16_000):
    path = tmp_path / f"{copies}.txt"
    path.write_text("".join(f"{i % 100} {line}\n" for i in range(copies)))
    command = [sys.executable, "-c", MEASURE, str(path), tokenizer]
    peaks.append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
  added = len(line) * 12_000 / 1024  # KiB
  assert peaks[1] - peaks[0] < 0.2 * added, (peaks, added)
