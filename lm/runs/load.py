"""A trained run in hand: its config, module, parameters and tokenizer, for notebooks and scripts."""

import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from lm.config.errors import ConfigError
from lm.config.schema import Config
from lm.data import templates
from lm.data.span_names import with_span_names
from lm.data.templates import Conversation
from lm.data.tokenizers import load_tokenizer
from lm.models.beam import make_beam_search
from lm.models.decoding import Sampling, before, draw_texts, make_generator, prompt_ids
from lm.models.registry import family_of, make_model
from lm.runs import bucket, rundir
from lm.runs.checkpoint import load_params


class LoadedRun(NamedTuple):
  """What `load` gives. `model.apply({"params": params}, tokens_BL)` gives a decoder's logits."""

  workdir: pathlib.Path
  step: int  # of the checkpoint
  cfg: Config  # resolved
  model: nn.Module
  params: Any  # float32, on the default device; the biases of routers among them
  tokenizer: Any  # with names of sentinels where spans are taken out (lm.data.span_names)

  def __repr__(self) -> str:
    size = f"{self.cfg.model.family}, width {self.cfg.model.width}"
    return f"LoadedRun({bucket.name_of(self.workdir)!r}, step {self.step}: {size})"

  @property
  def template(self) -> templates.Template:
    """How conversations with it are written; ConfigError where there is no chat template."""
    return templates.template_of_run(self.workdir, self.cfg)

  def reads(self, prompt: str | Conversation) -> list[int]:
    """The tokens that it reads of a text, or of a conversation up to where its answer begins."""
    t = self.tokenizer
    if isinstance(prompt, str):
      return prompt_ids(self.cfg.model, t.encode(prompt), t.start_id, t.eot_id)
    ids = templates.tokenise(prompt, self.template, t, ask=True)[0].tolist()
    return [*ids, t.eot_id] if family_of(self.cfg.model).reads_source else ids

  def generate(
    self,
    prompts: Sequence[str | Conversation],
    tokens: int = 64,
    temperature: float = 0.8,
    seed: int = 0,
    beams: int = 0,
    length_penalty: float = 1.0,
    stop: str | None = None,
  ) -> list[str]:
    """Continuations of prompts, or what belongs to them as sources; temperature 0 is greedy.

    To a conversation, [{"role": "user", "content": "Hello"}, ...], it is the answer.

    Args:
      prompts: all texts, or all conversations.
      beams: of a beam search (lm.models.beam), which draws nothing; 0 = draws.
      stop: texts end before it.

    Raises:
      ConfigError: a family that does not generate, no chat template, or prompts that leave no room.
    """
    cfg, t = self.cfg.model, self.tokenizer
    if family_of(cfg).init_cache is None:
      raise ConfigError(
        f"model.family={cfg.family}: does not generate text; score it with lm.evaluate"
      )
    encoded = [self.reads(prompt) for prompt in prompts]
    chat = bool(prompts) and not isinstance(prompts[0], str)
    ending = templates.ending_of(self.template, t) if chat else templates.NO_ENDING
    stops = ending.stops if stop is None else (stop, *ending.stops)
    if beams:
      search = make_beam_search(cfg, tokens, beams, t.vocab_size)
      found = search(self.params, encoded, length_penalty, (*ending.ids, t.eot_id)[0], t.start_id)
      return [before(t.decode(row[0].ids), stops) for row in found]
    draw = make_generator(cfg, tokens, n_tokens=t.vocab_size)
    sampling = Sampling(temperature=float(temperature))
    drawn = draw_texts(draw, self.params, encoded, sampling, seed, t, stops, ending.ids)
    return [row.text for row in drawn]


def load(workdir: str | pathlib.Path, checkpoint: str = "best") -> LoadedRun:
  """A run's config, module, parameters and tokenizer.

  Args:
    workdir: run directory, a path or a bucket's address.
    checkpoint: "best", "latest" or a step.

  Raises:
    ConfigError: no such run or checkpoint.
  """
  workdir = bucket.local(str(workdir))
  cfg = rundir.read_config(workdir)
  params, step = load_params(workdir, checkpoint)
  imported = (workdir / rundir.IMPORTED).is_file()
  tokenizer = with_span_names(load_tokenizer(workdir / "tokenizer"), cfg, imported)
  return LoadedRun(workdir, step, cfg, make_model(cfg.model), params, tokenizer)


def refuse_router_biases(cfg: Config, why: str) -> None:
  """ConfigError for a run whose experts are chosen by biases that are state, not parameters."""
  rate = getattr(cfg.objective, "router_bias_rate", 0.0)
  if rate:
    raise ConfigError(
      f"objective.router_bias_rate={rate}: the biases of this run {why}; score it with python -m lm.evaluate"
    )
