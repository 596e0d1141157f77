"""A variational autoencoder of sentences, after Bowman et al. 2016, arXiv:1511.06349.

LSTMs of 191 numbers there on the Penn Treebank, 13 latent ones; KL annealed along a logistic curve, words
left out. `sentences` is of that size, for a file with a sentence a line; `smoke` is a small one.

Command:   python train.py --config configs/vae.py:sentences --config.data.sources=text:sentences.txt
           python -m lm.generate --workdir runs/vae-sentences --prompt "a b c" --interpolate "d e f"
Hardware:  2 CPU cores
"""

from ml_collections import ConfigDict

from configs import default

SIZES = ("smoke", "sentences")


def get_config(size: str = "smoke"):
  if size not in SIZES:
    raise KeyError(f"no size {size} of a VAE; choose from {', '.join(SIZES)}")
  smoke = size == "smoke"
  config = default.get_config()
  with config.unlocked():
    config.data.text_unit = "line"
    config.data.pack = False  # a sentence a row
    config.data.tokenizer = "word"
    config.data.lower_case = True
    config.model = model = ConfigDict()
    model.family = "vae"
    model.cell = "lstm"  # rnn (tanh) | gru | lstm, of encoder and decoder
    model.seq_len = 16 if smoke else 40  # tokens of a row, the end of the sentence included
    model.width = 32 if smoke else 200  # of the embedding
    model.hidden_dim = None  # numbers in a layer's state; None = width
    model.depth = 1  # layers of the decoder
    model.latent_dim = 8 if smoke else 16  # numbers of a sentence's vector
    model.latent_input = True  # the decoder reads them beside every word too
    model.vocab_size = None  # V; None = the tokenizer's
    model.tied_embeddings = False  # the readout is the embedding; the last layer is then of width
    model.dropout = 0.0  # on what enters and leaves the decoder's layers
    model.input_dropout = None  # on what enters the first one; None = dropout
    model.output_dropout = None  # on what leaves the last one; None = dropout
    model.embed_dropout = 0.0  # share of words left out of the decoder's embedding in a batch
    model.weight_drop = 0.0  # share of its recurrent weights left out in a batch
    model.locked_dropout = False  # one mask a row for all positions
    model.init_range = None  # uniform in +-; None = 1/sqrt(state), tables 0.1
    model.parameterization = "standard"
    model.base_width = 200
    model.dtype = "float32"
    config.objective = objective = ConfigDict()
    objective.name = "elbo"
    objective.anneal = "sigmoid"  # none | linear | sigmoid: how the KL's weight rises to 1
    objective.anneal_steps = 40 if smoke else 2000  # over so many steps
    objective.word_dropout = 0.4 if smoke else 0.75  # share of the decoder's input words left out
    objective.free_bits = 0.0  # nats a dimension and sentence that cost nothing
    objective.samples = 4 if smoke else 16  # vectors a sentence, of the importance-weighted bound
    config.optim.name = "adam"
    config.optim.weight_decay = 0.0
    config.optim.clip_norm = 5.0
    config.optim.peak_lr = 1e-2 if smoke else 2e-3
    config.train.batch_size = 16 if smoke else 64
    config.train.tokens = None
    config.train.steps = 60 if smoke else 8000
    config.eval.stop_metric = "eval/val/neg_elbo"
    # Words of a sentence; five between two vectors are shown.
    config.sample.tokens = 8 if smoke else 20
    if smoke:
      config.data.sources = ("synthetic:markov-64-s1",)
      config.data.tokenizer = "byte"
      config.eval.every_steps = 30
      config.eval.tokens = 2048
      config.log.wandb = "disabled"
  return config
