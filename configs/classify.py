"""Fine-tuning: a text, or a pair of texts, and its class; by default a BERT with a new head.

Devlin et al. 2019, arXiv:1810.04805, §4.1 and A.3 (batches of 16 or 32, rates of 2e-5 to 5e-5, 2 to 4
epochs). smoke tells docstrings of numpy from those of scipy, from scratch, in seconds; scratch is a small
encoder without pre-training; minilm has the sizes of all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957),
base those of BERT: both start from a folder (train.init_from), whose tokenizer data.tokenizer_path names.

Command:   python train.py --config configs/classify.py:minilm --config.train.init_from=minilm \
             --config.data.tokenizer_path=minilm/tokenizer.json --config.data.sources="text:train.tsv" \
             --config.data.text_field=0 --config.data.label_field=1 --config.objective.classes=2 \
             --config.eval.sets="test=text:test.tsv"
Hardware:  2 CPU cores for minilm on the 6,920 sentences of SST-2; an accelerator for base
Score:     benchmarks/README.md
"""

from ml_collections import ConfigDict

from configs import bert, default

#          width depth heads seq_len vocab  batch peak_lr steps pooling
SIZES = {
  "smoke": (32, 1, 2, 64, 512, 16, 3e-3, 60, "mean"),
  "scratch": (128, 2, 4, 80, 4096, 32, 1e-3, 1000, "mean"),
  "minilm": (384, 6, 12, 80, 30_522, 32, 1e-4, 650, "mean"),
  "base": (768, 12, 12, 128, 30_522, 32, 3e-5, 6000, "pooler"),
}


def get_config(size: str = "smoke"):
  if size not in SIZES:
    raise KeyError(f"no size {size} to classify with; choose from {', '.join(SIZES)}")
  width, depth, heads, seq_len, vocab, batch_size, peak_lr, steps, pooling = SIZES[size]
  config = default.get_config()
  with config.unlocked():
    config.model = bert.model(seq_len, width, depth, heads)
    config.objective = ConfigDict(
      dict(
        name="classification",
        classes=2,  # different labels of the training texts
        pooling=pooling,  # what speaks for a text: pooler (BERT's) | first token | last | mean
        dropout=0.1,  # rate on that vector
        label_smoothing=0.0,  # mass moved to the uniform distribution
      )
    )
    config.data.label_field = "label"
    config.data.vocab_size = vocab
    bert.set_optimizer(config.optim, peak_lr, warmup_frac=0.1)
    config.train.batch_size = batch_size
    config.train.tokens = None
    config.train.steps = steps
    config.eval.tokens = None
    config.eval.stop_metric = "eval/val/accuracy"
    config.sample.tokens = 0
    if size in ("minilm", "base"):
      config.data.tokenizer = "huggingface"

    if size == "smoke":
      config.data.sources = ("docstrings",)
      config.data.label_field = "package"
      config.data.tokenizer = "byte"
      config.data.truncate = True
      config.eval.tokens = 8192
      config.eval.every_steps = 30
      config.log.wandb = "disabled"
  return config
