"""What linear maps read on calibration text: X^T X of the inputs of each."""

import dataclasses
from collections.abc import Iterable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lm.config.schema import ModelConfig
from lm.models.layers import Linear
from lm.models.registry import make_model
from lm.models.trees import unstack_layers


def input_products(
  cfg: ModelConfig, params: Mapping, batches: Iterable[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
  """{"blocks/attn/q/kernel": float32 [layers, in, in], ...}: X^T X of every linear map of the blocks.

  Inputs are those of the model as it is; maps that were changed before them are not taken into account.

  Args:
    cfg: resolved section of a family whose `hidden` reads tokens.
    params: layers stacked.
    batches: of the kind "tokens"; positions of weight 0 do not count.
  """
  plain = dataclasses.replace(cfg, scan_layers=False, remat="none", dropout=0.0)
  model, params = make_model(plain), unstack_layers(params)

  @jax.jit
  def products(params, batch):
    found, real_BL = {}, batch["weights"] > 0

    def watch(method, args, kwargs, context):
      if isinstance(context.module, Linear) and context.method_name == "__call__":
        x_TD = jnp.where(real_BL[:, :, None], args[0], 0).astype(jnp.float32)
        x_TD = x_TD.reshape(-1, x_TD.shape[-1])
        found["/".join(context.module.path)] = x_TD.T @ x_TD
      return method(*args, **kwargs)

    with nn.intercept_methods(watch):
      args = (batch["tokens"], batch.get("positions"), batch.get("segments"))
      model.apply({"params": params}, *args, method="hidden")
    return found

  total: dict[str, np.ndarray] = {}
  for batch in batches:
    for name, product in products(params, batch).items():
      product = np.asarray(product)
      total[name] = total[name] + product if name in total else product
  layers: dict[str, dict[int, np.ndarray]] = {}
  for name, product in total.items():
    block, _, rest = name.partition("/")
    layers.setdefault(f"blocks/{rest}/kernel", {})[int(block.removeprefix("block_"))] = product
  return {name: np.stack([of[i] for i in sorted(of)]) for name, of in layers.items()}
