"""Instruction tuning on conversations in chat.jsonl, with the loss on answers alone.

The argument is a run to start from, imported (`python -m lm.hf import`) or trained on text; model and
tokenizer are its own. Without one a small model of bytes begins from nothing, which shows that all works.

Command:   python train.py --config configs/instruction.py --config.data.sources=text:chat.jsonl
Hardware:  2 CPU cores, minutes without an argument
"""

from configs import default, go_on_from


def get_config(base=None):
  config = default.get_config()
  with config.unlocked():
    config.objective.name = "instruction"
    config.objective.template = "chatml"  # chatml | tokenizer: that of the tokenizer's own files
    config.objective.too_long = "refuse"  # conversations beyond model.seq_len: refuse | cut | drop
    config.data.sources = ("text:chat.jsonl",)
    config.data.tokenizer = "byte"
    config.model.seq_len = 512
    config.optim.peak_lr = 1e-3
    config.train.tokens = None
    config.train.steps = 200
    config.sample.prompt = "Hello"
    if base is not None:
      go_on_from(config, base)
      config.model.seq_len = min(config.model.seq_len, 1024)
      config.optim.peak_lr = 1e-5
  return config
