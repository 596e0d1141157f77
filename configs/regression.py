"""Fine-tuning: a number for a text or a pair of texts, by least squares; by default a BERT with a new head.

Devlin et al. 2019, arXiv:1810.04805, §4.1, on STS-B (Cer et al. 2017, arXiv:1708.00055): how alike two
sentences are, from 0 to 5. The sizes are those of configs/classify.py. smoke tells how many lines a short
docstring has, from scratch, in seconds.

Command:   python train.py --config configs/regression.py:minilm --config.train.init_from=minilm \
             --config.data.tokenizer_path=minilm/tokenizer.json --config.data.sources=text:train.jsonl \
             --config.data.text_field=sentence1 --config.data.pair_field=sentence2 \
             --config.data.label_field=score
Hardware:  2 CPU cores for minilm on the 5,749 pairs of STS-B; an accelerator for base
Score:     smoke: Spearman 0.83 after 60 steps; the paper: 0.858 on STS-B's test set with base (not run here)
"""

from ml_collections import ConfigDict

from configs import classify

SIZES = classify.SIZES


def get_config(size: str = "smoke"):
  config = classify.get_config(size)
  with config.unlocked():
    config.objective = ConfigDict(
      dict(
        name="regression",
        pooling=config.objective.pooling,  # what speaks for a text, as in configs/classify.py
        dropout=config.objective.dropout,  # rate on that vector
      )
    )
    config.eval.stop_metric = "eval/val/spearman"
    if size == "smoke":
      config.data.label_field = "lines"
      config.data.max_chars = 200
      config.data.truncate = False
      config.model.seq_len = 208
      config.optim.peak_lr = 1e-2
  return config
