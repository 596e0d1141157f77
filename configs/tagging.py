"""Fine-tuning: the names in a text, a tag for each word; by default a BERT with a new head.

Devlin et al. 2019, arXiv:1810.04805, §5.3 and A.3 (batches of 16 or 32, rates of 2e-5 to 5e-5, 2 to 4 epochs)
on CoNLL-2003 (Tjong Kim Sang and De Meulder 2003). smoke finds people, places and firms in made-up sentences,
from scratch, in seconds; minilm has the sizes of all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957), base
those of BERT: both start from a folder (train.init_from), whose tokenizer data.tokenizer_path names.

Command:   python train.py --config configs/tagging.py:base --config.train.init_from=bert \
             --config.data.tokenizer_path=bert/tokenizer.json --config.data.sources=text:train.txt \
             --config.data.text_field=0 --config.data.label_field=3 --config.objective.classes=9 \
             --config.eval.sets=test=text:test.txt
Hardware:  an accelerator for base; 2 CPU cores for smoke
Score:     the paper: 92.4 F1 on the test set of CoNLL-2003 with base (not run here)
"""

from ml_collections import ConfigDict

from configs import bert, default

#          width depth heads seq_len batch peak_lr steps
SIZES = {
  "smoke": (32, 1, 2, 80, 16, 1e-2, 60),
  "minilm": (384, 6, 12, 128, 32, 1e-4, 1300),
  "base": (768, 12, 12, 128, 32, 5e-5, 1300),
}


def get_config(size: str = "smoke"):
  if size not in SIZES:
    raise KeyError(f"no size {size} to tag with; choose from {', '.join(SIZES)}")
  width, depth, heads, seq_len, batch_size, peak_lr, steps = SIZES[size]
  config = default.get_config()
  with config.unlocked():
    config.model = bert.model(seq_len, width, depth, heads)
    config.objective = ConfigDict(
      dict(
        name="token_classification",
        classes=7 if size == "smoke" else 9,  # tags; bio: 1 and 2 for each type of name
        scheme="bio",  # bio: O, B-TYPE, I-TYPE, scored by whole names | plain: any tags, by words
        dropout=0.1,  # rate on the words' vectors
      )
    )
    config.data.text_field = "tokens"  # a list of words, or the column of a CoNLL file, from 0
    config.data.label_field = "tags"  # a list of as many tags, or their column
    bert.set_optimizer(config.optim, peak_lr, warmup_frac=0.1)
    config.train.batch_size = batch_size
    config.train.tokens = None
    config.train.steps = steps
    config.eval.tokens = None
    config.eval.stop_metric = "eval/val/f1"
    config.sample.tokens = 0
    config.data.tokenizer = "huggingface"

    if size == "smoke":
      config.data.sources = ("facts:1200",)
      config.data.tokenizer = "byte"
      config.model.dropout = 0.0
      config.eval.tokens = 4096
      config.eval.every_steps = 30
      config.log.wandb = "disabled"
  return config
