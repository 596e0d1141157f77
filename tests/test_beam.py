"""Beam search: equal to transformers' at equal weights, for decoders and encoder-decoders; ids that exist."""

import numpy as np
import pytest

from lm.hf.convert import from_hf
from lm.hf.fields import model_config
from lm.models.beam import make_beam_search
from lm.models.decoding import Sampling, make_generator
from tests.encoder_decoders import model_of
from tests.test_encoder_decoder import ours_of, transformers_t5

EOS, START, NEW, BEAMS = 1, 0, 8, 3
PENALTIES = [1.0, 0.0, 2.5, -1.0]


def compare(torch, theirs, search, params, prompts, mask, source, eos=EOS):
  """Texts of all beams, for each length penalty, after they are found equal to transformers'."""
  for penalty in PENALTIES:
    out = theirs.generate(
      torch.tensor(prompts), attention_mask=torch.tensor(mask), num_beams=BEAMS, do_sample=False,
      num_return_sequences=BEAMS, max_new_tokens=NEW, length_penalty=penalty, early_stopping=False,
      output_scores=True, return_dict_in_generate=True, eos_token_id=eos, pad_token_id=START,
    )  # fmt: skip
    given = [p[m.astype(bool)].tolist() for p, m in zip(prompts, mask, strict=True)]
    found = search(params, given, penalty, eos, START)
    first = 1 if source else prompts.shape[1]
    rows = out.sequences[:, first:].tolist()
    until = lambda ids: ids[: ids.index(eos)] if eos in ids else ids
    ours = [best.ids for row in found for best in row]
    assert ours == [until(ids) for ids in rows], penalty
    scores = [best.score for row in found for best in row]
    np.testing.assert_allclose(scores, out.sequences_scores.numpy(), atol=1e-4)
    yield ours


def test_t5_finds_what_transformers_finds():
  torch, theirs, config = transformers_t5(gated=True)
  model, params = ours_of(theirs, config)
  prompts = np.random.default_rng(0).integers(2, 40, (4, 11))
  mask = (np.arange(11)[None] < np.array([[11], [6], [9], [3]])).astype(np.int64)
  prompts = np.where(mask, prompts, START)
  search = make_beam_search(model.cfg, NEW, BEAMS)
  given = [p[m.astype(bool)].tolist() for p, m in zip(prompts, mask, strict=True)]
  endless = search(params, given, 1.0, EOS, START)
  ends = next(ids[i] for row in endless for ids, _ in row for i in (2, 3) if ids[i] != ids[0])
  found = list(compare(torch, theirs, search, params, prompts, mask, True, ends))
  assert len({len(ids) for ours in found for ids in ours}) > 1  # some end early


def test_a_decoder_finds_what_transformers_finds():
  transformers = pytest.importorskip("transformers")
  torch = pytest.importorskip("torch")
  torch.manual_seed(0)
  config = transformers.GPT2Config(
    vocab_size=23, n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=START, eos_token_id=EOS,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.6,
  )  # fmt: skip
  theirs = transformers.GPT2LMHeadModel(config).eval()
  fields, params = from_hf(
    {name: a.numpy() for name, a in theirs.state_dict().items()}, config.to_dict()
  )
  prompts = np.random.default_rng(1).integers(2, 23, (3, 5))
  search = make_beam_search(model_config(fields), NEW, BEAMS)
  found = list(compare(torch, theirs, search, params, prompts, np.ones_like(prompts), False))
  assert len({len(ids) for ours in found for ids in ours}) > 1


def test_one_beam_is_greedy_and_nothing_beyond_the_tokenizer_is_written():
  model, params = model_of("t5-1.1")
  prompts = [[5, 6, 7, 1], [9, 1]]
  kernel = np.array(params["head"]["kernel"])
  kernel[:, 30:] *= 4  # the readout favours ids from 30 on, as it may sentinels
  loud = params | {"head": {"kernel": kernel}}
  free = make_generator(model.cfg, NEW)(loud, prompts, Sampling(temperature=0.0), 0, EOS, START)
  assert max(max(ids) for ids in free) >= 30
  greedy = make_generator(model.cfg, NEW, n_tokens=30)
  drawn = greedy(loud, prompts, Sampling(temperature=0.0), 0, EOS, START)
  best = make_beam_search(model.cfg, NEW, 1, n_tokens=30)(loud, prompts, 0.0, EOS, START)
  assert [row[0].ids for row in best] == drawn
  hot = greedy(loud, prompts, Sampling(temperature=5.0), 3, EOS, START)
  wide = make_beam_search(model.cfg, NEW, 4, n_tokens=30)(loud, prompts, 1.0, EOS, START)
  texts = [*drawn, *hot, *(found.ids for row in wide for found in row)]
  assert len(texts) == 2 + 2 + 8 and max(max(ids, default=0) for ids in texts) < 30
