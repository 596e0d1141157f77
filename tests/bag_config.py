"""A bag of words, from outside lm/: see tests/bag_of_words.py."""

from ml_collections import ConfigDict

from configs import default


def get_config():
  config = default.get_config()
  with config.unlocked():
    config.extensions = ("tests.bag_of_words",)
    config.data.sources = ("synthetic:markov-8-s3",)
    config.data.tokenizer = "byte"
    config.model = ConfigDict(
      dict(
        family="bag", seq_len=2, width=16, inner=32, vocab_size=None, parameterization="standard",
        base_width=16, dtype="float32",
      )
    )  # fmt: skip
    config.objective = ConfigDict(dict(name="next_label", smoothing=0.05))
    config.optim.peak_lr = 1e-2
    config.train.batch_size = 16
    config.train.tokens = 16 * 40  # passages
    config.eval.tokens = 256
    config.eval.every_steps = 10
    config.eval.stop_metric = "eval/val/right"
    config.log.every_steps = 5
    config.log.wandb = "disabled"
  return config
