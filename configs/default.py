"""Every key, its unit and its reason: a small decoder on the embedded docstrings corpus.

Other configs call `get_config()` and change what differs. `None` means "off" or, where the comment
says so, "derived"; derived values are printed and saved with the run.

Command:   python train.py
Hardware:  2 CPU cores, under 5 minutes
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
  """The default config, locked: a key that is not here cannot be set."""
  config = ConfigDict()
  config.seed = 0  # integer; initialisation, dropout and (unless data.seed is set) data order

  config.data = data = ConfigDict()
  data.sources = ("docstrings",)  # docstrings | python | text:GLOB | tfds:NAME | synthetic:NAME
  data.weights = ()  # one positive weight per source, in tokens drawn; () = in proportion to size
  data.seed = None  # integer, order of the training examples; None = config.seed
  data.text_unit = "file"  # one document of a text source: file | line | paragraph (.jsonl: a line)
  data.text_field = "text"  # the field holding the text in .jsonl lines and tfds examples
  data.tfds_splits = ("train", "validation")  # training and validation split; "" = hold out
  data.tfds_dir = None  # folder of the tfds builders; None = tfds's own default
  data.val_fraction = 0.05  # fraction of documents (or of characters) held out, in (0, 0.5]
  data.val_split = "documents"  # documents: by hash of their content | tail: the last characters
  data.unicode = None  # NFC | NFD | NFKC | NFKD; None = leave characters as they are
  data.lower_case = False  # fold to lower case before tokenising
  data.squeeze_spaces = False  # runs of blanks become one, blank lines at most one
  data.drop_duplicates = False  # drop documents whose text has been seen before
  data.min_chars = 0  # shorter documents are dropped
  data.max_chars = None  # longer documents are dropped; None = no limit
  data.tokenizer = "bpe"  # byte | char | bpe | word | sentencepiece | huggingface | gpt2
  data.tokenizer_path = None  # file (sentencepiece, huggingface) or folder (gpt2)
  data.vocab_size = 2048  # entries of a bpe vocabulary, <|endoftext|> included
  data.min_freq = 2  # a word tokenizer keeps words seen at least this often in training
  data.pack = True  # True: documents back to back; False: one document a row, padded
  data.cross_documents = True  # attend across document borders within a row
  data.reshuffle = True  # another permutation every epoch; False repeats the first one
  data.cache_dir = "~/.cache/isoflop"  # folder of token caches

  config.model = model = ConfigDict()
  model.family = "decoder"  # a key of lm.models.FAMILIES
  model.seq_len = 256  # tokens of context, in training and in the position table
  model.width = 128  # D, size of the residual stream
  model.depth = 4  # blocks
  model.heads = 4  # H, query heads
  model.kv_heads = None  # G, key/value heads: a divisor of heads; None = heads (1 = multi-query)
  model.head_dim = None  # K; None = width / heads
  model.mlp_dim = None  # F; None = 4 width, or 8/3 width up to a multiple of 32 when gated
  model.experts = None  # E, MLPs a layer, of which a token uses a few; None = one for all
  model.experts_per_token = 2  # read where there are experts
  model.capacity_factor = 1.25  # room of an expert over its even share, in training; None = for all
  model.vocab_size = None  # V; None = the tokenizer's
  model.positions = "rope"  # rope | learned | sinusoidal | alibi | none
  model.rope_theta = 10_000.0  # base of the rotary wavelengths
  model.norm = "rmsnorm"  # rmsnorm | layernorm
  model.norm_position = "pre"  # pre | post
  model.norm_eps = 1e-5  # added to the variance
  model.activation = "swiglu"  # gelu | gelu_exact | relu | relu2 | swiglu | geglu
  model.bias = False  # biases in linear layers and layernorms
  model.qk_norm = False  # rmsnorm on queries and keys, per head
  model.window = None  # tokens a position sees, itself included; None = all before it
  model.attention_softcap = None  # c * tanh(score / c); None = off
  model.logit_softcap = None  # c * tanh(logit / c); None = off
  model.tied_embeddings = True  # the output head is the embedding, transposed
  model.dropout = 0.0  # rate in [0, 1) on embeddings and on every residual branch
  model.init = "fan_in"  # fan_in: std 1/sqrt(fan in) | gpt2: std 0.02, residual / sqrt(2 depth)
  model.parameterization = "standard"  # a key of lm.parameterization.TABLE
  model.base_width = 128  # the width at which every parameterization is the same model
  model.base_head_dim = None  # K there; None = head_dim: wider models have more heads
  model.dtype = "float32"  # of activations and matmuls: float32 | bfloat16; params stay float32
  model.scan_layers = True  # one compiled block for all layers (on one CPU from 9 layers on)
  model.matmul = "dtype"  # in linear layers: dtype | int8 (all but the weights' gradient)
  model.remat = "none"  # recompute in the backward pass: none | dots | names | full | offload
  model.remat_keep = ("attention", "q", "k", "v")  # with names: what is kept, by layer name
  model.attention = "auto"  # auto | xla | einsum | chunked | cudnn | splash

  config.objective = objective = ConfigDict()
  objective.name = "next_token"  # a key of lm.objectives.OBJECTIVES
  objective.chunk = None  # positions per cross-entropy chunk; None = whole sequences at once
  objective.z_loss = 0.0  # weight of mean(log Z ** 2)
  objective.label_smoothing = 0.0  # in [0, 1): mass moved to the uniform distribution
  objective.balance_loss = 0.01  # weight of the experts' load-balancing loss, a layer
  objective.router_z_loss = 0.0  # weight of mean(log Z ** 2) of the experts' router, a layer

  config.optim = optim = ConfigDict()
  optim.name = "adamw"  # a key of lm.optim.OPTIMIZERS
  optim.peak_lr = 3e-3  # after warm-up
  optim.b1 = 0.9  # first-moment decay; momentum of sgd and muon
  optim.b2 = 0.95  # second-moment decay
  optim.eps = 1e-8  # added to the root of the second moment
  optim.weight_decay = 1e-4  # on matrices only
  optim.decay_coupling = "independent"  # independent: schedule * wd | coupled: lr * wd (optax)
  optim.l1 = 0.0  # weight of sum |p| over matrices, in the gradient
  optim.l2 = 0.0  # weight of sum p**2 / 2 over matrices, in the gradient
  optim.clip_norm = 1.0  # global L2 norm of the gradient; None = off
  optim.schedule = "cosine"  # constant|linear|cosine|exponential|inverse_sqrt|wsd|plateau
  optim.warmup_frac = 0.05  # of the run's steps
  optim.warmup_tokens = None  # instead of warmup_frac, in tokens
  optim.decay_frac = 0.2  # of the run's steps, wsd only
  optim.final_lr_frac = 0.1  # lr at the end of the run, as a fraction of peak_lr
  optim.plateau_patience = 10  # logged steps without improvement before plateau cuts the rate
  optim.plateau_factor = 0.5  # what plateau multiplies the rate by
  optim.ema_decay = None  # moving average of weights, used by evaluation; None = off
  optim.state_dtype = "float32"  # of the optimizer's means: float32 | bfloat16 | int8 (in blocks)
  optim.init_scale = 1.0  # multiplies the initial standard deviation of every matrix

  config.train = train = ConfigDict()
  train.batch_size = 16  # sequences a step, over all devices
  train.accumulate = 1  # micro-batches a step
  train.steps = None  # budget: optimizer steps; exactly one budget is set
  train.tokens = 2_500_000  # budget: training tokens
  train.tokens_per_param = None  # budget: tokens for each parameter (train.count says which)
  train.flops = None  # budget: floating-point operations (train.flops_convention)
  train.count = "total"  # parameters in tokens_per_param: total | non_embedding
  train.flops_convention = "6ND"  # 6ND | 6ND_nonembedding | exact

  config.eval = evaluation = ConfigDict()
  evaluation.every_steps = None  # steps; None = 10 times a run
  evaluation.tokens = 100_000  # at most, whole documents from the start of each set; None = all
  evaluation.batch_size = None  # sequences; None = train.batch_size
  evaluation.sets = ()  # further sets, each "name=source", beside the held-out "val"
  evaluation.stop_metric = "eval/val/loss"  # watched by early stopping and by the best checkpoint
  evaluation.stop_patience = None  # evaluations without improvement before stopping; None = off

  config.sample = sample = ConfigDict()
  sample.prompt = "Returns the "  # continued at each evaluation
  sample.tokens = 64  # new tokens; 0 = no samples
  sample.temperature = 0.8  # 0 = greedy

  config.checkpoint = checkpoint = ConfigDict()
  checkpoint.every_steps = None  # steps; None = at each evaluation
  checkpoint.keep = 2  # latest ones kept, beside the best
  checkpoint.best = True  # keep the one with the lowest eval.stop_metric

  config.log = log = ConfigDict()
  log.every_steps = 10  # steps between lines of metrics.jsonl
  log.wandb = "auto"  # auto: online with a key, else offline | online | offline | disabled
  log.wandb_project = "isoflop"  # project name in Weights & Biases
  log.wandb_group = None  # group of runs there; sweeps set it

  config.mesh = mesh = ConfigDict()  # devices along each axis; -1 = the rest, at most once
  mesh.replica = -1  # pure data parallel; the only axis that crosses TPU slices
  mesh.fsdp = 1  # data parallel with parameters and optimizer state sharded
  mesh.expert = 1  # data parallel with the experts of a mixture sharded
  mesh.sequence = 1  # positions sharded, keys passed around a ring
  mesh.tensor = 1  # heads, mlp and vocabulary sharded

  config.lock()
  return config
