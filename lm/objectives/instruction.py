"""Instruction tuning: the answers of conversations, token after token, given what was said before them.

The next-token objective on the kind of batch "chat" (lm.data.chat), where only answers have weight: prompts,
roles and system messages are read and not learned (Ouyang et al. 2022, arXiv:2203.02155 §3.5).
"""

import dataclasses

from lm.config.schema import field
from lm.objectives import next_token


@dataclasses.dataclass(frozen=True)
class InstructionConfig(next_token.NextTokenConfig):
  template: str = field(choices=("chatml", "tokenizer"))
  too_long: str = field(choices=("refuse", "cut", "drop"))


INSTRUCTION = dataclasses.replace(next_token.NEXT_TOKEN, section=InstructionConfig, batches="chat")
