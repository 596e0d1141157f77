"""Named sizes, 0.1M to 1B non-embedding parameters: the rungs of a scaling ladder.

Llama-style blocks (RoPE, RMSNorm, SwiGLU) with head_dim 32 up to width 256 and 64 or 128 above, and a
depth that grows with width about as in Hoffmann et al. 2022, table A9. Data and tokenizer are those of
configs/default.py; change them with --config.data.*.

SIZE@TOKENS, as in 1m@20e6, is a size with a budget: learning rate and batch then come from the Step Law (Li
et al. 2025, arXiv:2503.04715), or from another rule of lm/setup/rules.py with --config.rules=NAME.

Command:   python train.py --config configs/ladder.py:1m --config.train.tokens_per_param=20
Hardware:  0.1m to 3m on a CPU; from 10m on an accelerator
"""

from configs import default

#            width depth heads  seq_len batch peak_lr
LADDER = {
  "0.1m": (64, 2, 2, 256, 16, 6e-3),
  "0.3m": (96, 3, 3, 256, 16, 5e-3),
  "1m": (160, 3, 5, 256, 16, 4e-3),
  "3m": (256, 4, 8, 256, 16, 3e-3),
  "10m": (384, 6, 6, 512, 32, 2e-3),
  "30m": (576, 8, 9, 1024, 64, 1.5e-3),
  "100m": (832, 12, 13, 1024, 128, 1e-3),
  "300m": (1152, 19, 9, 2048, 128, 7e-4),
  "1b": (1920, 23, 15, 2048, 256, 4e-4),
}


def get_config(size: str = "1m"):
  size, _, tokens = size.partition("@")
  if size not in LADDER:
    raise KeyError(f"no size {size} in the ladder; choose from {', '.join(LADDER)}")
  width, depth, heads, seq_len, batch_size, peak_lr = LADDER[size]
  config = default.get_config()
  with config.unlocked():
    config.model.width = width
    config.model.depth = depth
    config.model.heads = heads
    config.model.seq_len = seq_len
    config.train.batch_size = batch_size
    config.optim.peak_lr = peak_lr
    config.train.tokens = None
    config.train.tokens_per_param = 20.0
    if tokens:
      try:
        config.train.tokens = int(float(tokens))
      except ValueError:
        raise KeyError(f"{tokens} is no number of tokens; write {size}@20e6") from None
      config.train.tokens_per_param = None
      config.rules = "step_law"
  return config
