"""Tests run on 8 CPU devices, with dtype and rank promotion as errors; in CI a skip is a failure."""

import gc
import os
import pathlib
import re

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


PARITY = re.compile(r"importorskip\(\s*\"(torch|transformers)")


def pytest_collection_modifyitems(items):
  """Tests of files that compare with torch or transformers are marked parity."""
  compares = {path: bool(PARITY.search(path.read_text())) for path in {i.path for i in items}}
  for item in items:
    if compares[item.path]:
      item.add_marker("parity")


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
