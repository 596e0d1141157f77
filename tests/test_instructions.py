"""What a CPU can do is read from its flags, and said where it matters."""

import types

import pytest

from lm.devices import instructions
from lm.plan import run_plan
from tests.test_step import config

MILAN = {"sse4_2", "avx", "avx2", "fma"}
GENOA = {*MILAN, "avx512f", "avx512_bf16"}


@pytest.fixture(autouse=True)
def _flags_are_read_anew():
  instructions.flags.cache_clear()
  yield
  instructions.flags.cache_clear()


@pytest.mark.parametrize(("text", "name", "bfloat16"), [
  ("processor : 0\nflags\t\t: fpu sse4_2 avx avx2 fma\n", "avx2", False),
  ("flags : sse4_2 avx avx2 avx512f avx512_bf16\nflags : none\n", "avx512", True),
  ("flags : sse4_2 avx avx2 avx512f amx_bf16\n", "avx512", True),
  ("flags : sse4_2 avx avx2 avx512f\n", "avx512", False),
  ("Features\t: fp asimd bf16\n", "neon", True),
  ("processor : 0\n", "vax", True),  # nothing is known
  (None, "vax", True),
])  # fmt: skip
def test_flags_of_proc_cpuinfo(text, name, bfloat16, tmp_path, monkeypatch):
  monkeypatch.setattr(instructions, "CPUINFO", tmp_path / "cpuinfo")
  monkeypatch.setattr(instructions.platform, "machine", lambda: "vax")
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  if text is not None:
    instructions.CPUINFO.write_text(text)
  assert instructions.vector_set() == name
  assert instructions.multiplies_bfloat16() is bfloat16


def test_a_limit_of_xla_is_one_of_the_cpu():
  assert instructions.multiplies_bfloat16(GENOA, "")
  assert not instructions.multiplies_bfloat16(GENOA, "--a=1 --xla_cpu_max_isa=AVX2")
  assert instructions.multiplies_bfloat16(GENOA, "--xla_cpu_max_isa=avx512_bf16")
  assert not instructions.multiplies_bfloat16(MILAN, "")


@pytest.mark.parametrize(("dtype", "hardware", "said"), [
  ("bfloat16", False, True), ("bfloat16", True, False), ("float32", False, False),
])  # fmt: skip
def test_a_plan_says_that_bfloat16_is_emulated(dtype, hardware, said, monkeypatch):
  monkeypatch.setattr(instructions, "multiplies_bfloat16", lambda: hardware)
  plan = run_plan.make_plan(config(model__dtype=dtype))
  assert ("bfloat16 is emulated on this CPU" in run_plan.show(plan)) is said
  assert ("emulated" in plan.to_dict()) is said


def test_a_plan_for_other_chips_takes_no_notice_of_this_cpu(monkeypatch):
  monkeypatch.setattr(instructions, "multiplies_bfloat16", lambda: False)
  chip = types.SimpleNamespace(device_kind="TPU v5 lite")
  plan = run_plan.make_plan(config(model__dtype="bfloat16"), None, [chip])
  assert plan.emulated is None
