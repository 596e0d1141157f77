"""T5 (Raffel et al. 2020, arXiv:1910.10683): spans taken out of text, to be filled in.

Sizes: smoke (seconds), tiny (minutes on a CPU), small, base, large, 3b, 11b; VERSION 1.0 or 1.1 after a dash
(base-1.1: geglu and a readout of its own, https://github.com/google-research/text-to-text-transfer-transformer).

Command:   python train.py --config configs/t5.py:tiny
Score:     benchmarks/README.md, "What each family reaches"; the paper's base: 2^19 steps of 128 rows
           of 512 tokens of C4, then 83.28 GLUE (§3.1)
"""

from ml_collections import ConfigDict

from configs import default

SIZES = {  # (width, layers of each stack, heads, head width, mlp): the paper's §3.1.1, and the released 1.1
  "smoke": (32, 1, 2, 16, 64),
  "tiny": (128, 4, 4, 32, 512),
  "small": (512, 6, 8, 64, 2048),
  "base": (768, 12, 12, 64, 3072),
  "large": (1024, 24, 16, 64, 4096),
  "3b": (1024, 24, 32, 128, 16384),
  "11b": (1024, 24, 128, 128, 65536),
  "small-1.1": (512, 8, 6, 64, 1024),
  "base-1.1": (768, 12, 12, 64, 2048),
  "large-1.1": (1024, 24, 16, 64, 2816),
}


def get_config(size="smoke"):
  width, depth, heads, head_dim, mlp_dim = SIZES[size]
  small = size in ("smoke", "tiny")
  config = default.get_config()
  with config.unlocked():
    config.model = model = ConfigDict()
    model.family = "t5"
    model.seq_len = 128 if small else 512  # tokens of a row's source, spans taken out
    model.target_len = 32 if small else 114  # tokens of what is to be filled in
    model.width = width
    model.depth = depth  # layers of the encoder
    model.decoder_depth = None  # layers of the decoder; None = depth
    model.heads = heads
    model.head_dim = head_dim
    model.mlp_dim = mlp_dim
    model.vocab_size = None if small else 32_128  # None = the tokenizer's, and the sentinels
    model.positions = "relative"
    model.buckets = 32  # of distances, for which each head learns a number
    model.max_distance = 128  # tokens; farther ones share a bucket
    model.norm = "rmsnorm"
    model.norm_position = "pre"
    model.norm_eps = 1e-6
    model.activation = "geglu" if size.endswith("-1.1") else "relu"
    model.bias = False
    model.tied_embeddings = not size.endswith("-1.1")
    model.dropout = 0.0  # 1.0 was pre-trained with 0.1
    model.init = "fan_in"
    model.parameterization = "standard"
    model.base_width = width
    model.base_head_dim = None
    model.dtype = "float32" if small else "bfloat16"
    model.scan_layers = True
    model.matmul = "dtype"
    model.remat = "none" if small else "dots"  # none | dots | full
    model.attention = "auto"
    config.objective = objective = ConfigDict()
    objective.name = "span_corruption"
    objective.chunk = None
    objective.z_loss = 0.0 if small else 1e-4
    objective.label_smoothing = 0.0
    objective.denoisers = ("0.15x3",)  # [MODE:]RATExSPAN or RATExtail; several take turns (UL2)
    config.optim.name = "adafactor"  # §3.1.2
    config.optim.schedule = "inverse_sqrt"
    config.optim.peak_lr = 1e-2
    config.optim.weight_decay = 0.0
    config.optim.warmup_frac = 0.02
    config.train.batch_size = 128
    config.train.tokens = None
    config.train.steps = 2**19
    config.sample.tokens = 0
    if small:
      config.optim.name = "adamw"
      config.optim.schedule = "cosine"
      config.optim.peak_lr = 3e-3
      config.train.batch_size = 16
      config.train.steps = 1000
    if size == "smoke":
      config.data.sources = ("synthetic:markov-64-s1",)
      config.data.tokenizer = "byte"
      config.optim.peak_lr = 1e-2
      config.train.batch_size = 8
      config.train.steps = 60
      config.eval.tokens = 4096
      config.eval.every_steps = 30
      config.log.wandb = "disabled"
  return config
