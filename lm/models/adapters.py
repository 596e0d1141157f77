"""Low-rank adapters (LoRA) taken into the matrices that they stand beside."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lm.models.trees import by_path, nested


def merge_adapters(params: Mapping[str, Any], section: Any) -> tuple[dict[str, Any], Any]:
  """(parameters with W + alpha / r A B in place of W, A and B, the section without adapters).

  The merged model computes the same with fewer products (Hu et al. 2021, arXiv:2106.09685 §4.1). A model
  without adapters comes back as it is.

  Args:
    params: nested, layers stacked or apart.
    section: resolved.
  """
  if getattr(section, "lora_rank", None) is None:
    return dict(params), section
  flat = by_path(params)
  scale = section.lora_alpha / section.lora_rank
  merged = {k: a for k, a in flat.items() if k.rpartition("/")[2] not in ("lora_a", "lora_b")}
  for name in merged:
    path, _, last = name.rpartition("/")
    if last == "kernel" and f"{path}/lora_a" in flat:
      merged[name] = merged[name] + scale * (flat[f"{path}/lora_a"] @ flat[f"{path}/lora_b"])
  return nested(merged), dataclasses.replace(section, lora_rank=None)
