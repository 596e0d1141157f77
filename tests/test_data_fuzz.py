"""Made-up corpora, tokenizer files and caches: each gives documents and tokens, or one clear line."""

import dataclasses
import gzip
import json
import shutil

import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.data import sources, tokenizers
from lm.data.cache import open_corpus
from tests.corpora import data_config, line_config, write_docs
from tests.fuzzing import cases
from tests.test_cleaning import HTML
from tests.test_sources import CSV, JSON_LINES, PACKERS, RECORDS, parquet_bytes
from tests.test_tokenizers import FAMILIES, MARKED, write_json

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st

CASES = cases(1000)
NAMES = (
  "a.txt",
  "a.jsonl",
  "a.ndjson",
  "a.json",
  "a.csv",
  "a.tsv",
  "a.parquet",
  "a",
  "a.md",
  "a.gz",
)
PLAIN = [
  JSON_LINES, JSON_LINES.replace(b"\n", b"\r"), json.dumps(RECORDS).encode(), CSV, HTML.encode(),
  "текст и\n\nслова\r\n".encode(), "utf".encode("utf-16"), b"", b"\n \n", b'{"text": null}\n{"a":[1]}',
  json.dumps(RECORDS, indent=1).encode("utf-16-le"), b"text\ta\n\"x\"\t1\n", b"\xff\xfe\x00", b"[" * 5000,
]  # fmt: skip


def damaged(draw, raw: bytes) -> bytes:
  """`raw`, or what a few accidents leave of it."""
  for kind in draw(st.lists(st.sampled_from("cut flip insert repeat drop".split()), max_size=3)):  # noqa: SIM905
    at = draw(st.integers(0, max(len(raw) - 1, 0)))
    if kind == "cut":
      raw = raw[:at]
    elif kind == "flip" and raw:
      raw = raw[:at] + bytes([raw[at] ^ (1 << draw(st.integers(0, 7)))]) + raw[at + 1 :]
    elif kind == "insert":
      raw = raw[:at] + draw(st.binary(max_size=8)) + raw[at:]
    elif kind == "repeat":
      raw = raw[:at] + raw[at : at + 40] * 2 + raw[at + 40 :]
    else:
      raw = raw[:at] + raw[at + draw(st.integers(1, 30)) :]
  return raw


@st.composite
def corpora(draw):
  """(file name, bytes, changes of the data config)."""
  kind = draw(st.sampled_from(["plain", "plain", "packed", "parquet", "bytes", "text"]))
  if kind == "bytes":
    raw = draw(st.binary(max_size=200))
  elif kind == "text":
    raw = draw(st.text(max_size=100)).encode("utf-8", "surrogatepass")
  elif kind == "parquet":
    raw = damaged(draw, PARQUET)
  else:
    raw = damaged(draw, draw(st.sampled_from(PLAIN)))
  name = draw(st.sampled_from(NAMES))
  if kind == "packed":
    packed = draw(st.sampled_from(list(PACKERS)))
    raw, name = (
      damaged(draw, PACKERS[packed](raw)),
      draw(st.sampled_from([name, f"{name}.{packed}"])),
    )
  changes = {
    "text_unit": draw(st.sampled_from(["file", "line", "paragraph"])),
    "text_field": draw(st.sampled_from(["text", "n", "a[0]", "a.b"])),
    "text_format": draw(
      st.sampled_from(["auto", "auto", "plain", "json", "csv", "tsv", "parquet"])
    ),
    **{
      key: draw(st.booleans()) for key in ("strip_html", "mask_urls", "remove_stop_words", "stem")
    },
  }
  return name, raw, changes


PARQUET = parquet_bytes([{"text": "a", "n": 1}, {"text": None, "n": 2}, {"text": "b" * 50, "n": 3}])


def is_one_line(error: ConfigError) -> bool:
  text = str(error)
  return text.startswith(("data.", "eval.")) and "\n" not in text and len(text) < 2000


@pytest.mark.slow
def test_a_thousand_corpora_are_read_or_refused_in_one_line(tmp_path):
  seen = {"read": 0, "refused": 0}

  @CASES
  @hypothesis.given(corpora())
  def check(case):
    name, raw, changes = case
    path = tmp_path / name
    path.write_bytes(raw)
    cfg = data_config(tmp_path, sources=(f"text:{path}",), **changes)
    try:
      documents = list(sources.documents(f"text:{path}", cfg, "train"))
      seen["read"] += 1
      for text in documents:
        assert text is None or text.encode() is not None
      if raw[:2] not in (b"\x1f\x8b", b"BZ", b"\xfd7", b"(\xb5") and b"PAR1" not in raw[:4]:
        assert sum(len(text.encode()) for text in documents if text) <= len(raw)
      try:
        corpus = open_corpus(dataclasses.replace(cfg, val_split="tail"), quiet=True)
      finally:
        shutil.rmtree(cfg.cache_dir, ignore_errors=True)
      stores = [corpus.train[0], corpus.val]
      counts = corpus.counts
      assert counts["read"] == len(documents)
      assert all((s.tokens == s.eot_id).sum() == s.n_docs for s in stores)
    except ConfigError as error:
      seen["refused"] += 1
      assert is_one_line(error), error
    finally:
      path.unlink()

  check()
  assert min(seen.values()) > 0.1 * sum(seen.values()), seen


TOKENIZERS = ("gpt2", "gemma", "t5", "bert", "llama3", "by id")


@st.composite
def tokenizer_files(draw):
  """(family, tokenizer.json with a value changed or bytes damaged, files beside it, overrides)."""
  family = draw(st.sampled_from(TOKENIZERS))
  odd = st.sampled_from([None, "", "</s>", "<eos>", "zzz", 0, -1, 10**9, [], {}, [[]], True, "a"])
  definition = json.loads(DEFINITIONS[family])
  for _ in range(draw(st.integers(0, 2))):
    part, key = definition, None
    for _ in range(draw(st.integers(1, 4))):
      inside = part if isinstance(part, dict) else dict(enumerate(part))
      if not inside:
        break
      before, key = part, draw(st.sampled_from(sorted(inside, key=str)[:40]))
      if isinstance(inside[key], dict | list) and draw(st.booleans()):
        part = inside[key]
      else:
        break
    if key is not None:
      if draw(st.booleans()):
        before[key] = draw(odd)
      elif isinstance(before, dict):
        before.pop(key, None)
  raw = json.dumps(definition).encode()
  if draw(st.integers(0, 3)) == 0:
    raw = damaged(draw, raw)
  beside = {}
  for name in tokenizers.SIDE_FILES:
    if draw(st.integers(0, 5)) == 0:
      keys = (
        "eos_token",
        "bos_token",
        "sep_token",
        "eos_token_id",
        "bos_token_id",
        "add_bos_token",
      )
      content = {draw(st.sampled_from(keys)): draw(odd) for _ in range(2)}
      beside[name] = draw(st.sampled_from([json.dumps(content), "", "{", "[1]", "null"]))
  token = st.sampled_from([None, None, None, "<eos>", "</s>", "a", "", "no such"])
  return raw, beside, {"separator": draw(token), "start": draw(token)}


DEFINITIONS: dict[str, str] = {}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_thousand_tokenizer_files_are_read_or_refused_in_one_line(tmp_path):
  for name in TOKENIZERS:
    DEFINITIONS[name] = write_json(tmp_path / name, **FAMILIES[name][0]).read_text()
  seen = {"read": 0, "refused": 0}

  @CASES
  @hypothesis.given(tokenizer_files())
  def check(case):
    raw, beside, changes = case
    folder = tmp_path / "case"
    folder.mkdir()
    try:
      (folder / "tokenizer.json").write_bytes(raw)
      for name, content in beside.items():
        (folder / name).write_text(content)
      cfg = data_config(tmp_path, tokenizer="huggingface", tokenizer_path=str(folder), **changes)
      made = tokenizers.make_tokenizer(cfg)
      for ids in made.encode_batch([MARKED, "plain words", "é 漢 \x00", "<eos></s>a"]):
        assert made.eot_id not in ids and ids.dtype == np.int32
        assert all(0 <= i < made.vocab_size for i in ids)
      tokenizers.save_tokenizer(made, folder)
      assert tokenizers.fingerprint(tokenizers.load_tokenizer(folder)) == (
        tokenizers.fingerprint(made)
      )
      seen["read"] += 1
    except ConfigError as error:
      seen["refused"] += 1
      assert is_one_line(error), error
    finally:
      shutil.rmtree(folder)

  check()
  assert min(seen.values()) > 0.1 * sum(seen.values()), seen


@pytest.mark.slow
def test_whatever_is_done_to_a_cache_its_numbers_stay(tmp_path, capfd):
  write_docs(tmp_path, 40)
  cfg = line_config(tmp_path, tokenizer="char", val_fraction=0.2)
  whole = open_corpus(cfg, quiet=True)
  files = sorted(path for path in whole.folder.rglob("*") if path.is_file())
  tokens = whole.val.tokens.copy()

  @cases(300)
  @hypothesis.given(st.data())
  def check(data):
    path = data.draw(st.sampled_from(files))
    if path.exists():  # checked.json may be gone with an earlier case
      path.write_bytes(damaged(data.draw, path.read_bytes()))
    again = open_corpus(cfg, quiet=True)
    assert again.fingerprint == whole.fingerprint and again.counts == whole.counts
    assert (again.val.tokens == tokens).all() and again.overlap == whole.overlap

  check()


def test_gzip_members_back_to_back_are_one_file(tmp_path):
  (tmp_path / "a.jsonl.gz").write_bytes(
    gzip.compress(JSON_LINES) + gzip.compress(JSON_LINES) + bytes(512)
  )
  cfg = data_config(tmp_path)
  found = list(sources.documents(f"text:{tmp_path}/a.jsonl.gz", cfg, "train"))
  assert found == [record["text"] for record in RECORDS] * 2
