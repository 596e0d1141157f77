"""Transformer-XL (Dai et al. 2019, arXiv:1901.02860): a decoder that remembers the tokens before its row.

enwik8: the paper's 12 layers on the bytes of Wikipedia (§4, and enwik8_base of the released code): width 512,
8 heads of 64, MLP 2048, rows of 512 behind a memory of 512, batch 22, Adam 2.5e-4 by cosine over 400,000
steps, dropout 0.1, post-norm. Two things are others: distances are rotations (rope) in place of the paper's
learned biases (§3.3), and evaluation's memory is training's 512 in place of 3,800.
small: 4 layers of width 128 on the default corpus, rows of 64 behind a memory of 128.
smoke: seconds.

Command:   python train.py --config configs/transformer_xl.py:small
Hardware:  small: 2 CPU cores; enwik8: an accelerator
Score:     enwik8: 1.06 bits/byte in the paper (41M parameters)
"""

from ml_collections import ConfigDict

from configs import default

#          depth width heads mlp   seq_len memory batch
SIZES = {
  "smoke": (2, 32, 2, None, 16, 24, 8),
  "small": (4, 128, 4, None, 64, 128, 64),
  "enwik8": (12, 512, 8, 2048, 512, 512, 22),
}


def get_config(size: str = "smoke"):
  if size not in SIZES:
    raise KeyError(f"no size {size} of a Transformer-XL; choose from {', '.join(SIZES)}")
  depth, width, heads, mlp, seq_len, memory, batch = SIZES[size]
  config = default.get_config()
  with config.unlocked():
    model = config.model
    model.depth, model.width, model.heads, model.mlp_dim = depth, width, heads, mlp
    model.seq_len, model.memory = seq_len, memory
    config.objective = objective = ConfigDict()
    objective.name = "truncated_bptt"
    objective.chunk = None  # positions per cross-entropy chunk; None = whole rows at once
    objective.z_loss = 0.0  # weight of mean(log Z ** 2)
    objective.label_smoothing = 0.0  # in [0, 1)
    objective.activation_l2 = 0.0  # AR: weight of the outputs' mean square
    objective.slowness = 0.0  # TAR: weight of their change's mean square
    config.train.batch_size = batch
    if size == "smoke":
      config.data.sources = ("synthetic:markov-64-s1",)
      config.data.tokenizer = "byte"
      config.optim.peak_lr = 1e-2
      config.train.tokens = None
      config.train.steps = 60
      config.eval.tokens = 4096
      config.eval.every_steps = 30
      config.sample.prompt = "a"
      config.sample.tokens = 8
      config.log.wandb = "disabled"
    if size == "enwik8":
      config.data.sources = ("text:enwik8",)
      config.data.tokenizer = "byte"
      config.data.val_split = "tail"
      config.data.val_fraction = 0.05
      model.norm, model.norm_position, model.activation = "layernorm", "post", "relu"
      model.bias, model.dropout, model.init = True, 0.1, "gpt2"
      config.optim.name = "adam"
      config.optim.peak_lr = 2.5e-4
      config.optim.b2 = 0.999
      config.optim.weight_decay = 0.0
      config.optim.clip_norm = 0.25
      config.optim.warmup_frac = 0.0
      config.optim.final_lr_frac = 0.0
      config.train.tokens = None
      config.train.steps = 400_000
      config.eval.tokens = None
      config.sample.prompt = "The "
  return config
