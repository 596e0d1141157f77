"""A text GAN on an oracle's sentences, after SeqGAN (Yu et al. 2017, arXiv:1609.05473, §5.1).

The generator is an LSTM of width 32, trained by maximum likelihood and then against a critic of filters. The
paper's oracle has 5,000 words; this one has 64 characters. seqgan is the same with the paper's policy
gradient; smoke takes seconds.

Command:   python train.py --config configs/gan.py:gumbel --workdir runs/gan, then python benchmarks/gan.py
Hardware:  2 CPU cores
Score:     benchmarks/README.md: the oracle's NLL of what is written, beside maximum likelihood alone
"""

from ml_collections import ConfigDict

from configs import default

#          estimator, likelihood steps, critic steps, adversarial steps
SIZES = {
  "smoke": ("straight_through", 20, 10, 20),
  "gumbel": ("gumbel_softmax", 2000, 200, 2000),
  "straight": ("straight_through", 2000, 200, 2000),
  "seqgan": ("policy_gradient", 2000, 200, 200),
}


def get_config(size: str = "smoke"):
  if size not in SIZES:
    raise KeyError(f"no size {size} of a text GAN; choose from {', '.join(SIZES)}")
  estimator, likelihood_steps, critic_steps, steps = SIZES[size]
  smoke = size == "smoke"
  config = default.get_config()
  with config.unlocked():
    config.data.sources = ("oracle:64-l20",)
    config.data.tokenizer = "byte"
    config.data.pack = False  # a sentence a row
    config.model = model = ConfigDict()
    model.family = "recurrent"
    model.cell = "lstm"
    model.seq_len = 21  # 20 characters and the separator
    model.width = 32
    model.hidden_dim = None
    model.depth = 1
    model.vocab_size = None
    model.tied_embeddings = False
    model.dropout = 0.0
    model.input_dropout = None
    model.output_dropout = None
    model.embed_dropout = 0.0
    model.weight_drop = 0.0
    model.locked_dropout = False
    model.init_range = None
    model.parameterization = "standard"
    model.base_width = 32
    model.dtype = "float32"
    config.objective = objective = ConfigDict()
    objective.name = "adversarial"
    objective.estimator = estimator  # gumbel_softmax | straight_through | policy_gradient
    objective.temperature = 1.0  # of the softmax through which gradients go
    objective.penalty = 10.0  # weight of the critic's gradient penalty
    objective.likelihood_steps = likelihood_steps  # of the generator by maximum likelihood, first
    objective.critic_steps = critic_steps  # of the critic alone, after those
    objective.likelihood_weight = 0.0  # of the likelihood beside the adversarial loss, afterwards
    objective.rollouts = 8  # ends drawn at each position (policy_gradient)
    objective.critic_width = 16 if smoke else 64  # of the critic's embedding
    objective.critic_filters = 16 if smoke else 64  # of each size
    objective.critic_sizes = (2, 3) if smoke else (2, 3, 4, 5)  # tokens that a filter spans
    config.optim.name = "adamw"
    config.optim.peak_lr = 1e-2
    config.optim.schedule = "constant"
    config.optim.weight_decay = 0.0
    config.optim.b1 = 0.5  # as in WGAN-GP, whose losses swing
    config.optim.groups = ("critic:lr=0.1",)
    config.train.tokens = None
    config.train.steps = likelihood_steps + critic_steps + steps
    config.train.batch_size = 16 if smoke else 64
    config.checkpoint.best = False  # the loss is lowest before the critic plays
    config.eval.batch_size = 64
    config.eval.tokens = 2_100 if smoke else None
    config.eval.every_steps = 20 if smoke else 200
    config.sample.prompt = ""
    config.sample.tokens = 20
    config.log.wandb = "disabled"
  return config
