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
  config.extensions = ()  # Python modules that add families, objectives or kinds of batch
  config.rules = None  # lr, batch, ... by a rule of N and D (lm/setup/rules.py): step_law, olmo

  config.data = data = ConfigDict()
  data.sources = ("docstrings",)  # docstrings | python | text:GLOB | hub:OWNER/NAME/GLOB | tfds:..
  data.weights = ()  # one positive weight per source, in tokens drawn; () = in proportion to size
  data.seed = None  # integer, order of the training examples; None = config.seed
  data.unique_tokens = None  # train on so many tokens, in whole rows drawn by data.seed; None = all
  data.text_unit = "file"  # a document of plain text: file | line | paragraph; else it is a record
  data.text_field = "text"  # where records hold the text: a field or column, or a.b, or a[0].b
  data.label_field = None  # where labelled records hold their label; read by their kinds alone
  data.pair_field = None  # where records hold a second text; None = one text a record
  data.truncate = False  # cut labelled texts and pairs longer than the model; False = refuse
  data.augment_share = 0.0  # fraction of labelled training texts that are changed in a batch
  data.augment_ops = ("replace", "insert", "swap", "delete")  # one of them each (Wei & Zou 2019)
  data.augment_rate = 0.1  # fraction of a text's words that one of them changes
  data.synonyms = None  # file of lines "word: other, other": what replace and insert take
  data.token_dropout = 0.0  # probability that a token of a labelled training text is left out
  data.source_field = "source"  # where records of pairs hold the text to read
  data.target_field = "target"  # and the text to write
  data.text_format = "auto"  # auto: by content and suffix | plain | json | csv | tsv | parquet
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
  data.quality = None  # rules by which web text is kept (lm/data/quality.py): gopher | c4
  data.near_duplicates = None  # drop documents this similar to an earlier one, Jaccard: 0.8
  data.strip_html = False  # take out tags, comments and scripts, and turn entities into characters
  data.mask_urls = False  # write <url> for web addresses
  data.mask_emails = False  # write <email> for e-mail addresses
  data.remove_stop_words = False  # leave out 179 frequent English words
  data.stem = False  # write English words as their stems (Porter 1980)
  data.words_only = False  # leave runs of letters alone, with a blank between them
  data.tokenizer = "bpe"  # byte|char|bpe|word|wordpiece|sentencepiece|huggingface|gpt2
  data.tokenizer_path = None  # file or folder of one; for bpe, char, word, wordpiece: train none
  data.separator = None  # token that ends a document; None = what the tokenizer's files say
  data.start = None  # token read before a document's first one; None = what the files say
  data.vocab_size = 2048  # entries of a bpe vocabulary, <|endoftext|> included
  data.min_freq = 2  # a word tokenizer keeps words seen at least this often in training
  data.pack = True  # True: documents back to back; False: one document a row, padded
  data.cross_documents = True  # attend across document borders within a row
  data.length_curriculum = ()  # LENGTH:UNTIL,... rows of so many tokens up to a share of the steps
  data.reshuffle = True  # another permutation every epoch; False repeats the first one
  data.cache_dir = "~/.cache/isoflop"  # token caches; a gs:// or s3:// address shares them

  config.model = model = ConfigDict()
  model.family = "decoder"  # a key of lm.models.registry.FAMILIES; it says what is in this section
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
  model.shared_experts = 0  # MLPs of the same size that every token uses beside its own experts
  model.router = "softmax"  # gates of a token's experts: softmax | sigmoid (divided by their sum)
  model.dispatch = "capacity"  # capacity: slots for each expert | dropless: grouped products
  model.vocab_size = None  # V; None = the tokenizer's
  model.positions = "rope"  # rope | learned | sinusoidal | alibi | none
  model.rope_theta = 10_000.0  # base of the rotary wavelengths
  model.rope_local_theta = None  # that of local layers, never rescaled; None = as in global ones
  model.rope_dim = None  # rotated dimensions of a head, the first ones; None = K
  model.rope_scaling = None  # how rotations are slowed down for longer rows: linear | llama3 | yarn
  model.rope_factor = 1.0  # slowest rotations are divided by it; all of them with linear
  model.rope_length = None  # tokens of context before scaling (llama3, yarn)
  model.rope_slow = 1.0  # turns within rope_length up to which a rotation is divided in full
  model.rope_fast = 32.0  # turns from which it is left alone; in Llama 3: 4
  model.rope_magnitude = None  # factor of rotated queries and keys; None: yarn .1 log factor + 1
  model.rope_whole = True  # yarn's two limits are rounded outwards to whole dimensions
  model.norm = "rmsnorm"  # rmsnorm | layernorm
  model.norm_position = "pre"  # pre | post | reordered (OLMo 2) | sandwich (Gemma 2) | none
  model.norm_offset = 0.0  # added to every norm's scale; 1.0 = scales start at 0 (Gemma)
  model.residual = "serial"  # serial | parallel (NeoX) | shared (GPT-J: with one norm) | rezero
  model.share_layers = False  # all layers have the same weights (ALBERT)
  model.norm_eps = 1e-5  # added to the variance
  model.activation = "swiglu"  # gelu|gelu_exact|relu|relu2|silu; swiglu|geglu|geglu_exact|reglu
  model.bias = False  # biases in linear layers and layernorms
  model.bias_on = ()  # what has biases beside that: qkv, out, mlp, norm, head (Qwen 2 has qkv alone)
  model.qk_norm = False  # rmsnorm on queries and keys
  model.qk_norm_over = "head"  # head: each by itself | all: the heads together (OLMo 2)
  model.window = None  # tokens a position sees, itself included; None = all before it
  model.layer_kinds = ()  # local | global, repeated over the layers; global ones have no window
  model.memory = None  # M, vectors a layer of the tokens before a row (Transformer-XL); None = none
  model.attention_scale = None  # what scores are multiplied by; None = 1/sqrt(K)
  model.attention_softcap = None  # c * tanh(score / c); None = off
  model.logit_softcap = None  # c * tanh(logit / c); None = off
  model.tied_embeddings = True  # the output head is the embedding, transposed
  model.embed_scale = 1.0  # factor of the embedding where tokens enter (Gemma: sqrt(D))
  model.dropout = 0.0  # rate in [0, 1) on embeddings and on every residual branch
  model.init = "fan_in"  # fan_in: std 1/sqrt(fan in) | gpt2: std 0.02, residual / sqrt(2 depth)
  model.parameterization = "standard"  # a key of lm.models.parameterization.TABLE
  model.base_width = 128  # the width at which every parameterization is the same model
  model.base_head_dim = None  # K there; None = head_dim: wider models have more heads
  model.base_depth = 4  # the depth at which they are, where they go by depth (completep, umup)
  model.dtype = "float32"  # of activations and matmuls: float32 | bfloat16; params stay float32
  model.scan_layers = True  # one compiled block for all layers (on one CPU from 9 layers on)
  model.matmul = "dtype"  # in linear layers: dtype | int8 (all but the weights' gradient)
  model.lora_rank = None  # r of adapters [in, r], [r, out] beside linear maps (LoRA); None = none
  model.lora_alpha = 16.0  # what adapters give is multiplied by alpha / r; read where there are any
  model.lora_on = ("q", "v")  # maps with adapters: q, k, v, out, up, gate, down
  model.low_rank = None  # r: linear maps of blocks are products [in, r] [r, out]; None = whole
  model.remat = "none"  # recompute in the backward pass: none | dots | names | full | offload
  model.remat_keep = ("attention", "q", "k", "v")  # with names: what is kept, by layer name
  model.attention = "auto"  # auto | xla | einsum | chunked | cudnn | splash

  config.objective = objective = ConfigDict()
  objective.name = "next_token"  # a key of lm.objectives.registry.OBJECTIVES
  objective.chunk = None  # positions per cross-entropy chunk; None = whole sequences at once
  objective.z_loss = 0.0  # weight of mean(log Z ** 2)
  objective.label_smoothing = 0.0  # in [0, 1): mass moved to the uniform distribution
  objective.balance_loss = 0.01  # weight of the experts' load-balancing loss, a layer
  objective.router_z_loss = 0.0  # weight of mean(log Z ** 2) of the experts' router, a layer
  objective.router_bias_rate = 0.0  # change of the biases that even out experts' loads; 0 = off

  config.optim = optim = ConfigDict()
  optim.name = "adamw"  # a key of lm.optim.directions.OPTIMIZERS
  optim.peak_lr = 3e-3  # after warm-up
  optim.b1 = 0.9  # first-moment decay; momentum of sgd and muon
  optim.b2 = 0.95  # second-moment decay
  optim.eps = 1e-8  # added to the root of the second moment
  optim.b3 = 0.9999  # decay of ademamix's slow mean
  optim.slow_weight = 8.0  # weight of ademamix's slow mean
  optim.slow_warmup = 1.0  # share of the run over which b3 and it grow to these; 0 = at once
  optim.precondition_every = 10  # updates between soap's bases, or sophia's draws of the Hessian
  optim.gamma = 0.01  # what sophia multiplies the Hessian's diagonal by
  optim.cautious = False  # leave out the elements of an update that go against the gradient
  optim.hyperball = False  # hidden matrices keep their first norm, instead of decaying; lr = angle
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
  optim.plateau_patience = 10  # readings without improvement before plateau cuts the rate
  optim.plateau_window = 10  # steps whose mean loss is one reading of plateau
  optim.plateau_factor = 0.5  # what plateau multiplies the rate by
  optim.ema_decay = None  # moving average of weights, used by evaluation; None = off
  optim.state_dtype = "float32"  # of the optimizer's means: float32 | bfloat16 | int8 (in blocks)
  optim.init_scale = 1.0  # multiplies the initial standard deviation of every matrix
  optim.prune = "none"  # weights taken out meanwhile: none | magnitude | movement | soft_movement
  optim.prune_keep = 0.5  # share of every matrix that is left at the end; not read by soft_movement
  optim.prune_begin = 0.1  # fraction of the run after which weights go
  optim.prune_end = 0.7  # and after which no more go
  optim.prune_lr = 1e-2  # learning rate of movement's scores, times the schedule
  optim.prune_penalty = 0.0  # weight of mean sigmoid(score), for soft_movement
  optim.layer_decay = 1.0  # each layer's rate over that of the layer above it; 1 = all alike
  optim.groups = ()  # PATTERN:frozen or PATTERN:lr=0.1:weight_decay=0:b1=0:b2=0.9, by parameters' paths

  config.train = train = ConfigDict()
  train.batch_size = 16  # sequences a step, over all devices
  train.accumulate = 1  # micro-batches a step
  train.steps = None  # budget: optimizer steps; exactly one budget is set
  train.tokens = 2_500_000  # budget: training tokens
  train.tokens_per_param = None  # budget: tokens for each parameter (train.count says which)
  train.flops = None  # budget: floating-point operations (train.flops_convention)
  train.seconds = None  # budget: seconds of training steps at train.tokens_per_sec
  train.tokens_per_sec = None  # speed that train.seconds counts with; None = measured at first
  train.count = "total"  # parameters in tokens_per_param: total | non_embedding
  train.flops_convention = "6ND"  # 6ND | 6ND_nonembedding | exact
  train.noise_scale = False  # gradient noise scale, from train.accumulate >= 2 micro-batches
  train.on_nonfinite = "stop"  # a loss or gradient of nan or inf: stop | skip the update | rewind
  train.hang_seconds = 1800  # seconds after which a step's stacks are printed; None = never
  train.init_from = None  # run or Hugging Face folder whose parameters the run starts from
  train.init_depth = None  # how layers fill a deeper model: stack (1 2 1 2) | interleave (1 1 2 2)

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
  log.wandb = "auto"  # WANDB_MODE, else online with a key | online | offline | disabled
  log.wandb_project = None  # project in Weights & Biases; None = WANDB_PROJECT, else isoflop
  log.wandb_group = None  # group of runs there; sweeps set it
  log.mirrors = ()  # others that get the record, too: tensorboard, trackio

  config.mesh = mesh = ConfigDict()  # devices along each axis; -1 = the rest, at most once
  mesh.replica = -1  # pure data parallel; the only axis that crosses TPU slices
  mesh.fsdp = 1  # data parallel with parameters and optimizer state sharded
  mesh.expert = 1  # data parallel with the experts of a mixture sharded
  mesh.sequence = 1  # positions sharded, keys passed around a ring
  mesh.tensor = 1  # heads, mlp and vocabulary sharded

  config.lock()
  return config
