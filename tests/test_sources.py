"""Sources give the documents that are there, in a fixed order, or say what is wrong and where."""

import ast
import bz2
import csv
import gzip
import hashlib
import importlib.metadata
import io
import json
import lzma
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from lm.config.errors import ConfigError
from lm.data import cleaning, sources
from lm.data.sources import docstrings, python, synthetic
from tests.corpora import data_config


def zipped(data: bytes) -> bytes:
  """gzip with the same bytes at any time, as test names hold them."""
  return gzip.compress(data, mtime=0)


def read(spec, tmp_path, split="train", **changes):
  return list(sources.documents(spec, data_config(tmp_path, **changes), split))


# --- docstrings and python ---


@pytest.fixture(scope="module")
def docs():
  return list(docstrings.read("data.sources=docstrings"))


def test_docstrings_hold_what_the_packages_print(docs):
  found = set(docs)
  for documented in (np.linalg.norm, np.ndarray, np.ndarray.sort, np.average):
    body = docstrings.dedent(documented.__doc__)  # ndarray's come from add_newdoc
    assert any(body in doc or doc.endswith(body) for doc in found), documented
  assert len(docs) > 5000


@pytest.mark.skipif(
  [importlib.metadata.version(p) for p in docstrings.PACKAGES] != ["2.4.6", "1.17.1"],
  reason="the bytes belong to these versions",
)
def test_docstrings_are_the_same_bytes_on_every_machine(docs):
  digest = hashlib.blake2b("\0".join(docs).encode(), digest_size=8).hexdigest()
  # Change these with the pins in requirements.txt or with what lm/data/sources/docstrings.py takes, and the
  # README's expected loss with them.
  assert (digest, len(docs)) == ("65c9a1c9131111e5", 6259)


def test_docstrings_import_nothing():
  code = (
    "import sys; from lm.data.sources import docstrings; next(docstrings.read('x'));"
    "assert 'scipy' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_dedent_matches_pep_257():
  doc = "  First line.  \n\n    Body\n      more\n\tend\n    "
  assert docstrings.dedent(doc) == "First line.\n\nBody\n  more\n    end"


def test_python_gives_the_standard_library_without_tests(tmp_path):
  found = read("python", tmp_path)
  assert len(found) > 400
  assert any(doc.startswith('"""Implementation of JSONDecoder') for doc in found)
  paths = [path.as_posix() for path in python.source_files()]
  assert not [p for p in paths if "/test/" in p or "site-packages" in p]
  for doc in found[:20]:
    ast.parse(doc)


# --- text ---


@pytest.mark.parametrize(
  ("unit", "expected"),
  [
    ("file", ["one\ntwo\n\nthree\n", "é\r\n"]),
    ("line", ["one", "two", "", "three", "é"]),
    ("paragraph", ["one\ntwo", "three", "é"]),
  ],
)
def test_text_units(tmp_path, unit, expected):
  (tmp_path / "b.txt").write_bytes("é\r\n".encode())
  (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
  assert read(f"text:{tmp_path}/*.txt", tmp_path, text_unit=unit) == expected


def test_text_reads_jsonl_and_gz_alike(tmp_path):
  lines = [json.dumps({"body": text, "n": 1}) for text in ("ä\nb", "c")]
  (tmp_path / "a.jsonl").write_text("\n\n".join(lines) + "\n")
  with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
    file.write(lines[1])
  with gzip.open(tmp_path / "c.txt.gz", "wt") as file:
    file.write("d\n")
  assert read(f"text:{tmp_path}/*", tmp_path, text_field="body") == ["ä\nb", "c", "c", "d\n"]


def test_text_drops_the_utf8_signature_only_at_the_start(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\xef\xbb\xbftwo\n")
  assert read(f"text:{tmp_path}/a.txt", tmp_path, text_unit="line") == ["one", "\ufefftwo"]


RECORDS = [{"text": "ä\nb", "n": 1}, {"text": 'c, "d"'}, {"text": "e\tf"}]
TEXTS = [record["text"] for record in RECORDS]
JSON_LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
ROWS = io.StringIO(newline="")
csv.writer(ROWS).writerows([["n", "text"], *([i, text] for i, text in enumerate(TEXTS))])
CSV = ROWS.getvalue().encode()


def parquet_bytes(rows):
  pyarrow = pytest.importorskip("pyarrow")
  from pyarrow import parquet

  sink = io.BytesIO()
  parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
  return sink.getvalue()


def zstd_bytes(raw):
  zstandard = pytest.importorskip("zstandard")
  half = len(raw) // 2
  return b"".join(zstandard.ZstdCompressor().compress(part) for part in (raw[:half], raw[half:]))


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd_bytes}


@pytest.mark.parametrize("packed", [None, *PACKERS])
@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("a.jsonl", JSON_LINES),
    ("a.JSONL", JSON_LINES),
    ("a.ndjson", JSON_LINES),
    ("a.json", JSON_LINES),  # as C4 is distributed
    ("a", JSON_LINES),
    ("part-00000", JSON_LINES.replace(b"\n", b"\r\n")),
    ("a.jsonl", JSON_LINES.replace(b"\n", b"\r")),
    ("a.jsonl", b"\xef\xbb\xbf" + JSON_LINES),
    ("a.json", json.dumps(RECORDS).encode()),
    ("a.json", b"\xef\xbb\xbf \n" + json.dumps(RECORDS, indent=2).encode() + b"\n"),
    ("a.json", b"\n".join(json.dumps(r, indent=1).encode() for r in RECORDS)),
    ("a.csv", CSV),
    ("a.CSV", b"\xef\xbb\xbf" + CSV),
    ("a.tsv", b"text\tn\n" + b"".join(b'"%s"\t1\n' % t for t in (b"x", b'y ""z""'))),
  ],
)
def test_records_are_documents_however_they_are_packed(tmp_path, name, content, packed):
  if packed:
    name, content = f"{name}.{packed}", PACKERS[packed](content)
  (tmp_path / name).write_bytes(content)
  expected = ["x", 'y "z"'] if "tsv" in name else TEXTS
  assert read(f"text:{tmp_path}/a*", tmp_path) == expected if name[0] == "a" else True
  assert read(f"text:{tmp_path}/*", tmp_path) == expected


@pytest.mark.parametrize("packed", [None, *PACKERS])
def test_content_decides_before_the_name(tmp_path, packed):
  content = JSON_LINES if packed is None else PACKERS[packed](JSON_LINES)
  (tmp_path / "a.jsonl").write_bytes(content)  # compressed, with no suffix that says so
  assert read(f"text:{tmp_path}/a.jsonl", tmp_path) == TEXTS


def test_a_column_of_bytes_is_the_same_text_as_one_of_characters(tmp_path):
  """A mark at the start of a file is none at the start of a cell: as text it was kept, as bytes dropped."""
  for name, cell in (("a", "\ufeffone"), ("b", "\ufeffone".encode())):
    (tmp_path / f"{name}.parquet").write_bytes(parquet_bytes([{"text": cell}]))
    assert read(f"text:{tmp_path}/{name}.parquet", tmp_path) == ["\ufeffone"]


def test_parquet_is_read_by_its_column(tmp_path):
  rows = [{"text": text, "meta": {"body": text.upper()}} for text in TEXTS]
  rows[1]["text"] = None
  for name in ("a.parquet", "b.bin"):
    (tmp_path / name).write_bytes(parquet_bytes(rows))
    spec = f"text:{tmp_path}/{name}"
    assert read(spec, tmp_path) == [TEXTS[0], None, TEXTS[2]]
    assert read(spec, tmp_path, text_field="meta.body") == [text.upper() for text in TEXTS]
  whole = (tmp_path / "a.parquet").read_bytes()
  for broken in (whole[:-9], whole[: len(whole) // 2], b"", b"PAR1"):
    (tmp_path / "a.parquet").write_bytes(broken)
    with pytest.raises(ConfigError, match=r"a.parquet is not a whole parquet file"):
      read(f"text:{tmp_path}/a.parquet", tmp_path)


def test_large_json_arrays_are_read_across_chunks(tmp_path, monkeypatch):
  records = [{"n": i, "text": f"é{i}" * (i % 50), "x": [1.5e3, {"y": None}]} for i in range(300)]
  for indent in (None, 1):
    (tmp_path / "a.json").write_text(json.dumps(records, indent=indent, ensure_ascii=False))
    for chunk in (1, 7, 1 << 20):
      monkeypatch.setattr("lm.data.sources.readers.utf8.CHUNK", chunk)
      found = read(f"text:{tmp_path}/a.json", tmp_path)
      assert found == [record["text"] for record in records]


@pytest.mark.parametrize(
  ("field", "expected"),
  [
    ("a.b", "one"),
    ("c[1]", "three"),
    ("d[0].e", "four"),
    ("f.g", "written so"),
    ("h[0][1].i", "deep"),
  ],
)
def test_fields_inside_fields(tmp_path, field, expected):
  record = {
    "a": {"b": "one"}, "c": ["two", "three"], "d": [{"e": "four"}], "f.g": "written so",
    "h": [[0, {"i": "deep"}]],
  }  # fmt: skip
  (tmp_path / "a.jsonl").write_text(json.dumps(record))
  assert read(f"text:{tmp_path}/a.jsonl", tmp_path, text_field=field) == [expected]
  with pytest.raises(ConfigError) as error:
    read(f"text:{tmp_path}/a.jsonl", tmp_path, text_field="text")
  assert "a.jsonl:1 has no such text; it has: a.b, c[0], d[0].e, f.g" in str(error.value)


@pytest.mark.parametrize("field", ["", "a..b", "a[", "a[x]", "[0]", ".a", "a]", "a[0]b"])
def test_what_is_no_field_is_refused(tmp_path, field):
  (tmp_path / "a.jsonl").write_text("{}")
  with pytest.raises(ConfigError, match=r"^data.text_field=.*: must be names with dots between"):
    read(f"text:{tmp_path}/a.jsonl", tmp_path, text_field=field)


def test_records_without_text_are_none(tmp_path):
  lines = ['{"text": null}', '{"text": "a"}', "{}", '{"text": {"text": "b"}, "x": 1}'][:3]
  (tmp_path / "a.jsonl").write_text("\n".join(lines))
  (tmp_path / "b.csv").write_text("n,text\n1,b\n2\n\n3,\n")
  assert read(f"text:{tmp_path}/*", tmp_path) == [None, "a", None, "b", None, ""]
  counts = Counter()
  kept = list(cleaning.cleaned([None, "a", None], data_config(tmp_path), counts))
  assert kept == ["a"] and counts == {"read": 3, "no_text": 2}


def test_old_line_ends(tmp_path):
  (tmp_path / "a.txt").write_bytes(b"one\rtwo\r\rthree\r")
  spec = f"text:{tmp_path}/a.txt"
  assert read(spec, tmp_path, text_unit="line") == ["one", "two", "", "three"]
  assert read(spec, tmp_path, text_unit="paragraph") == ["one\rtwo", "three"]
  (tmp_path / "a.txt").write_bytes(b"one\rtwo\nthree\r\n")  # CR within a line of LF ends
  assert read(spec, tmp_path, text_unit="line") == ["one\rtwo", "three"]
  (tmp_path / "a.csv").write_bytes(b"text,n\rone,1\rtwo,2\r")
  assert read(f"text:{tmp_path}/a.csv", tmp_path) == ["one", "two"]


def test_files_without_content_give_no_document(tmp_path):
  for name in ("a.jsonl", "a.json", "a.csv", "a.ndjson", "a"):
    (tmp_path / name).write_bytes(b"")
    assert "".join(read(f"text:{tmp_path}/{name}", tmp_path)) == ""
  (tmp_path / "a.json").write_text("[]")
  assert read(f"text:{tmp_path}/a.json", tmp_path) == []
  (tmp_path / "a.csv").write_text("text\n")
  assert read(f"text:{tmp_path}/a.csv", tmp_path) == []


def test_a_format_can_be_named(tmp_path):
  (tmp_path / "a.txt").write_bytes(JSON_LINES)
  spec = f"text:{tmp_path}/a.txt"
  assert read(spec, tmp_path, text_format="plain") == [JSON_LINES.decode()]
  assert read(spec, tmp_path, text_format="json") == TEXTS
  (tmp_path / "a.txt").write_bytes(CSV)
  assert read(spec, tmp_path) == [CSV.decode()]
  assert read(spec, tmp_path, text_format="csv") == TEXTS
  assert len({
    sources.identity(spec, data_config(tmp_path, text_format=name), "train")
    for name in ("auto", "csv", "plain")
  }) == 3  # fmt: skip


@pytest.mark.parametrize(
  ("name", "content", "unit", "message"),
  [
    ("a.txt", b"abc\n\xffdef", "file", "a.txt is not UTF-8 at byte 4 (0xff); convert it"),
    ("a.txt", b"abc\nd\xe9f", "line", "a.txt is not UTF-8 at byte 5 (0xe9); convert it"),
    ("a.txt", b"\xef\xbb\xbfab\xff", "file", "a.txt is not UTF-8 at byte 5 (0xff); convert it"),
    ("a.txt", "ab".encode("utf-16"), "file", "a.txt is not UTF-8 at byte 0 (0xff), but utf-16;"),
    (
      "a.txt",
      "ab".encode("utf-16-le"),
      "line",
      "a.txt is not UTF-8 text at byte 1 (0x00), but looks",
    ),
    ("a.txt", "ab".encode("utf-32"), "line", "a.txt is not UTF-8 at byte 0 (0xff), but utf-32"),
    ("a.jsonl", JSON_LINES.decode().encode("utf-16"), "file", "is not UTF-8 at byte 0 (0xff)"),
    ("a.csv", "text\nä\n".encode("latin1"), "file", "a.csv is not UTF-8 at byte 5 (0xe4)"),
    ("a.json", '[{"text": "ä"}]'.encode("latin1"), "file", "a.json is not UTF-8 at byte 11 (0xe4)"),
    ("a.txt.gz", b"not gzip", "file", "a.txt.gz is not a whole gzip file"),
    ("a.txt.gz", b"", "file", "a.txt.gz is not a whole gzip file"),
    ("a.txt.gz", zipped(b"abc" * 999)[:-9], "file", "a.txt.gz is not a whole gzip file"),
    ("a.txt.xz", lzma.compress(b"abc" * 999)[:-9], "file", "a.txt.xz is not a whole xz file"),
    ("a.txt.bz2", bz2.compress(b"abc" * 999)[:-9], "line", "a.txt.bz2 is not a whole bzip2 file"),
    ("a.txt.bz2", bz2.compress(b"abc" * 999)[:14] + b"xxxxx", "file", "not a whole bzip2 file"),
    ("a.txt.zst", b"(\xb5/\xfd\x04", "file", "a.txt.zst is not a whole zstd file"),
    ("a.gz", zipped(zipped(b"abc")), "file", "a.gz is compressed twice; decompress"),
    ("a.txt", b"PK\x03\x04abc", "file", "a.txt is a zip archive; unpack it"),
    ("a.txt", b"%PDF-1.4 abc", "line", "a.txt is a PDF; take its text, e.g. with pdftotext"),
    (
      "a.tgz",
      zipped(b"x" * 257 + b"ustar" + b"y" * 250),
      "file",
      "is a tar archive; unpack",
    ),
    ("a.parquet.gz", zipped(b"PAR1\0"), "file", "is parquet inside gzip; decompress it"),
    ("a.txt", JSON_LINES, "file", "a.txt holds JSON lines; rename it .jsonl, or set data.text_f"),
    ("a.jsonl", b'{"text": "x"}\n{text}\n', "file", "a.jsonl:2 is not JSON"),
    ("a.jsonl", b'{"a":' * 99999, "file", "a.jsonl:1 is not JSON ("),
    ("a.jsonl", b"[1]\n", "file", "a.jsonl:1 is no JSON object; write one on each line"),
    ("a.jsonl", b'{"body": "x", "n": 1}\n', "file", "a.jsonl:1 has no such text; it has: body"),
    ("a.jsonl", b'{"text": 5, "n": 1}\n', "file", "a.jsonl:1 has a number there, no text; it has"),
    (
      "a.jsonl",
      b'{"text": ["x"]}\n',
      "file",
      "a.jsonl:1 has a list there, no text; it has: text[0]",
    ),
    ("a.jsonl", b'{"text": "\\ud800"}\n', "file", "a.jsonl:1 has a lone surrogate"),
    ("a.json", b"plain words", "file", "a.json is not JSON after record 0 (Expecting value"),
    ("a.json", b'[{"text": "x"}, ', "file", "a.json is not JSON after record 1 ("),
    ("a.json", b'[{"text": "x"}', "file", "not JSON after record 1 (the array does not end)"),
    ("a.json", b'[{"text": "x"} {"text": "y"}]', "file", "record 1 (a comma is missing)"),
    ("a.json", b'[{"text": "x"},]', "file", "a.json is not JSON after record 1 (Expecting value"),
    ("a.json", b'[{"text": "x"}] x', "file", "record 1 (something follows the array)"),
    ("a.json", b'["x"]', "file", "a.json record 1 is no JSON object; give objects with the field"),
    ("a.json", b"[" * 99999, "file", "a.json is not JSON after record 0 ("),
    ("a.csv", b"body,n\nx,1\n", "file", "a.csv has no such column; it has: body, n"),
    ("a.csv", b"text,text\nx,1\n", "file", "a.csv has 2 columns of that name; rename one"),
    ("a.csv", b"n,text\n1,x, y\n", "file", "a.csv:2 has 3 fields, and the first row names 2"),
    ("a.csv", b'text\n"x\n', "file", "a.csv:2 is not csv (unexpected end of data); mend"),
    ("a.tsv", b'text\tn\n"x\ty\n', "file", "a.tsv:2 has a field that begins with a quote and does"),
  ],
)
def test_bad_text_is_named_with_its_place(tmp_path, name, content, unit, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ConfigError) as error:
    read(f"text:{tmp_path}/a.*", tmp_path, text_unit=unit)
  assert message in str(error.value)
  assert str(error.value).startswith("data.") and "\n" not in str(error.value)


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_a_cut_zstd_file_is_not_a_whole_one(tmp_path, cut):
  whole = zstd_bytes(b"".join(b"%d " % i for i in range(999)))
  (tmp_path / "a.zst").write_bytes(whole[:-cut])
  with pytest.raises(ConfigError, match=r"a.zst is not a whole zstd file"):
    read(f"text:{tmp_path}/a.zst", tmp_path)


@pytest.mark.parametrize(
  ("package", "name", "content", "message"),
  [
    ("zstandard", "a.zst", b"(\xb5/\xfd\x04", "which needs zstandard; pip install zstandard"),
    ("pyarrow", "a.parquet", b"PAR1", "a.parquet is parquet; pip install pyarrow"),
  ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, package, name, content, message):
  monkeypatch.setitem(sys.modules, package, None)
  monkeypatch.setitem(sys.modules, "compression", None)  # of Python 3.14
  (tmp_path / name).write_bytes(content)
  with pytest.raises(ConfigError) as error:
    read(f"text:{tmp_path}/{name}", tmp_path)
  assert message in str(error.value)


def test_a_source_without_a_single_text_is_refused_early(tmp_path, monkeypatch):
  monkeypatch.setattr("lm.data.sources.readers.fields.PATIENCE", 3)
  (tmp_path / "a.jsonl").write_text('{"body": "x"}\n' * 5)
  found = sources.documents(f"text:{tmp_path}/a.jsonl", data_config(tmp_path), "train")
  assert [next(found), next(found)] == [None, None]
  with pytest.raises(ConfigError, match=r"a.jsonl:1 has no such text; it has: body"):
    next(found)


# --- tfds ---


@pytest.fixture(scope="module")
def tfds_folder(tmp_path_factory):
  tfds = pytest.importorskip("tensorflow_datasets")
  folder = tmp_path_factory.mktemp("tfds")

  class TinyText(tfds.core.GeneratorBasedBuilder):
    __module__ = "tiny_text"  # a dataset of a package would need importlib_resources
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      features = {"text": tfds.features.Text(), "label": tfds.features.Scalar(np.int64)}
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
      )

    def _split_generators(self, dl_manager):
      return {"train": self._generate_examples(300), "validation": self._generate_examples(3)}

    def _generate_examples(self, n):
      for i in range(n):
        yield i, {"text": f"exämple {i} of {n}", "label": i}

  TinyText(data_dir=folder, file_format="array_record").download_and_prepare()
  return str(folder)


@pytest.mark.filterwarnings("ignore")  # tfds's own
def test_tfds_reads_both_splits_without_tensorflow(tfds_folder, tmp_path):
  options = {"tfds_dir": tfds_folder}
  train = read("tfds:tiny_text", tmp_path, **options)
  assert train == [f"exämple {i} of 300" for i in range(300)]
  assert read("tfds:tiny_text", tmp_path, "val", **options)[2] == "exämple 2 of 3"
  part = read("tfds:tiny_text", tmp_path, tfds_splits=("train[:10%]", ""), **options)
  assert part == train[:30]
  assert "tensorflow" not in sys.modules
  ids = {
    sources.identity(
      "tfds:tiny_text", data_config(tmp_path, tfds_splits=(s, ""), **options), "train"
    )
    for s in ("train", "train[:10%]", "validation")
  }
  assert len(ids) == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
  ("spec", "changes", "message"),
  [
    ("tfds:tiny_txt", {}, "tfds cannot open split train (Dataset tiny_txt not found.); check"),
    ("tfds:tiny_text", {"tfds_splits": ("tes", "")}, "cannot open split tes"),
    (
      "tfds:tiny_text",
      {"text_field": "body"},
      "no such feature in data.sources=tfds:tiny_text; it",
    ),
    ("tfds:tiny_text", {"text_field": "label"}, "data.text_field=label: not a text feature"),
  ],
)
def test_tfds_errors_are_one_line(tfds_folder, tmp_path, spec, changes, message):
  with pytest.raises(ConfigError) as error:
    read(spec, tmp_path, tfds_dir=tfds_folder, **changes)
  assert message in str(error.value) and "\n" not in str(error.value)


# --- synthetic ---


@pytest.mark.parametrize(
  "count", ["9" * 5000, "9" * 400, "99999999999", "0", "\u0663", "-1", "1e3", "x", ""]
)
def test_made_sources_have_counts_that_end(tmp_path, count):
  """Digits of other scripts, counts that no day would see the end of, and those too long to read."""
  of = "markov-{}-s1", "markov-8-s{}", "markov-8-s1-n{}"
  specs = [f"synthetic:{name.format(count)}" for name in of if (name, count) != (of[1], "0")]
  specs += [f"oracle:{name.format(count)}" for name in ("{}-l20", "64-l{}", "64-l20-n{}")]
  specs += [f"facts:{count}", f"reversed:{count}"]
  for spec in specs:
    with pytest.raises(ConfigError, match=r"data.sources=(.|\n)*; use ") as error:
      next(iter(sources.documents(spec, data_config(tmp_path), "train")))
    assert "\n" not in str(error.value)


def test_the_true_chain_attains_the_entropy_rate():
  name = "markov-16-s1.5-n1000"
  chain = synthetic.parse(name, "x")
  matrix = synthetic.transition_matrix(chain)
  np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)
  nats = characters = 0
  for doc in synthetic.read(name, "x"):
    states = np.frombuffer(doc.encode(), np.uint8).astype(int) - synthetic.FIRST_CHARACTER
    path = np.concatenate([[chain.states], states, [chain.states]])  # from separator to separator
    nats -= np.log(matrix[path[:-1], path[1:]]).sum()
    characters += len(doc)
  assert nats / characters == pytest.approx(synthetic.entropy_rate(name), rel=4e-3)
  # A model without memory cannot: the floor is one of order 1.
  counts = np.array(list(Counter("".join(synthetic.read(name, "x"))).values()))
  unigram = -(counts / counts.sum() * np.log(counts / counts.sum())).sum()
  assert unigram > synthetic.entropy_rate(name) + 0.3


def test_entropy_rate_is_that_of_the_stationary_chain():
  name = "markov-10-s2"
  matrix = synthetic.transition_matrix(synthetic.parse(name, "x"))
  values, vectors = np.linalg.eig(matrix.T)
  stationary = np.real(vectors[:, np.argmax(values.real)])
  stationary /= stationary.sum()
  logs = np.log(np.where(matrix > 0, matrix, 1))
  per_token = -(stationary[:, None] * matrix * logs).sum()
  assert synthetic.loss_floor(name) == pytest.approx(per_token, rel=1e-9)


def test_synthetic_documents_never_change():
  docs = list(synthetic.read("markov-64-s1-n40", "x"))
  assert docs == list(synthetic.read("markov-64-s1-n40", "x"))
  digest = hashlib.blake2b("\0".join(docs).encode(), digest_size=8).hexdigest()
  assert (len(docs), digest) == (40, "b33801015b4a2865")
