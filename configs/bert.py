"""BERT: masked pre-training of an encoder, Devlin et al. 2019, arXiv:1810.04805.

Sizes base and large are the paper's (110M and 340M parameters with their heads and 30,522 entries; 1,000,000
steps of 256 rows of 512; its appendix A.2); small and mini are of Turc et al. 2019, arXiv:1908.08962; tiny is
for one CPU core, smoke trains in seconds. Without --config.objective.next_sentence=True rows are cut from the
stream of documents, as RoBERTa's are (Liu et al. 2019, arXiv:1907.11692).

tiny has Muon and four times the initial weights: after 300 steps on books its held-out loss was 6.15 nats a
hidden token, with AdamW at 2e-3 6.33, and at BERT's std of 0.02 6.52.

Command:   python train.py --config configs/bert.py:tiny --config.data.sources="text:books/*.jsonl.gz"
Hardware:  smoke, tiny and mini: CPU; base and large: accelerators
Score:     smoke: see tests/test_bert.py; tiny: benchmarks/README.md
"""

from ml_collections import ConfigDict

from configs import default

#          width depth heads seq_len vocab  batch peak_lr steps
SIZES = {
  "smoke": (32, 2, 2, 32, 512, 16, 1e-2, 60),
  "tiny": (128, 2, 4, 64, 8192, 64, 5e-3, 18_000),
  "mini": (256, 4, 4, 128, 8192, 32, 1e-3, 20_000),
  "small": (512, 4, 8, 128, 30_522, 256, 5e-4, 250_000),
  "base": (768, 12, 12, 512, 30_522, 256, 1e-4, 1_000_000),
  "large": (1024, 24, 16, 512, 30_522, 256, 1e-4, 1_000_000),
}


def model(seq_len: int, width: int, depth: int, heads: int) -> ConfigDict:
  """The `model` section of BERT."""
  return ConfigDict(
    dict(
      family="bert",
      seq_len=seq_len,  # tokens of a row, special ones included
      width=width,  # D
      depth=depth,  # layers
      heads=heads,  # H
      mlp_dim=None,  # F; None = 4 width
      types=2,  # kinds of token: of text A or of text B
      vocab_size=None,  # V; None = the tokenizer's, and the mask where it names none
      activation="gelu_exact",  # gelu_exact | gelu | relu | silu
      norm_eps=1e-12,  # added to the variance
      dropout=0.1,  # rate on embeddings and on every residual branch
      parameterization="standard",  # a key of lm.models.parameterization.TABLE
      base_width=width,  # the width at which every parameterization is the same model
      dtype="float32",  # of activations and matmuls
      scan_layers=True,  # one compiled block for all layers
      remat="none",  # recompute in the backward pass: none | dots | names | full | offload
      remat_keep=("attention", "q", "k", "v"),  # with names: what is kept
      attention="auto",  # auto | xla | einsum | chunked | cudnn | splash
    )
  )


def set_optimizer(optim: ConfigDict, peak_lr: float, warmup_frac: float) -> None:
  """BERT's AdamW: warmed up, then falling linearly to 0 (appendix A.2)."""
  optim.peak_lr = peak_lr
  optim.b2 = 0.999
  optim.weight_decay = 0.01
  optim.decay_coupling = "coupled"
  optim.schedule = "linear"
  optim.final_lr_frac = 0.0
  optim.warmup_frac = warmup_frac


def get_config(size: str = "smoke"):
  if size not in SIZES:
    raise KeyError(f"no size {size} of BERT; choose from {', '.join(SIZES)}")
  width, depth, heads, seq_len, vocab, batch_size, peak_lr, steps = SIZES[size]
  config = default.get_config()
  with config.unlocked():
    config.model = model(seq_len, width, depth, heads)
    config.objective = ConfigDict(
      dict(
        name="masked_lm",
        mask_rate=0.15,  # fraction of a row's tokens that are guessed
        mask_share=0.8,  # of those, the share that the mask hides
        random_share=0.1,  # the share in whose place a random token stands; the rest stays
        whole_words=False,  # guess all tokens of a word or none
        next_sentence=False,  # rows are pairs, half of them of two documents, to be told apart
        z_loss=0.0,  # weight of mean(log Z ** 2)
        label_smoothing=0.0,  # mass moved to the uniform distribution
      )
    )
    config.data.vocab_size = vocab
    set_optimizer(config.optim, peak_lr, warmup_frac=0.01)
    config.train.batch_size = batch_size
    config.train.tokens = None
    config.train.steps = steps
    config.sample.tokens = 0
    if size in ("base", "large"):
      config.model.dtype = "bfloat16"
    if size == "tiny":
      config.data.tokenizer = "wordpiece"
      config.data.lower_case = True
      config.model.dropout = 0.0
      config.optim.name = "muon"
      config.optim.init_scale = 4.0
      config.optim.warmup_frac = 0.02
      config.eval.every_steps = 1500
    if size == "smoke":
      config.data.sources = ("synthetic:markov-64-s1",)
      config.data.tokenizer = "byte"
      config.model.dropout = 0.0
      config.optim.warmup_frac = 0.05
      config.eval.tokens = 4096
      config.eval.every_steps = 30
      config.log.wandb = "disabled"
  return config
