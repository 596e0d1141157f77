"""Vectors of words by GloVe, in the setting of its paper but for the size.

Pennington et al. 2014, "GloVe", §4.2: windows of 10 words to either side, pairs weighed by their distance,
x_max 100, power 3/4, AdaGrad at 0.05, the sum of both tables. `books` has 100 numbers a word and 15 epochs
over the pairs (the paper: 50 or more, 300 numbers from 100 on). `smoke` is a small one.

Command:   python train.py --config configs/glove.py:books --config.data.sources=text:books/*.txt
           python -m lm.evaluate --workdir runs/glove-books --task similarity:wordsim353.tsv
Hardware:  2 CPU cores
"""

from ml_collections import ConfigDict

from configs import default

SIZES = ("smoke", "books")


def get_config(size: str = "smoke"):
  if size not in SIZES:
    raise KeyError(f"no size {size} of GloVe; choose from {', '.join(SIZES)}")
  config = default.get_config()
  with config.unlocked():
    config.data.tokenizer = "word"
    config.data.lower_case = True
    config.data.words_only = True
    config.data.min_freq = 5
    config.data.val_fraction = 0.01
    config.model = model = ConfigDict()
    model.family = "word_vectors"
    model.seq_len = 1  # a row is a pair
    model.width = 100  # numbers a word
    model.vocab_size = None  # V; None = the tokenizer's
    model.biases = True  # a number for each word, and each context, beside its vector
    model.zero_contexts = False  # both tables start at random
    model.sum_tables = True  # the vector of a word is the sum of its two rows
    model.parameterization = "standard"
    model.base_width = 100
    model.dtype = "float32"
    config.objective = objective = ConfigDict()
    objective.name = "glove"
    objective.window = 10  # words to either side whose pairs are counted
    objective.count_cap = 100.0  # count from which all pairs weigh 1
    objective.count_power = 0.75  # of the weights of rarer ones
    config.optim.name = "adagrad"
    config.optim.peak_lr = 0.05
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = None
    config.optim.warmup_frac = 0.0
    config.optim.schedule = "constant"
    config.train.batch_size = 4096  # pairs
    config.train.tokens = 15 * 10_000_000
    config.eval.tokens = 50_000
    config.sample.prompt = "array"  # whose nearest words are shown
    config.sample.tokens = 5
    if size == "smoke":
      model.width = 16
      objective.window = 4
      config.train.tokens = None
      config.train.steps = 40
      config.eval.every_steps = 20
      config.train.batch_size = 2048
      config.log.wandb = "disabled"
  return config
