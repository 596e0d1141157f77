"""The Transformer of Vaswani et al. 2017 (arXiv:1706.03762), trained on pairs of sentences.

Sizes: smoke (seconds), multi30k (3 layers, width 256: a small set of captions), base (the paper's).

Command:   python train.py --config configs/transformer.py:multi30k \
             --config.data.sources=parallel:train.en.gz+train.de.gz \
             --config.eval.sets=flickr=parallel:val.en.gz+val.de.gz
Score:     benchmarks/README.md, "What each family reaches"; the paper's base: 27.3 BLEU on WMT 2014
           English-German after 100,000 steps of 25,000 source and as many target tokens
"""

from ml_collections import ConfigDict

from configs import default

SIZES = {  # (width, layers of each stack, heads, mlp, tokens of a row, rows, dropout)
  "smoke": (32, 1, 2, 64, 32, 8, 0.0),
  "multi30k": (256, 3, 4, 1024, 128, 32, 0.1),
  "base": (512, 6, 8, 2048, 256, 98, 0.1),
}


def get_config(size="smoke"):
  width, depth, heads, mlp_dim, seq_len, rows, dropout = SIZES[size]
  config = default.get_config()
  with config.unlocked():
    config.model = model = ConfigDict()
    model.family = "encoder_decoder"
    model.seq_len = seq_len  # tokens of a row's sources
    model.target_len = None  # tokens of a row's targets; None = seq_len
    model.width = width
    model.depth = depth  # layers of the encoder
    model.decoder_depth = None  # layers of the decoder; None = depth
    model.heads = heads
    model.head_dim = None  # None = width / heads
    model.mlp_dim = mlp_dim
    model.vocab_size = None  # None = the tokenizer's
    model.positions = "sinusoidal"  # §3.5; sinusoidal | learned | none
    model.norm = "layernorm"
    model.norm_position = "post"  # §3.1
    model.norm_eps = 1e-6
    model.activation = "relu"  # §3.3
    model.bias = True
    model.tied_embeddings = True  # §3.4: one table for source, target and output
    model.dropout = dropout  # §5.4, on residual branches and on embeddings
    model.init = "fan_in"
    model.parameterization = "standard"
    model.base_width = width
    model.base_head_dim = None
    model.dtype = "float32"
    model.scan_layers = True
    model.matmul = "dtype"
    model.remat = "none"  # none | dots | full
    model.attention = "auto"
    config.objective = objective = ConfigDict()
    objective.name = "seq2seq"
    objective.chunk = None
    objective.z_loss = 0.0
    objective.label_smoothing = 0.1  # §5.4
    config.data.sources = ("parallel:train.en+train.de",)
    config.data.vocab_size = 37_000  # §5.1, one BPE for both languages
    config.optim.name = "adam"  # §5.3
    config.optim.b1, config.optim.b2, config.optim.eps = 0.9, 0.98, 1e-9
    config.optim.weight_decay = 0.0
    config.optim.schedule = "inverse_sqrt"
    config.optim.peak_lr = width**-0.5 * 4000**-0.5  # 7.0e-4 at width 512
    config.optim.warmup_frac = 0.04
    config.optim.clip_norm = None
    config.train.batch_size = rows
    config.train.tokens = None
    config.train.steps = 100_000
    config.sample.prompt = "A man sits on a bench."
    config.sample.temperature = 0.0
    if size != "base":
      config.model.norm_position = "pre"  # no long warm-up is needed
      config.optim.peak_lr = 2e-3
      config.optim.schedule = "cosine"
      config.optim.clip_norm = 1.0
      config.data.vocab_size = 8000
      config.data.val_fraction = 0.02
      config.train.steps = 4000
    if size == "smoke":
      config.data.sources = ("reversed:4000",)
      config.data.tokenizer = "byte"
      config.model.seq_len = 64
      config.optim.peak_lr = 1e-2
      config.train.steps = 60
      config.eval.every_steps = 30
      config.sample.prompt = "red cat"
      config.sample.tokens = 16
      config.log.wandb = "disabled"
  return config
