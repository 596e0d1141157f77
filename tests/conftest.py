"""Tests run on 8 CPU devices, with dtype and rank promotion as errors; in CI a skip is a failure."""

import gc
import os
import pathlib
import re
import types

import pytest

os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
# A device may hold several threads that wait in collectives: with one thread a device they deadlock.
os.environ.setdefault("NPROC", "64")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.expanduser("~/.cache/isoflop/xla"))

import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

TESTS = str(pathlib.Path(__file__).parent)
MOST_BYTES = 3 << 30  # that a process of tests keeps from one file to the next


@pytest.fixture(autouse=True, scope="module")
def _programs_are_dropped():
  """Compiled programs stay in memory: hundreds of tests would take 8 GB a process."""
  yield
  status = pathlib.Path("/proc/self/statm")
  if (
    status.exists() and int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > MOST_BYTES
  ):
    jax.clear_caches()
    gc.collect()


# Why a test may be skipped where CI=true. Any other skip fails there: what a test needs is installed by
# .ci/run and listed in requirements-dev.txt, or the test belongs under a marker.
MAY_SKIP = (
  r"needs a GPU",
  r"no sky: pip install skypilot",  # tests/test_cloud.py: its pins clash with ours
  r"one model whose layers differ is enough",  # tests/test_decoder_fields.py: the other models
  r"encoded whole",  # tests/test_tokenizers.py: the text of this case has nothing to cut
)


# Tests that took seconds when they were timed, one a line: `.ci/times --write` makes the list. They are
# marked slow and timed: left out of `pytest -m "not slow"`, run by CI.
TIMED = pathlib.Path(__file__).with_name("timed.txt")


def pytest_collection_modifyitems(items):
  """Marks tests that ask for torch or transformers parity, and those of timed.txt slow and timed."""
  timed = set(TIMED.read_text().splitlines()) if TIMED.exists() else set()
  for item in items:
    fixtures = [d.func for defs in item._fixtureinfo.name2fixturedefs.values() for d in defs]
    if any(_compares(function, set()) for function in (item.function, *fixtures)):
      item.add_marker("parity")
    if f"{item.path.stem}::{item.name}" in timed:
      item.add_marker("slow")
      item.add_marker("timed")


def _compares(function, seen: set) -> bool:
  """Whether a function, or one of this repository's that it names, asks for torch or transformers."""
  code = getattr(function, "__code__", None)
  if code is None or code in seen or not code.co_filename.startswith(TESTS):
    return False
  seen.add(code)
  names, words = _names_and_words(code)
  if "importorskip" in names and any(w.startswith(("torch", "transformers")) for w in words):
    return True
  return any(_compares(function.__globals__.get(name), seen) for name in names)


def _names_and_words(code) -> tuple[set[str], set[str]]:
  """The names that code reads and its strings, with those of the functions inside it."""
  names, words = set(code.co_names), set()
  for constant in code.co_consts:
    if isinstance(constant, str):
      words.add(constant)
    elif isinstance(constant, types.CodeType):
      inner = _names_and_words(constant)
      names, words = names | inner[0], words | inner[1]
  return names, words


def unexplained(reason: str) -> str | None:
  """Why a skip of that reason is a failure in CI, or None where it is not.

  TESTS_WITHOUT names packages, with commas between, that this environment goes without.
  """
  if os.environ.get("CI") != "true" or any(re.search(known, reason) for known in MAY_SKIP):
    return None
  missing = re.search(r"could not import '([\w.]+)'", reason)
  without = [name for name in os.environ.get("TESTS_WITHOUT", "").split(",") if name]
  if missing and missing[1].split(".")[0] in without:
    return None
  remedy = (
    "add it to requirements-dev.txt" if missing else "list it in MAY_SKIP of tests/conftest.py"
  )
  return f"skipped in CI, where every test must run: {reason}; {remedy}"


def _fail_if_unexplained(report) -> None:
  if not report.skipped or hasattr(report, "wasxfail"):
    return
  reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
  why = unexplained(reason)
  if why:
    report.outcome, report.longrepr = "failed", why


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
  report = yield
  _fail_if_unexplained(report)
  return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
  report = yield
  _fail_if_unexplained(report)
  return report
