"""UL2 (Tay et al. 2022, arXiv:2205.05131): a T5 that fills in seven kinds of gaps, told by a token which.

DENOISERS is the paper's table 1: R, regular spans as T5's; S, a prefix to go on from; X, extreme ones, longer
or of half the text. They take turns evenly, and a row begins with the token of its mode (§3.1.2, §3.2). A
mean span of L/4 in one piece, the paper's S, is the last quarter of a row.
Sizes: smoke (seconds), tiny (minutes on a CPU), base (§4: T5's base with gated MLPs, rows of 512), 20b (§5:
32 layers a stack, width 4096, MLP 16384, 16 heads of 256, silu gates).

Command:   python train.py --config configs/ul2.py:tiny
Hardware:  tiny: 2 CPU cores; base, 20b: accelerators
Score:     base: the paper fine-tunes it after 500,000 steps of 128 rows of C4 (§4); not trained here
"""

from configs import t5

DENOISERS = (
  "R:0.15x3", "R:0.15x8",
  "S:0.25xtail",
  "X:0.5x3", "X:0.5x8", "X:0.15x64", "X:0.5x64",
)  # fmt: skip
SIZES = {
  "smoke": "smoke",
  "tiny": "tiny",
  "base": "base-1.1",
  "20b": "base-1.1",
}  # of configs/t5.py


def get_config(size="smoke"):
  if size not in SIZES:
    raise KeyError(f"no size {size} of UL2; choose from {', '.join(SIZES)}")
  config = t5.get_config(SIZES[size])
  with config.unlocked():
    model = config.model
    config.objective.denoisers = DENOISERS
    model.target_len = model.seq_len  # half of a row may be taken out
    if size in ("base", "20b"):
      model.activation = "swiglu"
      config.train.steps = 500_000
    if size == "20b":
      model.width, model.depth, model.mlp_dim = 4096, 32, 16_384
      model.heads, model.head_dim = 16, 256
      model.base_width = 4096
      model.remat = "full"
      config.train.batch_size = 1024
      config.train.steps = 2_000_000
  return config
