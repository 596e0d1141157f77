"""The table of chips: names that JAX reports, and figures that hang together."""

import pytest

from experiments.launch import throughput
from lm.config.errors import ConfigError
from lm.devices.chips import CHIPS, find_chip, peak_flops


@pytest.mark.parametrize("device_kind, name", [
  ("TPU v4", "TPU v4"),
  ("TPU v5 lite", "TPU v5e"),
  ("TPU v5", "TPU v5p"),
  ("TPU v5p", "TPU v5p"),
  ("TPU v6 lite", "TPU v6e"),
  ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
  ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
  ("NVIDIA H100 80GB HBM3", "H100"),
  ("NVIDIA H200", "H200"),
  ("NVIDIA B200", "B200"),
  ("NVIDIA GB200", "GB200"),
  ("NVIDIA B300 SXM6 AC", "B300"),
  ("AMD Instinct MI300X", "MI300X"),
  ("TPU7x", "TPU7x"),
])  # fmt: skip
def test_device_kinds_find_their_chip(device_kind, name):
  assert find_chip(device_kind) is CHIPS[name]


def test_a_name_that_is_part_of_another_chips_means_its_own():
  assert throughput.from_chip("b200", 0.4, "bfloat16").where.startswith("B200 at")
  assert throughput.from_chip("gb200", 0.4, "bfloat16").where.startswith("GB200 at")
  assert throughput.from_chip("v5e", 0.4, "bfloat16").where.startswith("TPU v5e at")
  with pytest.raises(ConfigError, match=r"chip=a100: must name one of .* A100 40GB or A100 80GB"):
    throughput.from_chip("a100", 0.4, "bfloat16")


def test_unknown_devices_have_no_peak():
  for device_kind in ("cpu", "Some Other Chip"):
    assert find_chip(device_kind) is None
    assert peak_flops(device_kind, "bfloat16") is None


def test_peaks():
  assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
  assert peak_flops("NVIDIA H100 80GB HBM3", "float8") == 1979e12
  assert peak_flops("TPU v5 lite", "float32") == 197e12
  assert peak_flops("NVIDIA A100-SXM4-80GB", "float8") is None


@pytest.mark.parametrize("name", CHIPS)
def test_figures_hang_together(name):
  """Units slip by factors of 8, 1000 or 2 (bits, tera, sparsity, both directions)."""
  chip = CHIPS[name]
  assert chip.float8 is None or chip.float8 == pytest.approx(2 * chip.bfloat16, rel=0.01)
  assert 0.45 * chip.bfloat16 < chip.float32 <= chip.bfloat16
  assert 100 < chip.bfloat16 / chip.hbm_bandwidth < 700  # FLOP a byte
  # TPU7x: 7,380 GB/s of memory, 600 of links, a chip
  assert 3 < chip.hbm_bandwidth / chip.link < 13
  assert 5 < chip.hbm / chip.hbm_bandwidth * 1000 < 40  # ms to read it all
  if chip.price is not None:
    assert 1e17 < chip.bfloat16 * 3600 / chip.price < 1.5e18  # FLOP a dollar
  assert chip.source and any(
    year in chip.source for year in ("2021", "2023", "2024", "2025", "2026")
  )
