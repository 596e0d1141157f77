"""What published training runs reach of a chip's peak, which plans are calibrated on: one row a run.

A row says tokens/s a device where its source does, else operations/s; both are compared with what a plan
says at UTILISATION. MaxText counts operations as this project's convention `exact` does, to within a few
percent: matrix products of the model and half of the attention square.
"""

from collections.abc import Mapping
from typing import NamedTuple

README, RECIPES = "MaxText README (2025)", "MaxText recipes (2025)"
LARGE = 1e9  # parameters of the smallest run that a row's utilisation is taken to hold for
UNKNOWN = 0.4  # utilisation of smaller runs, and of chips without a row

# exact convention; one figure a chip, between its rows
UTILISATION = {"TPU7x": 0.53, "TPU v6e": 0.46, "TPU v5p": 0.66, "TPU v5e": 0.60, "H100": 0.50}


class Published(NamedTuple):
  """One run.

  Args:
    chip: a key of lm.devices.chips.CHIPS.
    what: model, precision, devices.
    shape: {key of the config: value} over configs/llama.py:7b, where `tokens_per_sec` is given.
    tokens_per_sec: of one device; None where the source says a utilisation.
    utilisation: of the peak, in the source's own count of operations; None where it says tokens/s.
    source: where it is printed.
    off: why the plan is more than 15 % away from it; "" where it is not.
  """

  chip: str
  what: str
  shape: Mapping[str, int]
  tokens_per_sec: float | None
  utilisation: float | None
  source: str
  off: str = ""


LLAMA_8B = {
  "model.kv_heads": 8, "model.mlp_dim": 14336, "model.vocab_size": 128_256, "model.seq_len": 8192,
}  # fmt: skip
LLAMA_70B = {
  "model.width": 8192, "model.depth": 80, "model.heads": 64, "model.kv_heads": 8,
  "model.mlp_dim": 28672, "model.vocab_size": 128_256, "model.seq_len": 8192,
}  # fmt: skip

PUBLISHED = (
  Published("TPU7x", "Llama 3.1 70B, bf16", {}, None, 1207 / 2307, RECIPES),
  Published("TPU7x", "Llama 3.1 405B, bf16", {}, None, 0.55, RECIPES),
  Published("TPU v6e", "Llama 3.1 8B, bf16, 8 to 256 chips, most", LLAMA_8B, 7247, None, RECIPES),
  Published("TPU v6e", "Llama 3.1 8B, bf16, 8 to 256 chips, least", LLAMA_8B, 7020, None, RECIPES),
  Published("TPU v6e", "Llama 3.1 70B, bf16, 256 chips", LLAMA_70B, 948, None, RECIPES),
  Published("TPU v5p", "32B, bf16, 64 chips", {}, None, 0.6776, README),
  Published("TPU v5p", "128B, bf16, 128 chips", {}, None, 0.6868, README),
  Published("TPU v5p", "1160B, bf16, 6144 chips", {}, None, 0.6623, README),
  Published("TPU v5e", "16B, bf16, 256 chips", {}, None, 0.6110, README),
  Published("TPU v5e", "128B, bf16, 256 chips", {}, None, 0.5606, README),
  Published("H100", "Llama 2 7B, bf16, 8 GPUs", {}, 22.2 * 4096 / 8, None, "NVIDIA (2024), 22.2 rows/s"),
)  # fmt: skip


def utilisation(chip: str, n_params: float) -> float:
  """What a plan takes for a run of so many parameters where nobody says another one."""
  return UTILISATION.get(chip, UNKNOWN) if n_params >= LARGE else UNKNOWN
