"""The setting of studies for two CPU cores: a 100-thousandth of a language model, on bytes.

One layer's width is what scale is here: 35 thousand parameters at width 32, 63 thousand at 48.
"""

SMALL = {
  "data.tokenizer": "byte",
  "model.seq_len": 64,
  "model.width": 32,
  "model.depth": 2,
  "model.heads": 2,
  "optim.b2": 0.99,
  "optim.warmup_frac": 0.1,
  "optim.final_lr_frac": 0.0,
  "train.batch_size": 8,
  "train.tokens": None,
  "eval.tokens": 50_000,
  "eval.batch_size": 64,
  "sample.tokens": 0,
  "log.every_steps": 25,
  "log.wandb": "disabled",
  "checkpoint.keep": 1,
  "checkpoint.best": False,
}
