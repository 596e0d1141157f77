"""Vectors of words by skip-gram or CBOW with negative sampling, in gensim's default setting.

Mikolov et al. 2013, arXiv:1301.3781 and arXiv:1310.4546: 100 numbers a word, windows of at most 5 words, 5
negatives, words seen 5 times or more, frequent words left out at times (t = 1e-3), 5 epochs. word2vec's SGD
moves after every pair; here many pairs make a step, taken by Adam. `smoke` is a small one.

Command:   python train.py --config configs/word2vec.py:skipgram --config.data.sources=text:books/*.txt \
             --config.train.tokens=50_000_000
           python -m lm.evaluate --workdir runs/word2vec-skipgram --task similarity:wordsim353.tsv
Hardware:  2 CPU cores
Score:     python benchmarks/word_vectors.py sets it beside gensim's; of a million words SGD in small steps
           (its --rates) makes better vectors than Adam: benchmarks/README.md
"""

from ml_collections import ConfigDict

from configs import default

SIZES = ("smoke", "skipgram", "cbow")


def get_config(size: str = "smoke"):
  if size not in SIZES:
    raise KeyError(f"no size {size} of word2vec; choose from {', '.join(SIZES)}")
  config = default.get_config()
  with config.unlocked():
    config.data.tokenizer = "word"
    config.data.lower_case = True
    config.data.words_only = True
    config.data.min_freq = 5
    config.model = model = ConfigDict()
    model.family = "word_vectors"
    model.seq_len = 64  # words of a row, among which neighbours are looked for
    model.width = 100  # numbers a word
    model.vocab_size = None  # V; None = the tokenizer's
    model.biases = False  # a number for each word beside its vector
    model.zero_contexts = True  # contexts start at 0, as in word2vec
    model.sum_tables = False  # the vector of a word is its row of the first table
    model.parameterization = "standard"
    model.base_width = 100
    model.dtype = "float32"
    config.objective = objective = ConfigDict()
    objective.name = "negative_sampling"
    objective.architecture = "cbow" if size == "cbow" else "skipgram"
    objective.window = 5  # words to either side, at most
    objective.negatives = 5.0  # what the drawn words weigh together
    objective.drawn = 64  # words drawn a row
    objective.power = 0.75  # of the counts they are drawn by
    objective.gradient = "exact"  # of cbow's mean: exact | word2vec, each neighbour by all of it
    objective.subsample = 1e-3  # frequency from which words are left out at times; 0 = off
    config.optim.name = "adam"
    config.optim.peak_lr = 1e-2
    config.optim.b2 = 0.999
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = None
    config.optim.warmup_frac = 0.0
    config.optim.schedule = "linear"
    config.optim.final_lr_frac = 0.0
    config.train.batch_size = 128
    config.train.tokens = 10_000_000  # words
    config.eval.tokens = 50_000
    config.sample.prompt = "array"  # whose nearest words are shown
    config.sample.tokens = 5
    if size == "smoke":
      model.width = 16
      config.train.tokens = None
      config.train.steps = 30
      config.eval.every_steps = 15
      config.train.batch_size = 64
      config.log.wandb = "disabled"
  return config
