"""Low-rank adapters on a trained run: Hu et al. 2021, arXiv:2106.09685 (LoRA).

The argument is the run to start from, runs/default if there is none; model and tokenizer are its own. Its
parameters are frozen; adapters of rank 8 on queries and values are trained. `python -m lm.hf export` merges
them, and so does `python -m lm.compact --merge`, which makes a run of its own.

Command:   python train.py --config configs/lora.py:runs/default --config.data.sources=python
Hardware:  2 CPU cores, 2 minutes
"""

from configs import default, go_on_from


def get_config(base=None):
  config = default.get_config()
  with config.unlocked():
    config.train.init_from = "runs/default"
    if base is not None:
      go_on_from(config, base)
    config.model.lora_rank = 8
    config.model.lora_alpha = 16.0
    config.model.lora_on = ("q", "v")
    config.optim.groups = (".*lora_[ab]$:lr=1", ".*:frozen")
    config.optim.peak_lr = 3e-3
    config.optim.weight_decay = 0.0
    config.train.tokens = 500_000
  return config
