"""The families of benchmarks/families.py in torch: modules that turn a batch of arrays into its loss.

Each takes a resolved config and has the same layers, widths and vocabulary, and as many parameters.
transformers' BERT and T5 compute logits of every position, as their own training does; ours those of guessed
tokens alone for BERT. There is no peer of the GAN.
"""


def decoder(cfg):
  """GPT-2 (benchmarks/peers.py)."""
  import torch

  from benchmarks import peers

  m = cfg.model
  shape = peers.Shape(
    m.depth, m.width, m.heads, m.mlp_dim, m.vocab_size, m.seq_len, cfg.train.batch_size
  )

  class Gpt(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.model = peers.torch_gpt(shape)

    def forward(self, batch):
      return self.model(batch["tokens"], batch["targets"])

  return Gpt()


def bert(cfg):
  """transformers' BertForMaskedLM."""
  import torch
  from transformers import BertConfig, BertForMaskedLM

  m = cfg.model
  config = BertConfig(
    vocab_size=m.vocab_size, hidden_size=m.width, num_hidden_layers=m.depth,
    num_attention_heads=m.heads, intermediate_size=m.mlp_dim or 4 * m.width,
    max_position_embeddings=m.seq_len, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
  )  # fmt: skip

  class Bert(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.model = BertForMaskedLM(config)

    def forward(self, batch):
      guessed = torch.where(batch["weights"] > 0, batch["targets"], -100)
      labels = torch.full_like(batch["tokens"], -100).scatter(1, batch["places"], guessed)
      real = (batch["segments"] > 0).long()
      return self.model(input_ids=batch["tokens"], attention_mask=real, labels=labels).loss

  return Bert()


def encoder_decoder(cfg):
  """torch.nn.Transformer with sinusoids and one table; sources of a row are read as one."""
  import math
  import warnings

  import torch
  import torch.nn.functional as F

  m = cfg.model

  class Translator(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.embed = torch.nn.Embedding(m.vocab_size, m.width)
      torch.nn.init.normal_(self.embed.weight, std=m.width**-0.5)
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a fast path that is not for training
        self.stacks = torch.nn.Transformer(
          m.width, m.heads, m.depth, m.decoder_depth or m.depth, m.mlp_dim, dropout=0.0, batch_first=True,
          norm_first=True,
        )  # fmt: skip
      rates = torch.exp(torch.arange(0, m.width, 2) * (-math.log(10_000.0) / m.width))
      angles = torch.arange(max(m.seq_len, m.target_len or 0))[:, None] * rates
      waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
      self.register_buffer("waves", waves)

    def read(self, ids, places):
      return self.embed(ids) * m.width**0.5 + self.waves[places]

    def forward(self, batch):
      hidden = batch["source_segments"] == 0
      source = self.read(batch["source"], batch["source_positions"])
      target = self.read(batch["tokens"], batch["positions"])
      length = target.shape[1]
      later = torch.ones(length, length, dtype=torch.bool, device=target.device).triu(1)
      x = self.stacks(
        source, target, tgt_mask=later, tgt_is_causal=True, src_key_padding_mask=hidden,
        memory_key_padding_mask=hidden,
      )  # fmt: skip
      logits = F.linear(x, self.embed.weight)
      return weighted(logits, batch["targets"], batch["weights"])

  return Translator()


def t5(cfg):
  """transformers' T5ForConditionalGeneration."""
  import torch
  from transformers import T5Config, T5ForConditionalGeneration

  m = cfg.model
  config = T5Config(
    vocab_size=m.vocab_size, d_model=m.width, d_kv=m.head_dim, d_ff=m.mlp_dim, num_layers=m.depth,
    num_decoder_layers=m.decoder_depth or m.depth, num_heads=m.heads, dropout_rate=0.0, use_cache=False,
    relative_attention_num_buckets=m.buckets, relative_attention_max_distance=m.max_distance,
  )  # fmt: skip

  class T5(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.model = T5ForConditionalGeneration(config)

    def forward(self, batch):
      real = (batch["source_segments"] > 0).long()
      found = self.model(
        input_ids=batch["source"], attention_mask=real, decoder_input_ids=batch["tokens"]
      )
      return weighted(found.logits, batch["targets"], batch["weights"])

  return T5()


def recurrent(cfg):
  """torch.nn.LSTM between a table and a readout, its state carried on."""
  import torch

  m = cfg.model

  class Lstm(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.embed = torch.nn.Embedding(m.vocab_size, m.width)
      self.layers = torch.nn.LSTM(m.width, m.hidden_dim, m.depth, batch_first=True)
      self.head = torch.nn.Linear(m.hidden_dim, m.vocab_size)
      self.state = None

    def forward(self, batch):
      x, state = self.layers(self.embed(batch["tokens"]), self.state)
      self.state = tuple(part.detach() for part in state)
      return weighted(self.head(x), batch["targets"], batch["weights"])

  return Lstm()


def vae(cfg):
  """Two torch.nn.LSTMs and the vector between them; words left out as ours are."""
  import torch

  m, rate = cfg.model, cfg.objective.word_dropout

  class Vae(torch.nn.Module):
    def __init__(self):
      super().__init__()
      size = m.hidden_dim
      self.embed = torch.nn.Embedding(m.vocab_size, m.width)
      self.encoder = torch.nn.LSTM(m.width, size, batch_first=True)
      self.posterior = torch.nn.Linear(size, 2 * m.latent_dim)
      self.initial = torch.nn.Linear(m.latent_dim, 2 * size)
      self.decoder = torch.nn.LSTM(m.width + m.latent_dim, size, batch_first=True)
      self.head = torch.nn.Linear(size, m.vocab_size)

    def forward(self, batch):
      weights = batch["weights"]
      states, _ = self.encoder(self.embed(batch["targets"]))
      last = (weights.sum(1).long() - 1).clamp(min=0)
      h = states[torch.arange(len(last), device=last.device), last]
      mean, log_var = self.posterior(h).chunk(2, 1)
      z = mean + torch.exp(0.5 * log_var) * torch.randn_like(mean)
      first = [part[None].contiguous() for part in torch.tanh(self.initial(z)).chunk(2, 1)]
      kept = (torch.rand_like(weights) >= rate).float()[..., None]
      x = self.embed(batch["tokens"]) * kept
      beside = z[:, None].expand(-1, x.shape[1], -1)
      y, _ = self.decoder(torch.cat([x, beside], 2), tuple(first))
      kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum()
      nll = weighted(self.head(y), batch["targets"], weights) * weights.sum()
      return (nll + kl) / len(weights)

  return Vae()


def word_vectors(cfg):
  """Skip-gram with negative sampling as matrix products over rows, the same formula as ours."""
  import torch
  import torch.nn.functional as F

  m, negatives = cfg.model, cfg.objective.negatives

  class SkipGram(torch.nn.Module):
    def __init__(self):
      super().__init__()
      self.words = torch.nn.Embedding(m.vocab_size, m.width)
      self.contexts = torch.nn.Embedding(m.vocab_size, m.width)

    def forward(self, batch):
      segments = batch["segments"]
      place = torch.arange(segments.shape[1], device=segments.device)
      apart = (place[:, None] - place[None]).abs()
      near = (apart[None] <= batch["windows"][..., None]) & (apart > 0)[None]
      near &= segments[:, :, None] == segments[:, None]
      near = (near & (segments > 0)[..., None]).float()
      v, u = self.words(batch["words"]), self.contexts(batch["words"])
      drawn = v @ self.contexts(batch["negatives"]).mT
      count = near.sum(2)
      true = (near * F.softplus(-(v @ u.mT))).sum()
      false = (count * F.softplus(drawn).mean(2)).sum()
      return (true + negatives * false) / count.sum()

  return SkipGram()


def weighted(logits, targets, weights):
  """Mean cross-entropy of the tokens that weigh 1."""
  import torch.nn.functional as F

  each = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
  return (each * weights.flatten()).sum() / weights.sum()


PEERS = {
  "decoder": decoder,
  "bert": bert,
  "encoder_decoder": encoder_decoder,
  "t5": t5,
  "recurrent": recurrent,
  "vae": vae,
  "word_vectors": word_vectors,
}
