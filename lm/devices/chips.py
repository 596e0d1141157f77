"""What accelerators can do and cost, from their makers' data sheets: one row a chip.

Peaks are dense (no sparsity), at the boost clock, in operations/s. `float32` is what XLA does with
float32 matmuls at default precision: TF32 on a GPU, one bfloat16 pass on a TPU. `link` is what
leaves a chip over all its `ports` of ICI, or over NVLink or Infinity Fabric (ports = 0: a switch or a full
mesh joins the GPUs of a host), in one direction; `network` is its share of its host's data-centre network,
between slices or hosts.

Prices are on-demand list prices for an hour of one chip in the United States; those of GPUs are an
eighth of an 8-GPU instance. They move, and contracts and other clouds lie far below: look them up
before you budget. `source` says where each row's figures and price come from, and of when.

JAX sees each TPU7x chip as two devices, so its row is of half a chip; its links and network are halved, too.
"""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
  device_kinds: tuple[str, ...]  # parts of jax.Device.device_kind; the first row that fits counts
  bfloat16: float
  float8: float | None  # None: not in hardware
  int8: float | None  # None: not published
  float32: float
  hbm: float  # bytes
  hbm_bandwidth: float  # bytes/s
  link: float  # bytes/s
  ports: int
  network: float | None  # bytes/s; None: not published
  price: float | None  # USD an hour; None: no on-demand price is published
  source: str


GOOGLE = "cloud.google.com/tpu/docs/{} (2025); price cloud.google.com/tpu/pricing (2025-06)"
NVIDIA = "NVIDIA {} data sheet; network and price aws.amazon.com/ec2 {} (2025-06)"

# device_kinds, bfloat16, float8, int8, float32, hbm, hbm_bandwidth, link, ports, network, price
CHIPS = {
  "TPU7x": Chip(
    ("TPU7x", "TPU v7"), 1153.5e12, 2307e12, None, 1153.5e12, 96 * GIB, 3690e9, 300e9, 6, 6.25e9,
    None, "half of a chip: cloud.google.com/tpu/docs/tpu7x (2026-01)",
  ),
  "TPU v6e": Chip(
    ("TPU v6 lite", "TPU v6e"), 918e12, None, 1836e12, 918e12, 32 * GIB, 1638e9, 400e9, 4, 12.5e9,
    2.70, GOOGLE.format("v6e"),
  ),
  "TPU v5e": Chip(
    ("TPU v5 lite", "TPU v5e"), 197e12, None, 393e12, 197e12, 16 * GIB, 819e9, 200e9, 4, 3.125e9,
    1.20, GOOGLE.format("v5e"),
  ),
  "TPU v5p": Chip(
    ("TPU v5",), 459e12, None, 918e12, 459e12, 95 * GIB, 2765e9, 600e9, 6, 6.25e9,
    4.20, GOOGLE.format("v5p"),
  ),
  "TPU v4": Chip(
    ("TPU v4",), 275e12, None, 275e12, 275e12, 32 * GIB, 1228e9, 300e9, 6, None,
    3.22, GOOGLE.format("v4"),
  ),
  "GB200": Chip(
    ("GB200",), 2500e12, 5000e12, 5000e12, 1250e12, 186e9, 8000e9, 900e9, 0, 50e9,
    None, "NVIDIA GB200 NVL72 data sheet (2024), a 72nd; sold by reservation; network aws.amazon.com/ec2 p6e",
  ),
  "B300": Chip(
    ("B300",), 2250e12, 4500e12, None, 1125e12, 268e9, 8000e9, 900e9, 0, 100e9,
    None, "NVIDIA HGX B300 data sheet (2025); network aws.amazon.com/ec2 p6-b300 (2025-12)",
  ),
  "B200": Chip(
    ("B200",), 2250e12, 4500e12, 4500e12, 1100e12, 180e9, 8000e9, 900e9, 0, 50e9,
    14.24, NVIDIA.format("HGX B200, 1,000 W (2024),", "p6-b200"),
  ),
  "H200": Chip(
    ("H200",), 989e12, 1979e12, 1979e12, 494e12, 141e9, 4800e9, 450e9, 0, 50e9,
    7.91, NVIDIA.format("H200 SXM (2024)", "p5en"),
  ),
  "H100": Chip(
    ("H100",), 989e12, 1979e12, 1979e12, 494e12, 80e9, 3350e9, 450e9, 0, 50e9,
    6.88, NVIDIA.format("H100 SXM (2023)", "p5"),
  ),
  "A100 40GB": Chip(
    ("A100-SXM4-40GB",), 312e12, None, 624e12, 156e12, 40e9, 1555e9, 300e9, 0, 6.25e9,
    2.74, NVIDIA.format("A100 SXM (2021)", "p4d"),
  ),
  "A100 80GB": Chip(
    ("A100",), 312e12, None, 624e12, 156e12, 80e9, 2039e9, 300e9, 0, 6.25e9,
    3.43, NVIDIA.format("A100 SXM (2021)", "p4de"),
  ),
  "MI300X": Chip(
    ("MI300X",), 1307e12, 2615e12, 2615e12, 654e12, 192e9, 5300e9, 448e9, 0, 50e9,
    6.00, "AMD Instinct MI300X data sheet (2023); network and price Azure ND96isr MI300X v5 (2025-06)",
  ),
}  # fmt: skip


def find_chip(device_kind: str) -> Chip | None:
  """The row of CHIPS for jax.Device.device_kind; None for CPUs and chips that it lacks.

  >>> find_chip("NVIDIA H100 80GB HBM3").hbm
  80000000000.0
  """
  name = name_of(device_kind)
  return None if name is None else CHIPS[name]


def name_of(device_kind: str) -> str | None:
  """The key of CHIPS for jax.Device.device_kind; None where it has none."""
  matches = (n for n, chip in CHIPS.items() if any(k in device_kind for k in chip.device_kinds))
  return next(matches, None)


def peak_flops(device_kind: str, dtype: str) -> float | None:
  """Peak dense operations/s of one device in `dtype`; None where the chip or its float8 is unknown.

  Args:
    device_kind: jax.Device.device_kind, "NVIDIA H100 80GB HBM3" for example.
    dtype: "bfloat16", "float32", "float8" or "int8".
  """
  chip = find_chip(device_kind)
  return None if chip is None else getattr(chip, dtype)
