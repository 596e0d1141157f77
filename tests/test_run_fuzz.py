"""Made-up settings, run directories and checkpoints with accidents: a clean answer, or one clear line.

FUZZ_CASES says how many of each kind; `python benchmarks/fuzz.py` takes 1,000.
"""

import functools
import json
import shutil

import pytest

from experiments.ledger.ledger import read_ledger
from lm.config.read import run_config_file, to_config
from lm.config.schema import Config, flatten
from lm.cost.parameters import run_counts
from lm.runs import manifest, rundir, summary
from lm.runs.record import check_record
from lm.setup.checks import check
from lm.setup.load import load_config, sections_of
from lm.setup.resolve import resolve
from tests.fake_runs import SMOKE, VOCAB, fake_run
from tests.fuzzing import answer, cases

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st

CASES = cases(200)
SPECS = (
  "configs/smoke.py",
  "configs/gpt2.py:124m",
  "configs/bert.py:smoke",
  "configs/lstm.py:smoke",
)


# --- settings ---------------------------------------------------------------------------------------

KEYS = sorted(flatten(load_config(SMOKE)))
NUMBERS = st.integers(-3, 70) | st.integers(-(2**70), 2**70) | st.floats(allow_nan=True)
VALUES = (
  NUMBERS.map(str)
  | st.sampled_from(
    ["None", "True", "", "()", "a,b", "adamw", "rope", "[1", "1e400", "nan", "*", "0x1"]
  )
  | st.text(max_size=6)
)


@functools.cache
def config_dict(spec):
  return run_config_file(spec)


def settle(spec, changes) -> Config:
  cfg = to_config(config_dict(spec), changes, sections_of)
  check(cfg)
  cfg = resolve(cfg, 300, 1)
  assert run_counts(cfg).total > 0 and cfg.train.steps >= 1
  return cfg


def test_made_up_settings_resolve_or_are_refused_in_one_line():
  keys = st.sampled_from(KEYS) | st.text("abcdefgmodl._", max_size=12)
  seen = {True: 0, False: 0}

  @CASES
  @hypothesis.given(st.sampled_from(SPECS), st.dictionaries(keys, VALUES, min_size=1, max_size=3))
  def check_one(spec, changes):
    changes.pop("extensions", None)  # imports what it names
    seen[answer(settle, spec, changes) is not None] += 1

  check_one()
  # Both outcomes occur; the more keys there are, the fewer made-up values fit one (5 % at 190 keys).
  assert min(seen.values()) > 0.02 * sum(seen.values()), seen


# --- run directories --------------------------------------------------------------------------------


@st.composite
def accidents(draw, raw: bytes) -> bytes:
  """What a few accidents leave of a file's bytes."""
  for _ in range(draw(st.integers(1, 3))):
    at = draw(st.integers(0, max(len(raw) - 1, 0)))
    kind = draw(
      st.sampled_from(["cut", "flip", "insert", "drop", "empty", "null", "value", "lines"])
    )
    if kind == "cut":
      raw = raw[:at]
    elif kind == "flip" and raw:
      raw = raw[:at] + bytes([raw[at] ^ (1 << draw(st.integers(0, 7)))]) + raw[at + 1 :]
    elif kind == "insert":
      raw = raw[:at] + draw(st.binary(max_size=8)) + raw[at:]
    elif kind == "drop":
      raw = raw[:at] + raw[at + draw(st.integers(1, 30)) :]
    elif kind == "empty":
      raw = b""
    elif kind == "null":
      raw = draw(st.sampled_from([b"null", b"[]", b"{}", b'"x"', b"3", b"\0" * 20, b"NaN\n"]))
    elif kind == "lines":
      lines = raw.splitlines(keepends=True)
      raw = b"".join(draw(st.permutations(lines))) if len(lines) < 12 else b"".join(lines[::-1])
    else:
      raw = with_another_value(draw, raw)
  return raw


def with_another_value(draw, raw: bytes) -> bytes:
  """The file with one value of its JSON, at any depth, replaced."""
  try:
    whole = json.loads(raw)
  except ValueError:
    return raw
  at = whole
  while isinstance(at, dict) and at:
    key = draw(st.sampled_from(sorted(at)))
    if isinstance(at[key], dict) and at[key] and draw(st.booleans()):
      at = at[key]
      continue
    other = draw(st.none() | st.integers(-3, 3) | st.text(max_size=3) | st.just([1]) | st.just({}))
    at[key] = other
    break
  return json.dumps(whole).encode()


def use(workdir):
  """Whatever reads a run directory before anything is trained."""
  cfg = answer(rundir.read_config, workdir)
  answer(rundir.read_run, workdir)
  answer(check_record, workdir, 30)
  answer(rundir.last_metrics, workdir)
  answer(summary.show, [workdir])
  if cfg is not None:
    answer(rundir.check_same_run, workdir, MINE)
    answer(rundir.is_done, workdir, cfg)
    answer(rundir.data_change, workdir, {"fingerprint": "x", "tokenizer": {"fingerprint": "y"}})


MINE = resolve(load_config(SMOKE), VOCAB, 1)
FILES = ("config.json", "run.json", "metrics.jsonl", "perf.jsonl", "samples.jsonl")


def test_run_directories_after_accidents_are_read_or_refused_in_one_line(tmp_path):
  workdir = tmp_path / "runs" / "x"
  fake_run(workdir)
  (workdir / "samples.jsonl").write_text('{"step": 30, "prompt": "a", "text": "b"}\n')
  whole = {name: (workdir / name).read_bytes() for name in FILES}
  use(workdir)

  @CASES
  @hypothesis.given(st.data())
  def check_one(data):
    name = data.draw(st.sampled_from(FILES))
    (workdir / name).write_bytes(data.draw(accidents(whole[name])))
    try:
      use(workdir)
      answer(read_ledger, [tmp_path / "runs"])
    finally:
      (workdir / name).write_bytes(whole[name])

  check_one()


# --- checkpoints ------------------------------------------------------------------------------------


def test_no_accident_to_a_checkpoint_goes_unseen(tmp_path):
  folder = tmp_path / "20"
  (folder / "default" / "d").mkdir(parents=True)
  for name, size in {"_METADATA": 300, "d/a": 5000, "d/b": 10, "manifest.ocdbt": 100}.items():
    (folder / "default" / name).write_bytes(bytes(i * 7 % 256 for i in range(size)))
  manifest.write_checksums(folder)
  assert manifest.find_damage(folder) is None
  files = sorted(p for p in folder.rglob("*") if p.is_file())
  whole = {path: path.read_bytes() for path in files}

  @CASES
  @hypothesis.given(st.data())
  def check_one(data):
    path = data.draw(st.sampled_from(files))
    found = data.draw(accidents(whole[path]) | st.none())
    path.unlink() if found is None else path.write_bytes(found)
    try:
      is_checksums = path.name == manifest.NAME
      if found != whole[path] and not (is_checksums and _says_the_same(found, whole[path])):
        assert manifest.find_damage(folder) is not None or (is_checksums and found is None)
    finally:
      path.write_bytes(whole[path])

  check_one()
  shutil.rmtree(folder)
  assert manifest.find_damage(folder) == "is no folder"


def _says_the_same(found, whole) -> bool:
  """Whether damaged checksums still name the same sums, or fewer: a file left out of them is not compared."""
  try:
    mine, all_of_them = json.loads(found), json.loads(whole)
    return isinstance(mine, dict) and mine.items() <= all_of_them.items()
  except (TypeError, ValueError):
    return False
