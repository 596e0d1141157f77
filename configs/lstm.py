"""LSTM language models over words: Zaremba et al. 2014's small setting, and that of AWD-LSTM, on WikiText-2.

small: 2 layers of 200, 20 steps of back-propagation, 20 streams, all weights uniform in +-0.1, no dropout
(Zaremba et al. 2014, arXiv:1409.2329, §4.1). Its SGD (rate 1 on sums over 20 steps, clipped at 5) is rate 20,
clipped at 0.25, on means; it is halved after 4 epochs, epoch by epoch, for which an exponential decay stands
here. The paper's scores are for the Penn Treebank.
awd: 3 layers of 1150, embedding of 400, tied, with all of Merity et al. 2017's dropout, AR and TAR
(arXiv:1708.02182, §5); Adam stands for its averaged SGD, with a moving average of the weights.
smoke: seconds.

Command:   python train.py --config configs/lstm.py:small --config.data.sources=text:train.txt \
             --config.eval.sets=valid=text:valid.txt
Hardware:  small: 2 CPU cores; awd: an accelerator
Score:     awd: perplexity 68.6 on WikiText-2's validation words (65.8 on test) after 750 epochs in the paper
"""

from ml_collections import ConfigDict

from configs import default

#          depth width hidden seq_len batch
SIZES = {
  "smoke": (1, 32, None, 16, 8),
  "small": (2, 200, None, 20, 20),
  "awd": (3, 400, 1150, 70, 80),
}


def get_config(size: str = "smoke"):
  if size not in SIZES:
    raise KeyError(f"no size {size} of an LSTM; choose from {', '.join(SIZES)}")
  depth, width, hidden, seq_len, batch = SIZES[size]
  awd = size == "awd"
  config = default.get_config()
  with config.unlocked():
    config.model = model = ConfigDict()
    model.family = "recurrent"
    model.cell = "lstm"  # rnn (tanh) | gru | lstm
    model.seq_len = seq_len  # tokens of a row, through which gradients flow
    model.width = width  # of the embedding
    model.hidden_dim = hidden  # numbers in a layer's state; None = width
    model.depth = depth  # layers
    model.vocab_size = None  # V; None = the tokenizer's
    model.tied_embeddings = awd  # the readout is the embedding; the last layer is then of width
    model.dropout = 0.3 if awd else 0.0  # between layers, and where the next two are None
    model.input_dropout = 0.65 if awd else None  # on what enters the first layer
    model.output_dropout = 0.4 if awd else None  # on what leaves the last one
    model.embed_dropout = 0.1 if awd else 0.0  # share of words left out of the embedding
    model.weight_drop = 0.5 if awd else 0.0  # share of the recurrent weights left out in a batch
    model.locked_dropout = awd  # one mask a row for all positions
    model.init_range = None if awd else 0.1  # uniform in +-; None = 1/sqrt(state), tables 0.1
    model.parameterization = "standard"
    model.base_width = 200
    model.dtype = "float32"
    config.objective = objective = ConfigDict()
    objective.name = "truncated_bptt"
    objective.chunk = None  # positions per cross-entropy chunk; None = whole rows at once
    objective.z_loss = 0.0  # weight of mean(log Z ** 2)
    objective.label_smoothing = 0.0  # in [0, 1): mass moved to the uniform distribution
    objective.activation_l2 = 2.0 if awd else 0.0  # AR: weight of the outputs' mean square
    objective.slowness = 1.0 if awd else 0.0  # TAR: weight of their change's mean square
    config.train.batch_size = batch
    config.eval.batch_size = 10
    config.sample.prompt = "The"
    if size == "smoke":
      config.data.sources = ("synthetic:markov-64-s1",)
      config.data.tokenizer = "byte"
      config.optim.peak_lr = 1e-2
      config.train.tokens = None
      config.train.steps = 300
      config.eval.batch_size = 8
      config.eval.tokens = 4096
      config.sample.prompt = "a"
      config.sample.tokens = 8
      config.log.wandb = "disabled"
    else:
      config.data.tokenizer = "word"
      config.data.min_freq = 1  # WikiText has <unk> for what is rare
      config.data.text_unit = "line"  # each ends in a token of its own
      config.data.val_split = "tail"
      config.data.val_fraction = 0.01
      config.eval.tokens = None
      config.sample.tokens = 10
      config.train.tokens = (750 if awd else 13) * 2_075_000
    if size == "small":
      config.optim.name = "sgd"
      config.optim.b1 = 0.0
      config.optim.peak_lr = 20.0
      config.optim.clip_norm = 0.25
      config.optim.weight_decay = 0.0
      config.optim.warmup_frac = 0.0
      config.optim.schedule = "exponential"
      config.optim.final_lr_frac = 0.002
    if awd:
      config.optim.name = "adam"
      config.optim.peak_lr = 1e-3
      config.optim.b2 = 0.999
      config.optim.weight_decay = 1.2e-6  # in the gradient
      config.optim.clip_norm = 0.25
      config.optim.ema_decay = 0.999
  return config
