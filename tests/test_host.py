"""A program starts on large pages where the kernel gives them to those who ask."""

import os
import subprocess
import sys

import pytest

from lm.devices import host

ASKED = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


@pytest.mark.parametrize(("switch", "environ", "expected"), [
  ("always [madvise] never", {"HOME": "/h"}, {"HOME": "/h", **ASKED}),
  ("always [madvise] never", {"GLIBC_TUNABLES": "a.b=1"},
   {"GLIBC_TUNABLES": "a.b=1:glibc.malloc.hugetlb=1"}),
  ("always [madvise] never", {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"},
   {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}),
  ("[always] madvise never", {}, {}),
  ("always madvise [never]", {}, {}),
  (None, {}, {}),
])  # fmt: skip
def test_they_are_asked_for_where_that_helps(tmp_path, monkeypatch, switch, environ, expected):
  monkeypatch.setattr(host, "SWITCH", tmp_path / "enabled")
  if switch is not None:
    host.SWITCH.write_text(switch + "\n")
  assert host.with_large_pages(environ) == expected


PROGRAM = """
import os, pathlib, sys
from lm.devices import host
host.SWITCH = pathlib.Path(sys.argv[1])
host.take_large_pages()
print(os.getpid(), os.environ.get("GLIBC_TUNABLES"), *sys.argv[2:])
"""


def test_the_program_starts_over_once_with_its_arguments(tmp_path):
  (tmp_path / "enabled").write_text("always [madvise] never\n")
  env = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
  process = subprocess.Popen(
    [sys.executable, "-c", PROGRAM, str(tmp_path / "enabled"), "a b", "--c=*"],
    cwd=os.path.dirname(os.path.dirname(__file__)),
    env=env,
    text=True,
    stdout=subprocess.PIPE,
  )
  output, _ = process.communicate(timeout=60)
  assert output == f"{process.pid} glibc.malloc.hugetlb=1 a b --c=*\n"
