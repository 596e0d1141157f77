"""Instruction tuning: the answers of conversations, token after token, given what was said before them.

The next-token objective on the kind of batch "chat" (lm.data.chat), where only answers have weight: prompts,
roles and system messages are read and not learned (Ouyang et al. 2022, arXiv:2203.02155 §3.5).
"""

import dataclasses

from lm.config.schema import Config, field
from lm.data import templates
from lm.objectives import next_token


@dataclasses.dataclass(frozen=True)
class InstructionConfig(next_token.NextTokenConfig):
  template: str = field(choices=("chatml", "tokenizer"))
  too_long: str = field(choices=("refuse", "cut", "drop"))


def make_sampler(cfg: Config, tokenizer, mesh=None):
  """`sample(params, seed) -> text`: the answer to cfg.sample.prompt; None where samples are off."""
  if cfg.sample.tokens == 0:
    return None
  template = templates.find_template(cfg.objective.template, templates.folder_of(cfg))
  asked = templates.asks(cfg.sample.prompt)
  prompt = templates.tokenise(asked, template, tokenizer, ask=True)[0].tolist()
  ending = templates.ending_of(template, tokenizer)
  return next_token.sampler_after(cfg, tokenizer, mesh, prompt, ending)


INSTRUCTION = dataclasses.replace(
  next_token.NEXT_TOKEN, section=InstructionConfig, batches="chat", make_sampler=make_sampler
)
