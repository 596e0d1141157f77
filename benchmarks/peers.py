"""The training step of a GPT in other codebases: PyTorch as nanoGPT runs it, a plain Flax loop, levanter.

Each worker takes a shape, a dtype of the products and the number of timed steps, and returns a row of
train_step.py. Parameters and AdamW are float32, gradients are clipped to norm 1, tokens random.
"""

import time
from importlib import metadata
from typing import NamedTuple

from benchmarks import bench

# --peer: its rows
ROWS = {"torch": ("torch", "torch.compile"), "flax": ("flax",), "levanter": ("levanter",)}


class Shape(NamedTuple):
  """A GPT-2 and its batch."""

  depth: int
  width: int
  heads: int
  mlp_dim: int
  vocab_size: int
  seq_len: int
  batch_size: int


def time_torch(shape: Shape, dtype: str, steps: int, compiled: bool) -> dict:
  """A plain GPT-2 with AdamW in PyTorch: the same shape, pre-layernorm, tied head, flash attention."""
  import torch

  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.set_float32_matmul_precision("high")  # TF32, as XLA's default is
  torch.manual_seed(0)
  model = torch_gpt(shape).to(device)
  optimizer = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.95), fused=True)
  forward = torch.compile(model) if compiled else model
  tokens = torch.randint(shape.vocab_size, (shape.batch_size, shape.seq_len + 1), device=device)
  inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

  def step():
    with torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16"):
      loss = forward(inputs, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()

  row = _row(shape, steps, step, torch.Tensor.item, device == "cpu")
  if device == "cpu":
    return row | bench.about("cpu")
  peak = torch.cuda.max_memory_allocated()
  return row | bench.about(torch.cuda.get_device_name()) | {"peak_bytes": peak}


def torch_gpt(shape: Shape):
  """The module (tokens, targets) -> mean cross-entropy."""
  import torch.nn as nn
  import torch.nn.functional as F

  depth, width, heads, mlp_dim, vocab, seq_len, _ = shape

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
      self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
      self.up, self.down = nn.Linear(width, mlp_dim), nn.Linear(mlp_dim, width)

    def forward(self, x):
      qkv = self.qkv(self.norm1(x)).view(*x.shape[:2], 3, heads, width // heads)
      q, k, v = qkv.permute(2, 0, 3, 1, 4)
      y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
      x = x + self.out(y.transpose(1, 2).reshape(x.shape))
      return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

  class Gpt(nn.Module):
    def __init__(self):
      super().__init__()
      self.embed, self.position = nn.Embedding(vocab, width), nn.Embedding(seq_len, width)
      nn.init.normal_(self.embed.weight, std=0.02)
      nn.init.normal_(self.position.weight, std=0.02)
      self.blocks = nn.ModuleList(Block() for _ in range(depth))
      self.norm = nn.LayerNorm(width)

    def forward(self, tokens, targets):
      x = self.embed(tokens) + self.position.weight[: tokens.shape[1]]
      for block in self.blocks:
        x = block(x)
      logits = F.linear(self.norm(x), self.embed.weight)
      return F.cross_entropy(logits.float().view(-1, vocab), targets.view(-1))

  return Gpt()


def time_flax(shape: Shape, dtype: str, steps: int) -> dict:
  """flax.linen's own layers one after the other, logits of all tokens at once: a loop as nanodo's."""
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  import optax

  class Gpt(nn.Module):
    @nn.compact
    def __call__(self, tokens):
      embed = nn.Embed(shape.vocab_size, shape.width, dtype=dtype)
      position = nn.Embed(shape.seq_len, shape.width, dtype=dtype)
      x = embed(tokens) + position(jnp.arange(shape.seq_len))[None]
      mask = nn.make_causal_mask(tokens)
      for _ in range(shape.depth):
        x += nn.MultiHeadDotProductAttention(shape.heads, dtype=dtype)(
          nn.LayerNorm(dtype=dtype)(x), mask=mask
        )
        h = nn.Dense(shape.mlp_dim, dtype=dtype)(nn.LayerNorm(dtype=dtype)(x))
        x += nn.Dense(shape.width, dtype=dtype)(nn.gelu(h))
      return embed.attend(nn.LayerNorm(dtype=dtype)(x))

  model = Gpt()
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, 0.9, 0.95))
  key = jax.random.key(0)
  tokens = jax.random.randint(key, (shape.batch_size, shape.seq_len + 1), 0, shape.vocab_size)

  def loss_of(params):
    logits = model.apply(params, tokens[:, :-1]).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()

  def update(params, state):
    loss, grads = jax.value_and_grad(loss_of)(params)
    changes, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, changes), state, loss

  params = jax.jit(model.init)(key, tokens[:, :-1])
  state = optimizer.init(params)
  update = jax.jit(update, donate_argnums=(0, 1))

  def step():
    nonlocal params, state
    params, state, loss = update(params, state)
    return loss

  row = _row(shape, steps, step, jax.block_until_ready, jax.default_backend() == "cpu")
  return row | bench.device_memory() | bench.about()


def time_levanter(shape: Shape, dtype: str, steps: int) -> dict:
  """levanter's Trainer on its own GPT-2, without its hooks and its gradient checkpointing.

  It needs an older jax than ours, in an environment that --peer_python names:
  `pip install levanter==1.2.dev1644 jax==0.7.2 jaxlib==0.7.2 gitpython chex`.
  """
  import haliax as hax
  import jax
  import jmp
  from levanter.models.gpt2 import Gpt2Config
  from levanter.models.lm_model import LmExample, compute_next_token_loss
  from levanter.optim import AdamConfig
  from levanter.tracker import NoopConfig
  from levanter.trainer import Trainer, TrainerConfig

  if shape.mlp_dim % shape.width:
    raise ValueError(f"mlp_dim={shape.mlp_dim}: levanter's is a multiple of the width")
  model = Gpt2Config(
    seq_len=shape.seq_len,
    hidden_dim=shape.width,
    num_layers=shape.depth,
    num_heads=shape.heads,
    mlp_scale=shape.mlp_dim // shape.width,
    gradient_checkpointing=False,
  )
  config = TrainerConfig(
    mp=jmp.get_policy("f32" if dtype == "float32" else f"params=float32,compute={dtype}"),
    tracker=NoopConfig(),
    train_batch_size=shape.batch_size,
    num_train_steps=1000,
    log_jaxprs=False,
    log_xla_hlo=False,
    load_checkpoint=False,
    require_accelerator=False,
    id="benchmark",
  )
  optimizer = AdamConfig(learning_rate=1e-3, beta2=0.95).build(config.num_train_steps)
  with Trainer(config, optimizer, compute_next_token_loss) as trainer:
    vocabulary, keys = hax.Axis("vocab", shape.vocab_size), jax.random.split(jax.random.key(0), 3)
    state = trainer.initial_state(keys[0], model_init=lambda: model.build(vocabulary, key=keys[1]))
    axes = (trainer.TrainBatch, model.Pos)
    tokens = hax.random.randint(keys[2], axes, 0, shape.vocab_size)
    weights = LmExample.causal_loss_mask(model.Pos).broadcast_axis(trainer.TrainBatch)
    example = LmExample(tokens=tokens, loss_mask=weights)

    def step():
      nonlocal state
      info = trainer.train_step(state, example)
      state = info.state
      return info.loss

    row = _row(shape, steps, step, float, jax.default_backend() == "cpu")
    versions = {name: metadata.version(name) for name in ("jax", "levanter")}
    about = {
      "device": jax.devices()[0].device_kind,
      "versions": versions,
    }  # it has not what we need
    return row | bench.device_memory() | about


def _row(shape, steps, step, wait, on_cpu):
  """Times `step`; its first call compiles."""
  start = time.perf_counter()
  loss = float(step())
  first = time.perf_counter() - start
  first_step_at = time.time()
  wait(step())
  seconds = bench.seconds_per_call(step, wait, steps, on_cpu)
  return {
    "tokens_per_sec": shape.batch_size * shape.seq_len / seconds,
    "compile_seconds": first - seconds,
    "first_step_at": first_step_at,
    "peak_bytes": bench.peak_rss(),
    "batch_size": shape.batch_size,
    "first_loss": loss,
    "n_devices": 1,
  }


WORKERS = {
  "torch": lambda *args: time_torch(*args, compiled=False),
  "torch.compile": lambda *args: time_torch(*args, compiled=True),
  "flax": time_flax,
  "levanter": time_levanter,
}
