"""Fine-tuning: the answer to a question as a span of a text; by default a BERT with a new head.

Devlin et al. 2019, arXiv:1810.04805, §4.2 (3 epochs, batches of 32, a rate of 5e-5) on SQuAD 1.1 (Rajpurkar
et al. 2016, arXiv:1606.05250), in the windows of the released code. smoke finds names in made-up sentences,
from scratch, in seconds; minilm has the sizes of all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957), base
those of BERT: both start from a folder (train.init_from), whose tokenizer data.tokenizer_path names.

Command:   python train.py --config configs/squad.py:minilm --config.train.init_from=minilm \
             --config.data.tokenizer_path=minilm/tokenizer.json --config.data.sources=text:train-v1.1.json
           python -m lm.evaluate --workdir runs/squad-minilm --task squad:dev-v1.1.json
Hardware:  2 CPU cores for minilm on a thousand questions; an accelerator for base on SQuAD's 88 thousand
Score:     the paper: exact match 80.8, F1 88.5 on SQuAD's dev set with base (not run here)
"""

from ml_collections import ConfigDict

from configs import bert, default

#          width depth heads seq_len question stride batch peak_lr steps
SIZES = {
  "smoke": (32, 1, 2, 96, 24, 24, 16, 1e-2, 60),
  "minilm": (384, 6, 12, 384, 64, 128, 16, 1e-4, 300),
  "base": (768, 12, 12, 384, 64, 128, 32, 5e-5, 8200),
}


def get_config(size: str = "smoke"):
  if size not in SIZES:
    raise KeyError(f"no size {size} to answer with; choose from {', '.join(SIZES)}")
  width, depth, heads, seq_len, question, stride, batch_size, peak_lr, steps = SIZES[size]
  config = default.get_config()
  with config.unlocked():
    config.model = bert.model(seq_len, width, depth, heads)
    config.objective = ConfigDict(
      dict(
        name="extractive_span",
        question_tokens=question,  # of a question, at most; longer ones are refused or cut
        window_stride=stride,  # tokens between the starts of windows of a longer context
        answer_tokens=30,  # of an answer, at most, in evaluation
      )
    )
    bert.set_optimizer(config.optim, peak_lr, warmup_frac=0.1)
    config.train.batch_size = batch_size
    config.train.tokens = None
    config.train.steps = steps
    config.eval.tokens = None
    config.eval.stop_metric = "eval/val/overlap_f1"
    config.sample.tokens = 0
    config.data.tokenizer = "huggingface"

    if size == "smoke":
      config.data.sources = ("facts:400",)
      config.data.tokenizer = "byte"
      config.model.dropout = 0.0
      config.eval.tokens = 4096
      config.eval.every_steps = 30
      config.log.wandb = "disabled"
  return config
